"""Commands about this machine and its server: demo, up, setup, bench, doctor."""

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.commands.options import (
    DeviceOption,
    ModelSpec,
    VariantOption,
    WebhookUrl,
    WorkspaceOption,
    console,
    error_console,
    print_line,
    quiet_prefect,
    show,
)
from pipeline.config import ScoringConfig, validated
from pipeline.errors import ConfigError, WorkspaceError

RUNTIMES = ("onnxruntime", "onnxruntime-gpu")


def demo(workspace: WorkspaceOption = "workspace-demo") -> None:
    """Generate support tickets, run the whole pipeline on them, and show the labelled rows."""
    from flows.demo.run import run_demo

    quiet_prefect()
    run_demo(Path(workspace), console)


def up(
    port: Annotated[
        int, typer.Option(min=1, max=65_535, help="Port of the Prefect server, on this machine only.")
    ] = 4200,
    webhook: WebhookUrl = None,
    workspace: WorkspaceOption = "workspace",
) -> None:
    """Run every night from now on: a Prefect server with its UI, the deployments, and a worker, until Ctrl-C.

    A server that runs already is used. Ctrl-C finishes the parts in progress and stops everything; a second Ctrl-C
    stops at once. Nothing is lost: the next run resumes.

    Examples:

        nightlabel up

        nightlabel up --port 4300 --workspace /data/tickets

        nightlabel up --webhook https://chat.example.com/hooks/nights
    """
    from flows.server.orchestrator import check_webhook
    from flows.server.up import up as keep_up

    check_webhook(webhook)
    keep_up(workspace, port, print_line, webhook)


def setup(
    prefect_file: Annotated[
        Path, typer.Option(metavar="FILE", help="The deployments; runs resolve relative paths from this folder.")
    ] = Path("deploy", "prefect.yaml"),
    webhook: WebhookUrl = None,
) -> None:
    """Set up the server at PREFECT_API_URL: work pool, limits, deployments and automations.

    `nightlabel up` does this by itself. Schedules and automations that were switched on or off in the UI stay so.

    Examples:

        nightlabel setup

        nightlabel setup --webhook https://chat.example.com/hooks/nights
    """
    from flows.server.connection import check_configured, configured_password
    from flows.server.orchestrator import Orchestrator, check_webhook

    check_webhook(webhook)
    if not prefect_file.is_file():
        raise ConfigError(f"there is no {prefect_file} here: run nightlabel setup in the project's folder")
    url = check_configured()
    if not url:
        raise ConfigError(
            "PREFECT_API_URL is not set: export PREFECT_API_URL=http://127.0.0.1:4200/api, or use nightlabel up"
        )
    with Orchestrator.at(url, configured_password()) as orchestrator:
        orchestrator.set_up(prefect_file, os.environ, webhook)
        print_line(f"{url} is set up; {orchestrator.next_night()}")


def bench(
    batch: Annotated[str | None, typer.Option(help="Batch to measure with; the largest if empty.")] = None,
    model: ModelSpec = None,
    device: DeviceOption = "auto",
    variant: VariantOption = "auto",
    batch_tokens: Annotated[int, typer.Option(help="Token slots in a minibatch; 0 tries several.")] = 0,
    threads: Annotated[int, typer.Option(help="CPU cores to use; 0 tries several.")] = 0,
    rows: Annotated[int, typer.Option(min=0, help="Rows to take; 0 for the whole batch.")] = 20_000,
    rounds: Annotated[int, typer.Option(min=1, help="Repetitions; medians are reported.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw the time of each stage into this PNG file.")] = None,
    workspace: WorkspaceOption = "workspace",
) -> None:
    """Measure how fast this machine labels, compare with its ceilings, and recommend settings.

    Without a model in the workspace, the demo's tickets and a model trained on them are used. The workspace is only
    read. Run nothing else meanwhile.

    Examples:

        nightlabel bench --batch 2026-11-20 --plot time.png

        nightlabel bench --variant fp32 --rows 0 --json > bench.json
    """
    settings = {"device": device, "variant": variant, "batch_tokens": batch_tokens, "threads": threads}
    config = validated(ScoringConfig, settings)
    if plot and not plot.parent.is_dir():
        raise ConfigError(f"--plot {plot}: there is no folder {plot.parent}")
    result = _measure(workspace, batch, model, config, rows=rows, rounds=rounds)
    if plot:
        from pipeline.scoring.plots import time_spent

        total = result["end_to_end"]
        ceilings = {name: rates["rows_per_s"] for name, rates in result["variants"].items()}
        shares, workers, rate = total["stage_shares"], total["workers"], total["rows_per_s"]
        plot.write_bytes(time_spent(shares, workers, ceilings, rate, variant=total["precision"]))
        _print_progress(f"picture: {plot}")
    if as_json:
        console.file.write(json.dumps(result, indent=2) + "\n")
        return
    from flows.reports.bench import bench_report

    show(bench_report(result))


