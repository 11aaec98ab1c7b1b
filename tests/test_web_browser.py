"""The pages in a real browser."""

import re
import wave
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait

from callcore.calls import Disposition, Media
from callcore.results import Segment
from tests.support.analysed import full, proceed, sample, sample_segments, store
from tests.support.browser import browser, resize
from tests.support.endings import change, lost, missed, refuse, without_text
from tests.support.pages import SAMPLES, Pages, sample_turns, segment_of
from tests.support.results import segment
from tests.support.valkey import Valkey, stopped_valkey, valkey

__all__ = ["browser", "stopped_valkey", "valkey"]
pytestmark = [pytest.mark.browser, pytest.mark.redis]

HOSTILE = "<script>window.hacked=1</script><img src=x onerror=window.hacked=1>"
CALL = "1795370099.12"


@pytest.fixture
def pages(tmp_path: Path, valkey: Valkey) -> Iterator[Pages]:
    pages = Pages(tmp_path, valkey.url)
    yield pages
    pages.close()


def until(browser: webdriver.Chrome, condition: Callable[[webdriver.Chrome], Any]) -> Any:
    return WebDriverWait(browser, 30, poll_frequency=0.05).until(condition)


def text_of(browser: webdriver.Chrome, selector: str) -> str:
    found: str = browser.execute_script(
        "return document.querySelector(arguments[0])?.textContent ?? ''", selector
    )
    return " ".join(found.split())


def until_text(browser: webdriver.Chrome, selector: str, text: str) -> None:
    try:
        until(browser, lambda b: text in text_of(b, selector))
    except Exception:
        raise AssertionError(f"{selector} says {text_of(browser, selector)!r}") from None


def partial(pages: Pages, number: int, text: str, stable: int, start: float = 1.0) -> None:
    pages.publish(
        "transcript.partial",
        CALL,
        leg="caller",
        segment=number,
        start=start,
        end=start + 1,
        text=text,
        stable=stable,
    )


def live_words(count: int, base: int = 1) -> list[Segment]:
    turns = sample_turns()
    return [
        segment_of(base + n, t["leg"], t["start"], t["end"], t["text"])
        for n, t in enumerate(
            turns[i % len(turns)] | {"start": i * 9.0, "end": i * 9.0 + 8} for i in range(count)
        )
    ]


def test_a_partial_is_shown_as_provisional_and_replaced_by_its_final(
    pages: Pages, browser: webdriver.Chrome
) -> None:
    pages.begin_call(CALL, caller=HOSTILE, agent="Amina")
    with pages.served() as url:
        browser.get(f"{url}/calls/{CALL}/live")
        until_text(browser, "#connection", "Connected")
        partial(pages, 1, "my name is", 0)
        until_text(browser, ".partial", "my name is")
        partial(pages, 1, "my name is Ann and", 3)
        until_text(browser, ".partial .stable", "my name is")
        assert text_of(browser, ".partial") == "my name is Ann and"
        assert text_of(browser, "#announcer") == ""
        pages.say(CALL, segment_of(1, "caller", 1.0, 2.0, "My name is Anne. " + HOSTILE))
        until_text(browser, ".segment", "My name is Anne.")
        assert browser.find_elements(By.CSS_SELECTOR, ".partial") == []
        assert text_of(browser, "#announcer").startswith("Caller: My name is Anne.")
        # One speaker without a pause stays one turn; another one begins a new turn.
        pages.say(CALL, segment_of(2, "caller", 2.5, 3.0, "I am at home."))
        pages.say(CALL, segment_of(3, "agent", 3.2, 4.0, "Hello Anne."))
        until_text(browser, ".turn:nth-child(2) .turn-text", "Hello Anne.")
        assert text_of(browser, ".turn:nth-child(2) .turn-head") == "Agent 0:03"
        assert "My name is Anne." in text_of(browser, ".turn:nth-child(1)")
        assert "I am at home." in text_of(browser, ".turn:nth-child(1)")
        # A partial that turns out to be nothing goes away.
        partial(pages, 4, "hm", 0, start=5.0)
        until_text(browser, ".partial", "hm")
        partial(pages, 4, "", 0, start=5.0)
        until(browser, lambda b: not b.find_elements(By.CSS_SELECTOR, ".partial"))
        assert browser.execute_script("return window.hacked") is None
        assert HOSTILE in text_of(browser, "h1")


def late_s(browser: webdriver.Chrome) -> int:
    found = re.fullmatch(r"Words appear about (\d+) s late", text_of(browser, "#lag"))
    return int(found[1]) if found else 0


def test_late_words_are_said_to_be_late_and_read_out_once(
    pages: Pages, browser: webdriver.Chrome
) -> None:
    pages.begin_call(CALL)
    with pages.served() as url:
        browser.get(f"{url}/calls/{CALL}/live")
        until_text(browser, "#lag", "On time")
        assert text_of(browser, "#waiting") == "Waiting for the first words…"
        browser.execute_script(
            "window.said = []; const said = document.getElementById('lag-said');"
            "new MutationObserver(() => window.said.push(said.textContent))"
            ".observe(said, { childList: true })"
        )
        assert browser.find_element(By.ID, "lag-said").get_attribute("role") == "status"
        pages.publish("lag.updated", CALL, lag_s=4.0, state="behind")
        until_text(browser, "#waiting", "The first words are late.")
        # Only the change is told: the delay grows until words come, and then it is theirs.
        until(browser, lambda b: late_s(b) > 4)
        pages.say(CALL, segment_of(1, "caller", 1.0, 2.0, "At last.", latency=40.0))
        until(browser, lambda b: late_s(b) >= 40)
        # What the other party says may be on time.
        pages.say(CALL, segment_of(2, "agent", 3.0, 4.0, "I hear you.", latency=0.8))
        until_text(browser, "#transcript", "I hear you.")
        assert late_s(browser) >= 40
        assert browser.execute_script("return said") == ["Words appear about 4 s late."]
        pages.publish("lag.updated", CALL, lag_s=0.5, state="ok")
        until_text(browser, "#lag", "On time, 0.8 s after speech")
        assert browser.execute_script("return said.at(-1)") == "Words appear on time again."
    until_text(browser, "#connection", "Connecting again")
    assert not browser.find_element(By.ID, "lag").is_displayed()  # nobody knows


