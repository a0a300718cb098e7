"""The linear baseline is a fair yardstick, and never the reason that training fails."""

import pytest

from pipeline.baseline import linear_baseline

LABELS = ["billing", "delivery"]
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
LABEL_IDS = [0, 0, 0, 0, 1, 1, 1, 1]


def test_it_learns_words():
    result = linear_baseline(TEXTS, LABEL_IDS, ["parcel is late", "wrong invoice"], [1, 0], LABELS)
    assert result["name"] == "TF-IDF + LinearSVC"
    assert result["accuracy"] == result["macro_f1"] == 1.0
    assert result["features"] > 5
    assert result["seconds"] >= 0


def test_tokens_are_what_stands_between_spaces():
    """So Chinese, set apart by the tokenizer, and punctuation count like words."""
    texts = ["很 好 吃 !", "好 吃 !", "太 慢 了 ?", "慢 了 ?"]
    result = linear_baseline(texts, [0, 0, 1, 1], ["吃 !", "了 ?"], [0, 1], ["good", "bad"])
    assert result["accuracy"] == 1.0


def test_the_same_data_give_the_same_scores():
    first, second = (linear_baseline(TEXTS, LABEL_IDS, TEXTS, LABEL_IDS, LABELS) for _ in range(2))
    assert {**first, "seconds": 0} == {**second, "seconds": 0}


def test_a_corpus_in_which_no_word_repeats_still_trains():
    result = linear_baseline(["alpha", "beta"], [0, 1], ["alpha", "beta"], [0, 1], LABELS)
    assert result["accuracy"] == 1.0
    assert result["features"] == 2


@pytest.mark.parametrize(
    ("texts", "label_ids"),
    [(["", " "], [1, 1]), (["", " ", ""], [0, 1, 1]), (["a", "b"], [1, 1])],
    ids=["no words, one class", "no words", "one class"],
)
def test_with_nothing_to_learn_it_guesses_the_commonest_class(texts, label_ids):
    result = linear_baseline(texts, label_ids, ["a", "b", "c"], [1, 1, 0], LABELS)
    assert result["accuracy"] == pytest.approx(2 / 3)
    assert result["features"] == 0


def test_without_test_texts_the_scores_are_none():
    result = linear_baseline(TEXTS, LABEL_IDS, [], [], LABELS)
    assert result["accuracy"] is None
    assert result["macro_f1"] is None
