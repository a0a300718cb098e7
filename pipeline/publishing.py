"""Which labels may be read: nights that are out of the ordinary wait until a person has looked."""

import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.bundle import Bundle
from pipeline.config import HealthConfig
from pipeline.errors import PublicationError
from pipeline.files import read_json, write_json
from pipeline.health import Health
from pipeline.judging import Judgement, Night, judge
from pipeline.labels import BatchReport, is_labelled_at
from pipeline.who import user_name
from pipeline.workspace import Batch, Workspace


@dataclass(frozen=True)
class LabelledBatch:
    """The labels of a batch by one model, whole on disk."""

    id: str
    path: Path
    manifest: dict[str, Any]

    @property
    def published(self) -> bool:
        """Whether they may be read; labels from before any were held are published."""
        return bool(self.manifest.get("published", True))

    @property
    def parts(self) -> list[Path]:
        return [self.path / part["file"] for part in self.manifest["parts"]]

    @property
    def rows(self) -> int:
        return int(self.manifest["counts"]["documents"])

    @property
    def health(self) -> Health | None:
        value = self.manifest.get("health")
        return Health.from_json(value) if value else None


def published_batches(workspace: Workspace, model: str) -> list[LabelledBatch]:
    """Return the labels by a model that may be read, by batch: those that are held are left out.

    So are labels of documents that have been replaced since.
    """
    documents = {batch.id: batch for batch in workspace.batches()}
    return [
        batch
        for batch in labelled_batches(workspace, model)
        if batch.published and (batch.id not in documents or is_labelled_at(batch.path, documents[batch.id]))
    ]


def labelled_batches(workspace: Workspace, model: str) -> list[LabelledBatch]:
    """Return what a model has labelled, by batch; a damaged manifest counts as none."""
    found = []
    for path in workspace.labels_manifests(model):
        try:
            found.append(LabelledBatch(path.parent.name.removeprefix("batch="), path.parent, read_json(path)))
        except ValueError:
            continue
    return found


def earlier_nights(workspace: Workspace, bundle: Bundle, batch_id: str, limit: int) -> list[Night]:
    """Return the most recent published nights of a model but one, newest first.

    Those that the model was trained on are no nights, see `Bundle.learnt`. Health is that of the same version:
    another one has other words, and is sure of other things.
    """
    learnt = {batch for batch, _ in bundle.learnt}
    nights = [
        batch
        for batch in labelled_batches(workspace, bundle.name)
        if batch.published and batch.id != batch_id and batch.id not in learnt
    ]
    nights.sort(key=lambda batch: (batch.manifest.get("created", ""), batch.id), reverse=True)
    return [
        Night(batch.rows, batch.health if batch.manifest.get("model_digest") == bundle.digest else None)
        for batch in nights[:limit]
    ]


def judge_batch(
    workspace: Workspace, batch: Batch, bundle: Bundle, report: BatchReport, config: HealthConfig
) -> Judgement:
    """Return how a batch that was labelled compares with the model's reference and the nights before."""
    if bundle.trained_on(batch):  # its words are known, and the model is surer of it than of any other
        return Judgement(notes=[f"Not compared: {bundle.title} was trained on this batch."])
    nights = earlier_nights(workspace, bundle, batch.id, config.nights)
    return judge(report.health, bundle.reference, nights, config, rows=report.rows, empty=report.counts.get("empty", 0))


def publish(workspace: Workspace, batch_id: str, model: str | None = None, reason: str = "by hand") -> LabelledBatch:
    """Publish the labels of a batch that was held; its manifest keeps who did so, when and why.

    Args:
        workspace: where the labels lie.
        batch_id: the batch.
        model: name of the model whose labels are meant; None for the only one that has labelled the batch.
        reason: why, for the record.

    Raises:
        BatchError: there is no such batch.
        PublicationError: it has no labels, or they are published already.
    """
    batch = workspace.batch(batch_id)
    models = workspace.labelled_by(batch_id)
    if model is None and len(models) > 1:
        raise PublicationError(f"batch {batch_id} has labels by several models: choose with --model {'|'.join(models)}")
    name = model or (models[0] if models else "any model")
    if name not in models or not is_labelled_at(workspace.labels_of(name, batch_id), batch):
        raise PublicationError(f"batch {batch_id} is not labelled by {name}: nightlabel score --batch {batch_id}")
    path = workspace.labels_of(name, batch_id)
    labels = LabelledBatch(batch_id, path, read_json(path / "manifest.json"))
    if labels.published:
        raise PublicationError(f"the labels of batch {batch_id} by {name} are published already")
    by = {
        "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "by": user_name(),
        "reason": reason,
    }
    manifest = {**labels.manifest, "published": True, "publication": by}
    write_json(path / "manifest.json", manifest)
    return LabelledBatch(batch_id, path, manifest)
