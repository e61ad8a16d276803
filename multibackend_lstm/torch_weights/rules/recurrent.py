"""Recurrent layers: a Keras layer is one layer of a torch module, in one direction or in both.

| Keras | torch.nn | weights |
|---|---|---|
| `LSTM` | `LSTM` | transposed; gates i, f, g, o in both; `b_ih + b_hh` is one bias |
| `GRU` | `GRU` | transposed; gates z, r, h from r, z, n; two biases in both |
| `SimpleRNN` | `RNN` | transposed; `b_ih + b_hh` is one bias |
| `Bidirectional` of these | the same, `bidirectional=True` | both directions |
| `RNN` of an `LSTMCell`, ... | the same | the cell's |

A torch `LSTMCell`, `GRUCell` or `RNNCell`, which PyTorch code calls step by step, has the weights
of one layer in one direction, and serves the same Keras layers.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import keras
import numpy as np

from multibackend_lstm.torch_weights.axes import Features, merge
from multibackend_lstm.torch_weights.rules.base import Call, Rule, different, to_torch_order
from multibackend_lstm.torch_weights.weights import Moved, Tensors, Weight, take_gates


class RecurrentRule(Rule):
    """What the recurrent layers share.

    Attributes:
        activations: by the layer's argument, the names of those that the torch module has.
        gates: which of Keras's gates stand first, second, ... in PyTorch; None for the same order.
    """

    outputs = "sequence"
    compared_with: ClassVar = {"stateful": False, "return_state": False}
    activations: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "activation": ("tanh",),
        "recurrent_activation": ("sigmoid",),
    }
    gates: tuple[int, ...] | None = None

    def refusal(self, layer: Any, inputs: Features) -> str | None:
        """As in `Rule`."""
        for inner in directions(layer):
            for argument, names in self.activations.items():
                found = getattr(inner.cell, argument)
                if not any(_is(found, name) for name in names):
                    given = getattr(found, "__name__", found)
                    return f"{argument}={given!r}, and torch.nn has {' and '.join(names)} alone"
        if len(directions(layer)) == 1 and layer.go_backwards:
            return (
                "go_backwards=True, which torch.nn does not have: reverse the sequence in a layer "
                "of its own, or use Bidirectional"
            )
        return None

    def weights(self, layer: Any, inputs: Features) -> list[Weight]:
        """As in `Rule`; the names are those of one layer of the module, without its number."""
        columns = merge(inputs.axes[2:]).order
        found: list[Weight] = []
        for inner, suffix in zip(directions(layer), ("", "_reverse"), strict=False):
            cell, gates = inner.cell, self.gates
            found += [
                Moved(cell.kernel, f"weight_ih{suffix}", (1, 0), None, columns, 0, gates),
                Moved(cell.recurrent_kernel, f"weight_hh{suffix}", (1, 0), gates=gates),
            ]
            if cell.bias is not None:
                found.append(self._bias(cell.bias, suffix))
        return found

    def differences(self, layer: Any, inputs: Features, module: Any) -> list[str]:
        """As in `Rule`."""
        expected = {**self._settings(layer), "proj_size": 0}
        if type(module).__name__.endswith("Cell"):  # one direction, without a projection
            expected = {name: value for name, value in expected.items() if name == "nonlinearity"}
        return different(expected, module)

    def module_and_call(self, layer: Any, inputs: Features) -> tuple[Any, Call]:
        """As in `Rule`."""
        import torch

        first = directions(layer)[0]
        cell, units = first.cell, first.cell.units
        module = getattr(torch.nn, self.modules[0])(
            cell.kernel.shape[0],
            units,
            bias=cell.bias is not None,
            batch_first=True,
            **self._settings(layer),
        )
        columns = merge(inputs.axes[2:]).order

        def call(module: Any, x: Any) -> Any:
            outputs, _ = module(to_torch_order(x.flatten(2), columns, 2))
            forward, backward = outputs[..., :units], outputs[..., units:]
            if not first.return_sequences:
                forward, backward = forward[:, -1], backward[:, 0]
            both = len(directions(layer)) == 2
            return _merged(forward, backward, layer.merge_mode) if both else forward

        return module, call

    def check_shape(self, layer: Any, inputs: Features, batch: int, steps: int) -> tuple[int, ...]:
        """As in `Rule`."""
        _, time, *features = super().check_shape(layer, inputs, batch, steps)
        return (batch, min(time, steps), *features)

    def _settings(self, layer: Any) -> dict[str, Any]:
        """Attributes of the module, which are arguments to build it with as well."""
        return {"bidirectional": len(directions(layer)) == 2}

    def _bias(self, variable: Any, suffix: str) -> Weight:
        return SummedBias(variable, suffix)


class LSTM(RecurrentRule):
    """`LSTM`."""

    modules = ("LSTM", "LSTMCell")


class GRU(RecurrentRule):
    """`GRU`."""

    modules = ("GRU", "GRUCell")
    gates = (1, 0, 2)  # of z, r, h

    def refusal(self, layer: Any, inputs: Features) -> str | None:
        """As in `Rule`."""
        if not all(inner.cell.reset_after for inner in directions(layer)):
            return (
                "reset_after=False, and torch.nn.GRU applies the reset gate after the matrix "
                "product: build the layer with reset_after=True"
            )
        return super().refusal(layer, inputs)

    def _bias(self, variable: Any, suffix: str) -> Weight:
        return TwoBiases(variable, self.gates, suffix)


class SimpleRNN(RecurrentRule):
    """`SimpleRNN`, with either of PyTorch's two nonlinearities."""

    modules = ("RNN", "RNNCell")
    activations: ClassVar = {"activation": ("tanh", "relu")}

    def refusal(self, layer: Any, inputs: Features) -> str | None:
        """As in `Rule`."""
        refusal = super().refusal(layer, inputs)
        if refusal is None and len({self._nonlinearity(x) for x in directions(layer)}) > 1:
            return "tanh in one direction and relu in the other, and torch.nn.RNN has one for both"
        return refusal

    def assumption(self, layer: Any) -> str | None:
        """As in `Rule`."""
        name = self._nonlinearity(layer)
        if name == "tanh":
            return None
        return (
            f"activation={name!r}, where torch.nn.RNN has nonlinearity='tanh' by default; a state "
            "dict does not hold it"
        )

    def _settings(self, layer: Any) -> dict[str, Any]:
        return {**super()._settings(layer), "nonlinearity": self._nonlinearity(layer)}

    @staticmethod
    def _nonlinearity(layer: Any) -> str:
        return "relu" if _is(directions(layer)[0].cell.activation, "relu") else "tanh"


