"""Every layer and solution of the package gives the same numbers on every backend.

Outputs of all layers, predictions, gradients and trained weights of each model are compared with
its float64 run, from a file that this process saved: docs/agreement.md tells how.
"""

import pytest
from zoo.layers import CASES, draw

import multibackend_lstm
from multibackend_lstm import agreement
from multibackend_lstm.agreement.report import NOT_COMPARED

slow = pytest.mark.slow

# The rest runs in the session of slow tests.
FAST = {
    *("lstm-last", "lstm-sequence", "lstm-backwards", "lstm-stateful", "gru-zeros", "gru-nd"),
    *("gru-dropout", "lstm-states", "bidirectional-concat", "flatten-any", "steps-norm"),
    *("steps-per_call", "conv-full", "conv-2d", "channelwise-max", "conv_lstm-1d"),
    *(f"solution-{name}" for name in multibackend_lstm.SOLUTIONS),
    *("solution-conv-masked", "solution-conv-lengths"),
}


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=slow) for name in CASES]
)
def test_all_backends_agree(workers, tmp_path, name):
    model = CASES[name]()
    path = tmp_path / "model.keras"
    model.save(path)
    report = agreement.check(path, draw(model), workers=workers, steps=3)
    report.raise_if_disagrees()
    assert not report.findings, report.table()  # nothing suspicious, nothing left out
    assert report.float64
    kinds = {c.kind for result in report.results for c in result.comparisons}
    assert {"layer", "output", "weight gradient", "weight"} <= kinds


def test_half_precision_agrees_within_its_own_rounding(workers):
    for dtype in ("mixed_bfloat16", "mixed_float16"):
        model = CASES["solution-reshape"]()
        report = agreement.check(model, draw(model), workers=workers, steps=2, dtype=dtype)
        report.raise_if_disagrees()
        assert not report.findings, report.table()


def test_numpy_predicts_the_same():
    """The NumPy backend runs the layers' portable code, and has no gradients."""
    with agreement.Workers(["numpy@cpu"]) as workers:
        for solution in multibackend_lstm.SOLUTIONS:
            model = CASES[f"solution-{solution}"]()
            report = agreement.check(model, draw(model), workers=workers, steps=1)
            report.raise_if_disagrees()
            (finding,) = report.findings
            assert finding.verdict == NOT_COMPARED
            assert "no gradients" in finding.message
            kinds = {c.kind for c in report.results[0].comparisons}
            alone = {"layer alone", "layer alone in training", "update alone"}
            assert kinds == {"layer", "captured output", "output", *alone}
