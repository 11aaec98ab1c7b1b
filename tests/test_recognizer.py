import asyncio
import gc
import itertools
import os
import signal
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from callcore.call_language import CallLanguage
from callcore.endpointing import EndpointConfig
from callcore.engines import LIVE_RATE, Hypothesis
from callcore.engines.scripted import ScriptedLiveTranscriber
from callcore.errors import EngineDown, EngineError
from callcore.inference import EngineSpec, InferenceProcess
from callcore.recognizer import Recognizer, RefusedText
from callcore.recognizer_config import RecognizerConfig
from callcore.ringbuffer import RingBuffer
from tests.support.recognition import Clock, FakeInference, Listener, audio

FRAME = 160
SECOND = LIVE_RATE


class Bench:
    """A recogniser over a fake inference, driven by hand."""

    def __init__(self, *, inference=None, config=None):
        self.clock = Clock()
        self.inference = inference or FakeInference()
        self.recognizer = Recognizer(self.inference, clock=self.clock, config=config)
        self.queue = self.recognizer._queue
        self.legs = []

    def open(
        self, samples=None, *, language="en", spill=None, capacity=60 * SECOND, call_language=None
    ):
        leg = SimpleNamespace(ring=RingBuffer(capacity), listener=Listener(), samples=samples)
        got = self.recognizer.open_leg(
            leg.ring, leg.listener, language=language, spill=spill, call_language=call_language
        )
        leg.refused = got if isinstance(got, RefusedText) else None
        leg.recognition = got if leg.refused is None else None
        self.legs.append(leg)
        return leg

    async def play(self, leg, samples, *, answer=True):
        """Append samples in ticks of 64 ms."""
        for begin in range(0, len(samples), 512):
            part = samples[begin : begin + 512]
            leg.ring.append(part.tobytes())
            await self.tick(len(part) / LIVE_RATE, answer=answer)

    async def tick(self, seconds=0.064, *, answer=True):
        self.clock.now += seconds
        self.recognizer.tick()
        if answer:
            await self.inference.settle(answer)
        else:
            await asyncio.sleep(0)

    async def settle(self):
        await self.inference.settle(True)

    async def finish(self, *legs):
        tasks = [asyncio.create_task(leg.recognition.finish()) for leg in legs or self.legs]
        for _ in range(2000):
            await self.tick()
            if all(task.done() for task in tasks):
                break
            await asyncio.sleep(0)
        async with asyncio.timeout(1):
            await asyncio.gather(*tasks)


def call(*words, gap=1.0, length=0.4):
    """Return samples of a call: each word held, gaps in between; then a gap."""
    pieces = [(0, 0.5)]
    for word in words:
        pieces += [(word, length), (0, gap)]
    return audio(pieces)


async def test_utterances_come_as_finals_with_their_words_and_places():
    bench = Bench()
    leg = bench.open()
    await bench.play(leg, call(1001, 1002))
    assert leg.listener.words == ["w1001", "w1002"]
    (_, start, end, first), (_, begin, *_) = leg.listener.finals
    assert start <= 0.5 * SECOND - 0.2 * SECOND
    assert end >= 0.9 * SECOND + 0.15 * SECOND
    assert begin >= end
    (word,) = first.words
    assert start / SECOND + word.s == pytest.approx(0.5, abs=0.001)


async def test_the_load_is_the_share_of_the_newest_seconds_that_decoders_worked():
    bench = Bench()
    assert bench.recognizer.load() == 0.0
    leg = bench.open()
    await bench.play(leg, call(1001))  # the first answer of a process may have loaded its model
    await bench.play(leg, audio([(1002, 2.0), (0, 1.0)]), answer="vad")
    assert 0.0 < bench.recognizer.load() == bench.recognizer.load() < 1.0
    await bench.settle()
    bench.clock.now += 60
    assert bench.recognizer.load() == 0.0


async def talk(bench, legs, seconds, *, per_decode_s):
    """Let everybody say a word each 2 s, and the decoder take so long for each job."""
    for second in range(seconds):
        for leg in legs:
            leg.ring.append(audio([(1001 + second, 0.5), (0, 1.5)]).tobytes())
        for _ in range(32):
            bench.clock.now += 0.0625
            bench.recognizer.tick()
            await bench.inference.settle("vad")
            due = [i for i, each in enumerate(bench.inference.open) if each[2] == "decode"]
            since = [call.since for lane in bench.lanes for call in lane.running.values()]
            if due and bench.clock.now - min(since) >= per_decode_s * bench.inference.batches[-1]:
                bench.inference.answer(due[0])
                await asyncio.sleep(0)
                await asyncio.sleep(0)


