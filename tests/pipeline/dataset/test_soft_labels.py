"""A teacher's table is taken as it is meant, or refused with the place of what is wrong."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from pipeline.dataset.soft_labels import SoftLabels, check_soft_label_ids, read_soft_labels
from pipeline.errors import InputError
from pipeline.files import file_digest

LABELS = ["rain", "sun"]
ROWS = [
    {"doc_id": "007", "sun": 0.25, "rain": 0.75},
    {"doc_id": "2020-01-01", "sun": 1.0, "rain": 0.0},
    {"doc_id": "größe,", "sun": 0.502, "rain": 0.502},
]


def table_of(rows: list[dict[str, Any]]) -> pa.Table:
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: [row.get(name) for row in rows] for name in names})


def as_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    pacsv.write_csv(table_of(rows), path)


def as_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    pq.write_table(table_of(rows), path)


def as_json(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    {".csv": as_csv, ".parquet": as_parquet, ".jsonl": as_json}[path.suffix](path, rows)
    return path


def refuse(path: Path, *, labels: list[str] = LABELS, multi_label: bool = False) -> str:
    """Read what must be refused; return the message, which names the file in one line."""
    with pytest.raises(InputError) as caught:
        read_soft_labels(path, labels, multi_label=multi_label)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert len(message.splitlines()) == 1
    return message.removeprefix(str(path)).lstrip(":, ")


@pytest.mark.parametrize("compress", [None, gzip.compress, lambda data: pa.compress(data, "zstd", asbytes=True)])
@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
def test_every_format_gives_the_same_opinion(
    tmp_path: Path, kind: str, compress: Callable[[bytes], bytes] | None
) -> None:
    path = write(tmp_path / f"teacher.{kind}", ROWS)
    if compress is not None:
        packed = tmp_path / f"teacher.{kind}{'.gz' if compress is gzip.compress else '.zst'}"
        packed.write_bytes(compress(path.read_bytes()))
        path = packed
    teacher = read_soft_labels(path, LABELS, multi_label=False)
    assert teacher.doc_ids.to_pylist() == [row["doc_id"] for row in ROWS]
    assert teacher.probabilities.dtype == np.float32
    np.testing.assert_allclose(teacher.probabilities, [[0.75, 0.25], [0.0, 1.0], [0.5, 0.5]], atol=1e-7)
    assert teacher.provenance() == {"file": path.name, "sha256": file_digest(path), "texts": 3}


def test_probabilities_of_several_labels_are_left_as_they_are(tmp_path: Path) -> None:
    rows = [{"id": "a", "rain": 0.9, "sun": 0.8}, {"id": "b", "rain": 0.0, "sun": 0.1}]
    teacher = read_soft_labels(write(tmp_path / "t.jsonl", rows), LABELS, multi_label=True)
    np.testing.assert_allclose(teacher.probabilities, [[0.9, 0.8], [0.0, 0.1]], atol=1e-7)


def test_rows_that_are_rounded_add_up_to_one(tmp_path: Path) -> None:
    labels = [f"class {number}" for number in range(7)]
    rows = [{"doc_id": str(n)} | dict.fromkeys(labels, 0.142 + n * 1e-5) for n in range(50)]
    teacher = read_soft_labels(write(tmp_path / "t.csv", rows), labels, multi_label=False)
    np.testing.assert_allclose(teacher.probabilities.sum(axis=1), 1, atol=3e-7)


@pytest.mark.parametrize("kind", ["int8", "int64", "uint64", "large_string", "string_view", "dictionary"])
def test_ids_of_parquet_are_text_whatever_their_type(tmp_path: Path, kind: str) -> None:
    ids = pa.array(["7", "12"])
    column = ids.dictionary_encode() if kind == "dictionary" else ids.cast(getattr(pa, kind)())
    halves = pa.array([0.5, 0.5], pa.float32())
    pq.write_table(pa.table({"id": column, "rain": halves, "sun": halves}), tmp_path / "t.parquet")
    assert read_soft_labels(tmp_path / "t.parquet", LABELS, multi_label=False).doc_ids.equals(ids)


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.int64(), pa.decimal128(10, 3)])
def test_numbers_of_parquet_can_be_of_any_kind(tmp_path: Path, kind: pa.DataType) -> None:
    columns = {"doc_id": ["a"], "rain": pa.array([1.0]).cast(kind), "sun": pa.array([0.0]).cast(kind)}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    assert read_soft_labels(tmp_path / "t.parquet", LABELS, multi_label=False).probabilities.tolist() == [[1.0, 0.0]]


def test_a_number_no_float_can_hold_is_no_probability(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", [{"id": "a", "rain": 2**60 + 1, "sun": 0}])
    assert "row 1, column 'rain': 1.152921504606847e+18 is not a probability" in refuse(path)


def test_ids_of_json_can_be_numbers(tmp_path: Path) -> None:
    rows = [{"id": number, "rain": 1, "sun": 0} for number in (7, 12)]
    teacher = read_soft_labels(write(tmp_path / "t.jsonl", rows), LABELS, multi_label=False)
    assert teacher.doc_ids.to_pylist() == ["7", "12"]


def test_white_space_around_an_id_is_not_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text('doc_id\train\tsun\n a" \t1\t0\n')
    assert read_soft_labels(tmp_path / "t.tsv", LABELS, multi_label=False).doc_ids.to_pylist() == ['a"']


@pytest.fixture
def teacher(tmp_path: Path) -> SoftLabels:
    return read_soft_labels(write(tmp_path / "t.csv", ROWS), LABELS, multi_label=False)


def test_opinions_come_in_the_order_of_the_documents(teacher: SoftLabels) -> None:
    found = teacher.aligned(pa.array(["x", "2020-01-01", "007", "2020-01-01"]))
    np.testing.assert_array_equal(found, np.float32([[np.nan, np.nan], [0, 1], [0.75, 0.25], [0, 1]]))
    assert found.dtype == np.float32
    assert teacher.aligned(pa.array([], pa.string())).shape == (0, 2)


def test_every_text_of_a_teacher_is_a_document(teacher: SoftLabels) -> None:
    check_soft_label_ids(
        teacher, [pa.array(["x", "007"]), pa.array(["größe,", "2020-01-01"]), pa.array(["never read"])]
    )
    with pytest.raises(InputError) as caught:
        check_soft_label_ids(teacher, [pa.array(["x"]), pa.array(["007"])])
    assert str(caught.value) == (
        "t.csv: 2 of 3 ids are not documents here, the first is '2020-01-01'; ingest them first, or remove them"
    )
    with pytest.raises(InputError, match="3 of 3 ids"):
        check_soft_label_ids(teacher, [])


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"doc_id": "007"}, "row 4: id '007' is already in row 1; keep one of them"),
        ({"doc_id": ""}, "row 4, column 'doc_id': no id; add the id of its document"),
        ({"sun": None}, "row 4, column 'sun': no value; give a number from 0 to 1"),
        ({"sun": -0.5}, "row 4, column 'sun': -0.5 is not a probability; give a number from 0 to 1"),
        ({"rain": 1.5}, "row 4, column 'rain': 1.5 is not a probability; give a number from 0 to 1"),
        ({"rain": float("nan")}, "row 4, column 'rain': nan is not a probability; give a number from 0 to 1"),
        ({"sun": float("inf")}, "row 4, column 'sun': inf is not a probability; give a number from 0 to 1"),
        ({"sun": 0.61}, "row 4: the probabilities add up to 1.1100; a document with one label needs 1"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, kind: str, change: dict[str, Any], message: str) -> None:
    good = {"doc_id": "d", "rain": 0.5, "sun": 0.5}
    rows = [*ROWS, {**good, **change}, {**good, "doc_id": "e", "sun": 7.0}]
    if "add up" in message or "id" in message:
        rows.pop()
    if kind == "jsonl" and change.get("sun") == float("inf"):
        rows[3]["sun"] = 1e999  # as JSON writers put it
    assert refuse(write(tmp_path / f"t.{kind}", rows)) == message


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["key", "sun", "rain"], "no column 'doc_id' (there are: '"),
        (["id", "sun"], "no column for the classes 'rain'; add one for each class"),
        (["id", "sun", "rain", "snow"], "other classes than those of the documents: 'snow'; remove these columns"),
        (["id", "sun", "rain", *"abcdefg"], "other classes than those of the documents: 'a', 'b', 'c', 'd', 'e' and 2"),
    ],
)
def test_columns_are_an_id_and_the_classes(tmp_path: Path, kind: str, columns: list[str], message: str) -> None:
    path = write(tmp_path / f"t.{kind}", [dict.fromkeys(columns, 1.0) | {columns[0]: "x"}])
    assert refuse(path).startswith(message)


def test_a_value_that_is_no_number_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("id,rain,sun\n" + "".join(f"{n},1,0\n" for n in range(900)) + "\nx,0.5,half\n")
    assert refuse(path) == "row 901, column 'sun': 'half' is not a number; give a probability from 0 to 1"
    rows: list[dict[str, Any]] = [{"id": str(n), "rain": 1, "sun": 0} for n in range(900)]
    path = write(tmp_path / "t.jsonl", [*rows, {"id": "x", "rain": 0.5, "sun": "half"}])
    assert refuse(path) == "row 901, column 'sun': 'half' is not a number; give a probability from 0 to 1"
    path = write(tmp_path / "t.parquet", [{"id": "x", "rain": "0.5", "sun": "half"}])
    assert refuse(path) == "column 'rain': is string, not numbers; give probabilities from 0 to 1"


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_rows_are_counted_over_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    for module in ("base", "csv"):
        monkeypatch.setattr(f"pipeline.ingest.readers.{module}.CHUNK_ROWS", 40)
    rows: list[dict[str, Any]] = [{"id": n, "rain": 1, "sun": 0} for n in range(900)]
    path = write(tmp_path / f"t.{kind}", rows)
    content = path.read_text()
    assert read_soft_labels(path, LABELS, multi_label=False).doc_ids.to_pylist() == [str(n) for n in range(900)]
    path.write_text(content + {"csv": "x,half,0\n", "jsonl": '{"id": "x", "rain": "half", "sun": 0}\n'}[kind])
    assert refuse(path) == "row 901, column 'rain': 'half' is not a number; give a probability from 0 to 1"
    path.write_text(content + "x\n")
    reason = {"csv": "ragged_row", "jsonl": "not_json"}[kind]
    assert refuse(path) == f"row 901: {reason}: 'x'; fix it, or remove the row"


def test_an_id_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", [{"id": 1.5, "rain": 1.0, "sun": 0.0}])
    assert refuse(path) == "column 'id': is double, neither text nor whole numbers"


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("id,sun,rain,sun\nx,1,0,1\n")
    assert refuse(path) == "other classes than those of the documents: 'sun_4'; remove these columns"


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_table_without_rows_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"t.{kind}"
    empty = pa.table({"id": pa.array([], pa.string()), "rain": pa.array([], pa.float64())})
    empty = empty.append_column("sun", pa.array([], pa.float64()))
    pq.write_table(empty, path) if kind == "parquet" else pacsv.write_csv(empty, path)
    assert refuse(path) == "has no rows"


@pytest.mark.parametrize(
    "content", [b"", b"\x89PNG\r\n\x1a\n\x00\xff\xfe", b"[" * 100_000, b"[1, 2]\n", b"id,rain,sun\nx,1\n"]
)
@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl", "t.parquet", "t.csv.gz", "t.jsonl.zst", "t.txt", "t"])
def test_a_file_that_is_not_what_its_name_says_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    refuse(path)


def test_a_ragged_row_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("id,rain,sun\nx,1,0\ny,1\n")
    assert refuse(path) == "row 2: ragged_row: 'y,1'; fix it, or remove the row"


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert refuse(tmp_path / "nowhere.csv") == "cannot be read (No such file or directory)"
    (tmp_path / "folder.csv").mkdir()
    assert refuse(tmp_path / "folder.csv") == "cannot be read (Is a directory)"
