"""`LSTMClassifier` and `LSTMRegressor`, and what scikit-learn asks of an estimator."""

import copy
import pickle
import zipfile

import keras
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import parametrize_with_checks

from multibackend_lstm import SOLUTIONS, LSTMClassifier, LSTMRegressor
from unit.tools import BACKEND, normal, run_python

SMALL = {"units": 2, "epochs": 1, "random_state": 0}

#: The checks of scikit-learn that cannot hold, and why.
EXPECTED_FAILED_CHECKS = {
    "check_sample_weight_equivalence_on_dense_data": (
        "a series of weight 0 or 2 takes one place in a batch, as in Keras; left out or repeated "
        "it takes none or two, and the batches, and with them the training steps, are others"
    ),
}


def slow_but_on_torch(test):
    """Mark what trains many models: torch starts each at once, JAX and TensorFlow in 1 or 2 s."""
    return test if BACKEND == "torch" else pytest.mark.slow(test)


@slow_but_on_torch
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.DataConversionWarning")
@parametrize_with_checks(
    [LSTMClassifier(**SMALL), LSTMRegressor(**SMALL)],
    expected_failed_checks=lambda estimator: EXPECTED_FAILED_CHECKS,
)
def test_scikit_learn_checks(estimator, check):
    # 2D arrays, which these are about, are read as (samples, time).
    check(estimator)


def waves(samples=24, time=8, axes=(2, 3), seed=0):
    """Series that rise (label 1) or fall (label 0), with noise."""
    labels = np.arange(samples) % 2
    slope = np.linspace(-1, 1, time).reshape(time, *(1 for _ in axes))
    rising = (2 * labels - 1).reshape(samples, 1, *(1 for _ in axes))
    return slope * rising + 0.1 * normal(samples, time, *axes, seed=seed), labels


