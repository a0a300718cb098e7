"""What all reports are made of: Markdown tables, numbers as people read them, pictures inside the text."""

import base64
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

SAMPLE_CHARACTERS = 110
NUMBER = re.compile(r"[\d,.]+( ?[^\s\d]+)?")  # and its unit


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table; numbers are aligned to the right."""
    body = [[_cell(value) for value in row] for row in rows]
    numeric = [
        bool(body) and all(NUMBER.fullmatch(row[column]) or row[column] == "" for row in body)
        for column in range(len(header))
    ]
    rule = ["---:" if right else "---" for right in numeric]
    lines = [list(header), rule, *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return " ".join(str(value).replace("|", "\\|").replace("<", "&lt;").split())


def percent(share: float | None) -> str:
    """Return a share as a person reads it, a dash where there is none."""
    return "–" if share is None else f"{share:.1%}".replace("%", " %")


def picture(path: Path) -> str:
    """Return a PNG file as a Markdown image that holds the picture itself."""
    return embedded(path.read_bytes(), path.stem.replace("_", " "))


def embedded(png: bytes, text: str) -> str:
    """Return a PNG as a Markdown image that holds the picture itself, and for who cannot see it a text."""
    plain = " ".join(text.translate({ord("["): "(", ord("]"): ")"}).split())
    return f"![{plain}](data:image/png;base64,{base64.b64encode(png).decode()})"


def first_words(text: str) -> str:
    """Return the beginning of a text, on one line."""
    line = " ".join(text[: 4 * SAMPLE_CHARACTERS].split())
    return line if len(line) <= SAMPLE_CHARACTERS else line[: SAMPLE_CHARACTERS - 1] + "…"
