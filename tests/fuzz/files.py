"""Give bad files to every command: each must end by a documented status, in one line.

    nox -s fuzz_files -- --files 3000 --seed 0

Broken is: a traceback, a status that no command has, a crash, more than 20 seconds or 1 GB,
anything in the file run, and a file at --out (or a temporary one) where the command failed. File
`N` of a seed is the same in every run: `--only N` gives it again, `--results` goes on where a run
was stopped.
"""

import argparse
import collections
import contextlib
import dataclasses
import importlib
import importlib.util
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

STATUSES = {0: "done", 1: "answer is no", 2: "refused", 3: "could not run"}
SECONDS, OF_WORKERS = 20.0, 120.0  # that a command may take alone, and with processes of its own
MEGABYTES = 1000  # that the largest of its processes may take
DEFECT = 70  # the status of a child whose command ended by another exception
# What no reading of a file needs. Of `pickle` only protocol 2 and above says what it looks up.
FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "pickle.find_class", "pty.spawn")


@dataclasses.dataclass(frozen=True)
class Use:
    """A way to give a command a file.

    Attributes:
        suffix: of the file; what stands in `damage.DAMAGES`.
        command: the arguments, of the bad file, the folder with sound ones, and a folder for what
            is written.
        weight: how often it is drawn.
        seconds: that it may take.
        stdin: whether the file is what the command reads from its standard input.
    """

    suffix: str
    command: Callable[[Path, Path, Path], list[Any]]
    weight: float = 1.0
    seconds: float = SECONDS
    stdin: bool = False


def _here(backend: str) -> list[Any]:
    return ["--targets", f"{backend}@cpu", "--steps", 0, "--twins", 2]


def uses(backend: str) -> dict[str, Use]:
    """Each command with each kind of file that it reads."""
    here = _here(backend)
    port = {
        f"port {suffix}": Use(
            suffix,
            lambda bad, good, out: ["port", bad, good / "fc.keras", "--out", out / "n.keras"],
        )
        for suffix in (".npz", ".safetensors", ".pt", ".old.pt")
    }
    like = {
        f"port --like {suffix}": Use(
            suffix,
            lambda bad, good, out: [
                "port",
                good / "fc.keras",
                "--like",
                bad,
                "--out",
                out / "n.npz",
            ],
            0.5,
        )
        for suffix in (".npz", ".safetensors", ".pt")
    }
    migrate = {
        f"migrate {suffix}": Use(
            suffix, lambda bad, good, out: ["migrate", bad, "--out", out / "new.keras"], 2
        )
        for suffix in (".keras", ".h5")
    }
    return {
        **port,
        **like,
        **migrate,
        "port --mapping": Use(
            ".json",
            lambda bad, good, out: [
                "port", good / "fc.npz", good / "fc.keras", "--mapping", bad,
                "--out", out / "new.keras",
            ],
            0.5,
        ),
        "port model": Use(
            ".keras", lambda bad, good, out: ["port", good / "x.npz", bad, "--out", out / "n.keras"]
        ),
        "migrate --dry-run": Use(
            ".h5", lambda bad, good, out: ["migrate", "--dry-run", bad.parent], 0.5
        ),
        "explain .keras": Use(".keras", lambda bad, good, out: ["explain", bad]),
        "explain .h5": Use(".h5", lambda bad, good, out: ["explain", bad]),
        "stream .keras": Use(".keras", lambda bad, good, out: ["stream", bad]),
        "stream .onnx": Use(".onnx", lambda bad, good, out: ["stream", bad], 3),
        "stream .tflite": Use(".tflite", lambda bad, good, out: ["stream", bad]),
        "stream --state": Use(
            ".state.npz", lambda bad, good, out: ["stream", good / "step.onnx", "--state", bad]
        ),
        "stream, lines": Use(
            ".line.json", lambda bad, good, out: ["stream", good / "step.onnx"], 0.5, stdin=True
        ),
        "agree --inputs": Use(
            ".npz",
            lambda bad, good, out: ["agree", good / "fc.keras", "--inputs", bad, *here],
            0.1,
            OF_WORKERS,
        ),
        "agree --truth": Use(
            ".truth.npz",
            lambda bad, good, out: ["agree", good / "fc.keras", "--truth", bad, *here[:2]],
            0.4,
            OF_WORKERS,
        ),
        "agree --replay": Use(
            ".bundle.json",
            lambda bad, good, out: ["agree", "--replay", _bundle(bad, good), *here[:2]],
            0.3,
            OF_WORKERS,
        ),
        "agree model": Use(".keras", lambda bad, good, out: ["agree", bad, *here], 0.1, OF_WORKERS),
        "agree, target": Use(
            ".onnx",
            lambda bad, good, out: [
                "agree", good / "fc.keras", "--targets", f"{backend}@cpu,onnxruntime:{bad}",
                "--steps", 0, "--twins", 2,
            ],
            0.05,
            OF_WORKERS,
        ),
        "export": Use(
            ".keras",
            lambda bad, good, out: [
                "export", bad, "--format", "onnx", "--backend", backend, "--out", out / "m.onnx"
            ],
            0.1,
            OF_WORKERS,
        ),
        "export --check-only": Use(
            ".onnx",
            lambda bad, good, out: [
                "export", good / "fc.keras", "--format", "onnx", "--check-only", "--out", bad,
                "--backend", backend,
            ],
            0.05,
            OF_WORKERS,
        ),
    }  # fmt: skip


