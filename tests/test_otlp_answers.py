"""What answers mean: the table, the words of servers, and who is a receiver at all."""

import gzip
import os
import re
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, NoReturn

import grpc
import pytest
from faulty_receiver import Behaviour, Exchange, FaultyReceiver, ok, page, redirect, status
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2
from recorder import make_run
from telemetry import make_span

from periflow_otel.config.endpoints import OtlpSettings, Protocol
from periflow_otel.config.headers import Headers
from periflow_otel.exporters import Outcome, Verdict, taken
from periflow_otel.exporters.otlp import OtlpExporter
from periflow_otel.exporters.otlp_answers import TABLE, judge_code, judge_status, pause_s, with_remedy

ITEMS: list[Any] = [(make_run(), make_span())]
REFUSAL = b"\x0a\x02\x08\x01"
"""A partial success that takes one item out."""
ARCHITECTURE = Path(__file__).parents[1] / "docs" / "architecture.md"


def answer(behaviour: Behaviour, protocol: Protocol = "http/protobuf", headers: Headers | None = None) -> Outcome:
    """Return what is made of the answer to one span."""
    with FaultyReceiver(behaviour) as receiver:
        settings = OtlpSettings("traces", f"{receiver.endpoint}/v1/traces", protocol, headers or Headers())
        with closing(OtlpExporter(settings)) as exporter:
            return exporter.export(ITEMS)


def test_every_answer_is_in_one_row():
    """Otherwise the order of the rows would decide."""
    for answers in ([each for row in TABLE for each in row.http], [each for row in TABLE for each in row.grpc]):
        assert len(answers) == len(set(answers))


def test_the_table_of_the_documentation_is_the_one_of_the_code():
    """Each status and each code stands in the row of its verdict."""
    rows = re.findall(r"^\| .* \| `([a-z_]+)` \|$", ARCHITECTURE.read_text("utf-8"), re.MULTILINE)
    lines = [line for line in ARCHITECTURE.read_text("utf-8").splitlines() if re.search(r"\| `[a-z_]+` \|$", line)]
    assert {*rows} == {each.value for each in Verdict}
    for row in TABLE:
        told = " ".join(line for line in lines if line.endswith(f"| `{row.verdict.value}` |"))
        for each in (*map(str, row.http if len(row.http) < 20 else ()), *row.grpc):
            assert re.search(rf"\b{each}\b", told), f"{each} is not told as {row.verdict.value}"


TOO_LARGE = [
    ("RESOURCE_EXHAUSTED", "Received message larger than max (5000000 vs. 4194304)"),
    ("RESOURCE_EXHAUSTED", "grpc: received message larger than max (5000000 vs. 4194304)"),
    ("RESOURCE_EXHAUSTED", "gRPC message exceeds maximum size 4194304: 5000000"),
    ("RESOURCE_EXHAUSTED", "Received message exceeds the maximum configured message size."),
    ("OUT_OF_RANGE", "Error, decoded message length too large: found 5000000 bytes, the limit is: 4194304 bytes"),
    ("UNKNOWN", "Received http2 header with status: 413"),
    ("INTERNAL", "Payload Too Large"),
    ("CANCELLED", "client intended to send too large body"),
]


@pytest.mark.parametrize(("code", "details"), TOO_LARGE)
def test_too_large_is_recognised_in_the_words_of_many(code: str, details: str):
    """Of gRPC in Python, Go, Java, .NET and Rust, and of proxies."""
    assert judge_code(code, "host", details, None).verdict is Verdict.TOO_LARGE


@pytest.mark.parametrize(
    ("details", "retry_after_s", "verdict"),
    [
        ("ingestion rate limit exceeded", None, Verdict.LATER),
        ("quota exceeded", None, Verdict.LATER),
        ("full", 3.0, Verdict.LATER),
        ("something", None, Verdict.FAILED),
        ("CLIENT: Received message larger than max (5 vs. 4)", None, Verdict.FAILED),
    ],
)
def test_a_receiver_that_has_enough_is_no_request_that_is_too_large(
    details: str, retry_after_s: float | None, verdict: Verdict
):
    """Though gRPC has one code for both."""
    assert judge_code("RESOURCE_EXHAUSTED", "host", details, retry_after_s).verdict is verdict


@pytest.mark.parametrize(("code", "verdict"), [("UNAVAILABLE", Verdict.LATER), ("UNAUTHENTICATED", Verdict.WRONG)])
def test_a_code_that_is_clear_is_believed(code: str, verdict: Verdict):
    """Whatever words come with it."""
    assert judge_code(code, "host", "the request body is too large", None).verdict is verdict


