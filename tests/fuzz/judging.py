"""What counts as right: tolerances, shapes, dtypes, masks, and refusals.

An error is relative to the largest entry of the tensor it is found in, or to 1 where that is
larger, since gates and the sums that go into them are of that order. How much of it rounding may
explain is decided by the dtype that computes:

| dtype | tolerance | because |
|---|---|---|
| float64 | 1e-12 | 4,500 times its epsilon, and 1e-4 of that of float32 |
| float32 | 2e-5 | 168 times its epsilon: sums of some ten products, some steps |
| float16 | 7.8e-3 | 8 times its epsilon: products are rounded once a step, the states of LSTM not |
| bfloat16 | 6.3e-2 | the same |

The reference is given inputs and weights as they are after rounding to that dtype, so that this
rounding is no part of the error. A gradient may be off by ten times as much, relative to the norm
of the gradient times that of the direction: it goes through every step twice.
"""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from fuzz.cases import (
    CONV_LSTMS,
    LAYERS,
    RECURRENT,
    Structure,
    Values,
    demands_kernel,
    lacks_kernel,
    numpy_dtype,
    parts,
)
from fuzz.reference import Array

TOLERANCES = {"float64": 1e-12, "float32": 2e-5, "float16": 8 * 2.0**-10, "bfloat16": 8 * 2.0**-7}
GRADIENT_FACTOR = 10.0

# The beginning of an error of this package: a class, or a layer by the name that Keras gives it.
_NAMES = (
    *LAYERS,
    *(
        re.sub(
            "(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|(?<=[a-z])(?=[0-9])", "_", name
        ).lower()
        for name in LAYERS
    ),
)
OWN_MESSAGE = re.compile(rf"(forward_|backward_)?({'|'.join(_NAMES)})(_\d+)?: ")

RIGHT, REFUSED, WRONG, CRASH = "right", "refused", "WRONG", "CRASH"


@dataclass
class Verdict:
    """The outcome of a case.

    Attributes:
        outcome: "right", "refused", "WRONG" or "CRASH".
        error: the worst error as a multiple of the tolerance; 0 where nothing was compared.
        reason: of any other outcome than "right".
    """

    outcome: str
    error: float = 0.0
    reason: str = ""


class Wrong(Exception):  # noqa: N818 - an outcome
    """Something is not what the reference says; the message says what."""


def rounded(x: Array, dtype: str) -> Array:
    """As float64, after rounding to `dtype`."""
    with np.errstate(over="ignore"):
        return np.asarray(x).astype(numpy_dtype(dtype)).astype("float64")


def compare(what: str, got: Array, expected: Array, dtype: str) -> float:
    """The error as a multiple of the tolerance; Wrong for a shape, or for more than 1."""
    if got.shape != expected.shape:
        raise Wrong(f"{what}: shape {got.shape} in place of {expected.shape}")
    if not got.size:
        return 0.0
    unlike = np.isnan(got) != np.isnan(expected)
    if unlike.any():
        where = "NaN" if np.isnan(got[unlike]).any() else "no NaN"
        raise Wrong(f"{what}: {where} in {int(unlike.sum())} of {got.size} entries")
    finite = np.isfinite(expected)
    scale = max(1.0, float(np.max(abs(expected[finite]), initial=0)))
    error = float(np.nanmax(abs(got - expected), initial=0)) / scale
    return judged(what, error, TOLERANCES[dtype])


def judged(what: str, error: float, tolerance: float) -> float:
    """The error as a multiple of the tolerance; Wrong for more than 1."""
    if not error <= tolerance:
        raise Wrong(f"{what}: off by {error:.1e}, where {tolerance:.1e} is allowed")
    return error / tolerance


def coarser(*dtypes: str) -> str:
    """The floating dtype with the largest tolerance."""
    return max((d for d in dtypes if d in TOLERANCES), key=TOLERANCES.__getitem__)


# What the package documents that it refuses: when, and what the message then says.
def documented_refusal(structure: Structure, values: Values | None, message: str) -> bool:
    """Whether the documentation says that this case is refused, with such a message."""
    cells = [part for part in parts(structure.spec) if part["class"] in RECURRENT]
    contradicts = any(
        part["implementation"] == "ops" and part["use_cudnn"] is True for part in cells
    )
    calls = values.calls if values else []
    unfit = any(
        call.lengths is not None and (call.lengths > call.x.shape[1]).any() for call in calls
    )
    empty = any(0 in call.x.shape[:2] for call in calls) or 0 in structure.shape[:2]
    may_refuse_empty = structure.layer in (*CONV_LSTMS, "Channelwise", "TimeDistributedConv")
    rules = {
        "cannot be had": any(demands_kernel(cell) and lacks_kernel(cell) for cell in cells),
        "forbids one": contradicts,
        "must hold booleans": structure.mask is not None and structure.mask.dtype == "float32",
        r"each in \[0, time\]": unfit,
        "float64": structure.policy == "float64",
        r"\b0\b": empty and may_refuse_empty,
        # From Keras 3.16 on.
        "would not pass the mask on": any(part.get("keras") for part in parts(structure.spec)),
    }
    return any(applies and re.search(said, message) for said, applies in rules.items())


def original_message(error: BaseException) -> str:
    """The message as it was raised, out of what Keras and TensorFlow write around it."""
    message = str(error)
    if message.startswith("in user code:"):
        message = re.split(r"\n\s+\w+(?:Error|Exception): ", message)[-1]
    found = re.match(r"Exception encountered when calling .*?\n\n(.*)\n\nArguments", message, re.S)
    message = found[1] if found else message
    return re.sub(r"\x1b\[\d+m", "", message).strip()


def judge_exception(error: Exception, structure: Structure, values: Values | None) -> Verdict:
    """A refusal of this package, documented or not, or a crash."""
    message = original_message(error)
    line = " ".join(message.split())[:300]
    if not (isinstance(error, (ValueError, TypeError)) and OWN_MESSAGE.match(message)):
        return Verdict(CRASH, reason=f"{type(error).__name__}: {line}")
    if documented_refusal(structure, values, message):
        return Verdict(REFUSED, reason=line)
    return Verdict(WRONG, reason=f"refused, which nothing documents: {line}")


def check_mask(what: str, got: Any, expected: Array | None, may_lack: bool = False) -> None:
    """Wrong unless both are None or equal; with `may_lack` there may be none."""
    if got is None and may_lack:
        return
    if (got is None) != (expected is None):
        raise Wrong(f"{what}: {'no mask' if got is None else 'a mask'}, against the rule")
    if expected is not None and (
        got.shape != expected.shape or not np.array_equal(got.astype(bool), expected)
    ):
        raise Wrong(f"{what}: mask {got.tolist()} in place of {expected.tolist()}"[:300])
