import asyncio
import io
import sqlite3
import wave
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from callcore.audio import WavWriter
from callcore.calls import CallFacts, Media
from callcore.consent import KEY_FILE, Consent
from callcore.storage import Storage
from tests.support.pages import Pages, segment_of
from tests.support.valkey import Valkey, stopped_valkey, valkey

__all__ = ["stopped_valkey", "valkey"]

UUID = "0d9ef5e0-a8f5-4b4e-9f27-3c3b0b9a6f00"
#: Nothing listens there: the broker is away.
NOWHERE = "redis://127.0.0.1:1/0"


@pytest.fixture
def pages(tmp_path: Path) -> Iterator[Pages]:
    environ = {"CALLCORE_UPLOAD_MAX_MB": "1", "CALLCORE_STEPS": "transcribe"}
    pages = Pages(tmp_path, environ=environ, redis_url=NOWHERE)
    yield pages
    pages.close()


@pytest.fixture
async def client(pages: Pages) -> AsyncIterator[httpx.AsyncClient]:
    async with pages.client() as client:
        yield client


def wav_of(path: Path, *channels: np.ndarray, rate: int = 8000) -> Path:
    with WavWriter(path, rate, len(channels)) as writer:
        writer.write(np.stack(channels, axis=1).astype("<i2").tobytes())
    return path


def ramp(size: int, sign: int = 1) -> np.ndarray:
    return sign * (np.arange(size) % 30000)


# ---- errors


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/api/nothing/", 404, "not-found"),
        ("GET", "/api/calls/none/", 404, "not-found"),
        ("GET", "/api/audio/none/", 404, "not-found"),
        ("GET", "/api/audio/none/media", 404, "not-found"),
        ("GET", "/api/status/none/", 404, "not-found"),
        ("GET", "/events/calls/none", 404, "not-found"),
        ("GET", "/events/calls?after=x", 400, "bad-event-id"),
        ("GET", "/api/audio/?before=x", 400, "bad-cursor"),
        ("DELETE", "/api/calls/", 405, "method-not-allowed"),
        ("GET", "/api/legs/", 405, "method-not-allowed"),
    ],
)
async def test_errors_have_one_shape(
    client: httpx.AsyncClient, method: str, path: str, status: int, code: str
) -> None:
    answer = await client.request(method, path)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert error["code"] == code
    assert set(error) == {"code", "message", "field"}


@pytest.mark.parametrize("path", ["/nothing", "/calls/none", "/calls/none/live"])
async def test_people_get_a_page_that_says_what_is_wrong(
    client: httpx.AsyncClient, path: str
) -> None:
    answer = await client.get(path)
    assert answer.status_code == 404
    assert answer.headers["content-type"].startswith("text/html")
    assert "<h1>Not found</h1>" in answer.text


# ---- legs


async def test_without_the_key_of_who_refused_the_sender_is_told_to_come_again(
    client: httpx.AsyncClient, pages: Pages, tmp_path: Path
) -> None:
    # Fault held off: it was answered 500, failed.
    refusing = Consent(pages.storage, pages.settings)
    refusing.refuse(CallFacts(call_id="1.1", caller="100"))
    (pages.settings.state_dir / KEY_FILE).unlink()
    path = wav_of(tmp_path / "a.wav", ramp(800))
    facts = {"call_id": "1.2", "caller": "200"}
    answers = [
        await client.post("/api/legs/", json={"uuid": UUID, **facts}),
        await client.post("/api/upload/", data=facts, files={"file": path.read_bytes()}),
    ]
    for answer in answers:
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "consent-key")
        assert str(tmp_path) not in answer.text
        assert answer.headers["Retry-After"]
    assert pages.storage.recordings_of("1.1") == []


