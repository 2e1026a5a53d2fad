"""The writer: what a call recorded is not lost, whatever happens, and no trouble with the disk reaches training."""

import contextlib
import gc
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from disks import file_size_limit, no_descriptors, small_disk
from journals import SMALL, numbered, read_all
from programs import wait_until
from recorder import ELSEWHERE, make_run

from periflow_otel.journal import overflow
from periflow_otel.journal.folders import journal_folder, journal_folders
from periflow_otel.journal.life import WRITER_LOCK, is_written
from periflow_otel.journal.no_journal import NoJournal
from periflow_otel.journal.reader import JournalReader
from periflow_otel.journal.segment import SEGMENT_BYTES, segment_indices, segment_path
from periflow_otel.journal.space import size_bytes
from periflow_otel.journal.writer import JournalWriter
from periflow_otel.records import MAX_RECORD_BYTES, encode_metric


def small_writer(folder: Path, max_bytes: int = 1 << 30) -> JournalWriter:
    """Return a writer of small segments."""
    return JournalWriter(folder, make_run(), max_bytes=max_bytes, segment_bytes=SMALL)


def append_numbers(writer: JournalWriter, first: int, last: int) -> None:
    """Append numbered records."""
    for number in range(first, last):
        writer.append(numbered(number))


@contextmanager
def alarms(handler: Callable[[int, FrameType | None], Any], interval_s: float = 0.001) -> Iterator[None]:
    """Run a signal handler after a millisecond and then again and again, or only once if the interval is 0."""
    before = signal.signal(signal.SIGALRM, handler)
    gc.disable()  # Python ignores an exception of the handler where it interrupts a finalizer
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.001, interval_s)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        gc.enable()


# What a folder is being listed with when the handler raises is closed by its finalizer, which Python warns of.
interrupted = pytest.mark.filterwarnings("ignore:unclosed scandir iterator:ResourceWarning")


