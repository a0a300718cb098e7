"""One training loop that can be read aloud: step, evaluate, keep the best, save, log."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.config import TrainingConfig
from pipeline.dataset.minibatches import plan_minibatches, shuffled_minibatches
from pipeline.dataset.token_cache import TokenSet
from pipeline.dataset.tokenizer import PADDING, UNKNOWN
from pipeline.errors import DeviceError
from pipeline.files import atomic_path
from pipeline.metrics.classification import best_thresholds, decide, log_loss, macro_f1
from pipeline.training.ensemble import BranchWeight
from pipeline.training.loss import Objective
from pipeline.training.model import Classifier
from pipeline.training.parallel import CorePool, generator

# Called with the share of the work done, in [0, 1], and a line that says where things stand.
Progress = Callable[[float, str], None]
OnEpoch = Callable[[dict[str, float]], None]

CHECKPOINT_SECONDS = 60.0
PROGRESS_SECONDS = 5.0


@dataclass
class TrainingState:
    """Everything that a killed training needs to go on as if nothing had happened."""

    epoch: int = 0
    batch: int = 0  # batches of this epoch already done
    loss_sum: float = 0.0
    tokens: int = 0
    seconds: float = 0.0
    best_macro_f1: float = -1.0
    best_epoch: int = 0
    best_weights: dict[str, Tensor] | None = None
    history: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Candidate:
    """One of several trainings of which the validation split chose."""

    name: str
    history: list[dict[str, float]]
    best_macro_f1: float
    seconds: float
    chosen: bool


@dataclass(frozen=True)
class TrainedModel:
    """The best weights of a training run, on the CPU, and how they came about."""

    model: Classifier
    history: list[dict[str, float]]
    best_epoch: int
    seconds: float
    tokens_per_second: float
    device: str
    best_macro_f1: float
    parts: Sequence[BranchWeight] = ()
    candidates: Sequence[Candidate] = ()


def train(
    model: Classifier,
    train_set: TokenSet,
    validation_set: TokenSet,
    config: TrainingConfig,
    *,
    device: torch.device,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
    on_epoch: OnEpoch | None = None,
) -> TrainedModel:
    """Train until the epochs are over or validation macro-F1 stops rising; return the best weights.

    Args:
        model: freshly made; trained in place.
        train_set: texts to learn from.
        validation_set: texts that choose the epoch.
        config: learning rate, batch limits, dropout of words, patience, seed.
        device: where to train.
        checkpoint: file to go on from and to save to, if any.
        progress: called every few seconds.
        on_epoch: called with each epoch's entry of the history; an error it raises ends the training.
    """
    model.to(device)
    config = config.model_copy(update={"epochs": config.epochs or enough_epochs(len(train_set), config.batch_size)})
    with CorePool(device) as cores:
        trainer = Trainer(model, train_set, config, cores)
        state = trainer.load(checkpoint) if checkpoint and checkpoint.exists() else TrainingState()
        while state.epoch < config.epochs and not _stalled(state, config):
            trainer.run_epoch(state, checkpoint, progress)
            _close_epoch(model, validation_set, state, state.loss_sum / len(train_set), cores)
            if checkpoint:
                trainer.save(checkpoint, state)
            if progress:
                progress(state.epoch / config.epochs, _epoch_line(state, config))
            if on_epoch:
                on_epoch(state.history[-1])
    assert state.best_weights is not None
    model.load_state_dict(state.best_weights)
    return TrainedModel(
        model=model.to("cpu").eval(),
        history=state.history,
        best_epoch=state.best_epoch,
        seconds=state.seconds,
        tokens_per_second=state.tokens / max(state.seconds, 1e-9),
        device=device.type,
        best_macro_f1=state.best_macro_f1,
    )


def _stalled(state: TrainingState, config: TrainingConfig) -> bool:
    """Return whether more epochs are in vain; the first half of them, while the rate still rises, says nothing."""
    return state.epoch > config.epochs / 2 and state.epoch - state.best_epoch >= config.patience


class Trainer:
    """The optimizer and what one step needs. A batch is shared out over the cores, a part of its rows to each."""

    def __init__(self, model: Classifier, train_set: TokenSet, config: TrainingConfig, cores: CorePool) -> None:
        self.model, self.train_set, self.config, self.cores = model, train_set, config, cores
        self.parameters = list(model.parameters())
        groups = [
            {"params": parameters, "rate": config.learning_rate * config.layer_decay**depth, "thaws": thaw}
            for depth, thaw, parameters in by_depth(model, config.frozen_share)
        ]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay, fused=True)
        self.objective = Objective(train_set, model.multi_label, config, cores.device)

    def run_epoch(self, state: TrainingState, checkpoint: Path | None, progress: Progress | None) -> None:
        """Go through the rest of the state's epoch, saving and reporting now and then."""
        batches = epoch_minibatches(self.train_set, self.config, state.epoch)
        started = told = saved = time.monotonic()
        before = state.seconds
        self.model.train()
        while state.batch < len(batches):
            rows = batches[state.batch]
            progress_share = (state.epoch + state.batch / len(batches)) / self.config.epochs
            state.loss_sum += self.step(rows, progress_share, [state.epoch, state.batch]) * len(rows)
            state.batch += 1
            state.tokens += int(self.train_set.tokens.lengths[rows].sum())
            now = time.monotonic()
            state.seconds = before + now - started
            if progress and now - told > PROGRESS_SECONDS:
                told = now
                progress(progress_share, _progress_line(state, progress_share, self.config))
            if checkpoint and now - saved > CHECKPOINT_SECONDS:
                saved = now
                self.save(checkpoint, state)

    def step(self, rows: np.ndarray, progress_share: float, number: Sequence[int]) -> float:
        """Learn from one batch; return its mean loss.

        Args:
            rows: texts of the batch.
            done: share of the whole training that lies behind it.
            number: what makes this step's dropout its own.
        """
        whole = self.model.norm is not None  # a batch's own mean and spread need all of its rows
        parts = [
            (part, generator([self.config.seed, *number, place], self.cores.device))
            for place, part in enumerate([rows] if whole else self.cores.split_rows(rows))
        ]
        results = self.cores.map(lambda part: self._gradients(*part, len(rows)), parts)
        for parameter, *gradients in zip(self.parameters, *(gradients for _, gradients in results), strict=True):
            parameter.grad = sum(gradients[1:], start=gradients[0])
        nn.utils.clip_grad_norm_(self.parameters, self.config.gradient_norm)
        for group in self.optimizer.param_groups:
            awake = progress_share >= group["thaws"]
            group["lr"] = group["rate"] * schedule(self.config.schedule, progress_share) if awake else 0.0
        self.optimizer.step()
        return sum(loss for loss, _ in results)

    def _gradients(self, rows: np.ndarray, random: torch.Generator, of: int) -> tuple[float, Sequence[Tensor]]:
        """Return the loss of some rows and its gradients, as their share of a batch of `of` rows."""
        device = self.cores.device
        token_ids, lengths = self.train_set.tokens.pad(rows)
        ids = torch.from_numpy(token_ids).to(device)
        if self.config.word_dropout:
            chances = torch.rand(ids.shape, device=device, generator=random)
            ids = torch.where((chances < self.config.word_dropout) & (ids != PADDING), UNKNOWN, ids)
        with self.cores.autocast():
            logits = self.model(ids, torch.from_numpy(lengths.astype(np.int64)).to(device), random)
        loss = self.objective(logits.float(), rows).sum() / of
        return float(loss.detach()), torch.autograd.grad(loss, self.parameters)

    def save(self, path: Path, state: TrainingState) -> None:
        value = {
            "state": vars(state),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        with atomic_path(path) as temporary:
            torch.save(value, temporary)

    def load(self, path: Path) -> TrainingState:
        value: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        self.model.load_state_dict(value["model"])
        self.optimizer.load_state_dict(value["optimizer"])
        return TrainingState(**value["state"])


def by_depth(model: Classifier, frozen_share: float) -> list[tuple[int, float, list[nn.Parameter]]]:
    """Return parameters by layer, from the head (depth 0) down to the embedding, with the time at which each thaws.

    Slower rates for lower layers and gradual unfreezing are from Howard and Ruder (2018).

    Args:
        model: whose parameters they are.
        frozen_share: share of the training in which layers below the head thaw one by one.
    """
    layers: list[nn.Module] = [model.embedding, *model.layers]
    depth_of = {id(one): len(layers) - number for number, layer in enumerate(layers) for one in layer.parameters()}
    return [
        (
            depth,
            frozen_share * depth / len(layers),
            [one for one in model.parameters() if depth_of.get(id(one), 0) == depth],
        )
        for depth in range(len(layers) + 1)
    ]


def _close_epoch(
    model: Classifier,
    validation_set: TokenSet,
    state: TrainingState,
    train_loss: float,
    cores: CorePool,
) -> None:
    """Measure the epoch on validation, and keep its weights if it is the best so far."""
    measured = validation_metrics(model, validation_set, cores)
    score = measured["validation_macro_f1"]
    state.epoch += 1
    state.history.append({"epoch": state.epoch, "train_loss": train_loss, **measured})
    state.batch, state.loss_sum = 0, 0.0
    if score > state.best_macro_f1:
        state.best_macro_f1, state.best_epoch = score, state.epoch
        state.best_weights = {name: value.cpu().clone() for name, value in model.state_dict().items()}


def validation_metrics(model: Classifier, texts: TokenSet, cores: CorePool) -> dict[str, float]:
    """Return loss (nats) and macro-F1 of labelled texts as an epoch's history keeps them."""
    probabilities, targets = predict(model, texts, cores=cores), texts.targets()
    thresholds = best_thresholds(probabilities, targets > 0) if model.multi_label else None
    loss = log_loss(probabilities, targets, multi_label=model.multi_label)
    return {
        "validation_loss": math.nan if loss is None else loss,
        "validation_macro_f1": macro_f1(decide(probabilities, thresholds), targets > 0),
    }


def predict(model: Classifier, texts: TokenSet, *, cores: CorePool, batch_tokens: int = 16_384) -> np.ndarray:
    """Return class probabilities, float32 [texts, classes], from a model on the device of `cores`."""
    model.eval()
    result = np.zeros((len(texts), model.output.out_features), dtype=np.float32)

    @torch.inference_mode()
    def run(rows: np.ndarray) -> None:
        token_ids, lengths = texts.tokens.pad(rows)
        ids, sizes = (torch.from_numpy(array).to(cores.device) for array in (token_ids, lengths.astype(np.int64)))
        result[rows] = model.probabilities(model(ids, sizes).float()).cpu().numpy()

    cores.map(run, plan_minibatches(texts.tokens.lengths, batch_tokens=batch_tokens))
    return result


def epoch_minibatches(texts: TokenSet, config: TrainingConfig, epoch: int) -> list[np.ndarray]:
    """Return the batches of one epoch: a function of the seed and the epoch alone.

    Every text is in it once; with balanced sampling as many are drawn, from each class equally often.
    """
    random = np.random.default_rng([config.seed, epoch])
    lengths = texts.tokens.lengths
    if config.class_balance != "sampling":
        return shuffled_minibatches(lengths, random, batch_tokens=config.batch_tokens, batch_size=config.batch_size)
    drawn = random.choice(len(lengths), len(lengths), p=sampling_shares(texts))
    batches = shuffled_minibatches(
        lengths[drawn], random, batch_tokens=config.batch_tokens, batch_size=config.batch_size
    )
    return [drawn[rows] for rows in batches]


def sampling_shares(texts: TokenSet) -> np.ndarray:
    """Return how often each text is drawn, float64 [texts] adding up to 1: as often as its rarest class asks for."""
    labelled = texts.label_ids >= 0
    counts = np.maximum(texts.targets(labelled).sum(axis=0), 1)
    wanted = np.where(texts.label_sets, 1 / counts, 0.0).max(axis=1)[texts.label_ids]
    wanted[wanted == 0] = 1 / len(texts)
    wanted[~labelled] = 1 / len(texts)  # only a teacher knows
    shares: np.ndarray = wanted / wanted.sum()
    return shares


def enough_epochs(texts: int, batch_size: int) -> int:
    """Return how many passes a corpus needs: three if it is large, and for a small one enough for 600 steps."""
    steps = texts / batch_size  # of one pass
    return max(3, min(8, round(1800 / steps)), min(30, round(600 / steps)))


def schedule(name: str, progress_share: float) -> float:
    """Return the learning rate's share of its maximum after a share of the training.

    "one-cycle" rises for 30 % of the way and falls to zero (Smith 2018, with PyTorch's cosine form).
    """
    if name == "constant":
        return 1.0
    rise, low = 0.3, 1 / 25
    if progress_share < rise:
        return low + (1 - low) * (1 - math.cos(math.pi * progress_share / rise)) / 2
    return (1 + math.cos(math.pi * (progress_share - rise) / (1 - rise))) / 2


def choose_training_device(wanted: str) -> torch.device:
    """Return the device to train on.

    Raises:
        DeviceError: CUDA was asked for and PyTorch cannot use it here.
    """
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise DeviceError("device cuda: PyTorch finds no usable GPU here; try `nvidia-smi`, or use device auto or cpu")
    return torch.device("cuda")


def _progress_line(state: TrainingState, progress_share: float, config: TrainingConfig) -> str:
    within = progress_share * config.epochs - state.epoch
    left = state.seconds * (1 - progress_share) / max(progress_share, 1e-9)
    return (
        f"epoch {state.epoch + 1} of {config.epochs}, {within:.0%}: "
        f"{state.tokens / max(state.seconds, 1e-9):,.0f} tokens/s, {clock(left)} left at most"
    )


def _epoch_line(state: TrainingState, config: TrainingConfig) -> str:
    last = state.history[-1]
    best = "best so far" if state.best_epoch == state.epoch else f"best is epoch {state.best_epoch}"
    return (
        f"epoch {state.epoch} of {config.epochs} done: loss {last['train_loss']:.4f}, "
        f"validation loss {last['validation_loss']:.4f}, macro-F1 {last['validation_macro_f1']:.4f} ({best})"
    )


def clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"
