"""Real ranks that do not go on: the one that holds up the others is named, with its file and line."""

import json
import os
import signal
from contextlib import ExitStack
from pathlib import Path

import pytest
from commands import Said
from programs import Collector, ReceivedSpan, free_ports, needs, wait_until
from training import Training, arrived, cloud, everything, in_order

ALONE = """import time
import periflow_otel as pf
pf.init(100)
def take(steps):
    for _ in range(steps):
        with pf.train_step():
            time.sleep(0.02)
def hang():
    print("hangs", flush=True)
    open("go").read()
take(20)
with pf.train_step():
    hang()
take(20)
"""


def stuck(collector: Collector) -> list[ReceivedSpan]:
    """Return what was said of stuck ranks."""
    return [span for span in collector.spans() if span.name == "periflow.stuck"]


def summary(span: ReceivedSpan) -> str:
    """Return a report in one line, without when it was."""
    return str(span.attributes["periflow.stuck.summary"]).partition(": ")[2]


def test_a_rank_that_hangs_is_reported_at_once_and_when_it_goes_on(collector: Collector):
    """With its stack, in the trace of the step, and on the terminal."""
    os.mkfifo("go")
    with Training(code=ALONE, **cloud(collector.http_endpoint, PERIFLOW_STUCK_AFTER="1")) as training:
        training.read_line()
        wait_until(lambda: stuck(collector), 60)
        Path("go").write_text("")
        training.wait()
        first, *_, last = stuck(collector)
    assert first.attributes["periflow.stuck.place"] == "<string>:10 (hang)"
    assert first.attributes["periflow.stuck.over"] is False
    assert last.attributes["periflow.stuck.over"] is True
    [(name, _, event)] = first.events
    assert name == "periflow.stuck.stack"
    assert event["code.stacktrace"].endswith('File "<string>", line 10, in hang')
    steps = [span for span in collector.spans() if span.name == "periflow.step"]
    assert first.trace_id == next(step.trace_id for step in steps if step.attributes["periflow.step.number"] == 21)
    assert "in step 21: rank 0 is in <string>:10 (hang)" in training.errors


def test_what_holds_up_a_run_is_shown_while_it_does(capsys: pytest.CaptureFixture[str]):
    """In a line of its status, which the page has too; its stack is shown on request, whatever is said."""
    os.mkfifo("go")
    page = {"PERIFLOW_PAGE": "1", "PERIFLOW_STATE_DIR": os.environ["PERIFLOW_STATE_DIR"]}
    with Training(code=ALONE, **page, PERIFLOW_STUCK_AFTER="1") as training:
        training.read_line()
        asked = Said(capsys, "stacks")
        assert (asked.status, asked.output) == (0, SHOWN)
        assert json.loads(Said(capsys, "stacks", "--json").output)[0]["place"] == "<string>:10 (hang)"
        wait_until(lambda: "! Stuck for" in Said(capsys, "status").output, 60)
        view = json.loads(Said(capsys, "status", "--json").output)
        Path("go").write_text("")
        training.wait()
    assert view["run"]["stuck"].endswith("in step 21: rank 0 is in <string>:10 (hang)")
    assert view["stuck"][0]["stacks"][0]["stacktrace"].endswith("line 10, in hang")
    view = json.loads(Said(capsys, "status", "--json").output)
    assert view["run"]["stuck"] is None
    assert [(each["step"], each["is_over"]) for each in view["stuck"]] == [(21, True)]


SHOWN = """rank 0 is in <string>:10 (hang)
  File "<string>", line 13, in <module>
  File "<string>", line 10, in hang
"""


def test_there_are_no_stacks_where_nothing_goes_on(capsys: pytest.CaptureFixture[str]):
    """It is said."""
    assert (asked := Said(capsys, "stacks", "job")).status == 1
    assert asked.errors == "periflow-otel: no run job is going on here\n"


def test_nobody_is_asked_where_that_is_turned_off():
    """There is not even a file."""
    os.mkfifo("go")
    with Training(code=ALONE, PERIFLOW_STUCK_AFTER="0") as training:
        training.read_line()
        assert not list(training.state.glob("*/*/a*/stacks"))
        Path("go").write_text("")
        training.wait()
    assert training.process.returncode == 0


