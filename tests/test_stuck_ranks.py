"""Real ranks that do not go on: the one that holds up the others is named, with its file and line."""

import os
from pathlib import Path

from programs import Collector, ReceivedSpan, wait_until
from training import Training, cloud

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


def test_nobody_is_asked_where_that_is_turned_off():
    """There is not even a file."""
    os.mkfifo("go")
    with Training(code=ALONE, PERIFLOW_STUCK_AFTER="0") as training:
        training.read_line()
        assert not list(training.state.glob("*/*/a*/stacks"))
        Path("go").write_text("")
        training.wait()
    assert training.process.returncode == 0
