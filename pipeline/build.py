"""A model from documents: prepare, fit, assess, publish. Each step can run, and be retried, on its own."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from pipeline import figures
from pipeline.baseline import linear_baseline
from pipeline.batching import TokenLists
from pipeline.bundle import Bundle, write_model
from pipeline.config import Recipe
from pipeline.corpus import TEST, TRAIN, VALIDATION, Corpus, select
from pipeline.engine import opened
from pipeline.errors import ModelError
from pipeline.evaluation import evaluate, macro_f1
from pipeline.files import value_digest, write_json
from pipeline.model import EMBEDDING_SPREAD, Classifier
from pipeline.registry import Registry
from pipeline.tokenizer import RESERVED
from pipeline.tokens import TokenCache, build_tokens
from pipeline.training import Progress, TrainedModel, choose_device, predict, train
from pipeline.vectors import WordVectors, read_vectors
from pipeline.workspace import Workspace

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """The labelled documents, divided and tokenized, and the word vectors to start from, if any."""

    corpus: Corpus
    cache: TokenCache
    vectors: WordVectors | None = None


@dataclass(frozen=True)
class Publication:
    """A registered version, and whether scoring uses it from now on."""

    bundle: Bundle
    promoted: bool
    reason: str


def prepare(
    workspace: Workspace, recipe: Recipe, batch_ids: Iterable[str] = (), embeddings: str | None = None
) -> Prepared:
    """Divide the labelled documents and tokenize them.

    Args:
        workspace: where the documents lie.
        recipe: how to divide and tokenize.
        batch_ids: batches to learn from; all if none are named.
        embeddings: a file of word vectors to start from.

    Raises:
        TrainingDataError: the documents cannot train a classifier.
        BatchError: a named batch does not exist.
        InputError: the word vectors cannot be read, or have another size than the model's.
    """
    batches = [workspace.batch(batch_id) for batch_id in batch_ids] or workspace.batches()
    corpus = select(
        batches,
        method=recipe.training.split,
        validation_share=recipe.training.validation_share,
        test_share=recipe.training.test_share,
    )
    cache = build_tokens(workspace, corpus, recipe.tokenizer)
    if embeddings is None:
        return Prepared(corpus, cache)
    words = cache.tokenizer.vocabulary.to_pylist()
    return Prepared(corpus, cache, read_vectors(Path(embeddings), words, recipe.model.embedding_size))


def fit(workspace: Workspace, prepared: Prepared, recipe: Recipe, progress: Progress | None = None) -> TrainedModel:
    """Train a model; a run that was killed goes on from its last checkpoint.

    Raises:
        DeviceError: the requested device is not there.
    """
    device = choose_device(recipe.training.device)
    torch.manual_seed(recipe.training.seed)
    model = Classifier(prepared.cache.tokenizer.size, len(prepared.corpus.labels), recipe.model)
    if prepared.vectors is not None:
        model.start_from(prepared.vectors.numbers + RESERVED, prepared.vectors.scaled(EMBEDDING_SPREAD))
    logger.info(
        "training on %s: %s texts, %s classes, %s parameters",
        device.type,
        f"{prepared.corpus.counts['train']:,}",
        len(prepared.corpus.labels),
        f"{model.parameter_count():,}",
    )
    return train(
        model,
        prepared.cache.read(TRAIN),
        prepared.cache.read(VALIDATION),
        recipe.training,
        device=device,
        checkpoint=_checkpoint(workspace, prepared, recipe),
        progress=progress,
    )


def _checkpoint(workspace: Workspace, prepared: Prepared, recipe: Recipe) -> Any:
    decided = value_digest(
        [prepared.cache.fingerprint, recipe.model_dump(mode="json", exclude={"tokenizer"})]
        + ([prepared.vectors.digest] if prepared.vectors else [])
    )
    return workspace.checkpoint_of(decided[:16])


def assess(prepared: Prepared, trained: TrainedModel, recipe: Recipe) -> dict[str, Any]:
    """Measure a trained model on its validation and test split, with the linear baseline beside it."""
    labels = prepared.corpus.labels
    metrics: dict[str, Any] = {}
    for name, split in (("validation", VALIDATION), ("test", TEST)):
        texts = prepared.cache.read(split)
        probabilities = predict(trained.model, texts, device=torch.device("cpu"))
        metrics[name] = evaluate(probabilities, texts.label_ids, labels)
    if recipe.training.baseline:
        logger.info("training the linear baseline on the same split")
        metrics["baseline"] = _baseline(prepared)
    return {
        **metrics,
        "history": trained.history,
        "best_epoch": trained.best_epoch,
        "training_seconds": round(trained.seconds, 1),
        "training_tokens_per_second": round(trained.tokens_per_second),
        "training_device": trained.device,
        "counts": prepared.corpus.counts,
        "tokens": prepared.cache.manifest["stats"],
        "word_vectors": prepared.vectors.facts() if prepared.vectors else None,
    }


def _baseline(prepared: Prepared) -> dict[str, Any]:
    splitter = prepared.cache.tokenizer.splitter

    def texts_and_labels(split: int) -> tuple[list[str], np.ndarray]:
        texts: list[str] = []
        label_ids: list[np.ndarray] = [np.empty(0, np.int32)]
        for _, column, ids in prepared.corpus.read(split):
            texts += pc.binary_join(splitter.split(column), " ").to_pylist()
            label_ids.append(ids)
        return texts, np.concatenate(label_ids)

    return linear_baseline(*texts_and_labels(TRAIN), *texts_and_labels(TEST), prepared.corpus.labels)


def publish(
    workspace: Workspace,
    name: str,
    prepared: Prepared,
    trained: TrainedModel,
    recipe: Recipe,
    metrics: dict[str, Any],
    *,
    preset: str = "default",
    force: bool = False,
) -> Publication:
    """Export a trained model, prove the export, register it, and promote it if it is not worse.

    Args:
        workspace: where the model goes.
        name: the model's name.
        prepared: what it was trained on.
        trained: the weights.
        recipe: the settings they came from.
        metrics: from `assess`.
        preset: the preset the settings started from, for the record.
        force: promote it even if it is worse than the champion.

    Raises:
        ParityError: the exported graph disagrees with the trained weights; nothing is registered.
    """
    registry = Registry(workspace)
    promoted, reason = _compare(registry, name, prepared.corpus, metrics, force)
    with workspace.staging() as staging:
        folder = staging / "bundle"
        folder.mkdir()
        proof = prepared.cache.read(TRAIN)
        parity = write_model(
            folder,
            trained.model,
            prepared.cache.tokenizer,
            labels=prepared.corpus.labels,
            recipe=recipe,
            proof=proof,
            validation=prepared.cache.read(VALIDATION),
        )
        _write_report(folder, {**metrics, "parity": parity.as_dict()}, prepared.corpus.labels)
        facts = {
            "preset": preset,
            "promotion": {"promoted": promoted, "forced": force, "reason": reason},
            "batches": [
                {"batch": batch.id, "fingerprint": batch.manifest["fingerprint"], "documents": batch.rows}
                for batch in prepared.corpus.batches
            ],
        }
        bundle = registry.register(name, folder, facts)
    if promoted:
        registry.promote(name, bundle.version, reason)
    _checkpoint(workspace, prepared, recipe).unlink(missing_ok=True)
    return Publication(bundle, promoted, reason)


def _write_report(folder: Any, metrics: dict[str, Any], labels: list[str]) -> None:
    write_json(folder / "metrics.json", metrics)
    (folder / "figures").mkdir()
    split = metrics["test"] if metrics["test"]["n"] else metrics["validation"]
    pictures = {
        "learning_curve": figures.learning_curve(metrics["history"]),
        "confusion_matrix": figures.confusion_matrix(split["confusion"], labels),
        "reliability": figures.reliability_diagram(split["reliability"], split["calibration_error"]),
    }
    for name, png in pictures.items():
        (folder / "figures" / f"{name}.png").write_bytes(png)


def _compare(registry: Registry, name: str, corpus: Corpus, metrics: dict[str, Any], force: bool) -> tuple[bool, str]:
    """Return whether the new version becomes champion, and why."""
    champion = registry.champion(name) if name in registry.names() else None
    if champion is None:
        return True, "first version"
    if force:
        return True, f"forced over version {champion}"
    try:
        bundle = registry.load(name, champion)
    except ModelError as error:
        return True, f"the champion cannot be loaded ({error})"
    if bundle.labels != corpus.labels:
        return False, f"its classes are not those of the champion, version {champion}; promote it by hand"
    if not metrics["test"]["n"]:
        return False, f"no test texts to compare it with version {champion} on; promote it by hand"
    own, other = metrics["test"]["macro_f1"], champion_macro_f1(bundle, corpus)
    return own >= other, f"macro-F1 {own:.4f} against {other:.4f} of version {champion} on the same test split"


def champion_macro_f1(bundle: Bundle, corpus: Corpus) -> float:
    """Return the test macro-F1 of a registered model on a corpus, through its own tokenizer and graph."""
    predicted, truth = [], []
    with opened(bundle.onnx_path) as engine:
        for _, texts, label_ids in corpus.read(TEST):
            token_ids = bundle.tokenizer.encode(texts).token_ids
            spoken = np.flatnonzero(pc.list_value_length(token_ids))
            if len(spoken) == 0:
                continue
            predicted.append(engine.probabilities(TokenLists.of(token_ids.take(pa.array(spoken)))).argmax(axis=1))
            truth.append(label_ids[spoken])
    return macro_f1(np.concatenate(predicted), np.concatenate(truth), len(bundle.labels))


def build(
    workspace: Workspace,
    name: str,
    recipe: Recipe,
    *,
    batch_ids: Iterable[str] = (),
    embeddings: str | None = None,
    preset: str = "default",
    force: bool = False,
    progress: Progress | None = None,
) -> Publication:
    """Go through all four steps, without an orchestrator."""
    prepared = prepare(workspace, recipe, batch_ids, embeddings)
    trained = fit(workspace, prepared, recipe, progress)
    metrics = assess(prepared, trained, recipe)
    return publish(workspace, name, prepared, trained, recipe, metrics, preset=preset, force=force)
