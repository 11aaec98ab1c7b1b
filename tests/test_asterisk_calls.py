"""Calls on a real Asterisk, through every part of a real site."""

import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import httpx
import pytest
import websocket

from callcore import tables
from callcore.calls import Call
from tests.support.asterisk import Asterisk
from tests.support.exchange import Exchange, error_rates, said

pytestmark = [pytest.mark.slow, pytest.mark.model, pytest.mark.redis]

CALLER = ("ss-noservice", "invalid")
AGENT = ("queue-periodic-announce",)
CALLER_SAYS = "silence/1&ss-noservice&silence/1&invalid&silence/3"
AGENT_SAYS = "queue-periodic-announce"


@pytest.fixture(scope="module")
def exchange(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exchange]:
    with Exchange(tmp_path_factory.mktemp("x"), unregistered="refuse") as running:
        yield running


def channels(asterisk: Asterisk, part: str) -> list[str]:
    """Return the channels whose names hold ``part``."""
    return [name for name in asterisk.channels() if part in name]


def hang_up(asterisk: Asterisk, pattern: str) -> None:
    with asterisk.ami() as ami:
        ami.action("Hangup", Channel=f"/{pattern}/")


def test_both_parties_of_a_bridged_call_are_heard_live_each_by_itself(exchange: Exchange) -> None:
    [mark] = exchange.asterisk.call(
        "bridged", caller_says=CALLER_SAYS, agent_says=AGENT_SAYS, caller="5550001", name="Ann Lee"
    )
    call = exchange.wait_call("5550001", legs=2, state="ended")
    assert mark
    assert sorted(leg.leg for leg in call.legs) == ["agent", "caller"]
    assert call.disposition == "answered"
    segments = exchange.storage.live_segments(call.call_id)
    assert error_rates(segments, "caller", *CALLER) <= 0.25, segments
    assert error_rates(segments, "agent", *AGENT) <= 0.25, segments

    told = exchange.events(call.call_id)
    kinds = [event["type"] for event in told]
    assert kinds[0] == "call.started"
    assert kinds[-1] == "call.ended"
    for leg in ("caller", "agent"):
        of_leg = [event["type"] for event in told if event.get("leg") == leg]
        assert of_leg[0] == "leg.started"
        assert of_leg[-1] == "leg.ended"
        assert "transcript.final" in of_leg
    finals = [event for event in told if event["type"] == "transcript.final"]
    assert {event["segment"] for event in finals} == {each.segment for each in segments}

    document = exchange.wait_document(call.call_id)
    heard = document["segments"]
    assert error_rates(heard, "caller", *CALLER) <= 0.25
    assert error_rates(heard, "agent", *AGENT) <= 0.25
    state = exchange.site.get(f"/api/calls/{call.call_id}/")
    # Our own capture waits for the PBX's recording, and is not needed then.
    [recording] = [each for each in state["recordings"] if each["sources"] != ["capture"]]
    assert {each["role"] for each in recording["media"]} == {"mixed", "caller", "agent"}
    assert exchange.asterisk.cdrs()


@pytest.mark.parametrize(
    ("caller", "pattern"),
    [
        ("5550011", r"^Local.bridged@site-.*;1$"),
        ("5550012", r"^Local.agent@parties-.*;2$"),
        ("5550013", r"^Local.(bridged@site-.*;1|agent@parties-.*;2)$"),
    ],
    ids=["caller", "agent", "both"],
)
def test_a_call_ends_whoever_hangs_up(exchange: Exchange, caller: str, pattern: str) -> None:
    exchange.asterisk.call(
        "bridged", caller_says="ss-noservice&silence/10", agent_says="silence/10", caller=caller
    )
    call = exchange.wait_call(caller, legs=2)
    exchange.site.wait("words", lambda: exchange.storage.live_segments(call.call_id))
    hang_up(exchange.asterisk, pattern)
    ended = exchange.wait_call(caller, legs=2, state="ended")
    assert {leg.reason for leg in ended.legs} == {"hangup"}
    document = exchange.wait_document(ended.call_id)
    assert error_rates(document["segments"], "caller", "ss-noservice") <= 0.3
    exchange.asterisk.wait_idle()


def test_a_transferred_call_stays_one_call_with_one_document(exchange: Exchange) -> None:
    exchange.asterisk.call(
        "bridged",
        caller_says="silence/2&ss-noservice&silence/10&invalid&silence/10",
        agent_says="silence/1&queue-periodic-announce&silence/10",
        caller="5550021",
        variables={"__AGENT2_SAYS": AGENT_SAYS},
    )
    exchange.wait_call("5550021", legs=2)
    [agent] = [name for name in channels(exchange.asterisk, "agent@parties-") if name[-1] == "1"]
    with exchange.asterisk.ami() as ami:
        ami.action("BlindTransfer", Channel=agent, Context="site", Exten="transfer")
    call = exchange.wait_call("5550021", legs=3)
    assert sorted(leg.leg for leg in call.legs) == ["agent", "agent-2", "caller"]
    call = exchange.wait_call("5550021", legs=3, state="ended")
    document = exchange.wait_document(call.call_id)
    segments = exchange.storage.live_segments(call.call_id)
    assert error_rates(segments, "caller", "ss-noservice", "invalid") <= 0.3
    assert error_rates(segments, "agent-2", *AGENT) <= 0.3
    assert error_rates(document["segments"], "caller", "ss-noservice", "invalid") <= 0.3
    assert [event["type"] for event in exchange.events(call.call_id)].count("call.started") == 1


