"""The pictures of a night: small, readable, the same every time, and what they draw is what was counted."""

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from matplotlib.patches import Rectangle

from pipeline.metrics.drift import Histogram
from pipeline.metrics.profile import Profile, label_counts
from pipeline.nights import plots as night_plots
from pipeline.nights.plots import MAX_LABELS, label_mix, label_shares, profile_histograms

LARGEST = 60_000


def size(png: bytes) -> tuple[int, int]:
    assert png.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", png[16:24])
    return width, height


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Collect the figures that are drawn."""
    figures: list[Any] = []
    as_png = night_plots.as_png
    monkeypatch.setattr(night_plots, "as_png", lambda figure: figures.append(figure) or as_png(figure))
    return figures


def names(count: int) -> list[str]:
    return [f"a_rather_long_name_of_a_class_{number}_that_goes_on" for number in range(count)]


def mix(counts: Sequence[int], classes: Sequence[str] | None = None) -> Histogram:
    return Histogram(tuple(classes or names(len(counts))), tuple(counts))


def profile(seed: int, texts: int = 300, unknown: float = 0.03) -> Profile:
    random = np.random.default_rng(seed)
    lengths = random.integers(1, 90, texts)
    strange = np.minimum(lengths, (lengths * random.exponential(unknown, texts)).astype(int))
    counts = {"sun": texts // 3, "rain": texts - texts // 3}
    return Profile.of(lengths, strange, random.random(texts), label_counts(counts, ["rain", "sun"], None))


def bars(axes: Any) -> list[float]:
    return [patch.get_width() for patch in axes.patches if isinstance(patch, Rectangle)]


@pytest.mark.parametrize("classes", [1, 2, 12, 13, 77])
def test_a_label_mix_stays_small_and_draws_a_pair_of_bars_for_each_of_the_most_frequent(
    drawn: list[Any], classes: int
) -> None:
    tonight, reference = np.arange(classes, 0, -1), np.arange(1, classes + 1)
    png = label_mix(mix(tonight.tolist()), mix(reference.tolist()))
    shown = min(classes, MAX_LABELS)
    assert size(png)[0] == 700
    assert size(png)[1] < 700
    assert len(png) < LARGEST
    (axes,) = drawn[0].axes
    assert len(bars(axes)) == 2 * shown
    assert len(axes.get_yticklabels()) == shown
    assert ("other label" in axes.get_xlabel()) == (classes > MAX_LABELS)


def test_bars_are_as_long_as_the_shares(drawn: list[Any]) -> None:
    label_mix(mix([30, 60, 10], ["a", "b", "c"]), mix([100, 100, 200], ["a", "b", "c"]))
    (axes,) = drawn[0].axes
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["b", "a", "c"]
    assert bars(axes) == pytest.approx([0.6, 0.3, 0.1, 0.25, 0.25, 0.5])
    assert drawn[0].get_suptitle() == "Labels: 40 points from the reference's mix"


def test_without_a_reference_there_is_one_bar_for_each_label(drawn: list[Any]) -> None:
    png = label_mix(mix([30, 70]), None)
    assert size(png)[0] == 700
    assert bars(drawn[0].axes[0]) == pytest.approx([0.7, 0.3])


def test_labels_that_only_the_reference_has_are_seen_to_be_missing() -> None:
    counts = [*range(1, 31), 0]
    usual = [1] * 30 + [500]
    shares = label_shares(mix(counts), mix(usual))
    assert shares[MAX_LABELS - 1].name == names(31)[30]
    assert shares[MAX_LABELS - 1].tonight == 0
    assert [share.is_remainder for share in shares] == [False] * MAX_LABELS + [True]
    assert shares[-1].name == "19 other labels"
    assert sum(share.rows for share in shares) == sum(counts)
    assert sum(share.tonight for share in shares) == pytest.approx(1)
    assert sum(share.reference or 0 for share in shares) == pytest.approx(1)


@pytest.mark.parametrize("name", ["costs $5 or $x_", "[a](b)", "Größe", "$\\odd{c}^_$"])
def test_a_label_is_drawn_as_it_is_written(drawn: list[Any], name: str) -> None:
    label_mix(mix([3, 1], [name, "b"]), None)
    assert drawn[0].axes[0].get_yticklabels()[0].get_text() == name


def test_a_label_that_no_font_here_can_draw_is_its_number(drawn: list[Any]) -> None:
    label_mix(mix([1, 3], ["\U000e0041书籍", "b"]), None)  # a tag, which is in no font
    assert [tick.get_text() for tick in drawn[0].axes[0].get_yticklabels()] == ["b", "no. 2"]


def test_histograms_draw_the_night_as_bars_and_the_reference_as_a_line(drawn: list[Any]) -> None:
    tonight, reference = profile(1), profile(2)
    png = profile_histograms(tonight, reference)
    assert size(png)[0] == 700
    assert len(png) < LARGEST
    panels = drawn[0].axes
    assert [axes.get_title(loc="left") for axes in panels] == ["Confidence, %", "Tokens", "Unknown words, %"]
    for axes, measure in zip(panels, ("confidence", "lengths", "unknown_words"), strict=True):
        counts = np.array(getattr(tonight, measure).counts)
        heights = [patch.get_height() for patch in axes.patches if isinstance(patch, Rectangle)]
        assert sum(heights) == pytest.approx(100)
        assert max(heights) == pytest.approx(100 * counts.max() / counts.sum())
        (line,) = [patch for patch in axes.patches if not isinstance(patch, Rectangle)]
        assert np.nansum(line.get_data().values) == pytest.approx(100)


@pytest.mark.parametrize("texts", [1, 5000])
@pytest.mark.parametrize("unknown", [0.0, 3.0])
def test_histograms_of_any_night_can_be_drawn_without_a_reference(texts: int, unknown: float) -> None:
    png = profile_histograms(profile(3, texts, unknown), None)
    assert size(png)[0] == 700
    assert len(png) < LARGEST


def test_the_same_night_gives_the_same_bytes() -> None:
    assert profile_histograms(profile(1), profile(2)) == profile_histograms(profile(1), profile(2))
    assert label_mix(profile(1).labels, profile(2).labels) == label_mix(profile(1).labels, profile(2).labels)
    assert profile_histograms(profile(1), profile(2)) != profile_histograms(profile(2), profile(1))
