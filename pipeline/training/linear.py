"""Fit the linear branches of a model: one over words and word pairs, one over document vectors.

They are fitted separately: trained jointly, the LSTM and the linear model both lose accuracy.
"""

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from pipeline.dataset.minibatches import plan_minibatches
from pipeline.dataset.token_set import TokenSet
from pipeline.training.baseline import fit_svm
from pipeline.training.model import MeanEmbeddingLinear, NgramLinear

logger = logging.getLogger(__name__)

BATCH_TOKENS = 65_536
MAX_NGRAM_WEIGHTS = 2**23  # size of the table of words and pairs: 32 MiB, whatever the number of classes
MAX_NGRAM_TOKENS = 30_000_000  # of the texts it is fitted on, a random part of more: what fits into 4 GiB
SEARCHED_TEXTS = 5_000  # up to which the regularisation strength is searched
C_GRID = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # scikit-learn's C, the inverse of the regularisation strength
DEFAULT_C = 0.03  # with too few examples to search
FOLDS = 5
ABSENT_CLASS_LOGIT = -10.0  # the logit of a class without examples

Weights = tuple[NDArray[np.float64], NDArray[np.float64]]  # [classes, features] and [classes]
Fit = Callable[[NDArray[np.integer]], Any]


def fit_ngram_linear(
    texts: TokenSet, vocabulary_size: int, buckets: int, *, multi_label: bool = False, balanced: bool = False
) -> NgramLinear:
    """Fit a linear SVM over words and hashed word pairs: binary features, IDF-weighted and normalised.

    Args:
        texts: training texts, with a label or a soft label; the others are ignored.
        vocabulary_size: number of token ids.
        buckets: hash buckets for word pairs; reduced where there are many classes.
        multi_label: whether a document can have several classes or none.
        balanced: whether classes are weighted inversely to their frequency.
    """
    started = time.monotonic()
    rows = _sample(texts, rows_with_target(texts))
    wide = NgramLinear(vocabulary_size, texts.classes, max(1, min(buckets, MAX_NGRAM_WEIGHTS // texts.classes)))
    features = _ngram_features(wide, texts, rows)
    frequencies = features.getnnz(axis=0)
    idf = np.log((1 + len(rows)) / (1 + frequencies)) + 1
    features = features @ sparse.diags(idf)
    norms = np.sqrt(features.multiply(features).sum(axis=1))
    features = (sparse.diags(1 / np.maximum(np.asarray(norms).ravel(), 1e-9)) @ features).tocsr()
    targets = _targets(texts, rows, multi_label)
    fit = partial(fit_svm, features, tolerance=1e-3, balanced=balanced)
    weights, bias = _classify(fit, features.shape[1], targets, multi_label)
    with torch.no_grad():
        wide.table.copy_(torch.from_numpy(weights.T * idf[:, None]))
        wide.start.copy_(torch.from_numpy(bias))
        wide.squares.copy_(torch.from_numpy(idf**2))
        wide.squares[0] = 0.0  # padding
    logger.info(
        "linear branch: %s texts, %s words and pairs, %.1f s",
        f"{len(rows):,}",
        f"{np.count_nonzero(frequencies):,}",
        time.monotonic() - started,
    )
    return wide


def fit_mean_embedding_linear(
    vectors: Tensor, texts: TokenSet, *, multi_label: bool = False, balanced: bool = False
) -> MeanEmbeddingLinear:
    """Fit a logistic regression over mean document vectors, its regularisation chosen by cross-validation.

    Args:
        vectors: of each word [vocabulary, size], 0 for padding.
        texts: training texts, with a label or a soft label; the others are ignored.
        multi_label: whether a document can have several classes or none.
        balanced: whether classes are weighted inversely to their frequency.
    """
    rows = rows_with_target(texts)
    average = MeanEmbeddingLinear(vectors, texts.classes)
    means = np.zeros((len(rows), vectors.shape[1]), dtype=np.float32)
    with torch.inference_mode():
        for minibatch in plan_minibatches(texts.tokens.lengths[rows], batch_tokens=BATCH_TOKENS):
            token_ids = torch.from_numpy(texts.tokens.pad(rows[minibatch])[0])
            means[minibatch] = average.means(token_ids).numpy()
    average.standardise(torch.from_numpy(means))
    features = ((torch.from_numpy(means) - average.center) / average.spread).numpy()
    targets = _targets(texts, rows, multi_label)
    fit = partial(_logistic_regression, features, balanced=balanced)
    weights, bias = _classify(fit, features.shape[1], targets, multi_label)
    with torch.no_grad():
        average.output.weight.copy_(torch.from_numpy(weights))
        average.output.bias.copy_(torch.from_numpy(bias))
    return average


def rows_with_target(texts: TokenSet) -> NDArray[np.int64]:
    """Return the rows of texts with a label or a soft label."""
    has_target = texts.label_ids >= 0
    if texts.soft_labels is not None:
        has_target = has_target | ~np.isnan(texts.soft_labels).any(axis=1)
    return np.flatnonzero(has_target)


def _targets(texts: TokenSet, rows: NDArray[np.int64], multi_label: bool) -> NDArray[np.bool_]:
    """Return bool [rows, classes]: a text's labels, or without any the likeliest, or likely, of its soft labels."""
    targets = texts.targets(rows) > 0
    soft_only = texts.label_ids[rows] < 0
    if texts.soft_labels is not None and soft_only.any():
        soft = texts.soft_labels[rows[soft_only]]
        targets[soft_only] = soft > 0.5 if multi_label else soft == soft.max(axis=1, keepdims=True)
    return targets


def _sample(texts: TokenSet, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the rows, or in their order a random sample that has at most `MAX_NGRAM_TOKENS`."""
    lengths = texts.tokens.lengths[rows]
    if lengths.sum(dtype=np.int64) <= MAX_NGRAM_TOKENS:
        return rows
    order = np.random.default_rng(0).permutation(len(rows))
    sample = order[np.cumsum(lengths[order], dtype=np.int64) <= MAX_NGRAM_TOKENS]
    logger.info("the linear branch is fitted on a random %s of %s texts", f"{len(sample):,}", f"{len(rows):,}")
    return rows[np.sort(sample)]


@torch.inference_mode()
def _ngram_features(wide: NgramLinear, texts: TokenSet, rows: NDArray[np.int64]) -> Any:
    """Return a sparse matrix [rows, words and pairs], 1 for each feature of a text."""
    columns: list[NDArray[np.int32]] = [np.empty(0, np.int32)] * len(rows)
    for minibatch in plan_minibatches(texts.tokens.lengths[rows], batch_tokens=BATCH_TOKENS):
        token_ids = torch.from_numpy(texts.tokens.pad(rows[minibatch])[0])
        for row, features in zip(minibatch, wide.features(token_ids).to(torch.int32).numpy(), strict=True):
            columns[row] = features[features > 0]
    ends = np.concatenate([[0], np.cumsum([len(features) for features in columns])]).astype(np.int32)
    indices = np.concatenate(columns) if columns else np.empty(0, np.int32)
    ones = np.ones(len(indices), dtype=np.float32)
    return sparse.csr_matrix((ones, indices, ends), shape=(len(rows), len(wide.table)))


def _classify(fit: Fit, size: int, targets: NDArray[np.bool_], multi_label: bool) -> Weights:
    """Return the weights and biases of all classes; a class without examples is never predicted.

    Args:
        fit: fits a scikit-learn classifier to label ids, int [texts].
        size: number of features.
        targets: bool [texts, classes].
        multi_label: one classifier for each class instead of one for all.
    """
    weights, bias = np.zeros((targets.shape[1], size)), np.full(targets.shape[1], ABSENT_CLASS_LOGIT)
    if multi_label:
        bias[targets.all(axis=0)] = -ABSENT_CLASS_LOGIT
        for number in np.flatnonzero(targets.any(axis=0) & ~targets.all(axis=0)):
            model = fit(targets[:, number].astype(int))
            weights[number], bias[number] = model.coef_[0], model.intercept_[0]
        return weights, bias
    label_ids = targets.argmax(axis=1)
    present = np.unique(label_ids)
    if len(present) < 2:
        bias[present] = -ABSENT_CLASS_LOGIT
        return weights, bias
    model = fit(label_ids)
    if len(present) == 2:  # scikit-learn has one row for two classes: the difference of their logits
        weights[present] = np.concatenate([-model.coef_, model.coef_]) / 2
        bias[present] = np.concatenate([-model.intercept_, model.intercept_]) / 2
    else:
        weights[present], bias[present] = model.coef_, model.intercept_
    return weights, bias


def _logistic_regression(features: NDArray[np.float32], truth: NDArray[np.integer], balanced: bool) -> Any:
    """Return a logistic regression; with few texts, its C is chosen by cross-validated log loss."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV

    model = LogisticRegression(max_iter=1000, class_weight="balanced" if balanced else None)
    if len(truth) > SEARCHED_TEXTS:
        return model.fit(features, truth)
    smallest = int(np.unique(truth, return_counts=True)[1].min())
    if smallest < 2:
        return model.set_params(C=DEFAULT_C).fit(features, truth)
    search = GridSearchCV(model, {"C": C_GRID}, scoring="neg_log_loss", cv=min(FOLDS, smallest))
    return search.fit(features, truth).best_estimator_
