"""The linear baseline is a fair yardstick, and never the reason that training fails."""

import numpy as np
import pytest
from conftest import one_hot

from pipeline.training.linear.baseline import CHARACTERS, NAIVE_BAYES, WORDS, LabelledTexts, linear_baseline

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


def texts_of(texts: list[str], targets: np.ndarray) -> LabelledTexts:
    return LabelledTexts(texts, texts, targets)


def scored(texts: list[str], targets: np.ndarray, test: list[str], truth: np.ndarray, **options: object) -> dict:
    """The baseline with the training texts for validation, too."""
    train = texts_of(texts, targets)
    return linear_baseline(train, train, texts_of(test, truth), **options)


def test_it_learns_words():
    result = scored(TEXTS, TARGETS, ["parcel is late", "wrong invoice"], one_hot([1, 0], 2))
    assert result["name"] in result["validation_macro_f1"]
    assert result["validation_macro_f1"].keys() == {WORDS, CHARACTERS, NAIVE_BAYES}
    assert result["left_out"] == []
    assert result["accuracy"] == result["macro_f1"] == 1.0
    assert result["features"] > 5
    assert result["seconds"] >= 0


def test_tokens_are_what_stands_between_spaces():
    """So Chinese, set apart by the tokenizer, and punctuation count like words."""
    texts = ["很 好 吃 !", "好 吃 !", "太 慢 了 ?", "慢 了 ?"]
    result = scored(texts, one_hot([0, 0, 1, 1], 2), ["吃 !", "了 ?"], one_hot([0, 1], 2))
    assert result["accuracy"] == 1.0


def test_the_same_data_give_the_same_scores():
    first, second = (scored(TEXTS, TARGETS, TEXTS, TARGETS) for _ in range(2))
    assert {**first, "seconds": 0} == {**second, "seconds": 0}


def test_a_corpus_in_which_no_word_repeats_still_trains():
    result = scored(["alpha", "beta"], one_hot([0, 1], 2), ["alpha", "beta"], one_hot([0, 1], 2))
    assert result["accuracy"] == 1.0
    assert result["features"] >= 2


@pytest.mark.parametrize(
    ("texts", "label_ids"),
    [(["", " "], [1, 1]), (["", " ", ""], [0, 1, 1]), (["a", "b"], [1, 1])],
    ids=["no words, one class", "no words", "one class"],
)
def test_with_nothing_to_learn_it_guesses_the_commonest_class(texts, label_ids):
    result = scored(texts, one_hot(label_ids, 2), ["a", "b", "c"], one_hot([1, 1, 0], 2))
    assert result["accuracy"] == pytest.approx(2 / 3)
    assert result["features"] == 0


def test_without_test_texts_the_scores_are_none():
    result = scored(TEXTS, TARGETS, [], one_hot([], 2))
    assert result["accuracy"] is None
    assert result["macro_f1"] is None


def test_with_several_labels_each_class_is_told_from_the_rest() -> None:
    both = np.array([[True, True]])
    texts = [*TEXTS, "charged twice and the parcel never arrived", "good morning"]
    targets = np.concatenate([TARGETS, both, ~both])
    result = scored(texts, targets, texts, targets, multi_label=True)
    assert result["accuracy"] == result["macro_f1"] == 1.0


def test_with_several_labels_a_class_that_all_or_none_have_is_not_learnt() -> None:
    targets = np.concatenate([TARGETS, np.ones((8, 1), bool), np.zeros((8, 1), bool)], axis=1)
    result = scored(TEXTS, targets, TEXTS, targets, multi_label=True)
    assert result["accuracy"] == 1.0


def test_characters_are_left_out_where_they_take_too_long_and_it_says_so() -> None:
    result = scored(TEXTS, TARGETS, TEXTS, TARGETS, budget_seconds=0.0)
    assert result["left_out"] == [CHARACTERS]
    assert result["validation_macro_f1"].keys() == {WORDS, NAIVE_BAYES}
    assert result["accuracy"] == 1.0


def test_naive_bayes_weighs_the_features_of_two_classes_only() -> None:
    result = scored(TEXTS, one_hot([0, 0, 1, 1, 2, 2, 2, 2], 3), TEXTS, one_hot([0, 0, 1, 1, 2, 2, 2, 2], 3))
    assert result["validation_macro_f1"].keys() == {WORDS, CHARACTERS}


def test_misspelt_words_are_told_by_their_characters_and_validation_sees_it() -> None:
    """No word of a text is in another, so only characters can tell; the texts are as they were written."""
    random = np.random.default_rng(1)
    labels = np.arange(120) % 2
    stems = np.array(["refund", "parcel"])
    texts = ["".join(random.choice(list("xyz"), 3)) + stems[label] + str(number) for number, label in enumerate(labels)]
    parts = [texts_of(texts[start::3], one_hot(labels[start::3], 2)) for start in range(3)]
    result = linear_baseline(*parts)
    assert result["name"] == CHARACTERS
    assert result["accuracy"] > 0.95
