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
    epoch, which counts each batch by its rows. It is for losses that are the mean over a batch:
    not for a sum, and not for the mean over the valid steps of outputs with a mask.

    Args:
        x: array of the cases, or a nested structure of such arrays, in the order of training
            (`fit(shuffle=False)`).
        y: labels, likewise.
        batch_size: of the whole batch, a multiple of `replicas`.
        replicas: how many devices or processes share a batch.
        sample_weight: of each case, `(cases, ...)`, or a nested structure of such arrays, one for
            each output, as `fit` takes them; None for equal ones. For an output for each step
            that is `np.ones((cases, 1))`: `fit` would multiply `(cases,)` with the steps.

    Returns:
        `(x, y, sample_weight)`; what was given if the last batch needs nothing.

    Raises:
        ValueError: for a batch size that is no multiple.
    """
    return _filled("even_batches", x, y, batch_size, replicas, sample_weight, validation=False)


def _filled(
    owner: str, x: Any, y: Any, batch_size: int, replicas: int, weights: Any, validation: bool
) -> tuple[Any, Any, Any]:
    """See `even_batches`.

    For validation all weights are raised alike: there no batch's loss counts, but the mean of all,
    which is then that of the cases.
    """
    count = _rows(x)
    missing = _missing_rows(owner, count, batch_size, replicas)
    if not missing:
        return x, y, weights
    raised = count if validation else count % batch_size

    def weighed(a: Any) -> Any:
        a = np.array(a, "float64")
        a[count - raised :] *= (raised + missing) / raised
        return np.concatenate([a, np.zeros((missing, *a.shape[1:]))]).astype("float32")

    def filled(a: Any) -> Any:
        if a is None:
            return None
        a = np.asarray(a)
        return np.concatenate([a, np.repeat(a[-1:], missing, axis=0)])

    weights = tree.map_structure(weighed, np.ones(count) if weights is None else weights)
    x, y = tree.map_structure(filled, (x, y))
    return x, y, weights


def _missing_rows(owner: str, count: int, batch_size: int, replicas: int) -> int:
    """How many rows the last batch lacks for replicas to divide it."""
    if replicas < 1 or batch_size < 1 or batch_size % replicas:
        raise ValueError(
            f"{owner}: `batch_size` must be a multiple of the {replicas} replicas that share a "
            f"batch. Received {batch_size}."
        )
    return -(count % batch_size) % replicas


def data_parallel(model: keras.Model) -> None:
    """On torch, have `fit` share each batch among the processes of `torch.distributed`.

    The model is wrapped in PyTorch's `DistributedDataParallel`. Every process calls `fit` with all
    the data, in the same order (`shuffle=False`), and computes the outputs of its rows of each
    batch. It receives those of the others, so that loss and metrics are of the whole batch in
    each process, whatever they are: masked, weighted, a sum or a mean, of several outputs.
    Gradients of all processes are added up; dropout and noise of this package draw as on one
    device.

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
        model: built and compiled, with outputs of one row a case. `evaluate` and `predict` are
            not shared.

    Raises:
        ValueError: on another backend, without a process group, for a model that is not compiled,
            that keeps states from batch to batch, or (at the first step) whose layers add losses
            of their own.
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
    wrapped.register_comm_hook(None, lambda _, bucket: _sum_of_all(bucket.buffer()))
    rank, processes = backends.active().process()
    # A model of one's own may have a `call` without it.
    options = {"training": True} if model._call_has_training_arg else {}

    def train_step(data: Any) -> Any:
        x, y, weights = keras.utils.unpack_x_y_sample_weight(data)
        count = _rows(x)
        size = math.ceil(count / processes)
        first = min(rank * size, count)
        rows = min(size, count - first)
        # A process without a row computes on the first one, which counts for nothing.
        own = slice(first, first + rows) if rows else slice(0, 1)
        x_own = tree.map_structure(lambda a: None if a is None else a[own], x)
        with global_rows(own.start, own.stop - own.start):
            outputs = wrapped(x_own, **options)
        _check_added_losses(owner, model)
        model.zero_grad()

        def whole(a: Any) -> Any:
            return _whole_batch(a, slice(first, first + rows), size, processes, count)

        def with_mask(a: Any) -> Any:
            mask = getattr(a, "_keras_mask", None)
            a = whole(a)
            if mask is not None:
                a._keras_mask = whole(mask.to(torch.uint8)).bool()
            return a

        outputs = tree.map_structure(with_mask, outputs)
        loss = model.compute_loss(x, y, outputs, weights, training=True)
        for metric in model.metrics:
            if metric.name == "loss":
                metric.update_state(loss.detach(), sample_weight=count)
        # Each process has the regularizers' whole gradient, which must count once.
        loss = loss - (1 - 1 / processes) * sum(model.losses)
        scaled = model.optimizer.scale_loss(loss)
        scaled.backward()
        trained = model.trainable_weights
        with torch.no_grad():
            model.optimizer.apply([weight.value.grad for weight in trained], trained)
        return model.compute_metrics(x, y, outputs, sample_weight=weights)

    setattr(train_step, _MARK, True)
    model.train_step = train_step


def _rows(x: Any) -> int:
    """The number of cases in a nested structure of arrays, where some may be None."""
    return len(next(a for a in tree.flatten(x) if a is not None))