@pytest.mark.parametrize("code", [400, 401, 404, 413, 429, 500, 502, 503])
def test_an_http_status_means_the_same_over_grpc(code: int):
    """Where a proxy answers that speaks HTTP/2 and no gRPC."""
    details = f"Received http2 header with status: {code}"
    assert judge_code("UNKNOWN", "host", details, None).verdict is judge_status(code, "host", "", None).verdict


# Successes of others


STRANGERS = [
    page(200, "text/html; charset=utf-8", "<!doctype html><title>A dashboard</title><div id=root></div>"),
    page(200, "text/plain", "OK"),
    page(200, None, "OK"),
    page(202, "image/png", "PNG"),
    page(200, "application/json", '{"status": "ok"}'),
    page(200, "application/json", "[]"),
    page(200, "application/json", "<html>"),
]


@pytest.mark.parametrize("behaviour", STRANGERS)
def test_a_success_of_something_else_delivers_nothing(behaviour: Behaviour):
    """A web page, a sign-in, the interface of another program: it is named, and asked again once a minute."""
    outcome = answer(behaviour)
    assert (outcome.verdict, outcome.retry_after_s) == (Verdict.WRONG, 60)
    assert "is no OTLP receiver" in outcome.message
    assert "set OTEL_EXPORTER_OTLP_ENDPOINT" in outcome.message


@pytest.mark.parametrize("content_type", ["application/protobuf", "application/vnd.google.protobuf; proto=x"])
def test_protobuf_by_any_name_is_the_answer_of_a_receiver(content_type: str):
    """The type of the request is one of several that are in use."""
    said = "\x0a\x05\x12\x03old"  # a partial success with a message
    assert answer(page(200, content_type, said)) == taken(1, said="old")


@pytest.mark.parametrize("text", ['{"status": "ok"}', "[]", '"ok"'])
def test_json_of_something_else_delivers_nothing_where_json_is_sent_either(text: str):
    """Any web service answers with it."""
    assert answer(page(200, "application/json", text), "http/json").verdict is Verdict.WRONG


def test_a_page_is_told_by_its_title():
    """So that one sees what stands there."""
    assert answer(STRANGERS[0]).said == "A dashboard"


@pytest.mark.parametrize("text", ["{}", '{"partialSuccess": {}}', '{"partialSuccess":{"rejectedSpans":"1"}}'])
def test_json_is_a_success_of_a_receiver_if_it_can_be_one(text: str):
    """Some answer protobuf with it."""
    rejected = text.count("rejectedSpans")
    assert answer(page(200, "application/json", text)) == taken(1, rejected)


def test_what_leads_elsewhere_is_told_without_its_secrets():
    """Where, and what to do; what follows the question mark is not for a log."""
    outcome = answer(redirect(302, "https://user:pass@login.example/sign-in?token=canary"))
    assert outcome.verdict is Verdict.WRONG
    assert outcome.said == "it leads to https://login.example/sign-in"
    assert "set OTEL_EXPORTER_OTLP_ENDPOINT" in outcome.cause


@pytest.mark.parametrize("code", [401, 403])
def test_who_is_not_let_in_is_told_what_to_set(code: int):
    """With the receiver's own reason."""
    outcome = answer(status(code, message="the token has expired"))
    assert "OTEL_EXPORTER_OTLP_HEADERS" in outcome.cause
    assert outcome.said == "the token has expired"


def test_only_a_redirect_leads_elsewhere():
    """Any other answer is told in the words of the receiver, whatever headers it has."""
    outcome = answer(status(401, {"location": "https://login.example"}, message="the token has expired"))
    assert outcome.said == "the token has expired"


@pytest.mark.parametrize("codes", [[100], [102], [103], [103, 102, 100]])
def test_informational_answers_are_read_past(codes: list[int]):
    """The one that counts comes after them, on the same connection."""

    def inform_first(exchange: Exchange) -> None:
        for code in codes:
            exchange.wfile.write(f"HTTP/1.1 {code} Wait\r\nlink: </style.css>\r\n\r\n".encode())
        ok(exchange)

    with FaultyReceiver(inform_first) as receiver:
        settings = OtlpSettings("traces", f"{receiver.endpoint}/v1/traces")
        with closing(OtlpExporter(settings)) as exporter:
            assert [exporter.export(ITEMS) for _ in range(3)] == [taken(1)] * 3
        assert receiver.connections == 1


def wire(*parts: bytes) -> Behaviour:
    """Answer with these bytes and close the connection."""

    def behave(exchange: Exchange) -> None:
        exchange.wfile.write(b"".join(parts))
        exchange.close_connection = True

    return behave


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\n\r\n"


