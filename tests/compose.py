"""A compose file's services as processes of this machine: the same commands, environments, health checks and order.

What differs from containers: all of them listen on 127.0.0.1, each exposed port is a free one, and the paths that are
mounted lie under one folder.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from server import SECONDS, free_port, until

POSTGRES = max(Path("/usr/lib/postgresql").glob("*/bin"), default=None, key=lambda path: int(path.parent.name))
PATH = ":".join(str(path) for path in (Path(sys.executable).parent, POSTGRES, os.defpath, "/usr/sbin") if path)
VARIABLE = re.compile(r"\$(?:\$|\{(\w+)(?::([?-])([^}]*))?\})")


class RefusedError(Exception):
    """A variable that compose insists on has no value."""


def interpolate(value: Any, variables: Mapping[str, str]) -> Any:
    """Put in variables as compose does: ${NAME}, ${NAME:-default}, ${NAME:?message}; $$ is a dollar."""
    if isinstance(value, dict):
        return {key: interpolate(item, variables) for key, item in value.items()}
    if isinstance(value, list):
        return [interpolate(item, variables) for item in value]
    return VARIABLE.sub(lambda found: _replacement(found, variables), value) if isinstance(value, str) else value


def _replacement(found: re.Match[str], variables: Mapping[str, str]) -> str:
    name, kind, rest = found.groups()
    if name is None:
        return "$"
    if kind == "?" and not variables.get(name):
        raise RefusedError(f"{name}: {rest}")
    return variables.get(name) or (rest if kind == "-" else "")


def load(file: Path, variables: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return the services that start, with all values put in.

    Raises:
        RefusedError: a variable that the file insists on has no value.
    """
    services = interpolate(yaml.safe_load(file.read_text(encoding="utf-8"))["services"], variables)
    profiles = set(variables.get("COMPOSE_PROFILES", "").split(","))
    return {
        name: service
        for name, service in services.items()
        if not service.get("profiles") or profiles & set(service["profiles"])
    }


