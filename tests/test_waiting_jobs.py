"""The order in which jobs wait: urgency, batches, many jobs."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from callcore.decode_jobs import Job, Kind
from callcore.decode_lane import Lane
from callcore.engines import BUCKETS_S, LIVE_RATE
from callcore.waiting_jobs import WaitingJobs
from tests.support.recognition import Clock, FakeInference


class FakeLeg:
    def __init__(self, lane: Lane) -> None:
        self.lane = lane


LANES = [Lane(name, 1, FakeInference(), Clock()) for name in ("live", "live_multilingual")]


def make_job(kind: Kind, due: float, seconds: float = 1.0, lane: int = 0) -> Job:
    leg: Any = FakeLeg(LANES[lane])
    return Job(leg, kind, 0, 0, round(seconds * LIVE_RATE), 0, since=due, due=due)


def take(jobs: WaitingJobs, most: int = 4, lane: int = 0) -> list[Job]:
    return jobs.take(LANES[lane], most, lambda batch, job: True)


def waiting(*jobs: Job) -> WaitingJobs:
    made = WaitingJobs()
    for job in jobs:
        made.add(job)
    return made


def test_a_batch_is_of_one_bucket_and_begins_with_the_most_urgent():
    late, early, long = (
        make_job(Kind.FINAL, 3.0),
        make_job(Kind.FINAL, 2.0),
        make_job(Kind.FINAL, 1.0, 7.0),
    )
    jobs = waiting(late, early, long)
    assert take(jobs) == [long]
    assert take(jobs) == [early, late]
    assert take(jobs) == []


def test_partials_fill_free_slots():
    partials = [make_job(Kind.PARTIAL, float(due)) for due in range(5)]
    final = make_job(Kind.FINAL, 9.0)
    jobs = waiting(*partials, final)
    assert take(jobs) == [final, *partials[:3]]


def test_partials_make_no_final_of_another_length_wait_longer():
    first, second = make_job(Kind.FINAL, 1.0), make_job(Kind.FINAL, 2.0, 7.0)
    partial = make_job(Kind.PARTIAL, 0.0)
    jobs = waiting(partial, first, second)
    assert take(jobs) == [first]
    assert take(jobs) == [second]
    assert take(jobs) == [partial]


def test_a_speculation_that_became_a_final_has_the_place_of_one():
    partial, speculation = make_job(Kind.PARTIAL, 0.0), make_job(Kind.SPECULATIVE, 5.0)
    other = make_job(Kind.SPECULATIVE, 1.0)
    jobs = waiting(partial, speculation, other)
    speculation.kind, speculation.due = Kind.FINAL, 9.0
    assert take(jobs) == [speculation, other, partial]


def test_each_engine_has_jobs_of_its_own():
    own, foreign = make_job(Kind.PARTIAL, 1.0), make_job(Kind.FINAL, 1.0, lane=1)
    jobs = waiting(own, foreign)
    assert take(jobs) == [own]
    assert take(jobs, lane=1) == [foreign]


def test_what_may_not_begin_yet_keeps_its_place():
    jobs = waiting(*(made := [make_job(Kind.FINAL, float(due)) for due in range(6)]))
    assert jobs.take(LANES[0], 2, lambda batch, job: job.due >= 3) == made[3:5]
    assert take(jobs, 6) == [*made[:3], made[5]]


def test_partials_that_are_replaced_for_ever_take_no_room():
    jobs = waiting(*(make_job(Kind.FINAL, float(due)) for due in range(10)))
    for due in range(5000):
        partial = make_job(Kind.PARTIAL, float(due))
        jobs.add(partial)
        jobs.discard(partial)
    assert jobs._num_entries == sum(map(len, jobs._heaps.values())) < 200
    assert len(jobs) == len(list(jobs)) == 10


change = st.tuples(
    st.sampled_from(["add", "withdraw", "move", "take"]),
    st.integers(0, 30),
    st.sampled_from(list(Kind)),
    st.integers(0, 9),
    st.sampled_from(BUCKETS_S),
)


@given(st.lists(change, max_size=60))
def test_the_heaps_say_what_sorting_says(changes: list[tuple[str, int, Kind, int, float]]) -> None:
    jobs, model = WaitingJobs(), dict[int, Job]()
    for what, number, kind, due, bucket in changes:
        job = model.get(number)
        if what == "add" and job is None:
            model[number] = make_job(kind, float(due), bucket)
            jobs.add(model[number])
        elif what == "withdraw" and job is not None:
            jobs.discard(model.pop(number))
        elif what == "move" and job is not None:
            # A leg gives a deadline later than when it queued the job, or makes it a final.
            job.due += due
            if job.kind is Kind.SPECULATIVE:
                job.kind = Kind.FINAL
        elif what == "take":
            batch = take(jobs)
            orders = [job.order for job in batch]
            assert orders == sorted(orders)
            assert len({job.bucket_s for job in batch}) <= 1
            left = [job for job in model.values() if job not in batch]
            if model:
                assert batch[0].order == min(job.order for job in model.values())
                rivals = [j for j in left if j.bucket_s == batch[0].bucket_s]
                assert all(orders[-1] <= job.order for job in rivals)
                assert not rivals or len(batch) == 4 or min(j.kind for j in left) < rivals[0].kind
            model = {number: job for number, job in model.items() if job not in batch}
        assert set(jobs) == set(model.values())
        assert all((job in jobs) for job in model.values())


def test_a_look_for_a_batch_takes_no_longer_the_more_wait():
    jobs = waiting(*(make_job(Kind.FINAL, float(due)) for due in range(5000)))
    asked: list[Job] = []

    def may_join(batch: list[Job], job: Job) -> bool:
        asked.append(job)
        return False

    assert jobs.take(LANES[0], 4, may_join) == []
    assert len(asked) <= 100
    assert len(jobs) == 5000
    oldest = jobs.first(LANES[0], Kind.FINAL)
    assert oldest is not None
    assert oldest.due == 0.0
    assert jobs.first(LANES[0], Kind.PARTIAL) is jobs.first(LANES[1], Kind.FINAL) is None
