"""All that nights need on one machine: a Prefect server, the deployments, a worker. Run it with: nightlabel up"""

import fcntl
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType, TracebackType
from typing import Self

import httpx

from flows.server.connection import ANSWER_SECONDS, check_server
from flows.server.orchestrator import POOL, PREFECT_FILE, Orchestrator
from pipeline.errors import ConfigError, WorkspaceError
from pipeline.workspace import Workspace

STARTING_SECONDS = 180.0  # a server takes about twelve; a busy machine many times as long
FINISHING_SECONDS = 120.0  # for the parts that are under way when everything is to stop
HEARTBEAT_SECONDS = 30
RESTART_SECONDS = 2.0
STARTS, LONG_SECONDS = 5, 600.0  # a service that ends so often, each time sooner than that, is not to be helped
Say = Callable[[str], None]


class ServiceError(Exception):
    """The server or the worker ended by itself, again and again."""


class Service:
    """A Prefect process of ours, in a session of its own, so that Ctrl-C reaches it only in order."""

    def __init__(self, name: str, place: Workspace, environment: dict[str, str], *options: str) -> None:
        self.name, self.log = name, place.log_path(name)
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
        """Start the process, again if it has ended."""
        now = time.monotonic()
        self.starts = self.starts + 1 if now - self._started < LONG_SECONDS else 1
        self._started = now
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
        """How it ended, in words; None while it runs."""
        status = self.process.poll()
        return None if status is None else f"the {self.name} ended with status {status}; see {self.log}"

    def stop(self) -> None:
        """End it and all its children; the second request is not a polite one."""
        for sent, patience in ((signal.SIGTERM, 20.0), (signal.SIGKILL, 10.0)):
            try:
                os.killpg(self.process.pid, sent)
                self.process.wait(patience)
            except ProcessLookupError:
                return
            except subprocess.TimeoutExpired:
                continue


def up(workspace: str, port: int, say: Say, webhook: str | None = None) -> None:
    """Start what is not running yet, and keep it running until SIGINT or SIGTERM.

    Args:
        workspace: folder in which everything is kept, the server's database and the logs too.
        port: of the server, on loopback.
        say: told each step in a line.
        webhook: address that is told of failed and held nights; None leaves it as it is.

    Raises:
        ConfigError: the port is taken, by another program or by another version of Prefect; this is not the
            project's folder; or the webhook is no address.
        ServiceError: the server or the worker ended by itself, again and again.
    """
    if not PREFECT_FILE.is_file():
        raise ConfigError(f"there is no {PREFECT_FILE} here: run nightlabel up in the project's folder")
    place = Workspace(workspace).ensure_writable()
    url = f"http://127.0.0.1:{port}"
    environment = _environment(place, url)
    with ExitStack() as stack:
        stack.enter_context(_only_one(place))
        place.withdraw_stop_request()
        stopped = stack.enter_context(_asked_to_stop())
        services = []
        if not _server_there(url, port):
            say(f"starting a Prefect server at {url} ...")
            options = ["--host", "127.0.0.1", "--port", str(port)]
            server = stack.enter_context(Service("server", place, environment, *options))
            services.append(server)
            _await_server(url, server, stopped)
        if stopped.is_set():
            return
        orchestrator = stack.enter_context(Orchestrator.at(f"{url}/api"))
        say("setting up deployments, work pool and automations ...")
        orchestrator.set_up(PREFECT_FILE, environment, webhook)
        if services:  # with the server only just started, what is Running has no worker any more
            for name in orchestrator.crash_leftovers():
                say(f"{name} had been killed: marked as crashed, the next run goes on where it ended")
        worker = stack.enter_context(Service("worker", place, environment, "--pool", POOL))
        say(f"the UI is at {url}; {orchestrator.next_night()}; Ctrl-C stops everything in order")
        _watch([*services, worker], stopped, say)
        _wind_down(place, orchestrator, worker, stopped, say, alone=bool(services))


