"""The JSON API and the streams of events; what they do is decided in ``callcore``."""

import asyncio
import dataclasses
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import peewee
import redis
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from callcore import admission, bus, document, insights_document, intake
from callcore.calls import REFUSED, CallFacts, Media, Recording, RecordingState
from callcore.errors import CallcoreError, InvalidRecording
from callcore.intake import Accepted
from callcore.storage import Storage
from web import hooks, playback
from web import upload as uploads
from web.answers import ApiError
from web.api_bodies import body_of, json_object, parsed, unknown_field
from web.api_status import receipt, status_of
from web.ranges import Content, FileContent, ranged
from web.shapes import call_json, leg_json, recording_json
from web.site import Site, site_of
from web.sse import EventStream

_PAGE = 50
_READY_TIMEOUT_S = 3.0
_FACTS = tuple(each.name for each in dataclasses.fields(CallFacts))
#: How far back the newest partials and the delay of a call are looked for.
_RECENT_EVENTS = 300
_AWAY = (redis.RedisError, OSError)


# ---- legs and calls


async def register_leg(request: Request) -> Response:
    """``POST /api/legs/``: a stream with this UUID comes within seconds."""
    site = site_of(request)
    body = await json_object(request)
    uuid = body.pop("uuid", None)
    if not isinstance(uuid, str):
        raise ApiError(400, "bad-uuid", "expected a UUID of 36 characters", "uuid")
    facts = _facts(body)
    leg = await run_in_threadpool(intake.register_leg, site.storage, uuid, facts, site.settings)
    answer = {**leg_json(leg), "call_id": leg.call_id, "page": f"/calls/{leg.call_id}/live"}
    return JSONResponse(answer, 201)


async def live_calls(request: Request) -> Response:
    """``GET /api/calls/``: the calls that run now, newest first."""
    return JSONResponse(await lobby_state(site_of(request)))


async def call(request: Request) -> Response:
    """``GET /api/calls/<any id of it>/``: all that is known of a call so far."""
    state = await call_state(site_of(request), request.path_params["call_id"])
    # An hour of words is a megabyte: too long to be encoded beside the streams of events.
    return await run_in_threadpool(JSONResponse, state)


async def lobby_state(site: Site) -> dict[str, Any]:
    """Return the live calls, their delays, and the id to follow the lobby from."""
    # The id first: what is stored after it comes again as an event, and nothing is missed.
    last_event_id, recent = await _stream_state(site, bus.LOBBY)
    calls = [call_json(each) for each in await run_in_threadpool(site.storage.live_calls)]
    by_call: dict[str, list[dict[str, Any]]] = {}
    for event in recent:
        by_call.setdefault(event["call_id"], []).append(event)
    for each in calls:
        each["lag"] = _lag(by_call.get(each["call_id"], []))
    return {"calls": calls, "last_event_id": last_event_id}


async def call_state(site: Site, any_id: str) -> dict[str, Any]:
    """Return the state of a call, and the id to follow its room from.

    Raises:
        NotFound: If there is no such call.
    """
    own_id = (await run_in_threadpool(site.storage.call, any_id)).call_id
    last_event_id, recent = await _stream_state(site, bus.room(own_id))
    state = await run_in_threadpool(_stored_state, site.storage, own_id)
    finals = {segment["segment"] for segment in state["segments"]}
    is_heard = state["state"] == "live" and state["consent"] != REFUSED
    partials = _partials(recent, finals) if is_heard else []
    return {**state, "partials": partials, "lag": _lag(recent), "last_event_id": last_event_id}


async def _stream_state(site: Site, stream: str) -> tuple[str | None, list[dict[str, Any]]]:
    try:
        last_id = await site.reader.last_id(stream)
        return last_id, await site.reader.recent(stream, _RECENT_EVENTS) if last_id else []
    except _AWAY:
        return None, []  # the record does not depend on the broker; the stream will say "reset"


def _stored_state(storage: Storage, call_id: str) -> dict[str, Any]:
    call = storage.call(call_id)
    # What a leg said in the moment of the refusal may be stored a moment after it.
    segments = [] if call.consent == REFUSED else storage.live_segments(call_id)
    return {
        **call_json(call),
        "segments": [segment.as_json() for segment in segments],
        "recordings": [_with_status(storage, each) for each in storage.recordings_of(call_id)],
    }


def _with_status(storage: Storage, recording: Recording) -> dict[str, Any]:
    steps = storage.steps(recording.audio_id)
    return {**recording_json(recording), **document.status(recording, steps)}


