"""Does one model give the same numbers on every backend and device, and if not, who is wrong?

    from multibackend_lstm import agreement

    report = agreement.check(model, inputs, targets=["torch@cpu", "jax@cpu", "tensorflow@cpu"])
    print(report.table())
    report.raise_if_disagrees()

Read it in this order: `checking.py`, `case.py`, what computes (`runtimes/`: `targets.py`,
`workers.py`, then in the worker `serve.py`, `keras_models.py`, `execution.py`, `noise_floor.py`),
and what is made of it, `comparison.py` and `report.py`.
`same_start.py` stands by itself: the same initial weights and order of samples everywhere.
The names below are loaded on first use, so that importing this imports neither keras nor a backend.
"""

from typing import TYPE_CHECKING

from multibackend_lstm.lazy_names import lazy_names

if TYPE_CHECKING:
    from multibackend_lstm.agreement.checking import check
    from multibackend_lstm.agreement.comparison import Comparison, compare
    from multibackend_lstm.agreement.report import DisagreementError, Finding, Report
    from multibackend_lstm.agreement.same_start import fit_order, initialize
    from multibackend_lstm.runtimes.errors import CaseError
    from multibackend_lstm.runtimes.workers import WorkerError, Workers

__all__ = [
    "CaseError",
    "Comparison",
    "DisagreementError",
    "Finding",
    "Report",
    "WorkerError",
    "Workers",
    "check",
    "compare",
    "fit_order",
    "initialize",
]

_MODULE_OF = {
    "CaseError": ".runtimes.errors",
    "Comparison": "comparison",
    "DisagreementError": "report",
    "Finding": "report",
    "Report": "report",
    "WorkerError": ".runtimes.workers",
    "Workers": ".runtimes.workers",
    "check": "checking",
    "compare": "comparison",
    "fit_order": "same_start",
    "initialize": "same_start",
}

__getattr__, __dir__ = lazy_names(__name__, _MODULE_OF)
