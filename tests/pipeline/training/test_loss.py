"""The loss is what the books say, for labels, several labels and teachers, and for any mixture of them."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

from pipeline.config import TrainingConfig
from pipeline.dataset.minibatches import TokenLists
from pipeline.dataset.token_set import TokenSet
from pipeline.training.loss import Objective, positive_weights

CPU = torch.device("cpu")
LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.1, 0.2, 0.3], [-1.0, 0.0, 3.0]])
ROWS = np.arange(3)


def texts(label_ids: list[int], sets: np.ndarray | None = None, teacher: np.ndarray | None = None) -> TokenSet:
    count = len(label_ids)
    tokens = TokenLists(np.ones(count, np.int32), np.arange(count), np.ones(count, np.int32))
    sets = np.eye(3, dtype=bool) if sets is None else sets
    return TokenSet(pa.array([str(n) for n in range(count)]), np.array(label_ids, np.int32), tokens, sets, teacher)


def losses(told: TokenSet, *, multi_label: bool = False, **settings: object) -> torch.Tensor:
    return Objective(told, multi_label, TrainingConfig.model_validate(settings), CPU)(LOGITS, ROWS)


def test_a_label_counts_by_cross_entropy() -> None:
    expected = nn.functional.cross_entropy(LOGITS, torch.tensor([0, 2, 1]), reduction="none")
    assert torch.allclose(losses(texts([0, 2, 1])), expected)


def test_each_of_several_labels_counts_by_itself() -> None:
    sets = np.array([[True, True, False], [False, False, False]])
    targets = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    expected = nn.functional.binary_cross_entropy_with_logits(LOGITS, targets, reduction="none").sum(dim=1)
    assert torch.allclose(losses(texts([0, 1, 0], sets), multi_label=True), expected)


def test_a_teacher_that_is_certain_of_the_label_changes_nothing() -> None:
    certain = np.eye(3, dtype=np.float32)[[0, 2, 1]]
    for weight in (0.0, 0.3, 1.0):
        assert torch.allclose(
            losses(texts([0, 2, 1], teacher=certain), teacher_weight=weight), losses(texts([0, 2, 1])), atol=1e-4
        )


def test_where_only_the_teacher_knows_it_counts_wholly_and_where_it_is_silent_the_label_does() -> None:
    opinions = np.array([[0.2, 0.3, 0.5], [np.nan] * 3, [0.6, 0.2, 0.2]], np.float32)
    found = losses(texts([-1, 2, 1], teacher=opinions), teacher_weight=0.25)
    logs = LOGITS.log_softmax(dim=1)
    taught = -(torch.from_numpy(opinions) * logs).sum(dim=1)
    assert found[0] == pytest.approx(float(taught[0]), rel=1e-5)
    assert found[1] == pytest.approx(float(-logs[1, 2]), rel=1e-5)
    assert found[2] == pytest.approx(float(0.25 * taught[2] - 0.75 * logs[2, 1]), rel=1e-5)


def test_a_teacher_of_several_labels_tells_each_probability() -> None:
    sets = np.array([[True, False, True]])
    opinions = np.array([[0.9, 0.2, 0.7]] * 3, np.float32)
    found = losses(texts([-1, -1, -1], sets, opinions), multi_label=True)
    expected = nn.functional.binary_cross_entropy_with_logits(LOGITS, torch.from_numpy(opinions), reduction="none")
    assert torch.allclose(found, expected.sum(dim=1), atol=1e-5)


def test_rare_classes_of_several_count_by_how_many_texts_lack_them() -> None:
    sets = np.array([[True, False, False], [True, True, False]])
    told = texts([0] * 8 + [1] * 2 + [-1] * 90, sets)
    assert positive_weights(told).tolist() == pytest.approx([1.0, 4.0, 9.0])
    weighted, plain = (
        Objective(told, True, TrainingConfig(class_balance=balance), CPU)(LOGITS[:2], np.array([9, 0]))
        for balance in ("weights", "none")
    )
    assert weighted[0] == pytest.approx(float(plain[0] + 3 * nn.functional.softplus(-LOGITS[0, 1])), rel=1e-5)
    assert weighted[1] == pytest.approx(float(plain[1]), rel=1e-5)
