"""The truth can be wrong: where TensorFlow, which computes it, stands alone, it is named."""

import keras
import pytest
from keras import layers
from zoo.graded import Graded

from multibackend_lstm import agreement


def check(workers, backend, *, reference=False, size=1e-2):
    fault = Graded("all", size, backend, reference, name="graded")
    model = keras.Sequential([keras.Input((12, 16)), layers.Dense(16), fault, layers.Dense(3)])
    return agreement.check(model, workers=workers, steps=1)


def test_a_fault_of_tensorflow_in_its_truth_too_accuses_tensorflow(workers):
    report = check(workers, "tensorflow", reference=True)
    assert report.disagreeing == ["tensorflow@cpu"], report.table()
    (finding,) = report.findings
    assert (finding.group, finding.layer) == ("layers alone", "Graded")
    assert "the truth, which tensorflow computes too, is in doubt" in finding.message
    assert "jax@cpu" in finding.message
    assert "torch@cpu" in finding.message


@pytest.mark.parametrize("backend", ["jax", "torch", "tensorflow"])
def test_each_backend_in_turn_is_accused_of_its_own_fault(workers, backend):
    report = check(workers, backend, size=1e-5)
    assert report.disagreeing == [f"{backend}@cpu"], report.table()
    assert {f.layer for f in report.findings} == {"Graded"}