def _bundle(bad: Path, good: Path) -> Path:
    """A folder as `agree --bundle` writes it, with a bad `case.json`."""
    shutil.copy(good / "bundle" / "arrays.npz", bad.parent / "arrays.npz")
    bad.rename(bad.parent / "case.json")
    return bad.parent


def write_sound_files(folder: Path) -> None:
    """A sound file of each kind, from which the bad ones are made."""
    import keras
    import numpy as np
    import safetensors.numpy
    import torch

    from multibackend_lstm.porting import export
    from multibackend_lstm.streaming import Stream, to_step_model

    dense = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="fc")])
    dense.save(folder / "fc.keras")
    recurrent = keras.Sequential(
        [
            keras.Input((None, 3)),
            keras.layers.LSTM(4, return_sequences=True),
            keras.layers.GRU(3, name="second"),
            keras.layers.Dense(2),
        ]
    )
    recurrent.compile("adam", "mse")
    for suffix in (".keras", ".h5"):
        recurrent.save(folder / f"sound{suffix}")
    arrays = {"fc.weight": np.ones((2, 3), "float32"), "fc.bias": np.ones(2, "float32")}
    for name in ("sound", "fc", "x"):
        np.savez(folder / f"{name}.npz", **arrays)
    safetensors.numpy.save_file(arrays, folder / "sound.safetensors")
    tensors = {"epoch": 3, "state_dict": {k: torch.tensor(x) for k, x in arrays.items()}}
    torch.save(tensors, folder / "sound.pt")
    torch.save(tensors, folder / "sound.old.pt", _use_new_zipfile_serialization=False)
    (folder / "sound.json").write_text('{"fc": "fc", "rnn": ["lstm", "lstm_1"]}')
    step = to_step_model(recurrent)
    # Of TensorFlow alone comes LiteRT; without it `stream .tflite` is left out.
    exports = {"step.onnx": ("onnx", keras.backend.backend())}
    if importlib.util.find_spec("tensorflow") and importlib.util.find_spec("ai_edge_litert"):
        exports["sound.tflite"] = ("litert", "tensorflow")
    for name, (format, backend) in exports.items():
        export(step, folder / name, format, batch=1, backend=backend, check=False)
    shutil.copy(folder / "step.onnx", folder / "sound.onnx")
    Stream(folder / "step.onnx").save_state(folder / "sound.state.npz")
    (folder / "sound.line.json").write_text(json.dumps({_input_of(step): [1.0, 2.0, 3.0]}))
    layer = keras.saving.serialize_keras_object(dense.layers[0])
    call = {"list": [{"list": [{"tensor": 0, "mask": {"value": None}}]}, {"dict": {}}]}
    case = {"version": 1, "layer": layer, "call": {"arguments": call}, "weights": ["a", "b"]}
    (folder / "sound.bundle.json").write_text(json.dumps(case))
    (folder / "bundle").mkdir()
    weights = {f"weight{i}": x for i, x in enumerate(dense.layers[0].get_weights())}
    np.savez(folder / "bundle" / "arrays.npz", tensor0=np.ones((4, 3), "float32"), **weights)
    import multibackend_lstm.cli

    truth = ["agree", folder / "fc.keras", "--save-truth", folder / "sound.truth.npz"]
    arguments = map(str, [*truth, *_here(keras.backend.backend())])
    multibackend_lstm.cli.main(list(arguments), standalone_mode=False)


def _input_of(step: Any) -> str:
    """The name of the input of a step model that is no state."""
    (name,) = {x.name for x in step.inputs} - {x.removeprefix("next_") for x in step.output}
    return str(name)


# ---- running


def run_child(arguments: list[Any], folder: Path, content: Path | None) -> None:
    """Run a command in this process, which a fork has made for it, and end."""
    status = DEFECT
    try:
        os.setsid()
        os.chdir(folder)
        log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT)
        source = os.open(content or os.devnull, os.O_RDONLY)
        for descriptor, stream in ((source, 0), (log, 1), (log, 2)):
            os.dup2(descriptor, stream)
        sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115
        # A net under the measuring: the machine must not be filled. Below it nothing is refused
        # that would be allowed otherwise, since there would be no telling a limit from a rule.
        resource.setrlimit(resource.RLIMIT_DATA, (8 << 30, 8 << 30))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        sys.addaudithook(_refuse)
        from multibackend_lstm.cli import main

        main(list(map(str, arguments)), prog_name="multibackend-lstm")
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if event in FORBIDDEN:
        Path(f"{_mark()}-{event}").touch()


