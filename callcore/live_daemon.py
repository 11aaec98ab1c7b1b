"""``callcore audiosocket``: what the live daemon is made of, and how it starts and ends."""

import asyncio
import contextlib
import gc
import logging
import resource
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import PurePath

from callcore import heap, model_store
from callcore.audiosocket_server import AudioSocketServer
from callcore.batch_engines import device_options, endpoint_options
from callcore.bus import Publisher, RedisBus
from callcore.capture import Capture
from callcore.inference import EngineSpec, InferenceProcess
from callcore.jobs import Waker
from callcore.live_records import Records
from callcore.loop_lag import LoopLag
from callcore.recognizer import Recognizer
from callcore.recognizer_config import RecognizerConfig
from callcore.session import LiveCalls
from callcore.settings import Settings, broker_url
from callcore.storage import Storage

logger = logging.getLogger(__name__)

#: Seconds between looks for calls that nobody else ends, and between signs of life.
SWEEP_S = 5.0
#: Niceness of live decoding: receiving audio and answering Asterisk come before words, and these
#: before recordings.
NICENESS = 5
#: Seconds between looks for calls whose callers refused analysis.
REFUSALS_S = 0.5
#: Seconds for which a busy thread keeps the interpreter's lock while the event loop waits for it;
#: the interpreter's own 5 ms are paid for each frame that comes while a thread reads the database.
SWITCH_S = 0.0005
#: Seconds of one thread that a second of a leg costs where somebody never pauses: measured with
#: tiny and base, reckoned by their size for larger ones; and of one connection to an endpoint.
_TINY_LEG, _BASE_LEG, _LARGE_LEG, _REMOTE_LEG = 0.05, 0.12, 0.35, 0.2
_LARGE = ("small", "medium", "large", "turbo")


async def serve(settings: Settings, config: RecognizerConfig | None = None) -> None:
    """Receive calls until SIGTERM or SIGINT; a second signal ends the draining.

    Args:
        settings: Of the site.
        config: When what is decoded; what the settings say of it they say.

    Raises:
        CallcoreError: If the database is not migrated, or a model is missing.
        OSError: If the address is in use.
    """
    raise_file_limit()
    switch_s = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_S)
    try:
        await _serve(settings, config or RecognizerConfig())
    finally:
        sys.setswitchinterval(switch_s)


async def _serve(settings: Settings, config: RecognizerConfig) -> None:
    parts = _build(settings, config)
    calls = LiveCalls(settings, parts.records, parts.publisher, parts.capture, parts.recognizer)
    server = AudioSocketServer(settings, calls)
    lag = LoopLag()
    try:
        if parts.inference is not None and parts.recognizer is not None:
            parts.inference.start()
            await parts.recognizer.start()
        await server.start(settings.audiosocket_bind)
        lag.start()
        calls.spawn(_keep_house(calls))
        calls.spawn(_heed_refusals(calls))
        await _run_until_signal(server, settings.drain_s)
    finally:
        await server.close()
        lag.stop()
        await _close(parts)
        logger.info(
            "stopped",
            extra={
                "connections": dict(server.counts),
                "loop_lag_p99_ms": lag.percentile_ms(0.99),
            },
        )


async def _run_until_signal(server: AudioSocketServer, drain_s: float) -> None:
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()

    def on_signal() -> None:
        if stopping.is_set():
            server.hurry()
        stopping.set()

    signals = (signal.SIGTERM, signal.SIGINT)
    for signum in signals:
        loop.add_signal_handler(signum, on_signal)
    try:
        # What is made from here on is short-lived: the collector need not look at modules again.
        gc.collect()
        gc.freeze()
        heap.keep_small()
        await stopping.wait()
        logger.info("draining", extra={"drain_s": drain_s})
        await server.close(drain_s)
    finally:
        for signum in signals:
            loop.remove_signal_handler(signum)


async def _keep_house(calls: LiveCalls) -> None:
    """End what earlier daemons left behind, now and from time to time."""
    try:
        # The address is ours by now, so no other daemon of our name is alive.
        await calls.recover()
    except Exception:
        # What is left waits for the next start; new calls do not depend on it.
        logger.exception("earlier calls could not be ended")
    while not calls.closing.is_set():
        try:
            await calls.sweep()
        except Exception:
            # Another round may work; without rounds calls would stay live for ever.
            logger.exception("a sweep failed")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SWEEP_S):
                await calls.closing.wait()


