"""``callcore demo``: one command that shows the main job on a sample call.

Starts everything on embedded parts in a state folder of its own (a real site's calls are never
mixed with the demo's), plays a two-party call over the real AudioSocket wire, and shows what an
agent and an analyst would see: the words as they come, the post-call progress, the result.
"""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from callcore import log, player, resources
from callcore.cli import findings
from callcore.cli.terminal import LiveView, clock
from callcore.cli.up import is_free, prepare
from callcore.errors import CallcoreError, ConfigError
from callcore.settings import Address, Settings, load
from callcore.supervisor import Supervisor, parse_procfile
from callcore.word_errors import word_error_rate

#: Longest waits in seconds; what takes longer is broken, and the log says how.
READY_S = 120.0
RESULT_S = 600.0

_BAR = 24


@dataclass(frozen=True, slots=True)
class Sample:
    """One call of ``samples/``."""

    name: str
    title: str
    wav: Path
    words: dict[str, str]
    """Leg to everything it says."""
    seconds: float


async def run(settings: Settings, name: str, *, once: bool) -> int:
    """Show the main job on the sample ``name``; with ``once`` exit when the result is stored."""
    sample = load_sample(name)
    environ = _environment(settings)
    demo = load(environ)
    prepare(demo)
    loop = asyncio.get_running_loop()
    shown = asyncio.create_task(_show(demo, environ, sample, once=once))
    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, shown.cancel)
    try:
        return await shown
    except asyncio.CancelledError:
        print("\nstopped")
        return 0 if not once else 130


def load_sample(name: str) -> Sample:
    """Return the sample of that name.

    Raises:
        ConfigError: If there is none.
    """
    folder = resources.path("samples")
    names = sorted(path.stem for path in folder.glob("*.wav"))
    if name not in names:
        raise ConfigError("--sample", name, "one of " + ", ".join(names))
    truth = json.loads((folder / f"{name}.json").read_text("utf-8"))
    words: dict[str, list[str]] = {}
    for turn in truth["turns"]:
        words.setdefault(turn["leg"], []).append(turn["text"])
    return Sample(
        name,
        truth["title"],
        folder / f"{name}.wav",
        {leg: " ".join(texts) for leg, texts in words.items()},
        truth["duration"],
    )


def _environment(settings: Settings) -> dict[str, str]:
    """Return the variables of the demo: its own state, the site's models, free ports."""
    environ = {
        **os.environ,
        "CALLCORE_STATE_DIR": str(settings.state_dir / "demo"),
        "CALLCORE_MODELS_DIR": str(settings.models_dir),
        "CALLCORE_CAPTURE": "always",
    }
    for name in ("DATABASE_URL", "REDIS_URL", "SPOOL_DIR", "AUDIO_DIR"):
        environ.pop(f"CALLCORE_{name}", None)
        environ.pop(f"CALLCORE_{name}_FILE", None)
    for variable, address in (
        ("CALLCORE_AUDIOSOCKET_BIND", settings.audiosocket_bind),
        ("CALLCORE_AGI_BIND", settings.agi_bind),
        ("CALLCORE_WEB_BIND", settings.web_bind),
    ):
        environ[variable] = str(_free(address))
    return environ


def _free(address: Address) -> Address:
    """Return the address, or one beside it if another program listens there."""
    for port in range(address.port, min(address.port + 50, 65536)):
        candidate = Address(address.host, port)
        if is_free(candidate):
            return candidate
    raise ConfigError("port", address.port, "a free port among the next fifty")


async def _show(demo: Settings, environ: dict[str, str], sample: Sample, *, once: bool) -> int:
    view = LiveView()
    logfile = demo.state_dir / "demo.log"
    entries = parse_procfile(resources.path("Procfile").read_text("utf-8"))
    headers = {"Authorization": f"Bearer {demo.token}"} if demo.token else {}
    base = f"http://{demo.web_bind}"
    with logfile.open("w", encoding="utf-8") as log_out:
        log.configure(demo.log_level, demo.log_format, log_out)
        supervisor = Supervisor(
            entries, environ, lambda who, line: print(who, "|", line, file=log_out, flush=True)
        )
        async with (
            _running(supervisor),
            httpx.AsyncClient(
                base_url=base, headers=headers, timeout=10, trust_env=False
            ) as client,
        ):
            view.say(f"starting {', '.join(entry.name for entry in entries)} (log: {logfile})")
            await _until_ready(client, demo, view, logfile)
            call_id = await _play(client, demo, sample, view)
            audio_id = await _follow_analysis(client, call_id, view)
            await _print_result(client, audio_id, sample, view)
            view.say(f"\nlive page  {base}/calls/{call_id}/live")
            view.say(f"call page  {base}/calls/{call_id}")
            view.say(f"document   {base}/api/audio/{audio_id}/")
            if not once:
                view.say("\nEverything keeps running for you to look around; Ctrl-C stops it.")
                await asyncio.Event().wait()
    return 0


