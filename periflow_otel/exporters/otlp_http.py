"""OTLP over HTTP.

The standard library's client does what is wanted here and nothing more: it follows no redirect and reads no ``.netrc``.
It is given a connected socket, so that one deadline rules the whole request.
"""

import gzip
import io
import json
import selectors
import socket
import ssl
import time
import zlib
from base64 import b64encode
from collections.abc import Callable
from contextlib import suppress
from http.client import BadStatusLine, HTTPConnection, HTTPException, HTTPResponse, RemoteDisconnected, parse_headers
from typing import Final, NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit

from periflow_otel.config.endpoints import OtlpSettings
from periflow_otel.config.headers import Headers
from periflow_otel.errors import ConfigurationError
from periflow_otel.exporters import Outcome, Verdict
from periflow_otel.exporters.otlp_answers import (
    HOLD_S,
    MAX_ANSWER_BYTES,
    NO_HTTP,
    accepted,
    clean,
    explanation,
    judge_status,
    pause_s,
    with_remedy,
)
from periflow_otel.exporters.tls import tls_context
from periflow_otel.names import VERSION


class HttpTransport:
    """Sends requests over one connection that is kept open."""

    def __init__(self, settings: OtlpSettings) -> None:
        """Prepare; the first ``send`` connects."""
        self._settings = settings
        self._url = urlsplit(settings.endpoint)
        self._is_json = settings.protocol == "http/json"
        self._headers = settings.header_source()
        self._secrets = Headers()
        self._own_headers = _own_headers(settings)
        self._connection: HTTPConnection | None = None
        self._socket: _DeadlineSocket | None = None

    def send(self, body: bytes, count: int) -> Outcome:
        """Post a request and judge the answer."""
        failed = Verdict.LATER  # nobody is there; once a request is out, it may be the request
        try:
            headers = self._headers_now()
            connection = self._connect(time.monotonic() + self._settings.timeout_s)
            failed = Verdict.FAILED
            sent = gzip.compress(body, 5) if self._settings.compression == "gzip" else body
            reply = self._exchange(connection, headers, sent)
        except (OSError, HTTPException, ValueError, ConfigurationError) as error:
            self.close()
            return self._judge_failure(error, failed)
        return self._judge(reply, count)

    def close(self) -> None:
        """Close the connection."""
        connection, self._connection, self._socket = self._connection, None, None
        if connection is not None:
            connection.close()

    def _headers_now(self) -> dict[str, str]:
        headers = self._headers.current()
        self._secrets = self._settings.secrets(headers)
        given = {name: value for name, value in headers if name not in _FRAMING}
        return {**_named(self._url), **given, **self._own_headers}

    def _exchange(self, connection: HTTPConnection, headers: dict[str, str], body: bytes) -> "_Reply":
        with suppress(BrokenPipeError, ConnectionResetError):  # a server may refuse a body that it has not read
            connection.request("POST", self._path(), body, headers)
        with connection.getresponse() as response:
            reply = _Reply(
                response.status,
                response.headers.get("content-type", "").lower(),
                response.headers.get("retry-after", ""),
                response.headers.get("location", ""),
                *_read(response),
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
        self._connection.response_class = _FinalResponse
        self._connection.sock = self._socket
        return self._connection

    def _path(self) -> str:
        path = self._url.path or "/"
        return f"{path}?{self._url.query}" if self._url.query else path

    def _judge(self, reply: "_Reply", count: int) -> Outcome:
        headers = self._secrets
        if 200 <= reply.status < 300:
            if _is_from_receiver(reply, self._own_headers["content-type"]):
                return accepted(reply.body, count, self._settings.signal, headers, is_json=_is_json(reply.content_type))
            return self._judge_stranger(reply)
        said = explanation(reply.body, reply.content_type, headers)
        if 300 <= reply.status < 400 and reply.location:
            said = f"it leads to {clean(_without_query(reply.location), headers)}"
        return judge_status(reply.status, self._url.netloc, said, pause_s(reply.retry_after))

    def _judge_stranger(self, reply: "_Reply") -> Outcome:
        """Say who answered with a success that no receiver of OTLP gives: nothing is delivered there."""
        kind = clean(reply.content_type, self._secrets) or "no content type"
        cause = (
            f"{self._url.netloc} is no OTLP receiver: it answers HTTP {reply.status} with {kind}; "
            "set OTEL_EXPORTER_OTLP_ENDPOINT to one"
        )
        said = explanation(reply.body, reply.content_type, self._secrets)
        return Outcome(Verdict.WRONG, cause, said, HOLD_S)

    def _judge_failure(self, error: Exception, verdict: Verdict) -> Outcome:
        is_lasting = isinstance(error, _LASTING) and not isinstance(error, ssl.SSLEOFError | RemoteDisconnected)
        cause = f"{self._describe(error)} ({self._url.netloc})"
        return Outcome(Verdict.WRONG, cause, "", HOLD_S) if is_lasting else Outcome(verdict, cause)

    def _describe(self, error: Exception) -> str:
        """Say what went wrong, with nothing that was sent: some errors show the header that they are about."""
        match error:
            case TimeoutError():
                return f"no answer within {self._settings.timeout_s:g} s"
            case ssl.SSLCertVerificationError():
                return f"the certificate was not accepted: {error.verify_message}"
            case ssl.SSLError():
                reason = error.reason or type(error).__name__
                return with_remedy(f"TLS failed: {reason}", reason)
            case ConfigurationError():
                return str(error)
            case OSError():
                return clean(error.strerror or str(error), self._secrets)
            case _:
                return NO_HTTP if isinstance(error, BadStatusLine) else type(error).__name__


class _Reply(NamedTuple):
    """The parts of an HTTP answer that matter."""

    status: int
    content_type: str
    retry_after: str
    location: str
    body: bytes
    """Empty if it is too long or breaks off: then only the status counts."""
    is_empty: bool


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
        return _WholeLines(_DeadlineReader(self._connected, self._arm))

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


class _WholeLines(io.BufferedReader):
    """Tells headers that break off from those that have ended: to the standard library both are all there are."""

    _has_begun = False

    def readline(self, limit: int | None = -1, /) -> bytes:
        line = super().readline(limit)
        is_whole = line.endswith(b"\n") or len(line) == limit
        if not is_whole and (self._has_begun or b"HTTP/".startswith(line[:5])):
            message = "the connection was closed before the end of the answer"
            raise RemoteDisconnected(message)
        self._has_begun = True
        return line


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


def _named(url: SplitResult) -> dict[str, str]:
    """Return what says whom we ask and who we are, which the user's headers may say otherwise."""
    return {"host": url.netloc, "user-agent": f"periflow_otel/{VERSION}"}


def _own_headers(settings: OtlpSettings) -> dict[str, str]:
    """Return what says how a body is written, which nobody else may."""
    own = {"content-type": "application/json" if settings.protocol == "http/json" else "application/x-protobuf"}
    if settings.compression == "gzip":
        own["content-encoding"] = "gzip"
    return own


def _connect(url: SplitResult, settings: OtlpSettings, deadline: float) -> socket.socket:
    """Connect to a receiver, through the proxy if there is one, and agree on TLS if it speaks that."""
    host = url.hostname or ""
    if url.scheme != "https":
        return _dial(host, url.port or 80, deadline)
    context = tls_context(settings)
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


def _proxy_login(proxy: SplitResult) -> list[str]:
    if proxy.username is None:
        return []
    login = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return [f"proxy-authorization: Basic {b64encode(login.encode()).decode()}"]


class _FinalResponse(HTTPResponse):
    """Reads on after informational answers (1xx): the standard library does so after the first kind alone."""

    def _read_status(self) -> tuple[str, int, str]:
        version, status, reason = super()._read_status()  # type: ignore[misc]  # what its ``begin`` calls, since ever
        while 100 <= status < 200:
            parse_headers(self.fp)
            version, status, reason = super()._read_status()  # type: ignore[misc]  # as above
        return version, status, reason


def _read(response: HTTPResponse) -> tuple[bytes, bool]:
    """Return the body, and whether there is none."""
    try:
        body = response.read(MAX_ANSWER_BYTES + 1)
    except (OSError, HTTPException, ValueError):
        return b"", False
    plain = _plain(body, response.headers.get("content-encoding", "").strip().lower())
    return (plain if len(plain) <= MAX_ANSWER_BYTES else b""), not body


def _plain(body: bytes, encoding: str) -> bytes:
    """Return a body as it was before a proxy compressed it, unasked; nothing if it cannot be told how."""
    if encoding in ("", "identity"):
        return body
    try:
        return zlib.decompressobj(_GZIP_OR_ZLIB).decompress(body, MAX_ANSWER_BYTES + 1)
    except zlib.error:
        return b""


def _is_from_receiver(reply: _Reply, content_type: str) -> bool:
    """Tell the success of a receiver from that of whatever else may stand at a wrong address, such as a web page.

    A receiver answers in the type of the request, or with nothing; protobuf has many names. JSON is that of a receiver
    if it says what such an answer says, or nothing, whatever was asked in: any web service speaks it.
    """
    if reply.is_empty or "protobuf" in reply.content_type:
        return True
    return _is_json(reply.content_type) and _is_export_response(reply.body, if_unreadable=_is_json(content_type))


def _is_json(content_type: str) -> bool:
    return content_type.startswith("application/json")


def _is_export_response(body: bytes, *, if_unreadable: bool) -> bool:
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return if_unreadable
    return isinstance(answer, dict) and (not answer or not answer.keys().isdisjoint(_PARTIAL_SUCCESS))


def _without_query(url: str) -> str:
    """Return an address without what may be a secret."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


_GZIP_OR_ZLIB: Final = 47
"""Either, with the largest window, as ``zlib`` has it."""
_PARTIAL_SUCCESS: Final = ("partialSuccess", "partial_success")
_FRAMING: Final = frozenset({"content-encoding", "content-length", "transfer-encoding"})
_LASTING: Final = (ValueError, ssl.SSLError, BadStatusLine, ConfigurationError)
"""What does not pass by itself."""
