"""Whether a Prefect server is there, and one that this program can talk to."""

import httpx
import prefect
from prefect.settings import get_current_settings

from pipeline.errors import ConfigError

ANSWER_SECONDS = 10.0


def configured_url() -> str | None:
    """Return the API's address that runs are recorded at; None where each command starts a server of its own."""
    return get_current_settings().api.url


def configured_password() -> str | None:
    """Return what the API asks for, as user:password."""
    secret = get_current_settings().api.auth_string
    return secret.get_secret_value() if secret else None


def check_configured() -> str | None:
    """Return `configured_url` once it has answered.

    Raises:
        ConfigError: nothing answers there, it refuses the password, or it is of another version.
    """
    url = configured_url()
    if url:
        check_server(url, configured_password())
    return url


def check_server(url: str, password: str | None) -> None:
    """See that a server of this version answers and lets us in.

    Args:
        url: of the API, with /api at its end.
        password: as user:password.

    Raises:
        ConfigError: it does not; says what to do.
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
        given = "refuses the password" if password else "asks for a password"
        raise ConfigError(f"the server at {url} {given}: set PREFECT_API_AUTH_STRING=user:password")
    try:
        version = answer.raise_for_status().json()
    except (httpx.HTTPError, ValueError) as error:
        raise ConfigError(f"what answers at {url} is no Prefect server: set PREFECT_API_URL to one") from error
    if version != prefect.__version__:
        raise ConfigError(
            f"the server at {url} is Prefect {version} and this is {prefect.__version__}: install the same version on "
            "both, or use another server"
        )
