"""OTLP receivers that misbehave on demand, over HTTP and gRPC, and know exactly what they were sent.

What a receiver does is its ``behaviour``, which may be changed at any time; those of HTTP are functions of this module.
"""

import gzip
import json
import math
import selectors
import socket
import ssl
import struct
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from random import Random
from typing import Any, NamedTuple, NoReturn

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToJson, ParseDict
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as logs
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as traces
from programs import ReceivedLog, ReceivedPoint, ReceivedSpan, read_logs, read_points, read_spans
from typing_extensions import Self

Content = traces.ExportTraceServiceRequest | metrics.ExportMetricsServiceRequest | logs.ExportLogsServiceRequest
REQUESTS: dict[str, type[Content]] = {
    "traces": traces.ExportTraceServiceRequest,
    "metrics": metrics.ExportMetricsServiceRequest,
    "logs": logs.ExportLogsServiceRequest,
}


class Received(NamedTuple):
    """One request."""

    time_s: float
    """On the monotonic clock."""
    path: str
    headers: Mapping[str, str]
    """Names in lower case."""
    size_bytes: int
    """As it came, perhaps compressed."""
    content: Content

    @property
    def signal(self) -> str:
        """What it holds."""
        return next(signal for signal, request in REQUESTS.items() if isinstance(self.content, request))

    def spans(self) -> list[ReceivedSpan]:
        """Return the spans in it."""
        return list(read_spans(self.content)) if isinstance(self.content, traces.ExportTraceServiceRequest) else []

    def points(self) -> list[ReceivedPoint]:
        """Return the data points in it."""
        return list(read_points(self.content)) if isinstance(self.content, metrics.ExportMetricsServiceRequest) else []

    def logs(self) -> list[ReceivedLog]:
        """Return the log records in it."""
        return list(read_logs(self.content)) if isinstance(self.content, logs.ExportLogsServiceRequest) else []

    def items(self) -> list[ReceivedSpan | ReceivedPoint | ReceivedLog]:
        """Return all that is in it."""
        return [*self.spans(), *self.points(), *self.logs()]

    def names(self) -> list[str]:
        """Return the names of all that is in it; a log record goes by what it says."""
        return [*(each.name for each in (*self.spans(), *self.points())), *(each.body for each in self.logs())]


class _Receiver:
    """What a receiver was sent, and what of it it took."""

    def __init__(self) -> None:
        self.requests: list[Received] = []
        self.accepted: list[Received] = []
        self.closing = threading.Event()

    def __enter__(self) -> Self:
        """Return the listening receiver."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Cut all connections and free the port."""
        self.closing.set()

    def spans(self) -> list[ReceivedSpan]:
        """Return all spans that were taken, repetitions too."""
        return [span for request in list(self.accepted) for span in request.spans()]

    def points(self, name: str = "") -> list[ReceivedPoint]:
        """Return all points that were taken, or those of one metric, repetitions too."""
        points = [point for request in list(self.accepted) for point in request.points()]
        return [point for point in points if name in ("", point.name)]

    def logs(self) -> list[ReceivedLog]:
        """Return all log records that were taken, repetitions too."""
        return [record for request in list(self.accepted) for record in request.logs()]

    def span_ids(self) -> set[int]:
        """Return the different ids of the spans that were taken."""
        return {span.span_id for span in self.spans()}


def from_json(body: bytes, request: Message) -> Message:
    """Read OTLP JSON: protobuf's JSON, but for ids, which are hexadecimal."""
    return ParseDict(json.loads(body, object_hook=_base64_ids), request)


def _base64_ids(fields: dict[str, Any]) -> dict[str, Any]:
    ids = fields.keys() & {"traceId", "spanId", "parentSpanId"}
    return {**fields, **{name: b64encode(bytes.fromhex(fields[name])).decode() for name in ids}}


# HTTP

Behaviour = Callable[["Exchange"], None]


