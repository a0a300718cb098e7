"""The picture of what a promise costs: how right labels are, by how many of them are given."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.metrics.predictions import Predictions
from pipeline.metrics.selective import REPORTED_PRECISIONS, SelectivePolicy, SelectiveResult, clopper_pearson_lower
from pipeline.plotting import BLUE, FAINT, INK, MUTED, ORANGE, add_title, as_png, new_figure, style_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FEWEST = 20  # of so few claims a share says nothing yet


def draw_precision_coverage(
    predictions: Mapping[str, Predictions], policies: Mapping[float, SelectivePolicy], target: float
) -> bytes:
    """Draw the precision of the surest texts against how many they are, and where each promise puts its threshold.

    Args:
        claims: of the splits "validation" and "test".
        promises: by target.
        target: the one that is in force, drawn strongest; 0 for none.
    """
    figure = new_figure(height=3.9)
    axes = figure.subplots()
    lowest = 1.0
    for split, colour in (("validation", MUTED), ("test", BLUE)):
        coverage, precision = curve(predictions[split])
        axes.plot(coverage, precision, color=colour, linewidth=1.6, label=split)
        lowest = min(lowest, float(precision.min(initial=100.0)) / 100)
    told = "test" if len(predictions["test"]) else "validation"
    for wanted, policy in policies.items():
        _mark(axes, wanted, SelectiveResult.of(policy, predictions[told]), strong=wanted == target)
    style_axes(axes)
    axes.set(xlim=(0, 101), ylim=(100 * min(lowest, *REPORTED_PRECISIONS) - 2, 100.6))
    axes.set_xlabel("% of the texts labelled, the surest first", color=MUTED, fontsize=9)
    axes.set_ylabel("% of them right", color=MUTED, fontsize=9)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK, loc="lower left")
    add_title(figure, _title(policies, predictions[told], target))
    return as_png(figure)


def curve(predictions: Predictions) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return coverage and precision in percent, as one text after the other is labelled, the surest first."""
    right = np.cumsum(predictions.correct[np.argsort(-predictions.confidence, kind="stable")])
    ranks = np.arange(1, len(right) + 1)
    return 100 * ranks[FEWEST:] / len(right), 100 * right[FEWEST:] / ranks[FEWEST:]


def _mark(axes: "Axes", target: float, outcome: SelectiveResult, *, strong: bool) -> None:
    axes.axhline(100 * target, color=ORANGE if strong else FAINT, linewidth=1.2 if strong else 0.8, zorder=1)
    if outcome.coverage is None or outcome.precision is None:
        return
    low = clopper_pearson_lower(outcome.right, outcome.labelled, 0.025)
    at = 100 * outcome.coverage
    axes.plot([at, at], [100 * low, 100 * outcome.precision], color=ORANGE, linewidth=1.0, zorder=4)
    axes.plot(at, 100 * outcome.precision, "o", color=ORANGE, markersize=7 if strong else 5, zorder=5)
    axes.annotate(
        f"{target:g}",
        (at, 100 * outcome.precision),
        xytext=(0, 7),
        textcoords="offset points",
        ha="center",
        color=INK,
        fontsize=9,
    )


def _title(policies: Mapping[float, SelectivePolicy], predictions: Predictions, target: float) -> str:
    wanted = target or 0.95
    outcome = SelectiveResult.of(policies[wanted], predictions)
    if not outcome.labelled:
        return f"No threshold was shown to keep a precision of {wanted:g}"
    return f"{outcome.coverage:.0%} of the texts can be labelled at a promised precision of {wanted:g}".replace(
        "%", " %"
    )
