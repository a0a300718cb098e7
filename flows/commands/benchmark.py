"""The benchmark for the command line: what it measures with, and the picture. No server is needed."""

import logging
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from flows.demo.bench import demo_subject
from pipeline.config import ScoringConfig
from pipeline.errors import ConfigError
from pipeline.models.registry import Registry
from pipeline.scoring.benchmark import bench
from pipeline.scoring.benchmark_subject import workspace_subject
from pipeline.scoring.plots import time_spent
from pipeline.workspace import Workspace


def run_bench(
    workspace: str,
    config: ScoringConfig,
    *,
    batch: str | None,
    model: str | None,
    rows: int,
    rounds: int,
    plot: Path | None,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Measure with a batch and a model of a workspace, or with the demo's where it has none.

    Args:
        workspace: is only read.
        config: settings; those left open are tuned.
        batch: its name; the largest if None.
        model: name or name@version; the only model there is if None.
        rows: of the batch to take; 0 for all.
        rounds: how often everything is measured.
        plot: a PNG file to draw where the time goes.
        say: told what is being done.

    Returns:
        What `pipeline.scoring.benchmark.bench` found.

    Raises:
        ConfigError: the folder of `plot` is not there.
        BatchError: no such batch.
        ModelError: no such model.
    """
    if plot and not plot.parent.is_dir():
        raise ConfigError(f"--plot {plot}: there is no folder {plot.parent}")
    logging.basicConfig(format="%(message)s")  # no flow runs here whose log would show warnings
    place = Workspace(workspace)
    own = batch or model or (Registry(place).names() and place.batches())
    with nullcontext(workspace_subject(place, batch, model)) if own else demo_subject(say) as subject:
        found = bench(subject, config, rows=rows, rounds=rounds, say=say)
    if plot:
        whole = found["end_to_end"]
        ceilings = {name: rates["rows_per_s"] for name, rates in found["variants"].items()}
        shares, workers = whole["stage_shares"], whole["workers"]
        plot.write_bytes(time_spent(shares, workers, ceilings, whole["rows_per_s"], variant=whole["precision"]))
        say(f"picture: {plot}")
    return found
