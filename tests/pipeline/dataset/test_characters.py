"""Unknown words have ids and rows of their own, and what a row holds is the sum over the word's character n-grams."""

from dataclasses import replace

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
from hypothesis import given, settings

from pipeline.config import TokenizerConfig
from pipeline.dataset.characters import LONGEST_WORD, CharacterTable, UnknownWords, ngram_hashes
from pipeline.dataset.minibatches import TokenLists
from pipeline.dataset.token_set import TokenSet
from pipeline.dataset.tokenizer import RESERVED, Tokenizer

WORDS = st.lists(st.text(alphabet="abcdé가中😀", min_size=1, max_size=12), max_size=9)


def ngrams(word: str) -> list[str]:
    padded = f" {word[:LONGEST_WORD]} "
    return [padded[start : start + size] for size in range(2, 6) for start in range(len(padded) - size + 1)]


@given(WORDS)
@settings(max_examples=50, deadline=None)
def test_ngrams_lie_inside_a_word_with_a_space_at_each_end_and_equal_ones_have_one_hash(words: list[str]) -> None:
    hashes, offsets = ngram_hashes(pa.array(words, pa.string()))
    assert np.diff(offsets).tolist() == [len(ngrams(word)) for word in words]
    names: dict[int, str] = {}
    for start, end, word in zip(offsets[:-1], offsets[1:], words, strict=True):
        expected = ngrams(word)
        assert len(set(hashes[start:end].tolist())) == len(set(expected))
        for number, name in zip(hashes[start:end].tolist(), expected, strict=True):
            assert names.setdefault(number, name) == name


def test_of_a_long_word_only_the_first_characters_count() -> None:
    hashes, offsets = ngram_hashes(pa.array(["a" * LONGEST_WORD, "a" * LONGEST_WORD + "b" * 10**5]))
    assert np.array_equal(hashes[: offsets[1]], hashes[offsets[1] :])


def test_the_row_of_a_word_is_the_sum_over_its_ngrams_whatever_stands_beside_it() -> None:
    hashes, _ = ngram_hashes(pa.array(["parcel", "refund"]))
    keys = np.unique(hashes)
    values = np.random.default_rng(1).normal(size=(len(keys), 3)).astype(np.float32)
    table = CharacterTable(keys.view(np.int64), values)
    of_key = dict(zip(keys.tolist(), values, strict=True))
    words = ["parcels", "x", "refund", "中", "parcel"]
    rows = table.rows(pa.array(words))
    assert not rows[[0, 2, 4]].any()  # no word, and words without a known n-gram
    for word, row in zip(words, rows[1:], strict=True):
        expected = sum((of_key[number] for number in ngram_hashes(pa.array([word]))[0].tolist() if number in of_key), 0)
        np.testing.assert_allclose(row, expected, rtol=1e-5)
        assert np.array_equal(table.rows(pa.array([word]))[1], row)
    assert table.rows(pa.array([], pa.string())).shape == (1, 3)


@given(st.lists(WORDS, min_size=1, max_size=6))
@settings(max_examples=50, deadline=None)
def test_an_unknown_word_has_one_id_in_all_texts_and_two_have_the_same_order_among_any_others(
    texts: list[list[str]],
) -> None:
    tokenizer = Tokenizer.fit([pa.array(["ab abc"])], TokenizerConfig(split_hangul=False))
    column = pa.array([" ".join(words) for words in texts])
    tokens, unknown = tokenizer.encode_open(column)
    names = dict(enumerate([*tokenizer.vocabulary.to_pylist(), *unknown.words.to_pylist()], start=RESERVED))
    assert [[names[i] for i in tokens.values[start : start + size]] for start, size in _spans(tokens)] == (
        tokenizer.splitter.split(column).to_pylist()
    )
    assert len(set(unknown.words.to_pylist())) == len(unknown)
    again = UnknownWords.merged([unknown, tokenizer.encode_open(pa.array(["zz zzz zzzz"]))[1]]).words.to_pylist()
    assert [word for word in again if word in unknown.words.to_pylist()] == unknown.words.to_pylist()


def _spans(tokens: TokenLists) -> list[tuple[int, int]]:
    return list(zip(tokens.starts.tolist(), tokens.lengths.tolist(), strict=True))


def test_truncated_words_are_not_among_the_unknown() -> None:
    tokenizer = Tokenizer.fit([pa.array(["a b"])], TokenizerConfig(max_tokens=2, truncation="head"))
    encoded = tokenizer.encode(pa.array(["a zebra okapi", "b", ""]))
    assert encoded.unknown_words.words.to_pylist() == ["zebra"]
    assert (encoded.unknown_tokens, encoded.unknown.tolist()) == (1, [1, 0, 0])


def test_joined_sets_keep_each_text_its_words() -> None:
    tokenizer = Tokenizer.fit([pa.array(["a b"])], TokenizerConfig())

    def texts(words: list[str], label: int) -> TokenSet:
        tokens, unknown = tokenizer.encode_open(pa.array(words))
        ids = pa.array([f"{label}{number}" for number in range(len(words))])
        labels = np.full(len(words), label, np.int32)
        return TokenSet(ids, labels, tokens, np.eye(2, dtype=bool), unknown_words=unknown.words)

    first, second = texts(["a zebra", "okapi"], 0), texts(["b", "zebra lynx a"], 1)
    soft = replace(first, soft_labels=np.full((2, 2), 0.5, np.float32))
    joined = soft.joined(second, tokenizer.size)
    names = dict(enumerate(["a", "b", *joined.unknown_words.to_pylist()], start=RESERVED))
    assert [[names[i] for i in joined.tokens.flat(np.array([row]))] for row in range(4)] == [
        *(["a", "zebra"], ["okapi"], ["b"], ["zebra", "lynx", "a"])
    ]
    assert joined.label_ids.tolist() == [0, 0, 1, 1]
    assert joined.doc_ids.to_pylist() == ["00", "01", "10", "11"]
    assert joined.soft_labels is not None
    assert np.isnan(joined.soft_labels).all(axis=1).tolist() == [False, False, True, True]
