"""Every call of the API, described: what ``openapi`` publishes and ``/docs`` shows.

Kept beside the routes rather than in them, so that a test can hold the one against the other.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from callcore.document_types import InsightsDocument
from callcore.insights_document import SCHEMA_FILE
from web import api_types as types
from web.security import HOOK_PATH

JSON = "application/json"
FORM = "multipart/form-data"
EVENTS = "text/event-stream"


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter that is not in the path."""

    name: str
    place: str
    """``query`` or ``header``."""
    text: str
    schema: Mapping[str, Any]
    example: str


@dataclass(frozen=True, slots=True)
class Body:
    """What is sent."""

    kind: type
    example: Mapping[str, str | list[str]]
    media: str = JSON
    is_required: bool = True


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that says yes, or no in a way of its own."""

    status: int
    text: str
    kind: type | None = None
    """None: no JSON of a type of ours."""
    media: tuple[str, ...] = (JSON,)
    headers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one address."""

    name: str
    group: str
    title: str
    answers: tuple[Answer, ...]
    text: str = ""
    body: Body | None = None
    parameters: tuple[Parameter, ...] = ()
    errors: Mapping[int, str] = field(default_factory=dict)
    """Beside those of the guard, which every address has."""
    is_open: bool = False
    """Whether it answers without the token."""


#: In the order of ``/docs``.
GROUPS = {
    "Recordings": "Bring a recording, see how far it is, read what was found.",
    "Analysis": "Run it again, and correct what it says.",
    "Calls": "Live calls and what is said in them.",
    "Webhooks": "What callcore tells other programs.",
    "Site": "Whether it works, and this description.",
}

#: What the parts of a path are.
PATH_PARTS = {
    "call_id": ("Any id of the call: its `call_id`, uniqueid, linkedid or a leg's UUID.", "1.75"),
    "audio_id": ("Id of the recording.", "9f0c2b7e-5c1d-4d0a-8c39-6f3e0c2a1b4d"),
    "task_id": ("From the receipt; the `audio_id` too.", "9f0c2b7e-5c1d-4d0a-8c39-6f3e0c2a1b4d"),
}

_CALL_ID = "1795362086.75"
_BAD_BODY = "`bad-json`, `unknown-field`, or what `field` holds cannot be used."
_NOT_JSON = "`not-json`: the Content-Type is not `application/json`."
_TOO_LARGE = "`too-large`: the body is larger than 64 KiB."
_AWAY = "`database-away`: the database does not answer."
_NO_KEY = "`consent-key`: nobody can tell here who refused analysis."
_NO_RECORDING = "`not-found`: there is no such recording."
_BAD_PATH = "`bad-path`: the id holds a NUL character."
_AFTER = (
    Parameter(
        "after",
        "query",
        "`last_event_id` of what was loaded: everything after it comes.",
        {"type": "string", "pattern": "^([0-9]{1,19}-[0-9]{1,19})?$"},
        "1795362086123-0",
    ),
    Parameter(
        "Last-Event-ID",
        "header",
        "The same, as a browser sends it when it resumes; it counts more.",
        {"type": "string", "pattern": "^([0-9]{1,19}-[0-9]{1,19})?$"},
        "1795362086123-0",
    ),
)
_STREAM = Answer(
    200,
    "Events without an end. `event:` is the type, `id:` the place in the stream, `data:` a "
    "LiveEvent; a comment each 15 seconds. `event: reset`: load again. `event: broker`: live text "
    "stands still (`away`) or goes on (`back`).",
    media=(EVENTS,),
)

