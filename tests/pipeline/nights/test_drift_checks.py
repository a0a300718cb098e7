"""The health of a night: an ordinary one passes, a bad one is held, and nothing is published behind one's back."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import REAL_DATA, tiny_recipe, weather_rows
from scipy.spatial.distance import jensenshannon

from pipeline.config import DriftConfig, IngestConfig, ScoringConfig
from pipeline.errors import BatchError, PublicationError
from pipeline.files import file_digest, read_json, write_json
from pipeline.ingest import ingest
from pipeline.metrics.drift import Distance, Histogram, jensen_shannon_distance, population_stability_index
from pipeline.metrics.profile import Profile, label_counts, merge_profiles
from pipeline.models.bundle import Bundle
from pipeline.models.registry import Registry
from pipeline.nights.finish import score_batch
from pipeline.nights.hold import DriftReport, PastNight, check_drift
from pipeline.nights.publish import publish, published_batches
from pipeline.promotion.register import train
from pipeline.promotion.rule import Registration
from pipeline.scoring.labels import METADATA_KEY
from pipeline.scoring.score import score_part
from pipeline.scoring.scorer import Scorer
from pipeline.workspace import Batch, Workspace

AddBatch = Callable[..., Batch]
STRANGE = [{"id": f"s{n}", "text": "天 气 很 好 吗"} for n in range(60)]


def label(workspace: Workspace, bundle: Bundle, batch: Batch, **health: Any) -> dict[str, Any]:
    """Score a batch and return its labels manifest."""
    with Scorer(bundle, ScoringConfig(device="cpu", precision="fp32", threads=1)) as scorer:
        report = score_batch(workspace, batch, scorer, DriftConfig(**health))
    manifest: dict[str, Any] = read_json(report.path / "manifest.json")
    return manifest


def found(manifest: dict[str, Any]) -> dict[str, str]:
    return {finding["measure"]: finding["severity"] for finding in manifest["findings"]}


def made_up(random: np.random.Generator, texts: int = 400) -> Profile:
    lengths = random.integers(0, 60, texts)
    confidence = random.random(texts, dtype=np.float32)
    unknown = (lengths * random.random(texts) ** 3).astype(np.int32)
    given = {"rain": texts // 3, "sun": int(np.count_nonzero(lengths)) - texts // 3}
    return Profile.of(lengths, unknown, confidence, label_counts(given, ["rain", "sun"], None))


def test_the_stability_index_is_that_of_the_formula() -> None:
    by_hand = (0.5 - 0.25) * math.log(0.5 / 0.25) + (0.5 - 0.75) * math.log(0.5 / 0.75)
    assert population_stability_index(np.array([50, 50]), np.array([100, 300])) == pytest.approx(by_hand)
    assert population_stability_index(np.array([3, 9, 6]), np.array([1, 3, 2])) == pytest.approx(0)
    emptied = population_stability_index(np.array([100, 0]), np.array([50, 50]))
    assert emptied == pytest.approx(0.5 * math.log(2) + 0.495 * math.log(0.5 / 0.005))


def test_the_jensen_shannon_distance_is_that_of_scipy() -> None:
    assert jensen_shannon_distance(np.array([7, 0]), np.array([0, 3])) == pytest.approx(math.sqrt(math.log(2)))
    random = np.random.default_rng(1)
    for _ in range(20):
        counts, beside = random.integers(0, 9, (2, 30))
        assert jensen_shannon_distance(counts, beside) == pytest.approx(jensenshannon(counts, beside))


def histogram(counts: np.ndarray) -> Histogram:
    return Histogram(tuple(float(number) for number in range(len(counts))), tuple(counts.tolist()))


@pytest.mark.parametrize("bins", [2, 4, 20, 150])
@pytest.mark.parametrize("rows", [5, 20, 100, 2000])
def test_samples_of_the_same_texts_raise_no_alarm_however_small(bins: int, rows: int) -> None:
    random = np.random.default_rng(bins * rows)
    shares = random.dirichlet(np.ones(bins))
    for _ in range(300):
        tonight, reference = (histogram(random.multinomial(size, shares)) for size in (rows, 800))
        distance = Distance.between(tonight, reference)
        assert not (distance.significant and distance.psi >= 0.1)


def test_of_many_classes_one_that_floods_the_night_is_seen() -> None:
    tonight, reference = np.full(150, 8), np.full(150, 30)
    assert Distance.between(histogram(tonight), histogram(reference)).psi == 0
    tonight[70] += 300
    distance = Distance.between(histogram(tonight), histogram(reference))
    assert distance.significant
    assert distance.psi > 0.25


def test_parts_add_up_to_the_whole_and_survive_json() -> None:
    random = np.random.default_rng(2)
    lengths, labels = random.integers(0, 5, 100), label_counts({"sun": 7}, ["rain", "sun"], 3)
    values = (lengths, np.minimum(lengths, 2), random.random(100))
    empty = label_counts({}, ["rain", "sun"], 0)
    whole = Profile.of(*values, labels)
    first, second = (Profile.of(*(column[rows] for column in values), empty) for rows in (slice(30), slice(30, None)))
    added = merge_profiles([replace(first, labels=labels), second])
    assert replace(added, certainty=whole.certainty) == whole
    assert added.certainty == pytest.approx(whole.certainty)
    assert Profile.from_json(json.loads(json.dumps(whole.as_json()))) == whole
    assert whole.rows == whole.empty + sum(whole.lengths.counts) == 100


def test_a_bundle_keeps_a_reference_of_texts_it_did_not_learn_from(trained: Registration) -> None:
    reference, metrics = trained.bundle.reference, trained.bundle.metrics
    assert reference is not None
    assert reference.rows == metrics["validation"]["n"] + metrics["test"]["n"]
    assert reference.labels.bins == ("rain", "sun")
    assert reference.labels.size == reference.lengths.size == reference.confidence.size == reference.rows
    assert "reference.json" in trained.bundle.manifest["files"]


@pytest.fixture
def parted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.ingest.parts.PART_ROWS", 40)
    monkeypatch.setattr("pipeline.ingest.readers.base.CHUNK_ROWS", 40)


@pytest.mark.usefixtures("parted")
def test_a_resumed_batch_has_the_health_of_one_that_was_not_interrupted(
    workspace: Workspace, trained: Registration, add_batch: AddBatch
) -> None:
    rows = [*weather_rows(100), {"id": "empty", "text": ""}, {"id": "again", "text": weather_rows(1)[0]["text"]}]
    whole = label(workspace, trained.bundle, add_batch(rows, "whole"))
    batch = add_batch(rows, "night")
    assert len(batch.parts) == 3
    with Scorer(trained.bundle, ScoringConfig(device="cpu", precision="fp32")) as scorer:
        score_part(workspace, batch, batch.manifest["parts"][1], scorer)
    resumed = label(workspace, trained.bundle, batch)
    assert resumed["parts_skipped"] == 1
    assert resumed["health"] == whole["health"]
    health = Profile.from_json(resumed["health"])
    assert (health.rows, health.empty, health.labels.size) == (102, 1, 101)
    assert dict(zip(health.labels.bins, health.labels.counts, strict=True)) == resumed["labels"]
    assert (resumed["published"], found(resumed)) == (True, {})


@pytest.mark.usefixtures("parted")
def test_a_part_from_before_leaves_the_batch_without_health_and_that_is_said(
    workspace: Workspace, trained: Registration, add_batch: AddBatch
) -> None:
    batch = add_batch(weather_rows(100), "night")
    label(workspace, trained.bundle, batch)
    folder = workspace.labels_dir("weather", "night")
    path = folder / "part-00001.parquet"
    table = pq.read_table(path, partitioning=None)
    facts = json.loads(table.schema.metadata[METADATA_KEY])
    del facts["health"]
    pq.write_table(table.replace_schema_metadata({METADATA_KEY: json.dumps(facts)}), path)
    (folder / "manifest.json").unlink()
    manifest = label(workspace, trained.bundle, batch)
    assert (manifest["published"], manifest["health"], manifest["parts_skipped"]) == (True, None, 3)
    assert manifest["notes"] == ["Not compared: some of its parts were labelled before data profiles were stored."]


def test_a_held_batch_is_left_out_until_a_person_publishes_it(
    workspace: Workspace, trained: Registration, add_batch: AddBatch
) -> None:
    good, bad = add_batch(weather_rows(60), "good"), add_batch(STRANGE, "bad")
    assert label(workspace, trained.bundle, good)["published"]
    held = label(workspace, trained.bundle, bad)
    assert held["published"] is False
    assert found(held)["unknown_words"] == "hold"
    assert [batch.id for batch in published_batches(workspace, "weather")] == ["good"]
    publish(workspace, "bad", "weather", "we sell abroad now")
    assert [batch.id for batch in published_batches(workspace, "weather")] == ["bad", "good"]
    manifest = read_json(workspace.labels_dir("weather", "bad") / "manifest.json")
    assert manifest["publication"].keys() == {"at", "by", "reason"}
    assert manifest["publication"]["reason"] == "we sell abroad now"
    assert manifest["findings"] == held["findings"]


@pytest.mark.parametrize("by_hand", [False, True])
def test_scoring_again_neither_publishes_nor_holds(
    workspace: Workspace, trained: Registration, add_batch: AddBatch, by_hand: bool
) -> None:
    batch = add_batch(STRANGE, "bad")
    label(workspace, trained.bundle, batch)
    if by_hand:
        publish(workspace, "bad")
    folder = workspace.labels_dir("weather", "bad")
    before = {path.name: file_digest(path) for path in folder.iterdir()}
    assert label(workspace, trained.bundle, batch, hold=False)["published"] is by_hand
    assert {path.name: file_digest(path) for path in folder.iterdir()} == before


def test_what_cannot_be_published_is_refused_in_a_line(
    workspace: Workspace, trained: Registration, add_batch: AddBatch
) -> None:
    add_batch(weather_rows(30), "good")
    with pytest.raises(BatchError, match=r"no batch 'other' in .* \(there: good, one\)"):
        publish(workspace, "other")
    with pytest.raises(PublicationError, match="batch good is not labelled by any model: nightlabel score --batch"):
        publish(workspace, "good")
    label(workspace, trained.bundle, workspace.batch("good"))
    with pytest.raises(PublicationError, match="batch good is not labelled by tickets"):
        publish(workspace, "good", "tickets")
    with pytest.raises(PublicationError, match="the labels of batch good by weather are published already"):
        publish(workspace, "good")
    add_batch(weather_rows(31), "good")
    with pytest.raises(PublicationError, match="batch good is not labelled by weather"):
        publish(workspace, "good")
    assert published_batches(workspace, "weather") == []


def test_holding_can_be_switched_off(workspace: Workspace, trained: Registration, add_batch: AddBatch) -> None:
    manifest = label(workspace, trained.bundle, add_batch(STRANGE, "bad"), hold=False)
    assert manifest["published"]
    assert set(found(manifest).values()) == {"warn"}
    assert "hold" not in [check["verdict"] for check in manifest["checks"]]


def test_an_older_bundle_is_compared_with_nothing_and_says_so(
    workspace: Workspace, trained: Registration, add_batch: AddBatch
) -> None:
    path = trained.bundle.path
    (path / "reference.json").unlink()
    manifest = read_json(path / "manifest.json")
    del manifest["files"]["reference.json"]
    write_json(path / "manifest.json", manifest)
    labels = label(workspace, Registry(workspace).find(), add_batch(STRANGE, "bad"))
    assert (labels["published"], labels["findings"]) == (True, [])
    assert labels["notes"] == [
        "Not compared: the model was trained before references were stored; train again to get one."
    ]


def test_what_a_model_was_trained_on_is_no_night(workspace: Workspace, trained: Registration) -> None:
    manifest = label(workspace, trained.bundle, workspace.batch("one"))
    assert manifest["published"]
    assert manifest["notes"] == ["Not compared: weather@1 was trained on this batch."]


def judged(rows: int, *before: int, empty: int = 0, **config: Any) -> DriftReport:
    nights = [PastNight(count, None) for count in before]
    return check_drift(None, None, nights, DriftConfig(**config), rows=rows, empty=empty)


@pytest.mark.parametrize(
    ("rows", "before", "severity"),
    [
        (1000, (100, 90), None),  # two nights are no habit
        (1000, (100, 90, 110), "hold"),
        (9, (100, 90, 110), "hold"),
        (999, (100, 90, 110), None),
        (11, (100, 90, 110), None),
        (1000, (1000, 1000, 100, 90, 110, 100, 90), "warn"),  # somebody published nights like it
    ],
)
def test_ten_times_more_or_fewer_rows_than_usual_are_held(
    rows: int, before: tuple[int, ...], severity: str | None
) -> None:
    findings = judged(rows, *before).findings
    assert [finding.severity for finding in findings] == ([severity] if severity else [])


@pytest.mark.parametrize(
    ("rows", "empty", "severity"),
    [(0, 0, "hold"), (3, 3, "hold"), (100, 95, "hold"), (100, 30, "warn"), (100, 5, None), (8, 4, None)],
)
def test_a_feed_without_text_is_held(rows: int, empty: int, severity: str | None) -> None:
    findings = judged(rows, empty=empty).findings
    assert [finding.severity for finding in findings] == ([severity] if severity else [])


def test_a_change_that_was_published_three_nights_in_a_row_warns_only() -> None:
    random = np.random.default_rng(3)
    reference, other = made_up(random), made_up(random)
    tonight = replace(other, unknown_tokens=other.tokens, unknown_words=Histogram.of(np.ones(390), (0.0, 0.95)))
    reference = replace(reference, unknown_words=Histogram.of(np.zeros(390), (0.0, 0.95)))

    def severities(*nights: Profile) -> list[str]:
        before = [PastNight(400, health) for health in nights]
        drift_report = check_drift(tonight, reference, before, DriftConfig(), rows=400, empty=tonight.empty)
        return [finding.severity for finding in drift_report.findings]

    assert severities() == ["hold"]
    assert severities(tonight, tonight) == ["hold"]
    assert severities(tonight, tonight, tonight, reference, reference) == ["warn"]
    assert severities(reference, reference, reference, tonight, tonight) == ["hold"]


def rows_of(name: str) -> list[dict[str, Any]]:
    path = REAL_DATA / name
    if not path.exists():
        pytest.skip(f"needs {name}")
    rows = pq.read_table(path).to_pylist()
    np.random.default_rng(5).shuffle(rows)
    return rows


class Newsroom:
    """A quick model of news, and three nights of news before tonight's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.workspace = Workspace(folder / "workspace")
        self.news = rows_of("ag_news/test.parquet")
        rows = rows_of("ag_news/train.parquet")[:3000]
        self.ingest("labelled", [row["text"] for row in rows], [row["label"] for row in rows])
        recipe = tiny_recipe(epochs=2, batch_size=64, learning_rate=0.01, baseline=False).model_dump()
        recipe["tokenizer"] |= {"vocabulary_size": 8000, "min_count": 2, "max_tokens": 100}
        recipe["model"]["wide_buckets"] = 10_007
        self.bundle = train(self.workspace, "news", type(tiny_recipe()).model_validate(recipe)).bundle
        self.before = [self.night(f"before-{n}", self.texts(300, start=300 * n)) for n in range(3)]

    def texts(self, count: int, start: int, column: str = "text") -> list[str]:
        return [str(row[column]) for row in self.news[start : start + count]]

    def ingest(self, name: str, texts: list[str], labels: list[str] | None = None) -> Batch:
        columns = {"id": [f"{name}-{number}" for number in range(len(texts))], "text": texts}
        source = self.folder / f"{name}.parquet"
        pq.write_table(pa.table(columns | ({"label": labels} if labels else {})), source)
        ingest(self.workspace, [str(source)], IngestConfig(), batch_id=name)
        return self.workspace.batch(name)

    def night(self, name: str, texts: list[str]) -> dict[str, Any]:
        return label(self.workspace, self.bundle, self.ingest(name, texts))


