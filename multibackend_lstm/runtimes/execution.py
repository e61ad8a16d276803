"""A worker's side of a case: one model, run so that every number on the way can be compared."""

import collections
import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops, tree

from multibackend_lstm.layers.dropout import drawing_otherwise, draws_alike, random_rates
from multibackend_lstm.runtimes import backend_runtime
from multibackend_lstm.runtimes.errors import CaseError
from multibackend_lstm.runtimes.imports import imported, imported_module
from multibackend_lstm.runtimes.loading import cause, load_keras_model
from multibackend_lstm.runtimes.noise_floor import perturbed

#: Kinds of what the untouched model predicts.
OUTPUTS = ("output", "output of a second batch")


class Tensor(NamedTuple):
    """One tensor to compare.

    Attributes:
        kind: `"output"`, `"layer"`, `"input gradient"`, ...
        path: which one of the kind, such as `"encoder/lstm"`.
        values: in a dtype that NumPy knows.
        dtype: the name of the dtype that the backend gave it.
        assigned: of the gradient by a weight, whether the layer assigned the weight in the call.
    """

    kind: str
    path: str
    values: np.ndarray
    dtype: str
    assigned: bool = False


def as_tensor(kind: str, path: str, x: Any) -> Tensor:
    """A backend's tensor; the narrow floating dtypes that NumPy lacks become float32."""
    dtype = keras.backend.standardize_dtype(x.dtype)
    values = ops.convert_to_numpy(ops.cast(x, "float32") if dtype == "bfloat16" else x)
    return Tensor(kind, path, values, dtype)


def check_training(source: dict[str, Any], optimizer: Any, loss: Any) -> None:
    """Refuse an optimizer or a loss that Keras does not know, before anything is computed.

    Args:
        source: as for `load`; what it imports may register the two.
        optimizer: name or config.
        loss: name or config, or a list of them.

    Raises:
        CaseError: if there is none.
    """
    places = [*source.get("objects", {}).values(), source.get("function", "")]
    for module in [*source.get("modules", []), *(place.partition(":")[0] for place in places)]:
        if module:
            imported_module(module)
    losses = loss if isinstance(loss, list) else [loss]
    for kind, get, given in (
        ("optimizer", keras.optimizers.get, optimizer),
        *(("loss", keras.losses.get, one) for one in losses),
    ):
        try:
            get(given)
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise CaseError(
                f"`{kind}` must be the name or config of a Keras {kind}. Received {given!r}, of "
                f"which Keras says: {cause(error)}"
            ) from error


def load(source: dict[str, Any], dtype: str | None) -> tuple[keras.Model, Any]:
    """The model of a case, and the inputs its function gave or None.

    Args:
        source: `{"config": ..., "objects": {registered name: "module:Class"}}`,
            `{"function": "package.module:name"}` or `{"file": path}`.
        dtype: policy to give every layer; None leaves them as they are.
    """
    for module in source.get("modules", []):
        imported_module(module)
    # So that layers which get their names from a counter have the same ones everywhere.
    keras.utils.clear_session(free_memory=False)
    # For layers that a user's layer builds within itself, which no config names. (The session's
    # end has taken the policy along.)
    keras.config.set_dtype_policy(dtype or "float32")
    objects = {name: imported(place) for name, place in source.get("objects", {}).items()}
    inputs = None
    if "function" in source:
        model = imported(source["function"])()
        if isinstance(model, tuple):
            model, inputs = model
    elif "file" in source:
        model = load_keras_model(source["file"])
        if dtype is not None:
            config = keras.saving.serialize_keras_object(model)
            return load({"config": config}, dtype)
    else:
        config = source["config"] if dtype is None else with_dtype(source["config"], dtype)
        model = keras.saving.deserialize_keras_object(
            config, custom_objects=objects, safe_mode=True
        )
    if not isinstance(model, keras.Model):
        raise CaseError(f"a keras.Model is needed. Received {type(model).__name__}.")
    return model, inputs