def test_words_that_are_lost_leave_a_gap_that_is_seen_and_read_out(
    pages: Pages, browser: webdriver.Chrome
) -> None:
    pages.begin_call(CALL)
    with pages.served() as url:
        browser.get(f"{url}/calls/{CALL}/live")
        until_text(browser, "#connection", "Connected")
        pages.say(CALL, segment_of(1, "caller", 1.0, 2.0, "Hello."))
        for start in (12.0, 20.0):
            lost = {"start": start, "end": start + 6.0, "reason": "too many words wait"}
            pages.publish("audio.lost", CALL, leg="caller", **lost)
        on_disk = {"start": 31.0, "end": 33.0, "reason": "disk failed"}
        pages.publish("audio.lost", CALL, leg="agent", **on_disk)
        pages.say(CALL, segment_of(2, "caller", 40.0, 41.0, "Are you there?"))
        until_text(browser, "#transcript", "Are you there?")
        shown = [each.text for each in browser.find_elements(By.CSS_SELECTOR, ".turn-text")]
        assert shown == [
            "Hello.",
            "Words may be missing from 0:12 to 0:26.",  # one gap, not many
            "The sound from 0:31 to 0:33 could not be saved.",
            "Are you there?",
        ]
        assert "Caller: Words may be missing from 0:20 to 0:26." in text_of(browser, "#announcer")
        assert browser.execute_script(FAINT) == []


def test_a_settled_word_that_changed_is_marked_for_whoever_has_read_it(
    pages: Pages, browser: webdriver.Chrome
) -> None:
    pages.begin_call(CALL)
    with pages.served() as url:
        browser.get(f"{url}/calls/{CALL}/live")
        until_text(browser, "#connection", "Connected")
        partial(pages, 1, "it is fifteen and", 3)
        until_text(browser, ".partial .stable", "it is fifteen")
        pages.say(CALL, segment_of(1, "caller", 1.0, 2.0, "It is fifty.", revised=True))
        until_text(browser, ".corrected", "corrected")
        pages.say(CALL, segment_of(2, "caller", 2.5, 3.0, "Nobody saw more.", revised=True))
        until_text(browser, "#transcript", "Nobody saw more.")
        assert len(browser.find_elements(By.CSS_SELECTOR, ".corrected")) == 1


def test_a_site_without_recognition_during_calls_promises_no_words(
    tmp_path: Path, valkey: Valkey, browser: webdriver.Chrome
) -> None:
    pages = Pages(tmp_path, valkey.url, environ={"CALLCORE_LIVE": "off"})
    pages.begin_call(CALL)
    with pages.served() as url:
        browser.get(url)
        until_text(browser, "#rows [data-field=lag]", "After the call")
        browser.get(f"{url}/calls/{CALL}/live")
        until_text(browser, "#no-text", "recognition during calls is switched off.")
        assert text_of(browser, "#waiting").startswith("Nothing is written here")
        assert text_of(browser, "#without") == "No live text"
        assert not browser.find_element(By.ID, "lag").is_displayed()
        # A piece that the recording lacks is none that somebody recognised.
        pages.publish("audio.lost", CALL, leg="caller", start=1.0, end=2.0, reason="disk too slow")
        until(browser, lambda b: b.find_elements(By.CSS_SELECTOR, "#transcript .lost"))
        assert text_of(browser, "#without") == "No live text"
        # Another daemon of the site may recognise all the same.
        pages.say(CALL, segment_of(1, "caller", 1.0, 2.0, "Hello."))
        until(browser, lambda b: b.find_element(By.ID, "lag").is_displayed())
        assert not browser.find_element(By.ID, "no-text").is_displayed()
    pages.close()


def test_the_page_goes_on_after_the_web_process_was_restarted(
    pages: Pages, browser: webdriver.Chrome
) -> None:
    pages.begin_call(CALL)
    with pages.served() as url:
        browser.get(f"{url}/calls/{CALL}/live")
        until_text(browser, "#connection", "Connected")
        pages.say(CALL, segment_of(1, "caller", 1.0, 2.0, "One."))
        until_text(browser, "#transcript", "One.")
    until_text(browser, "#connection", "Connecting")
    pages.say(CALL, segment_of(2, "agent", 3.0, 4.0, "Two."))
    pages.say(CALL, segment_of(3, "caller", 5.0, 6.0, "Three."))
    with pages.served(urlsplit(url).port or 0):
        until_text(browser, "#connection", "Connected")
        until_text(browser, "#transcript", "Three.")
        pages.say(CALL, segment_of(4, "agent", 7.0, 8.0, "Four."))
        until_text(browser, "#transcript", "Four.")
        assert len(browser.find_elements(By.CSS_SELECTOR, ".segment")) == 4


