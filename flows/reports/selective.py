"""What a promised precision means, for the reports: how many rows are labelled, and whether the promise is kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flows.reports.markdown import percent, table
from pipeline.metrics.selective import POLICY_ALPHA, SelectivePolicy, SelectiveResult, min_sample_size, violated_classes
from pipeline.nights.coverage import night_coverage

if TYPE_CHECKING:
    from pipeline.metrics.predictions import Predictions
    from pipeline.models.bundle import Bundle
    from pipeline.nights.summary import LabelledNight

LISTED_CLASSES = 12


def policy_section(bundle: Bundle) -> str:
    """Return what a version can promise, as Markdown; "" for one from before promises were kept."""
    predictions, config = bundle.predictions, bundle.selective_config
    if predictions is None or not len(predictions["validation"]):
        return ""
    policies = bundle.policies()
    parts = ["### What it can promise"]
    if config.target_precision:
        policy = policies[config.target_precision]
        parts += [
            policy_sentence(policy, predictions),
            *_broken(policy, predictions["test"], bundle.labels),
            *_kept_back(policy, bundle.labels),
        ]
    else:
        parts.append(
            "No precision is promised: rows below a confidence of 0.5 go to review. Ask for one with "
            "`nightlabel train --target-precision 0.95`, or of this version with `nightlabel score --target-precision`."
        )
    header = ["precision", "from confidence", "validation texts labelled", "test texts labelled", "right", "on test"]
    parts.append(table(header, (_line(policy, predictions) for policy in policies.values())))
    parts.append(
        f"Each threshold was shown on the {len(predictions['validation']):,} validation texts to keep its "
        f"precision with {100 * (1 - POLICY_ALPHA):g} % confidence, by an exact binomial test."
    )
    parts += [_last_night(bundle.metrics.get("last_night")), none_line(bundle, policies)]
    return "\n\n".join(part for part in parts if part)


def _last_night(foreseen: Mapping[str, Any] | None) -> str:
    if not foreseen:
        return ""
    shares = ", ".join(f"{percent(share)} at {target}" for target, share in foreseen["shares"].items())
    return f"Of last night, {foreseen['batch']}, it would label {shares} ({foreseen['rows']:,} of its texts)."


def policy_sentence(policy: SelectivePolicy, predictions: Mapping[str, Predictions]) -> str:
    """Return what is promised, what it costs, and whether the test split bears it out."""
    whose = "the labelled rows" if policy.per == "all" else "the labelled rows of each class"
    shown, tested = (SelectiveResult.of(policy, predictions[split]) for split in ("validation", "test"))
    if not shown.labelled:
        return (
            f"**A precision of {policy.target:g} cannot be promised**: no threshold was shown to keep it, so every "
            "row goes to review. Label more texts, or promise less."
        )
    line = f"It promises that {policy.target:g} of {whose} are right; it labels {percent(shown.coverage)} of the texts."
    verdict = tested.verdict(policy.target)
    if verdict == "violated":
        line += f" **It is violated on the test split**: {_told(tested)}, and that is no chance."
    elif verdict == "within noise":
        line += f" On the test split it is missed within noise: {_told(tested)}."
    elif verdict:
        line += f" On the test split it is met: {_told(tested)}."
    return line


def _told(outcome: SelectiveResult) -> str:
    return f"{percent(outcome.precision)} of {outcome.labelled:,} labelled texts are right"


def _broken(policy: SelectivePolicy, tested: Predictions, labels: list[str]) -> list[str]:
    """Return of which classes a promise that was made for each is broken."""
    broken = violated_classes(policy, tested) if policy.per == "class" else {}
    told = ", ".join(f"{labels[number]} ({_told(outcome)})" for number, outcome in broken.items())
    return [f"**Broken on the test split** for {told}."] if told else []


def _kept_back(policy: SelectivePolicy, labels: list[str]) -> list[str]:
    back = policy.abstained_classes
    if not back or len(back) == len(labels):
        return []
    named = ", ".join(labels[number] for number in back[:LISTED_CLASSES])
    more = f" and {len(back) - LISTED_CLASSES} more" if len(back) > LISTED_CLASSES else ""
    why = (
        "no threshold keeps it, or nothing is known of them" if policy.per == "class" else "no validation text has them"
    )
    return [f"Of {len(back)} of {len(labels)} classes every row goes to review, because {why}: {named}{more}."]


def _line(policy: SelectivePolicy, predictions: Mapping[str, Predictions]) -> tuple[object, ...]:
    shown, tested = (SelectiveResult.of(policy, predictions[split]) for split in ("validation", "test"))
    verdict = tested.verdict(policy.target)
    needed = min_sample_size(policy.target)
    why = f"takes {needed:,} texts" if shown.texts < needed else "nowhere"
    finite = [float(value) for value in policy.thresholds if value <= 1]
    low, high = (f"{100 * value:.1f} %" for value in (min(finite, default=0.0), max(finite, default=0.0)))
    return (
        f"{policy.target:g}",
        (low if low == high else f"{low} to {high}") if finite else why,
        percent(shown.coverage),
        percent(tested.coverage),
        percent(tested.precision),
        "**violated**" if verdict == "violated" else verdict,
    )


def none_line(bundle: Bundle, policies: Mapping[float, SelectivePolicy]) -> str:
    """Return how many texts of none of the classes each promise labels; "" where there are no examples of them."""
    name, predictions = bundle.selective_config.none_label, bundle.predictions
    if predictions is None or name not in bundle.labels:
        return ""
    none_class = bundle.labels.index(name)
    split = "test" if (predictions["test"].truth == none_class).any() else "validation"
    texts = predictions[split].subset(predictions[split].truth == none_class)
    shares = []
    for target, policy in policies.items():
        wrongly = policy.labelled(texts) & (texts.predicted != none_class)
        shares.append(f"{percent(float(wrongly.mean()) if len(texts) else None)} at {target:g}")
    return f"Of the {len(texts):,} {split} texts of {name}, labelled as one of the other classes: {', '.join(shares)}."


def night_promise(night: LabelledNight, bundle: Bundle) -> list[str]:
    """Return how much of a night each promise would label, as paragraphs."""
    if bundle.predictions is None or not night.non_empty or not len(bundle.predictions["validation"]):
        return []
    policies = bundle.policies()
    shares = night_coverage(night, bundle, policies)
    if not shares:
        return []
    promised = (night.manifest.get("promise") or {}).get("target")
    cells = [f"**{percent(share)}**" if target == promised else percent(share) for target, share in shares.items()]
    return [
        "So much of tonight's texts would be labelled at each precision; the others would go to review:",
        table(["at a precision of", *(f"{target:g}" for target in policies)], [("rows labelled", *cells)]),
    ]


def target_precision_line(promised: Mapping[str, Any] | None) -> str:
    """Return what a labels manifest promises of its labelled rows, in a sentence; "" for nothing."""
    if not promised:
        return ""
    target, tested = promised["target"], SelectiveResult(**promised["test"])
    whose = "the labelled rows" if promised["per"] == "all" else "the labelled rows of each class"
    line = f"Promised: {percent(target)} of {whose} are right."
    verdict = tested.verdict(target)
    if not promised["validation"]["labelled"]:
        return f"**A precision of {target:g} could not be promised**, so every row went to review."
    if verdict == "violated":
        return f"{line} **On the test split that is violated**: {_told(tested)}."
    return f"{line} On the test split {_told(tested)}." if verdict else line
