import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest

from callcore import inference
from callcore.errors import EngineError, EngineNotLoaded
from callcore.inference import EngineSpec, InferenceProcess
from tests.support.recognition import wait_for

ECHO = EngineSpec("tests.support.recognition:Echo")
PATIENCE_S = 30.0


@pytest.fixture
def process():
    with InferenceProcess({"echo": ECHO}) as running:
        yield running


def result(future):
    return future.result(PATIENCE_S)


def gone(pid):
    """Wait until a process has ended and been reaped."""
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(pid).wait(PATIENCE_S)
    return not psutil.pid_exists(pid)


def test_a_call_runs_in_another_process(process):
    assert result(process.call("echo", "pid")) == process.pid != os.getpid()


def test_arrays_of_any_size_come_back_as_they_were(process):
    for num in (0, 1, 1000, 5_000_000):
        sent = np.arange(num, dtype=np.float32)
        got = result(process.call("echo", "same", [sent, "text", sent[:1]]))
        assert got[1] == "text"
        np.testing.assert_array_equal(got[0], sent)
        got[0][:1] = 7  # what comes back belongs to the caller


def test_hundreds_of_arrays_travel_in_one_message(process):
    sent = [np.full(3, i) for i in range(1500)]
    got = result(process.call("echo", "same", sent))
    assert [int(each[0]) for each in got] == list(range(1500))


def test_an_engine_error_comes_back_as_it_was(process):
    with pytest.raises(EngineError, match="engine echo: no") as caught:
        result(process.call("echo", "refuse"))
    assert caught.value.engine == "echo"


def test_an_error_of_another_kind_comes_back_without_its_text(process):
    with pytest.raises(EngineError) as caught:
        result(process.call("echo", "fail"))
    assert caught.value.message == "KeyError"


def test_an_engine_that_cannot_be_loaded_says_why_at_each_call(process):
    specs = {"broken": EngineSpec("tests.support.recognition:Broken"), "echo": ECHO}
    with InferenceProcess(specs) as running:
        for _ in range(2):
            with pytest.raises(EngineError, match="there is no model"):
                result(running.call("broken", "anything"))
        assert result(running.call("echo", "same", 1)) == 1
        assert running.restarts == 0


def test_an_engine_that_could_not_be_loaded_is_loaded_at_a_later_call(tmp_path):
    file = tmp_path / "model"
    specs = {"late": EngineSpec("tests.support.recognition:Late", {"file": str(file)})}
    with InferenceProcess(specs) as running:
        with pytest.raises(EngineNotLoaded, match="engine late: there is no model"):
            result(running.call("late", "same", 1))
        file.touch()
        assert result(running.call("late", "same", 1)) == 1
        assert result(running.call("late", "loaded")) == 1
        assert running.restarts == 0


def test_an_engine_that_is_not_there_is_an_error(process):
    with pytest.raises(EngineError, match="no such engine"):
        result(process.call("other", "same", 1))


def test_what_cannot_be_pickled_fails_its_own_call_only(process):
    with pytest.raises(EngineError, match="cannot be sent"):
        result(process.call("echo", "same", threading.Lock()))
    assert result(process.call("echo", "same", 1)) == 1


def test_options_reach_the_engine_and_attributes_come_back():
    spec = EngineSpec(ECHO.path, {"suffix": "!"})
    with InferenceProcess({"echo": spec}) as running:
        assert running.attributes("echo", "name", "suffix") == {"name": "echo", "suffix": "!"}


def test_equal_specs_share_one_engine_and_others_do_not():
    specs = {"one": ECHO, "two": EngineSpec(ECHO.path), "other": EngineSpec(ECHO.path, {}, 2)}
    with InferenceProcess(specs) as running:
        loads = [running.attributes(name, "loads")["loads"] for name in specs]
    assert loads[0] == loads[1] != loads[2]


