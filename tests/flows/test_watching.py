"""What the server does by itself: it tells a webhook, labels what is announced, and lets one run score at a time."""

import datetime
import json
import os
import signal
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_recipe, weather_rows
from server import PREFECT_FILE, Office, free_port, until

from pipeline.config import IngestConfig
from pipeline.files import read_json
from pipeline.ingest import ingest
from pipeline.promotion.register import train
from pipeline.workspace import Workspace


@dataclass
class Receiver:
    """A program that is posted to; it answers each path with the status that the path names."""

    url: str
    told: list[dict[str, Any]] = field(default_factory=list)

    def of(self, text: str) -> list[dict[str, Any]]:
        return [one for one in self.told if text in one["text"]]


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    receiver = Receiver(f"http://127.0.0.1:{free_port()}")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            receiver.told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(int(self.path.strip("/")))
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", int(receiver.url.rsplit(":", 1)[1])), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield receiver
        server.shutdown()
        thread.join()


@pytest.fixture
def place(tmp_path: Path) -> Workspace:
    """A workspace with a model."""
    place = Workspace(tmp_path / "workspace")
    _add(place, weather_rows(), "labelled")
    train(place, "weather", tiny_recipe())
    return place


def _add(place: Workspace, rows: list[dict[str, Any]], batch: str) -> None:
    ingest(place, [str(_file(place.root.parent / f"{batch}.jsonl", rows))], IngestConfig(), batch_id=batch)