def test_a_page_whose_events_were_lost_loads_the_call_anew(
    tmp_path: Path, stopped_valkey: Valkey, browser: webdriver.Chrome
) -> None:
    stopped_valkey.start()
    pages = Pages(tmp_path, stopped_valkey.url)
    pages.begin_call(CALL)
    with pages.served() as url:
        browser.get(f"{url}/calls/{CALL}/live")
        until_text(browser, "#connection", "Connected")
        pages.say(CALL, segment_of(1, "caller", 1.0, 2.0, "One."))
        until_text(browser, "#transcript", "One.")
        stopped_valkey.kill()
        until_text(browser, "#connection", "New text is held up; it will follow")
        resize(browser, 320, 844)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 320
        (path,) = stopped_valkey.folder.glob("appendonlydir/*.incr.aof")
        path.write_bytes(b"garbage\r\n" * 10)
        pages.storage.add_live_segment(CALL, segment_of(2, "agent", 3.0, 4.0, "Two."))
        stopped_valkey.start()
        until_text(browser, "#transcript", "Two.")
        until_text(browser, "#connection", "Connected")
        pages.say(CALL, segment_of(3, "caller", 5.0, 6.0, "Three."))
        until_text(browser, "#transcript", "Three.")
    pages.close()


def test_scrolling_back_stops_following_until_the_reader_jumps_to_the_end(
    pages: Pages, browser: webdriver.Chrome
) -> None:
    pages.begin_call(CALL)
    for words in live_words(30):
        pages.say(CALL, words)
    with pages.served() as url:
        browser.get(f"{url}/calls/{CALL}/live")
        until(browser, lambda b: len(b.find_elements(By.CSS_SELECTOR, ".turn")) == 30)
        at_end = "return document.documentElement.scrollHeight - innerHeight - scrollY < 5"
        until(browser, lambda b: b.execute_script(at_end))
        follow = browser.find_element(By.ID, "follow")
        assert follow.get_attribute("aria-pressed") == "true"
        browser.find_element(By.TAG_NAME, "body").send_keys(Keys.PAGE_UP)
        until(browser, lambda _: follow.get_attribute("aria-pressed") == "false")
        before = browser.execute_script("return scrollY")
        pages.say(CALL, segment_of(100, "caller", 900.0, 901.0, "Something new."))
        until_text(browser, "#jump", "Jump to live (1 new)")
        assert browser.execute_script("return scrollY") == before
        browser.find_element(By.ID, "jump").click()
        until(browser, lambda b: b.execute_script(at_end))
        assert follow.get_attribute("aria-pressed") == "true"
        assert not browser.find_element(By.ID, "jump").is_displayed()


def test_the_end_of_a_call_leads_to_its_page_with_the_progress_of_the_analysis(
    pages: Pages, browser: webdriver.Chrome
) -> None:
    pages.begin_call(CALL)
    pages.say(CALL, segment_of(1, "caller", 1.0, 2.0, "Life words."))
    with pages.served() as url:
        browser.get(f"{url}/calls/{CALL}/live")
        until_text(browser, "#transcript", "Life words.")
        pages.end_call(CALL)
        until_text(browser, "#state", "Ended")
        until_text(browser, "#after", "Waiting for its recording")
        audio_id = store(pages, CALL, sample(), full())
        pages.publish("analysis.ready", CALL, audio_id=audio_id)
        until_text(browser, "#steps", "Transcribe")
        until_text(browser, "#after-text", "is analysed")
        browser.find_element(By.ID, "call-page").click()
        until_text(browser, "#transcript", "he broke the kitchen door")


def test_the_call_page_takes_in_the_recordings_transcript_by_itself(
    pages: Pages, browser: webdriver.Chrome
) -> None:
    pages.begin_call(CALL, ("caller",))
    pages.say(CALL, segment_of(1, "caller", 1.0, 2.0, "Life words."))
    pages.end_call(CALL)
    with pages.served() as url:
        browser.get(f"{url}/calls/{CALL}")
        until_text(browser, ".notice[data-kind=provisional]", "Live text.")
        words = [segment_of(9, "caller", 1.0, 2.0, "Live words.", source="recording")]
        path = str(SAMPLES / "helpline-distress.wav")
        audio_id = pages.record(CALL, [Media("stereo", path)], words)
        pages.publish("analysis.ready", CALL, audio_id=audio_id)
        until_text(browser, "#transcript", "Live words.")


def test_clicking_a_word_plays_from_there_and_the_words_follow(
    pages: Pages, browser: webdriver.Chrome
) -> None:
    turns = sample_turns()
    words = [
        segment_of(n, t["leg"], t["start"], t["end"], t["text"], source="recording", latency=None)
        for n, t in enumerate(turns)
    ]
    pages.begin_call(CALL)
    pages.end_call(CALL)
    pages.record(CALL, [Media("stereo", str(SAMPLES / "helpline-distress.wav"))], words)
    with pages.served() as url:
        browser.get(f"{url}/calls/{CALL}")
        until(browser, lambda b: b.execute_script("return audio.readyState >= 2"))
        duration = browser.execute_script("return audio.duration")
        with wave.open(str(SAMPLES / "helpline-distress.wav")) as file:
            assert duration == pytest.approx(file.getnframes() / file.getframerate(), abs=0.05)
        word = browser.find_elements(By.CSS_SELECTOR, ".turn:nth-child(3) .word")[2]
        asked = float(word.get_attribute("data-s") or "")
        word.click()
        until(browser, lambda b: b.execute_script("return audio.currentTime") >= asked)
        assert browser.execute_script("return audio.currentTime") < asked + 5
        until(
            browser, lambda b: b.find_elements(By.CSS_SELECTOR, ".turn:nth-child(3).now .word.now")
        )
        assert browser.execute_script("return audio.paused") is False
        browser.execute_script("audio.pause()")

        # The keyboard reaches each turn, and seeks far without loading what is between.
        last = browser.find_elements(By.CSS_SELECTOR, "button[data-seek]")[-1]
        last.send_keys(Keys.ENTER)
        until(browser, lambda b: b.execute_script("return audio.currentTime") >= turns[-1]["start"])
        browser.get(f"{url}/calls/{CALL}?t=40.5")
        until(browser, lambda b: b.execute_script("return audio.currentTime") == 40.5)


