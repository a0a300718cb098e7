"""A batch is written once, under one name, and its memory does not grow with its rows."""

import datetime
import subprocess
import sys
from pathlib import Path

import pytest
from ingest_tools import documents, take, texts, write

from pipeline.config import IngestConfig
from pipeline.files import file_digest
from pipeline.ingest import IngestReport, ingest
from pipeline.workspace import Workspace

DAY = datetime.date(2026, 11, 20)


def nightly(workspace: Workspace, path: Path) -> IngestReport:
    return ingest(workspace, [str(path)], IngestConfig(), date=DAY)


def test_the_same_content_is_taken_once(workspace: Workspace, tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text\none\n")
    first, again = nightly(workspace, path), nightly(workspace, path)
    assert (first.already_ingested, again.already_ingested) == (False, True)
    assert (again.batch_id, again.documents, again.path) == (first.batch_id, 1, first.path)
    assert take(workspace, path, batch=first.batch_id).already_ingested
    assert not take(workspace, path, batch="other").already_ingested


def test_default_names_are_the_date_and_then_numbered(workspace: Workspace, tmp_path: Path) -> None:
    names = [nightly(workspace, write(tmp_path / "a.csv", f"text\nnumber {n}\n")).batch_id for n in range(3)]
    assert names == ["2026-11-20", "2026-11-20-2", "2026-11-20-3"]


def test_replacing_gives_the_new_content_and_rejects(workspace: Workspace, tmp_path: Path) -> None:
    take(workspace, write(tmp_path / "a.csv", "text\none\nra,gged\n"), max_reject_rate=1.0)
    report = take(workspace, write(tmp_path / "a.csv", "text\ntwo\n"), replace=True)
    assert (texts(workspace), report.rejects) == (["two"], 0)


def test_the_same_rows_give_the_same_bytes(workspace: Workspace, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "one", "b": 1, "a": 2}\n{"text": "two", "c": 3}\n')
    digests = []
    for batch in ("x", "y"):
        take(workspace, path, batch=batch)
        digests.append([file_digest(part) for part in workspace.batch(batch).parts])
    assert digests[0] == digests[1]
    assert list(documents(workspace, "x")[0])[-3:] == ["a", "b", "c"]


def test_the_manifest_describes_parts_and_sources(workspace: Workspace, tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label\none,a\n,\n")
    take(workspace, path)
    batch = workspace.batch("b")
    (part,) = batch.parts
    assert batch.manifest["parts"][0]["sha256"] == file_digest(part)
    assert batch.manifest["sources"][0]["path"] == str(path)
    assert batch.manifest["counts"]["empty"] == 1


SCRIPT = """
import resource, sys
from pipeline.config import IngestConfig
from pipeline.ingest import ingest
from pipeline.workspace import Workspace
report = ingest(Workspace(sys.argv[1]), [sys.argv[2]], IngestConfig())
assert report.documents == int(sys.argv[3])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak_memory(folder: Path, rows: int) -> int:
    path = folder / f"{rows}.csv"
    with path.open("w") as file:
        file.write("id,text,label\n")
        file.writelines(f"r{n},short text number {n} about words,{'ab'[n % 2]}\n" for n in range(rows))
    command = [sys.executable, "-c", SCRIPT, str(folder / f"workspace-{rows}"), str(path), str(rows)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.slow
def test_ten_times_the_rows_take_no_more_memory(tmp_path: Path) -> None:
    # Both are more than one part, so both have filled every buffer once.
    assert peak_memory(tmp_path, 600_000) < 1.1 * peak_memory(tmp_path, 60_000)
