"""Transcription of recordings by faster-whisper: beam search, word times, guards.

The vocabulary, features and decoding loop are SYSTRAN/faster-whisper's; what is ours is the choice
of parameters for telephone calls and what is not believed of the result.
"""

from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from threading import local
from typing import Any

import ctranslate2
import numpy as np
from faster_whisper import WhisperModel
from faster_whisper.tokenizer import Tokenizer
from faster_whisper.transcribe import Segment, TranscriptionInfo, get_compression_ratio
from faster_whisper.transcribe import Word as WhisperWord

from callcore.engines import Floats, TranscribedSegment, guards
from callcore.errors import EngineError, ModelError
from callcore.results import Word

#: Hz that ``transcribe`` takes.
_RATE = 16_000

#: Text that compresses better than this is one phrase over and over.
_COMPRESSION_RATIO = 2.4

#: Segments of a window that repeats itself are believed as said again where their words are at
#: least so sure and come no faster than people speak.
_SURE_WORDS = 0.5
_FASTEST_WORDS_PER_S = 5.0

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
        # Stretches of speech are joined before they are decoded, with some of the line's own
        # silence around each: with none, words slip into the next turn; more costs windows.
        "min_silence_duration_ms": 2000,
        "speech_pad_ms": 700,
    },
}


class _Whisper(WhisperModel):
    """faster-whisper without two pieces of work whose results are known or not needed."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Several recordings take turns, each on a thread of its own.
        self._last = local()

    def encode(self, features: np.ndarray) -> ctranslate2.StorageView:
        """Return the encoder's states; those of the window before without encoding it again.

        The language is found from the first window of speech, which is then transcribed.
        """
        last, states = getattr(self._last, "window", (None, None))
        # For the language faster-whisper takes one frame (10 ms) more of a short recording.
        if last is not None and np.count_nonzero((last != features).any(axis=0)) <= 1:
            return states
        states = super().encode(features)
        self._last.window = features, states
        return states

    def forget(self) -> None:
        """Let go of the window before."""
        self._last.window = None, None

    def find_alignment(
        self,
        tokenizer: Tokenizer,
        text_tokens: list[int],
        encoder_output: ctranslate2.StorageView,
        num_frames: int,
        median_filter_width: int = 7,
    ) -> list[dict[str, Any]]:
        """Return where words are, from the states of the audio without those of its padding."""
        # A state is two frames; CTranslate2 looks at half as many states as it is told frames.
        needed = (num_frames + 1) // 2
        if encoder_output.device == "cpu" and needed < encoder_output.shape[1]:
            states = np.ascontiguousarray(np.array(encoder_output)[:, :needed])
            encoder_output = ctranslate2.StorageView.from_array(states)
        found: list[dict[str, Any]] = super().find_alignment(
            tokenizer, text_tokens, encoder_output, num_frames, median_filter_width
        )
        return found


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
            self._model = _Whisper(
                model, compute_type=compute_type, cpu_threads=threads, local_files_only=True
            )
        except Exception as error:  # tokenizers raises plain Exception
            raise ModelError(folder.name, f"faster-whisper cannot load it: {error}") from error
        self.model = folder.name
        self.version = metadata.version("faster-whisper")
        self.parameters: dict[str, Any] = {**_PARAMETERS, "compute_type": compute_type}

    def transcribe(
        self, samples: Floats, language: str | None, hotwords: str | None = None
    ) -> Iterator[TranscribedSegment]:
        """Yield segments with their words, those left out that were not spoken.

        Args:
            samples: Shape (n,), float32 in [-1, 1], 16 kHz, mono.
            language: Language code; None finds out from the first speech.
            hotwords: Names and words that are likely, separated by commas.
        """
        return self._segments(samples, language, hotwords=hotwords or None)

    def translate(self, samples: Floats, language: str | None) -> Iterator[TranscribedSegment]:
        """Yield what was said in English; arguments as for ``transcribe``.

        Raises:
            EngineError: If the model knows English only.
        """
        if not self._model.model.is_multilingual:
            raise EngineError(self.name, f"model {self.model} knows English only: no translation")
        return self._segments(samples, language, task="translate")

    def _segments(
        self, samples: Floats, language: str | None, **options: Any
    ) -> Iterator[TranscribedSegment]:
        if not self._model.model.is_multilingual:
            language = "en"
        elif language not in self._model.supported_languages:
            language = None  # a registration may name one that this model does not know
        duration_s = len(samples) / _RATE
        try:
            segments, about = self._model.transcribe(
                samples, language=language, **_PARAMETERS, **options
            )
            for segment in segments:
                kept = _kept(segment, about, duration_s)
                if kept is not None:
                    yield kept
        finally:
            self._model.forget()


def _said_again(pieces: list[WhisperWord], text: str, spoken_s: float) -> bool:
    """Tell whether a segment of a window that repeats itself sounds like one said again."""
    sure = sum(piece.probability for piece in pieces) >= _SURE_WORDS * len(pieces)
    slow = len(pieces) <= _FASTEST_WORDS_PER_S * spoken_s
    return sure and slow and get_compression_ratio(text) <= _COMPRESSION_RATIO


def _kept(
    segment: Segment, about: TranscriptionInfo, duration_s: float
) -> TranscribedSegment | None:
    """Return the segment without what was invented, None if all of it was."""
    pieces = segment.words or []
    spoken_s = max(segment.end - segment.start, 0.0)
    kept = guards.num_words_before_loop([piece.word for piece in pieces], spoken_s)
    pieces = pieces[:kept]
    text = "".join(piece.word for piece in pieces).strip()
    # The ratio is that of the whole window, where people and announcements may repeat themselves.
    if segment.compression_ratio > _COMPRESSION_RATIO and not _said_again(pieces, text, spoken_s):
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
        language=about.language,
        avg_logprob=segment.avg_logprob,
        no_speech_prob=segment.no_speech_prob,
        language_prob=float(about.language_probability),
    )
