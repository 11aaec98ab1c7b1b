"""The peer is a real HTTP server that speaks OpenAI's audio API, with a real Whisper behind it."""

import asyncio
import io
import itertools
import logging
import pickle
import socket
import threading
import time
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faster_whisper import WhisperModel
from hypothesis import given
from hypothesis import strategies as st
from starlette.responses import StreamingResponse

from callcore import intake, model_store
from callcore.audio import StreamingResampler, to_float
from callcore.batch_engines import batch_engines, device_options
from callcore.calls import CallFacts, Media, StepState, now
from callcore.cli.demo import word_error_rate
from callcore.doctor.transcription import check_device, check_endpoint
from callcore.engines import BUCKETS_S, LIVE_RATE, DecodeJob, load
from callcore.engines import transcription_endpoint as endpoint
from callcore.engines.circuit_breaker import RESTS_S, CircuitBreaker, Turn
from callcore.engines.transcription_answer import believed, read
from callcore.engines.transcription_client import Piece, wav_of
from callcore.engines.transcription_endpoint import LiveEndpoint, RecordingEndpoint, _Span
from callcore.errors import ConfigError, EngineDown, EngineError
from callcore.inference import EngineSpec, InferenceProcess
from callcore.live_daemon import live_engines
from callcore.recognizer import Recognizer, RefusedText
from callcore.recognizer_config import RecognizerConfig
from callcore.ringbuffer import RingBuffer
from callcore.settings import Settings
from callcore.storage import Storage
from tests.support.databases import Clock as StorageClock
from tests.support.databases import clock, storage
from tests.support.recognition import (
    MODELS,
    Clock,
    FakeInference,
    Listener,
    audio,
    model,
    non_speech,
    sample_leg,
)
from tests.support.recordings import FakeEngines, Works, make_settings
from tests.support.transcription_server import (
    Endpoint,
    breaks_off,
    garbage,
    status,
    transcription_server,
)

__all__ = ["clock", "storage"]

LIVE = "callcore.engines.transcription_endpoint:LiveEndpoint"


@pytest.fixture(scope="module")
def server() -> Iterator[Endpoint]:
    with transcription_server() as running:
        yield running


@pytest.fixture
def site(server: Endpoint) -> Iterator[Endpoint]:
    """The server as if it had just been started."""
    kept = {"url": server.url, "known": server.known}
    server.__dict__.update({**Endpoint().__dict__, **kept})
    yield server
    server.hold.set()


@pytest.fixture(scope="module")
def whisper() -> WhisperModel:
    return WhisperModel(model("tiny.en"), compute_type="int8", cpu_threads=1, local_files_only=True)


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'callcore.db'}"


@pytest.fixture
def made() -> Iterator[list[Any]]:
    engines: list[Any] = []
    yield engines
    for each in engines:
        each.close()


@pytest.fixture
def live(site: Endpoint, made: list[Any]) -> LiveEndpoint:
    made.append(LiveEndpoint(site.url, "tiny.en", "a-secret", sleep=lambda _: None))
    return made[-1]


@pytest.fixture
def recordings(site: Endpoint, made: list[Any]) -> RecordingEndpoint:
    made.append(RecordingEndpoint(site.url, "tiny.en", sleep=lambda _: None))
    return made[-1]


def sound(seconds: float = 2.0) -> np.ndarray:
    return np.full(round(seconds * LIVE_RATE), 1000, np.int16)


def job(seconds: float = 2.0, *, language: str | None = "en", final: bool = True) -> DecodeJob:
    return DecodeJob(sound(seconds), language, final, seconds)


def wide(samples: np.ndarray) -> np.ndarray:
    resampler = StreamingResampler(8000, 16000)
    return to_float(np.concatenate([resampler.push(samples), resampler.flush()]))


# ---- the wire


def test_a_live_piece_goes_there_as_a_wav_with_what_is_known_of_it(
    site: Endpoint, live: LiveEndpoint
) -> None:
    (heard,) = live.decode([job()])
    (asked,) = site.asked
    assert asked.path == "/v1/audio/transcriptions"
    assert asked.authorization == "Bearer a-secret"
    assert asked.fields == {
        "model": "tiny.en",
        "temperature": "0",
        "language": "en",
        "response_format": "verbose_json",
        "timestamp_granularities[]": "segment",
    }
    assert asked.granularities == ["word", "segment"]
    assert asked.rate == LIVE_RATE
    assert (asked.samples == sound()).all()
    assert heard.text == "Hello there."
    assert [(word.w, word.s, word.e, word.p) for word in heard.words] == [
        ("Hello", 0.0, 1.0, 0.9),
        ("there.", 1.0, 2.0, 0.9),
    ]
    assert (heard.language, heard.language_prob, heard.avg_logprob) == ("en", 1.0, -0.2)


def test_a_partial_asks_for_no_times_of_words(site: Endpoint, live: LiveEndpoint) -> None:
    (heard,) = live.decode([job(final=False)])
    assert (heard.text, heard.words) == ("Hello there.", ())
    assert (site.formats(), site.asked[0].granularities) == (["verbose_json"], [])
    live.decode([job()])
    assert site.asked[1].granularities == ["word", "segment"]


