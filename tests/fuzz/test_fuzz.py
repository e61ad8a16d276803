"""The fuzzer finds what is wrong, says which seed, and finds nothing in what is right."""

import functools
import json
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

import multibackend_lstm
from fuzz import cases, reference
from fuzz.cases import FLOATS, LAYERS, MaskForm, draw_structure, first_seed
from fuzz.cli import Fuzzing, chosen_seeds
from fuzz.judging import CRASH, REFUSED, RIGHT, WRONG
from fuzz.running import OWN_BIDIRECTIONAL, Runner

FUZZ = Path(__file__).parent
# On JAX and TensorFlow each structure is compiled, which takes longer than its cases.
COMPILES = keras.backend.backend() != "torch"
STRUCTURES, SEEDS = (1, 10) if COMPILES else (6, 3)


def structures_of(layer, count, wanted):
    """The first seeds of the first structures that `wanted` takes."""
    found = []
    for number in range(10_000):
        seed = first_seed(layer) + number * cases.CASES_PER_STRUCTURE
        if wanted(draw_structure(seed, OWN_BIDIRECTIONAL)):
            found.append(seed)
            if len(found) == count:
                return found
    raise AssertionError("no such structure")


def quick(structure):
    """An eager call on JAX compiles each operation by itself."""
    return not COMPILES or structure.mode == "jit"


@pytest.mark.parametrize("layer", LAYERS)
def test_layers_are_right(layer):
    runner = Runner()
    wrong = []
    seeds = structures_of(layer, STRUCTURES, quick)
    for seed in [first + number for first in seeds for number in range(SEEDS)]:
        structure, values, verdict = runner.run(seed)
        if verdict.outcome not in (RIGHT, REFUSED):
            wrong.append(f"{seed}: {verdict.reason} | {structure}, {values}")
    assert wrong == []


def plain_structures(layer, count, wanted=lambda structure: True, mode=None):
    """The first seeds of structures of a layer by itself, in float32."""

    def plain(structure):
        spec = structure.spec
        return (
            spec["class"] == layer
            and (spec["activation"], spec["recurrent_activation"]) == ("tanh", "sigmoid")
            and structure.policy == "float32"
            and structure.dtype in FLOATS
            and structure.mode == (mode or ("jit" if COMPILES else "eager"))
            and 0 not in structure.shape
            and not structure.functional
            and (structure.mask is None or structure.mask == MaskForm((), "bool"))
            and wanted(structure)
        )

    return structures_of(layer, count, plain)


def first_output(change):
    """A `call` whose first output is changed."""

    def perturb(call):
        @functools.wraps(call)
        def perturbed(self, *args, **kwargs):
            result = call(self, *args, **kwargs)
            if isinstance(result, tuple):
                return (change(result[0]), *result[1:])
            return change(result)

        return perturbed

    return perturb


def without_argument(name):
    """A `call` that takes no notice of an argument."""

    def perturb(call):
        @functools.wraps(call)
        def perturbed(self, *args, **kwargs):
            return call(self, *args, **{**kwargs, name: None})

        return perturbed

    return perturb


def forgetting(call):
    """A `call` after which the state is what it was before any."""

    @functools.wraps(call)
    def perturbed(self, *args, **kwargs):
        result = call(self, *args, **kwargs)
        self.reset_state()
        return result

    return perturbed


def raising(error):
    def perturb(call):
        @functools.wraps(call)
        def perturbed(self, *args, **kwargs):
            raise error

        return perturbed

    return perturb


def nan_in_one_entry(y):
    flat = ops.reshape(y, (-1,))
    first = ops.arange(ops.shape(flat)[0]) == 0
    return ops.reshape(ops.where(first, float("nan"), flat), ops.shape(y))


def masked(structure):
    return structure.mask is not None and structure.shape[1] > 1


def two_calls(structure):
    return structure.calls == 2 and structure.spec["return_sequences"]


def any_structure(structure):
    return True


