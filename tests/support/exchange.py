"""A whole site with a real Asterisk in front of it."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from callcore import tables
from callcore.calls import Call, DocumentState
from callcore.cli.demo import word_error_rate
from callcore.results import Segment
from callcore.storage import Storage
from tests.support.asterisk import Asterisk, prompts
from tests.support.require import missing
from tests.support.site import MODELS, PATIENCE_S, Site


class Exchange:
    """``callcore up`` and an Asterisk that is set up for it; a context manager.

    Args:
        folder: For both; short, because paths of sockets are limited.
        variables: Global variables of the dialplan.
        **settings: Settings of the site by their lower-case names.
    """

    def __init__(
        self, folder: Path, variables: Mapping[str, str] | None = None, **settings: str
    ) -> None:
        for model in ("tiny.en", "base"):
            if not (MODELS / model / "model.bin").is_file():
                missing("the models are not there: run `callcore models pull`")
        pbx = folder / "pbx"
        own = {
            "spool_dir": str(pbx / "spool" / "monitor"),
            "capture": "fallback",
            "settle_s": "0.5",
            "model": "tiny.en",
            "steps": "transcribe",
            "speaker_turns": "off",
            **settings,
        }
        self.site = Site(folder / "site", **own)
        (folder / "site").mkdir(parents=True, exist_ok=True)
        self.asterisk = Asterisk(
            pbx, audiosocket=self.site.audiosocket, agi=self.site.agi, variables=variables
        )
        self.storage = Storage(f"sqlite:///{folder / 'site' / 'callcore.db'}")

    def __enter__(self) -> "Exchange":
        self.asterisk.recordings.mkdir(parents=True, exist_ok=True)
        self.site.start()
        self.asterisk.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.asterisk.__exit__(kind, error, trace)
        self.storage.close()
        self.site.__exit__(kind, error, trace)

    def call_of(self, caller: str) -> Call | None:
        """Return the call of a number; each test's callers have their own.

        Raises:
            AssertionError: If it became more than one call.
        """
        model = tables.Call
        rows = self.storage.database.all(model.select().where(model.caller == caller))
        assert len(rows) <= 1, f"{len(rows)} calls of one caller"
        return self.storage.call(rows[0]["call_id"]) if rows else None

    def wait_call(self, caller: str, *, legs: int = 0, state: str | None = None) -> Call:
        """Return the call of a number once it has so many started legs and that state."""

        def found() -> Call | None:
            call = self.call_of(caller)
            if call is None or (state is not None and call.state != state):
                return None
            return call if sum(leg.started_at is not None for leg in call.legs) >= legs else None

        call: Call = self.site.wait(f"a call with {legs} legs, {state}", found)
        return call

    def wait_document(
        self, call_id: str, source: str = "agi", patience_s: float = PATIENCE_S
    ) -> dict[str, Any]:
        """Return the document of the call's recording once it is complete.

        Args:
            call_id: Any id of the call.
            source: A door that must have reported the recording.
            patience_s: Bound of the wait.
        """

        def done() -> dict[str, Any] | None:
            state = self.site.get(f"/api/calls/{call_id}/") or {"recordings": []}
            for each in state["recordings"]:
                if source in each["sources"] and each["status"] in (
                    DocumentState.COMPLETED,
                    DocumentState.PARTIAL,
                    DocumentState.FAILED,
                ):
                    assert each["status"] == DocumentState.COMPLETED, each
                    document: dict[str, Any] = self.site.get(f"/api/audio/{each['audio_id']}/")
                    return document
            return None

        document: dict[str, Any] = self.site.wait("the document", done, patience_s)
        return document

    def events(self, call_id: str) -> list[dict[str, Any]]:
        """Return what the room of an ended call has told, up to ``call.ended``."""
        told: list[dict[str, Any]] = []
        path = f"/events/calls/{call_id}"
        with self.site.client.stream("GET", path, headers={"Last-Event-ID": "0-0"}) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: "):
                    told.append(json.loads(line.removeprefix("data: ")))
                    if told[-1].get("type") == "call.ended":
                        return told
        return told


def said(*names: str) -> str:
    """Return the words of prompts."""
    texts = prompts()
    return " ".join(texts[name] for name in names)


def error_rates(segments: Iterable[Segment | Mapping[str, Any]], leg: str, *names: str) -> float:
    """Return the word error rate of one leg's segments against prompts."""
    texts = [
        each.text if isinstance(each, Segment) else each["text"]
        for each in segments
        if (each.leg if isinstance(each, Segment) else each["leg"]) == leg
    ]
    return word_error_rate(said(*names), " ".join(texts))
