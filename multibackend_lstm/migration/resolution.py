"""Goes through a model's graph with shapes alone, and replaces its stored functions."""

import copy
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import keras

from multibackend_lstm.migration import lambdas, operations, stored_weights
from multibackend_lstm.migration.configs import MODELS, STORED_FUNCTIONS, makes_masks, objects
from multibackend_lstm.migration.lambdas import Evidence, Shape, Verdict
from multibackend_lstm.migration.model_files import ModelFile
from multibackend_lstm.migration.operations import Operation
from multibackend_lstm.runtimes.loading import ModelFileError, cause


@dataclass(frozen=True)
class Step:
    """One thing that was done, or not done.

    Attributes:
        place: the layer, with the models around it: `outer > inner > layer`.
        action: `"replaced"`, `"left"`, `"upgraded"`, `"not upgraded"`, `"translated"` or
            `"not finite"`.
        detail: by what and why.
        reshapes: for what is left, the shapes that it could give if it is a reshape, as the
            command's option `--reshape` takes them: `merge=10,15`.
    """

    place: str
    action: str
    detail: str
    reshapes: tuple[str, ...] = ()


def instantiate(config: dict[str, Any], custom_objects: Mapping[str, Any], place: str) -> Any:
    """An object of a translated configuration, in which every class is known."""
    try:
        return keras.saving.deserialize_keras_object(
            copy.deepcopy(config), custom_objects=dict(custom_objects), safe_mode=True
        )
    except Exception as error:  # whatever a constructor raises on arguments from a file
        raise ModelFileError(f"{place}: Keras cannot build it: {cause(error)}") from error


def _without_state(config: dict[str, Any]) -> dict[str, Any]:
    """A layer of the same shapes and weights whose states are no variables.

    Keras gives those their values as it creates them, which a stateless scope does not allow.
    """
    config = copy.deepcopy(config)
    for item in objects(config):
        if item["config"].get("stateful"):
            item["config"]["stateful"] = False
    return config


