"""`agree` finds what is wrong, blames who is wrong, and names the layer; and nothing else.

The faults are those of faults.py, injected into one worker. Then come defects that Keras 3.15.1
really has on CPUs, which must be found without being told of.
"""

import json
from pathlib import Path

import keras
import numpy as np
import pytest
from packaging.version import Version
from zoo import faults, random_models

from multibackend_lstm.agreement import check
from multibackend_lstm.agreement.comparison import AGREES_UP_TO, DISAGREES, DISAGREES_ABOVE, GROUPS
from multibackend_lstm.agreement.report import FAILED

# A part of CI, beside `nox -s tests`, which is to take minutes.
pytestmark = pytest.mark.slow

L = keras.layers
TARGETS = ("jax@cpu", "torch@cpu", "tensorflow@cpu")
KERAS = Version(keras.__version__)


def found(report, target, *verdicts):
    """The findings of a target, in the order in which a fault spreads."""
    return [f for f in report.findings if f.target == target and f.verdict in verdicts]


@pytest.mark.parametrize("name", faults.FAULTS)
def test_a_fault_is_found_blamed_and_located(workers, name):
    fault = faults.FAULTS[name]
    report = faults.checked(fault, workers)
    assert not report.agrees
    assert {f.target for f in report.findings} == {fault.target}, report.table()
    first = found(report, fault.target, DISAGREES)[0]
    assert (first.group, first.layer) == (fault.group, fault.layer), first.message
    # Whatever comes before the fault is as it was.
    for group in list(GROUPS)[: list(GROUPS).index(fault.group)]:
        (result,) = [r for r in report.results if r.target == fault.target]
        assert all(c.score <= AGREES_UP_TO for c in result.group(group))


@pytest.mark.parametrize("name", faults.FAULTS)
def test_the_same_model_agrees_without_the_fault(workers, name):
    """So that the finding is the fault's, and the fault is undone."""
    report = faults.compared(faults.FAULTS[name], workers)
    assert not report.findings, report.table()
    assert any(result.comparisons for result in report.results)


def test_every_fault_is_undone_by_name():
    """`restore` puts back the very objects that `inject` took away."""
    before = keras.layers.LSTMCell._compute_carry_and_output_fused
    faults.inject("forget bias dropped")
    assert keras.layers.LSTMCell._compute_carry_and_output_fused is not before
    faults.restore()
    assert keras.layers.LSTMCell._compute_carry_and_output_fused is before


def test_there_are_faults_in_every_target_and_group():
    assert len(faults.FAULTS) >= 19
    assert {fault.target for fault in faults.FAULTS.values()} == set(TARGETS)
    assert {fault.group for fault in faults.FAULTS.values()} == {"layers alone", "prediction"}


@pytest.mark.filterwarnings("ignore:.*destroy the mask")
def test_healthy_models_agree_everywhere(workers):
    """A sample with numbers that the calibration has not seen; its page has 300 more."""
    for seed, index in [(3, index) for index in range(20)]:
        report = random_models.draw(seed, index).checked(workers)
        assert not report.findings, f"model {seed}/{index}\n{report.table()}"
        assert all(result.comparisons for result in report.results)


def test_the_thresholds_part_what_was_measured():
    """Twice the largest healthy score agrees, half the smallest score of a fault does not."""
    path = Path(__file__).parents[2] / "benchmarks" / "results" / "agreement_calibration.json"
    results = json.loads(path.read_text())["results"]
    assert results["models"] >= 300
    assert {fault["fault"] for fault in results["faults"]} == faults.FAULTS.keys()
    healthy = max(found["largest"] for found in results["by_kind"].values())
    assert 2 * healthy < AGREES_UP_TO
    assert min(fault["score"] for fault in results["faults"]) / 2 > DISAGREES_ABOVE


# Defects of Keras 3.15.1 itself. Where one is mended, the test says so and can go.
real = pytest.mark.skipif(
    not Version("3.15") <= KERAS < Version("3.16"), reason=f"known of Keras 3.15, not {KERAS}"
)


@real
@pytest.mark.parametrize("axes", [1, 2])
def test_average_pooling_of_torch_counts_the_padding(workers, axes):
    """One step of padding at one end. Mended by https://github.com/keras-team/keras/pull/23233."""
    pooling = (L.AveragePooling1D, L.AveragePooling2D)[axes - 1]
    model = keras.Sequential([keras.Input((5,) * axes + (3,)), pooling(3, padding="same")])
    report = check(model, workers=workers)
    assert report.disagreeing == ["torch@cpu"], report.table()
    first = found(report, "torch@cpu", DISAGREES)[0]
    assert (first.group, first.layer) == ("layers alone", f"AveragePooling{axes}D")


