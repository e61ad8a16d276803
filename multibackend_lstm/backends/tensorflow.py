"""The TensorFlow backend."""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import tensorflow as tf
from keras import tree

from multibackend_lstm.backends import recurrence
from multibackend_lstm.backends.base import Backend, KernelCall, Step
from multibackend_lstm.backends.tensorflow_operators import litert_operator, onnx_operator

CUDNN = "cuDNN"
LOOP = "tf.while_loop"
COMPILED_LOOP = "tf.while_loop, XLA"
ONNX = "one operator of ONNX"
LITERT = "one operator of LiteRT"


def _on_gpu() -> bool:
    return bool(tf.config.list_logical_devices("GPU"))


def _mask_steps(valid: Any) -> Any:
    """Boolean `(time, batch, 1)`, or None."""
    return None if valid is None else tf.expand_dims(tf.transpose(valid), -1)


def _time_first(x: Any) -> Any:
    return tf.transpose(x, (1, 0, 2))


def _cudnn(
    mode: str, inputs: Any, states: list[Any], valid: Any, weights: list[Any], biases: list[Any]
) -> tuple[Any, Any, list[Any]]:
    """As the backend's `lstm` and `gru`, from one matrix and bias a gate in cuDNN's order."""
    parts = [tf.reshape(tf.transpose(weight), [-1]) for weight in weights]
    batch, time = tf.shape(inputs)[0], tf.shape(inputs)[1]
    lengths = tf.fill([batch], time)
    if valid is not None:
        lengths = tf.reduce_sum(tf.cast(valid, tf.int32), axis=1)
    h, c = (tf.cast(state, inputs.dtype)[:, None] for state in (*states, states[0])[:2])
    # cuDNN refuses a sample without a step: that one takes a step, and its states are put back.
    sequence, *results, _, _ = tf.raw_ops.CudnnRNNV3(
        input=inputs,
        input_h=h,
        input_c=c if mode == "lstm" else tf.zeros([], inputs.dtype),
        params=tf.concat([*parts, *biases], axis=0),
        sequence_lengths=tf.maximum(lengths, 1),
        rnn_mode=mode,
        is_training=True,
        time_major=False,
    )
    new_states = [
        tf.where(lengths[:, None] > 0, tf.cast(new[:, 0], old.dtype), old)
        for new, old in zip(results, states, strict=False)
    ]
    return sequence, new_states[0], new_states


def _scan_without_lists(
    step: Step, states: list[Any], xs: list[Any], reverse: bool
) -> tuple[list[Any], list[Any]]:
    """As the backend's `scan`, for one step at least, with outputs joined by `tf.concat`.

    Each step copies the outputs of those before it.
    """
    xs = [tf.reverse(x, [0]) if reverse else tf.convert_to_tensor(x) for x in xs]
    time = tf.shape(xs[0])[0]
    first = step([tf.convert_to_tensor(state) for state in states], [x[0] for x in xs])
    states, ys = list(first[0]), [y[None] for y in first[1]]

    def body(index: Any, states: list[Any], ys: list[Any]) -> Any:
        states, new = step(list(states), [tf.gather(x, index) for x in xs])
        joined = [tf.concat([y, x[None]], axis=0) for y, x in zip(ys, new, strict=True)]
        return index + 1, list(states), joined

    _, states, ys = tf.while_loop(
        lambda index, *_: index < time,
        body,
        (tf.constant(1), states, ys),
        shape_invariants=(
            tf.TensorShape([]),
            [tf.TensorShape([None, *state.shape[1:]]) for state in states],
            [tf.TensorShape([None, *y.shape[1:]]) for y in ys],
        ),
    )
    return list(states), [tf.reverse(y, [0]) if reverse else y for y in ys]


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    compiled: Callable[..., Any] = tf.function(
        function, jit_compile=True, autograph=False, reduce_retracing=True
    )
    return compiled


