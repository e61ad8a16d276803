"""HTML pages that need no network: plots are SVG inside the page. Needs the extra `plot`."""

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files

import jinja2
import matplotlib
from matplotlib.figure import Figure


def template(name: str) -> jinja2.Template:
    """A template of the package, whose values are escaped and must all be given."""
    environment = jinja2.Environment(
        loader=jinja2.BaseLoader(), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["short"] = _short
    return environment.from_string((files("multibackend_lstm") / name).read_text(encoding="utf-8"))


def _short(number: float) -> str:
    """A number for a table."""
    return "∞" if number == math.inf else f"{number:.3g}"


@contextmanager
def figure(width: float, height: float) -> Iterator[tuple[Figure, list[str]]]:
    """A figure, and a list that gets its SVG element at the end."""
    # Text stays text, and names of elements do not change from run to run.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "multibackend_lstm"}):
        figure, drawn = Figure(figsize=(width, height), layout="constrained"), list[str]()
        yield figure, drawn
        svg = io.StringIO()
        figure.savefig(svg, format="svg", metadata={"Date": None})
    text = svg.getvalue()
    drawn.append(text[text.index("<svg") :])
