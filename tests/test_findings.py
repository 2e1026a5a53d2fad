"""What stands out in a run is said with rank and reason, and of a healthy one nothing is said."""

import math
import re
from collections.abc import Callable, Sequence
from math import sin
from typing import Any

import pytest
from recorder import MS, STARTED_NS, Recorder, S, give, make_run

from periflow_otel import names
from periflow_otel.records import Earlier, Paused
from periflow_otel.translate.spans import SAMPLED_OUT
from periflow_otel.translate.telemetry import Point
from periflow_otel.view.findings import find
from periflow_otel.view.records import RecordFeed
from periflow_otel.view.run_view import RunView
from periflow_otel.view.words import ranks_words


def train(
    step_ms: Callable[[int, int], float] = lambda _rank, _step: 100.0,
    gap_ms: Callable[[int, int], float] = lambda _rank, _step: 2.0,
    steps: Callable[[int], int] = lambda _rank: 200,
    initial_step: int = 0,
) -> Callable[[int], Recorder]:
    """Return what makes the records of a rank whose steps, and the pauses before them, take so long."""

    def make(rank: int) -> Recorder:
        recorder = Recorder(initial_step)
        for step in range(initial_step + 1, initial_step + steps(rank) + 1):
            recorder.work(round(gap_ms(rank, step) * MS))
            with recorder.step():
                recorder.work(round(step_ms(rank, step) * MS))
        return recorder

    return make


def view_of(
    make: Callable[[int], Recorder], ranks: int = 4, view: RunView | None = None, node_size: int = 8, **fields: Any
) -> RunView:
    """Return a view of an attempt, perhaps with others."""
    view = view or RunView("run")
    for rank in range(ranks):
        host = (("host.name", f"node-{rank // node_size}"),)
        feed = RecordFeed(view, make_run(rank=rank, world_size=ranks, resource=host, **fields))
        give(feed, make(rank).inputs)
        feed.settle()
    return view


def said(view: RunView, now_s: float | None = None) -> list[tuple[str, list[int], str]]:
    """Return kind, ranks and text of everything that is found."""
    return [(each["kind"], each["ranks"], each["text"]) for each in view.to_dict(now_s=now_s)["findings"]]


def jitter(rank: int, step: int) -> float:
    """Return 100 ms and a little, another little for each rank and step."""
    return 100 + (rank * 7919 + step * 104_729) % 13


def chance(number: int) -> float:
    """Return what looks like chance, between 0 and 1, and is the same each time."""
    return abs(sin(number) * 43758.5453) % 1


HEALTHY = {
    "even": train(),
    "noise": train(jitter),
    "compilation": train(lambda _, step: 60_000 if step == 1 else 100),
    "compilation again": train(lambda rank, step: 60_000 if step in (1, 2) else jitter(rank, step)),
    "a few slow steps": train(lambda _, step: 700 if step % 50 == 0 else 100),
    "evaluation": train(gap_ms=lambda _, step: 2_500 if step % 100 == 0 else 2),
    "short": train(steps=lambda _: 3),
    "no step": train(steps=lambda _: 0),
    "tiny steps": train(lambda *_: 0.001, lambda *_: 0.01),
    "warming up": train(lambda _, step: 100 + 900 / step),
    "one rank ahead by a step": train(steps=lambda rank: 200 + (rank == 0)),
    "one rank evaluates": train(gap_ms=lambda rank, step: 2_500 if (rank, step % 50) == (0, 0) else 2),
    "few steps that happen to become longer": train(lambda _, step: 50 if step < 15 else 120, steps=lambda _: 60),
    "few steps of any length": train(
        lambda rank, step: 500 + 2000 * chance(5000 + 100 * rank + step), steps=lambda _: 30
    ),
    "steps of any length": train(lambda _, step: 20 + 130 * chance(155_000 + step), steps=lambda _: 80),
}