def test_jobs_are_sent_side_by_side_and_answered_in_order(
    site: Endpoint, live: LiveEndpoint
) -> None:
    together = threading.Barrier(4, timeout=20)

    def meet() -> Any:
        together.wait()
        return garbage(b'{"text": "met"}')

    site.always = meet
    heard = live.decode([job(0.5 + number / 2) for number in range(4)])
    assert [each.text for each in heard] == ["met"] * 4
    assert [each.words[-1].e for each in heard] == [0.5, 1.0, 1.5, 2.0]
    assert site.most_busy == 4


def test_no_proxy_and_no_redirect_leads_elsewhere(
    site: Endpoint, live: LiveEndpoint, made: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    made.append(LiveEndpoint(site.url, "tiny.en"))
    assert made[-1].decode([job()])[0].text
    assert site.asked[-1].authorization is None
    site.faults = [status(307, Location="/v1/audio/translations")]
    with pytest.raises(EngineDown, match="answered 307"):
        live.decode([job()])
    assert {each.path for each in site.asked} == {"/v1/audio/transcriptions"}


# ---- dialects


def test_a_server_that_knows_text_only_is_asked_for_less_and_after_two_pieces_remembered(
    site: Endpoint, live: LiveEndpoint
) -> None:
    site.dialect = "json"
    (heard,) = live.decode([job()])
    assert site.formats() == ["verbose_json", "verbose_json", "json"]
    assert [(word.w, word.s, word.e) for word in heard.words] == [
        ("Hello", 0.0, pytest.approx(12 / 13)),
        ("there.", pytest.approx(12 / 13), 2.0),
    ]
    live.decode([job()])
    live.decode([job()])
    assert site.formats()[3:] == ["verbose_json", "verbose_json", "json", "json"]


def test_a_piece_that_is_refused_costs_the_next_ones_no_times_of_words(
    site: Endpoint, live: LiveEndpoint
) -> None:
    site.faults = [status(400)]
    live.decode([job()])
    live.decode([job()])
    assert [each.granularities for each in site.asked] == [
        ["word", "segment"],
        [],
        ["word", "segment"],
    ]


def test_what_no_table_takes_is_left_out(site: Endpoint, live: LiveEndpoint) -> None:
    site.always = garbage(rb'{"text": "Hel\u0000lo \ud800 there."}')
    (heard,) = live.decode([job()])
    assert heard.text == "Hello ? there."
    assert [word.w for word in heard.words] == ["Hello", "?", "there."]
    heard.text.encode()


def test_a_server_that_tells_no_words_has_them_spread_over_its_segments(
    site: Endpoint, live: LiveEndpoint
) -> None:
    site.dialect = "vllm"
    (heard,) = live.decode([job()])
    assert [word.w for word in heard.words] == ["Hello", "there."]
    assert heard.words[0].p == pytest.approx(np.exp(-0.2))
    assert (heard.avg_logprob, heard.no_speech_prob) == (-0.2, 0.0)


def test_words_without_punctuation_get_it_from_the_text(site: Endpoint, live: LiveEndpoint) -> None:
    site.dialect = "openai"
    (heard,) = live.decode([job(language=None)])
    assert "language" not in site.asked[0].fields
    assert [word.w for word in heard.words] == ["Hello", "there."]
    assert (heard.language, heard.language_prob) == ("en", 0.8)


def test_a_language_that_the_server_does_not_know_is_left_to_it(
    site: Endpoint, live: LiveEndpoint
) -> None:
    (heard,) = live.decode([job(language="sw")])
    assert [each.fields.get("language") for each in site.asked] == ["sw", "sw", "sw", None]
    assert (heard.text, heard.language, heard.language_prob) == ("Hello there.", "en", 0.8)
    live.decode([job()])
    assert site.asked[-1].granularities == ["word", "segment"]  # its formats are not to blame


def test_numbers_that_a_server_does_not_know_are_not_believed() -> None:
    vllm = {"start": 0, "end": 1, "text": " So.", "avg_logprob": -1.0, "compression_ratio": -1.0}
    answer = read({"text": "So.", "segments": [vllm], "duration": "1.0"}, 1.0, "en")
    assert (answer.avg_logprob, answer.words[0].p) == (0.0, 1.0)


def test_a_language_without_spaces_gets_times_by_character() -> None:
    answer = read({"text": "你好,世界。", "language": "chinese"}, 4.0, None)
    assert answer.language == "zh"
    assert [word.w for word in answer.words] == ["你", "好,", "世", "界。"]
    assert answer.text == "你好,世界。"


def test_words_go_to_the_segment_in_which_they_were_said() -> None:
    spans = [{"start": 0, "end": 1, "text": "One two."}, {"start": 2, "end": 3, "text": "Three."}]
    words = [
        {"word": "one", "start": 0.1, "end": 0.4},
        {"word": "two", "start": 0.5, "end": 0.9},
        {"word": "three", "start": 2.2, "end": 2.9},
    ]
    answer = read({"text": "One two. Three.", "segments": spans, "words": words}, 3.0, "en")
    assert [[word.w for word in each.words] for each in answer.segments] == [
        ["One", "two."],
        ["Three."],
    ]
    assert answer.words[-1].s == 2.2


def test_words_that_came_without_times_stay_and_get_those_between_their_neighbours() -> None:
    words = [
        {"word": "I", "start": 0.0, "end": 0.2},
        {"word": "paid", "start": 0.2, "end": 0.6},
        {"word": "2014"},
        {"word": "euros", "start": 1.4, "end": 1.8},
        {"word": "twice.", "start": 1.8, "end": 2.2},
    ]
    text = "I paid 2014 euros twice."
    found = {"start": 0, "end": 2.5, "text": text, "words": words}
    for answer in (
        read({"text": text, "segments": [found]}, 2.5, "en"),
        read({"text": text, "words": words}, 2.5, "en"),
    ):
        assert answer.text == " ".join(word.w for word in answer.words) == text
        number = answer.words[2]
        assert 0.2 <= number.s < number.e <= 1.4
        assert answer.words[3].s == 1.4


def test_words_that_are_cut_otherwise_than_the_text_leave_it_as_it_is() -> None:
    words = [
        {"word": w, "start": i * 0.3, "end": (i + 1) * 0.3}
        for i, w in enumerate(["I", "don", "'t", "know"])
    ]
    answer = read({"text": "I don't know.", "words": words}, 2.0, "en")
    assert [(word.w, word.s) for word in answer.words] == [
        ("I", 0.0),
        ("don't", 0.3),
        ("know.", pytest.approx(0.9)),
    ]


def test_no_language_is_none() -> None:
    for name in ("", " ", "-", None, 5):
        assert read({"text": "Hello.", "language": name}, 1.0, None).language is None


def test_more_words_than_anyone_says_are_not_taken_over() -> None:
    text = " ".join(map(str, range(30_000)))
    segments = [{"start": 0, "end": 2, "text": text}] * 3
    assert len(read({"text": text, "segments": segments}, 2.0, "en").words) == 90
    assert len(read({"text": "你好" * 500, "language": "zh"}, 2.0, None).words) == 90


_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=8) | st.integers(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["text", "segments", "words", "word", "start", "end", "language", "avg_logprob"]
            ),
            inner,
            max_size=6,
        )
    ),
    max_leaves=12,
)


