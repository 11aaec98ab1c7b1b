"""``callcore``: the composition root of every command.

Exit codes: 0 all right, 1 it failed, 2 wrong usage or configuration. Settings are read once,
here, and passed down; nothing happens at import.
"""

import argparse
import asyncio
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import peewee

from callcore import __version__, log
from callcore.errors import CallcoreError, ConfigError
from callcore.settings import FIELDS, Address, Settings, load, parse_address

Command = Callable[[argparse.Namespace, Settings], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = _parser().parse_args(argv)
    # What callers say is for nobody else on this machine.
    os.umask(0o077)
    try:
        settings = load(os.environ)
        log.configure(settings.log_level, settings.log_format)
        command: Command = arguments.command
        return command(arguments, settings)
    except ConfigError as error:
        print(f"callcore: {error}", file=sys.stderr)
        return 2
    except CallcoreError as error:
        print(f"callcore: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"callcore: {error.filename or 'the system'}: {error.strerror}", file=sys.stderr)
        return 1
    except peewee.PeeweeException as error:
        # Its text may hold an address with a password, or a row with what somebody said.
        reason = type(error).__name__
        print(f"callcore: the database does not work ({reason}); is it up, and is", file=sys.stderr)
        print("CALLCORE_DATABASE_URL right? `callcore doctor` looks at it", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="callcore",
        description="Live and post-call speech analytics for Asterisk, on your own machines.",
        epilog="Settings are environment variables CALLCORE_...: see README.md.",
    )
    parser.add_argument("--version", action="version", version=f"callcore {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, command: Command, summary: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=summary, description=summary)
        sub.set_defaults(command=command)
        return sub

    add("up", _up, "Run everything: all processes of the Procfile, embedded parts included.")
    add("audiosocket", _audiosocket, "Receive calls from Asterisk's AudioSocket().")
    add("agi", _agi, "Answer FastAGI requests of Asterisk's dialplan.")
    add("spool", _spool, "Watch the spool folder for finished recordings.")
    add("broker", _broker, "Run the embedded broker (Valkey on a unix socket).")
    add("migrate", _migrate, "Bring the database up to date.")
    doctor = add("doctor", _doctor, "Check this site; each failed line says the remedy.")
    doctor.add_argument(
        "--call", action="store_true", help="place a test call on the Asterisk and follow it"
    )
    doctor.add_argument("--json", action="store_true", help="print one JSON object")
    demo = add("demo", _demo, "Play a sample call through everything and show what comes out.")
    demo.add_argument("--once", action="store_true", help="exit when the result is stored")
    demo.add_argument("--sample", default="helpline-distress", help="a call of samples/")
    _add_play(add("play", _play, "Play recordings as live AudioSocket legs."))
    models = add("models", _models, "List, pull or verify the models.")
    models.add_argument("action", choices=("list", "pull", "verify"))
    models.add_argument("names", nargs="*", metavar="NAME", help="default: what the settings use")
    _add_process(add("process", _process, "Analyse recordings, without servers."))
    _add_bench(add("bench", _bench, "Measure live recognition on this machine."))
    hooks = add("webhooks", _webhooks, "Test the outbound webhooks, or show what they delivered.")
    hooks.add_argument("action", choices=("test", "log"))
    return parser


def _add_play(play: argparse.ArgumentParser) -> None:
    play.add_argument("files", nargs="+", type=Path, metavar="FILE")
    play.add_argument("--as", dest="leg", metavar="LEG", help="leg of a mono file (mixed)")
    play.add_argument(
        "--stereo", action="store_true", help="left is the caller, right the agent: two streams"
    )
    play.add_argument("--calls", type=int, default=1, metavar="N", help="so many calls at once")
    play.add_argument(
        "--rate",
        type=float,
        default=1.0,
        metavar="R",
        help="R times as fast as real time; the daemon ends legs that are over 60 s ahead of it",
    )
    play.add_argument("--to", type=_address, metavar="HOST:PORT", help="default: the settings'")
    play.add_argument(
        "--unregistered", action="store_true", help="do not register the legs at the web server"
    )


def _add_bench(bench: argparse.ArgumentParser) -> None:
    # What is measured comes first, so that other parts can get benches of their own.
    bench.add_argument("part", choices=("live",), help="live: legs into a daemon of its own")
    bench.add_argument("--legs", type=_count, default=6, metavar="N", help="at once (6)")
    bench.add_argument(
        "--seconds", type=_seconds, default=60.0, metavar="S", help="length of a leg (60)"
    )
    bench.add_argument("--model", metavar="M", help="live Whisper model; default: the settings'")
    bench.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="folder whose manifest.json lists file, text, language; default: the sample calls",
    )
    bench.add_argument(
        "--partials",
        choices=("adaptive", "fixed"),
        default="adaptive",
        help="rarer under load, as sites have them, or one each 0.8 s of speech",
    )
    bench.add_argument(
        "--cores", type=_count, default=1, metavar="C", help="cores of the daemon (1)"
    )
    bench.add_argument("--runs", type=_count, default=1, metavar="R", help="medians of so many (1)")
    bench.add_argument("--json", action="store_true", help="print one JSON object")


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 10_000:
        raise argparse.ArgumentTypeError("expected a whole number from 1 to 10000")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 5 <= seconds <= 3600:
        raise argparse.ArgumentTypeError("expected seconds from 5 to 3600")
    return seconds


def _add_process(process: argparse.ArgumentParser) -> None:
    process.add_argument("files", nargs="+", type=Path, metavar="FILE")
    process.add_argument(
        "--json", action="store_true", help="print each document as one line of JSON"
    )
    process.add_argument("--steps", metavar="A,B", help="default: CALLCORE_STEPS")
    process.add_argument("--language", metavar="CODE", help="of the recordings; auto detects it")
    process.add_argument(
        "--store", action="store_true", help="keep them in the site's database and audio folder"
    )


def _address(text: str) -> Address:
    try:
        return parse_address(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected {error}") from None


def _up(arguments: argparse.Namespace, settings: Settings) -> int:
    from callcore.cli.up import run

    return run(settings)


def _audiosocket(arguments: argparse.Namespace, settings: Settings) -> int:
    import uvloop

    from callcore.live_daemon import serve

    with log.in_background():
        uvloop.run(serve(settings))
    return 0


def _agi(arguments: argparse.Namespace, settings: Settings) -> int:
    import uvloop

    from callcore.agi.daemon import serve

    with log.in_background():
        uvloop.run(serve(settings))
    return 0


def _spool(arguments: argparse.Namespace, settings: Settings) -> int:
    from callcore.spool import serve

    return serve(settings)


def _broker(arguments: argparse.Namespace, settings: Settings) -> int:
    from callcore.broker import run

    return run(settings)


def _migrate(arguments: argparse.Namespace, settings: Settings) -> int:
    from callcore.cli.up import migrate

    applied = migrate(settings)
    print("applied: " + ", ".join(applied) if applied else "the database is up to date")
    return 0


def _doctor(arguments: argparse.Namespace, settings: Settings) -> int:
    from callcore.doctor.command import run

    given = (os.environ.get(f"{field.variable}_FILE") for field in FIELDS if field.secret)
    secret_files = [Path(path) for path in given if path]
    return run(
        settings, place_call=arguments.call, as_json=arguments.json, secret_files=secret_files
    )


def _demo(arguments: argparse.Namespace, settings: Settings) -> int:
    from callcore.cli.demo import run

    return asyncio.run(run(settings, arguments.sample, once=arguments.once))


def _play(arguments: argparse.Namespace, settings: Settings) -> int:
    from callcore.player import run

    return asyncio.run(
        run(
            settings,
            arguments.files,
            leg=arguments.leg,
            stereo=arguments.stereo,
            calls=arguments.calls,
            rate=arguments.rate,
            to=arguments.to,
            register=not arguments.unregistered,
        )
    )


def _bench(arguments: argparse.Namespace, settings: Settings) -> int:
    from callcore.cli.bench import bench_live
    from callcore.live_bench import Plan

    plan = Plan(
        legs=arguments.legs,
        seconds=arguments.seconds,
        model=arguments.model,
        data=arguments.data,
        partials=arguments.partials,
        cores=arguments.cores,
        runs=arguments.runs,
    )
    return bench_live(settings, plan, as_json=arguments.json)


def _process(arguments: argparse.Namespace, settings: Settings) -> int:
    from callcore.cli.process import run

    return run(
        settings,
        arguments.files,
        as_json=arguments.json,
        steps=arguments.steps,
        language=arguments.language,
        store=arguments.store,
    )


def _webhooks(arguments: argparse.Namespace, settings: Settings) -> int:
    from callcore.cli.webhooks import run

    return run(settings, arguments.action)


def _models(arguments: argparse.Namespace, settings: Settings) -> int:
    from callcore.cli.models import run

    return run(settings, arguments.action, arguments.names)
