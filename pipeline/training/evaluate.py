"""Evaluate a trained model on the validation and test split, with a linear baseline beside it."""

import logging
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from pipeline.config import Recipe
from pipeline.dataset.corpus import TEST, TRAIN, VALIDATION
from pipeline.metrics.classification import best_thresholds, calibration_error, evaluate, reliability
from pipeline.training.ensemble import LSTM, as_probabilities, branch_logits
from pipeline.training.linear.baseline import LabelledTexts, linear_baseline
from pipeline.training.loop import TrainedModel
from pipeline.training.parallel import CorePool
from pipeline.training.prepare import PreparedData

logger = logging.getLogger(__name__)


def assess(prepared: PreparedData, trained: TrainedModel, recipe: Recipe) -> dict[str, Any]:
    """Return the metrics of a trained model on the validation and test split, and how it was trained."""
    labels = prepared.corpus.labels
    metrics: dict[str, Any] = {}
    thresholds = None
    with CorePool(torch.device("cpu")) as cores:
        for name, split in (("validation", VALIDATION), ("test", TEST)):
            texts = prepared.read(split)
            is_held_out = split == VALIDATION and trained.held_out
            logits = dict(trained.held_out) if is_held_out else branch_logits(trained.model, texts, cores)
            targets = texts.targets() > 0
            probabilities = as_probabilities(np.sum(list(logits.values()), axis=0), trained.model.multi_label)
            if trained.model.multi_label and split == VALIDATION:
                thresholds = best_thresholds(probabilities, targets)
            metrics[name] = evaluate(probabilities, targets, labels, thresholds)
            metrics[name]["before_calibration"] = _before_calibration(trained, logits, targets)
    if recipe.training.baseline:
        logger.info("training the linear baseline on the same split")
        metrics["baseline"] = _baseline(prepared)
    return {
        **metrics,
        "multi_label": prepared.corpus.multi_label,
        "thresholds": None if thresholds is None else thresholds.tolist(),
        "history": trained.history,
        "best_epoch": trained.best_epoch,
        "parts": [asdict(branch) for branch in trained.branches],
        "linear_models": [asdict(score) for score in trained.linear_models],
        "candidates": [asdict(candidate) for candidate in trained.candidates],
        "training_seconds": round(trained.seconds, 1),
        "training_tokens_per_second": round(trained.tokens_per_second),
        "training_device": trained.device,
        "counts": prepared.corpus.counts,
        "tokens": prepared.cache.manifest["stats"],
        "word_vectors": prepared.word_vectors.provenance() if prepared.word_vectors else None,
        "encoder": prepared.encoder.provenance() if prepared.encoder else None,
        "teacher": prepared.soft_labels.provenance() if prepared.soft_labels else None,
    }


def held_out_probabilities(trained: TrainedModel) -> NDArray[np.floating]:
    """Return the probabilities [validation texts, classes] by fits without these texts."""
    return as_probabilities(np.sum(list(trained.held_out.values()), axis=0), trained.model.multi_label)


def _before_calibration(
    trained: TrainedModel, logits: dict[str, NDArray[np.float32]], targets: NDArray[np.bool_]
) -> dict[str, Any] | None:
    """Return the calibration of the LSTM alone, without its ensemble weight; None if it is disabled."""
    weight = next((branch.weight for branch in trained.branches if branch.name == LSTM), None)
    if weight is None or trained.model.lstm_disabled:
        return None
    multi_label = trained.model.multi_label
    bins = reliability(as_probabilities(logits[LSTM] / weight, multi_label), targets, multi_label)
    return {"calibration_error": calibration_error(bins), "reliability": bins}


def _baseline(prepared: PreparedData) -> dict[str, Any]:
    train, validation, test = (labelled_texts(prepared, split) for split in (TRAIN, VALIDATION, TEST))
    return linear_baseline(train, validation, test, multi_label=prepared.corpus.multi_label)


def labelled_texts(prepared: PreparedData, split: int) -> LabelledTexts:
    """Return the labelled texts of a split as the baseline takes them."""
    splitter, corpus = prepared.cache.tokenizer.splitter, prepared.corpus
    texts: list[str] = []
    words: list[str] = []
    label_ids: list[NDArray[np.int32]] = [np.empty(0, np.int32)]
    for _, column, ids in corpus.read(split):
        labelled = column.filter(pa.array(ids >= 0))
        texts += labelled.to_pylist()
        words += pc.binary_join(splitter.split(labelled), " ").to_pylist()
        label_ids.append(ids[ids >= 0])
    return LabelledTexts(texts, words, corpus.label_sets[np.concatenate(label_ids)])
