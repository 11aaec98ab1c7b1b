"""Where a recording may be fetched from, and how much of it: the table of facts, S2."""

import contextlib
import gzip
import hashlib
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator, Sequence
from ipaddress import ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callcore import fetch, recording_url
from callcore.errors import FetchError
from callcore.fetch import Fetched, Fetcher, Rules, may_connect
from tests.support.recording_host import Handler, Host, redirects, sends, serve

LOOPBACK = (ip_network("127.0.0.0/8"),)
AUDIO = b"RIFF" + bytes(range(256)) * 40
#: In no message may this be: URLs carry numbers and tokens.
SECRET = "s3cret-0700123456"


@pytest.fixture
def host() -> Iterator[Host]:
    with serve() as host:
        host.paths["/a.wav"] = sends(AUDIO)
        yield host


class Names:
    """A resolver that answers from a table and remembers what it was asked."""

    def __init__(self, table: dict[str, list[str]] | None = None) -> None:
        self.table = table or {}
        self.asked: list[str] = []

    def __call__(self, name: str, port: int) -> Sequence[str]:
        self.asked.append(name)
        return self.table.get(name, ["127.0.0.1"])


def rules(host: Host, *more: str, **given: object) -> Rules:
    hosts = (f"pbx.example:{host.port}", *more)
    known = {"networks": LOOPBACK, "max_bytes": 1_000_000, "timeout_s": 20.0, **given}
    return Rules(hosts, **known)  # type: ignore[arg-type]


def fetched(
    host: Host, folder: Path, path: str = "/a.wav", names: Names | None = None, **given: object
) -> Fetched:
    fetcher = Fetcher(rules(host, **given), resolve=names or Names())  # type: ignore[arg-type]
    return fetcher.fetch(host.url(path), folder / "fetched" / "x")


def refused(host: Host, folder: Path, path: str = "/a.wav", **given: object) -> FetchError:
    with pytest.raises(FetchError) as caught:
        fetched(host, folder, f"{path}?token={SECRET}", **given)  # type: ignore[arg-type]
    assert SECRET not in str(caught.value)
    assert "pbx.example" in str(caught.value)
    assert not list((folder / "fetched").glob("*")), "something was left on the disk"
    assert not list((folder / "fetched").glob(".*"))
    return caught.value


# ---- what comes


def test_a_recording_is_fetched_whole(host: Host, tmp_path: Path) -> None:
    got = fetched(host, tmp_path, "/a.wav?id=1")
    assert (tmp_path / "fetched" / "x").read_bytes() == AUDIO
    assert got == Fetched(len(AUDIO), hashlib.sha256(AUDIO).hexdigest())
    assert [each.name for each in (tmp_path / "fetched").iterdir()] == ["x"]
    [headers] = host.headers
    assert headers["host"] == f"pbx.example:{host.port}"
    assert headers["accept-encoding"] == "identity"
    assert not {"cookie", "authorization", "referer"} & headers.keys()


def test_an_ipv6_address_is_asked_by_its_name_in_brackets(host: Host, tmp_path: Path) -> None:
    allowed = rules(host, f"[::1]:{host.port}", networks=(*LOOPBACK, ip_network("::1")))
    url = f"http://[0:0::1]:{host.port}/a.wav"
    names = Names()
    assert Fetcher(allowed, resolve=names).fetch(url, tmp_path / "x").size_bytes == len(AUDIO)
    assert names.asked == ["::1"]
    assert host.headers[0]["host"] == f"[::1]:{host.port}"


@pytest.mark.parametrize(
    "kind",
    ["audio/x-gsm", "audio/ogg; codecs=opus", "application/octet-stream", "video/ogg", None, ""],
)
def test_types_of_recordings_are_taken(host: Host, tmp_path: Path, kind: str | None) -> None:
    host.paths["/a.wav"] = sends(AUDIO, kind)
    assert fetched(host, tmp_path).size_bytes == len(AUDIO)


