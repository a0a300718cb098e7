"""The strangest rows: what is unlike the model's reference is found, once, and costs a resumed night nothing."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import weather_rows

from pipeline.config import ScoringConfig
from pipeline.files import file_digest
from pipeline.metrics.drift import Histogram
from pipeline.metrics.outliers import MAX_OUTLIERS, Outlier, find_outliers
from pipeline.metrics.profile import CONFIDENCES, LENGTHS, UNKNOWN_SHARES, Profile, label_counts
from pipeline.models.bundle import Bundle
from pipeline.nights.finish import score_batch
from pipeline.nights.summary import LabelledNight, OutlierRow, labelled_night, outlier_rows
from pipeline.promotion.rule import Registration
from pipeline.scoring.labels import METADATA_KEY, read_outliers
from pipeline.scoring.report import BatchReport
from pipeline.scoring.scorer import Scorer
from pipeline.workspace import Batch, Workspace

AddBatch = Callable[..., Batch]
KOREAN = "영화 정말 재미있게 봤어요 추천합니다"
LONG = " ".join(["day was bright and long"] * 30)
TORN = "day 3 was bright wet shine cloud and long 4"


def score(workspace: Workspace, bundle: Bundle, batch: Batch) -> BatchReport:
    with Scorer(bundle, ScoringConfig(device="cpu", variant="fp32", threads=1)) as scorer:
        return score_batch(workspace, batch, scorer)


def night_of(workspace: Workspace, batch: Batch) -> LabelledNight:
    night = labelled_night(workspace, "weather", [batch])
    assert night is not None
    return night


def found(workspace: Workspace, batch: Batch) -> list[OutlierRow]:
    return outlier_rows(workspace, night_of(workspace, batch))


def odd_night() -> list[dict[str, Any]]:
    rows = [{"id": row["id"], "text": row["text"]} for row in weather_rows(100)]
    for place, text in ((20, KOREAN), (50, LONG), (90, TORN), (95, KOREAN)):
        rows[place] = {"id": f"odd{place}", "text": text}
    rows[5] = {"id": "w5", "text": rows[4]["text"]}  # run once, so that texts and rows are numbered apart
    return [*rows, {"id": "empty", "text": " "}]


@pytest.fixture
def parted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make parts of 40 rows."""
    monkeypatch.setattr("pipeline.ingest.parts.PART_ROWS", 40)
    monkeypatch.setattr("pipeline.ingest.readers.base.CHUNK_ROWS", 40)


def reference(texts: int = 100) -> Profile:
    """Every text has 10 tokens, all known, and a confidence of 97 %."""
    lengths, unknown = np.full(texts, 10), np.zeros(texts, dtype=int)
    return Profile.of(lengths, unknown, np.full(texts, 0.97), label_counts({"sun": texts}, ["sun", "rain"], None))


@pytest.mark.usefixtures("parted")
def test_another_language_a_long_row_and_an_uncertain_one_are_the_strangest_of_a_night(
    workspace: Workspace, trained: Registration, add_batch: AddBatch
) -> None:
    batch = add_batch(odd_night(), "night")
    score(workspace, trained.bundle, batch)
    rows = found(workspace, batch)
    assert len(rows) == MAX_OUTLIERS
    why = {row.text: row.why for row in rows[:3]}
    assert why.keys() == {KOREAN, LONG, TORN}  # each once, though one of them came in twice
    assert "all words unknown" in why[KOREAN]
    assert "40 tokens, longer than any" in why[LONG]  # what the model read of it
    assert "confidence" in why[TORN]
    parts = night_of(workspace, batch).batches[0].parts
    by_id = {row["doc_id"]: row for part in parts for row in pq.read_table(part, partitioning=None).to_pylist()}
    for row in rows:
        assert row.confidence == by_id[row.doc_id]["confidence"]
        assert row.label == by_id[row.doc_id]["label"]
    assert next(row.doc_id for row in rows if row.text == KOREAN) == "odd20"


@pytest.mark.usefixtures("parted")
def test_a_resumed_night_has_the_same_strangest_rows_and_writes_the_same_bytes(
    workspace: Workspace, trained: Registration, add_batch: AddBatch
) -> None:
    batch = add_batch(odd_night(), "night")
    report = score(workspace, trained.bundle, batch)
    assert len(report.parts) == 3
    before, digests = found(workspace, batch), [file_digest(path) for path in sorted(report.path.glob("*.parquet"))]
    (report.path / "manifest.json").unlink()
    (report.path / "part-00001.parquet").unlink()
    resumed = score(workspace, trained.bundle, batch)
    assert [part.skipped for part in resumed.parts] == [True, False, True]
    assert [part.outliers for part in resumed.parts] == [part.outliers for part in report.parts]
    assert found(workspace, batch) == before
    assert [file_digest(path) for path in sorted(report.path.glob("*.parquet"))] == digests


