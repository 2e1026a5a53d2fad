"""The rank that holds up a step is told from those that wait for it; of what happens to all alike nothing is said."""

from collections.abc import Mapping

import pytest
from recorder import MS, STARTED_NS, S, make_run
from test_stuck import ALL_REDUCE, BACKWARD, LOADER, MAIN, SITE

from periflow_otel import ids
from periflow_otel.agent.stragglers.allowance import BURST_S, SHARE, Allowance
from periflow_otel.agent.stragglers.rhythm import LEAST_KNOWN, LOOK_EXCESS_S, LOOK_FACTOR, Rhythm, is_slow
from periflow_otel.journal.reader import Head
from periflow_otel.translate.stragglers.slow import LASTING_SHARE, Culprit, Doing, Look, Sample, find_culprit
from periflow_otel.translate.stragglers.slow_spans import Slowness, slow_span
from periflow_otel.translate.stragglers.stacks import Frame, Stack
from periflow_otel.view.records import RecordFeed
from periflow_otel.view.run_view import RunView

HOOK = (Frame("/home/me/model.py", 12, "augment"), *BACKWARD)
OWN_BACKWARD = (
    Frame("/home/me/op.py", 5, "backward"),
    Frame(f"{SITE}/torch/autograd/function.py", 1, "apply"),
    *BACKWARD,
)
HANDLE = (Frame("/home/me/train.py", 33, "reduce"), *MAIN)
"""Waits in C, for what a call before has begun."""
EVALUATE = (Frame("/home/me/train.py", 50, "evaluate"), *MAIN)
TRACE = (Frame(f"{SITE}/torch/_dynamo/convert_frame.py", 50, "compile"), *MAIN)
COMPILED = (Frame("/home/me/model.py", 12, "augment"), Frame(f"{SITE}/torch/_dynamo/eval_frame.py", 5, "_fn"), *MAIN)
RUNS, QUEUES, SLEEPS = Doing.COMPUTES, Doing.QUEUES, Doing.SLEEPS


def look(*stacks: Stack, **doing: Doing) -> Look:
    """Return what was seen of ranks 0, 1, …: they sleep, but for those of which something else is said."""
    return {rank: Sample(stack, doing.get(f"r{rank}", SLEEPS)) for rank, stack in enumerate(stacks)}


def step(name: str) -> list[Look]:
    """Return four looks that are alike, and one at which nobody waits."""
    return [LOOKS[name]] * 4 + [look(MAIN, LOADER, HOOK, HANDLE, r0=RUNS, r1=RUNS, r2=RUNS, r3=RUNS)]


LOOKS: Mapping[str, Look] = {
    "sleeps in a hook": look(BACKWARD, HOOK, BACKWARD, BACKWARD),
    "computes in a hook": look(BACKWARD, HOOK, BACKWARD, BACKWARD, r1=RUNS),
    "is a step behind, in its loader": look(ALL_REDUCE, LOADER, ALL_REDUCE, ALL_REDUCE),
    "computes in the backward pass, in C": look(BACKWARD, BACKWARD, ALL_REDUCE, ALL_REDUCE, r1=RUNS),
    "has a backward pass of its own": look(BACKWARD, OWN_BACKWARD, BACKWARD, BACKWARD),
    "is waited for without a name": look(HANDLE, HOOK, HANDLE, HANDLE, r1=RUNS),
    "is waited for by a GPU that spins": look(HANDLE, LOADER, HANDLE, HANDLE, r0=RUNS, r2=RUNS, r3=RUNS),
    "waits for a processor": look(ALL_REDUCE, MAIN, ALL_REDUCE, ALL_REDUCE, r1=QUEUES),
    "runs in a compiled model": look(ALL_REDUCE, COMPILED, ALL_REDUCE, ALL_REDUCE, r1=RUNS),
    "is one of two": look(ALL_REDUCE, HOOK),
}


@pytest.mark.parametrize("name", LOOKS)
def test_the_rank_that_holds_up_the_others_is_found(name: str):
    """Wherever it is, and however the others wait."""
    culprit = find_culprit(step(name))
    assert culprit is not None
    assert culprit.ranks == (1,)
    assert culprit.stack == LOOKS[name][1].stack
    assert culprit.doing is LOOKS[name][1].doing