def test_the_lobby_shows_calls_come_run_and_go(pages: Pages, browser: webdriver.Chrome) -> None:
    with pages.served() as url:
        browser.get(url)
        until_text(browser, "#connection", "Connected")
        assert browser.find_element(By.ID, "empty").is_displayed()
        pages.begin_call(CALL, caller=HOSTILE, agent="Amina")
        until_text(browser, "#rows", "Amina")
        assert not browser.find_element(By.ID, "empty").is_displayed()
        assert text_of(browser, "#count") == "1"
        pages.publish("lag.updated", CALL, lag_s=7.0, state="behind")
        until_text(browser, "#rows", "s late")
        until_text(browser, "#rows [data-field=timer]", "0:0")
        pages.end_call(CALL)
        until_text(browser, "#rows", "Call ended")
        assert text_of(browser, "#count") == "0"
        assert browser.execute_script("return window.hacked") is None


def test_log_in_by_form_opens_pages_and_their_events(
    tmp_path: Path, valkey: Valkey, browser: webdriver.Chrome
) -> None:
    pages = Pages(tmp_path, valkey.url, token="a long token")
    pages.begin_call(CALL)
    with pages.served() as url:
        browser.get(f"{url}/calls/{CALL}/live")
        until_text(browser, "h1", "Log in")
        browser.find_element(By.ID, "token").send_keys("wrong" + Keys.ENTER)
        until_text(browser, "#error", "not the token")
        browser.find_element(By.ID, "token").send_keys("a long token" + Keys.ENTER)
        until_text(browser, "#connection", "Connected")
        assert browser.current_url == f"{url}/calls/{CALL}/live"
        pages.say(CALL, segment_of(1, "caller", 1.0, 2.0, "One."))
        until_text(browser, "#transcript", "One.")
        browser.find_element(By.CSS_SELECTOR, ".logout button").click()
        until_text(browser, "h1", "Log in")
        browser.get(f"{url}/calls/")
        until_text(browser, "h1", "Log in")
    pages.close()


def test_every_page_fits_a_narrow_screen_and_can_be_used_by_keyboard(
    pages: Pages, browser: webdriver.Chrome
) -> None:
    pages.begin_call("a" * 80, caller="+254 700 " + "9" * 150, agent="Amina", queue="q" * 200)
    pages.say("a" * 80, segment_of(1, "caller", 1.0, 2.0, "W" * 300))
    path = Media("stereo", str(SAMPLES / "helpline-distress.wav"))
    pages.record("a" * 80, [path], [segment_of(9, "agent-2", 1.0, 2.0, "W" * 300)])
    with pages.served() as url:
        for width in (390, 320):
            resize(browser, width, 844)
            for page in (
                "/",
                "/calls/",
                f"/calls/{'a' * 80}",
                f"/calls/{'a' * 80}/live",
                "/nothing",
            ):
                browser.get(url + page)
                needed = browser.execute_script("return document.documentElement.scrollWidth")
                assert needed <= width, (page, width)
                browser.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
                focused = browser.execute_script("return document.activeElement.className")
                assert focused == "skip", page
                small = browser.execute_script(
                    "return [...document.querySelectorAll('button, .button, select, nav a')]"
                    ".filter((e) => e.offsetParent && e.getBoundingClientRect().height < 24)"
                    ".map((e) => e.outerHTML)"
                )
                assert small == [], page


# ---- what is not heard, and what must not be


def test_a_leg_without_live_text_is_said_calmly(pages: Pages, browser: webdriver.Chrome) -> None:
    pages.begin_call(CALL, caller="100")
    pages.say(CALL, segment_of(1, "caller", 1.0, 2.0, "Hello there."))
    with pages.served() as url:
        browser.get(f"{url}/calls/{CALL}/live")
        until_text(browser, "#connection", "Connected")
        until_text(browser, "#transcript", "Hello there.")
        notice = browser.find_element(By.ID, "no-text")
        assert not notice.is_displayed()
        without_text(pages, pages.legs["agent"])
        pages.publish("lag.updated", CALL, lag_s=None, state="recording")
        until_text(browser, "#no-text", "No live text for the agent: too many calls at once.")
        assert text_of(browser, "#no-text").endswith("after the call, from the recording.")
        assert text_of(browser, "#without") == "No live text for the agent"  # beside the delay
        assert notice.is_displayed()
        until_text(browser, "#legs", "on the line, no live text")
        # The other leg goes on as before.
        pages.publish("lag.updated", CALL, lag_s=7.0, state="behind")
        until_text(browser, "#lag", "Words appear about")
        pages.publish("lag.updated", CALL, lag_s=None, state="recording")
        pages.say(CALL, segment_of(2, "caller", 3.0, 4.0, "Can you hear me?"))
        until_text(browser, "#transcript", "Can you hear me?")
        assert text_of(browser, "#lag").startswith("Words appear about")
        # Whoever comes later learns it from the record.
        browser.get(f"{url}/calls/{CALL}/live")
        until_text(browser, "#no-text", "No live text for the agent")
        browser.get(url)
        until_text(browser, "#rows [data-field=lag]", "late. Agent: after the call")


