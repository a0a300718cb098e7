"""Import of a reviewed spreadsheet: every row is checked, and all answers are stored or none."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.dataset.reviews import latest_answers, read_answers, utc_now, write_answers
from pipeline.errors import AccountingError, ReviewError
from pipeline.review.checks import CONFIRMED, CheckedRows, ReviewContext, RowError, check_rows
from pipeline.review.spreadsheet import DELIMITERS, Sheet, read_sheet, write_rejected
from pipeline.schemas import REVIEW_REASONS, split_labels
from pipeline.workspace import Workspace, user_name

NEEDED = ("doc_id", "batch", "label", "correct_label")
LISTED = 10


@dataclass(frozen=True)
class ReviewImport:
    """What became of the rows of a file; the counts add up.

    Attributes:
        path: the file.
        encoding: its encoding and delimiter.
        rows: rows that are not blank.
        imported: new answers.
        unchanged: answers that are stored already, or twice in the file.
        not_reviewed: rows without an answer.
        row_errors: rows that do not fit.
        rejected: the file of these rows; None without any.
        confirmed: new answers that confirm the label, by the reason of the request.
        corrected: new answers that give another label, by the reason of the request.
        new_classes: classes that no document had.
    """

    path: Path
    encoding: str
    rows: int
    imported: int
    unchanged: int
    not_reviewed: int
    row_errors: Sequence[RowError]
    rejected: Path | None
    confirmed: Mapping[str, int]
    corrected: Mapping[str, int]
    new_classes: Sequence[str]


def import_review(
    workspace: Workspace,
    path: Path,
    reviewer: str | None = None,
    *,
    new_labels: bool = False,
    skip_bad: bool = False,
) -> ReviewImport:
    """Import the answers of a corrected file; a row that does not fit refuses the whole file.

    In the column `correct_label` `ok` or the same label confirms the label, another label corrects it, and an empty
    cell means not reviewed. Rows are found by batch and doc_id; texts are not read.

    Args:
        workspace: stores the reviews.
        path: an exported file, as a spreadsheet saved it.
        reviewer: the person; the user by default.
        new_labels: accept labels that no document has.
        skip_bad: import the rows that fit, and write the others beside the file.

    Raises:
        ReviewError: the file cannot be read, has no answers, or rows do not fit.
    """
    sheet = read_sheet(path, NEEDED)
    context = ReviewContext.of(workspace, allow_new=new_labels)
    checked = check_rows(sheet, context)
    errors = checked.row_errors
    if errors and not skip_bad:
        raise _refusal(path, sheet, errors)
    if not checked.answers and not errors:
        raise ReviewError(
            f"{path}: nothing is reviewed in {checked.not_reviewed:,} rows: write {CONFIRMED} or the right label into "
            "the column correct_label, and save"
        )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    reasons = {error.row: str(error) for error in errors}
    rejected = write_rejected(path, sheet, reasons) if errors else None
    stored = _store_new(workspace, checked, digest, reviewer or user_name())
    confirmed = Counter(row["why"] for row in stored if row["correct"] == row["label"])
    corrected = Counter(row["why"] for row in stored if row["correct"] != row["label"])
    added = [row for row in stored if row["new_class"]]
    classes = {name for row in added for name in (split_labels(row["correct"]) if row["several"] else [row["correct"]])}
    report = ReviewImport(
        path=path,
        encoding=f"{sheet.encoding}, with {DELIMITERS[sheet.delimiter]}s",
        rows=len(sheet.rows),
        imported=len(stored),
        unchanged=len(checked.answers) - len(stored) + checked.repeated,
        not_reviewed=checked.not_reviewed,
        row_errors=errors,
        rejected=rejected,
        confirmed={why: confirmed[why] for why in REVIEW_REASONS},
        corrected={why: corrected[why] for why in REVIEW_REASONS},
        new_classes=sorted(classes - context.classes),
    )
    if report.rows != report.imported + report.unchanged + report.not_reviewed + len(report.row_errors):
        raise AccountingError(f"{path}: {report.rows} rows became {report}")
    return report


def _refusal(path: Path, sheet: Sheet, row_errors: Sequence[RowError]) -> ReviewError:
    """Return the error that lists the rows that do not fit."""
    listed = "\n".join(f"  {error}" for error in row_errors[:LISTED])
    more = f"\n  and {len(row_errors) - LISTED:,} more" if len(row_errors) > LISTED else ""
    encoding = " (it is not UTF-8, and was read as Windows-1252)" if sheet.encoding == "Windows-1252" else ""
    return ReviewError(
        f"{path}: {len(row_errors):,} of {len(sheet.rows):,} rows do not fit, so nothing was imported{encoding}; "
        f"correct them, or import the others with --skip-bad\n{listed}{more}"
    )


def _store_new(workspace: Workspace, checked: CheckedRows, digest: str, reviewer: str) -> list[dict[str, Any]]:
    """Store the answers that are not stored yet, and return them."""
    stored = read_answers(workspace)
    columns = (stored[name].to_pylist() for name in ("batch", "doc_id", "file_digest"))
    imported = set(zip(*columns, strict=True))
    latest = {(row["batch"], row["doc_id"]): row for row in latest_answers(stored, ["batch", "doc_id"]).to_pylist()}
    content = ("correct", "note", "label", "model", "why", "content_hash")
    reviewed_at = utc_now()
    new = []
    for key, (_, answer) in checked.answers.items():
        last = latest.get(key)
        repeated = last is not None and all(last[name] == answer[name] for name in content)
        if (*key, digest) not in imported and not repeated:
            new.append({**answer, "reviewer": reviewer, "reviewed_at": reviewed_at, "file_digest": digest})
    write_answers(workspace, new)
    return new
