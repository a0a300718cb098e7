"""Words to their numbers by the words' bytes themselves: a hash table in NumPy that many texts share.

A word of up to 8 bytes is one 64-bit number, one of up to 16 two of them, and so on; equal numbers are equal
words, so a hit is exact: no word holds a NUL, which is a token of its own.
Arrow's `index_in` hashes the whole vocabulary anew for each column.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

BLOCK = 8  # bytes in one number
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio: Fibonacci hashing (Knuth)
# Which bits of its last block belong to a word: by length modulo 8.
MASKS = np.array([2**64 - 1] + [(1 << 8 * size) - 1 for size in range(1, BLOCK)], dtype=np.uint64)


class WordIndex:
    """Finds words, none of them empty, in UTF-8 text."""

    def __init__(self, words: Sequence[str]) -> None:
        encoded = [word.encode() for word in words]
        lengths = np.array([len(word) for word in encoded], dtype=np.int32)
        starts = np.cumsum(lengths) - lengths
        data = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        blocks = _blocks(lengths)
        memory = _words_of(data)
        self._tables: dict[int, _Table] = {}
        for count in np.unique(blocks).tolist():
            numbers = np.flatnonzero(blocks == count)
            keys = _keys(memory, starts[numbers], lengths[numbers], count)
            self._tables[count] = _Table(keys, numbers.astype(np.int32))

    def find(self, data: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Return the number of each word, int32 [words], -1 where there is no such word.

        Args:
            data: uint8 [bytes], UTF-8.
            starts: int64 [words], where each word begins in `data`.
            lengths: int32 [words], bytes of each word, at least 1.
        """
        memory = _words_of(data)
        found = np.full(len(starts), -1, dtype=np.int32)
        if 1 in self._tables:  # nearly all words are short: looking for all of them is faster than choosing
            found = self._tables[1].find(_keys(memory, starts, lengths, 1))
            found[lengths > BLOCK] = -1
        blocks = _blocks(lengths)
        for count, table in self._tables.items():
            places = np.flatnonzero(blocks == count) if count > 1 else ()
            if len(places):
                found[places] = table.find(_keys(memory, starts[places], lengths[places], count))
        return found


class _Table:
    """An open-addressing hash table with linear probing, at most half full, for words of one number of blocks."""

    def __init__(self, keys: list[np.ndarray], numbers: np.ndarray) -> None:
        bits = max(4, int(len(numbers) * 2 - 1).bit_length())
        self._shift = np.uint64(64 - bits)
        self._last = np.int64((1 << bits) - 1)
        self._keys = [np.zeros(1 << bits, dtype=np.uint64) for _ in keys]
        self._numbers = np.full(1 << bits, -1, dtype=np.int32)
        waiting, slots = np.arange(len(numbers)), self._slots(keys)
        while len(waiting):
            # Of those that want the same slot the first gets it; the others try the next one.
            wanted, first = np.unique(slots, return_index=True)
            first = first[self._numbers[wanted] < 0]
            for table, key in zip(self._keys, keys, strict=True):
                table[slots[first]] = key[waiting[first]]
            self._numbers[slots[first]] = numbers[waiting[first]]
            waiting, slots = np.delete(waiting, first), (np.delete(slots, first) + 1) & self._last

    def _slots(self, keys: list[np.ndarray]) -> np.ndarray:
        mixed = keys[0] * MULTIPLIER
        for key in keys[1:]:
            mixed = ((mixed >> np.uint64(32)) ^ mixed ^ key) * MULTIPLIER
        return (mixed >> self._shift).astype(np.int64)

    def find(self, keys: list[np.ndarray]) -> np.ndarray:
        slots = self._slots(keys)
        found = self._numbers.take(slots)
        everything = np.arange(len(slots))
        places = np.flatnonzero(self._differ(keys, slots) & (found >= 0))  # an empty slot ends the search
        while len(places):
            keys, slots = [key[places] for key in keys], (slots[places] + 1) & self._last
            here = self._numbers.take(slots)
            found[everything[places]] = here
            everything = everything[places]
            places = np.flatnonzero(self._differ(keys, slots) & (here >= 0))
        return found

    def _differ(self, keys: list[np.ndarray], slots: np.ndarray) -> np.ndarray:
        differ: np.ndarray = self._keys[0].take(slots) != keys[0]
        for table, key in zip(self._keys[1:], keys[1:], strict=True):
            differ |= table.take(slots) != key
        return differ


def _blocks(lengths: np.ndarray) -> np.ndarray:
    return (lengths + (BLOCK - 1)) // BLOCK


def _words_of(data: np.ndarray) -> np.ndarray:
    """Return bytes as little-endian 64-bit numbers, with zeros behind them."""
    padded = np.zeros((len(data) // BLOCK + 2) * BLOCK, dtype=np.uint8)
    padded[: len(data)] = data
    return padded.view("<u8")


def _keys(memory: np.ndarray, starts: np.ndarray, lengths: np.ndarray, count: int) -> list[np.ndarray]:
    """Return the `count` numbers, uint64 [words] each, that a word's bytes are."""
    places = starts >> 3
    shifts = ((starts & 7) << 3).astype(np.uint64)
    rest = np.uint64(64) - shifts
    blocks = [memory.take(places + number) for number in range(count + 1)]
    # A shift by 64 gives 0 in NumPy, which is what a word that begins with a number needs.
    keys = [(low >> shifts) | (high << rest) for low, high in pairwise(blocks)]
    keys[-1] &= MASKS.take(lengths & 7)
    return keys
