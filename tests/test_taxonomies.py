import re
from pathlib import Path

import pytest

from callcore import taxonomies
from callcore.category_rules import failed_examples
from callcore.doctor import site
from callcore.errors import ConfigError
from callcore.settings import load

SMALL = """\
taxonomy: shop
version: 2
call_types:
  - {id: silent, label: {en: Silent}, data: false, recognise: {max_words: 0}}
categories:
  - id: goods
    label: {en: Goods, fr: Marchandises}
    hint: About a thing that was bought.
    children:
      - id: goods.broken
        label: {en: Broken}
        examples: [It fell apart., It does not work.]
        severity: notice
rules:
  - id: broken
    label: {en: Broken}
    category: goods.broken
    any: [{words: [broken]}]
priorities:
  - {level: low, why: {en: A thing is broken}, rules: [broken], categories: [goods]}
"""


@pytest.mark.parametrize("name", taxonomies.shipped())
def test_a_shipped_taxonomy_is_valid_and_its_rules_hold_in_their_examples(name):
    (taxonomy,) = taxonomies.load([name])
    assert taxonomy.id == name
    for rule in taxonomy.rules:
        assert rule.match, f"{rule.id} has no example"
        assert rule.no_match, f"{rule.id} has no counter-example"
        assert failed_examples(rule) == [], rule.id


@pytest.mark.parametrize("name", taxonomies.shipped())
def test_every_category_of_a_shipped_taxonomy_can_be_found(name):
    (taxonomy,) = taxonomies.load([name])
    parents = {category.path[-2] for category in taxonomy.categories if len(category.path) > 1}
    for category in taxonomy.categories:
        described = category.hints or category.examples
        assert described or category.id in parents, f"{category.id} has neither hint nor example"
    no_data = {each.id for each in taxonomy.call_types if not each.data}
    assert no_data >= {"silent", "hang-up", "abusive", "prank", "wrong-number", "thanks"}


def test_the_child_helpline_has_what_helplines_count():
    (taxonomy,) = taxonomies.load(["child-helpline"])
    tops = {category.path[0] for category in taxonomy.categories}
    assert tops >= {
        "missing",
        "violence",
        "online",
        "exploitation",
        "mental",
        "health",
        "family",
        "peers",
        "education",
        "rights",
        "substance",
        "services",
    }


def test_a_sites_own_file_is_read_with_its_children(tmp_path):
    (tmp_path / "shop.yaml").write_text(SMALL)
    shipped, own = taxonomies.load(["emergency", str(tmp_path / "shop.yaml")])
    assert shipped.id == "emergency"
    assert (own.id, own.version) == ("shop", "2")
    goods, broken = own.categories
    assert (goods.id, goods.path, goods.hints) == (
        "goods",
        ("goods",),
        ("About a thing that was bought.",),
    )
    assert broken.path == ("goods", "goods.broken")
    assert broken.examples == ("It fell apart.", "It does not work.")
    assert own.rules[0].category == "goods.broken"
    assert own.priorities[0].categories == ("goods",)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("version: 2", "version: 2\nversion: 3", "line 3: version is there twice"),
        ("version: 2\n", "", "line 1: the file has no `version`"),
        ("version: 2", "version: 2\nkolor: red", "line 3: kolor is an unknown key"),
        ("hint: About", "hynt: About", r"line 8: categories\[0\].hynt is an unknown key"),
        ("hint: About a thing that was bought.", "hint: [1]", "line 8: .*hint is no list of texts"),
        ("hint: About a thing that was bought.", "hint: 3", "line 8: .*hint is no list of texts"),
        ("id: goods.broken", "id: broken", "line 10: .*does not begin with goods"),
        ("id: goods.broken", "id: 4", "line 10: .*id is no text"),
        (
            "label: {en: Broken}\n        ex",
            "label: {fr: X}\n        ex",
            "line 11: .*no text in E",
        ),
        (
            "label: {en: Broken}\n        ex",
            "label: Broken\n        ex",
            "line 11: .*is no mapping",
        ),
        ("severity: notice", "severity: awful", "line 13: .*severity is none of"),
        ("any: [{words: [broken]}]", "any: [{word: [broken]}]", r"line 15: rules\[0\] has a cond"),
        ("category: goods.broken", "category: goods.brok", r"line 17: .*names goods.brok, which"),
        ("category: goods.broken", "category: [goods]", "no text under `category`"),
        ("rules: [broken]", "rules: [brokken]", r"priorities\[0\].rules names brokken"),
        ("level: low", "level: lowest", r"priorities\[0\].level is none of"),
        ("data: false", "data: perhaps", "neither true nor false"),
        ("max_words: 0", "max_words: few", "no number of words"),
        (
            "      - id: goods.broken",
            "      - 3\n      - id: goods.broken",
            "line 10: .*no mapping",
        ),
        ("rules:\n  - id: broken", "rules:\n  - 3\n  - id: broken", r"rules\[0\] is no mapping"),
        ("priorities:\n", "priorities: none\nother:\n", "other is an unknown key"),
        ("taxonomy: shop", "taxonomy: [", "YAML, but line"),
    ],
)
def test_what_is_wrong_in_a_file_is_said_with_its_line(old, new, said):
    assert old in SMALL
    with pytest.raises(ConfigError, match=said):
        taxonomies.parse(SMALL.replace(old, new), "shop.yaml")


