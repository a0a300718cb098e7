"""Which variant of a model to score with: fp32, int8 on CPUs or fp16 on CUDA."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.errors import DeviceError, ModelError

VARIANT_FILES = {"fp32": "model.onnx", "int8": "model.int8.onnx", "fp16": "model.fp16.onnx"}
VARIANT_DEVICES = {"int8": "cpu", "fp16": "cuda"}  # where a variant runs; fp32 runs on both
VARIANTS_FILE = "variants.json"

MIN_EQUAL_LABELS = 0.995
MAX_F1_LOSS = 0.002


@dataclass(frozen=True)
class VariantChoice:
    """The variant to score with, and why."""

    variant: str
    reason: str


def choose_variant(requested: str, report: Mapping[str, Any], *, on_gpu: bool, title: str) -> VariantChoice:
    """Return the variant to score with.

    Args:
        requested: "auto", "fp32", "int8" or "fp16"; "auto" takes the device's variant if its labels agree with fp32.
        report: content of the bundle's `variants.json`; empty for a bundle without variants.
        on_gpu: whether CUDA runs the model.
        title: the bundle, for messages.

    Raises:
        ModelError: the bundle has no such variant.
        DeviceError: the variant does not run on this device.
    """
    if requested == "fp32":
        return VariantChoice("fp32", "as requested")
    device = "cuda" if on_gpu else "cpu"
    if requested == "auto":
        variant = next(name for name, runs_on in VARIANT_DEVICES.items() if runs_on == device)
        objection = _objection(variant, report)
        if objection:
            return VariantChoice("fp32", f"{variant} is not used: {objection}")
        agreement = report[variant]["agreement"]
        return VariantChoice(
            variant,
            f"{agreement['equal_labels']:.2%} of {agreement['texts']:,} validation texts get the label of fp32, "
            f"{agreement['speed']:.1f} times as fast when it was measured",
        )
    if requested not in report:
        names = ", ".join(["fp32", *report])
        raise ModelError(f"{title} has no {requested} variant (there: {names}); train again, or use --variant fp32")
    if VARIANT_DEVICES[requested] != device:
        raise DeviceError(
            f"{requested} runs on {VARIANT_DEVICES[requested]} only, and this is {device}; use --variant auto"
        )
    return VariantChoice(requested, "as requested")


def _objection(variant: str, report: Mapping[str, Any]) -> str | None:
    """Return why a variant must not replace fp32, or None."""
    if variant not in report:
        return "the bundle has none; train again to get it"
    agreement = report[variant]["agreement"]
    if agreement is None:
        return f"its agreement with fp32 was not measured ({report[variant]['not_measured']})"
    if agreement["equal_labels"] < MIN_EQUAL_LABELS:
        return f"{agreement['equal_labels']:.2%} of its labels equal those of fp32 ({MIN_EQUAL_LABELS:.1%} needed)"
    loss = agreement["fp32_macro_f1"] - agreement["macro_f1"]
    if loss > MAX_F1_LOSS:
        return f"it loses {100 * loss:.2f} points of macro-F1 (at most {100 * MAX_F1_LOSS:.1f} allowed)"
    if agreement["speed"] < 1:
        return f"it was {agreement['speed']:.2f} times as fast as fp32 when it was measured"
    return None
