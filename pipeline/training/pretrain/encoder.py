"""Pretrained encoders: weights and vocabulary fitted on unlabelled text, for classifiers to start from.

An encoder is a folder like a model's bundle: weights, vocabulary, provenance, and the digests of all files. It is
named by the fingerprint of its texts and settings, so the same pretraining never runs twice.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from safetensors.torch import load, save
from torch import Tensor

from pipeline.config import Recipe, stored_recipe
from pipeline.dataset.chunks import ChunkCache, build_chunks
from pipeline.dataset.tokenizer import RESERVED, Tokenizer, WordSplitter, read_words, write_vocabulary
from pipeline.errors import ModelError
from pipeline.files import read_json, value_digest, verified_manifest, write_json, write_manifest
from pipeline.training.loop import choose_training_device
from pipeline.training.model import EMBEDDING_STD, Classifier
from pipeline.training.plots import perplexity_curve
from pipeline.training.pretrain.language_model import DocumentModel, LanguageModel
from pipeline.training.pretrain.loop import Pretrained, PretrainingPhase, pretrain
from pipeline.training.resumable import Progress, part_of
from pipeline.workspace import Workspace

# Settings that decide the vocabulary and the shapes of the weights: an encoder serves recipes with the same values.
TOKENIZER_FIELDS = (
    "lowercase",
    "remove_punctuation",
    "remove_stop_words",
    "split_hangul",
)
DOCUMENT_VECTORS = "document_vectors"  # their key in weights.safetensors
DOCUMENT_SHARE = 0.2  # of the work, about, is the document model
MODEL_FIELDS = ("embedding_size", "hidden_size", "bidirectional")


@dataclass(frozen=True)
class Encoder:
    """A committed encoder whose files have been verified."""

    path: Path
    manifest: dict[str, Any]

    @classmethod
    def load(cls, path: Path) -> "Encoder":
        """Open an encoder's folder.

        Raises:
            ModelError: a file is missing or is not the one that was written.
        """
        remedy = f"remove {path} and pretrain again"
        return cls(path, verified_manifest(path, damaged=remedy, changed=remedy))

    @property
    def name(self) -> str:
        """Its fingerprint."""
        return self.path.name

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The content of encoder.json: recipe, provenance and measurements."""
        value: dict[str, Any] = read_json(self.path / "encoder.json")
        return value

    @property
    def recipe(self) -> Recipe:
        """The recipe it was pretrained with."""
        return stored_recipe(self.settings["recipe"])

    @cached_property
    def vocabulary(self) -> list[str]:
        """Its words, in the order of their ids."""
        return read_words(self.path / "vocabulary.txt")

    @property
    def vocabulary_size(self) -> int:
        """Number of token ids, padding and unknown included."""
        return len(self.vocabulary) + RESERVED

    def tokenizer(self, recipe: Recipe, texts: Iterable[pa.Array]) -> Tokenizer:
        """Return a tokenizer that begins with the encoder's vocabulary, with further words of training texts."""
        splitter = WordSplitter(recipe.tokenizer, self.settings["stop_words"])
        vocabulary = Tokenizer.fit(texts, recipe.tokenizer, self.vocabulary).vocabulary.to_pylist()
        return Tokenizer(splitter, vocabulary)

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """The tensors of weights.safetensors, by key."""
        return load((self.path / "weights.safetensors").read_bytes())

    @property
    def document_vectors(self) -> Tensor | None:
        """Document vectors of the words [vocabulary, size], 0 for padding; None if pretrained without."""
        return self.weights.get(DOCUMENT_VECTORS)

    @torch.no_grad()
    def initialise(self, model: Classifier) -> None:
        """Copy the word vectors and the lowest LSTM layer into a classifier of the same shape, on the CPU."""
        model.embedding.weight.copy_(self.weights["embedding.weight"])
        prefix = "layer."
        layer = {name.removeprefix(prefix): value for name, value in self.weights.items() if name.startswith(prefix)}
        model.layers[0].load_state_dict(layer)

    def differs(self, recipe: Recipe) -> str | None:
        """Return the first setting for which a recipe needs another vocabulary or shape, or None."""
        for section, fields in (("tokenizer", TOKENIZER_FIELDS), ("model", MODEL_FIELDS)):
            for field in fields:
                pretrained, requested = (getattr(getattr(source, section), field) for source in (self.recipe, recipe))
                if pretrained != requested:
                    return f"{section}.{field} is {pretrained} in it and {requested} here"
        return None

    def provenance(self) -> dict[str, Any]:
        """Return the facts about it that a bundle and a report include."""
        keys = ("texts", "tokens", "perplexity", "seconds", "device", "left_out_for_test")
        facts = {key: self.settings[key] for key in keys}
        return {"encoder": self.name, "created": self.manifest["created"], **facts}


