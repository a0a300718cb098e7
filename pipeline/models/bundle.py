"""A model bundle: all that scoring needs and all that an auditor asks for, in one checked folder."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import PromotionConfig, SelectiveConfig, stored_recipe
from pipeline.dataset.token_cache import read_vocabulary
from pipeline.dataset.tokenizer import Tokenizer
from pipeline.errors import ModelError
from pipeline.files import read_json, value_digest, verified_manifest
from pipeline.metrics.predictions import PREDICTIONS_FILE, Predictions, read_predictions
from pipeline.metrics.profile import REFERENCE_FILE, Profile
from pipeline.metrics.selective import SelectivePolicy, check_provable, fit_policies
from pipeline.models.variants import VARIANT_FILES, VARIANTS_FILE
from pipeline.workspace import Batch

TRAINED_ON_SHARE = 0.2  # of a batch's documents, from which on the model knows it, and it is no night any more


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
        other = f"restore it, or choose another version with: nightlabel models promote {name}@VERSION"
        return cls(
            name, int(path.name), path, verified_manifest(path, damaged="roll back or train again", changed=other)
        )

    @property
    def title(self) -> str:
        return f"{self.name}@{self.version}"

    @property
    def digest(self) -> str:
        """What the bundle contains, in one value: same digest, same labels."""
        return value_digest(self.manifest["files"])

    @property
    def onnx_path(self) -> Path:
        return self.model_path("fp32")

    def model_path(self, precision: str) -> Path:
        return self.path / VARIANT_FILES[precision]

    @cached_property
    def variants(self) -> dict[str, Any]:
        """How each variant agrees with fp32; empty for a bundle from before there were any."""
        value: dict[str, Any] = read_json(self.path / VARIANTS_FILE) if VARIANTS_FILE in self.manifest["files"] else {}
        return value

    @cached_property
    def reference(self) -> Profile | None:
        """What it saw and said when it was tested; None for a bundle from before that was kept."""
        return (
            Profile.from_json(read_json(self.path / REFERENCE_FILE))
            if REFERENCE_FILE in self.manifest["files"]
            else None
        )

    @property
    def training_batches(self) -> list[tuple[str, str]]:
        """The batches that are no nights for it, each with its fingerprint: it learnt from a good part of them.

        A handful of rows that people reviewed does not make a night of ten thousand known to the model, so such a
        batch goes on being compared, and nights being compared with it. A bundle from before rows were counted has
        learnt from all of its batches.
        """
        return [
            (one["batch"], one["fingerprint"])
            for one in self.manifest.get("batches", [])
            if one.get("learnt", one["documents"]) >= TRAINED_ON_SHARE * one["documents"]
        ]

    def trained_on(self, batch: Batch) -> bool:
        """Return whether it learnt from a batch as it is now, or a good part of it."""
        return (batch.id, batch.manifest["fingerprint"]) in self.training_batches

    @cached_property
    def predictions(self) -> dict[str, Predictions] | None:
        """What it said of the validation and test texts; None for a bundle from before that was kept."""
        return read_predictions(self.path / PREDICTIONS_FILE) if PREDICTIONS_FILE in self.manifest["files"] else None

    @property
    def selective_config(self) -> SelectiveConfig:
        return stored_recipe(self.settings["recipe"]).selective

    @property
    def promotion_config(self) -> PromotionConfig:
        return stored_recipe(self.settings["recipe"]).promotion

    def policy(self, target: float | None = None) -> SelectivePolicy | None:
        """Return the thresholds that keep a precision; None where none is promised.

        Args:
            target: the precision; 0 for none, None for the one it was trained to promise.

        Raises:
            ModelError: it was trained before promises could be made.
            ConfigError: there are too few validation texts to show such a precision.
        """
        config = self.selective_config
        wanted = config.target_precision if target is None else target
        return self.policies(wanted)[wanted] if wanted else None

    def policies(self, *further: float) -> dict[float, SelectivePolicy]:
        """Return the promises that reports show and further ones, by target.

        Raises:
            ModelError: it was trained before promises could be made.
            ConfigError: there are too few validation texts to show one of the further precisions.
        """
        if self.predictions is None:
            raise ModelError(f"{self.title} was trained before a precision could be promised; train again")
        validation = self.predictions["validation"]
        for target in further:
            check_provable(target, len(validation))
        return fit_policies(validation, self.selective_config, self.labels, *further)

    @cached_property
    def settings(self) -> dict[str, Any]:
        value: dict[str, Any] = read_json(self.path / "model.json")
        return value

    @cached_property
    def metrics(self) -> dict[str, Any]:
        value: dict[str, Any] = read_json(self.path / "metrics.json")
        return value

    @property
    def labels(self) -> list[str]:
        return list(self.settings["labels"])

    @property
    def thresholds(self) -> NDArray[np.float32] | None:
        """Of a multi-label model: float32 [classes], the probabilities from which classes are given."""
        thresholds = self.settings.get("thresholds")
        return None if thresholds is None else np.array(thresholds, dtype=np.float32)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_spec(self.settings["tokenizer"], read_vocabulary(self.path / "vocabulary.txt"))
