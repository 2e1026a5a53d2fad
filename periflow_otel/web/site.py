"""The pages of an agent under one address: a table of paths, and what holds for all of them.

Only GET and HEAD, only for those who mean this place (``hosts.py``), never for a page of another origin to read or run.
"""

import errno
import logging
import socket
from collections.abc import Callable, Collection, Mapping
from http import HTTPStatus
from typing import Final, NamedTuple

from periflow_otel.web.hosts import Hosts
from periflow_otel.web.http import Request, Response, compressed, refusal
from periflow_otel.web.ports import PORTS_TRIED, listen_from, reachable_address
from periflow_otel.web.server import Server

Handler = Callable[[Request], Response]
"""Makes a page. It is called on the server's one thread, so it must be quick; what it raises is a logged 500."""

HEADERS: Final[Mapping[str, str]] = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'self' http://localhost:* http://127.0.0.1:*"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""What every response has, unless it brings another of the name. A notebook on this machine may frame a page."""

logger = logging.getLogger("periflow_otel")


class Route(NamedTuple):
    """Who answers for a path."""

    handler: Handler
    is_public: bool = False
    """Where other machines may ask at all, they may do so under any name."""


class Routes:
    """Answers requests from a table of paths. Safe to add to while it answers."""

    def __init__(self, hosts: Hosts) -> None:
        """Begin with no path."""
        self._hosts = hosts
        self._routes: dict[str, Route] = {}

    def add(self, path: str, handler: Handler, *, is_public: bool = False) -> None:
        """Answer a path, or with ``/*`` at its end everything below it; a later handler replaces an earlier one."""
        self._routes = {**self._routes, path: Route(handler, is_public)}

    def answer(self, request: Request) -> Response:
        """Return what a client gets."""
        response = self._answer(request)
        return compressed(response._replace(headers={**HEADERS, **response.headers}), request)

    def _answer(self, request: Request) -> Response:
        route = self._find(request.path)
        if not self._is_meant(request, route):
            return refusal(HTTPStatus.FORBIDDEN, "This name is not answered; PERIFLOW_ALLOWED_HOSTS can allow it")
        if request.method not in ("GET", "HEAD"):
            return refusal(HTTPStatus.METHOD_NOT_ALLOWED, headers={"Allow": "GET, HEAD"})
        if route is None:
            return refusal(HTTPStatus.NOT_FOUND)
        try:
            return route.handler(request)
        except Exception:
            logger.exception("The page %s could not be made", request.path)
            return refusal(HTTPStatus.INTERNAL_SERVER_ERROR)

    def _find(self, path: str) -> Route | None:
        below = path
        while path not in self._routes and below:
            below = below.rpartition("/")[0]
            path = f"{below}/*"
        return self._routes.get(path)

    def _is_meant(self, request: Request, route: Route | None) -> bool:
        if request.host is None or (route is not None and route.is_public and self._hosts.is_open):
            return True
        return self._hosts.includes(request.host)


class Site:
    """Serves handlers until it is closed; where no port can be had, it says so once and serves nothing."""

    def __init__(self, host: str, port: int, allowed_hosts: Collection[str] = ()) -> None:
        """Begin to serve.

        Args:
            host: Address to listen on; only loopback addresses keep other machines out.
            port: First port to try; 0 for any. If it is taken, one of the next is used.
            allowed_hosts: Names that clients may ask for, besides this host and its addresses.
        """
        self.address = ""
        """Host and port to ask from this machine; empty if nothing is served."""
        self._server: Server | None = None
        listener = _listen(host, port)
        self._routes = Routes(Hosts(listener.getsockname()[0] if listener else "::1", (host, *allowed_hosts)))
        if listener is not None:
            self.address = reachable_address(listener)
            self._server = Server(listener, self._routes.answer)

    def add(self, path: str, handler: Handler, *, is_public: bool = False) -> None:
        """Answer a path, or with ``/*`` at its end everything below it; a later handler replaces an earlier one.

        Args:
            path: As ``/metrics`` or ``/run/*``.
            handler: Makes the page, on the server's thread.
            is_public: Where other machines may ask at all, they may do so under any name.
        """
        self._routes.add(path, handler, is_public=is_public)

    @property
    def is_served(self) -> bool:
        """Whether there is somebody to ask."""
        return self._server is not None

    def url(self, path: str = "/") -> str | None:
        """Return where a page is, as seen from this machine; None if it is not served."""
        return f"http://{self.address}{path}" if self._server else None

    def close(self) -> None:
        """Stop serving; again does nothing."""
        server, self._server = self._server, None
        if server:
            server.close()


def _listen(host: str, port: int) -> socket.socket | None:
    """Listen on the port or one of those after it; log why there is none, or who else may ask."""
    try:
        listener = listen_from(host, port)
    except (OSError, UnicodeError) as error:
        is_taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        reason = f"ports {port} to {min(port + PORTS_TRIED, 65536) - 1} are taken" if is_taken else error
        logger.warning("No page and no metrics are served on %s: %s", host, reason)
        return None
    address, served = listener.getsockname()[:2]
    if Hosts(address).is_open:
        logger.warning("Metrics are served on %s, where other machines may read them", address)
    if port not in (0, served):
        logger.info("Port %d is taken; %d is used instead", port, served)
    return listener
