"""Translates the configuration of an old model into one that Keras 3 reads, and means the same.

Keras 3 finds classes by the `module` and `class_name` of a configuration. So nothing is taken over
from the file before its class is found in a list: Keras's own layers, initializers, regularizers,
constraints and operations, this package's layers, and what the caller passed. Functions stored in
the file (`Lambda`, `TFOpLambda`) stay what they are, data, for `lambdas.py` to judge.
"""

import inspect
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import keras

from multibackend_lstm.migration import cudnn
from multibackend_lstm.runtimes.loading import ModelFileError

#: Operations that Keras 2 stores where a model calls a TensorFlow function outside of a layer.
TF_OPERATIONS = (
    "TFOpLambda",
    "SlicingOpLambda",
    "TensorFlowOpLayer",
    "ClassMethod",
    "InstanceMethod",
    "InstanceProperty",
)
#: What only a stored function could compute.
STORED_FUNCTIONS = ("Lambda", *TF_OPERATIONS)
MODELS = ("Functional", "Model", "Sequential")
RECURRENT = (
    "LSTM", "GRU", "SimpleRNN", "RNN", "ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D", *cudnn.LAYERS
)  # fmt: skip

# Of the gates of recurrent layers, the batch among them.
_GATE_AXES = {
    **dict.fromkeys(("LSTM", "GRU", "SimpleRNN", "LSTMCell", "GRUCell", "SimpleRNNCell"), 2),
    **{f"ConvLSTM{n}D": n + 2 for n in (1, 2, 3)},
}

# These read other files, hold code, or run functions of other frameworks.
_REFUSED = (
    "TFSMLayer",
    "TorchModuleWrapper",
    "JaxLayer",
    "FlaxLayer",
    "TextVectorization",
    "StringLookup",
    "IntegerLookup",
    "HashedCrossing",
)
_VALUES = ("__keras_tensor__", "__slice__", "__ellipsis__", "__numpy__", "__tensor__")
_NO_ACTIVATIONS = ("get", "serialize", "deserialize")
_NAMESPACES = ("layers", "initializers", "regularizers", "constraints")
#: Layers of one model.
MAX_LAYERS = 10_000
_OURS = "multibackend_lstm>"

# Arguments that Keras 3 no longer has. They may go where they have one of these values.
_DROPPED: dict[str, tuple[Any, ...]] = {
    "time_major": (False,),
    "implementation": (0, 1, 2),
    "ragged": (False, None),
    "renorm": (False, None),
    "fused": (True, False, None),
    "virtual_batch_size": (None,),
    "adjustment": (None,),
    "batch_size": (None,),
    "input_dtype": ("float32", None),
    "softmax_robust_masking": (False,),
    # How the random numbers of training were drawn.
    "rng_type": ("stateful", "stateless", "legacy_stateful"),
}
# The same for one kind of layer.
_DROPPED_OF: dict[tuple[str, str], tuple[Any, ...]] = {
    (f"SpatialDropout{n}D", "noise_shape"): (None,) for n in (1, 2, 3)
}
# Interpolations that backends of Keras compute each in its own way.
_OWN_INTERPOLATIONS = ("bicubic", "lanczos3", "lanczos5")
# Arguments that say nothing once the model has an input layer.
_REDUNDANT = (
    "batch_input_shape",
    "input_shape",
    "input_length",
    "query_shape",
    "key_shape",
    "value_shape",
)
# Of a SeparableConv, which Keras 2 wrote beside those of its two kernels, and did not use.
_UNUSED = ("kernel_initializer", "kernel_regularizer", "kernel_constraint")
_RENAMED = {
    ("LeakyReLU", "alpha"): "negative_slope",
    ("InputLayer", "batch_input_shape"): "batch_shape",
}
# Classes of Keras 2 under the names, and with the arguments, by which Keras 3 computes the same.
_RENAMED_LAYERS: dict[str, tuple[str, dict[str, str], dict[str, Any]]] = {
    **{name: (kind, {}, fixed) for name, (kind, fixed) in cudnn.LAYERS.items()},
    "UnifiedLSTM": ("LSTM", {}, {}),
    "UnifiedGRU": ("GRU", {}, {}),
    "BatchNormalizationV1": ("BatchNormalization", {}, {}),
    "BatchNormalizationV2": ("BatchNormalization", {}, {}),
    # Statistics of all replicas, in training: Keras 3 has that on TensorFlow alone.
    "SyncBatchNormalization": ("BatchNormalization", {}, {}),
    # x where it is greater, else 0, in both.
    "ThresholdedReLU": ("ReLU", {"theta": "threshold"}, {}),
}


