"""Children of a training process record nothing of their parent's, unless they begin a run of their own."""

import os
import signal
import sys
from pathlib import Path

import pytest
from programs import needs, wait_until
from recorded import Ended, Journal, begin_script, folders_left, journals, run_script

from periflow_otel.records import RunFinished, StepEnded

PARENT = """
import multiprocessing, os, signal, sys, threading, time
import periflow_otel as pf


def everything(n):
    with pf.train_step(), pf.span("child"):
        pf.metric({"child": n})
    pf.upload_checkpoint()
    pf.flush()


def begin():
    pf.init(100)
    with pf.train_step():
        pf.metric({"parent": 1})


def finish():
    with pf.train_step():
        pf.metric({"parent": 2})
"""


FORKED = (
    "this process was forked after init(), and nothing that it does is recorded; call init() in it, which begins a run "
    "of its own\n"
)


def run_quietly(script: str, **environ: str) -> Ended:
    """Run a script without the warnings of Python and torch about forks and workers, which are not ours."""
    return run_script(script, PYTHONWARNINGS="ignore", **environ)


def parent_of(journals_left: list[Journal]) -> Journal:
    """Return the only journal, which must be the parent's, whole, and of nobody else."""
    (journal,) = journals_left
    assert journal.lost == 0
    assert journal.values == [{"parent": 1}, {"parent": 2}]
    assert journal.steps == [1, 2]
    assert len(journal.of(RunFinished)) == 1
    return journal


@pytest.mark.parametrize("exit_call", ["sys.exit(0)", "os._exit(0)"])
@pytest.mark.parametrize("agent", ["off", "thread", "process"])
def test_a_forked_child_is_silent(agent: str, exit_call: str):
    """It may call everything, is told once, and leaves quickly without another word, also through handlers at exit."""
    script = f"""{PARENT}
begin()
pid = os.fork()
if pid == 0:
    assert not pf.is_initialized()
    everything(1)
    everything(2)
    {exit_call}
_, status = os.waitpid(pid, 0)
assert status == 0, status
finish()
os.environ["PERIFLOW_AGENT"] == "off" or pf.flush(30) or sys.exit("not delivered")
"""
    ended = run_quietly(script, PERIFLOW_AGENT=agent, PERIFLOW_EXIT_TIMEOUT="30")
    assert (ended.status, ended.output, ended.errors) == (0, "", FORKED)
    if agent == "off":
        parent_of(journals())


def test_a_child_that_is_forked_in_a_step_does_not_end_it():
    """The step goes on in the parent; the child may leave the context manager on its way out."""
    script = f"""{PARENT}
begin()
with pf.train_step():
    pid = os.fork()
    if pid == 0:
        sys.exit(0)
    os.waitpid(pid, 0)
    pf.metric({{"parent": 2}})
"""
    ended = run_quietly(script)
    assert (ended.status, ended.output, ended.errors) == (0, "", "")
    parent_of(journals())


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_children_of_multiprocessing_are_silent(method: str):
    """Whatever way they are started; those that do not share memory have no run at all."""
    script = f"""{PARENT}
def child(n):
    try:
        everything(n)
    except pf.NotInitializedError:
        assert {method!r} != "fork"


if __name__ == "__main__":
    begin()
    context = multiprocessing.get_context({method!r})
    children = [context.Process(target=child, args=(n,)) for n in range(2)]
    for each in children:
        each.start()
    for each in children:
        each.join()
        assert each.exitcode == 0
    finish()
"""
    ended = run_quietly(script)
    assert (ended.status, ended.output, ended.errors) == (0, "", 2 * FORKED if method == "fork" else "")
    parent_of(journals())


