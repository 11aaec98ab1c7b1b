"""Outbound webhooks against a real receiver that checks them with the reference library."""

import base64
import json
import os
import socket
import threading
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook

from callcore.calls import now
from callcore.cli.webhooks import run
from callcore.errors import ConfigError
from callcore.settings import Settings
from callcore.storage import Storage, outbox
from callcore.webhooks import KEEP_DAYS, RETRIES_S, TEST, Webhooks, deliveries, note_test
from tests.support.databases import Clock, clock, database_url, storage
from tests.support.recordings import make_settings

__all__ = ["clock", "database_url", "storage"]

SECRET = "whsec_" + base64.b64encode(os.urandom(32)).decode()


class Receiver:
    """What came, and what to answer."""

    def __init__(self) -> None:
        self.answers: list[int] = []
        self.headers: dict[str, str] = {}
        """More headers of the answers."""
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.url = ""

    def messages(self) -> list[dict[str, Any]]:
        """Return what came, checked as the specification says."""
        return [Webhook(SECRET).verify(body, headers) for headers, body in self.got]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            made.got.append(({k.lower(): v for k, v in self.headers.items()}, body))
            self.send_response(made.answers.pop(0) if made.answers else 204)
            for name, value in made.headers.items():
                self.send_header(name, value)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        made.url = f"http://127.0.0.1:{server.server_port}/hook?token=4711"
        yield made
        server.shutdown()
        thread.join()


def site(folder: Path, *urls: str, **given: object) -> Settings:
    return make_settings(folder, webhook_urls=",".join(urls), webhook_secret=SECRET, **given)


@pytest.fixture
def webhooks(
    storage: Storage, clock: Clock, receiver: Receiver, tmp_path: Path
) -> Iterator[Webhooks]:
    clock.moment = now()  # receivers refuse what is older than five minutes
    made = Webhooks(storage, site(tmp_path, receiver.url))
    yield made
    made.close()


def note(storage: Storage, kind: str = "analysis.ready", key: str = "a") -> str:
    with storage.database.transaction():
        return outbox.note(storage.database, kind, key, {"audio_id": key}, storage.clock())


def test_a_message_is_signed_as_the_specification_says(
    storage: Storage, webhooks: Webhooks, receiver: Receiver
) -> None:
    message_id = note(storage)
    assert webhooks.sweep() == 1
    [message] = receiver.messages()
    assert message["type"] == "analysis.ready"
    assert message["data"] == {"audio_id": "a"}
    assert receiver.got[0][0]["webhook-id"] == message_id
    [row] = deliveries(webhooks._storage)
    assert (row["state"], row["attempts"], row["http_status"]) == ("delivered", 1, 204)
    assert webhooks.sweep() == 0


def test_what_happened_once_is_told_once(
    storage: Storage, webhooks: Webhooks, receiver: Receiver
) -> None:
    for _ in range(3):
        note(storage)
        webhooks.sweep()
    assert len(receiver.got) == 1


def test_a_failed_delivery_is_tried_on_the_schedule_and_then_given_up(
    storage: Storage, webhooks: Webhooks, receiver: Receiver, clock: Clock
) -> None:
    receiver.answers = [500] * (len(RETRIES_S) + 1)
    note(storage)
    webhooks.sweep()
    for wait_s in RETRIES_S:
        clock.move(wait_s - 1)
        assert webhooks.sweep() == 0
        clock.move(1)
        assert webhooks.sweep() == 1
    [row] = deliveries(webhooks._storage)
    assert (row["state"], row["attempts"], row["http_status"]) == ("failed", 10, 500)
    ids = {headers["webhook-id"] for headers, _ in receiver.got}
    assert len(ids) == 1
    clock.move(10 * 86_400)
    assert webhooks.sweep() == 0


@pytest.mark.parametrize("answer", [301, 400, 404, 503])
def test_anything_but_success_is_tried_again(
    storage: Storage, webhooks: Webhooks, receiver: Receiver, clock: Clock, answer: int
) -> None:
    receiver.answers = [answer]
    receiver.headers = {"location": "http://169.254.169.254/"}
    note(storage)
    webhooks.sweep()
    assert deliveries(webhooks._storage)[0]["error"] == f"it answered {answer}"
    clock.move(5)
    webhooks.sweep()
    assert deliveries(webhooks._storage)[0]["state"] == "delivered"
    assert len(receiver.got) == 2


def test_an_endpoint_that_is_gone_is_not_asked_again(
    storage: Storage, webhooks: Webhooks, receiver: Receiver
) -> None:
    receiver.answers = [410]
    note(storage)
    webhooks.sweep()
    assert deliveries(webhooks._storage)[0]["state"] == "failed"


def test_one_endpoint_that_is_away_keeps_nothing_from_the_other(
    storage: Storage, clock: Clock, receiver: Receiver, tmp_path: Path, free_port: int
) -> None:
    away = f"http://127.0.0.1:{free_port}/"
    webhooks = Webhooks(storage, site(tmp_path, away, receiver.url))
    note(storage)
    webhooks.sweep()
    assert len(receiver.got) == 1
    states = {row["state"]: row["error"] for row in deliveries(webhooks._storage)}
    assert states == {"delivered": None, "pending": "no answer (ConnectError)"}
    webhooks.close()


