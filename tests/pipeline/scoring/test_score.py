"""Labels: complete, resumable, reproducible, and refused where they could be wrong."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import weather_rows

from pipeline.config import ScoringConfig
from pipeline.errors import AccountingError, BatchError, DeviceError, ModelError, ScoringError, StoppedError
from pipeline.files import file_digest, read_json
from pipeline.models.engine import Engine, HostRunner
from pipeline.models.session import CPU, CUDA, cuda_obstacle, open_session, processor_name
from pipeline.nights.finish import score_batch
from pipeline.promotion.rule import Registration
from pipeline.promotion.version import ModelVersion, predict_labels
from pipeline.schemas import LABELS
from pipeline.scoring.labels import is_labelled
from pipeline.scoring.score import score_part
from pipeline.scoring.scorer import Scorer
from pipeline.workspace import Batch, Workspace

AddBatch = Callable[..., Batch]
ODD_TEXTS = ["", "   ", "wet " * 3000, "never seen words only", "我 bright 爱", "\U0001f600"]


@pytest.fixture
def parted(monkeypatch: pytest.MonkeyPatch, add_batch: AddBatch) -> Callable[[int], Batch]:
    """Make a batch of several parts of 40 rows."""

    def make(rows: int) -> Batch:
        monkeypatch.setattr("pipeline.ingest.parts.PART_ROWS", 40)
        monkeypatch.setattr("pipeline.ingest.readers.base.CHUNK_ROWS", 40)
        texts = [{**row, "label": None} for row in weather_rows(rows)]
        texts += [{"id": f"odd{n}", "text": text} for n, text in enumerate(ODD_TEXTS)]
        return add_batch(texts, "night")

    return make


def scorer_of(trained: Registration, **config: object) -> Scorer:
    return Scorer(trained.bundle, ScoringConfig(**{"device": "cpu", "variant": "fp32", **config}))


def read_labels(folder: Path) -> list[dict[str, object]]:
    parts = sorted(folder.glob("*.parquet"))
    return [row for path in parts for row in pq.read_table(path, partitioning=None).to_pylist()]


def test_every_document_gets_its_row_in_order(
    workspace: Workspace, trained: Registration, parted: Callable[[int], Batch]
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
    workspace: Workspace, trained: Registration, parted: Callable[[int], Batch]
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


def test_scoring_again_does_nothing(
    workspace: Workspace, trained: Registration, parted: Callable[[int], Batch]
) -> None:
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
    workspace: Workspace, trained: Registration, parted: Callable[[int], Batch], damage: str
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
    workspace: Workspace, trained: Registration, parted: Callable[[int], Batch]
) -> None:
    batch = parted(100)
    score_part(workspace, batch, batch.manifest["parts"][0], scorer_of(trained))
    assert not is_labelled(workspace, batch, "weather")  # no manifest, so readers see nothing
    report = score_batch(workspace, batch, scorer_of(trained))
    assert [part.skipped for part in report.parts] == [True, False, False]
    assert sum(report.counts.values()) == batch.rows


def test_other_settings_or_documents_are_scored_again(
    workspace: Workspace, trained: Registration, add_batch: AddBatch
) -> None:
    batch = add_batch(weather_rows(30), "night")
    assert score_batch(workspace, batch, scorer_of(trained)).counts["review"] < 30
    stricter = score_batch(workspace, batch, scorer_of(trained, review_below=1.0))
    assert not stricter.skipped
    assert stricter.counts["review"] > 0
    replaced = add_batch(weather_rows(31), "night")
    assert not is_labelled(workspace, replaced, "weather")
    assert score_batch(workspace, replaced, scorer_of(trained)).rows == 31


def test_scores_do_not_depend_on_the_batch_a_row_was_in(trained: Registration, parted: Callable[[int], Batch]) -> None:
    texts = pq.read_table(parted(100).parts[0], partitioning=None)["text"].combine_chunks()
    small = scorer_of(trained, batch_tokens=1).label(texts).probabilities
    large = scorer_of(trained, batch_tokens=100_000, threads=1).label(texts).probabilities
    assert np.array_equal(small, large, equal_nan=True)


def test_equal_texts_are_run_once_and_labelled_each(
    workspace: Workspace, trained: Registration, add_batch: AddBatch
) -> None:
    batch = add_batch([{"id": f"r{n}", "text": "wet umbrella"} for n in range(50)], "night")
    report = score_batch(workspace, batch, scorer_of(trained))
    assert report.parts[0].tokens == 2
    assert report.counts["scored"] + report.counts["review"] == 50


def test_a_changed_documents_part_is_not_scored(
    workspace: Workspace, trained: Registration, add_batch: AddBatch
) -> None:
    batch = add_batch(weather_rows(30), "night")
    data = bytearray(batch.parts[0].read_bytes())
    data[len(data) // 2] ^= 1
    batch.parts[0].write_bytes(data)
    with pytest.raises(BatchError, match=r"part-00000.parquet is not the file that was committed.*--replace"):
        score_batch(workspace, batch, scorer_of(trained))
    assert not list(workspace.labels_dir("weather", "night").glob("*"))


def test_rows_that_do_not_add_up_fail_the_batch(
    workspace: Workspace, trained: Registration, add_batch: AddBatch
) -> None:
    batch = add_batch(weather_rows(30), "night")
    manifest = read_json(batch.path / "manifest.json")
    manifest["counts"]["documents"] = 31
    (batch.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(AccountingError, match="31 documents became"):
        score_batch(workspace, workspace.batch("night"), scorer_of(trained))
    assert not is_labelled(workspace, workspace.batch("night"), "weather")


def test_a_model_that_gives_no_numbers_is_not_taken_for_empty_texts(
    workspace: Workspace, trained: Registration, add_batch: AddBatch
) -> None:
    model = onnx.load(trained.bundle.onnx_path)
    bias = next(weight for weight in model.graph.initializer if weight.name == "output_bias")
    bias.CopyFrom(onnx.numpy_helper.from_array(np.full(2, np.nan, np.float32), "output_bias"))
    session = onnxruntime.InferenceSession(model.SerializeToString())
    scorer = with_runners(scorer_of(trained), HostRunner(session))
    with pytest.raises(ModelError, match=r"night part-00000.parquet, rows 1 to 30: weather@1 returns no probabilities"):
        score_batch(workspace, add_batch(weather_rows(30), "night"), scorer)
    assert not list(workspace.labels_dir("weather", "night").glob("*"))


class FailingRunner(HostRunner):
    """A real session that fails, as a device does, on what it is told to."""

    def __init__(self, session: onnxruntime.InferenceSession, fails: Callable[[np.ndarray], str | None]) -> None:
        super().__init__(session)
        self.fails, self.sizes = fails, list[int]()

    def run(self, token_ids: np.ndarray, lengths: np.ndarray, unknown: np.ndarray | None = None) -> np.ndarray:
        self.sizes.append(token_ids.size)
        if message := self.fails(token_ids):
            raise RuntimeError(message)
        return super().run(token_ids, lengths, unknown)


def with_runners(scorer: Scorer, *runners: HostRunner, batch_tokens: int = 4096) -> Scorer:
    scorer.engine = Engine(runners, scorer.engine.device, batch_tokens)
    return scorer


def failing(scorer: Scorer, fails: Callable[[np.ndarray], str | None], batch_tokens: int = 4096) -> FailingRunner:
    runner = FailingRunner(open_session(scorer.bundle.onnx_path, scorer.engine.device), fails)
    with_runners(scorer, runner, batch_tokens=batch_tokens)
    return runner


def test_when_memory_runs_out_batches_are_halved_and_the_labels_are_the_same(
    workspace: Workspace, trained: Registration, add_batch: AddBatch, caplog: pytest.LogCaptureFixture
) -> None:
    batch = add_batch(weather_rows(400), "night")
    expected = [file_digest(path) for path in score_batch(workspace, batch, scorer_of(trained)).path.glob("*.parquet")]
    shutil.rmtree(workspace.labels_dir("weather", "night"))
    scorer = scorer_of(trained)
    runner = failing(
        scorer, lambda ids: "BFCArena: Failed to allocate memory for requested buffer" if ids.size > 1500 else None
    )
    report = score_batch(workspace, batch, scorer)
    assert [file_digest(path) for path in report.path.glob("*.parquet")] == expected
    assert scorer.engine.batch_tokens == 1024
    assert max(runner.sizes) > 1500
    assert "continuing with 1,024 tokens a minibatch" in caplog.text


def test_when_small_batches_do_not_fit_either_the_run_fails_and_says_what_to_do(
    workspace: Workspace, trained: Registration, add_batch: AddBatch
) -> None:
    batch = add_batch(weather_rows(30), "night")
    scorer = scorer_of(trained)
    failing(scorer, lambda _: "CUDA failure 2: out of memory")
    with pytest.raises(DeviceError, match=r"night part-00000.parquet: .*does not fit.*--device cpu"):
        score_batch(workspace, batch, scorer)
    assert not list(workspace.labels_dir("weather", "night").glob("*"))


def test_an_error_names_the_part_and_its_rows_stops_the_others_and_leaves_no_part_of_it(
    workspace: Workspace, trained: Registration, parted: Callable[[int], Batch]
) -> None:
    batch = parted(400)
    scorer = scorer_of(trained)
    wet = trained.bundle.tokenizer.encode(pa.array(["wet"])).token_ids.to_pylist()[0][0]
    # Only the third part has the text that repeats one word.
    runner = failing(scorer, lambda ids: "the device is gone" if (ids[:, :4] == wet).all(axis=1).any() else None)
    with pytest.raises(ScoringError, match=r"night part-00010.parquet, rows 1 to 6: the device is gone"):
        score_batch(workspace, batch, scorer)
    assert not (workspace.labels_dir("weather", "night") / "part-00010.parquet").exists()
    assert not is_labelled(workspace, batch, "weather")
    seen = len(runner.sizes)
    with pytest.raises(StoppedError):
        score_part(workspace, batch, batch.manifest["parts"][-1], scorer)
    assert len(runner.sizes) == seen
    assert score_batch(workspace, batch, scorer_of(trained)).rows == 406


@pytest.mark.parametrize("failing_stage", ["read", "tokenize", "write"])
def test_any_stage_that_fails_fails_the_batch_and_running_again_finishes_it(
    workspace: Workspace,
    trained: Registration,
    parted: Callable[[int], Batch],
    monkeypatch: pytest.MonkeyPatch,
    failing_stage: str,
) -> None:
    batch = parted(100)
    name = {"read": "score.read_documents", "tokenize": "scorer.TokenStats.of", "write": "score.write_part"}
    with monkeypatch.context() as patch:
        patch.setattr(f"pipeline.scoring.{name[failing_stage]}", broken)
        with pytest.raises((OSError, ScoringError), match="no space left"):
            score_batch(workspace, batch, scorer_of(trained))
    assert not list(workspace.labels_dir("weather", "night").glob("*.parquet"))
    assert score_batch(workspace, batch, scorer_of(trained)).rows == batch.rows


def broken(*_: object) -> None:
    raise OSError("no space left on device")


def test_a_long_text_among_short_ones_costs_no_more_than_its_truncation(
    workspace: Workspace, trained: Registration, add_batch: AddBatch
) -> None:
    texts = [*weather_rows(200), {"id": "long", "text": "wet umbrella " * 800_000}]
    report = score_batch(workspace, add_batch(texts, "night", max_text_bytes=20_000_000), scorer_of(trained))
    limit = trained.bundle.tokenizer.config.max_tokens
    assert report.parts[0].truncated_texts == 1
    assert sum(part.slots for part in report.parts) < limit + 200 * 20
    assert report.counts["empty"] == 0


def test_parts_of_only_empty_texts_or_of_none_are_labelled_too(
    workspace: Workspace, trained: Registration, add_batch: AddBatch
) -> None:
    batch = add_batch(weather_rows(3), "night")
    table = pq.read_table(batch.parts[0], partitioning=None)
    empty = table.set_column(
        table.schema.get_field_index("text"), table.schema.field("text"), pa.array(["", " ", "\n"])
    )
    scorer = scorer_of(trained)
    for content, rows in ((empty, 3), (table.slice(0, 0), 0)):
        pq.write_table(content, batch.parts[0])
        part = {"file": batch.parts[0].name, "rows": rows, "sha256": file_digest(batch.parts[0])}
        report = score_part(workspace, batch, part, scorer)
        assert report.counts == {"scored": 0, "review": 0, "empty": rows}
        assert pq.read_metadata(workspace.labels_dir("weather", "night") / part["file"]).num_rows == rows


def test_the_manifest_tells_device_precision_and_where_the_time_went(
    workspace: Workspace, trained: Registration, parted: Callable[[int], Batch]
) -> None:
    report = score_batch(workspace, parted(100), scorer_of(trained))
    manifest = read_json(report.path / "manifest.json")
    assert manifest["device"] == processor_name()
    assert (manifest["driver"], manifest["precision"]) == (None, "fp32")
    assert manifest["stage_shares"].keys() == {"read", "tokenize", "batch", "model", "write"}
    assert all(share > 0 for share in manifest["stage_shares"].values())
    assert manifest["padding_share"] == pytest.approx(report.padding_share, abs=1e-4)
    assert manifest["tokens_per_second"] == pytest.approx(report.tokens_per_second, abs=0.1)


def test_int8_labels_are_those_of_fp32_and_its_parts_are_told_apart(
    workspace: Workspace, trained: Registration, parted: Callable[[int], Batch]
) -> None:
    batch = parted(100)
    fp32 = read_labels(score_batch(workspace, batch, scorer_of(trained)).path)
    report = score_batch(workspace, batch, scorer_of(trained, variant="int8"))
    assert not report.skipped
    int8 = read_labels(report.path)
    assert [row["label"] for row in int8] == [row["label"] for row in fp32]
    assert [row["scores"] for row in int8] != [row["scores"] for row in fp32]
    assert score_batch(workspace, batch, scorer_of(trained, variant="int8")).skipped
    assert read_json(report.path / "manifest.json")["precision"] == "int8"


@pytest.mark.skipif(cuda_obstacle() is None, reason="a GPU may be here")
def test_cuda_where_there_is_none_fails_with_the_cure_and_auto_says_so(
    trained: Registration, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(DeviceError, match=r"device cuda cannot be used: .*(driver|install)"):
        scorer_of(trained, device="cuda")
    with scorer_of(trained, device="auto") as scorer:
        assert scorer.engine.device.provider == CPU
    assert "SCORING ON THE CPU" in caplog.text


@pytest.mark.gpu
@pytest.mark.skipif(cuda_obstacle() is not None, reason="needs a GPU and onnxruntime-gpu")
@pytest.mark.parametrize(("variant", "tolerance"), [("fp32", 1e-4), ("fp16", 1e-2)])
def test_cuda_gives_the_labels_of_the_cpu(
    trained: Registration, add_batch: AddBatch, variant: str, tolerance: float
) -> None:
    texts = pq.read_table(add_batch(weather_rows(100), "night").parts[0], partitioning=None)["text"].combine_chunks()
    scorer = scorer_of(trained, device="cuda", variant=variant)
    assert scorer.engine.device.provider == CUDA
    on_cpu = scorer_of(trained).label(texts).probabilities
    np.testing.assert_allclose(scorer.label(texts).probabilities, on_cpu, atol=tolerance)


def test_unknown_words_count_by_their_characters_and_the_same_to_the_last_bit_in_any_company(
    trained: Registration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A misspelt word is not in the vocabulary; its label comes from what it is made of, whatever stands beside it."""
    random = np.random.default_rng(1)
    misspelt = {"wet": ["wett", "wwet", "wet7"], "bright": ["brightt", "brigght", "sunbright"]}
    known = set(trained.bundle.tokenizer.vocabulary.to_pylist())
    assert not known & {word for words in misspelt.values() for word in words}
    texts = [
        " ".join([*random.choice(misspelt[kind], 3), f"qx{random.integers(99)}"])
        for kind in misspelt
        for _ in range(50)
    ]
    whole = scorer_of(trained).label(pa.array(texts)).probabilities
    labels = np.array(trained.bundle.labels)[whole.argmax(axis=1)]
    assert (labels[:50] == "rain").mean() > 0.8
    assert (labels[50:] == "sun").mean() > 0.8
    monkeypatch.setattr("pipeline.scoring.scorer.SLICE_BYTES", 300)
    for config in ({"batch_tokens": 1}, {"batch_tokens": 64, "threads": 2}):
        assert np.array_equal(scorer_of(trained, **config).label(pa.array(texts)).probabilities, whole)
    order = random.permutation(len(texts))
    mixed = scorer_of(trained).label(pa.array([texts[number] for number in order])).probabilities
    assert np.array_equal(mixed, whole[order])
    version = predict_labels(ModelVersion.of(trained.bundle), [pa.array(texts)])
    assert np.array_equal(version.predicted.argmax(axis=1), whole.argmax(axis=1))
    assert np.array_equal(version.confidence, whole.max(axis=1))
