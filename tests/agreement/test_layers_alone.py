"""Every layer alone: what is wrong by little shows, at its own place, and nothing else does."""

import keras
import numpy as np
import pytest
from keras import layers
from zoo.graded import Graded

from multibackend_lstm import agreement, environment
from multibackend_lstm.agreement.comparison import GROUPS
from multibackend_lstm.runtimes import sums
from multibackend_lstm.runtimes.calls import Call
from multibackend_lstm.runtimes.execution import Tensor

from . import cases
from .conftest import BACKEND, TARGET

GROUP = "layers alone"


def stack(*stacked, shape=(12, 16)):
    return keras.Sequential([keras.Input(shape), *stacked])


def faulty(way, size, *, shape=(12, 16), **options):
    layer = Graded(way, size, BACKEND, name="graded", **options)
    return stack(
        layers.Dense(shape[-1], activation="tanh", name="first"),
        layer,
        layers.Dense(3, name="last"),
        shape=shape,
    )


def check(model, workers, **options):
    return agreement.check(model, workers=workers, **{"steps": 1, **options})


@pytest.mark.parametrize(
    ("way", "size", "kinds"),
    [
        ("all", 5e-6, {"layer alone", "layer alone in training"}),
        ("channel", 1e-3, {"layer alone", "layer alone in training"}),
        ("element", 1e-2, {"layer alone", "layer alone in training"}),
        ("gradient", 1e-5, {"input gradient alone", "weight gradient alone"}),
        ("training", 1e-5, {"layer alone in training"}),
        ("update", 1e-4, {"update alone"}),
    ],
)
def test_a_small_fault_is_found_at_its_place(workers, way, size, kinds):
    report = check(faulty(way, size), workers)
    assert report.disagreeing == [TARGET], report.table()
    (finding,) = report.findings
    assert (finding.group, finding.layer) == (GROUP, "Graded")
    (result,) = report.results
    off = {c.kind for c in result.group(GROUP) if c.verdict == "disagrees"}
    assert off >= kinds, off
    assert {c.layer for c in result.group(GROUP) if c.verdict == "disagrees"} == {"graded"}


def test_a_healthy_layer_is_not_accused(workers):
    report = check(faulty("all", 0.0), workers)
    assert not report.findings, report.table()
    assert report.results[0].group(GROUP)


def test_a_long_sum_is_not_accused_for_being_added_up_one_after_the_other(workers):
    """A bias gradient of 16,384 terms that are all of one sign, a mean, and the loss."""
    dense = layers.Dense(4, kernel_initializer=keras.initializers.GlorotUniform(seed=0))
    model = stack(dense, layers.GlobalAveragePooling1D(), shape=(4096, 4))
    x = (np.random.default_rng(0).normal(size=(4, 4096, 4)) + 5).astype("float32")
    report = check(model, workers, inputs=x, optimizer="sgd")
    assert not report.findings, report.table()
    found = {(c.kind, c.path.rpartition("/")[2]): c.score for c in report.results[0].comparisons}
    assert found["weight gradient alone", "bias"] < 5


def test_one_channel_of_many_is_seen_though_the_mean_hides_it(workers):
    report = check(faulty("channel", 1e-3, shape=(40, 256)), workers)
    (finding,) = report.findings
    assert finding.layer == "Graded"
    assert finding.path == "graded"


def test_two_guilty_layers_show_in_one_run(workers):
    first, second = (Graded("all", 1e-3, BACKEND, name=name) for name in ("first", "second"))
    report = check(stack(first, layers.Dense(4), second, layers.Dense(2)), workers)
    assert {f.path for f in report.findings if f.group == GROUP} == {"first", "second"}


def test_an_operation_of_the_graph_is_judged_by_itself(workers):
    inputs = keras.Input((6, 4))
    padded = keras.ops.pad(layers.Dense(4)(inputs), [[0, 0], [1, 2], [0, 0]])
    model = keras.Model(inputs, layers.Dense(2)(padded[:, 1:, ::2]))
    report = check(model, workers)
    assert not report.findings, report.table()
    classes = {report.layers[c.layer]["class_name"] for c in report.results[0].group(GROUP)}
    assert classes >= {"Pad", "GetItem", "Dense", "adam", "mean_squared_error"}


def test_a_layer_that_is_called_twice_is_judged_at_each_call(workers):
    inputs = keras.Input((6, 4))
    shared = layers.Dense(4, name="shared")
    report = check(keras.Model(inputs, shared(shared(inputs) + 1.0)), workers)
    assert not report.findings, report.table()
    paths = {c.path for c in report.results[0].group(GROUP)}
    assert paths >= {"shared", "shared (call 2)"}


