"""upgrade: this package's layers in the place of Keras's, with the same weights."""

import json
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras

from multibackend_lstm import layers
from multibackend_lstm.layers.wrapping import accepts, sublayers
from multibackend_lstm.runtimes.loading import load_with

# Each has the constructor, the weights and the configuration of the Keras layer of its name.
UPGRADED: dict[str, type] = {
    cls.__name__: cls
    for cls in (
        layers.LSTM,
        layers.GRU,
        layers.ConvLSTM1D,
        layers.ConvLSTM2D,
        layers.ConvLSTM3D,
        layers.TimeDistributed,
        layers.Bidirectional,
        layers.Dropout,
        layers.SpatialDropout1D,
        layers.SpatialDropout2D,
        layers.GaussianNoise,
        layers.GaussianDropout,
    )
}
# Layers of Keras which in training mix the samples of a batch, or count calls. To these one call
# for all steps of TimeDistributed is not what a call a step is.
_NOT_A_SAMPLE_EACH = ("BatchNormalization", "SpectralNormalization", "MixUp", "CutMix")
_OURS = "multibackend_lstm>"
_MODELS = ("Sequential", "Functional", "Model")
_CONFIG = "config.json"


@dataclass(frozen=True)
class Upgrade:
    """A model with this package's layers in the place of Keras's.

    Attributes:
        model: a new model, not compiled; the model itself where nothing is replaced.
        replaced: the class that took a layer's place, by the place: the layer's name, with those
            of the models and wrappers around it, `outer > inner > layer`.
        left: why a layer is left as it is, by its place.
    """

    model: Any
    replaced: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """One line a layer."""
        return "\n".join(
            [
                f"{len(self.replaced)} replaced, {len(self.left)} left",
                *(f"replaced {place}: {name}" for place, name in self.replaced.items()),
                *(f"left {place}: {reason}" for place, reason in self.left.items()),
            ]
        )


def upgrade(model: keras.Model) -> Upgrade:
    """Put this package's layers in the place of Keras's, with the same weights.

    `LSTM`, `GRU`, `ConvLSTM1D`, `ConvLSTM2D`, `ConvLSTM3D`, `TimeDistributed`, `Bidirectional`,
    `Dropout`, `SpatialDropout1D`, `SpatialDropout2D`, `GaussianNoise` and `GaussianDropout` of
    Keras are replaced, in nested models and inside wrappers too. Names, dtype policies, masks and
    `trainable` stay as they are, and seeds. The model given is not changed.

    Left, with the reason, are: subclasses of these layers; subclassed models, and what is inside
    layers of your own; `TimeDistributed` around a layer that a single call for all steps would
    treat otherwise; `keras.layers.RNN` around a cell.

    Example:
        >>> inputs = keras.Input((20, 5))
        >>> old = keras.Model(inputs, keras.layers.LSTM(4, name="memory")(inputs))
        >>> print(upgrade(old))
        1 replaced, 0 left
        replaced memory: multibackend_lstm.LSTM

    Args:
        model: a functional or Sequential model, in memory or loaded from a file of any format.
            It goes through a `.keras` file, so it must be one that Keras can save and load.
            Functions of your own, such as an activation, are found if they are registered with
            `keras.saving.register_keras_serializable`, or named by a
            `keras.saving.custom_object_scope`; layers and models of your own, and the functions
            of `Lambda` layers, are found without.

    Returns:
        An `Upgrade`: the new model, and what is replaced and left. The new model is not compiled,
        and the states of its `stateful` layers start at zero.

    Raises:
        ValueError: if `model` is no Keras model, or one that Keras cannot save and load.
    """
    if not isinstance(model, keras.Model):
        raise ValueError(
            f"upgrade: `model` must be a `keras.Model`. Received {model!r} of type "
            f"{type(model).__name__}. A file is loaded by `keras.saving.load_model` first, or "
            "upgraded by `multibackend-lstm migrate --upgrade`."
        )
    if not isinstance(model, (keras.Sequential, keras.Function)):
        return Upgrade(model, left={model.name: _subclassed(type(model).__name__)})
    own = _own_classes(model)
    result = Upgrade(model)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # What is compiled, and how the functions of Lambda layers are stored, goes nowhere.
        warnings.filterwarnings("ignore", "The object being serialized includes a `lambda`")
        warnings.filterwarnings("ignore", "You are saving a model that has not yet been built")
        stored, changed = Path(folder, "stored.keras"), Path(folder, "changed.keras")
        try:
            # Keras's own file carries over all that a model holds besides weights: vocabularies,
            # shared layers, what layers of the user's own store.
            model.save(stored)
            config = _read_config(stored)
            upgrade_config(config, result, own)
            if not result.replaced:
                return result
            functions = _name_functions(config, model)
            _write_with_config(stored, changed, config)
            upgraded = load_with(keras, changed, custom_objects={**own, **functions})
        except Exception as error:  # whatever the user's own layers raise
            raise ValueError(
                f"upgrade: the model {model.name!r} must be one that Keras can save and load. "
                f"Received: {error}"
            ) from error
    _carry_flags(upgraded, model)
    _warn_of_lost_masks(upgraded, model)
    return Upgrade(upgraded, result.replaced, result.left)


