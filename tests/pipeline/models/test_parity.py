"""A wrong graph never passes; a right one does, however much its model magnifies rounding."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from test_onnx_graph import ragged_texts, trained_model

from pipeline.config import ModelConfig
from pipeline.dataset.token_set import TokenSet
from pipeline.errors import ParityError
from pipeline.models.onnx_graph import build_graph
from pipeline.models.parity import CEILING, TOLERANCE, prove_parity
from pipeline.training.model import Classifier


def exported(model: Classifier, folder: Path) -> Path:
    onnx.save(build_graph(model), folder / "model.onnx")
    return folder / "model.onnx"


def test_a_graph_that_disagrees_is_caught(tmp_path: Path) -> None:
    model = trained_model()
    path = exported(model, tmp_path)
    with torch.no_grad():
        model.output.bias[0] += 0.01
    with pytest.raises(ParityError, match="differs"):
        prove_parity(model, path, ragged_texts())


def unsettled_model() -> tuple[Classifier, TokenSet]:
    """A model whose states are chaotic: the smallest rounding grows from word to word."""
    torch.manual_seed(0)
    model = Classifier(50, 3, ModelConfig(embedding_size=8, hidden_size=48)).eval()
    with torch.no_grad():
        for layer in model.layers:
            for lstm in (layer.forwards, layer.backwards):
                lstm.weight_hh_l0.mul_(UNSETTLING)
                lstm.weight_ih_l0.mul_(4)
        model.output.weight.mul_(12)
    return model, ragged_texts(60, longest=150)


UNSETTLING = 5.2


def test_a_model_that_magnifies_rounding_passes_within_what_single_precision_explains(tmp_path: Path) -> None:
    model, texts = unsettled_model()
    parity = prove_parity(model, exported(model, tmp_path), texts)
    assert TOLERANCE < parity.largest_difference <= parity.tolerance <= CEILING
    assert parity.rounding > 0


def test_a_wrong_gate_order_is_caught_even_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, texts = unsettled_model()
    monkeypatch.setattr(np, "split", lambda value, parts: np.array_split(value, parts)[::-1])
    path = exported(model, tmp_path)
    monkeypatch.undo()
    with pytest.raises(ParityError):
        prove_parity(model, path, texts)
