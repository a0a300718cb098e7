"""The pictures of trainings and measurements, as PNG bytes: small enough to embed, readable 700 pixels wide."""

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
    """Draw the losses and the validation macro-F1 of each epoch, for one training or several beside each other.

    Args:
        histories: for each training, by name, one entry an epoch, with `epoch`, `train_loss`, `validation_loss` and
            `validation_macro_f1`; a value may be None.
    """
    figure = new_figure(height=3.6 if len(histories) < 2 else 3.9)
    losses, scores = figure.subplots(1, 2)
    every: list[tuple[str, list[int], NDArray[np.float64]]] = []
    for (name, history), color in zip(histories.items(), itertools.cycle(SERIES)):
        epochs = [entry["epoch"] for entry in history]
        train, validation, f1 = (
            np.array([score_or_nan(entry.get(key)) for entry in history])
            for key in ("train_loss", "validation_loss", "validation_macro_f1")
        )
        if len(histories) < 2:
            _line(losses, epochs, train, MUTED, "train")
        _line(losses, epochs, validation, color, name or "validation")
        _line(scores, epochs, f1, color, "")
        _mark_best(scores, epochs, f1, color if len(histories) > 1 else ORANGE)
        every.append((name, epochs, f1))
    longest = max((epochs for _, epochs, _ in every), key=len, default=[])
    titles = ("Loss", "Validation macro-F1") if len(histories) < 2 else ("Validation loss", "Validation macro-F1")
    for axes, title in zip((losses, scores), titles, strict=True):
        style_axes(axes)
        axes.set_title(title, loc="left", color=INK, fontsize=10)
        axes.set_xlabel("epoch", color=MUTED, fontsize=9)
        integer_ticks(axes, longest)
    if longest:
        losses.legend(frameon=False, fontsize=9, labelcolor=INK)
    add_title(figure, _learning_title(every))
    return as_png(figure)


def perplexity_curve(history: Sequence[dict[str, Any]]) -> bytes:
    """Draw the perplexity on held-out text after each epoch of a pretraining.

    Args:
        history: one entry an epoch, with `epoch` and `perplexity`.
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


def _mark_best(axes: "Axes", epochs: Sequence[int], scores: NDArray[np.float64], colour: str) -> None:
    if np.isnan(scores).all():
        return
    best = int(np.nanargmax(scores))
    axes.plot(epochs[best], scores[best], marker="o", markersize=9, color=colour, zorder=4)
    axes.margins(y=0.2)


def _learning_title(every: Sequence[tuple[str, list[int], NDArray[np.float64]]]) -> str:
    measured = [(name, epochs, scores) for name, epochs, scores in every if not np.isnan(scores).all()]
    if not measured:
        return "No validation score was measured"
    name, epochs, scores = max(measured, key=lambda one: float(np.nanmax(one[2])))
    best = int(np.nanargmax(scores))
    if name:
        where = f"{name}, epoch {epochs[best]}" if epochs[best] else name
        return f"Best validation macro-F1: {scores[best]:.3f} ({where})"
    return f"Validation macro-F1 is best in epoch {epochs[best]}: {scores[best]:.3f}"
