from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callcore.engines import FoundSpan
from callcore.entity_rules import LABELS, cased, find, lexicon, merge, people
from tests.support.results import segment


def said(*turns: str, language: str = "en") -> list[dict[str, Any]]:
    """Return segments: ``caller: Hello`` or, without a leg, of a mono recording."""
    segments = []
    for number, turn in enumerate(turns):
        leg, colon, text = turn.partition(": ")
        if not colon:
            leg, text = "mixed", turn
        segments.append(segment(number, leg, number, number + 0.9, text, language=language))
    return segments


def values(*turns: str, label: str | None = None) -> list[tuple[str, str | None]]:
    mentions = find(said(*turns))
    return [(m.text, m.normal) for m in mentions if label in (None, m.label)]


def labelled(*turns: str) -> list[tuple[str, str]]:
    return [(m.label, m.text) for m in find(said(*turns))]


def cast(*turns: str) -> list[tuple[str, str | None, int | None, str | None, str | None]]:
    segments = said(*turns)
    entities = merge(find(segments))
    return [
        (each.role, each.entity and each.entity.text, each.age, each.sex, each.relation)
        for each in people(segments, entities)
    ]


# ---- numbers


@pytest.mark.parametrize(
    ("text", "phone"),
    [
        ("Call me on 0722 123 456.", "0722123456"),
        ("My number is +254 722 123456", "+254722123456"),
        ("It's 555-123-4567.", "5551234567"),
        ("It's 555.123.4567.", "5551234567"),
        ("my number is oh seven two two one two three four five six", "0722123456"),
        ("Oh, seven, double two, one, two, three, four, five, six.", "0722123456"),
        ("zero seven twenty two thirteen forty five sixty", "0722134560"),
        ("07 triple one 22 33 4", "0711122334"),
    ],
)
def test_phone_numbers_are_digits_said_or_written(text: str, phone: str) -> None:
    assert [normal for _, normal in values(text, label="PHONE")] == [phone]


@pytest.mark.parametrize(
    ("text", "money"),
    [
        ("That is $1,200.50 in all.", ("$1,200.50", "1200.50 USD")),
        ("I sent KSh 5,000 yesterday.", ("KSh 5,000", "5000 KES")),
        ("I paid 300 euros", ("300 euros", "300 EUR")),
        ("one hundred and thirty five dollars", ("one hundred and thirty five dollars", "135 USD")),
        ("a hundred and six dollars", ("a hundred and six dollars", "106 USD")),
        ("two thousand five hundred shillings", (None, "2500 shilling")),
        ("five dollars and twenty cents", (None, "5.20 USD")),
        ("It cost 2 million shillings.", (None, "2000000 shilling")),
    ],
)
def test_money_is_an_amount_with_its_currency(text: str, money: tuple[str | None, str]) -> None:
    ((found, normal),) = values(text, label="MONEY")
    assert normal == money[1]
    assert found == (money[0] or found)


@pytest.mark.parametrize(
    ("text", "account"),
    [
        ("My account number is 1234567890.", "1234567890"),
        ("the card ending in four four one nine", "4419"),
        ("Your case number is 20417.", "20417"),
        ("member id one two three four five", "12345"),
    ],
)
def test_digits_near_a_word_for_accounts_are_one(text: str, account: str) -> None:
    assert [(m.label, m.normal) for m in find(said(text))] == [("ACCOUNT", account)]


def test_the_nearer_word_and_the_question_say_what_digits_are() -> None:
    (mention,) = find(said("You have my account, so call me on 0722 123 456."))
    assert mention.label == "PHONE"
    assert find(said("It is about my account. The amount is 135")) == []
    mentions = find(said("agent: Your account number please?", "caller: 44 12 90 77 1"))
    assert [(m.label, m.normal) for m in mentions] == [("ACCOUNT", "441290771")]


@pytest.mark.parametrize(
    ("text", "age"),
    [
        ("I'm 16.", "16"),
        ("I am fourteen and I need help.", "14"),
        ("She's twelve years old.", "12"),
        ("my 7-year-old daughter", "7"),
        ("He is 9, and he cries.", "9"),
        ("The baby is eighteen months old.", "18 months"),
        ("a boy aged eleven", "11"),
        ("I just turned 13", "13"),
        ("I'm 16 from Arusha", "16"),
    ],
)
def test_ages_are_found_in_figures_and_words(text: str, age: str) -> None:
    assert [normal for _, normal in values(text, label="AGE")] == [age]


