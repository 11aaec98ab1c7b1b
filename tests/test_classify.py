from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from callcore import safety
from callcore.calls import Correction
from callcore.document_types import Categories
from callcore.errors import ConfigError
from callcore.settings import load
from callcore.steps import classify
from tests.support import gold_calls, results
from tests.support.recognition import model
from tests.support.results import segment, transcript, translation

pytestmark = pytest.mark.model

#: Share of calls whose first category must be right, just below what docs/measurements.md says. The
#: calls that rules were not written for are understood much worse: these floors keep, not praise.
FIRST = {"dev": 0.8, "held-out": 0.4}
#: Calls without a concern that may raise a flag all the same, as measured.
FALSE_ALARMS = {"dev": 0, "held-out": 2}


@pytest.fixture(scope="module")
def embedder():
    from callcore.engines.minilm import MiniLM

    return MiniLM(model("minilm"), threads=2)


@pytest.fixture
def run(embedder):
    """Return a function that classifies utterances and checks what always holds."""

    def run(*said, taxonomy="child-helpline", language="en", translated=None, corrections=()):
        utterances = [(("caller", each) if isinstance(each, str) else each) for each in said]
        segments = [
            segment(number, leg, 10.0 * number, 10.0 * number + 5, text, language=language)
            for number, (leg, text) in enumerate(utterances)
        ]
        given = {"transcribe": transcript(segments, language=language)}
        if translated is not None:
            given["translate"] = translation(
                *(
                    {**{k: segments[n][k] for k in ("segment", "leg", "start", "end")}, "text": t}
                    for n, t in enumerate(translated)
                )
            )
        context = results.context(
            given, engines={"embedder": embedder}, settings=load({"CALLCORE_TAXONOMIES": taxonomy})
        )
        document = classify.run(replace(context, corrections=lambda: corrections))
        check(document, segments)
        return document

    return run


def check(document, segments):
    """Every piece of evidence is exact words at their exact times; the schema takes it all."""
    msgspec.convert(document, Categories)
    by_number = {each["segment"]: each for each in segments}
    for piece in every_evidence(document):
        said = by_number[piece["segment"]]
        assert piece["quote"]
        assert piece["quote"] in said["text"]
        tokens, words = said["text"].split(), piece["quote"].split()
        bare = [token.strip(".,!?") for token in tokens]
        first = next(
            n
            for n in range(len(tokens))
            if [w.strip(".,!?") for w in words] == bare[n : n + len(words)]
        )
        assert piece["start"] == said["words"][first]["s"]
        assert piece["end"] == said["words"][first + len(words) - 1]["e"]
        assert piece["leg"] == said["leg"]


def every_evidence(document):
    yield from document["call_type"]["evidence"]
    for claim in (*document["categories"], *document["flags"]):
        assert claim["evidence"], "no claim without words"
        yield from claim["evidence"]
    for reason in (document["priority"] or {"why": []})["why"]:
        yield from reason["evidence"]


def ids(document):
    return [each["id"] for each in document["categories"]]


def test_a_call_has_categories_with_evidence_priority_and_flags(run):
    document = run(
        ("agent", "Child helpline, good evening."),
        "My name is Tom and I am 12 years old.",
        "My stepfather beats me every night with a belt. It hurts so much.",
        ("agent", "Thank you for telling me."),
    )
    best = document["categories"][0]
    assert (best["id"], best["path"], best["rank"]) == (
        "violence.physical",
        ["violence", "violence.physical"],
        1,
    )
    assert best["score"] > 0.8
    assert best["evidence"][0]["quote"] == "beats me"
    assert best["evidence"][0]["source"] == "rule:risk.beaten"
    assert document["call_type"]["id"] == "self"
    assert document["priority"]["level"] == "high"
    (flag,) = document["flags"]
    assert (flag["rule"], flag["severity"], flag["leg"], flag["state"]) == (
        "risk.beaten",
        "warning",
        "caller",
        "open",
    )
    assert flag["at_s"] == flag["evidence"][0]["start"] == pytest.approx(20.8, abs=0.1)
    assert document["text"] == {"from": "transcribe", "language": "en", "method": None}
    assert document["engine"] == "minilm"