def describe(model: keras.Model) -> dict[str, Any]:
    """What a report and a drawing of inputs need to know of a model, in plain values."""
    layers = {path: layer_config(layer) for path, layer in walk(model)}
    for path, operation in operations(model):
        if path not in layers:
            layers[path] = layer_config(operation)
    specs = getattr(model, "inputs", None) or []
    return {
        "layers": layers,
        "inputs": [_input_spec(model, x) for x in specs],
        "structure": tree.pack_sequence_as(model._inputs_struct, list(range(len(specs))))
        if hasattr(model, "_inputs_struct")
        else None,
        "floating_outputs": sum(map(_is_float, getattr(model, "outputs", None) or [])) or None,
        "compiled": compiled(model),
        "weights": _weights_of_layers(model),
        "trainable": _places(model, model.trainable_weights),
    }


def _weights_of_layers(model: keras.Model) -> dict[str, list[int]]:
    """Where each layer's weights stand among the model's, in the layer's own order.

    By the variables themselves: paths of weights do not tell the layer where names are alike.
    """
    return {
        path: _places(model, getattr(layer, "weights", ()))
        for path, layer in named_operations(model).items()
    }


def _places(model: keras.Model, weights: Sequence[Any]) -> list[int]:
    """Where weights stand among the model's."""
    places = {id(weight): place for place, weight in enumerate(model.weights)}
    return [places[id(weight)] for weight in weights if id(weight) in places]


def compiled(model: keras.Model) -> dict[str, Any]:
    """Configs of the optimizer and the loss that a model was compiled with; None for none.

    Several losses are a list, one for each output of a floating dtype.
    """
    config = (model.get_compile_config() if model.compiled else None) or {}
    optimizer, loss = (config.get(key) for key in ("optimizer", "loss"))
    return {
        "optimizer": optimizer if _is_one(optimizer) else None,
        "loss": loss if _is_one(loss) else _by_output(model, loss),
    }


def _is_one(config: Any) -> bool:
    return isinstance(config, str) or (isinstance(config, dict) and "class_name" in config)


def _by_output(model: keras.Model, losses: Any) -> list[Any] | None:
    """Several losses in the order of the outputs; None where they are nested otherwise."""
    outputs = getattr(model, "outputs", None)
    if not losses or not outputs:
        return None
    if isinstance(losses, dict):
        named = isinstance(model.output, dict)
        names = sorted(model.output) if named else model.output_names
        losses = [losses.get(name) for name in names] if {*losses} <= {*names} else []
    if len(losses) != len(outputs) or not all(x is None or _is_one(x) for x in losses):
        return None
    return [loss for loss, x in zip(losses, outputs, strict=True) if _is_float(x)]


def layer_config(layer: Any) -> dict[str, Any]:
    """Module, class and config of a layer or an operation, as a report holds them.

    Of a layer whose config cannot be had, in a model that a function builds, only the dtype.
    """
    try:
        config = keras.saving.serialize_keras_object(layer)
        json.dumps(config)
    except Exception:  # whatever somebody's get_config brings up; nothing is built from it
        kind = type(layer)
        config = {"module": kind.__module__, "class_name": kind.__name__}
        policy = getattr(layer, "dtype_policy", None)
        config["config"] = {} if policy is None else {"dtype": policy.name}
    return {key: config.get(key) for key in ("module", "class_name", "config")}


def _input_spec(model: keras.Model, x: Any) -> dict[str, Any]:
    """Shape and dtype; for an input of an Embedding, how many categories it has."""
    categories = [
        layer.input_dim
        for layer in model.layers
        if isinstance(layer, keras.layers.Embedding) and layer.input is x
    ]
    return {
        "name": x.name,
        "shape": list(x.shape),
        "dtype": x.dtype,
        "categories": min(categories, default=None),
    }


def numpy_weights(model: keras.Model) -> list[np.ndarray]:
    """Weights in the order of `model.weights`; bfloat16, which NumPy lacks, as float32."""
    return [
        ops.convert_to_numpy(ops.cast(w, "float32") if w.dtype == "bfloat16" else w)
        for w in model.weights
    ]


def weights_sha256(model: keras.Model) -> str:
    """What tells these weights from others, the same on every backend."""
    digest = hashlib.sha256()
    for array in numpy_weights(model):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def unique_paths(variables: Sequence[Any]) -> list[str]:
    """The variables' paths; one that comes again is numbered."""
    seen: collections.Counter[str] = collections.Counter()
    paths = []
    for variable in variables:
        seen[variable.path] += 1
        number = seen[variable.path]
        paths.append(variable.path if number == 1 else f"{variable.path} ({number})")
    return paths


