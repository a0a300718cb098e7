"""Documents in, labels out: one documents part gives one labels part of the same name and order."""

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.batching import TokenLists, padding_share, plan_batches
from pipeline.bundle import Bundle
from pipeline.config import ScoringConfig
from pipeline.device import open_session
from pipeline.errors import BatchError, ModelError
from pipeline.files import file_digest
from pipeline.labels import (
    BatchReport,
    PartReport,
    commit_labels,
    existing_part,
    part_fingerprint,
    write_part,
)
from pipeline.schemas import LABELS, STATUSES
from pipeline.tokenizer import TokenStats
from pipeline.workspace import Batch, Workspace

TOKENIZE_ROWS = 4096  # column slices of this many rows stay in the processor's cache


class Scorer:
    """A bundle opened on a device."""

    def __init__(self, bundle: Bundle, config: ScoringConfig) -> None:
        self.bundle, self.config = bundle, config
        self.tokenizer = bundle.tokenizer
        self.session = open_session(bundle.onnx_path, device=config.device, threads=config.threads)

    @property
    def provider(self) -> str:
        return str(self.session.get_providers()[0])

    def probabilities(self, tokens: TokenLists) -> tuple[np.ndarray, float]:
        """Return probabilities float32 [texts, classes], NaN for texts without tokens, and the padding share.

        Raises:
            ModelError: the model gives no number for a text that has tokens.
        """
        result = np.full((len(tokens), len(self.bundle.labels)), np.nan, dtype=np.float32)
        spoken = np.flatnonzero(tokens.lengths > 0)  # a length of 0 gives NaN or ends the process
        batches = plan_batches(tokens.lengths[spoken], batch_tokens=self.config.batch_tokens)
        for rows in batches:
            token_ids, lengths = tokens.pad(spoken[rows])
            result[spoken[rows]] = self.session.run(["probabilities"], {"token_ids": token_ids, "lengths": lengths})[0]
        if np.isnan(result[spoken]).any():  # must not be taken for empty texts
            raise ModelError(f"{self.bundle.title} gives no probabilities (NaN); roll back or train again")
        return result, padding_share(tokens.lengths[spoken], batches)

    def encode(self, texts: pa.Array) -> tuple[TokenLists, TokenStats]:
        """Return the token ids of a column of texts, and how much of it the model sees."""
        slices = [
            self.tokenizer.encode(texts.slice(start, TOKENIZE_ROWS)) for start in range(0, len(texts), TOKENIZE_ROWS)
        ]
        stats = sum((TokenStats.of(encoded) for encoded in slices), TokenStats())
        lists = [encoded.token_ids for encoded in slices]
        return TokenLists.of(pa.concat_arrays(lists) if lists else pa.array([], pa.list_(pa.int32()))), stats


def score_part(workspace: Workspace, batch: Batch, part: dict[str, Any], scorer: Scorer) -> PartReport:
    """Label one documents part, unless its labels are there already.

    Raises:
        BatchError: the documents part is missing or not the one that was committed.
        AccountingError: rows in and rows out do not add up.
    """
    folder = workspace.labels_of(scorer.bundle.name, batch.id)
    mark = part_fingerprint(scorer.bundle, scorer.config, part)
    done = existing_part(folder, part, mark)
    if done:
        return done
    started = time.monotonic()
    (folder / "manifest.json").unlink(missing_ok=True)  # from here on the batch's labels are not whole
    table = _read_part(batch.path / part["file"], part)
    # Equal texts are run once: most feeds repeat themselves.
    unique = table["content_hash"].combine_chunks().dictionary_encode()
    inverse = unique.indices.to_numpy()
    first = np.unique(inverse, return_index=True)[1]
    tokens, stats = scorer.encode(table["text"].combine_chunks().take(pa.array(first)))
    probabilities, padding = scorer.probabilities(tokens)
    labels, counts = label_rows(table["doc_id"], probabilities[inverse], scorer)
    names = Counter(labels["label"].drop_null().to_pylist())
    report = PartReport(
        file=part["file"],
        rows=len(table),
        counts=counts,
        labels=dict(sorted(names.items())),
        fingerprint=mark,
        tokens=stats.kept_tokens,
        seconds=time.monotonic() - started,
        padding_share=padding,
        truncated_texts=stats.truncated_texts,
        unknown_tokens=stats.unknown_tokens,
    )
    write_part(folder / part["file"], labels, report)
    return report


def _read_part(path: Path, part: dict[str, Any]) -> pa.Table:
    if not path.is_file() or file_digest(path) != part["sha256"]:
        raise BatchError(
            f"{path} is not the file that was committed (missing, truncated or changed); "
            "ingest the batch again with --replace"
        )
    return pq.read_table(path, columns=["doc_id", "text", "content_hash"], partitioning=None)


def label_rows(doc_ids: pa.ChunkedArray, probabilities: np.ndarray, scorer: Scorer) -> tuple[pa.Table, dict[str, int]]:
    """Turn probabilities [rows, classes] into labels rows and counts by status; NaN rows become "empty"."""
    empty = np.isnan(probabilities[:, 0])
    confidence = probabilities.max(axis=1)
    status = np.where(empty, 2, np.where(confidence < scorer.config.review_below, 1, 0))
    best = pa.array(np.where(empty, 0, np.nan_to_num(probabilities).argmax(axis=1)).astype(np.int32), mask=empty)
    offsets = np.arange(len(empty) + 1, dtype=np.int32) * probabilities.shape[1]
    scores = pa.ListArray.from_arrays(pa.array(offsets), pa.array(probabilities.ravel()), mask=pa.array(empty))
    table = pa.table(
        [
            doc_ids,
            pa.array(scorer.bundle.labels, pa.string()).take(best),
            pa.array(confidence, mask=empty),
            scores,
            pa.array(STATUSES).take(pa.array(status)),
            pa.array([scorer.bundle.title] * len(empty), pa.string()),
        ],
        schema=LABELS,
    )
    sizes = np.bincount(status, minlength=len(STATUSES)).tolist()
    return table, dict(zip(STATUSES, sizes, strict=True))


def finish_batch(
    workspace: Workspace, batch: Batch, scorer: Scorer, parts: Sequence[PartReport], seconds: float
) -> BatchReport:
    """Account for every document of a batch and make its labels exist; return what became of it."""
    report = BatchReport(
        batch=batch.id,
        model=scorer.bundle.title,
        provider=scorer.provider,
        parts=parts,
        path=workspace.labels_of(scorer.bundle.name, batch.id),
        seconds=seconds,
    )
    commit_labels(batch, scorer.bundle, scorer.config, report)
    return report


def score_batch(workspace: Workspace, batch: Batch, scorer: Scorer) -> BatchReport:
    """Label a whole batch, part by part; parts already labelled are left as they are."""
    started = time.monotonic()
    parts = [score_part(workspace, batch, part, scorer) for part in batch.manifest["parts"]]
    return finish_batch(workspace, batch, scorer, parts, time.monotonic() - started)
