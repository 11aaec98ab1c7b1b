"""Composition root of a worker process: what ``dramatiq workers.broker:setup`` calls."""

import os
from functools import partial

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from callcore import jobs, log, settings
from callcore.batch_engines import batch_engines
from callcore.bus import RedisBus
from callcore.chain import Chain
from callcore.consent import Consent
from callcore.engine_pool import EnginePool
from callcore.intake import accept_held_captures
from callcore.retention import Retention
from callcore.storage import Storage
from callcore.webhooks import Webhooks
from workers.actors import declare
from workers.middleware import Chore, Housekeeping


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
    specs = batch_engines(site)
    specs["transcriber"]()  # without its model nothing could be done: say so at the start
    engines = EnginePool(specs)
    waker = jobs.Waker(site)
    chain = Chain(storage, site, bus, engines, waker)
    webhooks = Webhooks(storage, site)
    consent = Consent(storage, site, bus)
    chores = (
        Chore("sweep", 1.0, chain.sweep),
        Chore("webhooks", 1.0, webhooks.sweep),  # beside the sweep: receivers may be slow
        Chore("consent", 60.0, consent.clean),
        Chore("consent-rooms", 15.0, consent.forget_rooms),
        Chore("captures", 60.0, partial(accept_held_captures, storage, site)),
        Chore("retention", 900.0, Retention(storage, site).sweep),
    )
    closing = (engines.close, webhooks.close, waker.close, bus.close, storage.close)
    broker = jobs.make_broker(site, [Housekeeping(chain, engines, chores, closing)])
    declare(broker, chain)
    dramatiq.set_broker(broker)
    return broker