def test_several_things_that_are_said_are_several_categories(run):
    found = ids(
        run(
            "My classmates bully me and call me names every day.",
            "And my exams are next week and I cannot sleep, I am so stressed about my grades.",
        )
    )
    assert {"violence.bullying", "education.pressure"} <= set(found[:3])


def test_the_same_flag_has_the_same_id_each_time_and_repetitions_join_it(run):
    said = ("I want to die.", "What?", "I said I want to die.")
    first, second = run(*said), run(*said)
    assert first["flags"] == second["flags"]
    (flag,) = first["flags"]
    assert [piece["segment"] for piece in flag["evidence"]] == [0, 2]
    assert first["priority"]["level"] == "critical"
    assert first["priority"]["why"][0]["text"] == "Suicide is spoken of"


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ((), "silent"),
        ((("agent", "Hello? Is anybody there? I will hang up now."),), "silent"),
        (("Hello?",), "hang-up"),
        (("Hello.", ("agent", "Child helpline, how can I help?"), "No."), "hang-up"),
        (("Oh, sorry, I think I have the wrong number. I wanted the bakery.",), "wrong-number"),
        (("You are a stupid idiot.", "Shut up, you useless woman."), "abusive"),
        (("Can I order a pizza with extra cheese?", "Ha ha, just kidding!"), "prank"),
        (("I called last month and I only wanted to say thank you.",), "thanks"),
        (("I am calling about a little girl next door. Nobody looks after her.",), "other"),
        (("I am 14 years old and need advice about school.",), "self"),
    ],
)
def test_what_kind_of_contact_it_was_is_an_answer(run, said, expected):
    document = run(*said)
    assert document["call_type"]["id"] == expected
    if expected in ("silent", "hang-up", "wrong-number"):
        assert document["categories"] == []
        assert document["priority"] is None


@pytest.mark.parametrize("taxonomy", ["generic-support", "emergency"])
@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ((), "silent"),
        (("Hello?",), "hang-up"),
        (("Sorry, wrong number.",), "wrong-number"),
        (("Fuck off, you idiot.",), "abusive"),
        (("We only wanted a laugh. Just kidding!",), "prank"),
    ],
)
def test_every_taxonomy_knows_calls_without_a_concern(run, said, expected, taxonomy):
    assert run(*said, taxonomy=taxonomy)["call_type"]["id"] == expected


def test_a_few_words_in_danger_are_no_hang_up(run):
    document = run("He will kill me.")
    assert document["call_type"]["id"] != "hang-up"
    assert document["priority"]["level"] == "critical"
    assert [flag["rule"] for flag in document["flags"]] == ["danger.now"]


def test_what_is_about_nothing_has_no_category(run):
    document = run(
        "Hello, good morning, how are you today?",
        ("agent", "I am fine, thank you."),
        "The sun is shining and we had rice for lunch.",
    )
    assert document["categories"] == []
    assert document["priority"] is None
    assert document["call_type"]["id"] is None


def test_a_call_that_nobody_spoke_in_needs_no_engine(run):
    document = run()
    assert (document["engine"], document["text"]) == (None, None)


def test_words_that_a_person_missed_a_category_in_are_an_example_from_then_on(run):
    odd = "The spirits of the lake have called my cousin to the shrine."
    before = run(odd)
    assert "rights.discrimination" not in ids(before)
    missing = Correction("child-helpline", "rights.discrimination", "missing", (odd,))
    same = run(odd, corrections=[missing])
    assert ids(same)[0] == "rights.discrimination"
    assert same["categories"][0]["source"] == "human"
    alike = run("Spirits from the lake call my cousin to their shrine.", corrections=[missing])
    assert ids(alike)[0] == "rights.discrimination"
    assert alike["categories"][0]["source"] == "example", "nobody has said so of these words"


