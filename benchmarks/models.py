"""What does a training step of each whole model cost, against the same model written natively?

    python benchmarks/models.py [--backend torch ...] [--seconds 12]

Each solution of `build_model` on batches of 32 cases of (time=100, channels=8, features=16), 64
units (16 for `conv_lstm`), and the small reference model on batches of 20 cases of (10, 3, 5); mean
squared error, Adam. In turns, in one process a backend:

- `trainer`: `model.train_on_batch`, Keras's trainer;
- `loop`: the same Keras model in a loop of the backend: on torch `loss.backward()` and
  `torch.optim.Adam`, on JAX a jitted step of `model.stateless_call` with `optax.adam`;
- `native`: the model written by hand, an `nn.Module` or a function around `lax.scan`, in that
  loop. Its weights are set from ours, and the outputs compared, first.

On torch the small model is then trained for epochs of 50 steps in several ways, to see what Keras's
trainer costs a step and what helps. torch runs on one thread, since threads that wait for each
other measure the machine's other work. Writes results/models.json and docs/images/models.svg.
"""

import argparse
import cProfile
import json
import pstats
from collections.abc import Callable
from typing import Any

import common
import numpy as np

TARGET = 1.2
CASES = {
    name: ("reshape" if name == "small" else name, shape, batch, units)
    for name, shape, batch, units in [
        ("small", (10, 3, 5), 20, 64),
        ("reshape", (100, 8, 16), 32, 64),
        ("pre_reshape", (100, 8, 16), 32, 64),
        ("conv", (100, 8, 16), 32, 64),
        ("channelwise", (100, 8, 16), 32, 64),
        ("conv_lstm", (100, 8, 16), 32, 16),
    ]
}
FILTERS, KERNEL_SIZE = 16, 3  # the defaults of build_model
LEARNING_RATE = 1e-3
Step = Callable[[], Any]


