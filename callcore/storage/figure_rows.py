"""What /metrics asks the record: daemons, and how many steps stand where."""

from collections import defaultdict
from datetime import datetime
from typing import Any

from peewee import fn

from callcore import tables
from callcore.calls import LegState, StepState
from callcore.database import Database
from callcore.live_figures import DaemonFigures, LiveFigures, StepFigures, seconds_since


def daemons(db: Database, moment: datetime) -> tuple[DaemonFigures, ...]:
    """Return the daemons of the last day, by name."""
    leg, daemon = tables.Leg, tables.Daemon
    live = leg.select(leg.daemon, fn.COUNT(leg.uuid).alias("num")).where(leg.state == LegState.LIVE)
    legs = {row["daemon"]: row["num"] for row in db.all(live.group_by(leg.daemon))}
    return tuple(
        DaemonFigures(
            row["name"],
            seconds_since(row["seen_at"], moment),
            legs.get(row["name"], 0),
            row["load"],
            LiveFigures.from_json(row["figures"]),
        )
        for row in db.all(daemon.select().order_by(daemon.name))
    )


def steps(db: Database, moment: datetime) -> tuple[StepFigures, ...]:
    """Return how many recordings wait, run and failed at each step; those that are done are not."""
    job = tables.Job
    num = fn.COUNT(job.recording).alias("num")
    pending = job.state == StepState.PENDING
    found: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    # Four looks into the index of state and due: what is done is most of the table.
    ready = job.select(job.step, num, fn.MIN(job.due).alias("oldest"))
    for row in db.all(ready.where(pending & (job.due <= moment)).group_by(job.step)):
        oldest = tables.MomentField().python_value(row["oldest"])
        assert oldest is not None
        found[row["step"]] |= {"ready": row["num"], "oldest_s": seconds_since(oldest, moment)}
    for name, where in {
        "later": pending & (job.due > moment),
        "blocked": pending & job.due.is_null(),
        "running": job.state == StepState.RUNNING,
        "failed": job.state == StepState.FAILED,
    }.items():
        for row in db.all(job.select(job.step, num).where(where).group_by(job.step)):
            found[row["step"]][name] = row["num"]
    return tuple(StepFigures(step, **counts) for step, counts in sorted(found.items()))
