"""The exporters: from a model on the running backend to an artefact."""

import inspect
import json
import keyword
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
from keras import ops, tree

from multibackend_lstm import backends
from multibackend_lstm.agreement.case import draw_inputs
from multibackend_lstm.export.labels import (
    label_litert,
    label_onnx,
    label_openvino,
    label_saved_model,
)
from multibackend_lstm.export.onnx_operators import register_operators
from multibackend_lstm.layers import ConvLSTM1D, ConvLSTM2D, ConvLSTM3D
from multibackend_lstm.layers.recurrent import Recurrent
from multibackend_lstm.layers.wrapping import sublayers
from multibackend_lstm.runtimes.artefacts import METADATA_FILE
from multibackend_lstm.runtimes.execution import describe
from multibackend_lstm.upgrading import upgrade

# Sizes that stand for free axes in a trace. With 1, torch would take them for constant.
TRACED_BATCH, TRACED_TIME = 2, 3

#: Name, shape (None for a free axis), dtype and categories of an input.
Spec = dict[str, Any]


@dataclass(frozen=True)
class Request:
    """What an exporter is asked for.

    Attributes:
        specs: of the inputs, in flat order.
        outputs: names of the outputs, in flat order.
        path: of the artefact.
        opset: version of ONNX's operators; None for the exporter's own choice.
        about: the metadata.
        fused: whether an LSTM becomes LiteRT's operator, which keeps its state between calls.
    """

    specs: list[Spec]
    outputs: list[str]
    path: str
    opset: int | None
    about: Mapping[str, str]
    fused: bool = False


def sized(specs: list[Spec], batch: int, time: int) -> list[Spec]:
    """The specs with sizes in place of what is free."""
    sizes = (batch, time)
    return [
        {
            **spec,
            "shape": [sizes[axis] if s is None else s for axis, s in enumerate(spec["shape"])],
        }
        for spec in specs
    ]


def flat_call(model: keras.Model) -> Callable[..., Any]:
    """The model as a function of its inputs in flat order."""

    def call(*inputs: Any) -> Any:
        return model(_packed(model, [ops.convert_to_tensor(x) for x in inputs]), training=False)

    return call


def _packed(model: keras.Model, flat: list[Any]) -> Any:
    """One value an input in the structure that the model takes."""
    structure = describe(model)["structure"]
    return flat[0] if structure is None else tree.pack_sequence_as(structure, flat)


def settle(model: keras.Model, specs: list[Spec]) -> None:
    """Put constants where the layers of this package compute with the weights in every call.

    A ConvLSTM that runs as an LSTM makes its matrices from the convolutions' kernels, which
    OpenVINO cannot have in a graph.
    """
    for layer in sublayers(model):
        if isinstance(layer, (ConvLSTM1D, ConvLSTM2D, ConvLSTM3D)):
            layer.keep_matrices()
    flat_call(model)(*_traced_inputs(specs))


def _signature(model: keras.Model, specs: list[Spec]) -> list[Any]:
    """For `model.export`: the structure of the inputs, of `keras.InputSpec`."""
    flat = [
        keras.InputSpec(shape=tuple(s["shape"]), dtype=s["dtype"], name=s["name"]) for s in specs
    ]
    return [_packed(model, flat)]


def _saved_model(model: keras.Model, request: Request) -> None:
    flat = [
        keras.Input(batch_shape=tuple(s["shape"]), dtype=s["dtype"], name=s["name"])
        for s in request.specs
    ]
    # A dict, since a signature has the names of its outputs from nowhere else.
    outputs = tree.flatten(model(_packed(model, flat)))
    named = keras.Model(
        _packed(model, flat), dict(zip(request.outputs, outputs, strict=True)), name=model.name
    )
    _write_saved_model(named, request.path, _signature(model, request.specs))
    label_saved_model(request.path, request.about)


def _write_saved_model(model: keras.Model, path: str, signature: list[Any]) -> None:
    model.export(path, format="tf_saved_model", input_signature=signature, verbose=False)


