"""Splitting of a column of texts into words, with a table of the kinds of characters.

The table is not written down: it is derived from the definition of a word, a regular expression, by splitting each
character between two letters. So both always agree, and the regular expression, ten times slower, runs once for a
page of characters instead of once for each text.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pyarrow as pa

SPACE, WORD, SINGLE, CONTINUATION = 0, 1, 2, 3  # kinds of bytes; CONTINUATION: a later byte of a SINGLE character
UNCLASSIFIED = 255  # its page is not in the table yet
PAGE = 4096
CODE_POINTS = 0x110000
SURROGATES = range(0xD800, 0xE000)  # not characters, never in UTF-8
CONTINUATION_KINDS = np.array([SPACE, WORD, CONTINUATION], dtype=np.uint8)  # of later bytes, by that of the first

SplitFunction = Callable[[pa.Array], pa.ListArray]


class WordSpans(NamedTuple):
    """The positions of the words of some texts.

    Attributes:
        data: uint8 [bytes], all texts as UTF-8.
        kinds: uint8 [bytes].
        starts: int64 [words], where in `data` each word begins.
        lengths: int32 [words], in bytes.
        offsets: int64 [texts + 1], the index of the first word of each text, and the number of words.
    """

    data: np.ndarray
    kinds: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    offsets: np.ndarray


class CharacterSplitter:
    """Splits texts exactly as a definition that depends on each character alone."""

    def __init__(self, definition: SplitFunction) -> None:
        self._definition = definition
        self._kinds = np.full(CODE_POINTS, UNCLASSIFIED, dtype=np.uint8)
        self._classify_page(0)
        # Bytes from 128 on are parts of longer characters, which `_kinds_of` looks up.
        self._bytes = self._kinds[:128].tobytes() + bytes(128)

    def split(self, texts: pa.Array) -> pa.ListArray:
        """Return list<string>, the words of each text, from a string array without nulls."""
        words = self.find(texts)
        stops = np.zeros(len(words.starts) + 1, dtype=np.int32)
        np.cumsum(words.lengths, out=stops[1:])
        characters = words.data[words.kinds != SPACE]
        strings = pa.StringArray.from_buffers(len(words.starts), pa.py_buffer(stops), pa.py_buffer(characters))
        return pa.ListArray.from_arrays(pa.array(words.offsets, pa.int32()), strings)

    def find(self, texts: pa.Array) -> "WordSpans":
        """Return the positions of the words of each text, from a string array without nulls."""
        offsets, data = text_bytes(texts)
        kinds = self._kinds_of(data)
        non_space, begins, in_word = kinds != SPACE, kinds == SINGLE, kinds == WORD
        firsts = in_word.copy()
        firsts[1:] &= ~in_word[:-1]
        text_starts = offsets[:-1][np.diff(offsets) > 0]
        firsts[text_starts] = in_word[text_starts]  # a word ends with its text
        begins |= firsts
        ends = non_space
        ends[:-1] &= begins[1:] | ~non_space[1:]
        starts = np.flatnonzero(begins)
        lengths = (np.flatnonzero(ends) + 1 - starts).astype(np.int32)
        return WordSpans(data, kinds, starts, lengths, np.searchsorted(starts, offsets))

    def _kinds_of(self, data: np.ndarray) -> np.ndarray:
        """Return the kind of each byte of UTF-8 text, uint8 [bytes]."""
        kinds = np.frombuffer(bytearray(data).translate(self._bytes), dtype=np.uint8)
        leads = np.flatnonzero(data >= 0xC0)
        if len(leads) == 0:
            return kinds
        lead_bytes = data.take(leads)
        for size, lowest, highest in ((2, 0xC0, 0xE0), (3, 0xE0, 0xF0), (4, 0xF0, 0x100)):
            of_size = (lead_bytes >= lowest) & (lead_bytes < highest)
            positions = leads if of_size.all() else leads[of_size]
            if len(positions) == 0:
                continue
            code_points = _code_points(data, positions, size)
            first_kinds = self._kinds.take(code_points)
            unclassified = code_points[first_kinds == UNCLASSIFIED]
            if len(unclassified):
                for page in np.unique(unclassified // PAGE).tolist():
                    self._classify_page(page)
                first_kinds = self._kinds.take(code_points)
            kinds[positions] = first_kinds
            later_kinds = CONTINUATION_KINDS.take(first_kinds)
            for step in range(1, size):
                kinds[positions + step] = later_kinds
        return kinds

    def _classify_page(self, page: int) -> None:
        """Add a page of characters to the table: split each of them between two letters."""
        characters = [chr(c) for c in range(page * PAGE, (page + 1) * PAGE) if c not in SURROGATES]
        words = self._definition(pa.array([f"a{character}a" for character in characters], pa.string()))
        for character, split in zip(characters, words.to_pylist(), strict=True):
            self._kinds[ord(character)] = {1: WORD, 2: SPACE, 3: SINGLE}[len(split)]


def _code_points(data: np.ndarray, positions: np.ndarray, size: int) -> np.ndarray:
    """Return the code points of the characters of `size` bytes at some positions of UTF-8 text."""
    if size == 3 and len(positions) > len(data) // 16:
        # If most characters have this size, combining neighbours everywhere is faster than gathering.
        bits = data.astype(np.uint16)
        bits &= 0x3F
        combined = bits << 12  # drops the upper bits of the lead byte
        combined[:-1] |= bits[1:] << 6
        combined[:-2] |= bits[2:]
        return combined.take(positions)
    code_points = data.take(positions).astype(np.int32) & (0xFF >> (size + 1))
    for step in range(1, size):
        code_points <<= 6
        code_points |= data.take(positions + step) & 0x3F
    return code_points


def text_bytes(texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Return the byte offsets of the texts of a string array, int64 [texts + 1], and all bytes, uint8."""
    _, offset_buffer, data = texts.buffers()
    if len(texts) == 0 or data is None:
        return np.zeros(len(texts) + 1, dtype=np.int64), np.empty(0, dtype=np.uint8)
    offsets = np.frombuffer(offset_buffer, dtype=np.int32)[texts.offset : texts.offset + len(texts) + 1].astype(
        np.int64
    )
    return offsets - offsets[0], np.frombuffer(data, dtype=np.uint8)[offsets[0] : offsets[-1]]
