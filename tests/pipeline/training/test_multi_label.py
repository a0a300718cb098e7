"""Documents with several labels, from raw file to labels row, and what a teacher and balance change on the way."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from conftest import tiny_recipe, weather_rows

from pipeline.config import Recipe, ScoringConfig, apply_overrides
from pipeline.dataset.corpus import TEST, TRAIN, VALIDATION
from pipeline.errors import InputError, TrainingDataError
from pipeline.metrics.profile import NO_CLASS_BIN
from pipeline.nights.finish import score_batch
from pipeline.promotion.register import train
from pipeline.schemas import LABELS
from pipeline.scoring.scorer import Scorer
from pipeline.training.prepare import WarmStart, prepare
from pipeline.training.selection import fit
from pipeline.workspace import Batch, Workspace

WORDS = {"sun": "bright", "rain": "wet", "wind": "gusty"}


def mixed_weather(count: int = 240) -> list[dict[str, Any]]:
    """Each of three classes by itself, so that a document has none, one or several."""
    rows = []
    for number in range(count):
        labels = [label for place, label in enumerate(WORDS) if number >> place & 1]
        words = " ".join(WORDS[label] for label in labels)
        rows.append(
            {"id": f"m{number}", "text": f"day {number} was {words} and long {number * 7 % 13}", "label": labels}
        )
    return rows


def recipe(**training: Any) -> Recipe:
    return tiny_recipe(**{"epochs": 16, "split": "stratified", **training})


def test_several_labels_go_from_file_to_labels(workspace: Workspace, add_batch: Callable[..., Batch]) -> None:
    rows = mixed_weather()
    add_batch(rows)
    publication = train(workspace, "weather", recipe())
    bundle, test = publication.bundle, publication.bundle.metrics["test"]
    assert bundle.labels == sorted(WORDS)
    assert test["accuracy"] > 0.9
    assert test["micro_f1"] > 0.95
    assert test["confusion"] is None
    assert not (bundle.path / "figures" / "confusion_matrix.png").exists()
    assert bundle.metrics["parity"]["equal_labels"] == 1.0
    assert bundle.variants["int8"]["agreement"]["equal_labels"] > 0.9
    assert bundle.reference is not None
    assert bundle.reference.labels.bins == (*sorted(WORDS), NO_CLASS_BIN)

    add_batch([{"id": "none", "text": ""}, *({"id": row["id"], "text": row["text"]} for row in rows)], "night")
    report = score_batch(workspace, workspace.batch("night"), Scorer(bundle, ScoringConfig(device="cpu")))
    table = pq.read_table(report.path / "part-00000.parquet", schema=LABELS)
    found = {row["doc_id"]: row for row in table.to_pylist()}
    assert found["none"]["labels"] is None
    assert found["none"]["status"] == "empty"
    right = [found[row["id"]]["labels"] == sorted(row["label"]) for row in rows]
    assert np.mean(right) > 0.9
    nothing = next(found[row["id"]] for row in rows if not row["label"] and found[row["id"]]["labels"] == [])
    assert nothing["label"] is None  # that none of the classes holds is an answer
    assert nothing["confidence"] == pytest.approx(1 - max(nothing["scores"]))
    several = next(found[row["id"]] for row in rows if len(row["label"]) > 1 and right[int(row["id"][1:])])
    assert several["confidence"] == max(several["scores"])
    assert several["label"] == bundle.labels[int(np.argmax(several["scores"]))]
    given = sum(len(row["labels"] or []) for row in found.values())
    assert sum(report.labels.values()) == given


def test_with_one_label_each_the_list_stays_empty(workspace: Workspace, add_batch: Callable[..., Batch]) -> None:
    add_batch(weather_rows())
    bundle = train(workspace, "weather", tiny_recipe(epochs=2)).bundle
    report = score_batch(workspace, workspace.batch("one"), Scorer(bundle, ScoringConfig(device="cpu")))
    table = pq.read_table(report.path / "part-00000.parquet", schema=LABELS)
    assert table["labels"].null_count == len(table)
    assert bundle.thresholds is None


def test_a_stratified_split_holds_every_class(workspace: Workspace, add_batch: Callable[..., Batch]) -> None:
    add_batch(mixed_weather())
    corpus = prepare(workspace, recipe()).corpus
    assert corpus.multi_label
    assert corpus.label_sets.shape == (8, 3)
    for split in (TRAIN, VALIDATION, TEST):
        assert corpus.label_sets[corpus.label_ids[corpus.splits == split]].any(axis=0).all()


def test_each_class_needs_an_example_to_train_on(workspace: Workspace, add_batch: Callable[..., Batch]) -> None:
    rows = [{**row, "split": "train"} for row in mixed_weather(100)]
    rows += [{"id": "x", "text": "snow and sun", "label": ["snow", "sun"], "split": "test"}] * 1
    rows += [{"id": "y", "text": "snow again", "label": ["snow"], "split": "test"}]
    add_batch(rows)
    with pytest.raises(TrainingDataError, match=r"'snow' has no example to train on"):
        prepare(workspace, recipe())


def test_single_labels_join_several_as_sets_of_one(workspace: Workspace, add_batch: Callable[..., Batch]) -> None:
    add_batch(mixed_weather(), "several")
    add_batch([{"id": f"s{n}", "text": f"only gusty {n}", "label": "wind"} for n in range(20)], "single")
    corpus = prepare(workspace, recipe()).corpus
    assert corpus.labels == sorted(WORDS)
    assert corpus.label_sets[corpus.label_ids[-1]].tolist() == [False, False, True]


def test_a_single_label_that_looks_like_several_is_refused(
    workspace: Workspace, add_batch: Callable[..., Batch]
) -> None:
    add_batch(mixed_weather(), "several")
    add_batch([{"id": f"s{n}", "text": f"only gusty {n}", "label": "a|b"} for n in range(20)], "single")
    with pytest.raises(TrainingDataError, match=r"batch single has one label .* the label 'a\|b' holds"):
        prepare(workspace, recipe())


def teacher_table(path: Path, ids: list[str], sun: list[float]) -> Path:
    pacsv.write_csv(pa.table({"doc_id": ids, "rain": [1 - value for value in sun], "sun": sun}), path)
    return path


def test_a_teacher_labels_what_nobody_did(
    workspace: Workspace, add_batch: Callable[..., Batch], tmp_path: Path
) -> None:
    """Twelve labelled texts are too few to learn eight words from; what a teacher says of others is enough."""
    rows = weather_rows(400)
    for number, row in enumerate(rows):
        if number >= 60:
            row["split"] = "test" if number % 4 == 0 else None
        else:
            row["split"] = "validation" if number >= 12 else "train"
        if number >= 60 and number % 4:
            del row["label"]
    add_batch(rows)
    taught = [row for number, row in enumerate(rows) if number >= 60 and number % 4]
    sun = [0.97 if int(row["id"][1:]) % 2 == 0 else 0.03 for row in taught]
    path = teacher_table(tmp_path / "opinions.csv", [row["id"] for row in taught], sun)
    prepared = prepare(workspace, tiny_recipe(), start=WarmStart(teacher=str(path)))
    assert prepared.corpus.counts["taught"] == len(taught)
    assert prepared.corpus.counts["train"] == 12 + len(taught)
    publication = train(workspace, "weather", tiny_recipe(), start=WarmStart(teacher=str(path)))
    metrics = publication.bundle.metrics
    assert metrics["test"]["accuracy"] > 0.95
    assert metrics["teacher"]["texts"] == len(taught)
    assert metrics["parity"]["equal_labels"] == 1.0


def test_a_teacher_does_not_teach_what_is_tested(
    workspace: Workspace, add_batch: Callable[..., Batch], tmp_path: Path
) -> None:
    rows = [{**row, "split": "test" if number < 40 else "train"} for number, row in enumerate(weather_rows())]
    copies = [{"id": f"copy of {row['id']}", "text": row["text"]} for row in rows[:40]]
    add_batch([*rows, *copies])
    ids = [row["id"] for row in [*rows[:40], *copies]]
    path = teacher_table(tmp_path / "opinions.csv", ids, [0.5] * len(ids))
    counts = prepare(workspace, tiny_recipe(), start=WarmStart(teacher=str(path))).corpus.counts
    assert counts["taught"] == 0


def test_ids_that_are_no_documents_are_told(
    workspace: Workspace, add_batch: Callable[..., Batch], tmp_path: Path
) -> None:
    add_batch(weather_rows())
    path = teacher_table(tmp_path / "opinions.csv", ["w1", "w2", "x17"], [0.5] * 3)
    with pytest.raises(InputError, match=r"1 of 3 ids are not documents here, the first is 'x17'"):
        prepare(workspace, tiny_recipe(), start=WarmStart(teacher=str(path)))


def test_validation_chooses_how_classes_are_balanced(workspace: Workspace, add_batch: Callable[..., Batch]) -> None:
    add_batch(weather_rows())
    tried = apply_overrides(tiny_recipe(epochs=2), ["training.class_balance=try"])
    trained = fit(workspace, prepare(workspace, tried), tried)
    assert [one.name for one in trained.candidates] == [
        "from scratch",
        "from scratch, class weights",
        "from scratch, balanced sampling",
    ]
    best = max(one.best_macro_f1 for one in trained.candidates)
    assert [one.best_macro_f1 for one in trained.candidates if one.chosen] == [best]
    publication = train(workspace, "weather", tried)
    candidates = json.loads((publication.bundle.path / "metrics.json").read_text())["candidates"]
    assert len(candidates) == 3
