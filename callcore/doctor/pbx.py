"""Checks of the Asterisk in front of this site, asked by its manager interface (AMI)."""

import time
from collections.abc import Callable, Iterator

from callcore.ami import Ami
from callcore.doctor import dialplan, pbx_spool, reach, versions
from callcore.doctor.finding import Finding
from callcore.errors import AmiError
from callcore.settings import Settings

#: Classes of events that the manager user must be sent, and actions that it may ask for.
READ = ("call", "dialplan")
WRITE = ("command", "originate", "reporting")
#: Seconds that the clocks of the two machines may differ: recordings are matched by time too.
MAX_APART_S = 5.0

_MANAGER = "pbx-manager"


def findings(settings: Settings) -> Iterator[Finding]:
    """Ask Asterisk, in the order in which a beginner should mend what is wrong."""
    if not settings.ami_user:
        yield Finding(_MANAGER, "warning", "Asterisk is not asked", _how_to_ask())
        return
    try:
        with Ami(settings.ami_address, settings.ami_user, settings.ami_secret) as ami:
            yield from _asked(ami, settings)
    except AmiError as error:
        yield manager_failure(settings, error)


def _asked(ami: Ami, settings: Settings) -> Iterator[Finding]:
    manager = _manager(ami, settings)
    yield manager
    if manager.state == "failed":
        return
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (
        lambda: versions.findings(ami.action("CoreSettings").get("AsteriskVersion", "")),
        lambda: dialplan.check_modules(ami),
        lambda: dialplan.check_contexts(ami),
        lambda: _max_calls(ami),
        lambda: reach.findings(ami, settings),
        lambda: pbx_spool.findings(ami, settings),
        lambda: _clock(ami),
    )
    for check in checks:
        try:
            yield from check()
        except AmiError as error:
            if error.code != "refused":
                raise
            yield manager_failure(settings, error)


def _manager(ami: Ami, settings: Settings) -> Finding:
    """Judge whether the manager user may ask for all that the doctor asks."""
    wanted = {"read": READ, "write": WRITE}
    lacking: dict[str, list[str]] = {}
    for line in ami.command(f"manager show user {settings.ami_user}"):
        kind, _, allowed = line.partition(" perm:")
        has = {each.strip() for each in allowed.split(",")}
        if kind in wanted and "all" not in has:
            lacking[kind] = [each for each in wanted[kind] if each not in has]
    missing = "; ".join(f"{kind} = {', '.join(names)}" for kind, names in lacking.items() if names)
    if missing:
        detail = f"the manager user {settings.ami_user} lacks {missing}"
        return Finding(_MANAGER, "failed", detail, _permissions(settings.ami_user))
    detail = f"{settings.ami_user} is logged in on {settings.ami_address}"
    return Finding(_MANAGER, "ok", detail)


def _permissions(user: str) -> str:
    return (
        f"in manager.conf give [{user}] `read = {','.join(READ)}` and\n"
        f'`write = {",".join(WRITE)}`, then `asterisk -rx "manager reload"`'
    )


def _how_to_ask() -> str:
    return (
        "to have it asked, add to Asterisk's manager.conf\n"
        "    [callcore]\n"
        "    secret = ...\n"
        f"    read = {','.join(READ)}\n"
        f"    write = {','.join(WRITE)}\n"
        '(and `enabled = yes` in [general]), then `asterisk -rx "manager reload"`, and set\n'
        "CALLCORE_AMI_USER=callcore, CALLCORE_AMI_SECRET and, on another host, CALLCORE_AMI_ADDRESS"
    )


def manager_failure(settings: Settings, error: AmiError) -> Finding:
    """Return the finding of a manager interface that does not do what it is asked."""
    remedies = {
        "unreachable": (
            "check CALLCORE_AMI_ADDRESS, and in manager.conf `enabled = yes`, `port` and "
            '`bindaddr`;\nthen `asterisk -rx "manager reload"`, or start Asterisk'
        ),
        "not-ami": "check CALLCORE_AMI_ADDRESS: the manager interface's port is 5038 by default",
        "login": (
            f"check CALLCORE_AMI_USER and CALLCORE_AMI_SECRET against [{settings.ami_user}] of\n"
            "manager.conf, and its `deny` and `permit` lines"
        ),
        "refused": _permissions(settings.ami_user),
        "closed": f"check the `permit` lines of [{settings.ami_user}] in manager.conf",
        "timeout": (
            "check that CALLCORE_AMI_ADDRESS is the manager interface's, and look whether\n"
            'Asterisk hangs: `asterisk -rx "core show uptime"`'
        ),
    }
    return Finding(_MANAGER, "failed", str(error), remedies[error.code])


def _max_calls(ami: Ami) -> Iterator[Finding]:
    said = ami.action("CoreSettings").get("CoreMaxCalls", "")
    if said.isdigit() and int(said) > 0:
        # It counts what runs in the dialplan: the caller, and the spy of each party.
        detail = f"Asterisk takes at most {said} calls at once, and a tapped call counts three"
        remedy = "raise `maxcalls` in asterisk.conf to three times the calls that you expect"
        yield Finding("pbx-limit", "warning", detail, remedy)


def _clock(ami: Ami) -> Iterator[Finding]:
    before = time.time()
    theirs = ami.variable("EPOCH")
    after = time.time()
    if not theirs.isdigit():
        yield Finding("pbx-clock", "warning", "Asterisk does not tell its time")
        return
    # Whole seconds come, on average half a second ago.
    apart_s = int(theirs) + 0.5 - (before + after) / 2
    if abs(apart_s) > MAX_APART_S:
        which = "ahead of" if apart_s > 0 else "behind"
        detail = f"Asterisk's clock is {abs(apart_s):,.0f} s {which} this machine's"
        remedy = "set both clocks by the network: `timedatectl set-ntp true`, or chrony"
        yield Finding("pbx-clock", "failed", detail, remedy)
    else:
        yield Finding("pbx-clock", "ok", "Asterisk's clock shows the same time")
