"""What ``callcore bench live`` plays: recordings with their words, and when each word is said.

The text comes with the recordings; when each word is said is asked of a Whisper model that hears
the whole file, once: its answers are kept, by what was heard and by which model.
"""

import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from callcore import audio, model_store, resources
from callcore.engines import LIVE_RATE, Samples
from callcore.errors import ConfigError
from callcore.word_latency import SpokenWord, alike, token, words_of

#: The model whose word times are the reference.
TIMING_MODEL = "base"

#: Longest recording that is read, in seconds.
_MAX_S = 3600.0

#: Silence between two recordings that one leg plays, in seconds: longer than the endpointer waits.
_BETWEEN_S = 1.0

#: A track is cut in a pause at least this long, in seconds, so that no utterance is cut.
_PAUSE_S = 0.8


@dataclass(frozen=True, slots=True)
class Track:
    """What one leg plays."""

    name: str
    language: str
    samples: Samples
    """At ``LIVE_RATE``."""
    words: tuple[SpokenWord, ...]

    @property
    def seconds(self) -> float:
        """Its length."""
        return len(self.samples) / LIVE_RATE

    @property
    def text(self) -> str:
        """Everything that is said."""
        return " ".join(word.text for word in self.words)


@dataclass(frozen=True, slots=True)
class Heard:
    """A word as a model heard it."""

    text: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class _Recording:
    name: str
    language: str
    samples: Samples
    turns: tuple[tuple[float, float, str], ...]
    """Start, end and text of what is said."""
    exact: bool
    """Whether speech begins and ends where a turn does."""


class WholeFiles:
    """Transcripts of whole files by plain faster-whisper, each made once.

    Beam 5 and its VAD, int8, nothing carried over: what the same model does with all the time.
    They are kept, for their owner's eyes, until somebody deletes the folder.

    Args:
        models_dir: Where the models are.
        kept: Folder of what was heard before.
    """

    def __init__(self, models_dir: Path, kept: Path) -> None:
        self._models_dir = models_dir
        self._kept = kept
        self._models: dict[str, Any] = {}

    def words(self, samples: Samples, model: str, language: str) -> list[Heard]:
        """Return every word that the model hears.

        Args:
            samples: At ``LIVE_RATE``.
            model: Name of a Whisper model.
            language: Language code.
        """
        file = self._file(samples, model, language)
        if not file.is_file():
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            unfinished = file.with_suffix(".part")
            heard = list(self._transcribe(samples, model, language))
            unfinished.unlink(missing_ok=True)
            with open(unfinished, "x", encoding="utf-8", opener=_for_owner) as out:
                json.dump(heard, out)
            unfinished.replace(file)
        return [Heard(*each) for each in json.loads(file.read_text("utf-8"))]

    def unload(self) -> None:
        """Free the models' memory; they come back when they are needed."""
        self._models.clear()

    def _file(self, samples: Samples, model: str, language: str) -> Path:
        digest = hashlib.sha256(samples.tobytes())
        # Another model of the same name, or another library, hears other words.
        weights = (model_store.find(self._models_dir, model) / "model.bin").stat()
        library = metadata.version("faster-whisper")
        digest.update(f"{weights.st_size} {weights.st_mtime_ns} {library}".encode())
        return self._kept / f"{digest.hexdigest()[:32]}-{model.replace('/', '-')}-{language}.json"

    def _transcribe(
        self, samples: Samples, model: str, language: str
    ) -> Iterator[tuple[str, float, float]]:
        resampler = audio.StreamingResampler(LIVE_RATE, 16_000)
        wide = np.concatenate([resampler.push(samples), resampler.flush()])
        segments, _ = self._model(model).transcribe(
            audio.to_float(wide),
            language=language,
            beam_size=5,
            vad_filter=True,
            condition_on_previous_text=False,
            word_timestamps=True,
        )
        for segment in segments:
            for word in segment.words or ():
                yield word.word.strip(), float(word.start), float(word.end)

    def _model(self, name: str) -> Any:
        from faster_whisper import WhisperModel

        if name not in self._models:
            folder = model_store.find(self._models_dir, name)
            self._models[name] = WhisperModel(str(folder), compute_type="int8")
        return self._models[name]


