from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_recipe, weather_rows

from pipeline.build import Prepared, prepare
from pipeline.config import Recipe
from pipeline.corpus import TRAIN, VALIDATION
from pipeline.errors import DeviceError
from pipeline.model import Classifier
from pipeline.training import TrainedModel, choose_device, class_weights, enough_epochs, epoch_batches, schedule, train
from pipeline.workspace import Batch, Workspace

CPU = torch.device("cpu")
GOLDEN_LOSS = 0.6464


@pytest.fixture
def prepared(workspace: Workspace, add_batch: Callable[..., Batch]) -> Prepared:
    add_batch(weather_rows())
    return prepare(workspace, tiny_recipe())


def fit(prepared: Prepared, recipe: Recipe, checkpoint: Path | None = None, progress: object = None) -> TrainedModel:
    torch.manual_seed(recipe.training.seed)
    model = Classifier(prepared.cache.tokenizer.size, len(prepared.corpus.labels), recipe.model)
    sets = (prepared.cache.read(TRAIN), prepared.cache.read(VALIDATION))
    return train(model, *sets, recipe.training, device=CPU, checkpoint=checkpoint, progress=progress)  # type: ignore[arg-type]


def same_weights(one: TrainedModel, other: TrainedModel) -> bool:
    pairs = zip(one.model.state_dict().values(), other.model.state_dict().values(), strict=True)
    return all(torch.equal(left, right) for left, right in pairs)


def test_a_model_learns_what_can_be_learnt(prepared: Prepared) -> None:
    trained = fit(prepared, tiny_recipe())
    assert trained.history[-1]["train_loss"] < trained.history[0]["train_loss"]
    assert max(epoch["validation_macro_f1"] for epoch in trained.history) == 1.0


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(prepared: Prepared) -> None:
    assert same_weights(fit(prepared, tiny_recipe()), fit(prepared, tiny_recipe()))
    assert not same_weights(fit(prepared, tiny_recipe()), fit(prepared, tiny_recipe(seed=2)))


def test_a_killed_training_ends_with_the_weights_of_an_unbroken_one(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the middle of an epoch, after a checkpoint at every batch."""
    monkeypatch.setattr("pipeline.training.CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr("pipeline.training.PROGRESS_SECONDS", 0.0)
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


def test_training_stops_early_and_keeps_the_best_epoch(prepared: Prepared) -> None:
    trained = fit(prepared, tiny_recipe(epochs=30, patience=2))
    assert trained.best_epoch <= len(trained.history) - 2
    assert len(trained.history) < 30


def test_the_loss_of_a_seeded_run_does_not_move(prepared: Prepared) -> None:
    """A refactoring must not change what is learnt; a deliberate change of the recipe changes this number."""
    trained = fit(prepared, tiny_recipe())
    assert trained.history[1]["train_loss"] == pytest.approx(GOLDEN_LOSS, rel=1e-2)


def test_batch_normalisation_survives_a_batch_of_one(prepared: Prepared) -> None:
    recipe = tiny_recipe(batch_size=1, epochs=1)
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"batch_norm": True})})
    assert np.isfinite(fit(prepared, recipe).history[0]["train_loss"])


def test_an_epoch_holds_every_text_once_and_another_epoch_another_order() -> None:
    lengths = np.random.default_rng(0).integers(1, 50, 500)
    config = tiny_recipe().training
    first, second = epoch_batches(lengths, config, 0), epoch_batches(lengths, config, 1)
    assert sorted(np.concatenate(first)) == list(range(500))
    assert not np.array_equal(np.concatenate(first), np.concatenate(second))
    again = epoch_batches(lengths, config, 0)
    assert all(np.array_equal(one, other) for one, other in zip(first, again, strict=True))


def test_a_small_corpus_is_read_more_often_than_a_large_one() -> None:
    assert [enough_epochs(texts, 64) for texts in (100, 5_000, 10_000, 45_000, 1_000_000)] == [30, 8, 8, 3, 3]


def test_one_cycle_rises_to_its_maximum_and_falls_to_zero() -> None:
    assert schedule("one-cycle", 0.0) == pytest.approx(1 / 25)
    assert schedule("one-cycle", 0.3) == pytest.approx(1.0)
    assert schedule("one-cycle", 1.0) == pytest.approx(0.0)
    assert schedule("constant", 0.7) == 1.0


def test_balanced_weights_make_rare_classes_count_as_much() -> None:
    label_ids = np.array([0] * 90 + [1] * 10)
    weights = class_weights(label_ids, 2).numpy()
    assert weights[0] * 90 == pytest.approx(weights[1] * 10)
    assert weights[label_ids].mean() == pytest.approx(1.0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_missing_gpu_is_said_and_auto_takes_the_cpu() -> None:
    assert choose_device("auto").type == "cpu"
    with pytest.raises(DeviceError, match="no usable GPU"):
        choose_device("cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_training_on_a_gpu_learns_in_mixed_precision(prepared: Prepared) -> None:
    recipe = tiny_recipe()
    torch.manual_seed(1)
    model = Classifier(prepared.cache.tokenizer.size, 2, recipe.model)
    sets = (prepared.cache.read(TRAIN), prepared.cache.read(VALIDATION))
    trained = train(model, *sets, recipe.training, device=torch.device("cuda"))
    assert max(epoch["validation_macro_f1"] for epoch in trained.history) == 1.0