def test_masks_states_and_nested_models_go_along(workers):
    inputs = keras.Input((6, 4))
    masked = layers.Masking(name="masking")(inputs)
    sequence, *states = layers.LSTM(3, return_sequences=True, return_state=True)(masked)
    last = layers.LSTM(3, name="last")(sequence, initial_state=states)
    inner = keras.Sequential([keras.Input((3,)), layers.Dense(2)], name="inner")
    x = np.random.default_rng(0).normal(size=(4, 6, 4)).astype("float32")
    x[1, 3:] = 0
    report = check(keras.Model(inputs, inner(last)), workers, inputs=x)
    assert not report.findings, report.table()
    layers_alone = {c.layer for c in report.results[0].group(GROUP)}
    assert layers_alone >= {"last", "masking"}
    assert any(path.startswith("inner/") for path in layers_alone)


def test_a_layer_is_opened_where_it_is_off(workers, monkeypatch):
    """The operation that is wrong is named; here it is one of the target's worker."""
    model = stack(layers.LayerNormalization(), layers.Dense(2))
    ask(workers, "break_matmul")
    try:
        report = check(model, workers, steps=0)
    finally:
        ask(workers, "mend_matmul")
    (finding,) = [f for f in report.findings if f.group == GROUP]
    assert finding.layer == "Dense"
    assert finding.operations == ("operation 1 Matmul",)
    assert "Inside of it: operation 1 Matmul" in finding.message


def ask(workers, function):
    request = {"do": "call", "function": f"agreement.cases:{function}", "arguments": {}}
    workers.worker(TARGET, workers.targets[0]).request(request, {}, "called")


def test_what_is_not_the_same_twice_is_told_and_judged_by_its_spread(workers):
    model = stack(cases.Restless(name="restless"), layers.Dense(2))
    report = check(model, workers)
    assert "nondeterministic" in {f.verdict for f in report.findings}, report.table()
    assert not [f for f in report.findings if f.group == GROUP and f.verdict == "disagrees"]


def test_beside_a_layer_that_draws_the_others_are_compared_in_training(workers):
    fault = Graded("gradient", 1e-4, BACKEND, name="graded")
    report = check(stack(cases.Random(), fault, layers.Dense(2)), workers)
    assert report.disagreeing == [TARGET]
    assert {f.layer for f in report.findings if f.verdict == "disagrees"} == {"Graded"}


def test_the_truth_of_the_layers_is_saved_and_compared_with(workers, tmp_path):
    check(faulty("all", 0.0), workers, save_truth=tmp_path / "t.npz")
    healthy = check(faulty("all", 0.0), workers, truth=tmp_path / "t.npz")
    assert not healthy.findings, healthy.table()
    assert healthy.results[0].group(GROUP)
    off = check(faulty("gradient", 1e-4), workers, truth=tmp_path / "t.npz")
    assert {(f.group, f.layer) for f in off.findings} == {(GROUP, "Graded")}, off.table()


@pytest.mark.parametrize("function", ["relu", "leaky_relu", "relu6", "hard_sigmoid", "softsign"])
def test_the_gradient_at_a_kink_is_a_convention(workers, function):
    """A masked step is 0; which side's gradient it gets there, the backends do not agree on."""
    inputs = keras.Input((6, 4))
    x = layers.Activation(function)(layers.LSTM(3, return_sequences=True)(inputs) * 0.0)
    data = np.random.default_rng(0).normal(size=(4, 6, 4)).astype("float32")
    report = check(keras.Model(inputs, layers.Dense(2)(x)), workers, inputs=data)
    assert not report.findings, report.table()


def test_a_target_that_ends_while_its_layers_are_called_has_failed(workers):
    stacked = (layers.Dense(3), cases.CrashesAlone(name="crashing"), layers.Dense(2), layers.ReLU())
    report = check(stack(*stacked), workers)
    assert report.could_not_run == [TARGET]
    (finding,) = report.findings
    assert "failed in layers alone: crashing" in finding.message
    assert "status 3" in finding.message
    assert not check(faulty("all", 0.0), workers).findings  # another worker is started


def test_without_tensorflow_the_layers_are_compared_with_the_first_target(monkeypatch):
    monkeypatch.setattr(environment, "installed_backends", lambda: [BACKEND])
    with agreement.Workers([TARGET], timeout=120) as alone:
        report = check(faulty("all", 0.0), alone, steps=2)
    assert not report.findings, report.table()
    kinds = {c.kind for c in report.results[0].group(GROUP)}
    assert kinds == set(GROUPS[GROUP])


def test_the_report_says_what_it_would_have_noticed(workers):
    (line, gradients) = check(faulty("all", 0.0), workers).noticed()
    assert line.startswith("Would have noticed an error of ")
    size = float(line.split(" error of ")[1].split()[0])
    assert 1e-8 < size < 2e-5
    assert "gradients" in gradients


