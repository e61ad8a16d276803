"""Is `multibackend_lstm.LSTM` as fast as its backend can be, whatever the mask?

Rivals, in the same process and alternating with it: `keras.layers.LSTM` on every backend (with
the same mask, where there is one); `torch.nn.LSTM` in a plain loop on torch; a hand-written
`lax.scan` on JAX; on TensorFlow the Keras layer with and without XLA. Both without a mask and
with right-padding and holes, forward only ("inference") and forward, backward and SGD update
("training").

One process measures one backend:

    KERAS_BACKEND=torch python benchmarks/lstm.py --out benchmarks/results
    KERAS_BACKEND=torch python benchmarks/lstm.py --out benchmarks/results --memory
    python benchmarks/lstm.py --plot

The first call, which traces and compiles, is timed by itself. Then the contestants take turns,
one timed call each a turn, for a fixed time or number of turns; medians and quartiles are of
these calls, and a ratio is that of the medians. Nothing else should run on the machine. What is
measured with `--out` takes the place of the same cases in that folder's file, and leaves others.

`--memory` measures peak memory of a few cases instead, each contestant in a process of its own:
how far the largest resident size (of the process, so with what the compiler needs) rises above
that before the first call. `--plot` draws docs/images/lstm.svg from the committed results, and
`--tables` prints those of docs/lstm.md.
"""

import argparse
import itertools
import json
import os
import platform
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import keras
import numpy as np

import multibackend_lstm
from multibackend_lstm.environment import versions
from multibackend_lstm.files import replacing

BACKEND = keras.backend.backend()
LEARNING_RATE = 1e-3

# What is to be reached: ours over the rival, medians of training or inference.
TARGETS = {
    ("torch", "training", "none", "torch.nn.LSTM"): 1.2,
    ("torch", "training", "right", "torch.nn.LSTM"): 1.4,
    ("torch", "training", "holes", "torch.nn.LSTM"): 1.4,
    ("jax", "training", "none", "keras.layers.LSTM"): 0.85,
    ("jax", "training", "right", "keras.layers.LSTM"): 0.85,
    ("jax", "training", "holes", "keras.layers.LSTM"): 0.85,
}
DEFAULT_TARGET = 1.0  # against keras.layers.LSTM, for everything not named above

# (time, features, units, batch, dtype)
CASES = [
    (100, 64, 64, 32, "float32"),
    (100, 64, 256, 32, "float32"),
    (500, 64, 64, 32, "float32"),
    (500, 64, 256, 32, "float32"),
    (10, 64, 64, 32, "float32"),
    (1000, 64, 64, 32, "float32"),
    (100, 15, 64, 1, "float32"),
    (100, 128, 64, 256, "float32"),
    (100, 64, 64, 32, "bfloat16"),
]
MEMORY_CASES = [((500, 64, 256, 32, "float32"), kind) for kind in ("none", "holes")]
TINY_CASE = (5, 64, 8, 2, "float32")
QUICK_CASES = [(10, 16, 16, 8, "float32"), (50, 16, 16, 8, "float32")]


