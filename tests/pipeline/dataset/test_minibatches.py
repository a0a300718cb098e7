from collections.abc import Sequence

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
from hypothesis import given

from pipeline.dataset.minibatches import TokenLists, plan_minibatches

LENGTHS = st.lists(st.integers(1, 400), min_size=1, max_size=200).map(np.array)


def padding_share(lengths: np.ndarray, minibatches: Sequence[np.ndarray]) -> float:
    """Return the share of token slots that hold no token."""
    return 1 - int(lengths.sum()) / sum(len(rows) * int(lengths[rows].max()) for rows in minibatches)


@given(LENGTHS, st.integers(1, 2000), st.none() | st.integers(1, 50))
def test_every_row_is_in_one_batch_and_no_batch_exceeds_its_budget(
    lengths: np.ndarray, budget: int, size: int | None
) -> None:
    batches = plan_minibatches(lengths, batch_tokens=budget, batch_size=size)
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    for rows in batches:
        assert len(rows) == 1 or len(rows) * lengths[rows].max() <= budget
        assert size is None or len(rows) <= size


@given(LENGTHS, st.integers(1, 2000), st.integers(1, 20))
def test_a_batch_is_cut_before_its_padding_exceeds_the_limit_unless_it_is_small(
    lengths: np.ndarray, budget: int, enough: int
) -> None:
    batches = plan_minibatches(lengths, batch_tokens=budget, max_padding=0.04, min_rows=enough)
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    for rows in batches:
        assert len(rows) <= enough or padding_share(lengths, [rows]) <= 0.04 + 1e-9
        assert len(rows) == 1 or len(rows) * lengths[rows].max() <= budget


def test_sorted_batches_hold_little_padding() -> None:
    lengths = np.random.default_rng(0).integers(1, 300, 5000)
    assert padding_share(lengths, plan_minibatches(lengths, batch_tokens=8192)) < 0.04
    assert padding_share(lengths, [np.arange(5000)]) > 0.4


def test_padding_puts_zeros_behind_each_row() -> None:
    tokens = TokenLists.of(pa.array([[5], [6, 7, 8], [], [9, 9]], pa.list_(pa.int32())))
    token_ids, lengths = tokens.pad(np.array([3, 0, 1]))
    assert token_ids.tolist() == [[9, 9, 0], [5, 0, 0], [6, 7, 8]]
    assert lengths.tolist() == [2, 1, 3]
    assert token_ids.dtype == lengths.dtype == np.int32
