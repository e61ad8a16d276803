"""What every recurrent layer here changes in the Keras class that it takes the place of."""

from dataclasses import dataclass, field
from typing import Any

import keras
from keras import KerasTensor, ops

from multibackend_lstm.layers.dropout import draw_alike
from multibackend_lstm.layers.dtypes import check_float64
from multibackend_lstm.layers.validation import Shape, check_mask, reduce_mask
from multibackend_lstm.random.seeds import checked_seed


@dataclass(frozen=True)
class ImplementationReport:
    """Which path served the last call of a recurrent layer, and why no faster one did.

    Attributes:
        layer: name of the layer.
        backend: `"tensorflow"`, `"torch"`, `"jax"`, ...
        implementation: `"native"`, a kernel of the backend, or `"ops"`, the recurrence written
            in `keras.ops`.
        path: what ran, such as `"torch.lstm"`.
        refused: why the native kernel was refused; None if it ran or was not asked for.
        notes: what else a reader of timings or digits should know.
    """

    layer: str
    backend: str
    implementation: str
    path: str
    refused: str | None = None
    notes: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        """One line."""
        text = f"{self.layer}: {self.path} ({self.implementation}, {self.backend})"
        if self.refused:
            text += f"; native refused: {self.refused}"
        return "; ".join([text, *self.notes])


class RecurrentBase:
    """Mixed into a Keras layer: masks that pass on every Keras, and a state that is kept exactly.

    A layer decides by `_decide` which implementation serves a call, before it computes anything,
    and sets `_report` to what it decided.
    """

    # What the Keras classes provide.
    cell: Any
    states: Any
    name: str
    compute_dtype: str
    return_sequences: bool
    return_state: bool
    go_backwards: bool
    stateful: bool
    unroll: bool
    zero_output_for_mask: bool

    _state_names: tuple[str, ...] = ("h", "c")
    _report: ImplementationReport | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if "seed" in kwargs:
            kwargs["seed"] = checked_seed(type(self).__name__, kwargs["seed"])
        super().__init__(*args, **kwargs)
        draw_alike(self.cell)
        # From 3.16 on Keras's recurrent layers drop the mask unless told otherwise (keras#23235).
        self.supports_masking = True

    def build(self, sequences_shape: Shape, initial_state_shape: Any = None) -> None:
        """Create the weights, and the variables of a `stateful` layer's state."""
        check_float64(self, *self._activations())
        initializer = self.cell.recurrent_initializer
        if is_half(self.cell.variable_dtype):
            # The QR decomposition of the orthogonal initializer has no half precision.
            self.cell.recurrent_initializer = lambda shape, dtype=None: ops.cast(
                initializer(shape, dtype="float32"), dtype
            )
        try:
            super().build(sequences_shape)  # type: ignore[misc]
        finally:
            self.cell.recurrent_initializer = initializer
        if self.stateful:
            # Those of Keras lose what is assigned to them in mixed precision on torch, and digits
            # in half precision, where the state is carried in float32. Past Keras's tracking,
            # since the state is not saved.
            dtype = state_dtype(self.compute_dtype)
            variables = [
                keras.Variable(
                    "zeros", state.shape, dtype, trainable=False, autocast=False, name="rnn_state"
                )
                for state in self.states
            ]
            object.__setattr__(self, "states", variables)

    @property
    def variables(self) -> list[Any]:
        """All variables, those of the state among them.

        Keras does not count a stateful layer's state among its variables, so on JAX `fit` and
        `predict` forget it. It is no weight: it is not saved.
        """
        variables = super().variables  # type: ignore[misc]
        states = self.states if self.stateful and self.states is not None else []
        return [*variables, *(s for s in states if all(s is not v for v in variables))]

    def compute_mask(self, inputs: KerasTensor, previous_mask: Any = None) -> Any:
        """The `(batch, time)` mask if sequences are returned; in the input's order of time."""
        mask = previous_mask
        if mask is not None:
            check_mask(self.name, mask.shape, inputs.shape, max_rank=len(inputs.shape))
            mask = reduce_mask(mask)
        output_mask = mask if self.return_sequences else None
        if self.return_state:
            return [output_mask, *(None for _ in self._state_names)]
        return output_mask

    def implementation_report(
        self, sequences_shape: Shape | None = None, training: bool = False
    ) -> ImplementationReport:
        """Which path served the last call, and why a faster one was refused.

        Args:
            sequences_shape: `(batch, time, ...)`, None for what is unknown: report on a call with
                such an input instead, without making it (on TensorFlow one made eagerly, or in a
                graph, as this is asked).
            training: whether that call would be in training.

        Raises:
            ValueError: if there was no call, and no shape is given.
        """
        if sequences_shape is not None:
            return self._decide(sequences_shape, training)
        if self._report is None:
            raise ValueError(
                f"{self.name}: which implementation runs is decided in a call, and the layer has "
                "not been called. Call it, or its model, first, or give `sequences_shape`."
            )
        return self._report

    def _decide(
        self, sequences_shape: Shape, training: bool, with_state: bool = False
    ) -> ImplementationReport:
        """Which implementation serves a call; nothing is tried.

        Args:
            sequences_shape: that of the input, None for what is unknown.
            training: whether dropout is applied.
            with_state: whether there is an initial state.
        """
        raise NotImplementedError

    def _reported(
        self, implementation: str, path: str, refused: str | None = None
    ) -> ImplementationReport:
        backend = keras.backend.backend()
        return ImplementationReport(self.name, backend, implementation, path, refused)

    def _activations(self) -> list[Any]:
        """The functions that a step calls."""
        return [self.cell.activation, self.cell.recurrent_activation]

    def _check_batch(self, batch: int | None) -> None:
        """Raise a ValueError if a stateful layer gets another number of samples."""
        if not self.stateful or batch is None or self.states is None:
            return
        expected = self.states[0].shape[0]
        if batch != expected:
            raise ValueError(
                f"{self.name}: a stateful layer keeps one state a sample, so that the batch "
                f"size cannot change. Expected {expected}, received {batch}. Feed batches "
                "of one size, without a smaller last one."
            )

    def _current_states(self) -> list[Any]:
        """The state of a stateful layer, copied, since torch overwrites the variables."""
        return [ops.copy(variable.value) for variable in self.states]

    def _keep_states(self, states: list[Any]) -> None:
        """What the next call of a stateful layer starts from."""
        if self.stateful:
            for variable, state in zip(self.states, states, strict=True):
                # The gradient stops at the border of two calls.
                variable.assign(ops.stop_gradient(ops.cast(state, variable.dtype)))


def is_half(dtype: str) -> bool:
    """Whether states have to be carried in a wider dtype."""
    return dtype in ("float16", "bfloat16")


def state_dtype(compute_dtype: str) -> str:
    """The dtype of states between steps and calls: float32 at least."""
    return "float32" if is_half(compute_dtype) else compute_dtype
