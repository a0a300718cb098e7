"""The store of reviews: exported rows and the answers to them. Files are added, never changed."""

import datetime
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import ReviewError
from pipeline.files import value_digest, write_table
from pipeline.schemas import REVIEW_ANSWERS, REVIEW_REQUESTS, split_labels
from pipeline.workspace import Workspace

REQUEST_FILES, ANSWER_FILES = "asked", "answers"

DocumentKey = tuple[str, str]  # batch and doc_id


def utc_now() -> datetime.datetime:
    """Return the current time."""
    return datetime.datetime.now(datetime.UTC)


def write_review_requests(workspace: Workspace, rows: Sequence[dict[str, Any]]) -> None:
    """Write the rows of an export as a new file; rows are as in `REVIEW_REQUESTS`."""
    _write(workspace, REQUEST_FILES, rows, REVIEW_REQUESTS)


def write_answers(workspace: Workspace, rows: Sequence[dict[str, Any]]) -> None:
    """Write answers as a new file: all of them or none; rows are as in `REVIEW_ANSWERS`."""
    _write(workspace, ANSWER_FILES, rows, REVIEW_ANSWERS)


def _write(workspace: Workspace, kind: str, rows: Sequence[dict[str, Any]], schema: pa.Schema) -> None:
    if not rows:
        return
    # The name sorts by time; the digest separates two files of the same microsecond.
    digest = value_digest([[row["batch"], row["doc_id"], row["why"]] for row in rows])[:8]
    name = f"{kind}-{utc_now():%Y%m%dT%H%M%S%f}-{digest}.parquet"
    write_table(workspace.ensure_writable().reviews / name, pa.Table.from_pylist(list(rows), schema))


def read_review_requests(workspace: Workspace) -> pa.Table:
    """Return the exported rows, oldest first, as in `REVIEW_REQUESTS`."""
    return _read(workspace, REQUEST_FILES, REVIEW_REQUESTS)


def read_answers(workspace: Workspace) -> pa.Table:
    """Return all answers, oldest first, as in `REVIEW_ANSWERS`.

    Raises:
        ReviewError: a file is damaged.
    """
    return _read(workspace, ANSWER_FILES, REVIEW_ANSWERS)


def _read(workspace: Workspace, kind: str, schema: pa.Schema) -> pa.Table:
    tables = [schema.empty_table()]
    for path in sorted(workspace.reviews.glob(f"{kind}-*.parquet")):
        try:
            tables.append(pq.read_table(path, schema=schema, partitioning=None))
        except (OSError, pa.ArrowInvalid) as error:
            raise ReviewError(
                f"{path} is damaged; restore it from a copy, or move it away and import that review again"
            ) from error
    return pa.concat_tables(tables)


@dataclass(frozen=True)
class ReviewedLabels:
    """The latest answer for each reviewed text.

    Attributes:
        hashes: content hashes [texts], binary of 16 bytes.
        labels: of each text, several joined.
        corrected: bool [texts], whether the reviewer changed the label.
        new_class: bool [texts], whether the label has classes that no document had.
    """

    hashes: pa.Array
    labels: Sequence[str]
    corrected: NDArray[np.bool_]
    new_class: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def digest(self) -> str:
        """SHA-256 of all answers, in any order."""
        corrected = self.corrected.tolist()
        hashes = [content_hash.hex() for content_hash in self.hashes.to_pylist()]
        return value_digest(sorted(zip(hashes, self.labels, corrected, strict=True)))

    def filter(self, mask: NDArray[np.bool_]) -> "ReviewedLabels":
        """Return the texts where `mask`, bool [texts], is true."""
        labels = [label for label, selected in zip(self.labels, mask, strict=True) if selected]
        return ReviewedLabels(self.hashes.filter(pa.array(mask)), labels, self.corrected[mask], self.new_class[mask])

    def restricted_to_texts(self, hashes: pa.Array) -> "ReviewedLabels":
        """Return the answers for some texts."""
        return self.filter(pc.is_in(self.hashes, value_set=hashes).to_numpy(zero_copy_only=False))

    def restricted_to_classes(self, classes: Iterable[str], *, multi_label: bool) -> "ReviewedLabels":
        """Return the answers whose classes are among `classes` or were added by reviewers.

        The other answers are for a model with other labels.
        """

        def members(label: str) -> set[str]:
            return set(split_labels(label)) if multi_label else {label}

        added = [label for label, new in zip(self.labels, self.new_class, strict=True) if new]
        allowed = set(classes).union(*(members(label) for label in added))
        return self.filter(np.array([members(label) <= allowed for label in self.labels], dtype=bool))

    def positions(self, hashes: pa.Array) -> NDArray[np.int64]:
        """Return the index in this object of each text of a corpus, int64 [rows], -1 if it is not reviewed."""
        indices = pc.fill_null(pc.index_in(hashes, value_set=self.hashes), -1)
        return indices.to_numpy(zero_copy_only=False).astype(np.int64)


def read_reviewed_labels(workspace: Workspace) -> ReviewedLabels:
    """Return the latest answer for each reviewed text.

    Raises:
        ReviewError: a file is damaged.
    """
    answers = latest_answers(read_answers(workspace), ["content_hash"])
    return ReviewedLabels(
        hashes=answers["content_hash"].combine_chunks(),
        labels=answers["correct"].to_pylist(),
        corrected=np.array(pc.not_equal(answers["label"], answers["correct"]).to_pylist(), dtype=bool),
        new_class=np.array(answers["new_class"].to_pylist(), dtype=bool),
    )


def latest_answers(answers: pa.Table, key: Sequence[str]) -> pa.Table:
    """Return the last row for each distinct value of the key columns, in row order."""
    keys = zip(*(answers[name].to_pylist() for name in key), strict=True)
    last = {value: row for row, value in enumerate(keys)}
    return answers.take(pa.array(sorted(last.values()), pa.int64()))


def reviewer_classes(workspace: Workspace) -> set[str]:
    """Return the classes that reviewers added."""
    answers = read_answers(workspace)
    added = answers.filter(answers["new_class"])
    return {
        name
        for label, multi_label in zip(added["correct"].to_pylist(), added["several"].to_pylist(), strict=True)
        for name in (split_labels(label) if multi_label else [label])
    }
