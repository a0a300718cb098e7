"""Selective classification in the reports: target precision, coverage, and whether the test split meets the target."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flows.reports.markdown import percent, table
from pipeline.metrics.selective import POLICY_ALPHA, SelectivePolicy, SelectiveResult, min_sample_size, violated_classes

if TYPE_CHECKING:
    from pipeline.metrics.predictions import Predictions
    from pipeline.models.bundle import Bundle
    from pipeline.nights.summary import LabelledNight

LISTED_CLASSES = 12


def policy_section(bundle: Bundle) -> str:
    """Return the coverage of a version at each target precision, as Markdown; "" for one without predictions."""
    predictions, config = bundle.predictions, bundle.selective_config
    if predictions is None or not len(predictions["validation"]):
        return ""
    policies = bundle.policies()
    parts = ["### Target precision"]
    if config.target_precision:
        parts += _configured_policy(policies[config.target_precision], predictions, bundle.labels)
    else:
        parts.append(
            "No target precision is set: rows below a confidence of 0.5 go to review. Set one with "
            "`nightlabel train --target-precision 0.95`, or of this version with `nightlabel score --target-precision`."
        )
    header = ["target", "from confidence", "validation coverage", "test coverage", "test precision", "on test"]
    parts.append(table(header, (_policy_row(policy, predictions) for policy in policies.values())))
    parts.append(
        f"An exact binomial test on the {len(predictions['validation']):,} validation texts proves each threshold with "
        f"{100 * (1 - POLICY_ALPHA):g} % confidence."
    )
    if expected := bundle.metrics.get("last_night"):
        shares = ", ".join(f"{percent(share)} at {target}" for target, share in expected["shares"].items())
        parts.append(f"Expected coverage of last night, {expected['batch']}: {shares} ({expected['rows']:,} texts).")
    return "\n\n".join(part for part in [*parts, none_line(bundle, policies)] if part)


def policy_sentence(policy: SelectivePolicy, predictions: Mapping[str, Predictions]) -> str:
    """Return a target precision, its coverage, and whether the test split meets the target."""
    labelled_rows = _labelled_rows(policy.per)
    validation, test = (SelectiveResult.of(policy, predictions[split]) for split in ("validation", "test"))
    if not validation.labelled:
        return (
            f"**A target precision of {policy.target:g} is not reached**: no threshold proves it, so every row goes to "
            "review. Label more texts, or lower the target."
        )
    return (
        f"Target: {policy.target:g} of {labelled_rows} are right, at a coverage of {percent(validation.coverage)} of "
        f"the validation texts.{_verdict_sentence(policy.target, test)}"
    )


def target_precision_line(policy: Mapping[str, Any] | None) -> str:
    """Return the target precision of a labels manifest, and whether the test split meets it; "" without a target."""
    if not policy:
        return ""
    if not policy["validation"]["labelled"]:
        return f"**A target precision of {policy['target']:g} is not reached**, so every row went to review."
    verdict = _verdict_sentence(policy["target"], SelectiveResult(**policy["test"]))
    return f"Target: {percent(policy['target'])} of {_labelled_rows(policy['per'])} are right.{verdict}"


def _labelled_rows(per: str) -> str:
    return "the labelled rows" if per == "all" else "the labelled rows of each class"


def _verdict_sentence(target: float, test: SelectiveResult) -> str:
    verdicts = {"within noise": "missed within noise", "violated": "**violated**, beyond chance"}
    verdict = test.verdict(target)
    return f" On the test split it is {verdicts.get(verdict, verdict)}: {_right_share(test)}." if verdict else ""


def _right_share(result: SelectiveResult) -> str:
    return f"{percent(result.precision)} of {result.labelled:,} labelled texts are right"


def _configured_policy(policy: SelectivePolicy, predictions: Mapping[str, Predictions], labels: list[str]) -> list[str]:
    """Return the sentence of a policy, the classes that violate it, and the classes that it abstains from."""
    sentences = [policy_sentence(policy, predictions)]
    if policy.per == "class" and (violated := violated_classes(policy, predictions["test"])):
        listed = ", ".join(f"{labels[number]} ({_right_share(result)})" for number, result in violated.items())
        sentences.append(f"**Violated on the test split** for {listed}.")
    abstained = policy.abstained_classes
    if abstained and len(abstained) < len(labels):
        listed = ", ".join(labels[number] for number in abstained[:LISTED_CLASSES])
        if len(abstained) > LISTED_CLASSES:
            listed += f" and {len(abstained) - LISTED_CLASSES} more"
        why = (
            "no threshold proves the target, or no validation text has them"
            if policy.per == "class"
            else "no validation text has them"
        )
        sentences.append(
            f"All rows of {len(abstained)} of {len(labels)} classes go to review, because {why}: {listed}."
        )
    return sentences


def _policy_row(policy: SelectivePolicy, predictions: Mapping[str, Predictions]) -> tuple[object, ...]:
    validation, test = (SelectiveResult.of(policy, predictions[split]) for split in ("validation", "test"))
    thresholds = [f"{100 * float(value):.1f} %" for value in sorted(policy.thresholds) if value <= 1]
    if thresholds:
        confidence = thresholds[0] if thresholds[0] == thresholds[-1] else f"{thresholds[0]} to {thresholds[-1]}"
    else:
        needed = min_sample_size(policy.target)
        confidence = f"takes {needed:,} texts" if validation.texts < needed else "none"
    verdict = test.verdict(policy.target)
    return (
        f"{policy.target:g}",
        confidence,
        percent(validation.coverage),
        percent(test.coverage),
        percent(test.precision),
        f"**{verdict}**" if verdict == "violated" else verdict,
    )


def none_line(bundle: Bundle, policies: Mapping[float, SelectivePolicy]) -> str:
    """Return the share of texts of no class that each policy labels; "" without examples of them."""
    name, predictions = bundle.selective_config.none_label, bundle.predictions
    if predictions is None or name not in bundle.labels:
        return ""
    none_class = bundle.labels.index(name)
    split = "test" if (predictions["test"].truth == none_class).any() else "validation"
    texts, of_none = predictions[split], predictions[split].truth == none_class
    shares = []
    for target, policy in policies.items():
        wrong = (policy.labelled(texts) & (texts.predicted != none_class))[of_none]
        shares.append(f"{percent(float(wrong.mean()) if len(wrong) else None)} at {target:g}")
    return (
        f"Of the {of_none.sum():,} {split} texts of {name}, labelled as one of the other classes: {', '.join(shares)}."
    )


def expected_coverage_section(night: LabelledNight, bundle: Bundle) -> list[str]:
    """Return the coverage of a night at each target precision, as paragraphs."""
    if bundle.predictions is None or not night.non_empty or not len(bundle.predictions["validation"]):
        return []
    from pipeline.nights.coverage import night_coverage

    policies = bundle.policies()
    shares = night_coverage(night, bundle, policies)
    if not shares:
        return []
    used = (night.manifest.get("promise") or {}).get("target")
    cells = [f"**{percent(share)}**" if target == used else percent(share) for target, share in shares.items()]
    return [
        "Expected coverage of tonight's texts at each target precision; the others would go to review:",
        table(["target precision", *(f"{target:g}" for target in policies)], [("rows labelled", *cells)]),
    ]
