"""OTLP reaches real receivers whole, and a faulty one costs nothing but what it refuses for good."""

import gc
import logging
import math
import socket
import ssl
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest
from certificates import Authority
from faulty_receiver import (
    Behaviour,
    FailureError,
    FaultyGrpcReceiver,
    FaultyReceiver,
    Tunnel,
    accept_then,
    blackhole,
    drip,
    garbage,
    grpc_refuse,
    gzip_bomb,
    hang,
    huge,
    in_turn,
    ok,
    page,
    partial,
    redirect,
    refuse,
    reset,
    status,
)
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from programs import Collector, Rotel, free_ports, read_logs, read_points, read_spans, wait_until
from recorder import make_run
from telemetry import logs_message, make_log_record, metrics_message, traces_message

from periflow_otel import names
from periflow_otel.agent.delivery import Batch, Delivery
from periflow_otel.agent.tracks import Account
from periflow_otel.config.endpoints import SIGNALS, OtlpSettings, Protocol, Signal
from periflow_otel.config.export import ExportSettings
from periflow_otel.config.headers import Headers
from periflow_otel.exporters import Outcome, Verdict, taken
from periflow_otel.exporters.otlp import MAX_REQUEST_BYTES, OtlpExporter
from periflow_otel.exporters.otlp_answers import accepted, clean, explanation
from periflow_otel.exporters.otlp_http import HttpTransport
from periflow_otel.exporters.tls import trusted_roots
from periflow_otel.records import RankRun
from periflow_otel.translate.telemetry import (
    Event,
    Exemplar,
    ExponentialHistogram,
    Histogram,
    Link,
    LogRecord,
    Point,
    Span,
)

Receiver = FaultyReceiver | FaultyGrpcReceiver
PROTOCOLS: tuple[Protocol, ...] = ("http/protobuf", "http/json", "grpc")
CANARY = "canary-5f0c2d"
HOUR_NS = 3_600_000_000_000
UNIX_NS = 1_700_000_000_000_000_000
RUN = make_run(world_size=1, resource=(("service.name", "training"),))

each_protocol = pytest.mark.parametrize("protocol", PROTOCOLS)
over_both = pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
each_signal = pytest.mark.parametrize("signal", SIGNALS)


def span(number: int, **attributes: Any) -> tuple[RankRun, Span]:
    """Return a span that is called ``item-{number}``."""
    start_unix_ns = UNIX_NS + number
    return RUN, Span(f"item-{number}", 1 << 100, number + 1, None, start_unix_ns, start_unix_ns + 10, attributes)


def point(number: int, value: Any = 1.0) -> tuple[RankRun, Point]:
    """Return a point of a metric that is called ``periflow.metric.item-{number}``."""
    return RUN, Point(names.user_instrument(f"item-{number}"), ((names.RANK, 0),), UNIX_NS + number, value)


def log_record(number: int) -> tuple[RankRun, LogRecord]:
    """Return a log record that says ``item-{number}``."""
    return RUN, make_log_record(body=f"item-{number}", time_unix_ns=UNIX_NS + number)


MAKERS: dict[Signal, Any] = {"traces": span, "metrics": point, "logs": log_record}


def items(signal: Signal, count: int) -> list[tuple[RankRun, Any]]:
    """Return what a signal is made of, numbered from 0."""
    return [MAKERS[signal](number) for number in range(count)]


def item_names(signal: Signal, *numbers: int) -> list[str]:
    """Return how items are called."""
    return [(names.METRIC_PREFIX if signal == "metrics" else "") + f"item-{number}" for number in numbers]


def rich_spans() -> list[tuple[RankRun, Span]]:
    """Return spans with everything that a span can have."""
    events = (Event("event", UNIX_NS, {"text": "é", "number": 7}),)
    attributes = {"nan": math.nan, "infinity": -math.inf, "list": ["a", "b"], "yes": True}
    rich = Span("rich", 1, 2, 3, UNIX_NS, UNIX_NS + 5, attributes, events, (Link(4, 5),), "ValueError")
    return [(RUN, rich), *(span(number) for number in range(2, 500))]


def rich_points() -> list[tuple[RankRun, Point]]:
    """Return points of all kinds, many of one gauge, with NaN among them."""
    exemplars = (Exemplar(UNIX_NS, 0.5, 1, 2),)
    histogram = Histogram(2, 0.75, 0.25, 0.5, (0.3,), (1, 1))
    exponential = ExponentialHistogram(2, 0.75, 0.25, 0.5, 3, 0, -4, (1, 1))
    made = [
        (names.STEP_DURATION, histogram, UNIX_NS - HOUR_NS, exemplars, False),
        (names.STEP_GAP, exponential, UNIX_NS - HOUR_NS, (), True),
        (names.STEP_COMPLETED, 5, UNIX_NS - HOUR_NS, (), False),
    ]
    points = [Point(each, ((names.RANK, 0),), UNIX_NS, *rest) for each, *rest in made]
    values = [1.0, math.nan, math.inf, -math.inf, 0.0, 7, *range(400)]
    loss = names.user_instrument("loss")
    gauges = [Point(loss, ((names.RANK, 0),), UNIX_NS + n * 1_000_000, value) for n, value in enumerate(values)]
    return [(RUN, each) for each in (*points, *gauges)]


def rich_logs() -> list[tuple[RankRun, LogRecord]]:
    """Return log records with everything that one can have, of two loggers in turn."""
    source = (("code.file.path", "/src/train.py"), ("code.line.number", 12))
    rich = make_log_record(body="é" * 9, attributes={"lr": 0.1}, source=source, dropped_attributes=2)
    event = make_log_record(scope=names.SCOPE, body=None, event_name=names.CHECKPOINT_UPLOAD)
    return [(RUN, rich), (RUN, event), *items("logs", 500)]


def comparable(received: Sequence[Any]) -> list[str]:
    """Return what was received in a form in which NaN equals NaN, and no buckets equal none."""
    return sorted(repr(each).replace("negative {\n}\n", "") for each in received)


@contextmanager
def sending(
    endpoint: str, protocol: Protocol = "http/protobuf", signal: Signal = "traces", **fields: Any
) -> Iterator[OtlpExporter]:
    """Return an exporter that sends to an endpoint."""
    if protocol != "grpc":
        endpoint = f"{endpoint}/v1/{signal}"
    fields = {"timeout_s": 20.0, "insecure": endpoint.startswith("http:"), **fields}
    with closing(OtlpExporter(OtlpSettings(signal, endpoint, protocol, **fields))) as exporter:
        yield exporter


@contextmanager
def receiving(protocol: Protocol, **arguments: Any) -> Iterator[Receiver]:
    """Return a receiver that does what it should until told otherwise."""
    with (FaultyGrpcReceiver if protocol == "grpc" else FaultyReceiver)(**arguments) as receiver:
        yield receiver


def received(receiver: Receiver) -> list[str]:
    """Return the names of all that was taken, in the order of its arrival."""
    return [name for request in receiver.accepted for name in request.names()]


def deliver(exporter: OtlpExporter, waiting: Sequence[Any]) -> Account:
    """Deliver as the agent does, but without ever waiting; return what became of the items."""
    account, now_s = Account(), 0.0
    delivery = Delivery("test", exporter, lambda *_: True, lambda: now_s)
    delivery.give([Batch(RUN, account, [item for _, item in waiting])])
    while not delivery.is_done():
        now_s = max(now_s, delivery.due_s)
        assert now_s < 60, "no progress"
        delivery.attempt()
    return account


def fail_with(code: grpc.StatusCode, details: str = "", status: bytes | None = None) -> Any:
    """Return the behaviour of a gRPC receiver that answers with a status."""

    def behave(_: object) -> None:
        raise FailureError(code, details, status)

    return behave


