"""How near to float64 are the layers on a GPU, how many digits does TF32 cost, and how fast are
they beside `torch.nn.LSTM`, native JAX and cuDNN?

    python benchmarks/gpu.py --device gpu --minutes 8
    python benchmarks/gpu.py --device cpu --minutes 3 --least 300  # tries it without one

Each part runs in a process of its own, for its share of the time that is left. One that fails, or
has to be ended, is reported as such with its error and with what it had measured; the others go on,
and the exit status is 1. Cases stand in the order of their weight, so that what time is short for
are the last ones; they are named as left out. Written are results/gpu.json and results/gpu.md, with
the device and the versions; for a try on a processor results/gpu_on_cpu.json and .md.

A backend that is asked for and sees no GPU is a failure.
"""

import argparse
import json
import math
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import common

from multibackend_lstm.environment import installed_backends, versions
from multibackend_lstm.files import replacing

SCHEMA = 1
BACKENDS = ("torch", "jax", "tensorflow")
TESTS = Path(__file__).parents[1] / "tests"
# Layers with the options that decide a path, and the solutions; by tests/zoo/layers.py.
AGREEMENT_CASES = (
    "lstm-sequence",
    "gru-sequence",
    "solution-reshape-masked",
    "solution-conv-masked",
    "lstm-backwards",
    "bidirectional-concat",
    "conv_lstm-1d",
    "channelwise-concat",
    "solution-reshape-lengths",
    "lstm-states",
    "gru-states",
    "lstm-no_bias",
    "gru-no_bias",
    "lstm-zeros",
    "lstm-portable",
    "gru-reset_before",
    "conv-full",
    "conv-layer_norm",
    "conv-2d",
    "steps-dense",
    "steps-norm",
    "steps-masked",
    "conv_lstm-2d",
    "solution-channelwise-masked",
    "solution-conv_lstm-lengths",
)
# ((time, features, units, batch, dtype), mask, mode), as benchmarks/lstm.py takes them.
SPEED_CASES = [
    ((10, 64, 256, 32, "float32"), "none", "training"),
    ((100, 64, 256, 32, "float32"), "none", "training"),
    ((100, 64, 256, 32, "float32"), "right", "training"),
    ((100, 64, 256, 32, "float32"), "holes", "training"),
    ((100, 64, 256, 32, "bfloat16"), "none", "training"),
    ((100, 64, 256, 32, "float32"), "none", "inference"),
    *(((100, 64, 256, batch, "float32"), "none", "training") for batch in (1, 512, 128, 8)),
    *(((steps, 64, 256, 32, "float32"), "none", "training") for steps in (1000, 500)),
    ((100, 64, 256, 32, "bfloat16"), "right", "training"),
    ((100, 64, 256, 32, "float32"), "right", "inference"),
]
OURS = "multibackend_lstm.LSTM"
EXACT = 16  # digits of what has no error


class Budget:
    """Seconds that a part may take, and where its results go while it runs."""

    def __init__(self, seconds: float, path: Path) -> None:
        self.seconds, self.path = seconds, path
        self.end = time.monotonic() + seconds
        self.found: dict[str, Any] = {"cases": [], "left_out": []}

    def within(self, cases: Sequence[Any], name: Callable[[Any], str] = str) -> Iterator[Any]:
        """The cases that there is time for, the first one in any case."""
        for case in cases:
            if self.found["cases"] and time.monotonic() > self.end:
                self.found["left_out"].append(name(case))
                continue
            yield case
        self.write()

    def add(self, case: dict[str, Any]) -> None:
        """Keep what was measured, also if this process is ended."""
        self.found["cases"].append(case)
        self.write()

    def write(self) -> None:
        """Write all that is known."""
        with replacing(self.path) as temporary:
            temporary.write_text(json.dumps(self.found))


