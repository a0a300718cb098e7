"""Folders of text files whose parent folder is the class: the layout of the `aclImdb` corpus."""

from collections.abc import Generator
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import InputError
from pipeline.ingest.columns import SPLIT_NAMES
from pipeline.ingest.readers.base import CHUNK_ROWS, RawRows, Reject, chunked, escape_invalid_text, invalid_text_reason
from pipeline.ingest.readers.streams import data_suffix, open_text

UNLABELLED = {"unsup", "unsupervised", "unlabelled", "unlabeled"}


def text_files(root: Path) -> list[Path]:
    """Return the documents of a folder: text files in class folders, not those beside them.

    A folder that holds text files and no folders with any is itself the class.
    """
    found = sorted(path for path in root.rglob("*") if data_suffix(path) == ".txt" and visible_file(path, root))
    in_classes = [path for path in found if path.parent != root and path.parent.name.lower() not in SPLIT_NAMES]
    return in_classes or [path for path in found if path.parent == root]


def visible_file(path: Path, root: Path) -> bool:
    """Tell whether a path is a file that neither it nor its folders inside `root` hide with a leading dot."""
    return path.is_file() and not any(part.startswith(".") for part in path.relative_to(root).parts)


class _Text(NamedTuple):
    path: Path
    text: str


def read_folder(
    root: Path, files: list[Path], *, encoding: str, max_characters: int, with_split: bool = True
) -> Generator[RawRows, None, None]:
    """Yield a row for each text file, with `id` (its path in the folder), `text`, `label` and `split`.

    Args:
        root: the folder.
        files: its text files.
        encoding: of the files.
        longest: characters after which the rest of a file is not read, since it is refused for its length.
        with_split: whether folders named train, test and so on say the split.

    Raises:
        InputError: a file cannot be opened.
    """
    texts = (_Text(path, _read(path, encoding, max_characters)) for path in files)
    for chunk in chunked(texts, CHUNK_ROWS, lambda item: len(item.text)):
        reasons = {item.path: invalid_text_reason(item.text) for item in chunk}
        good = [item for item in chunk if not reasons[item.path]]
        columns = {
            "id": [escape_invalid_text(item.path.relative_to(root).as_posix()) for item in good],
            "text": [item.text for item in good],
            "label": [_label(item.path) for item in good],
        }
        if with_split:
            columns["split"] = [SPLIT_NAMES.get(item.path.absolute().parent.parent.name.lower()) for item in good]
        rejects = [
            Reject(escape_invalid_text(str(item.path)), 1, reasons[item.path], escape_invalid_text(item.text))
            for item in chunk
            if reasons[item.path]
        ]
        yield RawRows(columns, [1] * len(good), rejects, sources=[escape_invalid_text(str(item.path)) for item in good])


def _read(path: Path, encoding: str, max_characters: int) -> str:
    with open_text(path, encoding) as stream:
        return stream.read(max_characters + 1)


def _label(path: Path) -> str | None:
    label = path.absolute().parent.name  # absolute, because "." has no name
    return None if label.lower() in UNLABELLED else escape_invalid_text(label)


def no_texts_error(root: Path) -> InputError:
    return InputError(
        f"{root}: holds no data files and no text files in class folders (as in {root}/CLASS/document.txt)"
    )
