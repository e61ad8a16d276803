"""SensorModel: a functional Keras model that looks at its data before it trains on them."""

from collections.abc import Iterable, Iterator
from inspect import signature
from numbers import Real
from typing import Any

import keras

from multibackend_lstm import input_checks as checks
from multibackend_lstm.data.statistics import to_numpy
from multibackend_lstm.layers.normalization import Normalization
from multibackend_lstm.layers.wrapping import sublayers


@keras.saving.register_keras_serializable(package="multibackend_lstm")
class SensorModel(keras.Model):
    """What `build_model` returns: a `keras.Model` whose mistakes in use are answered.

    `fit`, `evaluate` and `predict` name the axis that does not fit; `fit` also looks at the loss,
    the values of the first samples and the labels (`check_data=False` leaves that out). What
    they find is said by `multibackend_lstm/input_checks.py`. All else is Keras's.

    Example:
        >>> model = build_model((10, 3, 5), units=8)            # (time, channels, features)
        >>> model.compile(optimizer="adam", loss="mse")
        >>> model.fit(np.ones((4, 3, 10, 5)), np.ones((4, 1)))  # axes exchanged
        Traceback (most recent call last):
        ValueError: ...
    """

    def fit(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.fit`.

        Args:
            x: as in Keras; an array, or the arrays of the inputs; a dataset.
            y: as in Keras.
            *args: as in Keras.
            **kwargs: as in Keras, and `check_data`: whether to look at the first samples.

        Raises:
            ValueError: for a cross-entropy of outputs that are not probabilities, or the reverse;
                shapes that do not fit; NaN outside of masked steps; labels that no
                output stands for; a `Normalization` without statistics.

        Of what `windows` gives the order of each epoch is kept, as for `shuffle=False`.

        Warns:
            UserWarning: for a masking value that never occurs, or that masks most steps.
        """
        if kwargs.pop("check_data", True):
            loss, from_logits = self._loss_name()
            activation, outputs = self._output_form()
            checks.check_loss(self.name, loss, from_logits, activation, outputs)
            self._check_statistics()
            first_x, first_y = checks.first_batch(x, y)
            if first_x is not None:
                # `windows` has looked at all values, of which the first samples may miss none.
                missing = getattr(getattr(x, "settings", None), "missing", None)
                self._check_marker(missing)
                self._check_inputs(first_x, values=missing is None)
            if first_y is not None:
                labels = checks.as_array(self.name, "y", first_y)
                checks.check_labels(self.name, labels, loss, outputs)
        # Not above: importing keras, as that module does, imports this one.
        from multibackend_lstm.data.window_dataset import WindowDataset

        if not isinstance(x, WindowDataset):
            return super().fit(x, y, *args, **kwargs)
        # Its order of an epoch is the same everywhere; Keras would shuffle the batches once more.
        bound = signature(super().fit).bind(x, y, *args, **{"shuffle": False, **kwargs})
        with x.fitting(bound.arguments.get("initial_epoch", 0)) as counter:
            given = bound.arguments.get("callbacks") or []
            if isinstance(given, keras.callbacks.CallbackList):
                given.append(counter)
            else:
                given = [*(given if isinstance(given, (list, tuple)) else [given]), counter]
            bound.arguments["callbacks"] = given
            return super().fit(*bound.args, **bound.kwargs)

    def evaluate(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.evaluate`; a ValueError names the axis that does not fit."""
        self._check_inputs(x)
        return super().evaluate(x, y, *args, **kwargs)

    def predict(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.predict`; a ValueError names the axis that does not fit."""
        self._check_inputs(x)
        return super().predict(x, *args, **kwargs)

    def adapt(self, x: Any) -> None:
        """Set the statistics of the `Normalization` layer, see there, from what `fit` takes as x.

        Args:
            x: `(batch, time, *axes)`, or that and the lengths; a `keras.utils.PyDataset` of
                them; or a list of series `(time, *axes)`.

        Raises:
            ValueError: if the model was built without `normalization=True`; as the layer does.
        """
        layer = self._layer_of(Normalization)
        if layer is None:
            raise ValueError(
                f"{self.name}: there is no Normalization layer to adapt. Use "
                "build_model(..., normalization=True)."
            )
        layer.adapt(self._valid_series(x) if "lengths" in self._input_names() else x)

    def _valid_series(self, x: Any) -> Iterator[Any]:
        """Of samples with their lengths the series without the padding; else what `x` gives."""
        batches: Iterable[Any] = [x]
        if isinstance(x, keras.utils.PyDataset):
            batches = (x[index][0] for index in range(len(x)))
        for batch in batches:
            given = checks.by_name(self._input_names(), batch)
            if not given or to_numpy(given["lengths"]).ndim != 1:
                yield from batch
                continue
            array, lengths = to_numpy(given["inputs"]), to_numpy(given["lengths"])
            checks.check_lengths(self.name, lengths, array.shape[1])
            yield from (sample[:length] for sample, length in zip(array, lengths, strict=True))

    def reset_states(self) -> None:
        """Forget the states of stateful layers: the next call begins new series."""
        for layer in sublayers(self):
            if getattr(layer, "stateful", False) and hasattr(layer, "reset_state"):
                layer.reset_state()

    def _input_names(self) -> list[str]:
        return [tensor.name for tensor in self.inputs]

    def _layer_of(self, kind: Any) -> Any:
        return next((layer for layer in self.layers if isinstance(layer, kind)), None)

    def _loss_name(self) -> tuple[str, bool]:
        """The loss's name in the form of Keras's functions, and whether it takes logits."""
        loss = self.loss
        if isinstance(loss, str):
            loss = keras.losses.get(loss)
        function = getattr(loss, "fn", loss)
        from_logits = loss.get_config() if isinstance(loss, keras.losses.Loss) else {}
        return getattr(function, "__name__", ""), bool(from_logits.get("from_logits"))

    def _output_form(self) -> tuple[str, int]:
        """The name of the outputs' activation, and their number."""
        activation = getattr(self.layers[-1], "activation", None)
        return getattr(activation, "__name__", ""), int(self.outputs[0].shape[-1])

    def _check_statistics(self) -> None:
        layer = self._layer_of(Normalization)
        if layer is not None and not int(to_numpy(layer.adapted.value)):
            raise ValueError(
                f"{self.name}: its Normalization has no statistics. Call `model.adapt(x)` with "
                "the training data before `fit`, or build the model with normalization=(mean, "
                "variance)."
            )

    def _check_marker(self, missing: Any) -> None:
        """Raise a ValueError if `windows` marks missing readings otherwise than the model."""
        masking = self._layer_of(keras.layers.Masking)
        expected = masking and masking.mask_value
        if isinstance(missing, Real) and missing != expected:
            raise ValueError(
                f"{self.name}: the model must mask what `windows(..., missing={missing!r})` puts "
                f"in place of NaN. Received masking={expected!r}. Use build_model(..., "
                f"masking={missing!r})."
            )

    def _check_inputs(self, x: Any, values: bool = False) -> None:
        """Look at shapes, and if asked at the values of the first samples."""
        given = {} if checks.is_dataset(x) else checks.by_name(self._input_names(), x)
        if "inputs" not in given:
            return
        array = checks.as_array(self.name, "x", given["inputs"])
        checks.check_shape(self.name, array, self.inputs[0].shape)
        if "lengths" in given:
            lengths = checks.as_array(self.name, "lengths", given["lengths"])
            checks.check_lengths(self.name, lengths, array.shape[1])
        if values:
            array = checks.first_samples(array)
            masking = self._layer_of(keras.layers.Masking)
            if "lengths" in given:
                steps = range(array.shape[1])
                valid = lengths[: len(array), None] > steps
                array = array.copy()
                array[~valid] = 0
            checks.check_values(self.name, array, masking and masking.mask_value)
