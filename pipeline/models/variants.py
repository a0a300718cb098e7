"""The same model in fewer bits: int8 for CPUs, half precision for CUDA, and whether their labels can be trusted."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.errors import DeviceError, ModelError

VARIANT_FILES = {"fp32": "model.onnx", "int8": "model.int8.onnx", "fp16": "model.fp16.onnx"}
VARIANT_DEVICES = {"int8": "cpu", "fp16": "cuda"}  # where a variant runs; fp32 runs on both
VARIANTS_FILE = "variants.json"

LEAST_EQUAL_LABELS = 0.995
MOST_F1_LOST = 0.002


@dataclass(frozen=True)
class VariantChoice:
    """The precision to score in, and why."""

    precision: str
    reason: str


def choose_variant(requested: str, report: Mapping[str, Any], *, on_gpu: bool, title: str) -> VariantChoice:
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
    if requested == "fp32":
        return VariantChoice("fp32", "as asked for")
    here = "cuda" if on_gpu else "cpu"
    if requested == "auto":
        requested = next(precision for precision, device in VARIANT_DEVICES.items() if device == here)
        objection = _objection(requested, report)
        if objection:
            return VariantChoice("fp32", f"{requested} is not used: {objection}")
        agreement = report[requested]["agreement"]
        return VariantChoice(
            requested,
            f"{agreement['equal_labels']:.2%} of {agreement['texts']:,} validation texts get the label of fp32, "
            f"{agreement['speed']:.1f} times as fast when it was measured",
        )
    if requested not in report:
        there = ", ".join(["fp32", *report])
        raise ModelError(f"{title} has no {requested} variant (there: {there}); train again, or use --precision fp32")
    if VARIANT_DEVICES[requested] != here:
        raise DeviceError(
            f"{requested} runs on {VARIANT_DEVICES[requested]} only, and this is {here}; use --precision auto"
        )
    return VariantChoice(requested, "as asked for")


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