@given(found=_values, duration_s=st.floats(0.1, 30))
def test_whatever_is_answered_words_are_in_order_and_within_the_audio(
    found: Any, duration_s: float
) -> None:
    try:
        answer = read(found, duration_s, None)
    except ValueError:
        return
    for each in answer.segments:
        assert 0 <= each.start <= each.end <= duration_s
        assert each.text.split() == [word.w for word in each.words]
        starts = [each.start, *(word.s for word in each.words)]
        assert starts == sorted(starts)
        assert all(
            word.s <= word.e <= duration_s + 1e-6 and 0 <= word.p <= 1 for word in each.words
        )


# ---- what is not believed


@pytest.mark.parametrize(
    ("said", "seconds", "kept"),
    [
        ("Thanks for watching!", 1.0, ""),
        ("Please send somebody now. " * 2, 4.0, "Please send somebody now. " * 2),
        ("Thank you.", 1.0, "Thank you."),
    ],
)
def test_an_endpoint_is_believed_as_little_as_our_own_whisper(
    said: str, seconds: float, kept: str, site: Endpoint, live: LiveEndpoint
) -> None:
    site.said = said
    assert live.decode([job(seconds)])[0].text == kept.strip()


@pytest.mark.parametrize("dialect", ["speaches", "json"])
def test_of_a_loop_that_nobody_speaks_so_fast_at_most_one_round_is_kept(
    dialect: str, site: Endpoint, live: LiveEndpoint
) -> None:
    site.said, site.dialect = "Thank you. " * 12, dialect
    assert live.decode([job(1.0)])[0].text == "Thank you."


def test_of_a_phrase_said_again_nothing_is_lost_if_only_the_model_doubts() -> None:
    said = "please call back soon " * 4
    segment = {"start": 0, "end": 3.2, "text": said, "avg_logprob": -0.2, "no_speech_prob": 0.61}
    answer = read({"text": said, "segments": [segment]}, 3.2, "en")
    kept = believed(answer.segments[0], speech_s=3.2, end_s=3.2, language="en")
    assert kept is not None
    assert len(kept.words) == 16


def test_copies_at_a_standstill_are_a_loop_of_the_endpoints_model() -> None:
    said = ["please", "call", "back", "soon"] * 3
    words = [
        {"word": w, "start": min(i * 0.3, 1.2), "end": min((i + 1) * 0.3, 1.2)}
        for i, w in enumerate(said)
    ]
    answer = read({"text": " ".join(said), "words": words}, 2.0, "en")
    kept = believed(answer.segments[0], speech_s=1.2, end_s=2.0, language="en")
    assert kept is not None
    assert kept.text == "please call back soon"


def test_words_of_silence_are_not_asked_for(site: Endpoint, recordings: RecordingEndpoint) -> None:
    samples = np.concatenate(list(non_speech().values()))
    site.said = "Thank you."
    assert list(recordings.transcribe(wide(samples), "en")) == []
    assert site.asked == []


# ---- failures