def grpc_hang(receiver: FaultyGrpcReceiver) -> Any:
    """Return the behaviour of a gRPC receiver that never answers."""

    def behave(_: object) -> None:
        receiver.closing.wait(60)

    return behave


# Real receivers


@each_protocol
def test_a_real_collector_gets_everything_once_and_equal(protocol: Protocol, collector: Collector):
    """All fields of spans, points and log records arrive, NaN and infinity too."""
    endpoint = collector.grpc_endpoint if protocol == "grpc" else collector.http_endpoint
    spans, points, logs = rich_spans(), rich_points(), rich_logs()
    with sending(endpoint, protocol) as exporter:
        assert exporter.export(spans) == taken(len(spans))
    with sending(endpoint, protocol, "metrics", compression="gzip") as exporter:
        assert exporter.export(points) == taken(len(points))
    with sending(endpoint, protocol, "logs", compression="gzip") as exporter:
        assert exporter.export(logs) == taken(len(logs))
    assert collector.logs() == list(read_logs(logs_message(logs)))
    assert comparable(collector.spans()) == comparable(list(read_spans(traces_message(spans))))
    assert comparable(collector.points()) == comparable(list(read_points(metrics_message(points))))


@over_both
def test_another_real_receiver_gets_everything_too(protocol: Protocol, collector: Collector, tmp_path: Path):
    """Rotel, which is not written in Go, passes it on to the Collector."""
    spans, points = rich_spans(), rich_points()
    with Rotel(tmp_path / "rotel", collector.http_endpoint) as rotel:
        endpoint = rotel.grpc_endpoint if protocol == "grpc" else rotel.http_endpoint
        with sending(endpoint, protocol) as exporter:
            assert exporter.export(spans) == taken(len(spans))
        with sending(endpoint, protocol, "metrics") as exporter:
            assert exporter.export(points) == taken(len(points))
        wait_until(lambda: len(collector.spans()) >= len(spans) and len(collector.points()) >= len(points), 30)
    assert [each.span_id for each in collector.spans()] == [each.span_id for _, each in spans]
    values = [repr(each.value) for each in collector.points(names.METRIC_PREFIX + "loss")]
    assert sorted(values) == sorted(repr(each.value) for each in read_points(metrics_message(points[3:])))


# Answers that keep the data


def outcome_of(receiver: Receiver, protocol: Protocol = "http/protobuf", **fields: Any) -> Outcome:
    """Export two spans, once."""
    with sending(receiver.endpoint, protocol, **fields) as exporter:
        return exporter.export(items("traces", 2))


def check_kept(outcome: Outcome, retry_after_s: float | None) -> None:
    """Check that everything is kept, and for how long."""
    assert outcome.verdict in (Verdict.LATER, Verdict.FAILED, Verdict.WRONG)
    assert (outcome.done, outcome.rejected) == (0, 0)
    assert outcome.message
    assert outcome.retry_after_s == retry_after_s


@pytest.mark.parametrize("code", [300, 301, 302, 303, 304, 307, 308])
def test_a_redirect_is_no_success_and_is_not_followed(code: int):
    """Whoever answers so is not the receiver, and the token is not for whoever it points to."""
    with FaultyReceiver() as target, FaultyReceiver(redirect(code, f"{target.endpoint}/v1/traces")) as receiver:
        check_kept(outcome_of(receiver), 60)
        assert (len(receiver.requests), target.connections) == (1, 0)


@pytest.mark.parametrize(
    ("code", "retry_after_s"),
    [
        *((code, 60) for code in (401, 402, 403, 404, 405, 406, 407, 410, 415, 418, 431, 451, 501)),
        *((code, None) for code in (408, 425, 429, 500, 502, 503, 504, 511, 599)),
    ],
)
def test_an_http_status_that_is_not_about_the_data_keeps_it(code: int, retry_after_s: float | None):
    """What a person must mend is tried once a minute, the rest after the caller's backoff."""
    with FaultyReceiver(status(code, message="why")) as receiver:
        outcome = outcome_of(receiver)
        check_kept(outcome, retry_after_s)
        assert outcome.cause.startswith(f"HTTP {code} from 127.0.0.1:{receiver.port}")
        assert outcome.said == "why"


REFUSALS_OF_GRPC = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION,
                    grpc.StatusCode.OUT_OF_RANGE, grpc.StatusCode.ALREADY_EXISTS}  # fmt: skip


@pytest.mark.parametrize("code", sorted(set(grpc.StatusCode) - {grpc.StatusCode.OK} - REFUSALS_OF_GRPC, key=str))
def test_a_grpc_status_that_is_not_about_the_data_keeps_it(code: grpc.StatusCode):
    """What a person must mend is tried once a minute, the rest after the caller's backoff."""
    lasting = {"UNAUTHENTICATED", "PERMISSION_DENIED", "UNIMPLEMENTED", "NOT_FOUND"}
    with FaultyGrpcReceiver(fail_with(code, "why")) as receiver:
        outcome = outcome_of(receiver, "grpc")
        check_kept(outcome, 60 if code.name in lasting else None)
        assert outcome.cause.startswith(f"gRPC {code.name} from 127.0.0.1:{receiver.port}")
        assert outcome.said == "why"


@over_both
def test_what_was_kept_is_delivered_later(protocol: Protocol):
    """Once the receiver is well, over a connection that has seen the trouble."""
    ill = fail_with(grpc.StatusCode.UNAVAILABLE) if protocol == "grpc" else status(503)
    with receiving(protocol) as receiver, sending(receiver.endpoint, protocol) as exporter:
        well, receiver.behaviour = receiver.behaviour, ill
        check_kept(exporter.export(items("traces", 2)), None)
        receiver.behaviour = well
        assert exporter.export(items("traces", 2)) == taken(2)
        assert received(receiver) == item_names("traces", 0, 1)


@pytest.mark.parametrize(
    ("value", "retry_after_s"),
    [("7", 7), ("300", 300), ("301", 300), ("86400", 300), ("9" * 5000, 300), ("0", None), ("", None), ("-5", None),
     ("1.5", 1.5), ("soon", None), ("٣", None), ("Tue, 01 Jan 1980 00:00:00 GMT", None),
     ("Fri, 31 Dec 9999 23:59:59 GMT", 300), ("Fri, 99 Dec 9999 99:99:99 GMT", None)],
)  # fmt: skip
@pytest.mark.parametrize("code", [429, 503])
def test_a_retry_after_is_obeyed_within_bounds(code: int, value: str, retry_after_s: float | None):
    """Seconds or a date; five minutes at most; what cannot be read, or is no time at all, is as if it were missing."""
    value = value.encode().decode("latin-1")
    with FaultyReceiver(status(code, {"retry-after": value})) as receiver:
        check_kept(outcome_of(receiver), retry_after_s)


@pytest.fixture
def in_new_york(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have local time differ from UTC."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "America/New_York")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.parametrize(
    "form",
    ["%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %d %H:%M:%S %Y", "%a, %d %b %Y %H:%M:%S -0000"],
)
@pytest.mark.usefixtures("in_new_york")
def test_a_retry_after_may_be_a_date(form: str):
    """The pause is what is left until then; the three forms of HTTP are all in UTC, wherever this runs."""
    date = (datetime.now(timezone.utc) + timedelta(seconds=200)).strftime(form)
    with FaultyReceiver(status(503, {"retry-after": date})) as receiver:
        pause_s = outcome_of(receiver).retry_after_s
        assert pause_s is not None
        assert 100 < pause_s <= 200


def retry_info(*details: Any) -> bytes:
    """Return the status that carries details."""
    packed = []
    for each in details:
        packed.append(AnyMessage())
        packed[-1].Pack(each)
    return Status(code=8, details=packed).SerializeToString()


