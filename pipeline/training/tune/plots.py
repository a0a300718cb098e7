"""The plot of a search: its trials, and the importance of settings.

Optuna's own plots leave out pruned trials, and one very low score flattens all others.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.plotting import (
    BLUE,
    INK,
    MUTED,
    ORANGE,
    add_title,
    as_png,
    integer_ticks,
    new_figure,
    score_or_nan,
    style_axes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LISTED_SETTINGS = 8


def tuning_trials(
    scores: Sequence[float | None],
    pruned: Sequence[bool],
    *,
    importance: dict[str, float],
    learning_rates: Sequence[float],
) -> bytes:
    """Plot the trials of a search in order, and beside them the importance of settings, or the learning rates.

    Args:
        scores: best validation macro-F1 of each trial; None where there is none.
        pruned: whether each was stopped early.
        importance: share of each setting in the variance of the scores; empty if it is unknown.
        learning_rates: of each trial, plotted where there is no importance and they differ.
    """
    values, is_pruned = np.array([score_or_nan(score) for score in scores]), np.array(pruned, dtype=bool)
    complete = np.where(is_pruned, math.nan, values)
    figure = new_figure(height=3.6)
    if importance:
        history, right = figure.subplots(1, 2, width_ratios=[1.25, 1.0])
        _plot_importance(right, importance)
    elif len(set(learning_rates)) > 1:
        history, right = figure.subplots(1, 2, width_ratios=[1.25, 1.0])
        _plot_rates(right, learning_rates, values, is_pruned)
    else:
        history = figure.subplots()
    numbers = np.arange(1, len(values) + 1)
    _scatter(history, numbers, values, is_pruned)
    best = np.fmax.accumulate(complete)
    history.plot(numbers, best, color=ORANGE, linewidth=2, drawstyle="steps-post", label="best so far")
    style_axes(history)
    history.set_title("Validation macro-F1 of each trial", loc="left", color=INK, fontsize=10)
    history.set_xlabel("trial", color=MUTED, fontsize=9)
    history.set_xlim(0.3, len(values) + 0.7)
    history.margins(y=0.1)
    integer_ticks(history, numbers.tolist())
    legend = history.get_legend_handles_labels()
    figure.legend(*legend, loc="outside lower left", ncols=3, frameon=False, fontsize=9, labelcolor=INK)
    title = "No trial is complete"
    if not np.isnan(complete).all():
        index = int(np.nanargmax(complete))
        title = f"Validation macro-F1 is best in trial {index + 1}: {complete[index]:.3f}"
    add_title(figure, title)
    return as_png(figure)


def _scatter(
    axes: "Axes",
    x: NDArray[np.int64] | NDArray[np.float64],
    scores: NDArray[np.float64],
    pruned: NDArray[np.bool_],
) -> None:
    """Plot complete trials as dots and pruned ones as crosses; outliers are triangles on the lower edge."""
    complete = scores[~pruned & ~np.isnan(scores)]
    floor = -math.inf
    if complete.size:  # lower scores would flatten the others
        floor = np.median(complete) - max(2 * (complete.max() - np.median(complete)), 0.01)
    shown, low = scores >= floor, scores < floor  # neither where there is no score
    for chosen, marker, colour, name in (
        (~pruned & shown, "o", BLUE, "complete"),
        (pruned & shown, "x", MUTED, "pruned"),
        (pruned & low, "v", MUTED, "pruned, too low to draw"),
        (~pruned & low, "v", BLUE, "complete, too low to draw"),
    ):
        if chosen.any():
            heights = np.maximum(scores[chosen], floor)
            axes.scatter(x[chosen], heights, s=26, marker=marker, color=colour, label=name, zorder=3)


def _plot_importance(axes: "Axes", importance: dict[str, float]) -> None:
    names = list(importance)[:LISTED_SETTINGS]
    shares = [100 * importance[name] for name in names]
    axes.barh(names, shares, color=BLUE)
    for row, share in enumerate(shares):
        axes.text(share + max(shares) * 0.03, row, f"{share:.0f} %", va="center", color=INK, fontsize=9)
    axes.set_xlim(0, max(shares) * 1.25)
    axes.invert_yaxis()
    style_axes(axes)
    axes.grid(visible=False)
    axes.set_xticks([])
    axes.set_title("Share of the variance", loc="left", color=INK, fontsize=10)


def _plot_rates(
    axes: "Axes", learning_rates: Sequence[float], scores: NDArray[np.float64], pruned: NDArray[np.bool_]
) -> None:
    from matplotlib.ticker import LogLocator

    _scatter(axes, np.array(learning_rates), scores, pruned)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    style_axes(axes)
    axes.margins(y=0.1)
    axes.set_title("By learning rate", loc="left", color=INK, fontsize=10)
    axes.set_xlabel("learning rate", color=MUTED, fontsize=9)
