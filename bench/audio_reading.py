#!/usr/bin/env python3
"""What reading sound files in a limited child costs, and what bombs do to it.

    python bench/audio_reading.py            # overhead and bombs
    python bench/audio_reading.py --probes 2000

First the CPU seconds that the start of the reader costs once a process; later figures are without
it. A row each for this process and a child: wall and CPU ms a probe (a 10 s WAV, median and mean).
For 10 minutes of audio in each coding the CPU seconds of decoding to 16 kHz, all processes
together, and how many times faster than the audio that is. Then a row a bomb of
``tests/support/bombs.py``: its size, what the child took at most (RSS from wait4, CPU), the wall
seconds to the answer, and the answer. CPU figures are what to compare on a machine with other work.
"""

import argparse
import logging
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from callcore import audio, audio_reading
from callcore.errors import AudioError
from tests.support import bombs

RATE = 16_000
CODINGS = {
    "wav": ("pcm_s16le", 8000),
    "flac": ("flac", 8000),
    "mp3": ("libmp3lame", 8000),
    "ogg": ("libopus", 48_000),
}


class _Spent(logging.Handler):
    """Keeps what the last child took."""

    rss_mb = cpu_ms = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.rss_mb, self.cpu_ms = record.__dict__["rss_mb"], record.__dict__["cpu_ms"]


def write(path: Path, seconds: float) -> Path:
    """Write noise with the shape of speech: silence would flatter the codecs."""
    codec, rate = CODINGS[path.suffix[1:]]
    at = np.arange(round(rate * seconds)) / rate
    noise = np.random.default_rng(1).normal(0, 3000, len(at)) * (np.sin(at * 6) > 0)
    frame = av.AudioFrame.from_ndarray(noise.astype(np.int16).reshape(1, -1), "s16", "mono")
    frame.sample_rate = rate
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=rate, layout="mono")
        fmt = stream.codec_context.format.name
        for part in av.AudioResampler(fmt, "mono", rate).resample(frame):
            out.mux(stream.encode(part))
        out.mux(stream.encode(None))
    return path


def cpu_s() -> float:
    """Return the CPU seconds of this process and all that it has waited for."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in both)


def measured(work: Callable[[], object]) -> tuple[float, float]:
    """Return wall and CPU seconds, those of the reader's own start included."""
    start, cpu = time.perf_counter(), cpu_s()
    work()
    wall = time.perf_counter() - start
    audio_reading.close()  # what a process took is known when it is over
    return wall, cpu_s() - cpu


def probes(path: Path, number: int, start_cpu: float) -> Iterator[str]:
    for where, probe in (("in this process", audio.probe), ("in a child", audio_reading.probe)):
        times: list[float] = []

        def many(probe: Callable[[Path], object] = probe, times: list[float] = times) -> None:
            for _ in range(number):
                start = time.perf_counter()
                probe(path)
                times.append(time.perf_counter() - start)

        cpu = measured(many)[1] - start_cpu * (probe is audio_reading.probe)
        median, mean = statistics.median(times) * 1000, statistics.fmean(times) * 1000
        yield f"| {where} | {median:.1f} | {mean:.1f} | {cpu / number * 1000:.1f} |"


def decodes(folder: Path, start_cpu: float) -> Iterator[str]:
    for name in CODINGS:
        path = write(folder / f"a.{name}", 600)
        spent = []
        for decode in (audio.decode, audio_reading.decode):
            _, cpu = measured(lambda d=decode, p=path: [len(block) for block in d(p, RATE)])
            spent.append(cpu)
        inside, child = spent[0], spent[1] - start_cpu
        yield (
            f"| {name} | {inside:.2f} | {child:.2f} | {600 / child:.0f} |"
            f" {600 * RATE * 4 / 1e6 / child:.0f} | {(child - inside) / 600:+.2%} |"
        )


def blasts(folder: Path, spent: _Spent) -> Iterator[str]:
    for path, _ in bombs.write(folder):
        start = time.perf_counter()
        try:
            audio_reading.probe(path)
            answer = "read"
        except AudioError as error:
            answer = str(error)
        wall = time.perf_counter() - start
        size = os.path.getsize(path) / 1e6
        row = f"{path.name} | {size:.2f} | {spent.rss_mb} | {spent.cpu_ms / 1000:.2f} | {wall:.2f}"
        yield f"| {row} | {answer} |"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--probes", type=int, default=500)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        short = write(folder / "short.wav", 10)
        start, start_cpu = measured(lambda: audio_reading.probe(short))
        print(f"start of the reader: {start:.2f} s, {start_cpu:.2f} s CPU\n")
        print("| probe | median ms | mean ms | CPU ms |\n| --- | --- | --- | --- |")
        for row in probes(short, args.probes, start_cpu):
            print(row)
        print(
            "\n| 10 minutes of | CPU s in this process | CPU s in a child | times real time |"
            " MB/s of float32 | more CPU per audio second |\n"
            "| --- | --- | --- | --- | --- | --- |"
        )
        for row in decodes(folder, start_cpu):
            print(row)
        spent = _Spent()
        log = logging.getLogger("callcore.audio_reading")
        log.addHandler(spent)
        log.setLevel(logging.DEBUG)
        print(
            "\n| bomb | MB | RSS MB | CPU s | s | answer |\n| --- | --- | --- | --- | --- | --- |"
        )
        audio_reading.probe(short)
        for row in blasts(folder, spent):
            print(row)


if __name__ == "__main__":
    main()