async def test_a_leg_is_registered_once(client: httpx.AsyncClient, pages: Pages) -> None:
    facts = {"uuid": UUID, "call_id": "1.2", "leg": "caller", "caller": "100", "agent": None}
    answer = await client.post("/api/legs/", json=facts)
    assert answer.status_code == 201
    assert answer.json()["call_id"] == "1.2"
    assert answer.json()["state"] == "expected"
    assert pages.storage.call("1.2").facts.caller == "100"
    answer = await client.post("/api/legs/", json=facts)
    assert answer.status_code == 409
    assert answer.json()["error"]["code"] == "uuid-in-use"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "uuid"),
        ({"uuid": 1}, "uuid"),
        ({"uuid": "1"}, "uuid"),
        ({"uuid": UUID, "leg": "boss"}, "leg"),
        ({"uuid": UUID, "call_id": "../../etc"}, "call_id"),
        ({"uuid": UUID, "caller": 100}, "caller"),
        ({"uuid": UUID, "caler": "100"}, "caler"),
        ({"uuid": UUID, "started_at": "yesterday"}, "started_at"),
        ({"uuid": UUID, "started_at": "2026-01-01T00:00:00"}, "started_at"),
    ],
)
async def test_a_wrong_field_is_named(
    client: httpx.AsyncClient, body: dict[str, object], field: str
) -> None:
    answer = await client.post("/api/legs/", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["field"] == field


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"[]", "application/json", 400),
        (b"[" * 60_000, "application/json", 400),
        (b"\xff", "application/json", 400),
        (b'{"uuid": "' + b"x" * 70_000 + b'"}', "application/json", 413),
        (b"{}", "text/plain", 415),
    ],
)
async def test_a_body_that_is_no_json_object_is_refused(
    client: httpx.AsyncClient, content: bytes, kind: str, status: int
) -> None:
    answer = await client.post("/api/legs/", content=content, headers={"Content-Type": kind})
    assert answer.status_code == status
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize("origin", ["http://[", "null", "http://127.0.0.1:8000@elsewhere"])
async def test_an_origin_that_is_not_ours_is_refused_whatever_it_looks_like(
    client: httpx.AsyncClient, origin: str
) -> None:
    answer = await client.post("/api/legs/", json={"uuid": UUID}, headers={"Origin": origin})
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "cross-site"


