"""What `metrics.json` says about predictions is true, and can be written as JSON."""

import json

import numpy as np
import pytest
from conftest import one_hot
from sklearn import metrics

from pipeline.metrics.classification import CALIBRATION_BINS, best_thresholds, decide, evaluate, macro_f1

LABELS = ["billing", "delivery", "returns"]


def predictions(n: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    probabilities = generator.dirichlet(np.ones(classes), n)
    return probabilities, generator.integers(0, classes, n)


def test_scores_of_a_hand_made_case():
    """Two of three right; the mistake is a delivery ticket called billing."""
    probabilities = np.array([[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.0, 0.0, 1.0]], np.float32)
    result = evaluate(probabilities, one_hot([0, 1, 2], 3), LABELS)
    assert result["n"] == 3
    assert result["accuracy"] == pytest.approx(2 / 3)
    assert result["confusion"] == [[1, 0, 0], [1, 0, 0], [0, 0, 1]]
    assert result["per_class"][0] == {
        "label": "billing",
        "precision": 0.5,
        "recall": 1.0,
        "f1": pytest.approx(2 / 3),
        "support": 1,
    }
    assert result["log_loss"] == pytest.approx(-np.mean(np.log([0.8, 0.3, 1.0])), rel=1e-6)
    assert result["calibration_error"] == pytest.approx((0.2 + 0.6 + 0.0) / 3, rel=1e-6)


def test_scores_agree_with_scikit_learn():
    probabilities, label_ids = predictions(500, 5)
    result = evaluate(probabilities, one_hot(label_ids, 5), list("abcde"))
    predicted_ids = probabilities.argmax(axis=1)
    for average in ("macro", "weighted"):
        expected = metrics.precision_recall_fscore_support(label_ids, predicted_ids, average=average)
        for name, score in zip(("precision", "recall", "f1"), expected[:3], strict=True):
            assert result[f"{average}_{name}"] == pytest.approx(score)
    assert result["confusion"] == metrics.confusion_matrix(label_ids, predicted_ids).tolist()
    expected_loss = metrics.log_loss(label_ids, probabilities.astype(np.float64))
    assert result["log_loss"] == pytest.approx(expected_loss, rel=1e-5)


def test_the_result_is_json():
    probabilities, label_ids = predictions(50, 3)
    result = evaluate(probabilities, one_hot(label_ids, 3), LABELS)
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_a_class_may_be_absent_from_the_split():
    probabilities, label_ids = predictions(60, 3)
    probabilities[:, 2] = 0.0
    label_ids %= 2
    result = evaluate(probabilities, one_hot(label_ids, 3), LABELS)
    assert result["per_class"][2] == {"label": "returns", "precision": 0, "recall": 0, "f1": 0, "support": 0}
    assert len(result["confusion"]) == 3


def test_a_certain_mistake_has_a_finite_loss():
    result = evaluate(np.array([[1.0, 0.0]]), one_hot([1], 2), ["no", "yes"])
    assert np.isfinite(result["log_loss"])


def test_without_documents_the_scores_are_none():
    result = evaluate(np.zeros((0, 3), np.float32), np.zeros((0, 3), bool), LABELS)
    assert result["n"] == 0
    for name in ("accuracy", "macro_f1", "weighted_precision", "log_loss", "calibration_error"):
        assert result[name] is None
    assert [entry["support"] for entry in result["per_class"]] == [0, 0, 0]
    assert result["confusion"] == [[0, 0, 0]] * 3
    assert len(result["reliability"]) == CALIBRATION_BINS
    json.dumps(result, allow_nan=False)


def test_every_document_is_in_one_reliability_bin():
    """Also those whose confidence is exactly 1, or a rounding error above it."""
    probabilities, label_ids = predictions(300, 3)
    probabilities[0] = [1.0, 0.0, 0.0]
    probabilities[1] = [np.nextafter(1.0, 2.0), 0.0, 0.0]
    bins = evaluate(probabilities, one_hot(label_ids, 3), LABELS)["reliability"]
    assert sum(bin_["count"] for bin_ in bins) == 300
    assert bins[-1]["count"] >= 2
    for bin_ in bins[:-1]:
        assert bin_["confidence"] is None or bin_["low"] < bin_["confidence"] <= bin_["high"]


@pytest.mark.parametrize("classes", [2, 3, 77])
def test_macro_f1_of_an_epoch_is_that_of_the_report(classes):
    """77 classes in 100 documents: some are absent, some are never predicted."""
    probabilities, label_ids = predictions(100, classes, seed=classes)
    targets = one_hot(label_ids, classes)
    expected = evaluate(probabilities, targets, [str(i) for i in range(classes)])["macro_f1"]
    assert macro_f1(decide(probabilities), targets) == pytest.approx(expected)


def several_labels(n: int = 400, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(2)
    targets = generator.random((n, classes)) < [0.5, 0.2, 0.1, 0.05]
    return np.clip(0.25 * targets + generator.normal(0.3, 0.15, (n, classes)), 0, 1).astype(np.float32), targets


def test_scores_of_several_labels_agree_with_scikit_learn() -> None:
    probabilities, targets = several_labels()
    thresholds = best_thresholds(probabilities, targets)
    result = evaluate(probabilities, targets, list("abcd"), thresholds)
    predicted = probabilities >= thresholds
    for name, average in (("macro", "macro"), ("weighted", "weighted"), ("micro", "micro"), ("example", "samples")):
        expected = metrics.precision_recall_fscore_support(targets, predicted, average=average, zero_division=0)
        for kind, score in zip(("precision", "recall", "f1"), expected[:3], strict=True):
            assert result[f"{name}_{kind}"] == pytest.approx(score)
    assert result["accuracy"] == pytest.approx(metrics.accuracy_score(targets, predicted))
    assert result["log_loss"] == pytest.approx(4 * metrics.log_loss(targets.ravel(), probabilities.ravel()), rel=1e-5)
    assert result["confusion"] is None
    assert sum(bin_["count"] for bin_ in result["reliability"]) == targets.size
    json.dumps(result, allow_nan=False)


def test_no_other_threshold_gives_a_class_a_better_f1() -> None:
    probabilities, targets = several_labels()
    thresholds = best_thresholds(probabilities, targets)
    for number in range(4):
        scores = [
            metrics.f1_score(targets[:, number], probabilities[:, number] >= value)
            for value in np.linspace(0.01, 0.99, 99)
        ]
        own = metrics.f1_score(targets[:, number], probabilities[:, number] >= thresholds[number])
        assert own >= max(scores)
    assert thresholds.std() > 0.01  # each class has its own


def test_a_class_that_validation_lacks_keeps_a_threshold_of_one_half() -> None:
    probabilities, targets = several_labels()
    targets[:, 2] = False
    assert best_thresholds(probabilities, targets)[2] == 0.5
