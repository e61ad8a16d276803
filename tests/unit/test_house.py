"""The picture of the house is what the imports say."""

import runpy
from pathlib import Path

import pytest

house = runpy.run_path(Path(__file__).parents[2] / "tools" / "draw_house.py")


def test_the_picture_is_that_of_the_imports():
    drawn = house["PICTURE"].read_text(encoding="utf-8")
    assert drawn == house["draw"](), "run `python tools/draw_house.py`"


@pytest.fixture
def package(tmp_path):
    for folder in ("layers", "backends", "cli"):
        (tmp_path / "p" / folder).mkdir(parents=True)
        (tmp_path / "p" / folder / "__init__.py").write_text("")
    (tmp_path / "p" / "words.py").write_text("")
    (tmp_path / "p" / "layers" / "lstm.py").write_text("from p import backends, words\n")
    (tmp_path / "p" / "models.py").write_text("import p.layers.lstm\n")
    (tmp_path / "p" / "cli" / "main.py").write_text(
        "def f():\n    from p.models import build\n    from p.layers import lstm\n"
    )
    return tmp_path / "p"


def test_lines_lead_down_to_what_is_imported(package):
    graph = house["house"](house["imports"](package), {"layers", "backends", "cli"})
    # Without words.py, which uses no folder, and without the line that follows from others.
    assert graph == {
        "cli": {"models"},
        "models": {"layers"},
        "layers": {"backends"},
        "backends": set(),
    }
    assert house["floors"](graph) == [["backends"], ["layers"], ["models"], ["cli"]]


def test_another_import_is_another_picture(package):
    before = house["draw"](package)
    (package / "models.py").write_text("from p.backends import base\n")
    assert house["draw"](package) != before


def test_a_circle_is_an_error(package):
    (package / "backends" / "base.py").write_text("import p.cli\n")
    with pytest.raises(ValueError, match="imports in a circle: backends, cli, layers, models"):
        house["draw"](package)
