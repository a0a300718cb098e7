"""What share of last night's labels another version would give differently."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.metrics.selective import SelectivePolicy
from pipeline.promotion.version import ModelVersion, PredictedLabels, predict_labels
from pipeline.scoring.labels import labelled_batches
from pipeline.workspace import Batch, Workspace

MOST_ROWS = 5_000
LISTED = 10
EXAMPLES = 5


@dataclass(frozen=True)
class LabelChange:
    """A change of label, and how many rows of the sample change so."""

    before: str
    after: str
    rows: int


@dataclass(frozen=True)
class Example:
    """A row whose label changes; `text` is empty where it is read from a bundle, which keeps no texts."""

    doc_id: str
    before: str
    after: str
    sure_before: float
    sure_after: float
    text: str = ""


@dataclass(frozen=True)
class Churn:
    """The labels of a night that would be others, in a sample.

    Attributes:
        batch: the night.
        documents: it has.
        rows: of them that were labelled by both, evenly spread.
        changed: rows whose label is another one.
        most: the most frequent changes.
        examples: some rows that change, first those of which both versions are sure.
    """

    batch: str
    documents: int
    rows: int
    changed: int
    most: list[LabelChange]
    examples: list[Example]

    @property
    def share(self) -> float:
        return self.changed / self.rows


def prediction_churn(workspace: Workspace, champion: ModelVersion, challenger: ModelVersion) -> Churn | None:
    """Label a sample of the newest night that neither version learnt from; None where there is no such night."""
    batch = newest_night(workspace, champion, challenger)
    if batch is None or not batch.rows:
        return None
    doc_ids, texts = sample(batch)
    before, after = predict_labels(champion, [texts]), predict_labels(challenger, [texts])
    was, becomes = before.names(champion.labels), after.names(challenger.labels)
    changed = np.flatnonzero(was != becomes)
    pairs = Counter(zip(was[changed], becomes[changed], strict=True))
    listed = sorted(pairs.items(), key=lambda one: (-one[1], one[0]))[:LISTED]
    return Churn(
        batch=batch.id,
        documents=batch.rows,
        rows=len(texts),
        changed=len(changed),
        most=[LabelChange(*pair, rows) for pair, rows in listed],
        examples=[
            Example(
                doc_id=doc_ids[row].as_py(),
                before=was[row],
                after=becomes[row],
                sure_before=round(float(before.confidence[row]), 4),
                sure_after=round(float(after.confidence[row]), 4),
                text=texts[row].as_py(),
            )
            for row in _surest(changed, before, after)
        ],
    )


def _surest(rows: np.ndarray, before: PredictedLabels, after: PredictedLabels) -> list[int]:
    """Return some rows, those first of which the less sure version is surest."""
    sure = np.minimum(before.confidence[rows], after.confidence[rows])
    chosen: list[int] = rows[np.argsort(-sure, kind="stable")][:EXAMPLES].tolist()
    return chosen


def newest_night(workspace: Workspace, *contenders: ModelVersion) -> Batch | None:
    """Return the documents that were labelled last, among those that none of the versions learnt from."""
    documents = {batch.id: batch for batch in workspace.batches()}
    nights = [night for name in sorted({one.name for one in contenders}) for night in labelled_batches(workspace, name)]
    nights.sort(key=lambda night: (night.manifest.get("created", ""), night.id), reverse=True)
    learnt = frozenset[str]().union(*(one.learnt for one in contenders))
    return next((documents[night.id] for night in nights if night.id in documents and night.id not in learnt), None)


def sample(batch: Batch, most: int = MOST_ROWS) -> tuple[pa.Array, pa.Array]:
    """Return ids and texts of at most so many documents, spread evenly over a batch."""
    wanted = np.arange(min(most, batch.rows)) * batch.rows // min(most, batch.rows)
    tables, start = [], 0
    for part, path in zip(batch.manifest["parts"], batch.parts, strict=True):
        rows = wanted[(wanted >= start) & (wanted < start + part["rows"])] - start
        start += part["rows"]
        if len(rows):
            tables.append(pq.read_table(path, columns=["doc_id", "text"], partitioning=None).take(pa.array(rows)))
    table = pa.concat_tables(tables).combine_chunks()
    return table["doc_id"].chunk(0), table["text"].chunk(0)


def expected_coverage(
    workspace: Workspace, version: ModelVersion, policies: Mapping[float, SelectivePolicy]
) -> dict[str, Any] | None:
    """Return what share of last night's texts each promise of a new version would label; None without such a night.

    Returns:
        `batch`, `rows` (with text, of a sample spread evenly over it), and `shares` by target, as text for JSON.
    """
    batch = newest_night(workspace, version)
    if batch is None or not batch.rows:
        return None
    _, texts = sample(batch)
    answers = predict_labels(version, [texts])
    rows = int(answers.non_empty.sum())
    if not rows:
        return None
    labelled = {
        target: np.count_nonzero(answers.non_empty & (answers.confidence >= policy.thresholds[answers.likeliest]))
        for target, policy in policies.items()
    }
    return {
        "batch": batch.id,
        "rows": rows,
        "shares": {f"{target:g}": count / rows for target, count in labelled.items()},
    }
