"""Signals of child processes."""

import signal


def as_from_a_shell() -> None:
    """Heed the signals that a test run in the background, or under nohup, ignores.

    For ``preexec_fn``: what a process ignores, its children ignore too.
    """
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
