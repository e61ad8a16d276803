"""Old model files, written by tools/make_legacy_models.py, against the predictions of old Keras."""

import hashlib
import json
import pathlib
import shutil
import zipfile

import h5py
import keras
import numpy as np
import pytest
from packaging.version import Version

import multibackend_lstm
from multibackend_lstm import porting
from multibackend_lstm.layers.wrapping import sublayers
from multibackend_lstm.porting import ModelFileError, migrate
from multibackend_lstm.upgrading import UPGRADED, upgrade

FOLDER = pathlib.Path(__file__).parent / "files"
SHAPES = " takes "
STORED = "stored in the "
BYTECODE = "as its stored bytecode says"
# File, place of each stored function, what takes its place, and the kind of reason.
MIGRATED = [
    ("tf_shape.h5", {"merge": ("Reshape", SHAPES)}),
    ("sequential.h5", {"merge": ("Reshape", SHAPES)}),
    ("sequential_v2.keras", {"merge": ("Reshape", STORED)}),
    ("backend_reshape.h5", {"merge": ("Reshape", "its output_shape")}),
    ("squeeze_v2.keras", {"squeeze": ("model", BYTECODE)}),
    ("tf_op_reshape.h5", {"tf.reshape": ("Reshape", "arguments stored")}),
    ("bidirectional_v2.keras", {"merge": ("Reshape", STORED)}),
    ("bidirectional_23.h5", {"merge": ("Reshape", SHAPES)}),
    ("hard_sigmoid.h5", {"merge": ("Reshape", SHAPES)}),
    ("nested.h5", {"model > merge": ("Reshape", SHAPES)}),
    ("nested_v2.keras", {"model > merge": ("Reshape", STORED)}),
    (
        "shared.h5",
        {"merge_left": ("Reshape", SHAPES), "merge_right": ("Reshape", SHAPES)},
    ),
    ("mixed_precision.h5", {"merge": ("Reshape", SHAPES)}),
    ("masked.h5", {"merge": ("Reshape", "loses the mask")}),
    ("states.h5", {"merge": ("Reshape", SHAPES)}),
    ("keras215_bidirectional.keras", {"merge": ("Reshape", STORED)}),
    ("keras215_trained.keras", {}),
    ("cudnn_lstm.h5", {}),
    ("cudnn_gru.h5", {}),
    ("gru_reset_before.h5", {}),
    ("hard_sigmoid_gates.h5", {}),
    ("keras215_hard_sigmoid_gates.keras", {}),
    ("scaling.h5", {"scale": ("model", "Keras's multiply(2.0), " + BYTECODE)}),
    ("expand_dims.h5", {"expand": ("model", "Keras's expand_dims(-1), " + BYTECODE)}),
    (
        "lambdas.h5",
        {
            "scale": ("model", "Keras's divide(255), subtract(0.5), " + BYTECODE),
            "transpose": ("model", "Keras's transpose(0, 1, 3, 2), " + BYTECODE),
            "max": ("model", "Keras's max(-1), " + BYTECODE),
            "last": ("model", "Keras's last_step, " + BYTECODE),
            "expand": ("model", "Keras's expand_dims(1), " + BYTECODE),
            "squeeze": ("model", "Keras's squeeze(1), multiply(2), " + BYTECODE),
            "mean": ("model", "Keras's mean(1), " + BYTECODE),
        },
    ),
    ("lambdas_nested.h5", {"sum": ("model", BYTECODE), "last": ("model", BYTECODE)}),
    ("keras215_lambdas_nested.keras", {"sum": ("model", BYTECODE), "last": ("model", BYTECODE)}),
    (
        "keras215_lambdas_sequential.keras",
        {"scale": ("model", "loses the mask"), "last": ("model", BYTECODE)},
    ),
    ("keras3.keras", {"merge": ("Reshape", STORED)}),
    ("keras3_legacy.h5", {}),
    ("keras22.h5", {}),
    ("keras22_lambdas.h5", {"scale": ("model", BYTECODE), "last": ("model", BYTECODE)}),
    ("keras36.keras", {}),
    ("keras36.h5", {}),
]
# File, place of its stored function, why it is left, and what it could reshape to.
LEFT = [
    ("transposing.h5", "transpose", "names transpose", ()),
    ("slicing.h5", "slice", "so does taking axes away", ("slice=30,5",)),
    ("tf_op_scale.h5", "tf.math.multiply", "is no reshape", ()),
    ("split.h5", "split", "nothing proves", ("split=10,3,5",)),
]

