"""The picture of two versions beside each other, as PNG bytes, and how a bundle keeps it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.plotting import (
    BLUE,
    FAINT,
    INK,
    MUTED,
    ORANGE,
    add_title,
    as_png,
    drawable,
    label_fonts,
    new_figure,
    style_axes,
)
from pipeline.promotion.comparison import COMPARISON_FILE, ClassChange, Comparison, write_comparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_CLASSES = 20


def keep_comparison(folder: Path, comparison: Comparison) -> None:
    """Write a comparison into a bundle's folder, and where both versions were tested, its picture."""
    write_comparison(folder / COMPARISON_FILE, comparison)
    if comparison.tested:
        (folder / "figures" / "comparison.png").write_bytes(class_changes(comparison))


def class_changes(comparison: Comparison) -> bytes:
    """Draw the F1 of each class, champion to challenger, those that changed most; the lines are 95 % intervals.

    Args:
        comparison: one in which both versions were tested.
    """
    tested = comparison.tested
    assert tested is not None
    classes = sorted(tested.classes, key=lambda one: -abs(one.change.value))[:MOST_CLASSES]
    classes.sort(key=lambda one: one.change.value)
    figure = new_figure(height=1.7 + 0.27 * len(classes))
    axes = figure.subplots()
    _draw(axes, classes)
    style_axes(axes)
    names = [drawable(one.label, number) for number, one in enumerate(classes, start=1)]
    axes.set_yticks(range(len(classes)), names, color=INK, parse_math=False, family=label_fonts())
    axes.set_ylim(len(classes) - 0.4, -0.6)
    axes.grid(axis="x", color=FAINT, linewidth=0.6)
    figure.legend(
        *axes.get_legend_handles_labels(),
        title=_caption(len(tested.classes)),
        title_fontsize=9,
        alignment="left",
        loc="outside lower left",
        ncols=4,
        frameon=False,
        fontsize=9,
        labelcolor=INK,
    )
    add_title(
        figure, f"Macro-F1 {tested.after:.3f} of {comparison.challenger}, {tested.before:.3f} of {comparison.champion}"
    )
    return as_png(figure)


def _draw(axes: "Axes", classes: Sequence[ClassChange]) -> None:
    places = np.arange(len(classes))
    before, after = (
        np.array(values) for values in zip(*((one.before.f1, one.after.f1) for one in classes), strict=True)
    )
    low, high = (
        np.array(values) for values in zip(*((one.change.low, one.change.high) for one in classes), strict=True)
    )
    axes.hlines(places, np.clip(before + low, 0, 1), np.clip(before + high, 0, 1), color=FAINT, linewidth=5)
    axes.scatter(before, places, s=34, facecolor="white", edgecolor=MUTED, linewidth=1.5, label="champion", zorder=3)
    for chosen, colour, name in (
        (after > before, BLUE, "challenger, better"),
        (after == before, MUTED, "challenger, equal"),
        (after < before, ORANGE, "challenger, worse"),
    ):
        if chosen.any():
            axes.scatter(after[chosen], places[chosen], s=22, color=colour, label=name, zorder=4)


def _caption(classes: int) -> str:
    which = f"the {MOST_CLASSES} of {classes} classes that changed most" if classes > MOST_CLASSES else "each class"
    return f"F1 of {which}; bands: 95 % intervals of the change"
