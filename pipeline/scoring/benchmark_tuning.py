"""The fastest scoring settings for a machine: each combination labels some rows, and the best is recommended."""

import shutil
import statistics
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from pipeline.config import ScoringConfig
from pipeline.models.bundle import Bundle
from pipeline.models.session import usable_cores
from pipeline.models.variants import choose_variant
from pipeline.scoring.benchmark_subject import Say, take_rows
from pipeline.scoring.labels import commit_labels, read_documents
from pipeline.scoring.report import BatchReport
from pipeline.scoring.score import score_parts
from pipeline.scoring.scorer import Scorer
from pipeline.workspace import Batch, Workspace

ROUNDS = 3
TUNING_BYTES = 3_000_000  # of text: some seconds on two cores
TOKEN_BUDGETS = {"cpu": (2048, 4096, 8192, 16_384), "cuda": (65_536, 131_072, 262_144, 524_288)}


@dataclass(frozen=True)
class TriedSettings:
    """Scoring settings, and the median speed they reached."""

    variant: str
    batch_tokens: int
    threads: int
    rows_per_s: float = 0.0

    def applied(self, config: ScoringConfig) -> ScoringConfig:
        """Return a configuration with these settings."""
        settings = {"variant": self.variant, "batch_tokens": self.batch_tokens, "threads": self.threads}
        return config.model_copy(update=settings)

    def as_json(self) -> dict[str, Any]:
        """Return the settings under the keys of `nightlabel bench --json`."""
        return {"precision": self.variant, "batch_tokens": self.batch_tokens, "threads": self.threads}


def try_settings(
    bundle: Bundle, batch: Batch, workspace: Workspace, config: ScoringConfig, say: Say
) -> list[TriedSettings]:
    """Label some rows of a batch with each combination of the settings that are not set.

    Args:
        bundle: the model.
        batch: its first rows are labelled.
        workspace: where the labels go.
        config: device "cpu" or "cuda"; variant, token budget and threads are tried unless they are set.
        say: receives progress messages.
    """
    variants: list[str] = [config.variant]
    if config.variant == "auto":
        choice = choose_variant("auto", bundle.variants, on_gpu=config.device == "cuda", title=bundle.title)
        variants = sorted({"fp32", choice.variant})
    budgets = [config.batch_tokens] if config.batch_tokens else TOKEN_BUDGETS[config.device]
    cores = usable_cores()
    sample = take_rows(batch, workspace.root / "sample", rows_of(batch, TUNING_BYTES))
    settings = [TriedSettings(name, budget, config.threads or cores) for name in variants for budget in budgets]
    tried = _try(settings, bundle, sample, workspace, config, say)
    if not config.threads and cores > 1:  # with memory shared between cores, fewer threads can be faster
        fewer = replace(max(tried, key=lambda settings: settings.rows_per_s), threads=cores // 2)
        tried += _try([fewer], bundle, sample, workspace, config, say)
    return tried


def _try(
    settings: Sequence[TriedSettings],
    bundle: Bundle,
    batch: Batch,
    workspace: Workspace,
    config: ScoringConfig,
    say: Say,
) -> list[TriedSettings]:
    """Label a batch with each of the settings in turn, several times; return each with its median rows/s."""
    seconds: list[list[float]] = [[] for _ in settings]
    with ExitStack() as stack:
        scorers = [stack.enter_context(Scorer(bundle, candidate.applied(config))) for candidate in settings]
        for number in range(ROUNDS):
            say(f"trying {len(settings)} settings on {batch.rows:,} rows, round {number + 1} of {ROUNDS}")
            for times, scorer in zip(seconds, scorers, strict=True):
                times.append(label_batch(workspace, batch, scorer).seconds)
    return [
        replace(candidate, rows_per_s=batch.rows / statistics.median(times))
        for candidate, times in zip(settings, seconds, strict=True)
    ]


def recommended(best: TriedSettings, config: ScoringConfig, bundle: Bundle) -> dict[str, Any]:
    """Return the fastest settings tried, and the command that uses them."""
    command = (
        f"nightlabel score --model {bundle.name} --device {config.device} --variant {best.variant} "
        f"--batch-tokens {best.batch_tokens} --threads {best.threads}"
    )
    return {"device": config.device, **best.as_json(), "command": command}


def label_batch(workspace: Workspace, batch: Batch, scorer: Scorer) -> BatchReport:
    """Label a whole batch, from Parquet to Parquet, in place of all labels in the workspace."""
    shutil.rmtree(workspace.root / "labels", ignore_errors=True)
    report = score_parts(workspace, batch, scorer)
    commit_labels(batch, scorer.bundle, scorer.config, report, {})
    return report


def read_tables(batch: Batch) -> Iterator[pa.Table]:
    """Yield the documents of each part of a batch."""
    for part in batch.manifest["parts"]:
        yield read_documents(batch.path / part["file"], part)


def rows_of(batch: Batch, size: int) -> int:
    """Return how many of the first rows of a batch hold about `size` bytes of text, at least one."""
    table = next(read_tables(batch))
    return max(1, min(len(table), round(len(table) * size / max(table["text"].nbytes, 1))))
