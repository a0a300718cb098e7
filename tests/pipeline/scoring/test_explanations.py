"""The words that carried a label: told for each row where that is asked for, and nothing else changes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import tiny_recipe, weather_rows

from pipeline.config import Recipe, ScoringConfig, apply_overrides
from pipeline.errors import ModelError
from pipeline.files import file_digest, read_json
from pipeline.models.bundle import Bundle
from pipeline.models.engine import Engine
from pipeline.models.session import cuda_obstacle
from pipeline.nights.finish import score_batch
from pipeline.nights.summary import labelled_night, outlier_rows
from pipeline.promotion.register import train
from pipeline.promotion.rule import Registration
from pipeline.schemas import LABELS
from pipeline.scoring.explanations import (
    LONGEST_WORD,
    MAX_PHRASES,
    Evidence,
    evidence_column,
    format_evidence,
    merge_pairs,
    top_evidence,
)
from pipeline.scoring.scorer import Scorer
from pipeline.workspace import Batch, Workspace

AddBatch = Callable[..., Batch]
DECIDING = {"sun": {"bright", "warm", "beach", "shine"}, "rain": {"wet", "cloud", "umbrella", "drops"}}
ODD_TEXTS = ["", "   ", "wet " * 100, "zebra quagga okapi", "wet wet umbrella wet", "我 bright 爱", "q" * 500]


def scorer_of(bundle: Bundle, **config: Any) -> Scorer:
    return Scorer(bundle, ScoringConfig(**{"device": "cpu", "variant": "fp32", "threads": 1, **config}))


def words_of(row: dict[str, Any]) -> set[str]:
    return {word for one in row["evidence"] for word in one["word"].split()}


def labels_of(workspace: Workspace, bundle: Bundle, batch: Batch, **config: Any) -> pa.Table:
    with scorer_of(bundle, **config) as scorer:
        report = score_batch(workspace, batch, scorer)
    return pq.read_table(report.path / "part-00000.parquet", partitioning=None)


@pytest.fixture
def night(add_batch: AddBatch) -> Batch:
    rows = [{"id": row["id"], "text": row["text"]} for row in weather_rows(180)[120:]]
    return add_batch([*rows, *({"id": f"odd{n}", "text": text} for n, text in enumerate(ODD_TEXTS))], "night")


@pytest.mark.parametrize("variant", ["fp32", "int8"])
def test_the_word_that_decides_is_told(workspace: Workspace, trained: Registration, night: Batch, variant: str) -> None:
    rows = labels_of(workspace, trained.bundle, night, evidence=True, variant=variant).to_pylist()
    for row in rows[:60]:
        assert DECIDING[row["label"]] & words_of(row), (row["label"], row["evidence"])
    for row in rows:
        weights = [one["weight"] for one in row["evidence"] or []]
        assert weights == sorted(weights, reverse=True)
        assert len(weights) <= MAX_PHRASES
        assert all(weight > 0 for weight in weights)
        assert (row["evidence"] is None) == (row["status"] == "empty")


def test_probabilities_are_the_same_with_evidence_and_without(
    workspace: Workspace, trained: Registration, night: Batch
) -> None:
    without = labels_of(workspace, trained.bundle, night)
    assert without["evidence"].null_count == len(without)
    told = labels_of(workspace, trained.bundle, night, evidence=True)
    assert told.schema.remove_metadata() == LABELS
    assert told.drop_columns("evidence").equals(without.drop_columns("evidence"))


def test_a_part_without_evidence_is_written_again_when_it_is_asked_for_and_one_with_it_is_kept(
    workspace: Workspace, trained: Registration, night: Batch
) -> None:
    with scorer_of(trained.bundle) as scorer, scorer_of(trained.bundle, evidence=True) as telling:
        assert not score_batch(workspace, night, scorer).skipped
        told = score_batch(workspace, night, telling)
        assert not told.skipped
        assert score_batch(workspace, night, telling).skipped
        assert read_json(told.path / "manifest.json")["config"]["evidence"] is True
        assert not score_batch(workspace, night, scorer).skipped


def test_evidence_of_a_row_does_not_depend_on_the_rows_beside_it(
    workspace: Workspace, trained: Registration, night: Batch
) -> None:
    small = labels_of(workspace, trained.bundle, night, evidence=True, batch_tokens=1)
    digest = file_digest(workspace.labels_dir("weather", "night") / "part-00000.parquet")
    (workspace.labels_dir("weather", "night") / "part-00000.parquet").unlink()
    large = labels_of(workspace, trained.bundle, night, evidence=True, batch_tokens=100_000, threads=2)
    assert large.equals(small)
    assert file_digest(workspace.labels_dir("weather", "night") / "part-00000.parquet") == digest


def test_equal_texts_have_the_same_evidence(workspace: Workspace, trained: Registration, add_batch: AddBatch) -> None:
    texts = ["wet umbrella", "", "beach day", "wet umbrella"]
    batch = add_batch([{"id": f"r{n}", "text": text} for n, text in enumerate(texts)], "night")
    first, empty, other, again = labels_of(workspace, trained.bundle, batch, evidence=True)["evidence"].to_pylist()
    assert first == again
    assert empty is None
    assert first != other


def test_several_labels_tell_of_the_likeliest(workspace: Workspace, add_batch: AddBatch) -> None:
    labels = {"sun": "sun|dry", "rain": "rain"}
    add_batch([{**row, "label": labels[row["label"]]} for row in weather_rows()], label_separator="|", label="label")
    bundle = train(workspace, "weather", tiny_recipe()).bundle
    assert bundle.thresholds is not None
    rows = labels_of(workspace, bundle, workspace.batch("one"), evidence=True).to_pylist()
    for row in rows:
        likeliest = bundle.labels[int(np.argmax(row["scores"]))]
        assert DECIDING["rain" if likeliest == "rain" else "sun"] & words_of(row)


def test_where_the_last_state_decides_the_linear_branches_tell_or_nothing_can(
    workspace: Workspace, add_batch: AddBatch
) -> None:
    add_batch(weather_rows())
    last = Recipe.model_validate(apply_overrides(tiny_recipe(), ["model.pooling=last"]))
    bundle = train(workspace, "weather", last).bundle
    rows = labels_of(workspace, bundle, workspace.batch("one"), evidence=True).to_pylist()
    assert np.mean([bool(DECIDING[row["label"]] & words_of(row)) for row in rows]) > 0.9
    alone = train(workspace, "alone", Recipe.model_validate(apply_overrides(last, ["model.wide_buckets=0"]))).bundle
    with pytest.raises(ModelError, match=r"alone@1 reads the last state.*label without evidence"):
        scorer_of(alone, evidence=True)


def test_the_morning_shows_what_carried_the_strangest_rows(
    workspace: Workspace, trained: Registration, night: Batch
) -> None:
    from flows.reports.morning_sections import outliers_section

    labels_of(workspace, trained.bundle, night)
    found = labelled_night(workspace, "weather", [night])
    assert found is not None
    assert {row.evidence for row in outlier_rows(workspace, found)} == {""}
    assert "evidence" not in "".join(outliers_section(workspace, found))
    told = {
        row["doc_id"]: format_evidence(row["evidence"])
        for row in labels_of(workspace, trained.bundle, night, evidence=True).to_pylist()
    }
    found = labelled_night(workspace, "weather", [night])
    assert found is not None
    rows = outlier_rows(workspace, found)
    assert {row.doc_id: row.evidence for row in rows} == {row.doc_id: told[row.doc_id] for row in rows}
    assert "| document | label | evidence |" in "".join(outliers_section(workspace, found))


def test_the_sample_of_labelled_rows_shows_what_carried_them(
    workspace: Workspace, trained: Registration, night: Batch
) -> None:
    from flows.reports.labels import EVIDENCE_NOTE, sample_table

    for evidence in (False, True):
        with scorer_of(trained.bundle, evidence=evidence) as scorer:
            report = score_batch(workspace, night, scorer)
        shown = sample_table(workspace, report)
        assert shown.startswith("| label | evidence |" if evidence else "| label | confidence |")
        assert (EVIDENCE_NOTE in shown) == evidence
    first = pq.read_table(report.path / "part-00000.parquet", partitioning=None)["evidence"][0].as_py()
    assert f"| {format_evidence(first)} |" in shown


def test_an_unknown_word_is_told_as_it_stands_and_never_at_length(trained: Registration) -> None:
    tokenizer = trained.bundle.tokenizer
    texts = pa.array(["day Zebra", "", "x" * 500])
    words = np.zeros((3, MAX_PHRASES, 2), dtype=np.int32)
    weights = np.zeros((3, MAX_PHRASES), dtype=np.float32)
    day = tokenizer.encode(pa.array(["day"])).token_ids.to_pylist()[0][0]
    words[0, 0], weights[0, 0] = (day, -2), 2.0
    words[2, 0], weights[2, 0] = (0, -1), 1.0
    column = evidence_column(Evidence(words, weights), texts, np.array([2, 0, 1]), tokenizer)
    assert column.type == LABELS.field("evidence").type
    assert column.to_pylist() == [
        [{"word": "day zebra", "weight": 2.0}],
        None,
        [{"word": "x" * (LONGEST_WORD - 1) + "…", "weight": 1.0}],
    ]


def test_words_are_those_of_the_token_ids(trained: Registration) -> None:
    tokenizer = trained.bundle.tokenizer
    texts = pa.array(["day 1 was wet", "", " ".join(f"day {n}" for n in range(90))])
    encoded, words = tokenizer.encode(texts), tokenizer.words(texts)
    assert words.offsets.equals(encoded.token_ids.offsets)
    ids = encoded.token_ids.values.to_numpy()
    known = ids > 1
    assert known.any()
    assert words.values.filter(pa.array(known)).equals(tokenizer.vocabulary.take(pa.array(ids[known] - 2)))


def found_in(
    token_ids: list[int], words: list[float], pairs: list[float] | None = None
) -> list[tuple[list[int], float]]:
    kinds = [words] if pairs is None else [words, pairs]
    one = merge_pairs(top_evidence(np.array([token_ids], np.int32), np.array([kinds], np.float32)))
    return [
        (word, round(weight, 4))
        for word, weight in zip(one.words[0].tolist(), one.weights[0].tolist(), strict=True)
        if weight
    ]


def test_a_word_counts_for_all_of_its_places_and_the_heaviest_come_first() -> None:
    assert found_in([5, 6, 5, 7, 5], [0.5, 1.0, 0.25, 0.9, 0.5]) == [([0, 5], 1.25), ([0, 6], 1.0), ([0, 7], 0.9)]
    assert found_in([5, 6, 5], [1.0, 0.5, -0.75]) == [([0, 6], 0.5), ([0, 5], 0.25)]
    assert found_in([5, 6, 7, 8], [1.0, 1.0, 1.0, 1.0]) == [([0, 5], 1.0), ([0, 6], 1.0), ([0, 7], 1.0)]
    assert found_in([5, 6], [-1.0, -2.0]) == []


def test_unknown_words_are_different_words() -> None:
    assert found_in([1, 5, 1], [0.5, 0.25, 0.5]) == [([0, -1], 0.5), ([0, -3], 0.5), ([0, 5], 0.25)]


def test_a_word_joins_the_heaviest_pair_that_has_it() -> None:
    assert found_in([5, 6, 7], [0.0, 0.5, 0.25], [0.0, 2.0, 1.0]) == [([5, 6], 2.5), ([6, 7], 1.25)]
    assert found_in([5, 6], [0.5, 2.0], [0.25, 1.0]) == [([5, 6], 3.75)]  # nothing stands before the first word
    assert found_in([5, 6, 7], [1.0, 0.5, 0.0], [0.0, -2.0, 0.0]) == [([0, 5], 1.0), ([0, 6], 0.5)]


def test_what_is_told_reads_as_a_phrase() -> None:
    assert format_evidence([{"word": "refund", "weight": 2.13}, {"word": "not arrived", "weight": 1.4}]) == (
        "refund +2.1, not arrived +1.4"
    )
    assert format_evidence(None) == format_evidence([]) == ""


@pytest.mark.gpu
@pytest.mark.skipif(cuda_obstacle() is not None, reason="needs a GPU and onnxruntime-gpu")
@pytest.mark.parametrize(("variant", "tolerance"), [("fp32", 1e-3), ("fp16", 5e-2)])
def test_cuda_adds_up_what_the_cpu_does(trained: Registration, variant: str, tolerance: float) -> None:
    texts = [row["text"] for row in weather_rows(50)]
    with (
        scorer_of(trained.bundle, evidence=True) as cpu,
        scorer_of(trained.bundle, evidence=True, device="cuda", variant=variant) as cuda,
    ):
        for batch in cpu.minibatches(pa.array(texts)):
            here, there = (_parts(one.engine, *batch) for one in (cpu, cuda))
            np.testing.assert_allclose(here, there, atol=tolerance)


def _parts(engine: Engine, token_ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    found = engine.attribute(token_ids, lengths)
    assert found.attributions.shape[2] == token_ids.shape[1]
    return np.concatenate([found.attributions.sum(axis=(1, 2)), found.start])
