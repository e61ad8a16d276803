"""A model saved on one backend loads on every other, and predicts the same there.

The models are drawn at random, by a seeded generator rather than hypothesis: starting a backend
takes seconds, so that all models go to one process of each.
"""

import keras
import numpy as np
import pytest

from multibackend_lstm import (
    SOLUTIONS,
    Channelwise,
    FlattenFeatures,
    TimeDistributed,
    TimeDistributedConv,
    build_model,
)
from multibackend_lstm.agreement.predict import predict_on
from multibackend_lstm.environment import installed_backends

HERE = keras.backend.backend()
# NumPy, which is always there, runs the layers' portable code.
OTHERS = [name for name in [*installed_backends(), "numpy"] if name != HERE]
SEEDS = range(3)


def tolerance(model):
    """1e-6, and 5e-6 where a convolution sums in another order on each backend."""
    kinds = (TimeDistributedConv, keras.layers.ConvLSTM1D, keras.layers.Conv1D)
    layers = [*model.layers, *(getattr(layer, "layer", None) for layer in model.layers)]
    layers += [getattr(layer, "forward_layer", None) for layer in layers]
    return 5e-6 if any(isinstance(layer, kinds) for layer in layers) else 1e-6


def draw_shape(rng, axes):
    """A shape (time, *axes, features), time known or not."""
    time = None if rng.random() < 0.5 else int(rng.integers(1, 7))
    return (time, *(int(size) for size in rng.integers(2, 5, size=axes + 1)))


def draw_solution(solution, rng):
    axes = int(rng.integers(1, 4)) if solution in ("conv", "reshape", "channelwise") else 1
    return build_model(
        draw_shape(rng, axes),
        solution,
        units=(5, 3) if rng.random() < 0.5 else 4,
        bidirectional=bool(rng.random() < 0.5),
        masking=None if rng.random() < 0.5 else 0.0,
        outputs=3,
        task=str(rng.choice(["regression", "binary", "multiclass"])),
    )


def draw_layer(name, rng):
    axes = int(rng.integers(1, 4))
    shape = draw_shape(rng, axes)
    sequences = bool(rng.random() < 0.5)
    if name == "flatten_features":
        layer = FlattenFeatures(mask_reduction=str(rng.choice(["any", "all"])))
    elif name == "time_distributed":
        layer = TimeDistributed(
            keras.layers.Dense(3, activation="tanh"),
            steps_per_call=None if rng.random() < 0.5 else 2,
        )
    elif name == "time_distributed_conv":
        layer = TimeDistributedConv(
            (4, 3),
            2,
            padding="same",
            activation="relu",
            normalization=rng.choice([None, "batch", "layer"]),
            pool_size=2,
            pool=str(rng.choice(["max", "average"])),
            reduce=str(rng.choice(["flatten", "average", "max"])),
        )
    else:
        layer = Channelwise(
            keras.layers.GRU(3, return_sequences=sequences),
            merge=str(rng.choice(["concat", "sum", "average", "max", "stack"])),
        )
    inputs = keras.Input(shape)
    masked = keras.layers.Masking()(inputs) if name != "time_distributed" else inputs
    outputs = layer(masked)
    if len(outputs.shape) == 3:
        outputs = keras.layers.LSTM(3)(outputs)  # reads the mask that the layer passes on
    return keras.Model(inputs, outputs)


DRAWS = {
    **{solution: (draw_solution, solution) for solution in SOLUTIONS},
    **{
        name: (draw_layer, name)
        for name in (
            "flatten_features",
            "time_distributed",
            "time_distributed_conv",
            "channelwise_layer",
        )
    },
}


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """Models, inputs and predictions here, and the predictions of each other backend."""
    folder = tmp_path_factory.mktemp("models")
    names, models, paths, inputs = [], [], [], []
    for name, (draw, argument) in DRAWS.items():
        for seed in SEEDS:
            rng = np.random.default_rng([seed, len(name)])
            keras.utils.set_random_seed(seed)
            model = draw(argument, rng)
            time = model.input_shape[1] or 5
            x = rng.normal(size=(3, time, *model.input_shape[2:])).astype("float32")
            x[0, time // 2 :] = 0  # what `masking` and Masking take for missing
            paths.append(folder / f"{name}-{seed}.keras")
            model.save(paths[-1])
            names.append(f"{name}-{seed}")
            models.append(model)
            inputs.append(x)
    here = [model.predict(x, verbose=0) for model, x in zip(models, inputs, strict=True)]
    there = {other: predict_on(other, paths, inputs) for other in OTHERS}
    return names, models, here, there


def test_there_is_another_backend_to_compare_with():
    assert len(OTHERS) > 1, "these tests compare backends: install a second one"


@pytest.mark.parametrize("other", OTHERS)
def test_saved_models_predict_the_same_on_another_backend(cases, other):
    names, models, here, there = cases
    failures = []
    for name, model, expected, prediction in zip(names, models, here, there[other], strict=True):
        if prediction.values is None:
            failures.append(f"{name}: {prediction.error}")
            continue
        difference = np.abs(prediction.values - expected).max()
        if not difference <= tolerance(model):  # a NaN fails
            failures.append(f"{name}: {difference:.1e} > {tolerance(model):.0e}")
    assert not failures, "\n".join(failures)


def test_a_difference_would_be_seen(cases, tmp_path):
    """The comparison itself: another weight gives another prediction."""
    model = cases[1][0]
    changed = keras.models.clone_model(model)
    changed.set_weights([w + 1e-3 for w in model.get_weights()])
    path = tmp_path / "changed.keras"
    changed.save(path)
    x = np.ones((3, *[size or 5 for size in model.input_shape[1:]]), "float32")
    (prediction,) = predict_on(HERE, [path], [x])
    assert np.abs(prediction.values - model.predict(x, verbose=0)).max() > tolerance(model)
