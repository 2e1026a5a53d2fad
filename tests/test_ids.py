"""Ids that every rank derives alike, and the launcher's that come from outside."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace.sampling import Decision, TraceIdRatioBased
from opentelemetry.trace import TraceState, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from periflow_otel import ids

NUMBERS = st.integers(0, 10**9)
RATIOS = st.floats(0, 1)
TRACE_IDS = st.integers(1, (1 << 128) - 1)

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"


def all_ids(seed: str, attempt: int, rank: int, number: int) -> list[int]:
    """Return an id of every kind."""
    return [
        ids.step_trace_id(seed, attempt, number),
        ids.step_span_id(seed, attempt, number, rank),
        ids.run_trace_id(seed, attempt),
        ids.run_span_id(seed, attempt, rank),
        ids.run_start_span_id(seed, attempt, rank),
        ids.phase_span_id(seed, attempt, rank, number),
        ids.checkpoint_span_id(seed, attempt, rank, number, "NORMAL"),
    ]


def test_ids_are_these_for_good():
    """A journal that is delivered again by a later version has the ids of the first delivery."""
    assert [f"{each:x}" for each in all_ids("run", 1, 2, 3)] == [
        "a52bf625777ef90becb04b4969a3ba0a",
        "28fd4a281c957429",
        "bf0819366355c1a1a0a0edd9d2f8c711",
        "65d9616e06546402",
        "6ea5119031160140",
        "560fc47d83e12524",
        "c361680d02140068",
    ]


@given(st.text(st.characters(exclude_categories=()), max_size=8), NUMBERS, NUMBERS, NUMBERS)
def test_ids_are_valid(seed: str, attempt: int, rank: int, number: int):
    """Never 0, traces within 128 bits and spans within 64, whatever the run is called."""
    for position, each in enumerate(all_ids(seed, attempt, rank, number)):
        assert 0 < each < 1 << (128 if position in (0, 2) else 64)


def test_ids_differ_in_all_that_they_stand_for():
    """Another run, attempt, rank, number or kind of span has another id."""
    whom = [("run", 1, 2, 3), ("ran", 1, 2, 3), ("run", 2, 2, 3), ("run", 1, 1, 3), ("run", 1, 2, 4), ("run", 1, 3, 2)]
    # Neither the traces of a step and of a run depend on the rank, nor those of a run on a number.
    found = {each for who in whom for each in all_ids(*who)}
    assert len(found) == 5 + 6 + 3 + 5 + 5 + 6 + 6


@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
def test_the_ends_of_the_scale_keep_none_and_all(ratio: float):
    """The smallest and the largest hash are where a comparison goes wrong."""
    assert [ids.is_sampled(trace_id, ratio) for trace_id in (1, (1 << 64) - 1)] == [ratio > 0, ratio == 1]


@given(TRACE_IDS, RATIOS)
def test_sampling_decides_as_opentelemetry_does(trace_id: int, ratio: float):
    """So that spans of the user's own tracers below a step share its fate."""
    theirs = TraceIdRatioBased(ratio).should_sample(None, trace_id, "step").decision is Decision.RECORD_AND_SAMPLE
    assert ids.is_sampled(trace_id, ratio) == theirs


def test_a_launcher_is_the_parent():
    """Trace and span of a W3C traceparent."""
    assert ids.parse_traceparent(f"00-{TRACE}-{SPAN}-01") == (int(TRACE, 16), int(SPAN, 16))


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "nonsense",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"01-{TRACE}-{SPAN}-01more",
        f"00-{TRACE}-{SPAN}-01\n",
        f"00-{TRACE}0-{SPAN}-01",
    ],
)
def test_what_names_no_span_gives_nothing(text: str | None):
    """Not even the half that could be read."""
    assert ids.parse_traceparent(text) == (None, None)


@pytest.mark.parametrize("more", ["", "-", "-what may come"])
def test_a_later_version_is_read_as_far_as_it_is_known(more: str):
    """W3C lets later versions add fields at the end."""
    assert ids.parse_traceparent(f"cc-{TRACE}-{SPAN}-00{more}") == (int(TRACE, 16), int(SPAN, 16))


MEMBERS = st.sampled_from(
    ["ot=th:8", "vendor=abc", "a@b=c d", "Big=1", "a=", "=b", "a=b=c", "ot=2", " s=t ", "", "é=1"]
)


@given(st.lists(MEMBERS, max_size=5))
def test_the_state_of_a_trace_is_passed_on_as_it_is_or_not_at_all(members: list[str]):
    """OpenTelemetry's own propagator finds in it what is passed on."""
    state = ids.valid_tracestate(",".join(members))
    assert not state or TraceState.from_header([",".join(members)]).to_header() == state
    is_valid = all(
        "=" in each and each.strip()[0] in "otvas" and each not in ("a=", "a=b=c") for each in members if each
    )
    keys = [each.strip().partition("=")[0] for each in members if each]
    assert bool(state) == (is_valid and bool(keys) and len(set(keys)) == len(keys))


def test_an_endless_state_is_not_passed_on():
    """Everybody has to pass on 512 characters, and 32 members."""
    assert ids.valid_tracestate("a=" + "x" * 200 + ",b=" + "x" * 200)
    assert not ids.valid_tracestate("a=" + "x" * 250 + ",b=" + "x" * 250 + ",c=" + "x" * 9)
    assert not ids.valid_tracestate(",".join(f"a{number}=1" for number in range(33)))
    assert not ids.valid_tracestate(None)


HEX = st.text("0123456789abcdefAF", min_size=2, max_size=2)
PARTS = st.tuples(
    HEX | st.sampled_from(["00", "01", "ff"]),
    st.sampled_from([TRACE, TRACE[:-1], "0" * 32, TRACE.upper()]),
    st.sampled_from([SPAN, SPAN + "0", "0" * 16]),
    HEX,
)


@given(PARTS, st.sampled_from(["", "-", "-more", "more"]))
def test_launchers_are_read_as_opentelemetry_reads_them(parts: tuple[str, ...], more: str):
    """Its own propagator finds the same parent, or none."""
    text = "-".join(parts) + more
    context = get_current_span(TraceContextTextMapPropagator().extract({"traceparent": text})).get_span_context()
    assert ids.parse_traceparent(text) == ((context.trace_id, context.span_id) if context.is_valid else (None, None))
