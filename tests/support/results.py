"""Results of steps in their stored form, and a context for steps that read them."""

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from callcore import calls, evidence
from callcore.calls import Call, CallFacts, CallState, Media, Recording, RecordingState
from callcore.results import Segment
from callcore.settings import Settings, load
from callcore.steps import StepContext
from tests.support.engines import LocalEngines

#: What every result says of its making.
MADE: dict[str, Any] = {
    "engine": "scripted",
    "model": "none",
    "version": "1",
    "parameters": {"beam_size": 5},
}


def segment(
    number: int,
    leg: str,
    start: float,
    end: float,
    text: str = "one two three",
    *,
    language: str | None = "en",
    speaker: str | None = None,
    p: float | Sequence[float] = 0.9,
) -> dict[str, Any]:
    """Return a segment of a recording's transcript, whose words share its time evenly."""
    parts = text.split()
    step = (end - start) / max(1, len(parts))
    sure = [p] * len(parts) if isinstance(p, float) else p
    return {
        "segment": number,
        "leg": leg,
        "start": start,
        "end": end,
        "text": text,
        "language": language,
        "words": [
            {
                "w": word,
                "s": round(start + i * step, 3),
                "e": round(start + (i + 1) * step, 3),
                "p": chance,
            }
            for i, (word, chance) in enumerate(zip(parts, sure, strict=True))
        ],
        "source": "recording",
        "latency": None,
        "revised": False,
        "speaker": speaker,
    }


def transcript(
    segments: Sequence[dict[str, Any]], duration_s: float = 60.0, language: str | None = "en"
) -> dict[str, Any]:
    """Return the result of ``transcribe``."""
    return {**MADE, "segments": list(segments), "language": language, "duration_s": duration_s}


def quoted(of: dict[str, Any], words: str, source: str = "rule:test") -> dict[str, Any]:
    """Return the evidence that some words of a segment are."""
    first = of["text"].index(words)
    return evidence.quote(of, first, first + len(words), source=source, version="1", score=None)


def entity(of: dict[str, Any], words: str, label: str, number: int = 0) -> dict[str, Any]:
    """Return an entity that a segment names once."""
    first = of["text"].index(words)
    span = [first, first + len(words)]
    return {
        "id": number,
        "label": label,
        "text": words,
        "normal": None,
        "role": None,
        "score": None,
        "mentions": [{**quoted(of, words, "spacy"), "span": span}],
    }


def entities(*found: dict[str, Any]) -> dict[str, Any]:
    """Return the result of ``ner``."""
    return {**MADE, "entities": list(found), "people": []}


def category(name: str, source: str, *words: dict[str, Any]) -> dict[str, Any]:
    """Return a category that classify found."""
    return {
        "taxonomy": "child-helpline",
        "id": name,
        "label": name.title(),
        "path": [name.partition(".")[0], name],
        "score": 0.8,
        "rank": 1,
        "source": source,
        "severity": None,
        "evidence": list(words),
    }


def flag(rule: str, *words: dict[str, Any]) -> dict[str, Any]:
    """Return a flag that a rule raised."""
    return {
        "flag_id": "0d9ef5e0-a8f5-5b4e-9f27-3c3b0b9a6f00",
        "rule": rule,
        "rule_version": "1",
        "severity": "critical",
        "label": f"<b>{rule}</b>",
        "leg": words[0]["leg"],
        "at_s": words[0]["start"],
        "evidence": list(words),
        "state": "open",
    }


def categories(*found: dict[str, Any], flags: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """Return the result of ``classify``."""
    return {
        **MADE,
        "taxonomies": [{"id": "child-helpline", "version": 1}],
        "call_type": {"id": "self", "score": 0.7, "source": "embedding", "evidence": []},
        "categories": list(found),
        "priority": {"level": "low", "score": 0.1, "why": []},
        "flags": list(flags),
        "text": {"from": "transcribe", "language": "en", "method": None},
    }


def translation(*segments: dict[str, Any], method: str | None = "argos") -> dict[str, Any]:
    """Return the result of ``translate``."""
    return {
        **MADE,
        "language": "es",
        "target": "en",
        "method": method,
        "path": ["es", "en"],
        "segments": list(segments),
    }


def summary() -> dict[str, Any]:
    """Return the result of ``summarize`` for a call without words."""
    return {
        **MADE,
        "method": "extractive",
        "headline": None,
        "text": "",
        "sentences": [],
        "reason": None,
        "outcome": None,
        "actions": [],
        "open_questions": [],
        "language": None,
    }


def recording_of(
    *media: Media, duration_s: float | None = 60.0, offset_s: float | None = None
) -> Recording:
    """Return a stored recording."""
    return Recording(
        audio_id="a",
        call_id="c",
        state=RecordingState.STORED,
        source="upload",
        reason=None,
        facts=CallFacts(),
        created_at=calls.now(),
        media=media,
        offset_s=offset_s,
        duration_s=duration_s,
        sources=("upload",),
    )


def call_of(facts: CallFacts = CallFacts(), seconds: float | None = None) -> Call:  # noqa: B008
    """Return a call that has ended."""
    started_at = facts.started_at or calls.now()
    ended_at = None if seconds is None else started_at + timedelta(seconds=seconds)
    return Call("c", "c-20260304T101112Z", CallState.ENDED, started_at, ended_at, None, facts)


def context(
    results: dict[str, dict[str, Any]],
    *,
    recording: Recording | None = None,
    call: Call | None = None,
    engines: dict[str, Any] | None = None,
    live: Sequence[Segment] = (),
    settings: Settings | None = None,
) -> StepContext:
    """Return what a step gets."""
    return StepContext(
        recording=recording or recording_of(),
        call=call or call_of(),
        language=None,
        settings=settings or load({"CALLCORE_STATE_DIR": str(Path("/nowhere"))}),
        results=results,
        engines=LocalEngines(engines or {}),
        take_segment_block=lambda: 100_000,
        live_segments=lambda: live,
        corrections=lambda: (),
        progress=lambda share: None,
    )
