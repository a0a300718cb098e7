"""Checks that a Prefect server answers, and that this program can talk to it."""

import socket

import httpx
import prefect
from prefect.settings import get_current_settings

from pipeline.errors import ConfigError

ANSWER_SECONDS = 10.0


def configured_url() -> str | None:
    """Return the configured API URL; None if each command starts a temporary server."""
    return get_current_settings().api.url


def configured_password() -> str | None:
    """Return the configured credentials of the API, as user:password."""
    secret = get_current_settings().api.auth_string
    return secret.get_secret_value() if secret else None


def check_configured() -> str | None:
    """Return the configured API URL after checking that it answers.

    Raises:
        ConfigError: no server answers there, it refuses the password, or it has another version.
    """
    url = configured_url()
    if url:
        check_server(url, configured_password())
    return url


def check_server(url: str, password: str | None) -> None:
    """Check that a server of this version answers and accepts the password.

    Args:
        url: of the API, ending in /api.
        password: as user:password.

    Raises:
        ConfigError: it does not; the message says what to do.
    """
    login = httpx.BasicAuth(*password.split(":", 1)) if password and ":" in password else None
    try:
        answer = httpx.get(f"{url}/admin/version", auth=login, timeout=ANSWER_SECONDS)
    except httpx.HTTPError as error:
        raise ConfigError(
            f"no Prefect server answers at {url} ({error}): start it (nightlabel up), or unset PREFECT_API_URL to "
            "run without one"
        ) from error
    if answer.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        refusal = "refuses the password" if password else "asks for a password"
        raise ConfigError(f"the server at {url} {refusal}: set PREFECT_API_AUTH_STRING=user:password")
    try:
        version = answer.raise_for_status().json()
    except (httpx.HTTPError, ValueError) as error:
        raise ConfigError(f"the program at {url} is not a Prefect server: set PREFECT_API_URL to one") from error
    if version != prefect.__version__:
        raise ConfigError(
            f"the server at {url} is Prefect {version} and this is {prefect.__version__}: install the same version on "
            "both, or use another server"
        )


def is_serving(url: str, port: int) -> bool:
    """Return whether a Prefect server of this version answers on a port of this machine; False if the port is free.

    Raises:
        ConfigError: another program uses the port.
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
