"""How calls end, and what their agents' legs are called: on both databases."""

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

import pytest

from callcore import tables
from callcore.calls import CallFacts, CallState, Disposition, Ending
from callcore.errors import NotFound, Refused
from callcore.storage import Storage, call_rows
from tests.support.databases import Clock, clock, database_url, storage

__all__ = ["clock", "database_url", "storage"]

MISSED = Ending(Disposition.NO_ANSWER)


def new_uuid() -> str:
    return str(uuid.uuid4())


def known_call(storage: Storage, call_id: str = "c") -> str:
    """Make a call of which only a door has told."""
    with storage.database.transaction():
        facts = CallFacts(call_id=call_id)
        return call_rows.claim(storage.database, [call_id], facts, storage.clock())


def streamed(storage: Storage, name: str, call_id: str = "c") -> str:
    """Let a leg's stream come; return its UUID."""
    leg = storage.register_leg(new_uuid(), CallFacts(call_id=call_id, leg=name), 10)
    assert storage.consume_leg(leg.uuid, "daemon") is not None
    return leg.uuid


def told(storage: Storage) -> list[dict[str, Any]]:
    """Return the data of the messages that say that a call ended."""
    rows = storage.database.all(tables.Delivery.select().order_by(tables.Delivery.created_at))
    return [row["payload"]["data"] for row in rows if row["type"] == "call.ended"]


