"""What a tenant may say, it says of itself alone: attacks by one tenant on another, carried out on the real tiers."""

import json
import re
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import requests
from clients import Client, counter, gauge, log_record, span
from programs import Collector, ReceivedLog, free_ports, wait_until
from rules import Rules
from tiers import WEBHOOK_TOKEN, Tiers, envoy

SPELLINGS = (
    *("periflow.tenant", "periflow_tenant", "periflow-tenant", "periflow/tenant", "periflow:tenant", "periflow tenant"),
    *("periflow..tenant", "periflow__tenant", "periflow.é.tenant"),
)
"""All of them are the label periflow_tenant in Prometheus."""
RUNS_COUNTED, SERIES_HELD = 20, 1000
NAMES = [f"b-{number}" for number in range(3 * RUNS_COUNTED)]


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rules]:
    """Return a Prometheus that evaluates the rules of the stack each second."""
    with Rules(tmp_path_factory.mktemp("rules")) as rules:
        yield rules


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Collector]:
    """Return what takes the traces that are kept."""
    with Collector(tmp_path_factory.mktemp("store")) as store:
        yield store


@pytest.fixture(scope="module")
def tiers(tmp_path_factory: pytest.TempPathFactory, rules: Rules, store: Collector) -> Iterator[Tiers]:
    """Return tiers that keep nothing but what is marked."""
    settings = {"KEPT_PERCENT": "0", "SAMPLING_WAIT": "1s", "STEP_METRICS_LIMIT": str(RUNS_COUNTED)}
    address = store.grpc_endpoint.removeprefix("http://")
    with Tiers.started(tmp_path_factory.mktemp("tiers"), rules.otlp, address, **settings) as tiers:
        yield tiers


@pytest.fixture(scope="module")
def a(tiers: Tiers) -> Client:
    """Return a tenant that trains."""
    return Client(tiers, tenant="a")


@pytest.fixture(scope="module")
def b(tiers: Tiers) -> Client:
    """Return a tenant that would like to be another."""
    return Client(tiers, tenant="b")


@pytest.mark.parametrize("place", ["point", "scope", "resource"])
def test_a_point_is_the_tenants_that_sent_it(b: Client, rules: Rules, place: str):
    """Whatever it says of its tenant, wherever, in every spelling that makes the same label."""
    claim = dict.fromkeys(SPELLINGS, "a")
    points = (
        [(1.0, {spelling: "a", "n": n}) for n, spelling in enumerate(SPELLINGS)] if place == "point" else [(1.0, {})]
    )
    said = {"resource": {"periflow.run.id": place, **(claim if place == "resource" else {})},
            "scope": claim if place == "scope" else {}}  # fmt: skip
    b.send_metrics(gauge("claimed", *points), **said).raise_for_status()
    wait_until(lambda: len(rules.query(f'claimed{{periflow_run_id="{place}"}}')) == len(points), 30, "all are stored")
    everything = rules.query(f'{{periflow_run_id="{place}"}}')
    assert {"claimed", "target_info"} <= {series.labels["__name__"] for series in everything}
    assert {series.labels["periflow_tenant"] for series in everything} == {"b"}
    assert not any("a" in series.labels.values() for series in rules.query(f'claimed{{periflow_run_id="{place}"}}'))


def test_a_log_record_is_the_tenants_that_sent_it(b: Client, tiers: Tiers):
    """Whatever it says of its tenant and its run, wherever; of the run in its resource."""
    claim = dict.fromkeys(SPELLINGS, "a")
    record = log_record("claimed", **claim, **{"periflow.run.id": "of a"})
    b.send_logs(record, resource={"periflow.run.id": "says", **claim}, scope=claim).raise_for_status()
    (found,) = said(tiers, "says")
    assert (found.body, found.resource["periflow.tenant"]) == ("claimed", "b")
    assert set(found.attributes) | set(found.resource) == {"service.name", "periflow.run.id", "periflow.tenant"}
    assert found.attributes == {}


