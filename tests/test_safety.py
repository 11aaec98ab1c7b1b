from typing import Any

import pytest

from callcore import safety, taxonomies
from tests.support.results import categories, category, flag, quoted, segment

SAID = segment(0, "caller", 0, 4, "he beats me and he beats her")


def no_denials(_field: str) -> list[dict[str, Any]]:
    return []


def test_every_name_in_the_table_is_one_of_a_shipped_taxonomy() -> None:
    known = {
        each.id
        for taxonomy in taxonomies.load(taxonomies.shipped())
        for each in (*taxonomy.categories, *taxonomy.rules)
    }
    for field, names in safety._table().items():
        for name in names:
            assert any(safety._is_among(each, (name,)) for each in known), (field, name)


@pytest.mark.parametrize(
    ("source", "found_by", "value"),
    [
        ("rule", "rule:sign.neglect", "yes"),
        ("embedding", "rule:sign.neglect", "yes"),
        ("rule", "embedding", "unknown"),
        ("embedding", "embedding", "unknown"),
        ("example", "example", "unknown"),
        ("human", "embedding", "yes"),
    ],
)
def test_only_what_was_stated_is_a_yes(source: str, found_by: str, value: str) -> None:
    words = quoted(SAID, "beats", found_by)
    found = safety.fields(categories(category("violence.neglect", source, words)), no_denials)
    assert found["neglect"]["value"] == value


def test_a_name_stands_for_what_begins_with_it_and_no_other_word() -> None:
    made = categories(category("exploitationary", "rule", quoted(SAID, "beats")))
    assert safety.fields(made, no_denials)["exploitation"]["value"] == "unknown"
    made = categories(category("exploitation.labour", "rule", quoted(SAID, "beats")))
    assert safety.fields(made, no_denials)["exploitation"]["value"] == "yes"


def test_the_same_words_are_shown_once_and_in_order() -> None:
    first, second = quoted(SAID, "he beats me"), quoted(SAID, "he beats her")
    made = categories(
        category("violence.physical", "rule", second, first),
        category("violence.domestic", "rule", first),
    )
    evidence = safety.fields(made, no_denials)["violence"]["physical"]["evidence"]
    assert [each["quote"] for each in evidence] == ["he beats me", "he beats her"]


def test_a_flag_that_a_person_called_wrong_says_nothing() -> None:
    raised = flag("danger.now", quoted(SAID, "beats"))
    assert safety.fields(categories(flags=[raised]), no_denials)["immediate_danger"]["evidence"]
    wrong = {**raised, "state": "wrong"}
    found = safety.fields(categories(flags=[wrong]), no_denials)
    assert found["immediate_danger"] == {"value": "unknown", "evidence": []}
