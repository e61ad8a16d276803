"""HTML reports that need no network: plots are SVG inside the page. Needs the extra `plot`."""

import io
from importlib.resources import files
from typing import Any

import jinja2
import matplotlib
from matplotlib.figure import Figure

from multibackend_lstm.solutions import SOLUTIONS


def render_demo(document: dict[str, Any]) -> str:
    """The demo's report.

    Args:
        document: the content of `results.json`.

    Returns:
        A page with the table of differences, confusion matrices and training curves.
    """
    from multibackend_lstm.data import load_basic_motions

    environment = jinja2.Environment(
        loader=jinja2.BaseLoader(), autoescape=True, undefined=jinja2.StrictUndefined
    )
    template = environment.from_string(
        (files("multibackend_lstm") / "report_demo.html.jinja").read_text(encoding="utf-8")
    )
    others = sorted({name for s in document["solutions"] for name in s["largest_difference"]})
    return template.render(
        document=document,
        others=others,
        advice=SOLUTIONS,
        class_names=load_basic_motions().class_names,
        curves=_training_curves(document["solutions"]),
    )


def _training_curves(solutions: list[dict[str, Any]]) -> str:
    """Loss and accuracy of every solution by epoch, as an SVG element."""
    # Text stays text, and names of elements do not change from run to run.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "multibackend_lstm"}):
        figure = Figure(figsize=(10, 3.6), layout="constrained")
        for axes, key in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
            for solution in solutions:
                values = solution["history"][key]
                axes.plot(range(1, len(values) + 1), values, label=solution["solution"])
            axes.set_xlabel("epoch")
            axes.set_ylabel(f"training {key}")
            axes.grid(alpha=0.3)
        axes.legend()
        svg = io.StringIO()
        figure.savefig(svg, format="svg", metadata={"Date": None})
    text = svg.getvalue()
    return text[text.index("<svg") :]
