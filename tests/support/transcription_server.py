"""A real HTTP server that speaks OpenAI's audio API, in the dialects of those in use.

What is said comes from a real Whisper, now or beforehand (``Heard``), or from a text that the test
gives; and it can misbehave.
"""

import io
import threading
import wave
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import uvicorn
from faster_whisper import WhisperModel
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from callcore.audio import StreamingResampler, to_float

KEY = "a-secret"


@dataclass
class Asked:
    """One request."""

    path: str
    authorization: str | None
    fields: dict[str, Any]
    granularities: list[str]
    rate: int
    samples: np.ndarray

    @property
    def format(self) -> str:
        return str(self.fields.get("response_format", "json"))

    @property
    def wide(self) -> np.ndarray:
        """Its audio as Whisper wants it: float32, 16 kHz."""
        resampler = StreamingResampler(self.rate, 16_000)
        return to_float(np.concatenate([resampler.push(self.samples), resampler.flush()]))


class Heard:
    """What a Whisper hears in audio that the test plays: found again in any piece of it.

    A Whisper that decodes during the test shares the cores with everything that is tested, and is
    late on a busy machine: then it is the endpoint that costs words.
    """

    def __init__(self, whisper: WhisperModel, channels: np.ndarray) -> None:
        """Listen.

        Args:
            whisper: Hears English.
            channels: Shape (num_channels, n), float32, 16 kHz: who speaks in one is alone in it.
        """
        self._channels = channels
        self._words = [list(_words(whisper, channel)) for channel in channels]

    def words(self, audio: np.ndarray) -> list[dict[str, Any]]:
        """Return the words of a piece, float32 of 16 kHz, with times from its beginning."""
        if np.abs(audio).max(initial=0) < 0.01:
            return []
        fits = [_fit(channel, audio) for channel in self._channels]
        channel = int(np.argmax([fit.max() for fit in fits]))
        start = (int(fits[channel].argmax()) - len(audio) + 1) / 16_000
        end = start + len(audio) / 16_000
        return [
            {**word, "start": max(0.0, word["start"] - start), "end": word["end"] - start}
            for word in self._words[channel]
            if start <= (word["start"] + word["end"]) / 2 < end
        ]


def _words(whisper: WhisperModel, audio: np.ndarray) -> Iterator[dict[str, Any]]:
    found, _ = whisper.transcribe(audio, language="en", word_timestamps=True, vad_filter=True)
    for segment in found:
        yield from (vars(word) for word in segment.words or ())


def _fit(whole: np.ndarray, piece: np.ndarray) -> np.ndarray:
    """Return how well the piece fits, by where it ends."""
    size = 1 << (len(whole) + len(piece)).bit_length()
    found = np.fft.irfft(np.fft.rfft(whole, size) * np.fft.rfft(piece[::-1], size), size)
    return found[: len(whole) + len(piece) - 1]


