"""Which labelled rows are worth a person's minute: those that a model is least sure of, and a sample of the others."""

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

SAMPLE_SHARE = 1 / 3  # of the rows that are given out...
FEWEST_SAMPLED = 30  # ...but so many where they are there, and never more than half


@dataclass(frozen=True)
class ReviewPool:
    """The different labelled texts of some batches.

    Attributes:
        parts: the labels part of each part number.
        part: int32 [texts].
        row: int64 [texts], in its part.
        margin: float32 [texts], how far the label is from being another one; 0 to 1.
        second: int32 [texts], the class that it would be then.
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
        """Return which texts are among some, bool [texts]."""
        found: NDArray[np.bool_] = pc.is_in(self.hashes, value_set=hashes).to_numpy(zero_copy_only=False)
        return found


def review_pool(
    workspace: Workspace, batches: Sequence[LabelledBatch], thresholds: NDArray[np.float32] | None
) -> ReviewPool:
    """Return the different texts that a model has labelled in some batches, empty ones left out.

    Args:
        workspace: where the documents lie.
        batches: labels of them, all by the same model.
        thresholds: of a model that gives several labels, float32 [classes].
    """
    parts = [(batch, path) for batch in batches for path in batch.parts]
    found = [_of_part(workspace, number, *part, thresholds) for number, part in enumerate(parts)]
    hashes = pa.concat_arrays([one[-1] for one in found]) if found else pa.array([], pa.binary(16))
    _, first = np.unique(hashes.dictionary_encode().indices.to_numpy(), return_index=True)
    first.sort()
    columns = [np.concatenate(column)[first] for column in list(zip(*found, strict=True))[:-1]]
    part, row, margin, second, confident = columns
    return ReviewPool(parts, part, row, margin, second, confident, hashes.take(pa.array(first)))


def _of_part(
    workspace: Workspace, number: int, batch: LabelledBatch, path: Path, thresholds: NDArray[np.float32] | None
) -> tuple[Any, ...]:
    labels = pq.read_table(path, columns=["scores", "status"], partitioning=None)
    documents = workspace.documents_dir(batch.id) / path.name
    hashes = pq.read_table(documents, columns=["content_hash"], partitioning=None)["content_hash"]
    non_empty = pc.is_valid(labels["scores"]).to_numpy().astype(bool)
    labels, mask = labels.filter(pa.array(non_empty)), pa.array(non_empty)
    scores = labels["scores"].combine_chunks().flatten().to_numpy().reshape(-1, len(batch.manifest["classes"]))
    margin, second = margins(scores, thresholds)
    confident = pc.equal(labels["status"], "scored").to_numpy().astype(bool)
    place = np.full(len(labels), number, dtype=np.int32)
    return place, np.flatnonzero(non_empty), margin, second, confident, hashes.combine_chunks().filter(mask)


def margins(
    scores: NDArray[np.float32], thresholds: NDArray[np.float32] | None = None
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Return how far each answer is from another one, float32 [texts], and the class that would make it, int32 [texts].

    With one label each that is the best probability less the second best; with several the least distance of a
    probability from its threshold.

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
    texts: ReviewPool,
    rows: int,
    *,
    no_sample: NDArray[np.bool_],
    no_doubt: NDArray[np.bool_],
    seed: int = 0,
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return which texts to give out as a sample, and which because the model is least sure of them.

    The sample is drawn first, from all confident texts alike, so that its precision is theirs. It is drawn in an order
    that the seed alone decides: texts that were answered are followed by the next.

    Args:
        texts: to choose from.
        rows: how many together; fewer where there are no more.
        no_sample: bool [texts], not to be sampled (again).
        no_doubt: bool [texts], not to be given out as doubtful.
        seed: for the sample.
    """
    order = np.random.default_rng(seed).permutation(len(texts.margin))
    sampled = order[(texts.confident & ~no_sample)[order]][: sample_size(rows)]
    rest = ~no_doubt
    rest[sampled] = False
    ranked = np.flatnonzero(rest)
    doubtful = ranked[np.argsort(texts.margin[ranked], kind="stable")][: rows - len(sampled)]
    return sampled, doubtful


def sample_size(rows: int) -> int:
    """Return how many of some rows are for the sample: a third, but 30 where that is no more than half."""
    return min(max(round(rows * SAMPLE_SHARE), FEWEST_SAMPLED), rows // 2)


def read_rows(workspace: Workspace, texts: ReviewPool, chosen: NDArray[np.intp]) -> Iterator[dict[str, Any]]:
    """Yield some texts with their ids and labels, in their order, as in `ASKED` but for why, who and when."""
    found: dict[int, dict[str, Any]] = {}
    for number in np.unique(texts.part[chosen]):
        batch, path = texts.parts[number]
        own = chosen[texts.part[chosen] == number]
        rows = pa.array(texts.row[own])
        labels = _take(path, rows, ["label", "labels", "confidence", "status"])
        documents = _take(workspace.documents_dir(batch.id) / path.name, rows, ["doc_id", "text", "content_hash"])
        for place, label, document in zip(own.tolist(), labels, documents, strict=True):
            second = batch.manifest["classes"][texts.second[place]]
            found[place] = {**label, **document, **_label(label), "batch": batch.id, "second": second}
    for place in chosen.tolist():
        yield found[place]


def _take(path: Path, rows: pa.Array, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Return some rows of a part, those of the columns that it has."""
    there = [name for name in columns if name in pq.read_schema(path).names]
    taken: list[dict[str, Any]] = pq.read_table(path, columns=there, partitioning=None).take(rows).to_pylist()
    return taken


def _label(row: dict[str, Any]) -> dict[str, Any]:
    several = row.get("labels") is not None
    return {"several": several, "label": join_labels(row["labels"]) if several else row["label"]}


def is_current(workspace: Workspace, labels: LabelledBatch) -> bool:
    """Return whether labels are whole, and of the documents as they are now."""
    documents = {batch.id: batch for batch in workspace.batches()}
    return labels.id in documents and is_labelled_at(labels.path, documents[labels.id])
