"""The token ids and targets of one split, for training and evaluation."""

from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pyarrow as pa

from pipeline.dataset.minibatches import TokenLists


@dataclass(frozen=True)
class TokenSet:
    """One split, ready for training or evaluation.

    Attributes:
        doc_ids: strings [texts].
        label_ids: int32 [texts], the label set of each text; -1 for soft labels only.
        tokens: the token ids of the texts, those from the size of the vocabulary on of unknown words.
        label_sets: bool [label sets, classes]; in a single-label task a set is a class.
        soft_labels: float32 [texts, classes], the probabilities of a teacher, NaN where it has none; None without one.
        groups: int64 [texts], equal for texts of one group; None if the documents have no groups.
        unknown_words: strings, the distinct unknown words in the order of their ids.
    """

    doc_ids: pa.Array
    label_ids: np.ndarray
    tokens: TokenLists
    label_sets: np.ndarray
    soft_labels: np.ndarray | None = None
    groups: np.ndarray | None = None
    unknown_words: pa.StringArray = field(default_factory=partial(pa.array, [], pa.string()))

    def __len__(self) -> int:
        return len(self.label_ids)

    @property
    def classes(self) -> int:
        return int(self.label_sets.shape[1])

    def targets(self, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Return float32 [rows, classes]: 1 for each class of a text, 0 everywhere for a text without a label."""
        label_ids = self.label_ids[rows]
        targets = self.label_sets[label_ids].astype(np.float32)
        targets[label_ids < 0] = 0.0
        return targets

    def joined(self, other: "TokenSet", vocabulary_size: int) -> "TokenSet":
        """Return these texts and others, with soft labels if these have them."""
        values = other.tokens.values
        # The unknown words of the others get ids after those of these; a word may have two.
        values = np.where(values >= vocabulary_size, values + np.int32(len(self.unknown_words)), values)
        starts = np.concatenate([self.tokens.starts, other.tokens.starts + len(self.tokens.values)])
        soft_labels = self.soft_labels
        if soft_labels is not None:
            none = np.full((len(other), self.classes), np.nan, np.float32)
            soft_labels = np.concatenate([soft_labels, none if other.soft_labels is None else other.soft_labels])
        return TokenSet(
            doc_ids=pa.chunked_array([*_chunks(self.doc_ids), *_chunks(other.doc_ids)], pa.string()),
            label_ids=np.concatenate([self.label_ids, other.label_ids]),
            tokens=TokenLists(
                np.concatenate([self.tokens.values, values]),
                starts,
                np.concatenate([self.tokens.lengths, other.tokens.lengths]),
            ),
            label_sets=self.label_sets,
            soft_labels=soft_labels,
            groups=None if self.groups is None or other.groups is None else np.concatenate([self.groups, other.groups]),
            unknown_words=pa.concat_arrays([self.unknown_words, other.unknown_words]),
        )


def _chunks(column: pa.Array | pa.ChunkedArray) -> list[pa.Array]:
    return column.chunks if isinstance(column, pa.ChunkedArray) else [column]
