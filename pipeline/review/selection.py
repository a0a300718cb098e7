"""Selection of rows for review: those with the smallest margin, and a random sample of the confident ones."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.schemas import join_labels
from pipeline.scoring.labels import LabelledBatch, is_labelled_at
from pipeline.workspace import Workspace

SAMPLE_SHARE = 1 / 3  # of the exported rows...
FEWEST_SAMPLED = 30  # ...but at least so many, and never more than half


@dataclass(frozen=True)
class ReviewPool:
    """The different labelled texts of some batches.

    Attributes:
        parts: batch and file of each labels part.
        part: int32 [texts], an index into `parts`.
        row: int64 [texts], in its part.
        margin: float32 [texts], distance of the label from another one; 0 to 1.
        second: int32 [texts], the class of that other label.
        confident: bool [texts], whether the status is `scored`.
        hashes: content hashes [texts].
    """

    parts: Sequence[tuple[LabelledBatch, Path]]
    part: NDArray[np.int32]
    row: NDArray[np.int64]
    margin: NDArray[np.float32]
    second: NDArray[np.int32]
    confident: NDArray[np.bool_]
    hashes: pa.Array

    def among(self, hashes: pa.Array) -> NDArray[np.bool_]:
        """Return which texts have one of some content hashes, bool [texts]."""
        among: NDArray[np.bool_] = pc.is_in(self.hashes, value_set=hashes).to_numpy(zero_copy_only=False)
        return among


def review_pool(
    workspace: Workspace, batches: Sequence[LabelledBatch], thresholds: NDArray[np.float32] | None
) -> ReviewPool:
    """Return the different texts that a model has labelled in some batches, empty ones left out.

    Args:
        workspace: has the documents.
        batches: their labels, all by the same model.
        thresholds: of a model that gives several labels, float32 [classes].
    """
    parts = [(batch, path) for batch in batches for path in batch.parts]
    columns: list[tuple[Any, ...]] = []
    for number, (batch, path) in enumerate(parts):
        labels = pq.read_table(path, columns=["scores", "status"], partitioning=None)
        documents = workspace.documents_dir(batch.id) / path.name
        hashes = pq.read_table(documents, columns=["content_hash"], partitioning=None)["content_hash"]
        rows = np.flatnonzero(pc.is_valid(labels["scores"]).to_numpy())
        labels = labels.take(pa.array(rows))
        scores = labels["scores"].combine_chunks().flatten().to_numpy().reshape(-1, len(batch.manifest["classes"]))
        confident = pc.equal(labels["status"], "scored").to_numpy().astype(bool)
        part = np.full(len(rows), number, dtype=np.int32)
        columns.append(
            (part, rows, *margins(scores, thresholds), confident, hashes.combine_chunks().take(pa.array(rows)))
        )
    *arrays, chunks = zip(*columns, strict=True)
    hashes = pa.concat_arrays(chunks)
    _, first = np.unique(hashes.dictionary_encode().indices.to_numpy(), return_index=True)
    first.sort()
    part, row, margin, second, confident = (np.concatenate(array)[first] for array in arrays)
    return ReviewPool(parts, part, row, margin, second, confident, hashes.take(pa.array(first)))


def margins(
    scores: NDArray[np.float32], thresholds: NDArray[np.float32] | None = None
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Return the margin of each label, float32 [texts], and the class of the next other label, int32 [texts].

    The margin is the best probability less the second best; multi-label, the least distance of a probability from its
    threshold.

    Args:
        scores: probabilities, float32 [texts, classes].
        thresholds: float32 [classes], where a document can have several labels.
    """
    if thresholds is not None:
        distances = np.abs(scores - thresholds)
        second = distances.argmin(axis=1)
        return distances[np.arange(len(scores)), second], second.astype(np.int32)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :2]
    best = np.take_along_axis(scores, order, axis=1)
    return best[:, 0] - best[:, -1], order[:, -1].astype(np.int32)


def select_for_review(
    pool: ReviewPool,
    rows: int,
    *,
    no_sample: NDArray[np.bool_],
    no_doubt: NDArray[np.bool_],
    seed: int = 0,
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the texts to export as a random sample, and those to export as doubtful.

    The sample is drawn first, uniformly from all confident texts, so that its precision is theirs. The seed alone
    decides the order: texts that were reviewed are followed by the next.

    Args:
        pool: the texts.
        rows: how many together; fewer if there are no more.
        no_sample: bool [texts], not to be sampled (again).
        no_doubt: bool [texts], not to be exported as doubtful.
        seed: for the sample.
    """
    order = np.random.default_rng(seed).permutation(len(pool.margin))
    sampled = order[(pool.confident & ~no_sample)[order]][: sample_size(rows)]
    eligible = ~no_doubt
    eligible[sampled] = False
    ranked = np.flatnonzero(eligible)
    doubtful = ranked[np.argsort(pool.margin[ranked], kind="stable")][: rows - len(sampled)]
    return sampled, doubtful


def sample_size(rows: int) -> int:
    """Return how many of some rows are for the sample: a third or at least 30, but never more than half."""
    return min(max(round(rows * SAMPLE_SHARE), FEWEST_SAMPLED), rows // 2)


def read_rows(workspace: Workspace, pool: ReviewPool, chosen: NDArray[np.intp]) -> Iterator[dict[str, Any]]:
    """Yield some texts with their ids and labels, in their order, as in `REVIEW_REQUESTS` without reason and time."""
    rows_of: dict[int, dict[str, Any]] = {}
    for number in np.unique(pool.part[chosen]):
        batch, path = pool.parts[number]
        in_part = chosen[pool.part[chosen] == number]
        rows = pa.array(pool.row[in_part])
        labels = _take(path, rows, ["label", "labels", "confidence", "status"])
        documents = _take(workspace.documents_dir(batch.id) / path.name, rows, ["doc_id", "text", "content_hash"])
        for position, label, document in zip(in_part.tolist(), labels, documents, strict=True):
            multi_label = label.get("labels") is not None
            rows_of[position] = {
                **label,
                **document,
                "several": multi_label,
                "label": join_labels(label["labels"]) if multi_label else label["label"],
                "batch": batch.id,
                "second": batch.manifest["classes"][pool.second[position]],
            }
    for position in chosen.tolist():
        yield rows_of[position]


def _take(path: Path, rows: pa.Array, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Return some rows of a part, with those of the columns that it has."""
    present = [name for name in columns if name in pq.read_schema(path).names]
    taken: list[dict[str, Any]] = pq.read_table(path, columns=present, partitioning=None).take(rows).to_pylist()
    return taken


def is_current(workspace: Workspace, labels: LabelledBatch) -> bool:
    """Return whether labels are complete, and of the documents as they are now."""
    documents = {batch.id: batch for batch in workspace.batches()}
    return labels.id in documents and is_labelled_at(labels.path, documents[labels.id])
