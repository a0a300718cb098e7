"""What little a model can learn from few labels: a linear model over the mean of pretrained document vectors."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.batching import plan_batches
from pipeline.model import Average, Classifier
from pipeline.tokens import TokenSet

FEW_TEXTS = 5_000  # labelled ones, up to which it is tried
STRENGTHS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # scikit-learn's C: larger trusts the labels more
MIDDLING = 0.03  # where there are too few examples to choose
FOLDS = 5


def learn_from_few(model: Classifier, texts: TokenSet) -> None:
    """Fit the branch over document vectors by itself, and silence the others.

    How strongly it is held back is chosen by cross-validation on the training texts.

    Args:
        model: on the CPU, with an average branch that has its center and spread.
        texts: to learn from; those without a label are left out.
    """
    assert model.average is not None
    labelled = np.flatnonzero(texts.label_ids >= 0)
    features = standard_means(model.average, texts, labelled)
    targets = texts.targets(labelled) > 0
    if model.multi_label:
        found = [_logistic(features, own) for own in targets.T]
        weights, start = np.stack([one[0] for one in found]), np.array([one[1] for one in found])
    else:
        weights, start = _softmax(features, targets.argmax(axis=1), texts.classes)
    with torch.no_grad():
        model.average.output.weight.copy_(torch.from_numpy(weights))
        model.average.output.bias.copy_(torch.from_numpy(start))
        model.output.weight.zero_()
        model.output.bias.zero_()
        if model.wide is not None:
            model.wide.table.weight.zero_()


@torch.inference_mode()
def standard_means(average: Average, texts: TokenSet, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the standardised mean vectors, float32 [rows, size], of some texts."""
    means = np.zeros((len(rows), average.vectors.shape[1]), dtype=np.float32)
    for batch in plan_batches(texts.tokens.lengths[rows], batch_tokens=65_536):
        token_ids, _ = texts.tokens.pad(rows[batch])
        means[batch] = average.standard(torch.from_numpy(token_ids)).numpy()
    return means


def _softmax(
    features: NDArray[np.float32], label_ids: NDArray[np.integer], classes: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return weights [classes, size] and biases [classes]."""
    weights, start = np.zeros((classes, features.shape[1])), np.zeros(classes)
    found = _search(features, label_ids)
    if len(found.classes_) == 2:  # scikit-learn has one row for two classes: the difference of their logits
        weights[found.classes_] = np.concatenate([-found.coef_, found.coef_]) / 2
        start[found.classes_] = np.concatenate([-found.intercept_, found.intercept_]) / 2
    else:
        weights[found.classes_], start[found.classes_] = found.coef_, found.intercept_
    return weights, start


def _logistic(features: NDArray[np.float32], own: NDArray[np.bool_]) -> tuple[NDArray[np.float64], float]:
    """Return the weights [size] and the bias of one class against the rest."""
    if own.all() or not own.any():
        return np.zeros(features.shape[1]), 10.0 if own.all() else -10.0
    found = _search(features, own.astype(int))
    return found.coef_[0], float(found.intercept_[0])


def _search(features: NDArray[np.float32], truth: NDArray[np.integer]) -> Any:
    """Return the logistic regression whose strength does best in cross-validation."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV

    smallest = int(np.unique(truth, return_counts=True)[1].min())
    model = LogisticRegression(C=MIDDLING, max_iter=1000)
    if smallest < 2:
        return model.fit(features, truth)
    search = GridSearchCV(model, {"C": STRENGTHS}, scoring="neg_log_loss", cv=min(FOLDS, smallest))
    return search.fit(features, truth).best_estimator_