@dataclass
class Endpoint:
    """What the server answers, and what it was asked."""

    url: str = ""
    whisper: WhisperModel | None = None
    heard: Heard | None = None
    """Says what it heard, instead of a Whisper."""
    said: str = "Hello there."
    """What is heard without either, spread over the audio."""
    dialect: str = "speaches"
    """``speaches``, ``openai``, ``vllm`` or ``json``: which knows ``response_format=json`` only."""
    faults: list[Callable[[], Response] | Response] = field(default_factory=list)
    """Answers of the next requests, before it works again."""
    always: Callable[[], Response] | Response | None = None
    """The answer of all requests after those."""
    languages: tuple[str, ...] = ("en", "de", "fr")
    hold: threading.Event = field(default_factory=threading.Event)
    asked: list[Asked] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    busy: int = 0
    most_busy: int = 0
    """Most requests that were in work at once."""
    known: dict[bytes, list[dict[str, Any]]] = field(default_factory=dict)
    """What the Whisper said, by audio."""

    def formats(self) -> list[str]:
        return [each.format for each in self.asked]

    def later(self, answer: Response) -> Callable[[], Response]:
        """Return a fault that answers once ``hold`` is set."""

        def wait() -> Response:
            self.hold.wait(30)
            return answer

        return wait

    # The rest is the server's own.

    def answer(self, asked: Asked) -> Response:
        with self.lock:
            self.asked.append(asked)
            fault = self.faults.pop(0) if self.faults else self.always
            self.busy += 1
            self.most_busy = max(self.most_busy, self.busy)
        try:
            if fault is not None:
                return fault if isinstance(fault, Response) else fault()
            return self._heard(asked)
        finally:
            with self.lock:
                self.busy -= 1

    def _heard(self, asked: Asked) -> Response:
        if self.dialect == "json" and asked.format != "json":
            return JSONResponse({"error": {"message": "verbose_json is not known"}}, 400)
        language = asked.fields.get("language")
        if language and language not in self.languages:
            return JSONResponse({"error": {"message": "no such language"}}, 400)
        segments = self._transcribed(asked)
        text = "".join(each["text"] for each in segments).strip()
        if asked.format == "json":
            return JSONResponse({"text": text, "usage": {"type": "duration", "seconds": 1}})
        return JSONResponse(self._in_dialect(asked, text, language or "en", segments))

    def _in_dialect(
        self, asked: Asked, text: str, language: str, segments: list[dict[str, Any]]
    ) -> dict[str, Any]:
        duration = len(asked.samples) / asked.rate
        words = [word for each in segments for word in each.pop("words")]
        wanted = "word" in asked.granularities
        if self.dialect == "vllm":
            for each in segments:
                each |= {"no_speech_prob": None, "compression_ratio": None}
            return {
                "duration": str(duration),
                "language": language,
                "text": text,
                "segments": segments,
                "words": None,
            }
        if self.dialect == "openai":
            bare = [
                {"word": word["word"].strip(" .,?!"), "start": word["start"], "end": word["end"]}
                for word in words
            ]
            found = {"task": "transcribe", "language": "english", "duration": duration}
            return {**found, "text": text, "segments": segments, "words": bare if wanted else None}
        return {
            "task": "transcribe",
            "language": language,
            "duration": duration,
            "text": text,
            "segments": segments,
            "words": words if wanted else None,
        }

    def _transcribed(self, asked: Asked) -> list[dict[str, Any]]:
        seconds = len(asked.samples) / asked.rate
        if self.heard is not None:
            return _segments(self.heard.words(asked.wide), seconds)
        if self.whisper is None:
            texts = self.said.split() if np.abs(asked.samples).max(initial=0) > 500 else []
            step = seconds / max(len(texts), 1)
            words = [
                {
                    "word": f" {text}",
                    "start": i * step,
                    "end": (i + 1) * step,
                    "probability": 0.9,
                }
                for i, text in enumerate(texts)
            ]
            return _segments(words, seconds)
        with self.lock:
            return self._by_whisper(asked.wide)

    def _by_whisper(self, audio: np.ndarray) -> list[dict[str, Any]]:
        key = audio.tobytes()
        if key not in self.known:
            assert self.whisper is not None
            found, _ = self.whisper.transcribe(audio, language="en", word_timestamps=True)
            self.known[key] = [
                {
                    "id": each.id,
                    "start": each.start,
                    "end": each.end,
                    "text": each.text,
                    "avg_logprob": each.avg_logprob,
                    "no_speech_prob": each.no_speech_prob,
                    "compression_ratio": each.compression_ratio,
                    "words": [vars(word) for word in each.words or ()],
                }
                for each in found
            ]
        return [dict(each) for each in self.known[key]]


def _segments(words: list[dict[str, Any]], seconds: float) -> list[dict[str, Any]]:
    """Return one segment for a whole piece, none without words."""
    return [
        {
            "id": 0,
            "start": 0.0,
            "end": seconds,
            "text": " " + "".join(word["word"] for word in words).strip(),
            "avg_logprob": -0.2,
            "no_speech_prob": 0.01,
            "compression_ratio": 1.1,
            "words": words,
        }
    ] * bool(words)


def breaks_off() -> Response:
    """Return an answer that promises more than it sends."""
    return Response(b"{", headers={"Content-Length": "100"})


def garbage(body: bytes = b"<html>It works!</html>") -> Response:
    return Response(body)


def status(code: int, **headers: str) -> Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return JSONResponse({"error": "no"}, code, headers=named)


def _app(site: Endpoint) -> Starlette:
    async def transcribe(request: Request) -> Response:
        async with request.form() as form:
            upload = form["file"]
            assert not isinstance(upload, str)
            with wave.open(io.BytesIO(await upload.read())) as file:
                assert (file.getnchannels(), file.getsampwidth()) == (1, 2)
                rate = file.getframerate()
                samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
            asked = Asked(
                path=request.url.path,
                authorization=request.headers.get("authorization"),
                fields={name: value for name, value in form.items() if isinstance(value, str)},
                granularities=[str(each) for each in form.getlist("timestamp_granularities[]")],
                rate=rate,
                samples=samples,
            )
        return await run_in_threadpool(site.answer, asked)

    paths = ("/v1/audio/transcriptions", "/v1/audio/translations")
    return Starlette(routes=[Route(path, transcribe, methods=["POST"]) for path in paths])


@contextmanager
def transcription_server(port: int = 0) -> Iterator[Endpoint]:
    """Run an endpoint on loopback, on a port of its own unless one is given."""
    site = Endpoint()
    config = uvicorn.Config(
        _app(site), host="127.0.0.1", port=port, log_config=None, ws="none", lifespan="off"
    )
    server = uvicorn.Server(config)
    sock = config.bind_socket()
    site.url = f"http://127.0.0.1:{sock.getsockname()[1]}/v1"
    thread = threading.Thread(target=server.run, args=([sock],))
    thread.start()
    try:
        yield site
    finally:
        site.hold.set()
        server.should_exit = True
        thread.join()
        sock.close()
