"""The report of a training: scores of the new version, the linear baseline and the champion, and the promotion."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flows.reports.comparison import comparison_section
from flows.reports.markdown import percent, picture, table
from flows.reports.selective import policy_section

if TYPE_CHECKING:  # these bring PyTorch along
    from pipeline.promotion.rule import Registration

WORST_CLASSES = 12  # a table of 150 classes is read by nobody


def model_report(registration: Registration, *, pictures: bool) -> str:
    """Return the scores of a new version, how it was trained, and whether it is promoted.

    Args:
        registration: the result of training.
        pictures: embed the figures (for the UI; a terminal cannot show them).
    """
    bundle = registration.bundle
    metrics = bundle.metrics
    verdict = "is champion now" if registration.promoted else "was **not** promoted"
    branches, linear = (
        [(row["name"], percent(row["macro_f1"]), f"{row['weight']:.2f}") for row in metrics.get(key) or []]
        for key in ("parts", "linear_models")
    )
    trainings = [
        (row["name"], percent(row["best_macro_f1"]), f"{row['seconds']:,.0f} s", "chosen" if row["chosen"] else "")
        for row in metrics.get("candidates") or []
    ]
    parts = [
        f"## Model {bundle.title} {verdict}",
        f"{registration.reason[:1].upper()}{registration.reason[1:]}.",
        *_scores(bundle.title, metrics["test"], metrics.get("baseline")),
        *_training_facts(
            metrics, sorted({entry["group"] for entry in bundle.manifest.get("batches", []) if "group" in entry})
        ),
        table(["trained", "validation macro-F1", "time", ""], trainings) if trainings else "",
        table(["branch", "validation macro-F1, alone", "ensemble weight"], branches) if len(branches) > 1 else "",
        table(["linear model", "macro-F1, cross-fitted", "weight"], linear) if linear else "",
        _variants_table(bundle.variants),
        policy_section(bundle),
        comparison_section(registration),
    ]
    if pictures:
        parts += [picture(path) for path in sorted((bundle.path / "figures").glob("*.png"))]
    per_class = sorted(metrics["test"]["per_class"], key=lambda row: (row["f1"] is None, row["f1"]))
    worst = [
        (row["label"], *(percent(row[key]) for key in ("precision", "recall", "f1")), row["support"])
        for row in per_class[:WORST_CLASSES]
    ]
    parts += ["### Classes, worst first", table(["class", "precision", "recall", "F1", "test texts"], worst)]
    if unlisted := len(per_class) - len(worst):
        parts.append(f"{unlisted} better ones are in the bundle's `metrics.json`.")
    return "\n\n".join(part for part in parts if part)


def _scores(title: str, test: dict[str, Any], baseline: dict[str, Any] | None) -> list[str]:
    """Return the test scores beside those of the linear baseline, and whether the model beats it."""
    linear = baseline or {}
    calibration = percent(test["calibration_error"])
    if test.get("before_calibration") and test["n"]:
        calibration += f" ({percent(test['before_calibration']['calibration_error'])} before calibration)"
    rows: list[tuple[object, ...]] = [
        ("texts", test["n"], test["n"] if baseline else None),
        (
            "all labels right" if "micro_f1" in test else "accuracy",
            percent(test["accuracy"]),
            percent(linear.get("accuracy")),
        ),
        ("macro-F1", percent(test["macro_f1"]), percent(linear.get("macro_f1"))),
    ]
    if "micro_f1" in test:
        rows.append(("micro-F1", percent(test["micro_f1"]), None))
        rows.append(("F1 of a document, mean", percent(test["example_f1"]), None))
    rows += [("weighted F1", percent(test["weighted_f1"]), None), ("calibration error", calibration, None)]
    scores = table(["test split", title, "linear baseline"], rows)
    if test["macro_f1"] is None or linear.get("macro_f1") is None:
        return [scores]
    lead = (test["macro_f1"] - linear["macro_f1"]) * 100
    if lead > 0:
        sentence = f"It beats the linear baseline by {lead:.1f} points of macro-F1."
    else:
        sentence = (
            f"**It does not beat the linear baseline** ({lead:+.1f} points of macro-F1): more labelled text, or a "
        )
        sentence += "linear model, would serve better."
    return [scores, sentence, baseline_sentence(linear)]


def baseline_sentence(baseline: dict[str, Any]) -> str:
    """Return which linear model is the baseline, and among which it was chosen; "" for one of an earlier version."""
    validated = baseline.get("validation_macro_f1")
    if not validated:
        return ""
    scores = ", ".join(f"{name} {percent(score)}" for name, score in validated.items())
    text = f"The baseline is the best linear SVM on the validation split: {baseline['name']} ({scores}), in "
    text += f"{baseline['seconds']:.0f} s."
    if baseline["left_out"]:
        text += f" Left out of the choice: {', '.join(baseline['left_out'])}, as it would take more than "
        text += f"{baseline['budget_seconds']:.0f} s here."
    return text


def _training_facts(metrics: dict[str, Any], group_columns: list[str]) -> list[str]:
    """Return how a version was trained, and from which word vectors, encoder and teacher it started."""
    counts, tokens, parity = metrics["counts"], metrics["tokens"]["train"], metrics["parity"]
    speed = f" ({metrics['training_tokens_per_second']:,} tokens/s), best epoch {metrics['best_epoch']}"
    reviewed, corrected = counts.get("reviewed", 0), counts.get("corrected", 0)
    corrections = f"{corrected:,} of them corrections" if corrected != 1 else "1 of them a correction"
    people = f"{reviewed:,} label{'' if reviewed == 1 else 's'} from people, {corrections}. " if reviewed else ""
    left_out, split = f"{counts['left_out_for_test']:,} left out because they are", ""
    if group_columns:
        left_out += f", and {counts['left_out_for_group']:,} because texts of their group are,"
        columns = " and ".join(f"`{name}`" for name in group_columns)
        divided = counts["divided_groups"]
        where = f"{divided:,} of them in both the given validation and test split" if divided else "each in one split"
        split = f"Split by group {columns}: {counts['groups']:,} groups, {where}. "
    training = (
        f"Trained on {counts['train']:,} texts on {metrics['training_device']} in "
        f"{metrics['training_seconds']:,.0f} s{speed if metrics['best_epoch'] else ''}; "
        f"{counts['equal_texts']:,} equal texts used once ({counts['conflicting_texts']:,} with conflicting labels), "
        f"{left_out} in the given test or validation split. {split}{people}"
        f"{percent(tokens['truncated_texts'])} of the texts are truncated, {percent(tokens['unknown_tokens'])} of the "
        f"words unknown. The ONNX graph agrees with PyTorch to {parity['largest_difference']:.1e} on "
        f"{parity['texts']:,} ragged texts."
    )
    lines = []
    if vectors := metrics.get("word_vectors"):
        lines.append(f"Word vectors of {vectors['file']} cover {percent(vectors['share'])} of the vocabulary.")
    if encoder := metrics.get("encoder"):
        lines.append(
            f"Pretrained encoder {encoder['encoder']} of {encoder['created'][:10]}: {encoder['texts']:,} texts, "
            f"perplexity {encoder['perplexity']:,.1f} on held-out text. New text since then: `nightlabel pretrain`."
        )
    if teacher := metrics.get("teacher"):
        lines.append(
            f"Soft labels of a teacher for {teacher['texts']:,} texts from {teacher['file']}; "
            f"{counts.get('taught', 0):,} of them have no label of their own."
        )
    return [training, "\n".join(lines)]


def _variants_table(variants: dict[str, Any]) -> str:
    """Return how the quantized variants agree with fp32 on the validation split."""
    rows: list[tuple[object, ...]] = []
    for variant, facts in variants.items():
        agreement = facts["agreement"]
        if agreement is None:
            rows.append((variant, f"not measured: {facts['not_measured']}", None, None, None))
            continue
        rows.append(
            (
                variant,
                f"{agreement['equal_labels']:.2%} of {agreement['texts']:,}",
                f"{agreement['largest_change']:.4f}",
                f"{100 * (agreement['macro_f1'] - agreement['fp32_macro_f1']):+.2f} points",
                f"{agreement['speed']:.1f}",
            )
        )
    header = [
        "variant",
        "labels equal to fp32",
        "largest change of a probability",
        "change of macro-F1",
        "times as fast",
    ]
    return table(header, rows) if rows else ""
