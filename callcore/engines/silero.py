"""Speech detection by Silero VAD on onnxruntime, natively at 8 kHz and batched across streams.

The network takes 256 samples at 8 kHz, the 32 samples before them, and a recurrent state of shape
(2, batch, 128) (snakers4/silero-vad, ``OnnxWrapper``). State and context of a stream travel as one
flat array, so this engine keeps nothing between calls.
"""

from pathlib import Path

import numpy as np
import onnxruntime

from callcore.engines import LIVE_RATE, Floats, Samples
from callcore.errors import ModelError

_CONTEXT = 32
_STATE = (2, 128)
_STATE_SIZE = _STATE[0] * _STATE[1]

#: Streams that go through the network together: beyond this the cost per stream no longer falls.
_MAX_BATCH = 64


class Silero:
    """Speech probabilities of 32 ms windows."""

    window = 256

    def __init__(self, model: str) -> None:
        """Load the network.

        Args:
            model: ``silero_vad.onnx``, or the folder that holds it.

        Raises:
            ModelError: If it cannot be loaded.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        # A spinning thread would take a core away from the decoder between two ticks.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        path = Path(model)
        file = path / "silero_vad.onnx" if path.is_dir() else path
        try:
            self._session = onnxruntime.InferenceSession(
                str(file), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's errors share no base class of their own
            raise ModelError(file.name, f"onnxruntime cannot load it: {error}") from error
        self._rate = np.array(LIVE_RATE, np.int64)

    def initial_state(self) -> Floats:
        """Return shape (288,): recurrent state of zeros, then 32 samples of silence."""
        return np.zeros(_STATE_SIZE + _CONTEXT, np.float32)

    def probabilities(
        self, samples: list[Samples], states: list[Floats]
    ) -> tuple[list[Floats], list[Floats]]:
        """Return a probability per window and the new state, for each stream.

        Raises:
            ValueError: If a stream's samples are not whole windows.
        """
        if any(len(each) % self.window for each in samples):
            raise ValueError(f"expected whole windows of {self.window} samples")
        results = [np.zeros(len(each) // self.window, np.float32) for each in samples]
        after = [np.array(state, np.float32) for state in states]
        for step in range(max((len(each) for each in results), default=0)):
            # Streams that have a window at this step; a stream further behind has more steps.
            present = [i for i, each in enumerate(results) if step < len(each)]
            for first in range(0, len(present), _MAX_BATCH):
                self._advance(step, present[first : first + _MAX_BATCH], samples, after, results)
        return results, after

    def _advance(
        self,
        step: int,
        streams: list[int],
        samples: list[Samples],
        states: list[Floats],
        results: list[Floats],
    ) -> None:
        """Run the streams' windows number ``step`` through the network in one batch."""
        begin = step * self.window
        windows = np.stack([samples[i][begin : begin + self.window] for i in streams])
        state = np.stack([states[i] for i in streams])
        audio = np.concatenate(
            [state[:, _STATE_SIZE:], windows.astype(np.float32) / 32768.0], axis=1
        )
        recurrent = state[:, :_STATE_SIZE].reshape(-1, *_STATE).transpose(1, 0, 2)
        inputs = {"input": audio, "state": np.ascontiguousarray(recurrent), "sr": self._rate}
        output, after = map(np.asarray, self._session.run(None, inputs))
        flat = after.transpose(1, 0, 2).reshape(len(streams), _STATE_SIZE)
        for row, i in enumerate(streams):
            results[i][step] = output[row, 0]
            states[i] = np.concatenate([flat[row], audio[row, -_CONTEXT:]])
