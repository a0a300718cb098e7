"""The command line: parses, calls a flow, prints what it returns. Known errors become one line, here."""

import datetime
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markdown import Markdown

from pipeline.config import (
    HealthConfig,
    IngestConfig,
    NightConfig,
    Recipe,
    ScoringConfig,
    load_recipe,
    override,
    validated,
)
from pipeline.errors import ConfigError, InputError, NightlabelError

app = typer.Typer(
    name="nightlabel",
    help="Labels a company's text every night. Try: nightlabel demo",
    epilog="COMMAND --help shows examples. Add --debug to any command to see where an error came from.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
models_app = typer.Typer(help="Versions of models, and which one scoring uses.", no_args_is_help=True)
app.add_typer(models_app, name="models")

console = Console()
complaints = Console(stderr=True)

Workspace = Annotated[
    str,
    typer.Option("--workspace", "-w", envvar="NIGHTLABEL_WORKSPACE", help="Folder in which everything is kept."),
]
ModelSpec = Annotated[str | None, typer.Option("--model", "-m", help="NAME or NAME@VERSION; the champion if empty.")]
Device = Annotated[Literal["auto", "cuda", "cpu"], typer.Option(help="Where the model runs.")]
Precision = Annotated[
    Literal["auto", "fp32", "int8", "fp16"],
    typer.Option(help="Numbers the model computes with; auto takes the fastest whose labels agree with fp32."),
]

PresetName = Annotated[
    str, typer.Option("--preset", "-p", help="Settings to start from: a name, or the path of a .toml file.")
]
LearnFrom = Annotated[list[str] | None, typer.Option("--batch", help="Batches to learn from; all if not given.")]
WordVectors = Annotated[
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

# For a command that runs outside the project's folder, where no [tool.prefect] is found.
TEMPORARY_SERVER = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "pipeline",
}
INGEST = IngestConfig()
SCORING = ScoringConfig()


def field_help(model: type[Any], name: str) -> str:
    return str(model.model_fields[name].description)


@app.command()
def demo(workspace: Workspace = "workspace-demo") -> None:
    """Make up support tickets, take them through the whole pipeline, and show the labelled rows."""
    from flows.demo import run_demo

    _quiet_prefect()
    run_demo(Path(workspace), console)


@app.command()
def ingest(
    sources: Annotated[list[str], typer.Argument(help="Files, folders or globs.", metavar="PATH...")],
    text: Annotated[
        list[str], typer.Option("--text", "-t", help=field_help(IngestConfig, "text") + " Repeat it to join several.")
    ] = INGEST.text,
    label: Annotated[str | None, typer.Option("--label", "-l", help=field_help(IngestConfig, "label"))] = None,
    label_separator: Annotated[str | None, typer.Option(help=field_help(IngestConfig, "label_separator"))] = None,
    id_column: Annotated[str | None, typer.Option("--id", help=field_help(IngestConfig, "id"))] = None,
    split: Annotated[str | None, typer.Option(help=field_help(IngestConfig, "split"))] = None,
    batch: Annotated[str | None, typer.Option(help="Name of the batch; the date if empty.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace a batch that has other content.")] = False,
    file_format: Annotated[str, typer.Option("--format", help=field_help(IngestConfig, "format"))] = INGEST.format,
    header: Annotated[bool, typer.Option(help=field_help(IngestConfig, "header"))] = True,
    encoding: Annotated[str, typer.Option(help=field_help(IngestConfig, "encoding"))] = INGEST.encoding,
    join: Annotated[
        str, typer.Option(help="What stands between several text columns; a new line if not given.")
    ] = "\n",
    clean_html: Annotated[bool, typer.Option("--clean-html", help=field_help(IngestConfig, "clean_html"))] = False,
    max_reject_rate: Annotated[
        float, typer.Option(help=field_help(IngestConfig, "max_reject_rate"))
    ] = INGEST.max_reject_rate,
    workspace: Workspace = "workspace",
) -> None:
    """Read raw files into a batch of documents, every row accounted for.

    Examples:

        nightlabel ingest tickets.csv --text subject --text body --label queue

        nightlabel ingest news.csv --no-header --text 2 --text 3 --label 1 --split train

        nightlabel ingest stories.csv --text title --label topics --label-separator '|'

        nightlabel ingest 'feed/*.jsonl.gz' --batch 2026-11-20
    """
    config = validated(
        IngestConfig,
        {
            "text": text,
            "label": label,
            "label_separator": label_separator,
            "id": id_column,
            "split": split,
            "format": file_format,
            "header": header,
            "encoding": encoding,
            "join": join,
            "clean_html": clean_html,
            "max_reject_rate": max_reject_rate,
        },
    )
    from pipeline.ingest.sources import find_sources

    find_sources(sources, config)  # a mistyped name is told at once, not after the server has started
    _quiet_prefect()
    from flows import ingest as ingest_flow
    from flows.report import ingest_report

    report = ingest_flow.ingest(sources, config, batch=batch, replace=replace, workspace=workspace)
    show(ingest_report(report))
    next_step = "nightlabel train" if report.labelled else "nightlabel score"
    console.print(f"Documents: {report.path}\nNext: {next_step}", soft_wrap=True)


@app.command()
def train(
    model: Annotated[str, typer.Option("--model", "-m", help="Name of the model.")] = "default",
    preset: PresetName = "default",
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="section.field=value, for example training.epochs=5. Repeatable.")
    ] = None,
    batch: LearnFrom = None,
    embeddings: WordVectors = None,
    pretrain: Annotated[
        bool, typer.Option("--pretrain", help="Start from what all text here teaches, labelled or not.")
    ] = False,
    encoder: EncoderName = None,
    teacher: TeacherFile = None,
    force: Annotated[bool, typer.Option("--force", help="Promote it even if it is worse than the champion.")] = False,
    workspace: Workspace = "workspace",
) -> None:
    """Train on the labelled documents, prove the export, and promote the version if it is not worse.

    A training that was killed goes on from its last checkpoint when the same command is given again.

    Examples:

        nightlabel train

        nightlabel train --model tickets --set training.epochs=6 --set model.pooling=attention

        nightlabel train --preset imdb-lstm100

        nightlabel train --preset workspace/presets/tuned.toml

        nightlabel train --pretrain

        nightlabel train --embeddings glove.6B.100d.txt.gz --set model.embedding_size=100

        nightlabel train --teacher opinions.parquet --set training.teacher_weight=0.7
    """
    recipe = load_recipe(preset, settings)  # a wrong setting is told at once, not after the server has started
    _check_file("--embeddings", embeddings)
    _check_file("--teacher", teacher)
    if embeddings and (pretrain or encoder):
        raise ConfigError("--embeddings and a pretrained encoder are two beginnings: choose one")
    _check_encoder(workspace, encoder, recipe)
    _quiet_prefect()
    from flows import train as train_flow
    from flows.report import model_report

    publication = train_flow.train(
        model,
        preset,
        settings or [],
        batches=batch or [],
        embeddings=str(embeddings) if embeddings else None,
        pretrain=pretrain,
        encoder=encoder,
        teacher=str(teacher) if teacher else None,
        force=force,
        workspace=workspace,
    )
    show(model_report(publication, pictures=False))
    console.print(f"Bundle: {publication.bundle.path}\nNext: nightlabel score", soft_wrap=True)


