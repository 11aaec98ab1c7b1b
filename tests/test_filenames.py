"""What file names say."""

from dataclasses import fields
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callcore import settings
from callcore.calls import CallFacts
from callcore.errors import ConfigError
from callcore.filenames import channel_started_at, parse, patterns, siblings


@pytest.mark.parametrize(
    ("name", "stem", "extension", "leg", "uniqueid"),
    [
        ("1700000000.12.wav", "1700000000.12", "wav", None, "1700000000.12"),
        ("1700000000.12-caller.wav", "1700000000.12", "wav", "caller", "1700000000.12"),
        ("1700000000.12-agent.WAV", "1700000000.12", "wav", "agent", "1700000000.12"),
        ("1700000000.12-agent-2.gsm", "1700000000.12", "gsm", "agent-2", "1700000000.12"),
        ("pbx1-1700000000.12.mp3", "pbx1-1700000000.12", "mp3", None, "pbx1-1700000000.12"),
        ("/a/b/1700000000.12", "1700000000.12", "", None, "1700000000.12"),
        ("https://pbx/x/1700000000.1.ogg", "1700000000.1", "ogg", None, "1700000000.1"),
        ("my call.wav", "my call", "wav", None, None),
        ("1700000000.12.wav49", "1700000000.12", "wav49", None, "1700000000.12"),
        ("1700000000.12.sln192", "1700000000.12", "sln192", None, "1700000000.12"),
        ("1700000000.12.wav\n", "1700000000.12.wav\n", "", None, None),
        ("caller.wav", "caller", "wav", None, None),
        ("-caller.wav", "", "wav", "caller", None),
        ("", "", "", None, None),
    ],
)
def test_a_name_is_taken_apart(
    name: str, stem: str | None, extension: str, leg: str | None, uniqueid: str | None
) -> None:
    found = parse(name)
    assert found.stem == (stem if stem is not None else name.removesuffix(".wav"))
    assert (found.extension, found.leg) == (extension, leg)
    assert found.facts == CallFacts(uniqueid=uniqueid)


def test_uniqueids_stay_text() -> None:
    assert parse("1437920906.1.wav").stem != parse("1437920906.10.wav").stem


STAMP = "20260304-101112-1700000000.12"


@pytest.mark.parametrize(
    ("stem", "facts"),
    [
        (f"in-0800123456-0700111222-{STAMP}", {"direction": "in", "caller": "0700111222"}),
        (f"out-0700111222-100-{STAMP}", {"direction": "out", "caller": "100", "agent": "100"}),
        (f"out-0700111222-0700333444-{STAMP}", {"direction": "out", "agent": None}),
        (f"internal-200-100-{STAMP}", {"direction": "internal", "caller": "100", "callee": "200"}),
        (f"external-200-0700111222-{STAMP}", {"direction": "in", "callee": "200", "agent": "200"}),
        (f"exten-200-100-{STAMP}", {"direction": None, "caller": "100", "callee": "200"}),
        (f"q-6001-0700111222-{STAMP}", {"direction": "in", "queue": "6001", "callee": None}),
        (f"rg-600-0700111222-{STAMP}", {"direction": None, "callee": "600", "queue": None}),
        (f"parked-100-unknown-{STAMP}", {"callee": "100", "caller": None}),
        (f"force-0700111222-3201-{STAMP}", {"callee": "0700111222", "caller": "3201"}),
        (f"generic--+254700111222-{STAMP}", {"callee": None, "caller": "+254700111222"}),
        (f"8000-8000-always-{STAMP}", {"caller": None, "callee": None}),
    ],
)
def test_names_of_freepbx_tell_who_called_whom(stem: str, facts: dict[str, str | None]) -> None:
    found = parse(f"/var/spool/asterisk/monitor/2026/03/04/{stem}.WAV")
    assert (found.stem, found.extension) == (stem, "wav")
    assert found.facts.uniqueid == "1700000000.12"
    assert {name: getattr(found.facts, name) for name in facts} == facts
    assert found.facts.started_at is None  # its date is the local time of somewhere


