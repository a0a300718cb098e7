"""What each branch has to say is decided by texts that none of them has learnt from."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_recipe, weather_rows
from test_linear_branches import cross_fitted, random_texts

from pipeline.config import Recipe, apply_overrides
from pipeline.dataset.corpus import VALIDATION
from pipeline.metrics.classification import log_loss, standard_error
from pipeline.models.write_bundle import load_classifier
from pipeline.promotion.register import train
from pipeline.training.ensemble import (
    LSTM,
    MEAN_EMBEDDING,
    NGRAM_LINEAR,
    as_probabilities,
    best_weights,
    branch_logits,
    fit_branch_weights,
)
from pipeline.training.model import Classifier
from pipeline.training.parallel import CorePool
from pipeline.training.prepare import WarmStart, prepare
from pipeline.training.pretrain.encoder import pretrain_encoder
from pipeline.training.selection import fit
from pipeline.workspace import Batch, Workspace

KINDS = {NGRAM_LINEAR: "wide", MEAN_EMBEDDING: "average"}
TOPICS = {
    "sea": ["anchor", "sail", "harbour", "wave", "deck", "mast", "rope", "tide", "keel", "crew"],
    "bread": ["oven", "flour", "sugar", "butter", "dough", "yeast", "crust", "bake", "salt", "loaf"],
}


def claims(right: float, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits and targets of two classes, of which a share is right, all equally sure."""
    random = np.random.default_rng(seed)
    truth = np.random.default_rng(0).integers(0, 2, count)
    said = np.where(random.random(count) < right, truth, 1 - truth)
    return (np.eye(2)[said] * 2).astype(np.float32), np.eye(2)[truth].astype(np.float32)


def test_the_weights_are_those_of_independent_witnesses() -> None:
    """For independent witnesses the best weight is known: the logarithm of their odds of being right."""
    first, targets = claims(0.9, 20_000, 1)
    second, _ = claims(0.7, 20_000, 2)
    useless, _ = claims(0.5, 20_000, 3)
    weights = best_weights([first, second, useless], targets, [1.0, 1.0, 1.0])
    assert weights[:2] == pytest.approx([np.log(9) / 2, np.log(7 / 3) / 2], rel=0.05)
    assert weights[2] < 0.1


def test_few_texts_hardly_move_the_usual_weights() -> None:
    first, targets = claims(1.0, 3, 1)
    second, _ = claims(0.4, 3, 2)
    assert best_weights([first, second], targets, [0.6, 3.0]) == pytest.approx([0.6, 3.0], rel=0.6)
    assert best_weights([first[:0], second[:0]], targets[:0], [0.6, 3.0]) == pytest.approx([0.6, 3.0])


@pytest.mark.parametrize("multi_label", [False, True])
def test_a_blended_model_says_what_the_weighted_branches_say(multi_label: bool) -> None:
    texts = random_texts(120)
    torch.manual_seed(1)
    model = Classifier(20, 2, tiny_recipe().model, multi_label=multi_label)
    linear = {name: cross_fitted(kind, texts, multi_label=multi_label) for name, kind in KINDS.items()}
    model.wide, model.average = (copy.deepcopy(each.branch) for each in linear.values())
    token_ids, lengths = (torch.from_numpy(array).long() for array in texts.tokens.pad(np.arange(120)))
    with torch.inference_mode(), CorePool(torch.device("cpu")) as cores:
        before = branch_logits(model.eval(), texts, cores)
        held_out = {LSTM: before[LSTM], **{name: each.logits for name, each in linear.items()}}
        found = fit_branch_weights(model, held_out, texts.targets())
        after = model(token_ids, lengths, unknown=model.wide.unknown_rows(texts.unknown_words))
    assert [branch.name for branch in found.branches] == [LSTM, NGRAM_LINEAR, MEAN_EMBEDDING]
    weights = {branch.name: branch.weight for branch in found.branches}
    weighted = sum(weights[name] * values for name, values in before.items())
    np.testing.assert_allclose(after.numpy(), weighted, atol=1e-4, rtol=1e-4)
    losses = [
        log_loss(as_probabilities(logits, multi_label), texts.targets(), multi_label=multi_label)
        for logits in (sum(found.logits.values()), sum(held_out.values()))
    ]
    assert losses[0] < losses[1]  # type: ignore[operator]
    assert found.macro_f1 >= max(branch.macro_f1 for branch in found.branches) - 0.05


