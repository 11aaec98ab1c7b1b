"""What follows from words and sound, with real audio files and the real lexicon."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from callcore.audio import WavWriter
from callcore.calls import CallFacts, Media
from callcore.engines.vader import Vader
from callcore.errors import EngineError
from callcore.insights_document import check_result
from callcore.results import Segment, Word
from callcore.steps.annotate import STEP as ANNOTATE
from callcore.steps.insights import STEP
from tests.support.results import (
    call_of,
    categories,
    category,
    context,
    entities,
    entity,
    flag,
    quoted,
    recording_of,
    segment,
    transcript,
)

VADER = Vader()
CALLER, AGENT = Media("caller", "/nowhere/c.wav"), Media("agent", "/nowhere/a.wav")


def insights(
    segments: list[dict[str, Any]], language: str | None = "en", **more: Any
) -> dict[str, Any]:
    results = {"transcribe": transcript(segments, language=language), **more.pop("results", {})}
    more.setdefault("recording", recording_of(CALLER, AGENT))
    more.setdefault("engines", {"sentiment": VADER})
    found = STEP.run(context(results, **more))
    check_result("insights", found)
    return found


def wav(path: Path, *channels: np.ndarray, rate: int = 8000) -> Media:
    with WavWriter(path, rate, len(channels)) as writer:
        writer.write(np.stack(channels, axis=1).astype("<i2").tobytes())
    return Media("caller", str(path), num_channels=len(channels), rate=rate)


def tone(size: int, peak: int = 8000) -> np.ndarray:
    return (peak * np.sin(np.arange(size) / 3)).astype(np.int16)


# ---- calls of every kind


def test_a_silent_call_claims_nothing() -> None:
    found = insights([], language=None, results={"classify": categories()})
    assert found["engine"] is None
    assert found["sentiment"] is None
    assert found["referrals"] is None
    assert found["follow_up"] is None
    assert found["quality"]["asr_confidence"] is None
    assert found["quality"]["low_confidence_s"] is None
    assert found["talk"]["silence_s"] == 60.0
    assert found["safety"]["self_harm"] == {"value": "unknown", "evidence": []}


def test_without_categories_nobody_has_looked_for_danger() -> None:
    assert insights([segment(0, "caller", 0, 2)])["safety"] is None


def test_one_leg_is_measured_by_itself() -> None:
    found = insights([segment(0, "caller", 1, 3, "i hate this")], recording=recording_of(CALLER))
    assert found["talk"]["silence_s"] is None
    assert found["talk"]["hold_s"] is None
    assert list(found["sentiment"]["parties"]) == ["caller"]


def test_speakers_of_a_mono_file_are_parties() -> None:
    segments = [
        segment(0, "mixed", 0, 2, "hello there my friend", speaker="A"),
        segment(1, "mixed", 2, 4, "this is terrible", speaker="B"),
    ]
    found = insights(segments, recording=recording_of(Media("mixed", "/nowhere/m.wav")))
    assert sorted(found["talk"]["parties"]) == ["A", "B"]
    assert found["sentiment"]["parties"]["B"]["score"] < 0
    assert found["quality"]["channels"] is None  # its file is gone


def test_transfers_have_a_second_agent() -> None:
    media = (CALLER, AGENT, Media("agent-2", "/nowhere/a2.wav"))
    segments = [segment(0, "agent-2", 5, 9, "i am the manager here"), segment(1, "caller", 1, 3)]
    found = insights(segments, recording=recording_of(*media))
    assert sorted(found["talk"]["parties"]) == ["agent", "agent-2", "caller"]
    assert found["talk"]["first_response_s"] == 5.0


def test_media_that_are_gone_leave_the_words() -> None:
    segments = [segment(0, "caller", 0, 2), segment(1, "agent", 3, 4)]
    found = insights(segments, recording=recording_of())
    assert found["talk"]["overlap_s"] == 0.0
    assert found["quality"]["channels_ok"] is None


def test_the_order_of_segments_changes_nothing() -> None:
    segments = [
        segment(0, "caller", 0, 4, "i am so sad and scared"),
        segment(1, "agent", 3, 8, "please hold the line for a moment"),
        segment(2, "agent", 20, 24, "i will refer you to a doctor"),
        segment(3, "caller", 25, 27, "thank you very much"),
    ]
    assert insights(segments) == insights(segments[::-1])


SAID = st.tuples(
    st.sampled_from(["caller", "agent", "agent-2", "mixed"]),
    st.floats(-5, 80, width=32),
    st.floats(0, 30, width=32),
    st.sampled_from(["", "no", "please hold", "I will refer you to <b>", "i hate this", "どうも"]),
    st.sampled_from([None, "en", "ja"]),
    st.sampled_from([None, "A", "B"]),
)


@given(st.lists(SAID, max_size=8), st.sampled_from([None, "en", "ja"]), st.booleans())
def test_whatever_was_said_the_results_keep_to_the_schema(
    said: list[Any], language: str | None, is_apart: bool
) -> None:
    segments = [
        segment(n, leg, start, start + length, text, language=own, speaker=speaker)
        for n, (leg, start, length, text, own, speaker) in enumerate(said)
    ]
    media = (CALLER, AGENT) if is_apart else (Media("mixed", "/nowhere/m.wav"),)
    given_results = {"classify": categories()}
    insights(segments, language, recording=recording_of(*media), results=given_results)
    check_result("annotate", ANNOTATE.run(context({"transcribe": transcript(segments)})))


def test_live_words_count_where_nobody_knows_how_long_the_recording_is() -> None:
    results = {"transcribe": transcript([segment(0, "caller", 0, 3)], duration_s=0.0)}
    recording = recording_of(CALLER, duration_s=None)
    heard = [live("caller", 0.0, "one two three")]
    engines = {"sentiment": VADER}
    found = STEP.run(context(results, recording=recording, live=heard, engines=engines))
    assert found["quality"]["drift_live_vs_final"] == {"caller": 0.0}


# ---- feelings


def test_sentiment_has_quarters_a_trend_and_words() -> None:
    segments = [
        segment(0, "caller", 1, 4, "this is terrible and i am furious"),
        segment(1, "agent", 5, 6, "okay"),
        segment(2, "caller", 50, 54, "thank you so much that is wonderful"),
    ]
    found = insights(segments)["sentiment"]
    caller = found["parties"]["caller"]
    first, *between, last = caller["quarters"]
    assert first < 0 < last
    assert between == [None, None]
    assert caller["trend"] == "rising"
    assert [each["segment"] for each in caller["evidence"]] == [0, 2]
    assert found["parties"]["agent"]["trend"] is None
    assert [each["segment"] for each in found["segments"]] == [0, 1, 2]


def test_other_languages_have_no_sentiment() -> None:
    found = insights([segment(0, "caller", 0, 2, "das ist furchtbar", language="de")], "de")
    assert found["sentiment"] is None
    assert found["engine"] is None


def test_each_utterance_is_scored_in_its_own_language() -> None:
    segments = [
        segment(0, "caller", 0, 2, "i hate this", language="de"),
        segment(1, "caller", 3, 4, "i hate this", language=None),
    ]
    found = insights(segments)["sentiment"]
    assert [each["segment"] for each in found["segments"]] == [1]


def test_an_engine_that_dies_fails_the_step() -> None:
    class Dead:
        def score(self, _texts: list[str], _language: str) -> list[float | None]:
            raise EngineError("sentiment", "its process died")

    with pytest.raises(EngineError, match="died"):
        insights([segment(0, "caller", 0, 2)], engines={"sentiment": Dead()})


# ---- what was said


def test_what_a_rule_found_is_a_yes_with_its_words() -> None:
    said = segment(0, "caller", 0, 3, "he beats me and he is outside now")
    found = insights(
        [said],
        results={
            "classify": categories(
                category("violence.physical", "rule", quoted(said, "he beats me")),
                flags=[flag("danger.now", quoted(said, "outside now"))],
            )
        },
    )["safety"]
    assert found["violence"]["physical"]["value"] == "yes"
    assert found["violence"]["physical"]["evidence"][0]["quote"] == "he beats me"
    assert found["immediate_danger"]["value"] == "yes"
    assert found["violence"]["sexual"]["value"] == "unknown"


def test_likeness_alone_is_no_yes() -> None:
    said = segment(0, "caller", 0, 3, "they want me to work all day")
    like = categories(
        category("exploitation.labour", "embedding", quoted(said, "work", "embedding"))
    )
    found = insights([said], results={"classify": like})["safety"]
    assert found["exploitation"]["value"] == "unknown"


def test_words_that_deny_are_a_no() -> None:
    segments = [
        segment(0, "agent", 0, 2, "Are you thinking of suicide?"),
        segment(1, "caller", 3, 4, "No, never."),
        segment(2, "caller", 5, 8, "and nobody hits me"),
    ]
    found = insights(segments, results={"classify": categories()})["safety"]
    assert found["self_harm"]["value"] == "no"
    assert [each["segment"] for each in found["self_harm"]["evidence"]] == [0, 1]
    assert found["violence"]["physical"]["value"] == "no"


@pytest.mark.parametrize(
    ("asked", "answered"),
    [
        ("Are you thinking of suicide?", "Yes."),
        ("Are you thinking of suicide?", "Nobody asks me that."),
        ("I'm not in danger?", "well"),
    ],
)
def test_what_does_not_deny_stays_unknown(asked: str, answered: str) -> None:
    segments = [segment(0, "agent", 0, 2, asked), segment(1, "caller", 3, 4, answered)]
    found = insights(segments, results={"classify": categories()})["safety"]
    assert {found["self_harm"]["value"], found["immediate_danger"]["value"]} == {"unknown"}


def test_a_yes_outweighs_a_denial() -> None:
    said = segment(0, "caller", 0, 6, "nobody hits me but my uncle beats me")
    stated = categories(category("violence.physical", "rule", quoted(said, "beats me")))
    found = insights([said], results={"classify": stated})["safety"]
    assert found["violence"]["physical"]["value"] == "yes"


def test_referrals_and_follow_ups_point_at_their_words() -> None:
    refers = segment(0, "agent", 0, 4, "I will refer you to Mama Lucy Hospital")
    returns = segment(1, "agent", 5, 9, "and we will call you back on Monday")
    named = entities(
        entity(refers, "Mama Lucy Hospital", "ORGANIZATION"), entity(returns, "Monday", "DATE", 1)
    )
    found = insights([refers, returns], results={"ner": named})
    (referral,) = found["referrals"]
    assert referral["service"] == "Mama Lucy Hospital"
    assert referral["evidence"][0]["quote"] == "I will refer you"
    assert found["follow_up"]["by"] == "Monday"
    assert found["follow_up"]["evidence"][0]["segment"] == 1


@pytest.mark.parametrize(
    ("text", "time", "by"),
    [
        ("We will call you back, I see that you called yesterday", "yesterday", None),
        ("You called yesterday, and we will call you back", "yesterday", None),
        ("We will call you back about what he did on Sunday", "Sunday", None),
        ("We will call you tomorrow", "tomorrow", "tomorrow"),
        ("We will call you back by 5 pm on Monday", "5 pm", "5 pm"),
        ("We will call you back", None, None),
    ],
)
def test_a_follow_up_is_due_by_the_time_that_belongs_to_it(
    text: str, time: str | None, by: str | None
) -> None:
    said = segment(0, "agent", 0, 4, text)
    named = entities(*([entity(said, time, "DATE")] if time else []))
    follow_up = insights([said], results={"ner": named})["follow_up"]
    assert follow_up["needed"] is True
    assert follow_up["by"] == by


@pytest.mark.parametrize(
    ("leg", "text"),
    [
        ("caller", "I will refer you to my lawyer and we will call you back"),
        ("agent", "It is not safe to call you back"),
        ("agent", "There is no need to call you back"),
        ("agent", "Nobody will call you back"),
        ("caller", "He said he will call you back and hurt you"),
        ("mixed", "I will refer you to the clinic and he will call you back"),
    ],
)
def test_what_no_agent_promises_is_no_referral_and_no_follow_up(leg: str, text: str) -> None:
    found = insights([segment(0, leg, 0, 4, text)])
    assert found["referrals"] is None
    assert found["follow_up"] is None


@pytest.mark.parametrize(
    ("asked", "answered", "group", "field"),
    [
        ("Do you have food at home?", "No.", "neglect", None),
        ("Are you alone with him?", "No, he is here and he has a knife", "immediate_danger", None),
        ("Are you in danger?", "No, wait, yes", "immediate_danger", None),
        ("How are you?", "I don't think I am safe", "immediate_danger", None),
        ("I am safe", "I am not", "immediate_danger", None),
        ("Did he hit you?", "No one believes me but yes", "violence", "physical"),
        ("If you are hurting yourself, call us.", "No problem.", "self_harm", None),
    ],
)
def test_no_wrong_all_clear(asked: str, answered: str, group: str, field: str | None) -> None:
    segments = [segment(0, "agent", 0, 2, asked), segment(1, "caller", 3, 4, answered)]
    found = insights(segments, results={"classify": categories()})["safety"][group]
    assert (found[field] if field else found)["value"] == "unknown"


def test_who_announces_a_hold_puts_the_silence_on_hold() -> None:
    segments = [
        segment(0, "agent", 0, 4, "please hold the line"),
        segment(1, "agent", 30, 34, "thank you for waiting"),
        segment(2, "caller", 50, 60, "that is fine with me"),
    ]
    talk = insights(segments)["talk"]
    assert talk["hold_s"] == 26.0
    assert [each["start"] for each in talk["holds"]] == [4]
    assert insights(segments, language="fr")["talk"]["hold_s"] is None


# ---- quality


def test_doubtful_words_are_counted_in_seconds() -> None:
    doubtful = segment(0, "caller", 0, 4, "a b c d", p=[0.9, 0.3, 0.49, 0.5])
    quality = insights([doubtful])["quality"]
    assert quality["low_confidence_s"] == 2.0
    assert quality["asr_confidence"] == pytest.approx(0.547, abs=0.001)


def test_clipping_and_silent_channels_are_heard(tmp_path: Path) -> None:
    loud = np.clip(tone(8000, 60_000).astype(np.int64), 0, 32_767).astype(np.int16)
    loud[:100] = 32_767
    media = replace(wav(tmp_path / "s.wav", tone(8000), np.zeros(8000, np.int16)), role="stereo")
    clipped = replace(wav(tmp_path / "c.wav", loud), role="caller")
    stereo = insights([], recording=recording_of(media))["quality"]
    assert [each["problem"] for each in stereo["channels"]] == [None, "silent"]
    assert stereo["channels_ok"] is False
    (alone,) = insights([], recording=recording_of(clipped))["quality"]["channels"]
    assert alone["clipping"] >= 0.0125
    assert alone["peak"] == pytest.approx(1.0, abs=0.001)


def test_two_channels_that_are_one_are_told(tmp_path: Path) -> None:
    media = replace(wav(tmp_path / "s.wav", tone(8000), tone(8000)), role="stereo")
    quality = insights([], recording=recording_of(media))["quality"]
    assert {each["problem"] for each in quality["channels"]} == {"same as another"}


def test_good_sound_has_no_problem(tmp_path: Path) -> None:
    media = replace(wav(tmp_path / "s.wav", tone(8000), -tone(8000)), role="stereo")
    quality = insights([], recording=recording_of(media))["quality"]
    assert quality["channels_ok"] is True
    assert [each["clipping"] for each in quality["channels"]] == [0.0, 0.0]


def live(leg: str, start: float, text: str) -> Segment:
    words = tuple(
        Word(word, start + at, start + at + 0.9, 0.9) for at, word in enumerate(text.split())
    )
    return Segment(1, leg, start, start + len(words), text, "en", words, "live", 0.5)


def test_drift_is_the_word_errors_of_the_live_words() -> None:
    segments = [segment(0, "caller", 0, 4, "One, two three four."), segment(1, "agent", 5, 6)]
    words = [live("caller", 0.0, "one two tree four"), live("agent-2", 1.0, "hi")]
    assert insights(segments, live=words)["quality"]["drift_live_vs_final"] == {"caller": 0.25}


def test_without_live_words_there_is_no_drift() -> None:
    segments = [segment(0, "caller", 0, 4)]
    assert insights(segments)["quality"]["drift_live_vs_final"] is None
    mixed = [live("mixed", 0.0, "one two three")]
    assert insights(segments, live=mixed)["quality"]["drift_live_vs_final"] is None


def test_live_words_outside_of_the_recording_do_not_count() -> None:
    segments = [segment(0, "caller", 100, 103)]
    recording = replace(recording_of(CALLER, AGENT, duration_s=10.0), offset_s=100.0)
    words = [
        live("caller", 20.0, "before the recording began"),
        live("caller", 100.0, "one two three"),
    ]
    found = insights(segments, live=words, recording=recording)
    assert found["quality"]["drift_live_vs_final"] == {"caller": 0.0}


def test_completeness_is_the_share_of_the_call_that_was_recorded() -> None:
    facts = CallFacts(started_at=datetime(2026, 3, 4, tzinfo=UTC))
    recording = recording_of(CALLER, AGENT, duration_s=60.0, offset_s=20.0)
    found = insights([], call=call_of(facts, seconds=80.0), recording=recording)
    assert found["quality"]["completeness"] == 0.75
    assert insights([], call=call_of())["quality"]["completeness"] is None
    ended = call_of(facts, seconds=timedelta(seconds=50).total_seconds())
    late = recording_of(CALLER, duration_s=60.0, offset_s=70.0)
    assert insights([], call=ended, recording=late)["quality"]["completeness"] == 0.0
