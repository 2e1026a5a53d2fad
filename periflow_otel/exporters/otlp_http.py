"""OTLP over HTTP.

The standard library's client does what is wanted here and nothing more: it follows no redirect, reads no ``.netrc``,
decompresses nothing, and lets one deadline rule the whole request.
"""

import gzip
import io
import selectors
import socket
import ssl
import time
from base64 import b64encode
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Final, NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit

from google.protobuf.message import Message

from periflow_otel.config import OtlpSettings
from periflow_otel.exporters.otlp_answers import (
    HOLD_S,
    MAX_ANSWER_BYTES,
    MAX_RETRY_AFTER_S,
    Answer,
    Kept,
    Refused,
    accepted,
    clean,
    explanation,
)
from periflow_otel.messages import SCOPE_VERSION, to_json_line


class HttpTransport:
    """Sends requests over one connection that is kept open."""

    def __init__(self, settings: OtlpSettings) -> None:
        """Prepare; the first ``send`` connects."""
        self._settings = settings
        self._url = urlsplit(settings.endpoint)
        self._is_json = settings.protocol == "http/json"
        self._headers = _headers(settings)
        self._connection: HTTPConnection | None = None
        self._socket: _DeadlineSocket | None = None

    def encode(self, request: Message) -> bytes:
        """Return the request as protobuf or OTLP JSON."""
        return to_json_line(request).encode() if self._is_json else request.SerializeToString()

    def send(self, body: bytes) -> Answer:
        """Post a request and judge the answer."""
        try:
            reply = self._exchange(gzip.compress(body, 5) if self._settings.compression == "gzip" else body)
        except (OSError, HTTPException, ValueError) as error:
            self.close()
            return self._judge_failure(error)
        return self._judge(reply)

    def close(self) -> None:
        """Close the connection."""
        connection, self._connection, self._socket = self._connection, None, None
        if connection is not None:
            connection.close()

    def _exchange(self, body: bytes) -> "_Reply":
        connection = self._connect(time.monotonic() + self._settings.timeout_s)
        connection.request("POST", self._path(), body, self._headers)
        with connection.getresponse() as response:
            reply = _Reply(
                response.status,
                response.headers.get("content-type", "").lower(),
                response.headers.get("retry-after", ""),
                _read(response),
            )
            if response.will_close or not response.isclosed():
                self.close()
            return reply

    def _connect(self, deadline: float) -> HTTPConnection:
        """Return a connection whose socket gives up at ``deadline``, on the monotonic clock."""
        if self._connection is not None and self._socket is not None and not self._socket.has_news():
            self._socket.deadline = deadline
            return self._connection
        self.close()
        self._connection = connection = self._open()
        connection.connect()
        self._socket = _DeadlineSocket(connection.sock, deadline)
        connection.sock = self._socket
        return connection

    def _open(self) -> HTTPConnection:
        url, timeout_s = self._url, self._settings.timeout_s
        host = url.hostname or ""
        if url.scheme != "https":
            return HTTPConnection(host, url.port, timeout=timeout_s)
        context = _tls_context(self._settings)
        if self._settings.proxy is None:
            return HTTPSConnection(host, url.port, timeout=timeout_s, context=context)
        proxy = urlsplit(self._settings.proxy)
        connection = HTTPSConnection(proxy.hostname or "", proxy.port or 80, timeout=timeout_s, context=context)
        connection.set_tunnel(host, url.port or 443, _proxy_headers(proxy))
        return connection

    def _path(self) -> str:
        path = self._url.path or "/"
        return f"{path}?{self._url.query}" if self._url.query else path

    def _judge(self, reply: "_Reply") -> Answer:
        status, headers = reply.status, self._settings.headers
        if 200 <= status < 300:
            return accepted(reply.body, self._settings.signal, headers, is_json=self._is_json)
        what = f"HTTP {status} from {self._url.netloc}"
        if status == _TOO_LARGE or (status in _BAD_DATA and _is_from_receiver(reply)):
            text = explanation(reply.body, reply.content_type, headers)
            return Refused(f"{what}: {text}" if text else what)
        pause = None if status in _TRANSIENT or status >= 500 else HOLD_S
        return Kept(what, _retry_after(reply.retry_after) or pause)

    def _judge_failure(self, error: Exception) -> Kept:
        is_lasting = isinstance(error, ValueError | ssl.SSLError) and not isinstance(error, ssl.SSLEOFError)
        return Kept(f"{self._describe(error)} ({self._url.netloc})", HOLD_S if is_lasting else None)

    def _describe(self, error: Exception) -> str:
        """Say what went wrong, with nothing that was sent: some errors show the header that they are about."""
        match error:
            case TimeoutError():
                return f"no answer within {self._settings.timeout_s:g} s"
            case ssl.SSLCertVerificationError():
                return f"the certificate was not accepted: {error.verify_message}"
            case ssl.SSLError():
                return f"TLS failed: {error.reason or type(error).__name__}"
            case OSError():
                return clean(error.strerror or str(error), self._settings.headers)
            case _:
                return type(error).__name__


