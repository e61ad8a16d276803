"""A folder for each finding: all that is needed to see it again, and to report it."""

import importlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from multibackend_lstm.agreement.comparison import (
    ALONE,
    ALONE_WORST_UP_TO,
    DISAGREES,
    DISAGREES_ABOVE,
    limit_alone,
)
from multibackend_lstm.agreement.least_models import LeastModel
from multibackend_lstm.agreement.report import Report
from multibackend_lstm.agreement.shrinking import Least, Leasts
from multibackend_lstm.files import WriteError, check_writable
from multibackend_lstm.runtimes.errors import CaseError
from multibackend_lstm.runtimes.loading import (
    MAX_JSON,
    cause,
    limited_weights,
    parse_json,
    read_arrays,
)

_VERSION = 1
_OWN = ("keras", "multibackend_lstm", "builtins")


def check_empty(folder: Path) -> None:
    """Refuse a folder for bundles that holds something, before anything is computed."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        found = "not empty" if folder.is_dir() else "a file"
        raise ValueError(f"`bundle` must be a new or an empty folder. {folder} is {found}.")
    check_writable(folder)


def write_bundles(
    folder: Path,
    report: Report,
    leasts: Leasts,
    models: Mapping[int, LeastModel | str],
    modules: Sequence[str],
) -> list[str]:
    """Write `finding-N` for each finding that is shown; a line of each finding is returned.

    Args:
        folder: to write to.
        report: with the findings.
        leasts: the least call of each layer that is off alone.
        models: the least model of each finding of the whole model, by its number, or why there is
            none.
        modules: where classes are that are not Keras's.
    """
    by_place = {(least.target, least.call["path"]): least for least in leasts.found}
    lines = []
    for number, finding in enumerate(report.findings, 1):
        start = f"finding {number}, {finding.target} {finding.path or finding.group}"
        place = folder / f"finding-{number}"
        model = models.get(number)
        if isinstance(model, LeastModel):
            _write_model(place, report, model, modules, finding.message)
            of = f" (of {', '.join(model.calls)})" if model.calls else ""
            lines.append(f"{start}: {place}{of}")
            continue
        if finding.group != ALONE or finding.verdict != DISAGREES:
            lines.append(f"{start}: no bundle: {model or 'only what disagrees has one'}")
            continue
        layers = {c.layer for r in report.results for c in r.comparisons if c.path == finding.path}
        least = next(
            (x for k, x in by_place.items() if k[0] == finding.target and k[1] in layers), None
        )
        if least is None:
            lines.append(f"{start}: no bundle: it did not show again in a call of its own")
            continue
        layer = least.layer or report.layers.get(least.call["path"], {})
        if isinstance((report.settings["training"] or {}).get("loss"), list) and (
            least.call["path"] == "loss"
        ):
            lines.append(f"{start}: no bundle: it is the sum of several losses")
            continue
        if what(least.call["path"]) == "layer" and not layer.get("config"):
            lines.append(f"{start}: no bundle: {least.call['path']!r} has no config")
            continue
        _write(place, report, leasts, least, layer, modules, finding.message)
        lines.append(f"{start}: {place}")
    return lines


def what(path: str) -> str:
    """What is called: "loss", "optimizer", or "layer", which an operation is called like too."""
    return path if path in ("loss", "optimizer") else "layer"


def _place_of(least: Least, weights: Sequence[str]) -> tuple[int, int]:
    """Which tensor of its kind is off, and after which update."""
    path, name = least.comparison.path, least.call["name"]
    if what(least.call["path"]) == "optimizer":
        path, _, step = path.rpartition(" after update ")
        return [*weights].index(path), int(step)
    if least.comparison.kind in ("update alone", "weight gradient alone"):
        return [*weights].index(path.removesuffix(name.removeprefix(least.call["path"]))), 0
    return int(path.removeprefix(name).strip("[]") or 0), 0


def _write(
    place: Path,
    report: Report,
    leasts: Leasts,
    least: Least,
    layer: Mapping[str, Any],
    modules: Sequence[str],
    message: str,
) -> None:
    path = least.call["path"]
    if report.settings["dtype"] is not None:
        from multibackend_lstm.runtimes.execution import with_dtype

        layer = with_dtype(dict(layer), report.settings["dtype"])
    dtype = least.call["dtype"]
    weights = least.weights or leasts.weights.get(path, {})
    if what(path) == "optimizer":
        weights = leasts.trainable
    of_keras = layer["module"].split(".")[0] == "keras"
    number, step = _place_of(least, [*weights])
    header = _found(report, least, modules) | {
        "layer": {**layer, "registered_name": None if of_keras else layer["class_name"]},
        "call": dict(least.call),
        "weights": [*weights],
        "what": what(path),
        "place": number,
        "step": step,
        "limit": limit_alone(dtype),
        "worst_limit": ALONE_WORST_UP_TO.get(dtype, ALONE_WORST_UP_TO["float32"]),
    }
    arrays = {f"tensor{i}": x for i, x in enumerate(least.tensors)}
    arrays |= {f"weight{i}": x for i, x in enumerate(weights.values())}
    arrays |= {f"upstream{i}": x for i, x in enumerate(least.upstream)}
    arrays |= {"expected": least.expected, "received": least.received, "elements": least.elements}
    _save(place, header, arrays, _issue(header, least, message))


def _write_model(
    place: Path, report: Report, least: LeastModel, modules: Sequence[str], message: str
) -> None:
    """Write the folder of a part of the whole model."""
    from multibackend_lstm.runtimes.execution import with_dtype

    case, dtype = least.case, report.settings["dtype"]
    layer = case.source["config"]
    header = _found(report, least, modules) | {
        "layer": layer if dtype is None else with_dtype(layer, dtype),
        "call": {"path": case.name, "name": case.name, "training": False, "dtype": "float32"},
        "structure": case.structure,
        "training": least.training,
        "weights": case.weight_paths,
        "what": "model",
        "place": least.place,
        "step": 0,
        "limit": DISAGREES_ABOVE,
        "worst_limit": None,
    }
    named = {
        "tensor": case.inputs or [], "weight": case.weights or [], "label": least.labels
    }  # fmt: skip
    arrays = {f"{name}{i}": x for name, found in named.items() for i, x in enumerate(found)}
    arrays |= {"expected": least.expected, "received": least.received, "elements": np.zeros(())}
    _save(place, header, arrays, _issue(header, least, message))


def _found(report: Report, least: Least | LeastModel, modules: Sequence[str]) -> dict[str, Any]:
    """What case.json says of where it was found, alike for all that is called."""
    return {
        "version": _VERSION,
        "modules": [*modules],
        "kind": least.comparison.kind,
        "path": least.comparison.path,
        "target": least.target,
        "versions": next(dict(r.versions) for r in report.results if r.target == least.target),
        "reference": report.reference,
        "settings": {key: report.settings[key] for key in ("dtype", "precision", "seed")},
        "floor": least.comparison.floor,
    }


def _save(
    place: Path, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray], issue: str
) -> None:
    """Write a folder, all of it or nothing."""
    temporary = place.with_name(f".{place.name}-{uuid.uuid4().hex[:8]}")
    try:
        temporary.mkdir()
        np.savez(temporary / "arrays.npz", **arrays)  # type: ignore[arg-type]
        texts = {
            "case.json": json.dumps(header, indent=1),
            "repro.py": _REPRO,
            "issue.md": issue,
        }
        for file, text in texts.items():
            (temporary / file).write_text(text + "\n", encoding="utf-8")
        os.replace(temporary, place)
    except OSError as error:
        raise WriteError(f"cannot write {place}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _issue(header: Mapping[str, Any], least: Least | LeastModel, message: str) -> str:
    backend = header["target"].partition("@")[0]
    kind = header["layer"]["class_name"]
    versions = "\n".join(f"- {name} {version}" for name, version in header["versions"].items())
    shapes = ", ".join(str(x.shape) for x in least.tensors)
    path = least.comparison.path
    tensor = {
        "output": "What `predict` gives",
        "output of a second batch": "What `predict` gives for a second batch",
        "weight gradient": f"The gradient by the weight `{path}`",
        "weight": f"The weight `{path}` after training",
        "loss": "The loss in training",
        "input gradient alone": "The gradient by an input",
        "weight gradient alone": f"The gradient by the weight `{path}`",
        "update alone": f"The variable `{path}`",
    }.get(least.comparison.kind, "The output")
    config = json.dumps(header["layer"]["config"], indent=1)
    return f"""# {kind} gives wrong numbers on the {backend} backend

