"""What a receiver's answer means: one table for HTTP and gRPC.

``docs/architecture.md`` shows the same table; a test compares them.
"""

import re
import time
from datetime import timezone
from email.utils import parsedate_to_datetime
from typing import Final, NamedTuple, TypeVar

from google.protobuf.json_format import Parse, ParseError
from google.protobuf.message import DecodeError, Message
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]  # it has no stubs
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from periflow_otel.config.endpoints import Signal
from periflow_otel.config.headers import Headers
from periflow_otel.exporters import Outcome, Verdict

HOLD_S: Final = 60.0
"""Pause after an answer that only a person can do something about: a wrong address, a token that has expired."""
MAX_RETRY_AFTER_S: Final = 300.0
"""Longest pause that a receiver can ask for."""
MAX_ANSWER_BYTES: Final = 64 << 10
"""What is read of an answer; the specification's are a few hundred bytes long."""


class Row(NamedTuple):
    """Answers that mean the same."""

    http: frozenset[int]
    """Statuses."""
    grpc: frozenset[str]
    """Codes."""
    verdict: Verdict
    remedy: str = ""
    """What a person can do."""


TABLE: Final = (
    Row(frozenset({413}), frozenset(), Verdict.TOO_LARGE),
    Row(
        frozenset({400, 409, 422}),
        frozenset({"INVALID_ARGUMENT", "FAILED_PRECONDITION", "OUT_OF_RANGE", "ALREADY_EXISTS"}),
        Verdict.REFUSED,
    ),
    Row(
        frozenset({401, 403}),
        frozenset({"UNAUTHENTICATED", "PERMISSION_DENIED"}),
        Verdict.WRONG,
        "set OTEL_EXPORTER_OTLP_HEADERS to what it asks for",
    ),
    Row(
        frozenset(range(300, 400)),
        frozenset(),
        Verdict.WRONG,
        "redirects are not followed: set OTEL_EXPORTER_OTLP_ENDPOINT to where it leads",
    ),
    Row(frozenset({404, 405, 410, 501}), frozenset({"UNIMPLEMENTED"}), Verdict.DECLINED),
    Row(frozenset({425, 429, 503}), frozenset({"UNAVAILABLE"}), Verdict.LATER),
    Row(
        frozenset({408, 500, 502, *range(504, 600)}),
        frozenset({"CANCELLED", "UNKNOWN", "DEADLINE_EXCEEDED", "ABORTED", "INTERNAL", "DATA_LOSS"}),
        Verdict.FAILED,
    ),
)
"""What is not in it is wrong until somebody changes something: the rest of 4xx, and ``NOT_FOUND``.

The specification drops data at every failure but 429, 502, 503 and 504. Here it is kept, for a failure of the receiver
is not one of the data.
"""
_ELSE: Final = Row(frozenset(), frozenset(), Verdict.WRONG)


def judge_status(status: int, where: str, said: str, retry_after_s: float | None) -> Outcome:
    """Return what an HTTP status other than a success means.

    Args:
        status: The status.
        where: Who answered.
        said: The receiver's words, cleaned.
        retry_after_s: The pause that it asks for; None: none.
    """
    cause = f"HTTP {status} from {where}"
    if status == 400 and _TOO_LARGE.search(said):  # what servers in Go answer that have a limit
        return _outcome(Verdict.TOO_LARGE, cause, "", said, retry_after_s)
    row = next((row for row in TABLE if status in row.http), _ELSE)
    return _outcome(row.verdict, cause, row.remedy, said, retry_after_s)


def judge_code(code: str, where: str, said: str, retry_after_s: float | None) -> Outcome:
    """Return what a gRPC code other than ``OK`` means.

    Args:
        code: Its name.
        where: Who answered.
        said: The details of the status, cleaned.
        retry_after_s: The pause that the receiver asks for; None: none.
    """
    if status := _HTTP_STATUS.search(said):  # something that speaks HTTP/2 but no gRPC, a proxy for instance
        return judge_status(int(status[1]), where, said, retry_after_s)
    cause = f"gRPC {code} from {where}"
    if code == "RESOURCE_EXHAUSTED":
        return _outcome(_exhausted(said, retry_after_s), cause, "", said, retry_after_s)
    if code in _PERHAPS_TOO_LARGE and _TOO_LARGE.search(said):
        return _outcome(Verdict.TOO_LARGE, cause, "", said, retry_after_s)
    row = next((row for row in TABLE if code in row.grpc), _ELSE)
    return _outcome(row.verdict, cause, row.remedy, said, retry_after_s)


def _exhausted(said: str, retry_after_s: float | None) -> Verdict:
    """Tell a request that is too large from a rate that is too high: gRPC has one code for both."""
    if retry_after_s is not None or _TOO_FAST.search(said):
        return Verdict.LATER
    return Verdict.TOO_LARGE if _TOO_LARGE.search(said) else Verdict.FAILED