@asynccontextmanager
async def _running(supervisor: Supervisor) -> AsyncIterator[None]:
    task = asyncio.create_task(supervisor.run())
    try:
        yield
    finally:
        supervisor.stop()
        # Shielded: a Ctrl-C while stopping must not leave children behind.
        await asyncio.shield(task)


async def _until_ready(
    client: httpx.AsyncClient, demo: Settings, view: LiveView, logfile: Path
) -> None:
    """Wait until pages and daemon answer."""
    reason = "no answer yet"
    try:
        async with asyncio.timeout(READY_S):
            while True:
                try:
                    answer = await client.get("/ready")
                    reason = answer.text
                    if answer.status_code == 200 and await _daemon_listens(demo.audiosocket_bind):
                        return
                except httpx.TransportError:
                    pass
                view.status("waiting until everything answers ...")
                await asyncio.sleep(0.2)
    except TimeoutError:
        raise CallcoreError(f"not ready after {READY_S:g} s ({reason}); see {logfile}") from None


async def _daemon_listens(address: Address) -> bool:
    try:
        _, writer = await asyncio.open_connection(address.host, address.port)
    except OSError:
        return False
    writer.close()
    return True


async def _play(client: httpx.AsyncClient, demo: Settings, sample: Sample, view: LiveView) -> str:
    """Play the sample while its words are shown; return the call_id when the call has ended."""
    call_id = player.new_call_id("demo")
    view.say(f"\ncall {call_id}: {sample.title} ({sample.seconds:.0f} s, in real time)")
    view.say(f"watch it in the browser: http://{demo.web_bind}/calls/{call_id}/live\n")
    playing = asyncio.create_task(
        player.play(demo, sample.wav, call_id=call_id, stereo=True, register=True)
    )
    try:
        async with asyncio.timeout(sample.seconds + RESULT_S):
            async for event in _events(client, call_id, playing):
                view.handle(event)
                if event["type"] == "call.ended":
                    break
            await playing
    finally:
        playing.cancel()
    return call_id


async def _events(
    client: httpx.AsyncClient, call_id: str, playing: asyncio.Task[Any]
) -> AsyncIterator[dict[str, Any]]:
    """Yield the events of a room from its first; reconnects as a browser would."""
    last_id = "0-0"
    while True:
        headers = {"Last-Event-ID": last_id, "Accept": "text/event-stream"}
        try:
            async with client.stream(
                "GET", f"/events/calls/{call_id}", headers=headers, timeout=30
            ) as answer:
                if answer.status_code == 200:
                    async for line in answer.aiter_lines():
                        if line.startswith("id:"):
                            last_id = line[3:].strip()
                        elif line.startswith("data:"):
                            event = json.loads(line[5:])
                            if "type" in event:
                                yield event
        except httpx.TransportError:
            pass
        if playing.done() and playing.exception():
            raise CallcoreError(f"the call could not be played: {playing.exception()}")
        await asyncio.sleep(0.2)


async def _follow_analysis(client: httpx.AsyncClient, call_id: str, view: LiveView) -> str:
    """Show the progress of the recording's steps; return its audio_id once the result is stored."""
    view.say("\nthe call has ended; its recording is processed:")
    shown: set[str] = set()
    async with asyncio.timeout(RESULT_S):
        while True:
            call = (await client.get(f"/api/calls/{call_id}/")).raise_for_status().json()
            if call["recordings"]:
                audio_id: str = call["recordings"][0]["audio_id"]
                status = (await client.get(f"/api/status/{audio_id}/")).raise_for_status().json()
                for step in status["steps"]:
                    if step["status"] in {"done", "failed"} and step["name"] not in shown:
                        shown.add(step["name"])
                        took = f"{(step['ms'] or 0) / 1000:.1f} s"
                        note = f": {step['error']}" if step["error"] else ""
                        view.say(f"  {step['name']:<12} {step['status']} in {took}{note}")
                if status["status"] == "completed":
                    return audio_id
                if status["status"] in {"failed", "partial"}:
                    raise CallcoreError(f"the analysis is {status['status']}: {status['error']}")
                done = int(_BAR * status["progress"] / 100)
                bar = "█" * done + "░" * (_BAR - done)
                view.status(f"  {bar} {status['progress']:3.0f} %  {status['current_step'] or ''}")
            await asyncio.sleep(0.3)


async def _print_result(
    client: httpx.AsyncClient, audio_id: str, sample: Sample, view: LiveView
) -> None:
    document = (await client.get(f"/api/audio/{audio_id}/")).raise_for_status().json()
    segments = document["segments"]
    view.say("\nthe stored transcript:")
    for segment in segments:
        view.say(f"{clock(segment['start'])}  {segment['leg']:<7}  {segment['text']}")
    view.say("\nwhat was found in it:")
    for line in findings.lines(document):
        view.say(f"  {line}")
    view.say("\nagainst the sample's script (lower case, punctuation removed):")
    for leg, truth in sample.words.items():
        heard = " ".join(segment["text"] for segment in segments if segment["leg"] == leg)
        words = sum(len(segment["words"]) for segment in segments if segment["leg"] == leg)
        view.say(f"  {leg:<7} WER {word_error_rate(truth, heard):5.1%}   {words} words with times")
