import contextlib
import logging
import os
import re
import signal
import socket
import struct
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import av
import numpy as np
import psutil
import pytest

from callcore import audio, audio_reading, intake
from callcore.audio import WavWriter, wav_header
from callcore.audio_child import Limits
from callcore.calls import CallFacts, Media, RecordingState, now
from callcore.errors import AudioError, InvalidRecording
from callcore.storage import Storage
from tests.support import bombs
from tests.support.databases import Clock, clock, database_url, storage
from tests.support.recordings import Works, make_settings
from tests.test_audio import encode_file, tone
from tests.test_raw_audio import gsm

__all__ = ["clock", "database_url", "storage"]

#: What a child may have in use, at most, in MB (issue "Post-call").
MOST_MB = 512


@pytest.fixture(autouse=True, scope="module")
def _no_reader_stays() -> Iterator[None]:
    yield
    audio_reading.close()
    assert not _descendants()


def _descendants() -> list[psutil.Process]:
    """Return the processes that read files for this one."""
    found = []
    for each in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "callcore.audio_child" in each.cmdline():
                found.append(each)
    return found


def _reader(path: Path) -> psutil.Process:
    """Return the child that has ``path`` open; it waits until more is taken of it."""
    for each in _descendants():
        with contextlib.suppress(psutil.NoSuchProcess):
            if any(os.path.samefile(file.path, path) for file in each.open_files()):
                return each
    raise AssertionError("nobody reads the file")


def write_wav(path: Path, seconds: float = 1.0, num_channels: int = 1) -> Path:
    samples = tone(8000, seconds)
    with WavWriter(path, 8000, num_channels) as out:
        out.write(np.repeat(samples, num_channels).tobytes())
    return path


