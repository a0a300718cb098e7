"""Rows of a batch whose id occurs before, found without holding all ids in memory."""

from hashlib import blake2b
from pathlib import Path

import numpy as np
import pyarrow as pa

PARTITIONS = 64
RECORD = np.dtype([("id", ">u8", 2), ("text", ">u8", 2), ("row", np.int64)])


class DuplicateFinder:
    """Digests of ids and texts on disk, partitioned by id so that each partition fits in memory."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._paths = [folder / f"{number:02d}" for number in range(PARTITIONS)]
        for path in self._paths:
            path.touch()
        self._rows = 0

    def add(self, documents: pa.Table) -> None:
        """Add the next documents of the batch; rows are numbered in the order in which they are added."""
        ids = b"".join(blake2b(value.encode(), digest_size=16).digest() for value in documents["doc_id"].to_pylist())
        texts = b"".join(documents["content_hash"].to_pylist())
        records = np.empty(len(documents), RECORD)
        records["id"] = np.frombuffer(ids, ">u8").reshape(-1, 2)
        records["text"] = np.frombuffer(texts, ">u8").reshape(-1, 2)
        records["row"] = np.arange(self._rows, self._rows + len(documents))
        self._rows += len(documents)
        partition = records["id"][:, 0] % PARTITIONS
        for number in np.unique(partition):
            with self._paths[number].open("ab") as file:
                file.write(records[partition == number].tobytes())

    def find_duplicates(self) -> tuple[np.ndarray, np.ndarray]:
        """Return two sorted arrays of row numbers: ids that occur before with the same text, and with another text."""
        duplicates, conflicts = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for path in self._paths:
            records = np.fromfile(path, RECORD)
            records = records[np.lexsort((records["row"], records["id"][:, 1], records["id"][:, 0]))]
            if not len(records):
                continue
            first = np.concatenate([[True], (records["id"][1:] != records["id"][:-1]).any(axis=1)])
            origin = np.maximum.accumulate(np.where(first, np.arange(len(records)), 0))
            equal = (records["text"] == records["text"][origin]).all(axis=1)
            duplicates.append(records["row"][~first & equal])
            conflicts.append(records["row"][~first & ~equal])
        return np.sort(np.concatenate(duplicates)), np.sort(np.concatenate(conflicts))
