"""`callcore bench live`: what it counts, what it prints, and one small run on the real parts."""

import contextlib
import json
import math
import os
import subprocess
import sys
import wave
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from callcore import bench_daemon, live_bench, live_daemon, log, model_store, resources
from callcore.bench_site import _environment, children, cores_for, ended_children_s, usage
from callcore.bench_tracks import Track, WholeFiles, cut
from callcore.cli.bench import as_object, as_table
from callcore.inference import EngineSpec, InferenceProcess
from callcore.live_bench import Figures, Plan, Report, pace
from callcore.player import Streamed
from callcore.recognizer_config import RecognizerConfig
from callcore.settings import Settings, load
from callcore.word_errors import Scorer
from callcore.word_latency import (
    SpokenWord,
    TextEvent,
    Utterance,
    alike,
    lost_and_doubled,
    seen_words,
    utterances,
)
from tests.support.require import missing
from tests.support.site import MODELS


def partial(at: float, text: str, stable: int, segment: int = 0) -> TextEvent:
    return TextEvent(at, segment, 0.0, at, text, stable)


def final(
    at: float, text: str, segment: int = 0, start: float = 0.0, end: float = 1.0
) -> TextEvent:
    return TextEvent(at, segment, start, end, text, None, 0.5)


def said(*words: tuple[str, float]) -> list[SpokenWord]:
    return [SpokenWord(text, end - 0.2, end, timed=True) for text, end in words]


# What is counted.


def test_a_word_is_shown_with_its_first_partial_and_committed_when_it_is_stable_for_good():
    utterance = Utterance(
        0,
        [
            partial(1.0, "My gas", 0),
            partial(2.0, "My bus band", 1),
            partial(3.0, "My husband came", 2),
            partial(4.0, "My husband came home", 3),
        ],
        [final(5.0, "My husband came home.")],
    )
    assert utterance.shown_at() == [1.0, 3.0, 3.0, 4.0]
    assert utterance.committed_at() == [2.0, 3.0, 4.0, 5.0]


def test_a_word_that_was_stable_and_was_not_meanwhile_is_committed_when_it_came_back():
    utterance = Utterance(
        0,
        [partial(1.0, "one two", 2), partial(2.0, "one too", 2), partial(3.0, "one two", 2)],
        [final(4.0, "one two")],
    )
    assert utterance.committed_at() == [1.0, 3.0]


def test_words_that_a_final_changes_were_promised_in_vain():
    revised = Utterance(0, [partial(1.0, "call me now please", 4)], [final(2.0, "Call you now")])
    assert revised.promised() == (4, 2)
    assert Utterance(0, [partial(1.0, "call", 0)], [final(2.0, "call")]).promised() == (0, 0)
    inserted = Utterance(0, [partial(1.0, "call now", 2)], [final(2.0, "Please, call now.")])
    assert inserted.promised() == (2, 0)
    withdrawn = Utterance(0, [partial(1.0, "call me", 2), partial(2.0, "", 0)])
    assert withdrawn.promised() == (2, 2)


def test_words_that_were_withdrawn_altogether_are_revised_ones():
    gone = utterances([partial(1.0, "call me now please", 4), partial(2.0, "", 0)])
    kept = utterances([partial(1.0, "one two three four", 4), final(2.0, "One two three four.")])
    found = figures_of(gone + kept)
    assert found.committed_words == 8
    assert found.revised_share == 0.5


def figures_of(heard: list[Utterance]) -> Figures:
    track = Track("a", "en", np.zeros(8000, np.int16), ())
    streamed = Streamed(50, 0.0, 1.0, 0, complete=True)
    played = live_bench._Played(track, "c", streamed, heard, no_text=False, behind=False)
    cost = live_bench._Cost(0.5, 1.0, 1.0, 0.0, 0.0, 0.0)
    speech = live_bench._Speech({id(track): []}, {id(track): ""}, Scorer(["en"]))
    return live_bench._figures([played], cost, speech, 0, None)


