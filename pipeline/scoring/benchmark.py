"""How fast this machine labels, against its own ceilings, and the settings that suit it.

The ceiling is the model alone: the same batches, tokenized and padded before the clock starts. All
measurements are taken in rounds, one of each in every round, and the median counts: a machine that is slow for
a while is then slow for all of them.
"""

import multiprocessing
import shutil
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa

from pipeline.config import ScoringConfig
from pipeline.errors import ModelError
from pipeline.models.bundle import Bundle
from pipeline.models.engine import Engine
from pipeline.models.session import choose_scoring_device, usable_cores
from pipeline.models.variants import VARIANT_DEVICES, choose_variant
from pipeline.scoring.benchmark_subject import Say, Subject, take_rows
from pipeline.scoring.labels import commit_labels, read_documents
from pipeline.scoring.report import BatchReport
from pipeline.scoring.score import score_parts, unique_texts
from pipeline.scoring.scorer import Scorer, byte_slices
from pipeline.workspace import Batch, Workspace

ROWS = 20_000  # of a batch, unless more are asked for
ROUNDS = 3
TUNING_BYTES = 3_000_000  # of text: some seconds on two cores
BATCH_TOKENS = {False: (2048, 4096, 8192, 16_384), True: (65_536, 131_072, 262_144, 524_288)}
MEGABYTE = 1e6
EVIDENCE = "evidence"


def bench(
    subject: Subject, config: ScoringConfig, *, rows: int = ROWS, rounds: int = ROUNDS, say: Say
) -> dict[str, Any]:
    """Measure reading, tokenizing, the model alone in each precision, and all of it end to end.

    Args:
        subject: what to measure.
        config: device, precision, token budget and threads; what is left open is tuned first.
        rows: the first rows of the batch to take; 0 for all.
        rounds: how many times everything is measured; medians count.
        say: told what is being done.

    Returns:
        What `nightlabel bench --json` prints.
    """
    # "auto" would warn for each setting that is tried.
    config = config.model_copy(update={"device": "cuda" if choose_scoring_device(config.device).is_gpu else "cpu"})
    with tempfile.TemporaryDirectory(prefix="nightlabel-bench-") as folder, ExitStack() as stack:
        place = Workspace(folder)
        batch = take_rows(subject.batch, Path(folder) / "documents", rows)
        precisions = precisions_here(subject.bundle, config)
        tried = _tune(subject.bundle, batch, place, config, say)
        best = max(tried, key=lambda trial: float(trial["rows_per_s"]))
        settings = config.model_copy(update={name: best[name] for name in ("precision", "batch_tokens", "threads")})
        say(f"labelling {batch.rows:,} rows {rounds} times, beside the model alone")
        scorers = {
            name: stack.enter_context(Scorer(subject.bundle, settings.model_copy(update={"precision": name})))
            for name in precisions
        }
        telling = _telling_scorer(subject.bundle, settings)
        if telling:
            stack.enter_context(telling)
        found = _measure(place, batch, scorers, telling, str(settings.precision), rounds, say)
    device = scorers["fp32"].engine.device
    return {
        "device": device.name,
        "provider": device.provider,
        "driver": device.driver,
        "subject": subject.title,
        "model": subject.bundle.title,
        "rows": batch.rows,
        "rounds": rounds,
        **found,
        "settings_tried": tried,
        "recommended": recommended(best, config, subject.bundle),
    }


def _telling_scorer(bundle: Bundle, config: ScoringConfig) -> Scorer | None:
    """Return a scorer that tells evidence too; None for a model that cannot."""
    try:
        return Scorer(bundle, config.model_copy(update={"evidence": True}))
    except ModelError:
        return None


