"""The live daemon with partials at one interval, for ``callcore bench live --partials fixed``.

    python -m callcore.bench_daemon

So that machines and models can be compared at the same work: under load the daemon makes partials
rarer, this one never does. It also goes on guessing finals ahead, and decodes doubtful ones again,
where the daemon would give that up. Everything else is ``callcore audiosocket``.
"""

import math
import os

import uvloop

from callcore import live_daemon, log
from callcore.recognizer_config import RecognizerConfig
from callcore.settings import load

#: Seconds of speech between two partials.
INTERVAL_S = 0.8

#: What is unlike the daemon's own ``RecognizerConfig``: one interval, and no load is too much.
FIXED = RecognizerConfig(partial_intervals_s=(INTERVAL_S,), overloaded_s=math.inf)


def main() -> None:
    """Run the daemon until SIGTERM."""
    settings = load(os.environ)
    log.configure(settings.log_level, settings.log_format)
    with log.in_background():
        # The daemon's settings have no such switch on purpose: a site wants partials to give way.
        uvloop.run(live_daemon.serve(settings, FIXED))


if __name__ == "__main__":
    main()
