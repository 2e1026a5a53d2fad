"""The format on disk: what an earlier version has stored is read, and what is written today is the same."""

import shutil
from pathlib import Path

import msgspec
import pytest
from journals import read_all
from recorder import make_run

from periflow_otel.journal.reader import JournalReader
from periflow_otel.journal.segment import CHECKSUM, CREATED_MONOTONIC_NS, CREATED_UNIX_NS, WORD_BYTES, segment_path
from periflow_otel.journal.writer import JournalWriter
from periflow_otel.processes import Process
from periflow_otel.records import (
    Checkpoint,
    Config,
    Earlier,
    Metric,
    Phase,
    RankRun,
    Record,
    RunFinished,
    StepEnded,
    decode_run,
    encode,
    encode_run,
)

STORED = Path(__file__).parent / "stored"
JOURNALS = ["journal-1", "journal-1-config"]
"""Journals that version 1 of the format has written. They stay as they are: a new version gets some of its own."""
CONFIG = Config({"lr": 0.1, "layers": 12, "model.name": "é", "amp": True, "betas": [0.9, 0.99]})
"""What the second of them has besides."""

RUN = make_run(
    process=Process(42, 4242, "boot", 4026531836),
    total_steps=10,
    earlier=Earlier(1, 5, 4, 1_600_000_000_000_000_000),
    traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    resource=(("host.name", "node"), ("process.pid", 42)),
    consumers=("metric_log", "otlp.traces"),
    destination="a destination",
    sampling_ratio=0.5,
    attempt=2,
    initial_step=4,
)
RECORDS: list[Record] = [
    Metric(5, 1_700_000_000_000_000_000, {"loss": 0.5, "steps": 3, "name": "é", "flag": True, "list": [1, None]}),
    Phase("forward", 1, 0, 5, 1_700_000_000_000_000_001, 1_000, None, {"batch": 32}),
    StepEnded(5, 1_700_000_000_000_000_000, 2_000_000, None),
    Checkpoint(5, 1_700_000_000_002_000_000, is_step_open=False, is_emergency=True, request_delay_ns=7),
    RunFinished(1_700_000_000_003_000_000, "ValueError"),
]


def openings(name: str) -> list[Record]:
    """Return what a stored journal begins with."""
    return [CONFIG] if name.endswith("-config") else []


def write(folder: Path, opening: bytes = b"") -> Path:
    """Write a journal that is stored; return its only segment."""
    folder.mkdir()
    writer = JournalWriter(folder, RUN, segment_bytes=8192, opening=opening)
    writer.begin_step(5, 1_700_000_000_000_000_000)
    for record in RECORDS[:-1]:
        writer.append(encode(record))
    writer.note_checkpoint(5)
    writer.finish(encode(RECORDS[-1]))
    return segment_path(folder, 1)


def without_times(segment: Path) -> bytes:
    """Return a segment without the time at which it was made, and what depends on it."""
    content = bytearray(segment.read_bytes())
    for word in (CREATED_UNIX_NS, CREATED_MONOTONIC_NS, CHECKSUM):
        content[word * WORD_BYTES : (word + 1) * WORD_BYTES] = bytes(WORD_BYTES)
    return bytes(content)


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """Return a copy of the stored journal: it belongs to whoever runs the tests."""
    return shutil.copytree(STORED / JOURNALS[0], tmp_path / "stored")


@pytest.mark.parametrize("name", JOURNALS)
def test_a_stored_journal_is_read(name: str, tmp_path: Path):
    """Who wrote it, how far it came, and every record."""
    stored = shutil.copytree(STORED / name, tmp_path / "stored")
    records = [*openings(name), *RECORDS]
    reader = JournalReader(stored)
    assert reader.run() == RUN
    assert reader.head()[1:] == (len(records), 5, 1_700_000_000_000_000_000, 5, 0)
    everything = read_all(stored)
    assert (everything.records, everything.lost, everything.position.sequence) == (records, 0, len(records))


@pytest.mark.parametrize("name", JOURNALS)
def test_what_is_written_today_is_what_was_stored(name: str, tmp_path: Path):
    """A change of the format is no accident: it needs a new version, and a stored journal of its own."""
    today = write(tmp_path / "today", b"".join(map(encode, openings(name))))
    assert without_times(today) == without_times(segment_path(STORED / name, 1))


def test_what_a_later_version_adds_to_the_header_is_passed_over():
    """Fields may come, and are for those who know them."""
    fields = msgspec.msgpack.decode(encode_run(RUN)) | {"colour": "blue"}
    assert decode_run(msgspec.msgpack.encode(fields)) == RUN


def test_fields_that_have_a_default_may_be_missing():
    """Those that were added later are not in an older journal."""
    fields = msgspec.msgpack.decode(encode_run(RUN))
    for name in ("local_world_size", "total_steps", "earlier", "traceparent", "resource", "orders"):
        del fields[name]
    assert decode_run(msgspec.msgpack.encode(fields)).run_id == RUN.run_id


def test_a_record_of_a_later_version_costs_only_itself(tmp_path: Path):
    """A kind that nobody knows is counted; fields at the end of one that is known are passed over."""
    writer = JournalWriter(tmp_path, RUN, segment_bytes=8192)
    writer.append(msgspec.msgpack.encode([99, "news"]))
    writer.append(msgspec.msgpack.encode([*msgspec.msgpack.decode(encode(RECORDS[2])), "more"]))
    everything = read_all(tmp_path)
    assert (everything.records, everything.lost) == ([RECORDS[2]], 1)


def test_a_segment_of_another_version_is_neither_read_nor_harmed(stored: Path):
    """The version is in the first word."""
    segment = segment_path(stored, 1)
    content = segment.read_bytes()
    later = content[:7] + b"\x02" + content[8:]
    segment.write_bytes(later)
    assert JournalReader(stored).run() is None
    assert read_all(stored).records == []
    assert segment.read_bytes() == later


def test_a_run_is_the_same_when_it_is_decoded():
    """Whatever its fields are."""
    run: RankRun = make_run()
    assert decode_run(encode_run(run)) == run
