"""Calls, legs and recordings as plain types: what happened, without how it is stored."""

from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from enum import StrEnum

#: The step before all others: the recording's files are found, checked and copied.
SETTLE = "settle"

#: ``Call.consent`` of a call whose caller refused analysis.
REFUSED = "no"

#: ``CallFacts.direction`` of a call that somebody here made.
OUT = "out"

#: Doors that hand a file over. What lies in the audio folder and came through another one belongs
#: to somebody else: whoever names such a file points at it.
GIVING_DOORS = frozenset({"capture", "upload", "webhook"})


class CallState(StrEnum):
    """Where a call is in its life."""

    LIVE = "live"
    ENDED = "ended"
    MISSED = "missed"


class LegState(StrEnum):
    """Where a leg is in its life."""

    EXPECTED = "expected"
    LIVE = "live"
    ENDED = "ended"
    EXPIRED = "expired"


class RecordingState(StrEnum):
    """Whether the recording's audio is at hand."""

    EXPECTED = "expected"
    MISSING = "missing"
    STORED = "stored"
    REFUSED = "refused"


class Disposition(StrEnum):
    """How a call went, as far as people are concerned."""

    ANSWERED = "answered"
    NO_ANSWER = "no-answer"
    BUSY = "busy"
    ABANDONED = "abandoned"
    """The caller hung up before anybody answered, in a queue or while it rang."""
    FAILED = "failed"
    """The other side could not be reached."""


class StepState(StrEnum):
    """Where one step of one recording stands."""

    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    SKIPPED = "skipped"

    @property
    def is_over(self) -> bool:
        """Whether the step does not leave this state by itself."""
        return self in (StepState.DONE, StepState.FAILED, StepState.SKIPPED)


class DocumentState(StrEnum):
    """Where the analysis of a recording stands as a whole."""

    QUEUED = "queued"
    PROCESSING = "processing"
    COMPLETED = "completed"
    PARTIAL = "partial"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class CallFacts:
    """What a door knows about a call; None where it does not know.

    Several doors may report the same call or recording: their facts are merged, and a later
    report never erases an earlier one.
    """

    call_id: str | None = None
    """The sender's own id of the call, an alias of ours."""
    uniqueid: str | None = None
    """Asterisk's id of the channel, as text: ``1437920906.1`` and ``.10`` differ."""
    linkedid: str | None = None
    """Asterisk's id shared by the channels of one call."""
    leg: str | None = None
    """``caller``, ``agent``, ``agent-2`` ... or ``mixed``."""
    caller: str | None = None
    callee: str | None = None
    agent: str | None = None
    queue: str | None = None
    direction: str | None = None
    """``in``, ``out`` or ``internal``."""
    language: str | None = None
    """Language code such as ``en``."""
    started_at: datetime | None = None
    """When the call (or the recording) began, UTC."""

    @property
    def outsider(self) -> str | None:
        """The number of the person at the other end, who may refuse analysis.

        That is the caller, unless the call is known to go out: then ``caller`` is one of us.
        """
        return self.callee if self.direction == OUT else self.caller

    def merged(self, other: "CallFacts") -> "CallFacts":
        """Return these facts completed by ``other``: what is known here stays."""
        known = {f.name: getattr(self, f.name) for f in fields(self)}
        return CallFacts(**{k: v if v is not None else getattr(other, k) for k, v in known.items()})


@dataclass(frozen=True, slots=True)
class Ending:
    """What the PBX says of a call that is over; None where it does not say."""

    disposition: Disposition | None = None
    answered_at: datetime | None = None
    ended_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Leg:
    """One party's side of a call: one AudioSocket connection."""

    uuid: str
    """36 characters, lower case."""
    call_id: str
    leg: str
    state: LegState
    segment_base: int
    """First segment number of this leg's block; see ``storage``."""
    language: str | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    offset_s: float = 0.0
    """Seconds from the start of the call to the leg's first sample."""
    reason: str | None = None
    """Why the leg ended or was refused."""
    right_uuid: str | None = None
    """The leg that is the right channel of this one's stream; None: the stream has one channel."""
    no_text: str | None = None
    """Why the leg has no live text, for people; None: nothing kept it from having some."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call as stored."""

    call_id: str
    session_id: str
    state: CallState
    started_at: datetime
    """Zero of all times in the call, UTC."""
    ended_at: datetime | None
    reason: str | None
    facts: CallFacts
    legs: tuple[Leg, ...] = ()
    disposition: Disposition | None = None
    answered_at: datetime | None = None
    consent: str | None = None
    """``no``: the caller refused analysis; None: nobody asked."""

    @property
    def duration_s(self) -> float | None:
        """Seconds from start to end, None while the call is live."""
        return (self.ended_at - self.started_at).total_seconds() if self.ended_at else None

    @property
    def wait_s(self) -> float | None:
        """Seconds from the start to the answer, or to the end if nobody answered.

        None where the start is not known, or not when it was answered.
        """
        until = self.ended_at if self.state == CallState.MISSED else self.answered_at
        if until is None or self.facts.started_at is None:
            return None
        wait_s = (until - self.started_at).total_seconds()
        # The PBX tells whole seconds: an answer at once may seem to lie before the start. One that
        # lies further back says that our zero is not the start of the wait.
        return max(0.0, wait_s) if wait_s > -1.0 else None


@dataclass(frozen=True, slots=True)
class Media:
    """One file of a recording."""

    role: str
    """``mixed``, a leg such as ``caller`` or ``agent-2``, or ``stereo``: caller left, agent right.

    ``caller.2`` is a second stream of the same leg.
    """
    path: str
    """Absolute path on this machine."""
    offset_s: float = 0.0
    """Seconds from the start of the recording to the file's first sample."""
    sha256: str | None = None
    num_channels: int | None = None
    rate: int | None = None
    """Hz."""
    duration_s: float | None = None


@dataclass(frozen=True, slots=True)
class Recording:
    """One recording: 1 to 3 media files, one document."""

    audio_id: str
    call_id: str
    state: RecordingState
    source: str
    """The door it came through first: ``spool``, ``upload``, ``capture``, ``webhook``, ``agi``."""
    reason: str | None
    facts: CallFacts
    created_at: datetime
    media: tuple[Media, ...] = ()
    offset_s: float | None = None
    """Seconds from the start of the call to the start of the recording; None where unknown."""
    duration_s: float | None = None
    sources: tuple[str, ...] = field(default=())
    """Every door that reported it."""


@dataclass(frozen=True, slots=True)
class Correction:
    """What a person said about a category of a call; its words are examples from then on."""

    taxonomy: str
    category: str
    verdict: str
    """``right``, ``wrong`` (it is not that) or ``missing`` (it is, and was not found)."""
    texts: tuple[str, ...]
    """Utterances that show it."""


@dataclass(frozen=True, slots=True)
class StepStatus:
    """One row of a recording's status."""

    name: str
    status: StepState
    started_at: datetime | None
    ms: int | None
    attempts: int
    error: str | None
    progress: float
    """0.0 to 1.0."""


def now() -> datetime:
    """Return the present time in UTC."""
    return datetime.now(UTC)


def iso(moment: datetime | None) -> str | None:
    """Return ISO 8601 in UTC with milliseconds and ``Z``; None stays None."""
    if moment is None:
        return None
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def session_id(call_id: str, started_at: datetime) -> str:
    """Return ``<call_id>-<UTC start>``: the name of one capture of a call."""
    return f"{call_id}-{started_at.astimezone(UTC):%Y%m%dT%H%M%SZ}"