@contextmanager
def _portable_graphs(model: keras.Model, runtime: str) -> Iterator[list[str]]:
    """Recurrences are traced as operators of ONNX or LiteRT, or as loops that those have.

    Yields a list that afterwards says which became a loop where there is an operator, and why.
    """
    layers = [layer for layer in sublayers(model) if isinstance(layer, Recurrent)]
    before = [layer.implementation for layer in layers]
    with backends.active().portable_graphs(runtime) as loops:
        try:
            for layer in layers:
                layer.implementation = "ops" if runtime == "litert" else "auto"
            yield loops
            reports = [layer.implementation_report() for layer in layers]
            loops += [f"{x.layer} is a loop: {x.refused}" for x in reports if x.refused]
        finally:
            for layer, implementation in zip(layers, before, strict=True):
                layer.implementation = implementation


def _upgraded(model: keras.Model, specs: list[Spec]) -> tuple[keras.Model, list[str]]:
    """The model with this package's layers in the place of Keras's, and what was left."""
    result = upgrade(model)
    settle(result.model, specs)
    return result.model, [
        f"{place} is as Keras has it: {why}" for place, why in result.left.items()
    ]


def _onnx_from_tensorflow(model: keras.Model, request: Request) -> list[str]:
    model, left = _upgraded(model, request.specs)
    signature = _signature(model, request.specs)
    register_operators()
    with _portable_graphs(model, "onnx") as loops:
        model.export(
            request.path,
            format="onnx",
            input_signature=signature,
            verbose=False,
            opset_version=request.opset,
        )
    label_onnx(request.path, request.outputs, request.about)
    return left + loops


def _litert(model: keras.Model, request: Request) -> list[str]:
    import tensorflow as tf

    model, left = _upgraded(model, request.specs)
    with _portable_graphs(model, "litert_fused" if request.fused else "litert") as loops:
        model.export(
            request.path,
            format="litert",
            input_signature=_signature(model, request.specs),
            verbose=False,
            # Without those of TensorFlow, which LiteRT's own package cannot run.
            target_spec={"supported_ops": [tf.lite.OpsSet.TFLITE_BUILTINS]},
        )
    label_litert(request.path, request.outputs, request.about)
    return left + loops


def _flat_module(model: keras.Model, request: Request) -> Any:
    """The model as a module of its inputs in flat order, which gives a dict of its outputs."""
    import torch

    call = flat_call(model)

    class Flat(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *inputs: Any) -> Any:
            return dict(zip(request.outputs, tree.flatten(call(*inputs)), strict=True))

    names = ["self", *(spec["name"] for spec in request.specs)]
    # Python has no parameter named `1st` or `lambda`.
    names = [n if n.isidentifier() and not keyword.iskeyword(n) else f"_{n}" for n in names]
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    signature = inspect.Signature([inspect.Parameter(name, kind) for name in names])
    setattr(Flat.forward, "__signature__", signature)  # noqa: B010  (mypy knows no such attribute)
    return Flat().eval()


def _traced_inputs(specs: list[Spec]) -> tuple[Any, ...]:
    traced = sized(specs, TRACED_BATCH, TRACED_TIME)
    drawn = draw_inputs(traced, [], traced[0]["shape"][0], seed=0)
    return tuple(ops.convert_to_tensor(x) for x in drawn)


def _loops_in_python(model: keras.Model) -> list[str]:
    """Layers whose loop over time a trace by torch writes out, for the length it saw."""
    found = []
    for layer in sublayers(model):
        ours = hasattr(layer, "implementation_report")
        if ours and layer.implementation_report().implementation != "native":
            found.append(str(layer.implementation_report()))
        elif not ours and isinstance(layer, (keras.layers.RNN, keras.layers.TimeDistributed)):
            module = type(layer).__module__.partition(".")[0]
            if module != "multibackend_lstm":
                found.append(f"{layer.name} ({module}.{type(layer).__name__})")
    return found


def _check_time(model: keras.Model, specs: list[Spec]) -> None:
    """Refuse a free length where a trace would silently fix it."""
    loops = _loops_in_python(model)
    if loops and any(spec["shape"][1:2] == [None] for spec in specs):
        raise NeedsTimeError(
            "torch writes the loop over time out, for one length: fix it with --time. It is in "
            + "; ".join(loops)
        )


class NeedsTimeError(ValueError):
    """An export that is possible only with a fixed number of time steps."""