def test_events_become_utterances_in_order_however_often_one_is_final():
    events = [partial(1.0, "a", 0), final(2.0, "b", 1), final(2.1, "a"), final(2.2, "b", 1)]
    assert [(u.segment, len(u.partials), len(u.finals)) for u in utterances(events)] == [
        (0, 1, 1),
        (1, 0, 2),
    ]


def test_latencies_are_those_of_words_that_were_said_and_heard():
    reference = said(("Good", 1.0), ("evening,", 1.5), ("madam", 2.0))
    heard = utterances([partial(1.5, "good", 0), final(2.5, "Good evening Adam")])
    seen = list(seen_words(reference, heard))
    assert [(word.shown, word.committed, word.final) for word in seen] == [
        (0.5, 1.5, 1.5),
        (1.0, 1.0, 1.0),
    ]
    assert [word.ends_final for word in seen] == [False, False]  # its last word was not said
    untimed = [replace(word, timed=False) for word in reference]
    assert list(seen_words(untimed, heard)) == []


def test_texts_without_a_common_word_have_no_pairs():
    assert alike([], ["a"]) == alike(["a"], []) == alike(["a"], ["b"]) == []
    assert alike(["a", "b"], ["b"]) == [(1, 0)]


def test_a_final_is_lost_where_speech_has_none_and_doubled_where_it_has_two():
    expected = [(0.0, 2.0), (3.0, 5.0)]
    whole = utterances([final(2.0, "x", 0, 0.0, 2.0), final(5.0, "y", 1, 3.1, 4.9)])
    assert lost_and_doubled(expected, whole) == (0, 0)
    assert lost_and_doubled(expected, whole[:1]) == (1, 0)
    over_both = utterances([final(5.0, "x y", 0, 0.0, 5.0)])
    assert lost_and_doubled(expected, over_both) == (1, 0)
    again = utterances([final(2.0, "x", 0, 0.0, 2.0), final(2.1, "x", 0, 0.0, 2.0)])
    assert lost_and_doubled(expected[:1], again) == (0, 1)


def test_a_track_is_cut_in_its_last_pause():
    words = said(("a", 1.0), ("b", 1.4), ("c", 4.0), ("d", 4.3))
    assert cut(words, 4.1) == pytest.approx((1.4 + 3.8) / 2)
    assert cut(words, 9.0) == 9.0  # all is said before
    assert cut(words, 1.2) == 1.2  # no pause before: the last word loses its end


def test_english_is_scored_as_published_figures_are():
    pytest.importorskip("whisper_normalizer")
    assert Scorer(["en"]).error_rate([("twenty four", "24"), ("", "what")]) == 0.0
    assert Scorer(["fr"]).error_rate([("Oui, merci", "oui merci"), ("non", "nom")]) == 1 / 3
    assert Scorer(["fr"]).error_rate([("", "x")]) is None


def test_what_a_process_used_is_read_from_the_system():
    own = usage(os.getpid())
    assert own.cpu_s > 0
    assert own.memory_mib > 1
    assert usage(2**22 + 1).cpu_s == 0.0
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert child.pid in children(os.getpid())
    child.communicate(b"\n")


def test_what_a_process_used_that_was_replaced_still_counts():
    before_s = ended_children_s(os.getpid())
    subprocess.run([sys.executable, "-c", "sum(range(20_000_000))"], check=True)
    assert ended_children_s(os.getpid()) >= before_s + 0.05
    assert ended_children_s(2**22 + 1) == 0.0


def test_an_endpoint_of_the_machines_own_site_is_not_measured(tmp_path: Path):
    own = {"CALLCORE_TRANSCRIPTION_URL": "http://192.0.2.1/v1", "CALLCORE_TRANSCRIPTION_MODEL": "m"}
    assert load(own).live_is_remote
    assert not load(_environment(own, tmp_path, {})).live_is_remote


