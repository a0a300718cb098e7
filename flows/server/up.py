"""nightlabel up: a Prefect server, the deployments and a worker on one machine, kept running."""

import fcntl
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType, TracebackType
from typing import Self

import httpx

from flows.server.connection import is_serving
from flows.server.orchestrator import POOL, PREFECT_FILE, Orchestrator
from pipeline.errors import ConfigError, WorkspaceError
from pipeline.workspace import Workspace

STARTING_SECONDS = 180.0  # a server takes about twelve, on a busy machine many times as long
FINISHING_SECONDS = 120.0  # for the parts in progress to finish before everything stops
HEARTBEAT_SECONDS = 30
RESTART_SECONDS = 2.0
MAX_STARTS, STABLE_SECONDS = 5, 600.0  # give up after so many starts, each of which ran for a shorter time
Say = Callable[[str], None]


class ServiceError(Exception):
    """The server or the worker ended repeatedly."""


class Service:
    """A Prefect process in its own session, so that Ctrl-C does not reach it."""

    def __init__(self, name: str, workspace: Workspace, environment: dict[str, str], *options: str) -> None:
        self.name, self.log = name, workspace.log_path(name)
        self._command, self._environment = [sys.executable, "-m", "prefect", name, "start", *options], environment
        self.log.parent.mkdir(exist_ok=True)
        self.starts, self._started = 0, -math.inf
        self.process = self.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> subprocess.Popen[bytes]:
        """Start the process, or restart it."""
        seconds = time.monotonic()
        self.starts = self.starts + 1 if seconds - self._started < STABLE_SECONDS else 1
        self._started = seconds
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self.process

    @property
    def end(self) -> str | None:
        """A sentence on how the process ended; None while it runs."""
        status = self.process.poll()
        return None if status is None else f"the {self.name} ended with status {status}; see {self.log}"

    def await_answer(self, url: str, stopped: threading.Event) -> None:
        """Wait until the server answers, or until `stopped` is set.

        Raises:
            ServiceError: the server ended, or does not answer within `STARTING_SECONDS`.
        """
        deadline = time.monotonic() + STARTING_SECONDS
        while not stopped.wait(0.3):
            if self.end:
                raise ServiceError(self.end)
            if time.monotonic() > deadline:
                raise ServiceError(f"the server did not answer within {STARTING_SECONDS:.0f} s; see {self.log}")
            try:
                if httpx.get(f"{url}/api/health", timeout=5).is_success:
                    return
            except httpx.TransportError:
                continue

    def restart_if_ended(self, stopped: threading.Event, say: Say) -> None:
        """Restart the process if it has ended: nobody is there at night to do so.

        Raises:
            ServiceError: it ended repeatedly.
        """
        if self.end:
            if self.starts > MAX_STARTS:
                raise ServiceError(f"{self.end}; it was started {self.starts} times")
            say(f"{self.end}; starting another")
            stopped.wait(RESTART_SECONDS)
            self.start()

    def stop(self) -> None:
        """Terminate the process and its children, and kill them if they do not end."""
        for sent, patience in ((signal.SIGTERM, 20.0), (signal.SIGKILL, 10.0)):
            try:
                os.killpg(self.process.pid, sent)
                self.process.wait(patience)
            except ProcessLookupError:
                return
            except subprocess.TimeoutExpired:
                continue


