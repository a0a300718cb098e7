"""The flow score: documents in, labels out, part by part."""

import datetime
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture, as_completed, wait
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Cancelled
from prefect.task_runners import ThreadPoolTaskRunner

from flows.common import DEFAULT_WORKSPACE, RETRY, PartTimeoutError, announce, end_process, scoring_slot, show_report
from flows.forms import Batches, ModelName, WorkspacePath, titled
from flows.reports.labels import labels_report
from flows.server.automations import BATCH_HELD
from pipeline.config import DriftConfig, ScoringConfig
from pipeline.files import read_json
from pipeline.models.registry import Registry
from pipeline.nights.finish import finish_batch
from pipeline.scoring.labels import unlabelled
from pipeline.scoring.report import BatchReport, PartReport
from pipeline.scoring.score import score_part
from pipeline.scoring.scorer import Scorer
from pipeline.workspace import Batch, Workspace

STOPPING_SECONDS = 10.0  # for parts that do not hang to finish their minibatch


class StopRequestedError(Exception):
    """Somebody asked all runs in this workspace to stop where they can be resumed."""


class ChampionReplacedError(Exception):
    """Another version became champion while a batch was being labelled."""


@task(name="score part", task_run_name="score {name}", cache_policy=NO_CACHE, **RETRY)
def score_part_task(workspace: Workspace, batch: Batch, part: dict[str, Any], scorer: Scorer, name: str) -> PartReport:  # noqa: ARG001 - the name of the run
    """Label one part."""
    return score_part(workspace, batch, part, scorer)


commit_task = task(name="commit", task_run_name="commit {batch.id}", cache_policy=NO_CACHE, **RETRY)(finish_batch)


def _run_name() -> str:
    parameters = flow_run.parameters
    batches = parameters.get("batches") or ["what is new"]
    remainder = f" and {len(batches) - 1} more" if len(batches) > 1 else ""
    return f"score {batches[0]}{remainder} with {parameters.get('model') or 'the champion'}"


@flow(name="score", flow_run_name=_run_name, validate_parameters=True, task_runner=ThreadPoolTaskRunner())  # type: ignore[arg-type]
def score(
    batches: Batches = [],  # noqa: B006 - never changed
    model: ModelName = None,
    config: Annotated[ScoringConfig, titled("Scoring")] = ScoringConfig(),  # noqa: B008 - frozen
    health: Annotated[DriftConfig, titled("Drift checks")] = DriftConfig(),  # noqa: B008
    workspace: WorkspacePath = DEFAULT_WORKSPACE,
) -> list[BatchReport]:
    """Label documents with the champion or a named version; parts that are labelled already are skipped.

    Args:
        batches: Batches to label. Empty: all unlabelled ones.
        model: Name or name@version. Empty: the champion of the only model there is.
        config: Device, variant, target precision and minibatches.
        health: Drift checks: which deviations warn, and which hold the labels.
        workspace: Workspace folder. Empty: the one that the worker was started with.
    """
    folder = Workspace(workspace)
    bundle = Registry(folder).find(model)
    chosen = [folder.batch(name) for name in batches] or unlabelled(folder, bundle.name)
    if not chosen:
        get_run_logger().info("nothing to do: %s has labelled all %d batches", bundle.name, len(folder.batches()))
        return []
    reports: list[BatchReport] = []
    spec = model if model and "@" in model else bundle.name
    with scoring_slot():
        try:
            while len(reports) < len(chosen):
                reports += _score_with(folder, chosen[len(reports) :], spec, config, health)
        except StopRequestedError as error:
            message = f"{error}, as requested; the next run resumes there"
            return Cancelled(message=message)  # type: ignore[return-value]  # the caller gets CancelledRun
    show_report("labels", labels_report(reports, folder), "Every document accounted for, and some labelled rows")
    return reports


def _score_with(
    workspace: Workspace, batches: Sequence[Batch], model: str, config: ScoringConfig, health: DriftConfig
) -> list[BatchReport]:
    """Label batches with one version; return the reports of those finished before the champion changed, if it did."""
    logger = get_run_logger()
    reports: list[BatchReport] = []
    with Scorer(Registry(workspace).find(model), config) as scorer:
        device, names = scorer.engine.device, ", ".join(batch.id for batch in batches)
        logger.info("scoring %s with %s on %s (%s)", names, scorer.bundle.title, device.provider, device.name)
        logger.info("variant %s: %s", scorer.variant, scorer.variant_choice.reason)
        try:
            for batch in batches:
                report = _score_batch(workspace, batch, scorer, health, pinned="@" in model)
                reports.append(report)
        except ChampionReplacedError as error:
            logger.warning("%s", error)
    return reports