@pytest.mark.parametrize("make", HEALTHY.values(), ids=HEALTHY)
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_of_a_healthy_run_nothing_is_said(make: Callable[[int], Recorder], ranks: int):
    """Whoever cries wolf is not looked at."""
    view = view_of(make, ranks)
    assert said(view, STARTED_NS / 1e9 + 25) == []


ILL: dict[str, tuple[Callable[[int], Recorder], str, list[int], str]] = {
    "a slow rank": (
        train(lambda rank, _: 150 if rank == 3 else 100),
        "slow_rank", [3], "Rank 3 is slow: half of its steps take 1.* ms or more, against 1.* ms.",
    ),
    "a slow loader, and the others wait in the step": (
        train(lambda rank, _: 50 if rank == 1 else 150, lambda rank, _: 102 if rank == 1 else 2),
        "late_rank", [1], "Rank 1 takes long between steps: 10. ms on average, against 2 ms.",
    ),
    "all wait for data": (
        train(gap_ms=lambda *_: 100), "much_gap", [0, 1, 2, 3],
        "Ranks 0-3 spend 50% of the time between steps: they wait for data, or do something that is no step",
    ),
    "throttled": (
        train(lambda _, step: 100 if step < 100 else 250), "slower", [], "Steps have become slower: 2.* ms now, 1.*",
    ),
    "a slow loader at last": (
        train(
            lambda rank, step: 50 if rank == 1 and step > 3000 else 150,
            lambda rank, step: 102 if rank == 1 and step > 3000 else 2, lambda _: 3200,
        ),
        "late_rank", [1], "Rank 1 takes long between steps: .* ms on average, against 2.* ms.",
    ),
    "a slow rank at last": (
        train(lambda rank, step: 150 if rank == 3 and step > 3000 else 100, steps=lambda _: 3200),
        "slow_rank", [3], "Rank 3 is slow: half of its steps take 1.* ms or more, against 1.* ms.",
    ),
    "throttled at last": (
        train(lambda _, step: 100 if step < 3000 else 250, steps=lambda _: 3200),
        "slower", [], "Steps have become slower: 2.* ms now, 1.*",
    ),
    "no data at last": (
        train(gap_ms=lambda _, step: 100 if step > 3000 else 2, steps=lambda _: 3200), "much_gap", [0, 1, 2, 3],
        "Ranks 0-3 spend .*% of the time between steps: they wait for data",
    ),
    "a pause": (
        train(lambda rank, step: 4_000 if (rank, step) == (2, 77) else 100),
        "long_steps", [2], "Some steps take very long: near step 76 of rank 2 4.* s, usual are 1.* ms.",
    ),
    "uneven data": (
        train(steps=lambda rank: 60 if rank == 2 else 400),
        "behind", [2], "Rank 2 is behind: at step 60, the others at 400.",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "kind", "ranks", "text"), ILL.values(), ids=ILL)
def test_the_culprit_is_named(make: Callable[[int], Recorder], kind: str, ranks: Sequence[int], text: str):
    """One thing is wrong, and that one is said."""
    ((found_kind, found_ranks, found_text),) = said(view_of(make))
    assert (found_kind, found_ranks) == (kind, ranks)
    assert re.fullmatch(f"{text}.*", found_text), found_text


def test_a_slow_node_is_not_said_to_be_a_slow_rank():
    """Where all ranks of a node are slow, something is wrong with the node."""
    view = view_of(train(lambda rank, _: 150 if rank >= 2 else 100), node_size=2)
    ((kind, ranks, text),) = said(view)
    assert (kind, ranks) == ("slow_node", [2, 3])
    assert text.startswith("Node node-1 (ranks 2-3) is slow")


def test_who_begins_last_is_the_culprit_of_two():
    """The other one's steps are longer, because it waits there."""
    make = train(lambda rank, _: 50 if rank == 1 else 100, lambda rank, _: 52 if rank == 1 else 2)
    view = view_of(make, 2)
    view.rank(view.ranks[1, 1].member).set_late(199, 199 * 0.05, 0.06)
    ((kind, ranks, text),) = said(view)
    assert (kind, ranks) == ("late_rank", [1])
    assert text == "Rank 1 was the last to begin 100% of the steps, by 50 ms on average: the others wait for it."


