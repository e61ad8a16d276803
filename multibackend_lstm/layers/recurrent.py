"""What `LSTM` and `GRU` share: N-D inputs, masks, states, and the choice of a kernel."""

import functools
import math
import operator
from dataclasses import replace
from typing import Any, Literal

import keras
from keras import KerasTensor, ops

from multibackend_lstm import backends
from multibackend_lstm.layers.dtypes import to_compute_dtype
from multibackend_lstm.layers.folding import expand
from multibackend_lstm.layers.lengths import check_whole, not_a_number, positions, steps_within
from multibackend_lstm.layers.recurrent_base import (
    ImplementationReport,
    RecurrentBase,
    is_half,
    state_dtype,
)
from multibackend_lstm.layers.validation import (
    Shape,
    check_as_built,
    check_choice,
    check_mask,
    check_positive,
    check_rank,
    known_sizes,
    reduce_mask,
)

Implementation = Literal["auto", "native", "ops"]
IMPLEMENTATIONS = ("auto", "native", "ops")
# What old configurations hold: Keras 2 chose among three ways to multiply by it.
KERAS_2_IMPLEMENTATIONS = (0, 1, 2)


@functools.cache
def _bidirectional_drops_masks() -> bool:
    """Whether the installed Keras is one from 3.16 on (keras#23235)."""
    wrapped = keras.layers.SimpleRNN(1, name="probe")
    return not keras.layers.Bidirectional(wrapped, name="probe").supports_masking