@pytest.mark.parametrize(
    ("details", "retry_after_s"),
    [
        (retry_info(RetryInfo(retry_delay=Duration(seconds=7, nanos=500_000_000))), 7.5),
        (retry_info(ErrorInfo(reason="full"), RetryInfo(retry_delay=Duration(seconds=7))), 7),
        (retry_info(RetryInfo(retry_delay=Duration(seconds=86_400))), 300),
        (retry_info(RetryInfo(retry_delay=Duration(seconds=0))), None),
        (retry_info(RetryInfo(retry_delay=Duration(seconds=-7))), None),
        (retry_info(RetryInfo()), None),
        (retry_info(ErrorInfo(reason="full")), None),
        (retry_info(), None),
        (b"\xff\xff\xff", None),
        (b"", None),
    ],
)
@pytest.mark.parametrize("code", [grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE])
def test_a_retry_info_is_obeyed_within_bounds(code: grpc.StatusCode, details: bytes, retry_after_s: float | None):
    """Five minutes at most; what cannot be read, or is no time at all, is as if it were missing."""
    with FaultyGrpcReceiver(fail_with(code, status=details)) as receiver:
        check_kept(outcome_of(receiver, "grpc"), retry_after_s)


# Answers that refuse data

REFUSALS = [("http/protobuf", 400), ("http/protobuf", 413), ("http/protobuf", 422), ("http/json", 400), ("grpc", 3)]


@each_signal
@pytest.mark.parametrize(("protocol", "code"), REFUSALS)
def test_only_the_refused_items_are_set_aside(protocol: Protocol, code: int, signal: Signal):
    """A request that is refused is cut in two until nothing but the bad items is left; the order stays."""
    bad = (0, 7, 8, 19)
    refused = item_names(signal, *bad)
    behaviour = grpc_refuse(*refused) if protocol == "grpc" else refuse(*refused, code=code)
    with receiving(protocol, behaviour=behaviour) as receiver, sending(receiver.endpoint, protocol, signal) as exporter:
        account = deliver(exporter, items(signal, 20))
        assert (account.delivered, account.set_aside.total()) == (16, 4)
        assert received(receiver)[-16:] == item_names(signal, *(n for n in range(20) if n not in bad))


@over_both
def test_a_receiver_that_refuses_even_nothing_has_another_trouble(protocol: Protocol):
    """A setting is wrong, and no item is to blame: two requests tell."""
    with receiving(protocol) as receiver, sending(receiver.endpoint, protocol) as exporter:
        receiver.behaviour = fail_with(grpc.StatusCode.INVALID_ARGUMENT) if protocol == "grpc" else status(400)
        outcome = exporter.export(items("traces", 100))
        check_kept(outcome, 60)
        assert outcome.verdict is Verdict.WRONG
        assert len(receiver.requests) == 2


@pytest.mark.parametrize("content_type", [None, "text/html", "Text/HTML; charset=utf-8"])
@pytest.mark.parametrize("code", [400, 409, 422])
def test_a_bad_request_of_somebody_else_keeps_the_data(code: int, content_type: str | None):
    """A proxy answers with a page for people, and a TLS port that is asked in plain text with no type at all."""
    with FaultyReceiver(page(code, content_type, "plain HTTP request was sent to HTTPS port")) as receiver:
        check_kept(outcome_of(receiver), 60)


@pytest.mark.parametrize(
    ("protocol", "behaviour"),
    [
        ("http/protobuf", status(400, message="why")),
        ("http/json", status(400, message="why")),
        ("http/protobuf", page(400, "text/plain; charset=utf-8", "why")),
        ("http/protobuf", page(502, "text/html", "<html><head><title>why</title></head><body>x</body></html>")),
        ("http/protobuf", page(400, "application/json; charset=utf-8", '{"message": "why"}')),
        ("http/protobuf", page(400, "application/problem+json", "why")),
    ],
)
def test_an_answer_is_explained_in_the_words_of_the_receiver(protocol: Protocol, behaviour: Behaviour):
    """In its status, in JSON, in plain text or as the title of a page."""
    with FaultyReceiver(behaviour) as receiver:
        assert outcome_of(receiver, protocol).said == "why"


class Scripted:
    """A transport that answers as it is told, and knows how many items it was sent."""

    def __init__(self, *verdicts: Verdict) -> None:
        """Answer with these, one after the other."""
        self.counts: list[int] = []
        self._verdicts = list(verdicts)

    def send(self, body: bytes, count: int) -> Outcome:
        """Answer."""
        assert bool(body) == bool(count)
        self.counts.append(count)
        verdict = self._verdicts.pop(0)
        return taken(count) if verdict is Verdict.TAKEN else Outcome(verdict, "cause")

    def close(self) -> None:
        """Do nothing."""


def scripted(*verdicts: Verdict) -> tuple[OtlpExporter, Scripted]:
    """Return an exporter with a scripted transport."""
    transport = Scripted(*verdicts)
    return OtlpExporter(OtlpSettings("traces", "http://host"), transport=transport), transport


def test_a_refusal_counts_only_beside_an_empty_request_that_is_taken():
    """Which need not be asked for again right after a success."""
    exporter, transport = scripted(Verdict.REFUSED, Verdict.TAKEN, Verdict.REFUSED, Verdict.TAKEN)
    assert exporter.export(items("traces", 3)).verdict is Verdict.REFUSED
    assert exporter.export(items("traces", 2)).verdict is Verdict.REFUSED
    assert exporter.export(items("traces", 1)).verdict is Verdict.TAKEN
    assert transport.counts == [3, 0, 2, 1]


@pytest.mark.parametrize("verdict", [each for each in Verdict if each is not Verdict.TAKEN])
def test_a_refusal_beside_another_trouble_is_kept(verdict: Verdict):
    """Whatever the receiver says of an empty request, unless it takes it."""
    exporter, _ = scripted(Verdict.REFUSED, verdict)
    check_kept(exporter.export(items("traces", 3)), None if verdict in (Verdict.LATER, Verdict.FAILED) else 60)


def test_nothing_to_send_sends_nothing():
    """An empty call is a success that costs no request."""
    exporter, transport = scripted()
    assert exporter.export([]) == taken(0)
    assert transport.counts == []


def test_an_item_that_cannot_be_encoded_is_set_aside_alone():
    """A time before 1970 is none that OTLP can hold."""
    exporter, _ = scripted(Verdict.TAKEN, Verdict.TAKEN)
    broken = RUN, msgspec.structs.replace(span(1)[1], start_unix_ns=-1)
    assert deliver(exporter, [span(0), broken, span(2)]) == Account(2, Counter(), Counter(refused=1))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_receiver_of_one_signal_declines_the_others(protocol: Protocol):
    """At one address; what is said names the variable that turns it off."""

    def traces_only(exchange: Any) -> None:
        (ok if "traces" in exchange.path else status(404))(exchange)

    def grpc_traces_only(request: Any) -> None:
        if not isinstance(request.content, ExportTraceServiceRequest):
            raise FailureError(grpc.StatusCode.UNIMPLEMENTED, "unknown service")

    with receiving(protocol, behaviour=grpc_traces_only if protocol == "grpc" else traces_only) as receiver:
        path = "" if protocol == "grpc" else "/v1/"
        declined, *others = [
            OtlpSettings(signal, receiver.endpoint + (path and path + signal), protocol, insecure=True)
            for signal in ("metrics", "logs", "traces")
        ]
        with closing(OtlpExporter(declined, others)) as exporter:
            outcome = exporter.export(items("metrics", 3))
        assert (outcome.verdict, outcome.retry_after_s) == (Verdict.DECLINED, 60)
        assert "set OTEL_METRICS_EXPORTER=none" in outcome.message
        elsewhere = OtlpSettings("traces", receiver.endpoint.replace("127.0.0.1", "localhost"), protocol, insecure=True)
        for none_takes in ([], [elsewhere], others[:1]):
            with closing(OtlpExporter(declined, none_takes)) as exporter:
                check_kept(exporter.export(items("metrics", 3)), 60)


