"""Sentence vectors by all-MiniLM-L6-v2, 8-bit weights, on onnxruntime.

Mean of the last hidden states over the tokens, then length 1, as the model was trained
(sentence-transformers, ``modules.json``: transformer, pooling, normalise). It knows English; other
languages give vectors that mean little.
"""

from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from tokenizers import Encoding, Tokenizer

from callcore.engines import Floats
from callcore.errors import ModelError

#: Tokens of a text that are read, its two marks included: ``max_seq_length`` of the model.
_MAX_TOKENS = 256
#: Texts that go through the network together: more are not faster on a few cores.
_BATCH = 32


class MiniLM:
    """Vectors whose scalar product says how alike two sentences are."""

    name = "minilm"

    def __init__(self, model: str, *, threads: int = 1) -> None:
        """Load the network and its tokenizer.

        Args:
            model: Folder of ``model.onnx`` and ``tokenizer.json``.
            threads: Cores that one call uses; 0 leaves it to the library.

        Raises:
            ModelError: If it cannot be loaded.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # A thread that spins between two calls takes a core from those who decode.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        folder = Path(model)
        try:
            self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            self._session = onnxruntime.InferenceSession(
                str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # neither library's errors share a base class of their own
            raise ModelError(folder.name, f"onnxruntime cannot load it: {error}") from error
        self._tokenizer.enable_truncation(_MAX_TOKENS)
        self._tokenizer.no_padding()  # the file pads everything to 128 tokens
        self._inputs = {each.name for each in self._session.get_inputs()}
        self._size = int(self._session.get_outputs()[0].shape[-1])
        self.model = folder.name
        self.version = metadata.version("onnxruntime")
        self.parameters: dict[str, Any] = {"max_tokens": _MAX_TOKENS, "pooling": "mean"}

    def embed(self, texts: Sequence[str]) -> Floats:
        """Return one vector for each text.

        Returns:
            Shape (len(texts), 384), float32, each of length 1.
        """
        vectors = np.zeros((len(texts), self._size), np.float32)
        encoded = self._tokenizer.encode_batch(list(texts))
        for rows in _batches(encoded):
            vectors[rows] = self._mean([encoded[row] for row in rows])
        return vectors

    def _mean(self, encoded: Sequence[Encoding]) -> Floats:
        """Return the vectors of texts that have the same number of tokens."""
        ids = np.array([each.ids for each in encoded], np.int64)
        given = {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "token_type_ids": np.zeros_like(ids),
        }
        hidden = self._session.run(None, {k: v for k, v in given.items() if k in self._inputs})[0]
        mean: Floats = np.asarray(hidden, np.float32).mean(axis=1)
        mean /= np.linalg.norm(mean, axis=1, keepdims=True)
        return mean


def _batches(encoded: Sequence[Encoding]) -> Iterator[list[int]]:
    """Yield the indices of texts of one length, few enough for one run of the network."""
    by_length: dict[int, list[int]] = {}
    for index, each in enumerate(encoded):
        by_length.setdefault(len(each.ids), []).append(index)
    for rows in by_length.values():
        for first in range(0, len(rows), _BATCH):
            yield rows[first : first + _BATCH]
