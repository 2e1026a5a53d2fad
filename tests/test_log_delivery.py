"""What a script logs arrives at a real Collector, whatever becomes of the script, and whatever the Collector takes."""

import json
import signal
from pathlib import Path

import pytest
from programs import Collector, wait_until
from recorded import folders_left, run_script

from periflow_otel import names
from periflow_otel.journal.folders import AGENT_LOG

LINES = 2000
SCRIPT = f"""
import logging, logging.config, os, signal, sys, threading
import periflow_otel as pf

log = logging.getLogger("script")
log.setLevel(logging.INFO)
pf.init(run_id="logs", local_log_name="train.log")
logging.config.dictConfig({{"version": 1, "disable_existing_loggers": False, "root": {{"handlers": []}}}})

def talk(name):
    for number in range({LINES // 4}):
        log.info("%s %d", name, number)

for step in range(2):
    with pf.train_step():
        thread = threading.Thread(target=talk, args=(f"thread in {{step + 1}}",))
        thread.start()
        talk(f"main in {{step + 1}}")
        thread.join()
log.error("last words")
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("protocol", ["http/protobuf", "http/json", "grpc"])
def test_what_was_said_before_a_kill_arrives_in_order_with_its_trace(protocol: str, tmp_path: Path):
    """From all threads, from handlers' removal on, and to the last word; spans and files have what they should."""
    with Collector(tmp_path / "otelcol") as collector:
        endpoint = collector.grpc_endpoint if protocol == "grpc" else collector.http_endpoint
        ended = run_script(
            SCRIPT,
            PERIFLOW_AGENT="process",
            PERIFLOW_LOGS="INFO",
            OTEL_EXPORTER_OTLP_ENDPOINT=endpoint,
            OTEL_EXPORTER_OTLP_PROTOCOL=protocol,
        )
        assert ended.status == -signal.SIGKILL
        wait_until(lambda: len(collector.logs()) > LINES, 60, "all log records")
        records = collector.logs()
        wait_until(lambda: any(span.name == names.RUN_SPAN for span in collector.spans()), 60, "the run's end")
        spans = {(span.trace_id, span.span_id) for span in collector.spans()}
    assert len(records) == LINES + 1
    for step in (1, 2):
        for speaker in (f"main in {step}", f"thread in {step}"):
            said = [each for each in records if each.body.startswith(speaker)]
            assert [each.body for each in said] == [f"{speaker} {number}" for number in range(LINES // 4)]
            assert {each.trace_id for each in said} == {trace_of(step, tmp_path)}
            assert {each.attributes[names.STEP] for each in said} == {step}
    assert (records[-1].body, records[-1].severity, records[-1].severity_text) == ("last words", 17, "ERROR")
    assert {(each.trace_id, each.span_id) for each in records} <= spans
    assert all(0 <= each.observed_unix_ns - each.time_unix_ns < 10**9 for each in records)
    lines = (tmp_path / "train.logs.jsonl").read_text().splitlines()
    scopes = [each for line in lines for each in json.loads(line)["resourceLogs"][0]["scopeLogs"]]
    assert [each["body"]["stringValue"] for scope in scopes for each in scope["logRecords"]] == [
        each.body for each in records
    ]


def trace_of(step: int, folder: Path) -> int:
    """Return the trace id of a step, from its span in the file."""
    lines = (folder / "train.traces.jsonl").read_text().splitlines()
    scopes = [each for line in lines for each in json.loads(line)["resourceSpans"][0]["scopeSpans"]]
    (trace_id,) = {
        span["traceId"]
        for scope in scopes
        for span in scope["spans"]
        if {"key": names.STEP, "value": {"intValue": str(step)}} in span["attributes"]
    }
    return int(trace_id, 16)


DECLINED = """
import logging
import periflow_otel as pf

pf.init(run_id="logs")
for step in range(3):
    with pf.train_step():
        logging.error("in step %d", step)
print(pf.shutdown(timeout_s=30))
"""


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_a_receiver_that_takes_no_logs_holds_nothing_up(protocol: str, tmp_path: Path):
    """Spans and points arrive, nobody waits for the logs, it is said once with the remedy, and nothing stays behind."""
    with Collector(tmp_path / "otelcol", takes_logs=False) as collector:
        ended = run_script(
            DECLINED,
            PERIFLOW_AGENT="process",
            PERIFLOW_ENABLED="1",
            WORLD_SIZE="1",
            NODE_RANK="0",
            NUM_NODES="1",
            PROCESSED_ITERS="0",
            PERIFLOW_LOGS="error",
            OTEL_EXPORTER_OTLP_ENDPOINT=collector.grpc_endpoint if protocol == "grpc" else collector.http_endpoint,
            OTEL_EXPORTER_OTLP_PROTOCOL=protocol,
        )
        assert ended.output == "True\n"
        assert [span.name for span in collector.spans()].count(names.STEP_SPAN) == 3
        wait_until(lambda: not folders_left(), 60, "the journal is gone")
    (log,) = Path.cwd().rglob(AGENT_LOG)
    assert log.read_text("utf-8").count("OTEL_LOGS_EXPORTER=none") == 1
