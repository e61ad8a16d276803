"""ConvLSTM1D, ConvLSTM2D and ConvLSTM3D: those of Keras, as one LSTM where positions are few."""

import math
from typing import Any

import keras
from keras import KerasTensor, ops

from multibackend_lstm import backends
from multibackend_lstm.layers.dtypes import to_compute_dtype
from multibackend_lstm.layers.folding import call_nonempty, expand
from multibackend_lstm.layers.recurrent import hold_outputs, run_kernel, without_masked
from multibackend_lstm.layers.recurrent_base import (
    ImplementationReport,
    RecurrentBase,
    state_dtype,
)
from multibackend_lstm.layers.validation import Shape, check_as_built, check_mask, reduce_mask

# Most entries of the LSTM's recurrent kernel, most of which are zeros. Beyond that the
# convolutions' fewer operations win.
LARGEST_MATRIX = 2**20


class _AsLSTM(RecurrentBase):
    """Mixed into the Keras layers: the same values from the backend's LSTM kernel.

    A convolution over a known number of positions is a matrix product, with the convolution of
    each unit vector as the rows of the matrix. So a ConvLSTM of `filters` filters over few
    positions is an LSTM of `positions * filters` units, and a loop over time of small
    convolutions becomes one call of a kernel.

    Where that kernel cannot serve, Keras's cell runs in a loop of this package, since that of
    Keras 3.15 gets masks wrong on JAX; `implementation_report()` says so.
    """

    # Matrices by the axes after time, where they are kept.
    _kept: dict[Any, Any] | None = None

    def build(self, sequences_shape: Shape, initial_state_shape: Any = None) -> None:
        """Create the weights of the Keras layer."""
        super().build(sequences_shape)
        self.built_for = (sequences_shape[-1],)
        if self._refusal(sequences_shape, training=True) is None:
            self.supports_jit = backends.active().supports_jit(sequences_shape[1])

    def call(
        self,
        sequences: KerasTensor,
        initial_state: Any = None,
        mask: Any = None,
        training: bool | None = False,
        sequences_mask: Any = None,
    ) -> Any:
        """See the Keras layer; `sequences_mask` is what Keras gives if there are states too."""
        mask = sequences_mask if mask is None else mask
        check_as_built(self.name, self.built_for, sequences.shape)
        sequences = to_compute_dtype(self, sequences)
        if mask is not None:
            mask = ops.convert_to_tensor(mask)
            check_mask(self.name, mask.shape, sequences.shape, max_rank=len(sequences.shape))
            mask = reduce_mask(mask)
            sequences = without_masked(sequences, mask)
        self._check_batch(sequences.shape[0])
        decided = self._decide(sequences.shape, bool(training), initial_state is not None)
        self._report = decided
        if 0 in sequences.shape[:2]:
            return self._without_steps(sequences, initial_state)
        if decided.implementation == "native":
            return self._call_lstm(sequences, mask, decided.path)
        return super().call(  # type: ignore[misc]
            sequences, initial_state=initial_state, mask=mask, training=training
        )

    def inner_loop(
        self, sequences: KerasTensor, initial_state: Any, mask: Any, training: bool = False
    ) -> Any:
        """The loop over time that `keras.layers.RNN.call` calls."""

        def loop(sequences: KerasTensor, initial_state: Any, mask: Any) -> Any:
            return self._loop(sequences, initial_state, mask, training)

        return call_nonempty(loop, sequences, initial_state, mask)

    def _loop(self, sequences: KerasTensor, initial_state: Any, mask: Any, training: bool) -> Any:
        steps = [sequences] if mask is None else [sequences, mask]
        if self.go_backwards:
            steps = [ops.flip(x, axis=1) for x in steps]

        def step(states: list[Any], x: list[Any]) -> tuple[list[Any], list[Any]]:
            new_states = self.cell(x[0], states, training=training)[1]
            if mask is not None:
                valid = expand(x[1], len(states[0].shape))
                pairs = zip(new_states, states, strict=True)
                new_states = [ops.where(valid, *pair) for pair in pairs]
            return new_states, new_states[:1]

        # Copies, since torch overwrites the variables of the state.
        states = [ops.copy(state) for state in initial_state]
        backend = backends.active()
        scan = backend.unrolled_scan if self.unroll else backend.scan
        states, (outputs,) = scan(step, states, [ops.swapaxes(x, 0, 1) for x in steps])
        outputs, last = ops.swapaxes(outputs, 0, 1), states[0]
        if mask is not None:
            outputs, last = hold_outputs(outputs, last, steps[1], self.zero_output_for_mask)
        elif sequences.shape[1] is None:  # that there is no step shows when a graph runs
            last = ops.where(ops.shape(sequences)[1] > 0, last, ops.zeros_like(last))
        return last, outputs, states

    def _without_steps(self, sequences: KerasTensor, initial_state: Any) -> Any:
        """Outputs of zeros, and the states as they are, for no steps or no samples."""
        batch, time = ops.shape(sequences)[:2]
        shape, dtype = (batch, *self._state_shape(sequences.shape)), self.compute_dtype
        output = ops.zeros((batch, time, *shape[1:]) if self.return_sequences else shape, dtype)
        if initial_state is None and self.stateful:
            initial_state = self._current_states()
        states = [ops.zeros(shape, dtype)] * 2 if initial_state is None else initial_state
        self._keep_states(states)
        if not self.return_state:
            return output
        return (output, *(ops.cast(state, dtype) for state in states))

    def _decide(
        self, sequences_shape: Shape, training: bool, with_state: bool = False
    ) -> ImplementationReport:
        """See `RecurrentBase`; a mask decides nothing."""
        batch, time, *axes = sequences_shape
        if 0 in (batch, time):
            return self._reported("ops", "no steps or no samples")
        backend = backends.active()
        refused = self._refusal(sequences_shape, training, with_state)
        refused = refused or backend.kernel_refusal("lstm")
        if refused is None:
            shape = (batch, time, math.prod(axes))  # type: ignore[arg-type]
            path = backend.kernel_path("lstm", shape, self.compute_dtype, cudnn=True)
            return self._reported("native", path)
        path = f"the cell of keras.layers.{type(self).__name__} in a loop"
        return self._reported("ops", path, refused)

    def _refusal(self, shape: Shape, training: bool, with_state: bool = False) -> str | None:
        """Why the layer cannot run as one LSTM, `None` if it can."""
        cell = self.cell
        if with_state or self.stateful:
            return "an initial state, or stateful=True"
        if cell.data_format != "channels_last" or self.unroll:
            return "data_format='channels_first' or unroll=True"
        if cell.activation not in (keras.activations.tanh, ops.tanh):
            return "activation is not tanh"
        if cell.recurrent_activation not in (keras.activations.sigmoid, ops.sigmoid):
            return "recurrent_activation is not sigmoid"
        if training and (cell.dropout or cell.recurrent_dropout):
            return "dropout in training"
        entries = 4 * math.prod(self._state_shape(shape)) ** 2
        if entries > LARGEST_MATRIX:
            return f"too many positions: {entries} entries of the LSTM's recurrent kernel"
        return None

    def _state_shape(self, shape: Shape) -> Any:
        """`(*positions, filters)` for the sequences' shape."""
        return self.cell.compute_output_shape((None, *shape[2:]))[0][1:]

    def _call_lstm(self, sequences: KerasTensor, valid: Any, path: str) -> Any:
        cell, positions = self.cell, self._state_shape(sequences.shape)
        batch, time = ops.shape(sequences)[:2]
        inputs = ops.reshape(sequences, (batch, time, math.prod(sequences.shape[2:])))
        if self.go_backwards:
            inputs = ops.flip(inputs, axis=1)
            valid = None if valid is None else ops.flip(valid, axis=1)
        bias = cell.bias
        if bias is not None:
            bias = ops.tile(self._cast(bias)[None], (math.prod(positions[:-1]), 1))
            bias = self._gates_first(bias, 1)[0]
        weights = backends.Weights(*self._matrices(tuple(map(int, sequences.shape[2:]))), bias)
        state = ops.zeros((batch, math.prod(positions)), state_dtype(self.compute_dtype))
        call = backends.KernelCall(
            path,
            inputs,
            [state, state],
            valid,
            weights,
            needs_sequence=self.return_sequences,
            needs_states=self.return_state,
        )
        sequence, last, states = run_kernel("lstm", call)
        if valid is not None:
            sequence = sequence if self.return_sequences else None
            sequence, last = hold_outputs(sequence, last, valid, self.zero_output_for_mask)
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

    def keep_matrices(self) -> None:
        """From now on compute the matrices in the first call alone, which must be an eager one.

        For the export of a model whose weights no longer change, to runtimes that cannot compute
        the matrices in a graph.
        """
        object.__setattr__(self, "_kept", {})  # past Keras's tracking: it is not saved

    def _matrices(self, axes: tuple[int, ...]) -> tuple[Any, Any]:
        """Kernel and recurrent kernel of the LSTM, for inputs with these axes after time."""
        if self._kept is not None and axes in self._kept:
            kernel, recurrent_kernel = self._kept[axes]
            return ops.convert_to_tensor(kernel), ops.convert_to_tensor(recurrent_kernel)
        cell = self.cell
        kernel = self._matrix(
            cell.kernel,
            axes,
            strides=cell.strides,
            padding=cell.padding,
            dilation_rate=cell.dilation_rate,
        )
        positions = self._state_shape((None, None, *axes))
        recurrent_kernel = self._matrix(cell.recurrent_kernel, positions, padding="same")
        if self._kept is not None:
            self._kept[axes] = tuple(map(ops.convert_to_numpy, (kernel, recurrent_kernel)))
        return kernel, recurrent_kernel

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
    """`keras.layers.ConvLSTM1D`, faster where positions are few.

    The same constructor, weights and values: `(batch, time, positions, features)` to
    `(batch, [time,] positions, filters)` (Shi et al. 2015). It casts and saves as the
    Keras layer does. Up to 512 positions times filters run as one LSTM of the backend.

    A mask `(batch, time)`, or with more axes, of which any valid entry makes a step valid, means
    what it means for `LSTM`, on every backend: the values are those of Keras on TensorFlow.

    Example:
        >>> x = keras.Input((None, 8, 3))  # (batch, time, positions, features)
        >>> ConvLSTM1D(4, 3, padding="same")(x).shape
        (None, 8, 4)
    """


