"""What stands out in a run: the words that a stranger would need an hour of looking for.

Each finding names what, which ranks, and by how much. What healthy runs do too is none: first steps that take long,
evaluations, saving, noise.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from statistics import median
from typing import Final

from periflow_otel import names
from periflow_otel.translate.spans import SAMPLED_OUT
from periflow_otel.translate.walltime import CHECKPOINT, GAP, STARTUP, STEP
from periflow_otel.view.finding import Finding, View
from periflow_otel.view.heat import quantile
from periflow_otel.view.laggards import NOISE, holding_up, laggards, usual_gap_s
from periflow_otel.view.machine_findings import machine_findings
from periflow_otel.view.rank_view import WARM_UP_STEPS
from periflow_otel.view.words import duration_words, ranks_words

SLOWER_FACTOR: Final = 1.5
"""Steps have become slower if their median is so many times what it was,"""
SETTLED_STEPS: Final = 20
"""in a quarter of the run that has so many steps or more: a few may happen to be short."""
LONG_FACTOR: Final = 10.0
"""A step is long that takes so many times the usual, and ``LONG_S``."""
LONG_S: Final = 1.0
OPEN_S: Final = 60.0
"""A step that has not ended is said to be long only after so many seconds: by then the agent knows more, mostly."""
WAITING_SHARE: Final = 0.4
"""A rank waits much that spends so much of its time between steps, or in checkpoints half of that."""
LEAST_S: Final = 10.0
"""Nothing is said of shares of a time that is shorter."""
SAVING_FACTOR: Final = 4.0
"""Saving is slow if the last two times each took so many times the usual, and ``SAVING_S``,"""
SAVING_S: Final = 1.0
LEAST_CHECKPOINTS: Final = 5
"""of so many or more."""
UNDELIVERED_S: Final = 20.0
PAUSE_S: Final = 1.0
PAUSE_SHARE: Final = 0.05
"""Garbage collections are worth a word that take so much of the steps, and so many seconds."""
MAX_OF_A_KIND: Final = 3


def find(view: View, now_s: float | None) -> list[Finding]:
    """Return what stands out, faults first.

    Args:
        view: A run.
        now_s: Unix time, for a run that goes on; None where nobody knows how long it has been silent.
    """
    ranks = _ranks_of(view, view["run"]["attempt"])
    lately = [{**each, **(each["lately"] or {})} for each in ranks]
    found = [*_stuck(view), *_not_finite(ranks), *_ended(ranks)]
    found += _open_steps(ranks, None if view["run"]["stuck"] else now_s)
    found += (late := list(laggards(lately)))
    found += list(holding_up(view, ranks))[:MAX_OF_A_KIND]
    accused = {rank for each in late for rank in each.ranks}
    found += _waits(lately, GAP, accused) or _waits(ranks, GAP, accused)
    found += _waits(ranks, CHECKPOINT, accused) or _slow_to_save(ranks)
    found += [] if late else _slower(view, lately)
    for look in (_long_steps, _behind, _clock_sets, _restarts, _telemetry):
        found += look(view, ranks)
    found += _pauses(lately)
    found += machine_findings(ranks)
    return sorted(found, key=lambda each: not each.is_fault)


def _ranks_of(view: View, attempt: int) -> list[View]:
    return [each for each in view["ranks"] if each["attempt"] == attempt]


def _stuck(view: View) -> Iterator[Finding]:
    """Repeat what agents have said of ranks that do not go on, and of the last ones that did not."""
    told = [each for each in view["stuck"] if each["attempt"] == view["run"]["attempt"]]
    is_going_on = view["run"]["stuck"] is not None
    present = [each for each in told if is_going_on and not each["is_over"]]
    for each in present or [each for each in told if each["is_over"]][-MAX_OF_A_KIND:]:
        text = f"{each['summary'][:1].upper()}{each['summary'][1:]}."
        kind = "went_on" if each["is_over"] else "stuck"
        yield Finding(kind, text, each["ranks"], each["step"], is_fault=not each["is_over"])


def _not_finite(ranks: Sequence[View]) -> Iterator[Finding]:
    """Name the first step of an attempt in which a metric was not finite, and who had it there."""
    marks: dict[str, list[tuple[int, int, str]]] = {}
    counts: Counter[str] = Counter()
    for rank in ranks:
        counts.update(rank["nonfinite"]["by_key"])
        for mark in rank["nonfinite"]["kept"]:
            marks.setdefault(mark["key"], []).append((mark["step"], rank["rank"], mark["value"]))
    for key in sorted(marks, key=lambda key: min(marks[key]))[:MAX_OF_A_KIND]:
        step, _, value = min(marks[key])
        who = sorted({rank for at, rank, _ in marks[key] if at == step})
        where = f" on {ranks_words(who).lower()}" if len(ranks) > 1 else ""
        more = f", the first of {counts[key]} times" if counts[key] > len(who) else ""
        yield Finding("not_finite", f"{key} was {value} at step {step}{where}{more}.", who, step, is_fault=True)


def _ended(ranks: Sequence[View]) -> Iterator[Finding]:
    """Say how ranks of an attempt have ended that did not finish."""
    for outcome, words in (("killed", "killed"), ("failed", "ended by an exception"), ("interrupted", "interrupted")):
        those = [each for each in ranks if each["outcome"] == outcome]
        if those:
            step = min(each["step"] for each in those)
            who = [each["rank"] for each in those]
            where = f"in step {step}" if step else "before the first step"
            text = f"{ranks_words(who)} {'was' if len(who) == 1 else 'were'} {words} {where}{_error(those)}."
            yield Finding(outcome, text, who, step, is_fault=outcome != "interrupted")


def _error(ranks: Sequence[View]) -> str:
    errors = {mark["error"] for each in ranks for mark in each["errors"]["kept"][-1:]} - {"killed", "interrupted"}
    errors |= {each["last_words"] for each in ranks if each["last_words"]}
    return f" by {errors.pop()}" if len(errors) == 1 else ""


def _open_steps(ranks: Sequence[View], now_s: float | None) -> Iterator[Finding]:
    """Name who has been in a step for long: those that wait for each other are in it together.

    Where one has not begun it, the others wait for that one.
    """
    waiting = []
    for each in ranks:
        usual_s = each["duration"]["p95"]
        if now_s is not None and usual_s and each["step_started"] and each["outcome"] is None:
            open_s = now_s - each["step_started"]
            if open_s > max(OPEN_S, LONG_FACTOR * usual_s):
                waiting.append((each["rank"], each["step"], open_s, usual_s))
    if waiting:
        _, step, open_s, usual_s = max(waiting, key=lambda each: each[2])
        who = [rank for rank, *_ in waiting]
        behind = [each["rank"] for each in ranks if each["step"] < step and each["outcome"] is None]
        text = (
            f"{ranks_words(who)} {'has' if len(who) == 1 else 'have'} been in step {step} for"
            f" {duration_words(open_s)}; usual are {duration_words(usual_s)}"
        )
        if behind:
            text += f", and {ranks_words(behind).lower()} {'has' if len(behind) == 1 else 'have'} not begun it"
        yield Finding("open_step", f"{text}.", behind or who, step, is_fault=not behind)


def _waits(ranks: Sequence[View], kind: str, accused: Collection[int]) -> list[Finding]:
    """Find who spends much of the time outside of steps; whoever is accused of that is not named again."""
    least, words, several = _WAITING[kind]
    shares = {each["rank"]: share for each in ranks if (share := _share(each, kind)) > least}
    who = [rank for rank in shares if rank not in accused]
    part = f"{median(shares[rank] for rank in who):.0%} of the time" if who else ""
    text = f"spends {part} {words}" if len(who) == 1 else f"spend {part} {several}"
    return [Finding(f"much_{kind}", f"{ranks_words(who)} {text}.", who)] if who else []


_WAITING: Final = {
    GAP: (
        WAITING_SHARE,
        "between steps: it waits for data, or does something that is no step",
        "between steps: they wait for data, or do something that is no step",
    ),
    CHECKPOINT: (WAITING_SHARE / 2, "with checkpoints", "with checkpoints"),
}
"""From which share of the time on it is said, and what is said of one rank and of several."""


def _slow_to_save(ranks: Sequence[View]) -> list[Finding]:
    """Find who takes longer for the last checkpoints than for those before."""
    slow = {}
    for each in ranks:
        took_s = each["saving"]
        before_s, now_s = median(took_s[:-2] or [0.0]), min(took_s[-2:], default=0.0)
        if len(took_s) >= LEAST_CHECKPOINTS and now_s > max(SAVING_FACTOR * before_s, SAVING_S):
            slow[each["rank"]] = (now_s, before_s)
    if not slow:
        return []
    worst = max(slow, key=slow.__getitem__)
    now_s, before_s = slow[worst]
    text = f"{ranks_words(slow)} take{'s' * (len(slow) == 1)} {duration_words(now_s)} for a checkpoint"
    return [Finding("slow_checkpoint", f"{text}; it was {duration_words(before_s)} before.", sorted(slow))]


def _share(rank: View, kind: str) -> float:
    """Return which part of its time a rank spends so; what is rare between steps does not count."""
    time: Mapping[str, float] = rank["time"]
    whole_s = sum(seconds for each, seconds in time.items() if each != STARTUP)
    spent_s = min(time.get(kind, 0.0), usual_gap_s(rank) * rank["steps"]) if kind == GAP else time.get(kind, 0.0)
    return spent_s / whole_s if whole_s > LEAST_S else 0.0


def _slower(view: View, lately: Sequence[View]) -> Iterator[Finding]:
    """Find steps that take longer now than at first."""
    heat = _heat(view)
    quarter = len(heat["p50"]) // 4 if heat else 0
    if heat is None or quarter * heat["width"] < SETTLED_STEPS or not _are_alike(lately):
        return
    first, last = _joined(heat["bins"][1 : 1 + quarter]), _joined(heat["bins"][-quarter:])
    first_s, last_s = quantile(first, 0.5) or 0.0, quantile(last, 0.5) or 0.0
    if view["run"]["state"] == "running":
        last_s = median(each["duration"]["p50"] for each in lately if each["duration"]["p50"])
    noise_s = NOISE * ((quantile(first, 0.95) or 0.0) - first_s) / (quarter * heat["width"]) ** 0.5
    if last_s > SLOWER_FACTOR * first_s and last_s - first_s > max(noise_s, 1e-3):
        text = f"Steps have become slower: {duration_words(last_s)} now, {duration_words(first_s)} at first."
        yield Finding("slower", text)


def _joined(rows: Iterable[Iterable[tuple[int, int]]]) -> Counter[int]:
    """Return the histogram of several rows."""
    return sum((Counter(dict(row)) for row in rows), Counter())


def _heat(view: View) -> View | None:
    """Return how long the steps of the last attempt took."""
    return next((each for each in reversed(view["step_time"]) if each["attempt"] == view["run"]["attempt"]), None)


def _long_steps(view: View, ranks: Sequence[View]) -> Iterator[Finding]:
    """Find the few steps that take very long."""
    heat = _heat(view)
    if heat is None or len(heat["p50"]) < 8:
        return
    usual_s = median(heat["p50"])
    first = min(each["initial_step"] for each in view["attempts"] if each["attempt"] == view["run"]["attempt"])
    settled = max(first + WARM_UP_STEPS, heat["step"][1])
    long = [(longest_s, step) for longest_s, step in zip(heat["max"], heat["step"], strict=True)
            if step >= settled and longest_s > max(LONG_FACTOR * usual_s, LONG_S)]  # fmt: skip
    if long:
        longest_s, step = max(long)
        who = [each["rank"] for each in ranks if (each["duration"]["max"] or 0) >= longest_s]
        if any((each["gap"]["max"] or 0) > longest_s / 2 for each in ranks if each["rank"] not in who):
            return  # they wait there for one that saves, say, or evaluates
        near = f"near step {step}" if heat["width"] > 1 else f"step {step}"
        whose = f" of {ranks_words(who).lower()}" if len(ranks) > 1 and 0 < len(who) < len(ranks) else ""
        text = (
            f"Some steps take very long: {near}{whose} {duration_words(longest_s)},"
            f" usual are {duration_words(usual_s)}."
        )
        yield Finding("long_steps", text, who if whose else [], step)


def _are_alike(ranks: Sequence[View]) -> bool:
    """Tell whether the steps of ranks take the same time: else their common median may be now one's, now another's."""
    medians_s = [each["duration"]["p50"] for each in ranks if each["duration"]["p50"]]
    return max(medians_s, default=0.0) < SLOWER_FACTOR * min(medians_s, default=0.0)


def _pauses(ranks: Sequence[View]) -> Iterator[Finding]:
    """Find whose steps the garbage collector holds up."""
    paused = {each["rank"]: (sum(each["pauses"].values()), each["time"].get(STEP, 0.0)) for each in ranks}
    who = [rank for rank, (pause_s, step_s) in paused.items() if pause_s > max(PAUSE_S, PAUSE_SHARE * step_s)]
    if who:
        pause_s, step_s = paused[max(who, key=paused.__getitem__)]
        part = f", {pause_s / step_s:.0%} of them" if step_s > pause_s else ""
        text = f"Garbage collections took {duration_words(pause_s)} of the steps of {ranks_words(who).lower()}{part}."
        yield Finding("pauses", text, who)


def _restarts(view: View, _: Sequence[View]) -> Iterator[Finding]:
    attempts = view["attempts"]
    for before, each in list(pairwise(attempts))[-MAX_OF_A_KIND:]:
        those = _ranks_of(view, before["attempt"])
        why = [found.text for found in (*list(_not_finite(those))[:1], *_ended(those))]
        pause = f" after {duration_words(each['restart_gap'])}" if each["restart_gap"] else ""
        redone = f" and did {each['redone_steps']} steps again" if each["redone_steps"] else ""
        went_on = f"Attempt {each['attempt']} went on from step {each['initial_step']}{pause}{redone}."
        yield Finding("restart", " ".join((*why, went_on)), [], each["initial_step"])
    best = [max(each["ended_step"] for each in attempts[: i + 1]) for i in range(len(attempts))]
    if len(attempts) > 3 and best[-1] == best[-4]:
        text = f"The last {MAX_OF_A_KIND} attempts ended no step beyond {best[-1]}: restarts lead nowhere."
        yield Finding("restart_loop", text, [], best[-1], is_fault=True)


def _behind(view: View, ranks: Sequence[View]) -> Iterator[Finding]:
    """Find who has done less than the others: ranks that do not wait for each other, with uneven data."""
    pace = view["run"]["pace"]
    ranks = [each for each in ranks if each["outcome"] is None] or ranks  # who has left is not behind
    done = [each["ended_step"] for each in ranks]
    if len(done) < 2 or not pace:
        return
    ahead = median(done)
    who = [each["rank"] for each in ranks if (ahead - each["ended_step"]) / pace > LEAST_S]
    if who:
        step = min(done)
        text = (
            f"{ranks_words(who)} {'is' if len(who) == 1 else 'are'} behind: at step {step}, the others at {int(ahead)}."
        )
        yield Finding("behind", text, who, step)


def _clock_sets(_: View, ranks: Sequence[View]) -> Iterator[Finding]:
    """Find whose clock went otherwise than time: what it says before and after does not fit together."""
    sets = [(abs(mark["seconds"]), mark, each["rank"]) for each in ranks for mark in each["clock_sets"]["kept"]]
    if sets:
        by_s, mark, _rank = max(sets, key=lambda each: each[0])
        who = sorted({rank for *_, rank in sets})
        way = "ahead" if mark["seconds"] > 0 else "back"
        slept = ", or the machine slept" if mark["seconds"] > 0 else ""
        text = (
            f"The clock of {ranks_words(who).lower()} was set {duration_words(by_s)} {way} before step {mark['step']}"
        )
        yield Finding("clock", f"{text}{slept}.", who, mark["step"])


def _telemetry(view: View, _: Sequence[View]) -> Iterator[Finding]:
    """Find what has not arrived."""
    values: dict[str, dict[str, float]] = {}
    for each in view["telemetry"]:
        if each["attributes"].get(names.DROP_REASON) == SAMPLED_OUT:
            continue  # as was wished
        consumer = str(each["attributes"].get(names.CONSUMER, ""))
        of = values.setdefault(each["name"], {})
        of[consumer] = of.get(consumer, 0.0) + each["value"]
    for name, words in ((names.TELEMETRY_DROPPED, "are lost"), (names.TELEMETRY_SET_ASIDE, "are set aside")):
        for consumer, count in values.get(name.name, {}).items():
            if count:
                yield Finding("telemetry_lost", f"{count:.0f} items for {consumer} {words}: see periflow-otel doctor.")
    for consumer, since_s in values.get(names.TELEMETRY_SINCE_SUCCESS.name, {}).items():
        waiting = values.get(names.TELEMETRY_BACKLOG.name, {}).get(consumer, 0.0)
        if since_s > UNDELIVERED_S and waiting:
            text = f"{consumer} has taken nothing for {duration_words(since_s)}; {waiting:.0f} records wait for it."
            yield Finding("undelivered", text)
