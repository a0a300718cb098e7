"""What is learnt from text without labels: words from the words beside them, and from the document they stand in.

The language model holds the classifier's embedding and first LSTM layer.

The forward direction predicts the next word, the backward direction the one before (Peters et al. 2018). The
embedding is shared by input and output (Press and Wolf 2017). What the softmax divides by is estimated from the true
word and a sample of others, each counting for as many as it stands for (Bengio and Senécal 2003).
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.config import ModelConfig
from pipeline.dataset.tokenizer import PADDING, UNKNOWN
from pipeline.training.model import EMBEDDING_STD, LstmLayer, reversed_indices

FREQUENT = 1e-4  # words with a larger share of all words are predicted less often
EVALUATION_ROWS = 1024  # words whose probabilities over the whole vocabulary are computed at once


class WordSampler:
    """Draws words about as often as they occur.

    Args:
        counts: int64 [vocabulary], how often each id occurs.
        words: how many to draw at a time.
        device: where the draws are needed.
        flatten: exponent of the counts; below 1, rare words are drawn more often than they occur.
    """

    def __init__(self, counts: np.ndarray, words: int, *, device: torch.device, flatten: float = 0.75) -> None:
        weights = np.where(np.arange(len(counts)) > UNKNOWN, counts, 0).astype(np.float64) ** flatten
        shares = weights / weights.sum()
        self.words = words
        self.thresholds = torch.from_numpy(np.cumsum(shares)).to(device)
        # The logarithm of how often a draw of `words` holds each word, on average.
        self.log_expected = torch.from_numpy(np.log(np.maximum(shares * words, 1e-30))).float().to(device)

    def draw(self, random: torch.Generator) -> Tensor:
        """Return int64 [words], with repetitions."""
        chances = torch.rand(self.words, generator=random, dtype=torch.float64, device=self.thresholds.device)
        return torch.searchsorted(self.thresholds, chances).clamp_(max=len(self.thresholds) - 1)


@dataclass(frozen=True)
class PredictionTargets:
    """Words to be predicted: vectors [words, size] that should point to them, and their ids int64 [words]."""

    vectors: Tensor
    targets: Tensor


class WordModel(nn.Module):
    """Predicts words by vectors that are compared with those of all words."""

    def __init__(self, vocabulary_size: int, size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, size, padding_idx=PADDING)
        with torch.no_grad():
            self.embedding.weight.normal_(0.0, EMBEDDING_STD)[PADDING] = 0.0
        self.bias = nn.Parameter(torch.zeros(vocabulary_size))

    @abstractmethod
    def predict(
        self, vectors: Tensor, token_ids: Tensor, lengths: Tensor, random: torch.Generator
    ) -> list[PredictionTargets]:
        """Return what is predicted of a batch; unknown words are not, they are none.

        Args:
            vectors: word vectors [time, batch, size] of the token ids.
            token_ids: int64 [time, batch], 0 past each row's length.
            lengths: int64 [batch].
            random: on the device of the token ids.
        """


class DocumentModel(WordModel):
    """The mean vector of a random half of a document's words predicts the other half (compare Le and Mikolov 2014).

    Frequent words, which stand in every document, are predicted less often (Mikolov et al. 2013).
    """

    asked: Tensor

    def __init__(self, vocabulary_size: int, size: int, counts: np.ndarray) -> None:
        super().__init__(vocabulary_size, size)
        self.projection = nn.Linear(size, size)
        shares = counts / max(counts.sum(), 1)
        asked = np.minimum(1.0, np.sqrt(FREQUENT / np.maximum(shares, 1e-12)))
        asked[: UNKNOWN + 1] = 0.0
        self.register_buffer("asked", torch.from_numpy(asked).float())  # how likely each word is to be predicted

    def predict(
        self,
        vectors: Tensor,
        token_ids: Tensor,
        lengths: Tensor,
        random: torch.Generator,
    ) -> list[PredictionTargets]:
        chances = torch.rand((2, *token_ids.shape), generator=random, device=token_ids.device)
        chosen = chances[0] < self.asked[token_ids]
        inside = torch.arange(len(token_ids), device=token_ids.device)[:, None] < lengths
        found = []
        for half in (chances[1] < 0.5, chances[1] >= 0.5):
            seen = (half & inside)[..., None]
            mean = (vectors * seen).sum(dim=0) / seen.sum(dim=0).clamp(min=1)
            asked = chosen & ~half
            found.append(PredictionTargets(self.projection(mean)[asked.nonzero()[:, 1]], token_ids[asked]))
        return found


class LanguageModel(WordModel):
    """Embedding, one LSTM layer, and a projection back to word vectors for each direction."""

    def __init__(self, vocabulary_size: int, config: ModelConfig) -> None:
        super().__init__(vocabulary_size, config.embedding_size)
        self.layer = LstmLayer(config.embedding_size, config.hidden_size, config.bidirectional)
        self.projections = nn.ModuleList(nn.Linear(config.hidden_size, config.embedding_size) for _ in self.directions)

    @property
    def directions(self) -> list[nn.LSTM]:
        return [self.layer.forwards] + ([self.layer.backwards] if self.layer.backwards is not None else [])

    def predict(
        self,
        vectors: Tensor,
        token_ids: Tensor,
        lengths: Tensor,
        random: torch.Generator,  # noqa: ARG002
    ) -> list[PredictionTargets]:
        reversal = reversed_indices(lengths, len(token_ids))
        found = []
        for number, (lstm, projection) in enumerate(zip(self.directions, self.projections, strict=True)):
            if number:
                vectors = vectors.flatten(0, 1).index_select(0, reversal).view_as(vectors)
                token_ids = token_ids.flatten().index_select(0, reversal).view_as(token_ids)
            states, _ = lstm(vectors[:-1])
            asked = token_ids[1:] > UNKNOWN
            found.append(PredictionTargets(projection(states[asked]), token_ids[1:][asked]))
        return found


def sampled_loss(
    predicted: Sequence[PredictionTargets],
    weights: Tensor,
    bias: Tensor,
    local: Tensor,
    sampler: WordSampler,
    drawn: Tensor,
) -> Tensor:
    """Return the summed loss in nats, over a sample of the vocabulary.

    Args:
        predicted: of each direction.
        weights: word vectors [words here, embedding size].
        bias: [words here].
        local: int64 [vocabulary], the row of `weights` in which an id stands.
        sampler: what drew the sample.
        drawn: int64 [sample], ids.
    """
    rows = local[drawn]
    others, other_bias = weights[rows], bias[rows] - sampler.log_expected[drawn]
    total = weights.new_zeros(())
    for one in predicted:
        rows = local[one.targets]
        true = (one.vectors * weights[rows]).sum(dim=-1).float() + bias[rows]
        logits = torch.addmm(other_bias, one.vectors.float(), others.t())
        logits = logits.masked_fill(drawn == one.targets[:, None], -torch.inf)
        total = total + (torch.logaddexp(true, logits.logsumexp(dim=-1)) - true).sum()
    return total


@torch.inference_mode()
def exact_loss(model: WordModel, token_ids: Tensor, lengths: Tensor, random: torch.Generator) -> tuple[float, int]:
    """Return the summed loss in nats over the whole vocabulary, and of how many predicted words.

    Args:
        model: on any device.
        token_ids: int64 [time, batch], on the same device.
        lengths: int64 [batch].
        random: decides what is predicted, where chance does.
    """
    total, count = 0.0, 0
    words = model.embedding.weight.t()
    for one in model.predict(model.embedding(token_ids), token_ids, lengths, random):
        for start in range(0, len(one.targets), EVALUATION_ROWS):
            rows = slice(start, start + EVALUATION_ROWS)
            logits = torch.addmm(model.bias, one.vectors[rows].float(), words)
            logits[:, : UNKNOWN + 1] = -torch.inf
            total += float(nn.functional.cross_entropy(logits, one.targets[rows], reduction="sum"))
        count += len(one.targets)
    return total, count