def test_words_that_a_person_took_out_of_a_category_no_longer_count(run):
    said = "The coach beats them in every race and calls it training. We all laugh about it."
    assert "violence.physical" in ids(run(said))
    wrong = Correction("child-helpline", "violence.physical", "wrong", (said,))
    assert "violence.physical" not in ids(run(said, corrections=[wrong]))
    other = "My father beats me every night with a belt."
    assert ids(run(other, corrections=[wrong]))[0] == "violence.physical"


def test_corrections_of_other_taxonomies_and_unknown_categories_are_left_aside(run):
    said = "I cannot sleep because of the exams next week."
    strangers = [
        Correction("emergency", "fire", "missing", (said,)),
        Correction("child-helpline", "no.longer.there", "missing", (said,)),
        Correction("child-helpline", "missing", "missing", (" ",)),
    ]
    assert run(said, corrections=strangers) == run(said)


def test_another_language_is_read_in_its_translation_and_quoted_in_the_original(run):
    document = run(
        "Mi padrastro me pega todas las noches con un cinturón.",
        "Tengo mucho miedo.",
        language="es",
        translated=[
            "My stepfather hits me every night with a belt.",
            "I am very afraid.",
        ],
    )
    assert ids(document)[0] == "violence.physical"
    quotes = [piece["quote"] for piece in document["categories"][0]["evidence"]]
    assert "me pega" in quotes, "a rule found the original words"
    assert "Mi padrastro me pega todas las noches con un cinturón." in quotes
    assert document["text"] == {"from": "translate", "language": "en", "method": "argos"}


def test_a_translation_that_follows_no_segments_is_joined_by_time(embedder):
    segments = [segment(7, "caller", 3.0, 8.0, "Nimepigwa sana na baba.", language="sw")]
    said = {"segment": None, "leg": "caller", "start": 3.2, "end": 7.0}
    context = results.context(
        {
            "transcribe": transcript(segments, language="sw"),
            "translate": translation(
                {**said, "text": "I was badly beaten by dad."},
                {**said, "start": 50.0, "end": 60.0, "text": "He beats me."},
                method="whisper",
            ),
        },
        engines={"embedder": embedder},
        settings=load({}),
    )
    document = classify.run(context)
    check(document, segments)
    assert ids(document)[0] == "violence.physical"
    assert document["text"]["method"] == "whisper"


def test_another_language_without_translation_is_read_by_rules_alone(run):
    document = run("Nataka kufa, nisaidieni tafadhali.", language="sw")
    assert ids(document) == ["mental.suicide"]
    assert (document["engine"], document["text"]) == (None, None)
    assert document["flags"][0]["rule"] == "risk.suicide"


def test_what_the_agent_says_does_not_make_the_call_abusive(run):
    said = (("agent", "Fuck you, you idiot."), "I am 14 years old and need advice about school.")
    assert run(*said)["call_type"]["id"] == "self"


def test_several_taxonomies_see_the_same_call(run, tmp_path: Path):
    own = tmp_path / "pets.yaml"
    own.write_text(
        "taxonomy: pets\nversion: 1\ncategories:\n"
        "  - {id: dog, label: {en: Dogs}, hint: About a dog that barks or bites.}\n"
    )
    document = run(
        "My house is on fire and there is smoke everywhere!",
        "And the neighbour's dog barks and bit me.",
        taxonomy=f"emergency,{own}",
    )
    best = document["categories"][0]
    assert (best["taxonomy"], best["id"]) == ("emergency", "fire")
    assert ("pets", "dog", 1) in [
        (each["taxonomy"], each["id"], each["rank"]) for each in document["categories"]
    ]
    assert document["taxonomies"] == [
        {"id": "emergency", "version": "2"},
        {"id": "pets", "version": "1"},
    ]


def test_a_broken_taxonomy_is_a_configuration_error(run, tmp_path: Path):
    (tmp_path / "own.yaml").write_text("taxonomy: x\n")
    with pytest.raises(ConfigError, match="line 1"):
        run("Hello there.", taxonomy=str(tmp_path / "own.yaml"))


