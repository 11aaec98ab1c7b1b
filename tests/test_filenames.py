"""What file names say."""

import re

import pytest

from callcore.calls import CallFacts
from callcore.filenames import NamePattern, parse, siblings


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
        ("out-5551234-100-20260304-101112-1700000000.12.wav", None, "wav", None, None),
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


def test_a_pattern_of_a_site_names_the_facts() -> None:
    site = NamePattern("site", re.compile(r"(?P<queue>\w+)_(?P<caller>\d+)_(?P<uniqueid>[\d.]+)"))
    assert parse("help_0700_1700000000.1-agent.wav", [site]).facts == CallFacts(
        queue="help", caller="0700", uniqueid="1700000000.1"
    )


def test_the_files_of_one_recording_name_each_other() -> None:
    paths = {f"/s/1.2{suffix}.wav" for suffix in ("", "-caller", "-agent", "-agent-2")}
    for path in paths:
        assert paths - {path} <= set(siblings(path))
        assert path not in siblings(path)
