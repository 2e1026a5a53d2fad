"""Trace and span ids that every rank derives on its own, so that no rank has to ask another.

An id is a hash of what it stands for. The same step has the same ids in every repetition, which makes a
duplicate recognisable, and on every rank, which makes one trace of a step.
"""

from hashlib import blake2b

TraceId = int
"""128 bits, not 0."""
SpanId = int
"""64 bits, not 0."""

_RATIO_BITS = (1 << 64) - 1


def step_trace_id(run_id: str, attempt: int, step: int) -> TraceId:
    """Return the id of the trace that holds one step of all ranks."""
    return _hash(f"{run_id}\0{attempt}\0step\0{step}", 16)


def step_span_id(run_id: str, attempt: int, step: int, rank: int) -> SpanId:
    """Return the id of the span of one step of one rank."""
    return _hash(f"{run_id}\0{attempt}\0step\0{step}\0{rank}", 8)


def run_trace_id(run_id: str, attempt: int) -> TraceId:
    """Return the id of the trace that holds the run spans of all ranks."""
    return _hash(f"{run_id}\0{attempt}\0run", 16)


def run_span_id(run_id: str, attempt: int, rank: int) -> SpanId:
    """Return the id of the run span of one rank."""
    return _hash(f"{run_id}\0{attempt}\0run\0{rank}", 8)


def run_start_span_id(run_id: str, attempt: int, rank: int) -> SpanId:
    """Return the id of the span that says that one rank has begun."""
    return _hash(f"{run_id}\0{attempt}\0run.start\0{rank}", 8)


def phase_span_id(run_id: str, attempt: int, rank: int, number: int) -> SpanId:
    """Return the id of a phase's span."""
    return _hash(f"{run_id}\0{attempt}\0phase\0{rank}\0{number}", 8)


def checkpoint_span_id(run_id: str, attempt: int, rank: int, step: int) -> SpanId:
    """Return the id of the span of a checkpoint that was announced in an open step."""
    return _hash(f"{run_id}\0{attempt}\0checkpoint\0{rank}\0{step}", 8)


def is_sampled(trace_id: TraceId, ratio: float) -> bool:
    """Decide as OpenTelemetry's ``TraceIdRatioBased`` does, so that all ranks agree.

    Args:
        trace_id: The trace to decide on.
        ratio: Share of traces to keep, 0 to 1.
    """
    return (trace_id & _RATIO_BITS) < round(ratio * (1 << 64))


def _hash(text: str, size_bytes: int) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=size_bytes).digest(), "big") or 1