def mask_of(kind: str, batch: int, time_steps: int) -> np.ndarray | None:
    """A boolean (batch, time) mask with half to all steps valid; None for `"none"`."""
    rng = np.random.default_rng(0)
    if kind == "none":
        return None
    if kind == "right":
        lengths = rng.integers(max(time_steps // 2, 1), time_steps + 1, batch)
        return np.arange(time_steps) < lengths[:, None]
    return rng.random((batch, time_steps)) > 0.25


def torch_contestants(
    layers: dict[str, Any], x: np.ndarray, mask: np.ndarray | None, train: bool
) -> dict[str, Callable[[], Any]]:
    """A step for each layer and for `torch.nn.LSTM`."""
    import torch

    device = next(iter(layers.values())).trainable_variables[0].value.device
    inputs = torch.from_numpy(x).to(device)
    mask_tensor = None if mask is None else torch.from_numpy(mask).to(device)

    def step_of(call: Callable[[], Any], parameters: list[Any]) -> Callable[[], Any]:
        optimizer = torch.optim.SGD(parameters, LEARNING_RATE)

        def train_step() -> float:
            optimizer.zero_grad()
            loss = call().float().square().mean()
            loss.backward()
            optimizer.step()
            return float(loss.detach())

        def infer() -> Any:
            with torch.no_grad():
                result = call()
            if device.type == "cuda":
                torch.cuda.synchronize()
            return result

        return train_step if train else infer

    steps = {}
    for name, layer in layers.items():
        call = lambda layer=layer: layer(inputs, mask=mask_tensor)  # noqa: E731
        steps[name] = step_of(call, [v.value for v in layer.trainable_variables])
    units = next(iter(layers.values())).units
    dtype = getattr(torch, str(next(iter(layers.values())).compute_dtype))
    native = torch.nn.LSTM(x.shape[2], units, batch_first=True, dtype=dtype, device=device)
    typed_inputs = inputs.to(dtype)
    steps["torch.nn.LSTM"] = step_of(
        lambda: native(typed_inputs)[1][0][0], list(native.parameters())
    )
    return steps


def jax_contestants(
    layers: dict[str, Any], x: np.ndarray, mask: np.ndarray | None, train: bool
) -> dict[str, Callable[[], Any]]:
    """A jitted step for each layer and for a hand-written `lax.scan`."""
    import jax
    import jax.numpy as jnp
    import optax

    inputs = jnp.asarray(x)
    optimizer = optax.sgd(LEARNING_RATE)
    valid = None if mask is None else jnp.asarray(mask)

    def step_of(call: Callable[..., Any], parameters: Any) -> Callable[[], Any]:
        state = {"parameters": parameters, "optimizer": optimizer.init(parameters)}

        def loss(parameters: Any, x: Any, mask: Any) -> Any:
            return jnp.mean(jnp.square(call(parameters, x, mask).astype("float32")))

        @jax.jit
        def update(parameters: Any, optimizer_state: Any, x: Any, mask: Any) -> Any:
            value, gradients = jax.value_and_grad(loss)(parameters, x, mask)
            updates, optimizer_state = optimizer.update(gradients, optimizer_state)
            return value, optax.apply_updates(parameters, updates), optimizer_state

        forward = jax.jit(call)

        def train_step() -> Any:
            value, *new = update(state["parameters"], state["optimizer"], inputs, valid)
            state["parameters"], state["optimizer"] = new
            return jax.block_until_ready((value, *new))[0]

        def infer() -> Any:
            return jax.block_until_ready(forward(state["parameters"], inputs, valid))

        return train_step if train else infer

    def layer_call(layer: Any) -> Callable[..., Any]:
        fixed = [v.value for v in layer.non_trainable_variables]
        return lambda parameters, x, mask: layer.stateless_call(parameters, fixed, x, mask=mask)[0]

    def hand_written(parameters: Any, x: Any, mask: Any) -> Any:
        kernel, recurrent_kernel, bias = parameters
        z = jnp.swapaxes(x.astype(dtype) @ kernel + bias, 0, 1)
        xs = (z,) if mask is None else (z, mask.T[..., None])

        def step(carry: Any, xs: Any) -> Any:
            h, c = carry
            i, f, g, o = jnp.split(xs[0] + h @ recurrent_kernel, 4, axis=-1)
            new_c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            new_h = jax.nn.sigmoid(o) * jnp.tanh(new_c)
            if len(xs) > 1:
                new_h, new_c = jnp.where(xs[1], new_h, h), jnp.where(xs[1], new_c, c)
            return (new_h, new_c), None

        zeros = jnp.zeros((x.shape[0], recurrent_kernel.shape[0]), dtype)
        return jax.lax.scan(step, (zeros, zeros), xs)[0][0]

    def cudnn(parameters: Any, x: Any, mask: Any) -> Any:
        from jax.experimental import rnn

        kernel, recurrent_kernel, bias = parameters
        (batch, time, features), units = x.shape, recurrent_kernel.shape[0]
        parts = (kernel.T, recurrent_kernel.T, bias, jnp.zeros_like(bias))
        zeros = jnp.zeros((1, batch, units), x.dtype)
        return rnn.lstm(
            x,
            zeros,
            zeros,
            jnp.concatenate([part.ravel() for part in parts]),
            jnp.full(batch, time, "int32"),
            input_size=features,
            hidden_size=units,
            num_layers=1,
            dropout=0.0,
            bidirectional=False,
        )[1][0]

    first = next(iter(layers.values()))
    dtype = first.compute_dtype
    steps = {
        name: step_of(layer_call(layer), [v.value for v in layer.trainable_variables])
        for name, layer in layers.items()
    }
    steps["lax.scan"] = step_of(
        hand_written, [v.value.astype(dtype) for v in first.trainable_variables]
    )
    if jax.default_backend() == "gpu" and mask is None and dtype == "float32":
        steps["cuDNN by jax.experimental.rnn"] = step_of(
            cudnn, [v.value for v in first.trainable_variables]
        )
    return steps


def tensorflow_contestants(
    layers: dict[str, Any], x: np.ndarray, mask: np.ndarray | None, train: bool
) -> dict[str, Callable[[], Any]]:
    """A `tf.function` for each layer, with and without XLA."""
    import tensorflow as tf

    inputs = tf.constant(x)
    valid = None if mask is None else tf.constant(mask)

    def step_of(layer: Any, jit: bool) -> Callable[[], Any]:
        variables = [v.value for v in layer.trainable_variables]

        @tf.function(jit_compile=jit)
        def train_step() -> Any:
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(tf.cast(layer(inputs, mask=valid), tf.float32)))
            gradients = tape.gradient(loss, variables)
            for variable, gradient in zip(variables, gradients, strict=True):
                variable.assign_sub(LEARNING_RATE * gradient)
            return loss

        @tf.function(jit_compile=jit)
        def infer() -> Any:
            return layer(inputs, mask=valid)

        return lambda: (train_step if train else infer)().numpy()

    steps = {name: step_of(layer, jit=False) for name, layer in layers.items()}
    if not tf.config.list_logical_devices("GPU"):  # cuDNN cannot be in a program of XLA's
        steps |= {f"{name}, XLA": step_of(layer, jit=True) for name, layer in layers.items()}
    return steps


def measure(steps: dict[str, Callable[[], Any]], seconds: float, turns: int) -> dict[str, Any]:
    """First-call time, and median and quartiles of calls taken in turn, in milliseconds."""
    first = {name: common.timed(step) for name, step in steps.items()}
    taken = common.alternate(steps, turns, warm_up=0, limit=seconds)
    return {
        name: {
            "first_call_ms": round(1e3 * first[name], 3),
            **common.summary(calls),
            "calls": len(calls),
        }
        for name, calls in taken.items()
    }


def contestants(case: tuple[Any, ...], kind: str, mode: str) -> tuple[Any, dict[str, Any]]:
    """Our layer, and a step for it and each rival."""
    steps, features, units, batch, dtype = case
    x = np.random.default_rng(1).normal(size=(batch, steps, features)).astype("float32")
    mask = mask_of(kind, batch, steps)
    policy = "mixed_bfloat16" if dtype == "bfloat16" else dtype
    ours = multibackend_lstm.LSTM(units, dtype=policy)
    rival = keras.layers.LSTM(units, dtype=policy)
    for layer in (ours, rival):
        layer.build((None, steps, features))
    rival.set_weights(ours.get_weights())
    layers = {"multibackend_lstm.LSTM": ours, "keras.layers.LSTM": rival}
    make = {
        "torch": torch_contestants,
        "jax": jax_contestants,
        "tensorflow": tensorflow_contestants,
    }[BACKEND]
    return ours, make(layers, x, mask, mode == "training")


def run_case(case: tuple[Any, ...], kind: str, mode: str, options: Any) -> dict[str, Any]:
    """Measure one case and print ours over each rival."""
    steps, features, units, batch, dtype = case
    ours, functions = contestants(case, kind, mode)
    results = measure(functions, options.seconds, options.turns)
    mine = results["multibackend_lstm.LSTM"]["median_ms"]
    ratios = {
        name: round(mine / result["median_ms"], 3)
        for name, result in results.items()
        if name != "multibackend_lstm.LSTM"
    }
    targets = {
        name: TARGETS.get(
            (BACKEND, mode, kind, name), DEFAULT_TARGET if name == "keras.layers.LSTM" else None
        )
        for name in ratios
    }
    text = ", ".join(
        f"{ratio} of {name}"
        + (
            f" (target {targets[name]}{' MISSED' if ratio > targets[name] else ''})"
            if targets[name]
            else ""
        )
        for name, ratio in ratios.items()
    )
    print(f"{case} {mode} mask={kind}: {mine:.2f} ms; {text}", flush=True)
    return {
        "time": steps,
        "features": features,
        "units": units,
        "batch": batch,
        "dtype": dtype,
        "mask": kind,
        "mode": mode,
        "path": str(ours.implementation_report()),
        "results": results,
        "ratios": ratios,
        "targets": targets,
    }


def device() -> str:
    """The device that the backend computes on."""
    if BACKEND == "torch":
        import torch

        return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    if BACKEND == "jax":
        import jax

        return str(jax.devices()[0].device_kind)
    import tensorflow as tf

    return "gpu" if tf.config.list_logical_devices("GPU") else "cpu"


def memory_of(number: int, contestant: str) -> float:
    """Megabytes by which the peak rises in a training step of one contestant."""
    import resource

    case, kind = MEMORY_CASES[number]
    contestants(TINY_CASE, kind, "training")[1][contestant]()  # loads what is loaded late
    step = contestants(case, kind, "training")[1][contestant]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step()
    return round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, 1)


