"""What people, or a teacher, say of texts put over the labels that were ingested, when the splits are decided.

A review wins over the label that was ingested, for all equal texts. Labelled texts stay in their split. A text without
a label is trained on: texts to review were chosen for being hard, and would bend what is measured on the others.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dataset.labelled_rows import LEFT_OUT, TEST, TRAIN, VALIDATION, LabelledRows, codes
from pipeline.dataset.reviews import ReviewedLabels
from pipeline.schemas import split_labels


def matching_reviews(table: pa.Table, reviewed: ReviewedLabels | None, multi_label: bool) -> ReviewedLabels | None:
    """Return what people said of these texts and their classes; None if nothing."""
    if not reviewed:
        return None
    names = pc.unique(table["label"]).drop_null().to_pylist()
    classes = {one for name in names for one in split_labels(name)} if multi_label else names
    here = reviewed.restricted_to_texts(table["content_hash"].combine_chunks())
    return here.restricted_to_classes(classes, multi_label=multi_label) or None


def apply_reviews(
    rows: LabelledRows, splits: np.ndarray, reviewed: ReviewedLabels, table: pa.Table
) -> tuple[LabelledRows, dict[str, int]]:
    """Give reviewed texts the labels that people gave them; changes `splits` where that brings a text in.

    A class that people added is left out until it has two texts, one to learn from and one to tell whether it is.

    Returns:
        the rows, and how many texts have labels from people, and how many of these are corrections.
    """
    positions = reviewed.positions(pa.concat_arrays(table["content_hash"].chunks))
    splits[new_training_rows(rows, splits, positions >= 0)] = TRAIN
    before = set(rows.label_ids[rows.labelled].tolist())
    answers = codes(pa.chunked_array([reviewed.labels], pa.string()), rows.names)
    label_ids = np.where(positions >= 0, answers[positions], rows.label_ids)
    rows = replace(rows, label_ids=label_ids)
    for lonely in _lonely(rows, splits, before):
        splits[lonely], label_ids[lonely] = LEFT_OUT, -1
    used = np.unique(positions[(positions >= 0) & (splits != LEFT_OUT)])
    return rows.trimmed(), {
        "unlabelled": int(np.count_nonzero(label_ids < 0)),
        "reviewed": len(used),
        "corrected": int(np.count_nonzero(reviewed.corrected[used])),
    }


def _lonely(rows: LabelledRows, splits: np.ndarray, before: set[int]) -> Iterator[np.ndarray]:
    """Yield the rows, bool [rows], of each class that no document had before and that has not got two texts."""
    classes_before = rows.label_sets[sorted(before)].any(axis=0)
    for number in np.flatnonzero(~classes_before):
        own = (rows.label_ids >= 0) & rows.label_sets[rows.label_ids, number]
        if len(np.unique(rows.text_ids[own & (splits != LEFT_OUT)])) < 2:
            yield own


def new_training_rows(rows: LabelledRows, splits: np.ndarray, newly_labelled: np.ndarray) -> np.ndarray:
    """Return the rows without a label that a teacher knows, each text once, and none that stands in another split."""
    candidates = np.flatnonzero(
        newly_labelled & ~rows.labelled & (rows.given_split != TEST) & (rows.given_split != VALIDATION)
    )
    candidates = candidates[~np.isin(rows.text_ids[candidates], rows.text_ids[splits != LEFT_OUT])]
    _, first = np.unique(rows.text_ids[candidates], return_index=True)
    return candidates[np.sort(first)]
