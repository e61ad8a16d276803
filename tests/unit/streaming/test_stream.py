"""Stream: sample by sample what the model gives, and a state that can be carried on."""

import keras
import numpy as np
import pytest

from multibackend_lstm import LSTM, FlattenFeatures, Stream, build_model, to_step_model
from multibackend_lstm.agreement.comparison import AGREES, DISAGREES, compare
from multibackend_lstm.porting import export
from multibackend_lstm.runtimes.noise_floor import ROUNDING, NoiseFloor, perturbed
from multibackend_lstm.streaming.engines import ARTEFACTS
from unit.recurrent_reference import lstm_step, run
from unit.tools import BACKEND, assert_close, assert_equal, normal, run_python, to_numpy

L = keras.layers
MARK = -9.0


def new_model(**options):
    return build_model((None, 2, 3), "reshape", units=4, outputs=2, **options)


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(1) if BACKEND == "tensorflow" else None
    return new_model(masking=MARK)


def test_each_prediction_is_that_of_the_series_so_far(model):
    x = normal(2, 6, 2, 3)
    x[0, 2] = MARK
    stream = Stream(model, batch_size=2)
    found = [stream.step(x[:, t]) for t in range(6)]
    for t in (1, 3, 6):
        assert_close(found[t - 1], model(x[:, :t]))
    assert stream.steps.tolist() == [6, 6]
    assert found[0].dtype == "float32"


def test_a_single_sample_needs_no_batch_axis(model):
    x = normal(5, 2, 3)
    stream, batched = Stream(model), Stream(model, compile=False)
    for sample in x:
        found, expected = stream.step(sample), batched.step(sample[None])
    assert found.shape == (2,)
    assert_close(found[None], expected)
    assert_close(found, to_numpy(model(x[None]))[0])


def test_rows_join_leave_and_miss_samples(model):
    """Each row of a batch is as a stream of its own that gets the same samples."""
    x = normal(3, 8, 2, 3)
    present = np.random.default_rng(0).random((8, 3)) < 0.7
    together, alone = Stream(model, batch_size=3), [Stream(model) for _ in range(3)]
    for t in range(8):
        given = np.where(present[t][:, None, None], x[:, t], np.nan)  # NaN is not looked at
        if t == 4:
            together.reset(rows=[1])
            alone[1].reset()
        found = together.step(given, rows=present[t])
        for row in range(3):
            if present[t, row]:
                assert_close(found[row], alone[row].step(x[row, t]))
            else:
                assert np.isnan(found[row]).all()
    assert together.steps.tolist() == [int(s.steps[0]) for s in alone]


def test_a_window_begins_anew(model):
    x = normal(7, 2, 3)
    stream = Stream(model, window=3)
    found = [stream.step(sample) for sample in x]
    assert_close(found[3], to_numpy(model(x[None, 3:4]))[0])
    assert_close(found[5], to_numpy(model(x[None, 3:6]))[0])


def test_the_state_goes_to_a_file_and_on(model, tmp_path):
    x = normal(6, 2, 3)
    first, second = Stream(model), Stream(model)
    for sample in x[:3]:
        first.step(sample)
    first.save_state(tmp_path / "state.npz")
    expected = [first.step(sample) for sample in x[3:]]
    second.load_state(tmp_path / "state.npz")
    assert second.steps.tolist() == [3]
    assert_equal([second.step(sample) for sample in x[3:]], expected)


OTHERS = {"torch": "jax", "jax": "torch", "tensorflow": "jax"}


@pytest.mark.slow
def test_the_state_goes_on_in_another_process_on_another_backend(model, tmp_path):
    x = normal(6, 2, 3)
    stream = Stream(model)
    for sample in x[:3]:
        stream.step(sample)
    stream.save_state(tmp_path / "state.npz")
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "x.npy", x)
    code = (
        "import numpy as np, multibackend_lstm, keras\n"
        f"stream = multibackend_lstm.Stream({str(tmp_path / 'model.keras')!r})\n"
        f"stream.load_state({str(tmp_path / 'state.npz')!r})\n"
        f"found = [stream.step(x) for x in np.load({str(tmp_path / 'x.npy')!r})[3:]]\n"
        f"np.save({str(tmp_path / 'found.npy')!r}, found)\n"
        "print(keras.backend.backend())"
    )
    other = OTHERS[BACKEND]
    assert run_python(code, KERAS_BACKEND=other).strip() == other
    assert_close(np.load(tmp_path / "found.npy")[-1], stream_to_the_end(stream, x[3:]))