def test_a_log_record_that_no_store_would_take_takes_no_other_along(b: Client, tiers: Tiers):
    """From long ago, or from the future; one without a time has that at which it was observed."""
    ages_s = {"now": 0, "old": 30 * 86_400, "ahead": -86_400, "timeless": time.time() + 1}
    records = [log_record(name, ago_s=ago_s) for name, ago_s in ages_s.items()]
    b.send_logs(*records, resource={"periflow.run.id": "window"}).raise_for_status()
    found = said(tiers, "window")
    assert [each.body for each in found] == ["now", "timeless"]
    assert all(abs(each.time_unix_ns - time.time_ns()) < 600e9 for each in found)


def test_log_records_need_a_token_for_their_run(tiers: Tiers):
    """One for another run, or without a tenant, lets nothing in."""
    for claims in ({"tenant": "b", "run": "own"}, {}, {"tenant": "a/../b"}):
        Client(tiers, **claims).send_logs(log_record("x"), resource={"periflow.run.id": "foreign"}).raise_for_status()
    Client(tiers, tenant="b", run="own").send_logs(
        log_record("x"), resource={"periflow.run.id": "own"}
    ).raise_for_status()
    assert len(said(tiers, "own")) == 1
    assert said(tiers, "foreign") == []


def said(tiers: Tiers, run_id: str) -> list[ReceivedLog]:
    """Return the log records of a run: the gateway has answered when the store has them."""
    return [each for each in tiers.checkpoints.logs() if each.resource["periflow.run.id"] == run_id]


@pytest.mark.parametrize("events", [0, 1], ids=["without events", "with an event"])
def test_a_span_is_the_tenants_that_sent_it(b: Client, store: Collector, events: int):
    """Nothing of it says another: not its resource, its scope, its attributes, nor its events."""
    claim: dict[str, Any] = dict.fromkeys(SPELLINGS, "a")
    run_id = f"claims-{events}"
    said = span(0x5A + events, 1, is_error=True, events=[("exception", claim)] * events, **claim)
    b.send_spans(said, resource={"periflow.run.id": run_id, **claim}, scope=claim).raise_for_status()
    wait_until(lambda: spans_of(store, run_id), 30, "it is stored")
    (stored,) = spans_of(store, run_id)
    assert stored.resource == {"service.name": "client", "periflow.run.id": run_id, "periflow.tenant": "b"}
    assert (stored.scope, stored.attributes, [event[2] for event in stored.events]) == ({}, {}, [{}] * events)


@pytest.mark.parametrize("tenant", ["", "a;b", "a/b", "a b", "x" * 64, 7, ["a"], ["a", "b"], {"a": "b"}, True, None])
def test_a_token_without_a_proper_tenant_is_nobodys(tiers: Tiers, store: Collector, rules: Rules, tenant: object):
    """Neither its spans nor its points come in; a name that would look like two tenants is none."""
    nobody, run_id = Client(tiers, tenant=tenant), f"of-{json.dumps(tenant)}"
    nobody.send_spans(span(0xE0, 1, is_error=True), resource={"periflow.run.id": run_id}).raise_for_status()
    nobody.send_metrics(gauge("of_nobody", (1.0, {})), resource={"periflow.run.id": run_id}).raise_for_status()
    Client(tiers, tenant="a").send_spans(span(0xE1, 1, is_error=True), resource={"periflow.run.id": f"after-{run_id}"})
    wait_until(lambda: spans_of(store, f"after-{run_id}"), 30, "what was sent later is stored")
    assert not spans_of(store, run_id)
    assert not rules.query("of_nobody")


def test_a_token_for_a_run_is_good_for_that_run_alone(tiers: Tiers, store: Collector):
    """What it sends for another run of its own tenant does not come in."""
    client = Client(tiers, tenant="a", run="mine")
    for run_id in ("other", "mine"):
        said = {"periflow.run.id": run_id, "periflow.claimed.run": run_id}
        client.send_spans(span(0xAA, 1, is_error=True), resource=said).raise_for_status()
    wait_until(lambda: spans_of(store, "mine"), 30, "its own is stored")
    assert not spans_of(store, "other")
    assert {tuple(each.resource) for each in spans_of(store, "mine")} == {
        ("service.name", "periflow.run.id", "periflow.tenant")
    }


