"""Tapped calls on a real Asterisk: what is lost, what live text comes, what it costs.

    python bench/tapped_calls.py --calls 50 --seconds 120

Starts a site and an Asterisk of its own (``make asterisk``), places all calls at once, each with
two parties who read prompts to each other, and prints what became of them. ``--live-max-load 100``
admits every leg, so that all wait instead of some being served from the recording.
"""

import argparse
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from callcore.calls import Call
from tests.support.exchange import Exchange, error_rates

#: One round of what each party says: 6.9 + 6.1 s.
ROUND = ("ss-noservice", "invalid")
ROUND_SAYS = "ss-noservice&silence/2&invalid&silence/2"
ROUND_S = 13.0


def main() -> int:
    """Run once and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--calls", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--rate", type=float, default=5.0, help="calls placed a second")
    parser.add_argument("--live-max-load", default="0.9")
    given = parser.parse_args()
    rounds = max(1, round(given.seconds / ROUND_S))
    says = "&".join([ROUND_SAYS] * rounds)
    with (
        tempfile.TemporaryDirectory(prefix="cc") as folder,
        Exchange(
            Path(folder), unregistered="refuse", live_max_load=given.live_max_load
        ) as exchange,
    ):
        processes = {
            "daemon": exchange.site.child("callcore audiosocket"),
            "Asterisk": psutil.Process(exchange.asterisk.process.pid),  # type: ignore[union-attr]
        }
        before = {name: _cpu_s(each) for name, each in processes.items()}
        began = time.monotonic()
        exchange.asterisk.call(
            "bridged",
            caller_says=says,
            agent_says=says,
            caller="5552000",
            count=given.calls,
            rate=given.rate,
        )
        exchange.asterisk.wait_idle(given.seconds * 3 + 120)
        lasted_s = time.monotonic() - began
        used = {name: _cpu_s(each) - before[name] for name, each in processes.items()}
        calls = _over(exchange, given.calls)
        finished_s = time.monotonic() - began
        _report_live(exchange, calls, rounds, lasted_s, finished_s, used)
        _report_documents(exchange, calls, rounds)
    return 0


def _cpu_s(process: psutil.Process) -> float:
    """Return the CPU seconds of a process and its children."""
    total = 0.0
    for each in (process, *process.children(recursive=True)):
        times = each.cpu_times()
        total += times.user + times.system
    return total


def _over(exchange: Exchange, num_calls: int) -> list[Call]:
    """Return the calls once all have ended, their last finals included."""
    deadline = time.monotonic() + 3600
    while time.monotonic() < deadline:
        calls = exchange.storage.calls(None, 1000)[0]
        if len(calls) >= num_calls and all(call.state != "live" for call in calls):
            return [exchange.storage.call(call.call_id) for call in calls]
        time.sleep(0.5)
    raise SystemExit("the calls did not end within an hour")


def _report_live(
    exchange: Exchange,
    calls: list[Call],
    rounds: int,
    lasted_s: float,
    finished_s: float,
    used: dict[str, float],
) -> None:
    words = ROUND * rounds
    legs = [leg for call in calls for leg in call.legs]
    admitted = [leg for leg in legs if leg.no_text is None]
    received = [
        float(found[1])
        for line in exchange.site.lines
        if "leg ended" in line and (found := re.search(r"received_s=([\d.]+)", line))
    ]
    latencies, rates = [], []
    for leg in admitted:
        own = [s for s in exchange.storage.live_segments(leg.call_id) if s.leg == leg.leg]
        latencies += [segment.latency for segment in own if segment.latency is not None]
        rates.append(error_rates(own, leg.leg, *words))
    print(f"calls {len(calls)}, legs {len(legs)}, ended otherwise than by hangup: ", end="")
    print(sum(leg.reason != "hangup" for leg in legs))
    print(f"audio of a leg: {rounds * ROUND_S:.1f} s spoken, {min(received):.2f} s least received")
    print(f"'audio lost' in the log: {sum('audio lost' in x for x in exchange.site.lines)}")
    print(f"legs with live text {len(admitted)}, served from the recording ", end="")
    print(len(legs) - len(admitted))
    if latencies:
        cuts = statistics.quantiles(latencies, n=20)
        print(f"finals {len(latencies)}, end of speech to final ", end="")
        print(f"p50 {cuts[9]:.1f} s, p95 {cuts[18]:.1f} s")
        print(f"live WER: median {statistics.median(rates):.1%}, worst leg {max(rates):.1%}")
    print(f"calls lasted {lasted_s:.0f} s; last final stored {finished_s - lasted_s:.0f} s later")
    for name, cpu_s in used.items():
        print(f"{name}: {100 * cpu_s / lasted_s:.0f} % of a core during the calls", flush=True)


def _report_documents(exchange: Exchange, calls: list[Call], rounds: int) -> None:
    words = ROUND * rounds
    rates = []
    for call in calls:
        segments = exchange.wait_document(call.call_id, patience_s=1800.0)["segments"]
        rates += [error_rates(segments, leg, *words) for leg in ("caller", "agent")]
    print(f"documents {len(rates) // 2} of {len(calls)}, all complete; ", end="")
    print(f"WER: median {statistics.median(rates):.1%}, worst leg {max(rates):.1%}")


if __name__ == "__main__":
    sys.exit(main())
