"""A teacher made by `nightlabel teach`: soft labels and word vectors in a folder, checked before a training uses them.

soft_labels.parquet   doc_id and a column of probabilities for each class
word_vectors.txt.gz   a word and its numbers on each line
texts.parquet         id and hash of each text with soft labels, or fitted on
manifest.json         written last: encoder, settings, counts, scores, and the digest of each file
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.dataset.corpus import TEST, VALIDATION, Corpus, read_columns
from pipeline.dataset.soft_labels import SoftLabels, read_soft_labels
from pipeline.dataset.tokenizer import RESERVED
from pipeline.dataset.word_vectors import WordVectors, read_vectors
from pipeline.errors import InputError, TrainingDataError
from pipeline.files import verified_manifest
from pipeline.schemas import TEACHER_TEXTS
from pipeline.workspace import NAME_PATTERN, Workspace

if TYPE_CHECKING:
    from torch import Tensor

SOFT_LABELS, WORD_VECTORS, TEXTS = "soft_labels.parquet", "word_vectors.txt.gz", "texts.parquet"
REMEDY = "run nightlabel teach again"
LISTED = 5  # classes in an error

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Teacher:
    """A committed teacher whose files have been verified."""

    path: Path
    manifest: dict[str, Any]

    @classmethod
    def load(cls, path: Path) -> Teacher:
        """Open a teacher's folder.

        Raises:
            ModelError: a file is missing or is not the one that was written.
        """
        return cls(path, verified_manifest(path, damaged=REMEDY, changed=REMEDY))

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.path.resolve().name

    def soft_labels(self, corpus: Corpus) -> SoftLabels:
        """Return the soft labels of those documents whose text is the same as when it was made.

        Args:
            corpus: the labelled documents and their splits.

        Raises:
            TrainingDataError: the documents have other classes, or the teacher was fitted on texts that are in the
                validation or test split now, or it knows none of the documents.
        """
        self._check_classes(corpus)
        documents = read_columns(corpus.batches, ["doc_id", "content_hash"])
        texts = pq.read_table(self.path / TEXTS, schema=TEACHER_TEXTS)
        self._check_splits(corpus, documents["content_hash"], texts)
        soft_labels = read_soft_labels(self.path / SOFT_LABELS, corpus.labels, multi_label=corpus.multi_label)
        stale = _changed_ids(documents, texts)
        current = pc.and_(
            pc.is_in(soft_labels.doc_ids, value_set=documents["doc_id"].combine_chunks()),
            pc.invert(pc.is_in(soft_labels.doc_ids, value_set=stale)),
        )
        kept = pc.sum(current).as_py()
        if not kept:
            raise TrainingDataError(f"teacher {self.name}: none of its texts is a document here; {REMEDY}")
        if kept < len(current):
            logger.warning(
                "teacher %s: %s of %s texts have changed or are gone, and are not used; %s",
                self.name,
                f"{len(current) - kept:,}",
                f"{len(current):,}",
                REMEDY,
            )
        return replace(
            soft_labels,
            doc_ids=soft_labels.doc_ids.filter(current),
            probabilities=soft_labels.probabilities[current.to_numpy(zero_copy_only=False)],
            source=f"{self.name}/{SOFT_LABELS}",
        )

    def word_vectors(self, vocabulary: Sequence[str], size: int) -> WordVectors:
        """Return the vectors of a vocabulary's words.

        Args:
            vocabulary: the words to look for.
            size: numbers in each vector.

        Raises:
            InputError: the vectors have another size, or no word is in the vocabulary.
        """
        vectors = read_vectors(self.path / WORD_VECTORS, vocabulary, size)
        return replace(vectors, source=f"{self.name}/{WORD_VECTORS}")

    def _check_classes(self, corpus: Corpus) -> None:
        earlier, classes = set(self.manifest["classes"]), set(corpus.labels)
        if earlier == classes and self.manifest["multi_label"] == corpus.multi_label:
            return
        changes = [f"{name!r} is new" for name in sorted(classes - earlier)]
        changes += [f"{name!r} is gone" for name in sorted(earlier - classes)]
        changes = changes or ["documents can have several labels" if corpus.multi_label else "each has one label now"]
        listed = ", ".join([*changes[:LISTED], *(["..."] if len(changes) > LISTED else [])])
        raise TrainingDataError(f"teacher {self.name}: the classes have changed since ({listed}); {REMEDY}")

    def _check_splits(self, corpus: Corpus, hashes: pa.ChunkedArray, texts: pa.Table) -> None:
        held_out = pa.array((corpus.splits == TEST) | (corpus.splits == VALIDATION))
        fitted = texts["content_hash"].filter(texts["fitted"]).combine_chunks()
        count = pc.sum(pc.is_in(pc.unique(hashes.filter(held_out)), value_set=fitted)).as_py()
        if count:
            raise TrainingDataError(
                f"teacher {self.name}: it was fitted on {count:,} texts that are in the validation or test split now; "
                f"{REMEDY}"
            )


def _changed_ids(documents: pa.Table, texts: pa.Table) -> pa.Array:
    """Return the ids of those documents whose text is not the one that had this id when the teacher was made."""
    positions = pc.index_in(documents["doc_id"], value_set=texts["doc_id"].combine_chunks())
    earlier = texts["content_hash"].combine_chunks().take(positions.combine_chunks())
    changed = pc.fill_null(pc.not_equal(documents["content_hash"].combine_chunks(), earlier), False)
    return pc.unique(documents["doc_id"].filter(changed))


def document_vectors(word_vectors: WordVectors) -> Tensor:
    """Return word vectors by token id, float32 [vocabulary, size], 0 for padding and words without a vector."""
    import torch

    vectors = np.zeros((word_vectors.vocabulary_size + RESERVED, word_vectors.values.shape[1]), dtype=np.float32)
    vectors[word_vectors.vocabulary_indices + RESERVED] = word_vectors.values
    return torch.from_numpy(vectors)


def find_teacher(workspace: Workspace, spec: str) -> Teacher | None:
    """Return the teacher that a name or a folder stands for; None if it is a file of soft labels.

    Args:
        workspace: holds the teachers.
        spec: a file, a name in the workspace, or a folder.

    Raises:
        InputError: there is no such file and no such teacher.
        ModelError: a file of the teacher is missing or is not the one that was written.
    """
    if Path(spec).is_file():
        return None
    if NAME_PATTERN.fullmatch(spec) and (workspace.teacher_dir(spec) / "manifest.json").is_file():
        return Teacher.load(workspace.teacher_dir(spec))
    if (Path(spec) / "manifest.json").is_file():
        return Teacher.load(Path(spec))
    names = ", ".join(path.parent.name for path in workspace.teacher_manifests()) or "none yet: nightlabel teach"
    if Path(spec).is_dir():
        raise InputError(f"--teacher {spec}: no teacher in this folder: manifest.json is missing (there: {names})")
    raise InputError(f"--teacher {spec}: there is no such file, and no teacher of this name (there: {names})")
