import pytest

from callcore import cues
from tests.support.results import segment

EN = cues.load("en")
assert EN


@pytest.mark.parametrize(
    ("cue", "text", "quote"),
    [
        ("hold", "Okay, one moment please.", "one moment"),
        ("hold", "I'll put you on hold now.", "put you on hold"),
        ("hold", "Could you hold, please?", "Could you hold"),
        ("hold", "It was a great moment.", None),
        ("referral", "I'm going to transfer you to billing.", "I'm going to transfer you"),
        ("referral", "You can contact the clinic in town.", "You can contact the"),
        ("referral", "He referred to the letter.", None),
        ("referral", "I cannot say that we will refer you to the clinic.", None),
        ("referral", "He said he will transfer you.", None),
        ("follow_up", "Someone will call you back tomorrow.", "Someone will call you back"),
        (
            "follow_up",
            "We\N{RIGHT SINGLE QUOTATION MARK}ll follow up.",
            "We\N{RIGHT SINGLE QUOTATION MARK}ll follow up",
        ),
        ("follow_up", "A colleague will phone you back.", "A colleague will phone you back"),
        ("follow_up", "I don't have it, but we will call you back.", "we will call you back"),
        ("follow_up", "Did you call back?", None),
        ("follow_up", "Can I call you back?", None),
        ("follow_up", "It is not safe to call you back.", None),
        ("follow_up", "There is no need to call you back.", None),
        ("follow_up", "There is no need, they say, we will call you back.", None),
        ("follow_up", "Nobody will call you back.", None),
        ("follow_up", "We will not call you back.", None),
        ("follow_up", "I don't think we will call you back.", None),
        ("follow_up", "He said he will call you back and hurt you.", None),
        ("follow_up", "He told you I will call you back.", None),
        ("follow_up", "I will call you back, he said.", None),
        ("follow_up", "If you want I will call you back.", None),
        ("follow_up", "You can call us back.", None),
    ],
)
def test_a_cue_is_found_in_statements(cue: str, text: str, quote: str | None) -> None:
    found = EN.find(cue, [segment(3, "agent", 1.0, 3.0, text)])
    assert [each.evidence["quote"] for each in found] == ([quote] if quote else [])
    for each in found:
        assert each.segment["segment"] == each.evidence["segment"] == 3
        assert each.evidence["source"] == f"cue:{cue}"


@pytest.mark.parametrize(
    ("leg", "speaker", "counts"),
    [
        ("agent", None, ("referral", "follow_up", "ours")),
        ("agent-2", None, ("referral", "follow_up", "ours")),
        ("caller", None, ()),
        ("mixed", "A", ("ours",)),
        ("mixed", None, ("ours",)),
    ],
)
def test_only_an_agent_refers_and_promises(
    leg: str, speaker: str | None, counts: tuple[str, ...]
) -> None:
    texts = {
        "referral": "I will refer you to the hospital",
        "follow_up": "I will call you back",
        "ours": "we will call you back",
    }
    for name, text in texts.items():
        cue = "referral" if name == "referral" else "follow_up"
        found = EN.find(cue, [segment(0, leg, 0, 3, text, speaker=speaker)])
        assert bool(found) == (name in counts)


def test_every_place_of_a_cue_is_found() -> None:
    said = segment(0, "agent", 0, 9, "Let me look for it. Please wait a moment. It takes time.")
    found = [each.evidence["quote"] for each in EN.find("hold", [said])]
    assert found == ["Let me look", "Please wait", "a moment"]


def test_a_question_is_denied_by_the_other_party_and_at_once() -> None:
    known = cues.load("en-GB")
    assert known
    asked = segment(0, "agent", 0, 2, "Are you thinking about hurting yourself?")
    cases = [
        (segment(1, "caller", 3, 4, "No."), True),
        (segment(1, "caller", 3, 4, "Not at all, no"), True),
        (segment(1, "agent", 3, 4, "No."), False),
        (segment(1, "caller", 30, 31, "No."), False),
        (segment(1, "caller", 3, 4, "Nobody knows."), False),
    ]
    for answer, denies in cases:
        assert bool(known.denials("self_harm", [answer, asked])) == denies


