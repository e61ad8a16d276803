"""same_run: a whole training that is the same on every backend, and goes on after a kill."""

import collections
import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np

from multibackend_lstm import backends
from multibackend_lstm.agreement.same_start import fit_order, initialize
from multibackend_lstm.data.series import is_integer
from multibackend_lstm.distribution import check_stateless, for_fit
from multibackend_lstm.files import WriteError, check_writable, discard, replacing
from multibackend_lstm.layers.dropout import drawing_otherwise
from multibackend_lstm.runtimes.loading import cause, check_file, parse_json, read_arrays

__all__ = ["same_run"]

_RUN = "run.json"
# What callbacks of Keras remember from epoch to epoch (EarlyStopping, ReduceLROnPlateau, ...).
_REMEMBERED = ("wait", "best", "best_epoch", "stopped_epoch", "cooldown_counter", "best_weights")
# What the note holds of how far a training has come.
_PROGRESS = ("epochs", "steps", "stopped", "history")
_ANEW = "Give a new folder, or delete this one, to begin anew."


def same_run(
    model: keras.Model,
    x: Any,
    y: Any,
    *,
    seed: int,
    epochs: int,
    batch_size: int = 32,
    sample_weight: Any = None,
    checkpoint: str | Path | None = None,
    save_freq: int | Literal["epoch"] = "epoch",
    callbacks: Sequence[keras.callbacks.Callback] = (),
    **fit_arguments: Any,
) -> dict[str, list[Any]]:
    """Train a model by `fit`, with all that is random drawn from one seed, on every backend alike.

    Initial weights, dropout and noise, the order of the cases in each epoch and so the smaller
    last batch are the same on TensorFlow, torch and JAX. What is left are the backends' roundings,
    which training multiplies. Where several devices or processes share the batches, by
    `keras.distribution`, in the scope of a TensorFlow strategy, or under torchrun (see
    `distribution.data_parallel`), it computes what one does; the first process writes.

    Example:
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
        >>> model.compile("adam", "mean_squared_error")
        >>> x, y = np.ones((8, 3)), np.ones((8, 1))
        >>> losses = same_run(model, x, y, seed=0, epochs=2, verbose=0)["loss"]

    Args:
        model: built and compiled, and not trained yet. Its weights are drawn anew, by
            `multibackend_lstm.agreement.initialize`.
        x: array of the cases, or a nested structure of such arrays.
        y: labels, likewise.
        seed: an integer of at least 0.
        epochs: how many in all, those before a checkpoint among them.
        batch_size: cases of a step; the last step of an epoch takes those that are left.
        sample_weight: of each case; None for equal ones.
        checkpoint: folder for weights, the optimizer's state, how much was drawn, and the losses,
            written whole. If it holds those of this run, they are where the training goes on,
            on whichever backend wrote them. A training that was stopped early stays so.
        save_freq: when the checkpoint is written: after each epoch, and with an integer also
            after so many steps within one, on one device.
        callbacks: of `fit`. What those of Keras remember is in the checkpoint (the patience of
            `EarlyStopping`, its best weights); what others keep to themselves starts anew.
        **fit_arguments: `validation_data`, `class_weight`, `verbose` and others of `fit`.

    Returns:
        What `fit` logged, a list over all epochs for each name.

    Raises:
        ValueError: for a model that is not compiled or not built, layers whose random numbers
            differ among backends, cases of different number, arguments that this sets itself, or
            a checkpoint that is damaged, or of another run: another seed, batch size, data, loss,
            class weights, optimizer or setting of it.
    """
    owner = "same_run"
    if getattr(model, "optimizer", None) is None or not model.built:
        raise ValueError(
            f"{owner}: `model` must be built and compiled. Call `build` and `compile`."
        )
    others = [
        f"{layer.path or layer.name} ({type(layer).__name__})" for layer in drawing_otherwise(model)
    ]
    if others:
        raise ValueError(
            f"{owner}: layers draw other random numbers on each backend: {', '.join(others)}. "
            "Put the layer of `multibackend_lstm` of that name in their place, or leave them out."
        )
    taken = {"shuffle", "initial_epoch", "steps_per_epoch"} & fit_arguments.keys()
    if taken:
        raise ValueError(
            f"{owner}: {' and '.join(sorted(taken))} cannot be given; the order of the cases, all "
            "of which an epoch holds, and the first epoch come from the seed and the checkpoint."
        )
    if fit_arguments.get("validation_split"):
        raise ValueError(
            f"{owner}: `validation_split` cannot be given: the cases come in another order in each "
            "epoch, and it would hold out others each time. Split them before, and pass "
            "`validation_data`."
        )
    for name, value, least in (
        ("seed", seed, 0),
        ("epochs", epochs, 0),
        ("batch_size", batch_size, 1),
    ):
        if not is_integer(value) or value < least:
            raise ValueError(
                f"{owner}: `{name}` must be an integer of at least {least}. Received {value!r}."
            )
    seed, epochs, batch_size = int(seed), int(epochs), int(batch_size)
    if save_freq != "epoch" and (not is_integer(save_freq) or save_freq < 1):
        raise ValueError(
            f"{owner}: `save_freq` must be 'epoch' or a number of steps, at least 1. "
            f"Received {save_freq!r}."
        )
    several = backends.active().replicas() > 1
    if several:
        check_stateless(owner, model)
    if save_freq != "epoch" and several:
        raise ValueError(
            f"{owner}: `save_freq` must be 'epoch' where several devices share a batch. Received "
            f"{save_freq}."
        )
    class_weight = fit_arguments.pop("class_weight", None) or {}
    if class_weight:
        sample_weight = _weights_of_classes(owner, y, class_weight, sample_weight)
    data = [x, y, sample_weight]
    count = _count(owner, data)
    run = {
        "seed": seed,
        "batch_size": batch_size,
        "cases": count,
        "data": _digest(data),
        "weights": [[*weight.shape] for weight in model.weights],
        "optimizer": _described(model.optimizer),
        "loss": str(keras.tree.map_structure(_title, model.loss)),
        "class_weight": str(sorted(class_weight.items())),
    }
    initialize(model, seed)
    model.optimizer.build(model.trainable_variables)
    given = _Given([*callbacks], model=model)
    given.epochs = epochs
    given.begin()
    # With moving averages (EMA) each `fit` would put them in the place of the weights at its end,
    # from which the next went on. The run has one end.
    finalize = model.optimizer.finalize_variable_values
    training = _Training(model, run, None if checkpoint is None else Path(checkpoint), given)
    training.restore()
    if several:
        fit_arguments |= _validation(owner, model, batch_size, fit_arguments)
    while training.epochs < epochs and not training.stopped:
        rest = fit_order(count, seed, training.epochs)[training.steps * batch_size :]
        given.goes_on = training.steps > 0
        if training.steps:  # metrics have no variables to restore before a first call
            model.test_on_batch(*_cases(data, rest[:1]))
        cases = _cases(data, rest)
        *cases, size = for_fit(owner, model, cases[0], cases[1], cases[2], batch_size)
        with _without_an_end(model.optimizer):
            logs = model.fit(
                *cases[:2],
                sample_weight=cases[2],
                batch_size=size,
                shuffle=False,
                initial_epoch=training.epochs,
                epochs=training.epochs + 1,
                callbacks=[
                    _Metrics(training.metrics),
                    *([given] if callbacks else []),
                    *([] if save_freq == "epoch" else [_Saving(training, save_freq)]),
                ],
                **fit_arguments,
            ).history
        training.end_epoch(logs)
    finalize(model.trainable_variables)
    given.end()
    return training.history