def test_proxies_of_the_environment_are_not_used(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert fetched(host, tmp_path).size_bytes == len(AUDIO)


def test_a_redirect_to_a_listed_host_is_followed(host: Host, tmp_path: Path) -> None:
    names = Names()
    host.paths["/first"] = redirects("/second?x=1", 301)
    host.paths["/second"] = redirects(host.url("/third"), 307)
    host.paths["/third"] = redirects(f"//pbx.example:{host.port}/a.wav", 303)
    assert fetched(host, tmp_path, "/first", names).size_bytes == len(AUDIO)
    assert host.asked == ["/first", "/second?x=1", "/third", "/a.wav"]
    assert names.asked == ["pbx.example"] * 4  # each hop is checked anew


# ---- where: the text of the URL

#: Hosts of the list, while these are tried.
LISTED = (
    "pbx.example", "*.calls.example", "bücher.example", "pbx.example:8443",
    "127.0.0.1", "10.0.0.1", "[::1]", "[::ffff:10.0.0.1]", "169.254.169.254",
)  # fmt: skip


@pytest.mark.parametrize(
    "url",
    [
        "https://pbx.example/a.wav",
        "HTTP://PBX.EXAMPLE/a.wav",
        "http://pbx.example./a.wav",
        "http://pbx.example:443/a.wav",
        "https://pbx.example:8443/a.wav",
        "https://one.calls.example/a.wav",
        "https://a.b.calls.example",
        "https://bücher.example/a.wav",
        "https://xn--bcher-kva.example/ü.wav?x=ü#part",
    ],
)
def test_a_url_of_a_listed_host_is_read(url: str) -> None:
    at = recording_url.parse(url, LISTED)
    assert str(at).isascii()
    assert recording_url.parse(str(at), LISTED) == at


REFUSED_TEXTS = [
    # other schemes, and none
    "file:///etc/passwd", "ftp://pbx.example/a.wav", "gopher://pbx.example/", "data:audio/wav,x",
    "//pbx.example/a.wav", "pbx.example/a.wav", "/a.wav", "", "http://", "http:///a.wav",
    "http:/pbx.example/",
    # other hosts
    "http://evil.example/a.wav", "http://calls.example/a.wav", "http://evilcalls.example/",
    "http://pbx.example.evil.example/", "http://localhost/", "http://metadata.google.internal/",
    # user names, and what other parsers take for the host
    "http://pbx.example@evil.example/", "http://evil.example@pbx.example/",
    "http://u:p@pbx.example/",
    "http://evil.example\\@pbx.example/", "http://pbx.example\\.evil.example/",
    "http://pbx.example:80@evil.example/", "http://evil.example#@pbx.example/",
    "http://evil.example?@pbx.example/",
    # ports
    "http://pbx.example:22/a.wav", "http://pbx.example:6379/", "http://pbx.example:0/",
    "http://pbx.example:99999/", "http://pbx.example:080443/", "http://pbx.example:/a.wav?",
    "http://pbx.example:+80/",
    # numbers that are addresses in disguise
    "http://2130706433/", "http://0x7f.1/", "http://0x7f000001/", "http://0177.0.0.1/",
    "http://127.1/",
    "http://127.0.0.01/", "http://127.0.0.1.:80/x\t", "http://0/", "http://1.2.3.4.5/",
    "http://\uff11\uff12\uff17.0.0.1/", "http://\u2460\u2461\u2466.0.0.1/",
    # IPv6
    "http://[fe80::1%25eth0]/", "http://[::1", "http://::1/", "http://[v1.x]/",
    "http://[127.0.0.1]/", "http://[]/",
    # percent-encoding, IDN, spaces and control characters
    "http://%70bx.example/", "http://pbx%2eexample/", "http://pbx.example%00.evil/",
    "http://\uff50bx.example/",
    "http://pbx.examp\u0131e/", "http://pbx.\u200bexample/", "http://-pbx.example/",
    "http://a..calls.example/",
    "http://pbx.example/a b.wav", "http://pbx.example/\r\nX: 1", "http://pbx.example/\0",
    " http://pbx.example/",
    "http://pbx.example/a%0a.wav", "http://pbx.example/a%00.wav", "http://pbx.example/\ud800",
    "http://pbx.example/" + "x" * 4096,
]  # fmt: skip


@pytest.mark.parametrize("url", REFUSED_TEXTS, ids=ascii)
def test_what_is_not_plainly_a_url_of_a_listed_host_is_refused_before_any_name_is_resolved(
    url: str, tmp_path: Path
) -> None:
    names = Names()
    fetcher = Fetcher(Rules(LISTED, LOOPBACK, 10, 1.0), resolve=names)
    with pytest.raises(FetchError) as caught:
        fetcher.fetch(url, tmp_path / "x")
    assert caught.value.retry_s == 0
    assert names.asked == []
    assert len(str(caught.value)) < 400


def test_no_host_is_fetched_from_unless_one_is_listed() -> None:
    with pytest.raises(FetchError, match="CALLCORE_RECORDING_HOSTS"):
        recording_url.parse("https://pbx.example/a.wav", ())


@given(st.text(max_size=60))
def test_any_text_is_a_url_or_refused(text: str) -> None:
    for url in (text, f"http://{text}/a.wav", f"http://pbx.example{text}"):
        with contextlib.suppress(FetchError):
            at = recording_url.parse(url, LISTED)
            assert (
                at.host == "pbx.example"
                or at.host.endswith(".calls.example")
                or at.host in str(LISTED)
            )
            assert at.port in {80, 443, 8443}


@pytest.mark.parametrize(
    ("url", "name", "same_as"),
    [
        ("http://pbx.example/x/1700000000.12.wav?sig=1", "1700000000.12.wav", "?sig=2"),
        ("http://pbx.example/x/a%2Fb-caller.WAV", "b-caller.WAV", "?x"),
        ("http://pbx.example/play", "play", ""),
        ("http://pbx.example", "", "/"),
    ],
)
def test_the_end_of_the_path_is_the_files_name(url: str, name: str, same_as: str) -> None:
    at = recording_url.parse(url, LISTED)
    assert at.name == name
    again = recording_url.parse(url.partition("?")[0] + same_as, LISTED)
    assert again.resource == at.resource
    other = recording_url.parse("http://pbx.example/play?id=2", LISTED)
    assert other.resource != at.resource


# ---- where: the address

PRIVATE = [
    "127.0.0.1", "127.255.255.254", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254",
    "100.64.0.1", "0.0.0.0", "0.1.2.3", "192.0.0.1", "192.0.2.1", "198.18.0.1", "198.51.100.1",
    "203.0.113.1", "192.88.99.1", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255",
    "::", "::1", "::ffff:10.0.0.1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::7f00:1",
    "::10.0.0.1",
    "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1",
    "64:ff9b::7f00:1",
    "64:ff9b::a00:1", "64:ff9b:1::a00:1", "2001:db8::1", "2001::1", "2001:0:7f00:1::",
    "2002:7f00:1::",
    "2002:a00:1::1", "100::1", "3fff::1", "5f00::1", "4000::1", "nonsense", "",
]  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE)
def test_a_private_or_special_address_is_not_connected_to(
    host: Host, tmp_path: Path, address: str
) -> None:
    assert not may_connect(address, ())
    # Where 127.0.0.0/8 alone is allowed, nothing else is.
    assert may_connect(address, LOOPBACK) == address.startswith("127.")
    names = Names({"pbx.example": [address]})
    error = refused(host, tmp_path, names=names, networks=())
    assert error.retry_s == 0
    assert "CALLCORE_RECORDING_NETWORKS" in str(error)
    assert host.asked == []


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "93.184.216.34", "2606:2800:220:1::1", "2a00:1450::1"]
)
def test_a_public_address_is_connected_to(address: str) -> None:
    assert may_connect(address, ())


