"""The API of the analysis: run it again, correct it, and what is told of it outside."""

from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from callcore import reruns, taxonomies, webhooks
from callcore.calls import Correction
from callcore.errors import ConfigError
from callcore.taxonomies import Taxonomy
from web import api_types as types
from web.answers import ApiError
from web.api_bodies import json_object, optional_json_object, require_storable, typed
from web.api_status import receipt
from web.site import Site, site_of


async def rerun(request: Request) -> Response:
    """``POST /api/audio/<id>/rerun``: analyse a recording again."""
    site = site_of(request)
    audio_id = request.path_params["audio_id"]
    asked = typed(await optional_json_object(request), types.RerunRequest)
    return JSONResponse(await run_in_threadpool(_rerun, site, audio_id, asked.steps or []), 202)


def _rerun(site: Site, any_audio_id: str, steps: list[str]) -> dict[str, Any]:
    audio_id, released = reruns.rerun(site.storage, site.settings, any_audio_id, steps)
    for step in released:
        site.waker.wake(step, audio_id)
    return receipt(site.storage, audio_id)


async def correct(request: Request) -> Response:
    """``POST /api/audio/<id>/corrections``: what a person says about a category of a call."""
    site = site_of(request)
    audio_id = request.path_params["audio_id"]
    said = typed(await json_object(request), types.CorrectionRequest)
    require_storable(said.texts, "texts")
    return JSONResponse(await run_in_threadpool(_correct, site, audio_id, said), 201)


def _correct(site: Site, any_audio_id: str, said: types.CorrectionRequest) -> dict[str, Any]:
    taxonomy = next((each for each in _taxonomies(site) if each.id == said.taxonomy), None)
    if taxonomy is None:
        raise ApiError(400, "unknown-taxonomy", "no taxonomy in use has this id", "taxonomy")
    if said.category not in {each.id for each in taxonomy.categories}:
        raise ApiError(400, "unknown-category", "the taxonomy has no such category", "category")
    audio_id = site.storage.recording(any_audio_id).audio_id
    correction = Correction(said.taxonomy, said.category, said.verdict, tuple(said.texts))
    site.storage.correct(audio_id, correction, made_by=None)
    return {
        "audio_id": audio_id,
        "taxonomy": said.taxonomy,
        "category": said.category,
        "verdict": said.verdict,
        "texts": said.texts,
    }


async def list_taxonomies(request: Request) -> Response:
    """``GET /api/taxonomies/``: the categories that calls are held against."""
    found = await run_in_threadpool(_taxonomies, site_of(request))
    return JSONResponse({"taxonomies": [_taxonomy_json(each) for each in found]})


def _taxonomies(site: Site) -> tuple[Taxonomy, ...]:
    try:
        return taxonomies.load(site.settings.taxonomies)
    except ConfigError as error:
        # Somebody edits the file: it is right again without a restart.
        raise ApiError(503, "bad-taxonomy", str(error)) from None


def _taxonomy_json(taxonomy: Taxonomy) -> dict[str, Any]:
    return {
        "id": taxonomy.id,
        "version": taxonomy.version,
        "label": dict(taxonomy.label),
        "call_types": [{"id": each.id, "label": dict(each.label)} for each in taxonomy.call_types],
        "categories": [
            {
                "id": each.id,
                "label": dict(each.label),
                "path": list(each.path),
                "severity": each.severity,
            }
            for each in taxonomy.categories
        ],
    }


async def deliveries(request: Request) -> Response:
    """``GET /api/webhooks/deliveries/``: what was told outside, newest first."""
    return JSONResponse(await run_in_threadpool(_deliveries, site_of(request)))


def _deliveries(site: Site) -> dict[str, Any]:
    return {"deliveries": webhooks.deliveries(site.storage)}


async def test_webhooks(request: Request) -> Response:
    """``POST /api/webhooks/test``: a test message to every endpoint; the workers send it."""
    return JSONResponse(await run_in_threadpool(_test_webhooks, site_of(request)), 202)


def _test_webhooks(site: Site) -> dict[str, Any]:
    if not site.settings.webhook_urls:
        raise ApiError(409, "no-endpoints", "no endpoint is set (CALLCORE_WEBHOOK_URLS)")
    return {"message_id": webhooks.note_test(site.storage)}