TOGETHER = """import os, sys, threading, time
import torch, torch.distributed as dist
import periflow_otel as pf
class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 10_000
    def __getitem__(self, item):
        hang("loader", lambda: open("loader").read())
        return torch.ones(4)
def hang(kind, how):
    if rank == 3 and step == AT.get(kind):
        print(kind, flush=True)
        how()
def spin():
    while not os.path.exists("spin"):
        pass
def lock():
    taken = threading.Lock()
    def hold():
        with taken:
            open("lock").read()
    threading.Thread(target=hold).start()
    while not taken.locked():
        pass
    with taken:
        pass
AT = {"loader": 25, "lock": 50, "sleep": 75, "spin": 100}
dist.init_process_group("gloo")
rank, step = dist.get_rank(), 0
pf.init(120)
values = torch.ones(8)
batches = iter(torch.utils.data.DataLoader(Data()))
for step in range(1, 121):
    next(batches)
    with pf.train_step():
        time.sleep(0.01)
        hang("lock", lock)
        hang("sleep", lambda: time.sleep(10))
        hang("spin", spin)
        dist.all_reduce(values)
dist.destroy_process_group()
"""
"""Four ranks, of which the last hangs in four ways; all but a sleep end when the test wants it."""


@needs("torch")
def test_the_rank_that_holds_up_the_others_is_named(collector: Collector):
    """In its data loader, in a lock, in a call in C, and in a loop in Python; the others wait in a collective."""
    for name in ("loader", "lock"):
        os.mkfifo(name)
    [port] = free_ports(1)
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1", "WORLD_SIZE": "4"}
    environ = cloud(collector.http_endpoint, PERIFLOW_STUCK_AFTER="1", PERIFLOW_RUN_ID="four") | place
    with ExitStack() as stack:
        ranks = [
            stack.enter_context(Training(code=TOGETHER, **environ, RANK=str(rank), LOCAL_RANK=str(rank)))
            for rank in range(4)
        ]
        said = {}
        for number, kind in enumerate(("loader", "lock", "sleep", "spin"), 1):
            assert ranks[3].read_line().strip() == kind
            wait_until(lambda number=number: len(named(collector)) >= number, 60, kind)
            said[kind] = named(collector)[number - 1]
            if kind != "sleep":
                Path(kind).write_text("")
        for each in ranks:
            each.wait()
    waiting = "; 3 ranks (0-2) wait in all_reduce"
    assert summary(said["loader"]) == f"rank 3 is in <string>:8 (<lambda>){waiting}"
    assert summary(said["lock"]) == f"rank 3 is in <string>:25 (lock){waiting}"
    assert summary(said["sleep"]) == f"rank 3 is in <string>:38 (<lambda>){waiting}"
    assert summary(said["spin"]) in [f"rank 3 is in <string>:{line} (spin){waiting}" for line in (14, 15)]


def named(collector: Collector) -> list[ReceivedSpan]:
    """Return the first report of each step in which ranks were stuck."""
    spans = {span.attributes["periflow.step.number"]: span for span in reversed(stuck(collector))}
    return [spans[step] for step in sorted(spans)]


def test_a_storm_of_requests_loses_no_step(collector: Collector):
    """Whoever asks a thousand times while training goes on holds up nothing, and breaks nothing."""
    with Training(2000, 0.001, **cloud(collector.http_endpoint)) as training:
        training.read_line()
        for _ in range(1000):
            training.process.send_signal(signal.SIGURG)
        training.wait()
        assert (training.process.returncode, training.errors) == (0, "")
    assert in_order(arrived(collector)) == everything(2000)


CRASHES = """import ctypes
import periflow_otel as pf
pf.init(100)
def crash():
    ctypes.string_at(0)
with pf.train_step():
    crash()
"""


def test_a_rank_that_crashes_leaves_its_last_words(collector: Collector):
    """The run span says which signal, and where it hit."""
    with Training(code=CRASHES, **cloud(collector.http_endpoint)) as training:
        training.wait()
        training.wait_for_agent()
    [run] = [span for span in collector.spans() if span.name == "periflow.run"]
    [event] = [attributes for name, _, attributes in run.events if name == "periflow.run.fatal"]
    assert run.attributes["periflow.run.outcome"] == "killed"
    assert event["periflow.run.last_words"] == "Segmentation fault in <string>:5 (crash)"
    assert "line 5, in crash" in event["code.stacktrace"]
