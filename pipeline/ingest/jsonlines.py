"""JSON Lines: one object a line."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.ingest.rows import CHUNK_ROWS, MISSING, RawRows, Reject, damage, printable
from pipeline.ingest.streams import open_text


def read_jsonlines(path: Path, *, encoding: str) -> Iterator[RawRows]:
    """Yield the rows of a JSON Lines file, possibly compressed; blank lines are no rows.

    Values that are not strings become strings: numbers and true as JSON writes them, nested values as JSON.

    Raises:
        InputError: the file is empty.
    """
    with open_text(path, encoding) as text:
        numbered = ((number, line) for number, line in enumerate(text, start=1) if not line.isspace())
        empty = True
        while chunk := list(itertools.islice(numbered, CHUNK_ROWS)):
            empty = False
            yield _columns(str(path), chunk)
        if empty:
            raise InputError(f"{path}: is empty")


def _columns(source: str, chunk: list[tuple[int, str]]) -> RawRows:
    objects, rows, rejects = [], [], []
    for number, line in chunk:
        value, reason = _parse(line)
        if reason:
            rejects.append(Reject(source, number, reason, printable(line.rstrip("\r\n"))))
        else:
            objects.append(value)
            rows.append(number)
    names = list(dict.fromkeys(itertools.chain.from_iterable(objects)))
    columns = {name: [value.get(name, MISSING) for value in objects] for name in names}
    return RawRows(columns, rows, rejects)


def _parse(line: str) -> tuple[dict[str, Any], str]:
    reason = damage(line)
    if reason:
        return {}, reason
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return {}, "not_json"
    if not isinstance(value, dict):
        return {}, "not_an_object"
    if "\\u" not in line:
        return value, ""
    return value, next(filter(None, (damage(as_text(part)) for part in value.values())), "")  # escaped damage


def as_text(value: Any) -> str:
    """Return a string as it is, and any other value as JSON writes it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
