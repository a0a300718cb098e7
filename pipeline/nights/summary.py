"""The facts of the morning's report: counts, label shifts since the night before, estimated accuracy, outliers."""

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import BatchError
from pipeline.files import read_json
from pipeline.metrics.outliers import MAX_OUTLIERS
from pipeline.metrics.profile import MEASURES, Profile, merge_profiles
from pipeline.models.bundle import Bundle
from pipeline.models.registry import Registry
from pipeline.schemas import STATUSES
from pipeline.scoring.explanations import format_evidence
from pipeline.scoring.labels import LabelledBatch, is_labelled_at, labelled_batches, read_outliers
from pipeline.workspace import Batch, Workspace

SHIFT_Z = 3.0  # standard errors; a smaller shift of a share is within noise
MIN_SHIFT = 0.01  # a smaller shift is ignored, however significant


@dataclass(frozen=True)
class LabelledNight:
    """The batches that one night labelled: at least one, all by the same version of a model."""

    batches: Sequence[LabelledBatch]

    @property
    def names(self) -> str:
        """The ids of the batches, joined."""
        return ", ".join(batch.id for batch in self.batches)

    @property
    def manifest(self) -> dict[str, Any]:
        """The manifest of the last batch; model, device and variant are the same in all."""
        return self.batches[-1].manifest

    @property
    def counts(self) -> dict[str, int]:
        """Rows by status, and `documents`."""
        return _total(batch.manifest["counts"] for batch in self.batches)

    @property
    def labels(self) -> dict[str, int]:
        """Rows by label."""
        return _total(batch.manifest["labels"] for batch in self.batches)

    @property
    def rows(self) -> int:
        """Rows, empty ones included."""
        return self.counts["documents"]

    @property
    def non_empty(self) -> int:
        """Rows with text."""
        return self.rows - self.counts["empty"]

    @property
    def profile(self) -> Profile | None:
        """The data profile; None if a batch has none, or other bins."""
        profiles = [batch.profile for batch in self.batches if batch.profile]
        if len(profiles) < len(self.batches) or not all(profile.comparable(profiles[0]) for profile in profiles):
            return None
        return merge_profiles(profiles)

    @property
    def rows_per_second(self) -> float:
        """The speed over the parts that were not skipped."""
        seconds = sum(batch.manifest["seconds"] for batch in self.batches)
        rows = sum(batch.manifest["rows_per_second"] * batch.manifest["seconds"] for batch in self.batches)
        return float(rows / max(seconds, 1e-9))

    def share(self, label: str) -> float:
        """Return the share of a label among the rows with text."""
        return self.labels.get(label, 0) / max(self.non_empty, 1)

    @property
    def review_share(self) -> float:
        """The share of the rows with status "review"."""
        return self.counts["review"] / max(self.rows, 1)