pytestmark = pytest.mark.filterwarnings("ignore:Layer '(merge|scale)' .*does not support masking")


def recorded(name):
    """Inputs and predictions of the Keras that wrote a file."""
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as arrays:
        inputs = [arrays[key] for key in arrays.files if key != "y"]
        return inputs if len(inputs) > 1 else inputs[0], arrays["y"]


def predictions(model, inputs):
    """What a model gives, in float32."""
    return keras.ops.convert_to_numpy(keras.ops.cast(model(inputs), "float32"))


def edit_config(path, change):
    """Change the configuration in an .h5 file."""
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        del file.attrs["model_config"]
        file.attrs["model_config"] = json.dumps(change(config) or config)


@pytest.mark.parametrize(("name", "functions"), MIGRATED, ids=[name for name, _ in MIGRATED])
def test_migrated_model_predicts_as_the_old_one(tmp_path, name, functions):
    if name.startswith(("keras3.", "keras3_")) and Version(keras.__version__) < Version("3.15"):
        pytest.skip("a newer Keras wrote it")
    before = hashlib.sha256((FOLDER / name).read_bytes()).digest()
    out = tmp_path / "new.keras"
    migration = migrate(FOLDER / name, out)
    assert migration.complete
    assert migration.needed == []
    assert migration.out == out
    found = {step.place: step.detail for step in migration.of("replaced")}
    assert set(found) == set(functions)
    for place, (layer, reason) in functions.items():
        assert found[place].startswith(f"{layer}: ")
        assert reason in found[place]
    loaded = keras.saving.load_model(out, safe_mode=True)
    inputs, expected = recorded(name)
    # float16 keeps three digits, and rounds elsewhere on each backend.
    atol = 2e-3 if name.startswith("mixed") else 2e-6
    np.testing.assert_allclose(predictions(loaded, inputs), expected, atol=atol, rtol=1e-5)
    assert not any(isinstance(layer, keras.layers.Lambda) for layer in sublayers(loaded))
    assert hashlib.sha256((FOLDER / name).read_bytes()).digest() == before
    assert [file.name for file in tmp_path.iterdir()] == ["new.keras"]


def test_a_merge_of_any_length_needs_nothing_of_ours(tmp_path):
    inputs = keras.Input((None, 3, 5))
    merge = keras.layers.Lambda(
        lambda x: keras.ops.reshape(x, (keras.ops.shape(x)[0], -1, 15)), name="merge"
    )
    old = keras.Model(inputs, keras.layers.LSTM(2)(merge(inputs)))
    old.save(tmp_path / "old.keras")
    migration = migrate(tmp_path / "old.keras", tmp_path / "new.keras")
    assert migration.needed == []
    new = keras.saving.load_model(tmp_path / "new.keras", safe_mode=True)
    for length in (1, 4, 7):
        x = np.random.default_rng(0).normal(size=(2, length, 3, 5)).astype("float32")
        np.testing.assert_allclose(predictions(new, x), predictions(old, x), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "upgraded"),
    [
        ("split.h5", {"time_distributed", "time_distributed_1", "lstm"}),
        ("bidirectional_v2.keras", {"bidirectional", "bidirectional > lstm", "gru"}),
        ("nested.h5", {"model > lstm", "sequential > gru"}),
        ("hard_sigmoid.h5", {"lstm"}),
        ("states.h5", {"lstm", "lstm_1"}),
        (
            "cudnn_lstm.h5",
            {
                "bidirectional",
                "bidirectional > cu_dnnlstm",
                "cu_dnnlstm_1",
            },
        ),
        ("cudnn_gru.h5", {"model > cu_dnngru", "model > cu_dnngru_1", "cu_dnngru_2"}),
        (
            "keras36.keras",
            {
                "bidirectional",
                "bidirectional > forward_lstm",
                "bidirectional > backward_lstm",
                "time_distributed",
                "gru",
            },
        ),
    ],
)
def test_upgrade_puts_our_layers_in(name, upgraded):
    replacements = {"split": keras.layers.Reshape((10, 3, 5))} if name == "split.h5" else {}
    migration = migrate(FOLDER / name, upgrade=True, replacements=replacements)
    assert {step.place for step in migration.of("upgraded")} == upgraded
    assert migration.of("not upgraded") == []
    stock = {getattr(keras.layers, name) for name in UPGRADED}
    classes = [type(layer) for layer in sublayers(migration.model)]
    assert not stock & set(classes)
    assert set(UPGRADED.values()) & set(classes)
    inputs, expected = recorded(name)
    np.testing.assert_allclose(predictions(migration.model, inputs), expected, atol=2e-6, rtol=1e-5)


