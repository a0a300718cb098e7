"""The flows, deployed on a real server and run by a real worker, as they are in production."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pyarrow.parquet as pq
import pytest
from conftest import weather_rows

pytestmark = pytest.mark.server

PREFECT_FILE = Path(__file__).parents[2] / "deploy" / "prefect.yaml"
FLOWS = {"ingest", "pretrain", "train", "tune", "score", "nightly"}
T = TypeVar("T")
SECONDS = 120.0  # a run takes about eight, most of them imports; a busy machine may take many times as long
ENDED = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
TINY = ["training.epochs=1", "model.hidden_size=8", "model.embedding_size=8", "tokenizer.min_count=1"]


@dataclass(frozen=True)
class Office:
    """A server on loopback, a worker, and the folder from which the deployments were made."""

    folder: Path
    api: httpx.Client
    environment: dict[str, str]

    def prefect(self, *words: str) -> None:
        ended = subprocess.run(
            [sys.executable, "-m", "prefect", *words],
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr

    def deploy(self, *which: str) -> None:
        self.prefect("--no-prompt", "deploy", "--prefect-file", str(PREFECT_FILE), *which)

    def ask(self, method: str, path: str, body: Any = None) -> httpx.Response:
        """Ask the API, again while its database is busy, as Prefect's own client does."""

        def answered() -> httpx.Response | None:
            answer = self.api.request(method, path, json=body)
            return None if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE else answer

        return _until(answered, f"{path}: the database stayed busy")

    def get(self, path: str) -> Any:
        return self.ask("GET", path).raise_for_status().json()

    def find(self, what: str, **filters: Any) -> Any:
        return self.ask("POST", f"/{what}/filter", filters).raise_for_status().json()

    def deployment(self, name: str) -> dict[str, Any]:
        return dict(self.get(f"/deployments/name/{name}/{name}"))

    def create(self, name: str, /, **parameters: Any) -> httpx.Response:
        path = f"/deployments/{self.deployment(name)['id']}/create_flow_run"
        return self.ask("POST", path, {"parameters": parameters})

    def start(self, name: str, /, **parameters: Any) -> str:
        return str(self.create(name, **parameters).raise_for_status().json()["id"])

    def ended(self, run_id: str) -> dict[str, Any]:
        def poll() -> dict[str, Any] | None:
            run = dict(self.get(f"/flow_runs/{run_id}"))
            return run if run["state_type"] in ENDED else None

        return _until(poll, "the run did not end")

    def run(self, name: str, /, **parameters: Any) -> dict[str, Any]:
        run = self.ended(self.start(name, **parameters))
        assert run["state_type"] == "COMPLETED", run["state"]["message"]
        return run

    def log(self, run: dict[str, Any]) -> list[str]:
        return [line["message"] for line in self.find("logs", logs={"flow_run_id": {"any_": [run["id"]]}})]


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    root = tmp_path_factory.mktemp("prefect")
    folder, elsewhere = root / "checkout", root / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT", "NIGHTLABEL"))} | {
        "PREFECT_HOME": str(root / "home"),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    server = ["server", "start", "--host", "127.0.0.1", "--port", str(port)]
    # The worker is started in another folder than the deployments are made from, as a service would be.
    worker = ["worker", "start", "--pool", "nightlabel", "--type", "process", "--name", "desk"]
    with (
        httpx.Client(base_url=environment["PREFECT_API_URL"], timeout=60) as api,
        _running(server, environment, elsewhere, root / "server.log"),
    ):
        _until(lambda: _healthy(api), f"no server; see {root / 'server.log'}")
        office = Office(folder, api, environment)
        office.prefect("work-pool", "create", "nightlabel", "--type", "process")
        with _running(worker, environment, elsewhere, root / "worker.log"):
            office.deploy("--all")
            yield office


