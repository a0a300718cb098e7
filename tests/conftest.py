"""Tiny corpora, made the way a user makes them: a file, ingested."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from server import Office, open_office

from pipeline.config import IngestConfig, Recipe
from pipeline.ingest import ingest
from pipeline.promotion.register import Registration, train
from pipeline.workspace import Batch, Workspace

# A test that builds a model outside of any run says so to no server.
os.environ["PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW"] = "ignore"
torch.set_num_threads(1)  # models this small only wait for a second thread

REAL_DATA = Path(__file__).parents[2] / "shared" / "data"

# Small enough that a whole training takes about a second.
TINY = {
    "tokenizer": {"vocabulary_size": 500, "min_count": 1, "max_tokens": 40},
    "model": {
        "embedding_size": 16,
        "hidden_size": 16,
        "embedding_dropout": 0.0,
        "head_dropout": 0.1,
        "wide_buckets": 101,
    },
    "training": {"epochs": 8, "batch_size": 16, "learning_rate": 0.03, "layer_decay": 1.0},
}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "workspace")


@pytest.fixture
def add_batch(workspace: Workspace, tmp_path: Path) -> Callable[..., Batch]:
    """Ingest rows, given as dicts with text and optionally id, label and split."""

    def add(rows: Iterable[dict[str, Any]], batch_id: str = "one", **config: Any) -> Batch:
        source = tmp_path / f"{batch_id}.jsonl"
        source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        columns = sorted({key for row in rows for key in row})
        settings = {"split": "split"} if "split" in columns else {}
        ingest(workspace, [str(source)], IngestConfig(**settings, **config), batch_id=batch_id, replace=True)
        return workspace.batch(batch_id)

    return add


def one_hot(label_ids: Sequence[int] | NDArray[np.integer], classes: int) -> NDArray[np.bool_]:
    """Return bool [texts, classes], the class of each text."""
    rows: NDArray[np.bool_] = np.eye(classes, dtype=bool)[np.asarray(label_ids, dtype=int)]
    return rows


def weather_rows(count: int = 120, **extra: Any) -> list[dict[str, Any]]:
    """Two classes that a model can learn: the word decides, the rest is noise."""
    words = {"sun": ["bright", "warm", "beach", "shine"], "rain": ["wet", "cloud", "umbrella", "drops"]}
    labels = sorted(words)
    return [
        {
            "id": f"w{number}",
            "text": f"day {number} was {words[labels[number % 2]][number // 2 % 4]} and long {number * 7 % 13}",
            "label": labels[number % 2],
            **extra,
        }
        for number in range(count)
    ]


@pytest.fixture
def trained(workspace: Workspace, add_batch: Callable[..., Batch]) -> Registration:
    """A small model, registered as champion."""
    add_batch(weather_rows())
    return train(workspace, "weather", tiny_recipe())


def tiny_recipe(**training: Any) -> Recipe:
    return Recipe.model_validate({**TINY, "training": {**TINY["training"], **training}})


@pytest.fixture(scope="session")
def office(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    """One server and worker for all tests of a process that need one; a test takes a workspace of its own."""
    with open_office(tmp_path_factory.mktemp("office")) as office:
        yield office
