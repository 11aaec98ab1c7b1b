"""Calls, legs and live words on both databases."""

import itertools
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import peewee
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from callcore import tables
from callcore.calls import CallFacts, CallState, LegState
from callcore.errors import CallcoreError, ConfigError, NotFound, Refused
from callcore.results import Segment, Word
from callcore.storage import Storage
from tests.support.databases import Clock, clock, database_url, storage
from tests.support.postgres import shared

MIGRATIONS = ["0001_initial", "0002_post_call", "0003_asterisk", "0004_daemon_figures"]

__all__ = ["clock", "database_url", "storage"]


def new_uuid() -> str:
    return str(uuid.uuid4())


def segment(number: int, leg: str = "caller", start: float = 1.25) -> Segment:
    words = (Word("hello", start, start + 0.5, 0.875),)
    return Segment(number, leg, start, start + 1, "hello", "en", words, "live", 0.5, revised=True)


def legs(storage: Storage, call_id: str) -> dict[str, LegState]:
    return {leg.leg: leg.state for leg in storage.call(call_id).legs}


class TestSchema:
    def test_the_migrations_make_the_tables_of_the_models(self, database_url: str) -> None:
        storage = Storage(database_url)
        database = storage.database.peewee
        storage.migrate()
        migrated = self.described(storage)
        with storage.database.connection(), database.bind_ctx(tables.ALL):
            database.drop_tables(tables.ALL)
            database.create_tables(tables.ALL)
        assert self.described(storage) == migrated
        assert len(migrated) == len(tables.ALL)
        storage.close()

    @staticmethod
    def described(storage: Storage) -> dict[str, object]:
        database = storage.database.peewee
        with storage.database.connection():
            return {
                name: (
                    sorted(map(str, database.get_columns(name))),
                    sorted(map(str, database.get_indexes(name))),
                    sorted(map(str, database.get_foreign_keys(name))),
                    database.get_primary_keys(name),
                )
                for name in database.get_tables()
                if name != "schema_migration"
            }

    def test_a_process_of_the_version_before_still_adds_recordings(self, storage: Storage) -> None:
        # Its INSERT names no column of 0002; without a default in the database it failed.
        database = storage.database
        storage.register_leg(new_uuid(), CallFacts(call_id="c"), 10)
        with database.transaction():
            database.peewee.execute_sql(
                "INSERT INTO recordings (audio_id, call_id, state, source, sources, facts, "
                "created_at) VALUES ('a', 'c', 'expected', 'spool', '[]', '{}', "
                "'2026-01-01 00:00:00.000000+00:00')"
            )
        assert storage.is_backfill("a") is False
        [row] = database.all(tables.Recording.select().where(~tables.Recording.backfill))
        assert row["audio_id"] == "a"

    def test_an_empty_database_is_told_from_a_migrated_one(self, database_url: str) -> None:
        storage = Storage(database_url)
        with pytest.raises(CallcoreError, match="run `callcore migrate`"):
            storage.check_migrated()
        assert storage.migrate() == MIGRATIONS
        storage.check_migrated()
        assert storage.migrate() == []
        storage.close()

    def test_processes_that_migrate_at_once_migrate_once(self, database_url: str) -> None:
        storages = [Storage(database_url) for _ in range(4)]
        with ThreadPoolExecutor(4) as pool:
            applied = list(pool.map(Storage.migrate, storages))
        assert sorted(applied) == [[], [], [], MIGRATIONS]
        for each in storages:
            each.close()

    def test_an_unknown_kind_of_database_is_refused_without_its_password(self) -> None:
        with pytest.raises(ConfigError) as caught:
            Storage("mysql://root:secret@host/x")
        assert "secret" not in str(caught.value)

    def test_sqlite_commits_survive_a_power_cut(self, tmp_path: Path) -> None:
        storage = Storage(f"sqlite:///{tmp_path}/new/folder/x.db")
        storage.migrate()
        with storage.database.connection():
            database = storage.database.peewee
            assert database.pragma("journal_mode") == "wal"
            assert database.pragma("synchronous") == 2
            assert database.pragma("foreign_keys") == 1
        storage.close()


