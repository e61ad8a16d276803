"""`build_model` as scikit-learn estimators: `LSTMClassifier`, `LSTMRegressor`. Extra `sklearn`.

`keras.wrappers` takes 2D arrays only, and keeps the settings of a model in one dictionary, whose
entries `GridSearchCV` cannot search; so these stand on `sklearn.base`.
"""

import json
import math
import tempfile
import zipfile
from collections.abc import Sequence
from numbers import Integral
from os import PathLike
from pathlib import Path
from typing import Any, Self

import keras
import numpy as np

from multibackend_lstm.agreement.same_start import fit_order, initialize
from multibackend_lstm.environment import install_command
from multibackend_lstm.files import replacing
from multibackend_lstm.layers.channelwise import Merge
from multibackend_lstm.layers.validation import check_positive
from multibackend_lstm.models import build_model
from multibackend_lstm.runtimes.loading import check_file, load_keras_model
from multibackend_lstm.solutions import Solution

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.model_selection import train_test_split
    from sklearn.utils import assert_all_finite, check_random_state
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import (
        check_array,
        check_consistent_length,
        check_is_fitted,
        column_or_1d,
        validate_data,
    )
except ModuleNotFoundError as error:
    raise ImportError(
        f"LSTMClassifier and LSTMRegressor need {error.name}, which is not installed: "
        + install_command("sklearn"),
        name=error.name,
    ) from error

#: What stands for a step that is not there, in the data that reaches the model. Exact in float32.
_MISSING = -1e9
_FLOATS = (np.float64, np.float32)
# The entry of a saved `.keras` file that holds all but the model.
_ENTRY = "estimator.json"


