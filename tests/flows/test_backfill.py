"""Nights that were missed, late or failed are made up for, each once, however often it is asked for."""

import datetime
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from conftest import tiny_recipe, weather_rows
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.settings import PREFECT_API_URL, temporary_settings
from server import SECONDS, Office, free_port

from flows.cli import main
from flows.server.backfill import NightRuns
from flows.server.orchestrator import Orchestrator
from pipeline.config import DriftConfig, IngestConfig, ScoringConfig
from pipeline.files import read_json, write_json
from pipeline.ingest import ingest
from pipeline.models.registry import Registry
from pipeline.nights.backfill import (
    BackfillReason,
    BackfillRow,
    NightRun,
    NightState,
    check_reasons,
    day_of,
    plan_backfill,
)
from pipeline.nights.finish import score_batch
from pipeline.promotion.register import train
from pipeline.scoring.scorer import Scorer
from pipeline.workspace import Batch, Workspace

BERLIN = ZoneInfo("Europe/Berlin")
ALL: tuple[BackfillReason, ...] = ("missing", "failed", "stale-model")
DEFAULT = check_reasons([])
FIRST = datetime.date(2024, 3, 1)
LABELLED, UNLABELLED, TWO, NONE = (FIRST + datetime.timedelta(days=number) for number in range(4))


def rows_of(day: object, count: int = 20) -> list[dict[str, Any]]:
    return [{"id": f"{day}-{row['id']}", "text": f"{row['text']} {day}"} for row in weather_rows(count)]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def add(place: Workspace, batch_id: object, rows: list[dict[str, Any]] | None = None) -> Batch:
    path = write_rows(place.root.parent / "files" / f"{batch_id}.jsonl", rows or rows_of(batch_id))
    ingest(place, [str(path)], IngestConfig(), batch_id=str(batch_id))
    return place.batch(str(batch_id))