@pytest.mark.parametrize("address", ["224.0.0.1", "0.0.0.0", "ff02::1", "::"])
def test_no_network_makes_a_group_or_nowhere_an_address(address: str) -> None:
    everything = (ip_network("0.0.0.0/0"), ip_network("::/0"))
    assert not may_connect(address, everything)
    assert may_connect("10.0.0.1", everything)
    assert may_connect("fd00::1", everything)


@pytest.mark.parametrize(
    "literal", ["127.0.0.1", "10.0.0.1", "[::1]", "[::ffff:10.0.0.1]", "169.254.169.254"]
)
def test_a_listed_address_is_still_checked_even_before_it_is_asked(literal: str) -> None:
    with pytest.raises(FetchError, match="private or special"):
        fetch.check(f"http://{literal}/a.wav", Rules(LISTED, (), 10, 1.0))


def test_of_several_addresses_only_the_allowed_one_is_connected_to(
    host: Host, tmp_path: Path
) -> None:
    names = Names({"pbx.example": ["169.254.169.254", "10.1.2.3", "127.0.0.1"]})
    assert fetched(host, tmp_path, names=names).size_bytes == len(AUDIO)


def test_a_name_that_leads_elsewhere_when_asked_again_is_asked_once(
    host: Host, tmp_path: Path
) -> None:
    answers = iter([["127.0.0.1"], ["169.254.169.254"], ["10.0.0.1"]])
    asked = []

    def rebinds(name: str, port: int) -> list[str]:
        asked.append(name)
        return next(answers)

    fetcher = Fetcher(rules(host), resolve=rebinds)
    fetcher.fetch(host.url(), tmp_path / "x")
    assert asked == ["pbx.example"]
    # The next hop asks anew, and is checked anew.
    with pytest.raises(FetchError, match="private or special"):
        fetcher.fetch(host.url(), tmp_path / "y")
    assert len(host.asked) == 1


