"""What the name of a recording's file says: the call, the channel, whose leg.

Parsers are data: a pattern whose groups are named after fields of ``CallFacts``. The first that
matches the whole stem wins. A leg suffix (``-caller``, ``-agent``, ``-agent-2``) comes off before.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import PurePosixPath
from typing import Any

from callcore.calls import CallFacts

#: Asterisk's uniqueid: seconds since 1970, a dot, a counter; a system name before it if one is set
#: (``systemname`` in asterisk.conf). One word only: longer prefixes are other schemes of names.
UNIQUEID = r"(?:[A-Za-z][A-Za-z0-9_]{0,39}-)?\d{9,11}\.\d{1,10}"

#: Extensions of sound files, lower case: what ``audio`` reads, and Asterisk's ``sln``, which it
#: does not: people shall see that it is refused.
AUDIO_EXTENSION = re.compile(
    "wav|w64|aiff?|au|caf|mp3|og[ga]|opus|flac|m4a|mp4|mov|mk[av]|webm|aac|amr|awb|gsm|sln"
)

#: Suffixes after the stem of a recording of one party: ``MixMonitor(X.wav,r(X-caller.wav)...)``.
LEG_SUFFIXES = ("caller", "agent", "agent-2", "agent-3", "agent-4")

_EXTENSION = re.compile(r"\.([A-Za-z][A-Za-z0-9]{0,4})$")
_SUFFIX = re.compile(rf"-({'|'.join(sorted(LEG_SUFFIXES, key=len, reverse=True))})$")


@dataclass(frozen=True, slots=True)
class NamePattern:
    """A way in which a PBX names its recordings."""

    name: str
    """Who names files so."""
    pattern: re.Pattern[str]
    """Groups are named after fields of ``CallFacts``."""


#: Tried in order.
PATTERNS: tuple[NamePattern, ...] = (
    NamePattern("plain", re.compile(rf"(?P<uniqueid>{UNIQUEID})")),
)


@dataclass(frozen=True, slots=True)
class FileName:
    """A recording's file name, taken apart."""

    stem: str
    """The name without extension and leg suffix: what the files of one recording share."""
    extension: str
    """Lower case, without the dot; empty if there is none."""
    leg: str | None
    """The leg that the suffix names, None for a file of the whole call."""
    facts: CallFacts
    """What the stem says."""


_FACT_NAMES = frozenset(field.name for field in fields(CallFacts)) - {"started_at"}


def parse(name: str, patterns: Sequence[NamePattern] = PATTERNS) -> FileName:
    """Return what a file name, a path or the path of a URL says."""
    stem = PurePosixPath(name).name
    extension = ""
    if found := _EXTENSION.search(stem):
        stem, extension = stem[: found.start()], found[1].lower()
    leg = None
    if found := _SUFFIX.search(stem):
        stem, leg = stem[: found.start()], found[1]
    return FileName(stem, extension, leg, _facts(stem, patterns))


def _facts(stem: str, patterns: Sequence[NamePattern]) -> CallFacts:
    for each in patterns:
        if found := each.pattern.fullmatch(stem):
            groups: dict[str, Any] = {
                k: v for k, v in found.groupdict().items() if v and k in _FACT_NAMES
            }
            return CallFacts(**groups)
    return CallFacts()


def is_storable(name: str) -> bool:
    """Tell whether a name can go on record: databases take no NUL and no bytes beside UTF-8.

    Python reads such bytes of a folder's names as lone surrogates.
    """
    try:
        return b"\0" not in name.encode()
    except UnicodeEncodeError:
        return False


def siblings(path: str) -> list[str]:
    """Return the paths that the other files of the same recording would have."""
    parent, name = str(PurePosixPath(path).parent), parse(path)
    dot = PurePosixPath(path).suffix if name.extension else ""
    stems = [name.stem, *(f"{name.stem}-{suffix}" for suffix in LEG_SUFFIXES)]
    paths = [f"{parent}/{stem}{dot}" for stem in stems]
    return [each for each in paths if each != path]
