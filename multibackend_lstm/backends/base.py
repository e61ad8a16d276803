"""What layers compute with that differs among backends: the contract, portable in `keras.ops`."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import KerasTensor, ops, tree

Step = Callable[[list[Any], list[Any]], tuple[list[Any], list[Any]]]


class Refused(Exception):  # noqa: N818 - not an error: the caller has another way
    """What was asked for cannot be had on this backend; the message is the reason."""


class Weights(NamedTuple):
    """Weights of a recurrent layer in the form that Keras gives them, in the compute dtype.

    Attributes:
        kernel: `(features, gates * units)`; LSTM gates i, f, g, o; GRU gates z, r, h.
        recurrent_kernel: `(units, gates * units)`.
        bias: `(gates * units,)`; for a GRU with `reset_after=True` `(2, gates * units)`, the
            input's and the recurrent one; None for none.
    """

    kernel: Any
    recurrent_kernel: Any
    bias: Any


class KernelCall(NamedTuple):
    """What a kernel gets.

    Attributes:
        path: what `Backend.kernel_path` returned for this call.
        inputs: `(batch, time, features)`, one step at least; zeros in masked steps.
        states: h and for LSTM c, each `(batch, units)`, float32 at least.
        valid: boolean `(batch, time)`, False for masked steps; or None. Where
            `Backend.valid_steps_first(path)` says so, each sample's valid steps come first.
        weights: in the dtype of the inputs.
        needs_sequence: whether the hidden state after each step will be used.
        needs_states: whether the final states will be used.
        reset_after: of a GRU.
    """

    path: str
    inputs: Any
    states: list[Any]
    valid: Any
    weights: Weights
    needs_sequence: bool
    needs_states: bool
    reset_after: bool = True


class Backend:
    """A backend that computes eagerly with `keras.ops` alone, as NumPy and OpenVINO do.

    Other backends have a subclass each, for what they do in another way.
    """

    def concatenate_steps(self, call_steps: Callable[[int, int], Any], time: int, size: int) -> Any:
        """Concatenate along time what `call_steps(start, stop)` returns for a few steps at a time.

        Args:
            call_steps: returns a nested structure of `(batch, stop - start, ...)` tensors.
            time: number of steps.
            size: steps a call; the last call may have fewer.
        """
        starts = range(0, max(time, 1), size)  # no steps: one empty call gives the output's form
        parts = [call_steps(start, min(start + size, time)) for start in starts]
        if len(parts) == 1:
            return parts[0]
        return tree.map_structure(lambda *xs: ops.concatenate(xs, axis=1), *parts)

    def convolve(self, layer: keras.layers.Layer, x: KerasTensor) -> KerasTensor:
        """Apply a built channels-last `Conv1D`, `Conv2D` or `Conv3D` that has no activation.

        A backend may compute the same by a faster formulation. `benchmarks/convolution.py`
        compares them.

        Args:
            layer: the convolution.
            x: `(batch, *axes, features)`.

        Returns:
            `(batch, *new_axes, filters)`.
        """
        return layer(x)

    def nonempty(self, x: Any) -> Any:
        """`x`, with a sample of zeros if it has none and the backend cannot convolve none."""
        return x

    def matmul(self, x: Any, kernel: Any) -> Any:
        """Matrix product in the dtype of both, float64 where `float64_refusal()` is None."""
        return ops.matmul(x, kernel)

    def tanh(self, x: Any) -> Any:
        """Hyperbolic tangent in the dtype of `x`, float64 where `float64_refusal()` is None."""
        return ops.tanh(x)

    def float64_refusal(self, statistics: bool = False) -> str | None:
        """Why layers cannot compute in float64, None if they can.

        Args:
            statistics: whether they normalise by means and variances.
        """
        return "Keras computes float64 in float32 there"

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function of tensors, defined at module level, as one program where that is faster."""
        return function

    def rotate_left(self, words: Any, places: int) -> Any:
        """The bits of int32 words moved to the left, the first ones to the end.

        Args:
            words: that may be overwritten.
            places: 1 to 31.
        """
        carried = ops.right_shift(words, 32 - places)
        carried &= (1 << places) - 1  # the shift is one of signed words
        words *= 1 << places
        words |= carried
        return words

    def stable_argsort(self, x: Any) -> Any:
        """Indices that sort a tensor `(n,)`; of equal entries the earlier comes first."""
        # Keras calls NumPy's default sort, which promises no order of equal entries.
        return ops.convert_to_tensor(np.argsort(ops.convert_to_numpy(x), kind="stable"), "int32")

    def concrete(self, x: Any) -> np.ndarray | None:
        """The values of a tensor; None where they are not known yet (inside a trace, on a GPU)."""
        return ops.convert_to_numpy(x)

    def replicas(self) -> int:
        """Into how many parts the engine that is active here divides a batch."""
        distribution = keras.distribution.distribution()
        if distribution is None:
            return 1
        mesh = distribution.device_mesh
        return int(mesh.shape[list(mesh.axis_names).index(distribution.batch_dim_name)])

    def process(self) -> tuple[int, int]:
        """Which of the processes that train one model this is, from 0, and how many there are."""
        return 0, 1

    def rows_before(self, count: Any) -> Any:
        """How many rows of the global batch those replicas have that come before this one.

        Args:
            count: the rows of this one.
        """
        return 0

    def scan(
        self, step: Step, states: list[Any], xs: list[Any], reverse: bool = False
    ) -> tuple[list[Any], list[Any]]:
        """A loop over the first axis of the tensors `xs`.

        Args:
            step: `step(states, x) -> (states, y)`, where `x` and `y` are lists of tensors.
            states: list of tensors, of the same shapes and dtypes after each step.
            xs: list of tensors of shape `(time, ...)`, one step at least.
            reverse: whether to start from the end.

        Returns:
            `(states, ys)`: the states after the last step, and each `y` stacked, `(time, ...)`.
        """
        return self.unrolled_scan(step, states, xs, reverse)

    def unrolled_scan(
        self, step: Step, states: list[Any], xs: list[Any], reverse: bool = False
    ) -> tuple[list[Any], list[Any]]:
        """As `scan`, for a known number of steps, all written out where they are traced."""
        # One unstack for all steps: the gradient of indexing is a tensor as long as the sequence.
        steps = list(zip(*(ops.unstack(x, axis=0) for x in xs), strict=True))
        ys = []
        for x in reversed(steps) if reverse else steps:
            states, y = step(states, list(x))
            ys.append(y)
        if reverse:
            ys.reverse()
        return states, [ops.stack(y, axis=0) for y in zip(*ys, strict=True)]

    @contextmanager
    def portable_graphs(self, runtime: str) -> Iterator[list[str]]:
        """What is traced within has only loops that another runtime can express, and no branches.

        A recurrence that is one operator there is marked as such. It is for the backend that
        traces loops as such, TensorFlow.

        Args:
            runtime: `"onnx"`, `"litert"`, or `"litert_fused"` for LiteRT's operator of an LSTM.

        Yields:
            A list that takes why a recurrence asked for as an operator became a loop.
        """
        yield []

    def resets_before_product(self) -> bool:
        """Whether the GRU kernel has `reset_after=False` too."""
        return False

    def supports_jit(self, time: int | None) -> bool:
        """Whether `compile(jit_compile="auto")` may compile a model with a recurrent layer.

        Args:
            time: number of steps, None where it is unknown.
        """
        return True

    def kernel_refusal(self, kernel: str) -> str | None:
        """Why there is no kernel for a whole recurrent layer, None if there is one.

        Args:
            kernel: `"lstm"` or `"gru"`, the method that would run it.
        """
        return f"this backend has no {kernel.upper()} kernel"

    def kernel_path(self, kernel: str, shape: Sequence[int | None], dtype: str, cudnn: bool) -> str:
        """Which kernel serves a call where `kernel_refusal` has none, by the name of what runs.

        Args:
            kernel: `"lstm"` or `"gru"`.
            shape: `(batch, time, features)` of the inputs; None for what is unknown.
            dtype: that of inputs and weights.
            cudnn: whether cuDNN may be used.
        """
        raise NotImplementedError(self.kernel_refusal(kernel))

    def valid_steps_first(self, path: str) -> bool:
        """Whether that kernel needs each sample's valid steps before its masked ones."""
        return False

    def lstm(self, call: KernelCall) -> tuple[Any, Any, list[Any]]:
        """A whole LSTM layer in the backend's fastest way.

        Returns:
            `(sequence, last, states)`. `sequence`, `(batch, time, units)`, is the hidden state
            after each step; after a masked step that of the step before, or where
            `valid_steps_first(path)` any finite value. `last`, `(batch, units)`, is the hidden
            state after each sample's last valid step; its initial one where it has none.
            `states` are those after each sample's last valid step.
        """
        raise NotImplementedError(self.kernel_refusal("lstm"))

    def gru(self, call: KernelCall) -> tuple[Any, Any, list[Any]]:
        """A whole GRU layer; see `lstm`, but for h as the one state.

        With `reset_after=False` only where `resets_before_product` says so.
        """
        raise NotImplementedError(self.kernel_refusal("gru"))
