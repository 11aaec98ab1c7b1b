import re
import shutil
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from callcore import document_types, summary_rules
from callcore.engines import Floats
from callcore.engines.seq2seq import Seq2Seq
from callcore.errors import EngineError, ModelError
from callcore.steps.summarize import STEP
from callcore.summary_support import Transcript, numbers_of
from callcore.summary_text import cues, sentences
from tests.support.engines import LocalEngines
from tests.support.recognition import model

PACKAGE = Path(__file__).parent / "data" / "argos" / "translate-es_en-prompts.argosmodel"

CALL = """
agent: Thank you for calling Harper Motors. My name is Jane. How can I help you today?
caller: Hi, this is Tom. I'm calling because the brake light of my Corolla came on yesterday.
agent: I'm sorry to hear that. Did you hear any noises while braking?
caller: No, no noises at all.
agent: Okay. We can look at the brakes on Monday at 9 a.m.
caller: Monday is fine. Will the repair be covered by my warranty?
agent: I'm not sure about that. I will ask my manager and I'll call you back tomorrow.
caller: Alright.
agent: I have scheduled your brake inspection for Monday. Please bring the registration papers.
caller: Sure. How long does the inspection of the brakes normally take?
"""


class WordVectors:
    """An embedder whose vectors are the words of a text."""

    name, model, version = "words", "bag", "1"
    parameters: dict[str, Any] = {"size": 512}  # noqa: RUF012

    def embed(self, texts: Sequence[str]) -> Floats:
        vectors = np.zeros((len(texts), 512), np.float32)
        for row, text in enumerate(texts):
            for word in re.findall(r"\w+", text.lower()):
                vectors[row, zlib.crc32(word[:5].encode()) % 512] = 1.0
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


class Model:
    """A summarizer that writes what it is told to."""

    name, model, version = "chat-endpoint", "m", "1"
    parameters: dict[str, Any] = {"temperature": 0}  # noqa: RUF012

    def __init__(self, *answers: dict[str, Any], max_bytes: int = 10_000) -> None:
        self.answers = list(answers)
        self.max_bytes = max_bytes
        self.requests: list[dict[str, Any]] = []

    def summarize(self, request: dict[str, Any]) -> dict[str, Any]:
        self.requests.append(request)
        return self.answers[min(len(self.requests), len(self.answers)) - 1]


def transcript(text: str, language: str | None = "en", **given: Any) -> dict[str, Any]:
    """Return a transcript of lines ``leg: words``; each word takes 0.3 s."""
    segments, at = [], 0.0
    for number, line in enumerate(text.strip().splitlines(), 100):
        leg, _, said = line.partition(": ")
        words = [
            {"w": word, "s": round(at + 0.3 * n, 3), "e": round(at + 0.3 * n + 0.25, 3), "p": 0.9}
            for n, word in enumerate(said.split())
        ]
        end = words[-1]["e"] if words else at
        segments.append(
            {
                "segment": number,
                "leg": leg,
                "start": at,
                "end": end,
                "text": said,
                "language": language,
                "words": words,
                "speaker": None,
                **given,
            }
        )
        at = end + 1.0
    return {"segments": segments, "language": language}


def summary(
    made: dict[str, Any],
    model: Model | Seq2Seq | None = None,
    progress: list[float] | None = None,
) -> dict[str, Any]:
    context: Any = SimpleNamespace(
        results={"transcribe": made},
        settings=SimpleNamespace(summary_url="", summary_model="m" if model else ""),
        engines=LocalEngines({"embedder": WordVectors(), "summarizer": model}),
        progress=([] if progress is None else progress).append,
    )
    result = STEP.run(context)
    msgspec.convert(result, document_types.Summary)  # as it is published
    return result


