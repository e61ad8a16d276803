"""The JAX backend."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
from jax import lax
from jax.experimental import rnn
from jax.interpreters import mlir
from keras import KerasTensor, ops

from multibackend_lstm.backends import recurrence
from multibackend_lstm.backends.base import Backend, KernelCall, Weights

CUDNN = "cuDNN"  # in programs for CUDA; in those for anything else `lax.scan`


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _lstm(backend: Backend, *arguments: Any) -> Any:
    return recurrence.lstm(backend, *arguments)[:3]


def _lstm_forward(backend: Backend, *arguments: Any) -> Any:
    hs, h, c, cs = recurrence.lstm(backend, *arguments)
    return (hs, h, c), (arguments, hs, cs)


def _lstm_backward(backend: Backend, saved: Any, gradients: Any) -> Any:
    arguments, hs, cs = saved
    found = recurrence.lstm_gradient(backend, arguments, hs, cs, gradients)
    return (*found, None)  # for `valid`


_lstm.defvjp(_lstm_forward, _lstm_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gru(backend: Backend, *arguments: Any) -> Any:
    return recurrence.gru(backend, *arguments)


def _gru_forward(backend: Backend, *arguments: Any) -> Any:
    hs, h = recurrence.gru(backend, *arguments)
    return (hs, h), (arguments, hs)


def _gru_backward(backend: Backend, saved: Any, gradients: Any) -> Any:
    arguments, hs = saved
    found = recurrence.gru_gradient(backend, arguments, hs, gradients)
    return (*found, None)  # for `valid`


_gru.defvjp(_gru_forward, _gru_backward)

# Outside of a jitted function JAX would compile the loop anew at every call.
_jitted_lstm = jax.jit(_lstm, static_argnums=0)
_jitted_gru = jax.jit(_gru, static_argnums=0)


@functools.cache
def _sees_cuda() -> bool:
    """Whether JAX sees a GPU, of whose cuDNN it asks sizes already where it traces a program."""
    try:
        found = bool(jax.devices("cuda"))
    except RuntimeError:
        return False
    if found:
        _allow_other_platforms()
    return found


def _allow_other_platforms() -> None:
    """Let a program for several platforms hold cuDNN in what it does on CUDA.

    JAX wants each operation of such a program for each platform, needed or not (JAX 0.10). What
    is given here for the others has no implementation there, so that nothing can run it unnoticed.
    """
    for primitive, target in (
        (rnn.rnn_fwd_p, "cudnn_rnn_ffi"),
        (rnn.rnn_bwd_p, "cudnn_rnn_bwd_ffi"),
    ):
        mlir.register_lowering(primitive, functools.partial(_missing, target))


def _missing(target: str, context: Any, *operands: Any, **_: Any) -> Any:
    shapes = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in context.avals_out]
    call = jax.ffi.ffi_call(target, shapes)
    return mlir.lower_fun(call, multiple_results=True)(context, *operands)


def _time_first(x: Any) -> Any:
    return jnp.swapaxes(x, 0, 1)


def _mask_steps(valid: Any) -> Any:
    """Boolean `(time, batch, 1)`, or None."""
    return None if valid is None else valid.T[..., None]


def _scanned_lstm(
    backend: Backend, inputs: Any, states: list[Any], valid: Any, weights: Weights
) -> tuple[Any, Any, list[Any]]:
    """As the backend's `lstm`, by `lax.scan` with its own backward pass."""
    hs, h, c = _jitted_lstm(backend, _time_first(inputs), *states, *weights, _mask_steps(valid))
    return _time_first(hs), h, [h, c]


def _cudnn_lstm(
    inputs: Any, states: list[Any], valid: Any, weights: Weights
) -> tuple[Any, Any, list[Any]]:
    """As the backend's `lstm`, by cuDNN."""
    kernel, recurrent_kernel, bias = weights
    (batch, time, features), units = inputs.shape, recurrent_kernel.shape[0]
    parts = (kernel.T, recurrent_kernel.T, bias, jnp.zeros_like(bias))
    lengths = jnp.full(batch, time) if valid is None else jnp.sum(valid, axis=1)
    # cuDNN refuses a sample without a step: that one takes a step, and its states are put back.
    sequence, *results = rnn.lstm(
        inputs,
        *(state.astype(inputs.dtype)[None] for state in states),
        weights=jnp.concatenate([part.ravel() for part in parts]),
        seq_lengths=jnp.maximum(lengths, 1).astype("int32"),
        input_size=features,
        hidden_size=units,
        num_layers=1,
        dropout=0.0,
        bidirectional=False,
        precision=_cudnn_precision(),
    )
    has_step = lengths[:, None] > 0
    h, c = (
        jnp.where(has_step, new[0].astype(old.dtype), old)
        for new, old in zip(results, states, strict=True)
    )
    return sequence, h, [h, c]


def _cudnn_precision() -> lax.Precision:
    """TF32 unless float32 products are asked to be exact; JAX refuses other settings for cuDNN."""
    exact = jax.config.jax_default_matmul_precision in ("highest", "float32")
    return lax.Precision.HIGHEST if exact else lax.Precision.HIGH


@functools.partial(jax.jit, static_argnums=0)
def _lstm_by_platform(backend: Backend, *arguments: Any) -> tuple[Any, Any, list[Any]]:
    """`_cudnn_lstm` in a program for CUDA, `_scanned_lstm` in one for anything else.

    A program is lowered for the devices that hold its data, or exported for one or several
    platforms: none of that needs to be JAX's default.
    """
    scanned = functools.partial(_scanned_lstm, backend)
    result: tuple[Any, Any, list[Any]] = lax.platform_dependent(
        *arguments, cuda=_cudnn_lstm, default=scanned
    )
    return result


