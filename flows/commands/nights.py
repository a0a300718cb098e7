"""Commands of every night: ingest, score, nightly, backfill, publish."""

import datetime
from typing import Annotated

import typer

from flows.commands.options import (
    DeviceOption,
    ModelSpec,
    VariantOption,
    WorkspaceOption,
    field_help,
    print_line,
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
        list[str], typer.Option("--text", "-t", help=field_help(IngestConfig, "text") + " Repeatable.")
    ] = INGEST.text,
    label: Annotated[str | None, typer.Option("--label", "-l", help=field_help(IngestConfig, "label"))] = None,
    label_separator: Annotated[str | None, typer.Option(help=field_help(IngestConfig, "label_separator"))] = None,
    id_column: Annotated[str | None, typer.Option("--id", help=field_help(IngestConfig, "id"))] = None,
    split: Annotated[str | None, typer.Option(help=field_help(IngestConfig, "split"))] = None,
    group: Annotated[str | None, typer.Option(metavar="COLUMN", help=field_help(IngestConfig, "group"))] = None,
    batch: Annotated[str | None, typer.Option(help="Name of the batch; the date if empty.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace a batch that has other content.")] = False,
    file_format: Annotated[str, typer.Option("--format", help=field_help(IngestConfig, "format"))] = INGEST.format,
    header: Annotated[bool, typer.Option(help=field_help(IngestConfig, "header"))] = True,
    encoding: Annotated[str, typer.Option(help=field_help(IngestConfig, "encoding"))] = INGEST.encoding,
    join: Annotated[str, typer.Option(help="Inserted between several text columns; a line break if not given.")] = "\n",
    clean_html: Annotated[bool, typer.Option("--clean-html", help=field_help(IngestConfig, "clean_html"))] = False,
    max_reject_rate: Annotated[
        float, typer.Option(help=field_help(IngestConfig, "max_reject_rate"))
    ] = INGEST.max_reject_rate,
    workspace: WorkspaceOption = "workspace",
) -> None:
    """Read raw files into a batch of documents, every row accounted for.

    Examples:

        nightlabel ingest tickets.csv --text subject --text body --label queue

        nightlabel ingest news.csv --no-header --text 2 --text 3 --label 1 --split train

        nightlabel ingest stories.csv --text title --label topics --label-separator '|'

        nightlabel ingest reviews.csv --label stars --group film

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
            "group": group,
            "format": file_format,
            "header": header,
            "encoding": encoding,
            "join": join,
            "clean_html": clean_html,
            "max_reject_rate": max_reject_rate,
        },
    )
    from pipeline.ingest.sources import find_sources

    find_sources(sources, config)  # a mistyped name fails before a server starts
    quiet_prefect()
    from flows import ingest as ingest_flow
    from flows.reports.ingest import ingest_report

    report = ingest_flow.ingest(sources, config, batch=batch, replace=replace, workspace=workspace)
    show(ingest_report(report))
    next_step = "nightlabel train" if report.labelled else "nightlabel score"
    print_line(f"Documents: {report.path}\nNext: {next_step}")


def score(
    batch: Annotated[list[str] | None, typer.Option(help="Batches to label; all unlabelled ones if not given.")] = None,
    model: ModelSpec = None,
    device: DeviceOption = "auto",
    variant: VariantOption = "auto",
    target_precision: Annotated[float | None, typer.Option(help=field_help(ScoringConfig, "target_precision"))] = None,
    review_below: Annotated[float | None, typer.Option(help=field_help(ScoringConfig, "review_below"))] = None,
    evidence: Annotated[bool, typer.Option("--evidence", help=field_help(ScoringConfig, "evidence"))] = False,
    batch_tokens: Annotated[int, typer.Option(help=field_help(ScoringConfig, "batch_tokens"))] = SCORING.batch_tokens,
    threads: Annotated[int, typer.Option(help=field_help(ScoringConfig, "threads"))] = SCORING.threads,
    hold: Annotated[bool, typer.Option("--hold/--no-hold", help=field_help(DriftConfig, "hold"))] = True,
    workspace: WorkspaceOption = "workspace",
) -> None:
    """Label documents; parts that are labelled already are skipped.

    Examples:

        nightlabel score

        nightlabel score --batch 2026-11-20 --model tickets@3 --device cuda

        nightlabel score --variant fp32 --evidence

        nightlabel score --target-precision 0.98
    """
    config = validated(
        ScoringConfig,
        {
            "device": device,
            "variant": variant,
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

    # An unknown model, a missing variant, or an unprovable target precision fails before a server starts.
    bundle = Registry(Workspace(workspace)).find(model)
    on_gpu = device == "cuda" or (device == "auto" and cuda_obstacle() is None)
    choose_variant(variant, bundle.variants, on_gpu=on_gpu, title=bundle.title)
    bundle.policy(target_precision)
    quiet_prefect()
    from flows import score as score_flow
    from flows.reports.labels import labels_report

    reports = score_flow.score(batch or [], model, config, DriftConfig(hold=hold), workspace=workspace)
    if not reports or all(report.skipped for report in reports):
        print_line("Nothing to do: all of it is labelled already.")
    if reports:
        show(labels_report(reports, Workspace(workspace)))
        print_line("\n".join(f"Labels: {report.path}" for report in reports))


def nightly(
    source: Annotated[list[str] | None, typer.Option(help="Files, folders or globs to ingest.")] = None,
    date: Annotated[
        datetime.datetime | None, typer.Option(formats=["%Y-%m-%d"], help="The day of the night; today if empty.")
    ] = None,
    text: Annotated[list[str], typer.Option("--text", "-t", help=field_help(IngestConfig, "text"))] = INGEST.text,
    id_column: Annotated[str | None, typer.Option("--id", help=field_help(IngestConfig, "id"))] = None,
    model: ModelSpec = None,
    device: DeviceOption = "auto",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="ingest.FIELD=VALUE, score.FIELD=VALUE or drift.FIELD=VALUE. Repeatable."),
    ] = None,
    workspace: WorkspaceOption = "workspace",
) -> None:
    """Ingest new files, label every unlabelled batch, and report.

    Examples:

        nightlabel nightly --source 'feed/2026-11-20/*.csv' --date 2026-11-20

        nightlabel nightly --source news.jsonl --text body --set ingest.clean_html=true --set score.review_below=0.8

        nightlabel nightly --source news.jsonl --set drift.hold=false --set drift.psi_warn=0.2
    """
    named = validated(NightConfig, {"ingest": {"text": text, "id": id_column}, "score": {"device": device}})
    config = apply_overrides(named, settings or [])
    quiet_prefect()
    from flows import nightly as nightly_flow

    day = date.date() if date else None
    report = nightly_flow.nightly(
        source or [], day, model, config.ingest, config.score, config.drift, workspace=workspace
    )
    show(report)


def backfill(
    first: Annotated[datetime.datetime, typer.Option("--from", formats=["%Y-%m-%d"], help="First day.")],
    last: Annotated[
        datetime.datetime | None, typer.Option("--to", formats=["%Y-%m-%d"], help="Last day; today if empty.")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="missing|failed|stale-model", help="Reasons to run; missing and failed if empty. Repeatable."
        ),
    ] = None,
    model: ModelSpec = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan only.")] = False,
    wait: Annotated[bool, typer.Option(help="Wait for the runs, and show how they end.")] = True,
    workspace: WorkspaceOption = "workspace",
) -> None:
    """Run missed and failed nights on the server at PREFECT_API_URL: show the plan, then let its workers run it.

    A night is missing if it never ran, a batch if it has no labels though its night completed. A night has failed if
    its last run failed, crashed or was cancelled, and the labels are still missing. `--only stale-model` labels batches
    again that another version has labelled. A night runs as its schedule would run it now, or with the parameters of
    its run by hand. Repeating the command runs nothing twice; failed runs are retried.

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
        raise ConfigError(
            "PREFECT_API_URL is not set: nightlabel up, and export PREFECT_API_URL=http://127.0.0.1:4200/api"
        )
    from flows.server.backfill import backfill as run_backfill

    completed = run_backfill(
        *(url, configured_password(), workspace, *days, reasons, model),
        dry_run=dry_run,
        wait=wait,
        show=show,
        say=print_line,
    )
    if not completed:
        raise typer.Exit(1)


def publish(
    batch: Annotated[str, typer.Argument(metavar="BATCH")],
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="NAME; optional if only one model has labelled the batch.")
    ] = None,
    reason: Annotated[str, typer.Option(help="Reason for the record.")] = "by hand",
    workspace: WorkspaceOption = "workspace",
) -> None:
    """Publish the labels of a held batch, after a look at its report.

    Examples:

        nightlabel publish 2026-11-20

        nightlabel publish 2026-11-20 --model tickets --reason "the Chinese shop opened"
    """
    from pipeline.nights.publish import publish as publish_labels
    from pipeline.workspace import Workspace

    labels = publish_labels(Workspace(workspace), batch, model, reason)
    print_line(f"Published: {labels.path}")
