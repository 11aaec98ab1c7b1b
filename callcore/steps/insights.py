"""What follows from the words and the sound: talk, feelings, safety, what comes next, quality.

Pure computing on the results of other steps, apart from the sentiment engine and one pass over the
audio. What cannot be known is null; what was looked for and not said is empty. Referrals and the
follow-up are null both where nobody promised any and where nobody knows who speaks.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import jiwer

from callcore import audio_reading, cues, feelings, phrases, safety, sound_quality, talk
from callcore.cues import Cues, Found
from callcore.results import Segment
from callcore.sound_quality import Channel
from callcore.steps import Step, StepContext
from callcore.steps.transcribe import RATE, tracks

#: Words below this probability are doubtful. On data/harpervalley with `base` 7 of the 16 words
#: below it are wrong, of the 230 others 21.
LOW_CONFIDENCE = 0.5
#: Utterances that are scored in one go.
_BATCH = 200

_ENGINE = "sentiment"
_SERVICES = ("ORGANIZATION", "LOCATION")
_TIMES = ("DATE", "TIME")

Stored = Mapping[str, Any]


def run(context: StepContext) -> dict[str, Any]:
    """Return ``document_types.Insights``."""
    transcript = context.results["transcribe"]
    segments: list[Stored] = transcript["segments"]
    language = transcript["language"]
    said = cues.load(language)
    talked = talk.measure(segments, _heard(context, transcript), language)
    if said and talked["silences"] is not None:
        announced = [each.evidence for each in said.find("hold", segments)]
        talked["holds"] = talk.holds(talked["silences"], announced)
        held = sum(each["end"] - each["start"] for each in talked["holds"])
        talked["hold_s"] = round(held, 3)
    context.progress(0.1)
    scores, about = _feelings(context, segments, language)
    sentiment = feelings.measure(
        scores,
        talked["start"],
        talked["end"],
        source=about["name"] or _ENGINE,
        version=about["version"],
    )
    context.progress(0.4)
    categories = context.results.get("classify")
    entities = context.results.get("ner")
    return {
        "engine": about["name"],
        "model": about["model"],
        "version": about["version"],
        "parameters": about["parameters"],
        "talk": talked,
        "sentiment": sentiment,
        "safety": _safety(categories, said, segments) if categories else None,
        "referrals": _referrals(said, segments, entities),
        "follow_up": _follow_up(said, segments, entities),
        "quality": _quality(context, transcript),
    }


# ---- talk and feelings


def _heard(context: StepContext, transcript: Stored) -> talk.Heard:
    recording = context.recording
    start = recording.offset_s or 0.0
    # Media that are gone by now: who was heard is who has words.
    legs = {track.leg for track in tracks(recording.media)} or {
        each["leg"] for each in transcript["segments"]
    }
    duration_s = recording.duration_s or transcript["duration_s"]
    return talk.Heard(
        parties=frozenset(legs - {talk.MIXED}),
        start=start,
        end=start + duration_s if duration_s else None,
    )


def _feelings(
    context: StepContext, segments: Sequence[Stored], language: str | None
) -> tuple[list[tuple[Stored, float]], dict[str, Any]]:
    """Return the utterances that could be scored with their scores, and what scored them."""
    about: dict[str, Any] = dict.fromkeys(("name", "model", "version", "parameters"))
    worded = [each for each in segments if each["text"].strip()]
    worded.sort(key=lambda each: each["language"] or language or "")
    scored: list[tuple[Stored, float]] = []
    for code, group in groupby(worded, key=lambda each: each["language"] or language or ""):
        same = list(group)
        for first in range(0, len(same), _BATCH):
            part = same[first : first + _BATCH]
            texts = [each["text"] for each in part]
            scores = context.engines.call(_ENGINE, "score", texts, code)
            scored += [(e, s) for e, s in zip(part, scores, strict=True) if s is not None]
    if scored:
        about = context.engines.attributes(_ENGINE, *about)
    return scored, about


# ---- what was said


def _safety(categories: Stored, said: Cues | None, segments: Sequence[Stored]) -> dict[str, Any]:
    return safety.fields(categories, lambda field: said.denials(field, segments) if said else [])


def _referrals(
    said: Cues | None, segments: Sequence[Stored], entities: Stored | None
) -> list[dict[str, Any]] | None:
    """Return what an agent refers the caller to, by segment; None where no agent is known to.

    On a mono file nobody knows which speaker is the agent.
    """
    found = said.find("referral", segments) if said else []
    return [
        {
            "text": same[0].segment["text"],
            "service": _named(entities, same[0].segment, _SERVICES),
            "evidence": [each.evidence for each in same],
        }
        for _, group in groupby(found, key=lambda each: each.segment["segment"])
        if (same := list(group))
    ] or None


def _follow_up(
    said: Cues | None, segments: Sequence[Stored], entities: Stored | None
) -> dict[str, Any] | None:
    """Return that the helpline is to call again, and by when; None where it did not say so."""
    found = said.find("follow_up", segments) if said else []
    if not said or not found:
        return None
    times = (_promised_time(said, each, entities) for each in found)
    return {
        "needed": True,
        "by": next((each for each in times if each), None),
        "evidence": [each.evidence for each in found],
    }


def _promised_time(said: Cues, cue: Found, entities: Stored | None) -> str | None:
    """Return the time that belongs to a follow-up: in its words, or right after them."""
    text = cue.segment["text"]
    times = [
        (span[0], quote)
        for label in _TIMES
        for span, quote in _mentions(entities, cue.segment, label)
        if span[0] >= cue.first and said.until_time.fullmatch(text[cue.last : span[0]])
    ]
    return min(times)[1] if times else None


def _named(entities: Stored | None, segment: Stored, labels: Sequence[str]) -> str | None:
    """Return the first entity of these kinds that a segment names, kinds in their order."""
    for label in labels:
        if mentions := _mentions(entities, segment, label):
            return min(mentions)[1]
    return None


def _mentions(
    entities: Stored | None, segment: Stored, label: str
) -> list[tuple[Sequence[int], str]]:
    """Return where a segment names entities of a kind, with their words."""
    return [
        (mention["span"], mention["quote"])
        for entity in (entities["entities"] if entities else [])
        if entity["label"] == label
        for mention in entity["mentions"]
        if mention["segment"] == segment["segment"]
    ]


# ---- quality


def _quality(context: StepContext, transcript: Stored) -> dict[str, Any]:
    words = [word for segment in transcript["segments"] for word in segment["words"]]
    doubtful = [word for word in words if word["p"] < LOW_CONFIDENCE]
    channels = _channels(context)
    sure = sum(word["p"] for word in words) / len(words) if words else None
    return {
        "asr_confidence": None if sure is None else round(sure, 3),
        "low_confidence_s": (
            round(sum(max(0.0, word["e"] - word["s"]) for word in doubtful), 3) if words else None
        ),
        "channels": channels,
        "channels_ok": None if channels is None else not any(each["problem"] for each in channels),
        "drift_live_vs_final": _drift(context, transcript),
        "completeness": _completeness(context),
    }


def _channels(context: StepContext) -> list[dict[str, Any]] | None:
    """Return what the sound of each party is like; None where the files are gone."""
    found: list[dict[str, Any]] = []
    for path, group in groupby(tracks(context.recording.media), key=lambda each: each.media.path):
        same_file = list(group)
        channels = [Channel(each.leg, each.media.role, each.channel) for each in same_file]
        # At the file's own rate: resampling rounds off what is clipped.
        rate = same_file[0].media.rate or RATE
        try:
            found += sound_quality.of_file(audio_reading.decode(path, rate), channels)
        except FileNotFoundError:
            return None
    return found or None


def _drift(context: StepContext, transcript: Stored) -> dict[str, float] | None:
    """Return by leg how far the live words are from the recording's: word error rate."""
    live = context.live_segments()
    start = context.recording.offset_s or 0.0
    duration_s = context.recording.duration_s or transcript["duration_s"]
    end = start + duration_s if duration_s else math.inf
    drift = {}
    for leg in sorted({each.leg for each in live}):
        words = _words_of(each for each in transcript["segments"] if each["leg"] == leg)
        heard = _words_of(_as_stored(each for each in live if each.leg == leg), start, end)
        if words and heard:
            drift[leg] = round(float(jiwer.wer(" ".join(words), " ".join(heard))), 3)
    return drift or None