class TestMoments:
    @settings(
        max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
    )
    @given(
        moment=st.datetimes(
            min_value=datetime(1990, 1, 1),  # noqa: DTZ001
            max_value=datetime(2100, 1, 1),  # noqa: DTZ001
            timezones=st.sampled_from([UTC]),
        )
    )
    def test_instants_come_back_to_the_microsecond(
        self, storage: Storage, moment: datetime
    ) -> None:
        call_id = uuid.uuid4().hex
        storage.clock = lambda: moment
        storage.register_leg(new_uuid(), CallFacts(call_id=call_id), 10)
        call = storage.call(call_id)
        assert call.started_at == moment
        assert call.started_at.utcoffset() == timedelta(0)

    def test_instants_of_other_zones_are_the_same_instants(self, storage: Storage) -> None:
        kampala = datetime.fromisoformat("2026-03-04T13:00:00.123456+03:00")
        storage.register_leg(new_uuid(), CallFacts(call_id="c", started_at=kampala), 10)
        assert storage.call("c").started_at == kampala


class TestLegs:
    def test_the_first_leg_sets_the_zero_of_the_call(self, storage: Storage, clock: Clock) -> None:
        caller, agent = new_uuid(), new_uuid()
        facts = CallFacts(linkedid="17.1", uniqueid="17.1", leg="caller", caller="+256", queue="q")
        registered = storage.register_leg(caller, facts, 10)
        assert registered.state is LegState.EXPECTED
        assert registered.call_id == "17.1"
        storage.register_leg(agent, CallFacts(linkedid="17.1", uniqueid="17.2", leg="agent"), 10)
        clock.move(2)
        first = storage.consume_leg(caller, "daemon")
        zero = clock.moment
        clock.move(1.5)
        second = storage.consume_leg(agent, "daemon")
        assert first is not None
        assert second is not None
        assert (first.state, first.offset_s, second.offset_s) == (LegState.LIVE, 0.0, 1.5)
        assert first.segment_base != second.segment_base
        call = storage.call("17.2")
        assert (call.call_id, call.started_at, call.state) == ("17.1", zero, CallState.LIVE)
        assert call.session_id == "17.1-20260304T101114Z"
        assert (call.facts.caller, call.facts.queue, call.facts.agent) == ("+256", "q", None)
        assert call == storage.call(caller) == storage.call(agent)
        assert [live.call_id for live in storage.live_calls()] == ["17.1"]

    def test_a_silent_call_had_a_stream_and_has_none_now(self, storage: Storage) -> None:
        legs = {each: new_uuid() for each in ("waits", "streams", "over", "ended", "half")}
        second = new_uuid()
        for call_id, own in legs.items():
            storage.register_leg(own, CallFacts(call_id=call_id, leg="caller"), 10)
        storage.register_leg(second, CallFacts(call_id="half", leg="agent"), 10)
        for own in (legs["streams"], legs["over"], legs["ended"], legs["half"], second):
            storage.consume_leg(own, "daemon")
        for own in (legs["over"], legs["ended"], legs["half"]):
            storage.end_leg(own, "hangup", None)
        storage.end_call_if_idle("ended", "hangup")
        assert [call.call_id for call in storage.silent_calls()] == ["over"]

    def test_a_uuid_is_consumed_once(self, storage: Storage) -> None:
        own = new_uuid()
        storage.register_leg(own, CallFacts(call_id="c"), 10)
        with pytest.raises(Refused) as caught:
            storage.register_leg(own, CallFacts(call_id="other"), 10)
        assert (caught.value.code, caught.value.field) == ("uuid-in-use", "uuid")
        assert storage.consume_leg(own, "daemon")
        with pytest.raises(Refused, match="already"):
            storage.consume_leg(own, "daemon")
        assert storage.consume_leg(new_uuid(), "daemon") is None

    def test_many_daemons_that_ask_at_once_get_one_leg(self, storage: Storage) -> None:
        own = new_uuid()
        storage.register_leg(own, CallFacts(call_id="c"), 10)
        start = threading.Barrier(8)

        def consume(number: int) -> bool:
            start.wait()
            try:
                return storage.consume_leg(own, f"daemon-{number}") is not None
            except Refused:
                return False

        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(consume, range(8))) == 1

    def test_legs_that_begin_at_once_are_one_call(self, storage: Storage) -> None:
        start = threading.Barrier(8)

        def register(number: int) -> str:
            facts = CallFacts(linkedid="17.1", uniqueid=f"17.{number}", leg="caller")
            start.wait()
            leg = storage.register_leg(new_uuid(), facts, 10)
            storage.consume_leg(leg.uuid, "daemon")
            return leg.call_id

        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(register, range(8))) == {"17.1"}
        call = storage.call("17.1")
        assert len(call.legs) == 8
        assert len({leg.segment_base for leg in call.legs}) == 8
        assert call.started_at == min(leg.started_at for leg in call.legs if leg.started_at)

    def test_a_registration_expires(self, storage: Storage, clock: Clock) -> None:
        own = new_uuid()
        storage.register_leg(own, CallFacts(call_id="c"), 10)
        clock.move(9)
        assert storage.expire_legs() == []
        clock.move(2)
        with pytest.raises(Refused, match="expired"):
            storage.consume_leg(own, "daemon")
        assert storage.expire_legs() == ["c"]
        assert storage.expire_legs() == []
        call = storage.call("c")
        assert (call.state, call.reason) == (CallState.ENDED, "no audio came")
        assert legs(storage, "c") == {"mixed": LegState.EXPIRED}
        with pytest.raises(Refused, match="expired"):
            storage.consume_leg(own, "daemon")

    def test_a_stream_that_came_in_time_is_heard_after_its_registration_was_given_up(
        self, storage: Storage, clock: Clock
    ) -> None:
        # Fault held off: after an outage the sweep was faster than the retry of the stream.
        own, late = new_uuid(), new_uuid()
        for each in (own, late):
            storage.register_leg(each, CallFacts(call_id="c"), 10)
        clock.move(9)
        came = clock.moment
        clock.move(60)
        assert storage.expire_legs() == ["c"]
        leg = storage.consume_leg(own, "daemon", came)
        assert leg is not None
        assert (leg.state, leg.started_at, leg.ended_at, leg.reason) == (
            LegState.LIVE,
            came,
            None,
            None,
        )
        call = storage.call("c")
        assert (call.state, call.ended_at, call.reason) == (CallState.LIVE, None, None)
        with pytest.raises(Refused, match="expired"):
            storage.consume_leg(late, "daemon")
        with pytest.raises(Refused, match="already"):
            storage.consume_leg(own, "daemon", came)

    def test_a_call_ended_with_its_last_leg_and_not_when_we_gave_up_waiting(
        self, storage: Storage, clock: Clock
    ) -> None:
        caller, agent = new_uuid(), new_uuid()
        for own, leg in ((caller, "caller"), (agent, "agent")):
            storage.register_leg(own, CallFacts(call_id="c", leg=leg), 10)
            storage.consume_leg(own, "daemon")
        clock.move(5)
        storage.end_leg(agent, "hangup", None)
        clock.move(2)
        storage.end_leg(caller, "hangup", None)
        last = clock.moment
        storage.register_leg(new_uuid(), CallFacts(call_id="c", leg="agent-2"), 10)
        clock.move(30)
        assert storage.expire_legs() == ["c"]
        call = storage.call("c")
        assert (call.ended_at, call.reason) == (last, "hangup")

    def test_a_call_ends_once_and_only_when_no_leg_is_left(
        self, storage: Storage, clock: Clock
    ) -> None:
        caller, agent = new_uuid(), new_uuid()
        for own, leg in ((caller, "caller"), (agent, "agent")):
            storage.register_leg(own, CallFacts(call_id="c", leg=leg), 10)
        storage.consume_leg(caller, "daemon")
        clock.move(5)
        storage.end_leg(caller, "hangup", "/captures/caller.wav")
        assert storage.end_call_if_idle("c", "hangup") is None
        storage.consume_leg(agent, "daemon")
        assert storage.end_call_if_idle("c", "hangup") is None
        clock.move(5)
        storage.end_leg(agent, "hangup", None)
        ended = storage.end_call_if_idle("c", "hangup")
        assert ended is not None
        assert (ended.duration_s, ended.reason) == (10.0, "hangup")
        assert storage.end_call_if_idle("c", "hangup") is None
        [media] = storage.capture_media("c")
        assert (media.role, media.path, media.offset_s) == ("caller", "/captures/caller.wav", 0.0)

    def test_a_leg_that_comes_after_the_end_makes_the_call_live_again(
        self, storage: Storage
    ) -> None:
        first = storage.add_unregistered_leg(new_uuid(), "daemon")
        storage.end_leg(first.uuid, "hangup", "/captures/1.wav")
        assert storage.end_call_if_idle(first.call_id, "hangup")
        second = storage.register_leg(new_uuid(), CallFacts(call_id=first.call_id), 10)
        storage.consume_leg(second.uuid, "daemon")
        assert storage.call(first.call_id).state is CallState.LIVE
        storage.end_leg(second.uuid, "hangup", "/captures/2.wav")
        assert storage.end_call_if_idle(first.call_id, "hangup")
        roles = [media.role for media in storage.capture_media(first.call_id)]
        assert roles == ["mixed", "mixed.2"]

    def test_a_leg_ends_once(self, storage: Storage) -> None:
        leg = storage.add_unregistered_leg(new_uuid(), "daemon")
        storage.end_leg(leg.uuid, "hangup", "/captures/1.wav")
        storage.end_leg(leg.uuid, "daemon_lost", None)
        assert storage.call(leg.call_id).legs[0].reason == "hangup"

    def test_an_unregistered_leg_is_a_call_of_its_own(self, storage: Storage) -> None:
        own = new_uuid()
        leg = storage.add_unregistered_leg(own, "daemon")
        assert (leg.call_id, leg.leg, leg.state) == (own, "mixed", LegState.LIVE)
        with pytest.raises(Refused) as caught:
            storage.add_unregistered_leg(own, "daemon")
        assert caught.value.code == "uuid-in-use"

    def test_a_daemon_finds_the_legs_it_left_behind(self, storage: Storage) -> None:
        mine = storage.add_unregistered_leg(new_uuid(), "one")
        ended = storage.add_unregistered_leg(new_uuid(), "one")
        storage.add_unregistered_leg(new_uuid(), "two")
        storage.end_leg(ended.uuid, "hangup", None)
        assert [leg.uuid for leg in storage.orphaned_legs("one")] == [mine.uuid]

    def test_daemons_with_live_legs_are_known_with_their_last_sign_of_life(
        self, storage: Storage, clock: Clock
    ) -> None:
        for name in ("one", "one", "two", "three"):
            leg = storage.add_unregistered_leg(new_uuid(), name)
        storage.end_leg(leg.uuid, "hangup", None)
        storage.note_daemon("one")
        storage.note_daemon("three")
        clock.move(5)
        storage.note_daemon("one")
        assert storage.live_daemons() == {"one": clock.moment, "two": None}

    def test_daemons_that_were_silent_for_a_day_are_forgotten(
        self, storage: Storage, clock: Clock
    ) -> None:
        storage.add_unregistered_leg(new_uuid(), "old")
        storage.note_daemon("old")
        clock.move(86_401)
        storage.note_daemon("new")
        assert storage.live_daemons() == {"old": None}

    def test_an_ended_leg_without_a_capture_can_be_given_one_once(self, storage: Storage) -> None:
        live = storage.add_unregistered_leg(new_uuid(), "daemon")
        leg = storage.add_unregistered_leg(new_uuid(), "daemon")
        storage.end_leg(leg.uuid, "daemon_lost", None)
        assert storage.adopt_capture(live.uuid, "/captures/1.wav") is None
        assert storage.adopt_capture(new_uuid(), "/captures/1.wav") is None
        assert storage.adopt_capture(leg.uuid, "/captures/2.wav") == leg.call_id
        assert storage.adopt_capture(leg.uuid, "/captures/3.wav") is None
        assert storage.captures_of([live.uuid, leg.uuid, new_uuid()]) == {
            live.uuid: (LegState.LIVE, None),
            leg.uuid: (LegState.ENDED, "/captures/2.wav"),
        }


