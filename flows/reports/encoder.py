"""The report of pretraining: training data, perplexity and speed of an encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flows.reports.markdown import picture, table

if TYPE_CHECKING:
    from pipeline.training.pretrain.encoder import Encoder


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
