"""Masked models that several versions of Keras saved, from tools/make_masked_models.py.

Each gives here what it gave there, and the same for a padded input as for its valid steps alone:
what a mask does depends neither on the Keras that saved a model nor on the one that runs it.
"""

import pathlib

import keras
import numpy as np
import pytest
from packaging.version import Version

FOLDER = pathlib.Path(__file__).parent / "masked_models"
VERSIONS = sorted((path.name for path in FOLDER.iterdir()), key=Version)
NAMES = sorted(path.stem for path in (FOLDER / VERSIONS[0]).glob("*.keras"))
# The first versions of Keras that add to the config of an initialiser what older ones refuse.
UNREADABLE = {"3.15": "got an unexpected keyword argument 'input_axes'"}


def recorded(version, name):
    """Inputs and outputs of the Keras that wrote a file."""
    with np.load(FOLDER / version / f"{name}.npz", allow_pickle=False) as arrays:
        return dict(arrays)


def tolerance(name):
    """Rounding of float32 in two layers; float16 keeps three digits."""
    return {"atol": 2e-3 if name == "mixed_float16" else 1e-6, "rtol": 0}


def refusal(version):
    """With which error the running Keras refuses a file of a newer one, None if it reads it."""
    for first, error in UNREADABLE.items():
        if Version(keras.__version__) < Version(first) <= Version(version):
            return error
    return None


def test_versions_before_and_after_the_change_of_masks_are_there():
    assert Version(VERSIONS[0]) < Version("3.15")
    assert Version("3.16.dev0") <= Version(VERSIONS[-1])
    for version in VERSIONS:
        assert sorted(path.stem for path in (FOLDER / version).glob("*.keras")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_versions_computed_the_same(name):
    first, *others = (recorded(version, name) for version in VERSIONS)
    np.testing.assert_allclose(first["y_padded"], first["y_cut"], **tolerance(name))
    for other in others:
        assert other.keys() == first.keys()
        for key in ("padded", "cut"):
            np.testing.assert_array_equal(other[key], first[key])
        for key in ("y_padded", "y_cut"):
            np.testing.assert_allclose(other[key], first[key], **tolerance(name))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("version", VERSIONS)
def test_masked_model_gives_what_it_gave(version, name):
    path = FOLDER / version / f"{name}.keras"
    refused = refusal(version)
    if refused is not None:
        # Keras's own initialiser, which its Dense layer has too.
        with pytest.raises(TypeError, match=refused):
            keras.saving.load_model(path, safe_mode=True)
        return
    model = keras.saving.load_model(path, safe_mode=True)
    arrays = recorded(version, name)
    padded, cut = (model.predict(arrays[key], verbose=0) for key in ("padded", "cut"))
    np.testing.assert_allclose(padded, cut, **tolerance(name))
    np.testing.assert_allclose(padded, arrays["y_padded"], **tolerance(name))