@pytest.mark.parametrize(
    "text",
    [
        "I'm 5 minutes away.",
        "It is 3 o'clock.",
        "I'm one of them.",
        "He was gone for 12 years.",
        "There is 50 dollars left.",
        "She is 30 kilometres from here.",
        "It happened 2 times.",
    ],
)
def test_other_numbers_are_no_ages(text: str) -> None:
    assert values(text, label="AGE") == []


def test_a_number_is_an_age_where_the_question_asked_for_it() -> None:
    assert values("agent: And how old is she?", "caller: Seven.", label="AGE") == [("Seven", "7")]
    assert values("agent: And how many?", "caller: Seven.", label="AGE") == []


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("at 3:30 p.m.", "15:30"),
        ("eleven a m", "11:00"),
        ("nine thirty in the morning", "09:30"),
        ("half past two in the afternoon", "14:30"),
        ("a quarter to six p.m.", "17:45"),
        ("at 14:05", "14:05"),
        ("ten at night", "22:00"),
        ("at noon", "12:00"),
    ],
)
def test_times_are_on_the_24_hour_clock(text: str, time: str) -> None:
    assert [normal for _, normal in values(text, label="TIME")] == [time]


def test_half_a_clock_and_parts_of_days_have_no_normal_form() -> None:
    assert values("two o'clock", label="TIME") == [("two o'clock", None)]
    assert values("It was last night.", label="TIME") == [("last night", None)]


@pytest.mark.parametrize(
    ("text", "date"),
    [
        ("on May 5th, 2024", ("May 5th, 2024", "2024-05-05")),
        ("the twenty-first of March", ("the twenty-first of March", "--03-21")),
        ("on 12 June 2023", ("12 June 2023", "2023-06-12")),
        ("since 2019", ("2019", "2019")),
        ("2024-02-29", ("2024-02-29", "2024-02-29")),
        ("on Monday", ("Monday", None)),
        ("It began two weeks ago.", ("two weeks ago", None)),
        ("yesterday", ("yesterday", None)),
        ("on 03/04/2024", ("03/04/2024", None)),
    ],
)
def test_dates_have_a_normal_form_where_they_are_certain(
    text: str, date: tuple[str, str | None]
) -> None:
    assert values(text, label="DATE") == [date]


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("It cost $3.50,20 in all", []),
        ("It cost $" + "9" * 16, []),
        ("It cost $" + "1," * 2_000 + "1", []),
        ("It cost " + "1," * 50_000 + "1 in all", []),
        ("a " + "hundred " * 400 + "dollars", []),
        ("It cost $999,999,999,999,999.", ["999999999999999 USD"]),
        ("It cost $3,50.", ["3.50 USD"]),
    ],
    ids=["two_marks", "16_digits", "loop", "loop_without_sign", "hundreds", "15_digits", "comma"],
)
def test_what_is_no_amount_or_too_long_for_one_is_left_out(text: str, normal: list[str]) -> None:
    assert [each for _, each in values(text, label="MONEY")] == normal


@pytest.mark.parametrize("text", ["!" * 100_000 + "a", "!?" * 40_000 + ")" * 20_000 + "a"])
def test_a_long_run_of_marks_is_read_in_one_pass(text: str) -> None:
    assert labelled(f"I'm Zubedina. {text}") == [("NAME", "Zubedina")]


# ---- names and places


@pytest.mark.parametrize(
    "text",
    [
        "Hello, my name is Zubedina.",
        "Yes, I'm Zubedina and I need help.",
        "Zubedina here, from Ruhembe.",
        "You can call me Zubedina.",
        "There is a girl named Zubedina.",
        "It is about my niece, Zubedina.",
        "I understand you, Zubedina.",
        "Thank you, Zubedina, for calling.",
        "The teacher is called Mrs. Zubedina.",
    ],
)
def test_introductions_and_addresses_are_names_that_no_list_knows(text: str) -> None:
    assert ("NAME", "Zubedina") in labelled(text)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("I'm calling from Ruhembe.", "Ruhembe"),
        ("We live in Ruhembe village.", "Ruhembe village"),
        ("I'm Juma from Ruhembe, Mukarange.", "Ruhembe, Mukarange"),
        ("From Ruhembe in Mukarange, it's Juma.", "Ruhembe in Mukarange"),
        ("She stays near Ruhembe Estate.", "Ruhembe Estate"),
        ("We moved to Dar es Salaam.", "Dar es Salaam"),
        ("here in Ruhembe county", "Ruhembe county"),
        ("Ruhembe Ranch, California", "Ruhembe Ranch, California"),
    ],
)
def test_people_say_where_they_are(text: str, place: str) -> None:
    assert ("LOCATION", place) in labelled(text)


