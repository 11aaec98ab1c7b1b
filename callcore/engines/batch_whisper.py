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
from faster_whisper.transcribe import Segment, TranscriptionInfo

from callcore.engines import Floats, TranscribedSegment, guards
from callcore.errors import EngineError, ModelError
from callcore.results import Word

#: Hz that ``transcribe`` takes.
_RATE = 16_000

#: Parameters of ``WhisperModel.transcribe``.
_PARAMETERS: dict[str, Any] = {
    "beam_size": 5,
    # One error would otherwise be carried from window to window.
    "condition_on_previous_text": False,
    "word_timestamps": True,
    # A second try at these temperatures where the first is one phrase over and over.
    "temperature": [0.0, 0.2, 0.4],
    "compression_ratio_threshold": guards.COMPRESSION_RATIO,
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

    def __init__(
        self, model: str, *, compute_type: str = "", threads: int = 0, device: str = "cpu"
    ) -> None:
        """Load the model.

        Args:
            model: Folder of the model's files.
            compute_type: CTranslate2's name; empty: ``int8`` on the processor, ``int8_float16`` on
                a GPU.
            threads: Cores that one decode uses; 0 leaves it to the library.
            device: ``cpu``, or ``cuda`` for the first GPU.

        Raises:
            ModelError: If it cannot be loaded.
        """
        folder = Path(model)
        compute_type = compute_type or ("int8" if device == "cpu" else "int8_float16")
        try:
            # Only a folder: given a name, the library would look for it in the network.
            if not folder.is_dir():
                raise FileNotFoundError("it is no folder")
            self._model = _Whisper(
                model,
                device=device,
                compute_type=compute_type,
                cpu_threads=threads,
                local_files_only=True,
            )
        except Exception as error:  # tokenizers raises plain Exception
            raise ModelError(folder.name, f"faster-whisper cannot load it: {error}") from error
        self.model = folder.name
        self.version = metadata.version("faster-whisper")
        self.parameters: dict[str, Any] = {**_PARAMETERS, "compute_type": compute_type}
        if device != "cpu":
            self.parameters["device"] = device

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


def _kept(
    segment: Segment, about: TranscriptionInfo, duration_s: float
) -> TranscribedSegment | None:
    """Return the segment without what was invented, None if all of it was."""
    written = [
        Word(piece.word, piece.start, max(piece.start, piece.end), piece.probability)
        for piece in segment.words or ()
    ]
    spoken = [written[i] for i in guards.without_loops(written, duration_s)]
    speech_s = max(segment.end - segment.start, 0.0)
    # The ratio is that of the whole window, where people and announcements may repeat themselves.
    if segment.compression_ratio > guards.COMPRESSION_RATIO and not guards.said_again(
        spoken, speech_s, segment.no_speech_prob
    ):
        return None
    text = "".join(word.w for word in spoken).strip()
    if guards.invented(
        text,
        speech_s=speech_s,
        avg_logprob=segment.avg_logprob,
        no_speech_prob=segment.no_speech_prob,
    ):
        return None
    within = guards.words_within(spoken, duration_s)
    if not within:
        return None
    words = tuple(Word(word.w.strip(), word.s, word.e, word.p) for word in within)
    return TranscribedSegment(
        start=words[0].s,
        end=words[-1].e,
        text=" ".join(word.w for word in words) if len(words) < len(spoken) else text,
        words=words,
        language=about.language,
        avg_logprob=segment.avg_logprob,
        no_speech_prob=segment.no_speech_prob,
        language_prob=float(about.language_probability),
    )