def test_a_tolerance_is_suggested_that_holds_and_is_not_loose(workers):
    model = faulty("all", 0.0)
    report = check(model, workers)
    tolerance = report.tolerance()
    (output,) = report.results[0].group("prediction")
    assert output.max_absolute < tolerance["atol"] < 1e-4
    assert tolerance["rtol"] == 2e-7
    text = f"rtol=2e-07, atol={tolerance['atol']:.0e}"
    assert f"For assert_allclose on predictions such as these: {text}." in report.table(200)
    assert report.to_json()["tolerance"] == tolerance
    nothing = agreement.Report(case="", reference="", float64=True, settings={})
    assert nothing.tolerance() is None


#: Layers that add up 65,536 terms inside of them, of a mean that is not 0.
LONG = {
    "batch": (layers.BatchNormalization, (16384, 4)),
    "group": (lambda: layers.GroupNormalization(2), (16384, 8)),
    "instance": (lambda: layers.GroupNormalization(-1), (65536, 2)),
    "layer": (layers.LayerNormalization, (65536,)),
    "softmax": (lambda: layers.Softmax(axis=1), (16384, 2)),
    "mean": (layers.GlobalAveragePooling1D, (65536, 4)),
    "embedding": (lambda: layers.Embedding(3, 4), (16384,)),
}
#: Those whose sums this backend adds up one after the other.
_SLOWLY = {"tensorflow": "batch", "jax": "group", "torch": "embedding"}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if _SLOWLY.get(BACKEND) == n else pytest.mark.slow) for n in LONG],
)
def test_a_long_sum_inside_of_a_layer_is_not_accused(workers, name):
    make, shape = LONG[name]
    rng = np.random.default_rng(1)
    x = (rng.normal(size=(2, *shape)) + 5).astype("float32")
    if name == "batch":
        x = np.concatenate([x, x[::-1] + 1])
    if name == "embedding":
        x = rng.integers(0, 3, (4, *shape)).astype("int32")
    inputs = keras.Input(shape, dtype=str(x.dtype))
    report = check(keras.Model(inputs, make()(inputs)), workers, inputs=x, optimizer="sgd")
    accused = [f for f in report.findings if not f.known or not f.known.get("precision_only")]
    assert not accused, report.table()


def test_a_fault_of_a_layer_with_a_long_sum_is_found(workers):
    """Its floor knows the sum's length, and no more."""
    model = stack(Graded("all", 1e-3, BACKEND, name="graded"), layers.BatchNormalization(),
                  shape=(16384, 2))  # fmt: skip
    report = check(model, workers, steps=0)
    assert {f.layer for f in report.findings if f.verdict == "disagrees"} == {"Graded"}


def test_an_element_beside_a_long_softmax_is_moved_by_the_sum_alone():
    """As far as float32 is off that adds up one by one, and no more than a few times that."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 4096)).astype("float32")

    def run(twin, size, given=lambda x: x):
        e = np.exp(given(x).astype("float64"))
        return [Tensor("layer alone", "softmax", e / e.sum(-1, keepdims=True), "float64")]

    call = Call("softmax", "softmax", False, None, [x], "float32", [])
    exact = {("layer alone", "softmax"): run(0, 0.0)[0]}
    (moved,) = sums.beside_their_terms(run, call, (1,), exact).values()
    e = np.exp(x)
    off = e / np.add.accumulate(e, -1)[:, -1:] - run(0, 0.0)[0].values
    relative = np.sqrt(np.mean((moved / run(0, 0.0)[0].values) ** 2))
    assert np.sqrt(np.mean(off**2)) < 5 * np.sqrt(np.mean(moved**2))
    assert 2**-24 < relative < 2**-24 * 64
    assert not sums.axes_of(type("Softmax", (), {"axis": -1})(), [x[:, :256]])
    assert sums.axes_of(type("Moments", (), {"axes": [0, -1]})(), [x]) == (0, 1)


def test_what_the_dtype_rounds_inside_of_a_layer_accuses_nobody(workers):
    """float32 has few digits of a large angle, which no twin moves; TensorFlow in it shows that."""
    if BACKEND == "tensorflow":
        pytest.skip("there is no other witness than the target")

    def checked(backend):
        layer = cases.Positions(backend, name="positions")
        model = keras.Sequential([keras.Input((3000, 4)), layer, keras.layers.Dense(2)])
        return check(model, workers=workers, batch=2, steps=1)

    report = checked(None)
    assert report.agrees, report.table()
    assert {f.verdict for f in report.findings} == {"suspicious"}
    assert "in the same dtype too" in report.findings[0].message
    report = checked(BACKEND)
    assert report.disagreeing == [TARGET]
    assert {f.layer for f in report.findings} == {"Positions"}