class FaultyReceiver(_Receiver):
    """An OTLP receiver over HTTP."""

    def __init__(
        self,
        behaviour: Behaviour | None = None,
        *,
        port: int = 0,
        tls: ssl.SSLContext | None = None,
        max_body_bytes: float = math.inf,
        read_interval_s: float = 0,
    ) -> None:
        """Listen on a loopback port; take everything unless ``behaviour`` says otherwise.

        A body over ``max_body_bytes`` is answered at once with 413, and the connection is closed.
        With a ``read_interval_s``, a body is read 16 KiB at a time, with this pause after each.
        """
        super().__init__()
        self.behaviour = behaviour or ok
        self.max_body_bytes = max_body_bytes
        self.read_interval_s = read_interval_s
        self._server = _Server(("127.0.0.1", port), type("_Exchange", (Exchange,), {"receiver": self}))
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.port: int = self._server.server_address[1]
        self.endpoint = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    @property
    def connections(self) -> int:
        """Number of connections that were made, from the start."""
        return self._server.connections

    def cut(self) -> None:
        """Cut all connections and go on."""
        self._server.cut()

    def close(self) -> None:
        """Cut all connections and free the port."""
        super().close()
        self._server.shutdown()
        self._thread.join()
        self._server.cut()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # so that closing waits for them

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.connections = 0
        self._open: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections += 1
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, *_: object) -> None:
        """Clients that go away are what these tests are about."""

    def cut(self) -> None:
        for each in list(self._open):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


