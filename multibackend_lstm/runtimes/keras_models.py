"""Keras models on the backend of this process: described, run, and run again as perturbed twins."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from multibackend_lstm.runtimes.errors import CaseError
from multibackend_lstm.runtimes.imports import imported
from multibackend_lstm.runtimes.noise_floor import ROUNDING, Key, NoiseFloor, one_by_one, perturbed
from multibackend_lstm.runtimes.runtime import Answer, Runtime
from multibackend_lstm.runtimes.serve import described

# How many times the rounding moves what is to fall on the other side of a tie; and how far,
# relative to a number, what is not: far enough for float64 to know the direction.
_FAR, _NEAR = 8, 2.0**-35


class KerasModels(Runtime):
    """The backend of Keras that `KERAS_BACKEND` names; each request brings its model.

    {"do": "describe", "source", "dtype"} -> {"described": inputs, layers, weights, ...} + arrays
    {"do": "run", "source", "dtype", "structure", "training", "twins", "seed", "rounding",
     "weight_paths", "dtypes"} -> tensors; with "dtypes", {"call"} or {"cannot", "reason"} for each
    ... with "only_load", for its layers to be called alone, nothing but {"done"}
    ... with "flips" -> {"flips": {"kind", "path", "size"}}
    {"do": "alone", "call", "twins", "inside", "kinks"} -> tensors of a layer of the model run last
    {"do": "open", "call", "record"} -> {"call"}, ... of the operations inside of a layer; {"done"}
    {"do": "call", "function": "package.module:name", "arguments"} -> {"called": its result}
    """

    parts = ("layers alone", "prediction", "layers", "training")
    _isolation: Any = None
    _inside: Any = None

    def start(self) -> dict[str, Any]:
        """Import Keras, and choose device and precision."""
        from multibackend_lstm import environment
        from multibackend_lstm.hiding import without_jax

        with without_jax():  # models come later, whose code may import it
            import keras

            import multibackend_lstm  # noqa: F401  (registers the layers that cases name)
            from multibackend_lstm.runtimes import backend_runtime

        backend = backend_runtime.active()
        device = backend.use_device(self.kind)
        switches = backend.strict_precision() if self.precision == "strict" else {}
        return {
            "ready": keras.backend.backend(),
            "device": device,
            "set_switches": switches,
            "precision": backend.precision(),
            "versions": environment.versions(),
            "float64": _computes_in_float64(),
            "trains": backend.trains,
        }

    @property
    def requests(self) -> Mapping[str, Callable[..., None]]:
        """As in `Runtime`."""
        return {
            "describe": _describe,
            "run": self._run,
            "alone": self._alone,
            "open": self._open,
            "call": _call,
        }

    def _run(
        self,
        answer: Answer,
        arrays: dict[str, np.ndarray],
        *,
        source: dict[str, Any],
        dtype: str | None,
        structure: Any,
        training: dict[str, Any] | None,
        twins: int,
        seed: int,
        rounding: float,
        weight_paths: list[str],
        dtypes: dict[str, str] | None = None,
        flips: int = 0,
        only_load: bool = False,
        **_: Any,
    ) -> None:
        """Every tensor of a case; with `twins`, in float64 with each tensor's noise floor.

        With `flips` nothing but how far each tensor moves where a decision falls otherwise.
        """
        from multibackend_lstm.runtimes.execution import Execution, load
        from multibackend_lstm.runtimes.isolation import Isolation

        start = time.perf_counter()
        self._isolation = self._inside = None  # those of another model
        self._wide = twins > 0 and dtype == "float64"
        with self._floatx():
            model, given = load(source, dtype)
            if not model.built:
                model(given)
            weights = _numbered(arrays, "weight")
            forms = list(zip(weight_paths, (x.shape for x in weights), strict=True))
            execution = Execution(model, structure, training, forms, noisy=self._wide)
            case = _RunParts(execution, arrays, training, seed, self._wide)
            self._isolation = Isolation(execution, weights, weight_paths)
            if only_load:
                pass
            elif flips:
                _send_flips(answer, case, flips, rounding)
            elif twins:
                _send_truth(answer, case, twins, rounding)
            else:
                for part in case.parts(predict=True):
                    _send_part(answer, part)
            if dtypes is not None:
                _send_calls(answer, case, self._isolation, dtypes)
            notes = [] if only_load else case.notes()
        answer({"done": {"seconds": time.perf_counter() - start, "notes": notes}})

    def _open(
        self, answer: Answer, arrays: dict[str, np.ndarray], *, call: dict[str, Any], record: bool
    ) -> None:
        """Take a layer of the model that ran last apart, for calls of what is `inside`."""
        from multibackend_lstm.backends import Refused
        from multibackend_lstm.runtimes.calls import Call

        made = Call.of(call, arrays)
        with self._floatx():
            try:
                self._inside = self._isolation.opened(made)
            except Refused as reason:
                answer({"done": {"refused": str(reason)}})
                return
            if record:
                _send_found(answer, self._inside.record_opened(made))
        answer({"done": {"operations": [*self._inside.operations]}})

    def _alone(
        self,
        answer: Answer,
        arrays: dict[str, np.ndarray],
        *,
        call: dict[str, Any],
        twins: int,
        inside: bool = False,
        kinks: bool = False,
    ) -> None:
        """What a layer of the model that ran last makes of a call; with `twins`, the floors too."""
        from multibackend_lstm.runtimes.calls import Call

        made = Call.of(call, arrays)
        isolation = self._inside if inside else self._isolation
        with self._floatx():
            if twins:
                for truth in isolation.truth(made, twins, kinks=kinks):
                    header = _header(truth.tensor, floor=truth.floor, of_twins=truth.of_twins)
                    answer(header, {"values": truth.tensor.values, "elements": truth.elements})
            else:
                for tensor in isolation.run(made):
                    answer(_header(tensor), {"values": tensor.values})
        answer({"done": {}})

    @contextmanager
    def _floatx(self) -> Iterator[None]:
        """Keras's dtype of the model that ran last."""
        import keras

        keras.config.set_floatx("float64" if self._wide else "float32")
        try:
            yield
        finally:
            keras.config.set_floatx("float32")
            keras.config.set_dtype_policy("float32")


