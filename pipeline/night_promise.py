"""How much of a night is, or would be, labelled at each precision that can be promised."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.bundle import Bundle
from pipeline.comparing.contenders import Contender, answer
from pipeline.comparing.flips import newest_night, sample
from pipeline.nights import LabelledNight
from pipeline.promise import Promise
from pipeline.workspace import Workspace


def labelled_shares(night: LabelledNight, bundle: Bundle, promises: Mapping[float, Promise]) -> dict[float, float]:
    """Return the share of a night's rows with text that each promise would label, by target.

    Batches that the model learnt from are left out, because it is surer of them; if there are no others, so is all.

    Args:
        night: labelled by this version.
        bundle: the model.
        promises: by target.
    """
    labelled, rows = dict.fromkeys(promises, 0), 0
    for batch in night.batches:
        if (batch.id, batch.manifest["documents_fingerprint"]) in bundle.learnt:
            continue
        for part in batch.parts:
            likeliest, confidence = _claims(pq.ParquetFile(part), bundle)
            rows += len(confidence)
            for target, promise in promises.items():
                labelled[target] += int(np.count_nonzero(confidence >= promise.thresholds[likeliest]))
    return {target: count / rows for target, count in labelled.items()} if rows else {}


def foreseen_shares(
    workspace: Workspace, version: Contender, promises: Mapping[float, Promise]
) -> dict[str, Any] | None:
    """Return what share of last night's texts each promise of a new version would label; None without such a night.

    Returns:
        `batch`, `rows` (with text, of a sample spread evenly over it), and `shares` by target, as text for JSON.
    """
    batch = newest_night(workspace, version)
    if batch is None or not batch.rows:
        return None
    _, texts = sample(batch)
    answers = answer(version, [texts])
    rows = int(answers.spoken.sum())
    if not rows:
        return None
    labelled = {
        target: np.count_nonzero(answers.spoken & (answers.confidence >= promise.thresholds[answers.likeliest]))
        for target, promise in promises.items()
    }
    return {
        "batch": batch.id,
        "rows": rows,
        "shares": {f"{target:g}": count / rows for target, count in labelled.items()},
    }


def _claims(part: pq.ParquetFile, bundle: Bundle) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the likeliest class and the confidence of each row with text; a row may have no label, but a likeliest."""
    several = bundle.thresholds is not None
    table = part.read(columns=["label", "confidence", *(["scores.list.element"] if several else [])])
    table = table.filter(pc.is_valid(table["confidence"]))
    confidence = table["confidence"].to_numpy()
    if several:
        scores = table["scores"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
        return scores.argmax(axis=1) if len(table) else np.empty(0, np.int64), confidence
    return pc.index_in(table["label"], pa.array(bundle.labels)).to_numpy().astype(np.int64), confidence
