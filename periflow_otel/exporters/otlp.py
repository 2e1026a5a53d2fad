"""OTLP over the network, delivered exactly: what the receiver took, what it refused and what is left is known."""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from periflow_otel.config.endpoints import OtlpSettings, Signal
from periflow_otel.exporters import Outcome, Verdict, taken
from periflow_otel.exporters.otlp_answers import HOLD_S
from periflow_otel.otlp.json import logs_json, metrics_json, traces_json
from periflow_otel.otlp.protobuf import logs_request, metrics_request, traces_request
from periflow_otel.records import RankRun
from periflow_otel.translate.telemetry import LogRecord, Point, Span

MAX_REQUEST_BYTES: Final = 4 << 20
"""Largest request, before compression: what a gRPC server takes by default."""
PROVEN_S: Final = 1.0
"""For so long after it has taken something a receiver counts as one that takes what is right."""

Items = Sequence[tuple[RankRun, Span | Point | LogRecord]]


class Transport(Protocol):
    """How a request reaches the receiver. The seam below which HTTP and gRPC differ."""

    def send(self, body: bytes, count: int) -> Outcome:
        """Send a request with so many items, and raise nothing.

        Takes as long as the settings allow, and the time to look up the host.
        """

    def close(self) -> None:
        """Release the connection; the next ``send`` opens another."""


class OtlpExporter:
    """Sends what a signal is made of to an OTLP receiver: one request, or two or three where an answer asks for it."""

    def __init__(
        self,
        settings: OtlpSettings,
        others: Iterable[OtlpSettings] = (),
        transport: Transport | None = None,
        encode: Callable[[Any], bytes] | None = None,
    ) -> None:
        """Prepare to send what ``settings.signal`` names; nothing is opened before the first ``export``.

        Args:
            settings: Where and how.
            others: Where and how the other signals are sent.
            transport: In place of the one that the settings name.
            encode: Makes a request of items that are neither spans, points nor log records.
        """
        self._settings = settings
        self._others = [each for each in others if _is_same_place(settings, each)]
        self._encode = encode or (_JSON_ENCODERS if settings.protocol == "http/json" else _ENCODERS)[settings.signal]
        self._transport = transport or _transport(settings)
        self._proven_at_s = -PROVEN_S

    def export(self, items: Sequence[Any]) -> Outcome:
        """Try once to deliver items.

        What an answer means may depend on another: items are refused only if an empty request is not, and a signal is
        declined only if another one is taken at the same place.
        """
        if not items:
            return taken(0)
        try:
            body = self._encode(items)
        except (TypeError, ValueError) as error:
            return Outcome(Verdict.REFUSED, f"cannot be encoded ({type(error).__name__})")
        if len(body) > MAX_REQUEST_BYTES and len(items) > 1:
            return Outcome(Verdict.TOO_LARGE, "larger than a request may be")
        outcome = self._send(body, len(items))
        if outcome.verdict is Verdict.REFUSED and not self._is_proven():
            return self._judge_refused(outcome)
        if outcome.verdict is Verdict.DECLINED:
            return self._judge_declined(outcome)
        return outcome

    def probe(self) -> Outcome:
        """Send a request with nothing in it."""
        return self._send(self._encode([]), 0)

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()

    def _send(self, body: bytes, count: int) -> Outcome:
        outcome = self._transport.send(body, count)
        if outcome.verdict is Verdict.TAKEN:
            self._proven_at_s = time.monotonic()
        return outcome

    def _is_proven(self) -> bool:
        """Tell whether the receiver has just taken something."""
        return time.monotonic() - self._proven_at_s < PROVEN_S

    def _judge_refused(self, outcome: Outcome) -> Outcome:
        """Ask with an empty request whether it is the items, or a setting that is wrong."""
        empty = self.probe()
        if empty.verdict is Verdict.TAKEN:
            return outcome
        if empty.verdict in (Verdict.LATER, Verdict.FAILED):  # it cannot be told now
            return empty._replace(verdict=Verdict.LATER)
        return outcome._replace(verdict=Verdict.WRONG, retry_after_s=HOLD_S)

    def _judge_declined(self, outcome: Outcome) -> Outcome:
        """Tell a receiver that does not take this signal from an address where there is none."""
        signal, other = self._settings.signal, next(filter(_takes, self._others), None)
        if other is None:
            return outcome._replace(verdict=Verdict.WRONG, cause=f"{outcome.cause}; {_REMEDY}")
        variable = f"OTEL_{signal.upper()}_EXPORTER"
        cause = f"{outcome.cause}; it takes {other.signal} and no {signal}: set {variable}=none to send none there"
        return outcome._replace(cause=cause)


def _is_same_place(one: OtlpSettings, other: OtlpSettings) -> bool:
    return urlsplit(one.endpoint)[:2] == urlsplit(other.endpoint)[:2]


def _takes(settings: OtlpSettings) -> bool:
    """Tell whether a receiver takes a request of a signal."""
    exporter = OtlpExporter(settings)
    try:
        return exporter.probe().verdict is Verdict.TAKEN
    finally:
        exporter.close()


def _transport(settings: OtlpSettings) -> Transport:
    if settings.protocol == "grpc":
        from periflow_otel.exporters.otlp_grpc import GrpcTransport  # noqa: PLC0415  # 40 MB that HTTP does not need

        return GrpcTransport(settings)
    from periflow_otel.exporters.otlp_http import HttpTransport  # noqa: PLC0415  # as above

    return HttpTransport(settings)


_Encoders = dict[Signal, Callable[[Any], bytes]]
_ENCODERS: Final[_Encoders] = {
    "traces": traces_request,
    "metrics": metrics_request,
    "logs": logs_request,
}
_JSON_ENCODERS: Final[_Encoders] = {"traces": traces_json, "metrics": metrics_json, "logs": logs_json}
_REMEDY: Final = "set OTEL_EXPORTER_OTLP_ENDPOINT to an OTLP receiver"
