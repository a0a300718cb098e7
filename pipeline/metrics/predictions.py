"""What a model claimed of texts whose label is known, and whether it was right: what every promise rests on."""

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
    """The labels that a model gave to the texts of a split.

    Attributes:
        predicted: int32 [texts], the likeliest class.
        truth: int32 [texts], the true class; -1 where a document can have several.
        confidence: float32 [texts], as it stands in a labels part.
        correct: bool [texts], whether what the confidence is about came true.
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
        """Return the claims that probabilities make.

        Where a document can have several classes, a claim is about the likeliest: that it holds, or where none is
        given, that it does not.

        Args:
            probabilities: `[n, classes]`.
            targets: `[n, classes]`, the true classes.
            thresholds: `[classes]`, where a document can have several classes.
        """
        predicted = probabilities.argmax(axis=1).astype(np.int32)
        given = decide(probabilities, thresholds)
        holds = targets[np.arange(len(targets)), predicted]
        return cls(
            predicted=predicted,
            truth=np.full(len(targets), -1, np.int32) if thresholds is not None else _classes(targets),
            confidence=confidences(probabilities, given).astype(np.float32),
            correct=np.where(given.any(axis=1), holds, ~holds),
        )

    def where(self, rows: NDArray[np.bool_]) -> Self:
        return type(self)(self.predicted[rows], self.truth[rows], self.confidence[rows], self.correct[rows])


def _classes(targets: NDArray[np.bool_]) -> NDArray[np.int32]:
    return targets.argmax(axis=1).astype(np.int32)


def write_predictions(path: Path, splits: Mapping[str, Predictions]) -> None:
    """Write the claims of each split, by name."""
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
    """Return the claims of each split, by name."""
    table = pq.read_table(path, partitioning=None)
    splits = np.array(table["split"].to_pylist())
    every = Predictions(*(table[name].to_numpy() for name in PREDICTIONS.names[1:]))
    return {name: every.where(splits == name) for name in ("validation", "test")}
