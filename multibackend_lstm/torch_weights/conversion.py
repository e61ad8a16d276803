"""`from_torch` and `to_torch`: weights of `torch.nn` modules into Keras layers, and back."""

import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from multibackend_lstm.layers.validation import check_choice
from multibackend_lstm.torch_weights.axes import FLATTEN_ORDERS, FlattenOrder
from multibackend_lstm.torch_weights.errors import MappingError, PortingError
from multibackend_lstm.torch_weights.graph import Graph, read_graph
from multibackend_lstm.torch_weights.matching import Mapped, Pair, match, named_parts
from multibackend_lstm.torch_weights.state_dict import StateDict, read_state_dict
from multibackend_lstm.torch_weights.stored_forms import stack_projections, stored_form


def from_torch(
    module_or_state_dict: Any,
    layer_or_model: Any,
    mapping: Mapped | None = None,
    *,
    key: str | None = None,
    flatten_order: FlattenOrder = "channels_first",
) -> Any:
    """Put the weights of a `torch.nn` module into a Keras layer or model of the same form.

    Every tensor must find its place, and every weight its tensor; nothing is assigned until all
    fit. The layer that each tensor belongs to is found by equal names (if all are equal), else by
    shape, and among equal shapes by order, if the Keras layers run one after the other, and the
    tensors' names differ in a number, or the module defines its parts in the Keras model's order.

    What differs between the two is converted. Kernels are transposed. An LSTM's `b_ih + b_hh`
    becomes one bias. A GRU's gates are reordered and its two biases kept. Where a convolution's
    output is flattened before an LSTM or a Dense layer, the weights behind are permuted, since
    PyTorch flattens filters first and Keras last (in channels_last format).

    Example:
        >>> import torch
        >>> lstm = keras.layers.LSTM(4)
        >>> lstm.build((None, 10, 3))                           # (batch, time, features)
        >>> lstm = from_torch(torch.nn.LSTM(3, 4, batch_first=True), lstm)

    Args:
        module_or_state_dict: a `torch.nn.Module`; its state dict, of torch tensors or NumPy
            arrays; or the path of a `.safetensors`, `.npz`, `.pt`, `.pth` or `.ckpt` file. PyTorch
            need not be installed for arrays, `.safetensors` and `.npz`. Of a module, settings such
            as strides and epsilon are compared too; a state dict does not hold them.
        layer_or_model: a built Keras layer, or a functional or Sequential model. It is changed.
        mapping: settles what is ambiguous: torch prefixes, with the path of the Keras layer
            (`"block/conv"`, or `"conv"` alone where no other ends so). For a recurrent module of
            several layers a list of Keras layers.
        key: where the state dict is in a checkpoint that holds several: the name of an entry, a
            prefix of the tensors' names, or both, as in `"state_dict.model"`.
        flatten_order: how the PyTorch code flattens the output of convolutions:
            `"channels_first"`, as it comes, or `"channels_last"`, if it moves the filters last
            before, so that no weight is permuted.

    Returns:
        `layer_or_model`.

    Raises:
        PortingError: if something is left over, missing, ambiguous or of another shape (the
            message lists both sides); for layers and modules that are not supported; for settings
            that differ; for weights that are no floating-point numbers, NaN or infinite, or
            that would lose digits in the Keras variable's dtype.
    """
    _, state, pairs = plan(module_or_state_dict, layer_or_model, mapping, flatten_order, key)
    values = keras_values(pairs, state)
    check_settings(pairs, state)
    for variable, value in values:
        variable.assign(value)
    return layer_or_model