def _for_owner(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def tracks(
    data: Path | None, num_legs: int, seconds: float, whole_files: WholeFiles
) -> list[Track]:
    """Return what the legs play; where legs are more than recordings, some play the same.

    Args:
        data: Folder with ``manifest.json`` (a list of objects with ``file``, ``text`` and
            ``language``, by default English); None for the sample calls.
        num_legs: How many are needed.
        seconds: Length of each: recordings follow each other until it is reached, and the last
            one is cut in a pause.
        whole_files: Tells when the words are said.

    Raises:
        ConfigError: If the folder has no recordings with text.
        InvalidRecording: If a recording cannot be decoded.
        OSError: If it cannot be opened.
    """
    recordings = list(_samples() if data is None else _manifest(data))
    if not recordings:
        raise ConfigError("--data", data, "a folder whose manifest.json lists files with text")
    made: list[Track] = []
    for number in range(min(num_legs, len(recordings))):
        language = recordings[number].language
        alike_ones = [each for each in recordings if each.language == language]
        first = alike_ones.index(recordings[number])
        made.append(_track(alike_ones[first:] + alike_ones[:first], seconds, whole_files))
    return [made[number % len(made)] for number in range(num_legs)]


def _samples() -> Iterator[_Recording]:
    for file in sorted(resources.path("samples").glob("*.json")):
        call = json.loads(file.read_text("utf-8"))
        channels = audio.read_channels(file.with_suffix(".wav"), LIVE_RATE, _MAX_S)
        for name, channel in zip(call["channels"], channels, strict=True):
            turns = [turn for turn in call["turns"] if turn["leg"] == name]
            yield _Recording(
                f"{call['id']} {name}",
                call["language"],
                audio.to_int16(channel),
                tuple((turn["start"], turn["end"], turn["text"]) for turn in turns),
                exact=True,
            )


def _manifest(folder: Path) -> Iterator[_Recording]:
    manifest = folder / "manifest.json"
    try:
        entries = json.loads(manifest.read_text("utf-8"))
    except ValueError:
        raise ConfigError("--data", folder, "a folder whose manifest.json is JSON") from None
    for entry in entries:
        if not isinstance(entry, dict) or "file" not in entry:
            raise ConfigError("--data", folder, "a manifest.json that lists objects with a file")
        if not entry.get("text"):
            continue
        samples = audio.to_int16(audio.read_channels(folder / entry["file"], LIVE_RATE, _MAX_S)[0])
        turn = (0.0, len(samples) / LIVE_RATE, entry["text"])
        yield _Recording(
            entry["file"], entry.get("language") or "en", samples, (turn,), exact=False
        )


def _track(recordings: Sequence[_Recording], seconds: float, whole_files: WholeFiles) -> Track:
    """Return one recording after the other until they are long enough, cut in a pause."""
    parts: list[Samples] = []
    words: list[SpokenWord] = []
    length = 0
    number = 0
    while length < seconds * LIVE_RATE:
        recording = recordings[number % len(recordings)]
        if parts:
            parts.append(np.zeros(int(_BETWEEN_S * LIVE_RATE), np.int16))
            length += len(parts[-1])
        began = length / LIVE_RATE
        words += [
            replace(word, start=began + word.start, end=began + word.end)
            for word in _timed_words(recording, whole_files)
        ]
        parts.append(recording.samples)
        length += len(recording.samples)
        number += 1
    end = cut(words, seconds)
    return Track(
        recordings[0].name,
        recordings[0].language,
        np.concatenate(parts)[: int(end * LIVE_RATE)],
        tuple(word for word in words if word.end <= end),
    )


def cut(words: Sequence[SpokenWord], seconds: float) -> float:
    """Return up to where a track is played: the middle of its last pause before ``seconds``.

    Without a pause it is ``seconds``, and the last utterance loses its end.
    """
    found = seconds
    for word, following in itertools.pairwise(words):
        middle = (word.end + following.start) / 2
        if middle > seconds:
            break
        if word.timed and following.timed and following.start - word.end >= _PAUSE_S:
            found = middle
    if words and words[-1].end + _PAUSE_S <= seconds:
        found = seconds
    return found


def _timed_words(recording: _Recording, whole_files: WholeFiles) -> list[SpokenWord]:
    """Return the words of the text with the times of those that the timing model heard too."""
    heard = whole_files.words(recording.samples, TIMING_MODEL, recording.language)
    heard = [each for each in heard if token(each.text)]
    said = [(word, start, end) for start, end, text in recording.turns for word in words_of(text)]
    pairs = dict(alike([token(each[0]) for each in said], [token(each.text) for each in heard]))
    words: list[SpokenWord | None] = []
    for position, (text, start, end) in enumerate(said):
        match = heard[pairs[position]] if position in pairs else None
        if match is None or not start - 0.5 <= match.start <= match.end <= end + 0.5:
            words.append(None)
            continue
        began, ended = max(start, match.start), min(end, match.end)
        is_last = position + 1 == len(said) or said[position + 1][1] != start
        if recording.exact and is_last:
            # The model hears the last word end 0.13 s too early on average.
            ended = end
        words.append(SpokenWord(text, began, max(began, ended), timed=True))
    return list(_filled(said, words))


def _filled(
    said: Sequence[tuple[str, float, float]], words: Sequence[SpokenWord | None]
) -> Iterator[SpokenWord]:
    """Yield all words; one without times gets the end of the word before it in its turn."""
    before = 0.0
    for (text, start, _), word in zip(said, words, strict=True):
        at = max(before, start)
        yield word or SpokenWord(text, at, at, timed=False)
        before = word.end if word else at
