"""How much faster is a training on several devices, and what will it be on many?

    python benchmarks/distributed.py

A training step of PyTorch's `DistributedDataParallel` with gloo, one thread a process, on 1, 2 and
4 processes of this machine: several sizes of a model and of the batch of each process, which stays
the same when processes are added (weak scaling). The rival is the same step in one process.

A cost model is fitted to some of the points and judged on the others:

    seconds = a + b * flops * max(1, processes / cores)                     (computation)
            + (processes > 1) * (2 (p - 1) latency + 2 (p - 1) / p * bytes / bandwidth)
                                                                            (ring all-reduce)

`a` is what a step costs whatever its size, `b` the seconds of an operation. From it follows the
efficiency on more devices, for this machine's constants and for those of named hardware. Writes
results/distributed.json, docs/images/distributed.svg, and the tables of docs/distribution.md.
Within five minutes.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "torch"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import common
import numpy as np

TIME, FEATURES = 50, 24
UNITS = (64, 128, 256, 512)
BATCHES = (8, 32, 128)  # of each process
PROCESSES = (1, 2, 4)
#: Left out of the fit, to judge it by: (units, batch, processes).
HELD_OUT = {(128, 32, 1), (128, 32, 2), (256, 8, 2), (256, 128, 2), (64, 8, 4), (512, 32, 4)}
SECONDS = 2.0  # of each point
MANY = (8, 16, 32, 64, 128, 256, 512, 1024)
#: Assumed devices: bytes a second and seconds of latency of one link of the ring. The first is
#: filled in from the fit.
LINKS = {
    "25 Gbit/s Ethernet, 50 us": (25e9 / 8, 50e-6),
    "200 Gbit/s InfiniBand, 5 us": (200e9 / 8, 5e-6),
}


def main() -> None:
    """Measure, fit, predict, and write all of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each point")
    parser.add_argument("--dry-run", action="store_true", help="write nothing")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.seconds)
        return
    points = [point for count in PROCESSES for point in measure(count, arguments.seconds)]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    model = fit(points, cores or 1)
    for point in points:
        point["predicted_ms"] = round(1e3 * predict(model, **places(point)), 3)
        point["held_out"] = (point["units"], point["batch"], point["processes"]) in HELD_OUT
        alone = next(
            p for p in points
            if p["processes"] == 1 and p["units"] == point["units"] and p["batch"] == point["batch"]
        )  # fmt: skip
        point["efficiency"] = round(alone["median_ms"] / point["median_ms"], 3)
    predictions = {
        name: {
            f"{units} units, batch {batch}": [
                round(efficiency(model, units, batch, count, *link), 3) for count in MANY
            ]
            for units in UNITS[::3]
            for batch in BATCHES[1:]
        }
        for name, link in {
            "this machine's processes": (
                1 / max(model["seconds_per_byte"], 1e-15),  # the fit may find none
                model["latency_s"],
            ),
            **LINKS,
        }.items()
    }
    errors = [abs(p["predicted_ms"] / p["median_ms"] - 1) for p in points if p["held_out"]]
    fitted = [abs(p["predicted_ms"] / p["median_ms"] - 1) for p in points if not p["held_out"]]
    results = {
        "cores": cores,
        "time": TIME,
        "features": FEATURES,
        "points": points,
        "model": model,
        "error_of_fitted": round(statistics.median(fitted), 3),
        "error_of_held_out": round(statistics.median(errors), 3),
        "largest_error_of_held_out": round(max(errors), 3),
        "devices": MANY,
        "predicted_efficiency": predictions,
    }
    measured, predicted = tables(results)
    print(measured, predicted, sep="\n")
    if arguments.dry_run:
        return
    path = common.write_results("distributed", __doc__.splitlines()[0], results)
    common.write_table("distribution.md", "measured scaling", measured)
    common.write_table("distribution.md", "predicted scaling", predicted)
    plot(results)
    print(f"written to {path.name}", file=sys.stderr)