def _outcome(verdict: Verdict, cause: str, remedy: str, said: str, retry_after_s: float | None) -> Outcome:
    if retry_after_s is None and verdict in (Verdict.WRONG, Verdict.DECLINED):
        retry_after_s = HOLD_S
    return Outcome(verdict, "; ".join(filter(None, (cause, remedy))), said, retry_after_s)


def pause_s(retry_after: str) -> float | None:
    """Return the seconds of a ``Retry-After``, or until the date in it, which is UTC; None if there are none."""
    try:
        if _SECONDS.fullmatch(retry_after.strip()):
            seconds = float(retry_after)
        else:
            date = parsedate_to_datetime(retry_after)
            seconds = date.replace(tzinfo=date.tzinfo or timezone.utc).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return None
    return min(seconds, MAX_RETRY_AFTER_S) if seconds > 0 else None


def with_remedy(text: str, said: str) -> str:
    """Return a text with what to do about it, where ``said`` tells that another protocol is spoken."""
    return "; ".join([text, *(remedy for sign, remedy in _OTHER_PROTOCOLS.items() if sign in said)])


def accepted(body: bytes, count: int, signal: Signal, headers: Headers, *, is_json: bool = False) -> Outcome:
    """Read the body of a success. One that cannot be read changes nothing: the receiver has said that it is one.

    Args:
        body: The answer.
        count: How many items were sent.
        signal: What they were.
        headers: Our own, whose values are not to be seen.
        is_json: The answer is JSON.
    """
    try:
        if signal == "traces":
            spans = _read(body, ExportTraceServiceResponse(), is_json=is_json).partial_success
            rejected, message = spans.rejected_spans, spans.error_message
        elif signal == "logs":
            logs = _read(body, ExportLogsServiceResponse(), is_json=is_json).partial_success
            rejected, message = logs.rejected_log_records, logs.error_message
        else:
            points = _read(body, ExportMetricsServiceResponse(), is_json=is_json).partial_success
            rejected, message = points.rejected_data_points, points.error_message
    except _UNREADABLE:
        rejected, message = 0, ""
    return Outcome(Verdict.TAKEN, said=clean(message, headers), done=count, rejected=max(0, min(rejected, count)))


def explanation(body: bytes, content_type: str, headers: Headers) -> str:
    """Return what the body of a failure says, or nothing."""
    try:
        if content_type.startswith("text/html"):
            title = _TITLE.search(body.decode("utf-8", "replace"))
            return clean(title[1], headers) if title else ""
        if content_type.startswith("text/"):
            return clean(body.decode("utf-8", "replace"), headers)
        if "json" in content_type or not content_type:
            return _json_explanation(body, headers)
        return clean(_read(body, Status(), is_json=False).message, headers)
    except _UNREADABLE:
        return ""


def _json_explanation(body: bytes, headers: Headers) -> str:
    """Return the message of a status in JSON, or all of what is not one."""
    text = body.decode("utf-8", "replace")
    try:
        return clean(_read(body, Status(), is_json=True).message or text, headers)
    except _UNREADABLE:
        return clean(text, headers)


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
NO_HTTP: Final = (
    "what answers there does not speak HTTP/1.1; where it speaks gRPC, set OTEL_EXPORTER_OTLP_PROTOCOL=grpc, and where "
    "it speaks TLS, let OTEL_EXPORTER_OTLP_ENDPOINT begin with https://"
)
_NO_TLS: Final = "what answers there does not speak TLS: let OTEL_EXPORTER_OTLP_ENDPOINT begin with http://"
_NO_GRPC: Final = (
    "what answers there does not speak gRPC: set OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf, or the port for gRPC"
)
_OTHER_PROTOCOLS: Final = {
    "WRONG_VERSION_NUMBER": _NO_TLS,
    "Failed parsing HTTP/2": _NO_GRPC,
    "No status received": _NO_GRPC,
    "Data frame with END_STREAM flag received": _NO_GRPC,
}
"""Signs of what the libraries of TLS and gRPC say, and what a person can do."""
_SECONDS: Final = re.compile(r"[0-9]+(\.[0-9]+)?")
_TITLE: Final = re.compile(r"<title[^>]*>([^<]*)", re.IGNORECASE)
_HTTP_STATUS: Final = re.compile(r"^Received http2 header with status: ([1-5]\d\d)\b")
"""What gRPC's own library says of an answer that has an HTTP status and no code."""
# A server has no code of its own for a request that is too large: these are what gRPC's own servers and those of Go,
# Java, Rust and .NET say. Of an answer that is too large for us, gRPC says "CLIENT: Received message larger than max".
_PERHAPS_TOO_LARGE: Final = frozenset({"OUT_OF_RANGE", "INVALID_ARGUMENT", "CANCELLED", "UNKNOWN", "INTERNAL"})
_TOO_LARGE: Final = re.compile(
    r"^(?!.*CLIENT:).*"
    r"(larger than|exceeds? (the )?(\w+ )*(maximum|max|limit|size)|too (large|big|long)|(message|request|body) size)",
    re.DOTALL | re.IGNORECASE,
)
_TOO_FAST: Final = re.compile(r"\b(rate|quota|throttl\w*|too many requests|slow down)\b", re.IGNORECASE)