def test_a_name_has_one_label_over_the_whole_call() -> None:
    turns = ("My name is London.", "In London I trust.", "Are you there, London?")
    assert labelled(*turns) == [("NAME", "London")] * 3


def test_capitals_that_begin_sentences_are_no_names() -> None:
    text = "Everyone here is sad. However, nothing helps. Crying, she left. School is over."
    assert labelled(text) == []


def test_days_languages_and_faiths_are_no_names() -> None:
    assert labelled("I'm Kenyan. I'm Muslim. I speak Swahili with God.") == []


def test_an_answer_is_what_the_question_asked_for() -> None:
    assert labelled("agent: What is your name?", "caller: Zubedina.") == [("NAME", "Zubedina")]
    assert labelled("agent: Where are you calling from?", "caller: Mukarange.") == [
        ("LOCATION", "Mukarange")
    ]
    assert labelled("agent: What happened?", "caller: Mukarange.") == []
    # The same party's own words are no answer.
    assert labelled("agent: What is your name?", "agent: Mukarange.") == []


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        ("Yes, it's Zubedina.", "Zubedina"),
        ("My full name is Zubedina.", "Zubedina"),
        ("Um, hi. Zubedina.", "Zubedina"),
        ("I'd rather not say, but Nairobi is where I am", None),
        ("Nairobi.", None),
        ("I heard that Zubedina knows.", None),
    ],
)
def test_the_answer_to_a_question_for_a_name_opens_with_it(answer: str, name: str | None) -> None:
    found = [text for label, text in labelled("agent: What is your name?", f"caller: {answer}")
             if label == "NAME"]  # fmt: skip
    assert found == ([name] if name else [])


@pytest.mark.parametrize(
    "text",
    [
        "caller: This is Emergency Services",
        "caller: This is Zubedina Customer Support.",
        "caller: hello this is harper valley national bank",
        "caller: this is grace commercial bank",
    ],
)
def test_organisations_introduce_no_person(text: str) -> None:
    assert [label for label, _ in labelled(text) if label == "NAME"] == []
    assert cast(text) == []


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("i live in kibera", ["kibera"]),
        ("we live in kibera and he beats me", ["kibera"]),
        ("she is staying in kibera estate", ["kibera estate"]),
        ("i live in fear", []),
        ("i live in constant fear", []),
    ],
)
def test_where_somebody_lives_is_a_place_without_capitals(text: str, places: list[str]) -> None:
    assert [found for label, found in labelled(text) if label == "LOCATION"] == places


def test_white_space_of_a_model_is_no_part_of_a_name() -> None:
    spans = [[FoundSpan("PER", 0, 3), FoundSpan("PER", 3, 10), FoundSpan("LOC", 12, 12)]]
    mentions = find(said("    Amina va", language="fr"), spans)
    assert [(m.start, m.end, m.text) for m in mentions] == [(4, 9, "Amina")]


def test_organisations_are_no_places() -> None:
    found = labelled("I go to Ruhembe Secondary School near Mukarange Hospital.")
    assert found == [
        ("ORGANIZATION", "Ruhembe Secondary School"),
        ("ORGANIZATION", "Mukarange Hospital"),
    ]


def test_text_without_capitals_has_names_too() -> None:
    assert labelled("hi my name is linda garcia i would like to pay") == [("NAME", "linda garcia")]
    assert labelled("my name is zubedina", "zubedina is afraid") == [("NAME", "zubedina")] * 2
    assert labelled("i am calling from nairobi today")[0] == ("LOCATION", "nairobi")
    assert labelled("i'm sorry to hear that i'm scared") == []


def test_text_without_capitals_gets_them_for_the_model_and_keeps_its_length() -> None:
    text = "my name is mary jones from dar es salaam"
    assert cased(text, lexicon("en")) == "my name is Mary Jones from Dar Es Salaam"
    assert cased("I met mary.", None) == "I met mary."


def test_a_model_alone_is_no_proof_and_with_the_list_it_is() -> None:
    spans = [[FoundSpan("PERSON", 11, 19)]]
    assert find(said("It was all Mukarine."), spans) == []
    spans = [[FoundSpan("PERSON", 4, 8)]]
    assert [m.label for m in find(said("And Mary cries."), spans)] == ["NAME"]


