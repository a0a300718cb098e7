"""One training loop that can be read aloud: step, evaluate, keep the best, save, log."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.batching import plan_batches
from pipeline.config import TrainingConfig
from pipeline.errors import DeviceError
from pipeline.evaluation import macro_f1
from pipeline.files import atomic_path
from pipeline.model import Classifier
from pipeline.tokenizer import UNKNOWN
from pipeline.tokens import TokenSet

# Called with the share of the work done, in [0, 1], and a line that says where things stand.
Progress = Callable[[float, str], None]

POOL_BATCHES = 50  # texts are sorted by length inside random pools of about this many batches
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
class TrainedModel:
    """The best weights of a training run, on the CPU, and how they came about."""

    model: Classifier
    history: list[dict[str, float]]
    best_epoch: int
    seconds: float
    tokens_per_second: float
    device: str


def train(
    model: Classifier,
    train_set: TokenSet,
    validation_set: TokenSet,
    config: TrainingConfig,
    *,
    device: torch.device,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
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
    """
    torch.manual_seed(config.seed)
    model.to(device)
    config = config.model_copy(update={"epochs": config.epochs or enough_epochs(len(train_set), config.batch_size)})
    trainer = _Trainer(model, train_set, config, device)
    state = trainer.load(checkpoint) if checkpoint and checkpoint.exists() else TrainingState()
    while state.epoch < config.epochs and not _stalled(state, config):
        trainer.run_epoch(state, checkpoint, progress)
        _close_epoch(model, validation_set, state, state.loss_sum / len(train_set), device)
        if checkpoint:
            trainer.save(checkpoint, state)
        if progress:
            progress(state.epoch / config.epochs, _epoch_line(state, config))
    assert state.best_weights is not None
    model.load_state_dict(state.best_weights)
    return TrainedModel(
        model=model.to("cpu").eval(),
        history=state.history,
        best_epoch=state.best_epoch,
        seconds=state.seconds,
        tokens_per_second=state.tokens / max(state.seconds, 1e-9),
        device=device.type,
    )


def _stalled(state: TrainingState, config: TrainingConfig) -> bool:
    """Return whether more epochs are in vain; the first half of them, while the rate still rises, says nothing."""
    return state.epoch > config.epochs / 2 and state.epoch - state.best_epoch >= config.patience


