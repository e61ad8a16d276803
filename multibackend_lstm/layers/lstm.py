"""LSTM: keras.layers.LSTM for N-D inputs and any mask, on each backend's fastest path."""

from typing import Any

import keras
from keras import ops

from multibackend_lstm.layers.recurrent import Recurrent, recurrent_product


@keras.saving.register_keras_serializable(package="multibackend_lstm")
class LSTM(Recurrent, keras.layers.LSTM):
    """Long short-term memory (Hochreiter and Schmidhuber 1997): `(batch, time, *axes)`.

    Takes the place of `keras.layers.LSTM`: the same constructor, weights, configuration, saved
    files (both ways) and values, on every backend those of Keras's loop on TensorFlow.
    What it adds:

    - Inputs of rank 4 and more are flattened as by `FlattenFeatures`:
      `(batch, time, channels, features)` to `(batch, time, channels * features)`.
    - Any mask runs at full speed: right- or left-padded, with holes, fully masked samples.
    - It runs on the backend's fastest path, and `implementation_report()` says which that was.

    In a masked step the states stay as they are, and the output is that of the last valid step
    (zeros before the first one, or everywhere with `zero_output_for_mask=True`). What stands in
    masked steps, NaN for instance, reaches neither outputs nor gradients.

    Example:
        >>> x = keras.Input((20, 3, 5))                     # (batch, time, channels, features)
        >>> LSTM(64)(x).shape
        (None, 64)

    Args:
        units: size of the state and the output, at least 1.
        *args: as in `keras.layers.LSTM`.
        implementation: `"auto"` takes the backend's kernel and where it refuses the recurrence
            written in `keras.ops`; `"native"` makes a refusal an error; `"ops"` always takes
            that recurrence, the portable reference. The 0, 1 and 2 of Keras 2 mean `"auto"`.
        **kwargs: as in `keras.layers.LSTM`. Of these `use_cudnn=True` means
            `implementation="native"`, and `use_cudnn=False` refuses the cuDNN kernels alone.

    Call arguments:
        sequences: `(batch, time, *axes)`, of rank 3 or more; batch and time may be unknown.
        initial_state: list of the hidden and the cell state, `h` and `c`, each `(batch, units)`;
            zeros by default.
        mask: boolean (or integer) `(batch, time)` or `(batch, time, ...)` tensor, False for
            masked steps; with axes after time a step is valid where any entry is.
        training: whether dropout is applied.
        lengths: integer `(batch,)` tensor in place of a mask: the number of valid steps at the
            beginning of each sample. The output carries no mask from it. A length outside of
            `[0, time]` is an error; in a traced function, and on a GPU with torch, where that is
            not known in time, the outputs and states of that sample are NaN.

    Returns:
        `(batch, units)`, or `(batch, time, units)` with `return_sequences=True`; followed by the
        states with `return_state=True`. With `go_backwards=True` the sequence is in the order
        of processing, the last step first.

    Raises:
        ValueError: for an input of rank 2 or less, an unknown axis after time, a mask of wrong
            shape or dtype, lengths outside `[0, time]`, states of wrong shape, and
            `implementation="native"` where there is no kernel.
    """

    _kernel = "lstm"
    _state_names = ("h", "c")

    def _step(self, z: Any, states: list[Any], weights: Any, masks: list[Any]) -> list[Any]:
        h, c = states
        z = z + recurrent_product(h, weights.recurrent_kernel, masks)
        i, f, g, o = ops.split(z, 4, axis=-1)
        activation, gate = self._step_activations
        c = gate(f) * c + gate(i) * activation(g)
        return [gate(o) * activation(c), c]
