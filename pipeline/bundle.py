"""A model bundle: all that scoring needs and all that an auditor asks for, in one checked folder."""

import datetime
import importlib.metadata
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from safetensors.torch import load, save

from pipeline.claims import FILE as CLAIMS
from pipeline.claims import Claims, read_claims
from pipeline.config import PromiseConfig, PromotionConfig, Recipe, stored_recipe
from pipeline.errors import ModelError
from pipeline.export import build_graph
from pipeline.files import file_digest, read_json, value_digest, write_json
from pipeline.health import REFERENCE, Health
from pipeline.model import Average, Classifier, Wide
from pipeline.parity import Parity, prove_parity
from pipeline.promise import Promise, check_provable, promises_of
from pipeline.tokenizer import Tokenizer
from pipeline.tokens import TokenSet, read_vocabulary, write_vocabulary
from pipeline.variants import FILES, REPORT, write_variants
from pipeline.workspace import Batch

LEARNT_SHARE = 0.2  # of a batch's documents, from which on the model knows it, and it is no night any more
LIBRARIES = ("torch", "onnx", "onnxruntime-gpu", "onnxruntime", "pyarrow", "numpy", "scikit-learn")


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
        return cls(name, int(path.name), path, unseal(path, damaged="roll back or train again", changed=other))

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
        return self.path / FILES[precision]

    @cached_property
    def variants(self) -> dict[str, Any]:
        """How each variant agrees with fp32; empty for a bundle from before there were any."""
        value: dict[str, Any] = read_json(self.path / REPORT) if REPORT in self.manifest["files"] else {}
        return value

    @cached_property
    def reference(self) -> Health | None:
        """What it saw and said when it was tested; None for a bundle from before that was kept."""
        return Health.from_json(read_json(self.path / REFERENCE)) if REFERENCE in self.manifest["files"] else None

    @property
    def learnt(self) -> list[tuple[str, str]]:
        """The batches that are no nights for it, each with its fingerprint: it learnt from a good part of them.

        A handful of rows that people reviewed does not make a night of ten thousand known to the model, so such a
        batch goes on being compared, and nights being compared with it. A bundle from before rows were counted has
        learnt from all of its batches.
        """
        return [
            (one["batch"], one["fingerprint"])
            for one in self.manifest.get("batches", [])
            if one.get("learnt", one["documents"]) >= LEARNT_SHARE * one["documents"]
        ]

    def trained_on(self, batch: Batch) -> bool:
        """Return whether it learnt from a batch as it is now, or a good part of it."""
        return (batch.id, batch.manifest["fingerprint"]) in self.learnt

    @cached_property
    def claims(self) -> dict[str, Claims] | None:
        """What it said of the validation and test texts; None for a bundle from before that was kept."""
        return read_claims(self.path / CLAIMS) if CLAIMS in self.manifest["files"] else None

    @property
    def promise_config(self) -> PromiseConfig:
        return stored_recipe(self.settings["recipe"]).promise

    @property
    def promotion_config(self) -> PromotionConfig:
        return stored_recipe(self.settings["recipe"]).promotion

    def promise(self, target: float | None = None) -> Promise | None:
        """Return the thresholds that keep a precision; None where none is promised.

        Args:
            target: the precision; 0 for none, None for the one it was trained to promise.

        Raises:
            ModelError: it was trained before promises could be made.
            ConfigError: there are too few validation texts to show such a precision.
        """
        config = self.promise_config
        wanted = config.target_precision if target is None else target
        return self.promises(wanted)[wanted] if wanted else None

    def promises(self, *further: float) -> dict[float, Promise]:
        """Return the promises that reports show and further ones, by target.

        Raises:
            ModelError: it was trained before promises could be made.
            ConfigError: there are too few validation texts to show one of the further precisions.
        """
        if self.claims is None:
            raise ModelError(f"{self.title} was trained before a precision could be promised; train again")
        validation = self.claims["validation"]
        for target in further:
            check_provable(target, len(validation))
        return promises_of(validation, self.promise_config, self.labels, *further)

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

    def classifier(self) -> Classifier:
        """Return the trained model in PyTorch, on the CPU, ready for evaluation."""
        state = load((self.path / "weights.safetensors").read_bytes())
        config, several = stored_recipe(self.settings["recipe"]).model, bool(self.settings.get("multi_label"))
        size, classes = self.tokenizer.size, len(self.labels)
        model = Classifier(size, classes, config, multi_label=several)
        if "average.vectors" in state:
            model.average = Average(state["average.vectors"], classes)
        if "wide.squares" in state:
            model.wide = Wide(size, classes, len(state["wide.squares"]) - size)
        model.load_state_dict(state)
        return model.eval()

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_spec(self.settings["tokenizer"], read_vocabulary(self.path / "vocabulary.txt"))