def assert_every_claim_is_the_calls_own(result: dict[str, Any], made: dict[str, Any]) -> None:
    texts = {each["segment"]: each["text"] for each in made["segments"]}
    fields = [result["reason"], result["outcome"], *result["actions"], *result["open_questions"]]
    for claim in [*result["sentences"], *(each for each in fields if each)]:
        assert claim["supported"]
        assert claim["text"] == " ".join(each["quote"] for each in claim["evidence"])
        assert claim["evidence"]
        for each in claim["evidence"]:
            assert each["quote"] in texts[each["segment"]]
            assert each["start"] < each["end"]


# ---- the call's own sentences


def test_every_sentence_is_the_calls_own_words_with_their_times() -> None:
    made = transcript(CALL)
    result = summary(made)
    assert_every_claim_is_the_calls_own(result, made)
    assert result["method"] == "extractive"
    assert (result["engine"], result["model"]) == ("words", "bag")
    assert 2 <= len(result["sentences"]) <= 3
    starts = [each["evidence"][0]["start"] for each in result["sentences"]]
    assert starts == sorted(starts)
    assert "Thank you for calling" not in result["text"]
    evidence = result["reason"]["evidence"][0]
    assert evidence["segment"] == 101
    # "Hi, this is Tom." are the first four words of that segment.
    segment = made["segments"][1]
    assert evidence["start"] == segment["words"][4]["s"]
    assert evidence["end"] == segment["end"]
    assert evidence["source"] == "rule:summary.reason.calling"


def test_reason_outcome_actions_and_open_questions_are_found() -> None:
    result = summary(transcript(CALL))
    assert result["headline"].startswith("I'm calling because the brake light")
    assert result["reason"]["text"] == (
        "I'm calling because the brake light of my Corolla came on yesterday."
    )
    assert result["outcome"]["text"] == "I have scheduled your brake inspection for Monday."
    assert [(each["text"], each["owner"], each["due"]) for each in result["actions"]] == [
        ("I will ask my manager and I'll call you back tomorrow.", "agent", "tomorrow"),
        ("Please bring the registration papers.", "caller", None),
    ]
    assert [each["text"] for each in result["open_questions"]] == [
        "Will the repair be covered by my warranty?",
        "How long does the inspection of the brakes normally take?",
    ]


def test_what_is_not_said_is_null() -> None:
    made = transcript("caller: The weather is lovely in the mountains.\nagent: Indeed it is.")
    result = summary(made)
    assert (result["reason"], result["outcome"]) == (None, None)
    assert (result["actions"], result["open_questions"]) == ([], [])
    assert result["text"] == "The weather is lovely in the mountains."
    assert result["headline"] == "The weather is lovely in the mountains."


@pytest.mark.parametrize("text", ["", "caller: \nagent:  ", "caller: Hello.\nagent: Okay. Bye."])
def test_a_call_without_content_has_an_empty_summary(text: str) -> None:
    made = transcript(text) if text else {"segments": [], "language": None}
    result = summary(made)
    assert (result["text"], result["headline"], result["sentences"]) == ("", None, [])
    # There is nothing to ask a model about either.
    assert summary(made, Model({"sentences": ["x"]}))["method"] == "extractive"


def test_the_summary_of_a_long_call_stays_short() -> None:
    line = "caller: The {} delivery to warehouse {} was late because truck {} broke an axle."
    lines = [line.format(chr(97 + n % 26) * 5, n, n * 7) for n in range(300)]
    result = summary(transcript("\n".join(lines)))
    assert len(result["sentences"]) <= 8
    assert len(result["text"].split()) <= 220


def test_a_call_of_which_we_know_no_cues_is_summarised_by_its_words() -> None:
    made = transcript(
        "agent: Buenos días, dígame.\n"
        "caller: La entrega del pedido de muebles llegó tarde y la mesa está rota.\n"
        "agent: Lamento que la mesa del pedido llegara rota.\n"
        "caller: Quiero devolver la mesa rota del pedido.",
        "es",
    )
    result = summary(made)
    assert_every_claim_is_the_calls_own(result, made)
    assert "mesa" in result["text"]
    assert result["reason"] is None
    assert result["engine"] is None
    assert result["sentences"][0]["evidence"][0]["source"] == "words"