def _measure(
    workspace: str, batch: str | None, model: str | None, config: ScoringConfig, *, rows: int, rounds: int
) -> dict[str, Any]:
    """Run the benchmark on a workspace's batch and model, or on the demo's if the workspace has none."""
    import logging
    from contextlib import nullcontext

    from flows.demo.bench import demo_subject
    from pipeline.models.registry import Registry
    from pipeline.scoring.benchmark import bench as run_bench
    from pipeline.scoring.benchmark_subject import workspace_subject
    from pipeline.workspace import Workspace

    logging.basicConfig(format="%(message)s")  # no flow runs here whose log would show warnings
    folder = Workspace(workspace)
    is_ready = batch or model or (Registry(folder).names() and folder.batches())
    source = nullcontext(workspace_subject(folder, batch, model)) if is_ready else demo_subject(_print_progress)
    with source as subject:
        return run_bench(subject, config, rows=rows, rounds=rounds, say=_print_progress)


def _print_progress(line: str) -> None:
    error_console.print(line, style="dim", soft_wrap=True, highlight=False)


def doctor(workspace: WorkspaceOption = "workspace") -> None:
    """Check this machine for what a night needs, and show the command that fixes what is missing."""
    checks = check_machine(workspace)
    for passed, line in checks:
        console.print("[green]ok[/]  " if passed else "[red]FIX[/] ", end=" ")
        print_line(line)
    if not all(passed for passed, _ in checks):
        raise typer.Exit(1)


def check_machine(workspace: str) -> list[tuple[bool, str]]:
    """Return for each thing a night needs whether it is there, and a line that says so."""
    import sys
    from importlib.metadata import PackageNotFoundError, version

    from flows.server.connection import check_configured
    from pipeline.models.session import cuda_obstacle
    from pipeline.workspace import Workspace

    libraries = ", ".join(f"{name} {version(name)}" for name in ("prefect", "torch", "onnx", "pyarrow"))
    checks = [(True, f"Python {sys.version.split()[0]}, {libraries}")]
    runtimes = []
    for name in RUNTIMES:
        try:
            runtimes.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    both = (
        "onnxruntime and onnxruntime-gpu are both installed and break each other: "
        "pip uninstall onnxruntime onnxruntime-gpu, then install this project again"
    )
    checks.append((len(runtimes) == 1, both if len(runtimes) == len(RUNTIMES) else " ".join(runtimes)))
    obstacle = cuda_obstacle()
    checks.append((True, f"no GPU, scoring runs on the CPU: {obstacle}" if obstacle else "scoring can use the GPU"))
    try:
        batches = Workspace(workspace).ensure_writable().batches()
        checks.append((True, f"workspace {workspace}: {len(batches)} batches"))
    except WorkspaceError as error:
        checks.append((False, str(error)))
    try:
        url = check_configured()
        line = (
            f"Prefect server at {url}" if url else "no Prefect server configured: each command starts a temporary one"
        )
        checks.append((True, line))
    except ConfigError as error:
        checks.append((False, str(error)))
    return checks
