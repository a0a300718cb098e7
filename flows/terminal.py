"""What a run shows on the terminal: our own lines and warnings; the run's log in the UI keeps the rest."""

import logging
from pathlib import Path

import prefect.main  # noqa: F401 - importing it sets logging up, which must be done before it is changed here
from prefect.logging.handlers import PrefectConsoleHandler

from flows.server.connection import check_configured
from pipeline.errors import NightlabelError

OURS = (str(Path(__file__).parent), str(Path(__file__).parent.parent / "pipeline"))


class _OwnLines(logging.Filter):
    """Passes lines of this product, and warnings of others; a user's error is told once, by the command line."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], NightlabelError):
            return False
        if record.name.startswith("prefect") and "Finished in state Failed" in record.getMessage():
            return False  # the error itself follows
        return record.levelno >= logging.WARNING or record.pathname.startswith(OURS)


def quiet(*, debug: bool) -> None:
    """Reduce the console to what a person wants to read while waiting; `debug` leaves it as Prefect made it."""
    if debug:
        return
    for handler in logging.getLogger().handlers:
        if isinstance(handler, PrefectConsoleHandler):
            handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%H:%M:%S"))
            handler.addFilter(_OwnLines())


def temporary_server_note() -> str | None:
    """Return what to say where no Prefect server is configured: a temporary one takes its time to start.

    Raises:
        ConfigError: one is configured, and it does not answer, or does not let us in.
    """
    if check_configured():
        return None
    return (
        "Starting a temporary Prefect server, which takes some seconds. To skip this and see runs in the UI: "
        "nightlabel up, and in this shell: export PREFECT_API_URL=http://127.0.0.1:4200/api"
    )
