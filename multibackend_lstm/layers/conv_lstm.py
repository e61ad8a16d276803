"""ConvLSTM1D, ConvLSTM2D and ConvLSTM3D: those of Keras, as one LSTM where positions are few."""

import math
from typing import Any

import keras
from keras import KerasTensor, ops

from multibackend_lstm import backends
from multibackend_lstm.layers.validation import Shape

# Most entries of the LSTM's recurrent kernel, most of which are zeros. Beyond that the
# convolutions' fewer operations win.
LARGEST_MATRIX = 2**20


class _AsLSTM:
    """Mixed into the Keras layers: the same values from the backend's LSTM kernel.

    A convolution over a known number of positions is a matrix product, with the convolution of
    each unit vector as the rows of the matrix. So a ConvLSTM of `filters` filters over few
    positions is an LSTM of `positions * filters` units, and a loop over time of small
    convolutions becomes one call of a kernel.

    Whatever that kernel lacks (masks among it) is left to Keras: see `_fits`.
    """

    cell: Any
    compute_dtype: str
    return_sequences: bool
    return_state: bool
    go_backwards: bool
    stateful: bool
    unroll: bool

    def build(self, sequences_shape: Shape, initial_state_shape: Any = None) -> None:
        """Create the weights of the Keras layer."""
        super().build(sequences_shape)  # type: ignore[misc]
        self.supports_jit = backends.active().supports_jit(sequences_shape[1])

    def call(
        self,
        sequences: KerasTensor,
        initial_state: Any = None,
        mask: Any = None,
        training: bool | None = False,
    ) -> Any:
        """See the Keras layer."""
        if initial_state is None and mask is None and self._fits(sequences.shape, bool(training)):
            try:
                return self._call_lstm(sequences)
            except backends.Refused:
                pass
        return super().call(  # type: ignore[misc]
            sequences, initial_state=initial_state, mask=mask, training=training
        )

    def _fits(self, shape: Shape, training: bool) -> bool:
        cell = self.cell
        return (
            shape[1] != 0
            and cell.data_format == "channels_last"
            and 4 * math.prod(self._state_shape(shape)) ** 2 <= LARGEST_MATRIX
            and cell.activation in (keras.activations.tanh, ops.tanh)
            and cell.recurrent_activation in (keras.activations.sigmoid, ops.sigmoid)
            and not (training and (cell.dropout or cell.recurrent_dropout))
            and not self.stateful
            and not self.unroll
        )

    def _state_shape(self, shape: Shape) -> Any:
        """`(*positions, filters)` for the sequences' shape."""
        return self.cell.compute_output_shape((None, *shape[2:]))[0][1:]

    def _call_lstm(self, sequences: KerasTensor) -> Any:
        cell, positions = self.cell, self._state_shape(sequences.shape)
        batch, time = ops.shape(sequences)[:2]
        inputs = ops.cast(sequences, self.compute_dtype)
        inputs = ops.reshape(inputs, (batch, time, math.prod(sequences.shape[2:])))
        if self.go_backwards:
            inputs = ops.flip(inputs, axis=1)
        bias = cell.bias
        if bias is not None:
            bias = ops.tile(self._cast(bias)[None], (math.prod(positions[:-1]), 1))
            bias = self._gates_first(bias, 1)[0]
        weights = backends.Weights(
            self._matrix(
                cell.kernel,
                sequences.shape[2:],
                strides=cell.strides,
                padding=cell.padding,
                dilation_rate=cell.dilation_rate,
            ),
            self._matrix(cell.recurrent_kernel, positions, padding="same"),
            bias,
        )
        half = self.compute_dtype in ("float16", "bfloat16")
        state = ops.zeros((batch, math.prod(positions)), "float32" if half else self.compute_dtype)
        sequence, last, states, _ = backends.active().lstm(
            inputs,
            [state, state],
            None,
            weights,
            options=backends.Options(sequence=self.return_sequences, states=self.return_state),
        )
        output = (
            ops.reshape(sequence, (batch, time, *positions))
            if self.return_sequences
            else ops.reshape(last, (batch, *positions))
        )
        output = ops.cast(output, self.compute_dtype)
        if not self.return_state:
            return output
        states = [ops.reshape(state, (batch, *positions)) for state in states]
        return (output, *(ops.cast(state, self.compute_dtype) for state in states))

    def _cast(self, weight: Any) -> Any:
        return ops.cast(ops.convert_to_tensor(weight), self.compute_dtype)

    def _matrix(self, kernel: Any, axes: Shape, **arguments: Any) -> Any:
        """The matrix that multiplies flattened `axes` as the convolution convolves them."""
        size = math.prod(axes)  # type: ignore[arg-type]
        unit_vectors = ops.reshape(ops.eye(size, dtype=self.compute_dtype), (size, *axes))
        rows = ops.conv(unit_vectors, self._cast(kernel), data_format="channels_last", **arguments)
        return self._gates_first(rows, size)

    def _gates_first(self, x: Any, rows: int) -> Any:
        """`(rows, *positions, gates * filters)` to `(rows, gates * positions * filters)`."""
        x = ops.reshape(x, (rows, -1, 4, self.cell.filters))
        return ops.reshape(ops.transpose(x, (0, 2, 1, 3)), (rows, -1))


@keras.saving.register_keras_serializable(package="multibackend_lstm")
class ConvLSTM1D(_AsLSTM, keras.layers.ConvLSTM1D):
    """`keras.layers.ConvLSTM1D`, many times faster where positions are few."""


@keras.saving.register_keras_serializable(package="multibackend_lstm")
class ConvLSTM2D(_AsLSTM, keras.layers.ConvLSTM2D):
    """`keras.layers.ConvLSTM2D`, many times faster where positions are few."""


@keras.saving.register_keras_serializable(package="multibackend_lstm")
class ConvLSTM3D(_AsLSTM, keras.layers.ConvLSTM3D):
    """`keras.layers.ConvLSTM3D`, many times faster where positions are few."""
