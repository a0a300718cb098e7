"""What people said of labels: rows that were given out for review, and the answers. Files are added, never changed."""

import datetime
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
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
    return datetime.datetime.now(datetime.UTC)


def write_review_requests(workspace: Workspace, rows: Sequence[dict[str, Any]]) -> None:
    """Keep which rows were given out, as a file of its own; rows are as in `ASKED`."""
    _keep(workspace, REQUEST_FILES, rows, REVIEW_REQUESTS)


def write_answers(workspace: Workspace, rows: Sequence[dict[str, Any]]) -> None:
    """Keep answers, as a file of its own: all of them or none; rows are as in `REVIEWS`."""
    _keep(workspace, ANSWER_FILES, rows, REVIEW_ANSWERS)


def _keep(workspace: Workspace, kind: str, rows: Sequence[dict[str, Any]], schema: pa.Schema) -> None:
    if not rows:
        return
    # The name sorts by time, and the digest keeps two files of one microsecond apart.
    digest = value_digest([[row["batch"], row["doc_id"], row["why"]] for row in rows])[:8]
    name = f"{kind}-{utc_now():%Y%m%dT%H%M%S%f}-{digest}.parquet"
    write_table(workspace.ensure_writable().reviews / name, pa.Table.from_pylist(list(rows), schema))


def read_review_requests(workspace: Workspace) -> pa.Table:
    """Return the rows that were given out, in that order, as in `ASKED`."""
    return _read(workspace, REQUEST_FILES, REVIEW_REQUESTS)


def read_answers(workspace: Workspace) -> pa.Table:
    """Return all answers, in the order in which they came, as in `REVIEWS`.

    Raises:
        ReviewError: a file is damaged.
    """
    return _read(workspace, ANSWER_FILES, REVIEW_ANSWERS)


def _read(workspace: Workspace, kind: str, schema: pa.Schema) -> pa.Table:
    tables = [_read_file(path, schema) for path in sorted(workspace.reviews.glob(f"{kind}-*.parquet"))]
    return pa.concat_tables(tables) if tables else schema.empty_table()


def _read_file(path: Path, schema: pa.Schema) -> pa.Table:
    try:
        return pq.read_table(path, schema=schema, partitioning=None)
    except (OSError, pa.ArrowInvalid) as error:
        raise ReviewError(
            f"{path} is damaged; restore it from a copy, or move it away and import that review again"
        ) from error


@dataclass(frozen=True)
class ReviewedLabels:
    """What people said last of each text.

    Attributes:
        hashes: content hashes [texts], binary of 16 bytes.
        labels: of each text, several joined.
        corrected: bool [texts], whether it is another label than was given.
        new_class: bool [texts], whether classes were allowed that no document had.
    """

    hashes: pa.Array
    labels: Sequence[str]
    corrected: NDArray[np.bool_]
    new_class: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def digest(self) -> str:
        """What was said, in one value."""
        corrected = self.corrected.tolist()
        said = sorted(zip([one.hex() for one in self.hashes.to_pylist()], self.labels, corrected, strict=True))
        return value_digest(said)

    def rows(self, wanted: NDArray[np.bool_]) -> "ReviewedLabels":
        """Return those that are wanted, bool [texts]."""
        labels = [label for label, one in zip(self.labels, wanted, strict=True) if one]
        return ReviewedLabels(
            self.hashes.filter(pa.array(wanted)), labels, self.corrected[wanted], self.new_class[wanted]
        )

    def restricted_to_texts(self, hashes: pa.Array) -> "ReviewedLabels":
        """Return those of texts that are there."""
        return self.rows(pc.is_in(self.hashes, value_set=hashes).to_numpy(zero_copy_only=False))

    def restricted_to_classes(self, classes: Iterable[str], *, multi_label: bool) -> "ReviewedLabels":
        """Return those whose classes are among some, or among those that people have added.

        The others were said of another model's labels.
        """

        def members(label: str) -> set[str]:
            return set(split_labels(label)) if multi_label else {label}

        added = [label for label, new in zip(self.labels, self.new_class, strict=True) if new]
        allowed = set(classes).union(*(members(label) for label in added))
        return self.rows(np.array([members(label) <= allowed for label in self.labels], dtype=bool))

    def positions(self, hashes: pa.Array) -> NDArray[np.int64]:
        """Return for each text of a corpus which of these it is, int64 [rows], -1 for none."""
        found = pc.fill_null(pc.index_in(hashes, value_set=self.hashes), -1)
        return found.to_numpy(zero_copy_only=False).astype(np.int64)


def read_reviewed_labels(workspace: Workspace) -> ReviewedLabels:
    """Return what people said last of each text.

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
    """Return the last row for each value of some columns, in their order."""
    keys = list(zip(*(answers[name].to_pylist() for name in key), strict=True))
    last = {one: row for row, one in enumerate(keys)}
    return answers.take(pa.array(sorted(last.values()), pa.int64()))


def reviewer_classes(workspace: Workspace) -> set[str]:
    """Return the classes that people have added."""
    answers = read_answers(workspace)
    added = answers.filter(answers["new_class"])
    return {
        name
        for label, several in zip(added["correct"].to_pylist(), added["several"].to_pylist(), strict=True)
        for name in (split_labels(label) if several else [label])
    }
