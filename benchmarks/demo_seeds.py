"""How accurate is each solution of the demo on the test cases, for seeds 0 to 4?

    python benchmarks/demo_seeds.py [--backend jax]

Runs `multibackend-lstm demo` with each seed and collects test accuracies and the largest
differences between backends. Writes results/demo_seeds.json.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile

import common

SEEDS = range(5)


def main() -> None:
    """Run the demo with each seed, write the results, print a table for the docs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backend", default="jax")
    arguments = parser.parse_args()
    runs = []
    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as folder:
            command = ["-m", "multibackend_lstm", "demo", "--json", "--backend", arguments.backend]
            process = subprocess.run(
                [sys.executable, *command, "--seed", str(seed), "--out", folder],
                stdout=subprocess.PIPE,
                check=True,
            )
        runs.append(json.loads(process.stdout))
    rows = []
    for index, solution in enumerate(runs[0]["solutions"]):
        accuracies = [run["solutions"][index]["test_accuracy"] for run in runs]
        differences = [
            max(run["solutions"][index]["largest_difference"].values(), default=None)
            for run in runs
        ]
        rows.append(
            {
                "solution": solution["solution"],
                "test_accuracy": accuracies,
                "median": statistics.median(accuracies),
                "largest_difference": differences,
            }
        )
    path = common.write_results(
        "demo_seeds", __doc__.splitlines()[0], {"backend": arguments.backend, "rows": rows}
    )
    print("| solution | " + " | ".join(f"seed {seed}" for seed in SEEDS) + " | median |")
    print("|---|" + "---|" * (len(SEEDS) + 1))
    for row in rows:
        cells = " | ".join(f"{accuracy:.3f}" for accuracy in row["test_accuracy"])
        print(f"| `{row['solution']}` | {cells} | {row['median']:.3f} |")
    print(f"written to {path.name}", file=sys.stderr)


if __name__ == "__main__":
    main()