def to_torch(
    layer_or_model: Any,
    module_or_state_dict: Any = None,
    mapping: Mapped | None = None,
    *,
    key: str | None = None,
    flatten_order: FlattenOrder = "channels_first",
) -> Any:
    """Put the weights of a Keras layer or model into a `torch.nn` module, or a state dict.

    The conversion is that of `from_torch`, the other way round. An LSTM's one bias becomes
    `bias_ih`, and `bias_hh` is zero. `num_batches_tracked` of a batch normalisation, which Keras
    does not count, stays as it is, and is 0 in a new state dict.

    Example:
        >>> module = torch.nn.LSTM(3, 4, batch_first=True)
        >>> module = to_torch(lstm, module)
        >>> sorted(to_torch(lstm))
        ['lstm.bias_hh_l0', 'lstm.bias_ih_l0', 'lstm.weight_hh_l0', 'lstm.weight_ih_l0']

    Args:
        layer_or_model: a built Keras layer, or a functional or Sequential model.
        module_or_state_dict: a `torch.nn.Module`, which gets the weights; or a state dict (or the
            path of a file of one) whose names, order and dtypes to take; or None, for names made
            of the Keras layers' own: `"block.conv.weight"`.
        mapping: as in `from_torch`.
        key: as in `from_torch`; what it chooses is what is returned.
        flatten_order: as in `from_torch`.

    Returns:
        The module, or else a new state dict: of torch tensors if those given are, or if none are
        given and PyTorch is installed; else of NumPy arrays.

    Raises:
        PortingError: as `from_torch`. Nothing is changed then.
    """
    if module_or_state_dict is None:
        if mapping is not None:
            raise MappingError(
                "porting: `mapping` says which names in PyTorch to take: give a module or a state "
                "dict that has them."
            )
        check_choice("to_torch", "flatten_order", flatten_order, FLATTEN_ORDERS)
        graph = read_graph(layer_or_model, flatten_order)
        return _as_tensors(named_state_dict(graph))
    _, state, pairs = plan(module_or_state_dict, layer_or_model, mapping, flatten_order, key)
    check_settings(pairs, state)
    values: dict[str, np.ndarray] = {}
    for pair in pairs:
        values |= torch_values(pair)
    ties = state.ties
    _check_tied(values, ties)
    new: dict[str, Any] = dict(state.originals)
    for name, value in stored_form(values, state.stored).items():
        new[name] = _like(name, value, state)
    if state.module is None:  # ties stay ties
        return {name: new.get(ties.get(name, name), value) for name, value in new.items()}
    load_checked(state.module, new)
    return state.module


def plan(
    module_or_state_dict: Any,
    layer_or_model: Any,
    mapping: Mapped | None,
    flatten_order: str,
    key: str | None = None,
) -> tuple[Graph, StateDict, list[Pair]]:
    """Read both sides and pair their layers; nothing is changed."""
    check_choice("porting", "flatten_order", flatten_order, FLATTEN_ORDERS)
    state = read_state_dict(module_or_state_dict, key)
    graph = read_graph(layer_or_model, flatten_order)
    return graph, state, match(graph.layers, state, mapping)


def check_settings(pairs: Sequence[Pair], state: StateDict) -> None:
    """Compare what is not a weight: with the module, or with PyTorch's defaults.

    Raises:
        PortingError: if a module computes something else than its Keras layer.
    """
    found, assumed = [], []
    modules = state.modules
    for pair in pairs:
        layer = pair.layer
        if state.module is None:
            assumption = layer.rule.assumption(layer.layer)
            assumed += [f"{layer.path}: {assumption}"] if assumption else []
            continue
        for part in pair.parts:
            for difference in layer.rule.differences(
                layer.layer, layer.inputs, modules[part.prefix]
            ):
                found.append(f"{part.title} and {layer.path}: {difference}")
    if found:
        raise PortingError(
            "porting: the weights fit, but the settings differ:\n"
            + "\n".join(found)
            + "\nBuild the Keras layer as the module is. If the PyTorch code makes up for it "
            "elsewhere, pass module.state_dict(), whose settings cannot be compared."
        )
    if assumed:
        warnings.warn(
            "porting: check these settings, which the weights do not tell: " + "; ".join(assumed),
            stacklevel=3,
        )


def keras_values(pairs: Sequence[Pair], state: StateDict) -> list[tuple[Any, np.ndarray]]:
    """Every Keras variable with its value, checked; what is tied in Keras must be equal."""
    found: dict[int, tuple[Any, np.ndarray, str]] = {}
    for pair, part in [(each, part) for each in pairs for part in each.parts]:
        tensors = pair.short_names(state.tensors, part)
        for weight in pair.layer.weights:
            dtype = keras.backend.standardize_dtype(weight.variable.dtype)
            for name in weight.shapes:
                check_values(part.names[name], tensors[name], dtype, "Keras")
            # NumPy has no bfloat16; assigning casts to it.
            value = weight.to_keras(tensors).astype(_numpy_dtype(dtype))
            names = " and ".join(part.names[name] for name in weight.shapes)
            first = found.setdefault(id(weight.variable), (weight.variable, value, names))
            if not np.array_equal(first[1], value):
                raise PortingError(
                    f"porting: {weight.variable.path} is one weight in Keras, and in PyTorch "
                    f"{first[2]} and {names} differ. Nothing was changed. Give each a Keras layer "
                    "of its own, or tie them in PyTorch before training."
                )
    return [(variable, value) for variable, value, _ in found.values()]