class Stack:
    """The services of a compose file, started as processes."""

    def __init__(self, file: Path, variables: Mapping[str, str], root: Path) -> None:
        self.services = load(file, variables)
        self.root = root
        self._folder = file.parent
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._ports = {
            (name, port): free_port() for name, service in self.services.items() for port in service.get("expose", ())
        }

    def address(self, name: str, port: str) -> str:
        return f"127.0.0.1:{self._ports[name, port]}"

    def path(self, inside: str) -> Path:
        """Return where on this machine a container's path is."""
        return self.root / inside.lstrip("/")

    def up(self) -> None:
        """Start everything, each service when what it depends on is as it has to be."""
        for name in self.services:
            self._start(name)
        for name in self.services:
            self._await(name)

    def run(self, name: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command in a service's place, with its environment, as `docker compose run` would."""
        return subprocess.run(
            words or self._command(name),
            env=self._environment(name) | environment,
            cwd=self.path("nightlabel"),
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )

    def kill(self, name: str) -> None:
        """Kill a service and all that it started, as if its machine went down."""
        process = self._processes[name]
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def log(self, name: str) -> str:
        return (self.path("logs") / f"{name}.log").read_text(encoding="utf-8", errors="replace")

    def down(self) -> None:
        """Stop everything, the last first."""
        for name, process in reversed(self._processes.items()):
            if process.poll() is not None:
                continue  # its number may be that of a stranger by now
            polite = signal.SIGINT if self._is_postgres(name) else signal.SIGTERM  # as their images ask for
            for sent in (polite, signal.SIGKILL):
                try:
                    os.killpg(process.pid, sent)
                    process.wait(60)
                except ProcessLookupError:
                    break
                except subprocess.TimeoutExpired:
                    continue

    def _start(self, name: str) -> None:
        if name in self._processes:
            return
        for needed, how in self.services[name].get("depends_on", {}).items():
            self._start(needed)
            assert how["condition"] == ("service_healthy" if self._lasts(needed) else "service_completed_successfully")
            self._await(needed)
        self._mount(name)
        folder = self.path("nightlabel")
        folder.mkdir(exist_ok=True)
        self.path("logs").mkdir(exist_ok=True)
        user = self._prepare_postgres(name) if self._is_postgres(name) else None
        with (self.path("logs") / f"{name}.log").open("wb") as output:
            self._processes[name] = subprocess.Popen(
                self._command(name),
                env=self._environment(name),
                cwd=folder,
                user=user,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _is_postgres(self, name: str) -> bool:
        return str(self.services[name]["image"]).startswith("postgres:")

    def _lasts(self, name: str) -> bool:
        return bool(self.services[name]["restart"] == "unless-stopped")

    def _await(self, name: str) -> None:
        """Wait until a service is healthy, or has done what it is there for."""

        def poll() -> bool:
            status = self._processes[name].poll()
            if status is None:
                healthy = self._lasts(name) and self.healthy(name)
                time.sleep(0 if healthy else 0.5)  # the checks themselves take time from what starts
                return healthy
            assert status == 0 and not self._lasts(name), f"{name} ended with status {status}:\n{self.log(name)}"
            return True

        until(poll, f"{name} did not become healthy")

    def healthy(self, name: str) -> bool:
        """Run a service's health check once."""
        kind, *words = self.services[name]["healthcheck"]["test"]
        assert kind == "CMD"
        return not self.run(name, *(self._translate(name, word) for word in words)).returncode

    def _command(self, name: str) -> list[str]:
        return [self._translate(name, word) for word in self.services[name].get("command") or self._of_image(name)]

    def _environment(self, name: str) -> dict[str, str]:
        given = self.services[name].get("environment", {})
        home = self.path("home") / name
        home.mkdir(parents=True, exist_ok=True)
        base = {"PATH": PATH, "HOME": str(home), "LANG": "C.UTF-8", "PYTHONUNBUFFERED": "1", "CUDA_VISIBLE_DEVICES": ""}
        return base | {key: self._translate(name, value) for key, value in given.items()}

    def _translate(self, name: str, text: str) -> str:
        """Turn a container's addresses, ports and paths into those of this machine."""
        names = "|".join(sorted(self.services, key=len, reverse=True))
        text = re.sub(rf"(?<![\w-])({names}):(\d+)\b", lambda found: self.address(found.group(1), found.group(2)), text)
        for port in self.services[name].get("expose", ()):
            text = re.sub(rf"(?<![\w.]){port}\b", str(self._ports[name, port]), text)
        for _, target in self._mounts(name):
            text = re.sub(rf"(?<![\w/]){re.escape(target)}\b", str(self.path(target)), text)
        return text.replace("0.0.0.0", "127.0.0.1")

    def _mounts(self, name: str) -> list[tuple[str, str]]:
        volumes = self.services[name].get("volumes", ())
        return [
            (volume["source"], volume["target"]) if isinstance(volume, dict) else tuple(volume.split(":")[:2])
            for volume in volumes
        ]

    def _mount(self, name: str) -> None:
        for source, target in self._mounts(name):
            here = self.path(target)
            here.parent.mkdir(parents=True, exist_ok=True)
            if "/" not in source:
                here.mkdir(exist_ok=True)
            elif (self._folder / source).is_dir():
                here.symlink_to(self._folder / source)
            else:
                text = (self._folder / source).read_text(encoding="utf-8")
                here.write_text(self._translate(name, text), encoding="utf-8")

    def _of_image(self, name: str) -> list[str]:
        """Return the command of the official Postgres image: the only one that is not written in the compose file."""
        assert self._is_postgres(name)
        ((_, data),) = self._mounts(name)
        here, port = self.path(data), self.address(name, "5432").split(":")[1]
        return ["postgres", "-D", str(here), "-c", "listen_addresses=127.0.0.1", "-p", port, "-k", str(here)]

    def _prepare_postgres(self, name: str) -> str | None:
        """Do what the entrypoint of the image does at its first start; return the user that it runs as."""
        user = "postgres" if os.geteuid() == 0 else None  # Postgres refuses to be root
        ((_, data),) = self._mounts(name)
        given, here = self._environment(name), self.path(data)
        if user:
            shutil.chown(here, user)
        secret = here.with_name("password")
        secret.write_text(given["POSTGRES_PASSWORD"], encoding="utf-8")
        initdb = ["initdb", "-D", str(here), "-U", given["POSTGRES_USER"], f"--pwfile={secret}", "--no-sync"]
        database = f"CREATE DATABASE {given['POSTGRES_DB']}"
        for words, said in (
            ([*initdb, *given["POSTGRES_INITDB_ARGS"].split()], ""),
            (["postgres", "--single", "-D", str(here), "postgres"], database),
        ):
            subprocess.run(words, env=given, user=user, input=said, text=True, capture_output=True, check=True)
        return user


@contextmanager
def running(file: Path, variables: Mapping[str, str]) -> Iterator[Stack]:
    """Start what `docker compose up` would start, and stop it at the end."""
    with tempfile.TemporaryDirectory(prefix="nightlabel-") as root:
        Path(root).chmod(0o711)  # Postgres, as another user, has to get into its folder
        stack = Stack(file, variables, Path(root))
        try:
            stack.up()
            yield stack
        finally:
            stack.down()


def missing() -> list[str]:
    """Return the programs that the services need and this machine has not."""
    return [name for name in ("postgres", "redis-server", "haproxy", "wget") if not shutil.which(name, path=PATH)]