@pytest.fixture(scope="module")
def newsroom(tmp_path_factory: pytest.TempPathFactory) -> Newsroom:
    return Newsroom(tmp_path_factory.mktemp("newsroom"))


@pytest.mark.parametrize("rows", [10, 60, 300, 1000])
def test_an_ordinary_night_of_news_raises_nothing(newsroom: Newsroom, rows: int) -> None:
    batch = newsroom.ingest(f"ordinary-{rows}", newsroom.texts(rows, start=1000))
    manifest = label(newsroom.workspace, newsroom.bundle, batch, volume_factor=100)
    assert manifest["findings"] == []
    assert manifest["published"]
    assert all(night["findings"] == [] for night in newsroom.before)


def test_a_night_of_chinese_is_held_for_its_unknown_words(newsroom: Newsroom) -> None:
    reviews = [str(row["text"]) for row in rows_of("online_shopping_10_cats/test.parquet")[:300]]
    manifest = newsroom.night("chinese", reviews)
    assert found(manifest)["unknown_words"] == "hold"
    assert not manifest["published"]
    (sentence,) = [one["sentence"] for one in manifest["findings"] if one["measure"] == "unknown_words"]
    assert "of the words are unknown to the model" in sentence
    assert "another language, or the wrong column" in sentence
    published = [batch.id for batch in published_batches(newsroom.workspace, "news")]
    assert "chinese" not in published
    assert "before-0" in published


@pytest.mark.parametrize("column", ["label", "id"])
def test_a_swapped_column_is_held_for_its_lengths(newsroom: Newsroom, column: str) -> None:
    manifest = newsroom.night(f"swapped-{column}", newsroom.texts(300, start=1000, column=column))
    assert found(manifest)["lengths"] == "hold"
    assert not manifest["published"]


def test_a_feed_that_lost_its_texts_is_held(newsroom: Newsroom) -> None:
    texts = [text if number % 20 == 0 else " " for number, text in enumerate(newsroom.texts(300, start=1000))]
    manifest = newsroom.night("empty", texts)
    assert found(manifest) == {"empty": "hold"}
    assert manifest["findings"][0]["sentence"].startswith("95 % of the texts are empty, 0 % were in the model's")


def test_a_feed_ten_times_larger_is_held_for_its_rows_alone(newsroom: Newsroom) -> None:
    manifest = newsroom.night("large", newsroom.texts(3100, start=1000))
    assert found(manifest) == {"rows": "hold"}
    assert "3,100 rows came in, 300 is usual" in manifest["findings"][0]["sentence"]
