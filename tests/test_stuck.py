"""A rank that does not go on is told from one that takes long for a good reason, and from those that wait for it."""

import itertools

import pytest

from periflow_otel.agent.stragglers.progress import FACTOR, LONG_FACTOR, PAUSE_FACTOR, Progress
from periflow_otel.journal.reader import Head
from periflow_otel.records import StepEnded
from periflow_otel.translate.stragglers.activities import Activity
from periflow_otel.translate.stragglers.stacks import Frame, Stack
from periflow_otel.translate.stragglers.stuck import Witness, find_culprits

LEAST_S = 20.0
LOOK_S = 0.1
SITE = "/venv/lib/python3.11/site-packages"
MAIN = (Frame("/home/me/train.py", 30, "train"), Frame("/home/me/train.py", 90, "<module>"))
ALL_REDUCE = (
    Frame(f"{SITE}/torch/distributed/distributed_c10d.py", 2810, "all_reduce"),
    Frame(f"{SITE}/torch/distributed/c10d_logger.py", 81, "wrapper"),
    *MAIN,
)
BACKWARD = (
    Frame(f"{SITE}/torch/autograd/graph.py", 800, "_engine_run_backward"),
    Frame(f"{SITE}/torch/_tensor.py", 600, "backward"),
    *MAIN,
)
LOADER = (
    Frame("/usr/lib/python3.11/threading.py", 327, "wait"),
    Frame("/home/me/dataset.py", 88, "__getitem__"),
    Frame(f"{SITE}/torch/utils/data/_utils/fetch.py", 50, "fetch"),
    *MAIN,
)


class Rank:
    """A rank that is looked at ten times a second, on a clock of its own."""

    def __init__(self, usual_s: float = 1.0, steps: int = 20) -> None:
        """Take some steps, each as long."""
        self.progress = Progress()
        self.now_s = 100.0
        self.head = Head(0, 0, 0, 0, 0, 0)
        self.look()
        for _ in range(steps):
            self.step(usual_s)

    def look(self) -> None:
        """Look once."""
        self.progress.look(self.head, self.now_s)

    def wait(self, seconds: float) -> bool:
        """Let time go by; return whether it was too long at some time."""
        late = False
        for _ in range(round(seconds / LOOK_S)):
            self.now_s += LOOK_S
            self.look()
            late |= self.is_late()
        return late

    def step(self, seconds: float) -> bool:
        """Take a step; return whether it was too long at some time."""
        late = self.wait(seconds)
        self.head = self.head._replace(sequence=self.head.sequence + 1, step=self.head.step + 1)
        self.look()
        return late

    def is_late(self) -> bool:
        """Tell whether it is too long since it has gone on."""
        return self.progress.waited_s > self.progress.limit_s(LEAST_S)


def test_a_rank_that_does_not_go_on_is_noticed():
    """After the least time, or after a multiple of what is usual, whichever is more."""
    assert not Rank(0.5).wait(LEAST_S)
    assert Rank(0.5).wait(LEAST_S + 0.2)
    assert not Rank(5).wait(5 * FACTOR)
    assert Rank(5).wait(5 * FACTOR + 0.2)


def test_an_agent_that_comes_late_knows_what_is_usual():
    """The last records tell it, but for the first step, which loads and compiles."""
    before = [StepEnded(step, 0, 10**9, None, 10**9 if step > 1 else None) for step in range(1, 9)]
    progress = Progress(before)
    progress.look(Head(8, 0, 9, 1, 0, 0), 0.0)
    assert progress.limit_s(LEAST_S) == LEAST_S
    assert progress.limit_s(1.0) == 2.0 * FACTOR
    assert Progress().limit_s(LEAST_S) == LONG_FACTOR * LEAST_S