DENIED = [
    ("immediate_danger", "I am safe."),
    ("immediate_danger", "No, thank you, I'm safe now."),
    ("immediate_danger", "Yes, we are not in danger."),
    ("self_harm", "I don't want to kill myself."),
    ("self_harm", "I would never hurt myself, thank you."),
    ("violence.physical", "He never hits me."),
    ("violence.physical", "No, my father does not beat her at all."),
    ("violence.sexual", "and nobody touched me"),
    ("violence.emotional", "She doesn't shout at me."),
]


@pytest.mark.parametrize(("field", "text"), DENIED)
def test_a_caller_denies_by_a_statement(field: str, text: str) -> None:
    assert EN.denials(field, [segment(0, "caller", 0, 3, text)])


@pytest.mark.parametrize(("field", "text"), DENIED)
@pytest.mark.parametrize(
    ("leg", "speaker"), [("agent", None), ("agent-2", None), ("mixed", None), ("mixed", "B")]
)
def test_nobody_else_denies_by_a_statement(
    field: str, text: str, leg: str, speaker: str | None
) -> None:
    assert EN.denials(field, [segment(0, leg, 0, 3, text, speaker=speaker)]) == []


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("immediate_danger", "I don't think I am safe."),
        ("immediate_danger", "I don't know if I'm safe here."),
        ("immediate_danger", "I feel better when I am safe."),
        ("immediate_danger", "I am not sure I am safe."),
        ("immediate_danger", "I wish I was safe, I wish we are safe."),
        ("immediate_danger", "I am unsure, I am safe."),
        ("immediate_danger", "He says I am safe."),
        ("immediate_danger", "Make sure that I am safe."),
        ("immediate_danger", "I am safe until he comes home."),
        ("immediate_danger", "I am safe when I am at school."),
        ("immediate_danger", "I am safe if I hide."),
        ("immediate_danger", "I am safe but he has a knife."),
        ("immediate_danger", "I am safe. Wait, no."),
        ("immediate_danger", "He is at the door. I am safe."),
        ("immediate_danger", "I thought I am safe."),
        ("immediate_danger", "I am safe for now"),
        ("immediate_danger", "I am not in danger. My brother is."),
        ("immediate_danger", "I am safe and sound, no, I am not"),
        ("immediate_danger", "Am I safe?"),
        ("immediate_danger", "I am not in any mood"),
        ("self_harm", "I don't want to kill myself anymore."),
        ("self_harm", "I don't want to die like this."),
        ("self_harm", "I don't want to kill myself, I thought."),
        ("self_harm", "I have not hurt myself yet."),
        ("self_harm", "I used to say I don't want to die."),
        ("violence.physical", "He does not hit me anymore."),
        ("violence.physical", "Before he drank he never hit me."),
        ("violence.physical", "He never hit me before."),
        ("violence.physical", "He didn't hit me today."),
        ("violence.physical", "He didn't hit me hard."),
        ("violence.physical", "He never hits me when she is here."),
        ("violence.physical", "He never hits me, he kicks me."),
        ("violence.physical", "I wish he never hits me."),
        ("violence.physical", "He does not hurt me, she does."),
        ("violence.physical", "He never hit me, not once, he used a belt."),
        ("violence.physical", "He said he never hit me."),
        ("violence.emotional", "Nobody shouts at me like my father"),
    ],
)
def test_a_statement_in_doubt_denies_nothing(field: str, text: str) -> None:
    assert EN.denials(field, [segment(0, "caller", 0, 3, text)]) == []


