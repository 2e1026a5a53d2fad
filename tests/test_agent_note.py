"""What the lock file says of an agent: whether it does what is wanted, and whether another is to be tried."""

import time
from pathlib import Path

import pytest
from msgspec.structs import replace

from periflow_otel.journal.agent_lock import take_agent_lock
from periflow_otel.journal.agent_note import (
    FIRST_PAUSE_S,
    LONGEST_PAUSE_S,
    UNKNOWN,
    AgentNote,
    clear_note,
    read_note,
    why_failed,
    write_note,
)
from periflow_otel.journal.folders import AGENT_LOG, LOCK_FILE

NOTE = AgentNote(settings="ours", wanted_ns=2, born_ns=3, failures=4)


def born(age_s: float, failures: int) -> AgentNote:
    """Return the note of an agent that began some time ago."""
    return AgentNote(born_ns=time.monotonic_ns() - int(age_s * 1e9), failures=failures)


def test_a_note_comes_back(tmp_path: Path):
    """Also where a longer one stood."""
    lock = take_agent_lock(tmp_path)
    assert lock is not None
    write_note(lock, replace(NOTE, settings="x" * 100))
    write_note(lock, NOTE)
    assert read_note(tmp_path) == NOTE


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff", b'{"settings": 1}'])
def test_an_agent_that_has_said_nothing_yet_gives_way_to_none(tmp_path: Path, content: bytes | None):
    """There is no file, it is being written, or something else is in it: others that begin wait for the note."""
    if content is not None:
        (tmp_path / LOCK_FILE).write_bytes(content)
    assert read_note(tmp_path) == UNKNOWN
    assert not read_note(tmp_path).gives_way_to(replace(NOTE, wanted_ns=time.monotonic_ns()))


def test_a_note_can_be_taken_back(tmp_path: Path):
    """By an agent that ends: the next one may do something else."""
    lock = take_agent_lock(tmp_path)
    assert lock is not None
    write_note(lock, NOTE)
    clear_note(lock)
    assert read_note(tmp_path) == UNKNOWN


@pytest.mark.parametrize(
    ("failures", "pause_s"),
    [(1, FIRST_PAUSE_S), (2, 2 * FIRST_PAUSE_S), (3, 4 * FIRST_PAUSE_S), (50, LONGEST_PAUSE_S)],
)
def test_pauses_grow(failures: int, pause_s: float):
    """Up to a bound; they count from the birth of the last agent."""
    assert not born(pause_s - 1, failures).is_due()
    assert born(pause_s + 1, failures).is_due()


def test_a_machine_that_was_started_again_has_no_pause():
    """Its clock begins anew."""
    assert born(-1000, failures=9).is_due()


@pytest.mark.parametrize(
    ("settings", "wanted_ns", "gives_way"),
    [("ours", 9, False), ("other", 9, True), ("other", 2, False), ("other", 1, False)],
)
def test_who_wants_something_else_and_began_later_is_right(settings: str, wanted_ns: int, *, gives_way: bool):
    """So two ranks with different settings do not replace each other's agents for ever."""
    assert NOTE.gives_way_to(AgentNote(settings=settings, wanted_ns=wanted_ns)) is gives_way


@pytest.mark.parametrize(
    ("failures", "said", "reason"),
    [(1, "Traceback:\n" * 1000 + "ImportError: no module\n\n", "ImportError: no module"), (1, "", ""), (0, "x", "")],
)
def test_an_agent_that_failed_says_why(tmp_path: Path, failures: int, said: str, reason: str):
    """In the last line of its log. One that says nothing was killed, and one that was at work is no failure."""
    lock = take_agent_lock(tmp_path)
    assert lock is not None
    log = tmp_path / AGENT_LOG
    log.write_text("what was said before\n")
    write_note(lock, AgentNote(failures=failures, log_bytes=log.stat().st_size))
    with log.open("a") as stream:
        stream.write(said)
    assert why_failed(tmp_path) == reason
