"""Every format a user may have, read as what it is."""

import gzip
import json
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ingest_tools import documents, refuse, rejects, take, texts, write

from pipeline.config import IngestConfig
from pipeline.errors import RejectRateError
from pipeline.ingest import ingest
from pipeline.schemas import DOCUMENTS
from pipeline.workspace import Workspace

ROWS = [
    {"id": "1", "text": "first text", "label": "a"},
    {"id": "2", "text": "zweiter Text, größer", "label": "b"},
    {"id": "3", "text": "세 번째 글", "label": ""},
]


def encoded(kind: str, tmp_path: Path) -> bytes:
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows")
        return (tmp_path / "rows").read_bytes()
    if kind == "jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
    lines = [list(ROWS[0]), *(list(row.values()) for row in ROWS)]
    if kind == "csv":
        lines = [[f'"{field}"' for field in line] for line in lines]
    return "".join({"csv": ",", "tsv": "\t"}[kind].join(line) + "\n" for line in lines).encode()


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_each_format_gives_the_same_documents(workspace: Workspace, tmp_path: Path, kind: str, suffix: str) -> None:
    data = encoded(kind, tmp_path)
    packed = {"": data, ".gz": gzip.compress(data), ".zst": pa.compress(data, "zstd", asbytes=True)}[suffix]
    path = write(tmp_path / f"rows.{kind}{suffix}", packed)
    report = take(workspace, path)
    assert report.labels == {"a": 1, "b": 1}
    assert [(row["doc_id"], row["text"], row["label"] or "") for row in documents(workspace)] == [
        tuple(row.values()) for row in ROWS
    ]
    assert {row["source"] for row in documents(workspace)} == {str(path)}
    schema = pq.read_schema(workspace.batch("b").parts[0])
    assert schema.equals(DOCUMENTS)


