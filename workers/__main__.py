"""``python -m workers``: dramatiq's own runner with the settings that measurements showed right."""

import os
import sys
from typing import Any

from callcore import settings
from callcore.errors import ConfigError

#: Milliseconds for steps to end after SIGTERM; what still runs then is taken over by its lease.
_SHUTDOWN_MS = 10_000

#: Dramatiq reads these when it is imported, so nothing above may import it. It looks for work, and
#: for a broker that came back, every fraction of a second.
_ENVIRONMENT = {
    "dramatiq_worker_timeout": "100",
    "dramatiq_restart_delay": "500",
}


def main() -> int:
    """Run the workers until SIGTERM; return the exit code."""
    os.umask(0o077)  # what callers say is for nobody else on this machine
    try:
        site = settings.load(os.environ)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    # As many messages of a queue as there are threads for it: with more, a short job would wait
    # behind a long one beside an idle process.
    os.environ.update(_ENVIRONMENT, dramatiq_queue_prefetch=str(site.worker_threads))
    from dramatiq import cli

    from callcore import jobs

    # For each queue its own: a long transcription must not keep files from being settled.
    threads = site.worker_threads * len(jobs.QUEUES)
    arguments = [
        "workers.broker:setup",
        *("--processes", str(site.worker_processes)),
        *("--threads", str(threads)),
        *("--worker-shutdown-timeout", str(_SHUTDOWN_MS)),
        "--skip-logging",
    ]
    run: Any = cli.main  # dramatiq has no types here
    parser: Any = cli.make_argument_parser
    return int(run(parser().parse_args(arguments)) or 0)


if __name__ == "__main__":
    sys.exit(main())
