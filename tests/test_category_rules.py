import pytest

from callcore.category_rules import (
    RuleError,
    Span,
    compile_rule,
    denials,
    failed_examples,
    fold,
    match,
)


def rule(**parts):
    return compile_rule({"id": "r", **parts})


def pattern(text, **more):
    return rule(any=[{"pattern": text, **more}])


def found(compiled, *texts, leg=None):
    return [
        [texts[span.index][span.first : span.last] for span in each.spans]
        for each in match([compiled], [(leg, text) for text in texts])
    ]


def test_words_match_in_any_case_with_accents_apostrophes_and_plurals_folded():
    compiled = rule(any=[{"words": ["bank card", "don't know", "numéro"]}])
    assert found(compiled, "Both BANK CARDS are gone") == [["BANK CARDS"]]
    assert found(compiled, "I don\u2019t know, dont know") == [["don\u2019t know", "dont know"]]
    assert found(compiled, "un Numero faux") == [["Numero"]]
    assert found(compiled, "a bankcard", "card bank", "embank cards") == []


@pytest.mark.parametrize(
    ("text", "yes", "no"),
    [
        ("neighbo*", ["my neighbours", "neighborhood watch"], ["the neigh"]),
        ("(abus|assault)*", ["he abuses her", "assaulted"], ["disabuse"]),
        ("(he|she) is? [num]", ["she is 9", "he twelve", "he is fifty"], ["she was 9", "it is 9"]),
        ("i am [word]? lost", ["i am lost", "i am so lost"], ["i am so very lost"]),
        ("(right now|here)", ["come right now", "come here"], ["right, come now"]),
        ("give me (the)? money", ["give me money", "give me the money"], ["give me that money"]),
        ("knife|gun near/2 (now|here)", ["now a gun", "knife is right here"], ["gun a b c now"]),
        ("a near/1 b near/1 c", ["a b c", "c x b a"], ["a x x b c", "a b x x c"]),
        ("order not-near/2 drill", ["an order"], ["drill this order", "order of drill"]),
        ("(she|(my|our) aunt) left", ["she left", "our aunt left"], ["aunt left"]),
    ],
)
def test_patterns_match_what_they_say(text, yes, no):
    compiled = pattern(text)
    assert [each for each in yes if not found(compiled, each)] == []
    assert [each for each in no if found(compiled, each)] == []


def test_what_is_too_far_away_does_not_forbid():
    assert found(pattern("order not-near/2 drill"), "drill one two three order") == [["order"]]
    assert found(pattern("order not-near/2 drill"), "order one two drill") == []


def test_a_condition_by_the_caller_is_not_met_by_the_agent():
    compiled = rule(any=[{"words": ["help"], "by": "caller"}])
    assert found(compiled, "help", leg="caller")
    assert found(compiled, "help", leg="agent-2") == []
    assert found(compiled, "help", leg="mixed"), "of a mixed leg nobody knows who speaks"


def test_all_any_and_none_hold_within_one_utterance():
    compiled = rule(
        all=[{"words": ["gun"]}, {"any": [{"words": ["now"]}, {"words": ["here"]}]}],
        none=[{"words": ["film"]}],
    )
    assert found(compiled, "a gun, here") == [["gun", "here"]]
    assert found(compiled, "a gun here in the film") == []
    assert found(compiled, "a gun", "now") == []


def test_a_rule_over_the_whole_call_finds_its_parts_anywhere():
    compiled = rule(all=[{"words": ["gun"]}, {"words": ["now"]}], scope="call")
    assert match([compiled], [("caller", "Now"), ("agent", "a gun")])[0].spans == (
        Span(0, 0, 3),
        Span(1, 2, 5),
    )
    assert match([compiled], []) == []