def _computes_in_float64() -> bool:
    """Whether a float64 layer of Keras really computes in float64 on this backend."""
    import keras

    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 3)), rng.normal(size=(3, 2))
    layer = keras.layers.Dense(2, activation="tanh", dtype="float64")
    layer.build((None, 3))
    layer.set_weights([kernel, np.zeros(2)])
    difference = keras.ops.convert_to_numpy(layer(x)) - np.tanh(x @ kernel)
    return bool(np.abs(difference).max() < 1e-13)


def _describe(
    answer: Answer, arrays: dict[str, np.ndarray], source: dict[str, Any], dtype: str | None
) -> None:
    """Config, weights and inputs of a model."""
    import keras
    from keras import tree

    from multibackend_lstm.runtimes.execution import (
        describe,
        load,
        numpy_weights,
        unique_paths,
    )

    model, inputs = load(source, dtype)
    if not model.built:
        if inputs is None:
            raise CaseError(
                f"{model.name}: the model is not built, so that it has no weights yet. Have the "
                "function return (model, inputs), or call the model once in it."
            )
        model(inputs)
    described = describe(model)
    given: list[np.ndarray] = []
    if inputs is not None:
        given = [np.asarray(x) for x in tree.flatten(inputs)]
        described["structure"] = tree.pack_sequence_as(inputs, list(range(len(given))))
    if "file" in source:
        described["config"] = keras.saving.serialize_keras_object(model)
    weights = numpy_weights(model)
    answer(
        {
            "described": described,
            "given": len(given),
            "weights": len(weights),
            "weight_paths": unique_paths(model.weights),
        },
        {f"weight{i}": x for i, x in enumerate(weights)}
        | {f"input{i}": x for i, x in enumerate(given)},
    )