def test_digits_of_a_streamed_caller_are_told(exchange: Exchange) -> None:
    exchange.asterisk.call(
        "stream",
        caller_says="silence/2",
        caller="5550031",
        variables={"CALLER_PRESSES": "ww19#"},
    )
    call = exchange.wait_call("5550031", legs=1, state="ended")
    digits = [e["digit"] for e in exchange.events(call.call_id) if e["type"] == "dtmf"]
    assert digits == ["1", "9", "#"]


def test_a_line_that_sends_nothing_for_five_seconds_stays_up(exchange: Exchange) -> None:
    exchange.asterisk.call(
        "stream",
        person="pauses",
        caller_says="ss-noservice",
        caller="5550041",
        variables={"CALLER_SAYS_THEN": "invalid&silence/2"},
    )
    call = exchange.wait_call("5550041", legs=1, state="ended")
    segments = exchange.storage.live_segments(call.call_id)
    assert error_rates(segments, "caller", "ss-noservice", "invalid") <= 0.3, segments
    first, last = segments[0], segments[-1]
    assert last.start - first.end > 4.5  # silence takes its time in the transcript too
    assert "Reached timeout" not in exchange.asterisk.log()


def captures(exchange: Exchange) -> set[Path]:
    return set((exchange.site.state / "audio_files" / "capture").glob("*.wav"))


def assert_nothing_is_kept(exchange: Exchange, call_id: str, kept: set[Path]) -> None:
    call = exchange.storage.call(call_id)
    assert (call.consent, call.facts.caller) == ("no", None)
    assert exchange.storage.live_segments(call_id) == []
    assert all(each.state == "refused" for each in exchange.storage.recordings_of(call_id))
    exchange.site.wait("captures are gone", lambda: captures(exchange) <= kept)


def refused(exchange: Exchange, but: set[str]) -> Call | None:
    model = tables.Call
    rows = exchange.storage.database.all(model.select().where(model.consent == "no"))
    found = [row["call_id"] for row in rows if row["call_id"] not in but]
    return exchange.storage.call(found[0]) if found else None


def test_a_caller_who_refuses_leaves_no_text_and_no_audio(exchange: Exchange) -> None:
    kept = captures(exchange)
    exchange.asterisk.call(
        "consent",
        caller_says="ss-noservice",
        caller="5550051",
        variables={"CALLER_PRESSES": "ww9"},
    )
    call = exchange.site.wait("the refusal", lambda: refused(exchange, set()))
    exchange.asterisk.wait_idle()
    assert_nothing_is_kept(exchange, call.call_id, kept)
    # They call again: nobody asks, nobody listens, nothing is recorded.
    exchange.asterisk.mark()
    exchange.asterisk.call("consent", caller_says="ss-noservice", caller="5550051")
    exchange.asterisk.wait_idle()
    steps = exchange.asterisk.new("full")
    assert "Dial(" in steps
    assert not [step for step in ("MixMonitor(", "Read(", "AudioSocket/") if step in steps]


def test_a_caller_who_refuses_in_the_middle_is_heard_no_longer(exchange: Exchange) -> None:
    kept = captures(exchange)
    earlier = {each.call_id for each in exchange.storage.calls(None, 1000)[0]}
    exchange.asterisk.call(
        "consent",
        caller_says="silence/3&ss-noservice&silence/2",
        caller="5550052",
        variables={"CALLER_THEN": "*9", "CALLER_SAYS_THEN": "invalid&silence/10"},
    )
    live = exchange.wait_call("5550052", legs=2)
    exchange.site.wait("words", lambda: exchange.storage.live_segments(live.call_id))
    call = exchange.site.wait("the refusal", lambda: refused(exchange, earlier - {live.call_id}))
    assert call.call_id == live.call_id
    exchange.site.wait(
        "no leg is live",
        lambda: {leg.state for leg in exchange.storage.call(call.call_id).legs} == {"ended"},
    )
    assert channels(exchange.asterisk, "consent@site")  # the call itself goes on
    ended = exchange.storage.call(call.call_id)
    assert {leg.reason for leg in ended.legs} == {"consent refused"}
    exchange.asterisk.wait_idle()
    assert_nothing_is_kept(exchange, call.call_id, kept)
    words = [e for e in exchange.events(call.call_id) if e["type"].startswith("transcript.")]
    assert words == []


