"""What the training process records, and how it is encoded: MessagePack arrays that begin with a kind."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Literal

import msgspec

from periflow_otel.processes import Process
from periflow_otel.values import MAX_KEY_CHARS, decode_extension, plain, plain_mapping

_AGENT: Final = -1
"""Stands where a rank has its number."""


class Earlier(msgspec.Struct, frozen=True):
    """What is known on this node of the attempt of a rank before this one."""

    attempt: int
    last_step: int
    """Number of the last step that began."""
    last_checkpoint: int
    """Step of the last checkpoint that was announced; 0: there was none."""
    last_seen_unix_ns: int
    """When it was certainly still there."""


class Orders(msgspec.Struct, frozen=True):
    """What the agent is to do with the records of a rank."""

    consumers: tuple[str, ...] = ()
    """Every one of these must have delivered a record before the journal may forget it."""
    destination: str = ""
    """Where the network exporters are to send, by a name that does not tell; empty if there are none."""
    sampling_ratio: float = 1.0
    """Share of step traces to keep, 0 to 1; below 0: not even what is remarkable."""


class Work(msgspec.Struct, frozen=True):
    """What a rank does in each step, as its script says."""

    kinds: tuple[tuple[str, float], ...] = ()
    """How much, by kind."""
    peak_flops: float | None = None
    """Floating-point operations per second that its device can do."""


class RankRun(msgspec.Struct, frozen=True, kw_only=True):
    """One rank's part in one attempt of a run. Written in the header of every segment of its journal."""

    run_id: str
    attempt: int
    seed: str = ""
    """What ids are derived from: the same on all ranks that could agree on it, and never that of another run."""
    rank: int
    local_rank: int
    node_rank: int
    world_size: int
    local_world_size: int = 1
    """Number of ranks on this node."""
    mode: str
    """``local`` or ``cloud``."""
    local_log: str | None = None
    """Absolute path of the metric log; the OTLP JSON files stand beside it. None in cloud mode."""
    process: Process
    started_unix_ns: int
    initial_step: int
    """Steps done by earlier attempts: the first step of this one is one more."""
    total_steps: int | None = None
    """Number of the last step, where it is known."""
    work: Work | None = None
    earlier: Earlier | None = None
    """The attempt before this one, if there was one."""
    traceparent: str | None = None
    """W3C trace context of the launcher: the parent of the run span."""
    tracestate: str = ""
    """What goes with it."""
    resource: tuple[tuple[str, str | int], ...] = ()
    """Resource attributes, sorted by key."""
    orders: Orders = Orders()

    def another_attempt(
        self, attempt: int, started_unix_ns: int, initial_step: int, earlier: Earlier | None
    ) -> "RankRun":
        """Return the same rank of the same run in another attempt."""
        return msgspec.structs.replace(
            self, attempt=attempt, started_unix_ns=started_unix_ns, initial_step=initial_step, earlier=earlier
        )

    def of_agent(self) -> "RankRun":
        """Return what stands for the agent of this run on this node, which is no rank, in all attempts."""
        return msgspec.structs.replace(self, rank=_AGENT, local_rank=_AGENT, attempt=0, earlier=None)

    def is_of_agent(self) -> bool:
        """Tell whether this stands for an agent."""
        return self.rank == _AGENT


