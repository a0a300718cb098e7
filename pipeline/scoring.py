"""Documents in, labels out: one documents part gives one labels part of the same name and order.

Two parts are under way at a time for each device: while the model runs the batches of one, the next is read
and tokenized, and the last written. Inside a part the model starts when the first window of rows is tokenized.
What waits is bounded by the size of a part, so memory does not grow with the batch.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa

from pipeline.batching import TokenLists
from pipeline.bundle import Bundle
from pipeline.characters import text_bytes
from pipeline.config import ScoringConfig
from pipeline.device import Device, choose_device, usable_cores
from pipeline.engine import Engine, open_engine
from pipeline.errors import DeviceError, DeviceMemoryError, ModelError, NightlabelError, ScoringError, StoppedError
from pipeline.labels import (
    BatchReport,
    PartReport,
    commit_labels,
    existing_part,
    part_fingerprint,
    read_documents,
    write_part,
)
from pipeline.memory import keep_freed_memory
from pipeline.schemas import LABELS, STATUSES
from pipeline.stages import StageClock
from pipeline.tokenizer import TokenStats
from pipeline.variants import Choice, choose_precision
from pipeline.workspace import Batch, Workspace

logger = logging.getLogger(__name__)

SLICE_BYTES = 1 << 20  # tokenized at once: what a step leaves is still in the cache for the next


class Scorer:
    """A bundle opened on a device, with the threads that tokenize for it and run it. Close it when done."""

    def __init__(self, bundle: Bundle, config: ScoringConfig) -> None:
        keep_freed_memory()
        self.bundle, self.config = bundle, config
        self.tokenizer = bundle.tokenizer
        device = choose_device(config.device)
        try:
            self.choice, self.engine = self._open(device)
        except DeviceError as error:
            if not (config.device == "auto" and device.is_gpu):
                raise
            logger.warning("SCORING ON THE CPU, not on a GPU: %s", error)
            self.choice, self.engine = self._open(choose_device("cpu"))
        self._tokenizing = ThreadPoolExecutor(config.threads or usable_cores(), thread_name_prefix="tokenize")
        self._stopped = threading.Event()

    def _open(self, device: Device) -> tuple[Choice, Engine]:
        bundle, config = self.bundle, self.config
        choice = choose_precision(config.precision, bundle.variants, on_gpu=device.is_gpu, title=bundle.title)
        engine = open_engine(
            bundle.model_path(choice.precision),
            device,
            threads=config.threads,
            batch_tokens=config.batch_tokens,
            max_tokens=self.tokenizer.config.max_tokens,
        )
        return choice, engine

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give up what is under way and let the threads go."""
        self.stop()
        self._tokenizing.shutdown(wait=True, cancel_futures=True)
        self.engine.close()

    def stop(self) -> None:
        """Make everything that is under way end as soon as it can."""
        self._stopped.set()

    def go_on(self) -> None:
        """Return if work may go on.

        Raises:
            StoppedError: other work failed, or the scorer was closed.
        """
        if self._stopped.is_set():
            raise StoppedError("given up, because other parts failed or the run was stopped")

    @property
    def precision(self) -> str:
        return self.choice.precision

    @property
    def parts_at_once(self) -> int:
        """How many parts to have under way: one on each device, and one being read or written for each."""
        return 2 * max(1, len(self.engine.device.numbers))

    def label(self, texts: pa.Array, clock: StageClock | None = None) -> "Labelled":
        """Return the probabilities of a column of texts.

        Raises:
            ModelError: the model gives no number for a text that has tokens.
            DeviceMemoryError: a batch does not fit into the device's memory.
            ScoringError: anything else that went wrong, with the rows it happened in.
        """
        return _Labelling(self, texts, clock or StageClock()).result()

    def encode(self, texts: pa.Array) -> list[pa.ListArray]:
        """Return the token ids of a column in slices, tokenized in this scorer's threads."""
        return [token_ids for _, token_ids, _ in _Labelling(self, texts, StageClock()).encoded()]

    def batches(self, texts: pa.Array) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the token ids [rows, time] and lengths [rows] of each batch that `label` would run."""
        work = _Labelling(self, texts, StageClock())
        for _, tokens in work.windows():
            for rows in work.plan(tokens):
                yield tokens.pad(rows)


@dataclass(frozen=True)
class Labelled:
    """What the model makes of a column of texts.

    Attributes:
        probabilities: float32 [texts, classes], NaN for texts without tokens.
        stats: how much of the texts the model saw.
        slots: token slots in all batches, padding included.
    """

    probabilities: np.ndarray
    stats: TokenStats
    slots: int


class _Labelling:
    """One column of texts on its way: slices are tokenized, windows of them sorted and run, the order restored."""

    def __init__(self, scorer: Scorer, texts: pa.Array, clock: StageClock) -> None:
        self.scorer, self.texts, self.clock = scorer, texts, clock
        self.engine = scorer.engine
        self.probabilities = np.full((len(texts), len(scorer.bundle.labels)), np.nan, dtype=np.float32)
        self.ahead: deque[Future[tuple[pa.ListArray, TokenStats]]] = deque()  # slices being tokenized
        self.futures: list[Future[None]] = []  # batches on the model
        self.stats = TokenStats()
        self.slots = 0

    def result(self) -> Labelled:
        try:
            for start, tokens in self.windows():
                self._start_batches(start, tokens)
            for future in self.futures:
                future.result()
        finally:
            for tokenizing in self.ahead:  # of a part that failed, nothing more is done
                tokenizing.cancel()
            for running in self.futures:
                running.cancel()
        return Labelled(self.probabilities, self.stats, self.slots)

    def encoded(self) -> Iterator[tuple[int, pa.ListArray, TokenStats]]:
        """Yield the first row, the token ids and what they leave out of each slice, tokenized ahead in threads."""
        slices = byte_slices(self.texts)
        self.ahead.extend(self.scorer._tokenizing.submit(self._tokenize, start, rows) for start, rows in slices)
        for start, _ in slices:
            yield start, *self.ahead.popleft().result()

    def windows(self) -> Iterator[tuple[int, TokenLists]]:
        """Yield the first row and the tokens of each window."""
        first, size = 0, 0
        window: list[pa.ListArray] = []
        for start, token_ids, stats in self.encoded():
            self.stats += stats
            first = first if window else start
            window.append(token_ids)
            size += stats.kept_tokens
            if size >= self.engine.window_tokens:
                yield first, TokenLists.of(pa.concat_arrays(window))
                window, size = [], 0
        if window:
            yield first, TokenLists.of(pa.concat_arrays(window))

    def _tokenize(self, start: int, rows: int) -> tuple[pa.ListArray, TokenStats]:
        self.scorer.go_on()
        with _named_rows(start, start + rows), self.clock("tokenize"):
            encoded = self.scorer.tokenizer.encode(self.texts.slice(start, rows))
            return encoded.token_ids, TokenStats.of(encoded)

    def _start_batches(self, start: int, tokens: TokenLists) -> None:
        with self.clock("batch"):
            plan = self.plan(tokens)
        for rows in plan:
            self.slots += len(rows) * int(tokens.lengths[rows[0]])
            self.futures.append(self.engine.submit(partial(self._run, start, tokens, rows)))

    def plan(self, tokens: TokenLists) -> list[np.ndarray]:
        """Return the rows of each batch; a length of 0 would give NaN or end the process, so none has it."""
        spoken = np.flatnonzero(tokens.lengths > 0)
        return [spoken[rows] for rows in self.engine.plan(tokens.lengths[spoken])]

    def _run(self, start: int, tokens: TokenLists, rows: np.ndarray) -> None:
        self.scorer.go_on()
        with _named_rows(start, start + len(tokens)):
            with self.clock("batch"):
                token_ids, lengths = tokens.pad(rows)
            with self.clock("model"):
                values = self.engine.run(token_ids, lengths)
            if np.isnan(values).any():  # must not be taken for empty texts
                title = self.scorer.bundle.title
                raise ModelError(f"{title} gives no probabilities (NaN); roll back or train again")
            self.probabilities[start + rows] = values


@contextmanager
def _named_rows(start: int, stop: int) -> Iterator[None]:
    """Note on an error in which rows of the column it happened."""
    try:
        yield
    except StoppedError:
        raise
    except Exception as error:
        error.rows = (start, stop)  # type: ignore[attr-defined]
        raise


def byte_slices(texts: pa.Array, size: int = SLICE_BYTES) -> list[tuple[int, int]]:
    """Return (first row, rows) of slices of at most `size` bytes of text each, but at least one row."""
    offsets, _ = text_bytes(texts)
    slices = []
    start = 0
    while start < len(texts):
        stop = max(start + 1, int(np.searchsorted(offsets, offsets[start] + size, side="right")) - 1)
        slices.append((start, stop - start))
        start = stop
    return slices


def score_part(workspace: Workspace, batch: Batch, part: dict[str, Any], scorer: Scorer) -> PartReport:
    """Label one documents part, unless its labels are there already.

    Raises:
        BatchError: the documents part is missing or not the one that was committed.
        AccountingError: rows in and rows out do not add up.
        DeviceError: the device has too little memory even for small batches.
        ScoringError: anything else that went wrong, with the part and the rows it happened in.
    """
    scorer.go_on()
    folder = workspace.labels_of(scorer.bundle.name, batch.id)
    mark = part_fingerprint(scorer.bundle, scorer.config, scorer.precision, part)
    done = existing_part(folder, part, mark)
    if done:
        return done
    started = time.monotonic()
    clock = StageClock()
    (folder / "manifest.json").unlink(missing_ok=True)  # from here on the batch's labels are not whole
    with clock("read"):
        table = read_documents(batch.path / part["file"], part)
        texts, first, inverse = unique_texts(table)
    labelled = _label_part(scorer, texts, clock, place=f"{batch.id} {part['file']}", numbers=first)
    with clock("write"):
        labels, counts, names = label_rows(table["doc_id"], labelled.probabilities[inverse], scorer)
        report = PartReport(
            file=part["file"],
            rows=len(table),
            counts=counts,
            labels=names,
            fingerprint=mark,
            tokens=labelled.stats.kept_tokens,
            slots=labelled.slots,
            truncated_texts=labelled.stats.truncated_texts,
            unknown_tokens=labelled.stats.unknown_tokens,
        )
        scorer.go_on()
        write_part(folder / part["file"], labels, report)
    return report.timed(time.monotonic() - started, clock.seconds)


def unique_texts(table: pa.Table) -> tuple[pa.Array, np.ndarray, np.ndarray]:
    """Return the different texts of a part, where each is first, and for each row the number of its text.

    Equal texts are run once: most feeds repeat themselves.
    """
    inverse = table["content_hash"].combine_chunks().dictionary_encode().indices.to_numpy()
    first = np.flatnonzero(np.diff(np.maximum.accumulate(inverse), prepend=-1))
    texts = table["text"].combine_chunks()
    return texts if len(first) == len(table) else texts.take(pa.array(first)), first, inverse


def _label_part(scorer: Scorer, texts: pa.Array, clock: StageClock, *, place: str, numbers: np.ndarray) -> Labelled:
    """Label a part's texts, in smaller batches if memory runs out; errors name the part and its rows."""
    while True:
        budget = scorer.engine.batch_tokens
        try:
            return scorer.label(texts, clock)
        except DeviceMemoryError as error:
            # Another part may have halved the budget meanwhile: then that is tried first.
            if scorer.engine.batch_tokens == budget and not scorer.engine.halve():
                raise DeviceError(
                    f"{place}: {error}, and smaller ones will not help; free memory on the device, or use --device cpu"
                ) from error
        except StoppedError:
            raise
        except Exception as error:
            rows = getattr(error, "rows", None)
            where = f"{place}, rows {numbers[rows[0]] + 1:,} to {numbers[rows[1] - 1] + 1:,}" if rows else place
            kind = type(error) if isinstance(error, NightlabelError) else ScoringError
            raise kind(f"{where}: {error}") from error


