"""Every error that callcore raises on purpose.

CallcoreError
├── ConfigError(field, value)        a setting is wrong; the command exits with 2
├── ProtocolError
│   ├── LocalProtocolError           we used a protocol wrongly
│   └── RemoteProtocolError          the peer did
├── AudioError                       samples or a file we cannot work with
│   └── InvalidRecording             the recording will never be readable: not retried
├── ModelError(model)                a model is missing, incomplete or not what its hash says
├── DownloadError(host)              a file could not be had from there; another source may have it
├── FetchError(host)                 a recording was refused, or did not come from its host
├── EngineError(engine)              an engine failed or its process died: retried
│   ├── EngineDied                   its process died before it answered
│   ├── EngineNotLoaded              its process lives and cannot load it; the next call tries again
│   └── EngineDown(retry_after_s)    it answers nobody for a while: the work is kept
├── StepError(step, audio_id)        one step of a recording failed
│   ├── MissingInput                 a result that the step needs is not there
│   └── Fenced                       another worker took the step over: this one's work is void
├── SchemaError(what)                a result is not what the published schema says
├── AmiError(code)                  Asterisk's manager interface failed us
├── NotFound                         no such call, leg, recording or task
└── Refused(code)                    intake or a registration said no, with the reason
"""


class CallcoreError(Exception):
    """Base of all errors that callcore raises on purpose."""


class ConfigError(CallcoreError):
    """A setting has a value that cannot be used.

    Args:
        field: Name of the environment variable.
        value: What it held; never a secret.
        expected: What would be right, as half a sentence.
    """

    def __init__(self, field: str, value: object, expected: str) -> None:
        super().__init__(f"{field}={value!s}: expected {expected}")
        self.field = field
        self.value = value
        self.expected = expected


class ProtocolError(CallcoreError):
    """Bytes or calls that a wire protocol does not allow."""


class LocalProtocolError(ProtocolError):
    """Our side used a protocol wrongly."""


class RemoteProtocolError(ProtocolError):
    """The peer broke a protocol or one of its limits."""


class AudioError(CallcoreError):
    """Samples or a file that cannot be worked with."""


class InvalidRecording(AudioError):
    """A recording that will never be readable; it is not tried again."""


class ModelError(CallcoreError):
    """A model is missing, incomplete, or not what its hash says."""

    def __init__(self, model: str, message: str) -> None:
        super().__init__(f"model {model}: {message}")
        self.model = model


class DownloadError(CallcoreError):
    """A file could not be had from one host, or was not what its hash says.

    Args:
        host: Where it was asked for.
        message: What that host did, as the rest of a sentence.
        unreachable: Whether the host itself is out of reach, so that nothing else is there either.
    """

    def __init__(self, host: str, message: str, *, unreachable: bool = False) -> None:
        super().__init__(f"{host} {message}")
        self.host = host
        self.unreachable = unreachable


class FetchError(CallcoreError):
    """A recording may not be fetched, or did not come.

    Args:
        host: Where it was asked for; None if the URL tells no host. The URL itself may carry
            numbers or tokens, so it is nowhere here.
        message: What was wrong, as the rest of a sentence about that host.
        retry_s: Seconds after the report for which it is worth trying again; 0: refused for good.
    """

    def __init__(self, host: str | None, message: str, *, retry_s: float = 0.0) -> None:
        super().__init__(f"{host} {message}" if host else message)
        self.host = host
        self.retry_s = retry_s


class EngineError(CallcoreError):
    """An engine failed or its process died; the work is tried again.

    Args:
        engine: Name of the engine.
        message: What happened, without words of a call.
    """

    def __init__(self, engine: str, message: str) -> None:
        super().__init__(f"engine {engine}: {message}")
        self.engine = engine
        self.message = message

    def __reduce__(self) -> tuple[type["EngineError"], tuple[str, str]]:
        """Keep both arguments when the error crosses a process boundary."""
        return type(self), (self.engine, self.message)


class EngineDied(EngineError):
    """The process of an engine died before it answered."""


class EngineNotLoaded(EngineError):
    """The process of an engine lives and cannot load it; the next call tries again."""


class EngineDown(EngineError):
    """An engine cannot answer anybody for now, so that the work is not at fault: it is kept.

    Args:
        engine: Name of the engine.
        message: What happened, without words of a call.
        retry_after_s: Seconds until it is worth asking again.
    """

    def __init__(self, engine: str, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(engine, message)
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[type["EngineDown"], tuple[str, str, float]]:  # type: ignore[override]
        """Keep every argument when the error crosses a process boundary."""
        return type(self), (self.engine, self.message, self.retry_after_s)


class StepError(CallcoreError):
    """One step of one recording failed."""

    def __init__(self, step: str, audio_id: str, message: str) -> None:
        super().__init__(f"step {step} of {audio_id}: {message}")
        self.step = step
        self.audio_id = audio_id


class MissingInput(StepError):
    """A result that the step needs is not stored."""


class Fenced(StepError):
    """Another worker has taken the step over, so what this one made must not be stored."""

    def __init__(self, step: str, audio_id: str) -> None:
        super().__init__(step, audio_id, "another worker has taken it over")


class SchemaError(CallcoreError):
    """A result or a document is not what the published schema says.

    Args:
        what: Which one, e.g. ``the result of ner``.
        message: What is wrong and where, without values.
    """

    def __init__(self, what: str, message: str) -> None:
        super().__init__(f"{what} breaks the schema: {message}")
        self.what = what


class AmiError(CallcoreError):
    """Asterisk's manager interface did not do what it was asked.

    Args:
        code: ``unreachable``, ``not-ami``, ``login``, ``refused``, ``timeout`` or ``closed``.
        message: Why, for people.
        output: What a command printed before it failed.
    """

    def __init__(self, code: str, message: str, output: list[str] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.output = output or []


class NotFound(CallcoreError):
    """There is no such call, leg, recording or task."""


class Refused(CallcoreError):
    """A recording or a registration was refused.

    Args:
        code: Short reason for programs, e.g. ``uuid-in-use``.
        message: The reason for people.
        field: The input field that is at fault, if one is.
    """

    def __init__(self, code: str, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.field = field
