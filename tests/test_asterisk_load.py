"""Fifty tapped calls at once on a real Asterisk, more than the recogniser can follow."""

import re

import pytest

from callcore.calls import Call
from tests.support.exchange import Exchange, error_rates

pytestmark = [pytest.mark.slow, pytest.mark.model, pytest.mark.redis]

CALLS = 50
#: What each party says. The last call comes 10 s after the first: all talk at once for 20 s.
WORDS = ("ss-noservice", "invalid", "ss-noservice", "invalid")
SAYS = "&".join(["silence/1&ss-noservice&silence/3&invalid&silence/2"] * 2)
LASTS_S = 30.0


def test_fifty_tapped_calls_lose_nothing(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("x")
    # Asterisk and its players leave decoding a third of a core here: a third of the usual load.
    with Exchange(folder, unregistered="refuse", live_max_load="0.3") as exchange:
        exchange.asterisk.call(
            "bridged", caller_says=SAYS, agent_says=SAYS, caller="5552000", count=CALLS, rate=5
        )
        exchange.asterisk.wait_idle(120)
        exchange.site.wait("all calls are over", lambda: _ended(exchange) == CALLS, 600)
        calls = [exchange.storage.call(call_id) for call_id in _calls(exchange)]
        legs = [leg for call in calls for leg in call.legs]
        assert len(legs) == 2 * CALLS
        assert {leg.reason for leg in legs} == {"hangup"}
        assert not [line for line in exchange.site.lines if "audio lost" in line]
        received = [
            float(found[1])
            for line in exchange.site.lines
            if "leg ended" in line and (found := re.search(r"received_s=([\d.]+)", line))
        ]
        assert len(received) == 2 * CALLS
        assert min(received) >= LASTS_S - 5.0

        admitted = [leg for leg in legs if leg.no_text is None]
        refused = [leg for leg in legs if leg.no_text is not None]
        assert admitted
        assert refused
        for leg in admitted:
            segments = exchange.storage.live_segments(leg.call_id)
            assert error_rates(segments, leg.leg, *WORDS) <= 0.3, segments
        served = [call for call in calls if any(leg.no_text for leg in call.legs)]
        # The first of them; the bench waits for all.
        exchange.site.wait(
            "words of a recording", lambda: any(_is_served(exchange, each) for each in served), 600
        )


def _calls(exchange: Exchange) -> list[str]:
    return [each.call_id for each in exchange.storage.calls(None, 1000)[0]]


def _ended(exchange: Exchange) -> int:
    return sum(exchange.storage.call(call_id).state == "ended" for call_id in _calls(exchange))


def _is_served(exchange: Exchange, call: Call) -> bool:
    """Tell whether both parties' words are in the call's document."""
    state = exchange.site.get(f"/api/calls/{call.call_id}/") or {"recordings": []}
    heard = [
        segment
        for each in state["recordings"]
        if each["status"] == "completed"
        for segment in exchange.site.get(f"/api/audio/{each['audio_id']}/")["segments"]
    ]
    return all(error_rates(heard, leg, *WORDS) <= 0.3 for leg in ("caller", "agent"))
