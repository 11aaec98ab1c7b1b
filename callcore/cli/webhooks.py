"""``callcore webhooks``: a test message to every endpoint, and the log of deliveries."""

from contextlib import closing

from callcore.errors import ConfigError
from callcore.settings import Settings
from callcore.storage import Storage
from callcore.webhooks import Webhooks, deliveries


def run(settings: Settings, action: str) -> int:
    """Run the command and return its exit code."""
    if action == "test" and not settings.webhook_urls:
        raise ConfigError("CALLCORE_WEBHOOK_URLS", "", "at least one endpoint to test")
    storage = Storage(settings.database_url)
    try:
        storage.check_migrated()
        return _test(storage, settings) if action == "test" else _log(storage)
    finally:
        storage.close()


def _test(storage: Storage, settings: Settings) -> int:
    with closing(Webhooks(storage, settings)) as webhooks:
        wrong = webhooks.send_test()
    for endpoint, error in wrong.items():
        print(f"{endpoint}: {error or 'delivered'}")
    return 1 if any(wrong.values()) else 0


def _log(storage: Storage) -> int:
    rows = deliveries(storage)
    for row in rows:
        then = f"next try {row['next_at']}" if row["next_at"] else ""
        words = (row["created_at"], row["type"], row["endpoint"], row["state"], row["error"], then)
        print("  ".join(word for word in words if word))
    if not rows:
        print("nothing was sent in the last 30 days")
    return 0
