"""Folders of text files whose parent folder is the class: the layout of the `aclImdb` corpus."""

from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import InputError
from pipeline.ingest.rows import CHUNK_ROWS, RawRows, Reject, damage, printable
from pipeline.ingest.streams import data_suffix, open_text

UNLABELLED = {"unsup", "unsupervised", "unlabelled", "unlabeled"}
SPLIT_FOLDERS = {"train": "train", "test": "test", "validation": "validation", "valid": "validation"} | {
    "val": "validation",
    "dev": "validation",
}


def text_files(root: Path) -> list[Path]:
    """Return the documents of a folder: text files in class folders, not those beside them.

    A folder that holds text files and no folders with any is itself the class.
    """
    found = sorted(path for path in root.rglob("*") if path.is_file() and data_suffix(path) == ".txt")
    in_classes = [path for path in found if path.parent != root and path.parent.name.lower() not in SPLIT_FOLDERS]
    return in_classes or [path for path in found if path.parent == root]


def read_folder(root: Path, files: list[Path], *, encoding: str) -> Iterator[RawRows]:
    """Yield a row for each text file, with `id` (its path in the folder), `text`, `label` and `split`.

    Raises:
        InputError: a file cannot be opened.
    """
    for start in range(0, len(files), CHUNK_ROWS):
        columns: dict[str, list[str | None]] = {"id": [], "text": [], "label": [], "split": []}
        rejects = []
        for path in files[start : start + CHUNK_ROWS]:
            with open_text(path, encoding) as stream:
                text = stream.read()
            reason = damage(text)
            if reason:
                rejects.append(Reject(str(path), 1, reason, printable(text)))
                continue
            label = path.parent.name
            columns["id"].append(path.relative_to(root).as_posix())
            columns["text"].append(text)
            columns["label"].append(None if label.lower() in UNLABELLED else label)
            columns["split"].append(SPLIT_FOLDERS.get(path.parent.parent.name.lower()))
        rows = [1] * len(columns["id"])
        sources = [str(root / name) for name in columns["id"] if name]
        yield RawRows(dict(columns), rows, rejects, sources=sources)


def no_texts(root: Path) -> InputError:
    return InputError(
        f"{root}: holds no data files and no text files in class folders (as in {root}/CLASS/document.txt)"
    )
