"""What live recognition does on this machine: legs of known words into a real daemon.

Each run starts a site of its own (``bench_site``) and streams recordings in real time over the
AudioSocket wire. What counts is what a page could see: the events on the bus, by the broker's
clock. They are laid beside the words of the recordings (``bench_tracks``, ``word_latency``), and
beside what the same model makes of the whole files.

Before the first run each recording is played once, not measured, as fast as the daemon can
follow at ease: what then has words must have words in every run, or a final was lost.
"""

import asyncio
import math
import statistics
import time
import uuid
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from callcore import bench_site, intake, player
from callcore.bench_site import Site
from callcore.bench_tracks import TIMING_MODEL, Track, WholeFiles, tracks
from callcore.bus import START, RoomReader, position, room
from callcore.calls import CallFacts
from callcore.engines import LIVE_RATE
from callcore.errors import CallcoreError, ConfigError
from callcore.settings import Settings, broker_url
from callcore.word_errors import Scorer
from callcore.word_latency import (
    TextEvent,
    Utterance,
    lost_and_doubled,
    seen_words,
    utterances,
)

#: Daemons by what partials do.
COMMANDS = {"adaptive": "callcore.cli audiosocket", "fixed": "callcore.bench_daemon"}

#: Seconds over which the legs of a run begin, so that they do not speak in chorus.
_SPREAD_S = 8.0

#: A frame is sent when its first sample is due; Asterisk sends it when its last one was heard.
_FRAME_S = 0.02

#: The load of the cores before the first run, partials aside, and how far ahead of the clock the
#: daemon lets a leg get meanwhile: ten seconds less than it would end the leg for.
_CALM = 0.4
_AHEAD_S = 50.0

#: Seconds of the first recording that are played to warm a daemon up, and then to learn its cost.
_WARM_UP_S = 5.0
_TRIAL_S = 30.0

#: Seconds in which all legs play, from which on their load can be told.
_STEADY_S = 3.0

#: Seconds between two looks at memory and clock.
_LOOK_S = 1.0

#: Seconds that the words of a leg may take after its end: a fixed part, and for each second.
_PATIENCE_S = 60.0
_PATIENCE = 10.0

#: How long one look at a call's events waits for the next one.
_BLOCK_MS = 5000

#: The leg of every call.
_LEG = "caller"

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is played."""

    legs: int = 6
    seconds: float = 60.0
    """Length of a leg."""
    model: str | None = None
    """Live Whisper model; None is the settings' own."""
    data: Path | None = None
    """Folder of recordings; None plays the sample calls."""
    partials: str = "adaptive"
    """A key of ``COMMANDS``."""
    cores: int = 1
    """Cores of the daemon, and decoding threads."""
    runs: int = 1


@dataclass(frozen=True, slots=True)
class Figures:
    """What one run gave; of several the medians. Seconds, unless the name says else."""

    legs: float
    audio_s: float
    """Of all legs."""
    legs_without_text: float
    daemon_cpu_s: float
    inference_cpu_s: float
    cpu_per_audio_s: float
    """Of both, for a second of one leg; the broker's are not in it."""
    legs_per_core: float
    """Legs that fill a core at what one costs here; it costs less where partials give way."""
    load: float | None
    """Share of the daemon's cores that both used while all legs played; None if that was short."""
    shown_p50_s: float | None
    """End of a word in the reference until a partial or final has it."""
    shown_p95_s: float | None
    committed_p50_s: float | None
    """Until it is stable for good."""
    committed_p95_s: float | None
    final_p50_s: float | None
    """Until its final is there."""
    final_p95_s: float | None
    end_to_final_p50_s: float | None
    """End of a final's last word in the reference until that final."""
    end_to_final_p95_s: float | None
    ends_timed: float
    """Finals whose last word was said and heard, and its time known: those two are theirs."""
    daemon_latency_p50_s: float | None
    """``latency`` of the finals: from the end of speech, as the daemon hears it."""
    daemon_latency_p95_s: float | None
    words: float
    """Of the reference, all legs."""
    timed_words: float
    """Of those the ones that were heard and whose times are known: the latencies are theirs."""
    wer_live: float | None
    wer_whole_file: float | None
    wer_difference: float | None
    committed_words: float
    """Words that partials called stable."""
    revised_share: float
    """Share of them that did not stay: the final has them not, or there was none."""
    partials: float
    partial_interval_s: float | None
    """Speech, by the finals' lengths, for each partial."""
    finals: float
    finals_lost: float
    finals_doubled: float
    finals_unpublished: float
    """Stored, but not on the bus."""
    loop_lag_p99_ms: float | None
    """Of the daemon's event loop; None where it does not say."""
    daemon_mib_per_leg: float
    """Growth of its memory from before the legs to the most while they ran, by legs."""
    inference_mib: float
    """The most that the inference process had."""
    inference_growth_mib: float
    late_frames_share: float
    """Frames that were sent over 20 ms late: then this machine was too busy to play in time."""


