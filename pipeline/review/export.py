"""Export of rows for review as a spreadsheet; the requests are stored, so that answers can be checked."""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dataset.reviews import read_answers, utc_now, write_review_requests
from pipeline.errors import ModelError, ReviewError
from pipeline.models.bundle import Bundle
from pipeline.models.registry import Registry
from pipeline.review.checks import label_to_cell
from pipeline.review.selection import is_current, read_rows, review_pool, select_for_review
from pipeline.review.spreadsheet import guard, text_to_cell, write_sheet
from pipeline.scoring.labels import LabelledBatch, labelled_batches
from pipeline.workspace import Workspace

COLUMNS = ("doc_id", "batch", "why", "text", "label", "confidence", "second", "correct_label", "note")
SUSPICIOUS_SHARE = 1 / 3


@dataclass(frozen=True)
class ReviewExport:
    """The rows that were exported for review.

    Attributes:
        path: the file.
        model: name@version.
        batches: the labelled batches that the rows are from.
        reasons: rows by why they were selected.
        trained_batches: batches that the model was trained on, of which no sample is drawn.
    """

    path: Path
    model: str
    batches: Sequence[str]
    reasons: dict[str, int]
    trained_batches: Sequence[str]

    @property
    def rows(self) -> int:
        return sum(self.reasons.values())


def export_review(
    workspace: Workspace,
    path: Path,
    batch_ids: Sequence[str] = (),
    model: str | None = None,
    *,
    rows: int = 100,
    suspicious: bool = False,
    replace: bool = False,
    delimiter: str = ",",
) -> ReviewExport:
    """Export rows for review: those that the model is least confident of, and a random sample of confident ones.

    The sample is a third to a half. Only different texts that were not reviewed before. With `suspicious` a third of
    all rows are likely label errors of the training data.

    Args:
        workspace: has the labels.
        path: the file to write.
        batch_ids: labelled batches; the newest night by default.
        model: name, or name@version; may be left out if there is only one.
        rows: how many at most.
        suspicious: export likely label errors too.
        replace: overwrite an existing file.
        delimiter: between cells.

    Raises:
        ReviewError: nothing is labelled, nothing is left to review, or the file exists.
        ModelError: no such model.
    """
    if path.exists() and not replace:
        raise ReviewError(f"{path} is there already, perhaps with answers; give another --out, or --replace")
    if rows < 1:
        raise ReviewError(f"--rows {rows}: at least 1")
    bundle, batches = _labelled_batches(workspace, batch_ids, model)
    requests: list[dict[str, Any]] = []
    if suspicious:
        from pipeline.review.label_errors import likely_label_errors

        reviewed = set(read_answers(workspace)["content_hash"].to_pylist())
        errors = (row for row in likely_label_errors(workspace, bundle) if row["content_hash"] not in reviewed)
        requests += itertools.islice(errors, max(1, round(rows * SUSPICIOUS_SHARE)))
    trained = [batch.id for batch in batches if _is_trained_on(bundle, batch)]
    exported = {row["content_hash"] for row in requests}
    requests += _night_rows(workspace, bundle, batches, rows - len(requests), exported, trained)
    if not requests:
        raise ReviewError(
            f"nothing is left to review in {', '.join(batch.id for batch in batches)}; name another --batch"
        )
    requests = [{**row, "asked_at": utc_now(), "model": bundle.title} for row in requests]
    write_review_requests(workspace, requests)
    write_sheet(path, COLUMNS, (_cells(row) for row in requests), delimiter)
    reasons = dict(sorted(Counter(row["why"] for row in requests).items()))
    return ReviewExport(path, bundle.title, [batch.id for batch in batches], reasons, trained)


def _labelled_batches(
    workspace: Workspace, batch_ids: Sequence[str], model: str | None
) -> tuple[Bundle, list[LabelledBatch]]:
    """Return the labels to review, by default of the newest night or else the newest labels, and their version."""
    registry = Registry(workspace)
    named = registry.find(model)
    title = named.title if model and "@" in model else None
    labelled = [batch for batch in labelled_batches(workspace, named.name) if is_current(workspace, batch)]
    if batch_ids:
        for batch_id in batch_ids:
            workspace.batch(batch_id)
        chosen = [batch for batch in labelled if batch.id in batch_ids]
        if missing := sorted(set(batch_ids) - {batch.id for batch in chosen}):
            raise ReviewError(
                f"batch {missing[0]} has no labels by {named.name}: nightlabel score --batch {missing[0]}"
            )
    else:
        labelled = [batch for batch in labelled if title in (None, batch.manifest["model"])]
        if not labelled:
            raise ReviewError(f"nothing is labelled by {named.name} yet: nightlabel score")
        nights = [batch for batch in labelled if not _is_trained_on(named, batch)]
        chosen = [max(nights or labelled, key=lambda batch: (batch.manifest.get("created", ""), batch.id))]
    versions = sorted({batch.manifest["model"] for batch in chosen})
    if len(versions) > 1:
        raise ReviewError(f"these batches are labelled by {' and '.join(versions)}: export those of each by themselves")
    if title not in (None, versions[0]):
        raise ReviewError(f"batch {chosen[0].id} is labelled by {versions[0]}, not by {title}: nightlabel score")
    try:
        return registry.find(versions[0]), chosen
    except ModelError as error:
        raise ReviewError(
            f"the labels are by {versions[0]}, which is gone or damaged; label again: nightlabel score"
        ) from error


def _is_trained_on(bundle: Bundle, labels: LabelledBatch) -> bool:
    return (labels.id, labels.manifest["documents_fingerprint"]) in bundle.training_batches


def _night_rows(
    workspace: Workspace,
    bundle: Bundle,
    batches: Sequence[LabelledBatch],
    rows: int,
    exported: set[bytes],
    trained_batches: Sequence[str],
) -> list[dict[str, Any]]:
    """Return the sample and the doubtful rows, the sample first, as in `REVIEW_REQUESTS` without model and time."""
    pool, answers = review_pool(workspace, batches, bundle.thresholds), read_answers(workspace)
    as_doubtful = pc.and_(
        pc.equal(answers["model"], bundle.title), pc.equal(answers["why"], "doubtful")
    ).combine_chunks()
    hashes = answers["content_hash"].combine_chunks()
    taken = pool.among(pa.array(sorted(exported), pa.binary(16)))
    trained_parts = [number for number, (batch, _) in enumerate(pool.parts) if batch.id in trained_batches]
    # A text that was reviewed as doubtful stays in the sample: without it the sample would look better.
    doubtful_only = pool.among(hashes.filter(as_doubtful)) & ~pool.among(hashes.filter(pc.invert(as_doubtful)))
    reviewed = pool.among(hashes)
    sampled, doubtful = select_for_review(
        pool,
        rows,
        no_sample=taken | np.isin(pool.part, trained_parts) | (reviewed & ~doubtful_only),
        no_doubt=taken | reviewed,
    )
    return [
        {**row, "why": why}
        for why, chosen in (("sample", sampled), ("doubtful", doubtful))
        for row in read_rows(workspace, pool, chosen)
    ]


def _cells(request: dict[str, Any]) -> list[str]:
    confidence = "" if request["confidence"] is None else f"{request['confidence']:.3f}"
    return [
        guard(request["doc_id"]),
        guard(request["batch"]),
        request["why"],
        text_to_cell(request["text"]),
        label_to_cell(request["label"], multi_label=request["several"]),
        confidence,
        guard(request["second"]),
        "",
        "",
    ]
