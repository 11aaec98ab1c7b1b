"""The transcript in the language that the site reads, utterance by utterance.

Text is translated by installed pairs, directly or through English, so that every translated
segment keeps the number and the times of the one it translates. Where a language has no
installed pair and the target is English, Whisper translates it from the audio: its segments have
times of their own and no number. What was said in the target language already stands in the
translation as it is, so that the translation reads as the whole call.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from callcore.calls import Recording
from callcore.errors import InvalidRecording
from callcore.steps import Step, StepContext
from callcore.steps.transcribe import RATE, pieces, tracks

#: Segments that are translated in one go: enough for a batch, few enough for progress.
_BATCH = 32
#: Language that Whisper translates into, and that pairs meet in.
_ENGLISH = "en"

_TRANSLATOR = "translator"
_WHISPER = "transcriber"
_ABOUT = ("name", "model", "version", "parameters")


def run(context: StepContext) -> dict[str, Any]:
    """Return a translation in its stored form.

    Raises:
        InvalidRecording: If there is no way from a language of the call to the target, or nobody
            knows its language: another try would not find one. The message says what to do.
    """
    transcript = context.results["transcribe"]
    target = context.settings.translate_to
    language = transcript["language"]
    foreign = _foreign(transcript, target)
    if not foreign:
        if _is_unknown(transcript):
            raise InvalidRecording(
                "the language of the call is not known: set CALLCORE_LANGUAGE, or `auto` there to "
                "have it found out, then run the steps again"
            )
        path = [language] if language else []
        return _result(language, target, None, path, [], dict.fromkeys(_ABOUT))
    spoken = _by_time(foreign)
    pairs = set(map(tuple, context.engines.call(_TRANSLATOR, "pairs")))
    routes = {source: _route(pairs, source, target) for source in spoken}
    main = spoken[0]
    if all(routes.values()):
        texts = dict(_translated(context, foreign, target))
        about = context.engines.attributes(_TRANSLATOR, *_ABOUT)
        segments = [_segment(each, texts.get(each["segment"])) for each in transcript["segments"]]
        return _result(language, target, "argos", routes[main] or [], segments, about)
    if target == _ENGLISH:
        return _partly_heard(context, transcript, foreign, routes)
    raise InvalidRecording(_remedy(pairs, [each for each in spoken if not routes[each]], target))


def _partly_heard(
    context: StepContext,
    transcript: dict[str, Any],
    foreign: Sequence[dict[str, Any]],
    routes: dict[str, list[str] | None],
) -> dict[str, Any]:
    """Return a translation into English: by text where a pair is installed, else from the audio."""
    main = next(iter(routes))
    by_text = [each for each in foreign if routes[each["language"]]]
    by_audio = [each for each in foreign if not routes[each["language"]]]
    texts = dict(_translated(context, by_text, _ENGLISH))
    numbers = {each["segment"] for each in by_audio}
    kept = [each for each in transcript["segments"] if each["segment"] not in numbers]
    heard = list(_heard(context, by_audio, kept))
    segments = sorted(
        [*heard, *(_segment(each, texts.get(each["segment"])) for each in kept)],
        key=lambda each: (each["start"], each["end"]),
    )
    whisper = context.engines.attributes(_WHISPER, *_ABOUT)
    whisper["parameters"] = {**whisper["parameters"], "task": "translate"}
    about, also = whisper, None
    if by_text:
        argos = context.engines.attributes(_TRANSLATOR, *_ABOUT)
        about, also = (argos, whisper) if routes[main] else (whisper, argos)
        others = by_audio if routes[main] else by_text
        also = {"languages": _by_time(others), "engine": also["name"], "model": also["model"]}
        about["parameters"] = {**about["parameters"], "also": also}
    method = "argos" if routes[main] else "whisper"
    path = routes[main] or [main, _ENGLISH]
    return _result(transcript["language"], _ENGLISH, method, path, segments, about)


def _is_unknown(transcript: dict[str, Any]) -> bool:
    """Return whether something was said in a language that nobody knows."""
    return transcript["language"] is None and any(
        each["language"] is None and each["text"].strip() for each in transcript["segments"]
    )


def _foreign(transcript: dict[str, Any], target: str) -> list[dict[str, Any]]:
    """Return the segments that are known to be in another language."""
    main = transcript["language"]
    named = [{**each, "language": each["language"] or main} for each in transcript["segments"]]
    return [
        each for each in named if each["language"] not in (None, target) and each["text"].strip()
    ]


def _by_time(segments: Sequence[dict[str, Any]]) -> list[str]:
    """Return the languages of segments, the one that is spoken longest first."""
    spoken: dict[str, float] = {}
    for each in segments:
        language = each["language"]
        spoken[language] = spoken.get(language, 0.0) + each["end"] - each["start"]
    return sorted(spoken, key=lambda language: -spoken[language])


def _route(pairs: set[tuple[str, ...]], source: str, target: str) -> list[str] | None:
    """Return the languages that a translation goes through, None where there is no way."""
    if (source, target) in pairs:
        return [source, target]
    if {(source, _ENGLISH), (_ENGLISH, target)} <= pairs:
        return [source, _ENGLISH, target]
    return None


def _translated(
    context: StepContext, foreign: Sequence[dict[str, Any]], target: str
) -> Iterator[tuple[int, str]]:
    """Yield number and translated text of each segment."""
    done = 0
    for source in _by_time(foreign):
        of_one = [each for each in foreign if each["language"] == source]
        for first in range(0, len(of_one), _BATCH):
            batch = of_one[first : first + _BATCH]
            texts = [each["text"] for each in batch]
            answers = context.engines.call(_TRANSLATOR, "translate", texts, source, target)
            for each, text in zip(batch, answers, strict=True):
                yield each["segment"], text
            done += len(batch)
            context.progress(done / len(foreign))


def _segment(segment: dict[str, Any], text: str | None) -> dict[str, Any]:
    """Return a segment of the translation; without a text it is in the target language."""
    kept = {name: segment[name] for name in ("segment", "leg", "start", "end")}
    return {**kept, "text": segment["text"] if text is None else text}


def _heard(
    context: StepContext, foreign: Sequence[dict[str, Any]], kept: Sequence[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Yield what Whisper makes of the legs that speak another language, in call time.

    Where the same leg speaks the target language, what was said already stands in ``kept``.
    """
    recording: Recording = context.recording
    zero_s = recording.offset_s or 0.0
    legs = {each["leg"] for each in foreign}
    heard = [track for track in tracks(recording.media) if track.leg in legs]
    total_s = sum(track.media.duration_s or 0.0 for track in heard) or 1.0
    done_s = 0.0
    for track in heard:
        of_leg = [each for each in foreign if each["leg"] == track.leg]
        also = [each for each in kept if each["leg"] == track.leg]
        language = _by_time(of_leg)[0]
        for start_s, samples in pieces(track):
            at_s = zero_s + track.media.offset_s + start_s
            for said in context.engines.stream(_WHISPER, "translate", samples, language):
                start, end = at_s + said.start, at_s + said.end
                theirs = _overlap(of_leg, start, end)
                # Where nobody speaks, it made the words up.
                if theirs > 0.0 and theirs >= _overlap(also, start, end):
                    yield {
                        "segment": None,
                        "leg": track.leg,
                        "start": round(start, 3),
                        "end": round(end, 3),
                        "text": said.text,
                    }
                context.progress((done_s + start_s + said.end) / total_s)
            context.progress((done_s + start_s + len(samples) / RATE) / total_s)
        done_s += track.media.duration_s or 0.0