{tensor} of `{kind}` on {header["target"]} differs from {header["reference"]} by more than
rounding explains. Inputs have the shape {shapes}.

```json
{config}
```

Expected:

```
{_shown(least.expected)}
```

Received:

```
{_shown(least.received)}
```

In the model where it was found: {message}

To see it, with `case.json`, `arrays.npz` and `repro.py` of this folder in one place:

```sh
KERAS_BACKEND={backend} python repro.py
```

It ends with status 1 where that is wrong, and 0 where it is right.

Versions:

{versions}"""


def _shown(x: np.ndarray) -> str:
    return np.array2string(x, precision=7, threshold=60)


def replayed(folder: Path, modules: Sequence[str]) -> tuple[Any, Any]:
    """The layer of a bundle as a model, and its inputs.

    Args:
        folder: that `check` wrote.
        modules: that classes may be imported from, beside Keras and this package.

    Raises:
        CaseError: if it is no bundle, or names a class of another module.
        ModelFileError: if its arrays are damaged, or anything but numbers.
    """
    file = folder / "case.json"
    if not file.is_file() or file.stat().st_size > MAX_JSON:
        raise CaseError(f"{folder} is no bundle: it has no case.json, as `--bundle` writes it.")
    header = parse_json(file.read_bytes(), str(file))
    if header.get("version") != _VERSION:
        raise CaseError(
            f"{folder} is of version {header.get('version')}, and this package reads {_VERSION}."
        )
    if not isinstance(header.get("layer"), dict):
        raise CaseError(f"{folder} cannot be replayed: its case.json describes no layer.")
    arrays = read_arrays(folder / "arrays.npz")
    _check_modules(header["layer"], modules)
    import keras

    from multibackend_lstm.runtimes.calls import decoded

    for module in modules:
        importlib.import_module(module)
    tensors = [arrays[f"tensor{i}"] for i in range(sum(n.startswith("tensor") for n in arrays))]
    kind = header.get("what", "layer")
    _check_modules(header.get("training"), modules)
    if kind == "optimizer":
        raise CaseError(
            f"{folder} is of an optimizer, whose gradients no model is given: run its repro.py."
        )
    try:
        if kind == "model":
            return _replayed_model(header, arrays, tensors)
        inputs = [keras.Input(x.shape[1:], dtype=str(x.dtype)) for x in tensors]
        args, kwargs = decoded(header["call"]["arguments"], inputs, masks=False)
        kwargs.pop("training", None)
        if kind == "loss":
            given = {id(x): array for x, array in zip(inputs, tensors, strict=True)}
            predicted = args[0]
            outputs = [keras.layers.Activation("linear")(x) for x in predicted]
            model = keras.Model(predicted, outputs)
            model.compile(loss=_loss(header["layer"]))
            return model, [given[id(x)] for x in predicted]
        layer = keras.saving.deserialize_keras_object(
            header["layer"], custom_objects(header["layer"]), safe_mode=True
        )
        with limited_weights(keras, sum(x.nbytes for x in arrays.values())):
            model = keras.Model(inputs, layer(*args, **kwargs), name=layer.name)
        if header["weights"]:
            layer.set_weights([arrays[f"weight{i}"] for i in range(len(header["weights"]))])
    except Exception as error:  # whatever a foreign configuration brings up
        raise CaseError(f"{folder} cannot be replayed: {cause(error)}") from error
    return model, tensors


def _replayed_model(
    header: Mapping[str, Any], arrays: Mapping[str, np.ndarray], tensors: Sequence[np.ndarray]
) -> tuple[Any, Any]:
    """A part of a model, and its inputs as it takes them."""
    import keras

    with limited_weights(keras, sum(x.nbytes for x in arrays.values())):
        model = keras.saving.deserialize_keras_object(
            header["layer"], custom_objects(header["layer"]), safe_mode=True
        )
    model.set_weights([arrays[f"weight{i}"] for i in range(len(header["weights"]))])
    training = header["training"]
    if training is not None:
        model.compile(
            optimizer=keras.optimizers.get(training["optimizer"]),
            loss=keras.losses.get(training["loss"]),
        )
    return model, keras.tree.map_structure(lambda place: tensors[place], header["structure"])


def _loss(layer: Mapping[str, Any]) -> Any:
    """A loss, of which the config may be its name alone."""
    import keras

    if not layer["config"]:
        return keras.losses.get(layer["class_name"])
    return keras.saving.deserialize_keras_object(dict(layer), custom_objects(layer), safe_mode=True)


def custom_objects(layer: Mapping[str, Any]) -> dict[str, Any]:
    """The class of a layer that is not Keras's, by name."""
    if layer["module"].split(".")[0] == "keras":
        return {}
    found = getattr(importlib.import_module(layer["module"]), layer["class_name"], None)
    if found is None:
        raise CaseError(f"{layer['module']} has no class {layer['class_name']!r}.")
    return {layer["class_name"]: found}


