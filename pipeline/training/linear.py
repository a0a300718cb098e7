"""The linear branches of a model, each fitted by itself: over words and word pairs, and over document vectors.

Fitted apart from the LSTM they keep what a linear model knows; trained together with it, they lose it.
"""

import logging
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from pipeline.dataset.minibatches import plan_minibatches
from pipeline.dataset.token_cache import TokenSet
from pipeline.training.model import MeanEmbeddingLinear, NgramLinear

logger = logging.getLogger(__name__)

BATCH_TOKENS = 65_536
MAX_NGRAM_WEIGHTS = 2**23  # most numbers in the table of words and pairs: 32 MiB, however many classes there are
MAX_NGRAM_TOKENS = 30_000_000  # of the texts it learns from, a random part of more: what fits into 4 GiB
SEARCHED_TEXTS = 5_000  # up to which it is worth while to choose how strongly a model is held back
C_GRID = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # scikit-learn's C: larger trusts the labels more
DEFAULT_C = 0.03  # where there are too few examples to choose
FOLDS = 5
ABSENT_CLASS_LOGIT = -10.0  # the logit of a class without examples

Weights = tuple[NDArray[np.float64], NDArray[np.float64]]  # [classes, features] and [classes]
Fit = Callable[[NDArray[np.integer]], Any]


