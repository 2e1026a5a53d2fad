"""Folders and files that settings name: where journals are, for one."""

import re
import tempfile
from pathlib import Path
from typing import Final

from periflow_otel import names
from periflow_otel.config.environ import Environ, Variables, bad_value
from periflow_otel.journal.folders import private_inside

_PATHS: Final = re.compile(
    r"HOME|PERIFLOW_(STATE_DIR|OTLP_HEADERS_FILE)|TMPDIR|OTEL_EXPORTER_OTLP_.*(CERTIFICATE|CLIENT_KEY)|SSL_CERT_(FILE|DIR)|(REQUESTS|CURL)_CA_BUNDLE"
    r"|GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"
)
"""Variables that name a file or a folder."""


def find_state_dir(environ: Environ) -> Path:
    """Return the folder of the journals; it need not exist.

    Raises:
        ConfigurationError: ``PERIFLOW_STATE_DIR`` begins with the home of a user who does not exist.
    """
    variables = Variables(environ)
    if given := variables.text(names.STATE_DIR):
        try:
            return Path(given).expanduser().absolute()
        except RuntimeError:
            raise bad_value(names.STATE_DIR, given, "give a folder that does not begin with an unknown user") from None
    if (xdg := variables.text("XDG_STATE_HOME")) and Path(xdg).is_absolute():  # its specification: ignore relative ones
        return Path(xdg) / "periflow"
    try:
        return Path.home().absolute() / ".local" / "state" / "periflow"
    except RuntimeError:  # a user without a home
        return fallback_state_dir()


def fallback_state_dir() -> Path:
    """Return a folder for journals where the one that should hold them cannot."""
    try:
        folder = tempfile.gettempdir()
    except OSError:  # none of them can be written
        folder = "/tmp"  # noqa: S108  # made private before it is used
    return private_inside(Path(folder))


def find_state_dirs(environ: Environ) -> tuple[Path, ...]:
    """Return all folders in which there may be journals of this user.

    Raises:
        ConfigurationError: As :func:`find_state_dir`.
    """
    state_dir = find_state_dir(environ)
    return tuple(dict.fromkeys((state_dir, private_inside(state_dir), fallback_state_dir())))


def with_absolute_paths(environ: Environ) -> dict[str, str]:
    """Return variables in which paths do not depend on the working folder: an agent has another one."""
    return {name: _absolute(value) if _PATHS.fullmatch(name) else value for name, value in environ.items()}


def _absolute(path: str) -> str:
    if not path.strip() or path.strip().startswith("~"):
        return path
    try:
        return str(Path(path.strip()).absolute())
    except OSError:  # the working folder is gone
        return path