def up(workspace: str, port: int, say: Say, webhook: str | None = None) -> None:
    """Start server, deployments and worker, and keep them running until SIGINT or SIGTERM.

    Args:
        workspace: folder of everything, the server's database and the logs included.
        port: of the server, on loopback; a server that runs there already is used.
        say: prints a line of progress.
        webhook: URL to notify of failed and held nights; None keeps the present one.

    Raises:
        ConfigError: the port is used by another program or by another version of Prefect; the working directory is
            not the project's folder; or the webhook is not a URL.
        WorkspaceError: another nightlabel up runs for this workspace.
        ServiceError: the server or the worker ended repeatedly.
    """
    if not PREFECT_FILE.is_file():
        raise ConfigError(f"there is no {PREFECT_FILE} here: run nightlabel up in the project's folder")
    folder = Workspace(workspace).ensure_writable()
    url = f"http://127.0.0.1:{port}"
    environment = _environment(folder, url)
    with ExitStack() as stack:
        stack.enter_context(_lock(folder))
        folder.withdraw_stop_request()
        stopped = stack.enter_context(_stop_signal())
        services = []
        if not is_serving(url, port):
            say(f"starting a Prefect server at {url} ...")
            options = ["--host", "127.0.0.1", "--port", str(port)]
            server = stack.enter_context(Service("server", folder, environment, *options))
            services.append(server)
            server.await_answer(url, stopped)
        if stopped.is_set():
            return
        orchestrator = stack.enter_context(Orchestrator.at(f"{url}/api"))
        say("setting up deployments, work pool and automations ...")
        orchestrator.set_up(PREFECT_FILE, environment, webhook)
        if services:  # the server has only just started, so no worker runs what is Running
            for name in orchestrator.crash_leftovers():
                say(f"{name} had been killed: marked as crashed, the next run resumes it")
        worker = stack.enter_context(Service("worker", folder, environment, "--pool", POOL))
        services.append(worker)
        say(f"the UI is at {url}; {orchestrator.next_night()}; Ctrl-C finishes the parts in progress and stops")
        while not stopped.wait(1.0):
            for service in services:
                service.restart_if_ended(stopped, say)
        _wind_down(folder, orchestrator, worker, stopped, say, own_server=len(services) > 1)


def _environment(workspace: Workspace, url: str) -> dict[str, str]:
    """Return the environment of server, worker and runs."""
    dropped = ("PREFECT_API_AUTH_STRING", "PREFECT_PROFILE")
    return {key: value for key, value in os.environ.items() if key not in dropped} | {
        "PREFECT_HOME": str((workspace.root / "prefect").absolute()),
        "PREFECT_API_URL": f"{url}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        # With the default, in memory, a killed server would never free its slots.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS": "5",  # between the nights of several days
        "PREFECT_WORKER_QUERY_SECONDS": "5",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS),
        "PREFECT_LOGGING_EXTRA_LOGGERS": "pipeline",
        "PREFECT_CLIENT_MAX_RETRIES": "8",  # some minutes: a run waits for a server that does not answer
        "NIGHTLABEL_WORKSPACE": str(workspace.root.absolute()),
    }


@contextmanager
def _lock(workspace: Workspace) -> Iterator[None]:
    """Hold the workspace's lock, which the system releases when the process ends.

    Raises:
        WorkspaceError: another nightlabel up holds it.
    """
    with workspace.lock_path("up").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise WorkspaceError(
                f"nightlabel up runs already for workspace {workspace.root}; stop that one first"
            ) from error
        yield


@contextmanager
def _stop_signal() -> Iterator[threading.Event]:
    """Yield an event that the first SIGINT or SIGTERM sets; a second one interrupts."""
    event = threading.Event()

    def note(number: int, frame: FrameType | None) -> None:
        if event.is_set():
            signal.default_int_handler(number, frame)
        event.set()

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wind_down(
    workspace: Workspace,
    orchestrator: Orchestrator,
    worker: Service,
    stopped: threading.Event,
    say: Say,
    *,
    own_server: bool,
) -> None:
    """Let the runs finish their parts in progress, then stop the worker.

    A server that ran before may have other workers: then the pool is not paused, and their runs are left alone.
    """
    if own_server:
        orchestrator.pause(True)  # runs that are due now start with the next nightlabel up
    with workspace.request_stop():
        stopped.clear()  # the next signal stops at once
        deadline = time.monotonic() + FINISHING_SECONDS
        announced = None
        while time.monotonic() < deadline and not stopped.wait(1.0):
            names = ", ".join(sorted(run.name for run in orchestrator.in_progress()))
            if not names:
                break
            if names != announced:
                say(f"waiting for the parts in progress of {names}; Ctrl-C again stops at once")
            announced = names
        worker.stop()
    for name in orchestrator.crash_leftovers() if own_server else ():
        say(f"{name} was stopped and marked as crashed; the next run resumes it")
    say("stopped")