def _total(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(total)


def labelled_night(workspace: Workspace, model: str, batches: Iterable[Batch]) -> LabelledNight | None:
    """Return the batches of a night that a model has labelled completely; None without any.

    Args:
        workspace: where the labels lie.
        model: name of the model.
        batches: the batches of the night.
    """
    labelled = []
    for batch in batches:
        folder = workspace.labels_dir(model, batch.id)
        if is_labelled_at(folder, batch):
            labelled.append(LabelledBatch(batch.id, folder, read_json(folder / "manifest.json")))
    return LabelledNight(labelled) if labelled else None


def held_batches(workspace: Workspace) -> list[tuple[str, LabelledBatch]]:
    """Return the held labels of all models, each with the model's name.

    Labels of documents that are gone or have been replaced are left out: nobody can publish them.
    """
    held = []
    for model in Registry(workspace).names():
        for labels in labelled_batches(workspace, model):
            with suppress(BatchError):  # the documents are gone
                if not labels.published and is_labelled_at(labels.path, workspace.batch(labels.id)):
                    held.append((model, labels))
    return held


def night_before(workspace: Workspace, model: str, tonight: Sequence[str]) -> LabelledNight | None:
    """Return the newest labels of a model, by any version, from before tonight; published or held.

    Training batches are no nights; they have no checks.

    Args:
        workspace: where the labels lie.
        model: name of the model.
        tonight: the batches of tonight.
    """
    nights = [
        batch
        for batch in labelled_batches(workspace, model)
        if batch.id not in tonight and batch.manifest.get("checks") != []
    ]
    if not nights:
        return None
    return LabelledNight([max(nights, key=lambda batch: (batch.manifest.get("created", ""), batch.id))])


@dataclass(frozen=True)
class RowAccounting:
    """The rows of a batch by outcome; `statuses` is None without labels."""

    batch: str
    rows_read: int
    duplicates: int
    refused: int
    documents: int
    statuses: dict[str, int] | None

    @classmethod
    def of(cls, batch: Batch, labels: LabelledBatch | None) -> Self:
        """Read the counts of the manifests."""
        read = batch.manifest["counts"]
        statuses = {name: labels.manifest["counts"][name] for name in STATUSES} if labels else None
        return cls(batch.id, read["rows_read"], read["duplicates"], read["rejects"], read["documents"], statuses)

    @property
    def adds_up(self) -> bool:
        """Whether every row read is a document, a duplicate or refused, and every document has a status."""
        labelled = self.statuses is None or self.documents == sum(self.statuses.values())
        return labelled and self.rows_read == self.documents + self.duplicates + self.refused


@dataclass(frozen=True)
class LabelShift:
    """The share of a label in two nights."""

    label: str
    before: float
    tonight: float
    within_noise: bool  # or smaller than `MIN_SHIFT`

    @property
    def size(self) -> float:
        """The absolute difference."""
        return abs(self.tonight - self.before)


def label_shifts(tonight: LabelledNight, before: LabelledNight) -> list[LabelShift]:
    """Return the change of each label's share between two nights, the largest first, and increases before decreases.

    Noise is the standard error of the difference of two proportions, with the pooled proportion.
    """
    noise = 1 / max(tonight.non_empty, 1) + 1 / max(before.non_empty, 1)
    rows = max(tonight.non_empty + before.non_empty, 1)
    shifts = []
    for label in sorted({*tonight.labels, *before.labels}):
        pooled = (tonight.labels.get(label, 0) + before.labels.get(label, 0)) / rows
        error = (max(pooled * (1 - pooled), 0.0) * noise) ** 0.5
        share, share_before = tonight.share(label), before.share(label)
        within_noise = abs(share - share_before) < max(MIN_SHIFT, SHIFT_Z * error)
        shifts.append(LabelShift(label, share_before, share, within_noise))
    return sorted(shifts, key=lambda shift: (-round(shift.size, 6), -shift.tonight))


@dataclass(frozen=True)
class AccuracyEstimate:
    """The estimated accuracy of a night, if confidence is calibrated as on the test texts.

    Attributes:
        share: the mean confidence of the rows with text; None if all batches are left out.
        rows: number of these rows.
        calibration_error: expected calibration error on the test texts, 0 to 1; None without test texts.
        batches: the batches that are estimated.
        left_out: for each other batch, the reason.
    """

    share: float | None
    rows: int
    calibration_error: float | None
    batches: Sequence[str]
    left_out: dict[str, str]


def estimate_accuracy(night: LabelledNight, bundle: Bundle) -> AccuracyEstimate:
    """Return the estimated accuracy of a night, from its confidence.

    Confidence is calibrated for texts like those of the reference: batches that drifted are left out, and training
    batches, on which confidence is too high.
    """
    left_out = {batch.id: reason for batch in night.batches if (reason := _reason_left_out(batch, bundle))}
    used = [batch for batch in night.batches if batch.id not in left_out]
    rows = sum(batch.profile.non_empty for batch in used if batch.profile)
    certainty = sum(batch.profile.certainty for batch in used if batch.profile)
    tested = bundle.metrics["test"] if bundle.metrics["test"]["n"] else bundle.metrics["validation"]
    return AccuracyEstimate(
        share=certainty / rows if rows else None,
        rows=rows,
        calibration_error=tested["calibration_error"],
        batches=[batch.id for batch in used],
        left_out=left_out,
    )


def _reason_left_out(batch: LabelledBatch, bundle: Bundle) -> str | None:
    """Return why the accuracy of a batch cannot be estimated, if so."""
    if (batch.id, batch.manifest["documents_fingerprint"]) in bundle.training_batches:
        return f"{bundle.title} was trained on it"
    if batch.profile is None:
        return "some of it was labelled before data profiles were stored"
    if not batch.profile.non_empty:
        return "it has no text"
    drifted = [finding["measure"] for finding in batch.manifest.get("findings", []) if finding["measure"] in MEASURES]
    measures = ", ".join(drifted).replace("_", " ")
    return f"its texts are of another kind than those of the test ({measures})" if drifted else None


@dataclass(frozen=True)
class OutlierRow:
    """An outlier of a night, with its text."""

    batch: str
    doc_id: str
    label: str  # of a multi-label model joined; "" without a label
    confidence: float
    why: str
    text: str
    evidence: str = ""  # the words that the label rests on; "" unless scored with evidence


def outlier_rows(workspace: Workspace, night: LabelledNight) -> list[OutlierRow]:
    """Return the distinct texts of a night with the highest surprisal, at most `MAX_OUTLIERS`, the highest first.

    Each labels part lists its own outliers, so only their texts are read.
    """
    outliers = [
        (batch, part, outlier)
        for batch in night.batches
        for part in batch.parts
        for outlier in read_outliers(part) or []
    ]
    rows: dict[bytes, OutlierRow] = {}
    for batch, part, outlier in sorted(outliers, key=lambda listed: -listed[2].surprisal):
        if len(rows) == MAX_OUTLIERS:
            break
        document = _read_row(
            workspace.documents_dir(batch.id) / part.name, outlier.row, ["doc_id", "text", "content_hash"]
        )
        labels = _read_row(part, outlier.row, ["label", "labels", "confidence", "evidence"])
        rows.setdefault(
            document["content_hash"],
            OutlierRow(
                batch=batch.id,
                doc_id=document["doc_id"],
                label=", ".join(labels.get("labels") or [labels["label"] or ""]),
                confidence=labels["confidence"],
                why=outlier.why,
                text=document["text"],
                evidence=format_evidence(labels.get("evidence")),
            ),
        )
    return list(rows.values())


def _read_row(path: Path, row: int, columns: Sequence[str]) -> dict[str, Any]:
    """Return those of some columns that a Parquet file has, of one row; only its row group is read."""
    with pq.ParquetFile(path) as file:
        group = 0
        while row >= file.metadata.row_group(group).num_rows:
            row -= file.metadata.row_group(group).num_rows
            group += 1
        present = [name for name in columns if name in file.schema_arrow.names]
        table: pa.Table = file.read_row_group(group, columns=present, use_threads=False)
    return {name: table[name][row].as_py() for name in present}
