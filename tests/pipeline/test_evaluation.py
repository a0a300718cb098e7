"""What `metrics.json` says about predictions is true, and can be written as JSON."""

import json

import numpy as np
import pytest
from sklearn import metrics

from pipeline.evaluation import CALIBRATION_BINS, evaluate, macro_f1

LABELS = ["billing", "delivery", "returns"]


def predictions(n: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    probabilities = generator.dirichlet(np.ones(classes), n)
    return probabilities, generator.integers(0, classes, n)


def test_scores_of_a_hand_made_case():
    """Two of three right; the mistake is a delivery ticket called billing."""
    probabilities = np.array([[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.0, 0.0, 1.0]], np.float32)
    result = evaluate(probabilities, np.array([0, 1, 2]), LABELS)
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
    result = evaluate(probabilities, label_ids, list("abcde"))
    predicted_ids = probabilities.argmax(axis=1)
    for average in ("macro", "weighted"):
        expected = metrics.precision_recall_fscore_support(label_ids, predicted_ids, average=average)
        for name, score in zip(("precision", "recall", "f1"), expected[:3], strict=True):
            assert result[f"{average}_{name}"] == pytest.approx(score)
    assert result["confusion"] == metrics.confusion_matrix(label_ids, predicted_ids).tolist()
    expected_loss = metrics.log_loss(label_ids, probabilities.astype(np.float64))
    assert result["log_loss"] == pytest.approx(expected_loss, rel=1e-5)


def test_the_result_is_json():
    result = evaluate(*predictions(50, 3), LABELS)
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_a_class_may_be_absent_from_the_split():
    probabilities, label_ids = predictions(60, 3)
    probabilities[:, 2] = 0.0
    label_ids %= 2
    result = evaluate(probabilities, label_ids, LABELS)
    assert result["per_class"][2] == {"label": "returns", "precision": 0, "recall": 0, "f1": 0, "support": 0}
    assert len(result["confusion"]) == 3


def test_a_certain_mistake_has_a_finite_loss():
    result = evaluate(np.array([[1.0, 0.0]]), np.array([1]), ["no", "yes"])
    assert np.isfinite(result["log_loss"])


def test_without_documents_the_scores_are_none():
    result = evaluate(np.zeros((0, 3), np.float32), np.zeros(0, np.int64), LABELS)
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
    bins = evaluate(probabilities, label_ids, LABELS)["reliability"]
    assert sum(bin_["count"] for bin_ in bins) == 300
    assert bins[-1]["count"] >= 2
    for bin_ in bins[:-1]:
        assert bin_["confidence"] is None or bin_["low"] < bin_["confidence"] <= bin_["high"]


@pytest.mark.parametrize("classes", [2, 3, 77])
def test_macro_f1_of_an_epoch_is_that_of_the_report(classes):
    """77 classes in 100 documents: some are absent, some are never predicted."""
    probabilities, label_ids = predictions(100, classes, seed=classes)
    predicted_ids = probabilities.argmax(axis=1)
    expected = evaluate(probabilities, label_ids, [str(i) for i in range(classes)])["macro_f1"]
    assert macro_f1(predicted_ids, label_ids, classes) == pytest.approx(expected)
