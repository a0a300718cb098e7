"""A bundle opened for scoring: texts in, probabilities out; the tokenizer and the model run in parallel."""

import logging
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Self

import numpy as np
import onnx
import pyarrow as pa

from pipeline.allocator import keep_freed_memory
from pipeline.config import ScoringConfig
from pipeline.dataset.characters import UnknownWords
from pipeline.dataset.minibatches import TokenLists
from pipeline.dataset.splitter import text_bytes
from pipeline.dataset.tokenizer import UNKNOWN, Encoded, TokenStats
from pipeline.errors import DeviceError, ModelError, StoppedError
from pipeline.metrics.selective import review_thresholds
from pipeline.models.attribution import with_attributions
from pipeline.models.bundle import Bundle
from pipeline.models.engine import Engine, open_engine
from pipeline.models.session import Device, choose_scoring_device, usable_cores
from pipeline.models.variants import VariantChoice, choose_variant
from pipeline.scoring.explanations import Evidence, top_evidence
from pipeline.scoring.timing import StageClock

logger = logging.getLogger(__name__)

SLICE_BYTES = 1 << 20  # of text, tokenized at once: small enough to share the work evenly and to bound memory


class Scorer:
    """A bundle opened on a device, with threads that tokenize and threads that run the model. Close it when done."""

    def __init__(self, bundle: Bundle, config: ScoringConfig) -> None:
        keep_freed_memory()
        self.bundle, self.config = bundle, config
        self.tokenizer, self.characters = bundle.tokenizer, bundle.characters
        self.policy = bundle.policy(config.target_precision)
        self.review_below = review_thresholds(self.policy, config.review_below, len(bundle.labels))
        device = choose_scoring_device(config.device)
        try:
            self.variant_choice, self.engine = self._open(device)
        except DeviceError as error:
            if not (config.device == "auto" and device.is_gpu):
                raise
            logger.warning("SCORING ON THE CPU, not on a GPU: %s", error)
            self.variant_choice, self.engine = self._open(choose_scoring_device("cpu"))
        self._tokenizing = ThreadPoolExecutor(config.threads or usable_cores(), thread_name_prefix="tokenize")
        self._stopped = threading.Event()

    def _open(self, device: Device) -> tuple[VariantChoice, Engine]:
        bundle, config = self.bundle, self.config
        choice = choose_variant(config.variant, bundle.variants, on_gpu=device.is_gpu, title=bundle.title)
        path = bundle.model_path(choice.variant)
        engine = open_engine(
            with_attributions(onnx.load(path), bundle.title).SerializeToString() if config.evidence else path,
            device,
            threads=config.threads,
            batch_tokens=config.batch_tokens,
            max_tokens=self.tokenizer.config.max_tokens,
        )
        return choice, engine

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop all work and end the threads."""
        self.stop()
        self._tokenizing.shutdown(wait=True, cancel_futures=True)
        self.engine.close()

    def stop(self) -> None:
        """Make all work in progress end as soon as it can."""
        self._stopped.set()

    def raise_if_stopped(self) -> None:
        """Return if work may continue.

        Raises:
            StoppedError: other work failed, or the scorer was closed.
        """
        if self._stopped.is_set():
            raise StoppedError("stopped, because other parts failed or the run was stopped")

    @property
    def variant(self) -> str:
        """The variant it scores with: "fp32", "int8" or "fp16"."""
        return self.variant_choice.variant

    @property
    def parts_at_once(self) -> int:
        """How many parts to work on at a time: for each device one that it runs, and one that is read or written."""
        return 2 * max(1, len(self.engine.device.numbers))

    def label(self, texts: pa.Array, clock: StageClock | None = None) -> "ScoredTexts":
        """Return the probabilities of a column of texts.

        Raises:
            ModelError: the model returns NaN for a text with tokens.
            DeviceMemoryError: a minibatch does not fit into the device's memory.
            Exception: any other error; its attribute `rows` holds the range of texts.
        """
        return _Labelling(self, texts, clock or StageClock()).result()

    def encode(self, texts: pa.Array) -> list[pa.ListArray]:
        """Return the token ids of a column of texts, in slices, tokenized in this scorer's threads."""
        return [piece.encoded.token_ids for piece in _Labelling(self, texts, StageClock()).encoded()]

    def minibatches(self, texts: pa.Array) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
        """Yield the token ids [rows, time], lengths [rows], and the rows of unknown words, that `label` would run."""
        work = _Labelling(self, texts, StageClock())
        for window in work.windows():
            for rows in work.plan(window.tokens):
                yield *window.tokens.pad(rows), window.unknown


