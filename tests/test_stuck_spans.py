"""What was found of stuck ranks is a span in the trace of the step, and is shown as a finding of the run."""

import pytest
from recorder import STARTED_NS, S, make_run
from test_stuck import ALL_REDUCE, LOADER, at

from periflow_otel import ids
from periflow_otel.translate.stragglers.stuck import find_culprits
from periflow_otel.translate.stragglers.stuck_spans import StuckReport, describe, stuck_span
from periflow_otel.translate.telemetry import Span
from periflow_otel.view.findings import find
from periflow_otel.view.records import RecordFeed
from periflow_otel.view.run_view import RunView

RUN = make_run(rank=3, world_size=4)
WITNESSES = (at(0, ALL_REDUCE), at(3, LOADER, step=6, is_open=False))
REPORT = StuckReport(find_culprits(WITNESSES), WITNESSES, STARTED_NS + 60 * S, 25.0)
LINE = "stuck for 25 s before step 7: rank 3 is in dataset.py:88 (__getitem__); rank 0 waits in all_reduce"


def spans(*reports: StuckReport) -> list[Span]:
    """Return spans of reports."""
    return [span for report in reports if (span := stuck_span(RUN, report))]


def test_a_report_is_one_line():
    """The step is that which others are in, and which the one to blame has not begun."""
    assert describe(REPORT) == LINE


def test_a_report_is_in_the_trace_of_its_step():
    """From the time at which the ranks went on for the last time."""
    [span] = spans(REPORT)
    assert span.trace_id == ids.step_trace_id(RUN.seed, RUN.attempt, 7)
    assert span.end_unix_ns - span.start_unix_ns == 25 * S
    assert span.error == "stuck"
    assert [event.attributes["periflow.stuck.role"] for event in span.events] == ["culprit", "waiting"]
    assert span.events[0].attributes["code.stacktrace"].count("\n") == len(LOADER)


def test_reports_on_the_same_are_spans_of_their_own():
    """What is said again, and that it is over, does not take the place of what was said before."""
    made = spans(REPORT, REPORT._replace(number=2), REPORT._replace(is_over=True))
    assert len({span.span_id for span in made}) == 3
    assert made[-1].error is None


def test_nothing_is_made_where_nothing_is_kept():
    """Sampling may be off altogether."""
    assert stuck_span(make_run(rank=3, sampling_ratio=-1.0), REPORT) is None


@pytest.mark.parametrize(("is_over", "kind"), [(False, "stuck"), (True, "went_on")])
def test_a_view_shows_the_latest_word(is_over: object, kind: str):
    """It is a fault while it is so, and worth a look afterwards; stacks stay."""
    view = RunView("run")
    RecordFeed(view, RUN).settle()
    for span in spans(REPORT, REPORT._replace(is_over=bool(is_over), number=2)):
        view.add_span(RUN.attempt, span)
    whole = view.to_dict()
    [told] = whole["stuck"]
    assert (told["ranks"], told["place"], len(told["stacks"])) == ([3], "dataset.py:88 (__getitem__)", 2)
    assert whole["run"]["stuck"] == (None if is_over else LINE)
    found = find(whole, None)
    assert [(each.kind, each.ranks, each.step, each.is_fault) for each in found] == [(kind, [3], 7, not is_over)]