class Recurrent(RecurrentBase):
    """Mixed into `keras.layers.LSTM` and `keras.layers.GRU`; see there for the arguments.

    The cell differs between the two: `_kernel` (the name of its method in `backends.Backend`),
    `_state_names`, `_cell_refusal`, `_input_bias` and `_step`. All else is here. One call is

    1. flatten the input, reduce the mask, reverse time for `go_backwards`;
    2. the backend's kernel, or `_recurrence`, as `_decide` says. For a kernel that takes no mask
       but lengths the valid steps of each sample are moved to the front, and its outputs back;
    3. zeros where there is no output to hold.
    """

    _kernel: str
    _use_cudnn: Any
    in_keras_bidirectional: bool

    def __init__(
        self, units: int, *args: Any, implementation: Implementation | int = "auto", **kwargs: Any
    ) -> None:
        owner = type(self).__name__
        if hasattr(units, "__index__") and not isinstance(units, bool):
            units = operator.index(units)  # NumPy's integers too
        check_positive(owner, "units", units)
        if type(implementation) is int and implementation in KERAS_2_IMPLEMENTATIONS:
            implementation = "auto"
        check_choice(owner, "implementation", implementation, IMPLEMENTATIONS)
        super().__init__(units, *args, **kwargs)
        if self._use_cudnn is True and implementation == "ops":
            raise ValueError(
                f'{owner}: `use_cudnn=True` demands a kernel and `implementation="ops"` forbids '
                'one. Leave out `use_cudnn`, or set `implementation="native"`.'
            )
        self.implementation = "native" if self._use_cudnn is True else implementation
        self.input_spec = None  # the rank is checked here, with a message that names the axes

    @property
    def use_cudnn(self) -> Any:
        """As it was given. In a `keras.layers.Bidirectional` False, whatever was given.

        Where it is not, that calls a cuDNN kernel of its own, past this layer's flattening.
        """
        return False if self.in_keras_bidirectional else self._use_cudnn

    def __setattr__(self, name: str, value: Any) -> None:
        """Take note of a `keras.layers.Bidirectional`, which sets `use_cudnn` on its copy.

        A property's setter would not be called on TensorFlow, where Keras leaves out to set what
        is set already.
        """
        if name == "use_cudnn":
            again = hasattr(self, "_use_cudnn")
            self.in_keras_bidirectional = again and self.name.startswith("forward_")
            name = "_use_cudnn"
        super().__setattr__(name, value)

    def build(self, sequences_shape: Shape, initial_state_shape: Any = None) -> None:
        """Create the weights for the flattened features, `(features, gates * units)`."""
        super().build(self._flat_shape(sequences_shape))
        self.built_for = tuple(sequences_shape[2:])
        self.supports_jit = backends.active().supports_jit(sequences_shape[1])

    def compute_output_shape(self, sequences_shape: Shape, initial_state_shape: Any = None) -> Any:
        """`(batch, [time,] units)`, then the states' `(batch, units)` with `return_state`."""
        return super().compute_output_shape(  # type: ignore[misc]
            self._flat_shape(sequences_shape)
        )

    def get_config(self) -> dict[str, Any]:
        """Arguments of the constructor; `keras.layers.LSTM` and `GRU` take them too."""
        return {**super().get_config(), "implementation": self.implementation}  # type: ignore[misc]

    def call(
        self,
        sequences: KerasTensor,
        initial_state: Any = None,
        mask: Any = None,
        training: bool | None = False,
        lengths: Any = None,
        sequences_mask: Any = None,
    ) -> Any:
        """See the class.

        Keras gives the input's mask as `mask` if the input is the only tensor, as
        `sequences_mask` if there are states or lengths too.
        """
        mask = sequences_mask if mask is None else mask
        self._check_mask_goes_on(mask)
        self._flat_shape(sequences.shape)
        check_as_built(self.name, self.built_for, sequences.shape, merged=True)
        inputs = to_compute_dtype(self, self._flatten(sequences))
        valid, unfit = self._valid_steps(sequences, mask, lengths)
        states = self._initial_states(inputs, initial_state)
        if unfit is not None:
            # Where values are not known nothing is raised, and NaN is better than a wrong number.
            states = [ops.where(unfit, not_a_number(s), s) for s in states]
        if self.go_backwards:
            inputs = ops.flip(inputs, axis=1)
            valid = None if valid is None else ops.flip(valid, axis=1)

        output, last, new_states = self._run(inputs, valid, states, bool(training))
        result = ops.cast(output if self.return_sequences else last, self.compute_dtype)

        self._keep_states(new_states)
        if self.return_state:
            return (result, *(ops.cast(state, self.compute_dtype) for state in new_states))
        return result

    def _check_mask_goes_on(self, mask: Any) -> None:
        """Raise a ValueError where the wrapper around this layer would drop the mask."""
        if (
            mask is not None
            and self.in_keras_bidirectional
            and self.return_sequences
            and _bidirectional_drops_masks()
        ):
            raise ValueError(
                f"{self.name}: keras.layers.Bidirectional of Keras {keras.version()} would not "
                "pass the mask on to the next layer, which would then read the masked steps. Use "
                "`multibackend_lstm.Bidirectional`."
            )

    def _flat_shape(self, shape: Shape) -> tuple[int | None, ...]:
        check_rank(self.name, shape, minimum=3)
        sizes = known_sizes(self.name, shape, range(2, len(shape)))
        return (shape[0], shape[1], math.prod(sizes))

    def _flatten(self, x: KerasTensor) -> KerasTensor:
        features = self._flat_shape(x.shape)[2]
        if len(x.shape) == 3:
            return x
        batch, time = ops.shape(x)[:2]
        return ops.reshape(x, (batch, time, features))

    def _valid_steps(self, sequences: KerasTensor, mask: Any, lengths: Any) -> tuple[Any, Any]:
        """Boolean tensors from the mask or the lengths, each None where there is nothing to say.

        Returns:
            The valid steps, `(batch, time)`, and the samples whose length is outside of
            `[0, time]`, `(batch, 1)`, where that shows only when a traced function runs.
        """
        if mask is not None and lengths is not None:
            raise ValueError(
                f"{self.name}: `lengths` stands in place of a mask, and both were given (the "
                "mask perhaps by an earlier layer, such as Masking or Embedding). Leave one out."
            )
        if mask is not None:
            mask = ops.convert_to_tensor(mask)
            check_mask(self.name, mask.shape, sequences.shape, max_rank=len(sequences.shape))
            check_whole(self.name, "mask", mask, "booleans (or integers, 0 for a masked step)")
            return reduce_mask(mask), None
        if lengths is not None:
            return steps_within(self.name, sequences, lengths)
        return None, None

    def _initial_states(self, inputs: KerasTensor, initial_state: Any) -> list[Any]:
        """The states as tensors `(batch, units)` in float32 or wider."""
        dtype = state_dtype(self.compute_dtype)
        batch, units = inputs.shape[0], self.cell.units
        self._check_batch(batch)
        if initial_state is None and not self.stateful:
            zeros = ops.zeros((ops.shape(inputs)[0], units), dtype=dtype)
            return [zeros for _ in self._state_names]
        given = self._current_states() if initial_state is None else initial_state
        given = list(given) if isinstance(given, (list, tuple)) else [given]
        names = " and ".join(f"`{name}`" for name in self._state_names)
        if len(given) != len(self._state_names):
            raise ValueError(
                f"{self.name}: `initial_state` must be a list of {len(self._state_names)} "
                f"tensor(s) of shape (batch, {units}): {names}. Received {len(given)}."
            )
        given = [ops.convert_to_tensor(state) for state in given]
        for state, name in zip(given, self._state_names, strict=True):
            if (
                len(state.shape) != 2
                or state.shape[1] != units
                or (None not in (batch, state.shape[0]) and state.shape[0] != batch)
            ):
                raise ValueError(
                    f"{self.name}: the initial state `{name}` must have shape "
                    f"(batch={batch}, units={units}). Received {tuple(state.shape)}. States that "
                    "another layer returns fit if it has as many units."
                )
        return [ops.cast(state, dtype) for state in given]

    def _run(
        self, inputs: KerasTensor, valid: Any, states: list[Any], training: bool
    ) -> tuple[Any, Any, list[Any]]:
        """Outputs of all steps (if they are returned), of the last one, and final states."""
        dropout_masks, recurrent_masks = self._dropout_masks(inputs, training)
        decided = self._report = self._decide(inputs.shape, training)
        if self.implementation == "native" and decided.refused:
            raise ValueError(
                f'{self.name}: `implementation="native"` cannot be had: {decided.refused}. Change '
                'that, or set `implementation="auto"`.'
            )
        if inputs.shape[1] == 0:
            batch, units, dtype = ops.shape(inputs)[0], self.cell.units, inputs.dtype
            return ops.zeros((batch, 0, units), dtype), ops.zeros((batch, units), dtype), states

        if valid is not None:
            inputs = without_masked(inputs, valid)
        weights = backends.Weights(
            *(
                None if weight is None else ops.cast(ops.convert_to_tensor(weight), inputs.dtype)
                for weight in (self.cell.kernel, self.cell.recurrent_kernel, self.cell.bias)
            )
        )
        dropped = self._drop(inputs, dropout_masks)
        if decided.implementation == "native":
            call = backends.KernelCall(
                decided.path,
                dropped[0],
                states,
                valid,
                weights,
                needs_sequence=self.return_sequences,
                needs_states=self.return_state or self.stateful,
                reset_after=getattr(self.cell, "reset_after", True),
            )
            outputs, last, states = run_kernel(self._kernel, call)
        else:
            projected = self._project(dropped, weights)
            outputs, last, states = self._recurrence(
                projected, states, valid, weights, recurrent_masks
            )
        if valid is None:
            if inputs.shape[1] is None:  # that there is no step shows when a graph runs
                last = ops.where(ops.shape(inputs)[1] > 0, last, ops.zeros_like(last))
            return outputs, last, states

        sequence = outputs if self.return_sequences else None
        return *hold_outputs(sequence, last, valid, self.zero_output_for_mask), states

    def _decide(
        self, sequences_shape: Shape, training: bool, with_state: bool = False
    ) -> ImplementationReport:
        """See `RecurrentBase`; neither a mask nor states decide anything here."""
        shape = self._flat_shape(sequences_shape)
        if shape[1] == 0:
            return self._reported("ops", "no steps")
        refused = None
        if self.implementation != "ops":
            backend, cudnn = backends.active(), self._use_cudnn is not False
            refused = self._refusal(training) or backend.kernel_refusal(self._kernel)
            if refused is None:
                path = backend.kernel_path(self._kernel, shape, self.compute_dtype, cudnn)
                return self._reported("native", path)
        return self._reported("ops", "keras.ops, unrolled" if self.unroll else "keras.ops", refused)

    def _refusal(self, training: bool) -> str | None:
        """What no kernel has of the layer's options; None if a kernel fits."""
        if not _is_tanh(self.cell.activation):
            return f"activation is {_name(self.cell.activation)}, and kernels have tanh"
        if self.cell.recurrent_activation not in (keras.activations.sigmoid, ops.sigmoid):
            name = _name(self.cell.recurrent_activation)
            return f"recurrent_activation is {name}, and kernels have sigmoid"
        if training and self.cell.recurrent_dropout:
            return "recurrent_dropout in training, which kernels lack"
        if training and self.cell.dropout and getattr(self.cell, "dropout_mask_count", 1) > 1:
            return "dropout that differs among the gates"
        if self.unroll:
            return "unroll=True asks for the loop to be written out"
        return self._cell_refusal()

    def _reported(
        self, implementation: str, path: str, refused: str | None = None
    ) -> ImplementationReport:
        report = super()._reported(implementation, path, refused)
        if not is_half(self.compute_dtype):
            return report
        return replace(report, notes=(f"{self.compute_dtype}, states carried in float32",))

    def _cell_refusal(self) -> str | None:
        """A reason of the cell's own to refuse the kernels."""
        return None

    @property
    def _step_activations(self) -> tuple[Any, Any]:
        """The activation of the candidate and that of the gates."""
        activation, gate = (
            backends.active().tanh if _is_tanh(function) else function
            for function in (self.cell.activation, self.cell.recurrent_activation)
        )
        return activation, gate

    def _activations(self) -> list[Any]:
        return list(self._step_activations)

    def _input_bias(self, bias: Any) -> Any:
        """The part of the bias that is added to the projected inputs."""
        return bias

    def _step(self, z: Any, states: list[Any], weights: Any, masks: list[Any]) -> list[Any]:
        """States after one step, from projected inputs `(batch, gates * units)`."""
        raise NotImplementedError

    def _dropout_masks(self, inputs: KerasTensor, training: bool) -> tuple[list[Any], list[Any]]:
        """Masks for inputs `(batch, features)` and states `(batch, units)`; one, or one a gate."""
        if not training or not (self.cell.dropout or self.cell.recurrent_dropout):
            return [], []
        batch = ops.shape(inputs)[0]
        sizes = (inputs.shape[2], self.cell.units)
        step_input, step_state = (ops.ones((batch, size), inputs.dtype) for size in sizes)
        masks = [
            mask if isinstance(mask, list) else [] if mask is None else [mask]
            for mask in (
                self.cell.get_dropout_mask(step_input),
                self.cell.get_recurrent_dropout_mask(step_state),
            )
        ]
        self.cell.reset_dropout_mask()
        self.cell.reset_recurrent_dropout_mask()
        return masks[0], masks[1]

    def _drop(self, inputs: KerasTensor, masks: list[Any]) -> list[Any]:
        """The inputs for each mask, `(batch, time, features)`; the inputs alone without any."""
        return [inputs * mask[:, None] for mask in masks] or [inputs]

    def _project(self, inputs: list[Any], weights: Any) -> Any:
        """Inputs times kernel plus input bias for all steps: `(batch, time, gates * units)`."""
        bias = self._input_bias(weights.bias)
        matmul = backends.active().matmul
        if len(inputs) == 1:
            projected = matmul(inputs[0], weights.kernel)
        else:
            kernels = ops.split(weights.kernel, len(inputs), axis=1)
            gates = [matmul(x, kernel) for x, kernel in zip(inputs, kernels, strict=True)]
            projected = ops.concatenate(gates, axis=-1)
        return projected if bias is None else projected + bias

    def _recurrence(
        self,
        projected: KerasTensor,
        states: list[Any],
        valid: Any,
        weights: Any,
        recurrent_masks: list[Any],
    ) -> Any:
        """The portable reference: a loop of `_step`, written in `keras.ops`."""
        dtype = states[0].dtype
        xs = [ops.transpose(projected, (1, 0, 2))]
        if valid is not None:
            xs.append(expand(ops.transpose(valid), 3))

        def step(states: list[Any], x: list[Any]) -> tuple[list[Any], list[Any]]:
            new_states = self._step(ops.cast(x[0], dtype), states, weights, recurrent_masks)
            if valid is not None:
                new_states = [
                    ops.where(x[1], new, old) for new, old in zip(new_states, states, strict=True)
                ]
            return new_states, new_states[:1]

        backend = backends.active()
        scan = backend.unrolled_scan if self.unroll else backend.scan
        states, (outputs,) = scan(step, states, xs)
        return ops.transpose(outputs, (1, 0, 2)), states[0], states


