"""int8 and fp16: the same model in fewer bits, used only where their labels agree."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import one_hot
from onnx import TensorProto, numpy_helper
from test_onnx_graph import ragged_texts, trained_model, unknown_rows

from pipeline.errors import DeviceError, ModelError
from pipeline.files import read_json
from pipeline.models.engine import HostRunner
from pipeline.models.onnx_graph import build_graph
from pipeline.models.quantization import agreement_with_fp32, write_variants
from pipeline.models.session import cuda_obstacle
from pipeline.models.variants import VARIANT_FILES, choose_variant
from pipeline.promotion.rule import Registration

GOOD: dict[str, Any] = {
    "texts": 1000, "equal_labels": 0.998, "macro_f1": 0.9, "fp32_macro_f1": 0.901, "speed": 1.9,
}  # fmt: skip


def report(**changes: Any) -> dict[str, Any]:
    return {"int8": {"agreement": {**GOOD, **changes}, "not_measured": None}}


@pytest.mark.parametrize("pooling", ["last", "max", "mean", "attention"])
@pytest.mark.parametrize("layers", [1, 2])
def test_variants_are_written_and_measured_beside_fp32(tmp_path: Path, pooling: str, layers: int) -> None:
    model = trained_model(pooling=pooling, layers=layers, wide=101)
    onnx.save(build_graph(model), tmp_path / VARIANT_FILES["fp32"])
    write_variants(tmp_path, model, ragged_texts(300), {"labels": "a\nb\nc"})
    facts = read_json(tmp_path / "variants.json")
    int8 = facts["int8"]["agreement"]
    assert int8["texts"] == 300
    assert 0.9 < int8["equal_labels"] <= 1
    others = int8["texts"] * (1 - int8["equal_labels"])
    clear_others = int8["clear_texts"] * (1 - int8["equal_clear_labels"])
    assert 0 <= round(clear_others) <= round(others)  # of as many texts or fewer: the shares may be either way round
    assert 0 < int8["largest_change"] < 0.3
    assert int8["speed"] > 0
    assert facts["int8"]["agreement"]["device"]
    operators = {node.op_type for node in onnx.load(tmp_path / VARIANT_FILES["int8"]).graph.node}
    assert "DynamicQuantizeLSTM" in operators
    assert "LSTM" not in operators
    if cuda_obstacle():
        assert facts["fp16"] == {"agreement": None, "not_measured": facts["fp16"]["not_measured"]}
        assert "needs a GPU" in facts["fp16"]["not_measured"]


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("pooling", ["last", "max", "mean", "attention"])
def test_the_half_precision_graph_computes_the_same_model(pooling: str, bidirectional: bool) -> None:
    """No CPU runs an LSTM in half precision, so its rounded weights are run in single precision here."""
    model = trained_model(pooling=pooling, layers=2, bidirectional=bidirectional, wide=101)
    half = build_graph(model, half=True)
    halved = {weight.name for weight in half.graph.initializer if weight.data_type == TensorProto.FLOAT16}
    assert halved == {"embedding", *(f"lstm{layer}_{kind}" for layer in (0, 1) for kind in "WRB")}
    for weight in half.graph.initializer:
        if weight.name in halved:
            weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight).astype(np.float32), weight.name))
    texts = ragged_texts()
    single, rounded = (
        HostRunner(onnxruntime.InferenceSession(graph.SerializeToString())).run(
            *texts.tokens.pad(np.arange(40)), unknown_rows(model, texts)
        )
        for graph in (build_graph(model), half)
    )
    assert 0 < np.abs(rounded - single).max() < 1e-2


def test_near_ties_are_told_from_real_changes() -> None:
    fp32 = np.array([[0.505, 0.495], [0.9, 0.1], [0.2, 0.8], [0.1, 0.9]], np.float32)
    variant = np.array([[0.495, 0.505], [0.8, 0.2], [0.2, 0.8], [0.6, 0.4]], np.float32)
    facts = agreement_with_fp32(fp32, variant, one_hot([0, 0, 1, 1], 2), speed=2.0, device="here")
    assert (facts.equal_labels, facts.clear_texts) == (0.5, 3)
    assert facts.equal_clear_labels == pytest.approx(2 / 3)
    assert facts.largest_change == pytest.approx(0.5)
    assert (facts.fp32_macro_f1, facts.fp32_clear_macro_f1) == (1.0, 1.0)
    assert facts.macro_f1 < facts.clear_macro_f1 < 1
    with pytest.raises(ModelError, match="NaN"):
        agreement_with_fp32(fp32, variant * np.nan, one_hot([0, 0, 1, 1], 2), speed=2.0, device="here")


def test_of_several_labels_all_must_be_equal() -> None:
    fp32 = np.array([[0.9, 0.305], [0.9, 0.1], [0.2, 0.8]], np.float32)
    variant = np.array([[0.9, 0.295], [0.8, 0.1], [0.2, 0.8]], np.float32)
    thresholds = np.array([0.5, 0.3], np.float32)
    facts = agreement_with_fp32(fp32, variant, fp32 >= thresholds, thresholds, speed=2.0, device="here")
    assert (facts.equal_labels, facts.clear_texts) == (pytest.approx(2 / 3), 2)
    assert (facts.equal_clear_labels, facts.fp32_macro_f1) == (1.0, 1.0)
    assert facts.macro_f1 < 1


@pytest.mark.parametrize(
    ("facts", "variant", "why"),
    [
        (report(), "int8", "99.80% of 1,000 validation texts"),
        (report(equal_labels=0.99), "fp32", "99.00% of its labels equal those of fp32"),
        (report(macro_f1=0.898), "fp32", "loses 0.30 points of macro-F1"),
        (report(speed=0.8), "fp32", "0.80 times as fast"),
        ({}, "fp32", "the bundle has none"),
        ({"int8": {"agreement": None, "not_measured": "no validation texts"}}, "fp32", "no validation texts"),
    ],
)
def test_auto_takes_what_agrees_and_says_why(facts: dict[str, Any], variant: str, why: str) -> None:
    choice = choose_variant("auto", facts, on_gpu=False, title="m@1")
    assert choice.variant == variant
    assert why in choice.reason


def test_a_variant_that_is_missing_or_for_another_device_is_refused_with_what_to_do() -> None:
    with pytest.raises(ModelError, match=r"m@1 has no int8 variant \(there: fp32\); train again"):
        choose_variant("int8", {}, on_gpu=False, title="m@1")
    with pytest.raises(DeviceError, match="int8 runs on cpu only, and this is cuda"):
        choose_variant("int8", report(), on_gpu=True, title="m@1")
    assert choose_variant("int8", report(equal_labels=0.1), on_gpu=False, title="m@1").variant == "int8"


def test_a_bundle_holds_its_variants_under_its_digests(trained: Registration) -> None:
    assert {*VARIANT_FILES.values(), "variants.json"} <= trained.bundle.manifest["files"].keys()
    assert trained.bundle.variants["int8"]["agreement"]["texts"] > 0
