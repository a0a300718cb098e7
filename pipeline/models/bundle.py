"""A model bundle: one checked folder with all that scoring and an auditor need."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import PromotionConfig, SelectiveConfig, stored_recipe
from pipeline.dataset.characters import CharacterTable
from pipeline.dataset.tokenizer import Tokenizer, read_words
from pipeline.errors import ModelError
from pipeline.files import read_json, value_digest, verified_manifest
from pipeline.metrics.predictions import PREDICTIONS_FILE, Predictions, read_predictions
from pipeline.metrics.profile import REFERENCE_FILE, Profile
from pipeline.metrics.selective import SelectivePolicy, check_provable, fit_policies
from pipeline.models.variants import VARIANT_FILES, VARIANTS_FILE
from pipeline.workspace import Batch

TRAINED_ON_SHARE = 0.2  # of a batch's documents: trained on as many, the batch is training data and not a night


@dataclass(frozen=True)
class Bundle:
    """A registered model, its files checked against the digests in its manifest."""

    name: str
    version: int
    path: Path
    manifest: dict[str, Any]

    @classmethod
    def load(cls, name: str, path: Path) -> "Bundle":
        """Open a bundle folder.

        Raises:
            ModelError: a file is missing or is not the one that was registered.
        """
        changed = f"restore it, or choose another version with: nightlabel models promote {name}@VERSION"
        manifest = verified_manifest(path, damaged="roll back or train again", changed=changed)
        return cls(name, int(path.name), path, manifest)

    @property
    def title(self) -> str:
        """Name and version, as `name@version`."""
        return f"{self.name}@{self.version}"

    @property
    def digest(self) -> str:
        """SHA-256 over the digests of its files: same digest, same labels."""
        return value_digest(self.manifest["files"])

    @property
    def onnx_path(self) -> Path:
        """The model file in fp32."""
        return self.model_path("fp32")

    def model_path(self, variant: str) -> Path:
        """Return the model file of a variant: "fp32", "int8" or "fp16"."""
        return self.path / VARIANT_FILES[variant]

    @cached_property
    def variants(self) -> dict[str, Any]:
        """How each variant agrees with fp32; empty for an old bundle without variants."""
        return read_json(self.path / VARIANTS_FILE) if VARIANTS_FILE in self.manifest["files"] else {}

    @cached_property
    def reference(self) -> Profile | None:
        """The profile of its test texts, the reference of the drift checks; None for an old bundle without one."""
        if REFERENCE_FILE not in self.manifest["files"]:
            return None
        return Profile.from_json(read_json(self.path / REFERENCE_FILE))

    @property
    def training_batches(self) -> list[tuple[str, str]]:
        """Id and fingerprint of each batch of which it was trained on at least `TRAINED_ON_SHARE`.

        They count as training data, not as nights. A night of which people reviewed a few rows stays a night: drift
        checks and comparisons still use it. An old bundle, without counts of rows, was trained on all of its batches.
        """
        return [
            (batch["batch"], batch["fingerprint"])
            for batch in self.manifest.get("batches", [])
            if batch.get("learnt", batch["documents"]) >= TRAINED_ON_SHARE * batch["documents"]
        ]

    def trained_on(self, batch: Batch) -> bool:
        """Return whether a batch, with the content it has now, is one of its `training_batches`."""
        return (batch.id, batch.manifest["fingerprint"]) in self.training_batches

    @cached_property
    def predictions(self) -> dict[str, Predictions] | None:
        """Its predictions on the validation and test texts, by split; None for an old bundle without them."""
        return read_predictions(self.path / PREDICTIONS_FILE) if PREDICTIONS_FILE in self.manifest["files"] else None

    @property
    def selective_config(self) -> SelectiveConfig:
        """The settings of its recipe for selective classification."""
        return stored_recipe(self.settings["recipe"]).selective

    @property
    def promotion_config(self) -> PromotionConfig:
        """The settings of its recipe for promotion."""
        return stored_recipe(self.settings["recipe"]).promotion

    def policy(self, target: float | None = None) -> SelectivePolicy | None:
        """Return the selective policy that reaches a target precision; None without a target.

        Args:
            target: the precision; 0 for no target, None for that of its recipe.

        Raises:
            ModelError: an old bundle without predictions.
            ConfigError: there are too few validation texts to prove such a precision.
        """
        target = self.selective_config.target_precision if target is None else target
        return self.policies(target)[target] if target else None

    def policies(self, *further: float) -> dict[float, SelectivePolicy]:
        """Return the selective policies that reports show, and those of further targets, by target.

        Raises:
            ModelError: an old bundle without predictions.
            ConfigError: there are too few validation texts to prove one of the further targets.
        """
        if self.predictions is None:
            raise ModelError(f"{self.title} was trained before target precisions existed; train it again")
        validation = self.predictions["validation"]
        for target in further:
            check_provable(target, len(validation))
        return fit_policies(validation, self.selective_config, self.labels, *further)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The content of model.json: labels, tokenizer, thresholds and recipe."""
        return read_json(self.path / "model.json")

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """The content of metrics.json."""
        return read_json(self.path / "metrics.json")

    @property
    def labels(self) -> list[str]:
        """Class names, in the order of the model's outputs."""
        return list(self.settings["labels"])

    @property
    def thresholds(self) -> NDArray[np.float32] | None:
        """Of a multi-label model: float32 [classes], the probability from which a text gets a class; else None."""
        thresholds = self.settings.get("thresholds")
        return None if thresholds is None else np.array(thresholds, dtype=np.float32)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer it was trained with."""
        return Tokenizer.from_spec(self.settings["tokenizer"], read_words(self.path / "vocabulary.txt"))

    @cached_property
    def characters(self) -> CharacterTable | None:
        """What the character n-grams of unknown words add; None for a model without them."""
        return read_characters(self.path)


def read_characters(folder: Path) -> CharacterTable | None:
    """Return what the character n-grams of unknown words add, from a bundle's folder; None without n-grams."""
    from safetensors import safe_open

    with safe_open(folder / "weights.safetensors", framework="numpy") as weights:
        if "wide.ngram_keys" not in weights.keys():  # noqa: SIM118 (it is not a mapping)
            return None
        keys, values = (weights.get_tensor(f"wide.{name}") for name in ("ngram_keys", "ngrams"))
    return CharacterTable(keys, values) if len(keys) else None
