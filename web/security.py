"""Who may ask, from where, and what a browser may do with the answer.

Without ``CALLCORE_TOKEN`` the web listens on loopback only; a page of another site that a local
browser shows could still reach it under a name that resolves to 127.0.0.1 (DNS rebinding), so
the Host header must be a loopback name as well. With a token every request but the log-in, the
probes and the static files needs it: as ``Authorization: Bearer``, or as the session cookie that
the log-in page sets, because EventSource and links send no header.

A cookie travels with requests that other sites cause. Everything but GET and HEAD therefore must
come from our own pages unless it carries the bearer token (Fetch Metadata; else Origin).

Where reports of recordings are signed, see ``hooks``, that one address is left to the signature.

What collects metrics keeps its secret in a configuration file. ``CALLCORE_METRICS_TOKEN`` is one
for that: it opens ``METRICS_PATH``, as a bearer token, and nothing else.
"""

import hashlib
import hmac
import ipaddress
import time
from collections.abc import Callable
from urllib.parse import quote, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request, cookie_parser
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from callcore.settings import Settings
from web.answers import ApiError

#: Cookie of a browser's session.
COOKIE = "callcore_session"
#: A working day with overtime; pages renew it while somebody works.
SESSION_S = 12 * 3600
#: Age from which a page renews the session.
RENEW_S = 3600

#: Where recordings are reported; with ``CALLCORE_HOOK_SECRETS``, ``hooks`` decides who may.
HOOK_PATH = "/api/recording-done/"

#: Where metrics are read.
METRICS_PATH = "/metrics"

_SAFE_METHODS = frozenset({"GET", "HEAD"})
_OPEN_PATHS = frozenset({"/login", "/live", "/ready"})
_API_PATHS = ("/api/", "/events/", "/live", "/ready", METRICS_PATH, "/openapi.json")

#: No inline script or style, nothing from elsewhere, no frames around us.
CONTENT_SECURITY_POLICY = (
    "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'"
)


def is_api(path: str) -> bool:
    """Return whether the path answers programs, in JSON, rather than people."""
    return path.startswith(_API_PATHS)


def secure_headers(headers: MutableHeaders, path: str) -> None:
    """Add what tells browsers how little they may do with the answer."""
    headers["X-Content-Type-Options"] = "nosniff"
    headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
    headers["X-Frame-Options"] = "DENY"
    headers["Cross-Origin-Opener-Policy"] = "same-origin"
    headers["Cross-Origin-Resource-Policy"] = "same-origin"
    if path.startswith("/static/"):
        headers["Cache-Control"] = "no-cache"  # ask each time: the ETag answers
    else:
        headers["Cache-Control"] = "no-store"
    is_page = headers.get("content-type", "").startswith("text/html")
    # Under no-referrer a browser posts a page's form with "Origin: null" (Fetch standard, "append
    # a request Origin header"), and plain http sends no Sec-Fetch-Site: log-in would be refused.
    headers["Referrer-Policy"] = "same-origin" if is_page else "no-referrer"


def is_loopback_host(host: str) -> bool:
    """Return whether a Host header names this machine's loopback.

    Args:
        host: E.g. ``127.0.0.1:8000``, ``localhost`` or ``[::1]:8000``.
    """
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


class Sessions:
    """Makes and checks the session cookie; a changed token ends every session.

    Args:
        token: The site's secret.
        clock: Present time in seconds since the epoch.
    """

    def __init__(self, token: str, clock: Callable[[], float] = time.time) -> None:
        self._key = hashlib.sha256(b"callcore session\0" + token.encode()).digest()
        self._token = _digest(token)
        self._clock = clock

    def is_token(self, text: str) -> bool:
        """Return whether ``text`` is the site's token, in a time that does not tell how much."""
        return hmac.compare_digest(_digest(text), self._token)

    def issue(self) -> str:
        """Return a cookie's value that is good from now on."""
        issued = str(int(self._clock()))
        return f"{issued}.{self._sign(issued)}"

    def age_s(self, cookie: str) -> float | None:
        """Return how old the session is, None if it is not one or has expired."""
        issued, _, signature = cookie.partition(".")
        if not hmac.compare_digest(signature.encode(), self._sign(issued).encode()):
            return None
        age = self._clock() - int(issued)
        return age if age < SESSION_S else None

    def _sign(self, issued: str) -> str:
        return hmac.new(self._key, issued.encode(), hashlib.sha256).hexdigest()


