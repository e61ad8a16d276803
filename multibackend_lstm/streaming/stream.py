"""Stream: predictions sample by sample, with a state that can be seen, kept and carried on."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from multibackend_lstm.data.recordings import with_nan
from multibackend_lstm.data.series import is_integer
from multibackend_lstm.files import replacing
from multibackend_lstm.runtimes.loading import load_keras_model, read_arrays
from multibackend_lstm.streaming.engines import (
    ARTEFACTS,
    Engine,
    KerasEngine,
    Spec,
    export_step,
    open_artefact,
)

if TYPE_CHECKING:
    import keras

#: Suffixes of files that Keras runs.
KERAS_FILES = (".keras", ".h5")
# Names in a state's file that no layer has.
_STEPS, _WEIGHTS = "stream/steps", "stream/weights"


class Stream:
    """Feeds a model sample by sample: after each it gives what the model gives for all so far.

    Example:
        >>> stream = Stream(model)      # of (batch, time, channels, features)
        >>> for sample in samples:      # (channels, features)
        ...     prediction = stream.step(sample)

    Args:
        model: a model as `to_step_model` takes it, or what that made; or the path of a `.keras`
            (or `.h5`) file of either, or of a step model's `.onnx`, `.tflite` or `.xml` file.
        batch_size: the number of series that advance side by side, each a row of the batch.
        runtime: None for the Keras backend; or `"onnxruntime"`, `"litert"` or `"openvino"`, for
            which the step is exported, and checked, first. A file of those runs in its own.
        window: after so many samples a row begins anew, as if `reset`; None for never.
        compile: whether the Keras backend compiles the step (`jax.jit`, `tf.function`,
            `torch.export`), once, for this batch size.

    Attributes:
        inputs: the axes and dtype of each input of a sample, by name.
        steps: the number of samples of each row since it began, `(batch_size,)`.

    Raises:
        ValueError: for what cannot run step by step, see `to_step_model`; an unknown runtime;
            numbers below 1.
    """

    def __init__(
        self,
        model: "keras.Model | str | os.PathLike[str]",
        batch_size: int = 1,
        runtime: str | None = None,
        *,
        window: int | None = None,
        compile: bool = True,
    ) -> None:
        for name, number in (("batch_size", batch_size), ("window", window)):
            if number is not None and (not is_integer(number) or number < 1):
                raise ValueError(f"Stream: `{name}` must be 1 or more. Received {number!r}.")
        if runtime is not None and runtime not in ARTEFACTS:
            raise ValueError(
                f"Stream: `runtime` must be None, {', '.join(map(repr, ARTEFACTS))}. Received "
                f"{runtime!r}."
            )
        batch_size = int(batch_size)
        self.batch_size, self.window = batch_size, window
        self._engine, self._weights, self._known = _engine(model, batch_size, runtime, compile)
        self.inputs = self._engine.inputs
        self._first = next(iter(self.inputs))
        # What is the same at each step, of which a step of 30 microseconds is soon full.
        self._zeros = {
            n: np.zeros((batch_size, *spec.shape), spec.dtype) for n, spec in self.inputs.items()
        }
        self._state: list[Any] = []
        self.steps = np.zeros(batch_size, "int64")
        self.reset()

    def __repr__(self) -> str:
        """The axes that a sample has, and where it is computed."""
        return f"Stream({_described(self.inputs)}, on {self._engine.name})"

    def step(self, sample: Any, rows: Any = None) -> Any:
        """The prediction after one more sample.

        Args:
            sample: `(batch_size, *axes)`, or `(*axes)` where the batch size is 1; for several
                inputs a dict of them by name.
            rows: which rows have a sample now: booleans `(batch_size,)`; by default all. The state
                of the others stays, and whatever stands in their samples is not looked at.

        Returns:
            The output, an array of the model's dtype with a batch axis if the sample has one; a
            dict of them by name if there are several. NaN for a row without a sample.

        Raises:
            ValueError: for a sample of other axes, of no number, or with a NaN or infinity, from
                which the state would never recover. The state is then as it was.
        """
        present = None if rows is None else self._rows(rows)
        arrays, batched = self._sample(sample, present)
        if self.window is not None and (self.steps >= self.window).any():
            self.reset(self.steps >= self.window)
        engine = self._engine
        found = engine.run([*arrays, *self._state])
        count = len(engine.outputs)
        outputs, state = [engine.to_numpy(x) for x in found[:count]], found[count:]
        if present is not None:
            pairs = zip(state, self._state, strict=True)
            state = [engine.choose(present, new, old) for new, old in pairs]
            outputs = [_nan_but(present, x) for x in outputs]
        self._state = state
        self.steps = self.steps + (1 if present is None else present)
        if not batched:
            outputs = [x[0] for x in outputs]
        return outputs[0] if count == 1 else dict(zip(engine.outputs, outputs, strict=True))

    def reset(self, rows: Any = None) -> None:
        """Begin anew.

        Args:
            rows: which rows: booleans `(batch_size,)`, or their numbers; by default all.
        """
        zeros = [
            np.zeros((self.batch_size, *spec.shape), spec.dtype)
            for spec in self._engine.states.values()
        ]
        chosen = self._rows(rows)
        if chosen.all():
            self._state = zeros
        else:
            pairs = zip(zeros, self._state, strict=True)
            self._state = [self._engine.choose(chosen, new, old) for new, old in pairs]
        self.steps = np.where(chosen, 0, self.steps)

    @property
    def state(self) -> dict[str, np.ndarray]:
        """The states by name, `(batch_size, ...)`; copies."""
        pairs = zip(self._engine.states, self._state, strict=True)
        return {name: np.array(self._engine.to_numpy(x)) for name, x in pairs}

    @state.setter
    def state(self, given: Mapping[str, Any]) -> None:
        states = self._engine.states
        wrong = {*given} ^ {*states}
        if wrong:
            raise ValueError(
                f"Stream: the state has {sorted(states)}. Received {sorted(given)}: "
                f"{sorted(wrong)} are in one alone. It may be of another model."
            )
        arrays = []
        for name, spec in states.items():
            array, wanted = np.asarray(given[name]), (self.batch_size, *spec.shape)
            if array.shape != wanted:
                raise ValueError(
                    f"Stream: the state '{name}' must have shape {wanted}. Received {array.shape}. "
                    "Another model or batch size has another state."
                )
            array = _as_dtype(f"the state '{name}'", array, np.dtype(spec.dtype))
            if np.isnan(array).any():
                raise ValueError(
                    f"Stream: the state '{name}' has NaN, from which it would never recover. Begin "
                    "anew, or go on from a state before."
                )
            arrays.append(array)
        self._state = arrays

    def save_state(self, path: str | os.PathLike[str]) -> None:
        """Write the state, and the number of samples, to an `.npz` file, which is moved there.

        Raises:
            WriteError: if it cannot be written.
        """
        weights = np.frombuffer(bytes.fromhex(self._weights), "uint8")
        about = {_STEPS: self.steps, _WEIGHTS: weights}
        with replacing(Path(path)) as temporary, temporary.open("wb") as file:
            np.savez(file, **self.state, **about)  # type: ignore[arg-type]

    def load_state(self, path: str | os.PathLike[str]) -> None:
        """Go on where a stream of the same model was, on whatever backend that ran.

        Raises:
            ValueError: for a file that is damaged, or of another model, weights or batch size.
            FileNotFoundError: if there is none.
        """
        arrays = read_arrays(path)
        if not {_STEPS, _WEIGHTS} <= {*arrays}:
            raise ValueError(f"{path} does not hold the state of a stream, as `save_state` writes.")
        steps, weights = arrays.pop(_STEPS), arrays.pop(_WEIGHTS).tobytes().hex()
        if weights and self._weights and weights != self._weights:
            raise ValueError(
                f"{path} holds the state of a model with other weights, to which it means nothing. "
                "Load that model, or begin anew."
            )
        if steps.shape != (self.batch_size,) or steps.dtype.kind != "i" or (steps < 0).any():
            raise ValueError(
                f"{path} holds the state of {steps.size} series, and the stream has "
                f"batch_size={self.batch_size}."
            )
        self.state = arrays
        self.steps = steps.astype("int64")

    def _rows(self, rows: Any) -> np.ndarray:
        """Booleans `(batch_size,)`."""
        chosen = np.ones(self.batch_size, "bool")
        if rows is None:
            return chosen
        given = np.asarray(rows)
        if given.dtype == bool and given.shape == chosen.shape:
            return given
        numbers = given.reshape(-1)
        if (given.dtype.kind not in "iu" and given.size) or given.ndim > 1:
            raise ValueError(
                f"Stream: `rows` must be booleans ({self.batch_size},) or numbers of rows. "
                f"Received {given.dtype} of shape {given.shape}."
            )
        if ((numbers < 0) | (numbers >= self.batch_size)).any():
            raise ValueError(
                f"Stream: rows are 0 to {self.batch_size - 1}. Received {numbers.tolist()}."
            )
        chosen[:] = False
        chosen[numbers.astype(int)] = True
        return chosen

    def _sample(self, sample: Any, present: np.ndarray | None) -> tuple[list[np.ndarray], bool]:
        """An array for each input, and whether they came with a batch axis."""
        given = sample if isinstance(sample, Mapping) else {self._first: sample}
        if given.keys() != self.inputs.keys():
            raise ValueError(
                f"Stream: a sample has {_described(self.inputs)}"
                f"{', a dict of arrays' if len(self.inputs) > 1 else ''}. Received "
                f"{sorted(given)}."
            )
        arrays, batched = [], False
        for name, zeros in self._zeros.items():
            try:
                array = with_nan(given[name])
            except ValueError as error:  # lists of unlike lengths
                raise ValueError(f"Stream: '{name}' must be an array of numbers: {error}") from None
            if array.dtype != zeros.dtype:
                array = _as_dtype(f"'{name}'", array, zeros.dtype)
            if array.shape == zeros.shape:
                batched = True
            elif array.shape == zeros.shape[1:] and self.batch_size == 1:
                array = array[None]
            else:
                raise ValueError(
                    f"Stream: '{name}' must have shape {zeros.shape}, (batch, *axes) without time. "
                    f"Received {array.shape}."
                )
            if present is not None:
                shaped = present.reshape(-1, *[1] * (array.ndim - 1))
                array = np.where(shaped, array, zeros)
            known = self._known.get(name)
            if known is not None and ((array < 0) | (array >= known)).any():
                raise ValueError(
                    f"Stream: '{name}' must be from 0 to {known - 1}, which its Embedding knows. "
                    f"Received {array.reshape(-1).tolist()[:8]}."
                )
            # NaN or infinity times 0 is NaN; the quickest way to ask.
            if np.vdot(array, zeros) != 0:
                place = tuple(np.argwhere(~np.isfinite(array))[0].tolist())
                raise ValueError(
                    f"Stream: '{name}' has {array[place]} at {place[1:]} in row {place[0]}, from "
                    "which the state would never recover. Leave the row out by `rows`, or put the "
                    "value that the model masks."
                )
            arrays.append(array)
        return arrays, batched


def _as_dtype(title: str, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Numbers in the dtype that is computed in, in which a large one may be infinite."""
    if array.dtype.kind in "iub" and dtype.kind in "iu" and array.size:
        found, held = (int(array.min()), int(array.max())), np.iinfo(dtype)
        if found[0] < held.min or found[1] > held.max:
            raise ValueError(
                f"Stream: {title} must be integers from {held.min} to {held.max}, those of "
                f"{dtype}. Received {found[0]} to {found[1]}."
            )
        return array.astype(dtype)
    if array.dtype.kind not in "fiub" or not np.can_cast(array.dtype, dtype, "same_kind"):
        raise ValueError(f"Stream: {title} must be numbers of {dtype}. Received {array.dtype}.")
    with np.errstate(over="ignore"):
        return array.astype(dtype)