@app.command()
def tune(
    name: Annotated[str, typer.Option(help="Name of the search, and of the preset that it writes.")] = "tuned",
    preset: PresetName = "default",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="section.field=value: a setting that is fixed, not searched. Repeatable."),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="FIELD", help="section.field: search only this one. Repeatable.")
    ] = None,
    trials: Annotated[int, typer.Option(help="Most trainings, those of earlier runs of this search included.")] = 20,
    minutes: Annotated[
        float | None, typer.Option(help="Minutes spent in trainings after which no other begins; no limit if empty.")
    ] = None,
    batch: LearnFrom = None,
    embeddings: WordVectors = None,
    encoder: EncoderName = None,
    teacher: TeacherFile = None,
    workspace: Workspace = "workspace",
) -> None:
    """Search for settings that suit the labelled documents, and write the best as a preset.

    Each trial is a training, measured on the validation split; those that fall behind are stopped early. The first
    has the starting preset, so that the report can say what was gained. A search that was killed goes on when the
    same command is given again; a larger budget continues it.

    Examples:

        nightlabel tune

        nightlabel tune --trials 40 --minutes 120

        nightlabel tune --name rates --only training.learning_rate --only training.word_dropout

        nightlabel tune --name small --set model.hidden_size=64 --set training.epochs=4
    """
    from pipeline.search_space import make_plan

    inputs: dict[str, Any] = {
        "batches": batch or [],
        "embeddings": str(embeddings) if embeddings else None,
        "encoder": encoder,
        "teacher": str(teacher) if teacher else None,
    }
    # A wrong setting is told at once, not after the server has started.
    plan = make_plan(name, preset, settings or [], only or [], trials=trials, minutes=minutes, **inputs)
    _check_file("--embeddings", embeddings)
    _check_file("--teacher", teacher)
    _check_encoder(workspace, encoder, plan.start)
    _quiet_prefect()
    from flows import tune as tune_flow
    from flows.tuning_report import tuning_report

    tuning = tune_flow.tune(
        name,
        preset,
        settings or [],
        only or [],
        trials=trials,
        minutes=minutes,
        **inputs,
        workspace=workspace,
    )
    show(tuning_report(tuning, pictures=False))
    console.print(f"Preset: {tuning.preset or 'none'}\nPicture: {tuning.picture}", soft_wrap=True)


