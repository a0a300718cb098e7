"""How good predictions are, as plain values that go into a bundle's `metrics.json` unchanged."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

CALIBRATION_BINS = 15
SMALLEST_PROBABILITY = 1e-12  # a certain mistake costs 27.6 nats, not infinity


def evaluate(
    probabilities: NDArray[np.floating], label_ids: NDArray[np.integer], labels: Sequence[str]
) -> dict[str, Any]:
    """Return every score of a set of predictions, ready for JSON.

    A class without documents counts in the macro averages with 0, as in scikit-learn with `zero_division=0`.

    Args:
        probabilities: `[n, classes]`, each row adding up to 1.
        label_ids: `[n]`, the true classes.
        labels: the name of each class, in the order of the columns.

    Returns:
        `n`, `accuracy`, `macro_` and `weighted_` `precision`, `recall` and `f1`, `log_loss` (nats),
        `calibration_error` (0 to 1), `per_class`, `confusion` (rows are the truth) and `reliability`
        (see `reliability_bins`). Without documents the scores are None and the lists keep their lengths.
    """
    predicted_ids = probabilities.argmax(axis=1)
    bins = reliability_bins(probabilities, label_ids)
    return {
        "n": len(label_ids),
        "accuracy": float(np.mean(predicted_ids == label_ids)) if len(label_ids) else None,
        **_averages(predicted_ids, label_ids, len(labels)),
        "log_loss": _log_loss(probabilities, label_ids),
        "calibration_error": calibration_error(bins),
        "per_class": _per_class(predicted_ids, label_ids, labels),
        "confusion": _confusion(predicted_ids, label_ids, len(labels)),
        "reliability": bins,
    }


def macro_f1(predicted_ids: NDArray[np.integer], label_ids: NDArray[np.integer], classes: int) -> float:
    """Return the mean F1 over all classes, 0 where a class is neither predicted nor present.

    Same value as `evaluate(...)["macro_f1"]`, without scikit-learn: cheap enough for every epoch.

    Args:
        predicted_ids: `[n]`, the predicted classes.
        label_ids: `[n]`, the true classes.
        classes: how many classes there are.
    """
    predicted = np.bincount(predicted_ids, minlength=classes)
    actual = np.bincount(label_ids, minlength=classes)
    correct = np.bincount(label_ids[predicted_ids == label_ids], minlength=classes)
    # F1 = 2 TP / (2 TP + FP + FN), and its denominator is predicted + actual.
    return float(np.mean(2 * correct / np.maximum(predicted + actual, 1)))


def reliability_bins(
    probabilities: NDArray[np.floating], label_ids: NDArray[np.integer]
) -> list[dict[str, float | int | None]]:
    """Return what the model claimed and what came true, by equal-width bins of its confidence.

    Each bin has `low`, `high` (confidence in `(low, high]`), `confidence` (mean), `accuracy` and `count`;
    the means of an empty bin are None. See Guo et al., "On Calibration of Modern Neural Networks" (2017).
    """
    confidences = probabilities.max(axis=1) if len(label_ids) else np.zeros(0)
    correct = probabilities.argmax(axis=1) == label_ids if len(label_ids) else np.zeros(0, bool)
    edges = np.linspace(0.0, 1.0, CALIBRATION_BINS + 1)
    # Rounding can lift a softmax a hair above 1: such a row belongs to the last bin.
    positions = np.clip(np.searchsorted(edges, confidences, side="left") - 1, 0, CALIBRATION_BINS - 1)
    bins: list[dict[str, float | int | None]] = []
    for position in range(CALIBRATION_BINS):
        inside = positions == position
        count = int(inside.sum())
        bins.append(
            {
                "low": float(edges[position]),
                "high": float(edges[position + 1]),
                "confidence": float(confidences[inside].mean(dtype=np.float64)) if count else None,
                "accuracy": float(correct[inside].mean()) if count else None,
                "count": count,
            }
        )
    return bins


def calibration_error(bins: Sequence[dict[str, float | int | None]]) -> float | None:
    """Return the expected calibration error: the mean gap between confidence and accuracy, by documents.

    Args:
        bins: from `reliability_bins`.
    """
    total = sum(bin_["count"] or 0 for bin_ in bins)
    if not total:
        return None
    gaps = ((bin_["count"] or 0) * abs((bin_["confidence"] or 0.0) - (bin_["accuracy"] or 0.0)) for bin_ in bins)
    return float(sum(gaps) / total)


def _averages(
    predicted_ids: NDArray[np.integer], label_ids: NDArray[np.integer], classes: int
) -> dict[str, float | None]:
    from sklearn.metrics import precision_recall_fscore_support

    averages: dict[str, float | None] = {}
    for average in ("macro", "weighted"):
        scores: tuple[float | None, ...] = (None, None, None)
        if len(label_ids):
            scores = precision_recall_fscore_support(
                label_ids, predicted_ids, labels=range(classes), average=average, zero_division=0
            )[:3]
        for name, score in zip(("precision", "recall", "f1"), scores, strict=True):
            averages[f"{average}_{name}"] = None if score is None else float(score)
    return averages


def _per_class(
    predicted_ids: NDArray[np.integer], label_ids: NDArray[np.integer], labels: Sequence[str]
) -> list[dict[str, Any]]:
    if not len(label_ids):
        empty = {"precision": None, "recall": None, "f1": None, "support": 0}
        return [{"label": label, **empty} for label in labels]
    from sklearn.metrics import precision_recall_fscore_support

    columns = precision_recall_fscore_support(
        label_ids, predicted_ids, labels=range(len(labels)), average=None, zero_division=0
    )
    return [
        {
            "label": label,
            "precision": float(precision),
            "recall": float(recall),
            "f1": float(f1),
            "support": int(support),
        }
        for label, precision, recall, f1, support in zip(labels, *columns, strict=True)
    ]


def _confusion(predicted_ids: NDArray[np.integer], label_ids: NDArray[np.integer], classes: int) -> list[list[int]]:
    # One number for each pair of truth and prediction, so that one pass counts them all.
    pairs = label_ids.astype(np.int64) * classes + predicted_ids
    counts = np.bincount(pairs, minlength=classes * classes)
    matrix: list[list[int]] = counts.reshape(classes, classes).tolist()
    return matrix


def _log_loss(probabilities: NDArray[np.floating], label_ids: NDArray[np.integer]) -> float | None:
    if not len(label_ids):
        return None
    # Not scikit-learn's: it warns when float32 rows add up to 1 only nearly.
    chosen = probabilities[np.arange(len(label_ids)), label_ids].astype(np.float64)
    return float(-np.log(np.clip(chosen, SMALLEST_PROBABILITY, 1.0)).mean())