def write_model(
    folder: Path,
    model: Classifier,
    tokenizer: Tokenizer,
    *,
    labels: list[str],
    recipe: Recipe,
    proof: TokenSet,
    validation: TokenSet,
    thresholds: NDArray[np.float32] | None = None,
) -> Parity:
    """Write everything scoring needs into a folder, and prove that the exported graph is the trained model.

    Args:
        folder: an empty folder.
        model: the trained model, on the CPU.
        tokenizer: what made its token ids.
        labels: class names in the order of the model's outputs.
        recipe: the settings it was trained with.
        proof: texts for the parity proof.
        validation: texts on which int8 and fp16 are compared with fp32.
        thresholds: float32 [classes], of a multi-label model.

    Raises:
        ParityError: the exported graph disagrees with the trained weights.
    """
    metadata = {"labels": "\n".join(labels), "tokenizer_digest": tokenizer.digest}
    onnx.save(build_graph(model, metadata=metadata), folder / "model.onnx")
    parity = prove_parity(model, folder / "model.onnx", proof)
    write_variants(folder, model, validation, metadata, thresholds)
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    (folder / "weights.safetensors").write_bytes(save(weights))
    write_vocabulary(folder / "vocabulary.txt", tokenizer)
    write_json(
        folder / "model.json",
        {
            "labels": labels,
            "multi_label": model.multi_label,
            "thresholds": None if thresholds is None else [round(float(value), 6) for value in thresholds],
            "tokenizer": tokenizer.spec(),
            "tokenizer_digest": tokenizer.digest,
            "vocabulary_size": tokenizer.size,
            "parameters": model.parameter_count(),
            "recipe": recipe.model_dump(mode="json"),
        },
    )
    write_json(folder / "parity.json", parity.as_dict())
    return parity


def seal(folder: Path, **facts: Any) -> None:
    """Write the manifest: digests of all files, the libraries, and what else is worth knowing."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json")
    write_json(
        folder / "manifest.json",
        {
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            **facts,
            "libraries": _library_versions(),
            "files": {path.relative_to(folder).as_posix(): file_digest(path) for path in files},
        },
    )


def unseal(path: Path, *, damaged: str, changed: str) -> dict[str, Any]:
    """Return the manifest of a sealed folder, all of whose files are those that were sealed.

    Args:
        path: the folder.
        damaged: what to do where the manifest cannot be read.
        changed: what to do where a file is another.

    Raises:
        ModelError: a file is missing or is not the one that was sealed.
    """
    try:
        manifest: dict[str, Any] = read_json(path / "manifest.json")
        files: dict[str, str] = manifest["files"]
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{path}: the manifest is missing or damaged; {damaged}") from error
    for file, digest in files.items():
        if not (path / file).is_file() or file_digest(path / file) != digest:
            raise ModelError(f"{path / file} is not the file that was registered (missing or changed); {changed}")
    return manifest


def _library_versions() -> dict[str, str]:
    versions = {}
    for library in LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue  # only one of the two ONNX Runtimes is there
    return versions
