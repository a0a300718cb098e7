"""Training end to end: prepare, fit, assess, register. Each step can run, and be retried, on its own."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import Recipe
from pipeline.dataset.corpus import TEST, TRAIN, VALIDATION
from pipeline.files import write_json
from pipeline.metrics.classification import confidences, decide
from pipeline.metrics.plots import confusion_matrix, precision_coverage, reliability_diagram
from pipeline.metrics.predictions import PREDICTIONS_FILE, Predictions, write_predictions
from pipeline.metrics.profile import REFERENCE_FILE, Profile, label_counts
from pipeline.metrics.selective import fit_policies
from pipeline.models.bundle import read_characters
from pipeline.models.engine import temporary_engine
from pipeline.models.registry import Registry
from pipeline.models.variants import VARIANT_FILES
from pipeline.models.write_bundle import write_model
from pipeline.promotion.churn import expected_coverage
from pipeline.promotion.comparison import COMPARISON_FILE, write_comparison
from pipeline.promotion.plots import class_changes
from pipeline.promotion.rule import Registration, check_force, decide_promotion, promotion_record
from pipeline.promotion.version import ModelVersion
from pipeline.schemas import SPLITS
from pipeline.training.evaluate import assess, held_out_probabilities
from pipeline.training.loop import TrainedModel
from pipeline.training.plots import learning_curve
from pipeline.training.prepare import COLD_START, PreparedData, WarmStart, prepare
from pipeline.training.resumable import Progress
from pipeline.training.selection import delete_checkpoints, fit
from pipeline.workspace import Workspace


def register(
    workspace: Workspace,
    name: str,
    prepared: PreparedData,
    trained: TrainedModel,
    recipe: Recipe,
    metrics: dict[str, Any],
    *,
    preset: str = "default",
    force: bool = False,
    reason: str | None = None,
) -> Registration:
    """Export a trained model, prove the export, register it, and promote it if it passes the promotion rule.

    Args:
        workspace: the model is written there.
        name: the model's name.
        prepared: its training data.
        trained: the weights.
        recipe: the settings of the training.
        metrics: from `assess`.
        preset: the preset that the settings started from, for the record.
        force: promote it even if it does not pass.
        reason: for the forced promotion, for the record.

    Raises:
        ParityError: the exported graph disagrees with the trained weights; nothing is registered.
        ConfigError: force without a reason.
    """
    check_force(force, reason)
    registry = Registry(workspace)
    with workspace.staging() as staging:
        folder = staging / "bundle"
        folder.mkdir()
        version = registry.next_version(name)
        challenger = _write_bundle(workspace, name, version, folder, prepared, trained, recipe, metrics)
        limits, corpus = recipe.promotion.model_dump(), prepared.corpus
        decision, comparison = decide_promotion(
            registry, challenger, lambda: corpus, force=reason if force else None, **limits
        )
        if comparison:
            write_comparison(folder / COMPARISON_FILE, comparison)
            if comparison.tested:
                (folder / "figures" / "comparison.png").write_bytes(class_changes(comparison))
        batches = [
            {
                "batch": batch.id,
                "fingerprint": batch.manifest["fingerprint"],
                "documents": batch.rows,
                "learnt": rows,
                **({"group": batch.group_column} if batch.group_column else {}),
            }
            for batch, rows in zip(corpus.batches, corpus.trained_on_rows, strict=True)
        ]
        provenance = {
            "preset": preset,
            "promotion": promotion_record(decision, comparison),
            "batches": batches,
            "reviews": {key: corpus.counts.get(key, 0) for key in ("reviewed", "corrected")},
        }
        bundle = registry.add(name, folder, provenance)
    if decision.promoted:
        registry.promote(name, bundle.version, decision.reason, forced=decision.forced)
    delete_checkpoints(workspace, prepared, recipe)
    return Registration(bundle, decision.promoted, decision.reason, comparison)


def _write_bundle(
    workspace: Workspace,
    name: str,
    version: int,
    folder: Path,
    prepared: PreparedData,
    trained: TrainedModel,
    recipe: Recipe,
    metrics: dict[str, Any],
) -> ModelVersion:
    """Write a bundle without its manifest and comparison, and return the version to compare."""
    thresholds = None if metrics["thresholds"] is None else np.array(metrics["thresholds"], dtype=np.float32)
    parity = write_model(
        folder,
        trained.model,
        prepared.cache.tokenizer,
        labels=prepared.corpus.labels,
        recipe=recipe,
        parity_texts=prepared.read(TRAIN),
        validation=prepared.read(VALIDATION),
        thresholds=thresholds,
    )
    exported, speed = exported_probabilities(folder / VARIANT_FILES["fp32"], prepared)
    exported["validation"] = held_out_probabilities(trained)
    write_json(folder / REFERENCE_FILE, reference_profile(exported, prepared, thresholds).as_json())
    targets = {SPLITS[split]: prepared.read(split).targets() > 0 for split in (VALIDATION, TEST)}
    predictions = {split: Predictions.of(exported[split], targets[split], thresholds) for split in targets}
    write_predictions(folder / PREDICTIONS_FILE, predictions)
    challenger = ModelVersion.staged(
        name, version, folder / VARIANT_FILES["fp32"], prepared.corpus, prepared.cache.tokenizer, thresholds
    )
    policies = fit_policies(predictions["validation"], recipe.selective, challenger.labels)
    last_night = expected_coverage(workspace, challenger, policies)
    provenance = {"parity": parity.as_dict(), "speed": speed, "last_night": last_night}
    _write_report(folder, {**metrics, **provenance}, challenger.labels)
    if len(predictions["validation"]):
        picture = precision_coverage(predictions, policies, recipe.selective.target_precision)
        (folder / "figures" / "precision_and_coverage.png").write_bytes(picture)
    return challenger


def _write_report(folder: Path, metrics: dict[str, Any], labels: list[str]) -> None:
    write_json(folder / "metrics.json", metrics)
    (folder / "figures").mkdir()
    split = metrics["test"] if metrics["test"]["n"] else metrics["validation"]
    curves = {entry["name"]: entry["history"] for entry in metrics["candidates"]} or {"": metrics["history"]}
    pictures = {
        "learning_curve": learning_curve(curves),
        "reliability": reliability_diagram(
            split["reliability"], split["calibration_error"], split["before_calibration"]
        ),
    }
    if split["confusion"] is not None:
        pictures["confusion_matrix"] = confusion_matrix(split["confusion"], labels)
    for name, png in pictures.items():
        (folder / "figures" / f"{name}.png").write_bytes(png)


def train(
    workspace: Workspace,
    name: str,
    recipe: Recipe,
    *,
    batch_ids: Iterable[str] = (),
    start: WarmStart = COLD_START,
    preset: str = "default",
    force: bool = False,
    reason: str | None = None,
    progress: Progress | None = None,
) -> Registration:
    """Prepare, fit, assess and register, without an orchestrator."""
    check_force(force, reason)
    prepared = prepare(workspace, recipe, batch_ids, start)
    trained = fit(workspace, prepared, recipe, progress)
    metrics = assess(prepared, trained, recipe)
    return register(workspace, name, prepared, trained, recipe, metrics, preset=preset, force=force, reason=reason)


def exported_probabilities(
    model: Path, prepared: PreparedData
) -> tuple[dict[str, NDArray[np.float32]], dict[str, float | str]]:
    """Return the probabilities of an exported graph on the validation and test texts, and its speed.

    Training texts are left out: on them a model is more confident, and knows all words. Those of the validation texts
    are not held out where the linear branches are fitted on these texts, see `TrainedModel.held_out`.

    Returns:
        Probabilities float32 [texts, classes] by split; `texts_per_second`, `tokens_per_second`, and the `device`.
    """
    probabilities, texts, tokens, seconds = {}, 0, 0, 0.0
    characters = read_characters(model.parent)
    with temporary_engine(model) as engine:
        for split in (VALIDATION, TEST):
            rows = prepared.read(split)
            started = time.monotonic()
            probabilities[SPLITS[split]] = (
                engine.probabilities(rows.tokens, characters.rows(rows.unknown_words) if characters else None)
                if len(rows)
                else np.empty((0, len(prepared.corpus.labels)), np.float32)
            )
            seconds += time.monotonic() - started
            texts, tokens = texts + len(rows), tokens + int(rows.tokens.lengths.sum())
        device = f"{engine.device.name}, {engine.workers} cores"
    return probabilities, {
        "texts_per_second": round(texts / max(seconds, 1e-9)),
        "tokens_per_second": round(tokens / max(seconds, 1e-9)),
        "device": device,
    }


def reference_profile(
    exported: Mapping[str, NDArray[np.float32]], prepared: PreparedData, thresholds: NDArray[np.float32] | None
) -> Profile:
    """Return the data profile of the validation and test texts and their predictions: the reference of drift checks."""
    corpus, texts = prepared.corpus, [prepared.read(split) for split in (VALIDATION, TEST)]
    probabilities = np.concatenate([exported[SPLITS[split]] for split in (VALIDATION, TEST)])
    predicted = decide(probabilities, thresholds)
    counts = dict(zip(corpus.labels, predicted.sum(axis=0).tolist(), strict=True))
    no_class = None if thresholds is None else int(np.count_nonzero(~predicted.any(axis=1)))
    all_texts = sum(prepared.cache.manifest["stats"][SPLITS[split]]["texts"] for split in (VALIDATION, TEST))
    empty = all_texts - len(predicted)
    profile = Profile.of(
        np.concatenate([split.tokens.lengths for split in texts]),
        np.concatenate([split.tokens.count(prepared.cache.tokenizer.size, up=True) for split in texts]),
        confidences(probabilities, predicted),
        label_counts(counts, corpus.labels, no_class),
    )
    return replace(profile, rows=profile.rows + empty, empty=empty)  # the token cache has no empty texts