def measure_memory(threads: int | None) -> list[dict[str, Any]]:
    """Peak memory of the memory cases, each contestant in a process of its own."""
    measured = []
    for number, (case, kind) in enumerate(MEMORY_CASES):
        peaks = {}
        for name in contestants(TINY_CASE, kind, "training")[1]:
            if name.endswith("XLA"):
                continue
            arguments = ["--memory-worker", str(number), name]
            arguments += ["--threads", str(threads)] if threads else []
            process = subprocess.run(
                [sys.executable, __file__, *arguments], stdout=subprocess.PIPE, check=True
            )
            peaks[name] = float(process.stdout.split()[-1])
        print(f"{case} training mask={kind}: MB {peaks}", flush=True)
        names = ("time", "features", "units", "batch", "dtype")
        measured.append({**dict(zip(names, case, strict=True)), "mask": kind, "peak_mb": peaks})
    return measured


def main() -> None:
    """Measure, print, and write `lstm_{backend}.json`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="two small cases, to try the script")
    parser.add_argument("--out", type=Path, default=None, help="folder for the JSON file")
    parser.add_argument("--seconds", type=float, default=4.0, help="time for each measurement")
    parser.add_argument("--turns", type=int, default=50, help="most calls of each contestant")
    parser.add_argument(
        "--masks", nargs="+", default=["none", "right", "holes"], help="kinds of masks"
    )
    parser.add_argument("--only", default="", help="measure cases whose description has this text")
    parser.add_argument("--threads", type=int, help="threads of torch; one where cores are shared")
    parser.add_argument("--memory", action="store_true", help="peak memory instead of time")
    parser.add_argument("--plot", action="store_true", help="plot the committed results")
    parser.add_argument("--tables", action="store_true", help="print them from committed results")
    parser.add_argument("--memory-worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.plot or options.tables:
        (plot if options.plot else tables)()
        return
    if options.threads and BACKEND == "torch":
        import torch

        torch.set_num_threads(options.threads)
    if options.memory_worker:
        print(memory_of(int(options.memory_worker[0]), options.memory_worker[1]))
        return
    if options.memory:
        peaks = measure_memory(options.threads)
        if options.out is not None:
            write(options.out, {"memory": peaks}, options.threads)
        return
    if options.quick:
        options.seconds, options.turns = 0.2, 5
    cases = QUICK_CASES if options.quick else CASES
    for case, mode, kind in itertools.product(cases, ("training", "inference"), options.masks):
        if options.only in f"{case} {mode} {kind}":
            measured = run_case(case, kind, mode, options)
            if options.out is not None:  # each time, so that an interrupted run leaves its results
                write(options.out, {"cases": [measured]}, options.threads)


def write(folder: Path, measured: dict[str, list[dict[str, Any]]], threads: int | None) -> None:
    """Put cases into `lstm_{backend}.json`, with versions and device."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"lstm_{BACKEND}.json"
    old = json.loads(path.read_text()) if path.exists() else {}

    def key(case: dict[str, Any]) -> list[Any]:
        names = ("time", "features", "units", "batch", "dtype", "mask", "mode")
        return [case.get(name) for name in names]

    for part, cases in measured.items():
        new = [key(case) for case in cases]
        kept = [case for case in old.get(part, []) if key(case) not in new]
        measured = {**measured, part: kept + cases}
    report = {
        "question": __doc__.splitlines()[0],
        "backend": BACKEND,
        "device": device(),
        "cpus": os.cpu_count(),
        "threads": threads,
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "machine": platform.machine(),
        "versions": versions(),
        "cases": old.get("cases", []),
        "memory": old.get("memory", []),
        **measured,
    }
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(report, indent=1) + "\n")


