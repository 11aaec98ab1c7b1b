"""The pages in a real browser."""

import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from callcore.calls import Media
from callcore.results import Segment
from tests.support.browser import browser, resize
from tests.support.pages import SAMPLES, Pages, sample_turns, segment_of
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
        pages.publish("lag.updated", CALL, lag_s=7.0, state="behind")
        until_text(browser, "#lag", "7 s behind")
        assert browser.execute_script("return window.hacked") is None
        assert HOSTILE in text_of(browser, "h1")


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
        until_text(browser, "#connection", "event broker is away")
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
        words = [segment_of(9, "caller", 1.0, 2.0, "Live words.", source="recording")]
        audio_id = pages.record(
            CALL, [Media("stereo", str(SAMPLES / "helpline-distress.wav"))], words
        )
        pages.publish("analysis.ready", CALL, audio_id=audio_id)
        until_text(browser, "#steps", "Transcribe")
        until_text(browser, "#after-text", "is transcribed")
        browser.find_element(By.ID, "call-page").click()
        until_text(browser, "#transcript", "Live words.")


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
        until_text(browser, "#rows", "7 s behind")
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