@pytest.fixture(scope="module")
def long_wav(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of which a child has much to give after the first block."""
    return write_wav(tmp_path_factory.mktemp("long") / "a.wav", 300.0)


@pytest.mark.parametrize(
    ("name", "codec", "fmt"),
    [
        ("a.wav", "pcm_s16le", "s16"),
        ("a.flac", "flac", "s16"),
        ("a.mp3", "libmp3lame", "s16p"),
        ("a.ogg", "libopus", "s16"),
        ("a.opus", "libopus", "s16"),
        ("a.m4a", "aac", "fltp"),
    ],
)
def test_a_child_reads_what_this_process_would(tmp_path: Path, name: str, codec: str, fmt: str):
    path = encode_file(tmp_path / name, codec, tone(48000, 3.0), 48000, fmt)
    assert audio_reading.probe(path) == audio.probe(path)
    ours, theirs = (
        list(audio.decode(path, 16000, 0.7)),
        list(audio_reading.decode(path, 16000, 0.7)),
    )
    assert [each.shape for each in theirs] == [each.shape for each in ours]
    assert np.array_equal(np.concatenate(theirs), np.concatenate(ours))
    assert theirs[0].dtype == np.float32


def test_channels_stay_apart(tmp_path: Path):
    left, right = tone(8000, 1.0, 300), tone(8000, 1.0, 1000)
    with WavWriter(tmp_path / "a.wav", 8000, 2) as out:
        out.write(np.stack([left, right], axis=1).tobytes())
    (block,) = audio_reading.decode(tmp_path / "a.wav", 8000)
    assert np.abs(block * 32768 - np.stack([left, right], axis=1)).max() < 1


def test_the_extension_that_is_given_tells_of_a_file_without_a_header(tmp_path: Path):
    path = tmp_path / "copy.part"
    path.write_bytes(tone(8000, 1.0).tobytes())
    assert audio_reading.probe(path, "sln").duration_s == 1.0
    assert sum(map(len, audio_reading.decode(path, 8000, extension="sln"))) == 8000


def test_one_process_serves_many_files_and_threads(tmp_path: Path):
    paths = [write_wav(tmp_path / f"{n}.wav", 0.1 * (n + 1)) for n in range(8)]
    audio_reading.probe(paths[0])
    warm = [each.pid for each in _descendants()]
    got: dict[int, float] = {}

    def read(number: int) -> None:
        for _ in range(5):
            blocks = audio_reading.decode(paths[number], 8000)
            got[number] = sum(map(len, blocks)) / 8000
            assert audio_reading.probe(paths[number]).duration_s == pytest.approx(got[number])

    threads = [threading.Thread(target=read, args=(n,)) for n in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert got == {n: pytest.approx(0.1 * (n + 1)) for n in range(8)}
    assert warm[0] in [each.pid for each in _descendants()]


def test_a_reader_waits_while_nobody_takes_blocks_and_ends_when_nobody_will(long_wav: Path):
    blocks = audio_reading.decode(long_wav, 16000, 1.0)
    next(blocks)
    reader = _reader(long_wav)
    assert reader.nice() == 10
    blocks.close()
    reader.wait(30)


def test_a_child_can_open_nothing_else(long_wav: Path):
    blocks = audio_reading.decode(long_wav, 16000, 1.0)
    next(blocks)
    reader = _reader(long_wav)
    assert reader.rlimit(psutil.RLIMIT_NOFILE) == (0, 0)
    assert reader.rlimit(psutil.RLIMIT_FSIZE) == (0, 0)
    assert reader.rlimit(psutil.RLIMIT_CORE) == (0, 0)
    assert reader.rlimit(psutil.RLIMIT_AS)[1] < (MOST_MB + 200) << 20
    assert "NoNewPrivs:\t1" in Path(f"/proc/{reader.pid}/status").read_text()
    held = [os.readlink(each.path) for each in os.scandir(f"/proc/{reader.pid}/fd")]
    assert sorted(each.split(":")[0] for each in held[3:]) == sorted([str(long_wav), "socket"])
    blocks.close()


# ---- bombs


@pytest.mark.parametrize("name", bombs.BOMBS)
def test_a_bomb_is_refused_with_its_reason_and_the_next_file_is_read(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
):
    content, reason = bombs.BOMBS[name]
    path = tmp_path / name
    path.write_bytes(content())
    caplog.set_level(logging.DEBUG, "callcore.audio_reading")
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(InvalidRecording, match=reason):
        audio_reading.probe(path)
    assert sorted(os.listdir(tmp_path)) == before
    (spent,) = (each for each in caplog.records if each.message == "file read")
    assert spent.rss_mb <= MOST_MB
    # CPU time, not the clock: an answer within seconds on a machine that has nothing else to do.
    assert spent.cpu_ms <= 7_000
    assert audio_reading.probe(write_wav(tmp_path / "next.wav")).duration_s == 1.0


def test_a_header_that_says_less_than_the_file_plays_is_found_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    path = tmp_path / "a.flac"
    path.write_bytes(bombs.silent_flac(5, says_s=1.0, block=32_768))
    caplog.set_level(logging.DEBUG, "callcore.audio_reading")
    assert audio_reading.probe(path).duration_s == 1.0
    with pytest.raises(InvalidRecording, match="plays for more than 4"):
        for _ in audio_reading.decode(path, 8000):
            pass
    assert max(each.rss_mb for each in caplog.records if each.message == "file read") <= MOST_MB


def test_more_than_twelve_hours_are_refused_whatever_their_size(tmp_path: Path):
    path = tmp_path / "a.wav"
    seconds = 12 * 3600 + 1
    path.write_bytes(wav_header(8000, 1, seconds * 16_000))
    os.truncate(path, 44 + seconds * 16_000)  # a sparse file: it takes no room
    with pytest.raises(InvalidRecording, match="more than 12 hours"):
        audio_reading.probe(path)


def test_a_wav_that_says_4_gb_is_read_as_far_as_it_goes(tmp_path: Path):
    path = tmp_path / "a.wav"
    path.write_bytes(wav_header(8000, 1, 4_000_000_000) + bytes(1_000_000))
    assert not audio_reading.probe(path).complete
    assert sum(map(len, audio_reading.decode(path, 8000))) == 500_000


def test_no_playlist_is_followed(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        for name, content in bombs.playlists(tmp_path, server.getsockname()[1]).items():
            for extension in ("wav", "m3u8", "mp3", "sln"):
                path = tmp_path / f"{name}.{extension}"
                path.write_bytes(content)
                for read in (audio_reading.probe, audio.probe):
                    with pytest.raises(InvalidRecording):
                        read(path)
        with pytest.raises(BlockingIOError):
            server.accept()


WHOLE = {
    "wav": ("pcm_s16le", "s16"),
    "flac": ("flac", "s16"),
    "mp3": ("libmp3lame", "s16p"),
    "ogg": ("libopus", "s16"),
    "m4a": ("aac", "fltp"),
}


@pytest.mark.parametrize("extension", WHOLE)
def test_a_file_cut_off_anywhere_gives_what_there_is_or_a_reason(tmp_path: Path, extension: str):
    codec, fmt = WHOLE[extension]
    path = encode_file(tmp_path / f"a.{extension}", codec, tone(16000, 4.0), 16000, fmt)
    content = path.read_bytes()
    for size in (1, 3, 4, 11, 20, 43, 44, 45, 100, *(len(content) * n // 8 for n in range(1, 8))):
        path.write_bytes(content[:size])
        try:
            num_samples = sum(map(len, audio_reading.decode(path, 16000)))
        except InvalidRecording:
            continue
        assert 0 < num_samples <= 4.2 * 16000


@pytest.mark.parametrize("extension", WHOLE)
def test_garbage_in_the_middle_loses_no_more_than_itself(tmp_path: Path, extension: str):
    codec, fmt = WHOLE[extension]
    path = encode_file(tmp_path / f"a.{extension}", codec, tone(16000, 20.0), 16000, fmt)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 500] = np.random.default_rng(1).bytes(500)
    path.write_bytes(content)
    assert sum(map(len, audio_reading.decode(path, 16000))) > 15 * 16000


def test_an_mp3_that_changes_from_stereo_to_mono_keeps_its_channels(tmp_path: Path):
    parts = []
    for layout in ("stereo", "mono"):
        path = tmp_path / f"{layout}.mp3"
        with av.open(str(path), "w") as out:
            stream = out.add_stream("libmp3lame", rate=16000, layout=layout)
            samples = np.repeat(tone(16000, 2.0), 1 + (layout == "stereo")).reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(samples, "s16", layout)
            frame.sample_rate = 16000
            for part in av.AudioResampler("s16p", layout, 16000).resample(frame):
                out.mux(stream.encode(part))
            out.mux(stream.encode(None))
        parts.append(path.read_bytes())
    both = tmp_path / "both.mp3"
    both.write_bytes(b"".join(parts))
    blocks = list(audio_reading.decode(both, 16000, 1.0))
    assert {each.shape[1] for each in blocks} == {2}
    assert sum(map(len, blocks)) == pytest.approx(4 * 16000, rel=0.1)


def test_samples_that_are_no_numbers_become_silence(tmp_path: Path):
    path = tmp_path / "a.wav"
    samples = np.array([np.nan, np.inf, -np.inf, 1e30, 0.5] * 1000, "<f4")
    header = bytearray(wav_header(8000, 1, samples.nbytes))
    header[20:22], header[28:36] = b"\3\0", b"\0\x7d\0\0\4\0\x20\0"  # floats of 32 bits
    path.write_bytes(bytes(header) + samples.tobytes())
    (block,) = audio_reading.decode(path, 8000)
    assert block[:5, 0].tolist() == [0.0, 1.0, -1.0, 1.0, 0.5]


# ---- settling


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_recordings_of_every_format_are_settled_under_their_own_names(
    storage: Storage, clock: Clock, tmp_path: Path
):
    clock.moment = now() + timedelta(hours=1)  # files have the time stamps of the machine
    works = Works(storage, make_settings(tmp_path / "state"))
    spool = tmp_path / "spool"
    spool.mkdir()
    for name, content in {
        "1700000001.1.WAV": gsm_wav(3.0),
        "1700000002.1.sln": tone(8000, 2.0).tobytes(),
        "1700000003.1.sln16": tone(16000, 2.0).tobytes(),
        "1700000004.1.gsm": gsm(tone(8000, 2.0)),
    }.items():
        (spool / name).write_bytes(content)
    for name, codec, fmt in (
        ("1700000005.1.mp3", "libmp3lame", "s16p"),
        ("1700000006.1.ogg", "libopus", "s16"),
        ("1700000007.1.flac", "flac", "s16"),
    ):
        encode_file(spool / name, codec, tone(48000, 2.0), 48000, fmt)
    for path in sorted(spool.iterdir()):
        media = [Media("mixed", str(path))]
        intake.accept_recording(storage, works.settings, CallFacts(), "spool", media)
    works.run()
    formats = [name.rpartition(".")[2] for name in works.files()]
    assert sorted(formats) == sorted(["wav", "sln", "sln16", "gsm", "mp3", "ogg", "flac"])
    for name in works.files():
        path = works.settings.audio_dir / name
        assert sum(map(len, audio_reading.decode(path, 16000))) == pytest.approx(
            audio_reading.probe(path).duration_s * 16000, rel=0.05
        )


def gsm_wav(seconds: float) -> bytes:
    """Return silence as Asterisk's wav49: GSM in WAV, 65 bytes for 320 samples."""
    blocks = bytes(65) * round(seconds * 25)
    described = struct.pack("<HHIIHHHH", 0x31, 1, 8000, 1625, 65, 0, 2, 320)
    fact = struct.pack("<4sII", b"fact", 4, round(seconds * 8000))
    body = b"WAVEfmt " + struct.pack("<I", len(described)) + described + fact
    body += b"data" + struct.pack("<I", len(blocks)) + blocks
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize("name", ["zip.wav", "10 hours of silence.flac"])
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_bomb_is_refused_by_settle_with_the_disk_as_before(
    storage: Storage, clock: Clock, tmp_path: Path, name: str
):
    clock.moment = now() + timedelta(hours=1)
    works = Works(storage, make_settings(tmp_path / "state"))
    path = tmp_path / name
    path.write_bytes(bombs.BOMBS[name][0]())
    media = [Media("mixed", str(path))]
    accepted = intake.accept_recording(storage, works.settings, CallFacts(), "spool", media)
    works.run()
    recording = storage.recording(accepted.audio_id)
    assert recording.state is RecordingState.REFUSED
    assert re.search(bombs.BOMBS[name][1], recording.reason or "")
    assert works.files() == []


# ---- limits and deaths


def test_a_file_that_needs_too_much_memory_is_refused(
    long_wav: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(audio_reading, "_LIMITS", Limits(memory_bytes=1 << 20))
    with pytest.raises(InvalidRecording, match="1 MB of memory"):
        next(audio_reading.decode(long_wav, 20_000_000))  # a frame becomes 20 MB


def test_a_file_that_takes_too_long_for_its_audio_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "a.ogg"
    path.write_bytes(bombs.silent_opus(4))
    monkeypatch.setattr(audio_reading, "_LIMITS", Limits(cpu_s=1, audio_per_cpu_s=100_000))
    with pytest.raises(InvalidRecording, match="more time than its audio can need"):
        for _ in audio_reading.decode(path, 16000):
            pass


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS])
def test_a_crash_is_the_file_s_fault(long_wav: Path, number: signal.Signals):
    blocks = audio_reading.decode(long_wav, 16000, 1.0)
    next(blocks)
    _reader(long_wav).send_signal(number)
    with pytest.raises(InvalidRecording, match="crash"):
        list(blocks)


