"""The reader of seglearn's pickled file makes arrays and runs nothing."""

import io
import pickle
import subprocess
import zipfile

import exercises
import numpy as np
import pytest


class Writing:
    """Pickled as a call that writes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def write_wheel(path, contents):
    stream = io.BytesIO()
    np.save(stream, np.array(contents, dtype=object), allow_pickle=True)
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(exercises.MEMBER, stream.getvalue())
    return path


def test_the_converted_file_holds_the_recordings(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    recordings = np.empty(2, dtype=object)  # of unequal length, so an array of objects
    recordings[:] = [np.arange(12.0).reshape(2, 6), np.ones((3, 6))]
    contents = {
        "X": recordings,
        "y": np.array([1, 0]),
        "subject": np.array([3, 4]),
        "side": np.array([0, 1]),
        "y_labels": ["PEN", "ROW"],
    }
    exercises.convert(write_wheel(tmp_path / "some.whl", contents))
    data = exercises.load()
    assert [recording.shape for recording in data.recordings] == [(2, 2, 3), (3, 2, 3)]
    np.testing.assert_array_equal(data.recordings[0][0], [[0, 1, 2], [3, 4, 5]])
    assert data.subjects.tolist() == [3, 4]
    assert data.sides.tolist() == [0, 1]
    assert data.class_names == ("PEN", "ROW")


def test_a_file_that_would_run_code_is_refused(tmp_path):
    wheel = write_wheel(tmp_path / "bad.whl", {"X": Writing(tmp_path / "written")})
    with pytest.raises(pickle.UnpicklingError, match=r"only NumPy arrays.*open"):
        exercises.read_wheel(wheel)
    assert not (tmp_path / "written").exists()


def test_without_a_network_the_message_says_what_to_do(tmp_path, monkeypatch):
    def run(command, **kwargs):
        raise subprocess.CalledProcessError(1, command)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(FileNotFoundError, match=r"seglearn==.*--wheel PATH"):
        exercises.load()
