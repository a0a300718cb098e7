"""Atomic writes (temporary name, flush, rename), digests, and manifests of sealed folders."""

import datetime
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import ModelError, WorkspaceError


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is flushed to disk and takes its name.

    Raises:
        WorkspaceError: the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)
        sync_directory(path.parent)
    except PermissionError as error:
        raise not_writable_error(path.parent, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def sync_directory(path: Path) -> None:
    """Make a rename inside `path` survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def not_writable_error(path: Path, error: OSError) -> WorkspaceError:
    """Return the error for a folder that cannot be written."""
    return WorkspaceError(
        f"cannot write to {path}: {error.strerror}; choose another folder with --workspace or NIGHTLABEL_WORKSPACE"
    )


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def write_table(path: Path, table: pa.Table) -> None:
    """Write a Parquet file atomically; its bytes depend on the table alone."""
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", row_group_size=8192)


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def value_digest(value: Any) -> str:
    """Return the SHA-256 of a JSON value, in hex; the order of keys does not matter."""
    canonical = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


LIBRARIES = ("torch", "onnx", "onnxruntime-gpu", "onnxruntime", "pyarrow", "numpy", "scikit-learn")


def write_manifest(folder: Path, **facts: Any) -> None:
    """Write the manifest of a folder: `facts`, library versions, and the digest of every file."""
    versions = {}
    for library in LIBRARIES:
        with suppress(importlib.metadata.PackageNotFoundError):  # only one of the ONNX Runtimes is installed
            versions[library] = importlib.metadata.version(library)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json")
    write_json(
        folder / "manifest.json",
        {
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            **facts,
            "libraries": versions,
            "files": {path.relative_to(folder).as_posix(): file_digest(path) for path in files},
        },
    )


def verified_manifest(path: Path, *, damaged: str, changed: str) -> dict[str, Any]:
    """Return the manifest of a folder after comparing every file with its digest.

    Args:
        path: the folder.
        damaged: advice for a manifest that cannot be read.
        changed: advice for a file that is missing or changed.

    Raises:
        ModelError: the manifest cannot be read, or a file is missing or changed.
    """
    try:
        manifest: dict[str, Any] = read_json(path / "manifest.json")
        files: dict[str, str] = manifest["files"]
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{path}: the manifest is missing or damaged; {damaged}") from error
    for file, digest in files.items():
        if not (path / file).is_file() or file_digest(path / file) != digest:
            raise ModelError(f"{path / file} is not the file that was registered (missing or changed); {changed}")
    return manifest