@app.command()
def pretrain(
    preset: PresetName = "default",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="section.field=value, for example pretraining.epochs=6. Repeatable."),
    ] = None,
    batch: LearnFrom = None,
    workspace: Workspace = "workspace",
) -> None:
    """Learn from every text there is, labelled or not, for later trainings to start from.

    A pretraining that was killed goes on from its last checkpoint when the same command is given again. The texts of
    the test split are left out, so that the test stays one; labels are never used.

    Examples:

        nightlabel pretrain

        nightlabel pretrain --set pretraining.epochs=8

        nightlabel pretrain --set pretraining.leave_out_test=false --batch 2026-11-20
    """
    load_recipe(preset, settings)
    _quiet_prefect()
    from flows import pretrain as pretrain_flow
    from flows.report import encoder_report

    encoder = pretrain_flow.pretrain(preset, settings or [], batches=batch or [], workspace=workspace)
    show(encoder_report(encoder, pictures=False))
    console.print(f"Encoder: {encoder.path}\nNext: nightlabel train --pretrain", soft_wrap=True)


@app.command()
def score(
    batch: Annotated[list[str] | None, typer.Option(help="Batches to label; all without labels if not given.")] = None,
    model: ModelSpec = None,
    device: Device = "auto",
    precision: Precision = "auto",
    review_below: Annotated[float, typer.Option(help=field_help(ScoringConfig, "review_below"))] = SCORING.review_below,
    batch_tokens: Annotated[int, typer.Option(help=field_help(ScoringConfig, "batch_tokens"))] = SCORING.batch_tokens,
    threads: Annotated[int, typer.Option(help=field_help(ScoringConfig, "threads"))] = SCORING.threads,
    hold: Annotated[bool, typer.Option("--hold/--no-hold", help=field_help(HealthConfig, "hold"))] = True,
    workspace: Workspace = "workspace",
) -> None:
    """Label documents; what is labelled already is left as it is.

    Examples:

        nightlabel score

        nightlabel score --batch 2026-11-20 --model tickets@3 --device cuda

        nightlabel score --precision fp32
    """
    config = validated(
        ScoringConfig,
        {
            "device": device,
            "precision": precision,
            "review_below": review_below,
            "batch_tokens": batch_tokens,
            "threads": threads,
        },
    )
    from pipeline.device import cuda_obstacle
    from pipeline.registry import Registry
    from pipeline.variants import choose_precision
    from pipeline.workspace import Workspace as Place

    # An unknown model, or one without the variant, is told at once.
    bundle = Registry(Place(workspace)).find(model)
    on_gpu = device == "cuda" or (device == "auto" and cuda_obstacle() is None)
    choose_precision(precision, bundle.variants, on_gpu=on_gpu, title=bundle.title)
    _quiet_prefect()
    from flows import score as score_flow
    from flows.report import labels_report

    reports = score_flow.score(batch or [], model, config, HealthConfig(hold=hold), workspace=workspace)
    if not reports or all(report.skipped for report in reports):
        console.print("Nothing to do: everything asked for is labelled already.")
    if reports:
        show(labels_report(reports, Place(workspace)))
        console.print("\n".join(f"Labels: {report.path}" for report in reports), soft_wrap=True)


