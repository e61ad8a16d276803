"""A process that runs cases: seeds come in on standard input, results go out, one a line."""

import json
import os
import sys
import traceback
from typing import Any


def result(seed: int, structure: Any, values: Any, verdict: Any) -> dict[str, Any]:
    """What is written down of a case."""
    return {
        "seed": seed,
        "layer": structure.layer,
        "mode": structure.mode,
        "family": family(structure),
        "outcome": verdict.outcome,
        "error": verdict.error,
        "reason": verdict.reason,
        "case": ", ".join(filter(None, [str(structure), str(values)])),
    }


def family(structure: Any) -> str:
    """Which dtypes a case is about."""
    from fuzz.cases import INTEGERS

    if structure.dtype in INTEGERS:
        return "integer input"
    compute = structure.compute_dtype
    return "half" if compute in ("float16", "bfloat16") else compute


def versions() -> dict[str, str]:
    """Of what computes."""
    import platform
    from importlib.metadata import version

    import keras

    import multibackend_lstm

    backend = keras.backend.backend()
    return {
        "multibackend_lstm": multibackend_lstm.__version__,
        "backend": backend,
        backend: __import__(backend).__version__,
        "keras": keras.__version__,
        "numpy": version("numpy"),
        "python": platform.python_version(),
    }


def prepare() -> None:
    """Settings that must stand before a backend is imported."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if os.environ.get("KERAS_BACKEND") == "jax":
        # Thousands of tiny programs, each of which runs ten times.
        os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
    if os.environ.get("KERAS_BACKEND") == "torch":
        import torch  # noqa: F401 - before TensorFlow, which Keras imports where it finds it


def main() -> None:
    """Run what comes in until nothing does."""
    answers, sys.stdout = sys.stdout, sys.stderr  # a print in between is no answer
    prepare()
    if os.environ.get("KERAS_BACKEND") == "torch":
        import torch

        torch.set_num_threads(1)  # tensors are tiny, and each worker has a core
    from fuzz.running import Runner

    runner = Runner()
    print(json.dumps({"versions": versions()}), file=answers, flush=True)
    for line in sys.stdin:
        seed = int(line)
        try:
            answer = result(seed, *runner.run(seed))
        except Exception:  # of the fuzzer itself
            answer = {"seed": seed, "fuzzer_failed": traceback.format_exc()}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
