"""The subject of a benchmark: a batch, or its first rows, and the model that labels it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipeline.errors import BatchError
from pipeline.files import file_digest, write_table
from pipeline.models.bundle import Bundle
from pipeline.models.registry import Registry
from pipeline.workspace import Batch, Workspace

Say = Callable[[str], None]


@dataclass(frozen=True)
class Subject:
    """A batch, and the model that labels it."""

    batch: Batch
    bundle: Bundle
    title: str


def workspace_subject(workspace: Workspace, batch_id: str | None, model: str | None) -> Subject:
    """Return a batch of a workspace, the largest if no id is given, and a model.

    Raises:
        BatchError: no such batch, no batch, or an empty one.
        ModelError: no such model.
    """
    bundle = Registry(workspace).find(model)
    batches = [workspace.batch(batch_id)] if batch_id else workspace.batches()
    if not batches:
        raise BatchError(f"no documents in {workspace.root} yet: start with nightlabel ingest FILE")
    batch = max(batches, key=lambda candidate: candidate.rows)
    if batch.rows == 0:
        raise BatchError(f"batch {batch.id} has no documents; choose another with --batch")
    return Subject(batch, bundle, f"batch {batch.id}")


def take_rows(batch: Batch, folder: Path, rows: int) -> Batch:
    """Return a batch of the first rows of another, written to a folder; the same batch if 0 or all rows are taken."""
    if rows == 0 or rows >= batch.rows:
        return batch
    folder.mkdir(parents=True, exist_ok=True)
    parts: list[dict[str, Any]] = []
    remaining = rows
    for part in batch.manifest["parts"]:
        if remaining <= 0:
            break
        table = pq.read_table(batch.path / part["file"], partitioning=None).slice(0, remaining)
        write_table(folder / part["file"], table)
        parts.append({**part, "rows": len(table), "sha256": file_digest(folder / part["file"])})
        remaining -= len(table)
    counts = {**batch.manifest["counts"], "documents": rows - remaining}
    manifest = {**batch.manifest, "parts": parts, "counts": counts}
    return Batch(batch.id, folder, manifest)
