"""Which layers and functions of Keras give the same numbers on every backend, and which do not?

    python benchmarks/keras_suite.py                       # runs, or goes on, and makes the page
    python benchmarks/keras_suite.py --from keras.jsonl    # of `agree --suite keras --results`
    python benchmarks/keras_suite.py --again               # what differs in the committed results

Every case of the suite is compared on every installed backend. Written down is what differs, as
JSON and as docs/keras_suite.md, which this script makes, and a bundle of each finding that has one,
in docs/bundles.
"""

import argparse
import json
import re
import shutil
from pathlib import Path
from typing import Any

import common
from rich.console import Console

from multibackend_lstm import agreement
from multibackend_lstm.agreement.suite import run_suite

NAME = "keras_suite"
PAGE = Path(__file__).parents[1] / "docs" / f"{NAME}.md"
BUNDLES = PAGE.with_name("bundles")
SCRIPT = "repro.py"  # the same in every bundle: here there is one for all
_KEYS = (
    "cannot be told from this: the truth is TensorFlow's, whose weights are 2e-3 off Keys's, which "
    "JAX follows to 2e-6"
)
# Where the finding is the judge's fault, by case and target.
JUDGE = {
    ("Resizing(height=14,width=12,interpolation=bicubic) on 7x8x3", "jax@cpu"): _KEYS,
    ("Resizing(height=4,width=5,interpolation=bicubic) on 7x8x3", "jax@cpu"): _KEYS,
    ("SpectralNormalization(layer=Dense(units=4)) on 6", "jax@cpu"): (
        "cannot be told: JAX's gradient is by the kernel before the call, which finite differences "
        "follow to 0.04, the others' by the normalized one, which takes its place"
    ),
}


def rows(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Case, target, verdict and what was found, once for each that differs."""
    found = []
    for line in lines:
        seen: dict[tuple[str, str], dict[str, Any]] = {}
        for number, finding in enumerate(line["findings"], 1):
            key = finding["target"], finding["verdict"]
            bundle = line.get("bundles", {}).get(str(number))
            if finding["verdict"] == "not compared":
                continue
            if key in seen:
                seen[key]["bundle"] = seen[key]["bundle"] or bundle
                continue
            known = finding["known"] or {}
            found.append(
                {
                    "case": line["case"],
                    "target": finding["target"],
                    "verdict": finding["verdict"],
                    "found": _short(finding["message"]),
                    "upstream": known.get("upstream"),
                    "bundle": bundle,
                }
            )
            seen[key] = found[-1]
    return found


def _short(message: str) -> str:
    """The first sentences, without what stands before the colon and without paths."""
    message = " ".join(message.split())
    message = message.partition(" Known:")[0].partition(" Arguments received")[0]
    message = re.sub(r"\{\{node[^}]*\}\}.*", "...", message)
    return message if len(message) <= 240 else message[:240].rsplit(" ", 1)[0] + " ..."


def page(document: dict[str, Any]) -> str:
    """The results in Markdown."""
    results, versions = document["results"], document["versions"]
    names = ("keras", "tensorflow", "torch", "jax")
    of = ", ".join(f"{name} {versions[name]}" for name in names if versions.get(name))
    table = [
        "| case | target | verdict | found | bundle | upstream |",
        "|---|---|---|---|---|---|",
    ]
    for row in results["differ"]:
        link = row["upstream"]
        upstream = f"[{'/'.join(link.split('/')[-2:])}]({link})" if link else "none known here"
        found = row["found"].replace("|", "\\|").replace("`", "'")
        fault = JUDGE.get((row["case"], row["target"]))
        if fault is not None:
            upstream, found = "none", f"{fault} ({found})"
        paths = [f"{row['bundle']}/{name}" for name in ("issue.md", "case.json", "arrays.npz")]
        links = [
            f"[{path.rpartition('/')[2]}]({BUNDLES.name}/{path})"
            for path in ((*paths, SCRIPT) if row["bundle"] else ())
        ]
        cells = (
            f"`{row['case']}`",
            row["target"],
            row["verdict"],
            found,
            " ".join(links),
            upstream,
        )
        table.append(f"| {' | '.join(cells)} |")
    return "\n".join(
        [
            "# Layers and functions of Keras, compared",
            "",
            f"Made by `python benchmarks/{NAME}.py` with {of}: {results['agree']} of "
            f"{results['cases']} cases agree on {', '.join(results['targets'])}; the others are "
            "below. What a verdict means: [agreement](agreement.md). A case is in float32, with "
            "one training step; `multibackend-lstm agree --suite keras --only NAME` shows it in "
            "full. With the files of a bundle in one folder `repro.py` shows it by Keras and NumPy "
            "alone; what fails or is only suspicious has none."
            + (f" {note}" if (note := results.get("note")) else ""),
            "",
            *table,
            "",
        ]
    )


def main() -> None:
    """Run, write, and make the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--from", dest="results", type=Path, default=Path(f"{NAME}.jsonl"))
    parser.add_argument(
        "--again", action="store_true", help="what differs in the committed results alone"
    )
    parser.add_argument("--page", action="store_true", help="make the page from committed results")
    options = parser.parse_args()
    path = common.RESULTS / f"{NAME}.json"
    if not options.page:
        before = json.loads(path.read_text())["results"] if options.again else None
        console = Console(stderr=True)
        with agreement.Workers() as workers, console.status("starting") as status:
            if options.again or not options.results.exists():
                shutil.rmtree(BUNDLES, ignore_errors=True)
            lines = run_suite(
                workers,
                only="" if before is None else {row["case"] for row in before["differ"]},
                results=None if before else options.results,
                bundle=BUNDLES,
                progress=status.update,
            )
        differ = rows(lines)
        for script in BUNDLES.glob(f"*/*/{SCRIPT}"):
            script.replace(BUNDLES / SCRIPT)
        shown = {row["bundle"] for row in differ}
        for bundle in BUNDLES.glob("*/*/"):
            if f"{bundle.parent.name}/{bundle.name}" not in shown:
                shutil.rmtree(bundle)  # of another finding of a case and target that have a row
        known = {line["case"] for line in lines}
        agree = len(known - {row["case"] for row in differ})
        results = {
            **({"cases": len(lines), "agree": agree} if before is None else before),
            "targets": lines[0]["targets"],
            "differ": differ,
        }
        if before is not None:
            results["agree"] += agree
        common.write_results(NAME, str(__doc__).splitlines()[0], results)
    PAGE.write_text(page(json.loads(path.read_text())), encoding="utf-8")


if __name__ == "__main__":
    main()
