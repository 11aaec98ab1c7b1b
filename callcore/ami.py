r"""A client of Asterisk's manager interface (AMI): one action at a time, each with an end.

Wire (manager.c of Asterisk 22; docs.asterisk.org, "AMI v2 Specification"): a greeting line, then
messages of lines ``Key: value`` that end with CR LF, each message closed by an empty line::

    Action: Ping            Response: Success
    ActionID: 7             ActionID: 7
                            Ping: Pong

A reply carries the ActionID of its action; ``Output`` may stand in it many times. Events come at
any time between messages and are kept until ``events`` takes them.

Blocking: not for an event loop.
"""

import itertools
import socket
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from callcore.errors import AmiError, LocalProtocolError
from callcore.settings import Address

#: Longest message in bytes: a line is shorter than 1 KB, an Output has some hundreds of them.
MAX_MESSAGE = 1 << 20
#: Events that are kept for ``wait_for``.
_MAX_EVENTS = 10_000

Message = dict[str, list[str]]


class Ami:
    """A session of one manager user.

    Args:
        address: Where ``manager.conf`` listens.
        user: Section of ``manager.conf``.
        secret: Its secret.
        timeout_s: Longest time that connecting, logging in and one reply may take.
        events: Classes of events to be sent, e.g. ``call,dialplan``; ``off`` for none.

    Raises:
        AmiError: ``unreachable``, ``not-ami`` or ``login``.
    """

    def __init__(
        self,
        address: Address,
        user: str,
        secret: str,
        *,
        timeout_s: float = 5.0,
        events: str = "off",
    ) -> None:
        self._timeout_s = timeout_s
        # An event tells the action that it answers to every session, so it must not be another's.
        self._name = uuid.uuid4().hex
        self._numbers = itertools.count(1)
        self._unread = b""
        self._events: deque[Message] = deque(maxlen=_MAX_EVENTS)
        try:
            self._socket = socket.create_connection((address.host, address.port), timeout_s)
        except OSError as error:
            reason = error.strerror or "timed out"
            raise AmiError("unreachable", f"nothing answers on {address} ({reason})") from None
        try:
            greeting = self._until(b"\r\n", time.monotonic() + timeout_s)
            if not greeting.startswith("Asterisk Call Manager"):
                raise AmiError("not-ami", f"{address} is not Asterisk's manager interface")
            try:
                self.action("Login", Username=user, Secret=secret, Events=events)
            except AmiError as error:
                if error.code != "refused":
                    raise
                raise AmiError("login", "Asterisk refused the manager user or secret") from None
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> "Ami":
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def action(self, name: str, /, **headers: str | Sequence[str]) -> dict[str, str]:
        """Do something and return the reply's headers; the last one where a header comes twice.

        Its ``ActionID`` is that of the events which the action leads to.

        Args:
            name: The action, e.g. ``Originate``.
            **headers: Its headers; a sequence sends the header once for each of its texts.

        Raises:
            AmiError: ``refused`` with what Asterisk says, ``timeout`` or ``closed``.
            LocalProtocolError: If a header holds a line feed.
        """
        return {key: values[-1] for key, values in self._asked(name, headers).items()}

    def command(self, line: str) -> list[str]:
        """Run a command of Asterisk's console and return its lines.

        Raises:
            AmiError: As ``action``.
        """
        try:
            return self._asked("Command", {"Command": line}).get("Output", [])
        except AmiError as error:
            if error.code == "refused" and error.output:
                return error.output
            raise

    def variable(self, name: str) -> str:
        """Return a global variable or a function of the dialplan, empty if it is not set.

        Raises:
            AmiError: As ``action``.
        """
        try:
            return self.action("Getvar", Variable=name).get("Value", "")
        except AmiError as error:
            if error.code == "refused":
                return ""
            raise

    def wait_for(
        self, wanted: Callable[[Mapping[str, str]], bool], timeout_s: float
    ) -> dict[str, str] | None:
        """Return the first event, past or to come, that is wanted; None if none comes in time.

        Events that are not wanted are dropped.

        Raises:
            AmiError: ``closed``.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            while self._events:
                event = {key: values[-1] for key, values in self._events.popleft().items()}
                if wanted(event):
                    return event
            try:
                message = self._message(deadline)
            except AmiError as error:
                if error.code == "timeout":
                    return None
                raise
            if "Event" in message:
                self._events.append(message)

    def _asked(self, name: str, headers: Mapping[str, str | Sequence[str]]) -> Message:
        number = f"{self._name}-{next(self._numbers)}"
        lines = [("Action", name), ("ActionID", number)]
        for key, value in headers.items():
            lines += [(key, text) for text in ([value] if isinstance(value, str) else value)]
        if any("\n" in part or "\r" in part for line in lines for part in line):
            raise LocalProtocolError("a header of the manager interface with a line feed")
        try:
            self._socket.sendall(
                "".join(f"{key}: {text}\r\n" for key, text in lines).encode() + b"\r\n"
            )
        except OSError as error:
            raise AmiError("closed", "Asterisk closed the manager connection") from error
        deadline = time.monotonic() + self._timeout_s
        while True:
            message = self._message(deadline)
            if "Event" in message:
                self._events.append(message)
            elif "Response" in message and message.get("ActionID", [number]) == [number]:
                break
        if message.get("Response") == ["Error"]:
            said = message.get("Message", ["no reason"])[-1]
            raise AmiError("refused", f"Asterisk refused {name}: {said}", message.get("Output", []))
        return message

    def _message(self, deadline: float) -> Message:
        # A whole message or none: what has come of one when time is over waits for the next call.
        text = self._until(b"\r\n\r\n", deadline)
        message: Message = {}
        for line in text.split("\r\n"):
            key, _, value = line.partition(":")
            message.setdefault(key.strip(), []).append(value.strip())
        return message

    def _until(self, end: bytes, deadline: float) -> str:
        """Return what comes before ``end``, and drop both."""
        looked_at = 0
        while (position := self._unread.find(end, max(0, looked_at - len(end)))) < 0:
            looked_at = len(self._unread)
            if looked_at > MAX_MESSAGE:
                raise AmiError("not-ami", "the manager interface sent too long a message")
            self._unread += self._received(deadline)
        text = self._unread[:position].decode("utf-8", "replace")
        self._unread = self._unread[position + len(end) :]
        return text

    def _received(self, deadline: float) -> bytes:
        left_s = deadline - time.monotonic()
        try:
            if left_s <= 0:
                raise TimeoutError
            self._socket.settimeout(left_s)
            data = self._socket.recv(65536)
        except TimeoutError:
            raise AmiError("timeout", "Asterisk did not answer in time") from None
        except OSError as error:
            raise AmiError("closed", "Asterisk closed the manager connection") from error
        if not data:
            raise AmiError("closed", "Asterisk closed the manager connection")
        return data