@dataclass(frozen=True)
class ScoredTexts:
    """The model's outputs for a column of texts.

    Attributes:
        probabilities: float32 [texts, classes], NaN for texts without tokens.
        lengths: int32 [texts], tokens of each.
        unknown: int32 [texts], unknown tokens of each.
        stats: counts of tokens, truncated texts and unknown tokens.
        slots: token slots in all minibatches, padding included.
        evidence: of each text; None if the scorer has no evidence.
    """

    probabilities: np.ndarray
    lengths: np.ndarray
    unknown: np.ndarray
    stats: TokenStats
    slots: int
    evidence: Evidence | None = None


class _Labelling:
    """Scores a column of texts: tokenizes slices, sorts windows of them by length, runs them, restores the order."""

    def __init__(self, scorer: Scorer, texts: pa.Array, clock: StageClock) -> None:
        self.scorer, self.texts, self.clock = scorer, texts, clock
        self.engine = scorer.engine
        self.probabilities = np.full((len(texts), len(scorer.bundle.labels)), np.nan, dtype=np.float32)
        self.lengths, self.unknown = np.zeros((2, len(texts)), dtype=np.int32)
        self.evidence = Evidence.none(len(texts)) if scorer.config.evidence else None
        self.ahead: deque[Future[_Slice]] = deque()  # being tokenized
        self.futures: list[Future[None]] = []  # minibatches on the model
        self.stats = TokenStats()
        self.slots = 0

    def result(self) -> ScoredTexts:
        """Run all texts and return the outputs, or cancel queued work and raise the first error."""
        try:
            for window in self.windows():
                with self.clock("batch"):
                    plan = self.plan(window.tokens)
                for rows in plan:
                    self.slots += len(rows) * int(window.tokens.lengths[rows[0]])
                    self.futures.append(self.engine.submit(partial(self._run, window, rows)))
            for future in self.futures:
                future.result()
        finally:
            for tokenizing in self.ahead:
                tokenizing.cancel()
            for running in self.futures:
                running.cancel()
        return ScoredTexts(self.probabilities, self.lengths, self.unknown, self.stats, self.slots, self.evidence)

    def encoded(self) -> Iterator["_Slice"]:
        """Yield slices, tokenized ahead in threads."""
        slices = byte_slices(self.texts)
        self.ahead.extend(self.scorer._tokenizing.submit(self._tokenize, start, rows) for start, rows in slices)
        for _ in slices:
            yield self.ahead.popleft().result()

    def windows(self) -> Iterator["_Window"]:
        """Yield windows: texts that are sorted by length together."""
        size = 0
        slices: list[_Slice] = []
        for piece in self.encoded():
            self.stats += piece.stats
            slices.append(piece)
            size += piece.stats.kept_tokens
            if size >= self.engine.window_tokens:
                yield _Window.of(slices, self.scorer.tokenizer.size)
                slices, size = [], 0
        if slices:
            yield _Window.of(slices, self.scorer.tokenizer.size)

    def _tokenize(self, start: int, rows: int) -> "_Slice":
        self.scorer.raise_if_stopped()
        characters = self.scorer.characters
        with _named_rows(start, start + rows), self.clock("tokenize"):
            encoded = self.scorer.tokenizer.encode(self.texts.slice(start, rows))
            self.lengths[start : start + rows], self.unknown[start : start + rows] = encoded.lengths, encoded.unknown
            unknown = None if characters is None else characters.rows(encoded.unknown_words.words)
            return _Slice(start, encoded, TokenStats.of(encoded), unknown)

    def plan(self, tokens: TokenLists) -> list[np.ndarray]:
        """Return the rows of each minibatch, without empty texts: a length of 0 gives NaN or aborts the process."""
        non_empty = np.flatnonzero(tokens.lengths > 0)
        return [non_empty[rows] for rows in self.engine.plan(tokens.lengths[non_empty])]

    def _run(self, window: "_Window", rows: np.ndarray) -> None:
        self.scorer.raise_if_stopped()
        start = window.start
        with _named_rows(start, start + len(window.tokens)):
            with self.clock("batch"):
                token_ids, lengths = window.tokens.pad(rows)
            values = self._probabilities(start + rows, token_ids, lengths, window.unknown)
            if np.isnan(values).any():  # NaN would mean an empty text
                title = self.scorer.bundle.title
                raise ModelError(f"{title} returns no probabilities (NaN); roll back or train again")
            self.probabilities[start + rows] = values

    def _probabilities(
        self, texts: np.ndarray, token_ids: np.ndarray, lengths: np.ndarray, unknown: np.ndarray | None
    ) -> np.ndarray:
        """Return the probabilities of a minibatch of texts, and store its evidence if the scorer has evidence."""
        if self.evidence is None:
            with self.clock("model"):
                return self.engine.run(token_ids, lengths, unknown)
        with self.clock("model"):
            outputs = self.engine.attribute(token_ids, lengths, unknown)
        with self.clock("batch"):
            word_ids = np.where(token_ids < self.scorer.tokenizer.size, token_ids, UNKNOWN)
            self.evidence.put(texts, top_evidence(word_ids, outputs.attributions))
        return outputs.probabilities