def agreement(budget: Budget, device: str, backends: Sequence[str], mode: str) -> None:
    """Compare layers and solutions with float64, each layer on what float64 gives it."""
    # This process only builds models: it must not take the GPU's memory.
    os.environ["KERAS_BACKEND"] = "numpy"
    sys.path.insert(0, str(TESTS))
    from zoo.layers import CASES, draw

    from multibackend_lstm import agreement as judge

    targets = [f"{backend}@{device}" for backend in backends]
    dtype = "mixed_bfloat16" if mode == "bfloat16" else None
    precision = "default" if mode == "default" else "strict"
    disagreeing = []
    with judge.Workers(targets, precision=precision) as workers:
        for name in budget.within(AGREEMENT_CASES):
            random.seed(0)  # of Keras's seeds: the weights are the same in each mode
            model = CASES[name]()
            report = judge.check(model, draw(model), workers=workers, steps=1, dtype=dtype)
            messages = [finding.message for finding in report.findings]
            disagreeing += [] if report.agrees else [name]
            budget.add(
                {
                    "case": name,
                    "agrees": report.agrees,
                    "findings": messages,
                    "targets": {r.target: digits_of(r.comparisons) for r in report.results},
                    "devices": {
                        r.target: (r.ready or {}).get("device", "did not start")
                        for r in report.results
                    },
                }
            )
            if report.could_not_run:
                raise SystemExit("; ".join(messages) or f"{name} could not run")
    if disagreeing and mode != "default":
        raise SystemExit(f"disagree with float64: {', '.join(disagreeing)}")


def digits_of(comparisons: Sequence[Any]) -> dict[str, dict[str, float]]:
    """Right decimal digits of the worst element, of outputs and of gradients, by layer."""
    layers: dict[str, dict[str, float]] = {}
    for found in comparisons:
        if found.layer is None or found.problem or not found.kind.endswith(("alone", "training")):
            continue
        part = "gradients" if "gradient" in found.kind else "outputs"
        error = max(found.max_relative, 10.0**-EXACT)
        digits = round(-math.log10(error), 2) if math.isfinite(error) else 0.0
        layer = layers.setdefault(found.layer, {})
        layer[part] = min(digits, layer.get(part, digits))
    return layers


def name_of(case: Any) -> str:
    """A case of speed in words."""
    (length, _, units, batch, dtype), mask, mode = case
    return f"{mode} of {length} steps, {units} units, batch {batch}, {dtype}, mask {mask}"


def speed(budget: Budget, device: str, backend: str) -> None:
    """Time one backend: ours and its rivals in turn, in one process."""
    os.environ["KERAS_BACKEND"] = backend
    import lstm

    from multibackend_lstm.runtimes import backend_runtime

    runtime = backend_runtime.active()
    budget.found |= {"device": runtime.use_device(device), "precision": runtime.precision()}
    for case in budget.within(SPEED_CASES, name_of):
        layer, steps = lstm.contestants(*case)
        measured = lstm.measure(steps, seconds=min(2.0, budget.seconds / 40), turns=50)
        (length, features, units, batch, dtype), mask, mode = case
        budget.add(
            {
                "time": length,
                "features": features,
                "units": units,
                "batch": batch,
                "dtype": dtype,
                "mask": mask,
                "mode": mode,
                "path": layer.implementation_report().path,
                "results": measured,
            }
        )


def go_backwards(budget: Budget, device: str) -> None:
    """Settle by gpu_go_backwards.py in what order Keras on JAX with a GPU returns its steps."""
    script = Path(__file__).with_name("gpu_go_backwards.py")
    command = [sys.executable, str(script), "--device", device]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    budget.add({"lines": run.stdout.splitlines()})
    if run.returncode:
        raise SystemExit("gpu_go_backwards.py has no verdict")


def parts(device: str, backends: Sequence[str]) -> dict[str, tuple[int, Callable[[Budget], None]]]:
    """The parts, each with its weight in the share of the time."""

    def compare(mode: str) -> Callable[[Budget], None]:
        return lambda budget: agreement(budget, device, backends, mode)

    chosen: dict[str, tuple[int, Callable[[Budget], None]]] = {
        "agreement_strict": (3, compare("strict"))
    }
    for backend in backends:
        chosen[f"speed_{backend}"] = (
            4,
            lambda budget, backend=backend: speed(budget, device, backend),
        )
    chosen["agreement_default"] = (2, compare("default"))
    chosen["agreement_bfloat16"] = (2, compare("bfloat16"))
    if "jax" in backends:
        chosen["go_backwards"] = (3, lambda budget: go_backwards(budget, device))
    return chosen