@real
def test_a_masked_convlstm_is_wrong_on_jax(workers):
    """`mask` broadcasts against `(batch, rows, filters)` in backend/jax/rnn.py."""
    inputs = keras.Input((6, 4))
    x = L.TimeDistributed(L.Reshape((4, 1)))(L.Masking()(inputs))
    model = keras.Model(inputs, L.ConvLSTM1D(2, 2)(x))
    x = np.random.default_rng(0).normal(size=(4, 6, 4)).astype("float32")
    x[0, 3:] = x[1, 1] = 0
    report = check(model, x, workers=workers)
    assert {f.target for f in report.findings} == {"jax@cpu"}, report.table()
    first = found(report, "jax@cpu", DISAGREES, FAILED)[0]
    assert first.layer == "ConvLSTM1D" or first.verdict == FAILED


@real
@pytest.mark.parametrize("layer", [L.LSTM, L.GRU, L.SimpleRNN])
def test_a_stateful_layer_of_jax_forgets_its_state(workers, layer):
    """JAXTrainer keeps no state of `predict` that is not the model's variable."""
    model = keras.Sequential([keras.Input(batch_shape=(4, 6, 5)), layer(3, stateful=True)])
    report = check(model, workers=workers, steps=None)
    assert report.disagreeing == ["jax@cpu"], report.table()
    (finding,) = found(report, "jax@cpu", DISAGREES)
    assert (finding.group, finding.layer) == ("prediction", layer.__name__)


@real
def test_leading_masked_steps_with_a_state_differ_on_jax(workers):
    """Before the first valid step backend/jax/rnn.py repeats the state, the others give zeros."""
    # Beside a state, Keras passes on no mask but an explicit one.
    inputs, mask = keras.Input((6, 5)), keras.Input((6,), dtype="bool")
    state = keras.Input((3,))
    sequence = L.GRU(3, return_sequences=True)(inputs, initial_state=state, mask=mask)
    model = keras.Model([inputs, mask, state], sequence)
    rng = np.random.default_rng(0)
    x, h = (rng.normal(size=shape).astype("float32") for shape in ((4, 6, 5), (4, 3)))
    valid = np.ones((4, 6), bool)
    valid[:2, :2] = False
    report = check(model, [x, valid, h], workers=workers)
    assert report.disagreeing == ["jax@cpu"], report.table()
    first = found(report, "jax@cpu", DISAGREES)[0]
    assert (first.group, first.layer) == ("layers alone", "GRU")
    (result,) = [r for r in report.results if r.target == "jax@cpu"]
    (output,) = result.group("layers")[:1]
    assert output.values[1] == 0  # the truth, where JAX has the state
    assert output.values[0] == pytest.approx(h.ravel()[np.argmin(abs(h - output.values[0]))])


@real
@pytest.mark.filterwarnings("ignore:.*destroy the mask")
def test_gradients_of_masked_attention_are_wrong_on_torch(workers):
    """Found by the calibration, in two of its random models.

    Keras masks by a large negative number. Where a query may see nothing, the logarithm of its
    weights' sum is lost beside that number, and the backward pass of PyTorch's fused attention
    takes each weight for 1.
    """
    inputs = keras.Input((6, 4))
    x = L.Masking()(inputs)
    x = L.MultiHeadAttention(num_heads=2, key_dim=3)(x, x)
    model = keras.Model(inputs, L.GlobalMaxPooling1D()(x))
    x = np.random.default_rng(0).normal(size=(4, 6, 4)).astype("float32")
    x[:, 3:] = 0
    report = check(model, x, workers=workers)
    assert report.disagreeing == ["torch@cpu"], report.table()
    first = found(report, "torch@cpu", DISAGREES)[0]
    assert (first.group, first.layer) == ("layers alone", "MultiHeadAttention")


@real
def test_a_defect_that_all_backends_share_shows_in_the_counts_alone(workers):
    """NaN in a masked step makes the gradients of the weights NaN: everywhere, so that they agree.

    `multibackend_lstm.LSTM` keeps it out.
    """
    inputs, mask = keras.Input((6, 5)), keras.Input((6,), dtype="bool")
    model = keras.Model([inputs, mask], L.GRU(3)(inputs, mask=mask))
    x = np.random.default_rng(0).normal(size=(4, 6, 5)).astype("float32")
    x[0, 4:] = np.nan
    valid = np.isfinite(x).all(axis=-1)
    report = check(model, [x, valid], workers=workers)
    assert report.agrees, report.table()
    for result in report.results:
        kernels = [c for c in result.comparisons if c.kind == "weight gradient"]
        assert kernels
        assert all(c.nan[0] == c.nan[1] > 0 for c in kernels)
