"""The Prometheus page is right, is what a real Prometheus takes, and cannot be held up."""

import itertools
import json
import math
import stat
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import requests
from programs import Program, free_ports, program, wait_until
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from recorder import make_run

from periflow_otel import names
from periflow_otel.exporters import taken
from periflow_otel.exporters.prometheus import PrometheusExporter, family_name
from periflow_otel.names import Instrument
from periflow_otel.otlp.protobuf import metrics_request
from periflow_otel.records import RankRun
from periflow_otel.translate.telemetry import Exemplar, ExponentialHistogram, Histogram, Point
from periflow_otel.web.site import Site

OPENMETRICS = {"Accept": "application/openmetrics-text;version=1.0.0"}
TRACE_ID, SPAN_ID = 0xABC << 96, 0xDEF << 32
USER_KEYS = ("loss", "train/loss", "train_loss", "损失", "lr:0", "9lives", "tokens_total", "a__b")


def run(rank: int = 0, attempt: int = 1, resource: Mapping[str, str | int] | None = None) -> RankRun:
    """Return a rank of a run."""
    attributes = tuple((resource or {"service.name": "training", "host.name": "node-1"}).items())
    return make_run(
        run_id="job-7", attempt=attempt, rank=rank, local_rank=rank, world_size=8, mode="local",
        started_unix_ns=attempt, resource=attributes,
    )  # fmt: skip


def point(instrument: Instrument, value: Any = 1.0, rank: int = 0, **attributes: str | int) -> Point:
    """Return a point of a rank, now."""
    exemplars = ()
    if isinstance(value, Histogram | ExponentialHistogram):
        exemplars = (Exemplar(time.time_ns(), 0.3, TRACE_ID, SPAN_ID),)
    labels = (*attributes.items(), (names.RANK, rank))
    start_unix_ns = 0 if instrument.kind == "gauge" else time.time_ns() - 1_000_000_000
    return Point(instrument, labels, time.time_ns(), value, start_unix_ns, exemplars)


def user_point(key: str, value: float, rank: int = 0) -> Point:
    """Return a point of a user metric."""
    return point(names.user_instrument(key), value, rank, **{names.METRIC_KEY: key})


def histogram(*values: float) -> Histogram:
    """Return a histogram of values."""
    bounds = names.SECONDS_BOUNDS
    edges = (-math.inf, *bounds, math.inf)
    counts = tuple(sum(low < value <= high for value in values) for low, high in itertools.pairwise(edges))
    return Histogram(len(values), sum(values), min(values), max(values), bounds, counts)


def built_in_points(rank: int = 0) -> list[Point]:
    """Return a point of every built-in instrument."""
    values = {"histogram": histogram(0.002, 0.3, 700.0), "counter": 3, "gauge": 1.5}
    return [point(each, values[each.kind], rank) for each in names.INSTRUMENTS]


def every_point(rank: int = 0) -> list[Point]:
    """Return a point of every built-in instrument, and of user metrics with difficult names."""
    return [*built_in_points(rank), *(user_point(key, index + 0.5, rank) for index, key in enumerate(USER_KEYS))]


@pytest.fixture
def exporter(tmp_path: Path) -> Iterator[PrometheusExporter]:
    """Return an exporter that serves on a free port."""
    exporter = serve(tmp_path / "prometheus.json")
    yield exporter
    exporter.close()


def serve(discovery_file: Path) -> PrometheusExporter:
    """Return an exporter that serves on a free port."""
    return PrometheusExporter(Site("127.0.0.1", 0), discovery_file)


def scrape(exporter: PrometheusExporter, **headers: str) -> str:
    """Return the page."""
    response = requests.get(str(exporter.url), headers=headers, timeout=5)
    assert response.status_code == 200
    return response.content.decode()


