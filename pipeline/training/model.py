"""The LSTM classifier.

Tensors run time first inside, which trains about a third faster on CPUs. A backward LSTM reads each
row reversed within its own length, so padding never reaches a state and no packing is needed: packed
sequences give the same numbers at a sixth of the training speed on a CPU.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.config import ModelConfig
from pipeline.dataset.tokenizer import PADDING

EMBEDDING_STD = 0.1
PAIR_FACTOR = 1_000_003  # a prime: spreads the pairs of frequent words over the buckets
SMALLEST_NORM = 1e-6  # of a text none of whose words any training text had


class LstmLayer(nn.Module):
    """One LSTM layer, reading forward or in both directions."""

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
            states: inputs; what lies past a row's length is ignored.
            mirror: int64 [time x batch], for each place the one it changes with when its row is reversed.
        """
        outputs, _ = self.forwards(states)
        if self.backwards is None:
            return outputs
        reversed_outputs, _ = self.backwards(_take(states, reversal))
        return torch.cat([outputs, _take(reversed_outputs, reversal)], dim=-1)


def reversed_indices(lengths: Tensor, time: int) -> Tensor:
    """Return int64 [time x batch]: for each place the one it changes with when its row is reversed."""
    places = torch.arange(time, device=lengths.device)[:, None]
    columns = torch.arange(len(lengths), device=lengths.device)
    return (torch.where(places < lengths, lengths - 1 - places, places) * len(lengths) + columns).flatten()


def _take(states: Tensor, places: Tensor) -> Tensor:
    """Return [time, batch, features] states in another order of their [time x batch] places."""
    return states.flatten(0, 1).index_select(0, places).view_as(states)


def dropout(values: Tensor, share: float, random: torch.Generator | None) -> Tensor:
    """Return values with a share of them 0 and the others scaled up; as they are without a generator."""
    if random is None or not share:
        return values
    kept = torch.empty(values.shape, device=values.device).bernoulli_(1 - share, generator=random)
    return values * kept.div_(1 - share)


class Classifier(nn.Module):
    """Embedding, LSTM layers, pooling over time, optional dense layers, one logit for each class.

    Linear branches, where there are any, add their logits.

    Args:
        vocabulary_size: ids there are.
        classes: how many.
        config: sizes and dropouts.
        multi_label: whether a document can have several classes, or none: probabilities are then independent.
    """

    def __init__(self, vocabulary_size: int, classes: int, config: ModelConfig, *, multi_label: bool = False) -> None:
        super().__init__()
        self.config = config
        self.multi_label = multi_label
        self.embedding = nn.Embedding(vocabulary_size, config.embedding_size, padding_idx=PADDING)
        with torch.no_grad():  # PyTorch's own spread of 1 drowns what rare words have to say
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
        self.average: MeanEmbeddingLinear | None = None  # the linear branches join once the LSTM is trained
        self.wide: NgramLinear | None = None

    def start_from(self, token_ids: NDArray[np.int64], vectors: NDArray[np.float32]) -> None:
        """Take word vectors [words, embedding size] for some token ids [words] as the first ones."""
        with torch.no_grad():
            self.embedding.weight[torch.from_numpy(token_ids)] = torch.from_numpy(vectors)

    def zero_word_vectors(self, token_ids: NDArray[np.int64]) -> None:
        """Start with vectors of zero for words [words] that no training text has: random ones would only disturb."""
        with torch.no_grad():
            self.embedding.weight[torch.from_numpy(token_ids)] = 0.0

    def forward(self, token_ids: Tensor, lengths: Tensor, random: torch.Generator | None = None) -> Tensor:
        """Return logits [batch, classes].

        Args:
            token_ids: integers [batch, time], 0 past each row's length.
            lengths: int64 [batch], each from 1 to time.
            random: where dropout comes from; without it nothing is dropped.
        """
        return self.with_branches(self.lstm_logits(token_ids, lengths, random), token_ids)

    def lstm_logits(self, token_ids: Tensor, lengths: Tensor, random: torch.Generator | None = None) -> Tensor:
        """Return what the LSTM alone says, as `forward`."""
        reversal = reversed_indices(lengths, token_ids.shape[1])
        states = dropout(self.embedding(token_ids.t()), self.config.embedding_dropout, random)
        for number, layer in enumerate(self.layers):
            states = layer(dropout(states, self.config.layer_dropout, random) if number else states, reversal)
        return self.read_out(states, lengths, random)

    def read_out(self, states: Tensor, lengths: Tensor, random: torch.Generator | None = None) -> Tensor:
        """Return logits [batch, classes] from the last layer's states [time, batch, size]."""
        inside = torch.arange(len(states), device=states.device)[:, None] < lengths
        return self.head(self.pool(states, inside, lengths), random)

    def with_branches(self, logits: Tensor, token_ids: Tensor) -> Tensor:
        """Add what the linear branches say of token_ids [batch, time] to logits [batch, classes]."""
        for branch in (self.average, self.wide):
            logits = logits if branch is None else logits + branch(token_ids)
        return logits

    @torch.no_grad()
    def disable_lstm(self) -> None:
        """Leave all to the linear branches."""
        self.output.weight.zero_()
        self.output.bias.zero_()

    @property
    def lstm_disabled(self) -> bool:
        return not self.output.weight.any() and not self.output.bias.any()

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return probabilities [batch, classes]: of each class by itself where a document can have several."""
        return logits.sigmoid() if self.multi_label else logits.softmax(dim=-1)

    def pool(self, states: Tensor, inside: Tensor, lengths: Tensor) -> Tensor:
        """Make one vector of each row: [time, batch, size] -> [batch, size]."""
        if self.config.pooling == "max":
            return states.masked_fill(~inside[..., None], -torch.inf).amax(dim=0)
        if self.config.pooling == "mean":
            return states.masked_fill(~inside[..., None], 0.0).sum(dim=0) / lengths[:, None]
        if self.attention is not None:
            return self.attention(states, inside)
        return self._last(states, lengths)

    def _last(self, states: Tensor, lengths: Tensor) -> Tensor:
        """Return the state after the last word read: a row's end, and its start for the backward direction."""
        ends = states[lengths - 1, torch.arange(len(lengths), device=states.device)]
        if not self.config.bidirectional:
            return ends
        hidden = self.config.hidden_size
        return torch.cat([ends[:, :hidden], states[0, :, hidden:]], dim=-1)

    def head(self, pooled: Tensor, random: torch.Generator | None = None) -> Tensor:
        """Return logits [batch, classes] from pooled vectors [batch, size]."""
        vectors = pooled if self.norm is None else _normalise(self.norm, pooled)
        for dense in self.dense:
            vectors = torch.relu(dense(dropout(vectors, self.config.head_dropout, random)))
        return self.output(dropout(vectors, self.config.head_dropout, random))

    @property
    def state_size(self) -> int:
        """How many numbers the last layer gives for a word, both directions together."""
        return self.config.hidden_size * (2 if self.config.bidirectional else 1)

    def parameter_count(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())


