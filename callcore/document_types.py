"""The document ``callcore.insights/1`` as types: what each part holds, field by field.

The published JSON Schema is made from these types, and every result of a step is checked against
them before it is stored (``insights_document``). All fields are there in every document; what is
not known is null.
"""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

At = Annotated[float, Meta(description="Seconds from the start of the call.")]
Span = Annotated[float, Meta(ge=0, description="Length in seconds.")]
Share = Annotated[float, Meta(ge=0, le=1, description="0 to 1.")]
Count = Annotated[int, Meta(ge=0)]
Feeling = Annotated[float, Meta(ge=-5, le=5, description="-5 (very negative) to 5.")]
Moment = Annotated[str, Meta(description="ISO 8601, UTC.")]
Leg = Annotated[str, Meta(description="`caller`, `agent`, `agent-2` …, `mixed`.")]
Party = Annotated[
    str,
    Meta(description="A leg; of a mono recording speaker `A` or `B`, `mixed` where nobody knows."),
]

Wait = Annotated[
    float,
    Meta(ge=0, description="Seconds from the start to the answer, or to the end of a missed call."),
]
Ending = Annotated[
    Literal["answered", "no-answer", "busy", "abandoned", "failed"],
    Meta(description="How the call went; `abandoned`: the caller hung up before an answer."),
]
Consent = Annotated[Literal["no"], Meta(description="The caller refused analysis.")]
StepStatus = Literal["pending", "running", "done", "failed", "skipped"]
Known = Literal["yes", "no", "unknown"]


