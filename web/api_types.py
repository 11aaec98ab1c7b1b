"""What the API takes and answers, as types: ``openapi`` publishes them, tests hold answers to them.

The document of a recording has types of its own: ``callcore.document_types``.
"""

from typing import Annotated, Literal

from msgspec import UNSET, Meta, UnsetType

from callcore.calls import (
    CallState,
    Disposition,
    DocumentState,
    LegState,
    RecordingState,
    StepState,
)
from callcore.document_types import Consent, Count, Leg, Moment, Part, SegmentPart, Wait

# ---- errors


class ErrorDetail(Part, frozen=True, kw_only=True):
    """Why the answer is no."""

    code: Annotated[str, Meta(description="Short reason for programs, e.g. `not-found`.")]
    message: Annotated[str, Meta(description="The reason for people, with what would be right.")]
    field: Annotated[str, Meta(description="The input field at fault.")] | None


class ErrorAnswer(Part, frozen=True, kw_only=True):
    """Every answer that says no."""

    error: ErrorDetail


class UnreadyPart(Part, frozen=True, kw_only=True):
    """A part that keeps the site from being ready."""

    part: Literal["database", "broker", "disk"]
    message: str


class NotReady(ErrorAnswer, frozen=True, kw_only=True):
    """Why the site is not ready."""

    reasons: Annotated[list[UnreadyPart], Meta(min_length=1)]


# ---- what is sent

_ID = r"^([A-Za-z0-9][A-Za-z0-9._-]{0,79})?$"
_HEX = "[0-9A-Fa-f]"

SentId = Annotated[str, Meta(pattern=_ID, description="An id of the call.")]
SentLeg = Annotated[
    str,
    Meta(
        pattern=r"^(mixed|(caller|agent)(-[2-9])?)?$",
        description="`caller`, `agent`, `agent-2` …, `mixed`.",
    ),
]
SentText = Annotated[
    str, Meta(pattern="^[^\\x00-\\x1f\\x7f-\\xa0]*$", max_length=200, description="Printable.")
]
SentDirection = Literal["in", "out", "internal", ""]
SentLanguage = Annotated[
    str, Meta(pattern="^([a-z]{2,3})?$", description="Language code such as `en`.")
]
SentMoment = Annotated[
    str,
    Meta(
        description="ISO 8601 with its zone, e.g. `2026-01-02T10:11:12Z`.",
        extra_json_schema={"format": "date-time"},
    ),
]


class Facts(Part, frozen=True, kw_only=True):
    """What a sender knows of a call; null and empty text are not known."""

    call_id: SentId | None = None
    uniqueid: SentId | None = None
    linkedid: SentId | None = None
    leg: SentLeg | None = None
    caller: SentText | None = None
    callee: SentText | None = None
    agent: SentText | None = None
    queue: SentText | None = None
    direction: SentDirection | None = None
    language: SentLanguage | None = None
    started_at: SentMoment | None = None


class LegRegistration(Facts, frozen=True, kw_only=True):
    """A live leg whose audio comes within 10 seconds."""

    uuid: Annotated[
        str,
        Meta(
            pattern=f"^{_HEX}{{8}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{12}}$",
            description="What its AudioSocket stream begins with.",
        ),
    ]
    leg: (
        Annotated[
            str,
            Meta(
                pattern=r"^(mixed|stereo|(caller|agent)(-[2-9])?)?$",
                description="As elsewhere, or `stereo`: caller left, agent right, two legs.",
            ),
        ]
        | None
    ) = None


class RecordingReport(Facts, frozen=True, kw_only=True):
    """A recording that callcore fetches."""

    call_id: Annotated[str, Meta(pattern=_ID.replace("?$", "$"), description="An id of the call.")]
    recording_url: Annotated[
        str, Meta(max_length=4096, description="On a host of `CALLCORE_RECORDING_HOSTS`.")
    ]