@app.command()
def nightly(
    source: Annotated[list[str] | None, typer.Option(help="Files, folders or globs that came in.")] = None,
    date: Annotated[
        datetime.datetime | None, typer.Option(formats=["%Y-%m-%d"], help="The day of the night; today if empty.")
    ] = None,
    text: Annotated[list[str], typer.Option("--text", "-t", help=field_help(IngestConfig, "text"))] = INGEST.text,
    id_column: Annotated[str | None, typer.Option("--id", help=field_help(IngestConfig, "id"))] = None,
    model: ModelSpec = None,
    device: Device = "auto",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="ingest.FIELD=VALUE, score.FIELD=VALUE or health.FIELD=VALUE. Repeatable."),
    ] = None,
    workspace: Workspace = "workspace",
) -> None:
    """Ingest what came in, label everything that has no labels yet, and report.

    Examples:

        nightlabel nightly --source 'feed/2026-11-20/*.csv' --date 2026-11-20

        nightlabel nightly --source news.jsonl --text body --set ingest.clean_html=true --set score.review_below=0.8

        nightlabel nightly --source news.jsonl --set health.hold=false --set health.psi_warn=0.2
    """
    named = validated(NightConfig, {"ingest": {"text": text, "id": id_column}, "score": {"device": device}})
    config = override(named, settings or [])
    _quiet_prefect()
    from flows import nightly as nightly_flow

    day = date.date() if date else None
    report = nightly_flow.nightly(
        source or [], day, model, config.ingest, config.score, config.health, workspace=workspace
    )
    show(report)


@app.command()
def publish(
    batch: Annotated[str, typer.Argument(metavar="BATCH")],
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="NAME; may be left out if one model has labelled the batch.")
    ] = None,
    reason: Annotated[str, typer.Option(help="Why, for the record.")] = "by hand",
    workspace: Workspace = "workspace",
) -> None:
    """Publish the labels of a batch that was held, after a look at its report.

    Examples:

        nightlabel publish 2026-11-20

        nightlabel publish 2026-11-20 --model tickets --reason "the Chinese shop opened"
    """
    from pipeline.publishing import publish as publish_labels
    from pipeline.workspace import Workspace as Place

    labels = publish_labels(Place(workspace), batch, model, reason)
    console.print(f"Published: {labels.path}", soft_wrap=True)


@app.command()
def up(
    port: Annotated[
        int, typer.Option(min=1, max=65_535, help="Port of the Prefect server, on this machine only.")
    ] = 4200,
    workspace: Workspace = "workspace",
) -> None:
    """Run every night from now on: a Prefect server with its UI, the deployments, and a worker, until Ctrl-C.

    What runs already is used as it is. Ctrl-C lets the parts under way finish and stops all in order; a second one
    stops at once. Either way nothing is lost: the next run goes on where the last one ended.

    Examples:

        nightlabel up

        nightlabel up --port 4300 --workspace /data/tickets
    """
    from flows.up import up as keep_up

    keep_up(workspace, port, lambda line: console.print(line, soft_wrap=True, highlight=False))


@models_app.command("list")
def models_list(workspace: Workspace = "workspace") -> None:
    """List all versions; the champions are marked."""
    from flows.models import versions_table

    show(versions_table(workspace))


@models_app.command("show")
def models_show(
    spec: Annotated[str, typer.Argument(metavar="NAME[@VERSION]")], workspace: Workspace = "workspace"
) -> None:
    """Show how good a version is, and what it was trained on."""
    from flows.models import version_report

    show(version_report(workspace, spec))


@models_app.command("promote")
def models_promote(
    spec: Annotated[str, typer.Argument(metavar="NAME@VERSION")],
    reason: Annotated[str, typer.Option(help="Why, for the record.")] = "by hand",
    workspace: Workspace = "workspace",
) -> None:
    """Make a version the one that scoring uses by default."""
    from flows.models import promote

    console.print(promote(workspace, spec, reason))


