"""What several commands share: their options, how they print, and what they check before a run begins."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markdown import Markdown

from pipeline.config import Recipe
from pipeline.errors import InputError

console = Console()
complaints = Console(stderr=True)

Workspace = Annotated[
    str,
    typer.Option("--workspace", "-w", envvar="NIGHTLABEL_WORKSPACE", help="Folder in which everything is kept."),
]
ModelSpec = Annotated[str | None, typer.Option("--model", "-m", help="NAME or NAME@VERSION; the champion if empty.")]
DeviceOption = Annotated[Literal["auto", "cuda", "cpu"], typer.Option(help="Where the model runs.")]
VariantOption = Annotated[
    Literal["auto", "fp32", "int8", "fp16"],
    typer.Option(help="Numbers the model computes with; auto takes the fastest whose labels agree with fp32."),
]

PresetName = Annotated[
    str, typer.Option("--preset", "-p", help="Settings to start from: a name, or the path of a .toml file.")
]
LearnFrom = Annotated[list[str] | None, typer.Option("--batch", help="Batches to learn from; all if not given.")]
WordVectorsFile = Annotated[
    Path | None,
    typer.Option(
        "--embeddings", metavar="FILE", help="Word vectors to start from: a word and its numbers on each line."
    ),
]

EncoderName = Annotated[
    str | None,
    typer.Option("--encoder", metavar="NAME", help="Start from this encoder, made by nightlabel pretrain."),
]
TeacherFile = Annotated[
    Path | None,
    typer.Option(
        "--teacher", metavar="FILE", help="Class probabilities from another model: doc_id and a column a class."
    ),
]

WebhookUrl = Annotated[
    str | None,
    typer.Option(metavar="URL", help="Told of failed, crashed and held nights; stays until another is given."),
]


def field_help(model: type[Any], name: str) -> str:
    return str(model.model_fields[name].description)


def check_encoder(workspace: str, name: str | None, recipe: Recipe) -> None:
    if name:
        from pipeline.training.pretrain.encoder import named_encoder
        from pipeline.workspace import Workspace

        named_encoder(Workspace(workspace), name, recipe)


def check_file(option: str, path: Path | None) -> None:
    if path and not path.is_file():
        raise InputError(f"{option} {path}: there is no such file")


def show(markdown: str) -> None:
    """Print a report; a pipe gets the plain Markdown."""
    if console.is_terminal:
        console.print(Markdown(markdown))
    else:
        console.file.write(markdown + "\n\n")


def quiet_prefect() -> None:
    """Let the terminal show our own lines and warnings, and leave the rest to the run's log."""
    from flows.terminal import quiet, temporary_server_note

    quiet(debug=is_debugging())
    note = temporary_server_note()
    if note:
        complaints.print(note, style="dim", soft_wrap=True)


def is_debugging() -> bool:
    return os.environ.get("NIGHTLABEL_DEBUG") == "1"
