import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from callcore.download import Downloader, open_client, progress_for
from callcore.errors import DownloadError
from callcore.package_index import DEFAULT_INDEX, find_wheel, parse_pip_settings, pip_settings
from tests.support.file_server import FileServer, file_server

JSON = "application/vnd.pypi.simple.v1+json"


@pytest.fixture
def site() -> Iterator[FileServer]:
    with file_server() as site:
        yield site


@pytest.fixture
def downloader() -> Iterator[Downloader]:
    with open_client() as client:
        yield Downloader(client, progress_for())


def serve_json(site: FileServer, index: str, project: str, *files: dict[str, object]) -> str:
    path = f"/{index}/{project}/"
    site.files[path] = json.dumps({"files": files}).encode()
    site.types[path] = JSON
    return f"{site.url}/{index}"


def entry(filename: str, url: str = "w", **hashes: str) -> dict[str, object]:
    return {"filename": filename, "url": url, "hashes": hashes}


def test_pips_variables_beat_its_files_and_passwords_stay_in_the_url() -> None:
    text = (
        "global.cert='~/ca.pem'\n"
        "global.index-url='https://one.example/simple/'\n"
        "install.index-url='https://two.example/simple'\n"
        ":env:.index-url='https://user:secret@three.example/simple'\n"
        "global.extra-index-url='file:///opt/simple https://four.example/simple'\n"
    )
    settings = parse_pip_settings(text)
    assert settings.indexes == (
        "https://user:secret@three.example/simple",
        "https://four.example/simple",
    )
    assert settings.certificates == Path("~/ca.pem").expanduser()


def test_pip_without_settings_means_pypi() -> None:
    assert parse_pip_settings("").indexes == (DEFAULT_INDEX,)


def test_pips_own_answer_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror.example/simple/")
    assert pip_settings().indexes[0] == "https://mirror.example/simple"


def test_a_wheel_is_found_in_a_json_index(downloader: Downloader, site: FileServer) -> None:
    index = serve_json(
        site,
        "simple",
        "silero-vad",
        entry("silero_vad-6.2.3.tar.gz"),
        entry("silero_vad-6.2.30-py3-none-any.whl"),
        entry("silero_vad-6.2.3-cp311-cp311-linux_x86_64.whl"),
        entry("silero_vad-6.2.3-py3-none-any.whl", "../../files/right.whl", sha256="ab"),
    )
    wheel = find_wheel(downloader, (index,), "Silero_VAD==6.2.3")
    assert wheel.url == f"{site.url}/files/right.whl"
    assert wheel.sha256 == "ab"


def test_a_wheel_is_found_in_an_html_index(downloader: Downloader, site: FileServer) -> None:
    site.files["/simple/silero-vad/"] = (
        b"<!DOCTYPE html><a name=x></a>"
        b'<a href="/f/silero_vad-6.2.2-py3-none-any.whl#sha256=aa">older</a>'
        b'<a href="/f/silero_vad-6.2.3-py3-none-any.whl#sha256=bb">right</a>'
    )
    site.types["/simple/silero-vad/"] = "text/html"
    wheel = find_wheel(downloader, (f"{site.url}/simple",), "silero-vad==6.2.3")
    assert wheel.url == f"{site.url}/f/silero_vad-6.2.3-py3-none-any.whl"
    assert wheel.sha256 == "bb"


def test_the_next_index_is_asked_when_the_first_does_not_have_it(
    downloader: Downloader, site: FileServer
) -> None:
    second = serve_json(site, "second", "x", entry("x-1-py3-none-any.whl", "/x.whl"))
    wheel = find_wheel(downloader, (f"{site.url}/first", second), "x==1")
    assert wheel.url == f"{site.url}/x.whl"


def test_a_wheel_that_no_index_has_is_an_error(downloader: Downloader, site: FileServer) -> None:
    index = serve_json(site, "simple", "x", entry("x-2-py3-none-any.whl"))
    with pytest.raises(DownloadError, match="has no wheel of x==1"):
        find_wheel(downloader, (index,), "x==1")
    with pytest.raises(DownloadError, match="answered 404"):
        find_wheel(downloader, (index,), "y==1")
