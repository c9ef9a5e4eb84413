"""Draws the figure of quality against diversity, with its Pareto front."""

import textwrap
from collections.abc import Sequence

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.lines import Line2D

from experiments.common.figure_files import literal
from experiments.common.figures import COLOURS, LABELS, MARKERS
from experiments.compare.aggregate import Number, Row
from experiments.compare.columns import higher_is_better

OTHER_COLOURS = ("tab:pink", "gold", "teal", "navy", "black")
OTHER_MARKER = "P"
SIZES = {"*": 16, "^": 12, "v": 12, "<": 12, ">": 12}  # larger markers, to leave room for a number inside
LEGEND_WIDTH = 30  # characters
LABEL = "name"


def pareto_front(points: np.ndarray, higher: Sequence[bool]) -> np.ndarray:
    """Returns the indices of the points that no other point dominates (as good in all coordinates, better in one).

    Args:
      points: coordinates, [N, D].
      higher: whether higher is better, for each of the D coordinates.
    """
    x = np.where(higher, points, -points)
    as_good = (x[:, None] >= x[None]).all(-1)
    better = (x[:, None] > x[None]).any(-1)
    return np.flatnonzero(~(as_good & better).any(0))


def staircase(front: np.ndarray, worst: Sequence[float]) -> np.ndarray:
    """Returns the corners [2 N + 1, 2] of the border of the region that a front dominates.

    Args:
      front: points that do not dominate each other, [N, 2].
      worst: end of the border in each coordinate.
    """
    x, y = front[np.argsort(np.abs(front[:, 0] - worst[0]))].T
    return np.stack([np.r_[worst[0], np.repeat(x, 2)], np.r_[np.repeat(y, 2), worst[1]]], -1)


def drawable(rows: Sequence[Row], quality: str, diversity: str) -> list[Row]:
    """Returns the rows that have both numbers."""
    return [row for row in rows if all(isinstance(row.values.get(axis), Number) for axis in (quality, diversity))]


def draw(rows: Sequence[Row], quality: str, diversity: str) -> plt.Figure:
    """Draws one point per row: the colour shows the method, the shape the decoder, the number the group.

    Error bars are intervals or standard deviations.

    Args:
      rows: rows that have both numbers.
      quality: metric of the vertical axis.
      diversity: metric of the horizontal axis.
    """
    groups, methods = (list(dict.fromkeys(getattr(row, name) for row in rows)) for name in ("group", "method"))
    styles = _styles(methods)
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for order, row in enumerate(rows, 3):  # a number is above its own marker and below the next one
        x, y = row.values[diversity], row.values[quality]
        colour = styles[row.method]["color"]
        if x.bar:
            axes.plot(x.bar, [y.mean] * 2, color=colour, linewidth=0.9, alpha=0.6, zorder=2)
        if y.bar:
            axes.plot([x.mean] * 2, y.bar, color=colour, linewidth=0.9, alpha=0.6, zorder=2)
        axes.plot(x.mean, y.mean, zorder=order, **styles[row.method])
        if len(groups) > 1:
            number = f"${groups.index(row.group) + 1}$"
            axes.plot(x.mean, y.mean, marker=number, color="white", markersize=4.5, markeredgewidth=0.3, zorder=order)
    _draw_front(axes, rows, quality, diversity)

    def better(axis: str) -> str:
        return f"{axis} ({'higher' if higher_is_better(axis) else 'lower'} is better)"

    axes.set(xlabel=literal(better(diversity)), ylabel=literal(better(quality)))
    axes.grid(alpha=0.3)
    handles = [Line2D([], [], **styles[method]) for method in methods]
    handles += [Line2D([], [], color="0.4", linestyle="--", linewidth=1)]
    names = [*map(_label, methods), "Pareto front"]
    if len(groups) > 1:
        handles += [Line2D([], [], marker=f"${i}$", color="0.2", linestyle="none") for i in range(1, len(groups) + 1)]
        names += [textwrap.fill(name, LEGEND_WIDTH) for name in groups]
    legend = figure.legend(
        handles=handles,
        labels=[LABEL] * len(handles),  # the names come after: matplotlib leaves out those that begin with "_"
        loc="outside right upper",
        frameon=False,
        fontsize=8,
        title=_bars(rows),
        title_fontsize=8,
        alignment="left",
    )
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(literal(name))
    return figure


def _draw_front(axes: plt.Axes, rows: Sequence[Row], quality: str, diversity: str) -> None:
    points = np.array([[row.values[axis].mean for axis in (diversity, quality)] for row in rows])
    higher = [higher_is_better(axis) for axis in (diversity, quality)]
    limits = axes.get_xlim(), axes.get_ylim()
    worst = [low if up else high for up, (low, high) in zip(higher, limits, strict=True)]
    border = staircase(points[pareto_front(points, higher)], worst)
    axes.plot(*border.T, color="0.4", linestyle="--", linewidth=1, zorder=1)
    axes.set(xlim=limits[0], ylim=limits[1])


def _styles(methods: Sequence[str]) -> dict[str, dict]:
    others = [name for name in dict.fromkeys(method.partition("/")[0] for method in methods) if name not in COLOURS]
    colours = COLOURS | {name: OTHER_COLOURS[i % len(OTHER_COLOURS)] for i, name in enumerate(others)}
    styles = {}
    for method in methods:
        name, _, decoder = method.partition("/")
        marker = MARKERS.get(decoder.partition("-")[0], OTHER_MARKER) if decoder else "*"
        styles[method] = dict(
            color=colours[name],
            marker=marker,
            markersize=SIZES.get(marker, 9),
            linestyle="none",
            markeredgecolor="white",
            markeredgewidth=0.6,
        )
    return styles


def _label(method: str) -> str:
    name, _, decoder = method.partition("/")
    return f"{LABELS.get(name, name)} {decoder}".strip()


def _bars(rows: Sequence[Row]) -> str:
    """Describes the error bars."""
    kinds = {"± std over seeds" if row.seeds > 1 else "95 % bootstrap" for row in rows}
    return "bars: " + ", ".join(sorted(kinds))
