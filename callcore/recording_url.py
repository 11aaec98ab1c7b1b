"""The URL of a recording, read once and strictly: what is checked is what is connected to.

Whoever may report a recording names a URL, and callcore asks for it from inside the site's network.
So only listed hosts are asked, and every spelling that two parsers could read differently is
refused: user names, backslashes, percent-encoded hosts, numbers that are addresses in disguise.
To which address a name leads is decided in ``fetch``, when it is resolved.
"""

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import quote, unquote

import idna

from callcore import filenames
from callcore.errors import FetchError

#: Signed URLs of object stores take 1,500 characters.
MAX_CHARS = 4096
#: Ports of a listed host that names none.
DEFAULT_PORTS = {"http": 80, "https": 443}

_MAX_NAME = 200
_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>\[[^\[\]/?#]*\]|[^\[\]/?#:]*)(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<path>/[^?#]*)?(?P<query>\?[^#]*)?(?:#.*)?",
    re.IGNORECASE,
)
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
#: Resolvers read a name that ends so as an IPv4 address: 2130706433, 0x7f.1, 0177.0.0.1.
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_ENTRY = re.compile(r"(?P<wild>\*\.)?(?P<host>\[[^\[\]]+\]|[^\[\]:]+)(?::(?P<port>[0-9]{1,5}))?")
#: Kept as they are in a path and a query.
_SAFE = "%/:@!$&'()*+,;=~?"


@dataclass(frozen=True, slots=True)
class RecordingUrl:
    """Where a recording is."""

    scheme: str
    """``http`` or ``https``."""
    host: str
    """A name in ASCII and lower case, or an address without brackets."""
    port: int
    path: str
    """In ASCII, with a leading slash, without the query."""
    query: str
    """With its question mark; empty if there is none."""

    def __str__(self) -> str:
        """Return the URL; it may hold numbers and tokens, so it goes into no log."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.path}{self.query}"

    @property
    def name(self) -> str:
        """The file name at the end of the path; may be empty."""
        return re.split(r"[/\\]", unquote(self.path))[-1][:_MAX_NAME]

    @property
    def resource(self) -> str:
        """What two URLs of the same file share.

        The query of a path that ends in a file's name is a signature or a token, which changes.
        """
        query = "" if self.names_a_file else self.query
        return f"{self.host}:{self.port}{self.path}{query}"

    @property
    def place(self) -> str:
        """Where the file lies, without its name: what the files of one recording share."""
        parent = str(PurePosixPath(self.path).parent)
        return f"{self.host}:{self.port}{parent}{'' if self.names_a_file else self.query}"

    @property
    def names_a_file(self) -> bool:
        """Whether the path ends in the name of a sound file."""
        extension = filenames.parse(self.name, ()).extension
        return filenames.AUDIO_EXTENSION.fullmatch(extension) is not None


def parse(url: str, hosts: Sequence[str]) -> RecordingUrl:
    """Return a URL that may be fetched, as far as its text tells.

    Args:
        url: As somebody sent it.
        hosts: Listed hosts: ``pbx.example.org``, ``*.example.org`` for every name below it, an
            address; with ``:port`` that port alone, else 80 and 443.

    Raises:
        FetchError: If it is none. The message does not repeat the URL, only its host.
    """
    if len(url) > MAX_CHARS:
        raise FetchError(None, f"the URL is longer than {MAX_CHARS} characters")
    if not url.isprintable() or re.search(r"[\s\\]", url) or not _is_text(url):
        raise FetchError(None, "the URL holds a space, a backslash or a control character")
    if "@" in re.split(r"[/?#]", url.partition("://")[2])[0]:
        raise FetchError(None, "the URL holds a user name; nobody is logged in by a URL")
    found = _URL.fullmatch(url)
    if found is None:
        raise FetchError(None, "expected a URL such as https://pbx.example.org/1700000000.12.wav")
    scheme = found["scheme"].lower()
    host = _host(found["host"])
    port = int(found["port"] or DEFAULT_PORTS[scheme])
    made = RecordingUrl(
        scheme,
        host,
        port,
        quote(found["path"] or "/", safe=_SAFE),
        quote(found["query"] or "", safe=_SAFE),
    )
    if not made.name.isprintable() or not filenames.is_storable(made.name):
        raise FetchError(host, "the file name in the URL holds a control character")
    if not any(_matches(entry, host, port) for entry in hosts):
        raise FetchError(host, f"(port {port}) is not listed in CALLCORE_RECORDING_HOSTS")
    return made


def _is_text(url: str) -> bool:
    try:
        url.encode()
    except UnicodeEncodeError:
        return False
    return True


def _host(text: str) -> str:
    """Return a host in its one form.

    Raises:
        FetchError: If it is not plainly a name or an address.
    """
    refused = FetchError(None, "the host of the URL is neither a plain name nor an address")
    try:
        if text.startswith("["):
            if "%" in text:  # fe80::1%eth0: an interface of this machine
                raise refused
            return str(ipaddress.IPv6Address(text[1:-1]))
        name = text.lower() if text.isascii() else idna.encode(text.lower()).decode("ascii")
        name = name.removesuffix(".")
        labels = name.split(".")
        if _NUMBER.fullmatch(labels[-1]):
            return str(ipaddress.IPv4Address(name))
    except (ValueError, idna.IDNAError):
        raise refused from None
    if len(name) > 253 or not all(map(_LABEL.fullmatch, labels)):
        raise refused
    return name


def _matches(entry: str, host: str, port: int) -> bool:
    """Tell whether an entry of the list covers a host and port."""
    found = _ENTRY.fullmatch(entry)
    if found is None:
        return False
    try:
        named = _host(found["host"])
    except FetchError:
        return False
    if port not in ({int(found["port"])} if found["port"] else set(DEFAULT_PORTS.values())):
        return False
    return host.endswith(f".{named}") if found["wild"] else host == named
