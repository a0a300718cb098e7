"""What a night's labels come to, and what changed since the night before: the facts of the morning's report."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import BatchError
from pipeline.files import read_json
from pipeline.metrics.outliers import MAX_OUTLIERS, Outlier
from pipeline.metrics.profile import MEASURES, Profile, merge_profiles
from pipeline.models.bundle import Bundle
from pipeline.models.registry import Registry
from pipeline.schemas import STATUSES
from pipeline.scoring.explanations import format_evidence
from pipeline.scoring.labels import LabelledBatch, is_labelled_at, labelled_batches, read_outliers
from pipeline.workspace import Batch, Workspace

SHIFT_Z = 3.0  # standard errors within which a share may move by chance
LEAST_MOVE = 0.01  # a share that moved by less is of no interest, however sure that is


@dataclass(frozen=True)
class LabelledNight:
    """The batches that one night labelled, at least one, all by the same version of a model."""

    batches: Sequence[LabelledBatch]

    @property
    def names(self) -> str:
        return ", ".join(batch.id for batch in self.batches)

    @property
    def manifest(self) -> dict[str, Any]:
        """Of the last batch: model, device and precision are those of all."""
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
        return self.counts["documents"]

    @property
    def non_empty(self) -> int:
        """Rows that are not empty."""
        return self.rows - self.counts["empty"]

    @property
    def profile(self) -> Profile | None:
        """What the model saw and said; None where that is not known of all of it."""
        found = [profile for profile in (batch.profile for batch in self.batches) if profile]
        if len(found) < len(self.batches) or not all(one.comparable(found[0]) for one in found):
            return None
        return merge_profiles(found)

    @property
    def rows_per_second(self) -> float:
        """Of the parts that the night labelled itself, together."""
        seconds = sum(batch.manifest["seconds"] for batch in self.batches)
        rows = sum(batch.manifest["rows_per_second"] * batch.manifest["seconds"] for batch in self.batches)
        return float(rows / max(seconds, 1e-9))

    def share(self, label: str) -> float:
        """Return the share of a label among the rows that are not empty."""
        return self.labels.get(label, 0) / max(self.non_empty, 1)

    @property
    def review_share(self) -> float:
        return self.counts["review"] / max(self.rows, 1)


def _total(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(total)


def labelled_night(workspace: Workspace, model: str, batches: Iterable[Batch]) -> LabelledNight | None:
    """Return those of some batches that a model has labelled whole; None if there are none.

    Args:
        workspace: where the labels lie.
        model: its name.
        batches: those that a night was to label.
    """
    found = []
    for batch in batches:
        folder = workspace.labels_dir(model, batch.id)
        if is_labelled_at(folder, batch):
            found.append(LabelledBatch(batch.id, folder, read_json(folder / "manifest.json")))
    return LabelledNight(found) if found else None


def held_batches(workspace: Workspace) -> list[tuple[str, LabelledBatch]]:
    """Return the labels by all models that wait until a person has looked, each with the model's name.

    Labels of documents that are gone or have been replaced since are left out: nobody can publish them.
    """
    models = Registry(workspace).names()
    return [
        (model, labels)
        for model in models
        for labels in labelled_batches(workspace, model)
        if not labels.published and _documents_stand(workspace, labels)
    ]


def _documents_stand(workspace: Workspace, labels: LabelledBatch) -> bool:
    try:
        return is_labelled_at(labels.path, workspace.batch(labels.id))
    except BatchError:
        return False


def night_before(workspace: Workspace, model: str, tonight: Sequence[str]) -> LabelledNight | None:
    """Return the newest labels by a model, in whatever version, of a night before; published or held.

    What the model was trained on is no night, and has no checks.

    Args:
        workspace: where the labels lie.
        model: its name.
        tonight: the batches that count as tonight.
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
    """What became of the rows of a batch; of one that has no labels yet, `statuses` is None."""

    batch: str
    rows_read: int
    duplicates: int
    refused: int
    documents: int
    statuses: dict[str, int] | None

    @classmethod
    def of(cls, batch: Batch, labels: LabelledBatch | None) -> Self:
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
    within_noise: bool  # or so small that nobody minds

    @property
    def size(self) -> float:
        return abs(self.tonight - self.before)


