"""How fast this machine labels, beside its own ceiling, and with which settings it is fastest.

The ceiling is the model alone: the same minibatches, tokenized and padded before the clock starts. Measurements are
taken in rounds, one of each in every round, and the median counts: a machine that is slow for a while slows all alike.
"""

import multiprocessing
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import ScoringConfig
from pipeline.errors import ModelError
from pipeline.models.bundle import Bundle
from pipeline.models.engine import Engine
from pipeline.models.session import choose_scoring_device
from pipeline.models.variants import VARIANT_DEVICES
from pipeline.scoring.benchmark_subject import Say, Subject, take_rows
from pipeline.scoring.benchmark_tuning import label_batch, read_tables, recommended, try_settings
from pipeline.scoring.report import BatchReport
from pipeline.scoring.score import unique_texts
from pipeline.scoring.scorer import Scorer, byte_slices
from pipeline.workspace import Batch, Workspace

ROWS = 20_000  # of a batch, by default
ROUNDS = 3
MEGABYTE = 1e6
# What is timed, beside the variants, each under its own name.
READING, TOKENIZING, TOKENIZING_ALL_THREADS = "reading", "tokenizing", "tokenizing in all threads"
EVIDENCE, WHOLE, WHOLE_WITH_EVIDENCE = "evidence", "end to end", "end to end with evidence"


def bench(
    subject: Subject, config: ScoringConfig, *, rows: int = ROWS, rounds: int = ROUNDS, say: Say
) -> dict[str, Any]:
    """Measure reading, tokenizing, the model alone in each variant, and all of it end to end.

    Args:
        subject: the batch and the model.
        config: device, variant, token budget and threads; the fastest is used for each that is not set.
        rows: the first rows of the batch to take; 0 for all.
        rounds: how many times everything is measured; medians count.
        say: receives progress messages.

    Returns:
        The content of `nightlabel bench --json`.
    """
    bundle = subject.bundle
    # "auto" would warn for each setting that is tried.
    config = config.model_copy(update={"device": "cuda" if choose_scoring_device(config.device).is_gpu else "cpu"})
    with tempfile.TemporaryDirectory(prefix="nightlabel-bench-") as folder, ExitStack() as stack:
        workspace = Workspace(folder)
        batch = take_rows(subject.batch, Path(folder) / "documents", rows)
        tried = try_settings(bundle, batch, workspace, config, say)
        best = max(tried, key=lambda settings: settings.rows_per_s)
        settings = best.applied(config)
        say(f"labelling {batch.rows:,} rows {rounds} times, beside the model alone")
        variants = ["fp32", *(name for name in bundle.variants if VARIANT_DEVICES[name] == config.device)]
        scorers = {
            name: stack.enter_context(Scorer(bundle, settings.model_copy(update={"variant": name})))
            for name in variants
        }
        try:
            explaining = stack.enter_context(Scorer(bundle, settings.model_copy(update={"evidence": True})))
        except ModelError:  # a model without attributions
            explaining = None
        figures = _measure(workspace, batch, scorers, best.variant, explaining, rounds, say)
    device = scorers["fp32"].engine.device
    return {
        "device": device.name,
        "provider": device.provider,
        "driver": device.driver,
        "subject": subject.title,
        "model": bundle.title,
        "rows": batch.rows,
        "rounds": rounds,
        **figures,
        "settings_tried": [{**settings.as_json(), "rows_per_s": settings.rows_per_s} for settings in tried],
        "recommended": recommended(best, config, bundle),
    }


def _measure(
    workspace: Workspace,
    batch: Batch,
    scorers: dict[str, Scorer],
    variant: str,
    explaining: Scorer | None,
    rounds: int,
    say: Say,
) -> dict[str, Any]:
    """Measure each stage, each variant alone and the whole; with a scorer that has evidence, its cost too."""
    scorer = scorers[variant]
    columns = [unique_texts(table)[0] for table in read_tables(batch)]
    minibatches = {
        name: [padded for texts in columns for padded in each.minibatches(texts)] for name, each in scorers.items()
    }
    steps: dict[str, Callable[[], Iterable[object]]] = {
        READING: partial(read_tables, batch),
        TOKENIZING: lambda: (
            scorer.tokenizer.encode(texts.slice(*rows)) for texts in columns for rows in byte_slices(texts)
        ),
        TOKENIZING_ALL_THREADS: lambda: map(scorer.encode, columns),
        **{name: partial(_outputs, scorers[name].engine, minibatches[name]) for name in scorers},
    }
    whole = {WHOLE: partial(label_batch, workspace, batch, scorer)}
    if explaining:
        steps[EVIDENCE] = partial(_outputs, explaining.engine, minibatches[variant], attribute=True)
        whole[WHOLE_WITH_EVIDENCE] = partial(label_batch, workspace, batch, explaining)
    seconds, reports = _time_rounds(steps, whole, rounds, say)
    run = sorted(reports[WHOLE], key=lambda run: run.seconds)[rounds // 2]
    megabytes = sum(texts.nbytes for texts in columns) / MEGABYTE
    times = _Times(seconds, batch.rows, sum(part.tokens for part in run.parts), megabytes)
    all_threads = times.rates(TOKENIZING_ALL_THREADS)["mb_per_s"]
    return {
        "reading": times.rates(READING),
        "tokenizing": {**times.rates(TOKENIZING), "mb_per_s_all_threads": all_threads},
        "variants": {
            name: {**times.rates(name), "padding_share": padding_share(minibatches[name])} for name in scorers
        },
        "end_to_end": {
            **times.rates(WHOLE),
            "precision": variant,
            "ceiling_share": times.ceiling(variant, on_gpu=scorer.engine.device.is_gpu) / run.seconds,
            "padding_share": run.padding_share,
            "peak_memory_mb": peak_memory_mb(workspace, batch, scorer),
            "stage_shares": run.stage_shares,
            "workers": run.workers,
        },
        "evidence": times.evidence(variant) if explaining else None,
    }


def _outputs(
    engine: Engine, minibatches: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray | None]], *, attribute: bool = False
) -> Iterator[object]:
    """Run all minibatches; yield the outputs of each."""
    run = engine.attribute if attribute else engine.run
    for future in [engine.submit(partial(run, *padded)) for padded in minibatches]:
        yield future.result()