class TestAliases:
    def test_an_unknown_id_is_not_found(self, storage: Storage) -> None:
        lookups: list[Callable[[str], object]] = [
            storage.call,
            storage.live_segments,
            storage.recording,
            storage.steps,
            storage.results,
        ]
        for look in lookups:
            with pytest.raises(NotFound):
                look("nobody")

    def test_calls_that_turn_out_to_be_one_are_merged(self, storage: Storage, clock: Clock) -> None:
        one = storage.register_leg(new_uuid(), CallFacts(uniqueid="17.1", leg="caller"), 10)
        storage.consume_leg(one.uuid, "daemon")
        clock.move(3)
        other = storage.register_leg(new_uuid(), CallFacts(uniqueid="17.5", leg="agent"), 10)
        storage.consume_leg(other.uuid, "daemon")
        assert storage.call("17.5").call_id == "17.5"
        storage.add_live_segment("17.1", segment(one.segment_base))
        storage.add_live_segment("17.5", segment(other.segment_base, "agent"))
        facts = CallFacts(linkedid="17.1", uniqueid="17.5", agent="Ada")
        third = storage.register_leg(new_uuid(), facts, 10)
        assert third.call_id == "17.1"
        call = storage.call("17.5")
        assert call.call_id == "17.1"
        assert call.facts.agent == "Ada"
        assert sorted(leg.offset_s for leg in call.legs) == [0.0, 0.0, 3.0]
        words = {each.leg: each.words[0].s for each in storage.live_segments(other.uuid)}
        assert words == {"caller": 1.25, "agent": 4.25}
        assert storage.add_live_segment("17.5", segment(other.segment_base + 1, "agent"))
        assert len(storage.live_segments("17.1")) == 3


