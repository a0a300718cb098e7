"""The style that all figures share (size, colours, fonts), and their rendering to PNG."""

import io
import math
import warnings
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, DPI = 7.0, 100  # inches, dots per inch: 700 pixels
INK, MUTED, FAINT = "#1f2933", "#6b7785", "#d9dee4"
BLUE, ORANGE = "#2563eb", "#ea580c"
NAME_LENGTH = 34  # characters of a class name on an axis
SERIES = (BLUE, "#64748b", "#0d9488", "#9333ea", "#b45309", "#be185d")


def new_figure(height: float) -> "Figure":
    """Return an empty figure, 700 pixels wide and `height` inches high."""
    # The object interface keeps no global state, so it works in threads and never opens a window.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)  # type: ignore[union-attr,call-arg]
    return figure


def as_png(figure: "Figure") -> bytes:
    """Render a figure to PNG; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # A label in a script without an installed font becomes boxes; the numbers beside it are still right.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def label_fonts() -> list[str]:
    """Return the default font, then the installed fonts for scripts that it lacks."""
    from matplotlib import font_manager

    fallbacks = ("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Source Han Sans SC", "Noto Sans")
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in fallbacks if name in installed)]


def add_title(figure: "Figure", text: str) -> None:
    """Put a title above a figure."""
    figure.suptitle(text, x=0.015, ha="left", color=INK, fontsize=12, fontweight="bold")


def style_axes(axes: "Axes") -> None:
    """Remove from the axes everything but the bottom and left line, the ticks and a faint grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, labelsize=9, length=0)


def truncate_middle(text: str, length: int) -> str:
    """Shorten a text to `length` characters by cutting its middle: class names often start alike."""
    return text if len(text) <= length else f"{text[: length // 2]}…{text[-((length - 1) // 2) :]}"


def score_or_nan(value: Any) -> float:
    """Return a score as a float, NaN (not drawn) for None."""
    return math.nan if value is None else float(value)


def integer_ticks(axes: "Axes", epochs: Sequence[int]) -> None:
    """Put the ticks of the x axis at whole epochs only."""
    from matplotlib.ticker import MaxNLocator

    if len(epochs) <= 12:
        axes.set_xticks(epochs)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def drawable(name: str, number: int) -> str:
    """Return a class name short enough for an axis, or its number where no font has its characters."""
    return truncate_middle(name, NAME_LENGTH) if set(map(ord, name)) <= drawable_characters() else f"no. {number}"


@cache
def drawable_characters() -> frozenset[int]:
    """Return the code points that the fonts of `label_fonts` have."""
    from matplotlib.font_manager import findfont, get_font

    return frozenset(code for font in label_fonts() for code in get_font(findfont(font)).get_charmap())
