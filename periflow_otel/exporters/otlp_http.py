"""OTLP over HTTP.

The standard library's client does what is wanted here and nothing more: it follows no redirect, reads no ``.netrc``,
and decompresses nothing. It is given a connected socket, so that one deadline rules the whole request.
"""

import gzip
import io
import selectors
import socket
import ssl
import time
from base64 import b64encode
from collections.abc import Callable
from contextlib import suppress
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import Final, NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit

from periflow_otel.endpoints import OtlpSettings
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
from periflow_otel.translate.resource import SCOPE_VERSION


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
        with suppress(BrokenPipeError, ConnectionResetError):  # a server may refuse a body that it has not read
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
        self._socket = _DeadlineSocket(_connect(self._url, self._settings, deadline), deadline)
        self._connection = HTTPConnection(self._url.hostname or "", self._url.port or 80)
        self._connection.sock = self._socket
        return self._connection

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
    own = {"content-type": "application/json" if settings.protocol == "http/json" else "application/x-protobuf"}
    if settings.compression == "gzip":
        own["content-encoding"] = "gzip"
    given = {name: value for name, value in settings.headers if name not in _FRAMING}
    return {"host": urlsplit(settings.endpoint).netloc, "user-agent": f"periflow_otel/{SCOPE_VERSION}", **given, **own}


def _connect(url: SplitResult, settings: OtlpSettings, deadline: float) -> socket.socket:
    """Connect to a receiver, through the proxy if there is one, and agree on TLS if it speaks that."""
    host = url.hostname or ""
    if url.scheme != "https":
        return _dial(host, url.port or 80, deadline)
    context = _tls_context(settings)
    if settings.proxy is None:
        connected = _dial(host, url.port or 443, deadline)
    else:
        connected = _dial_through(urlsplit(settings.proxy), f"{url.netloc}{'' if url.port else ':443'}", deadline)
    connected.settimeout(_remaining_s(deadline))  # in a handshake, it is one for the whole
    return context.wrap_socket(connected, server_hostname=host)


def _dial(host: str, port: int, deadline: float) -> socket.socket:
    """Connect to the first address of a host that answers; each has an equal share of the time that is left."""
    failure = OSError("no address")
    addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for index, (family, kind, protocol, _, address) in enumerate(addresses):
        connected = socket.socket(family, kind, protocol)
        connected.settimeout(_remaining_s(deadline) / (len(addresses) - index))
        try:
            connected.connect(address)
        except OSError as error:
            connected.close()
            failure = error
        else:
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # headers and body are two packets
            return connected
    raise failure


def _dial_through(proxy: SplitResult, target: str, deadline: float) -> socket.socket:
    """Have a proxy connect us to ``target``, a host with its port."""
    connected = _dial(proxy.hostname or "", proxy.port or 80, deadline)
    try:
        status = _ask_proxy(_DeadlineSocket(connected, deadline), target, _proxy_login(proxy))
    except BaseException:
        connected.close()
        raise
    if status != 200:
        connected.close()
        message = f"the proxy answered {status}"
        raise ConnectionError(message)
    return connected


def _ask_proxy(connected: "_DeadlineSocket", target: str, login: list[str]) -> int:
    lines = f"CONNECT {target} HTTP/1.1", f"host: {target}", *login, "", ""
    connected.sendall("\r\n".join(lines).encode())
    # The answer to CONNECT has no body, like that to HEAD.
    with HTTPResponse(connected, method="HEAD") as answer:  # type: ignore[arg-type]  # all that it uses is there
        answer.begin()
        return answer.status


def _remaining_s(deadline: float) -> float:
    return max(deadline - time.monotonic(), 0.001)


def _tls_context(settings: OtlpSettings) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=settings.certificate)
    # As gRPC does, on every Python: from 3.13 on, the default refuses authorities that are older than RFC 5280, and up
    # to 3.12 those that are named without the one above.
    context.verify_flags = ssl.VERIFY_X509_TRUSTED_FIRST | ssl.VERIFY_X509_PARTIAL_CHAIN
    if settings.client_certificate is not None:
        # With no password at all, OpenSSL would ask for that of an encrypted key on the terminal.
        context.load_cert_chain(settings.client_certificate, settings.client_key, password="")
    return context


def _proxy_login(proxy: SplitResult) -> list[str]:
    if proxy.username is None:
        return []
    login = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return [f"proxy-authorization: Basic {b64encode(login.encode()).decode()}"]


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


_FRAMING: Final = frozenset({"content-encoding", "content-length", "transfer-encoding"})
_TOO_LARGE: Final = 413
_BAD_DATA: Final = frozenset({400, 422})
# The specification retries 429, 502, 503 and 504 only, and drops data at every other failure. Here it is kept, for a
# failure of the receiver (500) is not one of the data. What is not listed is wrong until somebody mends it.
_TRANSIENT: Final = frozenset({408, 425, 429})
