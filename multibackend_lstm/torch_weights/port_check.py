"""What a comparison of a Keras model with its PyTorch original found."""

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from multibackend_lstm.torch_weights.errors import PortingError


@dataclass(frozen=True)
class Difference:
    """The largest difference of one tensor, relative to its largest element.

    Attributes:
        where: path of the Keras layer, or "model".
        dtype: in which Keras computed. (PyTorch computes in float64.)
        tensor: `"output 0"`, `"gradient of input 0"`, or the gradient of a weight by its names.
        value: the difference; infinite where one side is no number.
        tolerance: what it may be.
    """

    where: str
    dtype: str
    tensor: str
    value: float
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether the difference is within the tolerance."""
        return self.value <= self.tolerance


@dataclass
class PortCheck:
    """What a check found.

    Attributes:
        differences: one a tensor.
        notes: what could not be compared, and why.
    """

    differences: list[Difference] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every tensor is within its tolerance."""
        return bool(self.differences) and all(each.ok for each in self.differences)

    def table(self) -> str:
        """A line a layer and dtype: its largest differences, forward and in gradients."""
        rows: list[tuple[str, ...]] = [("layer", "dtype", "output", "gradients", "allowed", "")]
        for where, dtype in dict.fromkeys((d.where, d.dtype) for d in self.differences):
            group = [d for d in self.differences if (d.where, d.dtype) == (where, dtype)]
            outputs = [d.value for d in group if d.tensor.startswith("output")]
            gradients = [d.value for d in group if d.tensor.startswith("gradient")]
            worst = max(group, key=lambda d: d.value / d.tolerance)
            verdict = "" if worst.ok else f"DIFFERS: {worst.tensor}"
            found = (max(outputs), max(gradients, default=float("nan")), worst.tolerance)
            rows.append((where, dtype, *(f"{value:.1e}" for value in found), verdict))
        widths = [max(len(row[column]) for row in rows) for column in range(6)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        return "\n".join([*lines, *self.notes])

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON, which has no infinity: None stands for it."""
        return {
            "ok": self.ok,
            "differences": [
                {**asdict(d), "value": d.value if np.isfinite(d.value) else None, "ok": d.ok}
                for d in self.differences
            ],
            "notes": self.notes,
        }

    def raise_if_different(self) -> None:
        """Raise a PortingError with the table if a tensor differs by more than its tolerance."""
        if not self.ok:
            raise PortingError(
                f"porting: Keras and PyTorch do not compute the same:\n{self.table()}"
            )
