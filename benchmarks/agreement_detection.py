"""Down to which size is a fault of one layer found, and are the right target and layer named?

    python benchmarks/agreement_detection.py                 # float32, 7 to 15 minutes on 2 cores
    python benchmarks/agreement_detection.py --dtypes mixed_bfloat16 --sizes 1e-1 5e-2
    python benchmarks/agreement_detection.py --table         # Markdown, from the committed JSON

A layer that is wrong in one way (tests/zoo/graded.py: in all of its values, one channel, one value,
the gradient, in training alone, in its moving statistics), by one size, on one backend, stands
between healthy ones. TensorFlow's fault is in float32 alone, so that the truth is right. A case is
*found* if its target disagrees, and *right* if nothing else is accused: no other target, no other
layer.
"""

import argparse
import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import common

NAME = "agreement_detection"
QUESTION = "Down to which size is a fault of one layer found, with the right target and layer?"
BACKENDS = ("jax", "torch", "tensorflow")


def main() -> None:
    """Measure, and write the results; or print those that were written."""
    parser = argparse.ArgumentParser(description=QUESTION)
    parser.add_argument("--dtypes", nargs="+", default=["float32"])
    sizes = ["1e-2", "1e-3", "1e-4", "1e-5", "3e-6", "1e-6"]
    parser.add_argument("--sizes", nargs="+", default=sizes, help="relative to the values")
    parser.add_argument("--table", action="store_true", help="print a Markdown table and end")
    parser.add_argument("--dry-run", action="store_true", help="write no file")
    options = parser.parse_args()
    if not options.table:
        found = measured(options.dtypes, [float(size) for size in options.sizes])
        if options.dry_run:
            print(table(found))
            return
        print(f"wrote {common.write_results(NAME, QUESTION, {'cases': found})}", file=sys.stderr)
    document = json.loads((common.RESULTS / f"{NAME}.json").read_text())
    print(table(document["results"]["cases"]))


def measured(dtypes: list[str], sizes: list[float]) -> list[dict[str, Any]]:
    """Every case: what was wrong, and what the report says."""
    warnings.filterwarnings("ignore", message=".*__array__ implementation")
    os.environ.setdefault("KERAS_BACKEND", "numpy")  # here models are only built
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # where workers look too
    from zoo.graded import WAYS

    from multibackend_lstm.agreement import Workers, check

    cases = []
    with Workers([f"{backend}@cpu" for backend in BACKENDS]) as workers:
        for dtype in dtypes:
            for way in WAYS:
                for size in sizes:
                    for backend in BACKENDS:
                        report = check(
                            model(way, size, backend),
                            workers=workers,
                            steps=1,
                            dtype=None if dtype == "float32" else dtype,
                        )
                        accused = [f for f in report.findings if f.verdict == "disagrees"]
                        found = f"{backend}@cpu" in report.disagreeing
                        right = report.disagreeing in ([], [f"{backend}@cpu"]) and all(
                            finding.layer == "Graded" for finding in accused
                        )
                        case = {"dtype": dtype, "way": way, "size": size, "backend": backend}
                        cases.append({**case, "found": found, "right": right})
                        print(cases[-1], file=sys.stderr, flush=True)
    return cases


def model(way: str, size: float, backend: str) -> Any:
    """A layer that is wrong, between a Dense and an LSTM that are not."""
    import keras
    from keras import layers
    from zoo.graded import Graded

    keras.backend.clear_session()
    wrong = Graded(way, size, backend, name="wrong")
    stacked = [layers.Dense(16, activation="tanh"), wrong, layers.LSTM(8), layers.Dense(3)]
    return keras.Sequential([keras.Input((12, 16)), *stacked])


def table(cases: list[dict[str, Any]]) -> str:
    """By dtype and way: of the backends at fault, how many were found at each size."""
    sizes = sorted({case["size"] for case in cases}, reverse=True)
    lines = [
        "| dtype | what is wrong | " + " | ".join(f"{size:.0e}" for size in sizes) + " |",
        "|---|---|" + "---:|" * len(sizes),
    ]
    for dtype, way in dict.fromkeys((case["dtype"], case["way"]) for case in cases):
        cells = []
        for size in sizes:
            some = [c for c in cases if (c["dtype"], c["way"], c["size"]) == (dtype, way, size)]
            wrong = sum(not case["right"] for case in some)
            text = f"{sum(case['found'] for case in some)} of {len(some)}" if some else ""
            cells.append(f"{text} ({wrong} misplaced)" if wrong else text)
        lines.append(f"| {dtype} | {way} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
