"""More inputs of a case: other batches, and the values at which backends are known to part."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from multibackend_lstm.agreement.case import Case
from multibackend_lstm.runtimes.errors import CaseError

#: Inputs made from those of a case, by name.
MORE_INPUTS: Mapping[str, str] = MappingProxyType(
    {
        "single": "the first sample alone",
        "double": "every sample twice, a larger batch",
        "tails": "ten times the values",
        "zeros": "nothing but 0",
        "repeated": "the first step, or feature, in the place of all",
        "holes": "every other step masked, where the model takes a mask from its inputs",
        "nan": "one NaN in the first sample",
    }
)
# A batch of another size, which a model with a fixed one does not take.
_BATCHES = ("single", "double")


def check_names(names: Sequence[str]) -> None:
    """Refuse what is none of `MORE_INPUTS`.

    Raises:
        ValueError: with the names that there are.
    """
    unknown = [name for name in names if name not in MORE_INPUTS]
    if unknown:
        raise ValueError(
            f"`more_inputs` are of {', '.join(MORE_INPUTS)}. Received {', '.join(unknown)}."
        )


def inputs_named(case: Case, name: str) -> list[np.ndarray]:
    """The inputs of this name.

    Args:
        case: that `describe` has described, with its inputs.
        name: one of `MORE_INPUTS`. All but the batches change floating inputs alone, since others
            are categories as a rule; holes are made in whatever is masked.

    Raises:
        CaseError: if the model does not take them, with the reason.
    """
    assert case.inputs is not None
    assert case.described is not None
    if name in _BATCHES:
        if any(spec["shape"][0] is not None for spec in case.described["inputs"]):
            raise CaseError("the model's batch is of a fixed size")
        return [x[:1] if name == "single" else np.repeat(x, 2, axis=0) for x in case.inputs]
    change = _holes(case.described["layers"]) if name == "holes" else _CHANGES[name]
    changed = [change(x) for x in case.inputs]
    if all(np.array_equal(a, b) for a, b in zip(case.inputs, changed, strict=True)):
        raise CaseError("they would be the inputs that there are")
    return changed


def _floating(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: change(x).astype(x.dtype) if x.dtype.kind == "f" and x.size else x


def _with_nan(x: np.ndarray) -> np.ndarray:
    x = x.copy()
    x.flat[x[0].size - 1] = np.nan
    return x


_CHANGES: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "tails": _floating(lambda x: 10 * x),
    "zeros": _floating(np.zeros_like),
    "repeated": _floating(lambda x: np.broadcast_to(x[:, :1], x.shape) if x.ndim > 1 else x),
    "nan": _floating(_with_nan),
}


def _holes(layers: Mapping[str, Any]) -> Callable[[np.ndarray], np.ndarray]:
    """What masks every other step, by the first layer that makes a mask of its input."""
    for layer in layers.values():
        config = layer["config"] or {}
        if layer["class_name"] == "Masking":
            return _every_other("f", config["mask_value"])
        if config.get("mask_zero"):
            return _every_other("iu", 0)
    raise CaseError("no layer of the model makes a mask of its inputs")


def _every_other(kinds: str, value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(x: np.ndarray) -> np.ndarray:
        if x.dtype.kind not in kinds or x.ndim < 2:
            return x
        x = x.copy()
        x[:, 1::2] = value
        return x

    return change