def measure(count: int, seconds: float) -> list[dict[str, Any]]:
    """All points with so many processes."""
    print(f"{count} processes ...", file=sys.stderr, flush=True)
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    command = [sys.executable, *torchrun, __file__, "--worker", "--seconds", str(seconds)]
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    lines = [line for line in process.stdout.splitlines() if line.startswith("{")]
    return [json.loads(line) for line in lines]


def work(seconds: float) -> None:
    """In a process of torchrun: every size in turn; the first process prints."""
    import keras
    import torch
    from torch.nn.parallel import DistributedDataParallel

    from multibackend_lstm import build_model

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    rank, count = torch.distributed.get_rank(), torch.distributed.get_world_size()
    for units in UNITS:
        keras.utils.clear_session()
        model = build_model((TIME, 4, FEATURES // 4), units=units)
        module = DistributedDataParallel(model)
        optimizer = torch.optim.SGD([v.value for v in model.trainable_variables], lr=1e-3)
        for batch in BATCHES:
            x, y = torch.ones(batch, TIME, 4, FEATURES // 4), torch.zeros(batch, 1)

            def step(module: Any = module, optimizer: Any = optimizer, x: Any = x, y: Any = y):
                optimizer.zero_grad()
                torch.nn.functional.mse_loss(module(x, training=True), y).backward()
                optimizer.step()

            taken = common.alternate({"step": step}, 3, warm_up=1)["step"]
            # All processes must take as many steps.
            repeats = torch.tensor(
                max(3, min(200, int(seconds / max(statistics.median(taken), 1e-4))))
            )
            torch.distributed.broadcast(repeats, 0)
            taken = []
            for _ in range(int(repeats)):
                start = time.perf_counter()
                step()
                taken.append(time.perf_counter() - start)
            if rank == 0:
                point = {
                    "units": units,
                    "batch": batch,
                    "processes": count,
                    "bytes": 4 * model.count_params(),
                    # Forward and backward, of products alone: 2 a multiplication and addition.
                    "flops": 3 * 2 * batch * TIME * (FEATURES + units) * 4 * units,
                    **common.summary(taken),
                }
                print(json.dumps(point), flush=True)
    # Else gloo may wait for ever: it puts the last all-reduce away with Python's lock, which the
    # end of DistributedDataParallel holds (seen with PyTorch 2.13).
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def terms(flops: float, size: float, processes: int, busy: float) -> np.ndarray:
    """What each constant of the cost model is multiplied by."""
    ring = 2 * (processes - 1)
    return np.array([busy, flops * busy, ring, ring / processes * size])


def fit(points: list[dict[str, Any]], cores: int) -> dict[str, float]:
    """The constants of the least relative errors at the points that are not left out."""
    rows, sides = [], []
    for point in points:
        if (point["units"], point["batch"], point["processes"]) in HELD_OUT:
            continue
        seconds = point["median_ms"] / 1e3
        busy = max(1.0, point["processes"] / cores)
        rows.append(terms(point["flops"], point["bytes"], point["processes"], busy) / seconds)
        sides.append(1.0)
    constants = _nonnegative(np.stack(rows), np.array(sides))
    names = ("step_s", "seconds_per_flop", "latency_s", "seconds_per_byte")
    return {**dict(zip(names, map(float, constants), strict=True)), "cores": cores}


def _nonnegative(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Least squares with no constant below 0: of all choices of those that are 0, the best."""
    best, found = np.inf, np.zeros(a.shape[1])
    for chosen in range(1, 2 ** a.shape[1]):
        columns = [i for i in range(a.shape[1]) if chosen >> i & 1]
        values, *_ = np.linalg.lstsq(a[:, columns], b, rcond=None)
        rest = float(np.sum((a[:, columns] @ values - b) ** 2))
        if (values >= 0).all() and rest < best:
            best, found = rest, np.zeros(a.shape[1])
            found[columns] = values
    return found


def places(point: dict[str, Any]) -> dict[str, Any]:
    """What a prediction needs to know of a point."""
    return {key: point[key] for key in ("flops", "bytes", "processes")}


def predict(model: dict[str, float], flops: float, bytes: float, processes: int) -> float:
    """Seconds of a step on this machine."""
    busy = max(1.0, processes / model["cores"])
    constants = [
        model[name] for name in ("step_s", "seconds_per_flop", "latency_s", "seconds_per_byte")
    ]
    return float(terms(flops, bytes, processes, busy) @ constants)


def efficiency(
    model: dict[str, float], units: int, batch: int, count: int, bandwidth: float, latency: float
) -> float:
    """Of `count` devices with a core each: time of one step alone over that of all together."""
    flops = 3 * 2 * batch * TIME * (FEATURES + units) * 4 * units
    size = 4 * (4 * units * (FEATURES + units + 1) + units + 1)
    alone = model["step_s"] + flops * model["seconds_per_flop"]
    ring = 2 * (count - 1) * latency + 2 * (count - 1) / count * size / bandwidth
    return alone / (alone + ring)


def tables(results: dict[str, Any]) -> tuple[str, str]:
    """The two tables of the docs, in Markdown, with a line on the fit."""
    rows = []
    for units in UNITS:
        for batch in BATCHES:
            chosen = [p for p in results["points"] if (p["units"], p["batch"]) == (units, batch)]
            cells = [
                f"{p['median_ms']:.1f} ({p['predicted_ms']:.1f}{', left out' * p['held_out']})"
                for p in chosen
            ]
            rows.append(
                [str(units), str(batch), *cells, *(f"{p['efficiency']:.2f}" for p in chosen[1:])]
            )
    header = [
        "units", "batch of each",
        *(f"{n} process{'es' * (n > 1)}, ms" for n in PROCESSES),
        *(f"efficiency, {n}" for n in PROCESSES[1:]),
    ]  # fmt: skip
    model = results["model"]
    line = (
        f"On {results['cores']} cores. In brackets the cost model, whose median error is "
        f"{results['error_of_fitted']:.0%} at the points that it was fitted to and "
        f"{results['error_of_held_out']:.0%} at the {len(HELD_OUT)} left out (at most "
        f"{results['largest_error_of_held_out']:.0%}). Its constants: "
        f"{model['step_s'] * 1e3:.2f} ms a step, {model['seconds_per_flop'] * 1e12:.0f} ps an "
        f"operation, {model['latency_s'] * 1e6:.0f} us of latency, "
        f"{model['seconds_per_byte'] * 1e9:.2f} ns a byte."
    )
    image = "![Measured and predicted times of a step, and the efficiency of many devices]"
    image += "(images/distributed.svg)"
    measured = "\n".join([*common.markdown(header, rows), "", line, "", image, ""])
    rows = [
        [name, size, *(f"{value:.2f}" for value in values)]
        for name, sizes in results["predicted_efficiency"].items()
        for size, values in sizes.items()
    ]
    header = ["link", "model", *map(str, MANY)]
    return measured, "\n".join([*common.markdown(header, rows), ""])


def plot(results: dict[str, Any]) -> None:
    """Measured and predicted times, and the predicted efficiency."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for held_out, marker, label in ((False, "o", "fitted"), (True, "x", "left out of the fit")):
        points = [p for p in results["points"] if p["held_out"] == held_out]
        left.plot(
            [p["median_ms"] for p in points], [p["predicted_ms"] for p in points],
            marker, label=label,
        )  # fmt: skip
    ends = [
        min(p["median_ms"] for p in results["points"]),
        max(p["median_ms"] for p in results["points"]),
    ]
    left.plot(ends, ends, color="0.6", linewidth=1)
    left.set(
        xscale="log", yscale="log", xlabel="measured, ms a step", ylabel="cost model, ms a step"
    )
    left.legend()
    for name, sizes in results["predicted_efficiency"].items():
        size = [*sizes][-1]
        right.plot(MANY, sizes[size], "o-", label=name)
    right.set(
        xscale="log", ylim=(0, 1.02), xlabel="devices", ylabel=f"predicted efficiency ({size})"
    )
    right.legend()
    common.IMAGES.mkdir(exist_ok=True)
    figure.savefig(Path(common.IMAGES, "distributed.svg"), metadata={"Date": None})


if __name__ == "__main__":
    main()
