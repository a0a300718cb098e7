"""Data parallelism on CPU cores: a part of each minibatch on each core, PyTorch itself single-threaded meanwhile.

An LSTM's steps are too small to be divided: two threads inside one operation are hardly faster than one, two parts
of a minibatch on two cores nearly twice as fast.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self, TypeVar

import numpy as np
import torch

T = TypeVar("T")
R = TypeVar("R")

MIN_PART_ROWS = 8  # with fewer rows a part is not worth a core


class CorePool:
    """A thread for each core that PyTorch may use; one, and no thread, on a GPU.

    Args:
        device: where the work runs.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.count = torch.get_num_threads() if device.type == "cpu" else 1
        self._threads = ThreadPoolExecutor(self.count) if self.count > 1 else None

    def __enter__(self) -> Self:
        if self._threads:
            torch.set_num_threads(1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._threads:
            self._threads.shutdown()
            torch.set_num_threads(self.count)

    def map(self, work: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """Return the result of each item, in order; the first error is raised."""
        if self._threads is None or len(items) == 1:
            return [work(item) for item in items]
        return list(self._threads.map(work, items))

    def split_rows(self, rows: np.ndarray) -> list[np.ndarray]:
        """Return a part of a minibatch's rows for each core, interleaved: rows sorted by length stay balanced."""
        parts = max(1, min(self.count, len(rows) // MIN_PART_ROWS))
        return [rows[part::parts] for part in range(parts)]

    def autocast(self) -> torch.autocast:
        """Return a context in which LSTMs run in bfloat16 where it is native; it needs no loss scaling.

        Casts are not cached, because all threads would share the cache.
        """
        return torch.autocast(
            self.device.type, dtype=torch.bfloat16, enabled=has_bfloat16(self.device), cache_enabled=False
        )


def has_bfloat16(device: torch.device) -> bool:
    """Return whether a device computes natively in bfloat16."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    has_mkldnn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return has_mkldnn and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def generator(numbers: Sequence[int], device: torch.device) -> torch.Generator:
    """Return a random generator seeded by some numbers, so that its state needs no saving."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
    return torch.Generator(device).manual_seed(seed)
