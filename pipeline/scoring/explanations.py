"""Evidence: the few words that add most to a label's logit, each once; a pair that adds much is one phrase."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.dataset.tokenizer import PADDING, RESERVED, UNKNOWN, Tokenizer
from pipeline.schemas import LABELS

MAX_PHRASES = 3  # of a text
CANDIDATES = 6  # words and pairs of a text; those that share a word are merged
LONGEST_WORD = 40  # characters; an unknown word can be as long as its text


@dataclass(frozen=True)
class Evidence:
    """The words and pairs that add most to the labels' logits of some texts, largest weight first.

    Attributes:
        words: int32 [texts, count, 2], token ids: 0 and that of a word, or those of a pair. An unknown word is
            -1 - its position in the text.
        weights: float32 [texts, count], added to the label's logit; 0 past a text's last entry.
    """

    words: NDArray[np.int32]
    weights: NDArray[np.float32]

    @classmethod
    def none(cls, texts: int) -> Self:
        """Return evidence without entries, to be filled by `put`."""
        words = np.zeros((texts, CANDIDATES, 2), dtype=np.int32)
        return cls(words, np.zeros((texts, CANDIDATES), dtype=np.float32))

    def put(self, rows: NDArray[np.integer], evidence: "Evidence") -> None:
        """Set the evidence of some texts."""
        count = evidence.weights.shape[1]
        self.words[rows, :count], self.weights[rows, :count] = evidence.words, evidence.weights


def top_evidence(token_ids: NDArray[np.int32], attributions: NDArray[np.float32]) -> Evidence:
    """Return the `CANDIDATES` words and pairs that add most to the label's logit; only positive weights count.

    A word's weight is the sum over all of its positions.

    Args:
        token_ids: [texts, time], 0 past each end.
        attributions: [texts, kinds, time], see `pipeline.models.attribution`.
    """
    places = np.arange(token_ids.shape[1], dtype=np.int32)
    words = np.where(token_ids == UNKNOWN, -1 - places, token_ids)
    singles = attributions[:, 0]
    if attributions.shape[1] == 1:
        kinds = [_by_word(words, singles)]
    else:
        pairs = attributions[:, 1].copy()
        singles = singles.copy()
        singles[:, 0] += pairs[:, 0]  # no word is before the first
        pairs[:, 0] = 0.0
        kinds = [_by_word(words, singles), pairs]
    # Word and pair alternate, position by position: the first of equal weights is independent of the padding.
    candidates = np.stack(kinds, axis=2).reshape(len(words), -1)
    chosen, weights = _largest(candidates, CANDIDATES)
    position, is_pair = chosen // len(kinds), chosen % len(kinds) == 1
    second = np.take_along_axis(words, position, axis=1)
    first = np.where(is_pair, np.take_along_axis(words, np.maximum(position - 1, 0), axis=1), PADDING)
    return Evidence(np.stack([first, second], axis=2), weights)


def _by_word(words: NDArray[np.int32], values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return values [texts, time] with those of equal words summed at the word's first position."""
    time = words.shape[1]
    ordered = np.sort((words.astype(np.int64) << 32) + np.arange(time), axis=1)
    places = (ordered & 0xFFFFFFFF) + np.arange(len(words))[:, None] * time
    first = np.ones(words.shape, dtype=bool)
    first[:, 1:] = (ordered[:, 1:] ^ ordered[:, :-1]) >> 32 != 0
    starts = np.flatnonzero(first)
    result = np.zeros(words.size, dtype=np.float32)
    if len(starts):
        places = places.ravel()
        result[places[starts]] = np.add.reduceat(values.ravel().take(places), starts)
    return result.reshape(words.shape)