def translate(
    config: dict[str, Any],
    *,
    keras_2: bool,
    lists_single_tensors: bool,
    custom_objects: Mapping[str, Any],
    notes: list[str],
    ours: bool = False,
) -> dict[str, Any]:
    """The configuration of the same model for Keras 3, made of known classes only.

    Args:
        config: configuration of a model, as it stands in the file. It is not changed.
        keras_2: whether Keras 2 or tf.keras wrote it.
        lists_single_tensors: whether a list of one input, or output, stands for the tensor itself.
        custom_objects: classes and functions that the caller vouches for, by name.
        notes: takes one line for each change of meaning.
        ours: whether to use this package where Keras's own operations would do, more slowly.

    Raises:
        ModelFileError: for a class or function that is not known, with its place, and for an
            argument that Keras 3 has no equivalent for.
    """
    translator = _Translator(
        keras_2, lists_single_tensors, custom_objects, notes, ours, makes_masks(config)
    )
    translated = translator.value(config, None)
    if not isinstance(translated, dict) or translated.get("class_name") not in MODELS:
        raise ModelFileError(
            f"the file holds a {config.get('class_name')}, where a Sequential or functional model "
            "is needed. Of a subclassed model the class is not in the file."
        )
    return translated


def needed(config: Any) -> set[str]:
    """Names of this package's classes and functions in a translated configuration."""
    if isinstance(config, list):
        return set().union(*map(needed, config))
    if not isinstance(config, dict):
        return set()
    registered = str(config.get("registered_name"))
    found = {registered.removeprefix(_OURS)} if registered.startswith(_OURS) else set()
    return found.union(*map(needed, config.values()))


def objects(value: Any) -> Iterator[dict[str, Any]]:
    """Every object of a configuration, outermost first; not what is inside a stored function."""
    if isinstance(value, dict):
        if "class_name" in value and isinstance(value.get("config"), dict):
            yield value
        if value.get("class_name") not in STORED_FUNCTIONS:
            for item in value.values():
                yield from objects(item)
    elif isinstance(value, list):
        for item in value:
            yield from objects(item)


def makes_masks(config: Any) -> bool:
    """Whether a layer of a model makes a mask."""
    return any(
        item["class_name"] == "Masking"
        or (item["class_name"] == "Embedding" and item["config"].get("mask_zero"))
        for item in objects(config)
    )


