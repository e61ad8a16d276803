"""What is to be compared: a model in a form that every worker can build, and its inputs."""

import json
import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import numpy as np

from multibackend_lstm.runtimes.errors import CaseError
from multibackend_lstm.runtimes.loading import check_model_file, check_numbers


@dataclass
class Case:
    """A model and what it is run on.

    Attributes:
        name: what the report calls it.
        source: how workers build the model, see `execution.load`.
        weights: in the order of `model.weights`; None until a worker has told them.
        weight_paths: of each of the weights.
        inputs: arrays; None until they are drawn.
        structure: the inputs' nested structure, with positions in `inputs` as its leaves.
        labels: one array an output of a floating dtype; none to have them drawn.
        described: what `execution.describe` says; None until a worker has told it.
    """

    name: str
    source: dict[str, Any]
    weights: list[np.ndarray] | None = None
    weight_paths: list[str] = field(default_factory=list)
    inputs: list[np.ndarray] | None = None
    structure: Any = None
    labels: list[np.ndarray] = field(default_factory=list)
    described: dict[str, Any] | None = None

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays under the names that workers know them by."""
        return {
            f"{name}{index}": array
            for name, arrays in (
                ("weight", self.weights),
                ("input", self.inputs),
                ("label", self.labels),
            )
            for index, array in enumerate(arrays or [])
        }

    def request(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """What has a worker run it, with its arrays.

        Args:
            settings: of the check: dtype, training and seed.
        """
        return {
            "do": "run",
            "source": self.source,
            "dtype": settings["dtype"],
            "structure": self.structure,
            "training": settings["training"],
            "seed": settings["seed"],
            "twins": 0,
            "rounding": 0.0,
            "weight_paths": self.weight_paths,
            "dtypes": None,
            # For what is no backend of Keras, and knows its inputs by name.
            "inputs": self._given(),
        }

    def _given(self) -> list[dict[str, str]]:
        """Name and dtype of each input."""
        assert self.described is not None
        assert self.inputs is not None
        specs = self.described["inputs"]
        if len(specs) != len(self.inputs):  # a model that does not tell them
            specs = [{"name": str(i), "dtype": str(x.dtype)} for i, x in enumerate(self.inputs)]
        return [{"name": spec["name"], "dtype": spec["dtype"]} for spec in specs]


def case_of(model: Any, inputs: Any, labels: Any, modules: Sequence[str]) -> Case:
    """The case of a model, a layer, a `.keras` file or a function's import path.

    A model may come as `(model, inputs)`, as such a function may return it.

    Raises:
        CaseError: if it is none of them, or workers could not build it.
        ModelFileError: (a `ValueError`) for a file that is damaged or unsafe.
    """
    if isinstance(model, tuple) and len(model) == 2 and inputs is None:
        model, inputs = model
    if isinstance(model, (str, Path)):
        text = str(model)
        if Path(text).exists() and not Path(text).is_dir():
            check_model_file(text)
            case = Case(Path(text).name, {"file": str(Path(text).resolve())})
        elif ":" in text and not text.endswith((".keras", ".h5")):
            case = Case(text, {"function": text})
        else:
            raise CaseError(
                f"a model is a .keras file or package.module:function. {text!r} is no file, and "
                "no function is named in it."
            )
    else:
        case = _case_of_object(model, inputs)
    case.source["modules"] = list(modules)
    if inputs is not None:
        case.inputs = []
        case.structure = _flatten(inputs, case.inputs)
    if labels is not None:
        _flatten(labels, case.labels)
    return case


def _case_of_object(model: Any, inputs: Any) -> Case:
    import keras

    if not isinstance(model, keras.layers.Layer):
        raise CaseError(
            "a keras model or layer, a .keras file or package.module:function is needed. "
            f"Received {type(model).__name__}."
        )
    if not isinstance(model, keras.Model):
        if inputs is None:
            raise CaseError(f"{model.name}: a layer needs `inputs`, since it has no input shape.")
        specs = keras.tree.map_structure(_input_like, inputs)
        model = keras.Model(specs, model(specs), name=model.name)
    if not model.built:
        if inputs is None:
            raise CaseError(
                f"{model.name}: the model is not built, so that it has no weights yet. Call it "
                "once, or give `inputs`."
            )
        model(inputs)
    from multibackend_lstm.runtimes.execution import describe, numpy_weights, unique_paths

    config = _config(model)
    described = json.loads(json.dumps(describe(model), default=_plain))
    source = {"config": config, "objects": dict(_custom_objects(config))}
    with warnings.catch_warnings():
        # Keras turns tensors into arrays in a way that NumPy 2 warns of (pytorch#136264); tests
        # that take warnings for errors are to pass.
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        weights = numpy_weights(model)
    return Case(
        model.name,
        source,
        weights,
        unique_paths(model.weights),
        structure=described["structure"],
        described=described,
    )


def _config(model: Any) -> Any:
    """The model's config in plain values.

    Raises:
        CaseError: naming the layer that has none.
    """
    try:
        return _serialized(model)
    except Exception as error:  # whatever somebody's get_config brings up
        guilty, reason = model, error
        for layer in model._flatten_layers(include_self=False):  # the outer ones first
            try:
                _serialized(layer)
            except Exception as of_layer:
                guilty, reason = layer, of_layer
        why = " ".join(str(reason).partition("Example:")[0].split()) or type(reason).__name__
        raise CaseError(
            f"the layer {guilty.path!r} ({type(guilty).__name__}) has no config to build it from "
            "in another process. Return the arguments of its constructor as plain values from "
            "get_config(), or give package.module:function, which returns the model. What "
            f"get_config says: {why}"
        ) from error


def _serialized(layer: Any) -> Any:
    import keras

    return json.loads(json.dumps(keras.saving.serialize_keras_object(layer), default=_plain))


def _input_like(x: Any) -> Any:
    import keras

    x = np.asarray(x)
    return keras.Input(x.shape[1:], dtype=str(x.dtype))


def _plain(value: Any) -> Any:
    """NumPy's scalars and arrays as JSON has them."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    raise CaseError(f"it holds a {type(value).__name__}, which JSON cannot.")