def run_kernel(name: str, call: backends.KernelCall) -> tuple[Any, Any, list[Any]]:
    """The backend's kernel `name`, for any mask; see `Backend.lstm`."""
    backend = backends.active()
    to_front = call.valid is not None and backend.valid_steps_first(call.path)
    if to_front:
        # A mask with holes is the same as its valid steps moved together, so that a kernel
        # which knows lengths alone can serve it.
        ones = ops.cast(call.valid, "int32")
        count = ops.cumsum(ones, axis=1)  # of valid steps up to each step
        order = positions(ones) + ops.where(call.valid, 0, ops.shape(call.inputs)[1])
        call = call._replace(
            inputs=_take_steps(call.inputs, ops.argsort(order, axis=1)),
            valid=positions(ones) < count[:, -1:],
        )
    sequence, last, states = backend.lstm(call) if name == "lstm" else backend.gru(call)
    if to_front and call.needs_sequence:
        # Each step gets the output of the last valid step up to it.
        sequence = _take_steps(sequence, ops.maximum(count - 1, 0))
    return sequence, last, states


def hold_outputs(sequence: Any, last: Any, valid: Any, zero: bool) -> tuple[Any, Any]:
    """Zeros where there is no output to hold.

    Args:
        sequence: `(batch, time, *axes)`, which holds the last state in masked steps; or None.
        last: `(batch, *axes)`.
        valid: boolean `(batch, time)`.
        zero: whether every masked step gives zeros, and not only those before the first valid one.
    """
    if sequence is not None:
        has_output = valid if zero else ops.cumsum(ops.cast(valid, "int32"), axis=1) > 0
        sequence = ops.where(
            expand(has_output, len(sequence.shape)), sequence, ops.zeros_like(sequence)
        )
    if zero:
        valid = ops.logical_and(valid, positions(valid) == ops.shape(valid)[1] - 1)
    has_last = ops.any(valid, axis=1, keepdims=True)  # not a slice: there may be no step
    return sequence, ops.where(expand(has_last, len(last.shape)), last, ops.zeros_like(last))


