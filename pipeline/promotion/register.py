"""A model from documents: prepare, fit, assess, publish. Each step can run, and be retried, on its own."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import Recipe
from pipeline.dataset.corpus import TEST, TRAIN, VALIDATION
from pipeline.dataset.tokenizer import UNKNOWN
from pipeline.files import write_json
from pipeline.metrics.classification import confidences, decide
from pipeline.metrics.coverage_plot import draw_precision_coverage
from pipeline.metrics.plots import confusion_matrix, reliability_diagram
from pipeline.metrics.predictions import PREDICTIONS_FILE, Predictions, write_predictions
from pipeline.metrics.profile import REFERENCE_FILE, Profile, label_counts
from pipeline.metrics.selective import fit_policies
from pipeline.models.bundle import Bundle
from pipeline.models.engine import temporary_engine
from pipeline.models.registry import Registry
from pipeline.models.variants import VARIANT_FILES
from pipeline.models.write_bundle import write_model
from pipeline.promotion.churn import expected_coverage
from pipeline.promotion.comparison import Comparison
from pipeline.promotion.plots import keep_comparison
from pipeline.promotion.rule import check_force, decide_promotion, promotion_record
from pipeline.promotion.version import ModelVersion
from pipeline.schemas import SPLITS
from pipeline.training.evaluate import assess
from pipeline.training.loop import TrainedModel
from pipeline.training.plots import learning_curve
from pipeline.training.prepare import COLD_START, PreparedData, WarmStart, prepare
from pipeline.training.resumable import Progress
from pipeline.training.selection import delete_checkpoints, fit
from pipeline.workspace import Workspace


@dataclass(frozen=True)
class Registration:
    """A registered version, and whether scoring uses it from now on."""

    bundle: Bundle
    promoted: bool
    reason: str
    comparison: Comparison | None = None  # with the champion of its day


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
        reason: why, for the record.

    Raises:
        ParityError: the exported graph disagrees with the trained weights; nothing is registered.
        ConfigError: force without a reason.
    """
    check_force(force, reason)
    registry = Registry(workspace)
    with workspace.staging() as staging:
        folder = staging / "bundle"
        folder.mkdir()
        challenger = _write_bundle(
            workspace, name, registry.next_version(name), folder, prepared, trained, recipe, metrics
        )
        why, limits = reason if force else None, recipe.promotion.model_dump()
        decision, comparison = decide_promotion(registry, challenger, lambda: prepared.corpus, force=why, **limits)
        if comparison:
            keep_comparison(folder, comparison)
        provenance = {"preset": preset, "promotion": promotion_record(decision, comparison), **_learnt(prepared)}
        bundle = registry.register(name, folder, provenance)
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
    """Write everything but the manifest and the comparison, and return what is to be compared."""
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
    write_json(folder / REFERENCE_FILE, reference_profile(exported, prepared, thresholds).as_json())
    predictions = _claims(exported, prepared, thresholds)
    write_predictions(folder / PREDICTIONS_FILE, predictions)
    challenger = ModelVersion.staged(name, version, folder / VARIANT_FILES["fp32"], prepared, thresholds)
    policies = fit_policies(predictions["validation"], recipe.promise, challenger.labels)
    last_night = expected_coverage(workspace, challenger, policies)
    provenance = {"parity": parity.as_dict(), "speed": speed, "last_night": last_night}
    _write_report(folder, {**metrics, **provenance}, challenger.labels)
    if len(predictions["validation"]):
        picture = draw_precision_coverage(predictions, policies, recipe.promise.target_precision)
        (folder / "figures" / "precision_and_coverage.png").write_bytes(picture)
    return challenger


