"""The plot of scoring times."""

from pipeline.plotting import BLUE, INK, MUTED, add_title, as_png, new_figure, style_axes


def time_spent(
    shares: dict[str, float], workers: int, ceilings: dict[str, float], rows_per_second: float, variant: str
) -> bytes:
    """Return a PNG of how busy each stage of scoring was, and of the speed end to end beside the model alone.

    Args:
        shares: share of the wall time for each stage, from `pipeline.scoring.timing.wall_shares`.
        workers: minibatches that ran at once.
        ceilings: rows/s of the model alone, by variant.
        rows_per_second: end to end, from Parquet to Parquet.
        variant: the one run end to end.
    """
    figure = new_figure(height=3.4)
    left, right = figure.subplots(1, 2)
    left.barh(list(shares), [100 * share for share in shares.values()], color=BLUE)
    for place, share in enumerate(shares.values()):
        left.text(100 * share + 1, place, f"{share:.1%}", va="center", color=INK, fontsize=9)
    left.set_xlim(0, 118)
    left.invert_yaxis()
    left.set_xlabel(f"% of the time (model: mean of {workers} at once)", color=MUTED, fontsize=9)
    names = [*(f"model alone, {name}" for name in ceilings), f"end to end, {variant}"]
    speeds = [*ceilings.values(), rows_per_second]
    right.barh(names, speeds, color=[*(MUTED for _ in ceilings), BLUE])
    for place, speed in enumerate(speeds):
        right.text(speed + max(speeds) * 0.02, place, f"{speed:,.0f}", va="center", color=INK, fontsize=9)
    right.set_xlim(0, max(speeds) * 1.3)
    right.locator_params(axis="x", nbins=4)
    right.invert_yaxis()
    right.set_xlabel("rows a second", color=MUTED, fontsize=9)
    for axes, name in ((left, "Busy"), (right, "Speed")):
        style_axes(axes)
        axes.set_title(name, loc="left", color=INK, fontsize=10)
    add_title(figure, f"End to end: {rows_per_second / ceilings[variant]:.0%} of the speed of the model alone")
    return as_png(figure)