def test_scripts_without_spaces_are_summarised_too() -> None:
    made = transcript("caller: 我的订单没有送到。请帮我查一下。\nagent: 好的。请稍等。", "zh")
    result = summary(made)
    assert_every_claim_is_the_calls_own(result, made)
    assert "订单" in result["text"]


def test_a_sentence_that_goes_on_after_a_pause_is_one_claim_with_two_quotes() -> None:
    made = transcript("caller: I'm calling because the washing\ncaller: machine is leaking water.")
    result = summary(made)
    assert result["reason"]["text"] == "I'm calling because the washing machine is leaking water."
    assert [each["segment"] for each in result["reason"]["evidence"]] == [100, 101]


def test_mono_recordings_have_owners_only_where_legs_tell_them() -> None:
    made = transcript("mixed: I will send the broken printer back tomorrow morning.", speaker="A")
    assert summary(made)["actions"][0]["owner"] is None


def test_small_talk_makes_no_action_and_no_question() -> None:
    said = sentences(
        transcript(
            "agent: I'm going to put you on hold. How are you today?\n"
            "agent: Please hold while I check that for you.\n"
            "agent: Is there anything else I can help you with?\n"
            "caller: I'll take that one."
        )["segments"],
        "en",
    )
    known = cues("en")
    assert summary_rules.actions(said, known) == []
    assert summary_rules.open_questions(said, known) == []


# ---- a model's words


def test_what_a_model_says_is_marked_where_the_call_does_not_bear_it_out() -> None:
    made = transcript(CALL)
    answer = {
        "headline": "Brake light of a Corolla came on",
        "sentences": [
            "The caller says the brake light of his Corolla came on yesterday.",
            "The brake inspection is scheduled for Monday.",
            "The brake inspection costs 250 dollars.",
            "Maria scheduled the brake inspection for Monday.",
            "The weather in Paris was lovely all week.",
        ],
        "reason": "The brake light came on yesterday.",
        "outcome": None,
        "actions": [
            {"text": "Bring the registration papers", "owner": "caller", "due": "Monday"},
            {"text": "Buy a new car", "owner": "mechanic", "due": "in May"},
        ],
        "open_questions": ["Will the repair be covered by the warranty?"],
    }
    model = Model(answer)
    result = summary(made, model)
    assert [each["supported"] for each in result["sentences"]] == [True, True, False, False, False]
    assert all(bool(each["evidence"]) == each["supported"] for each in result["sentences"])
    assert "250" not in result["text"]
    assert "Maria" not in result["text"]
    assert result["method"] == "model"
    assert result["engine"] == "chat-endpoint"
    assert result["headline"] == "Brake light of a Corolla came on"
    assert result["reason"]["supported"]
    assert result["outcome"] is None  # the model says so: the rules are not asked
    bring, buy = result["actions"]
    assert (bring["supported"], bring["owner"], bring["due"]) == (True, "caller", "Monday")
    assert (buy["supported"], buy["owner"], buy["due"]) == (False, None, None)
    assert result["open_questions"][0]["supported"]
    assert model.requests[0]["turns"][1] == {
        "party": "caller",
        "text": made["segments"][1]["text"],
    }


def test_an_unsupported_headline_is_left_out() -> None:
    answer = {"headline": "Fire in Nairobi", "sentences": ["The brake light came on yesterday."]}
    assert summary(transcript(CALL), Model(answer))["headline"] is None


def test_fields_that_a_model_does_not_know_are_left_to_the_rules() -> None:
    result = summary(transcript(CALL), Model({"sentences": ["The brake light came on."]}))
    assert result["outcome"]["text"] == "I have scheduled your brake inspection for Monday."
    assert len(result["actions"]) == 2


