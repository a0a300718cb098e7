"""The linear baseline, trained on the same split: TF-IDF and a linear SVM, which the LSTM must beat."""

import time
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.metrics.classification import macro_f1

NAME = "TF-IDF + LinearSVC"


def linear_baseline(
    train_texts: Sequence[str],
    train_targets: NDArray[np.bool_],
    test_texts: Sequence[str],
    test_targets: NDArray[np.bool_],
    *,
    multi_label: bool = False,
) -> dict[str, Any]:
    """Train a linear SVM on word unigrams and bigrams, and score it on the test texts.

    Args:
        train_texts: tokens separated by spaces, from our tokenizer, so that every script works.
        train_targets: `[texts, classes]`, the classes of each training text.
        test_texts: as `train_texts`.
        test_targets: as `train_targets`.
        multi_label: a text can have several classes, or none: one SVM for each class against the rest.

    Returns:
        `name`, `accuracy`, `macro_f1` (None without test texts), `seconds` (training and predicting) and
        `features` (size of the vocabulary; 0 where there is nothing to fit and the commonest class is predicted).
    """
    started = time.perf_counter()
    predicted, features = _predict(train_texts, train_targets, test_texts, multi_label)
    has_test = len(test_targets) > 0
    return {
        "name": NAME,
        "accuracy": float((predicted == test_targets).all(axis=1).mean()) if has_test else None,
        "macro_f1": macro_f1(predicted, test_targets) if has_test else None,
        "seconds": round(time.perf_counter() - started, 3),
        "features": features,
    }


def _predict(
    train_texts: Sequence[str], train_targets: NDArray[np.bool_], test_texts: Sequence[str], multi_label: bool
) -> tuple[NDArray[np.bool_], int]:
    """Return the predicted classes [texts, classes] and the number of features; the commonest class and 0 if none."""
    classes = train_targets.shape[1]
    counts = train_targets.sum(axis=0)
    predicted = np.zeros((len(test_texts), classes), dtype=bool)
    predicted[:, counts.argmax()] = True
    features = _tfidf(train_texts, test_texts) if np.count_nonzero(counts) >= 2 and test_texts else None
    if features is None:
        return predicted, 0
    train_features, test_features = features
    if multi_label:
        for number, targets in enumerate(train_targets.T):
            constant = targets.all() or not targets.any()
            predicted[:, number] = targets[0] if constant else fit_svm(train_features, targets).predict(test_features)
    else:
        label_ids = fit_svm(train_features, train_targets.argmax(axis=1)).predict(test_features)
        predicted = np.eye(classes, dtype=bool)[label_ids]
    return predicted, train_features.shape[1]


def _tfidf(train_texts: Sequence[str], test_texts: Sequence[str]) -> tuple[Any, Any] | None:
    """Return the TF-IDF features of training and test texts; None if the training texts have no words."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    for min_count in (2, 1):  # in a tiny corpus no word may occur in two texts
        vectorizer = TfidfVectorizer(
            ngram_range=(1, 2),
            sublinear_tf=True,
            min_df=min_count,
            token_pattern=r"\S+",
            lowercase=False,
            dtype=np.float32,  # half the memory; the score does not change
        )
        try:
            return vectorizer.fit_transform(train_texts), vectorizer.transform(test_texts)
        except ValueError:  # how scikit-learn says that the vocabulary is empty
            continue
    return None


def fit_svm(features: Any, targets: NDArray[Any], *, tolerance: float = 1e-4, balanced: bool = False) -> Any:
    """Return scikit-learn's linear SVM, fitted to features [texts, features] and targets [texts]."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.svm import LinearSVC

    classifier = LinearSVC(random_state=0, tol=tolerance, class_weight="balanced" if balanced else None)
    with warnings.catch_warnings():
        # Stopped early the model is as good; the user could not act on the warning.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return classifier.fit(features, targets)
