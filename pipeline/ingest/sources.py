"""What the user named, as readable files: paths, globs and folders, each with its format."""

import glob
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import IngestConfig
from pipeline.errors import InputError
from pipeline.files import file_digest
from pipeline.ingest.delimited import read_delimited
from pipeline.ingest.folders import no_texts, read_folder, text_files
from pipeline.ingest.jsonlines import read_jsonlines
from pipeline.ingest.rows import RawRows
from pipeline.ingest.streams import data_suffix
from pipeline.ingest.tabular import read_parquet

FORMATS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}


@dataclass(frozen=True)
class Source:
    """A file, or a folder of text files, and how to read it."""

    path: Path
    format: str
    files: tuple[Path, ...]  # all files it reads

    def read(self, config: IngestConfig) -> Iterator[RawRows]:
        """Yield its rows, some thousand at a time."""
        if self.format == "folder":
            return read_folder(self.path, list(self.files), encoding=config.encoding)
        if self.format == "parquet":
            return read_parquet(self.path, text=config.text)
        if self.format == "jsonl":
            return read_jsonlines(self.path, encoding=config.encoding)
        return read_delimited(
            self.path,
            delimiter="\t" if self.format == "tsv" else ",",
            quoted=self.format == "csv",
            header=config.header,
            encoding=config.encoding,
        )

    def digests(self) -> list[tuple[str, str]]:
        """Return the name and SHA-256 of each of its files.

        Raises:
            InputError: a file cannot be read.
        """
        try:
            return [(path.name, file_digest(path)) for path in self.files]
        except OSError as error:
            raise InputError(f"{error.filename}: cannot be read ({error.strerror})") from error

    @property
    def bytes(self) -> int:
        return sum(path.stat().st_size for path in self.files)


def find_sources(names: list[str], config: IngestConfig) -> list[Source]:
    """Return what the user named, in that order; what a glob or a folder stands for is sorted.

    Raises:
        InputError: something is missing, empty, or of a format that cannot be told.
    """
    sources = [source for name in names for path in _paths(name) for source in _of_path(path, config.format)]
    if not sources:
        raise InputError("no sources: name files, folders or globs")
    return sources


def _paths(name: str) -> list[Path]:
    if Path(name).exists():
        return [Path(name)]
    matches = sorted(glob.glob(name, recursive=True))  # noqa: PTH207 - pathlib's glob takes no absolute pattern
    if matches:
        return [Path(match) for match in matches]
    if glob.has_magic(name):
        raise InputError(f"{name}: no file matches")
    raise InputError(f"{name}: there is no such file or folder")


def _of_path(path: Path, wanted: str) -> list[Source]:
    if path.is_dir():
        return _of_folder(path, wanted)
    kind = FORMATS.get(data_suffix(path)) if wanted == "auto" else wanted
    if kind is None:
        raise InputError(f"{path}: its name does not tell the format; say --format csv, tsv, jsonl or parquet")
    if kind == "folder":
        raise InputError(f"{path}: is a file, and --format folder was asked for")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: is empty")
    return [Source(path, kind, (path,))]


def _of_folder(path: Path, wanted: str) -> list[Source]:
    data = [] if wanted == "folder" else sorted(p for p in path.rglob("*") if FORMATS.get(data_suffix(p)))
    if data:
        return [source for file in data if file.is_file() for source in _of_path(file, wanted)]
    texts = text_files(path)
    if not texts:
        raise no_texts(path)
    return [Source(path, "folder", tuple(texts))]