@contextmanager
def _running(words: list[str], environment: dict[str, str], folder: Path, log: Path) -> Iterator[None]:
    """Run a Prefect service with all its children as one process group, and stop that group at the end."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", *words],
            env=environment,
            cwd=folder,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _until(poll: Callable[[], T | None], otherwise: str) -> T:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        if found := poll():
            return found
        time.sleep(0.2)
    raise AssertionError(otherwise)


def _healthy(api: httpx.Client) -> bool:
    try:
        return api.get("/health").is_success
    except httpx.TransportError:
        return False


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def runs(office: Office) -> dict[str, dict[str, Any]]:
    """One run of each flow, in the order of a first day and its night, and one that cannot work."""
    _write(office.folder / "weather.jsonl", weather_rows())
    news = [{"id": f"n{row['id']}", "text": f"{row['text']} again"} for row in weather_rows(20)]
    _write(office.folder / "incoming" / "2026-11-20" / "news.jsonl", news)
    missing = office.start("ingest", sources=["nowhere/nothing.csv"])
    return {
        "ingest": office.run("ingest", sources=["weather.jsonl"], batch="labelled"),
        "missing": office.ended(missing),
        "pretrain": office.run("pretrain", settings=TINY),
        "train": office.run("train", model="weather", settings=TINY),
        "tune": office.run("tune", name="quick", settings=TINY, trials=2),
        "score": office.run("score", batches=["labelled"]),
        "nightly": office.run("nightly", sources=["incoming/{date}/*.jsonl"], date="2026-11-20"),
    }


def test_all_deployments_register(office: Office) -> None:
    assert {deployment["name"] for deployment in office.find("deployments")} == FLOWS


def test_every_night_has_one_run_at_a_time_at_two_in_a_named_time_zone(office: Office) -> None:
    nightly = office.deployment("nightly")
    (schedule,) = nightly["schedules"]
    assert schedule["active"]
    assert schedule["schedule"]["cron"] == "0 2 * * *"
    assert "/" in schedule["schedule"]["timezone"]
    assert nightly["global_concurrency_limit"]["limit"] == 1


def test_the_worker_completes_each_flow_and_its_name_says_what_it_did(runs: dict[str, dict[str, Any]]) -> None:
    assert {name: runs[name]["name"] for name in FLOWS} == {
        "ingest": "ingest labelled: weather.jsonl",
        "pretrain": "pretrain with preset default",
        "train": "train weather from preset default",
        "tune": "tune quick from preset default",
        "score": "score labelled with the champion",
        "nightly": "nightly 2026-11-20: *.jsonl",
    }


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize(("batch", "documents"), [("labelled", 120), ("2026-11-20", 20)])
def test_the_labels_lie_in_the_folder_that_was_deployed_from_and_add_up(
    office: Office, batch: str, documents: int
) -> None:
    labels = office.folder / "workspace" / "labels" / "weather" / f"batch={batch}"
    manifest = json.loads((labels / "manifest.json").read_text(encoding="utf-8"))
    rows = sum(pq.read_metadata(labels / part["file"]).num_rows for part in manifest["parts"])
    counts = manifest["counts"]
    assert documents == rows == counts["documents"] == counts["scored"] + counts["review"] + counts["empty"]


def test_each_flow_leaves_its_report_as_an_artifact(office: Office, runs: dict[str, dict[str, Any]]) -> None:
    keys = {artifact["key"]: artifact for artifact in office.find("artifacts") if artifact["key"]}
    assert keys.keys() == {"ingest", "encoder", "model", "tuning", "labels", "night"}
    assert keys["night"]["flow_run_id"] == runs["nightly"]["id"]
    assert "# Night of 2026-11-20" in keys["night"]["data"]
    assert "data:image/png;base64," in keys["model"]["data"]
    assert "data:image/png;base64," in keys["tuning"]["data"]
    assert "data:image/png;base64," in keys["encoder"]["data"]


def test_what_the_library_says_is_in_the_run_s_log(office: Office, runs: dict[str, dict[str, Any]]) -> None:
    assert any("training the linear baseline" in line for line in office.log(runs["train"]))


def test_a_missing_file_fails_the_run_and_is_named_without_a_traceback(
    office: Office, runs: dict[str, dict[str, Any]]
) -> None:
    run = runs["missing"]
    assert run["state_type"] == "FAILED"
    assert "nowhere/nothing.csv: there is no such file" in run["state"]["message"]
    assert not any("Traceback" in line for line in office.log(run))


@pytest.mark.parametrize(
    ("flow", "parameters", "named"),
    [
        ("score", {"config": {"review_below": 7}}, "config.review_below"),
        ("score", {"config": {"device": "tpu"}}, "config.device"),
        ("ingest", {"sources": []}, "sources"),
        ("train", {"preset": "unheard-of"}, "preset"),
        ("tune", {"trials": 0}, "trials"),
    ],
)
def test_a_wrong_parameter_is_refused_when_the_run_is_created(
    office: Office, flow: str, parameters: dict[str, Any], named: str
) -> None:
    answer = office.create(flow, **parameters)
    assert answer.is_client_error
    assert named in answer.text


def test_a_schedule_that_was_paused_stays_paused_when_deployed_again(office: Office) -> None:
    nightly = office.deployment("nightly")
    (schedule,) = nightly["schedules"]
    path = f"/deployments/{nightly['id']}/schedules/{schedule['id']}"
    office.ask("PATCH", path, {"active": False}).raise_for_status()
    office.deploy("--name", "nightly")
    assert [schedule["active"] for schedule in office.deployment("nightly")["schedules"]] == [False]