@pytest.mark.parametrize(
    ("stem", "facts"),
    [
        ("20260304-101112_2125551234-all", CallFacts(caller="2125551234")),
        ("20260304-101112_2125551234", CallFacts(caller="2125551234")),
        ("20260304-101112_2125551234_6666", CallFacts(caller="2125551234", agent="6666")),
        ("20260304-101112_6666_2125551234-all", CallFacts(caller="2125551234", agent="6666")),
        (
            "20260304-101112_2125551234_SALES_ada-all",
            CallFacts(caller="2125551234", queue="SALES", agent="ada"),
        ),
        (
            "SALES_ada_20260304-101112_2125551234-all",
            CallFacts(caller="2125551234", queue="SALES", agent="ada"),
        ),
        # Which of two long numbers is the agent nobody can tell.
        ("20260304-101112_2125551234_2125559999", CallFacts()),
    ],
)
def test_names_of_vicidial_tell_the_customer(stem: str, facts: CallFacts) -> None:
    assert parse(f"{stem}.mp3").facts == facts


def test_a_pattern_of_a_site_names_the_facts() -> None:
    site = patterns(r"(?P<queue>\w+)_(?P<caller>\d+)_(?P<uniqueid>[\d.]+)")
    assert parse("help_0700_1700000000.1-agent.wav", site).facts == CallFacts(
        queue="help", caller="0700", uniqueid="1700000000.1"
    )
    assert parse("1700000000.1.wav", site).facts == CallFacts(uniqueid="1700000000.1")


def test_a_pattern_of_a_site_may_name_the_leg() -> None:
    site = patterns(r"(?P<call_id>\w+)\+(?P<leg>\w+)\+x")
    caller, agent, other = (parse(f"a1+{leg}+x.wav", site) for leg in ("caller", "agent", "b"))
    assert (caller.leg, agent.leg, other.leg) == ("caller", "agent", None)
    assert caller.stem == agent.stem != other.stem
    assert caller.facts == CallFacts(call_id="a1")


@pytest.mark.parametrize(
    ("said", "moment"),
    [
        ("1700000000", datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)),
        ("2026-03-04T10:11:12+03:00", datetime(2026, 3, 4, 7, 11, 12, tzinfo=UTC)),
        ("20260304T101112Z", datetime(2026, 3, 4, 10, 11, 12, tzinfo=UTC)),
        ("20260304T101112", None),
        ("99999999999999", None),
        ("yesterday", None),
    ],
)
def test_a_start_is_taken_only_with_its_time_zone(said: str, moment: datetime | None) -> None:
    site = patterns(r"call (?P<started_at>.*)")
    assert parse(f"call {said}.wav", site).facts.started_at == moment


def test_settings_know_the_facts_that_a_pattern_may_name() -> None:
    assert tuple(field.name for field in fields(CallFacts)) == settings.NAME_GROUPS
    loaded = settings.load({"CALLCORE_NAME_PATTERN": r"(?P<queue>\w+)-(?P<linkedid>.*)"})
    assert parse("a-1.2", patterns(loaded.name_pattern)).facts.queue == "a"


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("(?P<colour>x)", "no group colour, only call_id, uniqueid"),
        ("(?P<queue>", "a regular expression"),
        (r"\d+", "named groups"),
    ],
)
def test_a_pattern_that_names_no_fact_is_told_at_the_start(pattern: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        settings.load({"CALLCORE_NAME_PATTERN": pattern})


@pytest.mark.parametrize(
    ("uniqueid", "moment"),
    [
        ("1700000000.12", datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)),
        ("pbx1-1700000000.12", datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)),
        ("crm-77", None),
        ("17000000000.1", None),
        (None, None),
    ],
)
def test_a_uniqueid_tells_when_its_channel_was_made(
    uniqueid: str | None, moment: datetime | None
) -> None:
    assert channel_started_at(uniqueid) == moment


def test_a_name_longer_than_a_file_system_allows_is_not_looked_into() -> None:
    assert parse(f"in-1-{'2' * 300}-{STAMP}.wav").facts == CallFacts()


@given(st.text(max_size=300))
def test_any_name_is_taken_apart(name: str) -> None:
    found = parse(name)
    assert len(found.stem) <= len(name)
    siblings(name)


def test_the_files_of_one_recording_name_each_other() -> None:
    paths = {f"/s/1.2{suffix}.wav" for suffix in ("", "-caller", "-agent", "-agent-2")}
    for path in paths:
        assert paths - {path} <= set(siblings(path))
        assert path not in siblings(path)
