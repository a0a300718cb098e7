"""The training loss: cross-entropy on labels, and on soft labels where there are any."""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from pipeline.config import TrainingConfig
from pipeline.dataset.token_set import TokenSet

SOFT_LABEL_FLOOR = 1e-6  # soft labels are clamped to this distance from 0 and 1


class Objective:
    """The loss of each text, in nats.

    Cross-entropy for labels; with several labels, the sum of the binary cross-entropies. The same for soft labels
    (distillation: Hinton et al. 2015). A text with both is weighted by `teacher_weight`.

    Args:
        texts: the training texts, with labels and soft labels.
        multi_label: whether a text can have several classes.
        config: class balance, label smoothing, weight of the soft labels.
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
        smoothing = self.config.label_smoothing
        if self.multi_label:
            targets = torch.from_numpy(self.texts.targets(rows)).to(self.device) * (1 - smoothing) + smoothing / 2
            losses = binary_cross_entropy_with_logits(logits, targets, pos_weight=self.weights, reduction="none")
            losses = losses.sum(dim=1)
        else:
            losses = cross_entropy(
                logits, label_ids, self.weights, ignore_index=-1, label_smoothing=smoothing, reduction="none"
            )
        if self.texts.soft_labels is None:
            return losses
        soft_labels = torch.from_numpy(self.texts.soft_labels[rows]).to(self.device)
        has_label, has_soft_label = label_ids >= 0, ~soft_labels.isnan().any(dim=1)
        weight = self.config.teacher_weight
        label_weights = torch.where(has_label, torch.where(has_soft_label, 1 - weight, 1.0), 0.0)
        soft_weights = torch.where(has_soft_label, torch.where(has_label, weight, 1.0), 0.0)
        return label_weights * losses + soft_weights * self.distillation(logits, soft_labels.nan_to_num(0.5))

    def distillation(self, logits: Tensor, soft_labels: Tensor) -> Tensor:
        """Return the loss [rows] of logits [rows, classes] against probabilities [rows, classes]."""
        soft_labels = soft_labels.clamp(SOFT_LABEL_FLOOR, 1 - SOFT_LABEL_FLOOR)
        if self.multi_label:
            targets = soft_labels.logit().sigmoid()  # to the last bit as before: same seed, same weights
            return binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(dim=1)
        targets = soft_labels.log().softmax(dim=1)  # clamped, a row has to be normalised again
        return cross_entropy(logits, targets, reduction="none")


def class_weights(label_ids: np.ndarray, classes: int) -> Tensor:
    """Return float32 [classes], inversely proportional to class frequency; their mean over texts is 1."""
    labelled = label_ids[label_ids >= 0]
    counts = np.bincount(labelled, minlength=classes)
    return torch.tensor(len(labelled) / (classes * np.maximum(counts, 1)), dtype=torch.float32)


def positive_weights(texts: TokenSet) -> Tensor:
    """Return float32 [classes]: labelled texts without a class for each with it, at most 20."""
    labelled = np.flatnonzero(texts.label_ids >= 0)
    with_class = np.maximum(texts.targets(labelled).sum(axis=0), 1)
    return torch.tensor(np.clip((len(labelled) - with_class) / with_class, 1, 20), dtype=torch.float32)
