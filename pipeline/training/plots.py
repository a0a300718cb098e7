"""Plots of trainings, as PNG bytes: small enough to embed, readable 700 pixels wide."""

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.plotting import (
    BLUE,
    INK,
    MUTED,
    ORANGE,
    SERIES,
    add_title,
    as_png,
    integer_ticks,
    new_figure,
    score_or_nan,
    style_axes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def learning_curve(histories: Mapping[str, Sequence[dict[str, Any]]]) -> bytes:
    """Plot the losses and the validation macro-F1 of each epoch, for one training or several.

    Args:
        histories: by name of the training, one entry for each epoch, with `epoch`, `train_loss`, `validation_loss`
            and `validation_macro_f1`; a value may be None.
    """
    single = len(histories) < 2
    figure = new_figure(height=3.6 if single else 3.9)
    losses, scores = figure.subplots(1, 2)
    best: dict[str, float] = {}  # macro-F1 by training and epoch
    for (name, history), color in zip(histories.items(), itertools.cycle(SERIES)):
        epochs = [entry["epoch"] for entry in history]
        train, validation, f1 = (
            np.array([score_or_nan(entry.get(key)) for entry in history])
            for key in ("train_loss", "validation_loss", "validation_macro_f1")
        )
        if single:
            _line(losses, epochs, train, MUTED, "train")
        _line(losses, epochs, validation, color, name or "validation")
        _line(scores, epochs, f1, color, "")
        if not np.isnan(f1).all():
            index = int(np.nanargmax(f1))
            scores.plot(epochs[index], f1[index], marker="o", markersize=9, color=ORANGE if single else color, zorder=4)
            scores.margins(y=0.2)
            best[", ".join(filter(None, [name, f"epoch {epochs[index]}" if epochs[index] else ""]))] = f1[index]
    longest = max(([entry["epoch"] for entry in history] for history in histories.values()), key=len, default=[])
    for axes, title in ((losses, "Loss" if single else "Validation loss"), (scores, "Validation macro-F1")):
        style_axes(axes)
        axes.set_title(title, loc="left", color=INK, fontsize=10)
        axes.set_xlabel("epoch", color=MUTED, fontsize=9)
        integer_ticks(axes, longest)
    if longest:
        losses.legend(frameon=False, fontsize=9, labelcolor=INK)
    winner = max(best, key=lambda name: best[name], default=None)
    add_title(
        figure,
        "No validation score was measured"
        if winner is None
        else f"Best validation macro-F1: {best[winner]:.3f} ({winner})",
    )
    return as_png(figure)


def perplexity_curve(history: Sequence[dict[str, Any]]) -> bytes:
    """Plot the perplexity on held-out text after each epoch of a pretraining.

    Args:
        history: one entry for each epoch, with `epoch` and `perplexity`.
    """
    figure = new_figure(height=3.2)
    axes = figure.subplots()
    epochs = [entry["epoch"] for entry in history]
    _line(axes, epochs, np.array([entry["perplexity"] for entry in history]), BLUE, "")
    for entry in history:
        axes.annotate(
            f"{entry['perplexity']:,.1f}",
            (entry["epoch"], entry["perplexity"]),
            xytext=(0, 8),
            textcoords="offset points",
            ha="center",
            color=INK,
            fontsize=9,
        )
    axes.margins(y=0.25)
    style_axes(axes)
    axes.set_xlabel("epoch", color=MUTED, fontsize=9)
    integer_ticks(axes, epochs)
    add_title(figure, f"Perplexity on held-out text: {history[-1]['perplexity']:,.1f}")
    return as_png(figure)


def _line(axes: "Axes", x: Sequence[int], y: NDArray[np.float64], colour: str, name: str) -> None:
    axes.plot(x, y, color=colour, linewidth=2, marker="o", markersize=4, label=name)
