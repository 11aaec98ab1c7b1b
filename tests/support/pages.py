"""A web process in a thread, on a port of its own, over a real database and a real broker."""

import json
import socket
import threading
import uuid
import wave
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from callcore import intake, settings
from callcore.bus import RedisBus
from callcore.calls import CallFacts, Media
from callcore.events import make
from callcore.ledger import Ledger
from callcore.results import Segment, Transcript, Word
from callcore.storage import Storage, recording_rows
from tests.support.api_contract import Contract
from web.__main__ import Server, make_server
from web.app import create_app

SAMPLES = Path(__file__).parents[2] / "samples"


def segment_of(number: int, leg: str, start: float, end: float, text: str, **more: Any) -> Segment:
    """Return a segment whose words share its time evenly."""
    parts = text.split()
    step = (end - start) / max(1, len(parts))
    words = tuple(
        Word(w, round(start + i * step, 3), round(start + (i + 1) * step, 3), 0.9)
        for i, w in enumerate(parts)
    )
    given = {"language": "en", "source": "live", "latency": 0.8, **more}
    return Segment(number, leg, start, end, text, words=words, **given)


def sample_turns(name: str = "helpline-distress") -> list[dict[str, Any]]:
    """Return what is said in a sample: leg, start, end, text."""
    truth = json.loads((SAMPLES / f"{name}.json").read_text("utf-8"))
    turns: list[dict[str, Any]] = truth["turns"]
    return turns


@dataclass
class Pages:
    """A site without daemon and workers: the test plays their parts."""

    folder: Path
    redis_url: str = ""
    token: str = ""
    environ: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.environ = {
            "CALLCORE_STATE_DIR": str(self.folder),
            "CALLCORE_REDIS_URL": self.redis_url,
            "CALLCORE_TOKEN": self.token,
            "CALLCORE_DATABASE_URL": f"sqlite:///{self.folder / 'web.db'}",
            **self.environ,
        }
        self.settings = settings.load(self.environ)
        self.storage = Storage(self.settings.database_url)
        self.storage.migrate()
        self._bus: RedisBus | None = None

    def close(self) -> None:
        """Close what was opened."""
        self.storage.close()
        if self._bus:
            self._bus.close()

    # ---- what a daemon does

    def publish(self, event_type: str, call_id: str, **fields: Any) -> None:
        """Publish one event."""
        self._bus = self._bus or RedisBus(self.redis_url)
        self._bus.publish([make(event_type, call_id, **fields)])

    def begin_call(
        self,
        call_id: str,
        legs: tuple[str, ...] = ("caller", "agent"),
        alias: str | None = None,
        **facts: Any,
    ) -> None:
        """Make a live call whose legs stream."""
        self.legs = {}
        ids = {"call_id": alias or call_id, "uniqueid": call_id if alias else None}
        for leg in legs:
            leg_id = str(uuid.uuid4())
            self.legs[leg] = leg_id
            intake.register_leg(self.storage, leg_id, CallFacts(**ids, leg=leg, **facts))
        for leg_id in self.legs.values():
            intake.open_leg(self.storage, self.settings, leg_id)
        if self.redis_url:
            self.publish("call.started", call_id, **facts)

    def say(self, call_id: str, segment: Segment) -> None:
        """Store a final, then publish it, as the daemon does."""
        self.storage.add_live_segment(call_id, segment)
        names = (
            "segment",
            "leg",
            "start",
            "end",
            "text",
            "language",
            "words",
            "latency",
            "revised",
        )
        fields = segment.as_json()
        self.publish("transcript.final", call_id, **{name: fields[name] for name in names})

    def end_call(self, call_id: str) -> None:
        """End the legs and the call."""
        for leg_id in self.legs.values():
            self.storage.end_leg(leg_id, "hangup", None)
        ended = self.storage.end_call_if_idle(call_id, "hangup")
        assert ended
        if self.redis_url:
            self.publish("call.ended", call_id, duration=ended.duration_s, reason="hangup")

    # ---- what a worker does

    def record(
        self, call_id: str, media: list[Media], segments: list[Segment] | None = None
    ) -> str:
        """Store a recording, and its transcript where there are segments; return the audio_id."""
        facts = CallFacts(call_id=call_id)
        accepted = intake.accept_recording(self.storage, self.settings, facts, "spool", media)
        stored = [stored_media(each) for each in media]
        with self.storage.database.transaction():
            recording_rows.store(self.storage.database, accepted.audio_id, stored, 0.0)
        needs: dict[str, list[str]] = {"settle": [], "transcribe": ["settle"]}
        ledger = Ledger(self.storage)
        claim = ledger.claim(accepted.audio_id, "settle")
        assert claim
        ledger.finish(claim, None, needs)
        if segments is not None:
            claim = ledger.claim(accepted.audio_id, "transcribe")
            assert claim
            transcript = Transcript(tuple(segments), "en", 60.0, "scripted", "none", "1", {})
            ledger.finish(claim, transcript.as_json(), needs)
        return accepted.audio_id

    # ---- the application

    @asynccontextmanager
    async def client(self, host: str = "127.0.0.1:8000") -> AsyncIterator[httpx.AsyncClient]:
        """A client of the application, without a server between.

        Every answer of the API is held against the site's OpenAPI document.
        """
        app = create_app(self.settings)
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(
                transport=transport,
                base_url=f"http://{host}",
                event_hooks={"response": [Contract(self.settings).check]},
            ) as client,
        ):
            yield client

    @contextmanager
    def served(self, port: int = 0, **parts: Any) -> Iterator[str]:
        """Serve in a thread; yields the base URL."""
        listener = socket.create_server(("127.0.0.1", port))
        server: Server = make_server(self.settings, **parts)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(20)
            listener.close()
            assert not thread.is_alive()


def stored_media(media: Media) -> recording_rows.StoredMedia:
    """Return the row of a stored WAV file."""
    with wave.open(media.path, "rb") as file:
        channels, rate, frames = file.getnchannels(), file.getframerate(), file.getnframes()
    return recording_rows.StoredMedia(
        role=media.role,
        path=media.path,
        origin=media.path,
        offset_s=media.offset_s,
        sha256="0" * 64,
        format="wav",
        num_channels=channels,
        rate=rate,
        duration_s=frames / rate,
    )