def test_a_span_or_point_is_of_the_run_of_its_resource(tiers: Tiers, store: Collector, rules: Rules):
    """What it says of its run by itself, in whatever spelling, counts for no other run."""
    client, claims = Client(tiers, tenant="a", run="said"), {"periflow.run.id": "other", "periflow_run_id": "other"}
    points = [(1.0, {key: value}) for key, value in claims.items()]
    resource = {"periflow.run.id": "said"}
    client.send_metrics(*(gauge(f"said_{n}", each) for n, each in enumerate(points)), resource=resource)
    client.send_spans(span(0xAB, 1, is_error=True, **claims), resource=resource, scope=claims).raise_for_status()
    for name in ("said_0", "said_1", "periflow_gateway_calls_total"):
        wait_until(lambda name=name: rules.query(f'{name}{{periflow_run_id="said"}}'), 30, f"{name} is stored")
    assert not rules.query('{periflow_run_id="other"}')
    wait_until(lambda: spans_of(store, "said"), 30, "the span is stored")
    assert not spans_of(store, "said")[0].attributes


UPLOAD = "periflow.checkpoint.upload"
EXCEPTION = ("exception", {"exception.type": "ValueError"})


@pytest.mark.parametrize(
    ("said", "is_upload"),
    [
        ({"events": [(UPLOAD, {"periflow.checkpoint.id": "run/1/1/0"})]}, True),
        ({"events": [EXCEPTION, (UPLOAD, {"periflow.checkpoint.id": "run/1/1/0"}), EXCEPTION]}, True),
        ({"events": [(UPLOAD, {"periflow.checkpoint.id": run + "/1/1/0"}) for run in ("run", "other")]}, True),
        (
            {"events": [(UPLOAD, {"periflow.checkpoint.id": 7}), (UPLOAD, {"periflow.checkpoint.id": "run/1/1/0"})]},
            True,
        ),
        ({"events": [(UPLOAD.title(), {"periflow.checkpoint.id": "run/1/1/0"})]}, False),
        ({"events": [(UPLOAD, {"periflow.checkpoint.id": "other/1/1/0"})]}, False),
        ({"events": [(UPLOAD, {"periflow.checkpoint.id": "runner/1/1/0"})]}, False),
        ({"events": [(UPLOAD, {"periflow.checkpoint.id": "a/run/1/1/0"})]}, False),
        ({"events": [(UPLOAD, {"periflow.checkpoint.id": 7})]}, False),
        ({"events": [(UPLOAD, {})]}, False),
        ({"events": [EXCEPTION], "periflow.checkpoint.id": "b/run/1/1/0"}, False),
        ({"periflow.checkpoint.id": "b/run/1/1/0"}, False),
    ],
)
def test_an_upload_is_started_by_the_event_of_the_run(
    tiers: Tiers,
    b: Client,
    request: pytest.FixtureRequest,
    said: dict[str, Any],
    is_upload: bool,  # noqa: FBT001
):
    """By nothing else; and its id says whose it is."""
    trace_id = abs(hash(request.node.name)) & 0xFFFFFFFF | 1
    after = span(trace_id, 2, events=[(UPLOAD, {"periflow.checkpoint.id": "run/1/2/0"})])
    b.send_spans(span(trace_id, 1, **said), resource={"periflow.run.id": "run"}).raise_for_status()
    b.send_spans(after, resource={"periflow.run.id": "run"}).raise_for_status()
    wait_until(lambda: any(span_id == 2 for span_id, _ in uploads(tiers, trace_id)), 30, "what was sent later is there")
    ids = [checkpoint for span_id, checkpoint in uploads(tiers, trace_id) if span_id == 1]
    assert ids == (["b/run/1/1/0"] if is_upload else [])
    called = [each for each in tiers.checkpoints.spans() if each.trace_id == trace_id and each.span_id == 1]
    assert [said for each in called for _, _, said in each.events] == [{"periflow.checkpoint.id": id_} for id_ in ids]


