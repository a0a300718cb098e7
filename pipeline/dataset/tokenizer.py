"""The word-level tokenizer: whole columns of texts become token ids, without a Python object for each token.

Texts are lower-cased, split on white space, punctuation and the characters of scripts without spaces, truncated, and
looked up. Ids: 0 is padding, 1 an unknown word, then words by descending frequency.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import TokenizerConfig
from pipeline.dataset.characters import UnknownWords
from pipeline.dataset.minibatches import TokenLists
from pipeline.dataset.splitter import CharacterSplitter, WordSpans
from pipeline.dataset.word_index import WordIndex, word_hashes
from pipeline.errors import TrainingDataError
from pipeline.files import value_digest

PADDING, UNKNOWN = 0, 1
RESERVED = 2  # ids below this are not words

UNSEPARATED_SCRIPTS = ("Han", "Hiragana", "Katakana", "Thai", "Lao", "Khmer", "Myanmar")
NEGATIONS = frozenset({"no", "not", "nor", "never", "none", "nobody", "nothing", "cannot", "without"})


@dataclass(frozen=True)
class Encoded:
    """Token ids of a column of texts.

    Attributes:
        token_ids: list<int32>, one list per text, at most `max_tokens` long.
        full_lengths: int64 [texts], tokens of each text before truncation.
        unknown_spans: the bytes of the texts, and where in them each unknown word begins, and its length in bytes.
    """

    token_ids: pa.ListArray
    full_lengths: np.ndarray
    unknown_spans: tuple[np.ndarray, np.ndarray, np.ndarray]

    @cached_property
    def lengths(self) -> np.ndarray:
        """int32 [texts], tokens of each text after truncation."""
        return np.diff(self.token_ids.offsets.to_numpy()).astype(np.int32)

    @cached_property
    def unknown(self) -> np.ndarray:
        """int64 [texts], unknown words of each text after truncation."""
        return TokenLists.of(self.token_ids).count(UNKNOWN)

    @property
    def unknown_tokens(self) -> int:
        return len(self.unknown_spans[1])

    @cached_property
    def unknown_hashes(self) -> np.ndarray:
        """uint64 [unknown tokens], a hash of each unknown word."""
        return word_hashes(*self.unknown_spans)

    @cached_property
    def unknown_words(self) -> UnknownWords:
        """The distinct unknown words."""
        data, starts, lengths = self.unknown_spans
        hashes, first = np.unique(self.unknown_hashes, return_index=True)
        starts, lengths = starts[first], lengths[first]
        ends = np.cumsum(lengths)
        places = np.arange(lengths.sum()) + np.repeat(starts - ends + lengths, lengths)
        offsets = np.concatenate([[0], ends]).astype(np.int32)
        words = pa.StringArray.from_buffers(len(first), pa.py_buffer(offsets), pa.py_buffer(data[places]))
        return UnknownWords(hashes, words)

    def numbered(self, words: UnknownWords, first_id: int) -> pa.ListArray:
        """Return the token ids with an id of its own, from `first_id` on, for each of the unknown words."""
        return number_unknown(self.token_ids, self.unknown_hashes, words, first_id)


def number_unknown(token_ids: pa.ListArray, hashes: np.ndarray, words: UnknownWords, first_id: int) -> pa.ListArray:
    """Return token ids with an id of its own, from `first_id` on, for each of the unknown words.

    Args:
        token_ids: list<int32>.
        hashes: uint64 [unknown tokens], of the words whose id is `UNKNOWN`.
        words: the distinct ones, these and maybe others.
        first_id: of the first of `words`.
    """
    if not len(hashes):
        return token_ids
    values = token_ids.values.to_numpy().copy()
    values[values == UNKNOWN] = words.numbered(hashes, first_id)
    return pa.ListArray.from_arrays(token_ids.offsets, pa.array(values))


@dataclass(frozen=True)
class TokenStats:
    """Counts of truncated texts and unknown tokens; added over columns with `+`."""

    texts: int = 0
    truncated_texts: int = 0
    tokens: int = 0
    kept_tokens: int = 0
    unknown_tokens: int = 0

    @classmethod
    def of(cls, encoded: Encoded) -> Self:
        """Count one column."""
        return cls(
            texts=len(encoded.token_ids),
            truncated_texts=int(np.count_nonzero(encoded.full_lengths > encoded.lengths)),
            tokens=int(encoded.full_lengths.sum()),
            kept_tokens=int(encoded.lengths.sum()),
            unknown_tokens=encoded.unknown_tokens,
        )

    def __add__(self, other: "TokenStats") -> "TokenStats":
        return TokenStats(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    def shares(self) -> dict[str, float]:
        """Return the shares of truncated texts, of truncated tokens, and of unknown tokens among the remaining ones."""
        return {
            "truncated_texts": self.truncated_texts / max(self.texts, 1),
            "truncated_tokens": 1 - self.kept_tokens / max(self.tokens, 1),
            "unknown_tokens": self.unknown_tokens / max(self.kept_tokens, 1),
        }


class WordSplitter:
    """Splits texts into words, for fitting a vocabulary and for looking words up."""

    def __init__(self, config: TokenizerConfig, stop_words: Iterable[str] = ()) -> None:
        self.config = config
        self.stop_words = sorted(stop_words)
        self._characters = character_splitter(config.split_hangul, config.remove_punctuation)

    def find(self, texts: pa.Array) -> WordSpans:
        """Return the positions of the words of each text, stop words included. A null text has none."""
        return self._characters.find(self._in_case(texts))

    def _in_case(self, texts: pa.Array) -> pa.Array:
        texts = pc.fill_null(texts, "")
        return pc.utf8_lower(texts) if self.config.lowercase else texts

    def split(self, texts: pa.Array) -> pa.ListArray:
        """Return list<string>, the words of each text. A null text has none."""
        words = self._characters.split(self._in_case(texts))
        if not self.stop_words:
            return words
        flat = words.flatten()
        keep = pc.invert(pc.is_in(flat, value_set=pa.array(self.stop_words)))
        return _filter_items(words, flat, keep.to_numpy(zero_copy_only=False))


@lru_cache
def character_splitter(split_hangul: bool, remove_punctuation: bool) -> CharacterSplitter:
    """Return the fast splitter that is equivalent to `split_by_regex` with these options."""
    return CharacterSplitter(partial(split_by_regex, split_hangul=split_hangul, drop_punctuation=remove_punctuation))


def split_by_regex(texts: pa.Array, *, split_hangul: bool, drop_punctuation: bool) -> pa.ListArray:
    """Return the words of each text, list<string>, by the regular expression that defines a word.

    Args:
        texts: strings without nulls, lower-cased if the tokenizer is.
        split_hangul: make each Korean syllable a token.
        drop_punctuation: drop punctuation instead of making it tokens.
    """
    scripts = (*UNSEPARATED_SCRIPTS, *(("Hangul",) if split_hangul else ()))
    single = "[" + "".join(rf"\p{{{script}}}" for script in scripts) + "]"
    punctuation = r"[^\p{L}\p{M}\p{N}\s]"
    pattern = f"({single})|{punctuation}" if drop_punctuation else f"({single}|{punctuation})"
    separated = pc.replace_substring_regex(texts, pattern=pattern, replacement=r" \1 ")
    words = pc.utf8_split_whitespace(pc.utf8_trim_whitespace(separated))
    flat = words.flatten()
    return _filter_items(words, flat, pc.not_equal(flat, "").to_numpy(zero_copy_only=False))


class Tokenizer:
    """A splitter with a vocabulary: turns texts into token ids."""

    def __init__(self, splitter: WordSplitter, vocabulary: Sequence[str]) -> None:
        self.splitter = splitter
        self.config = splitter.config
        self.vocabulary = pa.array(vocabulary, pa.string())
        self._stop_words = WordIndex(splitter.stop_words) if splitter.stop_words else None

    @classmethod
    def fit(cls, texts: Iterable[pa.Array], config: TokenizerConfig, first: Sequence[str] = ()) -> Self:
        """Build a vocabulary of the most frequent words; words of equal count in alphabetical order.

        Args:
            texts: columns of training texts.
            config: how to split, and the size of the vocabulary.
            first: words that it begins with, whatever their frequency.

        Raises:
            TrainingDataError: the texts have no words.
        """
        splitter = WordSplitter(config, english_stop_words() if config.remove_stop_words else ())
        counts: Counter[str] = Counter()
        for column in texts:
            words, occurrences = pc.value_counts(splitter.split(column).flatten()).flatten()
            counts.update(dict(zip(words.to_pylist(), occurrences.to_pylist(), strict=True)))
        frequent = [word for word, count in counts.items() if count >= config.min_count]
        frequent = frequent or list(counts)
        if not frequent and not first:
            raise TrainingDataError(
                "the training texts have no words: all are empty, or only punctuation that the tokenizer drops"
            )
        frequent.sort(key=lambda word: (-counts[word], word))
        others = set(first)
        frequent = [*first, *(word for word in frequent if word not in others)]
        return cls(splitter, frequent[: max(config.vocabulary_size - RESERVED, len(first))])

    @property
    def size(self) -> int:
        """Number of ids, padding and unknown included: every id is below this."""
        return len(self.vocabulary) + RESERVED

    @property
    def digest(self) -> str:
        """SHA-256 of the settings and the vocabulary."""
        return value_digest([self.spec(), self.vocabulary.to_pylist()])

    def spec(self) -> dict[str, object]:
        """Return the settings that, with the vocabulary, restore this tokenizer."""
        return {**self.config.model_dump(), "stop_words": self.splitter.stop_words}

    @classmethod
    def from_spec(cls, spec: dict[str, object], vocabulary: Sequence[str]) -> Self:
        """Restore a tokenizer from `spec` and its vocabulary."""
        settings = {key: value for key, value in spec.items() if key != "stop_words"}
        stop_words = spec["stop_words"]
        assert isinstance(stop_words, list)
        return cls(WordSplitter(TokenizerConfig.model_validate(settings), stop_words), vocabulary)

    def encode(self, texts: pa.Array) -> Encoded:
        """Return the token ids of a column of texts, truncated to `max_tokens`."""
        words = self.splitter.find(texts)
        starts, lengths, offsets = words.starts, words.lengths, words.offsets
        if self._stop_words:
            mask = self._stop_words.find(words.data, starts, lengths) < 0
            starts, lengths, offsets = starts[mask], lengths[mask], filtered_offsets(offsets, mask)
        full_lengths = np.diff(offsets)
        mask = truncation_mask(full_lengths, self.config.max_tokens, self.config.truncation)
        if not mask.all():
            starts, lengths, offsets = starts[mask], lengths[mask], filtered_offsets(offsets, mask)
        ids = self._words.find(words.data, starts, lengths)
        ids += RESERVED
        unknown = np.flatnonzero(ids < RESERVED)
        ids[unknown] = UNKNOWN
        token_ids = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(ids))
        return Encoded(token_ids, full_lengths, (words.data, starts[unknown], lengths[unknown]))

    def encode_open(self, texts: pa.Array) -> tuple[TokenLists, UnknownWords]:
        """Return the token ids of a column of texts, with an id from `size` on for each distinct unknown word."""
        encoded = self.encode(texts)
        return TokenLists.of(encoded.numbered(encoded.unknown_words, self.size)), encoded.unknown_words

    def words(self, texts: pa.Array) -> pa.ListArray:
        """Return list<string>, the words whose ids `encode` returns, unknown words as in the text."""
        words = self.splitter.split(texts)
        mask = truncation_mask(np.diff(words.offsets.to_numpy()), self.config.max_tokens, self.config.truncation)
        return words if mask.all() else _filter_items(words, words.flatten(), mask)

    @cached_property
    def _words(self) -> WordIndex:
        return WordIndex(self.vocabulary.to_pylist())


def truncation_mask(lengths: np.ndarray, limit: int, keep: str) -> np.ndarray:
    """Return bool [items of all lists], false for those that truncation drops.

    Args:
        lengths: int64 [lists], items of each list.
        limit: most items of a list after truncation.
        keep: "head", "tail", or "both" ends; of an odd limit the head gets the extra item.
    """
    if lengths.size == 0 or lengths.max() <= limit:
        return np.ones(lengths.sum(), dtype=bool)
    head = {"head": limit, "tail": 0, "both": (limit + 1) // 2}[keep]
    positions = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    all_lengths = np.repeat(lengths, lengths)
    mask: np.ndarray = (all_lengths <= limit) | (positions < head) | (all_lengths - positions <= limit - head)
    return mask


def filtered_offsets(offsets: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the offsets of lists after filtering their items by `mask`, int64 [lists + 1]."""
    before = np.zeros(len(mask) + 1, dtype=np.int64)
    np.cumsum(mask, out=before[1:])
    return before[offsets]


def _filter_items(lists: pa.ListArray, items: pa.Array, mask: np.ndarray) -> pa.ListArray:
    """Return the lists with only the items where `mask` is true, and offsets that start at 0."""
    offsets = lists.offsets.to_numpy()
    filtered = filtered_offsets(offsets - offsets[0], mask)
    return pa.ListArray.from_arrays(pa.array(filtered, pa.int32()), items.filter(pa.array(mask)))


def english_stop_words() -> set[str]:
    """Return common English function words, without negations."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    return set(ENGLISH_STOP_WORDS - NEGATIONS)


def write_vocabulary(path: Path, tokenizer: Tokenizer) -> None:
    """Write the words of a tokenizer in the order of their ids."""
    write_words(path, tokenizer.vocabulary.to_pylist())


def write_words(path: Path, words: Sequence[str]) -> None:
    """Write one word on each line; no word contains white space."""
    path.write_text("\n".join(words), encoding="utf-8", newline="\n")


def read_words(path: Path) -> list[str]:
    """Return the words that `write_words` wrote."""
    return path.read_text(encoding="utf-8").split("\n") if path.stat().st_size else []
