"""The queue of decodes: engines that are down, processes that die or stop, jobs to blame."""

import asyncio
import logging
from typing import Any

import pytest

from callcore.decode_jobs import Job, Kind
from callcore.engines import DecodeJob, Hypothesis
from callcore.engines.scripted import ScriptedLiveTranscriber
from callcore.errors import EngineDown, EngineError, EngineNotLoaded
from callcore.live_daemon import live_engines
from callcore.recognizer import RefusedText
from callcore.recognizer_config import RecognizerConfig
from callcore.settings import load
from tests.support.recognition import FakeInference, audio
from tests.test_recognizer import Bench, call


class Remote(ScriptedLiveTranscriber):
    """Is down until a test says otherwise."""

    down = False
    asked = 0

    def decode(self, jobs: list[DecodeJob]) -> list[Hypothesis]:
        self.asked += 1
        if self.down:
            raise EngineDown("live", "its breaker is open", 2.0)
        return super().decode(jobs)


@pytest.fixture
def remote() -> Remote:
    return Remote()


async def test_finals_wait_until_an_engine_that_is_down_is_back(
    remote: Remote, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO)
    # One that is given up after two tries: being down is none.
    bench = Bench(inference=FakeInference(live=remote), config=RecognizerConfig(max_attempts=2))
    leg = bench.open()
    await bench.play(leg, call(1001))
    remote.down = True
    before = remote.asked
    await bench.play(leg, call(*range(1002, 1022)))
    assert leg.listener.words == ["w1001"]
    assert bench.queue.lanes["live"].rests
    # Every 2 s, not at every tick; what nobody will want later is forgotten, and no load.
    assert 5 <= remote.asked - before <= 20
    assert all(job.kind is Kind.FINAL for job in bench.queue._waiting)
    assert bench.queue.lanes["live"].load.level == 0
    assert bench.queue.behind_s(bench.clock.now) > 20.0
    remote.down = False
    await bench.finish()
    assert leg.listener.words == [f"w{i}" for i in range(1001, 1022)]
    assert bench.queue.behind_s(bench.clock.now) == 0.0
    told = [each.message for each in caplog.records if "engine" in each.message]
    assert told == ["engine is down", "engine answers again"]
    assert not bench.inference.kills


async def test_no_leg_is_opened_on_an_engine_that_is_down(remote: Remote):
    bench = Bench(inference=FakeInference(live=remote))
    leg = bench.open()
    remote.down = True
    await bench.play(leg, call(1001))
    assert bench.open().refused
    assert bench.open(language="sw").recognition
    remote.down = False
    await bench.tick(5.0)
    assert bench.open().recognition


async def test_an_engine_that_gives_no_time_is_not_asked_without_a_pause(remote: Remote):
    bench = Bench(inference=FakeInference(live=remote))
    leg = bench.open()
    await bench.play(leg, call(1001))
    before = remote.asked

    def decode(jobs: list[DecodeJob]) -> list[Hypothesis]:
        remote.asked += 1
        raise EngineDown("live", "no")

    bench.inference.live.decode = decode
    leg.ring.append(audio([(1002, 0.5), (0, 1.0)]).tobytes())
    for _ in range(20):
        await bench.tick(0.001)
    assert remote.asked - before <= 2
    leg.recognition.discard()
    await asyncio.sleep(0)


async def test_doubtful_finals_are_decoded_once_under_the_highest_load(remote: Remote):
    bench = Bench(inference=FakeInference(live=remote), config=RecognizerConfig(fall_s=1e9))
    seen: list[DecodeJob] = []
    plain = remote.decode

    def decode(jobs: list[DecodeJob]) -> list[Hypothesis]:
        seen.extend(jobs)
        return plain(jobs)

    bench.inference.live.decode = decode
    leg = bench.open()
    await bench.play(leg, call(1001))
    bench.queue.lanes["live"].load.level = bench.queue.lanes["live"].load.highest
    await bench.play(leg, call(1002))
    finals = [job.redo for job in seen if job.words]
    assert finals == [True, False]
    assert {job.stream for job in seen} == {leg.recognition.stream}
    assert seen[-1].start > 0


class Fragile(FakeInference):
    """Dies, or stops, while a poisonous job is in work; the others take longer."""

    def __init__(
        self, *, threads: int = 2, stops: bool = False, max_batch: int | None = None
    ) -> None:
        super().__init__(threads=threads, max_batch=max_batch)
        self.stops = stops

    def is_poisoned(self) -> bool:
        batches = [args[0] for _, _, method, args in self.open if method == "decode"]
        return any((job.samples == 1666).any() for jobs in batches for job in jobs)

    async def settle(self, engine: str | bool) -> None:
        for _ in range(1000):
            await asyncio.sleep(0)
            if self.is_poisoned() and not self.stops:
                self.die()
            elif self.is_poisoned():
                return
            elif self.open:
                self.answer()
            else:
                return


