"""How much each branch of a model has to say: weights for their logits that suit the validation texts best."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from pipeline.dataset.minibatches import plan_minibatches
from pipeline.dataset.token_cache import TokenSet
from pipeline.metrics.classification import best_thresholds, decide, log_loss, macro_f1
from pipeline.training.model import Classifier
from pipeline.training.parallel import CorePool

LSTM, NGRAM_LINEAR, MEAN_EMBEDDING = "LSTM", "words and word pairs", "document vectors"
BRANCHES = (LSTM, NGRAM_LINEAR, MEAN_EMBEDDING)
# What weights come to on corpora of many sizes: where there are few validation texts, they stay about there.
PRIOR_WEIGHTS = {LSTM: 0.6, NGRAM_LINEAR: 3.0, MEAN_EMBEDDING: 0.5}
FEWEST = 1e-3  # a weight is positive: a branch may be of no use, but is not turned round


@dataclass(frozen=True)
class BranchWeight:
    """What a branch does by itself, and in the whole.

    Attributes:
        name: of the branch.
        weight: what its logits are multiplied by.
        macro_f1: of the branch alone, on the validation split.
    """

    name: str
    weight: float
    macro_f1: float


@dataclass(frozen=True)
class WeightedEnsemble:
    """What the branches are weighed, and how good the whole is on the validation split."""

    parts: list[BranchWeight]
    macro_f1: float


def fit_branch_weights(
    model: Classifier, texts: TokenSet, cores: CorePool, branches: Sequence[str] = BRANCHES
) -> WeightedEnsemble:
    """Weigh a model's branches so that its log loss on some texts is least, and write the weights into the model.

    One number for each branch is a temperature for each, so the probabilities are calibrated by the way.

    Args:
        model: on the CPU; its branches are changed in place.
        texts: of the validation split, which no branch has learnt from.
        cores: what to run on.
        branches: those to weigh, where the model has them; the others say nothing.
    """
    logits = branch_logits(model, texts, cores, branches)
    targets, names = texts.targets(), list(logits)
    usual = [PRIOR_WEIGHTS[name] for name in names] if len(names) > 1 else [1.0]
    weights = best_weights(list(logits.values()), targets, usual, model.multi_label)
    scale_branches(model, dict(zip(names, weights, strict=True)))
    parts = [
        BranchWeight(name, float(weight), _macro_f1(own, targets, model.multi_label))
        for (name, own), weight in zip(logits.items(), weights, strict=True)
    ]
    whole = np.tensordot(weights, np.stack(list(logits.values())), axes=1)
    return WeightedEnsemble(parts, _macro_f1(whole, targets, model.multi_label))


def branch_logits(
    model: Classifier, texts: TokenSet, cores: CorePool, branches: Sequence[str] = BRANCHES
) -> dict[str, NDArray[np.float32]]:
    """Return the logits [texts, classes] of each branch that is asked for and that a model has."""
    model.eval()
    there = {LSTM: model, NGRAM_LINEAR: model.wide, MEAN_EMBEDDING: model.average}
    asked = [name for name in branches if there[name] is not None]
    found = {name: np.zeros((len(texts), model.output.out_features), dtype=np.float32) for name in asked}

    @torch.inference_mode()
    def run_all(rows: NDArray[np.int64]) -> None:
        token_ids, lengths = (torch.from_numpy(array) for array in texts.tokens.pad(rows))
        for name in asked:
            found[name][rows] = _logits(model, name, token_ids, lengths.long()).numpy()

    cores.map(run_all, plan_minibatches(texts.tokens.lengths, batch_tokens=16_384))
    return found


def _logits(model: Classifier, name: str, token_ids: Tensor, lengths: Tensor) -> Tensor:
    if name == LSTM:
        return model.lstm_logits(token_ids, lengths)
    branch = model.wide if name == NGRAM_LINEAR else model.average
    assert branch is not None
    logits: Tensor = branch(token_ids)
    return logits


def best_weights(
    logits: Sequence[NDArray[np.float32]],
    targets: NDArray[np.float32],
    usual: Sequence[float],
    multi_label: bool = False,
) -> NDArray[np.float64]:
    """Return a positive weight for each branch, so that the log loss of their weighted sum is least.

    The usual weights are what is believed beforehand: a factor of e from one costs two nats of likelihood, so ten
    texts hardly move a weight and thousands decide it.

    Args:
        logits: of each branch, float32 [texts, classes].
        targets: float32 [texts, classes].
        usual: a weight for each branch.
        multi_label: whether a document can have several classes, or none.
    """
    stacked, start = np.stack(logits).astype(np.float64), np.log(usual)

    def cost(logarithms: NDArray[np.float64]) -> float:
        total = np.tensordot(np.exp(logarithms), stacked, axes=1)
        loss = log_loss(as_probabilities(total, multi_label), targets, multi_label=multi_label) or 0.0
        return loss * len(targets) + 2 * float(((logarithms - start) ** 2).sum())

    bounds = [(np.log(FEWEST), np.log(1 / FEWEST))] * len(start)
    weights: NDArray[np.float64] = np.exp(minimize(cost, start, method="Nelder-Mead", bounds=bounds).x)
    return weights


@torch.no_grad()
def scale_branches(model: Classifier, weights: dict[str, float]) -> None:
    """Multiply the logits of each branch by its weight, once and for all."""
    heads = {LSTM: (model.output.weight, model.output.bias)}
    if model.wide is not None:
        heads[NGRAM_LINEAR] = (model.wide.table, model.wide.start)
    if model.average is not None:
        heads[MEAN_EMBEDDING] = (model.average.output.weight, model.average.output.bias)
    for name, weight in weights.items():
        for parameter in heads[name]:
            parameter.mul_(weight)


def as_probabilities(logits: NDArray[np.floating], multi_label: bool) -> NDArray[np.floating]:
    """Return the probabilities [texts, classes] that logits stand for."""
    whole = torch.from_numpy(logits)
    probabilities: NDArray[np.floating] = (whole.sigmoid() if multi_label else whole.softmax(dim=-1)).numpy()
    return probabilities


def _macro_f1(logits: NDArray[np.floating], targets: NDArray[np.float32], multi_label: bool) -> float:
    probabilities = as_probabilities(logits, multi_label)
    thresholds = best_thresholds(probabilities, targets > 0) if multi_label else None
    return macro_f1(decide(probabilities, thresholds), targets > 0)
