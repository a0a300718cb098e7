"""Parameter types of the flows: title, limits, and a JSON schema that the forms in the UI draw well.

A parameter's description is in the docstring of its flow, where Prefect reads it.
"""

import datetime
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema

from pipeline.config import Recipe, preset_names
from pipeline.workspace import NAME_PATTERN

A_NAME = f"^{NAME_PATTERN.pattern}$"


def titled(title: str, **schema: Any) -> Any:
    """Return the annotation that gives a parameter its title in the form.

    Args:
        title: shown above the input.
        schema: further JSON schema, checked by the form only.
    """
    return Field(json_schema_extra={"title": title, **schema})


def optional(title: str, **schema: Any) -> tuple[Any, ...]:
    """Return the annotations of a parameter that may be None: one input, empty by default."""
    kind = {"type": "string", **schema}
    empty = "" if kind["type"] == "string" else 0
    return (
        BeforeValidator(lambda value: None if value == empty else value),
        WithJsonSchema(kind),
        titled(title, default=empty),
    )


def setting_changes(title: str, sentence: str) -> Any:
    """Return the annotation of a list of changed settings, whose description lists all sections and fields.

    Args:
        title: shown above the input.
        sentence: the start of the description.
    """
    sections = {name: type(field.default).model_fields for name, field in Recipe.model_fields.items()}
    listing = "; ".join(f"in {name}: {', '.join(fields)}" for name, fields in sections.items())
    return titled(
        title,
        description=f"{sentence}, each as section.field=value, for example training.epochs=6. Settings: {listing}.",
        items={"type": "string", "pattern": rf"^({'|'.join(Recipe.current_names())})\.[a-z_]+ *=.+$"},
    )


def named(title: str) -> tuple[Any, ...]:
    """Return the annotations of an optional name in the workspace."""
    return optional(title, pattern=f"^({NAME_PATTERN.pattern})?$")


WorkspacePath = Annotated[str, titled("Workspace folder")]
OptionalDay = Annotated[datetime.date | None, *optional("Date", pattern=r"^(\d{4}-\d{2}-\d{2})?$")]
Batches = Annotated[list[str], titled("Batches", items={"type": "string", "pattern": A_NAME})]
ModelName = Annotated[str | None, *optional("Model")]
PRESET_SCHEMA = {
    "anyOf": [
        {"title": "By name", "type": "string", "enum": preset_names()},
        {
            "title": "From a file",
            "type": "string",
            "description": "Path of a .toml file, for example written by tune: workspace/presets/tuned.toml.",
        },
    ],
    "pattern": rf"^({'|'.join(preset_names())}|.*\.toml)$",
}
Preset = Annotated[str, WithJsonSchema(PRESET_SCHEMA), titled("Preset")]
SettingChanges = Annotated[list[str], setting_changes("Settings", "Changes to the preset")]
WordVectorsFile = Annotated[str | None, *optional("Word vectors")]
EncoderName = Annotated[str | None, *named("Encoder")]
TeacherFile = Annotated[str | None, *optional("Teacher")]