def _normalise(norm: nn.BatchNorm1d, pooled: Tensor) -> Tensor:
    """Batch-normalise; a single row has no spread of its own and takes the running statistics."""
    if len(pooled) > 1:
        return norm(pooled)
    return nn.functional.batch_norm(pooled, norm.running_mean, norm.running_var, norm.weight, norm.bias)


def unique_per_row(values: Tensor) -> Tensor:
    """Return each value of a row once, integers [batch, number], largest first and 0 instead of repetitions."""
    ordered = values.sort(dim=1, descending=True).values
    repeated = nn.functional.pad(ordered[:, 1:] == ordered[:, :-1], (1, 0))
    return ordered * ~repeated


class NgramLinear(nn.Module):
    """A linear model over the words and hashed word pairs of a text, each counted once, rare ones for more.

    Its weights come from a linear classifier of its own, see `pipeline.training.linear`; its logits are added to
    the LSTM's. What a linear model knows is so never lost (wide and deep: Cheng et al. 2016; hashed
    pairs: Joulin et al. 2016).

    Args:
        vocabulary_size: ids there are.
        classes: how many.
        buckets: rows for word pairs.
    """

    squares: Tensor

    def __init__(self, vocabulary_size: int, classes: int, buckets: int) -> None:
        super().__init__()
        self.vocabulary_size, self.buckets = vocabulary_size, buckets
        features = vocabulary_size + buckets
        self.table = nn.Parameter(torch.zeros(features, classes), requires_grad=False)
        self.start = nn.Parameter(torch.zeros(classes), requires_grad=False)
        self.register_buffer("squares", torch.zeros(features))  # of what each feature counts for

    def features(self, token_ids: Tensor) -> Tensor:
        """Return what a text has, each once, int64 [batch, 2 x time], 0 for nothing, of token_ids [batch, time]."""
        words = token_ids.long()
        before = nn.functional.pad(words, (1, 0))[:, :-1]  # the first word has padding before it
        pairs = (before * PAIR_FACTOR + words) % self.buckets + self.vocabulary_size
        return unique_per_row(torch.cat([words, pairs * (words != PADDING)], dim=1))

    def forward(self, token_ids: Tensor) -> Tensor:
        """Return logits [batch, classes] of token_ids [batch, time]."""
        features = self.features(token_ids)
        norm = self.squares[features].sum(dim=1, keepdim=True).clamp(min=SMALLEST_NORM).sqrt()
        return self.table[features].sum(dim=1) / norm + self.start


class MeanEmbeddingLinear(nn.Module):
    """A linear branch over the mean vector of the words in a text, brought to the center and spread of training texts.

    Word vectors that know in what documents words stand tell by their mean alone what a text is like; with few
    labels that is the most there is to learn from.

    Args:
        vectors: [vocabulary, size], 0 for padding.
        classes: how many.
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
        """Return the mean vector [batch, size] of the words in token_ids [batch, time], each counted once."""
        return nn.functional.embedding_bag(unique_per_row(token_ids), self.vectors, mode="mean", padding_idx=PADDING)

    def standard(self, token_ids: Tensor) -> Tensor:
        """Return the mean vectors [batch, size], brought to center and spread."""
        return (self.means(token_ids) - self.center) / self.spread

    def standardise(self, means: Tensor) -> None:
        """Take center and spread from the means [texts, size] of training texts."""
        self.center.copy_(means.mean(dim=0))
        self.spread.copy_(means.std(dim=0, correction=0).clamp(min=1e-6))

    def forward(self, token_ids: Tensor) -> Tensor:
        """Return logits [batch, classes] of token_ids [batch, time]."""
        return self.output(self.standard(token_ids))

    def by_word(self) -> tuple[Tensor, Tensor]:
        """Return what each word adds to the logits [vocabulary, classes], before the mean, and what they start at."""
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


def packed_logits(model: Classifier, token_ids: Tensor, lengths: Tensor) -> Tensor:
    """Return the model's logits [batch, classes] by PyTorch's own packed, multi-layer `nn.LSTM`.

    A second, slower way to the same numbers, which the export is proven against.
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
    packed = nn.utils.rnn.pack_padded_sequence(model.embedding(token_ids.t()), lengths.cpu(), enforce_sorted=False)
    states, _ = nn.utils.rnn.pad_packed_sequence(lstm(packed)[0], total_length=token_ids.shape[1])
    return model.with_branches(model.read_out(states, lengths), token_ids)
