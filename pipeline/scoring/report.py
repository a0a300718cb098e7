"""What became of the parts of a batch, and of the batch."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipeline.metrics.outliers import Outlier
from pipeline.metrics.profile import Profile, merge_profiles
from pipeline.models.session import Device
from pipeline.models.variants import VariantChoice
from pipeline.scoring.timing import total_seconds, wall_shares


@dataclass(frozen=True)
class PartReport:
    """What became of one part; `skipped` if its labels were there already."""

    file: str
    rows: int
    counts: dict[str, int]  # by status
    labels: dict[str, int]
    fingerprint: str
    skipped: bool = False
    tokens: int = 0
    slots: int = 0  # tokens and the padding beside them
    truncated_texts: int = 0
    unknown_tokens: int = 0
    profile: Profile | None = None  # of a part from before there was any, None
    outliers: Sequence[Outlier] | None = None  # likewise
    seconds: float = 0.0
    stages: Mapping[str, float] = field(default_factory=dict)  # busy seconds, see pipeline.scoring.timing

    def timed(self, seconds: float, stages: Mapping[str, float]) -> "PartReport":
        return replace(self, seconds=seconds, stages=stages)


@dataclass(frozen=True)
class BatchReport:
    """What became of a batch; the counts add up to its documents."""

    batch: str
    model: str
    device: Device
    precision: VariantChoice
    workers: int  # batches that ran at once
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
        """What the model saw and said in all parts; None if that is not known of one of them."""
        found = [part.profile for part in self.parts if part.profile]
        if not found or len(found) < len(self.parts) or not all(one.comparable(found[0]) for one in found):
            return None
        return merge_profiles(found)

    @property
    def skipped(self) -> bool:
        return all(part.skipped for part in self.parts)

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts)

    @property
    def scored_parts(self) -> list[PartReport]:
        """The parts that this run labelled."""
        return [part for part in self.parts if not part.skipped]

    @property
    def rows_per_second(self) -> float:
        return sum(part.rows for part in self.scored_parts) / max(self.seconds, 1e-9)

    @property
    def tokens_per_second(self) -> float:
        return sum(part.tokens for part in self.scored_parts) / max(self.seconds, 1e-9)

    @property
    def padding_share(self) -> float:
        """Share of the token slots in all batches that held no token."""
        slots = sum(part.slots for part in self.scored_parts)
        return 1 - sum(part.tokens for part in self.scored_parts) / slots if slots else 0.0

    @property
    def stage_shares(self) -> dict[str, float]:
        """Share of the wall time in which each stage was busy, see `pipeline.scoring.timing.wall_shares`."""
        return wall_shares(total_seconds(part.stages for part in self.scored_parts), self.seconds, self.workers)


def _total(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(total)