@dataclass(frozen=True, slots=True)
class Report:
    """What all runs gave."""

    plan: Plan
    model: str
    language: str
    """Of the recordings, separated by commas."""
    normaliser: str
    """How texts are made alike before their errors are counted."""
    fell_behind: bool
    """Whether the daemon was late before the runs: what it then gave up is not missed in them."""
    runs: tuple[Figures, ...]

    @property
    def median(self) -> Figures:
        """Each figure's median over the runs that have it."""
        return Figures(**{each.name: self._median(each.name) for each in fields(Figures)})

    def _median(self, name: str) -> Any:
        values = [value for run in self.runs if (value := getattr(run, name)) is not None]
        return statistics.median(values) if values else None


@dataclass(frozen=True, slots=True)
class _Played:
    """One leg and what came of it."""

    track: Track
    call_id: str
    streamed: player.Streamed
    heard: list[Utterance]
    no_text: bool
    behind: bool
    """Whether its words were told to be late."""


@dataclass(frozen=True, slots=True)
class _Cost:
    """What a run used."""

    load: float | None
    daemon_cpu_s: float
    inference_cpu_s: float
    daemon_growth_mib: float
    inference_growth_mib: float
    inference_mib: float
    """The most."""


@dataclass(frozen=True, slots=True)
class _Speech:
    """What is known of the tracks, by their ``id``."""

    expected: Mapping[int, list[tuple[float, float]]]
    """Start and end of the utterances that have words."""
    offline: Mapping[int, str]
    """What the live model hears of the whole track."""
    scorer: Scorer


async def run(
    plan: Plan, settings: Settings, environ: Mapping[str, str], progress: Progress
) -> Report:
    """Run the whole plan.

    Args:
        plan: What is played.
        settings: Of this machine's site: its models and engines are measured.
        environ: Where those come from.
        progress: Takes a line that says what is going on.

    Raises:
        CallcoreError: If something of it cannot be done.
        InvalidRecording: If a recording cannot be decoded.
    """
    whole_files = WholeFiles(settings.models_dir, settings.state_dir / "bench")
    bench_site.check_models(settings, (TIMING_MODEL,))
    progress(f"when each word is said (model {TIMING_MODEL}; kept for the next time) ...")
    legs = await asyncio.to_thread(tracks, plan.data, plan.legs, plan.seconds, whole_files)
    languages = sorted({track.language for track in legs})
    model = plan.model or _model_for(settings, languages)
    if model.endswith(".en") and languages != ["en"]:
        raise ConfigError("--model", model, f"a model for {', '.join(languages)}")
    values = _values(plan, model, languages)
    distinct = list({id(track): track for track in legs}.values())
    # The first site says what is missing before hours of whole files are heard.
    async with bench_site.running(environ, COMMANDS["adaptive"], plan.cores, **values) as site:
        progress("each recording once, as fast as the daemon can follow ...")
        expected, fell_behind = await _expected(site, distinct, plan.cores)
    progress(f"what {model} makes of the whole files (kept for the next time) ...")
    offline = await asyncio.to_thread(_offline, distinct, model, whole_files)
    whole_files.unload()
    speech = _Speech(expected, offline, Scorer(languages))
    runs = []
    for number in range(plan.runs):

        def tell(what: str, number: int = number) -> None:
            progress(f"run {number + 1} of {plan.runs}: {what}")

        runs.append(await _one_run(plan, environ, values, legs, speech, tell))
    normaliser = speech.scorer.normaliser
    return Report(plan, model, ",".join(languages), normaliser, fell_behind, tuple(runs))


