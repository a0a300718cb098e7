"""The same model in fewer bits: int8 for CPUs, half precision for CUDA, and whether their labels can be trusted."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.errors import DeviceError, ModelError

FILES = {"fp32": "model.onnx", "int8": "model.int8.onnx", "fp16": "model.fp16.onnx"}
DEVICES = {"int8": "cpu", "fp16": "cuda"}  # where a variant runs; fp32 runs on both
REPORT = "variants.json"

LEAST_EQUAL_LABELS = 0.995
MOST_F1_LOST = 0.002


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
