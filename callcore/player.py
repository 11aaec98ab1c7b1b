"""Recordings as live AudioSocket legs: for the demo, for trying a site, for load.

A player behaves like Asterisk's AudioSocket(): the UUID first, a frame of 20 ms every 20 ms, each
in one write, whatever the daemon sends is read and dropped, and at the end the connection is
closed without a word.
"""

import asyncio
import contextlib
import itertools
import secrets
import socket
import struct
import sys
import time
import uuid
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import httpx
import numpy as np

from callcore import audio
from callcore.audiosocket import FRAME_MS, Kind, encode, frame_bytes
from callcore.errors import CallcoreError
from callcore.settings import Address, Settings

T = TypeVar("T")

#: Hz of what is played: AudioSocket() the application is always 8 kHz.
RATE = 8000

#: Legs of a stereo recording, left first.
STEREO_LEGS = ("caller", "agent")

#: Seconds that the daemon gets to answer a connect, a registration or our close.
_PATIENCE_S = 5.0


@dataclass(frozen=True, slots=True)
class PlayedLeg:
    """One stream that was played."""

    uuid: str
    call_id: str
    leg: str
    file: Path
    frames: int
    """Messages of audio sent."""
    seconds: float
    """Wall-clock seconds from the first frame to the last."""
    complete: bool
    """False where the daemon closed the connection before the end."""


@dataclass(frozen=True, slots=True)
class Streamed:
    """How one stream went."""

    frames: int
    """Messages of audio sent."""
    began_at: float
    """Unix time of the first of them."""
    seconds: float
    """Wall-clock seconds from the first to the last."""
    late_frames: int
    """Messages that were sent more than a frame's time after they were due."""
    complete: bool
    """False where the daemon closed the connection before the end."""


@dataclass(frozen=True, slots=True)
class _Track:
    leg: str
    uuid: uuid.UUID
    samples: bytes


def new_call_id(prefix: str = "play") -> str:
    """Return an id that no other played call has."""
    return f"{prefix}-{secrets.token_hex(6)}"


async def play(
    settings: Settings,
    file: Path,
    *,
    call_id: str | None = None,
    leg: str | None = None,
    stereo: bool | None = None,
    language: str | None = None,
    register: bool = False,
    rate: float = 1.0,
    to: Address | None = None,
    reset: bool = False,
) -> list[PlayedLeg]:
    """Play one recording as one call, and return when the last leg has ended.

    Args:
        settings: Where daemon and web server listen, and the token.
        file: Any sound file.
        call_id: Id of the call; a new one by default.
        leg: Play one leg of this name; several channels are mixed.
        stereo: Play the left channel as the caller and the right one as the agent. By default
            whether the file has two channels and no ``leg`` is named.
        language: Language code to register.
        register: Announce the legs through ``POST /api/legs/`` first.
        rate: How many times faster than real time; 0 sends as fast as the daemon takes it. A leg
            that gets more than ``leg_session.MAX_AHEAD_S`` (60) seconds ahead of real time is ended
            by the daemon.
        to: The daemon's address instead of the one of the settings.
        reset: End by a reset (RST) instead of a close (FIN).

    Raises:
        InvalidRecording: If the file cannot be decoded.
        CallcoreError: If the file has not the channels asked for, or registration or connect
            fail.
    """
    call_id = call_id or new_call_id()
    tracks = await asyncio.to_thread(_tracks, file, leg, stereo)
    if register:
        await _register(settings, call_id, tracks, language)
    address = to or settings.audiosocket_bind
    streams = [
        stream(track.uuid, track.samples, address, rate=rate, reset=reset) for track in tracks
    ]
    return [
        PlayedLeg(
            str(track.uuid), call_id, track.leg, file, sent.frames, sent.seconds, sent.complete
        )
        for track, sent in zip(tracks, await _all(streams), strict=True)
    ]


async def play_many(
    settings: Settings,
    files: Sequence[Path],
    *,
    calls: int = 1,
    leg: str | None = None,
    stereo: bool | None = None,
    register: bool = False,
    rate: float = 1.0,
    to: Address | None = None,
) -> list[PlayedLeg]:
    """Play each file once, ``calls`` of them at a time; fewer files than that are repeated.

    Args and errors are those of ``play``.
    """
    waiting = iter(list(itertools.islice(itertools.cycle(files), max(len(files), calls))))
    played: list[PlayedLeg] = []

    async def play_next() -> None:
        for file in waiting:
            played.extend(
                await play(
                    settings,
                    file,
                    leg=leg,
                    stereo=stereo,
                    register=register,
                    rate=rate,
                    to=to,
                )
            )

    await _all([play_next() for _ in range(calls)])
    return played


async def run(
    settings: Settings,
    files: Sequence[Path],
    *,
    leg: str | None = None,
    stereo: bool = False,
    calls: int = 1,
    rate: float = 1.0,
    to: Address | None = None,
    register: bool = True,
) -> int:
    """Run ``callcore play``: play, print what was played, return the exit code."""
    try:
        played = await play_many(
            settings,
            files,
            calls=calls,
            leg=leg,
            stereo=stereo or None,
            register=register,
            rate=rate,
            to=to,
        )
    except OSError as error:
        print(f"callcore: {error}", file=sys.stderr)
        return 1
    for each in played:
        end = "" if each.complete else "  the daemon closed it early"
        print(
            f"{each.call_id}  {each.leg}  {each.uuid}  {each.frames} frames"
            f"  {each.seconds:.1f} s{end}"
        )
    return 0 if all(each.complete for each in played) else 1


