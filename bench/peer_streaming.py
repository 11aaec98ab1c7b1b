"""The best streaming peer on the tracks of ``callcore bench live``, on one core in virtual time.

    OMP_NUM_THREADS=1 taskset -c 0 python bench/peer_streaming.py --repo REPO [--legs 1,3,6]
        [--ways vac,plain] [--seconds 60] [--model tiny.en] [--data DIR] [--json]

REPO holds the files of ufal/whisper_streaming (MIT); its processors run unchanged: LocalAgreement,
faster-whisper in int8 with beam 5, a decode for each new second, buffers cut after 15 s. ``vac``
is its voice activity controller, fed as in its simulation (0.04 s); ``vac-server``, as in its
server (1 s); ``plain`` is without. Torch is a shim, Silero our onnx file; it hears 16 kHz.

The clock is the audio's, and a step moves it on by the CPU seconds that it took. The processors
share one model and take turns, first ready first served; who is late gets all the audio that came
meanwhile. When a track ends, ``finish()`` gives out the rest, which its server leaves out.
Committed is a word that was given out: it never changes. Tracks, words, matching and WER are those
of ``callcore bench live``, in English. From a load of 0.95 on the core is saturated: words come
ever later, and as each step then takes in more audio, legs per core read too high.

Not measured: sockets, events, resampling, memory, many threads or processes (its server takes one
client at a time). What else runs on the machine makes CPU seconds and latencies upper bounds:
``window s`` is what one decode of a second of silence took before, to tell how busy it was.
"""

import argparse
import hashlib
import importlib
import io
import itertools
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from faster_whisper import WhisperModel
from onnxruntime import InferenceSession, SessionOptions

from callcore import audio, model_store, settings
from callcore.bench_tracks import Track, WholeFiles, tracks
from callcore.engines import LIVE_RATE
from callcore.word_errors import Scorer
from callcore.word_latency import TextEvent, seen_words, utterances

RATE = 16_000
SPREAD_S = 8.0  # legs begin as in callcore.live_bench
VAC = ("VACOnlineASRProcessor", (1.0,))  # it decodes when a second has come
#: A processor, its first arguments, and the seconds of audio that a step waits for.
WAYS = {"vac": (*VAC, 0.04), "vac-server": (*VAC, 1.0), "plain": ("OnlineASRProcessor", (), 1.0)}
#: Commits of the peer by the git blob that their ``whisper_online.py`` is.
COMMITS = {"031d8c93da73c1aa5d1f1a97310238de871fdff6": "1f25a1a48bd9807159989e6596178c69e797ac75"}


class Silero:
    """The network that ``torch.hub`` would give: 512 samples at 16 kHz to a probability."""

    session: InferenceSession

    def reset_states(self) -> None:
        self._state, self._context = np.zeros((2, 1, 128), "f4"), np.zeros((1, 64), "f4")

    def __call__(self, window: Any, rate: int) -> Any:
        sound = np.concatenate([self._context, np.asarray(window)[None]], axis=1)
        inputs = {"input": sound, "state": self._state, "sr": np.array(rate, np.int64)}
        probability, self._state = self.session.run(None, inputs)
        self._context = sound[:, -64:]
        return probability


@dataclass
class Leg:
    track: Track
    delay_s: float
    online: Any
    piece: int
    sound: np.ndarray
    taken: int = 0
    said: list[tuple[float, str]] = field(default_factory=list)  # seconds from its start, text

    def ready_at(self) -> float:
        return self.delay_s + min(self.taken + self.piece, len(self.sound)) / RATE

    def step(self, now: float) -> float:
        """Feed what has come, and return the CPU seconds of what the processor does with it."""
        end = max(int((now - self.delay_s) * RATE), self.taken + self.piece)
        heard = self.sound[self.taken : end]
        self.taken += len(heard)
        before = time.process_time()
        self.online.insert_audio_chunk(heard)
        texts = [self.online.process_iter()[2]]
        # After the end of an utterance the controller's finish() would say the same again.
        if self.taken == len(self.sound) and getattr(self.online, "status", "voice") == "voice":
            texts.append(self.online.finish()[2])
        took = time.process_time() - before
        self.said += [(now + took - self.delay_s, text) for text in texts if text]
        return took

    def words(self) -> list[tuple[float, str]]:
        """Return the words with their times; text without a space before it goes on a word."""
        words: list[tuple[float, str]] = []
        for at, text in self.said:
            parts = text.split()
            if words and parts and not text[0].isspace():
                words[-1] = (at, words[-1][1] + parts.pop(0))
            words += [(at, part) for part in parts]
        return words


