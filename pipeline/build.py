"""A model from documents: prepare, fit, assess, publish. Each step can run, and be retried, on its own."""

import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from pipeline import figures
from pipeline.baseline import linear_baseline
from pipeline.batching import TokenLists
from pipeline.bundle import Bundle, write_model
from pipeline.candidates import fit, forget_checkpoints
from pipeline.config import Recipe
from pipeline.cores import Cores
from pipeline.corpus import TEST, TRAIN, VALIDATION, Corpus
from pipeline.engine import opened
from pipeline.errors import ModelError
from pipeline.evaluation import best_thresholds, confidences, decide, evaluate, macro_f1
from pipeline.files import write_json
from pipeline.health import REFERENCE, Health, label_counts
from pipeline.preparation import FROM_NOTHING, Prepared, Start, prepare
from pipeline.registry import Registry
from pipeline.schemas import SPLITS
from pipeline.tokenizer import UNKNOWN
from pipeline.training import Progress, TrainedModel, predict
from pipeline.variants import FILES
from pipeline.workspace import Workspace

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Publication:
    """A registered version, and whether scoring uses it from now on."""

    bundle: Bundle
    promoted: bool
    reason: str


def assess(prepared: Prepared, trained: TrainedModel, recipe: Recipe) -> dict[str, Any]:
    """Measure a trained model on its validation and test split, with the linear baseline beside it."""
    labels = prepared.corpus.labels
    metrics: dict[str, Any] = {}
    thresholds = None
    with Cores(torch.device("cpu")) as cores:
        for name, split in (("validation", VALIDATION), ("test", TEST)):
            texts = prepared.read(split)
            probabilities, targets = predict(trained.model, texts, cores=cores), texts.targets() > 0
            if trained.model.multi_label and split == VALIDATION:
                thresholds = best_thresholds(probabilities, targets)
            metrics[name] = evaluate(probabilities, targets, labels, thresholds)
    if recipe.training.baseline:
        logger.info("training the linear baseline on the same split")
        metrics["baseline"] = _baseline(prepared)
    return {
        **metrics,
        "multi_label": prepared.corpus.multi_label,
        "thresholds": None if thresholds is None else thresholds.tolist(),
        "history": trained.history,
        "best_epoch": trained.best_epoch,
        "parts": [asdict(part) for part in trained.parts],
        "candidates": [asdict(candidate) for candidate in trained.candidates],
        "training_seconds": round(trained.seconds, 1),
        "training_tokens_per_second": round(trained.tokens_per_second),
        "training_device": trained.device,
        "counts": prepared.corpus.counts,
        "tokens": prepared.cache.manifest["stats"],
        "word_vectors": prepared.vectors.facts() if prepared.vectors else None,
        "encoder": prepared.encoder.facts() if prepared.encoder else None,
        "teacher": prepared.teacher.facts() if prepared.teacher else None,
    }


def _baseline(prepared: Prepared) -> dict[str, Any]:
    splitter, corpus = prepared.cache.tokenizer.splitter, prepared.corpus

    def texts_and_targets(split: int) -> tuple[list[str], NDArray[np.bool_]]:
        texts: list[str] = []
        label_ids: list[NDArray[np.int32]] = [np.empty(0, np.int32)]
        for _, column, ids in corpus.read(split):
            labelled = ids >= 0
            texts += pc.binary_join(splitter.split(column.filter(pa.array(labelled))), " ").to_pylist()
            label_ids.append(ids[labelled])
        return texts, corpus.sets[np.concatenate(label_ids)]

    return linear_baseline(*texts_and_targets(TRAIN), *texts_and_targets(TEST), multi_label=corpus.multi_label)


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
        thresholds = None if metrics["thresholds"] is None else np.array(metrics["thresholds"], dtype=np.float32)
        parity = write_model(
            folder,
            trained.model,
            prepared.cache.tokenizer,
            labels=prepared.corpus.labels,
            recipe=recipe,
            proof=prepared.read(TRAIN),
            validation=prepared.read(VALIDATION),
            thresholds=thresholds,
        )
        _write_report(folder, {**metrics, "parity": parity.as_dict()}, prepared.corpus.labels)
        write_json(folder / REFERENCE, reference_health(folder / FILES["fp32"], prepared, thresholds).as_json())
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
    forget_checkpoints(workspace, prepared, recipe)
    return Publication(bundle, promoted, reason)


