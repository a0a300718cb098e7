"""How long the threads of each stage of scoring are busy."""

import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

STAGES = ("read", "tokenize", "batch", "model", "write")


class StageClock:
    """Sums, over all threads, the seconds spent in each stage: `with clock("read"): ...`."""

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(STAGES, 0.0)
        self._lock = threading.Lock()

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - started
            with self._lock:
                self._seconds[stage] += spent

    @property
    def seconds(self) -> dict[str, float]:
        """Busy seconds by stage; with several threads a stage can exceed the wall time."""
        with self._lock:
            return dict(self._seconds)


def total_seconds(clocks: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Return the sum by stage."""
    clocks = list(clocks)
    return {stage: sum(seconds.get(stage, 0.0) for seconds in clocks) for stage in STAGES}


def wall_shares(seconds: Mapping[str, float], wall: float, model_workers: int) -> dict[str, float]:
    """Return the share of the wall time that each stage was busy.

    The model's share is the mean of its workers: 1 means that none of them ever waited. Any other stage counts its
    threads together: 0.5 means that it kept half a core busy.
    """
    return {
        stage: seconds.get(stage, 0.0) / max(wall, 1e-9) / (model_workers if stage == "model" else 1)
        for stage in STAGES
    }