def test_who_is_last_by_little_but_now_and_then_is_not_late():
    """One rank says more than the others, and evaluates for them."""
    view = view_of(train(), 2)
    view.rank(view.ranks[1, 1].member).set_late(199, 12.0, 3.0, {0.0: 190, 0.001: 5, 2.5: 4})
    assert said(view) == []


def test_steps_are_not_long_in_which_one_waits_for_another():
    """That evaluates between two of its own."""
    make = train(
        lambda rank, step: 4_000 if rank and step % 50 == 0 else 100,
        lambda rank, step: 3_902 if rank == 0 and step % 50 == 0 else 2,
    )
    assert said(view_of(make)) == []


def test_nobody_is_late_where_nobody_waits():
    """Ranks that do not meet drift apart: one of them is the last for long, by more and more."""
    view = view_of(train(jitter), 2)
    view.rank(view.ranks[1, 1].member).set_late(199, 199 * 0.34, 0.6, {0.25: 199})
    assert said(view) == []


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (3600, "was set 1h 0m ahead before step 101, or the machine slept."),
        (-90, "was set 1m 30s back before step 101."),
    ],
)
def test_a_clock_that_is_set_is_said(seconds: int, words: str):
    """With the rank: its times do not fit to those of the others. What takes long is no matter of the clock."""

    def make(rank: int) -> Recorder:
        recorder = Recorder()
        for step in range(1, 201):
            recorder.work(2 * MS)
            if rank == 1 and step == 101:
                recorder.now_ns += seconds * S
            with recorder.step():
                recorder.work(100 * MS)
        return recorder

    assert [each for each in said(view_of(make, 2)) if each[0] == "clock"] == [
        ("clock", [1], f"The clock of rank 1 {words}")
    ]
    assert [each[0] for each in said(view_of(make, 2))] == ["clock"]


def test_who_is_late_for_nobody_is_not_late():
    """The others have taken too few steps yet."""
    view = view_of(train(steps=lambda rank: 200 if rank else 5), 2)
    view.rank(view.ranks[1, 1].member).set_late(20, 20 * 0.34, 0.6, {0.25: 20})
    assert "late_rank" not in [kind for kind, *_ in said(view)]


def test_who_was_slow_once_is_not_slow_now():
    """The good days count as little as the bad ones."""
    assert said(view_of(train(lambda rank, step: 150 if rank == 3 and step < 500 else 100, steps=lambda _: 1000))) == []


def test_what_a_rank_does_now_and_then_is_no_part_of_a_step():
    """Though it takes long: an evaluation that has a name."""

    def make(rank: int) -> Recorder:
        recorder = Recorder()
        for step in range(1, 201):
            with recorder.step():
                recorder.work(100 * MS)
            if rank == 0 and step % 50 == 0:
                with recorder.phase("evaluate"):
                    recorder.work(3 * S)
        return recorder

    assert said(view_of(make, 3)) == []


@pytest.mark.parametrize(("slow_s", "expected"), [(2.0, ["slow_checkpoint"]), (0.6, [])])
def test_checkpoints_that_have_become_slow_are_said(slow_s: float, expected: list[str]):
    """By the last two: one alone may have been bad luck."""

    def make(rank: int) -> Recorder:
        recorder = Recorder()
        for step in range(1, 401):
            with recorder.step():
                recorder.work(100 * MS)
            recorder.metric({"loss": 1.0})
            if step % 50 == 0:
                recorder.work(0 if rank else round((0.1 if step < 350 else slow_s) * S))
                recorder.checkpoint()
        return recorder

    found = find(view_of(make, 2).to_dict(), None)
    assert [each.kind for each in found] == expected
    assert [each.text for each in found] == ["Rank 0 takes 2 s for a checkpoint; it was 100 ms before."] * len(expected)


