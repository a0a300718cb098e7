"""Learning from text without labels: one loop over pieces that are streamed from Parquet."""

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.config import PretrainingConfig
from pipeline.dataset.chunks import ChunkCache
from pipeline.dataset.minibatches import TokenLists, plan_minibatches, shuffled_minibatches
from pipeline.files import atomic_path
from pipeline.training.loop import CHECKPOINT_SECONDS, PROGRESS_SECONDS, Progress, clock, schedule
from pipeline.training.parallel import CorePool, generator
from pipeline.training.pretrain.language_model import WordModel, WordSampler, exact_loss, sampled_loss

logger = logging.getLogger(__name__)

GROUPS_AT_ONCE = 2  # row groups that are shuffled together
BATCH_SIZE = 256  # most pieces in a batch
EVALUATION_TOKENS = 60_000  # of the held-out texts: the whole vocabulary is computed for each


@dataclass
class PretrainingState:
    """Everything that a killed pretraining needs to go on as if nothing had happened."""

    epoch: int = 0
    pool: int = 0  # pools of this epoch already done
    batch: int = 0  # batches of this pool already done
    tokens: int = 0
    seconds: float = 0.0
    loss_sum: float = 0.0
    predicted: int = 0
    history: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Pretrained:
    """A model on the CPU, and how it came about."""

    model: WordModel
    history: list[dict[str, float]]
    seconds: float
    tokens_per_second: float
    device: str

    @property
    def perplexity(self) -> float:
        return self.history[-1]["perplexity"]


@dataclass(frozen=True)
class PretrainingPhase:
    """How often and how fast a model goes through the pieces."""

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
    """Train a model on all pieces; go on from a checkpoint if there is one.

    Args:
        model: freshly made; trained in place.
        cache: the pieces.
        plan: passes and rate.
        config: what holds for all models.
        device: where to train.
        checkpoint: file to go on from and to save to, if any.
        progress: called every few seconds.
    """
    model.to(device)
    with CorePool(device) as cores:
        trainer = _Trainer(model, cache, phase, config, cores)
        state = trainer.load(checkpoint) if checkpoint and checkpoint.exists() else PretrainingState()
        while state.epoch < phase.epochs:
            trainer.run_epoch(state, checkpoint, progress)
            trainer.close_epoch(state)
            if checkpoint:
                trainer.save(checkpoint, state)
            if progress:
                progress(state.epoch / phase.epochs, _epoch_line(state, phase))
    return Pretrained(
        model.to("cpu").eval(), state.history, state.seconds, state.tokens / max(state.seconds, 1e-9), device.type
    )


