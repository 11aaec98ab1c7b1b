"""``callcore bench live``: the figures of live recognition on this machine, as a table or JSON."""

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, TextIO

import uvloop

from callcore.bench_daemon import INTERVAL_S
from callcore.live_bench import Figures, Plan, Report, run
from callcore.settings import Settings

#: Share of late frames from which on the machine did not keep up with playing.
_LATE = 0.01

#: Times the fixed interval from which on partials cannot have been made in time.
_RARE = 2.0

#: Load from which on the legs that a core carries are measured and not reckoned.
_FULL = 0.8

_WIDTH = 80


def bench_live(settings: Settings, plan: Plan, *, as_json: bool) -> int:
    """Run the plan and print what came of it; progress goes to stderr."""
    progress = _Progress(sys.stderr)
    try:
        report = uvloop.run(run(plan, settings, os.environ, progress.say))
    finally:
        progress.end()
    print(json.dumps(as_object(report)) if as_json else as_table(report))
    return 0


def as_object(report: Report) -> dict[str, Any]:
    """Return the report as one JSON object."""
    plan = asdict(report.plan)
    return {
        **{name: str(value) if name == "data" and value else value for name, value in plan.items()},
        "model": report.model,
        "language": report.language,
        "normaliser": report.normaliser,
        "fell_behind": report.fell_behind,
        "median": asdict(report.median),
        "each_run": [asdict(each) for each in report.runs],
    }


def as_table(report: Report) -> str:
    """Return the medians for people, at most 80 columns wide."""
    plan = report.plan
    played = "sample calls" if plan.data is None else plan.data.name
    cores = f"{plan.cores} core{'s' if plan.cores > 1 else ''}"
    runs = f"median of {plan.runs} runs" if plan.runs > 1 else "one run"
    head = [
        f"{plan.legs} live legs of {plan.seconds:g} s on {cores}, {runs}"[:_WIDTH],
        f"model {report.model}, {plan.partials} partials, {played} ({report.language})"[:_WIDTH],
        "",
    ]
    lines = [f"{name:<34}{value}"[:_WIDTH] for name, value in _rows(report.median)]
    notes = [
        "",
        "word latencies: from the word's end in the reference until it is on the bus",
        "CPU: daemon, detector and decoder; not the broker",
        f"WER: {report.normaliser}",
    ]
    if plan.data is not None:
        notes.append("the end of a recording's last word is heard 0.13 s early: so much too long")
    if (report.median.load or 0.0) < _FULL:
        notes.append("legs per core: by CPU at this load; play more legs to see that many")
    if report.fell_behind:
        notes.append("the daemon was late before the runs: finals lost may read too few")
    if report.median.late_frames_share > _LATE:
        notes.append(
            "frames were sent late: machine too busy, latencies and legs per core read high"
        )
    interval = report.median.partial_interval_s
    if plan.partials == "fixed" and (interval is None or interval > _RARE * INTERVAL_S):
        notes.append("partials gave way to newer ones: too many legs, legs per core read too high")
    return "\n".join([*head, *lines, *notes])


def _rows(figures: Figures) -> Iterator[tuple[str, str]]:
    f = figures
    yield "legs per core (by CPU)", f"{f.legs_per_core:.1f}"
    yield (
        "CPU s per s of audio",
        f"{f.cpu_per_audio_s:.4f} (daemon {f.daemon_cpu_s / f.audio_s:.4f},"
        f" inference {f.inference_cpu_s / f.audio_s:.4f})",
    )
    yield "load while all legs play", _percent(f.load, 0)
    yield "word shown, p50 / p95", _pair(f.shown_p50_s, f.shown_p95_s)
    yield "word committed, p50 / p95", _pair(f.committed_p50_s, f.committed_p95_s)
    yield "word final, p50 / p95", _pair(f.final_p50_s, f.final_p95_s)
    yield "end of speech -> final, p50 / p95", _pair(f.end_to_final_p50_s, f.end_to_final_p95_s)
    yield "  finals timed / all", f"{f.ends_timed:.0f} / {f.finals:.0f}"
    yield "  as the daemon hears the end", _pair(f.daemon_latency_p50_s, f.daemon_latency_p95_s)
    yield "  words timed / said", f"{f.timed_words:.0f} / {f.words:.0f}"
    yield "WER live finals", _percent(f.wer_live)
    yield "WER same model, whole file", _percent(f.wer_whole_file)
    yield "  difference", _points(f.wer_difference)
    yield (
        "committed words revised",
        f"{_percent(f.revised_share)} of {f.committed_words:.0f}",
    )
    interval = f.partial_interval_s
    each = "" if interval is None else f", one for {interval:.2f} s of speech"
    yield "partials", f"{f.partials:.0f}{each}"
    yield "finals", f"{f.finals:.0f}"
    yield (
        "  lost / doubled / not published",
        f"{f.finals_lost:.0f} / {f.finals_doubled:.0f} / {f.finals_unpublished:.0f}",
    )
    yield "legs without live text", f"{f.legs_without_text:.0f}"
    lag = f.loop_lag_p99_ms
    yield "event-loop lag p99", "not told" if lag is None else f"{lag:.1f} ms"
    yield "memory per leg, daemon", f"{f.daemon_mib_per_leg:.2f} MiB"
    yield (
        "memory of inference",
        f"{f.inference_mib:.0f} MiB ({f.inference_growth_mib:+.0f} while it played)",
    )
    yield "frames sent late", _percent(f.late_frames_share)


def _pair(p50: float | None, p95: float | None) -> str:
    return "-" if p50 is None or p95 is None else f"{p50:.2f} / {p95:.2f} s"


def _percent(share: float | None, digits: int = 1) -> str:
    return "-" if share is None else f"{100 * share:.{digits}f} %"


def _points(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:+.1f} points"


class _Progress:
    """Says on one line what is going on: rewritten on a terminal, else each new phase a line."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._is_terminal = out.isatty()
        self._phase = ""

    def say(self, line: str) -> None:
        if self._is_terminal:
            self._out.write("\r\x1b[K" + line[: _WIDTH - 1])
            self._out.flush()
            return
        phase = line.rstrip("0123456789 s.")
        if phase != self._phase:
            self._phase = phase
            print(line, file=self._out, flush=True)

    def end(self) -> None:
        if self._is_terminal:
            self._out.write("\r\x1b[K")
            self._out.flush()
