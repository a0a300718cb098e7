"""Tables for spreadsheets: cells that survive one, and a reader for whatever it saves."""

import codecs
import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path

from pipeline.errors import ReviewError
from pipeline.files import atomic_path

DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab"}
LONGEST_TEXT = 2_000  # characters; a spreadsheet takes 32,767 in a cell, and nobody reads them there
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
GUARD = "'"
SAFE_NUMBER = re.compile(r"0|[1-9]\d{0,8}")
LETTERS = re.compile(r"[^\W\d_]+")
BOOLEANS = {"true", "false", "wahr", "falsch", "vrai", "faux"}
MONTHS = {
    **{"jan": 1, "feb": 2, "mar": 3, "apr": 4, "may": 5, "jun": 6, "jul": 7, "aug": 8, "sep": 9},
    **{"oct": 10, "nov": 11, "dec": 12},
    **{"mär": 3, "mai": 5, "okt": 10, "dez": 12, "fév": 2, "avr": 4, "aoû": 8, "déc": 12},
}
NUMBER_WORDS = {"e", "am", "pm"}
DATE = re.compile(r"\d+([./:-] ?\d+){1,2}[.]?|\d*[-. ]*[^\W\d_]{3,9}[-. ]*\d*")  # the second with a month's name
SHORTENED = re.compile(r"(\d[.,]?\d*)E\+?(\d+)", re.IGNORECASE)
SIGNIFICANT_DIGITS = 15  # of a number in a spreadsheet; the others become zeros
CONTROL = {number: " " for number in range(32) if chr(number) not in "\t\n"} | {127: " "}


def guard(cell: str) -> str:
    """Return a cell that a spreadsheet leaves as it is, and does not convert to a formula, number or date.

    A cell that it would change gets an apostrophe in front, and so does one that has one already: `unguard` removes it.
    """
    return GUARD + cell if cell.startswith(GUARD) or is_formula(cell) or is_converted(cell) else cell


def unguard(cell: str) -> str:
    """Return a cell without the apostrophe of `guard`."""
    return cell[1:] if cell.startswith(GUARD) else cell


def is_formula(cell: str) -> bool:
    """Return whether a spreadsheet might run it: foreign text must not run."""
    return cell.startswith(FORMULA) or cell.lstrip().startswith(FORMULA)


def is_converted(cell: str) -> bool:
    """Return whether a spreadsheet may convert it to a number, date, time or truth value."""
    if cell != cell.strip() or cell.casefold() in BOOLEANS:
        return True
    if not any(sign.isdigit() for sign in cell) or SAFE_NUMBER.fullmatch(cell):
        return False
    words = [word.casefold() for word in LETTERS.findall(cell)]
    return not words or (len(words) == 1 and (words[0][:3] in MONTHS or words[0] in NUMBER_WORDS))


def text_to_cell(text: str) -> str:
    """Return a text for a cell: cut, without control characters, and no formula."""
    clean = text[: 2 * LONGEST_TEXT].replace("\r\n", "\n").translate(CONTROL)
    short = clean if len(clean) <= LONGEST_TEXT else clean[: LONGEST_TEXT - 1] + "…"
    return GUARD + short if short.startswith(GUARD) or is_formula(short) else short


def original_value(cell: str, expected_values: Iterable[str]) -> str | None:
    """Return which of some values a spreadsheet has turned into a cell; None if that is unknown or ambiguous."""
    values = [value for value in expected_values if value != cell]
    for is_conversion in (is_number_form, is_date_form):
        originals = [value for value in values if is_conversion(value, cell)]
        if originals:
            return originals[0] if len(originals) == 1 else None
    return None


def is_number_form(value: str, cell: str) -> bool:
    """Return whether a cell is a value as a number: zeros lost or added, shortened, or rounded to 15 digits."""
    first = slice(SIGNIFICANT_DIGITS)
    rounded = value.isdigit() and len(value) == len(cell) > SIGNIFICANT_DIGITS and value[first] == cell[first]
    try:
        number = Decimal(value)
        if shortened := SHORTENED.fullmatch(cell):
            digits = shortened[1].replace(",", ".")
            places = len(digits.partition(".")[2])
            return Decimal(f"{number:.{places}E}") == Decimal(f"{digits}E{shortened[2]}")
        return number == Decimal(cell.replace(",", ".")) or (rounded and not cell[SIGNIFICANT_DIGITS:].strip("0"))
    except InvalidOperation:
        return False


def is_date_form(value: str, cell: str) -> bool:
    """Return whether a cell is a value as a date or time: its numbers, with a month by name or a third number added."""
    if not DATE.fullmatch(value):
        return False
    numbers, shown = _date_numbers(value), _date_numbers(cell)
    named = any(word.casefold()[:3] in MONTHS for word in LETTERS.findall(cell))
    return (named or len(shown) >= 3) and len(numbers) >= 2 and set(numbers) <= set(shown)


