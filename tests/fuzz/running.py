"""Builds the Keras layers of a case and runs it as its mode says, in the active backend."""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from keras import ops, tree

import multibackend_lstm
from fuzz import cases, reference
from fuzz.backends import BACKENDS
from fuzz.cases import Call, Structure, Values, draw_structure, draw_values
from fuzz.judging import (
    GRADIENT_FACTOR,
    RIGHT,
    TOLERANCES,
    WRONG,
    Verdict,
    Wrong,
    check_mask,
    coarser,
    compare,
    judge_exception,
    judged,
    rounded,
)
from fuzz.reference import Array, Spec

# The messages as they were raised.
keras.config.disable_traceback_filtering()

OWN_BIDIRECTIONAL = hasattr(multibackend_lstm, "Bidirectional")
# Not ours to avoid: JAX without x64 says that it has no float64, which the policy asks for, and
# Keras that a softmax over one unit is always 1.
EXPECTED_WARNINGS = ("Explicitly requested dtype", "You are using a softmax")


@keras.saving.register_keras_serializable(package="multibackend_lstm_fuzz")
def sine(x: Any) -> Any:
    """An activation that Keras does not know by name."""
    return ops.sin(x)


@keras.saving.register_keras_serializable(package="multibackend_lstm_fuzz")
class MaskProbe(keras.layers.Layer):
    """The mask of its input as int32; -1 for each sample where there is none."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)
        self.supports_masking = True

    def call(self, x: Any, mask: Any = None) -> Any:
        """See the class."""
        if mask is None:
            return ops.zeros((ops.shape(x)[0],), dtype="int32") - 1
        return ops.cast(mask, "int32")


def build_layer(spec: Spec, policy: str) -> keras.layers.Layer:
    """The Keras layer of a spec."""
    options = {key: value for key, value in spec.items() if key != "class"}
    for key in ("activation", "recurrent_activation"):
        if options.get(key) == "sine":
            options[key] = sine
        elif options.get(key) == "prelu":
            options[key] = keras.layers.PReLU(dtype=policy)
    if "layer" in options:
        options["layer"] = build_layer(spec["layer"], policy)
    of_keras = options.pop("keras", not hasattr(multibackend_lstm, spec["class"]))
    module = keras.layers if of_keras else multibackend_lstm
    return getattr(module, spec["class"])(**options, dtype=policy)


class Program:
    """The layer or functional model of a structure, and how to call it.

    Attributes:
        structure: what it was built for.
        container: the layer or model.
    """

    def __init__(self, structure: Structure) -> None:
        self.structure = structure
        batch, time, *axes = structure.shape
        stateful = structure.calls > 1
        sizes = (
            batch if stateful or not structure.unknown else None,
            None if structure.unknown else time,
        )
        if structure.functional:
            self.container = self._model((*sizes, *axes))
        else:
            self.container = build_layer(structure.spec, structure.policy)
            self.container.build((*sizes, *axes))
        backend = BACKENDS[keras.backend.backend()]
        self.backend = backend(self.container, self._invoke, structure)

    def _model(self, shape: tuple[int | None, ...]) -> keras.Model:
        """A functional model that returns the outputs, then their masks."""
        structure = self.structure
        x = keras.Input(batch_shape=shape, dtype=structure.dtype)
        inputs, arguments = [x], {}
        if structure.mask is not None:
            mask = keras.Input(
                batch_shape=(*shape[:2], *structure.mask.axes), dtype=structure.mask.dtype
            )
            arguments["mask"] = mask
            inputs.append(mask)
        if structure.lengths is not None:
            lengths = keras.Input(batch_shape=shape[:1], dtype=structure.lengths)
            arguments["lengths"] = lengths
            inputs.append(lengths)
        if structure.states:
            shapes = reference.state_shapes(structure.spec, structure.shape)
            states = [keras.Input(batch_shape=(shape[0], *s[1:])) for s in shapes]
            arguments["initial_state"] = states
            inputs += states
        y = x
        if structure.masking:
            value = cases.mask_value(structure.dtype)
            y = keras.layers.Masking(value, dtype=structure.policy)(x)
        for spec in structure.spec.get("layers", [structure.spec]):
            y = build_layer(spec, structure.policy)(y, **arguments)
            arguments = {}
        outputs = tree.flatten(y)
        return keras.Model(inputs, [*outputs, *(MaskProbe()(output) for output in outputs)])

    def _invoke(self, function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        """Call `function` as the layer or the model is called."""
        if self.structure.functional:
            return function(self._flat(arguments))
        arguments = dict(arguments)
        return function(arguments.pop("x"), **arguments)

    @property
    def weights(self) -> list[Any]:
        """Those of the container in the order of the reference: slopes of PReLU at the end."""
        return sorted(self.container.weights, key=lambda weight: weight.name == "alpha")

    @staticmethod
    def _flat(arguments: dict[str, Any]) -> list[Any]:
        """In the order of the model's inputs; jax.jit sorts a dictionary by its keys."""
        names = [n for n in ("x", "mask", "lengths", "initial_state") if n in arguments]
        return tree.flatten([arguments[name] for name in names])

    def set_weights(self, values: Values) -> list[Array]:
        """Draw all weights; returns them as they are in the compute dtype."""
        drawn = []
        for weight in self.weights:
            array = values.weight(tuple(weight.shape), weight.name)
            dtype = keras.backend.standardize_dtype(weight.dtype)
            drawn.append(rounded(array, dtype))
            weight.assign(drawn[-1].astype("float64" if dtype == "float64" else "float32"))
        return [rounded(array, self.structure.compute_dtype) for array in drawn]

    def reset(self) -> None:
        """Forget the states of stateful layers."""
        for layer in sublayers(self.container):
            if getattr(layer, "stateful", False) and hasattr(layer, "reset_state"):
                layer.reset_state()

    def arguments(self, call: Call) -> dict[str, Any]:
        """The arguments of a call in the order of the model's inputs."""
        structure = self.structure
        given: dict[str, Any] = {"x": call.x}
        if call.mask is not None:
            given["mask"] = call.mask
        if call.lengths is not None:
            given["lengths"] = call.lengths
        if call.states is not None:
            given["initial_state"] = call.states
        if structure.mode == "predict":
            # Keras's data adapters have no bfloat16; the model's input casts back.
            return {
                **given,
                "x": call.x.astype("float32") if structure.dtype == "bfloat16" else call.x,
            }
        if structure.arrays:
            return given
        return tree.map_structure(
            lambda a: ops.convert_to_tensor(a, dtype=str(a.dtype)), given, none_is_leaf=False
        )

    def run(self, call: Call, whole_predict: bool) -> list[Any]:
        """Outputs of one call, as tensors; from `predict` as arrays.

        Args:
            call: the arguments.
            whole_predict: in the mode "predict" whether that is called, or `predict_on_batch`,
                which runs the same compiled function without a data set around it.
        """
        arguments = self.arguments(call)
        if self.structure.mode == "predict":
            given = self._flat(arguments)
            if whole_predict:
                batch = self.structure.shape[0] if self.structure.calls > 1 else None
                result = self.container.predict(given, batch_size=batch, verbose=0)
            else:
                result = self.container.predict_on_batch(given)
        elif self.structure.mode == "jit":
            result = self.backend.jit(arguments)
        else:
            result = self._invoke(self.container, arguments)
        return tree.flatten(result)


