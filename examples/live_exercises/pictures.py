"""What the watch measured and what the stream said, as a picture and as an animation."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from multibackend_lstm.files import replacing

# Okabe and Ito's, which people who see fewer colours tell apart, too.
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
AXES = ("black", "#777777", "#BBBBBB")  # x, y, z
SECONDS = 180  # that are drawn, from the beginning
FRAMES, FRAMES_A_SECOND = 120, 10
COLOURS_OF_IMAGE = 256


class Session(NamedTuple):
    """A session of samples, and what was said of it."""

    samples: np.ndarray  # (samples, sensors, axes)
    rate: int  # samples a second
    samples_a_step: int
    truth: np.ndarray  # (steps,)
    probabilities: np.ndarray  # (steps, classes)
    named: np.ndarray  # (steps,), -1 for none yet
    names: tuple[str, ...]


def stretches(labels: np.ndarray) -> list[tuple[int, int, int]]:
    """First step, the step behind the last, and label of each stretch of equal labels."""
    changes = np.flatnonzero(np.diff(labels)) + 1
    bounds = [0, *changes.tolist(), len(labels)]
    return [(a, b, int(labels[a])) for a, b in pairwise(bounds)]


def figure_of(session: Session) -> tuple[Figure, Any]:
    """The figure and its axes, from top to bottom."""
    a_second = session.rate / session.samples_a_step
    shown = min(len(session.truth), int(SECONDS * a_second))
    seconds = np.arange(shown) / a_second
    figure = Figure(figsize=(10, 6), layout="constrained")
    panels = figure.subplots(4, 1, sharex=True, height_ratios=(2, 2, 1, 2.4))
    acceleration, rate_of_turn, strips, bands = panels
    samples = session.samples[: shown * session.samples_a_step]
    at = np.arange(len(samples)) / session.rate
    beside: dict[str, Any] = {
        "loc": "upper left",
        "bbox_to_anchor": (1.0, 1.05),
        "fontsize": "small",
        "frameon": False,
    }
    # The file names no units: at rest the first has length 1, and an arm turns at a few rad/s.
    for axes, sensor, label in (
        (acceleration, 0, "acceleration, g"),
        (rate_of_turn, 1, "turn, rad/s"),
    ):
        for axis, colour in enumerate(AXES):
            axes.plot(at, samples[:, sensor, axis], color=colour, linewidth=0.5, label="xyz"[axis])
        axes.set_ylabel(label)
    for line in acceleration.legend(**beside, title="axis").get_lines():
        line.set_linewidth(2)
    for row, labels in ((1, session.truth[:shown]), (0, session.named[:shown])):
        for begin, end, label in stretches(labels):
            if label < 0:
                continue
            colour = COLOURS[label % len(COLOURS)]
            wrong = row == 0 and (session.truth[begin:end] != label).mean() > 0.5
            strips.barh(
                row,
                (end - begin) / a_second,
                left=begin / a_second,
                height=0.86,
                color=colour,
                hatch="///" if wrong else None,
                edgecolor="white",
                linewidth=0.5,
            )
            if (end - begin) / a_second > 0.03 * SECONDS:
                strips.text(
                    (begin + end) / 2 / a_second,
                    row,
                    session.names[label],
                    ha="center",
                    va="center",
                    fontsize="small",
                    color="white" if np.mean(to_rgb(colour)) < 0.4 else "black",
                    bbox={"facecolor": colour, "edgecolor": "none", "pad": 1},
                )
    strips.set_yticks((1, 0), ("true", "named"))
    bands.stackplot(
        seconds,
        session.probabilities[:shown].T,
        colors=COLOURS,
        labels=session.names,
        linewidth=0,
    )
    bands.set_ylim(0, 1)
    bands.set_ylabel("probability")
    bands.set_xlabel("seconds")
    bands.legend(**beside, reverse=True)
    bands.set_xlim(0, shown / a_second)
    for begin, *_ in stretches(session.truth[:shown])[1:]:
        for axes in (acceleration, rate_of_turn, bands):
            axes.axvline(begin / a_second, color="black", linewidth=0.8, linestyle=":")
    return figure, panels


def draw(session: Session, path: Path) -> None:
    """Write the picture of the first minutes."""
    image, _ = image_of(session, dpi=100)
    with replacing(path) as temporary:
        image.save(temporary, optimize=True)


def animate(session: Session, path: Path) -> None:
    """Write the same as a GIF that uncovers it from left to right.

    It is drawn once, and covered in white in each frame as far as it has not happened yet: frames
    of matplotlib would take half a minute, and ten times the space.
    """
    image, panels = image_of(session, dpi=80)
    pixels = np.array(image)
    palette = np.array(image.getpalette()).reshape(-1, 3).sum(axis=1)
    white, black = int(palette.argmax()), int(palette.argmin())
    frames = []
    for frame in range(1, FRAMES + 1):
        uncovered = pixels.copy()
        for left, right, top, bottom in panels:
            now = left + round((right - left) * frame / FRAMES)
            uncovered[top:bottom, now:right] = white
            if frame < FRAMES:
                uncovered[top:bottom, now] = black
        picture = Image.fromarray(uncovered)
        picture.putpalette(image.getpalette())
        frames.append(picture)
    milliseconds = [1000 // FRAMES_A_SECOND] * (FRAMES - 1) + [4000]
    with replacing(path) as temporary:
        first, *others = frames
        first.save(temporary, save_all=True, append_images=others, duration=milliseconds, loop=0)


def image_of(session: Session, dpi: int) -> tuple[Any, list[tuple[int, int, int, int]]]:
    """The picture in few colours, and the pixels inside its axes: left, right, top, bottom."""
    figure, panels = figure_of(session)
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    inside = []
    for axes in panels:
        box = axes.get_window_extent()
        # Rows of an image count from the top. The axes' frame stays, at the left and at the top.
        left, right = math.ceil(box.x0) + 1, round(box.x1)
        top, bottom = math.ceil(image.height - box.y1) + 1, round(image.height - box.y0)
        inside.append((left, right, top, bottom))
    return image.quantize(COLOURS_OF_IMAGE, dither=Image.Dither.NONE), inside
