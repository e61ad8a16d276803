"""The fuzzer of files itself: what it calls broken, and that a file is the same in every run."""

import random
import signal

import pytest

from fuzz.damage import DAMAGES, MARK, damaged
from fuzz.files import DEFECT, MEGABYTES, SECONDS, broken_rules

REFUSED = "Usage: multibackend-lstm port\n\nError: bad.npz is empty (0 bytes).\n"
SOUND = {"status": 2, "seconds": 1.0, "megabytes": 500, "log": REFUSED, "limit": SECONDS}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path


def test_a_refusal_in_one_line_is_right(folder):
    assert broken_rules(**SOUND, folder=folder) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"status": DEFECT}, "a traceback"),
        ({"log": f"Traceback (most recent call last):\n{REFUSED}"}, "a traceback"),
        ({"status": -signal.SIGSEGV}, "ended by SIGSEGV"),
        ({"status": 5}, "status 5"),
        ({"log": f"{REFUSED}another line\n"}, "not one line"),
        ({"seconds": SECONDS + 1}, "21 s"),
        ({"megabytes": MEGABYTES + 1}, "1001 MB"),
    ],
)
def test_what_is_broken(folder, change, words):
    assert broken_rules(**{**SOUND, **change}, folder=folder) == [words]


def test_what_is_left_behind(folder):
    (folder / "out" / "new.npz").touch()
    assert broken_rules(**SOUND, folder=folder) == ["left new.npz"]
    assert broken_rules(**{**SOUND, "status": 0}, folder=folder) == []
    (folder / "out" / ".new-1.npz").touch()
    assert broken_rules(**{**SOUND, "status": 0}, folder=folder) == ["left .new-1.npz, new.npz"]


def test_what_is_run(folder):
    (folder / f"{MARK}-os.system").touch()
    assert broken_rules(**SOUND, folder=folder) == ["something in it was run"]


def test_a_file_is_the_same_in_every_run():
    content = bytes(range(256))
    files = [damaged(content, random.Random(f"0:{number}")) for number in range(50)]
    assert files == [damaged(content, random.Random(f"0:{number}")) for number in range(50)]
    assert len({*files, content}) == 51
    assert all(len(kinds) > 3 for kinds in DAMAGES.values() if kinds)
