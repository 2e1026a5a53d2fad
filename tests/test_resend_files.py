"""Files of OTLP JSON reach a receiver whole and once, also in several attempts."""

import gzip
import os
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from faulty_receiver import FaultyReceiver, in_turn, ok, refuse, status
from programs import Collector
from recorder import make_run

from periflow_otel import names
from periflow_otel.agent.resend_files import FOLDER, Progress, Sent, resend_file
from periflow_otel.config.export import ExportSettings
from periflow_otel.errors import ConfigurationError
from periflow_otel.exporters.otlp_file import OtlpPointFile, OtlpSpanFile
from periflow_otel.records import RankRun
from periflow_otel.translate.telemetry import Point, Span

NOW = 1_700_000_000_000_000_000
LINES = 60
"""Of 50 spans, some 40 KB each: three requests."""


@pytest.fixture
def run(tmp_path: Path) -> RankRun:
    """Return a rank whose files are beside a log."""
    return make_run(local_log=str(tmp_path / "train.log"))


def write_spans(run: RankRun, lines: int = LINES, first: int = 0) -> Path:
    """Append lines of spans, numbered on from the first; return the file."""
    exporter, numbers = OtlpSpanFile(), iter(range(first, first + 50 * lines))
    for _ in range(lines):
        text = {"text": "x" * 500}
        exporter.export([(run, Span(f"s{n}", 1, n + 1, None, NOW, NOW + n, text)) for n in islice(numbers, 50)])
    exporter.close()
    return Path(f"{str(run.local_log).removesuffix('.log')}.traces.jsonl")


def resend(path: Path, receiver: FaultyReceiver, timeout_s: float = 20.0, **more: Any) -> Sent:
    """Send a file to a receiver."""
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint, **more.pop("environ", {})}
    return resend_file(path, ExportSettings.from_environ(environ), path.parent / "state", timeout_s, **more)


def numbers(receiver: FaultyReceiver) -> list[int]:
    """Return the spans that a receiver took, in the order in which they came."""
    return [int(span.name[1:]) for span in receiver.spans()]


@pytest.mark.parametrize("protocol", ["http/protobuf", "http/json"])
def test_a_file_arrives_whole_once_and_in_order(run: RankRun, protocol: str):
    """Several lines make a request, and progress is told to the end."""
    path = write_spans(run)
    shown: list[tuple[int, int]] = []
    with FaultyReceiver() as receiver:
        environ = {"OTEL_EXPORTER_OTLP_PROTOCOL": protocol}
        sent = resend(path, receiver, environ=environ, show=lambda *each: shown.append(each))
        assert numbers(receiver) == list(range(50 * LINES))
        assert 2 <= len(receiver.requests) <= LINES // 10
    size = path.stat().st_size
    assert (sent.is_complete, sent.now) == (True, Progress(size, LINES))
    assert shown[-1] == (size, size)
    assert shown == sorted(shown)


@pytest.mark.parametrize("protocol", ["http/protobuf", "http/json", "grpc"])
def test_a_real_collector_gets_what_was_recorded(run: RankRun, collector: Collector, protocol: str):
    """Every span, by every protocol."""
    path = write_spans(run, 2)
    endpoint = collector.grpc_endpoint if protocol == "grpc" else collector.http_endpoint
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": protocol}
    sent = resend_file(path, ExportSettings.from_environ(environ), path.parent / "state", 20)
    assert sent.is_complete
    assert sorted(int(span.name[1:]) for span in collector.spans()) == list(range(100))


def test_an_attempt_goes_on_where_the_last_one_stopped(run: RankRun):
    """What is there is sent no second time, and what was added since is; also after the file was given a number."""
    path = write_spans(run)
    with FaultyReceiver(in_turn(ok, status(503))) as receiver:
        first = resend(path, receiver, timeout_s=0.3)
        assert not first.is_complete
        receiver.behaviour = ok
        write_spans(run, 1, 50 * LINES)
        path = path.rename(path.with_name("train.traces.1.jsonl"))
        second = resend(path, receiver)
        assert (second.is_complete, second.before) == (True, first.now)
        assert numbers(receiver) == list(range(50 * (LINES + 1)))
        before = len(receiver.requests)
        assert resend(path, receiver).is_complete
        assert len(receiver.requests) == before


