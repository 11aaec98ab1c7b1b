"""The published form of the document: checks against its types, and its JSON Schema.

python -m callcore.insights_document > callcore/data/schema/callcore.insights-1.json
"""

import json
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import msgspec

from callcore import document_types as types
from callcore.errors import SchemaError

#: What the documents say of themselves.
SCHEMA = "callcore.insights/1"

#: File of the schema among the package's data, and its last name in the web's address of it.
SCHEMA_FILE = "callcore.insights-1.json"

#: What each step's result must be; those of a site's own steps are free.
RESULTS: dict[str, type[types.Made]] = {
    "transcribe": types.Transcript,
    "translate": types.Translation,
    "summarize": types.Summary,
    "ner": types.Entities,
    "classify": types.Categories,
    "insights": types.Insights,
    "annotate": types.Annotation,
}

#: msgspec says values and unknown names of fields, which may be words of a call.
_VALUES = (
    (re.compile(r"^Invalid enum value .*?( - at `\$[^`]*`)?$", re.S), r"not one of the values\1"),
    (
        re.compile(r"^Object contains unknown field .*?( - at `\$[^`]*`)?$", re.S),
        r"a field too many\1",
    ),
)


#: Made here, where imports let one thread in: msgspec 0.22 shows other threads what it has not
#: finished learning of a type, and the process dies (SIGSEGV) if one of them uses it.
_DECODERS: dict[Any, msgspec.json.Decoder[Any]] = {
    kind: msgspec.json.Decoder(kind, strict=True)
    for kind in (*RESULTS.values(), types.InsightsDocument, dict[str, Any])
}


def check_result(step: str, result: Mapping[str, Any]) -> None:
    """Do nothing if a step's result is what the document says it is.

    Raises:
        SchemaError: If not; the message names the place and no value.
    """
    _check(f"the result of {step}", result, RESULTS.get(step, dict[str, Any]))


def check_document(document: Mapping[str, Any]) -> None:
    """Do nothing if a document is valid.

    Raises:
        SchemaError: If not; the message names the place and no value.
    """
    _check("the document", document, types.InsightsDocument)


def _check(what: str, made: Mapping[str, Any], wanted: Any) -> None:
    """Check the JSON that is stored and sent: what becomes a number there is one."""
    try:
        # Neither JSON nor PostgreSQL knows NaN.
        text = json.dumps(made, allow_nan=False)
    except (ValueError, TypeError, RecursionError):
        raise SchemaError(what, "a value that JSON cannot hold") from None
    try:
        _DECODERS[wanted].decode(text)
    except msgspec.ValidationError as error:
        raise SchemaError(what, _without_values(str(error))) from None


def _without_values(message: str) -> str:
    for pattern, words in _VALUES:
        if pattern.match(message):
            return pattern.sub(words, message)
    return message


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of the document, made from the types."""
    (top,), parts = msgspec.json.schema_components(
        [types.InsightsDocument], ref_template="#/$defs/{name}"
    )
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": SCHEMA_FILE,
        "title": SCHEMA,
        **top,
        "$defs": parts,
    }


def published_schema() -> bytes:
    """Return the file of the schema, as it is served and shipped."""
    return files("callcore").joinpath("data", "schema", SCHEMA_FILE).read_bytes()


def schema_text() -> str:
    """Return what the file of the schema should hold."""
    return json.dumps(json_schema(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    print(schema_text(), end="")
