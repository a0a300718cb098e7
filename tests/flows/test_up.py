"""`nightlabel up` as a person starts and stops it: one command, and nothing lost however it ends."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest
from conftest import tiny_recipe, weather_rows
from server import ENDED, SECONDS, free_port, hold_at, let_go_at, until

from pipeline.config import IngestConfig
from pipeline.ingest import ingest
from pipeline.promotion.register import train
from pipeline.workspace import Workspace

PROJECT = Path(__file__).parents[2]
PARTS, PART_ROWS = 6, 20


class Up:
    """A running `nightlabel up`, and what it has said so far."""

    def __init__(self, workspace: Path, port: int) -> None:
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT", "NIGHTLABEL"))}
        self.api = f"http://127.0.0.1:{port}/api"
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "flows.cli", "up", "--port", str(port), "--workspace", str(workspace)],
            cwd=PROJECT,
            env=environment | {"CUDA_VISIBLE_DEVICES": "", "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._ear = threading.Thread(target=self._listen, daemon=True)
        self._ear.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())

    def close(self) -> None:
        """Stop it, at once if need be."""
        for _ in range(2):
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGINT)
                with suppress(subprocess.TimeoutExpired):
                    self.process.wait(20)
        self.process.wait(SECONDS)
        self._ear.join()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def said(self, pattern: str) -> str:
        def poll() -> str | None:
            assert self.process.poll() is None or any(re.search(pattern, line) for line in self.lines), self.lines
            return next((line for line in self.lines if re.search(pattern, line)), None)

        return until(poll, f"it did not say {pattern!r}: {self.lines}")

    def ended(self) -> int:
        status = self.process.wait(SECONDS)
        self._ear.join()
        return status

    def ask(self, path: str, body: Any = None) -> Any:
        def answered() -> httpx.Response | None:
            try:
                answer = httpx.request("GET" if body is None else "POST", self.api + path, json=body, timeout=SECONDS)
            except httpx.TransportError:
                return None
            return None if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE else answer

        return until(answered, f"{path}: no server answers, or its database is busy").raise_for_status().json()

    def start(self, name: str, **parameters: Any) -> str:
        deployment = self.ask(f"/deployments/name/{name}/{name}")["id"]
        return str(self.ask(f"/deployments/{deployment}/create_flow_run", {"parameters": parameters})["id"])

    def state(self, run_id: str) -> dict[str, Any]:
        return dict(self.ask(f"/flow_runs/{run_id}")["state"])

    def end_of(self, run_id: str) -> tuple[str, str]:
        """Wait for a run to end; return how it did, and what is said of that."""
        state = until(lambda: found if (found := self.state(run_id))["type"] in ENDED else None, "the run did not end")
        return state["type"], state["message"]


@pytest.fixture
def start_up() -> Iterator[Callable[[Path, int], Up]]:
    started: list[Up] = []

    def start(workspace: Path, port: int) -> Up:
        started.append(Up(workspace, port))
        return started[-1]

    yield start
    for one in started:
        one.close()


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace with a model, and the batch of a night, in several parts."""
    place = Workspace(tmp_path / "workspace")
    add(place, "labelled", weather_rows())
    train(place, "weather", tiny_recipe(epochs=1))
    monkeypatch.setattr("pipeline.ingest.parts.PART_ROWS", PART_ROWS)
    monkeypatch.setattr("pipeline.ingest.readers.base.CHUNK_ROWS", PART_ROWS)
    add(place, "night", [{"id": f"n{row['id']}", "text": row["text"]} for row in weather_rows(PARTS * PART_ROWS)])
    assert len(place.batch("night").parts) == PARTS
    return place


def add(place: Workspace, batch_id: str, rows: list[dict[str, Any]]) -> None:
    source = place.root.parent / f"{batch_id}.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    ingest(place, [str(source)], IngestConfig(), batch_id=batch_id)


