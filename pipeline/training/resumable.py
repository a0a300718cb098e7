"""What both training loops share: timed steps, progress, checkpoints, and resuming after a kill."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import nn

from pipeline.files import atomic_path

# Called with the share of the work that is done, in [0, 1], and a line about it.
Progress = Callable[[float, str], None]

CHECKPOINT_SECONDS = 60.0
PROGRESS_SECONDS = 5.0


@dataclass
class LoopState:
    """Everything beside model and optimizer that a killed run needs to go on exactly."""

    epoch: int = 0  # finished epochs
    pool: int = 0  # finished pools of minibatches in this epoch
    minibatch: int = 0  # finished minibatches in this pool
    tokens: int = 0
    seconds: float = 0.0  # spent in steps
    loss_sum: float = 0.0  # of this epoch, in nats
    history: list[dict[str, float]] = field(default_factory=list)  # an entry for each finished epoch

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / max(self.seconds, 1e-9)

    def finish_epoch(self, measurements: dict[str, float]) -> None:
        """Add an epoch's measurements to the history and start the next epoch."""
        self.epoch += 1
        self.history.append({"epoch": self.epoch, **measurements})
        self.pool, self.minibatch, self.loss_sum = 0, 0, 0.0


State = TypeVar("State", bound=LoopState)


class ResumableLoop(Generic[State]):
    """A training loop's state, restored from its checkpoint if there is one.

    Args:
        state: a new state, replaced by the checkpoint's.
        model: on its device; its weights are replaced by the checkpoint's.
        optimizer: of the model's parameters, likewise.
        epochs: epochs of the whole training.
        checkpoint: file to resume from and to save to, if any.
        progress: called every few seconds.
        name: start of each progress line.
    """

    def __init__(
        self,
        state: State,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        epochs: int,
        checkpoint: Path | None = None,
        progress: Progress | None = None,
        name: str = "",
    ) -> None:
        self.state, self.model, self.optimizer, self.epochs = state, model, optimizer, epochs
        self.checkpoint, self.progress, self.name = checkpoint, progress, name
        self.saved = self.reported = time.monotonic()
        if checkpoint and checkpoint.exists():
            value: dict[str, Any] = torch.load(checkpoint, map_location="cpu", weights_only=True)
            model.load_state_dict(value["model"])
            optimizer.load_state_dict(value["optimizer"])
            stored = value["state"]
            stored["minibatch"] = stored.pop("batch")
            vars(state).update(stored)

    def steps(self, minibatches: Sequence[np.ndarray], pools: int = 1) -> Iterator[tuple[np.ndarray, float]]:
        """Yield the remaining minibatches of a pool, each with the share of the training before it.

        After each step, time is counted; progress is reported and a checkpoint saved when they are due.

        Args:
            minibatches: rows of each minibatch of the state's pool.
            pools: pools in an epoch.
        """
        state, started = self.state, time.monotonic() - self.state.seconds
        while state.minibatch < len(minibatches):
            within = (state.pool + state.minibatch / len(minibatches)) / pools
            share = (state.epoch + within) / self.epochs
            yield minibatches[state.minibatch], share
            state.minibatch += 1
            state.seconds = time.monotonic() - started
            if time.monotonic() - self.reported > PROGRESS_SECONDS:
                remaining = state.seconds * (1 - share) / max(share, 1e-9)
                speed = f"{state.tokens_per_second:,.0f} tokens/s, at most {clock(remaining)} left"
                self.report(share, f"epoch {state.epoch + 1} of {self.epochs}, {within:.0%}: {speed}")
            if time.monotonic() - self.saved > CHECKPOINT_SECONDS:
                self.save()

    def report(self, share: float, line: str) -> None:
        """Report progress now."""
        self.reported = time.monotonic()
        if self.progress:
            self.progress(share, f"{self.name}{line}")

    def report_epoch(self, summary: str) -> None:
        """Report the epoch that was just finished."""
        epoch = self.state.epoch
        self.report(epoch / self.epochs, f"epoch {epoch} of {self.epochs} done: {summary}")

    def save(self) -> None:
        """Save a checkpoint now, if there is a file for it."""
        self.saved = time.monotonic()
        if self.checkpoint:
            state = {"batch" if name == "minibatch" else name: value for name, value in vars(self.state).items()}
            value = {"state": state, "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
            with atomic_path(self.checkpoint) as temporary:
                torch.save(value, temporary)


def part_of(progress: Progress | None, start: float, end: float, prefix: str = "") -> Progress | None:
    """Return the progress callback of a part of the work, from one share of it to another."""
    if progress is None:
        return None
    return lambda share, line: progress(start + share * (end - start), f"{prefix}{line}")


def clock(seconds: float) -> str:
    """Return a duration as minutes and seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"