def _engine(
    model: Any, batch_size: int, runtime: str | None, compile: bool
) -> tuple[Engine, str, dict[str, int]]:
    """What computes the step, a hash of its weights, and how many entries inputs may name.

    The hash is empty, and nothing known of inputs, where a file does not say it.
    """
    if isinstance(model, (str, os.PathLike)):
        if Path(model).suffix not in KERAS_FILES:
            engine = open_artefact(model)
            if runtime not in (None, engine.name):
                raise ValueError(f"Stream: {model} runs on {engine.name}, not on {runtime}.")
            return engine, engine.weights, {}
        model = load_keras_model(model)
    from multibackend_lstm.runtimes.execution import weights_sha256
    from multibackend_lstm.streaming.step_model import (
        embedded_inputs,
        is_step_model,
        to_step_model,
    )

    step = model if is_step_model(model) else to_step_model(model)
    weights, known = weights_sha256(step), embedded_inputs(step)
    if runtime is not None:
        return export_step(step, runtime, batch_size), weights, known
    return KerasEngine(step, batch_size, compile), weights, known


def _nan_but(rows: np.ndarray, x: np.ndarray) -> np.ndarray:
    """NaN where a row is False."""
    shaped = rows.reshape(-1, *[1] * (x.ndim - 1))
    floating = x if x.dtype.kind == "f" else x.astype("float32")
    return np.where(shaped, floating, floating.dtype.type(np.nan))


def _described(specs: Mapping[str, Spec]) -> str:
    return ", ".join(
        f"'{name}' (batch, {', '.join(map(str, s.shape))})" for name, s in specs.items()
    )