def _file(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _news(count: int = 40, text: str = "") -> list[dict[str, Any]]:
    return [{"id": f"n{row['id']}", "text": text or row["text"]} for row in weather_rows(count)]


def _tell(office: Office, webhook: str) -> None:
    ended = office.nightlabel("setup", "--prefect-file", str(PREFECT_FILE), "--webhook", webhook)
    assert ended.returncode == 0, ended.stderr


def test_the_webhook_is_told_once_of_each_failed_and_each_held_night(
    office: Office, receiver: Receiver, place: Workspace
) -> None:
    _tell(office, f"{receiver.url}/200")
    failed = office.ended(office.start("nightly", sources=["nowhere/gone.csv"], workspace=str(place.root)))
    assert failed["state_type"] == "FAILED"
    (told,) = until(lambda: receiver.of("nowhere/gone.csv: there is no such file"), "nobody was told of the failure")
    assert told["state"] == "Failed"
    assert told["run"] == failed["name"]
    assert told["url"].endswith(f"/runs/flow-run/{failed['id']}")

    _add(place, _news(text="完全不同的语言，没有人认识这些字。 " * 3), "chinese")
    held = office.run("nightly", workspace=str(place.root))
    assert not read_json(place.labels_dir("weather", "chinese") / "manifest.json")["published"]
    (told,) = until(lambda: receiver.of("batch chinese is held"), "nobody was told of the held batch")
    assert told["state"] == "Held"
    assert "nightlabel publish chinese" in told["text"]
    assert told["url"].endswith(f"/runs/flow-run/{held['id']}")

    # One that is in order tells nothing, and neither does the same night again.
    office.run("nightly", workspace=str(place.root))
    _add(place, _news(), "ordinary")
    office.run("nightly", workspace=str(place.root))
    last = office.ended(office.start("nightly", sources=["nowhere/later.csv"], workspace=str(place.root)))
    until(lambda: receiver.of("nowhere/later.csv"), "nobody was told of the second failure")
    assert [one["url"].rsplit("/", 1)[1] for one in receiver.told] == [failed["id"], held["id"], last["id"]]


def test_the_webhook_is_told_of_a_run_whose_process_was_killed(
    office: Office, receiver: Receiver, place: Workspace
) -> None:
    _tell(office, f"{receiver.url}/200")
    run = office.start("train", model="other", settings=["training.epochs=1000"], workspace=str(place.root))
    pid = until(lambda: _process_of(run), "the run has no process")
    until(lambda: office.get(f"/flow_runs/{run}")["state_type"] == "RUNNING", "the run did not start")
    os.kill(pid, signal.SIGKILL)
    assert office.ended(run)["state_type"] == "CRASHED"
    (told,) = until(lambda: [one for one in receiver.told if one["url"].endswith(run)], "nobody was told of the crash")
    assert told["state"] == "Crashed"


def _process_of(run_id: str) -> int | None:
    """Return the process that a worker has started for a run."""
    for environment in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"PREFECT__FLOW_RUN_ID={run_id}".encode() in environment.read_bytes().split(b"\0"):
                return int(environment.parent.name)
        except OSError:  # it has ended, or is somebody else's
            continue
    return None


@pytest.mark.parametrize("path", ["500", None])
def test_a_webhook_that_fails_costs_the_night_nothing(
    office: Office, receiver: Receiver, place: Workspace, path: str | None
) -> None:
    _tell(office, f"{receiver.url}/{path}" if path else f"http://127.0.0.1:{free_port()}")
    _add(place, _news(text="完全不同的语言，没有人认识这些字。 " * 3), "chinese")
    office.run("nightly", workspace=str(place.root))
    assert (place.labels_dir("weather", "chinese") / "manifest.json").exists()


def test_what_is_no_address_is_refused(office: Office) -> None:
    ended = office.nightlabel("setup", "--prefect-file", str(PREFECT_FILE), "--webhook", "chat.example.com")
    assert ended.returncode == 2
    assert ended.stderr.splitlines() == [
        "nightlabel: --webhook chat.example.com: give a URL that starts with http:// or https://"
    ]


def _labelled(place: Workspace, batch: str) -> bool:
    return (place.labels_dir("weather", batch) / "manifest.json").exists()


def test_a_batch_that_ingest_announces_is_labelled(office: Office, place: Workspace) -> None:
    source = _file(place.root.parent / "evening.jsonl", _news())
    office.run("ingest", sources=[str(source)], batch="evening", workspace=str(place.root))
    until(lambda: _labelled(place, "evening"), "nobody labelled the batch that was announced")
    assert not _labelled(place, "labelled")  # which nobody asked for


def test_of_three_batches_only_the_one_that_a_program_announces_is_labelled_by_itself(
    office: Office, place: Workspace
) -> None:
    training = [{**row, "id": f"more {row['id']}"} for row in weather_rows(60)]
    office.run(
        "ingest",
        sources=[str(_file(place.root.parent / "more.jsonl", training))],
        batch="training",
        workspace=str(place.root),
    )
    night = _file(place.root.parent / "night.jsonl", _news())
    office.run("nightly", sources=[str(night)], workspace=str(place.root), date="2026-11-20")
    _add(place, _news(30), "theirs")
    event = {
        "id": str(uuid.uuid4()),
        "occurred": datetime.datetime.now(datetime.UTC).isoformat(),
        "event": "nightlabel.batch.ready",
        "resource": {"prefect.resource.id": "nightlabel.batch.theirs"},
        "payload": {"workspace": str(place.root)},
    }
    office.ask("POST", "/events", [event]).raise_for_status()
    until(lambda: _labelled(place, "theirs"), "the announcement, which comes after all others, started no run")
    assert _scorings(office, place) == {"theirs"}


def _scorings(office: Office, place: Workspace) -> set[str]:
    """Return the batches of this workspace that events have started runs for."""
    runs = office.find("flow_runs", deployments={"name": {"any_": ["score"]}})
    mine = [run for run in runs if run["parameters"].get("workspace") == str(place.root)]
    return {batch for run in mine for batch in run["parameters"]["batches"]}


def test_a_part_that_hangs_fails_its_run_and_frees_the_slot(office: Office, place: Workspace) -> None:
    _add(place, _news(), "stuck")
    labels = place.labels_dir("weather", "stuck")
    labels.mkdir(parents=True)
    os.mkfifo(labels / "part-00000.parquet")  # reading it never returns, as on a network disk that went away
    run = office.ended(
        office.start("score", batches=["stuck"], config={"part_minutes": 0.05}, workspace=str(place.root))
    )
    assert run["state_type"] == "FAILED"
    assert "no part finished within 0.05 minutes" in run["state"]["message"]
    (labels / "part-00000.parquet").unlink()
    office.run("score", batches=["stuck"], workspace=str(place.root))  # would wait for ever if the slot were taken
    assert _labelled(place, "stuck")