def test_a_track_is_played_no_faster_than_the_daemon_can_follow():
    assert pace(40.0, 5.0) == 5.0
    assert pace(60.0, 8.0) == 6.0  # else it would be a minute ahead of the clock
    assert pace(3600.0, 8.0) == pytest.approx(1.014, abs=1e-3)
    assert pace(10.0, 0.3) == 1.0


class Heard(WholeFiles):
    """Hears always the same; says how often it was asked."""

    asked = 0

    def _transcribe(
        self, samples: np.ndarray, model: str, language: str
    ) -> Iterator[tuple[str, float, float]]:
        self.asked += 1
        yield "secret", 0.0, 0.5


def test_what_was_heard_is_kept_for_the_owner_alone_and_for_that_model_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    weights = tmp_path / "model.bin"
    weights.write_bytes(b"1")
    monkeypatch.setattr(model_store, "find", lambda models_dir, name: models_dir)
    whole = Heard(tmp_path, tmp_path / "kept")
    samples = np.zeros(800, np.int16)
    assert [each.text for each in whole.words(samples, "m", "en")] == ["secret"]
    whole.words(samples, "m", "en")
    assert whole.asked == 1
    [file] = (tmp_path / "kept").iterdir()
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    weights.write_bytes(b"22")
    whole.words(samples, "m", "en")
    assert whole.asked == 2


def test_the_daemon_has_cores_of_its_own_where_there_are_enough():
    all_cores = os.sched_getaffinity(0)
    daemon, rest = cores_for(1)
    assert len(daemon) == 1
    assert rest == (all_cores - daemon or all_cores)
    assert cores_for(10_000) == (all_cores, all_cores)


def test_the_daemon_with_fixed_partials_recognises_as_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked = []

    async def serve(settings: Settings, config: RecognizerConfig) -> None:
        never_started = InferenceProcess({"live": EngineSpec("a:B", {}, 1)})
        asked.append(live_daemon._recognizer(settings, config, never_started).config)

    monkeypatch.setattr(live_daemon, "serve", serve)
    monkeypatch.setattr(log, "configure", lambda *given: None)
    monkeypatch.setattr(log, "in_background", contextlib.nullcontext)
    monkeypatch.setenv("CALLCORE_STATE_DIR", str(tmp_path))
    monkeypatch.setenv("CALLCORE_LIVE_MAX_LOAD", "7")
    bench_daemon.main()
    assert asked[0].max_load == 7.0
    assert asked[0].overloaded_s == math.inf
    assert asked[0].partial_intervals_s == (bench_daemon.INTERVAL_S,)


# What is printed.


def figures(**known: float | None) -> Figures:
    return replace(Figures(**dict.fromkeys((each.name for each in fields(Figures)), 1.0)), **known)


def test_the_table_has_medians_and_80_columns():
    runs = tuple(figures(shown_p50_s=x, loop_lag_p99_ms=None) for x in (0.5, 0.4, 9.0))
    plan = Plan(legs=1000, seconds=3600.0, data=Path("/d/" + "x" * 90), runs=3)
    report = Report(plan, "tiny.en", "en", "Whisper's EnglishTextNormalizer", True, runs)
    table = as_table(report)
    assert max(map(len, table.splitlines())) <= 80
    assert "0.50 / 1.00 s" in table
    assert "not told" in table
    assert "too busy" in table  # every frame was late
    assert "late before the runs" in table
    assert "0.13 s early" in table
    assert json.loads(json.dumps(as_object(report)))["median"]["shown_p50_s"] == 0.5


def test_the_table_says_when_a_run_says_less_than_it_seems():
    plan = Plan(partials="fixed")
    calm = figures(late_frames_share=0.0, partial_interval_s=0.9)
    busy = figures(late_frames_share=0.0, partial_interval_s=7.0)
    tables = [as_table(Report(plan, "m", "en", "n", False, (each,))) for each in (calm, busy)]
    assert ["too high" in table for table in tables] == [False, True]
    assert max(map(len, tables[1].splitlines())) <= 80
    reckoned = [
        "play more legs" in as_table(Report(plan, "m", "en", "n", False, (replace(calm, load=x),)))
        for x in (None, 0.5, 0.85)
    ]
    assert reckoned == [True, True, False]


