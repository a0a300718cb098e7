"""Documents with several labels: joined by a separator, or as lists; a batch has them as a whole."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import REAL_DATA
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ingest_tools import documents, refuse, rejects, take, write

from flows.reports.ingest import ingest_report
from pipeline.config import IngestConfig, validated
from pipeline.errors import ConfigError, InputError, RejectRateError
from pipeline.files import value_digest
from pipeline.ingest import ingest
from pipeline.ingest.sources import find_sources
from pipeline.schemas import DOCUMENTS
from pipeline.workspace import Workspace


def lines(path: Path, *labels: Any) -> Path:
    """Write a JSON Lines file with a text for each label; `...` leaves it out."""
    rows = [{"text": f"text {n}"} | ({} if label is ... else {"label": label}) for n, label in enumerate(labels)]
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


def csv(path: Path, *labels: str) -> Path:
    return write(path, "text,label\n" + "".join(f'text {n},"{label}"\n' for n, label in enumerate(labels)))


def kept(workspace: Workspace, batch: str = "b") -> list[str | None]:
    return [row["label"] for row in documents(workspace, batch)]


def refused(workspace: Workspace) -> list[tuple[int, str]]:
    return [(row["row"], row["reason"]) for row in rejects(workspace)]


def test_labels_are_joined_by_what_the_user_says(workspace: Workspace, tmp_path: Path) -> None:
    path = csv(tmp_path / "a.csv", "b;a", "a", " b ; c;b", "", "  ")
    report = take(workspace, path, label_separator=";")
    assert kept(workspace) == ["a|b", "a", "b|c", None, None]
    assert report.labels == {"a": 2, "b": 2, "c": 1}
    assert (report.labelled, report.several_labels, report.no_class, report.unlabelled) == (3, 2, 0, 2)
    assert workspace.batch("b").multi_label
    assert pq.read_schema(workspace.batch("b").parts[0]).equals(DOCUMENTS)


@pytest.mark.parametrize("separator", ["|", ", ", "\t", " ", "::"])
def test_a_separator_can_be_any_string(workspace: Workspace, tmp_path: Path, separator: str) -> None:
    take(workspace, csv(tmp_path / "a.csv", separator.join("ba"), "a"), label_separator=separator)
    assert kept(workspace) == ["a|b", "a"]


def test_an_empty_separator_is_refused() -> None:
    with pytest.raises(ConfigError, match="label_separator"):
        validated(IngestConfig, {"label_separator": ""})


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.string()),
        pa.large_list(pa.large_string()),
        pa.list_view(pa.string()),
        pa.list_(pa.dictionary(pa.int32(), pa.string())),
    ],
)
def test_lists_of_parquet_are_several_labels(workspace: Workspace, tmp_path: Path, kind: pa.DataType) -> None:
    column = pa.array([["b", "a", "a"], [" c "], [], None], kind)
    table = pa.table({"text": ["one", "two", "three", "four"], "label": column})
    pq.write_table(table, tmp_path / "a.parquet")
    report = take(workspace, tmp_path / "a.parquet")
    assert kept(workspace) == ["a|b", "c", "", None]
    assert (report.labelled, report.no_class, report.labels) == (3, 1, {"a": 1, "b": 1, "c": 1})


def test_packed_parquet_with_lists(workspace: Workspace, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["one"], "label": [["a", "b"]]}), tmp_path / "a.parquet")
    path = write(tmp_path / "a.parquet.gz", gzip.compress((tmp_path / "a.parquet").read_bytes()))
    take(workspace, path)
    assert kept(workspace) == ["a|b"]


def test_lists_of_json_are_several_labels(workspace: Workspace, tmp_path: Path) -> None:
    take(workspace, lines(tmp_path / "a.jsonl", ["b", "a"], ["c"], [], None, ..., "d", "", [2, 1.5, True], 7))
    assert kept(workspace) == ["a|b", "c", "", None, None, "d", None, "1.5|2|true", "7"]


def test_a_batch_without_lists_or_separator_has_one_label_each(workspace: Workspace, tmp_path: Path) -> None:
    report = take(workspace, csv(tmp_path / "a.csv", "a|b", "a"))
    assert report.labels == {"a": 1, "a|b": 1}
    assert not workspace.batch("b").multi_label
    assert "Of the documents 2 have a label, 0 have none" in ingest_report(report)


@pytest.mark.parametrize("last", [["y", "x"], ["x"], []])
def test_a_list_far_down_counts_from_the_start(workspace: Workspace, tmp_path: Path, last: list[str]) -> None:
    path = lines(tmp_path / "a.jsonl", *["x"] * 9000, "p|q", *["z"] * 10, last)
    report = take(workspace, path)
    assert report.multi_label
    assert refused(workspace) == [(9001, "label_with_separator")]
    assert kept(workspace)[-1] == "|".join(sorted(last))


def test_plain_labels_beside_lists_are_sets_of_one(workspace: Workspace, tmp_path: Path) -> None:
    write(tmp_path / "1.csv", "text,label\none,a\ntwo,b\n")
    lines(tmp_path / "2.jsonl", ["a", "b"])
    write(tmp_path / "3" / "c" / "1.txt", "hello")
    report = take(workspace, tmp_path / "1.csv", tmp_path / "2.jsonl", tmp_path / "3", id=None)
    assert report.multi_label
    assert report.labels == {"a": 2, "b": 2, "c": 1}


def test_what_stands_in_a_list_is_not_taken_apart(workspace: Workspace, tmp_path: Path) -> None:
    take(workspace, lines(tmp_path / "a.jsonl", ["a, b", "c"], "c, d"), label_separator=",")
    assert kept(workspace) == ["a, b|c", "c|d"]


@pytest.mark.parametrize(
    ("name", "label"),
    [("text", "topics"), ("label", "topics"), ("topics", None)],
)
def test_only_lists_of_the_label_column_count(
    workspace: Workspace, tmp_path: Path, name: str, label: str | None
) -> None:
    row = {"text": "see: [this]", "label": "a|b", "topics": "a|b", "other": ["x"], "nested": {"label": ["x"]}}
    path = write(tmp_path / "a.jsonl", json.dumps(row | ({name: ["x"]} if name != "text" else {})) + "\n")
    assert not take(workspace, path, label=label).multi_label


def test_a_column_used_otherwise_is_not_the_labels(workspace: Workspace, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "hello", "label": ["x"]}\n')
    assert not take(workspace, path, id="label").multi_label


@pytest.mark.parametrize("label", [["a", ""], ["a", "  "], [None], [float("nan")], [""]])
def test_an_empty_label_in_a_list_is_refused(workspace: Workspace, tmp_path: Path, label: Any) -> None:
    take(workspace, lines(tmp_path / "a.jsonl", *[["a"]] * 30, label))
    assert refused(workspace) == [(31, "empty_label")]


@pytest.mark.parametrize("label", ["a||b", "a|", "|a", "|", " | "])
def test_an_empty_label_among_several_is_refused(workspace: Workspace, tmp_path: Path, label: str) -> None:
    take(workspace, csv(tmp_path / "a.csv", *["a"] * 30, label), label_separator="|")
    assert refused(workspace) == [(32, "empty_label")]
    assert rejects(workspace)[0]["raw_text"] == f"text 30\t{label}"


@pytest.mark.parametrize("label", [[["a"]], [{"a": 1}], {"a": 1}])
def test_nested_labels_are_refused(workspace: Workspace, tmp_path: Path, label: Any) -> None:
    take(workspace, lines(tmp_path / "a.jsonl", *[["a"]] * 30, label))
    assert refused(workspace) == [(31, "label_not_a_value")]


def test_a_map_of_parquet_is_no_label(workspace: Workspace, tmp_path: Path) -> None:
    labels = pa.array([[("a", 1)], None], pa.map_(pa.string(), pa.int64()))
    pq.write_table(pa.table({"text": ["one", "two"], "label": labels}), tmp_path / "a.parquet")
    report = take(workspace, tmp_path / "a.parquet", max_reject_rate=0.5)
    assert (report.multi_label, report.reject_reasons) == (False, {"label_not_a_value": 1})
    take(workspace, tmp_path / "a.parquet", max_reject_rate=0.5, label_separator=",", batch="c")
    assert refused(workspace) == [(1, "label_not_a_value")]


@pytest.mark.parametrize("label", ["a|b", "a|b,c"])
def test_a_label_cannot_hold_the_stored_separator(workspace: Workspace, tmp_path: Path, label: str) -> None:
    path = csv(tmp_path / "a.csv", "a,b", *["a"] * 30, label)
    take(workspace, path, label_separator=",")
    assert refused(workspace) == [(33, "label_with_separator")]
    many = csv(tmp_path / "many.csv", "a,b", *[label] * 30)
    assert "pass --label-separator '|' if" in refuse(RejectRateError, workspace, many, batch="c", label_separator=",")


def test_nul_in_a_list_is_refused(workspace: Workspace, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["x"] * 30, "label": [["a"]] * 29 + [["a\0"]]}), tmp_path / "a.parquet")
    assert take(workspace, tmp_path / "a.parquet").reject_reasons == {"nul_byte": 1}
    path = lines(tmp_path / "a.jsonl", *[["a"]] * 29, ["a\0"])
    assert take(workspace, path, batch="c").reject_reasons == {"nul_byte": 1}


@pytest.mark.parametrize(
    ("mark", "said", "option"), [("|", "'|'", "'|'"), (";", "';'", "';'"), ("\t", "a tab", r"$'\t'")]
)
def test_a_separator_that_is_another_one_is_told(
    workspace: Workspace, tmp_path: Path, mark: str, said: str, option: str
) -> None:
    path = csv(tmp_path / "a.csv", *["a"] * 8, "", f"a{mark}b", f"b{mark}c{mark}a")
    message = refuse(InputError, workspace, path, label_separator=",")
    assert message == f"no label holds the separator ',', but 2 of 10 hold {said}: is it --label-separator {option}?"


@pytest.mark.parametrize("labels", [["a"] * 20, [*["a"] * 20, "b/c"], ["a,b", *["b;c"] * 9]])
def test_a_separator_that_is_rare_or_absent_is_fine(workspace: Workspace, tmp_path: Path, labels: list[str]) -> None:
    report = take(workspace, csv(tmp_path / "a.csv", *labels), label_separator=",")
    assert report.multi_label
    assert report.documents == len(labels)


def test_the_limit_is_on_classes_not_on_their_combinations(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.ingest.manifest.MAX_CLASSES", 12)
    names = [[first, second] for first in "abcdefghijkl" for second in "abcdefghijkl"]
    report = take(workspace, lines(tmp_path / "a.jsonl", *names))
    assert (len(report.labels), report.labelled) == (12, 144)
    path = lines(tmp_path / "b.jsonl", *names, ["m"])
    assert "more than 12 different values" in refuse(InputError, workspace, path, batch="c")


def test_the_report_says_how_many_have_several(workspace: Workspace, tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", ["a", "b"], ["a", "c", "b"], "a", [], None)
    report = take(workspace, path)
    line = (
        "Of the documents 4 are labelled: 1 with one of 3 classes, 2 with several, 1 with none of them. "
        "1 are not labelled, 0 are empty."
    )
    assert line in ingest_report(report)
    again = ingest(workspace, [str(path)], IngestConfig(), batch_id="b")
    assert again.already_ingested
    assert line in ingest_report(again)


def test_a_batch_from_before_there_were_several_labels_is_still_the_same(workspace: Workspace, tmp_path: Path) -> None:
    path = csv(tmp_path / "a.csv", "a")
    take(workspace, path)
    old = IngestConfig().model_dump(mode="json", exclude={"label_separator", "group"})
    digests = [source.digests() for source in find_sources([str(path)], IngestConfig())]
    manifest = workspace.batch("b").manifest
    assert manifest["config"] == old
    assert manifest["fingerprint"] == value_digest([digests, old])
    del manifest["multi_label"]
    write(workspace.batch("b").path / "manifest.json", json.dumps(manifest))
    assert take(workspace, path).already_ingested
    assert not take(workspace, path, batch="c", label_separator="|").already_ingested


VALUES = st.text("ab|; \0", max_size=4) | st.none() | st.integers(0, 3) | st.floats()
COLUMNS = st.lists(VALUES | st.lists(VALUES | st.lists(VALUES, max_size=1), max_size=3), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(COLUMNS, st.sampled_from([None, "|", ";", " "]))
def test_labels_of_any_kind_add_up(
    workspace: Workspace, tmp_path: Path, values: list[Any], separator: str | None
) -> None:
    path = lines(tmp_path / "any.jsonl", ["a"], f"b{separator}c" if separator else "b", *values)
    report = take(workspace, path, replace=True, max_reject_rate=1.0, label_separator=separator)
    assert report.multi_label
    assert not set("|\0") & set("".join(report.labels))
    assert all(label == label.strip() != "" for label in report.labels)


@pytest.mark.parametrize("separator", ["|", ","])
def test_comments_with_several_feelings(workspace: Workspace, separator: str) -> None:
    path = REAL_DATA / "goemotions" / "dev_multi.parquet"
    if not path.exists():
        pytest.skip("needs goemotions/dev_multi.parquet")
    if separator == ",":
        message = refuse(InputError, workspace, path, label_separator=separator)
        assert message.endswith("of 5,426 hold '|': is it --label-separator '|'?")
        return
    report = take(workspace, path, label_separator=separator)
    assert (report.rows_read, report.rejects, len(report.labels)) == (5426, 0, 28)
    assert 500 < report.several_labels < 1500