class TestTheEnd:
    @pytest.mark.parametrize(
        "disposition",
        [Disposition.NO_ANSWER, Disposition.BUSY, Disposition.ABANDONED, Disposition.FAILED],
    )
    def test_a_call_that_nobody_answered_is_missed_and_told_once(
        self, storage: Storage, clock: Clock, disposition: Disposition
    ) -> None:
        call_id = known_call(storage)
        clock.move(20)
        ended_at = clock.moment - timedelta(seconds=3)
        for _ in range(2):
            storage.note_ending(call_id, Ending(disposition, None, ended_at))
            clock.move(5)
        call = storage.call(call_id)
        assert (call.state, call.disposition, call.reason) == (
            CallState.MISSED,
            disposition,
            "hangup",
        )
        assert call.ended_at == ended_at
        [message] = told(storage)
        assert (message["call_id"], message["disposition"]) == (call_id, disposition.value)

    def test_that_nobody_had_answered_is_told_even_after_the_end(
        self, storage: Storage, clock: Clock
    ) -> None:
        # The hangup report came after the daemon had ended the call: nobody heard it was missed.
        own = streamed(storage, "caller")
        storage.end_leg(own, "hangup", None)
        assert storage.end_call_if_idle("c", "hangup") is not None
        clock.move(9)
        for disposition in (Disposition.ABANDONED, Disposition.NO_ANSWER):
            storage.note_ending("c", Ending(disposition, None, storage.clock()))
        messages = told(storage)
        assert [each["disposition"] for each in messages] == [None, "abandoned"]
        assert len({(each["call_id"], each["ended_at"]) for each in messages}) == 1
        ids = [row["message_id"] for row in storage.database.all(tables.Delivery.select())]
        assert len(set(ids)) == 2

    def test_that_somebody_had_answered_is_no_second_end(self, storage: Storage) -> None:
        own = streamed(storage, "caller")
        storage.end_leg(own, "hangup", None)
        assert storage.end_call_if_idle("c", "hangup") is not None
        storage.note_ending("c", Ending(Disposition.ANSWERED, storage.clock()))
        assert len(told(storage)) == 1

    def test_that_somebody_answered_is_never_overwritten(self, storage: Storage) -> None:
        call_id = known_call(storage)
        storage.note_ending(call_id, MISSED)
        answered_at = storage.clock()
        storage.note_ending(call_id, Ending(Disposition.ANSWERED, answered_at))
        storage.note_ending(call_id, Ending(Disposition.BUSY, answered_at + timedelta(1)))
        call = storage.call(call_id)
        assert (call.state, call.disposition) == (CallState.ENDED, Disposition.ANSWERED)
        assert call.answered_at == answered_at
        assert len(told(storage)) == 1

    def test_nothing_said_changes_nothing(self, storage: Storage) -> None:
        call_id = known_call(storage)
        before = storage.call(call_id)
        storage.note_ending(call_id, Ending())
        assert (storage.call(call_id), told(storage)) == (before, [])
        with pytest.raises(NotFound):
            storage.note_ending("nobody", MISSED)

    def test_a_clock_that_is_behind_makes_no_call_of_negative_length(
        self, storage: Storage
    ) -> None:
        call_id = known_call(storage)
        storage.note_ending(call_id, Ending(None, None, storage.clock() - timedelta(hours=1)))
        call = storage.call(call_id)
        assert (call.duration_s, call.state) == (0.0, CallState.ENDED)

    def test_a_caller_who_streamed_while_it_rang_was_not_answered(
        self, storage: Storage, clock: Clock
    ) -> None:
        own = streamed(storage, "caller")
        storage.note_ending("c", Ending(Disposition.ABANDONED, None, storage.clock()))
        call = storage.call("c")
        assert (call.state, call.ended_at) == (CallState.LIVE, None)
        assert told(storage) == []
        clock.move(4)
        storage.end_leg(own, "hangup", None)
        ended = storage.end_call_if_idle("c", "hangup")
        assert ended is not None
        assert (ended.state, ended.disposition) == (CallState.MISSED, Disposition.ABANDONED)
        assert [each["disposition"] for each in told(storage)] == ["abandoned"]
        storage.note_ending("c", MISSED)
        assert len(told(storage)) == 1

    def test_an_agent_who_was_heard_answered_whatever_is_said(
        self, storage: Storage, clock: Clock
    ) -> None:
        legs = [streamed(storage, "caller")]
        clock.move(5)
        answered_at = storage.clock()
        legs.append(streamed(storage, "agent"))
        storage.note_ending("c", MISSED)
        for each in legs:
            storage.end_leg(each, "hangup", None)
        ended = storage.end_call_if_idle("c", "hangup")
        assert ended is not None
        assert (ended.state, ended.disposition) == (CallState.ENDED, Disposition.ANSWERED)
        assert ended.answered_at == answered_at
        storage.note_ending("c", MISSED)
        assert storage.call("c").disposition is Disposition.ANSWERED

    def test_the_moment_an_agent_came_counts_more_than_the_menus_answer(
        self, storage: Storage, clock: Clock
    ) -> None:
        menu = storage.clock()
        clock.move(30)
        answered_at = storage.clock()
        own = streamed(storage, "agent")
        storage.note_ending("c", Ending(Disposition.ANSWERED, menu))
        storage.end_leg(own, "hangup", None)
        storage.end_call_if_idle("c", "hangup")
        assert storage.call("c").answered_at == answered_at
        storage.note_ending("c", Ending(Disposition.ANSWERED, menu))
        assert storage.call("c").answered_at == answered_at

    def test_a_missed_call_was_answered_by_a_menu_at_most(self, storage: Storage) -> None:
        call_id = known_call(storage)
        storage.note_ending(call_id, Ending(Disposition.NO_ANSWER, storage.clock()))
        call = storage.call(call_id)
        assert (call.state, call.answered_at) == (CallState.MISSED, None)

    def outgoing(self, storage: Storage, *names: str) -> list[str]:
        """Let the agent, who dials, be heard, then the others; return their UUIDs."""
        facts = CallFacts(call_id="c", direction="out")
        with storage.database.transaction():
            call_rows.claim(storage.database, ["c"], facts, storage.clock())
        return [streamed(storage, name) for name in ("agent", *names)]

    @pytest.mark.parametrize("order", ["report first", "stream first"])
    def test_an_agent_who_dialled_has_not_answered(self, storage: Storage, order: str) -> None:
        [own] = self.outgoing(storage)
        if order == "report first":
            storage.note_ending("c", Ending(Disposition.BUSY))
        storage.end_leg(own, "hangup", None)
        storage.end_call_if_idle("c", "hangup")
        storage.note_ending("c", Ending(Disposition.BUSY))
        call = storage.call("c")
        assert (call.state, call.disposition) == (CallState.MISSED, Disposition.BUSY)
        assert call.answered_at is None

    def test_of_an_outgoing_call_the_person_outside_answers(
        self, storage: Storage, clock: Clock
    ) -> None:
        legs = self.outgoing(storage)
        clock.move(7)
        answered_at = storage.clock()
        legs.append(streamed(storage, "caller"))
        for each in legs:
            storage.end_leg(each, "hangup", None)
        storage.end_call_if_idle("c", "hangup")
        storage.note_ending("c", MISSED)
        call = storage.call("c")
        assert (call.state, call.disposition) == (CallState.ENDED, Disposition.ANSWERED)
        assert call.answered_at == answered_at

    def test_the_agents_side_of_a_stream_of_both_parties_does_not_answer(
        self, storage: Storage
    ) -> None:
        left, right = streamed(storage, "caller"), streamed(storage, "agent")
        leg = tables.Leg
        storage.database.run(leg.update(right_uuid=right).where(leg.uuid == left))
        for each in (left, right):
            storage.end_leg(each, "hangup", None)
        storage.note_ending("c", MISSED)
        ended = storage.end_call_if_idle("c", "hangup")
        assert ended is not None
        assert ended.state is CallState.MISSED

    def test_a_registration_that_never_came_ends_missed(
        self, storage: Storage, clock: Clock
    ) -> None:
        storage.register_leg(new_uuid(), CallFacts(call_id="c", leg="agent"), 10)
        storage.note_ending("c", Ending(Disposition.BUSY))
        assert storage.call("c").state is CallState.LIVE
        clock.move(11)
        assert storage.expire_legs() == ["c"]
        assert storage.call("c").state is CallState.MISSED

    def test_a_missed_call_that_goes_on_lives_and_ends_again(
        self, storage: Storage, clock: Clock
    ) -> None:
        storage.note_ending(known_call(storage), MISSED)
        clock.move(3)
        own = streamed(storage, "agent")
        assert storage.call("c").state is CallState.LIVE
        clock.move(3)
        storage.end_leg(own, "hangup", None)
        assert storage.end_call_if_idle("c", "hangup") is not None
        assert storage.call("c").state is CallState.ENDED
        assert [each["disposition"] for each in told(storage)] == ["no-answer", "answered"]