# The command.


def bench(
    state: Path, *arguments: str | Path, **settings: str
) -> "subprocess.CompletedProcess[str]":
    clean = {k: v for k, v in os.environ.items() if not k.startswith("CALLCORE_")}
    environ = {
        **clean,
        "CALLCORE_STATE_DIR": str(state),
        "CALLCORE_MODELS_DIR": str(MODELS),
        **{f"CALLCORE_{name.upper()}": value for name, value in settings.items()},
    }
    return subprocess.run(
        [sys.executable, "-m", "callcore.cli", "bench", "live", *map(str, arguments)],
        env=environ,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_missing_models_are_named_with_the_remedy(tmp_path: Path):
    run = bench(tmp_path, models_dir=str(tmp_path / "none"))
    assert run.returncode == 1
    assert "callcore models pull base" in run.stderr
    assert run.stdout == ""


def test_a_folder_without_texts_is_a_wrong_argument(tmp_path: Path):
    (tmp_path / "manifest.json").write_text('[{"file": "a.wav", "text": ""}]')
    run = bench(tmp_path / "state", "--data", tmp_path)
    assert run.returncode == 2, run.stderr
    assert "--data" in run.stderr


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.redis
@pytest.mark.parametrize(
    ("partials", "legs"),
    [("adaptive", 1), pytest.param("fixed", 2, marks=pytest.mark.nightly)],
)
def test_legs_are_played_and_measured(tmp_path: Path, partials: str, legs: int):
    if not (MODELS / "base" / "model.bin").is_file():
        missing("the models are not there: run `callcore models pull`")
    sample_of(tmp_path, "helpline-distress", "caller", 9.0, 14.0)
    run = bench(
        tmp_path / "s", "--data", tmp_path, "--legs", str(legs), "--seconds", "5",
        "--partials", partials, "--json",
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    [only] = found["each_run"]
    assert found["median"] == only
    assert found["normaliser"]
    assert only["legs"] == legs
    assert only["audio_s"] == pytest.approx(5.0 * legs, abs=0.1)
    assert only["finals"] >= legs
    assert (only["finals_doubled"], only["finals_unpublished"]) == (0, 0)
    assert only["timed_words"] >= only["words"] / 2 > 2.5 * legs
    assert only["partials"] > 0
    assert 0 < only["committed_p50_s"] < 10
    assert only["wer_live"] - only["wer_whole_file"] <= 0.2
    assert only["inference_cpu_s"] > 0 < only["daemon_cpu_s"]
    assert only["loop_lag_p99_ms"] is not None
    assert "run 1 of 1" in run.stderr


def sample_of(folder: Path, name: str, leg: str, start: float, end: float) -> None:
    """Write one leg of a sample call, from ``start`` to ``end``, as a folder for ``--data``."""
    call = json.loads((resources.path("samples") / f"{name}.json").read_text("utf-8"))
    with wave.open(str(resources.path("samples") / f"{name}.wav")) as recording:
        samples = np.frombuffer(recording.readframes(recording.getnframes()), "<i2").reshape(-1, 2)
        rate = recording.getframerate()
    channel = samples[int(start * rate) : int(end * rate), call["channels"].index(leg)]
    with wave.open(str(folder / "a.wav"), "wb") as out:
        out.setparams((1, 2, rate, 0, "NONE", ""))
        out.writeframes(channel.tobytes())
    turns = [turn for turn in call["turns"] if turn["leg"] == leg]
    text = " ".join(t["text"] for t in turns if start <= t["start"] and t["end"] <= end)
    entry = {"file": "a.wav", "text": text, "language": "en"}
    (folder / "manifest.json").write_text(json.dumps([entry]), "utf-8")
