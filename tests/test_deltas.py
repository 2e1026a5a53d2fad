"""Reports for receivers that add up."""

import pytest
from recorder import make_run

from periflow_otel import conventions, names
from periflow_otel.agent.deltas import Deltas
from periflow_otel.agent.destinations import DESTINATIONS
from periflow_otel.config.export import ExportSettings
from periflow_otel.names import Instrument
from periflow_otel.records import StepEnded
from periflow_otel.translate.histograms import ExplicitBuckets
from periflow_otel.translate.telemetry import Histogram, Observation, Observed, Point

RUN = make_run().of_agent()


def point(value: float | Histogram, time_unix_ns: int, instrument: Instrument = names.TELEMETRY_EXPORTED) -> Point:
    """Return a point that counts since the beginning."""
    return Point(instrument, (("periflow.node_rank", 0),), time_unix_ns, value, 1)


def sent(deltas: Deltas, *points: Point) -> list[Point]:
    """Return what is sent of points."""
    return [each for _, each in deltas.since_delivery([(RUN, each) for each in points])]


def test_a_receiver_gets_what_has_come_since_it_took_something():
    """What it did not take comes again with the next; in all it adds up to the whole, without a gap in time."""
    deltas = Deltas()
    (first,) = sent(deltas, point(5, 10))
    deltas.note_delivery()
    (lost,) = sent(deltas, point(7, 20))
    (second,) = sent(deltas, point(9, 30))
    deltas.note_delivery()
    assert [(each.value, each.start_unix_ns, each.time_unix_ns) for each in (first, lost, second)] == [
        (5, 1, 10),
        (2, 10, 20),
        (4, 10, 30),
    ]
    assert all(each.is_delta for each in (first, lost, second))
    assert not sent(deltas, point(9, 40))


@pytest.mark.parametrize("instrument", [names.TELEMETRY_BACKLOG, conventions.SYSTEM_MEMORY_USAGE])
def test_what_goes_up_and_down_is_as_it_is(instrument: Instrument):
    """Gauges do not add up, and the specification wants the same of sums that may fall."""
    deltas, given = Deltas(), point(3, 10, instrument)
    for _ in range(2):
        assert sent(deltas, given) == [given]
        deltas.note_delivery()


def test_histograms_are_subtracted_too():
    """Bucket by bucket; the least and the most since the last time are not known."""
    deltas, buckets = Deltas(), ExplicitBuckets()
    buckets.record(0.002)
    sent(deltas, point(buckets.snapshot(), 10, names.STEP_SKEW))
    deltas.note_delivery()
    buckets.record(7.0)
    (found,) = sent(deltas, point(buckets.snapshot(), 20, names.STEP_SKEW))
    assert isinstance(found.value, Histogram)
    assert (found.value.count, found.value.sum, found.value.min, found.value.max) == (1, 7.0, None, None)
    assert sum(found.value.bucket_counts) == 1


@pytest.mark.parametrize(
    ("preference", "counted", "read"), [("cumulative", 0, 0), ("delta", 1, 1), ("lowmemory", 1, 0)]
)
def test_what_is_counted_and_what_is_read_is_told_as_is_preferred(preference: str, counted: int, read: int):
    """Low memory wants no reading remembered, be it of a rank, of the machine or of the agent itself."""
    variables = {"OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": preference}
    settings, destination = ExportSettings.from_environ(variables), DESTINATIONS["otlp.metrics"]
    translator = destination.translator(settings, None)(make_run(), b"")
    cpu = conventions.PROCESS_CPU_TIME
    translator.feed(iter([StepEnded(1, 10, 5)]))
    for value in (1.0, 3.0):
        translator.observe(Observed(20, (Observation(cpu, value),)))
        translator.settle(20)
    is_delta = {point.instrument: point.is_delta for point in translator.take()}
    assert is_delta[names.STEP_COMPLETED] == is_delta[names.STEP_DURATION] == bool(counted)
    assert (is_delta[cpu], destination.adds_up(settings, None)) == (bool(read), bool(read))
