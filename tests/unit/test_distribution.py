"""What the package adds to the engines of several devices, on one device."""

import keras
import numpy as np
import pytest

import multibackend_lstm as ml
from multibackend_lstm import distribution
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


def test_stateful_layers_are_refused_by_name():
    model = ml.build_model((5, 2, 3), units=4, stateful=True, batch_size=2)
    with pytest.raises(ValueError, match=r"layout_map: stateful layers .* Received lstm"):
        distribution.layout_map(model, keras.distribution.DeviceMesh((1, 1), ("b", "m"), ["cpu:0"]))


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
def test_a_process_alone_is_the_first(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    same_run(model, normal(6, 3), normal(6, 1), seed=0, epochs=1, checkpoint=tmp_path, verbose=0)
    assert (tmp_path / "run.json").exists()


@pytest.mark.parametrize("start", [0, 1, 15, 16, 31, 32, 33, 77])
def test_bits_from_a_start_are_those_of_the_whole(start):
    whole = array(ml.random.bits((100,), (3, 4)))
    assert_equal(array(ml.random.bits((100 - start,), (3, 4), start=start)), whole[start:])