# Successes


@each_signal
@each_protocol
def test_a_partial_success_is_counted(protocol: Protocol, signal: Signal):
    """What the receiver took out is rejected for good, and its reason is told."""
    with receiving(protocol) as receiver, sending(receiver.endpoint, protocol, signal) as exporter:
        receiver.behaviour = (lambda _: (3, "too old")) if protocol == "grpc" else partial(3, "too old")
        assert exporter.export(items(signal, 10)) == taken(10, 3, "too old")
        assert len(receiver.requests) == 1


@over_both
@pytest.mark.parametrize(("rejected", "expected"), [(0, 0), (11, 10), (-1, 0), (1 << 62, 10)])
def test_a_partial_success_is_believed_within_bounds(protocol: Protocol, rejected: int, expected: int):
    """No more can be rejected than was sent; with none, the message is a warning."""
    with receiving(protocol) as receiver, sending(receiver.endpoint, protocol) as exporter:
        receiver.behaviour = (lambda _: (rejected, "hm")) if protocol == "grpc" else partial(rejected, "hm")
        assert exporter.export(items("traces", 10)) == taken(10, expected, "hm")


@each_protocol
def test_the_message_of_a_receiver_is_made_fit_for_a_log(protocol: Protocol):
    """One line of at most 200 characters, without control characters and without the values of our headers."""
    text = f"\x1b[31m you sent\r\nBearer {CANARY} {CANARY}\x00 " + "x" * 1000
    headers = Headers([("authorization", f"Bearer {CANARY}")])
    with receiving(protocol) as receiver, sending(receiver.endpoint, protocol, headers=headers) as exporter:
        receiver.behaviour = (lambda _: (1, text)) if protocol == "grpc" else partial(1, text)
        message = exporter.export(items("traces", 2)).said
        assert message.startswith("[31m you sent *** *** xxx")
        assert message.isprintable()
        assert len(message) == 200


@pytest.mark.parametrize("code", [200, 202, 204, 299])
@pytest.mark.parametrize("content_type", [None, "text/html", "application/json"])
@pytest.mark.parametrize("protocol", ["http/protobuf", "http/json"])
def test_an_empty_success_is_a_success(protocol: Protocol, code: int, content_type: str | None):
    """Whatever its type and its status."""
    with FaultyReceiver(page(code, content_type)) as receiver:
        assert outcome_of(receiver, protocol) == taken(2)


def grpc_answer(answer: bytes) -> Any:
    """Return the behaviour of a gRPC receiver that gives this answer."""
    return lambda _: answer


@each_protocol
def test_a_success_that_cannot_be_read_is_a_success(protocol: Protocol):
    """The receiver has said that it is one; what follows changes nothing, and nothing is sent twice."""
    with receiving(protocol) as receiver, sending(receiver.endpoint, protocol) as exporter:
        receiver.behaviour = grpc_answer(b"\xff\x00<html>") if protocol == "grpc" else garbage
        assert exporter.export(items("traces", 2)) == taken(2)
        assert len(receiver.requests) == 1


@given(st.binary(max_size=100), st.sampled_from(SIGNALS), st.booleans())
def test_any_answer_can_be_read(body: bytes, signal: Signal, is_json: object):
    """Reading an answer never raises."""
    assert accepted(body, 1, signal, Headers(), is_json=bool(is_json)).verdict is Verdict.TAKEN
    for content_type in ("text/plain", "text/html", "application/json", "application/x-protobuf", ""):
        assert len(explanation(body, content_type, Headers())) <= 200


@pytest.mark.parametrize(
    "body", [b'{"partialSuccess":' * 5000, b'{"partialSuccess":{"rejectedSpans":1e999}}',
             b'{"partialSuccess":{"rejectedSpans":' + b"9" * 5000 + b"}}", b"[]", b"null", b'"text"', b"\xff"]
)  # fmt: skip
def test_json_that_is_no_answer_is_as_good_as_none(body: bytes):
    """However deep, large or odd."""
    assert accepted(body, 1, "traces", Headers(), is_json=True) == taken(1)


def test_a_short_value_of_a_header_is_no_secret():
    """It stands in any text by chance, as the number of a tenant does."""
    assert clean("tenant 1 has 10 too many", Headers([("x-scope-orgid", "1")])) == "tenant 1 has 10 too many"


@given(st.text(max_size=600), st.text(min_size=8, max_size=30))
def test_clean_text_is_one_short_line_without_secrets(text: str, value: str):
    """Whatever the text and the secret are, as long as it is long enough to be told from other words."""
    line = clean(f"{text}{value}{text}", Headers([("key", value)]))
    assert len(line) <= 200
    assert not line or line.isprintable()
    if value.strip() == value and value.isprintable() and value.isascii() and value not in text:
        assert value not in line


def peak_bytes(exporter: OtlpExporter) -> int:
    """Export two spans successfully and return how much memory that took."""
    exporter.export(items("traces", 2))  # so that everything is imported
    gc.collect()
    tracemalloc.start()
    try:
        assert exporter.export(items("traces", 2)) == taken(2)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("behaviour", [huge(2 << 30), gzip_bomb(64 << 20)], ids=["2 GB", "gzip bomb"])
def test_an_answer_does_not_fill_the_memory(behaviour: Behaviour):
    """At most 64 KiB of it are read, and nothing is decompressed; the receiver runs in this process too."""
    with FaultyReceiver(behaviour) as receiver, sending(receiver.endpoint) as exporter:
        assert peak_bytes(exporter) < 1 << 20
        assert len(receiver.requests) == 2


def test_a_large_answer_over_grpc_is_not_taken_for_a_refusal():
    """The library gives up at 4 MiB, and says so as if the request were too large."""
    with FaultyGrpcReceiver(lambda _: (0, "x" * (5 << 20))) as receiver:
        check_kept(outcome_of(receiver, "grpc"), None)
        assert len(receiver.requests) == 1