def label(place: Workspace, *batches: Batch) -> None:
    with Scorer(Registry(place).find(), ScoringConfig()) as scorer:
        for batch in batches:
            score_batch(place, batch, scorer, DriftConfig(hold=False))


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace with a model, a batch that it has labelled, and some that it has not."""
    place = Workspace(tmp_path_factory.mktemp("shelf") / "workspace")
    history = add(place, "history", weather_rows())
    train(place, "weather", tiny_recipe())
    label(place, history, add(place, LABELLED))
    for batch_id in (UNLABELLED, TWO, f"{TWO}-2"):
        add(place, batch_id)
    return place


@pytest.fixture
def place(shelf: Workspace, tmp_path: Path) -> Workspace:
    """A copy of the shelf, to be changed; with the one labelled day, and none without labels."""
    own = Workspace(tmp_path / "workspace")
    shutil.copytree(shelf.root, own.root)
    for batch_id in (UNLABELLED, TWO, f"{TWO}-2"):
        shutil.rmtree(own.documents_dir(str(batch_id)))
    return own


def planned(
    place: Workspace, day: datetime.date, night: NightRun, only: tuple[BackfillReason, ...]
) -> list[BackfillRow]:
    return plan_backfill(place, "weather@1", {day: night}, {}, only, BERLIN)


@pytest.mark.parametrize(
    ("day", "state", "ingests", "only", "actions"),
    [
        (LABELLED, "never ran", True, ALL, ["nothing: labelled"]),
        (LABELLED, "failed", True, ALL, ["nothing: labelled"]),
        (UNLABELLED, "never ran", False, ["missing"], ["label"]),
        (UNLABELLED, "never ran", False, ["failed"], ["nothing: without --only missing"]),
        (UNLABELLED, "failed", True, ["failed"], ["ingest and label"]),
        (UNLABELLED, "failed", True, ["missing"], ["nothing: without --only failed"]),
        (UNLABELLED, "completed", True, ["missing"], ["label"]),
        (UNLABELLED, "completed", True, ["failed"], ["nothing: without --only missing"]),
        (UNLABELLED, "under way", True, ["failed"], ["wait for its run"]),
        (UNLABELLED, "under way", True, ["stale-model"], ["nothing: its night is under way"]),
        (UNLABELLED, "to come", True, ALL, ["nothing: its night is to come"]),
        (TWO, "never ran", False, ["missing"], ["label", "label"]),
        (NONE, "never ran", True, ["missing"], ["ingest and label"]),
        (NONE, "failed", True, ["failed"], ["ingest and label"]),
        (NONE, "completed", True, ALL, ["nothing: its night brought no batch"]),
        (NONE, "never ran", False, ALL, ["nothing: no batch of that day, and nightly has no sources"]),
    ],
)
def test_what_is_done_follows_from_what_lies_there_and_what_became_of_the_night(
    shelf: Workspace,
    day: datetime.date,
    state: NightState,
    ingests: bool,
    only: tuple[BackfillReason, ...],
    actions: list[str],
) -> None:
    rows = planned(shelf, day, NightRun(state, state, "r1", ingests), only)
    assert [row.action for row in rows] == actions
    assert {bool(row.work) for row in rows} == {not action.startswith("nothing") for action in actions}


def test_a_night_labels_all_batches_of_its_day_in_one_run_and_later_ones_get_runs_of_their_own(
    shelf: Workspace,
) -> None:
    missed = {row.work for row in planned(shelf, TWO, NightRun("never ran", "never ran"), ("missing",))}
    assert [(work.kind, work.batch) for work in missed if work] == [("night", None)]
    late = [row.work for row in planned(shelf, TWO, NightRun("completed", "Completed", "r1"), ("missing",))]
    assert [(work.kind, work.batch) for work in late if work] == [("batch", str(TWO)), ("batch", f"{TWO}-2")]


def test_labels_by_another_version_are_stale_and_done_again_when_asked_for(shelf: Workspace) -> None:
    night = {LABELLED: NightRun("completed", "Completed")}
    (row,) = plan_backfill(shelf, "weather@2", night, {str(LABELLED): "r1"}, ALL, BERLIN)
    assert (row.action, row.labels) == ("label again with weather@2", "weather@1, published")
    assert row.work and (row.work.kind, row.work.batch, row.work.run) == ("batch", str(LABELLED), "r1")
    (row,) = plan_backfill(shelf, "weather@2", night, {}, DEFAULT, BERLIN)
    assert (row.action, row.work) == ("nothing: labelled; --only stale-model labels it with weather@2", None)


def test_the_plan_says_how_far_labels_are(place: Workspace) -> None:
    def words() -> str:
        (row,) = planned(place, LABELLED, NightRun("completed", "Completed"), ())
        return row.labels

    manifest = place.labels_dir("weather", str(LABELLED)) / "manifest.json"
    labels = read_json(manifest)
    write_json(manifest, {**labels, "published": False})
    assert words() == "weather@1, held"
    write_json(manifest, {**labels, "documents_fingerprint": "another"})
    assert words() == "of other documents, or damaged"
    manifest.unlink()
    assert words() == "1 of 1 parts"
    (manifest.parent / "part-00000.parquet").unlink()
    assert words() == "none"


@pytest.mark.parametrize(
    ("batch_id", "day"),
    [
        ("2024-03-01", "2024-03-01"),
        ("2024-03-01-2", "2024-03-01"),
        ("2024-03-01-tickets", "2024-03-01"),
        ("2024-03-011", "2025-07-02"),
        ("2024-13-01", "2025-07-02"),
        ("tickets", "2025-07-02"),
    ],
)
def test_a_batch_is_for_the_day_in_its_name_or_that_of_its_ingest_where_the_nights_are(batch_id: str, day: str) -> None:
    batch = Batch(batch_id, Path(), {"created": "2025-07-01T22:30:00+00:00"})
    assert day_of(batch, BERLIN).isoformat() == day


NIGHT = ("backfill", "--from", "2024-03-01", "--to", "2024-03-07")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["backfill", "--from", "2024-03-07", "--to", "2024-03-01"], "--to 2024-03-01 is before --from 2024-03-07"),
        (["backfill", "--from", "1024-03-07", "--to", "2024-03-01"], "are more than 1,000 days"),
        ([*NIGHT, "--only", "late"], "--only late: choose from missing, failed, stale-model"),
        (NIGHT, "PREFECT_API_URL is not set: nightlabel up, and export PREFECT_API_URL="),
    ],
)
def test_what_a_user_can_mend_is_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert message in complaint(capsys, None, *words)


def test_a_server_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    url = f"http://127.0.0.1:{free_port()}/api"
    assert f"no Prefect server answers at {url}" in complaint(capsys, url, *NIGHT)


def complaint(capsys: pytest.CaptureFixture[str], url: str | None, *words: str) -> str:
    """Return the one line in which a command ends whose error the user can mend."""
    with temporary_settings({PREFECT_API_URL: url}), pytest.raises(SystemExit) as ended:
        main(list(words))
    assert ended.value.code == 2
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert said.out == ""
    return line


def api_url(office: Office) -> str:
    return office.environment["PREFECT_API_URL"]


class Desk:
    """The backfill of a workspace on the real server, without the command line."""

    def __init__(self, nights: NightRuns, office: Office) -> None:
        self.nights, self.office = nights, office
        self.said: list[str] = []

    def plan(self, first: datetime.date, last: datetime.date, *only: str) -> list[BackfillRow]:
        return self.nights.plan(first, last, check_reasons(only))

    def make_up(self, first: datetime.date, last: datetime.date, *only: str) -> tuple[bool, list[str]]:
        """Return whether all went well, and the ids of the runs."""
        runs = self.nights.start(self.plan(first, last, *only))
        return self.nights.watch(runs, self.said.append), [str(run.id) for run in runs]


@pytest.fixture
def desk(office: Office, place: Workspace) -> Iterator[Desk]:
    with Orchestrator.at(api_url(office)) as orchestrator:
        yield Desk(NightRuns(orchestrator.client, str(place.root), None), office)


class Schedule:
    """The schedule of the nights, which a test may change for its own time."""

    def __init__(self, office: Office) -> None:
        self._office, self._before = office, office.deployment("nightly")
        self._path = f"/deployments/{self._before['id']}"

    def give(self, **parameters: Any) -> None:
        """Let nights from now on have these parameters."""
        given = {"parameters": {**self._before["parameters"], **parameters}}
        self._office.ask("PATCH", self._path, given).raise_for_status()

    def switch(self, on: bool) -> None:
        (schedule,) = self._before["schedules"]
        self._office.ask("PATCH", f"{self._path}/schedules/{schedule['id']}", {"active": on}).raise_for_status()

    def miss(self, first: datetime.date, last: datetime.date) -> None:
        """Have the server schedule the nights of past days."""
        start, end = (
            datetime.datetime.combine(day, datetime.time(hour), BERLIN) for day, hour in ((first, 0), (last, 12))
        )
        span = {"start_time": start.isoformat(), "end_time": end.isoformat()}
        self._office.ask("POST", f"{self._path}/schedule", span).raise_for_status()

    def restore(self) -> None:
        self.give()
        self.switch(self._before["schedules"][0]["active"])


@pytest.fixture
def schedule(office: Office) -> Iterator[Schedule]:
    schedule = Schedule(office)
    schedule.switch(True)
    yield schedule
    schedule.restore()


def runs_in(office: Office, place: Workspace) -> dict[str, dict[str, Any]]:
    """Return the runs that were given this workspace, by id."""
    found = office.find("flow_runs", sort="EXPECTED_START_TIME_DESC")
    return {run["id"]: run for run in found if run["parameters"].get("workspace") == str(place.root)}


def top_runs_in(office: Office, place: Workspace) -> dict[str, dict[str, Any]]:
    return {run_id: run for run_id, run in runs_in(office, place).items() if run["deployment_id"]}


def labels_in(place: Workspace, batch_id: object) -> dict[str, Any]:
    manifest: dict[str, Any] = read_json(place.labels_dir("weather", str(batch_id)) / "manifest.json")
    return manifest


@contextmanager
def paused(desk: Desk) -> Iterator[None]:
    """Let the office's worker start nothing meanwhile."""
    orchestrator = Orchestrator(desk.nights.client)
    orchestrator.pause(True)
    try:
        yield
    finally:
        orchestrator.pause(False)


