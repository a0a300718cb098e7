"""Versions that are compared: what each needs to label texts, and what it learnt from."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.dataset.minibatches import TokenLists
from pipeline.dataset.tokenizer import Tokenizer
from pipeline.metrics.classification import confidences, decide
from pipeline.models.bundle import TRAINED_ON_SHARE, Bundle
from pipeline.models.engine import temporary_engine
from pipeline.training.prepare import PreparedData

SLICE_TEXTS = 16_384  # tokenized and labelled at once


@dataclass(frozen=True)
class ModelVersion:
    """A version of a model, registered or about to be.

    Attributes:
        name: of the model.
        title: name@version.
        graph: its ONNX file.
        tokenizer: what makes its token ids.
        labels: its classes, in the order of the graph's outputs.
        thresholds: float32 [classes], where a document can have several classes.
        learnt: ids of the batches that are no nights for it, see `Bundle.learnt`.
        proven: whether its graph is proven to be the trained model.
    """

    name: str
    title: str
    graph: Path
    tokenizer: Tokenizer
    labels: list[str]
    thresholds: NDArray[np.float32] | None
    learnt: frozenset[str]
    proven: bool

    @classmethod
    def staged(
        cls, name: str, version: int, graph: Path, prepared: PreparedData, thresholds: NDArray[np.float32] | None
    ) -> Self:
        """Return a version that is about to be registered: its graph is written and proven."""
        corpus = prepared.corpus
        shares = zip(corpus.batches, corpus.trained_on_rows, strict=True)
        return cls(
            name=name,
            title=f"{name}@{version}",
            graph=graph,
            tokenizer=prepared.cache.tokenizer,
            labels=corpus.labels,
            thresholds=thresholds,
            learnt=frozenset(batch.id for batch, learnt in shares if learnt >= TRAINED_ON_SHARE * batch.rows),
            proven=True,
        )

    @classmethod
    def of(cls, bundle: Bundle) -> Self:
        return cls(
            name=bundle.name,
            title=bundle.title,
            graph=bundle.onnx_path,
            tokenizer=bundle.tokenizer,
            labels=bundle.labels,
            thresholds=bundle.thresholds,
            learnt=frozenset(batch for batch, _ in bundle.training_batches),
            proven=bool(bundle.metrics.get("parity")),
        )


@dataclass(frozen=True)
class PredictedLabels:
    """What a version makes of some texts.

    Attributes:
        given: bool [texts, classes], none for an empty text.
        confidence: float32 [texts], 0 for an empty text.
        likeliest: int32 [texts], the class with the highest probability; 0 for an empty text.
        spoken: bool [texts], whether the text has any token.
    """

    given: NDArray[np.bool_]
    confidence: NDArray[np.float32]
    likeliest: NDArray[np.int32]
    non_empty: NDArray[np.bool_]

    def names(self, labels: list[str]) -> NDArray[np.object_]:
        """Return the label of each text as people read it: several joined, "none" for none, "" for an empty text."""
        joined = [", ".join(labels[number] for number in np.flatnonzero(row)) or "none" for row in self.given]
        return np.where(self.non_empty, np.array(joined, dtype=object), "")


def predict_labels(model_version: ModelVersion, columns: Iterable[pa.Array]) -> PredictedLabels:
    """Label columns of texts with a version's own tokenizer and its fp32 graph, on the CPU."""
    classes = len(model_version.labels)
    given, confidence = [np.empty((0, classes), dtype=bool)], [np.empty(0, dtype=np.float32)]
    likeliest, non_empty = [np.empty(0, dtype=np.int32)], [np.empty(0, dtype=bool)]
    with temporary_engine(model_version.graph) as engine:
        for texts in (part for column in columns for part in _slices(column)):
            token_ids = model_version.tokenizer.encode(texts).token_ids
            rows = np.flatnonzero(pc.list_value_length(token_ids))  # an empty text would give NaN
            answers = np.zeros((len(texts), classes), dtype=bool)
            sure, best = np.zeros(len(texts), dtype=np.float32), np.zeros(len(texts), dtype=np.int32)
            if len(rows):
                probabilities = engine.probabilities(TokenLists.of(token_ids.take(pa.array(rows))))
                answers[rows] = decide(probabilities, model_version.thresholds)
                sure[rows] = confidences(probabilities, answers[rows])
                best[rows] = probabilities.argmax(axis=1)
            given.append(answers)
            confidence.append(sure)
            likeliest.append(best)
            non_empty.append(np.isin(np.arange(len(texts)), rows))
    return PredictedLabels(*(np.concatenate(one) for one in (given, confidence, likeliest, non_empty)))


def _slices(texts: pa.Array) -> list[pa.Array]:
    return [texts.slice(start, SLICE_TEXTS) for start in range(0, len(texts), SLICE_TEXTS)]