def series(page: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Return the samples of a page by name and labels, each of which it must have once."""
    samples = [sample for family in parse_text(page) for sample in family.samples]
    found = {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples}
    assert len(found) == len(samples)
    return found


def value(page: str, name: str, **labels: str) -> float:
    """Return the value of one series of a page."""
    return series(page)[name, frozenset(labels.items())]


def test_names_are_those_of_the_standard():
    """Dots become underscores, units are spelled out, and braces and none stay away."""
    expected = {
        names.STEP_DURATION: "periflow_step_duration_seconds",
        names.STEP_COMPLETED: "periflow_step_completed",
        names.STEP_STARTED_AT: "periflow_step_started_at_seconds",
        names.TIME: "periflow_time_seconds",
        names.TELEMETRY_JOURNAL_SIZE: "periflow_telemetry_journal_size_bytes",
        names.user_instrument("train/loss"): "periflow_metric_train_loss",
    }
    assert {each: family_name(each)[0] for each in expected} == expected


def test_counter_has_the_suffix_total(exporter: PrometheusExporter):
    """A counter is a counter to Prometheus."""
    exporter.export([(run(), point(names.STEP_COMPLETED, 12, **{names.STEP_OUTCOME: "ok"}))])
    page = scrape(exporter)
    assert value(page, "periflow_step_completed_total", periflow_step_outcome="ok", periflow_rank="0") == 12
    assert "# TYPE periflow_step_completed_total counter" in page


def test_latest_point_is_shown(exporter: PrometheusExporter):
    """Of several points of a series the page has the last."""
    assert exporter.export([(run(), user_point("loss", each)) for each in (3.0, 2.0, 1.0)]) == taken(3)
    assert value(scrape(exporter), "periflow_metric_loss", periflow_key="loss", periflow_rank="0") == 1.0


def test_keys_that_look_alike_are_told_apart(exporter: PrometheusExporter):
    """Keys whose names become the same are one family, with the user's spelling as label."""
    exporter.export([(run(), user_point(key, index)) for index, key in enumerate(USER_KEYS)])
    page = scrape(exporter)
    assert value(page, "periflow_metric_train_loss", periflow_key="train/loss", periflow_rank="0") == 1
    assert value(page, "periflow_metric_train_loss", periflow_key="train_loss", periflow_rank="0") == 2
    assert value(page, "periflow_metric", periflow_key="损失", periflow_rank="0") == 3
    assert page.count("# TYPE periflow_metric_train_loss ") == 1


@pytest.mark.parametrize(("given", "shown"), [(math.nan, "NaN"), (math.inf, "+Inf"), (-math.inf, "-Inf")])
def test_nonfinite_value_is_shown(exporter: PrometheusExporter, given: float, shown: str):
    """What is not a number replaces the last number."""
    exporter.export([(run(), user_point("loss", 1.0)), (run(), user_point("loss", given))])
    assert f'periflow_metric_loss{{periflow_key="loss",periflow_rank="0"}} {shown}\n' in scrape(exporter)


def test_ranks_have_a_series_each(exporter: PrometheusExporter):
    """One page shows all ranks of the node."""
    exporter.export([(run(rank), user_point("loss", rank, rank)) for rank in range(8)])
    page = scrape(exporter)
    assert [
        value(page, "periflow_metric_loss", periflow_key="loss", periflow_rank=str(rank)) for rank in range(8)
    ] == list(range(8))


def test_histogram_buckets_are_cumulative_with_float_bounds(exporter: PrometheusExporter):
    """Buckets add up, and every ``le`` is spelled as a float."""
    exporter.export([(run(), point(names.STEP_DURATION, histogram(0.001, 0.9, 1.0, 1.1, 9000.0)))])
    page = scrape(exporter)
    buckets = {bound: value(page, "periflow_step_duration_seconds_bucket", le=bound, periflow_rank="0")
               for bound in ("0.001", "0.5", "1.0", "600.0", "+Inf")}  # fmt: skip
    assert buckets == {"0.001": 1, "0.5": 1, "1.0": 3, "600.0": 4, "+Inf": 5}
    assert value(page, "periflow_step_duration_seconds_count", periflow_rank="0") == 5
    assert value(page, "periflow_step_duration_seconds_sum", periflow_rank="0") == 9003.001


@pytest.mark.parametrize("scale", [-10, -4, 0, 3, 20])
def test_exponential_histogram_is_sorted_into_the_same_buckets(exporter: PrometheusExporter, scale: int):
    """A histogram without bounds does not break the page and loses no measurement."""
    exponential = ExponentialHistogram(7, 5.0, 0.0, 4.0, scale, 1, -2, (1, 2, 0, 3))
    exporter.export([(run(), point(names.STEP_DURATION, exponential))])
    page = scrape(exporter)
    assert value(page, "periflow_step_duration_seconds_bucket", le="+Inf", periflow_rank="0") == 7
    assert value(page, "periflow_step_duration_seconds_bucket", le="0.001", periflow_rank="0") >= 1


def test_exponential_buckets_are_never_shown_too_low(exporter: PrometheusExporter):
    """A bucket is counted at the first bound that holds all of it."""
    # Scale 0: the buckets end at 0.25, 0.5, 1, 2 seconds.
    exponential = ExponentialHistogram(10, 5.0, 0.0, 2.0, 0, 0, -3, (1, 2, 3, 4))
    exporter.export([(run(), point(names.STEP_DURATION, exponential))])
    page = scrape(exporter)
    shown = {bound: value(page, "periflow_step_duration_seconds_bucket", le=bound, periflow_rank="0")
             for bound in ("0.1", "0.25", "0.5", "1.0", "2.5")}  # fmt: skip
    assert shown == {"0.1": 0, "0.25": 1, "0.5": 3, "1.0": 6, "2.5": 10}


def test_exemplar_names_the_trace(exporter: PrometheusExporter):
    """In OpenMetrics the bucket of a measurement leads to the span in which it was taken."""
    exporter.export([(run(), point(names.STEP_DURATION, histogram(0.3)))])
    families = parse_openmetrics(scrape(exporter, **OPENMETRICS))
    exemplars = {sample.labels["le"]: sample.exemplar for family in families for sample in family.samples
                 if sample.exemplar}  # fmt: skip
    assert list(exemplars) == ["0.5"]
    assert exemplars["0.5"].labels == {"trace_id": f"{TRACE_ID:032x}", "span_id": f"{SPAN_ID:016x}"}
    assert exemplars["0.5"].value == 0.3


def test_resource_is_shown_once(exporter: PrometheusExporter):
    """Ranks of one run on one node are described by one ``target_info``."""
    exporter.export([(run(rank), user_point("loss", 1.0, rank)) for rank in range(4)])
    infos = [labels for name, labels in series(scrape(exporter)) if name == "target_info"]
    assert len(infos) == 1
    assert {("periflow_run_id", "job-7"), ("periflow_run_attempt", "1"), ("host_name", "node-1")} <= infos[0]


def test_a_page_is_one_target(exporter: PrometheusExporter):
    """Several attempts and the agent have what they have in common, so that a join finds one series and no more."""
    attempts = [run(attempt=attempt) for attempt in (1, 2)]
    exporter.export([*((each, user_point("loss", 1.0)) for each in attempts), (run().of_agent(), user_point("x", 1.0))])
    (info,) = (dict(labels) for name, labels in series(scrape(exporter)) if name == "target_info")
    assert info["periflow_run_id"] == "job-7"
    assert not {"periflow_run_attempt", "service_instance_id"} & info.keys()


def test_resource_attributes_that_look_alike_are_joined(exporter: PrometheusExporter):
    """Two attributes that become one label keep both values."""
    resource = {"a.b": "1", "a/b": "2", "1st": "x", "_own": "y"}
    exporter.export([(run(resource=resource), user_point("loss", 1.0))])
    (info,) = (dict(labels) for name, labels in series(scrape(exporter)) if name == "target_info")
    assert (info["a_b"], info["key_1st"], info["key_own"]) == ("1;2", "x", "y")


def test_forgotten_rank_is_gone(exporter: PrometheusExporter):
    """When a rank is over, its last values are not shown for ever."""
    exporter.export([(run(rank), user_point("loss", 1.0, rank)) for rank in range(2)])
    exporter.forget(run(0))
    exporter.forget(run(5))
    assert [dict(labels)["periflow_rank"] for name, labels in series(scrape(exporter)) if name != "target_info"] == [
        "1"
    ]


def test_next_attempt_replaces_the_last(exporter: PrometheusExporter):
    """No series is there twice, and a late point of an earlier attempt does not win."""
    exporter.export([(run(attempt=2), user_point("loss", 2.0)), (run(attempt=1), user_point("loss", 1.0))])
    assert value(scrape(exporter), "periflow_metric_loss", periflow_key="loss", periflow_rank="0") == 2.0


HOSTILE = ('quote"', "line\nbreak", "back\\slash", "\ud800 alone", "nul\0", "\r", "{}", "} 1\nfake 2", "é损")


@pytest.mark.parametrize("headers", [{}, OPENMETRICS])
def test_hostile_text_stays_inside_its_label(exporter: PrometheusExporter, headers: dict[str, str]):
    """No label value ends its line or the page."""
    exporter.export([(run(), user_point(key, 1.0)) for key in HOSTILE])
    parse = parse_openmetrics if headers else parse_text
    families = parse(scrape(exporter, **headers))
    keys = {sample.labels.get("periflow_key") for family in families for sample in family.samples} - {None}
    assert keys == {key.encode("utf-8", "replace").decode() for key in HOSTILE}


@pytest.mark.parametrize("key", ["nonfinite", "nonfinite_total", "step", "", "a_bucket", "a_info"])
def test_unlucky_key_does_not_break_the_page(exporter: PrometheusExporter, key: str):
    """A key that resembles a name of ours is shown beside it."""
    exporter.export([(run(), each) for each in (*every_point(), user_point(key, 77.0))])
    name = f"periflow_metric_{key}".rstrip("_")
    assert value(scrape(exporter), name, periflow_key=key, periflow_rank="0") == 77.0


def test_promtool_has_no_complaint(exporter: PrometheusExporter):
    """The page of all instruments keeps the conventions that ``promtool`` knows."""
    points = [*built_in_points(), user_point("loss", math.nan)]
    exporter.export([(run(), each) for each in points])
    command = [program("promtool"), "check", "metrics"]
    checked = subprocess.run(command, input=scrape(exporter), capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


class Prometheus(Program):
    """A Prometheus that reads its targets from a discovery file every second, and takes OTLP."""

    def __init__(self, folder: Path, discovery_file: Path) -> None:
        """Start it with its configuration and data in ``folder``."""
        (port,) = free_ports(1)
        self._api = f"http://127.0.0.1:{port}/api/v1"
        scraping = {"job_name": "scraped", "file_sd_configs": [{"files": [str(discovery_file)]}]}
        configuration = {"global": {"scrape_interval": "200ms"}, "scrape_configs": [scraping]}
        (folder / "prometheus.json").write_text(json.dumps(configuration))
        super().__init__(
            [
                *(program("prometheus"), f"--config.file={folder / 'prometheus.json'}"),
                *(f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{port}"),
                *("--web.enable-otlp-receiver", "--enable-feature=exemplar-storage"),
            ],
            folder / "prometheus.log",
            [port],
        )
        wait_until(lambda: requests.get(f"http://127.0.0.1:{port}/-/ready", timeout=5).ok, 30, "Prometheus is ready")

    def get(self, path: str, **parameters: str) -> Any:
        """Return the data of an answer."""
        answer = requests.get(f"{self._api}/{path}", params=parameters, timeout=5).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def value(self, selector: str) -> str | None:
        """Return the newest value of the one series that a selector finds, also of one that is gone by now."""
        found = self.get("query", query=f"last_over_time({selector}[5m])")["result"]
        return found[0]["value"][1] if len(found) == 1 else None

    def series(self, selector: str) -> list[dict[str, str]]:
        """Return the labels, name included, of all series that a selector finds."""
        return list(self.get("series", **{"match[]": selector}))

    def take(self, request: bytes) -> None:
        """Push OTLP metrics."""
        headers = {"Content-Type": "application/x-protobuf"}
        response = requests.post(f"{self._api}/otlp/v1/metrics", data=request, headers=headers, timeout=5)
        assert response.status_code == 200, response.text


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Return a Prometheus that has found and scraped an exporter with every point, and taken the same over OTLP.

    Scraped series have the job ``scraped``, pushed ones the job ``periflow/training``.
    """
    folder = tmp_path_factory.mktemp("prometheus")
    items = [(run(), each) for each in (*every_point(), user_point("nan", math.nan))]
    exporter = serve(folder / "discovery.json")
    with ExitStack() as stack:
        stack.callback(exporter.close)
        exporter.export(items)
        prometheus = stack.enter_context(Prometheus(folder, folder / "discovery.json"))
        prometheus.take(metrics_request(items))
        wait_until(lambda: prometheus.value('up{job="scraped"}') == "1", 30, "the exporter is scraped")
        exporter.close()  # or it would be scraped during tests that count threads and descriptors
        yield prometheus


def test_discovered_series_belong_to_the_run(prometheus: Prometheus):
    """Whoever follows the discovery file can tell runs apart, though they share a port one after the other."""
    scraped = prometheus.series('{job="scraped"}')
    assert {labels["periflow_run_id"] for labels in scraped} == {"job-7"}


def test_nan_is_scraped_as_nan(prometheus: Prometheus):
    """What is not a number arrives as such."""
    assert prometheus.value('periflow_metric_nan{job="scraped"}') == "NaN"


def test_exemplar_is_scraped(prometheus: Prometheus):
    """The way from a slow step to its trace arrives."""
    now = time.time()
    selector = {"query": 'periflow_step_duration_seconds_bucket{job="scraped"}'}
    (found,) = prometheus.get("query_exemplars", **selector, start=str(now - 600), end=str(now + 60))
    assert found["exemplars"][0]["labels"] == {"trace_id": f"{TRACE_ID:032x}", "span_id": f"{SPAN_ID:016x}"}


def _without_differences(labels: dict[str, str]) -> dict[str, str]:
    """Return the labels of a series without what Prometheus itself does to them in one way in, but not in the other."""
    bound = {"le": f"{float(labels['le']):g}"} if "le" in labels else {}
    return {key: text for key, text in labels.items() if key not in {"job", "instance", "periflow_run_id"}} | bound


def test_scraped_series_are_those_that_otlp_makes(prometheus: Prometheus):
    """A dashboard finds the same names and labels whichever way the points come.

    Prometheus itself makes three differences: job and instance, the label of the discovery file on what is scraped, and
    the spelling of whole bounds, ``1.0`` when scraped and ``1`` when pushed.
    """
    scraped, pushed = (
        {frozenset(_without_differences(labels).items()) for labels in prometheus.series(selector)}
        for selector in ('{__name__=~"periflow_.*",job="scraped"}', '{__name__=~"periflow_.*",job="periflow/training"}')
    )
    assert len(scraped) > len(every_point())
    assert scraped == pushed


def test_scraped_target_info_tells_what_otlp_tells(prometheus: Prometheus):
    """The resource has the same labels either way; what OTLP has as job and instance is in labels of its own here.

    The run id comes twice when scraped, as the discovery file has it too.
    """
    (scraped,) = prometheus.series('target_info{job="scraped"}')
    (pushed,) = prometheus.series('target_info{job="periflow/training"}')
    service = {key: scraped.pop(f"service_{key}") for key in ("namespace", "name", "instance_id")}
    assert pushed.pop("job") == f"{service['namespace']}/{service['name']}"
    assert pushed.pop("instance") == service["instance_id"]
    assert scraped.pop("exported_periflow_run_id") == scraped["periflow_run_id"]
    assert {key: text for key, text in scraped.items() if key not in {"job", "instance"}} == pushed


def test_discovery_file_is_private_and_removed(tmp_path: Path):
    """Only the owner can read where to scrape, and nobody is sent to a port that is closed."""
    path = tmp_path / "prometheus.json"
    exporter = serve(path)
    try:
        exporter.export([(run(), user_point("loss", 1.0))])
        target = str(exporter.url).removeprefix("http://").removesuffix("/metrics")
        assert json.loads(path.read_text()) == [{"targets": [target], "labels": {"periflow_run_id": "job-7"}}]
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    finally:
        exporter.close()
    assert list(tmp_path.iterdir()) == []


def test_discovery_file_that_cannot_be_written_is_only_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Without its folder the page is still served."""
    exporter = serve(tmp_path / "gone" / "prometheus.json")
    try:
        assert exporter.export([(run(), user_point("loss", 1.0))]) == taken(1)
        assert "periflow_metric_loss" in scrape(exporter)
    finally:
        exporter.close()
    assert "No such file or directory" in caplog.text


def test_without_any_port_points_are_taken_unseen(tmp_path: Path):
    """Where nothing is served, nothing else suffers."""
    exporter = PrometheusExporter(Site("203.0.113.1", 0), tmp_path / "prometheus.json")
    assert exporter.export([(run(), user_point("loss", 1.0))]) == taken(1)
    exporter.close()
    assert (exporter.url, list(tmp_path.iterdir())) == (None, [])


@pytest.mark.parametrize("accept", ["text/plain;version=x", "*/*;q=x", "a" * 1000, ""])
def test_odd_wish_gets_the_page(exporter: PrometheusExporter, accept: str):
    """What a client accepts decides the format, and never whether there is a page."""
    exporter.export([(run(), user_point("loss", 1.0))])
    assert "periflow_metric_loss" in scrape(exporter, Accept=accept)


def test_scrape_while_points_arrive_is_whole(exporter: PrometheusExporter):
    """Pages that are made while points are written have every series, each with one value."""
    stop = threading.Event()

    def write() -> None:
        for step in itertools.count():
            exporter.export([(run(), user_point(f"m{key}", step)) for key in range(50)])
            exporter.export([(run(1 + step % 3), user_point("other", step, 1 + step % 3))])
            exporter.forget(run(1 + step % 3))
            if stop.is_set():
                return

    exporter.export([(run(), user_point(f"m{key}", -1)) for key in range(50)])
    writer = threading.Thread(target=write)
    writer.start()
    try:
        pages = [series(scrape(exporter)) for _ in range(30)]
    finally:
        stop.set()
        writer.join()
    assert {sum(name.startswith("periflow_metric_m") for name, _ in page) for page in pages} == {50}
