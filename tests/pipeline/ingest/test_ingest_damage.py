"""Damaged rows are refused one by one, with place, reason and content, and the rest is kept."""

import csv
import io
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ingest_tools import documents, left_behind, rejects, take, texts, write

from pipeline.errors import NightlabelError
from pipeline.workspace import Workspace

GOOD = [f"text {number},a" for number in range(100)]


def with_bad(path: Path, *bad: bytes, at: int = 50) -> Path:
    """Write a CSV file with good rows, and bad ones in their midst, from line at + 2."""
    lines = [line.encode() for line in GOOD]
    return write(path, b"\n".join([b"text,label", *lines[:at], *bad, *lines[at:]]) + b"\n")


@pytest.mark.parametrize(
    ("bad", "reason", "raw"),
    [
        (b"one,two,three", "ragged_row", "one,two,three"),
        (b"lonely", "ragged_row", "lonely"),
        (b'"never closed,a', "unclosed_quote", '"never closed,a'),
        (b'"closed" early,a', "malformed_quotes", '"closed" early,a'),
        (b"nul \0 byte,a", "nul_byte", "nul \\x00 byte,a"),
        (b"caf\xe9,a", "invalid_encoding", "caf\\xe9,a"),
        (b"x" * 1_000_001 + b",a", "text_too_long", "x" * 1_000_001),
        (b"y" * 10_000_000 + b",a", "text_too_long", "y" * 10_000_000),
    ],
)
def test_a_damaged_row_costs_itself_alone(
    workspace: Workspace, tmp_path: Path, bad: bytes, reason: str, raw: str
) -> None:
    path = with_bad(tmp_path / "a.csv", bad)
    report = take(workspace, path)
    assert report.reject_reasons == {reason: 1}
    assert texts(workspace) == [line.removesuffix(",a") for line in GOOD]
    (reject,) = rejects(workspace)
    assert (reject["source"], reject["row"], reject["reason"]) == (str(path), 52, reason)
    assert reject["raw_text"].startswith(raw)


def test_a_stray_quote_swallows_nothing_when_the_rows_behind_are_quoted(workspace: Workspace, tmp_path: Path) -> None:
    rows = [f'"text {number}","a"' for number in range(100)]
    rows[10] = '"text 10,"a"'
    rows[20] = '"text 20","a'
    rows[30] = 'text "30","a"'  # in the midst of a field, a quote is text
    path = write(tmp_path / "a.csv", "text,label\n" + "\n".join(rows) + "\n")
    report = take(workspace, path)
    assert [reject["row"] for reject in rejects(workspace)] == [12, 22]
    assert report.documents == 98


def test_two_stray_quotes_swallow_nothing_between_them(workspace: Workspace, tmp_path: Path) -> None:
    rows = [f"text {number},a" for number in range(100)]
    rows[10] = '"text 10,a'
    rows[15] = 'text 15",a'  # read as the end of the quote five rows up, that gives too few fields
    path = write(tmp_path / "a.csv", "id,text,label\n" + "\n".join(f"r{n},{row}" for n, row in enumerate(rows)) + "\n")
    take(workspace, path)
    kept = {row["doc_id"] for row in documents(workspace)}
    assert {f"r{number}" for number in (9, 16, 99)} <= kept


def test_blank_lines_are_no_rows_and_empty_texts_are(workspace: Workspace, tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label\n\none,a\n   \n,b\n\n")
    report = take(workspace, path, id=None)
    assert (report.rows_read, report.documents, report.empty) == (2, 2, 1)


def test_an_empty_row_of_tsv_is_a_document(workspace: Workspace, tmp_path: Path) -> None:
    report = take(workspace, write(tmp_path / "a.tsv", "text\tlabel\none\ta\n\t\n"))
    assert (report.documents, report.empty) == (2, 1)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("{'text': 1}", "not_json"),
        ('{"text": "cut', "not_json"),
        ("[" * 100_000, "not_json"),
        ('["text"]', "not_an_object"),
        ("null", "not_an_object"),
        ('{"text": "half \\ud83d character"}', "invalid_encoding"),
        ('{"text": "fine", "\\ud83d": 1}', "invalid_encoding"),
        ('{"text": "nul \\u0000"}', "nul_byte"),
        ('{"text": 5}', "text_not_a_string"),
        ('{"body": "x"}', "text_missing"),
        ('{"text": "fine", "label": {"a": 1}}', "label_not_a_value"),
        ('{"text": "fine", "label": {"a": ["b"]}}', "label_not_a_value"),
    ],
)
def test_a_damaged_json_line_costs_itself_alone(workspace: Workspace, tmp_path: Path, bad: str, reason: str) -> None:
    good = [json.dumps({"text": f"text {number}"}) for number in range(100)]
    path = write(tmp_path / "a.jsonl", "\n".join([*good[:50], bad, *good[50:]]))
    report = take(workspace, path)
    assert (report.documents, report.reject_reasons) == (100, {reason: 1})
    assert rejects(workspace)[0]["row"] == 51


