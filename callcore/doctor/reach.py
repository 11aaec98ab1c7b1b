"""Whether Asterisk reaches our daemons: it is asked to, from where it runs.

The stream of the nil UUID is a probe, which the AudioSocket daemon holds for a moment and ends: a
port where something else listens, a proxy with nobody behind it and a daemon that hangs all take
the connection, and end it sooner or not at all. The route ``ping`` of
the FastAGI server does nothing. The latter is asked through the dialplan's own helper, so that the
line which reports real calls is the one that is tried.
"""

import time
import uuid
from collections.abc import Iterator, Mapping

from callcore.ami import Ami
from callcore.audiosocket import PROBE_UUID
from callcore.doctor import dialplan
from callcore.doctor.finding import Finding
from callcore.errors import AmiError
from callcore.settings import Address, Settings, parse_address

#: Addresses that the dialplan uses where the site sets no others.
DEFAULTS = {"CALLCORE_AUDIOSOCKET": "127.0.0.1:9092", "CALLCORE_AGI": "127.0.0.1:4573"}
#: Seconds that Asterisk may take: its connects give up after two.
TRY_S = 6.0
#: Seconds after which the daemon may end a probe; it does after ``audiosocket_server.PROBE_S``, 2.
#: A proxy whose daemon is away ends it at once, or after its second try (0.9 s each in
#: deploy/haproxy), or after its fourth (1 s each by default).
ENDED_S = (1.9, 2.8)

#: The dialplan's helper: extension and context.
_HELPER = ("tell", "callcore-tell")
#: Modules without which nothing can be tried.
_NEEDS_AUDIOSOCKET = ("chan_audiosocket", "res_audiosocket")
_NEEDS_AGI = ("res_agi", "app_stack", "app_exec")


def findings(ami: Ami, settings: Settings) -> Iterator[Finding]:
    """Yield whether Asterisk reaches each daemon."""
    running = dialplan.running_modules(ami)
    # A session of its own: on a busy PBX there are many events.
    with Ami(
        settings.ami_address, settings.ami_user, settings.ami_secret, events="call,dialplan"
    ) as probe:
        yield _not_tried("pbx-audiosocket", running, _NEEDS_AUDIOSOCKET) or _audiosocket(
            ami, probe, settings
        )
        yield _not_tried("pbx-agi", running, _NEEDS_AGI) or _agi(ami, probe, settings)


def _not_tried(check: str, running: Mapping[str, bool], needed: tuple[str, ...]) -> Finding | None:
    lacking = [module for module in needed if not running.get(module)]
    if not lacking:
        return None
    detail = f"not tried: {', '.join(lacking)} is not there"
    return Finding(check, "warning", detail, "see pbx-modules above")


def _audiosocket(ami: Ami, probe: Ami, settings: Settings) -> Finding:
    check, variable = "pbx-audiosocket", "CALLCORE_AUDIOSOCKET"
    address, wrong = _address(ami, check, variable, settings.audiosocket_bind)
    if wrong:
        return wrong
    channel = f"doctor-{uuid.uuid4().hex}"
    began = time.monotonic()
    try:
        probe.action(
            "Originate",
            Channel=f"AudioSocket/{address}/{PROBE_UUID}",
            ChannelId=channel,
            Application="Wait",
            Data="5",
            Variable="CDR_PROP(disable)=1",
            Timeout="3000",
            Async="true",
        )
    except AmiError as error:
        if error.code != "refused":
            raise
        return Finding(check, "failed", str(error), "see pbx-manager and pbx-modules above")
    told: set[str] = set()

    def is_over(event: Mapping[str, str]) -> bool:
        # They come in either order.
        if _is_of(event, channel) and event.get("Event") in ("OriginateResponse", "Hangup"):
            told.add(event.get("Response", "Hangup"))
        return "Failure" in told or told == {"Success", "Hangup"}

    over = probe.wait_for(is_over, TRY_S)
    lasted_s = time.monotonic() - began
    if "Success" in told:
        if over is not None and ENDED_S[0] <= lasted_s <= ENDED_S[1]:
            return Finding(check, "ok", f"Asterisk reaches the daemon on {address}")
        return _stranger(check, variable, address, settings.audiosocket_bind)
    return _unreached(check, variable, address, settings.audiosocket_bind, "callcore audiosocket")