@pytest.mark.usefixtures("parted")
def test_parts_from_before_are_read_and_know_of_no_strange_rows(
    workspace: Workspace, trained: Registration, add_batch: AddBatch
) -> None:
    batch = add_batch(odd_night(), "night")
    report = score(workspace, trained.bundle, batch)
    for path in report.path.glob("*.parquet"):
        _forget_strangeness(path)
    (report.path / "manifest.json").unlink()
    again = score(workspace, trained.bundle, batch)
    assert again.skipped
    assert [part.outliers for part in again.parts] == [None, None, None]
    assert found(workspace, batch) == []


def _forget_strangeness(path: Path) -> None:
    table = pq.read_table(path, partitioning=None)
    facts = json.loads(table.schema.metadata[METADATA_KEY])
    del facts["strange"]
    pq.write_table(table.replace_schema_metadata({METADATA_KEY: json.dumps(facts)}), path)


def test_a_part_keeps_where_its_strange_rows_stand_and_never_their_text(
    workspace: Workspace, trained: Registration, add_batch: AddBatch
) -> None:
    batch = add_batch(odd_night(), "night")
    (part,) = score(workspace, trained.bundle, batch).path.glob("*.parquet")
    kept = read_outliers(part)
    assert kept is not None
    assert {row.row for row in kept} >= {20, 50, 90}
    facts = json.loads(pq.read_metadata(part).metadata[METADATA_KEY])
    assert not set(f"{KOREAN} {LONG} {TORN}".split()) & set(json.dumps(facts, ensure_ascii=False).split())


def test_the_surprise_is_that_of_the_formula() -> None:
    usual = reference(100)
    (one,) = find_outliers(np.array([7]), np.array([10]), np.array([5]), np.array([0.42]), usual)
    rarest = [len(LENGTHS), len(UNKNOWN_SHARES), len(CONFIDENCES)]
    like_it = [101, 1, 1]  # texts in the bin, and one more
    by_hand = -sum(math.log(count / (100 + bins)) for count, bins in zip(like_it, rarest, strict=True))
    assert one == Outlier(7, round(by_hand, 4), one.why)
    assert one.why == "confidence 42 %, 50 % of the words unknown"


@pytest.mark.parametrize(
    ("length", "unknown", "confidence", "why"),
    [
        (300, 0, 0.97, "300 tokens, longer than any"),
        (1, 0, 0.97, "1 token, shorter than any"),
        (10, 10, 0.97, "all words unknown"),
        (10, 0, 0.21, "confidence 21 %"),
    ],
)
def test_a_row_says_what_is_strange_about_it(length: int, unknown: int, confidence: float, why: str) -> None:
    (one,) = find_outliers(np.array([0]), np.array([length]), np.array([unknown]), np.array([confidence]), reference())
    assert one.why == why


def test_a_share_of_the_reference_is_never_rounded_up_to_all_of_it() -> None:
    usual = reference(999) + Profile.of(
        np.array([500]), np.array([0]), np.array([0.97]), label_counts({"sun": 1}, ["sun", "rain"], None)
    )
    (one,) = find_outliers(np.array([0]), np.array([400]), np.array([0]), np.array([0.97]), usual)
    assert one.why == "400 tokens, longer than 99 %"


@pytest.mark.parametrize("usual", [None, reference(0)])
def test_without_a_reference_the_least_confident_rows_are_the_strangest(usual: Profile | None) -> None:
    confidence = np.linspace(0.3, 0.99, 40)[np.random.default_rng(1).permutation(40)]
    kept = find_outliers(np.arange(40), np.full(40, 9), np.zeros(40, dtype=int), confidence, usual)
    assert [row.row for row in kept] == np.argsort(confidence)[:MAX_OUTLIERS].tolist()
    assert kept[0].why == "confidence 30 %"


def test_empty_texts_are_never_strange() -> None:
    lengths, confidence = np.array([0, 10, 0]), np.array([np.nan, 0.97, np.nan])
    assert [row.row for row in find_outliers(np.arange(3), lengths, np.zeros(3), confidence, reference())] == [1]
    assert find_outliers(np.arange(2), np.zeros(2, dtype=int), np.zeros(2), np.full(2, np.nan), reference()) == []


def test_of_equally_strange_rows_the_least_confident_come_first_and_then_the_order_of_the_part() -> None:
    confidence = np.tile([0.96, 0.99, 0.96], 10)
    kept = find_outliers(np.arange(30), np.full(30, 10), np.zeros(30, dtype=int), confidence, reference())
    assert [row.row for row in kept] == np.flatnonzero(confidence == 0.96)[:MAX_OUTLIERS].tolist()


def test_a_reference_with_other_bins_serves_as_well() -> None:
    usual = reference()
    other = Profile(
        **{name: getattr(usual, name) for name in ("rows", "empty", "tokens", "unknown_tokens", "certainty", "labels")},
        lengths=Histogram((1, 100), (100, 0)),
        unknown_words=Histogram((0.0, 0.5), (100, 0)),
        confidence=Histogram((0.0, 0.9), (0, 100)),
    )
    kept = find_outliers(np.arange(2), np.array([10, 200]), np.array([0, 0]), np.array([0.95, 0.95]), other)
    assert [row.row for row in kept] == [1, 0]