@models_app.command("rollback")
def models_rollback(name: Annotated[str, typer.Argument(metavar="NAME")], workspace: Workspace = "workspace") -> None:
    """Make the champion before this one champion again."""
    from flows.models import rollback

    console.print(rollback(workspace, name))


@app.command()
def bench(
    batch: Annotated[str | None, typer.Option(help="Batch to measure with; the largest if empty.")] = None,
    model: ModelSpec = None,
    device: Device = "auto",
    precision: Precision = "auto",
    batch_tokens: Annotated[int, typer.Option(help="Token slots in a batch; 0 tries several.")] = 0,
    threads: Annotated[int, typer.Option(help="CPU cores to use; 0 tries several.")] = 0,
    rows: Annotated[int, typer.Option(min=0, help="Rows to take; 0 for the whole batch.")] = 20_000,
    rounds: Annotated[int, typer.Option(min=1, help="How often everything is measured; medians count.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw where the time goes into this PNG file.")] = None,
    workspace: Workspace = "workspace",
) -> None:
    """Measure how fast this machine labels, against its own ceilings, and recommend settings.

    Without a model in the workspace, the demo's tickets and a model trained on them are used. Nothing in the
    workspace is changed. Let nothing else run meanwhile.

    Examples:

        nightlabel bench

        nightlabel bench --batch 2026-11-20 --plot time.png

        nightlabel bench --precision fp32 --rows 0 --json > bench.json
    """
    config = validated(
        ScoringConfig, {"device": device, "precision": precision, "batch_tokens": batch_tokens, "threads": threads}
    )
    from flows.bench import run_bench

    def say(line: str) -> None:
        complaints.print(line, style="dim", soft_wrap=True, highlight=False)

    found = run_bench(workspace, config, batch=batch, model=model, rows=rows, rounds=rounds, plot=plot, say=say)
    if as_json:
        console.file.write(json.dumps(found, indent=2) + "\n")
        return
    from flows.report import bench_report

    show(bench_report(found))


@app.command()
def doctor(workspace: Workspace = "workspace") -> None:
    """Say what is missing here, and the command that mends it."""
    from flows.doctor import check

    findings = check(workspace)
    for finding in findings:
        console.print(f"{'[green]ok  [/]' if finding.ok else '[red]MEND[/]'}  {finding.line}", soft_wrap=True)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


def _check_encoder(workspace: str, name: str | None, recipe: Recipe) -> None:
    if name:
        from pipeline.encoder import named_encoder
        from pipeline.workspace import Workspace as Place

        named_encoder(Place(workspace), name, recipe)


def _check_file(option: str, path: Path | None) -> None:
    if path and not path.is_file():
        raise InputError(f"{option} {path}: there is no such file")


def show(markdown: str) -> None:
    """Print a report; a pipe gets the plain Markdown."""
    if console.is_terminal:
        console.print(Markdown(markdown))
    else:
        console.file.write(markdown + "\n\n")


def _quiet_prefect() -> None:
    """Let the terminal show our own lines and warnings, and leave the rest to the run's log."""
    from flows.terminal import quiet, temporary_server_note

    quiet(debug=_debug())
    note = temporary_server_note()
    if note:
        complaints.print(note, style="dim", soft_wrap=True)


def _debug() -> bool:
    return os.environ.get("NIGHTLABEL_DEBUG") == "1"


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; exit 2 for what the user can mend, 1 for what is our fault."""
    words = sys.argv[1:] if arguments is None else arguments
    for name, value in TEMPORARY_SERVER.items():
        os.environ.setdefault(name, value)
    if "--debug" in words:
        words = [word for word in words if word != "--debug"]
        os.environ["NIGHTLABEL_DEBUG"] = "1"
    try:
        app(words)
    except NightlabelError as error:
        if _debug():
            raise
        complaints.print(f"nightlabel: {error}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        complaints.print("nightlabel: stopped; the same command goes on where this one ended")
        sys.exit(130)
    except Exception as error:
        if _debug():
            raise
        kind = type(error).__name__
        complaints.print(
            f"nightlabel: {kind}: {error} (not your fault; --debug shows where)", markup=False, soft_wrap=True
        )
        sys.exit(1)


if __name__ == "__main__":
    main()
