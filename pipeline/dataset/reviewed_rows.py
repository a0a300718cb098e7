"""Labels from reviews, and soft labels, applied to the ingested rows.

A reviewed label replaces the ingested label of all equal texts. Labelled texts stay in their split. Unlabelled texts
are added to training only: the texts selected for review are hard ones, and would bias validation and test.
"""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dataset.labelled_rows import LEFT_OUT, TEST, TRAIN, VALIDATION, LabelledRows, codes
from pipeline.dataset.reviews import ReviewedLabels
from pipeline.schemas import split_labels


def matching_reviews(table: pa.Table, reviewed: ReviewedLabels | None, multi_label: bool) -> ReviewedLabels | None:
    """Return the reviewed labels of these texts and of their classes; None if there are none."""
    if not reviewed:
        return None
    names = pc.unique(table["label"]).drop_null().to_pylist()
    classes = {label for name in names for label in split_labels(name)} if multi_label else names
    of_texts = reviewed.restricted_to_texts(table["content_hash"].combine_chunks())
    return of_texts.restricted_to_classes(classes, multi_label=multi_label) or None


def apply_reviews(
    rows: LabelledRows, splits: np.ndarray, reviewed: ReviewedLabels, table: pa.Table
) -> tuple[LabelledRows, dict[str, int]]:
    """Replace the labels of reviewed texts, and add reviewed texts without a label to `splits`, in place.

    A class that reviewers added is left out until it has two texts, one to train on and one to test on.

    Returns:
        the rows, and counts: texts without a label, reviewed texts, and corrections among these.
    """
    positions = reviewed.positions(pa.concat_arrays(table["content_hash"].chunks))
    splits[new_training_rows(rows, splits, positions >= 0)] = TRAIN
    classes_before = rows.label_sets[np.unique(rows.label_ids[rows.labelled])].any(axis=0)
    answers = codes(pa.chunked_array([reviewed.labels], pa.string()), rows.names)
    label_ids = np.where(positions >= 0, answers[positions], rows.label_ids)
    rows = replace(rows, label_ids=label_ids)
    for number in np.flatnonzero(~classes_before):
        of_class = (rows.label_ids >= 0) & rows.label_sets[rows.label_ids, number]
        if len(np.unique(rows.text_ids[of_class & (splits != LEFT_OUT)])) < 2:
            splits[of_class], label_ids[of_class] = LEFT_OUT, -1
    used = np.unique(positions[(positions >= 0) & (splits != LEFT_OUT)])
    return rows.trimmed(), {
        "unlabelled": int(np.count_nonzero(label_ids < 0)),
        "reviewed": len(used),
        "corrected": int(np.count_nonzero(reviewed.corrected[used])),
    }


def new_training_rows(rows: LabelledRows, splits: np.ndarray, newly_labelled: np.ndarray) -> np.ndarray:
    """Return the newly labelled rows, each text once, without the texts that are already in a split."""
    candidates = np.flatnonzero(
        newly_labelled & ~rows.labelled & (rows.given_split != TEST) & (rows.given_split != VALIDATION)
    )
    candidates = candidates[~np.isin(rows.text_ids[candidates], rows.text_ids[splits != LEFT_OUT])]
    _, first = np.unique(rows.text_ids[candidates], return_index=True)
    return candidates[np.sort(first)]
