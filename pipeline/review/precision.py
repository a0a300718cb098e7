"""The precision of confident labels, measured on the random sample that people reviewed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dataset.reviews import latest_answers, read_answers
from pipeline.metrics.intervals import clopper_pearson_lower, clopper_pearson_upper
from pipeline.models.bundle import Bundle
from pipeline.nights.publish import published_batches
from pipeline.workspace import Workspace

LEVEL = 0.95  # of the interval
RECENT_NIGHTS = 14


@dataclass(frozen=True)
class PrecisionEstimate:
    """The share of right labels in a reviewed sample.

    Attributes:
        confirmed: labels that people confirmed.
        reviewed: labels that people reviewed.
        nights: number of nights the sample is from.
    """

    confirmed: int
    reviewed: int
    nights: int

    @property
    def share(self) -> float:
        return self.confirmed / self.reviewed

    @property
    def interval(self) -> tuple[float, float]:
        """The exact 95 % interval of the precision (Clopper and Pearson 1934)."""
        alpha = (1 - LEVEL) / 2
        lower = clopper_pearson_lower(self.confirmed, self.reviewed, alpha)
        return lower, clopper_pearson_upper(self.confirmed, self.reviewed, alpha)

    def violates(self, target_precision: float) -> bool:
        """Return whether the share is below a target by more than chance explains."""
        return self.interval[1] < target_precision


@dataclass(frozen=True)
class ReviewedPrecision:
    """The precision of a model's published nights; an estimate is None without reviewed rows.

    Attributes:
        version: of the labels by this version; with a target precision, in nights with the same target.
        recent: of the labels of the newest nights, by any version.
        target_precision: of the night; None without a target.
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
    """Estimate the precision of a model's confident labels from reviews.

    Only the random sample of published nights counts: doubtful rows were selected for being doubtful. An answer about
    a label of an earlier version says nothing about this version, which may be trained on it.

    Args:
        workspace: has the labels and reviews.
        bundle: the version.
        policy: of the labels manifest, with its `target`; None without a target precision.
    """
    answers = read_answers(workspace).filter(pc.field("why") == "sample")
    answers = latest_answers(answers, ["batch", "doc_id", "model"])
    nights = published_batches(workspace, bundle.name)
    nights = sorted(nights, key=lambda night: (night.manifest.get("created", ""), night.id))
    target = policy["target"] if policy else None
    with_target = [
        night.id for night in nights if target is None or (night.manifest.get("promise") or {}).get("target") == target
    ]
    of_version = answers.filter(pc.equal(answers["model"], bundle.title))
    of_model = answers.filter(pc.starts_with(answers["model"], f"{bundle.name}@"))
    return ReviewedPrecision(
        version=_precision(of_version, with_target),
        recent=_precision(of_model, [night.id for night in nights[-RECENT_NIGHTS:]]),
        target_precision=None if target is None else float(target),
    )


def _precision(answers: pa.Table, nights: Sequence[str]) -> PrecisionEstimate | None:
    answers = answers.filter(pc.is_in(answers["batch"], value_set=pa.array(nights, pa.string())))
    if not len(answers):
        return None
    confirmed = pc.sum(pc.equal(answers["label"], answers["correct"])).as_py()
    return PrecisionEstimate(confirmed, len(answers), len(pc.unique(answers["batch"])))