def test_an_answer_that_breaks_off_in_its_headers_is_none():
    """Wherever that is: what it would have said is not known."""
    assert answer(wire(HEAD)) == taken(1)
    for end in range(len(HEAD)):
        assert answer(wire(HEAD[:end])).verdict is Verdict.FAILED, HEAD[:end]


@pytest.mark.parametrize(
    ("encoding", "body", "rejected"),
    [
        ("gzip", gzip.compress(REFUSAL), 1),
        ("deflate", zlib.compress(REFUSAL), 1),
        ("identity", REFUSAL, 1),
        ("gzip", REFUSAL, 0),
        ("br", b"\x0b\x02\x80hello\x03", 0),
    ],
)
def test_an_answer_that_a_proxy_has_compressed_is_read(encoding: str, body: bytes, rejected: int):
    """Though nobody asked for that; where it cannot be read, it is a success all the same."""
    head = HEAD.removesuffix(b"\r\n") + f"content-encoding: {encoding}\r\n\r\n".encode()
    assert answer(wire(head, body)).rejected == rejected


def test_a_reason_that_cannot_be_read_is_not_shown():
    """Compressed bytes are no words."""
    head = b"HTTP/1.1 500 Oh\r\ncontent-type: text/plain\r\ncontent-encoding: br\r\n\r\n"
    assert answer(wire(head, b"\x0b\x02\x80hello\x03")).said == ""


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("7", 7), (" 7 ", 7), ("7.5", 7.5), ("9" * 400, 300), ("0", None), ("-5", None), ("1e3", None), ("7 s", None)],
)
def test_a_pause_is_a_number_of_seconds(text: str, seconds: float | None):
    """With a fraction, with blanks, or far too many of them."""
    assert pause_s(text) == seconds


def over_grpc(handler: Any) -> Outcome:
    """Return what is made of an answer over gRPC to one span."""
    service = trace_service_pb2.DESCRIPTOR.services_by_name["TraceService"].full_name
    with ThreadPoolExecutor(1) as executor:
        server = grpc.server(executor)
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, {"Export": handler})])
        settings = OtlpSettings(
            "traces", f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}", "grpc", insecure=True
        )
        server.start()
        try:
            with closing(OtlpExporter(settings)) as exporter:
                return exporter.export(ITEMS)
        finally:
            server.stop(0).wait()


def test_a_success_without_a_message_is_a_success_over_grpc_too():
    """As an empty body is over HTTP."""
    assert over_grpc(grpc.unary_stream_rpc_method_handler(lambda *_: iter(()))) == taken(1)


def test_a_proxy_may_ask_for_a_pause_over_grpc_as_over_http():
    """It knows nothing of what a receiver of OTLP would send for that."""

    def refuse(_: bytes, context: grpc.ServicerContext) -> NoReturn:
        context.set_trailing_metadata((("retry-after", "7"),))
        context.abort(grpc.StatusCode.UNAVAILABLE, "too many")
        raise AssertionError

    outcome = over_grpc(grpc.unary_unary_rpc_method_handler(refuse))
    assert (outcome.verdict, outcome.retry_after_s) == (Verdict.LATER, 7)


@pytest.mark.parametrize("said", ["No status received", "Stream removed (Data frame with END_STREAM flag received)"])
def test_a_web_page_over_http2_is_told_from_a_receiver(said: str):
    """The library does not say what stands there, but what it misses."""
    assert "does not speak gRPC: set OTEL_EXPORTER_OTLP_PROTOCOL" in with_remedy("gRPC UNKNOWN", said)


def test_a_limit_in_go_is_a_request_that_is_too_large():
    """A Collector with a limit of its own says 400, and what it means."""
    assert judge_status(400, "host", "http: request body too large", None).verdict is Verdict.TOO_LARGE
    assert judge_status(400, "host", "bad data", None).verdict is Verdict.REFUSED


@pytest.fixture
def _somewhere_else(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Be in a place with a time of its own."""
    monkeypatch.setenv("TZ", "Pacific/Auckland")
    time.tzset()
    yield
    os.environ.pop("TZ", None)
    time.tzset()


@pytest.mark.usefixtures("_somewhere_else")
@pytest.mark.parametrize("zone", ["GMT", "UTC", "+0000", "-0000", ""])
def test_a_date_is_one_of_utc(zone: str):
    """Whether it says so or not, and wherever this is."""
    date = datetime.now(timezone.utc) + timedelta(seconds=200)
    seconds = pause_s(f"{date:%a, %d %b %Y %H:%M:%S} {zone}".strip())
    assert seconds is not None
    assert 100 < seconds <= 200
