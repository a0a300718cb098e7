"""A model file opened on a device: token ids in, probabilities out, as many batches at once as it has runners."""

import logging
import queue
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import onnxruntime

from pipeline.dataset.minibatches import TokenLists, plan_minibatches
from pipeline.errors import DeviceMemoryError
from pipeline.models.session import Device, choose_scoring_device, open_session, usable_cores

logger = logging.getLogger(__name__)
T = TypeVar("T")

# Measured: small batches stay in a core's cache; a GPU wants to be filled.
CPU_BATCH_TOKENS, GPU_BATCH_TOKENS = 4096, 262_144
CPU_ENOUGH_ROWS, GPU_ENOUGH_ROWS = 16, 512
# As many batches are sorted by length together: more of them mean less padding, and a later start.
CPU_WINDOW_BATCHES, GPU_WINDOW_BATCHES = 64, 16
LEAST_BATCH_TOKENS = 1024
PADDING_LIMIT = 0.04
OUT_OF_MEMORY = (
    *("out of memory", "failed to allocate", "bad_alloc"),
    *("alloc_failed", "memoryallocation", "available memory of"),
)


class AttributionResult(NamedTuple):
    """What a model says of a batch, and what each word adds to it.

    Attributes:
        probabilities: float32 [rows, classes].
        attributions: float32 [rows, kinds, time], see `pipeline.models.attribution`.
        start: float32 [rows], the likeliest class's logit without any word.
    """

    probabilities: np.ndarray
    attributions: np.ndarray
    start: np.ndarray


ATTRIBUTED = ("probabilities", "attributions", "attribution_start")


