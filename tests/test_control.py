"""The word for emergency saves: one request after the other, from any process to any other."""

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from programs import wait_until

from periflow_otel.journal.control import ANSWER_NS, ANY_STEP, CONTROL_FILE, RECENT_NS, Control, Request


def test_at_first_there_is_no_request(tmp_path: Path):
    """A new word has number 0."""
    control = Control(tmp_path)
    assert control.number() == 0
    assert control.last() == Request(0, 0, 0)


def test_a_request_says_which_step_and_when(tmp_path: Path):
    """The step and the time of a request are seen through another mapping of the word."""
    before = time.time_ns()
    Control(tmp_path).request(42)
    request = Control(tmp_path).last()
    assert (request.number, request.step) == (1, 42)
    assert before <= request.unix_ns <= time.time_ns()


def test_a_request_without_a_step_means_at_once(tmp_path: Path):
    """The default is the next opportunity."""
    control = Control(tmp_path)
    control.request()
    assert control.last().step == ANY_STEP == -1


def test_requests_are_counted_and_the_last_one_holds(tmp_path: Path):
    """Each request has the next number, whichever object it came through."""
    seen = Control(tmp_path)
    for number, step in enumerate([5, 7, ANY_STEP], 1):
        Control(tmp_path).request(step)
        assert seen.number() == number
        assert seen.last()[:2] == (number, step)


def test_the_word_outlives_those_who_use_it(tmp_path: Path):
    """A process that comes later, such as a restarted one, sees how many requests there were."""
    control = Control(tmp_path)
    control.request(3)
    control.request(4)
    del control
    assert Control(tmp_path).last()[:2] == (2, 4)


ECHO = """
import sys, time
from pathlib import Path
from periflow_otel.journal.control import Control
control = Control(Path(sys.argv[1]))
print("ready", flush=True)
for number in range(1, 4):
    while control.number() < number:
        time.sleep(0.001)
    print(*control.last()[:2], flush=True)
control.request(99)
"""


def test_another_process_sees_requests_and_makes_its_own(tmp_path: Path):
    """Requests travel both ways between processes that have the word open."""
    control = Control(tmp_path)
    with subprocess.Popen([sys.executable, "-c", ECHO, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for number, step in enumerate([10, ANY_STEP, 30], 1):
            control.request(step)
            assert process.stdout.readline() == f"{number} {step}\n"
        wait_until(lambda: control.last()[:2] == (4, 99), 30)


REQUESTS = """
import sys
from pathlib import Path
from periflow_otel.journal.control import Control
control = Control(Path(sys.argv[1]))
sys.stdin.read()
for _ in range(20_000):
    control.request(7)
"""


def test_requests_made_at_once_are_all_counted(tmp_path: Path):
    """Two processes that ask at the same time get two numbers."""
    control = Control(tmp_path)
    command = [sys.executable, "-c", REQUESTS, str(tmp_path)]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE) as one,
        subprocess.Popen(command, stdin=subprocess.PIPE) as other,
    ):
        for process in (one, other):
            assert process.stdin is not None
            process.stdin.close()
    assert control.number() == 40_000


def test_the_word_belongs_to_its_owner_alone(tmp_path: Path):
    """Other users can neither read nor write it, whatever the umask."""
    umask = os.umask(0)
    try:
        Control(tmp_path)
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / CONTROL_FILE).stat().st_mode) == 0o600


def test_its_space_is_there_before_it_is_used(tmp_path: Path):
    """A store into the word cannot meet a full disk."""
    Control(tmp_path)
    assert (tmp_path / CONTROL_FILE).stat().st_blocks > 0


def test_a_link_is_not_followed(tmp_path: Path):
    """Nobody can have another file written to."""
    (tmp_path / "precious").write_bytes(b"precious")
    (tmp_path / CONTROL_FILE).symlink_to(tmp_path / "precious")
    assert Control(tmp_path).request()
    assert (tmp_path / "precious").read_bytes() == b"precious"


def test_a_word_that_cannot_be_had_says_so(tmp_path: Path):
    """Without the folder of the run there is no word."""
    with pytest.raises(FileNotFoundError):
        Control(tmp_path / "missing")


def test_a_request_that_nobody_would_see_is_refused(tmp_path: Path):
    """After the run is gone, with its folder, asking fails."""
    control = Control(tmp_path)
    (tmp_path / CONTROL_FILE).unlink()
    with pytest.raises(FileNotFoundError):
        control.request()


# Ranks that save at the same step


def test_a_rank_on_its_own_saves_at_once(tmp_path: Path):
    """There is nobody to wait for."""
    control = Control(tmp_path)
    assert control.request(steps=[7])
    assert control.last().not_before == 0


def test_several_ranks_save_at_a_step_that_none_of_them_can_have_begun(tmp_path: Path):
    """The foremost is in step 8, and may begin 9 while it is asked."""
    control = Control(tmp_path)
    assert control.request(steps=[7, 8, 7])
    assert [control.last().is_for(step) for step in (8, 9, 10, 11)] == [False, False, True, True]


def test_ranks_that_are_about_to_save_are_not_asked_again(tmp_path: Path):
    """Those that had saved would do so twice, the others once, and none at the same step."""
    control = Control(tmp_path)
    control.request(steps=[7, 8])
    request = control.last()
    for steps in ([7, 8], [9, 10], [10, 11]):
        assert not control.request(steps=steps)
        assert not control.request(50, steps=steps)
    assert control.last() == request
    assert control.request(steps=[11, 11])
    assert control.last()[::3] == (2, 13)


def test_a_step_that_is_still_to_come_can_be_changed(tmp_path: Path):
    """But not while ranks come to it."""
    control = Control(tmp_path)
    control.request(100, steps=[1, 2])
    assert control.request(50, steps=[3, 4])
    assert not control.request(60, steps=[49, 50])
    assert not control.request(60, steps=[50, 50])
    assert control.request(60, steps=[51, 51])


def test_what_was_asked_of_an_earlier_attempt_stands_in_nobodys_way(tmp_path: Path):
    """It may have been asked at a step that this attempt has yet to come to."""
    control = Control(tmp_path)
    control.request(steps=[1000, 1000])
    assert not control.request(steps=[900, 900])
    assert control.request(steps=[900, 900], since_unix_ns=time.time_ns())


def test_a_rank_that_never_saves_stands_in_nobodys_way_for_ever(tmp_path: Path):
    """It may be one that takes no steps."""
    control = Control(tmp_path)
    control.request(steps=[7, 0])
    assert not control.request(steps=[70, 0])
    control._words[2] -= ANSWER_NS
    assert control.request(steps=[70, 0])


def test_copies_of_a_signal_are_one_request(tmp_path: Path):
    """A job manager sends it to each rank, which are quick to answer."""
    control = Control(tmp_path)
    assert control.request(steps=[1, 1], is_signal=True)
    assert not control.request(steps=[90, 91], is_signal=True)
    control._words[2] -= RECENT_NS
    assert control.request(steps=[92, 92], is_signal=True)


def test_a_clock_that_was_set_back_hides_no_request(tmp_path: Path):
    """What was asked in the future was asked."""
    control = Control(tmp_path)
    control.request(steps=[1, 1], is_signal=True)
    control._words[2] += 3600 * 10**9
    assert control.request(steps=[1, 1], is_signal=True)


def test_a_signal_never_waits_for_a_request_that_it_interrupts(tmp_path: Path):
    """That would be for ever."""
    control = Control(tmp_path)
    with control._locked(is_waiting=True), pytest.raises(BlockingIOError):
        control.request(is_signal=True)
    assert control.request(is_signal=True)
