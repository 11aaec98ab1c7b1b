"""The command: which checks run, what is printed, which exit code it ends with.

Exit code 0: all is well (warnings included), 1: something must be mended, 2: wrong usage or
configuration.
"""

import contextlib
import sys
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from callcore.ami import Ami
from callcore.doctor import call, pbx, printing, site
from callcore.doctor.finding import Finding, named
from callcore.errors import AmiError, ConfigError
from callcore.settings import Settings
from callcore.storage import Storage

#: Checks without which a test call cannot be placed or followed.
_NEEDED = ("database", "consent", "pbx-manager", "pbx-modules", "pbx-dialplan")


def run(
    settings: Settings,
    *,
    place_call: bool = False,
    as_json: bool = False,
    secret_files: Sequence[Path] = (),
    limits: call.Limits | None = None,
) -> int:
    """Print every finding and return the exit code.

    Args:
        settings: Of the site.
        place_call: Whether to place a test call and to judge it.
        as_json: Whether to print one JSON object instead of lines.
        secret_files: Files that hold secrets of the settings.
        limits: Of the test call's steps.

    Raises:
        ConfigError: If a call is to be placed and no manager user is set.
    """
    if place_call and not settings.ami_user:
        raise ConfigError(
            "CALLCORE_AMI_USER", "", "a user of Asterisk's manager.conf, to place a call with"
        )
    lines = printing.Lines(
        None if as_json else sys.stdout, progress=sys.stderr if as_json else sys.stdout
    )
    found: list[Finding] = []
    call_id = f"doctor-{uuid.uuid4().hex[:12]}" if place_call else None
    for finding in _findings(settings, secret_files):
        found.append(finding)
        lines.show(finding)
    if call_id is not None:
        broken = named(found, "failed").intersection(_NEEDED)
        for finding in _call(settings, broken, call_id, lines, limits or call.Limits()):
            found.append(finding)
            lines.show(finding)
    lines.sum_up(found)
    if as_json:
        printing.print_json(found, call_id)
    return 1 if named(found, "failed") else 0


def _findings(settings: Settings, secret_files: Sequence[Path]) -> Iterator[Finding]:
    yield from site.findings(settings, secret_files)
    yield from pbx.findings(settings)


def _call(
    settings: Settings,
    broken: set[str],
    call_id: str,
    lines: printing.Lines,
    limits: call.Limits,
) -> Iterator[Finding]:
    if broken:
        detail = f"no call was placed: {', '.join(sorted(broken))} failed"
        yield Finding("call-placed", "failed", detail, "mend that first")
        return
    try:
        ami = Ami(settings.ami_address, settings.ami_user, settings.ami_secret, events="call")
    except AmiError as error:
        yield pbx.manager_failure(settings, error)
        return
    with ami, contextlib.closing(Storage(settings.database_url)) as storage:
        yield from call.CheckedCall(settings, storage, ami, call_id, lines.wait, limits).judge()
