"""The split of labelled documents into train, validation and test, and their labels.

The split is a function of the text, or of its group if it has one: a document never moves when the corpus grows, and
neither equal texts nor the texts of a group are in two splits. Of equal texts the first is used, in the split of its
group. A split that the user gives takes precedence: other rows with its texts, or of its groups, are left out. A
reviewed label replaces the ingested label of all equal texts. Labelled texts stay in their split. Unlabelled texts are
added to training only: the texts selected for review are hard ones, and would bias validation and test.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.dataset.labelled_rows import LEFT_OUT, TEST, TRAIN, VALIDATION, LabelledRows, codes, text_position
from pipeline.dataset.reviews import ReviewedLabels
from pipeline.dataset.splits import assign_splits
from pipeline.errors import TrainingDataError
from pipeline.schemas import DOCUMENTS, GROUP, LABEL_SEPARATOR, SPLITS, split_labels
from pipeline.workspace import Batch

__all__ = ["LEFT_OUT", "TEST", "TRAIN", "VALIDATION", "Corpus", "select", "text_position"]


@dataclass(frozen=True)
class Corpus:
    """The labelled documents of some batches, each with its split and label.

    Attributes:
        batches: the batches of the documents.
        labels: class names, in the order of their ids.
        multi_label: whether a document can have several classes, or none of them.
        label_sets: bool [label sets, classes]; in a single-label corpus a set is a class.
        splits: int8 [rows], TRAIN, VALIDATION, TEST or LEFT_OUT for each row of all batches in order.
        label_ids: int32 [rows], the label set of each row that is not left out; -1 for soft labels only.
        counts: rows of each kind, for the report.
        trained_on_rows: for each batch, the rows that have a label or are used without; see `Bundle.trained_on`.
        reviews: digest of the reviewed labels that apply; "" if there are none.
        groups: int64 [rows], equal for rows of one group; None if no document has a group.
    """

    batches: Sequence[Batch]
    labels: list[str]
    multi_label: bool
    label_sets: np.ndarray
    splits: np.ndarray
    label_ids: np.ndarray
    counts: dict[str, int]
    trained_on_rows: Sequence[int]
    reviews: str = ""
    groups: np.ndarray | None = None

    def read(self, split: int) -> Iterator[tuple[pa.Array, pa.Array, np.ndarray]]:
        """Yield doc_ids, texts and label_ids [int32] of one split, a column slice at a time."""
        start = 0
        for path in _parts(self.batches):
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(columns=["doc_id", "text"]):
                    rows = slice(start, start + len(batch))
                    start += len(batch)
                    in_split = self.splits[rows] == split
                    if in_split.any():
                        selected = batch.filter(pa.array(in_split))
                        yield selected["doc_id"], selected["text"], self.label_ids[rows][in_split]

    def all_doc_ids(self) -> Iterator[pa.Array]:
        """Yield the doc_ids of every document, labelled or not."""
        for path in _parts(self.batches):
            yield pq.read_table(path, columns=["doc_id"], partitioning=None)["doc_id"].combine_chunks()

    def texts(self, split: int) -> Iterator[pa.Array]:
        """Yield the texts of one split, a column slice at a time."""
        for _, texts, _ in self.read(split):
            yield texts


def select(
    batches: Sequence[Batch],
    *,
    method: str,
    validation_share: float,
    test_share: float,
    soft_labelled: pa.Array | None = None,
    reviewed: ReviewedLabels | None = None,
) -> Corpus:
    """Assign each labelled document to a split, with its label.

    Args:
        batches: committed batches, in the order in which rows are numbered.
        method: "hash" (by text or group alone) or "stratified" (equal shares in each class).
        validation_share: share of the texts for validation, unless a validation split is given.
        test_share: share of the texts for testing, unless a test split is given.
        soft_labelled: doc_ids with soft labels; those without a label are trained on too.
        reviewed: labels from reviews, of these texts or others.

    Raises:
        TrainingDataError: no labelled rows, one class only, a class with a single text, or too few groups to divide.
    """
    table = read_columns(batches, ["doc_id", "label", "split", "content_hash", "group"])
    if not len(table):
        raise TrainingDataError("no documents yet: start with nightlabel ingest FILE --label COLUMN")
    multi_label = _multi_label(batches)
    reviews = matching_reviews(table, reviewed, multi_label)
    rows = LabelledRows.of(table, reviews.labels if reviews else [], multi_label=multi_label)
    pool, counts = _distinct_pool(rows)
    fixed = rows.labelled & (rows.given_split != TRAIN)  # rows without a given split are LEFT_OUT here
    splits = np.where(fixed, rows.given_split, LEFT_OUT).astype(np.int8)
    splits[pool] = assign_splits(rows, pool, method, validation_share, test_share)
    ingested = rows.labelled
    if reviews:
        rows, review_counts = apply_reviews(rows, splits, reviews, table)
        counts |= review_counts
    _check_classes(rows, splits)
    _check_held_out(rows, splits, pool, batches)
    if soft_labelled is not None:
        new = new_training_rows(rows, splits, pc.is_in(table["doc_id"], value_set=soft_labelled).to_numpy())
        splits[new], counts["taught"] = TRAIN, len(new)
    for number, name in enumerate(SPLITS):
        counts[name] = int(np.count_nonzero(splits == number))
    if rows.grouped:
        counts |= _group_counts(rows, splits)
    batch_ends = np.cumsum([batch.rows for batch in batches])[:-1]
    trained_on = np.split(ingested | (splits != LEFT_OUT), batch_ends)
    return Corpus(
        batches=batches,
        labels=rows.labels,
        multi_label=multi_label,
        label_sets=rows.label_sets,
        splits=splits,
        label_ids=rows.label_ids,
        counts=counts,
        trained_on_rows=[int(np.count_nonzero(rows_of_batch)) for rows_of_batch in trained_on],
        reviews=reviews.digest if reviews else "",
        groups=rows.group_ids if rows.grouped else None,
    )


def _multi_label(batches: Sequence[Batch]) -> bool:
    """Tell whether any batch is multi-label; then a single label is a set of one.

    Raises:
        TrainingDataError: a label of a single-label batch holds the separator of label sets.
    """
    multi_label = [batch.id for batch in batches if batch.multi_label]
    for batch in batches if multi_label else ():
        unclear = [label for label in batch.manifest["labels"] if LABEL_SEPARATOR in label]
        if unclear and not batch.multi_label:
            raise TrainingDataError(
                f"batch {batch.id} has one label for each document, batch {multi_label[0]} several, and the label "
                f"{unclear[0]!r} holds {LABEL_SEPARATOR!r}, which separates them; rename it, or ingest {batch.id} "
                f"again with --label-separator, or train with --batch on one kind"
            )
    return bool(multi_label)


def _parts(batches: Sequence[Batch]) -> list[str]:
    return [str(path) for batch in batches for path in batch.parts]


def read_columns(batches: Sequence[Batch], columns: list[str]) -> pa.Table:
    """Read some columns of all documents of some batches, which may be none; `group` is null where a batch has none."""
    schema = pa.schema([GROUP if name == GROUP.name else DOCUMENTS.field(name) for name in columns])
    tables = []
    for batch in batches:
        stored = [name for name in columns if batch.group_column or name != GROUP.name]
        for path in batch.parts:
            table = pq.read_table(path, columns=stored, partitioning=None)
            if len(stored) < len(columns):
                table = table.append_column(GROUP, pa.nulls(len(table), GROUP.type)).select(columns)
            tables.append(table)
    return pa.concat_tables(tables) if tables else schema.empty_table()


def _distinct_pool(rows: LabelledRows) -> tuple[np.ndarray, dict[str, int]]:
    """Return the rows without a fixed split, each text once, and counts; sets their majority label in `rows`."""
    fixed = rows.labelled & ((rows.given_split == TEST) | (rows.given_split == VALIDATION))
    free = rows.labelled & ~fixed
    leaking = free & np.isin(rows.text_ids, rows.text_ids[fixed])
    of_held_out_group = free & ~leaking & np.isin(rows.group_ids, rows.group_ids[fixed])
    members = np.flatnonzero(free & ~leaking & ~of_held_out_group)
    _, first, texts = np.unique(rows.text_ids[members], return_index=True, return_inverse=True)
    pairs, votes = np.unique(np.stack([texts, rows.label_ids[members]]), axis=1, return_counts=True)
    # Of several labels of one text the most frequent wins; among equals the first by name.
    order = np.lexsort((pairs[1], -votes, pairs[0]))
    winners = order[np.unique(pairs[0][order], return_index=True)[1]]
    pool = members[first]
    rows.label_ids[pool] = pairs[1][winners]
    counts = {
        "unlabelled": int(np.count_nonzero(~rows.labelled)),
        "equal_texts": len(members) - len(pool),
        "conflicting_texts": int(np.count_nonzero(np.bincount(pairs[0]) > 1)),
        "left_out_for_test": int(np.count_nonzero(leaking)),
    }
    if rows.grouped:
        counts["left_out_for_group"] = int(np.count_nonzero(of_held_out_group))
    return pool, counts


def _check_classes(rows: LabelledRows, splits: np.ndarray) -> None:
    used, trained = np.flatnonzero(splits != LEFT_OUT), np.flatnonzero(splits == TRAIN)
    texts = [
        len(np.unique(rows.text_ids[used[rows.label_sets[rows.label_ids[used], number]]]))
        for number in range(len(rows.labels))
    ]
    train_counts = rows.label_sets[rows.label_ids[trained]].sum(axis=0)
    for name, count, train_count in zip(rows.labels, texts, train_counts, strict=True):
        if count == 1:
            raise TrainingDataError(
                f"class {name!r} has a single example: give it more, or remove it (it needs one to train on "
                "and one to test on)"
            )
        if train_count == 0:
            where = "groups of the test or validation split" if rows.grouped else "the given test or validation split"
            raise TrainingDataError(f"class {name!r} has no example to train on: it occurs only in {where}")


def _check_held_out(rows: LabelledRows, splits: np.ndarray, pool: np.ndarray, batches: Sequence[Batch]) -> None:
    missing = [name for name in ("validation", "test") if not (splits == SPLITS.index(name)).any()]
    if not rows.grouped:
        if "validation" in missing:
            trained = np.count_nonzero(splits == TRAIN)
            raise TrainingDataError(f"{trained} training texts are too few to set any aside for validation; label more")
        return
    if not missing:
        return
    columns = " and ".join(sorted({repr(batch.group_column) for batch in batches if batch.group_column}))
    advice = "label texts of more groups, or ingest with another --group or without it"
    texts = "labelled texts" if "test" in missing else "training texts"
    groups = np.unique(rows.group_ids[pool])
    if len(groups) == 1 and groups[0] < len(rows.group_names):
        raise TrainingDataError(
            f"all {texts} are of one group {rows.group_names[groups[0]].as_py()!r} in column {columns}: nothing "
            f"can be set aside for {' and '.join(missing)}; {advice}"
        )
    raise TrainingDataError(
        f"the {texts} are of {len(groups):,} groups in column {columns}: no whole group can be set aside for "
        f"{' and '.join(missing)} so that training keeps every class; {advice}"
    )


def _group_counts(rows: LabelledRows, splits: np.ndarray) -> dict[str, int]:
    """Return the groups that are used, and those that the user gave to both validation and test."""
    named = rows.group_ids < len(rows.group_names)
    divided = np.intersect1d(rows.group_ids[named & (splits == VALIDATION)], rows.group_ids[named & (splits == TEST)])
    return {"groups": len(np.unique(rows.group_ids[named & (splits != LEFT_OUT)])), "divided_groups": len(divided)}


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
    """Return the newly labelled rows, each text once, without the texts in a split and the groups that are held out."""
    candidates = np.flatnonzero(
        newly_labelled & ~rows.labelled & (rows.given_split != TEST) & (rows.given_split != VALIDATION)
    )
    candidates = candidates[~np.isin(rows.text_ids[candidates], rows.text_ids[splits != LEFT_OUT])]
    held_out = (splits == TEST) | (splits == VALIDATION)
    candidates = candidates[~np.isin(rows.group_ids[candidates], rows.group_ids[held_out])]
    _, first = np.unique(rows.text_ids[candidates], return_index=True)
    return candidates[np.sort(first)]