def test_a_language_without_words_still_has_numbers() -> None:
    mentions = find(said("Ninaitwa Amina, 0722 123 456, KES 500", language="sw"))
    assert [(m.label, m.normal) for m in mentions] == [
        ("PHONE", "0722123456"),
        ("MONEY", "500 KES"),
    ]


def test_nothing_gives_nothing() -> None:
    assert find([]) == []
    assert find(said("")) == []
    assert people([], merge([])) == []


@given(
    st.lists(
        st.text(
            st.one_of(st.characters(), st.sampled_from("I'm 0123 Amina from,. one two $ double"))
        ),
        max_size=4,
    )
)
def test_any_text_gives_mentions_that_quote_it_in_order_without_overlap(texts: list[str]) -> None:
    segments = said(*(text.replace(": ", " ") for text in texts))
    last = (-1, 0)
    mentions = find(segments)
    for mention in mentions:
        assert segments[mention.index]["text"][mention.start : mention.end] == mention.text
        assert mention.text
        assert mention.label in LABELS
        assert (mention.index, mention.start) >= last
        last = (mention.index, mention.end)
    merged = merge(mentions)
    assert sum(len(entity.mentions) for entity in merged) == len(mentions)
    people(segments, merged)


# ---- entities and people


def test_mentions_of_one_name_or_number_are_one_entity() -> None:
    segments = said(
        "I'm Mary Jones from Thika, Kiambu.",
        "Thank you, Mary.",
        "Is there help in Thika? Call 0722 123 456.",
        "oh seven two two one two three four five six",
    )
    merged = merge(find(segments))
    assert [(e.id, e.label, e.text, e.normal, len(e.mentions)) for e in merged] == [
        (1, "NAME", "Mary Jones", "Mary Jones", 2),
        (2, "LOCATION", "Thika, Kiambu", "Thika, Kiambu", 2),
        (3, "PHONE", merged[2].text, "0722123456", 2),
    ]


def test_an_agent_is_not_the_caller_of_the_same_first_name() -> None:
    segments = said("agent: My name is Linda.", "caller: Hi, my name is Linda Garcia.")
    assert [entity.text for entity in merge(find(segments))] == ["Linda", "Linda Garcia"]


def test_who_introduces_themselves_is_caller_or_agent() -> None:
    assert cast(
        "agent: Child helpline, my name is Wairimu, how can I help?",
        "caller: I'm Zubedina. I'm 12 years old.",
    ) == [("agent", "Wairimu", None, None, None), ("caller", "Zubedina", 12, None, None)]


def test_in_a_mono_recording_the_words_tell_the_agent() -> None:
    assert cast(
        "You've reached the helpline. I'm Wairimu. How can I help? I'm Zubedina, a girl of 12."
    ) == [("agent", "Wairimu", None, None, None), ("caller", "Zubedina", None, "f", None)]


@pytest.mark.parametrize(
    ("text", "child"),
    [
        ("My daughter Amina is 7.", ("child", "Amina", 7, "f", "daughter")),
        ("It's about my 8-year-old son, Juma.", ("child", "Juma", 8, "m", "son")),
        (
            "A boy called Otieno sells sweets here. He's only 9 years old.",
            ("child", "Otieno", 9, "m", "boy"),
        ),
        (
            "My neighbor's daughter is hungry. Her name is Njeri. She's fourteen.",
            ("child", "Njeri", 14, "f", "daughter"),
        ),
        ("My child has a fever.", ("child", None, None, None, "child")),
        ("I'm calling about a 7-year-old girl", ("child", None, 7, "f", "girl")),
        (
            "It's about my daughter Amina. He hits me and she is 12.",
            ("child", "Amina", 12, "f", "daughter"),
        ),
    ],
)
def test_children_are_who_the_words_call_so(text: str, child: tuple[object, ...]) -> None:
    assert child in cast(text)


