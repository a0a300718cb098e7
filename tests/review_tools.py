"""A workspace with a model of the weather and a night, and a person who fills tables in."""

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from conftest import tiny_recipe, weather_rows

from pipeline.config import DriftConfig, IngestConfig, ScoringConfig
from pipeline.ingest import ingest
from pipeline.models.registry import Registry
from pipeline.nights.finish import score_batch
from pipeline.promotion.register import train
from pipeline.promotion.rule import Registration
from pipeline.review.answers import ReviewImport, import_review
from pipeline.review.export import ReviewExport, export_review
from pipeline.scoring.scorer import Scorer
from pipeline.workspace import Workspace

Rows = Sequence[dict[str, Any]]
Cells = dict[str, str]

# The model knows half of the words: it is sure of some days, and not of the others.
NIGHT = [
    *({"id": f"n{row['id']}", "text": f"tonight {row['text']}"} for row in weather_rows(60)),
    {"id": "empty", "text": " "},
    *({"id": f"0{n}", "text": f"the foggy wet beach number {n}"} for n in range(60)),
]


class Office:
    """Where a model labels and people review."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.workspace = Workspace(root / "workspace")
        self.table = root / "review.csv"

    def ingest(self, name: str, rows: Rows, **config: Any) -> None:
        path = self.root / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        ingest(self.workspace, [str(path)], IngestConfig(**config), batch_id=name, replace=True)

    def train(self) -> Registration:
        return train(self.workspace, "weather", tiny_recipe(baseline=False))

    def label(self, *names: str) -> None:
        with Scorer(Registry(self.workspace).find(), ScoringConfig(device="cpu", threads=1)) as scorer:
            for name in names:
                score_batch(self.workspace, self.workspace.batch(name), scorer, DriftConfig(hold=False))

    def export(self, *batches: str, **options: Any) -> ReviewExport:
        return export_review(self.workspace, self.table, batches, replace=True, **options)

    def rows(self) -> list[Cells]:
        with self.table.open(encoding="utf-8-sig", newline="") as file:
            return list(csv.DictReader(file))

    def save(self, rows: Sequence[Cells], encoding: str = "utf-8-sig", delimiter: str = ",") -> None:
        with self.table.open("w", encoding=encoding, newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)

    def fill_in(self, answer: Callable[[int, Cells], str], **how: str) -> list[Cells]:
        """Write answers into the table as a person would, and save it."""
        rows = [{**row, "correct_label": answer(number, row)} for number, row in enumerate(self.rows())]
        self.save(rows, **how)
        return rows

    def take_in(self, reviewer: str = "ada", **options: Any) -> ReviewImport:
        return import_review(self.workspace, self.table, reviewer, **options)


def open_office(root: Path) -> Office:
    """Return an office with a history, a model, and a labelled night."""
    office = Office(root)
    office.ingest("history", weather_rows())
    office.train()
    office.ingest("2026-11-20", NIGHT)
    office.label("2026-11-20")
    return office


def other(label: str) -> str:
    return {"sun": "rain", "rain": "sun"}[label]
