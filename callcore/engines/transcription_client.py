"""A client of servers that speak OpenAI's audio API: speaches, vLLM, whisper servers and others.

The wire form is ``POST <url>/audio/transcriptions``: multipart with a WAV, ``model``, ``language``,
``response_format`` and ``timestamp_granularities[]``. Words with times are asked for; where a
server does not know that, segments with times, else text alone. Requests go straight to the
endpoint: no proxy, no redirect.

An endpoint that fails for everybody is left alone for a while (``circuit_breaker``); whoever asks
meanwhile gets ``EngineDown``, and keeps the work. Whether it is back is found out with silence and
not with somebody's words: a piece of audio that breaks the server could otherwise keep it closed
for all others.
"""

import io
import json
import random
import socket
import threading
import time
import wave
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn

import httpx
import numpy as np

from callcore.engines import LIVE_RATE, Samples
from callcore.engines.circuit_breaker import CircuitBreaker, Turn
from callcore.engines.transcription_answer import Answer, read
from callcore.errors import EngineDown, EngineError

#: Seconds to wait for a connection.
_CONNECT_S = 3.0
#: Seconds that the silence of a probe may take: a server may be as slow as for a live piece.
_PROBE_S = 10.0

#: Seconds of rest where our own pieces are more than it can do.
_BUSY_S = 1.0
#: Most seconds that an endpoint may have itself left alone with Retry-After.
_LONGEST_REST_S = 300.0
#: Seconds after which an idle connection is not used again: servers close theirs after five.
_KEEPALIVE_S = 2.0
#: Bytes of an answer: a piece of a recording has some thousand words at most.
_LARGEST = 4_000_000

#: Ways to ask for an answer, the richest first; the second is enough where no times are wanted.
_WORDS, _SEGMENTS = 0, 1
_FORMATS: tuple[dict[str, Any], ...] = (
    {"response_format": "verbose_json", "timestamp_granularities[]": ["word", "segment"]},
    {"response_format": "verbose_json"},
    {"response_format": "json"},
)
#: Answers with which a server says that it does not know a way, a language, this audio, or the
#: model: silence finds out which.
_NOT_SO = (400, 413, 415, 422, 501)
#: Answers that everybody would get: settings or the server itself must be mended.
_FOR_ALL = (401, 403, 404, 405, 410, 429, 502, 503)
_HINTS = {
    401: "CALLCORE_TRANSCRIPTION_KEY is not right",
    403: "CALLCORE_TRANSCRIPTION_KEY does not allow that",
    404: "CALLCORE_TRANSCRIPTION_URL should end in /v1, or there is no such model",
    405: "CALLCORE_TRANSCRIPTION_URL should end in /v1",
}


class _Failure(Exception):
    """One try that failed."""

    def __init__(
        self, message: str, *, sure: bool = False, again: bool = True, wait_s: float = 0.0
    ) -> None:
        super().__init__(message)
        self.sure = sure
        """Whether everybody would get it."""
        self.again = again
        """Whether another try may help."""
        self.wait_s = wait_s
        """Seconds that the endpoint asks for."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Audio to be transcribed."""

    wav: bytes
    duration_s: float
    language: str | None = None
    prompt: str | None = None
    times: bool = True
    """Whether words shall have times."""
    task: str = "transcriptions"
    """Or ``translations``."""


def wav_of(samples: Samples, rate: int) -> bytes:
    """Return samples, int16 and mono, as a WAV file."""
    file = io.BytesIO()
    with wave.open(file, "wb") as wav:
        wav.setnchannels(1)
        wav.setsampwidth(2)
        wav.setframerate(rate)
        wav.writeframes(np.ascontiguousarray(samples, "<i2").tobytes())
    return file.getvalue()


