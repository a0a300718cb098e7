"""The linear classifier a user would pick instead, trained on the same split: what the LSTM must beat."""

import time
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation import macro_f1

NAME = "TF-IDF + LinearSVC"


def linear_baseline(
    train_texts: Sequence[str],
    train_label_ids: Sequence[int] | NDArray[np.integer],
    test_texts: Sequence[str],
    test_label_ids: Sequence[int] | NDArray[np.integer],
    labels: Sequence[str],
) -> dict[str, Any]:
    """Train a linear SVM on word unigrams and bigrams, and score it on the test texts.

    Args:
        train_texts: tokens separated by spaces, as the tokenizer makes them, so every script works.
        train_label_ids: the class of each training text.
        test_texts: as `train_texts`.
        test_label_ids: the class of each test text.
        labels: the name of each class.

    Returns:
        `name`, `accuracy`, `macro_f1` (None without test texts), `seconds` (training and predicting) and
        `features` (size of the vocabulary; 0 where nothing can be learnt and the commonest class is guessed).
    """
    started = time.perf_counter()
    predicted_ids, features = _predict(train_texts, np.asarray(train_label_ids, np.int64), test_texts)
    seconds = time.perf_counter() - started
    truth = np.asarray(test_label_ids, np.int64)
    return {
        "name": NAME,
        "accuracy": float(np.mean(predicted_ids == truth)) if len(truth) else None,
        "macro_f1": macro_f1(predicted_ids, truth, len(labels)) if len(truth) else None,
        "seconds": round(seconds, 3),
        "features": features,
    }


def _predict(
    train_texts: Sequence[str], train_label_ids: NDArray[np.int64], test_texts: Sequence[str]
) -> tuple[NDArray[np.int64], int]:
    commonest = int(np.bincount(train_label_ids).argmax()) if len(train_label_ids) else 0
    guess = np.full(len(test_texts), commonest, np.int64)
    if len(np.unique(train_label_ids)) < 2 or not test_texts:
        return guess, 0
    vectorizer, train_features = _vectorize(train_texts)
    if train_features is None:
        return guess, 0
    classifier = _fit(train_features, train_label_ids)
    predicted: NDArray[np.int64] = classifier.predict(vectorizer.transform(test_texts))
    return predicted, train_features.shape[1]


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


def _fit(features: Any, label_ids: NDArray[np.int64]) -> Any:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.svm import LinearSVC

    classifier = LinearSVC(random_state=0)
    with warnings.catch_warnings():
        # Stopped early, a yardstick measures as well; the user could not act on the warning.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return classifier.fit(features, label_ids)
