"""Ensemble weights: how much the logits of each branch of a model count, fitted on the validation split."""

from collections.abc import Sequence
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

LSTM, NGRAM_LINEAR, MEAN_EMBEDDING = "LSTM", "words and word pairs", "document vectors"
BRANCHES = (LSTM, NGRAM_LINEAR, MEAN_EMBEDDING)
# Typical weights on corpora of many sizes: the mean of the prior, which decides where validation texts are few.
PRIOR_WEIGHTS = {LSTM: 0.6, NGRAM_LINEAR: 3.0, MEAN_EMBEDDING: 0.5}
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
class WeightedEnsemble:
    """The weights of the branches, and the macro-F1 of the ensemble on the validation split."""

    branches: list[BranchWeight]
    macro_f1: float


def fit_branch_weights(
    model: Classifier, texts: TokenSet, cores: CorePool, branches: Sequence[str] = BRANCHES
) -> WeightedEnsemble:
    """Fit a weight for each branch that minimises log loss, and multiply the branches' parameters by it.

    A weight is also a temperature, so this calibrates the probabilities (Guo et al. 2017).

    Args:
        model: on the CPU; changed in place.
        texts: of the validation split, on which no branch was trained.
        cores: where to run.
        branches: those to weigh, where the model has them; the others are ignored.
    """
    logits = branch_logits(model, texts, cores, branches)
    targets, names = texts.targets(), list(logits)
    prior = [PRIOR_WEIGHTS[name] for name in names] if len(names) > 1 else [1.0]
    weights = best_weights(list(logits.values()), targets, prior, model.multi_label)
    scale_branches(model, dict(zip(names, weights, strict=True)))
    weighted = [
        BranchWeight(name, float(weight), _macro_f1(logits[name], targets, model.multi_label))
        for name, weight in zip(names, weights, strict=True)
    ]
    total = np.tensordot(weights, np.stack(list(logits.values())), axes=1)
    return WeightedEnsemble(weighted, _macro_f1(total, targets, model.multi_label))


def branch_logits(
    model: Classifier, texts: TokenSet, cores: CorePool, branches: Sequence[str] = BRANCHES
) -> dict[str, NDArray[np.float32]]:
    """Return the logits [texts, classes] of each requested branch that a model has."""
    model.eval()
    linear = {NGRAM_LINEAR: model.wide, MEAN_EMBEDDING: model.average}
    names = [name for name in branches if name == LSTM or linear[name] is not None]
    logits = {name: np.zeros((len(texts), model.output.out_features), dtype=np.float32) for name in names}

    @torch.inference_mode()
    def run(rows: NDArray[np.int64]) -> None:
        token_ids, lengths = (torch.from_numpy(array) for array in texts.tokens.pad(rows))
        for name in names:
            branch = linear.get(name)
            values = branch(token_ids) if branch is not None else model.lstm_logits(token_ids, lengths.long())
            logits[name][rows] = values.numpy()

    cores.map(run, plan_minibatches(texts.tokens.lengths, batch_tokens=16_384))
    return logits


def best_weights(
    logits: Sequence[NDArray[np.float32]],
    targets: NDArray[np.float32],
    prior: Sequence[float],
    multi_label: bool = False,
) -> NDArray[np.float64]:
    """Return the positive weight of each branch that minimises the log loss of the weighted sum of logits.

    The prior on the weights is log-normal: a factor of e from its mean costs two nats of likelihood, so ten texts
    hardly move a weight and thousands decide it.

    Args:
        logits: of each branch, float32 [texts, classes].
        targets: float32 [texts, classes].
        prior: mean weight of each branch.
        multi_label: whether a document can have several classes or none.
    """
    stacked, start = np.stack(logits).astype(np.float64), np.log(prior)

    def cost(logarithms: NDArray[np.float64]) -> float:
        total = np.tensordot(np.exp(logarithms), stacked, axes=1)
        loss = log_loss(as_probabilities(total, multi_label), targets, multi_label=multi_label) or 0.0
        return loss * len(targets) + 2 * float(((logarithms - start) ** 2).sum())

    bounds = [(np.log(MIN_WEIGHT), np.log(1 / MIN_WEIGHT))] * len(start)
    weights: NDArray[np.float64] = np.exp(minimize(cost, start, method="Nelder-Mead", bounds=bounds).x)
    return weights


@torch.no_grad()
def scale_branches(model: Classifier, weights: dict[str, float]) -> None:
    """Multiply the output parameters of each branch by its weight."""
    heads = {LSTM: (model.output.weight, model.output.bias)}
    if model.wide is not None:
        heads[NGRAM_LINEAR] = (model.wide.table, model.wide.start)
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


def _macro_f1(logits: NDArray[np.floating], targets: NDArray[np.float32], multi_label: bool) -> float:
    probabilities = as_probabilities(logits, multi_label)
    thresholds = best_thresholds(probabilities, targets > 0) if multi_label else None
    return macro_f1(decide(probabilities, thresholds), targets > 0)