def say(bench: Bench, *words: int, language: str = "en") -> list[Any]:
    """Let a leg for each word say it at the same time."""
    legs = [bench.open(language=language) for _ in words]
    for leg, word in zip(legs, words, strict=True):
        leg.ring.append(audio([(0, 0.3), (word, 0.6), (0, 1.5)]).tobytes())
    return legs


async def ticks(bench: Bench, seconds: float) -> None:
    for _ in range(round(seconds / 0.064)):
        await bench.tick()


async def test_an_utterance_that_kills_the_process_takes_no_other_with_it():
    bench = Bench(inference=Fragile())
    # Of another engine of the same process as well.
    bad, good = say(bench, 1666, 1001)
    (other,) = say(bench, 1002, language="sw")
    await ticks(bench, 30.0)
    assert [leg.listener.words for leg in (bad, good, other)] == [[], ["w1001"], ["w1002"]]
    assert not good.listener.losses
    assert not other.listener.losses
    assert bad.listener.losses
    assert [final.text for *_, final in bad.listener.finals] == [""]


async def test_an_utterance_that_stops_the_process_is_given_up_and_no_other():
    bench = Bench(inference=Fragile(stops=True))
    (first,) = say(bench, 1001)
    await ticks(bench, 3.0)
    bad, good = say(bench, 1666, 1002)
    await ticks(bench, 800.0)
    assert [leg.listener.words for leg in (first, bad, good)] == [["w1001"], [], ["w1002"]]
    assert bench.inference.kills <= 1 + RecognizerConfig().max_stalls
    assert not good.listener.losses
    assert bad.listener.losses


async def test_kills_of_ours_cost_jobs_beside_the_stalled_one_no_try():
    inference = FakeInference()
    bench = Bench(inference=inference, config=RecognizerConfig(max_attempts=2))
    legs = [*say(bench, 1001), *say(bench, 1002, language="sw")]
    await ticks(bench, 3.0)
    for _ in range(5):
        inference.stopped = True
        for leg in legs:
            leg.ring.append(audio([(1003, 0.6), (0, 1.5)]).tobytes())
        await ticks(bench, 130.0)
    inference.stopped = False
    await ticks(bench, 5.0)
    for leg in legs:
        assert len(leg.listener.words) == 6
        assert not leg.listener.losses


async def test_a_machine_that_stood_still_kills_nothing():
    bench = Bench()
    leg = bench.open()
    await bench.play(leg, call(1001))
    bench.inference.stopped = True
    await bench.play(leg, audio([(1002, 0.5), (0, 1.0)]))
    await bench.tick(60.0)
    assert not bench.inference.kills
    bench.inference.stopped = False
    await bench.finish()
    assert leg.listener.words == ["w1001", "w1002"]


async def test_a_process_that_replaced_an_idle_one_is_given_time_to_load():
    bench = Bench()
    leg = bench.open()
    await bench.play(leg, call(1001))
    lane = bench.queue.lanes["live"]
    assert lane.answered
    bench.inference.die()
    assert not lane.answered
    bench.inference.stopped = True
    await bench.play(leg, audio([(1002, 0.5), (0, 40.0)]))
    assert not bench.inference.kills
    assert bench.recognizer.load() == 0.0, "loading is no work"
    leg.recognition.discard()


async def test_while_there_is_no_process_none_is_replaced_and_the_next_has_all_its_time():
    bench = Bench()
    leg = bench.open()
    await bench.play(leg, call(1001))
    bench.inference.stopped = True
    bench.inference.pid = None
    await bench.play(leg, audio([(1002, 0.5), (0, 200.0)]))
    bench.inference.pid = 7
    await ticks(bench, 100.0)
    assert not bench.inference.kills
    leg.recognition.discard()


async def test_a_leg_that_cannot_take_its_result_costs_the_others_nothing(
    monkeypatch: pytest.MonkeyPatch,
):
    bench = Bench()
    legs = say(bench, 1001, 1002, 1003)

    def heard(job: Job, now: float) -> None:
        raise TypeError

    monkeypatch.setattr(legs[0].recognition, "heard", heard)
    await ticks(bench, 5.0)
    assert [leg.listener.words for leg in legs] == [[], ["w1002"], ["w1003"]]
    for leg in legs:
        leg.recognition.discard()


async def test_no_leg_is_opened_while_finals_wait_for_an_engine_that_is_probed(remote: Remote):
    bench = Bench(inference=FakeInference(live=remote))
    leg = bench.open()
    remote.down = True
    await bench.play(leg, call(1001))
    bench.clock.now += 5.0
    assert not bench.queue.lanes["live"].rests
    assert bench.open().refused is RefusedText.DOWN
    leg.recognition.discard()
    assert bench.open().recognition, "nothing waits: it is the probe"


