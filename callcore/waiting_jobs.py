"""The order in which jobs wait for the engines, however many there are."""

import itertools
from collections.abc import Callable, Iterator
from heapq import heappop, heappush
from typing import NamedTuple

from callcore.decode_jobs import Job, Kind
from callcore.decode_lane import Lane
from callcore.engines import BUCKETS_S

#: Jobs that may not begin yet and are passed over in search of a batch: a look must not take longer
#: the more wait.
_MOST_PASSED = 64


class _Entry(NamedTuple):
    """A place in a heap; it counts as long as it is its job's newest."""

    kind: int
    due: float
    turn: int
    """In the order of arrival, where kind and due are the same."""
    job: Job


class WaitingJobs:
    """Jobs in the order in which engines should serve them.

    A heap for each engine, kind and bucket. A job that is withdrawn, or whose order changes, leaves
    its old entry behind, which is dropped when it comes up: nothing is searched or sorted, however
    many jobs wait.
    """

    def __init__(self) -> None:
        self._newest: dict[Job, _Entry] = {}
        self._heaps: dict[tuple[Lane, int, float], list[_Entry]] = {}
        self._speculations: dict[Job, None] = {}
        self._turns = itertools.count()
        self._num_entries = 0

    def __len__(self) -> int:
        return len(self._newest)

    def __iter__(self) -> Iterator[Job]:
        """Yield the jobs, oldest first."""
        return iter(self._newest)

    def __contains__(self, job: Job) -> bool:
        return job in self._newest

    def add(self, job: Job) -> None:
        """Take a job in; one that is there already gets its present place."""
        entry = self._newest[job] = _Entry(*job.order, next(self._turns), job)
        self._push(entry)
        if job.kind is Kind.SPECULATIVE:
            self._speculations[job] = None
        if self._num_entries > 2 * len(self._newest) + 64:
            self._drop_old_entries()

    def discard(self, job: Job) -> None:
        """Take a job out if it is there."""
        self._newest.pop(job, None)
        self._speculations.pop(job, None)

    def take(self, lane: Lane, most: int, may_join: Callable[[list[Job], Job], bool]) -> list[Job]:
        """Take out the most urgent jobs of an engine that are decoded together.

        Args:
            lane: The engine.
            most: Number of jobs at most.
            may_join: Is asked in order of urgency whether a job goes with those before it. Those
                that may not keep their places.

        Returns:
            Jobs of one bucket.
        """
        self._move_new_finals()
        batch: list[Job] = []
        passed: list[_Entry] = []
        try:
            while len(batch) < most and len(passed) < _MOST_PASSED:
                entry = self._pop(lane, batch)
                if entry is None:
                    break
                if may_join(batch, entry.job):
                    self.discard(entry.job)
                    batch.append(entry.job)
                else:
                    passed.append(entry)
        finally:
            for entry in passed:
                self._push(entry)
        return batch

    def first(self, lane: Lane, kind: Kind) -> Job | None:
        """Return the most urgent job of an engine and kind; of finals it is the oldest."""
        self._move_new_finals()
        heads = [heap[0] for heap in self._heaps_of(lane, kind)]
        return min(heads).job if heads else None

    def of(self, lane: Lane, kind: Kind) -> list[Job]:
        """Return all jobs of an engine and kind."""
        self._move_new_finals()
        entries = [entry for heap in self._heaps_of(lane, kind) for entry in heap]
        return [entry.job for entry in entries if self._newest.get(entry.job) is entry]

    def _move_new_finals(self) -> None:
        for job in [job for job in self._speculations if job.kind is not Kind.SPECULATIVE]:
            del self._speculations[job]
            self.add(job)

    def _heaps_of(self, lane: Lane, kind: Kind) -> list[list[_Entry]]:
        """Return the heaps that have an entry; their first one counts."""
        heaps = [heap for each in BUCKETS_S if (heap := self._heaps.get((lane, kind, each)))]
        return [heap for heap in heaps if self._trim(heap)]

    def _pop(self, lane: Lane, batch: list[Job]) -> _Entry | None:
        """Return the most urgent entry of an engine; with a batch, only what goes with it."""
        # What is less urgent fills free slots only if nothing that is more so waits for the batch
        # to be over.
        heaps = next((heaps for kind in Kind if (heaps := self._heaps_of(lane, kind))), [])
        if batch:
            heaps = [heap for heap in heaps if heap[0].job.bucket_s == batch[0].bucket_s]
        if not heaps:
            return None
        self._num_entries -= 1
        return heappop(min(heaps))

    def _trim(self, heap: list[_Entry]) -> bool:
        """Drop entries that do not count until one does; return whether there is one."""
        while heap:
            entry = heap[0]
            counts = self._newest.get(entry.job) is entry
            if counts and entry.job.order == entry[:2]:
                return True
            heappop(heap)
            self._num_entries -= 1
            if counts:
                self.add(entry.job)
        return False

    def _push(self, entry: _Entry) -> None:
        key = entry.job.leg.lane, entry.kind, entry.job.bucket_s
        heappush(self._heaps.setdefault(key, []), entry)
        self._num_entries += 1

    def _drop_old_entries(self) -> None:
        for heap in self._heaps.values():
            heap.clear()
        self._num_entries = 0
        for entry in self._newest.values():
            self._push(entry)
