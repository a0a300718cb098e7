"""Logistic regression over embeddings, cross-fitted: no text is predicted by a model that was fitted on it."""

import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.metrics.classification import decide, log_loss, macro_f1

FOLDS = 5
C_GRID = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)  # scikit-learn's C, the inverse of the regularisation strength
SEARCHED_TEXTS = 10_000  # most texts among which C is chosen, a random part of more
MAX_ITERATIONS = 500


class EmbeddingClassifier:
    """A multinomial logistic regression, or for several labels one against the rest for each class.

    Args:
        classes: number of classes.
        multi_label: whether a text can have several classes or none.
    """

    def __init__(self, classes: int, *, multi_label: bool) -> None:
        self._classes, self._multi_label = classes, multi_label
        self._models: dict[int, Any] = {}  # by class; one, under 0, for a single label
        self._constant = np.zeros(classes, dtype=np.float32)  # the probabilities where there is no model

    def fit(self, features: NDArray[np.float32], targets: NDArray[np.bool_], c: float) -> "EmbeddingClassifier":
        """Fit, starting from the weights of an earlier fit with another C.

        Args:
            features: [texts, size].
            targets: [texts, classes].
            c: scikit-learn's C.
        """
        self._constant = targets[0].astype(np.float32)
        truths = dict(enumerate(targets.T)) if self._multi_label else {0: targets.argmax(axis=1)}
        for number, truth in truths.items():
            if (truth != truth[0]).any():
                self._models[number] = _fit(self._models.get(number), features, truth, c)
        return self

    def predict(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return probabilities, float32 [texts, classes]."""
        probabilities = np.tile(self._constant, (len(features), 1))
        if not len(features):
            return probabilities
        for number, model in self._models.items():
            if self._multi_label:
                probabilities[:, number] = model.predict_proba(features)[:, 1]
            else:
                probabilities[:] = 0.0
                probabilities[:, model.classes_] = model.predict_proba(features)
        return probabilities


class CrossFit(NamedTuple):
    """The outcome of a cross-fit.

    Attributes:
        probabilities: float32 [texts, classes], by the model of the other folds.
        classifier: fitted on all texts, for other texts.
        usable: bool [texts], false where the other folds have no example of one of the text's classes.
        c: the chosen C.
        accuracy: cross-validated share of texts whose classes are all right.
        macro_f1: cross-validated.
    """

    probabilities: NDArray[np.float32]
    classifier: EmbeddingClassifier
    usable: NDArray[np.bool_]
    c: float
    accuracy: float
    macro_f1: float


def cross_fit(
    features: NDArray[np.float32], targets: NDArray[np.bool_], *, multi_label: bool, seed: int = 0
) -> CrossFit:
    """Choose C by cross-validated log loss, and predict each text by a model fitted on the other folds.

    Args:
        features: [texts, size].
        targets: [texts, classes].
        multi_label: whether a text can have several classes or none.
        seed: of the folds.
    """
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1), warnings.catch_warnings():  # a fold on each core is faster than each on all
        # Stopped early a model is as good; the user could not act on the warning.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return _cross_fit(features, targets, multi_label, seed)


def _cross_fit(features: NDArray[np.float32], targets: NDArray[np.bool_], multi_label: bool, seed: int) -> CrossFit:
    folds = _assign_folds(targets, multi_label, seed)
    sample = np.random.default_rng(seed).permutation(len(features))[:SEARCHED_TEXTS]
    c, probabilities = _choose_c(features[sample], targets[sample], folds[sample], multi_label)
    if len(sample) < len(features):
        models = _fold_models(targets, folds, multi_label)
        probabilities = _predict_folds(models, features, targets, folds, c)
    else:
        probabilities = probabilities[np.argsort(sample)]
    usable = np.ones(len(targets), dtype=bool)
    for fold in np.unique(folds):
        absent = ~targets[folds != fold].any(axis=0)
        usable[folds == fold] = ~(targets[folds == fold] & absent).any(axis=1)
    predicted = decide(probabilities, np.full(targets.shape[1], 0.5) if multi_label else None)
    accuracy = float((predicted == targets).all(axis=1).mean())
    classifier = EmbeddingClassifier(targets.shape[1], multi_label=multi_label).fit(features, targets, c)
    return CrossFit(probabilities, classifier, usable, c, accuracy, macro_f1(predicted, targets))


def _assign_folds(targets: NDArray[np.bool_], multi_label: bool, seed: int) -> NDArray[np.int64]:
    """Return the fold of each text, int64 [texts]: random, and for a single label stratified by class."""
    order = np.random.default_rng(seed).permutation(len(targets))
    if not multi_label:
        order = order[np.argsort(targets[order].argmax(axis=1), kind="stable")]
    folds = np.empty(len(targets), dtype=np.int64)
    folds[order] = np.arange(len(targets)) % FOLDS
    return folds


def _fold_models(
    targets: NDArray[np.bool_], folds: NDArray[np.int64], multi_label: bool
) -> dict[int, EmbeddingClassifier]:
    return {int(fold): EmbeddingClassifier(targets.shape[1], multi_label=multi_label) for fold in np.unique(folds)}


def _choose_c(
    features: NDArray[np.float32], targets: NDArray[np.bool_], folds: NDArray[np.int64], multi_label: bool
) -> tuple[float, NDArray[np.float32]]:
    """Return the C with the lowest log loss and its out-of-fold probabilities; stop when a larger C is worse."""
    models = _fold_models(targets, folds, multi_label)
    best, lowest, chosen = C_GRID[0], np.inf, np.empty(0, np.float32)
    for c in C_GRID:
        probabilities = _predict_folds(models, features, targets, folds, c)
        loss = log_loss(probabilities, targets.astype(np.float32), multi_label=multi_label)
        if loss is None or loss >= lowest:
            break
        best, lowest, chosen = c, loss, probabilities
    return best, chosen


def _predict_folds(
    models: dict[int, EmbeddingClassifier],
    features: NDArray[np.float32],
    targets: NDArray[np.bool_],
    folds: NDArray[np.int64],
    c: float,
) -> NDArray[np.float32]:
    """Fit each fold's model on the other folds, one on each core.

    Returns:
        The probabilities of all texts, float32 [texts, classes].
    """
    probabilities = np.empty(targets.shape, dtype=np.float32)

    def fit_fold(fold: int) -> None:
        held_out = folds == fold
        model = models[fold].fit(features[~held_out], targets[~held_out], c)
        probabilities[held_out] = model.predict(features[held_out])

    with ThreadPoolExecutor(os.cpu_count()) as cores:
        list(cores.map(fit_fold, models))
    return probabilities


def _fit(model: Any, features: NDArray[np.float32], truth: NDArray[Any], c: float) -> Any:
    """Return a fitted logistic regression; an earlier one goes on from its weights."""
    from sklearn.linear_model import LogisticRegression

    model = model or LogisticRegression(max_iter=MAX_ITERATIONS, warm_start=True)
    return model.set_params(C=c).fit(features, truth)
