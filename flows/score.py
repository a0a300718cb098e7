"""Documents in, labels out, part by part."""

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
from pipeline.models.bundle import Bundle
from pipeline.models.registry import Registry
from pipeline.nights.finish import finish_batch
from pipeline.scoring.labels import unlabelled
from pipeline.scoring.report import BatchReport, PartReport
from pipeline.scoring.score import score_part
from pipeline.scoring.scorer import Scorer
from pipeline.workspace import Batch, Workspace

STOPPING_SECONDS = 10.0  # in which work that does not hang comes to the end of its batch


class StopRequestedError(Exception):
    """Somebody asked all work in this workspace to end where it can go on later."""


class ChampionReplacedError(Exception):
    """Another version became champion, by a promotion or a rollback, while a batch was being labelled."""


@task(name="score part", task_run_name="score {name}", cache_policy=NO_CACHE, **RETRY)
def _score_part(workspace: Workspace, batch: Batch, part: dict[str, Any], scorer: Scorer, name: str) -> PartReport:  # noqa: ARG001 - the name of the run
    return score_part(workspace, batch, part, scorer)


@task(name="commit", task_run_name="commit {batch.id}", cache_policy=NO_CACHE, **RETRY)
def _commit(
    workspace: Workspace, batch: Batch, scorer: Scorer, parts: list[PartReport], seconds: float, health: DriftConfig
) -> BatchReport:
    return finish_batch(workspace, batch, scorer, parts, seconds, health)


def _run_name() -> str:
    given = flow_run.parameters
    batches = given.get("batches") or ["what is new"]
    more = f" and {len(batches) - 1} more" if len(batches) > 1 else ""
    return f"score {batches[0]}{more} with {given.get('model') or 'the champion'}"


@flow(name="score", flow_run_name=_run_name, validate_parameters=True, task_runner=ThreadPoolTaskRunner())  # type: ignore[arg-type]
def score(
    batches: Batches = [],  # noqa: B006 - never changed
    model: ModelName = None,
    config: Annotated[ScoringConfig, titled("Labelling")] = ScoringConfig(),  # noqa: B008 - frozen
    health: Annotated[DriftConfig, titled("Holding bad nights")] = DriftConfig(),  # noqa: B008
    workspace: WorkspacePath = DEFAULT_WORKSPACE,
) -> list[BatchReport]:
    """Label documents with the champion or a named version; parts already labelled are left as they are.

    Args:
        batches: Batches to label. Empty: all that have no labels yet.
        model: Name or name@version. Empty: the champion of the only model there is.
        config: Where and how the model runs.
        health: When a night is out of the ordinary, and whether its labels are held then.
        workspace: Folder in which everything is kept. Empty: the one that the worker was started with.
    """
    logger = get_run_logger()
    place = Workspace(workspace)
    bundle = Registry(place).find(model)
    wanted = [place.batch(name) for name in batches] or unlabelled(place, bundle.name)
    if not wanted:
        logger.info("nothing to do: all %d batches are labelled by %s", len(place.batches()), bundle.name)
        return []
    reports: list[BatchReport] = []
    spec = model if model and "@" in model else bundle.name
    with scoring_slot():
        try:
            while len(reports) < len(wanted):
                reports += _score_with(place, wanted[len(reports) :], spec, config, health)
        except StopRequestedError as error:
            message = f"{error}, as it was asked to; the next run goes on from there"
            return Cancelled(message=message)  # type: ignore[return-value]  # the caller gets CancelledRun
    show_report("labels", labels_report(reports, place), "Every document accounted for, and some labelled rows")
    return reports


def _score_with(
    workspace: Workspace, batches: Sequence[Batch], model: str, config: ScoringConfig, health: DriftConfig
) -> list[BatchReport]:
    """Label batches with a version, or with a champion as long as it is one; return what became of those done."""
    logger = get_run_logger()
    reports: list[BatchReport] = []
    bundle = Registry(workspace).find(model)
    with Scorer(bundle, config) as scorer:
        logger.info(
            "scoring %s with %s on %s (%s)",
            ", ".join(batch.id for batch in batches),
            bundle.title,
            scorer.engine.device.provider,
            scorer.engine.device.name,
        )
        logger.info("variant %s: %s", scorer.variant, scorer.variant_choice.reason)
        try:
            for batch in batches:
                reports.append(  # noqa: PERF401 - those that are done are kept
                    _score_batch(workspace, batch, scorer, health, pinned="@" in model)
                )
        except ChampionReplacedError as error:
            logger.warning("%s", error)
    return reports


