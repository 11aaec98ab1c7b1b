"""Summaries by a local sequence-to-sequence model in CTranslate2's format, e.g. FLAN-T5 or BART.

A folder as ``ct2-transformers-converter --copy_files tokenizer.json`` makes it: ``model.bin``,
``config.json``, a vocabulary, and ``tokenizer.json`` or a sentencepiece model. Such a model writes
running text; reason, outcome and the rest are left to the rules of ``steps.summarize``.
"""

import json
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import ctranslate2
import sentencepiece
from tokenizers import Tokenizer

from callcore.errors import EngineError, ModelError

#: Tokens of one request: the smallest window of such models (T5's training, 512 positions).
_MOST_TOKENS = 500
#: Names of a sentencepiece model in converted folders.
_PIECES = ("spiece.model", "sentencepiece.model", "source.spm", "sentencepiece.bpe.model")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
#: What T5 was trained to begin the task with; its decoder starts with padding.
_T5_START = "<pad>"
_T5_TASK = "summarize: "

_PARAMETERS: dict[str, Any] = {
    "beam_size": 4,
    "length_penalty": 1.0,
    "no_repeat_ngram_size": 3,
    "max_decoding_length": 200,
}


class Seq2Seq:
    """A folder with a model that turns a long text into a short one."""

    name = "ctranslate2-seq2seq"
    #: Bytes of a transcript in one request: about 400 tokens.
    max_bytes = 1_600

    def __init__(self, folder: str, *, threads: int = 0) -> None:
        """Load the model.

        Args:
            folder: Of its files.
            threads: Cores that it uses; 0 leaves it to the library.

        Raises:
            ModelError: If it cannot be loaded.
        """
        path = Path(folder)
        try:
            self._tokens = _Tokens(path)
            self._model = ctranslate2.Translator(
                folder, device="cpu", inter_threads=1, intra_threads=threads
            )
            about = json.loads((path / "config.json").read_text("utf-8"))
        except Exception as error:  # the libraries raise what they like
            raise ModelError(path.name, f"no CTranslate2 seq2seq folder: {error}") from error
        self._task = _T5_TASK if about.get("decoder_start_token") == _T5_START else ""
        self.model = path.name
        self.version = metadata.version("ctranslate2")
        self.parameters: dict[str, Any] = {**_PARAMETERS, "task": self._task.strip() or None}

    def summarize(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return ``sentences``, and nothing for the fields that such a model cannot tell.

        Args:
            request: ``language`` (code or None), ``turns`` of {party, text}, ``max_sentences``.

        Raises:
            EngineError: If it fails or writes nothing. The message says nothing of the call.
        """
        text = "\n".join(f"{each['party']}: {each['text']}" for each in request["turns"])
        tokens = self._tokens.of(self._task + text)
        if len(tokens) > _MOST_TOKENS:
            tokens = [*tokens[: _MOST_TOKENS - 1], tokens[-1]]  # its last one is the end mark
        try:
            result = self._model.translate_batch([tokens], max_input_length=0, **_PARAMETERS)[0]
        except RuntimeError as error:
            raise EngineError(self.name, "CTranslate2 cannot decode with this model") from error
        written = " ".join(self._tokens.text(result.hypotheses[0]).split())
        sentences = [each for each in _SENTENCE_END.split(written) if any(map(str.isalnum, each))]
        if not sentences:
            raise EngineError(self.name, "the model wrote nothing")
        return {"sentences": sentences[: request["max_sentences"]]}


class _Tokens:
    """The tokenizer of a folder, whichever of the two kinds it has."""

    def __init__(self, folder: Path) -> None:
        self._fast: Tokenizer | None = None
        if (folder / "tokenizer.json").is_file():
            self._fast = Tokenizer.from_file(str(folder / "tokenizer.json"))
            self._fast.no_padding()
            self._fast.no_truncation()
            return
        pieces = next((folder / each for each in _PIECES if (folder / each).is_file()), None)
        if pieces is None:
            raise FileNotFoundError("it has neither tokenizer.json nor a sentencepiece model")
        self._pieces = sentencepiece.SentencePieceProcessor(model_file=str(pieces))

    def of(self, text: str) -> list[str]:
        if self._fast is not None:
            tokens: list[str] = self._fast.encode(text).tokens
            return tokens
        pieces: list[str] = self._pieces.encode(text, out_type=str)
        return pieces

    def text(self, tokens: list[str]) -> str:
        if self._fast is not None:
            ids = [self._fast.token_to_id(token) for token in tokens]
            text: str = self._fast.decode([each for each in ids if each is not None])
            return text
        decoded: str = self._pieces.decode_pieces(tokens)
        return decoded
