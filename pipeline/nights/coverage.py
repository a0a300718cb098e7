"""Coverage of a night: the share of its rows that each selective policy labels."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

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
    columns = ["label", "confidence", *(["scores.list.element"] if bundle.thresholds is not None else [])]
    labelled, rows = dict.fromkeys(policies, 0), 0
    for batch in night.batches:
        if (batch.id, batch.manifest["documents_fingerprint"]) in bundle.training_batches:
            continue
        for part in batch.parts:
            table = pq.ParquetFile(part).read(columns=columns)
            table = table.filter(pc.is_valid(table["confidence"]))
            confidence = table["confidence"].to_numpy()
            if bundle.thresholds is None:
                likeliest = pc.index_in(table["label"], pa.array(bundle.labels)).to_numpy().astype(np.int64)
            else:  # a row without a label has a likeliest class too
                scores = table["scores"].combine_chunks().flatten().to_numpy()
                likeliest = scores.reshape(len(table), len(bundle.labels)).argmax(axis=1)
            rows += len(table)
            for target, policy in policies.items():
                labelled[target] += int(np.count_nonzero(confidence >= policy.thresholds[likeliest]))
    return {target: count / rows for target, count in labelled.items()} if rows else {}
