"""A language model learns from text without labels, in the same way whether it was killed or not."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import tiny_recipe, weather_rows
from torch import nn

from pipeline.config import Recipe, apply_overrides
from pipeline.dataset.chunks import build_chunks, split_into_chunks
from pipeline.dataset.corpus import TRAIN
from pipeline.errors import ModelError, TrainingDataError
from pipeline.models.parity import prove_parity
from pipeline.models.write_bundle import load_classifier
from pipeline.promotion.register import train
from pipeline.training.parallel import CorePool, generator
from pipeline.training.prepare import WarmStart, prepare
from pipeline.training.pretrain.encoder import Encoder, encoders, matching_encoder, named_encoder, pretrain_encoder
from pipeline.training.pretrain.language_model import (
    DocumentModel,
    LanguageModel,
    WordSampler,
    exact_loss,
    sampled_loss,
)
from pipeline.training.pretrain.loop import Pretrained, PretrainingPhase, perplexity, pretrain
from pipeline.training.selection import fit
from pipeline.workspace import Batch, Workspace

CPU = torch.device("cpu")
RANDOM = generator([1], CPU)
SETTINGS = [
    "pretraining.epochs=4",
    "pretraining.document_epochs=2",
    "pretraining.document_size=8",
    "pretraining.batch_tokens=512",
    "pretraining.held_out_share=0.1",
    "pretraining.learning_rate=0.03",
]


def recipe(*settings: str) -> Recipe:
    return apply_overrides(tiny_recipe(), [*SETTINGS, "pretraining.sampled_words=16", *settings])


def unlabelled_rows(count: int = 300) -> list[dict[str, str]]:
    """Sentences whose next word is easy to tell: each of ten subjects does one thing only."""
    deeds = [f"{who} {what} {where}" for who, what, where in zip("abcdefghij", "klmnopqrst", "uvwxyz1234", strict=True)]
    return [{"id": f"u{n}", "text": f"{deeds[n % 10]} and {deeds[n * 7 % 10]} , {n}"} for n in range(count)]


@pytest.fixture
def filled(workspace: Workspace, add_batch: Callable[..., Batch]) -> Workspace:
    add_batch(weather_rows(), "labelled")
    add_batch(unlabelled_rows(), "more")
    return workspace


def learn(
    workspace: Workspace, kind: str = "language", checkpoint: Path | None = None, progress: object = None
) -> Pretrained:
    cache = build_chunks(workspace, workspace.batches(), recipe())
    torch.manual_seed(1)
    size = cache.tokenizer.size
    model = LanguageModel(size, recipe().model) if kind == "language" else DocumentModel(size, 8, cache.counts)
    phase, config = PretrainingPhase(kind, 4, 0.03), recipe().pretraining
    return pretrain(model, cache, phase, config, device=CPU, checkpoint=checkpoint, progress=progress)  # type: ignore[arg-type]


KINDS = pytest.mark.parametrize("kind", ["language", "documents"])


@KINDS
def test_it_learns_which_words_stand_together(filled: Workspace, kind: str) -> None:
    found = learn(filled, kind)
    perplexities = [entry["perplexity"] for entry in found.history]
    assert perplexities == sorted(perplexities, reverse=True)
    assert perplexities[-1] < 0.9 * build_chunks(filled, filled.batches(), recipe()).tokenizer.size


@KINDS
def test_a_killed_pretraining_ends_with_the_perplexity_of_an_unbroken_one(
    filled: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Killed in the middle of an epoch, after a checkpoint at every batch."""
    monkeypatch.setattr("pipeline.training.resumable.CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr("pipeline.training.resumable.PROGRESS_SECONDS", 0.0)

    class KilledError(Exception):
        pass

    def kill(share: float, _line: str) -> None:
        if share > 0.5:
            raise KilledError

    with pytest.raises(KilledError):
        learn(filled, kind, tmp_path / "checkpoint.pt", kill)
    seen: list[float] = []
    resumed = learn(filled, kind, tmp_path / "checkpoint.pt", lambda share, _line: seen.append(share))
    assert min(seen) > 0.4  # it did not start again
    assert resumed.history == learn(filled, kind).history


def test_on_two_cores_it_learns_as_much(filled: Workspace) -> None:
    torch.set_num_threads(2)
    try:
        together = learn(filled)
    finally:
        torch.set_num_threads(1)
    assert together.perplexity == pytest.approx(learn(filled).perplexity, rel=0.2)


def test_perplexity_of_a_model_that_knows_nothing_is_the_vocabulary(filled: Workspace) -> None:
    cache = build_chunks(filled, filled.batches(), recipe())
    model = LanguageModel(cache.tokenizer.size, recipe().model)
    with torch.no_grad():
        model.embedding.weight.zero_()
    with CorePool(CPU) as cores:
        assert perplexity(model, cache.held_out(), cores) == pytest.approx(cache.tokenizer.size - 2, rel=1e-4)


def test_the_sampled_loss_is_the_exact_one_on_average() -> None:
    """Where the sample is large, it must come near the softmax over everything."""
    torch.manual_seed(1)
    counts = np.arange(40, 0, -1) ** 2
    model = LanguageModel(40, recipe().model).eval()
    with torch.no_grad():
        model.embedding.weight.normal_(0, 0.5)
    ids = torch.randint(2, 40, (9, 30))
    lengths = torch.full((30,), 9)
    sampler = WordSampler(counts, 4000, device=CPU)
    with torch.inference_mode():
        found = model.predict(model.embedding(ids), ids, lengths, RANDOM)
        drawn = sampler.draw(generator([1], CPU))
        sampled = sampled_loss(found, model.embedding.weight, model.bias, torch.arange(40), sampler, drawn)
    exact, count = exact_loss(model, ids, lengths, RANDOM)
    assert count == 2 * 8 * 30
    assert float(sampled) == pytest.approx(exact, rel=0.03)


def test_words_past_the_end_of_a_row_and_unknown_ones_are_not_predicted() -> None:
    model = LanguageModel(20, recipe().model)
    ids = torch.tensor([[5, 6, 1, 7, 0, 0], [8, 9, 10, 11, 12, 13]]).t()
    forwards, backwards = model.predict(model.embedding(ids), ids, torch.tensor([4, 6]), RANDOM)
    assert sorted(forwards.targets.tolist()) == [6, 7, 9, 10, 11, 12, 13]
    assert sorted(backwards.targets.tolist()) == [5, 6, 8, 9, 10, 11, 12]


def test_a_row_is_predicted_alike_whatever_stands_beside_it() -> None:
    torch.manual_seed(1)
    model = LanguageModel(20, recipe().model).eval()
    row = torch.tensor([[5, 6, 7]]).t()
    alone = exact_loss(model, row, torch.tensor([3]), RANDOM)[0]
    other = torch.tensor([[8, 9, 10, 11, 12, 13]]).t()
    padded = torch.cat([torch.cat([row, torch.zeros(3, 1, dtype=torch.int64)]), other], dim=1)
    together = exact_loss(model, padded, torch.tensor([3, 6]), RANDOM)[0]
    assert together - exact_loss(model, other, torch.tensor([6]), RANDOM)[0] == pytest.approx(alone, rel=1e-4)


def test_a_document_never_predicts_the_words_it_is_told_by() -> None:
    """Each word is on one side only, frequent and unknown ones hardly ever on either."""
    counts = np.array([0, 50, 900_000, *[10] * 17])
    model = DocumentModel(20, 4, counts)
    ids = torch.tensor([[2, 1, 3, 4, 5, 6, 7, 8, 9, 10, 0, 0]]).t()
    for seed in range(20):
        one, other = model.predict(model.embedding(ids), ids, torch.tensor([10]), generator([seed], CPU))
        assert not set(one.targets.tolist()) & set(other.targets.tolist())
        assert {*one.targets.tolist(), *other.targets.tolist()} - {2} == set(range(3, 11))
    assert model.asked[:2].sum() == 0


def test_words_of_the_same_documents_get_like_vectors(workspace: Workspace, add_batch: Callable[..., Batch]) -> None:
    random = np.random.default_rng(1)
    kinds = [["anchor", "sail", "harbour", "wave", "deck"], ["oven", "flour", "sugar", "butter", "dough"]]
    texts = [" ".join(random.choice(kinds[number % 2], 8)) + f" {number}" for number in range(400)]
    add_batch([{"id": str(number), "text": text} for number, text in enumerate(texts)])
    cache = build_chunks(workspace, workspace.batches(), recipe("tokenizer.min_count=2"))
    torch.manual_seed(1)
    model = DocumentModel(cache.tokenizer.size, 8, cache.counts)
    pretrain(model, cache, PretrainingPhase("documents", 20, 0.03), recipe().pretraining, device=CPU)
    words = cache.tokenizer.vocabulary.to_pylist()
    vectors = nn.functional.normalize(model.embedding.weight.detach()[2:], dim=1)
    ships, cakes = ([words.index(word) for word in kind] for kind in kinds)
    assert (vectors[ships] @ vectors[ships].t()).mean() > 0.5
    assert (vectors[ships] @ vectors[cakes].t()).mean() < 0.1


def test_long_texts_are_cut_into_pieces_and_all_that_has_a_next_word_is_kept() -> None:
    lists = pa.array([[1, 2, 3, 4, 5, 6, 7], [8], [], [9, 10], [11, 12, 13]], pa.list_(pa.int32()))
    assert split_into_chunks(lists, 3).to_pylist() == [[1, 2, 3], [4, 5, 6], [9, 10], [11, 12, 13]]
    assert split_into_chunks(lists, 5).to_pylist() == [[1, 2, 3, 4, 5], [6, 7], [9, 10], [11, 12, 13]]


def test_every_text_is_read_once_and_test_texts_are_not(workspace: Workspace, add_batch: Callable[..., Batch]) -> None:
    rows = [{**row, "split": "test" if number < 40 else "train"} for number, row in enumerate(weather_rows())]
    add_batch(rows, "labelled")
    repeated = [
        {"id": f"again{n}", "text": row["text"]} for n, row in enumerate([*rows[:50], *unlabelled_rows()[:100]])
    ]
    add_batch(unlabelled_rows(), "more")
    add_batch(repeated, "repeated")
    batches = workspace.batches()
    cache = build_chunks(workspace, batches, recipe())
    assert cache.manifest["left_out_for_test"] == 40
    assert cache.manifest["texts"] + cache.manifest["held_out_texts"] == 80 + 300
    everything = build_chunks(workspace, batches, recipe("pretraining.leave_out_test=false")).manifest
    assert everything["texts"] + everything["held_out_texts"] == 120 + 300
    assert everything["left_out_for_test"] == 0


def test_labels_are_not_needed(workspace: Workspace, add_batch: Callable[..., Batch]) -> None:
    add_batch(unlabelled_rows())
    assert pretrain_encoder(workspace, recipe("pretraining.epochs=1")).settings["texts"] > 200


def test_three_documents_are_too_few(workspace: Workspace, add_batch: Callable[..., Batch]) -> None:
    add_batch(unlabelled_rows(3))
    with pytest.raises(TrainingDataError, match=r"3 texts are too few to pretrain on"):
        pretrain_encoder(workspace, recipe())


def test_an_encoder_is_made_once_and_found_again(filled: Workspace) -> None:
    seen: list[float] = []
    first = pretrain_encoder(filled, recipe(), progress=lambda share, _: seen.append(share))
    assert seen[-1] == 1.0
    assert not list((filled.root / "checkpoints").glob("*"))
    seen.clear()
    assert pretrain_encoder(filled, recipe(), progress=lambda share, _: seen.append(share)).name == first.name
    assert not seen  # nothing was done
    assert [encoder.name for encoder in encoders(filled)] == [first.name]
    assert pretrain_encoder(filled, recipe("tokenizer.truncation=head")).name == first.name  # it reads all of a text
    found = matching_encoder(filled, recipe("training.epochs=1", "tokenizer.max_tokens=12"))
    assert found is not None
    assert found.name == first.name


def test_an_encoder_of_another_vocabulary_is_refused(filled: Workspace) -> None:
    encoder = pretrain_encoder(filled, recipe("pretraining.epochs=1"))
    assert matching_encoder(filled, recipe("tokenizer.lowercase=false")) is None
    with pytest.raises(ModelError, match=r"tokenizer\.lowercase is True in it and False here"):
        named_encoder(filled, encoder.name, recipe("tokenizer.lowercase=false"))
    with pytest.raises(ModelError, match=r"model\.hidden_size is 16 in it and 8 here"):
        named_encoder(filled, encoder.name, recipe("model.hidden_size=8"))
    with pytest.raises(ModelError, match=f"no encoder 'other' .*there: {encoder.name}"):
        named_encoder(filled, "other", recipe())


def test_further_words_of_the_training_texts_follow_those_of_the_encoder(filled: Workspace) -> None:
    """The LSTM knows the encoder's words; the linear branches know all."""
    start = recipe(
        "pretraining.epochs=1", "model.vocabulary_size=9", "training.epochs=1", "training.compare_scratch=false"
    )
    encoder = pretrain_encoder(filled, start)
    assert encoder.vocabulary_size == 9
    prepared = prepare(filled, start, start=WarmStart(encoder=encoder))
    words = prepared.cache.tokenizer.vocabulary.to_pylist()
    assert words[:7] == encoder.vocabulary
    assert len(words) == len(set(words)) > 9
    model = fit(filled, prepared, start).model
    assert (model.embedding.num_embeddings, model.wide.vocabulary_size) == (9, len(words) + 2)


def test_a_damaged_encoder_is_refused(filled: Workspace) -> None:
    encoder = pretrain_encoder(filled, recipe("pretraining.epochs=1"))
    (encoder.path / "vocabulary.txt").write_text("other\nwords")
    with pytest.raises(ModelError, match=r"vocabulary\.txt is not the file .*pretrain again"):
        Encoder.load(encoder.path)


def test_a_training_starts_from_the_encoder_and_keeps_the_better_of_both(
    filled: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = pretrain_encoder(filled, recipe("pretraining.epochs=1"))
    slow = recipe("training.epochs=1", "training.learning_rate=1e-9", "training.weight_decay=0.0")
    trained = fit(filled, prepare(filled, slow, start=WarmStart(encoder=encoder)), slow)
    assert [one.name for one in trained.candidates] == ["pretrained", "from scratch", "linear branches alone"]
    assert sum(candidate.chosen for candidate in trained.candidates) == 1
    alone = apply_overrides(slow, ["training.compare_scratch=false"])
    monkeypatch.setattr("pipeline.training.selection.FEW_TEXTS", 0)
    model = fit(filled, prepare(filled, alone, start=WarmStart(encoder=encoder)), alone).model
    assert torch.allclose(model.embedding.weight, encoder.weights["embedding.weight"], atol=1e-6)
    vectors = encoder.weights["document_vectors"]
    assert model.average is not None
    assert torch.equal(model.average.vectors, vectors)
    token_ids, _ = prepare(filled, alone, start=WarmStart(encoder=encoder)).read(TRAIN).tokens.pad(np.arange(90))
    means = (model.average.means(torch.from_numpy(token_ids)) - model.average.center) / model.average.spread
    assert means.mean(dim=0).abs().max() < 0.2
    assert means.std(dim=0).mean() == pytest.approx(1.0, abs=0.2)
    assert torch.allclose(model.layers[0].backwards.weight_hh_l0, encoder.weights["layer.backwards.weight_hh_l0"])


def test_the_bundle_of_a_pretrained_model_says_so_and_is_proven(filled: Workspace) -> None:
    encoder = pretrain_encoder(filled, recipe("pretraining.epochs=1"))
    publication = train(filled, "weather", recipe("training.epochs=4"), start=WarmStart(encoder=encoder))
    metrics = publication.bundle.metrics
    assert metrics["encoder"]["encoder"] == encoder.name
    assert {one["name"] for one in metrics["candidates"]} >= {"pretrained", "from scratch"}
    assert metrics["parity"]["equal_labels"] == 1.0
    model = load_classifier(publication.bundle)  # the weights in the bundle are all of the model
    texts = prepare(filled, recipe(), start=WarmStart(encoder=encoder)).read(TRAIN)
    assert prove_parity(model, publication.bundle.onnx_path, texts).equal_labels == 1.0
    assert not list((filled.root / "checkpoints").glob("*"))