class _Given(keras.callbacks.CallbackList):
    """The callbacks of a run, for which it begins and ends once, though `fit` is called often."""

    goes_on = False  # whether the epoch that `fit` begins had begun before
    epochs = 0  # of the whole run

    def set_params(self, params: Any) -> None:
        """Tell them of the whole run's epochs, not of those of one `fit`."""
        super().set_params({**params, "epochs": self.epochs})

    def begin(self) -> None:
        """The run begins, or goes on."""
        super().on_train_begin()

    def end(self) -> None:
        """The run ends."""
        super().on_train_end()

    def on_train_begin(self, logs: Any = None) -> None:
        """Of one `fit`: nothing."""

    def on_train_end(self, logs: Any = None) -> None:
        """Of one `fit`: nothing."""

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Hand it on, but for an epoch that goes on."""
        if not self.goes_on:
            super().on_epoch_begin(epoch, logs)

    def memory(self) -> dict[str, np.ndarray]:
        """What the callbacks remember, as arrays by name."""
        arrays = {}
        for name, callback in self._named():
            for attribute in _REMEMBERED:
                value = getattr(callback, attribute, None)
                if isinstance(value, list):
                    for position, weights in enumerate(value):
                        arrays[f"{name}/{attribute}/{position}"] = np.asarray(weights)
                elif value is not None:
                    arrays[f"{name}/{attribute}"] = np.asarray(value)
        return arrays

    def remember(self, arrays: dict[str, np.ndarray]) -> None:
        """The inverse of `memory`; a callback that was not there starts anew."""
        for name, callback in self._named():
            for attribute in _REMEMBERED:
                key = f"{name}/{attribute}"
                several = [k for k in arrays if k.startswith(f"{key}/")]
                if several:
                    setattr(
                        callback, attribute, [arrays[f"{key}/{i}"] for i in range(len(several))]
                    )
                elif key in arrays:
                    setattr(callback, attribute, arrays[key].item())

    def _named(self) -> Iterator[tuple[str, keras.callbacks.Callback]]:
        kinds: collections.Counter[str] = collections.Counter()
        for callback in self.callbacks:
            kind = type(callback).__name__
            yield f"{kind}/{kinds[kind]}", callback
            kinds[kind] += 1


class _Metrics(keras.callbacks.Callback):
    """Has an epoch go on with the sums of its metrics, where `fit` would start them at 0."""

    def __init__(self, values: list[np.ndarray]) -> None:
        super().__init__()
        self.values = values

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """After `fit` has set them to 0."""
        variables = self.model.metrics_variables if self.values else []
        if len(variables) != len(self.values):
            raise ValueError(
                "same_run: `checkpoint` was written within an epoch of a model with other metrics. "
                "Compile it with those it had."
            )
        for variable, value in zip(variables, self.values, strict=True):
            variable.assign(value)


class _Saving(keras.callbacks.Callback):
    """Saves a training after so many steps within an epoch."""

    def __init__(self, training: "_Training", frequency: int) -> None:
        super().__init__()
        self.training = training
        self.frequency = frequency
        self.before = training.steps

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Save, but for the last step: what belongs to the end of an epoch follows it."""
        if batch + 1 == self.params["steps"]:
            return
        steps = self.before + batch + 1
        if steps // self.frequency > self.training.steps // self.frequency:
            self.training.steps = steps
            # Where JAX keeps the state of a step apart, asking for the model writes it back.
            self.training.metrics = [v.numpy() for v in self.model.metrics_variables]
            self.training.save()