def _model_for(settings: Settings, languages: Sequence[str]) -> str:
    return settings.live_model if languages == ["en"] else settings.live_model_multilingual


def _values(plan: Plan, model: str, languages: Sequence[str]) -> dict[str, str]:
    values = {
        "live_model": model,
        "live_threads": str(plan.cores),
        # How many legs there are is decided here; what overload does is what we want to see.
        "live_max_load": "100",
    }
    if languages == ["en"] or plan.model is not None:
        values["live_model_multilingual"] = model  # one model in memory, not two
    return values


def _offline(distinct: Sequence[Track], model: str, whole_files: WholeFiles) -> dict[int, str]:
    """Return what the model hears of each track, by the track's ``id``."""
    texts = {}
    for track in distinct:
        heard = whole_files.words(track.samples, model, track.language)
        texts[id(track)] = " ".join(word.text for word in heard)
    return texts


async def _expected(
    site: Site, distinct: Sequence[Track], cores: int
) -> tuple[dict[int, list[tuple[float, float]]], bool]:
    """Return start and end of the utterances with words of each track, by its ``id``.

    Also whether the daemon was late with them.
    """
    reader = RoomReader(broker_url(site.settings))
    try:
        await _play(site, reader, distinct[0], rate=0, seconds=_WARM_UP_S)
        before_s = _cpu_s(site)
        trial = await _play(site, reader, distinct[0], rate=0, seconds=_TRIAL_S)
        cost = (_cpu_s(site) - before_s) / (trial.streamed.frames * _FRAME_S)
        speed = _CALM * cores / max(cost, 1e-3)
        rates = [pace(track.seconds, speed) for track in distinct]
        turns = asyncio.Semaphore(max(1, int(speed / max(rates))))

        async def in_turn(track: Track, rate: float) -> _Played:
            async with turns:
                return await _play(site, reader, track, rate=rate)

        played = await _all([in_turn(*each) for each in zip(distinct, rates, strict=True)])
    finally:
        await reader.close()
    expected = {
        id(each.track): [(final.start, final.end) for u in each.heard for final in u.finals]
        for each in played
    }
    if not any(expected.values()):
        errors = [line for line in site.lines if line.get("level") == "ERROR"]
        why = errors[-1].get("message") if errors else "it logged no error"
        raise CallcoreError(f"the live daemon heard no word in any recording: {why}")
    return expected, any(each.behind for each in played)


def _cpu_s(site: Site) -> float:
    return site.daemon().cpu_s + site.inference().cpu_s


def pace(seconds: float, speed: float) -> float:
    """Return how fast a track is played that is not measured, times real time.

    Args:
        seconds: Its length.
        speed: Seconds of audio that may be played in one, of all tracks.
    """
    allowed = math.inf if seconds <= _AHEAD_S else seconds / (seconds - _AHEAD_S)
    return max(1.0, min(speed, allowed))


async def _one_run(
    plan: Plan,
    environ: Mapping[str, str],
    values: Mapping[str, str],
    legs: Sequence[Track],
    speech: _Speech,
    progress: Progress,
) -> Figures:
    progress("a site starts ...")
    command = COMMANDS[plan.partials]
    async with bench_site.running(environ, command, plan.cores, **values) as site:
        reader = RoomReader(broker_url(site.settings))
        try:
            await _play(site, reader, legs[0], rate=0, seconds=_WARM_UP_S)
            played, cost = await _measured(site, reader, legs, plan.cores, progress)
        finally:
            await reader.close()
        unpublished = sum(_unpublished(site, each) for each in played)
    stopped = site.logged("stopped")
    lag = stopped[-1].get("loop_lag_p99_ms") if stopped else None
    return _figures(played, cost, speech, unpublished, lag)