def test_upgrade_says_what_it_leaves(tmp_path):
    inputs = keras.Input((4, 5, 3))
    x = keras.layers.TimeDistributed(keras.layers.BatchNormalization(name="norm"), name="a")(inputs)
    x = keras.layers.ConvLSTM1D(2, 2, name="b")(x)
    model = keras.Model(inputs, x)
    model.save(tmp_path / "model.keras")
    migration = migrate(tmp_path / "model.keras", tmp_path / "new.keras", upgrade=True)
    assert [step.place for step in migration.of("upgraded")] == ["b"]
    (step,) = migration.of("not upgraded")
    assert step.place == "a"
    assert "BatchNormalization 'norm'" in step.detail
    assert migration.complete
    loaded = keras.saving.load_model(migration.out)
    assert type(loaded.get_layer("a")) is keras.layers.TimeDistributed
    assert type(loaded.get_layer("b")) is multibackend_lstm.ConvLSTM1D
    x = np.random.default_rng(0).normal(size=(2, 4, 5, 3)).astype("float32")
    np.testing.assert_allclose(predictions(loaded, x), predictions(model, x), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "place", "reason", "reshapes"), LEFT, ids=[name for name, *_ in LEFT]
)
def test_what_is_not_proved_is_left(tmp_path, name, place, reason, reshapes):
    migration = migrate(FOLDER / name, tmp_path / "new.keras")
    (step,) = migration.left
    assert step.place == place
    assert reason in step.detail
    assert step.reshapes == reshapes
    assert migration.model is None
    assert not migration.complete
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "place", "sizes"),
    [("expand_dims.h5", "expand", (10, 15, 1)), ("split.h5", "split", (10, 3, 5))],
)
def test_a_named_reshape_predicts_as_the_old_model(name, place, sizes):
    replacements = {place: keras.layers.Reshape(sizes)}
    model = migrate(FOLDER / name, replacements=replacements).model
    inputs, expected = recorded(name)
    np.testing.assert_allclose(predictions(model, inputs), expected, atol=2e-6, rtol=1e-5)


def merging():
    """A Lambda of this Keras."""
    return keras.layers.Lambda(lambda t: keras.ops.reshape(t, (-1, 15)), (15,), name="merge")


def test_functions_that_are_called_twice_or_wrapped_are_left(tmp_path):
    left, right = keras.Input((3, 5)), keras.Input((3, 5))
    merge, dense = merging(), keras.layers.Dense(2)
    twice = keras.Model([left, right], [dense(merge(left)), dense(merge(right))])
    steps = keras.Input((4, 3, 5))
    wrapped = keras.layers.TimeDistributed(merging(), name="steps")(steps)
    wrapped = keras.Model(steps, keras.layers.LSTM(2)(wrapped))
    for model, place, reason in (
        (twice, "merge", "called several times"),
        (wrapped, "steps > merge", "inside a TimeDistributed"),
    ):
        model.save(tmp_path / "model.keras")
        (step,) = migrate(tmp_path / "model.keras").left
        assert step.reshapes == (("merge=15",) if model is twice else ())
        assert step.place == place
        assert reason in step.detail


def test_a_function_with_arguments_is_left(tmp_path):
    inputs = keras.Input((3, 5))
    layer = keras.layers.Lambda(
        lambda t, scale: keras.ops.reshape(t * scale, (-1, 15)), (15,), arguments={"scale": 2.0}
    )
    keras.Model(inputs, keras.layers.Dense(2)(layer(inputs))).save(tmp_path / "model.keras")
    (step,) = migrate(tmp_path / "model.keras").left
    assert "takes arguments" in step.detail


def test_the_caller_can_say_what_a_function_computes(tmp_path):
    replacements = {"scale": keras.layers.Rescaling(2.0)}
    migration = migrate(FOLDER / "scaling.h5", tmp_path / "new.keras", replacements=replacements)
    assert "as the caller says" in migration.of("replaced")[0].detail
    inputs, expected = recorded("scaling.h5")
    loaded = keras.saving.load_model(migration.out)
    np.testing.assert_allclose(predictions(loaded, inputs), expected, atol=2e-6)
    with pytest.raises(ValueError, match=r"\['scales'\].*no such Lambda"):
        migrate(FOLDER / "scaling.h5", replacements={"scales": replacements["scale"]})


