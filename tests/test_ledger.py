"""The ledger on both databases: one owner, one finish, nothing lost."""

import itertools
import multiprocessing
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import pytest

from callcore.calls import SETTLE, CallFacts, StepState
from callcore.errors import Fenced
from callcore.ledger import RESEND_S, Claim, Ledger
from callcore.storage import Storage, recording_rows
from tests.support.databases import Clock, clock, database_url, storage

__all__ = ["clock", "database_url", "storage"]

#: a and b side by side, c needs both, d needs c.
NEEDS = {
    SETTLE: (),
    "a": (SETTLE,),
    "b": (SETTLE,),
    "c": (SETTLE, "a", "b"),
    "d": (SETTLE, "c"),
}
STEPS = ("a", "b", "c", "d")
ALL = (SETTLE, *STEPS)


@pytest.fixture
def ledger(storage: Storage) -> Ledger:
    return Ledger(storage, lease_s=30, max_attempts=3, jitter=lambda: 1.0)


def add_recording(storage: Storage, ledger: Ledger, wait_s: float = 0.0) -> str:
    said = recording_rows.Report(None, CallFacts(), "spool", (), ())
    with storage.database.transaction():
        reported = recording_rows.report(storage.database, said, storage.clock())
        ledger.enqueue(reported.audio_id, STEPS, wait_s)
    return reported.audio_id


def states(storage: Storage, audio_id: str) -> dict[str, str]:
    return {step.name: str(step.status) for step in storage.steps(audio_id)}


def must_claim(ledger: Ledger, audio_id: str, step: str) -> Claim:
    claim = ledger.claim(audio_id, step)
    assert claim is not None
    return claim


def finish(ledger: Ledger, audio_id: str, step: str) -> tuple[str, ...]:
    claim = must_claim(ledger, audio_id, step)
    return ledger.finish(claim, {"made": step}, NEEDS).released


class TestAfter:
    """``c`` comes after ``b`` whatever becomes of it; it needs only ``a``."""

    NEEDS: ClassVar = {
        SETTLE: (),
        "a": (SETTLE,),
        "b": (SETTLE, "a"),
        "c": (SETTLE, "a"),
        "d": (),
    }

    @pytest.fixture
    def ledger(self, storage: Storage) -> Ledger:
        return Ledger(storage, max_attempts=1, after={"c": ("b", "unknown"), "d": ("c",)})

    def test_a_step_waits_until_those_before_it_are_over(
        self, storage: Storage, ledger: Ledger
    ) -> None:
        audio_id = add_recording(storage, ledger)
        released = [
            ledger.finish(must_claim(ledger, audio_id, step), {}, self.NEEDS).released
            for step in (SETTLE, "a", "b", "c")
        ]
        assert released == [("a",), ("b",), ("c",), ("d",)]

    def test_a_step_that_failed_before_it_does_not_keep_it(
        self, storage: Storage, ledger: Ledger
    ) -> None:
        audio_id = add_recording(storage, ledger)
        for step in (SETTLE, "a"):
            ledger.finish(must_claim(ledger, audio_id, step), {}, self.NEEDS)
        claim = must_claim(ledger, audio_id, "b")
        assert ledger.fail(claim, "it broke", self.NEEDS).released == ("c",)

    def test_one_that_was_skipped_before_it_does_not_keep_it(
        self, storage: Storage, ledger: Ledger
    ) -> None:
        audio_id = add_recording(storage, ledger)
        ledger.finish(must_claim(ledger, audio_id, SETTLE), {}, self.NEEDS)
        claim = must_claim(ledger, audio_id, "a")
        assert ledger.fail(claim, "it broke", self.NEEDS).released == ("d",)
        assert states(storage, audio_id)["c"] == "skipped"