def stream_to_the_end(stream, x):
    for sample in x:
        found = stream.step(sample)
    return found


def float64(weights, x, rng=None):
    """Two LSTMs and a Dense in float64; with `rng` a twin, all moved within float32's rounding."""

    def moved(values):
        return values if rng is None else perturbed(values, rng, ROUNDING["float32"])

    weights = [moved(np.asarray(w, "float64")) for w in weights]
    sequence = moved(x.astype("float64"))
    for first in (0, 3):
        zeros = np.zeros((len(x), 8))
        sequence = run(lstm_step, sequence, [zeros, zeros], weights[first : first + 3])[0]
        sequence = moved(sequence)
    return sequence @ weights[6] + weights[7]


@pytest.mark.slow
def test_ten_thousand_steps_are_those_of_the_model():
    """As the agreement tool judges: by how far a float64 run moves within float32's rounding."""
    inputs = keras.Input((None, 2, 3))
    x = LSTM(8, return_sequences=True)(FlattenFeatures()(inputs))
    model = keras.Model(inputs, L.Dense(2)(LSTM(8, return_sequences=True)(x)))
    x = normal(1, 10_000, 2, 3)
    stream = Stream(model)
    found = {
        "stream": np.stack([stream.step(sample) for sample in x[0]])[None],
        "model": to_numpy(model(x)),
    }
    weights = model.get_weights()
    truth = float64(weights, x)
    floor = NoiseFloor(ROUNDING["float32"], in_float64=False, elements=True)
    for twin in range(1, 9):
        moved = float64(weights, x, np.random.default_rng(twin))
        floor.add(twin, ("output", "dense"), moved, truth)
    # With the floor of each element, so that every step is judged.
    own = floor.of(("output", "dense"))[0], floor.of_elements(("output", "dense"))

    def judged(values):
        return compare("layer alone", "dense", values, truth, floor=own[0], elements=own[1])

    for name, values in found.items():
        assert judged(values).verdict == AGREES, (name, judged(values))
    late = found["stream"].copy()
    late[:, 9000] += 1e-4
    assert judged(late).verdict == DISAGREES


TRACED = []


@keras.saving.register_keras_serializable(package="test_stream")
class Counting(L.Layer):
    """Counts how often it is called, or traced."""

    def call(self, inputs):
        TRACED.append(1)
        return inputs

    def compute_output_shape(self, input_shape):
        return input_shape


def test_nothing_is_compiled_again():
    """A compiled step is traced once, however many samples, resets and restored states follow."""
    inputs = keras.Input((None, 3))
    stream = Stream(keras.Model(inputs, LSTM(2)(L.TimeDistributed(Counting())(inputs))))
    stream.step(np.ones(3))
    stream.step(np.ones((1, 3), "float64"))
    count = len(TRACED)
    state = stream.state
    stream.reset()
    stream.state = state
    for number in range(5):
        stream.step(np.full(3, number))
    if BACKEND in ("torch", "jax", "tensorflow"):
        assert len(TRACED) == count


@pytest.mark.skipif(BACKEND != "tensorflow", reason="about XLA in TensorFlow")
def test_a_layer_that_xla_cannot_take_runs_in_a_graph():
    import tensorflow as tf

    @keras.saving.register_keras_serializable("tests")
    class InPython(keras.layers.Layer):
        def __init__(self, **settings):
            super().__init__(**settings)
            self.supports_jit = False

        def call(self, inputs):
            doubled = tf.numpy_function(lambda x: 2 * x, [inputs], inputs.dtype)
            return tf.ensure_shape(doubled, inputs.shape)

        def compute_output_shape(self, input_shape):
            return input_shape

    inputs = keras.Input((None, 3))
    model = keras.Model(inputs, LSTM(2)(L.TimeDistributed(InPython())(inputs)))
    x = normal(1, 4, 3)
    stream = Stream(model)
    assert_close([stream.step(row) for row in x[0]][-1], to_numpy(model(x))[0])


def test_a_step_model_is_taken_as_it_is(model):
    x = normal(2, 3)
    assert_close(Stream(to_step_model(model)).step(x), Stream(model).step(x))