def test_a_long_call_is_given_to_a_model_in_parts() -> None:
    made = transcript(CALL)
    model = Model(
        {"sentences": ["The brake light came on."], "reason": "The brake light came on."},
        {"sentences": ["The inspection is on Monday."], "reason": None, "outcome": "Scheduled."},
        max_bytes=400,
    )
    progress: list[float] = []
    result = summary(made, model, progress)
    num_parts = len(model.requests)
    assert num_parts >= 2
    assert len(progress) == num_parts
    given = " ".join(turn["text"] for each in model.requests for turn in each["turns"])
    assert given.split() == " ".join(each["text"] for each in made["segments"]).split()
    for request in model.requests:
        assert sum(len(turn["text"]) for turn in request["turns"]) <= 400
    assert result["reason"]["text"] == "The brake light came on."


def test_a_model_that_writes_nothing_fails_the_step() -> None:
    with pytest.raises(EngineError, match="wrote no sentence"):
        summary(transcript(CALL), Model({"sentences": []}))


@pytest.mark.parametrize(
    ("claim", "supported"),
    [
        ("The amount was 135 dollars.", True),
        ("The amount was 145 dollars.", False),
        ("The caller's number is 5551234.", True),
        ("The caller's number is 5559999.", False),
        ("Transferred 135 dollars to savings.", True),
        ("The caller did not transfer the amount to savings.", False),
        ("Robert asked to transfer money to savings.", True),
        ("Peter asked to transfer money to savings.", False),
        ("The money goes to the savings account of Brenda.", False),
        ("", False),
        ("...", False),
    ],
)
def test_numbers_names_and_denials_must_have_been_said(claim: str, supported: bool) -> None:
    made = transcript(
        "caller: my name is robert and i want to transfer money to my savings account\n"
        "caller: the amount is one hundred and thirty five dollars\n"
        "caller: my number is five five five one two three four"
    )
    said = sentences(made["segments"], "en")
    engine = WordVectors()
    checker = Transcript(said, None, "en", cues("en"))
    found = checker.support(claim, None)
    assert bool(found.sentences) is supported
    # Vectors can only make it stricter.
    checker = Transcript(said, engine.embed([each.text for each in said]), "en", cues("en"))
    assert supported or not checker.support(claim, engine.embed([claim])[0]).sentences


DENIED = """
agent: Did he hit you tonight?
caller: No, my husband did not hit me. I have not called the police yet.
caller: I never wanted to hurt my baby.
caller: My father beat my brother with a belt, and my brother was bitten by the neighbour.
caller: I don't know why he pushed me against the wall.
agent: Is your daughter injured?
caller: Yes. She cried the whole evening.
"""


@pytest.mark.parametrize(
    ("claim", "supported"),
    [
        ("The husband hit the caller.", False),
        ("He hit her tonight.", False),
        ("The husband did not hit the caller.", True),
        ("The caller called the police.", False),
        ("The caller has not called the police.", True),
        ("The caller wanted to hurt her baby.", False),
        ("The caller never wanted to hurt her baby.", True),
        ("The daughter hit the husband.", False),
        ("The father beat the brother with a belt.", True),
        ("The brother beat the father with a belt.", False),
        ("The brother was beaten by the father with a belt.", True),
        ("The neighbour was bitten by the brother.", False),
        ("He pushed the caller against the wall.", True),
        ("The caller pushed her husband against the wall.", False),
        ("He did not push her against the wall.", False),
        ("The daughter is injured.", True),
        ("The daughter is not injured.", False),
    ],
)
def test_a_claim_that_turns_the_words_round_is_unsupported(claim: str, supported: bool) -> None:
    said = sentences(transcript(DENIED)["segments"], "en")
    found = Transcript(said, None, "en", cues("en")).support(claim, None)
    assert bool(found.sentences) is supported


