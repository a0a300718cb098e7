"""Ingest raw files as a batch: read, reject, deduplicate, account, commit."""

import datetime
import errno
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from pipeline.config import IngestConfig
from pipeline.errors import AccountingError, BatchError, InputError, RejectRateError
from pipeline.files import file_digest, not_writable_error, value_digest, write_json
from pipeline.ingest.columns import Columns
from pipeline.ingest.documents import to_documents
from pipeline.ingest.duplicates import DuplicateFinder
from pipeline.ingest.label_column import LabelParser
from pipeline.ingest.manifest import build_manifest, count_parts, recorded_settings
from pipeline.ingest.parts import PartWriter, RejectWriter, drop_rows
from pipeline.ingest.report import IngestReport, reject_rate_message, reject_summary
from pipeline.ingest.sources import Source, find_sources
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
        batch_id: name of the batch; by default the date, with a number appended if that name exists.
        replace: replace a batch of that name that has different content, or is damaged.
        date: the day of the default name; by default today.
        progress: called every few seconds with a line on how many rows are read.

    Raises:
        InputError: a source cannot be read; nothing is written.
        RejectRateError: too many rows are rejected; nothing is written.
        BatchError: a batch of that name exists with different content.
        WorkspaceError: the workspace cannot be written.
    """
    started = time.monotonic()
    digested = [(source, source.digests()) for source in find_sources(sources, config)]
    fingerprint = value_digest([[digests for _, digests in digested], recorded_settings(config)])
    target = _resolve_target(workspace, fingerprint, batch_id, replace=replace, date=date)
    if isinstance(target, Batch):
        return IngestReport.of(target, already_ingested=True, seconds=time.monotonic() - started)
    try:
        batch = _write(workspace, target, fingerprint, digested, config, progress)
    except OSError as error:
        if error.errno in DISK_IS_FULL:
            raise not_writable_error(workspace.root, error) from error
        raise
    return IngestReport.of(batch, already_ingested=False, seconds=time.monotonic() - started)


def _resolve_target(
    workspace: Workspace, fingerprint: str, batch_id: str | None, *, replace: bool, date: datetime.date | None
) -> str | Batch:
    """Return the name of the batch to write, or the committed batch that has this content already.

    With `replace` a batch with damaged parts is written again.
    """
    if batch_id is None:
        existing = _dated_target(workspace, fingerprint, date)
        if isinstance(existing, str):
            return existing
    elif not (workspace.documents_dir(batch_id) / "manifest.json").exists():
        return batch_id
    else:
        try:
            existing = workspace.batch(batch_id)
        except BatchError:
            if not replace:
                raise
            return batch_id  # a manifest that cannot be read is repaired by writing the batch again
    if existing.manifest.get("fingerprint") != fingerprint:
        if replace:
            return existing.id
        raise BatchError(f"batch {existing.id!r} exists with other content; choose another --batch or pass --replace")
    parts = {existing.path / part["file"]: part["sha256"] for part in existing.manifest["parts"]} if replace else {}
    intact = all(path.exists() and file_digest(path) == digest for path, digest in parts.items())
    return existing if intact else existing.id


def _dated_target(workspace: Workspace, fingerprint: str, date: datetime.date | None) -> str | Batch:
    """Return the batch that has this content, or a free name for a day."""
    batches = {batch.id: batch for batch in workspace.batches()}
    for batch in batches.values():
        if batch.manifest.get("fingerprint") == fingerprint:
            return batch
    day = (date or datetime.datetime.now().astimezone().date()).isoformat()
    numbered = (day if number == 1 else f"{day}-{number}" for number in range(1, len(batches) + 2))
    return next(name for name in numbered if name not in batches)


def _write(
    workspace: Workspace,
    batch_id: str,
    fingerprint: str,
    digested: Sequence[tuple[Source, list[tuple[str, str]]]],
    config: IngestConfig,
    progress: Callable[[str], None] | None,
) -> Batch:
    with workspace.staging() as folder:
        # Decided before the first row is read: in a multi-label batch a plain label is a set of one.
        lists = any(source.has_label_lists(config, folder) for source, _ in digested)
        multi_label = lists or config.label_separator is not None
        staged = _Staged(folder, LabelParser(config.label_separator, multi_label=multi_label))
        for source, _ in digested:
            staged.read(source, config, progress)
        staged.deduplicate()
        staged.check(config)
        counted = staged.account(batch_id, digested[0][0], config)
        manifest = build_manifest(
            batch_id, fingerprint, config, digested, counted, staged.documents.paths, staged.rejects
        )
        write_json(folder / "documents" / "manifest.json", manifest)
        return workspace.commit_batch(batch_id, folder / "documents", folder / "rejects")


class _Staged:
    """A batch under construction in a staging folder."""

    def __init__(self, folder: Path, label_parser: LabelParser) -> None:
        self.folder = folder
        self.label_parser = label_parser
        self.documents = PartWriter(folder / "documents")
        self.rejects = RejectWriter(folder / "rejects")
        self.ids = DuplicateFinder(folder / "ids")
        self.rows_read = self.duplicates = 0
        self._progress_time = time.monotonic()

    def read(self, source: Source, config: IngestConfig, progress: Callable[[str], None] | None) -> None:
        """Add the rows of a source.

        Raises:
            InputError: it has no rows, or lacks a column that the settings name.
        """
        before = self.rows_read
        columns: Columns | None = None
        with closing(source.read(config, self.folder)) as chunks:
            for raw in chunks:
                if columns is None and len(raw):
                    columns = source.columns(raw, config)
                self.rows_read += len(raw) + len(raw.rejects)
                self.rejects.add(raw.rejects)
                if columns and len(raw):
                    table, rejects = to_documents(source.name, raw, columns, config, self.label_parser)
                    self.rejects.add(rejects)
                    if len(table):
                        self.documents.add(table)
                        self.ids.add(table)
                if progress and time.monotonic() - self._progress_time > PROGRESS_SECONDS:
                    self._progress_time = time.monotonic()
                    progress(f"{source.name}: {self.rows_read - before:,} rows")
        if self.rows_read == before:
            raise InputError(f"{source.name}: has no rows")

    def deduplicate(self) -> None:
        """Keep the first row of each id; an equal id with another text is a reject."""
        self.documents.flush()
        duplicates, conflicts = self.ids.find_duplicates()
        self.duplicates = len(duplicates)
        for rejects in drop_rows(self.documents.paths, duplicates, conflicts):
            self.rejects.add(rejects)
        self.documents.paths = [path for path in self.documents.paths if path.exists()]
        self.rejects.flush()

    def check(self, config: IngestConfig) -> None:
        """Check the labels and the share of rejected rows.

        Raises:
            RejectRateError: more rows are rejected than the settings allow.
            InputError: all rows are rejected, or the label separator is wrong.
        """
        self.label_parser.check()
        if self.rejects.count > config.max_reject_rate * self.rows_read:
            raise RejectRateError(reject_rate_message(self.rejects, self.rows_read, config.max_reject_rate))
        if self.rejects.count == self.rows_read:
            raise InputError(
                f"all {self.rows_read:,} rows were refused: {reject_summary(self.rejects)}; nothing was written"
            )

    def account(self, batch_id: str, first: Source, config: IngestConfig) -> dict[str, object]:
        """Count what was written, and check that the counts add up.

        Raises:
            InputError: every text is empty.
            AccountingError: rows read differ from documents + duplicates + rejects.
        """
        counted = count_parts(
            self.documents.paths, multi_label=self.label_parser.multi_label, grouped=config.group is not None
        )
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
