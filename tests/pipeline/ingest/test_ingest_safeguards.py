"""What keeps an ingest honest when things go wrong: bounds, accounts, and sources told apart."""

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ingest_tools import documents, left_behind, refuse, rejects, take, texts, write

from pipeline.config import IngestConfig
from pipeline.errors import AccountingError, InputError, RejectRateError
from pipeline.ingest import batch as batches
from pipeline.ingest import ingest, parts
from pipeline.ingest.readers import csv as delimited
from pipeline.workspace import Workspace


def test_an_unclosed_quote_is_given_up_after_a_bound(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.ingest.readers.csv.MAX_ROW_CHARACTERS", 10_000)
    lines = [f"{number},text {number}\n" for number in range(20_000)]
    lines[7_000] = '7000,"stray\n'
    read: list[int] = []
    monkeypatch.setattr(delimited._Lines, "keep_first", _counting(delimited._Lines.keep_first, read))
    take(workspace, write(tmp_path / "a.csv", "id,text\n" + "".join(lines)), max_text_bytes=1000)
    assert [(row["row"], row["reason"]) for row in rejects(workspace)] == [(7_002, "unclosed_quote")]
    assert max(read) < 2_000


def _counting(keep_first: Any, read: list[int]) -> Any:
    def wrapped(lines: Any) -> Any:
        read.append(len(lines.taken))
        return keep_first(lines)

    return wrapped


def test_rows_lost_on_the_way_fail_the_run(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = batches.to_documents

    def losing(*given: Any) -> Any:
        table, refused = taken(*given)
        return table.slice(1), refused

    monkeypatch.setattr(batches, "to_documents", losing)
    path = write(tmp_path / "a.csv", "text\none\ntwo\n")
    with pytest.raises(AccountingError, match="do not add up"):
        ingest(workspace, [str(path)], IngestConfig())
    assert not left_behind(workspace)


def test_a_damaged_part_is_mended_by_replacing_the_batch(workspace: Workspace, tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text\none\n")
    take(workspace, path)
    workspace.batch("b").parts[0].write_bytes(b"damaged")
    assert not take(workspace, path, replace=True).already_ingested
    assert texts(workspace) == ["one"]
    assert take(workspace, path, replace=True).already_ingested


def test_ids_are_compared_across_parts(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_ROWS", 1000)
    lines = [f"{number},text {number}\n" for number in range(20_000)]
    report = take(workspace, write(tmp_path / "a.csv", "id,text\n" + "".join(lines) + lines[3] + "4,other\n"))
    assert report.parts > 1
    assert (report.documents, report.duplicates) == (20_000, 1)
    assert [(row["row"], row["reason"]) for row in rejects(workspace)] == [(20_003, "id_conflict")]


def test_ids_that_are_not_unique_are_said_to_be(workspace: Workspace, tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "key,text\n" + "".join(f"5.7E+17,text {n}\n" for n in range(10)))
    message = refuse(RejectRateError, workspace, path, id="key")
    assert "9 id_conflict" in message
    assert message.endswith("the id column is not unique: choose another --id")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["x", "y", ""])), min_size=1, max_size=20))
def test_the_first_row_of_an_id_is_kept(workspace: Workspace, tmp_path: Path, pairs: list[tuple[str, str]]) -> None:
    rows = [("sure", "text"), *pairs]
    path = write(tmp_path / "any.csv", "id,text\n" + "".join(f"{doc_id},{text}\n" for doc_id, text in rows))
    report = take(workspace, path, replace=True, max_reject_rate=1.0)
    first = dict(reversed(rows))
    assert {row["doc_id"]: row["text"] for row in documents(workspace)} == first
    same = sum(first[doc_id] == text for doc_id, text in rows) - len(first)
    assert (report.duplicates, report.rejects) == (same, len(rows) - len(first) - same)


def test_a_file_named_twice_is_read_once_where_it_was_named_first(workspace: Workspace, tmp_path: Path) -> None:
    for name in "abc":
        write(tmp_path / f"{name}.csv", f"text\n{name}\n")
    report = take(workspace, tmp_path / "c.csv", tmp_path / "*.csv")
    assert texts(workspace) == ["c", "a", "b"]
    assert report.duplicates == 0


def test_texts_and_data_files_in_one_folder_must_be_told_apart(workspace: Workspace, tmp_path: Path) -> None:
    write(tmp_path / "d" / "pos" / "1.txt", "hello")
    write(tmp_path / "d" / "meta.csv", "text\nbye\n")
    message = refuse(InputError, workspace, tmp_path / "d")
    assert "meta.csv" in message
    assert "pos/1.txt" in message
    assert "--format folder" in message
    assert take(workspace, tmp_path / "d", format="folder").labels == {"pos": 1}


def test_hidden_files_are_no_documents(workspace: Workspace, tmp_path: Path) -> None:
    for name in ("pos/1.txt", "pos/.2.txt", ".trash/3.txt"):
        write(tmp_path / "r" / name, name)
    take(workspace, tmp_path / "r")
    assert texts(workspace) == ["pos/1.txt"]


def test_a_file_name_that_is_no_text_stops_nothing(workspace: Workspace, tmp_path: Path) -> None:
    write(Path(os.fsdecode(os.fsencode(tmp_path) + b"/r/pos/\xff.txt")), "hello")
    take(workspace, tmp_path / "r")
    assert [row["doc_id"] for row in documents(workspace)] == ["pos/\\xff.txt"]


def test_the_folder_one_stands_in_has_a_name(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "spam" / "1.txt", "hello")
    monkeypatch.chdir(tmp_path / "spam")
    assert take(workspace, ".").labels == {"spam": 1}


@pytest.mark.parametrize("other", ["missing.csv", "other.csv"])
def test_one_bad_source_of_two_leaves_nothing(workspace: Workspace, tmp_path: Path, other: str) -> None:
    write(tmp_path / "a.csv", "text\none\n")
    write(tmp_path / "other.csv", "body\none\n")
    assert other in refuse(InputError, workspace, tmp_path / "a.csv", tmp_path / other)


def test_progress_is_told(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "PROGRESS_SECONDS", 0)
    told: list[str] = []
    path = write(tmp_path / "a.csv", "text\n" + "".join(f"row {number}\n" for number in range(1500)))
    ingest(workspace, [str(path)], IngestConfig(), progress=told.append)
    assert told == [f"{path}: 1,500 rows"]