def set_session(response: Response, request: Request, sessions: Sessions) -> None:
    """Give the browser a fresh session cookie."""
    response.set_cookie(
        COOKIE,
        sessions.issue(),
        max_age=SESSION_S,
        httponly=True,
        samesite="lax",
        secure=request.url.scheme == "https",
    )


def is_own_page(path: str) -> bool:
    """Return whether a path may be gone to after log-in: it must stay on this site."""
    return path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable()


class Guard:
    """ASGI middleware: lets in who may come in, and adds the headers to every answer.

    Args:
        app: What is guarded.
        settings: ``token`` decides how.
        sessions: None where there is no token.
    """

    def __init__(self, app: ASGIApp, settings: Settings, sessions: Sessions | None) -> None:
        self._app = app
        self._settings = settings
        self._sessions = sessions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request, or pass it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                secure_headers(MutableHeaders(scope=message), scope["path"])
            await send(message)

        try:
            refusal = self._refusal(scope)
        except ApiError as error:
            refusal = error.response()
        await (refusal or self._app)(scope, receive, send_secured)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        path: str = scope["path"]
        if "\x00" in path:  # no id has one, and PostgreSQL takes none
            raise ApiError(400, "bad-path", "a path holds no NUL character")
        if path == HOOK_PATH and self._settings.hook_secrets:
            return None  # a signature can be checked only when the body is there
        if self._sessions is None:
            self._require_loopback(headers)
        elif has_bearer(headers, self._sessions) or self._may_read_metrics(scope, headers):
            return None
        if scope["method"] not in _SAFE_METHODS and not _is_from_our_pages(headers):
            raise ApiError(
                403, "cross-site", "this request came from another site; send the bearer token"
            )
        if self._sessions is None or path in _OPEN_PATHS or path.startswith("/static/"):
            return None
        cookie = cookie_parser(headers.get("cookie", "")).get(COOKIE, "")
        if self._sessions.age_s(cookie) is not None:
            return None
        if is_api(path):
            raise ApiError(
                401,
                "not-authenticated",
                "send the token as `Authorization: Bearer <CALLCORE_TOKEN>`",
                headers={"WWW-Authenticate": "Bearer"},
            )
        target = f"/login?next={quote(path)}" if scope["method"] in _SAFE_METHODS else "/login"
        return RedirectResponse(target, 303)

    def _may_read_metrics(self, scope: Scope, headers: Headers) -> bool:
        token = self._settings.metrics_token
        if not token or scope["path"] != METRICS_PATH or scope["method"] not in _SAFE_METHODS:
            return False
        return hmac.compare_digest(_digest(_bearer(headers)), _digest(token))

    @staticmethod
    def _require_loopback(headers: Headers) -> None:
        if not is_loopback_host(headers.get("host", "")):
            raise ApiError(
                403,
                "host-not-allowed",
                "without CALLCORE_TOKEN pages are served under a loopback name only, "
                "e.g. http://127.0.0.1:8000/",
            )


def has_bearer(headers: Headers, sessions: Sessions) -> bool:
    """Return whether a request carries the site's token."""
    return sessions.is_token(_bearer(headers))


def _bearer(headers: Headers) -> str:
    """Return the token that a request carries, empty if it has none."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _digest(text: str) -> bytes:
    """Return what is compared in a time that does not tell how much is alike."""
    return hashlib.sha256(text.encode()).digest()


def _is_from_our_pages(headers: Headers) -> bool:
    """Return whether no other site's page caused the request.

    Programs send neither header and no cookie; a request with a cookie must prove where it is from.
    """
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site in {"same-origin", "none"}
    origin = headers.get("origin")
    if origin is not None:
        try:
            return urlsplit(origin).netloc == headers.get("host", "")
        except ValueError:
            return False
    return COOKIE not in cookie_parser(headers.get("cookie", ""))
