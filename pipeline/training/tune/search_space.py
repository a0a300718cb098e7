"""What a search for settings may change, and what it is to do: checked before anything runs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from pipeline.config import Recipe, load_recipe, validated
from pipeline.errors import ConfigError
from pipeline.workspace import check_name

# What is searched, and between which values. A starting value outside of them is let in.
SEARCH_SPACE: dict[str, BaseDistribution] = {
    "training.learning_rate": FloatDistribution(5e-4, 2e-2, log=True),
    "training.batch_size": CategoricalDistribution((16, 32, 64, 128)),
    "training.word_dropout": FloatDistribution(0.0, 0.4),
    "training.weight_decay": FloatDistribution(1e-4, 3e-1, log=True),
    "training.label_smoothing": FloatDistribution(0.0, 0.2),
    "training.class_balance": CategoricalDistribution(("none", "weights", "sampling")),
    "model.embedding_size": CategoricalDistribution((64, 128, 256)),
    "model.hidden_size": CategoricalDistribution((64, 128, 256)),
    "model.pooling": CategoricalDistribution(("max", "mean", "attention")),
    "model.embedding_dropout": FloatDistribution(0.0, 0.6),
    "model.head_dropout": FloatDistribution(0.0, 0.7),
}
ENCODED = ("model.embedding_size", "model.hidden_size")
DIGITS = 2  # significant ones, of a number that is sampled


@dataclass(frozen=True)
class SearchPlan:
    """What a search is to do.

    Attributes:
        name: of the search, and of the preset it writes.
        preset: where the starting settings come from, for the record.
        start: the starting settings, which are the first trial.
        space: the distribution of each setting that is searched, by `section.field`.
        trials: most trials of the search, those of earlier runs included.
        minutes: spent in trials, those of earlier runs included, after which no other begins; None for no limit.
        batches: to learn from; all if empty.
        embeddings: a file of word vectors to start from.
        encoder: the name of a pretrained encoder to start from.
        teacher: a file of class probabilities from another model.
    """

    name: str
    preset: str
    start: Recipe
    space: dict[str, BaseDistribution]
    trials: int
    minutes: float | None
    batches: tuple[str, ...]
    embeddings: str | None
    encoder: str | None
    teacher: str | None


def make_search_plan(
    name: str = "tuned",
    preset: str = "default",
    settings: Sequence[str] = (),
    only: Sequence[str] = (),
    *,
    trials: int = 20,
    minutes: float | None = None,
    batches: Sequence[str] = (),
    embeddings: str | None = None,
    encoder: str | None = None,
    teacher: str | None = None,
) -> SearchPlan:
    """Return what a search is to do.

    Args:
        name: of the search, and of the preset it writes.
        preset: settings to start from.
        settings: changes to the preset, as `section.field=value`; these fields are not searched.
        only: fields to search, as `section.field`; if empty, all of `SPACE` that have an effect.
        trials: most trials of the search; fewer are planned if there are not as many combinations.
        minutes: spent in trials, after which no other begins.
        batches: to learn from.
        embeddings: a file of word vectors, which fixes the embedding's size.
        encoder: the name of a pretrained encoder, which fixes the sizes of embedding and LSTM.
        teacher: a file of class probabilities from another model.

    Raises:
        ConfigError: a name, setting, field or budget that cannot work.
    """
    check_name("search", name)
    if trials < 1:
        raise ConfigError(f"--trials {trials}: a search needs at least one")
    if minutes is not None and not minutes > 0:
        raise ConfigError(f"--minutes {minutes:g}: a search needs some time")
    if embeddings and encoder:
        raise ConfigError("--embeddings and --encoder are two beginnings: choose one")
    start = load_recipe(preset, list(settings))
    reasons = _not_searched(start, embeddings=bool(embeddings), encoder=bool(encoder))
    reasons |= {text.partition("=")[0].strip(): "--set fixes it" for text in settings}
    fields = _searched(only, reasons)
    space = {field: _around(SEARCH_SPACE[field], value_of(start, field)) for field in fields}
    most = int(min(trials, combinations(space)))
    return SearchPlan(name, preset, start, space, most, minutes, tuple(batches), embeddings, encoder, teacher)


def _not_searched(start: Recipe, *, embeddings: bool, encoder: bool) -> dict[str, str]:
    """Return why a field is not searched, by `section.field`."""
    reasons: dict[str, str] = {}
    if start.training.class_balance == "try":
        reasons["training.class_balance"] = "every training tries all of its values"
    if embeddings:
        reasons["model.embedding_size"] = "the word vectors fix it"
    if encoder:
        reasons |= dict.fromkeys(ENCODED, "the encoder fixes it")
    return reasons


def _searched(only: Sequence[str], reasons: dict[str, str]) -> list[str]:
    for field in only:
        if field not in SEARCH_SPACE:
            raise ConfigError(
                f"--only {field!r}: not a setting that can be searched; there are: {', '.join(SEARCH_SPACE)}"
            )
        if field in reasons:
            raise ConfigError(f"--only {field!r}: cannot be searched, because {reasons[field]}")
    fields = [field for field in SEARCH_SPACE if field not in reasons and (not only or field in only)]
    if not fields:
        raise ConfigError("--set fixes every setting that could be searched: leave one of them free")
    return fields


def _around(distribution: BaseDistribution, value: Any) -> BaseDistribution:
    """Return the distribution, wide enough for a starting value, unless that is 0 and the scale logarithmic."""
    if isinstance(distribution, CategoricalDistribution):
        return CategoricalDistribution(sorted({*distribution.choices, value}))
    assert isinstance(distribution, FloatDistribution)
    low = distribution.low if distribution.log and not value else min(distribution.low, value)
    return FloatDistribution(low, max(distribution.high, value), log=distribution.log)


def combinations(space: dict[str, BaseDistribution]) -> float:
    """Return how many different trials there can be: infinitely many where a number is searched."""
    sizes = [len(one.choices) if isinstance(one, CategoricalDistribution) else math.inf for one in space.values()]
    return math.prod(sizes)


def starting_values(plan: SearchPlan) -> dict[str, Any]:
    """Return the starting value of each searched setting, or the nearest one that its distribution has."""
    values = {field: value_of(plan.start, field) for field in plan.space}
    return {
        field: max(one.low, values[field]) if isinstance(one, FloatDistribution) else values[field]
        for field, one in plan.space.items()
    }


def value_of(recipe: Recipe, field: str) -> Any:
    section, name = field.split(".")
    return getattr(getattr(recipe, section), name)


def with_settings(recipe: Recipe, values: dict[str, Any]) -> Recipe:
    """Return a recipe with values by `section.field`; numbers are rounded to what a person would write."""
    sections = recipe.model_dump()
    for field, value in values.items():
        section, name = field.split(".")
        sections[section][name] = float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
    return validated(Recipe, sections)
