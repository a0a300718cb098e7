"""Commands that give rows to people, and take their answers back."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from flows.commands.options import ModelSpec, Workspace, console, show

DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t"}


def review_export(
    batch: Annotated[list[str] | None, typer.Option(help="Labelled batches; the newest night if not given.")] = None,
    model: ModelSpec = None,
    rows: Annotated[int, typer.Option(min=1, help="Most rows to give out.")] = 100,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where to write the table.")] = Path("review.csv"),
    suspicious: Annotated[
        bool, typer.Option("--suspicious", help="A third of the rows are training labels that look wrong.")
    ] = False,
    delimiter: Annotated[
        Literal["comma", "semicolon", "tab"],
        typer.Option(help="Between the cells; semicolon where a spreadsheet writes 1,5 for one and a half."),
    ] = "comma",
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite a file that is there.")] = False,
    workspace: Workspace = "workspace",
) -> None:
    """Write the rows that are worth a person's minute as a table for a spreadsheet.

    A third of the rows, or 30 if that is more, but never more than half, are a random sample of those that the model
    is sure of, to measure how many of these are right. The others are those that it is least sure of. Different
    texts only, and none that was reviewed before.

    In the column correct_label write ok where the label is right, the right label where it is wrong, and nothing
    where you did not look. Several labels are joined with |, and (none) means none of them.

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
    console.print(f"Table: {exported.path}\nNext: nightlabel review import {exported.path}", soft_wrap=True)


def review_import(
    file: Annotated[Path, typer.Argument(metavar="FILE")],
    by: Annotated[str | None, typer.Option(metavar="NAME", help="Who reviewed; you if not given.")] = None,
    new_labels: Annotated[bool, typer.Option("--new-labels", help="Take labels that no document has yet.")] = False,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Import what fits; the other rows are written to FILE.rejected.csv.")
    ] = False,
    workspace: Workspace = "workspace",
) -> None:
    """Take a reviewed table back: from the next training on its labels count.

    Comma, semicolon or tab between the cells, UTF-8, UTF-16 or Windows-1252: as spreadsheets save it. A row that does
    not fit refuses all of it, unless --skip-bad is given. The same file twice changes nothing; a later review of a text
    counts instead of an earlier one.

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
    console.print("Next: nightlabel train" if imported.imported else "Nothing is new.", soft_wrap=True)