# ---- where: redirects


@pytest.mark.parametrize(
    "to",
    [
        "http://169.254.169.254/latest/meta-data/", "http://metadata.google.internal/",
        "file:///etc/passwd",
        "http://evil.example/a.wav", "//evil.example/a.wav", "http://pbx.example:22/",
        "http://u@pbx.example/",
        "http://127.0.0.1:{port}/a.wav", "http://[::1]:{port}/a.wav", "http://2130706433:{port}/",
        "\\\\evil.example/",
        "http://inside.example:{port}/a.wav", "http://[", "",
    ],
)  # fmt: skip
def test_a_redirect_is_checked_like_a_first_url(host: Host, tmp_path: Path, to: str) -> None:
    host.paths["/go"] = redirects(to.replace("{port}", str(host.port)))
    names = Names({"inside.example": ["10.0.0.1"]})
    fetcher = Fetcher(rules(host, f"inside.example:{host.port}"), resolve=names)
    with pytest.raises(FetchError) as caught:
        fetcher.fetch(host.url("/go"), tmp_path / "x")
    assert caught.value.retry_s == 0
    assert host.asked == ["/go"]
    assert not (tmp_path / "x").exists()


def test_a_ring_of_redirects_ends(host: Host, tmp_path: Path) -> None:
    host.paths["/a.wav"] = redirects("/a.wav")
    error = refused(host, tmp_path)
    assert error.retry_s == 0
    assert len(host.asked) == fetch.MAX_REDIRECTS + 1


# ---- how much, of what


@pytest.mark.parametrize(
    "kind",
    [
        "text/html", "text/html; charset=utf-8", "text/plain", "application/json",
        "application/zip",
        "application/vnd.apple.mpegurl", "audio/mpegurl", "audio/x-mpegurl", "audio/x-scpls",
        "image/svg+xml",
    ],
)  # fmt: skip
def test_what_is_no_audio_is_refused_for_good(host: Host, tmp_path: Path, kind: str) -> None:
    host.paths["/a.wav"] = sends(AUDIO, kind)
    assert refused(host, tmp_path).retry_s == 0


