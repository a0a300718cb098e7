import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings

from pipeline.config import TokenizerConfig
from pipeline.dataset.tokenizer import PADDING, UNKNOWN, Tokenizer, TokenStats, WordSplitter
from pipeline.errors import TrainingDataError


def words(text: str, **config: object) -> list[str]:
    return WordSplitter(TokenizerConfig(**config)).split(pa.array([text])).to_pylist()[0]


def fitted(texts: list[str | None], **config: object) -> Tokenizer:
    return Tokenizer.fit([pa.array(texts, pa.string())], TokenizerConfig(**{"min_count": 1, **config}))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello, World!", ["hello", ",", "world", "!"]),
        ("don't  stop\nnow", ["don", "'", "t", "stop", "now"]),
        ("costs 3.50$", ["costs", "3", ".", "50", "$"]),
        ("我爱北京abc", ["我", "爱", "北", "京", "abc"]),
        ("カメラを", ["カ", "メ", "ラ", "を"]),
        ("ดี", ["ด", "ี"]),
        ("좋은 날", ["좋", "은", "날"]),
        ("e\u0301te\u0301", ["e\u0301te\u0301"]),  # a combining accent stays with its letter
        ("a\u00a0b\u3000c", ["a", "b", "c"]),
    ],
)
def test_punctuation_and_unseparated_scripts_become_tokens_of_their_own(text: str, expected: list[str]) -> None:
    assert words(text) == expected


def test_options_drop_or_split_what_they_say() -> None:
    assert words("Hello, World!", lowercase=False, remove_punctuation=True) == ["Hello", "World"]
    assert words("좋은 날", split_hangul=False) == ["좋은", "날"]
    assert words("我,爱", remove_punctuation=True) == ["我", "爱"]


def test_stop_words_go_but_negations_stay() -> None:
    tokenizer = fitted(["this is not the best of them"], remove_stop_words=True)
    assert tokenizer.vocabulary.to_pylist() == ["best", "not"]


@pytest.mark.parametrize("text", ["", "   ", "\n\t", None])
def test_a_text_without_words_has_no_tokens(text: str | None) -> None:
    encoded = fitted(["a b"]).encode(pa.array([text, "a"], pa.string()))
    assert encoded.token_ids.to_pylist() == [[], [2]]


def test_ids_go_by_frequency_then_alphabet_and_unknown_words_share_one() -> None:
    tokenizer = fitted(["b b a c"], vocabulary_size=4)
    assert tokenizer.vocabulary.to_pylist() == ["b", "a"]
    assert tokenizer.size == 4
    assert tokenizer.encode(pa.array(["a b zebra"])).token_ids.to_pylist() == [[3, 2, UNKNOWN]]


def test_texts_without_any_word_cannot_make_a_vocabulary() -> None:
    with pytest.raises(TrainingDataError, match="no words"):
        fitted(["", " "])


@pytest.mark.parametrize(("keep", "expected"), [("head", [1, 2, 3]), ("tail", [5, 6, 7]), ("both", [1, 2, 7])])
def test_truncation_keeps_the_end_it_is_told_to(keep: str, expected: list[int]) -> None:
    tokenizer = Tokenizer(WordSplitter(TokenizerConfig(max_tokens=3, truncation=keep)), list("1234567"))  # type: ignore[arg-type]
    encoded = tokenizer.encode(pa.array(["1 2 3 4 5 6 7", "2", ""]))
    assert encoded.token_ids.to_pylist() == [[number + 1 for number in expected], [3], []]
    assert encoded.full_lengths.tolist() == [7, 1, 0]


def test_a_sliced_column_gives_the_same_ids_as_a_whole_one() -> None:
    texts = pa.array(["one two", "two three", "three four five"])
    tokenizer = fitted(texts.to_pylist())
    assert tokenizer.encode(texts.slice(1)).token_ids.to_pylist() == tokenizer.encode(texts).token_ids.to_pylist()[1:]


def test_the_shares_of_truncated_and_unknown_tokens_are_reported() -> None:
    tokenizer = fitted(["a b"], max_tokens=2)
    stats = TokenStats.of(tokenizer.encode(pa.array(["a b a b", "a zebra"])))
    assert stats + TokenStats() == stats
    assert stats.shares() == {"truncated_texts": 0.5, "truncated_tokens": pytest.approx(2 / 6), "unknown_tokens": 0.25}


def test_a_tokenizer_is_made_again_from_its_saved_values() -> None:
    tokenizer = fitted(["not the best", "我"], remove_stop_words=True)
    again = Tokenizer.from_spec(tokenizer.spec(), tokenizer.vocabulary.to_pylist())
    text = pa.array(["the best 我 not x"])
    assert again.encode(text).token_ids.to_pylist() == tokenizer.encode(text).token_ids.to_pylist()
    assert again.digest == tokenizer.digest


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.text(max_size=40), min_size=1, max_size=8), st.integers(1, 6), st.sampled_from(["head", "tail", "both"])
)
def test_any_unicode_text_gives_valid_ids_within_the_limit(texts: list[str], limit: int, keep: str) -> None:
    column = pa.array([text.encode("utf-8", "ignore").decode() for text in texts], pa.string())
    splitter = WordSplitter(TokenizerConfig())
    known = sorted({word for row in splitter.split(column).to_pylist() for word in row})
    tokenizer = Tokenizer(WordSplitter(TokenizerConfig(max_tokens=limit, truncation=keep)), known[::2])
    encoded = tokenizer.encode(column)
    ids = encoded.token_ids.flatten().to_numpy()
    assert ((ids > PADDING) & (ids < tokenizer.size)).all()
    assert (encoded.lengths == np.minimum(encoded.full_lengths, limit)).all()
    assert all(word.strip() and not any(c.isspace() for c in word) for word in known)