def _score_batch(
    workspace: Workspace, batch: Batch, scorer: Scorer, health: DriftConfig, *, pinned: bool
) -> BatchReport:
    """Label a batch, and log its drift findings; announce a batch that is held."""
    started = time.monotonic()
    logger = get_run_logger()
    try:
        parts = _score_parts(workspace, batch, scorer, pinned=pinned)
    except BaseException:
        scorer.stop()  # the parts in progress would be lost work
        raise
    report = commit_task(workspace, batch, scorer, parts, time.monotonic() - started, health)
    if report.skipped:
        logger.info("batch %s: already labelled by %s, nothing to do", batch.id, report.model)
        return report
    rates = f"{report.rows:,} rows labelled at {report.rows_per_second:,.0f} rows/s"
    skipped = f"{len(parts) - len(report.scored_parts)} of {len(parts)} parts were labelled already"
    logger.info("batch %s: %s (%s)", batch.id, rates, skipped)
    manifest = read_json(report.path / "manifest.json")
    sentences = [finding["sentence"] for finding in manifest["findings"]]
    for sentence in sentences:
        logger.warning("batch %s: %s", batch.id, sentence)
    if not manifest["published"]:
        text = f"batch {batch.id} is held: not published before nightlabel publish {batch.id}"
        logger.warning(text)
        announce(BATCH_HELD, batch.id, workspace.root, " ".join([f"{text}.", *sentences]))
    return report


def _score_parts(workspace: Workspace, batch: Batch, scorer: Scorer, *, pinned: bool) -> list[PartReport]:
    """Label all parts, as many at once as the devices allow, and log the progress.

    All labels of a batch are of one version: if the champion changes meanwhile, the parts in progress are finished, and
    the new champion labels the batch from the start (its fingerprints differ).

    Raises:
        StopRequestedError: the parts in progress are finished, and others remain.
        ChampionReplacedError: likewise.
    """
    bundle = scorer.bundle
    waiting = deque(batch.manifest["parts"])
    running: list[PrefectFuture[PartReport]] = []
    finished: list[PartReport] = []
    started = time.monotonic()
    while waiting or running:
        to_stop = workspace.stop_requested
        champion = bundle.version if pinned else Registry(workspace).champion(bundle.name)
        replaced = champion not in (None, bundle.version)
        if not running:
            so_far = f"{len(finished)} of {len(batch.parts)} parts of batch {batch.id}"
            if to_stop:
                raise StopRequestedError(f"stopped after {so_far}")
            if replaced:
                title = f"{bundle.name}@{champion}"
                raise ChampionReplacedError(
                    f"{title} is champion now and labels the batch anew, after {so_far} by {bundle.title}"
                )
        while waiting and len(running) < scorer.parts_at_once and not (to_stop or replaced):
            part = waiting.popleft()
            running.append(score_part_task.submit(workspace, batch, part, scorer, f"{batch.id} {part['file']}"))
        future = _next_finished(running, batch, scorer)
        running.remove(future)
        finished.append(future.result())
        get_run_logger().info(_progress_line(batch, finished, time.monotonic() - started))
    return sorted(finished, key=lambda part: part.file)


def _next_finished(running: list[PrefectFuture[PartReport]], batch: Batch, scorer: Scorer) -> PrefectFuture[PartReport]:
    """Return the part that finishes next.

    Raises:
        PartTimeoutError: none finishes within `part_minutes`: a thread hangs in a disk or a driver.
    """
    minutes = scorer.config.part_minutes
    with suppress(TimeoutError):
        return next(as_completed(running, timeout=minutes * 60))
    scorer.stop()
    message = (
        f"batch {batch.id}: no part finished within {minutes:g} minutes: does its disk or its device hang? "
        "The labelled parts stay; run it again, or allow more with config.part_minutes"
    )
    if wait(running, timeout=STOPPING_SECONDS).not_done:
        end_process(message)
    raise PartTimeoutError(message)


def _progress_line(batch: Batch, finished: Sequence[PartReport], seconds: float) -> str:
    rows = sum(part.rows for part in finished)
    scored = sum(part.rows for part in finished if not part.skipped)
    line = f"batch {batch.id}: {rows:,} of {batch.rows:,} rows, {len(finished)} of {len(batch.parts)} parts"
    remaining = batch.rows - rows
    if not scored or not remaining:
        return line
    rate = scored / max(seconds, 1e-9)
    return f"{line}, {rate:,.0f} rows/s, {datetime.timedelta(seconds=round(remaining / rate))} left"


if __name__ == "__main__":
    raise SystemExit("this is a module: use nightlabel score")
