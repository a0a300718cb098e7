"""Writes the int8 and fp16 variants of a model, and measures how they agree with fp32."""

import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import QuantType, quantize_dynamic

from pipeline.dataset.minibatches import TokenLists
from pipeline.dataset.token_set import TokenSet
from pipeline.errors import DeviceError, ModelError
from pipeline.files import write_json
from pipeline.metrics.classification import decide, macro_f1
from pipeline.models.engine import Engine, temporary_engine
from pipeline.models.onnx_graph import build_graph
from pipeline.models.session import cuda_obstacle
from pipeline.models.variants import VARIANT_DEVICES, VARIANT_FILES, VARIANTS_FILE
from pipeline.training.model import Classifier

TIMED_TOKENS, TIMED_ROUNDS = 100_000, 3
TIE_MARGIN = 0.02  # a label whose probability leads by less is a near-tie in any variant


@dataclass(frozen=True)
class Agreement:
    """How a variant labels the validation split, compared with fp32.

    Attributes:
        texts: how many were run.
        equal_labels: share with the same label, or labels.
        clear_texts: how many of them are no near-ties in fp32.
        equal_clear_labels: share of clear texts with the same label, or labels.
        largest_change: the largest difference of any probability.
        macro_f1: of the variant.
        fp32_macro_f1: of fp32.
        clear_macro_f1: of the variant on the clear texts.
        fp32_clear_macro_f1: of fp32 on the clear texts.
        speed: how many times as fast as fp32, on this machine.
        device: where it was measured.
    """

    texts: int
    equal_labels: float
    clear_texts: int
    equal_clear_labels: float
    largest_change: float
    macro_f1: float
    fp32_macro_f1: float
    clear_macro_f1: float
    fp32_clear_macro_f1: float
    speed: float
    device: str


def write_variants(
    folder: Path,
    model: Classifier,
    validation: TokenSet,
    metadata: dict[str, str],
    thresholds: NDArray[np.float32] | None = None,
) -> None:
    """Write int8 and fp16 beside the fp32 file of a bundle, and how they agree with it.

    Args:
        folder: holds model.onnx.
        model: the trained model, on the CPU.
        validation: the texts to measure on, each with tokens.
        metadata: strings to store in the files.
        thresholds: float32 [classes], of a multi-label model.
    """
    proto = onnx.load(folder / VARIANT_FILES["fp32"])
    # Marks the preparation that ONNX Runtime asks for (shapes, fusions) as done: a graph written for it needs none.
    entries = {entry.key: entry.value for entry in proto.metadata_props}
    onnx.helper.set_model_props(proto, {**entries, "onnx.quant.pre_process": "onnxruntime.quant"})
    int8 = folder / VARIANT_FILES["int8"]
    quantize_dynamic(proto, int8, op_types_to_quantize=["LSTM"], per_channel=True, weight_type=QuantType.QInt8)
    onnx.save(build_graph(model, metadata=metadata, half=True), folder / VARIANT_FILES["fp16"])
    unknown = None if model.wide is None else model.wide.unknown_rows(validation.unknown_words).numpy()
    report: dict[str, Any] = {}
    for variant, device in VARIANT_DEVICES.items():
        report[variant] = {"agreement": None, "not_measured": "no validation texts"}
        if len(validation):
            try:
                agreement = measure_agreement(folder, variant, device, validation, thresholds, unknown)
                report[variant] = {"agreement": asdict(agreement), "not_measured": None}
            except DeviceError as error:
                report[variant]["not_measured"] = str(error)
    write_json(folder / VARIANTS_FILE, report)


def measure_agreement(
    folder: Path,
    variant: str,
    device: str,
    texts: TokenSet,
    thresholds: NDArray[np.float32] | None = None,
    unknown: NDArray[np.float32] | None = None,
) -> Agreement:
    """Run a variant and fp32 over the same texts, on the same device.

    Args:
        folder: holds both files.
        variant: "int8" or "fp16".
        device: where to run.
        texts: each with tokens.
        thresholds: float32 [classes], of a multi-label model.
        unknown: the rows of their unknown words, see `Runner.run`.

    Raises:
        DeviceError: the device cannot be used.
    """
    if device == "cuda":
        obstacle = cuda_obstacle()
        if obstacle:
            raise DeviceError(f"needs a GPU: {obstacle}")
    names = ("fp32", variant)
    with ExitStack() as stack:
        engines = {
            name: stack.enter_context(temporary_engine(folder / VARIANT_FILES[name], device=device)) for name in names
        }
        results = {name: engines[name].probabilities(texts.tokens, unknown) for name in names}
        sample = texts.tokens.take_tokens(TIMED_TOKENS)
        seconds = {name: min(_seconds(engines[name], sample, unknown) for _ in range(TIMED_ROUNDS)) for name in names}
        device_name = engines["fp32"].device.name
    speed = seconds["fp32"] / seconds[variant]
    return agreement_with_fp32(
        results["fp32"], results[variant], texts.targets() > 0, thresholds, speed=speed, device=device_name
    )


def _seconds(engine: Engine, tokens: TokenLists, unknown: NDArray[np.float32] | None) -> float:
    started = time.perf_counter()
    engine.probabilities(tokens, unknown)
    return time.perf_counter() - started


def agreement_with_fp32(
    fp32: NDArray[np.float32],
    variant: NDArray[np.float32],
    targets: NDArray[np.bool_],
    thresholds: NDArray[np.float32] | None = None,
    *,
    speed: float,
    device: str,
) -> Agreement:
    """Compare probabilities [texts, classes] of a variant with those of fp32.

    Raises:
        ModelError: the variant returns NaN.
    """
    if np.isnan(variant).any():
        raise ModelError("the variant returns no probabilities (NaN)")
    before, after = decide(fp32, thresholds), decide(variant, thresholds)
    equal = (before == after).all(axis=1)
    if thresholds is None:
        best = np.sort(fp32, axis=1)
        clear = best[:, -1] - best[:, -2] > TIE_MARGIN
    else:
        clear = (2 * np.abs(fp32 - thresholds) > TIE_MARGIN).all(axis=1)
    return Agreement(
        texts=len(fp32),
        equal_labels=float(np.mean(equal)),
        clear_texts=int(clear.sum()),
        equal_clear_labels=float(np.mean(equal[clear])) if clear.any() else 1.0,
        largest_change=float(np.abs(fp32 - variant).max()),
        macro_f1=macro_f1(after, targets),
        fp32_macro_f1=macro_f1(before, targets),
        clear_macro_f1=macro_f1(after[clear], targets[clear]),
        fp32_clear_macro_f1=macro_f1(before[clear], targets[clear]),
        speed=speed,
        device=device,
    )
