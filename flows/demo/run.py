"""The whole pipeline over made-up support tickets, through the real flows."""

import time
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

from flows.demo.corpus import write_tickets
from flows.ingest import ingest
from flows.reports.ingest import ingest_report
from flows.reports.labels import sample_table
from flows.reports.model import model_report
from flows.score import score
from flows.train import train
from pipeline.config import IngestConfig
from pipeline.workspace import Workspace

MODEL = "tickets"
LABELLED_BATCH, NIGHT_BATCH = "labelled", "2026-11-20"
TARGET_PRECISION = 0.95


def run_demo(root: Path, console: Console) -> None:
    """Make up tickets, ingest them, train, score a night, and print the labelled rows.

    Args:
        root: the workspace of the demo.
        console: prints the reports.
    """
    started = time.monotonic()
    workspace = Workspace(root).ensure_writable()
    path = str(root)
    files = write_tickets(root / "raw")
    columns = IngestConfig(text=["subject", "body"], id="id")

    console.rule("1 of 3  Ingest: raw files become documents")
    labelled = ingest(
        [str(files.tickets)], columns.model_copy(update={"label": "queue"}), batch=LABELLED_BATCH, workspace=path
    )
    _show(console, ingest_report(labelled))

    console.rule("2 of 3  Train: labelled documents become a model")
    registration = train(MODEL, batches=[LABELLED_BATCH], target_precision=TARGET_PRECISION, workspace=path)
    _show(console, model_report(registration, pictures=False))

    console.rule("3 of 3  Score: the night's batch is labelled")
    night = ingest([str(files.night)], columns, batch=NIGHT_BATCH, workspace=path)
    _show(console, ingest_report(night))
    (report,) = score([NIGHT_BATCH], MODEL, workspace=path)
    scored, review, empty = (report.counts[status] for status in ("scored", "review", "empty"))
    counts = f"{scored:,} scored + {review:,} for review + {empty:,} empty"
    _show(console, f"**The night: {report.rows:,} documents = {counts}; {night.rejects:,} rows were refused before.**")
    _show(console, sample_table(workspace, report))

    console.rule(f"Done in {time.monotonic() - started:.0f} s")
    console.print(
        f"Labels       {report.path}\n"
        f"Model        {registration.bundle.path} (its figures are in figures/)\n"
        f"Rejects      {workspace.rejects_dir(NIGHT_BATCH)}\n\n"
        "Your own data:\n"
        "  nightlabel ingest tickets.csv --text body --label queue\n"
        "  nightlabel train\n"
        "  nightlabel nightly --source new_tickets.csv --text body",
        soft_wrap=True,
        highlight=False,
    )


def _show(console: Console, markdown: str) -> None:
    console.print(Markdown(markdown), "")
