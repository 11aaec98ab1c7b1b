"""Translation of text by Argos packages, offline.

A package is read by ``argostranslate.package`` (its metadata and tokenizer) and decoded by
CTranslate2 with the parameters of ``argostranslate.translate``. That module itself is not imported:
it brings MiniSBD, whose licence is the AGPL and which downloads a model at its first use. Sentences
are split here.
"""

import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import ctranslate2

from callcore.errors import EngineError

#: What ``argostranslate.settings`` reads while it is imported; it makes these folders, and takes
#: whatever the user's own settings file says.
_LIBRARY_FOLDERS = ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "ARGOS_PACKAGES_DIR")

_NAME = re.compile(r"translate-([a-z]{2,3})_([a-z]{2,3})")

#: Where there is no direct pair.
_PIVOT = "en"
#: Argos's name of a language that Whisper names otherwise.
_ALIASES = {"nn": "nb", "no": "nb"}
#: Languages whose sentences are joined without a space.
_UNSPACED = frozenset({"ja", "th", "zh", "zt"})

#: Models that stay loaded, about 150 MB each.
_MOST_LOADED = 4
#: Characters of a sentence: a longer one is cut at a comma or a space.
_LONGEST_SENTENCE = 300
#: Tokens of a sentence: CTranslate2 silently drops what is beyond its own limit of 1,024, and the
#: models were trained on sentences.
_MOST_TOKENS = 150

#: As in ``argostranslate.translate``.
_PARAMETERS: dict[str, Any] = {"beam_size": 4, "length_penalty": 0.2, "replace_unknowns": True}

#: The end of a sentence: a full stop of any script, quotes and brackets that close it, a space.
#: Chinese and Japanese write none.
_SENTENCE_END = re.compile(
    r"""(?<=[.!?…؟।])\s+|(?<=[.!?…؟।]["'”’»)\]])\s+|(?<=[。！？])\s*"""  # noqa: RUF001
)
#: What ends with a full stop and ends no sentence.
_ABBREVIATION = re.compile(r"(?:^|[\s(])(?:\w|mr|mrs|ms|dr|sr|sra|vs|mme|prof)\.$", re.I)


class Argos:
    """All Argos packages of a folder; one that is installed later is found without a restart."""

    name = "argos"

    def __init__(self, packages: str, threads: int = 0) -> None:
        """Remember where packages are; a model is loaded when its pair is first asked for.

        Args:
            packages: Folder of the installed packages, ``translate-es_en`` and so on.
            threads: Cores that a translation uses; 0 leaves it to the library.
        """
        self._folder = Path(packages)
        self._threads = threads
        self._loaded: dict[tuple[str, str], tuple[int, _Pair]] = {}
        self.version = metadata.version("argos-translate-lt")
        self.parameters: dict[str, Any] = {
            **_PARAMETERS,
            "ctranslate2": metadata.version("ctranslate2"),
        }

    @property
    def packages(self) -> dict[str, str]:
        """Versions of the installed packages by name."""
        return {f"translate-{a}_{b}": _version(self._path(a, b)) for a, b in self._installed()}

    @property
    def model(self) -> str:
        """All installed packages with their versions."""
        return ", ".join(f"{name} {version}" for name, version in self.packages.items())

    def pairs(self) -> list[tuple[str, str]]:
        """Return the pairs of language codes, from and to, by every name of their languages."""
        return [
            (first, second)
            for pair in self._installed()
            for first in _names(pair[0])
            for second in _names(pair[1])
        ]

    def _installed(self) -> list[tuple[str, str]]:
        if not self._folder.is_dir():
            return []
        names = (_NAME.fullmatch(each.name) for each in self._folder.iterdir())
        pairs = sorted((match[1], match[2]) for match in names if match)
        return [pair for pair in pairs if (self._path(*pair) / "metadata.json").is_file()]

    def translate(self, texts: list[str], source: str, target: str) -> list[str]:
        """Return the texts in ``target``, directly or through English.

        Args:
            texts: Of any length; lines stay lines, an empty text stays empty.
            source: Language code of all texts.
            target: Language code.

        Raises:
            EngineError: If no installed packages lead there, or one is damaged.
        """
        source, target = _ALIASES.get(source, source), _ALIASES.get(target, target)
        installed = self._installed()
        if (source, target) in installed:
            return self._pair(source, target).translate(texts)
        if (source, _PIVOT) in installed and (_PIVOT, target) in installed:
            return self._pair(_PIVOT, target).translate(self._pair(source, _PIVOT).translate(texts))
        raise EngineError(self.name, f"no package translates {source} to {target}")

    def _path(self, source: str, target: str) -> Path:
        return self._folder / f"translate-{source}_{target}"

    def _pair(self, source: str, target: str) -> "_Pair":
        folder = self._path(source, target)
        key = (source, target)
        try:
            installed_at = (folder / "metadata.json").stat().st_mtime_ns
            loaded = self._loaded.pop(key, None)  # the latest used comes last
            if loaded is None or loaded[0] != installed_at:
                while len(self._loaded) >= _MOST_LOADED:
                    del self._loaded[next(iter(self._loaded))]
                loaded = installed_at, _Pair(folder, target, self._threads)
        except Exception as error:  # sentencepiece and ctranslate2 raise what they like
            raise EngineError(
                self.name,
                f"{folder.name} cannot be loaded ({type(error).__name__}): run `callcore models "
                f"pull {folder.name}`",
            ) from error
        self._loaded[key] = loaded
        return loaded[1]


