"""replace_lambdas: an old model file becomes a Keras 3 model without stored functions."""

import copy
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np

from multibackend_lstm.files import replacing
from multibackend_lstm.porting import lambdas, stored_weights
from multibackend_lstm.porting.lambdas import Evidence, Shape, Verdict
from multibackend_lstm.porting.legacy_configs import MODELS, STORED_FUNCTIONS, translate
from multibackend_lstm.porting.model_files import ModelFile, ModelFileError, open_model_file

_UPGRADED = {"LSTM": "lstm", "GRU": "gru", "TimeDistributed": "time_distributed"}


@dataclass(frozen=True)
class Step:
    """One thing that was done, or not done.

    Attributes:
        place: the layer, with the models around it: `outer > inner > layer`.
        action: `"replaced"`, `"left"`, `"upgraded"`, `"translated"` or `"not finite"`.
        detail: by what and why.
    """

    place: str
    action: str
    detail: str


@dataclass
class Migration:
    """What became of a file.

    Attributes:
        path: the old file.
        keras_version: of the Keras that wrote it.
        model: the uncompiled Keras 3 model, with the old weights; None where functions are left.
        steps: everything that was done, and what was left.
        out: where it was written, if it was.
    """

    path: Path
    keras_version: str
    model: Any = None
    steps: list[Step] = field(default_factory=list)
    out: Path | None = None

    def of(self, *actions: str) -> list[Step]:
        """The steps with these actions."""
        return [step for step in self.steps if step.action in actions]

    @property
    def left(self) -> list[Step]:
        """Stored functions that could not be shown to merge or split axes only."""
        return self.of("left")

    @property
    def complete(self) -> bool:
        """Whether nothing is left, and every weight is a finite number."""
        return not self.of("left", "not finite")

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        return {
            "path": str(self.path),
            "keras_version": self.keras_version,
            "out": None if self.out is None else str(self.out),
            "complete": self.complete,
            "steps": [asdict(step) for step in self.steps],
        }


def replace_lambdas(
    path: str | Path,
    out: str | Path | None = None,
    *,
    upgrade: bool = False,
    replacements: Mapping[str, keras.layers.Layer] | None = None,
    custom_objects: Mapping[str, Any] | None = None,
) -> Migration:
    """Turn an old model file into a Keras 3 model that loads in safe mode on every backend.

    Nothing stored in the file is run. A `Lambda` is replaced by `FlattenFeatures` (it merges the
    axes after time) or `keras.layers.Reshape` where the shapes around it leave exactly one merge
    or split of axes, see `porting/lambdas.py`; a `tf.reshape`, `tf.expand_dims` or `tf.squeeze`
    outside of a layer where its stored arguments say so. Shapes cannot exclude that a function
    also moves or scales values: compare predictions, as `multibackend-lstm migrate --verify` does.

    What Keras 3 refuses or reads otherwise is translated: `time_major`, `batch_input_shape`,
    configurations without modules (keras#19898), modules of other Keras versions, calls of nested
    models, `hard_sigmoid`, which has another slope in Keras 3. Weights are carried over by layer
    and name, and all shapes are checked before any is allocated. The optimizer and its state are
    dropped.

    Example:
        >>> migration = replace_lambdas("old.h5", "new.keras")
        >>> [(step.place, step.detail) for step in migration.of("replaced")]
        [('merge', 'FlattenFeatures: LSTM takes (batch, time, 15), and (10, 3, 5) -> ...')]

    Args:
        path: a whole model in `.h5`, `.hdf5` or `.keras`, of Keras 2, tf.keras or Keras 3. It is
            not changed.
        out: a `.keras` file to write, unless a function is left.
        upgrade: put `multibackend_lstm.LSTM`, `GRU` and `TimeDistributed` in the place of Keras's.
        replacements: layers for stored functions, by the name of the `Lambda`, where you know
            what it computes: `{"scale": keras.layers.Rescaling(2.0)}`. They have no weights.
        custom_objects: classes and functions of your own that the file names.

    Returns:
        A `Migration`. Its `model` is None if a function is left; then nothing is written.

    Raises:
        ModelFileError: (a `ValueError`) for a file that is damaged, incomplete or unsafe, a class
            that is not known, or weights that do not fit their layers.
        ValueError: for an `out` that is no `.keras` file or is `path` itself, or a replacement
            for a layer that there is not.
        FileNotFoundError: if there is no such file.
    """
    path = Path(path)
    out = None if out is None else Path(out)
    if out is not None:
        if out.suffix != ".keras":
            raise ValueError(f"replace_lambdas: `out` must end in .keras. Received {str(out)!r}.")
        if out.exists() and path.exists() and out.samefile(path):
            raise ValueError(f"replace_lambdas: `out` must be another file than `path`, {path}.")
    file = open_model_file(path)
    migration = Migration(path, file.keras_version)
    notes: list[str] = []
    config = translate(
        file.config,
        keras_2=file.keras_2,
        custom_objects=custom_objects or {},
        notes=notes,
    )
    for note in notes:
        place, _, detail = note.partition(": ")
        migration.steps.append(Step(place, "translated", detail))
    if file.compiled:
        detail = "the arguments of compile and the optimizer's state are dropped"
        migration.steps.append(Step("the model", "translated", detail))
    resolver = _Resolver(file, config, dict(replacements or {}), custom_objects or {}, migration)
    # In this scope variables have shapes and no values: a hostile size allocates nothing.
    with keras.StatelessScope(initialize_variables=False):
        resolver.model(config, ())
    resolver.finish()
    for name, array in file.arrays():
        bad = array.size - int(np.isfinite(array).sum()) if array.dtype.kind == "f" else 0
        if bad:
            detail = f"{bad} of {array.size} values are NaN or infinite; carried over as they are"
            migration.steps.append(Step(name, "not finite", detail))
    if migration.left:
        return migration
    if upgrade:
        _upgrade(config, None, migration.steps)
    migration.model = _instance(config, custom_objects or {}, "the model")
    stored_weights.load(migration.model, file)
    if out is not None:
        with replacing(out) as temporary:
            migration.model.save(temporary)
        migration.out = out
    return migration


