"""What a document found, in a few lines for a terminal."""

from collections.abc import Iterator, Mapping
from typing import Any

#: Names of a kind that are printed; the page shows all.
_MOST = 8


def lines(made: Mapping[str, Any]) -> Iterator[str]:
    """Yield summary, flags, priority, categories and names of a document, as far as there are."""
    summary = made["summary"] or {}
    if summary.get("text"):
        yield f"Summary: {summary['text']}"
    found = made["categories"] or {}
    for flag in found.get("flags") or ():
        quote = flag["evidence"][0]["quote"] if flag["evidence"] else ""
        yield f"Flag ({flag['severity']}): {flag['label']}: “{quote}”"
    if found.get("priority"):
        yield f"Priority: {found['priority']['level']}"
    if found.get("categories"):
        named = (f"{each['label']} ({each['score']:.2f})" for each in found["categories"][:3])
        yield "Categories: " + ", ".join(named)
    entities = (made["entities"] or {}).get("entities") or ()
    if entities:
        shown = [f"{each['text']} ({each['label'].lower()})" for each in entities[:_MOST]]
        yield "Named: " + ", ".join(shown) + (" …" if len(entities) > _MOST else "")
