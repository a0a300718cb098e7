"""The layout of a workspace: the only code that builds its paths, and that commits a batch.

A batch exists when its `manifest.json` does; readers read only what a manifest lists.
"""

import datetime
import getpass
import itertools
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import BatchError, ConfigError, WorkspaceError
from pipeline.files import not_writable_error, read_json, sync_directory

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def default_root() -> Path:
    return Path(os.environ.get("NIGHTLABEL_WORKSPACE", "workspace"))


def check_name(kind: str, name: str) -> str:
    """Return `name` if it can be the name of a folder.

    Raises:
        ConfigError: it has characters other than letters, digits, dot, dash and underscore, or too many.
    """
    if not NAME_PATTERN.fullmatch(name) or len(name) > 100:
        raise ConfigError(
            f"{kind} {name!r} cannot be used: start with a letter or digit, "
            "then letters, digits, '.', '-' and '_', at most 100"
        )
    return name


@dataclass(frozen=True)
class Batch:
    """A committed batch of documents."""

    id: str
    path: Path
    manifest: dict[str, Any]

    @property
    def parts(self) -> list[Path]:
        return [self.path / part["file"] for part in self.manifest["parts"]]

    @property
    def rows(self) -> int:
        return int(self.manifest["counts"]["documents"])

    @property
    def multi_label(self) -> bool:
        """Whether a document of this batch can have several labels."""
        return bool(self.manifest.get("multi_label"))

    @property
    def group_column(self) -> str | None:
        """The column of the sources that gave the `group` of each document; None if there was none."""
        column: str | None = self.manifest.get("config", {}).get("group")
        return column


