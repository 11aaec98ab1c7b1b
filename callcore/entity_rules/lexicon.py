"""The words of a language that the rules look for, and the lists of places and names."""

import functools
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import yaml

_DATA = resources.files("callcore").joinpath("data/entities")


class Lexicon:
    """One language's ``data/entities/<language>.yaml``, its patterns compiled.

    Args:
        data: The file's content.
    """

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.language: str = data["language"]
        self.version: str = data["version"]
        before_names = {3: [], **data["name_before"]}
        before_names[3] = [*data["name_surely_before"], *before_names[3]]
        self.name_before = _weighted(before_names, r"(?:^|[^\w'\u2019])(?:{})[,\s]+$")
        self.introduces = re.compile(
            rf"(?:^|[^\w'\u2019])(?:{'|'.join(data['name_surely_before'])})[,\s]+$", re.I
        )
        self.name_after = _weighted(data["name_after"], r"^[,\s]*(?:{})")
        self.place_before = _weighted(data["place_before"], r"(?:^|[^\w'\u2019])(?:{}) (?:the )?$")
        self.place_kinds = re.compile(rf"\s+(?:{_any_word(data['place_kinds'])})\b", re.I)
        self.organization_kinds = re.compile(
            rf"\s+(?:(?:primary|secondary|high|nursery|national|district|county)\s+)?"
            rf"(?:{_any_word(data['organization_kinds'])})\b",
            re.I,
        )
        self.kinds_of_organizations = frozenset(data["organization_kinds"])
        self.organization_words = frozenset(data["organization_words"])
        self.answers = re.compile(rf"\W*(?:(?:{'|'.join(data['answers'])})(?!\w)\W*)*", re.I)
        self.lives = re.compile(rf"(?:^|[^\w'\u2019])(?:{'|'.join(data['lives'])}) $", re.I)
        self.after_lives = re.compile(
            rf"\s*(?:$|[.,;!?]|(?:{'|'.join(data['after_lives'])})\b|"
            rf"(?:{_any_word(data['place_kinds'])})\b)",
            re.I,
        )
        self.not_places = frozenset(data["not_places"])
        self.kinds = frozenset(data["place_kinds"]) | frozenset(data["organization_kinds"])
        self.not_names = frozenset(data["not_names"])
        self.not_names_uncased = frozenset(data["not_names_uncased"]) | self.not_names
        self.asks = {label: _any_pattern(each) for label, each in data["asks"].items()}
        self.account_words = re.compile(rf"\b(?:{_any_word(data['account_words'])})s?\b", re.I)
        self.phone_words = re.compile(rf"\b(?:{_any_word(data['phone_words'])})\b", re.I)
        self.numbers: Mapping[str, int] = data["numbers"]
        self.scales: Mapping[str, int] = data["scales"]
        self.zeros = frozenset(data["zeros"])
        self.repeats: Mapping[str, int] = data["repeats"]
        self.ordinals: Mapping[str, int] = data["ordinals"]
        self.currencies: Mapping[str, str] = data["currencies"]
        self.cents = frozenset(data["cents"])
        self.months: Mapping[str, int] = data["months"]
        self.weekdays: Sequence[str] = data["weekdays"]
        self.relative_dates = _any_pattern(data["relative_dates"])
        self.relative_times = _any_pattern(data["relative_times"])
        self.relations: Mapping[str, str | None] = data["relations"]
        self.children = frozenset(data["children"])
        self.relation = _any_word(self.relations)
        self.harms = "|".join(data["harms"])
        self.harmed_by = "|".join(data["harmed_by"])
        self.agent_says = _any_pattern(data["agent_says"])


@functools.cache
def lexicon(language: str | None) -> Lexicon | None:
    """Return the words of a language, None where there is no file for it."""
    file = _DATA.joinpath(f"{language}.yaml")
    if language is None or not language.isalpha() or not file.is_file():
        return None
    return Lexicon(yaml.safe_load(file.read_text("utf-8")))


@functools.cache
def known_places() -> frozenset[str]:
    """Return places in small letters: countries, African places, large cities of the world."""
    return _lines("places.txt")


@functools.cache
def known_names() -> frozenset[str]:
    """Return names of people in small letters: given names, African family names."""
    return _lines("names.txt")


def _lines(name: str) -> frozenset[str]:
    return frozenset(_DATA.joinpath(name).read_text("utf-8").lower().splitlines())


def _any_word(words: Sequence[str] | Mapping[str, Any]) -> str:
    """Return a pattern that matches any of the words, the longest first."""
    return "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))


def _any_pattern(patterns: Sequence[str]) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w'])(?:{'|'.join(patterns)})", re.I)


def _weighted(
    data: Mapping[int, Sequence[str]], template: str
) -> tuple[tuple[int, re.Pattern[str]], ...]:
    """Return patterns with what they say, the strongest first."""
    return tuple(
        (weight, re.compile(template.format("|".join(data[weight])), re.I))
        for weight in sorted(data, reverse=True)
    )
