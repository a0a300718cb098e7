"""The pretraining loop: word models trained on unlabelled text, in chunks streamed from Parquet."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.config import PretrainingConfig
from pipeline.dataset.chunks import ChunkCache
from pipeline.dataset.minibatches import TokenLists, plan_minibatches, shuffled_minibatches
from pipeline.training.loop import learning_rate_factor
from pipeline.training.parallel import CorePool, generator
from pipeline.training.pretrain.language_model import WordModel, WordSampler, exact_loss, sampled_loss
from pipeline.training.resumable import LoopState, Progress, ResumableLoop

POOL_GROUPS = 2  # row groups that are shuffled together
BATCH_SIZE = 256  # most chunks in a minibatch
EVALUATION_TOKENS = 60_000  # of the held-out texts: each needs logits over the whole vocabulary


@dataclass
class PretrainingState(LoopState):
    """The state of a pretraining, with the number of words predicted in this epoch."""

    predicted: int = 0


@dataclass(frozen=True)
class Pretrained:
    """A pretrained model, on the CPU, and its measurements."""

    model: WordModel
    history: list[dict[str, float]]
    seconds: float
    tokens_per_second: float
    device: str

    @property
    def perplexity(self) -> float:
        """Perplexity on held-out text after the last epoch."""
        return self.history[-1]["perplexity"]


@dataclass(frozen=True)
class PretrainingPhase:
    """Name, epochs and highest learning rate of one model's pretraining."""

    name: str
    epochs: int
    learning_rate: float


