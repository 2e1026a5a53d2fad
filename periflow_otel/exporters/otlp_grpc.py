"""OTLP over gRPC."""

import re
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import grpc
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import RetryInfo  # type: ignore[import-untyped]  # it has no stubs
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]  # it has no stubs
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

from periflow_otel.config.endpoints import OtlpSettings, Signal
from periflow_otel.config.headers import Headers
from periflow_otel.errors import ConfigurationError
from periflow_otel.exporters import Outcome, Verdict
from periflow_otel.exporters.otlp_answers import (
    HOLD_S,
    MAX_RETRY_AFTER_S,
    accepted,
    clean,
    judge_code,
    pause_s,
    with_remedy,
)
from periflow_otel.exporters.tls import trusted_roots
from periflow_otel.names import VERSION


class GrpcTransport:
    """Sends requests over one channel, which is replaced after trouble.

    Requests and answers pass as bytes, so that an answer that cannot be read does not hide that it is a success.
    """

    def __init__(self, settings: OtlpSettings) -> None:
        """Prepare; the first ``send`` connects."""
        self._settings = settings
        self._target = urlsplit(settings.endpoint).netloc or settings.endpoint
        self._headers = settings.header_source()
        self._secrets = Headers()
        self._channel: grpc.Channel | None = None

    def send(self, body: bytes, count: int) -> Outcome:
        """Call the service and judge the answer."""
        try:
            reply = self._call(body)
        except grpc.RpcError as error:
            self.close()
            return self._judge(error)
        except ConfigurationError as error:
            return Outcome(Verdict.WRONG, f"{error} ({self._target})", "", HOLD_S)
        except (OSError, ValueError, TypeError) as error:  # a file or a header that cannot be used
            self.close()
            return Outcome(Verdict.WRONG, f"{type(error).__name__} before the call ({self._target})", "", HOLD_S)
        return accepted(reply or b"", count, self._settings.signal, self._secrets)

    def close(self) -> None:
        """Close the channel: a new one connects at once, where this one would first wait."""
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()

    def _call(self, body: bytes) -> bytes | None:
        headers = self._headers.current()
        self._secrets = self._settings.secrets(headers)
        if self._channel is None:
            self._channel = self._open()
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes | None] = self._channel.unary_unary(
            _METHODS[self._settings.signal]
        )
        return call(
            body,
            timeout=self._settings.timeout_s,
            metadata=headers,
            compression=_COMPRESSIONS[self._settings.compression],
        )

    def _open(self) -> grpc.Channel:
        proxy = self._settings.proxy
        options: list[tuple[str, str | int]] = [
            ("grpc.primary_user_agent", f"periflow_otel/{VERSION}"),
            ("grpc.enable_retries", 0),  # the caller's backoff rules
            ("grpc.use_local_subchannel_pool", 1),  # a new channel does not inherit how long the old one waits
            # Left to itself, gRPC would send plain text through a proxy too.
            ("grpc.enable_http_proxy", 0) if proxy is None else ("grpc.http_proxy", proxy),
        ]
        if self._settings.insecure:
            return grpc.insecure_channel(self._target, options)
        return grpc.secure_channel(self._target, _credentials(self._settings), options)

    def _judge(self, error: grpc.RpcError) -> Outcome:
        details = error.details() or ""
        if _BAD_CERTIFICATE.search(details):
            return Outcome(Verdict.WRONG, f"the certificate was not accepted ({self._target})", "", HOLD_S)
        said = clean(details, self._secrets)
        return judge_code(error.code().name, with_remedy(self._target, details), said, _retry_after(error))


def _credentials(settings: OtlpSettings) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(
        root_certificates=trusted_roots(settings),
        private_key=_content(settings.client_key),
        certificate_chain=_content(settings.client_certificate),
    )


def _content(path: str | None) -> bytes | None:
    return None if path is None else Path(path).read_bytes()


def _retry_after(error: grpc.RpcError) -> float | None:
    """Return the pause that the receiver asks for, or a proxy before it, in seconds; None if they ask for none."""
    metadata: dict[str, Any] = dict(error.trailing_metadata() or ())  # type: ignore[arg-type]  # named tuples
    info = RetryInfo()
    try:
        if any(each.Unpack(info) for each in Status.FromString(metadata.get(_DETAILS, b"")).details):
            delay_s: float = info.retry_delay.seconds + info.retry_delay.nanos / 1e9
            return min(delay_s, MAX_RETRY_AFTER_S) if delay_s > 0 else None
    except DecodeError:
        pass
    return pause_s(metadata.get("retry-after", ""))


_DETAILS: Final = "grpc-status-details-bin"
_METHODS: Final[dict[Signal, str]] = {
    "traces": f"/{trace_service_pb2.DESCRIPTOR.services_by_name['TraceService'].full_name}/Export",
    "metrics": f"/{metrics_service_pb2.DESCRIPTOR.services_by_name['MetricsService'].full_name}/Export",
    "logs": f"/{logs_service_pb2.DESCRIPTOR.services_by_name['LogsService'].full_name}/Export",
}
_COMPRESSIONS: Final = {"none": grpc.Compression.NoCompression, "gzip": grpc.Compression.Gzip}
_BAD_CERTIFICATE: Final = re.compile(r"CERTIFICATE_VERIFY_FAILED|Hostname Verification Check failed")
