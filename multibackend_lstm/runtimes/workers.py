"""The parent's side of the runtimes: one long-lived process for each target."""

import contextlib
import copy
import json
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

import multibackend_lstm
from multibackend_lstm import environment
from multibackend_lstm.runtimes.messages import receive, send
from multibackend_lstm.runtimes.targets import Target, check_interpreters

#: The name of the worker that the targets are compared with.
REFERENCE = "reference"

Message = tuple[dict[str, Any], dict[str, np.ndarray]]


class WorkerError(environment.CouldNotRunError):
    """A worker could not do what it was asked; the message says what happened.

    Attributes:
        refusal: what is at fault wherever it runs, in words for a user; None for the worker's own.
    """

    def __init__(self, message: str, refusal: str | None = None) -> None:
        super().__init__(message)
        self.refusal = refusal


class Worker:
    """A process that computes on one target.

    Args:
        target: what to compute on.
        interpreter: the Python to run; this one by default.
        precision: `"strict"` or `"default"`.
        timeout: seconds that any single answer may take.
        trust: whether functions stored in the target's file may run.
        runtime: module and class to serve, if it is not that of the target.

    Raises:
        WorkerError: if it does not start.
    """

    def __init__(
        self,
        target: Target,
        interpreter: str | None,
        precision: str,
        timeout: float,
        trust: bool = False,
        runtime: str | None = None,
    ) -> None:
        """Start the process and wait until its backend is up."""
        self.target = target
        self.timeout = timeout
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the worker
        self._links = tempfile.TemporaryDirectory()
        options = {
            "file": target.file,
            "kind": target.kind,
            "precision": precision,
            "trust": trust,
        }
        command = [
            interpreter or sys.executable, "-m", "multibackend_lstm.runtimes.serve",
            runtime or target.runtime, json.dumps(options),
        ]  # fmt: skip
        try:
            self._process: subprocess.Popen[bytes] = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env=self._environment(interpreter),
                # Ctrl-C is for the parent, which then ends its workers.
                start_new_session=True,
            )
        except OSError as error:
            self._errors.close()
            self._links.cleanup()
            raise WorkerError(f"{command[0]} does not run: {error}") from None
        self._answers: queue.Queue[Message | None] = queue.Queue(maxsize=2)
        self._closed = False
        threading.Thread(target=self._read, daemon=True).start()
        self._deadline = time.monotonic() + timeout
        try:
            self.ready, _ = self._receive()
        except WorkerError:
            self.close()
            raise

    def _environment(self, interpreter: str | None) -> dict[str, str]:
        variables = {"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ}
        if self.target.is_keras:
            variables["KERAS_BACKEND"] = self.target.backend
        elif interpreter is None and find_spec("tensorflow") is not None:
            variables["KERAS_BACKEND"] = "tensorflow"  # what old files were written for
        package = Path(multibackend_lstm.__file__).parent
        if interpreter and Path(interpreter).absolute() != Path(sys.executable).absolute():
            # This package alone, not what is installed beside it for this Python.
            link = Path(self._links.name, package.name)
            link.symlink_to(package)
            package = link
        paths = [str(package.parent), os.getcwd(), *_own_paths()]
        old = variables.get("PYTHONPATH")
        variables["PYTHONPATH"] = os.pathsep.join([*paths, *([old] if old else [])])
        if self.target.kind == "cpu":
            variables |= {"CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}
        return variables

    def _read(self) -> None:
        """Hand over answers; at most two wait, so that a worker does not run far ahead."""
        stdout = self._process.stdout
        assert stdout is not None
        try:
            with contextlib.suppress(EOFError, ValueError, OSError):
                while True:
                    self._put(receive(stdout))
        finally:
            self._put(None)

    def _put(self, message: Message | None) -> None:
        while not self._closed:
            with contextlib.suppress(queue.Full):
                self._answers.put(message, timeout=1)
                return

    def ask(self, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        """Send a request. Answers come from `answers()`."""
        assert self._process.stdin is not None
        self._deadline = time.monotonic() + self.timeout
        # A process that has ended says why when its answer is awaited.
        with contextlib.suppress(BrokenPipeError):
            send(self._process.stdin, header, arrays)

    def answers(self, last: str) -> Iterator[Message]:
        """The answers to a request, up to the one whose header has the key `last`.

        Raises:
            WorkerError: if it answers with an error, ends, or takes longer than the timeout.
        """
        while True:
            message = self._receive()
            yield message
            if last in message[0]:
                return
            self._deadline = time.monotonic() + self.timeout

    def request(
        self, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray], last: str
    ) -> Message:
        """Send a request that has one answer, and wait for it."""
        self.ask(header, arrays)
        return list(self.answers(last))[-1]

    def _receive(self) -> Message:
        try:
            message = self._answers.get(timeout=max(self._deadline - time.monotonic(), 0.01))
        except queue.Empty:
            lines = self._last_lines()
            self.close()
            raise WorkerError(
                f"no answer within {self.timeout:g} s, so that it was stopped.{lines}"
            ) from None
        if message is None:
            try:
                status = self._process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                self.close()
                raise WorkerError("the process gave an answer that cannot be read") from None
            text = f"ended with status {status}" if status >= 0 else _signal_name(-status)
            lines = self._last_lines()
            self.close()
            raise WorkerError(f"the process {text}.{lines}")
        if "error" in message[0]:
            raise WorkerError(message[0]["error"], message[0].get("refusal"))
        return message

    def _last_lines(self) -> str:
        if self._closed:
            return ""
        self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(self._errors.tell() - 4000, 0))
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return "\n".join(["", *lines[-5:]]) if lines else " It wrote nothing."

    @property
    def alive(self) -> bool:
        """Whether it can serve another request."""
        return not self._closed and self._process.poll() is None

    def close(self) -> None:
        """End the process."""
        self._closed = True
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        self._errors.close()
        self._links.cleanup()


def _signal_name(number: int) -> str:
    """What a signal's number says to a reader."""
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = str(number)
    hint = " (perhaps out of memory)" if name == "SIGKILL" else ""
    return f"was ended by signal {name}{hint}"


def _own_paths() -> list[str]:
    """Folders that this process imports from and that belong to no installation of Python."""
    installed = re.compile(r"site-packages|dist-packages")
    roots = tuple(
        str(Path(root).resolve()) for root in {sys.prefix, sys.base_prefix, sys.exec_prefix}
    )
    paths = [str(Path(path).resolve()) for path in sys.path if path and Path(path).is_dir()]
    package = str(Path(multibackend_lstm.__file__).parents[1])
    return [
        path
        for path in dict.fromkeys(paths)
        if path != package and not installed.search(path) and not path.startswith(roots)
    ]


class Workers:
    """The worker processes of several targets, started when first needed and then kept.

    Use it as a context manager, so that no process stays behind.

    Example:
        >>> with agreement.Workers(["torch@cpu"]) as workers:  # one start for many models
        ...     first = agreement.check(model, workers=workers, steps=None)
        ...     second = agreement.check(model, workers=workers, steps=None, seed=1)
        >>> first.agrees and second.agrees
        True

    Args:
        targets: such as `["torch@cpu", "jax@cpu#next", "onnxruntime:model.onnx"]`, or `Target`s;
            by default every installed backend on every kind of device it has.
        interpreters: another Python for a backend or runtime, such as `{"torch": "/path/python"}`;
            for a target with a label by that, `{"jax#next": "/path/python"}`.
        precision: `"strict"` turns off what computes float32 in less than float32.
        timeout: seconds that an answer of a worker may take.
        trust: whether functions stored in the files of targets may run.

    Raises:
        ValueError: if a target is unknown.
        MissingBackendError: if no targets are named and no backend is installed.
    """

    def __init__(
        self,
        targets: Sequence[str | Target] | None = None,
        *,
        interpreters: Mapping[str, str] | None = None,
        precision: str = "strict",
        timeout: float = 300.0,
        trust: bool = False,
    ) -> None:
        """Start nothing yet."""
        if precision not in ("strict", "default"):
            raise ValueError(f"`precision` must be strict or default. Received {precision!r}.")
        if not timeout > 0:
            raise ValueError(f"`timeout` must be above 0 seconds. Received {timeout}.")
        self.interpreters = dict(interpreters or {})
        check_interpreters(self.interpreters)
        self.precision = precision
        self.timeout = timeout
        self._trust = trust
        # By name and target: the reference is another one where the first target is left out.
        self._workers: dict[tuple[str, Target], Worker] = {}
        self._failures: dict[tuple[str, Target], str] = {}
        self.targets = self._parsed(targets) if targets else self._default_targets()
        doubled = {str(t) for t in self.targets if self.targets.count(t) > 1}
        if doubled:
            raise ValueError(f"each target may be named once. Received {', '.join(doubled)} twice.")

    def _parsed(self, targets: Sequence[str | Target]) -> list[Target]:
        parsed = [t if isinstance(t, Target) else Target.parse(t) for t in targets]
        for target in parsed:
            if target.label and target.interpreter(self.interpreters) is None:
                raise ValueError(
                    f"the target {target} has a label, which stands for another Python, and "
                    f"`interpreters` has none for it. Add {target.backend}#{target.label}=PYTHON."
                )
        return parsed

    def _default_targets(self) -> list[Target]:
        names = {*environment.installed_backends(), *self.interpreters} & {*environment.BACKENDS}
        if not names:
            raise environment.MissingBackendError(
                f"no backend is installed: {environment.install_command('all')}, or name another "
                "Python for one."
            )
        targets = []
        for name in [name for name in environment.BACKENDS if name in names]:
            targets.append(Target(name, "cpu"))
            if _may_have_gpu():
                gpu = Target(name, "gpu")
                with contextlib.suppress(WorkerError):
                    self.worker(str(gpu), gpu)
                    targets.append(gpu)
        return targets

    def worker(self, name: str, target: Target) -> Worker:
        """The worker of a name, started if there is none; one that has failed is started anew.

        Raises:
            WorkerError: if it does not start.
        """
        key = (name, target)
        worker = self._workers.get(key)
        if worker is None or not worker.alive:
            if key in self._failures:  # it has never started
                raise WorkerError(self._failures[key])
            interpreter = target.interpreter(self.interpreters)
            try:
                worker = Worker(target, interpreter, self.precision, self.timeout, self._trust)
            except WorkerError as error:
                self._failures[key] = f"does not start: {error}"
                raise WorkerError(self._failures[key]) from None
            self._workers[key] = worker
        return worker

    @property
    def reference(self) -> Target:
        """Where the truth is computed: in float64 if TensorFlow can be had, else a first target.

        In Keras 3.15 the TensorFlow backend alone computes in float64; its worker says so, or not.

        Raises:
            ValueError: if no backend can be had.
        """
        if {*environment.installed_backends(), *self.interpreters} & {"tensorflow"}:
            return Target("tensorflow")
        if not self._keras_targets:
            environment.choose_backend()  # raises, with the remedy
        return self._keras_targets[0]

    @property
    def other_references(self) -> list[Target]:
        """Where to compute what stands for the truth if the reference cannot."""
        return [target for target in self._keras_targets if target != self.reference][:1]

    @property
    def _keras_targets(self) -> list[Target]:
        """Those that can be the reference: of the targets, else of what is installed."""
        targets = [target for target in self.targets if target.is_keras]
        return targets or [Target(name) for name in environment.installed_backends()]

    def start(self, *, reference: bool = True) -> None:
        """Start all workers at once, that of the reference too; errors come when they are used."""

        def start(name: str, target: Target) -> None:
            with contextlib.suppress(WorkerError):
                self.worker(name, target)

        # The reference has a process of its own, which works beside that of the target.
        named = [(str(t), t) for t in self.targets]
        if reference:
            named.append((REFERENCE, self.reference))
        # Daemons, so that an interrupted parent need not wait for them; its end ends workers.
        threads = [threading.Thread(target=start, args=pair, daemon=True) for pair in named]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def without(self, skipped: Collection[str]) -> "Workers":
        """The same processes, for the targets that are left."""
        others = copy.copy(self)
        others.targets = [target for target in self.targets if str(target) not in skipped]
        return others

    def close(self) -> None:
        """End all processes."""
        for worker in self._workers.values():
            worker.close()
        self._workers.clear()

    def __enter__(self) -> "Workers":
        """The workers."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End all processes."""
        self.close()


def _may_have_gpu() -> bool:
    """Whether it is worth starting a worker to look for a GPU."""
    return any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd"))
