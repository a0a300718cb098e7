"""Documents in, labels out: one documents part gives one labels part of the same name and order.

Two parts are under way at a time for each device: while the model runs the batches of one, the next is read
and tokenized, and the last written. Inside a part the model starts when the first window of rows is tokenized.
What waits is bounded by the size of a part, so memory does not grow with the batch.
"""

import time
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
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
    """Label one documents part, unless its labels are there already.

    Raises:
        BatchError: the documents part is missing or not the one that was committed.
        AccountingError: rows in and rows out do not add up.
        DeviceError: the device has too little memory even for small batches.
        ScoringError: anything else that went wrong, with the part and the rows it happened in.
    """
    scorer.raise_if_stopped()
    folder = workspace.labels_dir(scorer.bundle.name, batch.id)
    mark = part_fingerprint(scorer.bundle, scorer.config, scorer.precision, part, scorer.policy)
    done = existing_part(folder, part, mark)
    if done:
        return done
    started = time.monotonic()
    clock = StageClock()
    (folder / "manifest.json").unlink(missing_ok=True)  # from here on the batch's labels are not whole
    with clock("read"):
        table = read_documents(batch.path / part["file"], part)
        texts, first, inverse = unique_texts(table)
    labelled = _label_part(scorer, texts, clock, place=f"{batch.id} {part['file']}", numbers=first)
    with clock("write"):
        evidence = row_evidence(labelled, texts, inverse, scorer)
        labels, counts, names = label_rows(table["doc_id"], labelled.probabilities[inverse], scorer, evidence)
        no_class = labels["label"].null_count - counts["empty"] if scorer.bundle.thresholds is not None else None
        confidence = labels["confidence"].to_numpy()
        profile = Profile.of(
            labelled.lengths[inverse],
            labelled.unknown[inverse],
            confidence,
            label_counts(names, scorer.bundle.labels, no_class),
        )
        report = PartReport(
            file=part["file"],
            rows=len(table),
            counts=counts,
            labels=names,
            fingerprint=mark,
            tokens=labelled.stats.kept_tokens,
            slots=labelled.slots,
            truncated_texts=labelled.stats.truncated_texts,
            unknown_tokens=labelled.stats.unknown_tokens,
            profile=profile,
            outliers=find_outliers(
                first, labelled.lengths, labelled.unknown, confidence[first], scorer.bundle.reference
            ),
        )
        scorer.raise_if_stopped()
        write_part(folder / part["file"], labels, report)
    return report.timed(time.monotonic() - started, clock.seconds)


def unique_texts(table: pa.Table) -> tuple[pa.Array, np.ndarray, np.ndarray]:
    """Return the different texts of a part, where each is first, and for each row the number of its text.

    Equal texts are run once: most feeds repeat themselves.
    """
    inverse = table["content_hash"].combine_chunks().dictionary_encode().indices.to_numpy()
    first = np.flatnonzero(np.diff(np.maximum.accumulate(inverse), prepend=-1))
    texts = table["text"].combine_chunks()
    return texts if len(first) == len(table) else texts.take(pa.array(first)), first, inverse


def _label_part(scorer: Scorer, texts: pa.Array, clock: StageClock, *, place: str, numbers: np.ndarray) -> ScoredTexts:
    """Label a part's texts, in smaller batches if memory runs out; errors name the part and its rows."""
    while True:
        budget = scorer.engine.batch_tokens
        try:
            return scorer.label(texts, clock)
        except DeviceMemoryError as error:
            # Another part may have halved the budget meanwhile: then that is tried first.
            if scorer.engine.batch_tokens == budget and not scorer.engine.halve():
                raise DeviceError(
                    f"{place}: {error}, and smaller ones will not help; free memory on the device, or use --device cpu"
                ) from error
        except StoppedError:
            raise
        except Exception as error:
            rows = getattr(error, "rows", None)
            where = f"{place}, rows {numbers[rows[0]] + 1:,} to {numbers[rows[1] - 1] + 1:,}" if rows else place
            kind = type(error) if isinstance(error, NightlabelError) else ScoringError
            raise kind(f"{where}: {error}") from error


def row_evidence(labelled: ScoredTexts, texts: pa.Array, inverse: np.ndarray, scorer: Scorer) -> pa.Array:
    """Return the column `evidence` of all rows; nulls unless evidence was asked for."""
    if labelled.evidence is None:
        return pa.nulls(len(inverse), LABELS.field("evidence").type)
    found = evidence_column(labelled.evidence, texts, labelled.lengths, scorer.tokenizer)
    return found if len(texts) == len(inverse) else found.take(pa.array(inverse))


def label_rows(
    doc_ids: pa.ChunkedArray, probabilities: np.ndarray, scorer: Scorer, evidence: pa.Array
) -> tuple[pa.Table, dict[str, int], dict[str, int]]:
    """Turn probabilities [rows, classes] into labels rows and counts by status and label; NaN rows become "empty"."""
    empty = np.isnan(probabilities[:, 0])
    classes, thresholds = scorer.bundle.labels, scorer.bundle.thresholds
    given = decide(np.nan_to_num(probabilities, nan=-1.0), thresholds) & ~empty[:, None]
    confidence = confidences(probabilities, given)
    best = np.nan_to_num(probabilities).argmax(axis=1).astype(np.int32)
    no_class = empty
    labels = pa.nulls(len(empty), LABELS.field("labels").type)
    if thresholds is not None:
        no_class = ~given.any(axis=1)  # that none of the classes holds is then an answer, and can be doubtful too
        labels = _label_lists(given, empty, classes)
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
    names = {label: count for label, count in sorted(zip(classes, given.sum(axis=0).tolist(), strict=True)) if count}
    return table, dict(zip(STATUSES, sizes, strict=True)), names


def _label_lists(given: np.ndarray, empty: np.ndarray, classes: Sequence[str]) -> pa.ListArray:
    """Return the names of the classes that each row is given, list<string>; null for empty texts."""
    _, numbers = np.nonzero(given)
    ends = np.concatenate([[0], np.cumsum(given.sum(axis=1))]).astype(np.int32)
    names = pa.array(classes, pa.string()).take(pa.array(numbers))
    return pa.ListArray.from_arrays(pa.array(ends), names, mask=pa.array(empty))


def score_parts(workspace: Workspace, batch: Batch, scorer: Scorer) -> BatchReport:
    """Label all parts of a batch; those already labelled are left as they are.

    The labels exist once the report is committed, see `pipeline.scoring.labels.commit_labels`.

    Raises:
        Exception: the first part that fails stops the others, and its error is raised.
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
    """Return what became of a batch whose parts are labelled; `seconds` is the wall time of this run."""
    return BatchReport(
        batch=batch.id,
        model=scorer.bundle.title,
        device=scorer.engine.device,
        precision=scorer.variant_choice,
        workers=scorer.engine.workers,
        parts=parts,
        path=workspace.labels_dir(scorer.bundle.name, batch.id),
        seconds=seconds,
    )


def results(futures: Sequence["Future[PartReport]"]) -> list[PartReport]:
    """Return the results of futures, or raise the error that stopped the others."""
    errors = [future.exception() for future in futures if future.done()]
    cause = next((error for error in errors if error and not isinstance(error, StoppedError)), None)
    if cause:
        raise cause
    return [future.result() for future in futures]
