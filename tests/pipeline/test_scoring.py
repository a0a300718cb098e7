"""Labels: complete, resumable, reproducible, and refused where they could be wrong."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pyarrow.parquet as pq
import pytest
from conftest import weather_rows

from pipeline.build import Publication
from pipeline.config import ScoringConfig
from pipeline.device import CPU, CUDA, cuda_obstacle, open_session
from pipeline.errors import AccountingError, BatchError, DeviceError, ModelError
from pipeline.files import file_digest, read_json
from pipeline.labels import is_labelled
from pipeline.schemas import LABELS
from pipeline.scoring import Scorer, score_batch, score_part
from pipeline.workspace import Batch, Workspace

AddBatch = Callable[..., Batch]
ODD_TEXTS = ["", "   ", "wet " * 3000, "never seen words only", "我 bright 爱", "\U0001f600"]


@pytest.fixture
def parted(monkeypatch: pytest.MonkeyPatch, add_batch: AddBatch) -> Callable[[int], Batch]:
    """Make a batch of several parts of 40 rows."""

    def make(rows: int) -> Batch:
        monkeypatch.setattr("pipeline.ingest.parts.PART_ROWS", 40)
        monkeypatch.setattr("pipeline.ingest.rows.CHUNK_ROWS", 40)
        monkeypatch.setattr("pipeline.ingest.jsonlines.CHUNK_ROWS", 40)
        texts = [{**row, "label": None} for row in weather_rows(rows)]
        texts += [{"id": f"odd{n}", "text": text} for n, text in enumerate(ODD_TEXTS)]
        return add_batch(texts, "night")

    return make


def scorer_of(trained: Publication, **config: object) -> Scorer:
    return Scorer(trained.bundle, ScoringConfig(device="cpu", **config))


def read_labels(folder: Path) -> list[dict[str, object]]:
    parts = sorted(folder.glob("*.parquet"))
    return [row for path in parts for row in pq.read_table(path, partitioning=None).to_pylist()]


def test_every_document_gets_its_row_in_order(
    workspace: Workspace, trained: Publication, parted: Callable[[int], Batch]
) -> None:
    batch = parted(100)
    report = score_batch(workspace, batch, scorer_of(trained))
    rows = read_labels(report.path)
    assert [row["doc_id"] for row in rows] == [*(f"w{n}" for n in range(100)), *(f"odd{n}" for n in range(6))]
    assert report.counts["empty"] == 2
    assert sum(report.counts.values()) == report.rows == batch.rows == 106
    assert len(report.parts) == 3
    for row in rows:
        if row["status"] == "empty":
            assert (row["label"], row["confidence"], row["scores"]) == (None, None, None)
        else:
            assert sum(row["scores"]) == pytest.approx(1, abs=1e-5)  # type: ignore[arg-type]
            assert row["confidence"] == max(row["scores"])  # type: ignore[type-var]
            assert row["label"] == trained.bundle.labels[int(np.argmax(row["scores"]))]  # type: ignore[arg-type]
    assert pq.read_schema(report.path / report.parts[0].file).remove_metadata() == LABELS
    learnt = sum(row["label"] == weather["label"] for row, weather in zip(rows, weather_rows(100), strict=False))
    assert learnt > 95


def test_the_manifest_accounts_for_the_night(
    workspace: Workspace, trained: Publication, parted: Callable[[int], Batch]
) -> None:
    report = score_batch(workspace, parted(50), scorer_of(trained))
    manifest = read_json(report.path / "manifest.json")
    counts = manifest["counts"]
    assert counts["documents"] == counts["scored"] + counts["review"] + counts["empty"] == 56
    assert manifest["provider"] == CPU
    assert manifest["model"] == "weather@1"
    assert manifest["model_digest"] == trained.bundle.digest
    assert [part["sha256"] for part in manifest["parts"]] == [
        file_digest(report.path / part["file"]) for part in manifest["parts"]
    ]


def test_scoring_again_does_nothing(workspace: Workspace, trained: Publication, parted: Callable[[int], Batch]) -> None:
    batch = parted(50)
    first = score_batch(workspace, batch, scorer_of(trained))
    before = {path.name: (path.stat().st_mtime_ns, file_digest(path)) for path in first.path.iterdir()}
    again = score_batch(workspace, batch, scorer_of(trained))
    assert again.skipped
    assert again.counts == first.counts
    assert before == {path.name: (path.stat().st_mtime_ns, file_digest(path)) for path in first.path.iterdir()}
    assert is_labelled(workspace, batch, "weather")


@pytest.mark.parametrize("damage", ["deleted", "cut off"])
def test_a_lost_part_alone_is_restored_byte_for_byte(
    workspace: Workspace, trained: Publication, parted: Callable[[int], Batch], damage: str
) -> None:
    batch = parted(100)
    report = score_batch(workspace, batch, scorer_of(trained))
    lost = report.path / "part-00001.parquet"
    digest, kept = file_digest(lost), (report.path / "part-00000.parquet").stat().st_mtime_ns
    if damage == "deleted":
        lost.unlink()
        assert not is_labelled(workspace, batch, "weather")
    else:
        lost.write_bytes(lost.read_bytes()[:100])
    again = score_batch(workspace, batch, scorer_of(trained))
    assert [part.skipped for part in again.parts] == [True, False, True]
    assert file_digest(lost) == digest
    assert (report.path / "part-00000.parquet").stat().st_mtime_ns == kept
    assert is_labelled(workspace, batch, "weather")


def test_a_run_killed_between_parts_is_finished_by_running_it_again(
    workspace: Workspace, trained: Publication, parted: Callable[[int], Batch]
) -> None:
    batch = parted(100)
    score_part(workspace, batch, batch.manifest["parts"][0], scorer_of(trained))
    assert not is_labelled(workspace, batch, "weather")  # no manifest, so readers see nothing
    report = score_batch(workspace, batch, scorer_of(trained))
    assert [part.skipped for part in report.parts] == [True, False, False]
    assert sum(report.counts.values()) == batch.rows


def test_other_settings_or_documents_are_scored_again(
    workspace: Workspace, trained: Publication, add_batch: AddBatch
) -> None:
    batch = add_batch(weather_rows(30), "night")
    assert score_batch(workspace, batch, scorer_of(trained)).counts["review"] < 30
    stricter = score_batch(workspace, batch, scorer_of(trained, review_below=1.0))
    assert not stricter.skipped
    assert stricter.counts["review"] > 0
    replaced = add_batch(weather_rows(31), "night")
    assert not is_labelled(workspace, replaced, "weather")
    assert score_batch(workspace, replaced, scorer_of(trained)).rows == 31


def test_scores_do_not_depend_on_the_batch_a_row_was_in(trained: Publication, parted: Callable[[int], Batch]) -> None:
    batch = parted(100)
    tokens, _ = scorer_of(trained).encode(pq.read_table(batch.parts[0], partitioning=None)["text"].combine_chunks())
    small, _ = scorer_of(trained, batch_tokens=1).probabilities(tokens)
    large, _ = scorer_of(trained, batch_tokens=100_000).probabilities(tokens)
    assert np.array_equal(small, large, equal_nan=True)


def test_equal_texts_are_run_once_and_labelled_each(
    workspace: Workspace, trained: Publication, add_batch: AddBatch
) -> None:
    batch = add_batch([{"id": f"r{n}", "text": "wet umbrella"} for n in range(50)], "night")
    report = score_batch(workspace, batch, scorer_of(trained))
    assert report.parts[0].tokens == 2
    assert report.counts["scored"] + report.counts["review"] == 50


def test_a_changed_documents_part_is_not_scored(
    workspace: Workspace, trained: Publication, add_batch: AddBatch
) -> None:
    batch = add_batch(weather_rows(30), "night")
    data = bytearray(batch.parts[0].read_bytes())
    data[len(data) // 2] ^= 1
    batch.parts[0].write_bytes(data)
    with pytest.raises(BatchError, match=r"part-00000.parquet is not the file that was committed.*--replace"):
        score_batch(workspace, batch, scorer_of(trained))
    assert not list(workspace.labels_of("weather", "night").glob("*"))


def test_rows_that_do_not_add_up_fail_the_batch(
    workspace: Workspace, trained: Publication, add_batch: AddBatch
) -> None:
    batch = add_batch(weather_rows(30), "night")
    manifest = read_json(batch.path / "manifest.json")
    manifest["counts"]["documents"] = 31
    (batch.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(AccountingError, match="31 documents became"):
        score_batch(workspace, workspace.batch("night"), scorer_of(trained))
    assert not is_labelled(workspace, workspace.batch("night"), "weather")


def test_a_model_that_gives_no_numbers_is_not_taken_for_empty_texts(
    workspace: Workspace, trained: Publication, add_batch: AddBatch
) -> None:
    model = onnx.load(trained.bundle.onnx_path)
    bias = next(weight for weight in model.graph.initializer if weight.name == "output_bias")
    bias.CopyFrom(onnx.numpy_helper.from_array(np.full(2, np.nan, np.float32), "output_bias"))
    scorer = scorer_of(trained)
    scorer.session = onnxruntime.InferenceSession(model.SerializeToString())
    with pytest.raises(ModelError, match="weather@1 gives no probabilities"):
        score_batch(workspace, add_batch(weather_rows(30), "night"), scorer)
    assert not list(workspace.labels_of("weather", "night").glob("*"))


@pytest.mark.skipif(cuda_obstacle() is None, reason="a GPU may be here")
def test_cuda_where_there_is_none_fails_with_the_cure_and_auto_says_so(
    trained: Publication, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(DeviceError, match=r"device cuda cannot be used: .*(driver|install)"):
        open_session(trained.bundle.onnx_path, device="cuda")
    session = open_session(trained.bundle.onnx_path, device="auto")
    assert session.get_providers() == [CPU]
    assert "SCORING ON THE CPU" in caplog.text


@pytest.mark.gpu
@pytest.mark.skipif(cuda_obstacle() is not None, reason="needs a GPU and onnxruntime-gpu")
def test_cuda_gives_the_labels_of_the_cpu(trained: Publication, add_batch: AddBatch) -> None:
    texts = pq.read_table(add_batch(weather_rows(100), "night").parts[0], partitioning=None)["text"].combine_chunks()
    scorer = Scorer(trained.bundle, ScoringConfig(device="cuda"))
    assert scorer.provider == CUDA
    tokens, _ = scorer.encode(texts)
    on_cpu, _ = scorer_of(trained).probabilities(tokens)
    np.testing.assert_allclose(scorer.probabilities(tokens)[0], on_cpu, atol=1e-3)