def in_order(variables: Sequence[Any], paths: Sequence[str], shapes: Sequence[Any]) -> list[Any]:
    """The variables to which weights of these paths and shapes belong.

    A layer may create its weights in another order on another backend, so that they are found by
    path. Where the paths are others, since a process counts the names that it makes up, they are
    found by path without these numbers, or by their order where that tells the same.

    Raises:
        CaseError: if a weight has another shape than its variable, or names do not tell which of
            several variables of its shape it belongs to.
    """
    found = dict(zip(unique_paths(variables), variables, strict=True))
    if {*found} == {*paths}:
        ordered = [found[path] for path in paths]
    else:
        ordered = _without_numbers(found, paths)
    if [tuple(v.shape) for v in ordered] != [tuple(shape) for shape in shapes]:
        given = ", ".join(f"{path} {tuple(s)}" for path, s in zip(paths, shapes, strict=True))
        here = ", ".join(f"{v.path} {tuple(v.shape)}" for v in variables)
        raise CaseError(
            f"the weights are those of another model. They are {given}; the model here has {here}."
        )
    return ordered


def _without_numbers(found: dict[str, Any], paths: Sequence[str]) -> list[Any]:
    here, given = ([re.sub(r"_\d+(?=/|$)", "", p) for p in names] for names in (found, paths))
    # Nor by what a model that is called for the first time puts before: its own name, or none.
    here, given = (["/".join(p.split("/")[-2:]) for p in names] for names in (here, given))
    variables = list(found.values())
    if here == given or len(here) != len(given):
        return variables
    if sorted(here) == sorted(given) and len({*here}) == len(here):
        by_name = dict(zip(here, variables, strict=True))
        return [by_name[path] for path in given]
    shapes = collections.Counter(tuple(v.shape) for v in variables)
    for name, wanted, variable in zip(here, given, variables, strict=True):
        if name != wanted and shapes[tuple(variable.shape)] > 1:
            raise CaseError(
                f"the weights cannot be told apart: one is {wanted!r} where the model here has "
                f"{name!r}, and others have its shape {tuple(variable.shape)} too. Give the layers "
                "and weights of the model names that are the same in every process."
            )
    return variables


def with_dtype(config: Any, dtype: str) -> Any:
    """A model's config with every floating dtype policy replaced."""
    if isinstance(config, list):
        return [with_dtype(item, dtype) for item in config]
    if not isinstance(config, dict):
        return config
    if config.get("class_name") == "DTypePolicy":
        return {**config, "config": {"name": dtype}}
    new = {key: with_dtype(value, dtype) for key, value in config.items()}
    named = config.get("dtype")
    if isinstance(named, str) and "float" in named:
        is_tensor = "batch_shape" in config or "keras_history" in config
        if not is_tensor or dtype == "float64":
            new["dtype"] = dtype
    return new


def walk(model: keras.Model, prefix: str = "") -> Iterator[tuple[str, keras.layers.Layer]]:
    """Path and layer of every layer, those of nested models too, in the order of `layers`."""
    for layer in model.layers:
        if isinstance(layer, keras.layers.InputLayer):
            continue
        yield prefix + layer.name, layer
        if isinstance(layer, keras.Model):
            yield from walk(layer, f"{prefix}{layer.name}/")