class Labels:
    """The labels of the night, where a run can be held at parts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)

    def path(self, number: int) -> Path:
        return self.folder / f"part-{number:05}.parquet"

    def hold(self, *numbers: int) -> None:
        for number in numbers:
            hold_at(self.path(number))

    def let_go(self, *numbers: int) -> None:
        for number in numbers:
            let_go_at(self.path(number))

    def parts(self) -> dict[int, bytes]:
        paths = {number: self.path(number) for number in range(PARTS)}
        return {number: path.read_bytes() for number, path in paths.items() if path.is_file()}

    def await_parts(self, numbers: Iterable[int]) -> None:
        until(lambda: self.parts().keys() == set(numbers), f"the labels are not those of parts {numbers}")


@pytest.fixture
def labels(filled: Workspace) -> Labels:
    return Labels(filled.labels_dir("weather", "night"))


def test_neither_a_dead_worker_nor_ctrl_c_loses_a_row_or_labels_one_twice(
    filled: Workspace, labels: Labels, port: int, start_up: Callable[[Path, int], Up]
) -> None:
    up = start_up(filled.root, port)
    assert f"http://127.0.0.1:{port}" in up.said("the UI is at")
    assert up.said(r"the next night runs at 20\d\d-\d\d-\d\d 02:00 \(Europe/Berlin\)")

    # The worker is killed together with its run, and nobody is left who could say so: the silence must.
    labels.hold(1, 2)
    killed = up.start("nightly")
    labels.await_parts([0])
    (worker,) = [pid for pid, command in _family(up.process.pid).items() if "worker start" in command]
    _kill_all(worker)
    labels.let_go(1, 2)
    up.said("the worker ended with status -9.* starting another")
    how, why = up.end_of(killed)
    assert (how, "The process of this run is gone" in why) == ("CRASHED", True), why
    done = labels.parts()
    assert done.keys() == {0}

    # A second run goes on where that one ended, and is itself interrupted, politely.
    labels.hold(3, 4)
    stopped = up.start("nightly")
    labels.await_parts([0, 1, 2])
    up.process.send_signal(signal.SIGINT)
    up.said("waiting for the parts in progress of nightly")
    labels.let_go(3, 4)
    assert up.ended() == 0, up.lines
    assert up.lines[-1] == "stopped"
    assert labels.parts().keys() == {0, 1, 2, 3, 4}

    again = start_up(filled.root, port)
    again.said("the UI is at")
    assert again.end_of(stopped)[0] == "CANCELLED"
    assert again.end_of(again.start("nightly"))[0] == "COMPLETED"
    parts = labels.parts()
    assert {number: parts[number] for number in done} == done  # not done twice
    ids = [doc_id for number in parts for doc_id in pq.read_table(labels.path(number))["doc_id"].to_pylist()]
    assert len(ids) == len(set(ids)) == PARTS * PART_ROWS
    assert (labels.folder / "manifest.json").exists()
    assert not again.ask("/flow_runs/filter", {"flow_runs": {"state": {"type": {"any_": ["RUNNING", "PENDING"]}}}})

    # Whoever starts it a second time is told, and nothing happens to the first.
    other = start_up(filled.root, port)
    assert other.ended() == 2
    assert "runs already" in other.lines[-1]
    names = [one["name"] for one in again.ask("/automations/filter", {})]
    assert len(names) == len(set(names)) == 2
    assert again.process.poll() is None


def test_a_run_that_died_with_everything_else_is_marked_and_the_next_outlives_a_server_that_is_killed(
    filled: Workspace, labels: Labels, port: int, start_up: Callable[[Path, int], Up]
) -> None:
    up = start_up(filled.root, port)
    up.said("the UI is at")
    labels.hold(1, 2)
    run = up.start("score")
    labels.await_parts([0])
    _kill_all(up.process.pid)
    labels.let_go(1, 2)
    again = start_up(filled.root, port)
    assert "had been killed" in again.said("marked as crashed")
    assert again.state(run)["type"] == "CRASHED"
    again.said("the UI is at")
    assert labels.parts().keys() == {0}

    labels.hold(3, 4)
    run = again.start("score")
    labels.await_parts([0, 1, 2])
    (server,) = [pid for pid, command in _family(again.process.pid).items() if "server start" in command]
    os.kill(server, signal.SIGKILL)
    labels.let_go(3, 4)
    again.said("the server ended with status -9.* starting another")
    assert again.end_of(run)[0] == "COMPLETED"
    assert (labels.folder / "manifest.json").exists()


def _family(pid: int) -> dict[int, str]:
    """Return a process and everything it started, with their command lines."""
    listed = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(maxsplit=2) for line in listed.splitlines()[1:]]
    found = {pid: ""}
    for child, parent, command in sorted((int(one), int(two), rest) for one, two, rest in rows):
        if child == pid or parent in found:
            found[child] = command
    return found


def _kill_all(pid: int) -> None:
    """Kill a process and everything it started, as a machine that goes down."""
    for member in _family(pid):
        os.kill(member, signal.SIGKILL)


@pytest.mark.parametrize("folder", ["elsewhere"])
def test_outside_the_project_it_says_so(tmp_path: Path, folder: str) -> None:
    place = tmp_path / folder
    place.mkdir()
    found = subprocess.run(
        [sys.executable, "-m", "flows.cli", "up"], cwd=place, capture_output=True, text=True, check=False
    )
    assert found.returncode == 2
    assert "run nightlabel up in the project's folder" in found.stderr


def test_a_port_of_another_program_is_named(tmp_path: Path, start_up: Callable[[Path, int], Up]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = int(other.getsockname()[1])
        up = start_up(tmp_path / "workspace", port)
        assert up.ended() == 2
    assert up.lines == [f"nightlabel: port {port} is in use by another program; take another with --port"]
