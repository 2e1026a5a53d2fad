"""How journals give back space: cut to what they hold, or to what tells how much they held."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from journals import read_all
from programs import wait_until

from periflow_otel.journal.reader import JournalReader
from periflow_otel.journal.segment import SEGMENT_BYTES, segment_path
from periflow_otel.journal.space import drop_oldest, is_over, size_bytes, trim

KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from journals import numbered
from recorder import make_run
from periflow_otel.journal.writer import JournalWriter
writer = JournalWriter(Path(sys.argv[1]), make_run(), segment_bytes=64 << 10)
for number in range(10_000):
    writer.append(numbered(number))
print(flush=True)
sys.stdin.read()
"""


def test_a_killed_writer_leaves_what_it_held_and_no_more(tmp_path: Path):
    """While it lives, nobody cuts what it has reserved; afterwards the rest is given back, and no record is lost."""
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, tmp_path, Path(__file__).parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        process.stdout.readline()
        assert not is_over(tmp_path)
        os.kill(process.pid, signal.SIGKILL)
    wait_until(lambda: is_over(tmp_path))
    before = size_bytes(tmp_path)
    trim(tmp_path)
    assert size_bytes(tmp_path) < before
    assert read_all(tmp_path).numbers == list(range(10_000))


def test_what_is_dropped_is_counted_to_the_last_record(tmp_path: Path):
    """Also of the last segment, whose header stays; the oldest go first."""
    test_a_killed_writer_leaves_what_it_held_and_no_more(tmp_path)
    drop_oldest([tmp_path], size_bytes(tmp_path) // 2)
    half = read_all(tmp_path)
    assert half.numbers == list(range(half.lost, 10_000))
    drop_oldest([tmp_path], size_bytes(tmp_path))
    nothing = read_all(tmp_path)
    assert (nothing.numbers, nothing.lost, nothing.position.sequence) == ([], 10_000, 10_000)
    assert JournalReader(tmp_path).run() is not None
    assert size_bytes(tmp_path) < 4096


def test_a_damaged_segment_is_dropped_whole(tmp_path: Path):
    """Its header tells nothing."""
    segment_path(tmp_path, 1).write_bytes(bytes(SEGMENT_BYTES))
    assert drop_oldest([tmp_path], 1) == SEGMENT_BYTES
    assert list(tmp_path.iterdir()) == []
