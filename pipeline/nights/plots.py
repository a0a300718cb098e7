"""The pictures of a night beside the model's reference, as PNG bytes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.metrics.drift import Histogram
from pipeline.metrics.profile import Profile
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

MOST_LABELS = 12
TICKS = 6  # below a histogram


@dataclass(frozen=True)
class LabelShare:
    """A label, or all that are rare, and its shares; `reference` is None where there is none."""

    name: str
    rows: int
    tonight: float
    reference: float | None
    rest: bool = False


def label_shares(tonight: Histogram, reference: Histogram | None) -> list[LabelShare]:
    """Return the labels of a night, the most frequent first; beyond `MOST_LABELS` the rest together.

    What only the reference has many of is among them, so that it is seen to be missing.
    """
    names = [str(name) for name in tonight.bins]
    usual = None if reference is None else [reference.share(place) for place in range(len(names))]
    shares = [tonight.share(place) for place in range(len(names))]
    weights = np.maximum(shares, usual or shares)
    kept = sorted(np.argsort(-weights, kind="stable")[:MOST_LABELS], key=lambda place: (-shares[place], place))
    listed = [
        LabelShare(names[place], tonight.counts[place], shares[place], usual[place] if usual else None)
        for place in kept
    ]
    rest = set(range(len(names))) - set(kept)
    if rest:
        rows = sum(tonight.counts[place] for place in rest)
        before = sum(usual[place] for place in rest) if usual else None
        name = f"{len(rest)} other label{'s' if len(rest) > 1 else ''}"
        listed.append(LabelShare(name, rows, rows / max(tonight.size, 1), before, rest=True))
    return listed


def label_mix(tonight: Histogram, reference: Histogram | None) -> bytes:
    """Draw the share of each label as a bar, and below it that in the reference.

    A name in a script that no font here has is drawn as its number in the order of `label_shares`.
    """
    listed = label_shares(tonight, reference)
    shares = [share for share in listed if not share.rest]
    figure = new_figure(height=1.0 + 0.36 * len(shares))
    axes = figure.subplots()
    places = np.arange(len(shares), dtype=np.float64)
    height, shift = (0.36, 0.19) if reference else (0.6, 0.0)
    _draw_bars(axes, places - shift, [share.tonight for share in shares], height, BLUE, "tonight")
    if reference:
        _draw_bars(axes, places + shift, [share.reference or 0.0 for share in shares], height, FAINT, "reference")
    names = [drawable(share.name, number) for number, share in enumerate(shares, start=1)]
    style_axes(axes)
    axes.set_yticks(places, names, color=INK, parse_math=False, family=label_fonts())
    axes.set_xticks([])
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    axes.margins(x=0.12)
    axes.set_ylim(len(shares) - 0.45, -0.55)
    for rest in listed[len(shares) :]:
        axes.set_xlabel(_tell_rest(rest), color=MUTED, fontsize=9, loc="left")
    _legend(figure, axes)
    add_title(figure, _mix_title(tonight, reference))
    return as_png(figure)


def _tell_rest(rest: LabelShare) -> str:
    beside = "" if rest.reference is None else f", {_percent(rest.reference)} in the reference"
    return f"and {rest.name}, together {_percent(rest.tonight)}{beside}"


def _legend(figure: "Figure", axes: "Axes") -> None:
    handles, names = axes.get_legend_handles_labels()
    tonight_first = sorted(zip(names, handles, strict=True), key=lambda one: one[0] != "tonight")
    figure.legend(
        [handle for _, handle in tonight_first],
        [name for name, _ in tonight_first],
        loc="upper right",
        ncols=2,
        frameon=False,
        fontsize=9,
        labelcolor=INK,
        borderaxespad=0.3,
    )


def _draw_bars(
    axes: "Axes", places: NDArray[np.float64], shares: Sequence[float], height: float, colour: str, name: str
) -> None:
    axes.barh(places, shares, height, color=colour, label=name)
    for place, share in zip(places, shares, strict=True):
        axes.annotate(
            _percent(share),
            (share, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            color=INK if colour == BLUE else MUTED,
            fontsize=8,
        )


def _mix_title(tonight: Histogram, reference: Histogram | None) -> str:
    if reference is None:
        return f"{tonight.size:,} labels tonight"
    apart = sum(abs(tonight.share(place) - reference.share(place)) for place in range(len(tonight.bins))) / 2
    return f"Labels: {100 * apart:.{0 if apart > 0.1 else 1}f} points from the reference's mix"


def profile_histograms(tonight: Profile, reference: Profile | None) -> bytes:
    """Draw confidence, length and share of unknown words: a night's texts as bars, the reference as a line.

    Bins are drawn as wide as each other, whatever they span: the numbers below say where they begin.
    """
    figure = new_figure(height=2.7)
    panels = figure.subplots(1, 3)
    for axes, (name, measure, scale) in zip(panels, _PANELS, strict=True):
        usual = getattr(reference, measure) if reference else None
        _draw_histogram(axes, getattr(tonight, measure), usual, scale)
        axes.set_title(name, loc="left", color=INK, fontsize=10)
    panels[0].set_ylabel("% of the texts", color=MUTED, fontsize=9)
    _legend(figure, panels[0])
    add_title(figure, f"{tonight.non_empty:,} texts tonight" + (", and the reference" if reference else ""))
    return as_png(figure)


_PANELS = (("Confidence, %", "confidence", 100), ("Tokens", "lengths", 1), ("Unknown words, %", "unknown_words", 100))


def _draw_histogram(axes: "Axes", tonight: Histogram, usual: Histogram | None, scale: float) -> None:
    first, last = _span(tonight, usual)
    edges = np.arange(first, last + 1) - 0.5
    axes.bar(np.arange(first, last), _percents(tonight)[first:last], 0.9, color=BLUE, label="tonight")
    if usual:
        axes.stairs(_percents(usual)[first:last], edges, color=ORANGE, linewidth=1.6, label="reference", zorder=4)
    style_axes(axes)
    axes.set_xlim(first - 0.6, last - 0.4)
    step = -(-(last - first) // TICKS)
    ticks = range(first, last, step)
    axes.set_xticks([tick - 0.5 for tick in ticks], [_bound(float(tonight.bins[tick]) * scale) for tick in ticks])


def _span(tonight: Histogram, usual: Histogram | None) -> tuple[int, int]:
    """Return the first bin that holds anything, and the one after the last."""
    filled = np.flatnonzero(np.array(tonight.counts) + np.array(usual.counts if usual else 0))
    return int(filled[0]), int(filled[-1]) + 1


def _percents(histogram: Histogram) -> NDArray[np.float64]:
    return 100 * np.array(histogram.counts) / max(histogram.size, 1)


def _bound(value: float) -> str:
    return ">0" if 0 < value < 0.01 else f"{value:,.0f}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if 0 < share < 0.1 else f"{100 * share:.0f} %"
