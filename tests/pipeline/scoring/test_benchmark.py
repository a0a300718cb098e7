"""The benchmark measures what it says, recommends what was fastest, and leaves the workspace alone."""

import shutil
import statistics
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import weather_rows

from flows.demo.bench import demo_subject
from pipeline.config import ScoringConfig
from pipeline.errors import BatchError, ModelError
from pipeline.models.session import usable_cores
from pipeline.models.variants import choose_variant
from pipeline.promotion.rule import Registration
from pipeline.scoring.benchmark import bench
from pipeline.scoring.benchmark_subject import take_rows, workspace_subject
from pipeline.scoring.benchmark_tuning import rows_of
from pipeline.scoring.labels import read_documents
from pipeline.scoring.plots import time_spent
from pipeline.workspace import Batch, Workspace

AddBatch = Callable[..., Batch]


def rounding(*seconds: float) -> float:
    """Return by which share times may be off that are told to four digits, at most."""
    return 0.0001 / min(seconds)


@pytest.fixture
def no_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not measure the peak of memory: that takes a process of its own, which imports everything again."""
    monkeypatch.setattr("pipeline.scoring.benchmark.peak_memory_mb", lambda *_: None)


def test_every_stage_is_measured_beside_the_whole_and_the_fastest_settings_are_recommended(
    workspace: Workspace, trained: Registration, add_batch: AddBatch
) -> None:
    assert trained.promoted
    add_batch(weather_rows(400), "night")
    files = sorted(path for path in workspace.root.rglob("*"))
    lines: list[str] = []
    found = bench(
        workspace_subject(workspace, "night", None),
        ScoringConfig(device="cpu", threads=2),
        rows=300,
        rounds=2,
        say=lines.append,
    )
    assert sorted(path for path in workspace.root.rglob("*")) == files
    assert (found["rows"], found["model"], found["provider"]) == (300, "weather@1", "CPUExecutionProvider")
    assert found["variants"].keys() == {"fp32", "int8"}
    for rates in (found["reading"], found["tokenizing"], *found["variants"].values(), found["end_to_end"]):
        assert rates["rows_per_s"] > 0
        assert rates["tokens_per_s"] > rates["rows_per_s"]
        assert rates["mb_per_s"] > 0
        assert len(rates["seconds"]) == 2
    whole = found["end_to_end"]
    alone = found["variants"][whole["precision"]]
    model, middle = statistics.median(alone["seconds"]), sorted(whole["seconds"])[1]
    assert whole["ceiling_share"] == pytest.approx(model / middle, rel=rounding(model) + rounding(middle))
    assert 0 <= whole["padding_share"] < 0.5
    assert whole["peak_memory_mb"] > 50
    told = found["evidence"]
    for kind in ("model", "end_to_end"):
        assert told[kind]["rows_per_s"] > 0
        without = alone["seconds"] if kind == "model" else whole["seconds"]
        times = [after / before for before, after in zip(without, told[kind]["seconds"], strict=True)]
        exact = 2 * rounding(*without, *told[kind]["seconds"])
        assert 1 + told[f"{kind}_cost"] == pytest.approx(statistics.median(times), rel=exact)
    best, tried = found["recommended"], found["settings_tried"]
    allowed = choose_variant("auto", trained.bundle.variants, on_gpu=False, title="").variant
    assert {trial["precision"] for trial in tried} == {"fp32", allowed}
    assert {trial["batch_tokens"] for trial in tried} == {2048, 4096, 8192, 16_384}
    fastest = max(tried, key=lambda trial: trial["rows_per_s"])
    assert {name: best[name] for name in ("precision", "batch_tokens", "threads")} == {
        name: fastest[name] for name in ("precision", "batch_tokens", "threads")
    }
    assert best["command"].startswith("nightlabel score --model weather --device cpu --variant")
    assert any("round 2 of 2" in line for line in lines)


@pytest.mark.usefixtures("no_peak")
def test_settings_that_are_given_are_not_tuned(workspace: Workspace, trained: Registration) -> None:
    assert trained.promoted
    config = ScoringConfig(device="cpu", variant="fp32", batch_tokens=512, threads=1)
    found = bench(workspace_subject(workspace, None, None), config, rounds=1, say=lambda _: None)
    (only,) = found["settings_tried"]
    assert (only["precision"], only["batch_tokens"], only["threads"]) == ("fp32", 512, 1)
    assert found["end_to_end"]["workers"] == 1


@pytest.mark.usefixtures("no_peak")
def test_half_of_the_cores_are_tried_too(workspace: Workspace, trained: Registration) -> None:
    assert trained.promoted
    config = ScoringConfig(device="cpu", variant="fp32", batch_tokens=512)
    found = bench(workspace_subject(workspace, None, None), config, rounds=1, say=lambda _: None)
    assert {trial["threads"] for trial in found["settings_tried"]} == {max(1, usable_cores() // 2), usable_cores()}


def test_the_first_rows_of_a_batch_are_a_batch_too(
    tmp_path: Path, add_batch: AddBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.ingest.parts.PART_ROWS", 40)
    monkeypatch.setattr("pipeline.ingest.readers.base.CHUNK_ROWS", 40)
    batch = add_batch(weather_rows(100), "night")
    some = take_rows(batch, tmp_path / "some", 50)
    assert (some.rows, [part["rows"] for part in some.manifest["parts"]]) == (50, [40, 10])
    ids = [row for part in some.manifest["parts"] for row in read_documents(some.path / part["file"], part)["doc_id"]]
    assert [row.as_py() for row in ids] == [f"w{number}" for number in range(50)]
    assert take_rows(batch, tmp_path / "all", 0) is batch
    assert 1 <= rows_of(batch, 1) <= rows_of(batch, 500) <= rows_of(batch, 10**9) == 40


def test_what_is_not_there_is_refused(workspace: Workspace, trained: Registration) -> None:
    assert trained.promoted
    with pytest.raises(BatchError, match="no batch 'nope'"):
        workspace_subject(workspace, "nope", None)
    with pytest.raises(ModelError, match="no model 'nope'"):
        workspace_subject(workspace, None, "nope")
    for batch in workspace.batches():
        shutil.rmtree(batch.path)
    with pytest.raises(BatchError, match="no documents in"):
        workspace_subject(workspace, None, "weather")


@pytest.mark.usefixtures("no_peak")
def test_without_a_workspace_the_demo_s_tickets_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.demo.bench.DEMO_ROWS", 300)
    monkeypatch.setattr(
        "flows.demo.bench.DEMO_RECIPE", ["training.epochs=1", "model.hidden_size=8", "training.baseline=false"]
    )
    with demo_subject(lambda _: None) as subject:
        config = ScoringConfig(device="cpu", variant="int8", batch_tokens=2048, threads=1)
        found = bench(subject, config, rounds=1, say=lambda _: None)
        folder = subject.batch.path
        assert pq.read_metadata(subject.batch.parts[0]).num_rows == subject.batch.rows
    assert found["subject"] == "the demo's tickets"
    assert found["end_to_end"]["precision"] == "int8"
    assert not folder.exists()


def test_the_picture_of_where_the_time_goes_is_a_small_png() -> None:
    shares = {"read": 0.01, "tokenize": 0.04, "batch": 0.02, "model": 0.96, "write": 0.02}
    png = time_spent(shares, 2, {"fp32": 9000.0, "int8": 15_000.0}, 8800.0, variant="fp32")
    assert png.startswith(b"\x89PNG")
    assert len(png) < 60_000