def _time_rounds(
    steps: Mapping[str, Callable[[], Iterable[object]]],
    whole: Mapping[str, Callable[[], BatchReport]],
    rounds: int,
    say: Say,
) -> tuple[dict[str, list[float]], dict[str, list[BatchReport]]]:
    """Return the seconds of each step and of each kind of whole run, by round, and the reports of the whole runs."""
    seconds: dict[str, list[float]] = {name: [] for name in (*steps, *whole)}
    reports: dict[str, list[BatchReport]] = {name: [] for name in whole}
    for label in whole.values():
        label()  # what is done only once is not measured
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}")
        for name, step in steps.items():
            started = time.perf_counter()
            deque(step(), maxlen=0)  # results are dropped one by one
            seconds[name].append(time.perf_counter() - started)
        for name, label in whole.items():
            reports[name].append(label())
            seconds[name].append(reports[name][-1].seconds)
    return seconds, reports


@dataclass(frozen=True)
class _Times:
    """Seconds of each step, by round, and how much was labelled in them; `tokens` without those of repeated texts."""

    seconds: dict[str, list[float]]
    rows: int
    tokens: int
    megabytes: float

    def rates(self, name: str) -> dict[str, Any]:
        """Return the speeds of a step, at its median time."""
        median = max(statistics.median(self.seconds[name]), 1e-9)
        return {
            "rows_per_s": self.rows / median,
            "tokens_per_s": self.tokens / median,
            "mb_per_s": self.megabytes / median,
            "seconds": [round(value, 4) for value in self.seconds[name]],
        }

    def ceiling(self, variant: str, *, on_gpu: bool) -> float:
        """Return the shortest possible time, in seconds.

        On a CPU all stages share the cores, and the model takes nearly all of them. A GPU works in parallel with the
        CPU, which reads and tokenizes: the slower of the two sets the limit.
        """
        model, *preparation = (
            statistics.median(self.seconds[name]) for name in (variant, READING, TOKENIZING_ALL_THREADS)
        )
        return max(model, sum(preparation)) if on_gpu else model

    def evidence(self, variant: str) -> dict[str, Any]:
        """Return the speeds with evidence, and the share of time that it adds to the model alone and to the whole."""
        return {
            "model": self.rates(EVIDENCE),
            "end_to_end": self.rates(WHOLE_WITH_EVIDENCE),
            "model_cost": self.added(variant, EVIDENCE),
            "end_to_end_cost": self.added(WHOLE, WHOLE_WITH_EVIDENCE),
        }

    def added(self, before: str, after: str) -> float:
        """Return the share of time that one step takes more than another: the median over the rounds."""
        pairs = zip(self.seconds[before], self.seconds[after], strict=True)
        return statistics.median(longer / max(shorter, 1e-9) for shorter, longer in pairs) - 1


def padding_share(minibatches: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray | None]]) -> float:
    """Return the share of padding in the token slots of minibatches, see `Scorer.minibatches`."""
    slots = sum(token_ids.size for token_ids, _, _ in minibatches)
    return 1 - sum(int(lengths.sum()) for _, lengths, _ in minibatches) / slots if slots else 0.0


def peak_memory_mb(workspace: Workspace, batch: Batch, scorer: Scorer) -> float | None:
    """Return the peak memory, in MB, of a new process that labels a batch; None if the system does not report it."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(_own_peak, workspace.root, batch, scorer.bundle, scorer.config).result()


def _own_peak(root: Path, batch: Batch, bundle: Bundle, config: ScoringConfig) -> float | None:
    with Scorer(bundle, config) as scorer:
        label_batch(Workspace(root), batch, scorer)
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return None  # not Linux
    kilobytes = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    return int(kilobytes) * 1024 / MEGABYTE