def test_the_same_upload_of_two_tenants_has_two_ids(tiers: Tiers, a: Client, b: Client):
    """Also if one says all that the other does: what the webhook has done for one it has not done for the other."""
    for client in (b, a):
        said = span(0xCC, 1, events=[(UPLOAD, {"periflow.checkpoint.id": "of-a/1/1/0"})])
        client.send_spans(said, resource={"periflow.run.id": "of-a"}).raise_for_status()
    wait_until(lambda: len(uploads(tiers, 0xCC)) == 2, 30, "both are there")
    assert sorted(uploads(tiers, 0xCC)) == [(1, "a/of-a/1/1/0"), (1, "b/of-a/1/1/0")]


def test_the_webhook_knows_who_calls(tiers: Tiers, a: Client):
    """A request has the token that was agreed on."""
    calls: list[str | None] = []

    class Webhook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            calls.append(self.headers["Authorization"])
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    webhook = HTTPServer(("127.0.0.1", 0), Webhook)
    Thread(target=webhook.serve_forever, daemon=True).start()
    with tiers.uploading_to(f"http://127.0.0.1:{webhook.server_port}"):
        said = span(0xDD, 1, events=[(UPLOAD, {"periflow.checkpoint.id": "called/1/1/0"})])
        a.send_spans(said, resource={"periflow.run.id": "called"}).raise_for_status()
        wait_until(lambda: calls, 30, "the webhook is called")
    webhook.shutdown()
    webhook.server_close()
    assert calls == [f"Bearer {WEBHOOK_TOKEN}"]


def test_nobody_decides_on_the_traces_of_another(a: Client, b: Client, store: Collector):
    """A tenant that knows the ids of steps to come cannot have them left out, and has nothing kept for them."""
    for trace_id in range(1, 6):
        b.send_spans(span(trace_id, 1), resource={"periflow.run.id": "unsampled-by-b"}).raise_for_status()
    marker = span(0xBB, 1, is_error=True)
    wait_until(lambda: later(b, store, marker), 30, "the samplers have decided")
    for trace_id in range(1, 11):
        a.send_spans(span(trace_id, 2, is_error=True), resource={"periflow.run.id": "fails"}).raise_for_status()
    wait_until(lambda: len(spans_of(store, "fails")) == 10, 30, "all are kept")
    assert sorted(each.trace_id for each in spans_of(store, "fails")) == list(range(1, 11))
    assert not spans_of(store, "unsampled-by-b")


def later(client: Client, store: Collector, marker: dict[str, Any]) -> bool:
    """Send a span that is kept, and tell whether it has arrived."""
    client.send_spans(marker, resource={"periflow.run.id": "marker"}).raise_for_status()
    return bool(spans_of(store, "marker"))


def test_one_trace_shows_all_ranks(a: Client, store: Collector):
    """Ranks that know nothing of one another are seen together, and the trace has the id that they gave it."""
    for rank in range(8):
        a.send_spans(span(0x77, rank + 1, is_error=rank == 7), resource={"periflow.run.id": "whole"}).raise_for_status()
    wait_until(lambda: len(spans_of(store, "whole")) == 8, 30, "all are kept, since one has failed")
    assert {each.trace_id for each in spans_of(store, "whole")} == {0x77}
    assert all("periflow.trace_id" not in each.attributes for each in spans_of(store, "whole"))


