"""``GET /metrics``: how busy the site is, for Prometheus and whatever reads its text format.

The format (version 0.0.4, prometheus.io/docs/instrumenting/exposition_formats) is a few lines, and
every figure comes from the record, so that any web process answers for the whole site. Labels are
names of daemons and steps; nothing of a call is told.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from callcore.live_figures import DaemonFigures, SiteFigures, StepFigures
from callcore.storage import LOAD_VALID_S
from web.site import site_of

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure, with a value for each of its labels."""

    name: str
    kind: str
    """``gauge``, or ``counter``: it only grows until its daemon starts again."""
    text: str
    values: tuple[tuple[Mapping[str, str], float], ...]

    def lines(self) -> Iterator[str]:
        """Yield the lines of the text format."""
        yield f"# HELP {self.name} {self.text}"
        yield f"# TYPE {self.name} {self.kind}"
        for labels, value in self.values:
            named = ",".join(f'{name}="{_escaped(text)}"' for name, text in labels.items())
            yield f"{self.name}{{{named}}} {value:.10g}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


async def answer(request: Request) -> Response:
    """``GET /metrics``: the figures of now."""
    site = site_of(request)
    return Response(text(await run_in_threadpool(site.storage.figures)), media_type=MEDIA_TYPE)


def text(figures: SiteFigures) -> str:
    """Return the figures in the text format."""
    return "".join(f"{line}\n" for metric in metrics(figures) for line in metric.lines())


def metrics(figures: SiteFigures) -> Iterator[Metric]:
    """Yield every figure that there is; what a daemon told too long ago only as its count."""
    daemons = figures.daemons
    fresh = [each for each in daemons if each.seen_s <= LOAD_VALID_S]
    yield _of_daemons(
        "callcore_daemon_seen_seconds",
        "Seconds since the last sign of life of a live daemon.",
        {each.name: each.seen_s for each in daemons},
    )
    yield _of_daemons(
        "callcore_live_legs",
        "Legs of live calls that are open.",
        {each.name: each.live_legs for each in daemons},
    )
    yield _of_daemons(
        "callcore_live_load",
        "Share of the decoders' time, 0 to 1, that live calls take.",
        {each.name: each.load for each in fresh if each.load is not None},
    )
    yield _of_daemons(
        "callcore_live_behind_seconds",
        "Seconds for which the oldest utterance that has ended waits for its words.",
        {each.name: each.figures.behind_s for each in fresh},
    )
    yield _of_daemons(
        "callcore_live_shed_level",
        "What is left out under load: 0 nothing, 1 to 3 rarer partials, from 3 on less time for "
        "each final, 4 no partials, 5 no speculation.",
        {each.name: each.figures.shed for each in fresh},
    )
    yield _of_daemons(
        "callcore_live_legs_opened_total",
        "Legs opened since the daemon started.",
        {each.name: each.figures.legs for each in daemons},
        "counter",
    )
    yield Metric(
        "callcore_live_legs_refused_total",
        "counter",
        "Legs without live text: the decoders had no room (busy), or did not answer (down).",
        tuple(_refused(daemons)),
    )
    yield _of_daemons(
        "callcore_live_finals_total",
        "Utterances stored since the daemon started.",
        {each.name: each.figures.finals for each in daemons},
        "counter",
    )
    yield Metric(
        "callcore_steps",
        "gauge",
        "Recordings that are not through with a step, by where they stand.",
        tuple(_standing(figures.steps)),
    )
    yield Metric(
        "callcore_steps_oldest_seconds",
        "gauge",
        "Seconds for which the first recording that waits for a worker has been due.",
        tuple(({"step": each.step}, each.oldest_s) for each in figures.steps),
    )


def _of_daemons(name: str, text: str, values: Mapping[str, float], kind: str = "gauge") -> Metric:
    labelled = tuple(({"daemon": daemon}, value) for daemon, value in values.items())
    return Metric(name, kind, text, labelled)


def _refused(daemons: Iterable[DaemonFigures]) -> Iterator[tuple[Mapping[str, str], float]]:
    for each in daemons:
        yield {"daemon": each.name, "reason": "busy"}, each.figures.refused
        yield {"daemon": each.name, "reason": "down"}, each.figures.refused_down


def _standing(steps: Iterable[StepFigures]) -> Iterator[tuple[Mapping[str, str], float]]:
    for each in steps:
        counts = {
            "ready": each.ready,
            "later": each.later,
            "blocked": each.blocked,
            "running": each.running,
            "failed": each.failed,
        }
        for state, count in counts.items():
            yield {"step": each.step, "state": state}, count
