"""The benchmark's subject in a workspace without a model: the demo's tickets and a model trained on them."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flows.demo.corpus import write_tickets
from pipeline.config import IngestConfig, load_recipe
from pipeline.ingest import ingest
from pipeline.promotion.register import train
from pipeline.scoring.benchmark_subject import Say, Subject
from pipeline.workspace import Workspace

DEMO_ROWS = 20_000
DEMO_RECIPE = ["training.epochs=2", "training.baseline=false"]


@contextmanager
def demo_subject(say: Say) -> Iterator[Subject]:
    """Make up tickets, and train a model on them for two epochs."""
    with tempfile.TemporaryDirectory(prefix="nightlabel-bench-") as folder:
        workspace = Workspace(folder)
        say("making up tickets and training a model on them (pass --workspace for your own)")
        files = write_tickets(Path(folder) / "raw", night=DEMO_ROWS)
        columns = IngestConfig(text=["subject", "body"], id="id")
        ingest(workspace, [str(files.tickets)], columns.model_copy(update={"label": "queue"}), batch_id="labelled")
        ingest(workspace, [str(files.night)], columns, batch_id="night")
        bundle = train(workspace, "demo", load_recipe("default", DEMO_RECIPE), batch_ids=["labelled"]).bundle
        yield Subject(workspace.batch("night"), bundle, "the demo's tickets")
