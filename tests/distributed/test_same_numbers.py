"""Each engine on 1, 2 and 4 devices or processes: the losses and weights of one device.

The models have dropout and lengths, and the last batch of an epoch is one that the devices do not
divide. The floor is that of `agree`: how far perturbed twins of the run on one device move.
"""

import numpy as np
import pytest

from distributed import engines
from multibackend_lstm import SOLUTIONS
from multibackend_lstm.agreement.comparison import AGREES, DISAGREES, compare
from multibackend_lstm.environment import installed_backends

STEPS, TWINS = 50, 4
ENGINES = {
    "jax_data": (1, 2, 4),
    "jax_model": (2, 4),
    "torch_ddp": (1, 2, 4),
    "tensorflow_mirrored": (1, 2, 4),
    "jax_processes": (2,),
}  # without tensorflow_workers, where `fit` does not run
RUNS = [(engine, devices) for engine, counts in ENGINES.items() for devices in counts]


def needs(engine):
    """Skip where the engine's backend is not installed."""
    backend = engine.partition("_")[0]
    if backend not in installed_backends():
        pytest.skip(f"needs {backend}")
    return backend


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    """Arrays of the run on one device with its twins, by backend and what else is asked for."""
    found = {}

    def arrays(backend, solutions=tuple(SOLUTIONS), **arguments):
        key = (backend, *solutions, *arguments.items())
        if key not in found:
            out = tmp_path_factory.mktemp(backend) / "one.npz"
            path = engines.run(
                backend, 1, out, solutions=[*solutions], steps=STEPS, twins=TWINS, **arguments
            )
            with np.load(path) as file:
                found[key] = dict(file)
        return found[key]

    return arrays


def verdicts(path, exact):
    """A comparison of each tensor of a run with the one of one device."""
    found = []
    with np.load(path) as file:
        for name in [name.removesuffix("/values") for name in exact if name.endswith("/values")]:
            values, truth = file[f"{name}/values"], exact[f"{name}/values"]
            if truth.dtype.kind != "f":
                np.testing.assert_array_equal(values, truth)
                continue
            kind = name.split("/")[1].split()[0]
            floor = float(exact[f"{name}/floor"])
            found.append(compare(kind, name, values, truth, floor=floor, exact=False))
    assert found
    return found


def disagreeing(path, exact):
    """What is further from the run on one device than rounding explains."""
    return {c.path: c.score for c in verdicts(path, exact) if c.verdict != AGREES}


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "devices"), RUNS)
def test_losses_and_weights_are_those_of_one_device(engine, devices, one_device, tmp_path):
    exact = one_device(needs(engine))
    out = tmp_path / "out.npz"
    path = engines.run(engine, devices, out, solutions=[*SOLUTIONS], steps=STEPS)
    assert disagreeing(path, exact) == {}


BATCH_NORM = {"solutions": ("batch_norm",), "drop_last": True}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "synchronized", "same"),
    [
        ("jax_data", False, True),  # the statistics of all rows, without being asked
        ("torch_ddp", False, False),
        ("tensorflow_mirrored", True, True),
        ("tensorflow_mirrored", False, False),
    ],
)
def test_batch_normalization(engine, synchronized, same, one_device, tmp_path):
    arguments = {**BATCH_NORM, "synchronized": synchronized}
    exact = one_device(needs(engine), **arguments)
    arguments["solutions"] = ["batch_norm"]
    path = engines.run(engine, 2, tmp_path / "out.npz", steps=STEPS, **arguments)
    assert (disagreeing(path, exact) == {}) == same


@pytest.mark.slow
def test_a_mean_of_the_means_of_unequal_parts_is_noticed(one_device, tmp_path):
    needs("tensorflow")
    exact = one_device("tensorflow")
    path = engines.run(
        "tensorflow_mirrored", 2, tmp_path / "out.npz", solutions=["reshape"], steps=4,
        as_it_is=True,
    )  # fmt: skip
    chosen = {
        name: value for name, value in exact.items()
        if name.split("/")[0] == "reshape" and name.split("/")[1] in ("loss 0", "loss 3")
    }  # fmt: skip
    first, partial = sorted(verdicts(path, chosen), key=lambda c: c.path)
    assert (first.verdict, partial.verdict) == (AGREES, DISAGREES)


#: Outputs by name with a mask and weights, a sum for a loss, a model with a `call` of its own.
OTHERS = ("outputs", "sum", "own_call")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "devices", "solutions", "drop_last"),
    [
        # A process without a row, and one without a valid step.
        ("torch_ddp", 4, OTHERS, False),
        ("jax_data", 4, OTHERS, True),
        ("jax_model", 2, ("outputs",), True),
        ("jax_processes", 2, OTHERS, True),
        ("tensorflow_mirrored", 2, ("sum", "own_call"), True),
    ],
)
def test_other_losses_and_models(engine, devices, solutions, drop_last, one_device, tmp_path):
    arguments = {"drop_last": drop_last, "all_logs": True}
    exact = one_device(needs(engine), solutions, **arguments)
    out = tmp_path / "out.npz"
    path = engines.run(engine, devices, out, solutions=[*solutions], steps=STEPS, **arguments)
    assert disagreeing(path, exact) == {}


def trained(engine, devices, out, **arguments):
    """Weights and history of `same_run`."""
    path = engines.run(engine, devices, out, solutions=["reshape"], **arguments)
    with np.load(path) as file:
        return {name.split("/")[1]: value for name, value in file.items()}


def assert_same_training(found, expected, engine):
    """Of JAX and TensorFlow without what rows count for that fill a batch up."""
    filled = () if engine == "torch_ddp" else ("loss", "accuracy", "val_accuracy")
    assert found.keys() == expected.keys()
    for name in expected.keys() - {*filled}:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-6, err_msg=name)


SEVERAL = [("jax_data", 4), ("jax_processes", 2), ("torch_ddp", 2), ("tensorflow_mirrored", 2)]


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "devices"), SEVERAL)
def test_same_run_is_that_of_one_device(engine, devices, tmp_path):
    """With weights of classes, and 7 cases for validation, which devices do not divide."""
    arguments = {"epochs": 3, "validation": 7, "class_weight": [1.0, 0.5, 2.0, 1.5]}
    expected = trained(needs(engine), 1, tmp_path / "one.npz", **arguments)
    found = trained(engine, devices, tmp_path / "several.npz", **arguments)
    assert "val_loss" in found
    assert_same_training(found, expected, engine)


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "devices"), SEVERAL)
def test_a_training_goes_on_on_other_devices(engine, devices, tmp_path):
    backend = needs(engine)
    expected = trained(backend, 1, tmp_path / "unbroken.npz", epochs=3)
    for epochs, (name, count) in enumerate([(engine, devices), (backend, 1), (engine, devices)]):
        found = trained(
            name, count, tmp_path / f"{epochs}.npz", epochs=epochs + 1,
            checkpoint=str(tmp_path / "checkpoint"),
        )  # fmt: skip
    assert_same_training(found, expected, engine)
