"""Predictions on held-out documents with known labels: class, confidence, and whether they are correct."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.metrics.classification import confidences, decide
from pipeline.schemas import PREDICTIONS

PREDICTIONS_FILE = "claims.parquet"


@dataclass(frozen=True)
class Predictions:
    """A model's predictions on the documents of a split.

    Attributes:
        predicted: int32 [n], the likeliest class.
        truth: int32 [n], the true class; -1 for multi-label.
        confidence: float32 [n], as in a labels part.
        correct: bool [n], whether the event that the confidence is the probability of occurred.
    """

    predicted: NDArray[np.int32]
    truth: NDArray[np.int32]
    confidence: NDArray[np.float32]
    correct: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.confidence)

    @classmethod
    def of(
        cls,
        probabilities: NDArray[np.floating],
        targets: NDArray[np.bool_],
        thresholds: NDArray[np.floating] | None = None,
    ) -> Self:
        """Return the predictions that follow from probabilities.

        For multi-label, a prediction is about the likeliest class only: that the document has it, or if no class is
        assigned, that it does not.

        Args:
            probabilities: `[n, classes]`.
            targets: `[n, classes]`, the true classes.
            thresholds: `[classes]`, the decision thresholds of a multi-label model.
        """
        predicted = probabilities.argmax(axis=1).astype(np.int32)
        assigned = decide(probabilities, thresholds)
        has_predicted = targets[np.arange(len(targets)), predicted]
        truth = targets.argmax(axis=1) if thresholds is None else np.full(len(targets), -1)
        return cls(
            predicted=predicted,
            truth=truth.astype(np.int32),
            confidence=confidences(probabilities, assigned).astype(np.float32),
            correct=np.where(assigned.any(axis=1), has_predicted, ~has_predicted),
        )

    def subset(self, rows: NDArray[np.bool_]) -> Self:
        """Return the predictions of some rows, chosen by bool [n]."""
        return type(self)(self.predicted[rows], self.truth[rows], self.confidence[rows], self.correct[rows])


def write_predictions(path: Path, splits: Mapping[str, Predictions]) -> None:
    """Write the predictions of each split, by name."""
    tables = [
        pa.table(
            [
                pa.array([name] * len(predictions), pa.string()),
                predictions.predicted,
                predictions.truth,
                predictions.confidence,
                predictions.correct,
            ],
            schema=PREDICTIONS,
        )
        for name, predictions in splits.items()
    ]
    pq.write_table(pa.concat_tables(tables), path, compression="zstd")


def read_predictions(path: Path) -> dict[str, Predictions]:
    """Return the predictions of "validation" and "test"."""
    table = pq.read_table(path, partitioning=None)
    splits = np.array(table["split"].to_pylist())
    predictions = Predictions(*(table[name].to_numpy() for name in PREDICTIONS.names[1:]))
    return {name: predictions.subset(splits == name) for name in ("validation", "test")}