def _largest(values: NDArray[np.float32], count: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return positions and values, [rows, count], of each row's largest positive values, largest first, then zeros.

    The first of equal values comes first: value and position are sorted as one integer.
    """
    # The bits of positive floats are ordered as the floats are.
    keys = (np.maximum(values, 0).view(np.int32).astype(np.int64) << 32) + (0xFFFFFFFF - np.arange(values.shape[1]))
    if values.shape[1] > count:
        keys = np.partition(keys, -count, axis=1)[:, -count:]
    keys = np.sort(keys, axis=1)[:, ::-1]
    largest = (keys >> 32).astype(np.int32).view(np.float32)
    return np.where(largest > 0, 0xFFFFFFFF - (keys & 0xFFFFFFFF), 0), largest


def merge_pairs(candidates: Evidence) -> Evidence:
    """Return the `MAX_PHRASES` heaviest candidates, each word merged into the heaviest pair that contains it."""
    first, second = candidates.words[:, :, 0], candidates.words[:, :, 1]
    weights = candidates.weights.copy()
    is_pair, unmerged = first != PADDING, (first == PADDING) & (weights > 0)
    for number in range(weights.shape[1]):  # the heaviest pair first
        joins = ((second == first[:, [number]]) | (second == second[:, [number]])) & unmerged & is_pair[:, [number]]
        weights[:, number] += np.where(joins, weights, 0).sum(axis=1)
        weights[joins] = 0.0
        unmerged &= ~joins
    order, weights = _largest(weights, MAX_PHRASES)
    return Evidence(np.take_along_axis(candidates.words, order[:, :, None], axis=1), weights)


def evidence_column(
    evidence: Evidence, texts: pa.Array, lengths: NDArray[np.integer], tokenizer: Tokenizer
) -> pa.Array:
    """Return the column `evidence` of the labels of some texts, null for those without tokens.

    Args:
        evidence: candidates of each text, from `top_evidence`.
        texts: the source of unknown words.
        lengths: [texts], tokens of each.
        tokenizer: the one of the token ids.
    """
    evidence = merge_pairs(evidence)
    filled = evidence.weights > 0
    words = evidence.words[filled]
    vocabulary, numbers = _with_unknown(words, np.nonzero(filled)[0], texts, tokenizer)
    first, second = (vocabulary.take(pa.array(numbers[:, side], mask=words[:, side] == PADDING)) for side in (0, 1))
    phrases = pc.binary_join_element_wise(first, second, " ", null_handling="skip")
    kind = LABELS.field("evidence").type
    entries = pa.StructArray.from_arrays([phrases, pa.array(evidence.weights[filled])], fields=list(kind.value_type))
    ends = np.concatenate([[0], np.cumsum(filled.sum(axis=1))]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(ends), entries, type=kind, mask=pa.array(lengths == 0))


def _with_unknown(
    words: NDArray[np.int32], text_of_entry: NDArray[np.int64], texts: pa.Array, tokenizer: Tokenizer
) -> tuple[pa.Array, NDArray[np.int64]]:
    """Return the vocabulary with the unknown words of some entries [entries, 2] appended, and each entry's indices.

    Only texts with unknown words are tokenized a second time.
    """
    numbers = words.astype(np.int64) - RESERVED
    entry, side = np.nonzero(words < 0)
    if not len(entry):
        return tokenizer.vocabulary, numbers
    rows, row_of_each = np.unique(text_of_entry[entry], return_inverse=True)
    split = tokenizer.words(texts.take(pa.array(rows)))
    positions = split.offsets.to_numpy()[row_of_each] + (-1 - words[entry, side])
    numbers[entry, side] = len(tokenizer.vocabulary) + np.arange(len(entry))
    unknown = split.values.take(pa.array(positions))
    cut = pc.binary_join_element_wise(pc.utf8_slice_codeunits(unknown, 0, LONGEST_WORD - 1), "…", "")
    short = pc.if_else(pc.greater(pc.utf8_length(unknown), LONGEST_WORD), cut, unknown)
    return pa.concat_arrays([tokenizer.vocabulary, short]), numbers


def format_evidence(entries: Sequence[Mapping[str, Any]] | None) -> str:
    """Return a row's evidence as text, for example `refund +2.1, not arrived +1.4`; "" without evidence."""
    return ", ".join(f"{entry['word']} {entry['weight']:+.1f}" for entry in entries or [])