def tables() -> None:
    """The tables of docs/lstm.md: 64 features, batch 32, float32."""
    rivals = {
        "torch": ["torch.nn.LSTM", "keras.layers.LSTM"],
        "jax": ["keras.layers.LSTM", "lax.scan"],
        "tensorflow": ["keras.layers.LSTM", "keras.layers.LSTM, XLA"],
    }
    for backend, names in rivals.items():
        cases = {}
        for case in json.loads((common.RESULTS / f"lstm_{backend}.json").read_text())["cases"]:
            if (case["features"], case["batch"], case["dtype"]) == (64, 32, "float32"):
                cases[case["time"], case["units"], case["mask"], case["mode"]] = case
        of = " | ".join(f"of `{name}`" for name in names)
        print(f"\n{backend}\n\n| time, units | mask | training, ms | {of} | inference, ms | {of} |")
        print("|---" * (4 + 2 * len(names)) + "|")
        for time, units, kind in sorted({key[:3] for key in cases}):
            cells = [f"{time}, {units}", kind]
            for mode in ("training", "inference"):
                case = cases[time, units, kind, mode]
                ours = case["results"]["multibackend_lstm.LSTM"]["median_ms"]
                cells += [f"{ours:.1f}", *(f"{case['ratios'][name]:.2f}" for name in names)]
            print(f"| {' | '.join(cells)} |")