def test_of_two_that_wait_for_each_other_none_is_slow():
    """As long as nobody knows who begins last: the one that waits has the longer steps."""
    make = train(lambda rank, _: 50 if rank == 1 else 100, lambda rank, _: 52 if rank == 1 else 2)
    assert "slow_rank" not in [kind for kind, *_ in said(view_of(make, 2))]


def test_the_slower_of_two_that_do_not_wait_is_slow():
    """One takes longer from step to step."""
    ((kind, ranks, _),) = said(view_of(train(lambda rank, _: 130 if rank == 1 else 100), 2))
    assert (kind, ranks) == ("slow_rank", [1])


def test_the_end_of_a_quick_rank_does_not_make_steps_slower():
    """What is left has other steps; they are as they were."""
    make = train(
        lambda rank, _: 20 if rank else 60, lambda rank, _: 42 if rank else 2, lambda rank: 120 if rank else 200
    )
    assert "slower" not in [kind for kind, *_ in said(view_of(make, 2))]


def test_much_time_in_checkpoints_is_said():
    """Each takes as long as five steps, every ten steps."""

    def make(_: int) -> Recorder:
        recorder = Recorder()
        for step in range(1, 201):
            with recorder.step():
                recorder.work(100 * MS)
            if step % 10 == 0:
                recorder.work(500 * MS)
                recorder.checkpoint()
        return recorder

    assert ("much_checkpoint", [0, 1]) in [each[:2] for each in said(view_of(make, 2))]


def test_the_first_value_that_is_not_finite_is_named():
    """With its step and rank; what followed is counted."""

    def make(rank: int) -> Recorder:
        recorder = Recorder()
        for step in range(1, 41):
            with recorder.step():
                recorder.work(100 * MS)
                recorder.metric({"loss": float("nan") if (rank == 1 and step >= 7) or step >= 9 else 1.0})
        return recorder

    ((kind, ranks, text),) = said(view_of(make, 2))
    assert (kind, ranks) == ("not_finite", [1])
    assert text == "loss was NaN at step 7 on rank 1, the first of 66 times."


def test_what_was_not_finite_in_an_earlier_attempt_accuses_nobody():
    """It is why another began: the ranks of now did the step again, and well, and others may have their numbers."""

    def make(rank: int) -> Recorder:
        recorder = Recorder()
        for step in range(1, 11):
            with recorder.step():
                recorder.work(100 * MS)
                recorder.metric({"loss": math.nan if (rank, step) == (1, 7) else 1.0})
        return recorder

    earlier = Earlier(1, last_step=10, last_checkpoint=5, last_seen_unix_ns=STARTED_NS + 2 * S)
    view = view_of(
        train(steps=lambda _: 20, initial_step=5), 2, view_of(make, 2), attempt=2, initial_step=5, earlier=earlier
    )
    ((kind, ranks, text),) = said(view)
    assert (kind, ranks) == ("restart", [])
    assert text.startswith("loss was NaN at step 7 on rank 1. Attempt 2 went on from step 5")


def test_who_has_left_is_neither_behind_nor_waited_for():
    """The run is where those are who are still at work."""

    def make(rank: int) -> Recorder:
        recorder = train(steps=lambda rank: 40 if rank == 1 else 300)(rank)
        if rank == 1:
            recorder.finish()
        return recorder

    view = view_of(make)
    assert view.summary()["step"] == 300
    assert said(view) == []


def test_who_ended_before_its_first_step_is_not_said_to_have_been_in_one():
    """There is no step 0."""
    recorder = Recorder()
    recorder.finish("KeyError")
    assert [text for *_, text in said(view_of(lambda _: recorder, 1))] == [
        "Rank 0 was ended by an exception before the first step."
    ]


def test_a_rank_that_was_killed_is_a_fault_and_comes_first():
    """Before what is merely worth a look."""

    def make(rank: int) -> Recorder:
        recorder = train(lambda rank, _: 150 if rank == 3 else 100)(rank)
        if rank == 2:
            recorder.start_step()
            recorder.be_killed()
        return recorder

    findings = view_of(make).to_dict()["findings"]
    assert [(each["kind"], each["ranks"], each["is_fault"]) for each in findings] == [
        ("killed", [2], True),
        ("slow_rank", [3], False),
    ]
    assert findings[0]["text"] == "Rank 2 was killed in step 201."