GIVE_UP = """
    try:
        raise ZeroDivisionError
    except ZeroDivisionError as error:
        print(repr(error), file=sys.stderr)
        sys.exit(1)
"""
"""What ranks of ``torch.multiprocessing`` do. From Python 3.13 on, a child cannot see its own status."""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize(
    ("ending", "error"),
    [
        ("pass", None),
        ("sys.exit(0)", None),
        ("raise ZeroDivisionError", "ZeroDivisionError"),
        *([(GIVE_UP, "ZeroDivisionError")] if sys.version_info < (3, 13) else []),
    ],
)
def test_a_child_that_begins_a_run_has_a_journal_of_its_own(method: str, ending: str, error: str | None):
    """As the ranks do that a notebook or Lightning starts; its run ends with it, however it was started."""
    script = f"""{PARENT}
def child():
    pf.init(50)
    with pf.train_step():
        pf.metric({{"child": 1}})
    {ending}


if __name__ == "__main__":
    begin()
    each = multiprocessing.get_context({method!r}).Process(target=child)
    each.start()
    each.join()
    finish()
"""
    ended = run_quietly(script)
    assert ended.status == 0
    assert ("ZeroDivisionError" in ended.errors) == bool(error)
    of_parent, of_child = sorted(journals(), key=lambda journal: -(journal.run.total_steps or 0))
    parent_of([of_parent])
    assert of_child.run.process != of_parent.run.process
    assert of_child.values == [{"child": 1}]
    assert [each.error for each in of_child.of(RunFinished)] == [error]


def test_a_forked_child_with_the_identity_of_its_parent_is_another_attempt():
    """The variables of a launcher are inherited too; no journal is shared."""
    script = f"""{PARENT}
begin()
pid = os.fork()
if pid == 0:
    pf.init(50)
    pf.metric({{"child": 1}})
    sys.exit(0)
os.waitpid(pid, 0)
finish()
"""
    ended = run_quietly(script, PERIFLOW_RUN_ID="job")
    assert (ended.status, ended.output, ended.errors) == (0, "", "")
    of_parent, of_child = journals()
    parent_of([of_parent])
    assert (of_parent.run.attempt, of_child.run.attempt) == (1, 2)
    assert of_child.values == [{"child": 1}]


def test_200_forks_under_load():
    """While a thread records as fast as it can, so that a fork meets every moment of a call: no hang, nothing torn."""
    script = f"""{PARENT}
pf.init(100)
stop = threading.Event()
count = 0


def record():
    global count
    while not stop.is_set():
        pf.metric({{"n": count}})
        count += 1


thread = threading.Thread(target=record)
thread.start()
for _ in range(200):
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        everything(1)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert status == 0, status
stop.set()
thread.join()
print(count)
"""
    ended = run_quietly(script)
    assert (ended.status, ended.errors) == (0, 200 * FORKED)
    (journal,) = journals()
    assert journal.lost == 0
    assert [each["n"] for each in journal.values] == list(range(int(ended.output)))
    assert journal.of(StepEnded) == []


@needs("torch")
@pytest.mark.parametrize("agent", ["off", "thread"])
def test_workers_of_a_data_loader_record_nothing(agent: str):
    """A real torch DataLoader with four of them, started in the middle of a run, twice."""
    script = f"""{PARENT}
from torch.utils.data import DataLoader, Dataset


class Numbers(Dataset):
    def __len__(self):
        return 32

    def __getitem__(self, n):
        pf.metric({{"worker": n}})
        return n


begin()
seen = []
for _ in range(2):
    for batch in DataLoader(Numbers(), batch_size=4, num_workers=4):
        seen += batch.tolist()
assert sorted(seen) == sorted([*range(32)] * 2)
finish()
"""
    ended = run_quietly(script, PERIFLOW_AGENT=agent, PERIFLOW_EXIT_TIMEOUT="30")
    assert (ended.status, ended.output, ended.errors) == (0, "", "")
    if agent == "off":
        parent_of(journals())


def test_a_worker_that_outlives_its_parent_does_not_keep_the_run_alive():
    """The parent is killed and its forked worker goes on: the agent delivers all, and that the run was killed."""
    script = f"""{PARENT}
pf.init(100, "train.log")
with pf.train_step():
    pf.metric({{"parent": 1}})
child = os.fork()
if child == 0:
    everything(1)
    time.sleep(120)
    os._exit(0)
print(child, flush=True)
time.sleep(120)
"""
    process = begin_script(script, PERIFLOW_AGENT="process")
    assert process.stdout is not None
    child = int(process.stdout.readline())
    process.kill()
    try:
        process.wait(30)
        wait_until(lambda: not folders_left(), 30, "the journal is delivered")
    finally:
        os.kill(child, signal.SIGKILL)
    assert Path("train.log").read_text("utf-8") == '{"parent": 1}\n'
    assert '"killed"' in Path("train.traces.jsonl").read_text("utf-8")
    process.communicate()