def label_rows(
    doc_ids: pa.ChunkedArray, probabilities: np.ndarray, scorer: Scorer
) -> tuple[pa.Table, dict[str, int], dict[str, int]]:
    """Turn probabilities [rows, classes] into labels rows and counts by status and label; NaN rows become "empty"."""
    empty = np.isnan(probabilities[:, 0])
    confidence = probabilities.max(axis=1)
    status = np.where(empty, 2, np.where(confidence < scorer.config.review_below, 1, 0))
    best = np.where(empty, 0, np.nan_to_num(probabilities).argmax(axis=1)).astype(np.int32)
    offsets = np.arange(len(empty) + 1, dtype=np.int32) * probabilities.shape[1]
    scores = pa.ListArray.from_arrays(pa.array(offsets), pa.array(probabilities.ravel()), mask=pa.array(empty))
    classes = scorer.bundle.labels
    table = pa.table(
        [
            doc_ids,
            pa.array(classes, pa.string()).take(pa.array(best, mask=empty)),
            pa.array(confidence, mask=empty),
            scores,
            pa.array(STATUSES).take(pa.array(status)),
            pa.array([scorer.bundle.title], pa.string()).take(pa.array(np.zeros(len(empty), dtype=np.int32))),
        ],
        schema=LABELS,
    )
    sizes = np.bincount(status, minlength=len(STATUSES)).tolist()
    mix = np.bincount(best[~empty], minlength=len(classes)).tolist()
    names = {label: count for label, count in sorted(zip(classes, mix, strict=True)) if count}
    return table, dict(zip(STATUSES, sizes, strict=True)), names


