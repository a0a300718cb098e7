"""The linear branches are the linear models they say they are."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy import sparse
from sklearn.svm import LinearSVC

from pipeline.dataset.minibatches import TokenLists
from pipeline.dataset.token_set import TokenSet
from pipeline.training.linear import fit_mean_embedding_linear, fit_ngram_linear, rows_with_target
from pipeline.training.model import MeanEmbeddingLinear, NgramLinear

VOCABULARY = 20


def made_up(sets: np.ndarray, label_ids: list[int], token_ids: list[list[int]], teacher: object = None) -> TokenSet:
    tokens = TokenLists.of(pa.array(token_ids, pa.list_(pa.int32())))
    ids = pa.array([str(number) for number in range(len(label_ids))])
    return TokenSet(ids, np.array(label_ids, np.int32), tokens, sets, teacher)  # type: ignore[arg-type]


def logits(branch: NgramLinear | MeanEmbeddingLinear, texts: TokenSet) -> np.ndarray:
    with torch.inference_mode():
        return branch(torch.from_numpy(texts.tokens.pad(np.arange(len(texts)))[0])).numpy()


def fitted(
    kind: str, texts: TokenSet, *, multi_label: bool = False, balanced: bool = False
) -> NgramLinear | MeanEmbeddingLinear:
    if kind == "wide":
        return fit_ngram_linear(texts, VOCABULARY, 101, multi_label=multi_label, balanced=balanced)
    torch.manual_seed(1)
    return fit_mean_embedding_linear(torch.randn(VOCABULARY, 8), texts, multi_label=multi_label, balanced=balanced)


def random_texts(count: int, classes: int = 2) -> TokenSet:
    random = np.random.default_rng(2)
    label_ids = random.integers(0, classes, count).tolist()
    words = [[2 + label, *random.integers(2, VOCABULARY, random.integers(1, 12))] for label in label_ids]
    return made_up(np.eye(classes, dtype=bool), label_ids, words)


def test_a_text_has_each_word_and_pair_once_and_nothing_beyond_its_end() -> None:
    wide = NgramLinear(VOCABULARY, 2, 101)
    token_ids = torch.tensor([[5, 7, 5, 7, 5], [9, 0, 0, 0, 0]])
    first, second = (set(row[row > 0].tolist()) for row in wide.features(token_ids))
    pair = lambda before, word: (before * 1_000_003 + word) % 101 + VOCABULARY  # noqa: E731
    assert first == {5, 7, pair(0, 5), pair(5, 7), pair(7, 5)}
    assert second == {9, pair(0, 9)}
    assert (wide.features(token_ids) > 0).sum(dim=1).tolist() == [5, 2]


def test_the_branch_over_words_and_pairs_is_an_svm_on_rarity_weighted_presence() -> None:
    """The same decision values as scikit-learn's, from features that are made here by plain loops."""
    texts = random_texts(80, classes=3)
    rows = [
        texts.tokens.values[start : start + size]
        for start, size in zip(texts.tokens.starts, texts.tokens.lengths, strict=True)
    ]
    there = np.zeros((80, VOCABULARY + 101), dtype=np.float64)
    for number, words in enumerate(rows):
        for before, word in zip([0, *words], words, strict=False):
            there[number, word] = 1
            there[number, (int(before) * 1_000_003 + int(word)) % 101 + VOCABULARY] = 1
    rarity = np.log(81 / (1 + there.sum(axis=0))) + 1
    features = there * rarity
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    svm = LinearSVC(random_state=0, tol=1e-3).fit(sparse.csr_matrix(features.astype(np.float32)), texts.label_ids)
    np.testing.assert_allclose(logits(fitted("wide", texts), texts), svm.decision_function(features), atol=1e-3)


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
    monkeypatch.setattr("pipeline.training.linear.MAX_NGRAM_TOKENS", int(texts.tokens.lengths.sum()) // 2)
    part, again = (logits(fitted("wide", texts), texts) for _ in range(2))
    monkeypatch.undo()
    whole = logits(fitted("wide", texts), texts)
    assert np.array_equal(part, again)
    assert not np.array_equal(part, whole)
    assert (part.argmax(axis=1) == texts.label_ids).mean() > 0.8


def test_a_text_of_unseen_words_is_no_reason_to_divide_by_nothing() -> None:
    wide = NgramLinear(VOCABULARY, 2, 101)
    with torch.no_grad():
        wide.start.copy_(torch.tensor([1.0, -1.0]))
    assert wide(torch.tensor([[5, 6]])).tolist() == [[1.0, -1.0]]


def test_many_classes_share_a_table_of_limited_size() -> None:
    texts = random_texts(200, classes=10)
    wide = fit_ngram_linear(texts, VOCABULARY, 10**9)
    assert wide.table.numel() <= 2**23 + 10 * VOCABULARY
