"""Plots of the morning's report: label shares and profile histograms, each with the reference."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.metrics.drift import Histogram
from pipeline.metrics.profile import Profile
from pipeline.nights.drift_sentences import format_share
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

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_LABELS = 12
MAX_TICKS = 6
PANELS = (("Confidence, %", "confidence", 100), ("Tokens", "lengths", 1), ("Unknown words, %", "unknown_words", 100))


@dataclass(frozen=True)
class LabelShare:
    """The share of a label, or of all rarer labels together; `reference` is None without one."""

    name: str
    rows: int
    tonight: float
    reference: float | None
    is_remainder: bool = False


def label_shares(tonight: Histogram, reference: Histogram | None) -> list[LabelShare]:
    """Return the shares of the `MAX_LABELS` most frequent labels, then of the remainder together.

    A label that is frequent in the reference only is listed too, so that its absence shows.
    """
    classes = range(len(tonight.bins))
    shares = [tonight.share(number) for number in classes]
    usual = [reference.share(number) for number in classes] if reference else None
    order = np.argsort(-np.maximum(shares, usual or shares), kind="stable").tolist()
    listed = [
        LabelShare(str(tonight.bins[number]), tonight.counts[number], shares[number], usual[number] if usual else None)
        for number in sorted(order[:MAX_LABELS], key=lambda number: (-shares[number], number))
    ]
    remainder = sorted(order[MAX_LABELS:])
    if remainder:
        rows = sum(tonight.counts[number] for number in remainder)
        usual_share = sum(usual[number] for number in remainder) if usual else None
        name = f"{len(remainder)} other label{'s' if len(remainder) > 1 else ''}"
        listed.append(LabelShare(name, rows, rows / max(tonight.size, 1), usual_share, is_remainder=True))
    return listed


def label_mix(tonight: Histogram, reference: Histogram | None) -> bytes:
    """Draw the share of each label as a bar, above its share in the reference.

    A name that no installed font can draw is replaced by its number in the order of `label_shares`.
    """
    listed = label_shares(tonight, reference)
    shares = [share for share in listed if not share.is_remainder]
    figure = new_figure(height=1.0 + 0.36 * len(shares))
    axes = figure.subplots()
    rows = np.arange(len(shares), dtype=np.float64)
    height, shift = (0.36, 0.19) if reference else (0.6, 0.0)
    _draw_bars(axes, rows - shift, [share.tonight for share in shares], height, BLUE, "tonight")
    if reference:
        _draw_bars(axes, rows + shift, [share.reference or 0.0 for share in shares], height, FAINT, "reference")
    style_axes(axes)
    names = [drawable(share.name, number) for number, share in enumerate(shares, start=1)]
    axes.set_yticks(rows, names, color=INK, parse_math=False, family=label_fonts())
    axes.set_xticks([])
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    axes.margins(x=0.12)
    axes.set_ylim(len(shares) - 0.45, -0.55)
    for remainder in listed[len(shares) :]:
        usual = "" if remainder.reference is None else f", {format_share(remainder.reference)} in the reference"
        text = f"and {remainder.name}, together {format_share(remainder.tonight)}{usual}"
        axes.set_xlabel(text, color=MUTED, fontsize=9, loc="left")
    _add_legend(figure, axes)
    title = f"{tonight.size:,} labels tonight"
    if reference:
        distance = sum(abs(tonight.share(number) - reference.share(number)) for number in range(len(tonight.bins))) / 2
        title = f"Labels: {100 * distance:.{0 if distance > 0.1 else 1}f} points from the reference's mix"
    add_title(figure, title)
    return as_png(figure)


def profile_histograms(tonight: Profile, reference: Profile | None) -> bytes:
    """Draw histograms of confidence, length and share of unknown words: tonight as bars, the reference as a line.

    All bins are drawn equally wide; the tick labels are their lower bounds.
    """
    figure = new_figure(height=2.7)
    panels = figure.subplots(1, 3)
    for axes, (name, measure, scale) in zip(panels, PANELS, strict=True):
        histogram: Histogram = getattr(tonight, measure)
        usual: Histogram | None = getattr(reference, measure) if reference else None
        filled = np.flatnonzero(np.array(histogram.counts) + np.array(usual.counts if usual else 0))
        first, end = int(filled[0]), int(filled[-1]) + 1
        axes.bar(np.arange(first, end), _percentages(histogram)[first:end], 0.9, color=BLUE, label="tonight")
        if usual:
            edges = np.arange(first, end + 1) - 0.5
            axes.stairs(_percentages(usual)[first:end], edges, color=ORANGE, linewidth=1.6, label="reference", zorder=4)
        style_axes(axes)
        axes.set_title(name, loc="left", color=INK, fontsize=10)
        axes.set_xlim(first - 0.6, end - 0.4)
        ticks = range(first, end, -(-(end - first) // MAX_TICKS))
        bounds = [float(histogram.bins[tick]) * scale for tick in ticks]
        names = [">0" if 0 < bound < 0.01 else f"{bound:,.0f}" for bound in bounds]
        axes.set_xticks([tick - 0.5 for tick in ticks], names)
    panels[0].set_ylabel("% of the texts", color=MUTED, fontsize=9)
    _add_legend(figure, panels[0])
    add_title(figure, f"{tonight.non_empty:,} texts tonight" + (", and the reference" if reference else ""))
    return as_png(figure)


def _percentages(histogram: Histogram) -> NDArray[np.float64]:
    return 100 * np.array(histogram.counts) / max(histogram.size, 1)


def _draw_bars(
    axes: "Axes", rows: NDArray[np.float64], shares: Sequence[float], height: float, colour: str, name: str
) -> None:
    bars = axes.barh(rows, shares, height, color=colour, label=name)
    axes.bar_label(
        bars,
        [format_share(share) for share in shares],
        padding=4,
        color=INK if colour == BLUE else MUTED,
        fontsize=8,
    )


def _add_legend(figure: "Figure", axes: "Axes") -> None:
    handles, names = axes.get_legend_handles_labels()
    order = sorted(range(len(names)), key=lambda number: names[number] != "tonight")
    figure.legend(
        [handles[number] for number in order],
        [names[number] for number in order],
        loc="upper right",
        ncols=2,
        frameon=False,
        fontsize=9,
        labelcolor=INK,
        borderaxespad=0.3,
    )