def pretrain_encoder(
    workspace: Workspace, recipe: Recipe, batch_ids: Iterable[str] = (), progress: Progress | None = None
) -> Encoder:
    """Pretrain on all texts, or return the encoder of an equal pretraining; a killed run resumes from its checkpoint.

    Args:
        workspace: where the documents lie and the encoder goes.
        recipe: tokenizer, shape of the model, and how to pretrain.
        batch_ids: batches to pretrain on; all if none are named.
        progress: called every few seconds.

    Raises:
        TrainingDataError: there is too little text.
        BatchError: a named batch does not exist.
        DeviceError: the requested device is not there.
    """
    batches = [workspace.batch(batch_id) for batch_id in batch_ids] or workspace.batches()
    device = choose_training_device(recipe.training.device)
    cache = build_chunks(workspace, batches, recipe)
    shape = {field: getattr(recipe.model, field) for field in MODEL_FIELDS}
    name = value_digest([cache.fingerprint, shape, recipe.pretraining.model_dump(mode="json")])[:16]
    path = workspace.encoder_dir(name)
    if (path / "manifest.json").exists():
        return Encoder.load(path)
    checkpoints = [workspace.checkpoint_path(f"encoder-{name}-{kind}") for kind in ("documents", "language")]
    documents, language = _pretrain_both(cache, recipe, device, checkpoints, progress)
    with workspace.staging() as staging:
        _write(staging / "encoder", cache, recipe, documents, language)
        path.parent.mkdir(parents=True, exist_ok=True)
        (staging / "encoder").rename(path)
    for checkpoint in checkpoints:
        checkpoint.unlink(missing_ok=True)
    return Encoder.load(path)


def _pretrain_both(
    cache: ChunkCache, recipe: Recipe, device: torch.device, checkpoints: Sequence[Path], progress: Progress | None
) -> tuple[Pretrained | None, Pretrained]:
    """Train the document model, which is quick, then the language model, which starts from its word vectors."""
    config, size = recipe.pretraining, cache.tokenizer.size
    torch.manual_seed(config.seed)
    documents, share = None, 0.0
    if config.document_epochs:
        share = DOCUMENT_SHARE
        phase = PretrainingPhase("document vectors", config.document_epochs, config.document_learning_rate)
        model = DocumentModel(size, config.document_size, cache.counts)
        part = part_of(progress, 0.0, share)
        documents = pretrain(model, cache, phase, config, device=device, checkpoint=checkpoints[0], progress=part)
    language = LanguageModel(size, recipe.model)
    if documents is not None and config.document_size == recipe.model.embedding_size:
        vectors = documents.model.embedding.weight.detach()
        with torch.no_grad():
            language.embedding.weight.copy_(vectors * (EMBEDDING_STD / vectors.std()))
    phase = PretrainingPhase("language model", config.epochs, config.learning_rate)
    part = part_of(progress, share, 1.0)
    return documents, pretrain(language, cache, phase, config, device=device, checkpoint=checkpoints[1], progress=part)


def _write(folder: Path, cache: ChunkCache, recipe: Recipe, documents: Pretrained | None, language: Pretrained) -> None:
    folder.mkdir()
    weights = {name: value.contiguous() for name, value in language.model.state_dict().items()}
    if documents is not None:
        weights[DOCUMENT_VECTORS] = documents.model.embedding.weight.detach().contiguous()
    seconds = language.seconds + (documents.seconds if documents else 0.0)
    (folder / "weights.safetensors").write_bytes(save(weights))
    write_vocabulary(folder / "vocabulary.txt", cache.tokenizer)
    write_json(
        folder / "encoder.json",
        {
            "recipe": recipe.model_dump(mode="json", by_alias=True),
            "stop_words": cache.tokenizer.splitter.stop_words,
            "vocabulary_size": cache.tokenizer.size,
            **{key: cache.manifest[key] for key in ("batches", "texts", "tokens", "left_out_for_test")},
            "perplexity": round(language.perplexity, 2),
            "history": language.history,
            "document_history": documents.history if documents else [],
            "seconds": round(seconds, 1),
            "tokens_per_second": round(language.tokens_per_second),
            "device": language.device,
        },
    )
    (folder / "figures").mkdir()
    (folder / "figures" / "perplexity.png").write_bytes(perplexity_curve(language.history))
    write_manifest(folder)


def encoders(workspace: Workspace) -> list[Encoder]:
    """Return the encoders of a workspace, newest first."""
    loaded = [Encoder.load(path.parent) for path in workspace.encoder_manifests()]
    return sorted(loaded, key=lambda encoder: (encoder.manifest["created"], encoder.name), reverse=True)


def matching_encoder(workspace: Workspace, recipe: Recipe) -> Encoder | None:
    """Return the newest encoder that matches a recipe's vocabulary and shape, or None."""
    return next((encoder for encoder in encoders(workspace) if encoder.differs(recipe) is None), None)


def named_encoder(workspace: Workspace, name: str, recipe: Recipe) -> Encoder:
    """Return an encoder by its name.

    Raises:
        ModelError: there is no such encoder, or the recipe needs another vocabulary or shape.
    """
    by_name = {encoder.name: encoder for encoder in encoders(workspace)}
    if name not in by_name:
        names = ", ".join(by_name) or "none yet: nightlabel pretrain"
        raise ModelError(f"no encoder {name!r} in {workspace.root} (there: {names})")
    difference = by_name[name].differs(recipe)
    if difference:
        raise ModelError(
            f"encoder {name} does not match: {difference}; set the same value with --set, or pretrain with this one"
        )
    return by_name[name]
