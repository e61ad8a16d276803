"""What a case of the suite is, and the shapes of its inputs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

VECTOR, SEQUENCE, IMAGE, VOLUME = (6,), (7, 6), (7, 8, 6), (5, 6, 4, 4)


@dataclass(frozen=True)
class SuiteCase:
    """A layer, function, loss or optimizer, and what it is called on.

    Attributes:
        layer: name of the class in `keras.layers`, or of what `kind` says.
        options: of its constructor; a value `{"class": name, **options}` is a layer.
        shapes: of the inputs, without the batch.
        integers: what inputs that are categories are below; 0 for numbers drawn from a normal.
        as_list: whether the layer takes its inputs in one list, as `Add` does.
        masked: whether a `Masking` stands before, some steps being 0.
        arguments: of the call.
        cell: whether it is a cell of a recurrent layer, called within `RNN`.
        kind: "layer", "op" for a function of `keras.ops`, or "loss" or "optimizer" for a class of
            these, with which a small model is trained.
        between: where numbers are drawn evenly; empty for a normal distribution.
        dtype: policy of the model, or "".
    """

    layer: str
    options: Mapping[str, Any] = field(default_factory=dict)
    shapes: tuple[tuple[int, ...], ...] = (SEQUENCE,)
    integers: int = 0
    as_list: bool = False
    masked: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)
    cell: bool = False
    kind: str = "layer"
    between: tuple[float, ...] = ()
    dtype: str = ""

    @property
    def name(self) -> str:
        """The class and what is not by default."""
        options = ",".join(f"{key}={_short(value)}" for key, value in self.options.items())
        shapes = " ".join("x".join(map(str, shape)) for shape in self.shapes)
        more = ",".join(f"{key}={value}" for key, value in self.arguments.items())
        kind = "" if self.kind == "layer" else f"{self.kind} "
        found = f"{kind}{self.layer}({options}) on {shapes}" + (" masked" if self.masked else "")
        found += f" in {self.dtype}" if self.dtype else ""
        return f"{found} called with {more}" if more else found


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        options = ",".join(f"{key}={_short(x)}" for key, x in value.items() if key != "class")
        return f"{value['class']}({options})"
    if isinstance(value, (list, tuple)):
        return f"[{' '.join(_short(x) for x in value)}]"
    return str(value)
