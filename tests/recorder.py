"""Records of a rank, made by a script with a clock of its own, and strategies that write such scripts."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

from hypothesis import strategies as st

from periflow_otel.processes import Process, boot_id
from periflow_otel.records import Checkpoint, Metric, Orders, Phase, RankLost, RankRun, Record, RunFinished, StepEnded

STARTED_NS = 1_700_000_000_000_000_500
"""When every run starts: not at a whole millisecond."""
MS = 1_000_000
S = 1_000_000_000


class StepBegan(NamedTuple):
    """What the agent sees of a step that is open."""

    step: int
    started_unix_ns: int


Input = Record | StepBegan


class Translator(Protocol):
    """What takes records."""

    def feed(self, records: Iterable[Record]) -> None:
        """Translate records."""

    def step_began(self, step: int, started_unix_ns: int) -> None:
        """Note the step that is open."""


ELSEWHERE = Process(1, 1, boot_id(), 1)
"""A process in another container of this machine, of which nothing but the lock of its journal can be seen."""


def make_run(**fields: Any) -> RankRun:
    """Return one rank of a run, the same but for ``fields``, which may be those of its orders."""
    given: dict[str, Any] = {
        "run_id": "run",
        "attempt": 1,
        "seed": "run",
        "rank": 0,
        "local_rank": 0,
        "node_rank": 0,
        "world_size": 2,
        "mode": "cloud",
        "process": Process(1, 1, "boot", 1),
        "started_unix_ns": STARTED_NS,
        "initial_step": 0,
    }
    orders = {name: fields.pop(name) for name in Orders.__struct_fields__ if name in fields}
    return RankRun(**(given | fields), orders=Orders(**orders))


def give(translator: Translator, inputs: Sequence[Input]) -> None:
    """Give a translator all records in order, and what the agent sees between them."""
    for each in inputs:
        if isinstance(each, StepBegan):
            translator.step_began(*each)
        else:
            translator.feed([each])


class Recorder:
    """Does what a training script does, and keeps what that records."""

    def __init__(self, initial_step: int = 0) -> None:
        """Begin at ``STARTED_NS``."""
        self.inputs: list[Input] = []
        self.now_ns = STARTED_NS
        self.spent_ns: dict[str, int] = {}
        """What the time went to: the innermost phase, else the step, else startup or gap."""
        self.step_number = initial_step
        self._started_ns: int | None = None
        self._elapsed_ns = 0
        self._ended_ns: int | None = None
        self._has_stepped = False
        self._phases = 0
        self._checkpoint_step: int | None = None
        self._open: list[tuple[int, str]] = []

    def work(self, duration_ns: int) -> None:
        """Let time pass. Who changes ``now_ns`` sets the clock."""
        self.now_ns += duration_ns
        self._elapsed_ns += duration_ns
        between = "gap" if self._has_stepped else "startup"
        outermost = between if self._started_ns is None else "step"
        kind = self._open[-1][1] if self._open else outermost
        self.spent_ns[kind] = self.spent_ns.get(kind, 0) + duration_ns

    @contextmanager
    def step(self, error: str | None = None) -> Iterator[None]:
        """Take a step."""
        self.start_step()
        around, self._open = self._open, []
        yield
        self._open = around
        self.end_step(error)

    def start_step(self) -> None:
        """Begin a step."""
        self.step_number += 1
        self._started_ns, self._has_stepped = self.now_ns, True
        self.inputs.append(StepBegan(self.step_number, self.now_ns))

    def end_step(self, error: str | None = None) -> None:
        """End the step."""
        started_ns, self._started_ns = self._started_ns, None
        assert started_ns is not None
        duration_ns = self.now_ns - started_ns
        gap_ns = None if self._ended_ns is None else self._elapsed_ns - duration_ns - self._ended_ns
        self._ended_ns = self._elapsed_ns
        self.inputs.append(StepEnded(self.step_number, started_ns, duration_ns, error, gap_ns))

    @contextmanager
    def phase(self, name: str, error: str | None = None, **attributes: Any) -> Iterator[None]:
        """Go through a phase."""
        self._phases += 1
        number, started_ns = self._phases, self.now_ns
        parent = self._open[-1][0] if self._open else 0
        step = None if self._started_ns is None else self.step_number
        self._open.append((number, name))
        yield
        self._open.pop()
        self.inputs.append(Phase(name, number, parent, step, started_ns, self.now_ns - started_ns, error, attributes))

    def metric(self, values: Mapping[str, Any], step: int | None = None) -> None:
        """Record values, perhaps of another step."""
        during = None if step in (None, self.step_number) else self.step_number
        self.inputs.append(Metric(self.step_number if step is None else step, self.now_ns, dict(values), during))

    def checkpoint_of(self, step: int) -> None:
        """Announce the checkpoint of another step."""
        is_open = self._started_ns is not None
        self.inputs.append(Checkpoint(step, self.now_ns, is_open, is_emergency=False, during=self.step_number))

    def checkpoint(self, request_delay_ns: int | None = None) -> None:
        """Announce a checkpoint, once per step; one that was asked for has a delay."""
        if self._checkpoint_step == self.step_number:
            return
        self._checkpoint_step = self.step_number
        is_open, is_emergency = self._started_ns is not None, request_delay_ns is not None
        self.inputs.append(Checkpoint(self.step_number, self.now_ns, is_open, is_emergency, request_delay_ns))

    def finish(self, error: str | None = None) -> None:
        """End the run."""
        self.inputs.append(RunFinished(self.now_ns, error))

    def be_killed(self) -> None:
        """Be found dead now."""
        began = [each for each in self.inputs if isinstance(each, StepBegan)]
        self.inputs.append(RankLost(self.now_ns, *(began[-1] if began else (0, 0))))


Script = list[Any]
"""What to do: ``("work", ns)``, ``("metric", values)``, ``("checkpoint",)``, ``("phase", name, error, script)`` or
``("step", error, script)``."""

VALUES = st.one_of(
    st.floats(),
    st.integers(-(1 << 70), 1 << 70),
    st.booleans(),
    st.none(),
    st.text(st.characters(exclude_categories=()), max_size=3),
    st.lists(st.integers(), max_size=2),
)
_ERRORS = st.sampled_from([None, None, None, "ValueError"])
_WORK = st.tuples(st.just("work"), st.integers(0, 3 * S))
_VALUES_BY_KEY = st.dictionaries(st.sampled_from(["loss", "lr", "acc"]), VALUES, max_size=3)
_METRIC = st.tuples(st.just("metric"), _VALUES_BY_KEY) | st.tuples(st.just("metric"), _VALUES_BY_KEY, st.integers(0, 9))
_CHECKPOINT = st.tuples(st.just("checkpoint"))
_NAMES = st.sampled_from(["load", "evaluate", "save"])


def _phase(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.tuples(st.just("phase"), _NAMES, _ERRORS, st.lists(inner, max_size=4))


def _nested(leaf: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(leaf, _phase, max_leaves=6)


def _scripts(*, any_order: bool) -> st.SearchStrategy[Script]:
    in_step = st.lists(_nested(_WORK | _METRIC | _CHECKPOINT), max_size=4)
    step = st.tuples(st.just("step"), _ERRORS, in_step)
    outside = _nested(_WORK | _METRIC | _CHECKPOINT | step) if any_order else _nested(_WORK | _METRIC) | step
    return st.lists(outside, max_size=10)


SCRIPTS = _scripts(any_order=True)
"""All that a script can do with one thread."""
PLAIN_SCRIPTS = _scripts(any_order=False)
"""Without steps within phases and checkpoints outside steps: what the time goes to is beyond doubt."""


def play(script: Script, recorder: Recorder) -> None:
    """Do what a script says."""
    for action, *arguments in script:
        if action == "step":
            error, inner = arguments
            with recorder.step(error):
                play(inner, recorder)
        elif action == "phase":
            name, error, inner = arguments
            with recorder.phase(name, error):
                play(inner, recorder)
        else:
            getattr(recorder, action)(*arguments)
