"""What a person wrote into a review, checked against what was asked, row by row."""

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
NO_CLASS = "(none)"  # of several possible labels none

Asked = Mapping[str, Any]  # a row of `ASKED`


def label_to_cell(label: str, *, several: bool) -> str:
    """Return a label as its cell shows it."""
    return NO_CLASS if several and not label else guard(label)


def cell_to_label(cell: str, *, several: bool) -> str:
    """Return the label that a cell shows."""
    if not several:
        return unguard(cell)
    return "" if cell == NO_CLASS else join_labels(one.strip() for one in split_labels(unguard(cell)) if one.strip())


@dataclass(frozen=True)
class RowError:
    """A row that does not fit: its number as the spreadsheet shows it, and why."""

    row: int
    reason: str

    def __str__(self) -> str:
        return f"row {self.row:,}: {self.reason}"


@dataclass
class Checked:
    """The rows of a sheet, by what becomes of them.

    Attributes:
        answers: those that fit, as in `REVIEWS` but for who, when and from where, each with its row.
        refusals: those that do not.
        repeated: those that say again what an earlier one says.
        not_reviewed: those without an answer.
    """

    answers: dict[DocumentKey, tuple[SheetRow, dict[str, Any]]] = field(default_factory=dict)
    row_errors: list[RowError] = field(default_factory=list)
    repeated: int = 0
    not_reviewed: int = 0


@dataclass(frozen=True)
class ReviewContext:
    """What answers are checked against.

    Attributes:
        asked: all rows that were given out, by batch and doc_id, the newest last.
        classes: of each model and of all documents.
        allow_new: whether others may come in.
    """

    asked: Mapping[DocumentKey, Sequence[Asked]]
    classes: frozenset[str]
    allow_new: bool

    @classmethod
    def of(cls, workspace: Workspace, *, allow_new: bool) -> "ReviewContext":
        asked: dict[DocumentKey, list[Asked]] = {}
        for row in read_review_requests(workspace).to_pylist():
            asked.setdefault((row["batch"], row["doc_id"]), []).append(row)
        if not asked:
            raise ReviewError(f"nothing was given out for review from {workspace.root} yet: nightlabel review export")
        models = {row["model"].partition("@")[0] for rows in asked.values() for row in rows}
        return cls(asked, frozenset(_classes(workspace, models)), allow_new)


def _classes(workspace: Workspace, models: set[str]) -> set[str]:
    """Return the classes that some models give, that documents have, and that people have added."""
    found = reviewer_classes(workspace)
    for batch in workspace.batches():
        for label in batch.manifest["labels"]:
            found.update(split_labels(label) if batch.multi_label else [label])
    for model in models:
        for manifest in workspace.labels_manifests(model):
            found.update(read_json(manifest)["classes"])
    return found


def check_rows(sheet: Sheet, context: ReviewContext) -> Checked:
    """Return what becomes of each row of a sheet."""
    checked, disputed = Checked(), set[DocumentKey]()
    for row in sheet.rows:
        if not row.cells["correct_label"].strip():
            checked.not_reviewed += 1
            continue
        try:
            answer = _answer(row, sheet, context)
        except ReviewError as error:
            checked.row_errors.append(RowError(row.number, str(error)))
            continue
        key = (answer["batch"], answer["doc_id"])
        first, given = checked.answers.setdefault(key, (row, answer))
        if given["correct"] != answer["correct"]:
            disputed.add(key)
            checked.row_errors.append(_dispute(row, first, key))
        elif first is not row:
            checked.repeated += 1
    for key in disputed:  # nobody can tell which of the two is meant
        first, _ = checked.answers.pop(key)
        checked.row_errors.append(
            RowError(first.number, f"doc_id {key[1]!r} has another answer further down; keep one")
        )
    checked.row_errors.sort(key=lambda refusal: refusal.row)
    return checked


def _dispute(row: SheetRow, first: SheetRow, key: DocumentKey) -> RowError:
    return RowError(row.number, f"doc_id {key[1]!r} has another answer in row {first.number:,}; keep one of the two")