def label_shifts(tonight: LabelledNight, before: LabelledNight) -> list[LabelShift]:
    """Return how the share of each label moved between two nights, the largest move first, and up before down."""
    noise = 1 / max(tonight.non_empty, 1) + 1 / max(before.non_empty, 1)
    moves = []
    for label in sorted({*tonight.labels, *before.labels}):
        now, then = tonight.share(label), before.share(label)
        both = (tonight.labels.get(label, 0) + before.labels.get(label, 0)) / max(
            tonight.non_empty + before.non_empty, 1
        )
        error = (max(both * (1 - both), 0.0) * noise) ** 0.5
        moves.append(LabelShift(label, then, now, abs(now - then) < max(LEAST_MOVE, SHIFT_Z * error)))
    return sorted(moves, key=lambda move: (-round(move.size, 6), -move.tonight))


@dataclass(frozen=True)
class AccuracyEstimate:
    """How many labels of a night are right, if its confidence means what it meant on the test texts.

    Attributes:
        share: the mean confidence of the rows with text; None if of no batch anything can be said.
        rows: how many these are.
        calibration_error: how far confidence and truth were apart on the test texts, 0 to 1; None if not known.
        batches: those it is about.
        left_out: for each other batch, why nothing can be said of it.
    """

    share: float | None
    rows: int
    calibration_error: float | None
    batches: Sequence[str]
    left_out: dict[str, str]


def estimate_accuracy(night: LabelledNight, bundle: Bundle) -> AccuracyEstimate:
    """Return the expected share of right labels of a night, from its confidence.

    Confidence was calibrated on texts like those of the reference. Of a batch whose texts are of another kind it
    tells nothing, and of one that the model learnt from too much.
    """
    left_out = {batch.id: why for batch in night.batches if (why := _why_unknown(batch, bundle))}
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


def _why_unknown(batch: LabelledBatch, bundle: Bundle) -> str | None:
    """Return why the confidence of a batch says nothing of how many labels are right, if so."""
    if (batch.id, batch.manifest["documents_fingerprint"]) in bundle.training_batches:
        return f"{bundle.title} was trained on it"
    if batch.profile is None:
        return "some of it was labelled before confidence was kept"
    if not batch.profile.non_empty:
        return "it has no text"
    found = [
        one["measure"].replace("_", " ") for one in batch.manifest.get("findings", []) if one["measure"] in MEASURES
    ]
    return f"its texts are of another kind than those of the test ({', '.join(found)})" if found else None


@dataclass(frozen=True)
class OutlierRow:
    """One of the strangest rows of a night, with its text."""

    batch: str
    doc_id: str
    label: str  # several are joined; "" if none was given
    confidence: float
    why: str
    text: str
    evidence: str = ""  # what carried the label; "" unless that was asked for


def outlier_rows(workspace: Workspace, night: LabelledNight) -> list[OutlierRow]:
    """Return the most surprising different texts of a night, at most `MOST`, the most surprising first.

    Each part knows its own, so only their texts are read.
    """
    ranked = sorted(_strange_places(night), key=lambda place: -place[2].surprisal)
    found: dict[bytes, OutlierRow] = {}
    for batch, part, outlier in ranked:
        if len(found) == MAX_OUTLIERS:
            break
        document = _read_row(
            workspace.documents_dir(batch.id) / part.name, outlier.row, ["doc_id", "text", "content_hash"]
        )
        labels = _read_row(part, outlier.row, ["label", "labels", "confidence", "evidence"])
        found.setdefault(
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
    return list(found.values())


def _strange_places(night: LabelledNight) -> Iterator[tuple[LabelledBatch, Path, Outlier]]:
    for batch in night.batches:
        for part in batch.parts:
            for outlier in read_outliers(part) or []:
                yield batch, part, outlier


def _read_row(path: Path, row: int, columns: Sequence[str]) -> dict[str, Any]:
    """Return some columns of one row of a Parquet file, those that it has, reading no other row group than its own."""
    with pq.ParquetFile(path) as file:
        group = 0
        while row >= file.metadata.row_group(group).num_rows:
            row -= file.metadata.row_group(group).num_rows
            group += 1
        there = [name for name in columns if name in file.schema_arrow.names]
        table: pa.Table = file.read_row_group(group, columns=there, use_threads=False)
    (found,) = table.slice(row, 1).to_pylist()
    return dict(found)