def test_counts_are_of_the_tenant_and_bounded(tiers: Tiers, rules: Rules):
    """One with more runs than are counted has the rest as one, and cannot write what PeriFlow counts."""
    a, b = (Client(tiers, tenant=tenant) for tenant in ("modest", "prolific"))
    a.send_spans(span(0x99, 1), resource={"periflow.run.id": "counted"}).raise_for_status()
    for number, run_id in enumerate([*NAMES, "counted"]):
        b.send_spans(span(0x1000 + number, 1), resource={"periflow.run.id": run_id}).raise_for_status()
    for name in ("periflow.gateway.calls", "periflow_gateway_calls", "_periflow.gateway.calls", "periflow:run_up:max"):
        forged = counter(name, 1e6, {})
        b.send_metrics(forged, gauge(name + "_total", (1e6, {})), resource={"periflow.run.id": "forged"})
    by_unit = {**counter("periflow", 1e6, {}), "unit": "gateway.calls"}
    b.send_metrics(by_unit, resource={"periflow.run.id": "forged"}).raise_for_status()
    counted = "sum by (periflow_tenant) (periflow_gateway_calls_total)"
    wait_until(
        lambda: rules.values(counted, "periflow_tenant").get("prolific", 0) > len(NAMES), 30, "all steps are counted"
    )
    mine = 'sum(periflow_gateway_calls_total{periflow_tenant="modest",periflow_run_id="counted"})'
    assert rules.values(mine, "") == {"": 1}
    assert len(rules.query('periflow_gateway_calls_total{periflow_tenant="prolific"}')) <= RUNS_COUNTED + 1
    assert rules.values('sum(periflow_gateway_calls_total{periflow_tenant="prolific"})', "")[""] < 1e6
    assert not rules.query('{periflow_run_id="forged"}')


def test_alerts_of_one_do_not_hang_on_another(a: Client, b: Client, rules: Rules):
    """A tenant whose series meet one another, and which fails in the name of another run, changes nothing for it."""
    twice = gauge("periflow.run.up", (1.0, {"periflow.rank": 0, "x": "1"}), (1.0, {"periflow.rank": 0, "x": "2"}))
    steps = [gauge(name, (5.0, {"periflow.rank": 0, "x": "1"}), (6.0, {"periflow.rank": 0, "x": "2"}))
             for name in ("periflow.step.current", "periflow.step.last_ended", "periflow.step.target")]  # fmt: skip
    started = gauge("periflow.step.started_at_seconds", (1.0, {"x": "1"}), (2.0, {"x": "2"}))
    b.send_metrics(twice, started, *steps, ended("failed"), resource=instance("doubled")).raise_for_status()
    b.send_metrics(gauge("periflow.run.up", (0.0, {"periflow.rank": 0})), ended("killed"), resource=instance("of-a"))
    alive = gauge("periflow.run.up", (1.0, {"periflow.rank": 0}))
    a.send_metrics(alive, resource=instance("of-a")).raise_for_status()
    over = gauge("periflow.run.up", (0.0, {"periflow.rank": 0}))
    a.send_metrics(over, ended("killed"), resource=instance("ends")).raise_for_status()
    wait_until(lambda: ("PeriFlowRunFailed", "a", "ends") in rules.firing(), 30, "a is told")
    assert ("PeriFlowRunFailed", "a", "of-a") not in rules.firing()
    assert not rules.errors()


def ended(outcome: str) -> dict[str, Any]:
    """Return what a rank says when it is over."""
    return counter("periflow.run.ended", 1, {"periflow.rank": 0, "periflow.run.outcome": outcome})


def instance(run_id: str) -> dict[str, str]:
    """Return the resource of a rank."""
    return {"service.instance.id": f"{run_id}/0", "periflow.run.id": run_id}


@pytest.mark.parametrize("ago_s", [40 * 86400, -3600])
def test_a_point_out_of_time_takes_none_along(b: Client, rules: Rules, ago_s: float):
    """Those that came with it are stored, and so are those with an odd kind or name beside them."""
    name = f"beside_{'past' if ago_s > 0 else 'future'}"
    buckets = {"timeUnixNano": str(time.time_ns()), "count": 1, "scale": -5, "positive": {"bucketCounts": ["1"]}}
    odd = [{"name": "delta", "sum": {"aggregationTemporality": 1, "dataPoints": [{"asInt": 1}]}}, {"name": "nothing"},
           {"name": "coarse", "exponentialHistogram": {"aggregationTemporality": 2, "dataPoints": [buckets]}},
           gauge("", (1.0, {})), gauge("é", (1.0, {}))]  # fmt: skip
    b.send_metrics(gauge("late", (1.0, {}), ago_s=ago_s), *odd, gauge(name, (1.0, {})), resource={}).raise_for_status()
    wait_until(lambda: rules.query(name), 30, "its neighbour is stored")


