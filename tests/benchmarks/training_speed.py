"""How fast training learns: whole steps beside `nn.LSTM` forward and backward, and beside padded random batches.

Run it with nothing else running. WORKSPACE has been trained in, so it holds token ids:

    uv run python tests/benchmarks/training_speed.py WORKSPACE
    uv run python tests/benchmarks/training_speed.py WORKSPACE --to-the-end   # both ways, and what they learn
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pipeline.config import Recipe, TrainingConfig, apply_overrides
from pipeline.dataset.corpus import TRAIN, VALIDATION
from pipeline.dataset.token_cache import TokenCache
from pipeline.dataset.token_set import TokenSet
from pipeline.training import loop as training
from pipeline.training.loop import Trainer, epoch_minibatches
from pipeline.training.model import Classifier
from pipeline.training.parallel import CorePool

CPU = torch.device("cpu")


class OneAtATime(CorePool):
    """A batch as a whole in single precision, all cores inside each operation: how PyTorch is commonly used."""

    def split_rows(self, rows: np.ndarray) -> list[np.ndarray]:
        return [rows]

    def autocast(self) -> torch.autocast:
        return torch.autocast("cpu", enabled=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--batches", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--to-the-end", action="store_true", help="train whole models and compare them")
    options = parser.parse_args()
    caches = [path.parent for path in sorted(options.workspace.glob("tokens/*/train.parquet"))]
    if not caches:
        print(f"{options.workspace} holds no token ids: train in it first", file=sys.stderr)
        sys.exit(2)
    cache = TokenCache(caches[0])
    recipe = apply_overrides(
        Recipe(), ["training.layer_decay=1.0"]
    )  # as from scratch: slower lower layers are for encoders
    texts = cache.read(TRAIN)
    if options.to_the_end:
        to_the_end(cache, recipe)
        return
    batches = epoch_minibatches(texts, recipe.training, 0)[: options.batches]
    order = np.random.default_rng(1).permutation(len(texts))[: sum(map(len, batches))]
    random_batches = [order[start : start + 64] for start in range(0, len(order), 64)]
    lstm = nn.LSTM(recipe.model.embedding_size, recipe.model.hidden_size, bidirectional=True)
    lengths = texts.tokens.lengths
    inputs = [
        torch.randn(int(lengths[rows].max()), len(rows), recipe.model.embedding_size, requires_grad=True)
        for rows in batches
    ]
    common = trainer_of(cache, texts, recipe, OneAtATime(CPU))
    own = trainer_of(cache, texts, recipe, OneAtATime(CPU))

    def product() -> None:
        with CorePool(CPU) as own.cores:
            for number, rows in enumerate(batches):
                own.step(rows, 0.5, [number])

    sorted_tokens = sum(int(lengths[rows].sum()) for rows in batches)
    ways: dict[str, tuple[Callable[[], object], int]] = {
        "a whole step": (product, sorted_tokens),
        "nn.LSTM alone, forward and backward, fp32": (
            lambda: [lstm(one)[0].sum().backward() for one in inputs],
            sorted_tokens,
        ),
        "a whole step, padded random batches of 64, fp32": (
            lambda: [common.step(rows, 0.5, [number]) for number, rows in enumerate(random_batches)],
            int(lengths[order].sum()),
        ),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.rounds + 1):  # the first round warms up
        for name, (way, _) in ways.items():
            started = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - started)
    print(f"{len(batches)} batches, {len(order):,} texts, medians of {options.rounds} rounds\n")
    print("| | texts/s | tokens/s |\n| --- | ---: | ---: |")
    for name, values in seconds.items():
        middle = statistics.median(values[1:])
        print(f"| {name} | {len(order) / middle:,.0f} | {ways[name][1] / middle:,.0f} |")


def to_the_end(cache: TokenCache, recipe: Recipe) -> None:
    """Train the same model in both ways, from the same weights, and print what validation says."""
    print("| | texts/s | validation macro-F1 | best epoch |\n| --- | ---: | ---: | ---: |")
    own = training.epoch_minibatches, training.CorePool
    for name, (batches, cores) in {
        "nightlabel": own,
        "padded random batches of 64, fp32": (random_batches_of_64, OneAtATime),
    }.items():
        training.epoch_minibatches, training.CorePool = batches, cores  # type: ignore[assignment]
        torch.manual_seed(recipe.training.seed)
        model = Classifier(cache.tokenizer.size, len(cache.manifest["labels"]), recipe.model)
        sets = cache.read(TRAIN), cache.read(VALIDATION)
        found = training.train_lstm(model, *sets, recipe.training, device=CPU)
        speed = len(found.history) * len(sets[0]) / found.seconds
        print(f"| {name} | {speed:,.0f} | {found.best_macro_f1:.2%} | {found.best_epoch} |", flush=True)


def random_batches_of_64(texts: TokenSet, config: TrainingConfig, epoch: int) -> list[np.ndarray]:
    order = np.random.default_rng([config.seed, epoch]).permutation(len(texts))
    return [order[start : start + 64] for start in range(0, len(order), 64)]


def trainer_of(cache: TokenCache, texts: TokenSet, recipe: Recipe, cores: CorePool) -> Trainer:
    torch.manual_seed(1)
    model = Classifier(cache.tokenizer.size, len(cache.manifest["labels"]), recipe.model)
    return Trainer(model.train(), texts, recipe.training, cores)


if __name__ == "__main__":
    main()