def _date_numbers(cell: str) -> list[int]:
    named = [MONTHS[word.casefold()[:3]] for word in LETTERS.findall(cell) if word.casefold()[:3] in MONTHS]
    return [int(digits) % 100 for digits in re.findall(r"[0-9]+", cell)] + named


def write_sheet(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]], delimiter: str = ",") -> None:
    """Write a CSV file that spreadsheets open with a double click: UTF-8 with a mark, CRLF; whole or absent."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file, dialect="excel", delimiter=delimiter)
        writer.writerow(header)
        writer.writerows(rows)


@dataclass(frozen=True)
class SheetRow:
    """A row of a sheet that is not blank.

    Attributes:
        number: as the spreadsheet shows it; the header is row 1.
        cells: by column, in lower case; a missing cell is "".
        raw: all cells, unchanged.
    """

    number: int
    cells: Mapping[str, str]
    raw: Sequence[str]

    @property
    def overflows(self) -> bool:
        """Whether it has more cells than the header has columns."""
        return any(self.raw[len(self.cells) :])


@dataclass(frozen=True)
class Sheet:
    """A table as a spreadsheet saved it."""

    header: Sequence[str]
    rows: Sequence[SheetRow]
    encoding: str
    delimiter: str


def write_rejected(path: Path, sheet: Sheet, reasons: Mapping[int, str]) -> Path:
    """Write some rows of a sheet beside its file, unchanged, each with the reason; return the new file.

    Args:
        path: the file of the sheet.
        sheet: has the rows.
        reasons: by the number of the row.
    """
    rows = {row.number: row.raw for row in sheet.rows}
    padding = [""] * len(sheet.header)
    lines = [
        [*[*rows[number], *padding][: max(len(padding), len(rows[number]))], reason]
        for number, reason in reasons.items()
    ]
    target = path.with_name(f"{path.name}.rejected.csv")
    write_sheet(target, [*sheet.header, "refused because"], lines, sheet.delimiter)
    return target


def read_sheet(path: Path, columns: Sequence[str]) -> Sheet:
    """Read a CSV or text file as spreadsheets of all countries save it.

    Args:
        path: comma, semicolon or tab between the cells; UTF-8, UTF-16 with a mark, or Windows-1252.
        columns: required columns, in any order; further columns are allowed.

    Raises:
        ReviewError: it cannot be read, or a column is missing or twice there.
    """
    text, encoding = _decode(path)
    if text.lower().startswith("sep="):
        text = text.partition("\n")[2]
    first = text.partition("\n")[0]
    delimiter = max(DELIMITERS, key=lambda sign: len(set(_names(first, sign)) & set(columns)))
    try:
        records = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise ReviewError(
            f"{path}: a quotation mark is missing or a cell is damaged ({error}); save it again"
        ) from error
    header = [name.strip().casefold() for name in records[0]] if records else []
    _check_header(path, header, columns)
    rows = [
        SheetRow(number, {name: raw[column] if column < len(raw) else "" for column, name in enumerate(header)}, raw)
        for number, raw in enumerate(records[1:], start=2)
        if any(cell.strip() for cell in raw)
    ]
    return Sheet(records[0], rows, encoding, delimiter)


def _names(line: str, delimiter: str) -> list[str]:
    return [name.strip().strip('"').strip().casefold() for name in line.strip("\r\n").split(delimiter)]


def _check_header(path: Path, header: Sequence[str], columns: Sequence[str]) -> None:
    if missing := [name for name in columns if name not in header]:
        present = ", ".join(name for name in header if name)[:200] or "nothing"
        raise ReviewError(
            f"{path}, row 1: no column {' and no column '.join(missing)} (there: {present}); keep the header of the "
            "exported file, and save with comma, semicolon or tab between the cells"
        )
    if twice := [name for name in columns if header.count(name) > 1]:
        raise ReviewError(f"{path}, row 1: column {twice[0]} is there twice; remove one of them")


def _decode(path: Path) -> tuple[str, str]:
    """Return the text of a file and the name of its encoding."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ReviewError(f"{path}: cannot be read ({error.strerror}); check the name") from error
    if data.startswith(b"PK\x03\x04") or data.startswith(b"\xd0\xcf\x11\xe0"):
        raise ReviewError(f"{path}: is a workbook, not CSV; save it as CSV UTF-8, and import that")
    if not data.strip():
        raise ReviewError(f"{path}: is empty; import the file that was exported, with its column correct_label filled")
    if data.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        raise ReviewError(f"{path}: is UTF-32; save it as CSV UTF-8")
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    if b"\0" in data and not utf16:
        raise ReviewError(f"{path}: may be UTF-16, but does not begin with its mark; save it as CSV UTF-8")
    try:
        return (data.decode("utf-16"), "UTF-16") if utf16 else (data.decode("utf-8-sig"), "UTF-8")
    except UnicodeDecodeError as error:
        if utf16:
            raise ReviewError(f"{path}: is damaged UTF-16 at byte {error.start:,}; save it as CSV UTF-8") from error
        # Ids and labels are compared with those that were exported, so a wrong guess is noticed where it matters.
        return data.decode("cp1252", errors="replace"), "Windows-1252"
