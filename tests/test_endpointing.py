import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callcore.endpointing import (
    EndpointConfig,
    Endpointer,
    SpeechEnded,
    SpeechPaused,
    SpeechResumed,
    SpeechStarted,
)

WINDOW = 256


def config(**windows):
    """Return a configuration in windows, so that tests can count."""
    usual = {
        "pre_roll_s": 2,
        "pause_s": 3,
        "hangover_s": 6,
        "long_s": 20,
        "long_hangover_s": 4,
        "limit_s": 30,
        "cut_s": 8,
    } | windows
    return EndpointConfig(**{name: each * WINDOW / 8000 for name, each in usual.items()})


def run(pattern, *, levels=None, end=None, **windows):
    """Return the events of windows written as ``S`` (speech) and ``.`` (silence), in windows."""
    endpointer = Endpointer(config(**windows))
    events = []
    for i, letter in enumerate(pattern):
        events += endpointer.push(1.0 if letter == "S" else 0.0, levels[i] if levels else 1.0)
    events += endpointer.seal(len(pattern) * WINDOW if end is None else end)
    return events


def ended(events):
    return [event for event in events if isinstance(event, SpeechEnded)]


def test_silence_gives_nothing():
    assert run("." * 100) == []


def test_an_utterance_begins_a_pre_roll_before_its_speech_and_ends_a_pause_after():
    events = run("....SSSSS" + "." * 10)
    assert events == [
        SpeechStarted(0, 2 * WINDOW),
        SpeechPaused(0, 2 * WINDOW, 12 * WINDOW, 5 * WINDOW),
        SpeechEnded(0, 2 * WINDOW, 12 * WINDOW, 9 * WINDOW, 5 * WINDOW),
    ]


def test_a_pause_foretells_the_very_span_of_the_end():
    events = run("....SSS.SS" + "." * 10)
    paused = next(event for event in events if isinstance(event, SpeechPaused))
    (end,) = ended(events)
    assert (paused.start, paused.end, paused.num_speech) == (end.start, end.end, end.num_speech)


def test_speech_after_a_pause_resumes_the_utterance():
    events = run("....SS....SS" + "." * 10)
    kinds = [type(event) for event in events]
    assert kinds == [SpeechStarted, SpeechPaused, SpeechResumed, SpeechPaused, SpeechEnded]
    assert ended(events)[0].end == (12 + 3) * WINDOW


def test_a_long_utterance_ends_at_a_shorter_pause():
    short, long = run("S" * 10 + "." * 5), run("S" * 25 + "." * 5)
    assert ended(short)[0].end == 13 * WINDOW
    assert isinstance(short[-2], SpeechPaused), "it was still open when the audio ended"
    assert long[-1] == SpeechEnded(0, 0, 28 * WINDOW, 25 * WINDOW, 25 * WINDOW)


def test_the_pre_roll_never_reaches_into_the_utterance_before():
    events = run("SS" + "." * 6 + "SS" + "." * 6, pre_roll_s=10)
    first, second = ended(events)
    assert second.start == first.end == 5 * WINDOW


def test_probabilities_between_the_thresholds_keep_an_utterance_open_but_begin_none():
    endpointer = Endpointer(config())
    assert endpointer.push(0.45, 1.0) == []
    assert not endpointer.open
    endpointer.push(0.5, 1.0)
    for _ in range(10):
        assert endpointer.push(0.35, 1.0) == []
    assert endpointer.speaking


def test_a_limit_cuts_where_it_is_quietest_and_the_rest_is_the_next_utterance():
    levels = [9.0] * 30
    levels[25] = 0.0
    first, started, second = [
        event
        for event in run("S" * 30 + "." * 10, levels=levels + [0.0] * 10)
        if not isinstance(event, SpeechPaused)
    ][1:]
    assert first == SpeechEnded(0, 0, 26 * WINDOW, 26 * WINDOW, 26 * WINDOW, is_cut=True)
    assert started == SpeechStarted(1, 26 * WINDOW)
    assert second == SpeechEnded(1, 26 * WINDOW, 33 * WINDOW, 30 * WINDOW, 4 * WINDOW)


