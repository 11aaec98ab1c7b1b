"""Outbound webhooks in the form of the Standard Webhooks (standardwebhooks.com).

A message is ``POST``ed with ``webhook-id``, ``webhook-timestamp`` and ``webhook-signature``:
``v1,`` and the base64 of HMAC-SHA256 over ``id.timestamp.body``. The id is the same for every try,
so a receiver can tell what it has already had. Anything but 2xx is tried again for three days.
"""

import base64
import hashlib
import hmac
import json
import logging
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import httpx

from callcore.calls import iso
from callcore.database import Row
from callcore.settings import Settings
from callcore.storage import Storage, outbox

logger = logging.getLogger(__name__)

#: Seconds until the next try, by the number of tries so far: the schedule of the specification.
RETRIES_S = (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)
#: Seconds that a receiver has to answer.
TIMEOUT_S = 15.0
#: Seconds after which a delivery whose sender died is taken by another.
_LEASE_S = 60.0
#: Deliveries to one endpoint in one sweep.
_BATCH = 10
#: Days that ended deliveries stay in the log.
KEEP_DAYS = 30
#: The type of the message that only ``test`` sends.
TEST = "callcore.test"
_TEST = {"message": "a test of callcore's webhooks"}


class Webhooks:
    """Tells the endpoints of the settings what happened.

    Args:
        storage: Holds the outbox.
        settings: ``webhook_urls``, ``webhook_secret`` and ``webhook_events``.
    """

    def __init__(self, storage: Storage, settings: Settings) -> None:
        self._storage = storage
        self._urls = {endpoint_of(url): url for url in settings.webhook_urls}
        wanted = frozenset(settings.webhook_events) | {TEST}
        self._wanted: Mapping[str, frozenset[str]] = dict.fromkeys(self._urls, wanted)
        self._secret = settings.webhook_secret
        # Endpoints are the site's own: no proxy of the environment and no redirect may move them.
        self._client = httpx.Client(timeout=TIMEOUT_S, trust_env=False, follow_redirects=False)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def send_test(self) -> dict[str, str | None]:
        """Send a test message to every endpoint now; return what was wrong, by endpoint."""
        database, moment = self._storage.database, self._storage.clock()
        message_id = f"msg_{uuid.uuid4().hex}"
        payload = {"type": TEST, "timestamp": moment.isoformat(), "data": _TEST}
        # Due later, so that no worker sends it too; should we die, one will.
        later = moment + timedelta(seconds=_LEASE_S)
        with database.transaction():
            for endpoint in self._urls:
                outbox.address(database, message_id, TEST, payload, endpoint, later)
        wrong: dict[str, str | None] = {}
        for endpoint in self._urls:
            with database.transaction():
                row = outbox.take(database, endpoint, later, 2 * _LEASE_S, message_id)
            if row is not None:
                wrong[endpoint] = self._send(row)
        return wrong

    def sweep(self) -> int:
        """Send what is due; return how many messages were sent, well or not."""
        database, moment = self._storage.database, self._storage.clock()
        if not outbox.has_work(database, self._urls, moment):
            return 0
        with database.transaction():
            outbox.fan_out(database, self._wanted, moment)
            outbox.forget(database, moment - timedelta(days=KEEP_DAYS))
        if not self._urls:
            return 0
        # Side by side: one that does not answer holds up no other.
        with ThreadPoolExecutor(len(self._urls), "webhook") as pool:
            return sum(pool.map(self._serve, self._urls))

    def _serve(self, endpoint: str) -> int:
        """Send what is due at one endpoint, until it fails; return the number of messages."""
        database = self._storage.database
        for number in range(_BATCH):
            with database.transaction():
                row = outbox.take(database, endpoint, self._storage.clock(), _LEASE_S)
            if row is None:
                return number
            if self._send(row) is not None:
                return number + 1
        return _BATCH

    def _send(self, row: Row) -> str | None:
        """Send a message and note how that went; return what was wrong."""
        url = self._urls[row["endpoint"]]
        body = json.dumps(row["payload"], ensure_ascii=False, separators=(",", ":")).encode()
        timestamp = str(int(self._storage.clock().timestamp()))
        headers = {
            "content-type": "application/json",
            "user-agent": "callcore",
            "webhook-id": row["message_id"],
            "webhook-timestamp": timestamp,
            "webhook-signature": sign(self._secret, row["message_id"], timestamp, body),
        }
        try:
            # The answer's body is nobody's business, and may have no end.
            with self._client.stream("POST", url, content=body, headers=headers) as answer:
                status = answer.status_code
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, OSError) as error:
            # Their messages may repeat the URL, which may carry a token.
            return self._failed(row, None, f"no answer ({type(error).__name__})")
        if 200 <= status < 300:
            return self._end(row, outbox.DELIVERED, status, None)
        if status == 410:
            return self._end(row, outbox.FAILED, status, "the endpoint says that it is gone")
        return self._failed(row, status, f"it answered {status}")

    def _failed(self, row: Row, status: int | None, error: str) -> str | None:
        tries = row["attempts"]
        if tries > len(RETRIES_S):
            return self._end(row, outbox.FAILED, status, f"{error}, {tries} times")
        logger.info("webhook failed", extra={"endpoint": row["endpoint"], "attempt": tries})
        database = self._storage.database
        due = self._storage.clock() + timedelta(seconds=RETRIES_S[tries - 1])
        with database.transaction():
            outbox.again(database, row, due, status, error)
        return error

    def _end(self, row: Row, state: str, status: int | None, error: str | None) -> str | None:
        if state == outbox.FAILED:
            extra = {"endpoint": row["endpoint"], "reason": error}
            logger.warning("webhook given up", extra=extra)
        database = self._storage.database
        with database.transaction():
            outbox.close(database, row, state, self._storage.clock(), status, error)
        return error


def note_test(storage: Storage) -> str:
    """Note a test message to every endpoint; the workers send it. Return its id."""
    moment = storage.clock()
    with storage.database.transaction():
        return outbox.note(storage.database, TEST, moment.isoformat(), _TEST, moment)


def deliveries(storage: Storage, limit: int = 100) -> list[dict[str, Any]]:
    """Return the newest deliveries, newest first, without what they said."""
    return [
        {
            "message_id": row["message_id"],
            "endpoint": row["endpoint"],
            "type": row["type"],
            "state": row["state"],
            "attempts": row["attempts"],
            "created_at": iso(row["created_at"]),
            "next_at": iso(row["due"]) if row["state"] == outbox.PENDING else None,
            "ended_at": iso(row["ended_at"]),
            "http_status": row["http_status"],
            "error": row["error"],
        }
        for row in outbox.log(storage.database, limit)
    ]


def endpoint_of(url: str) -> str:
    """Return the name of an endpoint: its host, and what tells it from others there.

    The URL itself may carry a token, and names get into logs.
    """
    return f"{urlsplit(url).hostname}-{hashlib.sha256(url.encode()).hexdigest()[:8]}"


def sign(secret: str, message_id: str, timestamp: str, body: bytes) -> str:
    """Return the value of ``webhook-signature``.

    Args:
        secret: ``whsec_`` and base64.
        message_id: The value of ``webhook-id``.
        timestamp: The value of ``webhook-timestamp``: seconds since 1970.
        body: The request's body.
    """
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = b".".join((message_id.encode(), timestamp.encode(), body))
    digest = hmac.new(key, signed, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"
