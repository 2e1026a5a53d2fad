"""Who holds the others up."""

from collections.abc import Iterator, Sequence
from statistics import median, median_low
from typing import Final

from periflow_otel.translate.walltime import GAP, STEP
from periflow_otel.view.finding import Finding, View
from periflow_otel.view.words import duration_words, ranks_words

SLOW_FACTOR: Final = 1.15
"""A rank or a node is slow whose median step takes so many times that of the others; noise makes a few percent,"""
NOISE: Final = 4.0
"""or so much, in distances from the median to the 95th percentile over the root of the number of steps."""
SAME_FACTOR: Final = 1.05
"""Ranks whose steps follow each other as fast as this wait for one another."""
PHASE_FACTOR: Final = 1.5
"""A rank is slow in a phase that takes so many times what is usual, and ``LATE_PART`` of a step more."""
PHASE_SHARE: Final = 0.5
"""And it is there in so many of the steps."""
LEAST_STEPS: Final = 10
"""Of ranks with fewer steps nothing is said."""
LATE_SHARE: Final = 0.6
"""A rank is late that is the last of its node to begin so many of the steps."""
WAITED_PART: Final = 0.5
"""And the steps of the others are longer by so much of that: they wait in them, and do not only run ahead."""
LATE_PART: Final = 0.1
"""And this part of a step later than the first, mostly: who saves or evaluates for the others is late now and then."""

HELD_UP_STEPS: Final = 3
"""Somebody holds up the others who was seen to do so in so many steps at the same place,"""
HELD_UP_SHARE: Final = 0.005
"""and this share of the time of all steps."""
MAKES_LONGER_TIMES: Final = 2
"""Or of whom an agent has said so often that it holds up all steps: one time may be chance,"""
MAKES_LONGER_S: Final = 300.0
"""and not longer ago than this, as it says that again while it is so."""


def laggards(ranks: Sequence[View]) -> Iterator[Finding]:
    """Name who holds the others up.

    Ranks that meet within a step end it together: those that wait have the longer steps, and who begins last is late.
    """
    timed = [each for each in ranks if each["steps"] >= LEAST_STEPS and each["duration"]["p50"]]
    found = (
        _late(timed) or _slow_in_phase(timed) or _slow_between_steps(timed) or _slow_node(timed) or _slow_rank(timed)
    )
    if found is not None:
        yield found


def holding_up(view: View, ranks: Sequence[View]) -> Iterator[Finding]:
    """Name who holds up all steps, or single ones time and again, as far as agents have seen it, and where."""
    taken_s = median(rank["time"].get(STEP, 0.0) for rank in ranks) if ranks else 0.0
    for each in view["slow"]:
        mean_s, who = each["seconds"] / each["count"], ranks_words(each["ranks"])
        where = f"in {each['place']}: it {each['doing']} there, and the others wait for it."
        if each["attempt"] != view["run"]["attempt"]:
            continue
        if each["is_lasting"]:
            seen_s = max(rank["seen"] for rank in ranks)
            if each["count"] < MAKES_LONGER_TIMES or seen_s - each["time"] > MAKES_LONGER_S:
                continue
            text = f"{who} makes each step about {duration_words(mean_s)} longer {where}"
            yield Finding("slow_inside", text, each["ranks"], each["last_step"])
        elif each["count"] >= HELD_UP_STEPS and each["seconds"] > HELD_UP_SHARE * taken_s:
            text = f"{who} held up {each['count']} steps by {duration_words(mean_s)} on average {where}"
            yield Finding("slow_inside", text, each["ranks"], each["last_step"])


def _late(ranks: Sequence[View]) -> Finding | None:
    late = [each for each in ranks if each["late"]]
    total = sum(each["late"]["count"] for each in late)
    if total < LEAST_STEPS:
        return None
    worst = max(late, key=lambda each: int(each["late"]["count"]))
    share, mean_s = worst["late"]["count"] / total, worst["late"]["sum"] / worst["late"]["count"]
    late_s, usual_s = worst["late"]["usual"], median(each["duration"]["p50"] for each in ranks)
    others_s = max((each["duration"]["p50"] for each in ranks if each is not worst), default=0.0)
    if share < LATE_SHARE or late_s < LATE_PART * usual_s:
        return None
    if others_s - worst["duration"]["p50"] < WAITED_PART * late_s:
        return None
    text = (
        f"Rank {worst['rank']} was the last to begin {share:.0%} of the steps,"
        f" by {duration_words(mean_s)} on average: the others wait for it."
    )
    return Finding("late_rank", text, [worst["rank"]])