def test_engines_have_their_own_threads_so_one_never_waits_for_another(process, tmp_path):
    gate = tmp_path / "gate"
    with InferenceProcess({"slow": ECHO, "quick": EngineSpec(ECHO.path, {"suffix": "2"})}) as both:
        waiting = both.call("slow", "wait", str(gate))
        assert result(both.call("quick", "same", 1)) == 1
        assert not waiting.done()
        gate.touch()
        assert result(waiting) == "done"


def test_an_engine_answers_as_many_calls_at_once_as_it_has_threads(tmp_path):
    with InferenceProcess({"echo": EngineSpec(ECHO.path, {}, 2)}) as running:
        first, second, gate = (tmp_path / name for name in ("first", "second", "gate"))
        calls = [running.call("echo", "wait", str(gate), str(each)) for each in (first, second)]
        wait_for(str(first))
        wait_for(str(second))
        gate.touch()
        assert [result(each) for each in calls] == ["done", "done"]


def test_a_stream_yields_items_while_the_generator_runs(process, tmp_path):
    gate = tmp_path / "gate"
    items = process.stream("echo", "count", 4, 2, str(gate))
    assert [next(items), next(items)] == [0, 1]
    gate.touch()
    assert list(items) == [2, 3]


def test_leaving_a_stream_stops_its_generator(process, tmp_path):
    told = tmp_path / "told"
    for item in process.stream("echo", "count_and_tell", str(told)):
        if item == 3:
            break
    wait_for(str(told))
    assert result(process.call("echo", "same", 1)) == 1


def test_a_stream_that_stalls_times_out_and_the_owner_can_kill_the_child(process, tmp_path):
    with pytest.raises(EngineError, match="no answer within"):
        list(process.stream("echo", "wait", str(tmp_path / "never"), timeout_s=0.05))
    before = process.pid
    process.kill()
    assert result(process.call("echo", "pid")) != before


def test_a_dead_child_fails_what_it_had_and_the_next_call_has_a_new_one(process, tmp_path):
    ready = tmp_path / "ready"
    waiting = process.call("echo", "wait", str(tmp_path / "never"), str(ready))
    wait_for(str(ready))
    before = process.pid
    os.kill(before, signal.SIGKILL)
    with pytest.raises(EngineError, match="died"):
        result(waiting)
    assert result(process.call("echo", "pid")) != before
    assert process.restarts == 1
    assert gone(before)


def test_a_stream_of_a_dead_child_fails(process, tmp_path):
    items = process.stream("echo", "count", 4, 2, str(tmp_path / "never"))
    assert next(items) == 0
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(EngineError, match="died"):
        list(items)


def test_every_call_ends_one_way_or_the_other_however_often_the_child_dies(process):
    def one(number):
        if number % 10 == 5:
            process.kill()
        try:
            return result(process.call("echo", "same", number)) == number
        except EngineError:
            return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(one, range(60)))


def test_without_restart_calls_fail_once_the_child_is_dead():
    with InferenceProcess({"echo": ECHO}, restart=False) as running:
        with pytest.raises(EngineError):
            result(running.call("echo", "die"))
        with pytest.raises(EngineError):
            result(running.call("echo", "same", 1))


def test_calls_wait_for_a_stopped_child_and_a_kill_frees_them(process):
    result(process.call("echo", "same", 1))
    os.kill(process.pid, signal.SIGSTOP)
    big = np.zeros(2_000_000)  # more than the socket holds: the call itself must not block
    calls = [process.call("echo", "same", big) for _ in range(3)]
    with pytest.raises(TimeoutError):
        calls[0].result(0.05)
    process.kill()
    for call in calls:
        with pytest.raises(EngineError):
            result(call)
    assert result(process.call("echo", "same", 1)) == 1


def test_closing_ends_the_child_leaves_no_zombie_and_may_be_repeated():
    running = InferenceProcess({"echo": ECHO})
    running.start()
    running.start()
    result(running.call("echo", "same", 1))
    pid = running.pid
    running.close()
    assert not psutil.pid_exists(pid)
    running.close()
    with pytest.raises(EngineError):
        result(running.call("echo", "same", 1))
    assert running.pid is None


