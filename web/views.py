"""The pages: rendered here, then kept alive by ``static/*.js`` from the API and the events."""

from typing import Any
from urllib.parse import parse_qs

import jinja2
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from callcore.calls import CallState
from web import api, call_page, calls_page
from web.answers import ApiError
from web.names import FILTERS
from web.security import COOKIE, RENEW_S, is_own_page, set_session
from web.shapes import call_json
from web.site import Site, site_of

_PAGE = 50
_MAX_FORM_BYTES = 16 * 1024
#: Which calls the list may show: the value of ``?state=``, and what it is called.
_FILTERS = {"": "All", CallState.MISSED.value: "Missed"}
_SAMPLE = "samples/helpline-distress.wav"

_TITLES = {
    401: "Please log in",
    403: "Not allowed",
    404: "Not found",
    405: "Not possible",
    503: "Not available just now",
}


# ---- pages


async def lobby(request: Request) -> Response:
    """``/`` and ``/lobby/``: the calls that run now."""
    site = site_of(request)
    state = await api.lobby_state(site)
    return _page(
        request,
        "lobby.html",
        here="lobby",
        calls=state["calls"],
        recognition=site.settings.live,
        sample=_SAMPLE,
        audiosocket=str(site.settings.audiosocket_bind),
    )


async def calls(request: Request) -> Response:
    """``/calls/``: all calls, newest first, a page at a time."""
    return await run_in_threadpool(_calls_page, request)


def _calls_page(request: Request) -> Response:
    site = site_of(request)
    before, wanted = (request.query_params.get(name) for name in ("before", "state"))
    if wanted not in (*_FILTERS, None):
        raise ApiError(400, "bad-state", "expected `missed` or nothing", "state")
    state = CallState(wanted) if wanted else None
    found, older = site.storage.calls(before, _PAGE, state)
    listed = [call_json(each) for each in found]
    findings = calls_page.findings(site.storage, [each["call_id"] for each in listed])
    return _page(
        request,
        "calls.html",
        here="calls",
        calls=listed,
        findings=findings,
        states={
            each["call_id"]: calls_page.states(each, findings.get(each["call_id"]))
            for each in listed
        },
        filters=_FILTERS,
        wanted=wanted or "",
        before=before,
        older=older,
        sample=_SAMPLE,
        upload_max_mb=site.settings.upload_max_mb,
    )


async def live(request: Request) -> Response:
    """``/calls/<id>/live``: the agent's page."""
    site = site_of(request)
    found = await run_in_threadpool(site.storage.call, request.path_params["call_id"])
    return _page(request, "live.html", call=call_json(found), recognition=site.settings.live)


async def call(request: Request) -> Response:
    """``/calls/<id>``: what was said and found, with the sound."""
    state = await api.call_state(site_of(request), request.path_params["call_id"])
    # An hour of words takes a quarter of a second to render: not beside the streams of events.
    return await run_in_threadpool(_call_page, request, state)


def _call_page(request: Request, state: dict[str, Any]) -> Response:
    site = site_of(request)
    asked = request.query_params.get("audio")
    shown = call_page.context(site.storage, site.settings, state, asked)
    return _page(request, "call.html", **shown)


async def call_progress(request: Request) -> Response:
    """``/calls/<id>/progress``: how far the analysis is, as a piece of the call's page."""
    return await run_in_threadpool(_progress_page, request)


def _progress_page(request: Request) -> Response:
    shown = call_page.progress(site_of(request).storage, request.path_params["call_id"])
    return _page(request, "call_progress.html", **shown)


# ---- log-in


async def show_login(request: Request) -> Response:
    """``GET /login``."""
    if site_of(request).sessions is None:
        return RedirectResponse("/", 303)
    return _login_page(request, request.query_params.get("next", "/"))


async def log_in(request: Request) -> Response:
    """``POST /login``: the token becomes a cookie that scripts cannot read."""
    sessions = site_of(request).sessions
    if sessions is None:
        return RedirectResponse("/", 303)
    form = await _form(request)
    target = form.get("next", "/")
    if not sessions.is_token(form.get("token", "").strip()):
        return _login_page(request, target, "This is not the token of this site.", 401)
    response = RedirectResponse(target if is_own_page(target) else "/", 303)
    set_session(response, request, sessions)
    return response


async def log_out(_request: Request) -> Response:
    """``POST /logout``."""
    response = RedirectResponse("/login", 303)
    response.delete_cookie(COOKIE, httponly=True, samesite="lax")
    return response


def _login_page(request: Request, target: str, error: str = "", status: int = 200) -> Response:
    safe = target if is_own_page(target) else "/"
    return _page(request, "login.html", status=status, next=safe, error=error, navigation=False)


async def _form(request: Request) -> dict[str, str]:
    body = bytearray()
    async for block in request.stream():
        body += block
        if len(body) > _MAX_FORM_BYTES:
            raise ApiError(413, "too-large", "this form is too large")
    fields = parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True)
    return {name: values[0] for name, values in fields.items()}


# ---- rendering


def error_page(request: Request, error: ApiError) -> Response:
    """Return a page that says what is wrong."""
    message = error.message[:1].upper() + error.message[1:].rstrip(".") + "."
    return _page(
        request,
        "error.html",
        status=error.status,
        headers=dict(error.headers or {}),
        title=_TITLES.get(error.status, "Something went wrong"),
        message=message,
    )


def _page(
    request: Request,
    name: str,
    *,
    status: int = 200,
    headers: dict[str, str] | None = None,
    here: str = "",
    navigation: bool = True,
    **context: Any,
) -> Response:
    site = site_of(request)
    html = site.templates.get_template(name).render(
        here=here, show_navigation=navigation, has_token=site.sessions is not None, **context
    )
    response = HTMLResponse(html, status, headers)
    _renew_session(site, request, response)
    return response


def _renew_session(site: Site, request: Request, response: Response) -> None:
    if site.sessions is None:
        return
    age = site.sessions.age_s(request.cookies.get(COOKIE, ""))
    if age is not None and age > RENEW_S:
        set_session(response, request, site.sessions)


def templates() -> jinja2.Environment:
    """Return the templates; what they print is escaped, and unknown names are errors."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("web"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(FILTERS)
    return environment
