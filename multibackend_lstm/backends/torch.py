"""The PyTorch backend."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import torch
from keras import KerasTensor, ops

from multibackend_lstm.backends.base import Backend, KernelCall

# In a gate's sigmoid this is exactly 1, or with a minus sign 0, in every floating dtype, and it
# is finite in float16.
_SATURATED = 1e4


def _with_indicator(
    inputs: torch.Tensor, kernel: torch.Tensor, valid: torch.Tensor, row: list[float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add the input column that is 1 on masked steps, with the weight `row[gate]` for a gate."""
    weight = torch.tensor(row, dtype=kernel.dtype, device=kernel.device)
    weight = weight.repeat_interleave(kernel.shape[1] // len(row))[None]
    return (
        torch.cat([inputs, (~valid)[..., None].to(inputs.dtype)], dim=2),
        torch.cat([kernel, weight], dim=0),
    )


def _for_kernel(
    inputs: torch.Tensor, states: list[Any], weights: list[Any]
) -> tuple[torch.Tensor, list[Any], list[Any]]:
    """Tensors in the dtype and layout that the ATen kernels run on."""
    dtype = inputs.dtype
    if inputs.device.type == "cpu" and dtype in (torch.float16, torch.bfloat16):
        dtype = torch.float32  # ATen would carry the states in half precision too
    inputs = inputs.to(dtype)
    states = [state.to(dtype).contiguous()[None] for state in states]
    weights = [weight.to(dtype) for weight in weights]
    if inputs.device.type == "cuda":
        # cuDNN wants all weights in one block of memory, or it copies them and warns.
        flat = torch.cat([weight.reshape(-1) for weight in weights])
        parts = flat.split([weight.numel() for weight in weights])
        weights = [part.view(w.shape) for part, w in zip(parts, weights, strict=True)]
    return inputs, states, weights


def _at_length(sequence: torch.Tensor, lengths: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    """The step before each sample's length; the initial state where that is 0."""
    index = (lengths - 1).clamp(min=0)[:, None, None].expand(-1, 1, sequence.shape[2])
    return torch.where(lengths[:, None] > 0, sequence.gather(1, index)[:, 0], h.to(sequence.dtype))


def _aten(
    kernel: str, inputs: torch.Tensor, states: list[Any], weights: list[Any]
) -> list[torch.Tensor]:
    """Call `torch._VF.lstm` or `gru`, one layer in one direction, batch first.

    Returns:
        The sequence and the final states; states have an axis for the layer in front.
    """
    if torch.compiler.is_dynamo_compiling() and not getattr(torch.compiler, "is_exporting", bool)():
        outputs: list[torch.Tensor] = torch.ops.multibackend_lstm.rnn(
            kernel, inputs, states, weights
        )
        return outputs
    return _call_aten(kernel, inputs, states, weights, torch.is_grad_enabled())


def _call_aten(
    kernel: str, inputs: torch.Tensor, states: list[Any], weights: list[Any], train: bool
) -> list[torch.Tensor]:
    given = states if kernel == "lstm" else states[0]
    # (input, states, weights, has_biases, layers, dropout, train, bidirectional, batch_first)
    call = getattr(torch._VF, kernel)
    return list(call(inputs, given, weights, len(weights) > 2, 1, 0.0, train, False, True))


# torch.compile cannot differentiate the kernel of an LSTM (an AssertionError in torch 2.13), and
# writes a loop of a GRU out step by step. So it gets each as one operation of its own, whose
# backward pass runs the kernel again: what that saved cannot be handed from one to the other.
_SIGNATURE = "(str kernel, Tensor inputs, Tensor[] states, Tensor[] weights"
torch.library.define("multibackend_lstm::rnn", f"{_SIGNATURE}) -> Tensor[]")
torch.library.define(
    "multibackend_lstm::rnn_backward", f"{_SIGNATURE}, Tensor[] gradients) -> Tensor[]"
)


@torch.library.impl("multibackend_lstm::rnn", "default")
def _rnn(kernel: str, inputs: Any, states: list[Any], weights: list[Any]) -> list[Any]:
    with torch.no_grad():
        outputs = _call_aten(kernel, inputs, states, weights, False)
    return [output.contiguous() for output in outputs]


@torch.library.register_fake("multibackend_lstm::rnn")
def _rnn_shapes(kernel: str, inputs: Any, states: list[Any], weights: list[Any]) -> list[Any]:
    sequence = inputs.new_empty((*inputs.shape[:2], states[0].shape[2]))
    return [sequence, *(torch.empty_like(state) for state in states)]


@torch.library.impl("multibackend_lstm::rnn_backward", "default")
def _rnn_backward(
    kernel: str, inputs: Any, states: list[Any], weights: list[Any], gradients: list[Any]
) -> list[Any]:
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in (inputs, *states, *weights)]
        last = 1 + len(states)
        outputs = _call_aten(kernel, leaves[0], leaves[1:last], leaves[last:], True)
        return [x.contiguous() for x in torch.autograd.grad(outputs, leaves, gradients)]


@torch.library.register_fake("multibackend_lstm::rnn_backward")
def _rnn_backward_shapes(
    kernel: str, inputs: Any, states: list[Any], weights: list[Any], gradients: list[Any]
) -> list[Any]:
    return [x.new_empty(x.shape) for x in (inputs, *states, *weights)]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.kernel, x, states, weights = inputs
    ctx.last = 1 + len(states)
    ctx.save_for_backward(x, *states, *weights)


def _gradients(ctx: Any, gradients: list[Any]) -> tuple[Any, ...]:
    saved, last = ctx.saved_tensors, ctx.last
    found = torch.ops.multibackend_lstm.rnn_backward(
        ctx.kernel, saved[0], saved[1:last], saved[last:], gradients
    )
    return None, found[0], found[1:last], found[last:]


torch.library.register_autograd("multibackend_lstm::rnn", _gradients, setup_context=_save)


class TorchBackend(Backend):
    """The kernels of ATen, and what Keras's operations on torch do slower or less exactly."""

    def convolve(self, layer: keras.layers.Layer, x: KerasTensor) -> KerasTensor:
        """See `Backend`; one axis as a 2D convolution of height 1.

        PyTorch has a channels-last memory format for 2D convolutions and none for 1D, where the
        data is copied to channels-first and back.
        """
        if not isinstance(layer, keras.layers.Conv1D) or layer.padding == "causal":
            return super().convolve(layer, x)
        x = ops.cast(x, layer.compute_dtype)
        x = ops.conv(
            # The transposed view of channels-last data is what PyTorch calls channels-last.
            ops.transpose(ops.expand_dims(x, 1), (0, 3, 1, 2)),
            ops.expand_dims(layer.kernel, 0),
            strides=(1, *layer.strides),
            padding=layer.padding,
            data_format="channels_first",
            dilation_rate=(1, *layer.dilation_rate),
        )
        x = ops.squeeze(ops.transpose(x, (0, 2, 3, 1)), 1)
        return ops.add(x, layer.bias) if layer.use_bias else x

    def matmul(self, x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
        """See `Backend`; that of Keras computes float64 in float32 (Keras 3.15)."""
        product: torch.Tensor = (
            torch.matmul(x, kernel) if x.dtype == torch.float64 else ops.matmul(x, kernel)
        )
        return product

    def float64_refusal(self, statistics: bool = False) -> str | None:
        """See `Backend`."""
        if ops.zeros(()).device.type == "mps":
            return "Apple's GPUs have no float64"
        return "Keras normalises in float32 there" if statistics else None

    def rotate_left(self, words: torch.Tensor, places: int) -> torch.Tensor:
        """See `Backend`; eager, where each operation costs more than what it computes."""
        carried = torch.bitwise_right_shift(words, 32 - places)
        carried &= (1 << places) - 1
        return carried.add_(words, alpha=1 << places)

    def stable_argsort(self, x: Any) -> Any:
        """See `Backend`."""
        return ops.argsort(x)

    def concrete(self, x: Any) -> np.ndarray | None:
        """See `Backend`; on a GPU to read a value is to wait for all that was started before."""
        if torch.compiler.is_compiling() or x.device.type != "cpu":
            return None
        values: np.ndarray = x.detach().numpy()
        return values

    def replicas(self) -> int:
        """See `Backend`: a process each."""
        return self.process()[1]

    def process(self) -> tuple[int, int]:
        """See `Backend`."""
        distributed = torch.distributed
        if not (distributed.is_available() and distributed.is_initialized()):
            return 0, 1
        return distributed.get_rank(), distributed.get_world_size()

    def rows_before(self, count: Any) -> Any:
        """See `Backend`: those of Keras 3.16's `DataParallel`, whose processes have equal ones."""
        if isinstance(keras.distribution.distribution(), keras.distribution.DataParallel):
            return self.process()[0] * count
        return 0

    def kernel_refusal(self, kernel: str) -> str | None:
        """See `Backend`."""
        return None

    def kernel_path(self, kernel: str, shape: Sequence[int | None], dtype: str, cudnn: bool) -> str:
        """See `Backend`; `torch.lstm` and `torch.gru` choose cuDNN by themselves."""
        return f"torch.{kernel}"

    def valid_steps_first(self, path: str) -> bool:
        """See `Backend`: ATen's kernels know no masks."""
        return True

    def lstm(self, call: KernelCall) -> tuple[Any, Any, list[Any]]:
        """See `Backend`: the ATen kernel that `torch.nn.LSTM` calls."""
        inputs, valid = call.inputs, call.valid
        kernel, recurrent_kernel, bias = call.weights
        dtype = inputs.dtype
        if valid is not None and call.needs_states:
            # A closed input gate and an open forget gate keep the cell state through the padding.
            inputs, kernel = _with_indicator(
                inputs, kernel, valid, [-_SATURATED, _SATURATED, 0.0, 0.0]
            )
        biases = [] if bias is None else [bias, torch.zeros_like(bias)]
        inputs, (h, c), parameters = _for_kernel(
            inputs, call.states, [kernel.t(), recurrent_kernel.t(), *biases]
        )
        sequence, last, c = _aten("lstm", inputs, [h, c], parameters)
        last, c = last[0], c[0]
        if valid is not None:
            last = _at_length(sequence, valid.sum(1), h[0])
        return sequence.to(dtype), last.to(dtype), [last, c]

    def gru(self, call: KernelCall) -> tuple[Any, Any, list[Any]]:
        """See `Backend`: the ATen kernel that `torch.nn.GRU` calls."""
        inputs, valid = call.inputs, call.valid
        kernel, recurrent_kernel, bias = call.weights
        dtype = inputs.dtype

        def reordered(x: torch.Tensor) -> torch.Tensor:
            """Gates z, r, h as PyTorch's r, z, n."""
            z, r, n = x.chunk(3, dim=-1)
            return torch.cat([r, z, n], dim=-1)

        if valid is not None:
            # An open update gate keeps the state through the padding.
            inputs, kernel = _with_indicator(inputs, kernel, valid, [_SATURATED, 0.0, 0.0])
        biases = [] if bias is None else list(reordered(bias))
        inputs, (h,), parameters = _for_kernel(
            inputs, call.states, [reordered(kernel).t(), reordered(recurrent_kernel).t(), *biases]
        )
        sequence, last = _aten("gru", inputs, [h], parameters)
        return sequence.to(dtype), last[0].to(dtype), [last[0]]
