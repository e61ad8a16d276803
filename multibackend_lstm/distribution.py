"""Trainings on several devices by each backend's own engine, with the numbers of one device."""

import collections
import math
import re
from typing import Any

import keras
import numpy as np
from keras import tree

from multibackend_lstm import backends
from multibackend_lstm.layers.replicas import global_rows

__all__ = ["data_parallel", "even_batches", "global_rows", "layout_map"]

# That `train_step` is the one of `data_parallel`.
_MARK = "_multibackend_lstm_data_parallel"


def layout_map(model: keras.Model, mesh: Any, axis: str = "model") -> Any:
    """Which weights `keras.distribution.ModelParallel` divides, for models of these layers.

    The kernels of each layer and their biases are divided along their last axis (the gates of a
    recurrent layer, the filters of a convolution, the units of a Dense layer) where the devices
    divide it; all else every device has whole.

    Example:
        >>> devices = keras.distribution.list_devices("cpu")
        >>> mesh = keras.distribution.DeviceMesh((1, len(devices)), ("batch", "model"), devices)
        >>> plan = layout_map(build_model((10, 3, 5), units=8), mesh)

    The model is one like that to train, which is built anew once the distribution is set: names
    of layers are matched with any number that Keras adds to them.

    Args:
        model: built.
        mesh: a `keras.distribution.DeviceMesh`.
        axis: its axis along which weights are divided.

    Returns:
        A `keras.distribution.LayoutMap`.

    Raises:
        ValueError: for a model that is not built or keeps states from batch to batch, and an axis
            that the mesh does not have.
    """
    owner = "layout_map"
    if not model.built:
        raise ValueError(f"{owner}: `model` must be built. Call it, or give it an input shape.")
    check_stateless(owner, model)
    names = list(mesh.axis_names)
    if axis not in names:
        raise ValueError(f"{owner}: `axis` must be one of {names}. Received {axis!r}.")
    count = mesh.shape[names.index(axis)]
    sizes = collections.defaultdict(set)
    for layer in model._flatten_layers():
        own = layer._trainable_variables
        if any(len(weight.shape) > 1 for weight in own):
            for weight in own:
                sizes[_pattern(weight.path)].add(tuple(weight.shape))
    plan = keras.distribution.LayoutMap(mesh)
    for pattern, shapes in sizes.items():
        ranks = {len(shape) for shape in shapes}
        if len(ranks) == 1 and all(shape[-1] % count == 0 for shape in shapes):
            plan[pattern] = (*[None] * (ranks.pop() - 1), axis)
    return plan


def _pattern(path: str) -> str:
    """A regular expression of a weight's path, with any number that Keras adds to the names."""
    names = [re.sub(r"_\d+$", "", name) for name in path.split("/")]
    return "/".join(re.escape(name) + r"(_\d+)?" for name in names)


def even_batches(
    x: Any, y: Any, batch_size: int, replicas: int, sample_weight: Any = None
) -> tuple[Any, Any, Any]:
    """Fill the last batch up so that replicas divide it, with rows that weigh nothing.

    `keras.distribution` on JAX refuses a batch that its devices do not divide. TensorFlow's
    strategies take it, and then average the means of unequal parts, which is not the mean of the
    batch. Filled up with weights of 0, and the others' weights raised by as much, the loss and
    its gradient are those of the batch on one device.

    Example:
        >>> x, y, weights = even_batches(np.ones((6, 3)), np.ones((6, 1)), 4, replicas=4)
        >>> x.shape, [float(w) for w in weights]
        ((8, 3), [1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 0.0, 0.0])

    What looks at rows and not at weights still sees those added, copies of the last one:
    `metrics` (`weighted_metrics` does not), BatchNormalization, and the mean of the losses of an
    epoch, which counts each batch by its rows.

    Args:
        x: array of the cases, or a nested structure of such arrays, in the order of training
            (`fit(shuffle=False)`).
        y: labels, likewise.
        batch_size: of the whole batch, a multiple of `replicas`.
        replicas: how many devices or processes share a batch.
        sample_weight: of each case, `(cases,)`; None for equal ones.

    Returns:
        `(x, y, sample_weight)`; what was given if the last batch needs nothing.

    Raises:
        ValueError: for a batch size that is no multiple.
    """
    if replicas < 1 or batch_size < 1 or batch_size % replicas:
        raise ValueError(
            f"even_batches: `batch_size` must be a multiple of the {replicas} replicas that share "
            f"a batch. Received {batch_size}."
        )
    count = len(tree.flatten(x)[0])
    rows = count % batch_size
    missing = -rows % replicas
    if not missing:
        return x, y, sample_weight
    weights = np.ones(count) if sample_weight is None else np.array(sample_weight, "float64")
    weights[count - rows :] *= (rows + missing) / rows
    weights = np.concatenate([weights, np.zeros((missing, *weights.shape[1:]))])

    def filled(a: Any) -> Any:
        a = np.asarray(a)
        return np.concatenate([a, np.repeat(a[-1:], missing, axis=0)])

    x, y = tree.map_structure(filled, (x, y))
    return x, y, weights.astype("float32")