@pytest.mark.parametrize("place", ["point", "scope", "resource"])
def test_a_key_that_can_be_no_label_takes_nothing_along(b: Client, rules: Rules, place: str):
    """Prometheus would refuse all that is sent with it, also if it is a word of another script."""
    odd = dict.fromkeys(("", "..", "_", "손실", "é é"), "x")
    said = {"resource": odd if place == "resource" else {}, "scope": odd if place == "scope" else {}}
    b.send_metrics(gauge(f"odd_{place}", (1.0, odd if place == "point" else {})), **said).raise_for_status()
    wait_until(lambda: rules.query(f"odd_{place}"), 30, "it is stored")


@pytest.fixture(scope="module")
def limits(tmp_path_factory: pytest.TempPathFactory, tiers: Tiers, rules: Rules) -> Iterator[int]:
    """Return the port of what stands before the gateway and limits tenants."""
    (port,) = free_ports(1)
    host, store_port = rules.url.removeprefix("http://").split(":")
    limits = {"LIMIT_BIND": "127.0.0.1", "LIMIT_PORT": port, "LIMIT_BURST": 5, "LIMIT_REQUESTS": 1}
    limits |= {"LIMIT_SERIES": SERIES_HELD, "METRIC_STORE_HOST": host, "METRIC_STORE_PORT": store_port}
    with envoy("limits", tmp_path_factory.mktemp("limits"), port, {**tiers.before_gateway, **limits}):
        yield port


def test_a_tenant_that_sends_too_much_is_refused_alone(tiers: Tiers, limits: int):
    """With 429 and when to come again, over HTTP and over gRPC; others, and who has no token, are answered as ever."""
    url = f"https://127.0.0.1:{limits}"
    greedy, other = (Client(tiers, url, tenant=tenant) for tenant in ("greedy", "other"))
    answers = [greedy.send_metrics(gauge("much", (1.0, {})), resource={}) for _ in range(30)]
    assert {answer.status_code for answer in answers} == {200, 429}
    assert {answer.headers.get("retry-after") for answer in answers if answer.status_code == 429} == {"1"}
    assert other.send_metrics(gauge("little", (1.0, {})), resource={}).status_code == 200
    assert requests.post(f"{url}/v1/metrics", json={}, verify=tiers.certificate, timeout=30).status_code == 401
    grpc = {"GATEWAY_GRPC_PORT": str(limits)}
    with tiers.node_agent(tiers.issuer.token(tenant="late"), "behind-limits", NODE_QUEUE="false", **grpc) as node:
        codes = {requests.post(f"{node.endpoint}/v1/traces", json={"resourceSpans": [{}]}, timeout=90).status_code
                 for _ in range(8)}  # fmt: skip
    assert codes == {200}  # as the node has tried again


def test_a_tenant_with_too_many_series_is_refused_alone(tiers: Tiers, limits: int):
    """Its metrics are, and it is told how many it has and may have; all else, and all of others, gets through."""
    url, series = f"https://127.0.0.1:{limits}", [(1.0, {"n": str(n)}) for n in range(SERIES_HELD + 1)]
    wide, narrow = (Client(tiers, url, tenant=tenant) for tenant in ("wide", "narrow"))
    Client(tiers, tenant="wide").send_metrics(gauge("wide", *series), resource={}).raise_for_status()
    answers: list[requests.Response] = []

    def is_refused() -> bool:
        answers.append(wide.send_metrics(gauge("more", (1.0, {})), resource={}))
        return "series" in answers[-1].text

    wait_until(is_refused, 90, "the store is asked again")  # it counts every 30 s
    assert (answers[-1].status_code, answers[-1].headers["retry-after"]) == (429, "60")
    assert re.fullmatch(rf"tenant wide has \d+ series .* may have {SERIES_HELD}: .*", answers[-1].text)
    wait_until(lambda: wide.send_spans(span(0x88, 1), resource={}).ok, 30, "its traces get through")
    said = {"body": {"stringValue": "a word"}}  # whether the gateway takes it is another matter
    wait_until(lambda: wide.send_logs(said, resource={}).status_code != 429, 30, "its log records get through")
    assert narrow.send_metrics(gauge("few", (1.0, {})), resource={}).ok


