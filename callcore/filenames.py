"""What the name of a recording's file says: the call, the channel, whose leg.

Parsers are data: a pattern whose groups are named after fields of ``CallFacts``. The first that
matches the whole stem wins. A leg suffix (``-caller``, ``-agent``, ``-agent-2``) comes off before.
Names come from strangers: what they say is a claim, which ``intake`` checks field by field.

FreePBX and its kin (Issabel, Elastix) write ``<type>-<dest>-<from>-YYYYMMDD-HHMMSS-<uniqueid>``
(``functions.inc.php`` of FreePBX/callrecording: ``__CALLFILENAME``); ViciDial's default is
``YYYYMMDD-HHMMSS_<phone>-all``. Dates in names are local times of the PBX, of a zone that nobody
tells us, so no start is read from them. The uniqueid is better: it begins with the second at which
the channel was made, in UTC (``channel_started_at``).
"""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any

from callcore.calls import CallFacts

#: Asterisk's uniqueid: seconds since 1970, a dot, a counter; a system name before it if one is set
#: (``systemname`` in asterisk.conf). One word only: longer prefixes are other schemes of names.
UNIQUEID = r"(?:[A-Za-z][A-Za-z0-9_]{0,39}-)?\d{9,11}\.\d{1,10}"

#: Extensions of sound files, lower case: what ``audio`` reads, and headerless ones of Asterisk
#: that it may refuse: people shall see that.
AUDIO_EXTENSION = re.compile(
    "wav(49)?|w64|aiff?|au|caf|mp3|og[ga]|opus|flac|m4a|mp4|mov|mk[av]|webm|aac|amr|awb|gsm|"
    "sln(12|16|24|32|44|48|96|192)?"
)

#: Suffixes after the stem of a recording of one party: ``MixMonitor(X.wav,r(X-caller.wav)...)``.
LEG_SUFFIXES = ("caller", "agent", "agent-2", "agent-3", "agent-4")

#: Longest stem that is looked at, in characters: file systems end at 255 bytes, URLs do not, and
#: a site's pattern may take long over long names.
MAX_STEM = 255

_EXTENSION = re.compile(r"\.([A-Za-z][A-Za-z0-9]{0,5})\Z")
_SUFFIX = re.compile(rf"-({'|'.join(sorted(LEG_SUFFIXES, key=len, reverse=True))})\Z")
_LEG = re.compile(r"mixed|(?:caller|agent)(?:-[2-9])?")
#: What PBXs write where they know no number or extension.
_NOBODY = frozenset({"unknown", "s", "<unknown>"})
_PEOPLE = ("caller", "callee", "agent", "queue")


@dataclass(frozen=True, slots=True)
class NamePattern:
    """A way in which a PBX names its recordings."""

    name: str
    """Who names files so."""
    pattern: re.Pattern[str]
    """Groups are named after fields of ``CallFacts``."""
    facts: CallFacts = field(default_factory=CallFacts)
    """What all such names say."""
    agent: str | None = None
    """The fact, ``caller`` or ``callee``, that is the agent too."""


def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.ASCII)


_FREEPBX_END = rf"\d{{8}}-\d{{6}}-(?P<uniqueid>{UNIQUEID})"


def _freepbx(
    kind: str, dest: str, direction: str | None, *, caller: str = "[^-]*", agent: str | None = None
) -> NamePattern:
    pattern = rf"{kind}-(?P<{dest}>[^-]*)-(?P<caller>{caller})-{_FREEPBX_END}"
    return NamePattern(f"FreePBX {kind}", _compiled(pattern), CallFacts(direction=direction), agent)


_VICIDIAL_DATE = r"\d{8}-\d{6}"
#: A customer's number, told from an agent's or a campaign's by its length.
_VICIDIAL_PHONE = r"(?P<caller>\+?\d{7,18})"
_VICIDIAL_AGENT = r"(?P<agent>(?!\+?\d{7})[A-Za-z0-9]{2,20})"
_VICIDIAL_CAMPAIGN = r"(?P<queue>[A-Za-z0-9]{2,20})"


def _vicidial(*parts: str) -> NamePattern:
    return NamePattern("ViciDial", _compiled("_".join(parts) + "(?:-all)?"))