def _instance(config: dict[str, Any], custom_objects: Mapping[str, Any], place: str) -> Any:
    """An object of a translated configuration, in which every class is known."""
    try:
        return keras.saving.deserialize_keras_object(
            copy.deepcopy(config), custom_objects=dict(custom_objects), safe_mode=True
        )
    except Exception as error:  # whatever a constructor raises on arguments from a file
        raise ModelFileError(f"{place}: Keras cannot build it: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300] or type(error).__name__


class _Resolver:
    """Goes through a model call by call, with shapes only, and replaces its stored functions."""

    def __init__(
        self,
        file: ModelFile,
        config: dict[str, Any],
        replacements: dict[str, keras.layers.Layer],
        custom_objects: Mapping[str, Any],
        migration: Migration,
    ) -> None:
        self.file = file
        self.replacements = replacements
        self.custom_objects = custom_objects
        self.migration = migration
        self.used: set[str] = set()
        # By the id of the layer's configuration, which lives as long as this does.
        self.instances: dict[int, Any] = {}
        self.resolved: set[int] = set()
        # A Lambda loses the mask; where there is one, Reshape does too, and FlattenFeatures not.
        self.masked = any(
            item.get("class_name") == "Masking"
            or (item.get("class_name") == "Embedding" and item["config"].get("mask_zero"))
            for item in _objects(config)
        )

    def finish(self) -> None:
        """Complain of replacements that found no place."""
        unused = sorted(set(self.replacements) - self.used)
        if unused:
            raise ValueError(
                f"replace_lambdas: `replacements` names {unused}, and the file has no such Lambda."
            )

    def model(self, model: dict[str, Any], scope: tuple[dict[str, Any], ...]) -> None:
        """Resolve every layer of a model, and check stored weights of the outermost one's."""
        layers = model["config"]["layers"]
        prefixes = stored_weights.prefixes(layers, [entry["prefix"] for entry in scope])
        frame = {"layers": layers, "scope": scope, "prefixes": prefixes}
        if model["class_name"] == "Sequential":
            self._sequential(frame)
        else:
            self._functional(frame)
        if not scope:
            stored_weights.check_layers(self.file, {_name(layer) for layer in layers})

    def _sequential(self, frame: dict[str, Any]) -> None:
        layers = frame["layers"]
        tensor: Any = None
        consumers = {id(a): [b] for a, b in itertools.pairwise(layers)}
        for layer in layers:
            if layer["class_name"] == "InputLayer":
                tensor = self._input(layer, frame)
                continue
            result = self._call(layer, [tensor], {}, frame, consumers)
            tensor = result[0] if result else None

    def _functional(self, frame: dict[str, Any]) -> None:
        layers = {layer["name"]: layer for layer in frame["layers"]}
        consumers: dict[int, list[dict[str, Any]]] = {id(layer): [] for layer in frame["layers"]}
        for layer in frame["layers"]:
            for node in layer["inbound_nodes"]:
                for name, *_ in _histories(node):
                    if name not in layers:
                        raise ModelFileError(f"{_name(layer)}: it takes {name!r}, which is missing")
                    consumers[id(layers[name])].append(layer)
        outputs: dict[tuple[str, int], list[Any] | None] = {}
        waiting = [(layer, call) for layer in frame["layers"] for call in range(_calls(layer))]
        while waiting:
            later = []
            for layer, call in waiting:
                if layer["class_name"] == "InputLayer":
                    outputs[layer["name"], 0] = [self._input(layer, frame)]
                    continue
                node = layer["inbound_nodes"][call]
                if any((name, index) not in outputs for name, index, _ in _histories(node)):
                    later.append((layer, call))
                    continue
                tensors: list[Any] = []
                for name, index, output in _histories(node):
                    made = outputs[name, index]
                    if made is not None and not 0 <= output < len(made):
                        raise ModelFileError(f"{_name(layer)}: {name!r} has no output {output}")
                    tensors.append(None if made is None else made[output])
                outputs[layer["name"], call] = self._call(layer, tensors, node, frame, consumers)
            if len(later) == len(waiting):
                names = sorted({_name(layer) for layer, _ in later})
                raise ModelFileError(f"the calls of {names} wait for each other or for none")
            waiting = later

    def _input(self, layer: dict[str, Any], frame: dict[str, Any]) -> Any:
        shape = layer["config"].get("batch_shape")
        if not lambdas.is_shape(shape):
            raise ModelFileError(f"{self._place(layer, frame)}: {shape!r} is no input shape")
        return _instance(layer, self.custom_objects, self._place(layer, frame)).output

    def _place(self, layer: dict[str, Any], frame: dict[str, Any]) -> str:
        return " > ".join([*(entry["name"] for entry in frame["scope"]), _name(layer)])

    # ---- one call

    def _call(
        self,
        layer: dict[str, Any],
        tensors: list[Any],
        node: dict[str, Any],
        frame: dict[str, Any],
        consumers: dict[int, list[dict[str, Any]]],
    ) -> list[Any] | None:
        """The outputs of a call, None where they are not known."""
        place = self._place(layer, frame)
        if layer["class_name"] in STORED_FUNCTIONS:
            self._replace(layer, tensors, node, frame, consumers)
            if layer["class_name"] in STORED_FUNCTIONS:
                return None
            node = {}
            if "inbound_nodes" in layer:
                (node,) = layer["inbound_nodes"]
        elif layer["class_name"] in MODELS and id(layer) not in self.resolved:
            entry = {"name": _name(layer), "prefix": frame["prefixes"][id(layer)]}
            self.model(layer, (*frame["scope"], entry))
            self.resolved.add(id(layer))
        stored = [item for item in _objects(layer) if item["class_name"] in STORED_FUNCTIONS]
        if stored and layer["class_name"] not in MODELS:
            for item in stored:
                where = f"{place} > {_name(item)}"
                self._note(where, "left", f"a {item['class_name']} inside a {layer['class_name']}")
        if stored or any(tensor is None for tensor in tensors):
            return None
        if id(layer) not in self.instances:
            self.instances[id(layer)] = _instance(layer, self.custom_objects, place)
        instance = self.instances[id(layer)]
        try:
            args, kwargs = _arguments(node, tensors)
            made = instance(*args, **kwargs)
        except Exception as error:  # whatever a layer raises on shapes and arguments from a file
            raise ModelFileError(f"{place}: Keras cannot call it: {_first_line(error)}") from error
        if not frame["scope"]:
            stored_weights.check(instance, self.file, frame["prefixes"][id(layer)], _name(layer))
        return keras.tree.flatten(made)

    def _replace(
        self,
        layer: dict[str, Any],
        tensors: list[Any],
        node: dict[str, Any],
        frame: dict[str, Any],
        consumers: dict[int, list[dict[str, Any]]],
    ) -> None:
        """Put a layer in a stored function's place, or note why it is left."""
        place, kind = self._place(layer, frame), layer["class_name"]
        if any(step.place == place for step in self.migration.left):
            return
        replacement = self.replacements.get(_name(layer))
        if replacement is not None:
            self.used.add(_name(layer))
            config = keras.saving.serialize_keras_object(replacement)
            config.pop("build_config", None)
            config["config"]["name"] = _name(layer)
            self._put(layer, config, place, f"{config['class_name']}, as the caller says")
            return
        shape = None
        if len(tensors) == 1 and tensors[0] is not None:
            shape = tuple(tensors[0].shape)
        if kind == "Lambda":
            verdict = self._judge_lambda(layer, shape, frame, consumers)
        else:
            verdict = lambdas.reshape_operation(layer, node.get("kwargs", {}), shape)
        if len(tensors) != 1 or _calls(layer) > 1:
            verdict = Verdict(None, "it has several inputs, or is called several times")
        if verdict.target is None or shape is None:
            self._note(place, "left", f"{kind}: {verdict.reason}")
            return
        self._put(layer, self._reshaping(layer, shape, verdict.target), place, verdict.reason)

    def _judge_lambda(
        self,
        layer: dict[str, Any],
        shape: Shape | None,
        frame: dict[str, Any],
        consumers: dict[int, list[dict[str, Any]]],
    ) -> Verdict:
        others = lambdas.other_operations(layer)
        if others:
            return Verdict(None, f"its stored function names {', '.join(others)}")
        if layer["config"].get("mask") or layer["config"].get("arguments"):
            return Verdict(None, "its function takes arguments, or makes a mask")
        build = layer.get("build_config")
        if shape is None and isinstance(build, dict) and lambdas.is_shape(build.get("input_shape")):
            shape = tuple(build["input_shape"])
        evidence = Evidence()
        stored = lambdas.stored_shape(layer)
        if stored is not None:
            evidence.exact.append((stored, "its output_shape"))
        self._gather(layer, evidence, frame, consumers)
        return lambdas.judge(shape, evidence)

    def _gather(
        self,
        layer: dict[str, Any],
        evidence: Evidence,
        frame: dict[str, Any],
        consumers: dict[int, list[dict[str, Any]]],
    ) -> None:
        """What the layers after this one tell about its output."""
        for consumer in consumers.get(id(layer), []):
            name = _name(consumer)
            build = consumer.get("build_shape") or (
                (consumer.get("build_config") or {}).get("input_shape")
            )
            if lambdas.is_shape(build):
                evidence.exact.append((tuple(build), f"the build shape of {name}"))
            if consumer["class_name"] in MODELS:
                inputs = [
                    inner["config"]["batch_shape"]
                    for inner in consumer["config"]["layers"]
                    if inner["class_name"] == "InputLayer"
                ]
                if len(inputs) == 1 and lambdas.is_shape(inputs[0]):
                    evidence.exact.append((tuple(inputs[0]), f"the input shape of {name}"))
                continue
            if consumer["class_name"] in STORED_FUNCTIONS:
                continue
            if lambdas.is_transparent(consumer):
                self._gather(consumer, evidence, frame, consumers)
                continue
            first = stored_weights.first_shape(
                self.file,
                frame["prefixes"][id(consumer)],
                [*(entry["name"] for entry in frame["scope"]), name],
            )
            demanded = lambdas.demands(consumer, first)
            if demanded is not None:
                evidence.add(*demanded)

    def _reshaping(self, layer: dict[str, Any], shape: Shape, target: Shape) -> dict[str, Any]:
        """FlattenFeatures where all axes after time are merged, else Reshape."""
        config = {"name": _name(layer), "dtype": layer["config"].get("dtype", "float32")}
        if isinstance(config["dtype"], dict):
            policy = config["dtype"].get("config", {}).get("name", "float32")
            config["dtype"] = policy
        time, *axes = shape[1:]
        sizes = [size for size in axes if size is not None]
        if (
            len(axes) > 1
            and len(sizes) == len(axes)
            and target == (time, math.prod(sizes))
            and not self.masked
        ):
            from multibackend_lstm.layers import FlattenFeatures

            return keras.saving.serialize_keras_object(FlattenFeatures(**config))
        sizes = [-1 if size is None else size for size in target]
        return keras.saving.serialize_keras_object(keras.layers.Reshape(sizes, **config))

    def _put(self, layer: dict[str, Any], config: dict[str, Any], place: str, reason: str) -> None:
        name, nodes = _name(layer), layer.get("inbound_nodes")
        layer.clear()
        layer.update(config, name=name)
        if nodes is not None:
            layer["inbound_nodes"] = [{"args": node["args"], "kwargs": {}} for node in nodes]
        lost = self.masked and config["class_name"] == "Reshape"
        self._note(
            place,
            "replaced",
            f"{config['class_name']}: {reason}"
            + (". It loses the mask, as the Lambda did" if lost else ""),
        )

    def _note(self, place: str, action: str, detail: str) -> None:
        step = Step(place, action, detail)
        if step not in self.migration.steps:
            self.migration.steps.append(step)


def _name(layer: dict[str, Any]) -> str:
    return str(layer.get("name") or layer["config"].get("name"))


def _calls(layer: dict[str, Any]) -> int:
    if layer["class_name"] == "InputLayer":
        return 1
    return len(layer.get("inbound_nodes", [None]))


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """Every object of a configuration, outermost first; not what is inside a stored function."""
    if isinstance(value, dict):
        if "class_name" in value and isinstance(value.get("config"), dict):
            yield value
        if value.get("class_name") not in STORED_FUNCTIONS:
            for item in value.values():
                yield from _objects(item)
    elif isinstance(value, list):
        for item in value:
            yield from _objects(item)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, dict) and value.get("class_name") == "__keras_tensor__"


