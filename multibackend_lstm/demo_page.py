"""The demo's page: `report.html`."""

from typing import Any

from multibackend_lstm.agreement.comparison import AGREES_UP_TO
from multibackend_lstm.data import load_basic_motions
from multibackend_lstm.pages import figure, template
from multibackend_lstm.solutions import SOLUTIONS


def render_demo(document: dict[str, Any]) -> str:
    """The demo's report.

    Args:
        document: the content of `results.json`.

    Returns:
        A page with the table of differences, confusion matrices and training curves.
    """
    others = sorted({name for s in document["solutions"] for name in s["largest_difference"]})
    return template("demo_page.html.jinja").render(
        document=document,
        others=others,
        advice=SOLUTIONS,
        class_names=load_basic_motions().class_names,
        curves=_training_curves(document["solutions"]),
        agrees_up_to=AGREES_UP_TO,
    )


def _training_curves(solutions: list[dict[str, Any]]) -> str:
    """Loss and accuracy of every solution by epoch, as an SVG element."""
    with figure(10, 3.6) as (drawing, drawn):
        for axes, key in zip(drawing.subplots(1, 2), ("loss", "accuracy"), strict=True):
            for solution in solutions:
                values = solution["history"][key]
                axes.plot(range(1, len(values) + 1), values, label=solution["solution"])
            axes.set_xlabel("epoch")
            axes.set_ylabel(f"training {key}")
            axes.grid(alpha=0.3)
        axes.legend()
    return drawn[0]
