"""The demo's terminal: partials are replaced in place, finals stay."""

import io
from typing import Any

from callcore.cli.terminal import LiveView, clock


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _partial(text: str, leg: str = "caller", segment: int = 1) -> dict[str, Any]:
    return {"type": "transcript.partial", "leg": leg, "segment": segment, "text": text}


def _final(text: str, leg: str = "caller", segment: int = 1) -> dict[str, Any]:
    return {"type": "transcript.final", "leg": leg, "segment": segment, "text": text, "start": 61.5}


def test_times_are_minutes_and_seconds() -> None:
    assert clock(61.5) == "01:01.5"


def test_a_pipe_gets_one_line_for_each_final_and_no_partials() -> None:
    out = io.StringIO()
    view = LiveView(out)
    view.handle(_partial("I need"))
    view.handle(_final("I need help."))
    assert out.getvalue() == "01:01.5  caller   I need help.\n"


def test_a_terminal_sees_the_partial_until_its_final_replaces_it() -> None:
    out = Terminal()
    view = LiveView(out)
    view.handle(_partial("I need"))
    before = out.getvalue()
    assert "I need" in before
    view.handle(_final("I need help."))
    after = out.getvalue()[len(before) :]
    assert after.startswith("\x1b[1A\x1b[J")
    assert after.endswith("I need help.\n")


def test_a_partial_of_a_later_utterance_is_not_removed_by_an_earlier_final() -> None:
    out = Terminal()
    view = LiveView(out)
    view.handle(_partial("second", segment=2))
    view.handle(_final("First.", segment=1))
    assert "second" in out.getvalue().rpartition("First.")[2]
