"""Words for people: what the pages call states, steps, parties, labels and lengths."""

import math
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

STATES = {"live": "Live", "ended": "Ended", "missed": "Missed"}
#: How a call went; beside "Missed", so that they need not say it.
DISPOSITIONS = {
    "answered": "Answered",
    "no-answer": "No answer",
    "busy": "Busy",
    "abandoned": "Caller hung up",
    "failed": "Could not be reached",
}
#: What is left to do about a recording that cannot be found, by the door it came through.
LOST = {
    "spool": "See whether the file is still in the PBX's folder and callcore may read it, then "
    "look again.",
    "agi": "See whether the PBX wrote the file where it said and callcore may read it, then look "
    "again.",
    "upload": "Upload it again.",
    "webhook": "See whether the PBX still offers it, then look again, or report it again.",
    "capture": "See whether the folder of live audio is there and callcore may read it, then look "
    "again.",
}
STEPS = {
    "settle": "Read the recording",
    "transcribe": "Transcribe",
    "translate": "Translate",
    "summarize": "Summarise",
    "ner": "Find names and numbers",
    "classify": "Sort into categories",
    "insights": "Measure",
    "annotate": "Mark the transcript",
}
#: What a step does while it runs.
DOING = {
    "settle": "Reading the recording",
    "transcribe": "Transcribing",
    "translate": "Translating",
    "summarize": "Summarising",
    "ner": "Finding names and numbers",
    "classify": "Sorting into categories",
    "insights": "Measuring",
    "annotate": "Marking the transcript",
}
STEP_STATUS = {"pending": "waiting", "": ""}
DOCUMENTS = {
    "queued": "Queued",
    "processing": "Processing",
    "completed": "Completed",
    "partial": "Partly done",
    "failed": "Failed",
}
DOORS = {
    "spool": "the PBX's folder",
    "upload": "an upload",
    "capture": "the live audio",
    "webhook": "the PBX's message",
    "agi": "the dialplan",
    "process": "the command line",
}
DIRECTIONS = {"in": "Incoming", "out": "Outgoing", "internal": "Internal"}
ENTITIES = {
    "NAME": "Names",
    "LOCATION": "Places",
    "ORGANIZATION": "Organisations",
    "AGE": "Ages",
    "PHONE": "Phone numbers",
    "DATE": "Dates",
    "TIME": "Times",
    "MONEY": "Money",
    "ACCOUNT": "Account numbers",
}
PEOPLE = {
    "caller": "Caller",
    "child": "Child",
    "alleged": "Accused",
    "agent": "Agent",
    "other": "Other",
}
#: How a category was found.
SOURCES = {
    "rule": "a rule matched",
    "embedding": "like its description",
    "example": "like an example",
    "human": "a person said so",
}
SAFETY = {
    "immediate_danger": "Immediate danger",
    "self_harm": "Self-harm",
    "violence.physical": "Physical violence",
    "violence.sexual": "Sexual violence",
    "violence.emotional": "Emotional violence",
    "neglect": "Neglect",
    "exploitation": "Exploitation",
    "trafficking": "Trafficking",
}
TRENDS = {"rising": "▲ rising", "steady": "▬ steady", "falling": "▼ falling"}
#: Below this a feeling of -5 to 5 is neither good nor bad.
_FLAT = 0.5


def clock(seconds: float | None) -> str:
    """Return seconds as ``m:ss`` or ``h:mm:ss``; nothing for None."""
    if seconds is None:
        return ""
    minutes, rest = divmod(max(0, int(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def seconds(value: float) -> str:
    """Return a length as people say it: ``0.7 s``, ``12 s``, ``2:05 min``."""
    if value < 10:
        return f"{value:.1f} s"
    return f"{value:.0f} s" if value < 60 else f"{clock(value)} min"


def waited(value: float | None) -> str:
    """Return how long somebody waited, as far as people care: nothing below a second."""
    if value is None or value < 1:
        return ""
    return (
        f"{value:.0f}\N{NO-BREAK SPACE}s" if value < 60 else f"{clock(value)}\N{NO-BREAK SPACE}min"
    )


def speaker(party: str) -> str:
    """Return a party's name: ``Caller``, ``Agent 2``, ``Speaker A``, ``Everyone`` where mixed."""
    if len(party) == 1:
        return f"Speaker {party}"
    role, _, number = party.partition("-")
    name = "Everyone" if role == "mixed" else role.capitalize()
    return f"{name} {number}" if number else name


def percent(share: float) -> str:
    """Return a share as ``45 %``; what is there is never ``0 %``, what lacks never ``100 %``."""
    whole = round(100 * share)
    if (whole == 0 and share > 0) or (whole == 100 and share < 1):
        return f"{math.floor(1000 * share) / 10 if whole else math.ceil(1000 * share) / 10} %"
    return f"{whole} %"


def tone(score: float) -> str:
    """Return whether a feeling is ``good``, ``flat`` or ``bad``."""
    if abs(score) < _FLAT:
        return "flat"
    return "good" if score > 0 else "bad"


def feeling(score: float) -> str:
    """Return a feeling as shape and number, never as a colour alone."""
    shape = {"good": "▲", "flat": "▬", "bad": "▼"}[tone(score)]
    return f"{shape} {score:+.1f}".replace("-", "\N{MINUS SIGN}")


def sentence(text: str) -> str:
    """Return a reason as a sentence: a capital before it, a full stop behind it."""
    if not text:
        return ""
    return text[0].upper() + text[1:] + ("" if text.endswith((".", "?", "!")) else ".")


def _utc(iso: str) -> str:
    moment = datetime.fromisoformat(iso).astimezone(UTC)
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def _step_doing(step: dict[str, Any], duration_s: float | None) -> str:
    """Return what a running step does and how far it is, in seconds of audio where it listens."""
    name, share = step["name"], step["progress"]
    doing = DOING.get(name, name[:1].upper() + name[1:])
    if name == "transcribe" and duration_s and duration_s >= 1:
        return f"{doing}: {share * duration_s:.0f} of {duration_s:.0f} s"
    return f"{doing}: {share:.0%}" if share else f"{doing}…"


def _of(names: dict[str, str]) -> Callable[[str | None], str]:
    return lambda key: names.get(key or "", key or "")


#: Filters of the templates.
FILTERS: dict[str, Callable[..., str]] = {
    "clock": clock,
    "seconds": seconds,
    "waited": waited,
    "speaker": speaker,
    "percent": percent,
    "tone": tone,
    "feeling": feeling,
    "sentence": sentence,
    "utc": _utc,
    "state_name": _of(STATES),
    "step_name": lambda name: STEPS.get(name, name[:1].upper() + name[1:]),
    "step_status": _of(STEP_STATUS),
    "step_doing": _step_doing,
    "document_name": _of(DOCUMENTS),
    "disposition": _of(DISPOSITIONS),
    "door": _of(DOORS),
    "direction": lambda direction: DIRECTIONS.get(direction or "", ""),
    "person_role": _of(PEOPLE),
    "found_by": _of(SOURCES),
    "trend": _of(TRENDS),
}
