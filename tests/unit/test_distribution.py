"""What the package adds to the engines of several devices, on one device."""

import keras
import numpy as np
import pytest

import multibackend_lstm as ml
from multibackend_lstm import backends, distribution
from multibackend_lstm.agreement import initialize
from multibackend_lstm.training import same_run
from unit.tools import assert_equal, needs_gradients, normal

array = keras.ops.convert_to_numpy
ones = {"kernel_initializer": "ones", "recurrent_initializer": "ones"}
LAYERS = {
    "Dropout": (lambda: ml.Dropout(0.5, seed=1), (8, 5, 3)),
    "noise_shape": (lambda: ml.Dropout(0.5, (None, 1, None), seed=1), (8, 5, 3)),
    "one mask for all": (lambda: ml.Dropout(0.5, (1, None, None), seed=1), (8, 5, 3)),
    "SpatialDropout1D": (lambda: ml.SpatialDropout1D(0.5, seed=1), (8, 5, 3)),
    "GaussianNoise": (lambda: ml.GaussianNoise(0.5, seed=1), (8, 5, 3)),
    "GaussianDropout": (lambda: ml.GaussianDropout(0.5, seed=1), (8, 5, 3)),
    "LSTM": (lambda: ml.LSTM(4, dropout=0.5, recurrent_dropout=0.3, seed=1, **ones), (8, 5, 3)),
    "ConvLSTM1D": (lambda: ml.ConvLSTM1D(2, 2, dropout=0.5, seed=1, **ones), (8, 3, 4, 2)),
    "TimeDistributed": (lambda: ml.TimeDistributed(ml.Dropout(0.5, seed=1)), (8, 5, 3)),
    "Channelwise": (lambda: ml.Channelwise(ml.LSTM(4, dropout=0.5, seed=1, **ones)), (8, 5, 3, 2)),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize(("first", "count"), [(0, 3), (3, 5), (7, 1)])
def test_rows_draw_what_they_draw_in_the_whole_batch(name, first, count):
    make, shape = LAYERS[name]
    x = normal(*shape)
    whole = array(make()(x, training=True))
    with distribution.global_rows(first, count):
        part = array(make()(x[first : first + count], training=True))
    alone = array(make()(x[first : first + count], training=True))
    expected = whole[first : first + count]
    np.testing.assert_allclose(part, expected, rtol=1e-5, atol=1e-6)  # of matrix products
    assert np.array_equal(part == 0, expected == 0)
    is_same = np.allclose(alone, expected, rtol=1e-5, atol=1e-6)
    assert is_same == (first == 0 or name == "one mask for all")


def drop(first, count, **arguments):
    with distribution.global_rows(first, count):
        ml.Dropout(0.5, name="drop", **arguments)(np.ones((4, 3), "float32"), training=True)


def test_rows_that_do_not_fit():
    with pytest.raises(ValueError, match="`first` must be 0 or more, and `count` 1 or more"):
        drop(-1, 2)
    with pytest.raises(ValueError, match=r"drop: the first axis must hold the 3 rows.*\(4, 3\)"):
        drop(2, 3)
    with pytest.raises(ValueError, match=r"`noise_shape` must begin with None or 1.*\(4, 3\)"):
        drop(4, 4, noise_shape=(4, 3))


@needs_gradients
@pytest.mark.parametrize("weighted", [False, True])
def test_even_batches_have_the_loss_and_the_gradient_of_the_batch(weighted):
    x, y = normal(7, 3), normal(7, 1)
    weights = np.linspace(0.5, 2, 7).astype("float32") if weighted else None

    def trained(*data):
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
        model.set_weights([np.ones((3, 1)), np.zeros(1)])
        model.compile("sgd", "mse")
        loss = model.train_on_batch(*data)
        return [loss, *model.get_weights()]

    x_even, y_even, weights_even = distribution.even_batches(x, y, 8, 4, weights)
    assert x_even.shape == (8, 3)
    assert weights_even[-1] == 0
    for found, expected in zip(
        trained(x_even, y_even, weights_even), trained(x, y, weights), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_even_batches_leave_whole_ones_alone():
    x, y = {"a": normal(8, 3)}, normal(8, 1)
    assert distribution.even_batches(x, y, 4, 4) == (x, y, None)
    # 10 cases in batches of 6: the last one has 4, which 2 devices divide and 3 do not.
    assert len(distribution.even_batches(normal(10, 3), normal(10, 1), 6, 2)[0]) == 10
    assert len(distribution.even_batches(normal(10, 3), normal(10, 1), 6, 3)[0]) == 12
    with pytest.raises(ValueError, match=r"`batch_size` must be a multiple of the 4 replicas"):
        distribution.even_batches(x, y, 6, 4)


@needs_gradients
def test_even_batches_of_outputs_with_weights_of_their_own():
    x, y = normal(7, 3), {"a": normal(7, 1), "b": normal(7, 2)}
    weights = {"a": np.linspace(0.5, 2, 7), "b": np.ones(7)}
    even = distribution.even_batches(x, y, 4, 4, weights)
    assert {name: len(a) for name, a in even[2].items()} == {"a": 8, "b": 8}
    np.testing.assert_allclose(even[2]["b"], [1, 1, 1, 1, 4 / 3, 4 / 3, 4 / 3, 0], rtol=1e-6)


@pytest.fixture
def two_replicas(monkeypatch):
    """As on two devices, of which nothing here computes."""
    monkeypatch.setattr(type(backends.active()), "replicas", lambda self: 2)


@pytest.fixture
def one_process():
    """A process group of this process alone, which is enough for all code of `data_parallel`."""
    torch = pytest.importorskip("torch")
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@needs_gradients
def test_the_loss_of_a_validation_is_the_mean_of_its_cases(monkeypatch, backend, request):
    if backend == "torch":
        pytest.skip("each process validates on all cases")
    request.getfixturevalue("two_replicas")
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    x, y = normal(7, 3), normal(7, 1)
    expected = model.evaluate(x, y, batch_size=4, verbose=0)
    with monkeypatch.context() as within:
        within.setattr(keras.Model, "distribute_strategy", None, raising=False)
        *even, size = distribution.for_fit("test", model, x, y, None, 4, validation=True)
    assert len(even[0]) == 8
    found = model.evaluate(even[0], even[1], sample_weight=even[2], batch_size=size, verbose=0)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@needs_gradients
@pytest.mark.parametrize("steps", [4, 5])  # 4 are as many as cases in the batch
def test_a_batch_of_outputs_for_each_step(steps, monkeypatch, backend, request):
    """Where weights `(cases,)` would be those of the steps."""
    if backend != "jax":
        pytest.skip("TensorFlow takes another mean, torch fills nothing up")
    x, y = normal(3, steps, 3), normal(3, steps, 1)

    def trained(prepare):
        model = keras.Sequential([keras.Input((steps, 3)), keras.layers.Dense(1)])
        initialize(model, 0)
        model.compile("sgd", "mse")
        *given, weights, _ = prepare(model)
        return [model.train_on_batch(*given, weights), *model.get_weights()]

    expected = trained(lambda model: (x, y, None, 4))
    request.getfixturevalue("two_replicas")
    found = trained(lambda model: distribution.for_fit("test", model, x, y, None, 4))
    for value, truth in zip(found, expected, strict=True):
        np.testing.assert_allclose(value, truth, rtol=1e-5, atol=1e-6)


class Holder(keras.Layer):
    """A layer of one's own with another one somewhere inside."""

    def __init__(self, layer):
        super().__init__()
        self.held = {"here": [layer]}

    def build(self, input_shape):
        self.held["here"][0].build(input_shape)

    def call(self, x):
        return self.held["here"][0](x)


def lstm(module=ml, name="keeps"):
    return module.LSTM(2, stateful=True, return_sequences=True, name=name)


STATEFUL = {
    "LSTM": lstm,
    "GRU of Keras": lambda: keras.layers.GRU(2, stateful=True, name="keeps"),
    "RNN": lambda: keras.layers.RNN(keras.layers.LSTMCell(2), stateful=True, name="keeps"),
    "Bidirectional": lambda: ml.Bidirectional(lstm()),
    "Bidirectional of Keras": lambda: keras.layers.Bidirectional(lstm(keras.layers)),
    "TimeDistributed of Keras": lambda: keras.Sequential(
        [keras.layers.Reshape((5, 3, 1)), keras.layers.TimeDistributed(lstm())]
    ),
    "Channelwise": lambda: keras.Sequential(
        [keras.layers.Reshape((5, 3, 1)), ml.Channelwise(lstm())]
    ),
    "ConvLSTM1D": lambda: keras.Sequential(
        [keras.layers.Reshape((5, 3, 1)), ml.ConvLSTM1D(2, 2, stateful=True, name="keeps")]
    ),
    "a model in a model": lambda: keras.Sequential([keras.Sequential([lstm()])]),
    "a layer in a layer": lambda: Holder(lstm()),
    "a wrapper in a layer": lambda: Holder(ml.Bidirectional(lstm())),
}


@needs_gradients
@pytest.mark.parametrize("name", STATEFUL)
def test_stateful_layers_are_refused_by_name(name, backend, request):
    model = keras.Sequential([keras.Input((5, 3), batch_size=2), STATEFUL[name]()])
    model.compile("sgd", "mse")
    message = r"{}: stateful layers .* Received .*keeps.*\. Train with stateful=False"
    mesh = keras.distribution.DeviceMesh((1, 1), ("b", "m"), ["cpu:0"])
    with pytest.raises(ValueError, match=message.format("layout_map")):
        distribution.layout_map(model, mesh)
    if backend == "torch":
        request.getfixturevalue("one_process")
        with pytest.raises(ValueError, match=message.format("data_parallel")):
            distribution.data_parallel(model)
    request.getfixturevalue("two_replicas")
    before = model.get_weights()
    with pytest.raises(ValueError, match=message.format("same_run")):
        same_run(model, normal(4, 5, 3), normal(4, 1), seed=0, epochs=1, batch_size=2)
    for found, expected in zip(model.get_weights(), before, strict=True):
        assert_equal(found, expected)


def dense(**options):
    return keras.Sequential(
        [keras.Input((5, 3)), keras.layers.Flatten(), keras.layers.Dense(1, name="out", **options)]
    )


def masked():
    return keras.Sequential(
        [keras.Input((5, 3)), keras.layers.Masking(), ml.LSTM(1, return_sequences=True)]
    )


mse = keras.losses.MeanSquaredError
# A model, its loss, and whether it is refused: on TensorFlow, where a batch is filled up, where
# TensorFlow fills it up.
LOSSES = {
    "mean": (dense, "mse", False, False, False),
    "regularized": (lambda: dense(kernel_regularizer="l2"), mse(), False, False, False),
    "mask": (masked, "mse", True, True, True),
    "sum": (dense, mse(reduction="sum"), False, True, True),
    "weighted": (dense, mse(reduction="mean_with_sample_weight"), True, False, True),
    "none": (dense, mse(reduction=None), True, True, True),
    "activity": (lambda: dense(activity_regularizer="l2"), "mse", False, True, True),
}


@pytest.mark.parametrize("rows", [4, 7])
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.usefixtures("two_replicas")
def test_losses_that_are_others_on_several_devices(name, rows, backend, monkeypatch):
    if backend not in ("jax", "tensorflow"):
        pytest.skip("of engines that compute the loss")
    monkeypatch.setattr(keras.Model, "distribute_strategy", None, raising=False)
    make, loss, *refused = LOSSES[name]
    model = make()
    model.compile("sgd", loss)
    y = normal(rows, 5, 1) if make is masked else normal(rows, 1)
    is_refused = refused[(rows == 7) + (backend == "tensorflow" and rows == 7)]
    if backend == "jax" and rows == 4:
        is_refused = False
    if not is_refused:
        distribution.for_fit("test", model, normal(rows, 5, 3), y, None, 4)
        return
    with pytest.raises(ValueError, match=r"^test: .*is not what one device computes\. "):
        distribution.for_fit("test", model, normal(rows, 5, 3), y, None, 4)


def outputs_by_name():
    x = keras.Input((5, 3), name="x")
    h = ml.LSTM(4, return_sequences=True, kernel_regularizer="l2")(keras.layers.Masking()(x))
    steps, last = keras.layers.Dense(2, name="steps")(h), keras.layers.Dense(1, name="last")(h)
    model = keras.Model({"x": x}, {"steps": steps, "last": last})
    model.compile(
        keras.optimizers.Adam(global_clipnorm=0.1),
        {"steps": "mse", "last": "mae"},
        weighted_metrics={"steps": ["mae"], "last": ["mse"]},
    )
    return model


def test_data_parallel_trains_as_fit_does(backend, request):
    if backend != "torch":
        pytest.skip("about torch")
    request.getfixturevalue("one_process")
    x, y = normal(6, 5, 3), {"steps": normal(6, 5, 2), "last": normal(6, 5, 1)}
    x[1, 2:] = x[2] = 0
    weights = {"steps": np.linspace(1, 2, 30).reshape(6, 5), "last": np.ones((6, 5))}
    found = []
    for prepare in (distribution.data_parallel, lambda model: None):
        model = outputs_by_name()
        initialize(model, 0)
        prepare(model)
        history = model.fit(
            {"x": x}, y, sample_weight=weights, batch_size=4, epochs=2, shuffle=False, verbose=0
        )
        found.append((history.history, model.get_weights()))
    assert found[0][0] == found[1][0]
    for value, expected in zip(found[0][1], found[1][1], strict=True):
        assert_equal(value, expected)


def test_data_parallel_refuses_losses_that_layers_add(backend, request):
    if backend != "torch":
        pytest.skip("about torch")
    request.getfixturevalue("one_process")
    model = dense(activity_regularizer="l2", kernel_regularizer="l2")
    model.compile("sgd", "mse")
    distribution.data_parallel(model)
    with pytest.raises(ValueError, match=r"losses that layers add .* Received .*out\. Leave them"):
        model.fit(normal(4, 5, 3), normal(4, 1), verbose=0)


@pytest.mark.parametrize("solution", ml.SOLUTIONS)
def test_layout_map_divides_what_the_devices_divide(solution):
    shape = (5, 6) if solution == "pre_reshape" else (5, 2, 3)
    model = ml.build_model(shape, solution, units=(4, 6), outputs=3, task="multiclass")
    devices = [f"cpu:{number}" for number in range(4)]
    mesh = keras.distribution.DeviceMesh((1, 4), ("batch", "model"), devices)
    plan = distribution.layout_map(model, mesh)
    # Another model like it, whose layers Keras gives other numbers.
    again = ml.build_model(shape, solution, units=(4, 6), outputs=3, task="multiclass")
    divided = [w for w in again.trainable_variables if plan[w.path] is not None]
    assert divided
    for weight in again.trainable_variables:
        layout = plan[weight.path]
        if layout is None:
            continue
        assert layout.axes == (*[None] * (len(weight.shape) - 1), "model")
        assert weight.shape[-1] % 4 == 0
    assert all(plan[w.path] is None for w in again.trainable_variables if w.shape[-1] == 3)


def test_layout_map_refuses_an_axis_that_is_not_there():
    mesh = keras.distribution.DeviceMesh((1,), ("batch",), ["cpu:0"])
    model = ml.build_model((5, 2, 3), units=4)
    with pytest.raises(ValueError, match=r"`axis` must be one of \['batch'\]. Received 'model'"):
        distribution.layout_map(model, mesh)
    with pytest.raises(ValueError, match="`model` must be built"):
        distribution.layout_map(keras.Sequential([keras.layers.Dense(2)]), mesh)


def test_data_parallel_says_what_it_needs(backend):
    model = ml.build_model((5, 2, 3), units=4)
    rule = "there is no process group" if backend == "torch" else "it is for the backend torch"
    with pytest.raises(ValueError, match=rule):
        distribution.data_parallel(model)


@needs_gradients
def test_only_the_first_process_writes(tmp_path, monkeypatch):
    def run(epochs):
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        x, y = normal(6, 3), normal(6, 1)
        return same_run(model, x, y, seed=0, epochs=epochs, checkpoint=tmp_path / "run", verbose=0)

    active = type(backends.active())
    monkeypatch.setattr(active, "replicas", lambda self: 1)
    monkeypatch.setattr(active, "process", lambda self: (1, 2))
    run(1)
    assert not (tmp_path / "run").exists()
    monkeypatch.undo()
    run(1)
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    assert "run.json" in before
    monkeypatch.setattr(active, "replicas", lambda self: 1)
    monkeypatch.setattr(active, "process", lambda self: (1, 2))
    assert len(run(2)["loss"]) == 2  # it reads, and goes on
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


@pytest.mark.parametrize("start", [0, 1, 15, 16, 31, 32, 33, 77])
def test_bits_from_a_start_are_those_of_the_whole(start):
    whole = array(ml.random.bits((100,), (3, 4)))
    assert_equal(array(ml.random.bits((100 - start,), (3, 4), start=start)), whole[start:])