async def test_each_engine_sheds_by_itself():
    bench = Bench()
    leg, other = bench.open(), bench.open(language="sw")
    bench.queue.lanes["live"].load.level = 6
    assert bench.recognizer.shed == 6
    words = audio([(0, 0.5), *((word, 0.4) for word in range(1001, 1006)), (0, 1.0)])
    for begin in range(0, len(words), 512):
        for each in (leg, other):
            each.ring.append(words[begin : begin + 512].tobytes())
        await bench.tick()
        bench.queue.lanes["live"].load.level = 6
    assert not leg.listener.partials
    assert other.listener.partials
    assert leg.listener.words == other.listener.words


async def test_legs_of_a_dearer_engine_are_fewer():
    costs = {"live": 0.05, "live_multilingual": 0.15}
    bench = Bench(config=RecognizerConfig(max_load=0.9, leg_costs=costs))
    opened = [bench.open(language="sw") for _ in range(30)]
    assert sum(leg.recognition is not None for leg in opened) == 6
    assert opened[-1].refused is RefusedText.BUSY
    assert bench.open().refused is RefusedText.BUSY, "the cores are the same"


async def test_a_detector_that_always_fails_is_asked_less_and_less_and_legs_are_refused(
    caplog: pytest.LogCaptureFixture,
):
    class Broken:
        asked = 0

        def initial_state(self) -> None:
            self.asked += 1
            raise EngineError("vad", "no model")

    inference = FakeInference()
    detector = inference.objects["vad"]
    broken: Any = Broken()
    inference.objects["vad"] = broken
    bench = Bench(inference=inference)
    (leg,) = say(bench, 1001)
    await ticks(bench, 30.0)
    assert 3 <= broken.asked <= 20
    assert [each.levelname for each in caplog.records] == ["ERROR"]
    assert bench.open().refused is RefusedText.DOWN
    inference.objects["vad"] = detector
    await ticks(bench, 10.0)
    assert leg.listener.words == ["w1001"]
    assert bench.open().recognition


async def test_a_detector_that_failed_for_a_while_lets_legs_in_again_though_none_is_open():
    inference = FakeInference()
    detector = inference.objects["vad"]
    broken: Any = object()
    bench = Bench(inference=inference)
    leg = bench.open()
    await bench.play(leg, call(1001))
    inference.objects["vad"] = broken
    leg.ring.append(audio([(1002, 0.5), (0, 1.0)]).tobytes())
    await ticks(bench, 5.0)
    leg.recognition.discard()
    assert bench.open().refused is RefusedText.DOWN
    inference.objects["vad"] = detector
    await ticks(bench, 6.0)
    assert bench.open().recognition


async def test_processes_that_die_before_they_have_loaded_cost_no_final_a_try():
    bench = Bench(config=RecognizerConfig(max_attempts=2))
    (leg,) = say(bench, 1001)
    for _ in range(10):
        for _ in range(30):
            await bench.tick(answer="vad")
        assert bench.inference.open, "something waits for the model"
        bench.inference.die()
    await bench.finish()
    assert leg.listener.words == ["w1001"]
    assert not leg.listener.losses


async def test_an_engine_that_cannot_be_loaded_is_asked_again_and_hears_no_new_legs(
    caplog: pytest.LogCaptureFixture,
):
    class NotLoaded(ScriptedLiveTranscriber):
        asked = 0

        def decode(self, jobs: list[DecodeJob]) -> list[Hypothesis]:
            self.asked += 1
            raise EngineNotLoaded("live", "CUDA is busy")

    engine = NotLoaded()
    inference = FakeInference(live=engine)
    bench = Bench(inference=inference, config=RecognizerConfig(max_attempts=2))
    (leg,) = say(bench, 1001)
    await ticks(bench, 60.0)
    assert 5 <= engine.asked <= 15
    assert [each.message for each in caplog.records] == ["engine is down"]
    assert bench.open().refused is RefusedText.DOWN
    inference.objects["live"] = ScriptedLiveTranscriber()
    await ticks(bench, 6.0)
    assert leg.listener.words == ["w1001"]
    assert bench.open().recognition


async def test_an_engine_that_takes_one_job_a_request_is_asked_in_as_many_as_it_has_connections():
    inference = FakeInference(threads=3, max_batch=1)
    bench = Bench(inference=inference)
    legs = say(bench, *range(1001, 1009))
    for _ in range(40):
        await bench.tick(answer="vad")
    assert [each[2] for each in inference.open] == ["decode"] * 3
    await ticks(bench, 5.0)
    assert [leg.listener.words for leg in legs] == [[f"w{i}"] for i in range(1001, 1009)]
    assert set(inference.batches) == {1}


