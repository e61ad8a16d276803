"""Models that are built, named or ordered in ways of their own."""

import keras
import numpy as np
import pytest

from agreement.conftest import TARGET
from multibackend_lstm.agreement import CaseError, check
from multibackend_lstm.runtimes.execution import describe, in_order, unique_paths

from . import cases


class Variable:
    def __init__(self, path, *shape):
        self.path, self.shape = path, shape


def test_weights_are_found_by_path(workers):
    """Of equal shape, in another order than here."""
    inputs = keras.Input((4,))
    model = keras.Model(inputs, cases.OwnOrder(name="own")(inputs))
    model.set_weights([np.full(4, 2.0, "float32"), np.full(4, -1.0, "float32")])
    report = check(model, workers=workers, steps=2)
    report.raise_if_disagrees()
    right = np.arange(4, dtype="float32")[None]
    np.testing.assert_allclose(model.predict(right, verbose=0), right * 2 - 3)


def test_paths_and_orders():
    a, b, again = Variable("x/a", 2), Variable("x/b", 2), Variable("x/a", 3)
    assert unique_paths([a, b, again]) == ["x/a", "x/b", "x/a (2)"]
    assert in_order([b, a], ["x/a", "x/b"], [(2,), (2,)]) == [a, b]
    # Names that another process counted: the order has to do.
    assert in_order([a, b], ["x_1/a", "x_1/b"], [(2,), (2,)]) == [a, b]
    with pytest.raises(CaseError, match=r"those of another model. They are x/a \(3,\)"):
        in_order([a], ["x/a"], [(3,)])
    assert in_order([b, a], ["x_1/a", "x_1/b"], [(2,), (2,)]) == [a, b]  # by name, not by order
    with pytest.raises(CaseError, match="cannot be told apart"):
        in_order([a, b], ["y/c", "y/d"], [(2,), (2,)])


def test_the_weights_of_a_layer_are_its_own_where_names_are_alike():
    """A layer of a nested model, or one inside a wrapper, has the name of one outside."""
    inner = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3, name="dense")], name="inner")
    wrapped = keras.layers.TimeDistributed(keras.layers.Dense(3, name="dense"), name="wrapped")
    outer = keras.layers.Dense(3, name="dense")
    inputs = keras.Input((4, 3))
    model = keras.Model(inputs, inner(outer(wrapped(inputs))[:, 0]))
    found = {
        path: [model.weights[place] for place in places]
        for path, places in describe(model)["weights"].items()
    }
    assert [id(w) for w in found["dense"]] == [id(w) for w in outer.weights]
    assert [id(w) for w in found["wrapped"]] == [id(w) for w in wrapped.weights]
    assert [id(w) for w in found["inner/dense"]] == [id(w) for w in inner.layers[0].weights]


def test_a_model_that_its_first_call_builds_with_a_layer_that_returns_none(workers):
    report = check("agreement.cases:subclassed", workers=workers, steps=1)
    report.raise_if_disagrees()
    assert [c.path for c in report.results[0].group("layers")] == ["nothing", "dense", "0"]
    assert report.results[0].group("gradients")
    with pytest.raises(CaseError, match=r"not built.*return \(model, inputs\)"):
        check("agreement.cases:subclassed_alone", workers=workers, steps=1)


def test_a_model_and_its_inputs_in_one(workers):
    check(cases.subclassed(), workers=workers, steps=1).raise_if_disagrees()


def test_inputs_that_are_no_numbers_are_refused_in_a_line(workers):
    inputs = keras.Input((1,), dtype="string", name="words")
    model = keras.Model(inputs, keras.layers.Flatten()(inputs))
    with pytest.raises(CaseError, match=r"'words' takes string.*the part of the model") as caught:
        check(model, workers=workers)
    assert "\n" not in str(caught.value)


def test_outputs_without_a_loss_or_a_gradient(workers):
    report = check("agreement.cases:classes", workers=workers, steps=1)
    assert report.agrees
    (finding,) = report.findings
    assert (finding.target, finding.verdict) == (TARGET, "not compared")
    assert "no output is of a floating dtype" in finding.message
    report = check("agreement.cases:classes_as_floats", workers=workers, steps=1)
    report.raise_if_disagrees()
    gradients = report.results[0].group("gradients")
    assert gradients
    assert max(c.rms for c in gradients) == 0


def test_drawn_labels_are_not_the_inputs(workers):
    """Else a model that returns its input has no loss to compare."""
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Activation("linear")(inputs))
    report = check(model, workers=workers, steps=1)
    (loss,) = [c for c in report.results[0].comparisons if c.kind == "loss"]
    assert loss.values[1] > 0.1


def test_a_layer_without_a_config_is_named_and_a_function_may_build_it(workers):
    with pytest.raises(CaseError, match=r"'inner/secret' \(WithoutConfig\).*factor is a secret"):
        check(cases.without_config(), workers=workers)
    check("agreement.cases:without_config", workers=workers, steps=1).raise_if_disagrees()
    layer = cases.Doubled(name="doubled")
    layer.get_config = lambda: {"name": "doubled", "factor": {1, 2}}
    model = keras.Sequential([keras.Input((3,)), layer])
    with pytest.raises(CaseError, match=r"doubled' \(Doubled\)"):
        check(model, workers=workers)