def test_a_call_without_any_live_text_is_not_waited_for(
    pages: Pages, browser: webdriver.Chrome
) -> None:
    pages.begin_call(CALL, ("mixed",), caller="100")
    with pages.served() as url:
        browser.get(url)
        until_text(browser, "#rows [data-field=lag]", "On time")
        without_text(pages, pages.legs["mixed"])
        pages.publish("lag.updated", CALL, lag_s=None, state="recording")
        until_text(browser, "#rows [data-field=lag]", "After the call")
        browser.get(f"{url}/calls/{CALL}/live")
        until_text(browser, "#no-text", "No live text for this call: too many calls at once.")
        until_text(browser, "#waiting", "Nothing is written here during this call, whoever speaks.")
        assert not browser.find_element(By.ID, "lag").is_displayed()


@pytest.mark.parametrize("told", ["leg.ended", "call.ended"])
def test_a_refusal_takes_the_words_away_at_once(
    pages: Pages, browser: webdriver.Chrome, told: str
) -> None:
    pages.begin_call(CALL, caller="+254 700 000 123", agent="Amina")
    pages.say(CALL, segment_of(1, "caller", 1.0, 2.0, "My secret."))
    with pages.served() as url:
        browser.get(f"{url}/calls/{CALL}/live")
        until_text(browser, "#connection", "Connected")
        until_text(browser, "#transcript", "My secret.")
        pages.say(CALL, segment_of(2, "caller", 3.0, 4.0, "Another secret."))
        until_text(browser, "#announcer", "Another secret.")
        partial(pages, 3, "and a secret that is not", 0, start=5.0)
        until_text(browser, ".partial", "and a secret")
        refuse(pages, CALL)
        browser.execute_script(
            "window.told = []; new MutationObserver((all) => told.push(...all.map((m) => m.type)))"
            ".observe(document.getElementById('refused'), { attributes: true, childList: true })"
        )
        leg = {"leg": "caller"} if told == "leg.ended" else {}
        pages.publish(told, CALL, duration=5.0, reason="consent refused", **leg)
        until_text(browser, "#refused", "The caller refused analysis.")
        assert browser.find_element(By.ID, "refused").is_displayed()
        # A status region that is filled while it is hidden is not read out.
        assert browser.execute_script("return told") == ["attributes", "childList"]
        assert "secret" not in browser.page_source
        assert text_of(browser, "#who") == CALL
        # What was on its way comes too late.
        partial(pages, 4, "a late secret", 0, start=6.0)
        pages.publish(
            "transcript.final", CALL, leg="caller", segment=5, start=7, end=8, text="A late secret"
        )
        pages.end_call(CALL)
        until_text(browser, "#after", "Nothing of this call is analysed or kept.")
        until_text(browser, "#about", "withheld at the caller's wish")
        assert "secret" not in browser.page_source
        assert "+254" not in browser.page_source
        assert text_of(browser, "#state") == "Analysis refused"
        assert text_of(browser, "#waiting") == "No text of this call is kept."


def test_a_page_that_missed_the_refusal_learns_of_it_from_the_record(
    tmp_path: Path, stopped_valkey: Valkey, browser: webdriver.Chrome
) -> None:
    """Its events are gone, the refusal among them: what comes is `reset`."""
    stopped_valkey.start()
    pages = Pages(tmp_path, stopped_valkey.url)
    pages.begin_call(CALL, caller="+254 700 000 123")
    pages.say(CALL, segment_of(1, "caller", 1.0, 2.0, "My secret."))
    with pages.served() as url:
        browser.get(f"{url}/calls/{CALL}/live")
        until_text(browser, "#connection", "Connected")
        until_text(browser, "#transcript", "My secret.")
        stopped_valkey.kill()
        until_text(browser, "#connection", "New text is held up")
        (path,) = stopped_valkey.folder.glob("appendonlydir/*.incr.aof")
        path.write_bytes(b"garbage\r\n" * 10)
        refuse(pages, CALL)
        stopped_valkey.start()
        until_text(browser, "#refused", "The caller refused analysis.")
        assert "secret" not in browser.page_source
        assert "+254" not in browser.page_source
    pages.close()


def test_the_call_page_takes_everything_away_when_the_caller_refuses(
    pages: Pages, browser: webdriver.Chrome
) -> None:
    pages.begin_call(CALL, caller="+254 700 000 123")
    pages.say(CALL, segment_of(1, "caller", 1.0, 2.0, "My secret."))
    with pages.served() as url:
        browser.get(f"{url}/calls/{CALL}")
        until_text(browser, "#transcript", "My secret.")
        refuse(pages, CALL)
        pages.end_call(CALL)
        until_text(browser, "#outcome", "The caller refused analysis")
        until_text(browser, "#head", "Analysis refused")
        assert "secret" not in browser.page_source
        assert "+254" not in browser.page_source
        assert text_of(browser, "#notice") == ""


def test_a_call_that_nobody_answers_ends_as_missed(pages: Pages, browser: webdriver.Chrome) -> None:
    pages.begin_call(CALL, ("caller",), caller="100")
    with pages.served() as url:
        browser.get(f"{url}/calls/{CALL}/live")
        until_text(browser, "#connection", "Connected")
        pages.storage.end_leg(pages.legs["caller"], "hangup", None)
        ended = pages.storage.end_call_if_idle(CALL, "hangup")
        assert ended
        change(pages, CALL, state="missed", disposition="abandoned")
        pages.publish("call.ended", CALL, duration=ended.duration_s, reason="hangup")
        until_text(browser, "#state", "Missed")
        until_text(browser, "#after", "Nobody answered.")
        until_text(browser, "#about [data-field=outcome]", "Caller hung up")