class Runner(Protocol):
    """Runs one batch at a time."""

    def run(self, token_ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Return probabilities float32 [rows, classes] of token_ids int32 [rows, time] and lengths int32 [rows]."""

    def attribute(self, token_ids: np.ndarray, lengths: np.ndarray) -> AttributionResult:
        """Return what each word adds too; the model must have been opened for that."""


class HostRunner:
    """Runs a session on the caller's thread, from and to ordinary memory."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self.session = session

    def run(self, token_ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        result: np.ndarray = self.session.run(["probabilities"], {"token_ids": token_ids, "lengths": lengths})[0]
        return result

    def attribute(self, token_ids: np.ndarray, lengths: np.ndarray) -> AttributionResult:
        return AttributionResult(*self.session.run(ATTRIBUTED, {"token_ids": token_ids, "lengths": lengths}))


class BoundRunner:
    """Runs a session with token ids bound on the device, and lengths, which cuDNN reads there, on the host.

    Time is rounded up to a few bucket lengths, so that the device plans and allocates a few shapes only.
    """

    def __init__(self, session: onnxruntime.InferenceSession, kind: str = "cuda", number: int = 0) -> None:
        self.session, self.kind, self.number = session, kind, number

    def run(self, token_ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        return self._run(token_ids, lengths, ["probabilities"])[0]

    def attribute(self, token_ids: np.ndarray, lengths: np.ndarray) -> AttributionResult:
        probabilities, attributions, start = self._run(token_ids, lengths, ATTRIBUTED)
        return AttributionResult(probabilities, attributions[:, :, : token_ids.shape[1]], start)

    def _run(self, token_ids: np.ndarray, lengths: np.ndarray, outputs: Sequence[str]) -> list[np.ndarray]:
        padded = pad_time(token_ids, bucket_length(token_ids.shape[1]))
        binding = self.session.io_binding()
        on_device = onnxruntime.OrtValue.ortvalue_from_numpy(padded, self.kind, self.number)
        binding.bind_ortvalue_input("token_ids", on_device)
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


@contextmanager
def _memory_errors(slots: int) -> Iterator[None]:
    """Turn ONNX Runtime's several ways to say that memory ran out into one error."""
    try:
        yield
    except Exception as error:
        if any(sign in str(error).lower() for sign in OUT_OF_MEMORY):
            raise DeviceMemoryError(f"a batch of {slots:,} token slots does not fit into the memory") from error
        raise


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
        return self.batch_tokens * (GPU_WINDOW_BATCHES if self.device.is_gpu else CPU_WINDOW_BATCHES)

    def plan(self, lengths: np.ndarray) -> Sequence[np.ndarray]:
        """Return batches of row numbers: within the token budget, and next to no padding."""
        return plan_minibatches(
            lengths,
            batch_tokens=self.batch_tokens,
            max_padding=PADDING_LIMIT,
            min_rows=GPU_ENOUGH_ROWS if self.device.is_gpu else CPU_ENOUGH_ROWS,
        )

    def run(self, token_ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Return probabilities [rows, classes] from the runner that is idle next.

        Raises:
            DeviceMemoryError: the batch does not fit into the device's memory.
        """
        with self._runner(token_ids.size) as runner:
            return runner.run(token_ids, lengths)

    def attribute(self, token_ids: np.ndarray, lengths: np.ndarray) -> AttributionResult:
        """Return what each word adds too, as `run`; the engine must have been opened for that."""
        with self._runner(token_ids.size) as runner:
            return runner.attribute(token_ids, lengths)

    @contextmanager
    def _runner(self, slots: int) -> Iterator[Runner]:
        runner = self._idle.get()
        try:
            with _memory_errors(slots):
                yield runner
        finally:
            self._idle.put(runner)

    def submit(self, work: Callable[[], T]) -> "Future[T]":
        """Queue work that calls `run`; as much of it runs at once as there are runners."""
        return self._threads.submit(work)

    def probabilities(self, tokens: TokenLists) -> np.ndarray:
        """Return probabilities float32 [texts, classes]; each text must have tokens."""
        plan = self.plan(tokens.lengths)
        futures = [self.submit(partial(self._run_rows, tokens, rows)) for rows in plan]
        done = [future.result() for future in futures]
        result = np.empty((len(tokens), done[0].shape[1] if done else 0), dtype=np.float32)
        for rows, values in zip(plan, done, strict=True):
            result[rows] = values
        return result

    def _run_rows(self, tokens: TokenLists, rows: np.ndarray) -> np.ndarray:
        return self.run(*tokens.pad(rows))

    def halve(self) -> bool:
        """Halve the token budget after memory ran out; return False where that cannot help any more."""
        if self.batch_tokens < 2 * LEAST_BATCH_TOKENS:
            return False
        self.batch_tokens //= 2
        logger.warning(
            "memory ran out on %s: going on with %s tokens a batch", self.device.name, f"{self.batch_tokens:,}"
        )
        return True

    def warm_up(self, max_tokens: int) -> None:
        """Run the largest batch there can be on each runner: memory is claimed once, and its lack seen at once.

        Raises:
            DeviceMemoryError: not even a small batch fits.
        """
        for _ in range(self.workers):
            while True:
                rows = max(1, self.batch_tokens // max_tokens)
                longest = np.full(rows, max_tokens, dtype=np.int32)
                try:
                    self.run(np.ones((rows, max_tokens), dtype=np.int32), longest)
                    break
                except DeviceMemoryError:
                    if not self.halve():
                        raise

    def close(self) -> None:
        """Drop what is still waiting and let the threads go."""
        self._threads.shutdown(wait=True, cancel_futures=True)


def open_engine(
    model: Path | bytes, device: Device, *, threads: int = 0, batch_tokens: int = 0, max_tokens: int = 1
) -> Engine:
    """Open a model on a device.

    Args:
        model: an ONNX file, or what would stand in it.
        device: from `choose_device`.
        threads: batches that run at once on the CPU; 0 for one on each core.
        batch_tokens: most token slots in a batch; 0 for what suits the device.
        max_tokens: the longest text there will be, to claim a GPU's memory for.

    Raises:
        DeviceError: the model does not run there; says why and what mends it.
    """
    if device.is_gpu:
        bound = [BoundRunner(open_session(model, device, number), "cuda", number) for number in device.numbers]
        engine = Engine(bound, device, batch_tokens or GPU_BATCH_TOKENS)
        engine.warm_up(max_tokens)
        return engine
    runner = HostRunner(open_session(model, device))  # sessions may be run by several threads at once
    return Engine([runner] * (threads or usable_cores()), device, batch_tokens or CPU_BATCH_TOKENS)


@contextmanager
def temporary_engine(path: Path, *, device: str = "cpu") -> Iterator[Engine]:
    """Open a model file for a while, with what suits the device.

    Raises:
        DeviceError: the device is not there.
    """
    engine = open_engine(path, choose_scoring_device(device))
    try:
        yield engine
    finally:
        engine.close()