def peer_of(repo: Path, silero: Path) -> Any:
    options = SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    Silero.session = InferenceSession(str(silero / "silero_vad.onnx"), options)
    torch: Any = ModuleType("torch")
    torch.no_grad = lambda: lambda function: function
    tensor = type("Tensor", (np.ndarray,), {"dim": lambda self: self.ndim})
    torch.is_tensor = lambda value: isinstance(value, tensor)
    torch.Tensor = lambda value: np.asarray(value, np.float32).view(tensor)
    torch.hub = ModuleType("torch.hub")
    torch.hub.load = lambda **_: (Silero(), None)
    sys.modules.update(torch=torch, librosa=ModuleType(""), soundfile=ModuleType(""))
    sys.path.insert(0, str(repo))
    return importlib.import_module("whisper_online")


def measure(peer: Any, asr: Any, way: str, played: Sequence[Track]) -> dict[str, Any]:
    name, arguments, piece_s = WAYS[way]
    legs = []
    for number, track in enumerate(played):
        online = getattr(peer, name)(*arguments, asr, logfile=io.StringIO())
        resampler = audio.StreamingResampler(LIVE_RATE, RATE)
        sound = np.concatenate([resampler.push(track.samples), resampler.flush()])
        delay_s = SPREAD_S * number / len(played)
        legs.append(Leg(track, delay_s, online, int(piece_s * RATE), audio.to_float(sound)))
    began, ended = legs[-1].delay_s, min(leg.delay_s + leg.track.seconds for leg in legs)
    now = cpu_s = busy_s = waited_s = 0.0
    while waiting := [leg for leg in legs if leg.taken < len(leg.sound)]:
        leg = min(waiting, key=Leg.ready_at)
        waited_s = max(waited_s, now - leg.ready_at())
        now = max(now, leg.ready_at())
        took = leg.step(now)
        busy_s += max(0.0, min(now + took, ended) - max(now, began))
        now, cpu_s = now + took, cpu_s + took
    late, texts = [], []
    for leg in legs:
        words = leg.words()
        events = [TextEvent(at, i, at, at, word, None) for i, (at, word) in enumerate(words)]
        late += [each.final for each in seen_words(leg.track.words, utterances(events))]
        texts.append((leg.track.text, " ".join(word for _, word in words)))
    late.sort()
    p50_s, p95_s = (late[math.ceil(share * len(late)) - 1] for share in (0.5, 0.95))
    said = sum(len(track.words) for track in played)
    audio_s, load = sum(track.seconds for track in played), busy_s / (ended - began)
    figures = {"CPU s per s": cpu_s / audio_s, "legs per core": audio_s / cpu_s, "load": load}
    figures |= {"committed p50 s": p50_s, "committed p95 s": p95_s, "longest wait s": waited_s}
    figures |= {"WER": Scorer(["en"]).error_rate(texts), "words timed": len(late), "said": said}
    rounded = {name: round(value, 3) for name, value in figures.items()}
    return {"way": way, "legs": len(legs), **rounded, "saturated": load >= 0.95}


def window_s(asr: Any) -> float:
    asr.transcribe(np.zeros(RATE, np.float32))
    before = time.process_time()
    asr.transcribe(np.zeros(RATE, np.float32))
    return round(time.process_time() - before, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repo", type=Path, required=True)
    texts = {"legs": "1,3,6", "ways": "vac,plain", "seconds": "60", "model": "tiny.en"}
    for name, default in texts.items():
        parser.add_argument(f"--{name}", default=default)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    body = (given.repo / "whisper_online.py").read_bytes()
    blob = hashlib.sha1(b"blob %d\0" % len(body) + body, usedforsecurity=False).hexdigest()
    site = settings.load(os.environ)
    whole_files = WholeFiles(site.models_dir, site.state_dir / "bench")
    legs = [int(number) for number in given.legs.split(",")]
    played = [tracks(given.data, number, float(given.seconds), whole_files) for number in legs]
    peer = peer_of(given.repo, model_store.find(site.models_dir, "silero-vad"))
    model = model_store.find(site.models_dir, given.model)
    whisper = WhisperModel(str(model), device="cpu", compute_type="int8", cpu_threads=1)
    peer.FasterWhisperASR.load_model = lambda *_: whisper  # their own insists on CUDA
    asr = peer.FasterWhisperASR("en")
    facts = {"peer": "ufal/whisper_streaming", "commit": COMMITS.get(blob, f"? (blob {blob})")}
    for way, each in itertools.product(given.ways.split(","), played):
        row = facts | {"window s": window_s(asr), **measure(peer, asr, way, each)}
        as_text = ", ".join(f"{name} {value}" for name, value in row.items())
        print(json.dumps(row) if given.json else as_text, flush=True)


if __name__ == "__main__":
    main()