@pytest.mark.parametrize("fault", [status(500), status(503), status(429), breaks_off()])
def test_a_passing_failure_costs_a_final_another_try(
    fault: Any, site: Endpoint, live: LiveEndpoint
) -> None:
    site.faults = [fault]
    assert live.decode([job()])[0].text == "Hello there."
    assert len(site.asked) == 2


def test_a_partial_is_not_worth_another_try(site: Endpoint, live: LiveEndpoint) -> None:
    site.faults = [status(500)]
    with pytest.raises(EngineError, match="answered 500"):
        live.decode([job(final=False)])
    assert len(site.asked) == 1


@pytest.mark.parametrize(
    ("code", "hint"), [(401, "TRANSCRIPTION_KEY"), (404, "should end in /v1"), (503, "503")]
)
def test_what_everybody_would_get_closes_the_endpoint_at_once(
    code: int, hint: str, site: Endpoint, live: LiveEndpoint
) -> None:
    site.always = status(code)
    with pytest.raises(EngineDown, match=hint) as down:
        live.decode([job()])
    assert down.value.retry_after_s >= RESTS_S[0]
    asked = len(site.asked)
    with pytest.raises(EngineDown, match=f"failed before: .*{hint}"):
        live.decode([job()])
    assert len(site.asked) == asked


