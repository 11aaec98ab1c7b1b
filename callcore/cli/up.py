"""``callcore up``: prepare models and database, then run the Procfile."""

import asyncio
import os
import socket
import sys

from callcore import model_store, resources, supervisor
from callcore.errors import ConfigError
from callcore.settings import Address, Settings
from callcore.storage import Storage


def migrate(settings: Settings) -> list[str]:
    """Bring the database up to date and return the names of the applied migrations."""
    settings.state_dir.mkdir(parents=True, exist_ok=True)
    storage = Storage(settings.database_url)
    try:
        return storage.migrate()
    finally:
        storage.close()


def prepare(settings: Settings) -> None:
    """Make folders, models and database ready; what is ready already costs nothing.

    Raises:
        ConfigError: If an address to listen on is taken.
        ModelError: If a model cannot be had.
    """
    for variable, address in (
        ("CALLCORE_AUDIOSOCKET_BIND", settings.audiosocket_bind),
        ("CALLCORE_AGI_BIND", settings.agi_bind),
        ("CALLCORE_WEB_BIND", settings.web_bind),
    ):
        if not is_free(address):
            raise ConfigError(variable, address, "an address that no other program listens on")
    for folder in (settings.state_dir, settings.audio_dir):
        folder.mkdir(parents=True, exist_ok=True)
    if not settings.spool_dir.exists():
        settings.spool_dir.mkdir(parents=True)
        settings.spool_dir.chmod(0o770)  # the PBX writes here, as a member of our group
    missing = model_store.missing(settings.models_dir, model_store.used(settings))
    if missing:
        model_store.pull(settings.models_dir, missing)
    migrate(settings)


def is_free(address: Address) -> bool:
    """Return whether a server could listen on the address now."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address.host, address.port))
        except OSError:
            return False
    return True


def run(settings: Settings) -> int:
    """Run everything until SIGTERM or Ctrl-C."""
    prepare(settings)
    entries = supervisor.parse_procfile(resources.path("Procfile").read_text("utf-8"))
    print_line = supervisor.prefixed_printer(
        [entry.name for entry in entries], colour=sys.stdout.isatty()
    )
    print(f"pages and API on http://{settings.web_bind}/  (Ctrl-C stops everything)")
    print(f"Asterisk's AudioSocket() on {settings.audiosocket_bind}")
    print(f"Asterisk's AGI() on {settings.agi_bind}")
    print(f"recordings from {settings.spool_dir}", flush=True)
    asyncio.run(supervisor.run_until_signal(supervisor.Supervisor(entries, os.environ, print_line)))
    return 0
