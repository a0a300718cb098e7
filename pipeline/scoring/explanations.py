"""The words that carried a label: the few that add most to its logit, each once, a telling pair as one phrase."""

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
CANDIDATES = 6  # of a text's words and pairs: those that share a word become one
LONGEST_WORD = 40  # characters; an unknown word can be as long as its text


@dataclass(frozen=True)
class Evidence:
    """What carried the labels of some texts, the heaviest first.

    Attributes:
        words: int32 [texts, most, 2], token ids: 0 and that of a word, or those of a pair. Of an unknown word it is
            -1 - its place among the text's tokens.
        weights: float32 [texts, most], what was added to the label's logit; 0 where there is no more.
    """

    words: NDArray[np.int32]
    weights: NDArray[np.float32]

    @classmethod
    def none(cls, texts: int) -> Self:
        words = np.zeros((texts, CANDIDATES, 2), dtype=np.int32)
        return cls(words, np.zeros((texts, CANDIDATES), dtype=np.float32))

    def put(self, rows: NDArray[np.integer], found: "Evidence") -> None:
        """Write down what was found in a batch of texts."""
        most = found.weights.shape[1]
        self.words[rows, :most], self.weights[rows, :most] = found.words, found.weights


def top_evidence(token_ids: NDArray[np.int32], attributions: NDArray[np.float32]) -> Evidence:
    """Return the words and pairs that add most to the label's logit; what adds nothing or takes away is left out.

    What a word adds at all of its places counts together.

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
        singles[:, 0] += pairs[:, 0]  # nothing is before the first word
        pairs[:, 0] = 0.0
        kinds = [_by_word(words, singles), pairs]
    # A word, and then its pair, place by place: among equals the first counts, however long the batch is.
    candidates = np.stack(kinds, axis=2).reshape(len(words), -1)
    chosen, weights = _largest(candidates, CANDIDATES)
    place, is_pair = chosen // len(kinds), chosen % len(kinds) == 1
    own = np.take_along_axis(words, place, axis=1)
    before = np.where(is_pair, np.take_along_axis(words, np.maximum(place - 1, 0), axis=1), PADDING)
    return Evidence(np.stack([before, own], axis=2), weights)


def _by_word(words: NDArray[np.int32], values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return values [texts, time] with those of equal words added up at the word's first place."""
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
    """Return places and values, [rows, count], of each row's largest values above 0, the largest first, then zeros.

    Among equal values the first counts: value and place are one number, whose order is wanted.
    """
    # The bits of positive floats are in the order of the floats.
    keys = (np.maximum(values, 0).view(np.int32).astype(np.int64) << 32) + (0xFFFFFFFF - np.arange(values.shape[1]))
    if values.shape[1] > count:
        keys = np.partition(keys, -count, axis=1)[:, -count:]
    keys = np.sort(keys, axis=1)[:, ::-1]
    found = (keys >> 32).astype(np.int32).view(np.float32)
    return np.where(found > 0, 0xFFFFFFFF - (keys & 0xFFFFFFFF), 0), found


def merge_pairs(found: Evidence) -> Evidence:
    """Return the heaviest of candidates, each word added to the heaviest pair that has it, if any."""
    before, own = found.words[:, :, 0], found.words[:, :, 1]
    weights = found.weights.copy()
    pair, free = before != PADDING, (before == PADDING) & (weights > 0)
    for number in range(weights.shape[1]):  # the heaviest pair first
        joins = ((own == before[:, [number]]) | (own == own[:, [number]])) & free & pair[:, [number]]
        weights[:, number] += np.where(joins, weights, 0).sum(axis=1)
        weights[joins] = 0.0
        free &= ~joins
    order, weights = _largest(weights, MAX_PHRASES)
    return Evidence(np.take_along_axis(found.words, order[:, :, None], axis=1), weights)


def evidence_column(
    evidence: Evidence, texts: pa.Array, lengths: NDArray[np.integer], tokenizer: Tokenizer
) -> pa.Array:
    """Return the column `evidence` of the labels of some texts, null for those without tokens.

    Args:
        evidence: candidates of each text.
        texts: where unknown words are read from.
        lengths: [texts], tokens of each.
        tokenizer: what made the token ids.
    """
    evidence = merge_pairs(evidence)
    there = evidence.weights > 0
    words = evidence.words[there]
    vocabulary, numbers = _with_unknown(evidence, there, texts, tokenizer)
    before, own = (vocabulary.take(pa.array(numbers[:, side], mask=words[:, side] == PADDING)) for side in (0, 1))
    told = pc.binary_join_element_wise(before, own, " ", null_handling="skip")
    kind = LABELS.field("evidence").type
    entries = pa.StructArray.from_arrays([told, pa.array(evidence.weights[there])], fields=list(kind.value_type))
    ends = np.concatenate([[0], np.cumsum(there.sum(axis=1))]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(ends), entries, type=kind, mask=pa.array(lengths == 0))


def _with_unknown(
    evidence: Evidence, there: NDArray[np.bool_], texts: pa.Array, tokenizer: Tokenizer
) -> tuple[pa.Array, NDArray[np.int64]]:
    """Return the vocabulary and behind it the unknown words that are needed, and the numbers in it, [entries, 2].

    Only texts with such words are split once more.
    """
    words = evidence.words[there]
    numbers = words.astype(np.int64) - RESERVED
    entry, side = np.nonzero(words < 0)
    if not len(entry):
        return tokenizer.vocabulary, numbers
    rows, row_of_each = np.unique(np.nonzero(there)[0][entry], return_inverse=True)
    split = tokenizer.words(texts.take(pa.array(rows)))
    places = split.offsets.to_numpy()[row_of_each] + (-1 - words[entry, side])
    numbers[entry, side] = len(tokenizer.vocabulary) + np.arange(len(entry))
    unknown = split.values.take(pa.array(places))
    cut = pc.binary_join_element_wise(pc.utf8_slice_codeunits(unknown, 0, LONGEST_WORD - 1), "…", "")
    short = pc.if_else(pc.greater(pc.utf8_length(unknown), LONGEST_WORD), cut, unknown)
    return pa.concat_arrays([tokenizer.vocabulary, short]), numbers


def format_evidence(entries: Sequence[Mapping[str, Any]] | None) -> str:
    """Return a row's evidence as a person reads it, as `refund +2.1, not arrived +1.4`; "" where there is none."""
    return ", ".join(f"{entry['word']} {entry['weight']:+.1f}" for entry in entries or [])