def limited(max_load=0.9, *, threads=1, **config):
    bench = Bench(
        inference=FakeInference(threads=threads),
        config=RecognizerConfig(max_load=max_load, **config),
    )
    bench.lanes = set(bench.queue.lanes.values())
    return bench


def meter_of(bench):
    return bench.recognizer._admission[bench.queue.lanes["live"]].meter


def room(bench, most=200):
    """Open legs until one is refused; return how many were opened."""
    for number in range(most):
        if bench.open().refused:
            bench.legs.pop()
            return number
    return most


async def test_a_burst_is_admitted_up_to_what_legs_are_assumed_to_cost():
    # 60 legs within a second: none of them has been measured yet.
    assert room(limited(0.9), 60) == 18
    assert room(limited(0.9, threads=2), 60) == 36
    assert room(limited(0.9, leg_cost=0.01), 60) == 60
    assert room(limited(float("inf")), 60) == 60


async def test_an_idle_decoder_takes_a_leg_whatever_it_costs():
    bench = limited(0.1, leg_cost=3.0)
    assert room(bench) == 1
    bench.legs[0].recognition.discard()
    assert room(bench) == 1


async def test_a_decoder_that_is_busy_takes_no_leg_and_gives_up_no_word_of_the_others():
    bench = limited(0.9, leg_cost=0.01)
    legs = [bench.open() for _ in range(4)]
    # Four finals of 0.25 s each 2 s: half of the time of one thread, and 0.125 a leg.
    await talk(bench, legs, 30, per_decode_s=0.25)
    assert meter_of(bench).load == pytest.approx(0.5, abs=0.05)
    assert bench.recognizer.load() == pytest.approx(0.5, abs=0.05)  # all share the cores
    opened = room(bench)
    assert 1 <= opened <= 4
    late = bench.legs[4:]
    await talk(bench, [*legs, *late], 20, per_decode_s=0.25)
    assert bench.open().refused
    bench.legs.pop()
    await bench.finish()
    assert all(len(leg.listener.words) == 50 for leg in legs)
    assert all(len(leg.listener.words) == 20 for leg in late)


async def test_silent_legs_make_room_but_never_count_for_nothing():
    bench = limited(0.9)
    first = room(bench)
    await bench.tick(120.0)
    for _ in range(200):
        await bench.tick()
    second = room(bench, 500)
    assert first < second <= 0.9 / (0.25 * 0.05)


async def test_once_legs_are_refused_it_takes_some_room_before_one_is_admitted():
    bench = limited(0.9)
    assert room(bench) == 18
    # One hangs up, and the next one still comes too early: no call gets text by chance.
    bench.legs.pop().recognition.discard()
    assert room(bench) == 0
    for _ in range(3):
        bench.legs.pop().recognition.discard()
    assert room(bench) == 0
    bench.legs.pop().recognition.discard()
    assert room(bench) == 5


