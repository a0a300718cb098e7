"""Options shared by commands, how they print, and checks before a run starts."""

import os
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from pipeline.config import Recipe, Settings
from pipeline.errors import InputError

console = Console()
error_console = Console(stderr=True)

WorkspaceOption = Annotated[
    str, typer.Option("--workspace", "-w", envvar="NIGHTLABEL_WORKSPACE", help="Workspace folder.")
]
ModelSpec = Annotated[str | None, typer.Option("--model", "-m", help="NAME or NAME@VERSION; the champion if empty.")]
VersionArgument = Annotated[str, typer.Argument(metavar="NAME[@VERSION]", help="The champion without @VERSION.")]
DeviceOption = Annotated[Literal["auto", "cuda", "cpu"], typer.Option(help="Device that runs the model.")]
VariantOption = Annotated[
    Literal["auto", "fp32", "int8", "fp16"],
    typer.Option(help="Numbers the model computes with; auto takes the fastest whose labels agree with fp32."),
]
PresetName = Annotated[
    str, typer.Option("--preset", "-p", help="Settings to start from: a name, or the path of a .toml file.")
]
SettingChanges = Annotated[
    list[str] | None, typer.Option("--set", help="section.field=value, for example training.epochs=5. Repeatable.")
]
TrainingBatches = Annotated[list[str] | None, typer.Option("--batch", help="Batches to train on; all if not given.")]
WordVectorsFile = Annotated[
    Path | None,
    typer.Option("--embeddings", metavar="FILE", help="Pretrained word vectors: a word and its numbers on each line."),
]
EncoderName = Annotated[
    str | None, typer.Option("--encoder", metavar="NAME", help="Start from this encoder of nightlabel pretrain.")
]
TeacherFile = Annotated[
    Path | None,
    typer.Option(
        "--teacher",
        metavar="TEACHER",
        help="Distil from a teacher of nightlabel teach (its name or folder), or from a file of soft labels: doc_id "
        "and a probability column per class.",
    ),
]
ForceOption = Annotated[
    bool, typer.Option("--force", help="Promote even if it is not shown to be as good as the champion.")
]
ReasonOption = Annotated[str | None, typer.Option(help="Reason for the record; --force needs one.")]
WebhookUrl = Annotated[
    str | None,
    typer.Option(metavar="URL", help="Notify this URL of failed, crashed and held nights; kept until changed."),
]


def field_help(settings: type[Settings], name: str) -> str:
    """Return the description of a settings field."""
    return str(settings.model_fields[name].description)


def check_training_inputs(
    workspace: str, recipe: Recipe, *, embeddings: Path | None, encoder: str | None, teacher: Path | None
) -> None:
    """Check the inputs of a training before a server starts.

    Raises:
        InputError: there is no such file or teacher.
        ModelError: the encoder is unknown, or does not fit the recipe, or a file of the teacher has changed.
    """
    if embeddings and not embeddings.is_file():
        raise InputError(f"--embeddings {embeddings}: there is no such file")
    from pipeline.workspace import Workspace

    if teacher:
        from pipeline.training.teach.teacher import find_teacher

        find_teacher(Workspace(workspace), str(teacher))
    if encoder:
        from pipeline.training.pretrain.encoder import named_encoder

        named_encoder(Workspace(workspace), encoder, recipe)


def show(markdown: str) -> None:
    """Print a report; a pipe gets the plain Markdown."""
    if console.is_terminal:
        from rich.markdown import Markdown

        console.print(Markdown(markdown))
    else:
        console.file.write(markdown + "\n\n")


def print_line(line: str) -> None:
    """Print a line as it is: no markup, no wrapping."""
    console.print(line, soft_wrap=True, highlight=False, markup=False)


def quiet_prefect() -> None:
    """Reduce the terminal's log to our own lines and to warnings; the run's log keeps all."""
    from flows.terminal import quiet, temporary_server_note

    quiet(debug=is_debugging())
    note = temporary_server_note()
    if note:
        error_console.print(note, style="dim", soft_wrap=True)


def is_debugging() -> bool:
    """Return whether --debug was given."""
    return os.environ.get("NIGHTLABEL_DEBUG") == "1"