# Time


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Fail if what is done takes longer."""
    start = time.monotonic()
    yield
    assert time.monotonic() - start < seconds


def test_headers_that_drip_do_not_hold_up_the_caller():
    """One deadline rules the whole request; the data is kept."""
    with FaultyReceiver(drip(0.02)) as receiver, within(10):
        outcome = outcome_of(receiver, timeout_s=0.4)
        check_kept(outcome, None)
        assert outcome.message.startswith("no answer within 0.4 s")


def test_a_body_that_drips_does_not_hold_up_the_caller():
    """The status has said that it is a success."""
    with FaultyReceiver(drip(0.02, where="body")) as receiver, within(20):
        assert outcome_of(receiver, timeout_s=1.5) == taken(2)


@pytest.mark.parametrize("is_tls", [False, True])
def test_a_receiver_that_reads_slowly_does_not_hold_up_the_caller(is_tls: object, authority: Authority):
    """Neither in plain text nor over TLS, where every 16 KiB are a record of their own."""
    tls = server_context(authority) if is_tls else None
    with FaultyReceiver(read_interval_s=0.005, tls=tls) as receiver, within(12):
        settings = OtlpSettings("traces", receiver.endpoint, certificate=str(authority.certificate), timeout_s=1.0)
        with closing(HttpTransport(settings)) as transport:
            answer = transport.send(bytes(64 << 20), 1)
        assert answer == Outcome(Verdict.FAILED, f"no answer within 1 s (127.0.0.1:{receiver.port})")


@pytest.mark.parametrize("behaviour", [hang, blackhole])
def test_an_http_receiver_that_does_not_answer_is_left(behaviour: Behaviour):
    """After the time-out; the data is kept."""
    with FaultyReceiver(behaviour) as receiver, within(10):
        outcome = outcome_of(receiver, timeout_s=0.3)
        check_kept(outcome, None)
        assert outcome.message == f"no answer within 0.3 s (127.0.0.1:{receiver.port})"


def test_a_grpc_receiver_that_does_not_answer_is_left():
    """After the time-out; the data is kept."""
    with FaultyGrpcReceiver() as receiver, within(10):
        receiver.behaviour = grpc_hang(receiver)
        outcome = outcome_of(receiver, "grpc", timeout_s=0.3)
        check_kept(outcome, None)
        assert "DEADLINE_EXCEEDED" in outcome.message


@pytest.fixture
def black_hole() -> Iterator[int]:
    """Return a loopback port that drops whoever wants to connect, because its queue is full."""
    with ExitStack() as stack:
        port = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0)).getsockname()[1]
        for _ in range(8):
            waiting = stack.enter_context(socket.socket())
            waiting.settimeout(0.3)
            if waiting.connect_ex(("127.0.0.1", port)):
                yield port
                return
        pytest.fail("the queue of a port does not get full")


@over_both
def test_a_black_hole_is_left(protocol: Protocol, black_hole: int):
    """After the time-out, though nobody has refused the connection."""
    with within(10), sending(f"http://127.0.0.1:{black_hole}", protocol, timeout_s=0.5) as exporter:
        check_kept(exporter.export(items("traces", 2)), None)


def test_an_address_that_swallows_packets_does_not_hide_the_next(black_hole: int, monkeypatch: pytest.MonkeyPatch):
    """A host may have an IPv6 address that does not work; each address has its share of the time."""
    with FaultyReceiver() as receiver:
        ports = (black_hole, receiver.port)
        addresses = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)) for port in ports]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: addresses)
        assert outcome_of(receiver, timeout_s=3.0) == taken(2)


# Connections


@over_both
def test_a_refused_connection_keeps_the_data(protocol: Protocol):
    """Nobody listens; that may change."""
    (port,) = free_ports(1)
    with sending(f"http://127.0.0.1:{port}", protocol) as exporter:
        outcome = exporter.export(items("traces", 2))
    check_kept(outcome, None)
    assert outcome.verdict is Verdict.LATER  # no item can be to blame
    assert f"127.0.0.1:{port}" in outcome.message


def test_a_connection_that_is_reset_keeps_the_data():
    """In the middle of a request."""
    with FaultyReceiver(reset) as receiver:
        check_kept(outcome_of(receiver), None)


def test_a_peer_that_does_not_speak_grpc_keeps_the_data():
    """An HTTP receiver, asked over gRPC, cuts the connection."""
    with FaultyReceiver() as receiver:
        check_kept(outcome_of(receiver, "grpc", timeout_s=5.0), None)


@pytest.mark.parametrize(
    ("there", "asked", "scheme", "remedy"),
    [
        ("grpc", "http/protobuf", "http", "set OTEL_EXPORTER_OTLP_PROTOCOL=grpc"),
        ("http/protobuf", "grpc", "http", "set OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf"),
        ("http/protobuf", "http/protobuf", "https", "let OTEL_EXPORTER_OTLP_ENDPOINT begin with http://"),
        ("grpc", "grpc", "https", "let OTEL_EXPORTER_OTLP_ENDPOINT begin with http://"),
    ],
)
def test_another_protocol_is_told_with_the_remedy(there: Protocol, asked: Protocol, scheme: str, remedy: str):
    """The right host and a wrong port or scheme: the data is kept."""
    with receiving(there) as receiver:
        endpoint = f"{scheme}://127.0.0.1:{receiver.port}"
        with sending(endpoint, asked, timeout_s=5.0, insecure=scheme == "http") as exporter:
            outcome = exporter.export(items("traces", 2))
    assert outcome.verdict in (Verdict.WRONG, Verdict.LATER)
    assert remedy in outcome.message


@over_both
def test_an_unknown_host_keeps_the_data(protocol: Protocol):
    """A name server may be ill for a while."""
    with sending("http://periflow.invalid:4318", protocol, timeout_s=5.0) as exporter:
        check_kept(exporter.export(items("traces", 2)), None)


@pytest.mark.parametrize("lost", [reset, hang, status(503)], ids=["reset", "hang", "503"])
def test_an_answer_that_is_lost_leads_to_the_same_request_again(lost: Behaviour):
    """The receiver may have it twice then; the ids are the same, so that it can tell."""
    with FaultyReceiver(accept_then(lost)) as receiver, sending(receiver.endpoint, timeout_s=1.5) as exporter:
        check_kept(exporter.export(items("traces", 2)), None)
        receiver.behaviour = page(200, None)
        assert exporter.export(items("traces", 2)) == taken(2)
        first, second = receiver.requests
        assert first.content == second.content
        assert receiver.span_ids() == {1, 2}


def test_one_connection_serves_many_requests():
    """It stays open between them, over TLS too: to open one takes longer than the request."""
    with FaultyReceiver() as receiver, sending(receiver.endpoint) as exporter:
        for _ in range(4):
            assert exporter.export(items("traces", 2)) == taken(2)
        assert receiver.connections == 1


def test_a_connection_that_the_receiver_has_closed_is_replaced():
    """Between two requests that is nobody's fault, and nothing has to be tried twice."""
    with FaultyReceiver() as receiver:
        settings = OtlpSettings("traces", f"{receiver.endpoint}/v1/traces")
        transport = HttpTransport(settings)
        with closing(OtlpExporter(settings, transport=transport)) as exporter:
            assert exporter.export(items("traces", 2)) == taken(2)
            receiver.cut()
            wait_until(lambda: transport._socket is not None and transport._socket.has_news())
            assert exporter.export(items("traces", 2)) == taken(2)
        assert receiver.connections == len(receiver.requests) == 2


@pytest.mark.parametrize(
    "behaviour",
    [
        lambda exchange: (exchange.accept(), exchange.reply(200, b"", {"connection": "close"})),
        in_turn(huge(1 << 20), page(200, None)),
        in_turn(page(200, "application/x-protobuf", "x" * 100_000), page(200, None)),
    ],
    ids=["close", "huge", "large"],
)
def test_a_connection_that_is_of_no_more_use_is_replaced(behaviour: Behaviour):
    """One that the receiver wants closed, or on which the rest of a large answer waits."""
    with FaultyReceiver(behaviour) as receiver, sending(receiver.endpoint) as exporter:
        for _ in range(2):
            assert exporter.export(items("traces", 2)) == taken(2)
        assert receiver.connections == 2


@over_both
def test_a_receiver_that_was_restarted_is_used_at_once(protocol: Protocol):
    """The first request after it is back succeeds; gRPC alone would still wait."""
    (port,) = free_ports(1)
    with sending(f"http://127.0.0.1:{port}", protocol) as exporter:
        for _ in range(2):
            check_kept(exporter.export(items("traces", 2)), None)
            with receiving(protocol, port=port) as receiver:
                assert exporter.export(items("traces", 2)) == taken(2)
                assert received(receiver) == item_names("traces", 0, 1)


# Size


def fat_spans(count: int, kilobytes: int) -> list[tuple[RankRun, Span]]:
    """Return spans of a size."""
    return [span(number, **{f"key-{key}": "x" * 1024 for key in range(kilobytes)}) for number in range(count)]


