"""Composition root of a worker process: what ``dramatiq workers.broker:setup`` calls."""

import os

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from callcore import jobs, log, model_store, settings
from callcore.bus import RedisBus
from callcore.chain import Chain
from callcore.inference import EngineSpec
from callcore.storage import Storage
from workers.actors import declare
from workers.engines import WorkerEngines
from workers.middleware import Housekeeping


def setup() -> RedisBroker:
    """Build the parts from the environment and make them dramatiq's broker.

    Raises:
        ConfigError: If a setting is wrong.
        CallcoreError: If the database is not migrated, or a model is missing.
    """
    site = settings.load(os.environ)
    log.configure(site.log_level, site.log_format)
    storage = Storage(site.database_url)
    storage.check_migrated()
    bus = RedisBus(settings.broker_url(site))
    engines = WorkerEngines(batch_engines(site))
    waker = jobs.Waker(site)
    chain = Chain(storage, site, bus, engines, waker)
    closing = (engines.close, waker.close, bus.close, storage.close)
    broker = jobs.make_broker(site, [Housekeeping(chain, engines, closing)])
    declare(broker, chain)
    dramatiq.set_broker(broker)
    return broker


def batch_engines(site: settings.Settings) -> dict[str, EngineSpec]:
    """Return the engines that the steps need, by their names in the inference process.

    Raises:
        ModelError: If a model is not there.
    """
    folder = model_store.find(site.models_dir, site.model)
    # One recording at a time with all cores: its niceness leaves them to live calls.
    options = {"model": str(folder), "threads": os.cpu_count() or 1}
    return {"transcriber": EngineSpec(site.transcriber, options)}
