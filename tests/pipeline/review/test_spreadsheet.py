"""Tables that come back from spreadsheets of several countries, and what these do to cells."""

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ReviewError
from pipeline.review.spreadsheet import (
    LONGEST_TEXT,
    guard,
    is_converted,
    original_value,
    read_sheet,
    text_to_cell,
    unguard,
    write_sheet,
)

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
TRICKY = st.text("=+-@'\t\r\n 0123456789.,:/JanE%", max_size=12)


@given(TEXTS | TRICKY)
def test_what_is_guarded_comes_back_as_it_was(cell: str) -> None:
    assert unguard(guard(cell)) == cell


@given(TEXTS | TRICKY)
def test_no_guarded_cell_is_a_formula_or_a_number(cell: str) -> None:
    shown = guard(cell)
    assert not shown.lstrip().startswith(("=", "+", "-", "@", "\t", "\r", "\n"))
    assert not text_to_cell(cell).lstrip().startswith(("=", "+", "-", "@"))
    if not shown.startswith("'"):
        assert not is_converted(cell)


@given(rows=st.lists(st.tuples(TEXTS | TRICKY, TEXTS | TRICKY), max_size=4), delimiter=st.sampled_from(",;\t"))
def test_a_written_sheet_is_read_again(
    rows: list[tuple[str, str]], delimiter: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Ids and labels survive, whatever is in them, but for control characters that no table can hold."""
    clean = [[guard(cell.replace("\0", "")) for cell in row] for row in rows]
    path = tmp_path_factory.mktemp("sheets") / "sheet.csv"
    write_sheet(path, ["id", "label"], clean, delimiter)
    sheet = read_sheet(path, ["id", "label"])
    kept = [row for row in clean if any(cell.strip() for cell in row)]
    assert [[row.cells["id"], row.cells["label"]] for row in sheet.rows] == kept
    assert (sheet.encoding, sheet.delimiter) == ("UTF-8", delimiter)


@pytest.mark.parametrize(
    "cell", ["007", "1-3", "2026-11-20", "1E5", "3.1", "Jan 5", "5 %", "TRUE", "123456789012", " x"]
)
def test_what_a_spreadsheet_would_change_is_guarded(cell: str) -> None:
    assert guard(cell) == f"'{cell}"


@pytest.mark.parametrize("cell", ["w12", "tickets/7-a", "42", "0", "sun", "a1b2c3d4", "Größe", ""])
def test_what_a_spreadsheet_leaves_alone_is_not_guarded(cell: str) -> None:
    assert guard(cell) == cell


@pytest.mark.parametrize(
    ("original", "shown"),
    [
        ("1234567890123456", "1.23E+15"),
        ("1234567890123456", "1,23457E+15"),
        ("12345678901234567", "12345678901234500"),
        ("00042", "42"),
        ("42", "42.0"),
        ("1.50", "1,5"),
        ("1E5", "1.00E+05"),
        ("1-3", "3-Jan"),
        ("1-3", "03. Jan"),
        ("3.5.", "03. Mai"),
        ("1-3", "2026-01-03"),
        ("2026-11-20", "20.11.2026"),
        ("2026-11-20", "11/20/26"),
    ],
)
def test_the_original_of_a_changed_cell_is_recognised(original: str, shown: str) -> None:
    assert original_value(shown, [original, "w7", "99", "4-4"]) == original


def test_a_changed_cell_that_may_be_several_values_is_none_of_them() -> None:
    assert original_value("42", ["042", "0042"]) is None
    assert original_value("w8", ["w7"]) is None


def test_a_long_text_is_cut_and_holds_no_control_characters() -> None:
    shown = text_to_cell("a\x01b\r\n" + "x" * 5000)
    assert shown.startswith("a b\nxx")
    assert len(shown) == LONGEST_TEXT
    assert shown.endswith("…")
    assert text_to_cell("=1+1") == "'=1+1"


def saved(text: str, encoding: str, tmp_path: Path) -> Path:
    path = tmp_path / "saved.csv"
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize(
    ("encoding", "told"),
    [("utf-8", "UTF-8"), ("utf-8-sig", "UTF-8"), ("utf-16", "UTF-16"), ("cp1252", "Windows-1252")],
)
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_what_spreadsheets_save_is_read(encoding: str, told: str, delimiter: str, tmp_path: Path) -> None:
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter).writerows([["Doc_ID ", "text"], ["ö", "a,b;c\nd\te"], ["", ""], ["x"]])
    sheet = read_sheet(saved(out.getvalue(), encoding, tmp_path), ["doc_id"])
    assert [(row.number, row.cells["doc_id"]) for row in sheet.rows] == [(2, "ö"), (4, "x")]
    assert sheet.rows[0].cells["text"] == "a,b;c\nd\te"
    assert (sheet.encoding, sheet.delimiter) == (told, delimiter)


def test_a_line_that_names_the_separator_is_passed_over(tmp_path: Path) -> None:
    sheet = read_sheet(saved("sep=;\r\ndoc_id;label\r\n1;sun\r\n", "utf-8", tmp_path), ["doc_id", "label"])
    assert [dict(row.cells) for row in sheet.rows] == [{"doc_id": "1", "label": "sun"}]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"PK\x03\x04....", "is a workbook, not CSV"),
        (b"", "is empty"),
        ("doc_id,label".encode("utf-32"), "is UTF-32"),
        ("doc_id,label".encode("utf-16-le"), "may be UTF-16, but does not begin with its mark"),
        (b"\xff\xfed\x00o\x00c", "is damaged UTF-16 at byte"),
        (b"doc_id,text\n1,a\n", r"row 1: no column label \(there: doc_id, text\)"),
        (b"doc_id,label,label\n1,a,b\n", "row 1: column label is there twice"),
        (b'doc_id,label\n1,"' + b"a" * 200_000, "a quotation mark is missing or a cell is damaged"),
    ],
)
def test_what_cannot_be_read_says_what_to_do(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    path.write_bytes(data)
    with pytest.raises(ReviewError, match=message):
        read_sheet(path, ["doc_id", "label"])


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ReviewError, match="cannot be read"):
        read_sheet(tmp_path / "none.csv", ["doc_id"])