def _learnt(prepared: PreparedData) -> dict[str, Any]:
    """Return what the manifest keeps of the documents that a version learnt from."""
    corpus = prepared.corpus
    return {
        "batches": [
            {
                "batch": batch.id,
                "fingerprint": batch.manifest["fingerprint"],
                "documents": batch.rows,
                "learnt": trained_on_rows,
            }
            for batch, trained_on_rows in zip(corpus.batches, corpus.trained_on_rows, strict=True)
        ],
        "reviews": {name: corpus.counts.get(name, 0) for name in ("reviewed", "corrected")},
    }


def _claims(
    exported: Mapping[str, NDArray[np.float32]], prepared: PreparedData, thresholds: NDArray[np.float32] | None
) -> dict[str, Predictions]:
    targets = {SPLITS[split]: prepared.read(split).targets() > 0 for split in (VALIDATION, TEST)}
    return {name: Predictions.of(probabilities, targets[name], thresholds) for name, probabilities in exported.items()}


def _write_report(folder: Path, metrics: dict[str, Any], labels: list[str]) -> None:
    write_json(folder / "metrics.json", metrics)
    (folder / "figures").mkdir()
    split = metrics["test"] if metrics["test"]["n"] else metrics["validation"]
    curves = {one["name"]: one["history"] for one in metrics["candidates"]} or {"": metrics["history"]}
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
    """Go through all four steps, without an orchestrator."""
    check_force(force, reason)
    prepared = prepare(workspace, recipe, batch_ids, start)
    trained = fit(workspace, prepared, recipe, progress)
    metrics = assess(prepared, trained, recipe)
    return register(workspace, name, prepared, trained, recipe, metrics, preset=preset, force=force, reason=reason)


def exported_probabilities(
    model: Path, prepared: PreparedData
) -> tuple[dict[str, NDArray[np.float32]], dict[str, float | str]]:
    """Return what an exported graph says of the validation and test texts, and how fast.

    Not of the training texts, because a model is surer of those, and knows all their words.

    Returns:
        Probabilities float32 [texts, classes] by split; `texts_per_second`, `tokens_per_second`, and the `device`.
    """
    found, texts, tokens, seconds = {}, 0, 0, 0.0
    with temporary_engine(model) as engine:
        for split in (VALIDATION, TEST):
            rows = prepared.read(split)
            started = time.monotonic()
            found[SPLITS[split]] = (
                engine.probabilities(rows.tokens)
                if len(rows)
                else np.empty((0, len(prepared.corpus.labels)), np.float32)
            )
            seconds += time.monotonic() - started
            texts, tokens = texts + len(rows), tokens + int(rows.tokens.lengths.sum())
        device = f"{engine.device.name}, {engine.workers} cores"
    return found, {
        "texts_per_second": round(texts / max(seconds, 1e-9)),
        "tokens_per_second": round(tokens / max(seconds, 1e-9)),
        "device": device,
    }


def reference_profile(
    exported: Mapping[str, NDArray[np.float32]], prepared: PreparedData, thresholds: NDArray[np.float32] | None
) -> Profile:
    """Return what a model saw and said of the validation and test texts: what nights are compared with."""
    corpus, texts = prepared.corpus, [prepared.read(split) for split in (VALIDATION, TEST)]
    probabilities = np.concatenate([exported[SPLITS[split]] for split in (VALIDATION, TEST)])
    given = decide(probabilities, thresholds)
    names = dict(zip(corpus.labels, given.sum(axis=0).tolist(), strict=True))
    no_class = None if thresholds is None else int(np.count_nonzero(~given.any(axis=1)))
    empty = sum(prepared.cache.manifest["stats"][SPLITS[split]]["texts"] for split in (VALIDATION, TEST)) - len(given)
    profile = Profile.of(
        np.concatenate([split.tokens.lengths for split in texts]),
        np.concatenate([split.tokens.count(UNKNOWN) for split in texts]),
        confidences(probabilities, given),
        label_counts(names, corpus.labels, no_class),
    )
    return replace(profile, rows=profile.rows + empty, empty=empty)  # the token cache has no empty texts
