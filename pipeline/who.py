"""Who is at work here, for records of who did what."""

import getpass


def user_name() -> str:
    """Return the name of the user, or "unknown"."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"  # a container may run under a number without a name