def test_several_gzip_members_are_one_file(workspace: Workspace, tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv.gz", gzip.compress(b"text\none\n") + gzip.compress(b"two\n"))
    take(workspace, path)
    assert texts(workspace) == ["one", "two"]


def test_paths_globs_and_folders_of_data_are_read_in_order(workspace: Workspace, tmp_path: Path) -> None:
    for name in ("x/2.csv", "x/1.csv", "y.csv", "z/deep/3.csv"):
        write(tmp_path / name, f"text\nof {name}\n")
    take(workspace, tmp_path / "y.csv", f"{tmp_path}/x/*.csv", tmp_path / "z")
    assert texts(workspace) == ["of y.csv", "of x/1.csv", "of x/2.csv", "of z/deep/3.csv"]


def test_columns_by_position_count_from_one(workspace: Workspace, tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "pos,Title,Body\nneg,Other,More\n")
    take(workspace, path, header=False, text=["2", "3"], label="1", join=" | ")
    assert [(row["label"], row["text"], row["row"]) for row in documents(workspace)] == [
        ("pos", "Title | Body", 1),
        ("neg", "Other | More", 2),
    ]


def test_a_damaged_first_row_does_not_decide_how_many_columns_there_are(workspace: Workspace, tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", '"a" b,c\n' + "".join(f"text {n},x\n" for n in range(50)))
    assert take(workspace, path, header=False, text=["1"], label="2").documents == 50


def test_blank_parts_of_a_joined_text_leave_no_gap(workspace: Workspace, tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "subject,body\nhello,\n,world\nboth,here\n")
    take(workspace, path, text=["subject", "body"])
    assert texts(workspace) == ["hello", "world", "both\nhere"]


def test_a_byte_order_mark_vanishes(workspace: Workspace, tmp_path: Path) -> None:
    for encoding in ("utf-8-sig", "utf-16", "utf-32"):
        path = write(tmp_path / f"{encoding}.csv", "text,label\ngrün,a\n".encode(encoding))
        take(workspace, path, batch=encoding)
        assert texts(workspace, encoding) == ["grün"]


def test_an_encoding_that_is_said(workspace: Workspace, tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text\n“café”\n".encode("cp1252"))
    take(workspace, path, encoding="cp1252")
    assert texts(workspace) == ["“café”"]


def test_newlines_inside_quotes_belong_to_the_text(workspace: Workspace, tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'text,label\n"one\n\ntwo",a\n"say ""hi""",b\r\nplain,c')
    take(workspace, path)
    assert [(row["text"], row["row"]) for row in documents(workspace)] == [
        ("one\n\ntwo", 2),
        ('say "hi"', 5),
        ("plain", 6),
    ]


def test_quotes_in_tsv_are_text(workspace: Workspace, tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", 'label\ttext\nham\t"so what\nspam\tsay "hi"\n')
    take(workspace, path)
    assert texts(workspace) == ['"so what', 'say "hi"']


def test_other_columns_are_passed_through(workspace: Workspace, tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "id,text,queue,row,row,,doc_id\n1,hello,billing,7,8,9,10\n")
    take(workspace, path)
    (row,) = documents(workspace)
    assert row["doc_id"] == "1"
    assert (row["queue"], row["row"], row["row_given"]) == ("billing", 2, "7")
    assert sorted(row) == sorted([*DOCUMENTS.names, "queue", "row_given", "row_5", "column_6", "doc_id_given"])
    assert workspace.batch("b").manifest["columns"] == ["column_6", "doc_id_given", "queue", "row_5", "row_given"]


@pytest.mark.parametrize("name", ["reason", "raw_text", "source", "content_hash", "batch"])
def test_no_column_name_is_forbidden(workspace: Workspace, tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "a.csv", f"text,{name},{name}_given,z\nhello,1,2,3\n")
    take(workspace, path)
    assert list(documents(workspace)[0].values())[len(DOCUMENTS) :].count("3") == 1


def test_parquet_columns_keep_their_types(workspace: Workspace, tmp_path: Path) -> None:
    columns: dict[str, pa.Array] = {
        "text": pa.array(["hello", "world"]).dictionary_encode(),
        "label": pa.array([1, None]),
        "when": pa.array([1_700_000_000_000_000_001, None], pa.timestamp("ns", "UTC")),
        "price": pa.array([Decimal("1.50"), None]),
        "tags": pa.array([["x"], []]),
        "made_of": pa.array([{"a": 1}, None]),
        "kind": pa.array(["p", "q"]).dictionary_encode(),
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    ingest(workspace, [str(tmp_path / "a.parquet")], IngestConfig(), batch_id="b")
    written = pq.read_table(workspace.batch("b").parts[0], partitioning=None)
    assert written.num_rows == 2
    for name in ("when", "price", "tags", "made_of"):
        assert written[name].combine_chunks().equals(columns[name]), name
    assert written["kind"].to_pylist() == ["p", "q"]
    assert written["label"].to_pylist() == ["1", None]


@pytest.mark.parametrize(
    ("values", "label"),
    [
        ([True], "true"),
        ([2.5], "2.5"),
        ([float("nan")], None),
        ([datetime(2026, 1, 2)], "2026-01-02"),
        ([b"raw"], "raw"),
        ([Decimal("3.1")], "3.1"),
    ],
)
def test_a_label_may_be_any_plain_value(workspace: Workspace, tmp_path: Path, values: list[Any], label: str) -> None:
    pq.write_table(pa.table({"text": ["hello"], "label": values}), tmp_path / "a.parquet")
    take(workspace, tmp_path / "a.parquet")
    found = documents(workspace)[0]["label"]
    assert found == label or found.startswith(label)


def test_parts_of_different_types_come_together_as_text(workspace: Workspace, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["one"], "n": [1]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"text": ["two"], "n": ["x"]}), tmp_path / "2.parquet")
    pq.write_table(pa.table({"text": ["three"], "n": [None]}), tmp_path / "3.parquet")
    take(workspace, tmp_path / "*.parquet")
    assert [row["n"] for row in documents(workspace)] == ["1", "x", None]


def test_json_values_become_text(workspace: Workspace, tmp_path: Path) -> None:
    row = {"text": "hello", "label": 3, "n": 1.5, "yes": True, "nested": {"a": ["ü"]}, "none": None}
    take(workspace, write(tmp_path / "a.jsonl", json.dumps(row) + "\n\n"))
    (found,) = documents(workspace)
    assert found["label"] == "3"
    assert [found[name] for name in ("n", "yes", "nested", "none")] == ["1.5", "true", '{"a": ["ü"]}', None]


def test_a_json_key_that_only_later_rows_have(workspace: Workspace, tmp_path: Path) -> None:
    rows = [{"text": f"text {number}"} for number in range(9000)] + [{"text": "last", "label": "a", "topic": "t"}]
    path = write(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert take(workspace, path).labels == {"a": 1}
    assert take(workspace, path, batch="c", label="topic").labels == {"t": 1}


def test_ids_are_made_from_the_text_where_there_are_none(workspace: Workspace, tmp_path: Path) -> None:
    report = take(workspace, write(tmp_path / "a.csv", "text\none\ntwo\none\n"))
    assert (report.documents, report.duplicates) == (2, 1)
    assert [row["doc_id"] for row in documents(workspace)] == [
        row["content_hash"].hex() for row in documents(workspace)
    ]


def test_the_split_is_a_word_or_a_column(workspace: Workspace, tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,part\none,train\ntwo,DEV\nthree, test \nfour,\n")
    take(workspace, path, split="part")
    assert [row["split"] for row in documents(workspace)] == ["train", "validation", "test", None]
    take(workspace, path, batch="c", split="test")
    assert {row["split"] for row in documents(workspace, "c")} == {"test"}


def test_a_column_of_splits_with_another_word_in_it(workspace: Workspace, tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,part\none,holdout\n")
    assert "1 bad_split" in refuse(RejectRateError, workspace, path, split="part")


def test_html_is_cleaned_on_request(workspace: Workspace, tmp_path: Path) -> None:
    text = "It#39;s <b>bold</b>&lt;br /&gt; &amp;quot;x&amp;quot; I <3 a < b"
    path = write(tmp_path / "a.jsonl", json.dumps({"text": text}) + "\n")
    take(workspace, path, clean_html=True)
    assert " ".join(texts(workspace)[0].split()) == 'It\'s bold "x" I <3 a < b'
    take(workspace, path, batch="c")
    assert texts(workspace, "c") == [text]


@pytest.mark.parametrize("text", ["<!--" * 100_000, "&#" + "9" * 5000 + ";", "<a " * 200_000, "&#0;&#xD800;"])
def test_markup_meant_to_do_harm_does_none(workspace: Workspace, tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "a.jsonl", json.dumps({"text": "fine"}) + "\n" + json.dumps({"text": text}) + "\n")
    assert take(workspace, path, clean_html=True).documents == 2


def movie_reviews(root: Path) -> Path:
    for part in ("train", "test"):
        for label in ("pos", "neg"):
            for number in range(2):
                write(root / part / label / f"{number}_9.txt", f"{part} {label} {number}")
    write(root / "train" / "unsup" / "0_0.txt", "train unknown")
    write(root / "train" / "urls_pos.txt", "no document")
    write(root / "README", "no document")
    return root


def test_a_folder_of_texts_says_label_and_split(workspace: Workspace, tmp_path: Path) -> None:
    report = take(workspace, movie_reviews(tmp_path / "aclImdb"))
    assert report.labels == {"neg": 4, "pos": 4}
    assert report.unlabelled == 1
    found = {row["doc_id"]: row for row in documents(workspace)}
    assert found["train/unsup/0_0.txt"]["label"] is None
    assert found["test/pos/1_9.txt"]["split"] == "test"
    assert found["test/pos/1_9.txt"]["source"] == str(tmp_path / "aclImdb/test/pos/1_9.txt")
    assert workspace.batch("b").manifest["splits"] == {"train": 5, "test": 4}


def test_moving_a_text_to_another_class_is_other_content(workspace: Workspace, tmp_path: Path) -> None:
    root = movie_reviews(tmp_path / "aclImdb")
    take(workspace, root)
    (root / "train/pos/0_9.txt").rename(root / "train/neg/9_9.txt")
    (root / "train/neg/9_9.txt").rename(root / "train/neg/0_8.txt")
    assert take(workspace, root, replace=True).labels == {"neg": 5, "pos": 3}


def test_a_damaged_text_in_a_folder_is_refused_with_its_name(workspace: Workspace, tmp_path: Path) -> None:
    root = movie_reviews(tmp_path / "texts")
    bad = write(root / "train" / "pos" / "bad.txt", b"caf\xe9")
    take(workspace, root, max_reject_rate=0.2)
    (reject,) = rejects(workspace)
    assert (reject["source"], reject["reason"]) == (str(bad), "invalid_encoding")
