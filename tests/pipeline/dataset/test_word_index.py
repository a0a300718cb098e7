import hypothesis.strategies as st
import numpy as np
from hypothesis import given, settings

from pipeline.dataset.word_index import WordIndex

# Few letters, so that words share beginnings.
WORD = st.text(st.sampled_from("abé我"), min_size=1, max_size=40)


@settings(max_examples=300, deadline=None)
@given(st.lists(WORD, max_size=60, unique=True), st.lists(WORD, max_size=60))
def test_a_table_finds_its_words_and_no_others(words: list[str], others: list[str]) -> None:
    known = {word: number for number, word in enumerate(words)}
    asked = [word for pair in zip(others, words, strict=False) for word in pair] + words
    encoded = [word.encode() for word in asked]
    lengths = np.array([len(word) for word in encoded], dtype=np.int32)
    starts = np.cumsum(lengths, dtype=np.int64) - lengths
    data = np.frombuffer(b"".join(encoded), dtype=np.uint8)
    found = WordIndex(words).find(data, starts, lengths)
    assert found.tolist() == [known.get(word, -1) for word in asked]


def test_a_large_table_finds_each_of_its_words_at_any_place() -> None:
    words = [f"{'x' * (number % 20)}{number}" for number in range(50_000)]
    data = np.frombuffer(" ".join(words).encode(), dtype=np.uint8)
    lengths = np.array([len(word) for word in words], dtype=np.int32)
    starts = np.cumsum(lengths + 1, dtype=np.int64) - lengths - 1
    assert WordIndex(words).find(data, starts, lengths).tolist() == list(range(50_000))
    assert (WordIndex(words).find(data, starts, lengths - 1) == -1).sum() > 0
