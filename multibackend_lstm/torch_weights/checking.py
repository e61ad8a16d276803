"""`check_port`: do a Keras model and its PyTorch original compute the same?"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np
from keras import tree

from multibackend_lstm.agreement.comparison import DISAGREES, compare
from multibackend_lstm.agreement.report import Report, TargetResult, findings_of
from multibackend_lstm.environment import install_command, versions
from multibackend_lstm.layers.wrapping import sublayers
from multibackend_lstm.runtimes.execution import layer_config, with_dtype
from multibackend_lstm.runtimes.loading import check_copy, check_numbers
from multibackend_lstm.torch_weights.axes import FlattenOrder
from multibackend_lstm.torch_weights.conversion import keras_value, plan
from multibackend_lstm.torch_weights.errors import PortingError
from multibackend_lstm.torch_weights.graph import Graph, WeightedLayer
from multibackend_lstm.torch_weights.matching import Mapped, Pair, part_name
from multibackend_lstm.torch_weights.running import (
    Factors,
    Floor,
    Values,
    of_keras,
    of_module,
    perturbed_runs,
    run_torch,
)
from multibackend_lstm.torch_weights.state_dict import StateDict
from multibackend_lstm.torch_weights.stored_forms import stack_projections
from multibackend_lstm.torch_weights.ties import sum_in_keras, sum_in_torch, tied_groups

_BATCH, _STEPS = 3, 9
_TWINS = 8


def check_port(
    module_or_state_dict: Any,
    layer_or_model: Any,
    mapping: Mapped | None = None,
    *,
    key: str | None = None,
    flatten_order: FlattenOrder = "channels_first",
    inputs: Any = None,
    forward: Callable[..., Any] | None = None,
    seed: int = 0,
) -> Report:
    """Compare a Keras layer or model with its PyTorch original, forward and in all gradients.

    Every layer with weights is compared with a `torch.nn` module built for it, which gets its part
    of the tensors, on random input. Where a module is given, the whole model is compared with it as
    well. PyTorch computes the truth, in float64, and moves it within the rounding of float32 for
    the noise floor, as `agreement.check` does. Keras computes in float32, and on the TensorFlow
    backend, the only one that really computes in it, a copy of the Keras layers in float64 too.
    Neither the module nor the model is changed.

    Example:
        >>> check_port(module, model).raise_if_disagrees()

    Args:
        module_or_state_dict: as in `from_torch`.
        layer_or_model: as in `from_torch`.
        mapping: as in `from_torch`.
        key: as in `from_torch`.
        flatten_order: as in `from_torch`.
        inputs: arrays for the whole model, one an input, as Keras takes them; drawn by default.
        forward: what PyTorch computes for the whole model, from a float64 copy of the module and
            tensors as Keras takes them, to what Keras returns:
            `lambda module, x: module(x.permute(0, 3, 1, 2)).softmax(-1)`. By default the module
            is called, with the last axis moved to the second place if a convolution comes first,
            and the outputs' second one to the last if they are filters'.
        seed: of the random input.

    Returns:
        The report: each layer's output and gradients under the layer's path, those of the whole
        model under `"model"`.

    Raises:
        PortingError: as `from_torch`; if PyTorch is not installed; or if inputs are not finite.
    """
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError as error:
        raise PortingError(
            f"porting: a comparison with PyTorch needs it: {install_command('torch')}"
        ) from error
    graph, state, pairs = plan(module_or_state_dict, layer_or_model, mapping, flatten_order, key)
    return check_pairs(graph, state, pairs, layer_or_model, inputs, forward, seed=seed)


def check_pairs(
    graph: Graph,
    state: StateDict,
    pairs: Sequence[Pair],
    layer_or_model: Any,
    inputs: Any = None,
    forward: Callable[..., Any] | None = None,
    *,
    seed: int = 0,
) -> Report:
    """As `check_port`, for layers that are paired already."""
    backend = keras.backend.backend()
    dtypes = ["float32", "float64"] if backend == "tensorflow" else ["float32"]
    ready = {"versions": versions()}
    report = Report(
        case=layer_or_model.name,
        reference="PyTorch in float64",
        float64=True,
        settings={"precision": "default", "twins": _TWINS, "seed": seed},
        results=[TargetResult(f"{backend} in {dtype}", ready) for dtype in dtypes],
        layers={pair.layer.path: layer_config(pair.layer.layer) for pair in pairs},
    )
    generator = np.random.default_rng(seed)
    not_in_float64 = {
        pair.layer.path: pair.layer.rule.not_in_float64
        for pair in pairs
        if pair.layer.rule.not_in_float64
    }
    for dtype, result in zip(dtypes, report.results, strict=True):
        for pair in pairs:
            if dtype == "float64" and pair.layer.path in not_in_float64:
                continue
            _check_layer(result, pair, state, dtype, generator)
        if dtype == "float64" and not_in_float64:
            result.not_compared |= {**not_in_float64, "model": "a layer is not in float64"}
        if backend != "tensorflow":
            result.not_compared["float64"] = f"Keras does not compute in it on {backend}"
        if state.module is not None and not isinstance(layer_or_model, keras.Model):
            what = "whole module"
            result.not_compared[what] = "a single layer is compared with a module built for it"
    if state.module is not None and isinstance(layer_or_model, keras.Model):
        given = _drawn(layer_or_model, generator) if inputs is None else inputs
        arrays = [np.asarray(x) for x in tree.flatten(given)]
        _check_finite(arrays)
        module, run = of_module(graph, state, forward)
        for dtype, result in zip(dtypes, report.results, strict=True):
            if "model" in result.not_compared:
                continue
            model, originals = layer_or_model, layer_or_model.weights
            if dtype == "float64":
                model = _in_float64(layer_or_model)
                _assign(pairs, originals, model.weights, state)
            ours = of_keras(result, model, originals, arrays)
            truth, floor = perturbed_runs(run, module, arrays, dtype, _TWINS)
            _compare(result, "model", dtype, ours, truth, floor, pairs, state)
    report.findings += findings_of(report)
    wrong = [f for f in report.findings if f.verdict == DISAGREES]
    if wrong and all((f.path or "").split("/")[0] == "model" for f in wrong):
        first = wrong[0]
        hint = (
            "Each layer alone agrees, so that weights are right, and how layers are joined or the "
            "module is called is not: see `forward` and `flatten_order`"
        )
        at = report.findings.index(first)
        report.findings[at] = replace(first, message=f"{first.message}. {hint}")
    return report


def _check_finite(arrays: Sequence[np.ndarray]) -> None:
    for index, x in enumerate(arrays):
        if x.dtype.kind == "f" and not np.isfinite(x).all():
            raise PortingError(
                f"porting: `inputs` must be finite numbers. Input {index} of shape {x.shape} holds "
                "NaN or infinity, which agrees with anything."
            )


def _check_layer(
    result: TargetResult,
    pair: Pair,
    state: StateDict,
    dtype: str,
    generator: np.random.Generator,
) -> None:
    """Compare one layer with a torch module that is built for it."""
    import torch

    found = pair.layer
    shape = found.rule.check_shape(found.layer, found.inputs, _BATCH, _STEPS)
    check_numbers(f"the input of {found.path!r}", shape)
    layer = _compared_copy(found, dtype)
    if isinstance(found.layer, keras.layers.Embedding):
        x = generator.integers(0, found.layer.input_dim, shape).astype("int32")
    else:
        x = generator.normal(size=shape).astype("float32")
    inputs = keras.Input(batch_shape=shape, dtype="int32" if x.dtype.kind == "i" else dtype)
    model = keras.Model(inputs, found.rule.call_keras(layer, inputs, found.layer))
    check_copy(layer, found.layer)
    if dtype == "float64":
        _assign([pair], found.layer.weights, layer.weights, state)
    else:
        layer.set_weights([keras_value(weight) for weight in found.layer.weights])
    ours = of_keras(result, model, found.layer.weights, [x])

    module, call = found.rule.module_and_call(found.layer, found.inputs)
    module = module.double().eval()
    tensors = pair.short_names(state.tensors)
    number = 0 if found.rule.outputs == "sequence" else None
    names = {name: part_name(name, number) for name in tensors}
    stored = stack_projections({names[name]: value for name, value in tensors.items()})
    wanted = {name: torch.tensor(np.array(value)) for name, value in stored.items()}
    module.load_state_dict({**module.state_dict(), **wanted})

    def run(module: Any, arrays: list[np.ndarray], factors: Factors | None) -> Values:
        theirs = run_torch(module, lambda x: call(module, x), arrays, factors)
        full = {pair.part.names[name]: theirs.gradients.get(names[name]) for name in names}
        return replace(theirs, gradients=full)

    truth, floor = perturbed_runs(run, module, [x], dtype, _TWINS)
    _compare(result, found.path, dtype, ours, truth, floor, [pair])


def _compared_copy(found: WeightedLayer, dtype: str) -> Any:
    """A copy of the Keras layer, without weights, that computes what its torch module does."""
    settings = {"trainable": True, **found.rule.compared_with}
    config = _with_values(with_dtype(found.layer.get_config(), dtype), settings)
    return type(found.layer).from_config(config)


def _with_values(config: Any, values: dict[str, Any]) -> Any:
    """A config with some values replaced, within layers inside too."""
    if isinstance(config, dict):
        return {
            key: values[key] if key in values else _with_values(value, values)
            for key, value in config.items()
        }
    return [_with_values(each, values) for each in config] if isinstance(config, list) else config


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
        check_numbers(f"input {x.name!r}", shape)
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
    result: TargetResult,
    where: str,
    dtype: str,
    ours: Values,
    truth: Values,
    floor: Floor,
    pairs: Sequence[Pair],
    state: StateDict | None = None,
) -> None:
    """Judge all tensors of a layer, or of the model (then with `state`).

    Of weights that are tied on either side, the gradients of all uses are added up.
    """
    if len(ours.outputs) != len(truth.outputs):
        raise PortingError(
            f"porting: {where} has {len(ours.outputs)} output(s) in Keras and "
            f"{len(truth.outputs)} in PyTorch. Give `forward`, which calls the module and returns "
            "what Keras does."
        )

    tied = [] if state is None else tied_groups(pairs, state)

    def judge(kind: str, path: str, values: np.ndarray, of: Callable[[Values], Any]) -> None:
        expected = of(truth)
        if values.shape != expected.shape:
            raise PortingError(
                f"porting: the {kind} {path} has the shape {values.shape} in Keras and "
                f"{expected.shape} in PyTorch. Give `forward`, which calls the module and moves "
                "axes as needed."
            )
        comparison = compare(kind, path, values, expected, floor=floor(kind, path, of), dtype=dtype)
        result.comparisons.append(comparison)

    for i, output in enumerate(ours.outputs):
        kind = "output" if where == "model" else "layer"
        path = where if len(ours.outputs) == 1 else f"{where}[{i}]"
        judge(kind, path, output, _nth("outputs", i))
    for i, gradient in enumerate(ours.input_gradients):
        of = _nth("input_gradients", i)
        judge("input gradient", f"{where}/input {i}", gradient, of)
    for pair in pairs:
        prefix = pair.layer.path if where != "model" else f"model/{pair.layer.path}"
        for weight in pair.layer.weights:
            found = ours.gradients.get(id(weight.variable))
            if found is None:  # not trainable
                continue
            if any(pair.part.names[name] in group for group in tied for name in weight.shapes):
                continue  # judged below

            def of_weight(values: Values, pair: Pair = pair, weight: Any = weight) -> Any:
                parts = {n: values.gradients[pair.part.names[n]] for n in weight.shapes}
                return weight.to_keras(parts, gradient=True)

            path = f"{prefix}/{' and '.join(weight.shapes)}"
            judge("weight gradient", path, found, of_weight)
    for group in tied:
        found = sum_in_keras(pairs, group, ours)
        if found is not None and state is not None:
            path = f"{where}/{' and '.join(group)}"
            judge("weight gradient", path, found, sum_in_torch(group, state))


def _nth(name: str, index: int) -> Callable[[Values], Any]:
    """An array of a list of the values."""
    return lambda values: getattr(values, name)[index]
