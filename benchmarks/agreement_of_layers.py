"""Do this package's layers and solutions give the same numbers on every backend?

    python benchmarks/agreement_of_layers.py

Every case of tests/zoo/layers.py, layers with the options that matter and all
five solutions, is compared with its float64 run on every installed backend. Written down are the
largest score of each group of tensors by target, as JSON, as a plot, and by `--tables` for
docs/agreement.md.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import common
from rich.progress import track

from multibackend_lstm import agreement
from multibackend_lstm.agreement.comparison import AGREES_UP_TO, GROUPS

NAME = "agreement_of_layers"
TESTS = Path(__file__).parents[1] / "tests"


def measure() -> list[dict[str, Any]]:
    """The largest score by group and target of each case."""
    sys.path.insert(0, str(TESTS))
    from zoo.layers import CASES, draw

    rows = []
    with agreement.Workers() as workers:
        for name in track(CASES, description="comparing"):
            model = CASES[name]()
            report = agreement.check(model, draw(model), workers=workers)
            report.raise_if_disagrees()
            scores = {
                result.target: {
                    group: round(max(c.score for c in result.group(group)), 3) for group in GROUPS
                }
                for result in report.results
            }
            rows.append({"case": name, "scores": scores})
    return rows


def tables() -> None:
    """The largest score of the groups, by case and target."""
    rows = json.loads((common.RESULTS / f"{NAME}.json").read_text())["results"]
    targets = list(rows[0]["scores"])
    print("| | " + " | ".join(targets) + " |")
    print("|---" + "|---:" * len(targets) + "|")
    for row in rows:
        largest = (max(row["scores"][target].values()) for target in targets)
        print(f"| `{row['case']}` | " + " | ".join(f"{score:.1f}" for score in largest) + " |")


def plot() -> None:
    """Scores by group, a point a case and target."""
    import matplotlib
    from matplotlib.figure import Figure

    rows = json.loads((common.RESULTS / f"{NAME}.json").read_text())["results"]
    with matplotlib.rc_context({"svg.hashsalt": "multibackend_lstm"}):
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        for axes, group in zip(figure.subplots(1, len(GROUPS), sharey=True), GROUPS, strict=True):
            for target in rows[0]["scores"]:
                scores = sorted(row["scores"][target][group] for row in rows)
                axes.plot(range(1, len(scores) + 1), scores, ".", label=target)
            axes.axhline(AGREES_UP_TO, color="black", linewidth=0.8)
            axes.set_yscale("log")
            axes.set_title(group, fontsize=10)
            axes.set_xlabel("cases, by score")
        figure.axes[0].set_ylabel("largest score; agrees below the line")
        figure.axes[0].legend(fontsize=8)
        figure.savefig(common.IMAGES / f"{NAME}.svg", metadata={"Date": None})


def main() -> None:
    """Measure, write and plot; or print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tables", action="store_true", help="print them from committed results")
    if parser.parse_args().tables:
        tables()
        return
    common.write_results(NAME, __doc__.splitlines()[0], measure())
    plot()


if __name__ == "__main__":
    main()