def test_another_receiver_gets_all(run: RankRun):
    """As does the same one, if it is wished."""
    path = write_spans(run, 1)
    with FaultyReceiver() as one, FaultyReceiver() as other:
        for receiver in (one, other):
            resend(path, receiver)
        resend(path, one, anew=True)
        assert (numbers(one), numbers(other)) == (2 * list(range(50)), list(range(50)))


def test_another_file_of_the_name_is_sent_from_its_start(run: RankRun):
    """Somebody trains again under the same name."""
    path = write_spans(run, 1)
    with FaultyReceiver() as receiver:
        resend(path, receiver)
        path.unlink()
        write_spans(run, 1, 50)
        resend(path, receiver)
        assert numbers(receiver) == list(range(100))


def test_a_line_that_is_being_written_waits(run: RankRun):
    """Until it is whole."""
    path = write_spans(run, 2)
    whole = path.read_bytes()
    os.truncate(path, len(whole) - 10)
    with FaultyReceiver() as receiver:
        assert resend(path, receiver).is_complete
        assert numbers(receiver) == list(range(50))
        path.write_bytes(whole)
        resend(path, receiver)
        assert numbers(receiver) == list(range(100))


def test_a_line_that_is_refused_is_counted_and_left_behind(run: RankRun):
    """With the reason; the others arrive."""
    path = write_spans(run, 4)
    with FaultyReceiver(refuse("s60")) as receiver:
        sent = resend(path, receiver)
        assert (sent.is_complete, sent.now.lines, sent.now.refused) == (False, 3, 1)
        assert "HTTP 400" in sent.message
        assert numbers(receiver) == [*range(50), *range(100, 200)]


def test_a_compressed_file_is_sent_as_it_was(run: RankRun, tmp_path: Path):
    """From where the attempt before came to."""
    path = write_spans(run, LINES)
    packed = tmp_path / "train.traces.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    with FaultyReceiver(in_turn(ok, status(503))) as receiver:
        first = resend(packed, receiver)
        receiver.behaviour = ok
        second = resend(packed, receiver)
        assert (first.is_complete, second.is_complete) == (False, True)
        assert second.before.lines == first.now.lines > 0
        assert numbers(receiver) == list(range(50 * LINES))


def test_signals_may_be_mixed_and_strange_lines_are_left_out(run: RankRun, tmp_path: Path):
    """A Collector may write both into one file, and people add what they like."""
    exporter = OtlpPointFile()
    exporter.export([(run, Point(names.user_instrument("loss"), ((names.RANK, 0),), NOW, 0.5))])
    exporter.close()
    points = (tmp_path / "train.metrics.jsonl").read_bytes()
    path = tmp_path / "mixed.jsonl"
    path.write_bytes(b'{"loss": 1}\n\n' + points + write_spans(run, 1).read_bytes() + points + b"# the end\n")
    with FaultyReceiver() as receiver:
        sent = resend(path, receiver)
        assert (sent.is_complete, sent.now.lines, sent.now.strange) == (True, 3, 3)
        assert [each.path for each in receiver.requests] == ["/v1/metrics", "/v1/traces", "/v1/metrics"]


def test_without_a_receiver_there_is_an_error(run: RankRun, tmp_path: Path):
    """It names what to set."""
    with pytest.raises(ConfigurationError, match="no OTLP receiver is set for traces; set OTEL_EXPORTER_OTLP_ENDPOINT"):
        resend_file(write_spans(run, 1), ExportSettings.from_environ({}), tmp_path, 1)


def test_notes_are_private(run: RankRun, tmp_path: Path):
    """Nobody else learns what was trained here, nor makes us leave lines out."""
    with FaultyReceiver() as receiver:
        resend(write_spans(run, 1), receiver)
    folder = tmp_path / "state" / FOLDER
    (note,) = folder.iterdir()
    assert [each.stat().st_mode & 0o777 for each in (folder, note)] == [0o700, 0o600]