class Resolver:
    """Goes through a model call by call, with shapes only, and replaces its stored functions."""

    def __init__(
        self,
        file: ModelFile,
        config: dict[str, Any],
        replacements: Mapping[str, keras.layers.Layer | list[Operation]],
        custom_objects: Mapping[str, Any],
        *,
        ours: bool,
    ) -> None:
        self.file = file
        self.ours = ours
        self.replacements = replacements
        self.custom_objects = custom_objects
        self.steps: list[Step] = []
        self.used: set[str] = set()
        # By the id of the layer's configuration, which lives as long as this does.
        self.instances: dict[int, Any] = {}
        self.resolved: set[int] = set()
        # The paths of layers' arrays in a `.keras` file, by the same id.
        self.prefixes: dict[int, str] = {}
        # A Lambda loses the mask; where there is one, Reshape does too, and FlattenFeatures not.
        self.masked = makes_masks(config)

    def check_replacements(self) -> None:
        """Complain of replacements that found no place."""
        unused = sorted(set(self.replacements) - self.used)
        if unused:
            raise ValueError(
                f"migrate: `replacements` names {unused}, and the file has no such Lambda."
            )

    def model(self, model: dict[str, Any], scope: tuple[dict[str, Any], ...]) -> None:
        """Resolve every layer of a model, and check stored weights of the outermost one's."""
        layers = model["config"]["layers"]
        prefixes = stored_weights.prefixes(layers, [entry["prefix"] for entry in scope])
        self.prefixes |= prefixes
        frame = {"layers": layers, "scope": scope, "prefixes": prefixes, "config": model["config"]}
        if model["class_name"] == "Sequential":
            self._sequential(frame)
        else:
            self._functional(frame)
        if not scope:
            stored_weights.check_layers(self.file, {name_of(layer) for layer in layers})

    def moved(self, model: dict[str, Any], outer: tuple[str, ...] = ()) -> dict[str, str]:
        """Where each layer's arrays stand in a `.keras` file of the resolved model, by the path
        that they have in the old file: a model in a Lambda's place moves the count of others.
        """
        layers = model["config"]["layers"]
        found = {}
        for layer in layers:
            new = stored_weights.prefixes(layers, outer)[id(layer)]
            if id(layer) in self.prefixes:
                found[self.prefixes[id(layer)]] = new
            if layer["class_name"] in MODELS:
                found |= self.moved(layer, (new,))
        return found

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
                        raise ModelFileError(
                            f"{name_of(layer)}: it takes {name!r}, which is missing"
                        )
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
                        raise ModelFileError(f"{name_of(layer)}: {name!r} has no output {output}")
                    tensors.append(None if made is None else made[output])
                outputs[layer["name"], call] = self._call(layer, tensors, node, frame, consumers)
            if len(later) == len(waiting):
                names = sorted({name_of(layer) for layer, _ in later})
                raise ModelFileError(f"the calls of {names} wait for each other or for none")
            waiting = later

    def _input(self, layer: dict[str, Any], frame: dict[str, Any]) -> Any:
        shape = layer["config"].get("batch_shape")
        if not lambdas.is_shape(shape):
            raise ModelFileError(f"{self._place(layer, frame)}: {shape!r} is no input shape")
        return instantiate(layer, self.custom_objects, self._place(layer, frame)).output

    def _place(self, layer: dict[str, Any], frame: dict[str, Any]) -> str:
        return " > ".join([*(entry["name"] for entry in frame["scope"]), name_of(layer)])

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
            node = {"args": node["args"], "kwargs": {}} if node else {}
        elif layer["class_name"] in MODELS and id(layer) not in self.resolved:
            entry = {"name": name_of(layer), "prefix": frame["prefixes"][id(layer)]}
            self.model(layer, (*frame["scope"], entry))
            self.resolved.add(id(layer))
        stored = [item for item in objects(layer) if item["class_name"] in STORED_FUNCTIONS]
        if stored and layer["class_name"] not in MODELS:
            for item in stored:
                where = f"{place} > {name_of(item)}"
                self._note(where, "left", f"a {item['class_name']} inside a {layer['class_name']}")
        if stored or any(tensor is None for tensor in tensors):
            return None
        if id(layer) not in self.instances:
            self.instances[id(layer)] = instantiate(
                _without_state(layer), self.custom_objects, place
            )
        instance = self.instances[id(layer)]
        try:
            args, kwargs = _arguments(node, tensors)
            made = instance(*args, **kwargs)
        except Exception as error:  # whatever a layer raises on shapes and arguments from a file
            raise ModelFileError(f"{place}: Keras cannot call it: {cause(error)}") from error
        if not frame["scope"]:
            stored_weights.check(instance, self.file, frame["prefixes"][id(layer)], name_of(layer))
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
        if any(step.place == place for step in self.steps):
            return
        shape = None
        if len(tensors) == 1 and tensors[0] is not None:
            shape = tuple(tensors[0].shape)
        replacement = self.replacements.get(name_of(layer))
        if replacement is not None:
            self.used.add(name_of(layer))
            if isinstance(replacement, list):
                self._compute(layer, replacement, tensors, frame, "as the caller says")
                return
            config = keras.saving.serialize_keras_object(replacement)
            config.pop("build_config", None)
            config["config"]["name"] = name_of(layer)
            self._put(layer, config, place, f"{config['class_name']}, as the caller says")
            return
        spelled_out = operations.recognise(layer) if kind == "Lambda" else None
        if spelled_out is not None and _calls(layer) == 1 and shape is not None:
            self._compute(layer, spelled_out, tensors, frame, "as its stored bytecode says")
            return
        if kind == "Lambda":
            verdict = self._judge_lambda(layer, shape, frame, consumers)
        else:
            verdict = lambdas.reshape_operation(layer, node.get("kwargs", {}), shape)
        if len(tensors) != 1 or _calls(layer) > 1:
            found = verdict.candidates if verdict.target is None else (verdict.target,)
            verdict = Verdict(None, "it has several inputs, or is called several times", found)
        if verdict.target is None or shape is None:
            texts = (",".join(map(str, _open_as_minus_1(c))) for c in verdict.candidates)
            reshapes = tuple(f"{name_of(layer)}={text}" for text in texts)
            self._note(place, "left", f"{kind}: {verdict.reason}", reshapes)
            return
        self._put(layer, self._reshaping(layer, shape, verdict.target), place, verdict.reason)

    def _compute(
        self,
        layer: dict[str, Any],
        computed: list[Operation],
        tensors: list[Any],
        frame: dict[str, Any],
        reason: str,
    ) -> None:
        """Put a model of Keras's operations in a Lambda's place, or note why it is left."""
        place, text = self._place(layer, frame), operations.text(computed)
        if len(tensors) != 1 or tensors[0] is None:
            self._note(place, "left", f"{text}, {reason}: the shape of its input is not known")
            return
        dtype = keras.backend.standardize_dtype(tensors[0].dtype)
        if dtype != _compute_dtype(layer) or not keras.backend.is_float_dtype(dtype):
            # Keras 2 casts numbers to another dtype than Keras 3 does.
            self._note(
                place,
                "left",
                f"{text}, {reason}, of {dtype} input in a layer of {_compute_dtype(layer)}",
            )
            return
        try:
            model = operations.as_model(computed, tuple(tensors[0].shape), dtype, name_of(layer))
        except ValueError as error:
            self._note(place, "left", f"{text}, {reason}, does not fit: {cause(error)}")
            return
        config = keras.saving.serialize_keras_object(model)
        for key in ("build_config", "compile_config"):
            config.pop(key, None)
        self._put(layer, config, place, f"Keras's {text}, {reason}")
        # Keras counts the outputs of a functional model from 1 where the outer one ends.
        ends = frame["config"].get("output_layers")
        if ends is not None:
            frame["config"]["output_layers"] = _counted_from_1(ends, name_of(layer))

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
        built: Any = build.get("input_shape") if isinstance(build, dict) else None
        if shape is None and built is not None and lambdas.is_shape(built):
            shape = tuple(built)
        evidence = Evidence()
        stored = lambdas.stored_shape(layer)
        if stored is not None:
            evidence.add_shape(stored, "its output_shape")
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
            name = name_of(consumer)
            build = consumer.get("build_shape")
            if build is not None and lambdas.is_shape(build):
                evidence.add_shape(tuple(build), f"the build shape of {name}")
            if consumer["class_name"] in MODELS:
                inputs = [
                    inner["config"].get("batch_shape")
                    for inner in consumer["config"]["layers"]
                    if inner["class_name"] == "InputLayer"
                ]
                if len(inputs) == 1 and lambdas.is_shape(inputs[0]):
                    evidence.add_shape(tuple(inputs[0]), f"the input shape of {name}")
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
        """Reshape, which loads wherever Keras is.

        For `upgrade`, FlattenFeatures where all axes after time are merged.
        """
        config = {"name": name_of(layer), "dtype": layer["config"].get("dtype", "float32")}
        if isinstance(config["dtype"], dict):
            policy = config["dtype"].get("config", {}).get("name", "float32")
            config["dtype"] = policy
        time, *axes = shape[1:]
        sizes = [size for size in axes if size is not None]
        if (
            self.ours
            and len(axes) > 1
            and len(sizes) == len(axes)
            and target == (time, math.prod(sizes))
            and not self.masked
        ):
            from multibackend_lstm.layers import FlattenFeatures

            return keras.saving.serialize_keras_object(FlattenFeatures(**config))
        reshape = keras.layers.Reshape(_open_as_minus_1(target), **config)
        return keras.saving.serialize_keras_object(reshape)

    def _put(self, layer: dict[str, Any], config: dict[str, Any], place: str, reason: str) -> None:
        name, nodes = name_of(layer), layer.get("inbound_nodes")
        layer.clear()
        layer.update(config, name=name)
        if nodes is not None:
            layer["inbound_nodes"] = [{"args": node["args"], "kwargs": {}} for node in nodes]
        lost = self.masked and config["class_name"] in ("Reshape", "Functional")
        kind = "model" if config["class_name"] == "Functional" else config["class_name"]
        self._note(
            place,
            "replaced",
            f"{kind}: {reason}" + (". It loses the mask, as the Lambda did" if lost else ""),
        )

    def _note(self, place: str, action: str, detail: str, reshapes: tuple[str, ...] = ()) -> None:
        step = Step(place, action, detail, reshapes)
        if step not in self.steps:
            self.steps.append(step)