class _Translator:
    def __init__(
        self,
        keras_2: bool,
        lists_single_tensors: bool,
        custom_objects: Mapping[str, Any],
        notes: list[str],
        ours: bool,
        masked: bool,
    ) -> None:
        self.keras_2 = keras_2
        self.lists_single_tensors = lists_single_tensors
        self.custom_objects = custom_objects
        self.notes = notes
        self.ours = ours
        self.masked = masked

    def value(self, value: Any, place: str | None) -> Any:
        """A value of a configuration; every class in it is looked up."""
        if isinstance(value, list):
            return [self.value(item, place) for item in value]
        if not isinstance(value, dict):
            return value
        if "class_name" in value:
            return self._object(value, place)
        if value.keys() == {"type", "value"} and value["type"] == "ndarray":
            return value["value"]  # as Keras before 2.3 wrote numbers of NumPy
        return {key: self.value(item, place) for key, item in value.items()}

    def _object(self, value: dict[str, Any], place: str | None) -> dict[str, Any]:
        name = value["class_name"]
        config = value.get("config")
        if not isinstance(name, str):
            raise ModelFileError(f"{place or 'the model'}: `class_name` is {name!r}, no text")
        if place is None:
            place = ""  # the outermost model, whose name adds nothing
        elif isinstance(config, dict) and isinstance(config.get("name", value.get("name")), str):
            place = f"{place} > {value.get('name', config.get('name'))}".removeprefix(" > ")
        for key in (value.get("registered_name"), name):
            if isinstance(key, str) and key in self.custom_objects:
                return self._resolved(value, key, "custom", key, place)
        if name in STORED_FUNCTIONS:
            return dict(value)
        if name in _VALUES and isinstance(config, dict):
            return {"class_name": name, "config": config}
        if name == "function":
            return self._function(value, place)
        if str(value.get("registered_name")).startswith(_OURS) or name.startswith(_OURS):
            return self._ours(value, place)
        if name in ("Policy", "DTypePolicy", "PolicyV1"):
            policy = {"name": config["name"]} if isinstance(config, dict) else None
            return _public("keras", "DTypePolicy", policy)
        if name in MODELS:
            return self._model(value, place)
        if name in _REFUSED:
            raise ModelFileError(
                f"{place}: a {name} holds or names code or files of its own, and is not migrated"
            )
        if name == "Hashing" and keras.backend.backend() != "tensorflow":
            raise ModelFileError(
                f"{place}: a Hashing computes with TensorFlow on every backend: migrate the file "
                "on that (--backend tensorflow)"
            )
        if name in _RENAMED_LAYERS and self.keras_2 and isinstance(config, dict):
            name, renamed, fixed = _RENAMED_LAYERS[name]
            self._note(place, f"{value['class_name']} -> {name}, which computes the same")
            config = {renamed.get(key, key): item for key, item in config.items()} | fixed
            return self._resolved({**value, "config": config}, name, "keras.layers", None, place)
        module = str(value.get("module"))
        if module.startswith("keras.src.ops."):
            # Keras 3's operations outside of layers. Loaded already: nothing is imported.
            found = getattr(sys.modules.get(module), name, None)
            if inspect.isclass(found) and issubclass(found, keras.Operation):
                return self._resolved(value, name, module, None, place)
        # A layer has a name: the initializer Identity has none.
        named = isinstance(config, dict) and "name" in config
        for namespace in _NAMESPACES if named else (*_NAMESPACES[1:], _NAMESPACES[0]):
            found = getattr(getattr(keras, namespace), name, None)
            if inspect.isclass(found):
                # By the class's own name: Keras 3.3 to 3.6 wrote OrthogonalInitializer, and Keras
                # 3.16 has that as an alias which it does not look up in files.
                return self._resolved(value, found.__name__, f"keras.{namespace}", None, place)
        raise ModelFileError(
            f"{place or 'the model'}: {name!r} (of {module}) is no class of Keras 3. If it is your "
            "own and you trust it, pass it in `custom_objects`."
        )

    def _resolved(
        self, value: dict[str, Any], name: str, module: str, registered: str | None, place: str
    ) -> dict[str, Any]:
        """An object whose class is known, with its arguments in the form of Keras 3."""
        config = value.get("config")
        config = {} if config is None else config
        if not isinstance(config, dict):
            raise ModelFileError(f"{place}: the configuration of a {name} is no object")
        if module == "keras.layers":
            config = self._arguments(name, config, place)
        elif module == "keras.initializers" and self.keras_2:
            # That of TensorFlow 1.13 to 2.0. Values come from the file.
            config = {key: item for key, item in config.items() if key != "dtype"}
            if config.get("distribution") == "normal":
                config["distribution"] = "truncated_normal"
        translated = _public(module, name, self.value(config, place), registered)
        for key in ("name", "shared_object_id"):
            if key in value and (key == "name" or not self.keras_2):
                translated[key] = value[key]
        if "inbound_nodes" in value:
            translated["inbound_nodes"] = value["inbound_nodes"]
        build = value.get("build_config")
        if isinstance(build, dict):
            # Not for Keras: what the file says about shapes, for lambdas.py.
            translated["build_shape"] = build.get("input_shape")
        return translated

    def _function(self, value: dict[str, Any], place: str) -> dict[str, Any]:
        """A function by its name: of keras.activations, of this package, or the caller's."""
        name = value.get("config")
        if str(name).startswith(_OURS) and keras.saving.get_registered_object(name) is not None:
            return _public("multibackend_lstm.layers.activations", "function", name, name)
        module = value.get("module")
        known = module in (None, "builtins") or str(module).startswith("keras.")
        if isinstance(name, str):
            if name in self.custom_objects:
                return _public("custom", "function", name, name)
            found = getattr(keras.activations, name, None)
            if known and inspect.isfunction(found) and name not in _NO_ACTIVATIONS:
                return _public("keras.activations", "function", name, name)
        raise ModelFileError(
            f"{place}: the function {name!r} of {module!r} is none of keras.activations. If it is "
            "your own and you trust it, pass it in `custom_objects`."
        )

    def _ours(self, value: dict[str, Any], place: str) -> dict[str, Any]:
        import multibackend_lstm.layers as ours
        from multibackend_lstm.layers import activations

        registered = str(value.get("registered_name") or value["class_name"])
        name = registered.removeprefix(_OURS)
        found = getattr(ours, name, None) or getattr(activations, name, None)
        if found is None or keras.saving.get_registered_object(registered) is not found:
            raise ModelFileError(f"{place}: there is no {registered!r} in multibackend_lstm")
        return self._resolved(value, name, found.__module__, registered, place)

    # ---- arguments of layers

    def _arguments(self, name: str, config: dict[str, Any], place: str) -> dict[str, Any]:
        translated: dict[str, Any] = {}
        for key, value in config.items():
            if (name, key) in _RENAMED:
                translated[_RENAMED[name, key]] = value
            elif (accepted := _DROPPED_OF.get((name, key), _DROPPED.get(key))) is not None:
                if value not in accepted:
                    raise ModelFileError(
                        f"{place}: Keras 3 has no `{key}={value!r}` of a {name} layer"
                        + _REMEDIES.get(key, "")
                    )
                if key == "time_major":
                    self._note(place, "time_major=False dropped, the only order of Keras 3")
            elif not _says_nothing(name, key):
                translated[key] = value
        if self.keras_2:
            self._keras_2_meaning(name, translated, place)
        return translated

    def _keras_2_meaning(self, name: str, config: dict[str, Any], place: str) -> None:
        """What Keras 3 would read, but otherwise than Keras 2 meant it."""
        for key, value in config.items():
            if key.endswith("activation") and self._is_hard_sigmoid(value):
                # Keras 3 has the slope 1/6 in place of 0.2.
                config[key] = self._hard_sigmoid(name, config.get("dtype"))
                self._note(place, f"{key}: hard_sigmoid as Keras 2 computes it, 0.2 * x + 0.5")
        if name in ("GRU", "GRUCell") and "reset_after" not in config:
            config["reset_after"] = False  # the default before TensorFlow 2
            self._note(place, "reset_after=False, the default of the Keras that wrote the file")
        axis = config.get("axis")
        if name == "BatchNormalization" and isinstance(axis, list):
            if len(axis) != 1:
                raise ModelFileError(f"{place}: Keras 3 normalises one axis, not {axis}")
            config["axis"] = axis[0]
        if (
            config.get("interpolation") in _OWN_INTERPOLATIONS
            and keras.backend.backend() != "tensorflow"
        ):
            self._note(
                place,
                f"{config['interpolation']} interpolation, which backends of Keras compute "
                "otherwise than TensorFlow, that the old model ran on: compare predictions",
            )
        if config.get("groups") == 1 and not _takes(name, "groups"):
            del config["groups"]

    def _is_hard_sigmoid(self, value: Any) -> bool:
        if isinstance(value, dict) and value.get("class_name") == "function":
            value = value.get("config")
        return value == "hard_sigmoid" and value not in self.custom_objects

    def _hard_sigmoid(self, name: str, dtype: Any) -> dict[str, Any]:
        """Keras 2's, of Keras's own layers or operations where these can stand for a function.

        A model of operations where a layer's kind tells the number of axes, and layers that take
        any number elsewhere, which would be slower in each time step. On torch either costs time
        in every step, so `upgrade` takes the function. So does an `Activation` behind a mask: the
        layers in its place would warn that they lose it.
        """
        if self.ours or (name == "Activation" and self.masked):
            return _public(
                "multibackend_lstm.layers.activations",
                "function",
                f"{_OURS}keras_2_hard_sigmoid",
                f"{_OURS}keras_2_hard_sigmoid",
            )
        if name not in _GATE_AXES:
            policy = {} if dtype is None else {"dtype": dtype}
            layers = [
                _public("keras.layers", "Rescaling", {"scale": 0.2, "offset": 0.5, **policy}),
                _public("keras.layers", "ReLU", {"max_value": 1.0, **policy}),
            ]
            config: dict[str, Any] = {"name": "keras_2_hard_sigmoid", "layers": layers}
            return _public("keras.layers", "Pipeline", config)
        inputs = keras.Input((None,) * (_GATE_AXES[name] - 1))
        outputs = keras.ops.clip(0.2 * inputs + 0.5, 0.0, 1.0)
        model = keras.Model(inputs, outputs, name="keras_2_hard_sigmoid")
        config = keras.saving.serialize_keras_object(model)
        for key in ("build_config", "compile_config"):
            config.pop(key, None)
        return config

    def _note(self, place: str, text: str) -> None:
        self.notes.append(f"{place}: {text}")

    # ---- models

    def _model(self, value: dict[str, Any], place: str) -> dict[str, Any]:
        config = value.get("config")
        if isinstance(config, list):  # Keras before 2.2.3
            config = {"layers": config}
        if not isinstance(config, dict) or not isinstance(config.get("layers"), list):
            raise ModelFileError(
                f"{place or 'the model'}: a {value['class_name']} without a list of layers. Of a "
                "subclassed model the class is not in the file."
            )
        if len(config["layers"]) > MAX_LAYERS:
            raise ModelFileError(f"a model of more than {MAX_LAYERS:,} layers")
        for layer in config["layers"]:
            if not isinstance(layer, dict) or not isinstance(layer.get("config"), dict):
                raise ModelFileError(f"{place or 'the model'}: {str(layer)[:80]!r} is no layer")
        translate = self._sequential if value["class_name"] == "Sequential" else self._functional
        translated = translate(value, config, place)
        if "inbound_nodes" in value:
            translated["inbound_nodes"] = value["inbound_nodes"]
            translated["name"] = value["name"]
        return translated

    def _sequential(
        self, value: dict[str, Any], config: dict[str, Any], place: str
    ) -> dict[str, Any]:
        layers = list(config["layers"])
        if not layers:
            raise ModelFileError(f"{place or 'the model'}: a Sequential model without layers")
        first = layers[0]
        if first.get("class_name") != "InputLayer":
            shape = first["config"].get("batch_input_shape")
            shape = shape or first["config"].get("batch_shape") or config.get("build_input_shape")
            build = value.get("build_config")
            if shape is None and isinstance(build, dict):
                shape = build.get("input_shape")
            if shape is None:
                raise ModelFileError(
                    f"{place or 'the model'}: a Sequential model that was saved without an input "
                    "shape, before it was built"
                )
            dtype = first["config"].get("dtype")
            inputs = {"batch_shape": shape, "dtype": dtype if isinstance(dtype, str) else "float32"}
            if first.get("class_name") == "Embedding":
                inputs["dtype"] = "int32"
            layers.insert(0, {"class_name": "InputLayer", "config": inputs})
        return _public(
            "keras",
            "Sequential",
            {
                "name": config.get("name", "sequential"),
                "trainable": config.get("trainable", True),
                "layers": [self.value(layer, place) for layer in layers],
            },
        )

    def _functional(
        self, value: dict[str, Any], config: dict[str, Any], place: str
    ) -> dict[str, Any]:
        layers = [self.value(layer, place) for layer in config["layers"]]
        for layer in layers:
            if not isinstance(layer.get("name"), str) or not isinstance(
                layer.get("inbound_nodes"), list
            ):
                raise ModelFileError(
                    f"{place or 'the model'}: {str(layer.get('name'))!r} lacks its name or calls"
                )
            if isinstance(layer["config"], dict):
                layer["config"]["name"] = layer["name"]  # one name for graph and weights
        kinds = {layer["name"]: layer["class_name"] for layer in layers}
        if len(kinds) != len(layers):
            raise ModelFileError(f"{place or 'the model'}: two layers have one name")
        for layer in layers:
            layer["inbound_nodes"] = [
                self._call(node, layer["class_name"], kinds, layer["name"])
                for node in layer["inbound_nodes"]
            ]
        ends = {}
        for key in ("input_layers", "output_layers"):
            end = config.get(key)
            if self.keras_2:
                end = _ends(end, kinds)
            elif self.lists_single_tensors and isinstance(end, list) and len(end) == 1:
                (end,) = end
            ends[key] = end
        return _public(
            "keras.src.models.functional",  # as Keras 3 itself writes it
            "Functional",
            {
                "name": config.get("name", "functional"),
                "trainable": config.get("trainable", True),
                "layers": layers,
                **ends,
            },
        )

    def _call(self, node: Any, kind: str, kinds: dict[str, str], name: str) -> dict[str, Any]:
        """A call of a layer, in Keras 3's form: arguments with tensors in their places."""
        if isinstance(node, dict):
            return {key: self.value(node.get(key), name) for key in ("args", "kwargs")}
        try:
            single = isinstance(node[0], str)
            references = [node] if single else node
            tensors = [_tensor(reference, kinds) for reference in references]
            kwargs = references[-1][3] if len(references[-1]) > 3 else {}
            kwargs = {
                key: _tensors_within(self.value(item, name), kinds) for key, item in kwargs.items()
            }
        except (TypeError, IndexError, KeyError, AttributeError) as error:
            raise ModelFileError(f"{name}: {str(node)[:80]!r} is no call of a layer") from error
        if len(tensors) > 1 and kind in (*RECURRENT, "Bidirectional"):
            return {"args": tensors[:1], "kwargs": {**kwargs, "initial_state": tensors[1:]}}
        return {"args": tensors if len(tensors) == 1 else [tensors], "kwargs": kwargs}


