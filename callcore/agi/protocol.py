r"""FastAGI without I/O: bytes in, events out, commands as bytes.

Wire (res_agi.c of Asterisk 22: ``launch_netscript``, ``setup_env``, ``run_agi``, ``parse_args``;
docs.asterisk.org, "Asterisk Gateway Interface"). Asterisk connects and speaks first; everything is
lines that end with LF::

    from Asterisk, once     agi_network: yes
                            agi_network_script: hangup?x=1
                            agi_<name>: <value>         about twenty more, agi_arg_1 ... last
                                                        an empty line
    to Asterisk             GET VARIABLE "a name"       one command, words in quotes where needed
    from Asterisk           200 result=1 (value)        its reply; then the next command, or a close

    reply                                               meaning
    100 result=0 Trying...                              the real reply comes later
    200 result=<r>[ (<data>)][ <more>]                  done; the data may hold line feeds
    510 Invalid or unknown command
    511 Command Not Permitted on a dead channel ...     in a hangup handler most that make a sound
    520-Invalid command syntax.  Proper usage follows:  lines without a code, then
    520 End of proper usage.
    HANGUP                                              alone on a line, at any time, once: the
                                                        caller of a live channel has gone

A close by either side is the normal end; Asterisk goes on with the dialplan. What a peer may not do
raises ``RemoteProtocolError``:

* a line, an environment or a reply that is longer than ``MAX_LINE``, ``MAX_ENVIRONMENT``,
  ``MAX_REPLY`` bytes; more than ``MAX_VARIABLES`` variables; more unread than ``MAX_UNREAD``;
* in the environment a line without ``agi_name: value``, or a name twice: a caller's name with a
  line feed in it shall not pass for one of our arguments;
* a reply that no command asked for, or without a code of three digits;
* the end of the stream inside the environment, a line or a reply.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Final, NoReturn

from callcore.errors import LocalProtocolError, RemoteProtocolError

#: Longest line in bytes: an argument of the dialplan has at most 4 KB (VAR_BUF_SIZE).
MAX_LINE: Final = 8192
#: Most variables: Asterisk sends about 22, and at most 127 arguments (MAX_ARGS).
MAX_VARIABLES: Final = 256
#: Longest environment in bytes.
MAX_ENVIRONMENT: Final = 65536
#: Longest reply in bytes, all its lines.
MAX_REPLY: Final = 65536
#: Bytes that are kept unread: beyond, a peer only wants our memory.
MAX_UNREAD: Final = MAX_ENVIRONMENT + MAX_REPLY
#: Longest command in bytes with its line feed: Asterisk reads it into 2,048 (AGI_BUF_LEN).
MAX_COMMAND: Final = 2047

_VARIABLE = re.compile(r"agi_(\w{1,64}): ?(.*)", re.ASCII | re.DOTALL)
_STATUS = re.compile(r"([1-5]\d\d)([ -]|$)(.*)", re.ASCII | re.DOTALL)
#: The data ends at the last parenthesis, or at the last before words such as ``endpos=8000``.
_RESULT = re.compile(r"result=(\S*)(?: \((.*)\)(?=(?: \w+=.*)?\Z))?(.*)", re.ASCII | re.DOTALL)
_OPENS_DATA = re.compile(r"\d{3} result=\S* \([^)]*", re.ASCII)
_WORD = re.compile(r"[A-Za-z0-9_./:@+=-]+", re.ASCII)
_UNSENDABLE = str.maketrans({"\n": " ", "\r": " ", "\0": None})


@dataclass(frozen=True, slots=True)
class Environment:
    """What Asterisk tells of the call before anything else."""

    variables: Mapping[str, str]
    """By name without ``agi_``."""

    @property
    def arguments(self) -> tuple[str, ...]:
        """What the dialplan passed to ``AGI()`` after the address."""
        found: list[str] = []
        while (value := self.variables.get(f"arg_{len(found) + 1}")) is not None:
            found.append(value)
        return tuple(found)

    def __repr__(self) -> str:
        """Return a size, not who called whom."""
        return f"Environment({len(self.variables)} variables)"


@dataclass(frozen=True, slots=True)
class Reply:
    """What became of a command."""

    code: int
    """200: done; 510: unknown; 511: not on a dead channel; 520: wrong syntax."""
    result: str = ""
    """What follows ``result=``, often a number; -1 often means failure."""
    data: str | None = None
    """What stood in parentheses, e.g. the value of a variable."""
    more: str = ""
    """Whatever else the reply says."""

    def __repr__(self) -> str:
        """Return the kind, not the value."""
        return f"Reply(code={self.code}, data={'yes' if self.data is not None else 'no'})"


@dataclass(frozen=True, slots=True)
class Hangup:
    """The caller has gone, the script may go on: commands still work, some answer 511."""


@dataclass(frozen=True, slots=True)
class Closed:
    """Asterisk has closed the connection; nothing more comes."""


class NeedData(Enum):
    """Type of ``NEED_DATA``."""

    NEED_DATA = "NEED_DATA"


#: Nothing more can be told until more bytes come.
NEED_DATA: Final = NeedData.NEED_DATA

Event = Environment | Reply | Hangup | Closed


class Connection:
    """One FastAGI request as the server sees it.

    ``receive_data`` and ``receive_eof`` only store; ``next_event`` tells until it returns
    ``NEED_DATA``. ``send`` returns the bytes of a command; its ``Reply`` comes before the next one
    may be sent.
    """

    __slots__ = ("_at", "_data", "_eof", "_error", "_is_closed", "_lines", "_size", "_waiting")

    def __init__(self) -> None:
        self._data = bytearray()
        self._at = 0  # bytes in which no line feed is
        self._eof = False
        self._error: RemoteProtocolError | None = None
        self._is_closed = False
        self._lines: dict[str, str] | list[str] = {}  # of the environment, then of a reply
        self._size = 0  # bytes of those lines
        self._waiting = False  # for a reply

    @property
    def is_ready(self) -> bool:
        """Whether a command may be sent now."""
        heard = isinstance(self._lines, list)
        return heard and not (self._waiting or self._eof or self._error is not None)

    def receive_data(self, data: bytes) -> None:
        """Store bytes from Asterisk."""
        if self._error is not None or self._eof:
            return  # whatever comes after the end is not kept
        if len(self._data) + len(data) > MAX_UNREAD:
            self._data.clear()
            self._error = RemoteProtocolError(f"more than {MAX_UNREAD} bytes came unasked")
            return
        self._data += data

    def receive_eof(self) -> None:
        """Note that Asterisk has closed its half."""
        self._eof = True

    def next_event(self) -> Event | NeedData:
        """Return the next event; after ``Closed`` always ``NEED_DATA``.

        A peer that says nothing and closes is just ``Closed``: somebody looked if we are there.

        Raises:
            RemoteProtocolError: If Asterisk broke the protocol; each later call raises it again.
        """
        if self._error is not None:
            raise self._error
        while (line := self._next_line()) is not None:
            event = self._take(line)
            if event is not None:
                return event
        if not self._eof or self._is_closed:
            return NEED_DATA
        if self._data or self._lines:
            self._fail("the stream ended in the middle of a line, the environment or a reply")
        self._is_closed = True
        return Closed()

    def send(self, *words: str) -> bytes:
        """Return the bytes of a command.

        Args:
            words: The command's own words as one, such as ``GET VARIABLE``, then its arguments:
                any text. Line feeds become spaces, NUL is left out.

        Raises:
            LocalProtocolError: If it is not our turn, or the command is too long for Asterisk.
        """
        if not self.is_ready:
            raise LocalProtocolError("a command needs the environment, or the last reply, first")
        if not words or not re.fullmatch(r"[A-Z]+( [A-Z]+)*", words[0]):
            raise LocalProtocolError("expected a command such as GET VARIABLE first")
        line = " ".join([words[0], *map(quoted, words[1:])]).encode() + b"\n"
        if len(line) > MAX_COMMAND:
            raise LocalProtocolError(
                f"a command has at most {MAX_COMMAND} bytes, this one {len(line)}"
            )
        self._waiting = True
        return line

    def _next_line(self) -> str | None:
        end = self._data.find(b"\n", self._at)
        if end < 0:
            self._at = len(self._data)
        if (self._at if end < 0 else end) > MAX_LINE:
            self._fail(f"a line has more than {MAX_LINE} bytes")
        if end < 0:
            return None
        line = bytes(self._data[:end])
        del self._data[: end + 1]
        self._at = 0
        # Names of callers come in whatever their telephone was set to.
        return line.removesuffix(b"\r").decode("utf-8", "replace")

    def _take(self, line: str) -> Event | None:
        lines = self._lines
        if isinstance(lines, dict):
            return self._take_variable(line, lines)
        if line == "HANGUP" and not lines:
            return Hangup()
        if not self._waiting:
            self._fail("a reply came that no command had asked for")
        self._size += len(line) + 1
        if self._size > MAX_REPLY:
            self._fail(f"a reply has more than {MAX_REPLY} bytes")
        lines.append(line)
        return self._reply_of(lines)

    def _take_variable(self, line: str, variables: dict[str, str]) -> Event | None:
        if not line:
            self._lines, self._size = [], 0
            return Environment(MappingProxyType(variables))
        found = _VARIABLE.fullmatch(line)
        if found is None:
            self._fail("expected `agi_name: value` in the environment")
        if found[1] in variables:
            self._fail("a variable of the environment came twice")
        variables[found[1]] = found[2]
        self._size += len(line) + 1
        if len(variables) > MAX_VARIABLES or self._size > MAX_ENVIRONMENT:
            limits = f"{MAX_VARIABLES} variables or {MAX_ENVIRONMENT} bytes"
            self._fail(f"the environment has more than {limits}")
        return None

    def _reply_of(self, lines: list[str]) -> Reply | None:
        """Return the reply once all its lines are there."""
        status = _STATUS.fullmatch(lines[0])
        if status is None:
            self._fail("expected a reply that begins with a code of three digits")
        last = lines[-1]
        if status[2] == "-" and not _ends_usage(last, status[1]):
            return None
        if _OPENS_DATA.fullmatch(lines[0]) and ")" not in last:
            return None
        text = "\n".join(lines)
        self._lines, self._size = [], 0
        code = int(status[1])
        if code < 200:
            return None
        self._waiting = False
        if code == 200 and (found := _RESULT.fullmatch(text[4:])):
            return Reply(code, found[1], found[2], found[3].strip())
        return Reply(code, more=text[4:])

    def _fail(self, message: str) -> NoReturn:
        self._error = RemoteProtocolError(message)
        self._data.clear()
        self._at = 0
        raise self._error


def _ends_usage(line: str, code: str) -> bool:
    # The usage itself may lack its line feed.
    return line.startswith(f"{code} ") or line.endswith(f"{code} End of proper usage.")


def quoted(word: str) -> str:
    """Return an argument as Asterisk's parser reads it back (``parse_args``)."""
    text = word.translate(_UNSENDABLE)
    if _WORD.fullmatch(text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