class StepEnded(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """A step is over."""

    step: int
    start_unix_ns: int
    duration_ns: int
    error: str | None = None
    """Type of the exception that ended it."""
    gap_ns: int | None = None
    """Time since the end of the step before it, by the clock that nobody sets; None for the first of an attempt."""


class Metric(msgspec.Struct, frozen=True, array_like=True, tag=2, gc=False):
    """One call of ``pf.metric``."""

    step: int
    time_unix_ns: int
    values: dict[str, Any]
    during: int | None = None
    """The step that had begun last, where the values were told to be of another one."""


class Checkpoint(msgspec.Struct, frozen=True, array_like=True, tag=3, gc=False):
    """One call of ``pf.upload_checkpoint``."""

    step: int
    time_unix_ns: int
    is_step_open: bool
    is_emergency: bool
    request_delay_ns: int | None = None
    """Time since the emergency save was asked for."""
    during: int | None = None
    """The step that had begun last, where the checkpoint was told to be of another one."""


class Phase(msgspec.Struct, frozen=True, array_like=True, tag=4, gc=False):
    """A ``pf.span`` is over. Phases inside it come before it."""

    name: str
    number: int
    """Counts the phases of this rank from 1, in the order in which they began."""
    parent: int
    """Number of the phase around it, or 0."""
    step: int | None
    """The step in which it began, or None outside a step."""
    start_unix_ns: int
    duration_ns: int
    error: str | None
    attributes: dict[str, Any]


class RunFinished(msgspec.Struct, frozen=True, array_like=True, tag=5, gc=False):
    """The run is over, and the process said so itself."""

    time_unix_ns: int
    error: str | None = None
    """Type of the exception that ended the run."""


class RankLost(msgspec.Struct, frozen=True, array_like=True, tag=6, gc=False):
    """The process is gone and did not say so: noted by the agent, never in the journal itself."""

    time_unix_ns: int
    last_started_step: int
    """The last step that began; it was open if no ``StepEnded`` tells of its end."""
    last_started_unix_ns: int
    fatal: str | None = None
    """What its interpreter has said of the fatal signal that ended it, and where that hit; None: nothing."""
    stack: str = ""
    """Of the thread that it hit."""


class Missing(msgspec.Struct, frozen=True, array_like=True, tag=7, gc=False):
    """Stands in the journal for records that the disk did not take."""

    records: int


class Config(msgspec.Struct, frozen=True, array_like=True, tag=8, gc=False):
    """What tells a run from others, as its script says: all that is known by then. Every segment begins with it."""

    values: dict[str, Any]
    """Scalars, and lists of them, by key."""


class LogLine(msgspec.Struct, frozen=True, array_like=True, tag=9, gc=False):
    """What a logger of the script was told, formatted where it was said."""

    time_unix_ns: int
    observed_unix_ns: int
    """When it was recorded."""
    step: int | None
    """The step in which it was said, or None outside a step."""
    phase: int
    """Number of the phase in which it was said, or 0."""
    span: bytes
    """Where it was said in a span of the script's own: trace id, span id and flags of that."""
    logger: str
    level: int
    level_name: str
    message: str
    path: str
    line: int
    function: str
    thread_id: int
    thread: str
    error: str | None = None
    """Type of the exception that was logged,"""
    error_message: str = ""
    """what it says,"""
    stack: str = ""
    """and where it came from."""
    extra: dict[str, Any] = {}
    """What else the script has said in ``extra``."""
    dropped: int = 0
    """How many of these were left out."""


class Paused(msgspec.Struct, frozen=True, array_like=True, tag=10, gc=False):
    """Garbage collections that took long have held up a step. Comes before its end."""

    step: int
    time_unix_ns: int
    duration_ns: dict[int, int]
    """By generation."""


class Raised(msgspec.Struct, frozen=True, array_like=True, tag=11, gc=False):
    """More of the exception that ends the run, where the user wants it to be recorded. Comes before the end."""

    message: str
    """What it says; empty where that is not wanted."""
    stack: str
    """Where it came from."""


Record = StepEnded | Metric | Checkpoint | Phase | RunFinished | RankLost | Config | LogLine | Paused | Raised
Telling = Literal["type", "stack", "message"]
"""What is recorded of the exception that ends a run: its type alone, where it came from too, or also what it says."""

MAX_RECORD_BYTES: Final = 4 << 20
"""Largest encoded record; two fit into a segment."""

_MAX_KNOWN_KEYS: Final = 10_000
_SCALARS: Final = frozenset({float, int, bool, str, type(None)})

_encode = msgspec.msgpack.Encoder().encode
encode_end: Callable[[StepEnded], bytes] = _encode
"""Encode the end of a step, which is never too large."""
encode_missing: Callable[[Missing], bytes] = _encode
"""Encode what stands for records that are missing."""
_known_keys: set[str] = set()
"""Keys that were looked at before; never more than ``_MAX_KNOWN_KEYS``."""


def encode(record: Record) -> bytes:
    """Encode a record whose values :func:`plain_mapping` has checked, or that holds none of the user's.

    Raises:
        ValueError: The record is larger than ``MAX_RECORD_BYTES``.
    """
    payload = _encode(record)
    if len(payload) > MAX_RECORD_BYTES:
        message = f"{len(payload)} bytes were given to one call; at most {MAX_RECORD_BYTES} can be recorded"
        raise ValueError(message)
    return payload


def encode_metric(step: int, time_unix_ns: int, values: Mapping[str, Any], during: int | None = None) -> bytes:
    """Encode one call of ``pf.metric``; what the caller does to ``values`` later does not matter.

    Args:
        step: Step of the values.
        time_unix_ns: When they were given.
        values: Values by name.
        during: The step that had begun last, if that is another.

    Raises:
        TypeError: A value is not a JSON value or a scalar, a key is not text, or ``values`` is not a mapping.
        ValueError: A key or the whole is too long.
    """
    try:
        if _SCALARS.issuperset(map(type, dict.values(values))) and (  # type: ignore[arg-type]  # no dict: TypeError
            _known_keys.issuperset(values) or _are_plain(values)
        ):
            payload = _encode(Metric(step, time_unix_ns, values, during))  # type: ignore[arg-type]  # a dict, as just seen
            if len(payload) <= MAX_RECORD_BYTES:
                return payload
    except (TypeError, OverflowError, UnicodeEncodeError):
        pass  # The slow way either finds a way to record it or says what is wrong.
    return encode(Metric(step, time_unix_ns, plain_mapping(values), during))


def _are_plain(keys: Iterable[object]) -> bool:
    """Tell whether keys can be recorded as they are, and remember them if so."""
    are_plain = all(type(key) is str and len(key) <= MAX_KEY_CHARS for key in keys)
    if are_plain and len(_known_keys) < _MAX_KNOWN_KEYS:
        _known_keys.update(keys)  # type: ignore[arg-type]  # text, as just seen
    return are_plain


decode: Callable[[bytes], Record | Missing] = msgspec.msgpack.Decoder(
    Record | Missing, ext_hook=decode_extension
).decode
"""Decode one record. Raises ``msgspec.DecodeError`` for bytes that are none."""
_decode_any = msgspec.msgpack.Decoder(ext_hook=decode_extension).decode


def encode_run(run: RankRun) -> bytes:
    """Encode the run for the header of a segment. A path in it need not be valid text."""
    fields = msgspec.to_builtins(run)
    return _encode(plain({name: fields[name] for name in fields if fields[name] or name not in _LATER}, "run"))


_LATER: Final = frozenset({"tracestate", "work"})
"""Fields that came later are written only where they say something: the others are as they always were."""


def decode_run(blob: bytes) -> RankRun:
    """Decode the run from the header of a segment.

    Raises:
        msgspec.DecodeError: It is none, or of another version.
    """
    return msgspec.convert(_decode_any(blob), RankRun)