def finish_batch(
    workspace: Workspace, batch: Batch, scorer: Scorer, parts: Sequence[PartReport], seconds: float
) -> BatchReport:
    """Account for every document of a batch and make its labels exist; return what became of it."""
    report = BatchReport(
        batch=batch.id,
        model=scorer.bundle.title,
        device=scorer.engine.device,
        precision=scorer.choice,
        workers=scorer.engine.workers,
        parts=parts,
        path=workspace.labels_of(scorer.bundle.name, batch.id),
        seconds=seconds,
    )
    commit_labels(batch, scorer.bundle, scorer.config, report)
    return report


def score_batch(workspace: Workspace, batch: Batch, scorer: Scorer) -> BatchReport:
    """Label a whole batch; parts already labelled are left as they are.

    Raises:
        Exception: the first part that fails stops the others, and its error is raised.
    """
    started = time.monotonic()
    with ThreadPoolExecutor(scorer.parts_at_once, thread_name_prefix="part") as threads:
        futures = [threads.submit(score_part, workspace, batch, part, scorer) for part in batch.manifest["parts"]]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
            parts = results(futures)
        except BaseException:
            scorer.stop()
            raise
    return finish_batch(workspace, batch, scorer, parts, time.monotonic() - started)


def results(futures: Sequence["Future[PartReport]"]) -> list[PartReport]:
    """Return the results of futures, or raise the error that stopped the others."""
    errors = [future.exception() for future in futures if future.done()]
    cause = next((error for error in errors if error and not isinstance(error, StoppedError)), None)
    if cause:
        raise cause
    return [future.result() for future in futures]
