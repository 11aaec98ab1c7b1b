"""Render the sample calls: each ``<id>.toml`` to ``<id>.wav`` and ``<id>.json``.

Needs Debian's speech synthesiser (``apt-get install flite``) and numpy. The same scripts give the
same bytes. Each turn is spoken by its leg's voice, limited to the telephone band, laid on its own
channel over a faint line noise, and companded as G.711 mu-law does: caller left, agent right.

    python samples/render.py [ID ...]
"""

import json
import subprocess
import sys
import tempfile
import tomllib
import wave
import zlib
from pathlib import Path
from typing import Any

import numpy as np

SAMPLES = Path(__file__).parent
LEGS = ("caller", "agent")
#: Hz, what an ordinary telephone call has.
RATE = 8000
#: Hz, what a telephone lets through.
BAND = (250.0, 3600.0)
#: Loudness of speech and of the line, in dB below full scale.
SPEECH_DBFS, NOISE_DBFS = -23.0, -66.0
#: Seconds of line noise after the last word.
TAIL_S = 1.5


def speak(text: str, voice: str) -> np.ndarray:
    """Return ``text`` spoken by a flite voice, float64 at ``RATE``, without silence around it."""
    with tempfile.TemporaryDirectory() as folder:
        spoken = Path(folder) / "spoken.wav"
        subprocess.run(["flite", "-voice", voice, "-t", text, "-o", str(spoken)], check=True)
        with wave.open(str(spoken)) as reader:
            rate = reader.getframerate()
            samples = np.frombuffer(reader.readframes(reader.getnframes()), "<i2") / 32768
    loud = np.flatnonzero(np.abs(samples) > 0.01)
    return telephone(samples[loud[0] : loud[-1] + 1], rate)


def telephone(samples: np.ndarray, rate: int) -> np.ndarray:
    """Return samples of ``rate`` Hz at ``RATE``, in the telephone band, at ``SPEECH_DBFS``."""
    num = round(len(samples) * RATE / rate)
    spectrum = np.fft.rfft(samples, len(samples))
    kept = np.zeros(num // 2 + 1, complex)
    shared = min(len(kept), len(spectrum))
    kept[:shared] = spectrum[:shared]
    hz = np.arange(len(kept)) * RATE / num
    # Straight slopes of 100 Hz: a hard edge would ring.
    kept *= np.clip((hz - BAND[0] + 100) / 100, 0, 1) * np.clip((BAND[1] + 100 - hz) / 100, 0, 1)
    heard = np.fft.irfft(kept, num)
    blocks = heard[: len(heard) // 160 * 160].reshape(-1, 160)
    power = np.mean(blocks**2, axis=1)
    speech = np.mean(power[power > power.max() * 10**-3])
    return np.asarray(heard * 10 ** (SPEECH_DBFS / 20) / np.sqrt(speech))


def mu_law(samples: np.ndarray) -> np.ndarray:
    """Return samples after 8-bit mu-law there and back, as a call over G.711 has them."""
    squeezed = np.sign(samples) * np.log1p(255 * np.abs(samples)) / np.log(256)
    coded = np.round(squeezed * 127) / 127
    return np.asarray(np.sign(coded) * (np.exp(np.abs(coded) * np.log(256)) - 1) / 255)


def render(script: dict[str, Any]) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Return the call, shape (samples, 2), int16, and its turns with their times in seconds."""
    placed: list[tuple[int, int, np.ndarray]] = []
    turns = []
    at = 0
    for turn in script["turns"]:
        at += round(turn["pause_s"] * RATE)
        samples = speak(turn["text"], script["voices"][turn["leg"]])
        placed.append((at, LEGS.index(turn["leg"]), samples))
        end = at + len(samples)
        turns.append(
            {
                "leg": turn["leg"],
                "start": round(at / RATE, 3),
                "end": round(end / RATE, 3),
                "text": turn["text"],
            }
        )
        at = end
    # Seeded by the call's id, so that a new sample leaves the others as they are.
    noise = np.random.default_rng(zlib.crc32(script["id"].encode()))
    call = noise.normal(0, 10 ** (NOISE_DBFS / 20), (at + round(TAIL_S * RATE), 2))
    for start, channel, samples in placed:
        call[start : start + len(samples), channel] += samples
    return np.round(mu_law(np.clip(call, -1, 1)) * 32767).astype("<i2"), turns


def write(script: dict[str, Any]) -> None:
    """Write the call's audio and its ground truth beside the script."""
    call, turns = render(script)
    target = SAMPLES / script["id"]
    with wave.open(str(target.with_suffix(".wav")), "wb") as writer:
        writer.setnchannels(2)
        writer.setsampwidth(2)
        writer.setframerate(RATE)
        writer.writeframes(call.tobytes())
    truth = {
        "id": script["id"],
        "title": script["title"],
        "language": script["language"],
        "channels": list(LEGS),
        "duration": round(len(call) / RATE, 3),
        "turns": turns,
    }
    target.with_suffix(".json").write_text(json.dumps(truth, indent=2) + "\n", "utf-8")
    print(f"{target.name}.wav: {truth['duration']:.1f} s, {len(turns)} turns")


def main(names: list[str]) -> None:
    """Render the named scripts, or all."""
    for path in sorted(SAMPLES.glob("*.toml")):
        script = tomllib.loads(path.read_text("utf-8"))
        if not names or script["id"] in names:
            write(script)


if __name__ == "__main__":
    main(sys.argv[1:])
