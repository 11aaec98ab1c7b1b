"""Live transcription by Whisper on CTranslate2, with a front end made for telephone audio.

Three things differ from the usual way (SYSTRAN/faster-whisper), each for a reason:

* The log-mel is computed at 8 kHz: a 200-sample frame there has the same 40 Hz bins as Whisper's
  400-sample frame at 16 kHz, and the bins above 4 kHz hold nothing.
* Silence is silence: padding is zeros in the audio, before the log-mel, not zeros in the mel.
* The encoder need not run over 30 s. With ``window="stitched"`` it sees the speech and a second of
  silence; what the states of a 30 s window would hold after that, silence that follows a sound,
  is taken from a window that was encoded once at start. Short or doubtful finals are decoded again
  in the full window.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers
from ctranslate2 import StorageView
from ctranslate2.models import Whisper

from callcore.engines import LIVE_RATE, DecodeJob, Floats, Hypothesis, Samples, bucket_s, guards
from callcore.errors import ModelError
from callcore.results import Word

_FRAME = 200
_HOP = 80
_NUM_BINS = _FRAME // 2 + 1
_FRAMES_PER_S = LIVE_RATE // _HOP
_WINDOW_FRAMES = 3000
_STATES_PER_S = _FRAMES_PER_S // 2
_SECONDS_PER_STATE = 1 / _STATES_PER_S

#: Silence that a short window keeps after the speech: with 0.5 s base made more errors.
_PAD_S = 1.0

#: A final shorter than this is decoded again in the full window ...
_SHORT_S = 1.5

#: ... and so is one less sure than this. With these numbers the short window cost no more than 0.3
#: points of WER (0.0 with tiny.en, 0.26 with base, on six test sets); base at -0.7 cost 0.4.
_DOUBTFUL_LOGPROB = -0.7
_DOUBTFUL_LOGPROB_MULTILINGUAL = -0.3

#: Languages written without spaces: every character is a word of its own.
_UNSPACED = frozenset({"zh", "ja", "th", "lo", "my", "yue"})


@lru_cache(maxsize=2)
def mel_filters(num_mels: int) -> Floats:
    """Return Whisper's filter bank for bins of 40 Hz below 4 kHz.

    Slaney's mel scale over 0 to 8 kHz, triangles of equal area (librosa.filters.mel, which
    openai/whisper ships as ``mel_filters.npz``), first 101 of 201 bins.

    Returns:
        Shape (num_mels, 101), float32.
    """
    linear_hz, breakpoint_mel, log_step = 200.0 / 3, 15.0, np.log(6.4) / 27.0
    top_mel = breakpoint_mel + np.log(8000.0 / 1000.0) / log_step
    mels = np.linspace(0.0, top_mel, num_mels + 2)
    edges = np.where(
        mels < breakpoint_mel, mels * linear_hz, 1000.0 * np.exp(log_step * (mels - breakpoint_mel))
    )
    bins = np.arange(_NUM_BINS) * (LIVE_RATE / _FRAME)
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    triangles = np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre))
    filters = np.maximum(triangles, 0.0) * 2.0 / (high - low)
    return np.ascontiguousarray(filters, np.float32)


def log_mel(samples: Samples, num_frames: int, num_mels: int = 80) -> Floats:
    """Return Whisper's features of telephone audio.

    Args:
        samples: Shape (n,), int16, 8 kHz; followed by digital silence as far as needed.
        num_frames: Frames of 10 ms to return.
        num_mels: Rows that the model wants: 80, or 128 for large-v3.

    Returns:
        Shape (num_mels, num_frames), float32.
    """
    audio = np.zeros(num_frames * _HOP, np.float32)
    kept = min(len(samples), len(audio))
    audio[:kept] = samples[:kept]
    audio /= 32768.0
    audio = np.pad(audio, _FRAME // 2, mode="reflect")
    # Frames of pure zeros have a spectrum of zeros: only those that touch sound are transformed.
    sounding = min(num_frames, (kept + _FRAME // 2) // _HOP + 1)
    frames = np.lib.stride_tricks.sliding_window_view(audio, _FRAME)[::_HOP][:sounding]
    window = np.hanning(_FRAME + 1)[:-1].astype(np.float32)
    # At 16 kHz twice as many samples add up: twice the amplitude, four times the power.
    power = 4.0 * np.abs(np.fft.rfft(frames * window, axis=1)) ** 2
    mel = np.full((num_mels, num_frames), -10.0, np.float32)
    mel[:, :sounding] = np.log10(
        np.maximum(mel_filters(num_mels) @ power.T.astype(np.float32), 1e-10)
    )
    features: Floats = (np.maximum(mel, mel.max() - 8.0) + 4.0) / 4.0
    return features


def _sound() -> Samples:
    """Return a second of a buzzing, pulsing tone: a sound whose following silence is learnt."""
    phases = np.random.default_rng(3).uniform(0, 6, 24)
    time = np.arange(LIVE_RATE) / LIVE_RATE
    buzz = sum(np.sin(2 * np.pi * 120 * k * time + phases[k - 1]) / k for k in range(1, 25))
    pulse = 0.5 + 0.5 * np.sin(2 * np.pi * 4 * time)
    return np.asarray(buzz * pulse * 0.1 * 32767, np.int16)


@dataclass(slots=True)
class _Heard:
    """One job between encoder and hypothesis."""

    job: DecodeJob
    states: Floats
    """Shape (1, num_states, d): what the decoder attends to."""
    language: str | None
    language_prob: float
    tokens: list[int]
    avg_logprob: float
    no_speech_prob: float

    @property
    def duration_s(self) -> float:
        return len(self.job.samples) / LIVE_RATE


class LiveWhisper:
    """Any Whisper folder in CTranslate2's format, for utterances of up to 15 s."""

    def __init__(
        self,
        model: str,
        *,
        compute_type: str = "int8",
        threads: int = 1,
        window: str = "stitched",
        beam: int = 5,
    ) -> None:
        """Load the model.

        Args:
            model: Folder with ``model.bin``, ``config.json``, ``tokenizer.json`` and vocabulary.
            compute_type: CTranslate2's name, e.g. ``int8``.
            threads: Calls of ``decode`` that run side by side, each on one core.
            beam: Beam of finals: on telephone calls it took a tenth of the errors away for a
                third more time of the decoder (measured). Partials are greedy.
            window: ``full`` encodes 30 s each time; ``stitched`` as the module describes.

        Raises:
            ModelError: If it cannot be loaded.
        """
        folder = Path(model)
        try:
            self._model = Whisper(
                model, compute_type=compute_type, inter_threads=threads, intra_threads=1
            )
            self._tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
            config = json.loads((folder / "config.json").read_text("utf-8"))
        except Exception as error:  # tokenizers raises plain Exception
            raise ModelError(folder.name, f"CTranslate2 cannot load it: {error}") from error
        self._multilingual = self._model.is_multilingual
        self._num_mels = self._model.n_mels
        self._eot = self._id("<|endoftext|>")
        self._suppressed = sorted(
            set(config.get("suppress_ids", ())) | set(self._special_tokens()) - {self._eot}
        )
        self._beam = beam
        self._stitched = window == "stitched"
        # A small English model decodes as well from every second state of silence, in less time;
        # base does not (measured).
        self._tail_stride = 1 if self._multilingual else 2
        self._doubtful_logprob = (
            _DOUBTFUL_LOGPROB_MULTILINGUAL if self._multilingual else _DOUBTFUL_LOGPROB
        )
        self._tail = self._encode([_sound()], _WINDOW_FRAMES) if self._stitched else None

    def decode(self, jobs: list[DecodeJob]) -> list[Hypothesis]:
        """Return what was said in each job; jobs that are alike go through the model together."""
        heard: dict[int, _Heard] = {}
        for indices in _alike(jobs):
            heard.update(zip(indices, self._hear([jobs[i] for i in indices]), strict=True))
        return [self._hypothesis(heard[i]) for i in range(len(jobs))]

    def _hear(self, jobs: list[DecodeJob]) -> list[_Heard]:
        heard = self._run(jobs, full=not self._stitched)
        if self._stitched:
            for i, each in enumerate(heard):
                if each.job.words and self._doubts(each):
                    heard[i] = self._run([each.job], full=True)[0]
        return heard

    def _doubts(self, heard: _Heard) -> bool:
        return heard.duration_s < _SHORT_S or heard.avg_logprob < self._doubtful_logprob

    def _run(self, jobs: list[DecodeJob], *, full: bool) -> list[_Heard]:
        states = self._states([job.samples for job in jobs], full=full)
        view = _view(states)
        languages = self._languages(view, jobs)
        prompts = [
            [*self._start(language), self._id("<|notimestamps|>")] for language, _ in languages
        ]
        most_tokens = max(
            guards.token_limit(len(job.samples) / LIVE_RATE, language)
            for job, (language, _) in zip(jobs, languages, strict=True)
        )
        results = self._model.generate(
            view,
            prompts,
            beam_size=self._beam if jobs[0].words else 1,
            max_length=min(448, len(prompts[0]) + most_tokens),
            suppress_blank=True,
            suppress_tokens=self._suppressed,
            return_scores=True,
            return_no_speech_prob=True,
        )
        return [
            _Heard(
                job,
                states[i : i + 1],
                *languages[i],
                tokens=[token for token in result.sequences_ids[0] if token < self._eot],
                # CTranslate2 divides by the tokens without the end mark, Whisper with it.
                avg_logprob=result.scores[0]
                * len(result.sequences_ids[0])
                / (len(result.sequences_ids[0]) + 1),
                no_speech_prob=result.no_speech_prob,
            )
            for i, (job, result) in enumerate(zip(jobs, results, strict=True))
        ]

    def _states(self, samples: Sequence[Samples], *, full: bool) -> Floats:
        """Return encoder states, shape (batch, num_states, d)."""
        if full:
            return self._encode(samples, _WINDOW_FRAMES)
        seconds = bucket_s(max(len(each) for each in samples)) + _PAD_S
        states = self._encode(samples, int(seconds * _FRAMES_PER_S))
        assert self._tail is not None
        tail = self._tail[:, states.shape[1] :: self._tail_stride]
        return np.concatenate([states, np.repeat(tail, len(samples), axis=0)], axis=1)

    def _encode(self, samples: Sequence[Samples], num_frames: int) -> Floats:
        mels = np.stack([log_mel(each, num_frames, self._num_mels) for each in samples])
        return np.array(self._model.encode(_view(mels), to_cpu=True))

    def _languages(
        self, view: StorageView, jobs: list[DecodeJob]
    ) -> list[tuple[str | None, float]]:
        """Return each job's language and how sure that is; asks the model only where needed."""
        if not self._multilingual:
            return [("en", 1.0)] * len(jobs)
        # A registration may name a language that this model does not know: then it finds out.
        given = [self._known(job.language) for job in jobs]
        if all(given):
            return [(language, 1.0) for language in given]
        detected = self._model.detect_language(view)
        return [
            (language, 1.0) if language else (best[0][0].strip("<|>"), best[0][1])
            for language, best in zip(given, detected, strict=True)
        ]

    def _known(self, language: str | None) -> str | None:
        token = self._tokenizer.token_to_id(f"<|{language}|>") if language else None
        return None if token is None else language

    def _start(self, language: str | None) -> list[int]:
        start = [self._id("<|startoftranscript|>")]
        if self._multilingual:
            start += [self._id(f"<|{language}|>"), self._id("<|transcribe|>")]
        return start

    def _hypothesis(self, heard: _Heard) -> Hypothesis:
        pieces = self._words(heard.tokens, heard.language)
        kept = guards.num_words_before_loop([text for text, _ in pieces], heard.duration_s)
        pieces = pieces[:kept]
        text = "".join(text for text, _ in pieces).strip()
        nothing = Hypothesis(
            "",
            language=heard.language,
            avg_logprob=heard.avg_logprob,
            no_speech_prob=heard.no_speech_prob,
            language_prob=heard.language_prob,
        )
        if guards.invented(
            text,
            speech_s=heard.job.speech_s,
            avg_logprob=heard.avg_logprob,
            no_speech_prob=heard.no_speech_prob,
        ):
            return nothing
        if not heard.job.words:
            return replace(nothing, text=text)
        timed = self._align(heard, pieces)
        words = guards.words_within(timed, heard.duration_s)
        if len(words) < len(timed):
            text = "".join(text for text, _ in pieces[: len(words)]).strip()
        return replace(nothing, text=text, words=words)

    def _align(self, heard: _Heard, pieces: list[tuple[str, list[int]]]) -> list[Word]:
        """Return the words with their times, by the cross-attention of the decoder."""
        tokens = [token for _, piece in pieces for token in piece]
        num_frames = min(_WINDOW_FRAMES, int((heard.duration_s + _PAD_S) * _FRAMES_PER_S))
        result = self._model.align(
            _view(heard.states), self._start(heard.language), [tokens], num_frames
        )[0]
        # The path visits tokens in order; a token begins at the first state it visits.
        begins: dict[int, int] = {}
        for token, state in result.alignments:
            begins.setdefault(token, state)
        words = []
        position = 0
        for text, piece in pieces:
            after = position + len(piece)
            start, end = begins[position], begins.get(after, num_frames // 2)
            probabilities = result.text_token_probs[position:after]
            words.append(
                Word(
                    text.strip(),
                    start * _SECONDS_PER_STATE,
                    max(start, end) * _SECONDS_PER_STATE,
                    float(np.mean(probabilities)),
                )
            )
            position = after
        return words

    def _words(self, tokens: list[int], language: str | None) -> list[tuple[str, list[int]]]:
        """Return words, each with its leading space and its tokens."""
        words: list[tuple[str, list[int]]] = []
        for text, piece in self._characters(tokens):
            if words and not text.startswith(" ") and language not in _UNSPACED:
                words[-1] = (words[-1][0] + text, words[-1][1] + piece)
            else:
                words.append((text, piece))
        return words

    def _characters(self, tokens: list[int]) -> Iterator[tuple[str, list[int]]]:
        """Yield the shortest runs of tokens that are whole characters, not halves of one."""
        piece: list[int] = []
        for i, token in enumerate(tokens):
            piece.append(token)
            text = self._tokenizer.decode(piece)
            if "\ufffd" not in text or i == len(tokens) - 1:
                yield text, piece
                piece = []

    def _special_tokens(self) -> Iterator[int]:
        for token, index in self._tokenizer.get_vocab(with_added_tokens=True).items():
            if token.startswith("<|") and token.endswith("|>"):
                yield index

    def _id(self, token: str) -> int:
        index: int | None = self._tokenizer.token_to_id(token)
        if index is None:
            raise ModelError("tokenizer.json", f"it has no token {token}")
        return index


def _alike(jobs: list[DecodeJob]) -> Iterator[list[int]]:
    """Yield indices of jobs that are all finals or all partials, and have one window."""
    groups: dict[tuple[float, bool], list[int]] = {}
    for i, job in enumerate(jobs):
        groups.setdefault((bucket_s(len(job.samples)), job.words), []).append(i)
    yield from groups.values()


def _view(array: npt.NDArray[Any]) -> StorageView:
    return StorageView.from_array(np.ascontiguousarray(array, np.float32))