def sublayers(layer: keras.layers.Layer) -> Iterator[keras.layers.Layer]:
    """The layer and all in it."""
    yield layer
    for inside in layer._layers:
        yield from sublayers(inside)


def to_numpy(x: Any) -> Array:
    """As float64."""
    return np.asarray(ops.convert_to_numpy(x)).astype("float64")


def time_mask(call: Call) -> Array | None:
    """The mask of a call, from lengths where these are given."""
    if call.lengths is not None:
        steps = np.arange(call.x.shape[1])[None]
        return steps < call.lengths.astype("int64")[:, None]
    return call.mask


def nan_where_unfit(call: Call, arrays: list[Array]) -> list[Array]:
    """NaN in the samples whose length is longer than the sequence."""
    unfit = call.lengths.astype("int64") > call.x.shape[1]
    return [np.where(unfit.reshape(-1, *[1] * (y.ndim - 1)), np.nan, y) for y in arrays]


class Expectation:
    """What the reference says of a case."""

    def __init__(self, structure: Structure, values: Values, weights: list[Array]) -> None:
        self.structure = structure
        self.weights = weights
        self.outputs: list[list[Array]] = []
        self.masks: list[list[Array | None]] = []
        spec, states = structure.spec, None
        for call in values.calls:
            x, mask = self.inputs(call)
            given = call.states
            if given is not None:
                states = [rounded(state, structure.compute_dtype) for state in given]
            outputs, masks = reference.compute(spec, iter(weights), x, mask, states)
            if structure.calls > 1:
                states = reference.final_states(spec, iter(weights), x, mask, states)
            if call.lengths is not None:
                outputs = nan_where_unfit(call, outputs)
                states = states and nan_where_unfit(call, states)
            self.outputs.append(outputs)
            if call.lengths is not None:
                masks = [None for _ in masks]
            self.masks.append(masks)

    def inputs(self, call: Call) -> tuple[Array, Array | None]:
        """Input and mask as the layer sees them."""
        structure = self.structure
        mask = time_mask(call)
        x = call.x.astype("float64")
        if structure.masking:
            mask = (x != cases.mask_value(structure.dtype)).any(-1)
            x = np.where(mask[..., None], x, 0)
        if structure.layer != "FlattenFeatures":
            x = rounded(x, structure.compute_dtype)
        return x, mask

    def derivatives(
        self, call: Call, directions: list[Array], cotangents: list[Array]
    ) -> list[float]:
        """Of the sum of outputs times cotangents, along a direction for x, states, weights each."""
        x, mask = self.inputs(call)
        states = None
        if call.states is not None:
            states = [rounded(state, self.structure.compute_dtype) for state in call.states]
        tensors = [x, *(states or []), *self.weights]
        if self.structure.masking:  # which lets nothing through
            directions = [directions[0] * mask[..., None], *directions[1:]]
        found = []
        for number, direction in enumerate(directions):
            moved = [t + 1e-30j * direction if number == n else t for n, t in enumerate(tensors)]
            moved_states = None if states is None else moved[1 : 1 + len(states)]
            weights = moved[1 + len(states or []) :]
            outputs, _ = reference.compute(
                self.structure.spec, iter(weights), moved[0], mask, moved_states
            )
            pairs = zip(outputs, cotangents, strict=True)
            found.append(float(sum(np.sum(y * c) for y, c in pairs).imag / 1e-30))
        return found