@pytest.mark.parametrize(
    "headers",
    [{"Last-Event-ID": "1-0"}, {}],
)
async def test_both_places_of_an_event_id_are_checked(
    client: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    answer = await client.get("/events/calls?after=x", headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"]["field"] == "after"


# ---- calls


@pytest.mark.redis
async def test_a_call_answers_to_every_id_with_its_state_and_where_to_go_on(
    tmp_path: Path, valkey: Valkey
) -> None:
    pages = Pages(tmp_path, valkey.url)
    pages.begin_call("1.2", alias="1.3", caller="100")
    pages.say("1.2", segment_of(1, "caller", 1.0, 2.0, "Hello there"))
    pages.publish(
        "transcript.partial", "1.2", leg="agent", segment=2, start=2, end=3, text="he", stable=0
    )
    pages.publish(
        "transcript.partial", "1.2", leg="agent", segment=2, start=2, end=3, text="hel", stable=1
    )
    pages.publish(
        "transcript.partial", "1.2", leg="agent", segment=3, start=2, end=3, text="x", stable=0
    )
    pages.publish(
        "transcript.partial", "1.2", leg="agent", segment=3, start=2, end=3, text="", stable=0
    )
    pages.publish("lag.updated", "1.2", lag_s=3.5, state="behind")
    async with pages.client() as client:
        state = (await client.get("/api/calls/1.3/")).json()
        assert state["call_id"] == "1.2"
        assert state["state"] == "live"
        assert state["caller"] == "100"
        assert [leg["leg"] for leg in state["legs"]] == ["caller", "agent"]
        assert [s["text"] for s in state["segments"]] == ["Hello there"]
        assert [w["w"] for w in state["segments"][0]["words"]] == ["Hello", "there"]
        assert [p["text"] for p in state["partials"]] == ["hel"]
        assert state["lag"] == {"lag_s": 3.5, "state": "behind"}
        assert state["last_event_id"]
        lobby = (await client.get("/api/calls/")).json()
        assert [c["call_id"] for c in lobby["calls"]] == ["1.2"]
        assert lobby["calls"][0]["lag"]["state"] == "behind"
        assert lobby["last_event_id"]

        pages.end_call("1.2")
        state = (await client.get("/api/calls/1.2/")).json()
        assert (state["state"], state["partials"]) == ("ended", [])
        assert (await client.get("/api/calls/")).json()["calls"] == []
    pages.close()


async def test_without_a_broker_calls_are_still_shown(
    client: httpx.AsyncClient, pages: Pages
) -> None:
    pages.redis_url = ""
    pages.begin_call("1.2")
    state = (await client.get("/api/calls/1.2/")).json()
    assert state["last_event_id"] is None
    assert (await client.get("/")).status_code == 200


# ---- uploads


async def post_file(
    client: httpx.AsyncClient, content: bytes, name: str = "a.wav", **fields: str
) -> httpx.Response:
    files = {"file": (name, content, "audio/wav")}
    return await client.post("/api/upload/", files=files, data=fields)


def uploaded_files(pages: Pages) -> list[Path]:
    return sorted((pages.settings.audio_dir / "uploads").glob("*"))


async def test_an_upload_is_on_record_when_it_is_answered(
    client: httpx.AsyncClient, pages: Pages, tmp_path: Path
) -> None:
    content = wav_of(tmp_path / "x.wav", ramp(8000)).read_bytes()
    answer = await post_file(client, content, call_id="1.2", caller="100")
    assert answer.status_code == 202
    body = answer.json()
    assert body["task_id"] == body["audio_id"]
    assert body["status"] == "queued"
    status = (await client.get(body["status_url"])).json()
    assert [step["name"] for step in status["steps"]] == ["settle", *pages.settings.steps]
    (path,) = uploaded_files(pages)
    assert path.read_bytes() == content
    assert path.suffix == ".wav"
    assert pages.storage.call("1.2").facts.caller == "100"

    again = await post_file(client, content, call_id="1.2")
    assert again.status_code == 200
    assert again.json()["audio_id"] == body["audio_id"]


async def test_another_file_of_the_same_name_and_call_is_another_recording(
    client: httpx.AsyncClient, pages: Pages, tmp_path: Path
) -> None:
    # Every file of a call may be called recording.wav: the second was lost.
    contents = [wav_of(tmp_path / f"{n}.wav", ramp(8000 + n)).read_bytes() for n in range(2)]
    answers = [
        await post_file(client, content, "recording.wav", call_id="1.2")
        for content in (*contents, *contents)
    ]
    assert [each.status_code for each in answers] == [202, 202, 200, 200]
    ids = [each.json()["audio_id"] for each in answers]
    assert ids[:2] == ids[2:]
    assert len(set(ids)) == 2
    assert {each.read_bytes() for each in uploaded_files(pages)} == set(contents)


async def test_the_same_file_without_ids_is_one_recording(
    client: httpx.AsyncClient, tmp_path: Path
) -> None:
    content = wav_of(tmp_path / "x.wav", ramp(8000)).read_bytes()
    first = await post_file(client, content, "one.wav")
    second = await post_file(client, content, "two.wav")
    assert (first.status_code, second.status_code) == (202, 200)
    assert first.json()["audio_id"] == second.json()["audio_id"]


async def test_the_senders_file_name_is_never_a_path_of_ours(
    client: httpx.AsyncClient, pages: Pages
) -> None:
    answer = await post_file(client, b"RIFF", "../../../etc/x.wav;rm")
    assert answer.status_code == 202
    (path,) = uploaded_files(pages)
    assert path.parent == pages.settings.audio_dir / "uploads"
    assert path.suffix == ""


@pytest.mark.parametrize("declared", [True, False])
async def test_a_file_that_is_too_large_is_refused_and_leaves_nothing(
    client: httpx.AsyncClient, pages: Pages, declared: bool
) -> None:
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x.wav"\r\n\r\n'
    body = head + b"x" * 1_300_000 + b"\r\n--b--\r\n"

    async def in_pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(body), 65536):
            yield body[at : at + 65536]

    answer = await client.post(
        "/api/upload/",
        content=body if declared else in_pieces(),
        headers={"Content-Type": "multipart/form-data; boundary=b"},
    )
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "too-large"
    assert "1 MB" in answer.json()["error"]["message"]
    assert uploaded_files(pages) == []


PART = b'--b\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n'


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"", "multipart/form-data; boundary=b", 400),
        (b"--b--\r\n", "multipart/form-data; boundary=b", 400),
        (PART % (b"caller", b"100") + b"--b--\r\n", "multipart/form-data; boundary=b", 400),
        (PART % (b"file", b"RIFF"), "multipart/form-data; boundary=b", 400),
        (PART % (b"file", b"") + b"--b--\r\n", "multipart/form-data; boundary=b", 400),
        (2 * (PART % (b"file", b"x")) + b"--b--", "multipart/form-data; boundary=b", 400),
        (50 * (PART % (b"call_id", b"x")) + b"--b--", "multipart/form-data; boundary=b", 400),
        (PART % (b"agent", b"x" * 9000) + b"--b--", "multipart/form-data; boundary=b", 400),
        (
            PART % (b"file", b"x") + PART % (b"colour", b"x") + b"--b--",
            "multipart/form-data; boundary=b",
            400,
        ),
        (b"\xff\x00nothing", "multipart/form-data; boundary=b", 400),
        (b"x", "multipart/form-data; boundary=" + "b" * 71, 400),
        (b"x", "multipart/form-data", 415),
        (b"x", "application/x-www-form-urlencoded", 415),
    ],
)
async def test_a_form_that_cannot_be_used_is_refused_and_leaves_nothing(
    client: httpx.AsyncClient, pages: Pages, body: bytes, kind: str, status: int
) -> None:
    answer = await client.post("/api/upload/", content=body, headers={"Content-Type": kind})
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["message"]
    assert uploaded_files(pages) == []