@dataclass(frozen=True)
class SummedBias:
    """The bias of an LSTM or RNN: PyTorch adds two, so that only their sum means anything.

    Going to PyTorch, `bias_ih` gets all of it and `bias_hh` is zero. Both have the gradient that
    Keras's one bias has.
    """

    variable: Any
    suffix: str = ""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """See `Weight`."""
        return dict.fromkeys((f"bias_ih{self.suffix}", f"bias_hh{self.suffix}"), self._shape)

    @property
    def _shape(self) -> tuple[int, ...]:
        return tuple(self.variable.shape)

    def to_torch(self, value: np.ndarray, gradient: bool = False) -> dict[str, np.ndarray]:
        """See `Weight`."""
        first, second = self.shapes
        return {first: value, second: value if gradient else np.zeros_like(value)}

    def to_keras(self, tensors: Tensors, gradient: bool = False) -> np.ndarray:
        """See `Weight`."""
        first, second = (tensors[name] for name in self.shapes)
        if gradient:
            return first
        # Rounded once, to the variable's dtype, when it is assigned.
        return first.astype("float64") + second.astype("float64")


@dataclass(frozen=True)
class TwoBiases:
    """The biases of a GRU, `(2, 3 * units)` in Keras: for the input and for the state.

    The reset gate multiplies the second one in part, so that they cannot be added up.
    """

    variable: Any
    gates: tuple[int, ...]
    suffix: str = ""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """See `Weight`."""
        size = (math.prod(self.variable.shape) // 2,)
        return dict.fromkeys((f"bias_ih{self.suffix}", f"bias_hh{self.suffix}"), size)

    def to_torch(self, value: np.ndarray, gradient: bool = False) -> dict[str, np.ndarray]:
        """See `Weight`."""
        return dict(zip(self.shapes, take_gates(value, self.gates), strict=True))

    def to_keras(self, tensors: Tensors, gradient: bool = False) -> np.ndarray:
        """See `Weight`."""
        stacked = np.stack([tensors[name] for name in self.shapes])
        return take_gates(stacked, tuple(np.argsort(self.gates)))


def directions(layer: Any) -> list[Any]:
    """The layers of a `Bidirectional`, forward first; or the layer itself."""
    if isinstance(layer, keras.layers.Bidirectional):
        return [layer.forward_layer, layer.backward_layer]
    return [layer]


def _is(activation: Any, name: str) -> bool:
    return activation in (getattr(keras.activations, name), getattr(keras.ops, name))


def _merged(forward: Any, backward: Any, mode: str | None) -> Any:
    import torch

    if mode == "concat" or mode is None:
        return torch.cat([forward, backward], dim=-1)
    merged = {"sum": forward + backward, "mul": forward * backward}
    return merged[mode] if mode in merged else (forward + backward) / 2
