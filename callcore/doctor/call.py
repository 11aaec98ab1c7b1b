"""``callcore doctor --call``: one call from Asterisk to the document, judged step by step.

Asterisk plays its prompt ``demo-congrats`` as a caller into the dialplan's context
``callcore-doctor``, which taps and records the call like any other. What arrives is looked for in
the record, under the id that the call was given. What the call leaves behind, recording and
document, stays like that of any call.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from callcore.ami import Ami
from callcore.calls import Call, CallState, DocumentState, Leg, LegState, Recording, RecordingState
from callcore.doctor.finding import Finding
from callcore.doctor.site import web_url
from callcore.document import current_step, error_of, state_of
from callcore.errors import AmiError, NotFound
from callcore.settings import Settings
from callcore.storage import Storage
from callcore.word_errors import word_error_rate

#: What the prompt says.
SAID = (
    "Congratulations. You have successfully installed and executed the Asterisk open source PBX. "
    "You have also installed a set of sample sounds and configuration files that should help you "
    "to get started. Like a normal PBX you will navigate this demonstration by dialing digits. If "
    "you are using a console channel driver instead of a real phone you can use the dial, answer, "
    "and hang up commands to simulate the actions of a standard telephone."
)
#: The caller's number, so that consent is asked as for any caller; with * and #, nobody's.
NUMBER = "*362867#"
#: Share of wrong words above which it was hardly this prompt that was heard.
MAX_WORD_ERRORS = 0.5
_CONTEXT = "callcore-doctor"
#: How often the record is looked at, in seconds: it tells nobody when it changes.
_LOOK_S = 0.25
_CAPTURE = "capture"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Limits:
    """Longest waits in seconds: generous, for a machine that is busy with other calls."""

    placed_s: float = 20.0
    stream_s: float = 20.0
    words_s: float = 90.0
    ended_s: float = 180.0
    recording_s: float = 120.0
    """Beside the time that files must stay unchanged."""
    document_s: float = 900.0


class CheckedCall:
    """One test call.

    Args:
        settings: Of the site.
        storage: The record.
        ami: A session that is sent the events of calls.
        call_id: What the call is to be known by.
        tell: Is told what is waited for, and how long at most.
        limits: Of the waits.
    """

    def __init__(
        self,
        settings: Settings,
        storage: Storage,
        ami: Ami,
        call_id: str,
        tell: Callable[[str, float], None],
        limits: Limits,
    ) -> None:
        self._settings = settings
        self._storage = storage
        self._ami = ami
        self._call_id = call_id
        self._tell = tell
        self._limits = limits

    def judge(self) -> Iterator[Finding]:
        """Place the call and yield what became of each step; it stops where nothing can follow."""
        placed = self._placed()
        yield placed
        if placed.state == "failed":
            return
        stream = self._stream()
        yield stream
        if stream.state == "ok":
            words = self._first_words()
            if words is not None:
                yield words
            yield self._ended()
            if words is None:
                yield self._words()
        recording, found = self._recording()
        yield found
        if recording is not None:
            yield self._document(recording)
        call = self._call()
        if call is not None:
            page = f"{web_url(self._settings)}/calls/{call.call_id}"
            yield Finding("call-page", "ok", page)

    # ---- the steps

    def _placed(self) -> Finding:
        self._tell("placing a call: the prompt demo-congrats speaks", self._limits.placed_s)
        try:
            asked = self._ami.action(
                "Originate",
                Channel=f"Local/call@{_CONTEXT}/n",
                Context=_CONTEXT,
                Exten="says",
                Priority="1",
                CallerID=f'"callcore doctor" <{NUMBER}>',
                Timeout=f"{self._limits.placed_s * 1000:.0f}",
                Variable=f"__CALLCORE_DOCTOR={self._call_id}",
                Async="true",
            )
            answer = self._ami.wait_for(
                lambda event: (
                    event.get("Event") == "OriginateResponse"
                    and event.get("ActionID") == asked["ActionID"]
                ),
                self._limits.placed_s,
            )
        except AmiError as error:
            return Finding("call-placed", "failed", str(error), _SEE_LOG)
        if answer is None or answer.get("Response") != "Success":
            detail = "Asterisk could not place the call"
            return Finding("call-placed", "failed", detail, _SEE_LOG)
        return Finding("call-placed", "ok", f"the call {self._call_id} is up")

    def _stream(self) -> Finding:
        self._tell("the call's stream is to arrive", self._limits.stream_s)

        def arrived() -> Leg | None:
            call = self._call()
            legs = call.legs if call else ()
            return next((leg for leg in legs if leg.started_at is not None), None)

        leg = self._until(arrived, self._limits.stream_s)
        if leg is not None:
            return Finding("call-stream", "ok", f"the stream of leg {leg.leg} came and is known")
        call = self._call()
        if call is None:
            detail = "nobody told us of the call: the dialplan's FastAGI request did not come"
            remedy = (
                "see pbx-agi above; CALLCORE_AGI_PEERS must let Asterisk's address in, and the\n"
                "daemon's log (`callcore agi`) tells what it refused"
            )
        elif any(leg.state in (LegState.EXPECTED, LegState.EXPIRED) for leg in call.legs):
            detail = "the call was announced, but its audio did not come"
            remedy = "see pbx-audiosocket above, and `callcore audiosocket` in the log"
        else:
            detail = "the call was reported, but no stream of it was announced"
            remedy = f"see consent and pbx-dialplan above; consent must not be refused for {NUMBER}"
        return Finding("call-stream", "failed", detail, remedy)

    def _first_words(self) -> Finding | None:
        """Return why there will be no live words; None when some have come."""
        check = "call-words"
        if self._settings.live == "off":
            return Finding(check, "ok", "live recognition is switched off (CALLCORE_LIVE=off)")
        self._tell("the first live words are to come", self._limits.words_s)

        def heard() -> Finding | bool:
            call = self._call()
            for leg in call.legs if call else ():
                if leg.no_text:
                    remedy = (
                        "of too many calls: try again when fewer run, or raise "
                        "CALLCORE_LIVE_MAX_LOAD; of no answer: see models and endpoint above"
                    )
                    return Finding(check, "warning", f"no live text: {leg.no_text}", remedy)
            return bool(self._storage.live_segments(self._call_id))

        answer = self._until(heard, self._limits.words_s)
        if answer is None:
            detail = "audio came, but no words of it"
            remedy = "see models above, and `callcore audiosocket` in the log"
            return Finding(check, "failed", detail, remedy)
        return answer if isinstance(answer, Finding) else None

    def _ended(self) -> Finding:
        self._tell("the call is to end", self._limits.ended_s)

        def over() -> Call | None:
            call = self._call()
            return call if call is not None and call.state != CallState.LIVE else None

        call = self._until(over, self._limits.ended_s)
        if call is None:
            detail = "the call does not end"
            remedy = (
                'look for its channels: `asterisk -rx "core show channels"`; if there are none,\n'
                "restart `callcore audiosocket`"
            )
            return Finding("call-ended", "failed", detail, remedy)
        seconds = f" after {call.duration_s:.0f} s" if call.duration_s else ""
        return Finding("call-ended", "ok", f"it ended{seconds}")

    def _words(self) -> Finding:
        """Compare all live words with what was said."""
        segments = self._storage.live_segments(self._call_id)
        heard = " ".join(segment.text for segment in segments)
        rate = word_error_rate(SAID, heard) if heard else 1.0
        detail = f"{len(heard.split())} live words, word error rate {rate:.0%}"
        if rate > MAX_WORD_ERRORS:
            remedy = (
                "that is not the prompt demo-congrats in English: install Asterisk's core sounds\n"
                "(Debian: asterisk-core-sounds-en), or mind that CALLCORE_LANGUAGE is another"
            )
            return Finding("call-words", "warning", detail, remedy)
        return Finding("call-words", "ok", detail)

    def _recording(self) -> tuple[Recording | None, Finding]:
        limit_s = self._limits.recording_s + self._settings.settle_s
        self._tell("its recording is to arrive", limit_s)
        check = "call-recording"
        recording = self._until(self._settled, limit_s)
        if recording is None:
            return None, self._no_recording()
        doors = ", ".join(recording.sources)
        if recording.state == RecordingState.STORED:
            roles = ", ".join(media.role for media in recording.media)
            seconds = f", {recording.duration_s:.0f} s" if recording.duration_s else ""
            return recording, Finding(check, "ok", f"{roles}{seconds}, reported by {doors}")
        reason = recording.reason or recording.state
        remedy = "see pbx-spool and spool above: the file that Asterisk names must be found here"
        if recording.state == RecordingState.REFUSED:
            remedy = "the test call's recording must not be refused: see the reason"
        return None, Finding(
            check, "failed", f"reported by {doors}, but not stored: {reason}", remedy
        )

    def _settled(self) -> Recording | None:
        return next((r for r in self._reported() if r.state != RecordingState.EXPECTED), None)

    def _reported(self) -> list[Recording]:
        """Return the call's recordings by the PBX: a capture is our own."""
        try:
            recordings = self._storage.recordings_of(self._call_id)
        except NotFound:
            return []
        return [each for each in recordings if set(each.sources) != {_CAPTURE}]

    def _no_recording(self) -> Finding:
        if self._reported():
            detail = "its recording was reported, but nobody has looked at it"
            remedy = "start the workers: `callcore up`, or `python -m workers`; see broker above"
        else:
            detail = "no recording of the call arrived, neither by the hook nor in the spool"
            remedy = (
                "see pbx-spool, spool and pbx-agi above; Asterisk must be able to write its\n"
                "recordings (its log tells), and `callcore spool` and `callcore agi` must run"
            )
        return Finding("call-recording", "failed", detail, remedy)

    def _document(self, recording: Recording) -> Finding:
        self._tell("its analysis is to be complete", self._limits.document_s)
        final = (DocumentState.COMPLETED, DocumentState.PARTIAL, DocumentState.FAILED)

        def analysed() -> DocumentState | None:
            state = state_of(self._storage.steps(recording.audio_id))
            return state if state in final else None

        state = self._until(analysed, self._limits.document_s)
        steps = self._storage.steps(recording.audio_id)
        if state == DocumentState.COMPLETED:
            return Finding("call-document", "ok", f"complete, {len(steps)} steps")
        if state is None:
            detail = f"not complete: the step {current_step(steps)} is not done"
            remedy = "look whether the workers run (`python -m workers`), and at their log"
        else:
            detail = f"{state}: {error_of(steps) or 'steps were skipped'}"
            remedy = "the reason names what to mend; then run the analysis again on the call's page"
        return Finding("call-document", "failed", detail, remedy)

    # ---- looking

    def _call(self) -> Call | None:
        try:
            return self._storage.call(self._call_id)
        except NotFound:
            return None

    def _until(self, answer: Callable[[], T | None], limit_s: float) -> T | None:
        """Return the first true answer; None if none comes in time."""
        deadline = time.monotonic() + limit_s
        while True:
            value = answer()
            if value:
                return value
            if time.monotonic() >= deadline:
                return None
            time.sleep(_LOOK_S)


_SEE_LOG = "Asterisk's log tells why; its dialplan must be the one of this callcore"