class TensorFlowBackend(Backend):
    """TensorFlow's loop with a backward pass of its own, or cuDNN."""

    def __init__(self) -> None:
        self._portable: str | None = None
        self._loops: list[str] = []

    @contextmanager
    def portable_graphs(self, runtime: str) -> Iterator[list[str]]:
        """See `Backend`.

        ONNX and LiteRT have neither the list of tensors behind a `tf.TensorArray` of unknown size
        nor functions that XLA compiles; branches they do not optimise.
        """
        before, self._portable = self._portable, runtime
        self._loops = []
        try:
            yield self._loops
        finally:
            self._portable = before

    def concatenate_steps(self, call_steps: Callable[[Any, Any], Any], time: Any, size: int) -> Any:
        """See `Backend`; where a graph does not know `time`, in a `tf.while_loop`."""
        if isinstance(time, int):
            return super().concatenate_steps(call_steps, time, size)

        def swap_batch_and_time(x: tf.Tensor) -> tf.Tensor:
            return tf.transpose(x, (1, 0, *range(2, x.shape.rank)))

        # The first call gives the structure and dtypes that the loop has to know beforehand.
        # A TensorArray concatenates along its first axis, so its parts have time first.
        first = call_steps(0, tf.minimum(size, time))
        parts = [swap_batch_and_time(x) for x in tree.flatten(first)]
        calls = tf.maximum((time + size - 1) // size, 1)
        arrays = [
            tf.TensorArray(
                part.dtype, calls, infer_shape=False, element_shape=(None, *part.shape[1:])
            ).write(0, part)
            for part in parts
        ]

        def body(call: tf.Tensor, arrays: list[tf.TensorArray]) -> Any:
            start = call * size
            outputs = tree.flatten(call_steps(start, tf.minimum(start + size, time)))
            return call + 1, [
                array.write(call, swap_batch_and_time(x))
                for array, x in zip(arrays, outputs, strict=True)
            ]

        _, arrays = tf.while_loop(lambda call, _: call < calls, body, (1, arrays))
        return tree.pack_sequence_as(
            first, [swap_batch_and_time(array.concat()) for array in arrays]
        )

    def nonempty(self, x: Any) -> Any:
        """See `Backend`.

        A convolution of an empty batch keeps the number of features it came with, and pooling ends
        the process in its gradient (TensorFlow 2.21, outside XLA).
        """
        if x.shape[0] or self._portable:
            return x
        missing = tf.maximum(1 - tf.shape(x)[0], 0)  # known only when the graph runs
        return tf.pad(x, [(0, missing), *[(0, 0)] * (x.shape.rank - 1)])

    def float64_refusal(self, statistics: bool = False) -> str | None:
        """See `Backend`."""
        return None

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Compiled by XLA, within a graph that is not too."""
        return _compiled(function)

    def stable_argsort(self, x: Any) -> Any:
        """See `Backend`; by `tf.math.top_k`, where of equal entries the earlier comes first."""
        return tf.argsort(x)

    def concrete(self, x: Any) -> np.ndarray | None:
        """See `Backend`."""
        return None if tf.is_symbolic_tensor(x) else np.asarray(x)

    def replicas(self) -> int:
        """See `Backend`."""
        return int(tf.distribute.get_strategy().num_replicas_in_sync)

    def process(self) -> tuple[int, int]:
        """See `Backend`: of the cluster that `TF_CONFIG` describes, without evaluators."""
        resolver = tf.distribute.get_strategy().cluster_resolver
        if resolver is None or not resolver.cluster_spec():
            return 0, 1
        workers = [
            (kind, index)
            for kind in ("chief", "worker")
            for index in range(len(resolver.cluster_spec().as_dict().get(kind, [])))
        ]
        return workers.index((resolver.task_type, resolver.task_id)), len(workers)

    def rows_before(self, count: Any) -> Any:
        """See `Backend`: TensorFlow has each replica compute on its rows as if they were all."""
        context = tf.distribute.get_replica_context()
        if context is None or context.num_replicas_in_sync == 1:
            return 0
        counts = context.all_gather(tf.reshape(count, (1,)), axis=0)
        return tf.reduce_sum(counts[: context.replica_id_in_sync_group])

    def scan(
        self, step: Step, states: list[Any], xs: list[Any], reverse: bool = False
    ) -> tuple[list[Any], list[Any]]:
        """See `Backend`; where a graph does not know the number of steps, it may be 0."""
        if self._portable:
            return _scan_without_lists(step, states, xs, reverse)
        xs = [tf.convert_to_tensor(x) for x in xs]
        states = [tf.convert_to_tensor(state) for state in states]
        static_time = xs[0].shape[0]
        time = tf.shape(xs[0])[0] if static_time is None else static_time
        inputs = [tf.TensorArray(x.dtype, time, element_shape=x.shape[1:]).unstack(x) for x in xs]
        # An array without elements can only be stacked if it knows their shape to the last axis, so
        # there is one element of zeros more where no step may be taken.
        spare = 1 if static_time is None else 0
        shapes = [tf.shape(x)[1:] for x in xs]
        first = [tf.zeros(shape, x.dtype) for shape, x in zip(shapes, xs, strict=True)]
        outputs = [
            tf.TensorArray(y.dtype, time + spare, element_shape=y.shape)
            for y in step(states, first)[1]
        ]
        if spare:
            outputs = [
                array.write(time, tf.zeros_like(y))
                for array, y in zip(outputs, step(states, first)[1], strict=True)
            ]

        def body(count: Any, states: list[Any], outputs: list[Any]) -> Any:
            index = time - 1 - count if reverse else count
            states, ys = step(states, [array.read(index) for array in inputs])
            written = [array.write(index, y) for array, y in zip(outputs, ys, strict=True)]
            return count + 1, states, written

        _, states, outputs = tf.while_loop(
            lambda count, *_: count < time,
            body,
            (tf.constant(0), states, outputs),
            shape_invariants=(
                tf.TensorShape([]),
                [tf.TensorShape([None, *state.shape[1:]]) for state in states],
                [tf.TensorShape(None) for _ in outputs],
            ),
            maximum_iterations=time,
        )
        ys = [array.stack() for array in outputs]
        return states, [y[:time] for y in ys] if spare else ys

    def supports_jit(self, time: int | None) -> bool:
        """See `Backend`; XLA makes the loop up to twice as fast on a processor.

        But cuDNN cannot be in it, and every new number of steps would be compiled anew.
        """
        return time is not None and not _on_gpu() and not self._portable

    def resets_before_product(self) -> bool:
        """See `Backend`."""
        return self._portable == "onnx"

    def kernel_refusal(self, kernel: str) -> str | None:
        """See `Backend`."""
        if self._portable == "litert_fused" and kernel == "gru":
            return "LiteRT has no operator of a GRU"
        return None

    def kernel_path(self, kernel: str, shape: Sequence[int | None], dtype: str, cudnn: bool) -> str:
        """See `Backend`; XLA compiles the loop where a graph knows the number of steps."""
        if self._portable == "onnx":
            return ONNX
        if self._portable == "litert_fused":
            return LITERT
        if cudnn and _on_gpu() and dtype in ("float16", "float32", "float64") and shape[0] != 0:
            return CUDNN
        if tf.executing_eagerly() or not self.supports_jit(shape[1]):
            return LOOP
        return COMPILED_LOOP

    def valid_steps_first(self, path: str) -> bool:
        """See `Backend`: cuDNN and ONNX do."""
        return path in (CUDNN, ONNX)

    def lstm(self, call: KernelCall) -> tuple[Any, Any, list[Any]]:
        """See `Backend`: cuDNN on a GPU, else a loop with its own backward pass."""
        if call.path == ONNX:
            return onnx_operator("LSTM", call)
        if call.path == LITERT:
            return self._litert_lstm(call)
        kernel, recurrent_kernel, bias = call.weights
        bias = tf.zeros(kernel.shape[1], kernel.dtype) if bias is None else bias
        if call.path == CUDNN:
            matrices = [*tf.split(kernel, 4, axis=1), *tf.split(recurrent_kernel, 4, axis=1)]
            biases = [bias, tf.zeros_like(bias)]
            return _cudnn("lstm", call.inputs, call.states, call.valid, matrices, biases)
        valid = _mask_steps(call.valid)

        @tf.custom_gradient
        def run(x: Any, h: Any, c: Any, kernel: Any, recurrent_kernel: Any, bias: Any) -> Any:
            arguments = (x, h, c, kernel, recurrent_kernel, bias, valid)
            hs, h, c, cs = recurrence.lstm(self, x, h, c, kernel, recurrent_kernel, bias, valid)

            def gradient(*gradients: Any) -> Any:
                return recurrence.lstm_gradient(self, arguments, hs, cs, gradients)

            return (hs, h, c), gradient

        if call.path == COMPILED_LOOP:
            run = tf.function(run, jit_compile=True, autograph=False)
        hs, h, c = run(_time_first(call.inputs), *call.states, kernel, recurrent_kernel, bias)
        return _time_first(hs), h, [h, c]

    def _litert_lstm(self, call: KernelCall) -> tuple[Any, Any, list[Any]]:
        """One operator of LiteRT, or a loop where that has not what is asked for."""
        mask = _mask_steps(call.valid)

        def loop(x: Any, h: Any, c: Any, kernel: Any, recurrent_kernel: Any, bias: Any) -> Any:
            weights = (kernel, recurrent_kernel, bias)
            hs, h, c, _ = recurrence.lstm(self, _time_first(x), h, c, *weights, mask)
            return _time_first(hs), h, c

        kernel, recurrent_kernel, bias = call.weights
        bias = tf.zeros(kernel.shape[1], kernel.dtype) if bias is None else bias
        arguments = (call.inputs, *call.states, kernel, recurrent_kernel, bias)
        refused = None
        if call.valid is not None:
            refused = "has no mask"
        elif call.needs_states:
            refused = "returns no states"
        elif any(
            tf.get_static_value(x) is None or tf.get_static_value(x).any() for x in call.states
        ):
            refused = "wants a batch size that is known, and states that begin as zeros"
        if refused is None:
            sequence = litert_operator(loop, arguments)
            return sequence, sequence[:, -1], call.states  # states that no one will use
        units = recurrent_kernel.shape[0]
        self._loops.append(f"an LSTM of {units} units is a loop, since LiteRT's operator {refused}")
        sequence, h, c = loop(*arguments)
        return sequence, h, [h, c]

    def gru(self, call: KernelCall) -> tuple[Any, Any, list[Any]]:
        """See `Backend`: cuDNN on a GPU, else a loop with its own backward pass."""
        if call.path == ONNX:
            return onnx_operator("GRU" if call.reset_after else "GRU reset before", call)
        kernel, recurrent_kernel, bias = call.weights
        biases = tf.unstack(tf.zeros((2, kernel.shape[1]), kernel.dtype) if bias is None else bias)
        if call.path == CUDNN:

            def reordered(x: Any) -> list[Any]:
                """Gates z, r, h as cuDNN's r, z, h."""
                z, r, candidate = tf.split(x, 3, axis=-1)
                return [r, z, candidate]

            matrices = [*reordered(kernel), *reordered(recurrent_kernel)]
            both = [*reordered(biases[0]), *reordered(biases[1])]
            return _cudnn("gru", call.inputs, call.states, call.valid, matrices, both)
        valid = _mask_steps(call.valid)

        @tf.custom_gradient
        def run(
            x: Any, h: Any, kernel: Any, recurrent_kernel: Any, b: Any, recurrent_b: Any
        ) -> Any:
            arguments = (x, h, kernel, recurrent_kernel, b, recurrent_b, valid)
            hs, h = recurrence.gru(self, x, h, kernel, recurrent_kernel, b, recurrent_b, valid)

            def gradient(*gradients: Any) -> Any:
                return recurrence.gru_gradient(self, arguments, hs, gradients)

            return (hs, h), gradient

        if call.path == COMPILED_LOOP:
            run = tf.function(run, jit_compile=True, autograph=False)
        hs, h = run(_time_first(call.inputs), *call.states, kernel, recurrent_kernel, *biases)
        return _time_first(hs), h, [h]
