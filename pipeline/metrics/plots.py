"""Plots of a classifier's quality: confusion matrix, reliability diagram, precision against coverage."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.metrics.intervals import clopper_pearson_lower
from pipeline.metrics.predictions import Predictions
from pipeline.metrics.selective import REPORTED_PRECISIONS, SelectivePolicy, SelectiveResult
from pipeline.plotting import (
    BLUE,
    FAINT,
    INK,
    MUTED,
    ORANGE,
    add_title,
    as_png,
    label_fonts,
    new_figure,
    style_axes,
    truncate_middle,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FEW_CLASSES = 4  # cells are large enough for a count and a share
NUMBERED_CELLS = 15  # with more classes a cell is too small for its number
NAMED_CLASSES = 30  # with more classes a row is too low for its name
LISTED_CONFUSIONS = 8
MIN_ROWS = 20  # a precision of fewer rows is mostly noise


def confusion_matrix(confusion: Sequence[Sequence[int]], labels: Sequence[str]) -> bytes:
    """Draw the confusion matrix, each row relative to its own documents.

    Blue cells are correct, orange ones wrong. Few classes have names and numbers; many have numbered axes, and
    the most frequent confusions are listed below. scikit-learn's display shows neither a confusion of a few percent
    nor 77 classes.

    Args:
        confusion: `[classes, classes]` counts; rows are the truth.
        labels: the name of each class.
    """
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm

    counts = np.asarray(confusion, dtype=np.int64).reshape(len(labels), len(labels))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    if len(labels) > NAMED_CLASSES:
        figure = new_figure(height=8.6)
        axes, below = figure.subplots(2, 1, height_ratios=[6.2, 2.0])
        _list_confusions(below, counts, labels)
    else:
        figure = new_figure(height=4.2 if len(labels) <= FEW_CLASSES else 6.4)
        axes = figure.subplots()
    correct = np.eye(len(labels), dtype=bool)
    norm = PowerNorm(gamma=0.45, vmin=0.0, vmax=1.0)  # so that a confusion of a few percent is visible
    for colour, hidden in ((BLUE, ~correct), (ORANGE, correct)):
        colours = LinearSegmentedColormap.from_list(colour, ["white", colour])
        axes.imshow(np.ma.masked_array(shares, hidden), cmap=colours, norm=norm, interpolation="nearest")
    axes.spines[:].set_color(FAINT)
    axes.set_xlabel("predicted", color=MUTED, fontsize=9)
    axes.set_ylabel("true", color=MUTED, fontsize=9)
    axes.tick_params(colors=MUTED, labelsize=8, length=0)
    if len(labels) <= NAMED_CLASSES:
        _annotate_classes(axes, counts, shares, [truncate_middle(label, 22) for label in labels])
    total = int(counts.sum())
    accuracy = f"{np.trace(counts) / max(total, 1):.1%} of {total:,} documents got their true label"
    add_title(figure, accuracy if total else "No documents were tested")
    return as_png(figure)


def reliability_diagram(
    reliability: Sequence[dict[str, Any]], calibration_error: float | None, before: Mapping[str, Any] | None = None
) -> bytes:
    """Draw accuracy against confidence, over a histogram of the confidence.

    Args:
        reliability: bins from `pipeline.metrics.classification.reliability_bins`.
        calibration_error: expected calibration error, 0 to 1; None without documents.
        before: `reliability` and `calibration_error` before calibration, for comparison.
    """
    figure = new_figure(height=5.6)
    accuracy, histogram = figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 1.0])
    filled = [bin_ for bin_ in reliability if bin_["count"]]
    lows, highs = [bin_["low"] for bin_ in filled], [bin_["high"] for bin_ in filled]
    style = {"width": np.subtract(highs, lows), "align": "edge", "edgecolor": "white"}
    accuracy.bar(lows, [bin_["accuracy"] for bin_ in filled], color=BLUE, label="accuracy", **style)
    mean_confidence = [bin_["confidence"] for bin_ in filled]
    accuracy.hlines(mean_confidence, lows, highs, color=ORANGE, linewidth=3, zorder=4, label="confidence")
    if before and before["calibration_error"] is not None:
        points = [(bin_["confidence"], bin_["accuracy"]) for bin_ in before["reliability"] if bin_["count"]]
        name = f"accuracy before calibration (off by {100 * before['calibration_error']:.1f})"
        accuracy.plot(*zip(*points, strict=True), "o--", color=MUTED, markersize=3, label=name)
    histogram.bar(lows, [bin_["count"] for bin_ in filled], color=FAINT, **style)
    for axes, name in ((accuracy, "share of documents"), (histogram, "documents")):
        style_axes(axes)
        axes.set_ylabel(name, color=MUTED, fontsize=9)
    accuracy.set(xlim=(0, 1), ylim=(0, 1.02))
    if filled:
        corner: dict[str, Any] = {"loc": "lower right", "bbox_to_anchor": (1.0, 1.0), "ncols": 3}
        accuracy.legend(frameon=False, fontsize=9, labelcolor=INK, **corner)
    histogram.set_xlabel("confidence", color=MUTED, fontsize=9)
    title = "No documents to compare confidence with"
    if calibration_error is not None and filled:
        excess = sum(bin_["count"] * (bin_["confidence"] - bin_["accuracy"]) for bin_ in filled)
        model = "overconfident" if excess > 0 else "underconfident"
        title = "Confidence is calibrated" if calibration_error < 0.01 else f"The model is {model}"
        title += f": off by {100 * calibration_error:.1f} points on average"
    add_title(figure, title)
    return as_png(figure)


def precision_coverage(
    predictions: Mapping[str, Predictions], policies: Mapping[float, SelectivePolicy], target: float
) -> bytes:
    """Draw the precision of the most confident texts against their share, and the operating point of each policy.

    Args:
        predictions: on the splits "validation" and "test".
        policies: by target precision.
        target: the target precision of the model, drawn boldest; 0 for none.
    """
    figure = new_figure(height=3.9)
    axes = figure.subplots()
    lowest = min(REPORTED_PRECISIONS)
    for split, colour in (("validation", MUTED), ("test", BLUE)):
        order = np.argsort(-predictions[split].confidence, kind="stable")
        ranks = np.arange(1, len(order) + 1)
        precision = (np.cumsum(predictions[split].correct[order]) / ranks)[MIN_ROWS:]
        axes.plot(100 * ranks[MIN_ROWS:] / len(ranks), 100 * precision, color=colour, linewidth=1.6, label=split)
        lowest = min(lowest, float(precision.min(initial=1.0)))
    tested = predictions["test"] if len(predictions["test"]) else predictions["validation"]
    results = {goal: SelectiveResult.of(policy, tested) for goal, policy in policies.items()}
    for goal, result in results.items():
        _mark_operating_point(axes, goal, result, bold=goal == target)
    style_axes(axes)
    axes.set(xlim=(0, 101), ylim=(100 * lowest - 2, 100.6))
    axes.set_xlabel("coverage: % of the texts labelled, the most confident first", color=MUTED, fontsize=9)
    axes.set_ylabel("precision: % of the labels right", color=MUTED, fontsize=9)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK, loc="lower left")
    shown = target or 0.95
    coverage = results[shown].coverage
    title = f"{100 * (coverage or 0.0):.0f} % of the texts can be labelled at a target precision of {shown:g}"
    add_title(figure, title if coverage else f"No threshold is proven to reach a precision of {shown:g}")
    return as_png(figure)


def _mark_operating_point(axes: "Axes", target: float, result: SelectiveResult, *, bold: bool) -> None:
    axes.axhline(100 * target, color=ORANGE if bold else FAINT, linewidth=1.2 if bold else 0.8, zorder=1)
    if result.coverage is None or result.precision is None:
        return
    coverage, precision = 100 * result.coverage, 100 * result.precision
    lower = 100 * clopper_pearson_lower(result.right, result.labelled, 0.025)
    axes.plot([coverage, coverage], [lower, precision], color=ORANGE, linewidth=1.0, zorder=4)
    axes.plot(coverage, precision, "o", color=ORANGE, markersize=7 if bold else 5, zorder=5)
    offset: dict[str, Any] = {"xytext": (0, 7), "textcoords": "offset points", "ha": "center"}
    axes.annotate(f"{target:g}", (coverage, precision), color=INK, fontsize=9, **offset)


def _annotate_classes(axes: "Axes", counts: NDArray[np.int64], shares: NDArray[np.float64], names: list[str]) -> None:
    """Name the classes, and number the cells if they are few."""
    # A dollar sign in a label is a dollar sign, not the start of a formula.
    style: dict[str, Any] = {"color": INK, "parse_math": False, "family": label_fonts()}
    axes.set_yticks(range(len(names)), names, **style)
    if len(names) > FEW_CLASSES:
        style |= {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(range(len(names)), names, **style)
    if len(names) > NUMBERED_CELLS:
        return
    few = len(names) <= FEW_CLASSES
    for row, column in np.argwhere(counts):
        count, share = counts[row, column], shares[row, column]
        text = f"{count:,}\n{share:.0%}" if few else f"{count:,}"
        colour = "white" if share > 0.3 else INK
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=11 if few else 8)


def _list_confusions(axes: "Axes", counts: NDArray[np.int64], labels: Sequence[str]) -> None:
    axes.set_axis_off()
    wrong = counts * ~np.eye(len(counts), dtype=bool)
    order = np.argsort(-wrong, axis=None, kind="stable")[:LISTED_CONFUSIONS]
    rows, columns = np.unravel_index(order, counts.shape)
    pairs = [(int(row), int(column)) for row, column in zip(rows, columns, strict=True) if wrong[row, column]]
    heading = "Most frequent confusions: documents, true class, predicted class" if pairs else "No confusions"
    axes.text(0.0, 1.0, heading, color=MUTED, fontsize=9, va="center")
    style: dict[str, Any] = {"va": "center", "color": INK, "fontsize": 9, "parse_math": False, "family": label_fonts()}
    for line, (row, column) in enumerate(pairs, start=1):
        y = 1.0 - line / (LISTED_CONFUSIONS + 0.5)
        axes.text(0.06, y, f"{wrong[row, column]:,}", ha="right", **style)
        for x, class_id in ((0.14, row), (0.62, column)):
            axes.text(x - 0.01, y, str(class_id), ha="right", **style)
            axes.text(x, y, truncate_middle(labels[class_id], 36), ha="left", **style)
    axes.set(xlim=(0, 1), ylim=(0, 1))