def _check_modules(config: Any, modules: Sequence[str]) -> None:
    """Refuse a class of a module that nobody named: to import one runs its code."""
    if isinstance(config, list):
        for item in config:
            _check_modules(item, modules)
    elif isinstance(config, dict):
        module = config.get("module")
        known = module is None or str(module).split(".")[0] in _OWN or module in modules
        if "class_name" in config and not known:
            raise CaseError(
                f"the bundle names a class of the module {module!r}, whose import would run "
                f"its code. If you trust it, add --import {module}."
            )
        for value in config.values():
            _check_modules(value, modules)


_REPRO = '''"""Show that Keras gives wrong numbers: KERAS_BACKEND=torch python repro.py"""

import importlib
import json
import sys
from pathlib import Path

import keras
import numpy as np
from keras import ops

folder = Path(__file__).parent
case = json.loads((folder / "case.json").read_text(encoding="utf-8"))
arrays = dict(np.load(folder / "arrays.npz", allow_pickle=False))
for module in case["modules"]:  # where classes that are not Keras's are
    importlib.import_module(module)
dtype = case["call"]["dtype"]


def listed(name):
    """Arrays with numbers."""
    return [arrays[f"{name}{i}"] for i in range(sum(key.startswith(name) for key in arrays))]


def tensor(x):
    return ops.convert_to_tensor(x, dtype if x.dtype.kind == "f" else str(x.dtype))


def decoded(value, tensors):
    """An argument of the call."""
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "ellipsis" in value:
        return Ellipsis
    if "slice" in value:
        return slice(*(decoded(x, tensors) for x in value["slice"]))
    if "list" in value or "tuple" in value:
        items = [decoded(x, tensors) for x in value.get("list", value.get("tuple"))]
        return items if "list" in value else tuple(items)
    if "dict" in value:
        return {key: decoded(x, tensors) for key, x in value["dict"].items()}
    return value["value"]


def named(module, config):
    """A loss or an optimizer, of which the config may be its name alone."""
    if config["module"].split(".")[0] != "keras":
        found = getattr(importlib.import_module(config["module"]), config["class_name"])
        return found.from_config(config["config"])
    return module.get(config if config["config"] else config["class_name"])


class Mean(keras.losses.Loss):
    """A loss as a layer calls it: of one output, averaged."""

    def __init__(self, function):
        super().__init__(dtype=dtype)
        self.function = function.call if isinstance(function, keras.losses.Loss) else function

    def call(self, y_true, y_pred):
        return self.function(y_true, y_pred)


def total(outputs, labels):
    """The losses of all outputs, added."""
    function = named(keras.losses, case["layer"])
    return sum(Mean(function)(y, x) for y, x in zip(labels, outputs))


class Gradients(keras.optimizers.Optimizer):
    """Leaves the gradient by a variable in its place."""

    def update_step(self, gradient, variable, learning_rate):
        self.assign(variable, ops.cast(gradient, variable.dtype))


class Trained(keras.Model):
    """Calls the layer on inputs that are weights, so that there are gradients by them too."""

    def __init__(self, call, inner):
        super().__init__()
        self.compute, self.inner = call, inner
        self.given = [
            self.add_weight(shape=x.shape, initializer="zeros", dtype=dtype, name=f"given{i}")
            if x.dtype.kind == "f"
            else tensor(x)
            for i, x in enumerate(listed("tensor"))
        ]

    def call(self, unused, training=False):
        given = [x.value if isinstance(x, keras.Variable) else x for x in self.given]
        floating = [x for x in outputs_of(self.compute(given)) if is_float(x)]
        terms = [
            ops.sum(ops.cast(x, "float32") * ops.convert_to_tensor(g, "float32"))
            for x, g in zip(floating, listed("upstream"))
        ]
        return ops.reshape(sum(terms), (1, 1))


def is_float(x):
    return "float" in keras.backend.standardize_dtype(x.dtype)


def outputs_of(x):
    return [leaf for leaf in keras.tree.flatten(x) if leaf is not None]


def updated():
    """A variable after some updates with the same gradients."""
    optimizer = named(keras.optimizers, case["layer"])
    variables = [keras.Variable(x, dtype=dtype) for x in listed("weight")]
    optimizer.build(variables)
    for _ in range(case["step"]):
        optimizer.apply([tensor(x) for x in listed("tensor")], variables)
    return variables[case["place"]]


def arranged(structure):
    """The inputs as the model takes them."""
    if isinstance(structure, dict):
        return {key: arranged(x) for key, x in structure.items()}
    if isinstance(structure, list):
        return [arranged(x) for x in structure]
    return arrays[f"tensor{structure}"]


def of_model():
    """What is wrong in a whole model: of its outputs, or after training."""
    model = keras.saving.deserialize_keras_object(case["layer"])
    model.set_weights(listed("weight"))
    inputs, training = arranged(case["structure"]), case["training"]
    if case["kind"] == "captured output" and keras.backend.backend() != "jax":
        return outputs_of(model(inputs, training=False))[case["place"]]
    if training is None or "output" in case["kind"]:
        outputs = model.predict_on_batch(inputs)
        if case["kind"] == "output of a second batch":
            outputs = model.predict_on_batch(inputs)
        return outputs_of(outputs)[case["place"]]
    gradient = case["kind"] == "weight gradient"
    optimizer = Gradients(1.0) if gradient else keras.optimizers.get(training["optimizer"])
    model.compile(optimizer, loss=keras.losses.get(training["loss"]), auto_scale_loss=False)
    labels, losses = listed("label"), []
    labels = labels if isinstance(model.output, (list, tuple)) else labels[0]
    for _ in range(1 if gradient else max(training["steps"], 1)):
        model.reset_metrics()
        losses.append(model.train_on_batch(inputs, labels))
    if case["kind"] == "loss":
        return np.array(losses)
    return (model.trainable_weights if gradient else model.weights)[case["place"]]


def computed():
    """The tensor that is wrong."""
    if case["what"] == "optimizer":
        return updated()
    if case["what"] == "model":
        return of_model()
    custom, inner = {}, None
    if case["what"] == "layer":
        if case["layer"]["module"].split(".")[0] != "keras":
            name = case["layer"]["class_name"]
            custom[name] = getattr(importlib.import_module(case["layer"]["module"]), name)
        inner = keras.saving.deserialize_keras_object(case["layer"], custom)

    def call(tensors):
        args, kwargs = decoded(case["call"]["arguments"], tensors)
        return (inner or total)(*args, **kwargs)

    def restored():
        if case["weights"]:
            inner.set_weights(listed("weight"))

    tensors = [tensor(x) for x in listed("tensor")]
    call(tensors)  # which builds it
    restored()
    if case["kind"] in ("layer alone", "layer alone in training"):
        return outputs_of(call(tensors))[case["place"]]
    model = Trained(call, inner if isinstance(inner, keras.layers.Layer) else None)
    jit = keras.backend.backend() == "jax"
    # Not compiled on TensorFlow: on a busy machine the variable was now and then read as before.
    model.compile(
        Gradients(1.0), loss=lambda y, x: ops.sum(x), jit_compile=jit, run_eagerly=not jit
    )
    model(np.zeros((1, 1)))
    restored()
    floating = [x for x in model.given if isinstance(x, keras.Variable)]
    for variable, x in zip(floating, [x for x in listed("tensor") if x.dtype.kind == "f"]):
        variable.assign(x)
    model.train_on_batch(np.zeros((1, 1)), np.zeros((1, 1)))
    if case["kind"] == "input gradient alone":
        return floating[case["place"]]
    return inner.weights[case["place"]]


found = computed()
found = ops.convert_to_tensor(found)
if dtype != "float64" and is_float(found):
    found = ops.cast(found, "float32")  # which NumPy has, and which holds what is narrower
found = ops.convert_to_numpy(found).astype("float64")

expected = arrays["expected"].astype("float64")
assert found.shape == expected.shape, f"shape {found.shape}, expected {expected.shape}"
same = (found == expected) | (np.isnan(found) & np.isnan(expected))
error = np.where(same, 0.0, np.abs(found - expected))
# Rounding moves the numbers by the floor; what is further off than these multiples is wrong.
floor = np.maximum(arrays["elements"], 0.1 * case["floor"])
ok = np.sqrt(np.mean(error**2)) <= case["limit"] * case["floor"]
if case["worst_limit"] is not None:
    ok = ok and np.all(error <= case["worst_limit"] * floor)
name = f"{case['layer']['class_name']} on {keras.backend.backend()}, Keras {keras.__version__}"
if not ok:
    print("expected", expected, "received", found, sep="\\n")
    sys.exit(f"{name}: wrong by up to {error.max():.3g}, and rounding explains {case['floor']:.3g}")
print(f"{name}: right")'''