def test_being_killed_from_outside_is_not_the_file_s_fault(long_wav: Path):
    blocks = audio_reading.decode(long_wav, 16000, 1.0)
    next(blocks)
    _reader(long_wav).kill()
    with pytest.raises(AudioError, match="killed") as error:
        list(blocks)
    assert not isinstance(error.value, InvalidRecording)
    assert sum(map(len, audio_reading.decode(long_wav, 8000))) == 300 * 8000


def test_the_process_that_forks_may_die_at_any_moment(long_wav: Path):
    blocks = audio_reading.decode(long_wav, 16000, 1.0)
    next(blocks)
    reader = _reader(long_wav)
    parent = reader.parent()
    assert parent is not None
    parent.kill()
    reader.wait(30)
    with pytest.raises(AudioError, match="lost") as error:
        list(blocks)
    assert not isinstance(error.value, InvalidRecording)
    assert audio_reading.probe(long_wav).duration_s == 300.0


def test_an_error_that_nobody_foresaw_is_named_in_the_log(
    long_wav: Path, caplog: pytest.LogCaptureFixture
):
    with pytest.raises(InvalidRecording, match="nonsense"):
        next(audio_reading.decode(long_wav, -1))
    (warned,) = (each for each in caplog.records if each.levelname == "WARNING")
    assert re.fullmatch(r"\w+ at [\w.]+:\d+", warned.error)