class TestClaims:
    def test_threads_that_claim_the_same_step_claim_it_once(
        self, storage: Storage, ledger: Ledger
    ) -> None:
        audio_id = add_recording(storage, ledger)
        start = threading.Barrier(12)

        def claim(_: int) -> bool:
            start.wait()
            return ledger.claim(audio_id, SETTLE) is not None

        with ThreadPoolExecutor(12) as pool:
            assert sum(pool.map(claim, range(12))) == 1

    def test_processes_that_claim_the_same_steps_claim_each_once(
        self, storage: Storage, ledger: Ledger, database_url: str
    ) -> None:
        recordings = [add_recording(storage, ledger) for _ in range(20)]
        context = multiprocessing.get_context("spawn")
        with context.Pool(3) as pool:
            taken = pool.starmap(claim_all, [(database_url, recordings)] * 3)
        assert sorted(itertools.chain.from_iterable(taken)) == sorted(recordings)

    def test_a_step_is_not_claimed_before_it_is_due(
        self, storage: Storage, ledger: Ledger, clock: Clock
    ) -> None:
        audio_id = add_recording(storage, ledger, wait_s=60)
        assert ledger.claim(audio_id, SETTLE) is None
        assert ledger.claim(audio_id, "a") is None
        assert ledger.due(ALL, 10) == []
        clock.move(61)
        assert ledger.due(ALL, 10) == [(audio_id, SETTLE)]
        assert must_claim(ledger, audio_id, SETTLE).attempt == 1


def claim_all(database_url: str, recordings: list[str]) -> list[str]:
    """Runs in a process of its own."""
    from tests.support.databases import Clock

    storage = Storage(database_url, clock=Clock())
    ledger = Ledger(storage)
    taken = [each for each in recordings if ledger.claim(each, SETTLE)]
    storage.close()
    return taken


class TestLeases:
    def test_the_step_of_a_dead_worker_is_taken_over(
        self, storage: Storage, ledger: Ledger, clock: Clock
    ) -> None:
        audio_id = add_recording(storage, ledger)
        dead = must_claim(ledger, audio_id, SETTLE)
        clock.move(29)
        assert ledger.claim(audio_id, SETTLE) is None
        clock.move(2)
        assert ledger.due(ALL, 10) == [(audio_id, SETTLE)]
        heir = must_claim(ledger, audio_id, SETTLE)
        assert heir.attempt == 2
        assert heir.owner != dead.owner

    def test_a_renewed_lease_holds(self, storage: Storage, ledger: Ledger, clock: Clock) -> None:
        audio_id = add_recording(storage, ledger)
        claim = must_claim(ledger, audio_id, SETTLE)
        for _ in range(5):
            clock.move(20)
            assert ledger.renew(claim, 0.25)
        assert ledger.claim(audio_id, SETTLE) is None
        [settle, *_] = storage.steps(audio_id)
        assert settle.progress == 0.25

    def test_who_lost_the_lease_stores_nothing(
        self, storage: Storage, ledger: Ledger, clock: Clock
    ) -> None:
        audio_id = add_recording(storage, ledger)
        finish(ledger, audio_id, SETTLE)
        late = must_claim(ledger, audio_id, "a")
        clock.move(31)
        heir = must_claim(ledger, audio_id, "a")
        assert not ledger.renew(late)
        with pytest.raises(Fenced):
            ledger.finish(late, {"made": "too late"}, NEEDS)
        with pytest.raises(Fenced):
            ledger.fail(late, "too late", NEEDS)
        with pytest.raises(Fenced):
            ledger.postpone(late, 5)
        assert "a" not in storage.results(audio_id)
        ledger.finish(heir, {"made": "in time"}, NEEDS)
        assert storage.results(audio_id)["a"] == {"made": "in time"}
        with pytest.raises(Fenced):
            ledger.finish(heir, {"made": "twice"}, NEEDS)

    def test_what_a_fenced_owner_did_in_the_same_transaction_is_rolled_back(
        self, storage: Storage, ledger: Ledger, clock: Clock
    ) -> None:
        audio_id = add_recording(storage, ledger)
        late = must_claim(ledger, audio_id, SETTLE)
        clock.move(31)
        must_claim(ledger, audio_id, SETTLE)

        def store_late() -> None:
            with storage.database.transaction():
                state = recording_rows.RecordingState.REFUSED
                recording_rows.set_state(storage.database, audio_id, state, "late")
                ledger.finish(late, None, NEEDS)

        with pytest.raises(Fenced):
            store_late()
        assert storage.recording(audio_id).reason is None


