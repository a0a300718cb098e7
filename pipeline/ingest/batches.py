"""A batch from raw files: read, refuse, deduplicate, account, commit."""

import datetime
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.config import IngestConfig
from pipeline.errors import AccountingError, BatchError, InputError, RejectRateError
from pipeline.files import file_digest, value_digest, write_json
from pipeline.ingest.documents import SPLIT_NAMES, Columns, find_columns, to_documents
from pipeline.ingest.identity import IdSpill
from pipeline.ingest.parts import PartWriter, RejectWriter, drop_rows
from pipeline.ingest.rows import RawRows
from pipeline.ingest.sources import Source, find_sources
from pipeline.schemas import DOCUMENTS
from pipeline.workspace import Batch, Workspace

PROGRESS_SECONDS = 5.0
MOST_CLASSES = 10_000  # a column with more values is no label, and would not fit in a manifest


@dataclass(frozen=True)
class IngestReport:
    """What became of the rows of an ingest: rows_read = documents + duplicates + rejects."""

    batch_id: str
    rows_read: int
    documents: int
    duplicates: int
    rejects: int
    labelled: int
    unlabelled: int
    empty: int
    reject_reasons: dict[str, int]
    labels: dict[str, int]
    path: Path
    already_there: bool = False

    @classmethod
    def of(cls, batch: Batch, *, already_there: bool) -> "IngestReport":
        manifest = batch.manifest
        return cls(
            batch_id=batch.id,
            **manifest["counts"],
            reject_reasons=manifest["reject_reasons"],
            labels=manifest["labels"],
            path=batch.path,
            already_there=already_there,
        )


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
        replace: replace a batch of that name that has other content.
        date: the day of the default name; by default today.
        progress: called every few seconds with a line that says how far it is.

    Raises:
        InputError: a source cannot be read as what it claims to be; nothing is written.
        RejectRateError: too many rows were refused; nothing is written.
        BatchError: a batch of that name exists with other content.
    """
    found = find_sources(list(sources), config)
    fingerprint = value_digest([[source.digests() for source in found], config.model_dump(mode="json")])
    target = _target(workspace, fingerprint, batch_id, replace, date)
    if isinstance(target, Batch):
        return IngestReport.of(target, already_there=True)
    with workspace.staging() as folder:
        staged = _Staged(folder)
        staged.read(found, config, progress)
        staged.deduplicate()
        staged.check(config)
        staged.seal(target, fingerprint, found, config)
        batch = workspace.commit_batch(target, folder / "documents", folder / "rejects")
    return IngestReport.of(batch, already_there=False)


def _target(
    workspace: Workspace, fingerprint: str, batch_id: str | None, replace: bool, date: datetime.date | None
) -> str | Batch:
    """Return the name of the batch to write, or the batch that has this content already."""
    batches = {batch.id: batch for batch in workspace.batches()}
    if batch_id is None:
        same = [batch for batch in batches.values() if batch.manifest["fingerprint"] == fingerprint]
        if same:
            return same[0]
        day = (date or datetime.datetime.now().astimezone().date()).isoformat()
        numbered = (day if number == 1 else f"{day}-{number}" for number in range(1, len(batches) + 2))
        return next(name for name in numbered if name not in batches)
    workspace.documents_of(batch_id)  # refuses a name that cannot be a folder
    batch = batches.get(batch_id)
    if batch and batch.manifest["fingerprint"] == fingerprint:
        return batch
    if batch and not replace:
        raise BatchError(f"batch {batch_id!r} exists with other content; choose another --batch or pass --replace")
    return batch_id


class _Staged:
    """A batch under construction in a staging folder."""

    def __init__(self, folder: Path) -> None:
        self.documents = PartWriter(folder / "documents")
        self.rejects = RejectWriter(folder / "rejects")
        self.ids = IdSpill(folder / "ids")
        self.rows_read = self.duplicates = 0

    def read(self, sources: list[Source], config: IngestConfig, progress: Callable[[str], None] | None) -> None:
        told = time.monotonic()
        for source in sources:
            before, columns = self.rows_read, None
            for raw in source.read(config):
                columns = columns or _columns(source, raw, config)
                self._take(str(source.path), raw, columns, config)
                if progress and time.monotonic() - told > PROGRESS_SECONDS:
                    told = time.monotonic()
                    progress(f"{source.path}: {self.rows_read - before:,} rows")
            if self.rows_read == before:
                raise InputError(f"{source.path}: has no rows")
        self.documents.flush()

    def _take(self, source: str, raw: RawRows, columns: Columns, config: IngestConfig) -> None:
        table, rejects = to_documents(source, raw, columns, config)
        self.rows_read += len(raw) + len(raw.rejects)
        self.rejects.add(rejects)
        if len(table):
            self.documents.add(table)
            self.ids.add(table)

    def deduplicate(self) -> None:
        """Keep the first row of each id."""
        same, other = self.ids.repeated()
        self.duplicates = len(same)
        for conflicts in drop_rows(self.documents.paths, same, other):
            self.rejects.add(conflicts)

    def check(self, config: IngestConfig) -> None:
        refused = self.rejects.count
        if refused > config.max_reject_rate * self.rows_read:
            raise RejectRateError(_refusal(self.rejects, self.rows_read, config.max_reject_rate))

    def seal(self, batch_id: str, fingerprint: str, sources: list[Source], config: IngestConfig) -> None:
        """Count what is there, see that it adds up, and write the manifest.

        Raises:
            InputError: every text is empty.
            AccountingError: rows read are not documents + duplicates + rejects.
        """
        self.rejects.close()
        parts = [path for path in self.documents.paths if path.exists()]
        counts, labels, splits, columns = _count(parts)
        counts = {
            "rows_read": self.rows_read,
            "documents": counts["documents"],
            "duplicates": self.duplicates,
            "rejects": self.rejects.count,
            **counts,
        }
        if counts["documents"] + counts["duplicates"] + counts["rejects"] != self.rows_read:
            raise AccountingError(f"batch {batch_id}: the rows do not add up: {counts}")
        if counts["empty"] == counts["documents"]:
            named = " and ".join(config.text)
            raise InputError(f"{sources[0].path}: every text is empty; is {named!r} the right column (--text)?")
        manifest = {
            "batch": batch_id,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "fingerprint": fingerprint,
            "config": config.model_dump(mode="json"),
            "sources": [{"path": str(s.path), "files": len(s.files), "bytes": s.bytes} for s in sources],
            "counts": counts,
            "reject_reasons": dict(sorted(self.rejects.reasons.items())),
            "labels": labels,
            "splits": splits,
            "columns": columns,
            "parts": [
                {
                    "file": path.name,
                    "rows": pq.read_metadata(path).num_rows,
                    "bytes": path.stat().st_size,
                    "sha256": file_digest(path),
                }
                for path in parts
            ],
        }
        write_json(parts[0].parent / "manifest.json", manifest)


def _columns(source: Source, raw: RawRows, config: IngestConfig) -> Columns:
    if source.format == "folder":
        fixed = SPLIT_NAMES.get(config.split or "")
        return Columns(["text"], "label", "id", None if fixed else "split", fixed)
    if not raw.columns and raw.rejects:  # not one row of the first thousands could be read: refused below
        return Columns(config.text)
    return find_columns(str(source.path), raw.columns, config)


def _count(parts: list[Path]) -> tuple[dict[str, int], dict[str, int], dict[str, int], list[str]]:
    """Return counts of documents, by label and by given split, and the names of the passed-through columns."""
    documents = empty = 0
    labels: Counter[str] = Counter()
    splits: Counter[str] = Counter()
    extras: set[str] = set()
    for path in parts:
        with pq.ParquetFile(path) as file:
            extras.update(file.schema_arrow.names)
            for batch in file.iter_batches(columns=["text", "label", "split"]):
                documents += len(batch)
                empty += pc.sum(pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(batch["text"])), 0)).as_py() or 0
                labels.update(_value_counts(batch["label"]))
                splits.update(_value_counts(batch["split"]))
                if len(labels) > MOST_CLASSES:
                    raise InputError(
                        f"the label column has more than {MOST_CLASSES:,} different values, "
                        "so it is no label; choose another with --label"
                    )
    labelled = sum(labels.values())
    counts = {"documents": documents, "labelled": labelled, "unlabelled": documents - labelled, "empty": empty}
    return counts, dict(sorted(labels.items())), dict(splits), sorted(extras - set(DOCUMENTS.names))


def _value_counts(column: pa.Array) -> dict[str, int]:
    values, counts = pc.value_counts(column.drop_null()).flatten()
    return dict(zip(values.to_pylist(), counts.to_pylist(), strict=True))


def _refusal(rejects: RejectWriter, rows: int, limit: float) -> str:
    """Return one line: how many rows were refused, why, where the first of each kind is, and what to do."""
    by_count = sorted(rejects.reasons.items(), key=lambda item: -item[1])
    kinds = ", ".join(
        f"{count:,} {reason} (first at {rejects.first[reason].source}:{rejects.first[reason].row})"
        for reason, count in by_count[:5]
    )
    hints = {
        "invalid_encoding": "try --encoding cp1252 or mend the file",
        "id_conflict": "the id column is not unique: choose another --id",
        "id_missing": "choose another --id",
        "text_missing": "choose another --text",
    }
    advice = hints.get(by_count[0][0], "mend the rows, or allow more with --max-reject-rate")
    share = f"{rejects.count:,} of {rows:,} rows refused ({rejects.count / rows:.1%}, at most {limit:.1%} allowed)"
    return f"{share}: {kinds}; nothing was written: {advice}"
