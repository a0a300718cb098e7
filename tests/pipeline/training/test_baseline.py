"""The linear baseline is a fair yardstick, and never the reason that training fails."""

import numpy as np
import pytest
from conftest import one_hot

from pipeline.training.baseline import linear_baseline

TEXTS = [
    "charged twice for one order",
    "i was charged the wrong amount",
    "the invoice is wrong",
    "invoice charged again",
    "the parcel never arrived",
    "where is my parcel",
    "my parcel is late",
    "the courier lost my parcel",
]
TARGETS = one_hot([0, 0, 0, 0, 1, 1, 1, 1], 2)


def test_it_learns_words():
    result = linear_baseline(TEXTS, TARGETS, ["parcel is late", "wrong invoice"], one_hot([1, 0], 2))
    assert result["name"] == "TF-IDF + LinearSVC"
    assert result["accuracy"] == result["macro_f1"] == 1.0
    assert result["features"] > 5
    assert result["seconds"] >= 0


def test_tokens_are_what_stands_between_spaces():
    """So Chinese, set apart by the tokenizer, and punctuation count like words."""
    texts = ["很 好 吃 !", "好 吃 !", "太 慢 了 ?", "慢 了 ?"]
    result = linear_baseline(texts, one_hot([0, 0, 1, 1], 2), ["吃 !", "了 ?"], one_hot([0, 1], 2))
    assert result["accuracy"] == 1.0


def test_the_same_data_give_the_same_scores():
    first, second = (linear_baseline(TEXTS, TARGETS, TEXTS, TARGETS) for _ in range(2))
    assert {**first, "seconds": 0} == {**second, "seconds": 0}


def test_a_corpus_in_which_no_word_repeats_still_trains():
    result = linear_baseline(["alpha", "beta"], one_hot([0, 1], 2), ["alpha", "beta"], one_hot([0, 1], 2))
    assert result["accuracy"] == 1.0
    assert result["features"] == 2


@pytest.mark.parametrize(
    ("texts", "label_ids"),
    [(["", " "], [1, 1]), (["", " ", ""], [0, 1, 1]), (["a", "b"], [1, 1])],
    ids=["no words, one class", "no words", "one class"],
)
def test_with_nothing_to_learn_it_guesses_the_commonest_class(texts, label_ids):
    result = linear_baseline(texts, one_hot(label_ids, 2), ["a", "b", "c"], one_hot([1, 1, 0], 2))
    assert result["accuracy"] == pytest.approx(2 / 3)
    assert result["features"] == 0


def test_without_test_texts_the_scores_are_none():
    result = linear_baseline(TEXTS, TARGETS, [], one_hot([], 2))
    assert result["accuracy"] is None
    assert result["macro_f1"] is None


def test_with_several_labels_each_class_is_told_from_the_rest() -> None:
    both = np.array([[True, True]])
    texts = [*TEXTS, "charged twice and the parcel never arrived", "good morning"]
    targets = np.concatenate([TARGETS, both, ~both])
    result = linear_baseline(texts, targets, texts, targets, multi_label=True)
    assert result["accuracy"] == result["macro_f1"] == 1.0


def test_with_several_labels_a_class_that_all_or_none_have_is_not_learnt() -> None:
    targets = np.concatenate([TARGETS, np.ones((8, 1), bool), np.zeros((8, 1), bool)], axis=1)
    result = linear_baseline(TEXTS, targets, TEXTS, targets, multi_label=True)
    assert result["accuracy"] == 1.0
