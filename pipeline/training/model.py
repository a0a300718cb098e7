"""The LSTM classifier.

Tensors are time-major inside, which trains about a third faster on CPUs. A backward LSTM reads each row reversed
within its own length, so padding never reaches a state and no packing is needed: packed sequences give the same
numbers at a sixth of the training speed on a CPU.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.config import ModelConfig
from pipeline.dataset.characters import CharacterTable
from pipeline.dataset.tokenizer import PADDING, UNKNOWN

EMBEDDING_STD = 0.1
PAIR_FACTOR = 1_000_003  # a prime: hashes the pairs of frequent words to different buckets
SMALLEST_NORM = 1e-6  # squared, of a text without any feature of the training texts


class LstmLayer(nn.Module):
    """One LSTM layer, forward or bidirectional."""

    def __init__(self, input_size: int, hidden_size: int, bidirectional: bool) -> None:
        super().__init__()
        self.forwards = nn.LSTM(input_size, hidden_size)
        self.backwards = nn.LSTM(input_size, hidden_size) if bidirectional else None

    @property
    def output_size(self) -> int:
        return self.forwards.hidden_size * (2 if self.backwards else 1)

    def forward(self, states: Tensor, reversal: Tensor) -> Tensor:
        """Map [time, batch, features] to [time, batch, directions x hidden].

        Args:
            states: inputs; those past a row's length are ignored.
            reversal: int64 [time x batch], as `reversed_indices` returns it.
        """
        outputs, _ = self.forwards(states)
        if self.backwards is None:
            return outputs
        reversed_outputs, _ = self.backwards(_take(states, reversal))
        return torch.cat([outputs, _take(reversed_outputs, reversal)], dim=-1)


def reversed_indices(lengths: Tensor, time: int) -> Tensor:
    """Return int64 [time x batch]: the index that each position of flattened states has in its reversed row."""
    positions = torch.arange(time, device=lengths.device)[:, None]
    columns = torch.arange(len(lengths), device=lengths.device)
    return (torch.where(positions < lengths, lengths - 1 - positions, positions) * len(lengths) + columns).flatten()


def _take(states: Tensor, indices: Tensor) -> Tensor:
    """Return [time, batch, features] states in another order of their [time x batch] positions."""
    return states.flatten(0, 1).index_select(0, indices).view_as(states)


def dropout(values: Tensor, share: float, random: torch.Generator | None) -> Tensor:
    """Return values after inverted dropout; unchanged without a generator."""
    if random is None or not share:
        return values
    mask = torch.empty(values.shape, device=values.device).bernoulli_(1 - share, generator=random)
    return values * mask.div_(1 - share)


class Classifier(nn.Module):
    """Embedding, LSTM layers, pooling over time, optional dense layers, one logit for each class.

    The logits of linear branches, if any, are added.

    Args:
        vocabulary_size: number of token ids that it knows; a higher one is an unknown word.
        classes: number of classes.
        config: sizes and dropouts.
        multi_label: whether a document can have several classes or none; probabilities are then independent.
    """

    def __init__(self, vocabulary_size: int, classes: int, config: ModelConfig, *, multi_label: bool = False) -> None:
        super().__init__()
        self.config = config
        self.multi_label = multi_label
        self.embedding = nn.Embedding(vocabulary_size, config.embedding_size, padding_idx=PADDING)
        with torch.no_grad():  # PyTorch's standard deviation of 1 drowns the signal of rare words
            self.embedding.weight.normal_(0.0, EMBEDDING_STD)[PADDING] = 0.0
        self.layers = nn.ModuleList()
        size = config.embedding_size
        for _ in range(config.layers):
            layer = LstmLayer(size, config.hidden_size, config.bidirectional)
            self.layers.append(layer)
            size = layer.output_size
        self.attention = Attention(size) if config.pooling == "attention" else None
        self.norm = nn.BatchNorm1d(size) if config.batch_norm else None
        self.dense = nn.ModuleList()
        for dense_size in config.dense_sizes:
            self.dense.append(nn.Linear(size, dense_size))
            size = dense_size
        self.output = nn.Linear(size, classes)
        self.subwords: Any = None  # a `SubwordEmbedding`, while it is trained
        self.average: MeanEmbeddingLinear | None = None  # linear branches are added once the LSTM is trained
        self.wide: NgramLinear | None = None

    @torch.no_grad()
    def set_word_vectors(self, token_ids: NDArray[np.int64], vectors: NDArray[np.float32]) -> None:
        """Set the word vectors [words, embedding size] of some token ids [words]."""
        self.embedding.weight[torch.from_numpy(token_ids)] = torch.from_numpy(vectors)

    def forward(
        self,
        token_ids: Tensor,
        lengths: Tensor,
        random: torch.Generator | None = None,
        unknown: Tensor | None = None,
    ) -> Tensor:
        """Return logits [batch, classes].

        Args:
            token_ids: integers [batch, time], 0 past each row's length.
            lengths: int64 [batch], each from 1 to time.
            random: source of dropout; without it there is none.
            unknown: rows of unknown words, see `NgramLinear.forward`.
        """
        return self.with_branches(self.lstm_logits(token_ids, lengths, random), token_ids, unknown)

    def lstm_logits(self, token_ids: Tensor, lengths: Tensor, random: torch.Generator | None = None) -> Tensor:
        """Return the logits of the LSTM alone; arguments as in `forward`."""
        return self.logits_of_vectors(self.embedded(token_ids.t(), random), lengths, random)

    def logits_of_vectors(self, vectors: Tensor, lengths: Tensor, random: torch.Generator | None = None) -> Tensor:
        """Return the logits of the LSTM alone from word vectors [time, batch, size], see `embedded`."""
        reversal = reversed_indices(lengths, len(vectors))
        states = dropout(vectors, self.config.embedding_dropout, random)
        for number, layer in enumerate(self.layers):
            states = layer(dropout(states, self.config.layer_dropout, random) if number else states, reversal)
        return self.read_out(states, lengths, random)

    def embedded(self, token_ids: Tensor, random: torch.Generator | None = None) -> Tensor:
        """Return the vectors [..., size] of token_ids [...]."""
        words = _known(token_ids, self.embedding.num_embeddings)
        return self.embedding(words) if self.subwords is None else self.subwords(words, self.embedding.weight, random)

    def fold_subwords(self) -> None:
        """Add the subword vectors to those of the words, once they are trained: scoring then needs only these."""
        if self.subwords is not None:
            with torch.no_grad():
                self.embedding.weight += self.subwords.of_words(torch.arange(self.embedding.num_embeddings))
            self.subwords = None

    def read_out(self, states: Tensor, lengths: Tensor, random: torch.Generator | None = None) -> Tensor:
        """Return logits [batch, classes] from the last layer's states [time, batch, size]."""
        inside = torch.arange(len(states), device=states.device)[:, None] < lengths
        return self.head(self.pool(states, inside, lengths), random)

    def with_branches(self, logits: Tensor, token_ids: Tensor, unknown: Tensor | None = None) -> Tensor:
        """Add the linear branches' logits for token_ids [batch, time] to logits [batch, classes]."""
        logits = logits if self.average is None else logits + self.average(token_ids)
        return logits if self.wide is None else logits + self.wide(token_ids, unknown)

    @torch.no_grad()
    def disable_lstm(self) -> None:
        """Set the LSTM's output layer to zero, so that only the linear branches count."""
        self.output.weight.zero_()
        self.output.bias.zero_()

    @property
    def lstm_disabled(self) -> bool:
        """Whether the LSTM's logits are always zero."""
        return not self.output.weight.any() and not self.output.bias.any()

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return probabilities [batch, classes]: sigmoid where a document can have several classes, else softmax."""
        return logits.sigmoid() if self.multi_label else logits.softmax(dim=-1)

    def pool(self, states: Tensor, inside: Tensor, lengths: Tensor) -> Tensor:
        """Pool each row to one vector: [time, batch, size] -> [batch, size].

        Args:
            states: of the last layer.
            inside: bool [time, batch], false past each row's length.
            lengths: int64 [batch].
        """
        pooling = self.config.pooling
        if pooling == "max":
            return states.masked_fill(~inside[..., None], -torch.inf).amax(dim=0)
        if pooling == "mean":
            return states.masked_fill(~inside[..., None], 0.0).sum(dim=0) / lengths[:, None]
        if pooling == "attention":
            assert self.attention is not None
            return self.attention(states, inside)
        if pooling == "last":  # of each direction: the backward one ends at the start of a row
            ends = states[lengths - 1, torch.arange(len(lengths), device=states.device)]
            hidden = self.config.hidden_size
            return torch.cat([ends[:, :hidden], states[0, :, hidden:]], dim=-1)
        raise ValueError(f"unknown pooling {pooling!r}")

    def head(self, pooled: Tensor, random: torch.Generator | None = None) -> Tensor:
        """Return logits [batch, classes] from pooled vectors [batch, size]."""
        vectors, norm = pooled, self.norm
        if norm is not None and len(pooled) > 1:
            vectors = norm(pooled)
        elif norm is not None:  # one row has no variance, so it takes the running statistics
            vectors = nn.functional.batch_norm(pooled, norm.running_mean, norm.running_var, norm.weight, norm.bias)
        for dense in self.dense:
            vectors = torch.relu(dense(dropout(vectors, self.config.head_dropout, random)))
        return self.output(dropout(vectors, self.config.head_dropout, random))

    @property
    def state_size(self) -> int:
        """Numbers per word from the last layer, both directions together."""
        return self.config.hidden_size * (2 if self.config.bidirectional else 1)

    def parameter_count(self) -> int:
        """Return the number of trainable and fitted weights."""
        return sum(parameter.numel() for parameter in self.parameters())


def unique_per_row(values: Tensor) -> Tensor:
    """Return the values of each row, integers [batch, number], in descending order with 0 instead of repetitions."""
    ordered = values.sort(dim=1, descending=True).values
    repeated = nn.functional.pad(ordered[:, 1:] == ordered[:, :-1], (1, 0))
    return ordered * ~repeated


class NgramLinear(nn.Module):
    """A linear model over words, their pairs or triples, and the character n-grams of the words.

    Features are binary and IDF-weighted; those of words and those of characters each have a norm of their own.
    Character n-grams lie inside words, so a known word has a row of their sum; of unknown words the rows are made for
    each minibatch, see `pipeline.dataset.characters.CharacterTable`. In each table the last column is the squared norm
    that a feature adds. It is fitted separately, see `pipeline.training.linear`; its logits are added to the LSTM's
    (wide and deep: Cheng et al. 2016; hashed n-grams: Joulin et al. 2016).

    Args:
        vocabulary_size: number of token ids; those from it on are unknown words.
        classes: number of classes.
        buckets: hash buckets for pairs and triples of words.
        rows: how many of them have a weight.
        ngrams: number of character n-grams; 0 for none.
        triples: whether there are word triples too.
    """

    bucket_rows: Tensor
    ngram_keys: Tensor
    triples: Tensor

    def __init__(
        self, vocabulary_size: int, classes: int, buckets: int, rows: int, ngrams: int = 0, *, triples: bool = False
    ) -> None:
        super().__init__()
        self.vocabulary_size, self.classes = vocabulary_size, classes

        def table(features: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(features, classes + 1), requires_grad=False)

        self.words, self.sequences = table(vocabulary_size), table(rows + 1)  # row 0: no feature
        self.characters = table(vocabulary_size) if ngrams else None  # the sum of the n-grams of each word
        self.ngrams = table(ngrams)
        self.start = nn.Parameter(torch.zeros(classes), requires_grad=False)
        self.register_buffer("bucket_rows", torch.zeros(buckets, dtype=torch.int32))
        self.register_buffer("ngram_keys", torch.zeros(ngrams, dtype=torch.int64))
        self.register_buffer("triples", torch.tensor(triples))

    def weights(self) -> list[Tensor]:
        """Return views of all tables without their last columns: what features add to the logits."""
        tables = [self.words, self.sequences, self.ngrams, *([] if self.characters is None else [self.characters])]
        return [table[:, :-1] for table in tables]

    def sequence_features(self, token_ids: Tensor) -> Tensor:
        """Return the rows, int64 [batch, n x time], 0 for none, of the word pairs, and triples, of known words."""
        words = _known(token_ids.long(), self.vocabulary_size)
        buckets = sequence_buckets(words, len(self.bucket_rows), triples=bool(self.triples))
        return self.bucket_rows[torch.cat(buckets, dim=1)].long() * (words != PADDING).repeat(1, len(buckets))

    def unknown_rows(self, words: pa.StringArray) -> Tensor:
        """Return the rows [1 + words, classes + 1] of unknown words, as `forward` takes them."""
        table = CharacterTable(self.ngram_keys.numpy(), self.ngrams.detach().numpy())
        return torch.from_numpy(table.rows(words))

    def forward(self, token_ids: Tensor, unknown: Tensor | None = None) -> Tensor:
        """Return logits [batch, classes].

        Args:
            token_ids: integers [batch, time], those from the vocabulary's size on of unknown words.
            unknown: [1 + unknown words, classes + 1], from `unknown_rows`; without it, they add nothing.
        """
        distinct = unique_per_row(token_ids.long())
        is_known = distinct < self.vocabulary_size
        known_words = distinct * is_known
        sequences = unique_per_row(self.sequence_features(token_ids))
        total = self.words[known_words].sum(dim=1) + self.sequences[sequences].sum(dim=1)
        logits = normalised(total) + self.start
        if self.characters is None:
            return logits
        of_words = self.characters[known_words]
        if unknown is not None:
            of_words = of_words + unknown.to(of_words.dtype)[(distinct - self.vocabulary_size + 1) * ~is_known]
        return logits + normalised(of_words.sum(dim=1))


def sequence_buckets(words: Tensor, buckets: int, *, triples: bool) -> list[Tensor]:
    """Return the bucket of the pair, and of the triple, that ends at each word, int64 [batch, time] each.

    Args:
        words: int64 [batch, time], ids of known words; before the first there is padding.
        buckets: number of hash buckets.
        triples: whether to return triples too.
    """
    previous = nn.functional.pad(words, (1, 0))[:, :-1]
    pairs = previous * PAIR_FACTOR + words
    bucket_ids = [pairs % buckets]
    if triples:
        bucket_ids.append((nn.functional.pad(pairs, (1, 0))[:, :-1] * PAIR_FACTOR + words) % buckets)
    return bucket_ids


def normalised(totals: Tensor) -> Tensor:
    """Return totals [batch, classes + 1] without the last column, divided by its square root."""
    return totals[:, :-1] / totals[:, -1:].clamp(min=SMALLEST_NORM).sqrt()


def _known(token_ids: Tensor, size: int) -> Tensor:
    """Return token ids with the id of an unknown word instead of those from a size on."""
    return torch.where(token_ids < size, token_ids, UNKNOWN)


class MeanEmbeddingLinear(nn.Module):
    """A linear model over the standardised mean of the document vectors of a text's words.

    With few labels, these pretrained vectors carry more signal than the labels.

    Args:
        vectors: [vocabulary, size], 0 for padding.
        classes: number of classes.
    """

    vectors: Tensor
    center: Tensor
    spread: Tensor

    def __init__(self, vectors: Tensor, classes: int) -> None:
        super().__init__()
        size = vectors.shape[1]
        self.output = nn.Linear(size, classes)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)
        self.register_buffer("vectors", vectors)
        self.register_buffer("center", torch.zeros(size))
        self.register_buffer("spread", torch.ones(size))

    def means(self, token_ids: Tensor) -> Tensor:
        """Return the mean vector [batch, size] of the distinct words in token_ids [batch, time]."""
        words = unique_per_row(_known(token_ids, len(self.vectors)))
        return nn.functional.embedding_bag(words, self.vectors, mode="mean", padding_idx=PADDING)

    def standard(self, token_ids: Tensor) -> Tensor:
        """Return the standardised mean vectors [batch, size] of token_ids [batch, time]."""
        return (self.means(token_ids) - self.center) / self.spread

    def standardise(self, means: Tensor) -> None:
        """Set center and spread to mean and standard deviation of the mean vectors [texts, size] of training texts."""
        self.center.copy_(means.mean(dim=0))
        self.spread.copy_(means.std(dim=0, correction=0).clamp(min=1e-6))

    def forward(self, token_ids: Tensor) -> Tensor:
        """Return logits [batch, classes] of token_ids [batch, time]."""
        return self.output(self.standard(token_ids))

    def by_word(self) -> tuple[Tensor, Tensor]:
        """Return each word's share of the logits [vocabulary, classes], before the mean, and the bias [classes]."""
        weight = (self.output.weight / self.spread).t()
        by_word = self.vectors @ weight
        by_word[PADDING] = 0.0
        return by_word, self.output.bias - self.center @ weight