@pytest.mark.parametrize(
    ("line", "due"),
    [
        ("agent: I will send you the letter that you asked for two weeks ago.", None),
        ("agent: I will check why you had no water for three days.", None),
        ("agent: I will send the forms of two weeks ago again.", None),
        ("agent: I will check the meter since Monday.", None),
        ("agent: If he comes back tonight, please call the police at once.", None),
        ("agent: Please call the police if he comes back tonight.", None),
        ("caller: I will tell my mother that the school called today.", None),
        ("agent: I will send the plumber to your flat within two days.", "within two days"),
        ("agent: Tomorrow morning I will send the plumber.", "Tomorrow morning"),
        ("agent: I will send the forms by Friday.", "by Friday"),
    ],
)
def test_due_is_what_the_promise_says_and_no_other_time(line: str, due: str | None) -> None:
    said = sentences(transcript(line)["segments"], "en")
    (found,) = summary_rules.actions(said, cues("en"))
    assert found.due == due


@pytest.mark.parametrize(
    "line",
    [
        "caller: He told me I will take you to the river and you must come alone",
        "caller: My uncle touched me and he said please tell nobody",
        "caller: They always say you have to bring the money yourself",
        "caller: I will tell my mother that I am going to take the pills tonight",
        "caller: I will take all the pills tonight",
    ],
)
def test_what_others_said_and_what_must_not_happen_is_no_task(line: str) -> None:
    made = transcript(f"agent: Tell me what happened yesterday evening.\n{line}")
    assert summary_rules.actions(sentences(made["segments"], "en"), cues("en")) == []


def test_a_promise_after_somebodys_words_is_still_one() -> None:
    made = transcript("caller: She told me the price was wrong, but I will send the money today.")
    (found,) = summary_rules.actions(sentences(made["segments"], "en"), cues("en"))
    assert (found.owner, found.due) == ("caller", "today")


@pytest.mark.parametrize(
    "line",
    [
        "caller: nothing has been refunded and nobody was sent to the flat",
        "agent: We close the case once the invoice is paid in full.",
        "caller: He said the money has been sent to the bank.",
    ],
)
def test_what_did_not_happen_is_no_outcome(line: str) -> None:
    said = sentences(transcript(line)["segments"], "en")
    assert summary_rules.outcome(said, cues("en")) is None


def test_the_headline_names_what_it_is_about() -> None:
    text = "The washing machine that you sold me last month stopped working again."
    assert summary(transcript(f"caller: {text}"))["headline"] == text
    lead = "We had a long and friendly talk with your colleague in the shop in March about it, and"
    long = summary(transcript(f"caller: {lead} {text[0].lower()}{text[1:]}"))["headline"]
    assert long.startswith("… and the washing machine that you sold me")
    assert "stopped working" in long
    assert len(long) <= 90


def test_without_a_reason_the_headline_is_what_troubles_the_caller() -> None:
    made = transcript(
        "agent: Are you in a safe place right now?\n"
        "caller: My husband came home very angry again tonight, he was shouting and he broke the "
        "kitchen door, I am so frightened.\n"
        "agent: If he comes back tonight, please call the police at once.\n"
        "agent: We can send a driver to your house."
    )
    result = summary(made)
    assert result["reason"] is None
    assert result["headline"] == "My husband came home very angry again tonight, he was shouting …"
    assert [(each["owner"], each["due"]) for each in result["actions"]] == [
        ("caller", None),
        ("agent", None),
    ]


def test_a_summary_of_doubtful_words_carries_a_caution() -> None:
    made = transcript(CALL)
    sure = summary(made)["parameters"]
    assert (sure["confidence"], sure["caution"]) == (0.9, None)
    for segment in made["segments"]:
        for word in segment["words"]:
            word["p"] = 0.3
    for result in (summary(made), summary(made, Model({"sentences": ["It came on."]}))):
        assert result["parameters"]["confidence"] == 0.3
        assert "little certainty" in result["parameters"]["caution"]