def output_dtype(structure: Structure) -> str:
    """The dtype that outputs must have."""
    dtype = structure.compute_dtype
    last = structure.spec
    if structure.layer == "FlattenFeatures":
        dtype = structure.dtype
        if structure.masking:
            dtype = structure.compute_dtype if dtype in cases.FLOATS else None
    elif last["class"] == "TimeDistributed" and last["layer"]["class"] == "Flatten":
        dtype = structure.compute_dtype if structure.dtype in cases.FLOATS else structure.dtype
    if keras.backend.backend() == "jax" and not structure.x64:
        dtype = {"float64": "float32", "int64": "int32"}.get(dtype, dtype)
    return dtype


def float64_is_kept(structure: Structure) -> bool:
    """Whether what computes is float64: not on JAX without x64, nor in Keras's own layers.

    Those multiply and normalise in float32 outside of TensorFlow, and Keras's LayerNormalization
    computes in the dtype of its input, whatever its policy, everywhere.
    """
    own = {part["class"] for part in cases.parts(structure.spec)} & {*cases.KERAS_OWN}
    if "LayerNormalization" in own and structure.dtype != "float64":
        return False
    if keras.backend.backend() == "tensorflow":
        return True
    if keras.backend.backend() == "jax" and not structure.x64:
        return False
    return not own


