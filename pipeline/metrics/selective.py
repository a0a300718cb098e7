"""Selective classification: label what reaches a target precision, send the rest to review.

A policy holds a confidence threshold for each class, fitted on the validation split. With target 0.95, at least 0.95
of the labelled rows are right with confidence `1 - POLICY_ALPHA`, if new texts are distributed like that split.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.config import SelectiveConfig
from pipeline.errors import ConfigError
from pipeline.metrics.intervals import clopper_pearson_lower, clopper_pearson_upper
from pipeline.metrics.predictions import Predictions

REPORTED_PRECISIONS = (0.90, 0.95, 0.98, 0.99)
POLICY_ALPHA = 0.05  # probability that a fitted policy misses its target
STEPS = 40  # at most so many thresholds are tested, evenly spaced in rows
REVIEW_BELOW = 0.5  # confidence threshold without a target precision
ABSTAIN = np.float32(np.inf)  # threshold of a class whose rows all go to review

Verdict = Literal["met", "within noise", "violated", ""]


@dataclass(frozen=True)
class SelectivePolicy:
    """Confidence thresholds at which labels reach a target precision.

    Attributes:
        target: the precision.
        per: "all": the precision of all labelled rows together; "class": of those of each predicted class.
        thresholds: float32 [classes]; infinite for an abstained class.
    """

    target: float
    per: str
    thresholds: NDArray[np.float32]

    @property
    def abstained_classes(self) -> list[int]:
        """The classes whose rows all go to review."""
        return np.flatnonzero(np.isinf(self.thresholds)).tolist()

    def labelled(self, predictions: Predictions) -> NDArray[np.bool_]:
        """Return which rows are labelled, bool [n]; the others go to review."""
        return predictions.confidence >= self.thresholds[predictions.predicted]


@dataclass(frozen=True)
class SelectiveResult:
    """How many of some texts a policy labels, and how many of those labels are right."""

    texts: int
    labelled: int
    right: int

    @classmethod
    def of(cls, policy: SelectivePolicy, predictions: Predictions) -> Self:
        """Apply a policy to predictions."""
        labelled = policy.labelled(predictions)
        return cls(len(predictions), int(labelled.sum()), int(predictions.correct[labelled].sum()))

    @property
    def coverage(self) -> float | None:
        """Share of the texts that is labelled; None without texts."""
        return self.labelled / self.texts if self.texts else None

    @property
    def precision(self) -> float | None:
        """Share of the labels that is right; None without labels."""
        return self.right / self.labelled if self.labelled else None

    def verdict(self, target: float) -> Verdict:
        """Return whether the target is met; a miss that chance explains is within noise. "" without labels."""
        if self.precision is None:
            return ""
        if self.precision >= target:
            return "met"
        upper = clopper_pearson_upper(self.right, self.labelled, POLICY_ALPHA)
        return "within noise" if upper >= target else "violated"


def violated_classes(policy: SelectivePolicy, predictions: Predictions) -> dict[int, SelectiveResult]:
    """Return the classes whose labelled texts violate the target of a policy per class.

    The error rate is divided by the number of classes (Bonferroni), so that many classes raise no false alarm.

    Args:
        policy: fitted per class.
        predictions: on texts that the policy was not fitted on.
    """
    results = {
        int(number): SelectiveResult.of(policy, predictions.subset(predictions.predicted == number))
        for number in np.unique(predictions.predicted[policy.labelled(predictions)])
    }
    alpha = POLICY_ALPHA / max(len(results), 1)
    return {
        number: result
        for number, result in results.items()
        if clopper_pearson_upper(result.right, result.labelled, alpha) < policy.target
    }


def review_thresholds(policy: SelectivePolicy | None, below: float | None, classes: int) -> NDArray[np.float32]:
    """Return the confidence below which rows go to review, float32 [classes], by predicted class.

    Args:
        policy: the selective policy, if a target precision is set.
        below: a lower limit for all thresholds; without a policy None means `REVIEW_BELOW`.
        classes: number of classes.
    """
    if policy is None:
        return np.full(classes, REVIEW_BELOW if below is None else below, np.float32)
    return np.maximum(policy.thresholds, np.float32(below or 0.0))


def min_sample_size(target: float) -> int:
    """Return how many texts prove a precision if all of them are right."""
    return int(np.ceil(np.log(POLICY_ALPHA) / np.log(target)))


def check_provable(target: float, texts: int) -> None:
    """Refuse a target precision that no result on so few validation texts can prove.

    Raises:
        ConfigError: says how many texts it takes.
    """
    if target and texts < min_sample_size(target):
        provable = [f"{lower:g}" for lower in REPORTED_PRECISIONS if lower < target and min_sample_size(lower) <= texts]
        ask = f"ask for {provable[-1]}, " if provable else ""
        raise ConfigError(
            f"a precision of {target:g} cannot be shown on {texts:,} validation texts: it takes "
            f"{min_sample_size(target):,} that are all right; {ask}label more texts, or raise training.validation_share"
        )


def check_none_provable(share: float, texts: int, label: str) -> None:
    """Refuse a limit on labelled texts of no class that no result on so few of them can prove.

    Raises:
        ConfigError: says how many texts it takes.
    """
    needed = min_sample_size(1 - share)
    if texts < needed:
        raise ConfigError(
            f"selective.none_label: that no more than {share:g} of the texts of {label!r} are labelled cannot be shown "
            f"on {texts:,} of them in the validation split: it takes {needed:,}; add examples, or raise "
            "training.validation_share or selective.none_labelled"
        )


def fit_policies(
    predictions: Predictions, config: SelectiveConfig, labels: Sequence[str], *targets: float
) -> dict[float, SelectivePolicy]:
    """Return a policy for each of `REPORTED_PRECISIONS`, the configured target and further ones, by target.

    Args:
        predictions: on the validation split.
        config: the settings of the training.
        labels: the names of the classes.
        targets: further target precisions.
    """
    none_class = labels.index(config.none_label) if config.none_label in labels else None
    return {
        target: fit_policy(
            predictions, target, len(labels), per=config.per, none_class=none_class, none_labelled=config.none_labelled
        )
        for target in sorted({*REPORTED_PRECISIONS, *targets, config.target_precision} - {0.0})
    }


def fit_policy(
    predictions: Predictions,
    target: float,
    classes: int,
    *,
    per: str = "all",
    none_class: int | None = None,
    none_labelled: float = 0.1,
) -> SelectivePolicy:
    """Return the policy that labels the most rows at a proven precision.

    A class without validation texts is abstained.

    Args:
        predictions: on the validation split.
        target: the precision, above 0 and below 1.
        classes: number of classes.
        per: "all" or "class".
        none_class: the class of texts that belong to none of the others.
        none_labelled: the largest share of these that may be labelled as one of the others.
    """
    thresholds = np.full(classes, ABSTAIN)
    if per == "class":
        for number in range(classes):
            thresholds[number] = _lowest_proven_threshold(predictions.subset(predictions.predicted == number), target)
    else:
        thresholds[:] = _lowest_proven_threshold(predictions, target)
    if none_class is not None:
        strictest = _none_threshold(predictions, none_class, none_labelled)
        thresholds = np.where(np.arange(classes) == none_class, thresholds, np.maximum(thresholds, strictest))
    if (predictions.truth >= 0).any():
        thresholds[~np.isin(np.arange(classes), predictions.truth)] = ABSTAIN
    return SelectivePolicy(target, per, thresholds.astype(np.float32))


def _lowest_proven_threshold(predictions: Predictions, target: float) -> np.float32:
    """Return the lowest confidence from which a precision is proven; infinite if there is none.

    Fixed-sequence testing (Angelopoulos et al., "Learn then Test", 2021): thresholds are tested in an order that does
    not depend on which predictions are correct, each with an exact test, up to the first failure. So the probability
    that any accepted threshold is wrong stays below `POLICY_ALPHA`, however many are tested. The first threshold is
    the one at which the model's own confidence makes the proof easiest.
    """
    order = np.argsort(-predictions.confidence, kind="stable")
    confidence, correct = predictions.confidence[order], np.cumsum(predictions.correct[order])
    last_of_equals = np.flatnonzero(np.diff(confidence, append=-1.0) < 0) + 1
    ranks = last_of_equals[last_of_equals >= min_sample_size(target)]
    if not len(ranks):
        return ABSTAIN
    expected = np.cumsum(confidence, dtype=np.float64)[ranks - 1] / ranks
    first, n = int(np.argmax((expected - target) * np.sqrt(ranks))), len(confidence)
    steps = np.append(np.arange(ranks[first], n, max(1, n // STEPS)), n)
    threshold = ABSTAIN
    for rank in np.unique(ranks[np.minimum(np.searchsorted(ranks, steps), len(ranks) - 1)]).tolist():
        if clopper_pearson_lower(int(correct[rank - 1]), rank, POLICY_ALPHA) < target:
            break
        threshold = confidence[rank - 1]
    return threshold


def _none_threshold(predictions: Predictions, none_class: int, share: float) -> np.float32:
    """Return the confidence from which, proven, at most a share of the texts of no class are labelled as another."""
    is_none = predictions.truth == none_class
    wrong = np.sort(predictions.confidence[is_none & (predictions.predicted != none_class)])[::-1]
    texts = int(is_none.sum())
    allowed = [count for count in range(len(wrong) + 1) if clopper_pearson_upper(count, texts, POLICY_ALPHA) <= share]
    if not allowed:
        return ABSTAIN
    return np.float32(np.nextafter(wrong[allowed[-1]], ABSTAIN)) if allowed[-1] < len(wrong) else np.float32(0.0)
