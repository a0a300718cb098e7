"""The reports of pretraining and of teaching: what an encoder or a teacher was made from, and how good it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flows.reports.markdown import percent, picture, table

if TYPE_CHECKING:
    from pipeline.training.pretrain.encoder import Encoder
    from pipeline.training.teach.teacher import Teacher


def encoder_report(encoder: Encoder, *, pictures: bool) -> str:
    """Return the training data, perplexity and speed of an encoder.

    Args:
        encoder: a committed encoder.
        pictures: embed the curve of its perplexity (for the UI; a terminal cannot show it).
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


def teacher_report(teacher: Teacher) -> str:
    """Return the texts, cross-validated scores and duration of a teacher."""
    facts = teacher.manifest
    counts, encoder, seconds = facts["counts"], facts["encoder"], facts["seconds"]
    rows = [
        (
            "encoder",
            f"{encoder['name']} ({encoder['weights']}, {encoder['size']} numbers, {encoder['pooling']} pooling)",
        ),
        ("classes", len(facts["classes"])),
        ("cross-validated accuracy", percent(facts["accuracy"])),
        ("cross-validated macro-F1", percent(facts["macro_f1"])),
        ("labelled training texts it is fitted on", counts["fitted"]),
        ("soft labels for these", counts["of_labelled"]),
        ("soft labels for unlabelled texts", counts["of_unlabelled"]),
        ("word vectors", counts["words"]),
        ("time", f"{sum(seconds.values()):,.0f} s on {encoder['device']}, {seconds['embedding']:,.0f} s for the texts"),
    ]
    return "\n\n".join([f"## Teacher {teacher.name}", table(["", "value"], rows)])
