"""What was said in a recording, by whom, when: words with times.

Files of single legs or the two channels of a stereo file tell the speakers; a mono file of both
parties is one leg ``mixed``. Long recordings are read in pieces, so that memory stays bounded.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from callcore import audio
from callcore.calls import Media
from callcore.engines import TranscribedSegment
from callcore.results import Segment, Transcript, Word
from callcore.steps import Step, StepContext
from callcore.utterances import regroup, text_of

#: Hz that the engine takes.
RATE = 16_000
#: Seconds of one leg that are transcribed in one go: 38 MB of samples.
PIECE_S = 600.0
#: A piece ends at the quietest place among its last seconds, so that no word is cut.
SEARCH_S = 20.0
#: Seconds that are measured to find that place.
_QUIET_S = 0.3

_ENGINE = "transcriber"

Samples = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Track:
    """One party's audio in a file."""

    leg: str
    media: Media
    channel: int | None
    """Index of the channel; None: all channels mixed."""


def tracks(media: tuple[Media, ...]) -> list[Track]:
    """Return who is to be heard where: files of legs, else channels, else all in one.

    Where a file of the whole call is there, those of legs count only if both sides have one: who
    has none would be heard nowhere.
    """
    whole = [each for each in media if _party(each) in ("mixed", "stereo")]
    legs = [each for each in media if each not in whole]
    sides = {_party(each).partition("-")[0] for each in legs}
    if legs and (len(sides) > 1 or not whole):
        return [Track(_party(each), each, None) for each in legs]
    stereo = next((each for each in whole if each.role == "stereo"), None)
    if stereo is not None:
        return [Track("caller", stereo, 0), Track("agent", stereo, 1)]
    return [Track("mixed", each, None) for each in whole]


def _party(media: Media) -> str:
    """Return whose file it is: ``caller.2`` is a second stream of the caller."""
    return media.role.partition(".")[0]


def run(context: StepContext) -> dict[str, Any]:
    """Return a ``Transcript`` in its stored form, times in call time."""
    zero_s = context.recording.offset_s or 0.0
    parties = tracks(context.recording.media)
    total_s = sum(track.media.duration_s or 0.0 for track in parties) or 1.0
    heard: list[Segment] = []
    done_s = 0.0
    for track in parties:
        at_s = zero_s + track.media.offset_s
        for start_s, samples in pieces(track):
            before_s = done_s + start_s
            said: list[TranscribedSegment] = []
            for each in context.engines.stream(_ENGINE, "transcribe", samples, context.language):
                said.append(each)
                context.progress((before_s + each.end) / total_s)
            heard += _utterances(said, track.leg, at_s + start_s)
            context.progress((before_s + len(samples) / RATE) / total_s)
        done_s += track.media.duration_s or 0.0
    return _transcript(context, heard).as_json()


def _utterances(said: list[TranscribedSegment], leg: str, at_s: float) -> list[Segment]:
    """Return what was said in utterances, in call time."""
    language = said[0].language if said else None
    words = [Word(w.w, at_s + w.s, at_s + w.e, w.p) for each in said for w in each.words]
    return [
        Segment(
            segment=0,  # numbered once all legs are there, in order of time
            leg=leg,
            start=part[0].s,
            end=part[-1].e,
            text=text_of(part, language),
            language=language,
            words=part,
            source="recording",
        )
        for part in regroup(words)
    ]


def _transcript(context: StepContext, heard: list[Segment]) -> Transcript:
    base = context.take_segment_block()
    ordered = sorted(heard, key=lambda each: (each.start, each.end, each.leg))
    segments = tuple(replace(each, segment=base + number) for number, each in enumerate(ordered))
    about = context.engines.attributes(_ENGINE, "name", "model", "version", "parameters")
    return Transcript(
        segments=segments,
        language=context.language or _main_language(segments),
        duration_s=context.recording.duration_s or 0.0,
        engine=about["name"],
        model=about["model"],
        version=about["version"],
        parameters=about["parameters"],
    )


def _main_language(segments: tuple[Segment, ...]) -> str | None:
    """Return the language that was spoken longest."""
    spoken: dict[str, float] = {}
    for each in segments:
        if each.language:
            spoken[each.language] = spoken.get(each.language, 0.0) + each.end - each.start
    return max(spoken, key=lambda language: spoken[language]) if spoken else None


def pieces(track: Track) -> Iterator[tuple[float, Samples]]:
    """Yield a track in pieces: start in seconds, and samples of shape (n,), float32, 16 kHz."""
    held: Samples = np.empty(0, np.float32)
    start = 0
    for block in audio.decode(track.media.path, RATE):
        part = block.mean(axis=1) if track.channel is None else block[:, track.channel]
        held = np.concatenate([held, part.astype(np.float32, copy=False)])
        while len(held) >= PIECE_S * RATE:
            cut = _quietest(held[: round(PIECE_S * RATE)])
            yield start / RATE, held[:cut]
            start += cut
            held = held[cut:]
    if len(held):
        yield start / RATE, held


def _quietest(samples: Samples) -> int:
    """Return the index in the middle of the quietest stretch near the end."""
    window = round(_QUIET_S * RATE)
    first = max(0, len(samples) - round(SEARCH_S * RATE))
    tail = samples[first:]
    num_windows = len(tail) // window
    energy = np.square(tail[: num_windows * window].reshape(num_windows, window)).sum(axis=1)
    return first + int(energy.argmin()) * window + window // 2


STEP = Step(name="transcribe", needs=(), result="transcript", run=run)
