"""Prediction churn: the share of last night's labels that another version changes; and expected coverage."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from pipeline.metrics.selective import SelectivePolicy
from pipeline.promotion.version import ModelVersion, predict_labels
from pipeline.scoring.labels import labelled_batches
from pipeline.workspace import Batch, Workspace

SAMPLE_ROWS = 5_000
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
    """A row whose label changes; `text` is empty when read from a bundle, which stores no texts."""

    doc_id: str
    before: str
    after: str
    confidence_before: Annotated[float, Field(alias="sure_before")]
    confidence_after: Annotated[float, Field(alias="sure_after")]
    text: str = ""


@dataclass(frozen=True)
class Churn:
    """Prediction churn of two versions on a sample of one night.

    Attributes:
        batch: the night.
        documents: rows of the night.
        rows: sampled rows, spread evenly over the night; both versions label them.
        changed: sampled rows whose label differs.
        most_frequent: the most frequent label changes.
        examples: some changed rows, those first of which both versions are most confident.
    """

    batch: str
    documents: int
    rows: int
    changed: int
    most_frequent: Annotated[list[LabelChange], Field(alias="most")]
    examples: list[Example]

    @property
    def share(self) -> float:
        return self.changed / self.rows


def prediction_churn(workspace: Workspace, champion: ModelVersion, challenger: ModelVersion) -> Churn | None:
    """Label a sample of the newest night that neither version was trained on; None without such a night."""
    batch = newest_night(workspace, champion, challenger)
    if batch is None or not batch.rows:
        return None
    doc_ids, texts = sample(batch)
    before, after = predict_labels(champion, [texts]), predict_labels(challenger, [texts])
    labels_before, labels_after = before.names(champion.labels), after.names(challenger.labels)
    changed = np.flatnonzero(labels_before != labels_after)
    pairs = Counter(zip(labels_before[changed], labels_after[changed], strict=True))
    by_frequency = sorted(pairs.items(), key=lambda pair: (-pair[1], pair[0]))
    lower_confidence = np.minimum(before.confidence[changed], after.confidence[changed])
    return Churn(
        batch=batch.id,
        documents=batch.rows,
        rows=len(texts),
        changed=len(changed),
        most_frequent=[LabelChange(*pair, rows) for pair, rows in by_frequency[:LISTED]],
        examples=[
            Example(
                doc_id=doc_ids[row].as_py(),
                before=labels_before[row],
                after=labels_after[row],
                confidence_before=round(float(before.confidence[row]), 4),
                confidence_after=round(float(after.confidence[row]), 4),
                text=texts[row].as_py(),
            )
            for row in changed[np.argsort(-lower_confidence, kind="stable")][:EXAMPLES].tolist()
        ],
    )


def newest_night(workspace: Workspace, *versions: ModelVersion) -> Batch | None:
    """Return the documents that were labelled last, among those that none of the versions was trained on."""
    documents = {batch.id: batch for batch in workspace.batches()}
    names = sorted({version.name for version in versions})
    nights = [night for name in names for night in labelled_batches(workspace, name)]
    nights.sort(key=lambda night: (night.manifest.get("created", ""), night.id), reverse=True)
    trained = frozenset[str]().union(*(version.trained_batches for version in versions))
    return next((documents[night.id] for night in nights if night.id in documents and night.id not in trained), None)


def sample(batch: Batch, rows: int = SAMPLE_ROWS) -> tuple[pa.Array, pa.Array]:
    """Return ids and texts of at most so many documents, spread evenly over a batch."""
    size = min(rows, batch.rows)
    positions = np.arange(size) * batch.rows // size
    tables, start = [], 0
    for part, path in zip(batch.manifest["parts"], batch.parts, strict=True):
        in_part = positions[(positions >= start) & (positions < start + part["rows"])] - start
        start += part["rows"]
        if len(in_part):
            tables.append(pq.read_table(path, columns=["doc_id", "text"], partitioning=None).take(pa.array(in_part)))
    table = pa.concat_tables(tables).combine_chunks()
    return table["doc_id"].chunk(0), table["text"].chunk(0)


def expected_coverage(
    workspace: Workspace, version: ModelVersion, policies: Mapping[float, SelectivePolicy]
) -> dict[str, Any] | None:
    """Return the coverage of each selective policy on a sample of last night; None without such a night.

    Returns:
        `batch`, `rows` (sampled rows with text), and `shares` by target precision, as text for JSON.
    """
    batch = newest_night(workspace, version)
    if batch is None or not batch.rows:
        return None
    _, texts = sample(batch)
    predicted = predict_labels(version, [texts])
    rows = int(predicted.non_empty.sum())
    if not rows:
        return None
    labelled = {
        target: np.count_nonzero(predicted.non_empty & (predicted.confidence >= policy.thresholds[predicted.likeliest]))
        for target, policy in policies.items()
    }
    return {
        "batch": batch.id,
        "rows": rows,
        "shares": {f"{target:g}": count / rows for target, count in labelled.items()},
    }