def upgrade_config(
    config: dict[str, Any], result: Upgrade, custom_objects: Mapping[str, Any]
) -> None:
    """Name this package's classes in the place of Keras's.

    Args:
        config: configuration of a model in Keras 3's form, which is changed.
        result: takes what is replaced and left.
        custom_objects: classes that are not Keras's, by name.
    """
    _Upgrader(result, custom_objects).value(config, None, None)


class _Upgrader:
    def __init__(self, result: Upgrade, custom_objects: Mapping[str, Any]) -> None:
        self.result = result
        self.custom_objects = custom_objects

    def value(self, value: Any, place: str | None, owner: str | None) -> None:
        """Go through a configuration.

        Args:
            value: a part of it.
            place: the layers and models around it; None around the outermost model, whose name
                adds nothing.
            owner: the class of the user's own that it is inside of, if any.
        """
        if isinstance(value, list):
            for item in value:
                self.value(item, place, owner)
        elif isinstance(value, dict):
            if isinstance(value.get("class_name"), str) and isinstance(value.get("config"), dict):
                self._object(value, place, owner)
            else:
                for item in value.values():
                    self.value(item, place, owner)

    def _object(self, value: dict[str, Any], place: str | None, owner: str | None) -> None:
        name, config = value["class_name"], value["config"]
        own = self._own_class(value)
        if own is None:
            is_layer = value.get("module") == "keras.layers" or name in _MODELS
        else:
            is_layer = issubclass(own, keras.layers.Layer)
        if not is_layer:
            return  # an initializer, a tensor, an operation
        place = "" if place is None else f"{place} > {_name(value)}".removeprefix(" > ")
        reason = None
        if own is None and name in UPGRADED:
            reason = _inside(owner) if owner else self._refusal(name, config)
            if reason is None:
                value["module"] = UPGRADED[name].__module__
                value["registered_name"] = f"{_OURS}{name}"
                self.result.replaced[place] = f"multibackend_lstm.{name}"
        elif own is None and name == "RNN":
            cells = {item["class_name"] for item in _objects(config)} & {"LSTMCell", "GRUCell"}
            if cells:
                reason = f"an RNN around {' and '.join(sorted(cells))}: only layers are replaced"
        elif own is not None and not _is_ours(value):
            reason = _own_reason(own)
            if not (_is_graph(own) and isinstance(config.get("layers"), list)):
                owner = name
        if reason is not None:
            self.result.left[place] = reason
        self.value(config, place, owner)

    def _own_class(self, value: dict[str, Any]) -> type | None:
        """The class of an object, None if it is one of Keras's."""
        if str(value.get("module")).partition(".")[0] == "keras":
            return None
        for key in (str(value.get("registered_name")), value["class_name"]):
            found = self.custom_objects.get(key) or keras.saving.get_registered_object(key)
            if isinstance(found, type):
                return found
        return None

    def _refusal(self, name: str, config: dict[str, Any]) -> str | None:
        """Why a layer of Keras is not replaced, None if it is."""
        if name == "GaussianDropout" and config["rate"] == 1:
            return "its noise has an infinite deviation at a rate of 1"
        if name != "TimeDistributed":
            return None
        for item in _objects(config):
            own, kind = self._own_class(item), item["class_name"]
            inside = f"the {kind} {_name(item)!r} in it"
            if item["config"].get("stateful"):
                return f"{inside} is stateful, and passes its state from step to step"
            if kind in _NOT_A_SAMPLE_EACH and own is None:
                return f"{inside} trains otherwise in one call for all steps than in a call a step"
            if kind == "Lambda" or (
                own is not None and issubclass(own, keras.layers.Layer) and not _is_ours(item)
            ):
                return f"{inside} might not treat each sample, then each step, independently"
        return None


def _inside(owner: str) -> str:
    return f"it is inside {owner}, a class of your own"


def _subclassed(name: str) -> str:
    return f"{name} is a subclassed model, whose own code makes its layers"


def _own_reason(cls: type) -> str | None:
    """Why a class of the user's own is left, None if it might be no matter of this package."""
    if issubclass(cls, tuple(UPGRADED.values())):
        return None
    for name in UPGRADED:
        if issubclass(cls, getattr(keras.layers, name)):
            return f"{cls.__name__} is a subclass of keras.layers.{name}, and may compute otherwise"
    if issubclass(cls, keras.Model) and not _is_graph(cls):
        return _subclassed(cls.__name__)
    return None