class _LSTMEstimator(BaseEstimator):
    """What the two estimators share: all but the meaning of `y`."""

    def __init__(
        self,
        solution: Solution = "reshape",
        *,
        units: int | Sequence[int] = 64,
        bidirectional: bool = False,
        dropout: float = 0.0,
        filters: int | Sequence[int] = 16,
        kernel_size: int | Sequence[int] = 3,
        merge: Merge = "concat",
        masking: float | None = None,
        normalization: bool = True,
        epochs: int = 40,
        batch_size: int = 32,
        optimizer: str = "adam",
        learning_rate: float = 1e-3,
        validation_fraction: float = 0.0,
        patience: int | None = None,
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None:
        self.solution = solution
        self.units = units
        self.bidirectional = bidirectional
        self.dropout = dropout
        self.filters = filters
        self.kernel_size = kernel_size
        self.merge = merge
        self.masking = masking
        self.normalization = normalization
        self.epochs = epochs
        self.batch_size = batch_size
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:  # noqa: N803
        """Train a new model.

        Args:
            X: the series, see the class.
            y: the targets, one for each series, see the class.
            sample_weight: weights of the series in the loss, `(samples,)`; `None` weighs all alike.

        Returns:
            The estimator itself.

        Raises:
            ValueError: for parameters, series, targets or weights that cannot be used; the message
                names the argument, the rule and what was received.
        """
        self._check_parameters()
        if y is None:
            raise ValueError(
                f"This {type(self).__name__} estimator requires y to be passed, but the target y "
                "is None."
            )
        steps, lengths = self._read(X, reset=True)
        check_consistent_length(lengths, y)
        targets, outputs = self._encode(y)
        weights = self._check_weights(sample_weight, lengths)
        steps, missing = self._arrange(steps)
        self._measure(steps, missing)
        x = self._pad(steps, missing, lengths)

        seed = check_random_state(self.random_state).randint(np.iinfo(np.int32).max)
        trained, validation = self._split(targets, seed)
        model = self._build(steps.shape[1:], *outputs)
        initialize(model, seed)
        batches = _Batches((x, targets, weights), trained, self.batch_size, seed)
        history = model.fit(
            batches,
            epochs=self.epochs,
            shuffle=False,
            validation_data=(
                None
                if validation is None
                else (x[validation], targets[validation], weights[validation])
            ),
            validation_batch_size=self.batch_size,
            callbacks=self._callbacks(),
            check_data=False,  # it has been checked above
            verbose=self.verbose,
        )
        self.model_ = model
        self.history_ = {
            name: [float(v) for v in values] for name, values in history.history.items()
        }
        return self

    def save(self, path: str | PathLike[str]) -> None:
        """Write a `.keras` file that `load` makes this estimator from again, on any backend.

        It is Keras's own format, with parameters, statistics and classes in a JSON entry:
        `keras.saving.load_model` opens it too, and gives the model, which takes data as it is
        after normalisation.

        Args:
            path: a file name that ends in `.keras`; an existing file is replaced.

        Raises:
            NotFittedError: before `fit`.
            ValueError: for another suffix, or for a `random_state` that is not an integer or
                `None`.
        """
        check_is_fitted(self)
        path = Path(path)
        if path.suffix != ".keras":
            raise ValueError(
                f"{type(self).__name__}.save: `path` must end in .keras. Received {str(path)!r}."
            )
        description = json.dumps(self._describe(), indent=1)
        with replacing(path) as temporary:
            self.model_.save(temporary)
            with zipfile.ZipFile(temporary, "a") as archive:
                archive.writestr(_ENTRY, description)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """Read an estimator that `save` wrote, on whichever backend is in use.

        Nothing of the file is executed: the model is loaded in Keras's safe mode, the rest is JSON.

        Raises:
            ValueError: for a file that holds no estimator of this class.
        """
        path = check_file(path)
        with path.open("rb") as file:
            if not zipfile.is_zipfile(file):
                raise ValueError(f"{cls.__name__}.load: {path} is not a .keras file.")
            with zipfile.ZipFile(file) as archive:
                if _ENTRY not in archive.namelist():
                    raise ValueError(
                        f"{cls.__name__}.load: {path} holds a model and no estimator. Load it with "
                        "`keras.saving.load_model`, or write it with "
                        f"`{cls.__name__}.save`."
                    )
                description = json.loads(archive.read(_ENTRY))
        if description.get("estimator") != cls.__name__:
            raise ValueError(
                f"{cls.__name__}.load: {path} holds another estimator, "
                f"{description.get('estimator')!r}."
            )
        parameters = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in description["parameters"].items()
        }
        estimator = cls().set_params(**parameters)
        estimator._restore(description["fitted"])
        estimator.model_ = load_keras_model(path, compile=True)
        return estimator

    def __getstate__(self) -> dict[str, Any]:
        """The attributes, with the bytes of a `.keras` file in place of the model."""
        state = dict(super().__getstate__())
        if "model_" in state:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, "model.keras")
                state["model_"].save(path)
                state["model_"] = path.read_bytes()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take what `__getstate__` gave, and load the model in safe mode."""
        if "model_" in state:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, "model.keras")
                path.write_bytes(state["model_"])
                state = {**state, "model_": load_keras_model(path, compile=True)}
        super().__setstate__(state)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags

    def _encode(self, y: Any) -> tuple[np.ndarray, tuple[int, str, str]]:
        """Targets as the loss takes them; the number of outputs, the task and the loss."""
        raise NotImplementedError

    def _stratify(self, targets: np.ndarray) -> np.ndarray | None:
        """What the cases set aside for validation must be representative of."""
        raise NotImplementedError

    def _describe(self) -> dict[str, Any]:
        """All but the model, in the types of JSON."""
        parameters = self.get_params(deep=False)
        if not isinstance(self.random_state, Integral | None):
            raise ValueError(
                f"{type(self).__name__}.save: `random_state` must be an integer or None, which a "
                f"file can hold. Received {self.random_state!r}. Set one with "
                "`set_params(random_state=0)`."
            )
        return {
            "estimator": type(self).__name__,
            "parameters": {name: _as_json(value) for name, value in parameters.items()},
            "fitted": {
                "axes": list(self._axes),
                "n_features_in": int(self.n_features_in_),
                "feature_names_in": (
                    list(self.feature_names_in_) if hasattr(self, "feature_names_in_") else None
                ),
                "mean": self.mean_.tolist(),
                "scale": self.scale_.tolist(),
            },
        }

    def _restore(self, fitted: dict[str, Any]) -> None:
        """Take what `_describe` gave as `"fitted"`."""
        self._axes = tuple(fitted["axes"])
        self.n_features_in_ = fitted["n_features_in"]
        if fitted["feature_names_in"] is not None:
            self.feature_names_in_ = np.array(fitted["feature_names_in"], dtype=object)
        self.mean_ = np.array(fitted["mean"])
        self.scale_ = np.array(fitted["scale"])

    def _check_parameters(self) -> None:
        owner = type(self).__name__
        check_positive(owner, "epochs", self.epochs)
        check_positive(owner, "batch_size", self.batch_size)
        if self.patience is not None:
            check_positive(owner, "patience", self.patience)
        if self.masking is not None and not math.isfinite(self.masking):
            raise ValueError(
                f"{owner}: `masking` must be a finite number, since nothing equals NaN. Received "
                f"{self.masking!r}."
            )
        if not isinstance(self.optimizer, str):
            raise ValueError(
                f"{owner}: `optimizer` must be a name that `keras.optimizers.get` knows, such as "
                f"'adam'. Received {self.optimizer!r}. Its rate is `learning_rate`."
            )
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(
                f"{owner}: `learning_rate` must be above 0. Received {self.learning_rate!r}."
            )
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(
                f"{owner}: `validation_fraction` must be in [0, 1). Received "
                f"{self.validation_fraction!r}."
            )

    def _read(self, X: Any, *, reset: bool) -> tuple[np.ndarray, np.ndarray]:  # noqa: N803
        """The steps of all series one after the other, `(steps, *axes)`, and the lengths.

        Args:
            X: the series, see the class.
            reset: whether `X` says what series look like, as in `fit`, or has to look like that.
        """
        owner = type(self).__name__
        rules = {"dtype": _FLOATS, "allow_nd": True, "ensure_all_finite": False, "estimator": self}
        arrays = _listed_series(X)
        if arrays is not None:
            if any(a.ndim < 2 for a in arrays) or len({a.shape[1:] for a in arrays}) > 1:
                raise ValueError(
                    f"{owner}: the series of a list `X` must have the form (time, ..., features) "
                    "and share all axes but time. Received shapes "
                    + ", ".join(str(array.shape) for array in arrays[:8])
                    + (", ..." if len(arrays) > 8 else "")
                    + "."
                )
            lengths = np.array([len(array) for array in arrays])
            steps = check_array(np.concatenate(arrays), **rules, input_name="X")
            axes = steps.shape[1:]
        else:
            array = check_array(X, **rules, input_name="X")
            axes = array.shape[2:]
            lengths = np.full(len(array), array.shape[1])
            steps = array.reshape(-1, *axes)
        if not lengths.all():
            raise ValueError(f"{owner}: each series of `X` must have at least one step.")
        if not np.isfinite(steps).all():
            raise ValueError(
                f"{owner}: Input X contains NaN or infinity (inf). Put a number that does not "
                "occur in place of missing values, and name it: `numpy.nan_to_num(X, nan=-1e9)` "
                "with masking=-1e9."
            )
        if reset:
            self._axes = axes
        elif axes != self._axes:
            expected, received = (
                "(" + ", ".join(["samples", "time", *map(str, sizes)]) + ")"
                for sizes in (self._axes, axes)
            )
            raise ValueError(
                f"{owner}: `X` must have the axes it had in `fit`, {expected}. Received {received}."
            )
        if not axes:  # the steps are columns, whose number and names scikit-learn checks
            validate_data(self, X, reset=reset, skip_check_array=True)
        elif reset:
            self.n_features_in_ = axes[-1]
            if hasattr(self, "feature_names_in_"):  # of an earlier fit, on a table
                del self.feature_names_in_
        return steps, lengths

    def _arrange(self, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The steps with the axes that the model takes, and what is missing in them.

        Returns:
            Steps `(steps, features)` or `(steps, channels, features)` or longer, and a boolean
            array of that rank with 1 for the last axis: True where all features equal `masking`.
        """
        if steps.ndim == 1:
            steps = steps[:, None]
        if self.solution == "pre_reshape":
            steps = steps.reshape(len(steps), -1)
        elif steps.ndim == 2 and self.solution != "reshape":
            steps = steps[:, :, None]  # what has no channels has one feature in each
        if self.masking is None:
            return steps, np.zeros((*steps.shape[:-1], 1), dtype=bool)
        return steps, (steps == self.masking).all(axis=-1, keepdims=True)

    def _measure(self, steps: np.ndarray, missing: np.ndarray) -> None:
        """Set `mean_` and `scale_`, from what is not missing."""
        axes = steps.shape[1:]
        self.mean_, self.scale_ = np.zeros(axes), np.ones(axes)
        if not self.normalization:
            return
        present = np.broadcast_to(~missing, steps.shape)
        count = np.maximum(present.sum(axis=0), 1)
        with np.errstate(over="ignore"):
            self.mean_ = np.sum(steps, axis=0, dtype=np.float64, where=present) / count
            squares = np.where(present, steps - self.mean_, 0) ** 2
        deviation = np.sqrt(squares.sum(axis=0) / count)
        if not np.isfinite(deviation).all():
            raise ValueError(f"{type(self).__name__}: `X` holds values too large to normalise.")
        # A sensor that stands still is left as wide as it is; rounding makes it not quite 0.
        still = deviation <= 10 * np.finfo(steps.dtype).eps * np.abs(self.mean_)
        self.scale_ = np.where(still, 1.0, deviation)

    def _pad(self, steps: np.ndarray, missing: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """What the model takes: normalised, float32, `(samples, longest time, *axes)`.

        What is missing, and the steps after the end of a series, hold `_MISSING`.
        """
        with np.errstate(over="ignore"):
            steps = ((steps - self.mean_) / self.scale_).astype("float32")
        if ((steps == _MISSING).all(axis=-1, keepdims=True) & ~missing).any():
            raise ValueError(
                f"{type(self).__name__}: `X` holds {_MISSING:g}, which stands for missing steps "
                f"inside the model. Pass masking={_MISSING:g} if it does so in `X`, or "
                "normalization=True."
            )
        steps = np.where(missing, np.float32(_MISSING), steps)
        if not np.isfinite(steps).all():
            raise ValueError(f"{type(self).__name__}: `X` holds values too large for float32.")
        padded = np.full((len(lengths), lengths.max(), *steps.shape[1:]), _MISSING, "float32")
        padded[np.arange(lengths.max()) < lengths[:, None]] = steps
        return padded

    def _check_weights(self, sample_weight: Any, lengths: np.ndarray) -> np.ndarray:
        if sample_weight is None:
            return np.ones(len(lengths), "float32")
        weights = check_array(
            sample_weight, ensure_2d=False, dtype=np.float32, input_name="sample_weight"
        )
        if weights.shape != lengths.shape or (weights < 0).any() or not weights.any():
            raise ValueError(
                f"{type(self).__name__}: `sample_weight` must have the shape {lengths.shape}, a "
                "weight a series, none negative and not all zero. Received shape "
                f"{weights.shape}, from {weights.min():g} to {weights.max():g}."
            )
        return weights

    def _split(self, targets: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Indices of the series to train on, and of those set aside."""
        everything = np.arange(len(targets))
        if not self.validation_fraction:
            return everything, None
        trained, validation = train_test_split(
            everything,
            test_size=self.validation_fraction,
            random_state=seed,
            stratify=self._stratify(targets),
        )
        return trained, validation

    def _build(self, axes: tuple[int, ...], outputs: int, task: Any, loss: str) -> keras.Model:
        flat = self.solution == "reshape" and len(axes) == 1
        model = build_model(
            (None, *axes),
            "pre_reshape" if flat else self.solution,
            units=self.units,
            outputs=outputs,
            task=task,
            bidirectional=self.bidirectional,
            dropout=self.dropout,
            masking=_MISSING,
            filters=self.filters,
            kernel_size=self.kernel_size,
            merge=self.merge,
        )
        optimizer = keras.optimizers.get(
            {"class_name": self.optimizer, "config": {"learning_rate": float(self.learning_rate)}}
        )
        model.compile(optimizer=optimizer, loss=loss)
        return model

    def _callbacks(self) -> list[keras.callbacks.Callback]:
        if self.patience is None:
            return []
        monitor = "val_loss" if self.validation_fraction else "loss"
        return [
            keras.callbacks.EarlyStopping(
                monitor, mode="min", patience=self.patience, restore_best_weights=True
            )
        ]

    def _outputs(self, X: Any) -> np.ndarray:  # noqa: N803
        """What the model makes of series, float64 `(samples, outputs)`."""
        check_is_fitted(self)
        steps, lengths = self._read(X, reset=False)
        x = self._pad(*self._arrange(steps), lengths)
        outputs = self.model_.predict(x, batch_size=self.batch_size, verbose=0)
        return np.asarray(outputs, dtype=np.float64)


class LSTMClassifier(ClassifierMixin, _LSTMEstimator):
    """A scikit-learn classifier of series: `build_model`, trained on cross-entropy.

    Example:
        >>> classifier = LSTMClassifier("conv", units=32, epochs=20, random_state=0)
        >>> labels = classifier.fit(X, y).predict(X)            # y: "walking", "running", ...

    X is one of

    * a 4D (or longer) array, `(samples, time, channels, features)`;
    * a 3D array, `(samples, time, features)`; the solutions with channels take each of these
      features for a channel with one feature;
    * a list of such series, `(time, channels, features)` or `(time, features)`, of unequal length;
    * a 2D array, `(samples, time)`: one value a step, and then always as many steps.

    Another length than in `fit` can be predicted from, but for 2D arrays.

    Args:
        solution: see `build_model`, as for the next six.
        units: of the LSTMs.
        bidirectional: whether they run in both directions.
        dropout: rate of the dropout behind each.
        filters: of `"conv"` and `"conv_lstm"`.
        kernel_size: of the same.
        merge: of `"channelwise"`.
        masking: the value that marks missing steps in X, see `build_model`; they are left out of
            the statistics too. The ends of unequal series need none.
        normalization: whether to bring each feature of each channel to mean 0 and deviation 1, by
            the steps seen in `fit`.
        epochs: how often each series is trained on.
        batch_size: series a training step, and a prediction.
        optimizer: a name that `keras.optimizers.get` knows.
        learning_rate: of the optimizer.
        validation_fraction: the fraction of the series that is set aside, at random, to watch the
            loss on.
        patience: stop once the loss, of what is set aside if there is any, was no better for so
            many epochs, and keep the weights of the best one. `None` trains all epochs.
        random_state: an integer makes `fit` repeatable: initial weights, order of the series,
            dropout and what is set aside, all of them the same on every backend.
        verbose: as in `keras.Model.fit`.

    Attributes:
        model_: the trained `keras.Model`, from normalised data.
        history_: the losses of each epoch, by name, as in Keras (`fit` alone sets it).
        mean_, scale_: what `X` is normalised by, float64.
        n_features_in_: the size of the last axis of X.
        classes_: the labels, sorted.

    Labels may be of any type that sorts. Two give a model with one output (sigmoid), more give one
    for each (softmax). `predict` answers with the most probable class (the first of two only from
    a probability of 0.5).
    """

    def predict(self, X: Any) -> np.ndarray:  # noqa: N803
        """The most probable class of each series, `(samples,)`."""
        winners = self.predict_proba(X).argmax(axis=1)
        return self.classes_[winners]

    def predict_proba(self, X: Any) -> np.ndarray:  # noqa: N803
        """The probability of each class, in the order of `classes_`, `(samples, classes)`."""
        outputs = self._outputs(X)
        return np.hstack([1 - outputs, outputs]) if outputs.shape[1] == 1 else outputs

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        # The score that scikit-learn means is that on tables, whose columns are no series.
        tags.classifier_tags.poor_score = True
        return tags

    def _encode(self, y: Any) -> tuple[np.ndarray, tuple[int, str, str]]:
        y = column_or_1d(y, warn=True)
        assert_all_finite(y, input_name="y")
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        classes = len(self.classes_)
        if classes == 1:
            raise ValueError(
                "LSTMClassifier: `y` must hold at least 2 classes. Received 1 class, "
                f"{self.classes_[0]!r}."
            )
        if classes == 2:
            return codes[:, None].astype("float32"), (1, "binary", "binary_crossentropy")
        return codes.astype("int32"), (classes, "multiclass", "sparse_categorical_crossentropy")

    def _stratify(self, targets: np.ndarray) -> np.ndarray | None:
        return targets.ravel()

    def _describe(self) -> dict[str, Any]:
        description = super()._describe()
        labels = self.classes_.tolist()
        if not all(isinstance(label, str | int | float) for label in labels):
            raise ValueError(
                "LSTMClassifier.save: labels must be strings, numbers or booleans, which a file "
                f"can hold. Received {labels[:5]!r}."
            )
        kind = "object" if self.classes_.dtype == object else self.classes_.dtype.str
        description["fitted"] |= {"classes": labels, "classes_dtype": kind}
        return description

    def _restore(self, fitted: dict[str, Any]) -> None:
        super()._restore(fitted)
        self.classes_ = np.array(fitted["classes"], dtype=fitted["classes_dtype"])


class LSTMRegressor(RegressorMixin, _LSTMEstimator):
    """A scikit-learn regressor of series: `build_model`, trained on squared errors.

    Example:
        >>> regressor = LSTMRegressor("conv", units=32, epochs=20, random_state=0)
        >>> predictions = regressor.fit(X, y).predict(X)

    Series, arguments and attributes (but for `classes_`) are those of `LSTMClassifier`. Targets
    are `(samples,)` or `(samples, outputs)`, and predictions alike. They are taken as they are:
    `sklearn.compose.TransformedTargetRegressor` standardises them.
    """

    def predict(self, X: Any) -> np.ndarray:  # noqa: N803
        """Predictions of the shape of the targets, float64."""
        outputs = self._outputs(X)
        return outputs[:, 0] if self._target_axes == 1 else outputs

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        # The score that scikit-learn means is that on tables, whose columns are no series.
        tags.regressor_tags.poor_score = True
        return tags

    def _encode(self, y: Any) -> tuple[np.ndarray, tuple[int, str, str]]:
        y = check_array(y, ensure_2d=False, dtype=np.float32, input_name="y", estimator=self)
        self._target_axes = y.ndim
        y = y.reshape(len(y), -1)
        return y, (y.shape[1], "regression", "mean_squared_error")

    def _stratify(self, targets: np.ndarray) -> np.ndarray | None:
        return None

    def _describe(self) -> dict[str, Any]:
        description = super()._describe()
        description["fitted"]["target_axes"] = self._target_axes
        return description

    def _restore(self, fitted: dict[str, Any]) -> None:
        super()._restore(fitted)
        self._target_axes = fitted["target_axes"]


class _Batches(keras.utils.PyDataset):
    """Training cases in batches, in an order of its own each epoch, the same on every backend."""

    def __init__(
        self, arrays: tuple[np.ndarray, ...], cases: np.ndarray, batch_size: int, seed: int
    ) -> None:
        super().__init__()
        self._arrays = arrays
        self._cases = cases
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = -1
        self.on_epoch_end()

    def __len__(self) -> int:
        return math.ceil(len(self._cases) / self._batch_size)

    def __getitem__(self, index: int) -> tuple[np.ndarray, ...]:
        start = index * self._batch_size
        rows = self._order[start : start + self._batch_size]
        return tuple(array[rows] for array in self._arrays)

    def on_epoch_end(self) -> None:
        self._epoch += 1
        self._order = self._cases[fit_order(len(self._cases), self._seed, self._epoch)]


def _listed_series(X: Any) -> list[np.ndarray] | None:  # noqa: N803
    """The series of a list, or of a 1D array of objects; `None` for what is one array itself."""
    objects = isinstance(X, np.ndarray) and X.dtype == object and X.ndim == 1
    if not objects and not isinstance(X, list | tuple):
        return None
    arrays = [np.asarray(series) for series in X]
    shapes = {array.shape for array in arrays}
    rows_of_a_table = len(shapes) == 1 and arrays[0].ndim < 2
    return None if rows_of_a_table or not arrays else arrays


def _as_json(value: Any) -> Any:
    """A parameter in the types of JSON."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, list | tuple | np.ndarray):
        return [_as_json(item) for item in value]
    return value
