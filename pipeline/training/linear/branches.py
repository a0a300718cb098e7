"""Fit the linear branches of a model: one over word and character n-grams, one over document vectors.

They are fitted separately: trained jointly, the LSTM and the linear model both lose accuracy. Each is fitted on all
labelled texts; its logits of the held-out ones come from fits without them (cross-fitting).
"""

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.dataset.minibatches import plan_minibatches
from pipeline.dataset.token_set import TokenSet
from pipeline.training.ensemble import LinearScore, best_weights, macro_f1_of
from pipeline.training.linear.ngram_features import NgramFeatures
from pipeline.training.linear.svm import fit_naive_bayes_svm, fit_svm
from pipeline.training.model import MeanEmbeddingLinear, NgramLinear

logger = logging.getLogger(__name__)

BATCH_TOKENS = 65_536
MAX_NGRAM_TOKENS = 10_000_000  # of the texts it is fitted on, a random part of more: what fits into 4 GiB
CROSS_FITTED_TEXTS = 20_000  # up to which each text is held out once, beyond only those of the validation split
FOLDS = 4
MAX_BAYES_CLASSES = 40  # more take minutes, and give it hardly any weight
SEARCHED_TEXTS = 5_000  # up to which the regularisation strength is searched
SEARCH_FOLDS = 5
C_GRID = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # scikit-learn's C, the inverse of the regularisation strength
DEFAULT_C = 0.03  # with too few examples to search
ABSENT_CLASS_LOGIT = -10.0  # the logit of a class without examples

Fit = Callable[[Any, NDArray[np.integer]], Any]  # features and label ids to a model with coef_ and intercept_


class LinearModel(NamedTuple):
    """One of the models whose weighted sum is the branch over n-grams.

    Attributes:
        name: for reports.
        characters: whether it has the features of characters, too.
        fit: to features and label ids.
        prior: typical weight.
    """

    name: str
    characters: bool
    fit: Fit
    prior: float


class Fitted(NamedTuple):
    """A linear model: float64 [classes, features] and [classes], and held-out logits [texts, classes], else NaN."""

    weights: NDArray[np.float64]
    start: NDArray[np.float64]
    logits: NDArray[np.float32]


@dataclass(frozen=True)
class CrossFitted:
    """A linear branch, fitted on all labelled texts.

    Attributes:
        branch: the module.
        logits: float32 [texts, classes], of held-out texts by fits without them, else NaN.
        scores: of the models that it sums up.
    """

    branch: Any
    logits: NDArray[np.float32]
    scores: Sequence[LinearScore] = ()


def fit_ngram_linear(
    texts: TokenSet,
    vocabulary: pa.StringArray,
    buckets: int,
    folds: NDArray[np.integer],
    *,
    multi_label: bool = False,
    balanced: bool = False,
) -> CrossFitted:
    """Fit a weighted sum of linear SVMs over words, word pairs or triples, and character n-grams.

    One is over words; one over characters, too; one has features that are scaled by their log-count ratios (NB-SVM:
    Wang and Manning 2012). They share features and norms, so their sum is one linear model. Its weights are fitted on
    the held-out texts, which also calibrates it.

    Args:
        texts: with a label or a soft label; the others are ignored.
        vocabulary: the words with ids from `RESERVED` on.
        buckets: most hash buckets for word pairs and triples.
        folds: int [texts], those of a fold from 0 on are held out together, of -1 never.
        multi_label: whether a document can have several classes or none.
        balanced: whether classes are weighted inversely to their frequency.
    """
    started = time.monotonic()
    rows = _sample(texts, rows_with_target(texts))
    logger.info("fitting the linear branch on %s texts", f"{len(rows):,}")
    targets, held_out = _targets(texts, rows, multi_label), folds[rows] >= 0
    fit_all = partial(_cross_fit, targets=targets, folds=folds[rows], multi_label=multi_label)
    svm = partial(fit_svm, tolerance=1e-3, balanced=balanced)
    bayes = partial(fit_naive_bayes_svm, strength=0.1, balanced=balanced)
    features = NgramFeatures.of(texts, rows, vocabulary, buckets)
    has_characters = features.characters is not None
    models = [LinearModel("words", False, partial(svm, strength=1.0), 0.7)]
    if has_characters:
        models.append(LinearModel("words and characters", True, partial(svm, strength=0.3), 2.0))
    if texts.classes <= MAX_BAYES_CLASSES:
        models.append(LinearModel("naive Bayes", has_characters, bayes, 1.0))
    fits = fit_all([(features.words, models[0].fit)])
    with_triples = features.with_triples(texts, rows, buckets)
    fits_with_triples = fit_all([(with_triples.words, models[0].fit)])
    if _clearly_better(fits_with_triples[0].logits, fits[0].logits, targets, held_out, multi_label):
        features, fits = with_triples, fits_with_triples
    fits += fit_all([(features.matrix(characters=model.characters), model.fit) for model in models[1:]])
    logits = [fitted.logits[held_out] for fitted in fits]
    weights = best_weights(logits, targets[held_out].astype(np.float32), [model.prior for model in models], multi_label)
    total = np.full((len(texts), texts.classes), np.nan, dtype=np.float32)
    total[rows] = np.tensordot(weights, np.stack([fitted.logits for fitted in fits]), axes=1)
    scores = [
        LinearScore(model.name, float(weight), macro_f1_of(values, targets[held_out], multi_label))
        for model, weight, values in zip(models, weights, logits, strict=True)
    ]
    logger.info(
        "linear branch: %s texts, %s words, %s %s, %s character n-grams, %.1f s",
        f"{len(rows):,}",
        f"{len(features.word_ids):,}",
        f"{len(features.sequence_buckets):,}",
        "pairs and triples" if features.triples else "pairs",
        f"{len(features.ngram_keys):,}",
        time.monotonic() - started,
    )
    return CrossFitted(_summed(features, fits, weights), total, scores)


