import json
import os
import stat
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from callcore import argos_packages, settings
from callcore.argos_packages import installed, pull
from callcore.cli import models as models_command
from callcore.engines.argos import Argos, sentences
from callcore.errors import EngineError, ModelError
from tests.support.file_server import FileServer, file_server

PACKAGE = Path(__file__).parent / "data" / "argos" / "translate-es_en-prompts.argosmodel"
NAME = "translate-es_en"


class Notes(list[str]):
    """A progress that remembers its notes."""

    def start(self, label: str, total: int | None, done: int) -> None:
        pass

    def advance(self, num_bytes: int) -> None:
        pass

    def finish(self) -> None:
        pass

    def note(self, line: str) -> None:
        self.append(line)


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    pull(folder, [str(PACKAGE)], Notes())
    return folder


@pytest.fixture(scope="module")
def argos(models_dir: Path) -> Argos:
    return Argos(str(argos_packages.folder_of(models_dir)), threads=1)


@pytest.fixture
def site() -> Iterator[FileServer]:
    with file_server() as server:
        yield server


def entry(link: str, version: str = "0.1", **other: object) -> dict[str, object]:
    return {
        "package_version": version,
        "from_code": "es",
        "to_code": "en",
        "links": [link],
        **other,
    }


def repacked(path: Path, **changed: bytes | None) -> Path:
    """Write the package with some of its files changed, or left out where None."""
    with zipfile.ZipFile(PACKAGE) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            body = changed.get(name.rpartition("/")[2], source.read(name))
            if body is not None:
                target.writestr(name, body)
    return path


# ---- the engine


def test_text_is_translated_by_the_installed_pair(argos: Argos) -> None:
    assert argos.pairs() == [("es", "en")]
    assert argos.translate(["Su mensaje ha sido guardado."], "es", "en") == [
        "Your message has been saved."
    ]
    assert argos.model == f"{NAME} 0.1"


def test_empty_texts_lines_and_order_are_kept(argos: Argos) -> None:
    saved = "Su mensaje ha sido guardado."
    call = "Usted tiene una llamada entrante"
    texts = ["", f"{saved}\n\n{call}", "  ", f"{saved} {saved}", call]
    assert argos.translate(texts, "es", "en") == [
        "",
        "Your message has been saved.\n\nyou have an incoming call",
        "",
        "Your message has been saved. Your message has been saved.",
        "you have an incoming call",
    ]
    assert argos.translate([], "es", "en") == []


def test_a_text_of_any_length_is_translated_to_its_end(argos: Argos) -> None:
    saved = "Su mensaje ha sido guardado."
    answer = argos.translate([" ".join([saved] * 200)], "es", "en")[0]
    assert answer.count("Your message has been saved.") == 200
    # One "sentence" of 1,000 words: cut, not dropped behind the model's limit.
    whole = argos.translate(["mensaje " * 1000], "es", "en")[0]
    assert len(whole) > 500


def test_no_way_between_two_languages_is_an_error_that_names_them(argos: Argos) -> None:
    with pytest.raises(EngineError, match="no package translates es to fr"):
        argos.translate(["hola"], "es", "fr")
    with pytest.raises(EngineError, match="no package translates sw to en"):
        argos.translate(["habari"], "sw", "en")


def test_two_pairs_meet_in_english(tmp_path: Path) -> None:
    # Both are the Spanish model by another name: what counts is the way through two of them.
    about = {"package_version": "1", "from_code": "en", "to_code": "fr"}
    second = repacked(tmp_path / "b.argosmodel", **{"metadata.json": json.dumps(about).encode()})
    pull(tmp_path, [str(PACKAGE), str(second)], Notes())
    both = Argos(str(argos_packages.folder_of(tmp_path)))
    once = both.translate(["Su mensaje ha sido guardado."], "es", "en")
    assert both.translate(["Su mensaje ha sido guardado."], "es", "fr") == both.translate(
        once, "en", "fr"
    )


def test_a_package_that_is_installed_later_needs_no_restart(tmp_path: Path) -> None:
    engine = Argos(str(argos_packages.folder_of(tmp_path)))
    assert engine.pairs() == []
    pull(tmp_path, [str(PACKAGE)], Notes())
    assert engine.pairs() == [("es", "en")]
    assert engine.translate(["Su mensaje ha sido guardado."], "es", "en")


def test_norwegian_is_found_by_whispers_name(tmp_path: Path) -> None:
    about = json.dumps({"package_version": "1", "from_code": "nb", "to_code": "en"}).encode()
    pull(tmp_path, [str(repacked(tmp_path / "n.argosmodel", **{"metadata.json": about}))], Notes())
    engine = Argos(str(argos_packages.folder_of(tmp_path)))
    assert ("no", "en") in engine.pairs()
    assert engine.translate(["mensaje"], "no", "en") == engine.translate(["mensaje"], "nb", "en")