HARMLESS = {
    "a first step that compiles": lambda: Rank(steps=0).step(400),
    "a second step that compiles": lambda: Rank(steps=1).step(400),
    "steps that vary": lambda: any(rank.step(seconds) for rank in [Rank()] for seconds in (1, 7, 2, 15, 3, 19, 1)),
    "sequences that grow": lambda: any(rank.step(1.0 * n) for rank in [Rank()] for n in range(1, 60, 2)),
    "an evaluation after each epoch": lambda: any(
        rank.step(seconds) for rank in [Rank()] for seconds in (1, 1, 18, 1, 1, 30, 1, 1, 34)
    ),
    "slow steps that become slower": lambda: any(rank.step(60.0 * n) for rank in [Rank(60)] for n in (1, 3, 6, 9)),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_is_usual_is_not_noticed(name: str):
    """No rank is even asked."""
    assert HARMLESS[name]() is False


def test_a_wait_that_was_reported_is_no_measure():
    """The next one of its kind is reported as soon."""
    rank = Rank()
    rank.wait(300)
    rank.progress.is_reported = True
    rank.step(1)
    assert rank.wait(LEAST_S + 1)


def test_time_counts_only_while_somebody_looks():
    """An agent that was stopped has seen nothing, and a machine that slept has done nothing."""
    rank = Rank()
    rank.now_s += 3600
    rank.look()
    assert not rank.is_late()


def test_a_pause_that_the_script_has_announced_may_take_long():
    """A phase between steps: evaluation, saving. Not one around steps, such as an epoch."""
    rank = Rank()
    rank.head = rank.head._replace(pause=rank.head.step + 1)
    assert not rank.wait(PAUSE_FACTOR * LEAST_S - 1)
    assert rank.wait(2)
    rank = Rank()
    rank.head = rank.head._replace(pause=1)
    assert rank.wait(LEAST_S + 1)


def test_what_is_recorded_in_a_step_is_no_sign_of_life():
    """Another thread may do that, as one that watches the machine, or logs."""
    rank = Rank()
    assert not rank.wait(LEAST_S / 2)
    rank.head = rank.head._replace(sequence=rank.head.sequence + 1)
    assert rank.wait(LEAST_S / 2 + 1)


def at(rank: int, *stacks: Stack, step: int = 7, is_open: bool = True, activity: Activity | None = None) -> Witness:
    """Return a rank that has given stacks."""
    return Witness(rank, step, is_open, stacks, activity)


def test_the_one_that_others_wait_for_is_named():
    """It is between two steps while they are in the next; one line says it all."""
    finding = find_culprits(
        [at(0, ALL_REDUCE), at(1, ALL_REDUCE), at(2, ALL_REDUCE), at(3, LOADER, step=6, is_open=False)]
    )
    assert finding.describe() == "rank 3 is in dataset.py:88 (__getitem__); 3 ranks (0-2) wait in all_reduce"
    assert (finding.who(), finding.place()) == ("3", "dataset.py:88 (__getitem__)")
    assert finding.excuse() is None


def test_the_backward_pass_waits_where_another_does_not():
    """Its collectives have no frames of their own."""
    hook = (Frame("/home/me/hooks.py", 5, "slow_hook"), *BACKWARD)
    finding = find_culprits([at(0, BACKWARD), at(1, hook), at(2, BACKWARD), at(3, BACKWARD)])
    assert finding.who() == "1"
    assert finding.describe().startswith("rank 1 is in hooks.py:5 (slow_hook); 3 ranks (0, 2-3)")


def test_the_one_that_is_elsewhere_is_named_where_nobody_knows_who_waits():
    """Most of them are in the same place."""
    places = [(Frame("/home/me/train.py", line, "sync"), *MAIN) for line in (5, 5, 5)]
    alone = (Frame("/home/me/train.py", 8, "load"), *MAIN)
    finding = find_culprits([at(0, alone), *(at(rank, place) for rank, place in enumerate(places, 1))])
    assert finding.who() == "0"


def test_the_one_that_is_behind_is_named_though_it_waits_too():
    """It is in another collective than the rest: they wait for each other."""
    barrier = (Frame(f"{SITE}/torch/distributed/distributed_c10d.py", 4000, "barrier"), *MAIN)
    finding = find_culprits([at(0, ALL_REDUCE), at(1, barrier, step=6, is_open=False)])
    assert finding.who() == "1"
    assert finding.excuse() is None


def test_nobody_is_to_blame_where_all_wait():
    """On one node something is wrong with the collective; of several, the one to blame may be elsewhere, and work."""
    ranks = [at(0, ALL_REDUCE), at(1, ALL_REDUCE)]
    assert find_culprits(ranks).culprits == ()
    assert find_culprits(ranks).excuse() is None
    assert find_culprits(ranks, elsewhere=2).excuse() is Activity.WAITS
    assert find_culprits(ranks).describe() == "2 ranks (0-1) wait in all_reduce"


def test_who_waits_in_another_collective_is_to_blame():
    """The others never come there; unless somebody is missing, or there is no majority."""
    receive = (Frame(f"{SITE}/torch/distributed/distributed_c10d.py", 2500, "recv"), *MAIN)
    ranks = [at(0, ALL_REDUCE), at(1, receive), at(2, ALL_REDUCE)]
    finding = find_culprits(ranks)
    assert (finding.who(), finding.excuse()) == ("1", None)
    assert finding.describe() == "rank 1 waits in recv; 2 ranks (0, 2) wait in all_reduce"
    assert find_culprits(ranks, elsewhere=1).culprits == find_culprits(ranks, gone=1).culprits == ()
    assert find_culprits(ranks[:2]).culprits == ()


def test_ranks_that_are_gone_are_told_of():
    """The others may wait for them."""
    finding = find_culprits([at(0, ALL_REDUCE)], gone=1)
    assert finding.describe() == "rank 0 waits in all_reduce; 1 rank is gone"
    assert finding.excuse() is None


def test_a_rank_that_gives_no_answer_is_to_blame():
    """It may be in the kernel, where no signal reaches it."""
    finding = find_culprits([at(0, ALL_REDUCE), at(1)])
    assert finding.describe() == "rank 1 gives no answer; rank 0 waits in all_reduce"


def within(*frames: tuple[str, str]) -> Stack:
    """Return a stack of files and functions within training."""
    return (*(Frame(file, 1, function) for file, function in frames), *MAIN)


STDLIB = "/usr/lib/python3.11"
FORWARD = [
    within((f"{SITE}/torch/nn/modules/{name}.py", "forward"), ("/home/me/train.py", "score")) for name in "abcdefgh"
]
GOOD_REASONS = {
    "pdb": [within((f"{STDLIB}/cmd.py", "cmdloop"), (f"{STDLIB}/pdb.py", "interaction"))],
    "debugpy": [within((f"{SITE}/debugpy/_vendored/pydevd/pydevd.py", "do_wait_suspend"))],
    "ipdb": [within((f"{SITE}/ipdb/__main__.py", "set_trace"))],
    "notebook": [(Frame(f"{STDLIB}/selectors.py", 468, "select"), Frame(f"{SITE}/ipykernel/kernelapp.py", 1, "start"))],
    "prompt": [()],
    "console": [(Frame(f"{STDLIB}/code.py", 1, "interact"),)],
    "pyrepl": [(Frame(f"{STDLIB}/_pyrepl/reader.py", 1, "readline"),)],
    "evaluate": [within(("/home/me/train.py", "evaluate"))],
    "validation": [within((f"{SITE}/lightning/loop.py", "validation_step"))],
    "torch.save": [within((f"{SITE}/torch/serialization.py", "save"))],
    "save_pretrained": [within((f"{SITE}/transformers/modeling_utils.py", "save_pretrained"))],
    "save_checkpoint": [within(("/home/me/io.py", "write"), ("/home/me/train.py", "save_checkpoint"))],
    "inductor": [within((f"{SITE}/torch/_inductor/compile_fx.py", "compile_fx"))],
    "dynamo": [within((f"{SITE}/torch/_dynamo/convert_frame.py", "transform"))],
    "triton": [within((f"{SITE}/triton/compiler/compiler.py", "compile"))],
    "jax": [within((f"{SITE}/jax/_src/compiler.py", "backend_compile"))],
    "cpp_extension": [within((f"{SITE}/torch/utils/cpp_extension.py", "load"))],
    "work": FORWARD,
}


@pytest.mark.parametrize("name", GOOD_REASONS)
def test_who_has_a_good_reason_is_not_accused(name: str):
    """Nor are those that wait for it."""
    stacks = GOOD_REASONS[name]
    assert find_culprits([at(0, *stacks)]).excuse() is not None
    assert find_culprits([at(0, *stacks), at(1, ALL_REDUCE), at(2, ALL_REDUCE)]).excuse() is not None


@pytest.mark.parametrize("activity", [Activity.IS_STOPPED, Activity.IS_DEBUGGED])
def test_nobody_is_accused_while_somebody_is_stopped(activity: Activity):
    """Whoever has stopped it knows."""
    assert find_culprits([at(0, activity=activity), at(1, LOADER)]).excuse() is activity


def test_a_loop_in_python_is_not_work():
    """It comes about no further than the functions that it calls again and again."""
    spin = (Frame("/home/me/train.py", 12, "spin"), *MAIN)
    poll = (Frame("/home/me/train.py", 20, "is_ready"), *spin)
    stacks = [stack for stack, _ in zip(itertools.cycle([spin, poll, poll]), range(8), strict=False)]
    assert find_culprits([at(0, *stacks)]).excuse() is None


def test_training_that_evaluates_too_is_no_evaluation():
    """The name of what all of it runs in says nothing."""
    stack = (Frame("/home/me/dataset.py", 88, "read"), Frame("/home/me/train.py", 3, "train_and_evaluate"))
    assert find_culprits([at(0, stack)]).excuse() is None


def test_a_cell_that_hangs_is_not_idle():
    """A notebook whose cell has not ended is at work."""
    cell = (Frame("/tmp/ipykernel_77/1234.py", 3, "<module>"), Frame(f"{SITE}/ipykernel/ipkernel.py", 1, "do_execute"))  # noqa: S108  # as it is called
    assert find_culprits([at(0, cell)]).excuse() is None
