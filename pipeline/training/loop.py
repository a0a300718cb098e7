"""The classifier's training loop: step, evaluate, keep the best weights, save, report."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.config import TrainingConfig
from pipeline.dataset.minibatches import plan_minibatches, shuffled_minibatches
from pipeline.dataset.token_set import TokenSet
from pipeline.dataset.tokenizer import PADDING, UNKNOWN
from pipeline.errors import DeviceError
from pipeline.metrics.classification import best_thresholds, decide, log_loss, macro_f1
from pipeline.training.ensemble import BranchWeight, LinearScore
from pipeline.training.loss import Objective
from pipeline.training.model import Classifier
from pipeline.training.parallel import CorePool, generator
from pipeline.training.resumable import LoopState, Progress, ResumableLoop

MANY_CLASSES, MANY_CLASSES_FACTOR = 40, 1.8
OnEpoch = Callable[[dict[str, float]], None]


@dataclass
class TrainingState(LoopState):
    """The state of a classifier's training, with its best epoch."""

    best_macro_f1: float = -1.0
    best_epoch: int = 0
    best_weights: dict[str, Tensor] | None = None

    def keep_best(self, model: Classifier) -> None:
        """Keep a model's weights if the macro-F1 of the last epoch is the best so far."""
        score = self.history[-1]["validation_macro_f1"]
        if score > self.best_macro_f1:
            self.best_macro_f1, self.best_epoch = score, self.epoch
            self.best_weights = {name: value.cpu().clone() for name, value in model.state_dict().items()}

    def has_stalled(self, epochs: int, patience: int) -> bool:
        """Return whether to stop early; never in the first half, while the learning rate is still high."""
        return self.epoch > epochs / 2 and self.epoch - self.best_epoch >= patience

    def summary(self) -> str:
        """Return the last epoch's measurements as a line."""
        last = self.history[-1]
        best = "best so far" if self.best_epoch == self.epoch else f"best is epoch {self.best_epoch}"
        return (
            f"loss {last['train_loss']:.4f}, validation loss {last['validation_loss']:.4f}, "
            f"macro-F1 {last['validation_macro_f1']:.4f} ({best})"
        )


@dataclass(frozen=True)
class Candidate:
    """One of several trainings from which the validation split chose."""

    name: str
    history: list[dict[str, float]]
    best_macro_f1: float
    seconds: float
    chosen: bool


@dataclass(frozen=True)
class TrainedModel:
    """The best weights of a training run, on the CPU, and its measurements.

    `held_out` are weighted logits float32 [validation texts, classes] of each branch, of fits without these texts:
    the model's linear branches are fitted on them too.
    """

    model: Classifier
    history: list[dict[str, float]]
    best_epoch: int
    seconds: float
    tokens_per_second: float
    device: str
    best_macro_f1: float
    branches: Sequence[BranchWeight] = ()
    candidates: Sequence[Candidate] = ()
    held_out: Mapping[str, np.ndarray] = field(default_factory=dict)
    linear_models: Sequence[LinearScore] = ()