@over_both
def test_no_request_is_larger_than_a_receiver_takes(protocol: Protocol):
    """Six megabytes are two requests, in order."""
    with receiving(protocol) as receiver, sending(receiver.endpoint, protocol) as exporter:
        assert deliver(exporter, fat_spans(500, 12)) == Account(500)
        assert len(receiver.requests) == 2
        assert max(each.size_bytes for each in receiver.requests) <= MAX_REQUEST_BYTES
        assert received(receiver) == item_names("traces", *range(500))


@over_both
def test_a_receiver_with_a_lower_limit_gets_smaller_requests(protocol: Protocol):
    """It refuses a body and cuts the connection before it has read all, and so the body is cut in two."""
    with receiving(protocol, max_body_bytes=2_500_000) as receiver, sending(receiver.endpoint, protocol) as exporter:
        assert deliver(exporter, fat_spans(325, 12)) == Account(325)
        assert received(receiver) == item_names("traces", *range(325))
        assert len(receiver.requests) <= 3


@over_both
def test_an_item_that_is_too_large_is_set_aside_alone(protocol: Protocol):
    """The receiver decides."""
    with receiving(protocol, max_body_bytes=4 << 20) as receiver, sending(receiver.endpoint, protocol) as exporter:
        account = deliver(exporter, [span(0), *fat_spans(2, 4500)[1:], span(2)])
        assert account == Account(2, Counter(), Counter(too_large=1))
        assert received(receiver) == item_names("traces", 0, 2)


def test_an_item_that_is_too_large_for_rust_is_set_aside_alone(collector: Collector, tmp_path: Path):
    """The gRPC server of other languages has other words for it."""
    with Rotel(tmp_path / "rotel", collector.http_endpoint) as rotel, sending(rotel.grpc_endpoint, "grpc") as exporter:
        account = deliver(exporter, [span(0), *fat_spans(2, 4500)[1:], span(2)])
        assert account == Account(2, Counter(), Counter(too_large=1))


@each_protocol
@pytest.mark.parametrize(("compression", "most_bytes"), [("gzip", 20_000), ("none", math.inf)])
def test_compression_is_really_used(protocol: Protocol, compression: str, most_bytes: float):
    """What passes a proxy is small with gzip, and large without."""
    tunnel = Tunnel()
    with receiving(protocol) as receiver, ExitStack() as stack:
        endpoint = receiver.endpoint
        if protocol == "grpc":
            proxy = stack.enter_context(FaultyReceiver(tunnel)).endpoint
            exporter = stack.enter_context(sending(endpoint, protocol, compression=compression, proxy=proxy))
        else:
            exporter = stack.enter_context(sending(endpoint, protocol, compression=compression))
        assert exporter.export(fat_spans(100, 1)) == taken(100)
        size_bytes = tunnel.sent_bytes if protocol == "grpc" else receiver.requests[0].size_bytes
        assert (size_bytes < 20_000) == (compression == "gzip")
        assert size_bytes <= most_bytes
        assert received(receiver) == item_names("traces", *range(100))


# TLS


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """Return an authority that issues certificates."""
    return Authority(tmp_path / "authority")


def server_context(
    authority: Authority, alternative_name: str = "IP:127.0.0.1", client_authority: Authority | None = None
) -> ssl.SSLContext:
    """Return the TLS of an HTTP receiver; with a ``client_authority``, clients must have a certificate of it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue("server", alternative_name))
    if client_authority is not None:
        context.load_verify_locations(client_authority.certificate)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def server_tls(protocol: Protocol, authority: Authority, *arguments: Any) -> Any:
    """Return the TLS of a receiver."""
    if protocol != "grpc":
        return server_context(authority, *arguments)
    alternative_name, client_authority = (*arguments, None, None)[:2]
    certificate, key = authority.issue("server", alternative_name or "IP:127.0.0.1")
    return grpc.ssl_server_credentials(
        [(key.read_bytes(), certificate.read_bytes())],
        client_authority and client_authority.certificate.read_bytes(),
        require_client_auth=client_authority is not None,
    )


@over_both
def test_the_certificate_of_ones_own_authority_is_accepted(protocol: Protocol, authority: Authority):
    """Where the variable names it; one connection serves many requests here too."""
    with receiving(protocol, tls=server_tls(protocol, authority)) as receiver:
        with sending(receiver.endpoint, protocol, certificate=str(authority.certificate)) as exporter:
            for _ in range(4):
                assert exporter.export(items("traces", 2)) == taken(2)
        assert len(receiver.requests) == 4
        assert protocol == "grpc" or receiver.connections == 1


@over_both
@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "SSL_CERT_DIR"])
def test_an_authority_that_the_machine_trusts_is_accepted(
    protocol: Protocol, variable: str, authority: Authority, monkeypatch: pytest.MonkeyPatch
):
    """Whatever the protocol: the variables stand for what its owner has put among the system's certificates."""
    place = authority.certificate if variable == "SSL_CERT_FILE" else authority.hashed_folder()
    monkeypatch.setenv(variable, str(place))
    with receiving(protocol, tls=server_tls(protocol, authority)) as receiver:
        assert outcome_of(receiver, protocol) == taken(2)


