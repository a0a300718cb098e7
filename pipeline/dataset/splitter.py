"""Words of a whole column by one look at each byte.

What each character is to the splitter is not written down here: it is found out by asking the splitter's
definition, a regular expression, about one character at a time. So both always agree, and the regular
expression, ten times slower, runs once for a page of characters instead of once for each text.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pyarrow as pa

SPACE, WORD, SINGLE, CONTINUATION = 0, 1, 2, 3  # REST: a further byte of a character that is a token of its own
UNCLASSIFIED = 255  # its page has not been asked about yet
PAGE = 4096
CODE_POINTS = 0x110000
SURROGATES = range(0xD800, 0xE000)  # no characters, never in UTF-8
CONTINUATION_KINDS = np.array([SPACE, WORD, CONTINUATION], dtype=np.uint8)  # the kind of a character's further bytes

SplitFunction = Callable[[pa.Array], pa.ListArray]


class WordSpans(NamedTuple):
    """Where the words of some texts are.

    Attributes:
        data: uint8 [bytes], all texts as UTF-8.
        kinds: uint8 [bytes].
        starts: int64 [words], where in `data` each word begins.
        lengths: int32 [words], its bytes.
        offsets: int64 [texts + 1], the first word of each text, and how many there are.
    """

    data: np.ndarray
    kinds: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    offsets: np.ndarray


class CharacterSplitter:
    """Splits texts exactly as a definition does that looks at each character by itself."""

    def __init__(self, definition: SplitFunction) -> None:
        self._definition = definition
        self._kinds = np.full(CODE_POINTS, UNCLASSIFIED, dtype=np.uint8)
        self._learn(0)
        # From 128 on bytes are parts of characters, which are looked at afterwards.
        self._bytes = self._kinds[:128].tobytes() + bytes(128)

    def split(self, texts: pa.Array) -> pa.ListArray:
        """Return list<string>, the words of each text, from a string array without nulls."""
        words = self.find(texts)
        stops = np.zeros(len(words.starts) + 1, dtype=np.int32)
        np.cumsum(words.lengths, out=stops[1:])
        kept = words.data[words.kinds != SPACE]
        strings = pa.StringArray.from_buffers(len(words.starts), pa.py_buffer(stops), pa.py_buffer(kept))
        return pa.ListArray.from_arrays(pa.array(words.offsets, pa.int32()), strings)

    def find(self, texts: pa.Array) -> "WordSpans":
        """Return where the words of each text are, from a string array without nulls."""
        offsets, data = text_bytes(texts)
        kinds = self._kinds_of(data)
        kept, begins, word = kinds != SPACE, kinds == SINGLE, kinds == WORD
        firsts = word.copy()
        firsts[1:] &= ~word[:-1]
        rows = offsets[:-1][np.diff(offsets) > 0]
        firsts[rows] = word[rows]  # a word does not go on in the next text
        begins |= firsts
        ends = kept
        ends[:-1] &= begins[1:] | ~kept[1:]
        starts = np.flatnonzero(begins)
        lengths = (np.flatnonzero(ends) + 1 - starts).astype(np.int32)
        return WordSpans(data, kinds, starts, lengths, np.searchsorted(starts, offsets))

    def _kinds_of(self, data: np.ndarray) -> np.ndarray:
        """Return the kind of each byte of UTF-8 text, uint8 [bytes]."""
        kinds = np.frombuffer(bytearray(data).translate(self._bytes), dtype=np.uint8)
        leads = np.flatnonzero(data >= 0xC0)
        if len(leads) == 0:
            return kinds
        sizes = data.take(leads)
        for size, lowest, highest in ((2, 0xC0, 0xE0), (3, 0xE0, 0xF0), (4, 0xF0, 0x100)):
            places = leads if _all_within(sizes, lowest, highest) else leads[(sizes >= lowest) & (sizes < highest)]
            if len(places) == 0:
                continue
            found = self._look_up(_code_points(data, places, size))
            kinds[places] = found
            rest = CONTINUATION_KINDS.take(found)
            for further in range(1, size):
                kinds[places + further] = rest
        return kinds

    def _look_up(self, code_points: np.ndarray) -> np.ndarray:
        found = self._kinds.take(code_points)
        unknown = found == UNCLASSIFIED
        if unknown.any():
            for page in np.unique(code_points[unknown] // PAGE).tolist():
                self._learn(page)
            found = self._kinds.take(code_points)
        return found

    def _learn(self, page: int) -> None:
        """Ask the definition about a page of characters: each of them between two letters."""
        characters = [chr(c) for c in range(page * PAGE, (page + 1) * PAGE) if c not in SURROGATES]
        words = self._definition(pa.array([f"a{character}a" for character in characters], pa.string()))
        for character, split in zip(characters, words.to_pylist(), strict=True):
            self._kinds[ord(character)] = {1: WORD, 2: SPACE, 3: SINGLE}[len(split)]


def _code_points(data: np.ndarray, places: np.ndarray, size: int) -> np.ndarray:
    """Return the code points of characters of `size` bytes that begin at some places of UTF-8 text."""
    if size == 3 and len(places) > len(data) // 16:
        # Where most of the text is such characters, adding up neighbours everywhere is faster than picking them.
        bits = data.astype(np.uint16)
        bits &= 0x3F
        together = bits << 12  # the lead byte's upper bits fall off
        together[:-1] |= bits[1:] << 6
        together[:-2] |= bits[2:]
        return together.take(places)
    code_points = data.take(places).astype(np.int32) & (0xFF >> (size + 1))
    for further in range(1, size):
        code_points <<= 6
        code_points |= data.take(places + further) & 0x3F
    return code_points


def _all_within(values: np.ndarray, lowest: int, highest: int) -> bool:
    return bool(values.min() >= lowest and values.max() < highest)


def text_bytes(texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Return where each text of a string array begins and ends, int64 [texts + 1], and all bytes, uint8."""
    _, places, data = texts.buffers()
    if len(texts) == 0 or data is None:
        return np.zeros(len(texts) + 1, dtype=np.int64), np.empty(0, dtype=np.uint8)
    offsets = np.frombuffer(places, dtype=np.int32)[texts.offset : texts.offset + len(texts) + 1].astype(np.int64)
    return offsets - offsets[0], np.frombuffer(data, dtype=np.uint8)[offsets[0] : offsets[-1]]
