"""Spans of the user's own tracers hang below the step or phase that they start in, by the ids it is exported with."""

import asyncio
import gc
import threading
import tracemalloc
from collections.abc import Iterator

import pytest
from commands import Begin
from opentelemetry import context, trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from recorded import records_of, run_script

import periflow_otel as pf
from periflow_otel.translate.spans import SpanTranslator
from periflow_otel.translate.telemetry import Span


class User:
    """A tracer of the user's own and what it has exported."""

    def __init__(self) -> None:
        """Set it up as the SDK's documentation does, but for the memory."""
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = provider.get_tracer("user")

    def work(self, name: str) -> None:
        """Record a span."""
        with self.tracer.start_as_current_span(name):
            pass

    def span(self, name: str) -> ReadableSpan:
        """Return a span that was recorded."""
        (found,) = [each for each in self._exporter.get_finished_spans() if each.name == name]
        return found


@pytest.fixture
def user() -> User:
    """Return a tracer of the user's own."""
    return User()


@pytest.fixture(autouse=True)
def _clean_context() -> Iterator[None]:
    """Begin without a current span, and see to it that nothing is a parent any more in the end."""
    token = context.attach(context.Context())
    yield
    assert not trace.get_current_span().get_span_context().is_valid
    context.detach(token)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Iterator[pf.TrainingRun]:
    """Return a run that has begun and records without an agent."""
    monkeypatch.setenv("PERIFLOW_AGENT", "off")
    run = pf.TrainingRun(10)
    yield run
    run.shutdown()


def exported(run: pf.TrainingRun) -> dict[str, Span]:
    """Return the spans that the agent makes of a run: steps by their number, others by their name."""
    translator = SpanTranslator(run.info)
    translator.feed(records_of(run))
    translator.step_began(1 << 40, 0)
    return {str(each.attributes.get("periflow.step.number", "")) * (each.name == "periflow.step") or each.name: each
            for each in translator.take()}  # fmt: skip


def is_below(child: ReadableSpan, parent: Span) -> bool:
    """Tell whether a user's span is a child of an exported one, in the same trace."""
    return (
        child.parent is not None
        and (child.parent.span_id, child.parent.trace_id) == (parent.span_id, parent.trace_id)
        and child.context.trace_id == parent.trace_id
    )


def is_root(span: ReadableSpan) -> bool:
    """Tell whether a user's span has no parent."""
    return span.parent is None


def test_spans_in_a_step_are_its_children(run: pf.TrainingRun, user: User):
    """Of each step its own."""
    for name in ("first", "second"):
        with run.train_step():
            user.work(name)
    steps = exported(run)
    assert is_below(user.span("first"), steps["1"])
    assert is_below(user.span("second"), steps["2"])


def test_spans_outside_steps_have_no_parent(run: pf.TrainingRun, user: User):
    """Before the first step, between steps, and after the run."""
    user.work("before")
    with run.train_step():
        pass
    user.work("between")
    run.shutdown()
    user.work("after")
    assert all(is_root(user.span(name)) for name in ("before", "between", "after"))


def test_a_step_lies_in_the_trace_of_all_ranks_also_below_a_users_span(run: pf.TrainingRun, user: User):
    """The user's span around the loop is current again after each step."""
    with user.tracer.start_as_current_span("epoch"):
        with run.train_step():
            user.work("inside")
        user.work("outside")
    assert is_below(user.span("inside"), exported(run)["1"])
    assert user.span("outside").parent == user.span("epoch").context


def test_spans_in_a_phase_are_its_children(run: pf.TrainingRun, user: User):
    """In a step and outside one, nested as deep as one likes, and its parent's again afterwards."""
    with run.train_step():
        with run.span("forward"):
            user.work("in forward")
            with run.span("attention"):
                user.work("in attention")
            user.work("in forward again")
        user.work("in step")
    with run.span("evaluation"):
        user.work("in evaluation")
    spans = exported(run)
    assert is_below(user.span("in forward"), spans["forward"])
    assert is_below(user.span("in attention"), spans["attention"])
    assert is_below(user.span("in forward again"), spans["forward"])
    assert is_below(user.span("in step"), spans["1"])
    assert is_below(user.span("in evaluation"), spans["evaluation"])
    assert spans["attention"].parent_span_id == spans["forward"].span_id
    assert spans["forward"].parent_span_id == spans["1"].span_id


def test_a_step_inside_a_phase_is_the_parent_of_what_is_in_it(run: pf.TrainingRun, user: User):
    """As with ``pf.span("epoch")`` around the loop: the phase is outside of steps, whatever is asked when."""
    with run.span("epoch"):
        user.work("in epoch")
        with run.train_step(), run.span("forward"):
            user.work("in forward")
        user.work("in epoch again")
    spans = exported(run)
    assert is_below(user.span("in epoch"), spans["epoch"])
    assert is_below(user.span("in epoch again"), spans["epoch"])
    assert is_below(user.span("in forward"), spans["forward"])
    assert spans["forward"].parent_span_id == spans["1"].span_id


