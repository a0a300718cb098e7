"""The linear branches are the linear models they say they are."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline.dataset.characters import ngram_hashes
from pipeline.dataset.minibatches import TokenLists
from pipeline.dataset.token_set import TokenSet
from pipeline.training.linear.branches import (
    CrossFitted,
    cross_folds,
    fit_mean_embedding_linear,
    fit_ngram_linear,
    rows_with_target,
)
from pipeline.training.linear.ngram_features import NgramFeatures
from pipeline.training.model import MeanEmbeddingLinear, NgramLinear

VOCABULARY = 20
UNKNOWN_WORDS = pa.array(["aaa", "aawords", "xyz"])
WORDS = pa.array([f"{letter}{letter}word" for letter in "abcdefghijklmnopqr"])  # those with ids from 2 on


def made_up(sets: np.ndarray, label_ids: list[int], token_ids: list[list[int]], teacher: object = None) -> TokenSet:
    tokens = TokenLists.of(pa.array(token_ids, pa.list_(pa.int32())))
    ids = pa.array([str(number) for number in range(len(label_ids))])
    return TokenSet(ids, np.array(label_ids, np.int32), tokens, sets, teacher)  # type: ignore[arg-type]


def logits(branch: NgramLinear | MeanEmbeddingLinear, texts: TokenSet) -> np.ndarray:
    token_ids = torch.from_numpy(texts.tokens.pad(np.arange(len(texts)))[0])
    with torch.inference_mode():
        if isinstance(branch, NgramLinear):
            return branch(token_ids, branch.unknown_rows(texts.unknown_words)).numpy()
        return branch(token_ids).numpy()


def cross_fitted(kind: str, texts: TokenSet, *, multi_label: bool = False, balanced: bool = False) -> CrossFitted:
    folds = cross_folds(texts, np.zeros(len(texts), dtype=bool))
    if kind == "wide":
        return fit_ngram_linear(texts, WORDS, 1009, folds, multi_label=multi_label, balanced=balanced)
    torch.manual_seed(1)
    vectors = torch.randn(VOCABULARY, 8)
    return fit_mean_embedding_linear(vectors, texts, folds, multi_label=multi_label, balanced=balanced)


def fitted(kind: str, texts: TokenSet, **settings: bool) -> NgramLinear | MeanEmbeddingLinear:
    branch: NgramLinear | MeanEmbeddingLinear = cross_fitted(kind, texts, **settings).branch
    return branch


def random_texts(count: int, classes: int = 2) -> TokenSet:
    random = np.random.default_rng(2)
    label_ids = random.integers(0, classes, count).tolist()
    size = VOCABULARY + len(UNKNOWN_WORDS)
    words = [[2 + label, *random.integers(2, size, random.integers(1, 12))] for label in label_ids]
    return replace(made_up(np.eye(classes, dtype=bool), label_ids, words), unknown_words=UNKNOWN_WORDS)


def test_a_text_has_each_sequence_of_known_words_once_and_nothing_beyond_its_end() -> None:
    wide = NgramLinear(VOCABULARY, 2, 101, 101, triples=True)
    wide.bucket_rows.copy_(torch.arange(1, 102))  # each bucket has a row
    token_ids = torch.tensor([[5, 7, VOCABULARY + 3, 7, 5], [9, 0, 0, 0, 0]])
    first, second = wide.sequence_features(token_ids).tolist()
    pairs = [before * 1_000_003 + word for before, word in ((0, 5), (5, 7), (7, 1), (1, 7), (7, 5))]
    triples = [before * 1_000_003 + word for before, word in zip([0, *pairs], [5, 7, 1, 7, 5], strict=False)]
    assert first == [sequence % 101 + 1 for sequence in (*pairs, *triples)]
    assert second == [9 % 101 + 1, 0, 0, 0, 0, 9 % 101 + 1, 0, 0, 0, 0]


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("triples", [False, True])
def test_the_branch_gives_what_its_linear_models_give_for_their_features(classes: int, triples: bool) -> None:
    """The tables of words, sequences and characters are the weights of the sparse matrix, folded."""
    texts = random_texts(80, classes=classes)
    rows = np.arange(80)
    features = NgramFeatures.of(texts, rows, WORDS, 1009)
    if triples:
        features = features.with_triples(texts, rows, 1009)
    matrix = features.matrix(characters=True)
    random = np.random.default_rng(1)
    weights, start = random.normal(size=(classes, matrix.shape[1])), random.normal(size=classes)
    np.testing.assert_allclose(
        logits(features.branch(weights, start), texts), matrix @ weights.T + start, rtol=1e-4, atol=1e-4
    )
    assert {features.words.shape[1], features.characters.shape[1]} == {len(features.idf), len(features.ngram_idf)}


def test_words_and_pairs_are_weighted_by_rarity_and_normalised() -> None:
    """Made here by plain loops: features that occur in two texts at least, without those of unknown words."""
    texts = random_texts(80, classes=3)
    features = NgramFeatures.of(texts, np.arange(80), WORDS, 4_093)
    present = np.zeros((80, VOCABULARY + 4_093))
    for number, words in enumerate(word_lists(texts)):
        known = [word if word < VOCABULARY else 1 for word in words]
        for before, word in zip([0, *known], known, strict=False):
            if word > 1:
                present[number, word] = 1
            present[number, VOCABULARY + (before * 1_000_003 + word) % 4_093] = 1
    present = present[:, present.sum(axis=0) >= 2]
    expected = present * (np.log(81 / (1 + present.sum(axis=0))) + 1)
    expected /= np.maximum(np.linalg.norm(expected, axis=1, keepdims=True), 1e-9)
    np.testing.assert_allclose(features.words.toarray(), expected, atol=1e-6)


def test_characters_are_added_word_by_word_each_word_once() -> None:
    texts = random_texts(80, classes=3)
    features = NgramFeatures.of(texts, np.arange(80), WORDS, 101)
    words = [*WORDS.to_pylist(), *texts.unknown_words.to_pylist()]
    grams = [
        Counter(f" {word} "[start : start + size] for size in range(2, 6) for start in range(len(word) + 3 - size))
        for word in words
    ]
    of_texts = [[grams[word - 2] for word in sorted(set(ids.tolist()))] for ids in word_lists(texts)]
    counts = Counter(gram for several in of_texts for gram in set().union(*several))
    names = sorted(gram for gram, count in counts.items() if count >= 3)
    expected = np.zeros((80, len(names)))
    idf = np.array([np.log(81 / (1 + counts[name])) + 1 for name in names])
    for number, several in enumerate(of_texts):
        totals = np.array([sum(each[name] for each in several) for name in names])
        expected[number] = totals * idf / np.sqrt((totals * idf**2).sum())
    hashes, _ = ngram_hashes(WORDS)
    assert set(features.ngram_keys) >= set(hashes) & set(features.ngram_keys)
    found = features.characters.toarray()
    np.testing.assert_allclose(np.sort(found, axis=1), np.sort(expected, axis=1), atol=1e-6)


def word_lists(texts: TokenSet) -> list[np.ndarray]:
    ends = texts.tokens.starts + texts.tokens.lengths
    return [texts.tokens.values[start:end] for start, end in zip(texts.tokens.starts, ends, strict=True)]


def test_held_out_logits_come_from_fits_without_the_text() -> None:
    """Labels without any pattern are known by heart where they were trained on, and guessed where not."""
    random = np.random.default_rng(3)
    label_ids = random.integers(0, 2, 120).tolist()
    texts = made_up(np.eye(2, dtype=bool), label_ids, [random.integers(2, VOCABULARY, 9).tolist() for _ in label_ids])
    found = cross_fitted("wide", texts)
    truth = np.array(label_ids)
    assert (found.logits.argmax(axis=1) == truth).mean() < 0.65
    assert (logits(found.branch, texts).argmax(axis=1) == truth).mean() > 0.9


def test_folds_hold_each_text_out_once_groups_together_and_of_many_only_the_validation_texts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts = random_texts(100)
    validation = np.arange(100) >= 90
    folds = cross_folds(texts, validation)
    assert sorted(np.bincount(folds).tolist()) == [25, 25, 25, 25]
    grouped = cross_folds(replace(texts, groups=np.arange(100) // 5), validation)
    assert all(len(set(grouped[start : start + 5])) == 1 for start in range(0, 100, 5))
    monkeypatch.setattr("pipeline.training.linear.branches.CROSS_FITTED_TEXTS", 99)
    assert cross_folds(texts, validation).tolist() == [-1] * 90 + [0] * 10


def test_triples_are_used_where_they_tell_more() -> None:
    """Of three words in a row only all together tell the class: exclusive or of the outer two."""
    random = np.random.default_rng(5)
    first, last = random.integers(0, 2, (2, 400))
    words = [[2 + a, 10, 4 + b, *random.integers(11, 18, 2)] for a, b in zip(first, last, strict=True)]
    texts = made_up(np.eye(2, dtype=bool), (first ^ last).tolist(), words)
    assert bool(fitted("wide", texts).triples)
    assert not bool(fitted("wide", random_texts(200)).triples)


@pytest.mark.parametrize("kind", ["wide", "average"])
@pytest.mark.parametrize("classes", [1, 2, 3, 4])
def test_each_class_is_told_by_its_words(kind: str, classes: int) -> None:
    """Also where there is one class only, and where the last class has no example, or one only."""
    label_ids = [number % 3 % classes for number in range(60)] + ([3] if classes == 4 else [])
    token_ids = [[2 + label, 2 + label, 9 + number % 3] for number, label in enumerate(label_ids)]
    sets = np.eye(max(classes, 2), dtype=bool)
    texts = made_up(sets, label_ids, token_ids)
    assert logits(fitted(kind, texts), texts).argmax(axis=1)[:60].tolist() == label_ids[:60]


@pytest.mark.parametrize("kind", ["wide", "average"])
def test_several_labels_each_by_itself_and_texts_without_any_label_left_out(kind: str) -> None:
    sets = np.array([[True, False, False, True], [True, True, False, True], [False, False, False, True]])
    label_ids = [number % 3 for number in range(60)] + [-1] * 20
    words = {0: [2, 8], 1: [2, 3], 2: [8, 9], -1: [2, 3]}
    texts = made_up(sets, label_ids, [words[label] for label in label_ids])
    assert rows_with_target(texts).tolist() == list(range(60))
    found = logits(fitted(kind, texts, multi_label=True), texts)[:60] > 0
    assert np.array_equal(found, sets[label_ids[:60]])


@pytest.mark.parametrize("kind", ["wide", "average"])
@pytest.mark.parametrize("multi_label", [False, True])
def test_a_teacher_speaks_where_there_is_no_label(kind: str, multi_label: bool) -> None:
    label_ids = [0] * 10 + [-1] * 40
    words = [[2, 9] for _ in range(10)] + [[2 + number % 2, 9 + number % 3] for number in range(40)]
    teacher = np.array([[0.1, 0.9]] * 10 + [[0.8, 0.2], [0.3, 0.7]] * 20, dtype=np.float32)
    teacher[-4:] = np.nan
    texts = made_up(np.eye(2, dtype=bool), label_ids, words, teacher)
    assert len(rows_with_target(texts)) == 46
    found = logits(fitted(kind, texts, multi_label=multi_label), texts).argmax(axis=1)
    assert found.tolist() == [0] * 10 + [0, 1] * 20  # what is labelled is not the teacher's to say


@pytest.mark.parametrize("kind", ["wide", "average"])
def test_balanced_a_rare_class_is_given_more_often(kind: str) -> None:
    random = np.random.default_rng(1)
    label_ids = [int(random.random() < 0.1) for _ in range(300)]
    words = [[2 + int(random.random() < (0.7 if label else 0.2)), int(random.integers(5, 20))] for label in label_ids]
    texts = made_up(np.eye(2, dtype=bool), label_ids, words)
    given = [logits(fitted(kind, texts, balanced=balanced), texts).argmax(axis=1).sum() for balanced in (False, True)]
    assert given[0] < given[1]


def test_a_corpus_too_large_is_learnt_from_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = random_texts(400)
    monkeypatch.setattr("pipeline.training.linear.branches.MAX_NGRAM_TOKENS", int(texts.tokens.lengths.sum()) // 2)
    part, again = (logits(fitted("wide", texts), texts) for _ in range(2))
    monkeypatch.undo()
    whole = logits(fitted("wide", texts), texts)
    assert np.array_equal(part, again)
    assert not np.array_equal(part, whole)
    assert (part.argmax(axis=1) == texts.label_ids).mean() > 0.8


def test_a_text_of_unseen_words_is_no_reason_to_divide_by_nothing() -> None:
    wide = NgramLinear(VOCABULARY, 2, 101, 3)
    with torch.no_grad():
        wide.start.copy_(torch.tensor([1.0, -1.0]))
    assert wide(torch.tensor([[5, 6]])).tolist() == [[1.0, -1.0]]


def test_tables_have_a_limited_size_whatever_the_number_of_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = random_texts(200, classes=10)
    monkeypatch.setattr("pipeline.training.linear.ngram_features.MAX_WEIGHTS", 200)
    wide = fitted("wide", texts)
    assert isinstance(wide, NgramLinear)
    assert len(wide.sequences) <= 21
    assert len(wide.ngrams) <= 20