def test_a_step_that_does_not_end_is_a_fault_once_it_is_long():
    """Those that wait for each other are named together; without a time nobody is accused."""

    def make(rank: int) -> Recorder:
        recorder = train()(rank)
        recorder.start_step()
        return recorder

    view = view_of(make)
    began_s = view.ranks[1, 0].step_started_s
    assert began_s is not None
    assert said(view, began_s + 59) == said(view) == []
    ((kind, ranks, text),) = said(view, began_s + 61)
    assert (kind, ranks) == ("open_step", [0, 1, 2, 3])
    assert text.startswith("Ranks 0-3 have been in step 201 for 1m 1s; usual are")


def test_a_step_that_others_wait_in_is_no_fault_of_theirs():
    """Who has not begun it is named: it may evaluate, say."""

    def make(rank: int) -> Recorder:
        recorder = train()(rank)
        if rank:
            recorder.start_step()
        return recorder

    view = view_of(make)
    [found] = find(view.to_dict(), STARTED_NS / 1e9 + 90)
    assert (found.kind, found.ranks, found.is_fault) == ("open_step", [0], False)
    assert re.fullmatch("Ranks 1-3 have been in step 201 for .*, and rank 0 has not begun it.", found.text)


def test_restarts_that_lead_nowhere_are_a_fault():
    """Each ends where the first one ended."""
    view = view_of(train(steps=lambda _: 20), 1)
    for attempt in range(2, 6):
        earlier = Earlier(attempt - 1, 20, 10, STARTED_NS + 10 * S)
        view = view_of(
            train(steps=lambda _: 10, initial_step=10), 1, view, attempt=attempt, initial_step=10, earlier=earlier
        )
    (loop, *restarts) = said(view)
    assert loop[0] == "restart_loop"
    assert "The last 3 attempts ended no step beyond 20" in loop[2]
    assert {each[0] for each in restarts} == {"restart"}


def test_a_receiver_that_takes_nothing_is_said():
    """How long, and how much waits."""
    view = view_of(train(), 1)
    consumer = ((names.CONSUMER, "otlp.traces"),)
    for instrument, value in (
        (names.TELEMETRY_SINCE_SUCCESS, 300.0), (names.TELEMETRY_BACKLOG, 12.0), (names.TELEMETRY_DROPPED, 5.0),
    ):  # fmt: skip
        view.add_reports([Point(instrument, consumer, 2, value)])
    texts = [text for _, _, text in said(view)]
    assert "otlp.traces has taken nothing for 5m 0s; 12 records wait for it." in texts
    assert "5 items for otlp.traces are lost: see periflow-otel doctor." in texts


def test_what_is_sampled_out_is_not_lost():
    """Somebody wished it so."""
    view = view_of(train(), 1)
    for reason, count in ((SAMPLED_OUT, 500.0), ("journal", 3.0)):
        attributes = ((names.CONSUMER, "otlp.traces"), (names.DROP_REASON, reason))
        view.add_reports([Point(names.TELEMETRY_DROPPED, attributes, 2, count)])
    assert [text for _, _, text in said(view)] == ["3 items for otlp.traces are lost: see periflow-otel doctor."]


