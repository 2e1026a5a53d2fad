"""A stack is written by the interpreter when it is asked for, and comes back as data, whole or cut off."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from programs import wait_until

from periflow_otel.journal.stacks import MAX_BYTES, StackFile
from periflow_otel.translate.stragglers.stacks import (
    Fatal,
    Frame,
    from_ranges,
    parse,
    parse_fatal,
    ranges,
    traceback_text,
    user_frame,
)

TEXT = """Stack (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 327 in wait
  File "/home/me/dataset.py", line 88 in __getitem__
  File "/home/me/train.py", line 9 in <module>
"""
STACK = (
    Frame("/usr/lib/python3.11/threading.py", 327, "wait"),
    Frame("/home/me/dataset.py", 88, "__getitem__"),
    Frame("/home/me/train.py", 9, "<module>"),
)
FATAL = """7 1234 1
Fatal Python error: Segmentation fault

Thread 0x00007f00 (most recent call first):
  File "other.py", line 1 in other

Current thread 0x00007f01 (most recent call first):
  File "crash.py", line 3 in crash
  File "crash.py", line 5 in <module>

Extension modules: numpy._core (total: 1)
"""


def test_a_stack_is_read():
    """The innermost call comes first, and code of the user's own is told from that of a library."""
    assert parse(TEXT) == [STACK]
    assert user_frame(STACK) == STACK[1]
    assert STACK[1].place == "dataset.py:88"


def test_stacks_follow_each_other():
    """A process that was asked twice has written twice."""
    assert parse("3 44 1\n" + TEXT + "\n" + TEXT) == [STACK, STACK]


@given(st.integers(0, len(TEXT)))
def test_a_stack_that_is_cut_off_is_read_as_far_as_it_goes(length: int):
    """What is whole counts, wherever the writer has stopped."""
    stacks = parse(TEXT[:length])
    assert all(stack == STACK[: len(stack)] or stack[:-1] == STACK[: len(stack) - 1] for stack in stacks)


@given(st.text())
def test_any_text_is_read(text: str):
    """What is no stack makes none, and no error."""
    assert isinstance(parse(text), list)
    assert parse_fatal(text) is None or "Fatal Python error: " in text


def test_a_process_without_python_code_has_an_empty_stack():
    """A prompt that waits, say."""
    assert parse("Stack (most recent call first):\n  <no Python frame>\n") == [()]


def test_last_words_name_the_signal_and_the_thread_that_it_hit():
    """Other threads are there too, and are not to blame."""
    assert parse_fatal(FATAL) == Fatal(
        "Segmentation fault", (Frame("crash.py", 3, "crash"), Frame("crash.py", 5, "<module>"))
    )
    assert parse_fatal(TEXT) is None


def test_a_stack_is_shown_as_python_shows_it():
    """The innermost call last, and bounded."""
    shown = traceback_text(STACK).splitlines()
    assert shown[0] == "Traceback (most recent call last):"
    assert shown[-1] == '  File "/usr/lib/python3.11/threading.py", line 327, in wait'
    assert len(traceback_text((Frame("x" * 500, 1, "f"),) * 100)) < 10_000


@pytest.mark.parametrize(("numbers", "shown"), [((3,), "3"), ((2, 0, 1), "0-2"), ((0, 2, 3, 7), "0, 2-3, 7"), ((), "")])
def test_numbers_are_shown_as_ranges(numbers: tuple[int, ...], shown: str):
    """As people write them."""
    assert ranges(numbers) == shown
    assert from_ranges(shown) == sorted(numbers)


SPEAKER = """
import os, sys, time
from pathlib import Path
from periflow_otel.journal.stacks import speaker
{before}
speaker.speak(Path(sys.argv[1]))
{after}
speaker.look(Path(sys.argv[1]))
print(os.getpid(), flush=True)
sys.stdin.read()
"""


def speak(folder: Path, before: str = "", after: str = "") -> "subprocess.Popen[str]":
    """Start a process that has set up its stacks, and waits until its stdin is closed."""
    code = SPEAKER.format(before=before, after=after)
    process = subprocess.Popen(
        [sys.executable, "-c", code, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline()
    return process


def test_a_process_writes_its_stack_when_it_is_asked(tmp_path: Path):
    """In a call that holds everything up, too."""
    with speak(tmp_path) as process:
        file = StackFile(tmp_path)
        assert file.is_of(process.pid)
        assert not file.is_of(os.getpid())
        offset = file.end()
        process.send_signal(signal.SIGURG)
        wait_until(lambda: parse(file.read(offset)))
        assert [(frame.file, frame.function) for frame in parse(file.read(offset))[0]] == [("<string>", "<module>")]
        process.communicate()
        assert process.returncode == 0


OWN_HANDLERS = (
    "import signal; signal.signal(signal.SIGURG, lambda *_: None)",
    "import faulthandler, signal; faulthandler.register(signal.SIGURG)",
)


@pytest.mark.parametrize("before", OWN_HANDLERS)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells of handlers in C")
def test_a_signal_that_the_script_uses_stays_its_own(tmp_path: Path, before: str):
    """It is not asked, and goes on as it would."""
    with speak(tmp_path, before) as process:
        assert not StackFile(tmp_path).line.can_be_asked
        process.communicate()


def test_a_signal_that_the_script_takes_later_is_its_own(tmp_path: Path):
    """It is noticed at the next look."""
    with speak(tmp_path, after="import signal; signal.signal(signal.SIGURG, lambda *_: None)") as process:
        assert not StackFile(tmp_path).line.can_be_asked
        process.communicate()


def test_last_words_that_the_script_wants_stay_its_own(tmp_path: Path):
    """Who has enabled faulthandler finds them where they were to go."""
    with speak(tmp_path, "import faulthandler; faulthandler.enable(open('own', 'w'))") as process:
        process.send_signal(signal.SIGSEGV)
        process.communicate()
    assert "Fatal" not in StackFile(tmp_path).read()


def test_a_fatal_signal_leaves_last_words(tmp_path: Path):
    """They say where it hit, after the process is gone."""
    with speak(tmp_path) as process:
        process.send_signal(signal.SIGSEGV)
        process.communicate()
        assert process.returncode == -signal.SIGSEGV
    fatal = parse_fatal(StackFile(tmp_path).read())
    assert fatal
    assert fatal.reason == "Segmentation fault"
    assert [(frame.file, frame.function) for frame in fatal.stack] == [("<string>", "<module>")]


def test_a_forked_child_writes_nothing_into_the_file_of_its_parent(tmp_path: Path):
    """Neither when it is asked, nor when it dies."""
    die = "os.kill(os.getpid(), 23); os.kill(os.getpid(), 11)"
    fork = f"child = os.fork()\nif not child: {die}\nos.waitpid(child, 0)"
    with speak(tmp_path, after=fork) as process:
        assert StackFile(tmp_path).read().count("\n") == 1
        process.communicate()


def test_a_script_that_closes_all_files_finds_nothing_in_its_own(tmp_path: Path):
    """The number of the file may be another's by then: nothing is written there."""
    take = "os.closerange(3, 256); [os.open('own', os.O_RDWR | os.O_CREAT, 0o600) for _ in range(9)]"
    with speak(tmp_path, after=f"os.chdir(sys.argv[1]); {take}") as process:
        assert not StackFile(tmp_path).is_of(process.pid)
        process.send_signal(signal.SIGURG)
        process.send_signal(signal.SIGSEGV)
        process.communicate()
    assert (tmp_path / "own").read_bytes() == b""


def test_a_file_that_has_grown_is_emptied(tmp_path: Path):
    """Its first line stays, and the next stack follows that."""
    with speak(tmp_path) as process:
        file = StackFile(tmp_path)
        os.truncate(tmp_path / "stacks", MAX_BYTES + 1)
        offset = file.end()
        process.send_signal(signal.SIGURG)
        wait_until(lambda: parse(file.read(offset)))
        assert (tmp_path / "stacks").stat().st_size < 1000
        assert StackFile(tmp_path).line == file.line
        process.communicate()