def test_ids_that_are_there_twice_are_refused():
    twice = SMALL.replace("rules:\n", "rules:\n  - {id: broken, any: [{words: [bust]}]}\n")
    with pytest.raises(ConfigError, match="line 14: rules has the id broken twice"):
        taxonomies.parse(twice, "shop.yaml")


def test_a_file_that_is_none_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="child-helpline, emergency, generic-support, or the pa"):
        taxonomies.load(["nothing"])
    with pytest.raises(ConfigError, match="No such file"):
        taxonomies.load([str(tmp_path / "nothing.yaml")])
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        taxonomies.load([str(tmp_path / "bytes.yaml")])
    for text in ("", "just text", "a: \x07"):
        with pytest.raises(ConfigError):
            taxonomies.parse(text, "shop.yaml")


def test_two_taxonomies_of_one_id_are_refused(tmp_path):
    (tmp_path / "a.yaml").write_text(SMALL)
    (tmp_path / "b.yaml").write_text(SMALL)
    with pytest.raises(ConfigError, match="not shop twice"):
        taxonomies.load([str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml")])


def test_a_file_cannot_run_code(tmp_path):
    with pytest.raises(ConfigError, match="YAML, but line 1"):
        taxonomies.parse("!!python/object/apply:os.getcwd []", "shop.yaml")


def test_the_example_in_the_documentation_is_a_taxonomy():
    text = (Path(__file__).parents[1] / "docs" / "analysis.md").read_text("utf-8")
    (example,) = re.findall(r"```yaml\n(taxonomy: .*?)```", text, re.DOTALL)
    taxonomy = taxonomies.parse(example, "docs/analysis.md")
    assert [failed_examples(rule) for rule in taxonomy.rules] == [[]]
    assert [category.id for category in taxonomy.categories] == ["orders", "orders.late"]


@pytest.mark.parametrize(
    ("text", "state", "said"),
    [
        (SMALL, "ok", "shop 2"),
        (SMALL.replace("severity: notice", "severity: awful"), "failed", "line 13"),
        (
            SMALL.replace("[broken]}]", "[broken]}]\n    examples: {match: [It is whole.]}"),
            "failed",
            "rule broken",
        ),
    ],
)
def test_the_doctor_checks_a_sites_own_taxonomies(tmp_path: Path, text, state, said):
    own = tmp_path / "own.yaml"
    own.write_text(text)
    found = site.check_taxonomies(load({"CALLCORE_TAXONOMIES": str(own)}))
    assert (found.check, found.state) == ("taxonomies", state)
    assert said in found.detail
    assert state == "ok" or str(own) in found.detail
    assert bool(found.remedy) == (state == "failed")