MACHINE: dict[str, tuple[str, dict[str, str], bool, Sequence[float], str | None]] = {
    "full disk": (
        "system.filesystem.utilization", {"system.filesystem.mountpoint": "/data"}, False, [0.5, 0.97],
        "The disk at /data of node node-0 is 97% full.",
    ),
    "half a disk": ("system.filesystem.utilization", {"system.filesystem.mountpoint": "/data"}, False, [0.5], None),
    "full memory": (
        "system.memory.utilization", {"system.memory.state": "used"}, False, [0.96],
        "The memory of node node-0 is 96% full.",
    ),
    "full cache": ("system.memory.utilization", {"system.memory.state": "cached"}, False, [0.96], None),
    "swapping": (
        "system.paging.operations", {"system.paging.direction": "in"}, True, [0, 0, 3000],
        "300 pages a second of node node-0 come back from swap space.",
    ),
    "swapped once": ("system.paging.operations", {"system.paging.direction": "in"}, True, [3000, 3000], None),
    "throttled": (
        "periflow.machine.cpu.throttled", {}, True, [0, 4],
        "The container of node node-0 is kept from running 40% of the time by its processor limit.",
    ),
    "a slow disk": (
        "periflow.machine.stalled", {"periflow.machine.resource": "io"}, True, [0, 8],
        "Processes of node node-0 wait for the disk 80% of the time.",
    ),
    "a disk at work": ("periflow.machine.stalled", {"periflow.machine.resource": "io"}, True, [0, 4], None),
    "busy processors": ("periflow.machine.stalled", {"periflow.machine.resource": "cpu"}, True, [0, 9], None),
    "a hot GPU": (
        "hw.status", {"hw.name": "GPU 1", "hw.type": "temperature", "hw.state": "degraded"}, False, [1],
        "GPU 1 of node node-0 is held back by its temperature.",
    ),
    "a GPU that was hot": (
        "hw.status", {"hw.name": "GPU 1", "hw.type": "temperature", "hw.state": "degraded"}, False, [1, 0], None,
    ),
    "a lost GPU": (
        "hw.status", {"hw.name": "GPU 1", "hw.type": "gpu", "hw.state": "failed"}, False, [1],
        "GPU 1 of node node-0 does not answer its driver.",
    ),
    "an XID": (
        "hw.errors", {"hw.name": "GPU 1", "error.type": "xid_79"}, True, [1],
        "GPU 1 of node node-0 has had error XID 79, 1 times.",
    ),
    "corrected errors": ("hw.errors", {"hw.name": "GPU 1", "error.type": "corrected"}, True, [100], None),
}  # fmt: skip


@pytest.mark.parametrize(("name", "attributes", "is_sum", "values", "text"), MACHINE.values(), ids=MACHINE)
def test_what_is_wrong_with_the_machine_is_said(
    name: str, attributes: dict[str, str], is_sum: object, values: Sequence[float], text: str | None
):
    """By the latest value alone, ten seconds after the one before."""
    view = view_of(train(), 1)
    for i, value in enumerate(values):
        time_s = STARTED_NS / 1e9 + 10 * i
        view.ranks[1, 0].add_of_machine(name, tuple(attributes.items()), time_s, value, is_sum=bool(is_sum))
    assert [text for _, _, text in said(view)] == ([] if text is None else [text])


def remembering(mib: Callable[[int], float], rows: int = 60, interval_s: float = 10, limit_gib: int = 64) -> RunView:
    """Return a view of a rank that goes on, and of the memory of its process by the number of the reading."""
    view = RunView("run")
    recorder = Recorder()
    for _ in range(int(rows * interval_s)):
        with recorder.step():
            recorder.work(S)
    feed = RecordFeed(view, make_run())
    give(feed, recorder.inputs)
    feed.settle()
    rank = view.ranks[1, 0]
    for row in range(rows):
        time_s = STARTED_NS / 1e9 + interval_s * (row + 0.5)
        rank.add_of_machine("process.memory.usage", (), time_s, mib(row) * (1 << 20), is_sum=False)
        used = (("system.memory.state", "used"),)
        rank.add_of_machine("system.memory.usage", used, time_s, (8 << 30) + mib(row) * (1 << 20), is_sum=False)
        rank.add_of_machine("system.memory.limit", (), time_s, limit_gib << 30, is_sum=False)
    return view