def test_closing_fails_what_still_waits(tmp_path):
    running = InferenceProcess({"echo": ECHO})
    running.start()
    waiting = running.call("echo", "wait", str(tmp_path / "never"))
    running.close()
    with pytest.raises(EngineError):
        result(waiting)


def test_one_that_was_never_started_can_be_closed():
    running = InferenceProcess({"echo": ECHO})
    waiting = running.call("echo", "same", 1)
    running.close()
    with pytest.raises(EngineError):
        result(waiting)


def test_a_stopped_child_can_be_closed():
    running = InferenceProcess({"echo": ECHO})
    running.start()
    result(running.call("echo", "same", 1))
    pid = running.pid
    os.kill(pid, signal.SIGSTOP)
    running.close()
    assert not psutil.pid_exists(pid)


def test_ctrl_c_does_not_reach_the_child(process):
    pid = result(process.call("echo", "pid"))
    os.kill(pid, signal.SIGINT)
    os.kill(pid, signal.SIGTERM)
    assert result(process.call("echo", "pid")) == pid


def test_a_child_can_be_nicer_than_its_parent():
    with InferenceProcess({"echo": ECHO}, nice=3) as running:
        assert result(running.call("echo", "niceness")) == min(os.nice(0) + 3, 19)


async def test_asyncio_waits_for_a_call(process):
    async with asyncio.timeout(PATIENCE_S):
        assert await asyncio.wrap_future(process.call("echo", "same", 5)) == 5


async def test_a_cancelled_wait_does_no_harm(process, tmp_path):
    gate = tmp_path / "gate"
    task = asyncio.ensure_future(
        asyncio.wrap_future(process.call("echo", "wait", str(gate), str(tmp_path / "ready")))
    )
    await asyncio.to_thread(wait_for, str(tmp_path / "ready"))
    task.cancel()
    gate.touch()
    async with asyncio.timeout(PATIENCE_S):
        assert await asyncio.wrap_future(process.call("echo", "same", 1)) == 1


def test_the_child_dies_with_its_parent_even_in_the_middle_of_a_call(tmp_path):
    ready = tmp_path / "ready"
    program = (
        "import sys, os, signal\n"
        "from callcore.inference import EngineSpec, InferenceProcess\n"
        "from tests.support.recognition import wait_for\n"
        "p = InferenceProcess({'echo': EngineSpec('tests.support.recognition:Echo')})\n"
        "p.start()\n"
        f"p.call('echo', 'wait', {str(tmp_path / 'never')!r}, {str(ready)!r})\n"
        f"wait_for({str(ready)!r})\n"
        "print(p.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, cwd=root, timeout=PATIENCE_S
    )
    child = int(done.stdout)
    until = time.monotonic() + PATIENCE_S
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until
        threading.Event().wait(0.01)


def test_a_moment_without_free_descriptors_is_survived(monkeypatch):
    """A failing socketpair once ended the supervisor: no child came again, and callers hung."""
    refused = threading.Event()
    pair = socket.socketpair

    def refuse_once():
        if not refused.is_set():
            refused.set()
            raise OSError(24, "Too many open files")
        return pair()

    with InferenceProcess({"echo": ECHO}) as process:
        assert result(process.call("echo", "same", 1)) == 1
        monkeypatch.setattr(inference.socket, "socketpair", refuse_once)
        process.kill()
        assert result(process.call("echo", "same", 2)) == 2
        assert refused.is_set()


def test_closing_while_the_next_child_starts_does_not_hang(monkeypatch):
    starting, go_on = threading.Event(), threading.Event()
    start = inference._start_child

    def start_slowly():
        starting.set()
        go_on.wait(PATIENCE_S)
        return start()

    process = InferenceProcess({"echo": ECHO})
    process.start()
    assert result(process.call("echo", "same", 1)) == 1
    monkeypatch.setattr(inference, "_start_child", start_slowly)
    process.kill()
    assert starting.wait(PATIENCE_S)
    closing = threading.Thread(target=process.close)
    closing.start()
    go_on.set()
    closing.join(PATIENCE_S)
    assert not closing.is_alive()