def test_a_lost_recording_is_looked_for_again_from_its_page(
    pages: Pages, browser: webdriver.Chrome
) -> None:
    audio_id = lost(pages, CALL)
    with pages.served() as url:
        browser.get(f"{url}/calls/{CALL}")
        until_text(browser, ".problems", "The recording is missing")
        browser.find_element(By.CSS_SELECTOR, "[data-rerun]").click()
        until_text(browser, ".progress-card", "Next: read the recording")
        assert pages.storage.steps(audio_id)[0].status == "pending"


def test_the_list_of_missed_calls_fits_every_screen_and_reads_well(
    pages: Pages, browser: webdriver.Chrome
) -> None:
    began = datetime(2026, 11, 23, 9, 0, tzinfo=UTC)
    missed(pages, "1.1", Disposition.FAILED, began, 3725, caller="9" * 150, queue="q" * 200)
    store(pages, "1.2", sample(), full(), caller="100")
    change(pages, "1.2", state="missed", disposition=Disposition.NO_ANSWER)
    store(pages, "1.3", sample(), full(), caller="100")
    refuse(pages, "1.3")
    lost(pages, "1.4")
    pages.begin_call("1.5", caller="100")
    without_text(pages, *pages.legs.values())
    paths = ["/", "/calls/", "/calls/?state=missed", "/calls/1.5/live"]
    with pages.served() as url:
        for path in (*paths, *(f"/calls/1.{number}" for number in range(1, 6))):
            for width in (1440, 1000, 390, 320):
                resize(browser, width, 844)
                browser.get(url + path)
                needed = browser.execute_script("return document.documentElement.scrollWidth")
                assert needed <= width, (path, width)
            assert browser.execute_script(FAINT) == [], path
            small = browser.execute_script(
                "return [...document.querySelectorAll('.tabs a, button')]"
                ".filter((e) => e.offsetParent && e.getBoundingClientRect().height < 24).length"
            )
            assert small == 0, path
        browser.get(f"{url}/calls/")
        browser.find_element(By.LINK_TEXT, "Missed").click()
        until_text(browser, "#list", "waited 1:02:05 min")
        assert "1.3" not in text_of(browser, "#list")


# ---- the analysis


def analysed(pages: Pages, **more: Any) -> str:
    return store(pages, CALL, sample(), full(**more), caller="+254 700 000 123")


def in_view(browser: webdriver.Chrome, element: WebElement) -> bool:
    """Tell whether an element is on the screen, and not under the player."""
    found: bool = browser.execute_script(
        "const box = arguments[0].getBoundingClientRect();"
        "const bar = document.querySelector('.bar').getBoundingClientRect();"
        "return box.top >= 0 && box.bottom <= bar.top",
        element,
    )
    return found


def test_a_sentence_of_the_summary_leads_to_its_words_and_plays_them(
    pages: Pages, browser: webdriver.Chrome
) -> None:
    analysed(pages)
    with pages.served() as url:
        resize(browser, 390, 600)
        browser.get(f"{url}/calls/{CALL}")
        until(browser, lambda b: b.execute_script("return audio.readyState >= 1"))
        assert "not found in the call" in text_of(browser, ".sentences li:nth-child(3)")
        sentence = browser.find_element(By.CSS_SELECTOR, ".sentences .claim")
        asked = float(sentence.get_attribute("data-start") or "")
        first = browser.find_element(By.CSS_SELECTOR, f"#s103 .word[data-s='{asked}']")
        assert not in_view(browser, first)
        sentence.send_keys(Keys.ENTER)  # by keyboard as by mouse
        until(browser, lambda b: b.find_elements(By.CSS_SELECTOR, ".word.found"))
        found = browser.find_elements(By.CSS_SELECTOR, ".word.found")
        assert " ".join(word.text for word in found).strip("◆ ") == "he broke the kitchen door."
        until(browser, lambda b: in_view(b, first))
        until(browser, lambda b: b.execute_script("return audio.currentTime") >= asked)
        assert browser.execute_script("return audio.currentTime") < asked + 5
        assert browser.execute_script("return audio.paused") is False
        until(browser, lambda b: b.find_elements(By.CSS_SELECTOR, "#s103 .word.now"))
        # Back returns to the summary.
        browser.execute_script("audio.pause()")
        browser.back()
        until(browser, lambda b: in_view(b, sentence))


def test_categories_flags_and_names_lead_to_their_words(
    pages: Pages, browser: webdriver.Chrome
) -> None:
    analysed(pages)
    with pages.served() as url:
        browser.get(f"{url}/calls/{CALL}")
        until(browser, lambda b: b.execute_script("return audio.readyState >= 1"))
        for selector, words in (
            (".category .evidence", "he pushed me."),
            (".lane-flags .evidence", "please call the police at once."),
            (".safety .evidence", "he pushed me."),
            (".entities .mention", "David."),
        ):
            link = browser.find_element(By.CSS_SELECTOR, selector)
            browser.execute_script(
                "arguments[0].dispatchEvent(new MouseEvent('click', {bubbles: true}))", link
            )
            said = browser.execute_script(
                "return [...document.querySelectorAll('.word.found')].map((w) => w.textContent)"
            )
            assert " ".join(said) == words, selector
            start = float(link.get_attribute("data-start") or "")
            until(browser, lambda b, s=start: b.execute_script("return audio.currentTime") >= s)
        # The timeline itself plays too.
        lane = browser.find_element(By.CSS_SELECTOR, ".lane-seek")
        ActionChains(browser).move_to_element(lane).click().perform()
        until(browser, lambda b: 38 < b.execute_script("return audio.currentTime") < 45)