@pytest.mark.parametrize(
    ("field", "asked", "answered", "denies"),
    [
        ("immediate_danger", "Are you in danger right now?", "No.", True),
        ("immediate_danger", "Okay. Are you in any danger?", "no no no", True),
        ("self_harm", "I need to ask you, are you thinking of suicide?", "No, never.", True),
        ("self_harm", "Have you ever thought about ending your life?", "No thank you.", True),
        ("violence.physical", "Did he hit you?", "No, ma'am.", True),
        ("violence.sexual", "Has your uncle ever touched you?", "Never.", True),
        ("violence.emotional", "Does she shout at you?", "Nope.", True),
        # Not a bare no.
        ("immediate_danger", "Are you in danger?", "No, wait, yes.", False),
        ("immediate_danger", "Are you in danger?", "No idea.", False),
        ("violence.physical", "Did he hit you?", "No one believes me but yes", False),
        ("self_harm", "Are you thinking of suicide?", "Not at all, I mean, sometimes", False),
        ("self_harm", "Are you thinking of suicide?", "", False),
        ("self_harm", "Are you thinking of suicide?", "Thanks.", False),
        # Not that question.
        ("immediate_danger", "Are you alone with him?", "No.", False),
        (
            "immediate_danger",
            "Are you alone with him?",
            "No, he is here and he has a knife",
            False,
        ),
        ("immediate_danger", "Are you aware that he is in danger?", "No.", False),
        ("neglect", "Do you have food at home?", "No.", False),
        ("neglect", "Does she eat?", "No.", False),
        ("trafficking", "Did anyone take you to the hospital?", "No.", False),
        ("self_harm", "If you are hurting yourself, call us.", "No problem.", False),
        ("self_harm", "If you are hurting yourself, call us.", "No.", False),
        ("self_harm", "Would you tell me if you are hurting yourself?", "No.", False),
        ("self_harm", "Have you told anyone about hurting yourself?", "No.", False),
        ("self_harm", "Are you taking your own medicine?", "No.", False),
        ("self_harm", "Are you thinking of suicide? Are you alone?", "No.", False),
        ("violence.physical", "Did you tell anyone that he hit you?", "No.", False),
        ("violence.physical", "Did he stop hitting you?", "No.", False),
        ("violence.physical", "Is he still hitting you?", "No.", False),
        ("violence.physical", "Has he hit you before?", "No.", False),
        ("violence.physical", "Did he hit you with a stick?", "No.", False),
    ],
)
def test_only_a_bare_no_to_the_very_question_denies(
    field: str, asked: str, answered: str, denies: bool
) -> None:
    for legs in (("agent", None, "caller", None), ("mixed", "A", "mixed", "B")):
        segments = [
            segment(0, legs[0], 0, 2, asked, speaker=legs[1]),
            segment(1, legs[2], 3, 4, answered, speaker=legs[3]),
        ]
        assert bool(EN.denials(field, segments)) == denies


@pytest.mark.parametrize(
    ("asker", "answerer"), [("caller", "agent"), ("agent", "agent-2"), ("mixed", "mixed")]
)
def test_only_a_caller_who_is_asked_denies(asker: str, answerer: str) -> None:
    segments = [segment(0, asker, 0, 2, "Did he hit you?"), segment(1, answerer, 3, 4, "No.")]
    assert EN.denials("violence.physical", segments) == []


@pytest.mark.parametrize(
    ("more", "start", "denies"),
    [
        ("Wait, yes.", 4.5, False),
        ("But he has a knife.", 6.0, False),
        ("He is outside.", 6.0, False),
        ("Thank you.", 6.0, True),
        ("Yes, that is my address.", 40.0, True),
    ],
)
def test_what_is_taken_back_at_once_denies_nothing(more: str, start: float, denies: bool) -> None:
    asked = segment(0, "agent", 0, 2, "Are you in danger?")
    more_of_it = segment(2, "caller", start, start + 1, more)
    for said in ("No.", "I am safe."):
        found = EN.denials(
            "immediate_danger", [asked, segment(1, "caller", 3, 4, said), more_of_it]
        )
        assert bool(found) == denies


def test_an_answer_that_began_long_before_the_question_ended_is_none() -> None:
    asked = segment(0, "agent", 0, 20, "How old is she? Did he hit you?")
    assert EN.denials("violence.physical", [asked, segment(1, "caller", 4, 5, "No.")]) == []


def test_a_field_without_phrases_is_never_denied() -> None:
    assert EN.denials("exploitation", [segment(0, "caller", 0, 1, "no")]) == []


@pytest.mark.parametrize("language", [None, "", "xx", "../en", "e n"])
def test_other_languages_have_no_cues(language: str | None) -> None:
    assert cues.load(language) is None
