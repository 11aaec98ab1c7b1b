#!/usr/bin/env python3
"""WER of live finals through the whole house: `callcore play` into a real `callcore up`.

    python bench/play_wer.py --data DIR [--at-once 4] [--json]

DIR holds ``harpervalley/`` (caller recordings with ``manifest.json``: file, text) and
``nonspeech/``. Each file is one call, in real time, over the AudioSocket wire; what is scored are
the finals that the API gives for that call. Normaliser: Whisper's EnglishTextNormalizer.
"""

import argparse
import asyncio
import json
import os
import re
import socket
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import httpx
import jiwer
from whisper_normalizer.english import EnglishTextNormalizer

ROOT = Path(__file__).resolve().parent.parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(state: str) -> dict[str, str]:
    models = os.environ.get("CALLCORE_MODELS_DIR", str(ROOT / "var" / "models"))
    clean = {k: v for k, v in os.environ.items() if not k.startswith("CALLCORE_")}
    return {
        **clean,
        "CALLCORE_STATE_DIR": state,
        "CALLCORE_MODELS_DIR": models,
        "CALLCORE_WEB_BIND": f"127.0.0.1:{free_port()}",
        "CALLCORE_AUDIOSOCKET_BIND": f"127.0.0.1:{free_port()}",
        "CALLCORE_AGI_BIND": f"127.0.0.1:{free_port()}",
        # Only the live path is measured: captures are not transcribed beside it.
        "CALLCORE_CAPTURE": "off",
    }


async def command(environ: dict[str, str], *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "callcore.cli",
        *arguments,
        env=environ,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )


async def ready(client: httpx.AsyncClient, audiosocket: str) -> None:
    host, _, port = audiosocket.rpartition(":")
    async with asyncio.timeout(120):
        while True:
            try:
                if (await client.get("/ready")).status_code == 200:
                    (await asyncio.open_connection(host, int(port)))[1].close()
                    return
            except (httpx.TransportError, OSError):
                pass
            await asyncio.sleep(0.2)


async def finals(client: httpx.AsyncClient, environ: dict[str, str], file: Path) -> list[Any]:
    """Play a file as a call; return its live segments once the call has ended."""
    player = await command(environ, "play", str(file))
    said, _ = await player.communicate()
    match = re.search(r"^(\S+)  ", said.decode(), re.M)
    if player.returncode or match is None:
        raise SystemExit(f"{file.name} could not be played: {said.decode()}")
    async with asyncio.timeout(120):
        while True:
            call = (await client.get(f"/api/calls/{match[1]}/")).json()
            if call["state"] == "ended":
                return list(call["segments"])
            await asyncio.sleep(0.2)


async def measure(data: Path, at_once: int) -> dict[str, Any]:
    speech = json.loads((data / "harpervalley" / "manifest.json").read_text("utf-8"))
    speech = [{**entry, "path": data / "harpervalley" / entry["file"]} for entry in speech]
    silent = sorted((data / "nonspeech").glob("*.wav"))
    with tempfile.TemporaryDirectory(prefix="cc-") as state:
        environ = environment(state)
        house = await command(environ, "up")
        assert house.stdout is not None
        drain = asyncio.create_task(house.stdout.read())
        base = f"http://{environ['CALLCORE_WEB_BIND']}"
        gate = asyncio.Semaphore(at_once)

        async def one(client: httpx.AsyncClient, file: Path) -> list[Any]:
            async with gate:
                return await finals(client, environ, file)

        try:
            async with httpx.AsyncClient(base_url=base, timeout=30, trust_env=False) as client:
                await ready(client, environ["CALLCORE_AUDIOSOCKET_BIND"])
                heard = await asyncio.gather(*(one(client, entry["path"]) for entry in speech))
                noise = await asyncio.gather(*(one(client, file) for file in silent))
        finally:
            house.terminate()
            await house.wait()
            await drain
    return figures(speech, heard, silent, noise, at_once)


def figures(
    speech: list[Any], heard: list[Any], silent: list[Path], noise: list[Any], at_once: int
) -> dict[str, Any]:
    normalised = EnglishTextNormalizer()
    pairs = [
        (normalised(entry["text"]), normalised(" ".join(s["text"] for s in segments)))
        for entry, segments in zip(speech, heard, strict=True)
        if entry["text"]
    ]
    score = jiwer.process_words([r for r, _ in pairs], [h for _, h in pairs])
    latencies = [s["latency"] for segments in heard for s in segments if s["latency"] is not None]
    numbers = [s["segment"] for segments in heard for s in segments]
    return {
        "calls": len(speech),
        "at_once": at_once,
        "scored_calls": len(pairs),
        "reference_words": score.hits + score.substitutions + score.deletions,
        "wer_pct": round(100 * score.wer, 1),
        "substitutions": score.substitutions,
        "deletions": score.deletions,
        "insertions": score.insertions,
        "finals": len(numbers),
        "final_latency_p50_s": round(statistics.median(latencies), 2),
        "final_latency_p95_s": round(statistics.quantiles(latencies, n=20)[-1], 2),
        "nonspeech_files": len(silent),
        "nonspeech_words": sum(len(s["text"].split()) for segments in noise for s in segments),
        "nonspeech_files_with_words": [
            file.name for file, segments in zip(silent, noise, strict=True) if segments
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--at-once", type=int, default=4)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    result = asyncio.run(measure(arguments.data, arguments.at_once))
    if arguments.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name:<28} {value}")


if __name__ == "__main__":
    main()
