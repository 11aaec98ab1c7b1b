"""Live legs on disk, written by one thread.

The event loop only appends to a queue; the thread writes what is there four times a second, some
legs at a time: a thousand in one go would hold the loop up for 50 ms. A sample keeps its absolute
index: sample i of the leg is sample i of the file, whatever was lost before it. Silence is a hole
in the file, so a muted hour takes no room on disk.

A killed process leaves a file whose header says 0 bytes: ``audio.repair_wav`` makes it whole, up
to a quarter of a second before the end.
"""

import asyncio
import itertools
import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np

from callcore.audio import WAV_HEADER_BYTES, wav_header

logger = logging.getLogger(__name__)

#: Seconds between two rounds of the writer: what a kill can cost, against 4 writes a second a leg.
_ROUND_S = 0.25
#: Parts of a round; each takes its share of the legs.
_TURNS = 8

#: Audio that waits for a slow disk, in bytes a leg: 64 s at 8 kHz. What comes on top is lost and
#: reported; memory is not what a broken disk may take.
MAX_QUEUED_BYTES = 1 << 20

#: Called from the writer thread or the event loop: first lost sample, sample after, reason.
LossReport = Callable[[int, int, str], None]


class Capture:
    """Writes all live legs of a daemon.

    Args:
        folder: Where the folder ``capture`` is made.
        max_queued_bytes: Audio a leg may have waiting for the disk.
    """

    def __init__(self, folder: Path, *, max_queued_bytes: int = MAX_QUEUED_BYTES) -> None:
        self._folder = folder / "capture"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._max_queued_bytes = max_queued_bytes
        self._legs: set[LegCapture] = set()
        self._turns = itertools.cycle(range(_TURNS))
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="capture", daemon=True)
        self._thread.start()

    def path_of(self, leg_uuid: str) -> Path:
        """Return where the leg of that UUID is, or was, written."""
        return self._folder / f"{leg_uuid}.wav"

    def remove(self, leg_uuid: str) -> None:
        """Delete what was written of a leg that is not open here; blocks."""
        for path in self._folder.glob(f"{leg_uuid}*.wav"):
            path.unlink(missing_ok=True)

    def files(self) -> list[Path]:
        """Return what is on disk, of all daemons that share the folder; blocks."""
        return sorted(self._folder.glob("*.wav"))

    def open_leg(self, leg_uuid: str, rate: int, *, lost: LossReport | None = None) -> "LegCapture":
        """Return the file of a new leg; nothing is on disk before the next round.

        Args:
            leg_uuid: Names the file.
            rate: Hz of what will be written.
            lost: Told of every span that the file does not hold.
        """
        leg = LegCapture(self, self.path_of(leg_uuid), rate, lost)
        leg.turn = next(self._turns)
        self._legs.add(leg)
        if self._stopping:  # nobody would write it: close() must not wait for that
            leg.closed.set()
        return leg

    def close(self) -> None:
        """Write and close what is open, then end the thread; again does nothing."""
        self._stopping = True
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        turns = itertools.cycle(range(_TURNS))
        while not self._stopping:
            self._wake.wait(_ROUND_S / _TURNS)
            self._wake.clear()
            self._do_turn(next(turns))
        for leg in tuple(self._legs):
            leg.closing = True
            self._work(leg)

    def _do_turn(self, turn: int) -> None:
        for leg in tuple(self._legs):
            if leg.turn == turn or leg.closing:
                self._work(leg)

    def _work(self, leg: "LegCapture") -> None:
        try:
            leg.drain()
            if not leg.closing:
                return
            leg.seal()
        except Exception:
            # One leg's file must not end the thread that writes all others.
            logger.exception("capture of a leg failed", extra=leg.ids)
            if not leg.closing:
                return
        self._legs.discard(leg)
        leg.closed.set()

    def wake(self) -> None:
        """Seal now the legs that are closing."""
        self._wake.set()