class UploadForm(Part, frozen=True, kw_only=True):
    """A recording and what is known of its call."""

    file: Annotated[
        str,
        Meta(
            min_length=1,
            description="The sound file, with a file name.",
            extra_json_schema={"contentMediaType": "application/octet-stream"},
        ),
    ]
    call_id: SentId | UnsetType = UNSET
    uniqueid: SentId | UnsetType = UNSET
    linkedid: SentId | UnsetType = UNSET
    leg: SentLeg | UnsetType = UNSET
    caller: SentText | UnsetType = UNSET
    callee: SentText | UnsetType = UNSET
    agent: SentText | UnsetType = UNSET
    queue: SentText | UnsetType = UNSET
    direction: SentDirection | UnsetType = UNSET
    language: SentLanguage | UnsetType = UNSET
    started_at: SentMoment | Literal[""] | UnsetType = UNSET


class RerunRequest(Part, frozen=True, kw_only=True):
    """Which steps run again."""

    steps: (
        Annotated[
            list[Annotated[str, Meta(pattern="^[a-z][a-z0-9_]{0,79}$")]],
            Meta(
                max_length=50,
                description="Steps, and with them those that read what they make. Without: those "
                "that failed or are new, and if there are none, all.",
            ),
        ]
        | None
    ) = None


class CorrectionRequest(Part, frozen=True, kw_only=True):
    """What a person says about a category of a call."""

    taxonomy: Annotated[str, Meta(description="Id of a taxonomy in use.")]
    category: Annotated[str, Meta(description="Id of one of its categories.")]
    verdict: Annotated[
        Literal["right", "wrong", "missing"],
        Meta(description="`missing`: it is that, and was not found."),
    ]
    texts: Annotated[
        list[Annotated[str, Meta(min_length=1, max_length=500)]],
        Meta(max_length=20, description="Utterances of the call that show it."),
    ]


# ---- legs and calls


class CallLeg(Part, frozen=True, kw_only=True):
    """One party's side of a call."""

    uuid: str
    leg: Leg
    state: LegState
    language: str | None
    started_at: Moment | None
    ended_at: Moment | None
    offset_s: Annotated[float, Meta(description="From the start of the call to its first sample.")]
    reason: str | None
    no_text: Annotated[str, Meta(description="Why it has no live text.")] | None


class RegisteredLeg(CallLeg, frozen=True, kw_only=True):
    """A leg that was announced."""

    call_id: str
    page: Annotated[str, Meta(description="The agent's page.")]


class Lag(Part, frozen=True, kw_only=True):
    """How far live text is behind the sound."""

    lag_s: Annotated[float, Meta(description="Null where nothing is recognised live.")] | None
    state: Annotated[
        Literal["ok", "behind", "recording"],
        Meta(description="`recording`: a leg has no live text; see `no_text` of the legs."),
    ]


class CallItem(Part, frozen=True, kw_only=True):
    """A call."""

    call_id: str
    session_id: str
    state: CallState
    reason: str | None
    started_at: Annotated[str, Meta(description="ISO 8601, UTC; null where nobody told.")] | None
    received_at: Moment
    ended_at: Moment | None
    duration: Annotated[float, Meta(ge=0, description="Seconds.")] | None
    disposition: Disposition | None
    answered_at: Moment | None
    wait_s: Wait | None
    consent: Consent | None
    uniqueid: str | None
    linkedid: str | None
    caller: str | None
    callee: str | None
    agent: str | None
    queue: str | None
    direction: str | None
    language: str | None
    legs: list[CallLeg]


class LiveCall(CallItem, frozen=True, kw_only=True):
    """A call that runs now."""

    lag: Lag | None


LastEventId = Annotated[str, Meta(description="Follow the events after this; null: broker away.")]


class LiveCalls(Part, frozen=True, kw_only=True):
    """The calls that run now, newest first."""

    calls: list[LiveCall]
    last_event_id: LastEventId | None


class Partial(Part, frozen=True, kw_only=True):
    """The newest provisional text of a segment."""

    type: Literal["transcript.partial"]
    call_id: str
    at: Moment
    leg: Leg
    segment: int
    start: float
    end: float
    text: str
    stable: Annotated[Count, Meta(description="Leading words that two decodes agree on.")]


