"""The linear classifier a user would pick instead, trained on the same split: what the LSTM must beat."""

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
        train_texts: tokens separated by spaces, as the tokenizer makes them, so every script works.
        train_targets: `[texts, classes]`, the classes of each training text.
        test_texts: as `train_texts`.
        test_targets: as `train_targets`.
        multi_label: a text can have several classes, or none: one SVM for each class against the rest.

    Returns:
        `name`, `accuracy`, `macro_f1` (None without test texts), `seconds` (training and predicting) and
        `features` (size of the vocabulary; 0 where nothing can be learnt and the commonest class is guessed).
    """
    started = time.perf_counter()
    predicted, features = _predict(train_texts, train_targets, test_texts, multi_label)
    seconds = time.perf_counter() - started
    there = len(test_targets) > 0
    return {
        "name": NAME,
        "accuracy": float((predicted == test_targets).all(axis=1).mean()) if there else None,
        "macro_f1": macro_f1(predicted, test_targets) if there else None,
        "seconds": round(seconds, 3),
        "features": features,
    }


def _predict(
    train_texts: Sequence[str], train_targets: NDArray[np.bool_], test_texts: Sequence[str], multi_label: bool
) -> tuple[NDArray[np.bool_], int]:
    classes = train_targets.shape[1]
    counts = train_targets.sum(axis=0)
    guess = np.zeros((len(test_texts), classes), dtype=bool)
    guess[:, counts.argmax()] = True
    if np.count_nonzero(counts) < 2 or not test_texts:
        return guess, 0
    vectorizer, train_features = _vectorize(train_texts)
    if train_features is None:
        return guess, 0
    test_features = vectorizer.transform(test_texts)
    if multi_label:
        columns = [
            _fit(train_features, own).predict(test_features)
            if own.any() and not own.all()
            else np.full(len(guess), own[0])
            for own in train_targets.T
        ]
        return np.stack(columns, axis=1), train_features.shape[1]
    predicted = _fit(train_features, train_targets.argmax(axis=1)).predict(test_features)
    return np.eye(classes, dtype=bool)[predicted], train_features.shape[1]


def _vectorize(texts: Sequence[str]) -> tuple[Any, Any]:
    """Return a fitted vectorizer and the texts' features, or None for both where there are no words."""
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
            return vectorizer, vectorizer.fit_transform(texts)
        except ValueError:  # how scikit-learn says that the vocabulary is empty
            continue
    return None, None


def _fit(features: Any, truth: NDArray[Any]) -> Any:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.svm import LinearSVC

    classifier = LinearSVC(random_state=0)
    with warnings.catch_warnings():
        # Stopped early, a yardstick measures as well; the user could not act on the warning.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return classifier.fit(features, truth)
