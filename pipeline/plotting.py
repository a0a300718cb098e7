"""What all pictures share: their size, colours and fonts, and the way to PNG bytes."""

import io
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, DPI = 7.0, 100  # inches, dots per inch: 700 pixels
INK, MUTED, FAINT = "#1f2933", "#6b7785", "#d9dee4"
BLUE, ORANGE = "#2563eb", "#ea580c"
SERIES = (BLUE, "#64748b", "#0d9488", "#9333ea", "#b45309", "#be185d")


def new_figure(height: float) -> "Figure":
    """Return an empty picture, 700 pixels wide and `height` inches high."""
    # The object interface keeps no global state, so it works in threads and never opens a window.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)  # type: ignore[union-attr,call-arg]
    return figure


def as_png(figure: "Figure") -> bytes:
    """Return a picture as PNG bytes; the same picture gives the same bytes."""
    buffer = io.BytesIO()
    with _quiet_fonts():
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


@contextmanager
def _quiet_fonts() -> Iterator[None]:
    with warnings.catch_warnings():
        # A label in a script without a font here becomes boxes; the numbers beside it are still right.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        yield


def label_fonts() -> list[str]:
    """Return the default font, then what is installed here for scripts that it lacks."""
    from matplotlib import font_manager

    wanted = ("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Source Han Sans SC", "Noto Sans")
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in wanted if name in installed)]


def add_title(figure: "Figure", text: str) -> None:
    """Write what a picture says above it."""
    figure.suptitle(text, x=0.015, ha="left", color=INK, fontsize=12, fontweight="bold")


def style_axes(axes: "Axes") -> None:
    """Leave of the axes what is needed to read them."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, labelsize=9, length=0)


def truncate_middle(text: str, length: int) -> str:
    """Return a text of at most `length` characters, cut in the middle: names of classes often start alike."""
    return text if len(text) <= length else f"{text[: length // 2]}…{text[-((length - 1) // 2) :]}"


def score_or_nan(value: Any) -> float:
    """Return a number to draw; of one that is not there nothing is drawn."""
    return math.nan if value is None else float(value)


def integer_ticks(axes: "Axes", epochs: Sequence[int]) -> None:
    """Put ticks at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    if len(epochs) <= 12:
        axes.set_xticks(epochs)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def drawable(name: str, number: int) -> str:
    """Return a name as it fits beside the bars, or its number where no font here has its letters."""
    return truncate_middle(name, NAME_LENGTH) if set(map(ord, name)) <= _letters() else f"no. {number}"


@cache
def _letters() -> frozenset[int]:
    """Return the characters that the fonts for names can draw."""
    from matplotlib.font_manager import findfont, get_font

    return frozenset(code for font in label_fonts() for code in get_font(findfont(font)).get_charmap())


NAME_LENGTH = 34