class _Training:
    """How far a training has come, in memory and in its folder."""

    def __init__(
        self, model: keras.Model, run: dict[str, Any], folder: Path | None, callbacks: _Given
    ) -> None:
        self.model = model
        self.run = run
        self.folder = folder
        self.callbacks = callbacks
        self.epochs = 0
        self.steps = 0  # of the epoch that is not whole yet
        self.stopped = False
        self.history: dict[str, list[Any]] = {}
        self.metrics: list[np.ndarray] = []

    def end_epoch(self, logs: dict[str, list[float]]) -> None:
        """An epoch is whole."""
        for name, values in logs.items():
            # A metric may have several numbers, one a class.
            numbers = [np.asarray(value, "float64").tolist() for value in values]
            self.history.setdefault(name, []).extend(numbers)
        self.epochs += 1
        self.steps, self.metrics = 0, []
        self.stopped = bool(self.model.stop_training)
        self.save()

    def save(self) -> None:
        """Write weights and numbers, then the note that names them, then remove those before.

        Of several processes the first alone does.
        """
        if self.folder is None or backends.active().process()[0]:
            return
        stem = f"epoch_{self.epochs}" + (f"_step_{self.steps}" if self.steps else "")
        weights, numbers = f"{stem}.weights.h5", f"{stem}.npz"
        _write_weights(self.model, self.folder / weights)
        arrays = {f"metrics/{i}": value for i, value in enumerate(self.metrics)}
        with replacing(self.folder / numbers) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays, **self.callbacks.memory())  # type: ignore[arg-type]
        note = {
            "run": self.run,
            "weights": weights,
            "numbers": numbers,
            **{name: getattr(self, name) for name in _PROGRESS},
        }
        with replacing(self.folder / _RUN) as temporary:
            temporary.write_text(json.dumps(note, indent=1) + "\n")
        for path in self.folder.glob("epoch_*"):
            if path.name not in (weights, numbers):
                path.unlink()

    def restore(self) -> None:
        """Take what the folder holds of this run, if it holds any."""
        if self.folder is None:
            return
        if not backends.active().process()[0]:
            check_writable(self.folder)
        note = self.folder / _RUN
        if not note.exists():
            return
        found: dict[str, Any] = parse_json(check_file(note).read_bytes(), str(note))
        stored = found.get("run")
        lacking = {*_PROGRESS, "weights", "numbers"} - found.keys()
        if lacking or not isinstance(stored, dict):
            raise ValueError(
                f"same_run: {note} is no note of a training, or damaged: it lacks "
                f"{', '.join(sorted(lacking)) or 'the run'}. {_ANEW}"
            )
        differing = [name for name, value in self.run.items() if stored.get(name) != value]
        if differing:
            raise ValueError(
                f"same_run: `checkpoint` {self.folder} is of another run, with another "
                f"{', '.join(differing)}. Give a new folder, or what that run was started with."
            )
        if found["steps"] and backends.active().replicas() > 1:
            raise ValueError(
                f"same_run: `checkpoint` {self.folder} was written within an epoch, which goes on "
                "on one device. Let that end the epoch first."
            )
        numbers, weights = (self.folder / found[name] for name in ("numbers", "weights"))
        arrays = read_arrays(numbers)
        try:
            self.model.load_weights(weights)
        except (OSError, ValueError, KeyError) as error:  # h5py's and Keras's
            raise ValueError(f"same_run: {weights} is damaged: {cause(error)}. {_ANEW}") from error
        for name in _PROGRESS:
            setattr(self, name, found[name])
        self.callbacks.remember(arrays)
        count = sum(name.startswith("metrics/") for name in arrays)
        self.metrics = [arrays[f"metrics/{i}"] for i in range(count)]


