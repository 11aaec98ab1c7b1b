import hashlib
import io
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from callcore.download import (
    BACKOFF_S,
    Downloader,
    PlainProgress,
    open_client,
    progress_for,
    size_text,
)
from callcore.errors import DownloadError
from tests.support.file_server import FileServer, file_server

BODY = bytes(range(256)) * 400
SHA256 = hashlib.sha256(BODY).hexdigest()


class Log(list[str]):
    """A progress that remembers."""

    def start(self, label: str, total: int | None, done: int) -> None:
        self.append(f"{label} {done}/{total}")

    def advance(self, num_bytes: int) -> None:
        pass

    def finish(self) -> None:
        self.append("finish")

    def note(self, line: str) -> None:
        self.append(line)


@pytest.fixture
def site() -> Iterator[FileServer]:
    with file_server() as site:
        site.files["/model"] = BODY
        yield site


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def naps() -> list[float]:
    return []


@pytest.fixture
def downloader(log: Log, naps: list[float]) -> Iterator[Downloader]:
    with open_client() as client:
        yield Downloader(client, log, sleep=naps.append)


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def fetch(downloader: Downloader, site: FileServer, target: Path, **wanted: object) -> str:
    expected = {"size": len(BODY), "sha256": SHA256} | wanted
    return downloader.file(f"{site.url}/model", target, "model", **expected)  # type: ignore[arg-type]


def test_a_file_arrives_whole_and_under_its_name(
    downloader: Downloader, site: FileServer, tmp_path: Path
) -> None:
    assert fetch(downloader, site, tmp_path / "model") == SHA256
    assert (tmp_path / "model").read_bytes() == BODY
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_cut_connection_is_resumed_where_it_broke(
    downloader: Downloader, site: FileServer, tmp_path: Path, naps: list[float]
) -> None:
    site.cuts["/model"] = [1000, 70_000]
    fetch(downloader, site, tmp_path / "model")
    assert (tmp_path / "model").read_bytes() == BODY
    assert [asked for _, asked in site.requests] == [None, "bytes=1000-", "bytes=71000-"]
    assert naps == [BACKOFF_S[0], BACKOFF_S[0]]


def test_an_earlier_runs_part_is_continued(
    downloader: Downloader, site: FileServer, tmp_path: Path, log: Log
) -> None:
    (tmp_path / "model.part").write_bytes(BODY[:5000])
    fetch(downloader, site, tmp_path / "model")
    assert (tmp_path / "model").read_bytes() == BODY
    assert site.requests == [("/model", "bytes=5000-")]
    assert log[0] == f"model 5000/{len(BODY)}"


def test_a_whole_part_needs_no_request(
    downloader: Downloader, site: FileServer, tmp_path: Path
) -> None:
    (tmp_path / "model.part").write_bytes(BODY)
    fetch(downloader, site, tmp_path / "model")
    assert (tmp_path / "model").read_bytes() == BODY
    assert site.requests == []


@pytest.mark.parametrize("stale", [b"x" * 5000, b"x" * len(BODY), b"x" * (len(BODY) + 1)])
@pytest.mark.parametrize("size", [len(BODY), None])
def test_a_part_of_something_else_is_thrown_away(
    downloader: Downloader, site: FileServer, tmp_path: Path, stale: bytes, size: int | None
) -> None:
    (tmp_path / "model.part").write_bytes(stale)
    fetch(downloader, site, tmp_path / "model", size=size)
    assert (tmp_path / "model").read_bytes() == BODY


def test_a_server_without_ranges_is_read_from_the_beginning(
    downloader: Downloader, site: FileServer, tmp_path: Path
) -> None:
    site.ranges = False
    site.cuts["/model"] = [1000]
    fetch(downloader, site, tmp_path / "model")
    assert (tmp_path / "model").read_bytes() == BODY


def test_a_wrong_hash_is_refused_and_nothing_is_left(
    downloader: Downloader, site: FileServer, tmp_path: Path
) -> None:
    site.files["/model"] = b"y" * len(BODY)
    with pytest.raises(DownloadError, match="is not what its sha256 says"):
        fetch(downloader, site, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_sends_too_much_is_cut_off(
    downloader: Downloader, site: FileServer, tmp_path: Path
) -> None:
    site.files["/model"] = BODY + b"more"
    with pytest.raises(DownloadError, match=f"sent more than {len(BODY)} bytes"):
        fetch(downloader, site, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_without_a_hash_nothing_earlier_is_trusted(
    downloader: Downloader, site: FileServer, tmp_path: Path
) -> None:
    (tmp_path / "model.part").write_bytes(b"x" * 5000)
    assert fetch(downloader, site, tmp_path / "model", sha256=None, size=None) == SHA256


def test_a_missing_file_is_not_tried_again(
    downloader: Downloader, site: FileServer, tmp_path: Path, naps: list[float]
) -> None:
    del site.files["/model"]
    with pytest.raises(DownloadError, match="answered 404"):
        fetch(downloader, site, tmp_path / "model")
    assert naps == []


def test_a_host_out_of_reach_is_given_up_at_once(
    downloader: Downloader, tmp_path: Path, naps: list[float]
) -> None:
    url = f"http://127.0.0.1:{unused_port()}/model"
    with pytest.raises(DownloadError, match="cannot be reached") as caught:
        downloader.file(url, tmp_path / "model", "model", size=None, sha256=None)
    assert caught.value.unreachable
    assert naps == []


def test_a_connection_that_always_breaks_is_given_up_after_the_last_pause(
    downloader: Downloader, site: FileServer, tmp_path: Path, naps: list[float]
) -> None:
    site.cuts["/model"] = [0] * 10
    with pytest.raises(DownloadError, match="cannot be reached"):
        fetch(downloader, site, tmp_path / "model")
    assert naps == list(BACKOFF_S)


def test_a_pipe_gets_plain_lines_and_no_bar(downloader: Downloader) -> None:
    stream = io.StringIO()
    progress = progress_for(stream)
    assert isinstance(progress, PlainProgress)
    progress.start("model", 40_000_000, 0)
    for _ in range(40):
        progress.advance(1_000_000)
    progress.finish()
    assert stream.getvalue().splitlines() == [
        "model: 40.0 MB",
        "model: 25 %",
        "model: 50 %",
        "model: 75 %",
        "model: 100 %",
    ]


def test_a_terminal_gets_a_bar() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    progress = progress_for(stream)
    progress.start("model", 1000, 0)
    progress.advance(1000)
    progress.note("a line")
    progress.finish()
    assert "model: 100%" in stream.getvalue()
    assert "a line" in stream.getvalue()


@pytest.mark.parametrize(
    ("num_bytes", "text"), [(999, "999 B"), (2317, "2 kB"), (75_537_502, "75.5 MB")]
)
def test_sizes_are_shown_as_people_say_them(num_bytes: int, text: str) -> None:
    assert size_text(num_bytes) == text