def _histories(value: Any) -> Iterator[tuple[str, int, int]]:
    """The tensors in the arguments of a call, in order: layer, call, output."""
    if _is_tensor(value):
        history = value["config"].get("keras_history")
        if not isinstance(history, list) or [type(item) for item in history] != [str, int, int]:
            raise ModelFileError(f"{history!r} is no output of a layer")
        yield history[0], history[1], history[2]
    elif isinstance(value, dict):
        for item in value.values():
            yield from _histories(item)
    elif isinstance(value, list):
        for item in value:
            yield from _histories(item)


def _arguments(node: dict[str, Any], tensors: list[Any]) -> tuple[list[Any], dict[str, Any]]:
    """The arguments of a call with tensors in their places."""
    if not node:
        return tensors, {}
    remaining = iter(tensors)

    def filled(value: Any) -> Any:
        if _is_tensor(value):
            return next(remaining)
        if isinstance(value, dict):
            if "class_name" in value:
                return keras.saving.deserialize_keras_object(value, safe_mode=True)
            return {key: filled(item) for key, item in value.items()}
        return [filled(item) for item in value] if isinstance(value, list) else value

    return filled(node["args"]), filled(node["kwargs"])


def _upgrade(value: Any, place: str | None, steps: list[Step]) -> None:
    """Name this package's classes in the place of Keras's, which have the same arguments."""
    if isinstance(value, list):
        for item in value:
            _upgrade(item, place, steps)
    elif isinstance(value, dict):
        name, module = value.get("class_name"), str(value.get("module"))
        if isinstance(value.get("config"), dict) and (name in MODELS or module == "keras.layers"):
            # The name of the outermost model adds nothing.
            place = "" if place is None else f"{place} > {_name(value)}".removeprefix(" > ")
            if name in _UPGRADED and module == "keras.layers":
                value["module"] = f"multibackend_lstm.layers.{_UPGRADED[name]}"
                value["registered_name"] = f"multibackend_lstm>{name}"
                steps.append(Step(place, "upgraded", f"multibackend_lstm.{name}"))
        for item in value.values():
            _upgrade(item, place, steps)