class TestCallsThatAreOne:
    def unite(self, storage: Storage, *ids: str) -> None:
        with storage.database.transaction():
            call_rows.claim(storage.database, ids, CallFacts(), storage.clock())

    def ended(self, storage: Storage, call_id: str, ending: Ending) -> None:
        storage.note_ending(known_call(storage, call_id), ending)

    def test_that_one_was_answered_counts(self, storage: Storage, clock: Clock) -> None:
        at: datetime = storage.clock()
        self.ended(storage, "a", Ending(Disposition.NO_ANSWER, None, at))
        clock.move(1)
        self.ended(storage, "b", Ending(Disposition.ANSWERED, at, at + timedelta(seconds=9)))
        self.unite(storage, "a", "b")
        call = storage.call("b")
        assert (call.call_id, call.state) == ("a", CallState.ENDED)
        assert (call.disposition, call.answered_at) == (Disposition.ANSWERED, at)

    def test_one_that_only_a_recording_told_of_takes_the_others_end(
        self, storage: Storage, clock: Clock
    ) -> None:
        known_call(storage, "a")
        clock.move(1)
        self.ended(storage, "b", MISSED)
        self.unite(storage, "a", "b")
        call = storage.call("a")
        assert (call.state, call.disposition) == (CallState.MISSED, Disposition.NO_ANSWER)
        assert call.ended_at == storage.clock()

    def test_one_whose_caller_refused_keeps_no_number(self, storage: Storage) -> None:
        known_call(storage, "a")
        known_call(storage, "b")
        call = tables.Call
        storage.database.run(call.update(consent="no").where(call.call_id == "b"))
        storage.database.run(call.update(caller="0700111222").where(call.call_id == "a"))
        self.unite(storage, "a", "b")
        storage.complete_call(["a"], CallFacts(caller="0700111222", queue="help"))
        found = storage.call("a")
        assert (found.consent, found.facts.caller, found.facts.queue) == ("no", None, "help")

    def test_one_that_is_live_makes_the_other_live(self, storage: Storage, clock: Clock) -> None:
        self.ended(storage, "a", MISSED)
        clock.move(1)
        streamed(storage, "caller", "b")
        self.unite(storage, "a", "b")
        call = storage.call("a")
        assert (call.call_id, call.state, call.ended_at) == ("b", CallState.LIVE, None)
        assert call.disposition is Disposition.NO_ANSWER


