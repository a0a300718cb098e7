"""What a promised precision means, for the reports: how many rows are labelled, and whether the promise is kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flows.reports.markdown import percent, table
from pipeline.metrics.selective import DOUBT, Outcome, Promise, broken_classes, fewest_texts
from pipeline.nights.coverage import labelled_shares

if TYPE_CHECKING:
    from pipeline.metrics.predictions import Claims
    from pipeline.models.bundle import Bundle
    from pipeline.nights.summary import LabelledNight

LISTED_CLASSES = 12


def promise_section(bundle: Bundle) -> str:
    """Return what a version can promise, as Markdown; "" for one from before promises were kept."""
    claims, config = bundle.claims, bundle.promise_config
    if claims is None or not len(claims["validation"]):
        return ""
    promises = bundle.promises()
    parts = ["### What it can promise"]
    if config.target_precision:
        promise = promises[config.target_precision]
        parts += [
            promise_sentence(promise, claims),
            *_broken(promise, claims["test"], bundle.labels),
            *_kept_back(promise, bundle.labels),
        ]
    else:
        parts.append(
            "No precision is promised: rows below a confidence of 0.5 go to review. Ask for one with "
            "`nightlabel train --target-precision 0.95`, or of this version with `nightlabel score --target-precision`."
        )
    header = ["precision", "from confidence", "validation texts labelled", "test texts labelled", "right", "on test"]
    parts.append(table(header, (_line(promise, claims) for promise in promises.values())))
    parts.append(
        f"Each threshold was shown on the {len(claims['validation']):,} validation texts to keep its precision with "
        f"{100 * (1 - DOUBT):g} % confidence, by an exact binomial test."
    )
    parts += [_last_night(bundle.metrics.get("last_night")), none_line(bundle, promises)]
    return "\n\n".join(part for part in parts if part)


def _last_night(foreseen: Mapping[str, Any] | None) -> str:
    if not foreseen:
        return ""
    shares = ", ".join(f"{percent(share)} at {target}" for target, share in foreseen["shares"].items())
    return f"Of last night, {foreseen['batch']}, it would label {shares} ({foreseen['rows']:,} of its texts)."


def promise_sentence(promise: Promise, claims: Mapping[str, Claims]) -> str:
    """Return what is promised, what it costs, and whether the test split bears it out."""
    whose = "the labelled rows" if promise.per == "all" else "the labelled rows of each class"
    shown, tested = (Outcome.of(promise, claims[split]) for split in ("validation", "test"))
    if not shown.labelled:
        return (
            f"**A precision of {promise.target:g} cannot be promised**: no threshold was shown to keep it, so every "
            "row goes to review. Label more texts, or promise less."
        )
    line = (
        f"It promises that {promise.target:g} of {whose} are right; it labels {percent(shown.coverage)} of the texts."
    )
    verdict = tested.verdict(promise.target)
    if verdict == "broken":
        line += f" **The promise is broken on the test split**: {_told(tested)}, and that is no chance."
    elif verdict == "missed":
        line += f" On the test split it is just missed: {_told(tested)}, which chance explains."
    elif verdict:
        line += f" On the test split it is kept: {_told(tested)}."
    return line


def _told(outcome: Outcome) -> str:
    return f"{percent(outcome.precision)} of {outcome.labelled:,} labelled texts are right"


def _broken(promise: Promise, tested: Claims, labels: list[str]) -> list[str]:
    """Return of which classes a promise that was made for each is broken."""
    broken = broken_classes(promise, tested) if promise.per == "class" else {}
    told = ", ".join(f"{labels[number]} ({_told(outcome)})" for number, outcome in broken.items())
    return [f"**Broken on the test split** for {told}."] if told else []


def _kept_back(promise: Promise, labels: list[str]) -> list[str]:
    back = promise.kept_back
    if not back or len(back) == len(labels):
        return []
    named = ", ".join(labels[number] for number in back[:LISTED_CLASSES])
    more = f" and {len(back) - LISTED_CLASSES} more" if len(back) > LISTED_CLASSES else ""
    why = (
        "no threshold keeps it, or nothing is known of them"
        if promise.per == "class"
        else "no validation text has them"
    )
    return [f"Of {len(back)} of {len(labels)} classes every row goes to review, because {why}: {named}{more}."]


def _line(promise: Promise, claims: Mapping[str, Claims]) -> tuple[object, ...]:
    shown, tested = (Outcome.of(promise, claims[split]) for split in ("validation", "test"))
    needed = fewest_texts(promise.target)
    why = f"takes {needed:,} texts" if shown.texts < needed else "nowhere"
    finite = [float(value) for value in promise.thresholds if value <= 1]
    low, high = (f"{100 * value:.1f} %" for value in (min(finite, default=0.0), max(finite, default=0.0)))
    return (
        f"{promise.target:g}",
        (low if low == high else f"{low} to {high}") if finite else why,
        percent(shown.coverage),
        percent(tested.coverage),
        percent(tested.precision),
        {"broken": "**broken**"}.get(tested.verdict(promise.target), tested.verdict(promise.target)),
    )


def none_line(bundle: Bundle, promises: Mapping[float, Promise]) -> str:
    """Return how many texts of none of the classes each promise labels; "" where there are no examples of them."""
    name, claims = bundle.promise_config.none_label, bundle.claims
    if claims is None or name not in bundle.labels:
        return ""
    none = bundle.labels.index(name)
    split = "test" if (claims["test"].truth == none).any() else "validation"
    texts = claims[split].where(claims[split].truth == none)
    shares = []
    for target, promise in promises.items():
        wrongly = promise.labelled(texts) & (texts.predicted != none)
        shares.append(f"{percent(float(wrongly.mean()) if len(texts) else None)} at {target:g}")
    return f"Of the {len(texts):,} {split} texts of {name}, labelled as one of the other classes: {', '.join(shares)}."


def night_promise(night: LabelledNight, bundle: Bundle) -> list[str]:
    """Return how much of a night each promise would label, as paragraphs."""
    if bundle.claims is None or not night.spoken or not len(bundle.claims["validation"]):
        return []
    promises = bundle.promises()
    shares = labelled_shares(night, bundle, promises)
    if not shares:
        return []
    promised = (night.manifest.get("promise") or {}).get("target")
    cells = [f"**{percent(share)}**" if target == promised else percent(share) for target, share in shares.items()]
    return [
        "So much of tonight's texts would be labelled at each precision; the others would go to review:",
        table(["at a precision of", *(f"{target:g}" for target in promises)], [("rows labelled", *cells)]),
    ]


def promise_line(promised: Mapping[str, Any] | None) -> str:
    """Return what a labels manifest promises of its labelled rows, in a sentence; "" for nothing."""
    if not promised:
        return ""
    target, tested = promised["target"], Outcome(**promised["test"])
    whose = "the labelled rows" if promised["per"] == "all" else "the labelled rows of each class"
    line = f"Promised: {percent(target)} of {whose} are right."
    verdict = promised["on_test"]
    if not promised["validation"]["labelled"]:
        return f"**A precision of {target:g} could not be promised**, so every row went to review."
    if verdict == "broken":
        return f"{line} **On the test split that promise is broken**: {_told(tested)}."
    return f"{line} On the test split {_told(tested)}." if verdict else line