class RecordingMedia(Part, frozen=True, kw_only=True):
    """One file of a recording."""

    role: str
    rate: Annotated[int, Meta(description="Hz.")] | None
    num_channels: Count | None
    duration_s: float | None


class StepItem(Part, frozen=True, kw_only=True):
    """One step of the analysis."""

    name: str
    status: StepState
    progress: Annotated[float, Meta(ge=0, le=1)]
    started_at: Moment | None
    ms: Count | None
    attempts: Count
    error: str | None


class Status(Part, frozen=True, kw_only=True):
    """How far the analysis of a recording is."""

    task_id: str
    audio_id: str
    status: DocumentState
    progress: Annotated[int, Meta(ge=0, le=100)]
    current_step: str | None
    audio_s: Annotated[float | None, Meta(description="Length of the recording.")]
    transcribed_s: Annotated[float | None, Meta(description="How much of it is transcribed.")]
    steps: list[StepItem]
    error: str | None


class RecordingItem(Status, frozen=True, kw_only=True):
    """A recording, and how far its analysis is."""

    call_id: str
    state: RecordingState
    reason: str | None
    source: Annotated[str, Meta(description="The door it came through first.")]
    sources: list[str]
    created_at: Moment
    offset_s: float | None
    duration_s: float | None
    media: list[RecordingMedia]


class CallDetail(CallItem, frozen=True, kw_only=True):
    """All that is known of a call so far."""

    segments: Annotated[list[SegmentPart], Meta(description="What was said, live.")]
    partials: list[Partial]
    recordings: list[RecordingItem]
    lag: Lag | None
    last_event_id: LastEventId | None


class Recordings(Part, frozen=True, kw_only=True):
    """A page of recordings, newest first."""

    recordings: list[RecordingItem]
    before: Annotated[str, Meta(description="Cursor of the next page; null on the last.")] | None


class Receipt(Part, frozen=True, kw_only=True):
    """A recording that is on record."""

    task_id: str
    audio_id: str
    status: DocumentState
    status_url: str


# ---- analysis


class Corrected(CorrectionRequest, frozen=True, kw_only=True):
    """A correction that is on record."""

    audio_id: str


Label = Annotated[dict[str, str], Meta(description="Text by language code.")]


class TaxonomyCallType(Part, frozen=True, kw_only=True):
    """What kind of contact a call may be."""

    id: str
    label: Label


class TaxonomyCategory(Part, frozen=True, kw_only=True):
    """What a call may be about."""

    id: str
    label: Label
    path: Annotated[list[str], Meta(description="Ids from the top to its own.")]
    severity: Literal["info", "notice", "warning", "critical"] | None


class TaxonomyItem(Part, frozen=True, kw_only=True):
    """A list of categories."""

    id: str
    version: str
    label: Label
    call_types: list[TaxonomyCallType]
    categories: list[TaxonomyCategory]


class Taxonomies(Part, frozen=True, kw_only=True):
    """The categories that calls are held against."""

    taxonomies: list[TaxonomyItem]


# ---- webhooks


class Delivery(Part, frozen=True, kw_only=True):
    """A message to one endpoint."""

    message_id: str
    endpoint: Annotated[str, Meta(description="Host of the endpoint, and what tells it apart.")]
    type: str
    state: Literal["pending", "delivered", "failed"]
    attempts: Count
    created_at: Moment
    next_at: Annotated[str, Meta(description="When it is tried next; ISO 8601, UTC.")] | None
    ended_at: Moment | None
    http_status: int | None
    error: str | None


class Deliveries(Part, frozen=True, kw_only=True):
    """The newest 100 deliveries, newest first."""

    deliveries: list[Delivery]


class TestNoted(Part, frozen=True, kw_only=True):
    """A test message that the workers will send."""

    message_id: str


# ---- probes


class Alive(Part, frozen=True, kw_only=True):
    """The process answers."""

    status: Literal["live"]


class Ready(Part, frozen=True, kw_only=True):
    """Everything answers."""

    status: Literal["ready"]