class TestNamesOfLegs:
    def names(self, storage: Storage) -> list[str]:
        return sorted(leg.leg for leg in storage.call("c").legs)

    def register(self, storage: Storage, name: str | None) -> str:
        return storage.register_leg(new_uuid(), CallFacts(call_id="c", leg=name), 10).leg

    def test_another_agent_of_a_call_has_a_name_of_its_own(self, storage: Storage) -> None:
        assert [self.register(storage, "agent") for _ in range(3)] == [
            "agent",
            "agent-2",
            "agent-3",
        ]
        assert self.register(storage, "agent-2") == "agent-2"  # as it was said
        assert [self.register(storage, "caller") for _ in range(2)] == ["caller"] * 2
        assert self.register(storage, None) == "mixed"

    def test_there_are_nine_names(self, storage: Storage) -> None:
        found = [self.register(storage, "agent") for _ in range(11)]
        assert found[8:] == ["agent-9"] * 3

    def test_an_agent_who_never_came_leaves_the_name(self, storage: Storage, clock: Clock) -> None:
        self.register(storage, "agent")
        clock.move(11)
        storage.expire_legs()
        assert self.register(storage, "agent") == "agent"

    def test_agents_that_come_at_once_are_told_apart(self, storage: Storage) -> None:
        start = threading.Barrier(6)

        def register(_: int) -> str:
            start.wait()
            return self.register(storage, "agent")

        with ThreadPoolExecutor(6) as pool:
            found = sorted(pool.map(register, range(6)))
        assert found == ["agent", *(f"agent-{number}" for number in range(2, 7))]

    def test_captures_of_two_streams_of_one_name_are_two_files(
        self, storage: Storage, clock: Clock
    ) -> None:
        for name in ("caller", "agent", "agent", "caller"):
            own = streamed(storage, name)
            clock.move(2)
            storage.end_leg(own, "hangup", f"/{name}/{own}.wav")
        roles = [media.role for media in storage.capture_media("c")]
        assert roles == ["caller", "agent", "agent-2", "caller.2"]


def test_of_two_daemons_that_get_one_stream_each_one_has_it(
    storage: Storage, database_url: str
) -> None:
    daemons = [Storage(database_url, clock=storage.clock) for _ in range(2)]
    try:
        for _ in range(10):
            own = storage.register_leg(new_uuid(), CallFacts(call_id="c"), 10).uuid
            start = threading.Barrier(2)

            def consume(number: int, own: str = own, start: threading.Barrier = start) -> str:
                start.wait()
                try:
                    leg = daemons[number].consume_leg(own, f"daemon-{number}")
                except Refused as error:
                    return error.code
                assert leg is not None
                return "live"

            with ThreadPoolExecutor(2) as pool:
                assert sorted(pool.map(consume, range(2))) == ["live", "uuid-used"]
    finally:
        for each in daemons:
            each.close()


def test_a_leg_that_changed_since_it_was_read_is_not_taken(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The update decides, not what was read before: here another daemon is in between."""
    own = storage.register_leg(new_uuid(), CallFacts(call_id="c"), 10).uuid
    real = call_rows._start_call

    def overtaken(*given: Any) -> datetime:
        leg = tables.Leg
        storage.database.run(leg.update(state="live", daemon="other").where(leg.uuid == own))
        return real(*given)

    monkeypatch.setattr(call_rows, "_start_call", overtaken)
    with pytest.raises(Refused, match="already"):
        storage.consume_leg(own, "daemon")