def _sum_of_all(gradients: Any) -> Any:
    """For `DistributedDataParallel`, whose own way is the mean."""
    import torch

    work = torch.distributed.all_reduce(gradients, async_op=True)
    return work.get_future().then(lambda done: done.value()[0])


def _whole_batch(own: Any, rows: slice, size: int, processes: int, count: int) -> Any:
    """A tensor for the whole batch, of which each process has `size` rows or fewer.

    Gradients go to the rows of this process alone. Where it has none, they are zeros for all of
    `own`, which `DistributedDataParallel` waits for.
    """
    import torch

    padded = own.new_zeros((size, *own.shape[1:]))
    padded[: rows.stop - rows.start] = own.detach()[: rows.stop - rows.start]
    parts = [torch.empty_like(padded) for _ in range(processes)]
    torch.distributed.all_gather(parts, padded)
    whole = torch.cat(parts)[:count]
    return torch.cat([whole[: rows.start], own[: rows.stop - rows.start], whole[rows.stop :]])


def _check_added_losses(owner: str, model: keras.Model) -> None:
    """Raise a ValueError for losses that layers add, of which a part of the rows gives a part."""
    of_weights = sum(weight.regularizer is not None for weight in model.trainable_variables)
    if len(model.losses) > of_weights:
        names = [layer.path or layer.name for layer in model._flatten_layers() if layer._losses]
        raise ValueError(
            f"{owner}: losses that layers add (`activity_regularizer`, `add_loss`) are of the rows "
            f"of one process, and how those of all make one is not known. Received "
            f"{', '.join(names)}. Leave them out, or regularize weights (`kernel_regularizer`)."
        )


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
    owner: str,
    model: keras.Model,
    x: Any,
    y: Any,
    weights: Any,
    batch_size: int,
    validation: bool = False,
) -> tuple[Any, Any, Any, int]:
    """What this process gives `fit`, so that all replicas together compute what one device does.

    Args:
        owner: whose error it is.
        model: to be trained.
        x: all cases, in the order of training.
        y: all labels.
        weights: all weights of cases, or None.
        batch_size: of the whole batch.
        validation: whether these are the cases for validation.

    Returns:
        `(x, y, weights, batch_size)` of this process.

    Raises:
        ValueError: for stateful layers, a loss that is not that of one device, a batch size that
            replicas do not divide, or outside of the scope in which a model was made.
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
    filled = _missing_rows(owner, _rows(x), batch_size, replicas) > 0
    if filled and weights is None:
        weights = _equal_weights(model, y, _rows(x))
    x, y, weights = _filled(owner, x, y, batch_size, replicas, weights, validation)
    _check_loss(owner, model, filled)
    if processes == 1:
        return x, y, weights, batch_size
    cases = np.arange(_rows(x))
    batches = np.split(cases, range(batch_size, len(cases), batch_size))
    own = np.concatenate([np.split(batch, processes)[process] for batch in batches])
    x, y, weights = tree.map_structure(
        lambda a: None if a is None else np.asarray(a)[own], (x, y, weights)
    )
    return x, y, weights, batch_size // processes


def _equal_weights(model: keras.Model, y: Any, count: int) -> Any:
    """Weights of 1 for each output, with the axes of its loss: `(cases, 1)` for `(cases, t)`."""
    ones = [
        np.ones((count, *[1] * (len(output.shape) - 2)))
        for output in tree.flatten(getattr(model, "outputs", []))
    ]
    if tree.is_nested(y) and len(ones) == len(tree.flatten(y)):
        return tree.pack_sequence_as(y, ones)
    return ones[0] if len(ones) == 1 else np.ones(count)


def _check_loss(owner: str, model: keras.Model, filled: bool) -> None:
    """Raise a ValueError for a loss that is another one on several devices.

    JAX computes it from the whole batch, and only rows that fill a batch up can change it.
    TensorFlow takes the mean of the losses of all devices.
    """
    of_parts = keras.backend.backend() == "tensorflow"
    if not (of_parts or filled):
        return
    outputs = tree.flatten(getattr(model, "outputs", []))
    right = {"sum_over_batch_size", "mean", "sum" if not filled else "mean_with_sample_weight"}
    if of_parts:
        right -= {"mean_with_sample_weight"}
    reductions = {getattr(loss, "reduction", "mean") for loss in tree.flatten(model.loss)}
    names = [
        layer.path or layer.name
        for layer in model._flatten_layers()
        if layer.activity_regularizer is not None
    ]
    found = []
    if any(getattr(output, "_keras_mask", None) is not None for output in outputs):
        found.append("the mean over the valid steps of outputs with a mask")
    if reductions - right:
        wrong = ", ".join(map(repr, sorted(reductions - right, key=str)))
        found.append(f"a loss with the reduction {wrong}")
    if filled and names:
        found.append(f"the activity regularizer of {', '.join(names)}")
    if not found:
        return
    remedy = "Train on one device, or on JAX or torch"
    if not of_parts:
        remedy = "Give cases and a `batch_size` of which the devices divide the last batch too"
    why = "rows of weight 0 fill the last batch up" if filled else "each device has its own mean"
    raise ValueError(
        f"{owner}: {why}, so that {' and '.join(found)} is not what one device computes. {remedy}."
    )
