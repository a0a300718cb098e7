"""Two versions beside each other, as Markdown: the tables that a promotion is judged by."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flows.reports.markdown import embedded, first_words, percent, table
from pipeline.metrics.significance import SIGNIFICANCE_LEVEL

if TYPE_CHECKING:  # these bring PyTorch along
    from pipeline.promotion.churn import Churn
    from pipeline.promotion.comparison import ClassChange, Comparison, PairedEvaluation
    from pipeline.promotion.register import Registration
    from pipeline.promotion.rule import Decision

MOST_CLASSES = 12


def comparison_report(comparison: Comparison, decision: Decision, promotion_rule: str, *, pictures: bool) -> str:
    """Return two versions beside each other, and whether the second would replace the first.

    Args:
        comparison: of the two.
        decision: what the rule says of it.
        rule: the rule, as a sentence.
        pictures: embed the figure (for the UI; a terminal cannot show it).
    """
    verdict = "passes" if decision.promoted else "does **not** pass"
    parts = [
        f"## {comparison.challenger} beside {comparison.champion}",
        f"By the rule {comparison.challenger} {verdict}: {decision.reason}.",
        promotion_rule,
        *_sections(comparison),
    ]
    if pictures and comparison.tested:
        from pipeline.promotion.plots import class_changes

        parts.append(embedded(class_changes(comparison), "F1 of each class, champion and challenger"))
    return "\n\n".join(parts)


def comparison_section(publication: Registration) -> str:
    """Return the part of a model's report about the champion of its day; nothing where there was none."""
    from pipeline.promotion.rule import promotion_rule

    comparison = publication.comparison
    if comparison is None:
        return ""
    told = promotion_rule(**publication.bundle.promotion_config.model_dump())
    return "\n\n".join([f"### Beside {comparison.champion}", told, *_sections(comparison)])


def _sections(comparison: Comparison) -> list[str]:
    parts = [_left_out(comparison)]
    if comparison.tested:
        parts += [_overall(comparison, comparison.tested), _classes(comparison.tested), _moved(comparison.tested)]
    elif not comparison.same_classes:
        parts.append("The classes differ, so there is no score that both can have.")
    else:
        parts.append("No test text is left that both can be tested on.")
    parts.append(_flips(comparison.flips, comparison))
    return [part for part in parts if part]


def _left_out(comparison: Comparison) -> str:
    lines = list(comparison.notes)
    if comparison.left_out:
        lines.append(
            f"{comparison.left_out:,} test texts of {comparison.challenger} are left out, because "
            f"{comparison.champion} learnt from them."
        )
    if comparison.unreadable:
        lines.append(f"{comparison.unreadable:,} empty test texts are left out.")
    return "\n".join(lines)


def _overall(comparison: Comparison, tested: PairedEvaluation) -> str:
    difference = tested.difference
    rows: list[tuple[object, ...]] = [
        (f"macro-F1 of {comparison.champion}", percent(tested.before)),
        (f"macro-F1 of {comparison.challenger}", percent(tested.after)),
        ("difference, points", _points(difference.value)),
        ("95 % interval of it", f"{_points(difference.low)} to {_points(difference.high)}"),
        ("it is more than, with 95 % confidence", _points(tested.at_least)),
        ("probability that it is worse", percent(tested.probability_worse)),
    ]
    return table([f"{tested.n:,} test texts, the same for both", ""], rows)


def _points(difference: float) -> str:
    from pipeline.promotion.rule import points

    return points(difference)


def _classes(tested: PairedEvaluation) -> str:
    """Return the classes, those that changed most first."""
    listed = sorted(tested.classes, key=lambda one: (-abs(one.change.value), one.label))[:MOST_CLASSES]
    rows = [
        (
            one.label,
            f"{percent(one.before.f1)} → {percent(one.after.f1)}",
            f"{_points(one.change.value)} ({_points(one.change.low)} to {_points(one.change.high)}){_beyond(one)}",
            f"{percent(one.before.precision)} → {percent(one.after.precision)}",
            f"{percent(one.before.recall)} → {percent(one.after.recall)}",
            one.support,
        )
        for one in listed
    ]
    left = len(tested.classes) - len(listed)
    lines = [f"{left} that changed less are in the bundle's `comparison.json`."] if left else []
    if len(tested.classes) > 2:
        lines.append(
            "Each interval stands for itself; worse beyond chance is what an exact test finds that reckons with all "
            f"{len(tested.classes)} classes at once."
        )
    text = table(["class", "F1", "change, points (95 % interval)", "precision", "recall", "test texts"], rows)
    return "\n\n".join([text, " ".join(lines)] if lines else [text])


def _beyond(one: ClassChange) -> str:
    return ", **worse beyond chance**" if one.change.value < 0 and one.chance < SIGNIFICANCE_LEVEL else ""


def _moved(tested: PairedEvaluation) -> str:
    rows = [(one.truth, one.given, one.before, one.after, f"{one.after - one.before:+d}") for one in tested.moved]
    return table(["true class", "given instead", "champion", "challenger", "change"], rows) if rows else ""


def _flips(flips: Churn | None, comparison: Comparison) -> str:
    if flips is None:
        return "No labelled night that neither version learnt from: what would change in one is not known."
    sampled = f", evenly spread over its {flips.documents:,} documents" if flips.rows < flips.documents else ""
    lines = [
        f"**{percent(flips.share)} of the labels of {flips.batch} would be others**: "
        f"{flips.changed:,} of {flips.rows:,} rows{sampled}."
    ]
    if flips.most:
        rows = [(_label(one.before), _label(one.after), one.rows) for one in flips.most]
        lines.append(table([comparison.champion, comparison.challenger, "rows"], rows))
        examples = [
            (
                one.doc_id,
                f"{_label(one.before)} ({percent(one.sure_before)})",
                f"{_label(one.after)} ({percent(one.sure_after)})",
                first_words(one.text),
            )
            for one in flips.examples
        ]
        lines.append(table(["document", comparison.champion, comparison.challenger, "text"], examples))
    return "\n\n".join(lines)


def _label(name: str) -> str:
    return name or "(empty text)"
