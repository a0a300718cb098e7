"""What a night comes to, and what changed: read from the labels that are there, whoever wrote them."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import tiny_recipe, weather_rows

from pipeline.config import DriftConfig, IngestConfig, ScoringConfig
from pipeline.files import read_json, write_json
from pipeline.ingest import ingest
from pipeline.metrics.profile import Profile, label_counts
from pipeline.models.registry import Registry
from pipeline.nights.finish import score_batch
from pipeline.nights.publish import publish
from pipeline.nights.summary import (
    LabelledNight,
    RowAccounting,
    estimate_accuracy,
    held_batches,
    label_shifts,
    labelled_night,
    night_before,
)
from pipeline.promotion.register import train
from pipeline.scoring.labels import LabelledBatch
from pipeline.scoring.scorer import Scorer
from pipeline.workspace import Workspace

Rows = Sequence[dict[str, Any]]
CHINESE = [{"id": f"s{n}", "text": "天 气 很 好 吗"} for n in range(60)]


class Station:
    """A workspace with a model of the weather, and nights for it."""

    def __init__(self, root: Path) -> None:
        self.workspace = Workspace(root / "workspace")
        self.inbox = root

    def ingest(self, name: str, rows: Rows) -> None:
        path = self.inbox / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        ingest(self.workspace, [str(path)], IngestConfig(), batch_id=name, replace=True)

    def train(self) -> None:
        train(self.workspace, "weather", tiny_recipe(baseline=False))

    def label(self, *names: str) -> LabelledNight:
        with Scorer(Registry(self.workspace).find(), ScoringConfig(device="cpu", threads=1)) as scorer:
            for name in names:
                score_batch(self.workspace, self.workspace.batch(name), scorer, DriftConfig())
        night = labelled_night(self.workspace, "weather", [self.workspace.batch(name) for name in names])
        assert night is not None
        return night

    def night(self, name: str, rows: Rows) -> LabelledNight:
        self.ingest(name, rows)
        return self.label(name)


def unlabelled(rows: Rows) -> Rows:
    return [{"id": row["id"], "text": row["text"]} for row in rows]


def rainy(count: int) -> Rows:
    return [row for row in weather_rows(2 * count) if row["label"] == "rain"]


@pytest.fixture(scope="module")
def trained_station(tmp_path_factory: pytest.TempPathFactory) -> Path:
    station = Station(tmp_path_factory.mktemp("station"))
    station.ingest("history", weather_rows())
    station.train()
    return station.inbox


@pytest.fixture
def station(trained_station: Path, tmp_path: Path) -> Station:
    shutil.copytree(trained_station, tmp_path, dirs_exist_ok=True)
    return Station(tmp_path)


def test_several_batches_of_a_night_add_up(station: Station) -> None:
    station.ingest("one", unlabelled(weather_rows(30)))
    station.ingest("two", [*unlabelled(rainy(50)), {"id": "e", "text": ""}])
    night = station.label("one", "two")
    assert night.names == "one, two"
    assert (night.rows, night.non_empty, night.counts["empty"]) == (81, 80, 1)
    assert sum(night.labels.values()) == 80
    assert night.share("rain") == night.labels["rain"] / 80
    assert night.profile is not None
    assert (night.profile.rows, night.profile.non_empty) == (81, 80)
    seconds = [batch.manifest["seconds"] for batch in night.batches]
    assert night.rows_per_second == pytest.approx(81 / sum(seconds), rel=0.1)


def test_batches_without_whole_labels_are_no_night(station: Station) -> None:
    station.ingest("one", unlabelled(weather_rows(30)))
    batch = station.workspace.batch("one")
    assert labelled_night(station.workspace, "weather", [batch]) is None
    station.label("one")
    station.ingest("one", unlabelled(weather_rows(31)))  # its labels are those of other documents now
    assert labelled_night(station.workspace, "weather", [station.workspace.batch("one")]) is None


def test_the_night_before_is_the_newest_that_the_model_labelled_and_did_not_learn_from(station: Station) -> None:
    workspace = station.workspace
    station.night("first", unlabelled(weather_rows(30)))
    station.night("second", CHINESE)
    tonight = station.night("tonight", unlabelled(weather_rows(32)))
    _created(workspace, {"first": "2026-11-18", "second": "2026-11-19", "tonight": "2026-11-20"})
    station.label("history")  # what it was trained on, and the last to be labelled

    def before(*tonight: str) -> str | None:
        night = night_before(workspace, "weather", tonight)
        return night.names if night else None

    assert before("tonight") == "second"  # held, and a night all the same
    assert before("tonight", "second") == "first"
    assert before("tonight", "second", "first") is None
    assert before() == tonight.names
    (workspace.labels_dir("weather", "second") / "manifest.json").write_text("{")
    assert before("tonight") == "first"


def _created(workspace: Workspace, days: dict[str, str]) -> None:
    for batch, day in days.items():
        path = workspace.labels_dir("weather", batch) / "manifest.json"
        write_json(path, {**read_json(path), "created": f"{day}T02:00:00+00:00"})


def test_held_batches_wait_until_they_are_published(station: Station) -> None:
    workspace = station.workspace
    station.night("bad", CHINESE)
    station.night("good", unlabelled(weather_rows(40)))
    station.night("replaced", CHINESE)
    station.ingest("replaced", unlabelled(weather_rows(40)))  # nobody can publish its labels any more
    station.night("gone", CHINESE)
    shutil.rmtree(workspace.documents_dir("gone"))
    assert [(model, batch.id) for model, batch in held_batches(workspace)] == [("weather", "bad")]
    publish(workspace, "bad")
    assert held_batches(workspace) == []


def test_rows_that_do_not_add_up_are_noticed(station: Station) -> None:
    night = station.night("one", [*weather_rows(30), weather_rows(1)[0]])
    batch, labels = station.workspace.batch("one"), night.batches[0]
    account = RowAccounting.of(batch, labels)
    assert (account.rows_read, account.duplicates, account.documents) == (31, 1, 30)
    assert account.adds_up
    assert RowAccounting.of(batch, None).adds_up
    for lost in ("rows_read", "duplicates", "rejects"):
        counts = {**batch.manifest["counts"], lost: batch.manifest["counts"][lost] + 1}
        assert not RowAccounting.of(
            type(batch)(batch.id, batch.path, {**batch.manifest, "counts": counts}), labels
        ).adds_up
    fewer = {**labels.manifest, "counts": {**labels.manifest["counts"], "scored": 0, "review": 0, "empty": 29}}
    assert not RowAccounting.of(batch, LabelledBatch(labels.id, labels.path, fewer)).adds_up


def made_up(labels: dict[str, int]) -> LabelledNight:
    rows = sum(labels.values())
    counts = {"documents": rows, "scored": rows, "review": 0, "empty": 0}
    return LabelledNight([LabelledBatch("one", Path("one"), {"counts": counts, "labels": labels})])


def test_the_largest_move_of_a_label_comes_first_and_chance_is_told_from_change() -> None:
    before = made_up({"rain": 500, "sun": 480, "fog": 20})
    after = made_up({"rain": 600, "sun": 380, "hail": 20})
    moves = label_shifts(after, before)
    assert [move.label for move in moves] == ["rain", "sun", "hail", "fog"]
    assert (moves[0].before, moves[0].tonight) == (0.5, 0.6)
    assert not any(move.within_noise for move in moves)
    few = label_shifts(made_up({"rain": 6, "sun": 4}), made_up({"rain": 5, "sun": 5}))
    assert all(move.within_noise for move in few)
    many = label_shifts(made_up({"rain": 505_000, "sun": 495_000}), made_up({"rain": 500_000, "sun": 500_000}))
    assert all(move.within_noise for move in many)  # half a point is of no interest


def nothing_said(texts: int) -> Profile:
    return Profile.of(
        np.zeros(texts, int), np.zeros(texts, int), np.zeros(texts), label_counts({}, ["rain", "sun"], None)
    )


def test_the_estimate_is_the_mean_confidence_of_what_can_be_trusted(station: Station) -> None:
    station.ingest("plain", [*unlabelled(weather_rows(50)), {"id": "e", "text": " "}])
    station.ingest("foreign", CHINESE)
    night = station.label("plain", "foreign", "history")
    blank = LabelledBatch("blank", Path("blank"), {**night.manifest, "health": nothing_said(7).as_json()})
    night = LabelledNight([*night.batches, blank])
    bundle = Registry(station.workspace).find()
    found = estimate_accuracy(night, bundle)
    profile = night.batches[0].profile
    assert profile is not None
    assert found.share == pytest.approx(profile.mean_confidence)
    assert (found.batches, found.rows) == (["plain"], 50)
    assert found.calibration_error == bundle.metrics["test"]["calibration_error"]
    assert found.left_out["foreign"].startswith("its texts are of another kind than those of the test (")
    assert "unknown words" in found.left_out["foreign"]
    assert found.left_out["blank"] == "it has no text"
    assert found.left_out["history"] == "weather@1 was trained on it"
    nothing = estimate_accuracy(LabelledNight(night.batches[1:]), bundle)
    assert (nothing.share, nothing.rows, nothing.batches) == (None, 0, [])


def test_labels_from_before_health_was_kept_are_read(station: Station) -> None:
    station.night("old", unlabelled(weather_rows(40)))
    path = station.workspace.labels_dir("weather", "old") / "manifest.json"
    kept = {
        key: value for key, value in read_json(path).items() if key not in ("health", "checks", "findings", "notes")
    }
    write_json(path, kept)
    night = labelled_night(station.workspace, "weather", [station.workspace.batch("old")])
    assert night is not None
    assert night.profile is None
    found = estimate_accuracy(night, Registry(station.workspace).find())
    assert found.left_out == {"old": "some of it was labelled before data profiles were stored"}
    before = night_before(station.workspace, "weather", [])
    assert before is not None
    assert before.names == "old"