class LegCapture:
    """The file of one leg; made by ``Capture.open_leg``."""

    def __init__(self, capture: Capture, path: Path, rate: int, lost: LossReport | None) -> None:
        self.path = path
        """Where the audio is; final once ``close`` has returned."""
        self.ids = {"leg_uuid": path.stem}
        self.closing = False
        self.turn = 0
        """The part of a round that writes it."""
        self.closed = threading.Event()
        self._capture = capture
        self._rate = rate
        self._lost = lost
        self._max_queued_bytes = capture._max_queued_bytes
        # bytes are samples, an int is a number of samples that are silent or lost; None: what came
        # before is to be thrown away.
        self._queue: deque[bytes | int | None] = deque()
        self._restarts = 0  # asked for: written by the event loop only
        self._restarted = 0  # done, under the lock
        self._queued = 0  # bytes ever queued: written by the event loop only
        self._done = 0  # bytes ever taken from the queue: written under the lock only
        self._received = 0  # samples, event loop only
        self._lock = threading.Lock()
        self._fd = -1
        self._written = 0  # samples that have their place in the file, under the lock
        self._rest = b""  # taken from the queue, refused by the disk; under the lock
        self._failing = False
        self._discarded = False
        self._sealed = False
        self._dropping_from: int | None = None
        self._silent = 0  # samples of silence queued since then

    def write(self, samples: bytes) -> None:
        """Queue int16 samples; never blocks. Too much for the disk is dropped and reported."""
        num_bytes = len(samples)
        if self._queued - self._done + num_bytes > self._max_queued_bytes:
            self._drop(num_bytes >> 1)
            return
        if self._dropping_from is not None:
            self._report_dropped()
        self._queued += num_bytes
        self._received += num_bytes >> 1
        self._queue.append(samples)

    def write_silence(self, num_samples: int) -> None:
        """Queue silence; never blocks and takes no memory."""
        self._received += num_samples
        self._silent += num_samples
        self._queue.append(num_samples)

    def restart(self) -> None:
        """Throw away what was written: the next sample is sample 0. Never blocks."""
        self._dropping_from = None
        self._received = 0
        self._restarts += 1
        self._queue.append(None)

    async def close(self) -> None:
        """Write what is queued, patch the header, sync the file to the disk."""
        if self._dropping_from is not None:
            self._report_dropped()
        self.closing = True
        self._capture.wake()
        await asyncio.to_thread(self.closed.wait)

    def discard(self) -> None:
        """Forget the leg and remove its file, if there is one yet."""
        self._discarded = True
        self._lost = None
        self.closing = True
        self._capture.wake()

    def read(self, start: int, end: int) -> np.ndarray:
        """Return samples by their absolute index; blocks, so call it off the event loop.

        What was lost reads as zeros.

        Returns:
            Shape (end - start,), int16.

        Raises:
            LookupError: If a sample of the span was not written yet.
            OSError: If the file cannot be read.
        """
        if not self._fits(start, end):
            self.drain()
        with self._lock:
            if not self._fits(start, end):
                raise LookupError(f"samples {start} to {end} are not captured yet")
            samples = np.zeros(end - start, "<i2")
            with open(self.path, "rb") as file:
                file.seek(WAV_HEADER_BYTES + 2 * start)
                held = file.read(2 * len(samples))
        samples[: len(held) >> 1] = np.frombuffer(held, "<i2")
        return samples

    def drain(self) -> None:
        """Write what is queued; for the writer thread and ``read``."""
        with self._lock:
            if self._discarded or self._sealed:
                return
            try:
                self._write_queue()
            except OSError as error:
                # A full disk may have room again: the queue holds what it can until then.
                if not self._failing:
                    logger.warning(
                        "capture cannot be written", extra={**self.ids, "error": error.strerror}
                    )
                self._failing = True
            else:
                self._failing = False

    def seal(self) -> None:
        """Patch the header, sync and close; for the writer thread."""
        with self._lock:
            if self._discarded:
                if self._fd >= 0:
                    os.close(self._fd)
                    self.path.unlink(missing_ok=True)
                return
            try:
                self._seal()
            finally:
                self._sealed = True
                if self._fd >= 0:
                    os.close(self._fd)
                self._give_up()
                self._lost = None  # the leg's, whose memory must not wait for a collector

    def _fits(self, start: int, end: int) -> bool:
        is_current = self._restarted == self._restarts
        return is_current and 0 <= start <= end <= self._written and self.path.exists()

    def _drop(self, num_samples: int) -> None:
        if self._dropping_from is None:
            self._dropping_from = self._received
            self._silent = 0
            logger.warning("the disk is too slow for capture, audio is lost", extra=self.ids)
        self._received += num_samples

    def _report_dropped(self) -> None:
        start, self._dropping_from = self._dropping_from, None
        if start is None:
            return
        # The gap keeps its place in the file, so that every later sample keeps its index.
        self._queue.append(self._received - start - self._silent)
        lost = self._lost  # it goes when another thread seals the file
        if lost is not None:
            lost(start, self._received, "disk too slow")

    def _write_queue(self) -> None:
        if self._fd < 0:
            self._open()
        self._write_rest()
        samples: list[bytes] = []
        for _ in range(len(self._queue)):
            item = self._queue[0]
            if isinstance(item, bytes):
                samples.append(item)
            elif item is None:
                self._throw_away(samples)
                samples = []
            else:
                # It stays in the queue until what came before it is on disk.
                self._take(samples)
                self._written += item
                samples = []
            self._queue.popleft()
        self._take(samples)

    def _take(self, samples: list[bytes]) -> None:
        self._rest = b"".join(samples)
        self._write_rest()

    def _throw_away(self, samples: list[bytes]) -> None:
        self._done += sum(map(len, samples))  # first: a try that fails is repeated without them
        os.ftruncate(self._fd, WAV_HEADER_BYTES)
        self._written = 0
        self._restarted += 1

    def _write_rest(self) -> None:
        while self._rest:
            at = WAV_HEADER_BYTES + 2 * self._written
            num_bytes = os.pwrite(self._fd, self._rest, at) & ~1
            if not num_bytes:
                raise OSError(None, "the disk took less than a sample")
            self._rest = self._rest[num_bytes:]
            self._written += num_bytes >> 1
            self._done += num_bytes

    def _open(self) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        for number in range(2, 100):
            try:
                self._fd = os.open(self.path, flags, 0o640)
            except FileExistsError:
                # An older leg used the same UUID: its audio is not ours to overwrite.
                stem = self.ids["leg_uuid"]
                self.path = self.path.with_name(f"{stem}-{number}.wav")
            else:
                os.pwrite(self._fd, wav_header(self._rate, 1, 0), 0)
                return
        raise FileExistsError(None, "too many files of one UUID")

    def _seal(self) -> None:
        self._write_queue()
        os.ftruncate(self._fd, WAV_HEADER_BYTES + 2 * self._written)
        os.pwrite(self._fd, wav_header(self._rate, 1, 2 * self._written), 0)
        os.fsync(self._fd)
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _give_up(self) -> None:
        """Report what the disk would not take to the end."""
        lost_from = self._written
        num_samples = len(self._rest) >> 1
        for item in self._queue:
            if item is None:
                lost_from = num_samples = 0
            else:
                num_samples += len(item) >> 1 if isinstance(item, bytes) else item
        lost = self._lost  # it goes when the leg is discarded meanwhile
        if num_samples and lost is not None:
            lost(lost_from, lost_from + num_samples, "disk failed")