def test_a_phase_that_outlives_its_step_keeps_its_ids(run: pf.TrainingRun, user: User):
    """It belongs to the step that it began in."""
    run.start_step()
    with run.span("saving"):
        run.end_step()
        user.work("in saving")
    assert is_below(user.span("in saving"), exported(run)["saving"])


def test_the_trace_of_the_launcher_holds_phases_outside_steps(user: User, monkeypatch: pytest.MonkeyPatch):
    """As it holds the run's own span."""
    monkeypatch.setenv("PERIFLOW_AGENT", "off")
    monkeypatch.setenv("TRACEPARENT", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    run = pf.TrainingRun(10)
    with run.span("evaluation"):
        user.work("in evaluation")
    run.shutdown()
    assert is_below(user.span("in evaluation"), exported(run)["evaluation"])
    assert user.span("in evaluation").context.trace_id == 0x0AF7651916CD43DD8448EB211C80319C


@pytest.mark.parametrize("rank", ["0", "3"])
def test_every_rank_has_span_ids_of_its_own_in_one_trace(user: User, monkeypatch: pytest.MonkeyPatch, rank: str):
    """Derived, not agreed upon."""
    monkeypatch.setenv("PERIFLOW_AGENT", "off")
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "4")
    run = pf.TrainingRun(10, run_id="job")
    with run.train_step():
        user.work("inside")
    run.shutdown()
    step = exported(run)["1"]
    assert is_below(user.span("inside"), step)
    assert (step.parent_span_id is None) == (rank == "0")


@pytest.mark.parametrize(("ratio", "is_sampled"), [("1", True), ("0", False)])
def test_a_users_span_is_sampled_as_its_step_is(
    user: User, monkeypatch: pytest.MonkeyPatch, ratio: str, *, is_sampled: bool
):
    """The flag of the context says so, and the SDK's parent-based sampler obeys it."""
    monkeypatch.setenv("PERIFLOW_AGENT", "off")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", ratio)
    run = pf.TrainingRun(10)
    with run.train_step(), user.tracer.start_as_current_span("inside") as span:
        assert span.is_recording() is is_sampled
    with run.span("evaluation"), user.tracer.start_as_current_span("in evaluation") as span:
        assert span.is_recording()  # phases outside steps are always exported
    run.shutdown()


def test_an_exception_leaves_nothing_behind(run: pf.TrainingRun, user: User):
    """Out of a step, and out of a phase in it."""
    with pytest.raises(ZeroDivisionError), run.train_step(), run.span("forward"):
        _ = 1 / 0
    user.work("after")
    assert is_root(user.span("after"))


def test_a_step_that_ends_in_another_thread_parents_nothing_more(run: pf.TrainingRun, user: User):
    """The thread that began it cannot be told, so its context says nothing from then on."""
    run.start_step()
    user.work("before the end")
    thread = threading.Thread(target=run.end_step)
    thread.start()
    thread.join()
    user.work("after the end")
    with run.train_step():
        user.work("in the next")
    user.work("after the next")
    steps = exported(run)
    assert is_below(user.span("before the end"), steps["1"])
    assert is_below(user.span("in the next"), steps["2"])
    assert is_root(user.span("after the end"))
    assert is_root(user.span("after the next"))


def test_a_thread_has_its_own_context(run: pf.TrainingRun, user: User):
    """As OpenTelemetry has it: a thread inherits none, and metrics from it belong to the step all the same."""

    def work() -> None:
        user.work("in a thread")
        run.metric({"n": 1})

    with run.train_step():
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert is_root(user.span("in a thread"))
    assert exported(run)["1"].attributes["periflow.metric.n"] == 1


def test_spans_of_asyncio_tasks_belong_to_the_step_that_is_open(run: pf.TrainingRun, user: User):
    """Whichever step a task was made in, what it begins belongs to the step in which it begins."""

    async def background(go_on: asyncio.Event) -> None:
        await go_on.wait()
        user.work("in the background")

    async def main() -> None:
        go_on = asyncio.Event()
        with run.train_step():
            task = asyncio.create_task(background(go_on))
            await asyncio.sleep(0)
            user.work("in step 1")
        user.work("between")
        with run.train_step():
            go_on.set()
            await task
            user.work("in step 2")

    asyncio.run(main())
    steps = exported(run)
    assert is_below(user.span("in the background"), steps["2"])
    assert is_below(user.span("in step 1"), steps["1"])
    assert is_below(user.span("in step 2"), steps["2"])
    assert is_root(user.span("between"))


def test_phases_of_tasks_that_take_turns_do_not_mix(run: pf.TrainingRun, user: User):
    """Each task has its own current phase, and every phase has a number of its own."""

    async def phase(name: str) -> None:
        with run.span(name):
            await asyncio.sleep(0)
            user.work(f"in {name}")

    async def main() -> None:
        await asyncio.gather(*(phase(f"phase {number}") for number in range(5)))

    with run.train_step():
        asyncio.run(main())
    spans = exported(run)
    assert all(is_below(user.span(f"in phase {number}"), spans[f"phase {number}"]) for number in range(5))
    assert len({each.span_id for each in spans.values()}) == len(spans)
    assert all(spans[f"phase {number}"].parent_span_id == spans["1"].span_id for number in range(5))


