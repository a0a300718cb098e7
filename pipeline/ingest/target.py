"""Which batch an ingest writes, or that its content is there already."""

import datetime

from pipeline.errors import BatchError
from pipeline.files import file_digest
from pipeline.workspace import Batch, Workspace


def resolve_batch(
    workspace: Workspace, fingerprint: str, batch_id: str | None, *, replace: bool, date: datetime.date | None
) -> str | Batch:
    """Return the name of the batch to write, or the batch that has this content already.

    With `replace` a batch of the same content counts only if its parts are intact, so that a damaged one is mended.

    Raises:
        BatchError: a batch of that name exists with other content.
    """
    there = _dated(workspace, fingerprint, date) if batch_id is None else _named(workspace, batch_id, replace)
    if isinstance(there, str):
        return there
    if there.manifest.get("fingerprint") == fingerprint:
        return there.id if replace and not _is_intact(there) else there
    if replace:
        return there.id
    raise BatchError(f"batch {there.id!r} exists with other content; choose another --batch or pass --replace")


def _named(workspace: Workspace, batch_id: str, replace: bool) -> str | Batch:
    if not (workspace.documents_dir(batch_id) / "manifest.json").exists():
        return batch_id
    try:
        return workspace.batch(batch_id)
    except BatchError:
        if replace:  # a manifest that cannot be read is mended by writing the batch again
            return batch_id
        raise


def _dated(workspace: Workspace, fingerprint: str, date: datetime.date | None) -> str | Batch:
    batches = {batch.id: batch for batch in workspace.batches()}
    same = [batch for batch in batches.values() if batch.manifest.get("fingerprint") == fingerprint]
    if same:
        return same[0]
    day = (date or datetime.datetime.now().astimezone().date()).isoformat()
    numbered = (day if number == 1 else f"{day}-{number}" for number in range(1, len(batches) + 2))
    return next(name for name in numbered if name not in batches)


def _is_intact(batch: Batch) -> bool:
    sealed = {batch.path / part["file"]: part["sha256"] for part in batch.manifest["parts"]}
    return all(path.exists() and file_digest(path) == digest for path, digest in sealed.items())
