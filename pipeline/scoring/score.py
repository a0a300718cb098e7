"""Scoring: each documents part gives a labels part of the same name, with the same rows in the same order.

Two parts are in progress at a time for each device: while the model runs the minibatches of one, the next is read and
tokenized, and the previous one written. Within a part the model starts when the first window of rows is tokenized.
Memory is bounded by the size of a part and does not grow with the batch. The columns of labels are
`pipeline.schemas.LABELS`; `label_rows` fills them.
"""

import time
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.errors import DeviceError, DeviceMemoryError, NightlabelError, ScoringError, StoppedError
from pipeline.metrics.classification import confidences, decide
from pipeline.metrics.outliers import find_outliers
from pipeline.metrics.profile import Profile, label_counts
from pipeline.schemas import LABELS, STATUSES
from pipeline.scoring.explanations import evidence_column
from pipeline.scoring.labels import existing_part, part_fingerprint, read_documents, write_part
from pipeline.scoring.report import BatchReport, PartReport
from pipeline.scoring.scorer import ScoredTexts, Scorer
from pipeline.scoring.timing import StageClock
from pipeline.workspace import Batch, Workspace


def score_part(workspace: Workspace, batch: Batch, part: dict[str, Any], scorer: Scorer) -> PartReport:
    """Label a documents part, unless its labels exist already.

    Raises:
        BatchError: the documents part is missing or changed.
        AccountingError: rows in and rows out do not add up.
        DeviceError: the device has too little memory even for small minibatches.
        ScoringError: any other error, with the part and the rows.
    """
    scorer.raise_if_stopped()
    folder = workspace.labels_dir(scorer.bundle.name, batch.id)
    fingerprint = part_fingerprint(scorer.bundle, scorer.config, scorer.variant, part, scorer.policy)
    existing = existing_part(folder, part, fingerprint)
    if existing:
        return existing
    started = time.monotonic()
    clock = StageClock()
    (folder / "manifest.json").unlink(missing_ok=True)  # from here on the batch's labels are incomplete
    with clock("read"):
        table = read_documents(batch.path / part["file"], part)
        texts, first, inverse = unique_texts(table)
    scored = _score_texts(scorer, texts, clock, source=f"{batch.id} {part['file']}", row_numbers=first)
    with clock("write"):
        evidence = row_evidence(scored, texts, inverse, scorer)
        labels, counts, names = label_rows(table["doc_id"], scored.probabilities[inverse], scorer, evidence)
        no_class = labels["label"].null_count - counts["empty"] if scorer.bundle.thresholds is not None else None
        confidence = labels["confidence"].to_numpy()
        by_label = label_counts(names, scorer.bundle.labels, no_class)
        reference = scorer.bundle.reference
        report = PartReport(
            file=part["file"],
            rows=len(table),
            counts=counts,
            labels=names,
            fingerprint=fingerprint,
            tokens=scored.stats.kept_tokens,
            slots=scored.slots,
            truncated_texts=scored.stats.truncated_texts,
            unknown_tokens=scored.stats.unknown_tokens,
            profile=Profile.of(scored.lengths[inverse], scored.unknown[inverse], confidence, by_label),
            outliers=find_outliers(first, scored.lengths, scored.unknown, confidence[first], reference),
        )
        scorer.raise_if_stopped()
        write_part(folder / part["file"], labels, report)
    return replace(report, seconds=time.monotonic() - started, stages=clock.seconds)


def unique_texts(table: pa.Table) -> tuple[pa.Array, np.ndarray, np.ndarray]:
    """Return the unique texts of a part, the first row of each, and the index of each row's text.

    The model runs equal texts once: most feeds repeat themselves.
    """
    inverse = table["content_hash"].combine_chunks().dictionary_encode().indices.to_numpy()
    first = np.flatnonzero(np.diff(np.maximum.accumulate(inverse), prepend=-1))
    texts = table["text"].combine_chunks()
    return texts if len(first) == len(table) else texts.take(pa.array(first)), first, inverse


def _score_texts(
    scorer: Scorer, texts: pa.Array, clock: StageClock, *, source: str, row_numbers: np.ndarray
) -> ScoredTexts:
    """Score a part's texts, in smaller minibatches if memory runs out; errors name the part and its rows."""
    while True:
        budget = scorer.engine.batch_tokens
        try:
            return scorer.label(texts, clock)
        except DeviceMemoryError as error:
            # If another part halved the budget meanwhile, that one is tried first.
            if scorer.engine.batch_tokens == budget and not scorer.engine.halve():
                raise DeviceError(
                    f"{source}: {error}, and smaller ones will not help; free memory on the device, or use --device cpu"
                ) from error
        except StoppedError:
            raise
        except Exception as error:
            rows = getattr(error, "rows", None)
            if rows:
                source += f", rows {row_numbers[rows[0]] + 1:,} to {row_numbers[rows[1] - 1] + 1:,}"
            kind = type(error) if isinstance(error, NightlabelError) else ScoringError
            raise kind(f"{source}: {error}") from error