def test_a_generator_may_hold_the_steps(run: pf.TrainingRun, user: User):
    """As with a data loader that starts a step for each batch that it yields."""

    def batches() -> Iterator[int]:
        for number in (1, 2):
            with run.train_step():
                yield number

    for number in batches():
        user.work(f"batch {number}")
    user.work("after")
    steps = exported(run)
    assert is_below(user.span("batch 1"), steps["1"])
    assert is_below(user.span("batch 2"), steps["2"])
    assert is_root(user.span("after"))


def test_a_generator_that_is_left_ends_its_step(run: pf.TrainingRun, user: User):
    """A loop with ``break``, which is no error; the context is gone."""

    def batches() -> Iterator[int]:
        with run.train_step():
            yield 1

    generator = batches()
    next(generator)
    generator.close()
    user.work("after")
    assert exported(run)["1"].error is None
    assert is_root(user.span("after"))


def test_two_runs_at_once_have_steps_of_their_own(run: pf.TrainingRun, user: User):
    """The step that began last is the parent; its end gives way to the other's."""
    other = pf.TrainingRun(10)
    with run.train_step():
        with other.train_step():
            user.work("in both")
        user.work("in one")
    other.shutdown()
    assert is_below(user.span("in both"), exported(other)["1"])
    assert is_below(user.span("in one"), exported(run)["1"])


def test_two_runs_whose_steps_overlap_leave_nothing_behind(run: pf.TrainingRun, user: User):
    """The one that began first ends first."""
    other = pf.TrainingRun(10)
    run.start_step()
    other.start_step()
    run.end_step()
    user.work("in the other")
    other.end_step()
    user.work("after both")
    other.shutdown()
    assert is_below(user.span("in the other"), exported(other)["1"])
    assert is_root(user.span("after both"))


def test_a_phase_of_one_run_is_no_parent_in_another(run: pf.TrainingRun):
    """Numbers of phases mean something in their own run only."""
    other = pf.TrainingRun(10)
    with run.span("mine"), other.span("other's"):
        pass
    other.shutdown()
    spans = exported(other)
    assert spans["other's"].parent_span_id == spans["periflow.run"].span_id


def test_the_current_span_can_be_shown(run: pf.TrainingRun):
    """In a debugger, or in a log of the user's."""
    with run.train_step():
        span = trace.get_current_span()
        assert f"{span.get_span_context().trace_id:032x}" in repr(span)
        assert not span.is_recording()


def test_what_the_user_has_in_the_context_stays_there(run: pf.TrainingRun):
    """Baggage and the like: a step changes the current span only."""
    token = context.attach(context.set_value("mine", 1))
    try:
        with run.train_step():
            assert context.get_value("mine") == 1
        assert context.get_value("mine") == 1
    finally:
        context.detach(token)


def test_10_000_steps_leave_no_context_behind(run: pf.TrainingRun):
    """Neither a chain of contexts nor garbage that only the collector could find."""

    def steps(count: int) -> None:
        for _ in range(count):
            with run.train_step(), run.span("forward"):
                pass

    steps(100)
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        steps(10_000)
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        gc.enable()
    assert grown < 100_000


def test_a_training_process_needs_no_sdk():
    """The ids are there to be propagated, and no SDK is loaded for it."""
    ended = run_script(
        "import sys\n"
        "import periflow_otel as pf\n"
        "from opentelemetry import trace\n"
        "from opentelemetry.propagate import inject\n"
        "pf.init(1)\n"
        "carrier = {}\n"
        "with pf.train_step(), trace.get_tracer('user').start_as_current_span('x') as span:\n"
        "    inject(carrier)\n"
        "    context = span.get_span_context()\n"
        "assert context.is_valid\n"
        "assert carrier['traceparent'] == f'00-{context.trace_id:032x}-{context.span_id:016x}-01'\n"
        "assert 'opentelemetry.sdk' not in sys.modules\n"
    )
    assert (ended.status, ended.errors) == (0, "")


def test_a_span_around_the_run_stays_the_parent_between_steps(user: User, begin: Begin):
    """What the run puts into the context hides nothing that was there before, and steps are parents all the same."""
    with user.tracer.start_as_current_span("around"):
        run = begin()
        with run.train_step():
            user.work("in a step")
        user.work("between")
        run.shutdown()
    assert user.span("between").parent.span_id == user.span("around").context.span_id
    assert is_below(user.span("in a step"), exported(run)["1"])


def test_the_context_is_as_before_when_a_run_is_over(run: pf.TrainingRun):
    """Nothing of the run stays behind."""
    with run.train_step():
        pass
    run.shutdown()
    assert trace.get_current_span() is trace.INVALID_SPAN
