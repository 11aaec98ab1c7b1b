"""Live transcription by Whisper on CTranslate2, with a front end made for telephone audio.

Three things differ from the usual way (SYSTRAN/faster-whisper), each for a reason:

* The log-mel is computed at 8 kHz, and once for each stretch of sound (``features``).
* Silence is silence: padding is zeros in the audio, before the log-mel, not zeros in the mel.
* The encoder need not run over 30 s. With ``window="stitched"`` it sees the speech and a second of
  silence; what the states of a 30 s window would hold after that, silence that follows a sound,
  is taken from a window that was encoded once at start. Doubtful finals are decoded again with 15 s
  of it encoded; short ones and those of other languages than English are so at once.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers
from ctranslate2 import StorageView
from ctranslate2.models import Whisper

from callcore.engines import LIVE_RATE, DecodeJob, Floats, Hypothesis, Samples, bucket_s, guards
from callcore.engines.features import FRAMES_PER_S, FeatureCache, in_window, raw_frames
from callcore.errors import ModelError
from callcore.results import Word

_WINDOW_S = 30.0
_WINDOW_FRAMES = int(_WINDOW_S * FRAMES_PER_S)
_STATES_PER_S = FRAMES_PER_S // 2
_SECONDS_PER_STATE = 1 / _STATES_PER_S

#: Silence that a short window keeps after the speech: with 0.5 s base made more errors.
_PAD_S = 1.0

#: The window in which a doubtful final is decoded again: as good as 30 s for a quarter of the
#: encoder's time. Finals of other languages than English go there at once: in the short window base
#: made 25 errors in 134 words of French instead of 20, and was sure of them.
_LONGER_S = 15.0

#: The beam of finals; partials are greedy. With 2, tiny.en made 1.1 points more errors on sets held
#: out (clean, mu-law, noise) and took 13 % less CPU.
_BEAM = 5
#: That of finals under overload.
_HURRIED_BEAM = 2

#: A final shorter than this goes into the longer window at once.
_SHORT_S = 1.5

#: A final less sure than this is decoded again: base makes mistakes of which it is surer.
_DOUBTFUL_LOGPROB = -0.7
_DOUBTFUL_LOGPROB_MULTILINGUAL = -0.3

#: Languages written without spaces: every character is a word of its own.
_UNSPACED = frozenset({"zh", "ja", "th", "lo", "my", "yue"})


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

    @property
    def most_tokens(self) -> int:
        """Return how many tokens are believed of it."""
        return _most_tokens(self.job, self.language)


class LiveWhisper:
    """Any Whisper folder in CTranslate2's format, for utterances of up to 15 s."""

    def __init__(
        self,
        model: str,
        *,
        compute_type: str | None = None,
        threads: int = 1,
        window: str = "stitched",
        device: str = "cpu",
    ) -> None:
        """Load the model.

        Args:
            model: Folder with ``model.bin``, ``config.json``, ``tokenizer.json`` and vocabulary.
            compute_type: CTranslate2's name; by default ``int8``, on a GPU ``int8_float16``.
            threads: Calls of ``decode`` that run side by side, each on one core.
            window: ``full`` encodes 30 s each time; ``stitched`` as the module describes.
            device: ``cpu`` or ``cuda``.

        Raises:
            ModelError: If it cannot be loaded.
        """
        folder = Path(model)
        try:
            self._model = Whisper(
                model,
                device=device,
                compute_type=compute_type or ("int8" if device == "cpu" else "int8_float16"),
                inter_threads=threads,
                intra_threads=1,
            )
            self._tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
            config = json.loads((folder / "config.json").read_text("utf-8"))
        except Exception as error:  # tokenizers raises plain Exception
            raise ModelError(folder.name, f"CTranslate2 cannot load it: {error}") from error
        self._multilingual = self._model.is_multilingual
        self._features = FeatureCache(self._model.n_mels)
        self._eot = self._id("<|endoftext|>")
        self._suppressed = sorted(
            set(config.get("suppress_ids", ())) | set(self._special_tokens()) - {self._eot}
        )
        self._stitched = window == "stitched"
        # A small English model decodes as well from every second state of silence, in less time;
        # base does not (measured).
        self._tail_stride = 1 if self._multilingual else 2
        self._doubtful_logprob = (
            _DOUBTFUL_LOGPROB_MULTILINGUAL if self._multilingual else _DOUBTFUL_LOGPROB
        )
        sound = raw_frames(_sound(), self._model.n_mels)
        self._tail = self._encode([sound], _WINDOW_FRAMES) if self._stitched else None

    def decode(self, jobs: list[DecodeJob]) -> list[Hypothesis]:
        """Return what was said in each job; jobs that are alike go through the model together."""
        heard: dict[int, _Heard] = {}
        for indices in self._alike(jobs):
            heard.update(zip(indices, self._hear([jobs[i] for i in indices]), strict=True))
        return [self._hypothesis(heard[i]) for i in range(len(jobs))]

    def _alike(self, jobs: list[DecodeJob]) -> Iterator[list[int]]:
        """Yield indices of jobs of one kind, one window and one limit of tokens."""
        groups: dict[tuple[float, bool, int], list[int]] = {}
        for i, job in enumerate(jobs):
            language = self._known(job.language) if self._multilingual else "en"
            length_s = bucket_s(len(job.samples))
            kind = (length_s, job.words, guards.token_limit(length_s, language))
            groups.setdefault(kind, []).append(i)
        yield from groups.values()

    def _hear(self, jobs: list[DecodeJob]) -> list[_Heard]:
        raws = [self._features.frames(job) for job in jobs]
        beam = 1
        if jobs[0].words:
            beam = _BEAM if all(job.redo for job in jobs) else _HURRIED_BEAM
        if not self._stitched:
            return self._run(jobs, raws, _WINDOW_S, beam)
        window_s = bucket_s(max(len(job.samples) for job in jobs)) + _PAD_S
        longer_s = _LONGER_S if window_s < _LONGER_S else _WINDOW_S
        heard: list[_Heard | None] = [None] * len(jobs)
        first = [i for i, job in enumerate(jobs) if not self._distrusts(job, window_s)]
        if first:
            short = self._run([jobs[i] for i in first], [raws[i] for i in first], window_s, beam)
            for i, each in zip(first, short, strict=True):
                if not (each.job.words and each.job.redo and self._doubts(each)):
                    heard[i] = each
        again = [i for i, each in enumerate(heard) if each is None]
        if again:
            longer = self._run([jobs[i] for i in again], [raws[i] for i in again], longer_s, beam)
            for i, each in zip(again, longer, strict=True):
                heard[i] = each
        return [each for each in heard if each is not None]

    def _distrusts(self, job: DecodeJob, window_s: float) -> bool:
        """Return whether a final is not even tried in the short window."""
        if not (job.words and job.redo) or window_s >= _LONGER_S:
            return False
        short = len(job.samples) < _SHORT_S * LIVE_RATE
        return short or (self._multilingual and self._known(job.language) != "en")

    def _doubts(self, heard: _Heard) -> bool:
        """Return whether a final may be wrong: the model is not sure of it, or ran in circles.

        Of a loop it is sure, and in a longer window it mostly does not fall into it.
        """
        if heard.avg_logprob < self._doubtful_logprob:
            return True
        words = [text for text, _ in self._words(heard.tokens, heard.language)]
        return len(heard.tokens) >= heard.most_tokens or guards.repeats(words)

    def _run(
        self, jobs: list[DecodeJob], raws: Sequence[Floats], window_s: float, beam: int
    ) -> list[_Heard]:
        states = self._states(raws, window_s)
        view = _view(states)
        languages = self._languages(view, jobs)
        prompts = [
            [*self._start(language), self._id("<|notimestamps|>")] for language, _ in languages
        ]
        # The same for all jobs of the window's length: nobody's text depends on its neighbours.
        most_tokens = max(
            guards.token_limit(bucket_s(len(job.samples)), language)
            for job, (language, _) in zip(jobs, languages, strict=True)
        )
        results = self._model.generate(
            view,
            prompts,
            beam_size=beam,
            # CTranslate2 takes half of it as the limit of what it writes, or, if that is less, what
            # the prompt without its last token (1 to 3) leaves of it.
            max_length=min(448, 2 * most_tokens),
            suppress_blank=True,
            suppress_tokens=self._suppressed,
            return_scores=True,
            return_no_speech_prob=True,
        )
        return [
            _Heard(
                job,
                states[i : i + 1],
                language,
                language_prob,
                tokens=[
                    token
                    for token in result.sequences_ids[0][: _most_tokens(job, language)]
                    if token < self._eot
                ],
                # CTranslate2 divides by the tokens without the end mark, Whisper with it.
                avg_logprob=result.scores[0]
                * len(result.sequences_ids[0])
                / (len(result.sequences_ids[0]) + 1),
                no_speech_prob=result.no_speech_prob,
            )
            for i, (job, (language, language_prob), result) in enumerate(
                zip(jobs, languages, results, strict=True)
            )
        ]

    def _states(self, raws: Sequence[Floats], window_s: float) -> Floats:
        """Return encoder states of so many seconds and of silence after them.

        Returns:
            Shape (batch, num_states, d).
        """
        states = self._encode(raws, int(window_s * FRAMES_PER_S))
        if self._tail is None or window_s == _WINDOW_S:
            return states
        tail = self._tail[:, states.shape[1] :: self._tail_stride]
        return np.concatenate([states, np.repeat(tail, len(raws), axis=0)], axis=1)

    def _encode(self, raws: Sequence[Floats], num_frames: int) -> Floats:
        mels = np.stack([in_window(raw, num_frames) for raw in raws])
        return np.array(self._model.encode(_view(mels), to_cpu=True), np.float32)

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
        timed: list[Word] | None = None
        if guards.repeats([text for text, _ in pieces]):
            timed = self._align(heard, pieces)
            kept = guards.without_loops(timed, heard.duration_s)
            pieces, timed = [pieces[i] for i in kept], [timed[i] for i in kept]
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
        timed = timed or self._align(heard, pieces)
        words = guards.words_within(timed, heard.duration_s)
        if len(words) < len(timed):
            text = "".join(text for text, _ in pieces[: len(words)]).strip()
        return replace(nothing, text=text, words=words)

    def _align(self, heard: _Heard, pieces: list[tuple[str, list[int]]]) -> list[Word]:
        """Return the words with their times, by the cross-attention of the decoder."""
        tokens = [token for _, piece in pieces for token in piece]
        num_frames = min(_WINDOW_FRAMES, int((heard.duration_s + _PAD_S) * FRAMES_PER_S))
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


def _most_tokens(job: DecodeJob, language: str | None) -> int:
    return guards.token_limit(len(job.samples) / LIVE_RATE, language)


def _view(array: npt.NDArray[Any]) -> StorageView:
    return StorageView.from_array(np.ascontiguousarray(array, np.float32))
