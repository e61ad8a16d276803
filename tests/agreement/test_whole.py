"""The whole model: a decision near a tie and a long sum accuse nobody, a wiring fault does."""

import keras
import numpy as np
import pytest
from keras import layers

from multibackend_lstm.agreement.case import case_of
from multibackend_lstm.agreement.checking import describe
from multibackend_lstm.agreement.comparison import Comparison
from multibackend_lstm.agreement.report import TargetResult
from multibackend_lstm.agreement.truth import Truth
from multibackend_lstm.agreement.whole import confirm_whole
from multibackend_lstm.runtimes.noise_floor import ROUNDING
from multibackend_lstm.runtimes.workers import REFERENCE, WorkerError


class Answering:
    """A reference that says how far decisions move a tensor."""

    def __init__(self, size):
        self.size = size

    def ask(self, request, arrays):
        assert request["flips"] > 1

    def answers(self, last):
        if self.size is None:
            raise WorkerError("it has ended")
        flips = {"kind": "weight gradient", "path": "conv/kernel", "size": self.size}
        return iter([({"flips": flips}, {}), ({"done": {}}, {})])


def confirmed(tmp_path, size, *alone, verdict="disagrees"):
    found = Comparison("weight gradient", "conv/kernel", verdict, 1000.0, floor=1e-7, rms=1e-4)
    result = TargetResult("torch@cpu", comparisons=[*alone, found])
    truth = Truth(tmp_path, "float64 on tensorflow@cpu", True, "tensorflow")
    confirm_whole([result], truth, Answering(size), {}, {})
    return result, result.comparisons[-1]


@pytest.mark.parametrize(
    ("size", "verdict"),
    [(1e-4, "agrees"), (2e-5, "suspicious"), (1e-6, "disagrees"), (0.0, "disagrees")],
)
def test_what_decisions_near_a_tie_explain_accuses_nobody(tmp_path, size, verdict):
    _, c = confirmed(tmp_path, size)
    assert (c.verdict, c.flips) == (verdict, size)
    assert c.score == pytest.approx(1e-4 / (1e-7 + size / 20))


def test_where_a_layer_alone_is_off_or_the_reference_has_ended_all_stays_as_it_was(tmp_path):
    guilty = Comparison("layer alone", "conv", "disagrees", 99.0, layer="conv")
    for size, alone in ((1e-4, [guilty]), (None, [])):
        result, c = confirmed(tmp_path, size, *alone)
        assert (c.verdict, c.score) == ("disagrees", 1000.0)
    assert "it has ended" in result.not_compared["decisions near a tie"]


def test_a_long_sum_of_a_healthy_layer_is_one_of_the_whole_model_too(tmp_path):
    long = Comparison("weight gradient alone", "conv/kernel", "agrees", 2.0, of_twins=50.0)
    assert confirmed(tmp_path, 0.0, long)[1].score == pytest.approx(100.0)
    of_update = Comparison("update alone", "norm/moving_mean", "agrees", 2.0, of_twins=50.0)
    assert confirmed(tmp_path, 0.0, of_update)[1].score == 1000.0  # gradients know nothing of it
    short = Comparison("weight gradient alone", "conv/kernel", "agrees", 19.0, of_twins=19.0)
    assert confirmed(tmp_path, 0.0, short)[1].score == 1000.0


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_the_reference_knows_what_a_tie_does(workers, activation):
    """A unit of 1e-7 beside terms of 1 falls on either side of 0; without ReLU nothing does."""
    inputs = keras.Input((2,))
    dense = layers.Dense(2, activation=activation, use_bias=False)
    model = keras.Model(inputs, layers.Dense(1)(dense(inputs)))
    dense.set_weights([np.array([[1.0, 1.0], [-1.0 - 2.0**-23, 0.5]], "float32")])
    x = np.array([[-1.0, -1.0], [1.0, 0.5]], "float32")
    case = case_of(model, x, None, ())
    described = describe(workers, case)
    request = {
        "do": "run", "source": case.source, "dtype": "float64", "structure": described["structure"],
        "training": {"steps": 1, "optimizer": "sgd", "loss": "mean_squared_error"}, "seed": 0,
        "twins": 2, "flips": 16, "rounding": ROUNDING["float32"],
        "weight_paths": case.weight_paths,
    }  # fmt: skip
    worker = workers.worker(REFERENCE, workers.reference)
    worker.ask(request, case.arrays)
    flips = {
        (h["flips"]["kind"], h["flips"]["path"]): h["flips"]["size"]
        for h, _ in worker.answers("done")
        if "flips" in h
    }
    size = flips["weight gradient", case.weight_paths[0]]
    assert (size > 1e-3) == (activation == "relu")
    assert flips["output", "0"] < 1e-6