@dataclass(frozen=True)
class _Slice:
    """Texts that were tokenized together, from row `start` on; `unknown` has a row for each of their unknown words."""

    start: int
    encoded: Encoded
    stats: TokenStats
    unknown: np.ndarray | None


@dataclass(frozen=True)
class _Window:
    """Texts that are sorted by length together, from row `start` on; `unknown` as `Runner.run` takes it."""

    start: int
    tokens: TokenLists
    unknown: np.ndarray | None

    @classmethod
    def of(cls, slices: Sequence[_Slice], vocabulary_size: int) -> Self:
        """Join slices. In a model with character n-grams, each distinct unknown word gets an id and a row."""
        encoded, rows = [piece.encoded for piece in slices], [piece.unknown for piece in slices]
        token_lists, unknown = [each.token_ids for each in encoded], None
        if rows[0] is not None:
            words = UnknownWords.merged([each.unknown_words for each in encoded])
            token_lists = [each.numbered(words, vocabulary_size) for each in encoded]
            unknown = np.zeros((1 + len(words), rows[0].shape[1]), dtype=np.float32)
            for each, values in zip(encoded, rows, strict=True):
                if values is not None:
                    unknown[words.numbered(each.unknown_words.hashes, 1)] = values[1:]
        return cls(slices[0].start, TokenLists.of(pa.concat_arrays(token_lists)), unknown)


@contextmanager
def _named_rows(start: int, stop: int) -> Iterator[None]:
    """Set the attribute `rows` of an error to the range of texts in which it happened."""
    try:
        yield
    except StoppedError:
        raise
    except Exception as error:
        error.rows = (start, stop)  # type: ignore[attr-defined]
        raise


def byte_slices(texts: pa.Array, size: int = SLICE_BYTES) -> list[tuple[int, int]]:
    """Return (first row, rows) of slices with at most `size` bytes of text each, and at least one row."""
    offsets, _ = text_bytes(texts)
    slices = []
    start = 0
    while start < len(texts):
        stop = max(start + 1, int(np.searchsorted(offsets, offsets[start] + size, side="right")) - 1)
        slices.append((start, stop - start))
        start = stop
    return slices
