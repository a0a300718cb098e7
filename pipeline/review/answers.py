"""Answers of people, from a spreadsheet back into the workspace: every row checked, all of them kept or none."""

import csv
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.dataset.reviews import latest_answers, read_answers, utc_now, write_answers
from pipeline.errors import AccountingError, ReviewError
from pipeline.files import atomic_path
from pipeline.review.checks import CONFIRMED, Checked, ReviewContext, RowError, check_rows
from pipeline.review.spreadsheet import DELIMITERS, Sheet, read_sheet
from pipeline.schemas import REVIEW_REASONS, split_labels
from pipeline.workspace import Workspace, user_name

NEEDED = ("doc_id", "batch", "label", "correct_label")
LISTED = 10


@dataclass(frozen=True)
class ReviewImport:
    """What became of the rows of a file; they add up.

    Attributes:
        path: the file.
        encoding: its encoding and delimiter.
        rows: that are not blank.
        imported: answers that are new.
        unchanged: answers that were there already, or stand twice in the file.
        not_reviewed: rows without an answer.
        refusals: rows that were left out.
        rejected: where these are now; None without any.
        right: new answers that found the label right, by why they had been asked for.
        corrected: those that gave another one.
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
    """Take the answers of a corrected file; a row that does not fit refuses all of it.

    In its column `correct_label` `ok` or the same label says that the label is right, another label that it is not,
    and an empty cell that nobody looked. Rows are found by batch and doc_id; texts are not read.

    Args:
        workspace: where reviews are kept.
        path: what a spreadsheet saved of an exported file.
        reviewer: who reviewed; the user if not given.
        new_labels: take labels that no document has.
        skip_bad: keep what fits, and write the other rows beside the file.

    Raises:
        ReviewError: the file cannot be read, has no answers, or rows do not fit.
    """
    sheet = read_sheet(path, NEEDED)
    context = ReviewContext.of(workspace, allow_new=new_labels)
    checked = check_rows(sheet, context)
    if checked.row_errors and not skip_bad:
        raise ReviewError(_complain(path, sheet, checked.row_errors))
    if not checked.answers and not checked.row_errors:
        raise ReviewError(
            f"{path}: nothing is reviewed in {checked.not_reviewed:,} rows: write {CONFIRMED} or the right label into "
            "the column correct_label, and save"
        )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    rejected = _write_rejected(path, sheet, checked.row_errors) if checked.row_errors else None
    kept = _keep(workspace, checked, digest, reviewer or user_name())
    return _report(path, sheet, checked, kept, rejected, context)


def _complain(path: Path, sheet: Sheet, row_errors: Sequence[RowError]) -> str:
    listed = "\n".join(f"  {refusal}" for refusal in row_errors[:LISTED])
    more = f"\n  and {len(row_errors) - LISTED:,} more" if len(row_errors) > LISTED else ""
    read = "" if sheet.encoding != "Windows-1252" else " (it is not UTF-8, and was read as Windows-1252)"
    return (
        f"{path}: {len(row_errors):,} of {len(sheet.rows):,} rows do not fit, so nothing was imported{read}; "
        f"mend them, or import the others with --skip-bad\n{listed}{more}"
    )


def _write_rejected(path: Path, sheet: Sheet, row_errors: Sequence[RowError]) -> Path:
    """Write the refused rows as they stand beside the file, each with the reason, and return where."""
    target = path.with_name(f"{path.name}.rejected.csv")
    raw = {row.number: row.raw for row in sheet.rows}
    with atomic_path(target) as temporary, temporary.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file, dialect="excel", delimiter=sheet.delimiter)
        writer.writerow([*sheet.header, "refused because"])
        for refusal in row_errors:
            cells = [*raw[refusal.row], *[""] * len(sheet.header)][: max(len(sheet.header), len(raw[refusal.row]))]
            writer.writerow([*cells, str(refusal)])
    return target


def _keep(workspace: Workspace, checked: Checked, digest: str, reviewer: str) -> list[dict[str, Any]]:
    """Keep the answers that are new, and return them."""
    before = read_answers(workspace)
    seen = {
        (*key, digest)
        for *key, digest in zip(*(before[name].to_pylist() for name in ("batch", "doc_id", "file_digest")), strict=True)
    }
    last = {(row["batch"], row["doc_id"]): row for row in latest_answers(before, ["batch", "doc_id"]).to_pylist()}
    at = utc_now()
    new = [
        {**answer, "reviewer": reviewer, "reviewed_at": at, "file_digest": digest}
        for key, (_, answer) in checked.answers.items()
        if (*key, digest) not in seen and not _same(last.get(key), answer)
    ]
    write_answers(workspace, new)
    return new


def _same(last: Mapping[str, Any] | None, answer: Mapping[str, Any]) -> bool:
    """Return whether an answer says nothing that was not said before."""
    decided = ("correct", "note", "label", "model", "why", "content_hash")
    return last is not None and all(last[name] == answer[name] for name in decided)


def _report(
    path: Path,
    sheet: Sheet,
    checked: Checked,
    kept: Sequence[Mapping[str, Any]],
    rejected: Path | None,
    context: ReviewContext,
) -> ReviewImport:
    confirmed = Counter(row["why"] for row in kept if row["correct"] == row["label"])
    corrected = Counter(row["why"] for row in kept if row["correct"] != row["label"])
    names = (split_labels(row["correct"]) if row["several"] else [row["correct"]] for row in kept if row["new_class"])
    report = ReviewImport(
        path=path,
        encoding=f"{sheet.encoding}, with {DELIMITERS[sheet.delimiter]}s",
        rows=len(sheet.rows),
        imported=len(kept),
        unchanged=len(checked.answers) - len(kept) + checked.repeated,
        not_reviewed=checked.not_reviewed,
        row_errors=checked.row_errors,
        rejected=rejected,
        confirmed={why: confirmed[why] for why in REVIEW_REASONS},
        corrected={why: corrected[why] for why in REVIEW_REASONS},
        new_classes=sorted({one for own in names for one in own} - context.classes),
    )
    if report.rows != report.imported + report.unchanged + report.not_reviewed + len(report.row_errors):
        raise AccountingError(f"{path}: {report.rows} rows became {report}")
    return report