class _Trainer:
    """What one step needs. Gradients of word vectors are summed over the words of a batch, not over the vocabulary."""

    def __init__(
        self, model: WordModel, cache: ChunkCache, phase: PretrainingPhase, config: PretrainingConfig, cores: CorePool
    ) -> None:
        self.model, self.cache, self.phase, self.config, self.cores = model, cache, phase, config, cores
        self.sampler = WordSampler(cache.counts, config.sampled_words, device=cores.device)
        self.words = [model.embedding.weight, model.bias]
        self.others = [one for one in model.parameters() if not any(one is word for word in self.words)]
        for parameter in self.words:
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer = torch.optim.AdamW([*self.words, *self.others], weight_decay=0.0, fused=True)

    def run_epoch(self, state: PretrainingState, checkpoint: Path | None, progress: Progress | None) -> None:
        """Go through the rest of the state's epoch, saving and reporting now and then."""
        started = told = saved = time.monotonic()
        before = state.seconds
        self.model.train()
        pools = self.pools(state.epoch)
        while state.pool < len(pools):
            pieces = self.cache.read(pools[state.pool])
            batches = self._batches(pieces, state)
            while state.batch < len(batches):
                rows = batches[state.batch]
                within = (state.pool + state.batch / len(batches)) / len(pools)
                progress_share = (state.epoch + within) / self.phase.epochs
                loss, predicted = self.step(pieces, rows, progress_share, [state.epoch, state.pool, state.batch])
                state.loss_sum += loss
                state.predicted += predicted
                state.tokens += int(pieces.lengths[rows].sum())
                state.batch += 1
                now = time.monotonic()
                state.seconds = before + now - started
                if progress and now - told > PROGRESS_SECONDS:
                    told = now
                    progress(progress_share, _progress_line(state, progress_share, within, self.phase))
                if checkpoint and now - saved > CHECKPOINT_SECONDS:
                    saved = now
                    self.save(checkpoint, state)
            state.pool, state.batch = state.pool + 1, 0

    def pools(self, epoch: int) -> list[list[int]]:
        """Return the row groups that are read together, in this epoch's order."""
        random = np.random.default_rng([self.config.seed, epoch])
        groups = [int(group) for group in random.permutation(self.cache.groups)]
        return [groups[start : start + GROUPS_AT_ONCE] for start in range(0, len(groups), GROUPS_AT_ONCE)]

    def _batches(self, pieces: TokenLists, state: PretrainingState) -> list[np.ndarray]:
        random = np.random.default_rng([self.config.seed, state.epoch, state.pool])
        return shuffled_minibatches(
            pieces.lengths, random, batch_tokens=self.config.batch_tokens, batch_size=BATCH_SIZE
        )

    def step(
        self, pieces: TokenLists, rows: np.ndarray, progress_share: float, number: Sequence[int]
    ) -> tuple[float, int]:
        """Learn from one batch; return its summed loss in nats over the sampled words, and how many it predicted."""
        parts = [
            (part, generator([self.config.seed, *number, place], self.cores.device))
            for place, part in enumerate(self.cores.split_rows(rows))
        ]
        results = self.cores.map(lambda part: self._gradients(pieces, *part), parts)
        predicted = sum(result.predicted for result in results)
        for parameter in self.words:
            assert parameter.grad is not None
            parameter.grad.zero_()
        for result in results:
            for parameter, gradient in zip(self.words, result.words, strict=True):
                assert parameter.grad is not None
                parameter.grad.index_add_(0, result.ids, gradient)
        for parameter, *gradients in zip(self.others, *(result.others for result in results), strict=True):
            parameter.grad = torch.stack(gradients).sum(dim=0) if len(gradients) > 1 else gradients[0]
        for parameter in (*self.words, *self.others):
            assert parameter.grad is not None
            parameter.grad.div_(max(predicted, 1))
        nn.utils.clip_grad_norm_([*self.words, *self.others], self.config.gradient_norm)
        self.optimizer.param_groups[0]["lr"] = self.phase.learning_rate * schedule("one-cycle", progress_share)
        self.optimizer.step()
        return sum(result.loss for result in results), predicted

    def _gradients(self, pieces: TokenLists, rows: np.ndarray, random: torch.Generator) -> "_Gradients":
        token_ids, lengths = pieces.pad(rows)
        device = self.cores.device
        ids = torch.from_numpy(token_ids.T.astype(np.int64)).to(device)
        drawn = self.sampler.draw(random)
        here, places = torch.unique(torch.cat([ids.flatten(), drawn]), return_inverse=True)
        local = torch.empty(len(self.model.bias), dtype=torch.int64, device=device)
        local[here] = torch.arange(len(here), device=device)
        weights, bias = (parameter.detach()[here].requires_grad_() for parameter in self.words)
        with self.cores.autocast():
            vectors = nn.functional.embedding(places[: ids.numel()].view_as(ids), weights)
            found = self.model.predict(vectors, ids, torch.from_numpy(lengths.astype(np.int64)).to(device), random)
            loss = sampled_loss(found, weights, bias, local, self.sampler, drawn)
        weights_gradient, bias_gradient, *others = torch.autograd.grad(loss, [weights, bias, *self.others])
        return _Gradients(
            float(loss.detach()),
            sum(len(one.targets) for one in found),
            here,
            [weights_gradient, bias_gradient],
            others,
        )

    def close_epoch(self, state: PretrainingState) -> None:
        """Measure the epoch on the held-out texts."""
        state.history.append(
            {
                "epoch": state.epoch + 1,
                "sampled_loss": state.loss_sum / max(state.predicted, 1),
                "perplexity": perplexity(self.model, self.cache.held_out(), self.cores),
            }
        )
        state.epoch, state.pool, state.batch = state.epoch + 1, 0, 0
        state.loss_sum, state.predicted = 0.0, 0

    def save(self, path: Path, state: PretrainingState) -> None:
        value = {"state": vars(state), "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        with atomic_path(path) as temporary:
            torch.save(value, temporary)

    def load(self, path: Path) -> PretrainingState:
        value: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        self.model.load_state_dict(value["model"])
        self.optimizer.load_state_dict(value["optimizer"])
        return PretrainingState(**value["state"])


@dataclass(frozen=True)
class _Gradients:
    """Of one part of a batch: summed loss, words predicted, and gradients; those of word vectors for some ids."""

    loss: float
    predicted: int
    ids: Tensor
    words: list[Tensor]
    others: list[Tensor]


def perplexity(model: WordModel, texts: TokenLists, cores: CorePool) -> float:
    """Return how many words of the whole vocabulary the model hesitates between, on average."""
    model.eval()
    texts = texts.take_tokens(EVALUATION_TOKENS)

    def run(rows: np.ndarray) -> tuple[float, int]:
        token_ids, lengths = texts.pad(rows)
        ids = torch.from_numpy(token_ids.T.astype(np.int64)).to(cores.device)
        random = generator([len(rows), int(rows[0])], cores.device)
        return exact_loss(model, ids, torch.from_numpy(lengths.astype(np.int64)).to(cores.device), random)

    found = cores.map(run, plan_minibatches(texts.lengths, batch_tokens=8_192))
    return math.exp(sum(loss for loss, _ in found) / max(sum(count for _, count in found), 1))


def _progress_line(state: PretrainingState, progress_share: float, within: float, phase: PretrainingPhase) -> str:
    left = state.seconds * (1 - progress_share) / max(progress_share, 1e-9)
    return (
        f"{phase.name}, epoch {state.epoch + 1} of {phase.epochs}, {within:.0%}: "
        f"{state.tokens / max(state.seconds, 1e-9):,.0f} tokens/s, {clock(left)} left"
    )


def _epoch_line(state: PretrainingState, phase: PretrainingPhase) -> str:
    return (
        f"{phase.name}, epoch {state.epoch} of {phase.epochs} done: "
        f"perplexity {state.history[-1]['perplexity']:,.1f} on held-out text"
    )
