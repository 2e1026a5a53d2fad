"""Real ranks of which one holds up some steps: it is named, with the place in its code."""

from contextlib import ExitStack
from pathlib import Path

from programs import Collector, ReceivedSpan, free_ports, needs, wait_until
from training import Training, cloud

HELD_UP = """import os, time
import torch, torch.distributed as dist
import periflow_otel as pf
class Hooked(torch.autograd.Function):
    @staticmethod
    def forward(context, values):
        return values
    @staticmethod
    def backward(context, gradient):
        if rank == 1 and step > 50 and step % 10 == 0:
            augment()
        return gradient
def augment():
    time.sleep(1)
dist.init_process_group("gloo")
rank, step = dist.get_rank(), 0
weights = torch.nn.Parameter(torch.ones(8))
pf.init(100_000)
is_wanted = True
while is_wanted:
    step += 1
    with pf.train_step():
        time.sleep(0.02)
        Hooked.apply(weights).sum().backward()
        dist.all_reduce(weights.grad)
        word = torch.tensor(float(os.path.exists("enough")))
        dist.all_reduce(word)
        is_wanted = not word
dist.destroy_process_group()
"""
"""Two ranks that meet in each step, of which one sleeps in the backward pass of every tenth."""


def held_up(collector: Collector) -> list[ReceivedSpan]:
    """Return what was said of steps that are held up in the script's own function."""
    slow = [span for span in collector.spans() if span.name == "periflow.slow"]
    return [span for span in slow if str(span.attributes["periflow.stuck.place"]).endswith("(augment)")]


@needs("torch")
def test_the_rank_that_holds_up_a_step_is_named(collector: Collector):
    """While others wait for it, with its function, its stack, and how long that took; training goes on meanwhile."""
    [port] = free_ports(1)
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2"}
    environ = cloud(collector.http_endpoint, PERIFLOW_RUN_ID="two") | place
    with ExitStack() as stack:
        ranks = [
            stack.enter_context(Training(code=HELD_UP, **environ, RANK=str(rank), LOCAL_RANK=str(rank)))
            for rank in range(2)
        ]
        wait_until(lambda: held_up(collector), 120)
        Path("enough").touch()
        assert [each.wait().process.returncode for each in ranks] == [0, 0]
    slow = held_up(collector)[0]
    step = slow.attributes["periflow.step.number"]
    assert slow.attributes["periflow.stuck.place"] == "<string>:14 (augment)"
    assert slow.attributes["periflow.stuck.ranks"] == "1"
    assert slow.attributes["periflow.slow.doing"] == "sleeps or waits"
    assert step % 10 == 0
    assert slow.attributes["periflow.slow.excess"] > 0.5
    assert slow.trace_id in {
        span.trace_id for span in collector.spans()
        if span.name == "periflow.step" and span.attributes["periflow.step.number"] == step
    }  # fmt: skip
    culprit, *waiting = [attributes for _, _, attributes in slow.events]
    assert "in augment" in culprit["code.stacktrace"]
    assert "in backward" in culprit["code.stacktrace"]
    assert [each["periflow.stuck.summary"].partition(" ")[2] for each in waiting] == ["(all_reduce)"]
