"""One process of a training by an engine: `python program.py '{"engine": ..., "out": ...}'`.

The tests start it, as many as the engine takes. It writes the losses of all steps and the weights
after the last one, and where `twins` is given those of runs that are perturbed.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

GIVEN: dict[str, Any] = json.loads(sys.argv[1])
ENGINE, DEVICES = GIVEN["engine"], GIVEN.get("devices", 1)
BACKENDS = {"jax": "jax", "tensorflow": "tensorflow", "torch": "torch"}
os.environ["KERAS_BACKEND"] = BACKENDS[ENGINE.partition("_")[0]]
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
if ENGINE in ("jax_data", "jax_model"):
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={DEVICES}"

import contextlib  # noqa: E402

import keras  # noqa: E402
import numpy as np  # noqa: E402

from multibackend_lstm import (  # noqa: E402
    LSTM,
    Dropout,
    LengthMasking,
    build_model,
    distribution,
    load_basic_motions,
)
from multibackend_lstm.agreement import fit_order, initialize  # noqa: E402
from multibackend_lstm.runtimes.noise_floor import NoiseFloor, perturbed, rounding_of  # noqa: E402
from multibackend_lstm.training import same_run  # noqa: E402

CASES, STEPS_OF_TIME, BATCH = 39, 20, 12  # the last batch of an epoch has 3 cases


class OwnCall(keras.Model):
    """A model whose `call` knows no `training`."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(4, activation="softmax", kernel_regularizer="l2")

    def build(self, input_shape: Any) -> None:
        """The weights."""
        self.dense.build((None, STEPS_OF_TIME * 6))
        self.built = True

    def call(self, x: Any) -> Any:
        """As `keras.Model`."""
        return self.dense(keras.ops.reshape(x, (-1, STEPS_OF_TIME * 6)))


def new_model(solution: str) -> keras.Model:
    """A compiled model of a solution, with all that a division of the batch could change."""
    if solution == "outputs":
        return several_outputs()
    if solution == "sum":
        inputs = keras.Input((STEPS_OF_TIME, 2, 3))
        model = keras.Model(inputs, keras.layers.Dense(1)(keras.layers.Flatten()(inputs)))
        model.compile(keras.optimizers.SGD(1e-3), keras.losses.MeanSquaredError(reduction="sum"))
        return model
    if solution == "own_call":
        model = OwnCall()
        model.build((None, STEPS_OF_TIME, 2, 3))
        model.compile("adam", "sparse_categorical_crossentropy")
        return model
    if solution == "batch_norm":
        inputs = keras.Input((STEPS_OF_TIME, 2, 3))
        synchronized = {"synchronized": True} if GIVEN.get("synchronized") else {}
        x = keras.layers.Flatten()(inputs)
        x = keras.layers.BatchNormalization(**synchronized)(keras.layers.Dense(8)(x))
        model = keras.Model(inputs, keras.layers.Dense(4, activation="softmax")(Dropout(0.3)(x)))
    else:
        model = build_model(
            (STEPS_OF_TIME, 2, 3),
            solution,
            units=8,
            outputs=4,
            task="multiclass",
            dropout=0.3,
            lengths=True,
        )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def several_outputs() -> keras.Model:
    """Outputs by name, one of them masked; regularizers, and clipping by the norm of all."""
    x = keras.Input((STEPS_OF_TIME, 2, 3), name="x")
    lengths = keras.Input((), dtype="int32", name="lengths")
    h = LengthMasking()([x, lengths])
    h = LSTM(6, return_sequences=True, kernel_regularizer="l2")(h)
    steps = keras.layers.Dense(2, name="steps")(h)
    motion = keras.layers.Dense(4, activation="softmax", name="motion")(LSTM(4, dropout=0.3)(h))
    model = keras.Model({"x": x, "lengths": lengths}, {"steps": steps, "motion": motion})
    model.compile(
        keras.optimizers.Adam(global_clipnorm=0.05),
        {"steps": "mean_squared_error", "motion": "sparse_categorical_crossentropy"},
        metrics={"steps": ["mean_absolute_error"], "motion": ["accuracy"]},
        weighted_metrics={"steps": ["mean_absolute_error"], "motion": ["accuracy"]},
    )
    return model


