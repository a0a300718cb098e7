"""Classification metrics: scores, calibration and decision thresholds, as plain values for `metrics.json`."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

CALIBRATION_BINS = 15
SMALLEST_PROBABILITY = 1e-12  # a certain mistake costs 27.6 nats, not infinity


def evaluate(
    probabilities: NDArray[np.floating],
    targets: NDArray[np.bool_],
    labels: Sequence[str],
    thresholds: NDArray[np.floating] | None = None,
) -> dict[str, Any]:
    """Return all metrics of a set of predictions, ready for JSON.

    A class without documents counts as 0 in the macro averages, as in scikit-learn with `zero_division=0`.

    Args:
        probabilities: `[n, classes]`; without thresholds each row sums to 1.
        targets: `[n, classes]`, the true classes; without thresholds one for each document.
        labels: the name of each class, in the order of the columns.
        thresholds: `[classes]`, the decision thresholds of a multi-label model; None for a single-label one.

    Returns:
        `n`, `accuracy` (multi-label: exact matches), `macro_` and `weighted_` `precision`, `recall` and `f1`,
        `log_loss` (nats), `calibration_error` (0 to 1), `per_class`, `confusion` (rows are the truth; None for
        multi-label) and `reliability` (see `reliability_bins`). For multi-label also `micro_` and `example_`
        (mean over documents) `precision`, `recall` and `f1`. Without documents the scores are None and the lists
        keep their lengths.
    """
    predicted = decide(probabilities, thresholds)
    multi_label = thresholds is not None
    bins = reliability(probabilities, targets, multi_label)
    return {
        "n": len(targets),
        "accuracy": float((predicted == targets).all(axis=1).mean()) if len(targets) else None,
        **_precision_recall_f1(predicted, targets, labels, multi_label),
        "log_loss": log_loss(probabilities, targets.astype(np.float32), multi_label=multi_label),
        "calibration_error": calibration_error(bins),
        "confusion": None if multi_label else (targets.T.astype(np.float64) @ predicted).astype(np.int64).tolist(),
        "reliability": bins,
    }


def decide(probabilities: NDArray[np.floating], thresholds: NDArray[np.floating] | None = None) -> NDArray[np.bool_]:
    """Return the assigned classes of each document, bool `[n, classes]`.

    Args:
        probabilities: `[n, classes]`.
        thresholds: `[classes]`; a class is assigned from its threshold on. None assigns the likeliest class.
    """
    if thresholds is not None:
        return probabilities >= thresholds
    assigned = np.zeros(probabilities.shape, dtype=bool)
    assigned[np.arange(len(assigned)), probabilities.argmax(axis=1)] = True
    return assigned


def confidences(probabilities: NDArray[np.floating], assigned: NDArray[np.bool_]) -> NDArray[np.floating]:
    """Return the confidence of each decision, `[n]`: the highest probability, or its complement without a class.

    Args:
        probabilities: `[n, classes]`.
        assigned: `[n, classes]`, from `decide`.
    """
    highest = probabilities.max(axis=1)
    return np.where(assigned.any(axis=1), highest, 1 - highest)


def macro_f1(predicted: NDArray[np.bool_], targets: NDArray[np.bool_]) -> float:
    """Return the mean F1 over all classes, 0 where a class is neither predicted nor present.

    Equals `evaluate(...)["macro_f1"]` without importing scikit-learn, so that every epoch can afford it.

    Args:
        predicted: `[n, classes]`, the assigned classes.
        targets: `[n, classes]`, the true classes.
    """
    correct = (predicted & targets).sum(axis=0)
    # F1 = 2 TP / (2 TP + FP + FN), and its denominator is predicted + actual.
    return float(np.mean(2 * correct / np.maximum(predicted.sum(axis=0) + targets.sum(axis=0), 1)))


def standard_error(share: float, n: int) -> float:
    """Return the standard error of a share measured on `n` documents."""
    return math.sqrt(share * (1 - share) / max(n, 1))


def best_thresholds(probabilities: NDArray[np.floating], targets: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return the decision threshold of each class that maximises its F1, float32 `[classes]`.

    A threshold lies half-way between two neighbouring probabilities. A class without documents keeps 0.5.

    Args:
        probabilities: `[n, classes]`, independent of each other.
        targets: `[n, classes]`.
    """
    thresholds = np.full(probabilities.shape[1], 0.5, dtype=np.float32)
    for number in np.flatnonzero(targets.any(axis=0)):
        order = np.argsort(-probabilities[:, number], kind="stable")
        ranked, hits = probabilities[order, number], np.cumsum(targets[order, number])
        below = np.append(ranked[1:], 0.0)
        f1 = 2 * hits / (np.arange(1, len(hits) + 1) + hits[-1])
        f1[ranked == below] = -1.0  # no threshold lies between equal probabilities
        best = int(f1.argmax())
        thresholds[number] = (ranked[best] + below[best]) / 2
    return thresholds


