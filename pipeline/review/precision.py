"""How many labels that a model was sure of are right: measured on the random sample that people reviewed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dataset.reviews import latest_answers, read_answers
from pipeline.metrics.intervals import clopper_pearson_lower, clopper_pearson_upper
from pipeline.models.bundle import Bundle
from pipeline.nights.publish import published_batches
from pipeline.scoring.labels import LabelledBatch
from pipeline.workspace import Workspace

LEVEL = 0.95  # of the interval
RECENT_NIGHTS = 14


@dataclass(frozen=True)
class PrecisionEstimate:
    """A share of right labels among reviewed ones.

    Attributes:
        right: labels that people found right.
        reviewed: those that they looked at.
        nights: how many nights these are of.
    """

    confirmed: int
    reviewed: int
    nights: int

    @property
    def share(self) -> float:
        return self.confirmed / self.reviewed

    @property
    def interval(self) -> tuple[float, float]:
        """The exact 95 % interval (Clopper and Pearson 1934) of the share among all such labels."""
        alpha = (1 - LEVEL) / 2
        lower = clopper_pearson_lower(self.confirmed, self.reviewed, alpha)
        return lower, clopper_pearson_upper(self.confirmed, self.reviewed, alpha)

    def violates(self, target_precision: float) -> bool:
        """Return whether the share is below what was promised by more than chance explains."""
        return self.interval[1] < target_precision


@dataclass(frozen=True)
class ReviewedPrecision:
    """The reviewed sample of a model's published nights; None where nothing of it was reviewed.

    Attributes:
        version: of the labels by this version, where something is promised in nights with the same promise.
        recent: of the labels of the newest nights, by whatever version.
        promised: the precision that the labels of the version were to have; None if none was promised.
    """

    version: PrecisionEstimate | None
    recent: PrecisionEstimate | None
    target_precision: float | None

    @property
    def violated(self) -> bool:
        return (
            self.version is not None
            and self.target_precision is not None
            and self.version.violates(self.target_precision)
        )


def reviewed_precision(workspace: Workspace, bundle: Bundle, policy: dict[str, Any] | None) -> ReviewedPrecision:
    """Return what people found of the labels that a model was sure of.

    Only the sample counts, because doubtful rows were chosen for being doubtful, and only published nights.
    What people said of a label that an earlier version gave says nothing of this one, which may have learnt from it.

    Args:
        workspace: where labels and reviews lie.
        bundle: the version.
        promise: of the labels manifest, with its `target`.
    """
    answers = read_answers(workspace).filter(pc.field("why") == "sample")
    answers = latest_answers(answers, ["batch", "doc_id", "model"])
    nights = sorted(
        published_batches(workspace, bundle.name), key=lambda one: (one.manifest.get("created", ""), one.id)
    )
    ids = [one.id for one in nights]
    alike = [one.id for one in nights if not policy or _target(one) == policy["target"]]
    own = answers.filter(pc.equal(answers["model"], bundle.title))
    named = answers.filter(pc.starts_with(answers["model"], f"{bundle.name}@"))
    return ReviewedPrecision(
        version=_precision(own, alike),
        recent=_precision(named, ids[-RECENT_NIGHTS:]),
        target_precision=float(policy["target"]) if policy else None,
    )


def _target(night: LabelledBatch) -> float | None:
    policy = night.manifest.get("promise")
    return policy["target"] if policy else None


def _precision(answers: pa.Table, nights: Sequence[str]) -> PrecisionEstimate | None:
    there = answers.filter(pc.is_in(answers["batch"], value_set=pa.array(nights, pa.string())))
    if not len(there):
        return None
    confirmed = pc.sum(pc.equal(there["label"], there["correct"])).as_py()
    return PrecisionEstimate(confirmed, len(there), len(pc.unique(there["batch"])))
