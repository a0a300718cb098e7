"""Linear support vector machines over sparse features, plain and weighted by naive Bayes."""

import warnings
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse


def fit_svm(
    features: Any,
    targets: NDArray[Any],
    *,
    strength: float = 1.0,
    tolerance: float = 1e-4,
    balanced: bool = False,
) -> Any:
    """Return scikit-learn's linear SVM.

    Args:
        features: [texts, features].
        targets: [texts].
        strength: scikit-learn's C, the inverse of the regularisation strength.
        tolerance: where to stop.
        balanced: whether classes are weighted inversely to their frequency.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.svm import LinearSVC

    class_weight = "balanced" if balanced else None
    classifier = LinearSVC(C=strength, random_state=0, tol=tolerance, class_weight=class_weight)
    with warnings.catch_warnings():
        # Stopped early the model is as good; the user could not act on the warning.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return classifier.fit(features, targets)


class Coefficients(NamedTuple):
    """What of a scikit-learn classifier is used: [classes, features] and [classes], one row for two classes."""

    coef_: NDArray[np.float64]
    intercept_: NDArray[np.float64]


def fit_naive_bayes_svm(
    features: Any, label_ids: NDArray[np.integer], *, strength: float, balanced: bool = False
) -> Coefficients:
    """Return linear SVMs, each class against the rest, over features scaled by their log-count ratios.

    NB-SVM: Wang and Manning 2012. The scaled features are as long, on average, as they were.

    Args:
        features: sparse [texts, features], not negative.
        label_ids: int [texts], at least two different ones.
        strength: scikit-learn's C.
        balanced: whether the two sides are weighted inversely to their frequency.
    """
    classes = np.unique(label_ids)
    squares = np.asarray(features.multiply(features).sum(axis=0)).ravel()
    totals, smoothing = np.asarray(features.sum(axis=0)).ravel(), features.sum() / np.prod(features.shape)
    weights, bias = [], []
    for number in classes[1:] if len(classes) == 2 else classes:
        inside = label_ids == number
        counts = np.asarray(features[inside].sum(axis=0)).ravel()
        ratio = np.log((counts + smoothing) / (counts.sum() + smoothing * len(counts)))
        outside = totals - counts
        ratio -= np.log((outside + smoothing) / (outside.sum() + smoothing * len(counts)))
        ratio /= max(float(np.sqrt((ratio**2 @ squares) / squares.sum())), 1e-9)  # as long as the features were
        scaled = features @ sparse.diags(ratio.astype(np.float32))
        model = fit_svm(scaled, inside, strength=strength, tolerance=1e-3, balanced=balanced)
        weights.append(model.coef_[0] * ratio)
        bias.append(model.intercept_[0])
    return Coefficients(np.stack(weights), np.array(bias))