def data_parallel(model: keras.Model) -> None:
    """On torch, have `fit` share each batch among the processes of `torch.distributed`.

    The model is wrapped in PyTorch's `DistributedDataParallel`, which averages the gradients.
    Every process calls `fit` with all the data, in the same order (`shuffle=False`), takes its
    rows of each batch, and gets losses and metrics of the whole batch. The loss is the mean over
    the whole batch, however its rows divide among the processes and whatever is masked in them;
    dropout and noise of this package draw as on one device.

    Example:
        >>> model = build_model((10, 3, 5), units=8)
        >>> model.compile("adam", "mean_squared_error")
        >>> if keras.backend.backend() == "torch" and torch.distributed.is_initialized():
        ...     data_parallel(model)  # under torchrun

    BatchNormalization is not synchronised: each process normalises its rows by their own
    statistics (Keras has `synchronized=True` on TensorFlow alone; on JAX all rows count anyway).
    Only what the first process saves should be used. Call `torch.distributed.barrier()` before
    `destroy_process_group()`: with gloo a process may otherwise wait for ever at its end.

    Args:
        model: built and compiled. `evaluate` and `predict` are not shared.

    Raises:
        ValueError: on another backend, without a process group, for a model that is not compiled,
            or that keeps states from batch to batch.
    """
    owner = "data_parallel"
    if keras.backend.backend() != "torch":
        raise ValueError(
            f"{owner}: it is for the backend torch. Received {keras.backend.backend()}. On JAX "
            "set `keras.distribution.DataParallel`, on TensorFlow build the model in the scope of "
            "a `tf.distribute.MirroredStrategy`; `fit` then shares each batch."
        )
    import torch

    if not torch.distributed.is_initialized():
        raise ValueError(
            f"{owner}: there is no process group. Start the script by torchrun, and call "
            '`torch.distributed.init_process_group("gloo")` ("nccl" on GPUs) first.'
        )
    if not model.built or getattr(model, "optimizer", None) is None:
        raise ValueError(f"{owner}: `model` must be built and compiled.")
    check_stateless(owner, model)
    if hasattr(model.train_step, _MARK):
        return
    wrapped = torch.nn.parallel.DistributedDataParallel(model)
    rank, processes = backends.active().process()

    def train_step(data: Any) -> Any:
        x, y, weights = keras.utils.unpack_x_y_sample_weight(data)
        count = len(tree.flatten(x)[0])
        size = math.ceil(count / processes)
        first = rank * size
        # A process without a row computes on the first one, and its loss counts for nothing.
        own = slice(first, min(first + size, count)) if first < count else slice(0, 1)
        x_own, y_own, weights_own = tree.map_structure(
            lambda a: None if a is None else a[own], (x, y, weights)
        )
        with global_rows(own.start, own.stop - own.start):
            outputs = wrapped(x_own, training=True)
        model.zero_grad()
        loss = model.compute_loss(x_own, y_own, outputs, weights_own, training=True)
        share = torch.tensor(float(_terms(outputs, own) if first < count else 0))
        total = share.clone()
        torch.distributed.all_reduce(total)
        # DistributedDataParallel averages over processes.
        loss = loss * (share * processes / total).to(loss.device)
        scaled = model.optimizer.scale_loss(loss)
        scaled.backward()
        trained = model.trainable_weights
        with torch.no_grad():
            model.optimizer.apply([weight.value.grad for weight in trained], trained)
            mean = loss.detach() / processes
            torch.distributed.all_reduce(mean)
            outputs = tree.map_structure(lambda a: _gathered(a, size, processes, count), outputs)
        for metric in model.metrics:
            if metric.name == "loss":
                metric.update_state(mean, sample_weight=count)
        return model.compute_metrics(x, y, outputs, sample_weight=weights)

    setattr(train_step, _MARK, True)
    model.train_step = train_step


