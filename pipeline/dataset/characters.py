"""Words that are not in the vocabulary, and character n-grams: what a word is made of says much of what it means.

The n-grams of a word have 2 to 5 characters and lie inside it, with a space at each end (scikit-learn's `char_wb`), so
what they add to a text is a property of the word: known once for each distinct word.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dataset.word_index import NumberIndex

LARGEST_NGRAM = 5  # characters; the smallest has 2
LONGEST_WORD = 40  # characters: of a longer word, such as a link, only the first count
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class UnknownWords:
    """The distinct words of some texts that a vocabulary lacks.

    They get the ids from the vocabulary's size on, in the order of their hashes. So two of them are in the same order
    in whatever minibatch they meet, and sums over the words of a text are the same to the last bit.

    Attributes:
        hashes: uint64 [words], ascending.
        words: strings [words].
    """

    hashes: np.ndarray
    words: pa.StringArray

    @classmethod
    def of(cls, hashes: np.ndarray, words: pa.StringArray) -> Self:
        """Return the distinct ones of some words [occurrences] and their hashes."""
        distinct, first = np.unique(hashes, return_index=True)
        return cls(distinct, words.take(pa.array(first)))

    @classmethod
    def none(cls) -> Self:
        """Return no words."""
        return cls(np.empty(0, np.uint64), pa.array([], pa.string()))

    @classmethod
    def merged(cls, word_sets: Sequence["UnknownWords"]) -> Self:
        """Return the distinct words of several such sets."""
        if len(word_sets) == 1:
            return cls(word_sets[0].hashes, word_sets[0].words)
        words = pa.concat_arrays([each.words for each in word_sets])
        return cls.of(np.concatenate([each.hashes for each in word_sets]), words)

    def __len__(self) -> int:
        return len(self.hashes)

    def numbered(self, hashes: np.ndarray, first_id: int) -> np.ndarray:
        """Return the ids of words, int32, by their hashes; they must be among these words."""
        return (np.searchsorted(self.hashes, hashes) + first_id).astype(np.int32)


class CharacterTable:
    """What each character n-gram adds to a text, and from it what each word adds.

    Args:
        keys: int64 [n-grams], the hash of each; no two are equal.
        values: float32 [n-grams, columns].
    """

    def __init__(self, keys: np.ndarray, values: np.ndarray) -> None:
        self.keys, self.values = keys, values

    @cached_property
    def _index(self) -> NumberIndex:
        return NumberIndex(self.keys.view(np.uint64))

    def rows(self, words: pa.StringArray) -> np.ndarray:
        """Return float32 [1 + words, columns]: zeros, and the sum over the n-grams of each word."""
        rows = np.zeros((1 + len(words), self.values.shape[1]), dtype=np.float32)
        hashes, offsets = ngram_hashes(words)
        numbers = self._index.find(hashes)
        listed = np.flatnonzero(numbers >= 0)
        starts = np.searchsorted(listed, offsets)
        filled = np.flatnonzero(np.diff(starts))
        if len(filled):
            rows[1 + filled] = np.add.reduceat(self.values[numbers[listed]], starts[filled], axis=0)
        return rows


def ngram_hashes(words: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
    """Return the character n-grams of words, one that occurs twice in a word twice.

    Returns:
        uint64 [n-grams], a hash of each, and int64 [words + 1], where those of each word begin.
    """
    padded = pc.binary_join_element_wise(" ", pc.utf8_slice_codeunits(words, 0, LONGEST_WORD), " ", "")
    lengths = pc.utf8_length(padded).to_numpy(zero_copy_only=False).astype(np.int64)
    characters = np.frombuffer("".join(padded.to_pylist()).encode("utf-32-le"), dtype=np.uint32).astype(np.uint64)
    ends = np.repeat(np.cumsum(lengths), lengths)  # of the word of each character
    places = np.arange(len(characters))
    hashes, by_size, owners = characters.copy(), [], []
    words_of_characters = np.repeat(np.arange(len(words)), lengths)
    for size in range(2, LARGEST_NGRAM + 1):
        hashes = hashes[:-1] * MULTIPLIER + characters[size - 1 :] if len(hashes) > 1 else hashes[:0]
        inside = places[: len(hashes)] + size <= ends[: len(hashes)]
        of_size = hashes[inside]
        by_size.append((of_size ^ (of_size >> np.uint64(29))) * MULTIPLIER + np.uint64(size))
        owners.append(words_of_characters[: len(hashes)][inside])
    owner = np.concatenate(owners)
    order = np.argsort(owner, kind="stable")
    offsets = np.zeros(len(words) + 1, dtype=np.int64)
    np.cumsum(np.bincount(owner, minlength=len(words)), out=offsets[1:])
    return np.concatenate(by_size)[order], offsets
