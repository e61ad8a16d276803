"""`check_port`: do a Keras model and its PyTorch original compute the same?"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np
from keras import tree

from multibackend_lstm.environment import install_command
from multibackend_lstm.layers.wrapping import sublayers
from multibackend_lstm.runtimes.execution import with_dtype
from multibackend_lstm.torch_weights.axes import FlattenOrder
from multibackend_lstm.torch_weights.conversion import keras_value, plan
from multibackend_lstm.torch_weights.errors import PortingError
from multibackend_lstm.torch_weights.graph import Graph
from multibackend_lstm.torch_weights.matching import Mapped, Pair, part_name
from multibackend_lstm.torch_weights.port_check import Difference, PortCheck
from multibackend_lstm.torch_weights.running import Values, of_keras, of_module, run_torch
from multibackend_lstm.torch_weights.state_dict import StateDict
from multibackend_lstm.torch_weights.twins import check_copy, check_shape, twin_of

#: How far two tensors may differ, relative to the largest element, by the dtype of Keras. Where
#: PyTorch's own float32 is further from its float64 than a tenth of it, ten times that: healthy
#: backends differ by up to 8.5 times their rounding (docs/agreement_calibration.md). But never more
#: than a hundredfold, since a tensor which rounding spoils so tells nothing.
TOLERANCES = {"float32": 1e-6, "float64": 1e-12}
_BATCH, _STEPS = 3, 9
_ROUNDING, _MOST = 10.0, 100.0


def check_port(
    module_or_state_dict: Any,
    layer_or_model: Any,
    mapping: Mapped | None = None,
    *,
    flatten_order: FlattenOrder = "channels_first",
    inputs: Any = None,
    forward: Callable[..., Any] | None = None,
    tolerances: Mapping[str, float] = TOLERANCES,
    seed: int = 0,
) -> PortCheck:
    """Compare a Keras layer or model with its PyTorch original, forward and in all gradients.

    Every layer with weights is compared with a `torch.nn` module built for it, which gets its part
    of the tensors, on random input. Where a module is given, the whole model is compared with it as
    well. PyTorch computes in float64, Keras in float32, and on the TensorFlow backend, the only one
    that really computes in it, a copy of the Keras layers in float64 too. Neither the module nor
    the model is changed.

    Example:
        >>> check = check_port(module, model)
        >>> check.raise_if_different()

    Args:
        module_or_state_dict: as in `from_torch`.
        layer_or_model: as in `from_torch`.
        mapping: as in `from_torch`.
        flatten_order: as in `from_torch`.
        inputs: arrays for the whole model, one an input, as Keras takes them; drawn by default.
        forward: what PyTorch computes for the whole model, from a float64 copy of the module and
            tensors as Keras takes them, to what Keras returns:
            `lambda module, x: module(x.permute(0, 3, 1, 2)).softmax(-1)`. By default the module
            is called, with the last axis moved to the second place if a convolution comes first,
            and the outputs' second one to the last if they are filters'.
        tolerances: largest difference allowed, relative to a tensor's largest element, by dtype.
            (A float32 tensor may differ by more where PyTorch's own float32 does: by up to ten
            times as much as that is from PyTorch's float64.)
        seed: of the random input.

    Returns:
        The differences. (`raise_if_different()` makes them an error.)

    Raises:
        PortingError: as `from_torch`; or if PyTorch is not installed.
    """
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError as error:
        raise PortingError(
            f"porting: a comparison with PyTorch needs it: {install_command('torch')}"
        ) from error
    graph, state, pairs = plan(module_or_state_dict, layer_or_model, mapping, flatten_order)
    return check_pairs(
        graph, state, pairs, layer_or_model, inputs, forward, tolerances=tolerances, seed=seed
    )


def check_pairs(
    graph: Graph,
    state: StateDict,
    pairs: Sequence[Pair],
    layer_or_model: Any,
    inputs: Any = None,
    forward: Callable[..., Any] | None = None,
    *,
    tolerances: Mapping[str, float] = TOLERANCES,
    seed: int = 0,
) -> PortCheck:
    """As `check_port`, for layers that are paired already."""
    check = PortCheck()
    backend = keras.backend.backend()
    dtypes = ["float32", "float64"] if backend == "tensorflow" else ["float32"]
    if backend != "tensorflow":
        check.notes.append(f"float64 is not compared: Keras does not compute in it on {backend}.")
    generator = np.random.default_rng(seed)
    for dtype in dtypes:
        for pair in pairs:
            _check_layer(check, pair, state, dtype, tolerances[dtype], generator)
    if state.module is not None and isinstance(layer_or_model, keras.Model):
        given = _drawn(layer_or_model, generator) if inputs is None else inputs
        arrays = [np.asarray(x) for x in tree.flatten(given)]
        theirs, rounded = (of_module(graph, state, arrays, forward, wide) for wide in (True, False))
        for dtype in dtypes:
            model, originals = layer_or_model, layer_or_model.weights
            if dtype == "float64":
                model = _in_float64(layer_or_model)
                _assign(pairs, originals, model.weights, state)
            ours = of_keras(check, model, originals, arrays)
            _compare(check, "model", dtype, tolerances[dtype], ours, theirs, rounded, pairs)
    elif state.module is not None:
        check.notes.append("A single layer is compared with a torch module built for it.")
    return check


def _check_layer(
    check: PortCheck,
    pair: Pair,
    state: StateDict,
    dtype: str,
    tolerance: float,
    generator: np.random.Generator,
) -> None:
    """Compare one layer with a torch module that is built for it."""
    import torch

    found = pair.layer
    shape = check_shape(found, _BATCH, _STEPS)
    layer = check_copy(found, dtype)
    if isinstance(found.layer, keras.layers.Embedding):
        x = generator.integers(0, found.layer.input_dim, shape).astype("int32")
    else:
        x = generator.normal(size=shape).astype("float32")
    inputs = keras.Input(batch_shape=shape, dtype="int32" if x.dtype.kind == "i" else dtype)
    model = keras.Model(inputs, layer(inputs))
    if dtype == "float64":
        _assign([pair], found.layer.weights, layer.weights, state)
    else:
        layer.set_weights([keras_value(weight) for weight in found.layer.weights])
    ours = of_keras(check, model, found.layer.weights, [x])

    module, call = twin_of(found)
    tensors = pair.short_names(state.tensors)
    names = {n: part_name(n, None if pair.part.number is None else 0) for n in tensors}
    wanted = {names[name]: torch.tensor(np.array(value)) for name, value in tensors.items()}
    module.load_state_dict({**module.state_dict(), **wanted})

    def run(module: Any) -> Values:
        theirs = run_torch(module, lambda x: call(module, x), [x])
        full = {pair.part.names[name]: theirs.gradients.get(names[name]) for name in names}
        return replace(theirs, gradients=full)

    theirs, rounded = run(module), run(module.float())
    _compare(check, found.path, dtype, tolerance, ours, theirs, rounded, [pair])


def _assign(
    pairs: Sequence[Pair], originals: Sequence[Any], copies: Sequence[Any], state: StateDict
) -> None:
    """Give copied variables the tensors' values, not rounded to float32 on the way."""
    copy_of = {id(v): copied for v, copied in zip(originals, copies, strict=True)}
    for pair in pairs:
        tensors = pair.short_names(state.tensors)
        for weight in pair.layer.weights:
            copy_of[id(weight.variable)].assign(weight.to_keras(tensors).astype("float64"))


def _in_float64(model: keras.Model) -> keras.Model:
    config = with_dtype(keras.saving.serialize_keras_object(model), "float64")
    copied: keras.Model = keras.saving.deserialize_keras_object(config, safe_mode=True)
    return copied


def _drawn(model: keras.Model, generator: np.random.Generator) -> list[np.ndarray]:
    """Random inputs; integers are within all the Embeddings of the model."""
    sizes = [x.input_dim for x in sublayers(model) if isinstance(x, keras.layers.Embedding)]
    drawn = []
    for x in model.inputs:
        shape = [_BATCH, *(size or 4 * _STEPS for size in x.shape[1:])]
        if keras.backend.is_float_dtype(x.dtype) and not _is_embedded(model, x):
            drawn.append(generator.normal(size=shape).astype("float32"))
        else:
            drawn.append(generator.integers(0, min(sizes, default=2), shape).astype("int32"))
    return drawn


def _is_embedded(model: keras.Model, x: Any) -> bool:
    """Whether an Embedding takes an input of the model, which Keras makes float32 by default."""
    return any(
        isinstance(layer, keras.layers.Embedding) and layer.input is x for layer in model.layers
    )


def _compare(
    check: PortCheck,
    where: str,
    dtype: str,
    tolerance: float,
    ours: Values,
    theirs: Values,
    rounded: Values,
    pairs: Sequence[Pair],
) -> None:
    """Add the differences of all tensors to the check."""
    if len(ours.outputs) != len(theirs.outputs):
        raise PortingError(
            f"porting: {where} has {len(ours.outputs)} output(s) in Keras and "
            f"{len(theirs.outputs)} in PyTorch. Give `forward`, which calls the module and returns "
            "what Keras does."
        )
    compared = [
        (f"output {i}", ours.outputs[i], theirs.outputs[i], rounded.outputs[i])
        for i in range(len(ours.outputs))
    ]
    compared += [
        (f"gradient of input {i}", gradient, theirs.input_gradients[i], rounded.input_gradients[i])
        for i, gradient in enumerate(ours.input_gradients)
    ]
    for pair in pairs:
        for weight in pair.layer.weights:
            gradient = ours.gradients.get(id(weight.variable))
            if gradient is None:  # not trainable
                continue
            expected, in_float32 = (
                weight.to_keras(
                    {name: each.gradients[pair.part.names[name]] for name in weight.shapes},
                    gradient=True,
                )
                for each in (theirs, rounded)
            )
            label = f"gradient of {pair.layer.path}, {' and '.join(weight.shapes)}"
            compared.append((label, gradient, expected, in_float32))
    for tensor, a, b, c in compared:
        if a.shape != b.shape:
            raise PortingError(
                f"porting: the {tensor} of {where} has the shape {a.shape} in Keras and {b.shape} "
                "in PyTorch. Give `forward`, which calls the module and moves axes as needed."
            )
        allowed = tolerance
        if dtype == "float32" and np.isfinite(c).all():
            rounding = min(_ROUNDING * _difference(c, b), _MOST * tolerance)
            allowed = max(tolerance, rounding)
        check.differences.append(Difference(where, dtype, tensor, _difference(a, b), allowed))


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype("float64"), b.astype("float64")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("inf")
    scale = float(np.abs(b).max(initial=0.0)) or 1.0
    return float(np.abs(a - b).max(initial=0.0)) / scale
