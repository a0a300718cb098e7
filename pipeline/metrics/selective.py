"""Labelled at a promised precision: thresholds of confidence, proven on the validation split.

A promise of 0.95 means that with 95 % confidence at least 0.95 of the labelled rows are right, if texts come as they
came in the validation split. Rows below the thresholds go to people.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

from pipeline.config import SelectiveConfig
from pipeline.errors import ConfigError
from pipeline.metrics.predictions import Predictions

REPORTED_PRECISIONS = (0.90, 0.95, 0.98, 0.99)  # those that reports show
POLICY_ALPHA = 0.05  # a promise may be wrong this often
STEPS = 40  # thresholds tried: each lets in as many further rows
REVIEW_BELOW = 0.5  # where no precision is promised
ABSTAIN = np.float32(np.inf)  # the threshold of a class that goes to review wholly


@dataclass(frozen=True)
class SelectivePolicy:
    """Confidences from which labels are given, and what shows that they keep a precision.

    Attributes:
        target: the precision that is promised.
        per: "all" labelled rows together, or those of each "class".
        thresholds: float32 [classes]; infinite for a class that goes to review wholly.
    """

    target: float
    per: str
    thresholds: NDArray[np.float32]

    @property
    def abstained_classes(self) -> list[int]:
        """The classes that go to review wholly."""
        return np.flatnonzero(np.isinf(self.thresholds)).tolist()

    def labelled(self, predictions: Predictions) -> NDArray[np.bool_]:
        """Return which texts are labelled, bool [texts]; the others go to review."""
        return predictions.confidence >= self.thresholds[predictions.predicted]


@dataclass(frozen=True)
class SelectiveResult:
    """What a promise comes to on some texts."""

    texts: int
    labelled: int
    right: int

    @classmethod
    def of(cls, policy: SelectivePolicy, predictions: Predictions) -> "SelectiveResult":
        labelled = policy.labelled(predictions)
        return cls(len(predictions), int(labelled.sum()), int(predictions.correct[labelled].sum()))

    @property
    def coverage(self) -> float | None:
        return self.labelled / self.texts if self.texts else None

    @property
    def precision(self) -> float | None:
        return self.right / self.labelled if self.labelled else None

    def verdict(self, target: float) -> str:
        """Return "kept", "missed" (by no more than chance explains), "broken", or "" where nothing was labelled."""
        if self.precision is None:
            return ""
        if self.precision >= target:
            return "kept"
        return "missed" if clopper_pearson_upper(self.right, self.labelled) >= target else "broken"


def violated_classes(policy: SelectivePolicy, predictions: Predictions) -> dict[int, SelectiveResult]:
    """Return the classes whose labelled texts break a promise made for each class, beyond chance.

    With many classes some would seem to by chance, so each is held to an accordingly smaller doubt (Bonferroni).

    Args:
        promise: for each class.
        claims: of texts that the thresholds were not chosen on.
    """
    each = {
        int(number): SelectiveResult.of(policy, predictions.where(predictions.predicted == number))
        for number in np.unique(predictions.predicted[policy.labelled(predictions)])
    }
    alpha = POLICY_ALPHA / max(len(each), 1)
    return {
        number: one
        for number, one in each.items()
        if clopper_pearson_upper(one.right, one.labelled, alpha) < policy.target
    }


def review_thresholds(policy: SelectivePolicy | None, below: float | None, classes: int) -> NDArray[np.float32]:
    """Return the confidence below which rows go to review, float32 [classes], by the likeliest class.

    Args:
        promise: what labelled rows are to keep, if anything.
        below: a confidence below which rows go to review in any case; None for `REVIEW_BELOW` without a promise.
        classes: how many there are.
    """
    if policy is None:
        return np.full(classes, REVIEW_BELOW if below is None else below, np.float32)
    return np.maximum(policy.thresholds, np.float32(below or 0.0))


def clopper_pearson_lower(right: int, n: int, alpha: float = POLICY_ALPHA) -> float:
    """Return the share that is exceeded with confidence `1 - doubt`, when `right` of `n` were (Clopper-Pearson)."""
    return float(beta.ppf(alpha, right, n - right + 1)) if right else 0.0


def clopper_pearson_upper(right: int, n: int, alpha: float = POLICY_ALPHA) -> float:
    """Return the share that is not exceeded with confidence `1 - doubt`, when `right` of `n` were (Clopper-Pearson)."""
    return float(beta.ppf(1 - alpha, right + 1, n - right)) if right < n else 1.0


def min_sample_size(target: float) -> int:
    """Return how many texts it takes to show a precision if all of them are right."""
    return int(np.ceil(np.log(POLICY_ALPHA) / np.log(target)))


def check_provable(target: float, texts: int) -> None:
    """Refuse a promise that no result on so few validation texts could prove.

    Raises:
        ConfigError: says how many it takes.
    """
    if target and texts < min_sample_size(target):
        reachable = [f"{one:g}" for one in REPORTED_PRECISIONS if one < target and min_sample_size(one) <= texts]
        ask = f"ask for {reachable[-1]}, " if reachable else ""
        raise ConfigError(
            f"a precision of {target:g} cannot be shown on {texts:,} validation texts: it takes "
            f"{min_sample_size(target):,} that are all right; {ask}label more texts, or raise training.validation_share"
        )


def fit_policies(
    predictions: Predictions, config: SelectiveConfig, labels: Sequence[str], *further: float
) -> dict[float, SelectivePolicy]:
    """Return the promises that reports show, by target: those of `TARGETS`, the configured one, and further ones.

    Args:
        claims: of the validation split.
        config: what was asked for in training.
        labels: the names of the classes.
        further: other targets.
    """
    none_class = labels.index(config.none_label) if config.none_label in labels else None
    targets = sorted({*REPORTED_PRECISIONS, *further, config.target_precision} - {0.0})
    return {
        target: fit_policy(
            predictions, target, len(labels), per=config.per, none_class=none_class, none_labelled=config.none_labelled
        )
        for target in targets
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
    """Return the thresholds at which the most rows are labelled and a precision is proven.

    Of a class without validation texts nothing is known, so it goes to review wholly.

    Args:
        claims: of the validation split.
        target: the precision, above 0 and below 1.
        classes: how many there are.
        per: "all" or "class".
        none: the class of texts that belong to none of the others.
        none_labelled: share of these that may be labelled as one of the others.
    """
    thresholds = np.full(classes, ABSTAIN)
    if per == "class":
        for number in range(classes):
            thresholds[number] = _threshold(predictions.where(predictions.predicted == number), target)
    else:
        thresholds[:] = _threshold(predictions, target)
    if none_class is not None:
        strictest = _none_threshold(predictions, none_class, none_labelled)
        thresholds = np.where(np.arange(classes) == none_class, thresholds, np.maximum(thresholds, strictest))
    seen = np.isin(np.arange(classes), predictions.truth) if (predictions.truth >= 0).any() else np.ones(classes, bool)
    return SelectivePolicy(target, per, np.where(seen, thresholds, ABSTAIN).astype(np.float32))


def check_none_provable(share: float, texts: int, label: str) -> None:
    """Refuse a limit for texts of no class that no result on so few of them could prove.

    Raises:
        ConfigError: says how many it takes.
    """
    needed = next(n for n in itertools.count(1) if clopper_pearson_upper(0, n) <= share)
    if texts < needed:
        raise ConfigError(
            f"selective.none_label: that no more than {share:g} of the texts of {label!r} are labelled cannot be shown "
            f"on {texts:,} of them in the validation split: it takes {needed:,}; add examples, or raise "
            "training.validation_share or selective.none_labelled"
        )


def _threshold(predictions: Predictions, target: float) -> np.float32:
    """Return the lowest confidence down to which a precision is proven; infinite if it is nowhere.

    Thresholds are tried in an order that does not depend on which claims were right, each with an exact test, up to
    the first that fails: so the chance that any that passed is wrong stays below `DOUBT`, however many are tried
    (fixed-sequence testing, Angelopoulos et al., "Learn then Test", 2021). The first is where the model's own
    confidence makes the proof easiest.
    """
    order = np.argsort(-predictions.confidence, kind="stable")
    confidence, right = predictions.confidence[order], np.cumsum(predictions.correct[order])
    found = ABSTAIN
    for rank in _sequence(confidence, target):
        if clopper_pearson_lower(int(right[rank - 1]), int(rank)) < target:
            break
        found = confidence[rank - 1]
    return found


def _sequence(confidence: NDArray[np.float32], target: float) -> Sequence[int]:
    """Return how many of the surest claims to test together, in order.

    Args:
        confidence: float32 [n], falling.
        target: the precision.
    """
    n, fewest = len(confidence), min_sample_size(target)
    last_of_equals = np.flatnonzero(np.diff(confidence, append=-1.0) < 0) + 1
    ranks = last_of_equals[last_of_equals >= fewest]
    if not len(ranks):
        return []
    expected = np.cumsum(confidence, dtype=np.float64)[ranks - 1] / ranks
    first = int(np.argmax((expected - target) * np.sqrt(ranks)))
    wanted = np.append(np.arange(ranks[first], n, max(1, n // STEPS)), n)
    return np.unique(ranks[np.minimum(np.searchsorted(ranks, wanted), len(ranks) - 1)]).tolist()


def _none_threshold(predictions: Predictions, none_class: int, share: float) -> np.float32:
    """Return the confidence from which, proven, no more than a share of the texts of no class are labelled as one."""
    wrongly = np.sort(
        predictions.confidence[(predictions.truth == none_class) & (predictions.predicted != none_class)]
    )[::-1]
    texts = int((predictions.truth == none_class).sum())
    passing = [count for count in range(len(wrongly) + 1) if clopper_pearson_upper(count, texts) <= share]
    if not passing:
        return ABSTAIN
    most = passing[-1]
    return np.float32(np.nextafter(wrongly[most], ABSTAIN)) if most < len(wrongly) else np.float32(0.0)
