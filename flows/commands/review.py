"""Commands that export rows for people to review, and import their answers."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from flows.commands.options import ModelSpec, WorkspaceOption, print_line, show

DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t"}


def review_export(
    batch: Annotated[list[str] | None, typer.Option(help="Labelled batches; the newest if not given.")] = None,
    model: ModelSpec = None,
    rows: Annotated[int, typer.Option(min=1, help="Maximum rows.")] = 100,
    out: Annotated[Path, typer.Option(metavar="FILE", help="File to write.")] = Path("review.csv"),
    suspicious: Annotated[
        bool, typer.Option("--suspicious", help="Make a third of the rows suspected label errors of the training data.")
    ] = False,
    delimiter: Annotated[
        Literal["comma", "semicolon", "tab"],
        typer.Option(help="Cell delimiter; semicolon for a spreadsheet with decimal commas."),
    ] = "comma",
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite an existing file.")] = False,
    workspace: WorkspaceOption = "workspace",
) -> None:
    """Write rows for people to review as a table for a spreadsheet.

    A third of the rows, at least 30 and at most half, are a random sample of those labelled with confidence, to
    measure their precision. The others have the lowest confidence. Each text occurs once, and none was reviewed before.

    In the column correct_label write ok if the label is right, the right label if it is wrong, and nothing for a row
    you skipped. Join several labels with |; (none) means no label.

    Examples:

        nightlabel review export

        nightlabel review export --batch 2026-11-20 --rows 200 --out tickets.csv

        nightlabel review export --suspicious --delimiter semicolon
    """
    from flows.reports.review import export_report
    from pipeline.review.export import export_review
    from pipeline.workspace import Workspace

    exported = export_review(
        Workspace(workspace),
        out,
        batch or [],
        model,
        rows=rows,
        suspicious=suspicious,
        replace=replace,
        delimiter=DELIMITERS[delimiter],
    )
    show(export_report(exported))
    print_line(f"Table: {exported.path}\nNext: nightlabel review import {exported.path}")


def review_import(
    file: Annotated[Path, typer.Argument(metavar="FILE")],
    by: Annotated[str | None, typer.Option(metavar="NAME", help="Name of the reviewer; you if not given.")] = None,
    new_labels: Annotated[bool, typer.Option("--new-labels", help="Accept labels that no document has yet.")] = False,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Import the valid rows; write the others to FILE.rejected.csv.")
    ] = False,
    workspace: WorkspaceOption = "workspace",
) -> None:
    """Import a reviewed table: the next training uses its labels.

    Delimiter comma, semicolon or tab; UTF-8, UTF-16 or Windows-1252. One invalid row rejects the file, unless
    --skip-bad is given. Importing a file again changes nothing; a later review of a text replaces an earlier one.

    Examples:

        nightlabel review import review.csv

        nightlabel review import review.csv --by "Ada Lovelace" --skip-bad

        nightlabel review import review.csv --new-labels
    """
    from flows.reports.review import import_report
    from pipeline.review.answers import import_review
    from pipeline.workspace import Workspace

    imported = import_review(Workspace(workspace), file, by, new_labels=new_labels, skip_bad=skip_bad)
    show(import_report(imported))
    print_line("Next: nightlabel train" if imported.imported else "Nothing is new.")