@pytest.mark.parametrize(
    ("perturb", "wanted", "outcome", "reason"),
    [
        (first_output(lambda y: y + 1e-3), any_structure, WRONG, "off by"),
        (first_output(lambda y: ops.cast(y, "float16")), any_structure, WRONG, "float16"),
        (first_output(lambda y: y[..., None]), any_structure, WRONG, "shape"),
        (first_output(nan_in_one_entry), any_structure, WRONG, "NaN"),
        (without_argument("mask"), masked, WRONG, ""),
        (without_argument("initial_state"), lambda s: s.states, WRONG, "off by"),
        (forgetting, two_calls, WRONG, "of call 1: off by"),
        (raising(KeyError("units")), any_structure, CRASH, "KeyError"),
        (raising(ValueError("shapes do not match")), any_structure, CRASH, "do not match"),
        (raising(ValueError("lstm: no such thing")), any_structure, WRONG, "nothing documents"),
    ],
    ids=[
        "off by 1e-3",
        "dtype",
        "shape",
        "NaN",
        "mask ignored",
        "initial state ignored",
        "state forgotten",
        "KeyError",
        "ValueError of others",
        "undocumented refusal",
    ],
)
def test_a_wrong_layer_is_found_and_its_seed_reproduces(
    monkeypatch, perturb, wanted, outcome, reason
):
    seeds = [
        seed + number
        for seed in plain_structures("LSTM", 1 if COMPILES else 3, wanted)
        for number in range(5)  # some masks mask nothing
    ]
    sound = {seed: Runner().run(seed)[2].outcome for seed in seeds}
    assert set(sound.values()) <= {RIGHT, REFUSED}, sound
    monkeypatch.setattr(multibackend_lstm.LSTM, "call", perturb(multibackend_lstm.LSTM.call))
    runner = Runner()
    found = {}
    for seed in seeds:
        verdict = runner.run(seed)[2]
        if verdict.outcome == outcome and reason in verdict.reason:
            found[seed] = verdict
    assert found
    for seed, verdict in found.items():
        again = Runner().run(seed)[2]
        assert (again.outcome, again.reason) == (verdict.outcome, verdict.reason)


def test_a_wrong_mask_is_found(monkeypatch):
    def wanted(structure):
        return masked(structure) and structure.spec["return_sequences"]

    seeds = plain_structures("LSTM", 1, wanted, mode="eager")
    monkeypatch.setattr(
        multibackend_lstm.LSTM,
        "compute_mask",
        lambda self, x, mask=None: ops.ones(ops.shape(x)[:2], dtype="bool"),
    )
    verdicts = [Runner().run(seed + number)[2] for seed in seeds for number in range(5)]
    assert any(v.outcome == WRONG and "mask" in v.reason for v in verdicts)


@pytest.mark.parametrize("factor", [1.01, -1.0])
def test_a_wrong_gradient_is_found(monkeypatch, factor):
    """The outputs stay as they are."""

    def wrong_gradient(y):
        return factor * y + ops.stop_gradient((1 - factor) * y)

    seeds = plain_structures("LSTM", 1, lambda s: s.gradient)
    call = first_output(wrong_gradient)(multibackend_lstm.LSTM.call)
    monkeypatch.setattr(multibackend_lstm.LSTM, "call", call)
    verdicts = [Runner().run(seed + number)[2] for seed in seeds for number in range(2)]
    assert any(v.outcome == WRONG and "gradient" in v.reason for v in verdicts), verdicts


def test_a_warning_is_found(monkeypatch):
    def warn(y):
        import warnings

        warnings.warn("the mask was lost", stacklevel=1)
        return y

    (seed,) = plain_structures("GRU", 1)
    call = first_output(warn)(multibackend_lstm.GRU.call)
    monkeypatch.setattr(multibackend_lstm.GRU, "call", call)
    verdict = Runner().run(seed)[2]
    assert (verdict.outcome, verdict.reason) == (WRONG, "warned: the mask was lost")


