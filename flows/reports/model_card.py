"""The model card of a version, in plain words: training data, quality, confidence, speed and limits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flows.reports.markdown import percent, table
from flows.reports.selective import none_line, policy_sentence

if TYPE_CHECKING:
    from pipeline.models.bundle import Bundle

CARD_FILE = "card.md"
NAMED = 3  # classes, good and bad ones; batches
CONFUSIONS = 3
FEW_TEXTS = 20  # of a class; a score on fewer says little


def model_card(bundle: Bundle) -> str:
    """Return the card of a version as Markdown; everything in it comes from the bundle."""
    labels, metrics, manifest = bundle.labels, bundle.metrics, bundle.manifest
    promotion = manifest["promotion"]
    versions = ", ".join(f"{name} {version}" for name, version in manifest["libraries"].items())
    tested = "test" if metrics["test"]["n"] else "validation"
    gives = "the labels that hold, among" if bundle.thresholds is not None else "one of"
    others = f" and {len(labels) - NAMED:,} others" if len(labels) > NAMED else ""
    parts = [
        f"# Model {bundle.title}",
        f"It gives a text {gives} {len(labels):,} labels ({', '.join(labels[:NAMED])}{others}), each with a "
        "probability.",
        "## Training data",
        *_training_data(bundle),
        "## Quality",
        *_quality(metrics, tested),
        "## Confidence",
        *_confidence(bundle, tested),
        "## Speed",
        _speed(bundle),
        "## Limits",
        *_limits(bundle),
        "## Origin",
        f"Made on {manifest['created'][:10]} from the preset {manifest['preset']}, trained in "
        f"{metrics['training_seconds']:,.0f} s on {metrics['training_device']}. "
        f"{bundle.settings['parameters']:,} parameters in one ONNX graph, which agrees with PyTorch to "
        f"{metrics['parity']['largest_difference']:.1e}. {versions}.",
        f"{'Promoted' if promotion['promoted'] else 'Not promoted'} at its registration: {promotion['reason']}.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _training_data(bundle: Bundle) -> list[str]:
    metrics, counts = bundle.metrics, bundle.metrics["counts"]
    batches = [entry["batch"] for entry in bundle.manifest["batches"]]
    more = f" and {len(batches) - NAMED:,} more" if len(batches) > NAMED else ""
    lines = [
        f"{counts['train']:,} labelled texts to train on, {counts['validation']:,} to choose by, "
        f"{counts['test']:,} to test on. Batches: {', '.join(batches[:NAMED])}{more}."
    ]
    if counts.get("reviewed"):
        lines.append(
            f"{counts['reviewed']:,} labels are from people who reviewed its rows, {counts['corrected']:,} of them "
            "corrections."
        )
    if encoder := metrics.get("encoder"):
        lines.append(f"It is pretrained on {encoder['texts']:,} texts without labels (encoder {encoder['encoder']}).")
    if vectors := metrics.get("word_vectors"):
        lines.append(f"Its word embeddings start from {vectors['file']}.")
    if teacher := metrics.get("teacher"):
        lines.append(f"It is also trained on another model's probabilities for {teacher['texts']:,} texts.")
    return lines


def _quality(metrics: dict[str, Any], tested: str) -> list[str]:
    """Return the scores, those of the best and the worst classes (of few classes, all), and the main mistakes."""
    scores = metrics[tested]
    if not scores["n"]:
        return ["Unknown: there were no texts to test it on."]
    right = "all labels are right" if "micro_f1" in scores else "the label is right"
    summary = (
        f"Of {scores['n']:,} {tested} texts {right} for {percent(scores['accuracy'])}; "
        f"macro-F1 is {percent(scores['macro_f1'])}."
    )
    baseline = metrics.get("baseline") or {}
    if tested == "test" and baseline.get("macro_f1") is not None:
        summary += f" A linear model reaches a macro-F1 of {percent(baseline['macro_f1'])} on the same texts."
    per_class = scores["per_class"]
    ranked = sorted((row for row in per_class if row["support"]), key=lambda row: -row["f1"])
    listed = [("", row) for row in ranked]
    if len(ranked) > 2 * NAMED:
        listed = [("best", row) for row in ranked[:NAMED]] + [("worst", row) for row in ranked[: -NAMED - 1 : -1]]
    rows = [
        (rank, row["label"], percent(row["precision"]), percent(row["recall"]), row["support"]) for rank, row in listed
    ]
    rare = sum(row["support"] < FEW_TEXTS for row in per_class)
    mistakes = sorted(
        (-count, truth, predicted)
        for truth, row in enumerate(scores["confusion"] or [])
        for predicted, count in enumerate(row)
        if truth != predicted and count
    )
    frequent = "; ".join(
        f"{per_class[truth]['label']} taken for {per_class[predicted]['label']}, {-count:,} times"
        for count, truth, predicted in mistakes[:CONFUSIONS]
    )
    return [
        summary,
        table(["", "class", "precision", "recall", f"{tested} texts"], rows),
        f"Classes with fewer than {FEW_TEXTS} such texts, whose scores are unreliable: {rare:,} of {len(per_class):,}."
        if rare
        else "",
        f"Its most frequent mistakes: {frequent}." if frequent else "",
    ]


def _confidence(bundle: Bundle, tested: str) -> list[str]:
    error = bundle.metrics[tested]["calibration_error"]
    lines = []
    if error is not None:
        low, high = max(0, round(90 - 100 * error)), min(100, round(90 + 100 * error))
        lines.append(
            f"Its confidence is off by {100 * error:.1f} points on average: of rows with a confidence of 90 %, about "
            f"{low} to {high} in 100 are right."
        )
    if bundle.predictions is None or not len(bundle.predictions["validation"]):
        return lines
    policies, target = bundle.policies(), bundle.selective_config.target_precision
    if target:
        lines.append(policy_sentence(policies[target], bundle.predictions))
    return [*lines, none_line(bundle, policies)]


def _speed(bundle: Bundle) -> str:
    speed = bundle.metrics.get("speed")
    if not speed:
        return "Not measured: run `nightlabel bench`."
    faster = [
        f"; {facts['agreement']['speed']:.1f} times as fast in {variant}"
        for variant, facts in bundle.variants.items()
        if facts["agreement"]
    ]
    return (
        f"About {speed['texts_per_second']:,} texts/s ({speed['tokens_per_second']:,} tokens/s) in fp32 on "
        f"{speed['device']}, the model alone, measured once at its registration{''.join(faster)}. "
        "`nightlabel bench` measures all of it on the machine that labels."
    )


def _limits(bundle: Bundle) -> list[str]:
    metrics = bundle.metrics
    tokens, max_tokens = metrics["tokens"]["train"], bundle.tokenizer.config.max_tokens
    lines = [
        f"It reads {max_tokens:,} tokens of a text; {percent(tokens['truncated_texts'])} of its training texts were "
        "longer.",
        f"It cannot tell unknown words apart: {percent(tokens['unknown_tokens'])} of the words in its training texts. "
        "A text in another language consists of them; the morning report warns.",
    ]
    if bundle.selective_config.none_label not in bundle.labels:
        lines.append(
            "It has no examples of texts that belong to none of its labels, and gives such a text the nearest label; "
            "only a low confidence sends it to review. With examples, see `selective.none_label`."
        )
    test, linear = metrics["test"]["macro_f1"], (metrics.get("baseline") or {}).get("macro_f1")
    if test is not None and linear is not None and test <= linear:
        lines.append("**It does not beat a linear model**: more labelled text would serve better.")
    return ["\n".join(f"- {line}" for line in lines)]