def judge(program: Program, values: Values) -> float:
    """Run a case and compare; the worst error as a multiple of the tolerance, or Wrong."""
    structure = program.structure
    weights = program.set_weights(values)
    program.reset()
    expected = Expectation(structure, values, weights)
    dtype = output_dtype(structure)
    tolerated = coarser(structure.compute_dtype, dtype or "float32")
    if tolerated == "float64" and not float64_is_kept(structure):
        tolerated = "float32"
        if any(part["class"] in cases.KERAS_OWN for part in cases.parts(structure.spec)):
            dtype = None  # a Dense layer with tanh returns float32 on JAX, with linear float64
    worst = 0.0
    for number, call in enumerate(values.calls):
        # On TensorFlow a data set takes twenty times as long as what is tested.
        outputs = program.run(call, values.seed % cases.CASES_PER_STRUCTURE < 2)
        if structure.functional:
            outputs, probes = outputs[: len(outputs) // 2], outputs[len(outputs) // 2 :]
            # Whether a mask given by hand goes on depends on the version of Keras.
            check_probes(probes, expected.masks[number], may_lack=structure.mask is not None)
        elif structure.mode == "eager" and call.lengths is None:
            check_computed_mask(program, call, expected.masks[number])
        if len(outputs) != len(expected.outputs[number]):
            raise Wrong(f"{len(outputs)} outputs in place of {len(expected.outputs[number])}")
        for index, (y, truth) in enumerate(zip(outputs, expected.outputs[number], strict=True)):
            what = f"output {index}" + (f" of call {number}" if structure.calls > 1 else "")
            check_dtype(what, y, dtype, structure)
            worst = max(worst, compare(what, to_numpy(y), truth, tolerated))
    if structure.gradient and not _unfit(values):
        worst = max(worst, judge_gradients(program, values, expected, tolerated))
    return worst


def _unfit(values: Values) -> bool:
    return any(
        call.lengths is not None and (call.lengths > call.x.shape[1]).any() for call in values.calls
    )


def check_dtype(what: str, y: Any, dtype: str | None, structure: Structure) -> None:
    """Wrong unless the output has the dtype; None allows any."""
    found = keras.backend.standardize_dtype(y.dtype)
    if structure.mode == "predict" and dtype == "bfloat16" and found == "float32":
        return  # Keras's `predict` on torch: NumPy has no bfloat16
    if dtype is not None and found != dtype:
        raise Wrong(f"{what}: {found} in place of {dtype}")


def check_probes(probes: list[Any], expected: list[Array | None], may_lack: bool) -> None:
    """Masks as `MaskProbe` gives them."""
    for number, (probe, mask) in enumerate(zip(probes, expected, strict=True)):
        got = np.asarray(ops.convert_to_numpy(probe))
        none = got.ndim == 1 and (got == -1).all()
        check_mask(f"output {number}", None if none else got, mask, may_lack)


def check_computed_mask(program: Program, call: Call, expected: list[Array | None]) -> None:
    """What the layer's `compute_mask` says."""
    x = ops.convert_to_tensor(call.x, dtype=str(call.x.dtype))
    mask = None if call.mask is None else ops.convert_to_tensor(call.mask)
    computed = program.container.compute_mask(x, mask)
    if computed is None:
        computed = [None] * len(expected)
    elif not isinstance(computed, (list, tuple)):
        computed = [computed]
    if len(computed) > len(expected):
        raise Wrong(f"{len(computed)} masks in place of {len(expected)}")
    # Keras takes those that are missing at the end for None.
    computed = [*computed, *[None] * (len(expected) - len(computed))]
    for number, (got, truth) in enumerate(zip(computed, expected, strict=True)):
        got = None if got is None else np.asarray(ops.convert_to_numpy(got))
        check_mask(f"output {number}", got, truth)


def judge_gradients(
    program: Program, values: Values, expected: Expectation, tolerated: str
) -> float:
    """Compare directional derivatives, one random direction a tensor."""
    (call,) = values.calls
    rng = values.generator
    cotangents = [rng.normal(size=y.shape) for y in expected.outputs[0]]
    floating, of_weights = program.backend.gradients(program.arguments(call), cotangents)
    trained = [weight.path for weight in program.container.trainable_variables]
    gradients = dict(zip(trained, of_weights, strict=True))
    if str(call.x.dtype) not in cases.FLOATS:
        floating = [None, *floating]  # no gradient by integers
    gradients |= {"x": floating[0]}
    gradients |= {f"state {n}": gradient for n, gradient in enumerate(floating[1:])}
    tensors = [call.x, *(call.states or []), *expected.weights]
    names = ["x", *(f"state {n}" for n, _ in enumerate(call.states or []))]
    names += [weight.path for weight in program.weights]
    directions = [rng.normal(size=tensor.shape) for tensor in tensors]
    truths = expected.derivatives(call, directions, cotangents)
    worst = 0.0
    for name, direction, truth, tensor in zip(names, directions, truths, tensors, strict=True):
        if gradients.get(name) is None:
            continue  # integers, and statistics of a normalisation
        gradient = to_numpy(gradients[name])
        if gradient.shape != tensor.shape:
            raise Wrong(f"gradient of {name}: shape {gradient.shape}, not {tensor.shape}")
        scale = max(1.0, float(np.linalg.norm(gradient))) * max(
            1.0, float(np.linalg.norm(direction))
        )
        error = abs(float(np.sum(gradient * direction)) - truth) / scale
        dtype = coarser(tolerated, str(tensor.dtype))
        worst = max(
            worst, judged(f"gradient of {name}", error, GRADIENT_FACTOR * TOLERANCES[dtype])
        )
    return worst


class Runner:
    """Runs seeds one after another, and keeps the program of the last structure.

    Attributes:
        error: what the last case raised, None if nothing.
    """

    def __init__(self) -> None:
        self.error: Exception | None = None
        self._structure: Structure | None = None
        self._program: Program | None = None

    def run(self, seed: int) -> tuple[Structure, Values | None, Verdict]:
        """The case of a seed, drawn, run and judged."""
        structure = draw_structure(seed, OWN_BIDIRECTIONAL)
        values = draw_values(structure, seed)
        with self._settings(structure), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            verdict = self._judge(structure, values)
        said = [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
        said = [text for text in said if not text.startswith(EXPECTED_WARNINGS)]
        if said and verdict.outcome == RIGHT:
            verdict = Verdict(WRONG, verdict.error, f"warned: {' '.join(said[0].split())[:200]}")
        return structure, values, verdict

    @staticmethod
    def _settings(structure: Structure) -> contextlib.AbstractContextManager[Any]:
        return BACKENDS[keras.backend.backend()].settings(structure)

    def _judge(self, structure: Structure, values: Values) -> Verdict:
        self.error = None
        try:
            with np.errstate(all="ignore"):
                program = self._built(structure)
                return Verdict(RIGHT, judge(program, values))
        except Wrong as reason:
            return Verdict(WRONG, reason=str(reason))
        except Exception as error:
            self.error = error
            self._structure = None  # what raised may be left half done
            return judge_exception(error, structure, values)

    def _built(self, structure: Structure) -> Program:
        if structure != self._structure:
            keras.backend.clear_session(free_memory=False)
            self._structure, self._program = None, Program(structure)
            self._structure = structure
        assert self._program is not None
        return self._program