def _tracks(file: Path, leg: str | None, stereo: bool | None) -> list[_Track]:
    channels = np.concatenate(list(audio.decode(file, RATE))).T
    if stereo is None:
        stereo = leg is None and len(channels) == 2
    if not stereo:
        return [_track(leg or "mixed", channels.mean(axis=0))]
    if len(channels) != len(STEREO_LEGS):
        raise CallcoreError(f"{file.name} has {len(channels)} channel(s), stereo needs 2")
    return [_track(name, channel) for name, channel in zip(STEREO_LEGS, channels, strict=True)]


def _track(leg: str, channel: np.ndarray) -> _Track:
    return _Track(leg, uuid.uuid4(), audio.to_int16(channel).tobytes())


async def _register(
    settings: Settings, call_id: str, tracks: Iterable[_Track], language: str | None
) -> None:
    """Announce all legs before the first one streams: the call must not end in between."""
    headers = {"Authorization": f"Bearer {settings.token}"} if settings.token else {}
    base = f"http://{_reachable(settings.web_bind)}"
    try:
        # No proxy of the environment: the daemon is ours.
        async with httpx.AsyncClient(
            base_url=base, headers=headers, timeout=_PATIENCE_S, trust_env=False
        ) as client:
            for track in tracks:
                facts = {"uuid": str(track.uuid), "call_id": call_id, "leg": track.leg}
                if language is not None:
                    facts["language"] = language
                answer = await client.post("/api/legs/", json=facts)
                if answer.is_error:
                    raise CallcoreError(
                        f"{base}/api/legs/ refused the leg: {answer.status_code} {_why(answer)}"
                    )
    except httpx.HTTPError as error:
        raise CallcoreError(
            f"{base}/api/legs/ does not answer ({type(error).__name__}): is `callcore up` running?"
        ) from error


def _why(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return answer.reason_phrase


def _reachable(address: Address) -> Address:
    """Return an address to connect to for one that was listened on."""
    everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}
    return Address(everywhere.get(address.host, address.host), address.port)


async def _all(work: Sequence[Awaitable[T]]) -> list[T]:
    """Return all results in order; the first failure stops the others."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def stream(
    leg_uuid: uuid.UUID, samples: bytes, to: Address, *, rate: float = 1.0, reset: bool = False
) -> Streamed:
    """Stream one leg; return when the daemon has closed its side too.

    Args:
        leg_uuid: What the stream begins with.
        samples: 16-bit little-endian mono at ``RATE``.
        to: The daemon's address.
        rate: As for ``play``.
        reset: As for ``play``.

    Raises:
        CallcoreError: If nothing listens there.
    """
    where = _reachable(to)
    try:
        async with asyncio.timeout(_PATIENCE_S):
            reader, writer = await asyncio.open_connection(where.host, where.port)
    except (OSError, TimeoutError) as error:
        raise CallcoreError(
            f"nothing listens on {where} ({type(error).__name__}): is `callcore up` running?"
        ) from error
    dropping = asyncio.create_task(_drop_all(reader))
    loop = asyncio.get_running_loop()
    began, began_at = loop.time(), time.time()
    frames, late_frames, complete = 0, 0, False
    try:
        writer.write(encode(Kind.UUID, leg_uuid.bytes))
        size = frame_bytes(Kind.SLIN)
        for at in range(0, len(samples), size):
            due = began + frames * FRAME_MS / 1000 / rate if rate else None
            await _wait_until(loop, due)
            if dropping.done():
                break
            if due is not None and loop.time() > due + FRAME_MS / 1000:
                late_frames += 1
            writer.write(encode(Kind.SLIN, samples[at : at + size]))
            await writer.drain()
            frames += 1
        else:
            complete = True
    except ConnectionError:
        pass  # the daemon has reset the connection: told by ``complete``
    seconds = loop.time() - began
    await _hang_up(writer, dropping, reset)
    return Streamed(frames, began_at, seconds, late_frames, complete)


async def _wait_until(loop: asyncio.AbstractEventLoop, due: float | None) -> None:
    # A late frame is followed by the next ones at once: the other party does not wait either.
    wait_s = max(0.0, due - loop.time()) if due is not None else 0.0
    await asyncio.sleep(wait_s)


async def _drop_all(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(ConnectionError):
        while await reader.read(65536):
            pass


async def _hang_up(writer: asyncio.StreamWriter, dropping: asyncio.Task[None], reset: bool) -> None:
    if reset:
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()
    else:
        # Reading goes on until the daemon has closed too: closing with unread data would reset.
        with contextlib.suppress(OSError, RuntimeError):
            writer.write_eof()
        await asyncio.wait([dropping], timeout=_PATIENCE_S)
        writer.close()
    dropping.cancel()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
    await asyncio.wait([dropping])
