"""Log lines: one line each, with the call they belong to, in two formats."""

import io
import json
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from callcore import log


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield io.StringIO()
    root.handlers[:], root.level = handlers, level


def test_a_text_line_carries_level_module_call_and_values(stream: io.StringIO) -> None:
    log.configure("INFO", "text", stream)
    with log.call_context(call_id="17.1", leg="caller"):
        logging.getLogger("callcore.session").warning("frames lost", extra={"frames": 3})
    line = stream.getvalue()
    assert " WARNING[session] call_id=17.1 leg=caller frames=3 frames lost\n" in line


def test_a_value_cannot_start_a_line_of_its_own(stream: io.StringIO) -> None:
    log.configure("INFO", "text", stream)
    logging.getLogger("x").info("peer said", extra={"name_": "a\nERROR[x] forged"})
    assert stream.getvalue().count("\n") == 1


def test_a_json_line_is_one_object(stream: io.StringIO) -> None:
    log.configure("INFO", "json", stream)
    with log.call_context(call_id="17.1", leg=None):
        try:
            raise ValueError("boom")
        except ValueError:
            logging.getLogger("x").exception("it failed", extra={"n": 1})
    entry = json.loads(stream.getvalue())
    assert entry["message"] == "it failed"
    assert (entry["call_id"], entry["n"], entry["level"]) == ("17.1", 1, "ERROR")
    assert "ValueError: boom" in entry["exception"]
    assert "leg" not in entry


def test_an_error_is_told_by_its_places_and_never_by_its_message() -> None:
    try:
        try:
            Path("/nowhere/0700123456.wav").read_bytes()
        except OSError as error:
            raise ValueError("she said 4711") from error
    except ValueError as error:
        told = log.frames(error)
    assert told.count("tests/test_log.py:") == 2
    assert told.startswith("ValueError at ")
    assert " from FileNotFoundError at " in told
    assert not {"0700123456", "4711"} & set(re.split(r"\W+", told))
    assert log.frames(KeyError("0700")) == "KeyError"


def test_contexts_nest_and_end(stream: io.StringIO) -> None:
    log.configure("INFO", "text", stream)
    with log.call_context(call_id="1"):
        with log.call_context(leg="agent"):
            logging.getLogger("x").info("inner")
        logging.getLogger("x").info("outer")
    inner, outer = stream.getvalue().splitlines()
    assert inner.endswith("call_id=1 leg=agent inner")
    assert outer.endswith("call_id=1 outer")


def test_a_reader_that_stalls_never_stalls_who_logs(stream: io.StringIO) -> None:
    read_end, write_end = os.pipe()
    with os.fdopen(write_end, "w") as pipe, os.fdopen(read_end, "rb") as reader:
        log.configure("INFO", "text", pipe)
        with log.in_background(), log.call_context(call_id="1"):
            for number in range(2_000):  # a pipe holds about 560 such lines, and nobody reads
                logging.getLogger("x").info("padding " * 15, extra={"n": number})
            heard = b""
            while b"n=1999" not in heard:
                heard += reader.read1()
    assert heard.count(b"call_id=1") == 2_000


def test_lines_that_nobody_takes_are_dropped_and_counted(
    stream: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "_MAX_WAITING_LINES", 10)
    read_end, write_end = os.pipe()
    with os.fdopen(write_end, "w") as pipe, os.fdopen(read_end, "rb") as reader:
        log.configure("INFO", "text", pipe)
        with log.in_background():
            for _ in range(2_000):
                logging.getLogger("x").info("padding " * 15)
            heard = b""
            while b"log lines dropped" not in heard:
                heard += reader.read1()
    assert heard.count(b"padding padding") < 2_000 * 15
