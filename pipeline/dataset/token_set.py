"""The token ids and targets of one split, for training and evaluation."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.dataset.minibatches import TokenLists


@dataclass(frozen=True)
class TokenSet:
    """One split, ready for training or evaluation.

    Attributes:
        doc_ids: strings [texts].
        label_ids: int32 [texts], the label set of each text; -1 for soft labels only.
        tokens: the token ids of the texts.
        label_sets: bool [label sets, classes]; in a single-label task a set is a class.
        soft_labels: float32 [texts, classes], the probabilities of a teacher, NaN where it has none; None without one.
        groups: int64 [texts], equal for texts of one group; None if the documents have no groups.
    """

    doc_ids: pa.Array
    label_ids: np.ndarray
    tokens: TokenLists
    label_sets: np.ndarray
    soft_labels: np.ndarray | None = None
    groups: np.ndarray | None = None

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