def _terms(outputs: Any, own: slice) -> Any:
    """Of how many terms the loss of these rows is the mean."""
    mask = getattr(tree.flatten(outputs)[0], "_keras_mask", None)
    return own.stop - own.start if mask is None else mask.sum()


def _gathered(own: Any, size: int, processes: int, count: int) -> Any:
    """The outputs for the whole batch, of which each process has `size` rows or fewer."""
    import torch

    rows = own.new_zeros((size, *own.shape[1:]))
    rows[: len(own)] = own
    parts = [torch.empty_like(rows) for _ in range(processes)]
    torch.distributed.all_gather(parts, rows)
    return torch.cat(parts)[:count]


def check_stateless(owner: str, model: keras.Model) -> None:
    """Raise a ValueError that names the layers which keep states from batch to batch."""
    names = [
        layer.path or layer.name
        for layer in model._flatten_layers()
        if getattr(layer, "stateful", False)
    ]
    if names:
        raise ValueError(
            f"{owner}: stateful layers keep one state for each row of a batch, and no device has "
            f"all rows. Received {', '.join(names)}. Train with stateful=False, and give the "
            "weights to a stateful model of one device: `live.set_weights(model.get_weights())`."
        )


def for_fit(
    owner: str, model: keras.Model, x: Any, y: Any, weights: Any, batch_size: int
) -> tuple[Any, Any, Any, int]:
    """What this process gives `fit`, so that all replicas together compute what one device does.

    Args:
        owner: whose error it is.
        model: to be trained.
        x: all cases, in the order of training.
        y: all labels.
        weights: all weights of cases, or None.
        batch_size: of the whole batch.

    Returns:
        `(x, y, weights, batch_size)` of this process.

    Raises:
        ValueError: for stateful layers, a batch size that replicas do not divide, or outside of
            the scope in which a model was made.
    """
    backend = backends.active()
    replicas = backend.replicas()
    # A property of models on TensorFlow alone.
    strategy = getattr(model, "distribute_strategy", None)
    if strategy is not None and strategy.num_replicas_in_sync != replicas:
        raise ValueError(
            f"{owner}: `model` was made in the scope of a strategy with "
            f"{strategy.num_replicas_in_sync} replicas. Call this in that scope too."
        )
    if replicas == 1:
        return x, y, weights, batch_size
    check_stateless(owner, model)
    if keras.backend.backend() == "torch":
        data_parallel(model)
        return x, y, weights, batch_size
    process, processes = backend.process()
    if strategy is not None and processes > 1:
        raise ValueError(
            f"{owner}: `fit` of Keras 3 fails with MultiWorkerMirroredStrategy (keras#20585). "
            "Write the loop yourself, as examples/distributed/tensorflow_workers.py does, or use "
            "torch or JAX for several processes."
        )
    x, y, weights = even_batches(x, y, batch_size, replicas, weights)
    if processes == 1:
        return x, y, weights, batch_size
    cases = np.arange(len(tree.flatten(x)[0]))
    batches = np.split(cases, range(batch_size, len(cases), batch_size))
    own = np.concatenate([np.split(batch, processes)[process] for batch in batches])
    x, y, weights = tree.map_structure(
        lambda a: None if a is None else np.asarray(a)[own], (x, y, weights)
    )
    return x, y, weights, batch_size // processes
