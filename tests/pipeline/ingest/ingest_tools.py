"""What the tests of ingest share: ingest a file, read the batch back, and see that a failure left nothing."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import IngestConfig
from pipeline.errors import NightlabelError
from pipeline.ingest import IngestReport, ingest
from pipeline.schemas import split_labels
from pipeline.workspace import Workspace


def take(workspace: Workspace, *sources: Path | str, batch: str = "b", replace: bool = False, **config: Any) -> Any:
    """Ingest sources and see that the rows add up, in the report, on disk and in the manifest."""
    report = ingest(workspace, [str(s) for s in sources], IngestConfig(**config), batch_id=batch, replace=replace)
    assert_adds_up(workspace, report)
    return report


def assert_adds_up(workspace: Workspace, report: IngestReport) -> None:
    assert report.rows_read == report.documents + report.duplicates + report.rejects
    assert report.documents == report.labelled + report.unlabelled == len(documents(workspace, report.batch_id))
    assert report.rejects == sum(report.reject_reasons.values()) == len(rejects(workspace, report.batch_id))
    labels = [row["label"] for row in documents(workspace, report.batch_id) if row["label"] is not None]
    of_each = [split_labels(label) if report.multi_label else [label] for label in labels]
    assert report.labelled == len(labels)
    assert report.labels == Counter(label for one in of_each for label in one)
    if report.multi_label:
        assert report.several_labels == sum(len(one) > 1 for one in of_each)
        assert report.no_class == sum(not one for one in of_each)


def documents(workspace: Workspace, batch: str = "b") -> list[dict[str, Any]]:
    return _rows(workspace.batch(batch).parts)


def rejects(workspace: Workspace, batch: str = "b") -> list[dict[str, Any]]:
    return _rows(sorted(workspace.rejects_dir(batch).glob("*.parquet")))


def texts(workspace: Workspace, batch: str = "b") -> list[str]:
    return [row["text"] for row in documents(workspace, batch)]


def _rows(paths: Iterable[Path]) -> list[dict[str, Any]]:
    tables: list[pa.Table] = [pq.read_table(path, partitioning=None) for path in paths]
    return [row for table in tables for row in table.to_pylist()]


def refuse(error: type[NightlabelError], workspace: Workspace, *sources: Path | str, **settings: Any) -> str:
    """Ingest what must fail; return the message, having seen that it is one line and that nothing is left behind."""
    before = left_behind(workspace)
    with pytest.raises(error) as caught:
        take(workspace, *sources, **settings)
    message = str(caught.value)
    assert type(caught.value) is error
    assert len(message.splitlines()) == 1
    assert left_behind(workspace) == before
    return message


def left_behind(workspace: Workspace) -> list[Path]:
    """Return the batch folders and the staging folders there are."""
    return sorted([*workspace.root.glob("*/batch=*"), *workspace.root.glob(".staging-*")])


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path
