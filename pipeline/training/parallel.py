"""Learning on all cores at once: a part of each batch to each core, PyTorch itself single-threaded meanwhile.

An LSTM's steps are too small to share out: two cores on one batch are hardly faster than one, two parts of a
batch on two cores nearly twice as fast.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self, TypeVar

import numpy as np
import torch

T = TypeVar("T")
R = TypeVar("R")


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
        """Return the result of each item, in their order; the first error of one is raised."""
        if self._threads is None or len(items) == 1:
            return [work(item) for item in items]
        return list(self._threads.map(work, items))

    def split_rows(self, rows: np.ndarray, smallest: int = 8) -> list[np.ndarray]:
        """Return a part of the rows for each core, every so many-th, so that rows by length stay balanced.

        Args:
            rows: of a batch.
            smallest: fewest rows that are worth a core of their own.
        """
        parts = max(1, min(self.count, len(rows) // smallest))
        return [rows[part::parts] for part in range(parts)]

    def autocast(self) -> torch.autocast:
        """Return a context in which LSTMs run in bfloat16, where that is native: it needs no loss scaling.

        Casts are not cached: the cache is shared by all threads.
        """
        return torch.autocast(
            self.device.type, dtype=torch.bfloat16, enabled=has_bfloat16(self.device), cache_enabled=False
        )


def has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    there: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return there and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def generator(numbers: Sequence[int], device: torch.device) -> torch.Generator:
    """Return a source of randomness that is a function of some numbers: nothing of it needs saving."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
    return torch.Generator(device).manual_seed(seed)
