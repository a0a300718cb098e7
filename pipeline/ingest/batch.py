"""A batch from raw files: read, refuse, deduplicate, account, commit."""

import datetime
import errno
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from pipeline.config import IngestConfig
from pipeline.errors import AccountingError, InputError, RejectRateError
from pipeline.files import not_writable_error, value_digest, write_json
from pipeline.ingest.columns import Columns
from pipeline.ingest.documents import to_documents
from pipeline.ingest.duplicates import DuplicateFinder
from pipeline.ingest.label_column import LabelParser
from pipeline.ingest.manifest import build_manifest, count_parts, recorded_settings
from pipeline.ingest.parts import PartWriter, RejectWriter, drop_rows
from pipeline.ingest.readers.base import RawRows
from pipeline.ingest.report import IngestReport, reject_rate_message, reject_summary
from pipeline.ingest.sources import Source, find_sources
from pipeline.ingest.target import resolve_batch
from pipeline.workspace import Batch, Workspace

PROGRESS_SECONDS = 5.0
DISK_IS_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def ingest(
    workspace: Workspace,
    sources: Sequence[str],
    config: IngestConfig,
    *,
    batch_id: str | None = None,
    replace: bool = False,
    date: datetime.date | None = None,
    progress: Callable[[str], None] | None = None,
) -> IngestReport:
    """Read raw files into a batch of documents.

    Args:
        workspace: where the batch goes.
        sources: files, folders or globs.
        config: how they are read.
        batch_id: the batch's name; by default the date, with a number behind it where that is taken.
        replace: replace a batch of that name that has other content, or is damaged.
        date: the day of the default name; by default today.
        progress: called every few seconds with a line that says how far it is.

    Raises:
        InputError: a source cannot be read as what it claims to be; nothing is written.
        RejectRateError: too many rows were refused; nothing is written.
        BatchError: a batch of that name exists with other content.
        WorkspaceError: the workspace cannot be written.
    """
    started = time.monotonic()
    found = [(source, source.digests()) for source in find_sources(sources, config)]
    fingerprint = value_digest([[digests for _, digests in found], recorded_settings(config)])
    target = resolve_batch(workspace, fingerprint, batch_id, replace=replace, date=date)
    if isinstance(target, Batch):
        return IngestReport.of(target, already_ingested=True, seconds=time.monotonic() - started)
    try:
        batch = _write(workspace, target, fingerprint, found, config, progress)
    except OSError as error:
        if error.errno in DISK_IS_FULL:
            raise not_writable_error(workspace.root, error) from error
        raise
    return IngestReport.of(batch, already_ingested=False, seconds=time.monotonic() - started)


def _write(
    workspace: Workspace,
    batch_id: str,
    fingerprint: str,
    found: Sequence[tuple[Source, list[tuple[str, str]]]],
    config: IngestConfig,
    progress: Callable[[str], None] | None,
) -> Batch:
    with workspace.staging() as folder:
        # Known before the first row is read: a plain label of a batch with several is a set of one.
        lists = any(source.has_label_lists(config, folder) for source, _ in found)
        multi_label = lists or config.label_separator is not None
        staged = _Staged(folder, LabelParser(config.label_separator, multi_label=multi_label))
        for source, _ in found:
            staged.read(source, config, progress)
        staged.deduplicate()
        staged.check(config)
        counted = staged.account(batch_id, found[0][0], config)
        parts, rejects = staged.documents.paths, staged.rejects.paths
        manifest = build_manifest(batch_id, fingerprint, config, found, counted, staged.rejects.reasons, parts, rejects)
        write_json(folder / "documents" / "manifest.json", manifest)
        return workspace.commit_batch(batch_id, folder / "documents", folder / "rejects")


class _Staged:
    """A batch under construction in a staging folder."""

    def __init__(self, folder: Path, labelling: LabelParser) -> None:
        self.folder = folder
        self.labelling = labelling
        self.documents = PartWriter(folder / "documents")
        self.rejects = RejectWriter(folder / "rejects")
        self.ids = DuplicateFinder(folder / "ids")
        self.rows_read = self.duplicates = 0
        self._told = time.monotonic()

    def read(self, source: Source, config: IngestConfig, progress: Callable[[str], None] | None) -> None:
        """Take the rows of a source.

        Raises:
            InputError: it has none, or not the columns that the settings name.
        """
        before = self.rows_read
        columns: Columns | None = None
        with closing(source.read(config, self.folder)) as chunks:
            for raw in chunks:
                if columns is None and len(raw):
                    columns = source.columns(raw, config)
                self._take(source.name, raw, columns or Columns(config.text), config)
                if progress and time.monotonic() - self._told > PROGRESS_SECONDS:
                    self._told = time.monotonic()
                    progress(f"{source.name}: {self.rows_read - before:,} rows")
        if self.rows_read == before:
            raise InputError(f"{source.name}: has no rows")

    def _take(self, source: str, raw: RawRows, columns: Columns, config: IngestConfig) -> None:
        self.rows_read += len(raw) + len(raw.rejects)
        if not len(raw):
            self.rejects.add(raw.rejects)
            return
        table, rejects = to_documents(source, raw, columns, config, self.labelling)
        self.rejects.add(rejects)
        if len(table):
            self.documents.add(table)
            self.ids.add(table)

    def deduplicate(self) -> None:
        """Keep the first row of each id."""
        self.documents.flush()
        same, other = self.ids.find_duplicates()
        self.duplicates = len(same)
        for conflicts in drop_rows(self.documents.paths, same, other):
            self.rejects.add(conflicts)
        self.documents.paths = [path for path in self.documents.paths if path.exists()]
        self.rejects.flush()

    def check(self, config: IngestConfig) -> None:
        """See that not too many rows were refused.

        Raises:
            RejectRateError: there were.
            InputError: no row is left, or the labels are joined by something else than the settings say.
        """
        self.labelling.check()
        if self.rejects.count > config.max_reject_rate * self.rows_read:
            raise RejectRateError(reject_rate_message(self.rejects, self.rows_read, config.max_reject_rate))
        if self.rejects.count == self.rows_read:
            raise InputError(
                f"all {self.rows_read:,} rows were refused: {reject_summary(self.rejects)}; nothing was written"
            )

    def account(self, batch_id: str, first: Source, config: IngestConfig) -> dict[str, object]:
        """Count what was written, and see that it adds up.

        Raises:
            InputError: every text is empty.
            AccountingError: rows read are not documents + duplicates + rejects.
        """
        counted = count_parts(self.documents.paths, multi_label=self.labelling.multi_label)
        counts = {
            "rows_read": self.rows_read,
            "documents": counted["counts"]["documents"],
            "duplicates": self.duplicates,
            "rejects": self.rejects.count,
            **counted["counts"],
        }
        if counts["documents"] + counts["duplicates"] + counts["rejects"] != self.rows_read:
            raise AccountingError(f"batch {batch_id}: the rows do not add up: {counts}")
        if counts["empty"] == counts["documents"]:
            named = " and ".join(repr(name) for name in config.text)
            raise InputError(f"{first.name}: every text is empty; is {named} the right column (--text)?")
        return {**counted, "counts": counts}