def _mark() -> str:
    from fuzz.damage import MARK

    return MARK


@dataclasses.dataclass
class Outcome:
    """What became of a file.

    Attributes:
        number: of the file.
        use: what it was given to.
        damage: what was done to it.
        status: that the command ended with; negative for a signal.
        seconds: that it took.
        megabytes: that the largest of its processes had at its peak.
        broken: what it did that no command may.
        log: what it printed, where something is broken.
    """

    number: int
    use: str
    damage: str
    status: int
    seconds: float
    megabytes: int
    broken: list[str]
    log: str = ""


def broken_rules(
    status: int, seconds: float, megabytes: int, log: str, folder: Path, limit: float
) -> list[str]:
    """The rules that a command broke, by what it left in its folder."""
    found = []
    if status == DEFECT or "Traceback (most recent call last)" in log:
        found.append("a traceback")
    elif status < 0:
        found.append(f"ended by {signal.Signals(-status).name}")
    elif status not in STATUSES:
        found.append(f"status {status}")
    if status == 2 and not re.search(r"^Error: .*\n?\Z", log, re.MULTILINE):
        found.append("not one line")
    if seconds > limit:
        found.append(f"{seconds:.0f} s")
    if megabytes > MEGABYTES:
        found.append(f"{megabytes} MB")
    if any(folder.rglob(f"{_mark()}*")):
        found.append("something in it was run")
    written = [path.name for path in (folder / "out").rglob("*")]
    if written and (status != 0 or any(name.startswith(".") for name in written)):
        found.append(f"left {', '.join(sorted(written))}")
    return found


class Fuzzing:
    """Makes bad files and gives them to commands, each in a process of its own.

    Args:
        seed: of all files.
        backend: that commands run on.
        folder: that the files are in.
    """

    def __init__(self, seed: int, backend: str, folder: Path) -> None:
        self.seed, self.folder = seed, folder
        self.good = folder / "good"
        self.sound = {path.name.removeprefix("sound"): path for path in self.good.glob("sound*")}
        self.uses = {name: u for name, u in uses(backend).items() if u.suffix in self.sound}
        self._running: dict[int, tuple[int, str, str, Path, float]] = {}

    def start(self, number: int) -> None:
        """Make a file, and start its command."""
        from fuzz.damage import DAMAGES

        draw = random.Random(f"{self.seed}:{number}")
        names = list(self.uses)
        name = draw.choices(names, [use.weight for use in self.uses.values()])[0]
        use = self.uses[name]
        damage = draw.choice(DAMAGES.get(use.suffix) or DAMAGES[Path(use.suffix).suffix])
        place = self.folder / str(number)
        (place / "given").mkdir(parents=True)
        (place / "out").mkdir()
        bad = place / "given" / f"bad{Path(f'x{use.suffix}').suffix}"
        bad.write_bytes(damage(self.sound[use.suffix].read_bytes(), draw))
        arguments = use.command(bad, self.good, place / "out")
        child = os.fork()
        if child == 0:
            run_child(arguments, place, bad if use.stdin else None)
        self._running[child] = (number, name, damage.__name__, place, time.monotonic())

    def finished(self) -> Iterator[Outcome]:
        """What ended, or takes too long, since it was last asked."""
        for child, (number, name, damage, place, start) in list(self._running.items()):
            limit = self.uses[name].seconds
            seconds = time.monotonic() - start
            ended, status, used = os.wait4(child, os.WNOHANG)
            if not ended and seconds > limit:
                os.killpg(child, signal.SIGKILL)
                ended, status, used = os.wait4(child, 0)
            if not ended:
                continue
            del self._running[child]
            code = os.waitstatus_to_exitcode(status)
            log = (place / "log").read_text(errors="replace")
            megabytes = used.ru_maxrss >> 10
            broken = broken_rules(code, seconds, megabytes, log, place, limit)
            yield Outcome(
                number, name, damage, code, round(seconds, 2), megabytes, broken,
                log[-3000:] if broken else "",
            )  # fmt: skip
            if not broken:
                shutil.rmtree(place)

    def run(self, numbers: list[int], processes: int) -> Iterator[Outcome]:
        """The outcomes of files, in the order in which they end."""
        waiting = collections.deque(numbers)
        try:
            while waiting or self._running:
                while waiting and len(self._running) < processes:
                    self.start(waiting.popleft())
                yield from self.finished()
                time.sleep(0.005)
        finally:
            for child in self._running:
                os.killpg(child, signal.SIGKILL)