def _score_batch(
    workspace: Workspace, batch: Batch, scorer: Scorer, health: DriftConfig, *, pinned: bool
) -> BatchReport:
    started = time.monotonic()
    logger = get_run_logger()
    try:
        parts = _score_parts(workspace, batch, scorer, pinned=pinned)
    except BaseException:
        scorer.stop()  # what else is under way would be lost work
        raise
    report = _commit(workspace, batch, scorer, parts, time.monotonic() - started, health)
    if report.skipped:
        logger.info("batch %s: already labelled by %s, nothing to do", batch.id, report.model)
    else:
        logger.info(
            "batch %s: %s rows labelled at %s rows/s (%d of %d parts were there already)",
            batch.id,
            f"{report.rows:,}",
            f"{report.rows_per_second:,.0f}",
            len(parts) - len(report.scored_parts),
            len(parts),
        )
        _tell_findings(workspace, batch, read_json(report.path / "manifest.json"))
    return report


def _tell_findings(workspace: Workspace, batch: Batch, manifest: dict[str, Any]) -> None:
    """Say what is out of the ordinary in the log, and of a held batch tell the server."""
    sentences = [finding["sentence"] for finding in manifest["findings"]]
    for sentence in sentences:
        get_run_logger().warning("batch %s: %s", batch.id, sentence)
    if not manifest["published"]:
        text = f"batch {batch.id} is held: not published before nightlabel publish {batch.id}"
        get_run_logger().warning(text)
        announce(BATCH_HELD, batch.id, workspace.root, " ".join([f"{text}.", *sentences]))


def _score_parts(workspace: Workspace, batch: Batch, scorer: Scorer, *, pinned: bool) -> list[PartReport]:
    """Label all parts, as many at a time as the devices can take, and say how far it is.

    A batch has one version's labels only: if another becomes champion meanwhile, this one ends after the parts
    under way, and the other begins the batch anew (its fingerprints differ, so all parts are labelled again).

    Raises:
        ToldToStopError: the parts under way are done, and others are left.
        ReplacedError: likewise.
    """
    waiting = deque(batch.manifest["parts"])
    running: list[PrefectFuture[PartReport]] = []
    done: list[PartReport] = []
    started = time.monotonic()
    while waiting or running:
        to_stop, champion = workspace.stop_requested, None if pinned else _new_champion(workspace, scorer.bundle)
        if not running:
            so_far = f"{len(done)} of {len(batch.parts)} parts of batch {batch.id}"
            if to_stop:
                raise StopRequestedError(f"stopped after {so_far}")
            if champion:
                raise ChampionReplacedError(
                    f"{champion} is champion now and begins anew, after {so_far} by {scorer.bundle.title}"
                )
        while waiting and len(running) < scorer.parts_at_once and not (to_stop or champion):
            part = waiting.popleft()
            running.append(_score_part.submit(workspace, batch, part, scorer, f"{batch.id} {part['file']}"))
        future = _next_done(running, batch, scorer)
        running.remove(future)
        done.append(future.result())
        get_run_logger().info(_progress(batch, done, time.monotonic() - started))
    return sorted(done, key=lambda part: part.file)


def _new_champion(workspace: Workspace, bundle: Bundle) -> str | None:
    """Return the title of the version that scoring should use, if it is another one by now."""
    version = Registry(workspace).champion(bundle.name)
    return None if version in (None, bundle.version) else f"{bundle.name}@{version}"


def _next_done(running: list[PrefectFuture[PartReport]], batch: Batch, scorer: Scorer) -> PrefectFuture[PartReport]:
    """Return the part that is done next; a thread that hangs in a disk or a driver must not hang the night.

    Raises:
        OutOfTimeError: none is, within the minutes that a part may take.
    """
    minutes = scorer.config.part_minutes
    with suppress(TimeoutError):
        return next(as_completed(running, timeout=minutes * 60))
    scorer.stop()
    message = (
        f"batch {batch.id}: no part was done within {minutes:g} minutes: does its disk or its device hang? "
        "What is labelled stays; run it again, or allow more with config.part_minutes"
    )
    if wait(running, timeout=STOPPING_SECONDS).not_done:
        end_process(message)
    raise PartTimeoutError(message)


def _progress(batch: Batch, done: Sequence[PartReport], seconds: float) -> str:
    rows = sum(part.rows for part in done)
    scored = sum(part.rows for part in done if not part.skipped)
    line = f"batch {batch.id}: {rows:,} of {batch.rows:,} rows, {len(done)} of {len(batch.parts)} parts"
    left = batch.rows - rows
    if not scored or not left:
        return line
    rate = scored / max(seconds, 1e-9)
    return f"{line}, {rate:,.0f} rows/s, {datetime.timedelta(seconds=round(left / rate))} left"