def stateless():
    inputs = keras.Input((None, 2, 3))
    return keras.Model(inputs, L.TimeDistributed(L.Dense(2))(inputs)[:, -1])


def test_a_step_model_that_keeps_nothing_is_none_of_series():
    """Its samples (2, 3) are no series of two steps."""
    model, x = stateless(), normal(2, 3)
    step = to_step_model(model)
    assert "next_steps" in step.output
    assert_close(Stream(step).step(x), to_numpy(model(x[None, None]))[0])


def test_a_forecast_is_no_step_model():
    """Though what it returns is called as the state of a step model that its input is."""
    inputs = keras.Input((None, 3), name="x")
    model = keras.Model(inputs, {"next_x": L.Dense(3)(LSTM(2, return_sequences=True)(inputs))})
    x = normal(1, 4, 3)
    stream = Stream(model, compile=False)
    for sample in x[0]:
        found = stream.step(sample)
    assert_close(found, to_numpy(model(x)["next_x"])[0, -1])
    assert "next_x_1" in to_step_model(model).output


@pytest.mark.parametrize("runtime", [None, pytest.param("onnxruntime", marks=pytest.mark.slow)])
def test_the_caller_owns_what_goes_in_and_comes_out(runtime):
    """A state is neither the sample's memory nor the prediction's."""
    inputs = keras.Input((None, 3))
    x = L.Conv1D(3, 2, padding="causal")(inputs)
    model = keras.Model(inputs, {"end": LSTM(2)(x), "each": x})
    samples, place = normal(5, 3), np.empty(3, "float32")
    stream = Stream(model, runtime=runtime)
    for sample in samples:
        place[:] = sample
        found = stream.step(place)
        last = {name: np.array(y) for name, y in found.items()}
        for y in found.values():
            y[:] = 99.0
    expected = to_numpy(model(samples[None]))
    assert_close(last, {"each": expected["each"][0, -1], "end": expected["end"][0]})


@pytest.mark.slow
def test_states_come_and_go_on_onnx_runtime(model, tmp_path):
    """Its states stay in memory of its own: not those that were kept, set or left out."""
    x = normal(8, 2, 2, 3)
    streams = [Stream(model, batch_size=2, runtime=r) for r in ("onnxruntime", None)]
    found = []
    for stream in streams:
        given = [stream.step(x[0]), stream.step(x[1])]
        kept = stream.state
        given += [stream.step(x[2], rows=[1]), stream.step(x[3])]
        stream.reset(rows=[0])
        given.append(stream.step(x[4]))
        stream.state = kept
        given += [stream.step(x[5]), stream.step(x[6])]
        stream.state = kept
        found.append([*given, stream.step(x[5])])
    assert_close(*found)


@pytest.mark.parametrize(
    ("sample", "words"),
    [
        (np.full((2, 3), np.nan), "'inputs' has nan at (0, 0) in row 0"),
        ([[0, 0, 0], [0, 0, -np.inf]], "'inputs' has -inf at (1, 2) in row 0"),
        (np.full((2, 3), 1e300), "'inputs' has inf"),
        (np.ones((3, 2)), "must have shape (1, 2, 3)"),
        (np.ones((2, 2, 3)), "Received (2, 2, 3)"),
        (np.full((2, 3), "x"), "must be numbers of float32. Received <U1"),
        (np.ones((2, 3), "complex64"), "must be numbers of float32"),
        ({"other": np.ones((2, 3))}, "Received ['other']"),
        ([[0, 0, 0], [0, 0]], "'inputs' must be an array of numbers"),
        (np.ma.masked_equal([[0, 0, 0], [0, 0, 7]], 7), "'inputs' has nan at (1, 2) in row 0"),
    ],
)
def test_what_is_no_sample_leaves_the_state_alone(model, sample, words):
    stream = Stream(model)
    stream.step(np.ones((2, 3)))
    before = stream.state
    with pytest.raises(ValueError, match="Stream: ") as raised:
        stream.step(sample)
    assert words in str(raised.value)
    assert_equal([*stream.state.values()], [*before.values()])
    assert stream.steps.tolist() == [1]


@pytest.mark.parametrize("rows", [[2], [-1], [0.5], [[0]], "all"])
def test_rows_that_are_none(model, rows):
    with pytest.raises(ValueError, match="rows"):
        Stream(model, batch_size=2, compile=False).reset(rows)