def _is_graph(cls: type) -> bool:
    """Whether a model's layers are known from outside of its class."""
    return issubclass(cls, (keras.Sequential, keras.Function))


def _is_ours(value: dict[str, Any]) -> bool:
    return str(value.get("registered_name")).startswith(_OURS)


def _name(value: dict[str, Any]) -> str:
    return str(value.get("name") or value["config"].get("name"))


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """Every object of a configuration."""
    if isinstance(value, dict):
        if isinstance(value.get("class_name"), str) and isinstance(value.get("config"), dict):
            yield value
        for item in value.values():
            yield from _objects(item)
    elif isinstance(value, list):
        for item in value:
            yield from _objects(item)


def _warn_of_lost_masks(new: keras.Model, old: keras.Model) -> None:
    """Say where a layer of the new model may get a mask that Keras's layer does not get."""
    pairs = list(zip(sublayers(new), sublayers(old), strict=True))
    sources = [b.name for _, b in pairs if _makes_mask(b)]
    lost = set()
    if sources and not keras.layers.LSTM(1, name="any").supports_masking:
        lost = {f"what comes after {name!r}" for name in sources}  # Keras 3.16, keras#23235
    elif sources:
        for a, b in pairs:
            if isinstance(b, keras.Function):
                lost |= {
                    repr(layer["name"])
                    for layer in b.get_config()["layers"]
                    if any("initial_state" in node["kwargs"] for node in layer["inbound_nodes"])
                    and accepts(a.get_layer(layer["name"]), "sequences_mask")
                }
    if lost:
        warnings.warn(
            f"upgrade: Keras {keras.__version__} loses the mask on its way to "
            f"{', '.join(sorted(lost))}, and the upgraded model does not: its numbers differ where "
            "steps are masked there.",
            stacklevel=3,
        )


def _makes_mask(layer: keras.layers.Layer) -> bool:
    return isinstance(layer, keras.layers.Masking) or bool(getattr(layer, "mask_zero", False))


def _carry_flags(new: keras.Model, old: keras.Model) -> None:
    """What Keras does not store of every model."""
    # Outer ones first, since they set `trainable` of what is inside.
    for a, b in zip(sublayers(new), sublayers(old), strict=True):
        if a.trainable != b.trainable:
            a.trainable = b.trainable
        if isinstance(a, keras.Model):
            a.dtype_policy = b.dtype_policy


def _own_classes(model: keras.Model) -> dict[str, Any]:
    """The classes of a model's layers that are not Keras's, by the names that a file has."""
    found = {}
    for layer in sublayers(model):
        for item in (layer, getattr(layer, "cell", None)):
            if item is not None and not type(item).__module__.startswith("keras."):
                found[keras.saving.get_registered_name(type(item))] = type(item)
    return found


def _name_functions(config: dict[str, Any], model: keras.Model) -> dict[str, Any]:
    """Put names in the place of the functions of `Lambda` layers, and return these functions.

    So nothing is compiled from bytecode, which would lose the globals of a function.
    """
    functions = {}
    for layer in sublayers(model):
        if isinstance(layer, keras.layers.Lambda):
            if layer.mask is not None:
                raise ValueError(f"Keras does not load the `mask` of the Lambda {layer.name!r}.")
            stored = keras.saving.serialize_keras_object(layer)["config"]
            functions[json.dumps(stored["function"], sort_keys=True)] = layer.function
            shape = layer.get_config().get("output_shape")
            if callable(getattr(layer, "_output_shape", None)):
                functions[json.dumps(shape, sort_keys=True)] = layer._output_shape
    named: dict[str, Any] = {}
    for item in _objects(config):
        for argument in ("function", "output_shape") if item["class_name"] == "Lambda" else ():
            key = json.dumps(item["config"].get(argument), sort_keys=True)
            if key in functions:
                name = f"function_{len(named)}"
                named[name] = functions[key]
                item["config"][argument] = {
                    "module": "builtins",
                    "class_name": "function",
                    "config": name,
                    "registered_name": name,
                }
    return named


def _read_config(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        config: dict[str, Any] = json.loads(archive.read(_CONFIG))
    return config


def _write_with_config(old: Path, new: Path, config: dict[str, Any]) -> None:
    """A copy of a `.keras` file with another configuration."""
    with zipfile.ZipFile(old) as source, zipfile.ZipFile(new, "w") as target:
        for entry in source.infolist():
            if entry.filename == _CONFIG:
                target.writestr(_CONFIG, json.dumps(config))
                continue
            with source.open(entry) as read, target.open(entry, "w", force_zip64=True) as write:
                shutil.copyfileobj(read, write)
