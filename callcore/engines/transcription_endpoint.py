"""Transcription of live calls and of recordings by an endpoint that somebody else runs.

How it is asked is in ``transcription_client``, what its answer holds in ``transcription_answer``.
What it says is believed as little as what our own Whisper says: the same guards look at it.
"""

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

from faster_whisper.vad import VadOptions, get_speech_timestamps

from callcore.audio import to_int16
from callcore.engines import LIVE_RATE, DecodeJob, Floats, Hypothesis, TranscribedSegment
from callcore.engines.transcription_answer import Answer, Said, believed
from callcore.engines.transcription_client import Piece, TranscriptionClient, wav_of
from callcore.errors import EngineDown
from callcore.results import Word

#: Hz of recordings.
_RATE = 16_000

#: Seconds that a live piece may take with all tries, and more per second of its audio: together
#: less than the 15 s after which a silent inference process is replaced (``recognizer_config``).
_LIVE_S, _LIVE_PER_S = 4.0, 0.5
#: The same for a piece of a recording: a server without a GPU may be slower than the speaker.
_RECORDING_S, _RECORDING_PER_S = 60.0, 4.0

#: Seconds before each new try.
_LIVE_PAUSES_S = (0.3,)
_RECORDING_PAUSES_S = (0.5, 2.0, 5.0)

#: Seconds that the next piece of a recording waits for an endpoint that answered those before.
_PATIENCE_S = 120.0

#: Probability of a language that the endpoint found: it says which, not how sure it is.
_FOUND_LANGUAGE_PROB = 0.8

#: Speech of a recording that is sent: as of the local engine, in pieces of one Whisper window.
_VAD = VadOptions(
    threshold=0.5, max_speech_duration_s=28.0, min_silence_duration_ms=2000, speech_pad_ms=700
)


class LiveEndpoint:
    """Utterances of live calls, transcribed by an endpoint; several at once."""

    def __init__(
        self, url: str, model: str, key: str = "", *, connections: int = 8, **given: Any
    ) -> None:
        """Prepare; nothing is asked yet.

        Args:
            url: As for ``TranscriptionClient``, the next two and ``given`` also.
            model: Name of the model there.
            key: Bearer token, if one is needed.
            connections: Requests side by side.
            **given: More for ``TranscriptionClient``.
        """
        self.client = TranscriptionClient(url, model, key, **given)
        self._clock = given.get("clock", time.monotonic)
        self._pool = ThreadPoolExecutor(connections, thread_name_prefix="transcription")

    def decode(self, jobs: list[DecodeJob]) -> list[Hypothesis]:
        """Return what was said in each job."""
        now = self._clock()
        heard = [self._pool.submit(self._heard, job, now) for job in jobs]
        errors = [error for each in heard if (error := each.exception()) is not None]
        if errors:
            # Whether it is down for all matters more than what else went wrong.
            raise next((each for each in errors if isinstance(each, EngineDown)), errors[0])
        return [each.result() for each in heard]

    def close(self) -> None:
        """End its threads and close its connections."""
        self._pool.shutdown(cancel_futures=True)
        self.client.close()

    def _heard(self, job: DecodeJob, since: float) -> Hypothesis:
        duration_s = len(job.samples) / LIVE_RATE
        piece = Piece(
            wav_of(job.samples, LIVE_RATE),
            duration_s,
            job.language,
            times=job.words,
        )
        limit_at = since + _LIVE_S + _LIVE_PER_S * duration_s
        # A partial that comes late has been replaced by then: it is not worth another try.
        answer = self.client.ask(piece, limit_at, _LIVE_PAUSES_S if job.words else ())
        return _hypothesis(answer, job, duration_s)


def _hypothesis(answer: Answer, job: DecodeJob, duration_s: float) -> Hypothesis:
    language = answer.language
    kept = []
    for said in answer.segments:
        alone = len(answer.segments) == 1
        speech_s = job.speech_s if alone else min(job.speech_s, said.end - said.start)
        one = believed(said, speech_s=speech_s, end_s=duration_s, language=language)
        if one is not None:
            kept.append(one)
    heard = Answer(language, tuple(kept))
    return Hypothesis(
        heard.text,
        words=heard.words if job.words else (),
        language=language,
        avg_logprob=answer.avg_logprob,
        no_speech_prob=answer.no_speech_prob,
        language_prob=1.0 if job.language and language == job.language else _FOUND_LANGUAGE_PROB,
    )


@dataclass(frozen=True, slots=True)
class _Span:
    """A stretch of speech of a recording."""

    start: float
    """Seconds from the first sample."""
    samples: Floats

    @property
    def duration_s(self) -> float:
        return len(self.samples) / _RATE


