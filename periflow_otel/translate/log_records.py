"""What the script has logged, and events where they are wanted so, to log records."""

from collections.abc import Iterable, Iterator
from typing import Final

from periflow_otel import names
from periflow_otel.identities import identify
from periflow_otel.records import LogLine, RankRun, Record
from periflow_otel.run_config import without_user_info
from periflow_otel.translate.steps import SpanTranslator
from periflow_otel.translate.telemetry import AttributeValue, LogRecord, Observed, Span
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
        trace_id, span_id, flags = self._place(line)
        return LogRecord(
            scope=line.logger,
            time_unix_ns=line.time_unix_ns,
            observed_unix_ns=line.observed_unix_ns,
            severity=severity(line.level),
            severity_text=line.level_name,
            body=_whole(line.message),
            attributes=dict(self._attributes(line)),
            trace_id=trace_id,
            span_id=span_id,
            flags=flags,
            dropped_attributes=line.dropped,
        )

    def _place(self, line: LogLine) -> tuple[int, int, int]:
        """Return trace id, span id and flags of where a line was said."""
        if line.span:
            return int.from_bytes(line.span[:16], "big"), int.from_bytes(line.span[16:24], "big"), line.span[24]
        trace_id, span_id, is_sampled = identify(self._run, line.step, line.phase)
        return trace_id, span_id, _SAMPLED if is_sampled else 0

    def _attributes(self, line: LogLine) -> Iterator[tuple[str, AttributeValue]]:
        yield from ((key, to_attribute(value)) for key, value in line.extra.items())
        yield names.RANK, self._run.rank
        if line.step is not None:
            yield names.STEP, line.step
        yield names.CODE_FILE_PATH, line.path
        yield names.CODE_FUNCTION, line.function
        yield names.CODE_LINE, line.line
        yield names.THREAD_ID, line.thread_id
        yield names.THREAD_NAME, line.thread
        if line.error is not None:
            yield names.EXCEPTION_TYPE, line.error
            yield names.EXCEPTION_MESSAGE, _whole(line.error_message)
        if line.stack:
            yield names.CODE_STACKTRACE if line.error is None else names.EXCEPTION_STACKTRACE, _whole(line.stack)


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