def _compute_dtype(layer: dict[str, Any]) -> str:
    """The dtype that a Lambda casts its input to, by its stored policy."""
    dtype = layer["config"].get("dtype") or "float32"
    if isinstance(dtype, dict):
        dtype = dtype["config"]["name"]
    return str(keras.DTypePolicy(dtype).compute_dtype)


def _counted_from_1(ends: Any, name: str) -> Any:
    """The outputs of a model, of which those of one layer are counted from 1 in place of 0."""
    if isinstance(ends, dict):
        return {key: _counted_from_1(end, name) for key, end in ends.items()}
    if isinstance(ends, list) and len(ends) == 3 and ends[0] == name and type(ends[1]) is int:
        return [name, ends[1] + 1, ends[2]]
    return [_counted_from_1(end, name) for end in ends] if isinstance(ends, list) else ends


def _open_as_minus_1(shape: Shape) -> list[int]:
    """A shape as Reshape takes it."""
    return [-1 if size is None else size for size in shape]


def name_of(layer: dict[str, Any]) -> str:
    return str(layer.get("name") or layer["config"].get("name"))


def _calls(layer: dict[str, Any]) -> int:
    if layer["class_name"] == "InputLayer":
        return 1
    return len(layer.get("inbound_nodes", [None]))


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
