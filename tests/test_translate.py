from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from callcore import argos_packages, calls
from callcore.calls import Call, CallFacts, CallState, Media, Recording, RecordingState
from callcore.engines import TranscribedSegment
from callcore.engines.argos import Argos
from callcore.errors import EngineError, InvalidRecording
from callcore.steps import StepContext
from callcore.steps.translate import STEP
from tests.support.engines import LocalEngines
from tests.support.recognition import model
from tests.support.recordings import make_settings, write_wav

DATA = Path(__file__).parent / "data"
PACKAGE = DATA / "argos" / "translate-es_en-prompts.argosmodel"


@pytest.fixture(scope="module")
def argos(tmp_path_factory: pytest.TempPathFactory) -> Argos:
    folder = tmp_path_factory.mktemp("models")
    argos_packages.pull(folder, [str(PACKAGE)])
    return Argos(str(argos_packages.folder_of(folder)), threads=1)


class NoPackages(Argos):
    """A site that has installed none."""

    def __init__(self) -> None:
        super().__init__("/nowhere")


class Heard:
    """Whisper, as far as this step sees it: it hears one phrase a second."""

    name, model, version = "faster-whisper", "base", "1"
    parameters: dict[str, Any] = {"beam_size": 5}  # noqa: RUF012

    def __init__(self) -> None:
        self.languages: list[str | None] = []

    def translate(self, samples: Any, language: str | None) -> Iterator[TranscribedSegment]:
        self.languages.append(language)
        for second in range(len(samples) // 16_000):
            yield TranscribedSegment(
                second + 0.1, second + 0.9, f"second {second}", (), "en", -0.1, 0.0
            )


def segment(number: int, text: str, language: str | None = "es", **other: Any) -> dict[str, Any]:
    return {
        "segment": number,
        "leg": "caller",
        "start": float(number),
        "end": number + 0.9,
        "text": text,
        "language": language,
        "words": [],
        "source": "recording",
        "latency": None,
        "revised": False,
        "speaker": None,
        **other,
    }


def translated(
    tmp_path: Path,
    segments: list[dict[str, Any]],
    engines: dict[str, Any],
    *,
    language: str | None = "es",
    to: str = "en",
    media: tuple[Media, ...] = (),
    offset_s: float | None = None,
    progress: list[float] | None = None,
) -> dict[str, Any]:
    recording = Recording(
        audio_id="a",
        call_id="c",
        state=RecordingState.STORED,
        source="upload",
        reason=None,
        facts=CallFacts(),
        created_at=calls.now(),
        media=media,
        offset_s=offset_s,
    )
    call = Call("c", "c-1", CallState.ENDED, calls.now(), None, None, CallFacts())
    context = StepContext(
        recording=recording,
        call=call,
        language=language,
        settings=make_settings(tmp_path, translate_to=to),
        results={"transcribe": {"segments": segments, "language": language}},
        engines=LocalEngines(engines),
        take_segment_block=lambda: 0,
        live_segments=list,
        corrections=list,
        progress=(progress if progress is not None else []).append,
    )
    return STEP.run(context)


def test_every_segment_keeps_its_number_and_times(tmp_path: Path, argos: Argos) -> None:
    segments = [
        segment(7, "Su mensaje ha sido guardado."),
        segment(9, "Usted tiene una llamada entrante", leg="agent"),
        segment(10, " "),
    ]
    progress: list[float] = []
    result = translated(tmp_path, segments, {"translator": argos}, progress=progress)
    assert result["segments"] == [
        {
            "segment": 7,
            "leg": "caller",
            "start": 7.0,
            "end": 7.9,
            "text": "Your message has been saved.",
        },
        {
            "segment": 9,
            "leg": "agent",
            "start": 9.0,
            "end": 9.9,
            "text": "you have an incoming call",
        },
        {"segment": 10, "leg": "caller", "start": 10.0, "end": 10.9, "text": " "},
    ]
    assert (result["method"], result["path"], result["target"]) == ("argos", ["es", "en"], "en")
    assert (result["engine"], result["model"]) == ("argos", "translate-es_en 0.1")
    assert progress[-1] == 1.0


def test_what_is_said_in_the_target_language_stays_as_it_is(tmp_path: Path, argos: Argos) -> None:
    segments = [
        segment(1, "Hello, how are you?", "en", leg="agent"),
        segment(2, "Su mensaje ha sido guardado."),
        segment(3, "Nobody knows", None, leg="agent"),
    ]
    result = translated(tmp_path, segments, {"translator": argos}, language="en")
    assert [each["text"] for each in result["segments"]] == [
        "Hello, how are you?",
        "Your message has been saved.",
        "Nobody knows",
    ]
    # A segment whose language is not known has that of the transcript.
    result = translated(tmp_path, segments[2:], {"translator": argos}, language="es")
    assert result["method"] == "argos"


@pytest.mark.parametrize(
    ("segments", "language"),
    [
        ([], "es"),
        ([], None),
        ([segment(1, "Hello", "en")], "en"),
        ([segment(1, " ", None)], None),
        ([segment(1, "  ")], "es"),
    ],
)
def test_where_there_is_nothing_to_translate_no_engine_is_asked(
    tmp_path: Path, segments: list[dict[str, Any]], language: str | None
) -> None:
    result = translated(tmp_path, segments, {}, language=language)
    assert (result["method"], result["segments"]) == (None, [])
    assert (result["engine"], result["model"], result["parameters"]) == (None, None, None)


def test_without_a_pair_whisper_translates_from_the_audio(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", seconds=3.0, num_channels=2)
    media = (Media("stereo", str(path), offset_s=2.0, duration_s=3.0),)
    segments = [
        segment(1, "hola", start=12.0, end=15.0),
        segment(2, "Hello", "en", leg="agent", start=12.5, end=13.0),
    ]
    whisper = Heard()
    progress: list[float] = []
    result = translated(
        tmp_path,
        segments,
        {"translator": NoPackages(), "transcriber": whisper},
        media=media,
        offset_s=10.0,
        progress=progress,
    )
    assert (result["method"], result["path"]) == ("whisper", ["es", "en"])
    assert whisper.languages == ["es"]  # the agent's channel is in English: it is not decoded
    assert [(s["segment"], s["leg"], s["start"], s["text"]) for s in result["segments"]] == [
        (None, "caller", 12.1, "second 0"),
        (2, "agent", 12.5, "Hello"),
        (None, "caller", 13.1, "second 1"),
        (None, "caller", 14.1, "second 2"),
    ]
    assert result["parameters"]["task"] == "translate"
    assert progress[-1] == 1.0


def test_what_whisper_repeats_of_the_target_language_is_not_there_twice(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", seconds=3.0)
    segments = [
        segment(1, "Hello there", "en", leg="mixed", start=0.0, end=1.0),
        segment(2, "hola", leg="mixed", start=1.0, end=3.0),
    ]
    result = translated(
        tmp_path,
        segments,
        {"translator": NoPackages(), "transcriber": Heard()},
        media=(Media("mixed", str(path), duration_s=3.0),),
    )
    assert [each["text"] for each in result["segments"]] == ["Hello there", "second 1", "second 2"]


def test_words_of_an_unknown_language_are_not_taken_for_the_target(tmp_path: Path) -> None:
    with pytest.raises(InvalidRecording, match=r"language .* not known: set CALLCORE_LANGUAGE"):
        translated(tmp_path, [segment(1, "Habari yako", None)], {}, language=None)


def test_what_whisper_makes_up_where_nobody_speaks_is_left_out(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", seconds=3.0)
    result = translated(
        tmp_path,
        [segment(1, "hola", leg="mixed", start=0.0, end=0.9)],
        {"translator": NoPackages(), "transcriber": Heard()},
        media=(Media("mixed", str(path), duration_s=3.0),),
    )
    assert [each["text"] for each in result["segments"]] == ["second 0"]


def test_a_leg_without_a_pair_does_not_take_the_others_from_argos(
    tmp_path: Path, argos: Argos
) -> None:
    path = write_wav(tmp_path / "a.wav", seconds=3.0, num_channels=2)
    result = translated(
        tmp_path,
        [
            segment(1, "Su mensaje ha sido guardado.", start=0.0, end=2.9),
            segment(2, "bonjour", "fr", leg="agent", start=0.0, end=0.9),
        ],
        {"translator": argos, "transcriber": Heard()},
        media=(Media("stereo", str(path), duration_s=3.0),),
    )
    assert (result["method"], result["path"], result["engine"]) == ("argos", ["es", "en"], "argos")
    assert [(each["segment"], each["text"]) for each in result["segments"]] == [
        (1, "Your message has been saved."),
        (None, "second 0"),
    ]
    assert result["parameters"]["also"] == {
        "languages": ["fr"],
        "engine": "faster-whisper",
        "model": "base",
    }


def test_without_any_way_the_step_fails_for_good_and_says_what_to_install(
    tmp_path: Path, argos: Argos
) -> None:
    with pytest.raises(InvalidRecording, match=r"callcore models pull translate-en_fr`"):
        translated(tmp_path, [segment(1, "hola")], {"translator": argos}, to="fr")
    with pytest.raises(InvalidRecording, match=r"pull translate-es_en translate-en_sw`"):
        translated(tmp_path, [segment(1, "hola")], {"translator": NoPackages()}, to="sw")


def test_a_failing_engine_fails_the_step_so_that_it_is_tried_again(tmp_path: Path) -> None:
    class Broken(NoPackages):
        def pairs(self) -> list[tuple[str, str]]:
            return [("es", "en")]

    with pytest.raises(EngineError):
        translated(tmp_path, [segment(1, "hola")], {"translator": Broken()})


@pytest.mark.model
def test_real_whisper_translates_a_spanish_prompt(tmp_path: Path) -> None:
    from callcore.engines.batch_whisper import BatchWhisper

    result = translated(
        tmp_path,
        [segment(1, "La conferencia está desbloqueada.", leg="mixed", start=0.0, end=4.2)],
        {"translator": NoPackages(), "transcriber": BatchWhisper(model("base"), threads=1)},
        media=(
            Media("mixed", str(DATA / "prompts" / "es-confbridge-unlocked.wav"), duration_s=4.27),
        ),
    )
    assert result["method"] == "whisper"
    text = " ".join(each["text"] for each in result["segments"]).lower()
    assert "conference" in text
    assert "unlocked" in text