def test_damaged_strings_in_parquet(workspace: Workspace, tmp_path: Path) -> None:
    raw = [f"text {number}".encode() for number in range(100)]
    raw[10], raw[20] = b"caf\xe9", b"nul \0 byte"
    offsets, data = [0], b""
    for value in raw:
        data += value
        offsets.append(len(data))
    buffers = [None, pa.array(offsets, pa.int32()).buffers()[1], pa.py_buffer(data)]
    column = pa.Array.from_buffers(pa.string(), len(raw), buffers)
    pq.write_table(pa.table({"text": column, "n": pa.array(range(100))}), tmp_path / "a.parquet")
    report = take(workspace, tmp_path / "a.parquet")
    assert report.reject_reasons == {"invalid_encoding": 1, "nul_byte": 1}
    assert [(reject["row"], reject["reason"]) for reject in rejects(workspace)] == [
        (11, "invalid_encoding"),
        (21, "nul_byte"),
    ]
    assert "caf\\xe9" in rejects(workspace)[0]["raw_text"]
    assert [row["n"] for row in documents(workspace)] == [n for n in range(100) if n not in (10, 20)]


def test_same_id_same_text_is_a_duplicate_and_another_text_a_conflict(workspace: Workspace, tmp_path: Path) -> None:
    rows = [f"{number},text {number}" for number in range(200)]
    path = write(tmp_path / "a.csv", "\n".join(["id,text", *rows, "7,text 7", "8,other", "7,text 7", "8,text 8"]))
    report = take(workspace, path)
    assert (report.documents, report.duplicates, report.reject_reasons) == (200, 3, {"id_conflict": 1})
    (reject,) = rejects(workspace)
    assert (reject["row"], reject["raw_text"]) == (203, "other")


def test_an_id_is_found_again_in_a_later_source(workspace: Workspace, tmp_path: Path) -> None:
    write(tmp_path / "1.csv", "id,text\n1,one\n")
    write(tmp_path / "2.csv", "id,text\n1,one\n2,two\n")
    report = take(workspace, tmp_path / "1.csv", tmp_path / "2.csv")
    assert (report.documents, report.duplicates) == (2, 1)


def test_a_row_without_id_is_refused(workspace: Workspace, tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "id,text\n1,one\n ,two\n")
    assert take(workspace, path, max_reject_rate=0.5).reject_reasons == {"id_missing": 1}


PIECES = st.sampled_from(
    [b"a", b"b", b"1", b",", b'"', b'""', b"\n", b"\r\n", b"\r", b"\0", b"\xff", b" ", b"\xc3\xa9"]
)
CONTENTS = st.lists(PIECES | st.binary(max_size=3), max_size=80).map(b"".join)
PROPERTY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def never_crashes(suffix: str, content: bytes, **config: object) -> None:
    """Ingest anything: it adds up, or fails with an error of ours that is one line and leaves nothing."""
    with TemporaryDirectory() as folder:
        workspace = Workspace(Path(folder) / "workspace")
        path = write(Path(folder) / f"a.{suffix}", content)
        try:
            report = take(workspace, path, max_reject_rate=1.0, **config)
        except NightlabelError as error:
            assert len(str(error).splitlines()) == 1
            assert not left_behind(workspace)
        else:
            assert report.rows_read > 0


@PROPERTY
@given(CONTENTS)
def test_csv_of_any_content_adds_up(content: bytes) -> None:
    never_crashes("csv", b"text,label\n" + content)


@PROPERTY
@given(CONTENTS)
def test_csv_without_a_header_adds_up(content: bytes) -> None:
    never_crashes("csv", content, header=False, text=["1"])


@PROPERTY
@given(CONTENTS)
def test_tsv_with_ids_adds_up(content: bytes) -> None:
    never_crashes("tsv", b"id\ttext\n" + content.replace(b",", b"\t"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["\0", "\ud800"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
OBJECTS = st.dictionaries(st.sampled_from(["text", "label", "id", "split", "source"]), JSON, max_size=4)


@PROPERTY
@given(st.lists((OBJECTS | JSON).map(json.dumps) | st.text(max_size=5), max_size=8))
def test_json_lines_of_any_content_add_up(lines: list[str]) -> None:
    never_crashes("jsonl", "\n".join(lines).encode("utf-8", "replace"))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))), min_size=1))
def test_what_a_csv_writer_wrote_comes_back_as_it_was(rows: list[tuple[str]]) -> None:
    buffer = io.StringIO(newline="")
    csv.writer(buffer, quoting=csv.QUOTE_ALL).writerows([("n", "text"), *((n, text) for n, (text,) in enumerate(rows))])
    with TemporaryDirectory() as folder:
        workspace = Workspace(Path(folder) / "workspace")
        path = write(Path(folder) / "a.csv", buffer.getvalue())
        try:
            take(workspace, path, id="n")
        except NightlabelError as error:
            assert "every text is empty" in str(error)
        else:
            assert texts(workspace) == [text for (text,) in rows]
