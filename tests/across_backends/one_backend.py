"""A process that has one backend alone, and writes or reads model files: `test_files.py` asks.

`python one_backend.py BACKEND` hides every other backend, whatever is installed, before anything
else is imported. Requests and answers are lines of JSON.
"""

import json
import os
import shutil
import sys
import tempfile
import traceback
import warnings
from importlib.machinery import PathFinder
from pathlib import Path

SHAPE = (5, 3, 2)
#: Arguments of `build_model`, and the dtype policy where it is not float32.
MODELS = {
    "reshape": {"solution": "reshape"},
    "pre_reshape": {"solution": "pre_reshape"},
    "conv": {"solution": "conv", "filters": 3},
    "channelwise": {"solution": "channelwise"},
    "conv_lstm": {"solution": "conv_lstm"},
    "masked": {"solution": "reshape", "masking": 0.0},
    "bidirectional": {"solution": "reshape", "bidirectional": True},
    "mixed_float16": {"solution": "reshape", "policy": "mixed_float16"},
}
FORMATS = (".keras", ".weights.h5", "checkpoint")
STATES = ("trained", "untrained")
STEPS_AN_EPOCH = 5
#: After the first epoch the model is saved; these are the 20 steps that follow.
EPOCHS_AFTER = 4
BATCH = 8


class Without:
    """Finds modules as Python does, but for those of the backends that are to be missing."""

    def __init__(self, modules):
        self.modules = modules

    def find_spec(self, name, path=None, target=None):
        """As PathFinder.find_spec: None for what is not there."""
        if name.split(".")[0] in self.modules:
            return None
        return PathFinder.find_spec(name, path, target)

    find_distributions = staticmethod(PathFinder.find_distributions)
    invalidate_caches = staticmethod(PathFinder.invalidate_caches)


def hide_backends_but(backend):
    """Make the other backends as good as not installed, in this process."""
    # Keras's NumPy backend computes a little with JAX.
    own = "jax" if backend == "numpy" else backend
    others = {"tensorflow", "torch", "jax", "jaxlib"} - {own, f"{own}lib"}
    assert not others & sys.modules.keys()
    sys.meta_path[sys.meta_path.index(PathFinder)] = Without(others)


def path_of(folder, saver, model, file_format, state):
    """Where a backend writes a model: a file, or a folder for a checkpoint."""
    return Path(folder, saver, f"{model}-{state}{file_format.replace('checkpoint', '')}")


def expectation_path(folder, saver, model, state):
    """What the saving backend computed with it, and from there on."""
    return Path(folder, saver, f"{model}-{state}.npz")


def data():
    """Inputs in which some steps are missing, and targets."""
    import numpy as np

    rng = np.random.default_rng(0)
    x = rng.normal(size=(STEPS_AN_EPOCH * BATCH, *SHAPE)).astype("float32")
    x[rng.random(x.shape[:2]) < 0.2] = 0
    return x, rng.normal(size=(len(x), 1)).astype("float32")


def build(name):
    """One of MODELS, compiled, and its data."""
    import keras

    from multibackend_lstm import build_model, flatten_features

    arguments = {**MODELS[name]}
    keras.config.set_dtype_policy(arguments.pop("policy", "float32"))
    model = build_model(SHAPE, units=4, **arguments)
    keras.config.set_dtype_policy("float32")
    model.compile(keras.optimizers.Adam(1e-2, clipnorm=1.0), loss="mse")
    x, y = data()
    return model, flatten_features(x) if name == "pre_reshape" else x, y


def train(model, x, y, epochs, *callbacks):
    """The loss after each step."""
    import keras

    losses = []
    record = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: losses.append(logs["loss"])
    )
    model.fit(
        x,
        y,
        batch_size=BATCH,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        callbacks=[record, *callbacks],
    )
    return losses


def state_of(optimizer):
    """Every variable of an optimizer: iterations, learning rate, momenta, loss scale."""
    return {f"optimizer_{i}": v.numpy() for i, v in enumerate(optimizer.variables)}


def save(folder, saver, model, state):
    """Write a model in every format, and what becomes of it on the backend that saved it."""
    import keras
    import numpy as np

    def path(file_format):
        return path_of(folder, saver, model, file_format, state)

    built, x, y = build(model)
    if state == "trained":
        backup = keras.callbacks.BackupAndRestore(path("checkpoint"), delete_checkpoint=False)
        train(built, x, y, 1, backup)
    built.save(path(".keras"))
    built.save_weights(path(".weights.h5"))
    arrays = {"predictions": built.predict_on_batch(x), **state_of(built.optimizer)}
    arrays["losses"] = train(built, x, y, EPOCHS_AFTER)
    np.savez(expectation_path(folder, saver, model, state), allow_pickle=False, **arrays)


def load(folder, saver, model, file_format, state):
    """Read a file: predictions and optimizer state as loaded, and the losses from there on."""
    import keras

    path = path_of(folder, saver, model, file_format, state)
    can_train = keras.backend.backend() != "numpy"
    built, x, y = build(model)
    callbacks = []
    if file_format == ".keras":
        built = keras.saving.load_model(path)
    else:
        if state == "trained":
            built.optimizer.build(built.trainable_variables)
        weights = path / "latest.weights.h5" if file_format == "checkpoint" else path
        built.load_weights(weights)
    arrays = {"predictions": built.predict_on_batch(x), **state_of(built.optimizer)}
    if can_train:
        with tempfile.TemporaryDirectory() as copy:
            epochs = EPOCHS_AFTER
            if file_format == "checkpoint":
                # As after a crash: a new model, which the callback itself brings to where it was.
                built, x, y = build(model)
                shutil.copytree(path, copy, dirs_exist_ok=True)
                callbacks.append(keras.callbacks.BackupAndRestore(copy))
                epochs += 1
            arrays["losses"] = train(built, x, y, epochs, *callbacks)
    return arrays


def answer(request):
    """Save or load what a request names; an error is an answer too."""
    import numpy as np

    action = {"save": save, "load": load}[request["action"]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # torch.Tensor.__array__ takes no `copy`: see pyproject.toml.
        warnings.filterwarnings("ignore", message="__array__ implementation")
        if request["arguments"][-1] == "untrained":
            # Of an optimizer that has no state yet Keras itself says that it restores none.
            warnings.filterwarnings("ignore", message="Skipping variable loading for optimizer")
        try:
            arrays = action(*request["arguments"])
        except Exception:
            return {"error": traceback.format_exc()}
    if request["action"] == "load":
        np.savez(request["answer"], allow_pickle=False, **arrays)
    return {"error": None}


def main(backend):
    """Answer requests until standard input ends."""
    hide_backends_but(backend)
    os.environ["KERAS_BACKEND"] = backend
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    import multibackend_lstm.layers  # noqa: F401

    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
