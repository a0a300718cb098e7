"""The picture of a search: its trials, and which settings mattered."""

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
    """Draw the trials of a search in order, and beside them which settings mattered, or the learning rates.

    Args:
        scores: best validation macro-F1 of each trial; None where there is none.
        pruned: whether each was stopped early.
        importance: share of each setting in the differences between scores; empty if that is not known.
        learning_rates: of each trial, drawn where there is no importance and they differ.
    """
    values, stopped = np.array([score_or_nan(score) for score in scores]), np.array(pruned, dtype=bool)
    figure = new_figure(height=3.6)
    rates = len(set(learning_rates)) > 1
    if importance or rates:
        left, right = figure.subplots(1, 2, width_ratios=[1.25, 1.0])
        if importance:
            _draw_importance(right, importance)
        else:
            _draw_rates(right, learning_rates, values, stopped)
    else:
        left = figure.subplots()
    _draw_trials(left, values, stopped)
    add_title(figure, _tuning_title(values, stopped))
    return as_png(figure)


def _draw_trials(axes: "Axes", scores: NDArray[np.float64], pruned: NDArray[np.bool_]) -> None:
    numbers = np.arange(1, len(scores) + 1)
    _dots(axes, numbers, scores, pruned)
    complete = np.where(pruned | np.isnan(scores), -np.inf, scores)
    best = np.maximum.accumulate(complete)
    known = np.isfinite(best)
    axes.plot(numbers[known], best[known], color=ORANGE, linewidth=2, drawstyle="steps-post", label="best so far")
    style_axes(axes)
    axes.set_title("Validation macro-F1 of each trial", loc="left", color=INK, fontsize=10)
    axes.set_xlabel("trial", color=MUTED, fontsize=9)
    axes.set_xlim(0.3, len(scores) + 0.7)
    axes.margins(y=0.1)
    integer_ticks(axes, numbers.tolist())
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside lower left", ncols=3, frameon=False, fontsize=9, labelcolor=INK
    )


def _dots(
    axes: "Axes",
    places: NDArray[np.int64] | NDArray[np.float64],
    scores: NDArray[np.float64],
    pruned: NDArray[np.bool_],
) -> None:
    """Draw complete trials as dots and pruned ones as crosses; those far below lie on the lower edge as triangles."""
    floor = _score_floor(scores[~pruned])
    shown, low = scores >= floor, scores < floor  # neither where there is no score
    for chosen, marker, colour, name in (
        (~pruned & shown, "o", BLUE, "complete"),
        (pruned & shown, "x", MUTED, "pruned"),
        (pruned & low, "v", MUTED, "pruned, too low to draw"),
        (~pruned & low, "v", BLUE, "complete, too low to draw"),
    ):
        if chosen.any():
            heights = np.maximum(scores[chosen], floor)
            axes.scatter(places[chosen], heights, s=26, marker=marker, color=colour, label=name, zorder=3)


def _score_floor(complete: NDArray[np.float64]) -> float:
    """Return the score below which a trial is so far off that drawing it in place would flatten the others."""
    known = complete[~np.isnan(complete)]
    if not known.size:
        return -math.inf
    best, middle = float(known.max()), float(np.median(known))
    return middle - max(2 * (best - middle), 0.01)


def _draw_importance(axes: "Axes", importance: dict[str, float]) -> None:
    names = list(importance)[:LISTED_SETTINGS]
    shares = [100 * importance[name] for name in names]
    axes.barh(names, shares, color=BLUE)
    for place, share in enumerate(shares):
        axes.text(share + max(shares) * 0.03, place, f"{share:.0f} %", va="center", color=INK, fontsize=9)
    axes.set_xlim(0, max(shares) * 1.25)
    axes.invert_yaxis()
    style_axes(axes)
    axes.grid(visible=False)
    axes.set_xticks([])
    axes.set_title("Share in the differences", loc="left", color=INK, fontsize=10)


def _draw_rates(
    axes: "Axes", learning_rates: Sequence[float], scores: NDArray[np.float64], pruned: NDArray[np.bool_]
) -> None:
    from matplotlib.ticker import LogLocator

    _dots(axes, np.array(learning_rates), scores, pruned)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    style_axes(axes)
    axes.margins(y=0.1)
    axes.set_title("By learning rate", loc="left", color=INK, fontsize=10)
    axes.set_xlabel("learning rate", color=MUTED, fontsize=9)


def _tuning_title(scores: NDArray[np.float64], pruned: NDArray[np.bool_]) -> str:
    complete = np.where(pruned, math.nan, scores)
    if np.isnan(complete).all():
        return "No trial is complete"
    best = int(np.nanargmax(complete))
    return f"Validation macro-F1 is best in trial {best + 1}: {complete[best]:.3f}"
