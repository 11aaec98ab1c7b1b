"""What was said in a recording, by whom, when: words with times.

Files of single legs or the two channels of a stereo file tell the speakers; a mono file of both
parties is one leg ``mixed``, whose speakers are told apart by their voices. Long recordings are
read in pieces, so that memory stays bounded.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt

from callcore import audio_reading, speaker_turns
from callcore.calls import Media
from callcore.engines import TranscribedSegment
from callcore.errors import InvalidRecording
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
_ENCODER = "speaker_encoder"
#: Windows that are sent to the encoder at once: 8 MB.
_WINDOWS_AT_ONCE = 128

#: A leg is sure of its language from this probability and so many seconds of words on; an unsure
#: one takes the language of a sure one.
_SURE_PROB, _SURE_S = 0.7, 2.0

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


@dataclass(slots=True)
class _Heard:
    """What one track holds; times in seconds from its first sample."""

    track: Track
    language: str | None = None
    language_prob: float = 0.0
    spoken_s: float = 0.0
    said: list[TranscribedSegment] = field(default_factory=list)
    spans: list[tuple[float, float]] = field(default_factory=list)
    vectors: list[Samples] = field(default_factory=list)
    """Of the voices in ``spans``."""

    @property
    def sure(self) -> bool:
        """Whether its language is not to be doubted."""
        return self.language_prob >= _SURE_PROB and self.spoken_s >= _SURE_S


def run(context: StepContext) -> dict[str, Any]:
    """Return a ``Transcript`` in its stored form, times in call time."""
    parties = tracks(context.recording.media)
    if not parties:
        raise InvalidRecording(context.recording.reason or "its audio is not here")
    # Voices are told apart in one stream: two streams of ``mixed`` would each have an A.
    by_voice = context.settings.speaker_turns == "on" and [p.leg for p in parties] == ["mixed"]
    total_s = sum(track.media.duration_s or 0.0 for track in parties) or 1.0
    heard: list[_Heard] = []
    done_s = 0.0
    for track in parties:
        before_s = done_s

        def progress(at_s: float, before_s: float = before_s) -> None:
            context.progress(min((before_s + at_s) / total_s, 1.0))

        heard.append(_hear(context, track, context.language, by_voice, progress))
        done_s += track.media.duration_s or 0.0
    surest = max((each for each in heard if each.sure), key=lambda h: h.spoken_s, default=None)
    if surest is not None:
        for number, each in enumerate(heard):
            if each.said and not each.sure and each.language != surest.language:
                heard[number] = _hear(context, each.track, surest.language, by_voice, _silent)
    zero_s = context.recording.offset_s or 0.0
    segments = [segment for each in heard for segment in _utterances(each, zero_s)]
    return _transcript(context, segments, by_voice).as_json()


def _silent(_at_s: float) -> None:
    """Report nothing: the share that is done never falls."""


def _hear(
    context: StepContext,
    track: Track,
    language: str | None,
    by_voice: bool,
    progress: Callable[[float], None],
) -> _Heard:
    """Return what one track holds.

    Args:
        context: Of the step.
        track: Whom to hear.
        language: Language code; None: found out from the track's own speech.
        by_voice: Whether to listen to the voices.
        progress: Takes the seconds of the track that are done.
    """
    heard = _Heard(track, language, 1.0 if language else 0.0, _SURE_S if language else 0.0)
    hotwords = context.settings.hotwords or None
    for start_s, samples in pieces(track):
        # The language of a long recording is found once, where there was enough to hear.
        known = heard.language if heard.sure else None
        said: list[TranscribedSegment] = []
        for each in context.engines.stream(_ENGINE, "transcribe", samples, known, hotwords):
            said.append(each)
            progress(start_s + each.end)
        if known is None and said:
            heard.language, heard.language_prob = said[0].language, said[0].language_prob
        heard.spoken_s += sum(w.e - w.s for each in said for w in each.words)
        if by_voice:
            _listen(context, heard, said, samples, start_s)
        heard.said += [_later(each, start_s) for each in said]
        progress(start_s + len(samples) / RATE)
    return heard


def _listen(
    context: StepContext,
    heard: _Heard,
    said: list[TranscribedSegment],
    samples: Samples,
    start_s: float,
) -> None:
    """Add the voices of a piece while its samples are there."""
    spans = speaker_turns.windows([word for each in said for word in each.words])
    cuts = [samples[round(start * RATE) : round(end * RATE)] for start, end in spans]
    kept = [number for number, cut in enumerate(cuts) if len(cut)]
    for at in range(0, len(kept), _WINDOWS_AT_ONCE):
        some = kept[at : at + _WINDOWS_AT_ONCE]
        heard.vectors.append(
            context.engines.call(_ENCODER, "embed", [cuts[number] for number in some])
        )
        heard.spans += [(start_s + spans[n][0], start_s + spans[n][1]) for n in some]


def _later(said: TranscribedSegment, by_s: float) -> TranscribedSegment:
    words = tuple(Word(word.w, by_s + word.s, by_s + word.e, word.p) for word in said.words)
    return replace(said, start=by_s + said.start, end=by_s + said.end, words=words)


def _utterances(heard: _Heard, zero_s: float) -> Iterator[Segment]:
    """Yield what was said in utterances, in call time."""
    words = [(word, each.language) for each in heard.said for word in each.words]
    labels: list[str] | None = None
    if heard.vectors:
        vectors = np.concatenate(heard.vectors)
        labels = speaker_turns.speakers([word for word, _ in words], heard.spans, vectors)
    by_s = zero_s + heard.track.media.offset_s
    who: list[str] | list[None] = labels or [None] * len(words)
    runs = groupby(zip(words, who, strict=True), key=lambda each: (each[1], each[0][1]))
    for (speaker, language), run_of_one in runs:
        for part in regroup(word for (word, _), _ in run_of_one):
            moved = tuple(Word(word.w, by_s + word.s, by_s + word.e, word.p) for word in part)
            yield Segment(
                segment=0,  # numbered once all legs are there, in order of time
                leg=heard.track.leg,
                start=moved[0].s,
                end=moved[-1].e,
                text=text_of(moved, language),
                language=language,
                words=moved,
                source="recording",
                speaker=speaker,
            )


def _transcript(context: StepContext, heard: list[Segment], by_voice: bool) -> Transcript:
    base = context.take_segment_block()
    ordered = sorted(heard, key=lambda each: (each.start, each.end, each.leg))
    segments = tuple(replace(each, segment=base + number) for number, each in enumerate(ordered))
    about = context.engines.attributes(_ENGINE, "name", "model", "version", "parameters")
    parameters: dict[str, Any] = {**about["parameters"]}
    if context.settings.hotwords:
        parameters["hotwords"] = context.settings.hotwords
    if by_voice and segments:
        encoder = context.engines.attributes(_ENCODER, "name", "model", "version")
        parameters["speaker_turns"] = encoder
    return Transcript(
        segments=segments,
        language=context.language or _main_language(segments),
        duration_s=context.recording.duration_s or 0.0,
        engine=about["name"],
        model=about["model"],
        version=about["version"],
        parameters=parameters,
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
    for block in audio_reading.decode(track.media.path, RATE):
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
