"""``callcore process``: the whole chain over files, without servers.

Documents go to standard output, progress and errors to standard error; on a terminal each file has
a bar, elsewhere a line when it is done.
"""

import dataclasses
import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from tqdm import tqdm

from callcore import document, intake, log, settings
from callcore.batch_engines import batch_engines
from callcore.calls import CallFacts, DocumentState, Media, StepState, StepStatus
from callcore.cli import findings
from callcore.cli.terminal import clock
from callcore.document import current_step, error_of, progress_of, state_of
from callcore.engine_pool import EnginePool
from callcore.errors import ConfigError, Refused
from callcore.local_run import LocalRun, is_over
from callcore.settings import Settings
from callcore.storage import Storage

#: The door that the documents name.
SOURCE = "process"


def run(
    site: Settings,
    files: Sequence[Path],
    *,
    as_json: bool = False,
    steps: str | None = None,
    language: str | None = None,
    store: bool = False,
) -> int:
    """Process files and print their documents in the order of the files; return the exit code.

    Raises:
        ConfigError: If a file, step or language is not there.
        ModelError: If the recogniser's model is missing.
        CallcoreError: If the site's database, which ``store`` asks for, is not migrated.
    """
    paths = _checked(files)
    site = _given(site, steps, language)
    if site.log_level == "INFO":  # the bars say what goes on; a failure is said once
        log.configure("ERROR", site.log_format)
    with _ends_in_order(), _place(site, store=store) as own, log.in_background():
        batch_engines(own)["transcriber"]()  # without its model nothing could be done
        storage = Storage(own.database_url)
        engines = EnginePool(batch_engines(own), nice=0)
        try:
            if store:
                storage.check_migrated()  # its services may be of another version
            else:
                storage.migrate()
            return _run(own, storage, engines, paths, as_json=as_json)
        finally:
            engines.close()
            storage.close()


def _run(
    own: Settings, storage: Storage, engines: EnginePool, paths: Sequence[Path], *, as_json: bool
) -> int:
    names: dict[str, str] = {}
    for path in paths:
        try:
            media = [Media("mixed", str(path))]
            accepted = intake.accept_recording(storage, own, CallFacts(), SOURCE, media)
        except Refused as error:
            raise ConfigError("FILE", path.name, str(error)) from None
        names.setdefault(accepted.audio_id, path.name)
    printer = _Printer(storage, list(names), as_json=as_json)
    with _Progress(names, sys.stderr) as progress:

        def look(steps: Mapping[str, Sequence[StepStatus]]) -> None:
            progress.show(steps)
            with progress.aside():
                printer.print_done(steps)

        LocalRun(storage, own, engines, engines.close).run(names, look)
        printer.print_rest()
    return 0 if printer.all_complete else 1


def _checked(files: Sequence[Path]) -> list[Path]:
    paths = [path.expanduser().absolute() for path in files]
    for path in paths:
        if not path.is_file():
            raise ConfigError("FILE", path, "a recording: there is no such file")
        if not os.access(path, os.R_OK):
            raise ConfigError("FILE", path, "a file that may be read")
    return paths


def _given(site: Settings, steps: str | None, language: str | None) -> Settings:
    """Return the settings with what the command line says, checked as the environment is."""
    said = {"CALLCORE_STEPS": steps, "CALLCORE_LANGUAGE": language}
    named = {name: value for name, value in said.items() if value is not None}
    checked = settings.load({"CALLCORE_STATE_DIR": str(site.state_dir), **named})
    if steps is not None:
        site = dataclasses.replace(site, steps=checked.steps)
    if language is not None:
        site = dataclasses.replace(site, language=checked.language)
    return site