def _environment(place: Workspace, url: str) -> dict[str, str]:
    kept = {
        key: value for key, value in os.environ.items() if key not in ("PREFECT_API_AUTH_STRING", "PREFECT_PROFILE")
    }
    return kept | {
        "PREFECT_HOME": str((place.root / "prefect").absolute()),
        "PREFECT_API_URL": f"{url}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        # In memory, the default, a server that was killed would leave slots taken for ever.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS": "5",  # between the nights of several days
        "PREFECT_WORKER_QUERY_SECONDS": "5",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS),
        "PREFECT_LOGGING_EXTRA_LOGGERS": "pipeline",
        "PREFECT_CLIENT_MAX_RETRIES": "8",  # some minutes: a run goes on when the server was away
        "NIGHTLABEL_WORKSPACE": str(place.root.absolute()),
    }


@contextmanager
def _only_one(place: Workspace) -> Iterator[None]:
    """Hold the workspace's lock, which goes with the process whatever ends it.

    Raises:
        WorkspaceError: another nightlabel up holds it.
    """
    with place.lock_path("up").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise WorkspaceError(
                f"nightlabel up runs already for workspace {place.root}; stop that one first"
            ) from error
        yield


@contextmanager
def _asked_to_stop() -> Iterator[threading.Event]:
    """Yield what is set at the first SIGINT or SIGTERM; a second one interrupts."""
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


def _server_there(url: str, port: int) -> bool:
    """Return whether a Prefect server of this version answers; False if nothing does.

    Raises:
        ConfigError: something else has the port.
    """
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)):
            return False
    try:
        httpx.get(f"{url}/api/health", timeout=ANSWER_SECONDS).raise_for_status().json()
    except (httpx.HTTPError, ValueError) as error:
        raise ConfigError(f"port {port} is in use by another program; take another with --port") from error
    check_server(f"{url}/api", None)
    return True


def _await_server(url: str, server: Service, stopped: threading.Event) -> None:
    deadline = time.monotonic() + STARTING_SECONDS
    while not stopped.wait(0.3):
        if server.end:
            raise ServiceError(server.end)
        if time.monotonic() > deadline:
            raise ServiceError(f"the server did not answer within {STARTING_SECONDS:.0f} s; see {server.log}")
        try:
            if httpx.get(f"{url}/api/health", timeout=5).is_success:
                return
        except httpx.TransportError:
            continue


def _watch(services: list[Service], stopped: threading.Event, say: Say) -> None:
    """Wait for the request to stop; a service that ends by itself gets a successor, for nobody is there at night.

    Raises:
        ServiceError: a service ends again and again.
    """
    while not stopped.wait(1.0):
        for service in services:
            if not service.end:
                continue
            if service.starts > STARTS:
                raise ServiceError(f"{service.end}; it was started {service.starts} times")
            say(f"{service.end}; starting another")
            stopped.wait(RESTART_SECONDS)
            service.start()


def _wind_down(
    place: Workspace, orchestrator: Orchestrator, worker: Service, stopped: threading.Event, say: Say, *, alone: bool
) -> None:
    """Let what is under way come to a place where it can go on later, then stop the worker.

    A server that was there before may have other workers: then neither the pool nor their runs are ours to stop.
    """
    if alone:
        orchestrator.pause(True)  # what is due now starts when we are back
    with place.request_stop():
        stopped.clear()  # the next signal means: now
        deadline = time.monotonic() + FINISHING_SECONDS
        told = None
        while time.monotonic() < deadline and not stopped.wait(1.0):
            names = ", ".join(sorted(run.name for run in orchestrator.under_way()))
            if not names:
                break
            if names != told:
                say(f"waiting for the parts under way of {names}; Ctrl-C again stops at once")
            told = names
        worker.stop()
    for name in orchestrator.crash_leftovers() if alone else ():
        say(f"{name} was stopped and marked as crashed; the next run goes on where it ended")
    say("stopped")
