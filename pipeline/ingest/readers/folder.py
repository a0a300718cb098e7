"""Folders of text files, each in a folder named after its class: the layout of the `aclImdb` corpus."""

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import NamedTuple

from pipeline.ingest.columns import SPLIT_NAMES
from pipeline.ingest.readers.base import RawRows, ReadOptions, Reject, chunked, escape_invalid_text, invalid_text_reason
from pipeline.ingest.readers.streams import data_suffix, open_text

UNLABELLED = {"unsup", "unsupervised", "unlabelled", "unlabeled"}


def text_files(root: Path) -> list[Path]:
    """Return the text files in the class folders of a folder, not those beside them.

    A folder with text files and without class folders is itself the class.
    """
    files = sorted(path for path in root.rglob("*") if data_suffix(path) == ".txt" and visible_file(path, root))
    in_classes = [path for path in files if path.parent != root and path.parent.name.lower() not in SPLIT_NAMES]
    return in_classes or [path for path in files if path.parent == root]


def visible_file(path: Path, root: Path) -> bool:
    """Tell whether a path is a file, and neither it nor a folder between it and `root` begins with a dot."""
    return path.is_file() and not any(part.startswith(".") for part in path.relative_to(root).parts)


class _Text(NamedTuple):
    source: str
    path: Path
    text: str
    reason: str  # why it is rejected, or ""


def read_folder(
    root: Path, files: Sequence[Path], options: ReadOptions, *, with_split: bool
) -> Generator[RawRows, None, None]:
    """Yield a row for each text file, with `id` (its path in the folder), `text`, `label` and `split`.

    Args:
        root: the folder.
        files: its text files.
        options: only `encoding` and `max_text_bytes` apply.
        with_split: whether folders named train, test and so on give the split.

    Raises:
        InputError: a file cannot be opened.
    """
    for chunk in chunked((_read(path, options) for path in files), lambda item: len(item.text)):
        valid = [item for item in chunk if not item.reason]
        columns = {
            "id": [escape_invalid_text(item.path.relative_to(root).as_posix()) for item in valid],
            "text": [item.text for item in valid],
            "label": [_label(item.path) for item in valid],
        }
        if with_split:
            columns["split"] = [SPLIT_NAMES.get(item.path.absolute().parent.parent.name.lower()) for item in valid]
        rejects = [Reject(item.source, 1, item.reason, escape_invalid_text(item.text)) for item in chunk if item.reason]
        yield RawRows(columns, [1] * len(valid), rejects, sources=[item.source for item in valid])


def _read(path: Path, options: ReadOptions) -> _Text:
    with open_text(path, options.encoding) as stream:
        text = stream.read(options.max_text_bytes + 1)  # more is not needed to see that it is too long
    return _Text(escape_invalid_text(str(path)), path, text, invalid_text_reason(text))


def _label(path: Path) -> str | None:
    label = path.absolute().parent.name  # absolute, because "." has no name
    return None if label.lower() in UNLABELLED else escape_invalid_text(label)