class _Trainer:
    """The optimizer and what one step needs; the model's randomness comes from PyTorch's seed."""

    def __init__(self, model: Classifier, train_set: TokenSet, config: TrainingConfig, device: torch.device) -> None:
        self.model, self.train_set, self.config, self.device = model, train_set, config, device
        wide = list(model.wide.parameters()) if model.wide is not None else []
        self.dense = [one for one in model.parameters() if not any(one is other for other in wide)]
        self.optimizers: list[tuple[torch.optim.Optimizer, float]] = [
            (torch.optim.AdamW(self.dense, weight_decay=config.weight_decay, fused=True), config.learning_rate)
        ]
        if wide:
            self.optimizers.append((torch.optim.SparseAdam(wide), config.wide_learning_rate))
        classes = model.output.out_features
        weights = class_weights(train_set.label_ids, classes) if config.class_weights == "balanced" else None
        self.loss = nn.CrossEntropyLoss(weight=weights, label_smoothing=config.label_smoothing).to(device)
        # bfloat16 needs no loss scaling, and every GPU since 2020 has it.
        self.mixed = device.type == "cuda" and torch.cuda.is_bf16_supported()

    def run_epoch(self, state: TrainingState, checkpoint: Path | None, progress: Progress | None) -> None:
        """Go through the rest of the state's epoch, saving and reporting now and then."""
        batches = epoch_batches(self.train_set.tokens.lengths, self.config, state.epoch)
        started = told = saved = time.monotonic()
        before = state.seconds
        self.model.train()
        while state.batch < len(batches):
            rows = batches[state.batch]
            done = (state.epoch + state.batch / len(batches)) / self.config.epochs
            state.loss_sum += self.step(rows, done) * len(rows)
            state.batch += 1
            state.tokens += int(self.train_set.tokens.lengths[rows].sum())
            now = time.monotonic()
            state.seconds = before + now - started
            if progress and now - told > PROGRESS_SECONDS:
                told = now
                progress(done, _progress_line(state, done, self.config))
            if checkpoint and now - saved > CHECKPOINT_SECONDS:
                saved = now
                self.save(checkpoint, state)

    def step(self, rows: np.ndarray, done: float) -> float:
        """Learn from one batch; return its mean loss. `done` is the share of the whole training behind it."""
        token_ids, lengths, label_ids = self._tensors(rows)
        if self.config.word_dropout:
            dropped = torch.rand(token_ids.shape, device=self.device) < self.config.word_dropout
            token_ids = torch.where(dropped & (token_ids != 0), UNKNOWN, token_ids)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.mixed):
            loss: Tensor = self.loss(self.model(token_ids, lengths), label_ids)
        self.model.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.dense, self.config.gradient_norm)
        for optimizer, learning_rate in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * schedule(self.config.schedule, done)
            optimizer.step()
        return float(loss.detach())

    def _tensors(self, rows: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        token_ids, lengths = self.train_set.tokens.pad(rows)
        label_ids = self.train_set.label_ids[rows].astype(np.int64)
        arrays = (token_ids, lengths.astype(np.int64), label_ids)
        first, second, third = (torch.from_numpy(array).to(self.device) for array in arrays)
        return first, second, third

    def save(self, path: Path, state: TrainingState) -> None:
        value = {
            "state": vars(state),
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer, _ in self.optimizers],
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all() if self.device.type == "cuda" else [],
        }
        with atomic_path(path) as temporary:
            torch.save(value, temporary)

    def load(self, path: Path) -> TrainingState:
        value: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        self.model.load_state_dict(value["model"])
        for (optimizer, _), state in zip(self.optimizers, value["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        torch.set_rng_state(value["random"])
        if value["random_cuda"]:
            torch.cuda.set_rng_state_all(value["random_cuda"])
        return TrainingState(**value["state"])


def _close_epoch(
    model: Classifier,
    validation_set: TokenSet,
    state: TrainingState,
    train_loss: float,
    device: torch.device,
) -> None:
    """Measure the epoch on validation, and keep its weights if it is the best so far."""
    probabilities = predict(model, validation_set, device=device)
    truth = validation_set.label_ids
    score = macro_f1(probabilities.argmax(axis=1), truth, probabilities.shape[1])
    chosen = np.clip(probabilities[np.arange(len(truth)), truth], 1e-12, None)
    state.epoch += 1
    state.history.append(
        {
            "epoch": state.epoch,
            "train_loss": train_loss,
            "validation_loss": float(-np.log(chosen).mean()),
            "validation_macro_f1": score,
        }
    )
    state.batch, state.loss_sum = 0, 0.0
    if score > state.best_macro_f1:
        state.best_macro_f1, state.best_epoch = score, state.epoch
        state.best_weights = {name: value.cpu().clone() for name, value in model.state_dict().items()}


@torch.no_grad()
def predict(model: Classifier, texts: TokenSet, *, device: torch.device, batch_tokens: int = 32_768) -> np.ndarray:
    """Return class probabilities, float32 [texts, classes]."""
    model.eval()
    result = np.zeros((len(texts), model.output.out_features), dtype=np.float32)
    for rows in plan_batches(texts.tokens.lengths, batch_tokens=batch_tokens):
        token_ids, lengths = texts.tokens.pad(rows)
        logits = model(torch.from_numpy(token_ids).to(device), torch.from_numpy(lengths.astype(np.int64)).to(device))
        result[rows] = logits.float().softmax(dim=-1).cpu().numpy()
    return result


def epoch_batches(lengths: np.ndarray, config: TrainingConfig, epoch: int) -> list[np.ndarray]:
    """Return the batches of one epoch: a function of the seed and the epoch alone.

    Texts are shuffled, sorted by length inside pools, cut by the token budget, and the batches shuffled.
    """
    random = np.random.default_rng([config.seed, epoch])
    order = random.permutation(len(lengths))
    pool_size = POOL_BATCHES * config.batch_size
    batches = [
        pool[rows]
        for pool in (order[start : start + pool_size] for start in range(0, len(order), pool_size))
        for rows in plan_batches(lengths[pool], batch_tokens=config.batch_tokens, batch_size=config.batch_size)
    ]
    return [batches[number] for number in random.permutation(len(batches))]


def enough_epochs(texts: int, batch_size: int) -> int:
    """Return how many passes a corpus needs: three if it is large, and for a small one enough for 600 steps."""
    steps = texts / batch_size  # of one pass
    return max(3, min(8, round(1800 / steps)), min(30, round(600 / steps)))


def schedule(name: str, done: float) -> float:
    """Return the learning rate's share of its maximum after a share of the training.

    "one-cycle" rises for 30 % of the way and falls to zero (Smith 2018, with PyTorch's cosine form).
    """
    if name == "constant":
        return 1.0
    rise, low = 0.3, 1 / 25
    if done < rise:
        return low + (1 - low) * (1 - math.cos(math.pi * done / rise)) / 2
    return (1 + math.cos(math.pi * (done - rise) / (1 - rise))) / 2


def class_weights(label_ids: np.ndarray, classes: int) -> Tensor:
    """Return float32 [classes], inversely proportional to each class's frequency; their mean over texts is 1."""
    counts = np.bincount(label_ids, minlength=classes)
    return torch.tensor(len(label_ids) / (classes * np.maximum(counts, 1)), dtype=torch.float32)


def choose_device(wanted: str) -> torch.device:
    """Return the device to train on.

    Raises:
        DeviceError: CUDA was asked for and PyTorch cannot use it here.
    """
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise DeviceError("device cuda: PyTorch finds no usable GPU here; try `nvidia-smi`, or use device auto or cpu")
    return torch.device("cuda")


def _progress_line(state: TrainingState, done: float, config: TrainingConfig) -> str:
    within = done * config.epochs - state.epoch
    left = state.seconds * (1 - done) / max(done, 1e-9)
    return (
        f"epoch {state.epoch + 1} of {config.epochs}, {within:.0%}: "
        f"{state.tokens / max(state.seconds, 1e-9):,.0f} tokens/s, {_clock(left)} left at most"
    )


def _epoch_line(state: TrainingState, config: TrainingConfig) -> str:
    last = state.history[-1]
    best = "best so far" if state.best_epoch == state.epoch else f"best is epoch {state.best_epoch}"
    return (
        f"epoch {state.epoch} of {config.epochs} done: loss {last['train_loss']:.4f}, "
        f"validation loss {last['validation_loss']:.4f}, macro-F1 {last['validation_macro_f1']:.4f} ({best})"
    )


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"