class TranscriptionClient:
    """One endpoint and one model there, for all threads of an engine."""

    name = "transcription-endpoint"

    def __init__(
        self,
        url: str,
        model: str,
        key: str = "",
        *,
        sleep: Callable[[float], object] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare; nothing is asked yet.

        Args:
            url: Of the API, e.g. ``http://127.0.0.1:8000/v1``.
            model: Name of the model there.
            key: Bearer token, if one is needed.
            sleep: Waits between tries; tests pass their own.
            clock: Seconds, monotonic.
        """
        self.model = model
        self.breaker = CircuitBreaker(clock)
        self._url = url.rstrip("/")
        self._host = httpx.URL(url).netloc.decode("ascii").rpartition("@")[2]
        self._sleep = sleep
        self._clock = clock
        self._late = False
        """Whether the last piece came too late: the next such is no fault of its own."""
        self._why = ""
        """Why it failed last."""
        self._format = _WORDS
        """Index of the richest way to ask that the endpoint knows, as far as is known."""
        self._answered_in = _WORDS
        """The way in which the last piece was answered."""
        headers = {"Accept-Encoding": "identity", "User-Agent": "callcore"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        self._client = httpx.Client(
            headers=headers,
            limits=httpx.Limits(max_connections=None, keepalive_expiry=_KEEPALIVE_S),
            follow_redirects=False,
            trust_env=False,
        )

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    def ask(self, piece: Piece, limit_at: float, pauses_s: Sequence[float] = ()) -> Answer:
        """Return what the endpoint says about a piece.

        Args:
            piece: What to transcribe.
            limit_at: Clock time at which it is too late.
            pauses_s: Seconds before each new try, times 0.5 to 1.5: many callers do not come back
                at once.

        Raises:
            EngineDown: If the endpoint answers nobody at present.
            EngineError: If it did not do this piece. No message tells of the call.
        """
        self._take_turn()
        pauses = iter(pauses_s)
        while True:
            if self._clock() >= limit_at:
                # It waited for others of ours: neither its fault nor a failure of the endpoint.
                message = f"{self._host} has more pieces than it can do in time"
                raise EngineDown(self.name, message, _BUSY_S)
            try:
                answer = self._asked(piece, limit_at)
            except _Failure as failure:
                pause = next(pauses, None)
                wait_s = max((pause or 0.0) * random.uniform(0.5, 1.5), failure.wait_s)
                if pause is None or not failure.again or self._clock() + wait_s >= limit_at:
                    self._fail(failure)
                self._sleep(wait_s)
            else:
                self._late = False
                self.breaker.answered()
                return answer

    def probe(self, limit_s: float = _PROBE_S) -> None:
        """Ask for the words of a second of silence.

        Raises:
            EngineDown: If the endpoint does not answer.
        """
        silence = Piece(wav_of(np.zeros(LIVE_RATE, np.int16), LIVE_RATE), 1.0)
        try:
            self._asked(silence, self._clock() + limit_s)
        except _Failure as failure:
            self._why = str(failure)
            rest_s = self.breaker.failed(sure=failure.sure, rest_s=failure.wait_s, probe=True)
            raise EngineDown(self.name, self._why, rest_s) from failure
        except BaseException:
            self.breaker.failed(sure=False, probe=True)  # else nobody would ever probe again
            raise
        self.breaker.answered()

    def _take_turn(self) -> None:
        turn, wait_s = self.breaker.turn()
        if turn is Turn.WAIT:
            # With the reason: who is told to wait may be the only one whom people ask.
            raise EngineDown(self.name, f"failed before: {self._why}", wait_s)
        if turn is Turn.PROBE:
            self.probe()

    def _fail(self, failure: _Failure) -> NoReturn:
        self._why = message = str(failure)
        rest_s = self.breaker.failed(sure=failure.sure, rest_s=failure.wait_s)
        if rest_s:
            raise EngineDown(self.name, message, rest_s) from failure
        raise EngineError(self.name, message) from failure

    def _asked(self, piece: Piece, limit_at: float) -> Answer:
        """Ask once, in the richest way that the endpoint knows."""
        in_words = piece.times and piece.task == "transcriptions"
        first = self._format if in_words else max(self._format, _SEGMENTS)
        status = 0
        # A registration may name a language that the endpoint's model does not know.
        for language in dict.fromkeys((piece.language, None)):
            for number in range(first, len(_FORMATS)):
                form = {"model": self.model, "temperature": "0", **_FORMATS[number]}
                if language:
                    form["language"] = language
                if piece.prompt:
                    form["prompt"] = piece.prompt
                status, body = self._posted(piece, form, limit_at)
                if status == httpx.codes.OK:
                    answer = self._read(body, piece.duration_s, language)
                    if in_words and language == piece.language:
                        # Of one it may be the piece that it refused, of two in a row it is not.
                        if number == self._answered_in:
                            self._format = number
                        self._answered_in = number
                    return answer
        raise _Failure(f"{self._host} answered {status}", again=False)

    def _posted(self, piece: Piece, form: dict[str, Any], limit_at: float) -> tuple[int, bytes]:
        """Return status and body of an answer that is about this piece."""
        left_s = max(limit_at - self._clock(), 0.1)
        try:
            with self._client.stream(
                "POST",
                f"{self._url}/audio/{piece.task}",
                data=form,
                files={"file": ("audio.wav", piece.wav, "audio/wav")},
                timeout=httpx.Timeout(left_s, connect=min(_CONNECT_S, left_s)),
            ) as answer:
                body = self._received(answer, limit_at)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            message = f"{self._host} cannot be reached ({type(error).__name__})"
            raise _Failure(message, sure=True) from error
        except httpx.TimeoutException as error:
            raise self._too_late() from error
        except httpx.TransportError as error:
            if self._clock() >= limit_at:
                raise self._too_late() from error
            message = f"{self._host} broke off ({type(error).__name__})"
            raise _Failure(message) from error
        status = answer.status_code
        if status == httpx.codes.OK or status in _NOT_SO:
            return status, body
        hint = _HINTS.get(status)
        raise _Failure(
            f"{self._host} answered {status}" + (f": {hint}" if hint else ""),
            sure=status in _FOR_ALL or status < 400,
            again=status == httpx.codes.TOO_MANY_REQUESTS or status >= 500,
            wait_s=_retry_after(answer.headers.get("Retry-After")),
        )

    def _received(self, answer: httpx.Response, limit_at: float) -> bytes:
        received = bytearray()
        with _hung_up_at(answer, limit_at - self._clock()):
            for block in answer.iter_raw():
                received += block
                if len(received) > _LARGEST:
                    raise _Failure(f"{self._host} sent more than {_LARGEST} bytes", again=False)
                if self._clock() > limit_at:
                    raise self._too_late()
        return bytes(received)

    def _too_late(self) -> _Failure:
        # One may be too much for it. Silence, which it may answer well, tells nothing of that.
        late, self._late = self._late, True
        return _Failure(f"{self._host} did not answer in time", sure=late, again=False)

    def _read(self, body: bytes, duration_s: float, language: str | None) -> Answer:
        try:
            return read(json.loads(body), duration_s, language)
        except (ValueError, RecursionError):
            # Without the exception: it holds what was sent, which may be somebody's words.
            message = f"{self._host} did not answer as a transcription endpoint does"
            raise _Failure(message, again=False) from None


@contextmanager
def _hung_up_at(answer: httpx.Response, left_s: float) -> Iterator[None]:
    """Break an answer off after so many seconds, that may come byte by byte, each in time."""
    sock = answer.extensions["network_stream"].get_extra_info("socket")

    def hang_up() -> None:
        with suppress(OSError):
            # Of a plain socket also where it is one of TLS: that would wait for the other side.
            socket.socket.shutdown(sock, socket.SHUT_RDWR)

    timer = threading.Timer(max(left_s, 0.1), hang_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _retry_after(value: str | None) -> float:
    """Return the seconds of a Retry-After header, which may be a date."""
    if not value:
        return 0.0
    try:
        wait_s = float(value)
    except ValueError:
        try:
            moment = parsedate_to_datetime(value)
        except ValueError:
            return 0.0
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        wait_s = (moment - datetime.now(UTC)).total_seconds()
    return min(max(wait_s, 0.0), _LONGEST_REST_S) if wait_s == wait_s else 0.0
