"""Settings: overrides and presets, and the names of earlier versions, which stay readable."""

from pathlib import Path

import pytest

import pipeline
from pipeline.config import (
    NightConfig,
    Recipe,
    ScoringConfig,
    SelectiveConfig,
    apply_overrides,
    load_recipe,
    stored_recipe,
)
from pipeline.errors import ConfigError


def test_a_stored_recipe_keeps_its_target_precision_under_the_earlier_name_of_the_section() -> None:
    stored = {"promise": {"target_precision": 0.95, "forgotten": 1}, "gone": {}, "training": {"epochs": 4}}
    recipe = stored_recipe(stored)
    assert (recipe.selective.target_precision, recipe.training.epochs) == (0.95, 4)
    assert stored_recipe(recipe.model_dump()) == recipe


@pytest.mark.parametrize("section", ["selective", "promise"])
def test_presets_and_overrides_take_either_name(section: str, tmp_path: Path) -> None:
    preset = tmp_path / "mine.toml"
    preset.write_text(f"[{section}]\ntarget_precision = 0.9\n", encoding="utf-8")
    recipe = load_recipe(str(preset), [f"{section}.per=class"])
    assert (recipe.selective.target_precision, recipe.selective.per) == (0.9, "class")


def test_a_night_takes_earlier_names() -> None:
    config = apply_overrides(NightConfig(), ["health.hold=false", "score.precision=int8", "drift.psi_warn=0.2"])
    assert (config.drift.hold, config.drift.psi_warn, config.score.variant) == (False, 0.2, "int8")


def test_the_variant_has_one_value() -> None:
    assert ScoringConfig.model_validate({"precision": "fp32"}).variant == "fp32"
    with pytest.raises(ValueError, match="precision"):
        ScoringConfig.model_validate({"precision": "fp32", "variant": "int8"})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.epochs", "write section.field=value, for example promotion.FIELD=VALUE"),
        ("kept.per=class", "no section 'kept'; there are: tokenizer, model, pretraining, training, selective"),
        ("selective.target_precision=2", "setting selective.target_precision = 2"),
        ("selective.precision=1", "setting selective.precision = 1"),
    ],
)
def test_a_wrong_override_is_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        apply_overrides(Recipe(), [override])


def test_the_package_offers_its_entry_points() -> None:
    assert all(callable(getattr(pipeline, name)) for name in pipeline.__all__)
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = pipeline.nothing_like_it


def test_a_stored_recipe_keeps_its_target_precision_for_earlier_versions_too() -> None:
    """They know the section by its earlier name, and would label rows that must go to review."""
    stored = Recipe(selective=SelectiveConfig(target_precision=0.9)).model_dump(mode="json", by_alias=True)
    assert stored["promise"]["target_precision"] == 0.9
    assert stored_recipe(stored).selective.target_precision == 0.9
