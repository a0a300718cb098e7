"""A model version for comparison: what it needs to label texts, and which batches it was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.dataset.tokenizer import Tokenizer
from pipeline.metrics.classification import confidences, decide
from pipeline.models.bundle import TRAINED_ON_SHARE, Bundle, read_characters

if TYPE_CHECKING:
    from pipeline.dataset.corpus import Corpus

SLICE_TEXTS = 16_384  # tokenized and labelled at once


@dataclass(frozen=True)
class ModelVersion:
    """A version of a model, registered or about to be.

    Attributes:
        name: of the model.
        title: name@version.
        graph: its ONNX file.
        tokenizer: turns texts into its token ids.
        labels: its classes, in the order of the graph's outputs.
        thresholds: float32 [classes], where a document can have several classes.
        trained_batches: ids of the batches that it was trained on, see `Bundle.training_batches`.
        proven: whether parity proves that its graph is the trained model.
    """

    name: str
    title: str
    graph: Path
    tokenizer: Tokenizer
    labels: list[str]
    thresholds: NDArray[np.float32] | None
    trained_batches: frozenset[str]
    proven: bool

    @classmethod
    def staged(
        cls,
        name: str,
        version: int,
        graph: Path,
        corpus: Corpus,
        tokenizer: Tokenizer,
        thresholds: NDArray[np.float32] | None,
    ) -> Self:
        """Return a version that is about to be registered: its graph is written and proven."""
        trained_rows = zip(corpus.batches, corpus.trained_on_rows, strict=True)
        return cls(
            name=name,
            title=f"{name}@{version}",
            graph=graph,
            tokenizer=tokenizer,
            labels=corpus.labels,
            thresholds=thresholds,
            trained_batches=frozenset(
                batch.id for batch, rows in trained_rows if rows >= TRAINED_ON_SHARE * batch.rows
            ),
            proven=True,
        )

    @classmethod
    def of(cls, bundle: Bundle) -> Self:
        """Return a registered version."""
        return cls(
            name=bundle.name,
            title=bundle.title,
            graph=bundle.onnx_path,
            tokenizer=bundle.tokenizer,
            labels=bundle.labels,
            thresholds=bundle.thresholds,
            trained_batches=frozenset(batch for batch, _ in bundle.training_batches),
            proven=bool(bundle.metrics.get("parity")),
        )


@dataclass(frozen=True)
class PredictedLabels:
    """The labels that a version predicts for some texts.

    Attributes:
        predicted: bool [texts, classes], no class for an empty text.
        confidence: float32 [texts], 0 for an empty text.
        likeliest: int32 [texts], the class with the highest probability; 0 for an empty text.
        non_empty: bool [texts], whether the text has any token.
    """

    predicted: NDArray[np.bool_]
    confidence: NDArray[np.float32]
    likeliest: NDArray[np.int32]
    non_empty: NDArray[np.bool_]

    def names(self, labels: list[str]) -> NDArray[np.object_]:
        """Return the label of each text for a report: several joined, "none" without a class, "" for an empty text."""
        joined = [", ".join(labels[number] for number in np.flatnonzero(row)) or "none" for row in self.predicted]
        return np.where(self.non_empty, np.array(joined, dtype=object), "")


def predict_labels(version: ModelVersion, columns: Sequence[pa.Array]) -> PredictedLabels:
    """Label columns of texts with a version's own tokenizer and its fp32 graph, on the CPU."""
    from pipeline.models.engine import temporary_engine

    slices = [column.slice(start, SLICE_TEXTS) for column in columns for start in range(0, len(column), SLICE_TEXTS)]
    count, start = sum(len(texts) for texts in slices), 0
    predicted = np.zeros((count, len(version.labels)), dtype=np.bool_)
    confidence, likeliest = np.zeros(count, dtype=np.float32), np.zeros(count, dtype=np.int32)
    non_empty = np.zeros(count, dtype=np.bool_)
    characters = read_characters(version.graph.parent)
    with temporary_engine(version.graph) as engine:
        for texts in slices:
            tokens, unknown = version.tokenizer.encode_open(texts)
            rows = np.flatnonzero(tokens.lengths)  # the graph returns NaN for an empty text
            if len(rows):
                of_words = None if characters is None else characters.rows(unknown.words)
                probabilities = engine.probabilities(tokens.take(rows), of_words)
                rows += start
                predicted[rows] = decide(probabilities, version.thresholds)
                confidence[rows] = confidences(probabilities, predicted[rows])
                likeliest[rows] = probabilities.argmax(axis=1)
                non_empty[rows] = True
            start += len(texts)
    return PredictedLabels(predicted, confidence, likeliest, non_empty)
