"""The elements of all reports: Markdown tables, numbers for people, embedded pictures."""

import base64
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

SAMPLE_CHARACTERS = 110
NUMBER = re.compile(r"[\d,.]+( ?[^\s\d]+)?")  # and its unit


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table; numbers are aligned to the right."""
    body = [[cell(value) for value in row] for row in rows]
    numeric = [
        bool(body) and all(NUMBER.fullmatch(row[column]) or row[column] == "" for row in body)
        for column in range(len(header))
    ]
    rule = ["---:" if right else "---" for right in numeric]
    lines = [list(header), rule, *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cell(value: object) -> str:
    """Return a value as the cell of a table, on one line; None is empty."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return " ".join(str(value).replace("|", "\\|").replace("<", "&lt;").split())


def percent(share: float | None) -> str:
    """Return a share in percent, a dash for None."""
    return "–" if share is None else f"{share:.1%}".replace("%", " %")


def plural(count: int, noun: str) -> str:
    """Return a count with its noun, "1 night" or "2 nights"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def picture(path: Path) -> str:
    """Return a PNG file as a Markdown image that contains the picture itself."""
    return embedded(path.read_bytes(), path.stem.replace("_", " "))


def embedded(png: bytes, text: str) -> str:
    """Return a PNG as a Markdown image that contains the picture itself, with an alternative text."""
    plain = " ".join(text.translate({ord("["): "(", ord("]"): ")"}).split())
    return f"![{plain}](data:image/png;base64,{base64.b64encode(png).decode()})"


def literal(text: str) -> str:
    """Return foreign text so that it is shown as it is: no links, pictures or code out of a ticket."""
    return text.translate({ord(sign): f"\\{sign}" for sign in "\\`*[]"})


def first_words(text: str) -> str:
    """Return the beginning of a text, on one line."""
    line = " ".join(text[: 4 * SAMPLE_CHARACTERS].split())
    return line if len(line) <= SAMPLE_CHARACTERS else line[: SAMPLE_CHARACTERS - 1] + "…"
