"""The command: shares seeds among worker processes, and shows what came out."""

import argparse
import collections
import json
import os
import queue
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from fuzz.cases import CASES_PER_STRUCTURE, LAYERS, RECURRENT, SEEDS_PER_LAYER, first_seed
from fuzz.judging import CRASH, REFUSED, RIGHT, WRONG

TESTS = Path(__file__).resolve().parents[1]
# A worker is replaced after so many structures: compiled functions are never forgotten, and those
# of 250 take 3.4 GB on JAX.
STRUCTURES_PER_WORKER = 100
SECONDS_PER_CASE = 180.0
FAILURES = (WRONG, CRASH)

Result = dict[str, Any]


class Worker:
    """A process that runs seeds one at a time."""

    def __init__(self, backend: str) -> None:
        # Not PYTHONPATH from the outside alone: the package may be found by the folder it is in.
        paths = [str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")]
        env = {
            **os.environ,
            "KERAS_BACKEND": backend,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fuzz.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=env,
            text=True,
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        self.versions = self._answer(SECONDS_PER_CASE)["versions"]

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def _answer(self, seconds: float) -> Result:
        """The next line; RuntimeError if the process ended, TimeoutError if it takes too long."""
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            raise TimeoutError(f"no answer within {seconds:.0f} s") from None
        if line is None:
            raise RuntimeError(f"the process ended with status {self.process.wait()}")
        answer: Result = json.loads(line)
        return answer

    def run(self, seed: int) -> Result:
        """The result of a case."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(f"{seed}\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise RuntimeError(f"the process ended with status {self.process.wait()}") from None
        return self._answer(SECONDS_PER_CASE)

    def stop(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()


class Fuzzing:
    """Runs structures in several workers at once.

    Attributes:
        results: of every case.
        versions: of what computed.
    """

    def __init__(self, backend: str, structures: list[list[int]], workers: int) -> None:
        self.backend = backend
        self.results: list[Result] = []
        self.versions: dict[str, str] = {}
        self._waiting: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
        for seeds in structures:
            self._waiting.put(seeds)
        self._answers: queue.SimpleQueue[Result | BaseException | None] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._threads = [
            threading.Thread(target=self._guarded, daemon=True) for _ in range(workers)
        ]

    def __iter__(self) -> Iterator[Result]:
        """Results as they come."""
        for thread in self._threads:
            thread.start()
        running = len(self._threads)
        try:
            while running:
                answer = self._answers.get()
                if answer is None:
                    running -= 1
                elif isinstance(answer, BaseException):
                    raise answer
                else:
                    self.results.append(answer)
                    yield answer
        finally:
            self._stopped.set()
            for thread in self._threads:
                thread.join(timeout=SECONDS_PER_CASE)

    def _guarded(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self._answers.put(error)
        self._answers.put(None)

    def _work(self) -> None:
        worker, structures = None, 0
        try:
            while not self._stopped.is_set():
                try:
                    seeds = self._waiting.get_nowait()
                except queue.Empty:
                    return
                for seed in seeds:
                    if self._stopped.is_set():
                        return
                    if worker is None:
                        worker, structures = Worker(self.backend), 0
                        self.versions = worker.versions
                    try:
                        answer = worker.run(seed)
                    except (RuntimeError, TimeoutError) as error:
                        # The process is gone, or must go: a crash that Python could not report.
                        worker.stop()
                        worker = None
                        answer = {
                            "seed": seed,
                            "layer": LAYERS[seed // SEEDS_PER_LAYER - 1],
                            "mode": "",
                            "family": "",
                            "outcome": CRASH,
                            "error": 0.0,
                            "reason": str(error),
                            "case": "",
                        }
                    if "fuzzer_failed" in answer:
                        raise RuntimeError(f"seed {seed}:\n{answer['fuzzer_failed']}")
                    self._answers.put(answer)
                structures += 1
                if worker is not None and structures == STRUCTURES_PER_WORKER:
                    worker.stop()
                    worker = None
        finally:
            if worker is not None:
                worker.stop()


def chosen_seeds(layers: list[str], cases: int, start: int) -> list[list[int]]:
    """Seeds of each structure, the layers in turns.

    LSTM and GRU share `cases` between them; each other layer gets a tenth of that on top.
    """
    per_layer = []
    recurrent = [layer for layer in layers if layer in RECURRENT]
    for layer in layers:
        count = cases // len(recurrent) if layer in recurrent else cases // 10
        seeds = range(first_seed(layer) + start, first_seed(layer) + start + max(1, count))
        groups: dict[int, list[int]] = collections.defaultdict(list)
        for seed in seeds:
            groups[seed // CASES_PER_STRUCTURE].append(seed)
        per_layer.append(list(groups.values()))
    longest = max(map(len, per_layer))
    return [groups[n] for n in range(longest) for groups in per_layer if n < len(groups)]


def tables(results: list[Result]) -> list[Table]:
    """Counts and worst errors by category, and what was refused."""
    categories: dict[tuple[str, str, str], list[Result]] = collections.defaultdict(list)
    for result in results:
        categories[result["layer"], result["mode"], result["family"]].append(result)
    table = Table(title="Cases", caption="worst error: as a multiple of the tolerance")
    for name in ("layer", "mode", "dtypes"):
        table.add_column(name)
    for name in ("cases", *(RIGHT, REFUSED, WRONG, CRASH), "worst error"):
        table.add_column(name, justify="right")
    order = {layer: number for number, layer in enumerate(LAYERS)}
    for category in sorted(categories, key=lambda c: (order[c[0]], *c[1:])):
        found = categories[category]
        counts = collections.Counter(result["outcome"] for result in found)
        table.add_row(
            *category,
            str(len(found)),
            *(str(counts[name] or "") for name in (RIGHT, REFUSED, WRONG, CRASH)),
            f"{max(result['error'] for result in found):.2f}",
        )
    refused = collections.Counter(
        result["reason"].split(":", 1)[-1][:100]
        for result in results
        if result["outcome"] == REFUSED
    )
    refusals = Table(title="Refused, as documented")
    refusals.add_column("cases", justify="right")
    refusals.add_column("message")
    for message, count in refused.most_common():
        refusals.add_row(str(count), message)
    return [table, refusals]


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Under a temporary name first."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options."""
    names = {layer.lower(): layer for layer in LAYERS}

    def layer_names(text: str) -> list[str]:
        unknown = [name for name in text.split(",") if name.lower() not in names]
        if unknown:
            raise argparse.ArgumentTypeError(
                f"unknown layer {', '.join(unknown)}; there are {', '.join(LAYERS)}"
            )
        return [names[name.lower()] for name in text.split(",")]

    parser = argparse.ArgumentParser(prog="fuzz", description="Fuzz the layers.")
    parser.add_argument(
        "--backend",
        choices=("jax", "tensorflow", "torch"),
        default=os.environ.get("KERAS_BACKEND", "torch"),
    )
    parser.add_argument(
        "--cases",
        type=int,
        default=1000,
        help="of LSTM and GRU together; a tenth of it for each other layer, on top",
    )
    parser.add_argument("--layers", type=layer_names, default=list(LAYERS), help="such as lstm,gru")
    parser.add_argument("--start", type=int, default=0, help="number of each layer's first case")
    parser.add_argument("--seed", type=int, help="run this one case alone")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--json", type=Path, help="write all results to this file")
    return parser.parse_args(arguments)


def run_one(seed: int) -> int:
    """One case in this process, with the traceback of a crash."""
    from fuzz.worker import prepare, result

    prepare()
    from fuzz.running import Runner

    runner = Runner()
    structure, values, verdict = runner.run(seed)
    answer = result(seed, structure, values, verdict)
    for number, call in enumerate(values.calls):
        for name in ("x", "mask", "lengths"):
            if (array := getattr(call, name)) is not None:
                print(f"call {number}, {name}: {array.dtype}{list(array.shape)}")
                print(np.array2string(array, precision=4, threshold=100))
    if runner.error is not None:
        traceback.print_exception(runner.error, file=sys.stdout)
    print(f"{answer['outcome']}: seed {seed} on {os.environ['KERAS_BACKEND']}")
    for name in ("case", "reason", "error"):
        print(f"{name}: {answer[name]}")
    return int(answer["outcome"] in FAILURES)


def main(arguments: list[str] | None = None) -> int:
    """The exit status: 1 if anything was wrong or crashed."""
    options = parse(arguments)
    console = Console()
    if options.seed is not None:
        os.environ["KERAS_BACKEND"] = options.backend
        return run_one(options.seed)
    structures = chosen_seeds(options.layers, options.cases, options.start)
    fuzzing = Fuzzing(options.backend, structures, options.workers)
    started = time.perf_counter()
    failures = 0
    with Progress(
        TextColumn(options.backend),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[failures]} failures"),
        console=console,
    ) as progress:
        task = progress.add_task("", total=sum(map(len, structures)), failures=0)
        for result in fuzzing:
            failures += result["outcome"] in FAILURES
            progress.update(task, advance=1, failures=failures)
    seconds = time.perf_counter() - started
    for table in tables(fuzzing.results):
        console.print(table)
    failed = [result for result in fuzzing.results if result["outcome"] in FAILURES]
    for result in sorted(failed, key=lambda r: r["seed"]):
        console.print(
            f"{result['outcome']} {result['seed']}: {result['reason']} | {result['case']}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    counts = collections.Counter(result["outcome"] for result in fuzzing.results)
    said = ", ".join(f"{counts[name]} {name}" for name in (RIGHT, REFUSED, WRONG, CRASH))
    console.print(f"{len(fuzzing.results)} cases in {seconds:.0f} s: {said}")
    if options.json is not None:
        write_json(
            options.json,
            {
                "versions": fuzzing.versions,
                "options": {
                    "backend": options.backend,
                    "cases": options.cases,
                    "layers": options.layers,
                    "start": options.start,
                },
                "seconds": round(seconds, 1),
                "counts": dict(counts),
                "results": sorted(fuzzing.results, key=lambda r: r["seed"]),
            },
        )
    return int(bool(failed))
