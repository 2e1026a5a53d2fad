"""A client of the gateway that may say whatever it likes: OTLP JSON made by hand, and the attributes in it."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import requests
from tiers import Tiers

Attributes = Mapping[str, Any]
Json = dict[str, Any]


class Client:
    """Sends with the token of a tenant."""

    def __init__(self, tiers: Tiers, url: str = "", **claims: object) -> None:
        """Get a token with these claims, for the gateway or what is at ``url`` before it."""
        self._url, self._certificate = url or tiers.url, tiers.certificate
        self._token = tiers.issuer.token(**claims)

    def send_spans(self, *spans: Json, resource: Attributes, scope: Attributes | None = None) -> requests.Response:
        """Send spans of one resource."""
        body = {"scope": {"name": "client", "attributes": attributes(scope or {})}, "spans": spans}
        return self._post("traces", {"resourceSpans": [{"resource": _resource(resource), "scopeSpans": [body]}]})

    def send_metrics(self, *metrics: Json, resource: Attributes, scope: Attributes | None = None) -> requests.Response:
        """Send metrics of one resource."""
        body = {"scope": {"name": "client", "attributes": attributes(scope or {})}, "metrics": metrics}
        return self._post("metrics", {"resourceMetrics": [{"resource": _resource(resource), "scopeMetrics": [body]}]})

    def send_logs(self, *records: Json, resource: Attributes, scope: Attributes | None = None) -> requests.Response:
        """Send log records of one resource."""
        body = {"scope": {"name": "client", "attributes": attributes(scope or {})}, "logRecords": records}
        return self._post("logs", {"resourceLogs": [{"resource": _resource(resource), "scopeLogs": [body]}]})

    def _post(self, signal: str, body: Json) -> requests.Response:
        headers = {"authorization": f"Bearer {self._token}"}
        url = f"{self._url}/v1/{signal}"
        return requests.post(url, json=body, headers=headers, verify=self._certificate, timeout=60)


def span(
    trace_id: int,
    span_id: int,
    *,
    name: str = "periflow.step",
    is_error: bool = False,
    events: Sequence[tuple[str, Attributes]] = (),
    **more: Any,
) -> Json:
    """Return a span that has just ended."""
    now = str(time.time_ns())
    return {
        "traceId": f"{trace_id:032x}",
        "spanId": f"{span_id:016x}",
        "name": name,
        "startTimeUnixNano": now,
        "endTimeUnixNano": now,
        "attributes": attributes(more),
        "events": [{"timeUnixNano": now, "name": event, "attributes": attributes(said)} for event, said in events],
        "status": {"code": 2} if is_error else {},
    }


def gauge(name: str, *points: tuple[float, Attributes], ago_s: float = 0) -> Json:
    """Return a gauge with points of one time."""
    at = str(time.time_ns() - int(ago_s * 1e9))
    said = [{"timeUnixNano": at, "asDouble": value, "attributes": attributes(labels)} for value, labels in points]
    return {"name": name, "gauge": {"dataPoints": said}}


def counter(name: str, value: float, labels: Attributes) -> Json:
    """Return a counter with one point."""
    point = {"timeUnixNano": str(time.time_ns()), "asDouble": value, "attributes": attributes(labels)}
    return {"name": name, "sum": {"aggregationTemporality": 2, "isMonotonic": True, "dataPoints": [point]}}


def log_record(message: str, *, ago_s: float = 0, **more: Any) -> Json:
    """Return a log record; of a time before that of the epoch has none but that at which it was observed."""
    at = time.time_ns() - int(ago_s * 1e9)
    said = {"body": {"stringValue": message}, "severityNumber": 17, "attributes": attributes(more)}
    return {"timeUnixNano": str(at), **said} if at > 0 else {"observedTimeUnixNano": str(time.time_ns()), **said}


def attributes(said: Attributes) -> list[Json]:
    """Return attributes as OTLP JSON has them."""
    kinds = {str: "stringValue", bool: "boolValue", int: "intValue", float: "doubleValue"}
    return [{"key": key, "value": {kinds[type(value)]: value}} for key, value in said.items()]


def _resource(said: Attributes) -> Json:
    return {"attributes": attributes({"service.name": "client", **said})}
