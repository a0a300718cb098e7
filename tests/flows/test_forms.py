"""The forms that the UI draws from the flows' signatures: nothing in them has to be looked up in code."""

import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect import Flow
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import validate

from pipeline import config

PREFECT_FILE = Path(__file__).parents[2] / "deploy" / "prefect.yaml"
ENTRYPOINTS = [one["entrypoint"] for one in yaml.safe_load(PREFECT_FILE.read_text("utf-8"))["deployments"]]
LIMITS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}


@pytest.fixture(params=ENTRYPOINTS)
def flow(request: pytest.FixtureRequest) -> Flow[..., Any]:
    module, name = request.param.split(":")
    found: Flow[..., Any] = getattr(importlib.import_module(module), name)
    return found


@pytest.fixture
def schema(flow: Flow[..., Any]) -> dict[str, Any]:
    return parameter_schema(flow).model_dump_for_openapi()


@pytest.fixture
def fields(schema: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Everything that the form asks for, by its name in code; what is inside of a group with the group's before it."""
    inner = {
        f"{group}.{name}": field
        for group, model in schema.get("definitions", {}).items()
        for name, field in model["properties"].items()
    }
    return schema["properties"] | inner


def _defaults(schema: dict[str, Any]) -> dict[str, Any]:
    return {name: field["default"] for name, field in schema["properties"].items() if "default" in field}


def test_every_parameter_has_a_title_of_its_own(schema: dict[str, Any]) -> None:
    assert [name for name, field in schema["properties"].items() if field["title"] == name] == []


def test_every_setting_in_a_group_has_a_title_of_its_own(schema: dict[str, Any]) -> None:
    models = [getattr(config, name) for name in schema.get("definitions", {})]
    assert [(model, name) for model in models for name, field in model.model_fields.items() if not field.title] == []


def test_everything_is_said_in_sentences(fields: dict[str, dict[str, Any]]) -> None:
    assert [name for name, field in fields.items() if not field.get("description", "").endswith(".")] == []


def test_numbers_have_limits(fields: dict[str, dict[str, Any]]) -> None:
    numbers = {name: field for name, field in fields.items() if field.get("type") in ("integer", "number")}
    assert [name for name, field in numbers.items() if not LIMITS & field.keys()] == []


def test_nobody_is_asked_to_choose_between_a_type_and_none(fields: dict[str, dict[str, Any]]) -> None:
    assert [name for name, field in fields.items() if {"type": "null"} in field.get("anyOf", [])] == []


def test_what_the_form_holds_at_first_is_accepted_and_means_the_defaults(
    flow: Flow[..., Any], schema: dict[str, Any]
) -> None:
    kinds = {name: schema["properties"][name]["type"] for name in schema.get("required", [])}
    needed = {name: "folder" if kind == "string" else ["file"] for name, kind in kinds.items()}
    filled = needed | _defaults(schema)
    assert [error.message for error in validate(filled, schema)] == []
    defaults = {name: one.default for name, one in inspect.signature(flow.fn).parameters.items()}
    assert flow.validate_parameters(filled) == defaults | needed


@pytest.mark.parametrize("empty", [{"label": None}, {"label": None, "label_separator": None, "id": None}])
def test_a_field_of_a_group_may_stay_empty(empty: dict[str, Any]) -> None:
    from flows.ingest import ingest

    values = {"sources": ["file"], "config": empty}
    assert validate(values, parameter_schema(ingest).model_dump_for_openapi()) == []
    assert ingest.validate_parameters(values)["config"] == config.IngestConfig()


@pytest.mark.parametrize(
    ("entrypoint", "values"),
    [
        ("ingest:ingest", {"sources": ["file"], "batch": "no name"}),
        ("ingest:ingest", {"sources": ["file"], "date": "20.11.2026"}),
        ("ingest:ingest", {"sources": ["file"], "config": {"max_reject_rate": 5}}),
        ("train:train", {"model": "no name"}),
        ("train:train", {"preset": "unheard-of"}),
        ("train:train", {"settings": ["epochs=5"]}),
        ("teach:teach", {"encoder": "folder", "name": "no name"}),
        ("tune:tune", {"only": ["training.epochs"]}),
        ("tune:tune", {"minutes": -1}),
        ("score:score", {"batches": ["../elsewhere"]}),
        ("score:score", {"config": {"review_below": 7}}),
    ],
)
def test_the_form_refuses_what_cannot_work(entrypoint: str, values: dict[str, Any]) -> None:
    module, name = entrypoint.split(":")
    schema = parameter_schema(getattr(importlib.import_module(f"flows.{module}"), name)).model_dump_for_openapi()
    (error,) = validate(values, schema)
    assert next(iter(error.absolute_path)) == list(values)[-1]


def test_stored_parameters_may_use_the_earlier_names_of_settings() -> None:
    from flows.score import score
    from flows.train import train

    stored = {"config": {"precision": "fp32"}}
    schema = parameter_schema(score).model_dump_for_openapi()
    assert validate(stored, schema) == []
    assert score.validate_parameters(stored)["config"].variant == "fp32"
    assert schema["definitions"]["ScoringConfig"]["properties"]["variant"]["enum"] == ["auto", "fp32", "int8", "fp16"]
    assert "precision" not in schema["definitions"]["ScoringConfig"]["properties"]
    settings = {"settings": ["promise.per=class", "selective.per=class"]}
    assert validate(settings, parameter_schema(train).model_dump_for_openapi()) == []


def test_the_form_says_which_settings_there_are() -> None:
    from flows.train import train

    said = parameter_schema(train).properties["settings"]["description"]
    sections = [getattr(config.Recipe(), section) for section in config.Recipe.model_fields]
    assert [name for section in sections for name in type(section).model_fields if name not in said] == []