class _Pair:
    """One loaded package."""

    def __init__(self, folder: Path, target: str, threads: int) -> None:
        with _library_kept_in_a_box():
            from argostranslate.package import Package

        package = Package(folder)
        self._tokenizer = package.tokenizer
        self._tokenizer.encode("")  # it is loaded now: a damaged one is told here
        self._prefix: str = package.target_prefix
        self._glue = "" if target in _UNSPACED else " "
        self._translator = ctranslate2.Translator(
            str(folder / "model"), device="cpu", inter_threads=1, intra_threads=threads
        )

    def translate(self, texts: list[str]) -> list[str]:
        """Return the texts translated, in one batch of sentences."""
        lines = [[sentences(line) for line in text.split("\n")] for text in texts]
        parts = [part for text in lines for line in text for part in line]
        done = iter(self._sentences(parts))
        return [
            "\n".join(self._glue.join(next(done) for _ in line).strip() for line in text)
            for text in lines
        ]

    def _sentences(self, parts: list[str]) -> list[str]:
        tokens: list[list[str]] = []
        counts: list[int] = []
        for part in parts:
            encoded: list[str] = self._tokenizer.encode(part)
            cut = [encoded[at : at + _MOST_TOKENS] for at in range(0, len(encoded), _MOST_TOKENS)]
            tokens += cut
            counts.append(len(cut))
        if not tokens:
            return ["" for _ in parts]
        results = self._translator.translate_batch(
            tokens,
            target_prefix=[[self._prefix]] * len(tokens) if self._prefix else None,
            max_batch_size=1024,
            batch_type="tokens",
            # A model that runs in circles would go on to 256 tokens each time.
            max_decoding_length=3 * max(len(each) for each in tokens) + 20,
            **_PARAMETERS,
        )
        decoded = (self._text(result.hypotheses[0]) for result in results)
        return [self._glue.join(next(decoded) for _ in range(count)) for count in counts]

    def _text(self, tokens: list[str]) -> str:
        if self._prefix and tokens[:1] == [self._prefix]:
            tokens = tokens[1:]
        text: str = self._tokenizer.decode(tokens)
        return text.strip()


def _names(code: str) -> list[str]:
    return [code, *(name for name, argos in _ALIASES.items() if argos == code)]


def sentences(line: str) -> list[str]:
    """Return the sentences of a line, none longer than a model takes."""
    # A lone surrogate can be written to no model.
    line = line.encode("utf-8", "replace").decode("utf-8")
    whole: list[str] = []
    held = ""
    for part in _SENTENCE_END.split(line):
        held = f"{held} {part}" if held else part
        if not _ABBREVIATION.search(held[-12:]):
            whole.append(held)
            held = ""
    whole.append(held)
    return [part for sentence in whole for part in _cut(sentence.strip()) if part]


def _cut(sentence: str) -> Iterator[str]:
    """Yield a sentence in parts that are not too long, cut at a comma, else a space."""
    while len(sentence) > _LONGEST_SENTENCE:
        head = sentence[:_LONGEST_SENTENCE]
        at = max(head.rfind(mark) for mark in (", ", "; ", "、", "，"))  # noqa: RUF001
        if at < _LONGEST_SENTENCE // 3:
            at = head.rfind(" ")
        at = at + 1 if at > 0 else _LONGEST_SENTENCE
        yield sentence[:at].strip()
        sentence = sentence[at:].strip()
    yield sentence


def _version(folder: Path) -> str:
    try:
        about = json.loads((folder / "metadata.json").read_text("utf-8"))
        return str(about.get("package_version", "?"))
    except (OSError, ValueError, AttributeError):
        return "?"


@contextmanager
def _library_kept_in_a_box() -> Iterator[None]:
    """Let argostranslate make its folders and read its settings where nobody has any."""
    ours = {*_LIBRARY_FOLDERS, *(each for each in os.environ if each.startswith("ARGOS_"))}
    before = {each: os.environ.get(each) for each in ours}
    with tempfile.TemporaryDirectory(prefix="callcore-argos-") as box:
        for each in ours:
            os.environ.pop(each, None)
        os.environ.update(dict.fromkeys(_LIBRARY_FOLDERS, box))
        try:
            yield
        finally:
            for each, value in before.items():
                os.environ.pop(each, None)
                if value is not None:
                    os.environ[each] = value
