"""Minibatches of rows of about equal length, cut by a token budget: they have almost no padding."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

POOL_MINIBATCHES = 50  # rows are sorted by length inside random pools of about this many minibatches


@dataclass(frozen=True)
class TokenLists:
    """Token ids of many texts in one array.

    Attributes:
        values: int32 [tokens], the ids of all texts one after the other.
        starts: int64 [texts], where each text begins in `values`.
        lengths: int32 [texts].
    """

    values: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of(cls, lists: pa.ListArray) -> "TokenLists":
        """View a list<int32> array as NumPy arrays."""
        offsets = lists.offsets.to_numpy().astype(np.int64)
        values = lists.values.to_numpy()
        return cls(values, offsets[:-1], np.diff(offsets).astype(np.int32))

    def __len__(self) -> int:
        return len(self.lengths)

    def take_tokens(self, tokens: int) -> "TokenLists":
        """Return as many of the first texts as have at most `tokens` tokens in total, but at least one."""
        texts = max(1, int(np.searchsorted(np.cumsum(self.lengths), tokens, side="right")))
        return TokenLists(self.values, self.starts[:texts], self.lengths[:texts])

    def take(self, rows: np.ndarray) -> "TokenLists":
        """Return some texts."""
        return TokenLists(self.values, self.starts[rows], self.lengths[rows])

    def count(self, token_id: int, up: bool = False) -> np.ndarray:
        """Return how often a token, with `up` one of this or a higher id, occurs in each text, int64 [texts]."""
        positions = np.flatnonzero(self.values >= token_id if up else self.values == token_id)
        before: np.ndarray = np.searchsorted(positions, self.starts)
        counts: np.ndarray = np.searchsorted(positions, self.starts + self.lengths) - before
        return counts

    def flat(self, rows: np.ndarray) -> np.ndarray:
        """Return the tokens of some texts one after the other, int32 [tokens]."""
        lengths = self.lengths[rows].astype(np.int64)
        ends = np.cumsum(lengths)
        return self.values[np.arange(lengths.sum()) + np.repeat(self.starts[rows] - ends + lengths, lengths)]

    def pad(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return token_ids int32 [rows, longest], 0 past each length, and lengths int32 [rows]."""
        lengths = self.lengths[rows]
        steps = np.arange(lengths.max())
        inside = steps < lengths[:, None]
        token_ids = np.zeros(inside.shape, dtype=np.int32)
        token_ids[inside] = self.values[(self.starts[rows][:, None] + steps)[inside]]
        return token_ids, lengths


def plan_minibatches(
    lengths: np.ndarray,
    *,
    batch_tokens: int,
    batch_size: int | None = None,
    max_padding: float = 1.0,
    min_rows: int = 1,
) -> Sequence[np.ndarray]:
    """Cut rows, longest first, into minibatches whose rows x longest length stays within a budget.

    Args:
        lengths: int [rows].
        batch_tokens: most token slots in a minibatch; a longer row is a minibatch by itself.
        batch_size: most rows in a minibatch, if limited.
        max_padding: largest share of padding; a minibatch is cut before the row that exceeds it...
        min_rows: ...but not below this many rows, because the model is slow on few rows.

    Returns:
        Row numbers of each minibatch; every row is in exactly one.
    """
    order = np.argsort(-lengths.astype(np.int64), kind="stable")
    tokens_before = np.concatenate([[0], np.cumsum(lengths[order], dtype=np.int64)])
    minibatches = []
    start = 0
    while start < len(order):
        longest = max(int(lengths[order[start]]), 1)
        size = max(1, batch_tokens // longest)
        if batch_size is not None:
            size = min(size, batch_size)
        if max_padding < 1:
            sizes = np.arange(1, min(size, len(order) - start) + 1)
            tokens = tokens_before[start + 1 : start + 1 + len(sizes)] - tokens_before[start]
            within = tokens >= (1 - max_padding) * longest * sizes  # true up to a size, false beyond it
            size = min(size, max(int(np.count_nonzero(within)), min_rows))
        minibatches.append(order[start : start + size])
        start += size
    return minibatches


def shuffled_minibatches(
    lengths: np.ndarray, random: np.random.Generator, *, batch_tokens: int, batch_size: int
) -> list[np.ndarray]:
    """Return the minibatches of one epoch in random order, each of rows of about equal length.

    Rows are shuffled, sorted by length inside pools, cut by the token budget, and the minibatches shuffled.
    """
    order = random.permutation(len(lengths))
    pool_size = POOL_MINIBATCHES * batch_size
    minibatches = [
        pool[rows]
        for pool in (order[start : start + pool_size] for start in range(0, len(order), pool_size))
        for rows in plan_minibatches(lengths[pool], batch_tokens=batch_tokens, batch_size=batch_size)
    ]
    return [minibatches[number] for number in random.permutation(len(minibatches))]