def torch_values(pair: Pair) -> dict[str, np.ndarray]:
    """The tensors of a Keras layer, by their full names."""
    found: dict[str, np.ndarray] = {}
    for weight in pair.layer.weights:
        value = keras_value(weight.variable)
        check_values(weight.variable.path, value, str(value.dtype), "PyTorch")
        found |= weight.to_torch(value)
    return pair.full_names(found)


def keras_value(variable: Any) -> np.ndarray:
    """A variable's value; bfloat16 as float32."""
    dtype = keras.backend.standardize_dtype(variable.dtype)
    value = keras.ops.cast(variable, "float32") if dtype == "bfloat16" else variable
    return np.asarray(keras.ops.convert_to_numpy(value))


def named_state_dict(graph: Graph) -> dict[str, np.ndarray]:
    """A state dict with names made of the Keras layers' own."""
    state: dict[str, np.ndarray] = {}
    for pair in named_parts(graph.layers):
        state |= torch_values(pair)
        prefix = pair.part.prefix
        for name in pair.layer.rule.optional:
            state[f"{prefix}.{name}"] = np.asarray(0, "int64")
    return stack_projections(state)


def check_values(name: str, value: np.ndarray, dtype: str, side: str) -> None:
    """Raise a PortingError for values that are no numbers, or do not survive in a dtype."""
    if value.dtype.kind != "f":
        raise PortingError(
            f"porting: {name} has the dtype {value.dtype}, and weights are floating-point numbers. "
            "Quantised and complex weights are not supported."
        )
    wrong = int(np.size(value) - np.isfinite(value).sum())
    if wrong:
        raise PortingError(
            f"porting: {name} holds {wrong} of {value.size} values that are NaN or infinite. "
            "Nothing was changed. Take an earlier checkpoint: the training has diverged."
        )
    with np.errstate(over="ignore"):
        if (_rounded(value, dtype) != value).any():
            raise PortingError(
                f"porting: {name} has the dtype {value.dtype}, whose digits {dtype} in {side} "
                "cannot hold. Round it yourself if that is meant (`module.float()`), or build the "
                f'Keras layer with dtype="{value.dtype}".'
            )


def _rounded(value: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "bfloat16":
        import ml_dtypes  # as Keras does

        return value.astype(ml_dtypes.bfloat16).astype("float64")
    return value.astype(dtype).astype(np.result_type(value.dtype, dtype))


def _numpy_dtype(dtype: str) -> str:
    return "float32" if dtype == "bfloat16" else dtype


def _like(name: str, value: np.ndarray, state: StateDict) -> Any:
    """A value in the type and dtype of the tensor that it replaces."""
    original = state.originals[name]
    dtype = str(original.dtype).removeprefix("torch.")
    check_values(name, value, dtype, "PyTorch")
    if isinstance(original, np.ndarray):
        return value.astype(original.dtype)
    torch = sys.modules["torch"]
    return torch.as_tensor(value).to(dtype=original.dtype, device=original.device)


def _check_tied(values: Mapping[str, np.ndarray], ties: Mapping[str, str]) -> None:
    diverged = [
        f"{name} and {first}"
        for name, first in ties.items()
        if name in values and not _equal(values[name], values[first])
    ]
    if diverged:
        raise PortingError(
            f"porting: {', '.join(diverged)} are tied, one weight under two names, and their Keras "
            "layers hold different values. Nothing was changed. Untie them in PyTorch, or share "
            "one layer (or its values) in Keras."
        )


def _equal(a: Any, b: Any) -> bool:
    return bool((a == b).all())


def load_checked(module: Any, new: Mapping[str, Any]) -> None:
    """As `load_state_dict`; what shares memory in part must come out as it was put in."""
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    module.load_state_dict(new, strict=True)
    now = module.state_dict()
    wrong = [name for name, tensor in now.items() if not _equal(tensor, new[name])]
    if wrong:
        module.load_state_dict(before, strict=True)
        raise PortingError(
            f"porting: {', '.join(wrong)} share memory with others in PyTorch, and are to hold "
            "other values than those. Nothing was changed. Untie them in PyTorch."
        )


def _as_tensors(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    try:
        import torch
    except ModuleNotFoundError:
        return dict(state)
    return {name: torch.tensor(value) for name, value in state.items()}