def test_a_limit_looks_only_near_the_end():
    levels = [9.0] * 40
    levels[5] = 0.0
    (first, *_) = ended(run("S" * 30, levels=levels))
    assert first.end > (30 - 8) * WINDOW


def test_a_cut_into_the_last_silence_leaves_no_utterance_without_speech():
    # Silence that does not yet end the utterance when its length reaches the limit.
    levels = [9.0] * 28 + [0.0] * 2 + [0.0] * 10
    events = run("S" * 28 + "." * 12, levels=levels)
    (only,) = ended(events)
    assert only.speech_end == 28 * WINDOW
    assert only.end == 29 * WINDOW


def test_speech_after_a_cut_into_silence_is_a_new_utterance_without_a_gap_in_between():
    levels = [9.0] * 28 + [0.0] * 2 + [9.0] * 5
    first, second = ended(run("S" * 28 + ".." + "S" * 5, levels=levels))
    assert second.start == first.end
    assert second.num_speech == 5 * WINDOW


def test_the_end_of_the_audio_ends_the_open_utterance():
    events = run("....SSSSS", end=9 * WINDOW + 100)
    assert events[-1] == SpeechEnded(0, 2 * WINDOW, 9 * WINDOW + 100, 9 * WINDOW, 5 * WINDOW)


def test_sealing_keeps_no_more_silence_than_a_pause():
    events = run("S" + "." * 5)
    assert events[-1].end == 4 * WINDOW


def test_sealing_an_empty_leg_gives_nothing():
    assert Endpointer().seal(0) == []


def test_lost_audio_ends_the_utterance_and_the_next_begins_after_it():
    endpointer = Endpointer(config())
    endpointer.push(1.0, 1.0)
    (end,) = endpointer.skip(50 * WINDOW)
    assert end.end == WINDOW
    assert endpointer.position == 50 * WINDOW
    (started,) = endpointer.push(1.0, 1.0)
    assert started == SpeechStarted(1, 50 * WINDOW)
    assert endpointer.start == 50 * WINDOW
    assert endpointer.utterance == 1


def test_a_leg_may_begin_later_than_sample_zero():
    endpointer = Endpointer(start=1000)
    assert endpointer.start == 1000
    assert endpointer.push(1.0, 1.0) == [SpeechStarted(0, 1000)]


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_even_a_senseless_limit_ends_utterances(limit):
    events = run("S" * 20, limit_s=limit, cut_s=9, pre_roll_s=9)
    assert sum(event.num_speech for event in ended(events)) == 20 * WINDOW


@given(st.text("S.", max_size=300), st.lists(st.floats(0, 9), min_size=300, max_size=300))
def test_utterances_never_overlap_and_hold_all_speech(pattern, levels):
    ends = ended(run(pattern, levels=levels))
    assert [each.utterance for each in ends] == list(range(len(ends)))
    for before, after in itertools.pairwise(ends):
        assert before.end <= after.start
    for each in ends:
        assert each.start < each.speech_end <= each.end
        assert each.end - each.start <= 30 * WINDOW
        assert each.num_speech > 0
    assert sum(each.num_speech for each in ends) == pattern.count("S") * WINDOW
    covered = {
        i for each in ends for i in range(each.start // WINDOW, -(-each.speech_end // WINDOW))
    }
    assert {i for i, letter in enumerate(pattern) if letter == "S"} <= covered


@given(st.text("S.", max_size=200))
def test_every_started_utterance_ends_with_the_start_it_was_announced_with(pattern):
    events = run(pattern)
    started = [event for event in events if isinstance(event, SpeechStarted)]
    assert [(e.utterance, e.start) for e in started] == [
        (e.utterance, e.start) for e in ended(events)
    ]
