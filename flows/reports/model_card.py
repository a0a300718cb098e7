"""The model card of a version, in plain words: what it learnt from, what it is good and bad at, how sure, how fast."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flows.reports.markdown import percent, table
from flows.reports.selective import none_line, policy_sentence

if TYPE_CHECKING:
    from pipeline.models.bundle import Bundle

CARD_FILE = "card.md"
NAMED = 3  # classes, good and bad ones
CONFUSIONS = 3
FEW_TEXTS = 20  # of a class, on which a score says little


def model_card(bundle: Bundle) -> str:
    """Return the card of a version as Markdown; everything in it comes from the bundle."""
    metrics = bundle.metrics
    tested = "test" if metrics["test"]["n"] else "validation"
    parts = [
        f"# Model {bundle.title}",
        _what_it_does(bundle),
        "## What it learnt from",
        *_learnt_from(bundle),
        "## How good it is",
        *_how_good(metrics, tested),
        "## How sure it is",
        *_how_sure(bundle, tested),
        "## How fast it is",
        _how_fast(bundle),
        "## What it cannot do",
        _cannot(bundle),
        "## How it was made",
        *_made(bundle),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _what_it_does(bundle: Bundle) -> str:
    labels = bundle.labels
    several = bundle.thresholds is not None
    named = ", ".join(labels[:NAMED]) + (f" and {len(labels) - NAMED:,} others" if len(labels) > NAMED else "")
    gives = "the labels that hold, among" if several else "one of"
    return f"It gives a text {gives} {len(labels):,} labels ({named}), each with a probability."


def _learnt_from(bundle: Bundle) -> list[str]:
    metrics, counts = bundle.metrics, bundle.metrics["counts"]
    batches = _listed([one["batch"] for one in bundle.manifest["batches"]])
    lines = [
        f"{counts['train']:,} labelled texts to learn from, {counts['validation']:,} to choose by, "
        f"{counts['test']:,} to test on. Batches: {batches}."
    ]
    if counts.get("reviewed"):
        lines.append(
            f"{counts['reviewed']:,} labels are from people who reviewed its rows, {counts['corrected']:,} of them "
            "corrections."
        )
    if encoder := metrics.get("encoder"):
        lines.append(f"Before that it read {encoder['texts']:,} texts without labels (encoder {encoder['encoder']}).")
    if vectors := metrics.get("word_vectors"):
        lines.append(f"Its words began with the vectors of {vectors['file']}.")
    if teacher := metrics.get("teacher"):
        lines.append(f"It was also taught by another model's opinions on {teacher['texts']:,} texts.")
    return lines


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _how_good(metrics: dict[str, Any], tested: str) -> list[str]:
    scores = metrics[tested]
    if not scores["n"]:
        return ["Not known: there were no texts to test it on."]
    right = "all labels are right" if "micro_f1" in scores else "the label is right"
    line = (
        f"Of {scores['n']:,} {tested} texts {right} for {percent(scores['accuracy'])}; "
        f"macro-F1 is {percent(scores['macro_f1'])}."
    )
    baseline = metrics.get("baseline") or {}
    if tested == "test" and baseline.get("macro_f1") is not None:
        line += f" A linear model reaches a macro-F1 of {percent(baseline['macro_f1'])} on the same texts."
    few = sum(row["support"] < FEW_TEXTS for row in scores["per_class"])
    note = (
        f"Classes with fewer than {FEW_TEXTS} such texts, whose scores say little: {few:,} of "
        f"{len(scores['per_class']):,}."
        if few
        else ""
    )
    return [line, _classes(scores["per_class"], tested), note, _confusions(scores)]


def _classes(per_class: list[dict[str, Any]], tested: str) -> str:
    """Return the scores of the best and the worst classes; of few classes, all."""
    ranked = sorted((row for row in per_class if row["support"]), key=lambda row: -row["f1"])
    chosen = [("", row) for row in ranked]
    if len(ranked) > 2 * NAMED:
        best, worst = ranked[:NAMED], ranked[: -NAMED - 1 : -1]
        chosen = [("best at", row) for row in best] + [("worst at", row) for row in worst]
    rows = [
        (what, row["label"], percent(row["precision"]), percent(row["recall"]), row["support"]) for what, row in chosen
    ]
    return table(["", "class", "given rightly (precision)", "found (recall)", f"{tested} texts"], rows)


def _confusions(scores: dict[str, Any]) -> str:
    """Return which classes are taken for which most often."""
    if scores["confusion"] is None:
        return ""
    names = [row["label"] for row in scores["per_class"]]
    pairs = sorted(
        (
            (-count, truth, given)
            for truth, row in enumerate(scores["confusion"])
            for given, count in enumerate(row)
            if truth != given and count
        ),
    )[:CONFUSIONS]
    if not pairs:
        return ""
    told = "; ".join(f"{names[truth]} taken for {names[given]}, {-count:,} times" for count, truth, given in pairs)
    return f"Its most frequent mistakes: {told}."


def _how_sure(bundle: Bundle, tested: str) -> list[str]:
    error = bundle.metrics[tested]["calibration_error"]
    lines = []
    if error is not None:
        lines.append(
            f"Its confidence is off by {100 * error:.1f} points on average: of rows that it is 90 % sure of, about "
            f"{max(0, round(90 - 100 * error))} to {min(100, round(90 + 100 * error))} in 100 are right."
        )
    if bundle.predictions is None or not len(bundle.predictions["validation"]):
        return lines
    policies = bundle.policies()
    target = bundle.selective_config.target_precision
    if target:
        lines.append(policy_sentence(policies[target], bundle.predictions))
    return [*lines, none_line(bundle, policies)]


def _how_fast(bundle: Bundle) -> str:
    speed = bundle.metrics.get("speed")
    if not speed:
        return "Not measured; `nightlabel bench` does."
    faster = [
        f"{facts['agreement']['speed']:.1f} times as fast in {precision}"
        for precision, facts in bundle.variants.items()
        if facts["agreement"]
    ]
    return (
        f"About {speed['texts_per_second']:,} texts/s ({speed['tokens_per_second']:,} tokens/s) in fp32 on "
        f"{speed['device']}, the model alone, measured once when it was made"
        f"{'; ' + ', '.join(faster) if faster else ''}. `nightlabel bench` measures it all, where it is to run."
    )


def _cannot(bundle: Bundle) -> str:
    metrics = bundle.metrics
    tokens, most = metrics["tokens"]["train"], bundle.tokenizer.config.max_tokens
    lines = [
        f"Of long texts it reads {most:,} tokens; {percent(tokens['truncated_texts'])} of its training texts were "
        "longer.",
        f"Words that it did not learn are all alike to it: {percent(tokens['unknown_tokens'])} of the words it learnt "
        "from. A text in another language is made of such words; the morning report warns of them.",
    ]
    if bundle.selective_config.none_label not in bundle.labels:
        lines.append(
            "It has no examples of texts that belong to none of its labels, and gives such a text the one that is "
            "nearest; only a low confidence sends it to review. With examples, see `selective.none_label`."
        )
    if baseline := metrics.get("baseline"):
        test = metrics["test"]["macro_f1"]
        if test is not None and baseline["macro_f1"] is not None and test <= baseline["macro_f1"]:
            lines.append("**It does not beat a linear model**: more labelled text would serve better.")
    return "\n".join(f"- {line}" for line in lines)


def _made(bundle: Bundle) -> list[str]:
    metrics, manifest = bundle.metrics, bundle.manifest
    versions = ", ".join(f"{name} {version}" for name, version in manifest["libraries"].items())
    promotion = manifest["promotion"]
    trained = f"trained in {metrics['training_seconds']:,.0f} s on {metrics['training_device']}"
    return [
        f"Made on {manifest['created'][:10]} from the preset {manifest['preset']}, {trained}. "
        f"{bundle.settings['parameters']:,} parameters in one ONNX graph, which agrees with PyTorch to "
        f"{metrics['parity']['largest_difference']:.1e}. {versions}.",
        f"{'Promoted' if promotion['promoted'] else 'Not promoted'} when it was made: {promotion['reason']}.",
    ]