def test_seeds_draw_everything_at_large():
    structures = [
        draw_structure(first_seed(layer) + 10 * number, own_bidirectional=True)
        for layer in cases.RECURRENT
        for number in range(500)
    ]
    assert {len(s.shape) for s in structures} >= {3, 4, 5}
    assert {s.dtype for s in structures} == {*cases.FLOATS, *cases.INTEGERS}
    assert {s.policy for s in structures} == {*cases.COMPUTE_DTYPES}
    assert {s.mode for s in structures} == {"eager", "jit", "predict"}
    assert {s.shape[0] for s in structures} >= {0, 1, 2}
    assert {s.shape[1] for s in structures} >= {0, 1, 5}
    assert {s.lengths for s in structures} == {None, "int8", "uint8", "int32", "int64"}
    masks = [s.mask for s in structures if s.mask]
    assert {len(m.axes) for m in masks} >= {0, 1, 2}
    assert any(m.axes == (1,) and s.shape[2] > 1 for s in structures if (m := s.mask))
    classes = {part["class"] for s in structures for part in cases.parts(s.spec)}
    assert classes >= {"Bidirectional", "TimeDistributed", "Channelwise", "Stack"}
    for option in ("stateful", "unroll", "go_backwards", "zero_output_for_mask", "use_bias"):
        drawn = {part[option] for s in structures for part in cases.parts(s.spec) if option in part}
        assert drawn == {True, False}, option


def test_a_seed_gives_the_same_case_again():
    for seed in (first_seed("LSTM") + 123, first_seed("ConvLSTM2D") + 77):
        first, second = (draw_structure(seed, True) for _ in range(2))
        assert first == second
        for one, other in zip(
            *(cases.draw_values(first, seed).calls for _ in range(2)), strict=True
        ):
            np.testing.assert_array_equal(one.x.astype("float64"), other.x.astype("float64"))


def test_the_complex_step_is_the_derivative():
    rng = np.random.default_rng(0)
    for name, activation in reference.ACTIVATIONS.items():
        x, direction = rng.normal(size=(2, 3, 4))
        exact = activation(x + 1e-30j * direction).imag / 1e-30
        step = 1e-6 * direction
        difference = (activation(x + step) - activation(x - step)) / 2e-6
        np.testing.assert_allclose(exact, difference, atol=1e-8, err_msg=name)


def test_cases_are_shared_among_layers():
    seeds = chosen_seeds(list(LAYERS), 200, start=0)
    counts = dict.fromkeys(LAYERS, 0)
    for group in seeds:
        assert len({seed // cases.CASES_PER_STRUCTURE for seed in group}) == 1
        counts[LAYERS[group[0] // cases.SEEDS_PER_LAYER - 1]] += len(group)
    assert counts == {layer: 100 if layer in cases.RECURRENT else 20 for layer in LAYERS}


def test_a_process_that_dies_is_a_crash(monkeypatch):
    class Dying:
        def __init__(self, backend):
            self.versions = {"backend": backend}
            self.left = 1

        def run(self, seed):
            if not self.left:
                raise RuntimeError("the process ended with status -11")
            self.left -= 1
            return {"seed": seed, "outcome": RIGHT}

        def stop(self):
            pass

    monkeypatch.setattr("fuzz.cli.Worker", Dying)
    results = list(Fuzzing("torch", [[10_000_000, 10_000_001, 10_000_002]], workers=1))
    assert [result["outcome"] for result in results] == [RIGHT, CRASH, RIGHT]
    assert results[1]["reason"] == "the process ended with status -11"


def test_the_command(tmp_path):
    """A worker, a table, a file, an exit status."""
    path = tmp_path / "results.json"
    arguments = ["--backend", keras.backend.backend(), "--layers", "flattenfeatures"]
    done = subprocess.run(
        [
            sys.executable,
            str(FUZZ),
            *arguments,
            "--cases",
            "200",
            "--workers",
            "1",
            "--json",
            str(path),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    written = json.loads(path.read_text(encoding="utf-8"))
    failed = sum(r["outcome"] in (WRONG, CRASH) for r in written["results"])
    assert len(written["results"]) == 20
    assert written["versions"]["backend"] == keras.backend.backend()
    assert done.returncode == int(failed > 0), done.stdout
    assert "20 cases" in done.stdout