def test_a_compressed_answer_is_refused(host: Host, tmp_path: Path) -> None:
    host.paths["/a.wav"] = sends(gzip.compress(bytes(10_000_000)), Content_Encoding="gzip")
    assert refused(host, tmp_path).retry_s == 0


def test_a_declared_size_beyond_the_limit_is_refused_unread(host: Host, tmp_path: Path) -> None:
    host.paths["/a.wav"] = sends(b"", length=10**12)
    error = refused(host, tmp_path)
    assert error.retry_s == 0
    assert "CALLCORE_UPLOAD_MAX_MB" in str(error)


def test_an_undeclared_size_beyond_the_limit_is_cut_off_within_one_block(
    host: Host, tmp_path: Path
) -> None:
    hung_up = threading.Event()

    def endless(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "audio/wav")
        handler.end_headers()
        handler.close_connection = True
        try:
            while True:
                handler.wfile.write(bytes(65536))
        except OSError:
            hung_up.set()

    host.paths["/a.wav"] = endless
    error = refused(host, tmp_path, max_bytes=300_000)
    assert error.retry_s == 0
    assert hung_up.wait(20)


def test_exactly_the_limit_is_taken(host: Host, tmp_path: Path) -> None:
    assert fetched(host, tmp_path, max_bytes=len(AUDIO)).size_bytes == len(AUDIO)
    refused(host, tmp_path / "less", max_bytes=len(AUDIO) - 1)


@pytest.mark.parametrize(
    ("status", "retry_s"),
    [
        (404, fetch.ABSENT_S), (403, fetch.ABSENT_S), (410, fetch.ABSENT_S),
        (429, fetch.AWAY_S), (408, fetch.AWAY_S),
        (500, fetch.AWAY_S), (503, fetch.AWAY_S), (204, 0.0), (206, 0.0), (304, 0.0),
    ],
)  # fmt: skip
def test_the_status_tells_how_long_to_go_on_trying(
    host: Host, tmp_path: Path, status: int, retry_s: float
) -> None:
    host.paths["/a.wav"] = sends(b"", status=status)
    error = refused(host, tmp_path)
    assert (error.retry_s, str(status) in str(error)) == (retry_s, True)


def test_an_empty_file_may_be_filled_later(host: Host, tmp_path: Path) -> None:
    host.paths["/a.wav"] = sends(b"")
    assert refused(host, tmp_path).retry_s == fetch.ABSENT_S


def test_a_broken_connection_leaves_nothing_and_is_tried_again(host: Host, tmp_path: Path) -> None:
    host.paths["/a.wav"] = sends(AUDIO[:3000], length=len(AUDIO))
    assert refused(host, tmp_path).retry_s == fetch.AWAY_S


# ---- how long


class Hours:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.mark.parametrize("part", ["body", "head"])
def test_a_host_that_drips_is_cut_off_when_its_time_is_over(
    host: Host, tmp_path: Path, part: str
) -> None:
    clock = Hours()
    dripped = []
    over = threading.Event()

    def drips(handler: Handler) -> None:
        if part == "body":
            handler.send_response(200)
            handler.send_header("Content-Type", "audio/wav")
            handler.send_header("Content-Length", "1000000")
            handler.end_headers()
        try:
            while not over.is_set():
                handler.wfile.write(b"x")
                dripped.append(clock.seconds)
                clock.seconds += 1.0  # each byte is in good time, all of them never
        except OSError:
            over.set()

    host.paths["/a.wav"] = drips
    fetcher = Fetcher(rules(host, timeout_s=60.0), resolve=Names(), clock=clock)
    with pytest.raises(FetchError, match="60 s"):
        fetcher.fetch(host.url(), tmp_path / "x")
    over.set()
    assert not list(tmp_path.iterdir())


