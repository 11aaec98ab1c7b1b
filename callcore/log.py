"""Logging: one text format like Asterisk's, one JSON format, and the call a line belongs to.

A message is fixed text; values travel in ``extra`` and are printed as ``key=value``. What people
said, their numbers and their names never reach a log.
"""

import contextvars
import json
import logging
import queue
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

_call: contextvars.ContextVar[dict[str, str] | None] = contextvars.ContextVar("call", default=None)
#: Lines that wait for a reader, about 2 MB, before further ones are dropped.
_MAX_WAITING_LINES = 10_000
#: Seconds that the last lines get to be written.
_FINISH_S = 1.0
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


@contextmanager
def call_context(**ids: str | None) -> Iterator[None]:
    """Add ids such as ``call_id``, ``leg`` or ``audio_id`` to the log lines of this context."""
    merged = dict(_call.get() or {})
    merged.update({key: value for key, value in ids.items() if value is not None})
    token = _call.set(merged)
    try:
        yield
    finally:
        _call.reset(token)


def _fields(record: logging.LogRecord) -> dict[str, object]:
    fields: dict[str, object] = dict(_call.get() or {})
    fields.update({key: value for key, value in vars(record).items() if key not in _STANDARD})
    return fields


def _when(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created, UTC)


class TextFormatter(logging.Formatter):
    """``2026-01-02 10:11:12.345 WARNING[session] call_id=1700000000.12 leg=caller message``."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line, with the traceback below it if there is one."""
        stamp = _when(record).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
        fields = " ".join(f"{key}={_one_line(value)}" for key, value in _fields(record).items())
        name = record.name.rpartition(".")[2]
        parts = (f"{stamp} {record.levelname}[{name}]", fields, _one_line(record.getMessage()))
        line = " ".join(part for part in parts if part)
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """One JSON object a line: at, level, logger, message, then the fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        entry: dict[str, object] = {
            "at": _when(record).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


def frames(error: BaseException) -> str:
    """Return an error's type and where it came from, without its message.

    Messages of others hold what must not be logged: a path carries a phone number, PostgreSQL
    quotes the row that it refuses. An error that led to this one follows after ``from``.
    """
    at = " ".join(
        f"{Path(frame.filename).parent.name}/{Path(frame.filename).name}:{frame.lineno}"
        for frame in traceback.extract_tb(error.__traceback__)
    )
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    told = f"{type(error).__name__} at {at}" if at else type(error).__name__
    return f"{told} from {frames(before)}" if before is not None else told


def _one_line(value: object) -> str:
    """Return the value so that it cannot start a log line of its own."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(value))


class _BackgroundHandler(logging.Handler):
    """Formats at once and writes in a thread; drops and counts lines that nobody takes."""

    def __init__(self, target: "logging.StreamHandler[TextIO]") -> None:
        super().__init__()
        self.setFormatter(target.formatter)
        self._target = target
        self._lines: queue.Queue[str | None] = queue.Queue(_MAX_WAITING_LINES)
        self._dropped = 0
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a line; never waits."""
        try:
            self._lines.put_nowait(self.format(record))
        except queue.Full:
            self._dropped += 1

    def finish(self) -> None:
        """Write what waits, for at most ``_FINISH_S`` seconds."""
        try:
            self._lines.put(None, timeout=_FINISH_S)
        except queue.Full:
            return  # nobody reads: the lines are lost with the process
        self._thread.join(_FINISH_S)

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            dropped, self._dropped = self._dropped, 0
            try:
                self._target.stream.write(f"{line}\n")
                if dropped:
                    self._target.stream.write(f"{dropped} log lines dropped: nobody read them\n")
                self._target.flush()
            except (OSError, ValueError):
                continue  # the reader is gone; those who log go on


@contextmanager
def in_background() -> Iterator[None]:
    """Write log lines in a thread while the context lasts.

    A terminal that is paused or a log collector that hangs then never stops the event loop that
    logs, and with it every call.
    """
    root = logging.getLogger()
    before = root.handlers[:]
    [target] = before
    assert isinstance(target, logging.StreamHandler)
    background = _BackgroundHandler(target)
    root.handlers[:] = [background]
    try:
        yield
    finally:
        root.handlers[:] = before
        background.finish()


def configure(level: str, style: str, stream: TextIO | None = None) -> None:
    """Send log lines to ``stream``, by default standard error.

    Args:
        level: Least severe level, e.g. ``INFO``.
        style: ``text`` or ``json``.
        stream: Where the lines go.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # Libraries speak up only when something is wrong: httpx logs every URL at INFO.
    for noisy in ("httpx", "httpcore", "faster_whisper", "watchdog", "asyncio", "peewee"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLevelName(level)))