class Part(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all parts: nothing beside the fields that are named."""


class Made(Part, frozen=True, kw_only=True):
    """What made a result; null where no engine did."""

    engine: str | None
    model: str | None
    version: str | None
    parameters: dict[str, Any] | None


class Evidence(Part, frozen=True, kw_only=True):
    """Words that a claim rests on."""

    leg: Leg
    segment: Annotated[int, Meta(description="Number of the segment of the transcript.")]
    start: At
    end: At
    quote: Annotated[str, Meta(description="The exact words.")]
    source: Annotated[str, Meta(description="What found them, e.g. `rule:<id>`, `embedding`.")]
    version: str | None
    score: Share | None


# ---- the call and its recording


class CallPart(Part, frozen=True, kw_only=True):
    """What is known of the call."""

    call_id: str
    session_id: str
    state: Literal["live", "ended", "missed"]
    reason: str | None
    uniqueid: str | None
    linkedid: str | None
    direction: str | None
    caller: str | None
    callee: str | None
    queue: str | None
    agent: str | None
    started_at: Moment | None
    ended_at: Moment | None
    duration: Span | None
    disposition: Ending | None
    answered_at: Moment | None
    wait_s: Wait | None
    consent: Consent | None


class MediaPart(Part, frozen=True, kw_only=True):
    """One file of the recording."""

    role: str
    offset: Annotated[float, Meta(description="Seconds from the start of the recording.")]
    sha256: str | None
    num_channels: Count | None
    rate: Annotated[int, Meta(description="Hz.")] | None
    duration: Span | None


class RecordingPart(Part, frozen=True, kw_only=True):
    """The recording: where it came from and its files."""

    audio_id: str
    state: Literal["expected", "missing", "stored", "refused"]
    reason: str | None
    source: str
    sources: list[str]
    created_at: Moment
    offset: At | None
    duration: Span | None
    media: list[MediaPart]


class StepPart(Made, frozen=True, kw_only=True):
    """One step of the analysis."""

    name: str
    status: StepStatus
    started_at: Moment | None
    ms: Count | None
    attempts: Count
    progress: Share
    error: str | None


class ProcessingPart(Part, frozen=True, kw_only=True):
    """How far the analysis is."""

    progress: Annotated[int, Meta(ge=0, le=100)]
    steps: list[StepPart]


# ---- words


class WordPart(Part, frozen=True, kw_only=True):
    """A word with its time."""

    w: str
    s: At
    e: At
    p: Share


class SegmentPart(Part, frozen=True, kw_only=True):
    """A stretch of speech of one leg."""

    segment: int
    leg: Leg
    start: At
    end: At
    text: str
    language: str | None
    words: list[WordPart]
    source: Literal["live", "recording"]
    latency: float | None
    revised: bool
    speaker: Annotated[str, Meta(description="Of a mono recording: `A` speaks first.")] | None = (
        None  # the one field that may be missing: live words have none
    )


class Transcript(Made, frozen=True, kw_only=True):
    """The result of ``transcribe``; the document holds its parts."""

    segments: list[SegmentPart]
    language: str | None
    duration_s: Span


class TranslatedSegment(Part, frozen=True, kw_only=True):
    """A stretch of speech in the other language."""

    segment: Annotated[int, Meta(description="The segment it translates.")] | None
    leg: Leg
    start: At
    end: At
    text: str


class Translation(Made, frozen=True, kw_only=True):
    """The transcript in another language."""

    language: str | None
    target: str
    method: Literal["argos", "whisper"] | None
    path: Annotated[list[str], Meta(description="Languages that it went through.")]
    segments: list[TranslatedSegment]


# ---- summary


class Claim(Part, frozen=True, kw_only=True):
    """A sentence of a summary."""

    text: str
    supported: Annotated[bool, Meta(description="Whether the transcript bears it out.")]
    evidence: list[Evidence]


class Action(Claim, frozen=True, kw_only=True):
    """What somebody is to do."""

    owner: Leg | None
    due: str | None


class Summary(Made, frozen=True, kw_only=True):
    """The call in few words."""

    method: Literal["extractive", "model"]
    headline: str | None
    text: str
    sentences: list[Claim]
    reason: Claim | None
    outcome: Claim | None
    actions: list[Action]
    open_questions: list[Claim]
    language: str | None


# ---- entities


class Mention(Evidence, frozen=True, kw_only=True):
    """Where an entity is named."""

    span: Annotated[
        list[Count],
        Meta(min_length=2, max_length=2, description="From, to in the segment's text."),
    ]


class Entity(Part, frozen=True, kw_only=True):
    """Somebody or something that was named."""

    id: int
    label: Literal[
        "NAME", "LOCATION", "ORGANIZATION", "DATE", "TIME", "AGE", "PHONE", "MONEY", "ACCOUNT"
    ]
    text: str
    normal: str | None
    role: str | None
    score: Share | None
    mentions: list[Mention]


class Person(Part, frozen=True, kw_only=True):
    """Somebody the call is about."""

    role: Literal["caller", "child", "alleged", "agent", "other"]
    entity: Annotated[int, Meta(description="Id of the entity that names them.")] | None
    name: str | None
    age: int | None
    sex: str | None
    relation: str | None
    evidence: list[Evidence]


class Entities(Made, frozen=True, kw_only=True):
    """Names, places, numbers and people."""

    entities: list[Entity]
    people: list[Person]


# ---- categories


class TaxonomyPart(Part, frozen=True, kw_only=True):
    """A list of categories that the call was held against."""

    id: str
    version: int | str


class CallType(Part, frozen=True, kw_only=True):
    """What kind of call it was; all null where nothing tells."""

    id: str | None
    score: Share | None
    source: str | None
    evidence: list[Evidence]


class Category(Part, frozen=True, kw_only=True):
    """A category that fits."""

    taxonomy: str
    id: str
    label: str
    path: list[str]
    score: Share | None
    rank: Count
    source: Literal["rule", "embedding", "example", "human"]
    severity: str | None
    evidence: list[Evidence]


class Reason(Part, frozen=True, kw_only=True):
    """Why a priority is what it is."""

    text: str
    evidence: list[Evidence]


class Priority(Part, frozen=True, kw_only=True):
    """How soon somebody should look."""

    level: Literal["critical", "high", "medium", "low"]
    score: Share | None
    why: list[Reason]


class Flag(Part, frozen=True, kw_only=True):
    """What a rule raised."""

    flag_id: str
    rule: str
    rule_version: int | str | None
    severity: Literal["info", "notice", "warning", "critical"]
    label: str
    leg: Leg
    at_s: At
    evidence: list[Evidence]
    state: Literal["open", "confirmed", "wrong"]


class ComparedText(Part, frozen=True, kw_only=True, rename={"from_step": "from"}):
    """Which text was compared with hints and examples."""

    from_step: Literal["transcribe", "translate"]
    language: str
    method: str | None


class Categories(Made, frozen=True, kw_only=True):
    """What the call is about."""

    text: ComparedText | None
    taxonomies: list[TaxonomyPart]
    call_type: CallType | None
    categories: list[Category]
    priority: Priority | None
    flags: list[Flag]


# ---- insights


class Stretch(Part, frozen=True, kw_only=True):
    """A stretch of the call."""

    start: At
    end: At


class Hold(Stretch, frozen=True, kw_only=True):
    """A silence that words announced."""

    evidence: list[Evidence]


class Interruption(Part, frozen=True, kw_only=True):
    """Somebody begins while another speaks."""

    by: Party
    of: Party
    at: At
    seconds: Span
    segment: Annotated[int, Meta(description="The segment that interrupts.")]


class PartyTalk(Part, frozen=True, kw_only=True):
    """How much one party spoke."""

    talk_s: Span
    share: Annotated[float, Meta(ge=0, le=1, description="Of what all parties spoke.")] | None
    words: Count
    wpm: Annotated[float, Meta(ge=0, description="Words a minute of its own talk.")] | None
    longest_monologue_s: Span | None


class Talk(Part, frozen=True, kw_only=True):
    """Who spoke how much; null where the recording cannot tell."""

    start: At
    end: At
    parties: dict[str, PartyTalk]
    silence_s: Annotated[float, Meta(ge=0, description="Seconds in which nobody speaks.")] | None
    silences: Annotated[list[Stretch], Meta(description="Those of 2 seconds and more.")] | None
    overlap_s: Annotated[float, Meta(ge=0, description="Seconds in which several speak.")] | None
    interruptions: list[Interruption] | None
    hold_s: Span | None
    holds: list[Hold] | None
    first_response_s: (
        Annotated[float, Meta(ge=0, description="Seconds until the agent's first word.")] | None
    )


class PartySentiment(Part, frozen=True, kw_only=True):
    """How one party sounded by its words."""

    score: Feeling | None
    quarters: Annotated[list[Feeling | None], Meta(min_length=4, max_length=4)]
    trend: Literal["rising", "steady", "falling"] | None
    evidence: Annotated[list[Evidence], Meta(description="What weighs most.")]


class SegmentSentiment(Part, frozen=True, kw_only=True):
    """How one segment sounded by its words."""

    segment: int
    score: Feeling


class Sentiment(Part, frozen=True, kw_only=True):
    """How the call felt, by its words."""

    segments: list[SegmentSentiment]
    parties: dict[str, PartySentiment]


class SafetyField(Part, frozen=True, kw_only=True):
    """Whether something was said; `no` only where words deny it."""

    value: Known
    evidence: list[Evidence]


class Violence(Part, frozen=True, kw_only=True):
    """Kinds of violence."""

    physical: SafetyField
    sexual: SafetyField
    emotional: SafetyField


class Safety(Part, frozen=True, kw_only=True):
    """What decides how urgent help is."""

    immediate_danger: SafetyField
    self_harm: SafetyField
    violence: Violence
    neglect: SafetyField
    exploitation: SafetyField
    trafficking: SafetyField


class Referral(Part, frozen=True, kw_only=True):
    """Somebody was sent on to others."""

    text: str
    service: Annotated[str, Meta(description="The organisation or place it names.")] | None
    evidence: list[Evidence]


class FollowUp(Part, frozen=True, kw_only=True):
    """Somebody is to be called or seen again."""

    needed: bool
    by: Annotated[str, Meta(description="The date or time it names.")] | None
    evidence: list[Evidence]


class ChannelQuality(Part, frozen=True, kw_only=True):
    """The sound of one channel."""

    leg: Leg
    role: Annotated[str, Meta(description="The file it lies in.")]
    clipping: Annotated[float, Meta(ge=0, le=1, description="Share of samples at full scale.")]
    peak: Annotated[float, Meta(ge=0, description="Greatest sample; 1 is full scale.")]
    problem: Literal["silent", "same as another"] | None


class Quality(Part, frozen=True, kw_only=True):
    """How far the words can be trusted."""

    asr_confidence: Annotated[float, Meta(ge=0, le=1, description="Mean over words.")] | None
    low_confidence_s: Annotated[float, Meta(ge=0, description="Of words below 0.5.")] | None
    channels: list[ChannelQuality] | None
    channels_ok: bool | None
    drift_live_vs_final: (
        Annotated[
            dict[str, Annotated[float, Meta(ge=0)]],
            Meta(description="By leg: word error rate of the live words against these."),
        ]
        | None
    )
    completeness: (
        Annotated[float, Meta(ge=0, le=1, description="Share of the call that was recorded.")]
        | None
    )


class Insights(Made, frozen=True, kw_only=True):
    """What follows from the words and the sound."""

    talk: Talk
    sentiment: Sentiment | None
    safety: Safety | None
    referrals: list[Referral] | None
    follow_up: FollowUp | None
    quality: Quality


# ---- annotation


class MarkedSpan(Part, frozen=True, kw_only=True):
    """A stretch of text with a meaning: displaCy's form with two fields more."""

    start: Count
    end: Count
    label: str
    kind: Literal["entity", "flag", "category", "low_confidence"]
    title: str


class SegmentSpan(Part, frozen=True, kw_only=True):
    """Where a segment lies in the text; null where the translation knows no segment."""

    segment: int | None
    start: Count
    end: Count


class MarkedText(Part, frozen=True, kw_only=True):
    """A text with its spans, and the same as HTML without style or script."""

    text: str
    ents: list[MarkedSpan]
    html: str
    segments: list[SegmentSpan]


class Annotation(Made, frozen=True, kw_only=True):
    """The transcript with what was found in it; offsets count characters of ``text``."""

    original: MarkedText
    translation: MarkedText | None


# ---- all of it


class InsightsDocument(Part, frozen=True, kw_only=True):
    """Everything that callcore knows of a recording."""

    schema: Literal["callcore.insights/1"]
    audio_id: str
    call_id: str
    status: Literal["queued", "processing", "completed", "partial", "failed"]
    call: CallPart
    recording: RecordingPart
    processing: ProcessingPart
    language: str | None
    source: Literal["live", "recording"] | None
    segments: list[SegmentPart]
    translation: Translation | None
    summary: Summary | None
    entities: Entities | None
    categories: Categories | None
    flags: list[Flag] | None
    insights: Insights | None
    annotation: Annotation | None
    other: Annotated[
        dict[str, dict[str, Any]], Meta(description="Results of a site's own steps, by step.")
    ]
