"""The same model in fewer bits: int8 for CPUs, half precision for CUDA, and whether their labels can be trusted."""

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import QuantType, quantize_dynamic

from pipeline.batching import TokenLists
from pipeline.device import cuda_obstacle
from pipeline.engine import Engine, opened
from pipeline.errors import DeviceError, ModelError
from pipeline.evaluation import decide, macro_f1
from pipeline.export import build_graph
from pipeline.files import write_json
from pipeline.model import Classifier
from pipeline.tokens import TokenSet

FILES = {"fp32": "model.onnx", "int8": "model.int8.onnx", "fp16": "model.fp16.onnx"}
DEVICES = {"int8": "cpu", "fp16": "cuda"}  # where a variant runs; fp32 runs on both
REPORT = "variants.json"

LEAST_EQUAL_LABELS = 0.995
MOST_F1_LOST = 0.002
TIMED_TOKENS, TIMED_ROUNDS = 100_000, 3
TIE_MARGIN = 0.02  # a label whose probability leads by less is a toss-up in any precision


@dataclass(frozen=True)
class Agreement:
    """How a variant labels the validation split, beside fp32.

    Attributes:
        texts: how many were run.
        equal_labels: share with the same label, or labels.
        clear_texts: how many of them fp32 decides by more than the tie margin.
        equal_clear_labels: share of those with the same label, or labels.
        largest_change: of any probability.
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
    """Write the variants of a bundle's fp32 file beside it, and how they agree with it.

    Args:
        folder: holds model.onnx.
        model: the trained model, on the CPU.
        validation: the texts to measure on, none without tokens.
        metadata: strings to store in the files.
        thresholds: float32 [classes], of a multi-label model.
    """
    _quantize(folder / FILES["fp32"], folder / FILES["int8"])
    onnx.save(build_graph(model, metadata=metadata, half=True), folder / FILES["fp16"])
    report: dict[str, Any] = {}
    for precision, device in DEVICES.items():
        try:
            found = measure(folder, precision, device, validation, thresholds) if len(validation) else None
            agreement = asdict(found) if found else None
            report[precision] = {"agreement": agreement, "not_measured": None if agreement else "no validation texts"}
        except DeviceError as error:
            report[precision] = {"agreement": None, "not_measured": str(error)}
    write_json(folder / REPORT, report)


def _quantize(source: Path, target: Path) -> None:
    proto = onnx.load(source)
    # ONNX Runtime asks for its own preparation (shapes, fusions); a graph written for it needs none.
    kept = {entry.key: entry.value for entry in proto.metadata_props}
    onnx.helper.set_model_props(proto, {**kept, "onnx.quant.pre_process": "onnxruntime.quant"})
    quantize_dynamic(proto, target, op_types_to_quantize=["LSTM"], per_channel=True, weight_type=QuantType.QInt8)


def measure(
    folder: Path, precision: str, device: str, texts: TokenSet, thresholds: NDArray[np.float32] | None = None
) -> Agreement:
    """Run a variant and fp32 over the same texts, on the same device.

    Raises:
        DeviceError: the device is not there.
    """
    if device == "cuda":
        obstacle = cuda_obstacle()
        if obstacle:
            raise DeviceError(f"needs a GPU: {obstacle}")
    names = ("fp32", precision)
    with ExitStack() as stack:
        engines = {name: stack.enter_context(opened(folder / FILES[name], device=device)) for name in names}
        results = {name: engines[name].probabilities(texts.tokens) for name in names}
        sample = texts.tokens.first(TIMED_TOKENS)
        seconds = {name: min(_seconds(engines[name], sample) for _ in range(TIMED_ROUNDS)) for name in names}
        measured_on = engines["fp32"].device.name
    speed = seconds["fp32"] / seconds[precision]
    return compare(
        results["fp32"], results[precision], texts.targets() > 0, thresholds, speed=speed, device=measured_on
    )


def _seconds(engine: Engine, tokens: TokenLists) -> float:
    started = time.perf_counter()
    engine.probabilities(tokens)
    return time.perf_counter() - started


def compare(
    fp32: NDArray[np.float32],
    variant: NDArray[np.float32],
    targets: NDArray[np.bool_],
    thresholds: NDArray[np.float32] | None = None,
    *,
    speed: float,
    device: str,
) -> Agreement:
    """Compare probabilities [texts, classes] of a variant with those of fp32."""
    if np.isnan(variant).any():
        raise ModelError("the variant gives no probabilities (NaN)")
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


@dataclass(frozen=True)
class Choice:
    """The precision to score in, and why."""

    precision: str
    reason: str


def choose_precision(wanted: str, report: Mapping[str, Any], *, on_gpu: bool, title: str) -> Choice:
    """Return the precision to score in.

    Args:
        wanted: "auto", "fp32", "int8" or "fp16".
        report: what `variants.json` of the bundle says; empty for a bundle without variants.
        on_gpu: whether CUDA runs the model.
        title: the bundle, for messages.

    Raises:
        ModelError: the bundle has no such variant.
        DeviceError: the variant does not run on this device.
    """
    if wanted == "fp32":
        return Choice("fp32", "as asked for")
    here = "cuda" if on_gpu else "cpu"
    if wanted == "auto":
        wanted = next(precision for precision, device in DEVICES.items() if device == here)
        objection = _objection(wanted, report)
        if objection:
            return Choice("fp32", f"{wanted} is not used: {objection}")
        agreement = report[wanted]["agreement"]
        return Choice(
            wanted,
            f"{agreement['equal_labels']:.2%} of {agreement['texts']:,} validation texts get the label of fp32, "
            f"{agreement['speed']:.1f} times as fast when it was measured",
        )
    if wanted not in report:
        there = ", ".join(["fp32", *report])
        raise ModelError(f"{title} has no {wanted} variant (there: {there}); train again, or use --precision fp32")
    if DEVICES[wanted] != here:
        raise DeviceError(f"{wanted} runs on {DEVICES[wanted]} only, and this is {here}; use --precision auto")
    return Choice(wanted, "as asked for")


def _objection(precision: str, report: Mapping[str, Any]) -> str | None:
    """Return why a variant must not stand in for fp32, or None."""
    if precision not in report:
        return "the bundle has none; train again to get it"
    agreement = report[precision]["agreement"]
    if agreement is None:
        return f"its agreement with fp32 was not measured ({report[precision]['not_measured']})"
    if agreement["equal_labels"] < LEAST_EQUAL_LABELS:
        return f"{agreement['equal_labels']:.2%} of its labels equal those of fp32 ({LEAST_EQUAL_LABELS:.1%} needed)"
    lost = agreement["fp32_macro_f1"] - agreement["macro_f1"]
    if lost > MOST_F1_LOST:
        return f"it loses {100 * lost:.2f} points of macro-F1 (at most {100 * MOST_F1_LOST:.1f} allowed)"
    if agreement["speed"] < 1:
        return f"it was {agreement['speed']:.2f} times as fast as fp32 when it was measured"
    return None
