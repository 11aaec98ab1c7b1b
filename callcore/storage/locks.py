"""Which transactions run one after the other, and in which order they may wait for each other.

Whoever needs several takes them in this order: ``call_rows.CALLS``, recordings by their ids, rows.
"""

import zlib

from callcore.database import Database

#: Advisory locks of recordings lie above those of everything else.
_RECORDINGS = 1 << 40


def recording(db: Database, audio_id: str) -> None:
    """Let one transaction at a time decide what of a recording may run.

    Two steps that end at once must see each other, or a step that needs both never starts.
    """
    db.serialize(_RECORDINGS + zlib.crc32(audio_id.encode()))
