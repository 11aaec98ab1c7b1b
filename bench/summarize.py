"""CPU time of the extractive summary, and whether every claim stands in the call.

    python bench/summarize.py --data DIR --models DIR [--show]

DIR holds ``twoparty/`` (transcribed here by Whisper base) and ``harpervalley/`` (the reference
turns). Faithful is a claim whose text is, word for word, the quotes of its evidence, each of which
stands in its segment within its times.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from callcore import audio, model_store
from callcore.engines.batch_whisper import BatchWhisper
from callcore.engines.minilm import MiniLM
from callcore.results import Word
from callcore.steps import summarize
from callcore.summary_support import Transcript
from callcore.summary_text import cues, sentences
from callcore.utterances import regroup, text_of

#: Sentences such as a model writes, by call: true ones, and ones the call does not bear out. The
#: limits of the check were chosen on the first call; the others were written afterwards.
WRITTEN = {
    "auto_repairs_40_utc": (
        (
            "The caller's service light came on two weeks after buying a car from the dealership.",
            "Jack called Platinum Motors about a service light on his 2018 Tesla Model S.",
            "The agent offered to fix the car at no charge.",
            "The first availability is two days from now.",
            "A rental car can be provided at no charge.",
            "They booked an 8 a.m. appointment for two days from now.",
            "Jack may walk in before the appointment.",
            "He needs to call his boss to get time off.",
            "The customer reported that the car is not making crazy noises yet.",
            "The agent apologised for the inconvenience.",
            "Michelle answered the call and looked up the caller in the system.",
            "Jack Setilly has an appointment at 8 a.m. in two days.",
        ),
        (
            "The caller wants a refund for a broken phone.",
            "The appointment is at 9 a.m. on Friday.",
            "The repair will cost 200 dollars.",
            "Sarah called about her Toyota.",
            "The caller was angry and threatened to sue.",
            "The car's brakes failed on the highway.",
            "The agent transferred the call to the billing department.",
            "The caller agreed to pay a deposit of 50 dollars.",
            "The Tesla was stolen last night.",
            "The caller refused the appointment.",
            "The agent said the repair is not free of charge.",
            "The service light has been on for two years.",
        ),
    ),
    "00d676d7058c49bb": (
        (
            "Robert Johnson wants to transfer money between his accounts.",
            "$135 was transferred from savings to checking.",
            "The agent confirmed that 135 dollars has been transferred.",
            "Jennifer from Happy Valley National Bank helped him.",
        ),
        (
            "Robert Johnson wants to open a new account.",
            "$153 was transferred from savings to checking.",
            "The transfer was refused because of insufficient funds.",
            "The caller also asked for a loan.",
            "The transfer will take three days.",
        ),
    ),
    "06a919ed8b2d47e4": (
        (
            "David Smith wants to reset his password.",
            "A password reset link has been sent to his phone.",
            "The caller's phone number is 570 448 0374.",
        ),
        (
            "David Smith wants to reset his PIN.",
            "A password reset link has been sent by email.",
            "The caller's phone number is 570 448 0375.",
            "David Jones forgot his user name.",
        ),
    ),
    "010eaccb7a23436f": (
        (
            "Linda Garcia would like to schedule an appointment.",
            "The appointment is scheduled for Monday at 11 a.m.",
        ),
        (
            "The appointment is scheduled for Tuesday at 11 a.m.",
            "Linda Garcia cancelled her appointment.",
            "The appointment is with Dr. Miller.",
        ),
    ),
}


#: A call that we wrote, and sentences that keep its words and turn them round: denials dropped or
#: added, and parts swapped. Written after the rules, which were not changed for them.
TURNED_CALL = (
    ("agent", "Helpline, good evening. What has happened?"),
    ("caller", "My stepfather came home drunk and he slapped my sister in the kitchen."),
    ("caller", "She did not bleed, but she is afraid and will not leave her room."),
    ("agent", "Did he touch you as well?"),
    ("caller", "No. He never touched me, he only shouted at me."),
    ("agent", "Does your mother know about it?"),
    ("caller", "I haven't told my mother, because she works at night."),
    ("caller", "Last year my uncle took us to the hospital and nobody believed us there."),
    ("agent", "I believe you. I cannot come to your house, but I will call the social worker."),
    ("caller", "Please don't send the police, I am not ready to talk to them."),
)
TURNED = (
    (
        "The stepfather slapped the caller's sister in the kitchen.",
        "The stepfather never touched the caller.",
        "The sister is afraid and will not leave her room.",
        "The caller has not told her mother.",
        "The uncle took the caller to the hospital last year.",
        "The agent will call the social worker.",
        "The caller is not ready to talk to the police.",
        "Nobody believed them at the hospital.",
    ),
    (
        "The stepfather touched the caller.",
        "The sister slapped the stepfather in the kitchen.",
        "The stepfather did not slap the sister in the kitchen.",
        "The sister bled.",
        "The sister will leave her room.",
        "The caller has told her mother about it.",
        "The caller took the uncle to the hospital last year.",
        "Everybody believed them at the hospital.",
        "The agent will not call the social worker.",
        "The agent can come to the house.",
        "The caller is ready to talk to the police.",
        "The caller wants the agent to send the police.",
        "The caller shouted at the stepfather.",
        "The stepfather is afraid.",
    ),
)


class Local:
    """One embedder in this process."""

    def __init__(self, engine: MiniLM) -> None:
        self.engine = engine

    def call(self, engine: str, method: str, *args: Any) -> Any:
        return getattr(self.engine, method)(*args)

    def attributes(self, engine: str, *names: str) -> dict[str, Any]:
        return {name: getattr(self.engine, name) for name in names}


def segment(number: int, leg: str, words: list[dict[str, Any]], text: str) -> dict[str, Any]:
    return {
        "segment": number,
        "leg": leg,
        "start": words[0]["s"],
        "end": words[-1]["e"],
        "text": text,
        "language": "en",
        "words": words,
        "speaker": None,
    }


def reference_calls(folder: Path) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    for path in sorted(folder.glob("*.json")):
        call = json.loads(path.read_text("utf-8"))
        if path.name == "manifest.json" or not call.get("has_reference"):
            continue
        segments = []
        for number, turn in enumerate(call["turns"]):
            said = turn["text"].split()
            step = (turn["end"] - turn["start"]) / len(said)
            words = [
                {"w": w, "s": turn["start"] + step * n, "e": turn["start"] + step * (n + 1), "p": 1}
                for n, w in enumerate(said)
            ]
            segments.append(segment(number, turn["speaker"], words, " ".join(said)))
        yield f"{call['sid']} {call['task_type']}", segments


def two_party(path: Path, whisper: BatchWhisper) -> list[dict[str, Any]]:
    samples = np.concatenate(list(audio.decode(str(path), 16_000)))
    segments = []
    for channel, leg in enumerate(("caller", "agent")):
        said = whisper.transcribe(np.ascontiguousarray(samples[:, channel]), "en")
        words = [Word(w.w, w.s, w.e, w.p) for each in said for w in each.words]
        for part in regroup(words):
            segments.append((leg, part))
    segments.sort(key=lambda each: each[1][0].s)
    return [
        segment(n, leg, [word.as_json() for word in part], text_of(part, "en"))
        for n, (leg, part) in enumerate(segments)
    ]


def claims_of(result: dict[str, Any]) -> list[dict[str, Any]]:
    fields = [result["reason"], result["outcome"], *result["actions"], *result["open_questions"]]
    return [*result["sentences"], *(each for each in fields if each)]


def is_faithful(claim: dict[str, Any], segments: list[dict[str, Any]]) -> bool:
    by_number = {each["segment"]: each for each in segments}
    return bool(claim["evidence"]) and (
        claim["text"] == " ".join(each["quote"] for each in claim["evidence"])
        and all(
            each["quote"] in by_number[each["segment"]]["text"]
            and by_number[each["segment"]]["start"] <= each["start"] <= each["end"]
            and each["end"] <= by_number[each["segment"]]["end"]
            for each in claim["evidence"]
        )
    )


def turned_call() -> list[dict[str, Any]]:
    segments, at = [], 0.0
    for number, (leg, text) in enumerate(TURNED_CALL):
        words = [{"w": w, "s": at + n, "e": at + n + 1, "p": 1} for n, w in enumerate(text.split())]
        segments.append(segment(number, leg, words, text))
        at += len(words)
    return segments


def check(
    engine: MiniLM,
    segments: list[dict[str, Any]],
    written: tuple[tuple[str, ...], tuple[str, ...]],
    kind: str = "invented",
) -> None:
    """Print how many true and wrong sentences about a call are supported, and which wrong ones."""
    said = sentences(segments, "en")
    transcript = Transcript(said, engine.embed([each.text for each in said]), "en", cues("en"))
    counts, wrong = [], list[str]()
    for texts in written:
        vectors = engine.embed(texts)
        borne_out = [
            bool(transcript.support(text, vector).sentences)
            for text, vector in zip(texts, vectors, strict=True)
        ]
        counts.append(f"{sum(borne_out)} of {len(texts)}")
        wrong = [text for text, is_so in zip(texts, borne_out, strict=True) if is_so]
    print(f"  check of written sentences: true {counts[0]} supported, {kind} {counts[1]}", wrong)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--show", action="store_true")
    arguments = parser.parse_args()
    engines = Local(MiniLM(str(model_store.find(arguments.models, "minilm"))))
    whisper = BatchWhisper(str(model_store.find(arguments.models, "base")))
    recording = arguments.data / "twoparty" / "auto_repairs_40_utc.flac"
    calls = [
        ("auto_repairs_40_utc", two_party(recording, whisper)),
        *reference_calls(arguments.data / "harpervalley"),
    ]
    engines.engine.embed(["warm"])
    times, num_claims, num_faithful = [], 0, 0
    found = dict.fromkeys(("reason", "outcome", "actions", "open_questions"), 0)
    for name, segments in calls:
        context: Any = SimpleNamespace(
            results={"transcribe": {"segments": segments, "language": "en"}},
            settings=SimpleNamespace(summary_url="", summary_model=""),
            engines=engines,
            progress=lambda share: None,
        )
        began = time.process_time()  # the machine may be busy with other things
        result = summarize.run(context)
        times.append(1000 * (time.process_time() - began))
        claims = claims_of(result)
        num_claims += len(claims)
        num_faithful += sum(is_faithful(each, segments) for each in claims)
        for field in found:
            found[field] += bool(result[field])
        num_words = sum(len(each["words"]) for each in segments)
        kept = len(result["text"].split())
        print(f"{name}: {num_words} words, summary {kept}, {times[-1]:.0f} ms of CPU")
        if name.split()[0] in WRITTEN:
            check(engines.engine, segments, WRITTEN[name.split()[0]])
        if arguments.show:
            print(f"  {result['headline']}\n  {result['text']}")
    print("turned round")
    check(engines.engine, turned_call(), TURNED, "turned round")
    print(
        f"{len(calls)} calls: {num_faithful} of {num_claims} claims faithful; median "
        f"{statistics.median(times):.0f} ms, longest {max(times):.0f} ms; found: {found}"
    )


if __name__ == "__main__":
    main()