def test_grpc_trusts_what_the_system_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Each once, wherever it is found, and what gRPC's own variable names; without any, gRPC's own list stands."""
    authorities = [Authority(tmp_path / name) for name in ("one", "two", "three")]
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes(b"# words\n".join(each.certificate.read_bytes() for each in authorities))
    monkeypatch.setenv("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", str(authorities[2].certificate))
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    monkeypatch.setenv("SSL_CERT_DIR", f"{authorities[0].hashed_folder()}:{tmp_path / 'none'}")
    settings = OtlpSettings("traces", "https://host", protocol="grpc")
    found = trusted_roots(settings)
    assert found is not None
    assert found.split() == bundle.read_bytes().replace(b"# words\n", b"").split()
    for variable in ("SSL_CERT_FILE", "SSL_CERT_DIR", "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"):
        monkeypatch.setenv(variable, str(tmp_path / "none"))
    assert trusted_roots(settings) is None


@over_both
def test_an_authority_that_does_not_state_its_usage_is_accepted(protocol: Protocol, tmp_path: Path):
    """Also by Pythons that refuse it by themselves: many private authorities are older than the rule."""
    authority = Authority(tmp_path / "old", states_usage=False)
    with receiving(protocol, tls=server_tls(protocol, authority)) as receiver:
        assert outcome_of(receiver, protocol, certificate=str(authority.certificate)) == taken(2)


@over_both
def test_an_authority_may_be_trusted_without_the_one_above(protocol: Protocol, authority: Authority, tmp_path: Path):
    """The file may name the one that issued the certificate alone."""
    below = Authority(tmp_path / "below", authority)
    with receiving(protocol, tls=server_tls(protocol, below)) as receiver:
        assert outcome_of(receiver, protocol, certificate=str(below.certificate)) == taken(2)


@over_both
def test_an_unknown_authority_is_refused(protocol: Protocol, authority: Authority, tmp_path: Path):
    """The data is kept until somebody mends it, and the receiver gets none of it."""
    other = Authority(tmp_path / "other")
    with receiving(protocol, tls=server_tls(protocol, authority)) as receiver:
        for fields in ({}, {"certificate": str(other.certificate)}):
            outcome = outcome_of(receiver, protocol, **fields)
            check_kept(outcome, 60)
            assert "the certificate was not accepted" in outcome.message
        assert receiver.requests == []


@over_both
def test_a_certificate_of_another_host_is_refused(protocol: Protocol, authority: Authority):
    """The data is kept until somebody mends it."""
    with receiving(protocol, tls=server_tls(protocol, authority, "DNS:other.example")) as receiver:
        outcome = outcome_of(receiver, protocol, certificate=str(authority.certificate))
        check_kept(outcome, 60)
        assert "the certificate was not accepted" in outcome.message
        assert receiver.requests == []


@over_both
@pytest.mark.parametrize("is_one_file", [False, True])
def test_a_client_shows_its_certificate(protocol: Protocol, is_one_file: object, authority: Authority, tmp_path: Path):
    """Where the receiver asks for it; the key may stand in the same file."""
    certificate, key = authority.issue("client")
    if is_one_file:
        both = tmp_path / "both.pem"
        both.write_text(key.read_text() + certificate.read_text())
        certificate = key = both
    files = {"certificate": str(authority.certificate), "client_certificate": str(certificate), "client_key": str(key)}
    with receiving(protocol, tls=server_tls(protocol, authority, "IP:127.0.0.1", authority)) as receiver:
        assert outcome_of(receiver, protocol, **files) == taken(2)


@over_both
def test_a_client_without_a_certificate_is_refused(protocol: Protocol, authority: Authority):
    """The data is kept."""
    with receiving(protocol, tls=server_tls(protocol, authority, "IP:127.0.0.1", authority)) as receiver:
        outcome = outcome_of(receiver, protocol, certificate=str(authority.certificate), timeout_s=5.0)
        assert outcome.verdict is not Verdict.TAKEN
        assert receiver.requests == []


@over_both
def test_a_certificate_file_that_has_gone_keeps_the_data(protocol: Protocol, authority: Authority):
    """It was there at ``init``, and may come back."""
    certificate = authority.certificate
    with (
        receiving(protocol, tls=server_tls(protocol, authority)) as receiver,
        sending(receiver.endpoint, protocol, certificate=str(certificate)) as exporter,
    ):
        moved = certificate.rename(certificate.with_name("moved"))
        outcome = exporter.export(items("traces", 2))
        assert outcome.verdict is not Verdict.TAKEN
        moved.rename(certificate)
        assert exporter.export(items("traces", 2)) == taken(2)


# Proxies


@over_both
def test_tls_goes_through_the_proxy(protocol: Protocol, authority: Authority):
    """Which is told the receiver's address and its own password, and nothing else."""
    with receiving(protocol, tls=server_tls(protocol, authority)) as receiver, FaultyReceiver(Tunnel()) as proxy:
        address = proxy.endpoint.replace("http://", "http://us%20er:pass@")
        fields = {"certificate": str(authority.certificate), "headers": Headers([("authorization", CANARY)])}
        with sending(receiver.endpoint, protocol, proxy=address, **fields) as exporter:
            for _ in range(2):
                assert exporter.export(items("traces", 2)) == taken(2)
        (asked,) = proxy.requests
        assert asked.path == f"127.0.0.1:{receiver.port}"
        assert asked.headers["proxy-authorization"] == "Basic dXMgZXI6cGFzcw=="
        assert CANARY not in str(asked.headers)
        assert {each.headers["authorization"] for each in receiver.requests} == {CANARY}


@over_both
@pytest.mark.parametrize("behaviour", [status(407), status(502), reset, hang, drip(0.02)],
                         ids=["407", "502", "reset", "hang", "drip"])  # fmt: skip
def test_a_proxy_in_trouble_keeps_the_data(protocol: Protocol, behaviour: Behaviour):
    """One deadline rules the talk with the proxy too; its password stays out of the message."""
    with FaultyReceiver(behaviour) as proxy, within(15):
        address = proxy.endpoint.replace("http://", f"http://user:{CANARY}@")
        with sending("https://periflow.invalid", protocol, proxy=address, timeout_s=1.0) as exporter:
            outcome = exporter.export(items("traces", 2))
        check_kept(outcome, None)
        assert CANARY not in outcome.message
        wait_until(lambda: len(proxy.requests) == 1)


@over_both
def test_plain_text_goes_past_every_proxy(protocol: Protocol, monkeypatch: pytest.MonkeyPatch):
    """A proxy for the web has nothing to do with the Collector of the host, whatever gRPC thinks."""
    with FaultyReceiver(Tunnel()) as proxy, receiving(protocol) as receiver:
        for name in ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy"):
            monkeypatch.setenv(name, proxy.endpoint)
        assert outcome_of(receiver, protocol) == taken(2)
        assert proxy.connections == 0


@pytest.mark.parametrize("target", ["unix://{}/otel.sock", "unix:{}/otel.sock", "unix-abstract:{}"])
def test_grpc_reaches_a_socket_of_this_machine(target: str, tmp_path: Path):
    """As a Collector of the pod may offer it, with no network at all."""
    target = target.format(tmp_path)
    with FaultyGrpcReceiver(socket_target=target) as receiver:
        with closing(OtlpExporter(OtlpSettings("traces", target, "grpc", insecure=True))) as exporter:
            assert exporter.export(items("traces", 2)) == taken(2)
        assert received(receiver) == item_names("traces", 0, 1)


# Secrets