def _custom_objects(config: Any) -> Iterator[tuple[str, str]]:
    """Registered name and place of every class and function that is not Keras's or ours."""
    if isinstance(config, list):
        for item in config:
            yield from _custom_objects(item)
    elif isinstance(config, dict):
        name, registered = config.get("class_name"), config.get("registered_name")
        if isinstance(name, str) and registered and "module" in config:
            yield from _place(config["module"], name, config.get("config"), registered)
        for value in config.values():
            yield from _custom_objects(value)


def _place(
    module: str | None, name: str, config: Any, registered: str
) -> Iterator[tuple[str, str]]:
    name = config if name == "function" and isinstance(config, str) else name
    if module is None:  # so Keras writes of a class in __main__
        raise CaseError(
            f"{name} is defined in the script that runs, which a worker cannot import. Move it "
            "into a module of its own."
        )
    if module.split(".")[0] not in ("keras", "multibackend_lstm", "builtins"):
        _check_importable(module, name)
        yield registered, f"{module}:{name}"


def _check_importable(module: str, name: str) -> None:
    """Refuse what another process, which has this one's import path, would not find."""
    if not _is_found(module):
        raise CaseError(
            f"{name} is defined in the module {module!r}, which a worker cannot import: it is not "
            "on sys.path. Move it into a module that is. Of a test module pytest puts the folder "
            "there, unless its import mode is importlib; then set `pythonpath` in its "
            "configuration file."
        )
    found = sys.modules.get(module)
    if found is not None and not hasattr(found, name.split(".")[0]):
        raise CaseError(
            f"{name} is not a name of the module {module!r}, so that a worker cannot import it. "
            "Define it at the top of the module, not in a function."
        )


def _is_found(module: str) -> bool:
    """Whether an import would find a module on the path, whatever is imported already."""
    path: Sequence[str] | None = [*sys.path, os.getcwd()]
    parents: list[str] = []
    for part in module.split("."):
        parents.append(part)
        spec = PathFinder.find_spec(".".join(parents), path)
        if spec is None:
            return False
        path = spec.submodule_search_locations
    return True


def _flatten(structure: Any, leaves: list[np.ndarray]) -> Any:
    """The structure with positions in `leaves` as its leaves; the arrays are added there."""
    if isinstance(structure, Mapping):
        return {key: _flatten(value, leaves) for key, value in structure.items()}
    if isinstance(structure, (list, tuple)):
        return [_flatten(value, leaves) for value in structure]
    array = np.asarray(structure)
    if array.dtype.kind not in "fiub":
        raise CaseError(
            f"inputs and labels must be numbers or booleans. Received an array of {array.dtype} "
            f"with shape {array.shape}. Convert it first."
        )
    leaves.append(array)
    return len(leaves) - 1


def draw_inputs(
    specs: list[dict[str, Any]], shapes: Sequence[Sequence[int]], batch: int, seed: int
) -> list[np.ndarray]:
    """Inputs for a model that gave only their shapes.

    Args:
        specs: `{"name", "shape", "dtype", "categories"}` an input, as a worker describes them.
        shapes: shapes without batch to use in place of the described ones; may be empty.
        batch: size of the batch.
        seed: of NumPy's generator.

    Raises:
        CaseError: if a shape is unknown, or the shapes given do not fit.
    """
    if shapes and len(shapes) != (len(specs) or len(shapes)):
        raise CaseError(
            f"the model has {len(specs)} inputs, and {len(shapes)} shapes were given: give one "
            "--input-shape an input, in the order of the model's inputs."
        )
    if not specs:
        if not shapes:
            raise CaseError(
                "the model does not tell the shape of its inputs: give --inputs or --input-shape."
            )
        specs = [{"name": "", "shape": [None, *s], "dtype": "float32"} for s in shapes]
    rng = np.random.default_rng(seed)
    inputs = []
    for index, spec in enumerate(specs):
        shape = list(shapes[index]) if shapes else spec["shape"][1:]
        if len(shape) != len(spec["shape"]) - 1 or any(
            known is not None and known != size
            for known, size in zip(spec["shape"][1:], shape, strict=True)
        ):
            raise CaseError(
                f"input {spec['name']!r} has the shape (batch, *{tuple(spec['shape'][1:])}). "
                f"Received --input-shape {tuple(shape)}, which does not fit."
            )
        # An axis left open, time as a rule, gets a size that no other axis is likely to have.
        shape = [batch, *(7 if size is None else size for size in shape)]
        check_numbers(f"input {spec['name']!r}", shape)
        if spec.get("categories"):
            drawn = rng.integers(0, spec["categories"], shape).astype(spec["dtype"])
        elif not re.match("u?int|float|bfloat|bool", spec["dtype"]):
            raise CaseError(
                f"input {spec['name']!r} takes {spec['dtype']}, and only numbers and booleans are "
                "compared. Give the part of the model behind the layers that turn it into numbers."
            )
        elif "int" in spec["dtype"] or spec["dtype"] == "bool":
            drawn = rng.integers(0, 2, shape).astype(spec["dtype"])
        else:
            drawn = rng.normal(size=shape).astype("float32")
        inputs.append(drawn)
    return inputs