class TestOrder:
    def test_steps_are_released_when_all_they_need_is_done(
        self, storage: Storage, ledger: Ledger
    ) -> None:
        audio_id = add_recording(storage, ledger)
        assert sorted(finish(ledger, audio_id, SETTLE)) == ["a", "b"]
        assert finish(ledger, audio_id, "a") == ()
        assert ledger.claim(audio_id, "c") is None
        assert finish(ledger, audio_id, "b") == ("c",)
        assert finish(ledger, audio_id, "c") == ("d",)
        claim = must_claim(ledger, audio_id, "d")
        assert ledger.finish(claim, {}, NEEDS).over
        assert set(states(storage, audio_id).values()) == {"done"}
        assert ledger.due(ALL, 10) == []

    def test_two_steps_that_finish_at_once_release_the_one_that_needs_both(
        self, storage: Storage, ledger: Ledger
    ) -> None:
        for _ in range(10):
            audio_id = add_recording(storage, ledger)
            finish(ledger, audio_id, SETTLE)
            claims = [must_claim(ledger, audio_id, step) for step in ("a", "b")]
            start = threading.Barrier(2)

            def end(claim: Claim, start: threading.Barrier = start) -> tuple[str, ...]:
                start.wait()
                return ledger.finish(claim, {}, NEEDS).released

            with ThreadPoolExecutor(2) as pool:
                released = [step for each in pool.map(end, claims) for step in each]
            assert released == ["c"]

    def test_steps_run_again_when_their_input_changed(
        self, storage: Storage, ledger: Ledger
    ) -> None:
        audio_id = add_recording(storage, ledger)
        for step in (SETTLE, "a", "b"):
            finish(ledger, audio_id, step)
        running = must_claim(ledger, audio_id, "c")
        ledger.restart(audio_id, [SETTLE])
        claim = must_claim(ledger, audio_id, SETTLE)
        outcome = ledger.finish(claim, None, NEEDS, restart=True)
        assert sorted(outcome.released) == ["a", "b"]
        assert states(storage, audio_id)["c"] == "pending"
        with pytest.raises(Fenced):
            ledger.finish(running, {}, NEEDS)


class TestFailures:
    def test_a_failed_try_is_repeated_later_and_later(
        self, storage: Storage, ledger: Ledger, clock: Clock
    ) -> None:
        audio_id = add_recording(storage, ledger)
        for attempt, wait_s in ((1, 2.0), (2, 4.0)):
            claim = must_claim(ledger, audio_id, SETTLE)
            assert claim.attempt == attempt
            assert ledger.fail(claim, "broken pipe", NEEDS).state is StepState.PENDING
            clock.move(wait_s - 0.1)
            assert ledger.claim(audio_id, SETTLE) is None
            clock.move(0.2)
        outcome = ledger.fail(must_claim(ledger, audio_id, SETTLE), "broken pipe", NEEDS)
        assert outcome.state is StepState.FAILED
        assert outcome.over
        assert states(storage, audio_id) == {
            SETTLE: "failed",
            "a": "skipped",
            "b": "skipped",
            "c": "skipped",
            "d": "skipped",
        }
        [settle, a, *_] = storage.steps(audio_id)
        assert (settle.error, settle.attempts) == ("broken pipe", 3)
        assert a.error == "settle failed"

    def test_a_failed_step_takes_along_what_needs_it_and_nothing_else(
        self, storage: Storage, ledger: Ledger
    ) -> None:
        audio_id = add_recording(storage, ledger)
        finish(ledger, audio_id, SETTLE)
        claim = must_claim(ledger, audio_id, "a")
        assert not ledger.fail(claim, "never readable", NEEDS, final=True).over
        outcome = ledger.finish(must_claim(ledger, audio_id, "b"), {}, NEEDS)
        assert outcome.over
        assert states(storage, audio_id) == {
            SETTLE: "done",
            "a": "failed",
            "b": "done",
            "c": "skipped",
            "d": "skipped",
        }

    def test_what_is_not_ready_yet_is_no_failed_try(
        self, storage: Storage, ledger: Ledger, clock: Clock
    ) -> None:
        audio_id = add_recording(storage, ledger)
        for _ in range(10):
            claim = must_claim(ledger, audio_id, SETTLE)
            assert claim.attempt == 1
            ledger.postpone(claim, 5, "the file is still changing")
            assert ledger.claim(audio_id, SETTLE) is None
            clock.move(5)
        assert storage.steps(audio_id)[0].error == "the file is still changing"