def test_parts_are_measured_in_bytes_and_long_sentences_are_cut() -> None:
    said = "我的订单没有送到而且没有人接电话" * 40
    made = transcript(f"caller: {said}", "zh")
    model = Model({"sentences": ["x"]}, max_bytes=600)
    summary(made, model)
    texts = [turn["text"] for each in model.requests for turn in each["turns"]]
    assert "".join(texts).replace(" ", "") == said
    assert len(model.requests) > 1
    for request in model.requests:
        assert sum(len(turn["text"].encode()) for turn in request["turns"]) <= 600


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("a hundred and thirty four dollars", {"134"}),
        ("$1,250.50", {"1250.5"}),
        ("twenty-five and thirty", {"25", "30"}),
        ("two thousand and five", {"2005"}),
        ("five five five", {"555", "5"}),
        ("at 10:30", {"10:30", "10", "30"}),
        ("one of them", set()),
        ("", set()),
    ],
)
def test_numbers_are_read_in_figures_and_words(text: str, numbers: set[str]) -> None:
    assert numbers_of(text) == numbers


# ---- a local seq2seq folder


@pytest.fixture(scope="module")
def seq2seq_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real CTranslate2 folder: that of the translation package, with its tokenizer beside it."""
    folder = tmp_path_factory.mktemp("seq2seq") / "tiny"
    folder.mkdir()
    with zipfile.ZipFile(PACKAGE) as archive:
        for name in archive.namelist():
            if "/model/" in name or name.endswith("sentencepiece.model"):
                with archive.open(name) as source, (folder / Path(name).name).open("wb") as target:
                    shutil.copyfileobj(source, target)
    return folder


def test_a_seq2seq_folder_writes_and_is_checked(seq2seq_folder: Path) -> None:
    engine = Seq2Seq(str(seq2seq_folder), threads=1)
    assert engine.model == "tiny"
    answer = engine.summarize(
        {
            "language": "es",
            "turns": [{"party": "caller", "text": "Su mensaje ha sido guardado."}],
            "max_sentences": 2,
        }
    )
    assert 1 <= len(answer["sentences"]) <= 2
    # It translates prompts and knows nothing of the call: nothing of it is borne out.
    result = summary(transcript(CALL), engine)
    assert result["method"] == "model"
    assert result["engine"] == "ctranslate2-seq2seq"
    assert not any(each["supported"] for each in result["sentences"])
    assert result["text"] == ""
    assert result["reason"]["supported"]  # by rule


def test_a_text_longer_than_the_model_takes_is_no_error(seq2seq_folder: Path) -> None:
    engine = Seq2Seq(str(seq2seq_folder), threads=1)
    turns = [{"party": "caller", "text": "mensaje " * 3000}]
    assert engine.summarize({"language": None, "turns": turns, "max_sentences": 1})["sentences"]


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path, seq2seq_folder: Path) -> None:
    with pytest.raises(ModelError):
        Seq2Seq(str(tmp_path / "none"))
    for missing in ("sentencepiece.model", "model.bin", "config.json"):
        broken = tmp_path / missing
        shutil.copytree(seq2seq_folder, broken)
        (broken / missing).unlink()
        with pytest.raises(ModelError):
            Seq2Seq(str(broken))


@pytest.mark.model
def test_real_vectors_tell_a_paraphrase_from_an_invention() -> None:
    from callcore.engines.minilm import MiniLM

    engine = MiniLM(model("minilm"))
    made = transcript(CALL)
    said = sentences(made["segments"], "en")
    checker = Transcript(said, engine.embed([each.text for each in said]), "en", cues("en"))

    def is_supported(claim: str) -> bool:
        return bool(checker.support(claim, engine.embed([claim])[0]).sentences)

    assert is_supported("Tom's Corolla brake light came on yesterday.")
    assert is_supported("A brake inspection was scheduled for Monday.")
    assert not is_supported("Tom wants to sell his motorcycle.")
    assert not is_supported("The brake inspection takes three hours.")
