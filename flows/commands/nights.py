"""Commands of every night: read, label, make up for what was missed, publish."""

import datetime
from typing import Annotated

import typer

from flows.commands.options import (
    DeviceOption,
    ModelSpec,
    VariantOption,
    Workspace,
    console,
    field_help,
    quiet_prefect,
    show,
)
from pipeline.config import DriftConfig, IngestConfig, NightConfig, ScoringConfig, apply_overrides, validated
from pipeline.errors import ConfigError

INGEST = IngestConfig()
SCORING = ScoringConfig()


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
    quiet_prefect()
    from flows import ingest as ingest_flow
    from flows.reports.ingest import ingest_report

    report = ingest_flow.ingest(sources, config, batch=batch, replace=replace, workspace=workspace)
    show(ingest_report(report))
    next_step = "nightlabel train" if report.labelled else "nightlabel score"
    console.print(f"Documents: {report.path}\nNext: {next_step}", soft_wrap=True)


def score(
    batch: Annotated[list[str] | None, typer.Option(help="Batches to label; all without labels if not given.")] = None,
    model: ModelSpec = None,
    device: DeviceOption = "auto",
    precision: VariantOption = "auto",
    target_precision: Annotated[float | None, typer.Option(help=field_help(ScoringConfig, "target_precision"))] = None,
    review_below: Annotated[float | None, typer.Option(help=field_help(ScoringConfig, "review_below"))] = None,
    evidence: Annotated[bool, typer.Option("--evidence", help=field_help(ScoringConfig, "evidence"))] = False,
    batch_tokens: Annotated[int, typer.Option(help=field_help(ScoringConfig, "batch_tokens"))] = SCORING.batch_tokens,
    threads: Annotated[int, typer.Option(help=field_help(ScoringConfig, "threads"))] = SCORING.threads,
    hold: Annotated[bool, typer.Option("--hold/--no-hold", help=field_help(DriftConfig, "hold"))] = True,
    workspace: Workspace = "workspace",
) -> None:
    """Label documents; what is labelled already is left as it is.

    Examples:

        nightlabel score

        nightlabel score --batch 2026-11-20 --model tickets@3 --device cuda

        nightlabel score --precision fp32

        nightlabel score --evidence

        nightlabel score --target-precision 0.98
    """
    config = validated(
        ScoringConfig,
        {
            "device": device,
            "precision": precision,
            "target_precision": target_precision,
            "review_below": review_below,
            "evidence": evidence,
            "batch_tokens": batch_tokens,
            "threads": threads,
        },
    )
    from pipeline.models.registry import Registry
    from pipeline.models.session import cuda_obstacle
    from pipeline.models.variants import choose_variant
    from pipeline.workspace import Workspace

    # An unknown model, one without the variant, or a promise it cannot make, is told at once.
    bundle = Registry(Workspace(workspace)).find(model)
    on_gpu = device == "cuda" or (device == "auto" and cuda_obstacle() is None)
    choose_variant(precision, bundle.variants, on_gpu=on_gpu, title=bundle.title)
    bundle.policy(target_precision)
    quiet_prefect()
    from flows import score as score_flow
    from flows.reports.labels import labels_report

    reports = score_flow.score(batch or [], model, config, DriftConfig(hold=hold), workspace=workspace)
    if not reports or all(report.skipped for report in reports):
        console.print("Nothing to do: everything asked for is labelled already.")
    if reports:
        show(labels_report(reports, Workspace(workspace)))
        console.print("\n".join(f"Labels: {report.path}" for report in reports), soft_wrap=True)


def nightly(
    source: Annotated[list[str] | None, typer.Option(help="Files, folders or globs that came in.")] = None,
    date: Annotated[
        datetime.datetime | None, typer.Option(formats=["%Y-%m-%d"], help="The day of the night; today if empty.")
    ] = None,
    text: Annotated[list[str], typer.Option("--text", "-t", help=field_help(IngestConfig, "text"))] = INGEST.text,
    id_column: Annotated[str | None, typer.Option("--id", help=field_help(IngestConfig, "id"))] = None,
    model: ModelSpec = None,
    device: DeviceOption = "auto",
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
    config = apply_overrides(named, settings or [])
    quiet_prefect()
    from flows import nightly as nightly_flow

    day = date.date() if date else None
    report = nightly_flow.nightly(
        source or [], day, model, config.ingest, config.score, config.health, workspace=workspace
    )
    show(report)


def backfill(
    first: Annotated[datetime.datetime, typer.Option("--from", formats=["%Y-%m-%d"], help="The first day.")],
    last: Annotated[
        datetime.datetime | None, typer.Option("--to", formats=["%Y-%m-%d"], help="The last day; today if empty.")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="missing|failed|stale-model", help="What to make up for; missing and failed if empty. Repeatable."
        ),
    ] = None,
    model: ModelSpec = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and do nothing.")] = False,
    wait: Annotated[bool, typer.Option(help="Wait for the runs, and say how they end.")] = True,
    workspace: Workspace = "workspace",
) -> None:
    """Make up for nights on the server at PREFECT_API_URL: show what is to be done, then have its workers do it.

    A night is missing if it never ran, and a batch if it has no labels though its night completed; a night has failed
    if its last run did so, crashed or was cancelled, and the labels still are not there. `--only stale-model` labels
    again what has labels by another version of the model. A night is run again as its schedule would run it now, or
    as the person had asked for it who ran it by hand. However often this is given, nothing is run twice; what failed
    is run again.

    Examples:

        nightlabel backfill --from 2026-11-01 --dry-run

        nightlabel backfill --from 2026-11-01 --to 2026-11-07 --only failed

        nightlabel backfill --from 2026-11-01 --only stale-model --model tickets --no-wait
    """
    from flows.server.connection import check_configured, configured_password
    from pipeline.nights.backfill import check_days, check_reasons

    days = first.date(), last.date() if last else None
    check_days(*days)
    reasons = check_reasons(only or [])
    url = check_configured()
    if not url:
        raise ConfigError("no server is named: nightlabel up, and export PREFECT_API_URL=http://127.0.0.1:4200/api")
    from flows.server.backfill import backfill as make_up

    password = configured_password()

    def say(line: str) -> None:
        console.print(line, soft_wrap=True, highlight=False, markup=False)

    good = make_up(url, password, workspace, *days, reasons, model, dry_run=dry_run, wait=wait, show=show, say=say)
    if not good:
        raise typer.Exit(1)


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
    from pipeline.nights.publish import publish as publish_labels
    from pipeline.workspace import Workspace

    labels = publish_labels(Workspace(workspace), batch, model, reason)
    console.print(f"Published: {labels.path}", soft_wrap=True)