def fit_ngram_linear(
    texts: TokenSet, vocabulary_size: int, buckets: int, *, multi_label: bool = False, balanced: bool = False
) -> NgramLinear:
    """Fit a linear SVM over words and hashed word pairs, each counted once and weighed by its rarity.

    Args:
        texts: to learn from: their labels, or what a teacher says of those without.
        vocabulary_size: ids there are.
        buckets: rows for word pairs; fewer where there are many classes.
        multi_label: whether a document can have several classes, or none.
        balanced: whether rare classes weigh as much as common ones.
    """
    started = time.monotonic()
    rows = _sample(texts, rows_with_target(texts))
    wide = NgramLinear(vocabulary_size, texts.classes, max(1, min(buckets, MAX_NGRAM_WEIGHTS // texts.classes)))
    found = _features(wide, texts, rows)
    frequencies = found.getnnz(axis=0)
    rarity = np.log((1 + len(rows)) / (1 + frequencies)) + 1
    found = found @ sparse.diags(rarity)
    norms = np.sqrt(found.multiply(found).sum(axis=1))
    found = (sparse.diags(1 / np.maximum(np.asarray(norms).ravel(), 1e-9)) @ found).tocsr()
    targets = _targets(texts, rows, multi_label)
    weights, start = _classify(lambda truth: _svm(found, truth, balanced), found.shape[1], targets, multi_label)
    with torch.no_grad():
        wide.table.copy_(torch.from_numpy(weights.T * rarity[:, None]))
        wide.start.copy_(torch.from_numpy(start))
        wide.squares.copy_(torch.from_numpy(rarity**2))
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
    """Fit a logistic regression over document vectors, held back as cross-validation finds best.

    Args:
        vectors: of each word [vocabulary, size], 0 for padding.
        texts: to learn from: their labels, or what a teacher says of those without.
        multi_label: whether a document can have several classes, or none.
        balanced: whether rare classes weigh as much as common ones.
    """
    rows = rows_with_target(texts)
    average = MeanEmbeddingLinear(vectors, texts.classes)
    means = _means(average, texts, rows)
    average.standardise(torch.from_numpy(means))
    features = ((torch.from_numpy(means) - average.center) / average.spread).numpy()
    targets = _targets(texts, rows, multi_label)
    weights, start = _classify(
        lambda truth: _logistic_regression(features, truth, balanced), features.shape[1], targets, multi_label
    )
    with torch.no_grad():
        average.output.weight.copy_(torch.from_numpy(weights))
        average.output.bias.copy_(torch.from_numpy(start))
    return average


def rows_with_target(texts: TokenSet) -> NDArray[np.int64]:
    """Return the rows of texts with a label, or with a teacher's opinion."""
    there = texts.label_ids >= 0
    if texts.soft_labels is not None:
        there = there | ~np.isnan(texts.soft_labels).any(axis=1)
    return np.flatnonzero(there)


def _targets(texts: TokenSet, rows: NDArray[np.int64], multi_label: bool) -> NDArray[np.bool_]:
    """Return bool [rows, classes]: a text's label, or else what its teacher holds likeliest, or likely."""
    targets = texts.targets(rows) > 0
    taught = texts.label_ids[rows] < 0
    if texts.soft_labels is not None and taught.any():
        opinion = texts.soft_labels[rows[taught]]
        targets[taught] = opinion > 0.5 if multi_label else opinion == opinion.max(axis=1, keepdims=True)
    return targets


def _sample(texts: TokenSet, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return as many of the rows as have the most tokens to learn from, in their order."""
    lengths = texts.tokens.lengths[rows]
    if lengths.sum(dtype=np.int64) <= MAX_NGRAM_TOKENS:
        return rows
    order = np.random.default_rng(0).permutation(len(rows))
    kept = order[np.cumsum(lengths[order], dtype=np.int64) <= MAX_NGRAM_TOKENS]
    logger.info("the linear branch learns from a random %s of %s texts", f"{len(kept):,}", f"{len(rows):,}")
    return rows[np.sort(kept)]


@torch.inference_mode()
def _features(wide: NgramLinear, texts: TokenSet, rows: NDArray[np.int64]) -> Any:
    """Return a sparse matrix [rows, words and pairs], 1 for each that a text has."""
    columns: list[NDArray[np.int32]] = [np.empty(0, np.int32)] * len(rows)
    for batch in plan_minibatches(texts.tokens.lengths[rows], batch_tokens=BATCH_TOKENS):
        found = wide.features(torch.from_numpy(texts.tokens.pad(rows[batch])[0])).to(torch.int32).numpy()
        for row, own in zip(batch, found, strict=True):
            columns[row] = own[own > 0]
    ends = np.concatenate([[0], np.cumsum([len(own) for own in columns])]).astype(np.int32)
    indices = np.concatenate(columns) if columns else np.empty(0, np.int32)
    ones = np.ones(len(indices), dtype=np.float32)
    return sparse.csr_matrix((ones, indices, ends), shape=(len(rows), len(wide.table)))


@torch.inference_mode()
def _means(average: MeanEmbeddingLinear, texts: TokenSet, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the mean word vectors, float32 [rows, size]."""
    means = np.zeros((len(rows), average.vectors.shape[1]), dtype=np.float32)
    for batch in plan_minibatches(texts.tokens.lengths[rows], batch_tokens=BATCH_TOKENS):
        means[batch] = average.means(torch.from_numpy(texts.tokens.pad(rows[batch])[0])).numpy()
    return means


def _classify(fit: Fit, size: int, targets: NDArray[np.bool_], multi_label: bool) -> Weights:
    """Return the weights and the biases of all classes; one without examples is never given.

    Args:
        fit: makes a scikit-learn classifier of the truth, int [texts].
        size: how many features there are.
        targets: bool [texts, classes].
        multi_label: one classifier for each class, instead of one for all.
    """
    weights, start = np.zeros((targets.shape[1], size)), np.full(targets.shape[1], ABSENT_CLASS_LOGIT)
    if multi_label:
        start[targets.all(axis=0)] = -ABSENT_CLASS_LOGIT
        for number in np.flatnonzero(targets.any(axis=0) & ~targets.all(axis=0)):
            model = fit(targets[:, number].astype(int))
            weights[number], start[number] = model.coef_[0], model.intercept_[0]
        return weights, start
    label_ids = targets.argmax(axis=1)
    there = np.unique(label_ids)
    if len(there) < 2:
        start[there] = -ABSENT_CLASS_LOGIT
        return weights, start
    model = fit(label_ids)
    if len(there) == 2:  # scikit-learn has one row for two classes: the difference of their logits
        weights[there] = np.concatenate([-model.coef_, model.coef_]) / 2
        start[there] = np.concatenate([-model.intercept_, model.intercept_]) / 2
    else:
        weights[there], start[there] = model.coef_, model.intercept_
    return weights, start


def _svm(features: Any, truth: NDArray[np.integer], balanced: bool) -> Any:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.svm import LinearSVC

    with warnings.catch_warnings():
        # Stopped early it tells classes apart as well; the user could not act on the warning.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LinearSVC(random_state=0, tol=1e-3, class_weight="balanced" if balanced else None)
        return model.fit(features, truth)


def _logistic_regression(features: NDArray[np.float32], truth: NDArray[np.integer], balanced: bool) -> Any:
    """Return a logistic regression; of few texts the one whose strength does best in cross-validation."""
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
