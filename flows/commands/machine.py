"""Commands about this machine and its server: try it out, keep it running, measure it, find what is missing."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from flows.commands.options import (
    DeviceOption,
    ModelSpec,
    VariantOption,
    WebhookUrl,
    Workspace,
    complaints,
    console,
    quiet_prefect,
    show,
)
from pipeline.config import ScoringConfig, validated
from pipeline.errors import ConfigError


def demo(workspace: Workspace = "workspace-demo") -> None:
    """Make up support tickets, take them through the whole pipeline, and show the labelled rows."""
    from flows.demo.run import run_demo

    quiet_prefect()
    run_demo(Path(workspace), console)


def up(
    port: Annotated[
        int, typer.Option(min=1, max=65_535, help="Port of the Prefect server, on this machine only.")
    ] = 4200,
    webhook: WebhookUrl = None,
    workspace: Workspace = "workspace",
) -> None:
    """Run every night from now on: a Prefect server with its UI, the deployments, and a worker, until Ctrl-C.

    What runs already is used as it is. Ctrl-C lets the parts under way finish and stops all in order; a second one
    stops at once. Either way nothing is lost: the next run goes on where the last one ended.

    Examples:

        nightlabel up

        nightlabel up --port 4300 --workspace /data/tickets

        nightlabel up --webhook https://chat.example.com/hooks/nights
    """
    from flows.server.orchestrator import check_address
    from flows.server.up import up as keep_up

    check_address(webhook)
    keep_up(workspace, port, lambda line: console.print(line, soft_wrap=True, highlight=False), webhook)


def setup(
    prefect_file: Annotated[
        Path, typer.Option(metavar="FILE", help="The deployments; relative paths in runs count from this folder.")
    ] = Path("deploy", "prefect.yaml"),
    webhook: WebhookUrl = None,
) -> None:
    """Set up the server at PREFECT_API_URL: work pool, limits, deployments and automations; what is right stays.

    `nightlabel up` does this by itself. A schedule or an automation that was switched in the UI stays as it is.

    Examples:

        nightlabel setup

        nightlabel setup --webhook https://chat.example.com/hooks/nights
    """
    from flows.server.connection import check_configured, configured_password
    from flows.server.orchestrator import Orchestrator, check_address

    check_address(webhook)
    if not prefect_file.is_file():
        raise ConfigError(f"there is no {prefect_file} here: run nightlabel setup in the project's folder")
    url = check_configured()
    if not url:
        raise ConfigError("no server is named: export PREFECT_API_URL=http://127.0.0.1:4200/api, or use nightlabel up")
    with Orchestrator.at(url, configured_password()) as orchestrator:
        orchestrator.set_up(prefect_file, os.environ, webhook)
        console.print(f"{url} is set up; {orchestrator.next_night()}", soft_wrap=True, highlight=False)


def bench(
    batch: Annotated[str | None, typer.Option(help="Batch to measure with; the largest if empty.")] = None,
    model: ModelSpec = None,
    device: DeviceOption = "auto",
    precision: VariantOption = "auto",
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
    from flows.commands.benchmark import run_bench

    def say(line: str) -> None:
        complaints.print(line, style="dim", soft_wrap=True, highlight=False)

    found = run_bench(workspace, config, batch=batch, model=model, rows=rows, rounds=rounds, plot=plot, say=say)
    if as_json:
        console.file.write(json.dumps(found, indent=2) + "\n")
        return
    from flows.reports.bench import bench_report

    show(bench_report(found))


def doctor(workspace: Workspace = "workspace") -> None:
    """Say what is missing here, and the command that mends it."""
    from flows.commands.checks import check_machine

    findings = check_machine(workspace)
    for finding in findings:
        console.print(f"{'[green]ok  [/]' if finding.ok else '[red]MEND[/]'}  {finding.line}", soft_wrap=True)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)