class Attention(nn.Module):
    """A weighted mean over time, the weights from each state alone (Yang et al. 2016, word level)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.key = nn.Linear(size, size)
        self.query = nn.Linear(size, 1, bias=False)

    def forward(self, states: Tensor, inside: Tensor) -> Tensor:
        """Map [time, batch, size] states to [batch, size]; `inside` is bool [time, batch]."""
        scores = self.query(torch.tanh(self.key(states))).squeeze(-1)
        weights = scores.masked_fill(~inside, -torch.inf).softmax(dim=0)
        return (weights[..., None] * states.masked_fill(~inside[..., None], 0.0)).sum(dim=0)


def packed_logits(model: Classifier, token_ids: Tensor, lengths: Tensor, unknown: Tensor | None = None) -> Tensor:
    """Return the model's logits [batch, classes] by PyTorch's own packed, multi-layer `nn.LSTM`.

    A slower, independent computation of the same numbers, as reference for the exported model.
    """
    config = model.config
    lstm = nn.LSTM(config.embedding_size, config.hidden_size, config.layers, bidirectional=config.bidirectional)
    weights = {}
    for number, layer in enumerate(model.layers):
        assert isinstance(layer, LstmLayer)
        for suffix, direction in (("", layer.forwards), ("_reverse", layer.backwards)):
            for name, value in direction.state_dict().items() if direction is not None else ():
                weights[name.replace("l0", f"l{number}") + suffix] = value
    lstm.to(model.embedding.weight.dtype).load_state_dict(weights)
    packed = nn.utils.rnn.pack_padded_sequence(model.embedded(token_ids.t()), lengths.cpu(), enforce_sorted=False)
    states, _ = nn.utils.rnn.pad_packed_sequence(lstm(packed)[0], total_length=token_ids.shape[1])
    return model.with_branches(model.read_out(states, lengths), token_ids, unknown)