class TestLiveWords:
    def test_a_final_is_stored_once_and_comes_back_whole(self, storage: Storage) -> None:
        leg = storage.add_unregistered_leg(new_uuid(), "daemon")
        late, early = segment(leg.segment_base + 1, start=9.0), segment(leg.segment_base)
        assert storage.add_live_segment(leg.call_id, late)
        assert storage.add_live_segment(leg.call_id, early)
        assert not storage.add_live_segment(leg.call_id, early)
        assert storage.live_segments(leg.call_id) == [early, late]

    def test_blocks_of_segment_numbers_never_overlap(self, storage: Storage) -> None:
        with ThreadPoolExecutor(8) as pool:
            bases = sorted(pool.map(storage.take_segment_block, ["c"] * 40))
        gaps = [after - before for before, after in itertools.pairwise(bases)]
        assert min(gaps) >= 100_000


class TestPages:
    def test_pages_hold_each_call_once_newest_first(self, storage: Storage, clock: Clock) -> None:
        for number in range(7):
            storage.register_leg(new_uuid(), CallFacts(call_id=f"c{number}"), 10)
            clock.move(number % 2)  # pairs begin at the same instant
        seen, cursor = [], None
        while True:
            page, cursor = storage.calls(cursor, 2)
            seen += [call.call_id for call in page]
            if cursor is None:
                break
        assert sorted(seen) == [f"c{number}" for number in range(7)]
        starts = [storage.call(call_id).started_at for call_id in seen]
        assert starts == sorted(starts, reverse=True)

    @pytest.mark.parametrize("cursor", ["x", "%%%", "AAAA", "é", "MjAyNg"])
    def test_a_cursor_of_nobody_is_refused(self, storage: Storage, cursor: str) -> None:
        with pytest.raises(Refused) as caught:
            storage.calls(cursor, 10)
        assert caught.value.field == "before"


