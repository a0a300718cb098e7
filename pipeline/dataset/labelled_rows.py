"""Labels, given splits, texts and groups of documents as arrays of numbers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import TrainingDataError
from pipeline.schemas import SPLITS, split_labels

TRAIN, VALIDATION, TEST = range(3)
LEFT_OUT = -1


@dataclass
class LabelledRows:
    """The documents of some batches, labelled or not; `given_split` is LEFT_OUT where none is given."""

    names: list[str]  # of the label sets, joined as documents store them
    labels: list[str]
    multi_label: bool
    label_sets: np.ndarray  # bool [label sets, classes]
    label_ids: np.ndarray  # int32 [rows], -1 = unlabelled
    given_split: np.ndarray  # int8 [rows]
    text_ids: np.ndarray  # int64 [rows], equal for equal texts
    group_ids: np.ndarray  # int64 [rows], equal for rows of one group; a text without a group is its own
    group_names: pa.StringArray  # of the groups from 0 on; higher ids are texts without a group
    position: np.ndarray  # float64 [rows], in [0, 1), from the hash of the group

    @classmethod
    def of(cls, table: pa.Table, extra_labels: Sequence[str], *, multi_label: bool) -> "LabelledRows":
        """Read documents and number their labels, together with labels that only reviews have.

        Raises:
            TrainingDataError: there is no label, or one only.
        """
        ingested = pc.unique(table["label"]).drop_null().to_pylist()
        if not ingested:
            raise TrainingDataError(
                "no labelled rows: ingest documents with a label column (nightlabel ingest FILE --label COLUMN)"
            )
        names = sorted({*ingested, *extra_labels})
        members = [split_labels(name) if multi_label else [name] for name in names]
        labels = sorted({label for classes in members for label in classes})
        numbers = {label: number for number, label in enumerate(labels)}
        label_sets = np.zeros((len(names), len(labels)), dtype=bool)
        for row, classes in enumerate(members):
            label_sets[row, [numbers[label] for label in classes]] = True
        _check_several(names)
        hashes = pa.concat_arrays(table["content_hash"].chunks)
        text_ids = hashes.dictionary_encode().indices.to_numpy().astype(np.int64)
        group_ids, group_names = number_groups(table["group"], text_ids)
        return cls(
            names=names,
            labels=labels,
            multi_label=multi_label,
            label_sets=label_sets,
            label_ids=codes(table["label"], names),
            given_split=codes(table["split"], SPLITS).astype(np.int8),
            text_ids=text_ids,
            group_ids=group_ids,
            group_names=group_names,
            position=_position(hashes, group_ids, group_names),
        )

    @property
    def strata(self) -> np.ndarray:
        """int32 [rows], the class by which a stratified split divides: of several classes the rarest."""
        sizes = np.bincount(self.label_ids[self.labelled], minlength=len(self.label_sets)) @ self.label_sets
        rarest = np.where(self.label_sets, sizes, len(self.label_ids) + 1).argmin(axis=1)
        rarest[~self.label_sets.any(axis=1)] = len(self.labels)  # sets without a class are a stratum
        strata: np.ndarray = rarest.astype(np.int32)[self.label_ids]
        return strata

    @property
    def grouped(self) -> bool:
        """Whether any document has a group."""
        return len(self.group_names) > 0

    @property
    def labelled(self) -> np.ndarray:
        """bool [rows]."""
        return self.label_ids >= 0

    def trimmed(self) -> "LabelledRows":
        """Return the rows without the label sets and classes that no row has."""
        used = np.bincount(self.label_ids[self.labelled], minlength=len(self.label_sets)) > 0
        names = [self.names[number] for number in np.flatnonzero(used)]
        _check_several(names)
        present = self.label_sets[used].any(axis=0)
        label_ids = np.where(self.labelled, (np.cumsum(used) - 1)[self.label_ids], -1).astype(np.int32)
        labels = [self.labels[number] for number in np.flatnonzero(present)]
        return replace(
            self, names=names, labels=labels, label_sets=self.label_sets[used][:, present], label_ids=label_ids
        )


def _check_several(names: Sequence[str]) -> None:
    if len(names) == 1:
        raise TrainingDataError(f"one class only ({names[0]!r}): a classifier needs at least two")


def number_groups(groups: pa.ChunkedArray, text_ids: np.ndarray) -> tuple[np.ndarray, pa.StringArray]:
    """Number the groups of documents.

    Args:
        groups: strings [rows], null where a document has no group.
        text_ids: int64 [rows].

    Returns:
        the group of each row, int64 [rows], and the names of the groups from 0 on; a text without a group has a higher
        number of its own.
    """
    encoded = groups.combine_chunks().dictionary_encode()
    names = encoded.dictionary
    numbers = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False)
    return np.where(numbers < 0, text_ids + len(names), numbers), names


def _position(hashes: pa.FixedSizeBinaryArray, group_ids: np.ndarray, group_names: pa.StringArray) -> np.ndarray:
    """Map documents to [0, 1) by the hash of their group, of a text without a group by its own, float64 [rows]."""
    position = text_position(hashes)
    digests = [blake2b(name.encode(), digest_size=16).digest() for name in group_names.to_pylist()]
    in_group = group_ids < len(digests)
    position[in_group] = text_position(pa.array(digests, pa.binary(16)))[group_ids[in_group]]
    return position


def text_position(hashes: pa.FixedSizeBinaryArray) -> np.ndarray:
    """Map content hashes to [0, 1), float64 [rows]."""
    heads = np.frombuffer(b"".join(hashes.to_pylist()), dtype=">u8")[::2]
    return heads / 2.0**64


def codes(column: pa.ChunkedArray, values: Sequence[str]) -> np.ndarray:
    """Return the index in `values` of each value, int32 [rows], -1 if it is not among them."""
    indices = pc.index_in(column, value_set=pa.array(values, pa.string()))
    return pc.fill_null(indices, -1).to_numpy().astype(np.int32)