async def _heed_refusals(calls: LiveCalls) -> None:
    """End the legs of calls whose callers refuse analysis meanwhile."""
    while not calls.closing.is_set():
        try:
            await calls.end_refused()
        except Exception:
            # Another round may work; without rounds we would go on listening.
            logger.exception("refusals could not be looked for")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(REFUSALS_S):
                await calls.closing.wait()


def raise_file_limit() -> None:
    """Allow as many open files as the system lets us: one a leg and one a capture."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def live_engines(settings: Settings) -> dict[str, EngineSpec]:
    """Return the engines that live recognition needs, by their names in the inference process.

    Raises:
        ModelError: If a model is not there.
    """

    def folder(model: str) -> str:
        return str(model_store.find(settings.models_dir, model))

    def transcriber(model: str) -> EngineSpec:
        if settings.live_is_remote:
            # One endpoint for all languages: equal specs are one engine.
            remote = "callcore.engines.transcription_endpoint:LiveEndpoint"
            connections = settings.transcription_connections
            # A request takes one job: in a batch each would wait for the slowest, and fail with it.
            return EngineSpec(remote, endpoint_options(settings), connections, max_batch=1)
        threads = settings.live_threads
        options = {"model": folder(model), "threads": threads}
        options |= device_options(settings.live_transcriber, settings.device)
        return EngineSpec(settings.live_transcriber, options, threads)

    return {
        "vad": EngineSpec(settings.speech_detector, {"model": folder(model_store.SPEECH_MODEL)}),
        "live": transcriber(settings.live_model),
        "live_multilingual": transcriber(settings.live_model_multilingual),
    }


@dataclass(slots=True)
class _Parts:
    """What the daemon is made of, in the order in which it is closed."""

    recognizer: Recognizer | None
    inference: InferenceProcess | None
    capture: Capture | None
    publisher: Publisher
    bus: RedisBus
    records: Records
    storage: Storage
    waker: Waker


def _build(settings: Settings, config: RecognizerConfig) -> _Parts:
    storage = Storage(settings.database_url)
    storage.check_migrated()
    inference: InferenceProcess | None = None
    if settings.live == "on":
        inference = InferenceProcess(live_engines(settings), nice=NICENESS)
    bus = RedisBus(broker_url(settings))
    waker = Waker(settings)
    return _Parts(
        recognizer=_recognizer(settings, config, inference) if inference is not None else None,
        inference=inference,
        capture=Capture(settings.audio_dir) if settings.capture != "off" else None,
        publisher=Publisher(bus),
        bus=bus,
        records=Records(storage, settings, waker),
        storage=storage,
        waker=waker,
    )


def _recognizer(
    settings: Settings, config: RecognizerConfig, inference: InferenceProcess
) -> Recognizer:
    models = {
        "live": settings.live_model,
        "live_multilingual": settings.live_model_multilingual,
    }
    remote = models if settings.live_is_remote else ()
    told = replace(
        config,
        max_load=settings.live_max_load,
        leg_costs={
            engine: _REMOTE_LEG if remote else leg_cost(model) for engine, model in models.items()
        },
        remote=frozenset(remote),
    )
    return Recognizer(inference, config=told)


def leg_cost(model: str) -> float:
    """Return what a leg is taken to cost until it was measured: ``RecognizerConfig.leg_cost``.

    Args:
        model: Name or folder of a Whisper model.
    """
    name = PurePath(model).name
    if "tiny" in name:
        return _TINY_LEG
    return _LARGE_LEG if any(size in name for size in _LARGE) else _BASE_LEG


async def _close(parts: _Parts) -> None:
    if parts.recognizer is not None:
        await parts.recognizer.close()
    if parts.inference is not None:
        await asyncio.to_thread(parts.inference.close)
    if parts.capture is not None:
        await asyncio.to_thread(parts.capture.close)
    await asyncio.to_thread(parts.publisher.close)
    parts.bus.close()
    if parts.records.close():
        parts.storage.close()
    else:
        # Closing a connection in use would wait as long as the database keeps us waiting.
        logger.warning("the database did not answer until the end")
    await asyncio.to_thread(parts.waker.close)
