"""Rows for people to review, as a table for a spreadsheet; what was asked is kept, so that answers can be checked."""

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
from pipeline.review.label_errors import likely_label_errors
from pipeline.review.selection import ReviewPool, is_current, read_rows, review_pool, select_for_review
from pipeline.review.spreadsheet import guard, text_to_cell, write_sheet
from pipeline.scoring.labels import LabelledBatch, labelled_batches
from pipeline.workspace import Workspace

COLUMNS = ("doc_id", "batch", "why", "text", "label", "confidence", "second", "correct_label", "note")
SUSPICIOUS_SHARE = 1 / 3


@dataclass(frozen=True)
class ReviewExport:
    """What was given out for review.

    Attributes:
        path: the file.
        model: name@version.
        batches: whose labels are asked about.
        reasons: rows by why they were chosen.
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
    """Write the rows that are worth a person's minute.

    Half or two thirds are those that the model is least sure of, the others a sample of those that it is sure of;
    different texts only, and none that was reviewed before. With `suspicious` a third of all are training labels.

    Args:
        workspace: where the labels lie.
        path: where to write.
        batch_ids: labelled batches; the newest night if none are named.
        model: name, or name@version; may be left out if there is one only.
        rows: how many at most.
        suspicious: ask about training labels that look wrong, too.
        replace: overwrite what is there.
        delimiter: between cells.

    Raises:
        ReviewError: nothing is labelled, nothing is left to review, or the file is there already.
        ModelError: no such model.
    """
    if path.exists() and not replace:
        raise ReviewError(f"{path} is there already, perhaps with answers; give another --out, or --replace")
    if rows < 1:
        raise ReviewError(f"--rows {rows}: at least 1")
    bundle, batches = _labels(workspace, batch_ids, model)
    asked = _suspicious(workspace, bundle, max(1, round(rows * SUSPICIOUS_SHARE))) if suspicious else []
    texts = review_pool(workspace, batches, bundle.thresholds)
    learnt = [batch.id for batch in batches if _learnt(bundle, batch)]
    asked += _night_rows(workspace, bundle, texts, rows - len(asked), {row["content_hash"] for row in asked}, learnt)
    if not asked:
        raise ReviewError(
            f"nothing is left to review in {', '.join(batch.id for batch in batches)}; name another --batch"
        )
    asked = [{**row, "asked_at": utc_now(), "model": bundle.title} for row in asked]
    write_review_requests(workspace, asked)
    write_sheet(path, COLUMNS, (_cells(row) for row in asked), delimiter)
    reasons = dict(sorted(Counter(row["why"] for row in asked).items()))
    return ReviewExport(path, bundle.title, [batch.id for batch in batches], reasons, learnt)


def _labels(workspace: Workspace, batch_ids: Sequence[str], model: str | None) -> tuple[Bundle, list[LabelledBatch]]:
    """Return the labels to ask about, and the version of the model that gave them."""
    registry = Registry(workspace)
    named = registry.find(model)
    wanted = named.title if model and "@" in model else None
    there = [one for one in labelled_batches(workspace, named.name) if is_current(workspace, one)]
    if batch_ids:
        for batch_id in batch_ids:
            workspace.batch(batch_id)
        chosen = [one for one in there if one.id in batch_ids]
        if missing := sorted(set(batch_ids) - {one.id for one in chosen}):
            raise ReviewError(
                f"batch {missing[0]} has no labels by {named.name}: nightlabel score --batch {missing[0]}"
            )
    else:
        chosen = _newest(named, [one for one in there if wanted in (None, one.manifest["model"])])
    versions = sorted({one.manifest["model"] for one in chosen})
    if len(versions) > 1:
        raise ReviewError(f"these batches are labelled by {' and '.join(versions)}: export those of each by themselves")
    if wanted not in (None, versions[0]):
        raise ReviewError(f"batch {chosen[0].id} is labelled by {versions[0]}, not by {wanted}: nightlabel score")
    return _bundle(registry, versions[0]), chosen


def _bundle(registry: Registry, title: str) -> Bundle:
    try:
        return registry.find(title)
    except ModelError as error:
        raise ReviewError(
            f"the labels are by {title}, which is gone or damaged; label again: nightlabel score"
        ) from error


def _newest(bundle: Bundle, there: Sequence[LabelledBatch]) -> list[LabelledBatch]:
    """Return the newest night, or where there is none the newest labels."""
    if not there:
        raise ReviewError(f"nothing is labelled by {bundle.name} yet: nightlabel score")
    nights = [one for one in there if not _learnt(bundle, one)]
    return [max(nights or there, key=lambda one: (one.manifest.get("created", ""), one.id))]


def _learnt(bundle: Bundle, labels: LabelledBatch) -> bool:
    return (labels.id, labels.manifest["documents_fingerprint"]) in bundle.training_batches


def _night_rows(
    workspace: Workspace,
    bundle: Bundle,
    texts: ReviewPool,
    rows: int,
    taken: set[bytes],
    learnt: Sequence[str],
) -> list[dict[str, Any]]:
    """Return the sample and the doubtful rows, the sample first, as in `ASKED` but for who asked and when."""
    answers = read_answers(workspace)
    same = pc.and_(pc.equal(answers["model"], bundle.title), pc.equal(answers["why"], "doubtful"))
    reviewed = texts.among(_hashes(answers))
    given = texts.among(pa.array(sorted(taken), pa.binary(16)))
    known = np.isin(texts.part, [number for number, (batch, _) in enumerate(texts.parts) if batch.id in learnt])
    # What was answered as doubtful belongs to what is sampled all the same: without it the sample would look better.
    again = texts.among(_hashes(answers.filter(same))) & ~texts.among(_hashes(answers.filter(pc.invert(same))))
    sampled, doubtful = select_for_review(
        texts, rows, no_sample=given | known | (reviewed & ~again), no_doubt=given | reviewed
    )
    return [
        {**row, "why": why}
        for why, chosen in (("sample", sampled), ("doubtful", doubtful))
        for row in read_rows(workspace, texts, chosen)
    ]


def _hashes(answers: pa.Table) -> pa.Array:
    return answers["content_hash"].combine_chunks()


def _suspicious(workspace: Workspace, bundle: Bundle, rows: int) -> list[dict[str, Any]]:
    reviewed = set(read_answers(workspace)["content_hash"].to_pylist())
    found = (row for row in likely_label_errors(workspace, bundle) if row["content_hash"] not in reviewed)
    return [row for row, _ in zip(found, range(rows), strict=False)]


def _cells(row: dict[str, Any]) -> list[str]:
    confidence = "" if row["confidence"] is None else f"{row['confidence']:.3f}"
    return [
        guard(row["doc_id"]),
        guard(row["batch"]),
        row["why"],
        text_to_cell(row["text"]),
        label_to_cell(row["label"], several=row["several"]),
        confidence,
        guard(row["second"]),
        "",
        "",
    ]