def operations(model: keras.Model, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Path and object of every layer and operation, those of nested models too, but no model."""
    graph = getattr(model, "_functional", model)  # that of a Sequential
    found = list(graph.operations) if isinstance(graph, keras.Function) else list(model.layers)
    for operation in found:
        if isinstance(operation, keras.layers.InputLayer):
            continue
        if isinstance(operation, keras.Model):
            yield from operations(operation, f"{prefix}{operation.name}/")
        else:
            yield prefix + operation.name, operation


def named_operations(model: keras.Model) -> dict[str, Any]:
    """Every layer and operation, each once, by its path; a path that comes again is numbered."""
    named: dict[str, Any] = {}
    counts: collections.Counter[str] = collections.Counter()
    seen: set[int] = set()
    for path, operation in operations(model):
        if id(operation) not in seen:
            seen.add(id(operation))
            counts[path] += 1
            named[path if counts[path] == 1 else f"{path} ({counts[path]})"] = operation
    return named


def silence(model: keras.Model) -> list[str]:
    """Leave on what is random in the same way on every backend; what differs, by path.

    Layers of this package that draw so all start from the same seeds. Keras's dropout and noise
    differ among backends by design, so a training step can only be compared without them: their
    rates become 0, but for one of 1, which drops everything and leaves nothing to chance. A layer
    of somebody else may mean anything by a `rate` or `factor`: it is left alone, and if it has a
    seed its numbers differ.
    """
    for position, layer in enumerate(model._flatten_layers()):
        for generator in vars(layer).values() if draws_alike(layer) else ():
            if isinstance(generator, keras.random.SeedGenerator):
                state = generator.state
                state.assign(np.array([position, 0], state.dtype))
    remaining = []
    for layer in drawing_otherwise(model):
        found = False
        for name, rate in random_rates(layer).items():
            settable = not isinstance(getattr(type(layer), name, None), property)
            if rate and settable and isinstance(rate, (int, float)):
                setattr(layer, name, 0.0)
                found = True
        if not found:
            remaining.append(layer.path)
    return remaining


class Capture:
    """Records what each layer of a model returns, and can add float32's rounding to it.

    Within `recording()` every layer's `call` is wrapped in one that keeps what it returns;
    outside the model is untouched. Of the layers inside other layers only those of nested models
    are recorded, since a layer may call its own within a compiled loop; rounding is added to all.
    """

    def __init__(self, model: keras.Model) -> None:
        """Record nothing yet."""
        self._model = model
        self._stack: list[str] = []
        self._calls: collections.Counter[str] = collections.Counter()
        self.paths: list[str] = []
        self.outputs: list[Any] = []
        # Rounding of intermediate values, in float64 runs: 0, or the size of the rounding.
        self.rounding = keras.Variable(0.0, dtype="float64", trainable=False, name="rounding")
        self._seeds = keras.random.SeedGenerator(0)
        self._noisy = False

    @contextmanager
    def recording(self, noisy: bool = False) -> Iterator[None]:
        """Wrap the layers; `noisy` adds rounding of the size that `set_rounding` gave."""
        recorded = {id(layer): layer for _, layer in walk(self._model)}
        inner = [layer for layer in self._model._flatten_layers() if layer is not self._model]
        layers = inner if noisy else list(recorded.values())
        self._noisy = noisy
        for layer in layers:
            vars(layer)["call"] = self._wrap(layer, id(layer) in recorded)
        try:
            yield
        finally:
            for layer in layers:
                del vars(layer)["call"]

    def set_rounding(self, size: float, seed: int) -> None:
        """How large the rounding is that a noisy run adds, and its random numbers."""
        self.rounding.assign(size)
        self._seeds.state.assign(np.array([seed, 0], self._seeds.state.dtype))

    def start(self) -> None:
        """Forget what was recorded."""
        self.paths, self.outputs = [], []
        self._calls.clear()

    def _wrap(self, layer: keras.layers.Layer, recorded: bool) -> Callable[..., Any]:
        call = layer.call

        @functools.wraps(call)  # with its signature: layers look there for `mask` and `training`
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self._stack.append(layer.name)
            try:
                outputs = call(*args, **kwargs)
            finally:
                path = "/".join(self._stack)
                self._stack.pop()
            if self._noisy:
                outputs = tree.map_structure(self._round, outputs)
            if not recorded:
                return outputs
            self._calls[path] += 1
            number = f" (call {self._calls[path]})" if self._calls[path] > 1 else ""
            leaves = [leaf for leaf in tree.flatten(outputs) if leaf is not None]
            for index, leaf in enumerate(leaves):
                self.paths.append(f"{path}{number}" + (f"[{index}]" if len(leaves) > 1 else ""))
                self.outputs.append(leaf)
            return outputs

        return wrapped

    def _round(self, x: Any) -> Any:
        if x is None or not keras.backend.is_float_dtype(keras.backend.standardize_dtype(x.dtype)):
            return x
        noise = keras.random.uniform(ops.shape(x), -1.0, 1.0, dtype=x.dtype, seed=self._seeds)
        rounded = x * (1 + noise * ops.cast(self.rounding, x.dtype))
        mask = getattr(x, "_keras_mask", None)
        if mask is not None:
            rounded._keras_mask = mask
        return rounded


class Execution:
    """One model with the weights of a case, ready to run on inputs and labels.

    Args:
        model: the model.
        structure: the inputs' nested structure, with positions in a list as its leaves.
        training: `{"steps", "optimizer", "loss"}`.
        weights: path and shape of each, in the order in which `set_weights` gets them.
        noisy: whether layers' outputs can be rounded, for the twins of a float64 run.
    """

    def __init__(
        self,
        model: keras.Model,
        structure: Any,
        training: dict[str, Any] | None,
        weights: Sequence[tuple[str, Any]],
        noisy: bool,
    ) -> None:
        """Prepare the functions; they are traced when they first run."""
        self.model = model
        self.weights = in_order(model.weights, *([pair[i] for pair in weights] for i in (0, 1)))
        self._structure = structure
        self._training: dict[str, Any] = training or {}
        self.noisy = noisy
        self.capture = Capture(model)
        loss = self._training.get("loss")
        dtype = "float64" if noisy else "float32"
        #: Of lists of outputs and labels; None without training.
        self.total_loss = None if loss is None else TotalLoss(loss, dtype)
        self._infer = backend_runtime.active().inference(model, self._call)
        self._optimizer: Any = None
        self.round(0.0, 0)
        self._step: Any = None
        # Their states are no variables of the model.
        self._stateful = [
            layer
            for layer in model._flatten_layers()
            if getattr(layer, "stateful", False) and hasattr(layer, "reset_state")
        ]
        #: Shapes and dtypes of the outputs, as arrays that hold nothing, once they are known.
        self.output_forms: list[np.ndarray] | None = None
        self.randomness = silence(model)
        self._snapshot = [np.array(v) for v in model.variables]
        #: What marks masked steps in the inputs: no rounding moves these.
        self.mask_values = set()
        for layer in model._flatten_layers():
            if isinstance(layer, keras.layers.Masking):
                # As it is in float32 inputs, which a float64 run is given too.
                layer.mask_value = float(np.float32(layer.mask_value))
                self.mask_values.add(layer.mask_value)

    @property
    def untrainable(self) -> str | None:
        """Why there is nothing to train by, once the outputs are known; None if there is."""
        if not any(x.dtype.kind == "f" for x in self.output_forms or []):
            return "no output is of a floating dtype, so that there is no loss"
        return None

    def set_weights(self, weights: list[np.ndarray]) -> None:
        """Start from these weights, and everything else from where it was at first."""
        for variable, value in self.snapshot():
            variable.assign(value)
        for variable, value in zip(self.weights, weights, strict=True):
            variable.assign(value)
        for layer in self._stateful:
            layer.reset_state()

    def snapshot(self) -> Iterator[tuple[Any, np.ndarray]]:
        """Every variable, and what it was at first."""
        return zip(self.model.variables, self._snapshot, strict=True)

    def round(self, size: float, seed: int) -> None:
        """How large the rounding is that a noisy run adds to layers' outputs, and its seed.

        The optimizer's settings are rounded too: Adam's `1 - beta_2 ** step` multiplies the
        rounding of `beta_2` by a thousand, in float32 on every backend alike.
        """
        self.capture.set_rounding(size, seed)
        self._rounding, self._rng = size, np.random.default_rng(seed)

    def arranged(self, inputs: list[Any]) -> Any:
        """The inputs as the model takes them."""
        return tree.map_structure(lambda index: inputs[index], self._structure)

    def _call(self, inputs: list[Any]) -> list[Any]:
        self.capture.start()
        outputs = self.model(self.arranged(inputs), training=False)
        self.output_paths = [_path(key) for key, _ in tree.flatten_with_path(outputs)]
        # JAX comes here when it traces alone, and a training step records its layers too.
        self.layer_paths = list(self.capture.paths)
        return [*self.capture.outputs, *tree.flatten(outputs)]

    def predicted(self, inputs: list[np.ndarray]) -> Iterator[Tensor]:
        """What the untouched model predicts; a stateful one a second time too."""
        for kind in OUTPUTS if self._stateful else OUTPUTS[:1]:
            outputs = self.model.predict_on_batch(self.arranged(inputs))
            for key, x in tree.flatten_with_path(outputs):
                dtype = str(x.dtype)
                values = np.asarray(x, "float32" if dtype == "bfloat16" else dtype)
                yield Tensor(kind, _path(key), values, dtype)

    def captured(self, inputs: list[np.ndarray]) -> Iterator[Tensor]:
        """Every layer's output, in the order in which they come, then the model's.

        A float64 run predicts nothing else: there these outputs stand for the predictions too.
        """
        tensors = [ops.convert_to_tensor(x) for x in inputs]
        with self.capture.recording(self.noisy):
            values = self._infer(tensors)
            count = len(self.layer_paths)
            second = self._infer(tensors)[count:] if self.noisy and self._stateful else []
        outputs = values[count:]
        self.output_forms = [
            np.broadcast_to(np.zeros((), "float32" if _is_float(x) else "int32"), x.shape)
            for x in outputs
        ]
        for path, x in zip(self.layer_paths, values, strict=False):
            yield as_tensor("layer", path, x)
        kinds = ["captured output", *(OUTPUTS[:1] if self.noisy else ())]
        for kind, values in [*((kind, outputs) for kind in kinds), (OUTPUTS[1], second)]:
            for path, x in zip(self.output_paths, values, strict=bool(values)):
                yield as_tensor(kind, path, x)

    def trained(self, inputs: list[np.ndarray], labels: list[np.ndarray]) -> Iterator[Tensor]:
        """Loss and gradients of the first step, and weights after the last one."""
        optimizer = self.fresh_optimizer()
        if self._step is None:
            runtime = backend_runtime.active()
            self._step = runtime.training_step(self.model, optimizer, self.loss_of)
        xs = [ops.convert_to_tensor(x) for x in inputs]
        ys = [ops.convert_to_tensor(y) for y in labels]
        steps = self._training["steps"]
        noted = set(checkpoints(steps))
        losses = []
        with self.capture.recording(self.noisy):
            for step in range(1, max(steps, 1) + 1):
                loss, input_gradients, gradients = self._step(xs, ys)
                losses.append(float(loss))
                if step == 1:
                    for index, gradient in enumerate(input_gradients):
                        yield as_tensor("input gradient", f"input {index}", gradient)
                    paths = unique_paths(self.model.trainable_variables)
                    for path, gradient in zip(paths, gradients, strict=True):
                        yield as_tensor("weight gradient", path, gradient)
                if step in noted:
                    weights = [np.ravel(np.array(w, "float64")) for w in self.weights]
                    vector = np.concatenate([np.zeros(0), *weights])
                    yield Tensor("trajectory", str(step), vector, "float64")
        yield Tensor("loss", "of each step", np.array(losses), str(self.model.compute_dtype))
        if steps:
            paths = unique_paths(self.model.weights)
            for path, weight in zip(paths, self.model.weights, strict=True):
                yield as_tensor("weight", path, weight.value)

    def fresh_optimizer(self) -> keras.optimizers.Optimizer:
        """The optimizer as it is before the first step."""
        if self._optimizer is None:
            self._optimizer = keras.optimizers.get(self._training["optimizer"])
            self._optimizer.build(self.model.trainable_variables)
            self._fresh = [np.array(v) for v in self._optimizer.variables]
            self._settings = _settings_of(self._optimizer) if self.noisy else []
        for variable, value in zip(self._optimizer.variables, self._fresh, strict=True):
            variable.assign(value)
        for setting in self._settings:
            setting.assign(perturbed(np.array(setting.exact), self._rng, self._rounding))
        if self.noisy and isinstance(self._optimizer, keras.optimizers.Nadam):
            self._round_learning_rate()
        return self._optimizer

    def _round_learning_rate(self) -> None:
        """What the rounding of `beta_2` does to Nadam's steps.

        Keras's own Nadam takes both `1 - beta_2` and `beta_2 ** step` from the rounded number, so
        that its rounding does nothing; torch's takes one of them from the exact number.
        """
        rate = self._optimizer._learning_rate
        if isinstance(rate, keras.Variable):  # and no schedule
            size = self._rounding / (1 - self._optimizer.beta_2) / 2
            rate.assign(np.array(rate) * (1 + self._rng.uniform(-size, size)))

    def loss_of(self, inputs: list[Any], labels: list[Any]) -> Any:
        """The loss of the model in training."""
        outputs = self.model(self.arranged(inputs), training=True)
        compared = [x for x in tree.flatten(outputs) if _is_float(x)]
        assert self.total_loss is not None
        total = self.total_loss(compared, labels)
        for term in self.model.losses:
            total += ops.cast(term, total.dtype)
        return total


class TotalLoss:
    """The losses of all outputs, added.

    Args:
        loss: name or config of each output's, or a list of one an output, None for none.
        dtype: to compute in.
    """

    def __init__(self, loss: Any, dtype: str) -> None:
        self._several = isinstance(loss, list)
        self._functions = [keras.losses.get(x) for x in (loss if self._several else [loss])]
        self._dtype = dtype

    def __call__(self, outputs: Sequence[Any], labels: Sequence[Any]) -> Any:
        """The sum; `call` may have been replaced, as a layer's may."""
        return self.call(outputs, labels)

    def call(self, outputs: Sequence[Any], labels: Sequence[Any]) -> Any:
        """The sum. Labels have no gradient."""
        functions = self._functions if self._several else self._functions * len(outputs)
        if len(functions) != len(outputs):
            raise CaseError(
                f"`loss` must have an entry for each output of a floating dtype, of which there "
                f"are {len(outputs)}. Received {len(functions)}."
            )
        total = ops.zeros((), self._dtype)
        for function, label, output in zip(functions, labels, outputs, strict=True):
            if function is not None:
                total += _Loss(function, self._dtype)(ops.stop_gradient(label), output)
        return total


class _Loss(keras.losses.Loss):
    """A function of labels and predictions, averaged as Keras does: masked steps are left out."""

    def __init__(self, function: Callable[[Any, Any], Any], dtype: str) -> None:
        super().__init__(name="loss", dtype=dtype)
        self._function = function.call if isinstance(function, keras.losses.Loss) else function

    def call(self, y_true: Any, y_pred: Any) -> Any:
        return self._function(y_true, y_pred)


class _Setting(keras.Variable):
    """An optimizer's setting that can be rounded.

    Keras takes `1 - beta` from the exact number, and `beta ** step` from the rounded one, so that
    in float32 one does not make up for the other.
    """

    def __init__(self, value: float) -> None:
        super().__init__(value, dtype="float64", trainable=False)
        self.exact = value

    def __rsub__(self, other: Any) -> Any:
        return other - self.exact


def _settings_of(optimizer: keras.optimizers.Optimizer) -> list[_Setting]:
    """Make the settings that the optimizer uses in arithmetic alone into variables."""
    settings = []
    for name in ("beta_1", "beta_2", "rho", "epsilon"):
        if isinstance(getattr(optimizer, name, None), float):
            vars(optimizer)[name] = _Setting(getattr(optimizer, name))
            settings.append(vars(optimizer)[name])
    return settings


def checkpoints(steps: int) -> list[int]:
    """At most about 12 steps up to the last one, the first ones close together."""
    return sorted({round(x) for x in np.geomspace(1, steps, min(steps, 12))}) if steps else []


def draw_labels(loss: Any, outputs: list[np.ndarray], seed: int) -> list[np.ndarray]:
    """Labels that a loss of this name can take, for outputs of these shapes.

    Inputs are drawn by the seed alone: labels must not be the same numbers.
    """
    rng = np.random.default_rng([seed, 1])
    labels: list[np.ndarray] = []
    for output in outputs:
        if not np.issubdtype(output.dtype, np.floating):
            continue
        of_output = loss[len(labels)] if isinstance(loss, list) else loss
        name, shape = json.dumps(of_output).lower(), output.shape
        if "sparse" in name:
            labels.append(rng.integers(0, shape[-1], shape[:-1]))
        elif "categorical" in name:
            labels.append(
                np.eye(shape[-1], dtype="float32")[rng.integers(0, shape[-1], shape[:-1])]
            )
        elif "binary" in name or "hinge" in name:
            labels.append(rng.integers(0, 2, shape).astype("float32"))
        else:
            labels.append(rng.normal(size=shape).astype("float32"))
    return labels


def _path(key: tuple[Any, ...]) -> str:
    return "/".join(map(str, key)) or "0"


def _is_float(x: Any) -> bool:
    return bool(keras.backend.is_float_dtype(keras.backend.standardize_dtype(x.dtype)))