def _overlap(segments: Sequence[dict[str, Any]], start: float, end: float) -> float:
    """Return for how many seconds of a span somebody speaks in these segments."""
    shared = (min(end, each["end"]) - max(start, each["start"]) for each in segments)
    return float(sum(max(0.0, seconds) for seconds in shared))


def _remedy(pairs: set[tuple[str, ...]], sources: Sequence[str], target: str) -> str:
    """Return which packages are missing and how they are had."""
    wanted = [
        pair
        for source in sources
        for pair in ((source, _ENGLISH), (_ENGLISH, target))
        if pair[0] != pair[1] and pair not in pairs
    ]
    names = " ".join(dict.fromkeys(f"translate-{first}_{second}" for first, second in wanted))
    return (
        f"no installed package translates {', '.join(sources)} to {target}: run `callcore models "
        f"pull {names}`, then run the step again"
    )


def _result(
    language: str | None,
    target: str,
    method: str | None,
    path: list[str],
    segments: list[dict[str, Any]],
    about: dict[str, Any],
) -> dict[str, Any]:
    return {
        "language": language,
        "target": target,
        "method": method,
        "path": path,
        "segments": segments,
        "engine": about["name"],
        "model": about["model"],
        "version": about["version"],
        "parameters": about["parameters"],
    }


STEP = Step(name="translate", needs=("transcribe",), result="translation", run=run)
