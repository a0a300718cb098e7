"""Test texts that are fair to two versions: neither was trained or validated on them.

They are the test split of the second version without what the first was trained or validated on. The split is a
function of the text, so with equal settings nothing is left out; a version that was trained with other shares, a given
split or a stratified one may have been trained on a test text of the other.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.config import stored_recipe
from pipeline.dataset.corpus import TEST, TRAIN, VALIDATION, Corpus, select
from pipeline.dataset.reviews import read_reviewed_labels
from pipeline.errors import ModelError, TrainingDataError
from pipeline.models.bundle import Bundle
from pipeline.workspace import Batch, Workspace


@dataclass(frozen=True)
class SharedTestSet:
    """Texts that test two versions.

    Attributes:
        columns: the texts.
        targets: bool [texts, classes], the true classes.
        left_out: test texts of the second version that the first was trained or validated on.
        notes: sentences about what the workspace no longer shows.
    """

    columns: list[pa.Array]
    targets: NDArray[np.bool_]
    left_out: int
    notes: list[str]


def shared_test_set(workspace: Workspace, corpus: Corpus, first: Bundle, labels: list[str]) -> SharedTestSet:
    """Return the test texts of a corpus that another version was not trained or validated on.

    Args:
        workspace: has the documents that the other version was trained on.
        corpus: has the test texts.
        first: the other version.
        labels: the classes of the targets; a text with another class is left out.
    """
    try:
        trained_hashes = _hashes(corpus_of(workspace, first), (TRAIN, VALIDATION))
    except (ModelError, TrainingDataError):
        trained_hashes = pa.array([], pa.binary(16))
    columns_of = {label: number for number, label in enumerate(labels)}
    shared = [(number, columns_of[label]) for number, label in enumerate(corpus.labels) if label in columns_of]
    label_sets = np.zeros((len(corpus.label_sets), len(labels)), dtype=bool)
    for number, column in shared:
        label_sets[:, column] = corpus.label_sets[:, number]
    all_shared = label_sets.sum(axis=1) == corpus.label_sets.sum(axis=1)

    hashes = _hashes(corpus, (TEST,))
    columns, targets, start, left_out = [], [np.empty((0, len(labels)), dtype=bool)], 0, 0
    for _, texts, label_ids in corpus.read(TEST):
        trained = pc.is_in(hashes.slice(start, len(texts)), value_set=trained_hashes).to_numpy(zero_copy_only=False)
        start += len(texts)
        left_out += int(trained.sum())
        rows = np.flatnonzero(~trained & all_shared[label_ids])
        columns.append(texts.take(pa.array(rows)))
        targets.append(label_sets[label_ids[rows]])
    return SharedTestSet(columns, np.concatenate(targets), left_out, changed_batch_notes(workspace, first))


def corpus_of(workspace: Workspace, bundle: Bundle) -> Corpus:
    """Return the documents that a version was made from, split as they were then.

    Raises:
        ModelError: none of its batches is left.
    """
    batches, _ = _batches_of(workspace, bundle)
    if not batches:
        raise ModelError(f"{bundle.title}: none of the batches it was trained on is there any more")
    training = stored_recipe(bundle.settings["recipe"]).training
    return select(
        batches,
        method=training.split,
        validation_share=training.validation_share,
        test_share=training.test_share,
        reviewed=read_reviewed_labels(workspace),
    )


def changed_batch_notes(workspace: Workspace, bundle: Bundle) -> list[str]:
    """Return a sentence about the batches of a version that have changed or are gone, if there are any."""
    _, changed = _batches_of(workspace, bundle)
    if not changed:
        return []
    return [
        f"{bundle.title} was trained on batches that have changed or are gone since ({', '.join(changed)}): "
        "test texts that it knows from them cannot all be recognised."
    ]


def _batches_of(workspace: Workspace, bundle: Bundle) -> tuple[list[Batch], list[str]]:
    """Return the batches that a version was made from and that are left, and the ids of those that changed or went."""
    batches = {batch.id: batch for batch in workspace.batches()}
    fingerprints = {entry["batch"]: entry["fingerprint"] for entry in bundle.manifest.get("batches", [])}
    present = [batches[batch_id] for batch_id in fingerprints if batch_id in batches]
    unchanged = {batch.id for batch in present if batch.manifest["fingerprint"] == fingerprints[batch.id]}
    return present, [batch_id for batch_id in fingerprints if batch_id not in unchanged]


def _hashes(corpus: Corpus, splits: tuple[int, ...]) -> pa.Array:
    """Return the content hashes of some splits, in the order of `Corpus.read`."""
    paths = [path for batch in corpus.batches for path in batch.parts]
    tables = [pq.read_table(path, columns=["content_hash"], partitioning=None) for path in paths]
    hashes = pa.concat_arrays(pa.concat_tables(tables)["content_hash"].chunks)
    return hashes.filter(pa.array(np.isin(corpus.splits, splits)))