async def test_partials_are_no_reason_to_refuse_a_leg():
    bench = limited(0.9, partial_intervals_s=(0.1,) * 8, overloaded_s=1e9)
    leg = bench.open()
    await bench.play(leg, call(1000))  # the first answer of a process does not count
    for word in range(1001, 1011):
        for begin in range(0, 8 * SECOND // 5, 512):
            leg.ring.append(audio([(word if begin else 0, 0.064)]).tobytes())
            await bench.tick(answer="vad")
            await bench.settle() if begin % 1024 else None
    meter = meter_of(bench)
    assert meter.load > 0.2
    assert meter.needed_load < meter.load / 3
    assert room(bench, 10) == 10


async def test_loading_the_model_is_no_load():
    bench = limited(0.9)
    leg = bench.open()
    await bench.play(leg, audio([(1001, 0.5), (0, 20.0)]), answer="vad")
    assert bench.recognizer.load() == 0.0
    assert bench.open().recognition
    await bench.settle()
    assert bench.recognizer.load() == 0.0


async def test_engines_of_this_machine_share_its_room_and_a_remote_one_has_its_own():
    bench = limited(0.9)
    assert room(bench) == 18
    assert bench.open(language="sw").refused is RefusedText.BUSY, "they share the cores"
    bench = limited(0.9, remote=frozenset({"live_multilingual"}))
    assert room(bench) == 18
    assert bench.open(language="sw").recognition


async def test_silence_calls_no_decoder():
    bench = Bench()
    leg = bench.open()
    await bench.play(leg, audio([(0, 5.0)]))
    assert leg.listener.finals == leg.listener.partials == bench.inference.batches == []


async def test_partials_grow_while_somebody_speaks_and_their_words_become_stable():
    bench = Bench()
    leg = bench.open()
    await bench.play(leg, call(*range(1001, 1009), gap=0.1))
    shown = [text for _, text, _ in leg.listener.partials]
    assert len(shown) >= 3
    assert all(later.startswith(text) for text, later in itertools.pairwise(shown[:-1]))
    assert leg.listener.partials[-1][2] > 0
    await bench.finish()
    assert leg.listener.revised == [False]


async def test_the_final_after_a_pause_was_decoded_before_the_endpoint():
    bench = Bench()
    leg = bench.open()
    await bench.play(leg, call(1001, gap=0.3))
    assert not leg.listener.finals
    decodes = len(bench.inference.batches)
    await bench.play(leg, audio([(0, 0.3)]))
    assert leg.listener.words == ["w1001"]
    assert len(bench.inference.batches) == decodes
    assert leg.listener.latencies[0] == pytest.approx(0.45, abs=0.1)


async def test_a_pause_within_an_utterance_costs_nothing_but_a_decode():
    bench = Bench()
    leg = bench.open()
    await bench.play(leg, audio([(0, 0.3), (1001, 0.6), (0, 0.3), (1002, 0.6), (0, 1.0)]))
    assert leg.listener.words == ["w1001", "w1002"]
    assert len(leg.listener.finals) == 1


async def test_noise_gives_an_empty_final_and_no_words():
    bench = Bench()
    leg = bench.open()
    noise = np.random.default_rng(0).integers(-3000, 3000, SECOND).astype(np.int16)
    await bench.play(leg, np.concatenate([noise, np.zeros(SECOND, np.int16)]))
    assert leg.listener.words == []
    assert [final.text for *_, final in leg.listener.finals] == [""]


async def test_finish_ends_the_open_utterance_and_waits_for_its_final():
    bench = Bench()
    leg = bench.open()
    await bench.play(leg, audio([(0, 0.3), (1001, 0.6)])[:-77])
    assert not leg.listener.finals
    await bench.finish()
    assert leg.listener.words == ["w1001"]
    assert leg.listener.finals[0][2] <= leg.ring.end
    await leg.recognition.finish()  # again: at once


async def test_finish_of_a_leg_without_audio_returns():
    bench = Bench()
    bench.open()
    await bench.finish()


async def test_a_discarded_leg_hears_nothing_more():
    bench = Bench()
    leg = bench.open()
    await bench.play(leg, call(1001, gap=0.3))
    leg.ring.append(audio([(0, 0.5)]).tobytes())
    await bench.tick(answer=False)
    leg.recognition.discard()
    await bench.settle()
    assert leg.listener.finals == []
    async with asyncio.timeout(1):
        await leg.recognition.finish()


async def test_closing_frees_who_waits_for_the_end():
    bench = Bench()
    leg = bench.open()
    await bench.play(leg, audio([(1001, 0.6)]), answer=False)
    waiting = asyncio.create_task(leg.recognition.finish())
    await asyncio.sleep(0)
    await bench.recognizer.close()
    async with asyncio.timeout(1):
        await waiting


async def test_jobs_of_several_legs_are_decoded_together_within_the_limit():
    bench = Bench()
    legs = [bench.open() for _ in range(10)]
    samples = call(1001)
    for begin in range(0, len(samples), 512):
        for leg in legs:
            leg.ring.append(samples[begin : begin + 512].tobytes())
        await bench.tick()
    assert all(leg.listener.words == ["w1001"] for leg in legs)
    assert max(bench.inference.batches) == RecognizerConfig().max_batch


async def test_finals_go_before_partials():
    bench = Bench()
    talker, other = bench.open(), bench.open()
    await bench.play(talker, call(1001, gap=0.1))  # a partial's worth of speech
    await bench.play(talker, audio([(1002, 0.9)]), answer="vad")  # one partial is in work
    third = bench.open()
    third.ring.append(audio([(1004, 0.8)]).tobytes())
    other.ring.append(call(1003).tobytes())
    for _ in range(8):
        await bench.tick(answer="vad")
    order = sorted(bench.queue._waiting, key=lambda job: job.order)
    assert [job.kind.name for job in order][:2] == ["FINAL", "PARTIAL"]
    await bench.settle()
    assert other.listener.words == ["w1003"]


async def test_under_load_partials_become_rare_and_stop_and_no_final_is_lost():
    bench = Bench()
    leg = bench.open()
    words = iter(range(1001, 2000))
    level = []
    for _ in range(30):
        # The detector keeps up, the decoder does not.
        await bench.play(leg, call(next(words), gap=0.7), answer="vad")
        level.append(bench.queue.lanes["live"].load.level)
    assert level[-1] == bench.queue.lanes["live"].load.highest
    assert not bench.queue.lanes["live"].load.speculates
    await bench.finish()
    assert leg.listener.words == [f"w{i}" for i in range(1001, 1031)]
    for _ in range(500):
        await bench.tick()
    assert bench.queue.lanes["live"].load.level == 0


async def test_the_leg_is_told_when_its_words_fall_behind_and_when_they_are_back():
    bench = Bench()
    leg = bench.open()
    await bench.play(leg, call(1001))
    bench.inference.stopped = True
    await bench.play(leg, audio([(0, 5.0)]))
    assert leg.listener.lags == ["behind"]
    bench.inference.stopped = False
    await bench.settle()
    await bench.tick()
    assert leg.listener.lags == ["behind", "ok"]


async def test_an_inference_process_that_does_not_answer_is_replaced_and_no_word_is_lost():
    bench = Bench()
    leg = bench.open()
    samples = call(*range(1001, 1030))
    await bench.play(leg, samples[: 3 * SECOND])
    bench.inference.stopped = True
    await bench.play(leg, samples[3 * SECOND :])
    assert bench.inference.kills == 1
    await bench.finish()
    assert leg.listener.words == [f"w{i}" for i in range(1001, 1030)]


async def test_a_process_that_still_loads_its_model_is_given_time():
    bench = Bench()
    leg = bench.open()
    bench.inference.stopped = True
    await bench.play(leg, audio([(0, 50.0)]))
    assert bench.inference.kills == 0


async def test_a_process_that_never_finishes_loading_is_replaced():
    bench = Bench()
    leg = bench.open()
    bench.inference.stopped = True
    await bench.play(leg, audio([(0, 125.0)]))
    assert bench.inference.kills == 1


async def test_a_leg_ends_even_where_no_engine_ever_answers():
    """A model that cannot be loaded once kept calls live for ever."""
    bench = Bench(config=RecognizerConfig(given_up_s=0.01))
    leg = bench.open()
    bench.inference.stopped = True
    await bench.play(leg, call(1001))
    async with asyncio.timeout(10):
        await leg.recognition.finish()
    assert leg.listener.words == []


class Mortal(ScriptedLiveTranscriber):
    """A remote engine, which may be down."""

    down = False

    def decode(self, jobs):
        if self.down:
            raise EngineDown("live", "refused", retry_after_s=5.0)
        return super().decode(jobs)


async def finishes(bench, leg, *, beside):
    """Return whether a leg that has ended is over soon, while another one goes on talking."""
    ending = asyncio.create_task(leg.recognition.finish())
    for number in range(2000):
        beside.ring.append(audio([(1003 if number % 16 < 8 else 0, 0.064)]).tobytes())
        await bench.tick()
        await asyncio.sleep(0.0005)
        if ending.done():
            return True
    ending.cancel()
    return False


async def test_a_leg_ends_although_the_engine_is_down_and_others_talk():
    """The detector's answers about other legs were once taken for progress."""
    live = Mortal()
    bench = Bench(inference=FakeInference(live=live), config=RecognizerConfig(given_up_s=0.05))
    leg, other = bench.open(), bench.open()
    live.down = True
    await bench.play(leg, call(1001))
    assert await finishes(bench, leg, beside=other)


async def test_what_is_given_up_is_withdrawn_and_the_listener_knows_what_it_lost():
    live = Mortal()
    bench = Bench(inference=FakeInference(live=live), config=RecognizerConfig(given_up_s=0.05))
    leg, other = bench.open(), bench.open()
    await bench.play(leg, audio([(0, 0.5), (1001, 1.5)]))
    assert leg.listener.partials
    live.down = True
    await bench.play(leg, audio([(0, 1.0), (1002, 1.0)]))
    assert not leg.listener.finals
    assert await finishes(bench, leg, beside=other)
    assert [text for *_, text in leg.listener.spans] == ["", ""]
    assert leg.listener.losses == [each[:2] for each in leg.listener.spans]


async def test_audio_that_no_detector_has_heard_is_lost_when_the_leg_is_given_up():
    bench = Bench(config=RecognizerConfig(given_up_s=0.01))
    leg = bench.open()
    bench.inference.stopped = True
    await bench.play(leg, call(1001))
    async with asyncio.timeout(10):
        await leg.recognition.finish()
    assert leg.listener.losses == [(0, leg.ring.end)]


async def test_finals_of_a_leg_without_spill_wait_in_bounded_memory(monkeypatch):
    monkeypatch.setattr("callcore.leg_recognition._KEPT_S", 10.0)
    bench = Bench()
    leg = bench.open()
    await bench.play(leg, call(*range(1001, 1011), length=3.0), answer="vad")
    kept = [len(job.samples) for job in leg.recognition._finals if job.result is None]
    assert sum(kept) <= 10 * SECOND
    await bench.finish()
    texts = [text for *_, text in leg.listener.spans]
    assert len(texts) == 10
    assert texts[-1] == "w1010"
    assert texts.count("") == len(leg.listener.losses) == 10 - len(kept)


async def test_a_leg_that_is_over_keeps_no_audio():
    bench = Bench()
    leg = bench.open()
    await bench.play(leg, call(1001, 1002), answer="vad")
    await bench.play(leg, audio([(1003, 1.0)]), answer="vad")
    gone = weakref.ref(leg.recognition)
    gc.disable()
    try:
        leg.recognition.discard()
        leg.recognition = None
        bench.inference.die()
        await bench.tick()
        assert gone() is None
    finally:
        gc.enable()


async def test_a_spill_that_stalls_for_a_second_costs_no_word():
    bench = Bench()
    samples = call(*range(1001, 1021))

    def spill(start, end):
        if bench.clock.now < works_from:
            raise OSError("disk is busy")
        return samples[start:end]

    leg = bench.open(spill=spill, capacity=4 * SECOND)
    bench.inference.stopped = True
    await bench.play(leg, samples)
    bench.inference.stopped = False
    works_from = bench.clock.now + 1.5
    for _ in range(400):
        await bench.tick()
        await asyncio.gather(*bench.queue.fetches)
    await bench.finish()
    assert leg.listener.losses == []
    assert leg.listener.words == [f"w{i}" for i in range(1001, 1021)]


async def test_what_the_ring_has_lost_is_read_from_the_spill():
    bench = Bench()
    samples = call(*range(1001, 1021))
    reads = []

    def spill(start, end):
        reads.append((start, end))
        return samples[start:end]

    leg = bench.open(spill=spill, capacity=4 * SECOND)
    bench.inference.stopped = True
    await bench.play(leg, samples)
    bench.inference.stopped = False
    await bench.settle()
    for _ in range(400):
        await bench.tick()
        await asyncio.gather(*bench.queue.fetches)
    await bench.finish()
    assert leg.listener.words == [f"w{i}" for i in range(1001, 1021)]
    assert reads


async def test_a_spill_that_fails_loses_its_own_words_only_and_the_leg_still_ends():
    bench = Bench(config=RecognizerConfig(max_attempts=2))

    def spill(start, end):
        raise OSError("disk is gone")

    leg = bench.open(spill=spill, capacity=4 * SECOND)
    bench.inference.stopped = True
    await bench.play(leg, call(*range(1001, 1021)))
    bench.inference.stopped = False
    for _ in range(50):
        await bench.tick()
        await asyncio.gather(*bench.queue.fetches)
    await bench.finish()
    assert leg.listener.words[-1] == "w1020"


async def test_finals_of_a_leg_without_spill_keep_their_samples_while_they_wait():
    bench = Bench()
    leg = bench.open(capacity=4 * SECOND)
    samples = call(*range(1001, 1021))
    await bench.play(leg, samples, answer="vad")
    await bench.finish()
    assert leg.listener.words == [f"w{i}" for i in range(1001, 1021)]


async def test_an_utterance_that_kills_the_process_each_time_is_given_up_alone():
    class Poisoned(ScriptedLiveTranscriber):
        def decode(self, jobs):
            results = super().decode(jobs)
            if any("w1666" in each.text for each in results):
                raise EngineError("live", "its process died")
            return results

    bench = Bench(inference=FakeInference(live=Poisoned()))
    bad, good = bench.open(), bench.open()
    for leg, word in ((bad, 1666), (good, 1001)):
        leg.ring.append(call(word, 1002).tobytes())
    for _ in range(300):
        await bench.tick()
    assert bad.listener.words == ["w1002"]
    assert [final.text for *_, final in bad.listener.finals] == ["", "w1002"]
    assert bad.listener.losses == [bad.listener.finals[0][1:3]]
    assert good.listener.losses == []
    assert good.listener.words == ["w1001", "w1002"]


async def test_an_answer_with_too_few_results_is_a_failure():
    class Short(ScriptedLiveTranscriber):
        calls = 0

        def decode(self, jobs):
            self.calls += 1
            return super().decode(jobs) if self.calls > 2 else []

    bench = Bench(inference=FakeInference(live=Short()))
    leg = bench.open()
    await bench.play(leg, call(1001))
    await bench.finish()
    assert leg.listener.words == ["w1001"]


async def test_the_detector_may_fail_now_and_then():
    bench = Bench()
    bench.inference.objects["vad"].fail_times = 7
    leg = bench.open()
    await bench.play(leg, call(1001, 1002))
    await bench.finish()
    assert leg.listener.words == ["w1001", "w1002"]


async def test_english_goes_to_one_engine_and_everything_else_to_the_other():
    bench = Bench()
    used = {}
    for language in ("en", "fr", None):
        leg = bench.open(language=language)
        leg.ring.append(call(1001).tobytes())
        bench.inference.stopped = True
        engines = set()
        for _ in range(10):
            await bench.tick()
            while bench.inference.open:
                engines.add(bench.inference.open[0][1])
                bench.inference.answer()
                await asyncio.sleep(0)
        bench.inference.stopped = False
        used[language] = engines - {"vad"}
    assert used == {"en": {"live"}, "fr": {"live_multilingual"}, None: {"live_multilingual"}}


async def test_two_names_of_one_model_share_its_threads():
    inference = FakeInference()
    inference.engines["live_multilingual"] = inference.engines["live"]
    recognizer = Recognizer(inference)
    assert recognizer._queue.lanes["live"] is recognizer._queue.lanes["live_multilingual"]
    del inference.engines["live"]
    assert Recognizer(inference)._queue.lanes["live"].engine == "live_multilingual"
    del inference.engines["live_multilingual"]
    with pytest.raises(ValueError, match="no engine"):
        Recognizer(inference)


class Linguist(ScriptedLiveTranscriber):
    """Takes levels above 2000 for French, and is unsure of short utterances."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def decode(self, jobs):
        results = []
        for job, heard in zip(jobs, super().decode(jobs), strict=True):
            self.asked.append((heard.text, job.language))
            french = any(int(word[1:]) > 2000 for word in heard.text.split())
            language = job.language or ("fr" if french else "en")
            bad = -1.2 if job.language and language != ("fr" if french else "en") else -0.1
            results.append(
                Hypothesis(heard.text, heard.words, language, bad, 0.0, language_prob=0.9)
            )
        return results


async def test_the_language_is_found_once_there_is_enough_speech_and_then_kept():
    live = Linguist()
    bench = Bench(inference=FakeInference(live=live))
    leg = bench.open(language=None)
    await bench.play(leg, call(1001))  # too short
    assert leg.recognition.language is None
    await bench.play(leg, call(2001, length=3.0))
    assert leg.recognition.language == "fr"
    await bench.play(leg, call(2002))
    assert live.asked[-1] == ("w2002", "fr")


async def test_a_language_that_turns_out_wrong_is_found_anew():
    live = Linguist()
    bench = Bench(inference=FakeInference(live=live))
    leg = bench.open(language=None)
    await bench.play(leg, call(2001, length=3.0))
    await bench.play(leg, call(1001, 1002))
    assert leg.recognition.language is None
    await bench.play(leg, call(1003, length=3.0))
    assert leg.recognition.language == "en"


async def test_legs_of_a_call_find_its_language_together():
    live = Linguist()
    bench = Bench(inference=FakeInference(live=live))
    spoken = CallLanguage()
    caller = bench.open(language=None, call_language=spoken)
    agent = bench.open(language=None, call_language=spoken)
    stranger = bench.open(language=None)
    english = bench.open(language="en", call_language=spoken)
    await bench.play(caller, call(2001, length=3.0))
    assert caller.recognition.language == agent.recognition.language == "fr"
    assert stranger.recognition.language is None
    assert english.recognition.language == "en"
    await bench.play(agent, call(2002))  # too short to tell, and need not
    assert live.asked[-1] == ("w2002", "fr")
    # Two bad finals in a row of one leg: it looks again, and the others keep what they know.
    await bench.play(agent, call(1003))
    assert agent.recognition.language == "fr"
    await bench.play(agent, call(1004))
    assert agent.recognition.language is None
    assert caller.recognition.language == "fr"


async def test_a_long_utterance_tells_the_language_of_its_leg_whatever_the_others_speak():
    live = Linguist()
    bench = Bench(inference=FakeInference(live=live))
    spoken = CallLanguage()
    guest, interpreter = (bench.open(language=None, call_language=spoken) for _ in range(2))
    await bench.play(guest, call(2001, length=3.0))
    await bench.play(interpreter, call(1001, length=3.0))
    assert guest.recognition.language == "fr"
    assert interpreter.recognition.language == "en"
    await bench.play(guest, call(2002))
    await bench.play(interpreter, call(1002))
    assert live.asked[-1] == ("w1002", "en")
    assert all(final.avg_logprob > -1 for leg in bench.legs for *_, final in leg.listener.finals)


async def test_the_audio_of_each_leg_has_a_key_of_its_own():
    bench = Bench()
    legs = [bench.open() for _ in range(3)]
    assert len({leg.recognition.stream for leg in legs} - {0}) == 3
    seen = []
    decode = bench.inference.live.decode
    bench.inference.live.decode = lambda jobs: seen.extend(jobs) or decode(jobs)
    await bench.play(legs[1], call(1001))
    assert {job.stream for job in seen} == {legs[1].recognition.stream}
    start, end, _ = legs[1].listener.spans[0]
    assert any((job.start, job.start + len(job.samples)) == (start, end) for job in seen)


async def test_a_given_language_stays():
    bench = Bench(inference=FakeInference(live=Linguist()))
    leg = bench.open(language="de")
    await bench.play(leg, call(2001, 2002, length=3.0))
    assert leg.recognition.language == "de"


async def test_a_lost_stretch_of_audio_without_spill_ends_the_utterance_and_goes_on():
    bench = Bench()
    leg = bench.open(capacity=2 * SECOND)
    await bench.play(leg, audio([(0, 0.5), (1001, 0.5)]))
    leg.ring.append(audio([(0, 5.0), (1002, 0.5), (0, 1.0)]).tobytes())
    await bench.finish()
    assert [text for *_, text in leg.listener.spans] == ["", "w1002"]
    # People learn that words are missing, and where.
    ((start, end), *others) = leg.listener.losses
    assert start == 1 * SECOND // 256 * 256
    assert end == 7.5 * SECOND - 2 * SECOND
    # The utterance that the loss ended has no samples left either.
    assert all(0 <= begin < until <= start for begin, until in others)


async def test_a_leg_that_loses_nothing_is_told_of_no_loss():
    bench = Bench()
    leg = bench.open(capacity=4 * SECOND)
    await bench.play(leg, call(*range(1001, 1011)))
    await bench.play(leg, np.random.default_rng(0).integers(-3000, 3000, 9000).astype(np.int16))
    await bench.finish()
    assert leg.listener.losses == []
    assert leg.listener.finals[-1][3].text == ""


async def test_a_long_silence_keeps_the_detector_idle_and_costs_no_onset():
    bench = Bench()
    leg = bench.open()
    await bench.play(leg, audio([(0, 20.0)]))
    asked = []
    probabilities = bench.inference.objects["vad"].probabilities
    bench.inference.objects["vad"].probabilities = lambda samples, states: (
        asked.append(sum(map(len, samples))) or probabilities(samples, states)
    )
    await bench.play(leg, audio([(0, 5.0)]))
    assert not asked
    assert leg.listener.lags == []
    await bench.play(leg, call(1001))
    ((start, _, text),) = leg.listener.spans
    assert text == "w1001"
    assert start == pytest.approx(25.5 * SECOND - 0.25 * SECOND, abs=512)


async def test_a_leg_that_was_behind_and_falls_silent_is_told_that_it_has_caught_up():
    """What the gate keeps back until it knows whether speech follows once counted as late."""
    bench = Bench()
    leg = bench.open()
    await bench.play(leg, call(1001))
    bench.inference.stopped = True
    await bench.play(leg, audio([(1002, 0.5), (0, 4.0)]))
    bench.inference.stopped = False
    await bench.play(leg, audio([(0, 20.0)]))
    assert leg.listener.lags == ["behind", "ok"]


async def test_no_leg_is_opened_on_an_engine_that_is_down():
    bench = Bench()
    lane = bench.queue.lanes["live"]
    lane.rest(EngineDown("live", "refused", retry_after_s=5.0), 0.0)
    assert bench.open().refused
    assert bench.open(language="sw").recognition
    bench.clock.now += 5.5
    assert bench.open().recognition


words_and_gaps = st.lists(
    st.tuples(st.floats(0.1, 1.5), st.floats(0.04, 1.2)), min_size=1, max_size=14
)


def scripted_call(pieces):
    parts = [(0, 0.4)]
    for i, (length, gap) in enumerate(pieces):
        parts += [(1001 + i, length), (0, gap)]
    return audio(parts)


async def spans_of(samples, *, rng=None, threads=1, language="en"):
    """Return the finals of the samples; with ``rng``, arrival, order and deaths are random."""
    bench = Bench(inference=FakeInference(threads=threads))
    capacity = 40 * SECOND if rng is None else SECOND * int(rng.integers(3, 40))
    leg = bench.open(
        language=language, spill=lambda start, end: samples[start:end], capacity=capacity
    )
    sent = 0
    while sent < len(samples):
        size = 512 if rng is None else int(rng.choice([0, 1, 100, 160, 700, 4000, 20_000]))
        leg.ring.append(samples[sent : sent + size].tobytes())
        sent += size
        if rng is None:
            await bench.tick()
            continue
        await bench.tick(size / LIVE_RATE, answer=False)
        for _ in range(int(rng.integers(0, 6))):
            if bench.inference.open:
                bench.inference.answer(int(rng.integers(len(bench.inference.open))))
            await asyncio.sleep(0)
        if rng.random() < 0.05:
            bench.inference.die()
        if bench.queue.fetches:
            await asyncio.gather(*bench.queue.fetches)
    tasks = [asyncio.create_task(leg.recognition.finish())]
    for _ in range(5000):
        await bench.tick()
        if bench.queue.fetches:
            await asyncio.gather(*bench.queue.fetches)
        if tasks[0].done():
            return leg.listener.spans
    raise AssertionError("finish never returns")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    words_and_gaps,
    st.integers(0, 2**32 - 1),
    st.sampled_from([1, 2]),
    st.sampled_from(["en", None]),
)
def test_arrival_order_and_deaths_change_nothing_in_the_finals(pieces, seed, threads, language):
    samples = scripted_call(pieces)
    expected = asyncio.run(spans_of(samples))
    rng = np.random.default_rng(seed)
    got = asyncio.run(spans_of(samples, rng=rng, threads=threads, language=language))
    assert got == expected


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(words_and_gaps)
def test_every_word_is_heard_once(pieces):
    words = [
        word for _, _, text in asyncio.run(spans_of(scripted_call(pieces))) for word in text.split()
    ]
    assert words == [f"w{1001 + i}" for i in range(len(pieces))]


async def test_the_loop_ticks_by_itself_and_survives_a_broken_listener():
    class Broken(Listener):
        def final(self, *args):
            super().final(*args)
            raise RuntimeError("the page is gone")

    specs = {
        "vad": EngineSpec("callcore.engines.scripted:ScriptedDetector"),
        "live": EngineSpec("callcore.engines.scripted:ScriptedLiveTranscriber"),
    }
    with InferenceProcess(specs) as inference:
        recognizer = Recognizer(inference)
        await recognizer.start()
        samples = call(*range(1001, 1004))
        legs = []
        for listener in (Broken(), Listener()):
            ring = RingBuffer(len(samples))
            ring.append(samples.tobytes())
            leg = recognizer.open_leg(ring, listener, language="en", spill=None)
            legs.append((leg, listener))
        async with asyncio.timeout(30):
            await asyncio.gather(*(leg.finish() for leg, _ in legs))
        await recognizer.close()
    assert [listener.words for _, listener in legs] == [["w1001", "w1002", "w1003"]] * 2


async def test_a_killed_process_costs_no_word_and_doubles_none():
    samples = call(*range(1001, 1041), gap=0.6)
    slow = {"delay_s": 0.02}
    specs = {
        "vad": EngineSpec("callcore.engines.scripted:ScriptedDetector"),
        "live": EngineSpec("callcore.engines.scripted:ScriptedLiveTranscriber", slow),
    }
    killed = 0
    listener = Listener()
    with InferenceProcess(specs) as inference:
        recognizer = Recognizer(inference, config=RecognizerConfig(tick_s=0.005))
        await recognizer.start()
        ring = RingBuffer(len(samples))
        leg = recognizer.open_leg(ring, listener, language="en", spill=None)
        async with asyncio.timeout(60):
            heard = 0
            for begin in range(0, len(samples), 512):
                ring.append(samples[begin : begin + 512].tobytes())
                await asyncio.sleep(0.005)
                # Each time it has proved to live, it dies.
                if len(listener.finals) >= heard + 5 and inference.pid:
                    heard = len(listener.finals)
                    os.kill(inference.pid, signal.SIGKILL)
                    killed += 1
            await leg.finish()
        await recognizer.close()
    assert listener.words == [f"w{i}" for i in range(1001, 1041)]
    assert killed


def test_the_usual_numbers_fit_together():
    config = EndpointConfig()
    assert config.pause_s < config.hangover_s
    assert config.limit_s <= 15.0, "an utterance must fit the decoder's largest bucket"
