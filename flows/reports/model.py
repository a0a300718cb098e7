"""How good a new version is, beside the linear baseline and the champion, and whether it is used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flows.reports.comparison import comparison_section
from flows.reports.markdown import percent, picture, table
from flows.reports.selective import policy_section

if TYPE_CHECKING:  # these bring PyTorch along
    from pipeline.models.bundle import Bundle
    from pipeline.promotion.register import Registration

WORST_CLASSES = 12  # a table of 150 classes is read by nobody


def model_report(publication: Registration, *, pictures: bool) -> str:
    """Return how good a new version is, beside the linear baseline, and whether it is used.

    Args:
        publication: what training ended with.
        pictures: embed the figures (for the UI; a terminal cannot show them).
    """
    bundle = publication.bundle
    metrics = bundle.metrics
    test = metrics["test"]
    verdict = "is champion now" if publication.promoted else "was **not** promoted"
    parts = [
        f"## Model {bundle.title} {verdict}",
        f"{publication.reason[:1].upper()}{publication.reason[1:]}.",
        table(["test split", bundle.title, "linear baseline"], _scores(test, metrics.get("baseline"))),
        _trust(test, metrics.get("baseline")),
        _training_line(bundle),
        _start_lines(metrics),
        _candidates_table(metrics.get("candidates") or []),
        _parts_table(metrics.get("parts") or []),
        _variants_table(bundle.variants),
        policy_section(bundle),
        comparison_section(publication),
    ]
    if pictures:
        parts += [picture(path) for path in sorted((bundle.path / "figures").glob("*.png"))]
    parts += ["### Classes, worst first", _class_table(test["per_class"])]
    return "\n\n".join(part for part in parts if part)


def _scores(test: dict[str, Any], baseline: dict[str, Any] | None) -> list[tuple[object, ...]]:
    beside = baseline or {}
    several = "micro_f1" in test
    exactly = "all labels right" if several else "accuracy"
    further = [("micro-F1", "micro_f1"), ("F1 of a document, mean", "example_f1")] if several else []
    return [
        ("texts", test["n"], test["n"] if baseline else None),
        (exactly, percent(test["accuracy"]), percent(beside.get("accuracy"))),
        ("macro-F1", percent(test["macro_f1"]), percent(beside.get("macro_f1"))),
        *((name, percent(test[key]), None) for name, key in further),
        ("weighted F1", percent(test["weighted_f1"]), None),
        ("calibration error", _calibration(test), None),
    ]


def _calibration(test: dict[str, Any]) -> str:
    before = test.get("before_calibration")
    once = f" ({percent(before['calibration_error'])} before calibration)" if before and test["n"] else ""
    return f"{percent(test['calibration_error'])}{once}"


def _trust(test: dict[str, Any], baseline: dict[str, Any] | None) -> str:
    if not baseline or test["macro_f1"] is None or baseline["macro_f1"] is None:
        return ""
    lead = (test["macro_f1"] - baseline["macro_f1"]) * 100
    if lead > 0:
        return f"It beats the linear baseline by {lead:.1f} points of macro-F1."
    return (
        f"**It does not beat the linear baseline** ({lead:+.1f} points of macro-F1): more labelled text, "
        "or a linear model, would serve better."
    )


def _training_line(bundle: Bundle) -> str:
    metrics, counts = bundle.metrics, bundle.metrics["counts"]
    tokens = metrics["tokens"]["train"]
    speed = f" ({metrics['training_tokens_per_second']:,} tokens/s), best epoch {metrics['best_epoch']}"
    return (
        f"Trained on {counts['train']:,} texts on {metrics['training_device']} in "
        f"{metrics['training_seconds']:,.0f} s{speed if metrics['best_epoch'] else ''}; "
        f"{counts['equal_texts']:,} equal texts used once ({counts['conflicting_texts']:,} with conflicting labels), "
        f"{counts['left_out_for_test']:,} left out "
        f"because they stand in the given test or validation split. {_people(counts)}"
        f"{percent(tokens['truncated_texts'])} of the texts are truncated, {percent(tokens['unknown_tokens'])} of the "
        "words unknown. The ONNX graph agrees with "
        f"PyTorch to {metrics['parity']['largest_difference']:.1e} on {metrics['parity']['texts']:,} ragged texts."
    )


def _people(counts: dict[str, int]) -> str:
    """Return how many texts have their label from a review."""
    reviewed, corrected = counts.get("reviewed", 0), counts.get("corrected", 0)
    if not reviewed:
        return ""
    several = f"{corrected:,} of them corrections" if corrected != 1 else "1 of them a correction"
    return f"{reviewed:,} label{'' if reviewed == 1 else 's'} from people, {several}. "


def _start_lines(metrics: dict[str, Any]) -> str:
    """Return what the training began with, beside the labelled documents."""
    lines = []
    if vectors := metrics.get("word_vectors"):
        lines.append(f"Word vectors of {vectors['file']} were there for {percent(vectors['share'])} of the vocabulary.")
    if encoder := metrics.get("encoder"):
        lines.append(
            f"Pretrained encoder {encoder['encoder']} of {encoder['created'][:10]}: {encoder['texts']:,} texts, "
            f"perplexity {encoder['perplexity']:,.1f} on held-out text. New text since then: `nightlabel pretrain`."
        )
    if teacher := metrics.get("teacher"):
        lines.append(
            f"A teacher's probabilities for {teacher['texts']:,} texts from {teacher['file']}; "
            f"{metrics['counts'].get('taught', 0):,} of them have no label of their own."
        )
    return "\n".join(lines)


def _candidates_table(candidates: list[dict[str, Any]]) -> str:
    """Return the trainings among which the validation split chose."""
    rows = [
        (one["name"], percent(one["best_macro_f1"]), f"{one['seconds']:,.0f} s", "kept" if one["chosen"] else "")
        for one in candidates
    ]
    return table(["trained", "validation macro-F1", "time", ""], rows) if rows else ""


def _parts_table(parts: list[dict[str, Any]]) -> str:
    """Return what each branch of the model does by itself; nothing to tell of an LSTM without any."""
    rows = [(one["name"], percent(one["macro_f1"]), f"{one['weight']:.2f}") for one in parts]
    return table(["branch", "validation macro-F1, alone", "weight of its logits"], rows) if len(rows) > 1 else ""


def _variants_table(variants: dict[str, Any]) -> str:
    """Return how the variants in fewer bits agree with fp32 on the validation split."""
    rows: list[tuple[object, ...]] = []
    for precision, facts in variants.items():
        found = facts["agreement"]
        if found is None:
            rows.append((precision, f"not measured: {facts['not_measured']}", None, None, None))
            continue
        changed = f"{found['fp32_macro_f1']:.2%} to {found['macro_f1']:.2%}"
        rows.append(
            (
                precision,
                f"{found['equal_labels']:.2%} of {found['texts']:,}",
                f"{found['largest_change']:.4f}",
                changed,
                f"{found['speed']:.1f}",
            )
        )
    if not rows:
        return ""
    headers = ["variant", "labels equal to fp32", "largest change of a probability", "macro-F1", "times as fast"]
    return table(headers, rows)


def _class_table(per_class: list[dict[str, Any]]) -> str:
    worst = sorted(per_class, key=lambda row: (row["f1"] is None, row["f1"]))[:WORST_CLASSES]
    rows = [
        (row["label"], *(percent(row[key]) for key in ("precision", "recall", "f1")), row["support"]) for row in worst
    ]
    text = table(["class", "precision", "recall", "F1", "test texts"], rows)
    left = len(per_class) - len(worst)
    return text + (f"\n\n{left} better ones are in the bundle's `metrics.json`." if left else "")
