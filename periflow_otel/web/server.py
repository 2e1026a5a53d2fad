"""A small HTTP server, which clients can neither fill up nor hold up.

It has one thread and at most ``MAX_CONNECTIONS`` connections; a client has ``REQUEST_TIMEOUT_S`` to send its request
and ``RESPONSE_TIMEOUT_S`` to take the answer. When there are too many, the oldest goes: a client that means it has been
answered by then.
"""

import asyncio
import contextlib
import functools
import socket
import threading
from collections.abc import Callable
from http import HTTPStatus
from typing import Final

from periflow_otel.web.http import Request, Response, encode_response, parse_request, refusal

MAX_CONNECTIONS: Final = 16
MAX_REQUEST_BYTES: Final = 8 << 10
REQUEST_TIMEOUT_S: Final = 5.0
RESPONSE_TIMEOUT_S: Final = 30.0
"""Long enough for a page of 2 MB through a tunnel of 1 Mbit/s."""
CLOSING_TIMEOUT_S: Final = 0.5
"""How long answers under way are waited for in the end."""

Answer = Callable[[Request], Response]


class Server:
    """Answers requests until it is closed."""

    def __init__(self, listener: socket.socket, answer: Answer, timeout_s: float = REQUEST_TIMEOUT_S) -> None:
        """Serve on a listening socket, which is closed in the end; ``answer`` is called on the server's thread."""
        self._listener = listener
        self._reply_to = answer
        self._timeout_s = timeout_s
        self._clients: dict[asyncio.Task[None], None] = {}
        self._loop = asyncio.new_event_loop()
        self._is_closing = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="periflow-web", daemon=True)
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
        accepting.cancel()
        if self._clients:  # an answer that was given is to arrive
            await asyncio.wait(self._clients, timeout=CLOSING_TIMEOUT_S)
        for client in list(self._clients):
            client.cancel()
        await asyncio.gather(accepting, *self._clients, return_exceptions=True)

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
            await asyncio.wait_for(self._loop.sock_sendall(connection, self._reply(head)), RESPONSE_TIMEOUT_S)
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
            return encode_response(refusal(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE))
        request = parse_request(head)
        if request is None:
            return encode_response(refusal(HTTPStatus.BAD_REQUEST))
        return encode_response(self._reply_to(request), has_body=request.method != "HEAD")