def _as_stored(segments: Iterable[Segment]) -> Iterator[Stored]:
    return (each.as_json() for each in segments)


def _words_of(
    segments: Iterable[Stored], start: float | None = None, end: float | None = None
) -> list[str]:
    """Return the words as they were said, lower case without punctuation.

    Args:
        segments: In any order.
        start: Words before it are left out: a recording may begin after the call.
        end: Words after it too.
    """
    words = sorted((word["s"], word["e"], word["w"]) for each in segments for word in each["words"])
    inside = (
        text for s, e, text in words if (start is None or e > start) and (end is None or s < end)
    )
    plain = (re.sub(r"[^\w']", "", phrases.plain(text).lower()) for text in inside)
    return [word for word in plain if word]


def _completeness(context: StepContext) -> float | None:
    """Return the share of the call that the recording holds."""
    call, recording = context.call, context.recording
    if call.facts.started_at is None or not call.duration_s:
        return None
    if recording.offset_s is None or recording.duration_s is None:
        return None
    until = min(recording.offset_s + recording.duration_s, call.duration_s)
    return round(max(0.0, until - max(recording.offset_s, 0.0)) / call.duration_s, 3)


STEP = Step(
    name="insights",
    needs=("transcribe",),
    result="insights",
    run=run,
    after=("translate", "summarize", "ner", "classify"),
)