async def _measured(
    site: Site, reader: RoomReader, legs: Sequence[Track], cores: int, progress: Progress
) -> tuple[list[_Played], _Cost]:
    """Play all legs; return what came of them and what that used."""
    daemon, inference = site.daemon(), site.inference()
    most = [daemon.memory_mib, inference.memory_mib]
    delays_s = [_SPREAD_S * number / len(legs) for number in range(len(legs))]
    until_s = min(map(float.__add__, delays_s, (track.seconds for track in legs)))
    watching = asyncio.create_task(_watch(site, len(legs), most, progress))
    metering = asyncio.create_task(_cores_used(site, delays_s[-1], until_s))
    try:
        played = await _all(
            [
                _play(site, reader, track, delay_s=delay_s)
                for track, delay_s in zip(legs, delays_s, strict=True)
            ]
        )
        used = await metering
    finally:
        watching.cancel()
        metering.cancel()
        await asyncio.wait([watching, metering])
    return played, _Cost(
        None if used is None else used / cores,
        site.daemon().cpu_s - daemon.cpu_s,
        site.inference().cpu_s - inference.cpu_s,
        most[0] - daemon.memory_mib,
        most[1] - inference.memory_mib,
        most[1],
    )


async def _cores_used(site: Site, from_s: float, until_s: float) -> float | None:
    """Return how many cores the site used from one moment to another, in seconds from now.

    None where that is too short to tell.
    """
    if until_s - from_s < _STEADY_S:
        return None
    await asyncio.sleep(from_s)
    began, before_s = time.monotonic(), _cpu_s(site)
    await asyncio.sleep(until_s - from_s)
    return (_cpu_s(site) - before_s) / (time.monotonic() - began)


async def _watch(site: Site, num_legs: int, most: list[float], progress: Progress) -> None:
    """Keep the most memory that daemon and inference process had, and say how long it goes."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    while True:
        now = (site.daemon().memory_mib, site.inference().memory_mib)
        most[:] = map(max, most, now)
        progress(f"{num_legs} legs, {loop.time() - began:.0f} s ...")
        await asyncio.sleep(_LOOK_S)


async def _play(
    site: Site,
    reader: RoomReader,
    track: Track,
    *,
    rate: float = 1.0,
    delay_s: float = 0.0,
    seconds: float | None = None,
) -> _Played:
    """Play a track, or its first seconds, as a call; return when all its words are there."""
    await asyncio.sleep(delay_s)
    leg_uuid, call_id = uuid.uuid4(), player.new_call_id("bench")
    facts = CallFacts(call_id=call_id, leg=_LEG, language=track.language)
    await asyncio.to_thread(intake.register_leg, site.storage, str(leg_uuid), facts)
    end = None if seconds is None else int(seconds * LIVE_RATE)
    samples = track.samples[:end].astype("<i2").tobytes()
    streamed = await player.stream(leg_uuid, samples, site.address, rate=rate)
    if not streamed.complete:
        raise CallcoreError(f"the daemon ended a leg after {streamed.seconds:.1f} s")
    try:
        async with asyncio.timeout(_PATIENCE_S + _PATIENCE * track.seconds):
            events = await _events(reader, call_id)
    except TimeoutError:
        raise CallcoreError("the words of a leg were not done in time") from None
    spoken_at = streamed.began_at - _FRAME_S
    texts = [_text_event(at - spoken_at, event) for at, event in events if "segment" in event]
    states = {event.get("state") for _, event in events}
    heard = utterances(texts)
    return _Played(track, call_id, streamed, heard, "recording" in states, "behind" in states)


async def _events(reader: RoomReader, call_id: str) -> list[tuple[float, dict[str, Any]]]:
    """Return all events of a call with the Unix times at which the broker got them."""
    events: list[tuple[float, dict[str, Any]]] = []
    last_id = START
    while not events or events[-1][1]["type"] != "call.ended":
        for entry_id, event in await reader.after(room(call_id), last_id, _BLOCK_MS):
            events.append((position(entry_id)[0] / 1000, event))
            last_id = entry_id
    return events


def _text_event(at: float, event: Mapping[str, Any]) -> TextEvent:
    is_final = event["type"] == "transcript.final"
    return TextEvent(
        at=at,
        segment=event["segment"],
        start=event["start"],
        end=event["end"],
        text=event["text"],
        stable=None if is_final else event["stable"],
        latency=event["latency"] if is_final else None,
    )


def _unpublished(site: Site, played: _Played) -> int:
    """Return how many finals were stored that no page was told of."""
    stored = {segment.segment for segment in site.storage.live_segments(played.call_id)}
    return len(stored - {each.segment for each in played.heard if each.finals})


async def _all(work: Sequence[Coroutine[Any, Any, _Played]]) -> list[_Played]:
    """Return all results in order; the first failure stops the others."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(each) for each in work]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


