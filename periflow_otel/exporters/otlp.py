"""OTLP over the network, delivered exactly: what the receiver took, what it refused and what is left is known."""

from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from periflow_otel.endpoints import OtlpSettings, Signal
from periflow_otel.exporters import Outcome
from periflow_otel.exporters.otlp_answers import Accepted, Answer, Kept, Refused
from periflow_otel.messages import metrics_request, traces_request
from periflow_otel.otlp_json import metrics_json, traces_json
from periflow_otel.records import RankRun
from periflow_otel.translate.telemetry import Point, Span

MAX_REQUEST_BYTES: Final = 4 << 20
"""Largest request, before compression: what a gRPC server takes by default."""
MAX_REQUESTS: Final = 64
"""Most requests of one ``export``, so that refusals item by item do not hold up the caller. One item takes ten."""

Items = Sequence[tuple[RankRun, Span | Point]]


class Transport(Protocol):
    """How a request reaches the receiver. The seam below which HTTP and gRPC differ."""

    def send(self, body: bytes) -> Answer:
        """Send a request and raise nothing. Takes as long as the settings allow, and the time to look up the host."""

    def close(self) -> None:
        """Release the connection; the next ``send`` opens another."""


class OtlpExporter:
    """Sends spans, or points, to an OTLP receiver."""

    def __init__(self, settings: OtlpSettings, transport: Transport | None = None) -> None:
        """Prepare to send what ``settings.signal`` names; nothing is opened before the first ``export``."""
        self._encode = (_JSON_ENCODERS if settings.protocol == "http/json" else _ENCODERS)[settings.signal]
        self._transport = transport or _transport(settings)

    def export(self, items: Items) -> Outcome:
        """Deliver items in order, in one pass without waiting.

        A request that is refused is cut in two, again and again, so that only refused items are lost.
        """
        delivered = rejected = 0
        message = ""
        todo = [items] if items else []  # what comes first is on top
        for _ in range(MAX_REQUESTS):
            if not todo:
                break
            batch = todo.pop()
            answer = self._deliver(batch)
            message = answer.message or message
            match answer:
                case Accepted():
                    refused = max(0, min(answer.rejected, len(batch)))
                    rejected += refused
                    delivered += len(batch) - refused
                case Refused() if len(batch) > 1:
                    middle = len(batch) // 2
                    todo += batch[middle:], batch[:middle]
                case Refused():
                    rejected += 1
                case Kept():
                    return Outcome(delivered, rejected, message, answer.retry_after_s)
        return Outcome(delivered, rejected, message, retry_after_s=0.0 if todo else None)

    def probe(self) -> Answer:
        """Send a request with nothing in it, and return what the receiver says."""
        return self._deliver([])

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()

    def _deliver(self, batch: Items) -> Answer:
        try:
            body = self._encode(batch)
        except (TypeError, ValueError) as error:
            return Refused(f"cannot be encoded: {type(error).__name__}")
        if len(body) > MAX_REQUEST_BYTES and len(batch) > 1:
            return Refused("larger than a request may be")
        return self._transport.send(body)


def _transport(settings: OtlpSettings) -> Transport:
    if settings.protocol == "grpc":
        from periflow_otel.exporters.otlp_grpc import GrpcTransport  # noqa: PLC0415  # 40 MB that HTTP does not need

        return GrpcTransport(settings)
    from periflow_otel.exporters.otlp_http import HttpTransport  # noqa: PLC0415  # as above

    return HttpTransport(settings)


_Encoders = dict[Signal, Callable[[Any], bytes]]
_ENCODERS: Final[_Encoders] = {
    "traces": lambda items: traces_request(items).SerializeToString(),
    "metrics": lambda items: metrics_request(items).SerializeToString(),
}
_JSON_ENCODERS: Final[_Encoders] = {"traces": traces_json, "metrics": metrics_json}
