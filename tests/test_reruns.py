"""Running steps again, on both databases."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from callcore import steps
from callcore.calls import now
from callcore.errors import InvalidRecording, NotFound, Refused
from callcore.reruns import rerun
from callcore.settings import Settings
from callcore.steps import Step, StepContext
from callcore.storage import Storage
from tests.support.databases import Clock, clock, database_url, storage
from tests.support.recordings import Works, make_settings, write_wav
from tests.test_chain import accept, status_of

__all__ = ["clock", "database_url", "storage"]

ORDER = "transcribe,first,second,last"


class Runs:
    """Steps of the test: how often each ran, and which of them fail."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys(("first", "second", "last"), 0)
        self.broken: set[str] = set()

    def step(self, name: str, needs: tuple[str, ...], after: tuple[str, ...] = ()) -> Step:
        def run(context: StepContext) -> dict[str, Any]:
            self.counts[name] += 1
            if name in self.broken:
                raise InvalidRecording("it is broken")
            return {"read": sorted(context.results)}

        return Step(name, needs, name, run, after)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    made = Runs()
    own = {
        "first": made.step("first", ("transcribe",)),
        "second": made.step("second", ("transcribe",)),
        "last": made.step("last", ("transcribe",), ("first", "second")),
    }
    load: Callable[[str], Step] = steps._load
    monkeypatch.setattr(steps, "_load", lambda name: own.get(name) or load(name))
    return made


@pytest.fixture
def works(storage: Storage, clock: Clock, tmp_path: Path, runs: Runs) -> Works:
    clock.moment = now() + timedelta(hours=1)
    return Works(storage, make_settings(tmp_path / "state", steps=ORDER))


@pytest.fixture
def audio_id(works: Works, tmp_path: Path) -> str:
    return accept(works, write_wav(tmp_path / "1700000000.1.wav", seconds=2.0))


def settings_with(works: Works, order: str) -> Settings:
    return make_settings(works.settings.state_dir, steps=order)


def test_what_failed_runs_again_with_what_reads_it_and_nothing_else(
    works: Works, runs: Runs, audio_id: str
) -> None:
    runs.broken = {"first"}
    works.run()
    states = status_of(works, audio_id)
    assert (states["first"], states["second"], states["last"]) == ("failed", "done", "done")
    assert works.storage.results(audio_id)["last"]["read"] == ["second", "transcribe"]
    runs.broken = set()
    assert rerun(works.storage, works.settings, audio_id) == (audio_id, ("first",))
    works.run()
    assert set(status_of(works, audio_id).values()) == {"done"}
    assert works.storage.results(audio_id)["last"]["read"] == ["first", "second", "transcribe"]
    assert runs.counts == {"first": 2, "second": 1, "last": 2}


def test_where_nothing_failed_all_of_it_runs_again(works: Works, runs: Runs, audio_id: str) -> None:
    works.run()
    assert rerun(works.storage, works.settings, audio_id) == (audio_id, ("transcribe",))
    works.run()
    assert runs.counts == {"first": 2, "second": 2, "last": 2}
    assert len(works.engines.calls) == 2


def test_a_step_that_a_setting_added_later_runs_for_old_recordings(
    works: Works, runs: Runs, audio_id: str
) -> None:
    before = Works(works.storage, settings_with(works, "transcribe,first"))
    before.run()
    other = accept(before, write_wav(works.settings.state_dir / "1700000000.2.wav", pitch=500))
    before.run()
    assert "second" not in status_of(before, other)
    rerun(works.storage, works.settings, other)
    works.run()
    assert set(status_of(works, other)) >= {"first", "second", "last"}
    assert set(status_of(works, other).values()) == {"done"}


def test_a_recording_that_could_not_be_settled_is_settled_again(
    works: Works, runs: Runs, tmp_path: Path
) -> None:
    path = tmp_path / "1700000000.3.wav"
    path.write_bytes(b"this is no sound" * 100)
    audio_id = accept(works, path)
    works.run()
    assert status_of(works, audio_id)["settle"] == "failed"
    write_wav(path, seconds=2.0)
    assert rerun(works.storage, works.settings, audio_id) == (audio_id, ("settle",))
    works.run()
    assert set(status_of(works, audio_id).values()) == {"done"}


def test_what_a_step_needs_runs_again_with_it_if_it_failed(
    works: Works, runs: Runs, tmp_path: Path
) -> None:
    works.engines.fail_times = 99
    audio_id = accept(works, write_wav(tmp_path / "1700000000.4.wav", seconds=2.0))
    clock = works.storage.clock
    for _ in range(4):
        works.run()
        clock.move(60)  # type: ignore[attr-defined]
    assert status_of(works, audio_id)["first"] == "skipped"
    works.engines.fail_times = 0
    assert rerun(works.storage, works.settings, audio_id, ["first"])[1] == ("transcribe",)
    works.run()
    assert status_of(works, audio_id)["first"] == "done"


def test_text_whose_audio_has_been_deleted_is_not_overwritten(
    works: Works, runs: Runs, audio_id: str
) -> None:
    works.run()
    works.storage.drop_audio(works.storage.clock() + timedelta(days=1), "it was deleted", 9)
    with pytest.raises(Refused, match="it was deleted"):
        rerun(works.storage, works.settings, audio_id)
    assert rerun(works.storage, works.settings, audio_id, ["last"])[1] == ("last",)
    works.run()
    assert works.storage.results(audio_id)["transcribe"]["segments"]


def test_a_report_that_comes_again_after_a_step_was_added_leaves_it_complete(
    works: Works, runs: Runs, tmp_path: Path
) -> None:
    before = Works(works.storage, settings_with(works, "transcribe,first"))
    path = write_wav(tmp_path / "1700000000.5.wav", seconds=2.0)
    audio_id = accept(before, path)
    before.run()
    assert accept(works, path) == audio_id
    works.run()
    assert set(status_of(works, audio_id).values()) == {"done"}


def test_steps_that_the_settings_no_longer_name_hold_up_nothing(
    works: Works, runs: Runs, audio_id: str
) -> None:
    works.chain.settle(audio_id)
    after = Works(works.storage, settings_with(works, "transcribe,last"))
    after.run()
    states = status_of(after, audio_id)
    assert (states["last"], states["first"]) == ("done", "skipped")


def test_only_what_is_asked_for_and_known_runs(works: Works, runs: Runs, audio_id: str) -> None:
    works.run()
    assert rerun(works.storage, works.settings, audio_id, ["second"]) == (audio_id, ("second",))
    works.run()
    assert runs.counts == {"first": 1, "second": 2, "last": 2}
    with pytest.raises(Refused, match="no step third"):
        rerun(works.storage, works.settings, audio_id, ["third"])
    with pytest.raises(NotFound):
        rerun(works.storage, works.settings, "nobody")