def test_examples_that_fail_are_named():
    compiled = compile_rule(
        {
            "id": "r",
            "any": [{"words": ["cat"]}],
            "examples": {"match": ["a cat", "a dog"], "no_match": ["a cow", "two cats"]},
        }
    )
    assert failed_examples(compiled) == ["a dog", "two cats"]


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({}, "neither"),
        ({"none": [{"words": ["a"]}]}, "neither"),
        ({"any": []}, "no list"),
        ({"any": ["word"]}, "no mapping"),
        ({"any": [{"word": ["a"]}]}, "keys word"),
        ({"any": [{"words": ["!"]}]}, "no"),
        ({"any": [{"words": "cat"}]}, "keys words"),
        ({"any": [{"words": ["a"], "by": "nobody"}]}, "by='nobody'"),
        ({"any": [{"pattern": "(a|b"}]}, "never closed"),
        ({"any": [{"pattern": "a) b"}]}, "bracket too many"),
        ({"any": [{"pattern": "(a||b)"}]}, "empty alternative"),
        ({"any": [{"pattern": "a near/3"}]}, "cannot be read"),
        ({"any": [{"pattern": "a near/21 b"}]}, "distance above 20"),
        ({"any": [{"pattern": "a near/1 b near/1 c near/1 d"}]}, "more than 2 near"),
        ({"any": [{"pattern": "[word]? " * 11 + "a"}]}, "10 optional parts"),
        ({"any": [{"pattern": "[nun] a"}]}, "no word"),
        ({"any": [{"pattern": "| a"}]}, "nothing beside"),
        ({"any": [{"words": ["a"]}], "severity": "awful"}, "severity='awful'"),
        ({"any": [{"words": ["a"]}], "scope": "year"}, "scope='year'"),
        ({"any": [{"words": ["a"]}], "score": 2}, "score"),
        ({"any": [{"words": ["a"]}], "kolor": 1}, "kolor"),
        ({"any": [{"words": ["a"]}], "examples": ["a"]}, "examples"),
    ],
)
def test_what_is_no_rule_is_refused_with_the_reason(parts, said):
    with pytest.raises(RuleError, match=said.replace("|", r"\|")):
        rule(**parts)


def test_a_rule_without_an_id_is_refused():
    with pytest.raises(RuleError, match="id"):
        compile_rule({"any": [{"words": ["a"]}]})


def test_folding_takes_the_plural_off():
    assert [fold(each) for each in ("cards", "classes", "babies", "this", "bus", "glass")] == [
        "card",
        "class",
        "baby",
        "this",
        "bus",
        "glass",
    ]


def test_a_long_call_without_end_is_searched_in_one_pass():
    for hardest in (
        "(knife|now) near/20 (now|here) near/20 (door|house)",
        "now [word]? [word]? [word]? [word]? [word]? [word]? [word]? [word]? [word]? [word]? door",
    ):
        assert found(pattern(hardest), "now " * 5_000) == []


@pytest.mark.parametrize(
    "text",
    [
        "he never hits me",
        "No one hits me",
        "nobody ever hits us",
        "He didn\u2019t hit me",
        "I don't think he hits me",
        "no, nobody hits me",
    ],
)
def test_what_is_denied_does_not_hold_in_a_rule_with_a_severity(text):
    compiled = rule(any=[{"pattern": "(hit|hits) (me|us)"}], severity="warning")
    assert found(compiled, text) == []
    assert [each.spans for each in denials([compiled], [(None, text)])]
    assert found(rule(any=[{"pattern": "(hit|hits) (me|us)"}]), text), "a topic is one still"
    kept = rule(any=[{"pattern": "(hit|hits) (me|us)"}], severity="warning", unless_negated=False)
    assert found(kept, text)


@pytest.mark.parametrize(
    "text",
    [
        "No, he hits me",
        "no he hits me",
        "I don't know why he hits me",
        "he won't stop hitting me",
        "he does not drink, he hits me",
        "I can't sleep because he hits me",
        "it is not only that he hits me",
        "I never told anyone that he hits me",
    ],
)
def test_a_denial_of_something_else_denies_nothing(text):
    compiled = rule(any=[{"pattern": "(hit|hits|hitting) (me|us)"}], severity="warning")
    assert len(found(compiled, text)) == 1
    assert denials([compiled], [(None, text)]) == []


def test_any_word_stands_for_no_denial():
    assert found(pattern("he [word]? hits"), "he often hits", "he never hits") == [
        ["he often hits"]
    ]


def test_a_rule_is_said_by_whom_it_says_and_what_is_given_is_no_evidence():
    compiled = rule(
        by="caller",
        scope="call",
        given=[{"words": ["my husband"]}],
        any=[{"pattern": "hits me"}],
        none=[{"words": ["film"]}],
    )
    caller, agent = ("caller", "my husband is at home"), ("agent", "you said he hits me")
    assert match([compiled], [caller, agent]) == []
    (held,) = match([compiled], [caller, ("caller", "he hits me")])
    assert held.spans == (Span(1, 3, 10),)
    assert match([compiled], [caller, ("caller", "he hits me"), ("agent", "in the film?")]) == []


@pytest.mark.parametrize(
    "parts",
    [
        {"given": [{"words": ["a"]}]},
        {"any": [{"words": ["a"]}], "by": "nobody"},
        {"any": [{"words": ["a"]}], "unless_negated": "yes"},
    ],
)
def test_the_newer_keys_are_checked_too(parts):
    with pytest.raises(RuleError):
        rule(**parts)
