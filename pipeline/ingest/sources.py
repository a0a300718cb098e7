"""The sources that the user names (paths, globs, folders), each with its format."""

import glob
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import IngestConfig
from pipeline.errors import InputError
from pipeline.files import file_digest
from pipeline.ingest.columns import Columns, find_columns, fixed_split, folder_columns, label_column, named_columns
from pipeline.ingest.readers import READERS, Reader, format_of
from pipeline.ingest.readers.base import RawRows, ReadOptions, escape_invalid_text
from pipeline.ingest.readers.folder import read_folder, text_files, visible_file


@dataclass(frozen=True)
class Source:
    """A data file, or a folder of text files, and how to read it."""

    path: Path
    format: str  # "folder", or a key of READERS
    files: tuple[Path, ...]

    @property
    def is_folder(self) -> bool:
        return self.format == "folder"

    @property
    def name(self) -> str:
        """Its path as valid text, whatever the path is."""
        return escape_invalid_text(str(self.path))

    @property
    def bytes(self) -> int:
        return sum(path.stat().st_size for path in self.files)

    @property
    def _reader(self) -> Reader:
        return READERS[self.format]

    def read(self, config: IngestConfig, scratch: Path | None = None) -> Generator[RawRows, None, None]:
        """Yield its rows, some thousand at a time; `scratch` is a folder for temporary files."""
        options = _options(config, scratch)
        if self.is_folder:
            return read_folder(self.path, self.files, options, with_split=fixed_split(config) is None)
        return self._reader.read(self.path, options)

    def columns(self, raw: RawRows, config: IngestConfig) -> Columns:
        """Return the role of each column, according to the first rows.

        Raises:
            InputError: a column that the settings name does not exist.
        """
        if self.is_folder and config.group:
            raise InputError(
                f"{self.name}: a folder of text files has no column {config.group!r}; leave --group out, or ingest "
                "a table that has it"
            )
        if self.is_folder:
            return folder_columns(config)
        names = list(raw.columns)
        all_columns = self._reader.columns
        if all_columns and any(name not in names for _, name in named_columns(config)):
            names = all_columns(self.path, _options(config))
        return find_columns(self.name, names, config, sparse=all_columns is not None)

    def has_label_lists(self, config: IngestConfig, scratch: Path | None = None) -> bool:
        """Tell whether the label column holds a list anywhere; JSON Lines are read to the end for it.

        Raises:
            InputError: the source cannot be read.
        """
        name = label_column(config)
        if name is None or self.is_folder or self._reader.has_lists is None:
            return False
        return self._reader.has_lists(self.path, name, _options(config, scratch))

    def digests(self) -> list[tuple[str, str]]:
        """Return name and SHA-256 of each of its files; in a folder the name includes split and class.

        Raises:
            InputError: a file cannot be read.
        """
        root = self.path.absolute()  # its own name and that of its parent can be the class and the split
        prefix = f"{root.parent.name}/{root.name}/"
        names = [
            prefix + path.relative_to(self.path).as_posix() if self.is_folder else path.name for path in self.files
        ]
        try:
            digests = [file_digest(path) for path in self.files]
        except OSError as error:
            raise InputError(f"{error.filename}: cannot be read ({error.strerror})") from error
        return list(zip(map(escape_invalid_text, names), digests, strict=True))


def _options(config: IngestConfig, scratch: Path | None = None) -> ReadOptions:
    return ReadOptions(config.encoding, config.header, config.text, config.max_text_bytes, scratch)


def find_sources(names: Sequence[str], config: IngestConfig) -> list[Source]:
    """Return the named sources in order, each once; the matches of a glob and the files of a folder are sorted.

    Raises:
        InputError: a source does not exist, is empty, or its format is unknown.
    """
    try:
        sources = [source for name in names for path in _paths(name) for source in _of_path(path, config.format)]
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror})") from error
    if not sources:
        raise InputError("no sources: name files, folders or globs")
    distinct: dict[Path, Source] = {}
    for source in sources:
        distinct.setdefault(source.path.resolve(), source)
    return list(distinct.values())


def _paths(name: str) -> list[Path]:
    try:
        if name and Path(name).exists():
            return [Path(name)]
    except PermissionError:
        raise
    except (OSError, ValueError):  # too long for a path, or with NUL
        pass
    matches = sorted(glob.glob(name, recursive=True))  # noqa: PTH207 - pathlib's glob takes no absolute pattern
    if matches:
        return [Path(match) for match in matches]
    if glob.has_magic(name):
        raise InputError(f"{name}: no file matches")
    raise InputError(f"{name}: there is no such file or folder")


def _of_path(path: Path, format_setting: str) -> list[Source]:
    if path.is_dir():
        return _of_folder(path, format_setting)
    name = format_of(path) if format_setting == "auto" else format_setting
    if name is None:
        raise InputError(f"{path}: the format is not clear from its name; use --format csv, tsv, jsonl or parquet")
    if name == "folder":
        raise InputError(f"{path}: is a file, and --format folder was requested")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: is empty")
    return [Source(path, name, (path,))]


def _of_folder(path: Path, format_setting: str) -> list[Source]:
    formats = set(READERS) if format_setting == "auto" else {format_setting}
    data = sorted(file for file in path.rglob("*") if format_of(file) in formats and visible_file(file, path))
    texts = text_files(path) if format_setting in {"auto", "folder"} else []
    if data and any(text.parent != path for text in texts):
        raise InputError(
            f"{path}: holds data files ({data[0].relative_to(path)}) and folders of text files "
            f"({texts[0].relative_to(path)}); say --format folder for the texts, or name the data files"
        )
    if data:
        return [source for file in data for source in _of_path(file, format_setting)]
    if not texts:
        raise InputError(
            f"{path}: holds no data files and no text files in class folders (as in {path}/CLASS/document.txt)"
        )
    return [Source(path, "folder", tuple(texts))]