@contextmanager
def _ends_in_order() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the run as Ctrl-C does: no words of a call stay in /tmp."""

    def end(_number: int, _frame: FrameType | None) -> None:
        for number in before:
            signal.signal(number, signal.SIG_IGN)  # a second one would stop the clearing up
        raise KeyboardInterrupt

    # One that is ignored, as by nohup, stays so.
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [each for each in numbers if signal.getsignal(each) is signal.SIG_DFL]
    for number in before:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in before:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def _place(site: Settings, *, store: bool) -> Iterator[Settings]:
    """Enter with the settings of the place where the run keeps its records."""
    if store:
        site.state_dir.mkdir(parents=True, exist_ok=True)
        yield dataclasses.replace(site, settle_s=0.0)
        return
    with tempfile.TemporaryDirectory(prefix="callcore-process-") as name:
        folder = Path(name)
        yield dataclasses.replace(
            site,
            state_dir=folder,
            database_url=f"sqlite:///{folder / 'callcore.db'}",
            audio_dir=folder / "audio_files",
            spool_dir=folder / "spool",
            settle_s=0.0,
            free_floor_mb=0,
        )


class _Printer:
    """Prints documents in the order of the files, each as soon as those before it are out."""

    def __init__(self, storage: Storage, order: list[str], *, as_json: bool) -> None:
        self.all_complete = True
        self._storage = storage
        self._order = order
        self._as_json = as_json
        self._over: set[str] = set()

    def print_done(self, steps: Mapping[str, Sequence[StepStatus]]) -> None:
        self._over |= {each for each, its in steps.items() if is_over(its)}
        while self._order and self._order[0] in self._over:
            self._print(self._order.pop(0))

    def print_rest(self) -> None:
        """Print what did not come to its end, with what it waits for."""
        while self._order:
            self._print(self._order.pop(0))

    def _print(self, audio_id: str) -> None:
        made = document.read(self._storage, audio_id)
        self.all_complete &= made["status"] == DocumentState.COMPLETED
        if self._as_json:
            print(json.dumps(made, ensure_ascii=False, separators=(",", ":")))
        else:
            print("\n".join(_as_text(made)))
        sys.stdout.flush()


def _as_text(made: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines that tell a person what is in a document."""
    yield f"{made['call_id']}  {clock(made['recording']['duration'] or 0)}  {made['status']}"
    for step in made["processing"]["steps"]:
        if step["error"] and step["status"] != StepState.DONE:
            yield f"  {step['name']}: {step['error']}"
    for line in findings.lines(made):
        yield f"  {line}"
    for segment in made["segments"]:
        who = f"speaker {segment['speaker']}" if segment.get("speaker") else segment["leg"]
        yield f"  {clock(segment['start'])}  {who:<9}  {segment['text']}"
    yield ""


class _Progress:
    """A bar for each file on a terminal; elsewhere a line when a file is over."""

    def __init__(self, names: Mapping[str, str], out: TextIO) -> None:
        self._names = names
        self._out = out
        self._told: set[str] = set()
        self._bars: dict[str, Any] = {}
        self._all: Any = None

    def __enter__(self) -> "_Progress":
        if self._out.isatty() and len(self._names) > 1:
            self._all = self._bar("all files", len(self._names), "file")
        return self

    def __exit__(self, *_: object) -> None:
        for bar in (*self._bars.values(), *([self._all] if self._all else [])):
            bar.close()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Let others print above the bars."""
        with tqdm.external_write_mode(file=sys.stdout):
            yield

    def show(self, steps: Mapping[str, Sequence[StepStatus]]) -> None:
        """Show where each recording stands."""
        for audio_id, its in steps.items():
            if is_over(its):
                self._finish(audio_id, its)
            elif self._out.isatty() and any(step.started_at for step in its):
                self._move(audio_id, its)

    def _move(self, audio_id: str, its: Sequence[StepStatus]) -> None:
        bar = self._bars.get(audio_id)
        if bar is None:
            bar = self._bars[audio_id] = self._bar(self._names[audio_id], 100, "%")
        bar.n = progress_of(its)
        bar.set_postfix_str(", ".join(_running(its)) or (current_step(its) or ""))

    def _finish(self, audio_id: str, its: Sequence[StepStatus]) -> None:
        if audio_id in self._told:
            return
        self._told.add(audio_id)
        if bar := self._bars.pop(audio_id, None):
            bar.close()
        if self._all:
            self._all.update()
        line = f"{self._names[audio_id]}: {state_of(its)}"
        error = error_of(its)
        tqdm.write(f"{line} ({error})" if error else line, file=self._out)

    def _bar(self, name: str, total: int, unit: str) -> Any:
        form = "{desc} {bar} {n_fmt}/{total_fmt} {elapsed} {postfix}"
        make: Any = tqdm  # it has no types
        return make(
            desc=f"{name[:28]:<28}",
            total=total,
            unit=unit,
            file=self._out,
            leave=False,
            bar_format=form,
            dynamic_ncols=True,
        )


def _running(its: Sequence[StepStatus]) -> Iterator[str]:
    for step in its:
        if step.status == StepState.RUNNING:
            yield f"{step.name} {step.progress:.0%}" if step.progress else step.name
