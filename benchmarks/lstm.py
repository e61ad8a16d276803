"""Is `multibackend_lstm.LSTM` as fast as its backend can be, whatever the mask?

Rivals, in the same process and alternating with it: `keras.layers.LSTM` on every backend (with
the same mask, where there is one); `torch.nn.LSTM` in a plain loop on torch; a hand-written
`lax.scan` on JAX; on TensorFlow the Keras layer with and without XLA. Both without a mask and
with right-padding and holes, forward only ("inference") and forward, backward and SGD update
("training").

One process measures one backend:

    KERAS_BACKEND=torch python benchmarks/lstm.py --out benchmarks/results

The first call, which traces and compiles, is timed by itself. Then the contestants take turns,
one timed call each a turn, for a fixed time or number of turns; medians and quartiles are of
these calls, and a ratio is that of the medians. Nothing else should run on the machine.
"""

import argparse
import importlib.metadata
import itertools
import json
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

import multibackend_lstm

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

    inputs = torch.from_numpy(x)
    mask_tensor = None if mask is None else torch.from_numpy(mask)

    def step_of(call: Callable[[], Any], parameters: list[Any]) -> Callable[[], Any]:
        optimizer = torch.optim.SGD(parameters, LEARNING_RATE)

        def train_step() -> float:
            optimizer.zero_grad()
            loss = call().float().square().mean()
            loss.backward()
            optimizer.step()
            return float(loss)

        def infer() -> Any:
            with torch.no_grad():
                return call()

        return train_step if train else infer

    steps = {}
    for name, layer in layers.items():
        call = lambda layer=layer: layer(inputs, mask=mask_tensor)  # noqa: E731
        steps[name] = step_of(call, [v.value for v in layer.trainable_variables])
    units = next(iter(layers.values())).units
    dtype = getattr(torch, str(next(iter(layers.values())).compute_dtype))
    native = torch.nn.LSTM(x.shape[2], units, batch_first=True, dtype=dtype)
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

    inputs = jnp.asarray(x)
    valid = None if mask is None else jnp.asarray(mask)

    def step_of(call: Callable[..., Any], parameters: Any) -> Callable[[], Any]:
        state = {"parameters": parameters}

        def loss(parameters: Any, x: Any, mask: Any) -> Any:
            return jnp.mean(jnp.square(call(parameters, x, mask).astype("float32")))

        @jax.jit
        def update(parameters: Any, x: Any, mask: Any) -> Any:
            value, gradients = jax.value_and_grad(loss)(parameters, x, mask)
            new = jax.tree.map(lambda p, g: p - LEARNING_RATE * g, parameters, gradients)
            return value, new

        forward = jax.jit(call)

        def train_step() -> Any:
            value, state["parameters"] = update(state["parameters"], inputs, valid)
            return jax.block_until_ready((value, state["parameters"]))[0]

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

    first = next(iter(layers.values()))
    dtype = first.compute_dtype
    steps = {
        name: step_of(layer_call(layer), [v.value for v in layer.trainable_variables])
        for name, layer in layers.items()
    }
    steps["lax.scan"] = step_of(
        hand_written, [v.value.astype(dtype) for v in first.trainable_variables]
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
    steps |= {f"{name}, XLA": step_of(layer, jit=True) for name, layer in layers.items()}
    return steps


def measure(steps: dict[str, Callable[[], Any]], seconds: float, turns: int) -> dict[str, Any]:
    """First-call time, and median and quartiles of calls taken in turn, in milliseconds.

    A contestant whose call takes longer than `seconds` has two turns only.
    """
    calls: dict[str, list[float]] = {name: [] for name in steps}

    def timed(name: str) -> float:
        start = time.perf_counter()
        steps[name]()
        return time.perf_counter() - start

    first = {name: timed(name) for name in steps}
    end = time.perf_counter() + seconds
    turn = 0
    while turn < 5 or (time.perf_counter() < end and turn < turns):
        for name, times in calls.items():
            if len(times) < 2 or times[-1] < 1e3 * seconds:
                times.append(1e3 * timed(name))
        turn += 1
    results = {}
    for name, times in calls.items():
        low, median, high = statistics.quantiles(times, n=4)
        results[name] = {
            "first_call_ms": round(1e3 * first[name], 3),
            "median_ms": round(median, 4),
            "quartiles_ms": [round(low, 4), round(high, 4)],
            "calls": len(times),
        }
    return results


def run_case(case: tuple[Any, ...], kind: str, mode: str, options: Any) -> dict[str, Any]:
    """Measure one case and print ours over each rival."""
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
    results = measure(make(layers, x, mask, mode == "training"), options.seconds, options.turns)
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


def main() -> None:
    """Measure, print, and write `lstm_{backend}.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two small cases, to try the script")
    parser.add_argument("--out", type=Path, default=None, help="folder for the JSON file")
    parser.add_argument("--seconds", type=float, default=4.0, help="time for each measurement")
    parser.add_argument("--turns", type=int, default=50, help="most calls of each contestant")
    parser.add_argument(
        "--masks", nargs="+", default=["none", "right", "holes"], help="kinds of masks"
    )
    parser.add_argument("--only", default="", help="measure cases whose description has this text")
    parser.add_argument("--threads", type=int, help="threads of torch; one where cores are shared")
    options = parser.parse_args()
    if options.threads and BACKEND == "torch":
        import torch

        torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    if options.quick:
        options.seconds, options.turns = 0.2, 5
    cases = QUICK_CASES if options.quick else CASES
    measured = []
    for case, mode, kind in itertools.product(cases, ("training", "inference"), options.masks):
        if options.only in f"{case} {mode} {kind}":
            measured.append(run_case(case, kind, mode, options))
            if options.out is not None:  # each time, so that an interrupted run leaves its results
                write(options.out, measured, options.threads)


def write(folder: Path, measured: list[dict[str, Any]], threads: int | None) -> None:
    """Write `lstm_{backend}.json` with versions and device."""
    versions = {"multibackend_lstm": multibackend_lstm.__version__}
    for package in ("keras", "numpy", "jax", "torch", "tensorflow", "tensorflow-cpu"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    report = {
        "question": __doc__.splitlines()[0],
        "backend": BACKEND,
        "device": device(),
        "cpus": os.cpu_count(),
        "threads": threads,
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": versions,
        "cases": measured,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"lstm_{BACKEND}.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
