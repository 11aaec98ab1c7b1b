"""A call with every result that the chain makes, stored as workers store them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from callcore import insights_document, intake
from callcore.calls import SETTLE, CallFacts, Media, StepState
from callcore.ledger import Ledger
from callcore.marked_text import Line, Mark, render
from callcore.steps import table
from callcore.storage import recording_rows
from tests.support.pages import Pages, sample_turns, stored_media
from tests.support.results import (
    MADE,
    categories,
    category,
    entities,
    entity,
    flag,
    quoted,
    segment,
    transcript,
    translation,
)

Json = dict[str, Any]


def store(
    pages: Pages,
    call_id: str,
    media: Media,
    results: Mapping[str, Json],
    *,
    failed: Mapping[str, str] | None = None,
    running: Mapping[str, float] | None = None,
    **facts: Any,
) -> str:
    """Store a recording and the results of some steps; return the audio_id.

    Args:
        pages: The site.
        call_id: The recording's call.
        media: Its file.
        results: What steps made.
        failed: Steps that failed, with their reasons.
        running: Steps that run, with their progress.
        **facts: What is known of the call.
    """
    named = CallFacts(call_id=call_id, **facts)
    accepted = intake.accept_recording(pages.storage, pages.settings, named, "spool", [media])
    audio_id = accepted.audio_id
    with pages.storage.database.transaction():
        recording_rows.store(pages.storage.database, audio_id, [stored_media(media)], 0.0)
    proceed(pages, audio_id, {SETTLE: None, **results}, running or {}, failed or {})
    return audio_id


def proceed(
    pages: Pages,
    audio_id: str,
    results: Mapping[str, Json | None],
    running: Mapping[str, float],
    failed: Mapping[str, str] | None = None,
) -> None:
    """Do what workers do next: finish steps, fail some, be in the middle of others."""
    steps = table(pages.settings.steps)
    needs = {SETTLE: (), **{name: (SETTLE, *step.needs) for name, step in steps.items()}}
    ledger = Ledger(pages.storage, after={name: step.after for name, step in steps.items()})
    before = {step.name: step.status for step in pages.storage.steps(audio_id)}
    for name in (SETTLE, *pages.settings.steps):
        if name not in {*results, *running, *(failed or {})} or before[name].is_over:
            continue
        if before[name] == StepState.RUNNING:  # its worker has died: another takes it
            ledger.rerun(audio_id, [name], needs)
        claim = ledger.claim(audio_id, name)
        assert claim, name
        if failed and name in failed:
            ledger.fail(claim, failed[name], needs, final=True)
        elif name in running:
            ledger.renew(claim, running[name])
        else:
            made = results[name]
            if made is not None:
                insights_document.check_result(name, made)
            ledger.finish(claim, made, needs)


def sample_segments(name: str = "helpline-distress") -> list[Json]:
    """Return the words of a sample as a transcript's segments, numbered from 100."""
    return [
        segment(100 + n, each["leg"], each["start"], each["end"], each["text"])
        for n, each in enumerate(sample_turns(name))
    ]


def full(
    segments: Sequence[Json] | None = None, *, label: str = "Door broken in anger"
) -> dict[str, Json]:
    """Return the results of all steps for ``helpline-distress``.

    Args:
        segments: The transcript; by default what the sample says.
        label: What the flag is called.
    """
    said = list(segments or sample_segments())
    frightened = quoted(said[3], "he broke the kitchen door")
    pushed = quoted(said[7], "he pushed me")
    police = quoted(said[8], "please call the police at once")
    return {
        "transcribe": transcript(said, 78.1),
        "translate": _translation(said),
        "summarize": _summary(said),
        "ner": _entities(said),
        "classify": _categories(label, frightened, pushed, police),
        "insights": _insights(said, pushed),
        "annotate": _annotation(said, label),
    }


def _translation(said: Sequence[Json]) -> Json:
    german = ("Guten Abend, hier ist das Familientelefon. Mein Name ist David.", "Hallo.")
    return {
        **translation(
            *(
                {
                    "segment": each["segment"],
                    "leg": each["leg"],
                    "start": each["start"],
                    "end": each["end"],
                    "text": text,
                }
                for each, text in zip(said, german, strict=False)
            )
        ),
        "language": "en",
        "target": "de",
        "path": ["en", "de"],
    }


def _claim(text: str, *evidence: Json) -> Json:
    return {"text": text, "supported": bool(evidence), "evidence": list(evidence)}


def _summary(said: Sequence[Json]) -> Json:
    police = "please call the police at once"
    return {
        **MADE,
        "model": "llama3.2",
        "method": "model",
        "headline": "A woman is afraid that her husband comes back",
        "text": "Her husband broke the kitchen door. He pushed her.",
        "sentences": [
            _claim(
                "Her husband broke the kitchen door.",
                quoted(said[3], "he broke the kitchen door"),
                quoted(said[3], "He was shouting"),
            ),
            _claim("He pushed her and her arm hurts.", quoted(said[7], "My arm hurts")),
            _claim("Her brother is with her."),
        ],
        "reason": _claim("She is frightened.", quoted(said[3], "I am so frightened")),
        "outcome": _claim("A driver is on the way.", quoted(said[10], "We can send a driver")),
        "actions": [
            {
                **_claim("Call the police.", quoted(said[8], police)),
                "owner": "caller",
                "due": "tonight",
            }
        ],
        "open_questions": [_claim("Is the daughter hurt?", quoted(said[6], "daughter injured?"))],
        "language": "en",
    }


