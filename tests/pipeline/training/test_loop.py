from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import tiny_recipe, weather_rows

from pipeline.config import Recipe, TrainingConfig
from pipeline.dataset.corpus import TRAIN, VALIDATION
from pipeline.dataset.minibatches import TokenLists
from pipeline.dataset.token_set import TokenSet
from pipeline.errors import DeviceError
from pipeline.training.loop import (
    TrainedModel,
    adversarial_step,
    choose_training_device,
    enough_epochs,
    epoch_minibatches,
    learning_rate_factor,
    parameters_by_depth,
    sampling_shares,
    train_lstm,
)
from pipeline.training.loss import class_weights
from pipeline.training.model import Classifier
from pipeline.training.prepare import PreparedData, prepare
from pipeline.workspace import Batch, Workspace

CPU = torch.device("cpu")
GOLDEN_LOSS = 0.6801


@pytest.fixture
def prepared(workspace: Workspace, add_batch: Callable[..., Batch]) -> PreparedData:
    add_batch(weather_rows())
    return prepare(workspace, tiny_recipe())


def fit(
    prepared: PreparedData, recipe: Recipe, checkpoint: Path | None = None, progress: object = None
) -> TrainedModel:
    torch.manual_seed(recipe.training.seed)
    model = Classifier(prepared.cache.tokenizer.size, len(prepared.corpus.labels), recipe.model)
    sets = (prepared.cache.read(TRAIN), prepared.cache.read(VALIDATION))
    return train_lstm(model, *sets, recipe.training, device=CPU, checkpoint=checkpoint, progress=progress)  # type: ignore[arg-type]


def same_weights(one: TrainedModel, other: TrainedModel) -> bool:
    pairs = zip(one.model.state_dict().values(), other.model.state_dict().values(), strict=True)
    return all(torch.equal(left, right) for left, right in pairs)


def test_a_model_learns_what_can_be_learnt(prepared: PreparedData) -> None:
    trained = fit(prepared, tiny_recipe())
    assert trained.history[-1]["train_loss"] < trained.history[0]["train_loss"]
    assert max(epoch["validation_macro_f1"] for epoch in trained.history) == 1.0


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(prepared: PreparedData) -> None:
    assert same_weights(fit(prepared, tiny_recipe()), fit(prepared, tiny_recipe()))
    assert not same_weights(fit(prepared, tiny_recipe()), fit(prepared, tiny_recipe(seed=2)))