class Exchange(BaseHTTPRequestHandler):
    """One request, and the means to answer it."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two packets
    receiver: FaultyReceiver
    received: Received

    def handle(self) -> None:
        """Read nothing at all where that is the behaviour."""
        if self.receiver.behaviour is blackhole:
            self.receiver.closing.wait(60)
        else:
            super().handle()

    def do_POST(self) -> None:
        """Note the request and behave."""
        length = int(self.headers["content-length"])
        if length > self.receiver.max_body_bytes:
            status(413, {"connection": "close"})(self)
            self.connection.shutdown(socket.SHUT_WR)
            self.receiver.closing.wait(1)  # as servers in Go do, so that the answer comes before the reset
            return
        body = self._read_slowly(length) if self.receiver.read_interval_s else self.rfile.read(length)
        headers = {name.lower(): value for name, value in self.headers.items()}
        plain = gzip.decompress(body) if headers.get("content-encoding") == "gzip" else body
        request = next((each for signal, each in REQUESTS.items() if signal in self.path), REQUESTS["metrics"])
        content = from_json(plain, request()) if self.is_json else request.FromString(plain)
        self.received = Received(time.monotonic(), self.path, headers, len(body), content)
        self.receiver.requests.append(self.received)
        self.receiver.behaviour(self)

    def do_CONNECT(self) -> None:
        """Note the request, which is to a proxy, and behave."""
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.received = Received(time.monotonic(), self.path, headers, 0, traces.ExportTraceServiceRequest())
        self.receiver.requests.append(self.received)
        self.receiver.behaviour(self)

    def _read_slowly(self, length: int) -> bytes:
        body = b""
        while len(body) < length and not self.receiver.closing.wait(self.receiver.read_interval_s):
            body += self.rfile.read(min(1 << 14, length - len(body)))
        return body

    @property
    def is_json(self) -> bool:
        """Say whether the request is OTLP JSON."""
        return str(self.headers["content-type"]) == "application/json"

    def accept(self) -> None:
        """Take what was sent."""
        self.receiver.accepted.append(self.received)

    def reply(self, status: int, body: bytes | Message = b"", headers: Mapping[str, str] | None = None) -> None:
        """Answer; a message goes in the encoding of the request."""
        headers = dict(headers or {})
        if isinstance(body, Message):
            headers["content-type"] = str(self.headers["content-type"])
            body = MessageToJson(body).encode() if self.is_json else body.SerializeToString()
        self.send_response(status)
        for name, value in {"content-length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def ok(exchange: Exchange) -> None:
    """Take everything."""
    exchange.accept()
    exchange.reply(200, _response(exchange.received.content))


def status(code: int, headers: Mapping[str, str] | None = None, message: str = "") -> Behaviour:
    """Take nothing and answer with a status, as OTLP says."""
    return lambda exchange: exchange.reply(code, Status(message=message), headers)


def page(code: int, content_type: str | None, text: str = "") -> Behaviour:
    """Take nothing and answer as something that does not speak OTLP."""
    return lambda exchange: exchange.reply(code, text.encode(), {"content-type": content_type} if content_type else {})


def refuse(*names: str, code: int = 400) -> Behaviour:
    """Take no request that holds a span, a point or a log record with one of these names."""

    def behave(exchange: Exchange) -> None:
        found = set(exchange.received.names())
        (status(code, message="bad data") if found & set(names) else ok)(exchange)

    return behave


def partial(rejected: int, message: str = "") -> Behaviour:
    """Take everything but ``rejected`` items, it does not matter which."""

    def behave(exchange: Exchange) -> None:
        exchange.accept()
        exchange.reply(200, _response(exchange.received.content, rejected, message))

    return behave


def redirect(code: int, location: str) -> Behaviour:
    """Point to somewhere else."""
    return status(code, {"location": location})


def accept_then(behaviour: Behaviour) -> Behaviour:
    """Take everything, and then answer as if not."""

    def behave(exchange: Exchange) -> None:
        exchange.accept()
        behaviour(exchange)

    return behave


def in_turn(*behaviours: Behaviour) -> Behaviour:
    """Do one after the other, and the last for ever."""
    waiting = list(behaviours)

    def behave(exchange: Exchange) -> None:
        behaviour = waiting.pop(0) if len(waiting) > 1 else waiting[0]
        behaviour(exchange)

    return behave


def garbage(exchange: Exchange) -> None:
    """Take everything and answer with a success that nobody can read."""
    exchange.accept()
    exchange.reply(200, b"\xff\x00<html>", {"content-type": str(exchange.headers["content-type"])})


def huge(size_bytes: int) -> Behaviour:
    """Take everything and answer with a success of this size."""

    def behave(exchange: Exchange) -> None:
        exchange.accept()
        exchange.send_response(200)
        exchange.send_header("content-type", str(exchange.headers["content-type"]))
        exchange.send_header("content-length", str(size_bytes))
        exchange.end_headers()
        for _ in range(size_bytes >> 16):
            exchange.wfile.write(b"\0" * (1 << 16))

    return behave


def gzip_bomb(size_bytes: int) -> Behaviour:
    """Take everything and answer with a success that is small only while it is compressed."""
    body = gzip.compress(b"\0" * size_bytes)

    def behave(exchange: Exchange) -> None:
        exchange.accept()
        exchange.reply(200, body, {"content-encoding": "gzip", "content-type": str(exchange.headers["content-type"])})

    return behave


def drip(interval_s: float, *, where: str = "headers") -> Behaviour:
    """Take everything and answer for ever, a byte at a time, in the ``headers`` or in the ``body``."""

    def behave(exchange: Exchange) -> None:
        exchange.accept()
        start = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 1000000\r\n"
        exchange.wfile.write(start + (b"\r\n" if where == "body" else b"x-long: "))
        while not exchange.receiver.closing.wait(interval_s):
            exchange.wfile.write(b"x")

    return behave


def hang(exchange: Exchange) -> None:
    """Read the request and never answer."""
    exchange.receiver.closing.wait(60)


def blackhole(exchange: Exchange) -> None:
    """Accept the connection and not even read (see ``Exchange.handle``); this is for connections that are open."""
    hang(exchange)


def reset(exchange: Exchange) -> None:
    """Cut the connection with a reset."""
    exchange.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    exchange.close_connection = True
    exchange.connection.close()


class Tunnel:
    """Connects the client to whoever it asks for, as an HTTP proxy does."""

    def __init__(self) -> None:
        """Begin to count."""
        self.sent_bytes = 0
        """From clients, after they were connected."""

    def __call__(self, exchange: Exchange) -> None:
        """Pass bytes both ways until one side closes."""
        host, _, port = exchange.path.rpartition(":")
        with socket.create_connection((host, int(port))) as receiver, selectors.DefaultSelector() as selector:
            exchange.send_response(200)
            exchange.end_headers()
            exchange.close_connection = True
            selector.register(exchange.connection, selectors.EVENT_READ, receiver)
            selector.register(receiver, selectors.EVENT_READ, exchange.connection)
            while not exchange.receiver.closing.is_set():
                for key, _ in selector.select(0.05):
                    data = key.fileobj.recv(1 << 16)
                    if not data:
                        return
                    key.data.sendall(data)
                    self.sent_bytes += len(data) if key.data is receiver else 0


def _response(content: Content, rejected: int = 0, message: str = "") -> Message:
    if isinstance(content, traces.ExportTraceServiceRequest):
        spans = traces.ExportTraceServiceResponse()
        if rejected or message:
            spans.partial_success.rejected_spans = rejected
            spans.partial_success.error_message = message
        return spans
    if isinstance(content, logs.ExportLogsServiceRequest):
        records = logs.ExportLogsServiceResponse()
        if rejected or message:
            records.partial_success.rejected_log_records = rejected
            records.partial_success.error_message = message
        return records
    points = metrics.ExportMetricsServiceResponse()
    if rejected or message:
        points.partial_success.rejected_data_points = rejected
        points.partial_success.error_message = message
    return points


# gRPC


class FailureError(Exception):
    """Answer with a status code instead."""

    def __init__(self, code: grpc.StatusCode, details: str = "", status: bytes | None = None) -> None:
        """Give the code, its text, and the status that goes into the trailing metadata."""
        super().__init__(code)
        self.code, self.details, self.status = code, details, status


GrpcBehaviour = Callable[[Received], tuple[int, str] | bytes | None]
"""Returns the number of rejected items and a message, or the whole answer, or None; raises ``FailureError``."""


class FaultyGrpcReceiver(_Receiver):
    """An OTLP receiver over gRPC."""

    def __init__(
        self,
        behaviour: GrpcBehaviour | None = None,
        *,
        port: int = 0,
        tls: grpc.ServerCredentials | None = None,
        socket_target: str = "",
        max_body_bytes: int = 4 << 20,
    ) -> None:
        """Listen on a loopback port, and on a socket if one is given; take everything unless told otherwise."""
        super().__init__()
        self.behaviour = behaviour or (lambda _: None)
        self._executor = ThreadPoolExecutor(4)
        options = (("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", max_body_bytes))
        self._server = grpc.server(self._executor, options=options)
        services = (
            (traces.DESCRIPTOR.services_by_name["TraceService"], traces.ExportTraceServiceRequest),
            (metrics.DESCRIPTOR.services_by_name["MetricsService"], metrics.ExportMetricsServiceRequest),
            (logs.DESCRIPTOR.services_by_name["LogsService"], logs.ExportLogsServiceRequest),
        )
        self._server.add_generic_rpc_handlers([self._handler(*each) for each in services])
        address = f"127.0.0.1:{port}"
        self.port = self._server.add_secure_port(address, tls) if tls else self._server.add_insecure_port(address)
        self.endpoint = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        if socket_target:
            self._server.add_insecure_port(socket_target)
        self._server.start()

    def close(self) -> None:
        """Cut all connections and free the port."""
        super().close()
        self._server.stop(0).wait()
        self._executor.shutdown()

    def _handler(self, service: Any, request: type[Content]) -> grpc.GenericRpcHandler:
        export = grpc.unary_unary_rpc_method_handler(self._export, request.FromString)
        return grpc.method_handlers_generic_handler(service.full_name, {"Export": export})

    def _export(self, request: Content, context: grpc.ServicerContext) -> bytes:
        """Note the request and behave."""
        headers = {each.key: str(each.value) for each in context.invocation_metadata()}
        received = Received(time.monotonic(), "", headers, request.ByteSize(), request)
        self.requests.append(received)
        try:
            answer = self.behaviour(received)
        except FailureError as failure:
            _fail(context, failure)
        self.accepted.append(received)
        return answer if isinstance(answer, bytes) else _response(request, *answer or ()).SerializeToString()


def _fail(context: grpc.ServicerContext, failure: FailureError) -> NoReturn:
    if failure.status is not None:
        context.set_trailing_metadata((("grpc-status-details-bin", failure.status),))
    context.abort(failure.code, failure.details)
    raise AssertionError  # abort raises


def grpc_refuse(*names: str) -> GrpcBehaviour:
    """Take no request that holds a span, a point or a log record with one of these names."""

    def behave(received: Received) -> None:
        if set(received.names()) & set(names):
            raise FailureError(grpc.StatusCode.INVALID_ARGUMENT, "bad data")

    return behave


# At random


class AtRandom:
    """Answers at random by every row of the table of answers, and knows what it took and what it took out."""

    def __init__(self, random: Random, *, holds: bool = False) -> None:
        """Begin to misbehave; with ``holds``, also in ways that are asked about once a minute only."""
        self.is_well = False
        """Take everything from now on."""
        self._random = random
        self._ways: list[Behaviour] = [
            ok, ok, ok, ok, ok, ok,
            self._take_out,
            status(503), status(503, {"retry-after": "1"}), status(429, {"retry-after": _date(1)}),
            status(500, message="no idea"), page(502, "text/html", "<title>Bad Gateway</title>"), reset,
            accept_then(reset), accept_then(status(503)), self._limit,
        ]  # fmt: skip
        if holds:
            self._ways += [status(401), page(200, "text/html", "<title>Sign in</title>"), status(302), status(400)]
        self.taken_out: list[ReceivedSpan | ReceivedPoint | ReceivedLog] = []

    def __call__(self, exchange: "Exchange") -> None:
        """Behave; some items are never taken, whatever the mood."""
        if self.is_well:
            ok(exchange)
        elif _has_one_of(exchange.received, 29):
            status(400, message="bad data")(exchange)
        elif _has_one_of(exchange.received, 31):
            status(500, message="cannot store it")(exchange)
        else:
            self._random.choice(self._ways)(exchange)

    def _take_out(self, exchange: "Exchange") -> None:
        """Take everything but the first item, and say so, but not which."""
        items = exchange.received.items()
        self.taken_out += items[:1]
        exchange.accept()
        exchange.reply(200, _response(exchange.received.content, len(items[:1]), "too old"))

    def _limit(self, exchange: "Exchange") -> None:
        """Take small requests only."""
        (status(413) if exchange.received.size_bytes > 20_000 else ok)(exchange)


class GrpcAtRandom:
    """Does over gRPC what ``AtRandom`` does over HTTP."""

    def __init__(self, random: Random, *, holds: bool = False) -> None:
        """Begin to misbehave; with ``holds``, also in ways that are asked about once a minute only."""
        self.is_well = False
        """Take everything from now on."""
        self._random = random
        info = AnyMessage()
        info.Pack(RetryInfo(retry_delay=Duration(seconds=1)))
        slowly = Status(code=grpc.StatusCode.UNAVAILABLE.value[0], details=[info]).SerializeToString()
        self._failures = [
            FailureError(grpc.StatusCode.UNAVAILABLE), FailureError(grpc.StatusCode.UNAVAILABLE, "full", slowly),
            FailureError(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many requests"),
            FailureError(grpc.StatusCode.INTERNAL, "no idea"), FailureError(grpc.StatusCode.UNKNOWN),
            FailureError(grpc.StatusCode.ABORTED), FailureError(grpc.StatusCode.CANCELLED),
        ]  # fmt: skip
        if holds:
            self._failures += [FailureError(grpc.StatusCode.UNAUTHENTICATED), FailureError(grpc.StatusCode.NOT_FOUND)]
        self.taken_out: list[ReceivedSpan | ReceivedPoint | ReceivedLog] = []

    def __call__(self, received: Received) -> tuple[int, str] | None:
        """Behave; some items are never taken, whatever the mood."""
        if self.is_well:
            return None
        if _has_one_of(received, 29):
            raise FailureError(grpc.StatusCode.INVALID_ARGUMENT, "bad data")
        if _has_one_of(received, 31):
            raise FailureError(grpc.StatusCode.INTERNAL, "cannot store it")
        way = self._random.random()
        if way < 0.45:
            return None
        if way < 0.5:
            items = received.items()[:1]
            self.taken_out += items
            return len(items), "too old"
        if way < 0.55 and received.size_bytes > 20_000:
            raise FailureError(grpc.StatusCode.RESOURCE_EXHAUSTED, "grpc: received message larger than max")
        raise self._random.choice(self._failures)


def _has_one_of(received: Received, number: int) -> bool:
    """Tell whether there is an item of a kind of which one in eight times ``number`` is."""
    spans = [span.span_id for span in received.spans()]
    others = [each.time_unix_ns // 1_000_000 for each in (*received.points(), *received.logs())]
    return any(each % (8 * number) == 0 for each in (*spans, *others))


def _date(seconds: float) -> str:
    return format_datetime(datetime.now(timezone.utc) + timedelta(seconds=seconds), usegmt=True)
