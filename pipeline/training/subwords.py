"""Subword embeddings while an LSTM is trained: a word's vector and those of its character n-grams (fastText's form).

Words with the same stem, ending or misspelling then learn from each other (Bojanowski et al. 2017), and fewer epochs
do. Afterwards the sum becomes the word's vector, so scoring is as fast as without.
"""

from collections.abc import Sequence
from typing import Self

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from pipeline.dataset.characters import ngram_hashes
from pipeline.dataset.tokenizer import RESERVED, UNKNOWN

MAX_NGRAMS = 30_000
MIN_WORDS = 2  # an n-gram of fewer words tells nothing about other words
WORD_DROPOUT = 0.1  # share of distinct words that only their n-grams stand for


class SubwordEmbedding(nn.Module):
    """Vectors of character n-grams, added to word vectors.

    Args:
        ngrams: int64 [all n-grams of all words], the number of each.
        offsets: int64 [words + 1], where those of each word begin.
        count: number of n-grams.
        size: numbers in a vector.
        spread: standard deviation of the first vectors.
    """

    ngrams: Tensor
    offsets: Tensor

    def __init__(self, ngrams: Tensor, offsets: Tensor, count: int, size: int, spread: float) -> None:
        super().__init__()
        self.register_buffer("ngrams", ngrams, persistent=False)
        self.register_buffer("offsets", offsets, persistent=False)
        self.vectors = nn.Parameter(torch.empty(max(count, 1), size).normal_(0.0, spread))

    @classmethod
    def of(cls, vocabulary: Sequence[str], size: int, spread: float) -> Self:
        """Return new vectors for the n-grams of a vocabulary's words."""
        hashes, offsets = ngram_hashes(pa.array(vocabulary, pa.string()))
        distinct, inverse, counts = np.unique(hashes, return_inverse=True, return_counts=True)
        frequent = np.argsort(-counts, kind="stable")[:MAX_NGRAMS]
        frequent = frequent[counts[frequent] >= MIN_WORDS]
        numbers = np.full(len(distinct), -1)
        numbers[frequent] = np.arange(len(frequent))
        ngrams = numbers[inverse]
        before = np.concatenate([[0], np.cumsum(ngrams >= 0)])[offsets]
        before = np.concatenate([np.zeros(RESERVED, np.int64), before])  # padding and unknown words have none
        return cls(torch.from_numpy(ngrams[ngrams >= 0]), torch.from_numpy(before), len(frequent), size, spread)

    def forward(self, token_ids: Tensor, word_vectors: Tensor, random: torch.Generator | None = None) -> Tensor:
        """Return the vectors [..., size] of token_ids [...].

        Args:
            token_ids: integers.
            word_vectors: [vocabulary, size].
            random: source of dropout; without it there is none.
        """
        distinct, places = torch.unique(token_ids, return_inverse=True)
        words = distinct
        if random is not None:
            dropped = torch.rand(len(distinct), device=distinct.device, generator=random) < WORD_DROPOUT
            words = torch.where(dropped & (distinct >= RESERVED), UNKNOWN, distinct)
        vectors = word_vectors.index_select(0, words) + self.of_words(distinct)
        return vectors.index_select(0, places.flatten()).view(*token_ids.shape, -1)

    def of_words(self, words: Tensor) -> Tensor:
        """Return the sum of the n-gram vectors of words [words], over the root of their number, [words, size]."""
        words = words.long()
        starts, counts = self.offsets[words], self.offsets[words + 1] - self.offsets[words]
        ends = counts.cumsum(0)
        places = torch.repeat_interleave(starts - ends + counts, counts) + torch.arange(
            int(counts.sum()), device=words.device
        )
        sums = nn.functional.embedding_bag(self.ngrams[places], self.vectors, ends - counts, mode="sum")
        return sums / counts.clamp(min=1).sqrt()[:, None]
