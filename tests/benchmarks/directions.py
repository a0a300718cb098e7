"""How a bidirectional LSTM trains fastest on ragged rows: packed, padded, or with the rows reversed.

    uv run python tests/benchmarks/directions.py

Padded is the ceiling, and wrong: its backward direction reads the padding first. The three take turns.
"""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from pipeline.training.model import LstmLayer

ROWS, TIME, SIZE, ROUNDS = 64, 200, 128, 7


def main() -> None:
    torch.manual_seed(0)
    lengths = torch.randint(170, TIME + 1, (ROWS,))
    states = torch.randn(TIME, ROWS, SIZE, requires_grad=True)
    both, layer = nn.LSTM(SIZE, SIZE, bidirectional=True), LstmLayer(SIZE, SIZE, bidirectional=True)
    places = torch.arange(TIME)[:, None]
    reversal = (torch.where(places < lengths, lengths - 1 - places, places) * ROWS + torch.arange(ROWS)).flatten()

    def packed() -> Tensor:
        return both(nn.utils.rnn.pack_padded_sequence(states, lengths, enforce_sorted=False))[0].data

    ways: dict[str, Callable[[], Tensor]] = {
        "packed": packed,
        "padded": lambda: both(states)[0],
        "reversed": lambda: layer(states, reversal),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            way().sum().backward()
            seconds[name].append(time.perf_counter() - started)
    for name, values in seconds.items():
        speed = int(lengths.sum()) / statistics.median(values[1:])  # the first round warms up
        print(f"{name:9} {speed:9,.0f} tokens/s, median of {ROUNDS}")


if __name__ == "__main__":
    main()
