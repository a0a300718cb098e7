"""Labels, given splits and texts of documents as arrays of numbers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

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
    position: np.ndarray  # float64 [rows], in [0, 1), from the hash of the text

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
        return cls(
            names=names,
            labels=labels,
            multi_label=multi_label,
            label_sets=label_sets,
            label_ids=codes(table["label"], names),
            given_split=codes(table["split"], SPLITS).astype(np.int8),
            text_ids=hashes.dictionary_encode().indices.to_numpy().astype(np.int64),
            position=text_position(hashes),
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


def text_position(hashes: pa.FixedSizeBinaryArray) -> np.ndarray:
    """Map content hashes to [0, 1), float64 [rows]."""
    heads = np.frombuffer(b"".join(hashes.to_pylist()), dtype=">u8")[::2]
    return heads / 2.0**64


def codes(column: pa.ChunkedArray, values: Sequence[str]) -> np.ndarray:
    """Return the index in `values` of each value, int32 [rows], -1 if it is not among them."""
    indices = pc.index_in(column, value_set=pa.array(values, pa.string()))
    return pc.fill_null(indices, -1).to_numpy().astype(np.int32)
