"""Trace and span ids that every rank derives on its own, so that no rank has to ask another.

An id is a hash of what it stands for. The same step has the same ids in every repetition, which makes a
duplicate recognisable, and on every rank, which makes one trace of a step. The seed is what no other run has: a run and
the number of its attempt may come again, where the folder that knew of them is lost.
"""

import re
from functools import lru_cache
from hashlib import blake2b
from typing import Final

TraceId = int
"""128 bits, not 0."""
SpanId = int
"""64 bits, not 0."""

SAMPLE_NOTHING: Final = -1.0
"""A ratio below all others: not even what is remarkable is kept."""
_RATIO_BITS: Final = (1 << 64) - 1
_TRACEPARENT: Final = re.compile(
    "(?!ff)(?!00.{54})[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?"
)
"""Version ff is forbidden, version 00 ends where it is known to end, and others may go on."""
_MEMBER: Final = re.compile(
    r"(?:[a-z][a-z0-9_*/-]{0,255}|[a-z0-9][a-z0-9_*/-]{0,240}@[a-z][a-z0-9_*/-]{0,13})"
    r"=[ -+\-.-<>-~]{0,255}[!-+\-.-<>-~]"
)
_MAX_MEMBERS: Final = 32
_MAX_STATE_CHARS: Final = 512


@lru_cache(maxsize=1024)
def step_trace_id(seed: str, attempt: int, step: int) -> TraceId:
    """Return the id of the trace that holds one step of all ranks; remembered, as they all ask for it."""
    return _hash_step(_of_steps(seed, attempt, 16), b"%d" % step)


def step_span_id(seed: str, attempt: int, step: int, rank: int) -> SpanId:
    """Return the id of the span of one step of one rank."""
    return _hash_step(_of_steps(seed, attempt, 8), b"%d\0%d" % (step, rank))


@lru_cache(maxsize=1024)
def step_parent_id(seed: str, attempt: int, step: int) -> SpanId:
    """Return the id of the span above those of one step of all ranks but 0: that of rank 0."""
    return step_span_id(seed, attempt, step, 0)


def run_trace_id(seed: str, attempt: int) -> TraceId:
    """Return the id of the trace that holds the run spans of all ranks."""
    return _hash(f"{seed}\0{attempt}\0run", 16)


def run_span_id(seed: str, attempt: int, rank: int) -> SpanId:
    """Return the id of the run span of one rank."""
    return _hash(f"{seed}\0{attempt}\0run\0{rank}", 8)


def run_start_span_id(seed: str, attempt: int, rank: int) -> SpanId:
    """Return the id of the span that says that one rank has begun."""
    return _hash(f"{seed}\0{attempt}\0run.start\0{rank}", 8)


def phase_span_id(seed: str, attempt: int, rank: int, number: int) -> SpanId:
    """Return the id of a phase's span."""
    return _hash(f"{seed}\0{attempt}\0phase\0{rank}\0{number}", 8)


def checkpoint_span_id(seed: str, attempt: int, rank: int, step: int, save_type: str) -> SpanId:
    """Return the id of the span of a checkpoint that does not leave with its step."""
    return _hash(f"{seed}\0{attempt}\0checkpoint\0{rank}\0{step}\0{save_type}", 8)


def metrics_span_id(seed: str, attempt: int, rank: int, number: int) -> SpanId:
    """Return the id of a span of values that were told to be of another step; ``number`` counts those."""
    return _hash(f"{seed}\0{attempt}\0metrics\0{rank}\0{number}", 8)


def stuck_span_id(seed: str, attempt: int, step: int, node_rank: int, number: int) -> SpanId:
    """Return the id of a span on ranks of a node that do not go on; ``number`` counts those on the same."""
    return _hash(f"{seed}\0{attempt}\0stuck\0{step}\0{node_rank}\0{number}", 8)


def slow_span_id(seed: str, attempt: int, step: int, node_rank: int, *, is_lasting: bool) -> SpanId:
    """Return the id of a span on ranks of a node that held up a step, or hold up all."""
    return _hash(f"{seed}\0{attempt}\0{'slow' if is_lasting else 'held'}\0{step}\0{node_rank}", 8)


def is_sampled(trace_id: TraceId, ratio: float) -> bool:
    """Decide as OpenTelemetry's ``TraceIdRatioBased`` does, so that all ranks agree.

    Args:
        trace_id: The trace to decide on.
        ratio: Share of traces to keep, 0 to 1.
    """
    return (trace_id & _RATIO_BITS) < round(ratio * (1 << 64))


def parse_traceparent(text: str | None) -> tuple[TraceId | None, SpanId | None]:
    """Return the trace and the span that a W3C ``traceparent`` names, or None for both if it names none."""
    match = _TRACEPARENT.fullmatch(text or "")
    return (int(match[1], 16), int(match[2], 16)) if match else (None, None)


def valid_tracestate(text: str | None) -> str:
    """Return a W3C ``tracestate`` as it is; nothing if it is none, or longer than everybody has to pass on."""
    members = [member.strip() for member in (text or "").split(",") if member.strip()]
    keys = {member.partition("=")[0] for member in members}
    is_valid = len(keys) == len(members) <= _MAX_MEMBERS and all(map(_MEMBER.fullmatch, members))
    state = ",".join(members)
    return state if is_valid and len(state) <= _MAX_STATE_CHARS else ""


def is_unsampled(traceparent: str | None) -> bool:
    """Tell whether a W3C ``traceparent`` says that its trace is not recorded."""
    match = _TRACEPARENT.fullmatch(traceparent or "")
    return match is not None and not int(match[3], 16) & 1


def _hash(text: str, size_bytes: int) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=size_bytes).digest(), "big") or 1


@lru_cache(maxsize=64)
def _of_steps(seed: str, attempt: int, size_bytes: int) -> blake2b:
    """Return the hash of what the ids of all steps begin with, to go on from."""
    return blake2b(f"{seed}\0{attempt}\0step\0".encode("utf-8", "surrogatepass"), digest_size=size_bytes)


def _hash_step(begun: blake2b, rest: bytes) -> int:
    whole = begun.copy()
    whole.update(rest)
    return int.from_bytes(whole.digest(), "big") or 1
