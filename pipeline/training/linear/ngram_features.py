"""Features of the linear branch: which words, word pairs or triples, and character n-grams each text has.

All are binary and IDF-weighted. Those of words are normalised together. Those of characters are added word by word,
each distinct word of a text once, and normalised by the root of what the squares of their n-grams add up to: so the
features of a text are sums over its words, which a table of words gives at scoring time.
"""

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from scipy import sparse

from pipeline.dataset.characters import ngram_hashes
from pipeline.dataset.token_set import TokenSet
from pipeline.dataset.tokenizer import PADDING, RESERVED, UNKNOWN
from pipeline.training.model import PAIR_FACTOR, SMALLEST_NORM, NgramLinear

MAX_WEIGHTS = 2**23  # of a table of weights: 32 MiB, whatever the number of classes
MAX_CHARACTER_NGRAMS = 400_000
MIN_TEXTS, MIN_CHARACTER_TEXTS = 2, 3  # that have a feature; one of fewer gets no weight
BUCKETS = (4_093, 65_521, 262_139, 1_048_573, 4_194_301)  # primes
BUCKETS_PER_SEQUENCE = 16  # so that few unseen sequences are taken for another
SHORT_WORDS = 1.5  # mean characters of a word; below, n-grams of words are those of characters already


@dataclass(frozen=True)
class NgramFeatures:
    """The features of some texts, and what turns weights of them into a branch.

    Attributes:
        vocabulary_size: number of token ids of known words, padding and unknown included.
        word_ids: int64 [words], those with a weight.
        buckets: number of hash buckets of word sequences.
        sequence_buckets: int64 [sequences], the buckets with a weight.
        triples: whether sequences are triples and pairs.
        idf: float64 [words + sequences].
        words: float32 sparse [texts, words + sequences].
        ngram_keys: uint64 [n-grams], the hashes of the character n-grams with a weight.
        ngram_idf: float64 [n-grams].
        ngrams_of_words: float32 sparse [vocabulary, n-grams], how often each known word has an n-gram.
        characters: float32 sparse [texts, n-grams]; None without character n-grams.
    """

    vocabulary_size: int
    word_ids: NDArray[np.int64]
    buckets: int
    sequence_buckets: NDArray[np.int64]
    triples: bool
    idf: NDArray[np.float64]
    words: Any
    ngram_keys: NDArray[np.uint64]
    ngram_idf: NDArray[np.float64]
    ngrams_of_words: Any
    characters: Any

    @classmethod
    def of(cls, texts: TokenSet, rows: NDArray[np.int64], vocabulary: pa.StringArray, buckets: int) -> Self:
        """Return the features of some texts.

        Args:
            texts: with unknown words.
            rows: which of them.
            vocabulary: the words with ids from `RESERVED` on.
            buckets: most hash buckets for sequences.
        """
        size = len(vocabulary) + RESERVED
        tokens = _FlatTokens.of(texts, rows, size)
        word_part = _word_features(tokens, size, texts.classes, buckets, triples=False)
        keys, idf, of_words, characters = _character_features(tokens, texts, vocabulary)
        return cls(size, *word_part, keys, idf, of_words, characters)

    def with_triples(self, texts: TokenSet, rows: NDArray[np.int64], buckets: int) -> Self:
        """Return the features with word triples, too; arguments as those of `of`."""
        tokens = _FlatTokens.of(texts, rows, self.vocabulary_size)
        parts = _word_features(tokens, self.vocabulary_size, texts.classes, buckets, triples=True)
        names = ("word_ids", "buckets", "sequence_buckets", "triples", "idf", "words")
        return replace(self, **dict(zip(names, parts, strict=True)))

    def matrix(self, *, characters: bool) -> Any:
        """Return the features as a sparse matrix [texts, features], with or without those of characters."""
        if not characters or self.characters is None:
            return self.words
        return sparse.hstack([self.words, self.characters], format="csr")

    def branch(self, weights: NDArray[np.float64], start: NDArray[np.float64]) -> NgramLinear:
        """Return the branch with these weights.

        Args:
            weights: [classes, features], of `matrix`.
            start: [classes], the biases.
        """
        words, split = len(self.word_ids), len(self.idf)
        branch = NgramLinear(
            self.vocabulary_size,
            len(start),
            self.buckets,
            len(self.sequence_buckets),
            len(self.ngram_keys),
            triples=self.triples,
        )
        by_feature = _table(weights[:, :split], self.idf)
        by_ngram = _table(weights[:, split:], self.ngram_idf)
        with torch.no_grad():
            branch.start.copy_(torch.from_numpy(start))
            branch.words[torch.from_numpy(self.word_ids)] = torch.from_numpy(by_feature[:words])
            branch.sequences[1:] = torch.from_numpy(by_feature[words:])
            rows = torch.arange(1, len(self.sequence_buckets) + 1, dtype=torch.int32)
            branch.bucket_rows[torch.from_numpy(self.sequence_buckets)] = rows
            if branch.characters is not None:
                branch.ngram_keys.copy_(torch.from_numpy(self.ngram_keys.view(np.int64)))
                branch.ngrams.copy_(torch.from_numpy(by_ngram))
                branch.characters.copy_(torch.from_numpy(self.ngrams_of_words @ by_ngram))
        return branch