def _measure(
    place: Workspace,
    batch: Batch,
    scorers: dict[str, Scorer],
    telling: Scorer | None,
    precision: str,
    rounds: int,
    say: Say,
) -> dict[str, Any]:
    """Measure each stage, each precision and the whole, once in every round, and the whole with evidence beside it."""
    scorer = scorers[precision]
    whole = [scorer] if telling is None else [scorer, telling]
    for one in whole:
        _end_to_end(place, batch, one)  # what is done once only is not measured
    texts = _texts(batch)
    prepared = {name: _Prepared.of(texts, scorer) for name, scorer in scorers.items()}
    work: dict[str, Callable[[], None]] = {
        "reading": partial(_read, batch),
        "tokenizing": partial(_tokenize, scorer, texts),
        "tokenizing together": partial(_tokenize_together, scorer, texts),
        **{name: partial(prepared[name].run, scorers[name]) for name in scorers},
    }
    if telling:
        work[EVIDENCE] = partial(prepared[precision].attribute, telling)
    seconds: dict[str, list[float]] = {name: [] for name in work}
    all_runs: list[list[BatchReport]] = [[] for _ in whole]
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}")
        for name, step in work.items():
            seconds[name].append(_seconds(step))
        for runs, one in zip(all_runs, whole, strict=True):
            runs.append(_end_to_end(place, batch, one))
    runs = all_runs[0]
    middle = sorted(runs, key=lambda run: run.seconds)[len(runs) // 2]
    size = _Size(batch.rows, sum(part.tokens for part in middle.parts), sum(text.nbytes for text in texts) / MEGABYTE)
    return {
        "reading": size.rates(seconds["reading"]),
        "tokenizing": {
            **size.rates(seconds["tokenizing"]),
            "mb_per_s_all_threads": size.rates(seconds["tokenizing together"])["mb_per_s"],
        },
        "variants": {
            name: {**size.rates(seconds[name]), "padding_share": prepared[name].padding_share} for name in scorers
        },
        "end_to_end": {
            **size.rates([run.seconds for run in runs]),
            "precision": precision,
            "ceiling_share": _ceiling(seconds, precision, on_gpu=scorer.engine.device.is_gpu) / middle.seconds,
            "padding_share": middle.padding_share,
            "peak_memory_mb": peak_memory_mb(place, batch, scorer),
            "stage_shares": middle.stage_shares,
            "workers": middle.workers,
        },
        EVIDENCE: _evidence(seconds, precision, all_runs, size) if telling else None,
    }


def _evidence(
    seconds: dict[str, list[float]], precision: str, runs: Sequence[Sequence[BatchReport]], size: "_Size"
) -> dict[str, Any]:
    """Return the speeds with evidence, and the share of time that it costs: of the model alone, and of the whole."""
    without, told = ([run.seconds for run in one] for one in runs)
    return {
        "model": size.rates(seconds[EVIDENCE]),
        "end_to_end": size.rates(told),
        "model_cost": _cost(seconds[precision], seconds[EVIDENCE]),
        "end_to_end_cost": _cost(without, told),
    }


def _cost(without: Sequence[float], told: Sequence[float]) -> float:
    """Return by which share it takes longer: the median over the rounds, in each of which both stand side by side."""
    return statistics.median(after / max(before, 1e-9) for before, after in zip(without, told, strict=True)) - 1


def _ceiling(seconds: dict[str, list[float]], precision: str, *, on_gpu: bool) -> float:
    """Return the seconds that nothing can be faster than.

    On a CPU all stages share the cores, and the model takes nearly all of them. A GPU works beside the CPU, which
    reads and tokenizes: the slower of the two decides.
    """
    model = statistics.median(seconds[precision])
    before = statistics.median(seconds["reading"]) + statistics.median(seconds["tokenizing together"])
    return max(model, before) if on_gpu else model


@dataclass(frozen=True)
class _Size:
    """How much was labelled; `tokens` without those of repeated texts."""

    rows: int
    tokens: int
    megabytes: float

    def rates(self, seconds: Sequence[float]) -> dict[str, Any]:
        middle = max(statistics.median(seconds), 1e-9)
        return {
            "rows_per_s": self.rows / middle,
            "tokens_per_s": self.tokens / middle,
            "mb_per_s": self.megabytes / middle,
            "seconds": [round(value, 4) for value in seconds],
        }


def rows_of(batch: Batch, size: int) -> int:
    """Return how many of the first rows of a batch hold about this many bytes of text, at least one."""
    table = next(_tables(batch))
    return max(1, min(len(table), round(len(table) * size / max(table["text"].nbytes, 1))))


def precisions_here(bundle: Bundle, config: ScoringConfig) -> list[str]:
    """Return the precisions that can be measured on the device, fp32 first."""
    here = "cuda" if choose_scoring_device(config.device).is_gpu else "cpu"
    return ["fp32", *(name for name in bundle.variants if VARIANT_DEVICES[name] == here)]


def _tune(bundle: Bundle, batch: Batch, place: Workspace, config: ScoringConfig, say: Say) -> list[dict[str, Any]]:
    """Label some rows with each setting that is left open; return each with its median rows/s."""
    on_gpu = choose_scoring_device(config.device).is_gpu
    allowed = choose_variant(config.precision, bundle.variants, on_gpu=on_gpu, title=bundle.title).precision
    names = [config.precision] if config.precision != "auto" else sorted({"fp32", allowed})
    budgets = [config.batch_tokens] if config.batch_tokens else BATCH_TOKENS[on_gpu]
    cores = usable_cores()
    few = take_rows(batch, place.root / "few", rows_of(batch, TUNING_BYTES))
    tried = _try(
        [
            {"precision": name, "batch_tokens": budget, "threads": config.threads or cores}
            for name in names
            for budget in budgets
        ],
        *(bundle, few, place, config, say),
    )
    if not config.threads and cores > 1:  # where cores share what they wait for, fewer can be faster
        best = max(tried, key=lambda trial: float(trial["rows_per_s"]))
        fewer = {name: best[name] for name in ("precision", "batch_tokens")} | {"threads": cores // 2}
        tried += _try([fewer], bundle, few, place, config, say)
    return tried


def _try(
    settings: Sequence[dict[str, Any]], bundle: Bundle, batch: Batch, place: Workspace, config: ScoringConfig, say: Say
) -> list[dict[str, Any]]:
    """Label a batch with each of some settings in turn, several times; return each with its median rows/s."""
    seconds: list[list[float]] = [[] for _ in settings]
    with ExitStack() as stack:
        scorers = [stack.enter_context(Scorer(bundle, config.model_copy(update=setting))) for setting in settings]
        for number in range(ROUNDS):
            say(f"trying {len(settings)} settings on {batch.rows:,} rows, round {number + 1} of {ROUNDS}")
            for spent, scorer in zip(seconds, scorers, strict=True):
                spent.append(_end_to_end(place, batch, scorer).seconds)
    return [
        {**setting, "rows_per_s": batch.rows / statistics.median(spent)}
        for setting, spent in zip(settings, seconds, strict=True)
    ]


def recommended(best: dict[str, Any], config: ScoringConfig, bundle: Bundle) -> dict[str, Any]:
    """Return the fastest settings tried, and the command that uses them."""
    options = {
        "device": config.device,
        "precision": best["precision"],
        "batch-tokens": best["batch_tokens"],
        "threads": best["threads"],
    }
    words = " ".join(f"--{name} {value}" for name, value in options.items())
    settings = {name: best[name] for name in ("precision", "batch_tokens", "threads")}
    return {"device": config.device, **settings, "command": f"nightlabel score --model {bundle.name} {words}"}


@dataclass(frozen=True)
class _Prepared:
    """Batches before the clock starts."""

    minibatches: list[tuple[np.ndarray, np.ndarray]]

    @classmethod
    def of(cls, columns: Sequence[pa.Array], scorer: Scorer) -> Self:
        return cls([padded for texts in columns for padded in scorer.minibatches(texts)])

    @property
    def padding_share(self) -> float:
        slots = sum(token_ids.size for token_ids, _ in self.minibatches)
        return 1 - sum(int(lengths.sum()) for _, lengths in self.minibatches) / slots if slots else 0.0

    def run(self, scorer: Scorer) -> None:
        self._all(scorer.engine, scorer.engine.run)

    def attribute(self, scorer: Scorer) -> None:
        self._all(scorer.engine, scorer.engine.attribute)

    def _all(self, engine: Engine, step: Callable[[np.ndarray, np.ndarray], object]) -> None:
        for future in [engine.submit(partial(step, *padded)) for padded in self.minibatches]:
            future.result()


def _tables(batch: Batch) -> Iterator[pa.Table]:
    for part in batch.manifest["parts"]:
        yield read_documents(batch.path / part["file"], part)


def _read(batch: Batch) -> None:
    deque(_tables(batch), maxlen=0)  # one part at a time, and none is kept


def _texts(batch: Batch) -> list[pa.Array]:
    return [unique_texts(table)[0] for table in _tables(batch)]


def _tokenize(scorer: Scorer, columns: list[pa.Array]) -> None:
    for texts in columns:
        for start, rows in byte_slices(texts):
            scorer.tokenizer.encode(texts.slice(start, rows))


def _tokenize_together(scorer: Scorer, columns: list[pa.Array]) -> None:
    for texts in columns:
        scorer.encode(texts)


def _end_to_end(place: Workspace, batch: Batch, scorer: Scorer) -> BatchReport:
    shutil.rmtree(place.root / "labels", ignore_errors=True)
    report = score_parts(place, batch, scorer)
    commit_labels(batch, scorer.bundle, scorer.config, report, {})
    return report


def _seconds(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def peak_memory_mb(place: Workspace, batch: Batch, scorer: Scorer) -> float | None:
    """Return the most memory, in MB, that a process of its own needs to label a batch; None if it is not told."""
    config = scorer.config.model_copy(update={"device": "cuda" if scorer.engine.device.is_gpu else "cpu"})
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(_own_peak, place.root, batch, scorer.bundle, config).result()


def _own_peak(root: Path, batch: Batch, bundle: Bundle, config: ScoringConfig) -> float | None:
    with Scorer(bundle, config) as scorer:
        _end_to_end(Workspace(root), batch, scorer)
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return None  # not Linux
    kilobytes = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    return int(kilobytes) * 1024 / MEGABYTE
