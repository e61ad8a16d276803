"""Workers: they answer, they fail one at a time, and none stays behind."""

import os
import pathlib
import signal
import subprocess
import sys
import time
from importlib.util import find_spec

import pytest

from agreement.conftest import TARGET
from multibackend_lstm.agreement import Workers
from multibackend_lstm.runtimes.targets import Target
from multibackend_lstm.runtimes.workers import Worker, WorkerError

ROOT = pathlib.Path(__file__).parents[2]
BACKEND = TARGET.partition("@")[0]


def call(worker, function, **arguments):
    header = {"do": "call", "function": f"agreement.cases:{function}"}
    return worker.request({**header, "arguments": arguments}, {}, "called")


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie of a parent that has ended is dead too.
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] != "Z"


def wait_until_dead(pid, seconds=20.0):
    end = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.1)
    return not alive(pid)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("theano@cpu", "backend@device"),
        ("torch@tpu", "backend@device"),
        ("", "backend@device"),
    ],
)
def test_unknown_targets_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        Target.parse(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"targets": [TARGET, TARGET]}, "twice"),
        ({"precision": "sloppy"}, "strict or default"),
        ({"timeout": 0}, "above 0"),
        ({"interpreters": {"theano": "python"}}, "theano"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Workers(**arguments)


def test_a_target_alone_is_on_the_cpu():
    assert str(Target.parse("jax")) == "jax@cpu"


def test_a_worker_tells_where_it_computes(workers):
    ready = workers.worker(TARGET, Target.parse(TARGET)).ready
    assert ready["ready"] == BACKEND
    assert "cpu" in ready["device"].lower()
    assert ready["set_switches"]  # strict precision is the default
    assert ready["float64"] == (BACKEND == "tensorflow")
    assert ready["versions"]["keras"]


def test_a_hanging_worker_is_stopped_in_time_and_started_anew():
    with Workers([TARGET], timeout=60) as workers:
        worker = workers.worker(TARGET, Target.parse(TARGET))
        worker.timeout = 0.5
        start = time.monotonic()
        with pytest.raises(WorkerError, match=r"no answer within 0.5 s"):
            call(worker, "sleep", seconds=600)
        assert time.monotonic() - start < 10
        assert not alive(worker._process.pid)
        again = workers.worker(TARGET, Target.parse(TARGET))
        assert again is not worker
        call(again, "sleep", seconds=0)
        # One that ends tells its status and its last words.
        with pytest.raises(WorkerError, match=r"(?s)ended with status 7.*the last words"):
            call(again, "end", status=7)
        assert not again.alive


def test_an_error_leaves_the_worker_usable(workers):
    worker = workers.worker(TARGET, Target.parse(TARGET))
    with pytest.raises(WorkerError, match=r"CaseError.*nothing_like_it"):
        call(worker, "nothing_like_it")
    call(worker, "sleep", seconds=0)


def test_a_python_that_is_none_is_named(tmp_path):
    with pytest.raises(WorkerError, match="does not run"):
        Worker(Target.parse(TARGET), str(tmp_path / "python"), "strict", 60)


def test_jax_is_left_to_its_own_backend_and_to_models(workers):
    worker = workers.worker(TARGET, Target.parse(TARGET))
    assert call(worker, "imported", name="jax")[0]["called"] == (BACKEND == "jax")
    assert call(worker, "installed", name="jax")[0]["called"] == (find_spec("jax") is not None)


def test_a_gpu_that_is_not_there_is_named():
    if os.path.exists("/dev/nvidiactl"):
        pytest.skip("there may be a GPU here")
    with Workers([f"{BACKEND}@gpu"], timeout=120) as workers:
        for _ in range(2):  # the second time from memory
            with pytest.raises(WorkerError, match=r"does not start.*gpu"):
                workers.worker(f"{BACKEND}@gpu", Target(BACKEND, "gpu"))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_worker_outlives_its_parent(number):
    """A parent that is killed cannot end its workers: they notice, though they compute."""
    code = (
        "import sys, time\n"
        "from multibackend_lstm.runtimes.workers import Target, Worker\n"
        f"worker = Worker(Target.parse({TARGET!r}), None, 'strict', 600)\n"
        "worker.ask({'do': 'call', 'function': 'time:sleep', 'arguments': {}}, {})\n"
        "print(worker._process.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    with parent:
        pid = int(parent.stdout.readline())
        assert alive(pid)
        parent.send_signal(number)
    assert wait_until_dead(pid)


def test_ctrl_c_ends_the_workers():
    code = (
        "from multibackend_lstm.runtimes.workers import Target, Workers\n"
        f"with Workers([{TARGET!r}]) as workers:\n"
        f"    worker = workers.worker({TARGET!r}, Target.parse({TARGET!r}))\n"
        "    print(worker._process.pid, flush=True)\n"
        "    header = {'do': 'call', 'function': 'agreement.cases:sleep'}\n"
        "    worker.request({**header, 'arguments': {'seconds': 600}}, {}, 'called')\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests")))},
    )
    with parent:
        pid = int(parent.stdout.readline())
        time.sleep(0.5)
        parent.send_signal(signal.SIGINT)
    assert wait_until_dead(pid)
