"""Test texts that are fair to two versions: neither learnt from them, nor was set up by them.

They are the test split of the second version, less what the first was trained or validated on. Splits go by the
text, so with the same settings nothing is to be left out; a version that was trained with other shares, on a given
split, or on a stratified one may have learnt from what is a test text to the other.
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
        left_out: test texts of the second version that the first learnt from.
        notes: sentences about what could not be known.
    """

    columns: list[pa.Array]
    targets: NDArray[np.bool_]
    left_out: int
    notes: list[str]


def held_out(workspace: Workspace, corpus: Corpus, other: Bundle, labels: list[str]) -> SharedTestSet:
    """Return the test texts of a corpus that another version did not learn from.

    Args:
        workspace: where the documents that the other version learnt from lie.
        corpus: has the test texts.
        other: the other version.
        labels: the classes of the targets; a text that has a class beside them is left out.
    """
    learnt, notes = _learnt(workspace, other)
    columns, targets, start, left_out = [], [np.empty((0, len(labels)), dtype=bool)], 0, 0
    hashes = _hashes(corpus, (TEST,))
    known, label_sets = _aligned(corpus, labels)
    for _, texts, label_ids in corpus.read(TEST):
        fresh = pc.invert(pc.is_in(hashes.slice(start, len(texts)), value_set=learnt)).to_numpy(zero_copy_only=False)
        start += len(texts)
        left_out += int((~fresh).sum())
        rows = np.flatnonzero(fresh & known[label_ids])
        columns.append(texts.take(pa.array(rows)))
        targets.append(label_sets[label_ids[rows]])
    return SharedTestSet(columns, np.concatenate(targets), left_out, notes)


def _aligned(corpus: Corpus, labels: list[str]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return of each label set whether all its classes are known, and bool [label sets, classes]."""
    places = {label: place for place, label in enumerate(labels)}
    foreign = np.array([label not in places for label in corpus.labels])
    label_sets = np.zeros((len(corpus.label_sets), len(labels)), dtype=bool)
    for number, label in enumerate(corpus.labels):
        if label in places:
            label_sets[:, places[label]] = corpus.label_sets[:, number]
    return np.logical_not(corpus.label_sets[:, foreign].any(axis=1)), label_sets


def corpus_of(workspace: Workspace, bundle: Bundle) -> Corpus:
    """Return the documents that a version was made from, divided as they were then.

    Raises:
        ModelError: none of its batches is there any more.
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


def _batches_of(workspace: Workspace, bundle: Bundle) -> tuple[list[Batch], list[str]]:
    """Return the batches that a version was made from, as far as they are there, and the ids of those that changed."""
    here = {batch.id: batch for batch in workspace.batches()}
    wanted = {one["batch"]: one["fingerprint"] for one in bundle.manifest.get("batches", [])}
    there = [here[batch_id] for batch_id in wanted if batch_id in here]
    same = {batch.id for batch in there if batch.manifest["fingerprint"] == wanted[batch.id]}
    return there, [batch_id for batch_id in wanted if batch_id not in same]


def _learnt(workspace: Workspace, bundle: Bundle) -> tuple[pa.Array, list[str]]:
    """Return the hashes of the texts that a version was trained or validated on, and what cannot be known of them."""
    try:
        hashes = _hashes(corpus_of(workspace, bundle), (TRAIN, VALIDATION))
    except (ModelError, TrainingDataError):
        hashes = pa.array([], pa.binary(16))
    return hashes, changed_batch_notes(workspace, bundle)


def changed_batch_notes(workspace: Workspace, bundle: Bundle) -> list[str]:
    """Return a sentence about the batches of a version that are no longer as they were, if there are any."""
    _, changed = _batches_of(workspace, bundle)
    if not changed:
        return []
    return [
        f"{bundle.title} learnt from batches that have changed or are gone since ({', '.join(changed)}): "
        "test texts that it knows from them cannot all be recognised."
    ]


def _hashes(corpus: Corpus, splits: tuple[int, ...]) -> pa.Array:
    """Return the content hashes of some splits, in the order of `Corpus.read`."""
    paths = [path for batch in corpus.batches for path in batch.parts]
    tables = [pq.read_table(path, columns=["content_hash"], partitioning=None) for path in paths]
    hashes = pa.concat_arrays(pa.concat_tables(tables)["content_hash"].chunks)
    return hashes.filter(pa.array(np.isin(corpus.splits, splits)))