@pytest.mark.parametrize("name", ["hard_sigmoid_gates.h5", "keras215_hard_sigmoid_gates.keras"])
def test_gates_of_keras_2_need_this_package_where_it_is_asked_for(tmp_path, name):
    migration = migrate(FOLDER / name, tmp_path / "new.keras")
    assert migration.needed == []
    with zipfile.ZipFile(migration.out) as file:
        assert b"multibackend_lstm" not in file.read("config.json")
    upgraded = migrate(FOLDER / name, upgrade=True)
    assert "keras_2_hard_sigmoid" in upgraded.needed
    inputs, expected = recorded(name)
    for model in (upgraded.model, upgrade(migration.model).model):
        np.testing.assert_allclose(predictions(model, inputs), expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_hard_sigmoid_outside_of_recurrent_layers(masked, tmp_path):
    """In an `Activation` and a `Dense`, as layers of Keras where no mask comes by."""
    path = tmp_path / "old.h5"
    shutil.copy(FOLDER / "hard_sigmoid.h5", path)

    def change(config):
        layers = config["config"]["layers"]
        if masked:
            layers[1] = {**layers[1], "class_name": "Masking", "config": {"name": "merge"}}
            layers[0]["config"]["batch_input_shape"] = [None, 10, 15]
        activation = {"name": layers[3]["name"], "activation": "hard_sigmoid"}
        layers[3] |= {"class_name": "Activation", "config": activation}

    edit_config(path, change)
    migration = migrate(path, tmp_path / "new.keras")
    assert migration.needed == (["keras_2_hard_sigmoid"] if masked else [])
    model = keras.saving.load_model(migration.out)
    steps = keras.Model(model.input, model.get_layer("lstm").output)
    dense = model.layers[-1]
    inputs = recorded("hard_sigmoid.h5")[0]
    if masked:
        inputs = inputs.reshape(len(inputs), 10, 15)
        inputs[0, 4:] = 0.0
    valid = inputs.reshape(len(inputs), 10, 15).any(-1, keepdims=True)
    x = np.clip(0.2 * predictions(steps, inputs) + 0.5, 0, 1)
    mean = (x * valid).sum(1) / valid.sum(1)
    kernel, bias = dense.get_weights()
    expected = np.clip(0.2 * (mean @ kernel + bias) + 0.5, 0, 1)
    np.testing.assert_allclose(predictions(model, inputs), expected, atol=1e-6)


def test_the_old_name_still_works():
    assert porting.replace_lambdas is migrate


def test_a_trained_model_goes_on_training(tmp_path):
    model = migrate(FOLDER / "sequential.h5", tmp_path / "new.keras").model
    x, y = recorded("sequential.h5")
    model.compile("adam", "mse")
    history = model.fit(x, y[::-1], epochs=2, verbose=0).history["loss"]
    assert history[1] < history[0]


def test_what_is_translated_is_said():
    migration = migrate(FOLDER / "hard_sigmoid.h5")
    details = {step.detail for step in migration.of("translated")}
    assert any("0.2 * x + 0.5" in detail for detail in details)
    assert any("time_major=False" in detail for detail in details)
    compiled = migrate(FOLDER / "sequential.h5").of("translated")
    assert any("optimizer" in step.detail for step in compiled)
    document = migration.to_dict()
    assert json.loads(json.dumps(document)) == document
    assert document["complete"]


def test_a_gru_from_before_reset_after(tmp_path):
    path = tmp_path / "old.h5"
    shutil.copy(FOLDER / "bidirectional_23.h5", path)

    def drop(config):
        for layer in config["config"]["layers"]:
            layer["config"].pop("reset_after", None)

    edit_config(path, drop)
    migration = migrate(path)
    inputs, expected = recorded("bidirectional_23.h5")
    np.testing.assert_allclose(predictions(migration.model, inputs), expected, atol=2e-6, rtol=1e-5)


def test_a_cudnn_layer_in_an_archive_is_refused(tmp_path):
    path = tmp_path / "old.keras"
    with (
        zipfile.ZipFile(FOLDER / "keras215_trained.keras") as old,
        zipfile.ZipFile(path, "w") as new,
    ):
        for name in old.namelist():
            content = old.read(name)
            if name == "config.json":
                content = content.replace(b'"class_name": "LSTM"', b'"class_name": "CuDNNLSTM"')
            new.writestr(name, content)
    with pytest.raises(ModelFileError, match=r"CuDNNLSTM layers are migrated from \.h5 files only"):
        migrate(path)


def test_a_file_of_keras_1_is_named_with_the_way_out(tmp_path):
    """keras22.h5, which is migrated, is what the way out makes of it."""
    way_out = r"wrote it, whose layers .*keras==2\.2\.4.*load_model"
    with pytest.raises(ModelFileError, match=r"keras1\.h5 .*Keras 1\.2\.2 " + way_out):
        migrate(FOLDER / "keras1.h5")
    path = shutil.copy(FOLDER / "keras1.h5", tmp_path / "old.h5")
    with h5py.File(path, "r+") as file:  # as before Keras 1.0.7
        for group in (file, file["model_weights"]):
            group.attrs.pop("keras_version", None)
    with pytest.raises(ModelFileError, match=r"Keras 1 " + way_out):
        migrate(path)


def test_time_major_is_refused(tmp_path):
    path = tmp_path / "old.h5"
    shutil.copy(FOLDER / "tf_shape.h5", path)

    def change(config):
        for layer in config["config"]["layers"]:
            if layer["class_name"] == "LSTM":
                layer["config"]["time_major"] = True

    edit_config(path, change)
    with pytest.raises(
        ModelFileError, match=r"lstm: Keras 3 has no `time_major=True`.*set_weights"
    ):
        migrate(path)


def test_out_is_neither_the_input_nor_another_format(tmp_path):
    path = tmp_path / "model.keras"
    shutil.copy(FOLDER / "keras3.keras", path)
    with pytest.raises(ValueError, match="another file"):
        migrate(path, path)
    with pytest.raises(ValueError, match=r"must end in \.keras"):
        migrate(path, tmp_path / "new.h5")


def test_nan_weights_are_reported_and_kept(tmp_path):
    path = tmp_path / "old.h5"
    shutil.copy(FOLDER / "tf_shape.h5", path)
    with h5py.File(path, "r+") as file:
        file["model_weights/dense/dense/kernel:0"][3] = np.nan
    migration = migrate(path, tmp_path / "new.keras")
    (step,) = migration.of("not finite")
    assert step.place == "dense/dense/kernel:0"
    assert step.detail.startswith("1 of 64 values")
    assert not migration.complete
    kernel = keras.saving.load_model(migration.out).get_layer("dense").get_weights()[0]
    assert np.isnan(kernel).sum() == 1


def test_weights_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "old.h5"
    shutil.copy(FOLDER / "tf_shape.h5", path)
    with h5py.File(path, "r+") as file:
        group = file["model_weights/dense"]
        group.attrs["weight_names"] = [b"dense/bias:0", b"dense/kernel:0"]
    with pytest.raises(ModelFileError, match=r"dense: .*named \['kernel', 'bias'\]"):
        migrate(path)

    def wider(config):
        config["config"]["layers"][-1]["config"]["units"] = 10**9

    shutil.copy(FOLDER / "tf_shape.h5", path)
    edit_config(path, wider)
    with pytest.raises(ModelFileError, match=r"dense: .*\(64, 1000000000\).*\(64, 1\)"):
        migrate(path)


def test_custom_layers_need_the_callers_word(tmp_path):
    @keras.saving.register_keras_serializable(package="tests")
    class Doubling(keras.layers.Layer):
        def call(self, inputs):
            return 2 * inputs

    try:
        inputs = keras.Input((4, 3, 5))
        x = Doubling()(multibackend_lstm.FlattenFeatures()(inputs))
        model = keras.Model(inputs, multibackend_lstm.LSTM(2)(x))
        model.save(tmp_path / "model.keras")
        with pytest.raises(ModelFileError, match=r"doubling: 'Doubling'.*custom_objects"):
            migrate(tmp_path / "model.keras")
        migration = migrate(tmp_path / "model.keras", custom_objects={"tests>Doubling": Doubling})
        x = np.ones((2, 4, 3, 5), "float32")
        np.testing.assert_array_equal(predictions(migration.model, x), predictions(model, x))
    finally:
        keras.saving.get_custom_objects().pop("tests>Doubling")