def _entities(said: Sequence[Json]) -> Json:
    david = {**entity(said[0], "David", "NAME", 1), "role": "agent"}
    river = entity(said[9], "the river", "LOCATION", 2)
    tonight = entity(said[3], "tonight", "TIME", 3)
    again = entity(said[8], "tonight", "TIME", 3)
    tonight["mentions"] += again["mentions"]
    people = [
        {
            "role": "child",
            "entity": None,
            "name": None,
            "age": 9,
            "sex": "female",
            "relation": "daughter",
            "evidence": [quoted(said[5], "my daughter")],
        }
    ]
    return {**entities(david, river, tonight), "people": people}


def _categories(label: str, door: Json, pushed: Json, police: Json) -> Json:
    first = {
        **category("violence.physical", "rule", pushed, door, police),
        "label": "Physical violence",
        "severity": "critical",
        "score": 0.92,
    }
    second = {
        **category("family.conflict", "embedding", door),
        "label": "Conflict at home",
        "score": 0.41,
        "rank": 2,
    }
    warning = {
        **flag("police.asked", police),
        "flag_id": "0d9ef5e0-a8f5-5b4e-9f27-3c3b0b9a6f01",
        "severity": "warning",
        "label": "Police mentioned",
    }
    return {
        **categories(
            first, second, flags=[warning, {**flag("violence.now", pushed, door), "label": label}]
        ),
        "priority": {
            "level": "critical",
            "score": 0.9,
            "why": [{"text": "Somebody was hurt today", "evidence": [pushed]}],
        },
    }


def _insights(said: Sequence[Json], pushed: Json) -> Json:
    unknown: Json = {"value": "unknown", "evidence": []}

    def party(talk_s: float, share: float) -> Json:
        return {
            "talk_s": talk_s,
            "share": share,
            "words": 120,
            "wpm": 171.4,
            "longest_monologue_s": 9.97,
        }

    def feels(score: float, quarters: list[float | None], trend: str) -> Json:
        return {"score": score, "quarters": quarters, "trend": trend, "evidence": []}

    return {
        **MADE,
        "talk": {
            "start": 0.0,
            "end": 78.1,
            "parties": {"caller": party(29.5, 0.43), "agent": party(38.8, 0.57)},
            "silence_s": 9.8,
            "silences": [{"start": 60.93, "end": 62.53}],
            "overlap_s": 0.4,
            "interruptions": [
                {"by": "agent", "of": "caller", "at": 26.8, "seconds": 0.6, "segment": 104}
            ],
            "hold_s": 0.0,
            "holds": [],
            "first_response_s": 1.0,
        },
        "sentiment": {
            "segments": [],
            "parties": {
                "caller": feels(-1.9, [-2.0, -3.4, None, 1.2], "rising"),
                "agent": feels(0.4, [0.3, 0.2, 0.6, 0.7], "steady"),
            },
        },
        "safety": {
            "immediate_danger": unknown,
            "self_harm": {"value": "no", "evidence": [quoted(said[7], "My daughter is safe")]},
            "violence": {
                "physical": {"value": "yes", "evidence": [pushed]},
                "sexual": unknown,
                "emotional": unknown,
            },
            "neglect": unknown,
            "exploitation": unknown,
            "trafficking": unknown,
        },
        "referrals": None,
        "follow_up": {
            "needed": True,
            "by": "tonight",
            "evidence": [quoted(said[10], "stay on the line")],
        },
        "quality": {
            "asr_confidence": 0.94,
            "low_confidence_s": 1.5,
            "channels": [
                {"leg": "caller", "role": "stereo", "clipping": 0.02, "peak": 1.0, "problem": None},
                {"leg": "agent", "role": "stereo", "clipping": 0.0, "peak": 0.5, "problem": None},
            ],
            "channels_ok": False,
            "drift_live_vs_final": {"caller": 0.08},
            "completeness": 1.0,
        },
    }


def _annotation(said: Sequence[Json], label: str) -> Json:
    marks = {
        100: [_mark(said[0], "David", "NAME", "entity", "NAME: David (agent)")],
        103: [
            _mark(said[3], "he broke the kitchen door", "violence.now", "flag", label),
            _mark(said[3], "he broke the kitchen door", "family.conflict", "category", "Conflict"),
            _mark(said[3], "kitchen", "low confidence", "low_confidence", "heard with 31%"),
            _mark(said[3], "tonight", "TIME", "entity", "TIME: tonight"),
        ],
        107: [
            _mark(said[7], "he pushed me", "violence.physical", "category", "Physical violence"),
            _mark(said[7], "he pushed me", "violence.now", "flag", label),
        ],
    }
    lines = [
        Line(each["segment"], each["leg"], each["start"], "en", each["text"], tuple(found))
        for each in said
        for found in [marks.get(each["segment"], [])]
    ]
    translated = _translation(said)["segments"]
    other = [Line(t["segment"], t["leg"], t["start"], "de", t["text"], ()) for t in translated]
    return {
        "engine": None,
        "model": None,
        "version": None,
        "parameters": {},
        "original": render(lines),
        "translation": render(other),
    }


def _mark(of: Json, words: str, label: str, kind: str, title: str) -> Mark:
    first = of["text"].index(words)
    return Mark(first, first + len(words), label, kind, title)


def sample(name: str = "helpline-distress") -> Media:
    """Return a stereo recording."""
    return Media("stereo", str(Path(__file__).parents[2] / "samples" / f"{name}.wav"))