_REMEDIES = {
    "time_major": ": its input is (time, batch, features). Build the model anew with "
    "(batch, time, features) and carry the weights over with `set_weights`; they are the same.",
}


def _says_nothing(name: str, key: str) -> bool:
    """Whether an argument of a layer of Keras 2 changes nothing that it computes or learns."""
    if key == "trainable":  # of layers without weights
        return not _takes(name, key) and not _takes(name, "kwargs")
    return key in _REDUNDANT or (name.startswith("Separable") and key in _UNUSED)


def _takes(name: str, argument: str) -> bool:
    """Whether the constructor of a Keras layer has this argument."""
    return argument in inspect.signature(getattr(keras.layers, name).__init__).parameters


def _public(module: str, name: str, config: Any, registered: str | None = None) -> dict[str, Any]:
    return {
        "module": module,
        "class_name": name,
        "config": config,
        "registered_name": registered,
    }


def _tensor(reference: Any, kinds: dict[str, str]) -> dict[str, Any]:
    """An output of a call, as Keras 3 refers to it."""
    name, call, output = reference[:3]
    if kinds[name] in MODELS:
        call -= 1  # Keras 2 counts a first call that made the nested model itself
    history = [name, call, output]
    return {
        "class_name": "__keras_tensor__",
        "config": {"shape": [None], "dtype": "float32", "keras_history": history},
    }


def _tensors_within(value: Any, kinds: dict[str, str]) -> Any:
    """Arguments in which `[layer, call, output]` stands for a tensor."""
    if isinstance(value, list):
        is_tensor = len(value) >= 3 and isinstance(value[0], str) and value[0] in kinds
        if is_tensor and all(isinstance(item, int) for item in value[1:3]):
            return _tensor(value, kinds)
        return [_tensors_within(item, kinds) for item in value]
    if isinstance(value, dict):
        return {key: _tensors_within(item, kinds) for key, item in value.items()}
    return value


def _ends(value: Any, kinds: dict[str, str]) -> Any:
    """Inputs or outputs; a single one is no list, as the models of Keras 2 return it."""
    if isinstance(value, dict):
        return {key: _ends(item, kinds) for key, item in value.items()}
    if not isinstance(value, list) or not value:
        raise ModelFileError("a functional model without a list of inputs and outputs")
    if isinstance(value[0], str):
        name, call, output = value[:3]
        # Keras 3 subtracts the first call of a functional model here, but not of a Sequential.
        return [name, call - (kinds.get(name) == "Sequential"), output]
    ends = [_ends(item, kinds) for item in value]
    return ends[0] if len(ends) == 1 else ends