def retry_now(writer: JournalWriter) -> None:
    """Let the time pass after which a disk is asked again."""
    writer._retry_at_s = 1e-9


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what was logged."""
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]


def test_records_are_read_in_order(tmp_path: Path):
    """What is appended is read, over as many segments as it takes."""
    writer = small_writer(tmp_path)
    append_numbers(writer, 0, 1000)
    everything = read_all(tmp_path)
    assert everything.numbers == list(range(1000))
    assert (everything.position.sequence, everything.lost, writer.sequence) == (1000, 0, 1000)
    assert len(segment_indices(tmp_path)) > 3


def test_a_record_may_be_as_large_as_is_allowed(tmp_path: Path):
    """The largest record is written between small ones, and read."""
    writer = JournalWriter(tmp_path, make_run())
    overhead = len(encode_metric(1, 1, {"a": "x" * 100_000})) - 100_000
    for size in (10, MAX_RECORD_BYTES - overhead, 10, MAX_RECORD_BYTES - overhead, 300_000, 10):
        writer.append(encode_metric(1, 1, {"a": "x" * size}))
    everything = read_all(tmp_path)
    assert [len(each.values["a"]) for each in everything.records] == [  # type: ignore[union-attr]
        10,
        MAX_RECORD_BYTES - overhead,
        10,
        MAX_RECORD_BYTES - overhead,
        300_000,
        10,
    ]
    assert everything.lost == 0


def test_the_oldest_records_go_when_the_bound_is_reached(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """The newest records stay, the others are counted exactly, and one line says so."""
    writer = small_writer(tmp_path, max_bytes=3 * SMALL)
    append_numbers(writer, 0, 2000)
    everything = read_all(tmp_path)
    assert everything.numbers == list(range(2000 - len(everything.numbers), 2000))
    assert everything.lost == 2000 - len(everything.numbers) > 0
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 3 * SMALL
    assert [each for each in warnings(caplog) if "has reached its bound" in each] == warnings(caplog)[:1]


def test_every_segment_begins_with_the_opening(tmp_path: Path):
    """What all records are about stays when the oldest of them go; it counts as a record each time."""
    writer = JournalWriter(tmp_path, make_run(), max_bytes=3 * SMALL, segment_bytes=SMALL, opening=numbered(-1))
    assert read_all(tmp_path).numbers == [-1]
    append_numbers(writer, 0, 1000)
    writer.open_with(numbered(-2))
    append_numbers(writer, 1000, 2000)
    everything = read_all(tmp_path)
    assert everything.numbers[0] == -2
    assert everything.numbers.count(-2) == len(segment_indices(tmp_path)) == 3
    assert everything.position.sequence == writer.sequence == everything.lost + len(everything.numbers)


def test_a_reader_in_the_oldest_segment_counts_what_goes(tmp_path: Path):
    """A reader that was in the middle of a segment when it went knows exactly how many records it missed."""
    writer = small_writer(tmp_path, max_bytes=3 * SMALL)
    append_numbers(writer, 0, 10)
    reader = JournalReader(tmp_path)
    begun = reader.read(read_all(tmp_path).position, 1)
    append_numbers(writer, 10, 2000)
    rest = read_all(reader, begun.position)
    assert rest.numbers == list(range(2000 - len(rest.numbers), 2000))
    assert rest.lost == 2000 - 10 - len(rest.numbers) > 0
    assert rest.position.sequence == 2000


def test_progress_is_shown_at_once_and_in_every_segment(tmp_path: Path):
    """The step, its start and the wish for delivery are there before the next record, and after a new segment."""
    writer = small_writer(tmp_path)
    writer.begin_step(5, 123)
    append_numbers(writer, 0, 10)
    writer.ask_for_delivery()
    assert JournalReader(tmp_path).head()[:4] == (10, 10, 5, 123)
    append_numbers(writer, 10, 500)
    assert JournalReader(tmp_path).head()[:4] == (500, 10, 5, 123)


def test_a_step_that_begins_while_a_segment_is_made_is_shown(tmp_path: Path):
    """One thread begins steps while another's records need new segments all the time: every step is seen."""
    writer = JournalWriter(tmp_path, make_run(), max_bytes=2048, segment_bytes=1024)
    reader = JournalReader(tmp_path)
    is_over = threading.Event()

    def record() -> None:
        while not is_over.is_set():
            writer.append(numbered(0))

    thread = threading.Thread(target=record)
    thread.start()
    try:
        for step in range(1, 1000):
            writer.begin_step(step, step)
            wait_until(lambda step=step: reader.head().step == step)
    finally:
        is_over.set()
        thread.join()