@pytest.mark.parametrize(
    ("text", "alleged"),
    [
        ("My uncle John beats me.", ("alleged", "John", None, "m", "uncle")),
        ("My father has threatened them before.", ("alleged", None, None, "m", "father")),
        ("She was beaten by her stepmother.", ("alleged", None, None, "f", "stepmother")),
        ("It's about my uncle. He touches me at night.", ("alleged", None, None, "m", "uncle")),
        ("My ex, Derek, stabbed her.", ("alleged", "Derek", None, None, "ex")),
        ("I'm Amina. Juma keeps hitting me.", ("alleged", "Juma", None, None, None)),
        ("My uncle who lives with us beats me.", ("alleged", None, None, "m", "uncle")),
        ("A man in my neighborhood who harasses me.", ("alleged", None, None, "m", "man")),
        ("My father came home drunk and hit me.", ("alleged", None, None, "m", "father")),
        ("My husband came home angry and he pushed me", ("alleged", None, None, "m", "husband")),
        ("I hate my dad because he hit my brother", ("alleged", None, None, "m", "dad")),
        ("I won't go home because my dad beats me.", ("alleged", None, None, "m", "dad")),
        ("I never told anyone that my uncle touched me.", ("alleged", None, None, "m", "uncle")),
    ],
)
def test_the_alleged_are_subjects_of_harm(text: str, alleged: tuple[object, ...]) -> None:
    assert alleged in cast(text)


@pytest.mark.parametrize(
    "text",
    [
        "My uncle John never hits me.",
        "My father doesn't beat us.",
        "Does your uncle beat her?",
        "My uncle John helps me.",
        "My uncle and my father came. He beat me.",
        "My mother knows. He beats me.",
        "My teacher saw him beating me",
        "My sister said somebody touched her",
        "My sister knows he touched her",
        "He told my mother and hit me.",
        "The man my mother lives with beats me.",
        "The father of Amina hits her.",
        "I was never beaten by my father",
        "I was never beaten by my friend Juma",
        "If my father hits me I will run.",
        "If Juma hits me I will run.",
        "I'm afraid my father will hit me",
        "I'm afraid my father hits me when I go home",
        "My father might hit me.",
        "I'm worried that I might be beaten by my father.",
        "It is not true that my father hits me.",
        "My husband and my father came and he pushed me",
        "I told my uncle. He beat me.",
        "My mother came home and he pushed me",
        "My husband came home and someone left and he pushed me",
        "This is the child helpline for child protection.",
    ],
)
def test_nobody_has_a_role_without_words_that_say_so(text: str) -> None:
    assert [role for role, *_ in cast(text)] == []


@pytest.mark.parametrize(
    ("turns", "relations"),
    [
        (["My mother says my father hit me"], ["father"]),
        (["I told my teacher that my uncle touched me"], ["uncle"]),
        (["caller: It is my husband.", "agent: I see.", "caller: He beat me."], ["husband"]),
        (["caller: It is my husband.", "agent: Your father?", "caller: He beat me."], []),
        (["It is my husband.", "He beat me."], []),
        (["caller: It is my husband and my father.", "caller: He beat me."], []),
        (["My daughter told me he hit her"], []),
        (["My son told my father and he hit me"], []),
    ],
)
def test_only_who_is_surely_meant_is_alleged(turns: list[str], relations: list[str]) -> None:
    assert [relation for role, *_, relation in cast(*turns) if role == "alleged"] == relations


@pytest.mark.parametrize(
    ("text", "caller"),
    [
        ("I'm only 12.", (12, None)),
        ("I'm a 12-year-old girl", (12, "f")),
        ("I'm Juma, a boy from Thika", (None, "m")),
        ("I'm Juma, a 14-year-old boy.", (14, "m")),
        ("I'm Juma, age 10, from Thika", (10, None)),
        ("I'm a boy named Juma, 17 years old.", (17, "m")),
        ("I'm a 16-year-old girl named Amina.", (16, "f")),
        ("I'm Juma, a 7-year-old girl told me", (None, None)),
        ("I'm Juma, a girl told me", (None, None)),
        ("I'm a single mother", (None, "f")),
        ("I'm calling about a 7-year-old girl", None),
        ("He hits me and she is 12", None),
        ("I'm worried, a girl of 9 told me", None),
        ("I am a teacher, calling about a boy", None),
        ("I'm a girl's teacher", None),
    ],
)
def test_what_callers_say_of_others_is_not_theirs(
    text: str, caller: tuple[int | None, str | None] | None
) -> None:
    found = [(age, sex) for role, _, age, sex, _ in cast(text) if role == "caller"]
    assert found == ([caller] if caller else [])


def test_an_agent_who_is_a_father_is_not_as_old_as_the_child() -> None:
    people_said = cast("You've reached the helpline. I'm David, father of a 7 year old.")
    assert people_said == [("agent", "David", None, None, None)]
    people_said = cast("You've reached the helpline. I'm David. How can I help? Hi. I'm 16.")
    assert ("caller", None, 16, None, None) in people_said
    assert ("agent", "David", None, None, None) in people_said