def unequal(x, seed=0):
    """The series of an array, cut at unequal lengths."""
    lengths = np.random.default_rng(seed).integers(x.shape[1] // 2, x.shape[1] + 1, size=len(x))
    lengths[0], lengths[1] = x.shape[1], x.shape[1] // 2
    return [series[:length] for series, length in zip(x, lengths, strict=True)]


@pytest.fixture(scope="module")
def fitted():
    """A classifier that was trained on series of unequal length with string labels."""
    x, y = waves()
    series = unequal(x)
    labels = np.array(["falls", "rises"])[y]
    classifier = LSTMClassifier(units=4, epochs=12, learning_rate=0.02, random_state=0)
    return classifier.fit(series, labels), series, labels


class TestSeries:
    def test_classifies_lists_of_unequal_series(self, fitted):
        classifier, series, labels = fitted
        assert classifier.score(series, labels) == 1
        assert classifier.classes_.tolist() == ["falls", "rises"]
        assert classifier.n_features_in_ == 3

    def test_a_series_does_not_depend_on_the_others(self, fitted):
        classifier, series, _ = fitted
        alone = np.concatenate([classifier.predict_proba(s[None]) for s in series[:3]])
        together = classifier.predict_proba(series)[:3]
        np.testing.assert_allclose(together, alone, atol=1e-6)

    def test_object_arrays_and_nested_lists(self, fitted):
        classifier, series, _ = fitted
        objects = np.empty(len(series), dtype=object)
        objects[:] = series
        nested = [s.tolist() for s in series]
        for other in (objects, nested, tuple(series)):
            np.testing.assert_allclose(
                classifier.predict_proba(other), classifier.predict_proba(series), atol=1e-6
            )

    @slow_but_on_torch
    @pytest.mark.parametrize("solution", SOLUTIONS)
    def test_every_solution_takes_arrays_with_and_without_channels(self, solution):
        x, y = waves(samples=6, time=4)
        settings = SMALL | {"filters": 2, "kernel_size": 1}
        with_channels = LSTMRegressor(solution, **settings).fit(x, y)
        assert with_channels.model_.count_params() > 0
        assert with_channels.predict(unequal(x)).shape == (6,)
        flat = x.reshape(6, 4, 6)
        without = LSTMRegressor(solution, **settings).fit(flat, y)
        assert without.predict(flat).shape == (6,)
        if solution in ("reshape", "pre_reshape"):
            np.testing.assert_allclose(without.predict(flat), with_channels.predict(x), atol=1e-6)
        else:
            assert without.model_.input_shape == (None, None, 6, 1)

    @slow_but_on_torch
    def test_longer_arrays(self):
        x = normal(6, 4, 3, 2, 2)
        regressor = LSTMRegressor("conv_lstm", **SMALL, kernel_size=1).fit(x, x[:, 0, 0, 0])
        assert regressor.model_.input_shape == (None, None, 3, 2, 2)
        assert regressor.predict(x[:, :2]).shape == (6, 2)

    def test_masked_steps_are_as_if_cut_off(self, fitted):
        _, series, labels = fitted
        padded = np.full((len(series), 10, 2, 3), 5e3)
        for row, s in zip(padded, series, strict=True):
            row[: len(s)] = s
        cut = LSTMClassifier(**SMALL).fit(series, labels)
        masked = LSTMClassifier(**SMALL, masking=5e3).fit(padded, labels)
        np.testing.assert_allclose(masked.mean_, cut.mean_, rtol=1e-12)
        np.testing.assert_allclose(
            masked.predict_proba(padded), cut.predict_proba(series), atol=1e-6
        )

    @slow_but_on_torch
    def test_channels_may_be_missing(self):
        x, y = waves(samples=6, time=4)
        x[:, 1, 0] = -7
        regressor = LSTMRegressor("channelwise", **SMALL, masking=-7).fit(x, y)
        present = np.delete(x[:, :, 0], 1, axis=1).reshape(-1, 3)
        np.testing.assert_allclose(regressor.mean_[0], present.mean(axis=0), atol=1e-6)
        np.testing.assert_allclose(regressor.scale_[0], present.std(axis=0), atol=1e-6)
        # What the step of a channel holds is not looked at: the model skips it.
        normalised = (x - regressor.mean_) / regressor.scale_
        normalised[:, 1, 0] = -1e9
        expected = regressor.model_.predict(normalised.astype("float32"), verbose=0)[:, 0]
        np.testing.assert_allclose(regressor.predict(x), expected, atol=1e-6)


class TestNormalization:
    def test_statistics_are_those_of_the_steps_there_are(self, fitted):
        classifier, series, _ = fitted
        steps = np.concatenate(series).astype("float64")
        np.testing.assert_allclose(classifier.mean_, steps.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(classifier.scale_, steps.std(axis=0), rtol=1e-6)
        padded = ((series[0] - classifier.mean_) / classifier.scale_).astype("float32")
        np.testing.assert_allclose(
            classifier.model_.predict(padded[None], verbose=0)[0, 0],
            classifier.predict_proba(series[:1])[0, 1],
            atol=1e-6,
        )

    @slow_but_on_torch
    def test_the_mark_of_missing_values_may_be_large(self):
        x, y = waves(samples=6)
        x[0, 3] = 1e300
        regressor = LSTMRegressor(**SMALL, masking=1e300).fit(x, y)
        assert np.isfinite(regressor.predict(x)).all()
        assert (regressor.scale_ < 2).all()

    @slow_but_on_torch
    def test_units_do_not_matter(self):
        x, y = waves()
        x = x.astype("float64")
        scale, offset = np.array([1e-3, 1.0, 1e4]), np.array([0, -5.0, 1e6])
        plain = LSTMRegressor(**SMALL).fit(x, y).predict(x)
        scaled = LSTMRegressor(**SMALL).fit(x * scale + offset, y).predict(x * scale + offset)
        np.testing.assert_allclose(scaled, plain, atol=1e-5)

    @slow_but_on_torch
    def test_a_constant_feature_stays_finite(self):
        x, y = waves()
        x[..., 1] = 0.1
        regressor = LSTMRegressor(**SMALL).fit(x, y)
        assert (regressor.scale_[:, 1] == 1).all()
        assert np.isfinite(regressor.predict(x)).all()

    @slow_but_on_torch
    def test_can_be_turned_off(self):
        x, y = waves(samples=6)
        regressor = LSTMRegressor(**SMALL, normalization=False).fit(x, y)
        expected = regressor.model_.predict(x.astype("float32"), verbose=0)[:, 0]
        np.testing.assert_allclose(regressor.predict(x), expected, atol=1e-6)


@slow_but_on_torch
class TestTargets:
    @pytest.mark.parametrize(
        "labels", [["b", "a", "c"], [3, -1, 10], [True, False], [0.5, 1.5, 2.5]], ids=repr
    )
    def test_labels_of_any_type(self, labels):
        labels = np.array(labels)
        x = normal(12, 3, 2, 2)
        y = labels[np.arange(12) % len(labels)]
        if y.dtype.kind == "f":
            with pytest.raises(ValueError, match="Unknown label type: continuous"):
                LSTMClassifier(**SMALL).fit(x, y)
            return
        classifier = LSTMClassifier(**SMALL).fit(x, y)
        np.testing.assert_array_equal(classifier.classes_, np.sort(labels), strict=True)
        probabilities = classifier.predict_proba(x)
        assert probabilities.shape == (12, len(labels))
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
        winners = classifier.classes_[probabilities.argmax(axis=1)]
        np.testing.assert_array_equal(classifier.predict(x), winners, strict=True)
        assert classifier.model_.output_shape == (None, 1 if len(labels) == 2 else len(labels))

    def test_probabilities_are_of_the_classes_in_their_order(self):
        x, y = waves(samples=36)
        # Three classes: those of the waves, and flat ones.
        x[::3] = 0.1 * normal(12, 8, 2, 3, seed=1)
        labels = np.where(np.arange(36) % 3 == 0, "flat", np.array(["falls", "rises"])[y])
        classifier = LSTMClassifier(
            units=8, epochs=25, learning_rate=0.02, batch_size=12, random_state=0
        ).fit(x, labels)
        assert classifier.score(x, labels) == 1

    def test_regresses_several_outputs(self):
        x = normal(64, 5, 2, 2)
        y = np.stack([x[:, -1].mean(axis=(1, 2)), -x[:, -1, 0, 0]], axis=1)
        regressor = LSTMRegressor(
            units=8, epochs=60, learning_rate=0.02, batch_size=32, random_state=0
        ).fit(x, y)
        assert regressor.predict(x).shape == (64, 2)
        assert regressor.score(x, y) > 0.9

    def test_predictions_have_the_shape_of_the_targets(self):
        x, y = waves(samples=6, time=3)
        assert LSTMRegressor(**SMALL).fit(x, y).predict(x).shape == (6,)
        assert LSTMRegressor(**SMALL).fit(x, y[:, None]).predict(x).shape == (6, 1)


class TestTraining:
    def test_an_integer_makes_fit_repeatable_and_leaves_generators_alone(self):
        state = np.random.get_state()[1].copy()
        first = self.predictions(3)
        np.testing.assert_array_equal(np.random.get_state()[1], state)
        np.testing.assert_array_equal(self.predictions(3), first)
        assert np.abs(self.predictions(4) - first).max() > 1e-4

    @slow_but_on_torch
    def test_other_random_states(self):
        np.testing.assert_array_equal(
            self.predictions(np.random.RandomState(5)), self.predictions(np.random.RandomState(5))
        )
        assert np.abs(self.predictions(None) - self.predictions(None)).max() > 1e-4

    @staticmethod
    def predictions(random_state):
        x, y = waves(samples=12, time=4)
        settings = {"units": 3, "epochs": 2, "batch_size": 4, "dropout": 0.5}
        return LSTMRegressor(**settings, random_state=random_state).fit(x, y).predict(x)

    def test_trains_on_every_case_once_an_epoch_in_changing_order(self, monkeypatch):
        seen = []
        fit = keras.Model.fit

        def recorded(model, batches, *rest, **arguments):
            for _ in range(2):
                seen.append([batches[i] for i in range(len(batches))])
                batches.on_epoch_end()
            return fit(model, batches, *rest, **arguments)

        monkeypatch.setattr(keras.Model, "fit", recorded)
        y = np.arange(10.0)
        LSTMRegressor(**SMALL, batch_size=4).fit(normal(10, 3, 2, 2), y)
        orders = [np.concatenate([batch[1] for batch in epoch]).ravel() for epoch in seen]
        assert [len(batch[0]) for batch in seen[0]] == [4, 4, 2]
        for order in orders:
            np.testing.assert_array_equal(np.sort(order), y)
        assert orders[0].tolist() != orders[1].tolist()

    @slow_but_on_torch
    def test_a_series_of_weight_0_teaches_nothing(self):
        x, y = waves(samples=12, time=4)
        weights = np.ones(12)
        weights[:3] = 0
        other = y.astype("float64")
        other[:3] = 100
        first, second = (
            LSTMRegressor(**SMALL | {"epochs": 3}).fit(x, t, sample_weight=weights).predict(x)
            for t in (y, other)
        )
        np.testing.assert_allclose(first, second, atol=1e-6)
        unweighted = LSTMRegressor(**SMALL | {"epochs": 3}).fit(x, other).predict(x)
        assert np.abs(unweighted - first).max() > 1e-4

    @slow_but_on_torch
    def test_sets_cases_aside_by_class(self, monkeypatch):
        given = {}
        fit = keras.Model.fit

        def recorded(model, *args, **arguments):
            given.update(arguments)
            return fit(model, *args, **arguments)

        monkeypatch.setattr(keras.Model, "fit", recorded)
        x, y = waves(samples=20, time=4)
        order = np.argsort(y)  # sorted by class, as files often are
        classifier = LSTMClassifier(**SMALL, validation_fraction=0.2).fit(x[order], y[order])
        assert sorted(classifier.history_) == ["loss", "val_loss"]
        assert np.bincount(given["validation_data"][1].ravel().astype(int)).tolist() == [2, 2]

    @slow_but_on_torch
    @pytest.mark.parametrize("fraction", [0.0, 0.25])
    def test_stops_once_the_loss_gets_no_better(self, fraction):
        x, y = waves(samples=12, time=4)
        regressor = LSTMRegressor(
            **SMALL | {"epochs": 9},
            learning_rate=1e-9,
            validation_fraction=fraction,
            patience=2,
        ).fit(x, y)
        losses = regressor.history_["val_loss" if fraction else "loss"]
        assert len(losses) < 9
        assert len(losses) - 1 - np.argmin(losses) == 2

    def test_the_optimizer_is_the_one_named(self):
        x, y = waves(samples=6, time=3)
        model = LSTMRegressor(**SMALL, optimizer="rmsprop", learning_rate=0.25).fit(x, y).model_
        assert type(model.optimizer).__name__ == "RMSprop"
        assert float(model.optimizer.learning_rate) == 0.25


class TestScikitLearn:
    def test_parameters_are_kept_by_clone(self):
        estimator = LSTMClassifier("conv", units=(3, 2), filters=(2, 4), random_state=1)
        assert clone(estimator).get_params() == estimator.get_params()
        assert estimator.set_params(solution="reshape", dropout=0.5).dropout == 0.5
        with pytest.raises(ValueError, match="Invalid parameter 'unit'"):
            estimator.set_params(unit=3)

    @slow_but_on_torch
    def test_cross_validation_of_unequal_series(self, fitted):
        classifier, series, labels = fitted
        estimator = clone(classifier).set_params(epochs=40)
        assert cross_val_score(estimator, series, labels, cv=2).tolist() == [1, 1]

    @slow_but_on_torch
    def test_pipeline(self):
        x, y = waves(samples=8, time=4)
        pipeline = make_pipeline(FunctionTransformer(np.negative), LSTMRegressor(**SMALL))
        expected = LSTMRegressor(**SMALL).fit(-x, y).predict(-x)
        np.testing.assert_array_equal(pipeline.fit(x, y).predict(x), expected)

    @pytest.mark.slow
    def test_grid_search_in_two_processes(self):
        x, y = waves(samples=12, time=4)
        series, labels = unequal(x), np.array(["falls", "rises"])[y]
        search = GridSearchCV(
            LSTMClassifier(**SMALL), {"units": [2, 3], "solution": ["conv"]}, cv=2, n_jobs=2
        ).fit(series, labels)
        best = search.best_estimator_
        expected = clone(best).fit(series, labels)
        np.testing.assert_array_equal(search.predict_proba(series), expected.predict_proba(series))
        scores = cross_val_score(
            LSTMClassifier(**SMALL, solution="conv").set_params(units=3), series, labels, cv=2
        )
        found = [search.cv_results_[f"split{k}_test_score"][1] for k in range(2)]
        np.testing.assert_array_equal(found, scores)

    @pytest.mark.slow
    def test_fitted_estimators_travel_to_other_processes(self, fitted):
        from joblib import Parallel, delayed

        classifier, series, _ = fitted
        answers = Parallel(n_jobs=2)(
            delayed(classifier.predict_proba)(part) for part in (series[:12], series[12:])
        )
        np.testing.assert_allclose(
            np.concatenate(answers), classifier.predict_proba(series), atol=1e-6
        )

    def test_pickle_and_deepcopy(self, fitted):
        classifier, series, _ = fitted
        expected = classifier.predict_proba(series)
        for other in (pickle.loads(pickle.dumps(classifier)), copy.deepcopy(classifier)):
            assert other.model_ is not classifier.model_
            np.testing.assert_array_equal(other.predict_proba(series), expected)
            assert other.history_ == classifier.history_
        assert isinstance(classifier.__getstate__()["model_"], bytes)
        assert isinstance(classifier.model_, keras.Model)
        assert not hasattr(pickle.loads(pickle.dumps(LSTMClassifier())), "model_")

    def test_needs_fit(self, tmp_path):
        with pytest.raises(NotFittedError):
            LSTMClassifier().predict_proba(normal(2, 3, 2, 2))
        with pytest.raises(NotFittedError):
            LSTMRegressor().save(tmp_path / "never.keras")


class TestFiles:
    def test_a_saved_classifier_is_the_same(self, fitted, tmp_path):
        classifier, series, _ = fitted
        path = tmp_path / "classifier.keras"
        path.write_text("what was there before")
        classifier.save(path)
        assert [p.name for p in tmp_path.iterdir()] == ["classifier.keras"]
        loaded = LSTMClassifier.load(str(path))
        assert loaded.get_params() == classifier.get_params()
        np.testing.assert_array_equal(loaded.classes_, classifier.classes_, strict=True)
        np.testing.assert_array_equal(
            loaded.predict_proba(series), classifier.predict_proba(series), strict=True
        )
        assert loaded.n_features_in_ == 3
        with pytest.raises(ValueError, match="axes it had in `fit`"):
            loaded.predict(normal(2, 8, 2, 4))

    def test_keras_opens_the_file_too(self, fitted, tmp_path):
        classifier, _, _ = fitted
        classifier.save(tmp_path / "classifier.keras")
        model = keras.saving.load_model(tmp_path / "classifier.keras", safe_mode=True)
        for a, b in zip(model.get_weights(), classifier.model_.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)

    @slow_but_on_torch
    def test_a_saved_regressor_is_the_same(self, tmp_path):
        x, y = waves(samples=6, time=3)
        regressor = LSTMRegressor(
            "conv", **SMALL | {"units": (np.int64(3), 2)}, masking=-7.5, dropout=np.float64(0.25)
        ).fit(x, np.stack([y, -y], axis=1))
        regressor.save(tmp_path / "regressor.keras")
        loaded = LSTMRegressor.load(tmp_path / "regressor.keras")
        assert loaded.get_params() == regressor.get_params()
        np.testing.assert_array_equal(loaded.predict(x), regressor.predict(x), strict=True)
        loaded.fit(x, y)  # and it can be trained anew

    @slow_but_on_torch
    @pytest.mark.parametrize("labels", [[2, 1], [True, False], ["x", "y"]], ids=repr)
    def test_labels_keep_their_type(self, labels, tmp_path):
        dtype = object if isinstance(labels[0], str) else None
        y = np.array(labels * 3, dtype=dtype)
        classifier = LSTMClassifier(**SMALL).fit(normal(6, 3, 2, 2), y)
        classifier.save(tmp_path / "labels.keras")
        classes = LSTMClassifier.load(tmp_path / "labels.keras").classes_
        np.testing.assert_array_equal(classes, classifier.classes_, strict=True)

    def test_a_failed_save_leaves_what_was_there(self, fitted, tmp_path, monkeypatch):
        classifier, _, _ = fitted
        path = tmp_path / "classifier.keras"
        classifier.save(path)
        before = path.read_bytes()

        def fails(*args, **kwargs):
            raise OSError("disk full")

        monkeypatch.setattr(zipfile.ZipFile, "writestr", fails)
        with pytest.raises(OSError, match="disk full"):
            classifier.save(path)
        assert path.read_bytes() == before
        assert len(list(tmp_path.iterdir())) == 1

    def test_what_cannot_be_saved(self, fitted, tmp_path):
        classifier, series, labels = fitted
        with pytest.raises(ValueError, match=r"save: `path` must end in \.keras"):
            classifier.save(tmp_path / "classifier.joblib")
        drawn = LSTMClassifier(**SMALL | {"random_state": np.random.RandomState(0)})
        with pytest.raises(ValueError, match="save: `random_state` must be an integer or None"):
            drawn.fit(series, labels).save(tmp_path / "drawn.keras")
        assert not list(tmp_path.iterdir())

    def test_what_cannot_be_loaded(self, fitted, tmp_path):
        classifier, _, _ = fitted
        classifier.save(tmp_path / "classifier.keras")
        with pytest.raises(ValueError, match="holds another estimator, 'LSTMClassifier'"):
            LSTMRegressor.load(tmp_path / "classifier.keras")
        classifier.model_.save(tmp_path / "model.keras")
        with pytest.raises(ValueError, match="holds a model and no estimator"):
            LSTMClassifier.load(tmp_path / "model.keras")
        (tmp_path / "text.keras").write_text("no archive")
        with pytest.raises(ValueError, match=r"is not a \.keras file"):
            LSTMClassifier.load(tmp_path / "text.keras")
        with pytest.raises(FileNotFoundError):
            LSTMClassifier.load(tmp_path / "nowhere.keras")

    def test_code_in_a_file_is_not_run(self, fitted, tmp_path):
        classifier, _, _ = fitted
        harmful = copy.copy(classifier)
        harmful.model_ = keras.Sequential(
            [keras.Input((None, 2, 3)), keras.layers.Lambda(lambda x: x)]
        )
        harmful.save(tmp_path / "harmful.keras")
        with pytest.raises(ValueError, match=r"[Ll]ambda"):
            LSTMClassifier.load(tmp_path / "harmful.keras")
        with pytest.raises(ValueError, match=r"[Ll]ambda"):
            pickle.loads(pickle.dumps(harmful))


X, Y = waves(samples=6, time=4)


@pytest.mark.parametrize(
    ("settings", "x", "y", "message"),
    [
        ({"solution": "rehape"}, X, Y, "`solution` must be one of"),
        ({"units": 0}, X, Y, "`units` must be an integer of at least 1"),
        ({"epochs": 0}, X, Y, "LSTMRegressor: `epochs` must be an integer of at least 1"),
        ({"batch_size": 2.5}, X, Y, "`batch_size` must be an integer"),
        ({"patience": 0}, X, Y, "`patience` must be an integer"),
        ({"learning_rate": -1.0}, X, Y, "`learning_rate` must be above 0"),
        ({"validation_fraction": 1.0}, X, Y, r"`validation_fraction` must be in \[0, 1\)"),
        ({"masking": np.nan}, X, Y, "`masking` must be a finite number"),
        ({"optimizer": keras.optimizers.Adam}, X, Y, "`optimizer` must be a name"),
        ({}, np.full_like(X, np.nan), Y, r"NaN.*nan_to_num"),
        ({}, [X[0], X[1][..., :2]], Y[:2], r"share all axes but time.*\(4, 2, 3\), \(4, 2, 2\)"),
        ({}, [X[0, :, 0, 0], X[1, 1:, 0, 0]], Y[:2], r"form \(time, .*shapes \(4,\), \(3,\)"),
        ({}, [X[0].tolist(), 5.0], Y[:2], r"form \(time, .*shapes \(4, 2, 3\), \(\)"),
        ({}, [X[0], X[1][:0]], Y[:2], "at least one step"),
        ({}, X[:, :0], Y, "at least one step"),
        ({}, X, Y[:5], "inconsistent numbers of samples"),
        ({"normalization": False}, np.full_like(X, -1e9), Y, "holds -1e[+]09.*masking=-1e[+]09"),
        ({"normalization": False}, X.astype("float64") * 1e300, Y, "too large for float32"),
        ({}, X.astype("float64") * 1e300, Y, "too large to normalise"),
    ],
)
def test_errors_of_fit(settings, x, y, message):
    with pytest.raises(ValueError, match=message):
        LSTMRegressor(**SMALL | settings).fit(x, y)


def test_errors_of_predict():
    regressor = LSTMRegressor(**SMALL).fit(X, Y)
    with pytest.raises(
        ValueError,
        match=r"axes it had in `fit`, \(samples, time, 2, 3\). Received \(samples, time, 3, 2\)",
    ):
        regressor.predict(np.swapaxes(X, 2, 3))
    with pytest.raises(ValueError, match=r"Received \(samples, time\)"):
        regressor.predict(X[:, :, 0, 0])


def test_a_missing_scikit_learn_is_named_with_its_extra():
    code = (
        "import sys; sys.modules['sklearn'] = None\n"
        "from multibackend_lstm import *\n"
        "try:\n    from multibackend_lstm import LSTMClassifier\n"
        "except ImportError as error:\n    print(error)"
    )
    message = run_python(code).strip().splitlines()[-1]
    assert message.endswith(
        "pip install 'multibackend-lstm[sklearn]' (in a clone: pip install '.[sklearn]')"
    )
