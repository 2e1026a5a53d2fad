"""A small HTTP server for one page, which clients can neither fill up nor hold up.

It has one thread and at most ``MAX_CONNECTIONS`` connections; a client has ``TIMEOUT_S`` to send its request and as
long to take the answer. When there are too many, the oldest goes: a client that means it has been answered by then.
"""

import asyncio
import contextlib
import functools
import logging
import socket
import threading
from collections.abc import Callable
from http import HTTPStatus
from typing import Final

MAX_CONNECTIONS: Final = 16
MAX_REQUEST_BYTES: Final = 8 << 10
TIMEOUT_S: Final = 5.0

PAGE: Final = "/metrics"
_BACKLOG: Final = 128
_PLAIN: Final = "text/plain; charset=utf-8"

Render = Callable[[str], tuple[str, bytes]]
"""From the ``Accept`` header, or nothing, to the content type and the page."""

logger = logging.getLogger("periflow_otel")


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on a port, or on any free one if it is 0.

    Raises:
        OSError: The port is taken (``EADDRINUSE``), or the host is not one of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    listener.settimeout(0)
    return listener


class ScrapeServer:
    """Serves a page to GET and HEAD at ``/metrics`` until it is closed."""

    def __init__(self, listener: socket.socket, render: Render, timeout_s: float = TIMEOUT_S) -> None:
        """Serve on a listening socket, which is closed in the end; ``render`` is called on the server's thread."""
        self._listener = listener
        self._render = render
        self._timeout_s = timeout_s
        self._clients: dict[asyncio.Task[None], None] = {}
        self._loop = asyncio.new_event_loop()
        self._is_closing = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="periflow-scrape", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread and all connections; a page that is being made is finished first."""
        self._loop.call_soon_threadsafe(self._is_closing.set)
        self._thread.join()

    def _run(self) -> None:
        with contextlib.closing(self._loop), self._listener:
            self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        accepting = self._loop.create_task(self._accept())
        await self._is_closing.wait()
        tasks = [accepting, *self._clients]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self) -> None:
        while True:
            try:
                connection, _ = await self._loop.sock_accept(self._listener)
            except OSError:  # out of descriptors, or the client has gone: neither ends the service
                await asyncio.sleep(0.1)
                continue
            if len(self._clients) >= MAX_CONNECTIONS:
                self._end_oldest()
            self._begin(connection)
            await asyncio.sleep(0)  # or a crowd of new clients would keep those who wait from being answered

    def _end_oldest(self) -> None:
        oldest = next(iter(self._clients))
        del self._clients[oldest]
        oldest.cancel()

    def _begin(self, connection: socket.socket) -> None:
        client = self._loop.create_task(self._answer(connection))
        self._clients[client] = None
        client.add_done_callback(functools.partial(self._end, connection))

    def _end(self, connection: socket.socket, client: asyncio.Task[None]) -> None:
        connection.close()
        self._clients.pop(client, None)

    async def _answer(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            head = await asyncio.wait_for(self._read_head(connection), self._timeout_s)
            await asyncio.wait_for(self._loop.sock_sendall(connection, self._reply(head)), self._timeout_s)
            connection.shutdown(socket.SHUT_WR)

    async def _read_head(self, connection: socket.socket) -> bytes:
        """Return a request up to the empty line, or cut off where it is too long."""
        head = b""
        while b"\r\n\r\n" not in head and len(head) <= MAX_REQUEST_BYTES:
            received = await self._loop.sock_recv(connection, MAX_REQUEST_BYTES + 1 - len(head))
            if not received:
                raise ConnectionError
            head += received
        return head

    def _reply(self, head: bytes) -> bytes:
        if len(head) > MAX_REQUEST_BYTES:
            return _response(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        request, *fields = head.decode("latin-1").splitlines()
        match request.split(" "):
            case ["GET", target, version] if version.startswith("HTTP/1."):
                return self._get(target, fields)
            case ["HEAD", target, version] if version.startswith("HTTP/1."):
                response = self._get(target, fields)
                return response[: response.index(b"\r\n\r\n") + 4]
            case [_, _, version] if version.startswith("HTTP/1."):
                return _response(HTTPStatus.METHOD_NOT_ALLOWED, fields="Allow: GET, HEAD\r\n")
            case _:
                return _response(HTTPStatus.BAD_REQUEST)

    def _get(self, target: str, fields: list[str]) -> bytes:
        path = target.partition("?")[0]
        if path == "/":
            return _response(HTTPStatus.OK, f"Metrics for Prometheus are at {PAGE}\n".encode())
        if path != PAGE:
            return _response(HTTPStatus.NOT_FOUND)
        try:
            content_type, page = self._render(_accepted(fields))
        except Exception:
            logger.exception("The page of metrics could not be made")
            return _response(HTTPStatus.INTERNAL_SERVER_ERROR)
        return _response(HTTPStatus.OK, page, content_type)


def _accepted(fields: list[str]) -> str:
    """Return the value of the ``Accept`` header; one that is repeated is a list in parts."""
    pairs = (field.partition(":") for field in fields)
    return ",".join(value.strip() for name, _, value in pairs if name.lower() == "accept")


def _response(status: HTTPStatus, body: bytes = b"", content_type: str = _PLAIN, fields: str = "") -> bytes:
    body = body or f"{status.phrase}\n".encode()
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
        f"{fields}Connection: close\r\n\r\n"
    )
    return head.encode("latin-1") + body