class Workspace:
    """A folder with documents, rejects, tokens, models and labels; by default that of NIGHTLABEL_WORKSPACE."""

    def __init__(self, root: Path | str | None = None) -> None:
        self.root = Path(root) if root else default_root()

    def ensure_writable(self) -> "Workspace":
        """Create the folder and check that it can be written.

        Raises:
            WorkspaceError: it cannot be written.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.root).close()
        except OSError as error:
            raise not_writable_error(self.root, error) from error
        return self

    def documents_dir(self, batch_id: str) -> Path:
        return self.root / "documents" / f"batch={check_name('batch', batch_id)}"

    def rejects_dir(self, batch_id: str) -> Path:
        return self.root / "rejects" / f"batch={check_name('batch', batch_id)}"

    def labels_dir(self, model: str, batch_id: str) -> Path:
        return self.root / "labels" / check_name("model", model) / f"batch={check_name('batch', batch_id)}"

    def labels_manifests(self, model: str) -> list[Path]:
        return sorted((self.root / "labels" / check_name("model", model)).glob("batch=*/manifest.json"))

    def models_that_labelled(self, batch_id: str) -> list[str]:
        """Return the models that have labelled a batch."""
        manifests = (self.root / "labels").glob(f"*/batch={check_name('batch', batch_id)}/manifest.json")
        return sorted(manifest.parent.parent.name for manifest in manifests)

    @property
    def reviews(self) -> Path:
        return self.root / "reviews"

    def tokens_dir(self, fingerprint: str) -> Path:
        return self.root / "tokens" / fingerprint

    def checkpoint_path(self, fingerprint: str) -> Path:
        return self.root / "checkpoints" / f"{fingerprint}.pt"

    def encoder_dir(self, fingerprint: str) -> Path:
        return self.root / "encoders" / check_name("encoder", fingerprint)

    def embeddings_dir(self, digest: str) -> Path:
        return self.root / "embeddings" / digest

    def teacher_dir(self, name: str) -> Path:
        return self.root / "teachers" / check_name("teacher", name)

    def teacher_manifests(self) -> list[Path]:
        return sorted((self.root / "teachers").glob("*/manifest.json"))

    def commit_teacher(self, name: str, staged: Path) -> Path:
        """Move a staged teacher into place, instead of an earlier one of that name; return its folder."""
        target = self.teacher_dir(name)
        (target / "manifest.json").unlink(missing_ok=True)  # from here the earlier one does not exist
        self._replace(target, staged)
        return target

    def tuning_dir(self, name: str) -> Path:
        return self.root / "tuning" / check_name("search", name)

    def preset_path(self, name: str) -> Path:
        return self.root / "presets" / f"{check_name('preset', name)}.toml"

    def next_report_path(self, day: datetime.date) -> Path:
        """Return a free path for a report of a day; from the second on they are numbered."""
        first = self.root / "reports" / f"{day.isoformat()}.md"
        numbered = (first.with_stem(f"{first.stem}-{number}") for number in itertools.count(2))
        return next(path for path in itertools.chain([first], numbered) if not path.exists())

    def log_path(self, service: str) -> Path:
        return self.root / "logs" / f"{service}.log"

    def lock_path(self, name: str) -> Path:
        return self.root / f".{name}.lock"

    @contextmanager
    def request_stop(self) -> Iterator[None]:
        """Ask every process working in this workspace to stop where it can resume later."""
        self._stop.write_text(str(os.getpid()), encoding="ascii")
        try:
            yield
        finally:
            self.withdraw_stop_request()

    def withdraw_stop_request(self) -> None:
        """Remove the request to stop."""
        self._stop.unlink(missing_ok=True)

    @property
    def stop_requested(self) -> bool:
        """Whether a process that is still running asks to stop."""
        try:
            os.kill(int(self._stop.read_text(encoding="ascii")), 0)
        except (OSError, ValueError):
            return False
        return True

    @property
    def _stop(self) -> Path:
        return self.root / ".stop"

    def encoder_manifests(self) -> list[Path]:
        return sorted((self.root / "encoders").glob("*/manifest.json"))

    def model_dir(self, model: str) -> Path:
        return self.root / "models" / check_name("model", model)

    @property
    def models(self) -> Path:
        return self.root / "models"

    def batches(self) -> list[Batch]:
        """Return the committed batches, sorted by id."""
        manifests = sorted((self.root / "documents").glob("batch=*/manifest.json"))
        return [self._read(path) for path in manifests]

    def batch(self, batch_id: str) -> Batch:
        """Return one committed batch.

        Raises:
            BatchError: it does not exist, or its manifest is damaged.
        """
        manifest = self.documents_dir(batch_id) / "manifest.json"
        if not manifest.exists():
            ids = ", ".join(batch.id for batch in self.batches()) or "none yet"
            raise BatchError(f"no batch {batch_id!r} in {self.root} (there: {ids})")
        return self._read(manifest)

    @staticmethod
    def _read(manifest: Path) -> Batch:
        try:
            value = read_json(manifest)
        except ValueError as error:
            raise BatchError(f"{manifest} is damaged ({error}); ingest the batch again with --replace") from error
        return Batch(manifest.parent.name.removeprefix("batch="), manifest.parent, value)

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """Yield an empty folder on the disk of the workspace, and remove it afterwards."""
        self.ensure_writable()
        folder = Path(tempfile.mkdtemp(prefix=".staging-", dir=self.root))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def commit_batch(self, batch_id: str, documents: Path, rejects: Path) -> Batch:
        """Move a staged batch into place: rejects first, then the documents with their manifest.

        Args:
            batch_id: name of the batch.
            documents: staged folder of parts and a `manifest.json`.
            rejects: staged folder of parts, possibly empty.
        """
        target = self.documents_dir(batch_id)
        (target / "manifest.json").unlink(missing_ok=True)  # from here the batch does not exist
        self._replace(self.rejects_dir(batch_id), rejects)
        self._replace(target, documents)
        return self.batch(batch_id)

    @staticmethod
    def _replace(target: Path, staged: Path) -> None:
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            staged.rename(target)
        except OSError as error:
            raise WorkspaceError(f"cannot put {target} in place: {error}") from error
        sync_directory(target.parent)


def user_name() -> str:
    """Return the login name of the user, or "unknown"."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"  # a container may run under a user id without a name
