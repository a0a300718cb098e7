"""The models that pretraining fits on text without labels: a language model and a document model.

The language model has the classifier's embedding and first LSTM layer. Its forward direction predicts the next word,
its backward direction the previous one (Peters et al. 2018). Input and output share the embedding (Press and Wolf
2017). The loss is a sampled softmax, corrected by importance weights (Bengio and Senécal 2003).
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

FREQUENT = 1e-4  # words with a larger share of all words are subsampled as targets
SAMPLING_EXPONENT = 0.75  # of counts: rare words are drawn more often than they occur
EVALUATION_ROWS = 1024  # words for which logits over the whole vocabulary are computed at once


class WordSampler:
    """Draws words with probabilities proportional to a power of their counts (Mikolov et al. 2013).

    Args:
        counts: int64 [vocabulary], how often each id occurs.
        words: size of a sample.
        device: of the samples.
    """

    def __init__(self, counts: np.ndarray, words: int, *, device: torch.device) -> None:
        weights = np.where(np.arange(len(counts)) > UNKNOWN, counts, 0).astype(np.float64) ** SAMPLING_EXPONENT
        shares = weights / weights.sum()
        self.words = words
        self.thresholds = torch.from_numpy(np.cumsum(shares)).to(device)
        # Logarithm of the expected count of each word in a sample.
        self.log_expected = torch.from_numpy(np.log(np.maximum(shares * words, 1e-30))).float().to(device)

    def draw(self, random: torch.Generator) -> Tensor:
        """Return a sample of ids, int64 [words], with replacement."""
        uniform = torch.rand(self.words, generator=random, dtype=torch.float64, device=self.thresholds.device)
        return torch.searchsorted(self.thresholds, uniform).clamp_(max=len(self.thresholds) - 1)


@dataclass(frozen=True)
class PredictionTargets:
    """Words to predict: the predicted vectors [words, size], and the true ids int64 [words]."""

    vectors: Tensor
    targets: Tensor


class WordModel(nn.Module):
    """Predicts words: the logit of a word is the product of its vector and the predicted vector, plus a bias."""

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
        """Return the predictions for a minibatch; unknown words are never targets.

        Args:
            vectors: word vectors [time, batch, size] of the token ids.
            token_ids: int64 [time, batch], 0 past each row's length.
            lengths: int64 [batch].
            random: on the device of the token ids.
        """


class DocumentModel(WordModel):
    """The mean vector of a random half of a document's words predicts the other half (compare Le and Mikolov 2014).

    Frequent words are subsampled as targets (Mikolov et al. 2013).
    """

    asked: Tensor

    def __init__(self, vocabulary_size: int, size: int, counts: np.ndarray) -> None:
        super().__init__(vocabulary_size, size)
        self.projection = nn.Linear(size, size)
        shares = counts / max(counts.sum(), 1)
        asked = np.minimum(1.0, np.sqrt(FREQUENT / np.maximum(shares, 1e-12)))
        asked[: UNKNOWN + 1] = 0.0
        self.register_buffer("asked", torch.from_numpy(asked).float())  # probability of each word to be a target

    def predict(
        self,
        vectors: Tensor,
        token_ids: Tensor,
        lengths: Tensor,
        random: torch.Generator,
    ) -> list[PredictionTargets]:
        uniform = torch.rand((2, *token_ids.shape), generator=random, device=token_ids.device)
        sampled = uniform[0] < self.asked[token_ids]
        inside = torch.arange(len(token_ids), device=token_ids.device)[:, None] < lengths
        predictions = []
        for half in (uniform[1] < 0.5, uniform[1] >= 0.5):
            context = (half & inside)[..., None]
            mean = (vectors * context).sum(dim=0) / context.sum(dim=0).clamp(min=1)
            targets = sampled & ~half
            predictions.append(PredictionTargets(self.projection(mean)[targets.nonzero()[:, 1]], token_ids[targets]))
        return predictions


class LanguageModel(WordModel):
    """Embedding, one LSTM layer, and a projection back to word vectors for each direction."""

    def __init__(self, vocabulary_size: int, config: ModelConfig) -> None:
        super().__init__(vocabulary_size, config.embedding_size)
        self.layer = LstmLayer(config.embedding_size, config.hidden_size, config.bidirectional)
        self.projections = nn.ModuleList(nn.Linear(config.hidden_size, config.embedding_size) for _ in self.directions)

    @property
    def directions(self) -> list[nn.LSTM]:
        """The forward LSTM, and the backward one if there is one."""
        return [self.layer.forwards] + ([self.layer.backwards] if self.layer.backwards is not None else [])

    def predict(
        self,
        vectors: Tensor,
        token_ids: Tensor,
        lengths: Tensor,
        random: torch.Generator,  # noqa: ARG002
    ) -> list[PredictionTargets]:
        reversal = reversed_indices(lengths, len(token_ids))
        predictions = []
        for number, (lstm, projection) in enumerate(zip(self.directions, self.projections, strict=True)):
            if number:
                vectors = vectors.flatten(0, 1).index_select(0, reversal).view_as(vectors)
                token_ids = token_ids.flatten().index_select(0, reversal).view_as(token_ids)
            states, _ = lstm(vectors[:-1])
            targets = token_ids[1:] > UNKNOWN
            predictions.append(PredictionTargets(projection(states[targets]), token_ids[1:][targets]))
        return predictions


def sampled_loss(
    predicted: Sequence[PredictionTargets],
    weights: Tensor,
    bias: Tensor,
    local: Tensor,
    sampler: WordSampler,
    drawn: Tensor,
) -> Tensor:
    """Return the summed loss in nats over a sample of the vocabulary.

    Args:
        predicted: of each direction.
        weights: word vectors [words of the minibatch, embedding size].
        bias: [words of the minibatch].
        local: int64 [vocabulary], the row of each id in `weights`.
        sampler: what drew the sample.
        drawn: int64 [sample], ids.
    """
    rows = local[drawn]
    negatives, negative_bias = weights[rows], bias[rows] - sampler.log_expected[drawn]
    total = weights.new_zeros(())
    for prediction in predicted:
        rows = local[prediction.targets]
        true = (prediction.vectors * weights[rows]).sum(dim=-1).float() + bias[rows]
        logits = torch.addmm(negative_bias, prediction.vectors.float(), negatives.t())
        logits = logits.masked_fill(drawn == prediction.targets[:, None], -torch.inf)
        total = total + (torch.logaddexp(true, logits.logsumexp(dim=-1)) - true).sum()
    return total


@torch.inference_mode()
def exact_loss(model: WordModel, token_ids: Tensor, lengths: Tensor, random: torch.Generator) -> tuple[float, int]:
    """Return the summed loss in nats over the whole vocabulary, and the number of predicted words.

    Args:
        model: on any device.
        token_ids: int64 [time, batch], on the same device.
        lengths: int64 [batch].
        random: source of the targets, where they are sampled.
    """
    total, count = 0.0, 0
    words = model.embedding.weight.t()
    for prediction in model.predict(model.embedding(token_ids), token_ids, lengths, random):
        for start in range(0, len(prediction.targets), EVALUATION_ROWS):
            rows = slice(start, start + EVALUATION_ROWS)
            logits = torch.addmm(model.bias, prediction.vectors[rows].float(), words)
            logits[:, : UNKNOWN + 1] = -torch.inf
            total += float(nn.functional.cross_entropy(logits, prediction.targets[rows], reduction="sum"))
        count += len(prediction.targets)
    return total, count