BLAMELESS: Mapping[str, list[Look]] = {
    "no look": [],
    "all compute": [look(MAIN, BACKWARD, MAIN, BACKWARD, r0=RUNS, r1=RUNS, r2=RUNS, r3=RUNS)] * 9,
    "all wait for another node": [look(*[ALL_REDUCE] * 4)] * 9,
    "all wait for the processor": [look(*[MAIN] * 4, r0=QUEUES, r1=QUEUES, r2=QUEUES, r3=QUEUES)] * 9,
    "one after another": [look(*[HOOK if rank == at % 4 else BACKWARD for rank in range(4)]) for at in range(12)],
    "two in turn": [LOOKS["sleeps in a hook"]] * 4 + [look(BACKWARD, BACKWARD, HOOK, BACKWARD)] * 4,
    "most wait for the processor": [look(*[MAIN] * 3, HOOK, r0=QUEUES, r1=QUEUES, r2=QUEUES, r3=RUNS)] * 9,
    "all evaluate": [look(*[EVALUATE] * 4, r0=RUNS, r1=RUNS, r2=RUNS, r3=RUNS)] * 9,
    "one evaluates": [look(EVALUATE, ALL_REDUCE, ALL_REDUCE, ALL_REDUCE, r0=RUNS)] * 9,
    "one compiles": [look(TRACE, ALL_REDUCE, ALL_REDUCE, ALL_REDUCE, r0=RUNS)] * 9,
    "seen too rarely": [look(BACKWARD, HOOK, BACKWARD, BACKWARD)] * 2,
    "mostly something else": [look(BACKWARD, HOOK, BACKWARD, BACKWARD)] * 3
    + [look(MAIN, BACKWARD, MAIN, BACKWARD, r0=RUNS, r1=RUNS, r2=RUNS, r3=RUNS)] * 9,
    "alone": [{0: Sample(HOOK, RUNS)}] * 9,
}


@pytest.mark.parametrize("name", BLAMELESS)
def test_nobody_is_blamed_for_what_is_nobodys_fault(name: str):
    """Nor for what takes long by nature."""
    assert find_culprit(BLAMELESS[name]) is None


def test_the_place_is_where_it_was_most_of_the_time():
    """In a loop its lines change, and a look at the end finds it elsewhere."""
    looks = [look(BACKWARD, (HOOK[0]._replace(line=line), *HOOK[1:]), BACKWARD, BACKWARD) for line in (3, 4, 4, 5)]
    culprit = find_culprit([*looks, look(BACKWARD, MAIN, BACKWARD, BACKWARD)])
    assert culprit is not None
    assert culprit.place == "model.py:4 (augment)"


def head(number: int, start_s: float) -> Head:
    """Return what a journal says in a step that has begun at a time."""
    return Head(0, 0, number, STARTED_NS + round(start_s * S), 0, 0)


def learnt(period_s: float) -> Rhythm:
    """Return a rhythm that knows what is usual, looked at every second step; the last one has begun at zero."""
    rhythm = Rhythm()
    for number in range(1, 2 * LEAST_KNOWN + 4, 2):
        rhythm.look(head(number, (number - 2 * LEAST_KNOWN - 3) * period_s))
    return rhythm


def test_a_step_is_looked_at_once_it_is_late():
    """It is known when that will be; steps that nobody has seen are no matter."""
    assert learnt(1.0).left_s(STARTED_NS) == pytest.approx(LOOK_FACTOR)
    assert learnt(0.01).left_s(STARTED_NS) == pytest.approx(0.01 + LOOK_EXCESS_S)
    assert learnt(0.01).left_s(STARTED_NS + S) < 0
    assert learnt(1.0).look(head(2 * LEAST_KNOWN + 5, 4.0)) == pytest.approx(2.0)


def test_nothing_is_looked_at_before_it_is_known_what_is_usual():
    """Nor while the script says that it pauses."""
    rhythm = Rhythm()
    for number in range(1, LEAST_KNOWN + 1):
        rhythm.look(head(number, number))
        assert rhythm.left_s(STARTED_NS) is None
    rhythm = learnt(1.0)
    rhythm.look(head(100, 100.0)._replace(pause=101))
    assert rhythm.left_s(STARTED_NS) is None


def test_natural_jitter_is_not_slow():
    """A slow step takes twice as long, and it is worth a word only if that is much."""
    assert not is_slow(0.19, 0.1)
    assert is_slow(0.3, 0.1)
    assert not is_slow(0.03, 0.01)


def test_questions_take_a_small_part_of_a_processor():
    """For however long they are worth it: a burst, and then a share."""
    allowance, now_s, spent_s = Allowance(), 0.0, 0.0
    while now_s < 1000:
        now_s += 0.3
        if allowance.allows(now_s):
            spent_s += 0.005
            allowance.pay(0.005, was_worth_it=True)
    assert SHARE * 1000 < spent_s < SHARE * 1000 + BURST_S + 0.01


