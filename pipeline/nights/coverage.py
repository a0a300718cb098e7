"""Coverage of a night: the share of its rows that each selective policy labels."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.metrics.selective import SelectivePolicy
from pipeline.models.bundle import Bundle
from pipeline.nights.summary import LabelledNight


def night_coverage(
    night: LabelledNight, bundle: Bundle, policies: Mapping[float, SelectivePolicy]
) -> dict[float, float]:
    """Return the share of a night's non-empty rows that each policy labels, by target precision.

    Training batches are left out, because the model's confidence on them is too high. Empty without other batches.

    Args:
        night: labelled by this version.
        bundle: the model.
        policies: by target precision.
    """
    labelled, rows = dict.fromkeys(policies, 0), 0
    for batch in night.batches:
        if (batch.id, batch.manifest["documents_fingerprint"]) in bundle.training_batches:
            continue
        for part in batch.parts:
            likeliest, confidence = _predictions(pq.ParquetFile(part), bundle)
            rows += len(confidence)
            for target, policy in policies.items():
                labelled[target] += int(np.count_nonzero(confidence >= policy.thresholds[likeliest]))
    return {target: count / rows for target, count in labelled.items()} if rows else {}


def _predictions(part: pq.ParquetFile, bundle: Bundle) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the likeliest class, assigned or not, and the confidence of each non-empty row."""
    multi_label = bundle.thresholds is not None
    table = part.read(columns=["label", "confidence", *(["scores.list.element"] if multi_label else [])])
    table = table.filter(pc.is_valid(table["confidence"]))
    confidence = table["confidence"].to_numpy()
    if multi_label:
        scores = table["scores"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
        return scores.argmax(axis=1) if len(table) else np.empty(0, np.int64), confidence
    return pc.index_in(table["label"], pa.array(bundle.labels)).to_numpy().astype(np.int64), confidence
