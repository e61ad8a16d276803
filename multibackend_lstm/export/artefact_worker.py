"""The process that runs an artefact in its own runtime: nothing of Keras or this package's layers.

    python -m ...export.artefact_worker FORMAT ARTEFACT NAMES ARRAYS OUTPUTS

NAMES is a JSON file with the names of the inputs in order, and ARRAYS an .npz file with
`in_<case>_<input>`. OUTPUTS gets `out_<case>_<output>`, and `error_<case>` for a case that failed.
"""

import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Run = Callable[[Sequence[np.ndarray]], list[np.ndarray]]


def main(format: str, artefact: str, names_path: str, arrays_path: str, outputs_path: str) -> None:
    """See the module."""
    names: list[str] = json.loads(Path(names_path).read_text())
    run = LOADERS[format](artefact, names)
    results: dict[str, np.ndarray] = {}
    with np.load(arrays_path, allow_pickle=False) as arrays:
        cases = sorted({int(key.split("_")[1]) for key in arrays.files if key.startswith("in_")})
        for case in cases:
            inputs = [arrays[f"in_{case}_{index}"] for index in range(len(names))]
            try:
                outputs = run(inputs)
            except Exception as error:  # what a runtime brings up is its answer
                results[f"error_{case}"] = np.array(first_line(error))
                continue
            results |= {f"out_{case}_{index}": x for index, x in enumerate(outputs)}
    np.savez(outputs_path, allow_pickle=False, **results)


def first_line(error: BaseException) -> str:
    """The type of an exception and the first line of its message that says something."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith("Exception from ")]
    # TensorFlow's converter puts the place in its own code first.
    line = re.sub(r"^.*error: loc\(.*\): ", "", said[0]) if said else "no message"
    return f"{type(error).__name__}: {line}"


def _in_order(names: Sequence[str], found: Sequence[str]) -> list[int]:
    """The place in `names` of each input found: by its name, or by its place if names differ."""
    if sorted(names) == sorted(found):
        return [names.index(name) for name in found]
    if len(names) != len(found):
        raise ValueError(f"the artefact has the inputs {list(found)}, the model {list(names)}")
    return list(range(len(names)))


def _natural(name: str) -> list[Any]:
    """Sorts `output_10` behind `output_9`."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _onnx(artefact: str, names: Sequence[str]) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(artefact, options, providers=["CPUExecutionProvider"])
    found = [argument.name for argument in session.get_inputs()]
    order = _in_order(names, found)
    return lambda inputs: session.run(
        None, {name: inputs[place] for name, place in zip(found, order, strict=True)}
    )


def _saved_model(artefact: str, names: Sequence[str]) -> Run:
    import tensorflow as tf

    loaded = tf.saved_model.load(artefact)
    serve = loaded.signatures["serving_default"]
    specs = serve.structured_input_signature[1]
    found = list(specs)
    order = _in_order(names, found)

    def run(inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        outputs = serve(
            **{
                name: tf.constant(inputs[place], specs[name].dtype)
                for name, place in zip(found, order, strict=True)
            }
        )
        return [outputs[name].numpy() for name in sorted(outputs, key=_natural)]

    run.loaded = loaded  # type: ignore[attr-defined]  # which owns the variables
    return run


def _litert(artefact: str, names: Sequence[str]) -> Run:
    from ai_edge_litert.interpreter import Interpreter

    def run(inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        # A new one each time: the tensors of an interpreter keep the sizes of the call before.
        runner = Interpreter(artefact).get_signature_runner()
        found = list(runner.get_input_details())
        order = _in_order(names, found)
        outputs = runner(**{name: inputs[place] for name, place in zip(found, order, strict=True)})
        return [outputs[name] for name in sorted(outputs, key=_natural)]

    return run


def _openvino(artefact: str, names: Sequence[str]) -> Run:
    import openvino

    core = openvino.Core()
    # Where the processor has bfloat16, that is OpenVINO's default.
    compiled = core.compile_model(artefact, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    order = _in_order(names, [argument.any_name for argument in compiled.inputs])

    def run(inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        outputs = compiled([inputs[place] for place in order])
        return [np.array(outputs[index]) for index in range(len(compiled.outputs))]

    return run


def _torch(artefact: str, names: Sequence[str]) -> Run:
    import torch

    program = torch.export.load(artefact).module()

    def run(inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        with torch.no_grad():
            outputs = program(*(torch.from_numpy(x) for x in inputs))
        flat = outputs if isinstance(outputs, (list, tuple)) else [outputs]
        return [x.numpy() for x in flat]

    return run


LOADERS: dict[str, Callable[[str, Sequence[str]], Run]] = {
    "onnx": _onnx,
    "saved_model": _saved_model,
    "litert": _litert,
    "openvino": _openvino,
    "torch": _torch,
}

if __name__ == "__main__":
    main(*sys.argv[1:])
