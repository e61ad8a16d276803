"""What `compile` was given is saved and loaded so that it holds on every backend.

tests/across_backends/test_files.py goes from each backend to each other; here one alone opens files
that all of them wrote, from before this package put what they say right.
"""

import json
import pathlib
import zipfile

import keras
import numpy as np
import pytest

from multibackend_lstm import build_model
from multibackend_lstm.compile_configs import with_public_optimizers
from unit.files.write import data, train
from unit.tools import BACKEND, assert_equal, needs_gradients, run_python, save_and_load

FILES = pathlib.Path(__file__).parent / "files"
OPTIMIZERS = (
    "Adadelta", "Adagrad", "Adam", "Adamax", "AdamW", "Ftrl", "Lion", "Nadam", "RMSprop", "SGD",
)  # fmt: skip


def small_model(optimizer, **options):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    model.compile(optimizer, loss="mse", **options)
    return model


def with_state(model):
    """The model with numbers in its optimizer, as after training."""
    model.optimizer.build(model.trainable_variables)
    for number, variable in enumerate(model.optimizer.variables):
        variable.assign(np.full(variable.shape, number + 1, variable.dtype))
    return model


def assert_same_optimizer(actual, expected):
    assert type(actual) is type(expected)
    assert actual.get_config().keys() == expected.get_config().keys()
    for a, e in zip(actual.variables, expected.variables, strict=True):
        assert_equal(a.numpy(), e.numpy())


def saved_config(model, folder):
    model.save(folder / "saved.keras")
    with zipfile.ZipFile(folder / "saved.keras") as file:
        return json.loads(file.read("config.json"))["compile_config"]


@pytest.mark.parametrize("saver", ["torch", "jax", "tensorflow"])
def test_files_from_before_train_on(saver):
    model = keras.saving.load_model(FILES / f"{saver}.keras")
    if BACKEND == "torch":
        # JAX wrote True, which may as well have been chosen on torch, and stays.
        assert model.jit_compile is (saver == "jax")
        model.jit_compile = False
    with np.load(FILES / f"{saver}.npz", allow_pickle=False) as expected:
        for number, variable in enumerate(model.optimizer.variables):
            np.testing.assert_array_equal(variable.numpy(), expected[f"optimizer_{number}"])
        assert len(model.optimizer.variables) == 2 + 2 * len(model.trainable_variables)
        predictions = model.predict_on_batch(data()[0])
        np.testing.assert_allclose(predictions, expected["predictions"], rtol=0, atol=1e-6)
        if BACKEND != "numpy":
            losses = train(model, 10)
            np.testing.assert_allclose(losses, expected["losses"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_comes_back_with_its_state(name, tmp_path):
    model = with_state(small_model(getattr(keras.optimizers, name)(0.25, clipnorm=1.0)))
    config = saved_config(model, tmp_path)
    assert config["optimizer"]["module"] == "keras.optimizers"
    assert config["optimizer"]["class_name"] == name
    assert_same_optimizer(save_and_load(model, tmp_path).optimizer, model.optimizer)


def test_learning_rate_schedule_comes_back(tmp_path):
    schedule = keras.optimizers.schedules.ExponentialDecay(0.5, 10, 0.9)
    model = with_state(small_model(keras.optimizers.SGD(schedule, momentum=0.9)))
    optimizer = save_and_load(model, tmp_path).optimizer
    assert_same_optimizer(optimizer, model.optimizer)
    assert float(optimizer.learning_rate) == float(model.optimizer.learning_rate) < 0.5


def test_loss_scale_comes_back(tmp_path):
    keras.config.set_dtype_policy("mixed_float16")
    model = with_state(small_model("adam"))
    keras.config.set_dtype_policy("float32")
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    optimizer = save_and_load(model, tmp_path).optimizer
    assert_same_optimizer(optimizer, model.optimizer)
    assert_same_optimizer(optimizer.inner_optimizer, model.optimizer.inner_optimizer)


def test_torchs_names_become_public_wherever_they_are():
    torchs = {
        "module": "keras.src.backend.torch.optimizers.torch_sgd",
        "class_name": "SGD",
        "config": {"learning_rate": 0.5},
        "registered_name": "SGD",
    }
    public = torchs | {"module": "keras.optimizers", "registered_name": None}
    other = {"module": "my_package", "class_name": "SGD", "config": {}, "registered_name": "my>SGD"}
    config = {"optimizer": {"config": {"inner": torchs, "many": [(torchs,)]}}, "loss": other}
    assert with_public_optimizers(config) == {
        "optimizer": {"config": {"inner": public, "many": [(public,)]}},
        "loss": other,
    }
    assert torchs["registered_name"] == "SGD"  # the argument itself is left as it is


def test_automatic_compilation_stays_automatic(tmp_path):
    model = with_state(small_model("adam"))
    assert saved_config(model, tmp_path)["jit_compile"] == "auto"
    assert save_and_load(model, tmp_path).jit_compile == model.jit_compile


def test_chosen_compilation_stays(tmp_path):
    chosen = not small_model("adam").jit_compile
    model = with_state(small_model("adam", jit_compile=chosen))
    assert saved_config(model, tmp_path)["jit_compile"] is chosen
    assert save_and_load(model, tmp_path).jit_compile is chosen


def test_eager_model_stays_eager(tmp_path):
    model = save_and_load(with_state(small_model("adam", run_eagerly=True)), tmp_path)
    assert model.run_eagerly
    assert model.jit_compile is False


def test_compilation_that_a_layer_rules_out_is_no_warning(tmp_path):
    model = small_model("adam")
    model.layers[0].supports_jit = False
    config = model.get_compile_config()
    config["jit_compile"] = True  # as from a backend where the layer allows it
    model.compile_from_config(config)  # Keras's warning would be an error here
    assert model.jit_compile is False


def test_uncompiled_model_stays_uncompiled(tmp_path):
    assert not save_and_load(build_model((3, 2, 2), units=2), tmp_path).compiled


@needs_gradients
def test_keras_imported_after_the_package():
    # In this process, as in all tests, keras came first.
    output = run_python(
        "import multibackend_lstm, keras\n"
        "model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])\n"
        "model.compile('adam', 'mse')\n"
        "print(model.get_compile_config()['optimizer']['module'])"
    )
    assert output.split() == ["keras.optimizers"]
