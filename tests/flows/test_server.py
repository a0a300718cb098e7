"""A server that is not there, not ours to use, or no server at all is one clear line, before anything is done."""

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import prefect
import pytest
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
from server import free_port

from flows.cli import main

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


Doctor = Callable[..., str]


@pytest.fixture
def doctor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Doctor:
    """Return what the command that looks at everything says of the server."""

    def ask(url: str, password: str | None = None) -> str:
        _nightlabel(url, "doctor", "--workspace", str(tmp_path), password=password)
        (line,) = [line for line in capsys.readouterr().out.splitlines() if url in line]
        return line

    return ask


def _nightlabel(url: str, *words: str, password: str | None = None) -> int:
    """Give a command in this process, told of a server; return its exit status."""
    given = temporary_settings({PREFECT_API_URL: url, PREFECT_API_AUTH_STRING: password})
    with given, pytest.raises(SystemExit) as ended:
        main(list(words))
    return int(ended.value.code or 0)


def test_a_server_that_does_not_answer_stops_a_command_before_it_begins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "tickets.csv"
    source.write_text("text\nthe printer smokes\n", encoding="utf-8")
    url = f"http://127.0.0.1:{free_port()}/api"
    assert _nightlabel(url, "ingest", str(source), "--workspace", str(tmp_path / "workspace")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"no Prefect server answers at {url}" in line
    assert "unset PREFECT_API_URL" in line
    assert not (tmp_path / "workspace").exists()


def test_a_server_that_asks_for_a_password_or_refuses_one_says_how_to_give_it(
    doctor: Doctor, answering: Answering
) -> None:
    url = answering(401, "Unauthorized")
    assert "asks for a password: set PREFECT_API_AUTH_STRING" in doctor(url)
    assert "refuses the password: set PREFECT_API_AUTH_STRING" in doctor(url, "night:wrong")


def test_a_server_of_another_version_is_named_with_both(doctor: Doctor, answering: Answering) -> None:
    url = answering(200, '"2.20.0"')
    assert f"is Prefect 2.20.0 and this is {prefect.__version__}" in doctor(url)


def test_what_is_no_prefect_server_is_told_so(doctor: Doctor, answering: Answering) -> None:
    assert "is not a Prefect server" in doctor(answering(200, "<html>"))
    assert "is not a Prefect server" in doctor(answering(404, "Not found"))