def _answer(row: SheetRow, sheet: Sheet, context: ReviewContext) -> dict[str, Any]:
    """Return what a row says.

    Raises:
        ReviewError: it does not fit, and why.
    """
    if row.overflows:
        raise ReviewError("has more cells than the header: a text was torn apart; save with quotation marks")
    asked = _question(row, context)
    correct, new = _correct(row.cells["correct_label"].strip(), asked, sheet, context)
    note = unguard(row.cells.get("note", "").strip())
    return {**asked, "correct": correct, "new_class": new, "note": note}


def _question(row: SheetRow, context: ReviewContext) -> Asked:
    """Return what was asked in a row: the newest question with its ids and its label."""
    batch, doc_id = row.cells["batch"], row.cells["doc_id"]
    keys = [(one, other) for one in _readings(batch) for other in _readings(doc_id)]
    found = next((context.asked[key] for key in keys if key in context.asked), None)
    if found is None:
        raise ReviewError(_unknown_id(unguard(batch.strip()), unguard(doc_id.strip()), context))
    cell = row.cells["label"].strip()
    same = [one for one in found if one["label"] in {cell_to_label(cell, several=one["several"]), *_readings(cell)}]
    if not same:
        was = found[-1]["label"] or NO_CLASS
        raise ReviewError(
            f"label was {was!r} when exported and is {cell!r} now; restore it, and write into correct_label"
        )
    return same[-1]


def _readings(cell: str) -> list[str]:
    """Return what a cell may have been: with our apostrophe or without, and white space lost or not."""
    return list(dict.fromkeys([unguard(cell), cell, unguard(cell.strip()), cell.strip()]))


def _unknown_id(batch: str, doc_id: str, context: ReviewContext) -> str:
    ids = [one for of, one in context.asked if of == batch]
    if not ids:
        batches = sorted({of for of, _ in context.asked})
        kind, value, there = "batch", batch, batches
    else:
        kind, value, there = "doc_id", doc_id, ids
    if original := original_value(value, there):
        return (
            f"{kind} {value!r} is how a spreadsheet writes {original!r}; make the column text, and copy it again from "
            "the exported file"
        )
    if not value:
        return f"{kind} is empty; copy it again from the exported file"
    beside = "" if kind == "batch" else f" of batch {batch}"
    return f"{kind} {value!r}{beside} was not given out for review; copy it again from the exported file"


def _correct(cell: str, asked: Asked, sheet: Sheet, context: ReviewContext) -> tuple[str, bool]:
    """Return the label that a person means, several joined, and whether a class of it is new."""
    several = bool(asked["several"])
    if several and cell.casefold() == NO_CLASS:
        return "", False
    wanted = [unguard(cell)]
    if several:
        wanted = [one.strip() for one in split_labels(unguard(cell)) if one.strip()]
    if cell.casefold() == CONFIRMED and CONFIRMED not in {one.casefold() for one in context.classes}:
        return asked["label"], False
    names = [_class(one, sheet, context) for one in wanted]
    label = join_labels(names) if several else names[0]
    return label, any(name not in context.classes for name in names)


def _class(wanted: str, sheet: Sheet, context: ReviewContext) -> str:
    """Return the class that a person means: written alike, or alike but for upper and lower case."""
    if wanted in context.classes:
        return wanted
    alike = [name for name in context.classes if name.casefold() == wanted.casefold()]
    if len(alike) == 1:
        return alike[0]
    guessed = sheet.encoding == "Windows-1252" and not wanted.isascii()
    if context.allow_new and not guessed:
        return wanted
    raise ReviewError(_unknown_class(wanted, context, guessed=guessed))


def _unknown_class(wanted: str, context: ReviewContext, *, guessed: bool) -> str:
    if guessed:
        return f"label {wanted!r} is not known, and the file is not UTF-8, so it may be misread; save it as CSV UTF-8"
    near = difflib.get_close_matches(wanted, sorted(context.classes), n=1)
    original = original_value(wanted, sorted(context.classes))
    if original:
        return f"label {wanted!r} is how a spreadsheet writes {original!r}; write {guard(original)} with the apostrophe"
    meant = f"did you mean {near[0]!r}? Else" if near else "correct it, or"
    several = f" (several are joined with {LABEL_SEPARATOR})" if any(sign in wanted for sign in ",;/&") else ""
    return f"label {wanted!r} is not known{several}: {meant} take new ones with --new-labels"
