"""``callcore-agi``: the classic AGI script, for sites that prefer one to an ``agi://`` address.

``AGI(callcore-agi,hangup,queue=${QUEUENAME})`` starts it as a child of Asterisk's. It relays: what
Asterisk tells goes to ``callcore agi`` as a FastAGI request for the named route, and the commands
of that come back to Asterisk. So there is one set of routes. It imports little, because each call
pays for the start.

Asterisk waits for it, and in a hangup handler the other party's line with it. It ends after
``RELAY_S`` whatever the daemon does, and never fails the dialplan: one line on stderr, which is
Asterisk's console, says what went wrong.
"""

import os
import re
import shlex
import signal
import socket
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any, Final, NoReturn

from asterisk import agi as pyst2

from callcore.settings import FIELDS, Address, parse_address

#: Seconds that all of it may take.
RELAY_S: Final = 2.0
_USAGE: Final = "it is for Asterisk's dialplan: AGI(callcore-agi,ROUTE[,key=value...])"
_BIND: Final = next(field for field in FIELDS if field.name == "agi_bind")
#: An address to listen on that is none to connect to, and the one to use in its place.
_WILDCARDS: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}
#: What Asterisk tells of the script itself.
_OWN: Final = re.compile(r"agi_(network.*|request|arg_\d+)")
_NAME: Final = re.compile(r"agi_\w{1,64}", re.ASCII)
_NOT_PERMITTED: Final = "511 Command Not Permitted on a dead channel or intercept routine"


class _Failed(Exception):
    """The request was not made, or not answered; the message is for people."""


def main() -> NoReturn:
    """Relay one request; always ends with exit status 0, because the dialplan shall go on."""
    try:
        signal.signal(signal.SIGALRM, _raise_too_late)
        signal.setitimer(signal.ITIMER_REAL, RELAY_S)
        _relay(sys.argv[1:])
    except Exception as error:
        signal.setitimer(signal.ITIMER_REAL, 0)
        # The message of a fault of ours may hold what the dialplan passed: numbers and names.
        reason = error if isinstance(error, _Failed) else type(error).__name__
        print(f"callcore-agi: {reason}", file=sys.stderr, flush=True)
    # Not by way of the interpreter's end: that fails where Asterisk has closed our stdout.
    os._exit(0)


def _raise_too_late(_signum: int, _frame: FrameType | None) -> None:
    raise _Failed(f"no answer within {RELAY_S:g} s from CALLCORE_AGI_BIND: is `callcore agi` well?")


def _relay(arguments: Sequence[str]) -> None:
    if not arguments or sys.stdin.isatty():
        raise _Failed(_USAGE)
    address = _address()
    for stream in (sys.stdin, sys.stdout):
        # Callers' names come in whatever their telephone was set to, and go on as they came.
        stream.reconfigure(encoding="utf-8", errors="surrogateescape")  # type: ignore[union-attr]
    with open(os.devnull, "w", errors="replace") as nowhere:  # it tells stderr all it hears
        opened: Any = pyst2.AGI  # it has no types
        asterisk = opened(stderr=nowhere)
        # The caller of a live channel may hang up meanwhile: most commands still work then.
        asterisk.test_hangup = lambda: None
        if not asterisk.env:
            raise _Failed(_USAGE)
        try:
            with socket.create_connection(address, RELAY_S) as connection:
                connection.sendall(_environment(asterisk.env, arguments))
                _serve(asterisk, connection)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise _Failed(
                f"`callcore agi` cannot be reached at {Address(*address)}: {reason}"
            ) from error


def _address() -> tuple[str, int]:
    text = os.environ.get(_BIND.variable) or str(_BIND.default)
    try:
        address = parse_address(text)
    except ValueError as error:
        raise _Failed(f"{_BIND.variable}={text}: expected {error}") from None
    return _WILDCARDS.get(address.host, address.host), address.port


def _environment(known: dict[str, str], arguments: Sequence[str]) -> bytes:
    """Return what Asterisk would have sent, had it made the request itself."""
    route, *rest = arguments
    lines = {"agi_network": "yes", "agi_network_script": route}
    lines |= {k: v for k, v in known.items() if _NAME.fullmatch(k) and not _OWN.fullmatch(k)}
    lines |= {f"agi_arg_{number}": text for number, text in enumerate(rest, 1)}
    plain = (f"{key}: {' '.join(value.splitlines())}\n" for key, value in lines.items())
    return ("".join(plain) + "\n").encode("utf-8", "surrogateescape")


def _serve(asterisk: Any, connection: socket.socket) -> None:
    """Run the commands that come back, until the route is through."""
    for line in connection.makefile("rb"):
        words = shlex.split(line.decode("utf-8", "surrogateescape"))
        try:
            reply = _run(asterisk, words)
        except pyst2.AGIUsageError:
            reply = "520 End of proper usage."
        except (pyst2.AGIUnknownError, pyst2.AGIInvalidCommand):  # 511 is unknown to it
            reply = _NOT_PERMITTED
        except pyst2.AGIException:
            reply = "200 result=-1"
        except (ValueError, BrokenPipeError):
            return  # Asterisk has closed its end: it waits no longer
        connection.sendall(f"{reply}\n".encode("utf-8", "surrogateescape"))


def _run(asterisk: Any, words: Sequence[str]) -> str:
    match words:
        case ["GET", "VARIABLE", name]:
            return _told(asterisk.get_variable(name))
        case ["GET", "FULL", "VARIABLE", expression]:
            return _told(asterisk.get_full_variable(expression))
        case ["SET", "VARIABLE", name, value]:
            asterisk.set_variable(name, _escaped(value))
            return "200 result=1"
    return "510 Invalid or unknown command"


def _told(value: str) -> str:
    return f"200 result=1 ({value})" if value else "200 result=0"


def _escaped(value: str) -> str:
    """Return a value as it has to stand in the quotes that pyst2 puts around it."""
    return value.replace("\\", "\\\\").replace('"', '\\"')
