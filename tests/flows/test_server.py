"""A server that is not there, not ours to use, or no server at all is one clear line, before anything is done."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import prefect
import pytest
from server import free_port

Answering = Callable[[int, str], str]


@pytest.fixture
def answering() -> Iterator[Answering]:
    """Start programs that answer everything with a status and a text; returns their API's address."""
    servers: list[ThreadingHTTPServer] = []

    def start(status: int, text: str) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: Any) -> None:
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_address[1]}/api"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def _doctor(tmp_path: Path, url: str, password: str | None = None) -> str:
    """Return what the command that looks at everything says of the server."""
    ended = _nightlabel(url, "doctor", "--workspace", str(tmp_path), password=password)
    (line,) = [line for line in ended.stdout.splitlines() if url in line]
    return line


def _nightlabel(url: str, *words: str, password: str | None = None) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT")}
    login = {"PREFECT_API_AUTH_STRING": password} if password else {}
    return subprocess.run(
        [sys.executable, "-m", "flows.cli", *words],
        env=kept | {"PREFECT_API_URL": url} | login,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_server_that_does_not_answer_stops_a_command_before_it_begins(tmp_path: Path) -> None:
    source = tmp_path / "tickets.csv"
    source.write_text("text\nthe printer smokes\n", encoding="utf-8")
    url = f"http://127.0.0.1:{free_port()}/api"
    ended = _nightlabel(url, "ingest", str(source), "--workspace", str(tmp_path / "workspace"))
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert f"no Prefect server answers at {url}" in line
    assert "unset PREFECT_API_URL" in line
    assert not (tmp_path / "workspace").exists()


def test_a_server_that_asks_for_a_password_or_refuses_one_says_how_to_give_it(
    tmp_path: Path, answering: Answering
) -> None:
    url = answering(401, "Unauthorized")
    assert "asks for a password: set PREFECT_API_AUTH_STRING" in _doctor(tmp_path, url)
    assert "refuses the password: set PREFECT_API_AUTH_STRING" in _doctor(tmp_path, url, "night:wrong")


def test_a_server_of_another_version_is_named_with_both(tmp_path: Path, answering: Answering) -> None:
    url = answering(200, '"2.20.0"')
    assert f"is Prefect 2.20.0 and this is {prefect.__version__}" in _doctor(tmp_path, url)


def test_what_is_no_prefect_server_is_told_so(tmp_path: Path, answering: Answering) -> None:
    assert "is no Prefect server" in _doctor(tmp_path, answering(200, "<html>"))
    assert "is no Prefect server" in _doctor(tmp_path, answering(404, "Not found"))