def test_a_fetch_ends_with_its_worker_and_is_tried_again(host: Host, tmp_path: Path) -> None:
    ending, over = threading.Event(), threading.Event()

    def drips(handler: Handler) -> None:
        handler.send_response(200)
        handler.end_headers()
        with contextlib.suppress(OSError):
            for _ in range(1000):
                handler.wfile.write(b"x" * 1000)
            ending.set()
            while True:
                handler.wfile.write(b"x")
        over.set()

    host.paths["/a.wav"] = drips
    fetcher = Fetcher(rules(host, max_bytes=10**9), resolve=Names(), stopped=ending.is_set)
    with pytest.raises(FetchError, match="stopped") as caught:
        fetcher.fetch(host.url(), tmp_path / "x")
    assert caught.value.retry_s > fetch.AWAY_S
    assert over.wait(20)
    assert not list(tmp_path.iterdir())


def test_a_host_that_says_nothing_is_given_up(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host = Host(silent.getsockname()[1])
        error = refused(host, tmp_path, timeout_s=0.3)
    assert error.retry_s == fetch.AWAY_S
    assert "CALLCORE_FETCH_TIMEOUT_S" in str(error)


def test_a_name_server_that_says_nothing_is_given_up(host: Host, tmp_path: Path) -> None:
    answer = threading.Event()

    def hangs(name: str, port: int) -> list[str]:
        answer.wait(20)
        return ["127.0.0.1"]

    with pytest.raises(FetchError) as caught:
        Fetcher(rules(host, timeout_s=0.3), resolve=hangs).fetch(host.url(), tmp_path / "x")
    answer.set()
    assert caught.value.retry_s == fetch.AWAY_S
    assert host.asked == []


def test_a_host_that_is_away_or_unknown_is_tried_again(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        host = Host(closed.getsockname()[1])
    error = refused(host, tmp_path)
    assert (error.retry_s, "cannot be reached" in str(error)) == (fetch.AWAY_S, True)

    def unknown(name: str, port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with pytest.raises(FetchError) as caught:
        Fetcher(rules(host), resolve=unknown).fetch(host.url(), tmp_path / "x")
    assert caught.value.retry_s == fetch.AWAY_S


@pytest.mark.parametrize(
    "junk", [b"", b"\xff" * 500, b"SSH-2.0-x\r\n", b"HTTP/1.1 200\r\n" + b"a:b\r\n" * 30_000]
)
def test_what_does_not_speak_http_is_an_error_too(tmp_path: Path, junk: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(junk)

        thread = threading.Thread(target=answer)
        thread.start()
        refused(Host(server.getsockname()[1]), tmp_path)
        thread.join()


# ---- TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Key and certificate of ``pbx.example``, signed by itself."""
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt",
            "ec_paramgen_curve:prime256v1", "-nodes",
            "-keyout", folder / "key.pem", "-out", folder / "cert.pem", "-days", "2", "-subj",
            "/CN=pbx.example",
            "-addext", "subjectAltName=DNS:pbx.example",
        ],
        check=True, capture_output=True,
    )  # fmt: skip
    return folder


def test_certificates_are_checked_against_the_name_in_the_url(
    certificate: Path, tmp_path: Path
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    trusting = ssl.create_default_context(cafile=str(certificate / "cert.pem"))
    with serve(context) as host:
        host.paths["/a.wav"] = sends(AUDIO)
        allowed = rules(host, f"other.example:{host.port}")
        url = host.url(scheme="https")
        with pytest.raises(FetchError, match="certificate that is not trusted"):
            Fetcher(allowed, resolve=Names()).fetch(url, tmp_path / "x")
        fetcher = Fetcher(allowed, resolve=Names(), authorities=trusting)
        assert fetcher.fetch(url, tmp_path / "x").size_bytes == len(AUDIO)
        with pytest.raises(FetchError, match="certificate that is not trusted"):
            fetcher.fetch(host.url(name="other.example", scheme="https"), tmp_path / "y")
        host.paths["/a.wav"] = redirects("http://pbx.example/a.wav")
        downgrading = Fetcher(rules(host, "pbx.example"), resolve=Names(), authorities=trusting)
        with pytest.raises(FetchError, match="from https to http"):
            downgrading.fetch(url, tmp_path / "z")
