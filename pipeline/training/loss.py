"""What training minimises: how far the model is from the labels, and from a teacher's opinion where there is one."""

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.config import TrainingConfig
from pipeline.dataset.token_cache import TokenSet

SOFT_LABEL_FLOOR = 1e-6  # a teacher's probability is never taken to be nearer to 0


class Objective:
    """The loss of each text, in nats.

    A label counts by cross-entropy; of several labels each by its own binary cross-entropy. A teacher's
    probabilities count by cross-entropy at a temperature (Hinton et al. 2015). A text that has both is
    weighed by `teacher_weight`.

    Args:
        texts: the training texts, with their labels and what the teacher says.
        multi_label: whether a text can have several classes.
        config: weights of classes and of the teacher, smoothing, temperature.
        device: where the logits are.
    """

    def __init__(self, texts: TokenSet, multi_label: bool, config: TrainingConfig, device: torch.device) -> None:
        self.texts, self.multi_label, self.config, self.device = texts, multi_label, config, device
        weights = None
        if config.class_balance == "weights":
            weights = positive_weights(texts) if multi_label else class_weights(texts.label_ids, texts.classes)
        self.weights = None if weights is None else weights.to(device)

    def __call__(self, logits: Tensor, rows: np.ndarray) -> Tensor:
        """Return the loss [rows] of logits float32 [rows, classes]."""
        label_ids = torch.from_numpy(self.texts.label_ids[rows].astype(np.int64)).to(self.device)
        losses = self._of_labels(logits, rows, label_ids)
        if self.texts.soft_labels is None:
            return losses
        opinions = torch.from_numpy(self.texts.soft_labels[rows]).to(self.device)
        asked = ~opinions.isnan().any(dim=1)
        labelled = label_ids >= 0
        weight = self.config.teacher_weight
        shares = torch.where(labelled, torch.where(asked, 1 - weight, 1.0), 0.0)
        teaching = torch.where(asked, torch.where(labelled, weight, 1.0), 0.0)
        return shares * losses + teaching * self._of_teacher(logits, opinions.nan_to_num(0.5))

    def _of_labels(self, logits: Tensor, rows: np.ndarray, label_ids: Tensor) -> Tensor:
        smoothing = self.config.label_smoothing
        if not self.multi_label:
            return nn.functional.cross_entropy(
                logits, label_ids, weight=self.weights, label_smoothing=smoothing, ignore_index=-1, reduction="none"
            )
        targets = torch.from_numpy(self.texts.targets(rows)).to(self.device)
        return nn.functional.binary_cross_entropy_with_logits(
            logits, targets * (1 - smoothing) + smoothing / 2, pos_weight=self.weights, reduction="none"
        ).sum(dim=1)

    def _of_teacher(self, logits: Tensor, opinions: Tensor) -> Tensor:
        heat = self.config.teacher_temperature
        opinions = opinions.clamp(SOFT_LABEL_FLOOR, 1 - SOFT_LABEL_FLOOR)
        if self.multi_label:
            targets = (opinions.logit() / heat).sigmoid()
            losses = nn.functional.binary_cross_entropy_with_logits(logits / heat, targets, reduction="none").sum(dim=1)
        else:
            targets = (opinions.log() / heat).softmax(dim=1)
            losses = nn.functional.cross_entropy(logits / heat, targets, reduction="none")
        return losses * heat**2  # gradients shrink with the square of the temperature


def class_weights(label_ids: np.ndarray, classes: int) -> Tensor:
    """Return float32 [classes], inversely proportional to each class's frequency; their mean over texts is 1."""
    labelled = label_ids[label_ids >= 0]
    counts = np.bincount(labelled, minlength=classes)
    return torch.tensor(len(labelled) / (classes * np.maximum(counts, 1)), dtype=torch.float32)


def positive_weights(texts: TokenSet) -> Tensor:
    """Return float32 [classes]: how many labelled texts lack a class for each that has it, at most 20."""
    labelled = np.flatnonzero(texts.label_ids >= 0)
    having = np.maximum(texts.targets(labelled).sum(axis=0), 1)
    return torch.tensor(np.clip((len(labelled) - having) / having, 1, 20), dtype=torch.float32)
