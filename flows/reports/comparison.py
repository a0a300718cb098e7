"""The report of a comparison: scores of champion and challenger, and how a promotion is decided."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flows.reports.markdown import embedded, first_words, percent, table
from pipeline.metrics.significance import SIGNIFICANCE_LEVEL
from pipeline.promotion.rule import points, promotion_rule

if TYPE_CHECKING:  # these bring PyTorch along
    from pipeline.promotion.comparison import Comparison, PairedEvaluation
    from pipeline.promotion.rule import Decision, Registration

LISTED_CLASSES = 12


def comparison_report(comparison: Comparison, decision: Decision, rule: str, *, pictures: bool) -> str:
    """Return the comparison of two versions, and whether the second would replace the first.

    Args:
        comparison: of the two.
        decision: by the rule.
        rule: the rule, as a sentence.
        pictures: embed the figure (for the UI; a terminal cannot show it).
    """
    verdict = "passes" if decision.promoted else "does **not** pass"
    parts = [
        f"## {comparison.challenger} compared with {comparison.champion}",
        f"By the rule {comparison.challenger} {verdict}: {decision.reason}.",
        rule,
        *_sections(comparison),
    ]
    if pictures and comparison.tested:
        from pipeline.promotion.plots import class_changes

        parts.append(embedded(class_changes(comparison), "F1 of each class, champion and challenger"))
    return "\n\n".join(parts)


def comparison_section(registration: Registration) -> str:
    """Return the section of a model's report about the champion at its registration; "" without a champion."""
    comparison = registration.comparison
    if comparison is None:
        return ""
    rule = promotion_rule(**registration.bundle.promotion_config.model_dump())
    return "\n\n".join([f"### Compared with {comparison.champion}", rule, *_sections(comparison)])


def _sections(comparison: Comparison) -> list[str]:
    notes = list(comparison.notes)
    if comparison.left_out:
        notes.append(
            f"{comparison.left_out:,} test texts of {comparison.challenger} are left out, because "
            f"{comparison.champion} was trained on them."
        )
    if comparison.unreadable:
        notes.append(f"{comparison.unreadable:,} empty test texts are left out.")
    if tested := comparison.tested:
        difference = tested.difference
        rows: list[tuple[object, ...]] = [
            (f"macro-F1 of {comparison.champion}", percent(tested.before)),
            (f"macro-F1 of {comparison.challenger}", percent(tested.after)),
            ("difference, points", points(difference.value)),
            ("95 % interval of it", f"{points(difference.low)} to {points(difference.high)}"),
            ("95 % lower bound of it", points(tested.lower_bound)),
            ("probability that it is worse", percent(tested.probability_worse)),
        ]
        scores = [table([f"{tested.n:,} test texts, the same for both", ""], rows), *_class_tables(tested)]
    elif not comparison.same_classes:
        scores = ["The classes differ, so no score compares them."]
    else:
        scores = ["No test text is left that neither version was trained on."]
    return [part for part in ("\n".join(notes), *scores, *_churn_section(comparison)) if part]


def _class_tables(tested: PairedEvaluation) -> list[str]:
    """Return the classes and the confusions that changed most, those first that changed more."""
    rows = []
    for row in sorted(tested.classes, key=lambda row: (-abs(row.f1_difference.value), row.label))[:LISTED_CLASSES]:
        change = row.f1_difference
        worse = change.value < 0 and row.p_value < SIGNIFICANCE_LEVEL
        rows.append(
            (
                row.label,
                f"{percent(row.before.f1)} → {percent(row.after.f1)}",
                f"{points(change.value)} ({points(change.low)} to {points(change.high)})"
                + (", **worse beyond chance**" if worse else ""),
                f"{percent(row.before.precision)} → {percent(row.after.precision)}",
                f"{percent(row.before.recall)} → {percent(row.after.recall)}",
                row.support,
            )
        )
    unlisted = len(tested.classes) - len(rows)
    notes = [f"{unlisted} that changed less are in the bundle's `comparison.json`."] if unlisted else []
    if len(tested.classes) > 2:
        notes.append(
            "Each interval is of one class alone. Worse beyond chance: by an exact sign test, corrected for all "
            f"{len(tested.classes)} classes."
        )
    confusions = [
        (row.truth, row.predicted, row.before, row.after, f"{row.after - row.before:+d}")
        for row in tested.changed_confusions
    ]
    return [
        table(["class", "F1", "change, points (95 % interval)", "precision", "recall", "test texts"], rows),
        " ".join(notes),
        table(["true class", "predicted instead", "champion", "challenger", "change"], confusions)
        if confusions
        else "",
    ]


def _churn_section(comparison: Comparison) -> list[str]:
    """Return how many labels of last night change, the most frequent changes, and examples."""
    churn = comparison.churn
    if churn is None:
        return ["Prediction churn is unknown: there is no labelled night that neither version was trained on."]
    sampled = f", evenly spread over its {churn.documents:,} documents" if churn.rows < churn.documents else ""
    summary = (
        f"Prediction churn: **{percent(churn.share)} of the labels of {churn.batch} change**, "
        f"{churn.changed:,} of {churn.rows:,} rows{sampled}."
    )
    if not churn.most_frequent:
        return [summary]
    empty = "(empty text)"
    changes = [(change.before or empty, change.after or empty, change.rows) for change in churn.most_frequent]
    examples = [
        (
            example.doc_id,
            f"{example.before or empty} ({percent(example.confidence_before)})",
            f"{example.after or empty} ({percent(example.confidence_after)})",
            first_words(example.text),
        )
        for example in churn.examples
    ]
    return [
        summary,
        table([comparison.champion, comparison.challenger, "rows"], changes),
        table(["document", comparison.champion, comparison.challenger, "text"], examples),
    ]