async def test_a_full_disk_is_said_and_leaves_nothing(
    client: httpx.AsyncClient, pages: Pages, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("web.upload._keep", no_room)
    answer = await post_file(client, b"RIFF")
    assert answer.status_code == 507
    assert answer.json()["error"]["code"] == "no-room"
    assert uploaded_files(pages) == []


async def test_a_disk_that_fills_while_a_file_comes_is_said_and_leaves_nothing(
    client: httpx.AsyncClient, pages: Pages, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The floor was looked at before the first byte only: uploads beside each other filled the disk.
    monkeypatch.setattr("web.upload.LOOK_EACH_BYTES", 200_000)
    said = iter([None, "the disk has 1 MB free"])
    monkeypatch.setattr("callcore.admission.shortage", lambda _: next(said))
    answer = await post_file(client, b"x" * 900_000)
    assert answer.status_code == 507
    assert answer.json()["error"]["message"] == "the disk has 1 MB free"
    assert uploaded_files(pages) == []


async def test_a_database_that_does_not_answer_is_said_and_leaves_no_file(
    client: httpx.AsyncClient, pages: Pages
) -> None:
    with sqlite3.connect(pages.folder / "web.db") as connection:
        connection.execute("DROP TABLE jobs")
    connection.close()
    answer = await post_file(client, b"RIFF")
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "database-away"
    assert answer.headers["retry-after"]
    assert uploaded_files(pages) == []


# ---- recordings


async def test_a_document_holds_words_with_times_and_a_list_has_pages(
    client: httpx.AsyncClient, pages: Pages, tmp_path: Path
) -> None:
    path = wav_of(tmp_path / "a.wav", ramp(80000), ramp(80000))
    words = [segment_of(7, "caller", 1.0, 2.0, "Hello there", source="recording")]
    audio_id = pages.record("1.2", [Media("stereo", str(path))], words)
    document = (await client.get(f"/api/audio/{audio_id}/")).json()
    assert document["schema"] == "callcore.insights/1"
    assert document["segments"][0]["words"][1] == {"w": "there", "s": 1.5, "e": 2.0, "p": 0.9}
    listed = (await client.get("/api/audio/")).json()
    assert [each["audio_id"] for each in listed["recordings"]] == [audio_id]
    assert listed["recordings"][0]["status"] == "completed"
    assert listed["before"] is None
    assert str(tmp_path) not in str(document) + str(listed)


async def test_a_stored_file_is_played_from_any_byte(
    client: httpx.AsyncClient, pages: Pages, tmp_path: Path
) -> None:
    path = wav_of(tmp_path / "a.wav", ramp(8000), ramp(8000))
    content = path.read_bytes()
    audio_id = pages.record("1.2", [Media("stereo", str(path))])
    url = f"/api/audio/{audio_id}/media"
    whole = await client.get(url)
    assert (whole.status_code, whole.content) == (200, content)
    assert whole.headers["accept-ranges"] == "bytes"
    assert whole.headers["content-type"] == "audio/wav"
    size = len(content)
    for asked, start, end in (
        ("bytes=0-", 0, size),
        ("bytes=100-199", 100, 200),
        ("bytes=100-999999999", 100, size),
        ("bytes=-100", size - 100, size),
        ("bytes=-999999999", 0, size),
    ):
        part = await client.get(url, headers={"Range": asked})
        assert part.status_code == 206, asked
        assert part.content == content[start:end], asked
        assert part.headers["content-range"] == f"bytes {start}-{end - 1}/{size}"
    for ignored in ("bytes=5-1", "bytes=-", "lines=1-2", "bytes=0-1,3-4", "bytes=x"):
        part = await client.get(url, headers={"Range": ignored})
        assert (part.status_code, part.content) == (200, content), ignored
    part = await client.get(url, headers={"Range": f"bytes={size}-"})
    assert part.status_code == 416
    assert part.headers["content-range"] == f"bytes */{size}"
    head = await client.head(url, headers={"Range": "bytes=100-199"})
    assert (head.status_code, head.content) == (206, b"")
    assert head.headers["content-length"] == "100"


async def test_files_of_the_parties_play_as_one_stereo_file(
    client: httpx.AsyncClient, pages: Pages, tmp_path: Path
) -> None:
    caller, agent = ramp(16000), ramp(12000, -1)
    media = [
        Media("caller", str(wav_of(tmp_path / "c.wav", caller))),
        Media("agent", str(wav_of(tmp_path / "a.wav", agent)), offset_s=0.5),
    ]
    audio_id = pages.record("1.2", media)
    url = f"/api/audio/{audio_id}/media"
    content = (await client.get(url)).content
    with wave.open(io.BytesIO(content)) as file:
        assert (file.getnchannels(), file.getframerate(), file.getnframes()) == (2, 8000, 16000)
        frames = np.frombuffer(file.readframes(16000), "<i2").reshape(-1, 2)
    assert np.array_equal(frames[:, 0], caller)
    assert np.array_equal(frames[4000:, 1], agent)
    assert not frames[:4000, 1].any()
    for start, end in ((0, 10), (40, 50), (45, 60_003), (31_999, 32_001), (64_000, len(content))):
        part = await client.get(url, headers={"Range": f"bytes={start}-{end - 1}"})
        assert part.content == content[start:end], (start, end)
    one = await client.get(url, params={"role": "agent"})
    assert one.content == (tmp_path / "a.wav").read_bytes()
    none = await client.get(url, params={"role": "boss"})
    assert none.status_code == 404
    assert "caller, agent" in none.json()["error"]["message"]


async def test_a_file_that_browsers_do_not_know_is_played_as_wav(
    client: httpx.AsyncClient, pages: Pages, tmp_path: Path
) -> None:
    # 8-bit samples: the same way as GSM in WAV, which wave cannot write.
    samples = ramp(16000) // 120
    path = tmp_path / "a.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(1)
        file.setframerate(8000)
        file.writeframes((samples + 128).clip(0, 255).astype(np.uint8).tobytes())
    audio_id = pages.record("1.2", [Media("mixed", str(path))])
    url = f"/api/audio/{audio_id}/media"
    content = (await client.get(url)).content
    with wave.open(io.BytesIO(content)) as wav:
        assert (wav.getsampwidth(), wav.getnframes()) == (2, 16000)
        frames = np.frombuffer(wav.readframes(16000), "<i2").reshape(-1, 2)
    assert abs(frames[:, 0] - samples.clip(-128, 127) * 256.0).max() <= 256
    assert np.array_equal(frames[:, 0], frames[:, 1])
    part = await client.get(url, headers={"Range": "bytes=30001-30100"})
    assert part.content == content[30001:30101]


async def test_a_recording_without_sound_says_why(
    client: httpx.AsyncClient, pages: Pages, tmp_path: Path
) -> None:
    audio_id = (await post_file(client, b"RIFF")).json()["audio_id"]
    answer = await client.get(f"/api/audio/{audio_id}/media")
    assert answer.status_code == 404
    assert "not stored" in answer.json()["error"]["message"]
    path = wav_of(tmp_path / "a.wav", ramp(8000))
    audio_id = pages.record("1.2", [Media("mixed", str(path))])
    path.unlink()
    answer = await client.get(f"/api/audio/{audio_id}/media")
    assert answer.status_code == 404
    assert "removed" in answer.json()["error"]["message"]


# ---- pages


HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'"


async def test_what_people_say_and_are_called_is_text_and_nothing_else(
    client: httpx.AsyncClient, pages: Pages, tmp_path: Path
) -> None:
    pages.redis_url = ""
    pages.begin_call("1.2", caller=HOSTILE, agent=HOSTILE, queue=HOSTILE)
    pages.storage.add_live_segment("1.2", segment_of(1, "caller", 1.0, 2.0, HOSTILE))
    for path in ("/", "/calls/", "/calls/1.2", "/calls/1.2/live"):
        page = (await client.get(path)).text
        assert "<script>alert" not in page, path
        assert "<img" not in page, path
        assert "&lt;script&gt;alert(1)" in page, path


async def test_the_call_page_marks_live_text_until_the_recordings_is_there(
    client: httpx.AsyncClient, pages: Pages, tmp_path: Path
) -> None:
    pages.redis_url = ""
    pages.begin_call("1.2", ("caller",))
    pages.storage.add_live_segment("1.2", segment_of(1, "caller", 1.0, 2.0, "life words"))
    pages.end_call("1.2")
    page = (await client.get("/calls/1.2")).text
    assert "<strong>Live text.</strong>" in page
    assert ">life</span>" in page
    assert "<audio" not in page
    path = wav_of(tmp_path / "a.wav", ramp(80000))
    words = [segment_of(2, "caller", 1.0, 2.0, "live words", source="recording")]
    pages.record("1.2", [Media("mixed", str(path))], words)
    page = (await client.get("/calls/1.2")).text
    assert "<strong>Live text.</strong>" not in page
    assert ">live</span>" in page
    assert ">life</span>" not in page
    assert "<audio" in page


async def test_all_calls_are_listed_a_page_at_a_time(
    client: httpx.AsyncClient, pages: Pages
) -> None:
    for number in range(60):
        pages.storage.add_unregistered_leg(f"0d9ef5e0-a8f5-4b4e-9f27-{number:012}", "d")
    first = (await client.get("/calls/")).text
    assert first.count("<bdi>0d9ef5e0") == 50
    older = first.split('rel="next" href="')[1].split('"')[0]
    second = (await client.get(older)).text
    assert second.count("<bdi>0d9ef5e0") == 10
    assert 'rel="next"' not in second


async def test_an_empty_lobby_says_how_to_get_a_call(client: httpx.AsyncClient) -> None:
    page = (await client.get("/lobby/")).text
    assert "callcore play samples/" in page
    assert "AudioSocket(" in page


# ---- probes


async def test_ready_says_what_is_missing(tmp_path: Path) -> None:
    pages = Pages(tmp_path, NOWHERE)
    async with pages.client() as client:
        assert (await client.get("/live")).json() == {"status": "live"}
        answer = await client.get("/ready")
        assert answer.status_code == 503
        (reason,) = answer.json()["reasons"]
        assert reason["part"] == "broker"
        assert "callcore broker" in reason["message"]
        assert answer.json()["error"]["code"] == "not-ready"
    pages.close()


@pytest.mark.redis
async def test_ready_needs_the_tables(tmp_path: Path, valkey: Valkey) -> None:
    pages = Pages(tmp_path, valkey.url)
    async with pages.client() as client:
        assert (await client.get("/ready")).json() == {"status": "ready"}
    pages.close()
    (tmp_path / "web.db").unlink()
    pages.storage = Storage(pages.settings.database_url)
    async with pages.client() as client:
        answer = await client.get("/ready")
        assert answer.status_code == 503
        assert "callcore migrate" in answer.json()["error"]["message"]
    pages.close()


async def test_slow_storage_does_not_stop_the_loop(
    client: httpx.AsyncClient, pages: Pages, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    entered, release = threading.Event(), threading.Event()

    def slow(*_: object) -> list[object]:
        entered.set()
        assert release.wait(10)
        return []

    monkeypatch.setattr(Storage, "live_calls", slow)
    request = asyncio.create_task(client.get("/api/calls/"))
    assert await asyncio.to_thread(entered.wait, 10)
    assert (await client.get("/live")).status_code == 200
    release.set()
    assert (await request).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/api/audio/?before=MDAwMS0wMS0wMVQwMDowMDowMCsxNDowMCB4",  # year 1, east of Greenwich
        "/api/audio/?before=MjAyNi0wMS0wMVQwMDowMDowMCswMDowMCAA",  # an id with a NUL
        "/api/calls/a%00b/",
    ],
)
async def test_what_no_database_can_look_for_is_a_bad_request(
    client: httpx.AsyncClient, path: str
) -> None:
    assert (await client.get(path)).status_code == 400