# ---- the command


def table(outcomes: list[Outcome]) -> Any:
    """How many files each use had, and how they ended."""
    from rich.table import Table

    found = Table()
    for heading in ("given to", "files", *STATUSES.values(), "broken", "most s", "most MB"):
        found.add_column(heading, justify="left" if heading == "given to" else "right")
    for name in sorted({outcome.use for outcome in outcomes}):
        rows = [outcome for outcome in outcomes if outcome.use == name]
        found.add_row(
            name,
            str(len(rows)),
            *(str(sum(row.status == status for row in rows)) for status in STATUSES),
            str(sum(bool(row.broken) for row in rows)),
            f"{max(row.seconds for row in rows):.1f}",
            str(max(row.megabytes for row in rows)),
        )
    return found


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=3000, help="how many (default: 3000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="one file, by its number")
    parser.add_argument("--backend", default="torch", help="that commands run on (default: torch)")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--results", type=Path, help="JSON lines; files that it has are left out")
    parser.add_argument("--keep", type=Path, help="a new folder for files that broke a rule")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Print what became of the files; the status is 1 if one broke a rule."""
    options = parsed(arguments)
    # One thread: of a process that has more, a fork has only one, and waits for the others.
    os.environ |= {"KERAS_BACKEND": options.backend, "OMP_NUM_THREADS": "1"}
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    begun = time.monotonic()
    outcomes: list[Outcome] = []
    if options.results is not None and options.results.exists():
        lines = options.results.read_text().splitlines()
        outcomes = [Outcome(**json.loads(line)) for line in lines]
    known = {outcome.number for outcome in outcomes}
    wanted = range(options.files) if options.only is None else [options.only]
    numbers = [number for number in wanted if number not in known]
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        if options.keep is not None:
            options.keep.mkdir(parents=True)
            folder = options.keep.resolve()
        (folder / "good").mkdir()
        # In a process of its own: this one, which forks, must start no threads.
        here = [sys.executable, __file__, "--sound", str(folder / "good")]
        made = subprocess.run(here, capture_output=True, text=True, check=False)
        if made.returncode:
            raise RuntimeError(f"the sound files could not be made:\n{made.stderr}")
        _import_all(options.backend)
        file = None
        if options.results is not None:
            file = stack.enter_context(options.results.open("a"))
        for outcome in Fuzzing(options.seed, options.backend, folder).run(
            numbers, options.processes
        ):
            outcomes.append(outcome)
            if file is not None:
                print(json.dumps(dataclasses.asdict(outcome)), file=file, flush=True)
            if outcome.broken:
                what = f"file {outcome.number}, {outcome.damage} to {outcome.use}"
                print(f"{what}: {', '.join(outcome.broken)}\n{outcome.log}", file=sys.stderr)
    broken = sum(bool(outcome.broken) for outcome in outcomes)
    seconds = time.monotonic() - begun
    if options.json:
        found = [dataclasses.asdict(outcome) for outcome in outcomes]
        print(json.dumps({"seconds": seconds, "broken": broken, "files": found}, indent=1))
    else:
        from rich.console import Console

        Console().print(table(outcomes))
        print(f"{len(outcomes)} files, {broken} broke a rule, {seconds:.0f} s")
    return int(broken > 0)


def _import_all(backend: str) -> None:
    """Import what commands do, so that not each of them has to."""
    names = [
        "keras", "h5py", "onnxruntime", "safetensors.numpy", "onnx", "rich.table", "rich.console",
        "multibackend_lstm.cli", "multibackend_lstm.agreement", "multibackend_lstm.porting",
        "multibackend_lstm.agreement.checking", "multibackend_lstm.migration.migration",
        "multibackend_lstm.torch_weights.checking", "multibackend_lstm.torch_weights.conversion",
        "multibackend_lstm.streaming.stream", "multibackend_lstm.streaming.step_model",
        "multibackend_lstm.runtimes.backend_runtime", "multibackend_lstm.export.exports",
        f"multibackend_lstm.runtimes.{backend}_runtime", "torch.export", "torch._dynamo",
    ]  # fmt: skip
    # Where it is installed Keras imports it to save a model.
    names += filter(importlib.util.find_spec, ("tensorflow", "ai_edge_litert.interpreter"))
    import torch

    torch.set_num_threads(1)
    for name in names:
        importlib.import_module(name)


if __name__ == "__main__":
    tests = Path(__file__).resolve().parents[1]
    # In place of this folder, whose files are modules of the package `fuzz`.
    sys.path[:1] = [str(tests), str(tests.parent)]
    if sys.argv[1:2] == ["--sound"]:
        write_sound_files(Path(sys.argv[2]))
        sys.exit(0)
    sys.exit(main())