def _agi(ami: Ami, probe: Ami, settings: Settings) -> Finding:
    check, variable = "pbx-agi", "CALLCORE_AGI"
    address, wrong = _address(ami, check, variable, settings.agi_bind)
    if wrong:
        return wrong
    if not dialplan.exists(ami, _HELPER[1]):
        detail = f"not tried: the dialplan's {_HELPER[1]} is not there"
        return Finding(check, "warning", detail, "see pbx-dialplan and pbx-modules above")
    channel = f"doctor-{uuid.uuid4().hex}"
    try:
        probe.action(
            "Originate",
            Channel=f"Local/{_HELPER[0]}@{_HELPER[1]}/n",
            ChannelId=f"first-{channel}",
            OtherChannelId=channel,
            Application="NoOp",
            Variable=["CALLCORE_ROUTE=ping", "CDR_PROP(disable)=1"],
            Timeout="5000",
            Async="true",
        )
    except AmiError as error:
        if error.code != "refused":
            raise
        return Finding(check, "failed", str(error), "see pbx-manager and pbx-modules above")
    answer = probe.wait_for(
        lambda event: (
            event.get("Event") == "VarSet"
            and event.get("Variable") == "AGISTATUS"
            and _is_of(event, channel)
        ),
        TRY_S,
    )
    if answer is None or answer.get("Value") == "HANGUP":
        # The helper was taken away when its time was up: its request was still waiting.
        detail = f"whoever listens on {address} does not answer FastAGI requests"
        return Finding(check, "failed", detail, "look at it, or restart it: `callcore agi`")
    if answer.get("Value") == "SUCCESS":
        return Finding(check, "ok", f"Asterisk reaches the FastAGI server on {address}")
    return _unreached(check, variable, address, settings.agi_bind, "callcore agi")


def _stranger(check: str, variable: str, address: str, ours: Address) -> Finding:
    detail = f"whoever takes Asterisk's connections to {address} does not answer as our daemon does"
    remedy = (
        "if that is a proxy, look at what is behind it; if it is the daemon, restart it:\n"
        "`callcore audiosocket`; with all CALLCORE_MAX_CALLS in use it takes nobody"
    )
    if parse_address(address) != ours:
        remedy = f"this callcore listens on {ours}. {_set_global(variable, ours)}\nOr: {remedy}"
    return Finding(check, "failed", detail, remedy)


def _is_of(event: Mapping[str, str], channel: str) -> bool:
    return event.get("Uniqueid") == channel


def _address(ami: Ami, check: str, variable: str, ours: Address) -> tuple[str, Finding | None]:
    """Return the address that the dialplan uses, and what is wrong with it."""
    said = ami.variable(variable) or DEFAULTS[variable]
    try:
        parse_address(said)
    except ValueError:
        detail = f"the dialplan's {variable} is no host:port"
        return said, Finding(check, "failed", detail, _set_global(variable, ours))
    return said, None


def _unreached(check: str, variable: str, address: str, ours: Address, command: str) -> Finding:
    detail = f"Asterisk does not reach {address}, where its dialplan looks for us"
    if parse_address(address) == ours:
        remedy = f"start it: `{command}` (or `callcore up`), and let a firewall pass it"
    else:
        remedy = (
            f"this callcore listens on {ours}. {_set_global(variable, ours)}\n"
            "Between two hosts: bind to an address that Asterisk's host reaches, and let a "
            "firewall pass it"
        )
    return Finding(check, "failed", detail, remedy)


def _set_global(variable: str, ours: Address) -> str:
    return (
        f"In [globals] of extensions.conf set\n{variable} = {ours}, then "
        '`asterisk -rx "dialplan reload"`'
    )