def test_a_failed_night_is_run_again_as_it_was_asked_for_until_it_has_its_labels(
    office: Office, shelf: Workspace, place: Workspace, desk: Desk
) -> None:
    sources = [str(place.root.parent / "incoming" / "{date}.jsonl")]
    failed = office.ended(office.start("nightly", sources=sources, date=str(NONE), workspace=str(place.root)))
    assert failed["state_type"] == "FAILED"
    (row,) = desk.plan(NONE, NONE)
    assert (row.night, row.action) == ("Failed", "ingest and label")
    assert desk.plan(NONE, NONE, "missing")[0].work is None
    assert NightRuns(desk.nights.client, str(shelf.root), None).plan(NONE, NONE, DEFAULT)[0].night == "never ran"

    good, first = desk.make_up(NONE, NONE)  # the file is still not there
    assert not good
    assert desk.said[-1] == "0 completed, 1 failed"

    write_rows(Path(sources[0].replace("{date}", str(NONE))), rows_of(NONE))
    good, second = desk.make_up(NONE, NONE)
    assert good
    assert desk.said[-1] == "1 completed, 0 failed"
    assert top_runs_in(office, place).keys() == {failed["id"], *first, *second}
    assert len({failed["id"], *first, *second}) == 3
    assert labels_in(place, NONE)["counts"]["documents"] == 20
    assert [row.action for row in desk.plan(NONE, NONE)] == ["nothing: labelled"]


