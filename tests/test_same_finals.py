"""The same audio gives the same finals, however it comes and whatever else is decoded."""

import asyncio
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from callcore.audio import StreamingResampler
from callcore.audiosocket import Audio, Kind
from callcore.call_language import CallLanguage
from callcore.engines import LIVE_RATE, Hypothesis
from callcore.engines.scripted import ScriptedLiveTranscriber
from callcore.hypothesis import num_common
from callcore.recognizer import Recognizer
from callcore.recognizer_config import RecognizerConfig
from callcore.ringbuffer import RingBuffer
from tests.support.live import Clock as LiveClock
from tests.support.live import live, on_uvloop
from tests.support.recognition import Clock, FakeInference, Listener, audio, model, sample_leg

#: Samples that arrive at once: nothing, odd numbers, a frame, a second after a stall.
SIZES = [0, 1, 77, 160, 161, 800, 8000, 20_000]


class Legs:
    """Legs side by side; ``rng`` decides what comes, and what is answered, when."""

    def __init__(self, legs, *, inference, rng=None, config=None, language="en"):
        self.samples = legs
        self.language = language
        self.rng = rng
        self.clock = Clock()
        self.inference = inference
        self.recognizer = Recognizer(inference, clock=self.clock, config=config)
        self.listeners = [Listener() for _ in legs]

    async def finals(self, capacity_s=40):
        """Play all legs to their ends and return the spans and texts of each."""
        call_language = CallLanguage()
        rings = [RingBuffer(capacity_s * LIVE_RATE) for _ in self.samples]
        legs = [
            self.recognizer.open_leg(
                ring,
                listener,
                language=self.language,
                call_language=call_language,
                spill=lambda start, end, of=samples: of[start:end],
            )
            for ring, listener, samples in zip(rings, self.listeners, self.samples, strict=True)
        ]
        finishing = {}
        sent = [0] * len(legs)
        for _ in range(20_000):
            for i, samples in enumerate(self.samples):
                size = 512 if self.rng is None else int(self.rng.choice(SIZES))
                rings[i].append(samples[sent[i] : sent[i] + size].tobytes())
                sent[i] = min(sent[i] + size, len(samples))
                if sent[i] == len(samples) and i not in finishing:
                    finishing[i] = asyncio.create_task(legs[i].finish())
            await self._tick()
            if len(finishing) == len(legs) and all(each.done() for each in finishing.values()):
                return [listener.spans for listener in self.listeners]
        raise AssertionError("the legs never end")

    async def _tick(self):
        self.clock.now += 0.064
        self.recognizer.tick()
        if self.rng is None:
            await self.inference.settle(True)
        else:
            for _ in range(int(self.rng.integers(0, 8))):
                if self.inference.open:
                    self.inference.answer(int(self.rng.integers(len(self.inference.open))))
                await asyncio.sleep(0)
            if self.rng.random() < 0.01:
                self.inference.die()
        await asyncio.sleep(0)
        await asyncio.gather(*self.recognizer._queue.fetches)


def scripted(legs, **more):
    rng = more.pop("rng", None)
    threads = 1 if rng is None else int(rng.integers(1, 4))
    config = RecognizerConfig(**more)
    return Legs(legs, inference=FakeInference(threads=threads), rng=rng, config=config)


pieces = st.lists(st.tuples(st.floats(0.1, 1.2), st.floats(0.04, 4.0)), min_size=1, max_size=6)


def spoken(number, pieces):
    parts = [(0, 0.4)]
    for i, (length, gap) in enumerate(pieces):
        parts += [(1001 + 100 * number + i, length), (0, gap)]
    return audio(parts)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(pieces, min_size=1, max_size=3), st.integers(0, 2**32 - 1))
def test_arrival_batches_deaths_and_neighbours_change_no_final(calls, seed):
    legs = [spoken(number, each) for number, each in enumerate(calls)]
    alone = [asyncio.run(scripted([each]).finals())[0] for each in legs]
    rng = np.random.default_rng(seed)
    batch = int(rng.integers(1, 6))
    capacity_s = int(rng.integers(6, 40))
    beside = scripted(legs, rng=rng, max_batch=batch, windows_per_call=int(rng.integers(1, 65)))
    assert asyncio.run(beside.finals(capacity_s)) == alone


