"""Writes a trained model as the files of a bundle, proves the export, and loads the weights into PyTorch again."""

from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from safetensors.torch import load, save

from pipeline.config import Recipe, stored_recipe
from pipeline.dataset.token_set import TokenSet
from pipeline.dataset.tokenizer import Tokenizer, write_vocabulary
from pipeline.files import write_json
from pipeline.models.bundle import Bundle
from pipeline.models.onnx_graph import build_graph
from pipeline.models.parity import Parity, prove_parity
from pipeline.models.quantization import write_variants
from pipeline.training.model import Classifier, MeanEmbeddingLinear, NgramLinear


def load_classifier(bundle: Bundle) -> Classifier:
    """Return the trained model of a bundle in PyTorch, on the CPU, ready for evaluation."""
    state = load((bundle.path / "weights.safetensors").read_bytes())
    config, multi_label = stored_recipe(bundle.settings["recipe"]).model, bool(bundle.settings.get("multi_label"))
    classes = len(bundle.labels)
    model = Classifier(len(state["embedding.weight"]), classes, config, multi_label=multi_label)
    if "average.vectors" in state:
        model.average = MeanEmbeddingLinear(state["average.vectors"], classes)
    if "wide.squares" in state:
        _convert_earlier_branch(state, bundle.tokenizer.size)
    if "wide.words" in state:
        features = {name: len(state[f"wide.{name}"]) for name in ("words", "bucket_rows", "sequences", "ngrams")}
        words, buckets, sequences, ngrams = features.values()
        triples = bool(state["wide.triples"])
        model.wide = NgramLinear(words, classes, buckets, sequences - 1, ngrams, triples=triples)
    model.load_state_dict(state)
    return model.eval()


def _convert_earlier_branch(state: dict[str, torch.Tensor], vocabulary_size: int) -> None:
    """Change the branch over words and pairs of an earlier version, one table and no characters, into today's form."""
    table, squares = state.pop("wide.table"), state.pop("wide.squares")
    table = torch.cat([table, squares[:, None]], dim=1)
    no_feature, buckets = torch.zeros(1, table.shape[1]), len(table) - vocabulary_size
    state["wide.words"], state["wide.ngrams"] = table[:vocabulary_size], table[:0]
    state["wide.sequences"] = torch.cat([no_feature, table[vocabulary_size:]])
    state["wide.bucket_rows"] = torch.arange(1, buckets + 1, dtype=torch.int32)
    state["wide.ngram_keys"], state["wide.triples"] = torch.zeros(0, dtype=torch.int64), torch.tensor(False)


def write_model(
    folder: Path,
    model: Classifier,
    tokenizer: Tokenizer,
    *,
    labels: list[str],
    recipe: Recipe,
    parity_texts: TokenSet,
    validation: TokenSet,
    thresholds: NDArray[np.float32] | None = None,
) -> Parity:
    """Write the files that scoring needs into a folder, and prove that the exported graph is the trained model.

    Args:
        folder: an empty folder.
        model: the trained model, on the CPU.
        tokenizer: the one of its token ids.
        labels: class names in the order of the model's outputs.
        recipe: the settings it was trained with.
        parity_texts: for the parity proof.
        validation: texts on which int8 and fp16 are compared with fp32.
        thresholds: float32 [classes], of a multi-label model.

    Raises:
        ParityError: the exported graph disagrees with the trained weights.
    """
    metadata = {"labels": "\n".join(labels), "tokenizer_digest": tokenizer.digest}
    onnx.save(build_graph(model, metadata=metadata), folder / "model.onnx")
    parity = prove_parity(model, folder / "model.onnx", parity_texts)
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
            "recipe": recipe.model_dump(mode="json", by_alias=True),
        },
    )
    write_json(folder / "parity.json", parity.as_dict())
    return parity