class TestTransactions:
    def test_what_fails_leaves_nothing(self, storage: Storage) -> None:
        def half() -> None:
            with storage.database.transaction():
                storage.register_leg(new_uuid(), CallFacts(call_id="c"), 10)
                storage.database.run(tables.CallAlias.insert(known_as="c", call="c"))

        with pytest.raises(peewee.IntegrityError):
            half()
        with pytest.raises(NotFound):
            storage.call("c")

    def test_writers_of_many_threads_wait_for_each_other(self, storage: Storage) -> None:
        def write(number: int) -> bool:
            leg = storage.add_unregistered_leg(new_uuid(), "daemon")
            return storage.add_live_segment(leg.call_id, segment(leg.segment_base + number))

        with ThreadPoolExecutor(16) as pool:
            assert all(pool.map(write, range(64)))
        assert len(storage.live_calls()) == 64

    @pytest.mark.postgres
    def test_a_restarted_server_is_connected_to_again(self, clock: Clock) -> None:
        server = shared()
        url = server.create_database()
        storage = Storage(url, clock=clock)
        storage.migrate()
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: storage.add_unregistered_leg(new_uuid(), "d"), range(8)))
        server.disconnect(url)
        assert len(storage.live_calls()) == 8
        server.disconnect(url)
        storage.add_unregistered_leg(new_uuid(), "d")
        storage.close()
        server.drop_database(url)
