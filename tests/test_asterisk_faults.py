"""Calls on a real Asterisk while callcore is away, stopped, killed or refusing: nobody notices."""

import wave
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.exchange import Exchange, error_rates

pytestmark = [pytest.mark.slow, pytest.mark.model, pytest.mark.redis]

#: A port that nobody listens on.
NOBODY = "127.0.0.1:9"
CALLER = ("ss-noservice", "invalid", "ss-noservice")
CALLER_SAYS = "silence/1&ss-noservice&silence/1&invalid&silence/1&ss-noservice&silence/1"
AGENT = ("queue-periodic-announce",)
AGENT_SAYS = "queue-periodic-announce"
#: Seconds that the caller's prompts take.
LASTS_S = 17.9


@pytest.fixture(scope="module")
def exchange(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exchange]:
    with Exchange(tmp_path_factory.mktemp("x"), unregistered="refuse") as running:
        yield running


@pytest.fixture(autouse=True)
def addresses(exchange: Exchange) -> Iterator[None]:
    """Let the dialplan find the daemons again after each test."""
    yield
    dial(exchange, exchange.site.audiosocket, exchange.site.agi)


def dial(exchange: Exchange, audiosocket: str, agi: str) -> None:
    exchange.asterisk.cli(f"dialplan set global CALLCORE_AUDIOSOCKET {audiosocket}")
    exchange.asterisk.cli(f"dialplan set global CALLCORE_AGI {agi}")


def place(exchange: Exchange, caller: str, caller_says: str = CALLER_SAYS) -> None:
    exchange.asterisk.call("bridged", caller_says=caller_says, agent_says=AGENT_SAYS, caller=caller)


def recordings(exchange: Exchange) -> set[Path]:
    return set(exchange.asterisk.recordings.rglob("*.wav"))


def assert_complete(files: set[Path], at_least_s: float) -> None:
    """Make sure that mixed, caller's and agent's files hold the whole call."""
    assert len(files) == 3, files
    for path in files:
        with wave.open(str(path)) as file:
            assert file.getnframes() / file.getframerate() >= at_least_s


def assert_document(exchange: Exchange, call_id: str, source: str) -> None:
    segments = exchange.wait_document(call_id, source)["segments"]
    assert error_rates(segments, "caller", *CALLER) <= 0.25
    assert error_rates(segments, "agent", *AGENT) <= 0.25


def test_without_the_live_daemon_the_call_and_its_document_are_whole(exchange: Exchange) -> None:
    before = recordings(exchange)
    dial(exchange, NOBODY, exchange.site.agi)
    place(exchange, "5551001")
    exchange.asterisk.wait_idle()
    assert_complete(recordings(exchange) - before, LASTS_S - 0.5)
    call = exchange.wait_call("5551001", state="ended")
    assert not any(leg.started_at for leg in call.legs)
    assert_document(exchange, call.call_id, "agi")


def test_without_any_of_callcore_the_spool_brings_the_recording(exchange: Exchange) -> None:
    before = recordings(exchange)
    dial(exchange, NOBODY, NOBODY)
    place(exchange, "5551002")
    exchange.asterisk.wait_idle()
    new = recordings(exchange) - before
    assert_complete(new, LASTS_S - 0.5)
    uniqueid = min(path.stem for path in new)
    exchange.site.wait("the call", lambda: exchange.site.get(f"/api/calls/{uniqueid}/"))
    assert_document(exchange, uniqueid, "spool")


def test_a_stream_that_is_refused_leaves_the_call_alone(exchange: Exchange) -> None:
    before = recordings(exchange)
    dial(exchange, exchange.site.audiosocket, NOBODY)  # streams come, their registration does not
    num_lines = len(exchange.site.lines)
    place(exchange, "5551003")
    exchange.asterisk.wait_idle()
    refusals = [line for line in exchange.site.lines[num_lines:] if "unregistered" in line]
    assert len(refusals) >= 2
    new = recordings(exchange) - before
    assert_complete(new, LASTS_S - 0.5)
    assert_document(exchange, min(path.stem for path in new), "spool")


def test_a_daemon_killed_in_the_middle_of_a_call_costs_only_live_words(exchange: Exchange) -> None:
    before = recordings(exchange)
    place(exchange, "5551004")
    call = exchange.wait_call("5551004", legs=2)
    exchange.site.wait("words", lambda: exchange.storage.live_segments(call.call_id))
    exchange.site.kill("callcore audiosocket")
    exchange.asterisk.wait_idle()
    assert_complete(recordings(exchange) - before, LASTS_S - 0.5)
    ended = exchange.wait_call("5551004", state="ended")
    assert {leg.reason for leg in ended.legs} == {"daemon_lost"}
    assert_document(exchange, ended.call_id, "agi")


def test_daemons_stopped_for_half_a_minute_hold_nobody_up(exchange: Exchange) -> None:
    before = recordings(exchange)
    pauses = "&".join(["silence/10"] * 3)
    place(exchange, "5551005", f"silence/1&ss-noservice&{pauses}&invalid&ss-noservice&silence/2")
    call = exchange.wait_call("5551005", legs=2)
    stopped = [exchange.site.child(f"callcore {name}") for name in ("audiosocket", "agi")]
    stopped = [each for parent in stopped for each in (parent, *parent.children(recursive=True))]
    for process in stopped:
        process.suspend()
    try:
        # The whole rest of the call, half a minute and its hangup, happens without them.
        exchange.asterisk.wait("the hangup", lambda: not call_channels(exchange), timeout_s=120)
        assert all(process.status() == psutil.STATUS_STOPPED for process in stopped)
        assert_complete(recordings(exchange) - before, 45.0)
    finally:
        for process in stopped:
            process.resume()
    ended = exchange.wait_call("5551005", state="ended")
    segments = exchange.storage.live_segments(ended.call_id)
    assert error_rates(segments, "caller", *CALLER[:2], "ss-noservice") <= 0.3, segments
    assert "daemon_lost" not in {leg.reason for leg in ended.legs}
    document = exchange.wait_document(call.call_id, "agi")
    heard = document["segments"]
    assert error_rates(heard, "caller", "ss-noservice", "invalid", "ss-noservice") <= 0.25
    exchange.asterisk.wait_idle()


def call_channels(exchange: Exchange) -> list[str]:
    """Return the channels of people, without those that wait for our daemons."""
    return [name for name in exchange.asterisk.channels() if "@site" in name or "@parties" in name]


def test_an_asterisk_killed_in_the_middle_of_a_call_leaves_a_document(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with Exchange(tmp_path_factory.mktemp("y")) as exchange:
        place(exchange, "5551006")
        call = exchange.wait_call("5551006", legs=2)
        exchange.site.wait(
            "words of both",
            lambda: len({each.leg for each in exchange.storage.live_segments(call.call_id)}) == 2,
        )
        exchange.asterisk.kill()
        ended = exchange.wait_call("5551006", state="ended")
        assert {leg.reason for leg in ended.legs} == {"hangup"}
        for path in recordings(exchange):
            with pytest.raises((wave.Error, EOFError)), wave.open(str(path)):
                pass  # the header still says 0 bytes
        # What Asterisk had written is repaired; nobody told of its end.
        document = exchange.wait_document(ended.call_id, "spool")
        assert document["segments"]
        exchange.asterisk.process = None
