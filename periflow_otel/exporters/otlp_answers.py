"""What a receiver's answer means for the data that was sent: it was taken, it is refused for good, or it is kept."""

from typing import Final, NamedTuple, TypeVar

from google.protobuf.json_format import Parse, ParseError
from google.protobuf.message import DecodeError, Message
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]  # it has no stubs
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from periflow_otel.endpoints import Headers, Signal

HOLD_S: Final = 60.0
"""Pause after an answer that only a person can mend: a wrong address, a token that has expired."""
MAX_RETRY_AFTER_S: Final = 300.0
"""Longest pause that a receiver can ask for."""
MAX_ANSWER_BYTES: Final = 64 << 10
"""What is read of an answer; the specification's are a few hundred bytes long."""


class Accepted(NamedTuple):
    """The receiver took the request, perhaps not all of it."""

    rejected: int = 0
    """Items that it took out, for good; it does not say which."""
    message: str = ""


class Refused(NamedTuple):
    """The receiver will never take this request as it is; parts of it may pass."""

    message: str


class Kept(NamedTuple):
    """The request is to be sent again later: nothing is wrong with it."""

    message: str
    retry_after_s: float | None = None
    """How long to wait; None leaves it to the caller's backoff."""


Answer = Accepted | Refused | Kept


def accepted(body: bytes, signal: Signal, headers: Headers, *, is_json: bool = False) -> Accepted:
    """Read the body of a success. One that cannot be read changes nothing: the receiver has said that it is one."""
    try:
        if signal == "traces":
            spans = _read(body, ExportTraceServiceResponse(), is_json=is_json).partial_success
            return Accepted(spans.rejected_spans, clean(spans.error_message, headers))
        points = _read(body, ExportMetricsServiceResponse(), is_json=is_json).partial_success
        return Accepted(points.rejected_data_points, clean(points.error_message, headers))
    except _UNREADABLE:
        return Accepted()


def explanation(body: bytes, content_type: str, headers: Headers) -> str:
    """Return what the body of a failure says, or nothing."""
    try:
        if content_type.startswith("text/plain"):
            return clean(body.decode(), headers)
        return clean(_read(body, Status(), is_json=content_type.startswith("application/json")).message, headers)
    except _UNREADABLE:
        return ""


def clean(text: str, headers: Headers) -> str:
    """Make foreign text fit for a log: one line of at most 200 characters, without the values of our headers."""
    for _, value in headers:
        for secret in (value, value.rpartition(" ")[2]):  # the longer first
            if len(secret) >= _MIN_SECRET_CHARS:
                text = text.replace(secret, "***")
    line = " ".join("".join(each if each.isprintable() else " " for each in text).split())
    return line if len(line) <= 200 else line[:199] + "…"


_Response = TypeVar("_Response", bound=Message)


def _read(body: bytes, response: _Response, *, is_json: bool) -> _Response:
    if is_json:
        return Parse(body, response, ignore_unknown_fields=True)
    response.ParseFromString(body)
    return response


_UNREADABLE: Final = (DecodeError, ParseError, UnicodeDecodeError, RecursionError)
_MIN_SECRET_CHARS: Final = 8  # shorter values, such as a tenant's number, may stand in any text by chance