def test_threads_may_append_at_once(tmp_path: Path):
    """Four threads lose nothing, repeat nothing, and each one's records stay in order."""
    writer = small_writer(tmp_path)
    threads = [threading.Thread(target=append_numbers, args=(writer, at, at + 5000)) for at in range(0, 20_000, 5000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    everything = read_all(tmp_path)
    assert sorted(everything.numbers) == list(range(20_000))
    assert all(
        [number for number in everything.numbers if at <= number < at + 5000] == list(range(at, at + 5000))
        for at in range(0, 20_000, 5000)
    )
    assert (everything.lost, writer.sequence) == (0, 20_000)


def test_a_signal_handler_may_append_while_it_interrupts_append(tmp_path: Path):
    """A handler that records every millisecond disturbs nothing, and all of its records are there too."""
    writer = small_writer(tmp_path)
    appended = {"handler": 0, "loop": 0}

    def record(*_: object) -> None:
        appended["handler"] += 1
        writer.append(numbered(1_000_000 + appended["handler"]))

    with alarms(record):
        while appended["handler"] < 300:
            writer.append(numbered(appended["loop"]))
            appended["loop"] += 1
    everything = read_all(tmp_path)
    assert [each for each in everything.numbers if each < 1_000_000] == list(range(appended["loop"]))
    handled = sorted(each - 1_000_000 for each in everything.numbers if each >= 1_000_000)
    assert handled == list(range(1, appended["handler"] + 1))
    assert (everything.lost, everything.position.sequence) == (0, writer.sequence)


@interrupted
def test_an_exception_out_of_a_signal_handler_costs_at_most_its_own_call(tmp_path: Path):
    """Ctrl-C in the middle of append: all that was recorded before and after is there, and the counts are exact."""
    writer = small_writer(tmp_path)
    recorded: list[int] = []
    number = 0

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    for _ in range(300):
        with contextlib.suppress(KeyboardInterrupt), alarms(interrupt, 0):
            while True:
                number += 1
                writer.append(numbered(number))
                recorded.append(number)
    writer.append(numbered(0))
    everything = read_all(tmp_path)
    assert sorted(set(everything.numbers)) == sorted(everything.numbers)
    assert set(recorded) <= set(everything.numbers)
    assert everything.position.sequence == writer.sequence == len(everything.numbers) + everything.lost


@interrupted
def test_a_handler_that_records_and_ends_the_program_loses_nothing(tmp_path: Path):
    """What a handler recorded is written although its exception ends the call that it interrupted."""
    writer = small_writer(tmp_path)
    said = 0

    def say_goodbye(*_: object) -> None:
        nonlocal said
        said += 1
        writer.append(numbered(said))
        raise SystemExit

    for _ in range(100):
        with contextlib.suppress(SystemExit), alarms(say_goodbye, 0):
            while True:
                writer.append(numbered(0))
    assert [number for number in read_all(tmp_path).numbers if number] == list(range(1, said + 1))


KILLED = """
import os, sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from journals import numbered
from recorder import make_run
from periflow_otel.journal.writer import JournalWriter
writer = JournalWriter(Path(sys.argv[1]), make_run(), segment_bytes=8192)
number = 0
while True:
    writer.append(numbered(number))
    number += 1
    os.write(1, b"x")
"""


@pytest.mark.parametrize("acknowledged", [1, 113, 1021, 5003])
def test_what_was_recorded_survives_sigkill(tmp_path: Path, acknowledged: int):
    """Every record whose call had returned when the process was killed is read."""
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        count = len(process.stdout.read(acknowledged))
        process.kill()
        count += len(process.stdout.read())
    everything = read_all(tmp_path)
    assert count >= acknowledged
    assert everything.numbers == list(range(len(everything.numbers)))
    assert count <= len(everything.numbers) <= count + 1
    assert (everything.lost, everything.position.sequence) == (0, len(everything.numbers))


def in_child(work: Callable[[], None]) -> int:
    """Run something in a forked child; return the child's exit status."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # of forking beside threads
def test_a_forked_child_leaves_the_journal_alone(tmp_path: Path):
    """What a DataLoader worker calls does nothing to the journal of its parent, which goes on."""
    writer = small_writer(tmp_path)
    append_numbers(writer, 0, 10)
    writer.begin_step(1, 2)

    def work() -> None:
        append_numbers(writer, 1000, 3000)
        writer.begin_step(3, 4)
        writer.ask_for_delivery()
        writer.close()
        assert writer.sequence == 10

    assert in_child(work) == 0
    assert JournalReader(tmp_path).head()[:4] == (10, 0, 1, 2)
    append_numbers(writer, 10, 20)
    assert read_all(tmp_path).numbers == list(range(20))


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_may_have_a_journal_of_its_own(tmp_path: Path):
    """A child that opens a writer writes into that one."""
    (tmp_path / "parent").mkdir()
    (tmp_path / "child").mkdir()
    writer = small_writer(tmp_path / "parent")
    append_numbers(writer, 0, 10)
    assert in_child(lambda: append_numbers(small_writer(tmp_path / "child"), 100, 200)) == 0
    assert read_all(tmp_path / "parent").numbers == list(range(10))
    assert read_all(tmp_path / "child").numbers == list(range(100, 200))


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_child_forked_while_another_thread_writes_does_not_hang(tmp_path: Path):
    """The lock that a thread held at the fork, and that the child inherits, is not waited for."""
    writer = small_writer(tmp_path)
    is_held, may_go = threading.Event(), threading.Event()

    def hold() -> None:
        with writer._lock:
            is_held.set()
            may_go.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    is_held.wait(30)

    def work() -> None:
        signal.alarm(20)
        writer.append(numbered(1))
        writer.ask_for_delivery()
        writer.close()

    try:
        assert in_child(work) == 0
    finally:
        may_go.set()
        thread.join()


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_handler_that_forks_in_the_middle_of_append_disturbs_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """The call that the handler interrupted goes on in both processes, and counts in the parent alone."""
    caplog.set_level(logging.CRITICAL, "periflow_otel")  # no child can go on that is forked in the middle of logging
    writer = JournalWriter(tmp_path, make_run(), segment_bytes=2048)
    forks = count = 0
    parent = os.getpid()
    has_failed = True

    def fork(*_: object) -> None:
        nonlocal forks
        forks += 1
        if pid := os.fork():
            assert os.waitpid(pid, 0)[1] == 0
            signal.setitimer(signal.ITIMER_REAL, 0.001)

    try:
        with alarms(fork, 0):
            while forks < 30 and os.getpid() == parent:
                writer.append(numbered(count))
                count += 1
        has_failed = False
    finally:
        if os.getpid() != parent:
            os._exit(has_failed)
    retry_now(writer)  # a child that was forked while a segment was made has taken it away
    writer.close()
    everything = read_all(tmp_path)
    assert everything.numbers == list(range(count))
    assert everything.lost == 0


def test_a_full_disk_neither_raises_nor_loses(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Records wait in memory, with one line in the log, and are written in order when there is room again."""
    writer = small_writer(tmp_path)
    append_numbers(writer, 0, 10)
    with file_size_limit(SMALL - 1):
        append_numbers(writer, 10, 1000)
        assert writer.sequence == 1000
        assert len(warnings(caplog)) == 1
        assert "cannot be written (File too large); training goes on" in warnings(caplog)[0]
        assert len(read_all(tmp_path).numbers) < 1000
    retry_now(writer)
    writer.append(numbered(1000))
    everything = read_all(tmp_path)
    assert everything.numbers == list(range(1001))
    assert (everything.lost, everything.position.sequence, writer.sequence) == (0, 1001, 1001)
    assert warnings(caplog)[1:] == [f"the journal in {tmp_path} can be written again"]


@pytest.mark.parametrize("put", [Path.touch, os.mkfifo, lambda path: path.symlink_to("before")])
def test_what_stands_in_the_place_of_the_folder_makes_room(tmp_path: Path, put: Callable[[Path], object]):
    """A journal is not written where a link leads, and not given up for a file or a pipe."""
    folder = tmp_path / "journal"
    folder.mkdir()
    writer = small_writer(folder)
    append_numbers(writer, 0, 5)
    folder.rename(tmp_path / "before")
    put(folder)
    writer.look()
    append_numbers(writer, 5, 10)
    assert not folder.is_symlink()
    assert read_all(folder).numbers == list(range(5, 10))
    assert read_all(tmp_path / "before").numbers == list(range(5))


def test_segments_are_as_small_as_files_must_be(tmp_path: Path):
    """``ulimit -f`` is what a cluster may set: there is room for more files, and for no larger ones."""
    with file_size_limit(1_000_000):
        writer = JournalWriter(tmp_path, make_run())
        append_numbers(writer, 0, 50_000)
    assert read_all(tmp_path).numbers == list(range(50_000))


def test_a_disk_that_fills_up_again_while_it_takes_what_was_kept(tmp_path: Path):
    """Whatever comes between, the order holds and the counts are exact."""
    writer = small_writer(tmp_path)
    with file_size_limit(SMALL - 1):
        append_numbers(writer, 0, 1000)
    draft = segment_path(tmp_path, writer._index + 2).with_suffix(".new")
    draft.mkdir()  # the second segment from now on cannot be made
    retry_now(writer)
    append_numbers(writer, 1000, 1100)
    assert 0 < read_all(tmp_path).position.sequence < 1000
    assert writer.sequence == 1100
    draft.rmdir()
    retry_now(writer)
    append_numbers(writer, 1100, 1200)
    everything = read_all(tmp_path)
    assert everything.numbers == list(range(1200))
    assert (everything.lost, writer.sequence) == (0, 1200)


def test_a_disk_that_is_full_from_the_beginning(tmp_path: Path):
    """A run that begins with a full disk is recorded in full once there is room."""
    with file_size_limit(SMALL - 1):
        writer = small_writer(tmp_path)
        writer.begin_step(3, 4)
        append_numbers(writer, 0, 10)
        assert read_all(tmp_path).records == []
    retry_now(writer)
    append_numbers(writer, 10, 20)
    assert read_all(tmp_path).numbers == list(range(20))
    assert JournalReader(tmp_path).head()[:4] == (20, 0, 3, 4)


def test_a_disk_that_is_full_to_the_end(tmp_path: Path):
    """Records that are written nowhere are still told by their number: so many will never be delivered."""
    with file_size_limit(SMALL - 1):
        writer = small_writer(tmp_path)
        append_numbers(writer, 0, 10)
        assert writer.finish(numbered(10)) == writer.sequence == 11
    assert read_all(tmp_path).records == []


def test_memory_has_a_bound_and_what_goes_is_counted(tmp_path: Path):
    """Of more than is kept in memory the oldest goes; the reader knows exactly how many went."""
    writer = JournalWriter(tmp_path, make_run())
    writer.append(encode_metric(1, 1, {"n": 0}))
    with file_size_limit(SMALL):
        for number in range(1, 101):
            writer.append(encode_metric(1, 1, {"n": number, "text": "x" * 1_000_000}))
    assert writer._overflow.size_bytes <= overflow.MAX_BYTES
    assert writer.sequence == 101
    retry_now(writer)
    writer.append(numbered(101))
    everything = read_all(tmp_path)
    gap = next(place for place, number in enumerate(everything.numbers) if place != number)
    assert everything.numbers[gap:] == list(range(gap + everything.lost, 102))
    assert everything.position.sequence == writer.sequence == 102


def test_close_writes_what_is_kept(tmp_path: Path):
    """A run that ends before the disk is asked again asks it once more."""
    writer = small_writer(tmp_path)
    with file_size_limit(SMALL - 1):
        append_numbers(writer, 0, 1000)
    writer.close()
    everything = read_all(tmp_path)
    assert everything.numbers == list(range(1000))
    assert (everything.lost, writer.sequence) == (0, 1000)


def test_close_counts_what_it_could_not_write_and_tells_the_end(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Records that no disk took are not lost in silence, and the last one has a place of its own."""
    writer = small_writer(tmp_path)
    with file_size_limit(SMALL - 1):
        append_numbers(writer, 0, 1000)
        kept = len(read_all(tmp_path).numbers)
        writer.close()
    everything = read_all(tmp_path)
    assert everything.numbers == [*range(kept), 999]
    assert (everything.lost, everything.position.sequence, writer.sequence) == (999 - kept, 1000, 1000)
    assert warnings(caplog)[-1] == f"{999 - kept} records could not be written into {tmp_path}"


def test_an_end_that_is_too_large_for_its_place_is_counted(tmp_path: Path):
    """Then only the number of records is told."""
    writer = small_writer(tmp_path)
    with file_size_limit(SMALL - 1):
        append_numbers(writer, 0, 1000)
        writer.append(encode_metric(1, 1, {"n": "x" * SMALL}))
        writer.close()
    everything = read_all(tmp_path)
    assert len(everything.numbers) + everything.lost == everything.position.sequence == writer.sequence == 1001


def test_what_is_closed_takes_no_more_than_it_holds(tmp_path: Path):
    """Each segment is cut behind its last record when the next one is begun, or the journal closed."""
    writer = JournalWriter(tmp_path, make_run())
    append_numbers(writer, 0, 5)
    writer.close()
    assert JournalReader(tmp_path).is_closed()
    assert sum(path.stat().st_size for path in tmp_path.glob("*.segment")) < SMALL
    assert read_all(tmp_path).numbers == list(range(5))


def test_a_disk_with_little_room_gets_smaller_segments(tmp_path: Path):
    """Where a whole segment has no room, a part of one may do until the agent has made room."""
    with small_disk(tmp_path / "disk", "900k") as disk:
        writer = JournalWriter(disk, make_run())
        append_numbers(writer, 0, 32_000)
        assert read_all(disk).numbers == list(range(32_000))
        assert len(segment_indices(disk)) > 1


def test_the_bound_holds_over_all_attempts_of_a_rank(tmp_path: Path):
    """An attempt that came to its end gives its room to the next ones, oldest first, and stays countable."""
    for attempt in range(1, 6):
        folder = journal_folder(tmp_path, attempt, 7)
        folder.mkdir()
        writer = JournalWriter(folder, make_run(), max_bytes=2 * SMALL, segment_bytes=SMALL)
        append_numbers(writer, 0, 150)
        writer.close()
    held = [read_all(each) for each in journal_folders(tmp_path)]
    assert [len(each.numbers) + each.lost for each in held] == [150] * 5
    assert [each.lost for each in held] == sorted((each.lost for each in held), reverse=True)
    assert held[-1].lost == 0 < held[0].lost
    assert sum(map(size_bytes, journal_folders(tmp_path))) <= 2 * SMALL + 5 * 512


def test_a_journal_that_is_written_is_not_dropped_for_another(tmp_path: Path):
    """Neither that of another rank, nor one of this rank that goes on."""
    writers = []
    for attempt, rank in ((1, 0), (2, 0), (3, 1)):
        folder = journal_folder(tmp_path, attempt, rank)
        folder.mkdir()
        writers.append(JournalWriter(folder, make_run(), max_bytes=2 * SMALL, segment_bytes=SMALL))
        append_numbers(writers[-1], 0, 50)
    assert [read_all(each).numbers for each in journal_folders(tmp_path)] == [list(range(50))] * 3


def test_a_closed_writer_does_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Calls after the end change nothing but that it is said once, and a second end is none."""
    writer = small_writer(tmp_path)
    append_numbers(writer, 0, 10)
    writer.close()
    append_numbers(writer, 10, 1000)
    writer.begin_step(5, 6)
    writer.ask_for_delivery()
    writer.close()
    assert writer.finish(numbered(10)) == 10
    assert read_all(tmp_path).numbers == list(range(10))
    assert JournalReader(tmp_path).head()[:4] == (10, 10, 0, 0)
    assert writer.sequence == 10
    assert warnings(caplog) == ["run run is over: what is recorded from now on is dropped"]


def test_nothing_comes_after_the_last_record(tmp_path: Path):
    """Threads that go on recording while a run ends get nothing in behind its end, and what is counted is there."""
    sys.setswitchinterval(1e-5)
    try:
        for number in range(50):
            folder = tmp_path / str(number)
            folder.mkdir()
            writer = small_writer(folder)
            threads = [threading.Thread(target=append_numbers, args=(writer, 0, 500)) for _ in range(2)]
            for thread in threads:
                thread.start()
            count = writer.finish(numbered(-1))
            for thread in threads:
                thread.join()
            numbers = read_all(folder).numbers
            assert (len(numbers), numbers[-1]) == (count, -1)
    finally:
        sys.setswitchinterval(0.005)


def test_the_last_record_of_a_handler_is_the_last(tmp_path: Path):
    """A handler that ends the run in the middle of a record: that one is written, then the end, and nothing after."""
    for number in range(100):
        folder = tmp_path / str(number)
        folder.mkdir()
        writer = small_writer(folder)
        count = None

        def finish(*_: object, writer: JournalWriter = writer) -> None:
            nonlocal count
            count = writer.finish(numbered(-1))

        with alarms(finish, 0):
            while count is None:
                writer.append(numbered(0))
        writer.append(numbered(1))
        numbers = read_all(folder).numbers
        assert numbers[-1] == -1
        assert len(numbers) - count in (0, 1)  # the record that was interrupted may count or not, by then
        assert (len(numbers), numbers.count(-1)) == (writer.sequence, 1)


def test_threads_may_append_while_the_writer_is_closed(tmp_path: Path):
    """The end of a run raises nothing in threads that still record."""
    failures: list[object] = []
    before, threading.excepthook = threading.excepthook, failures.append
    try:
        for round_number in range(20):
            folder = tmp_path / str(round_number)
            folder.mkdir()
            writer = small_writer(folder)
            threads = [threading.Thread(target=append_numbers, args=(writer, 0, 500)) for _ in range(2)]
            for thread in threads:
                thread.start()
            wait_until(lambda writer=writer: writer.sequence > 20)
            writer.close()
            for thread in threads:
                thread.join()
            everything = read_all(folder)
            assert (everything.lost, len(everything.numbers)) == (0, writer.sequence)
    finally:
        threading.excepthook = before
    assert failures == []


def test_a_handler_that_closes_in_the_middle_of_append_lets_it_go_on(tmp_path: Path):
    """The interrupted record, and the last one that the handler appends, are both written."""
    number = closings = 0
    while closings < 100:
        folder = tmp_path / str(closings)
        folder.mkdir()
        writer = small_writer(folder)
        is_over = False

        def close(*_: object, writer: JournalWriter = writer) -> None:
            nonlocal is_over
            if not is_over:
                writer.append(numbered(-1))
                writer.close()
            is_over = True

        number = 0
        with alarms(close):
            while not is_over:
                writer.append(numbered(number))
                number += 1
        assert -1 in read_all(folder).numbers
        closings += 1


def test_a_folder_that_is_deleted_comes_back(tmp_path: Path):
    """The journal goes on in a new folder, as private as the first; what was in the old one is counted."""
    folder = tmp_path / "run" / "journal"
    folder.mkdir(parents=True)
    writer = small_writer(folder)
    append_numbers(writer, 0, 50)
    shutil.rmtree(tmp_path / "run")
    append_numbers(writer, 50, 500)
    everything = read_all(folder)
    assert everything.numbers == list(range(everything.lost, 500))
    assert 50 <= everything.lost < 500
    assert everything.position.sequence == writer.sequence == 500
    assert [path.stat().st_mode & 0o777 for path in (folder, folder.parent)] == [0o700, 0o700]


@pytest.mark.parametrize("remove", [shutil.rmtree, lambda folder: folder.rename(folder.with_name("old"))])
def test_a_folder_that_goes_is_noticed_at_the_next_look(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, remove: Callable[[Path], object]
):
    """Deleted or moved: what is recorded from then on is in a new one, with a lock, and one line says so."""
    folder = tmp_path / "run" / "journal"
    folder.mkdir(parents=True)
    writer = small_writer(folder)
    append_numbers(writer, 0, 10)
    writer.begin_step(3, 4)
    remove(tmp_path / "run")
    for _ in range(3):
        writer.look()
    append_numbers(writer, 10, 20)
    everything = read_all(folder)
    assert (everything.numbers, everything.lost) == (list(range(10, 20)), 10)
    assert JournalReader(folder).head().step == 3
    assert is_written(folder, ELSEWHERE)
    assert warnings(caplog) == [f"the journal in {folder} was deleted or moved; recording goes on in a new one"]


def test_a_lock_that_is_deleted_is_made_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """The journal itself is there, so nothing is said."""
    writer = small_writer(tmp_path)
    append_numbers(writer, 0, 10)
    (tmp_path / WRITER_LOCK).unlink()
    writer.look()
    assert is_written(tmp_path, ELSEWHERE)
    assert (tmp_path / WRITER_LOCK).exists()
    assert (read_all(tmp_path).numbers, warnings(caplog)) == (list(range(10)), [])


def test_a_script_that_closes_what_it_finds_open_harms_nothing(tmp_path: Path):
    """The number of the lock may be another file's by then, which is neither locked nor closed."""
    writer = small_writer(tmp_path)
    assert writer._life is not None
    number = writer._life._file.descriptor
    other = os.open(os.devnull, os.O_RDONLY)
    os.dup2(other, number)
    writer.look()
    assert is_written(tmp_path, ELSEWHERE)
    writer.close()
    del writer
    gc.collect()
    os.fstat(number)
    os.close(number)
    os.close(other)


def test_records_wait_while_no_descriptor_is_free(tmp_path: Path):
    """That passes within moments, so it is tried again soon, and nothing is lost."""
    with no_descriptors():
        writer = small_writer(tmp_path)
        append_numbers(writer, 0, 10)
        writer.look()
    wait_until(lambda: writer.append(numbered(10)) or read_all(tmp_path).numbers)
    assert read_all(tmp_path).numbers[:10] == list(range(10))
    assert is_written(tmp_path, ELSEWHERE)


def test_a_link_in_the_place_of_the_folder_is_not_followed(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """A writer that is to be led elsewhere moves the link aside, and says so."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "journal").symlink_to(tmp_path / "elsewhere")
    writer = small_writer(tmp_path / "journal")
    append_numbers(writer, 0, 10)
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert read_all(tmp_path / "journal").numbers == list(range(10))
    assert f"{tmp_path / 'journal'} was not this user's own" in warnings(caplog)[0]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as somebody else")
def test_a_folder_that_becomes_read_only(caplog: pytest.LogCaptureFixture):
    """Without the right to create files, records wait in memory until it is back."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:  # every user can get there
        os.chown(name, 65534, 65534)
        folder = Path(name) / "journal"
        os.seteuid(65534)
        try:
            folder.mkdir()
            writer = small_writer(folder)
            folder.chmod(0o500)
            append_numbers(writer, 0, 1000)
            assert "cannot be written (Permission denied)" in warnings(caplog)[0]
            folder.chmod(0o700)
            writer.close()
            assert read_all(folder).numbers == list(range(1000))
        finally:
            os.seteuid(0)


FULL = """
import sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from journals import numbered, read_all
from recorder import make_run
from periflow_otel.journal.writer import JournalWriter
folder = Path(sys.argv[1])
ballast = folder / "ballast"
writer = JournalWriter(folder, make_run(), segment_bytes=1 << 18)
for number in range(100_000):
    if number == 60_000:
        ballast.unlink()
        writer._retry_at_s = 1e-9
    writer.append(numbered(number))
writer.close()
everything = read_all(folder)
print(len(everything.numbers), everything.lost, everything.position.sequence, writer.sequence)
assert everything.numbers == sorted(everything.numbers)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system")
def test_a_file_system_that_is_really_full_kills_nobody(tmp_path: Path):
    """On a small tmpfs there is no SIGBUS: the writer notices before it writes, and goes on when there is room."""
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", tmp_path], check=False).returncode:  # noqa: S607
        pytest.skip("this container may not mount")
    try:
        (tmp_path / "ballast").write_bytes(bytes(15 << 20))
        command = [sys.executable, "-c", FULL, str(tmp_path), str(Path(__file__).parent)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        assert done.stdout == "100000 0 100000 100000\n"
        assert done.stderr.count("cannot be written (No space left on device)") == 1
    finally:
        subprocess.run(["umount", tmp_path], check=True)  # noqa: S607


def test_warnings_name_the_bound_that_can_be_raised(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """The line about dropped records says what to do."""
    append_numbers(small_writer(tmp_path, max_bytes=2 * SMALL), 0, 1000)
    assert "PERIFLOW_JOURNAL_MAX_BYTES raises the bound" in warnings(caplog)[0]


def test_no_journal_takes_everything():
    """And is as it was."""
    nothing = NoJournal()
    nothing.append(b"")
    nothing.begin_step(1, 2)
    nothing.ask_for_delivery()
    nothing.look()
    assert nothing.finish(b"") == 0
    assert nothing.sequence == 0


def test_segments_have_room_for_the_largest_record():
    """A new segment takes any record that may be recorded."""
    assert SEGMENT_BYTES > MAX_RECORD_BYTES + (1 << 20)
    assert overflow.MAX_BYTES > MAX_RECORD_BYTES
