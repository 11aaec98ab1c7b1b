"""Findings on the terminal, one line each with its remedy below, or as one JSON object."""

import json
import sys
from collections.abc import Sequence
from typing import Any, TextIO

from callcore.doctor.finding import Finding, named

#: Name of the object that ``--json`` prints, with the version of its form.
SCHEMA = "callcore.doctor/1"
#: Widest state and name of a check.
_STATE, _CHECK = 7, 15
_MARKS = {"ok": "ok", "warning": "warning", "failed": "FAILED"}


class Lines:
    """Prints findings as they come.

    Args:
        out: Where findings go; None prints none.
        progress: Where is told what is waited for.
    """

    def __init__(self, out: TextIO | None, progress: TextIO) -> None:
        self._out = out
        self._progress = progress

    def show(self, finding: Finding) -> None:
        """Print a finding."""
        if self._out is None:
            return
        mark = _MARKS[finding.state]
        print(f"{mark:<{_STATE}}  {finding.check:<{_CHECK}}  {finding.detail}", file=self._out)
        for number, line in enumerate(finding.remedy.splitlines()):
            arrow = "  " if number else "->"
            print(f"{'':<{_STATE}}  {'':<{_CHECK}}  {arrow} {line}", file=self._out)
        self._out.flush()

    def wait(self, what: str, limit_s: float) -> None:
        """Tell what is waited for, and how long at most."""
        line = f"{'':<{_STATE}}  ... {what} (at most {limit_s:.0f} s)"
        print(line, file=self._progress, flush=True)

    def sum_up(self, findings: Sequence[Finding]) -> None:
        """Print how it ended."""
        if self._out is None:
            return
        failed = sum(finding.state == "failed" for finding in findings)
        warnings = sum(finding.state == "warning" for finding in findings)
        less = f", {warnings} warning(s)" if warnings else ""
        said = f"{failed} check(s) failed{less}" if failed else f"all is well{less}"
        print(f"\n{said}", file=self._out)


def as_json(findings: Sequence[Finding], call_id: str | None) -> dict[str, Any]:
    """Return the object of ``--json``."""
    return {
        "schema": SCHEMA,
        "ok": not named(findings, "failed"),
        "call_id": call_id,
        "findings": [
            {
                "check": finding.check,
                "state": finding.state,
                "detail": finding.detail,
                "remedy": finding.remedy or None,
            }
            for finding in findings
        ],
    }


def print_json(findings: Sequence[Finding], call_id: str | None) -> None:
    """Print the object of ``--json``."""
    json.dump(as_json(findings, call_id), sys.stdout, ensure_ascii=False, indent=2)
    print()
