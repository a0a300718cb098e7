"""How good predictions are, as plain values that go into a bundle's `metrics.json` unchanged."""

import math
from collections.abc import Mapping, Sequence
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
    """Return every score of a set of predictions, ready for JSON.

    A class without documents counts in the macro averages with 0, as in scikit-learn with `zero_division=0`.

    Args:
        probabilities: `[n, classes]`; each row adds up to 1, unless there are thresholds.
        targets: `[n, classes]`, the true classes: one for each document, unless there are thresholds.
        labels: the name of each class, in the order of the columns.
        thresholds: `[classes]`, where a document can have several classes: the probabilities they are given from.

    Returns:
        `n`, `accuracy` (with several classes: of documents whose classes are exactly right), `macro_` and
        `weighted_` `precision`, `recall` and `f1`, `log_loss` (nats), `calibration_error` (0 to 1), `per_class`,
        `confusion` (rows are the truth; None with several classes) and `reliability` (see `reliability_bins`).
        With several classes also `micro_` and `example_` `precision`, `recall` and `f1`; of the latter the mean
        over documents. Without documents the scores are None and the lists keep their lengths.
    """
    predicted = decide(probabilities, thresholds)
    multi_label = thresholds is not None
    bins = reliability(probabilities, targets, multi_label)
    return {
        "n": len(targets),
        "accuracy": float((predicted == targets).all(axis=1).mean()) if len(targets) else None,
        **_averages(predicted, targets, {"micro": "micro", "example": "samples"} if multi_label else {}),
        "log_loss": log_loss(probabilities, targets.astype(np.float32), multi_label=multi_label),
        "calibration_error": calibration_error(bins),
        "per_class": _per_class(predicted, targets, labels),
        "confusion": None if multi_label else _confusion(predicted.argmax(axis=1), targets.argmax(axis=1), len(labels)),
        "reliability": bins,
    }


def decide(probabilities: NDArray[np.floating], thresholds: NDArray[np.floating] | None = None) -> NDArray[np.bool_]:
    """Return which classes each document is given, bool `[n, classes]`: the likeliest, or all from a threshold on.

    Args:
        probabilities: `[n, classes]`.
        thresholds: `[classes]`, where a document can have several classes.
    """
    if thresholds is not None:
        return probabilities >= thresholds
    chosen = np.zeros(probabilities.shape, dtype=bool)
    chosen[np.arange(len(chosen)), probabilities.argmax(axis=1)] = True
    return chosen


def confidences(probabilities: NDArray[np.floating], assigned: NDArray[np.bool_]) -> NDArray[np.floating]:
    """Return how sure each answer is, `[n]`: the highest probability, or where no class is given what it lacks to 1.

    Args:
        probabilities: `[n, classes]`.
        given: `[n, classes]`, from `decide`.
    """
    highest = probabilities.max(axis=1)
    return np.where(assigned.any(axis=1), highest, 1 - highest)


def macro_f1(predicted: NDArray[np.bool_], targets: NDArray[np.bool_]) -> float:
    """Return the mean F1 over all classes, 0 where a class is neither predicted nor present.

    Same value as `evaluate(...)["macro_f1"]`, without scikit-learn: cheap enough for every epoch.

    Args:
        predicted: `[n, classes]`, the classes that were given.
        targets: `[n, classes]`, the true classes.
    """
    correct = (predicted & targets).sum(axis=0)
    # F1 = 2 TP / (2 TP + FP + FN), and its denominator is predicted + actual.
    return float(np.mean(2 * correct / np.maximum(predicted.sum(axis=0) + targets.sum(axis=0), 1)))


def standard_error(share: float, n: int) -> float:
    """Return the standard error of a share that was found on `n` documents."""
    return math.sqrt(share * (1 - share) / max(n, 1))


def best_thresholds(probabilities: NDArray[np.floating], targets: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return the probability from which each class is given, float32 `[classes]`, so that its F1 is highest.

    A threshold lies half-way between two neighbouring probabilities. A class that occurs nowhere keeps 0.5.

    Args:
        probabilities: `[n, classes]`, each by itself.
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
    """Return the mean loss of a document in nats; None without documents.

    Args:
        probabilities: `[n, classes]`.
        targets: `[n, classes]`, 1 for each class that a document has.
        multi_label: classes are independent, and those a document lacks count too.
    """
    if not len(probabilities):
        return None
    # Not scikit-learn's: it warns when float32 rows add up to 1 only nearly.
    certain = np.clip(probabilities.astype(np.float64), SMALLEST_PROBABILITY, 1.0)
    losses = -(targets * np.log(certain)).sum(axis=1)
    if multi_label:
        lacking = np.clip(1.0 - probabilities.astype(np.float64), SMALLEST_PROBABILITY, 1.0)
        losses -= ((1 - targets) * np.log(lacking)).sum(axis=1)
    return float(losses.mean())


def reliability(
    probabilities: NDArray[np.floating], targets: NDArray[np.bool_], multi_label: bool
) -> list[dict[str, float | int | None]]:
    """Return `reliability_bins` of what probabilities claim: of each document, or where it can have several classes, of
    each class of it.

    Args:
        probabilities: `[n, classes]`.
        targets: `[n, classes]`.
        several: whether a document can have several classes.
    """
    if multi_label:
        claims = np.maximum(probabilities, 1 - probabilities).ravel()
        return reliability_bins(claims, ((probabilities >= 0.5) == targets).ravel())
    right = targets[np.arange(len(targets)), probabilities.argmax(axis=1)]
    return reliability_bins(probabilities.max(axis=1), right)


def reliability_bins(
    confidences: NDArray[np.floating], correct: NDArray[np.bool_]
) -> list[dict[str, float | int | None]]:
    """Return what the model claimed and what came true, by equal-width bins of its confidence.

    Each bin has `low`, `high` (confidence in `(low, high]`), `confidence` (mean), `accuracy` and `count`;
    the means of an empty bin are None. See Guo et al., "On Calibration of Modern Neural Networks" (2017).

    Args:
        confidences: `[claims]`, 0 to 1.
        correct: `[claims]`.
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


def _averages(
    predicted: NDArray[np.bool_], targets: NDArray[np.bool_], further: Mapping[str, str]
) -> dict[str, float | None]:
    """Return precision, recall and F1 by each way to average; `further` has scikit-learn's names for more ways."""
    from sklearn.metrics import precision_recall_fscore_support

    averages: dict[str, float | None] = {}
    for name, average in ({"macro": "macro", "weighted": "weighted"} | dict(further)).items():
        scores: tuple[float | None, ...] = (None, None, None)
        if len(targets):
            scores = precision_recall_fscore_support(targets, predicted, average=average, zero_division=0)[:3]
        for kind, score in zip(("precision", "recall", "f1"), scores, strict=True):
            averages[f"{name}_{kind}"] = None if score is None else float(score)
    return averages


def _per_class(predicted: NDArray[np.bool_], targets: NDArray[np.bool_], labels: Sequence[str]) -> list[dict[str, Any]]:
    if not len(targets):
        empty = {"precision": None, "recall": None, "f1": None, "support": 0}
        return [{"label": label, **empty} for label in labels]
    from sklearn.metrics import precision_recall_fscore_support

    columns = precision_recall_fscore_support(targets, predicted, average=None, zero_division=0)
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