STEADY_MEMORY = {
    "constant": lambda _: 4000,
    "swinging": lambda row: 4000 + 900 * (row % 7),
    "warming up": lambda row: 4000 * (1 - math.exp(-row / 6)),
    "a cache that is full": lambda row: 1000 + 100 * min(row, 45),
    "a cache that fills ever more slowly": lambda row: 1000 + 1500 * math.log1p(row),
    "a saw": lambda row: 4000 + 100 * (row % 20),
    "one larger evaluation": lambda row: 4000 + 3000 * (row in (40, 41, 42)),
    "steps up and stays": lambda row: 4000 + 2000 * (row > 30),
    "a little": lambda row: 4000 + 0.5 * row,
    "less and less": lambda row: 4000 - 10 * row,
}


@pytest.mark.parametrize("mib", STEADY_MEMORY.values(), ids=STEADY_MEMORY)
@pytest.mark.parametrize("rows", [20, 60, 400])
def test_memory_that_does_not_grow_without_end_is_not_accused(mib: Callable[[int], float], rows: int):
    """Warm-up, caches and steps of any size, however long one has looked, and however little memory there is."""
    assert said(remembering(lambda row: mib(row * 60 // rows), rows, limit_gib=16)) == []


@pytest.mark.parametrize(
    ("mib", "rows", "interval_s", "text"),
    [
        (
            lambda row: 4000 + 20 * row,
            90,
            10,
            "grows by 120 MiB a minute: the 64 GiB that there are will be full in 7h 9m",
        ),
        (lambda row: 4000 + 20 * max(0, row - 300), 400, 10, "grows by 120 MiB a minute"),
        (lambda row: 4000 + 20 * row + 150 * (row % 3), 120, 10, "MiB a minute"),
        (
            lambda row: 4000 + 200 * row,
            60,
            1,
            "grows by 12,000 MiB a minute: the 64 GiB that there are will be full in",
        ),
    ],
    ids=["slow", "late", "swinging", "fast"],
)
def test_memory_that_grows_without_end_is_said(mib: Callable[[int], float], rows: int, interval_s: float, text: str):
    """With rank and pace; a fast one within a minute, and as a fault."""
    ((kind, ranks, words),) = said(remembering(mib, rows, interval_s))
    assert (kind, ranks) == ("memory", [0])
    assert words.startswith("The memory of rank 0 grows by")
    assert text in words


@pytest.mark.parametrize(
    ("ranks", "words"),
    [([3], "Rank 3"), ([1, 0], "Ranks 0-1"), ([0, 1, 2, 3, 7], "Ranks 0-3, 7"), ([5, 1, 9], "Ranks 1, 5, 9")],
)
def test_ranks_are_named_shortly(ranks: list[int], words: str):
    """A thousand of them fit into a line."""
    assert ranks_words(ranks) == words


def test_a_run_without_anything_has_no_findings():
    """As it is before the first rank is there."""
    assert find(RunView("run").to_dict(), 1.0) == []


@pytest.mark.parametrize(("pause_ms", "expected"), [(20, ["pauses"]), (3, [])])
def test_garbage_collections_are_said_to_hold_up_steps(pause_ms: int, expected: list[str]):
    """With the rank; a few percent are not worth a word."""

    def make(rank: int) -> Recorder:
        recorder = Recorder()
        for step in range(1, 201):
            with recorder.step():
                recorder.work(100 * MS)
                if rank == 2:
                    recorder.inputs.append(Paused(step, recorder.now_ns, {2: pause_ms * MS}))
        return recorder

    found = find(view_of(make).to_dict(), None)
    assert [each.kind for each in found] == expected
    assert [each.ranks for each in found] == [[2]] * len(expected)


def test_last_words_are_said_of_a_rank_that_was_killed():
    """A fatal signal says more than that the process is gone."""
    view = view_of(train(steps=lambda _: 20), ranks=1)
    [rank] = view.last_attempt()
    rank.end("killed", STARTED_NS / 1e9 + 9)
    rank.last_words = "Segmentation fault in crash.py:3 (crash)"
    assert ("killed", [0], "Rank 0 was killed in step 20 by Segmentation fault in crash.py:3 (crash).") in said(view)
