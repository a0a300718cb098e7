"""Pictures of how good a classifier is: confusion matrix and reliability diagram."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

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


NUMBERED_CELLS = 15  # above this many classes a cell is too small for its number


NAMED_CLASSES = 30  # above this many, a row is too low for its name


LISTED_CONFUSIONS = 8


def confusion_matrix(confusion: Sequence[Sequence[int]], labels: Sequence[str]) -> bytes:
    """Draw which class was taken for which, each row relative to its own documents.

    Blue cells are right, orange ones wrong. Few classes have names and numbers; many have numbered axes, and
    the most frequent confusions are spelt out below.

    Args:
        confusion: `[classes, classes]` counts; rows are the truth.
        labels: the name of each class.
    """
    counts = np.asarray(confusion, dtype=np.int64).reshape(len(labels), len(labels))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    many = len(labels) > NAMED_CLASSES
    figure = new_figure(height=8.6 if many else _matrix_height(len(labels)))
    if many:
        axes, below = figure.subplots(2, 1, height_ratios=[6.2, 2.0])
        _list_confusions(below, counts, labels)
    else:
        axes = figure.subplots()
    _draw_shares(axes, shares)
    _name_classes(axes, labels, many)
    if len(labels) <= NUMBERED_CELLS:
        _number_cells(axes, counts, shares)
    add_title(figure, _confusion_title(counts))
    return as_png(figure)


def reliability_diagram(
    reliability: Sequence[dict[str, Any]], calibration_error: float | None, before: Mapping[str, Any] | None = None
) -> bytes:
    """Draw how often the model was right at each confidence, over how many documents had it.

    Args:
        reliability: bins as made by `pipeline.metrics.classification.reliability_bins`.
        calibration_error: expected calibration error, 0 to 1; None where there are no documents.
        before: `reliability` and `calibration_error` before calibration, to draw beside.
    """
    figure = new_figure(height=5.6)
    accuracy, histogram = figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 1.0])
    filled = [bin_ for bin_ in reliability if bin_["count"]]
    lows, highs = [b["low"] for b in filled], [b["high"] for b in filled]
    widths = [high - low for low, high in zip(lows, highs, strict=True)]
    accuracy.bar(
        lows,
        [b["accuracy"] for b in filled],
        widths,
        align="edge",
        color=BLUE,
        edgecolor="white",
        label="right",
    )
    claims = [b["confidence"] for b in filled]
    accuracy.hlines(claims, lows, highs, color=ORANGE, linewidth=3, zorder=4, label="claimed")
    if before and before["calibration_error"] is not None:
        once = [b for b in before["reliability"] if b["count"]]
        name = f"right before calibration (off by {100 * before['calibration_error']:.1f})"
        accuracy.plot(
            [b["confidence"] for b in once], [b["accuracy"] for b in once], "o--", color=MUTED, markersize=3, label=name
        )
    histogram.bar(lows, [b["count"] for b in filled], widths, align="edge", color=FAINT, edgecolor="white")
    for axes, name in ((accuracy, "share of documents"), (histogram, "documents")):
        style_axes(axes)
        axes.set_ylabel(name, color=MUTED, fontsize=9)
    accuracy.set(xlim=(0, 1), ylim=(0, 1.02))
    if filled:
        place: dict[str, Any] = {"loc": "lower right", "bbox_to_anchor": (1.0, 1.0), "ncols": 3}
        accuracy.legend(frameon=False, fontsize=9, labelcolor=INK, **place)
    histogram.set_xlabel("confidence", color=MUTED, fontsize=9)
    add_title(figure, _reliability_title(filled, calibration_error))
    return as_png(figure)


def _matrix_height(classes: int) -> float:
    return 4.2 if classes <= 4 else 6.4


def _draw_shares(axes: "Axes", shares: NDArray[np.float64]) -> None:
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm

    right = np.eye(len(shares), dtype=bool)
    # A confusion of a few percent must still be seen among many white cells.
    norm = PowerNorm(gamma=0.45, vmin=0.0, vmax=1.0)
    for colour, hidden in ((BLUE, ~right), (ORANGE, right)):
        colours = LinearSegmentedColormap.from_list(colour, ["white", colour])
        axes.imshow(np.ma.masked_array(shares, hidden), cmap=colours, norm=norm, interpolation="nearest")
    axes.spines[:].set_color(FAINT)


def _name_classes(axes: "Axes", labels: Sequence[str], many: bool) -> None:
    axes.set_xlabel("predicted", color=MUTED, fontsize=9)
    axes.set_ylabel("true", color=MUTED, fontsize=9)
    axes.tick_params(colors=MUTED, labelsize=8, length=0)
    if many:
        return
    names = [truncate_middle(label, 22) for label in labels]
    upright = len(labels) > 4
    # A dollar sign in a label is a dollar sign, not the start of a formula.
    axes.set_yticks(range(len(labels)), names, color=INK, parse_math=False, family=label_fonts())
    axes.set_xticks(
        range(len(labels)),
        names,
        color=INK,
        parse_math=False,
        family=label_fonts(),
        rotation=40 if upright else 0,
        ha="right" if upright else "center",
        rotation_mode="anchor" if upright else None,
    )


def _number_cells(axes: "Axes", counts: NDArray[np.int64], shares: NDArray[np.float64]) -> None:
    size = 11 if len(counts) <= 4 else 8
    for (row, column), count in np.ndenumerate(counts):
        if count:
            colour = "white" if shares[row, column] > 0.3 else INK
            text = f"{count:,}\n{shares[row, column]:.0%}" if len(counts) <= 4 else f"{count:,}"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=size)


def _list_confusions(axes: "Axes", counts: NDArray[np.int64], labels: Sequence[str]) -> None:
    axes.set_axis_off()
    wrong = counts * ~np.eye(len(counts), dtype=bool)
    order = np.argsort(-wrong, axis=None, kind="stable")[:LISTED_CONFUSIONS]
    rows, columns = np.unravel_index(order, counts.shape)
    pairs = [(int(row), int(column)) for row, column in zip(rows, columns, strict=True) if wrong[row, column]]
    heading = "Most frequent confusions: documents, true class, predicted class" if pairs else "No confusions"
    axes.text(0.0, 1.0, heading, color=MUTED, fontsize=9, va="center")
    for line, (row, column) in enumerate(pairs, start=1):
        y = 1.0 - line / (LISTED_CONFUSIONS + 0.5)
        _text_cell(axes, 0.06, y, f"{wrong[row, column]:,}", "right")
        for x, class_id in ((0.14, row), (0.62, column)):
            _text_cell(axes, x - 0.01, y, str(class_id), "right")
            _text_cell(axes, x, y, truncate_middle(labels[class_id], 36), "left")
    axes.set(xlim=(0, 1), ylim=(0, 1))


def _text_cell(axes: "Axes", x: float, y: float, text: str, align: Literal["left", "right"]) -> None:
    axes.text(x, y, text, ha=align, va="center", color=INK, fontsize=9, parse_math=False, family=label_fonts())


def _confusion_title(counts: NDArray[np.int64]) -> str:
    total = int(counts.sum())
    if not total:
        return "No documents were tested"
    return f"{np.trace(counts) / total:.1%} of {total:,} documents got their true label"


def _reliability_title(bins: Sequence[dict[str, Any]], error: float | None) -> str:
    total = sum(bin_["count"] for bin_ in bins)
    if error is None or not total:
        return "No documents to compare confidence with"
    lean = sum(bin_["count"] * (bin_["confidence"] - bin_["accuracy"]) for bin_ in bins) / total
    if error < 0.01:
        return f"Confidence can be taken at its word: off by {100 * error:.1f} points on average"
    manner = "too sure" if lean > 0 else "too cautious"
    return f"The model is {manner}: confidence is off by {100 * error:.1f} points on average"