class _RunParts:
    """An execution with its arrays."""

    def __init__(
        self,
        execution: Any,
        arrays: dict[str, np.ndarray],
        training: dict[str, Any] | None,
        seed: int,
        wide: bool,
    ) -> None:
        self.execution = execution
        self.weights = _numbered(arrays, "weight")
        self.inputs = _numbered(arrays, "input")
        self.labels = _numbered(arrays, "label")
        self.training = training
        self.seed = seed
        self.wide = wide

    def parts(
        self, predict: bool, weights: Any = None, inputs: Any = None
    ) -> Iterator[tuple[str, Iterator[Any]]]:
        """Name and tensors of what is compared, each part from the same start."""
        weights = self.weights if weights is None else weights
        inputs = self._as_run(self.inputs if inputs is None else inputs)
        if predict:
            self.execution.set_weights(weights)
            yield "prediction", self.execution.predicted(inputs)
        self.execution.set_weights(weights)
        yield "layers", self.execution.captured(inputs)
        if self.execution.output_forms is None:
            return  # the model does not run, as the error of its layers says
        labels = self._labels_of_training()
        if labels is not None and not self.execution.randomness:
            self.execution.set_weights(weights)
            yield "training", self.execution.trained(inputs, labels)

    def _as_run(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        if self.wide:
            return [x.astype("float64") if x.dtype.kind == "f" else x for x in inputs]
        return [x.astype(y.dtype) for x, y in zip(inputs, self.inputs, strict=True)]

    def _labels_of_training(self) -> list[np.ndarray] | None:
        """Given or drawn, once the model has run; None for no training."""
        from multibackend_lstm.runtimes.execution import draw_labels

        execution = self.execution
        if not self.training or execution.untrainable:
            return None
        if self.labels:
            return self.labels
        return draw_labels(self.training["loss"], execution.output_forms, self.seed)

    def calls(self, isolation: Any, dtypes: dict[str, str]) -> Iterator[Any]:
        """What goes into each layer, from the start's weights.

        In a model that draws random numbers too: what they make of it is the same for all.
        """
        self.execution.set_weights(self.weights)
        return isolation.record(self._as_run(self.inputs), self._labels_of_training(), dtypes)

    def notes(self) -> list[str]:
        found = [f"{path} draws random numbers" for path in self.execution.randomness]
        if self.training and self.execution.untrainable:
            found.append(self.execution.untrainable)
        return [f"training is not compared: {why}" for why in found]


def _numbered(arrays: dict[str, np.ndarray], name: str) -> list[np.ndarray]:
    numbers = sorted(int(key.removeprefix(name)) for key in arrays if key.startswith(name))
    return [arrays[f"{name}{number}"] for number in numbers]


def _send_part(answer: Answer, part: tuple[str, Iterator[Any]]) -> None:
    from multibackend_lstm.backends import Refused

    name, tensors = part
    try:
        for tensor in tensors:
            answer(_header(tensor), {"values": tensor.values})
    except Refused as reason:
        answer({"refused": name, "reason": str(reason)})
    except Exception as error:
        answer({"failed": name, "reason": described(error)})


def _header(tensor: Any, **more: Any) -> dict[str, Any]:
    more |= {"assigned": True} if tensor.assigned else {}
    return {"tensor": {"kind": tensor.kind, "path": tensor.path, "dtype": tensor.dtype, **more}}


def _tensors_of_twin(case: _RunParts, twin: int, size: float) -> Iterator[tuple[str, Any]]:
    """Part and tensor of a run that is moved by a size, 0 for none; a failed part's error last."""
    weights, inputs = case.weights, case.inputs
    if twin:
        rng = np.random.default_rng([case.seed, twin])
        weights = [perturbed(w, rng, size) for w in weights]
        inputs = [perturbed(x, rng, size, case.execution.mask_values) for x in inputs]
    case.execution.round(size, case.seed + twin)
    for name, part in case.parts(not case.wide, weights, inputs):
        try:
            for tensor in part:
                yield name, tensor
        except Exception as error:
            yield name, error


def _values(found: Iterable[tuple[str, Any]]) -> Iterator[tuple[Key, np.ndarray]]:
    """The tensors among what was found, one at a time: of a large model they are not all kept."""
    for _, tensor in found:
        if not isinstance(tensor, Exception):
            yield (tensor.kind, tensor.path), tensor.values


def _send_truth(answer: Answer, case: _RunParts, twins: int, rounding: float) -> None:
    """Every tensor of an unperturbed run, and its noise floor: how far it moves in the twins."""
    floor = NoiseFloor(rounding, in_float64=case.wide)
    truth = list(_tensors_of_twin(case, 0, 0.0))
    exact = dict(_values(truth))
    for twin in range(1, twins + 1):
        for key, values in _values(_tensors_of_twin(case, twin, floor.size(twin))):
            if key in exact:
                floor.add(twin, key, values, exact[key])
    longer = _longer_by_sums(
        [tensor for _, tensor in truth if not isinstance(tensor, Exception)], floor, rounding
    )
    for name, tensor in truth:
        if isinstance(tensor, Exception):
            answer({"failed": name, "reason": described(tensor)})
            continue
        size, most = floor.of((tensor.kind, tensor.path))
        size += longer.get((tensor.kind, tensor.path), 0.0)
        answer(_header(tensor, floor=size, largest=most), {"values": tensor.values})


def _send_flips(answer: Answer, case: _RunParts, pairs: int, rounding: float) -> None:
    """How far each tensor moves where a decision falls otherwise: of a ReLU, or a maximum.

    Each pair of twins is moved in the same directions, once by several times the rounding, so that
    what is near to a tie falls on its other side, and once by so little that nothing does. What the
    first one moves beyond what the second one, scaled up, does is due to the decisions.
    """
    exact = dict(_values(_tensors_of_twin(case, 0, 0.0)))
    far = _FAR * rounding
    most = dict.fromkeys(exact, 0.0)
    for twin in range(1, pairs + 1):
        near = dict(_values(_tensors_of_twin(case, twin, _NEAR)))
        for key, values in _values(_tensors_of_twin(case, twin, far)):
            if key not in near or key not in exact or values.dtype.kind != "f":
                continue
            smooth = (near[key].astype("float64") - exact[key]) * (far / _NEAR)
            beyond = values.astype("float64") - exact[key] - smooth
            finite = beyond[np.isfinite(beyond)]
            size = float(np.sqrt(np.mean(np.square(finite)))) if finite.size else 0.0
            most[key] = max(most[key], size)
    for (kind, path), size in most.items():
        answer({"flips": {"kind": kind, "path": path, "size": size}})


def _longer_by_sums(tensors: list[Any], floor: NoiseFloor, rounding: float) -> dict[Key, float]:
    """What the length of sums adds to the floors of losses and of biases, in float32.

    A bias goes on by what its gradient is off, so that its floor grows in the same proportion.
    """
    if rounding > 2 * ROUNDING["float32"]:
        return {}
    outputs = [t.values for t in tensors if t.kind in ("layer", "output") and t.values.size]
    terms = {
        "loss": sum(t.values.size for t in tensors if t.kind == "output"),
        "weight gradient": max((x.size / x.shape[-1] for x in outputs if x.ndim), default=1),
    }
    more: dict[Key, float] = {}
    for tensor in tensors:
        if tensor.kind not in terms or sum(n > 1 for n in tensor.values.shape) > 1:
            continue
        finite = tensor.values[np.isfinite(tensor.values)].astype("float64")
        total = float(np.sqrt(np.mean(np.square(finite)))) if finite.size else 0.0
        key = (tensor.kind, tensor.path)
        known = floor.of(key)[0]
        grown = float(one_by_one(known, total, terms[tensor.kind], ROUNDING["float32"]))
        more[key] = grown - known
        if tensor.kind == "weight gradient" and known:
            of_weight = floor.of(("weight", tensor.path))[0]
            more["weight", tensor.path] = of_weight * (grown / known - 1)
    return more


def _send_calls(answer: Answer, case: _RunParts, isolation: Any, dtypes: dict[str, str]) -> None:
    """What goes into every layer, for each to be called alone."""
    from multibackend_lstm.backends import Refused

    if case.execution.output_forms is None:
        return  # the model does not run
    try:
        _send_found(answer, case.calls(isolation, dtypes))
    except Refused as reason:
        answer({"cannot": "layers in training", "reason": str(reason)})
    except Exception as error:
        answer({"cannot": "layers", "reason": described(error)})


def _send_found(answer: Answer, found: Iterator[Any]) -> None:
    from multibackend_lstm.runtimes.calls import NotAlone

    for call in found:
        if isinstance(call, NotAlone):
            answer({"cannot": call.name, "reason": call.reason})
        else:
            header, arrays = call.message()
            answer({"call": header}, arrays)


def _call(
    answer: Answer, arrays: dict[str, np.ndarray], function: str, arguments: dict[str, Any]
) -> None:
    """Call a function of plain values, whose result is one too."""
    answer({"called": imported(function)(**arguments)})
