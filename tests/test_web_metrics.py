"""What /metrics tells Prometheus."""

import re
from datetime import timedelta
from pathlib import Path

import pytest

from callcore import intake
from callcore.calls import CallFacts, Media
from callcore.live_figures import LiveFigures
from callcore.live_records import Records
from callcore.storage import Storage
from tests.support.databases import Clock, clock, database_url, storage
from tests.support.live import FakeWaker, new_uuid, settings_for
from tests.support.pages import Pages
from tests.support.recordings import Works, make_settings, write_wav
from web import metrics

__all__ = ["clock", "database_url", "storage"]

#: A line of the text format: name, labels, value.
LINE = re.compile(r'^([a-z_]+)\{((?:[a-z]+="(?:[^"\\\n]|\\[\\"n])*",?)*)\} (-?[0-9.e+-]+)$')


def parsed(text: str) -> dict[tuple[str, ...], float]:
    """Return the values by name and labels, having checked the form."""
    values: dict[tuple[str, ...], float] = {}
    described: dict[str, int] = {}
    assert text.endswith("\n")
    for line in text.splitlines():
        if line.startswith("# "):
            _, what, name, rest = line.split(" ", 3)
            assert what == ("HELP", "TYPE")[described.get(name, 0)]
            assert what == "HELP" or rest in ("gauge", "counter")
            described[name] = described.get(name, 0) + 1
            continue
        found = LINE.match(line)
        assert found, line
        assert described[found[1]] == 2
        labels = re.findall(r'="((?:[^"\\]|\\.)*)"', found[2])
        key = (found[1], *labels)
        assert key not in values
        values[key] = float(found[3])
    # To OpenMetrics a counter's name has no suffix: a gauge may not have the same.
    bases = [name.removesuffix("_total") for name in described]
    assert len(set(bases)) == len(bases)
    return values


def read(storage: Storage) -> dict[tuple[str, ...], float]:
    return parsed(metrics.text(storage.figures()))


async def test_a_daemon_tells_what_it_counts(storage: Storage, tmp_path: Path, clock: Clock):
    records = Records(storage, settings_for(tmp_path, unregistered="accept"), FakeWaker())
    legs = [new_uuid() for _ in range(3)]
    for leg_uuid in legs:
        await records.open_leg(leg_uuid, clock.moment)
    await records.note_no_text(legs[1], "too many calls at once")
    await records.note_no_text(legs[2], "does not answer", is_down=True)
    await records.note_alive(0.25, 1.5, 3)
    storage.note_daemon('a "b"\\c\n', None, LiveFigures(finals=7))
    clock.move(5.0)
    values = read(storage)
    assert values["callcore_live_legs", "daemon-1"] == 3
    assert values["callcore_live_legs_opened_total", "daemon-1"] == 3
    assert values["callcore_live_legs_refused_total", "daemon-1", "busy"] == 1
    assert values["callcore_live_legs_refused_total", "daemon-1", "down"] == 1
    assert values["callcore_live_load", "daemon-1"] == 0.25
    assert values["callcore_live_behind_seconds", "daemon-1"] == 1.5
    assert values["callcore_live_shed_level", "daemon-1"] == 3
    assert values["callcore_daemon_seen_seconds", "daemon-1"] == 5
    assert values["callcore_live_finals_total", r"a \"b\"\\c\n"] == 7
    assert ("callcore_live_load", r"a \"b\"\\c\n") not in values, "it recognises nothing"
    assert records.close()


def test_what_a_silent_daemon_told_last_is_no_figure_of_now(storage: Storage, clock: Clock):
    storage.note_daemon("one", 0.5, LiveFigures(finals=3, behind_s=9.0))
    clock.move(60.0)
    values = read(storage)
    assert values["callcore_daemon_seen_seconds", "one"] == 60
    assert values["callcore_live_finals_total", "one"] == 3
    assert ("callcore_live_load", "one") not in values
    assert ("callcore_live_behind_seconds", "one") not in values


def test_figures_of_a_daemon_of_another_version_are_read_as_far_as_they_are_known():
    assert LiveFigures.from_json({"finals": 2, "news": 1}) == LiveFigures(finals=2)
    assert LiveFigures.from_json(None) == LiveFigures()


def test_the_steps_of_recordings_are_counted_by_where_they_stand(
    storage: Storage, clock: Clock, tmp_path: Path
):
    clock.moment += timedelta(hours=1)
    works = Works(storage, make_settings(tmp_path / "state"))
    for number in (1, 2):
        path = write_wav(tmp_path / f"1700000000.{number}.wav", seconds=1.0 + number)
        facts = CallFacts(uniqueid=f"1700000000.{number}")
        media = [Media("mixed", str(path))]
        intake.accept_recording(storage, works.settings, facts, "upload", media)
    clock.move(30.0)
    values = read(storage)
    assert values["callcore_steps", "settle", "ready"] == 2
    assert 0 < values["callcore_steps_oldest_seconds", "settle"] <= 30
    assert values["callcore_steps", "transcribe", "blocked"] == 2
    assert values["callcore_steps_oldest_seconds", "transcribe"] == 0
    works.run()
    assert not [key for key, value in read(storage).items() if key[0] == "callcore_steps" and value]


@pytest.mark.parametrize("token", ["", "a token of the site"])
async def test_who_has_the_token_reads_them_and_nobody_else(tmp_path: Path, token: str):
    pages = Pages(tmp_path, redis_url="redis://127.0.0.1:1", token=token)
    async with pages.client() as client:
        stranger = await client.get("/metrics")
        answer = await client.get("/metrics", headers={"Authorization": f"Bearer {token}"})
    pages.close()
    assert stranger.status_code == (401 if token else 200)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == metrics.MEDIA_TYPE
    parsed(answer.text)


@pytest.mark.parametrize(
    ("method", "path", "authorization", "status"),
    [
        ("GET", "/metrics", "Bearer for prometheus", 200),
        ("GET", "/metrics", "Bearer a token of the site", 200),
        ("GET", "/metrics", "Bearer for somebody", 401),
        ("GET", "/metrics", "Basic for prometheus", 401),
        ("POST", "/metrics", "Bearer for prometheus", 401),
        ("GET", "/metricsx", "Bearer for prometheus", 401),
        ("GET", "/api/calls/", "Bearer for prometheus", 401),
        ("GET", "/metrics/../api/calls/", "Bearer for prometheus", 401),
        ("GET", "/", "Bearer for prometheus", 303),
    ],
)
async def test_the_token_of_the_metrics_opens_nothing_else(
    tmp_path: Path, method: str, path: str, authorization: str, status: int
):
    environ = {"CALLCORE_METRICS_TOKEN": "for prometheus"}
    pages = Pages(tmp_path, "redis://127.0.0.1:1", "a token of the site", environ)
    async with pages.client() as client:
        answer = await client.request(method, path, headers={"Authorization": authorization})
    pages.close()
    assert answer.status_code == status


@pytest.mark.parametrize("authorization", ["Bearer ", "Bearer", ""])
async def test_no_token_of_the_metrics_is_no_empty_one(tmp_path: Path, authorization: str):
    pages = Pages(tmp_path, redis_url="redis://127.0.0.1:1", token="a token of the site")
    async with pages.client() as client:
        answer = await client.get("/metrics", headers={"Authorization": authorization})
    pages.close()
    assert answer.status_code == 401