DISTRESS = (
    ("agent", "Good evening. This is the family helpline."),
    "Hello, I am sorry to call so late, I do not know who else I can talk to.",
    "My husband came home very angry again tonight, he was shouting and he broke the kitchen door, "
    "I am so frightened.",
    "I am in the bedroom with my daughter, the door is locked, he has left the house, but I think "
    "he will come back.",
    ("agent", "Are you injured or is your daughter injured?"),
    "My arm hurts because he pushed me, my daughter is safe, but she will not stop crying.",
    ("agent", "This is not your fault. If he comes back tonight, please call the police at once."),
    "Yes, please, my sister lives near the river, but I have no money for a taxi.",
    "Thank you, thank you for believing me.",
)


def test_violence_at_home_comes_first_with_flags_and_a_priority_with_its_reasons(run):
    document = run(*DISTRESS)
    assert ids(document)[0] == "violence.domestic"
    assert not [each for each in ids(document) if each.startswith("missing")]
    assert document["call_type"]["id"] not in ("thanks", None)
    assert document["priority"]["level"] in ("high", "critical")
    assert document["priority"]["why"][0]["evidence"]
    flags = {flag["rule"]: [e["quote"] for e in flag["evidence"]] for flag in document["flags"]}
    assert flags["risk.domestic"] == ["he pushed me"]
    assert flags["risk.return"] == ["he will come back"]
    said = safety.fields(document, lambda field: [])
    assert said["violence"]["physical"]["value"] == "yes"
    emergency = run(*DISTRESS, taxonomy="emergency")
    assert ids(emergency)[0] == "crime.domestic"
    assert emergency["priority"]["level"] == "critical"
    assert run(*DISTRESS, taxonomy="generic-support")["flags"] == []


def test_a_concern_beside_thanks_is_no_call_to_say_thanks(run):
    document = run("I only wanted to say thank you.", "But my dad beats me again every night.")
    assert document["call_type"]["id"] != "thanks"
    assert document["priority"]["level"] == "high"


def test_what_the_agent_asks_and_what_is_denied_is_no_statement(run):
    document = run(
        (
            "agent",
            "Does he beat you? Did he touch your private parts? Do you want to kill yourself?",
        ),
        "No, he never hits me. Nobody beats me and I don't want to kill myself.",
        "My exams are next week and I am stressed about my grades.",
        ("agent", "If you are suicidal, call the police."),
    )
    assert document["flags"] == []
    assert ids(document)[0] == "education.pressure"
    assert not [each for each in ids(document) if each.startswith("violence")]


def test_likeness_alone_makes_no_call_critical_unless_it_is_great(run):
    document = run(
        "I have not seen my cousin for a long time and I do not know where he lives now."
    )
    assert (document["priority"] or {"level": None})["level"] != "critical"


@pytest.mark.parametrize("name", ["dev", "held-out"])
def test_the_calls_in_our_own_words_are_understood_as_measured(run, name):
    calls = gold_calls.load(name)
    for taxonomy in gold_calls.TAXONOMIES:
        first = alarms = 0
        for call in calls:
            answer = run(*call.said, taxonomy=taxonomy)
            verdict = gold_calls.judge(taxonomy, call.gold[taxonomy], answer)
            first += verdict.first
            alarms += "flags" not in call.gold[taxonomy] and bool(answer["flags"])
            if name == "dev":
                assert verdict.flags, (call.id, taxonomy)
                assert verdict.kind, (call.id, taxonomy)
        assert first / len(calls) >= FIRST[name], taxonomy
        assert alarms <= FALSE_ALARMS[name], taxonomy


def test_a_task_of_a_service_desk_is_found(run):
    document = run(
        ("agent", "hello this is the bank how can i help you"),
        "i forgot my password and cannot get into my account",
        taxonomy="generic-support",
    )
    assert ids(document)[0] == "account.password"
    assert document["call_type"]["id"] == "request"
