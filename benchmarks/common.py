"""What the benchmark scripts share: alternating measurements, and where results go."""

import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from multibackend_lstm.environment import installed_backends, versions
from multibackend_lstm.files import replacing

RESULTS = Path(__file__).parent / "results"
IMAGES = Path(__file__).parents[1] / "docs" / "images"


def alternate(
    functions: Mapping[str, Callable[[], Any]],
    repeats: int,
    warm_up: int = 3,
    limit: float = float("inf"),
) -> dict[str, list[float]]:
    """Seconds of each call, the functions in turn (A B A B), after some calls not counted.

    After `limit` seconds in all there are no more turns, but never less than three.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    gc.collect()
    gc.freeze()  # so that the collections between calls look at little
    end = time.perf_counter() + limit
    for repeat in range(warm_up + repeats):
        if repeat >= warm_up + 3 and time.perf_counter() > end:
            break
        for name, function in functions.items():
            gc.collect()
            taken = timed(function)
            if repeat >= warm_up:
                seconds[name].append(taken)
    gc.unfreeze()
    return seconds


def timed(function: Callable[[], Any]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def summary(seconds: Sequence[float]) -> dict[str, float]:
    """Median and spread in milliseconds."""
    low, median, high = statistics.quantiles(seconds, n=4)
    return {
        "median_ms": round(median * 1e3, 4),
        "quartiles_ms": [round(low * 1e3, 4), round(high * 1e3, 4)],
    }


def ratio(ours: Sequence[float], rival: Sequence[float]) -> float:
    """Median of the ratios of neighbouring calls, which a drift of the machine leaves alone."""
    return round(statistics.median(a / b for a, b in zip(ours, rival, strict=True)), 3)


def on_each_backend(script: str, arguments: Sequence[str], backends: Sequence[str]) -> list[Any]:
    """Run `script --worker` on each backend in a process of its own; what each printed as JSON."""
    reports = []
    for backend in backends or installed_backends():
        print(f"running on {backend} ...", file=sys.stderr, flush=True)
        process = subprocess.run(
            [sys.executable, script, "--worker", *arguments],
            env={"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ, "KERAS_BACKEND": backend},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        reports.append(json.loads(process.stdout.splitlines()[-1]))
    return reports


def write_results(name: str, question: str, results: Any) -> Path:
    """Write `results/<name>.json` with the versions and the device they were measured on."""
    path = RESULTS / f"{name}.json"
    document = {
        "question": question,
        "device": f"{platform.machine()} CPU, {os.cpu_count()} cores",
        "versions": versions(),
        "results": results,
    }
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(document, indent=1) + "\n")
    return path


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def write_table(document: str, name: str, table: str) -> None:
    """Put a table into a page of docs/, between the marks of its name."""
    path = RESULTS.parents[1] / "docs" / document
    marks = (f"<!-- {name}: written by a benchmark -->\n", f"<!-- end of {name} -->")
    before, start, rest = path.read_text(encoding="utf-8").partition(marks[0])
    _, end, after = rest.partition(marks[1])
    if not (start and end):
        raise ValueError(f"{path} lacks one of {marks}")
    with replacing(path) as temporary:
        temporary.write_text(before + start + table + end + after, encoding="utf-8")
