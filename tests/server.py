"""A real Prefect server on loopback, a worker, and how a test talks to them."""

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

T = TypeVar("T")
PREFECT_FILE = Path(__file__).parent.parent / "deploy" / "prefect.yaml"
SECONDS = 900.0  # nothing takes so long, however busy the machine is: who waits longer waits for ever
ENDED = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


@dataclass(frozen=True)
class Office:
    """A server on loopback, a worker, and the folder from which the deployments were made."""

    folder: Path
    api: httpx.Client
    environment: dict[str, str]

    def nightlabel(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "flows.cli", *words],
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )

    def set_up(self) -> None:
        ended = self.nightlabel("setup", "--prefect-file", str(PREFECT_FILE))
        assert ended.returncode == 0, ended.stdout + ended.stderr

    def ask(self, method: str, path: str, body: Any = None) -> httpx.Response:
        """Ask the API, again while its database is busy or it does not answer, as Prefect's own client does."""

        def answered() -> httpx.Response | None:
            try:
                answer = self.api.request(method, path, json=body)
            except httpx.TransportError:
                if method in ("GET", "PATCH") or path.endswith("/filter"):
                    return None
                raise
            return None if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE else answer

        return until(answered, f"{path}: the database stayed busy")

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

        return until(poll, "the run did not end")

    def run(self, name: str, /, **parameters: Any) -> dict[str, Any]:
        run = self.ended(self.start(name, **parameters))
        assert run["state_type"] == "COMPLETED", run["state"]["message"]
        return run

    def log(self, run: dict[str, Any]) -> list[str]:
        return [line["message"] for line in self.find("logs", logs={"flow_run_id": {"any_": [run["id"]]}})]


@contextmanager
def open_office(root: Path) -> Iterator[Office]:
    """Start a server and a worker, and set up the deployments; everything is kept under `root`."""
    folder, elsewhere = root / "checkout", root / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    port = free_port()
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT", "NIGHTLABEL"))} | {
        "PREFECT_HOME": str(root / "home"),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_CLIENT_MAX_RETRIES": "8",  # as nightlabel up has it
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS": "2",
        "CUDA_VISIBLE_DEVICES": "",
    }
    server = ["server", "start", "--host", "127.0.0.1", "--port", str(port)]
    # The worker is started in another folder than the deployments are made from, as a service would be.
    worker = ["worker", "start", "--pool", "nightlabel", "--type", "process", "--name", "desk"]
    with (
        client(environment["PREFECT_API_URL"]) as api,
        running(server, environment, elsewhere, root / "server.log"),
    ):
        until(lambda: healthy(api), f"no server; see {root / 'server.log'}")
        office = Office(folder, api, environment)
        office.set_up()
        with running(worker, environment, elsewhere, root / "worker.log"):
            yield office


def client(url: str, **more: Any) -> httpx.Client:
    """Return a client that is patient and makes a connection for each request: a server closes those left idle."""
    return httpx.Client(base_url=url, timeout=SECONDS, limits=httpx.Limits(max_keepalive_connections=0), **more)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def running(words: list[str], environment: dict[str, str], folder: Path, log: Path) -> Iterator[None]:
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
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def until(poll: Callable[[], T | None], otherwise: str) -> T:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        if found := poll():
            return found
        time.sleep(0.2)
    raise AssertionError(otherwise)


def hold_at(part: Path) -> None:
    """Hold a run at a labels part for as long as a test wants.

    Whoever looks whether the part is there already waits: it is a pipe into which nobody writes.
    """
    os.mkfifo(part)


def let_go_at(part: Path) -> None:
    """Let go on whoever is held at a labels part, and whoever comes to it later."""
    writer = os.open(part, os.O_RDWR)  # wakes those who wait, and itself waits for nobody
    part.unlink()
    os.close(writer)


def healthy(api: httpx.Client) -> bool:
    try:
        return api.get("/health").is_success
    except httpx.TransportError:
        return False
