"""A model file opened on a device: token ids in, probabilities out, one minibatch at a time on each runner."""

import logging
import queue
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import onnxruntime

from pipeline.dataset.minibatches import TokenLists, plan_minibatches
from pipeline.errors import DeviceMemoryError
from pipeline.models.session import Device, choose_scoring_device, open_session, usable_cores

logger = logging.getLogger(__name__)
T = TypeVar("T")

# Default token budgets of a minibatch. Measured: small ones stay in a core's cache; a GPU needs to be filled.
CPU_BATCH_TOKENS, GPU_BATCH_TOKENS = 4096, 262_144
MIN_BATCH_TOKENS = 1024  # the token budget is not halved below this
CPU_MIN_ROWS, GPU_MIN_ROWS = 16, 512  # a minibatch of as many rows may be cut short to avoid padding
MAX_PADDING = 0.04  # share of a minibatch's token slots
# Minibatches whose texts are sorted by length together: more of them mean less padding and a later start.
CPU_WINDOW, GPU_WINDOW = 64, 16
OUT_OF_MEMORY = (
    *("out of memory", "failed to allocate", "bad_alloc"),
    *("alloc_failed", "memoryallocation", "available memory of"),
)


class AttributionResult(NamedTuple):
    """A model's outputs for a minibatch, with attributions.

    Attributes:
        probabilities: float32 [rows, classes].
        attributions: float32 [rows, kinds, time], see `pipeline.models.attribution`.
        start: float32 [rows], the logit of the most probable class without any word.
    """

    probabilities: np.ndarray
    attributions: np.ndarray
    start: np.ndarray


UNKNOWN_WORDS = "unknown_words"  # the input with a row for each unknown word
ATTRIBUTION_OUTPUTS = ("probabilities", "attributions", "attribution_start")


class Runner(Protocol):
    """Runs one minibatch at a time."""

    def run(self, token_ids: np.ndarray, lengths: np.ndarray, unknown: np.ndarray | None = None) -> np.ndarray:
        """Return probabilities float32 [rows, classes].

        Args:
            token_ids: int32 [rows, time].
            lengths: int32 [rows].
            unknown: float32 [1 + unknown words, classes + 1], see `pipeline.dataset.characters.CharacterTable`; without
                it, or in a model without character n-grams, unknown words are all the same.
        """

    def attribute(
        self, token_ids: np.ndarray, lengths: np.ndarray, unknown: np.ndarray | None = None
    ) -> AttributionResult:
        """Return attributions too, as `run`; the model must have them, see `pipeline.models.attribution`."""