def row_evidence(scored: ScoredTexts, texts: pa.Array, inverse: np.ndarray, scorer: Scorer) -> pa.Array:
    """Return the column `evidence` of all rows; nulls if the scorer has no evidence."""
    if scored.evidence is None:
        return pa.nulls(len(inverse), LABELS.field("evidence").type)
    column = evidence_column(scored.evidence, texts, scored.lengths, scorer.tokenizer)
    return column if len(texts) == len(inverse) else column.take(pa.array(inverse))


def label_rows(
    doc_ids: pa.ChunkedArray, probabilities: np.ndarray, scorer: Scorer, evidence: pa.Array
) -> tuple[pa.Table, dict[str, int], dict[str, int]]:
    """Return the labels of probabilities [rows, classes], and counts by status and label; NaN rows become "empty"."""
    empty = np.isnan(probabilities[:, 0])
    classes, thresholds = scorer.bundle.labels, scorer.bundle.thresholds
    decided = decide(np.nan_to_num(probabilities, nan=-1.0), thresholds) & ~empty[:, None]
    confidence = confidences(probabilities, decided)
    best = np.nan_to_num(probabilities).argmax(axis=1).astype(np.int32)
    no_class = empty
    labels = pa.nulls(len(empty), LABELS.field("labels").type)
    if thresholds is not None:
        no_class = ~decided.any(axis=1)  # a prediction too, with a confidence
        _, numbers = np.nonzero(decided)
        ends = np.concatenate([[0], np.cumsum(decided.sum(axis=1))]).astype(np.int32)
        names = pa.array(classes, pa.string()).take(pa.array(numbers))
        labels = pa.ListArray.from_arrays(pa.array(ends), names, mask=pa.array(empty))
    status = np.where(empty, 2, np.where(confidence < scorer.review_below[best], 1, 0))
    offsets = np.arange(len(empty) + 1, dtype=np.int32) * probabilities.shape[1]
    scores = pa.ListArray.from_arrays(pa.array(offsets), pa.array(probabilities.ravel()), mask=pa.array(empty))
    table = pa.table(
        [
            doc_ids,
            pa.array(classes, pa.string()).take(pa.array(best, mask=no_class)),
            labels,
            pa.array(confidence, mask=empty),
            scores,
            evidence,
            pa.array(STATUSES).take(pa.array(status)),
            pa.array([scorer.bundle.title], pa.string()).take(pa.array(np.zeros(len(empty), dtype=np.int32))),
        ],
        schema=LABELS,
    )
    sizes = np.bincount(status, minlength=len(STATUSES)).tolist()
    by_label = sorted(zip(classes, decided.sum(axis=0).tolist(), strict=True))
    return table, dict(zip(STATUSES, sizes, strict=True)), {label: count for label, count in by_label if count}


def score_parts(workspace: Workspace, batch: Batch, scorer: Scorer) -> BatchReport:
    """Label all parts of a batch; those already labelled are skipped.

    Readers see the labels once the report is committed, see `pipeline.scoring.labels.commit_labels`.

    Raises:
        Exception: that of the first part that fails, which stops the others.
    """
    started = time.monotonic()
    with ThreadPoolExecutor(scorer.parts_at_once, thread_name_prefix="part") as threads:
        futures = [threads.submit(score_part, workspace, batch, part, scorer) for part in batch.manifest["parts"]]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
            parts = results(futures)
        except BaseException:
            scorer.stop()
            raise
    return batch_report(workspace, batch, scorer, parts, time.monotonic() - started)


def batch_report(
    workspace: Workspace, batch: Batch, scorer: Scorer, parts: Sequence[PartReport], seconds: float
) -> BatchReport:
    """Return the report of a batch whose parts are labelled; `seconds` is the wall time of this run."""
    return BatchReport(
        batch=batch.id,
        model=scorer.bundle.title,
        device=scorer.engine.device,
        variant=scorer.variant_choice,
        workers=scorer.engine.workers,
        parts=parts,
        path=workspace.labels_dir(scorer.bundle.name, batch.id),
        seconds=seconds,
    )


def results(futures: Sequence["Future[PartReport]"]) -> list[PartReport]:
    """Return the results of futures, or raise the first error that stopped the others."""
    errors = [future.exception() for future in futures if future.done()]
    cause = next((error for error in errors if error and not isinstance(error, StoppedError)), None)
    if cause:
        raise cause
    return [future.result() for future in futures]
