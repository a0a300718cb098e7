from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from conftest import weather_rows

from pipeline.dataset.corpus import LEFT_OUT, TEST, TRAIN, VALIDATION, Corpus, select
from pipeline.errors import TrainingDataError
from pipeline.workspace import Batch

AddBatch = Callable[..., Batch]


def chosen(*batches: Batch, method: str = "hash", validation: float = 0.1, test: float = 0.1) -> Corpus:
    return select(batches, method=method, validation_share=validation, test_share=test)


def split_of(corpus: Corpus) -> dict[str, int]:
    return {
        doc_id: split
        for split in (TRAIN, VALIDATION, TEST)
        for doc_ids, _, _ in corpus.read(split)
        for doc_id in doc_ids.to_pylist()
    }


def test_a_document_never_moves_between_splits_when_the_corpus_grows(add_batch: AddBatch) -> None:
    rows = weather_rows(400)
    small = split_of(chosen(add_batch(rows[:300], "one")))
    grown = split_of(chosen(add_batch(rows[:300], "one"), add_batch(rows[300:], "two")))
    assert small.items() <= grown.items()
    sizes = np.bincount(list(grown.values()))
    assert sizes[VALIDATION] > 10
    assert sizes[TEST] > 10


def test_equal_texts_are_used_once_with_their_majority_label(add_batch: AddBatch) -> None:
    votes = [{"id": f"v{n}", "text": "same words", "label": label} for n, label in enumerate(["rain", "sun", "sun"])]
    corpus = chosen(add_batch(weather_rows() + votes))
    assert corpus.counts["equal_texts"] == 2
    assert corpus.counts["conflicting_texts"] == 1
    used = [row for row in range(120, 123) if corpus.splits[row] != LEFT_OUT]
    assert [corpus.labels[corpus.label_ids[row]] for row in used] == ["sun"]


def test_a_given_test_split_wins_and_its_texts_are_left_out_of_training(add_batch: AddBatch) -> None:
    rows = weather_rows(100)
    given = [{**row, "id": f"t{n}", "split": "test"} for n, row in enumerate(rows[:20])]
    corpus = chosen(add_batch([{**row, "split": None} for row in rows] + given))
    splits = split_of(corpus)
    assert {doc_id for doc_id, split in splits.items() if split == TEST} == {f"t{n}" for n in range(20)}
    assert corpus.counts["left_out_for_test"] == 20
    assert not {f"w{n}" for n in range(20)} & splits.keys()


def test_rows_given_for_training_give_some_to_validation(add_batch: AddBatch) -> None:
    train = weather_rows(200, split="train")
    test = [{**row, "id": f"t{row['id']}", "text": f"also {row['text']}"} for row in weather_rows(30, split="test")]
    corpus = chosen(add_batch(train + test))
    assert corpus.counts["test"] == 30
    assert 5 < corpus.counts["validation"] < 40
    assert corpus.counts["train"] + corpus.counts["validation"] == 200


def test_a_stratified_split_has_the_same_share_of_every_class(add_batch: AddBatch) -> None:
    rows = [{"text": f"a {n}", "label": "a"} for n in range(100)] + [
        {"text": f"b {n}", "label": "b"} for n in range(20)
    ]
    corpus = chosen(add_batch(rows), method="stratified")
    for split, expected in ((VALIDATION, [10, 2]), (TEST, [10, 2]), (TRAIN, [80, 16])):
        assert np.bincount(corpus.label_ids[corpus.splits == split]).tolist() == expected


def test_unlabelled_documents_are_counted_and_not_used(add_batch: AddBatch) -> None:
    corpus = chosen(add_batch([*weather_rows(), {"id": "u", "text": "no label here", "label": None}]))
    assert corpus.counts["unlabelled"] == 1
    assert "u" not in split_of(corpus)


def test_a_tiny_corpus_still_trains_validates_and_tests_on_something(add_batch: AddBatch) -> None:
    corpus = chosen(add_batch(weather_rows(8)))
    trained_on = corpus.label_ids[corpus.splits == TRAIN]
    assert set(trained_on) == {0, 1}
    assert corpus.counts["validation"] >= 1
    assert corpus.counts["test"] >= 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "a", "label": None}, {"text": "b", "label": None}], "no labelled rows"),
        ([{"text": "a", "label": "x"}, {"text": "b", "label": "x"}], r"one class only \('x'\)"),
        (
            [*({"text": f"a {n}", "label": "x"} for n in range(9)), {"text": "b", "label": "lonely"}],
            "class 'lonely' has a single example",
        ),
        (
            [
                *({"text": f"{c} {n}", "label": c, "split": "train"} for c in "xy" for n in range(9)),
                {"text": "p", "label": "z", "split": "test"},
                {"text": "q", "label": "z", "split": "test"},
            ],
            "class 'z' has no example to train on",
        ),
    ],
)
def test_labels_that_cannot_train_a_classifier_are_named(
    add_batch: AddBatch, rows: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(TrainingDataError, match=message):
        chosen(add_batch(rows))


def test_no_documents_at_all_says_where_to_start() -> None:
    with pytest.raises(TrainingDataError, match="nightlabel ingest"):
        chosen()