@pytest.mark.parametrize(
    ("exten", "caller", "disposition"),
    [
        ("missed-noanswer", "5550061", "no-answer"),
        ("missed-busy", "5550062", "busy"),
        ("missed-cancel", "5550063", "abandoned"),
        ("queue-nobody", "5550064", "abandoned"),
    ],
)
def test_a_missed_call_is_on_record(
    exchange: Exchange, exten: str, caller: str, disposition: str
) -> None:
    exchange.asterisk.call(exten, caller_says="silence/3", caller=caller)
    call = exchange.wait_call(caller, state="missed")
    assert call.disposition == disposition
    assert call.facts.caller == caller
    state = exchange.site.get(f"/api/calls/{call.call_id}/")
    assert (state["state"], state["disposition"]) == ("missed", disposition)
    page = exchange.site.client.get("/calls/").text
    assert call.call_id in page


def test_a_stranger_s_stream_is_refused_where_registration_is_required(exchange: Exchange) -> None:
    with exchange.asterisk.ami() as ami:
        ami.action(
            "Originate",
            Channel=f"AudioSocket/{exchange.site.audiosocket}/{uuid.uuid4()}/c(slin)",
            Application="Playback",
            Data="ss-noservice",
            Async="true",
        )
    exchange.site.wait(
        "the refusal", lambda: [line for line in exchange.site.lines if "unregistered" in line]
    )
    exchange.asterisk.wait_idle()


def test_an_interleaved_stream_becomes_two_legs(exchange: Exchange) -> None:
    own = str(uuid.uuid4())
    exchange.asterisk.call(
        "plain", caller_says=CALLER_SAYS, agent_says=AGENT_SAYS, caller="5550071"
    )
    spied = exchange.asterisk.wait("the call", lambda: channels(exchange.asterisk, "plain@site"))
    spied = next(name for name in spied if name.endswith(";2"))
    answer = exchange.site.client.post(
        "/api/legs/",
        json={"uuid": own, "leg": "stereo", "call_id": "stereo-1", "caller": "5550071"},
    )
    assert answer.status_code == 201, answer.text
    with exchange.asterisk.ami() as ami:
        ami.action(
            "Originate",
            Channel=f"AudioSocket/{exchange.site.audiosocket}/{own}/c(slin)",
            Application="ChanSpy",
            Data=f"{spied},qDuESl",
            Async="true",
        )
    call = exchange.wait_call("5550071", legs=2, state="ended")
    segments = exchange.storage.live_segments(call.call_id)
    assert error_rates(segments, "caller", *CALLER) <= 0.3, segments
    assert error_rates(segments, "agent", *AGENT) <= 0.3, segments


def test_wideband_from_ari_external_media_is_heard(exchange: Exchange) -> None:
    own = str(uuid.uuid4())
    exchange.asterisk.call(
        "plain", caller_says=CALLER_SAYS, agent_says=AGENT_SAYS, caller="5550081"
    )
    exchange.asterisk.wait("the call", lambda: channels(exchange.asterisk, "plain@site"))
    answer = exchange.site.client.post(
        "/api/legs/", json={"uuid": own, "leg": "caller", "caller": "5550081"}
    )
    assert answer.status_code == 201, answer.text
    at = exchange.asterisk.http_address
    app = {"app": "callcore-test", "api_key": "test:test"}
    events = websocket.create_connection(f"ws://{at}/ari/events?{urlencode(app)}", timeout=20)
    try:
        with httpx.Client(base_url=f"http://{at}/ari", params=app, trust_env=False) as ari:
            caller = next(
                each["id"]
                for each in ari.get("/channels").json()
                if "plain@site" in each["name"] and each["name"].endswith(";2")
            )
            media = {
                "external_host": exchange.site.audiosocket,
                "encapsulation": "audiosocket",
                "transport": "tcp",
                "connection_type": "client",
                "format": "slin16",
                "data": own,
            }
            snoop = ari.post(f"/channels/{caller}/snoop", params={**app, "spy": "in"}).json()
            sink = ari.post("/channels/externalMedia", params={**app, **media}).json()
            bridge = ari.post("/bridges", params={**app, "type": "mixing"}).json()
            both = f"{snoop['id']},{sink['id']}"
            added = ari.post(f"/bridges/{bridge['id']}/addChannel", params={**app, "channel": both})
            assert added.status_code == 204, added.text
            exchange.wait_call("5550081", legs=1)
            exchange.asterisk.wait(
                "the caller hangs up", lambda: not channels(exchange.asterisk, "plain@site")
            )
            ari.delete(f"/channels/{sink['id']}")
    finally:
        events.close()
    call = exchange.wait_call("5550081", legs=1, state="ended")
    segments = exchange.storage.live_segments(call.call_id)
    assert error_rates(segments, "caller", *CALLER) <= 0.3, segments


def test_nothing_of_a_call_is_in_the_logs(exchange: Exchange) -> None:
    text = "\n".join(exchange.site.lines)
    for secret in ("5550001", "Ann Lee", "not in service", "representatives"):
        assert secret not in text
    assert said("ss-noservice")
