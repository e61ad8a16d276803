"""The pytest plugin: a fixture that compares a model's numbers on every backend and device.

    def test_snake_agrees(agreement):
        agreement(Snake(), np.linspace(-3, 3, 60, dtype="float32").reshape(4, 5, 3))

Importing it imports neither keras nor a backend nor NumPy: it is loaded in every run of pytest
where this package is installed, for tests that have nothing to do with it too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from multibackend_lstm.agreement import Report, Workers

_MARKER = (
    "agreement(skip={target: reason}): targets that the fixture `agreement` leaves out of a test, "
    'such as skip={"torch@cpu": "upstream#123"}'
)
# Arguments of `agreement.check` that belong to the session's workers.
_OF_THE_SESSION = {
    "targets": "--agreement-targets",
    "interpreters": "--agreement-interpreter",
    "workers": "--agreement-targets",
    "precision": "agreement_precision in the configuration file",
    "timeout": "agreement_timeout in the configuration file",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options, and what stands for them in a configuration file."""
    group = parser.getgroup("agreement", "agreement between backends (multibackend_lstm)")
    group.addoption(
        "--agreement-targets",
        metavar="TARGETS",
        help="Backends on devices: torch@cpu,jax@gpu. Default: every installed backend on every "
        "device that it has.",
    )
    group.addoption(
        "--agreement-interpreter",
        action="append",
        default=[],
        metavar="BACKEND=PYTHON",
        help="The Python of one backend: torch=/path/python. May be given several times.",
    )
    parser.addini("agreement_targets", "as --agreement-targets", type="args", default=[])
    parser.addini("agreement_interpreters", "as --agreement-interpreter", type="args", default=[])
    parser.addini("agreement_precision", "strict or default", default="strict")
    parser.addini("agreement_timeout", "seconds that an answer may take", default="300")


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line("markers", _MARKER)


@pytest.fixture(scope="session")
def agreement_workers(pytestconfig: pytest.Config) -> Iterator[Workers]:
    """The processes of all targets, started by the first test that needs them."""
    from multibackend_lstm.agreement import Workers
    from multibackend_lstm.environment import MissingBackendError

    try:
        workers = Workers(
            _targets(pytestconfig),
            interpreters=_interpreters(pytestconfig),
            precision=pytestconfig.getini("agreement_precision"),
            timeout=float(pytestconfig.getini("agreement_timeout")),
        )
    except (ValueError, MissingBackendError) as error:
        raise pytest.UsageError(f"agreement: {error}") from error
    with workers:
        yield workers


def _targets(config: pytest.Config) -> list[str] | None:
    option = config.getoption("--agreement-targets")
    if option is not None:
        return str(option).split(",")
    listed = config.getini("agreement_targets")
    return [name for text in listed for name in text.split(",") if name] or None


def _interpreters(config: pytest.Config) -> dict[str, str]:
    """Those of the configuration file, and in their place those of the command line."""
    pythons = {}
    for text in [
        *config.getini("agreement_interpreters"),
        *config.getoption("--agreement-interpreter"),
    ]:
        backend, _, python = text.partition("=")
        if not backend or not python:
            raise ValueError(
                "--agreement-interpreter is a backend and its Python, such as "
                f"torch=/path/python. Received {text!r}."
            )
        pythons[backend] = python
    return pythons


@pytest.fixture
def agreement(request: pytest.FixtureRequest, agreement_workers: Workers) -> Callable[..., Report]:
    """`agreement(model, inputs, labels, ...)`: fails the test if a target disagrees.

    It takes the arguments of `multibackend_lstm.agreement.check` and returns its report. A target
    that disagrees or could not run raises `DisagreementError`, unless `raises=False`. The marker
    `agreement(skip={"torch@cpu": "reason"})` leaves targets out, and the report says so; the test
    is skipped if none is left.
    """
    skipped = _skipped(request.node)
    workers = agreement_workers.without(skipped)
    if not workers.targets:
        pytest.skip("; ".join(f"{target}: {reason}" for target, reason in skipped.items()))

    def agreement(
        model: Any, inputs: Any = None, labels: Any = None, *, raises: bool = True, **options: Any
    ) -> Report:
        __tracebackhide__ = True  # a test's author wants to see the test
        from multibackend_lstm.agreement import Finding, check
        from multibackend_lstm.agreement.report import NOT_COMPARED

        for name in sorted(_OF_THE_SESSION.keys() & options):
            raise TypeError(
                f"`{name}` is the same for all tests, whose processes are shared: set it by "
                f"{_OF_THE_SESSION[name]}."
            )
        report = check(model, inputs, labels, workers=workers, **options)
        here = {str(target) for target in agreement_workers.targets}
        for target, reason in skipped.items():
            if target in here:
                message = f"{target} is left out by the test: {reason}"
                report.findings.append(Finding(target, NOT_COMPARED, "target", message))
        if raises:
            report.raise_if_disagrees()
        return report

    return agreement


def _skipped(item: pytest.Item) -> dict[str, str]:
    """Targets that a test's markers leave out, and why; the nearest marker first."""
    from multibackend_lstm.runtimes.targets import Target

    skipped: dict[str, str] = {}
    for marker in item.iter_markers("agreement"):
        skip = marker.kwargs.get("skip")
        if marker.args or set(marker.kwargs) != {"skip"} or not isinstance(skip, Mapping):
            raise pytest.UsageError(
                'the marker is agreement(skip={"torch@cpu": "why"}). '
                f"Received {marker.args} and {marker.kwargs}."
            )
        for target, reason in skip.items():
            try:
                skipped.setdefault(str(Target.parse(target)), str(reason))
            except ValueError as error:
                raise pytest.UsageError(f"the marker agreement: {error}") from error
    return skipped
