"""A step model is judged by `agree` as any other: it passes, and with a fault it does not."""

from dataclasses import replace

import pytest
from zoo import faults

from multibackend_lstm import build_model, to_step_model
from multibackend_lstm.agreement.comparison import DISAGREES

pytestmark = pytest.mark.slow

# A fault of JAX's worker, in a step model with drawn samples and states.
FAULT = replace(
    faults.FAULTS["tf32 matmul"],
    model=lambda: to_step_model(build_model((None, 4, 5), "reshape", units=8, outputs=2)),
    inputs=lambda rng: None,
    options={"steps": None},
    targets=("jax@cpu", "torch@cpu"),
)


def test_a_step_model_agrees(workers):
    report = faults.compared(FAULT, workers)
    assert report.agrees, report.table()


def test_a_step_model_with_a_fault_does_not(workers):
    report = faults.checked(FAULT, workers)
    assert not report.agrees
    assert {f.target for f in report.findings if f.verdict == DISAGREES} == {FAULT.target}
