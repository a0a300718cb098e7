"""Reports of scoring: counts, speed and profile of each part, and of the batch."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.metrics.outliers import Outlier
from pipeline.metrics.profile import Profile, merge_profiles
from pipeline.models.session import Device
from pipeline.models.variants import VariantChoice
from pipeline.scoring.timing import total_seconds, wall_shares


@dataclass(frozen=True)
class PartReport:
    """The outcome of a part; `skipped` if its labels existed already."""

    file: str
    rows: int
    counts: dict[str, int]  # by status
    labels: dict[str, int]
    fingerprint: str
    skipped: bool = False
    tokens: int = 0
    slots: int = 0  # tokens and padding
    truncated_texts: int = 0
    unknown_tokens: int = 0
    profile: Profile | None = None  # None for an old part without one
    outliers: Sequence[Outlier] | None = None  # likewise
    seconds: float = 0.0
    stages: Mapping[str, float] = field(default_factory=dict)  # busy seconds, see pipeline.scoring.timing


@dataclass(frozen=True)
class BatchReport:
    """The outcome of a batch; the counts add up to its documents."""

    batch: str
    model: str
    device: Device
    variant: VariantChoice
    workers: int  # minibatches that ran at once
    parts: Sequence[PartReport]
    path: Path
    seconds: float  # wall time of this run

    @property
    def counts(self) -> dict[str, int]:
        """Rows by status."""
        return _total(part.counts for part in self.parts)

    @property
    def labels(self) -> dict[str, int]:
        """Rows by label."""
        return dict(sorted(_total(part.labels for part in self.parts).items()))

    @property
    def profile(self) -> Profile | None:
        """The profiles of all parts merged; None if a part has none, or they are not comparable."""
        profiles = [part.profile for part in self.parts if part.profile]
        if not profiles or len(profiles) < len(self.parts):
            return None
        return merge_profiles(profiles) if all(profile.comparable(profiles[0]) for profile in profiles) else None

    @property
    def skipped(self) -> bool:
        """Whether the labels of all parts existed already."""
        return all(part.skipped for part in self.parts)

    @property
    def rows(self) -> int:
        """Documents in all parts."""
        return sum(part.rows for part in self.parts)

    @property
    def scored_parts(self) -> list[PartReport]:
        """The parts that this run labelled."""
        return [part for part in self.parts if not part.skipped]

    @property
    def rows_per_second(self) -> float:
        """Speed of this run, skipped parts left out."""
        return sum(part.rows for part in self.scored_parts) / max(self.seconds, 1e-9)

    @property
    def tokens_per_second(self) -> float:
        """Speed of this run, skipped parts left out."""
        return sum(part.tokens for part in self.scored_parts) / max(self.seconds, 1e-9)

    @property
    def padding_share(self) -> float:
        """Share of the token slots in all minibatches that held no token."""
        slots = sum(part.slots for part in self.scored_parts)
        return 1 - sum(part.tokens for part in self.scored_parts) / slots if slots else 0.0

    @property
    def stage_shares(self) -> dict[str, float]:
        """Share of the wall time that each stage was busy, see `pipeline.scoring.timing.wall_shares`."""
        return wall_shares(total_seconds(part.stages for part in self.scored_parts), self.seconds, self.workers)


def _total(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(total)