_jitted = functools.cache(jax.jit)


class JAXBackend(Backend):
    """XLA's loop with a backward pass of its own, or cuDNN."""

    def concatenate_steps(self, call_steps: Callable[[int, int], Any], time: int, size: int) -> Any:
        """See `Backend`; JAX knows `time` except in an export with symbolic sizes."""
        if not isinstance(time, int):
            raise ValueError(
                f"`steps_per_call={size}` needs to know the number of time steps, and this export "
                f"leaves it open (time={time}). Give the time axis of the exported input a size, "
                "or set `steps_per_call` to None before exporting."
            )
        return super().concatenate_steps(call_steps, time, size)

    def convolve(self, layer: keras.layers.Layer, x: KerasTensor) -> KerasTensor:
        """See `Backend`; three axes as one 2D convolution.

        XLA's 3D convolution is slow on CPUs. The kernel's slices along the first axis go to the
        features: the inputs of all slices side by side, convolved over the other two axes.
        """
        if not isinstance(layer, keras.layers.Conv3D) or layer.groups > 1:
            return super().convolve(layer, x)
        size, stride, rate = (
            setting[0] for setting in (layer.kernel_size, layer.strides, layer.dilation_rate)
        )
        x = ops.cast(x, layer.compute_dtype)
        batch, depth, height, width, features = ops.shape(x)
        span = (size - 1) * rate + 1
        if layer.padding == "same":
            missing = max((-(-depth // stride) - 1) * stride + span - depth, 0)
            x = ops.pad(x, ((0, 0), (missing // 2, missing - missing // 2), *[(0, 0)] * 3))
            depth += missing
        positions = (depth - span) // stride + 1
        slices = [
            x[:, start : start + (positions - 1) * stride + 1 : stride]
            for start in range(0, span, rate)
        ]
        x = ops.reshape(
            ops.concatenate(slices, axis=-1), (batch * positions, height, width, size * features)
        )
        kernel = ops.transpose(ops.convert_to_tensor(layer.kernel), (1, 2, 0, 3, 4))
        x = ops.conv(
            x,
            ops.reshape(kernel, (*layer.kernel_size[1:], size * features, layer.filters)),
            strides=layer.strides[1:],
            padding=layer.padding,
            data_format="channels_last",
            dilation_rate=layer.dilation_rate[1:],
        )
        x = ops.reshape(x, (batch, positions, *ops.shape(x)[1:]))
        return ops.add(x, layer.bias) if layer.use_bias else x

    def tanh(self, x: Any) -> Any:
        """See `Backend`; that of Keras computes float64 in float32 (Keras 3.15)."""
        return jnp.tanh(x)

    def float64_refusal(self, statistics: bool = False) -> str | None:
        """See `Backend`."""
        if jax.config.jax_enable_x64:
            return "Keras normalises in float32 there" if statistics else None
        return (
            "JAX's 64-bit types are turned off, `jax.config.update('jax_enable_x64', True)` at the "
            "start turns them on"
        )

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Jitted: outside of a jitted function JAX would start each operation by itself."""
        return _jitted(function)

    def stable_argsort(self, x: Any) -> Any:
        """See `Backend`."""
        return ops.argsort(x)

    def concrete(self, x: Any) -> np.ndarray | None:
        """See `Backend`."""
        return None if isinstance(x, jax.core.Tracer) else np.asarray(x)

    def process(self) -> tuple[int, int]:
        """See `Backend`."""
        return jax.process_index(), jax.process_count()

    def scan(self, step: Any, states: Any, xs: Any, reverse: bool = False) -> Any:
        """See `Backend`."""
        return lax.scan(step, states, xs, reverse=reverse)

    def supports_jit(self, time: int | None) -> bool:
        """See `Backend`: JAX always does."""
        return True

    def kernel_refusal(self, kernel: str) -> str | None:
        """See `Backend`."""
        return None

    def kernel_path(self, kernel: str, shape: Sequence[int | None], dtype: str, cudnn: bool) -> str:
        """See `Backend`; JAX has cuDNN's LSTM, in float32, and no GRU of it."""
        if kernel != "lstm" or not cudnn or dtype != "float32" or not _sees_cuda():
            return "lax.scan"
        # An export may leave sizes open, and cuDNN is asked about known ones.
        known = all(isinstance(size, int) for size in shape if size is not None)
        return CUDNN if known and shape[0] else "lax.scan"

    def valid_steps_first(self, path: str) -> bool:
        """See `Backend`: cuDNN does."""
        return path == CUDNN

    def lstm(self, call: KernelCall) -> tuple[Any, Any, list[Any]]:
        """See `Backend`: cuDNN on a GPU, else `lax.scan` with its own backward pass."""
        kernel, recurrent_kernel, bias = call.weights
        bias = jnp.zeros(kernel.shape[1], kernel.dtype) if bias is None else bias
        weights = Weights(kernel, recurrent_kernel, bias)
        run: Callable[..., Any] = _lstm_by_platform if call.path == CUDNN else _scanned_lstm
        result: tuple[Any, Any, list[Any]] = run(
            self, call.inputs, call.states, call.valid, weights
        )
        return result

    def gru(self, call: KernelCall) -> tuple[Any, Any, list[Any]]:
        """See `Backend`: `lax.scan` with a backward pass of its own."""
        kernel, recurrent_kernel, bias = call.weights
        biases = jnp.zeros((2, kernel.shape[1]), kernel.dtype) if bias is None else bias
        hs, h = _jitted_gru(
            self,
            _time_first(call.inputs),
            *call.states,
            kernel,
            recurrent_kernel,
            *biases,
            _mask_steps(call.valid),
        )
        return _time_first(hs), h, [h]
