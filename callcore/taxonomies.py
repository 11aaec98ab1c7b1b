"""Taxonomies: categories, call types, rules and priorities as YAML files.

Those of ``callcore/data/taxonomies`` go by their names, a site's own by their paths. A file is
checked as a whole before it is used; what is wrong is said with its place and line.
``docs/analysis.md`` explains the keys.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml

from callcore.category_rules import SEVERITIES, Rule, RuleError, compile_rule
from callcore.errors import ConfigError

T = TypeVar("T")

FIELD = "CALLCORE_TAXONOMIES"
#: From the most urgent.
LEVELS = ("critical", "high", "medium", "low")


@dataclass(frozen=True, slots=True)
class CallType:
    """What kind of contact a call is, whatever it is about."""

    id: str
    label: Mapping[str, str]
    """By language code."""
    data: bool
    """Whether somebody had a concern: only then there are categories."""
    hints: tuple[str, ...] = ()
    """Sentences that describe it."""
    examples: tuple[str, ...] = ()
    """Sentences as callers say them."""
    max_words: int | None = None
    """The caller says no more words than this; None: does not matter."""


@dataclass(frozen=True, slots=True)
class Category:
    """What a call is about."""

    id: str
    """Dotted: ``violence.physical`` is a child of ``violence``."""
    label: Mapping[str, str]
    path: tuple[str, ...]
    """Its ancestors' ids and its own, from the top."""
    hints: tuple[str, ...] = ()
    examples: tuple[str, ...] = ()
    severity: str | None = None


@dataclass(frozen=True, slots=True)
class Priority:
    """What makes a call urgent: any of the rules or categories."""

    level: str
    why: Mapping[str, str]
    rules: tuple[str, ...]
    categories: tuple[str, ...]
    """Their children count too."""


@dataclass(frozen=True, slots=True)
class Taxonomy:
    """One file."""

    id: str
    version: str
    label: Mapping[str, str]
    call_types: tuple[CallType, ...]
    categories: tuple[Category, ...]
    """Of all levels, parents before their children."""
    rules: tuple[Rule, ...]
    priorities: tuple[Priority, ...]


def load(names: Sequence[str]) -> tuple[Taxonomy, ...]:
    """Return the taxonomies of these names or paths, in their order.

    Raises:
        ConfigError: If one cannot be read or is wrong; the message names the file and the line.
    """
    loaded: dict[str, Taxonomy] = {}
    for name in names:
        taxonomy = _load(name)
        if taxonomy.id in loaded:
            raise ConfigError(FIELD, name, f"taxonomies of different ids, not {taxonomy.id} twice")
        loaded[taxonomy.id] = taxonomy
    return tuple(loaded.values())


def shipped() -> list[str]:
    """Return the names of the taxonomies that callcore ships."""
    files = resources.files("callcore").joinpath("data/taxonomies").iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def _load(name: str) -> Taxonomy:
    if name in shipped():
        file = resources.files("callcore").joinpath(f"data/taxonomies/{name}.yaml")
        return parse(file.read_text("utf-8"), name)
    if "/" not in name and not name.endswith((".yaml", ".yml")):
        raise ConfigError(FIELD, name, f"{', '.join(shipped())}, or the path of a YAML file")
    try:
        text = Path(name).expanduser().read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise ConfigError(FIELD, name, f"a file that can be read ({reason})") from error
    return parse(text, name)


@functools.lru_cache(maxsize=32)
def parse(text: str, file: str) -> Taxonomy:
    """Return the taxonomy that a YAML text is.

    Args:
        text: The file's content.
        file: Its name, for messages.

    Raises:
        ConfigError: If it is wrong; the message names the place and the line.
    """
    return _Reader(text, file).taxonomy()


