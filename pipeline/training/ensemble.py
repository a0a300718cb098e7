"""Ensemble weights: how much the logits of each branch of a model count, fitted on the validation split."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize

from pipeline.dataset.minibatches import plan_minibatches
from pipeline.dataset.token_set import TokenSet
from pipeline.metrics.classification import best_thresholds, decide, log_loss, macro_f1
from pipeline.training.model import Classifier
from pipeline.training.parallel import CorePool

LSTM, NGRAM_LINEAR, MEAN_EMBEDDING = "LSTM", "word and character n-grams", "document vectors"
BRANCHES = (LSTM, NGRAM_LINEAR, MEAN_EMBEDDING)
# Typical weights on corpora of many sizes: the mean of the prior, which decides where held-out texts are few.
PRIOR_WEIGHTS = {LSTM: 0.4, NGRAM_LINEAR: 0.5, MEAN_EMBEDDING: 0.3}
MIN_WEIGHT = 1e-3  # a useless branch is nearly left out, never negated


@dataclass(frozen=True)
class BranchWeight:
    """The weight of a branch in the ensemble, and its score alone.

    Attributes:
        name: of the branch.
        weight: factor of its logits.
        macro_f1: of the branch alone, on the validation split.
    """

    name: str
    weight: float
    macro_f1: float


@dataclass(frozen=True)
class LinearScore:
    """The weight of a linear model in its branch, and its macro-F1 alone on held-out texts."""

    name: str
    weight: float
    macro_f1: float


@dataclass(frozen=True)
class WeightedEnsemble:
    """The weights of the branches, and their weighted logits and joint macro-F1 on the validation split.

    The logits, float32 [texts, classes], come from fits without these texts, on which the linear branches are fitted.
    """

    branches: list[BranchWeight]
    macro_f1: float
    logits: dict[str, NDArray[np.float32]]


def fit_branch_weights(
    model: Classifier, logits: Mapping[str, NDArray[np.float32]], targets: NDArray[np.float32]
) -> WeightedEnsemble:
    """Fit a weight for each branch, see `best_weights`, and multiply the branches' parameters by it.

    A weight is also a temperature, so this calibrates the probabilities (Guo et al. 2017).

    Args:
        model: on the CPU; changed in place.
        logits: of each branch, float32 [texts, classes], of texts on which it was not fitted.
        targets: float32 [texts, classes].
    """
    names = list(logits)
    prior = [PRIOR_WEIGHTS[name] for name in names] if len(names) > 1 else [1.0]
    weights = best_weights(list(logits.values()), targets, prior, model.multi_label)
    scale_branches(model, dict(zip(names, weights, strict=True)))
    weighted = [
        BranchWeight(name, float(weight), macro_f1_of(logits[name], targets > 0, model.multi_label))
        for name, weight in zip(names, weights, strict=True)
    ]
    scaled = {name: (logits[name] * weight).astype(np.float32) for name, weight in zip(names, weights, strict=True)}
    total = np.sum(list(scaled.values()), axis=0)
    return WeightedEnsemble(weighted, macro_f1_of(total, targets > 0, model.multi_label), scaled)


def branch_logits(
    model: Classifier, texts: TokenSet, cores: CorePool, branches: Sequence[str] = BRANCHES
) -> dict[str, NDArray[np.float32]]:
    """Return the logits [texts, classes] of each requested branch that a model has."""
    model.eval()
    linear = {NGRAM_LINEAR: model.wide, MEAN_EMBEDDING: model.average}
    names = [name for name in branches if name == LSTM or linear[name] is not None]
    unknown = None if model.wide is None else model.wide.unknown_rows(texts.unknown_words)
    logits = {name: np.zeros((len(texts), model.output.out_features), dtype=np.float32) for name in names}

    @torch.inference_mode()
    def run(rows: NDArray[np.int64]) -> None:
        token_ids, lengths = (torch.from_numpy(array) for array in texts.tokens.pad(rows))
        for name in names:
            if name == LSTM:
                values = model.lstm_logits(token_ids, lengths.long())
            elif name == NGRAM_LINEAR and model.wide is not None:
                values = model.wide(token_ids, unknown)
            elif model.average is not None:
                values = model.average(token_ids)
            logits[name][rows] = values.numpy()

    cores.map(run, plan_minibatches(texts.tokens.lengths, batch_tokens=16_384))
    return logits


def best_weights(
    logits: Sequence[NDArray[np.float32]],
    targets: NDArray[np.float32],
    prior: Sequence[float],
    multi_label: bool = False,
) -> NDArray[np.float64]:
    """Return the positive weight of each branch: their ratios by the Brier score, their scale by the log loss.

    The log loss alone gives too much weight to a branch that is worse but cautious: on eight corpora the labels were
    0.14 points better (mean of accuracy and macro-F1), on none 0.1 worse. The scale is a temperature.

    The prior on the weights is log-normal: a factor of e from its mean costs as much as two units of loss, so ten texts
    hardly move a weight and thousands decide it.

    Args:
        logits: of each branch, float32 [texts, classes].
        targets: float32 [texts, classes].
        prior: mean weight of each branch.
        multi_label: whether a document can have several classes or none.
    """
    stacked, start = np.stack(logits).astype(np.float64), np.log(prior)

    def brier_cost(logarithms: NDArray[np.float64]) -> float:
        probabilities = as_probabilities(np.tensordot(np.exp(logarithms), stacked, axes=1), multi_label)
        return float(((probabilities - targets) ** 2).sum() + 2 * ((logarithms - start) ** 2).sum())

    bounds = [(np.log(MIN_WEIGHT), np.log(1 / MIN_WEIGHT))] * len(start)
    weights = np.exp(minimize(brier_cost, start, method="Nelder-Mead", bounds=bounds).x)
    total = np.tensordot(weights, stacked, axes=1)

    def log_cost(logarithm: NDArray[np.float64]) -> float:
        probabilities = as_probabilities(total * np.exp(logarithm[0]), multi_label)
        loss = log_loss(probabilities, targets, multi_label=multi_label) or 0.0
        return loss * len(targets) + 2 * float(logarithm[0] ** 2)

    scaled: NDArray[np.float64] = weights * np.exp(minimize(log_cost, [0.0], method="Nelder-Mead").x[0])
    return scaled


@torch.no_grad()
def scale_branches(model: Classifier, weights: dict[str, float]) -> None:
    """Multiply the output parameters of each branch by its weight."""
    heads: dict[str, tuple[torch.Tensor, ...]] = {LSTM: (model.output.weight, model.output.bias)}
    if model.wide is not None:
        heads[NGRAM_LINEAR] = (model.wide.start, *model.wide.weights())
    if model.average is not None:
        heads[MEAN_EMBEDDING] = (model.average.output.weight, model.average.output.bias)
    for name, weight in weights.items():
        for parameter in heads[name]:
            parameter.mul_(weight)


def as_probabilities(logits: NDArray[np.floating], multi_label: bool) -> NDArray[np.floating]:
    """Return the probabilities [texts, classes] of logits [texts, classes]."""
    values = torch.from_numpy(logits)
    probabilities: NDArray[np.floating] = (values.sigmoid() if multi_label else values.softmax(dim=-1)).numpy()
    return probabilities


def macro_f1_of(logits: NDArray[np.floating], targets: NDArray[np.bool_], multi_label: bool) -> float:
    """Return the macro-F1 of logits [texts, classes], with several labels at the best thresholds."""
    probabilities = as_probabilities(logits, multi_label)
    thresholds = best_thresholds(probabilities, targets) if multi_label else None
    return macro_f1(decide(probabilities, thresholds), targets)
