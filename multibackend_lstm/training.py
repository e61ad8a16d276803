"""same_run: a whole training that is the same on every backend, and goes on after a kill."""

import hashlib
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from multibackend_lstm import backends
from multibackend_lstm.agreement.same_start import fit_order, initialize
from multibackend_lstm.distribution import for_fit
from multibackend_lstm.files import WriteError, check_writable, replacing
from multibackend_lstm.runtimes.execution import drawing_otherwise
from multibackend_lstm.runtimes.loading import check_file, parse_json

__all__ = ["same_run"]

_RUN = "run.json"


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
    callbacks: Sequence[keras.callbacks.Callback] = (),
    **fit_arguments: Any,
) -> dict[str, list[float]]:
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
            written whole after each epoch. If it holds those of this run, they are where the
            training goes on, on whichever backend wrote them.
        callbacks: of `fit`. What they keep to themselves (as `EarlyStopping` its count) starts
            anew where a training goes on.
        **fit_arguments: `validation_data`, `class_weight`, `verbose` and others of `fit`.

    Returns:
        What `fit` logged, a list over all epochs for each name.

    Raises:
        ValueError: for a model that is not compiled or not built, layers whose random numbers
            differ among backends, cases of different number, arguments that this sets itself, or
            a checkpoint of another run.
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
    taken = {"shuffle", "initial_epoch"} & fit_arguments.keys()
    if taken:
        raise ValueError(
            f"{owner}: {' and '.join(sorted(taken))} cannot be given; the order of the cases and "
            "the first epoch come from the seed and the checkpoint."
        )
    data = [x, y, sample_weight]
    count = _count(owner, data)
    run = {
        "seed": seed,
        "batch_size": batch_size,
        "cases": count,
        "data": _digest(data),
        "weights": [[*weight.shape] for weight in model.weights],
        "optimizer": type(model.optimizer).__name__.lower(),
    }
    initialize(model, seed)
    model.optimizer.build(model.trainable_variables)
    done: dict[str, Any] = {"epochs": 0, "history": {}}
    folder = None if checkpoint is None else Path(checkpoint)
    if folder is not None:
        done = _restore(folder, run, model)
    history: dict[str, list[float]] = done["history"]
    for epoch in range(done["epochs"], epochs):
        order = fit_order(count, seed, epoch)
        shuffled = keras.tree.map_structure(lambda a, order=order: np.asarray(a)[order], [x, y])
        weights = None if sample_weight is None else np.asarray(sample_weight)[order]
        x_given, y_given, weights, size = for_fit(
            owner, model, shuffled[0], shuffled[1], weights, batch_size
        )
        logs = model.fit(
            x_given,
            y_given,
            sample_weight=weights,
            batch_size=size,
            shuffle=False,
            initial_epoch=epoch,
            epochs=epoch + 1,
            callbacks=[*callbacks],
            **fit_arguments,
        ).history
        for name, values in logs.items():
            history.setdefault(name, []).extend(float(value) for value in values)
        if folder is not None:
            _save(folder, run, {"epochs": epoch + 1, "history": history}, model)
        if model.stop_training:
            break
    return history


def _count(owner: str, data: Any) -> int:
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
            digest.update(a.data)
    return digest.hexdigest()


def _restore(folder: Path, run: dict[str, Any], model: keras.Model) -> dict[str, Any]:
    """Give the model what the folder holds of the run; the epochs done and what they logged."""
    if not backends.active().process()[0]:
        check_writable(folder)
    note = folder / _RUN
    if not note.exists():
        return {"epochs": 0, "history": {}}
    found: dict[str, Any] = parse_json(check_file(note).read_bytes(), str(note))
    differing = [name for name, value in run.items() if found.get("run", {}).get(name) != value]
    if differing:
        raise ValueError(
            f"same_run: `checkpoint` {folder} is of another run, with another "
            f"{', '.join(differing)}. Give a new folder, or what that run was started with."
        )
    model.load_weights(folder / found["weights"])
    return found


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
        # Keras makes an optimizer to compare with, on all devices if it can, for which the others
        # would have to do the same.
        keras.distribution.set_distribution(None)
        model.save_weights(path)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise WriteError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        keras.distribution.set_distribution(distribution)


def _save(folder: Path, run: dict[str, Any], done: dict[str, Any], model: keras.Model) -> None:
    """Write the weights, then the note that names them, then remove those named before.

    Of several processes the first alone does.
    """
    if backends.active().process()[0]:
        return
    weights = f"epoch_{done['epochs']}.weights.h5"
    _write_weights(model, folder / weights)
    with replacing(folder / _RUN) as temporary:
        note = {"run": run, "weights": weights, **done}
        temporary.write_text(json.dumps(note, indent=1) + "\n")
    for path in folder.glob("epoch_*.weights.h5"):
        if path.name != weights:
            path.unlink()