def log_loss(
    probabilities: NDArray[np.floating], targets: NDArray[np.floating], *, multi_label: bool = False
) -> float | None:
    """Return the mean cross-entropy of a document in nats; None without documents.

    Args:
        probabilities: `[n, classes]`.
        targets: `[n, classes]`, 1 for each class that a document has.
        multi_label: sum the binary cross-entropy of every class.
    """
    if not len(probabilities):
        return None
    # scikit-learn's log_loss warns when float32 rows sum to 1 only nearly.
    present = np.clip(probabilities.astype(np.float64), SMALLEST_PROBABILITY, 1.0)
    losses = -(targets * np.log(present)).sum(axis=1)
    if multi_label:
        absent = np.clip(1.0 - probabilities.astype(np.float64), SMALLEST_PROBABILITY, 1.0)
        losses -= ((1 - targets) * np.log(absent)).sum(axis=1)
    return float(losses.mean())


def reliability(
    probabilities: NDArray[np.floating], targets: NDArray[np.bool_], multi_label: bool
) -> list[dict[str, float | int | None]]:
    """Return `reliability_bins` of the likeliest class of each document, or for multi-label of every class.

    Args:
        probabilities: `[n, classes]`.
        targets: `[n, classes]`.
        multi_label: whether a document can have several classes.
    """
    if multi_label:
        class_confidences = np.maximum(probabilities, 1 - probabilities).ravel()
        return reliability_bins(class_confidences, ((probabilities >= 0.5) == targets).ravel())
    correct = targets[np.arange(len(targets)), probabilities.argmax(axis=1)]
    return reliability_bins(probabilities.max(axis=1), correct)


def reliability_bins(
    confidences: NDArray[np.floating], correct: NDArray[np.bool_]
) -> list[dict[str, float | int | None]]:
    """Return mean confidence and accuracy in equal-width bins of confidence.

    Each bin has `low`, `high` (confidence in `(low, high]`), `confidence` (mean), `accuracy` and `count`;
    the means of an empty bin are None. See Guo et al., "On Calibration of Modern Neural Networks" (2017).

    Args:
        confidences: `[n]`, 0 to 1.
        correct: `[n]`.
    """
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


def _precision_recall_f1(
    predicted: NDArray[np.bool_], targets: NDArray[np.bool_], labels: Sequence[str], multi_label: bool
) -> dict[str, Any]:
    """Return precision, recall and F1 by each kind of average, and `per_class`; None without documents."""
    from sklearn.metrics import precision_recall_fscore_support

    def scores(average: str | None) -> Any:
        if not len(targets):
            return [None, None, None] if average else [[None] * len(labels)] * 3 + [[0] * len(labels)]
        return precision_recall_fscore_support(targets, predicted, average=average, zero_division=0)

    averages = {"macro": "macro", "weighted": "weighted"}
    if multi_label:
        averages |= {"micro": "micro", "example": "samples"}
    result: dict[str, Any] = {}
    for name, average in averages.items():
        for metric, score in zip(("precision", "recall", "f1"), scores(average), strict=False):
            result[f"{name}_{metric}"] = None if score is None else float(score)
    columns = [np.asarray(column).tolist() for column in scores(None)]
    names = ("label", "precision", "recall", "f1", "support")
    return {**result, "per_class": [dict(zip(names, row, strict=True)) for row in zip(labels, *columns, strict=True)]}