def test_questions_in_vain_become_rare():
    """Until one is worth it."""
    allowance, now_s, asked = Allowance(), 0.0, 0
    while now_s < 1000:
        now_s += 0.3
        if allowance.allows(now_s):
            asked += 1
            allowance.pay(0.005, was_worth_it=False)
    assert 20 < asked < 60
    allowance.pay(0.005, was_worth_it=True)
    assert [allowance.allows(now_s + 100 + 2 * i) for i in range(3)] == [True] * 3


RUN = make_run(rank=1, world_size=4)
CULPRIT = Culprit((1,), SLEEPS, HOOK, {0: BACKWARD, 2: BACKWARD, 3: ALL_REDUCE})
SLOW = Slowness(7, STARTED_NS, STARTED_NS + 300 * MS, 0.2, CULPRIT)


def test_a_slow_step_is_told_in_its_trace():
    """Who held it up, where and by how much; what each did is there as a stack."""
    span = slow_span(RUN, SLOW)
    assert span is not None
    assert (span.name, span.trace_id) == ("periflow.slow", ids.step_trace_id(RUN.seed, RUN.attempt, 7))
    assert span.end_unix_ns - span.start_unix_ns == 300 * MS
    assert span.attributes["periflow.stuck.summary"] == (
        "200 ms more than usual in step 7: rank 1 in model.py:12 (augment)"
    )
    assert span.attributes["periflow.slow.doing"] == "sleeps or waits"
    told = [
        (event.attributes["periflow.stuck.role"], event.attributes["periflow.stuck.ranks"]) for event in span.events
    ]
    assert told == [("culprit", "1"), ("waiting", "0, 2"), ("waiting", "3")]
    assert str(span.events[0].attributes["code.stacktrace"]).endswith("line 12, in augment")
    assert slow_span(make_run(rank=1, sampling_ratio=-1.0), SLOW) is None


def told(*slow: Slowness) -> list[str]:
    """Return what is found in a view that was told of slow steps."""
    view = RunView("run")
    RecordFeed(view, RUN).settle()
    for each in slow:
        if span := slow_span(RUN, each):
            view.add_span(RUN.attempt, span)
    return [each["text"] for each in view.to_dict()["findings"] if each["kind"] == "slow_inside"]


def test_who_holds_up_steps_again_and_again_is_said():
    """How often, by how much, where, and what it does there; its lines are one place."""
    lines = [CULPRIT._replace(stack=(HOOK[0]._replace(line=line), *HOOK[1:])) for line in (11, 12, 12)]
    (text,) = told(*[SLOW._replace(step=step, culprit=each) for step, each in enumerate(lines)])
    place = "model.py:12 (augment): it sleeps or waits there, and the others wait for it."
    assert text == f"Rank 1 held up 3 steps by 200 ms on average in {place}"


def test_who_holds_up_all_steps_is_said_while_it_does():
    """Once may be chance; of what an agent has not said for long it is not known that it is still so."""
    lasting = SLOW._replace(is_lasting=True)
    assert told(lasting) == []
    (text,) = told(lasting, lasting._replace(step=90))
    place = "model.py:12 (augment): it sleeps or waits there, and the others wait for it."
    assert text == f"Rank 1 makes each step about 200 ms longer in {place}"
    past = lasting._replace(end_unix_ns=STARTED_NS - 400 * S)
    assert told(past, past._replace(step=90)) == []


def test_looks_at_random_moments_tell_how_much_could_be_saved():
    """Others wait for a part of the time alone; a part that is small, or now one's and now another's, is nobody's."""
    rest = [look(*[MAIN] * 4, r0=RUNS, r1=RUNS, r2=RUNS, r3=RUNS)] * 14
    culprit = find_culprit([*step("sleeps in a hook"), *step("sleeps in a hook"), *rest], LASTING_SHARE)
    assert culprit is not None
    assert (culprit.ranks, culprit.share) == ((1,), 8 / 24)
    assert find_culprit([*step("sleeps in a hook"), *rest, *rest], LASTING_SHARE) is None
    assert find_culprit(BLAMELESS["one after another"] + rest, LASTING_SHARE) is None


def test_what_happened_once_or_twice_is_not_said():
    """It is in the trace of the step for whoever looks."""
    assert told(SLOW, SLOW._replace(step=9)) == []
    assert told(SLOW, SLOW._replace(step=9), SLOW._replace(culprit=CULPRIT._replace(ranks=(2,)))) == []