def reference_health(model: Path, prepared: Prepared, thresholds: NDArray[np.float32] | None) -> Health:
    """Return what an exported graph sees and says of the validation and test texts: what nights are compared with.

    Not of the training texts, because a model is surer of those, and knows all their words.
    """
    corpus, texts = prepared.corpus, [prepared.read(VALIDATION), prepared.read(TEST)]
    with opened(model) as engine:
        found = [engine.probabilities(split.tokens) for split in texts if len(split)]
    probabilities = np.concatenate([np.empty((0, len(corpus.labels)), np.float32), *found])
    given = decide(probabilities, thresholds)
    names = dict(zip(corpus.labels, given.sum(axis=0).tolist(), strict=True))
    nameless = None if thresholds is None else int(np.count_nonzero(~given.any(axis=1)))
    empty = sum(prepared.cache.manifest["stats"][SPLITS[split]]["texts"] for split in (VALIDATION, TEST)) - len(given)
    health = Health.of(
        np.concatenate([split.tokens.lengths for split in texts]),
        np.concatenate([split.tokens.count(UNKNOWN) for split in texts]),
        confidences(probabilities, given),
        label_counts(names, corpus.labels, nameless),
    )
    return replace(health, rows=health.rows + empty, empty=empty)  # the token cache has no empty texts


def _write_report(folder: Any, metrics: dict[str, Any], labels: list[str]) -> None:
    write_json(folder / "metrics.json", metrics)
    (folder / "figures").mkdir()
    split = metrics["test"] if metrics["test"]["n"] else metrics["validation"]
    curves = {one["name"]: one["history"] for one in metrics["candidates"]} or {"": metrics["history"]}
    pictures = {
        "learning_curve": figures.learning_curve(curves),
        "reliability": figures.reliability_diagram(split["reliability"], split["calibration_error"]),
    }
    if split["confusion"] is not None:
        pictures["confusion_matrix"] = figures.confusion_matrix(split["confusion"], labels)
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
    if bundle.labels != corpus.labels or bool(bundle.settings.get("multi_label")) != corpus.multi_label:
        return False, f"its classes are not those of the champion, version {champion}; promote it by hand"
    if not metrics["test"]["n"]:
        return False, f"no test texts to compare it with version {champion} on; promote it by hand"
    own, other = metrics["test"]["macro_f1"], champion_macro_f1(bundle, corpus)
    return own >= other, f"macro-F1 {own:.4f} against {other:.4f} of version {champion} on the same test split"


def champion_macro_f1(bundle: Bundle, corpus: Corpus) -> float:
    """Return the test macro-F1 of a registered model on a corpus, through its own tokenizer and graph."""
    predicted, targets = [], []
    with opened(bundle.onnx_path) as engine:
        for _, texts, label_ids in corpus.read(TEST):
            token_ids = bundle.tokenizer.encode(texts).token_ids
            spoken = np.flatnonzero(pc.list_value_length(token_ids))
            if len(spoken) == 0:
                continue
            probabilities = engine.probabilities(TokenLists.of(token_ids.take(pa.array(spoken))))
            predicted.append(decide(probabilities, bundle.thresholds))
            targets.append(corpus.sets[label_ids[spoken]])
    return macro_f1(np.concatenate(predicted), np.concatenate(targets))


def build(
    workspace: Workspace,
    name: str,
    recipe: Recipe,
    *,
    batch_ids: Iterable[str] = (),
    start: Start = FROM_NOTHING,
    preset: str = "default",
    force: bool = False,
    progress: Progress | None = None,
) -> Publication:
    """Go through all four steps, without an orchestrator."""
    prepared = prepare(workspace, recipe, batch_ids, start)
    trained = fit(workspace, prepared, recipe, progress)
    metrics = assess(prepared, trained, recipe)
    return publish(workspace, name, prepared, trained, recipe, metrics, preset=preset, force=force)