def train_lstm(
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
        train_set: texts to train on.
        validation_set: texts that choose the epoch.
        config: learning rate, minibatch limits, dropout of words, patience, seed.
        device: where to train.
        checkpoint: file to resume from and to save to, if any.
        progress: called every few seconds.
        on_epoch: called with each epoch's entry of the history; an error it raises ends the training.
    """
    model.to(device)
    epochs = config.epochs or enough_epochs(train_set, config, with_subwords=model.subwords is not None)
    with CorePool(device) as cores:
        trainer = Trainer(model, train_set, config, cores)
        loop = ResumableLoop(TrainingState(), model, trainer.optimizer, epochs, checkpoint, progress)
        state = loop.state
        while state.epoch < epochs and not state.has_stalled(epochs, config.patience):
            model.train()
            for rows, share in loop.steps(epoch_minibatches(train_set, config, state.epoch)):
                state.loss_sum += trainer.step(rows, share, [state.epoch, state.minibatch]) * len(rows)
                state.tokens += int(train_set.tokens.lengths[rows].sum())
            train_loss = state.loss_sum / len(train_set)
            state.finish_epoch({"train_loss": train_loss, **validation_metrics(model, validation_set, cores)})
            state.keep_best(model)
            loop.save()
            loop.report_epoch(state.summary())
            if on_epoch:
                on_epoch(state.history[-1])
    assert state.best_weights is not None
    model.load_state_dict(state.best_weights)
    model.fold_subwords()
    return TrainedModel(
        model=model.to("cpu").eval(),
        history=state.history,
        best_epoch=state.best_epoch,
        seconds=state.seconds,
        tokens_per_second=state.tokens_per_second,
        device=device.type,
        best_macro_f1=state.best_macro_f1,
    )


class Trainer:
    """The optimizer and one step. The rows of a minibatch are divided between the cores."""

    def __init__(self, model: Classifier, train_set: TokenSet, config: TrainingConfig, cores: CorePool) -> None:
        self.model, self.train_set, self.config, self.cores = model, train_set, config, cores
        self.parameters = list(model.parameters())
        groups = [
            {"params": parameters, "rate": config.learning_rate * config.layer_decay**depth}
            for depth, parameters in enumerate(parameters_by_depth(model))
        ]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay, fused=True)
        self.objective = Objective(train_set, model.multi_label, config, cores.device)

    def step(self, rows: np.ndarray, progress_share: float, number: Sequence[int]) -> float:
        """Train on one minibatch; return its mean loss.

        Args:
            rows: texts of the minibatch.
            progress_share: share of the whole training before this step.
            number: what makes the random numbers of this step its own.
        """
        undivided = self.model.norm is not None  # batch normalisation needs the mean and spread of all rows
        parts = [
            (part, generator([self.config.seed, *number, index], self.cores.device))
            for index, part in enumerate([rows] if undivided else self.cores.split_rows(rows))
        ]
        results = self.cores.map(lambda part: self._gradients(*part, len(rows)), parts)
        for parameter, *gradients in zip(self.parameters, *(gradients for _, gradients in results), strict=True):
            parameter.grad = sum(gradients[1:], start=gradients[0])
        nn.utils.clip_grad_norm_(self.parameters, self.config.gradient_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = group["rate"] * learning_rate_factor(self.config.schedule, progress_share)
        self.optimizer.step()
        return sum(loss for loss, _ in results)

    def _gradients(
        self, rows: np.ndarray, random: torch.Generator, minibatch_size: int
    ) -> tuple[float, Sequence[Tensor]]:
        """Return the loss of some rows and its gradients, as their share of the minibatch."""
        device = self.cores.device
        token_ids, lengths = self.train_set.tokens.pad(rows)
        ids = torch.from_numpy(token_ids).to(device)
        if self.config.word_dropout:
            uniform = torch.rand(ids.shape, device=device, generator=random)
            ids = torch.where((uniform < self.config.word_dropout) & (ids != PADDING), UNKNOWN, ids)
        sizes = torch.from_numpy(lengths.astype(np.int64)).to(device)

        def loss_of(step: Tensor | float) -> tuple[Tensor, Tensor]:
            """Return the loss with a step added to the word vectors, and these vectors."""
            with self.cores.autocast():
                vectors = self.model.embedded(ids.t(), random)
                logits = self.model.logits_of_vectors(vectors + step, sizes, random)
            return self.objective(logits.float(), rows).sum() / minibatch_size, vectors

        before = random.get_state()
        loss, vectors = loss_of(0.0)
        slope, *gradients = torch.autograd.grad(loss, [vectors, *self.parameters])
        if self.config.adversarial:
            random.set_state(before)  # the same dropout again
            slope = slope * (ids.t() != PADDING)[..., None]
            worst, _ = loss_of(adversarial_step(slope, sizes, self.config.adversarial))
            gradients = [a + b for a, b in zip(gradients, torch.autograd.grad(worst, self.parameters), strict=True)]
        return float(loss.detach()), gradients


def adversarial_step(slope: Tensor, lengths: Tensor, size: float) -> Tensor:
    """Return what to add to the word vectors of each text so that its loss rises most (Miyato et al. 2017).

    Args:
        slope: gradients of the loss with respect to the vectors [time, batch, size], 0 past each text's end.
        lengths: int64 [batch].
        size: length of the step for one word; that for a text grows with the root of its length.
    """
    norms = slope.norm(dim=(0, 2), keepdim=True).clamp(min=1e-12)
    return slope / norms * (size * lengths.to(slope.dtype).sqrt()[None, :, None])


def parameters_by_depth(model: Classifier) -> list[list[nn.Parameter]]:
    """Return the parameters of each layer, from the head (depth 0) down to the embedding.

    Lower layers can so have lower learning rates (Howard and Ruder 2018).
    """
    layers: list[nn.Module] = [model.embedding, *model.layers]
    depths = {id(value): len(layers) - number for number, layer in enumerate(layers) for value in layer.parameters()}
    return [
        [parameter for parameter in model.parameters() if depths.get(id(parameter), 0) == depth]
        for depth in range(len(layers) + 1)
    ]


def validation_metrics(model: Classifier, texts: TokenSet, cores: CorePool) -> dict[str, float]:
    """Return the loss (nats) and macro-F1 of labelled texts, as entries of an epoch's history."""
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
    """Return the minibatches of one epoch: a function of the seed and the epoch alone.

    Each text is in one of them; with balanced sampling as many texts are drawn, from each class equally often.
    """
    random = np.random.default_rng([config.seed, epoch])
    lengths = texts.tokens.lengths
    if config.class_balance != "sampling":
        return shuffled_minibatches(lengths, random, batch_tokens=config.batch_tokens, batch_size=config.batch_size)
    drawn = random.choice(len(lengths), len(lengths), p=sampling_shares(texts))
    minibatches = shuffled_minibatches(
        lengths[drawn], random, batch_tokens=config.batch_tokens, batch_size=config.batch_size
    )
    return [drawn[rows] for rows in minibatches]


def sampling_shares(texts: TokenSet) -> np.ndarray:
    """Return the probability of drawing each text, float64 [texts]: its rarest class decides."""
    labelled = texts.label_ids >= 0
    counts = np.maximum(texts.targets(labelled).sum(axis=0), 1)
    weights = np.where(texts.label_sets, 1 / counts, 0.0).max(axis=1)[texts.label_ids]
    weights[weights == 0] = 1 / len(texts)
    weights[~labelled] = 1 / len(texts)  # soft labels only
    shares: np.ndarray = weights / weights.sum()
    return shares


def enough_epochs(texts: TokenSet, config: TrainingConfig, *, with_subwords: bool) -> int:
    """Return the number of epochs: three for a large corpus, and for a small one enough for some hundred steps.

    With subword embeddings fewer are enough, and more make it worse; many classes need more.
    """
    tokens = int(texts.tokens.lengths.sum(dtype=np.int64))
    steps = max(len(texts) / config.batch_size, tokens / config.batch_tokens)
    if not with_subwords:
        return max(3, min(8, round(1800 / steps)), min(30, round(600 / steps)))
    epochs = max(3, min(5, round(1800 / steps)), min(15, round(400 / steps)))
    return round(epochs * MANY_CLASSES_FACTOR) if texts.classes >= MANY_CLASSES else epochs


def learning_rate_factor(schedule: str, progress_share: float) -> float:
    """Return the learning rate as a share of its maximum, after a share of the training.

    "one-cycle" rises over the first 30 % and falls to zero (Smith 2018, with PyTorch's cosine form).
    """
    if schedule == "constant":
        return 1.0
    rise, low = 0.3, 1 / 25
    if progress_share < rise:
        return low + (1 - low) * (1 - math.cos(math.pi * progress_share / rise)) / 2
    return (1 + math.cos(math.pi * (progress_share - rise) / (1 - rise))) / 2


def choose_training_device(requested: str) -> torch.device:
    """Return the device to train on.

    Raises:
        DeviceError: CUDA was requested and PyTorch cannot use it here.
    """
    if requested == "cpu" or (requested == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise DeviceError("device cuda: PyTorch finds no usable GPU here; try `nvidia-smi`, or use device auto or cpu")
    return torch.device("cuda")
