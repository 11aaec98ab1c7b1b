"""The pages: rendered here, then kept alive by ``static/*.js`` from the API and the events."""

from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs

import jinja2
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from callcore import document
from callcore.calls import DocumentState, RecordingState, StepState
from callcore.storage import Storage
from web import api
from web.answers import ApiError
from web.security import COOKIE, RENEW_S, is_own_page, set_session
from web.shapes import call_json
from web.site import Site, site_of
from web.turns import turns_of

_PAGE = 50
_MAX_FORM_BYTES = 16 * 1024
_SAMPLE = "samples/helpline-distress.wav"
_COMPLETE = {DocumentState.COMPLETED, DocumentState.PARTIAL, DocumentState.FAILED}

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
        sample=_SAMPLE,
        audiosocket=str(site.settings.audiosocket_bind),
    )


async def calls(request: Request) -> Response:
    """``/calls/``: all calls, newest first, a page at a time."""
    before = request.query_params.get("before")
    found, older = await run_in_threadpool(site_of(request).storage.calls, before, _PAGE)
    return _page(
        request,
        "calls.html",
        here="calls",
        calls=[call_json(each) for each in found],
        before=before,
        older=older,
        sample=_SAMPLE,
    )


async def live(request: Request) -> Response:
    """``/calls/<id>/live``: the agent's page."""
    found = await run_in_threadpool(site_of(request).storage.call, request.path_params["call_id"])
    return _page(request, "live.html", call=call_json(found))


async def call(request: Request) -> Response:
    """``/calls/<id>``: what was said, with the sound."""
    site = site_of(request)
    state = await api.call_state(site, request.path_params["call_id"])
    asked = request.query_params.get("audio")
    shown = _shown(state["recordings"], asked)
    transcript = await run_in_threadpool(_transcript, site.storage, state, shown)
    # An hour of words takes a quarter of a second to render: not beside the streams of events.
    return await run_in_threadpool(_call_page, request, state, shown, transcript)


def _call_page(
    request: Request,
    state: dict[str, Any],
    shown: dict[str, Any] | None,
    transcript: dict[str, Any],
) -> Response:
    is_stored = shown is not None and shown["state"] == RecordingState.STORED
    recordings = state["recordings"]
    is_complete = state["state"] != "live" and all(r["status"] in _COMPLETE for r in recordings)
    return _page(
        request,
        "call.html",
        call=state,
        recordings=recordings,
        shown_audio_id=shown["audio_id"] if shown else None,
        transcript=transcript,
        turns=turns_of(transcript["segments"]),
        audio_url=f"/api/audio/{shown['audio_id']}/media" if shown and is_stored else None,
        audio_offset=(shown["offset_s"] or 0.0) if shown else 0.0,
        no_recording=_no_recording(state),
        is_complete=is_complete and (bool(recordings) or state["state"] == "missed"),
        last_event_id=state["last_event_id"],
    )


def _shown(recordings: list[dict[str, Any]], asked: str | None) -> dict[str, Any] | None:
    """Return the recording that the page plays: the one asked for, else the newest with sound."""
    for each in recordings:
        if each["audio_id"] == asked:
            return each
    stored = [each for each in recordings if each["state"] == RecordingState.STORED]
    candidates = stored or recordings
    return candidates[-1] if candidates else None


def _transcript(
    storage: Storage, state: dict[str, Any], shown: dict[str, Any] | None
) -> dict[str, Any]:
    """Return the words to show: the recording's once they are there, else the live ones."""
    if shown and "transcribe" in _done(shown):
        segments = document.read(storage, shown["audio_id"])["segments"]
        note = "" if segments else "No words were recognised in this recording."
        return {"segments": segments, "source": "recording", "note": note}
    if not state["segments"]:
        return {"segments": [], "source": "live", "note": _no_words(state, shown)}
    note = "It was written while people spoke. The transcript of the recording replaces it"
    if shown and shown["status"] in _COMPLETE:
        note = "It was written while people spoke; the recording could not be transcribed"
    return {"segments": state["segments"], "source": "live", "note": f"{note}."}


def _done(recording: dict[str, Any]) -> set[str]:
    return {step["name"] for step in recording["steps"] if step["status"] == StepState.DONE}


def _no_words(state: dict[str, Any], shown: dict[str, Any] | None) -> str:
    if state["state"] == "live":
        return "No words yet. The live page shows them as they come."
    if shown and shown["status"] not in _COMPLETE:
        return "No words yet: the recording is being processed."
    return "No words were recognised in this call."


def _no_recording(state: dict[str, Any]) -> str:
    if state["state"] == "live":
        return "The recording comes after the call has ended."
    if state["state"] == "missed":
        return "A missed call has no recording."
    return "There is no recording of this call yet."


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
    environment.filters.update(
        clock=clock,
        utc=_utc,
        speaker=speaker,
        state_name=lambda state: _STATES.get(state, state),
        step_name=lambda name: _STEPS.get(name, name[:1].upper() + name[1:]),
        step_status=lambda status: _STEP_STATUS.get(status, status),
        document_name=lambda status: _DOCUMENTS.get(status, status),
        door=lambda source: _DOORS.get(source, source),
        direction=lambda direction: _DIRECTIONS.get(direction or "", ""),
    )
    return environment


_STATES = {"live": "Live", "ended": "Ended", "missed": "Missed"}
_STEPS = {"settle": "Read the recording", "transcribe": "Transcribe"}
_STEP_STATUS = {"pending": "waiting", "": ""}
_DOCUMENTS = {
    "queued": "Queued",
    "processing": "Processing",
    "completed": "Completed",
    "partial": "Partly done",
    "failed": "Failed",
}
_DOORS = {
    "spool": "the PBX's folder",
    "upload": "an upload",
    "capture": "the live audio",
    "webhook": "the PBX's message",
    "agi": "the dialplan",
}
_DIRECTIONS = {"in": "Incoming", "out": "Outgoing", "internal": "Internal"}


def clock(seconds: float | None) -> str:
    """Return seconds as ``m:ss`` or ``h:mm:ss``; nothing for None."""
    if seconds is None:
        return ""
    minutes, rest = divmod(max(0, int(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def speaker(leg: str) -> str:
    """Return a leg's name for people: ``Caller``, ``Agent 2``, ``Everyone`` where it is mixed."""
    role, _, number = leg.partition("-")
    name = "Everyone" if role == "mixed" else role.capitalize()
    return f"{name} {number}" if number else name


def _utc(iso: str) -> str:
    moment = datetime.fromisoformat(iso).astimezone(UTC)
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"
