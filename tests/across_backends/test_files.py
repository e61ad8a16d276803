"""A model file written on any backend goes on on any other, with no second one installed.

`one_backend.py` is the process that each backend runs; it has that backend alone. Loading must
restore the optimizer to the bit, predict as the saving backend did, and train on as if nothing had
happened. NumPy cannot train, so it predicts. A checkpoint exists once an epoch was trained.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from one_backend import FORMATS, MODELS, STATES, expectation_path

import multibackend_lstm

SAVERS = ("torch", "jax", "tensorflow")
LOADERS = (*SAVERS, "numpy")
TOLERANCES = {
    "trained": {"predictions": 1e-6, "losses": 1e-6},
    # Adam's first steps have the size of the learning rate however small a gradient is: its
    # rounding decides where one is nearly zero.
    "untrained": {"predictions": 1e-6, "losses": 1e-5},
    # float16 rounds to 5e-4 of a value.
    "mixed_float16": {"predictions": 2e-3, "losses": 2e-3},
}


def cases():
    """Every combination; those that stand for the rest in a quick run are not slow."""
    for saver in SAVERS:
        for loader in LOADERS:
            for model in MODELS:
                for file_format in FORMATS:
                    for state in STATES:
                        if (file_format, state) == ("checkpoint", "untrained"):
                            continue
                        case = (saver, loader, model, file_format, state)
                        marks = () if is_quick(*case) else pytest.mark.slow
                        yield pytest.param(*case, marks=marks, id="-".join(case))


def is_quick(saver, loader, model, file_format, state):
    """`.keras` from each to each, and the rest from torch to JAX, JAX to TensorFlow, and so on."""
    if state == "untrained":
        return False
    if model == "conv" and file_format == ".keras":
        return saver != loader
    follows = dict(zip(SAVERS, LOADERS[1:], strict=True))
    return model in ("conv", "mixed_float16") and loader == follows[saver]


class Process:
    """A process of one_backend.py."""

    def __init__(self, backend, log):
        root = str(Path(multibackend_lstm.__file__).parents[1])
        environment = {
            **os.environ,
            "PYTHONPATH": root,
            # The programs are tiny and run a few times each.
            "XLA_FLAGS": "--xla_backend_optimization_level=0",
            "OMP_NUM_THREADS": "1",
        }
        self.log = log
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, Path(__file__).with_name("one_backend.py"), backend],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
            )

    def ask(self, **request):
        """Send a request, whose answer `answer` waits for."""
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()

    def answer(self):
        """The error of the next request, or None."""
        line = self.process.stdout.readline()
        assert line, f"the process ended:\n{self.log.read_text()[-2000:]}"
        return json.loads(line)["error"]

    def close(self):
        """End the process."""
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


@pytest.fixture(scope="module")
def loaded(request, tmp_path_factory):
    """Each selected case's error and the path of what was loaded; all processes work at once."""
    folder = tmp_path_factory.mktemp("files")
    selected = [
        tuple(item.callspec.params.values())
        for item in request.session.items
        if item.path == Path(__file__) and hasattr(item, "callspec")
    ]
    backends = {name for saver, loader, *_ in selected for name in (saver, loader)}
    processes = {name: Process(name, folder / f"{name}.log") for name in sorted(backends)}
    try:
        written = sorted({(saver, model, state) for saver, _, model, _, state in selected})
        for saver, model, state in written:
            (folder / saver).mkdir(exist_ok=True)
            processes[saver].ask(action="save", arguments=[str(folder), saver, model, state])
        for saver, model, _ in written:
            error = processes[saver].answer()
            assert error is None, f"{saver} cannot save {model}:\n{error}"
        for number, (saver, loader, *rest) in enumerate(selected):
            answer = str(folder / f"{number}.npz")
            arguments = [str(folder), saver, *rest]
            processes[loader].ask(action="load", arguments=arguments, answer=answer)
        answers = {}
        for number, case in enumerate(selected):
            answers[case] = (processes[case[1]].answer(), folder / f"{number}.npz")
        yield folder, answers
    finally:
        for process in processes.values():
            process.close()


@pytest.mark.parametrize(("saver", "loader", "model", "file_format", "state"), list(cases()))
def test_file_goes_on(loaded, saver, loader, model, file_format, state):
    folder, answers = loaded
    error, path = answers[saver, loader, model, file_format, state]
    assert error is None, error
    with (
        np.load(path, allow_pickle=False) as actual,
        np.load(expectation_path(folder, saver, model, state), allow_pickle=False) as expected,
    ):
        tolerances = TOLERANCES.get(model, TOLERANCES[state])
        compared = ["predictions"] if loader == "numpy" else ["predictions", "losses"]
        for name in compared:
            np.testing.assert_allclose(
                actual[name], expected[name], rtol=0, atol=tolerances[name], err_msg=name
            )
        if state == "trained":
            names = {name for name in expected if name.startswith("optimizer")}
            assert names == {name for name in actual if name.startswith("optimizer")}
            for name in names:
                np.testing.assert_array_equal(actual[name], expected[name], err_msg=name)
            # Iterations, learning rate and two moments of each weight of one LSTM and one Dense: no
            # zeros, which an optimizer that was built anew would have too.
            assert sum(np.any(expected[name]) for name in names) >= 12
            assert len(expected["losses"]) == 20