def test_marks_are_shown_in_the_transcript_and_can_be_switched_off(
    pages: Pages, browser: webdriver.Chrome
) -> None:
    analysed(pages)
    with pages.served() as url:
        browser.get(f"{url}/calls/{CALL}")
        marked = browser.find_element(By.CSS_SELECTOR, "#s103 mark.flag.category.low-confidence")
        assert marked.text == "kitchen"
        assert "heard with 31%" in (marked.get_attribute("title") or "")
        for kind, style, off in (
            ("entity", "backgroundImage", "none"),
            ("flag", "boxShadow", "none"),
            ("category", "borderBottomStyle", "none"),
            ("low-confidence", "textDecorationLine", "none"),
        ):
            read = f"return getComputedStyle(arguments[0]).{style}"
            mark = browser.find_element(By.CSS_SELECTOR, f"#transcript mark.{kind}")
            before = browser.execute_script(read, mark)
            assert before != off, kind
            button = browser.find_element(By.CSS_SELECTOR, f"[data-shows={kind}]")
            button.send_keys(Keys.SPACE)
            assert button.get_attribute("aria-pressed") == "false"
            assert browser.execute_script(read, mark) == off, kind
            button.send_keys(Keys.SPACE)
            assert browser.execute_script(read, mark) == before, kind
        translated = browser.find_element(By.CSS_SELECTOR, ".translation")
        assert "Guten Abend, hier ist das Familientelefon." in translated.text
        assert translated.get_attribute("lang") == "de"
        browser.find_element(By.CSS_SELECTOR, "[data-shows=translation]").send_keys(Keys.ENTER)
        assert not translated.is_displayed()


def test_the_page_shows_progress_and_then_the_results_by_itself(
    pages: Pages, browser: webdriver.Chrome
) -> None:
    with pages.served() as url:
        made = full()
        audio_id = store(pages, CALL, sample(), {}, running={"transcribe": 0.25})
        browser.get(f"{url}/calls/{CALL}")
        until_text(browser, ".doing", "Transcribing: 20 of 78 s")
        proceed(pages, audio_id, {}, {"transcribe": 0.5})
        until_text(browser, ".doing", "Transcribing: 39 of 78 s")
        assert text_of(browser, ".waiting").startswith("No words yet")
        browser.execute_script("window.stays = 1; audio.play()")
        proceed(pages, audio_id, made, {})
        until_text(browser, "#transcript", "he broke the kitchen door")
        until_text(browser, "#categories", "Physical violence")
        until_text(browser, "#notice", "The analysis is over.")
        assert browser.execute_script("return window.stays") == 1
        assert browser.execute_script("return audio.paused") is False  # nobody's ears were cut
        assert browser.find_elements(By.CSS_SELECTOR, ".progress-card") == []
        # What came later can be played as what was there from the beginning.
        last = browser.find_elements(By.CSS_SELECTOR, "#transcript button[data-seek]")[-1]
        last.send_keys(Keys.ENTER)
        until(browser, lambda b: b.execute_script("return audio.currentTime") > 74)


def test_what_failed_can_run_again_from_the_page(pages: Pages, browser: webdriver.Chrome) -> None:
    made = full()
    del made["classify"]
    audio_id = store(pages, CALL, sample(), made, failed={"classify": "no model"})
    with pages.served() as url:
        browser.get(f"{url}/calls/{CALL}")
        until_text(browser, ".problems", "Sort into categories: no model")
        browser.find_element(By.CSS_SELECTOR, "[data-rerun]").send_keys(Keys.ENTER)
        until_text(browser, ".progress-card", "Next: sort into categories")
        states = {step.name: step.status for step in pages.storage.steps(audio_id)}
        assert states["classify"] == "pending"
        again = full()
        proceed(pages, audio_id, {name: again[name] for name in states if name in again}, {})
        until_text(browser, "#categories", "Physical violence")
        until(browser, lambda b: not b.find_elements(By.CSS_SELECTOR, ".problems"))


def test_people_say_whether_a_category_is_right_and_which_one_is_missing(
    pages: Pages, browser: webdriver.Chrome
) -> None:
    analysed(pages)
    with pages.served() as url:
        browser.get(f"{url}/calls/{CALL}")
        right, wrong = browser.find_elements(By.CSS_SELECTOR, ".category:first-child button")
        assert right.accessible_name == "Right: Physical violence"
        wrong.send_keys(Keys.ENTER)
        until_text(browser, ".category:first-child .said", "Noted")
        assert wrong.get_attribute("aria-pressed") == "true"
        assert right.get_attribute("aria-pressed") == "false"
        browser.find_element(By.CSS_SELECTOR, "#missing-part summary").send_keys(Keys.ENTER)
        Select(browser.find_element(By.ID, "missing-category")).select_by_value("mental.anxiety")
        browser.find_element(By.ID, "missing-words").send_keys("I am so frightened" + Keys.ENTER)
        until_text(browser, "#missing .said", "Noted")
    said = [(each.category, each.verdict, each.texts) for each in pages.storage.corrections()]
    quotes = ("he pushed me", "he broke the kitchen door", "please call the police at once")
    assert said == [
        ("violence.physical", "wrong", quotes),
        ("mental.anxiety", "missing", ("I am so frightened",)),
    ]