def test_remote_engines_are_asked_with_one_job_by_as_many_threads_as_connections(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("callcore.model_store.find", lambda models, name: name)
    local = live_engines(load({}))
    assert {spec.max_batch for spec in local.values()} == {None}
    remote = live_engines(
        load(
            {
                "CALLCORE_TRANSCRIPTION_URL": "http://192.0.2.1/v1",
                "CALLCORE_TRANSCRIPTION_MODEL": "m",
                "CALLCORE_TRANSCRIPTION_CONNECTIONS": "5",
            }
        )
    )
    live = remote["live"]
    assert (live.threads, live.max_batch) == (5, 1)
    assert remote["live_multilingual"] == live


class Frail(Fragile):
    """A remote engine: a poisonous job brings it down for a second, with all that is in work."""

    broken = 0

    def __init__(self) -> None:
        super().__init__(threads=4, max_batch=1)

    def die(self) -> None:
        self.broken += 1
        asked = [each for each in self.open if each[2] == "decode"]
        self.open = [each for each in self.open if each not in asked]
        for future, engine, *_ in asked:
            future.set_exception(EngineDown(engine, "broke off", 1.0))


@pytest.mark.parametrize("max_attempts", [1, 10])
async def test_an_utterance_that_brings_a_remote_engine_down_each_time_is_given_up_alone(
    max_attempts: int,
):
    inference = Frail()
    bench = Bench(inference=inference, config=RecognizerConfig(max_attempts=max_attempts))
    bad, *good = say(bench, 1666, *range(1001, 1008))
    said = [[f"w{i}"] for i in range(1001, 1008)]
    for number in range(2001, 2021):
        spoken = audio([(number, 0.6), (0, 2.44)])
        for begin in range(0, len(spoken), 512):
            for leg in good:
                leg.ring.append(spoken[begin : begin + 512].tobytes())
            await bench.tick()
        for words in said:
            words.append(f"w{number}")
    assert [leg.listener.words for leg in good] == said
    assert not any(leg.listener.losses for leg in good)
    assert max(max(leg.listener.latencies) for leg in good) < 6.0
    (final,) = bad.listener.spans
    assert final[2] == ""
    assert bad.listener.losses == [final[:2]]
    # Three before it is tried alone, then two for each try: with others, and after them.
    assert inference.broken <= 3 + 2 * max_attempts
    assert not inference.kills


async def test_where_nobody_else_is_answered_it_is_the_engine_that_is_down():
    bench = Bench(inference=Frail(), config=RecognizerConfig(max_attempts=2))
    (bad,) = say(bench, 1666)
    await ticks(bench, 120.0)
    (job,) = bench.queue._waiting
    assert job.attempts == 0
    assert not bad.listener.finals
    bad.recognition.discard()


async def test_outages_for_everybody_cost_no_final_a_try(remote: Remote):
    """However often it goes down and comes back."""
    inference = FakeInference(threads=4, live=remote, max_batch=1)
    bench = Bench(inference=inference, config=RecognizerConfig(max_attempts=1))
    legs = [bench.open() for _ in range(6)]
    said = [f"w{i}" for i in range(1001, 1061)]
    for number in range(1001, 1061):
        for leg in legs:
            leg.ring.append(audio([(number, 0.6), (0, 1.4)]).tobytes())
        for _ in range(31):
            remote.down = bench.clock.now % 7.0 < 4.0
            await bench.tick()
    remote.down = False
    await bench.finish()
    assert [leg.listener.words for leg in legs] == [said] * 6
    assert not any(leg.listener.losses for leg in legs)


async def test_an_endpoint_with_a_limit_of_requests_loses_no_words(remote: Remote):
    """Some pieces are answered and some are not, but it is nobody's fault."""
    left = 3

    def decode(jobs: list[DecodeJob]) -> list[Hypothesis]:
        nonlocal left
        left -= 1
        if left < 0:
            raise EngineDown("live", "answered 429", 1.0)
        return ScriptedLiveTranscriber.decode(remote, jobs)

    bench = Bench(
        inference=FakeInference(threads=8, live=remote, max_batch=1),
        config=RecognizerConfig(max_attempts=2),
    )
    bench.inference.live.decode = decode
    legs = [bench.open() for _ in range(8)]
    for number in range(1001, 1031):
        for leg in legs:
            leg.ring.append(audio([(number, 0.6), (0, 3.4)]).tobytes())
        for tick in range(62):
            left = left if tick % 16 else 3
            await bench.tick()
    for _ in range(60):
        left = 3
        await ticks(bench, 1.0)
    assert [leg.listener.words for leg in legs] == [[f"w{i}" for i in range(1001, 1031)]] * 8
    assert not any(leg.listener.losses for leg in legs)