def run_part(
    name: str, device: str, backends: Sequence[str], seconds: float, most: float
) -> dict[str, Any]:
    """Run one part in a process of its own, ended after `most` seconds."""
    environment = {
        "TF_CPP_MIN_LOG_LEVEL": "3",
        # Several processes share the GPU's memory, of which each backend would take most.
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
        **os.environ,
        "PYTHONPATH": os.pathsep.join(
            filter(None, [str(TESTS.parent), os.environ.get("PYTHONPATH")])
        ),
    }
    environment.pop("KERAS_BACKEND", None)
    if device == "cpu":
        environment |= {"CUDA_VISIBLE_DEVICES": "-1", "JAX_PLATFORMS": "cpu"}
    with tempfile.TemporaryDirectory() as folder:
        path, errors = Path(folder, "found.json"), Path(folder, "errors.txt")
        command = [sys.executable, __file__, "--part", name, "--device", device]
        command += ["--seconds", str(seconds), "--out", str(path), "--backends", *backends]
        started = time.monotonic()
        with errors.open("w") as stream:
            # A group of processes: a part has workers, which must not outlive it.
            process = subprocess.Popen(
                command, stdout=stream, stderr=stream, env=environment, start_new_session=True
            )
            try:
                process.wait(most)
            except subprocess.TimeoutExpired:
                pass
            finally:
                ended = process.poll() is None
                if ended:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        report: dict[str, Any] = {
            "part": name,
            "status": "out of time" if ended else "failed" if process.returncode else "done",
            "seconds": round(time.monotonic() - started, 1),
            "found": json.loads(path.read_text()) if path.exists() else None,
        }
        if report["status"] != "done":
            text = errors.read_text(errors="replace").replace(str(TESTS.parent), ".")
            lines = text.replace(sys.prefix, "python").strip().splitlines()
            ending = [f"ended after {report['seconds']} s"] if ended else []
            report["error"] = "\n".join([*lines[-20:], *ending]) or "no message"
        return report


def measure(
    device: str, backends: Sequence[str], minutes: float, least: float
) -> Iterator[dict[str, Any]]:
    """Run all parts, one after the other, within the time; all that is known after each."""
    end = time.monotonic() + 60 * minutes
    weights = {name: weight for name, (weight, _) in parts(device, backends).items()}
    document = {
        "schema": SCHEMA,
        "question": " ".join(__doc__.split("\n\n")[0].split()),
        "device": device,
        "minutes": minutes,
        "backends": list(backends),
        "machine": {"architecture": platform.machine(), "cores": os.cpu_count()},
        "versions": versions(),
        "parts": [],
    }
    while weights:
        name, left = next(iter(weights)), max(end - time.monotonic(), 0.0)
        total = sum(weights.values())
        share = left * weights.pop(name) / total
        print(f"{name}: about {share:.0f} of {left:.0f} s left", file=sys.stderr, flush=True)
        # The case under way when a share is used up may end, and starting takes its time.
        report = run_part(name, device, backends, share, max(1.5 * share, least))
        print(f"  {report['status']}, {report['seconds']} s", file=sys.stderr, flush=True)
        document["parts"].append(report)
        yield document


def page(document: dict[str, Any]) -> str:
    """What was measured, in Markdown."""
    done = [report["part"] for report in document["parts"] if report["status"] == "done"]
    lines = [f"# {document['question']}", ""]
    if document["device"] != "gpu":
        lines += ["**A try of `benchmarks/gpu.py` on a processor: nothing here is of a GPU.**", ""]
    lines += [
        f"Within {document['minutes']:g} minutes, {len(done)} of {len(document['parts'])} parts. "
        + ", ".join(f"{name} {version}" for name, version in document["versions"].items())
        + ".",
        "",
    ]
    rows = []
    for report in document["parts"]:
        found = report["found"] or {}
        rows.append(
            [
                report["part"],
                report["status"],
                f"{report['seconds']:.0f}",
                str(len(found.get("cases", []))),
                str(len(found.get("left_out", []))),
            ]
        )
    lines += common.markdown(["part", "status", "seconds", "cases", "left out"], rows)
    for report in document["parts"]:
        if "error" in report:
            lines += ["", f"`{report['part']}`, {report['status']}:", "", "```text"]
            lines += [*report["error"].splitlines(), "```"]
    found_of = {r["part"]: r["found"] for r in document["parts"] if r["found"]}
    lines += speed_tables(found_of) + digit_tables(found_of)
    for case in found_of.get("go_backwards", {}).get("cases", []):
        lines += ["", "## `go_backwards` with `return_sequences` of Keras", "", "```text"]
        lines += [*case["lines"], "```"]
    return "\n".join(lines) + "\n"