def _cases(data: Any, index: np.ndarray) -> Any:
    """Some of the cases, in that order."""

    def taken(a: Any) -> Any:
        return None if a is None else np.asarray(a)[index]

    return keras.tree.map_structure(taken, data)


@contextmanager
def _without_an_end(optimizer: Any) -> Iterator[None]:
    """A `fit` that does not finalize the variables of its optimizer."""
    optimizer.finalize_variable_values = lambda variables: None
    try:
        yield
    finally:
        del optimizer.finalize_variable_values


def _described(optimizer: Any) -> dict[str, Any]:
    """An optimizer and its settings, as JSON has them, the same on every backend."""
    described = {"class_name": type(optimizer).__name__, "config": optimizer.get_config()}
    return dict(json.loads(json.dumps(_settings(described), default=str)))


def _settings(value: Any) -> Any:
    """A configuration without names and modules, which differ from run to run and by backend."""
    if isinstance(value, dict):
        if "class_name" in value and isinstance(value.get("config"), dict):
            config = {key: item for key, item in value["config"].items() if key != "name"}
            return {"class": value["class_name"], **_settings(config)}
        return {key: _settings(item) for key, item in value.items()}
    return value


def _title(loss: Any) -> str:
    """What a loss is called, given as a name, a function or an object."""
    if isinstance(loss, str):
        return loss
    return getattr(loss, "__name__", None) or type(loss).__name__


