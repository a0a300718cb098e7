"""What the user named, as readable files: paths, globs and folders, each with its format."""

import glob
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import IngestConfig
from pipeline.errors import InputError
from pipeline.files import file_digest
from pipeline.ingest.columns import Columns, find_columns, fixed_split, folder_columns, label_column, named_columns
from pipeline.ingest.readers.base import RawRows, escape_invalid_text
from pipeline.ingest.readers.csv import MAX_ROW_CHARACTERS, read_delimited
from pipeline.ingest.readers.folder import no_texts_error, read_folder, text_files, visible_file
from pipeline.ingest.readers.jsonl import all_keys, holds_lists, read_jsonlines
from pipeline.ingest.readers.parquet import is_list_column, read_parquet
from pipeline.ingest.readers.streams import data_suffix

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

    @property
    def name(self) -> str:
        """Its path as it can be written anywhere, even if the path is not valid text."""
        return escape_invalid_text(str(self.path))

    @property
    def bytes(self) -> int:
        return sum(path.stat().st_size for path in self.files)

    def read(self, config: IngestConfig, scratch: Path | None = None) -> Generator[RawRows, None, None]:
        """Yield its rows, some thousand at a time; `scratch` is a folder for temporary files."""
        if self.format == "folder":
            return read_folder(
                self.path,
                list(self.files),
                encoding=config.encoding,
                max_characters=config.max_text_bytes,
                with_split=fixed_split(config) is None,
            )
        if self.format == "parquet":
            return read_parquet(self.path, text=config.text, scratch=scratch)
        if self.format == "jsonl":
            return read_jsonlines(self.path, encoding=config.encoding)
        return read_delimited(
            self.path,
            delimiter="\t" if self.format == "tsv" else ",",
            quoted=self.format == "csv",
            header=config.header,
            encoding=config.encoding,
            max_row_characters=max(MAX_ROW_CHARACTERS, 4 * config.max_text_bytes),
        )

    def columns(self, raw: RawRows, config: IngestConfig) -> Columns:
        """Return which column is what, going by the first rows.

        Raises:
            InputError: a column that the settings name is not there.
        """
        if self.format == "folder":
            return folder_columns(config)
        names = list(raw.columns)
        sparse = self.format == "jsonl"  # an object may leave out what later ones have
        if sparse and any(name not in names for _, name in named_columns(config)):
            names = all_keys(self.path, encoding=config.encoding)
        return find_columns(self.name, names, config, sparse=sparse)

    def has_label_lists(self, config: IngestConfig, scratch: Path | None = None) -> bool:
        """Tell whether its label column holds a list anywhere; of JSON Lines the whole file is looked through.

        Raises:
            InputError: it cannot be read.
        """
        name = label_column(config)
        if name is None or self.format not in {"jsonl", "parquet"}:
            return False
        if self.format == "parquet":
            return is_list_column(self.path, name, scratch)
        return holds_lists(self.path, name, encoding=config.encoding)

    def digests(self) -> list[tuple[str, str]]:
        """Return name and SHA-256 of each of its files; in a folder the name says the class too.

        Raises:
            InputError: a file cannot be read.
        """
        try:
            return [(escape_invalid_text(self._name_of(path)), file_digest(path)) for path in self.files]
        except OSError as error:
            raise InputError(f"{error.filename}: cannot be read ({error.strerror})") from error

    def _name_of(self, path: Path) -> str:
        if self.format != "folder":
            return path.name
        root = self.path.absolute()  # its own name and its parent's can be the class and the split
        return f"{root.parent.name}/{root.name}/{path.relative_to(self.path).as_posix()}"


def find_sources(names: Sequence[str], config: IngestConfig) -> list[Source]:
    """Return what the user named, in that order, each once; what a glob or a folder stands for is sorted.

    Raises:
        InputError: something is missing, empty, or of a format that cannot be told.
    """
    try:
        found = [source for name in names for path in _paths(name) for source in _of_path(path, config.format)]
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror})") from error
    if not found:
        raise InputError("no sources: name files, folders or globs")
    sources: dict[Path, Source] = {}
    for source in found:
        sources.setdefault(source.path.resolve(), source)
    return list(sources.values())


def _paths(name: str) -> list[Path]:
    if _exists(name):
        return [Path(name)]
    matches = sorted(glob.glob(name, recursive=True))  # noqa: PTH207 - pathlib's glob takes no absolute pattern
    if matches:
        return [Path(match) for match in matches]
    if glob.has_magic(name):
        raise InputError(f"{name}: no file matches")
    raise InputError(f"{name}: there is no such file or folder")


def _exists(name: str) -> bool:
    try:
        return bool(name) and Path(name).exists()
    except (OSError, ValueError) as error:  # too long for a name, or with NUL
        if isinstance(error, PermissionError):
            raise
        return False


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
    kinds = set(FORMATS.values()) if wanted == "auto" else {wanted}
    data = sorted(p for p in path.rglob("*") if FORMATS.get(data_suffix(p)) in kinds and visible_file(p, path))
    texts = text_files(path) if wanted in {"auto", "folder"} else []
    if data and any(text.parent != path for text in texts):
        raise InputError(
            f"{path}: holds data files ({data[0].relative_to(path)}) and folders of text files "
            f"({texts[0].relative_to(path)}); say --format folder for the texts, or name the data files"
        )
    if data:
        return [source for file in data for source in _of_path(file, wanted)]
    if not texts:
        raise no_texts_error(path)
    return [Source(path, "folder", tuple(texts))]