def test_a_child_that_does_not_answer_is_given_up(long_wav: Path, monkeypatch: pytest.MonkeyPatch):
    blocks = audio_reading.decode(long_wav, 16000, 1.0)
    next(blocks)
    reader = _reader(long_wav)
    reader.suspend()
    monkeypatch.setattr(audio_reading, "SILENCE_S", 0.2)
    with pytest.raises(AudioError, match="has not answered"):
        list(blocks)
    reader.wait(30)


def test_a_file_that_is_away_is_an_error_of_the_system(tmp_path: Path):
    for read in (audio_reading.probe, lambda path: next(audio_reading.decode(path, 8000))):
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "none.wav")


def test_a_file_that_cannot_be_read_is_an_error_of_the_system(tmp_path: Path):
    with pytest.raises(IsADirectoryError):
        audio_reading.probe(tmp_path)


def test_a_forked_process_starts_a_reader_of_its_own(long_wav: Path):
    audio_reading.probe(long_wav)
    (ours,) = [each.pid for each in _descendants()]
    pid = os.fork()
    if not pid:
        code = 1
        with contextlib.suppress(BaseException):
            same = audio_reading.probe(long_wav).duration_s == 300.0
            others = [each.pid for each in _descendants()]
            audio_reading.close()
            code = 0 if same and others and ours not in others else 1
        os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    assert [each.pid for each in _descendants()] == [ours]
    assert audio_reading.probe(long_wav).duration_s == 300.0
