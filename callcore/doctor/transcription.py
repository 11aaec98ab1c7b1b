"""Whether Whisper computes where the settings say, and the transcription endpoint transcribes."""

import time
import wave

import ctranslate2
import numpy as np

from callcore import resources
from callcore.doctor.finding import Finding
from callcore.engines.transcription_client import Piece, TranscriptionClient, wav_of
from callcore.errors import EngineError
from callcore.settings import Settings

#: The speech that the endpoint is asked about: seconds of a shipped sample.
_SAMPLE, _SAMPLE_S = "support-billing.wav", 6.0
#: Seconds that it may take: some servers load their model with the first request.
_LIMIT_S = 60.0
#: Seconds from which live words come too late to help.
_SLOW_S = 3.0


def check_device(settings: Settings) -> Finding | None:
    """Judge whether the GPU can be used that the settings ask for; None if they ask for none."""
    if settings.device == "cpu":
        return None
    num_devices = ctranslate2.get_cuda_device_count()
    if not num_devices:
        return Finding(
            "device",
            "failed",
            "CALLCORE_DEVICE is cuda, but CTranslate2 sees no GPU",
            "install NVIDIA's driver and its CUDA 12 libraries, or set CALLCORE_DEVICE=cpu",
        )
    return Finding("device", "ok", f"CTranslate2 sees {num_devices} GPU(s)")


def check_endpoint(settings: Settings, limit_s: float = _LIMIT_S) -> Finding | None:
    """Have the endpoint transcribe a shipped sample; None if the settings name no endpoint."""
    if not settings.transcription_url:
        return None
    client = TranscriptionClient(
        settings.transcription_url, settings.transcription_model, settings.transcription_key
    )
    started = time.monotonic()
    try:
        answer = client.ask(_piece(), started + limit_s)
    except EngineError as error:
        remedy = (
            "check CALLCORE_TRANSCRIPTION_URL, _MODEL and _KEY, and that the server runs.\n"
            "Until then new live calls are only recorded, and recordings wait"
        )
        return Finding("transcription", "failed", error.message, remedy)
    finally:
        client.close()
    took_s = time.monotonic() - started
    detail = f"the endpoint took {took_s:.1f} s for {_SAMPLE_S:g} s of speech"
    if not answer.words:
        return Finding(
            "transcription",
            "failed",
            f"{detail} and heard no word of it",
            "check that CALLCORE_TRANSCRIPTION_MODEL is a model for speech recognition in English",
        )
    if settings.live_is_remote and took_s > _SLOW_S:
        return Finding(
            "transcription",
            "warning",
            f"{detail}: live words will be late",
            "run this again, the first request may load the model; else give it a GPU, a smaller\n"
            "model, or set CALLCORE_TRANSCRIPTION_FOR=recordings",
        )
    if not answer.times_words:
        return Finding(
            "transcription",
            "warning",
            f"{detail}; it tells no times of words, so they are spread over their sentences",
            "use a server and model that know timestamp_granularities[]=word, e.g. speaches",
        )
    return Finding("transcription", "ok", f"{detail}, and tells the times of words")


def _piece() -> Piece:
    with wave.open(str(resources.path("samples") / _SAMPLE)) as sample:
        rate, num_channels = sample.getframerate(), sample.getnchannels()
        data = sample.readframes(round(_SAMPLE_S * rate))
    samples = np.frombuffer(data, "<i2").reshape(-1, num_channels)
    speaker = np.abs(samples.astype(np.int32)).sum(axis=0).argmax()
    return Piece(wav_of(samples[:, speaker], rate), len(samples) / rate, "en")