class TestSweep:
    def test_a_step_that_nobody_took_is_told_again_and_again(
        self, storage: Storage, ledger: Ledger, clock: Clock
    ) -> None:
        audio_id = add_recording(storage, ledger)
        assert ledger.due(ALL, 10) == []  # who enqueued it has told a worker
        for _ in range(3):
            clock.move(RESEND_S)
            assert ledger.due(ALL, 10) == [(audio_id, SETTLE)]
            assert ledger.due(ALL, 10) == []

    def test_sweeps_that_run_at_once_tell_of_each_step_once(
        self, storage: Storage, ledger: Ledger, clock: Clock
    ) -> None:
        recordings = [add_recording(storage, ledger) for _ in range(30)]
        clock.move(RESEND_S)
        with ThreadPoolExecutor(4) as pool:
            answers = pool.map(lambda _: ledger.due(ALL, 100), range(4))
            told = list(itertools.chain.from_iterable(answers))
        assert sorted(told) == sorted((each, SETTLE) for each in recordings)

    def test_the_oldest_come_first_and_no_more_than_asked_for(
        self, storage: Storage, ledger: Ledger, clock: Clock
    ) -> None:
        first = add_recording(storage, ledger)
        clock.move(1)
        add_recording(storage, ledger)
        clock.move(RESEND_S)
        assert ledger.due(ALL, 1) == [(first, SETTLE)]
        assert ledger.due(ALL, 0) == []

    def test_a_step_whose_worker_died_is_told_of_when_its_lease_ends_however_busy_the_queue_is(
        self, storage: Storage, ledger: Ledger, clock: Clock
    ) -> None:
        waiting = add_recording(storage, ledger)
        clock.move(1)
        audio_id = add_recording(storage, ledger)
        assert ledger.claim(audio_id, SETTLE)
        clock.move(ledger.lease_s)
        long_s = ledger.lease_s + 60  # as while messages wait in the queue
        assert ledger.due(ALL, 9, resend_s=long_s) == [(audio_id, SETTLE)]
        assert ledger.due(ALL, 9, resend_s=long_s) == []
        assert ledger.claim(waiting, SETTLE)

    def test_what_was_told_lately_comes_after_what_was_not(
        self, storage: Storage, ledger: Ledger, clock: Clock
    ) -> None:
        first = add_recording(storage, ledger)
        clock.move(RESEND_S)
        assert ledger.due(ALL, 1) == [(first, SETTLE)]
        late = add_recording(storage, ledger, wait_s=1.0)  # nobody has been told
        clock.move(RESEND_S)
        assert ledger.due(ALL, 1) == [(late, SETTLE)]
        assert ledger.due(ALL, 1) == [(first, SETTLE)]
        clock.move(RESEND_S)
        assert ledger.due(STEPS, 9) == []
        assert ledger.due(ALL, 9, resend_s=RESEND_S + 1) == []