OPERATIONS: dict[tuple[str, str], Operation] = {
    # ---- recordings
    ("POST", "/api/upload/"): Operation(
        "uploadRecording",
        "Recordings",
        "Upload a recording",
        (
            Answer(202, "It is on record; the analysis begins.", types.Receipt),
            Answer(200, "It was known; what the form says of the call was added.", types.Receipt),
        ),
        "A stereo file is the caller on the left and the agent on the right. The same recording "
        "through any door is one recording.",
        Body(types.UploadForm, {"file": "@1795362086.75.wav", "linkedid": _CALL_ID}, FORM),
        errors={
            400: "`bad-form`, `no-file`, `empty-file`, `unknown-field`, or what `field` holds "
            "cannot be used.",
            413: "`too-large`: more than `CALLCORE_UPLOAD_MAX_MB`.",
            415: "`not-multipart`: it is no form.",
            429: "`quota-used`: more than `CALLCORE_UPLOAD_QUOTA_MB` in a day.",
            503: f"{_AWAY} {_NO_KEY}",
            507: "`no-room`: the disk is full.",
        },
    ),
    ("POST", HOOK_PATH): Operation(
        "reportRecording",
        "Recordings",
        "Report a recording that callcore fetches",
        (
            Answer(202, "The report is on record; a worker fetches the file.", types.Receipt),
            Answer(200, "It was known; what the report says was added.", types.Receipt),
        ),
        "The host must be in `CALLCORE_RECORDING_HOSTS`. With `CALLCORE_HOOK_SECRETS` a report is "
        "signed, or carries the token.",
        Body(
            types.RecordingReport,
            {
                "call_id": _CALL_ID,
                "recording_url": "https://pbx.example.org/rec/1795362086.75.wav",
            },
        ),
        errors={
            400: _BAD_BODY,
            401: "`not-authenticated`: the signature is missing, wrong or too old.",
            403: "`peer-not-allowed`: not from a network of `CALLCORE_HOOK_PEERS`.",
            413: _TOO_LARGE,
            415: _NOT_JSON,
            503: f"{_AWAY} {_NO_KEY} `no-room`: the disk is full; report it again.",
        },
    ),
    ("GET", "/api/status/{task_id}/"): Operation(
        "readStatus",
        "Recordings",
        "How far the analysis is",
        (Answer(200, "Step by step, with reasons.", types.Status),),
        errors={400: _BAD_PATH, 404: _NO_RECORDING, 503: _AWAY},
    ),
    ("GET", "/api/audio/"): Operation(
        "listRecordings",
        "Recordings",
        "Recordings, newest first",
        (Answer(200, "A page of 50.", types.Recordings),),
        parameters=(
            Parameter(
                "before",
                "query",
                "`before` of the page that was read last.",
                {"type": "string"},
                "MjAyNi0xMS0yMlQxMDowMDowMCswMDowMCBh",
            ),
        ),
        errors={400: "`bad-cursor`: not a cursor of ours.", 503: _AWAY},
    ),
    ("GET", "/api/audio/{audio_id}/"): Operation(
        "readDocument",
        "Recordings",
        "Everything that is known of a recording",
        (Answer(200, "The document `callcore.insights/1`.", InsightsDocument),),
        "Valid after every step; what is not there yet is null.",
        errors={400: _BAD_PATH, 404: _NO_RECORDING, 503: _AWAY},
    ),
    ("GET", "/api/audio/{audio_id}/media"): Operation(
        "readMedia",
        "Recordings",
        "The sound",
        (
            Answer(
                200,
                "All of it: what a player plays (the caller on the left), or one stored file.",
                media=("audio/*", "application/octet-stream"),
                headers=("Accept-Ranges",),
            ),
            Answer(
                206,
                "The part that `Range` asks for.",
                media=("audio/*", "application/octet-stream"),
                headers=("Accept-Ranges", "Content-Range"),
            ),
        ),
        parameters=(
            Parameter(
                "role",
                "query",
                "One stored file, by its role in the document.",
                {"type": "string"},
                "caller",
            ),
            Parameter(
                "Range",
                "header",
                "One range of bytes; others are answered with all of it.",
                {"type": "string", "pattern": "^bytes=[0-9]{0,18}-[0-9]{0,18}$"},
                "bytes=0-65535",
            ),
        ),
        errors={
            400: _BAD_PATH,
            404: "`not-found`, `no-audio`: nothing is stored (yet), `no-such-role`.",
            416: "`range-not-satisfiable`: it begins after the end.",
            422: "`not-playable`: the stored file cannot be decoded.",
            503: _AWAY,
        },
    ),
    ("GET", f"/api/schema/{SCHEMA_FILE}"): Operation(
        "readDocumentSchema",
        "Recordings",
        "JSON Schema of the document",
        (Answer(200, "Draft 2020-12.", media=("application/schema+json",)),),
    ),
    # ---- analysis
    ("POST", "/api/audio/{audio_id}/rerun"): Operation(
        "rerunAnalysis",
        "Analysis",
        "Analyse a recording again",
        (Answer(202, "The steps wait for a worker.", types.Receipt),),
        "Without a body: the steps that failed or are new; if there are none, all.",
        Body(types.RerunRequest, {"steps": ["classify"]}, is_required=False),
        errors={
            400: f"`unknown-step`: not among `CALLCORE_STEPS`. {_BAD_BODY}",
            404: _NO_RECORDING,
            413: _TOO_LARGE,
            415: _NOT_JSON,
            503: _AWAY,
        },
    ),
    ("POST", "/api/audio/{audio_id}/corrections"): Operation(
        "correctCategory",
        "Analysis",
        "Say whether a category fits",
        (Answer(201, "It is on record.", types.Corrected),),
        "Its utterances are examples in every analysis that runs from then on; run this one again "
        "to see it.",
        Body(
            types.CorrectionRequest,
            {
                "taxonomy": "generic-support",
                "category": "payments.bill",
                "verdict": "missing",
                "texts": ["I want to pay my electricity bill."],
            },
        ),
        errors={
            400: f"`unknown-taxonomy`, `unknown-category`. {_BAD_BODY}",
            404: _NO_RECORDING,
            413: _TOO_LARGE,
            415: _NOT_JSON,
            503: f"{_AWAY} `bad-taxonomy`: a file of `CALLCORE_TAXONOMIES` is wrong.",
        },
    ),
    ("GET", "/api/taxonomies/"): Operation(
        "listTaxonomies",
        "Analysis",
        "The categories that calls are held against",
        (Answer(200, "Those of `CALLCORE_TAXONOMIES`.", types.Taxonomies),),
        errors={503: "`bad-taxonomy`: a file of `CALLCORE_TAXONOMIES` is wrong."},
    ),
    # ---- calls
    ("POST", "/api/legs/"): Operation(
        "announceLeg",
        "Calls",
        "Announce a live leg",
        (Answer(201, "Its AudioSocket stream must come within 10 seconds.", types.RegisteredLeg),),
        "Legs with the same linkedid (or call_id) are one call. A UUID is good for one stream.",
        Body(
            types.LegRegistration,
            {
                "uuid": "5f0c6c1e-3f4e-4b6a-9a52-0d9c6a1b2c3d",
                "linkedid": _CALL_ID,
                "leg": "caller",
            },
        ),
        errors={
            400: _BAD_BODY,
            409: "`uuid-in-use`: the UUID was announced before. `consent-refused`: the caller "
            "refused analysis.",
            413: _TOO_LARGE,
            415: _NOT_JSON,
            503: f"{_AWAY} {_NO_KEY}",
        },
    ),
    ("GET", "/api/calls/"): Operation(
        "listLiveCalls",
        "Calls",
        "The calls that run now",
        (Answer(200, "Newest first, and where to follow the lobby from.", types.LiveCalls),),
        errors={503: _AWAY},
    ),
    ("GET", "/api/calls/{call_id}/"): Operation(
        "readCall",
        "Calls",
        "A call so far",
        (Answer(200, "State, legs, live words, recordings.", types.CallDetail),),
        errors={400: _BAD_PATH, 404: "`not-found`: there is no such call.", 503: _AWAY},
    ),
    ("GET", "/events/calls"): Operation(
        "followCalls",
        "Calls",
        "Follow all calls",
        (_STREAM,),
        "Server-sent events: what begins, ends, is flagged or delayed.",
        parameters=_AFTER,
        errors={400: "`bad-event-id`: not an id of this stream."},
    ),
    ("GET", "/events/calls/{call_id}"): Operation(
        "followCall",
        "Calls",
        "Follow one call",
        (_STREAM,),
        "Server-sent events: every event of the call, its words too.",
        parameters=_AFTER,
        errors={
            400: "`bad-event-id`: not an id of this stream.",
            404: "`not-found`: there is no such call.",
            503: _AWAY,
        },
    ),
    # ---- webhooks
    ("GET", "/api/webhooks/deliveries/"): Operation(
        "listDeliveries",
        "Webhooks",
        "What was told outside",
        (Answer(200, "The newest 100, newest first, without what they said.", types.Deliveries),),
        errors={503: _AWAY},
    ),
    ("POST", "/api/webhooks/test"): Operation(
        "testWebhooks",
        "Webhooks",
        "Send a test message to every endpoint",
        (Answer(202, "It is noted; the workers send it.", types.TestNoted),),
        errors={409: "`no-endpoints`: `CALLCORE_WEBHOOK_URLS` is empty.", 503: _AWAY},
    ),
    # ---- site
    ("GET", "/live"): Operation(
        "isLive",
        "Site",
        "The process answers",
        (Answer(200, "It does.", types.Alive),),
        is_open=True,
    ),
    ("GET", "/ready"): Operation(
        "isReady",
        "Site",
        "Everything that it needs answers",
        (
            Answer(200, "It does.", types.Ready),
            Answer(503, "`not-ready`: with the reasons.", types.NotReady),
        ),
        is_open=True,
    ),
    ("GET", "/metrics"): Operation(
        "readMetrics",
        "Site",
        "How busy it is",
        (Answer(200, "Figures in the text format of Prometheus.", media=("text/plain",)),),
        "Live legs, decoder load, seconds behind, legs without text, finals; how many recordings "
        "wait for each step, and how long. Nothing of a call.",
        errors={503: _AWAY},
    ),
    ("GET", "/openapi.json"): Operation(
        "readOpenApi",
        "Site",
        "This description",
        (Answer(200, "OpenAPI 3.1, as this site is set up.", dict),),
    ),
}