class RecordingEndpoint:
    """Recordings of any length, transcribed by an endpoint.

    Only speech is sent, in pieces of at most 28 s: whoever is silent cannot be given words, and a
    server that tells no times still tells which piece. One that answers nobody for a while
    (a limit of requests per minute) is waited for, so that the pieces before are not paid twice.
    """

    name = TranscriptionClient.name
    version = "1"

    def __init__(
        self, url: str, model: str, key: str = "", *, connections: int = 8, **given: Any
    ) -> None:
        """Prepare; nothing is asked yet.

        Args:
            url: As for ``TranscriptionClient``, the next two and ``given`` also.
            model: Name of the model there.
            key: Bearer token, if one is needed.
            connections: Pieces of all recordings that are sent side by side.
            **given: More for ``TranscriptionClient``.
        """
        self.client = TranscriptionClient(url, model, key, **given)
        self.model = model
        self.parameters: dict[str, Any] = {"temperature": 0, "vad_parameters": _vad_parameters()}
        self._clock = given.get("clock", time.monotonic)
        self._sleep = given.get("sleep", time.sleep)
        self._connections = connections
        self._pool = ThreadPoolExecutor(connections, thread_name_prefix="transcription")

    def transcribe(
        self, samples: Floats, language: str | None, hotwords: str | None = None
    ) -> Iterator[TranscribedSegment]:
        """Yield segments with their words, those left out that were not spoken.

        Args:
            samples: Shape (n,), float32 in [-1, 1], 16 kHz, mono.
            language: Language code; None finds out from the first speech.
            hotwords: Names and words that are likely, separated by commas.
        """
        return self._segments(samples, language, "transcriptions", hotwords)

    def translate(self, samples: Floats, language: str | None) -> Iterator[TranscribedSegment]:
        """Yield what was said in English; arguments as for ``transcribe``."""
        return self._segments(samples, language, "translations", None)

    def close(self) -> None:
        """End its threads and close its connections."""
        self._pool.shutdown(cancel_futures=True)
        self.client.close()

    def _segments(
        self, samples: Floats, language: str | None, task: str, prompt: str | None
    ) -> Iterator[TranscribedSegment]:
        given = language is not None
        answered = False
        spans = iter(_speech(samples))
        if not given:
            # One language for the whole recording, as the local engine does it.
            for span in spans:
                answer = self._asked(span, None, task, prompt)
                answered = True
                yield from _believed(answer, span, answer.language, given=False)
                if answer.segments:
                    language = answer.language
                    break
        sent: deque[tuple[_Span, Future[Answer]]] = deque()
        try:
            while True:
                for span in islice(spans, self._connections - len(sent)):
                    asked = self._pool.submit(self._asked, span, language, task, prompt)
                    sent.append((span, asked))
                if not sent:
                    return
                span, asked = sent.popleft()
                answer = self._waited_for(asked, (span, language, task, prompt), patient=answered)
                answered = True
                yield from _believed(answer, span, language or answer.language, given=given)
        finally:
            for _, asked in sent:
                asked.cancel()

    def _waited_for(
        self,
        asked: Future[Answer],
        request: tuple[_Span, str | None, str, str | None],
        *,
        patient: bool,
    ) -> Answer:
        """Return the answer, asked for again while the endpoint has itself left alone."""
        left_s = _PATIENCE_S if patient else 0.0
        # What failed while a piece before it was waited for is asked again without waiting.
        old = asked.done()
        while True:
            try:
                return asked.result()
            except EngineDown as down:
                wait_s = 0.0 if old else max(down.retry_after_s, 1.0)
                if wait_s > left_s or not patient:
                    raise
                left_s -= wait_s
                self._sleep(wait_s)
                old = False
                asked = self._pool.submit(self._asked, *request)

    def _asked(self, span: _Span, language: str | None, task: str, prompt: str | None) -> Answer:
        piece = Piece(
            wav_of(to_int16(span.samples), _RATE), span.duration_s, language, prompt, task=task
        )
        limit_at = self._clock() + _RECORDING_S + _RECORDING_PER_S * span.duration_s
        return self.client.ask(piece, limit_at, _RECORDING_PAUSES_S)


def _vad_parameters() -> dict[str, float]:
    return {
        "threshold": _VAD.threshold,
        "min_silence_duration_ms": _VAD.min_silence_duration_ms,
        "speech_pad_ms": _VAD.speech_pad_ms,
        "max_speech_duration_s": _VAD.max_speech_duration_s,
    }


def _speech(samples: Floats) -> list[_Span]:
    found = get_speech_timestamps(samples, _VAD)
    return [_Span(each["start"] / _RATE, samples[each["start"] : each["end"]]) for each in found]


def _believed(
    answer: Answer, span: _Span, language: str | None, *, given: bool
) -> Iterator[TranscribedSegment]:
    for said in answer.segments:
        kept = believed(
            said, speech_s=said.end - said.start, end_s=span.duration_s, language=language
        )
        if kept is not None:
            yield _later(kept, span.start, language, given=given)


def _later(said: Said, by_s: float, language: str | None, *, given: bool) -> TranscribedSegment:
    return TranscribedSegment(
        start=by_s + said.start,
        end=by_s + said.end,
        text=said.text,
        words=tuple(Word(word.w, by_s + word.s, by_s + word.e, word.p) for word in said.words),
        language=language,
        avg_logprob=said.avg_logprob,
        no_speech_prob=said.no_speech_prob,
        language_prob=1.0 if given else _FOUND_LANGUAGE_PROB,
    )
