"""Who may report a recording: ``POST /api/recording-done/``.

With ``CALLCORE_HOOK_SECRETS`` a report needs a signature by one of them, or the bearer token of the
site, and nothing else will do: no session cookie, and no loopback address. A signature is one of

- ``Callcore-Signature: t=<unix seconds>,v1=<hex>``: HMAC-SHA256 over the time as written, a dot
  and the raw body. The time may be 300 s off. Several ``v1=`` are allowed, so that a sender can
  sign with an old and a new secret;
- ``X-Hub-Signature-256: sha256=<hex>``: over the raw body alone, for senders without a clock.

A report that is sent again within its window is the same recording: nothing is done twice.
Neither form can be taken for the other: a body that begins with a time is no JSON object.
"""

import hashlib
import hmac
import ipaddress
import logging
import re
import time
from collections.abc import Sequence

from starlette.requests import Request

from callcore.settings import Network
from web.answers import ApiError
from web.security import has_bearer
from web.site import Site

logger = logging.getLogger(__name__)

#: Seconds that the clocks of sender and receiver may differ, transport included.
WINDOW_S = 300
SIGNATURE = "Callcore-Signature"
HUB_SIGNATURE = "X-Hub-Signature-256"

#: Signatures of one header that are compared: two secrets at a time are a rotation.
_MAX_SIGNATURES = 8
_TIME = re.compile(r"[0-9]{1,12}")
_HEX = re.compile(r"[0-9a-f]{64}")


def require_peer(request: Request, site: Site) -> None:
    """Refuse a connection from elsewhere than ``hook_peers``.

    Behind a proxy the peer is whom the proxy names, if uvicorn trusts the proxy
    (``FORWARDED_ALLOW_IPS``, by default 127.0.0.1).

    Raises:
        ApiError: 403.
    """
    networks = site.settings.hook_peers
    if networks and not _is_in(request.client.host if request.client else "", networks):
        logger.warning("a report of a recording was refused", extra={"reason": "peer"})
        raise ApiError(
            403, "peer-not-allowed", "reports from this address are not taken (CALLCORE_HOOK_PEERS)"
        )


def _is_in(host: str, networks: Sequence[Network]) -> bool:
    try:
        peer = ipaddress.ip_address(host)
    except ValueError:
        return False
    if isinstance(peer, ipaddress.IPv6Address):
        peer = peer.ipv4_mapped or peer
    return any(peer.version == each.version and peer in each for each in networks)


def require_sender(request: Request, body: bytes, site: Site) -> None:
    """Refuse a report that is neither signed nor carries the token, where secrets are set.

    Without secrets the guard of all of the API has decided.

    Raises:
        ApiError: 401.
    """
    secrets = site.settings.hook_secrets
    if not secrets or (site.sessions and has_bearer(request.headers, site.sessions)):
        return
    fault = _fault(request, body, secrets)
    if fault is not None:
        logger.warning("a report of a recording was refused", extra={"reason": fault})
        raise ApiError(401, "not-authenticated", fault, headers={"WWW-Authenticate": "Bearer"})


def _fault(request: Request, body: bytes, secrets: Sequence[str]) -> str | None:
    """Return what is wrong with the signature; None if it is right."""
    timed = request.headers.getlist(SIGNATURE)
    plain = request.headers.getlist(HUB_SIGNATURE)
    if len(timed) > 1 or len(plain) > 1:
        return "there are two signature headers of one kind"
    # A sender that can tell the time is held to it, whatever else it sends.
    if timed:
        return timed_fault(timed[0], body, secrets, time.time())
    if plain:
        return plain_fault(plain[0], body, secrets)
    return f"sign the body ({SIGNATURE} or {HUB_SIGNATURE}), or send the bearer token"


def timed_fault(header: str, body: bytes, secrets: Sequence[str], now: float) -> str | None:
    """Return what is wrong with a ``Callcore-Signature``; None if it is right.

    Args:
        header: ``t=<unix>,v1=<hex>[,v1=<hex>...]``; parts with other names are ignored.
        body: As received.
        secrets: Any of them may have signed.
        now: Present time in seconds since 1970.
    """
    parts = [part.strip().partition("=") for part in header.split(",")]
    times = [value for name, _, value in parts if name == "t"]
    given = [value.lower() for name, _, value in parts if name == "v1"]
    if len(times) != 1 or not _TIME.fullmatch(times[0]):
        return f"{SIGNATURE} is not t=<unix seconds>,v1=<hex>"
    if not 1 <= len(given) <= _MAX_SIGNATURES or not all(map(_HEX.fullmatch, given)):
        return f"{SIGNATURE} is not t=<unix seconds>,v1=<hex>"
    if abs(now - int(times[0])) > WINDOW_S:
        return f"the signature's time is more than {WINDOW_S} s off: set the sender's clock"
    return _compare(f"{times[0]}.".encode() + body, given, secrets)


def plain_fault(header: str, body: bytes, secrets: Sequence[str]) -> str | None:
    """Return what is wrong with an ``X-Hub-Signature-256``; None if it is right."""
    name, _, given = header.strip().partition("=")
    if name != "sha256" or not _HEX.fullmatch(given.lower()):
        return f"{HUB_SIGNATURE} is not sha256=<hex>"
    return _compare(body, [given.lower()], secrets)


def _compare(signed: bytes, given: Sequence[str], secrets: Sequence[str]) -> str | None:
    right = [hmac.new(each.encode(), signed, hashlib.sha256).hexdigest() for each in secrets]
    found = [hmac.compare_digest(one, other) for one in given for other in right]
    return None if any(found) else "the signature does not fit the body and any of our secrets"
