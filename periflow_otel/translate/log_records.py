"""What the script has logged, and events where they are wanted so, to log records."""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Final

from periflow_otel import names
from periflow_otel.identities import identify
from periflow_otel.records import LogLine, RankRun, Record
from periflow_otel.run_config import without_user_info
from periflow_otel.translate.spans import SpanTranslator
from periflow_otel.translate.telemetry import Attributes, AttributeValue, LogRecord, Observed, Span
from periflow_otel.translate.values import to_attribute, whole

_SAMPLED: Final = 1
_INFO: Final = 9
_ERROR: Final = 17


class LogTranslator:
    """Turns the records of one rank, in order, into log records."""

    def __init__(self, run: RankRun, state: bytes = b"", *, has_events: bool = False) -> None:
        """Begin, or go on from an encoded ``state``.

        Args:
            run: Whose records.
            state: What ``encode_state`` returned.
            has_events: Every event of a span becomes a log record too.
        """
        self._run = run
        self._spans = SpanTranslator(run, state) if has_events else None
        self._records: list[LogRecord] = []
        self._where: tuple[int | None, int] | None = None
        self._ids = 0, 0, 0

    def feed(self, records: Iterable[Record]) -> None:
        """Translate some records."""
        for record in records:
            if isinstance(record, LogLine):
                self._records.append(self._said(record))
            elif self._spans:
                self._spans.feed([record])
                self._take_events(self._spans)

    def step_began(self, step: int, started_unix_ns: int) -> None:
        """Let the events of the step before go."""
        if self._spans:
            self._spans.step_began(step, started_unix_ns)
            self._take_events(self._spans)

    def observe(self, observed: Observed) -> None:
        """Do nothing: it makes no log record."""

    def settle(self, now_unix_ns: int | None = None) -> None:
        """Do nothing: log records do not add up."""

    def take(self) -> list[LogRecord]:
        """Return the log records since the last call."""
        if self._spans:
            self._take_events(self._spans)
        records, self._records = self._records, []
        return records

    def encode_state(self) -> bytes:
        """Return what a translator needs to go on from here."""
        return self._spans.encode_state() if self._spans else b""

    def dropped(self) -> dict[str, int]:
        """Return nothing: every record makes what it can."""
        return {}

    def _take_events(self, spans: SpanTranslator) -> None:
        self._records += [event for span in spans.take() for event in _events(span)]

    def _said(self, line: LogLine) -> LogRecord:
        extra = {key: to_attribute(value) for key, value in line.extra.items() if key not in names.ATTRIBUTES}
        return LogRecord(
            line.logger,
            line.time_unix_ns,
            line.observed_unix_ns,
            severity(line.level),
            line.level_name,
            _whole(line.message),
            {**extra, **_step(line), **_exception(line)},
            *self._place(line),
            _source(self._run.rank, line.path, line.function, line.line, line.thread_id, line.thread),
            dropped_attributes=line.dropped + len(line.extra) - len(extra),
        )

    def _place(self, line: LogLine) -> tuple[int, int, int]:
        """Return trace id, span id and flags of where a line was said."""
        if line.span:
            return int.from_bytes(line.span[:16], "big"), int.from_bytes(line.span[16:24], "big"), line.span[24]
        where = line.step, line.phase
        if where != self._where:
            trace_id, span_id, is_sampled = identify(self._run, *where)
            self._where, self._ids = where, (trace_id, span_id, _SAMPLED if is_sampled else 0)
        return self._ids


def _step(line: LogLine) -> Attributes:
    return {} if line.step is None else {names.STEP: line.step}


def _exception(line: LogLine) -> dict[str, AttributeValue]:
    if line.error is None:
        return {names.CODE_STACKTRACE: _whole(line.stack)} if line.stack else {}
    return {
        names.EXCEPTION_TYPE: line.error,
        names.EXCEPTION_MESSAGE: _whole(line.error_message),
        names.EXCEPTION_STACKTRACE: _whole(line.stack),
    }


@lru_cache(maxsize=4096)
def _source(
    rank: int, path: str, function: str, number: int, thread_id: int, thread: str
) -> tuple[tuple[str, str | int], ...]:
    """Return what all log records share that a line of code has said in one thread."""
    return (
        (names.RANK, rank),
        (names.CODE_FILE_PATH, path),
        (names.CODE_FUNCTION, function),
        (names.CODE_LINE, number),
        (names.THREAD_ID, thread_id),
        (names.THREAD_NAME, thread),
    )


def _whole(text: str) -> str:
    return whole(without_user_info(text))


def severity(level: int) -> int:
    """Return the number that OpenTelemetry has for a level of ``logging``: 9 for INFO, 10 for what is just above it."""
    if level < 10:
        return 1 if level > 0 else 0
    return 1 + 4 * min(level // 10, 5) + min(level % 10, 3)


def _events(span: Span) -> Iterator[LogRecord]:
    """Yield the events of a span as log records."""
    for event in span.events:
        yield LogRecord(
            scope=names.SCOPE,
            time_unix_ns=event.time_unix_ns,
            observed_unix_ns=event.time_unix_ns,
            severity=_ERROR if event.name == names.EXCEPTION else _INFO,
            severity_text="",
            body=None,
            attributes=event.attributes,
            trace_id=span.trace_id,
            span_id=span.span_id,
            flags=_SAMPLED,
            event_name=event.name,
        )
