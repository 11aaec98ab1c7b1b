"""One door in a process of its own, which reports recordings in an order of its own.

``python -m tests.support.triggers DOOR SEED COUNT HOST`` takes its settings from the environment.
What it reports lies in ``made`` of the state folder, and at ``HOST/rec/``.
"""

import os
import random
import sys
import uuid
from pathlib import Path

from callcore import intake, settings
from callcore.calls import CallFacts, Media
from callcore.intake import Accepted
from callcore.jobs import Waker
from callcore.settings import Settings
from callcore.storage import Storage

DOORS = ("spool", "agi", "webhook", "upload")


def uniqueid(number: int) -> str:
    """Return the Asterisk id of a recording."""
    return f"1700{number:06}.12"


def linkedid(number: int) -> str:
    """Return the id of its call's first channel."""
    return f"1700{number:06}.10"


def made(site: Settings, number: int) -> Path:
    """Return where the audio of a recording lies before any door has it."""
    return site.state_dir / "made" / f"{uniqueid(number)}.wav"


def report(storage: Storage, site: Settings, door: str, number: int, host: str) -> Accepted:
    """Report a recording as this door does."""
    unique = uniqueid(number)
    if door == "webhook":
        facts = CallFacts(call_id=f"crm-{number}", caller="0700", agent="Ada")
        return intake.accept_url(storage, site, facts, f"{host}/rec/{unique}.wav")
    spooled = site.spool_dir / f"{unique}.wav"
    media, name, facts = Media("mixed", str(spooled)), None, CallFacts()
    # The PBX has written it when it says so: one that comes a minute later is told of as missing.
    if door in ("spool", "agi") and not spooled.exists():
        put(made(site, number), spooled)
    if door == "agi":
        facts = CallFacts(uniqueid=unique, linkedid=linkedid(number), queue="help", direction="in")
    elif door == "upload":
        path = site.audio_dir / "uploads" / f"{uuid.uuid4()}.wav"
        put(made(site, number), path)
        media, name, facts = Media("mixed", str(path)), spooled.name, CallFacts(language="sw")
    return intake.accept_recording(storage, site, facts, door, [media], original_name=name)


def put(source: Path, target: Path) -> None:
    """Make a file appear with all of its bytes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{uuid.uuid4()}.part")
    partial.write_bytes(source.read_bytes())
    partial.rename(target)


def main(door: str, seed: str, count: str, host: str) -> None:
    site = settings.load(os.environ)
    storage = Storage(site.database_url)
    waker = Waker(site)
    order = list(range(int(count)))
    random.Random(f"{door} {seed}").shuffle(order)
    for number in order:
        accepted = report(storage, site, door, number, host)
        if accepted.wake:
            waker.wake("settle", accepted.audio_id)
    waker.close()
    storage.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
