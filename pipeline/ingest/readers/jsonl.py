"""JSON Lines: one object on each line."""

import itertools
import json
import re
from collections.abc import Generator
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.ingest.readers.base import (
    MISSING,
    RawRows,
    ReadOptions,
    Reject,
    as_text,
    chunked,
    escape_invalid_text,
    invalid_text_reason,
)
from pipeline.ingest.readers.streams import open_text

MAYBE_A_LIST = re.compile(r":\s*\[")  # in every object with a list as a value, and in few others


def read_jsonlines(path: Path, options: ReadOptions) -> Generator[RawRows, None, None]:
    """Yield the rows of a JSON Lines file, possibly compressed; blank lines are skipped.

    Raises:
        InputError: the file is empty.
    """
    with open_text(path, options.encoding) as text:
        numbered = ((number, line) for number, line in enumerate(text, start=1) if not line.isspace())
        empty = True
        for chunk in chunked(numbered, lambda item: len(item[1])):
            empty = False
            yield _columns(escape_invalid_text(str(path)), chunk)
        if empty:
            raise InputError(f"{path}: is empty")


def jsonlines_columns(path: Path, options: ReadOptions) -> list[str]:
    """Return the keys of all objects: an object may lack keys that others have."""
    return list(dict.fromkeys(name for raw in read_jsonlines(path, options) for name in raw.columns))


def jsonlines_has_lists(path: Path, name: str, options: ReadOptions) -> bool:
    """Tell whether any object has a list under a key."""
    with open_text(path, options.encoding) as text:
        return any(isinstance(_parse(line)[0].get(name), list) for line in text if MAYBE_A_LIST.search(line))


def _columns(source: str, chunk: list[tuple[int, str]]) -> RawRows:
    objects, rows, rejects = [], [], []
    for number, line in chunk:
        value, reason = _parse(line)
        if reason:
            rejects.append(Reject(source, number, reason, escape_invalid_text(line.rstrip("\r\n"))))
        else:
            objects.append(value)
            rows.append(number)
    names = list(dict.fromkeys(itertools.chain.from_iterable(objects)))
    columns = {name: [value.get(name, MISSING) for value in objects] for name in names}
    return RawRows(columns, rows, rejects)


def _parse(line: str) -> tuple[dict[str, Any], str]:
    """Return the object on a line, and why it is rejected, or ""."""
    reason = invalid_text_reason(line)
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
    strings = itertools.chain(value, map(as_text, value.values()))  # an escape can hide a lone surrogate, or NUL
    return value, next(filter(None, map(invalid_text_reason, strings)), "")
