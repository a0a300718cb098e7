"""Checks of a reviewed table against the rows that were exported, row by row."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.dataset.reviews import DocumentKey, read_review_requests, reviewer_classes
from pipeline.errors import ReviewError
from pipeline.files import read_json
from pipeline.review.spreadsheet import Sheet, SheetRow, guard, original_value, unguard
from pipeline.schemas import LABEL_SEPARATOR, join_labels, split_labels
from pipeline.workspace import Workspace

CONFIRMED = "ok"  # in correct_label: the label is right
NO_CLASS = "(none)"  # in correct_label, multi-label: none of the classes

ReviewRequest = Mapping[str, Any]  # a row of `REVIEW_REQUESTS`


def label_to_cell(label: str, *, multi_label: bool) -> str:
    """Return a label as its cell shows it."""
    return NO_CLASS if multi_label and not label else guard(label)


def cell_to_label(cell: str, *, multi_label: bool) -> str:
    """Return the label that a cell shows."""
    if not multi_label:
        return unguard(cell)
    return "" if cell == NO_CLASS else join_labels(_split_cell(cell))


def _split_cell(cell: str) -> list[str]:
    return [name.strip() for name in split_labels(unguard(cell)) if name.strip()]


@dataclass(frozen=True)
class RowError:
    """A row that does not fit: its number as the spreadsheet shows it, and why."""

    row: int
    reason: str

    def __str__(self) -> str:
        return f"row {self.row:,}: {self.reason}"


@dataclass
class CheckedRows:
    """The rows of a sheet, by what becomes of them.

    Attributes:
        answers: rows that fit, as in `REVIEW_ANSWERS` without reviewer, time and file, each with its row.
        row_errors: rows that do not fit.
        repeated: rows that repeat an earlier row.
        not_reviewed: rows without an answer.
    """

    answers: dict[DocumentKey, tuple[SheetRow, dict[str, Any]]] = field(default_factory=dict)
    row_errors: list[RowError] = field(default_factory=list)
    repeated: int = 0
    not_reviewed: int = 0


@dataclass(frozen=True)
class ReviewContext:
    """The requests and classes that answers are checked against.

    Attributes:
        requests: all exported rows, by batch and doc_id, the newest last.
        classes: of each model, of all documents, and those that people added.
        allow_new: whether answers may add other classes.
    """

    requests: Mapping[DocumentKey, Sequence[ReviewRequest]]
    classes: frozenset[str]
    allow_new: bool

    @classmethod
    def of(cls, workspace: Workspace, *, allow_new: bool) -> "ReviewContext":
        """Return the requests and classes of a workspace.

        Raises:
            ReviewError: nothing was exported for review yet.
        """
        requests: dict[DocumentKey, list[ReviewRequest]] = {}
        for row in read_review_requests(workspace).to_pylist():
            requests.setdefault((row["batch"], row["doc_id"]), []).append(row)
        if not requests:
            raise ReviewError(f"nothing was exported for review from {workspace.root} yet: nightlabel review export")
        classes = reviewer_classes(workspace)
        for batch in workspace.batches():
            for label in batch.manifest["labels"]:
                classes.update(split_labels(label) if batch.multi_label else [label])
        for model in {row["model"].partition("@")[0] for rows in requests.values() for row in rows}:
            for manifest in workspace.labels_manifests(model):
                classes.update(read_json(manifest)["classes"])
        return cls(requests, frozenset(classes), allow_new)


def check_rows(sheet: Sheet, context: ReviewContext) -> CheckedRows:
    """Return what becomes of each row of a sheet."""
    checked, disputed = CheckedRows(), set[DocumentKey]()
    for row in sheet.rows:
        if not row.cells["correct_label"].strip():
            checked.not_reviewed += 1
            continue
        try:
            if row.overflows:
                raise ReviewError("has more cells than the header: a text was torn apart; save with quotation marks")
            request = _request(row, context)
            correct, new_class = _correct_label(row.cells["correct_label"].strip(), request, sheet, context)
        except ReviewError as error:
            checked.row_errors.append(RowError(row.number, str(error)))
            continue
        note = unguard(row.cells.get("note", "").strip())
        answer = {**request, "correct": correct, "new_class": new_class, "note": note}
        key = (answer["batch"], answer["doc_id"])
        first, first_answer = checked.answers.setdefault(key, (row, answer))
        if first_answer["correct"] != correct:
            disputed.add(key)
            reason = f"doc_id {key[1]!r} has another answer in row {first.number:,}; keep one of the two"
            checked.row_errors.append(RowError(row.number, reason))
        elif first is not row:
            checked.repeated += 1
    for key in disputed:  # nobody can tell which of the two is meant
        first, _ = checked.answers.pop(key)
        reason = f"doc_id {key[1]!r} has another answer further down; keep one"
        checked.row_errors.append(RowError(first.number, reason))
    checked.row_errors.sort(key=lambda error: error.row)
    return checked


def _request(row: SheetRow, context: ReviewContext) -> ReviewRequest:
    """Return the newest request with the ids and the label of a row.

    Raises:
        ReviewError: no row with these ids or this label was exported.
    """
    batch, doc_id = row.cells["batch"], row.cells["doc_id"]
    keys = [(batch_id, row_id) for batch_id in _readings(batch) for row_id in _readings(doc_id)]
    requests = next((context.requests[key] for key in keys if key in context.requests), None)
    if requests is None:
        value, batches = unguard(batch.strip()), sorted({batch_id for batch_id, _ in context.requests})
        if value not in batches:
            raise _unknown_id("batch", value, batches)
        ids = [row_id for batch_id, row_id in context.requests if batch_id == value]
        raise _unknown_id("doc_id", unguard(doc_id.strip()), ids, f" of batch {value}")
    cell = row.cells["label"].strip()
    for request in reversed(requests):
        if request["label"] in {cell_to_label(cell, multi_label=request["several"]), *_readings(cell)}:
            return request
    exported = requests[-1]["label"] or NO_CLASS
    raise ReviewError(
        f"label was {exported!r} when exported and is {cell!r} now; restore it, and write into correct_label"
    )


def _readings(cell: str) -> list[str]:
    """Return what a cell may have been: with our apostrophe or without, and white space lost or not."""
    return list(dict.fromkeys([unguard(cell), cell, unguard(cell.strip()), cell.strip()]))


def _unknown_id(column: str, value: str, exported: Sequence[str], scope: str = "") -> ReviewError:
    """Return the error for an id that was not exported, with what a spreadsheet may have done to it."""
    if original := original_value(value, exported):
        return ReviewError(
            f"{column} {value!r} is how a spreadsheet writes {original!r}; make the column text, and copy it again "
            "from the exported file"
        )
    if not value:
        return ReviewError(f"{column} is empty; copy it again from the exported file")
    return ReviewError(f"{column} {value!r}{scope} was not given out for review; copy it again from the exported file")


def _correct_label(cell: str, request: ReviewRequest, sheet: Sheet, context: ReviewContext) -> tuple[str, bool]:
    """Return the label that a cell means, several joined, and whether one of its classes is new."""
    multi_label = bool(request["several"])
    if multi_label and cell.casefold() == NO_CLASS:
        return "", False
    if cell.casefold() == CONFIRMED and CONFIRMED not in {name.casefold() for name in context.classes}:
        return request["label"], False
    names = _split_cell(cell) if multi_label else [unguard(cell)]
    names = [_class(name, sheet, context) for name in names]
    label = join_labels(names) if multi_label else names[0]
    return label, any(name not in context.classes for name in names)


def _class(name: str, sheet: Sheet, context: ReviewContext) -> str:
    """Return the class that a name means: equal, or equal but for upper and lower case.

    Raises:
        ReviewError: there is no such class, and it may not be added.
    """
    equal = [label for label in context.classes if label.casefold() == name.casefold()]
    if name in context.classes:
        return name
    if len(equal) == 1:
        return equal[0]
    if sheet.encoding == "Windows-1252" and not name.isascii():
        raise ReviewError(
            f"label {name!r} is not known, and the file is not UTF-8, so it may be misread; save it as CSV UTF-8"
        )
    if context.allow_new:
        return name
    classes = sorted(context.classes)
    if original := original_value(name, classes):
        raise ReviewError(
            f"label {name!r} is how a spreadsheet writes {original!r}; write {guard(original)} with the apostrophe"
        )
    similar = difflib.get_close_matches(name, classes, n=1)
    hint = f"did you mean {similar[0]!r}? Else" if similar else "correct it, or"
    joined = f" (several are joined with {LABEL_SEPARATOR})" if any(sign in name for sign in ",;/&") else ""
    raise ReviewError(f"label {name!r} is not known{joined}: {hint} take new ones with --new-labels")
