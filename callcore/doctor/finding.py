"""What one check of the doctor found."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found."""

    check: str
    """One word; what Asterisk was asked begins with ``pbx-``, the test call with ``call-``."""
    state: str
    """``ok``, ``warning`` or ``failed``."""
    detail: str
    remedy: str = ""
    """What to do, in one or more lines; empty when all is well."""


def named(findings: Iterable[Finding], state: str) -> set[str]:
    """Return the names of the checks that ended in a state."""
    return {finding.check for finding in findings if finding.state == state}
