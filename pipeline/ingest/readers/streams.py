"""Open files as bytes or text: decompressed, decoded, undecodable bytes marked instead of lost."""

import codecs
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from pipeline.errors import InputError

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd"}
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def data_suffix(path: Path) -> str:
    """Return the suffix that names the format: `.csv` of `a.csv` and of `a.csv.gz`."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def check_encoding(encoding: str) -> None:
    """Check that text can be read in an encoding.

    Raises:
        InputError: it is unknown, or does not decode to text (such as `hex`).
    """
    try:
        io.TextIOWrapper(io.BytesIO(b"x"), encoding=encoding, errors="replace").read()
    except (LookupError, ValueError) as error:
        raise InputError(f"encoding {encoding!r} is unknown; common ones are utf-8, cp1252, latin-1, utf-16") from error


@contextmanager
def open_bytes(path: Path) -> Iterator[io.BufferedReader]:
    """Open a file for reading, decompressed if its name ends in .gz or .zst.

    Raises:
        InputError: the file cannot be opened, or its compressed data is damaged.
    """
    compression = COMPRESSIONS.get(path.suffix.lower())
    try:
        # Opened by Python, because Arrow rejects a path that is not valid text.
        with path.open("rb") as file, pa.input_stream(file, compression=compression) as stream:
            yield io.BufferedReader(stream)
    except OSError as error:
        if compression and not isinstance(error, PermissionError | FileNotFoundError):
            raise InputError(f"{path}: the {compression} data is damaged or cut off; copy the file again") from error
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error


@contextmanager
def open_text(path: Path, encoding: str) -> Iterator[io.TextIOWrapper]:
    """Open a file as text; undecodable bytes become lone surrogates, a byte order mark overrides `encoding`.

    Raises:
        InputError: the encoding is unknown, or the file cannot be read.
    """
    check_encoding(encoding)
    with open_bytes(path) as stream:
        head = stream.peek(4)[:4]
        marked = next((name for mark, name in BYTE_ORDER_MARKS if head.startswith(mark)), encoding)
        text = io.TextIOWrapper(stream, encoding=marked, errors="surrogateescape", newline="")
        try:
            yield text
        except UnicodeError as error:
            raise InputError(f"{path}: is not {marked} text ({error}); choose another --encoding") from error
