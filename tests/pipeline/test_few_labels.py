"""With few labels, a linear model over document vectors; it gives way to the LSTM where that is clearly better."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import tiny_recipe

from pipeline.batching import TokenLists
from pipeline.build import Start, build, fit, prepare
from pipeline.config import Recipe, override
from pipeline.encoder import pretrain_encoder
from pipeline.evaluation import standard_error
from pipeline.few_labels import learn_from_few, standard_means
from pipeline.model import Classifier
from pipeline.tokens import TokenSet
from pipeline.workspace import Batch, Workspace

TOPICS = {
    "sea": ["anchor", "sail", "harbour", "wave", "deck", "mast", "rope", "tide", "keel", "crew"],
    "bread": ["oven", "flour", "sugar", "butter", "dough", "yeast", "crust", "bake", "salt", "loaf"],
}


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
    return override(tiny_recipe(**training), [f"pretraining.{setting}" for setting in settings])


def test_few_labels_and_much_text_make_a_good_model(workspace: Workspace, add_batch: Callable[..., Batch]) -> None:
    add_batch(topic_rows(600, labelled=20))
    encoder = pretrain_encoder(workspace, recipe())
    publication = build(workspace, "topics", recipe(epochs=4), start=Start(encoder=encoder))
    metrics = publication.bundle.metrics
    names = [candidate["name"] for candidate in metrics["candidates"]]
    assert names == ["pretrained", "from scratch", "document vectors alone"]
    chosen = next(candidate for candidate in metrics["candidates"] if candidate["chosen"])
    assert chosen["name"] == "document vectors alone"
    assert metrics["test"]["accuracy"] > 0.95
    assert metrics["parity"]["equal_labels"] == 1.0
    assert (publication.bundle.path / "figures" / "learning_curve.png").exists()


def test_it_gives_way_only_to_what_is_clearly_better(
    workspace: Workspace, add_batch: Callable[..., Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    add_batch(topic_rows(600, labelled=20))
    short = recipe(epochs=1, compare_scratch=False)
    prepared = prepare(workspace, short, start=Start(encoder=pretrain_encoder(workspace, short)))
    assert standard_error(0.5, 100) == pytest.approx(0.05)
    monkeypatch.setattr("pipeline.build.standard_error", lambda *_: -1.0)  # anything is clearly better than that
    assert [one.chosen for one in fit(workspace, prepared, short).candidates] == [True, False]
    monkeypatch.setattr("pipeline.build.FEW_TEXTS", 5)  # and with more texts it is not even tried
    assert fit(workspace, prepared, short).candidates == ()


def made_up(sets: np.ndarray, label_ids: list[int], token_ids: list[list[int]]) -> TokenSet:
    tokens = TokenLists.of(pa.array(token_ids, pa.list_(pa.int32())))
    return TokenSet(pa.array([str(n) for n in range(len(label_ids))]), np.array(label_ids, np.int32), tokens, sets)


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_each_class_is_told_by_its_words(classes: int) -> None:
    """Also where the last class has no example, or one only."""
    torch.manual_seed(1)
    label_ids = [number % 3 % classes for number in range(60)] + ([3] if classes == 4 else [])
    token_ids = [[2 + label, 2 + label, 9 + number % 3] for number, label in enumerate(label_ids)]
    texts = made_up(np.eye(classes, dtype=bool), label_ids, token_ids)
    model = Classifier(20, classes, tiny_recipe().model).eval()
    average = model.average_of(torch.randn(20, 8))
    average.standardise(average.means(torch.from_numpy(texts.tokens.pad(np.arange(len(texts)))[0])))
    learn_from_few(model, texts)
    ids, lengths = texts.tokens.pad(np.arange(60))
    with torch.inference_mode():
        found = model(torch.from_numpy(ids), torch.from_numpy(lengths.astype(np.int64))).argmax(dim=1)
    assert found.tolist() == label_ids[:60]


def test_several_labels_each_by_itself_and_texts_without_any_label_left_out() -> None:
    torch.manual_seed(1)
    sets = np.array([[True, False, False], [True, True, False], [False, False, False]])
    label_ids = [number % 3 for number in range(60)] + [-1] * 20
    words = {0: [2, 8], 1: [2, 3], 2: [8, 9], -1: [2, 3]}
    texts = made_up(sets, label_ids, [words[label] for label in label_ids])
    model = Classifier(20, 3, tiny_recipe().model, multi_label=True).eval()
    average = model.average_of(torch.randn(20, 8))
    rows = np.arange(60)
    average.standardise(average.means(torch.from_numpy(texts.tokens.pad(rows)[0])))
    learn_from_few(model, texts)
    assert standard_means(average, texts, rows).mean(axis=0) == pytest.approx(0, abs=1e-5)
    ids, lengths = texts.tokens.pad(rows)
    with torch.inference_mode():
        found = model.probabilities(model(torch.from_numpy(ids), torch.from_numpy(lengths.astype(np.int64)))) > 0.5
    assert np.array_equal(found.numpy(), sets[label_ids[:60]])