def pretrain(
    model: WordModel,
    cache: ChunkCache,
    phase: PretrainingPhase,
    config: PretrainingConfig,
    *,
    device: torch.device,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> Pretrained:
    """Train a model on all chunks; resume from a checkpoint if there is one.

    Args:
        model: freshly made; trained in place.
        cache: the chunks.
        phase: epochs and learning rate.
        config: what holds for all models.
        device: where to train.
        checkpoint: file to resume from and to save to, if any.
        progress: called every few seconds.
    """
    model.to(device)
    with CorePool(device) as cores:
        trainer = WordTrainer(model, WordSampler(cache.counts, config.sampled_words, device=device), config, cores)
        name = f"{phase.name}, "
        loop = ResumableLoop(PretrainingState(), model, trainer.optimizer, phase.epochs, checkpoint, progress, name)
        state = loop.state
        while state.epoch < phase.epochs:
            model.train()
            pools = epoch_pools(cache.groups, [config.seed, state.epoch])
            while state.pool < len(pools):
                chunks = cache.read(pools[state.pool])
                random = np.random.default_rng([config.seed, state.epoch, state.pool])
                limits = {"batch_tokens": config.batch_tokens, "batch_size": BATCH_SIZE}
                minibatches = shuffled_minibatches(chunks.lengths, random, **limits)
                for rows, share in loop.steps(minibatches, len(pools)):
                    learning_rate = phase.learning_rate * learning_rate_factor("one-cycle", share)
                    number = [state.epoch, state.pool, state.minibatch]
                    loss, predicted = trainer.step(chunks, rows, learning_rate, number)
                    state.loss_sum += loss
                    state.predicted += predicted
                    state.tokens += int(chunks.lengths[rows].sum())
                state.pool, state.minibatch = state.pool + 1, 0
            sampled = state.loss_sum / max(state.predicted, 1)
            state.finish_epoch({"sampled_loss": sampled, "perplexity": perplexity(model, cache.held_out(), cores)})
            state.predicted = 0
            loop.save()
            loop.report_epoch(f"perplexity {state.history[-1]['perplexity']:,.1f} on held-out text")
    return Pretrained(model.to("cpu").eval(), state.history, state.seconds, state.tokens_per_second, device.type)


def epoch_pools(groups: int, seed: Sequence[int]) -> list[list[int]]:
    """Return the row groups that are read together, in the random order of an epoch."""
    order = [int(group) for group in np.random.default_rng(seed).permutation(groups)]
    return [order[start : start + POOL_GROUPS] for start in range(0, groups, POOL_GROUPS)]


class WordTrainer:
    """The optimizer and one step. Gradients of word vectors cover the words of a minibatch, not the vocabulary."""

    def __init__(self, model: WordModel, sampler: WordSampler, config: PretrainingConfig, cores: CorePool) -> None:
        self.model, self.sampler, self.config, self.cores = model, sampler, config, cores
        self.by_word = [model.embedding.weight, model.bias]
        self.dense = [value for value in model.parameters() if not any(value is rows for rows in self.by_word)]
        for parameter in self.by_word:
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer = torch.optim.AdamW([*self.by_word, *self.dense], weight_decay=0.0, fused=True)

    def step(
        self, chunks: TokenLists, rows: np.ndarray, learning_rate: float, number: Sequence[int]
    ) -> tuple[float, int]:
        """Train on one minibatch; return its summed loss in nats over the sampled words, and the words predicted.

        Args:
            chunks: of the pool.
            rows: chunks of the minibatch.
            learning_rate: of this step.
            number: what makes the random numbers of this step its own.
        """
        parts = [
            (part, generator([self.config.seed, *number, index], self.cores.device))
            for index, part in enumerate(self.cores.split_rows(rows))
        ]
        results = self.cores.map(lambda part: self._gradients(chunks, *part), parts)
        predicted = sum(result.predicted for result in results)
        for index, parameter in enumerate(self.by_word):
            assert parameter.grad is not None
            parameter.grad.zero_()
            for result in results:
                parameter.grad.index_add_(0, result.ids, result.by_word[index])
        for parameter, *gradients in zip(self.dense, *(result.dense for result in results), strict=True):
            parameter.grad = torch.stack(gradients).sum(dim=0) if len(gradients) > 1 else gradients[0]
        for parameter in (*self.by_word, *self.dense):
            assert parameter.grad is not None
            parameter.grad.div_(max(predicted, 1))
        nn.utils.clip_grad_norm_([*self.by_word, *self.dense], self.config.gradient_norm)
        self.optimizer.param_groups[0]["lr"] = learning_rate
        self.optimizer.step()
        return sum(result.loss for result in results), predicted

    def _gradients(self, chunks: TokenLists, rows: np.ndarray, random: torch.Generator) -> "_Gradients":
        token_ids, lengths = chunks.pad(rows)
        device = self.cores.device
        ids = torch.from_numpy(token_ids.T.astype(np.int64)).to(device)
        sample = self.sampler.draw(random)
        distinct, positions = torch.unique(torch.cat([ids.flatten(), sample]), return_inverse=True)
        local = torch.empty(len(self.model.bias), dtype=torch.int64, device=device)
        local[distinct] = torch.arange(len(distinct), device=device)
        weights, bias = (parameter.detach()[distinct].requires_grad_() for parameter in self.by_word)
        with self.cores.autocast():
            vectors = nn.functional.embedding(positions[: ids.numel()].view_as(ids), weights)
            targets = self.model.predict(vectors, ids, torch.from_numpy(lengths.astype(np.int64)).to(device), random)
            loss = sampled_loss(targets, weights, bias, local, self.sampler, sample)
        weights_gradient, bias_gradient, *dense = torch.autograd.grad(loss, [weights, bias, *self.dense])
        predicted = sum(len(direction.targets) for direction in targets)
        return _Gradients(float(loss.detach()), predicted, distinct, [weights_gradient, bias_gradient], dense)


@dataclass(frozen=True)
class _Gradients:
    """Of one part of a minibatch: loss, words predicted, gradients of word vectors for some ids, and the others."""

    loss: float
    predicted: int
    ids: Tensor
    by_word: list[Tensor]
    dense: list[Tensor]


def perplexity(model: WordModel, texts: TokenLists, cores: CorePool) -> float:
    """Return the perplexity over the whole vocabulary: the exponential of the mean loss in nats per word."""
    model.eval()
    texts = texts.take_tokens(EVALUATION_TOKENS)

    def run(rows: np.ndarray) -> tuple[float, int]:
        token_ids, lengths = texts.pad(rows)
        ids = torch.from_numpy(token_ids.T.astype(np.int64)).to(cores.device)
        random = generator([len(rows), int(rows[0])], cores.device)
        return exact_loss(model, ids, torch.from_numpy(lengths.astype(np.int64)).to(cores.device), random)

    results = cores.map(run, plan_minibatches(texts.lengths, batch_tokens=8_192))
    return math.exp(sum(loss for loss, _ in results) / max(sum(count for _, count in results), 1))