def test_a_netrc_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A password for this host, left there for another program, is not sent."""
    netrc = tmp_path / ".netrc"
    netrc.write_text(f"machine 127.0.0.1 login user password {CANARY}\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(netrc))
    with FaultyReceiver() as receiver:
        assert outcome_of(receiver) == taken(2)
        assert "authorization" not in receiver.requests[0].headers


def tokens(receiver: Receiver) -> list[str]:
    """Return what each request showed."""
    return [each.headers["authorization"] for each in receiver.requests]


@over_both
def test_a_token_in_a_file_is_read_again_when_it_changes(
    protocol: Protocol, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """The next request has the new one; while the file is away or half written, the old one is as good as any."""
    file = tmp_path / "headers"
    file.write_text("Authorization=Bearer old=1\n\nx-tenant = a\n")
    fields = {"headers": Headers([("authorization", "Bearer fixed"), ("x-more", "1")]), "headers_file": str(file)}
    with receiving(protocol) as receiver, sending(receiver.endpoint, protocol, **fields) as exporter:
        for content in (None, "authorization=Bearer new\n", "", f"{CANARY}\n", "gone", "authorization=Bearer newest"):
            if content == "gone":
                file.unlink()
            elif content is not None:
                file.write_text(content)
            assert exporter.export(items("traces", 1)) == taken(1)
        assert tokens(receiver) == ["Bearer old=1", *4 * ["Bearer new"], "Bearer newest"]
        assert (receiver.requests[0].headers["x-tenant"], receiver.requests[0].headers["x-more"]) == ("a", "1")
        assert "x-tenant" not in receiver.requests[1].headers
    assert "what the file held before is sent" in caplog.text
    assert CANARY not in caplog.text


@over_both
@pytest.mark.parametrize("content", [None, "", CANARY, f"a b={CANARY}"])
def test_a_file_without_a_token_keeps_the_data(protocol: Protocol, content: str | None, tmp_path: Path):
    """Nothing is sent without, and the message names the variable and no value."""
    if content is not None:
        (tmp_path / "headers").write_text(content)
    with receiving(protocol) as receiver:
        outcome = outcome_of(receiver, protocol, headers_file=str(tmp_path / "headers"))
        check_kept(outcome, 60)
        assert "PERIFLOW_OTLP_HEADERS_FILE" in outcome.message
        assert CANARY not in outcome.message
        assert receiver.requests == []


@over_both
def test_a_token_in_a_file_is_never_shown(protocol: Protocol, tmp_path: Path):
    """Not even if the receiver sends it back."""
    file = tmp_path / "headers"
    file.write_text(f"authorization=Bearer {CANARY}")
    with receiving(protocol) as receiver:
        text = f"bad token {CANARY}"
        is_grpc = protocol == "grpc"
        receiver.behaviour = (
            fail_with(grpc.StatusCode.UNAUTHENTICATED, text) if is_grpc else page(401, "text/plain", text)
        )
        outcome = outcome_of(receiver, protocol, headers_file=str(file))
        assert "bad token ***" in outcome.message


def test_a_secret_in_the_query_is_sent_and_never_shown(caplog: pytest.LogCaptureFixture):
    """Some receivers take their key there; they may say it back."""
    caplog.set_level(logging.DEBUG)
    with FaultyReceiver(page(403, "text/plain", f"bad key {CANARY}")) as receiver:
        settings = OtlpSettings("traces", f"{receiver.endpoint}/v1/traces?api-key={CANARY}")
        with closing(OtlpExporter(settings)) as exporter:
            outcome = exporter.export(items("traces", 1))
            assert CANARY not in f"{outcome} {exporter!r} {vars(exporter)!r} {settings} {settings.place}{caplog.text}"
        assert "bad key ***" in outcome.message
        assert receiver.requests[0].path == f"/v1/traces?api-key={CANARY}"


@over_both
@pytest.mark.parametrize("value", [f"Bearer {CANARY}", f"Bearer {CANARY}\nx: y", f"{CANARY}é", f"{CANARY}\0"])
@pytest.mark.parametrize("name", ["authorization", "key-bin"])
def test_a_token_is_never_shown(
    protocol: Protocol, name: str, value: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
):
    """Not if it cannot be sent, and not if the receiver sends it back: nowhere in a log, a message or a ``repr``."""
    caplog.set_level(logging.DEBUG)
    text = f"bad token {value}"
    answers: list[Any] = [status(400, message=text), page(400, "text/plain", text), partial(1, text),
                          page(200, None, text), status(401, message=text), reset]  # fmt: skip
    if protocol == "grpc":
        printable = text.replace("\0", "").replace("\n", "").replace("é", "")
        answers = [fail_with(grpc.StatusCode.INVALID_ARGUMENT, printable), lambda _: (1, text),
                   fail_with(grpc.StatusCode.UNAUTHENTICATED, printable), grpc_answer(text.encode())]  # fmt: skip
    headers = Headers([(name, value)])
    with receiving(protocol) as receiver, sending(receiver.endpoint, protocol, headers=headers) as exporter:
        for answer in answers:
            receiver.behaviour = answer
            outcome = exporter.export(items("traces", 2))
            assert CANARY not in f"{outcome} {exporter!r} {vars(exporter)!r} {headers}"
    assert CANARY not in caplog.text
    assert CANARY not in "".join(capfd.readouterr())


# The variables take effect


def from_environ(**environ: str) -> OtlpExporter:
    """Return the exporter of spans as it is configured."""
    settings = ExportSettings.from_environ({"PERIFLOW_ENABLED": "1", **environ}).otlp["traces"]
    assert settings is not None
    return OtlpExporter(settings)


@over_both
@pytest.mark.parametrize("infix", ["", "TRACES_"])
def test_headers_arrive(protocol: Protocol, infix: str):
    """Those of the variable, decoded, and our own."""
    environ = {
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        f"OTEL_EXPORTER_OTLP_{infix}HEADERS": "authorization=Bearer%20token, X-Tenant=7",
    }
    with receiving(protocol) as receiver:
        with closing(from_environ(OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint, **environ)) as exporter:
            assert exporter.export(items("traces", 2)) == taken(2)
        headers = receiver.requests[0].headers
        assert (headers["authorization"], headers["x-tenant"]) == ("Bearer token", "7")
        assert headers["user-agent"].startswith("periflow_otel/")


def test_a_header_cannot_break_the_framing():
    """What describes the body is ours to say."""
    wrong = "content-length=3,transfer-encoding=chunked,content-encoding=br,content-type=text/plain"
    with FaultyReceiver() as receiver:
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint, "OTEL_EXPORTER_OTLP_HEADERS": wrong}
        with closing(from_environ(**environ)) as exporter:
            assert exporter.export(items("traces", 2)) == taken(2)
        assert received(receiver) == item_names("traces", 0, 1)
        headers = receiver.requests[0].headers
        assert headers["content-type"] == "application/x-protobuf"
        assert headers.keys().isdisjoint({"transfer-encoding", "content-encoding"})


@pytest.mark.parametrize(
    ("name", "path", "expected"),
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "", "/v1/traces"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "/a/", "/a/v1/traces"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "/a?b=c", "/a/v1/traces?b=c"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "/my-traces/?b=c", "/my-traces/?b=c"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "?traces", "/?traces"),
    ],
)
def test_the_path_is_that_of_the_endpoint(name: str, path: str, expected: str):
    """With that of the signal added to the general one only."""
    with FaultyReceiver() as receiver:
        with closing(from_environ(**{name: receiver.endpoint + path})) as exporter:
            assert exporter.export(items("traces", 2)) == taken(2)
        assert receiver.requests[0].path == expected
        assert receiver.requests[0].headers["host"] == f"127.0.0.1:{receiver.port}"


@pytest.mark.parametrize(
    ("protocol", "content_type"),
    [("http/protobuf", "application/x-protobuf"), ("http/json", "application/json")],
)
@pytest.mark.parametrize(("compression", "encoding"), [("gzip", "gzip"), ("none", None)])
def test_protocol_and_compression_take_effect(
    protocol: Protocol, content_type: str, compression: str, encoding: str | None
):
    """The receiver sees what it must know to read the request."""
    with FaultyReceiver() as receiver:
        environ = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint,
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": protocol,
            "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION": compression,
        }
        with closing(from_environ(**environ)) as exporter:
            assert exporter.export(items("traces", 2)) == taken(2)
        headers = receiver.requests[0].headers
        assert (headers["content-type"], headers.get("content-encoding")) == (content_type, encoding)


@over_both
def test_the_time_out_takes_effect(protocol: Protocol):
    """In milliseconds."""
    with receiving(protocol) as receiver, within(10):
        receiver.behaviour = grpc_hang(receiver) if isinstance(receiver, FaultyGrpcReceiver) else hang
        environ = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
            "OTEL_EXPORTER_OTLP_TIMEOUT": "300",
        }
        with closing(from_environ(**environ)) as exporter:
            check_kept(exporter.export(items("traces", 2)), None)


@pytest.mark.parametrize(("insecure", "delivered"), [("true", 2), ("false", 0)])
def test_insecure_takes_effect(insecure: str, delivered: int):
    """Without a scheme, gRPC is TLS unless the variable says otherwise."""
    with FaultyGrpcReceiver() as receiver:
        environ = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"127.0.0.1:{receiver.port}",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
            "OTEL_EXPORTER_OTLP_INSECURE": insecure,
        }
        with closing(from_environ(**environ)) as exporter:
            assert exporter.export(items("traces", 2)).done == delivered


@over_both
def test_certificates_and_proxies_take_effect(protocol: Protocol, authority: Authority):
    """A receiver with mutual TLS behind a proxy is reached by variables alone."""
    certificate, key = authority.issue("client")
    tls = server_tls(protocol, authority, "IP:127.0.0.1", authority)
    with receiving(protocol, tls=tls) as receiver, FaultyReceiver(Tunnel()) as proxy:
        environ = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
            "OTEL_EXPORTER_OTLP_CERTIFICATE": str(authority.certificate),
            "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": str(certificate),
            "OTEL_EXPORTER_OTLP_CLIENT_KEY": str(key),
            "https_proxy": proxy.endpoint,
        }
        for excepted, requests in (("", 1), ("127.0.0.1", 1)):
            with closing(from_environ(**environ, no_proxy=excepted)) as exporter:
                assert exporter.export(items("traces", 2)) == taken(2)
            assert len(proxy.requests) == requests
