"""Reports as Markdown: one text for the run's page in the UI, the terminal, and a file."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.files import read_json
from pipeline.workspace import Workspace

if TYPE_CHECKING:  # these bring PyTorch along, which an ingest does not need
    from pipeline.build import Publication
    from pipeline.bundle import Bundle
    from pipeline.encoder import Encoder
    from pipeline.ingest import IngestReport
    from pipeline.labels import BatchReport

WORST_CLASSES = 12  # a table of 150 classes is read by nobody
LISTED_SETTINGS = 8
SAMPLE_CHARACTERS = 110
NUMBER = re.compile(r"[\d,.]+( ?[^\s\d]+)?")  # and its unit


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table; numbers are aligned to the right."""
    body = [[_cell(value) for value in row] for row in rows]
    numeric = [
        bool(body) and all(NUMBER.fullmatch(row[column]) or row[column] == "" for row in body)
        for column in range(len(header))
    ]
    rule = ["---:" if right else "---" for right in numeric]
    lines = [list(header), rule, *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return " ".join(str(value).replace("|", "\\|").replace("<", "&lt;").split())


def percent(share: float | None) -> str:
    """Return a share as a person reads it, a dash where there is none."""
    return "–" if share is None else f"{share:.1%}".replace("%", " %")


def ingest_report(report: IngestReport) -> str:
    """Return what became of the rows of an ingest; they add up."""
    title = f"## Batch {report.batch_id}: {report.documents:,} documents"
    if report.already_there:
        title += "\n\nAlready ingested from the same sources with the same settings: nothing was done."
    rows: list[tuple[object, ...]] = [
        ("documents", report.documents),
        ("duplicates (same id, same text)", report.duplicates),
        ("refused", report.rejects),
        ("**rows read**", report.rows_read),
    ]
    parts = [title, table(["rows", "count"], rows)]
    parts.append(_labelled_line(report))
    if report.reject_reasons:
        parts.append(table(["refused because", "rows"], report.reject_reasons.items()))
    return "\n\n".join(parts)


def _labelled_line(report: IngestReport) -> str:
    if not report.multi_label:
        return (
            f"Of the documents {report.labelled:,} have a label, {report.unlabelled:,} have none, "
            f"{report.empty:,} are empty."
        )
    one = report.labelled - report.several_labels - report.no_class
    return (
        f"Of the documents {report.labelled:,} are labelled: {one:,} with one of {len(report.labels):,} classes, "
        f"{report.several_labels:,} with several, {report.no_class:,} with none of them. "
        f"{report.unlabelled:,} are not labelled, {report.empty:,} are empty."
    )


def model_report(publication: Publication, *, pictures: bool) -> str:
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
        ("calibration error", percent(test["calibration_error"]), None),
    ]


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
        f"because they stand in the given test or validation split. {percent(tokens['truncated_texts'])} of the "
        f"texts are truncated, {percent(tokens['unknown_tokens'])} of the words unknown. The ONNX graph agrees with "
        f"PyTorch to {metrics['parity']['largest_difference']:.1e} on {metrics['parity']['texts']:,} ragged texts."
    )


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


def encoder_report(encoder: Encoder, *, pictures: bool) -> str:
    """Return what an encoder was made from, and how well it predicts words.

    Args:
        encoder: a committed one.
        pictures: embed the curve of its perplexity.
    """
    facts = encoder.settings
    rows = [
        ("texts read", facts["texts"]),
        ("words", facts["tokens"]),
        ("test texts left out", facts["left_out_for_test"]),
        ("vocabulary", facts["vocabulary_size"]),
        ("perplexity on held-out text", f"{facts['perplexity']:,.1f}"),
        ("time", f"{facts['seconds']:,.0f} s on {facts['device']}"),
        ("words a second", facts["tokens_per_second"]),
    ]
    curve = [(entry["epoch"], f"{entry['perplexity']:,.1f}") for entry in facts["history"]]
    parts = [f"## Encoder {encoder.name}", table(["", "value"], rows)]
    if pictures:
        parts.append(picture(encoder.path / "figures" / "perplexity.png"))
    return "\n\n".join([*parts, table(["epoch", "perplexity"], curve)])


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


def picture(path: Path) -> str:
    """Return a PNG file as a Markdown image that holds the picture itself."""
    return embedded(path.read_bytes(), path.stem.replace("_", " "))


def embedded(png: bytes, text: str) -> str:
    """Return a PNG as a Markdown image that holds the picture itself, and for who cannot see it a text."""
    plain = " ".join(text.translate({ord("["): "(", ord("]"): ")"}).split())
    return f"![{plain}](data:image/png;base64,{base64.b64encode(png).decode()})"


def labels_report(reports: Sequence[BatchReport], workspace: Workspace) -> str:
    """Return what became of the documents of some batches; they add up."""
    manifests = [read_json(report.path / "manifest.json") for report in reports]
    rows: list[tuple[object, ...]] = [
        (
            report.batch,
            report.rows,
            *(report.counts.get(status, 0) for status in ("scored", "review", "empty")),
            "yes" if manifest.get("published", True) else "**held**",
            "already labelled" if report.skipped else f"{report.rows_per_second:,.0f} rows/s",
        )
        for report, manifest in zip(reports, manifests, strict=True)
    ]
    parts = [
        f"## Labels by {reports[0].model} on {'the GPU' if reports[0].device.is_gpu else 'the CPU'}",
        table(["batch", "documents", "scored", "review", "empty", "published", "speed"], rows),
        _how_it_ran(reports),
        _label_mix(reports),
        *(health_section(report.batch, manifest) for report, manifest in zip(reports, manifests, strict=True)),
        "### Some labelled rows",
        sample_table(workspace, reports[-1]),
    ]
    return "\n\n".join(parts)