def test_a_killed_training_ends_with_the_weights_of_an_unbroken_one(
    prepared: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the middle of an epoch, after a checkpoint at every batch."""
    monkeypatch.setattr("pipeline.training.resumable.CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr("pipeline.training.resumable.PROGRESS_SECONDS", 0.0)
    recipe = tiny_recipe()
    checkpoint = tmp_path / "checkpoint.pt"

    class KilledError(Exception):
        pass

    def kill(share: float, _line: str) -> None:
        if share > 0.5:
            raise KilledError

    with pytest.raises(KilledError):
        fit(prepared, recipe, checkpoint, kill)
    seen: list[float] = []
    resumed = fit(prepared, recipe, checkpoint, lambda share, _line: seen.append(share))
    assert min(seen) > 0.4  # it did not start again
    unbroken = fit(prepared, recipe)
    assert same_weights(resumed, unbroken)
    assert resumed.history == unbroken.history


def test_training_stops_early_and_keeps_the_best_epoch(prepared: PreparedData) -> None:
    trained = fit(prepared, tiny_recipe(epochs=30, patience=2))
    assert trained.best_epoch <= len(trained.history) - 2
    assert len(trained.history) < 30


def test_the_loss_of_a_seeded_run_does_not_move(prepared: PreparedData) -> None:
    """A refactoring must not change what is learnt; a deliberate change of the recipe changes this number."""
    trained = fit(prepared, tiny_recipe())
    assert trained.history[1]["train_loss"] == pytest.approx(GOLDEN_LOSS, rel=1e-2)


def test_batch_normalisation_survives_a_batch_of_one(prepared: PreparedData) -> None:
    recipe = tiny_recipe(batch_size=1, epochs=1)
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"batch_norm": True})})
    assert np.isfinite(fit(prepared, recipe).history[0]["train_loss"])


def made_up_texts(label_ids: np.ndarray, sets: np.ndarray) -> TokenSet:
    lengths = np.random.default_rng(0).integers(1, 50, len(label_ids)).astype(np.int32)
    starts = np.cumsum(lengths) - lengths
    tokens = TokenLists(np.ones(lengths.sum(), np.int32), starts, lengths)
    return TokenSet(pa.array([str(n) for n in range(len(lengths))]), label_ids, tokens, sets)


def test_an_epoch_holds_every_text_once_and_another_epoch_another_order() -> None:
    texts = made_up_texts(np.zeros(500, np.int32), np.eye(2, dtype=bool))
    config = tiny_recipe().training
    first, second = epoch_minibatches(texts, config, 0), epoch_minibatches(texts, config, 1)
    assert sorted(np.concatenate(first)) == list(range(500))
    assert not np.array_equal(np.concatenate(first), np.concatenate(second))
    again = epoch_minibatches(texts, config, 0)
    assert all(np.array_equal(one, other) for one, other in zip(first, again, strict=True))


def test_balanced_sampling_reads_rare_classes_as_often_as_others() -> None:
    label_ids = np.array([0] * 940 + [1] * 60, np.int32)
    texts = made_up_texts(label_ids, np.eye(2, dtype=bool))
    drawn = np.concatenate(epoch_minibatches(texts, tiny_recipe(class_balance="sampling").training, 0))
    assert len(drawn) == 1000
    assert np.mean(label_ids[drawn] == 1) == pytest.approx(0.5, abs=0.06)


def test_of_several_labels_the_rarest_decides_how_often_a_text_is_drawn() -> None:
    sets = np.array([[True, False], [True, True], [False, False]])
    texts = made_up_texts(np.array([0] * 80 + [1] * 10 + [2] * 9 + [-1], np.int32), sets)
    shares = sampling_shares(texts)
    assert shares.sum() == pytest.approx(1.0)
    assert shares[80] / shares[0] == pytest.approx(9.0)  # 1/10 against 1/90
    assert shares[90] == shares[99]  # no class, and no label, count as one text among all


@pytest.mark.parametrize(
    ("with_subwords", "classes", "epochs"),
    [(False, 3, [30, 8, 8, 3, 3]), (True, 3, [15, 5, 5, 3, 3]), (True, 40, [27, 9, 9, 5, 5])],
)
def test_a_small_corpus_is_read_more_often_than_a_large_one(
    with_subwords: bool, classes: int, epochs: list[int]
) -> None:
    def texts(count: int) -> TokenSet:
        tokens = TokenLists(np.empty(0, np.int32), np.zeros(count, np.int64), np.full(count, 9, np.int32))
        return TokenSet(pa.nulls(count), np.zeros(count, np.int32), tokens, np.eye(classes, dtype=bool))

    counts = (100, 5_000, 10_000, 45_000, 1_000_000)
    config = TrainingConfig()
    assert [enough_epochs(texts(count), config, with_subwords=with_subwords) for count in counts] == epochs


def test_one_cycle_rises_to_its_maximum_and_falls_to_zero() -> None:
    assert learning_rate_factor("one-cycle", 0.0) == pytest.approx(1 / 25)
    assert learning_rate_factor("one-cycle", 0.3) == pytest.approx(1.0)
    assert learning_rate_factor("one-cycle", 1.0) == pytest.approx(0.0)
    assert learning_rate_factor("constant", 0.7) == 1.0


def test_balanced_weights_make_rare_classes_count_as_much() -> None:
    label_ids = np.array([0] * 90 + [1] * 10)
    weights = class_weights(label_ids, 2).numpy()
    assert weights[0] * 90 == pytest.approx(weights[1] * 10)
    assert weights[label_ids].mean() == pytest.approx(1.0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_missing_gpu_is_said_and_auto_takes_the_cpu() -> None:
    assert choose_training_device("auto").type == "cpu"
    with pytest.raises(DeviceError, match="no usable GPU"):
        choose_training_device("cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_training_on_a_gpu_learns_in_mixed_precision(prepared: PreparedData) -> None:
    recipe = tiny_recipe()
    torch.manual_seed(1)
    model = Classifier(prepared.cache.tokenizer.size, 2, recipe.model)
    sets = (prepared.cache.read(TRAIN), prepared.cache.read(VALIDATION))
    trained = train_lstm(model, *sets, recipe.training, device=torch.device("cuda"))
    assert max(epoch["validation_macro_f1"] for epoch in trained.history) == 1.0


def test_parameters_by_depth_run_from_the_head_to_the_embedding() -> None:
    model = Classifier(50, 2, tiny_recipe().model)
    head, _, embedding = depths = parameters_by_depth(model)
    assert any(parameter is model.output.weight for parameter in head)
    assert any(parameter is model.embedding.weight for parameter in embedding)
    assert sum(map(len, depths)) == len(list(model.parameters()))


def test_an_unknown_pooling_is_refused() -> None:
    model = Classifier(50, 2, tiny_recipe().model.model_copy(update={"pooling": "median"}))
    with pytest.raises(ValueError, match="unknown pooling 'median'"):
        model(torch.tensor([[2, 3]]), torch.tensor([2]))


def test_two_cores_learn_what_one_does(prepared: PreparedData) -> None:
    """Without dropout, but for rounding."""
    recipe = tiny_recipe(word_dropout=0.0, epochs=1, batch_size=32, learning_rate=0.001)
    still = {"embedding_dropout": 0.0, "head_dropout": 0.0}
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update=still)})
    alone = fit(prepared, recipe)
    torch.set_num_threads(2)
    try:
        together = fit(prepared, recipe)
        assert torch.get_num_threads() == 2  # given back
    finally:
        torch.set_num_threads(1)
    assert together.history[0]["train_loss"] == pytest.approx(alone.history[0]["train_loss"], rel=1e-3)
    pairs = zip(alone.model.parameters(), together.model.parameters(), strict=True)
    assert all(torch.allclose(one, other, atol=0.01) for one, other in pairs)


def test_an_error_in_on_epoch_ends_the_training(prepared: PreparedData) -> None:
    class EnoughError(Exception):
        pass

    seen: list[dict[str, float]] = []

    def stop(entry: dict[str, float]) -> None:
        seen.append(entry)
        if entry["epoch"] == 2:
            raise EnoughError

    recipe = tiny_recipe()
    model = Classifier(prepared.cache.tokenizer.size, 2, recipe.model)
    with pytest.raises(EnoughError):
        train_lstm(model, prepared.read(TRAIN), prepared.read(VALIDATION), recipe.training, device=CPU, on_epoch=stop)
    assert [entry["epoch"] for entry in seen] == [1, 2]


def test_the_adversarial_step_has_its_size_in_each_text_and_raises_the_loss(prepared: PreparedData) -> None:
    torch.manual_seed(1)
    model = Classifier(prepared.cache.tokenizer.size, 2, tiny_recipe().model)
    token_ids, lengths = (torch.from_numpy(array) for array in prepared.read(TRAIN).tokens.pad(np.arange(9)))
    vectors = model.embedded(token_ids.t())

    def loss_of(step: torch.Tensor | float) -> torch.Tensor:
        logits = model.logits_of_vectors(vectors + step, lengths.long())
        return torch.nn.functional.cross_entropy(logits, torch.zeros(9, dtype=torch.long))

    (slope,) = torch.autograd.grad(loss_of(0.0), vectors, retain_graph=True)
    slope = slope * (token_ids.t() != 0)[..., None]
    step = adversarial_step(slope, lengths, 0.1)
    torch.testing.assert_close(step.norm(dim=(0, 2)), 0.1 * lengths.float().sqrt())
    assert not step[(token_ids == 0).t()].any()
    random = torch.randn_like(step)
    random *= step.norm() / random.norm()
    assert loss_of(step) > loss_of(random)
    assert loss_of(step) > loss_of(0.0) > loss_of(-step)