def test_nobody_listens_there(live: LiveEndpoint, made: list[Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        address = f"http://127.0.0.1:{sock.getsockname()[1]}/v1"
    made.append(LiveEndpoint(address, "tiny.en", sleep=lambda _: None))
    with pytest.raises(EngineDown, match="cannot be reached"):
        made[-1].decode([job()])


def test_the_endpoint_says_how_long_it_wants_to_be_left_alone(
    site: Endpoint, live: LiveEndpoint, made: list[Any]
) -> None:
    site.always = status(429, Retry_After="120")
    with pytest.raises(EngineDown) as down:
        live.decode([job()])
    assert down.value.retry_after_s == 120.0
    moment = datetime.now(UTC) + timedelta(seconds=90)
    site.always = status(503, Retry_After=format_datetime(moment, usegmt=True))
    made.append(LiveEndpoint(site.url, "tiny.en"))
    with pytest.raises(EngineDown) as down:
        made[-1].decode([job()])
    assert 30.0 < down.value.retry_after_s <= 90.0


@pytest.mark.parametrize("body", [b"<html>", b"[1]", b'{"txt": "a"}', b'{"text": 5}', b"\xff"])
def test_what_is_no_answer_tells_nothing_of_what_came(
    body: bytes, site: Endpoint, live: LiveEndpoint, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    site.always = garbage(body)
    with pytest.raises(EngineError, match="as a transcription endpoint does") as failed:
        live.decode([job()])
    assert failed.value.__suppress_context__ or failed.value.__cause__ is not None
    assert "a-secret" not in caplog.text + str(failed.value)


def test_an_answer_without_end_is_not_read(site: Endpoint, live: LiveEndpoint) -> None:
    site.always = garbage(b" " * 5_000_000)
    with pytest.raises(EngineError, match="more than"):
        live.decode([job()])


def test_a_server_that_does_not_answer_in_time_is_given_up(
    site: Endpoint, live: LiveEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("callcore.engines.transcription_endpoint._LIVE_S", 0.2)
    monkeypatch.setattr("callcore.engines.transcription_endpoint._LIVE_PER_S", 0.0)
    site.always = site.later(garbage())
    with pytest.raises(EngineError, match="did not answer in time"):
        live.decode([job()])


def test_a_server_that_is_late_for_everybody_costs_nobody_more_than_one_try(
    site: Endpoint, made: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Silence it may answer in time: that does not count."""
    monkeypatch.setattr("callcore.engines.transcription_endpoint._LIVE_S", 0.2)
    monkeypatch.setattr("callcore.engines.transcription_endpoint._LIVE_PER_S", 0.0)
    clock = Clock()
    made.append(LiveEndpoint(site.url, "tiny.en", sleep=lambda _: None, clock=clock))
    heard = site.answer

    def slow(asked: Any) -> Any:
        if np.abs(asked.samples).max() > 0:
            site.hold.wait(30)
        return heard(asked)

    site.answer = slow  # type: ignore[method-assign]
    try:
        downs = []
        for _ in range(4):
            with pytest.raises(EngineError, match="did not answer in time") as failed:
                made[-1].decode([job()])
            downs.append(isinstance(failed.value, EngineDown))
            clock.now += 60.0
        assert downs == [False, True, True, True]
        site.hold.set()
        monkeypatch.setattr("callcore.engines.transcription_endpoint._LIVE_S", 20.0)
        assert made[-1].decode([job()])[0].text == "Hello there."
    finally:
        del site.answer


def test_an_answer_that_comes_bit_by_bit_is_broken_off_at_its_limit(
    site: Endpoint, made: list[Any]
) -> None:
    passed_s = 0.0
    outlived = threading.Event()

    def body() -> Iterator[bytes]:
        yield b" "
        if not site.hold.wait(3):
            outlived.set()
        yield b"{}"

    def late() -> StreamingResponse:
        nonlocal passed_s
        passed_s = 4.7  # of the five seconds of this piece
        return StreamingResponse(body())

    site.always = late
    made.append(LiveEndpoint(site.url, "m", clock=lambda: time.monotonic() + passed_s))
    with pytest.raises(EngineError, match="did not answer in time"):
        made[-1].decode([job()])
    assert not outlived.is_set()


def test_a_piece_that_waited_too_long_for_others_of_ours_loses_no_try(
    site: Endpoint, live: LiveEndpoint
) -> None:
    with pytest.raises(EngineDown, match="more pieces than it can do") as down:
        live.client.ask(Piece(wav_of(sound(), LIVE_RATE), 2.0), limit_at=0.0)
    assert down.value.retry_after_s == 1.0
    assert site.asked == []
    assert live.decode([job()])[0].text == "Hello there."  # it is not closed by that


def test_all_tries_together_end_before_the_process_counts_as_stalled() -> None:
    longest_s = endpoint._LIVE_S + endpoint._LIVE_PER_S * BUCKETS_S[-1]
    assert longest_s + 3.0 < RecognizerConfig().stalled_s


def test_failures_in_a_row_close_it_and_silence_finds_out_whether_it_is_back(
    site: Endpoint, made: list[Any]
) -> None:
    clock = Clock()
    made.append(LiveEndpoint(site.url, "tiny.en", sleep=lambda _: None, clock=clock))
    decode = made[-1].decode
    site.always = status(500)
    for _ in range(2):
        with pytest.raises(EngineError) as failed:
            decode([job()])
        assert not isinstance(failed.value, EngineDown)
    with pytest.raises(EngineDown) as down:
        decode([job()])
    clock.now += down.value.retry_after_s
    before = len(site.asked)
    with pytest.raises(EngineDown) as still:  # the probe fails: a longer rest
        decode([job()])
    assert still.value.retry_after_s > down.value.retry_after_s
    assert [abs(each.samples).max() for each in site.asked[before:]] == [0]
    clock.now += still.value.retry_after_s
    site.always = None
    assert decode([job()])[0].text == "Hello there."
    assert [abs(each.samples).max() for each in site.asked[before + 1 :]] == [0, 1000]


@pytest.mark.parametrize("code", [500, 422])
def test_a_piece_that_breaks_the_server_costs_its_own_tries_and_nobody_elses(
    code: int, site: Endpoint, made: list[Any]
) -> None:
    clock = Clock()
    made.append(LiveEndpoint(site.url, "tiny.en", sleep=lambda _: None, clock=clock))
    poison = DecodeJob(np.full(LIVE_RATE, 7777, np.int16), "en", True, 1.0)
    heard = site.answer

    def choke(asked: Any) -> Any:
        return status(code) if 7777 in asked.samples[:1] else heard(asked)

    site.answer = choke  # type: ignore[method-assign]
    try:
        counted = 0
        for _ in range(12):
            try:
                made[-1].decode([poison])
            except EngineDown as down:
                clock.now += down.retry_after_s
            except EngineError:
                counted += 1
            assert made[-1].client.breaker.turn is not None
        assert counted >= 6  # it is given up some day
        clock.now += 100.0
        assert made[-1].decode([job()])[0].text == "Hello there."
    finally:
        del site.answer


@pytest.mark.parametrize("code", [400, 422, 501])
def test_who_refuses_everything_is_left_alone(code: int, site: Endpoint, made: list[Any]) -> None:
    """As a server whose model is called otherwise: no piece shall lose its tries to that."""
    clock = Clock()
    made.append(LiveEndpoint(site.url, "tiny.en", sleep=lambda _: None, clock=clock))
    site.always = status(code)
    downs = []
    for _ in range(6):
        with pytest.raises(EngineError, match=f"answered {code}|failed before") as failed:
            made[-1].decode([job()])
        downs.append(isinstance(failed.value, EngineDown))
    assert downs == [False, False, True, True, True, True]
    clock.now += 1.0
    with pytest.raises(EngineDown, match=f"answered {code}"):  # so is silence
        made[-1].decode([job()])
    site.always = None
    clock.now += 10.0
    assert made[-1].decode([job()])[0].text == "Hello there."


def test_of_a_batch_with_two_failures_the_outage_is_told(
    site: Endpoint, live: LiveEndpoint
) -> None:
    site.always = status(401)
    with pytest.raises(EngineDown):
        live.decode([job(), job(), job()])


def test_the_error_crosses_the_process_boundary_with_its_time(site: Endpoint) -> None:
    error = pickle.loads(pickle.dumps(EngineDown("remote", "is away", 4.5)))
    assert (error.engine, error.message, error.retry_after_s) == ("remote", "is away", 4.5)
    site.always = status(401, Retry_After="7")
    options = {"url": site.url, "model": "tiny.en", "key": "a-secret"}
    with InferenceProcess({"live": EngineSpec(LIVE, options, 2)}) as inference:
        with pytest.raises(EngineDown, match="TRANSCRIPTION_KEY") as down:
            inference.call("live", "decode", [job()]).result(60)
        assert down.value.retry_after_s == 7.0


# ---- the breaker alone


def test_only_one_caller_probes() -> None:
    clock = Clock()
    breaker = CircuitBreaker(clock)
    assert breaker.failed(sure=True) == RESTS_S[0]
    assert breaker.turn() == (Turn.WAIT, RESTS_S[0])
    clock.now += RESTS_S[0]
    turns = [breaker.turn()[0] for _ in range(3)]
    assert turns == [Turn.PROBE, Turn.WAIT, Turn.WAIT]
    breaker.answered()
    assert breaker.turn() == (Turn.ASK, 0.0)


def test_rests_grow_to_a_bound_and_begin_anew_after_an_answer() -> None:
    clock = Clock()
    breaker = CircuitBreaker(clock)
    rests = [breaker.failed(sure=True)]
    for _ in range(6):
        clock.now += rests[-1]
        assert breaker.turn()[0] is Turn.PROBE
        rests.append(breaker.failed(sure=False, probe=True))
    assert rests == [*RESTS_S, *[RESTS_S[-1]] * 3]
    breaker.answered()
    assert breaker.failed(sure=True) == RESTS_S[0]


def test_who_asked_before_the_rest_does_not_make_it_longer() -> None:
    clock = Clock()
    breaker = CircuitBreaker(clock)
    assert breaker.failed(sure=True) == RESTS_S[0]
    clock.now += 0.25
    assert breaker.failed(sure=True) == max(RESTS_S[0] - 0.25, 1.0)
    assert breaker.turn() == (Turn.WAIT, RESTS_S[0] - 0.25)


# ---- recordings


def test_a_recording_is_sent_in_pieces_of_speech_and_keeps_its_times(
    site: Endpoint, recordings: RecordingEndpoint
) -> None:
    samples, _ = sample_leg("silent-stretch", "caller", 2)
    quiet = np.zeros(6 * LIVE_RATE, np.int16)
    both = wide(np.concatenate([samples, quiet, samples]))
    segments = list(recordings.transcribe(both, "en", "Ms Okafor, tariff"))
    assert len(site.asked) >= 2
    assert all(len(each.samples) <= 30 * 16_000 for each in site.asked)
    assert {each.fields["prompt"] for each in site.asked} == {"Ms Okafor, tariff"}
    assert {each.rate for each in site.asked} == {16_000}
    spans = [(each.start, each.end) for each in segments]
    assert spans == sorted(spans)
    assert spans[0][0] >= 0
    assert spans[-1][1] <= len(both) / 16_000
    assert any(start > (len(samples) + len(quiet)) / LIVE_RATE - 1 for start, _ in spans)


def test_the_language_of_a_recording_is_found_once(
    site: Endpoint, recordings: RecordingEndpoint
) -> None:
    samples, _ = sample_leg("silent-stretch", "caller", 1)
    quiet = np.zeros(4 * LIVE_RATE, np.int16)
    site.dialect = "openai"
    segments = list(recordings.transcribe(wide(np.concatenate([samples, quiet] * 3)), None))
    asked = [each.fields.get("language") for each in site.asked]
    assert asked == [None, *["en"] * (len(asked) - 1)]
    assert len(asked) >= 3
    assert {(each.language, each.language_prob) for each in segments} == {("en", 0.8)}


def test_a_translation_is_asked_for_where_translations_are(
    site: Endpoint, recordings: RecordingEndpoint
) -> None:
    samples, _ = sample_leg("silent-stretch", "caller", 1)
    segments = list(recordings.translate(wide(samples), "de"))
    assert {each.path for each in site.asked} == {"/v1/audio/translations"}
    assert segments[0].text == "Hello there."


def test_who_stops_listening_has_no_more_pieces_sent(site: Endpoint, made: list[Any]) -> None:
    made.append(RecordingEndpoint(site.url, "tiny.en", connections=1))
    samples, _ = sample_leg("silent-stretch", "caller", 1)
    quiet = np.zeros(4 * LIVE_RATE, np.int16)
    segments = made[-1].transcribe(wide(np.concatenate([samples, quiet] * 5)), "en")
    assert next(segments).text == "Hello there."
    segments.close()
    made.pop().close()
    assert len(site.asked) <= 2


def test_a_recording_waits_for_its_next_pieces_and_sends_none_twice(
    site: Endpoint, made: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit of requests per minute: the pieces that were answered are paid for."""
    clock = Clock()

    def sleep(seconds: float) -> None:
        clock.now += seconds

    spans = [_Span(2.0 * i, np.full(16_000, 0.1 + i / 100, np.float32)) for i in range(6)]
    monkeypatch.setattr("callcore.engines.transcription_endpoint._speech", lambda _: spans)
    made.append(RecordingEndpoint(site.url, "tiny.en", connections=2, sleep=sleep, clock=clock))
    heard = site.answer
    answered = []

    def limited(asked: Any) -> Any:
        """Three requests a minute."""
        recent = [at for at, _ in answered if at > clock.now - 60.0]
        if len(recent) >= 3:
            return status(429)
        answered.append((clock.now, int(asked.samples[0])))
        return heard(asked)

    site.answer = limited  # type: ignore[method-assign]
    try:
        said = list(made[-1].transcribe(np.zeros(1, np.float32), "en"))
    finally:
        del site.answer
    assert [each.start for each in said] == [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    pieces = [level for _, level in answered if level]
    assert len(pieces) == len(set(pieces)) == 6


def test_an_endpoint_that_is_away_tells_the_recording_to_wait(
    site: Endpoint, recordings: RecordingEndpoint
) -> None:
    samples, _ = sample_leg("silent-stretch", "caller", 1)
    site.always = status(502)
    with pytest.raises(EngineDown, match="answered 502"):
        list(recordings.transcribe(wide(samples), "en"))
    assert len(site.asked) == 4


# ---- a real Whisper behind it


@pytest.mark.model
@pytest.mark.parametrize("dialect", ["speaches", "openai", "vllm", "json"])
def test_real_words_come_back_in_every_dialect(
    dialect: str, site: Endpoint, recordings: RecordingEndpoint, whisper: WhisperModel
) -> None:
    site.whisper, site.dialect = whisper, dialect
    samples, text = sample_leg("silent-stretch", "caller", 2)
    segments = list(recordings.transcribe(wide(samples), "en"))
    assert word_error_rate(text, " ".join(each.text for each in segments)) <= 0.15
    for segment in segments:
        assert segment.text.split() == [word.w for word in segment.words]
    starts = [word.s for each in segments for word in each.words]
    assert all(later >= earlier - 0.01 for earlier, later in itertools.pairwise(starts))


@pytest.mark.model
def test_real_words_of_a_live_utterance_have_their_times(
    site: Endpoint, live: LiveEndpoint, whisper: WhisperModel
) -> None:
    site.whisper = whisper
    samples, text = sample_leg("silent-stretch", "caller", 1)
    said = np.flatnonzero(np.abs(samples) > 1000)
    begin = int(said[0]) - 4000
    samples = samples[begin : int(said[-1]) + 4000]
    (heard,) = live.decode([DecodeJob(samples, "en", True, len(samples) / LIVE_RATE - 1.0)])
    assert word_error_rate(text, heard.text) <= 0.15
    assert heard.text.split() == [word.w for word in heard.words]
    assert 0.4 < heard.words[0].e < 1.3
    assert abs(heard.words[-1].e - (len(samples) / LIVE_RATE - 0.5)) < 0.5
    assert min(word.p for word in heard.words) < 0.99 < max(word.p for word in heard.words)


def test_a_wav_is_what_was_given() -> None:
    samples = np.arange(-5, 5, dtype=np.int16)
    with wave.open(io.BytesIO(wav_of(samples, 8000))) as file:
        assert file.getparams()[:4] == (1, 2, 8000, 10)
        assert (np.frombuffer(file.readframes(10), "<i2") == samples).all()


# ---- where it stands


def test_an_outage_in_the_middle_of_a_call_loses_and_doubles_no_words(
    site: Endpoint, made: list[Any]
) -> None:
    asyncio.run(_outage(site, made))


async def _outage(site: Endpoint, made: list[Any]) -> None:
    clock = Clock()
    made.append(LiveEndpoint(site.url, "tiny.en", sleep=lambda _: None, clock=clock))
    inference = FakeInference(live=made[-1])
    recognizer = Recognizer(inference, clock=clock)
    ring, listener = RingBuffer(120 * LIVE_RATE), Listener()
    leg = recognizer.open_leg(ring, listener, language="en", spill=None)
    assert not isinstance(leg, RefusedText)
    away = {number: number in range(2, 6) for number in range(8)}
    for number, is_away in away.items():
        site.always = status(503) if is_away else None
        samples = audio([(0, 0.3), (2000 + number, 1.5), (0, 1.2)])
        for begin in range(0, len(samples), 512):
            part = samples[begin : begin + 512]
            ring.append(part.tobytes())
            clock.now += len(part) / LIVE_RATE
            recognizer.tick()
            await inference.settle(True)
        if is_away:
            assert len(listener.finals) <= 2
            again = recognizer.open_leg(
                RingBuffer(LIVE_RATE), Listener(), language="en", spill=None
            )
            assert again is RefusedText.DOWN, "an endpoint that is away hears no new legs"
    finishing = asyncio.create_task(leg.finish())
    for _ in range(700):
        clock.now += 0.064
        recognizer.tick()
        await inference.settle(True)
        if finishing.done():
            break
    await finishing
    assert [final.text for *_, final in listener.finals] == ["Hello there."] * len(away)
    await recognizer.close()


def test_a_recording_waits_for_an_endpoint_that_is_away_and_loses_no_try(
    storage: Storage, clock: StorageClock, tmp_path: Path, site: Endpoint, made: list[Any]
) -> None:
    made.append(RecordingEndpoint(site.url, "tiny.en", sleep=lambda _: None))
    clock.moment = now() + timedelta(hours=1)  # files have the time stamps of the machine
    works = Works(storage, make_settings(tmp_path / "state"), engines=OwnEngine(made[-1]))
    samples, _ = sample_leg("silent-stretch", "caller", 1)
    path = tmp_path / "1700000000.12.wav"
    path.write_bytes(wav_of(samples, LIVE_RATE))
    accepted = intake.accept_recording(
        storage, works.settings, CallFacts(), "spool", [Media("mixed", str(path))]
    )
    site.always = status(401)
    for _ in range(works.settings.max_attempts + 1):
        works.run()
        [_, step] = storage.steps(accepted.audio_id)
        assert (step.status, step.attempts) == (StepState.PENDING, 0)
        assert step.error is not None
        assert "CALLCORE_TRANSCRIPTION_KEY" in step.error, "whoever asked last"
        clock.move(60)
    site.always = None
    made[-1].client.breaker.answered()  # its clock is the machine's
    works.run()
    [_, step] = storage.steps(accepted.audio_id)
    assert (step.status, step.attempts) == (StepState.DONE, 1)
    assert "Hello there." in str(storage.results(accepted.audio_id)["transcribe"])


@dataclass
class OwnEngine(FakeEngines):
    """The engine in this process."""

    engine: Any = None

    def __init__(self, engine: Any) -> None:
        super().__init__()
        self.engine = engine

    def stream(self, engine: str, method: str, *args: Any) -> Iterator[Any]:
        return getattr(self.engine, method)(*args)  # type: ignore[no-any-return]

    def attributes(self, engine: str, *names: str) -> dict[str, Any]:
        return {name: getattr(self.engine, name) for name in names}


def settings_for(site: Endpoint, tmp_path: Path, **given: object) -> Settings:
    return make_settings(
        tmp_path, transcription_url=site.url, transcription_model="tiny.en", **given
    )


def test_the_endpoint_stands_where_the_settings_say(site: Endpoint, tmp_path: Path) -> None:
    for wanted, live_is, recordings_are in (
        ("both", True, True),
        ("live", True, False),
        ("recordings", False, True),
    ):
        chosen = settings_for(site, tmp_path, transcription_for=wanted, model="small")
        assert (chosen.live_is_remote, chosen.recordings_are_remote) == (live_is, recordings_are)
        needed = set(model_store.used(chosen))
        assert (chosen.live_model in needed) is not live_is
        assert (chosen.model in needed) is not recordings_are
    spec = batch_engines(settings_for(site, tmp_path))["transcriber"]()
    assert spec.path.endswith(":RecordingEndpoint")
    assert spec.options["connections"] == 8
    with pytest.raises(ConfigError, match="TRANSCRIPTION_MODEL"):
        make_settings(tmp_path, transcription_url=site.url)


@pytest.mark.model
def test_one_endpoint_serves_all_languages_of_live_calls(site: Endpoint, tmp_path: Path) -> None:
    given = settings_for(site, tmp_path, models_dir=MODELS, transcription_connections=3)
    engines = live_engines(given)
    assert engines["live"] == engines["live_multilingual"]
    assert (engines["live"].path, engines["live"].threads) == (LIVE, 3)


def test_the_device_is_told_to_our_own_whispers_alone() -> None:
    assert device_options("callcore.engines.live_whisper:LiveWhisper", "cuda") == {"device": "cuda"}
    assert device_options("callcore.engines.batch_whisper:BatchWhisper", "cpu") == {}
    assert device_options("another.package:Engine", "cuda") == {}
    assert load("callcore.engines.batch_whisper:BatchWhisper").__init__.__kwdefaults__["device"]
    assert load("callcore.engines.live_whisper:LiveWhisper").__init__.__kwdefaults__["device"]


# ---- the doctor


def test_the_doctor_says_nothing_where_nothing_is_set(tmp_path: Path) -> None:
    assert check_endpoint(make_settings(tmp_path)) is None
    assert check_device(make_settings(tmp_path)) is None


@pytest.mark.parametrize(
    ("dialect", "state", "says"),
    [("speaches", "ok", "tells the times"), ("vllm", "warning", "no times of words")],
)
def test_the_doctor_has_a_sample_transcribed(
    dialect: str, state: str, says: str, site: Endpoint, tmp_path: Path
) -> None:
    site.dialect = dialect
    found = check_endpoint(settings_for(site, tmp_path))
    assert found is not None
    assert (found.check, found.state) == ("transcription", state)
    assert says in found.detail
    assert abs(site.asked[0].samples).max() > 1000


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (status(401), "CALLCORE_TRANSCRIPTION_KEY is not right"),
        (status(404), "should end in /v1"),
        (garbage(), "as a transcription endpoint does"),
        (garbage(b'{"text": ""}'), "heard no word"),
    ],
)
def test_the_doctor_says_what_to_mend(
    answer: Any, says: str, site: Endpoint, tmp_path: Path
) -> None:
    site.always = answer
    found = check_endpoint(settings_for(site, tmp_path, transcription_key="s3cr3t"))
    assert found is not None
    assert found.state == "failed"
    assert says in found.detail
    assert found.remedy
    assert "s3cr3t" not in found.detail + found.remedy


def test_the_doctor_tells_of_a_gpu_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ctranslate2.get_cuda_device_count", lambda: 0)
    found = check_device(make_settings(tmp_path, device="cuda"))
    assert found is not None
    assert (found.check, found.state) == ("device", "failed")
    monkeypatch.setattr("ctranslate2.get_cuda_device_count", lambda: 2)
    found = check_device(make_settings(tmp_path, device="cuda"))
    assert found is not None
    assert found.state == "ok"
