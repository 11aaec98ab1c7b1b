"""Transcription of recordings by faster-whisper: beam search, word times, guards.

The vocabulary, features and decoding loop are SYSTRAN/faster-whisper's; what is ours is the choice
of parameters for telephone calls and what is not believed of the result.
"""

from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from faster_whisper import WhisperModel
from faster_whisper.transcribe import Segment

from callcore.engines import Floats, TranscribedSegment, guards
from callcore.errors import ModelError
from callcore.results import Word

#: Hz that ``transcribe`` takes.
_RATE = 16_000

#: Text that compresses better than this is one phrase over and over.
_COMPRESSION_RATIO = 2.4

#: Parameters of ``WhisperModel.transcribe``.
_PARAMETERS: dict[str, Any] = {
    "beam_size": 5,
    # One error would otherwise be carried from window to window.
    "condition_on_previous_text": False,
    "word_timestamps": True,
    # A second try at these temperatures where the first is one phrase over and over.
    "temperature": [0.0, 0.2, 0.4],
    "compression_ratio_threshold": _COMPRESSION_RATIO,
    "log_prob_threshold": -1.0,
    "no_speech_threshold": 0.6,
    # Words surrounded by more than two seconds of silence are looked at again.
    "hallucination_silence_threshold": 2.0,
    "vad_filter": True,
    "vad_parameters": {
        "threshold": 0.5,
        # Stretches of speech are joined before they are decoded. With two seconds of the line's
        # own silence between them words stay in their turn; with less they slip into the next.
        "min_silence_duration_ms": 2000,
        "speech_pad_ms": 1000,
    },
}


class BatchWhisper:
    """Any Whisper folder in CTranslate2's format, for recordings of any length."""

    name = "faster-whisper"

    def __init__(self, model: str, *, compute_type: str = "int8", threads: int = 0) -> None:
        """Load the model.

        Args:
            model: Folder of the model's files.
            compute_type: CTranslate2's name, e.g. ``int8``.
            threads: Cores that one decode uses; 0 leaves it to the library.

        Raises:
            ModelError: If it cannot be loaded.
        """
        folder = Path(model)
        try:
            # Only a folder: given a name, the library would look for it in the network.
            if not folder.is_dir():
                raise FileNotFoundError("it is no folder")
            self._model = WhisperModel(
                model, compute_type=compute_type, cpu_threads=threads, local_files_only=True
            )
        except Exception as error:  # tokenizers raises plain Exception
            raise ModelError(folder.name, f"faster-whisper cannot load it: {error}") from error
        self.model = folder.name
        self.version = metadata.version("faster-whisper")
        self.parameters: dict[str, Any] = {**_PARAMETERS, "compute_type": compute_type}

    def transcribe(self, samples: Floats, language: str | None) -> Iterator[TranscribedSegment]:
        """Yield segments with their words, those left out that were not spoken.

        Args:
            samples: Shape (n,), float32 in [-1, 1], 16 kHz, mono.
            language: Language code; None finds out from the first speech.
        """
        if not self._model.model.is_multilingual:
            language = "en"
        elif language not in self._model.supported_languages:
            language = None  # a registration may name one that this model does not know
        segments, about = self._model.transcribe(samples, language=language, **_PARAMETERS)
        duration_s = len(samples) / _RATE
        for segment in segments:
            kept = _kept(segment, about.language, duration_s)
            if kept is not None:
                yield kept


def _kept(segment: Segment, language: str, duration_s: float) -> TranscribedSegment | None:
    """Return the segment without what was invented, None if all of it was."""
    pieces = segment.words or []
    spoken_s = max(segment.end - segment.start, 0.0)
    kept = guards.num_words_before_loop([piece.word for piece in pieces], spoken_s)
    pieces = pieces[:kept]
    text = "".join(piece.word for piece in pieces).strip()
    if segment.compression_ratio > _COMPRESSION_RATIO and kept == len(segment.words or []):
        return None
    if guards.invented(
        text,
        speech_s=spoken_s,
        avg_logprob=segment.avg_logprob,
        no_speech_prob=segment.no_speech_prob,
    ):
        return None
    words = tuple(
        Word(piece.word.strip(), piece.start, max(piece.start, piece.end), piece.probability)
        for piece in pieces
    )
    words = guards.words_within(words, duration_s)
    if not words:
        return None
    return TranscribedSegment(
        start=words[0].s,
        end=words[-1].e,
        text=" ".join(word.w for word in words) if len(words) < len(pieces) else text,
        words=words,
        language=language,
        avg_logprob=segment.avg_logprob,
        no_speech_prob=segment.no_speech_prob,
    )