def test_a_missed_night_is_planned_then_run_once_whoever_asks_and_however_often(
    office: Office,
    place: Workspace,
    desk: Desk,
    schedule: Schedule,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_rows(place.root.parent / "incoming" / f"{UNLABELLED}.jsonl", rows_of(UNLABELLED))
    schedule.give(sources=[str(place.root.parent / "incoming" / "{date}.jsonl")])
    command = ["backfill", "--from", str(LABELLED), "--to", str(UNLABELLED), "--workspace", str(place.root)]
    before = sorted(place.root.rglob("*"))
    assert command_line(office, *command, "--dry-run") == 0
    lines = re.sub(" +", " ", capsys.readouterr().out)
    assert f"| {LABELLED} | never ran | {LABELLED} | 20 | weather@1, published | nothing: labelled |" in lines
    assert f"| {UNLABELLED} | never ran | | | none | ingest and label |" in lines
    assert sorted(place.root.rglob("*")) == before
    assert not runs_in(office, place)

    desk.nights = NightRuns(desk.nights.client, str(place.root), None)  # the deployment has changed
    with paused(desk):
        plans = [desk.plan(LABELLED, UNLABELLED) for _ in range(2)]
        (mine,), (theirs,) = (desk.nights.start(rows) for rows in plans)
        assert mine.id == theirs.id
        assert command_line(office, *command, "--no-wait") == 0
        assert f"/runs/flow-run/{mine.id}\nThe work pool nightlabel is paused" in capsys.readouterr().out
        interrupt_once_waiting(office, *command)
    assert command_line(office, *command) == 0
    said = capsys.readouterr().out
    assert re.search(rf"nightly {UNLABELLED}.*: started\n", said)
    assert said.endswith("\n1 completed, 0 failed\n")

    assert [run["tags"] for run in top_runs_in(office, place).values()] == [["backfill"]]
    assert labels_in(place, UNLABELLED)["counts"]["documents"] == 20
    assert command_line(office, *command) == 0
    assert capsys.readouterr().out.endswith("\nNothing to do.\n")
    assert len(top_runs_in(office, place)) == 1


def command_line(office: Office, *words: str) -> int:
    """Give a command in this process, told of the office's server; return its exit status."""
    with temporary_settings({PREFECT_API_URL: api_url(office)}), pytest.raises(SystemExit) as ended:
        main(list(words))
    return int(ended.value.code or 0)


def interrupt_once_waiting(office: Office, *words: str) -> None:
    """Give a command, and Ctrl-C once it waits for the worker."""
    said = ""
    with subprocess.Popen(
        [sys.executable, "-m", "flows.cli", *words],
        env=office.environment | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout
        (patience := threading.Timer(SECONDS, process.kill)).start()
        for line in process.stdout:
            said += line
            # An interrupt that comes while Python collects garbage is lost, and Python says so: a person repeats it.
            is_lost = line.startswith("KeyboardInterrupt") and "The runs continue" not in said
            if "The work pool nightlabel is paused" in line or is_lost:
                process.send_signal(signal.SIGINT)
    patience.cancel()
    assert "The runs continue" in said, f"status {process.returncode}: {said}"
    assert process.returncode == 130, said


def test_a_night_of_the_schedule_is_run_again_as_the_schedule_would_run_it_now(
    office: Office, place: Workspace, desk: Desk, schedule: Schedule
) -> None:
    schedule.give(sources=["mistyped.csv"], workspace=str(place.root))
    with paused(desk):
        schedule.miss(NONE, NONE)
        runs = top_runs_in(office, place).values()  # those to come, too
        (night,) = (run for run in runs if run["expected_start_time"].startswith(str(NONE)))
        assert night["auto_scheduled"]
        cancelled = {"state": {"type": "CANCELLED"}, "force": True}
        office.ask("POST", f"/flow_runs/{night['id']}/set_state", cancelled).raise_for_status()
        schedule.give(sources=["right.csv"])
        nights = NightRuns(desk.nights.client, str(place.root), None)
        rows = nights.plan(NONE, NONE, DEFAULT)
        assert [(row.night, row.action) for row in rows] == [("Cancelled", "ingest and label")]
        (run,) = nights.start(rows)
        nights.client.delete_flow_run(run.id)
    assert run.parameters == {"sources": ["right.csv"], "date": str(NONE), "workspace": str(place.root)}


def test_labels_of_an_older_model_are_done_again_once(place: Workspace, desk: Desk) -> None:
    older = labels_in(place, LABELLED)
    train(place, "weather", tiny_recipe(epochs=9), force=True, reason="for this test")
    nights = NightRuns(desk.nights.client, str(place.root), None)
    only: list[BackfillReason] = ["stale-model"]
    rows = nights.plan(LABELLED, LABELLED, only)
    assert [row.action for row in rows] == ["label again with weather@2"]
    with paused(desk):
        (run,) = nights.start(rows)
        nights.client.delete_flow_run(run.id)
    assert not nights.watch([run], desk.said.append)
    assert f"score {LABELLED} with weather@2: deleted" in desk.said[0]
    (run,) = nights.start(rows)
    assert nights.watch([run], desk.said.append)
    assert labels_in(place, LABELLED)["model"] == "weather@2"
    assert [one.id for one in nights.start(rows)] == [run.id]  # asked for with a plan that was made before
    assert [row.work for row in nights.plan(LABELLED, LABELLED, only)] == [None]

    write_json(place.labels_dir("weather", str(LABELLED)) / "manifest.json", older)  # as a restored backup would be
    with paused(desk):
        (other,) = nights.start(nights.plan(LABELLED, LABELLED, only))
        nights.client.delete_flow_run(other.id)
    assert other.id != run.id


def test_nights_that_became_late_run_one_by_one_each_for_its_own_day_and_label_once(
    office: Office, place: Workspace, desk: Desk, schedule: Schedule
) -> None:
    today = datetime.datetime.now(BERLIN).date()
    days = [today - datetime.timedelta(days=number) for number in (3, 2, 1)]
    for day in days:
        add(place, day)
    schedule.give(workspace=str(place.root))
    with paused(desk):
        schedule.miss(days[0], days[-1])
        rows = desk.plan(days[0], days[-1])
        assert [(row.day, row.action) for row in rows] == [(day, "wait for its run") for day in days]
        waited_for = desk.nights.start(rows)
    assert desk.nights.watch(waited_for, desk.said.append), "\n".join(desk.said)

    started = [run for run in top_runs_in(office, place).values() if run["start_time"]]
    nights = sorted(started, key=lambda run: str(run["start_time"]))
    assert {run["id"] for run in nights} == {str(run.id) for run in waited_for}
    assert sorted(run["name"] for run in nights) == [f"nightly {day}" for day in days]
    for before, after in pairwise(nights):
        assert before["end_time"] <= after["start_time"]
    for day in days:
        labels = labels_in(place, day)
        assert labels["counts"]["documents"] == 20
        assert datetime.datetime.fromisoformat(labels["created"]) <= datetime.datetime.fromisoformat(
            nights[0]["end_time"]
        )


def test_a_day_in_the_future_is_refused(office: Office, place: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line(office, "backfill", "--from", "2124-03-01", "--workspace", str(place.root)) == 2
    assert "nightlabel: --from 2124-03-01 is in the future" in capsys.readouterr().err


def test_it_is_said_that_no_worker_is_there(desk: Desk) -> None:
    nights = desk.nights
    assert nights.blocked_reason() is None
    nights.nightly = nights.nightly.model_copy(update={"work_pool_name": "nobody"})
    assert nights.blocked_reason() == "There is no work pool nobody: the runs start after nightlabel setup."
    nights.client.create_work_pool(WorkPoolCreate(name="nobody", type="process"))
    try:
        assert "No worker is running: the runs start with one" in (nights.blocked_reason() or "")
    finally:
        nights.client.delete_work_pool("nobody")
