"""Writes the masked models that tests/unit/test_masked_models.py reads, as one Keras saves them.

Run it once with each version of Keras that is to be compared, with the package installed or on
PYTHONPATH, on the same backend:

    pip install keras==3.14.0 jax==0.5.3
    KERAS_BACKEND=jax python tools/make_masked_models.py tests/unit/masked_models

It writes `VERSION/NAME.keras`, and `VERSION/NAME.npz` with the inputs `padded` and `cut`, which
hold the same valid steps, and the outputs `y_padded` and `y_cut` that this version computes.
Weights and inputs are the same whatever runs it.
"""

import argparse
import zipfile
from pathlib import Path

import keras
import numpy as np

from multibackend_lstm import SOLUTIONS, build_model, flatten_features
from multibackend_lstm.files import replacing

MASKING = -9.0
BATCH, CHANNELS, FEATURES = 2, 3, 4
# Padding before, within and after the valid steps.
VALID = np.array([False, True, True, False, True, True, False, False])
SHAPE = (None, CHANNELS, FEATURES)


def model(solution, *, bidirectional=False, policy="float32"):
    """A stack of two recurrent layers behind a mask, with weights drawn by NumPy."""
    keras.config.set_dtype_policy(policy)
    built = build_model(
        SHAPE,
        solution,
        units=(3, 2),
        filters=3,
        kernel_size=2,
        outputs=2,
        masking=MASKING,
        bidirectional=bidirectional,
    )
    keras.config.set_dtype_policy("float32")
    rng = np.random.default_rng(0)
    built.set_weights([0.5 * rng.normal(size=w.shape).astype(w.dtype) for w in built.weights])
    return built


# Name of the files, and the arguments of `model`.
MODELS = {
    **{solution: {"solution": solution} for solution in SOLUTIONS},
    **{
        f"{solution}_bidirectional": {"solution": solution, "bidirectional": True}
        for solution in SOLUTIONS
    },
    "mixed_float16": {"solution": "reshape", "bidirectional": True, "policy": "mixed_float16"},
}


def inputs(solution):
    """Padded steps hold the masking value; cut, the sequence has the valid steps alone."""
    cut = np.random.default_rng(1).normal(size=(BATCH, VALID.sum(), CHANNELS, FEATURES))
    padded = np.full((BATCH, len(VALID), CHANNELS, FEATURES), MASKING)
    padded[:, VALID] = cut
    both = padded.astype("float32"), cut.astype("float32")
    return tuple(map(flatten_features, both)) if solution == "pre_reshape" else both


def save(built, path):
    """Save a model with the parts of its file compressed, which Keras leaves as they are."""
    built.save(path)
    with zipfile.ZipFile(path) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in parts.items():
            file.writestr(name, content)


def main():
    """Write the files of all models."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder for the folder of this version")
    folder = parser.parse_args().folder / keras.__version__
    folder.mkdir(parents=True, exist_ok=True)
    for name, arguments in MODELS.items():
        padded, cut = inputs(arguments["solution"])
        built = model(**arguments)
        arrays = {
            "padded": padded,
            "cut": cut,
            "y_padded": built.predict(padded, verbose=0),
            "y_cut": built.predict(cut, verbose=0),
        }
        with replacing(folder / f"{name}.keras") as path:
            save(built, path)
        with replacing(folder / f"{name}.npz") as path:
            np.savez_compressed(path, **arrays)
        error = np.abs(arrays["y_padded"] - arrays["y_cut"]).max()
        size = (folder / f"{name}.keras").stat().st_size
        print(f"{name}: {size} bytes, padded against cut input differs by {error:.1e}")


if __name__ == "__main__":
    main()
