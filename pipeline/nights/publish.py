"""Publishing: which labels readers may use, and releasing a held batch."""

import datetime

from pipeline.errors import PublicationError
from pipeline.files import read_json, write_json
from pipeline.scoring.labels import LabelledBatch, is_labelled_at, labelled_batches
from pipeline.workspace import Workspace, user_name


def published_batches(workspace: Workspace, model: str) -> list[LabelledBatch]:
    """Return a model's published labels, by batch; labels of replaced documents are left out."""
    documents = {batch.id: batch for batch in workspace.batches()}
    return [
        batch
        for batch in labelled_batches(workspace, model)
        if batch.published and (batch.id not in documents or is_labelled_at(batch.path, documents[batch.id]))
    ]


def publish(workspace: Workspace, batch_id: str, model: str | None = None, reason: str = "by hand") -> LabelledBatch:
    """Publish the labels of a held batch; the manifest records who did so, when and why.

    Args:
        workspace: where the labels lie.
        batch_id: the batch.
        model: name of the model; None if only one has labelled the batch.
        reason: for the record.

    Raises:
        BatchError: there is no such batch.
        PublicationError: the batch has no labels, or they are published already.
    """
    batch = workspace.batch(batch_id)
    models = workspace.models_that_labelled(batch_id)
    if model is None and len(models) > 1:
        raise PublicationError(f"batch {batch_id} has labels by several models: choose with --model {'|'.join(models)}")
    name = model or (models[0] if models else "any model")
    if name not in models or not is_labelled_at(workspace.labels_dir(name, batch_id), batch):
        raise PublicationError(f"batch {batch_id} is not labelled by {name}: nightlabel score --batch {batch_id}")
    path = workspace.labels_dir(name, batch_id)
    labels = LabelledBatch(batch_id, path, read_json(path / "manifest.json"))
    if labels.published:
        raise PublicationError(f"the labels of batch {batch_id} by {name} are published already")
    publication = {
        "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "by": user_name(),
        "reason": reason,
    }
    manifest = {**labels.manifest, "published": True, "publication": publication}
    write_json(path / "manifest.json", manifest)
    return LabelledBatch(batch_id, path, manifest)
