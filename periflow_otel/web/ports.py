"""Where to listen, and under what address this machine reaches it."""

import errno
import ipaddress
import socket
from typing import Final

PORTS_TRIED: Final = 16
"""How many ports, from the one that was asked for, are tried before serving is given up."""
_BACKLOG: Final = 128


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on a port, or on any free one if it is 0.

    Raises:
        OSError: The port is taken (``EADDRINUSE``), or the host is not one of this machine.
        UnicodeError: The host is no name.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    listener.settimeout(0)
    return listener


def listen_from(host: str, port: int) -> socket.socket:
    """Listen on a port or the first free one of those after it.

    Raises:
        OSError: All are taken (``EADDRINUSE``), or the host is not one of this machine.
        UnicodeError: The host is no name.
    """
    last = min(port + PORTS_TRIED, 65536) - 1 if port else 0
    for candidate in range(port, last):
        try:
            return listen(host, candidate)
        except OSError as error:  # noqa: PERF203  # each port has its own answer
            if error.errno != errno.EADDRINUSE:
                raise
    return listen(host, last)


def reachable_address(listener: socket.socket) -> str:
    """Return address and port to ask from this machine."""
    host, port = listener.getsockname()[:2]
    address = ipaddress.ip_address(host)
    if address.is_unspecified:
        address = ipaddress.ip_address("127.0.0.1" if address.version == 4 else "::1")
    return f"{address}:{port}" if address.version == 4 else f"[{address}]:{port}"