def test_a_damaged_model_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    pull(tmp_path, [str(PACKAGE)], Notes())
    folder = argos_packages.folder_of(tmp_path) / NAME
    (folder / "model" / "model.bin").write_bytes(b"no model")
    with pytest.raises(EngineError, match=f"callcore models pull {NAME}"):
        Argos(str(folder.parent)).translate(["hola"], "es", "en")


def test_translating_touches_no_network_and_no_agpl_code(models_dir: Path, tmp_path: Path) -> None:
    program = """
import sys
def guard(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
        raise SystemExit("the network was used: " + event)
sys.addaudithook(guard)
from callcore.engines.argos import Argos
print(Argos(sys.argv[1]).translate(["Su mensaje ha sido guardado."], "es", "en"))
assert not {"minisbd", "stanza", "spacy"} & set(sys.modules)
"""
    environ = {**os.environ, "HOME": str(tmp_path)}
    environ = {name: value for name, value in environ.items() if not name.startswith("XDG_")}
    folder = str(argos_packages.folder_of(models_dir))
    ran = subprocess.run(
        [sys.executable, "-c", program, folder],
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert "Your message has been saved." in ran.stdout
    assert list(tmp_path.iterdir()) == []  # nothing in the user's home either


def test_sentences_end_where_sentences_end() -> None:
    line = 'Mr. Smith paid 3.5 dollars. "Really?" he said! 你好。再见。 ok'
    assert sentences(line) == [
        "Mr. Smith paid 3.5 dollars.",
        '"Really?"',
        "he said!",
        "你好。",
        "再见。",
        "ok",
    ]
    assert sentences("") == []
    assert max(map(len, sentences("word, " * 300))) <= 300
    assert "".join(sentences("x" * 1000)) == "x" * 1000


# ---- packages


def test_a_pair_is_pulled_from_the_newest_entry_of_the_index(
    tmp_path: Path, site: FileServer
) -> None:
    site.files["/new.argosmodel"] = PACKAGE.read_bytes()
    site.files["/index.json"] = json.dumps(
        [
            entry(f"{site.url}/old.argosmodel", "0.9"),
            entry(f"{site.url}/new.argosmodel", "0.10"),
            entry(f"{site.url}/other.argosmodel", "3", to_code="fr"),
        ]
    ).encode()
    package = pull(tmp_path, [NAME], Notes(), index=f"{site.url}/index.json")[0]
    assert (package.name, package.state, package.version) == (NAME, "ready", "0.1")
    assert package.pair == ("es", "en")
    assert site.paths() == ["/index.json", "/new.argosmodel"]
    pull(tmp_path, [NAME], Notes(), index=f"{site.url}/index.json")
    assert len(site.paths()) == 2  # it is whole: nobody is asked
    left = {each.name for each in argos_packages.folder_of(tmp_path).iterdir()}
    assert left == {NAME, ".pull.lock"}


def test_a_damaged_package_is_seen_and_pulled_again(tmp_path: Path, site: FileServer) -> None:
    site.files["/es.argosmodel"] = PACKAGE.read_bytes()
    site.files["/index.json"] = json.dumps([entry(f"{site.url}/es.argosmodel")]).encode()
    index = f"{site.url}/index.json"
    folder = pull(tmp_path, [NAME], Notes(), index=index)[0].folder
    model = folder / "model" / "model.bin"
    model.write_bytes(b"x" * model.stat().st_size)
    assert installed(tmp_path)[0].state == "ready"  # sizes only
    assert argos_packages.inspect(tmp_path)[0].bad_files == ("model/model.bin",)
    assert pull(tmp_path, [NAME], Notes(), index=index)[0].state == "ready"
    assert argos_packages.inspect(tmp_path)[0].state == "ready"


@pytest.mark.parametrize(
    ("index", "says"),
    [
        (b"[]", "has no such pair"),
        (b'{"a": 1}', "has no such pair"),
        (
            b'[{"from_code": "es", "to_code": "en", "links": ["file:///etc/passwd"]}]',
            "no such pair",
        ),
        (b"<html>", "not JSON"),
        (None, "answered 404"),
    ],
)
def test_an_index_without_the_pair_says_what_to_do(
    tmp_path: Path, site: FileServer, index: bytes | None, says: str
) -> None:
    if index is not None:
        site.files["/index.json"] = index
    with pytest.raises(ModelError, match=says):
        pull(tmp_path, [NAME], Notes(), index=f"{site.url}/index.json")
    assert installed(tmp_path) == []


def test_a_package_of_another_pair_than_asked_for_is_refused(
    tmp_path: Path, site: FileServer
) -> None:
    site.files["/x.argosmodel"] = PACKAGE.read_bytes()
    index = [{**entry(f"{site.url}/x.argosmodel"), "from_code": "fr"}]
    site.files["/index.json"] = json.dumps(index).encode()
    with pytest.raises(ModelError, match="the file is translate-es_en, not translate-fr_en"):
        pull(tmp_path, ["translate-fr_en"], Notes(), index=f"{site.url}/index.json")
    assert installed(tmp_path) == []


def hostile(path: Path, name: str, mode: int = 0, body: bytes = b"x") -> Path:
    repacked(path)
    with zipfile.ZipFile(path, "a") as archive:
        info = zipfile.ZipInfo(name)
        info.external_attr = mode << 16
        archive.writestr(info, body)
    return path


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("../outside.txt", 0),
        ("/etc/outside.txt", 0),
        ("translate-es_en-prompts/model/../../../outside.txt", 0),
        ("translate-es_en-prompts\\..\\outside.txt", 0),
        ("translate-es_en-prompts/model/link", stat.S_IFLNK | 0o777),
        ("second/file.txt", 0),
    ],
)
def test_an_entry_that_leaves_its_folder_is_refused(tmp_path: Path, name: str, mode: int) -> None:
    path = hostile(tmp_path / "p.argosmodel", name, mode)
    with pytest.raises(ModelError, match=r"points out of its folder|holds 2 folders"):
        pull(tmp_path / "models", [str(path)], Notes())
    assert [each.name for each in tmp_path.iterdir() if "outside" in each.name] == []
    assert installed(tmp_path / "models") == []


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"metadata.json": b"not json"}, "names no pair"),
        ({"metadata.json": b'["es"]'}, "names no pair"),
        ({"metadata.json": b'{"from_code": "../x", "to_code": "en"}'}, "names no pair"),
        ({"metadata.json": b'{"from_code": "es", "to_code": "es"}'}, "names no pair"),
        ({"metadata.json": b'{"from_code": "es", "to_code": null}'}, "names no pair"),
        ({"metadata.json": b" " * 70_000}, "names no pair"),
        ({"metadata.json": None}, "lacks metadata.json"),
        ({"model.bin": None}, "lacks model/model.bin"),
        ({"sentencepiece.model": None}, "lacks sentencepiece.model"),
    ],
)
def test_what_is_no_translation_package_is_refused(
    tmp_path: Path, changed: dict[str, bytes | None], says: str
) -> None:
    path = repacked(tmp_path / "p.argosmodel", **changed)
    with pytest.raises(ModelError, match=says):
        pull(tmp_path, [str(path)], Notes())


