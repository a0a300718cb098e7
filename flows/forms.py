"""What the forms in the UI ask for: each parameter's title, its limits, and a type that the UI draws well.

A parameter's sentence is in the docstring of its flow, where Prefect looks for it.
"""

import datetime
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema

from pipeline.config import Recipe, preset_names
from pipeline.workspace import NAME_PATTERN

A_NAME = f"^{NAME_PATTERN.pattern}$"


def titled(title: str, **schema: Any) -> Any:
    """Return what gives a parameter its title, which Prefect takes from nowhere else.

    Args:
        title: what stands above the input.
        schema: more of the parameter's JSON schema, which only the form checks: the library's errors say more.
    """
    return Field(json_schema_extra={"title": title, **schema})


def optional(title: str, **schema: Any) -> tuple[Any, ...]:
    """Return the same for a parameter that may be None: one input, empty at first, instead of a choice of types."""
    kind = {"type": "string", **schema}
    empty = "" if kind["type"] == "string" else 0
    return (
        BeforeValidator(lambda value: None if value == empty else value),
        WithJsonSchema(kind),
        titled(title, default=empty),
    )


def _preset_schema() -> dict[str, Any]:
    names = preset_names()
    file = "Path of a .toml file, for example of one that tune has written: workspace/presets/tuned.toml."
    return {
        "anyOf": [
            {"title": "By name", "type": "string", "enum": names},
            {"title": "From a file", "type": "string", "description": file},
        ],
        "pattern": rf"^({'|'.join(names)}|.*\.toml)$",
    }


def setting_changes(title: str, sentence: str) -> Any:
    """Return what describes a list of settings that differ from the preset's, with the names that there are.

    Args:
        title: what stands above the input.
        sentence: what happens to them.
    """
    sections = {name: type(field.default).model_fields for name, field in Recipe.model_fields.items()}
    known = "; ".join(f"in {name}: {', '.join(fields)}" for name, fields in sections.items())
    return titled(
        title,
        description=f"{sentence}, each as section.field=value, for example training.epochs=6. There are {known}.",
        items={"type": "string", "pattern": rf"^({'|'.join(sections)})\.[a-z_]+ *=.+$"},
    )


def named(title: str) -> tuple[Any, ...]:
    """Return what describes the optional name of something in the workspace."""
    return optional(title, pattern=f"^({NAME_PATTERN.pattern})?$")


WorkspacePath = Annotated[str, titled("Workspace folder")]
OptionalDay = Annotated[datetime.date | None, *optional("Date", pattern=r"^(\d{4}-\d{2}-\d{2})?$")]
Batches = Annotated[list[str], titled("Batches", items={"type": "string", "pattern": A_NAME})]
ModelName = Annotated[str | None, *optional("Model")]
Preset = Annotated[str, WithJsonSchema(_preset_schema()), titled("Preset")]
SettingChanges = Annotated[list[str], setting_changes("Settings", "Changes to the preset")]
WordVectorsFile = Annotated[str | None, *optional("Word vectors")]
EncoderName = Annotated[str | None, *named("Encoder")]
TeacherFile = Annotated[str | None, *optional("Teacher")]
