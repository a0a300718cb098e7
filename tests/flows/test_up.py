"""`nightlabel up` as a person starts and stops it: one command, and nothing lost however it ends."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import tiny_recipe, weather_rows
from server import SECONDS, free_port, until

from pipeline.config import IngestConfig, apply_overrides
from pipeline.ingest import ingest
from pipeline.promotion.register import train
from pipeline.workspace import Workspace

pytestmark = pytest.mark.server

PROJECT = Path(__file__).parents[2]


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
                time.sleep(1)
        self.process.wait(60)
        self._ear.join()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def said(self, pattern: str) -> str:
        def poll() -> str | None:
            assert self.process.poll() is None or any(re.search(pattern, line) for line in self.lines), self.lines
            return next((line for line in self.lines if re.search(pattern, line)), None)

        return until(poll, f"it did not say {pattern!r}: {self.lines}")

    def ended(self) -> int:
        return self.process.wait(SECONDS)

    def ask(self, path: str, body: Any = None) -> Any:
        def answered() -> httpx.Response | None:
            try:
                answer = httpx.request("GET" if body is None else "POST", self.api + path, json=body, timeout=60)
            except httpx.TransportError:
                return None
            return None if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE else answer

        return until(answered, f"{path}: no server answers, or its database is busy").raise_for_status().json()

    def start(self, name: str, **parameters: Any) -> str:
        deployment = self.ask(f"/deployments/name/{name}/{name}")["id"]
        return str(self.ask(f"/deployments/{deployment}/create_flow_run", {"parameters": parameters})["id"])

    def state(self, run_id: str) -> str:
        return str(self.ask(f"/flow_runs/{run_id}")["state_type"])


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
def filled(tmp_path: Path) -> Workspace:
    """A model that takes some seconds for a part, and a batch of five parts."""
    place = Workspace(tmp_path / "workspace")
    rows = weather_rows()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "weather.parquet")
    ingest(place, [str(tmp_path / "weather.parquet")], IngestConfig(), batch_id="labelled")
    train(
        place, "weather", apply_overrides(tiny_recipe(epochs=1), ["model.hidden_size=192", "model.embedding_size=128"])
    )
    words = np.array([word for row in rows for word in row["text"].split()])
    drawn = np.random.default_rng(0).choice(words, (250_000, 30))
    table = pa.table({"id": [f"n{number}" for number in range(len(drawn))], "text": [" ".join(row) for row in drawn]})
    pq.write_table(table, tmp_path / "night.parquet")
    ingest(place, [str(tmp_path / "night.parquet")], IngestConfig(), batch_id="night")
    assert len(place.batch("night").parts) == 5
    return place


def test_neither_a_dead_worker_nor_ctrl_c_loses_a_row_or_labels_one_twice(
    filled: Workspace, port: int, start_up: Callable[[Path, int], Up]
) -> None:
    labels = filled.labels_dir("weather", "night")
    up = start_up(filled.root, port)
    assert f"http://127.0.0.1:{port}" in up.said("the UI is at")
    assert up.said(r"the next night runs at 20\d\d-\d\d-\d\d 02:00 \(Europe/Berlin\)")

    # The worker is killed together with its run, and nobody is left who could say so: the silence must.
    killed = up.start("nightly")
    until(lambda: list(labels.glob("*.parquet")), "no part was labelled")
    (worker,) = [pid for pid, command in _family(up.process.pid).items() if "worker start" in command]
    _kill_all(worker)
    up.said("the worker ended with status -9.* starting another")
    assert up.state(killed) == "RUNNING"
    until(lambda: up.state(killed) == "CRASHED" or None, "the run stayed as if it were running")
    done = _parts(labels)
    assert 0 < len(done) < 5

    # A second run goes on where that one ended, and is itself interrupted, politely.
    stopped = up.start("nightly")
    until(lambda: len(_parts(labels)) > len(done) or None, "no further part was labelled")
    up.process.send_signal(signal.SIGINT)
    up.said("waiting for the parts under way of nightly")
    assert up.ended() == 0, up.lines
    assert up.lines[-1] == "stopped"

    again = start_up(filled.root, port)
    again.said("the UI is at")
    assert again.state(stopped) in ("CANCELLED", "COMPLETED")  # it may have been at its last part
    assert again.state(last := again.start("nightly"))
    assert until(lambda: again.state(last) == "COMPLETED" or None, "the last run did not complete")
    parts = _parts(labels)
    assert {name: parts[name] for name in done} == done  # not done twice
    ids = [doc_id for name in parts for doc_id in pq.read_table(labels / name)["doc_id"].to_pylist()]
    assert len(ids) == len(set(ids)) == 250_000
    assert (labels / "manifest.json").exists()
    assert not again.ask("/flow_runs/filter", {"flow_runs": {"state": {"type": {"any_": ["RUNNING", "PENDING"]}}}})

    # Whoever starts it a second time is told, and nothing happens to the first.
    other = start_up(filled.root, port)
    assert other.ended() == 2
    assert "runs already" in other.lines[-1]
    names = [one["name"] for one in again.ask("/automations/filter", {})]
    assert len(names) == len(set(names)) == 2
    assert again.process.poll() is None


def _parts(labels: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(labels.glob("*.parquet"))}


def test_a_run_that_died_with_everything_else_is_marked_and_the_next_outlives_a_server_that_is_killed(
    filled: Workspace, port: int, start_up: Callable[[Path, int], Up]
) -> None:
    labels = filled.labels_dir("weather", "night")
    up = start_up(filled.root, port)
    up.said("the UI is at")
    run = up.start("score")
    until(lambda: list(labels.glob("*.parquet")), "no part was labelled")
    _kill_all(up.process.pid)
    again = start_up(filled.root, port)
    assert "had been killed" in again.said("marked as crashed")
    assert again.state(run) == "CRASHED"
    again.said("the UI is at")

    done = _parts(labels)
    assert len(done) < 5
    run = again.start("score")
    until(lambda: len(_parts(labels)) > len(done), "no further part was labelled")
    (server,) = [pid for pid, command in _family(again.process.pid).items() if "server start" in command]
    os.kill(server, signal.SIGKILL)
    again.said("the server ended with status -9.* starting another")
    until(lambda: again.state(run) == "COMPLETED", "the run did not outlive the server")
    assert (labels / "manifest.json").exists()


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