def _slow_in_phase(ranks: Sequence[View]) -> Finding | None:
    """Find the phase in which one rank is slower than is usual, where there is one: it says the most.

    What a rank does in a few steps only, as saving, is none.
    """
    means = {
        name: {each["rank"]: each["phases"].get(name, {}).get("seconds", 0.0) / each["steps"] for each in ranks}
        for name in {name for each in ranks for name, phase in each["phases"].items()
                     if phase["count"] >= each["steps"] * PHASE_SHARE}
    }  # fmt: skip
    found = [(max(of, key=lambda rank: of[rank]), median_low(of.values()), of, name) for name, of in means.items()]
    slow = [(of[rank] - usual_s, rank, usual_s, name) for rank, usual_s, of, name in found
            if of[rank] > PHASE_FACTOR * usual_s]  # fmt: skip
    excess_s, rank, usual_s, name = max(slow, default=(0.0, 0, 0.0, ""))
    if not slow or excess_s < LATE_PART * median(each["duration"]["p50"] for each in ranks):
        return None
    text = f'Rank {rank} spends {duration_words(usual_s + excess_s)} of a step in "{name}"'
    return Finding("slow_phase", f"{text}; usual are {duration_words(usual_s)}.", [rank])


def _slow_between_steps(ranks: Sequence[View]) -> Finding | None:
    """Find the one of several that takes long between steps; of two, nobody knows which of them waits."""
    if len(ranks) < 3:
        return None
    gaps = {each["rank"]: usual_gap_s(each) for each in ranks}
    worst = max(gaps, key=lambda rank: gaps[rank])
    usual_s = median(gap_s for rank, gap_s in gaps.items() if rank != worst)
    if gaps[worst] - usual_s < LATE_PART * median(each["duration"]["p50"] for each in ranks):
        return None
    text = (
        f"Rank {worst} takes long between steps: {duration_words(gaps[worst])} on average,"
        f" against {duration_words(usual_s)}."
    )
    return Finding("late_rank", text, [worst])


def usual_gap_s(rank: View) -> float:
    """Return how long is mostly between two steps, without saving, phases, and what is rare."""
    known_s: float = rank["time"].get(GAP, 0.0) / max(1, rank["steps"] - 1)
    return min(known_s, float(rank["gap"]["usual"]))


def _slow_node(ranks: Sequence[View]) -> Finding | None:
    hosts: dict[str, list[View]] = {}
    for each in ranks:
        hosts.setdefault(each["host"], []).append(each)
    if len(hosts) < 2 or min(map(len, hosts.values())) < 2:
        return None
    medians = {host: median(each["duration"]["p50"] for each in those) for host, those in hosts.items()}
    slowest = max(medians, key=lambda host: medians[host])
    usual_s = median(p50_s for host, p50_s in medians.items() if host != slowest)
    others = [each for host, those in hosts.items() if host != slowest for each in those]
    if not all(_is_slower(each, usual_s, others) for each in hosts[slowest]):
        return None
    who = [each["rank"] for each in hosts[slowest]]
    return _slower("slow_node", f"Node {slowest} ({ranks_words(who).lower()})", who, medians[slowest], usual_s)


def _slow_rank(ranks: Sequence[View]) -> Finding | None:
    if len(ranks) < 2:
        return None
    slow = max(ranks, key=lambda each: float(each["duration"]["p50"]))
    others = [each for each in ranks if each is not slow]
    usual_s = median(each["duration"]["p50"] for each in others)
    if not _is_slower(slow, usual_s, others) or (len(ranks) == 2 and _keep_pace(ranks)):
        return None
    return _slower("slow_rank", f"Rank {slow['rank']}", [slow["rank"]], slow["duration"]["p50"], usual_s)


def _is_slower(rank: View, usual_s: float, others: Sequence[View]) -> bool:
    """Tell whether a rank takes longer than others, and by more than a few steps that happen to be long come to."""
    p50_s = rank["duration"]["p50"]
    noise_s = max(_noise_s(rank), median(map(_noise_s, others)))
    return bool(p50_s >= SLOW_FACTOR * usual_s and p50_s - usual_s > noise_s)


def _noise_s(rank: View) -> float:
    duration_s = rank["duration"]
    return float(NOISE * (duration_s["p95"] - duration_s["p50"]) / rank["steps"] ** 0.5)


def _keep_pace(ranks: Sequence[View]) -> bool:
    """Tell whether ranks take as long from step to step: the one with the longer steps may just wait in them."""
    periods_s: list[float] = [
        (each["time"].get(STEP, 0.0) + each["time"].get(GAP, 0.0)) / each["steps"] for each in ranks
    ]
    return max(periods_s) < SAME_FACTOR * min(periods_s)


def _slower(kind: str, who: str, ranks: list[int], p50_s: float, usual_s: float) -> Finding:
    text = f"{who} is slow: half of its steps take {duration_words(p50_s)} or more, against {duration_words(usual_s)}."
    return Finding(kind, text, ranks)
