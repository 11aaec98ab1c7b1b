"""Versions of Asterisk and what each is known not to do, from its change logs and sources."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from callcore.doctor.finding import Finding

#: Branches that callcore is made for.
BRANCHES = (18, 20, 21, 22, 23)
_CHECK = "pbx-version"


@dataclass(frozen=True, slots=True)
class Limit:
    """Something that a branch does only from one of its releases on."""

    without: str
    """What it means below that release."""
    since: dict[int, int | None]
    """Branch -> first minor release that is free of it; None: no release of the branch is."""


#: Worst first.
LIMITS = (
    Limit(
        "both streams of a tap crackle: ChanSpy(o) loses audio",
        {18: 25, 20: 10, 21: 5, 22: 0, 23: 0},
    ),
    Limit(
        "AudioSocket keeps a core busy while nothing is said",
        {18: 20, 20: 5, 21: 0, 22: 0, 23: 0},
    ),
    Limit(
        "streams carry no DTMF digits, and a stream that callcore ends hangs the call up",
        {18: None, 20: 14, 21: 9, 22: 4, 23: 0},
    ),
    Limit(
        "streams of 16 kHz come marked as 8 kHz: leave callcore-tap's format at slin",
        {18: None, 20: 17, 21: 12, 22: 7, 23: 1},
    ),
    Limit(
        "a phone that sends comfort noise may end its stream",
        {18: None, 20: 20, 21: None, 22: 10, 23: 4},
    ),
    Limit("no leg `stereo`", {18: None, 20: 7, 21: 2, 22: 0, 23: 0}),
)


def findings(version: str) -> Iterator[Finding]:
    """Judge a version as Asterisk tells it, e.g. ``22.10.1`` or ``certified/20.7-cert2``."""
    said = re.search(r"(?<![\d.])(\d{1,2})(?:\.(\d+))?(?![\d])", version)
    if said is None:
        detail = "Asterisk does not tell its version as a number"
        yield Finding(_CHECK, "warning", detail, f"callcore is made for {_branches()}")
        return
    branch, minor = int(said[1]), int(said[2]) if said[2] else None
    name = f"Asterisk {said[0]}"
    if branch < BRANCHES[0]:
        detail = f"{name} has no AudioSocket that callcore can use"
        yield Finding(_CHECK, "failed", detail, f"install one of Asterisk {_branches()}")
        return
    if branch > BRANCHES[-1]:
        detail = f"{name} is newer than what this callcore was made for, {_branches()}"
        yield Finding(_CHECK, "warning", detail, "look for a newer callcore if something fails")
        return
    if branch not in BRANCHES:
        detail = f"{name} is no longer maintained, and callcore was not made for it"
        yield Finding(_CHECK, "warning", detail, f"install one of Asterisk {_branches()}")
        return
    limits = list(_limits(branch, minor))
    yield Finding(_CHECK, "ok", f"{name}, {_count(limits)}")
    for limit in limits:
        since = limit.since[branch]
        better = (
            f"{branch}.{since} and later have this mended"
            if since is not None
            else f"no Asterisk {branch} has this mended; {_first_good(limit, branch)} does"
        )
        yield Finding("pbx-limit", "warning", limit.without, better)


def _limits(branch: int, minor: int | None) -> Iterator[Limit]:
    for limit in LIMITS:
        since = limit.since[branch]
        # A build from git tells its branch alone: it is taken for the newest.
        if since is None or (minor is not None and minor < since):
            yield limit


def _count(limits: list[Limit]) -> str:
    return f"{len(limits)} known limit(s), see below" if limits else "no known limits"


def _first_good(limit: Limit, branch: int) -> str:
    return next(
        f"{later}.{minor}"
        for later, minor in limit.since.items()
        if later > branch and minor is not None
    )


def _branches() -> str:
    return ", ".join(map(str, BRANCHES[:-1])) + f" and {BRANCHES[-1]}"