def _summed(features: NgramFeatures, fits: Sequence[Fitted], weights: NDArray[np.float64]) -> NgramLinear:
    """Return the branch that is the weighted sum of some models."""
    width = len(features.idf) + len(features.ngram_idf)
    total = np.zeros((fits[0].weights.shape[0], width))
    for fitted, weight in zip(fits, weights, strict=True):
        total[:, : fitted.weights.shape[1]] += weight * fitted.weights
    start = np.sum([weight * fitted.start for fitted, weight in zip(fits, weights, strict=True)], axis=0)
    return features.branch(total, start)


def fit_mean_embedding_linear(
    vectors: Tensor,
    texts: TokenSet,
    folds: NDArray[np.integer],
    *,
    multi_label: bool = False,
    balanced: bool = False,
) -> CrossFitted:
    """Fit a logistic regression over mean document vectors, its regularisation chosen by cross-validation.

    Args:
        vectors: of each word [vocabulary, size], 0 for padding.
        texts: with a label or a soft label; the others are ignored.
        folds: as for `fit_ngram_linear`.
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
    fit = partial(_logistic_regression, balanced=balanced)
    (fitted,) = _cross_fit([(features, fit)], targets=targets, folds=folds[rows], multi_label=multi_label)
    with torch.no_grad():
        average.output.weight.copy_(torch.from_numpy(fitted.weights))
        average.output.bias.copy_(torch.from_numpy(fitted.start))
    logits = np.full((len(texts), texts.classes), np.nan, dtype=np.float32)
    logits[rows] = fitted.logits
    return CrossFitted(average, logits)


def cross_folds(texts: TokenSet, validation: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the folds, int64 [texts], in which labelled texts are held out; -1 for those that never are.

    Of few texts each is held out once, whole groups together, of many only those of the validation split.

    Args:
        texts: all labelled texts.
        validation: bool [texts], those of the validation split.
    """
    labelled = texts.label_ids >= 0
    if np.count_nonzero(labelled) > CROSS_FITTED_TEXTS:
        return np.where(validation & labelled, 0, -1)
    groups = np.arange(len(texts)) if texts.groups is None else np.unique(texts.groups, return_inverse=True)[1]
    fold_of_group = np.random.default_rng(0).permutation(groups.max(initial=-1) + 1) % FOLDS
    return np.where(labelled, fold_of_group[groups], -1)


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


def _clearly_better(
    logits: NDArray[np.float32],
    rival: NDArray[np.float32],
    targets: NDArray[np.bool_],
    held_out: NDArray[np.bool_],
    multi_label: bool,
) -> bool:
    """Return whether logits are right more often than those of a rival, by more than two standard errors."""

    def correct(values: NDArray[np.float32]) -> NDArray[np.bool_]:
        predicted = values > 0 if multi_label else values == values.max(axis=1, keepdims=True)
        right: NDArray[np.bool_] = (predicted == targets).all(axis=1)[held_out]
        return right

    wins = np.count_nonzero(correct(logits) & ~correct(rival))
    losses = np.count_nonzero(~correct(logits) & correct(rival))
    return wins - losses > 2 * np.sqrt(wins + losses)


def _cross_fit(
    problems: Sequence[tuple[Any, Fit]], *, targets: NDArray[np.bool_], folds: NDArray[np.integer], multi_label: bool
) -> list[Fitted]:
    """Fit models to all texts, and for each fold to the others; the fits of all run on all cores.

    Args:
        problems: features [texts, features] and how to fit them, of each model.
        targets: bool [texts, classes].
        folds: int [texts], -1 for texts that are never held out.
        multi_label: one classifier for each class instead of one for all.
    """
    held_out = [np.flatnonzero(folds == fold) for fold in np.unique(folds[folds >= 0])]
    jobs = [(number, rows) for number in range(len(problems)) for rows in [np.empty(0, np.int64), *held_out]]

    def run(job: tuple[int, NDArray[np.int64]]) -> Any:
        number, rows = job
        features, fit = problems[number]
        if not len(rows):
            return _classify(partial(fit, features), features.shape[1], targets, multi_label)
        training_rows = np.setdiff1d(np.arange(len(targets)), rows)
        weights, start = _classify(
            partial(fit, features[training_rows]), features.shape[1], targets[training_rows], multi_label
        )
        return features[rows] @ weights.T + start

    with ThreadPoolExecutor(torch.get_num_threads()) as cores:
        results = list(cores.map(run, jobs))
    fitted = []
    for number in range(len(problems)):
        final, *parts = [result for (owner, _), result in zip(jobs, results, strict=True) if owner == number]
        logits = np.full(targets.shape, np.nan, dtype=np.float32)
        for rows, part in zip(held_out, parts, strict=True):
            logits[rows] = part
        weights, start = final
        fitted.append(Fitted(weights, start, logits))
    return fitted


def _classify(
    fit: Callable[[NDArray[np.integer]], Any], size: int, targets: NDArray[np.bool_], multi_label: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
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
    search = GridSearchCV(model, {"C": C_GRID}, scoring="neg_log_loss", cv=min(SEARCH_FOLDS, smallest))
    return search.fit(features, truth).best_estimator_
