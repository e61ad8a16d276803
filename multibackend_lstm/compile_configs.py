"""What a `.keras` file says about `compile`, made to hold on every backend.

`Model.get_compile_config` gives what `Model.save` writes, and `Model.compile_from_config` takes
what a file says. Keras 3 (up to 3.16) lets two properties of the saving backend into it:

* torch has optimizer classes of its own, below `keras.optimizers`, and the file names those.
  Without torch installed they cannot be imported; with it `fit` fails on another backend.
* `jit_compile="auto"` is written as what it came to. A file saved on JAX says True: torch then
  calls `torch.compile`, and TensorFlow warns of layers that XLA cannot compile. One saved on torch
  says False: JAX then runs the training step without compiling it.

The third is lost on the saving backend too: under `mixed_float16` a model wraps its optimizer in a
`LossScaleOptimizer`, the file names the one inside, and the variables of the two do not fit.

`make_portable` puts all three right when saving, and the first when loading what was saved without.
"""

import warnings
from collections.abc import Callable
from typing import Any

import keras
from wrapt import wrap_function_wrapper

_TORCH_OPTIMIZERS = "keras.src.backend.torch.optimizers."


def make_portable() -> None:
    """From now on in this process, save and load portable compile configurations."""
    wrap_function_wrapper(keras.Model, "get_compile_config", _get_compile_config)
    wrap_function_wrapper(keras.Model, "compile_from_config", _compile_from_config)


def _get_compile_config(
    wrapped: Callable[[], dict[str, Any]], model: keras.Model, args: Any, kwargs: Any
) -> dict[str, Any]:
    config = wrapped(*args, **kwargs)
    if not config:  # never compiled
        return config
    if isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer):
        config["optimizer"] = keras.saving.serialize_keras_object(model.optimizer)
    config = with_public_optimizers(config)
    # What the user chose otherwise stays in the file.
    if config["jit_compile"] == _auto_jit_compile(model, config):
        config["jit_compile"] = "auto"
    return config


def _compile_from_config(
    wrapped: Callable[[dict[str, Any]], None], model: keras.Model, args: Any, kwargs: Any
) -> None:
    def compile_from_config(config: dict[str, Any]) -> None:
        config = with_public_optimizers(config)
        if config.get("jit_compile") is True and not _supports_jit(model):
            # Keras would warn, and then not compile either.
            config["jit_compile"] = "auto"
        wrapped(config)

    compile_from_config(*args, **kwargs)


def with_public_optimizers(config: Any) -> Any:
    """A copy of a serialised object in which torch's optimizers have their public names.

    Args:
        config: what `keras.saving.serialize_keras_object` returns, which may nest: a
            `LossScaleOptimizer` holds another optimizer.

    Returns:
        The same with `keras.optimizers` for the modules of torch's optimizers, under whose classes
        Keras puts the backend's own again.
    """
    if isinstance(config, list | tuple):
        return type(config)(with_public_optimizers(value) for value in config)
    if not isinstance(config, dict):
        return config
    config = {key: with_public_optimizers(value) for key, value in config.items()}
    if str(config.get("module")).startswith(_TORCH_OPTIMIZERS):
        config |= {"module": "keras.optimizers", "registered_name": None}
    return config


def _auto_jit_compile(model: keras.Model, config: dict[str, Any]) -> bool:
    """What `jit_compile="auto"` comes to here, for a model and what `compile` was given."""
    if config["run_eagerly"]:
        return False
    # A model that was never compiled resolves "auto" when asked; one without layers says what the
    # backend itself makes of it.
    return bool(keras.Sequential().jit_compile) and _supports_jit(model)


def _supports_jit(model: keras.Model) -> bool:
    """Whether Keras lets `jit_compile=True` be set on a model."""
    before = model.jit_compile
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.jit_compile = True
    supported = bool(model.jit_compile)
    if supported:  # else it is False now, whatever it was before
        model.jit_compile = before
    return supported
