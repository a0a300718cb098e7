"""Training labels that are likely wrong are found, and the right ones let be."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from conftest import tiny_recipe, weather_rows
from review_tools import Office

from pipeline.dataset.corpus import TRAIN
from pipeline.dataset.token_set import TokenSet
from pipeline.errors import ReviewError
from pipeline.promotion.register import train
from pipeline.review.label_errors import cross_validated, likely_label_errors, stratified_folds
from pipeline.training.linear.branches import CrossFitted
from pipeline.training.prepare import prepare
from pipeline.workspace import Batch, Workspace


def test_every_class_is_spread_over_the_folds() -> None:
    label_ids = np.array([0] * 50 + [1] * 7 + [2])
    folds = stratified_folds(label_ids, 5, seed=0)
    assert np.bincount(folds[:50]).tolist() == [10] * 5
    assert set(folds[50:57]) == set(range(5))
    assert sorted(np.bincount(folds, minlength=5).tolist()) == [11, 11, 12, 12, 12]


def test_no_group_is_in_two_folds_and_every_class_still_spread() -> None:
    groups = np.arange(300) // 5
    label_ids = groups % 3
    folds = stratified_folds(label_ids, 5, seed=0, groups=groups)
    assert all(len(set(folds[groups == group])) == 1 for group in range(60))
    assert [np.bincount(folds[label_ids == label]).tolist() for label in range(3)] == [[20] * 5] * 3


@pytest.mark.parametrize("alone", [False, True])
def test_folds_are_cut_by_group_unless_a_class_would_be_in_one(
    workspace: Workspace, add_batch: Callable[..., Batch], monkeypatch: pytest.MonkeyPatch, *, alone: bool
) -> None:
    rows = [{**row, "week": number // 6} for number, row in enumerate(weather_rows(240))]
    rows += [{"id": f"s{n}", "text": f"snow {n}", "label": "snow", "week": "s" if alone else f"s{n}"} for n in range(9)]
    add_batch(rows, group="week")
    texts = prepare(workspace, tiny_recipe()).cache.read(TRAIN)
    used = []

    def fit(training: TokenSet, *arguments: Any, **_: bool) -> CrossFitted:
        used.append(arguments[-1])
        return CrossFitted(None, np.zeros((len(training), training.classes), np.float32))

    monkeypatch.setattr("pipeline.review.label_errors.fit_ngram_linear", fit)
    cross_validated(texts, pa.array(["word"]), 10)
    assert texts.groups is not None
    (folds,) = used
    divided = any(len(set(folds[texts.groups == group])) > 1 for group in texts.groups)
    assert divided == alone


def test_labels_that_were_swapped_are_the_most_suspicious(tmp_path: Path) -> None:
    office = Office(tmp_path)
    rows, swap = weather_rows(300), {"sun": "rain", "rain": "sun"}
    wrong = {f"w{number}" for number in range(5, 300, 37)}
    office.ingest(
        "history", [{**row, "label": swap[row["label"]] if row["id"] in wrong else row["label"]} for row in rows]
    )
    bundle = office.train().bundle
    corpus = prepare(office.workspace, tiny_recipe()).corpus
    trained = {doc_id for doc_ids, _, _ in corpus.read(TRAIN) for doc_id in doc_ids.to_pylist()}
    found = list(likely_label_errors(office.workspace, bundle))
    assert {row["doc_id"] for row in found} <= wrong & trained
    assert len(found) >= 0.7 * len(wrong & trained)
    assert all(row["second"] == swap[row["label"]] and row["confidence"] < 0.5 for row in found)
    assert all(rows[int(row["doc_id"][1:])]["text"] == row["text"] for row in found)

    office.label("history")
    assert office.export("history", rows=12, suspicious=True).reasons["suspicious"] == 4
    first = office.rows()[0]
    assert (first["why"], first["doc_id"]) == ("suspicious", found[0]["doc_id"])
    office.fill_in(lambda _, row: row["second"] if row["why"] == "suspicious" else "")
    imported = office.take_in()
    assert imported.corrected["suspicious"] == 4
    left = {row["doc_id"] for row in likely_label_errors(office.workspace, bundle)}
    assert left
    assert left <= wrong - {row["doc_id"] for row in found[:4]}


def test_of_several_labels_the_one_that_is_wrong_is_found(
    workspace: Workspace, add_batch: Callable[..., Batch]
) -> None:
    rows, swap = weather_rows(300), {"sun": "rain", "rain": "sun"}
    wrong = {f"w{number}" for number in range(5, 300, 37)}
    for row in rows:
        label = swap[row["label"]] if row["id"] in wrong else row["label"]
        row["label"] = [label, "day"]
        row["text"] = row["text"].removeprefix("day ") + " daily"
    rows += [{"id": f"x{n}", "text": f"nothing {n}", "label": []} for n in range(60)]
    add_batch(rows)
    bundle = train(workspace, "weather", tiny_recipe(baseline=False)).bundle
    found = list(likely_label_errors(workspace, bundle))
    assert {row["doc_id"] for row in found} <= wrong
    assert len(found) >= 5
    assert all(row["several"] and row["confidence"] < 0.5 and row["second"] in swap for row in found)


def test_too_few_texts_or_none_are_told(workspace: Workspace, add_batch: Callable[..., Batch]) -> None:
    add_batch(weather_rows(40))
    bundle = train(workspace, "weather", tiny_recipe(baseline=False)).bundle
    with pytest.raises(ReviewError, match="35 training texts are too few"):
        list(likely_label_errors(workspace, bundle))
    shutil.rmtree(workspace.documents_dir("one"))
    with pytest.raises(ReviewError, match="none of the batches it was trained on is there any more; leave"):
        list(likely_label_errors(workspace, bundle))