#: Tried in order.
PATTERNS: tuple[NamePattern, ...] = (
    NamePattern("plain", _compiled(rf"(?P<uniqueid>{UNIQUEID})")),
    # An inbound route: dest is the number that was called.
    _freepbx("in", "callee", "in"),
    # An extension that dials out. A longer number is a caller who was forwarded.
    _freepbx("out", "callee", "out", caller=r"\d{2,6}", agent="caller"),
    _freepbx("out", "callee", "out"),
    # An extension that is called: by a colleague, or from outside (over a queue, too).
    _freepbx("internal", "callee", "internal"),
    _freepbx("external", "callee", "in", agent="callee"),
    # Before FreePBX 12, and in Issabel: either of the two.
    _freepbx("exten", "callee", None),
    # FreePBX itself counts calls of queues as external.
    _freepbx("q", "queue", "in"),
    _freepbx("queue", "queue", "in"),
    # Ring groups, the module Call Recording, one who picked up a parked call, and the rest.
    _freepbx("rg", "callee", None),
    _freepbx("group", "callee", None),
    _freepbx("generic", "callee", None),
    _freepbx("force", "callee", None),
    _freepbx("parked", "callee", None),
    # Conferences and pages: <room>-<room>-<policy>-...; whatever else ends in date and uniqueid.
    NamePattern("FreePBX, other", _compiled(rf"(?:[^-]*-){{0,8}}{_FREEPBX_END}")),
    # campaign_rec_filename of ViciDial: FULLDATE_CUSTPHONE is the default. Who called whom it does
    # not say; the customer is the party that our legs call the caller.
    _vicidial(_VICIDIAL_DATE, _VICIDIAL_PHONE),
    _vicidial(_VICIDIAL_DATE, _VICIDIAL_PHONE, _VICIDIAL_AGENT),
    _vicidial(_VICIDIAL_DATE, _VICIDIAL_AGENT, _VICIDIAL_PHONE),
    _vicidial(_VICIDIAL_DATE, _VICIDIAL_PHONE, _VICIDIAL_CAMPAIGN, _VICIDIAL_AGENT),
    _vicidial(_VICIDIAL_CAMPAIGN, _VICIDIAL_AGENT, _VICIDIAL_DATE, _VICIDIAL_PHONE),
)


@functools.lru_cache(maxsize=8)
def patterns(site: str) -> tuple[NamePattern, ...]:
    """Return the patterns of a site: its own first, if it has one, then those of well-known PBXs.

    Args:
        site: The setting ``name_pattern``, which checks the names of its groups; may be empty.
    """
    if not site:
        return PATTERNS
    return (NamePattern("the site's own", re.compile(site)), *PATTERNS)


@dataclass(frozen=True, slots=True)
class FileName:
    """A recording's file name, taken apart."""

    stem: str
    """The name without extension and leg: what the files of one recording share."""
    extension: str
    """Lower case, without the dot; empty if there is none."""
    leg: str | None
    """The leg that the name says, None for a file of the whole call."""
    facts: CallFacts
    """What the stem claims, unchecked; without the leg."""


def parse(name: str, patterns: Sequence[NamePattern] = PATTERNS) -> FileName:
    """Return what a file name, a path or the path of a URL says."""
    stem = PurePosixPath(name).name
    extension = ""
    if found := _EXTENSION.search(stem):
        stem, extension = stem[: found.start()], found[1].lower()
    leg = None
    if found := _SUFFIX.search(stem):
        stem, leg = stem[: found.start()], found[1]
    facts = CallFacts()
    for each in patterns if len(stem) <= MAX_STEM else ():
        if found := each.pattern.fullmatch(stem):
            facts = _said(each, found.groupdict()).merged(each.facts)
            if facts.leg is not None and _LEG.fullmatch(facts.leg):
                leg = facts.leg if facts.leg != "mixed" else None
                stem = stem[: found.start("leg")] + stem[found.end("leg") :]
            break
    return FileName(stem, extension, leg, replace(facts, leg=None))


def _said(pattern: NamePattern, groups: dict[str, str | None]) -> CallFacts:
    said: dict[str, Any] = {name: text for name, text in groups.items() if text}
    for name in _PEOPLE:
        if said.get(name) in _NOBODY:
            del said[name]
    if pattern.agent in said:
        said["agent"] = said[pattern.agent]
    if "started_at" in said:
        said["started_at"] = moment_of(said["started_at"])
    return CallFacts(**said)


def moment_of(text: str) -> datetime | None:
    """Return a moment in UTC; None for what is none, or a local time of who knows where."""
    try:
        if re.fullmatch(r"\d{9,10}(\.\d{1,6})?", text, re.ASCII):
            return datetime.fromtimestamp(float(text), UTC)
        moment = datetime.fromisoformat(text)
        return moment.astimezone(UTC) if moment.tzinfo else None
    except (ValueError, OverflowError):
        return None


def channel_started_at(uniqueid: str | None) -> datetime | None:
    """Return when a channel was made, to the second, by the clock of its PBX.

    Args:
        uniqueid: A uniqueid or a linkedid, which is that of the call's first channel.
    """
    if uniqueid is None or not re.fullmatch(UNIQUEID, uniqueid, re.ASCII):
        return None
    return moment_of(uniqueid.rpartition("-")[2].partition(".")[0])


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
    parent, name = str(PurePosixPath(path).parent), parse(path, ())
    dot = PurePosixPath(path).suffix if name.extension else ""
    stems = [name.stem, *(f"{name.stem}-{suffix}" for suffix in LEG_SUFFIXES)]
    paths = [f"{parent}/{stem}{dot}" for stem in stems]
    return [each for each in paths if each != path]