def speed_tables(found_of: dict[str, Any]) -> list[str]:
    """A table a backend: milliseconds of a call, and ours over each rival."""
    lines = []
    for part, found in found_of.items():
        if not part.startswith("speed_") or not found["cases"]:
            continue
        lines += ["", f"## Speed: {part.removeprefix('speed_')}, {found['device']}", ""]
        settings = ", ".join(f"{name} {value}" for name, value in found["precision"].items())
        lines += [
            f"Medians of calls in turn, in ms; ratios are ours over the rival. {settings}.",
            "",
        ]
        names = {name: None for case in found["cases"] for name in case["results"] if name != OURS}
        rows = []
        for case in found["cases"]:
            ours = case["results"][OURS]["median_ms"]
            row = [f"{case[name]}" for name in ("time", "units", "batch", "dtype", "mask", "mode")]
            row += [case["path"], f"{ours:.2f}"]
            for name in names:
                rival = case["results"].get(name)
                row.append(f"{ours / rival['median_ms']:.2f}" if rival else "none")
            rows.append(row)
        header = ["time", "units", "batch", "dtype", "mask", "mode", "path", "ours"]
        lines += common.markdown([*header, *(f"over {name}" for name in names)], rows)
    return lines


def digit_tables(found_of: dict[str, Any]) -> list[str]:
    """A table a target: right decimal digits of each layer, and what TF32 costs of them."""
    modes = ("strict", "default", "bfloat16")
    digits: dict[str, dict[tuple[str, str, str], dict[str, float]]] = {}
    for mode in modes:
        for case in found_of.get(f"agreement_{mode}", {}).get("cases", []):
            for target, layers in case["targets"].items():
                for layer, parts_of in layers.items():
                    for part, value in parts_of.items():
                        key = (case["case"], layer, part)
                        digits.setdefault(target, {}).setdefault(key, {})[mode] = value
    lines = []
    for target, rows_of in digits.items():
        lines += ["", f"## Right digits, layer by layer: {target}", ""]
        lines += [
            "Of the worst element, against float64 on the same input. Exact ones left out.",
            "",
        ]
        rows = []
        for key, values in rows_of.items():
            if all(value >= EXACT for value in values.values()):
                continue
            cost = None
            if {"strict", "default"} <= values.keys():
                cost = values["strict"] - values["default"]
            row = [*key, *(f"{values[m]:.1f}" if m in values else "" for m in modes)]
            rows.append([*row, "" if cost is None else f"{cost:.1f}"])
        header = ["case", "layer", "of", "strict", "default", "mixed_bfloat16", "default costs"]
        lines += common.markdown(header, rows)
    return lines


def main() -> None:
    """Run all parts, or the one that `--part` names; status 1 if one is not done."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["gpu", "cpu"], default="gpu")
    parser.add_argument("--minutes", type=float, default=8.0, help="time for all parts together")
    parser.add_argument(
        "--least", type=float, default=60.0, help="seconds before a part is ended, at least"
    )
    parser.add_argument(
        "--backends", nargs="+", choices=BACKENDS, help="by default those that are installed"
    )
    parser.add_argument("--out", type=Path, default=common.RESULTS, help="folder of JSON and page")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    backends = options.backends or [name for name in BACKENDS if name in installed_backends()]
    if not backends:
        parser.error("no backend is installed: " + ", ".join(BACKENDS))
    if options.part:
        _, run = parts(options.device, backends)[options.part]
        run(Budget(options.seconds, options.out))
        return
    name = "gpu" if options.device == "gpu" else "gpu_on_cpu"
    options.out.mkdir(parents=True, exist_ok=True)
    document: dict[str, Any] = {}
    # After each part, so that a run that is interrupted leaves its results.
    for document in measure(options.device, backends, options.minutes, options.least):
        for suffix, text in (
            ("json", json.dumps(document, indent=1) + "\n"),
            ("md", page(document)),
        ):
            with replacing(options.out / f"{name}.{suffix}") as temporary:
                temporary.write_text(text, encoding="utf-8")
    print(f"written to {options.out / name}.json and .md")
    undone = [report["part"] for report in document["parts"] if report["status"] != "done"]
    if undone:
        raise SystemExit(f"not done: {', '.join(undone)}")


if __name__ == "__main__":
    main()
