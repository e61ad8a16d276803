"""Show that Keras gives wrong numbers: KERAS_BACKEND=torch python repro.py"""

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
    print("expected", expected, "received", found, sep="\n")
    sys.exit(f"{name}: wrong by up to {error.max():.3g}, and rounding explains {case['floor']:.3g}")
print(f"{name}: right")