def test_the_parts_stand_in_the_metrics_and_a_model_without_branches_is_only_calibrated(
    workspace: Workspace, add_batch: Callable[..., Batch]
) -> None:
    add_batch(weather_rows())
    metrics = train(workspace, "weather", tiny_recipe()).bundle.metrics
    assert [part["name"] for part in metrics["parts"]] == [LSTM, NGRAM_LINEAR]
    alone = apply_overrides(tiny_recipe(), ["model.wide_buckets=0"])
    metrics = train(workspace, "alone", alone).bundle.metrics
    assert [part["name"] for part in metrics["parts"]] == [LSTM]
    assert metrics["candidates"] == []
    assert metrics["test"]["accuracy"] == 1.0


def topic_rows(count: int, *, labelled: int) -> list[dict[str, Any]]:
    """Texts of two topics: a label says which, but hardly two texts share their words."""
    random = np.random.default_rng(1)
    rows = []
    for number in range(count):
        topic = list(TOPICS)[number % 2]
        row = {"id": str(number), "text": f"{' '.join(random.choice(TOPICS[topic], 3))} {number}", "split": "train"}
        if number < labelled:
            row["label"] = topic
            row["split"] = "validation" if number % 5 < 2 else "train"
        elif number < labelled + 100:
            row |= {"label": topic, "split": "test"}
        rows.append(row)
    return rows


def recipe(**training: Any) -> Recipe:
    settings = ["document_epochs=20", "document_size=8", "epochs=1", "document_learning_rate=0.03", "batch_tokens=512"]
    return apply_overrides(tiny_recipe(**training), [f"pretraining.{setting}" for setting in settings])


def test_few_labels_and_much_text_make_a_good_model(workspace: Workspace, add_batch: Callable[..., Batch]) -> None:
    add_batch(topic_rows(600, labelled=20))
    encoder = pretrain_encoder(workspace, recipe())
    publication = train(workspace, "topics", recipe(epochs=4), start=WarmStart(encoder=encoder))
    metrics = publication.bundle.metrics
    names = [candidate["name"] for candidate in metrics["candidates"]]
    assert names == ["pretrained", "from scratch", "linear branches alone"]
    chosen = next(candidate for candidate in metrics["candidates"] if candidate["chosen"])
    assert chosen["name"] == "linear branches alone"
    assert [part["name"] for part in metrics["parts"]] == [NGRAM_LINEAR, MEAN_EMBEDDING]
    assert metrics["test"]["accuracy"] > 0.95
    assert metrics["parity"]["equal_labels"] == 1.0
    assert (publication.bundle.path / "figures" / "learning_curve.png").exists()


def test_the_linear_branches_give_way_only_to_what_is_clearly_better(
    workspace: Workspace, add_batch: Callable[..., Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    add_batch(topic_rows(600, labelled=20))
    short = recipe(epochs=1, compare_scratch=False)
    prepared = prepare(workspace, short, start=WarmStart(encoder=pretrain_encoder(workspace, short)))
    assert standard_error(0.5, 100) == pytest.approx(0.05)
    monkeypatch.setattr("pipeline.training.selection.standard_error", lambda *_: -1.0)  # anything is better
    assert [one.chosen for one in fit(workspace, prepared, short).candidates] == [True, False]
    monkeypatch.setattr("pipeline.training.selection.FEW_TEXTS", 5)  # and with more texts it is not even tried
    assert fit(workspace, prepared, short).candidates == ()


def test_what_a_model_promises_rests_on_texts_that_none_of_its_fits_had_seen(
    workspace: Workspace, add_batch: Callable[..., Batch]
) -> None:
    """Labels at random cannot be learnt, but the linear branch knows those of the validation texts by heart."""
    random = np.random.default_rng(1)
    texts = [" ".join(f"w{number}" for number in random.integers(0, 300, 12)) for _ in range(400)]
    rows = [{"id": str(n), "text": text, "label": "ab"[random.integers(2)]} for n, text in enumerate(texts)]
    add_batch(rows)
    bundle = train(workspace, "noise", tiny_recipe(epochs=3)).bundle
    assert bundle.predictions is not None
    validation = bundle.predictions["validation"]
    assert bundle.metrics["validation"]["n"] == len(validation) > 20
    assert bundle.metrics["validation"]["accuracy"] < 0.75
    assert bundle.metrics["validation"]["calibration_error"] < 0.3
    linear = {score["name"]: score["macro_f1"] for score in bundle.metrics["linear_models"]}
    assert linear.keys() == {"words", "words and characters", "naive Bayes"}
    assert max(linear.values()) < 0.65
    prepared = prepare(workspace, tiny_recipe(epochs=3))
    with CorePool(torch.device("cpu")) as cores:
        known = branch_logits(load_classifier(bundle), prepared.read(VALIDATION), cores)[NGRAM_LINEAR]
    assert (known.argmax(axis=1) == prepared.read(VALIDATION).label_ids).mean() > 0.9
