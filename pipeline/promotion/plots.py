"""The picture of a comparison: F1 of each class, champion and challenger, as PNG bytes."""

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
from pipeline.promotion.comparison import Comparison

DRAWN_CLASSES = 20


def class_changes(comparison: Comparison) -> bytes:
    """Draw the F1 of the classes that changed most, champion to challenger, with 95 % intervals of the change.

    Args:
        comparison: one in which both versions were tested.
    """
    tested = comparison.tested
    assert tested is not None
    classes = sorted(tested.classes, key=lambda row: -abs(row.f1_difference.value))[:DRAWN_CLASSES]
    classes.sort(key=lambda row: row.f1_difference.value)
    places = np.arange(len(classes))
    changes = [row.f1_difference for row in classes]
    before, after = np.array([row.before.f1 for row in classes]), np.array([row.after.f1 for row in classes])
    bands = [np.clip(before + [getattr(change, end) for change in changes], 0, 1) for end in ("low", "high")]

    figure = new_figure(height=1.7 + 0.27 * len(classes))
    axes = figure.subplots()
    axes.hlines(places, *bands, color=FAINT, linewidth=5)
    axes.scatter(before, places, s=34, facecolor="white", edgecolor=MUTED, linewidth=1.5, label="champion", zorder=3)
    for chosen, colour, name in (
        (after > before, BLUE, "challenger, better"),
        (after == before, MUTED, "challenger, equal"),
        (after < before, ORANGE, "challenger, worse"),
    ):
        if chosen.any():
            axes.scatter(after[chosen], places[chosen], s=22, color=colour, label=name, zorder=4)
    style_axes(axes)
    names = [drawable(row.label, number) for number, row in enumerate(classes, start=1)]
    axes.set_yticks(places, names, color=INK, parse_math=False, family=label_fonts())
    axes.set_ylim(len(classes) - 0.4, -0.6)
    axes.grid(axis="x", color=FAINT, linewidth=0.6)

    total = len(tested.classes)
    drawn = f"the {DRAWN_CLASSES} of {total} classes that changed most" if total > DRAWN_CLASSES else "each class"
    figure.legend(
        *axes.get_legend_handles_labels(),
        title=f"F1 of {drawn}; bands: 95 % intervals of the change",
        title_fontsize=9,
        alignment="left",
        loc="outside lower left",
        ncols=4,
        frameon=False,
        fontsize=9,
        labelcolor=INK,
    )
    scores = f"{tested.after:.3f} of {comparison.challenger}, {tested.before:.3f} of {comparison.champion}"
    add_title(figure, f"Macro-F1 {scores}")
    return as_png(figure)
