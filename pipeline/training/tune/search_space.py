"""The search space of `tune` and the plan of a search: checked before anything runs, without PyTorch and Optuna."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.config import Recipe, load_recipe, validated
from pipeline.errors import ConfigError
from pipeline.workspace import check_name


@dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`, sampled on a logarithmic scale if `log`."""

    low: float
    high: float
    log: bool = False


Space = dict[str, Range | tuple[Any, ...]]  # by `section.field`, a range or the choices

# A starting value outside of these widens its range or joins the choices.
SEARCH_SPACE: Space = {
    "training.learning_rate": Range(5e-4, 2e-2, log=True),
    "training.batch_size": (16, 32, 64, 128),
    "training.word_dropout": Range(0.0, 0.4),
    "training.weight_decay": Range(1e-4, 3e-1, log=True),
    "training.label_smoothing": Range(0.0, 0.2),
    "training.class_balance": ("none", "weights", "sampling"),
    "model.embedding_size": (64, 128, 256),
    "model.hidden_size": (64, 128, 256),
    "model.pooling": ("max", "mean", "attention"),
    "model.embedding_dropout": Range(0.0, 0.6),
    "model.head_dropout": Range(0.0, 0.7),
}
ENCODER_FIELDS = ("model.embedding_size", "model.hidden_size")
DIGITS = 2  # significant digits of a sampled number


@dataclass(frozen=True)
class SearchPlan:
    """What a search tries, and its budget.

    Attributes:
        name: of the search, and of the preset it writes.
        preset: where the starting settings come from, for the record.
        start: the starting settings, which are the first trial.
        space: range or choices of each searched setting, by `section.field`.
        trials: most trials of the search, those of earlier runs included.
        minutes: spent in trials, earlier runs included, after which no other begins; None for no limit.
        batches: to train on; all if empty.
        embeddings: path of a file of word vectors to start from.
        encoder: name of a pretrained encoder to start from.
        teacher: path of a file of soft labels, or the name or folder of a teacher.
    """

    name: str
    preset: str
    start: Recipe
    space: Space
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
    """Return the plan of a search.

    Args:
        name: of the search, and of the preset it writes.
        preset: settings to start from.
        settings: changes to the preset, as `section.field=value`; these fields are not searched.
        only: fields to search, as `section.field`; if empty, all of `SEARCH_SPACE` that have an effect.
        trials: most trials of the search; fewer are planned if there are fewer combinations.
        minutes: spent in trials, after which no other begins.
        batches: to train on.
        embeddings: path of a file of word vectors, which fixes the size of the embedding.
        encoder: name of a pretrained encoder, which fixes the sizes of embedding and LSTM.
        teacher: path of a file of soft labels, or the name or folder of a teacher.

    Raises:
        ConfigError: a name, setting, field or budget is invalid.
    """
    check_name("search", name)
    if trials < 1:
        raise ConfigError(f"--trials {trials}: a search needs at least one")
    if minutes is not None and not minutes > 0:
        raise ConfigError(f"--minutes {minutes:g}: a search needs some time")
    if embeddings and encoder:
        raise ConfigError("--embeddings and --encoder exclude each other: choose one")
    start = load_recipe(preset, list(settings))
    fixed = {text.partition("=")[0].strip(): "--set fixes it" for text in settings}
    if start.training.class_balance == "try":
        fixed["training.class_balance"] = "every training tries all of its values"
    if embeddings:
        fixed["model.embedding_size"] = "the word vectors fix it"
    if encoder:
        fixed |= dict.fromkeys(ENCODER_FIELDS, "the encoder fixes it")
    space = {field: _widened(SEARCH_SPACE[field], value_of(start, field)) for field in _searched(only, fixed)}
    trials = int(min(trials, combinations(space)))
    return SearchPlan(name, preset, start, space, trials, minutes, tuple(batches), embeddings, encoder, teacher)


def _searched(only: Sequence[str], fixed: dict[str, str]) -> list[str]:
    """Return the fields to search, of `only` if it is not empty; `fixed` holds the reason why others are not."""
    for field in only:
        if field not in SEARCH_SPACE:
            fields = ", ".join(SEARCH_SPACE)
            raise ConfigError(f"--only {field!r}: not a setting that can be searched; there are: {fields}")
        if field in fixed:
            raise ConfigError(f"--only {field!r}: cannot be searched, because {fixed[field]}")
    searched = [field for field in SEARCH_SPACE if field not in fixed and (not only or field in only)]
    if not searched:
        raise ConfigError("--set fixes every setting that could be searched: leave one of them free")
    return searched


def _widened(values: Range | tuple[Any, ...], start: Any) -> Range | tuple[Any, ...]:
    """Return a range or choices that include a starting value, unless that is 0 and the scale logarithmic."""
    if isinstance(values, Range):
        low = values.low if values.log and not start else min(values.low, start)
        return Range(low, max(values.high, start), values.log)
    return tuple(sorted({*values, start}))


def combinations(space: Space) -> float:
    """Return how many different trials there can be: infinitely many where a number is searched."""
    return math.prod(math.inf if isinstance(values, Range) else len(values) for values in space.values())


def starting_values(plan: SearchPlan) -> dict[str, Any]:
    """Return the starting value of each searched setting, or the lowest of its range if it is below."""
    starts = {field: value_of(plan.start, field) for field in plan.space}
    return {
        field: max(values.low, starts[field]) if isinstance(values, Range) else starts[field]
        for field, values in plan.space.items()
    }


def value_of(recipe: Recipe, field: str) -> Any:
    """Return the value of a `section.field`."""
    section, name = field.split(".")
    return getattr(getattr(recipe, section), name)


def with_settings(recipe: Recipe, values: dict[str, Any]) -> Recipe:
    """Return a recipe with values by `section.field`; floats are rounded to two significant digits."""
    sections = recipe.model_dump()
    for field, value in values.items():
        section, name = field.split(".")
        sections[section][name] = float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
    return validated(Recipe, sections)