def test_a_correction_that_is_refused_says_why(pages: Pages, browser: webdriver.Chrome) -> None:
    made = full()
    made["classify"]["categories"][0]["id"] = "of.another.taxonomy"
    store(pages, CALL, sample(), made)
    with pages.served() as url:
        browser.get(f"{url}/calls/{CALL}")
        button = browser.find_element(By.CSS_SELECTOR, "[data-verdict=right]")
        button.send_keys(Keys.ENTER)
        until_text(browser, ".category:first-child .said", "The taxonomy has no such category.")
        assert button.get_attribute("aria-pressed") == "false"


def test_a_recording_is_uploaded_from_the_list_and_leads_to_its_call(
    pages: Pages, browser: webdriver.Chrome, tmp_path: Path
) -> None:
    empty = tmp_path / f"empty{HOSTILE.replace('/', '')}.wav"
    empty.touch()
    with pages.served() as url:
        browser.get(f"{url}/calls/")
        browser.find_element(By.ID, "file").send_keys(str(empty))
        browser.find_element(By.CSS_SELECTOR, "#upload button").click()
        until_text(browser, "#uploads .failed", "The file is empty.")
        browser.find_element(By.ID, "file").send_keys(str(SAMPLES / "silent-stretch.wav"))
        browser.find_element(By.CSS_SELECTOR, "#upload button").click()
        until(browser, lambda b: urlsplit(b.current_url).path != "/calls/")
        until_text(browser, ".progress-card", "Next: read the recording")
        (recording,) = pages.storage.recordings(None, 10)[0]
        assert browser.current_url == f"{url}/calls/{recording.call_id}"
        assert browser.execute_script("return window.hacked") is None


def test_the_list_follows_the_analysis_by_itself(pages: Pages, browser: webdriver.Chrome) -> None:
    audio_id = store(pages, CALL, sample(), {}, running={"transcribe": 0.25})
    with pages.served() as url:
        browser.get(f"{url}/calls/")
        until_text(browser, "#list", "Processing")
        proceed(pages, audio_id, full(), {})
        until_text(browser, "#list .about-call", "Physical violence")
        assert text_of(browser, "#list .state") == "Completed"
        assert text_of(browser, "#list .severity") == "Critical"


def test_what_people_said_and_are_called_is_inert_in_every_part(
    pages: Pages, browser: webdriver.Chrome
) -> None:
    said = sample_segments()
    said[0] = segment(100, "agent", 1.0, 8.0, f"{HOSTILE} My name is David.")
    made = full(said, label=HOSTILE)
    made["summarize"]["headline"] = HOSTILE
    made["classify"]["categories"][1]["label"] = HOSTILE
    made["ner"]["entities"][1]["normal"] = HOSTILE
    store(pages, CALL, sample(), made, caller=HOSTILE, agent=HOSTILE)
    with pages.served() as url:
        for path in (f"/calls/{CALL}", "/calls/"):
            browser.get(url + path)
            until_text(browser, "#main", HOSTILE)
            assert browser.execute_script("return window.hacked") is None
            assert browser.find_elements(By.CSS_SELECTOR, "main img, main script") == []


def test_the_page_of_an_analysed_call_fits_narrow_screens_and_reads_well(
    pages: Pages, browser: webdriver.Chrome
) -> None:
    made = full(label="W" * 300)
    made["summarize"]["headline"] = "q" * 200
    made["ner"]["entities"][0]["normal"] = "9" * 150
    made["classify"]["categories"][0]["label"] = "V" * 120
    store(pages, CALL, sample(), made, caller="+254 700 000 123")
    with pages.served() as url:
        for width in (1440, 1000, 390, 320):
            resize(browser, width, 844)
            for page in (f"/calls/{CALL}", "/calls/"):
                browser.get(url + page)
                needed = browser.execute_script("return document.documentElement.scrollWidth")
                assert needed <= width, (page, width)
                small = browser.execute_script(
                    "return [...document.querySelectorAll('button, select, summary')]"
                    ".filter((e) => e.offsetParent && e.getBoundingClientRect().height < 24)"
                    ".map((e) => e.outerHTML)"
                )
                assert small == [], page
        browser.get(f"{url}/calls/{CALL}")
        faint = browser.execute_script(FAINT)
        assert faint == []
        # The player hides nothing that has the focus.
        for selector in (".mention", "[data-verdict]", ".steps"):
            found = browser.find_elements(By.CSS_SELECTOR, selector)[-1]
            browser.execute_script("arguments[0].focus(); arguments[0].scrollIntoView()", found)
            assert in_view(browser, found), selector


#: Texts whose contrast with what is behind them is less than 4.5.
FAINT = """
const lum = ([r, g, b]) => [r, g, b].map((c) => c / 255)
  .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
  .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
const behind = (e) => {
  for (; e; e = e.parentElement) {
    const color = rgb(getComputedStyle(e).backgroundColor);
    if (color.length < 4 || color[3] === 1) return color;
  }
  return [255, 255, 255];
};
return [...document.querySelectorAll("main *")].filter((e) => {
  const isText = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
  if (!e.offsetParent || !isText) return false;
  if (e.closest(".sr-only, svg, select, option")) return false;
  const [a, b] = [lum(rgb(getComputedStyle(e).color)), lum(behind(e))].sort((x, y) => y - x);
  return (a + 0.05) / (b + 0.05) < 4.5;
}).map((e) => e.outerHTML.slice(0, 200));
"""