class _Reply(NamedTuple):
    """The parts of an HTTP answer that matter."""

    status: int
    content_type: str
    retry_after: str
    body: bytes


class _DeadlineSocket:
    """What ``http.client`` uses of a socket, with one deadline over all that is done.

    The time-out of a socket alone bounds each read, and a server that sends a byte a second never runs into it.
    """

    def __init__(self, connected: socket.socket, deadline: float) -> None:
        self.deadline = deadline
        self._connected = connected

    def sendall(self, data: bytes) -> None:
        """Send all of ``data``; here a socket's time-out is one for the whole."""
        self._arm()
        self._connected.sendall(data)

    def makefile(self, _mode: str) -> io.BufferedReader:
        """Return a file that reads from the socket."""
        return io.BufferedReader(_DeadlineReader(self._connected, self._arm))

    def has_news(self) -> bool:
        """Say whether something arrived though nothing was asked: the other side has closed."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._connected, selectors.EVENT_READ)
            return bool(selector.select(0))

    def close(self) -> None:
        """Close the socket, once the files made of it are closed too."""
        self._connected.close()

    def _arm(self) -> None:
        remaining_s = self.deadline - time.monotonic()
        if remaining_s <= 0:
            raise TimeoutError
        self._connected.settimeout(remaining_s)


class _DeadlineReader(io.RawIOBase):
    """The reading end of a socket, which is armed before each read."""

    def __init__(self, connected: socket.socket, arm: Callable[[], None]) -> None:
        self._file = connected.makefile("rb", buffering=0)
        self._arm = arm

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview, /) -> int | None:  # type: ignore[override]  # that is what it is given
        self._arm()
        return self._file.readinto(buffer)

    def close(self) -> None:
        self._file.close()
        super().close()


def _headers(settings: OtlpSettings) -> dict[str, str]:
    headers = {"user-agent": f"periflow_otel/{SCOPE_VERSION}", **dict(settings.headers)}
    headers["content-type"] = "application/json" if settings.protocol == "http/json" else "application/x-protobuf"
    if settings.compression == "gzip":
        headers["content-encoding"] = "gzip"
    return headers


def _tls_context(settings: OtlpSettings) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=settings.certificate)
    if settings.client_certificate is not None:
        # With no password at all, OpenSSL would ask for that of an encrypted key on the terminal.
        context.load_cert_chain(settings.client_certificate, settings.client_key, password="")
    return context


def _proxy_headers(proxy: SplitResult) -> dict[str, str]:
    if proxy.username is None:
        return {}
    login = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"proxy-authorization": f"Basic {b64encode(login.encode()).decode()}"}


def _read(response: HTTPResponse) -> bytes:
    """Return the body, or nothing if it is too long or breaks off: then only the status counts."""
    try:
        body = response.read(MAX_ANSWER_BYTES + 1)
    except (OSError, HTTPException, ValueError):
        return b""
    return body if len(body) <= MAX_ANSWER_BYTES else b""


def _is_from_receiver(reply: _Reply) -> bool:
    """Tell the receiver's own "bad request" from that of whatever else may stand at a wrong address.

    A proxy answers with a page for people, and a TLS port that is asked in plain text with no content type at all.
    """
    return reply.content_type != "" and not reply.content_type.startswith("text/html")


def _retry_after(value: str) -> float | None:
    """Return the seconds of a ``Retry-After``, which may also be a date; None if it is missing or cannot be read."""
    try:
        if value.isascii() and value.isdigit():
            seconds = float(value)
        else:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return None
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_S)


_TOO_LARGE: Final = 413
_BAD_DATA: Final = frozenset({400, 422})
# The specification retries 429, 502, 503 and 504 only, and drops data at every other failure. Here it is kept, for a
# failure of the receiver (500) is not one of the data. What is not listed is wrong until somebody mends it.
_TRANSIENT: Final = frozenset({408, 425, 429})