def test_a_state_of_another_model_is_refused(model, tmp_path):
    file = tmp_path / "state.npz"
    stream = Stream(model, compile=False)
    stream.save_state(file)
    with pytest.raises(ValueError, match="other weights"):
        Stream(new_model(masking=MARK), compile=False).load_state(file)
    with pytest.raises(ValueError, match="holds the state of 1 series"):
        Stream(model, batch_size=2, compile=False).load_state(file)
    with pytest.raises(ValueError, match="It may be of another model"):
        stream.state = {"h": np.zeros((1, 4))}
    with pytest.raises(ValueError, match="must have shape"):
        stream.state = {name: x[0] for name, x in stream.state.items()}
    with pytest.raises(ValueError, match="must be numbers of float32"):
        stream.state = {name: x.astype("complex64") for name, x in stream.state.items()}
    with pytest.raises(ValueError, match=r"the state '.*' has NaN, from which"):
        stream.state = {name: np.full_like(x, np.nan) for name, x in stream.state.items()}
    assert all((x == 0).all() for x in stream.state.values())
    np.savez(tmp_path / "other.npz", x=np.ones(3))
    with pytest.raises(ValueError, match="does not hold the state of a stream"):
        stream.load_state(tmp_path / "other.npz")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"batch_size": 0}, "`batch_size` must be 1 or more"),
        ({"batch_size": True}, "`batch_size` must be 1 or more"),
        ({"window": 0}, "`window` must be 1 or more"),
        ({"runtime": "tensorrt"}, "`runtime` must be None, 'onnxruntime'"),
    ],
)
def test_wrong_arguments(model, arguments, words):
    with pytest.raises(ValueError, match=words):
        Stream(model, **arguments)


def test_files_of_other_kinds(tmp_path):
    (tmp_path / "model.pb").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"a stream runs files of .onnx"):
        Stream(tmp_path / "model.pb")
    with pytest.raises(FileNotFoundError):
        Stream(tmp_path / "model.onnx")


def test_integers_that_the_dtype_does_not_hold_are_refused():
    inputs = keras.Input((None,), dtype="uint8", name="code")
    model = keras.Model(inputs, keras.layers.LSTM(2)(keras.layers.Embedding(256, 3)(inputs)))
    stream = Stream(model, np.int64(1), compile=False)
    found = stream.step(255)  # an integer of Python, which is not of that dtype
    assert_close(found, to_numpy(model(np.array([[255]], "uint8")))[0])
    for code in (256, -1):
        with pytest.raises(ValueError, match="'code' must be integers from 0 to 255"):
            stream.step(code)
    assert stream.steps.tolist() == [1]


def test_what_an_embedding_does_not_know_is_refused(tmp_path):
    inputs = keras.Input((None,), dtype="int32", name="code")
    model = keras.Model(inputs, L.LSTM(2)(L.Embedding(5, 3, mask_zero=True)(inputs)))
    to_step_model(model).save(tmp_path / "step.keras")
    for given in (model, tmp_path / "step.keras"):
        stream = Stream(given, compile=False)
        for code in (5, -1):
            with pytest.raises(ValueError, match="'code' must be from 0 to 4, which its Embedding"):
                stream.step(code)
        assert np.isfinite(stream.step(4)).all()


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["onnxruntime", "litert", "openvino"])
def test_an_artefact_refuses_the_state_of_other_weights(engine, tmp_path):
    format, suffix = ARTEFACTS[engine]
    pytest.importorskip({"litert": "ai_edge_litert"}.get(engine, engine))
    for name in ("one", "other"):
        # Of which one state is the output too.
        step = to_step_model(keras.Sequential([keras.Input((None, 2)), keras.layers.LSTM(2)]))
        export(step, tmp_path / f"{name}{suffix}", format, batch=1)
    stream = Stream(tmp_path / f"one{suffix}")
    stream.step(np.ones(2))
    stream.save_state(tmp_path / "state.npz")
    Stream(tmp_path / f"one{suffix}").load_state(tmp_path / "state.npz")
    with pytest.raises(ValueError, match="other weights"):
        Stream(tmp_path / f"other{suffix}").load_state(tmp_path / "state.npz")
    Stream(step).save_state(tmp_path / "keras.npz")  # of the other
    Stream(tmp_path / f"other{suffix}").load_state(tmp_path / "keras.npz")