def _weights_of_classes(owner: str, y: Any, class_weight: Any, sample_weight: Any) -> np.ndarray:
    """Weights of cases from those of their classes, as `fit` makes them.

    Here, since rows that fill a batch up have weights of their own, and `fit` takes one kind.
    """
    if sample_weight is not None:
        raise ValueError(
            f"{owner}: `class_weight` and `sample_weight` cannot both be given. Multiply the "
            "weight of each case by that of its class."
        )
    if keras.tree.is_nested(y):
        raise ValueError(f"{owner}: `class_weight` needs a model with one output.")
    y = np.asarray(y)
    y = y.reshape(len(y), -1)
    classes = np.argmax(y, axis=1) if y.shape[1] > 1 else np.round(y[:, 0]).astype("int64")
    return np.array([class_weight.get(int(label), 1.0) for label in classes], "float32")


def _validation(
    owner: str, model: keras.Model, batch_size: int, fit_arguments: dict[str, Any]
) -> dict[str, Any]:
    """The arguments of `fit` for validation, as devices that share a batch take it."""
    data = fit_arguments.get("validation_data")
    if data is None:
        return {}
    if not isinstance(data, tuple | list):
        raise ValueError(
            f"{owner}: `validation_data` must be (x, y) or (x, y, sample_weight), arrays, where "
            f"several devices share a batch. Received {type(data).__name__}."
        )
    x, y, weights = keras.utils.unpack_x_y_sample_weight(tuple(data))
    size = fit_arguments.get("validation_batch_size") or batch_size
    *cases, size = for_fit(owner, model, x, y, weights, size, validation=True)
    return {"validation_data": tuple(cases), "validation_batch_size": size}


def _count(owner: str, data: Any) -> int:
    for a in keras.tree.flatten(data):
        if a is not None and (not getattr(a, "shape", ()) or np.asarray(a[:1]).dtype == object):
            raise ValueError(
                f"{owner}: `x`, `y` and `sample_weight` must be arrays of numbers, one entry a "
                f"case, or nested structures of such. Received {type(a).__name__}."
                + (" Pass `numpy.asarray(x)`." if isinstance(a, (int, float)) else "")
            )
    counts = {len(a) for a in keras.tree.flatten(data) if a is not None}
    if len(counts) != 1 or 0 in counts:
        raise ValueError(
            f"{owner}: `x`, `y` and `sample_weight` must hold the same number of cases, at least "
            f"one. Received {sorted(counts)}."
        )
    return counts.pop()


def _digest(data: Any) -> str:
    """What tells these cases from others."""
    digest = hashlib.sha256()
    for a in keras.tree.flatten(data):
        if a is not None:
            a = np.ascontiguousarray(a)
            digest.update(f"{a.dtype}{a.shape}".encode())
            digest.update(a.reshape(-1).view("uint8").data)
    return digest.hexdigest()


def _write_weights(model: keras.Model, path: Path) -> None:
    """Write a file, or raise a `WriteError` and leave none.

    Not by `replacing`, whose names Keras does not take: until the note names it it is nothing.
    """
    variables = [*model.variables, *model.optimizer.variables]
    distribution = keras.distribution.distribution()
    size = sum(4096 + math.prod(v.shape) * 8 for v in variables) + 2**16
    try:
        # First the room, since on a full disk HDF5 ends the process without a word (h5py 3.16).
        with path.open("wb") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
        # Keras makes an optimizer to compare with, on all devices if it can, for which other
        # processes would have to do the same.
        keras.distribution.set_distribution(None)
        model.save_weights(path)
    except OSError as error:
        discard(path)
        raise WriteError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        keras.distribution.set_distribution(distribution)
