"""GRU: keras.layers.GRU for N-D inputs and any mask, on each backend's fastest path."""

from typing import Any

import keras
from keras import ops

from multibackend_lstm import backends
from multibackend_lstm.layers.recurrent import Recurrent, recurrent_product


@keras.saving.register_keras_serializable(package="multibackend_lstm")
class GRU(Recurrent, keras.layers.GRU):
    """Gated recurrent unit (Cho et al. 2014): `(batch, time, *axes)`.

    Takes the place of `keras.layers.GRU`: the same constructor, weights, configuration, saved
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
        >>> GRU(64)(x).shape
        (None, 64)

    Args:
        units: size of the state and the output, at least 1.
        *args: as in `keras.layers.GRU`.
        implementation: `"auto"` takes the backend's kernel and where it refuses the recurrence
            written in `keras.ops`; `"native"` makes a refusal an error; `"ops"` always takes
            that recurrence, the portable reference. The 0, 1 and 2 of Keras 2 mean `"auto"`.
        **kwargs: as in `keras.layers.GRU`. Of these `use_cudnn=True` means
            `implementation="native"`, and `use_cudnn=False` refuses the cuDNN kernels alone.

    Call arguments:
        sequences: `(batch, time, *axes)`, of rank 3 or more; batch and time may be unknown.
        initial_state: the state `h` (or a list of it), each `(batch, units)`; zeros by default.
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

    _kernel = "gru"
    _state_names = ("h",)

    def _cell_refusal(self) -> str | None:
        if self.cell.reset_after or backends.active().resets_before_product():
            return None
        return "reset_after=False, and kernels apply the reset gate after the matrix product"

    def _input_bias(self, bias: Any) -> Any:
        return bias[0] if bias is not None and self.cell.reset_after else bias

    def _step(self, z: Any, states: list[Any], weights: Any, masks: list[Any]) -> list[Any]:
        (h,) = states
        units = self.cell.units
        kernel = weights.recurrent_kernel
        activation, gate = self._step_activations
        if self.cell.reset_after:
            recurrent = recurrent_product(h, kernel, masks)
            if weights.bias is not None:
                recurrent = recurrent + ops.cast(weights.bias[1], h.dtype)
        else:
            recurrent = recurrent_product(h, kernel[:, : 2 * units], masks[:2])
        # Each gate alone, since an activation such as softmax looks at all units together.
        update = gate(z[:, :units] + recurrent[:, :units])
        reset = gate(z[:, units : 2 * units] + recurrent[:, units : 2 * units])
        if self.cell.reset_after:
            recurrent_h = reset * recurrent[:, 2 * units :]
        else:
            recurrent_h = recurrent_product(reset * h, kernel[:, 2 * units :], masks[2:])
        candidate = activation(z[:, 2 * units :] + recurrent_h)
        return [update * h + (1 - update) * candidate]