@dataclass(frozen=True)
class _FlatTokens:
    """The tokens of some texts one after the other: int64 [tokens] each, but `texts`, their number."""

    ids: NDArray[np.int64]
    owners: NDArray[np.int64]  # the text of each
    known: NDArray[np.int64]  # ids, with `UNKNOWN` for unknown words
    texts: int

    @classmethod
    def of(cls, texts: TokenSet, rows: NDArray[np.int64], size: int) -> Self:
        ids = texts.tokens.flat(rows).astype(np.int64)
        owners = np.repeat(np.arange(len(rows)), texts.tokens.lengths[rows])
        return cls(ids, owners, np.where(ids < size, ids, UNKNOWN), len(rows))

    def shifted(self, values: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return values [tokens] one position later in each text, padding in the first."""
        shifted = np.full(len(values), PADDING, dtype=np.int64)
        shifted[1:] = np.where(self.owners[1:] == self.owners[:-1], values[:-1], PADDING)
        return shifted


def _table(weights: NDArray[np.float64], idf: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return [features, classes + 1]: what a feature adds to the logits, and to the squared norm."""
    return np.concatenate([weights.T * idf[:, None], idf[:, None] ** 2], axis=1).astype(np.float32)


def _idf(texts: int, counts: NDArray[np.integer]) -> NDArray[np.float64]:
    idf: NDArray[np.float64] = np.log((1 + texts) / (1 + counts)) + 1
    return idf


def _presence(tokens: _FlatTokens, columns: NDArray[np.int64], width: int) -> Any:
    """Return a sparse matrix [texts, width], 1 where a text has a column among [tokens, ...]; -1 is none."""
    owners = np.tile(tokens.owners, len(columns) // max(len(tokens.owners), 1))
    used = np.flatnonzero(columns >= 0)
    pairs = np.unique(owners[used] * width + columns[used])
    starts = np.searchsorted(pairs, np.arange(tokens.texts + 1) * width)
    indices = (pairs % width).astype(np.int32)
    return sparse.csr_matrix(
        (np.ones(len(pairs), np.float32), indices, starts.astype(np.int32)), shape=(tokens.texts, width)
    )


def _word_features(
    tokens: _FlatTokens, size: int, classes: int, buckets: int, *, triples: bool
) -> tuple[NDArray[np.int64], int, NDArray[np.int64], bool, NDArray[np.float64], Any]:
    """Return the fields of `NgramFeatures` from `word_ids` to `words`."""
    words = np.where(tokens.known >= RESERVED, tokens.known, -1)
    word_ids = _frequent(_presence(tokens, words, size).getnnz(axis=0), size)
    sequences = tokens.shifted(tokens.known) * PAIR_FACTOR + tokens.known
    if triples:
        sequences = np.concatenate([sequences, tokens.shifted(sequences) * PAIR_FACTOR + tokens.known])
    distinct, numbers = np.unique(sequences, return_inverse=True)
    counts = _presence(tokens, numbers.reshape(-1), len(distinct)).getnnz(axis=0)
    frequent = _frequent(counts, MAX_WEIGHTS // classes)
    enough = min(buckets, BUCKETS_PER_SEQUENCE * len(frequent))
    buckets = min(buckets, next((prime for prime in BUCKETS if prime >= enough), BUCKETS[-1]))
    used = np.unique(distinct[frequent] % buckets)
    row_of_bucket = np.full(buckets, -1)
    row_of_bucket[used] = np.arange(len(used))
    column_of_word = np.full(size, -1)
    column_of_word[word_ids] = np.arange(len(word_ids))
    columns = row_of_bucket[sequences % buckets]
    columns = np.concatenate([column_of_word[tokens.known], np.where(columns >= 0, columns + len(word_ids), -1)])
    features = _presence(tokens, columns, len(word_ids) + len(used))
    idf = _idf(tokens.texts, features.getnnz(axis=0))
    features = features @ sparse.diags(idf.astype(np.float32))
    norms = np.sqrt(np.maximum(features.multiply(features).sum(axis=1), SMALLEST_NORM))
    features = sparse.diags(1 / np.asarray(norms, dtype=np.float32).ravel()) @ features
    return word_ids, buckets, used, triples, idf, features.tocsr().astype(np.float32)


def _frequent(counts: NDArray[np.integer], limit: int) -> NDArray[np.int64]:
    """Return the columns that at least `MIN_TEXTS` texts have, or in a tiny corpus any; at most so many."""
    frequent = np.flatnonzero(counts >= MIN_TEXTS)
    if not len(frequent):
        frequent = np.flatnonzero(counts)
    if len(frequent) > limit:
        frequent = np.sort(frequent[np.argsort(-counts[frequent], kind="stable")[:limit]])
    return frequent


def _character_features(
    tokens: _FlatTokens, texts: TokenSet, vocabulary: pa.StringArray
) -> tuple[NDArray[np.uint64], NDArray[np.float64], Any, Any]:
    """Return the fields of `NgramFeatures` from `ngram_keys` on."""
    no_features = np.empty(0, np.uint64), np.empty(0), None, None
    words = pa.concat_arrays([vocabulary, texts.unknown_words])
    hashes, offsets = ngram_hashes(words)
    sizes = (np.diff(offsets) + 6) / 4  # characters of a word of at least 3, from its number of n-grams
    if not len(tokens.ids) or sizes[tokens.ids[tokens.ids >= RESERVED] - RESERVED].mean() < SHORT_WORDS:
        return no_features
    presence = _presence(tokens, np.where(tokens.ids == UNKNOWN, -1, tokens.ids - RESERVED), len(words))
    distinct, numbers = np.unique(hashes, return_inverse=True)
    ones = np.ones(len(hashes), np.float32)
    by_word = sparse.csr_matrix((ones, numbers.reshape(-1), offsets), shape=(len(words), len(distinct)))
    by_word.sum_duplicates()
    counts = presence.getnnz(axis=0) @ (by_word > 0)
    frequent = np.flatnonzero(counts >= MIN_CHARACTER_TEXTS)
    limit = min(MAX_CHARACTER_NGRAMS, MAX_WEIGHTS // texts.classes)
    frequent = np.sort(frequent[np.argsort(-counts[frequent], kind="stable")[:limit]])
    if not len(frequent):
        return no_features
    by_word = by_word[:, frequent]
    idf = _idf(tokens.texts, (presence @ by_word).getnnz(axis=0))
    totals = presence @ (by_word @ sparse.diags(idf.astype(np.float32)))
    squares = presence @ (by_word @ idf**2)
    characters = sparse.diags((1 / np.sqrt(np.maximum(squares, SMALLEST_NORM))).astype(np.float32)) @ totals
    of_vocabulary = sparse.vstack(
        [sparse.csr_matrix((RESERVED, len(frequent)), dtype=np.float32), by_word[: len(vocabulary)]]
    )
    return distinct[frequent], idf, of_vocabulary.tocsr(), characters.tocsr().astype(np.float32)