class Linguist(ScriptedLiveTranscriber):
    """Takes the words of every other leg for French, and says so in each word it writes."""

    def decode(self, jobs):
        results = []
        for job, heard in zip(jobs, super().decode(jobs), strict=True):
            french = any(int(word[1:]) // 100 % 2 for word in heard.text.split())
            language = job.language or ("fr" if french else "en")
            text = " ".join(f"{language}-{word}" for word in heard.text.split())
            results.append(Hypothesis(text, heard.words, language, -0.1, 0.0, language_prob=0.9))
        return results


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(pieces, pieces, st.integers(0, 2**32 - 1))
def test_legs_that_find_their_languages_hear_the_same_beside_each_other(left, right, seed):
    """Each says something long first; what it speaks is not told by whose words come first."""
    legs = [spoken(number, [(2.5, 1.0), *each]) for number, each in enumerate((left, right))]

    def finals_of(legs, rng=None):
        inference = FakeInference(threads=1 if rng is None else 2, live=Linguist())
        return asyncio.run(Legs(legs, inference=inference, rng=rng, language=None).finals())

    alone = [finals_of([each])[0] for each in legs]
    assert finals_of(legs, np.random.default_rng(seed)) == alone


# ---- with real models


@pytest.fixture(scope="module")
def engines():
    from callcore.engines.live_whisper import LiveWhisper
    from callcore.engines.silero import Silero

    return {"vad": Silero(model("silero-vad")), "live": LiveWhisper(model("tiny.en"))}


@pytest.fixture(scope="module")
def legs():
    both = [("silent-stretch", "agent"), ("silent-stretch", "caller")]
    return [sample_leg(*each, 1)[0][: 8 * LIVE_RATE] for each in both]


def real(legs, engines, **more):
    inference = FakeInference(threads=1, live=engines["live"])
    inference.objects["vad"] = engines["vad"]
    return Legs(legs, inference=inference, **more)


@pytest.fixture(scope="module")
def undisturbed(engines, legs):
    """Return what each leg hears alone, and its listener."""
    runs = [real([each], engines) for each in legs]
    return [(asyncio.run(run.finals())[0], run.listeners[0]) for run in runs]


@pytest.mark.model
@pytest.mark.parametrize("seed", [1, 2])
def test_arrival_and_neighbours_change_no_word_of_whisper(engines, legs, undisturbed, seed):
    assert any(text for spans, _ in undisturbed for *_, text in spans)
    config = RecognizerConfig(partial_intervals_s=())  # finals are asked about, partials cost most
    beside = real(legs, engines, rng=np.random.default_rng(seed), config=config)
    assert asyncio.run(beside.finals()) == [spans for spans, _ in undisturbed]


@pytest.mark.model
def test_stable_words_of_real_partials_stay_unless_the_final_says_revised(undisturbed):
    checked = 0
    for spans, listener in undisturbed:
        for utterance, (*_, final) in enumerate(spans):
            shown = [each for each in listener.partials if each[0] == utterance]
            for _, text, stable in shown:
                promised = text.split()[:stable]
                kept = num_common(promised, final.split()) == stable
                assert kept or listener.revised[utterance]
                checked += stable
    assert checked, "no partial promised a word"


@pytest.mark.model
@on_uvloop
async def test_a_wideband_leg_is_heard_as_the_narrowband_one(tmp_path: Path):
    from callcore.engines.live_whisper import LiveWhisper
    from callcore.engines.silero import Silero

    narrow = sample_leg("silent-stretch", "agent", 1)[0]
    wide = StreamingResampler(LIVE_RATE, 16_000).push(narrow)
    clock = LiveClock()
    async with live(tmp_path, clock=clock) as parts:
        leg = parts.calls.open_leg(parts.register("call-1", "caller"), clock.now, print)
        recognition = await parts.recognizer.leg()
        for begin in range(0, len(wide), 320):
            clock.now += 0.02
            part = Audio(Kind.SLIN16, 16_000, wide[begin : begin + 320].tobytes())
            leg.feed([part], clock.now)
        ring = recognition.ring
        heard = ring.read(ring.start, ring.end)
    engines = {"vad": Silero(model("silero-vad")), "live": LiveWhisper(model("tiny.en"))}
    finals = []
    for samples in (narrow, heard):
        config = RecognizerConfig(partial_intervals_s=())
        (spans,) = await real([samples], engines, config=config).finals()
        finals.append(spans)
    assert [text for *_, text in finals[0]] == [text for *_, text in finals[1]]
    assert any(text for *_, text in finals[0])
    for (start, end, _), (begin, until, _) in zip(*finals, strict=True):
        assert abs(start - begin) <= 1024
        assert abs(end - until) <= 1024
