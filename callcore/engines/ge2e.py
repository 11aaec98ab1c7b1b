"""Voices as vectors: the GE2E speaker encoder in numpy, with the weights that callcore carries.

Three LSTM layers of 256 cells read a mel spectrogram of 160 frames (1.6 s); the last state, through
a linear layer, is the voice (arXiv:1710.10467; weights and front end of Resemblyzer, see
``data/speakers/README.md``). Windows run through the network side by side, so that its 480 steps
are products of large matrices.
"""

from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from callcore.engines import Floats
from callcore.errors import EngineError, ModelError

#: Hz that the network was trained on.
_RATE = 16_000
#: Samples of a frame (25 ms) and from one to the next (10 ms).
_FRAME, _HOP = 400, 160
_NUM_MELS = 40
#: Frames that the network reads at once, and from one such part of a long window to the next.
_PART, _PART_STEP = 160, 80
#: A last part may be shorter, down to this share.
_LEAST_COVERAGE = 0.75
#: Loudness that quiet windows are raised to, as RMS: -30 dBFS.
_LOUDNESS = 10 ** (-30 / 20)
#: Parts in one product of matrices: 20 MB.
_BATCH = 32
_NUM_LAYERS, _CELLS = 3, 256

_NAMES = (
    *(
        f"lstm.{kind}_{way}_l{layer}"
        for layer in range(_NUM_LAYERS)
        for kind in ("weight", "bias")
        for way in ("ih", "hh")
    ),
    "linear.weight",
    "linear.bias",
)


class Ge2e:
    """The encoder; vectors of one voice have a cosine of about 0.8 and more."""

    name = "ge2e"
    model = "resemblyzer-0.1.4"
    version = "1"

    def __init__(self, weights: str = "") -> None:
        """Load the weights.

        Args:
            weights: Path of another ``.npz`` with the same tensors; empty: callcore's own.

        Raises:
            ModelError: If they cannot be loaded.
        """
        path = Path(weights) if weights else _own_weights()
        try:
            with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
                tensors = {name: file[name].astype(np.float32) for name in _NAMES}
        except Exception as error:  # a damaged zip raises half a dozen kinds
            raise ModelError(path.name, f"the weights cannot be read: {error}") from error
        # Transposed once: rows of a batch times columns of weights.
        self._layers = [
            (
                np.ascontiguousarray(tensors[f"lstm.weight_ih_l{layer}"].T),
                np.ascontiguousarray(tensors[f"lstm.weight_hh_l{layer}"].T),
                tensors[f"lstm.bias_ih_l{layer}"] + tensors[f"lstm.bias_hh_l{layer}"],
            )
            for layer in range(_NUM_LAYERS)
        ]
        self._weight = np.ascontiguousarray(tensors["linear.weight"].T)
        self._bias = tensors["linear.bias"]
        self.parameters: dict[str, Any] = {"part_frames": _PART, "step_frames": _PART_STEP}

    def embed(self, windows: list[Floats]) -> Floats:
        """Return an L2-normalised vector for each window, shape (len(windows), 256).

        Args:
            windows: Arrays of shape (n,), float32 in [-1, 1], 16 kHz. Those of more than 1.6 s
                are read in parts whose vectors are averaged; short ones tell less.

        Raises:
            EngineError: If a window is empty.
        """
        if not windows:
            return np.empty((0, _CELLS), np.float32)
        parts: list[Floats] = []
        of_window: list[int] = []
        for number, window in enumerate(windows):
            if not len(window):
                raise EngineError(self.name, "a window holds no samples")
            found = _parts(window)
            parts += found
            of_window += [number] * len(found)
        # Parts of one length side by side: the shorter ones wait for the longest of their batch.
        order = sorted(range(len(parts)), key=lambda number: len(parts[number]))
        vectors = np.empty((len(parts), _CELLS), np.float32)
        for at in range(0, len(order), _BATCH):
            batch = order[at : at + _BATCH]
            vectors[batch] = self._vectors([parts[number] for number in batch])
        sums = np.zeros((len(windows), _CELLS), np.float32)
        np.add.at(sums, of_window, vectors)
        return _normalised(sums)

    def _vectors(self, mels: list[Floats]) -> Floats:
        """Return one vector for each part, shape (len(mels), 256).

        Args:
            mels: Arrays of shape (frames, 40).
        """
        num_frames = [len(mel) for mel in mels]
        steps = np.zeros((max(num_frames), len(mels), _NUM_MELS), np.float32)
        for number, mel in enumerate(mels):
            steps[: len(mel), number] = mel
        for from_input, from_before, bias in self._layers:
            steps = _lstm(steps, from_input, from_before, bias)
        last = steps[np.array(num_frames) - 1, np.arange(len(mels))]
        return _normalised(np.maximum(last @ self._weight + self._bias, 0.0))