def without_masked(inputs: Any, valid: Any) -> Any:
    """Zeros in masked steps: selected, since a masked NaN must not reach any arithmetic."""
    return ops.where(expand(valid, len(inputs.shape)), inputs, ops.zeros_like(inputs))


def recurrent_product(h: Any, kernel: Any, masks: list[Any]) -> Any:
    """State times recurrent kernel, with each gate's dropout mask, in the state's dtype."""
    h_cast, matmul = ops.cast(h, kernel.dtype), backends.active().matmul
    if not masks:
        return ops.cast(matmul(h_cast, kernel), h.dtype)
    kernels = ops.split(kernel, len(masks), axis=1)
    gates = [matmul(h_cast * mask, k) for mask, k in zip(masks, kernels, strict=True)]
    return ops.cast(ops.concatenate(gates, axis=-1), h.dtype)


def _take_steps(x: Any, index: Any) -> Any:
    """For `(batch, time, features)` and an index `(batch, time)`: steps in that order.

    Whole rows of a matrix are taken, which backends do faster than single elements.
    """
    batch, time, features = ops.shape(x)
    first_row = (ops.cumsum(ops.ones_like(index[:, 0])) - 1) * time
    rows = ops.reshape(index + first_row[:, None], (-1,))
    taken = ops.take(ops.reshape(x, (batch * time, features)), rows, axis=0)
    return ops.reshape(taken, (batch, time, features))


def _is_tanh(activation: Any) -> bool:
    return activation in (keras.activations.tanh, ops.tanh)


def _name(activation: Any) -> str:
    return getattr(activation, "__name__", type(activation).__name__)
