"""The headers of OTLP requests: from a variable, fixed, or from a file, which somebody may replace at any time."""

import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from periflow_otel.errors import ConfigurationError

MAX_FILE_BYTES: Final = 64 << 10
"""Servers take 8 KiB of headers or so."""
OTLP_VARIABLES: Final = "OTEL_EXPORTER_OTLP_*"
"""What to do without where one of these cannot be used: better nothing is sent than to the wrong place."""

_log = logging.getLogger("periflow_otel")


class Headers(tuple[tuple[str, str], ...]):
    """Header names and values. Never shown: a value is often a token."""

    __slots__ = ()

    def __repr__(self) -> str:
        """Show the names only."""
        return f"<headers {', '.join(name for name, _ in self) or 'none'}>"

    __str__ = __repr__


def parse_headers(name: str, text: str, *, is_grpc: bool) -> Headers:
    """Read ``key=value`` pairs between commas, percent-decoded, as the specification has them.

    Raises:
        ConfigurationError: One cannot be sent. It names the variable, and never shows a value.
    """
    pairs = (_pair(name, entry) for entry in text.split(",") if entry.strip())
    return _checked(name, ((unquote(key), unquote(value)) for key, value in pairs), is_grpc=is_grpc)


def read_headers_file(name: str, path: str, *, is_grpc: bool) -> Headers:
    """Read ``key=value`` lines as they are: what stands after the first ``=`` is sent.

    Raises:
        ConfigurationError: One cannot be sent, or the file is none. It names the variable, and never shows a value.
        OSError: The file cannot be read.
    """
    with Path(path).open("rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    try:
        lines = data.decode().splitlines()
    except UnicodeDecodeError:
        lines = [""]
    if len(data) > MAX_FILE_BYTES or not any(map(str.strip, lines)):
        message = f"the file of {name} holds no key=value lines; write one for each header, or unset it"
        raise ConfigurationError(message, OTLP_VARIABLES)
    return _checked(name, (_pair(name, line) for line in lines if line.strip()), is_grpc=is_grpc)


class HeaderSource:
    """The headers to send now."""

    def __init__(self, fixed: Headers, variable: str, path: str | None, *, is_grpc: bool) -> None:
        """Prepare; the file is read when headers are asked for.

        Args:
            fixed: Those that never change; one of the file takes the place of one of the same name.
            variable: What names the file.
            path: The file; None for none.
            is_grpc: Headers must be such that gRPC takes them.
        """
        self._fixed = fixed
        self._variable = variable
        self._path = path
        self._is_grpc = is_grpc
        self._current: Headers | None = None if path else fixed
        self._state: tuple[int, ...] | None = None

    def current(self) -> Headers:
        """Return the headers; while the file is away or half written, those that it had before.

        Raises:
            ConfigurationError: It has held nothing yet that can be sent.
        """
        try:
            self._look()
        except (OSError, ConfigurationError) as error:
            reason = error if isinstance(error, ConfigurationError) else f"{self._variable}: {error.strerror}"
            if self._current is None:
                raise ConfigurationError(str(reason), OTLP_VARIABLES) from None
            _log.warning("%s; what the file held before is sent", reason)
        return self._current or self._fixed

    def _look(self) -> None:
        """Read the file if it is not the one that was read last."""
        if self._path is None:
            return
        found = Path(self._path).stat()
        state = found.st_mtime_ns, found.st_size, found.st_ino, found.st_dev
        if state != self._state:
            own = read_headers_file(self._variable, self._path, is_grpc=self._is_grpc)
            self._current = Headers((dict(self._fixed) | dict(own)).items())
            self._state = state


def _pair(name: str, entry: str) -> tuple[str, str]:
    key, separator, value = entry.partition("=")
    if not separator:
        raise _not_a_pair(name)
    return key, value


def _checked(name: str, pairs: Iterable[tuple[str, str]], *, is_grpc: bool) -> Headers:
    """Return headers that can be sent, each name once: the last value of it counts."""
    checked = (_header(name, key.strip().lower(), value.strip(), is_grpc=is_grpc) for key, value in pairs)
    return Headers(dict(checked).items())


def _header(name: str, key: str, value: str, *, is_grpc: bool) -> tuple[str, str]:
    """Check a header; no error shows the value, which may be a token."""
    if not _NAME.fullmatch(key):
        raise _not_a_pair(name)
    if not _VALUE.fullmatch(value):
        message = (
            f"the value of the header {key!r} in {name} has a line break or a character that headers may not have"
            " (not shown: it may be secret); fix or unset it"
        )
        raise ConfigurationError(message, OTLP_VARIABLES)
    if is_grpc and not (_GRPC_NAME.fullmatch(key) and _GRPC_VALUE.fullmatch(value)):
        message = (
            f"gRPC does not take the header {key!r} in {name}: names are letters, digits and _.- and do not end in"
            " -bin, values are ASCII; fix it, or set OTEL_EXPORTER_OTLP_PROTOCOL to http/protobuf"
        )
        raise ConfigurationError(message, OTLP_VARIABLES)
    return key, value


def _not_a_pair(name: str) -> ConfigurationError:
    message = f"{name} has an entry that is not key=value (not shown: it may be secret); fix or unset it"
    return ConfigurationError(message, OTLP_VARIABLES)


_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+")
_VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_GRPC_NAME: Final = re.compile(r"[0-9a-z_.-]+(?<!-bin)")
_GRPC_VALUE: Final = re.compile(r"[ -~]*")