def test_a_token_without_a_proper_tenant_is_refused_before_the_gateway(tiers: Tiers, limits: int):
    """There it is said, as a gateway alone does not."""
    for claims in ({}, {"tenant": "a/b"}, {"tenant": ["a"]}, {"tenant": "x" * 64}, {"tenant": ""}):
        nobody = Client(tiers, f"https://127.0.0.1:{limits}", **claims)
        answer = nobody.send_spans(span(0xE2, 1), resource={})
        assert (answer.status_code, answer.text) == (403, "the token names no tenant")


def test_who_queries_is_the_tenant_of_the_token(tiers: Tiers, tmp_path: Path):
    """What stands before prom-label-proxy says so in the header that it goes by, whatever the client has put there."""
    asked: list[tuple[str, list[str]]] = []

    class LabelProxy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append((self.path, self.headers.get_all("X-PeriFlow-Tenant", [])))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    label_proxy = HTTPServer(("127.0.0.1", 0), LabelProxy)
    Thread(target=label_proxy.serve_forever, daemon=True).start()
    (port,) = free_ports(1)
    known = tiers.before_gateway
    variables = {
        "QUERY_CERTIFICATE": known["GATEWAY_CERTIFICATE"],
        "QUERY_KEY": known["GATEWAY_KEY"],
        "QUERY_PORT": port,
    }
    variables |= {"QUERY_BIND": "127.0.0.1", "QUERY_AUDIENCE": "queries", "LABEL_PROXY_PORT": label_proxy.server_port}

    def status(path: str = "/api/v1/query", **claims: object) -> int:
        headers = {"x-periflow-tenant": "a"}
        if claims:
            headers["authorization"] = f"Bearer {tiers.issuer.token(**claims)}"
        url = f"https://127.0.0.1:{port}{path}"
        return requests.get(url, headers=headers, verify=tiers.certificate, timeout=30).status_code

    with envoy("queries", tmp_path, port, {**known, **variables}):
        assert status(aud="queries", tenant="b") == 200
        assert (status(), status(aud="telemetry", tenant="b")) == (401, 403)
        assert [status(aud="queries", tenant=tenant) for tenant in (None, "", "a|b", ".*")] == [403] * 4
        assert status("/federate", aud="queries", tenant="b") == 404
        assert status("/api/v1/%2e%2e/%2e%2e/federate", aud="queries", tenant="b") == 404
    label_proxy.shutdown()
    label_proxy.server_close()
    assert asked == [("/api/v1/query", ["b"])]


def test_what_is_too_large_is_refused(b: Client):
    """With a reason, and at once."""
    answer = b.send_spans(span(1, 1, text="x" * (21 << 20)), resource={})
    assert answer.status_code in (400, 413)
    assert "too large" in answer.text


def spans_of(store: Collector, run_id: str) -> list[Any]:
    """Return the stored spans of a run."""
    return [each for each in store.spans() if each.resource.get("periflow.run.id") == run_id]


def uploads(tiers: Tiers, trace_id: int) -> list[tuple[int, str]]:
    """Return span and checkpoint of the calls of the webhook about a trace."""
    spans = [each for each in tiers.checkpoints.spans() if each.trace_id == trace_id]
    return [(each.span_id, each.attributes["periflow.checkpoint.id"]) for each in spans]