def _partials(recent: list[dict[str, Any]], finals: set[int]) -> list[dict[str, Any]]:
    """Return the newest partial of each segment that is not final yet."""
    newest: dict[int, dict[str, Any]] = {}
    done = set(finals)
    for event in recent:
        if event["type"] == "transcript.final":
            done.add(event["segment"])
        elif event["type"] == "transcript.partial" and event["segment"] not in done:
            newest.setdefault(event["segment"], event)
    return [event for event in newest.values() if event["text"]]


def _lag(recent: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the newest delay of a call; that a leg has no live text counts where none is known."""
    found = [event for event in recent if event["type"] == "lag.updated"]
    timed = (event for event in found if event["lag_s"] is not None)
    event = next(timed, found[0] if found else None)
    return {"lag_s": event["lag_s"], "state": event["state"]} if event else None


# ---- recordings


async def upload(request: Request) -> Response:
    """``POST /api/upload/``: take a recording; the answer comes after it is on record."""
    site = site_of(request)
    await run_in_threadpool(_admit, site)
    folder = site.settings.audio_dir / "uploads"
    max_bytes = site.settings.upload_max_mb * 1_000_000
    shortage = partial(admission.shortage, site.settings)
    received = await uploads.receive(request, folder, max_bytes, shortage)
    accepted = await run_in_threadpool(_accept, site, received)
    return JSONResponse(accepted, 202 if accepted.pop("created") else 200)


def _admit(site: Site) -> None:
    admission.require_room(site.settings)
    admission.require_quota(site.storage, site.settings)


def _accept(site: Site, received: uploads.Upload) -> dict[str, Any]:
    media = Media("mixed", str(received.path), sha256=received.sha256)
    try:
        if not received.size_bytes:
            raise ApiError(400, "empty-file", "the file is empty", "file")
        accepted = intake.accept_recording(
            site.storage,
            site.settings,
            _facts(received.fields),
            "upload",
            [media],
            original_name=received.name or None,
        )
    except BaseException:
        # Nothing is on record that would name the file. Here in the thread, which runs on when
        # the sender hangs up: what is on record keeps its file.
        received.path.unlink(missing_ok=True)
        raise
    if accepted.wake:
        site.waker.wake("settle", accepted.audio_id)
    return _receipt(site, accepted)


def _receipt(site: Site, accepted: Accepted) -> dict[str, Any]:
    return {"created": accepted.created, **receipt(site.storage, accepted.audio_id)}


async def recording_done(request: Request) -> Response:
    """``POST /api/recording-done/``: a recording is there to be fetched.

    The answer comes after the report is on record; a worker fetches the file.
    """
    site = site_of(request)
    hooks.require_peer(request, site)
    body = await body_of(request)
    hooks.require_sender(request, body, site)
    report = parsed(request, body)
    accepted = await run_in_threadpool(_accept_report, site, report)
    return JSONResponse(accepted, 202 if accepted.pop("created") else 200)


def _accept_report(site: Site, report: dict[str, Any]) -> dict[str, Any]:
    if lacking := admission.shortage(site.settings):
        # Whoever reports a recording still has it: it can report it again.
        raise ApiError(503, "no-room", lacking, headers={"Retry-After": "60"})
    url = report.pop("recording_url", None)
    if not isinstance(url, str):
        raise ApiError(400, "bad-url", "expected the URL of one recording", "recording_url")
    facts = _facts(report)
    if facts.call_id is None:
        raise ApiError(400, "bad-id", "expected the call's id", "call_id")
    accepted = intake.accept_url(site.storage, site.settings, facts, url)
    if accepted.wake:
        site.waker.wake("settle", accepted.audio_id)
    return _receipt(site, accepted)


async def status(request: Request) -> Response:
    """``GET /api/status/<task_id>/``: how far the analysis of a recording is."""
    storage = site_of(request).storage
    return JSONResponse(await run_in_threadpool(status_of, storage, request.path_params["task_id"]))


async def recordings(request: Request) -> Response:
    """``GET /api/audio/``: recordings, newest first, a page at a time."""
    before = request.query_params.get("before") or None
    answer = await run_in_threadpool(_recordings, site_of(request).storage, before)
    return JSONResponse(answer)


def _recordings(storage: Storage, before: str | None) -> dict[str, Any]:
    found, older = storage.recordings(before, _PAGE)
    return {"recordings": [_with_status(storage, each) for each in found], "before": older}


async def document_of(request: Request) -> Response:
    """``GET /api/audio/<id>/``: everything that is known of a recording."""
    storage = site_of(request).storage
    audio_id = request.path_params["audio_id"]
    return await run_in_threadpool(lambda: JSONResponse(document.read(storage, audio_id)))


async def document_schema(_request: Request) -> Response:
    """``GET /api/schema/callcore.insights-1.json``: the JSON Schema of the document."""
    return Response(insights_document.published_schema(), media_type="application/schema+json")


async def media(request: Request) -> Response:
    """``GET /api/audio/<id>/media``: what a player plays, or one stored file by ``?role=``."""
    site = site_of(request)
    audio_id, role = request.path_params["audio_id"], request.query_params.get("role")
    content = await run_in_threadpool(_media, site.storage, audio_id, role)
    response = ranged(request, content)
    if content.media_type == "application/octet-stream":
        response.headers["Content-Disposition"] = "attachment"
    return response


def _media(storage: Storage, audio_id: str, role: str | None) -> Content:
    recording = storage.recording(audio_id)
    if recording.state != RecordingState.STORED or not recording.media:
        reason = recording.reason or "its audio is not stored (yet)"
        raise ApiError(404, "no-audio", f"there is nothing to play: {reason}")
    try:
        if role is None:
            return playback.playable(recording)
        for each in recording.media:
            if each.role == role:
                return FileContent(Path(each.path), playback.media_type(each.path))
    except FileNotFoundError:
        raise ApiError(404, "no-audio", "the stored file has been removed") from None
    except InvalidRecording as error:
        raise ApiError(422, "not-playable", str(error)) from None
    known = ", ".join(each.role for each in recording.media)
    raise ApiError(404, "no-such-role", f"this recording has: {known}", "role")


# ---- events


async def lobby_events(request: Request) -> EventStream:
    """``GET /events/calls``: what begins and ends, and delays, of every call."""
    return site_of(request).rooms.follow(bus.LOBBY, _last_id(request))


async def room_events(request: Request) -> EventStream:
    """``GET /events/calls/<any id>``: every event of one call."""
    site = site_of(request)
    last_id = _last_id(request)
    found = await run_in_threadpool(site.storage.call, request.path_params["call_id"])
    return site.rooms.follow(bus.room(found.call_id), last_id)


def _last_id(request: Request) -> str | None:
    """Return where the page stopped: the header when it resumes, ``?after=`` when it begins."""
    resumed, begun = request.headers.get("last-event-id"), request.query_params.get("after")
    for text, name in ((resumed, "Last-Event-ID"), (begun, "after")):
        if text and not bus.is_id(text):
            raise ApiError(400, "bad-event-id", "expected an id of this stream", name)
    return resumed or begun or None


# ---- probes


async def is_live(_request: Request) -> Response:
    """``GET /live``: the process answers."""
    return JSONResponse({"status": "live"})


async def is_ready(request: Request) -> Response:
    """``GET /ready``: 200, or 503 with the reasons."""
    site = site_of(request)
    checks = {
        "database": _check_database(site),
        "broker": _check_broker(site),
        "disk": run_in_threadpool(admission.shortage, site.settings),
    }
    found = await asyncio.gather(*checks.values())
    reasons = [
        {"part": part, "message": reason}
        for part, reason in zip(checks, found, strict=True)
        if reason
    ]
    if not reasons:
        return JSONResponse({"status": "ready"})
    message = "; ".join(f"{each['part']}: {each['message']}" for each in reasons)
    return ApiError(503, "not-ready", message).response(reasons=reasons)


async def _check_database(site: Site) -> str | None:
    try:
        async with asyncio.timeout(_READY_TIMEOUT_S):
            await run_in_threadpool(site.storage.check_migrated)
    except CallcoreError as error:
        return str(error)
    except (peewee.PeeweeException, OSError, TimeoutError) as error:
        return f"does not answer ({type(error).__name__})"
    return None


async def _check_broker(site: Site) -> str | None:
    try:
        async with asyncio.timeout(_READY_TIMEOUT_S):
            await site.reader.ping()
    except (*_AWAY, TimeoutError) as error:
        return f"does not answer ({type(error).__name__}): is `callcore broker` running?"
    return None


# ---- what people send


def _facts(given: Mapping[str, Any]) -> CallFacts:
    """Return what a sender says of a call; empty text and null are not known."""
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name not in _FACTS:
            raise unknown_field(name, _FACTS)
        if value is None or value == "":
            continue
        if not isinstance(value, str):
            raise ApiError(400, "bad-field", "expected text", name)
        values[name] = _moment(value) if name == "started_at" else value
    return CallFacts(**values)


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            raise ValueError
        return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise ApiError(
            400, "bad-time", "expected ISO 8601 with zone, e.g. 2026-01-02T10:11:12Z", "started_at"
        ) from None
