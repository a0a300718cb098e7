"""Embeddings of texts as Parquet: a cache, safe to delete.

A folder for each encoder, in it a folder for each documents part, both named by their digests, in it a file for some
thousand rows. A killed run goes on after the last file; a row is embedded once.
"""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.files import write_table
from pipeline.schemas import EMBEDDINGS
from pipeline.training.resumable import PROGRESS_SECONDS, Progress, clock
from pipeline.training.teach.sentence_encoder import SentenceEncoder
from pipeline.workspace import Workspace

FILE_ROWS = 2_048  # what a killed run loses at most
DIGEST_CHARACTERS = 16  # of a SHA-256, in a folder's name


class EmbeddingCache:
    """The embeddings by one encoder in a workspace.

    Args:
        workspace: holds the cache.
        encoder: embeds what is not cached.
    """

    def __init__(self, workspace: Workspace, encoder: SentenceEncoder) -> None:
        self._encoder = encoder
        self._path = workspace.embeddings_dir(encoder.folder.digest[:DIGEST_CHARACTERS])

    def missing(self, digest: str, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return those of some rows that are not cached, ascending.

        Args:
            digest: of the column of texts.
            rows: row numbers in it.
        """
        cached = [np.empty(0, np.int64)]
        for file in self._files(digest):
            try:
                cached.append(pq.read_table(file, columns=["row"])["row"].to_numpy())
            except (pa.ArrowInvalid, OSError):
                file.unlink()  # damaged: its rows are embedded again
        return np.setdiff1d(rows, np.concatenate(cached))

    def add(self, digest: str, rows: NDArray[np.int64], texts: pa.Array, progress: "EmbeddingProgress") -> None:
        """Embed rows that are missing, and write them file by file.

        Args:
            digest: of the column of texts.
            rows: row numbers in it, ascending.
            texts: strings [rows], the texts of these rows.
            progress: is told of each file.
        """
        for start in range(0, len(rows), FILE_ROWS):
            numbers = rows[start : start + FILE_ROWS]
            vectors = self._encoder.embed(texts.slice(start, len(numbers)).to_pylist())
            ends = pa.array(np.arange(len(vectors) + 1, dtype=np.int32) * vectors.shape[1])
            lists = pa.ListArray.from_arrays(ends, pa.array(vectors.astype(np.float16).ravel()))
            path = self._folder(digest) / f"rows-{numbers[0]:08d}.parquet"  # no other file has this row
            write_table(path, pa.table([pa.array(numbers), lists], schema=EMBEDDINGS))
            progress.advance(len(numbers))

    def read(self, digest: str, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the embeddings of cached rows in their order, float32 [rows, size].

        Args:
            digest: of the column of texts.
            rows: row numbers in it.
        """
        vectors = np.empty((len(rows), self._encoder.size), dtype=np.float32)
        order = np.argsort(rows)
        for file in self._files(digest) if len(rows) else ():
            table = pq.read_table(file, schema=EMBEDDINGS).combine_chunks()
            cached = table["row"].to_numpy()
            wanted = order[np.isin(rows[order], cached)]
            values = table["vector"].chunk(0).flatten().to_numpy().reshape(len(cached), -1)
            vectors[wanted] = values[np.searchsorted(cached, rows[wanted])]
        return vectors

    def _folder(self, digest: str) -> Path:
        return self._path / digest[:DIGEST_CHARACTERS]

    def _files(self, digest: str) -> Sequence[Path]:
        return sorted(self._folder(digest).glob("rows-*.parquet"))


class EmbeddingProgress:
    """Reports how many texts are embedded, and how long the others will take.

    Args:
        total: texts to embed.
        what: the noun for them.
        progress: is called every few seconds, and at the end.
    """

    def __init__(self, total: int, what: str, progress: Progress | None) -> None:
        self._total, self._what, self._progress = total, what, progress
        self._done = 0
        self._started = self._reported = time.monotonic()

    def advance(self, texts: int) -> None:
        """Count some more texts as embedded."""
        self._done += texts
        seconds = time.monotonic() - self._started
        is_due = time.monotonic() - self._reported > PROGRESS_SECONDS or self._done == self._total
        if self._progress is None or not is_due:
            return
        self._reported = time.monotonic()
        speed = self._done / max(seconds, 1e-9)
        self._progress(
            self._done / self._total,
            f"{self._done:,} of {self._total:,} {self._what} embedded, {speed:,.0f} a second, "
            f"about {clock((self._total - self._done) / speed)} left",
        )
