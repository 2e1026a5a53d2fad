"""What is compared, one per process: ``python benchmarks/subjects.py SUBJECT LOOP STEPS WORK`` prints what it measured.

A step has three metrics. ``begin`` and ``end`` are everything that a training script calls around its own work.
"""

import json
import os
import sys
import time
from array import array
from typing import Protocol


class Subject(Protocol):
    """One way to record steps."""

    def begin(self) -> None:
        """Start a step."""

    def end(self, loss: float) -> None:
        """Record three metrics and end the step."""


class Nothing:
    """A training script without telemetry."""

    def begin(self) -> None:
        """Do nothing."""

    def end(self, loss: float) -> None:
        """Do nothing."""


class PeriFlow:
    """This package."""

    def __init__(self) -> None:
        """Begin a run."""
        import periflow_otel as pf  # noqa: PLC0415  # the other subjects run without it

        pf.init(total_train_steps=1_000_000, local_log_name=f"{os.environ['PERIFLOW_STATE_DIR']}/metrics.log")
        self._start_step, self._metric, self._end_step = pf.start_step, pf.metric, pf.end_step
        self.begin = pf.start_step

    def end(self, loss: float) -> None:
        """Record three metrics and end the step."""
        self._metric({"loss": loss, "learning_rate": 0.001, "gradient_norm": 1.5})
        self._end_step()


class RawSdk:
    """The OpenTelemetry SDK with its batching processor and periodic reader, as its own documentation sets them up."""

    def __init__(self) -> None:
        """Set up both signals towards ``OTEL_EXPORTER_OTLP_ENDPOINT``."""
        from opentelemetry import trace  # noqa: PLC0415  # the other subjects run without it
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter  # noqa: PLC0415
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.metrics import MeterProvider  # noqa: PLC0415
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

        traces = TracerProvider()
        traces.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        meter = MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter())]).get_meter("benchmark")
        self._tracer = traces.get_tracer("benchmark")
        self._use_span = trace.use_span
        self._duration = meter.create_histogram("periflow.step.duration", "s")
        self._completed = meter.create_counter("periflow.step.completed", "{step}")
        self._gauges = [
            meter.create_gauge(f"periflow.metric.{key}") for key in ("loss", "learning_rate", "gradient_norm")
        ]
        self._attributes = {"periflow.rank": 0}
        self._step = 0

    def begin(self) -> None:
        """Start a span and make it current."""
        self._step += 1
        self._started = time.monotonic_ns()
        self._span = self._tracer.start_span("periflow.step", attributes={"periflow.step.number": self._step})
        self._context = self._use_span(self._span, end_on_exit=True)
        self._context.__enter__()

    def end(self, loss: float) -> None:
        """Set three gauges and end the span."""
        for gauge, value in zip(self._gauges, (loss, 0.001, 1.5), strict=True):
            gauge.set(value, self._attributes)
        self._duration.record((time.monotonic_ns() - self._started) / 1e9, self._attributes)
        self._completed.add(1, self._attributes)
        self._context.__exit__(None, None, None)


SUBJECTS = {"nothing": Nothing, "periflow_otel": PeriFlow, "raw SDK": RawSdk}


def burst(subject: Subject, steps: int, _work: int) -> dict[str, float]:
    """Time steps that follow one another at once."""
    times = array("q", bytes(8 * steps))
    clock, begin, end = time.perf_counter_ns, subject.begin, subject.end
    for step in range(steps):
        started = clock()
        begin()
        end(1 / (step + 1))
        times[step] = clock() - started
    return _cost(times)


def paced(subject: Subject, steps: int, _work: int) -> dict[str, float]:
    """Time steps that wait 1 ms for one another, as for a GPU."""
    times = array("q", bytes(8 * steps))
    clock, begin, end = time.perf_counter_ns, subject.begin, subject.end
    for step in range(steps):
        time.sleep(0.001)
        started = clock()
        begin()
        end(1 / (step + 1))
        times[step] = clock() - started
    return _cost(times)


def busy(subject: Subject, steps: int, work: int) -> dict[str, float]:
    """Run steps of pure Python, which compete with every other thread and process for the interpreter and the cores."""
    clock, cpu_clock = time.perf_counter_ns, time.thread_time_ns
    calls = working = waiting = 0
    for step in range(steps):
        begun = clock()
        subject.begin()
        called, cpu = clock(), cpu_clock()
        spin(work)
        cpu, worked = cpu_clock() - cpu, clock()
        subject.end(1 / (step + 1))
        calls += called - begun + clock() - worked
        working += cpu
        waiting += worked - called - cpu
    return {"calls": calls / working, "waiting": waiting / working}


def spin(count: int) -> float:
    """Compute something in pure Python."""
    total = 0.0
    for i in range(count):
        total += i * 0.5
    return total


def _cost(times_ns: "array[int]") -> dict[str, float]:
    ordered = sorted(times_ns)
    return {"median": ordered[len(ordered) // 2] / 1e3, "p99.9": ordered[len(ordered) * 999 // 1000] / 1e3}


LOOPS = {"burst": burst, "paced": paced, "busy": busy}


def main(name: str, loop: str, steps: str, work: str) -> None:
    """Run one subject in one loop."""
    print(json.dumps(LOOPS[loop](SUBJECTS[name](), int(steps), int(work))))


if __name__ == "__main__":
    main(*sys.argv[1:])
