"""How well, and in what time, does examples/live_exercises recognise exercises as they are done?

    python benchmarks/live_exercises.py                     # subject 10 on each installed backend
    python benchmarks/live_exercises.py --backends jax --subjects 1 2 3 4 5 6 7 8 9 10

Each run is one of `live.py --json --animation`, in a process of its own, and is appended to
results/live_exercises.json as it ends; what is there is not run again. `seconds` in a row are its
own, `load_before` the load average of the machine when it began, on which they depend. The pictures
of subject 10 go to docs/images.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import common

from multibackend_lstm.environment import BACKENDS, installed_backends
from multibackend_lstm.files import replacing

NAME = "live_exercises"
SCRIPT = Path(__file__).parents[1] / "examples" / NAME / "live.py"
SUBJECT = 10
HEADER = (
    "backend",
    "subject",
    "steps right",
    "exercises right",
    "s until right, median",
    "ms a step, median (p99)",
    "stream against model",
    "CPU s in all",
    "s in all",
    "load average before",
)


def run(backend: str, subject: int) -> dict[str, Any]:
    """One run of the example."""
    load = os.getloadavg()[0]
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.run(
            [
                sys.executable,
                SCRIPT,
                "--json",
                "--animation",
                f"--subject={subject}",
                f"--folder={folder}",
            ],
            env={"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ, "KERAS_BACKEND": backend},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        if subject == SUBJECT:
            for suffix in (".png", ".gif"):
                with replacing(common.IMAGES / f"{NAME}{suffix}") as temporary:
                    shutil.copyfile(Path(folder, f"live{suffix}"), temporary)
    row = json.loads(process.stdout)
    row["seconds"]["process"] = round(time.perf_counter() - start, 1)
    del row["versions"]  # which stand above all rows
    threads = os.environ.get("OMP_NUM_THREADS")
    return {"load_before": round(load, 1), "omp_num_threads": threads, **row}


def main() -> None:
    """Run what has not been run, and show all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=installed_backends())
    parser.add_argument("--subjects", nargs="+", type=int, default=[SUBJECT])
    options = parser.parse_args()
    path = common.RESULTS / f"{NAME}.json"
    rows = json.loads(path.read_text())["results"] if path.exists() else []
    for subject in options.subjects:
        for backend in options.backends:
            if any((row["backend"], row["subject"]) == (backend, subject) for row in rows):
                continue
            rows.append(run(backend, subject))
            common.write_results(NAME, str(__doc__).splitlines()[0], rows)
    print("\n".join(common.markdown(HEADER, [cells(row) for row in rows])))


def cells(row: Mapping[str, Any]) -> list[str]:
    """A row of the table."""
    until, cost = row["seconds_until_right"], row["milliseconds_a_step"]
    seconds = row["seconds"]
    return [
        row["backend"],
        str(row["subject"]),
        f"{row['accuracy_by_step']:.1%}",
        f"{row['exercises_right']} of {row['exercises']}",
        f"{until['median']} (never: {until['never']})",
        f"{cost['median']:.2f} ({cost['p99']:.2f})",
        f"{row['largest_difference_from_model']:.0e}",
        f"{seconds['processor']:.0f}",
        f"{seconds['process']:.0f}",
        str(row["load_before"]),
    ]


if __name__ == "__main__":
    main()