@keras.saving.register_keras_serializable(package="multibackend_lstm")
class ConvLSTM2D(_AsLSTM, keras.layers.ConvLSTM2D):
    """`keras.layers.ConvLSTM2D`, faster where positions are few.

    The same constructor, weights and values: `(batch, time, rows, columns, features)` to
    `(batch, [time,] rows, columns, filters)` (Shi et al. 2015). It casts and saves as the
    Keras layer does. Up to 512 positions times filters run as one LSTM of the backend.

    A mask `(batch, time)`, or with more axes, of which any valid entry makes a step valid, means
    what it means for `LSTM`, on every backend: the values are those of Keras on TensorFlow.

    Example:
        >>> x = keras.Input((None, 6, 6, 1))  # (batch, time, rows, columns, features)
        >>> ConvLSTM2D(4, 3, padding="same")(x).shape
        (None, 6, 6, 4)
    """


@keras.saving.register_keras_serializable(package="multibackend_lstm")
class ConvLSTM3D(_AsLSTM, keras.layers.ConvLSTM3D):
    """`keras.layers.ConvLSTM3D`, faster where positions are few.

    The same constructor, weights and values: `(batch, time, *three axes, features)` to
    `(batch, [time,] *three axes, filters)` (Shi et al. 2015). It casts and saves as the
    Keras layer does. Up to 512 positions times filters run as one LSTM of the backend.

    A mask `(batch, time)`, or with more axes, of which any valid entry makes a step valid, means
    what it means for `LSTM`, on every backend: the values are those of Keras on TensorFlow.

    Example:
        >>> x = keras.Input((None, 4, 4, 4, 1))  # (batch, time, *three axes, features)
        >>> ConvLSTM3D(4, 3, padding="same")(x).shape
        (None, 4, 4, 4, 4)
    """