# From what was played to figures.


def _figures(
    played: Sequence[_Played],
    cost: _Cost,
    speech: _Speech,
    unpublished: int,
    loop_lag_p99_ms: float | None,
) -> Figures:
    audio_s = sum(each.streamed.frames for each in played) * _FRAME_S
    cpu_s = cost.daemon_cpu_s + cost.inference_cpu_s
    seen = [word for each in played for word in seen_words(each.track.words, each.heard)]
    heard = [utterance for each in played for utterance in each.heard]
    finals = [final for utterance in heard for final in utterance.finals]
    promised = [utterance.promised() for utterance in heard]
    committed = sum(each for each, _ in promised)
    faults = [lost_and_doubled(speech.expected[id(each.track)], each.heard) for each in played]
    live = [(each.track.text, " ".join(_final_texts(each))) for each in played]
    whole = [(each.track.text, speech.offline[id(each.track)]) for each in played]
    wer_live, wer_whole = speech.scorer.error_rate(live), speech.scorer.error_rate(whole)
    num_partials = sum(len(utterance.partials) for utterance in heard)
    speech_s = sum(final.end - final.start for final in finals)
    latencies = [final.latency for final in finals if final.latency is not None]
    ends = [word.final for word in seen if word.ends_final]
    frames = sum(each.streamed.frames for each in played)
    return Figures(
        legs=len(played),
        audio_s=audio_s,
        legs_without_text=sum(each.no_text for each in played),
        daemon_cpu_s=cost.daemon_cpu_s,
        inference_cpu_s=cost.inference_cpu_s,
        cpu_per_audio_s=cpu_s / audio_s,
        legs_per_core=audio_s / cpu_s if cpu_s else math.inf,
        load=cost.load,
        shown_p50_s=_percentile([word.shown for word in seen], 0.5),
        shown_p95_s=_percentile([word.shown for word in seen], 0.95),
        committed_p50_s=_percentile([word.committed for word in seen], 0.5),
        committed_p95_s=_percentile([word.committed for word in seen], 0.95),
        final_p50_s=_percentile([word.final for word in seen], 0.5),
        final_p95_s=_percentile([word.final for word in seen], 0.95),
        end_to_final_p50_s=_percentile(ends, 0.5),
        end_to_final_p95_s=_percentile(ends, 0.95),
        ends_timed=len(ends),
        daemon_latency_p50_s=_percentile(latencies, 0.5),
        daemon_latency_p95_s=_percentile(latencies, 0.95),
        words=sum(len(each.track.words) for each in played),
        timed_words=len(seen),
        wer_live=wer_live,
        wer_whole_file=wer_whole,
        wer_difference=None if wer_live is None or wer_whole is None else wer_live - wer_whole,
        committed_words=committed,
        revised_share=sum(changed for _, changed in promised) / committed if committed else 0.0,
        partials=num_partials,
        partial_interval_s=speech_s / num_partials if num_partials else None,
        finals=len(finals),
        finals_lost=sum(lost for lost, _ in faults),
        finals_doubled=sum(doubled for _, doubled in faults),
        finals_unpublished=unpublished,
        loop_lag_p99_ms=loop_lag_p99_ms,
        daemon_mib_per_leg=cost.daemon_growth_mib / len(played),
        inference_mib=cost.inference_mib,
        inference_growth_mib=cost.inference_growth_mib,
        late_frames_share=sum(each.streamed.late_frames for each in played) / frames,
    )


def _final_texts(played: _Played) -> list[str]:
    return [final.text for utterance in played.heard for final in utterance.finals]


def _percentile(values: Sequence[float], share: float) -> float | None:
    """Return the value that ``share`` of them do not exceed."""
    ranked = sorted(values)
    return ranked[math.ceil(share * len(ranked)) - 1] if ranked else None
