"""The terminal's log of a run: our own lines, and warnings of others; the UI keeps the full log."""

import logging
from pathlib import Path

import prefect.main  # noqa: F401 - importing it sets logging up, which must be done before it is changed here
from prefect.logging.handlers import PrefectConsoleHandler

from flows.server.connection import check_configured
from pipeline.errors import NightlabelError

OURS = (str(Path(__file__).parent), str(Path(__file__).parent.parent / "pipeline"))


class _OwnLines(logging.Filter):
    """Pass lines of this product, and warnings of others; the command line prints a user's error."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], NightlabelError):
            return False
        if record.name.startswith("prefect") and "Finished in state Failed" in record.getMessage():
            return False  # the error itself follows
        return record.levelno >= logging.WARNING or record.pathname.startswith(OURS)


def quiet(*, debug: bool) -> None:
    """Reduce the console to our own lines and warnings; with `debug`, leave it as Prefect made it."""
    if debug:
        return
    for handler in logging.getLogger().handlers:
        if isinstance(handler, PrefectConsoleHandler):
            handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%H:%M:%S"))
            handler.addFilter(_OwnLines())


def temporary_server_note() -> str | None:
    """Return a note that a temporary Prefect server starts, if none is configured.

    Raises:
        ConfigError: the configured server does not answer, or refuses the password.
    """
    if check_configured():
        return None
    return (
        "Starting a temporary Prefect server, which takes some seconds. To avoid this and see runs in the UI: "
        "nightlabel up, and in this shell: export PREFECT_API_URL=http://127.0.0.1:4200/api"
    )