def torch_model(solution: str, shape: tuple[int, ...], weights: list[np.ndarray]) -> Any:
    """The model as a PyTorch user writes it, with the weights of the Keras model."""
    import torch
    from torch import nn

    channels, features = shape[-2:]

    class Recurrent(nn.Module):
        """LSTM, and what each solution has before it."""

        def __init__(self, units: int) -> None:
            super().__init__()
            self.units = units
            if solution == "conv":
                self.conv = nn.Conv1d(features, FILTERS, KERNEL_SIZE, padding="same")
            size = {
                "conv": channels * FILTERS,
                "channelwise": features,
                "pre_reshape": shape[-1],
            }.get(solution, channels * features)
            self.lstm = nn.LSTM(size, units, batch_first=True)
            self.dense = nn.Linear(units * (channels if solution == "channelwise" else 1), 1)

        def forward(self, x: Any) -> Any:
            if solution == "reshape":
                x = x.flatten(2)
            elif solution == "conv":
                steps = self.conv(x.flatten(0, 1).transpose(1, 2)).relu()
                x = steps.reshape(x.shape[0], x.shape[1], -1)
            elif solution == "channelwise":
                x = x.transpose(1, 2).flatten(0, 1)
            h = self.lstm(x)[1][0][0]
            return self.dense(h.reshape(-1, self.dense.in_features))

    class ConvLSTM(nn.Module):
        """PyTorch has none: the inputs of all steps convolved at once, then a loop over time."""

        def __init__(self, units: int) -> None:
            super().__init__()
            self.inputs = nn.Conv1d(features, 4 * units, KERNEL_SIZE, padding="same")
            self.states = nn.Conv1d(units, 4 * units, KERNEL_SIZE, padding="same", bias=False)
            self.dense = nn.Linear(channels * units, 1)

        def forward(self, x: Any) -> Any:
            projected = self.inputs(x.flatten(0, 1).transpose(1, 2))
            h = c = projected.new_zeros(x.shape[0], self.states.in_channels, x.shape[2])
            for z in projected.unflatten(0, x.shape[:2]).unbind(1):
                i, f, g, o = (z + self.states(h)).chunk(4, 1)
                c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                h = o.sigmoid() * c.tanh()
            return self.dense(h.flatten(1))

    def positions_last(kernel: np.ndarray, positions: int) -> np.ndarray:
        """Rows in the order (positions, units), as Keras flattens them, to (units, positions)."""
        split = kernel.reshape(positions, -1, kernel.shape[1])
        return split.swapaxes(0, 1).reshape(kernel.shape)

    *before, dense_kernel, dense_bias = weights
    named: dict[str, np.ndarray] = {"dense.bias": dense_bias}
    if solution == "conv_lstm":
        kernel, recurrent_kernel, bias = before
        model: nn.Module = ConvLSTM(bias.size // 4)
        dense_kernel = positions_last(dense_kernel, channels)
        named["inputs.weight"], named["inputs.bias"] = kernel.transpose(2, 1, 0), bias
        named["states.weight"] = recurrent_kernel.transpose(2, 1, 0)
    else:
        *convolution, kernel, recurrent_kernel, bias = before
        model = Recurrent(bias.size // 4)
        if convolution:
            named["conv.weight"], named["conv.bias"] = convolution[0].transpose(2, 1, 0), before[1]
            kernel = positions_last(kernel, channels)
        named["lstm.weight_ih_l0"], named["lstm.weight_hh_l0"] = kernel.T, recurrent_kernel.T
        named["lstm.bias_ih_l0"], named["lstm.bias_hh_l0"] = bias, np.zeros_like(bias)
    named["dense.weight"] = dense_kernel.T
    model.load_state_dict({name: torch.from_numpy(v.copy()) for name, v in named.items()})
    return model


def torch_loop(model: Callable[[Any], Any], parameters: list[Any], x: Any, y: Any) -> Step:
    """A training step in a plain loop."""
    import torch

    optimizer = torch.optim.Adam(parameters, LEARNING_RATE)
    x, y = torch.from_numpy(x), torch.from_numpy(y)

    def step() -> float:
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def torch_steps(model: Any, solution: str, x: np.ndarray, y: np.ndarray) -> tuple[float, dict]:
    """Largest difference of the outputs, and the training steps to compare."""
    import torch

    rival = torch_model(solution, x.shape[1:], model.get_weights())
    with torch.no_grad():
        outputs = model(torch.from_numpy(x)), rival(torch.from_numpy(x))
    looped = copied(model)
    return float((outputs[0] - outputs[1]).abs().max()), {
        "trainer": trainer_step(model, x, y),
        "loop": torch_loop(
            lambda x: looped(x, training=True), [v.value for v in looped.trainable_variables], x, y
        ),
        "native": torch_loop(rival, list(rival.parameters()), x, y),
    }


def jax_model(solution: str, channels: int) -> Callable[[Any, Any], Any]:
    """The model as a JAX user writes it: a function of a list of weights, laid out as Keras's."""
    import jax
    import jax.numpy as jnp
    from jax import lax

    def convolve(x: Any, kernel: Any) -> Any:
        return lax.conv_general_dilated(
            x, kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
        )

    def scan(projected: Any, shape: tuple[int, ...], recurrent: Callable[[Any], Any]) -> Any:
        """The last output, from projected inputs (time, batch, ..., 4 * units)."""

        def step(carry: Any, z: Any) -> Any:
            h, c = carry
            i, f, g, o = jnp.split(z + recurrent(h), 4, axis=-1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            return (jax.nn.sigmoid(o) * jnp.tanh(c), c), None

        return lax.scan(step, (jnp.zeros(shape), jnp.zeros(shape)), projected)[0][0]

    def forward(weights: list[Any], x: Any) -> Any:
        *before, dense_kernel, dense_bias = weights
        batch, steps = x.shape[:2]
        kernel, recurrent_kernel, bias = before[-3:]
        units = bias.shape[0] // 4
        if solution == "conv_lstm":
            z = convolve(x.reshape(-1, *x.shape[2:]), kernel) + bias
            z = jnp.swapaxes(z.reshape(batch, steps, channels, -1), 0, 1)
            h = scan(z, (batch, channels, units), lambda h: convolve(h, recurrent_kernel))
        else:
            if solution == "conv":
                x = jax.nn.relu(convolve(x.reshape(-1, *x.shape[2:]), before[0]) + before[1])
            elif solution == "channelwise":
                x = jnp.swapaxes(x, 1, 2)
            x = x.reshape(-1, steps, kernel.shape[0])
            z = jnp.swapaxes(x @ kernel + bias, 0, 1)
            h = scan(z, (z.shape[1], units), lambda h: h @ recurrent_kernel)
        return h.reshape(batch, -1) @ dense_kernel + dense_bias

    return forward


def jax_loop(forward: Callable[[Any, Any], Any], weights: Any, x: Any, y: Any) -> Step:
    """A jitted training step."""
    import jax
    import jax.numpy as jnp
    import optax

    optimizer = optax.adam(LEARNING_RATE)
    x, y = jnp.asarray(x), jnp.asarray(y)
    state = {"weights": weights, "optimizer": optimizer.init(weights)}

    @jax.jit
    def update(weights: Any, optimizer_state: Any, x: Any, y: Any) -> Any:
        def loss_of(weights: Any) -> Any:
            return jnp.mean(jnp.square(forward(weights, x) - y))

        loss, gradients = jax.value_and_grad(loss_of)(weights)
        updates, optimizer_state = optimizer.update(gradients, optimizer_state)
        return loss, optax.apply_updates(weights, updates), optimizer_state

    def step() -> float:
        loss, *new = update(state["weights"], state["optimizer"], x, y)
        state["weights"], state["optimizer"] = new
        return float(jax.block_until_ready((loss, *new))[0])

    return step


def jax_steps(model: Any, solution: str, x: np.ndarray, y: np.ndarray) -> tuple[float, dict]:
    """Largest difference of the outputs, and the training steps to compare."""
    import jax.numpy as jnp

    # Copies, since Keras's trainer gives the memory of its weights away.
    weights = [jnp.array(v.value) for v in model.trainable_variables]
    fixed = [jnp.array(v.value) for v in model.non_trainable_variables]
    rival = jax_model(solution, x.shape[-2] if x.ndim > 3 else 1)
    difference = float(jnp.abs(model(x) - rival(weights, jnp.asarray(x))).max())
    return difference, {
        "trainer": trainer_step(model, x, y),
        "loop": jax_loop(
            lambda w, x: model.stateless_call(w, fixed, x, training=True)[0], weights, x, y
        ),
        "native": jax_loop(rival, weights, x, y),
    }


def copied(model: Any) -> Any:
    """A model of its own with the same weights."""
    import keras

    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    return copy


def trainer_step(model: Any, x: np.ndarray, y: np.ndarray) -> Step:
    """A training step by Keras's trainer."""
    model.compile(optimizer="adam", loss="mse")
    return lambda: float(model.train_on_batch(x, y))


def data(case: str) -> tuple[np.ndarray, np.ndarray]:
    """A batch of inputs and targets."""
    solution, shape, batch, _ = CASES[case]
    rng = np.random.default_rng(0)
    x = rng.normal(size=(batch, *shape)).astype("float32")
    y = rng.normal(size=(batch, 1)).astype("float32")
    return x.reshape(batch, shape[0], -1) if solution == "pre_reshape" else x, y


def measure(case: str, seconds: float) -> dict[str, Any]:
    """Measure a case on the active backend."""
    import keras

    from multibackend_lstm import build_model

    solution, shape, batch, units = CASES[case]
    x, y = data(case)
    model = build_model(x.shape[1:], solution, units=units)
    make = {"torch": torch_steps, "jax": jax_steps}[keras.backend.backend()]
    difference, steps = make(model, solution, x, y)
    if difference > 1e-5:
        raise ValueError(f"{case}: the hand-written model differs from ours by {difference}.")
    first = {name: round(common.timed(step) * 1e3, 1) for name, step in steps.items()}
    taken = common.alternate(steps, 200, limit=seconds)
    return {
        "case": case,
        "shape": shape,
        "batch": batch,
        "units": units,
        "largest_difference_of_outputs": difference,
        "first_step_ms": first,
        "turns": len(taken["native"]),
        **{name: common.summary(values) for name, values in taken.items()},
        **{
            f"{name}_ratio": common.ratio(taken[name], taken["native"])
            for name in ("trainer", "loop")
        },
    }


def study(seconds: float, steps: int = 50) -> dict[str, Any]:
    """The small model on torch, trained for epochs of `steps` steps in several ways."""
    import keras
    import torch

    from multibackend_lstm import build_model

    x, y = data("small")
    batch = len(x)
    xs, ys = np.tile(x, (steps, 1, 1, 1)), np.tile(y, (steps, 1))
    inputs, targets = torch.from_numpy(xs), torch.from_numpy(ys)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(inputs, targets), batch_size=batch
    )
    model = build_model(x.shape[1:], "reshape", units=64)

    class TorchOptimizer(keras.Model):
        """A training step of one's own: `fit` with a torch optimizer."""

        def train_step(self, data: Any) -> dict[str, Any]:
            x, y = data
            if not hasattr(self, "adam"):
                parameters = [v.value for v in self.trainable_variables]
                self.adam = torch.optim.Adam(parameters, LEARNING_RATE)
            self.adam.zero_grad()
            loss = torch.nn.functional.mse_loss(self(x, training=True), y)
            loss.backward()
            self.adam.step()
            return {"loss": loss.detach()}

    def fit(model: Any, data: Any = None, **options: Any) -> Step:
        model.compile(optimizer="adam", loss="mse", **options)
        arguments = {"x": xs, "y": ys, "batch_size": batch} if data is None else {"x": data}
        return lambda: model.fit(**arguments, shuffle=False, verbose=0)

    def train_on_batch(model: Any) -> Step:
        model.compile(optimizer="adam", loss="mse")
        return lambda: [float(model.train_on_batch(x, y)) for _ in range(steps)]

    def loop(model: Any, parameters: list[Any]) -> Step:
        optimizer = torch.optim.Adam(parameters, LEARNING_RATE)

        def epoch() -> float:
            total = 0.0
            for start in range(0, len(inputs), batch):
                optimizer.zero_grad()
                outputs = model(inputs[start : start + batch])
                loss = torch.nn.functional.mse_loss(outputs, targets[start : start + batch])
                loss.backward()
                optimizer.step()
                total += loss.item()
            return total

        return epoch

    own = copied(model)
    looped, rival = copied(model), torch_model("reshape", x.shape[1:], model.get_weights())
    ways = {
        "fit": fit(copied(model)),
        "fit, DataLoader": fit(copied(model), loader),
        "train_on_batch": train_on_batch(copied(model)),
        "fit, train_step with torch.optim": fit(TorchOptimizer(own.inputs, own.outputs)),
        "torch loop, Keras model": loop(
            lambda x: looped(x, training=True), [v.value for v in looped.trainable_variables]
        ),
        "torch loop, torch model": loop(rival, list(rival.parameters())),
    }
    taken = common.alternate(ways, 50, warm_up=1, limit=seconds)
    native = "torch loop, torch model"
    report = {
        name: {
            **common.summary([value / steps for value in values]),
            "ratio": common.ratio(values, taken[native]),
        }
        for name, values in taken.items()
    }
    refused, first = {}, {}
    # Each by itself and last, since what torch.compile leaves behind may slow other models' calls.
    for option, value in (("steps_per_execution", 10), ("jit_compile", True)):
        name = f"fit, {option}={value}"
        compiled = fit(copied(model), **{option: value})
        try:
            first[name] = round(common.timed(compiled), 1)
        except ValueError as error:
            refused[name] = str(error).strip().splitlines()[0]
            continue
        pair = {name: compiled, native: ways[native]}
        taken = common.alternate(pair, 50, warm_up=1, limit=seconds)
        report[name] = {
            **common.summary([value / steps for value in taken[name]]),
            "ratio": common.ratio(taken[name], taken[native]),
        }
    return {"steps": steps, "a_step": report, "first_epoch_s": first, "refused": refused}


def profile(case: str, way: str, threads: int, calls: int = 20) -> None:
    """Print where the time of a step goes."""
    import keras

    from multibackend_lstm import build_model

    solution, _, _, units = CASES[case]
    x, y = data(case)
    model = build_model(x.shape[1:], solution, units=units)
    make = {"torch": torch_steps, "jax": jax_steps}[keras.backend.backend()]
    if make is torch_steps:
        import torch

        torch.set_num_threads(threads)
    step = make(model, solution, x, y)[1][way]
    for _ in range(5):
        step()
    with cProfile.Profile() as profiler:
        for _ in range(calls):
            step()
    pstats.Stats(profiler).sort_stats("cumulative").print_stats(45)
    pstats.Stats(profiler).sort_stats("tottime").print_stats(25)


def plot(reports: list[dict[str, Any]]) -> None:
    """Ratios to the native model by case, and the ways to train the small model."""
    from matplotlib.figure import Figure

    studies = [report["study"] for report in reports if "study" in report]
    figure = Figure(figsize=(9, 2.8 * len(reports) + 2.4 * len(studies)), layout="constrained")
    axes = figure.subplots(len(reports) + len(studies), 1, squeeze=False)[:, 0]
    for ax, report in zip(axes, reports, strict=False):
        names = [case["case"] for case in report["cases"]]
        for offset, key, label in (
            (-0.2, "trainer", "model.train_on_batch"),
            (0.2, "loop", f"same Keras model, {report['loop']}"),
        ):
            positions = [index + offset for index in range(len(names))]
            ratios = [case[f"{key}_ratio"] for case in report["cases"]]
            ax.bar_label(ax.bar(positions, ratios, 0.4, label=label), fmt="%.2f", fontsize=8)
        ax.axhline(1, color="black", linewidth=0.8)
        ax.axhline(TARGET, color="gray", linewidth=0.8, linestyle="--")
        ax.set_xticks(range(len(names)), names)
        ax.margins(y=0.15)
        ax.set_ylabel("training step,\nof the native model's")
        ax.set_title(report["backend"])
        ax.legend(fontsize=8)
    for ax, result in zip(axes[len(reports) :], studies, strict=True):
        ways = sorted(result["a_step"].items(), key=lambda item: item[1]["median_ms"])
        bars = ax.barh([name for name, _ in ways], [value["median_ms"] for _, value in ways])
        ax.bar_label(bars, fmt="%.2f", fontsize=8)
        ax.set_xlabel("ms a training step, small model on torch")
    common.IMAGES.mkdir(exist_ok=True)
    figure.savefig(common.IMAGES / "models.svg", metadata={"Date": None})


def show(report: dict[str, Any]) -> None:
    """Print the table of a backend."""
    print(f"\n{report['backend']:14}{'native, ms':>12}{'loop':>8}{'trainer':>9}   (of native)")
    for case in report["cases"]:
        missed = "" if case["loop_ratio"] <= TARGET else "   MISSED"
        print(
            f"{case['case']:14}{case['native']['median_ms']:12.2f}{case['loop_ratio']:8.2f}"
            f"{case['trainer_ratio']:9.2f}{missed}"
        )
    if "study" in report:
        for name, way in report["study"]["a_step"].items():
            print(f"{name:40}{way['median_ms']:8.2f} ms a step{way['ratio']:8.2f}")
        for name, error in report["study"]["refused"].items():
            print(f"{name:40}{error}")


def work(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure on the active backend."""
    import keras

    backend = keras.backend.backend()
    report: dict[str, Any] = {"backend": backend}
    if backend == "torch":
        import torch

        torch.set_num_threads(arguments.threads)
        report |= {"threads": arguments.threads, "loop": "torch loop"}
    else:
        import optax

        report |= {"loop": "jitted step with optax", "optax": optax.__version__}
    cases = arguments.case or list(CASES)
    report["cases"] = [measure(case, arguments.seconds) for case in cases]
    if backend == "torch" and "small" in cases:
        report["study"] = study(arguments.seconds)
    return report


def main() -> None:
    """Run on torch and JAX, write the results, print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backend", action="append", choices=("torch", "jax"), default=[])
    parser.add_argument("--case", action="append", choices=tuple(CASES), default=[])
    parser.add_argument("--seconds", type=float, default=12.0, help="time for each case")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--profile", choices=("trainer", "loop", "native"))
    parser.add_argument("--plot-only", action="store_true", help="plot the written results")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(work(arguments)))
        return
    if arguments.profile:
        for case in arguments.case:
            profile(case, arguments.profile, arguments.threads)
        return
    if arguments.plot_only:
        reports = json.loads((common.RESULTS / "models.json").read_text())["results"]
    else:
        options = ["--seconds", str(arguments.seconds), "--threads", str(arguments.threads)]
        options += [f"--case={case}" for case in arguments.case]
        reports = common.on_each_backend(__file__, options, arguments.backend or ["torch", "jax"])
        if not arguments.case:
            common.write_results("models", __doc__.splitlines()[0], reports)
    if not arguments.case:
        plot(reports)
    for report in reports:
        show(report)


if __name__ == "__main__":
    main()
