"""Manager sessions: against a scripted server for what Asterisk never does, and the real one."""

import contextlib
import re
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from callcore.ami import MAX_MESSAGE, Ami
from callcore.errors import AmiError, LocalProtocolError
from callcore.settings import Address
from tests.support.asterisk import Asterisk

GREETING = b"Asterisk Call Manager/11.0.0\r\n"
#: Bound of waits for what must come.
PATIENCE_S = 20.0


class Server:
    """Answers each action with what a function makes of it."""

    def __init__(self, answer: Callable[[dict[str, str], socket.socket], object]) -> None:
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = Address("127.0.0.1", self._listener.getsockname()[1])
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._listener.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError), self._listener.accept()[0] as peer:
            peer.sendall(GREETING)
            with peer.makefile("rb") as lines:
                action: dict[str, str] = {}
                for line in lines:
                    key, colon, value = line.decode().rstrip("\r\n").partition(": ")
                    if colon:
                        action[key] = value
                    elif action["Action"] == "Login":
                        reply(peer, action, "Response: Success")
                        action = {}
                    else:
                        self._answer(action, peer)
                        action = {}


def reply(peer: socket.socket, action: dict[str, str], *lines: str) -> None:
    said = [*lines[:1], f"ActionID: {action['ActionID']}", *lines[1:]]
    peer.sendall("".join(f"{line}\r\n" for line in said).encode() + b"\r\n")


@contextlib.contextmanager
def session(
    answer: Callable[[dict[str, str], socket.socket], object], timeout_s: float = PATIENCE_S
) -> Iterator[Ami]:
    server = Server(answer)
    try:
        with Ami(server.address, "me", "secret", timeout_s=timeout_s) as ami:
            yield ami
    finally:
        server.close()


def test_a_reply_is_told_from_events_and_from_replies_to_others() -> None:
    def answer(action: dict[str, str], peer: socket.socket) -> None:
        peer.sendall(b"Event: Noise\r\nActionID: another-1\r\n\r\n")
        peer.sendall(b"Response: Error\r\nActionID: another-1\r\nMessage: no\r\n\r\n")
        reply(peer, action, "Response: Success", "Value: a: b")

    with session(answer) as ami:
        assert ami.variable("X") == "a: b"
        assert ami.wait_for(lambda event: True, 0) == {"Event": "Noise", "ActionID": "another-1"}


def test_a_message_whose_end_is_late_is_read_whole_later() -> None:
    late = threading.Event()

    def answer(action: dict[str, str], peer: socket.socket) -> None:
        reply(peer, action, "Response: Success")
        peer.sendall(b"Event: One\r\nPart: first\r\n")
        late.wait(PATIENCE_S)
        peer.sendall(b"Rest: second\r\n\r\n")

    with session(answer) as ami:
        ami.action("Ping")
        assert ami.wait_for(lambda event: True, 0.05) is None
        late.set()
        assert ami.wait_for(lambda event: True, PATIENCE_S) == {
            "Event": "One",
            "Part": "first",
            "Rest": "second",
        }


def test_bytes_that_come_one_by_one_make_the_same_message() -> None:
    def answer(action: dict[str, str], peer: socket.socket) -> None:
        text = f"Response: Success\r\nActionID: {action['ActionID']}\r\nOutput: a\r\nOutput: b\r\n"
        for byte in (text + "\r\n").encode():
            peer.send(bytes([byte]))

    with session(answer) as ami:
        assert ami.command("x") == ["a", "b"]


def test_a_refused_action_tells_why_and_what_was_printed() -> None:
    def answer(action: dict[str, str], peer: socket.socket) -> None:
        reply(peer, action, "Response: Error", "Message: Permission denied", "Output: line")

    with session(answer) as ami:
        with pytest.raises(AmiError, match="refused Ping: Permission denied") as caught:
            ami.action("Ping")
        assert (caught.value.code, caught.value.output) == ("refused", ["line"])
        assert ami.command("x") == ["line"]
        assert ami.variable("X") == ""


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"Event: " + b"x" * (MAX_MESSAGE + 10), "not-ami"),
        (b"\xff\xfe: \r\n\r\n", "timeout"),
        (b"", "timeout"),
    ],
)
def test_what_is_no_reply_ends_the_wait_for_one(sent: bytes, code: str) -> None:
    with session(lambda action, peer: peer.sendall(sent), timeout_s=0.5) as ami:
        with pytest.raises(AmiError) as caught:
            ami.action("Ping")
        assert caught.value.code == code


def test_a_connection_that_ends_is_told() -> None:
    with session(lambda action, peer: peer.shutdown(socket.SHUT_RDWR)) as ami:
        with pytest.raises(AmiError) as caught:
            ami.action("Ping")
        assert caught.value.code == "closed"


def test_a_header_cannot_carry_another() -> None:
    with (
        session(lambda action, peer: None) as ami,
        pytest.raises(LocalProtocolError),
    ):
        ami.action("Getvar", Variable="X\r\nAction: Command")


def test_nobody_there_and_somebody_else_there_are_told_apart() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def greet() -> None:
            with listener.accept()[0] as peer:
                peer.sendall(b"220 mail.example.org ESMTP\r\n")

        thread = threading.Thread(target=greet, daemon=True)
        thread.start()
        with pytest.raises(AmiError) as caught:
            Ami(Address("127.0.0.1", port), "me", "x", timeout_s=PATIENCE_S)
        assert caught.value.code == "not-ami"
        thread.join()
    with pytest.raises(AmiError) as caught:
        Ami(Address("127.0.0.1", port), "me", "x")
    assert caught.value.code == "unreachable"


def test_the_real_one_logs_in_answers_and_sends_events(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with Asterisk(tmp_path_factory.mktemp("a")) as asterisk:
        with pytest.raises(AmiError) as caught:
            Ami(asterisk.ami_address, "test", "hunter2")
        assert caught.value.code == "login"
        assert "hunter2" not in str(caught.value)
        with asterisk.ami(events="call") as ami:
            assert re.match(r"\d+\.", ami.action("CoreSettings")["AsteriskVersion"])
            assert ami.variable("ASTSPOOLDIR") == str(asterisk.folder / "spool")
            assert ami.variable("CALLCORE_NOT_SET") == ""
            assert len(ami.command("module show")) > 50
            assert any("no existence" in line for line in ami.command("dialplan show nothing-here"))
            asked = ami.action(
                "Originate",
                Channel="Local/agent@parties/n",
                Application="NoOp",
                Variable=["AGENT_SAYS=silence/1", "B=2"],
                Async="true",
            )
            answer = ami.wait_for(lambda event: event["Event"] == "OriginateResponse", PATIENCE_S)
            assert answer is not None
            assert answer["ActionID"] == asked["ActionID"]
            assert answer["Response"] == "Success"