def _how_it_ran(reports: Sequence[BatchReport]) -> str:
    device, precision = reports[0].device, reports[0].precision
    driver = f", driver {device.driver}" if device.driver else ""
    lines = [f"{device.name}{driver}. Precision {precision.precision}: {precision.reason}."]
    for report in reports:
        if not report.skipped:
            shares = ", ".join(f"{stage} {percent(share)}" for stage, share in report.stage_shares.items())
            lines.append(
                f"{report.batch}: {report.tokens_per_second:,.0f} tokens/s, {percent(report.padding_share)} padding; "
                f"busy: {shares}."
            )
    return "\n".join(lines)


def _label_mix(reports: Sequence[BatchReport]) -> str:
    total: dict[str, int] = {}
    for report in reports:
        for label, count in report.labels.items():
            total[label] = total.get(label, 0) + count
    rows = sum(report.rows - report.counts.get("empty", 0) for report in reports)
    ordered = sorted(total.items(), key=lambda item: (-item[1], item[0]))
    lines = [(label, count, percent(count / rows)) for label, count in ordered[:WORST_CLASSES]]
    left = len(ordered) - len(lines)
    return table(["label", "rows", "share"], lines) + (f"\n\nand {left} rarer labels." if left else "")


def health_section(batch: str, manifest: dict[str, Any]) -> str:
    """Return how a batch compares with the model's reference, and whether its labels may be read."""
    parts = [f"### Health of {batch}"]
    if "checks" not in manifest:
        return f"{parts[0]}\n\nNot known: labelled before it was kept."
    rows = [
        (check["measure"], check["tonight"], check["reference"], _distance(check), check["verdict"])
        for check in manifest["checks"]
    ]
    if rows:
        parts.append(table(["measure", "tonight", "reference", "distance", "verdict"], rows))
    parts += [f"- {finding['sentence']}" for finding in manifest["findings"]]
    parts += manifest["notes"]
    if not manifest["published"]:
        parts.append(f"**Held: not published.** Look at it, then `nightlabel publish {batch}`.")
    if by := manifest.get("publication"):
        parts.append(f"Published by {by['by']} at {by['at']}: {by['reason']}.")
    return "\n\n".join(parts)


def _distance(check: dict[str, Any]) -> str:
    return "" if check["psi"] is None else f"PSI {check['psi']:.2f}, JS {check['js']:.2f}"


def sample_table(workspace: Workspace, report: BatchReport, rows: int = 10) -> str:
    """Return some labelled rows with their texts, evenly spread over the first part of a batch."""
    part = report.parts[0].file
    labels = pq.read_table(report.path / part, partitioning=None)
    texts = pq.read_table(workspace.batch(report.batch).path / part, columns=["text"], partitioning=None)
    chosen = range(0, len(labels), max(1, len(labels) // rows))[:rows]
    lines = []
    for row in chosen:
        confidence = labels["confidence"][row].as_py()
        text = first_words(texts["text"][row].as_py())
        lines.append((_label_of(labels, row), percent(confidence), labels["status"][row].as_py(), text))
    return table(["label", "confidence", "status", "text"], lines)


def first_words(text: str) -> str:
    """Return the beginning of a text, on one line."""
    line = " ".join(text[: 4 * SAMPLE_CHARACTERS].split())
    return line if len(line) <= SAMPLE_CHARACTERS else line[: SAMPLE_CHARACTERS - 1] + "…"


def _label_of(labels: pa.Table, row: int) -> str | None:
    """Return a row's label, or its labels; parts from before documents could have several have no such column."""
    several = labels["labels"][row].as_py() if "labels" in labels.column_names else None
    return labels["label"][row].as_py() if several is None else ", ".join(several) or "none"


def bench_report(found: dict[str, Any]) -> str:
    """Return what a benchmark found: speeds of each stage beside the whole, and the settings it recommends."""
    whole, best = found["end_to_end"], found["recommended"]
    driver = f", driver {found['driver']}" if found["driver"] else ""
    rows: list[tuple[object, ...]] = [
        _speed("reading, one thread", found["reading"]),
        _speed("tokenizing, one thread", found["tokenizing"]),
        *(_speed(f"the model alone, {name}", rates) for name, rates in found["variants"].items()),
        _speed(f"end to end, {whole['precision']}", whole),
    ]
    memory = f"{whole['peak_memory_mb']:,.0f} MB" if whole["peak_memory_mb"] else "unknown"
    tried = sorted(found["settings_tried"], key=lambda trial: -trial["rows_per_s"])
    settings = [
        (trial["precision"], trial["batch_tokens"], trial["threads"], f"{trial['rows_per_s']:,.0f}") for trial in tried
    ]
    return "\n\n".join(
        [
            f"## Speed of {found['model']} on {found['device']}{driver}",
            f"{found['rows']:,} rows of {found['subject']}, medians of {found['rounds']} rounds.",
            table(["", "rows/s", "tokens/s", "MB/s of text"], rows),
            f"**{percent(whole['ceiling_share'])} of the model's own speed is reached end to end**; "
            f"{percent(whole['padding_share'])} of the token slots are padding; peak memory {memory}. "
            f"Tokenizing with all threads: {found['tokenizing']['mb_per_s_all_threads']:,.0f} MB/s.",
            table(["precision", "batch tokens", "threads", "rows/s when tried"], settings[:LISTED_SETTINGS]),
            f"Recommended here: `{best['command']}`",
        ]
    )


def _speed(name: str, rates: dict[str, Any]) -> tuple[object, ...]:
    return (name, f"{rates['rows_per_s']:,.0f}", f"{rates['tokens_per_s']:,.0f}", f"{rates['mb_per_s']:,.1f}")
