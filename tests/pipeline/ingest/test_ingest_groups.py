"""The group column is kept as text beside the user's own, and rows without a group are accounted for."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ingest_tools import documents, refuse, rejects, take, write

from flows.reports.ingest import ingest_report
from pipeline.config import IngestConfig
from pipeline.errors import InputError, RejectRateError
from pipeline.files import value_digest
from pipeline.ingest.sources import find_sources
from pipeline.schemas import DOCUMENTS
from pipeline.workspace import Workspace

REVIEWS = "id,text,label,film\n" + "".join(f"r{n},review {n},good,film {n % 4}\n" for n in range(40))


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


def groups(workspace: Workspace) -> list[str]:
    return [row["group"] for row in documents(workspace)]


def test_documents_have_their_group_and_the_column_itself(workspace: Workspace, tmp_path: Path) -> None:
    report = take(workspace, write(tmp_path / "a.csv", REVIEWS), group="film")
    assert (report.group, report.groups, report.columns) == ("film", 4, ["film"])
    assert [row["group"] for row in documents(workspace)] == [row["film"] for row in documents(workspace)]
    assert workspace.batch("b").group_column == "film"
    assert "Groups (column `film`): 4. A group stays in one split." in ingest_report(report)


def test_a_batch_without_groups_is_what_it_was(workspace: Workspace, tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label,group\nhello,a,own\nworld,b,own\n")
    report = take(workspace, path)
    old = IngestConfig().model_dump(mode="json", exclude={"label_separator", "group"})
    manifest = workspace.batch("b").manifest
    assert manifest["config"] == old
    assert manifest["fingerprint"] == value_digest(
        [[source.digests() for source in find_sources([str(path)], IngestConfig())], old]
    )
    assert "groups" not in manifest["counts"]
    assert (workspace.batch("b").group_column, report.group) == (None, None)
    assert "groups" not in ingest_report(report)
    assert pq.read_schema(workspace.batch("b").parts[0]).names == [*DOCUMENTS.names, "group"]
    assert report.columns == ["group"]  # the user's own, passed through
    assert not take(workspace, path, batch="c", group="group").already_ingested


@pytest.mark.parametrize("name", ["group", "source", "film"])
def test_a_group_column_of_any_name(workspace: Workspace, tmp_path: Path, name: str) -> None:
    path = lines(
        tmp_path / "a.jsonl",
        [{"text": f"t{n}", name: n % 2, "group" if name != "group" else "x": "other"} for n in range(6)],
    )
    take(workspace, path, group=name)
    assert groups(workspace) == ["0", "1"] * 3
    others = {key: value for key, value in documents(workspace)[0].items() if key not in (*DOCUMENTS.names, "group")}
    assert (
        others
        == {
            "group": {"x": "other"},
            "source": {"source_given": "0", "group_given": "other"},
            "film": {"film": "0", "group_given": "other"},
        }[name]
    )


def test_the_column_by_number_and_with_another_role(workspace: Workspace, tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "one,first\none,second\ntwo,third\n")
    take(workspace, path, header=False, text=["1", "2"], group="1")
    assert [(row["group"], row["text"]) for row in documents(workspace)][1] == ("one", "one\nsecond")
    path = write(tmp_path / "b.csv", "id,text\n7,first\n7,second\n8,third\n")
    report = take(workspace, path, group="id", batch="c")  # then it is not the id of the documents
    assert (report.documents, report.groups) == (3, 2)


def test_whole_numbers_are_the_same_group_in_whatever_type(workspace: Workspace, tmp_path: Path) -> None:
    table = pa.table({"text": ["a", "b", "c"], "customer": pa.array([17.0, 18.5, 19.0])})
    pq.write_table(table, tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": ["d"], "customer": [17]}), tmp_path / "b.parquet")
    path = write(tmp_path / "c.csv", "text,customer\ne, 17 \n")
    report = take(workspace, tmp_path / "a.parquet", tmp_path / "b.parquet", path, group="customer")
    assert groups(workspace) == ["17", "18.5", "19", "17", "17"]
    assert report.groups == 3


def test_rows_without_a_group_are_refused(workspace: Workspace, tmp_path: Path) -> None:
    rows = [{"text": f"t{n}", "film": "x"} for n in range(97)]
    bad = [{"text": "none"}, {"text": "null", "film": None}, {"text": "blank", "film": "  "}]
    path = lines(tmp_path / "a.jsonl", rows + bad)
    report = take(workspace, path, group="film")
    assert report.reject_reasons == {"group_missing": 3}
    assert [(row["row"], row["raw_text"]) for row in rejects(workspace)] == [
        (98, "none"),
        (99, "null"),
        (100, "blank\t  "),
    ]
    message = refuse(RejectRateError, workspace, path, group="film", max_reject_rate=0.02, batch="c")
    assert message == (
        f"3 of 100 rows refused (3.0%, at most 2.0% allowed): 3 group_missing (first at {path}:98); nothing was "
        "written: fill in the group of these rows, choose another --group, or allow more with --max-reject-rate"
    )


def test_missing_numbers_are_no_group(workspace: Workspace, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", "b", "c"], "customer": [1.0, float("nan"), None]}), tmp_path / "a.parquet")
    assert take(workspace, tmp_path / "a.parquet", group="customer", max_reject_rate=1.0).reject_reasons == {
        "group_missing": 2
    }


def test_a_group_column_that_is_not_there(workspace: Workspace, tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", REVIEWS)
    message = refuse(InputError, workspace, path, group="movie")
    assert message == f"{path}: no column 'movie' (there are: id, text, label, film); choose one with --group"
    other = write(tmp_path / "b.csv", "text\nhello\n")
    assert f"{other}: no column 'film'" in refuse(InputError, workspace, path, other, group="film")


def test_a_folder_of_texts_has_no_group_column(workspace: Workspace, tmp_path: Path) -> None:
    write(tmp_path / "folder" / "good" / "a.txt", "hello")
    message = refuse(InputError, workspace, tmp_path / "folder", group="film")
    assert message == (
        f"{tmp_path}/folder: a folder of text files has no column 'film'; leave --group out, or ingest a table that "
        "has it"
    )


VALUES = st.text("ab \0\ud800", max_size=3) | st.none() | st.integers(0, 3) | st.floats() | st.booleans()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(VALUES | st.lists(VALUES, max_size=2), min_size=1, max_size=12))
def test_groups_of_any_kind_add_up(workspace: Workspace, tmp_path: Path, values: list[Any]) -> None:
    rows = [{"id": f"r{n}", "text": f"t{n}", "film": value} for n, value in enumerate([*values, "a"])]
    report = take(workspace, lines(tmp_path / "any.jsonl", rows), group="film", replace=True, max_reject_rate=1.0)
    assert report.groups == len(set(groups(workspace)))
    assert all(group and group == group.strip() for group in groups(workspace))
