"""A transcriber for tests with real workers: what it does is told by files in its model folder."""

import time
from collections.abc import Iterator
from pathlib import Path

from callcore.engines import Floats, TranscribedSegment
from callcore.engines.scripted import ScriptedTranscriber


class SlowTranscriber(ScriptedTranscriber):
    """Notes that a transcription has begun, then waits until it may end.

    Each start appends a line to ``starts`` in the model folder. While ``hold`` exists there, no
    transcription ends.
    """

    def __init__(self, model: str, threads: int) -> None:
        super().__init__()
        self._folder = Path(model)

    def transcribe(
        self, samples: Floats, language: str | None, hotwords: str | None = None
    ) -> Iterator[TranscribedSegment]:
        with (self._folder / "starts").open("a") as starts:
            starts.write("start\n")
        while (self._folder / "hold").exists():
            time.sleep(0.02)
        yield from super().transcribe(samples, language)


def make_model(folder: Path) -> Path:
    """Return a folder that looks like a model and holds nothing."""
    folder.mkdir(parents=True)
    for name in ("model.bin", "config.json"):
        (folder / name).write_text("{}")
    return folder