class _Reader:
    """Reads one file; knows which line everything is on."""

    def __init__(self, text: str, file: str) -> None:
        self._file = file
        self._lines: dict[str, int] = {}
        try:
            loader = yaml.SafeLoader(text)
            node = loader.get_single_node()
            self._document = None if node is None else loader.construct_document(node)
            if node is not None:
                self._note(node, "")
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            raise ConfigError(FIELD, file, f"YAML, but line {line}: {error.problem}") from error
        except yaml.YAMLError as error:
            raise ConfigError(FIELD, file, "YAML of printable characters") from error

    def _note(self, node: yaml.Node, path: str) -> None:
        """Remember the lines of a node and of what is in it; refuse keys that are there twice."""
        self._lines[path] = node.start_mark.line + 1
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in node.value:
                name = str(key.value)
                place = f"{path}.{name}" if path else name
                self._lines[place] = key.start_mark.line + 1
                if name in seen:
                    raise self._wrong(place, "is there twice")
                seen.add(name)
                self._note(value, place)
                self._lines[place] = key.start_mark.line + 1
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                self._note(value, f"{path}[{index}]")

    def _wrong(self, path: str, problem: str) -> ConfigError:
        place = path
        while place and place not in self._lines:
            place = place.rpartition(".")[0]
        line = self._lines.get(place, 1)
        return ConfigError(
            FIELD, self._file, f"a taxonomy, but line {line}: {path or 'the file'} {problem}"
        )

    def taxonomy(self) -> Taxonomy:
        keys = "taxonomy version label call_types categories rules priorities"
        top = self._mapping(self._document, "", keys, "taxonomy version categories")
        call_types = self._list(top, "", "call_types", self._call_type)
        categories = [
            category
            for index, entry in enumerate(self._entries(top, "", "categories"))
            for category in self._categories(entry, f"categories[{index}]", ())
        ]
        rules = self._list(top, "", "rules", self._rule)
        priorities = self._list(top, "", "priorities", self._priority)
        self._refuse_twice("call_types", [each.id for each in call_types])
        self._refuse_twice("categories", [each.id for each in categories])
        self._refuse_twice("rules", [each.id for each in rules])
        known = {each.id for each in categories}
        for index, rule in enumerate(rules):
            self._known(f"rules[{index}].category", (rule.category,), known)
            types = {each.id for each in call_types}
            self._known(f"rules[{index}].call_type", (rule.call_type,), types)
        for index, priority in enumerate(priorities):
            self._known(f"priorities[{index}].categories", priority.categories, known)
            self._known(f"priorities[{index}].rules", priority.rules, {r.id for r in rules})
        return Taxonomy(
            id=self._id(top, "", "taxonomy"),
            version=str(top["version"]),
            label=self._label(top, "") if "label" in top else {},
            call_types=tuple(call_types),
            categories=tuple(categories),
            rules=tuple(rules),
            priorities=tuple(priorities),
        )

    def _call_type(self, entry: object, path: str) -> CallType:
        keys = "id label data hint examples recognise"
        known = self._mapping(entry, path, keys, "id label data")
        if not isinstance(known["data"], bool):
            raise self._wrong(f"{path}.data", "is neither true nor false")
        recognise = self._mapping(known.get("recognise", {}), f"{path}.recognise", "max_words", "")
        max_words = recognise.get("max_words")
        if max_words is not None and (not isinstance(max_words, int) or max_words < 0):
            raise self._wrong(f"{path}.recognise.max_words", "is no number of words")
        return CallType(
            id=self._id(known, path),
            label=self._label(known, path),
            data=known["data"],
            hints=self._texts(known, path, "hint"),
            examples=self._texts(known, path, "examples"),
            max_words=max_words,
        )

    def _categories(self, entry: object, path: str, above: tuple[str, ...]) -> list[Category]:
        keys = "id label hint examples severity children"
        known = self._mapping(entry, path, keys, "id label")
        name = self._id(known, path)
        if above and not name.startswith(above[-1] + "."):
            raise self._wrong(f"{path}.id", f"does not begin with {above[-1]}.")
        severity = known.get("severity")
        if severity is not None and severity not in SEVERITIES:
            raise self._wrong(f"{path}.severity", f"is none of {', '.join(SEVERITIES)}")
        category = Category(
            id=name,
            label=self._label(known, path),
            path=(*above, name),
            hints=self._texts(known, path, "hint"),
            examples=self._texts(known, path, "examples"),
            severity=severity,
        )
        found = [category]
        for index, child in enumerate(self._entries(known, path, "children")):
            found += self._categories(child, f"{path}.children[{index}]", category.path)
        return found

    def _rule(self, entry: object, path: str) -> Rule:
        if not isinstance(entry, Mapping):
            raise self._wrong(path, "is no mapping")
        if "label" in entry:
            self._label(entry, path)
        for key in ("match", "no_match"):
            examples = entry.get("examples")
            if isinstance(examples, Mapping):
                self._texts(examples, f"{path}.examples", key)
        try:
            return compile_rule(entry)
        except RuleError as error:
            raise self._wrong(path, str(error)) from error

    def _priority(self, entry: object, path: str) -> Priority:
        known = self._mapping(entry, path, "level why rules categories", "level why")
        if known["level"] not in LEVELS:
            raise self._wrong(f"{path}.level", f"is none of {', '.join(LEVELS)}")
        return Priority(
            level=known["level"],
            why=self._label(known, path, "why"),
            rules=self._texts(known, path, "rules"),
            categories=self._texts(known, path, "categories"),
        )

    def _mapping(self, entry: object, path: str, keys: str, needed: str) -> Mapping[str, Any]:
        if not isinstance(entry, Mapping):
            raise self._wrong(path, "is no mapping")
        for key in entry:
            if key not in keys.split():
                place = f"{path}.{key}" if path else str(key)
                raise self._wrong(place, f"is an unknown key: expected {', '.join(keys.split())}")
        for key in needed.split():
            if key not in entry:
                raise self._wrong(path, f"has no `{key}`")
        return entry

    def _entries(self, entry: Mapping[str, Any], path: str, key: str) -> list[Any]:
        entries = entry.get(key, [])
        if not isinstance(entries, list):
            raise self._wrong(f"{path}.{key}" if path else key, "is no list")
        return entries

    def _list(
        self, entry: Mapping[str, Any], path: str, key: str, read: Callable[[object, str], T]
    ) -> list[T]:
        entries = self._entries(entry, path, key)
        return [read(each, f"{key}[{index}]") for index, each in enumerate(entries)]

    def _id(self, entry: Mapping[str, Any], path: str, key: str = "id") -> str:
        value = entry[key]
        if not isinstance(value, str) or not value:
            raise self._wrong(f"{path}.{key}" if path else key, "is no text")
        return value

    def _label(self, entry: Mapping[str, Any], path: str, key: str = "label") -> Mapping[str, str]:
        """Return texts by language code; English is always among them."""
        label = entry[key]
        place = f"{path}.{key}" if path else key
        if not isinstance(label, Mapping) or not all(isinstance(v, str) for v in label.values()):
            raise self._wrong(place, "is no mapping of language codes to texts")
        if "en" not in label:
            raise self._wrong(place, "has no text in English (en)")
        return label

    def _texts(self, entry: Mapping[str, Any], path: str, key: str) -> tuple[str, ...]:
        texts = entry.get(key, ())
        texts = [texts] if isinstance(texts, str) else texts
        is_list = isinstance(texts, list | tuple)
        if not is_list or not all(isinstance(text, str) and text.strip() for text in texts):
            raise self._wrong(f"{path}.{key}", "is no list of texts")
        return tuple(texts)

    def _refuse_twice(self, path: str, ids: Sequence[str]) -> None:
        for each in ids:
            if ids.count(each) > 1:
                raise self._wrong(path, f"has the id {each} twice")

    def _known(self, path: str, ids: Sequence[str | None], known: set[str]) -> None:
        for each in ids:
            if each is not None and each not in known:
                raise self._wrong(path, f"names {each}, which is not in this file")
