"""Tiny corpora, made the way a user makes them: a file, ingested. And which tests are slow."""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from server import SECONDS, Office, open_office

from pipeline.config import IngestConfig, Recipe
from pipeline.ingest import ingest
from pipeline.models.registry import Registry
from pipeline.promotion.register import train
from pipeline.promotion.rule import Registration
from pipeline.workspace import Batch, Workspace

# A test that builds a model outside of any run says so to no server.
os.environ["PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW"] = "ignore"
# A flow that finds no server fails at once, where Prefect would start one: such a test has to ask for `server`.
os.environ["PREFECT_SERVER_EPHEMERAL_ENABLED"] = "false"
torch.set_num_threads(1)  # models this small only wait for a second thread

# Fixtures that start programs: whatever asks for one of them, if only by way of another fixture, is slow.
STARTERS = {"services", "server", "chromium", "team", "start_up"}

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


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function) and STARTERS & set(item.fixturenames):
            item.add_marker(pytest.mark.slow)


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


@pytest.fixture(scope="session")
def weather_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, Registration]:
    """A workspace with a batch and the small model that learnt from it; a test takes a copy."""
    root = tmp_path_factory.mktemp("weather")
    workspace, source = Workspace(root / "workspace"), root / "one.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in weather_rows()), encoding="utf-8")
    ingest(workspace, [str(source)], IngestConfig(), batch_id="one")
    return workspace, train(workspace, "weather", tiny_recipe())


@pytest.fixture
def trained(workspace: Workspace, weather_model: tuple[Workspace, Registration]) -> Registration:
    """A small model, registered as champion."""
    place, registration = weather_model
    shutil.copytree(place.root, workspace.root, dirs_exist_ok=True)
    return replace(registration, bundle=Registry(workspace).find("weather"))


def tiny_recipe(**training: Any) -> Recipe:
    return Recipe.model_validate({**TINY, "training": {**TINY["training"], **training}})


@pytest.fixture(scope="module")
def server() -> Iterator[None]:
    """A temporary server, for flows that a test calls."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=int(SECONDS)):
        yield


@pytest.fixture(scope="session")
def services(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder in which a server and a worker keep everything."""
    return tmp_path_factory.mktemp("office")


@pytest.fixture(scope="session")
def office(services: Path) -> Iterator[Office]:
    """One server and worker for all tests of a process that need one; a test takes a workspace of its own."""
    with open_office(services) as office:
        yield office