def _own_weights() -> Path:
    return Path(str(resources.files("callcore") / "data" / "speakers" / "ge2e_fp16.npz"))


def _lstm(steps: Floats, from_input: Floats, from_before: Floats, bias: Floats) -> Floats:
    """Return the states of one layer, shape (frames, n, 256).

    Args:
        steps: Shape (frames, n, inputs).
        from_input: Shape (inputs, 1024), gates in the order input, forget, cell, output.
        from_before: Shape (256, 1024).
        bias: Shape (1024,).
    """
    num_frames, num_parts, num_inputs = steps.shape
    driven = (steps.reshape(-1, num_inputs) @ from_input + bias).reshape(num_frames, num_parts, -1)
    hidden = np.zeros((num_parts, _CELLS), np.float32)
    cell = np.zeros((num_parts, _CELLS), np.float32)
    states = np.empty((num_frames, num_parts, _CELLS), np.float32)
    for at in range(num_frames):
        gates = driven[at]
        gates += hidden @ from_before
        admit = _sigmoid(gates[:, :_CELLS])
        keep = _sigmoid(gates[:, _CELLS : 2 * _CELLS])
        fresh = np.tanh(gates[:, 2 * _CELLS : 3 * _CELLS])
        cell = keep * cell + admit * fresh
        hidden = _sigmoid(gates[:, 3 * _CELLS :]) * np.tanh(cell)
        states[at] = hidden
    return states


def _sigmoid(x: Floats) -> Floats:
    # By tanh: exp overflows for large negative values.
    y: Floats = np.tanh(x * np.float32(0.5))
    y += np.float32(1)
    y *= np.float32(0.5)
    return y


def _normalised(vectors: Floats) -> Floats:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    # All ReLUs shut: no direction, and no division by nothing either.
    result: Floats = vectors / np.maximum(lengths, np.float32(1e-6))
    return result


def _parts(window: Floats) -> list[Floats]:
    """Return the mel spectrograms of a window, shape (at most 160, 40) each."""
    mels = _mels(_raised(window.astype(np.float32, copy=False)))
    parts = [mels[:_PART]]
    for begin in range(_PART_STEP, len(mels) - round(_LEAST_COVERAGE * _PART) + 1, _PART_STEP):
        parts.append(mels[begin : begin + _PART])
    return parts


def _raised(window: Floats) -> Floats:
    """Return a window that is at least as loud as speech that the network knows."""
    level = float(np.sqrt(np.mean(np.square(window))))
    if not 0.0 < level < _LOUDNESS:
        return window
    return window * np.float32(_LOUDNESS / level)


def _mels(samples: Floats) -> Floats:
    """Return the power mel spectrogram, without logarithm, shape (frames, 40)."""
    padded = np.pad(samples, _FRAME // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, _FRAME)[::_HOP]
    num_frames = max(1, len(samples) // _HOP)
    spectrum = np.fft.rfft(frames[:num_frames] * _hann(), axis=1)
    power = spectrum.real**2 + spectrum.imag**2
    result: Floats = power.astype(np.float32) @ _filters()
    return result


@cache
def _hann() -> Floats:
    window: Floats = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_FRAME) / _FRAME)).astype(np.float32)
    return window


@cache
def _filters() -> Floats:
    """Return triangular mel filters, shape (201, 40).

    Slaney's scale (Auditory Toolbox: linear to 1 kHz, logarithmic above) and norm (each triangle
    has the same area), as librosa makes them and the network was trained on.
    """
    per_step, knee_hz = 200.0 / 3, 1000.0
    knee, log_step = knee_hz / per_step, np.log(6.4) / 27.0
    top = knee + np.log(_RATE / 2 / knee_hz) / log_step
    mels = np.linspace(0.0, top, _NUM_MELS + 2)
    edges = np.where(mels < knee, mels * per_step, knee_hz * np.exp(log_step * (mels - knee)))
    bins = np.arange(_FRAME // 2 + 1) * (_RATE / _FRAME)
    rising = (bins[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins[:, None]) / (edges[2:] - edges[1:-1])
    triangles = np.maximum(0.0, np.minimum(rising, falling)) * (2.0 / (edges[2:] - edges[:-2]))
    filters: Floats = triangles.astype(np.float32)
    return filters