def _argsort(graph: Any, x: Any, *arguments: Any) -> Any:
    """`aten::argsort`, which torch's exporter refuses in its stable form.

    Stable or not is the same for the layers of this package, which sort numbers that differ.
    """
    import torch

    axis, descending = (int(value.node().t("value")) for value in arguments[-2:])
    index = graph.op("Constant", value_t=torch.tensor([axis]))
    size = graph.op("Gather", graph.op("Shape", x), index, axis_i=0)
    options = {"axis_i": axis, "largest_i": descending, "sorted_i": 1}
    return graph.op("TopK", x, size, outputs=2, **options)[1]


def _onnx_from_torch(model: keras.Model, request: Request) -> list[str]:
    import torch

    specs, path, outputs = request.specs, request.path, request.outputs
    model, left = _upgraded(model, specs)
    _check_time(model, specs)
    opset = request.opset or 18
    torch.onnx.register_custom_op_symbolic("aten::argsort", _argsort, opset)
    names = [spec["name"] for spec in specs]
    free = {
        spec["name"]: {
            axis: ("batch", "time")[axis] for axis, s in enumerate(spec["shape"]) if s is None
        }
        for spec in specs
    }
    batch_free = any(spec["shape"][0] is None for spec in specs)
    free |= {name: {0: "batch"} for name in outputs if batch_free}
    with torch.no_grad():
        torch.onnx.export(
            _flat_module(model, request),
            _traced_inputs(specs),
            path,
            # torch's newer exporter wants the number of steps of an LSTM.
            dynamo=False,
            opset_version=opset,
            input_names=names,
            output_names=outputs,
            dynamic_axes=free,
        )
    label_onnx(path, outputs, request.about)
    return left


def _torch(model: keras.Model, request: Request) -> list[str]:
    import torch

    specs = request.specs
    model, left = _upgraded(model, specs)
    if any(spec["shape"][1:2] == [None] for spec in specs):
        raise NeedsTimeError(
            "torch.export wants the number of time steps of an LSTM, of torch.nn.LSTM too: fix "
            "it with --time"
        )
    batch = torch.export.Dim("batch", min=1)
    dims = tuple({0: batch} if spec["shape"][0] is None else {} for spec in specs)
    program = torch.export.export(
        _flat_module(model, request), _traced_inputs(specs), dynamic_shapes=dims, strict=False
    )
    about = {METADATA_FILE: json.dumps(request.about, indent=1)}
    torch.export.save(program, request.path, extra_files=about)
    return left


def _save_openvino(source: str, request: Request) -> None:
    import openvino

    model = openvino.convert_model(source)
    found = [argument.any_name for argument in model.inputs]
    names = [spec["name"] for spec in request.specs]
    # From a SavedModel they may come in another order, under their names.
    ordered = found if sorted(found) == sorted(names) else names
    label_openvino(model, ordered, request.outputs, request.about)
    openvino.save_model(model, request.path, compress_to_fp16=False)


def _openvino_from_torch(model: keras.Model, request: Request) -> list[str]:
    through = str(Path(request.path).with_suffix(".through.onnx"))
    left = _onnx_from_torch(model, replace(request, path=through))
    _save_openvino(through, request)
    Path(through).unlink()
    return left


def _openvino_from_tensorflow(model: keras.Model, request: Request) -> None:
    through = str(Path(request.path).with_suffix(".through"))
    # By its place, which OpenVINO keeps, where it would sort names.
    _write_saved_model(model, through, _signature(model, request.specs))
    _save_openvino(through, request)
    shutil.rmtree(through)


EXPORTERS: dict[tuple[str, str], Callable[[keras.Model, Request], list[str] | None]] = {
    ("onnx", "torch"): _onnx_from_torch,
    ("onnx", "tensorflow"): _onnx_from_tensorflow,
    ("saved_model", "tensorflow"): _saved_model,
    ("saved_model", "jax"): _saved_model,
    ("litert", "tensorflow"): _litert,
    ("openvino", "torch"): _openvino_from_torch,
    ("openvino", "tensorflow"): _openvino_from_tensorflow,
    ("torch", "torch"): _torch,
}
