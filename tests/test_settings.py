"""Settings: one table, cast and checked, and errors that name the variable."""

import dataclasses
from pathlib import Path

import pytest

from callcore.errors import ConfigError
from callcore.settings import FIELDS, Address, Settings, broker_url, load, parse_address


def test_the_table_and_the_settings_object_have_the_same_fields() -> None:
    assert [f.name for f in FIELDS] == [f.name for f in dataclasses.fields(Settings)]


def test_defaults_run_on_one_machine_with_no_server() -> None:
    settings = load({"CALLCORE_STATE_DIR": "/srv/x"})
    assert settings.database_url == "sqlite:////srv/x/callcore.db"
    assert settings.spool_dir == Path("/srv/x/spool")
    assert settings.audiosocket_bind == Address("127.0.0.1", 9092)
    assert broker_url(settings) == "unix:///srv/x/broker.sock"


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("CALLCORE_AUDIOSOCKET_BIND", "9092", "host:port"),
        ("CALLCORE_MAX_CALLS", "many", "whole number from 1"),
        ("CALLCORE_SETTLE_S", "-1", "number from 0"),
        ("CALLCORE_CAPTURE", "yes", "fallback, always, off"),
        ("CALLCORE_DATABASE_URL", "mysql://x", "postgresql://"),
        ("CALLCORE_LANGUAGE", "English", "language code"),
        ("CALLCORE_TRANSCRIBER", "whisper", "module:attribute"),
        ("CALLCORE_PBX", "../x", "letters"),
        ("CALLCORE_SPOOL_DIR", "", "a path"),
        ("CALLCORE_TYPO", "1", "a setting of README's table"),
    ],
)
def test_a_wrong_value_names_its_variable_and_what_would_be_right(
    variable: str, value: str, expected: str
) -> None:
    with pytest.raises(ConfigError, match=expected) as caught:
        load({variable: value})
    assert caught.value.field == variable


def test_the_web_listens_on_loopback_only_without_a_token() -> None:
    with pytest.raises(ConfigError, match="CALLCORE_TOKEN is not set"):
        load({"CALLCORE_WEB_BIND": "0.0.0.0:8000"})
    settings = load({"CALLCORE_WEB_BIND": "0.0.0.0:8000", "CALLCORE_TOKEN": "s3cret"})
    assert settings.web_bind.port == 8000


@pytest.mark.parametrize(("audio", "spool"), [("/a", "/a"), ("/a/b", "/a"), ("/a", "/a/b")])
def test_the_files_of_the_pbx_and_ours_are_never_in_one_folder(audio: str, spool: str) -> None:
    with pytest.raises(ConfigError, match="neither inside nor around"):
        load({"CALLCORE_AUDIO_DIR": audio, "CALLCORE_SPOOL_DIR": spool})


def test_a_secret_may_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("s3cret\n")
    assert load({"CALLCORE_TOKEN_FILE": str(tmp_path / "token")}).token == "s3cret"


def test_an_unreadable_secret_file_says_which(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file") as caught:
        load({"CALLCORE_TOKEN_FILE": str(tmp_path / "none")})
    assert caught.value.field == "CALLCORE_TOKEN_FILE"


def test_a_secret_given_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="together"):
        load({"CALLCORE_TOKEN": "a", "CALLCORE_TOKEN_FILE": str(tmp_path)})


def test_secrets_appear_neither_in_errors_nor_in_the_representation() -> None:
    with pytest.raises(ConfigError) as caught:
        load({"CALLCORE_REDIS_URL": "http://:hunter2@host"})
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in repr(load({"CALLCORE_TOKEN": "hunter2"}))


@pytest.mark.parametrize(
    ("text", "address"),
    [("[::1]:9092", Address("::1", 9092)), ("pbx.local:1", Address("pbx.local", 1))],
)
def test_addresses_round_trip(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert str(address) == text


def test_every_setting_is_in_the_readme() -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text("utf-8")
    for field in FIELDS:
        default = field.shown or (field.default if isinstance(field.default, str) else "")
        row = f"| `{field.variable}` | {f'`{default}`' if default else ''} | {field.help} |"
        assert row in readme, row