def plot() -> None:
    """Ratios to each backend's rival, at 64 features, batch 32, float32, by size and mask."""
    from matplotlib.figure import Figure

    rivals = [
        ("torch", "torch.nn.LSTM"),
        ("torch", "keras.layers.LSTM"),
        ("jax", "keras.layers.LSTM"),
        ("tensorflow", "keras.layers.LSTM"),
    ]
    sizes = [(case[0], case[2]) for case in CASES if case[1:2] + case[3:] == (64, 32, "float32")]
    sizes.sort()
    figure = Figure(figsize=(9, 8), layout="constrained")
    grid = figure.subplots(len(rivals), 2, sharex=True, squeeze=False)
    for row, (backend, rival) in zip(grid, rivals, strict=True):
        cases = json.loads((common.RESULTS / f"lstm_{backend}.json").read_text())["cases"]
        for axes, mode in zip(row, ("training", "inference"), strict=True):
            for offset, kind in ((-0.25, "none"), (0.0, "right"), (0.25, "holes")):
                ratios = {
                    (case["time"], case["units"]): case["ratios"][rival]
                    for case in cases
                    if (case["features"], case["batch"], case["dtype"]) == (64, 32, "float32")
                    and (case["mask"], case["mode"]) == (kind, mode)
                }
                points = [(i, ratios[size]) for i, size in enumerate(sizes) if size in ratios]
                axes.bar([i + offset for i, _ in points], [r for _, r in points], 0.25, label=kind)
            axes.axhline(1, color="black", linewidth=0.8)
            axes.set_title(f"{mode}: {backend}, of {rival}", fontsize=10)
            axes.set_xticks(range(len(sizes)), [f"{time}\n{units}" for time, units in sizes])
    for axes in grid[-1]:
        axes.set_xlabel("time steps, and units below")
    grid[1, 1].legend(title="mask", fontsize=8, loc="center right")
    common.IMAGES.mkdir(exist_ok=True)
    figure.savefig(common.IMAGES / "lstm.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