def data(solution: str) -> tuple[Any, Any, Any]:
    """Cases, labels, weights; of every second case only the first steps are valid."""
    motions = load_basic_motions()
    x, y = motions.x_train[:CASES, :: 100 // STEPS_OF_TIME], motions.y_train[:CASES]
    if solution in ("batch_norm", "sum", "own_call"):
        return x, y, None
    if solution == "pre_reshape":
        x = x.reshape(CASES, STEPS_OF_TIME, 6)
    lengths = np.random.default_rng(0).integers(1, STEPS_OF_TIME, CASES)
    lengths[::2] = STEPS_OF_TIME
    lengths = lengths.astype("int32")
    if solution != "outputs":
        return [x, lengths], y, None
    # A replica may have no valid step.
    lengths[lengths < STEPS_OF_TIME // 3] = 0
    weights = np.linspace(0.5, 2, CASES).astype("float32")
    of_steps = np.repeat(weights[:, None], STEPS_OF_TIME, axis=1)
    return (
        {"x": x, "lengths": lengths},
        {"steps": x[..., 0], "motion": y},
        {"steps": of_steps, "motion": weights[::-1].copy()},
    )


def train(model: keras.Model, x: Any, y: Any, given_weights: Any) -> np.ndarray:
    """What `fit` logs for all steps; a `fit` a step, whose loss is that of the step."""
    losses, epoch = [], 0
    batch = GIVEN.get("batch", BATCH)
    while len(losses) < GIVEN["steps"]:
        order = fit_order(CASES, 0, epoch)
        if GIVEN.get("drop_last"):
            order = order[: len(order) // batch * batch]
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            cases = keras.tree.map_structure(
                lambda a, rows=rows: None if a is None else a[rows], (x, y, given_weights)
            )
            prepare = given_as_it_is if GIVEN.get("as_it_is") else distribution.for_fit
            *step, weights, size = prepare("test", model, *cases, batch)
            logs = model.fit(
                *step, sample_weight=weights, batch_size=size, shuffle=False, verbose=0
            ).history
            # Rows that fill a batch up count in metrics.
            names = sorted(logs) if GIVEN.get("all_logs") else ["loss"]
            losses.append([logs[name][0] for name in names])
        epoch += 1
    return np.array(losses[: GIVEN["steps"]])


def given_as_it_is(owner: str, model: Any, x: Any, y: Any, weights: Any, size: int) -> Any:
    """What a user gives who does not use our helpers."""
    return x, y, weights, size


def weights_of(model: keras.Model) -> dict[str, np.ndarray]:
    """Weights by a number; Keras numbers the layers of each further model anew."""
    return {
        f"{number} {weight.name}": np.array(keras.ops.convert_to_numpy(weight.value))
        for number, weight in enumerate(model.weights)
    }


def run(solution: str, out: dict[str, np.ndarray]) -> None:
    """Train one solution, and its twins, into a dictionary of arrays."""
    x, y, weights = data(solution)
    model = new_model(solution)
    initialize(model, 0)
    model.optimizer.build(model.trainable_variables)
    variables = [*model.variables, *model.optimizer.variables]
    start = [np.array(keras.ops.convert_to_numpy(v.value * 1)) for v in variables]

    def result(inputs: Any) -> dict[str, np.ndarray]:
        losses = train(model, inputs, y, weights)
        found = {f"weight {path}": value for path, value in weights_of(model).items()}
        return {**found, **{f"loss {i}": loss for i, loss in enumerate(losses)}}

    exact = result(x)
    out |= {f"{solution}/{name}/values": value for name, value in exact.items()}
    floor = NoiseFloor(rounding_of(None, {}, False), in_float64=False)
    for twin in range(1, GIVEN.get("twins", 0) + 1):
        rng = np.random.default_rng(twin)
        size = floor.size(twin)
        for variable, value in zip(variables, start, strict=True):
            variable.assign(value)
        for weight in model.trainable_weights:
            value = keras.ops.convert_to_numpy(weight.value)
            weight.assign(perturbed(value, rng, size).astype("float32"))
        moved = keras.tree.map_structure(
            lambda a, rng=rng, size=size: perturbed(a, rng, size).astype(a.dtype), x
        )
        for name, value in result(moved).items():
            floor.add(twin, ("", name), value, exact[name])
    if GIVEN.get("twins"):
        floors = {name: np.array(floor.of(("", name))[0]) for name in exact}
        out |= {f"{solution}/{name}/floor": value for name, value in floors.items()}


@contextlib.contextmanager
def engine() -> Any:
    """Start the engine; what is built within trains by it."""
    if ENGINE in ("jax", "tensorflow", "torch"):
        yield
    elif ENGINE == "jax_processes":
        place = GIVEN["address"], DEVICES, GIVEN["process"]
        if "heartbeat" in GIVEN:
            import jax

            # What Keras's does, which passes no such setting on.
            jax.distributed.initialize(*place, heartbeat_timeout_seconds=GIVEN["heartbeat"])
        else:
            keras.distribution.initialize(*place)
        keras.utils.set_random_seed(0)
        keras.distribution.set_distribution(
            keras.distribution.DataParallel(auto_shard_dataset=False)
        )
        yield
    elif ENGINE == "jax_data":
        keras.distribution.set_distribution(keras.distribution.DataParallel())
        yield
    elif ENGINE == "jax_model":
        shape = (max(DEVICES // 2, 1), min(DEVICES, 2))
        mesh = keras.distribution.DeviceMesh(shape, ("batch", "model"))
        plan = distribution.layout_map(new_model(GIVEN["solutions"][0]), mesh)
        assert DEVICES == 1 or len(plan) > 2
        keras.distribution.set_distribution(keras.distribution.ModelParallel(layout_map=plan))
        yield
    elif ENGINE == "torch_ddp":
        import torch

        torch.distributed.init_process_group("gloo")
        yield
        # Else gloo may wait for ever: it puts the last all-reduce away with Python's lock, which
        # the end of DistributedDataParallel holds (seen with PyTorch 2.13).
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    else:
        import tensorflow as tf

        device = tf.config.list_physical_devices("CPU")[0]
        logical = [tf.config.LogicalDeviceConfiguration()] * DEVICES
        tf.config.set_logical_device_configuration(device, logical)
        strategy = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(DEVICES)])
        with strategy.scope():
            yield


def main() -> None:
    """Run what is asked for."""
    out: dict[str, np.ndarray] = {}
    with engine():
        from multibackend_lstm import backends

        process = backends.active().process()[0]
        out_file = Path(GIVEN["out"])
        # For who kills one.
        out_file.with_name(f"{out_file.stem}-{process}.pid").write_text(str(os.getpid()))
        if "file_limit" in GIVEN:
            import resource

            limit = GIVEN["file_limit"]
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # an OSError in its place
        for solution in GIVEN["solutions"]:
            if "epochs" in GIVEN:  # of same_run
                x, y, weights = data(solution)
                model = new_model(solution)
                more: dict[str, Any] = {}
                if "validation" in GIVEN:
                    first = GIVEN["validation"]
                    more["validation_data"] = keras.tree.map_structure(lambda a: a[:first], (x, y))  # noqa: B023
                if "class_weight" in GIVEN:
                    weighed = enumerate(GIVEN["class_weight"])
                    more["class_weight"] = dict(weighed)
                if "user" in GIVEN:  # not before: another may not read what Python imports
                    os.seteuid(GIVEN["user"])
                history = same_run(
                    model, x, y, seed=0, epochs=GIVEN["epochs"], batch_size=BATCH, verbose=0,
                    sample_weight=weights, checkpoint=GIVEN.get("checkpoint"), **more,
                )  # fmt: skip
                out |= {f"{solution}/weight {n}/values": v for n, v in weights_of(model).items()}
                out |= {f"{solution}/{n}/values": np.array(v) for n, v in history.items()}
            else:
                run(solution, out)
        with out_file.with_name(f"{out_file.stem}-{process}.npz").open("wb") as file:
            np.savez(file, **out)


if __name__ == "__main__":
    main()