@pytest.fixture
def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def test_a_delivery_whose_sender_died_is_sent_by_another(
    storage: Storage, webhooks: Webhooks, receiver: Receiver, clock: Clock
) -> None:
    note(storage)
    database = storage.database
    with database.transaction():
        outbox.fan_out(database, webhooks._wanted, clock.moment)
        [endpoint] = webhooks._urls
        assert outbox.take(database, endpoint, clock.moment, 60.0) is not None
    assert webhooks.sweep() == 0
    clock.move(61)
    assert webhooks.sweep() == 1
    assert deliveries(webhooks._storage)[0]["attempts"] == 2


def test_only_the_events_that_are_wanted_are_sent_and_a_test_always_is(
    storage: Storage, clock: Clock, receiver: Receiver, tmp_path: Path
) -> None:
    clock.moment = now()
    webhooks = Webhooks(storage, site(tmp_path, receiver.url, webhook_events="flag.raised"))
    note(storage, "analysis.ready")
    note(storage, "flag.raised")
    note_test(storage)
    webhooks.sweep()
    assert {each["type"] for each in receiver.messages()} == {"flag.raised", TEST}
    webhooks.close()


def test_without_endpoints_nothing_is_kept_for_long(
    storage: Storage, clock: Clock, tmp_path: Path
) -> None:
    webhooks = Webhooks(storage, make_settings(tmp_path))
    note(storage)
    assert webhooks.sweep() == 0
    assert deliveries(webhooks._storage) == []
    clock.move(86_400 * (KEEP_DAYS + 1))
    note(storage, key="b")
    webhooks.sweep()
    with storage.database.transaction():
        assert not outbox.has_work(storage.database, [], clock.moment + timedelta(days=1))
    webhooks.close()


def test_neither_the_log_nor_an_error_repeats_the_url(
    storage: Storage, webhooks: Webhooks, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.answers = [410]
    note(storage)
    webhooks.sweep()
    assert "4711" not in json.dumps(deliveries(webhooks._storage)) + caplog.text


def test_the_end_of_a_call_is_told(
    storage: Storage, webhooks: Webhooks, receiver: Receiver
) -> None:
    leg = storage.add_unregistered_leg("c7a1f0d2-0000-4000-8000-000000000001", "daemon")
    storage.end_leg(leg.uuid, "hangup", None)
    assert storage.end_call_if_idle(leg.call_id, "hangup") is not None
    webhooks.sweep()
    [message] = receiver.messages()
    assert message["type"] == "call.ended"
    assert message["data"]["call_id"] == leg.call_id
    assert message["data"]["reason"] == "hangup"


@pytest.mark.parametrize(
    "secret", ["", "whsec_", "whsec_!!", "whsec_c2hvcnQ=", pytest.param(SECRET[6:], id="no prefix")]
)
def test_endpoints_without_a_good_secret_are_refused(tmp_path: Path, secret: str) -> None:
    with pytest.raises(ConfigError, match="openssl rand"):
        make_settings(tmp_path, webhook_urls="https://example.org/", webhook_secret=secret)


def test_an_unknown_kind_of_message_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"call\.ended"):
        site(tmp_path, "https://example.org/", webhook_events="call.began")


def test_the_command_tells_what_each_endpoint_answered(
    tmp_path: Path, receiver: Receiver, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = site(tmp_path, receiver.url)
    own = Storage(settings.database_url)
    own.migrate()
    own.close()
    assert run(settings, "log") == 0
    assert "nothing was sent" in capsys.readouterr().out
    assert run(settings, "test") == 0
    assert capsys.readouterr().out.endswith(": delivered\n")
    receiver.answers = [500]
    assert run(settings, "test") == 1
    assert capsys.readouterr().out.endswith(": it answered 500\n")
    assert run(settings, "log") == 0
    assert "pending" in capsys.readouterr().out


def test_the_test_touches_nothing_but_its_own_message(
    storage: Storage, webhooks: Webhooks, receiver: Receiver, tmp_path: Path
) -> None:
    receiver.answers = [500]
    note(storage)
    webhooks.sweep()
    note(storage, key="b")
    other = Webhooks(storage, site(tmp_path, f"{receiver.url}-other"))
    assert list(other.send_test().values()) == [None]
    other.close()
    states = {(row["type"], row["state"]) for row in deliveries(webhooks._storage)}
    assert states == {(TEST, "delivered"), ("analysis.ready", "pending")}
    webhooks.sweep()
    assert len(receiver.got) == 3  # the second note came to where it belongs


@pytest.mark.parametrize("url", ["http://a..b/h", "http://[::1/hook", "ftp://x/", "http:///x"])
def test_an_endpoint_that_is_no_url_is_refused_at_the_start(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigError, match="CALLCORE_WEBHOOK_URLS"):
        site(tmp_path, url)


def test_a_test_without_endpoints_says_which_setting_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="CALLCORE_WEBHOOK_URLS"):
        run(make_settings(tmp_path), "test")
