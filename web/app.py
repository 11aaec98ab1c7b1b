"""The web application: its routes as a table, its parts put together once."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import peewee
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from callcore.bus import RoomReader
from callcore.errors import ConfigError, NotFound, Refused
from callcore.insights_document import SCHEMA_FILE
from callcore.jobs import Waker
from callcore.settings import Settings, broker_url
from callcore.storage import Storage
from web import api, api_analysis, api_docs, metrics, openapi, views
from web.answers import STATUS_OF_CODE, ApiError
from web.security import HOOK_PATH, Guard, Sessions, is_api, secure_headers
from web.site import Site
from web.sse import Rooms

logger = logging.getLogger(__name__)

_STATIC = Path(__file__).parent / "static"

ROUTES = [
    # Pages
    Route("/", views.lobby),
    Route("/lobby/", views.lobby),
    Route("/calls/", views.calls),
    Route("/calls/{call_id}", views.call),
    Route("/calls/{call_id}/live", views.live),
    Route("/calls/{call_id}/progress", views.call_progress),
    Route("/login", views.show_login, methods=["GET"]),
    Route("/login", views.log_in, methods=["POST"]),
    Route("/logout", views.log_out, methods=["POST"]),
    Route("/docs", api_docs.page),
    Mount("/static", StaticFiles(directory=_STATIC), name="static"),
    # API
    Route("/api/legs/", api.register_leg, methods=["POST"]),
    Route("/api/calls/", api.live_calls),
    Route("/api/calls/{call_id}/", api.call),
    Route("/api/upload/", api.upload, methods=["POST"]),
    Route(HOOK_PATH, api.recording_done, methods=["POST"]),
    Route("/api/status/{task_id}/", api.status),
    Route("/api/audio/", api.recordings),
    Route("/api/audio/{audio_id}/", api.document_of),
    Route(f"/api/schema/{SCHEMA_FILE}", api.document_schema),
    Route("/api/audio/{audio_id}/media", api.media),
    Route("/api/audio/{audio_id}/rerun", api_analysis.rerun, methods=["POST"]),
    Route("/api/audio/{audio_id}/corrections", api_analysis.correct, methods=["POST"]),
    Route("/api/taxonomies/", api_analysis.list_taxonomies),
    Route("/api/webhooks/deliveries/", api_analysis.deliveries),
    Route("/api/webhooks/test", api_analysis.test_webhooks, methods=["POST"]),
    Route("/openapi.json", openapi.answer),
    # Live events
    Route("/events/calls", api.lobby_events),
    Route("/events/calls/{call_id}", api.room_events),
    # Probes
    Route("/live", api.is_live),
    Route("/ready", api.is_ready),
    Route("/metrics", metrics.answer),
]


def create_app(
    settings: Settings,
    *,
    storage: Storage | None = None,
    reader: RoomReader | None = None,
    waker: Waker | None = None,
    heartbeat_s: float = 15.0,
) -> Starlette:
    """Return the application; nothing is connected until a request needs it.

    Args:
        settings: Where everything is.
        storage: The record; by default the one of the settings. The application closes it.
        reader: Live events, likewise.
        waker: What tells workers of new recordings, likewise.
        heartbeat_s: Silence on a stream of events after which it says that it is still there.
    """
    reader = reader or RoomReader(broker_url(settings))
    sessions = Sessions(settings.token) if settings.token else None
    site = Site(
        settings=settings,
        storage=storage or Storage(settings.database_url),
        reader=reader,
        rooms=Rooms(reader, heartbeat_s=heartbeat_s),
        waker=waker or Waker(settings),
        sessions=sessions,
        templates=views.templates(),
    )

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        yield
        await site.close()

    app = Starlette(
        routes=ROUTES,
        lifespan=lifespan,
        middleware=[Middleware(Guard, settings=settings, sessions=sessions)],
        exception_handlers={
            ApiError: _answer_no,
            NotFound: _not_found,
            Refused: _refused,
            HTTPException: _http_error,
            ConfigError: _misconfigured,
            peewee.OperationalError: _database_away,
            peewee.InterfaceError: _database_away,
            Exception: _failed,
        },
    )
    app.state.site = site
    return app


def _say(request: Request, error: ApiError) -> Response:
    """Return the answer in the form that the asker reads."""
    if is_api(request.url.path):
        return error.response()
    return views.error_page(request, error)


async def _answer_no(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return _say(request, error)


async def _not_found(request: Request, error: Exception) -> Response:
    return _say(request, ApiError(404, "not-found", str(error) or "there is no such thing"))


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    status = STATUS_OF_CODE.get(error.code, 400)
    return _say(request, ApiError(status, error.code, str(error), error.field))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    codes = {404: "not-found", 405: "method-not-allowed"}
    messages = {404: "there is no such address", 405: "this address does not take that method"}
    code = codes.get(error.status_code, "bad-request")
    message = messages.get(error.status_code, error.detail)
    return _say(request, ApiError(error.status_code, code, message, headers=error.headers))


async def _database_away(request: Request, error: Exception) -> Response:
    logger.error("the database does not answer", extra={"error": type(error).__name__})
    message = "the database does not answer; see /ready"
    return _say(request, ApiError(503, "database-away", message, headers={"Retry-After": "2"}))


async def _misconfigured(request: Request, error: Exception) -> Response:
    # Of the settings only the key of who refused analysis is read so late. Whoever reports a call
    # shall report it again, and need not know where our files are.
    logger.error("a request cannot be served", extra={"reason": str(error)})
    message = "nobody can tell here who refused analysis: the log says why; report it again"
    return _say(request, ApiError(503, "consent-key", message, headers={"Retry-After": "60"}))


async def _failed(request: Request, error: Exception) -> Response:
    # Starlette raises the error again after this answer, so that the server logs it; its answer
    # comes from outside of our middleware and gets the headers here.
    response = _say(request, ApiError(500, "failed", "callcore failed here; its log says why"))
    secure_headers(MutableHeaders(raw=response.raw_headers), request.url.path)
    return response