class HostRunner:
    """Runs a session on the caller's thread, from and to ordinary memory."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self.session = session
        self.columns = unknown_word_columns(session)

    def run(self, token_ids: np.ndarray, lengths: np.ndarray, unknown: np.ndarray | None = None) -> np.ndarray:
        result: np.ndarray = self.session.run(["probabilities"], self._inputs(token_ids, lengths, unknown))[0]
        return result

    def attribute(
        self, token_ids: np.ndarray, lengths: np.ndarray, unknown: np.ndarray | None = None
    ) -> AttributionResult:
        return AttributionResult(*self.session.run(ATTRIBUTION_OUTPUTS, self._inputs(token_ids, lengths, unknown)))

    def _inputs(self, token_ids: np.ndarray, lengths: np.ndarray, unknown: np.ndarray | None) -> dict[str, np.ndarray]:
        inputs = {"token_ids": token_ids, "lengths": lengths}
        return inputs | unknown_word_input(self.columns, token_ids, unknown)


def unknown_word_columns(session: onnxruntime.InferenceSession) -> int:
    """Return the columns of the rows of unknown words that a model takes, 0 if it takes none."""
    shapes = {value.name: value.shape for value in session.get_inputs()}
    return int(shapes[UNKNOWN_WORDS][1]) if UNKNOWN_WORDS in shapes else 0


def unknown_word_input(columns: int, token_ids: np.ndarray, unknown: np.ndarray | None) -> dict[str, np.ndarray]:
    """Return the rows of unknown words as an input, zeros where they are not given; no input for 0 columns."""
    if not columns:
        return {}
    return {UNKNOWN_WORDS: np.zeros((int(token_ids.max()) + 1, columns), np.float32) if unknown is None else unknown}


class BoundRunner:
    """Runs a session with token ids bound on the device, and lengths on the host, where cuDNN reads them.

    Time is padded to one of a few bucket lengths, so that the device plans and allocates few shapes.
    """

    def __init__(self, session: onnxruntime.InferenceSession, device_type: str = "cuda", number: int = 0) -> None:
        self.session, self.device_type, self.number = session, device_type, number
        self.columns = unknown_word_columns(session)

    def run(self, token_ids: np.ndarray, lengths: np.ndarray, unknown: np.ndarray | None = None) -> np.ndarray:
        return self._run(token_ids, lengths, unknown, ["probabilities"])[0]

    def attribute(
        self, token_ids: np.ndarray, lengths: np.ndarray, unknown: np.ndarray | None = None
    ) -> AttributionResult:
        probabilities, attributions, start = self._run(token_ids, lengths, unknown, ATTRIBUTION_OUTPUTS)
        return AttributionResult(probabilities, attributions[:, :, : token_ids.shape[1]], start)

    def _run(
        self, token_ids: np.ndarray, lengths: np.ndarray, unknown: np.ndarray | None, outputs: Sequence[str]
    ) -> list[np.ndarray]:
        padded = pad_time(token_ids, bucket_length(token_ids.shape[1]))
        binding = self.session.io_binding()
        on_device = onnxruntime.OrtValue.ortvalue_from_numpy(padded, self.device_type, self.number)
        binding.bind_ortvalue_input("token_ids", on_device)
        for name, rows in unknown_word_input(self.columns, padded, unknown).items():
            on_device = onnxruntime.OrtValue.ortvalue_from_numpy(rows, self.device_type, self.number)
            binding.bind_ortvalue_input(name, on_device)
        binding.bind_cpu_input("lengths", lengths)
        for output in outputs:
            binding.bind_output(output, "cpu")
        self.session.run_with_iobinding(binding)
        result: list[np.ndarray] = binding.copy_outputs_to_cpu()
        return result


def bucket_length(length: int) -> int:
    """Return the bucket of a length: steps of an eighth of the power of two below it, at least 8."""
    step = max(8, 1 << max(length.bit_length() - 4, 0))
    return -(-length // step) * step


def pad_time(token_ids: np.ndarray, length: int) -> np.ndarray:
    """Return token_ids [rows, time] padded with 0 to [rows, length]."""
    rows, time = token_ids.shape
    if time == length:
        return token_ids
    padded = np.zeros((rows, length), dtype=token_ids.dtype)
    padded[:, :time] = token_ids
    return padded


class Engine:
    """Runners of one model file, and the threads that drive them. Close it when done."""

    def __init__(self, runners: Sequence[Runner], device: Device, batch_tokens: int) -> None:
        self.device, self.batch_tokens = device, batch_tokens
        self.workers = len(runners)
        self._idle: queue.SimpleQueue[Runner] = queue.SimpleQueue()
        for runner in runners:
            self._idle.put(runner)
        self._threads = ThreadPoolExecutor(len(runners), thread_name_prefix="model")

    @property
    def window_tokens(self) -> int:
        """How many tokens to sort by length together."""
        return self.batch_tokens * (GPU_WINDOW if self.device.is_gpu else CPU_WINDOW)

    def plan(self, lengths: np.ndarray) -> Sequence[np.ndarray]:
        """Return minibatches as row numbers: within the token budget, and with little padding."""
        return plan_minibatches(
            lengths,
            batch_tokens=self.batch_tokens,
            max_padding=MAX_PADDING,
            min_rows=GPU_MIN_ROWS if self.device.is_gpu else CPU_MIN_ROWS,
        )

    def run(self, token_ids: np.ndarray, lengths: np.ndarray, unknown: np.ndarray | None = None) -> np.ndarray:
        """Return probabilities [rows, classes] from the next idle runner.

        Raises:
            DeviceMemoryError: the minibatch does not fit into the device's memory.
        """
        with self._runner(token_ids.size) as runner:
            return runner.run(token_ids, lengths, unknown)

    def attribute(
        self, token_ids: np.ndarray, lengths: np.ndarray, unknown: np.ndarray | None = None
    ) -> AttributionResult:
        """Return attributions too, as `run`; the model must have them, see `pipeline.models.attribution`."""
        with self._runner(token_ids.size) as runner:
            return runner.attribute(token_ids, lengths, unknown)

    @contextmanager
    def _runner(self, slots: int) -> Iterator[Runner]:
        """Lend the next idle runner; ONNX Runtime's several messages that memory ran out become one error."""
        runner = self._idle.get()
        try:
            yield runner
        except Exception as error:
            if any(sign in str(error).lower() for sign in OUT_OF_MEMORY):
                raise DeviceMemoryError(f"a minibatch of {slots:,} token slots does not fit into the memory") from error
            raise
        finally:
            self._idle.put(runner)

    def submit(self, work: Callable[[], T]) -> "Future[T]":
        """Queue work that calls `run`; there is a thread for each runner."""
        return self._threads.submit(work)

    def probabilities(self, tokens: TokenLists, unknown: np.ndarray | None = None) -> np.ndarray:
        """Return probabilities float32 [texts, classes]; each text must have tokens. See `Runner.run`."""
        plan = self.plan(tokens.lengths)
        outputs = list(self._threads.map(lambda rows: self.run(*tokens.pad(rows), unknown), plan))
        result = np.empty((len(tokens), outputs[0].shape[1] if outputs else 0), dtype=np.float32)
        for rows, values in zip(plan, outputs, strict=True):
            result[rows] = values
        return result

    def halve(self) -> bool:
        """Halve the token budget after memory ran out; return False if it is as small as it may be."""
        if self.batch_tokens < 2 * MIN_BATCH_TOKENS:
            return False
        self.batch_tokens //= 2
        name, budget = self.device.name, f"{self.batch_tokens:,}"
        logger.warning("out of memory on %s: continuing with %s tokens a minibatch", name, budget)
        return True

    def warm_up(self, max_tokens: int) -> None:
        """Run the largest possible minibatch on each runner, so that memory is claimed once and a lack shows at once.

        Raises:
            DeviceMemoryError: not even a small minibatch fits.
        """
        for _ in range(self.workers):
            while True:
                rows = max(1, self.batch_tokens // max_tokens)
                lengths = np.full(rows, max_tokens, dtype=np.int32)
                try:
                    self.run(np.ones((rows, max_tokens), dtype=np.int32), lengths)
                    break
                except DeviceMemoryError:
                    if not self.halve():
                        raise

    def close(self) -> None:
        """Cancel queued work and end the threads."""
        self._threads.shutdown(wait=True, cancel_futures=True)


def open_engine(
    model: Path | bytes, device: Device, *, threads: int = 0, batch_tokens: int = 0, max_tokens: int = 1
) -> Engine:
    """Open a model on a device.

    Args:
        model: an ONNX file, or its content.
        device: from `choose_scoring_device`.
        threads: minibatches that run at once on the CPU; 0 for one on each core.
        batch_tokens: token budget of a minibatch; 0 for the device's default.
        max_tokens: tokens of the longest text, for which a GPU's memory is claimed.

    Raises:
        DeviceError: the model does not run there; the message says why and what to do.
    """
    if device.is_gpu:
        bound = [BoundRunner(open_session(model, device, number), "cuda", number) for number in device.numbers]
        engine = Engine(bound, device, batch_tokens or GPU_BATCH_TOKENS)
        engine.warm_up(max_tokens)
        return engine
    runner = HostRunner(open_session(model, device))  # several threads may run one session at once
    return Engine([runner] * (threads or usable_cores()), device, batch_tokens or CPU_BATCH_TOKENS)


@contextmanager
def temporary_engine(path: Path, *, device: str = "cpu") -> Iterator[Engine]:
    """Open a model file with the device's defaults, and close it at the end of the block.

    Raises:
        DeviceError: the device cannot be used.
    """
    engine = open_engine(path, choose_scoring_device(device))
    try:
        yield engine
    finally:
        engine.close()