def test_broken_and_missing_files_are_refused(tmp_path: Path) -> None:
    cut = tmp_path / "cut.argosmodel"
    cut.write_bytes(PACKAGE.read_bytes()[:50_000])
    with pytest.raises(ModelError, match="not an Argos package"):
        pull(tmp_path, [str(cut)], Notes())
    turned = bytearray(PACKAGE.read_bytes())
    turned[100_000:100_100] = bytes(100)
    cut.write_bytes(turned)
    with pytest.raises(ModelError, match="not an Argos package"):
        pull(tmp_path, [str(cut)], Notes())
    with pytest.raises(ModelError, match="no such file"):
        pull(tmp_path, [str(tmp_path / "gone.argosmodel")], Notes())
    assert installed(tmp_path) == []


def test_a_package_that_unpacks_to_too_much_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(argos_packages, "_LARGEST", 100_000)
    with pytest.raises(ModelError, match="unpacks to more than 100 kB"):
        pull(tmp_path, [str(PACKAGE)], Notes())
    assert installed(tmp_path) == []


def test_a_download_that_does_not_end_is_ended(
    tmp_path: Path, site: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.files["/x.argosmodel"] = PACKAGE.read_bytes()
    site.files["/index.json"] = json.dumps([entry(f"{site.url}/x.argosmodel")]).encode()
    monkeypatch.setattr(argos_packages, "_LARGEST", 100_000)
    with pytest.raises(ModelError, match="sent more than 100 kB"):
        pull(tmp_path, [NAME], Notes(), index=f"{site.url}/index.json")


def test_only_what_translating_needs_is_unpacked(tmp_path: Path) -> None:
    path = hostile(tmp_path / "p.argosmodel", "translate-es_en-prompts/stanza/es.pt")
    folder = pull(tmp_path, [str(path)], Notes())[0].folder
    assert not (folder / "stanza").exists()


def test_the_models_command_knows_packages(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site = settings.load({"CALLCORE_STATE_DIR": str(tmp_path)})
    assert models_command.run(site, "pull", [str(PACKAGE)]) == 0
    assert models_command.run(site, "list", []) == 0
    assert NAME in capsys.readouterr().out
    assert models_command.run(site, "verify", [NAME]) == 0
    (site.models_dir / "argos" / NAME / "metadata.json").write_bytes(b"{}")
    assert models_command.run(site, "verify", [NAME]) == 1
    assert "damaged: metadata.json" in capsys.readouterr().out
    assert models_command.run(site, "verify", ["translate-fr_en"]) == 1
    assert "callcore models pull translate-fr_en" in capsys.readouterr().err
    assert models_command.run(site, "pull", [str(tmp_path / "no.argosmodel")]) == 1


def test_the_index_is_the_argos_projects_unless_told_otherwise() -> None:
    assert argos_packages.index_url({}).startswith("https://raw.githubusercontent.com/argosopent")
    told = {"ARGOS_PACKAGE_INDEX": "https://mirror.example/argos/"}
    assert argos_packages.index_url(told) == "https://mirror.example/argos/index.json"
