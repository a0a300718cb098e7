"""How much of training is the LSTM itself: whole steps beside `nn.LSTM` forward and backward on the same batches.

Run it with nothing else running. WORKSPACE has been trained in, so it holds token ids:

    uv run python tests/benchmarks/training_speed.py WORKSPACE
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from pipeline.config import Recipe
from pipeline.corpus import TRAIN
from pipeline.model import Classifier
from pipeline.tokens import TokenCache
from pipeline.training import _Trainer, epoch_batches
from pipeline.workspace import Workspace


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--batches", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    caches = sorted(Workspace(options.workspace).tokens_of("x").parent.glob("*/manifest.json"))
    if not caches:
        print(f"{options.workspace} holds no token ids: train in it first", file=sys.stderr)
        sys.exit(2)
    cache, recipe = TokenCache(caches[0].parent), Recipe()
    texts = cache.read(TRAIN)
    torch.manual_seed(1)
    model = Classifier(cache.tokenizer.size, len(cache.manifest["labels"]), recipe.model)
    trainer = _Trainer(model.train(), texts, recipe.training, torch.device("cpu"))
    batches = epoch_batches(texts.tokens.lengths, recipe.training, 0)[: options.batches]
    tokens = sum(int(texts.tokens.lengths[rows].sum()) for rows in batches)
    lstm = nn.LSTM(recipe.model.embedding_size, recipe.model.hidden_size, bidirectional=True)
    shapes = [(int(texts.tokens.lengths[rows].max()), len(rows)) for rows in batches]
    inputs = [torch.randn(*shape, recipe.model.embedding_size, requires_grad=True) for shape in shapes]
    clip = recipe.training.gradient_norm
    dense = trainer.dense
    ways: dict[str, Callable[[int], object]] = {
        "a whole step": lambda number: trainer.step(batches[number], 0.5),
        "nn.LSTM alone, forward and backward": lambda number: lstm(inputs[number])[0].sum().backward(),
        "its optimisers alone": lambda _: [optimizer.step() for optimizer, _ in trainer.optimizers],
        "clipping alone": lambda _: nn.utils.clip_grad_norm_(dense, clip),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.rounds + 1):  # the first round warms up
        for name, way in ways.items():
            started = time.perf_counter()
            for number in range(len(batches)):
                way(number)
            seconds[name].append(time.perf_counter() - started)
    whole = statistics.median(seconds["a whole step"][1:])
    print(f"{len(batches)} batches of {tokens / len(batches):,.0f} tokens, medians of {options.rounds} rounds\n")
    print("| | ms a step | share of a step | tokens/s |\n| --- | ---: | ---: | ---: |")
    for name, values in seconds.items():
        middle = statistics.median(values[1:])
        print(f"| {name} | {1000 * middle / len(batches):.1f} | {middle / whole:.1%} | {tokens / middle:,.0f} |")


if __name__ == "__main__":
    main()
