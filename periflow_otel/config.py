"""Settings, resolved once from arguments and environment. Nothing else but ``ranks`` reads the environment.

``OTEL_*`` variables mean what the OpenTelemetry specification says; an empty value is an unset one.
"""

import getpass
import math
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, TypeVar, get_args
from urllib.parse import unquote, urlsplit
from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]  # unknown to typeshed

from periflow_otel import names
from periflow_otel.errors import ConfigurationError

AgentMode = Literal["process", "thread", "off"]
Protocol = Literal["grpc", "http/protobuf", "http/json"]
Compression = Literal["none", "gzip"]
Temporality = Literal["cumulative", "delta", "lowmemory"]
HistogramKind = Literal["explicit_bucket_histogram", "base2_exponential_bucket_histogram"]
Signal = Literal["traces", "metrics"]
Environ = Mapping[str, str]

PROMETHEUS_PORT: Final = 9464
"""The specification's default port of a Prometheus exporter."""


class Headers(tuple[tuple[str, str], ...]):
    """Header names and values. Never shown: a value is often a token."""

    __slots__ = ()

    def __repr__(self) -> str:
        """Show the names only."""
        return f"<headers {', '.join(name for name, _ in self) or 'none'}>"

    __str__ = __repr__


@dataclass(frozen=True, slots=True)
class OtlpSettings:
    """How one signal leaves over OTLP."""

    signal: Signal
    endpoint: str
    """Complete URL over HTTP; scheme, host and port over gRPC."""
    protocol: Protocol = "http/protobuf"
    headers: Headers = field(default=Headers())
    compression: Compression = "none"
    timeout_s: float = 10.0
    certificate: str | None = None
    """File with the certificates to trust instead of the system's."""
    client_key: str | None = None
    client_certificate: str | None = None
    insecure: bool = False
    """gRPC only: no TLS."""
    proxy: str | None = field(default=None, repr=False)
    """URL of the HTTP proxy that TLS connections go through; it may hold a password."""


@dataclass(frozen=True, slots=True)
class ExportSettings:
    """What the agent needs to know."""

    is_cloud: bool
    traces_exporters: tuple[str, ...]
    """``otlp``, or the name of an exporter that is registered with OpenTelemetry."""
    metrics_exporters: tuple[str, ...]
    otlp_traces: OtlpSettings | None
    otlp_metrics: OtlpSettings | None
    writes_traces_file: bool
    writes_metrics_file: bool
    temporality: Temporality = "cumulative"
    histogram: HistogramKind = "explicit_bucket_histogram"
    serves_prometheus: bool = False
    prometheus_host: str = "127.0.0.1"
    prometheus_port: int = PROMETHEUS_PORT
    shows_console: bool = False
    metric_interval_s: float = 60.0
    """At least this often the built-in instruments are exported again, so that no series goes stale."""
    linger_s: float = 60.0

    @classmethod
    def from_environ(cls, environ: Environ) -> "ExportSettings":
        """Resolve the settings.

        Raises:
            ConfigurationError: A variable has a value that cannot be used. Header values are never shown.
        """
        env = _Environ(environ)
        is_cloud = find_mode(environ) == "cloud"
        traces = _exporters(env, "traces", is_cloud=is_cloud)
        metrics = _exporters(env, "metrics", is_cloud=is_cloud)
        return cls(
            is_cloud=is_cloud,
            traces_exporters=tuple(name for name in traces if name != "none"),
            metrics_exporters=tuple(name for name in metrics if name not in ("none", "prometheus")),
            otlp_traces=_otlp(env, "traces") if "otlp" in traces else None,
            otlp_metrics=_otlp(env, "metrics") if "otlp" in metrics else None,
            writes_traces_file=not is_cloud and "none" not in traces,
            writes_metrics_file=not is_cloud and "none" not in metrics,
            temporality=env.choice(
                "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "cumulative", get_args(Temporality)
            ),
            histogram=env.choice(
                "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION",
                "explicit_bucket_histogram",
                get_args(HistogramKind),
            ),
            serves_prometheus="prometheus" in metrics or (not is_cloud and "none" not in metrics),
            prometheus_host=env.text("OTEL_EXPORTER_PROMETHEUS_HOST") or "127.0.0.1",
            prometheus_port=env.integer("OTEL_EXPORTER_PROMETHEUS_PORT", PROMETHEUS_PORT, 0, 65535),
            shows_console=env.text(names.CONSOLE) == "1",
            metric_interval_s=env.number("OTEL_METRIC_EXPORT_INTERVAL", 60_000, 1, 86_400_000) / 1000,
            linger_s=env.number(names.AGENT_LINGER, 60, 0, 86_400),
        )

    def consumers(self) -> tuple[str, ...]:
        """Name everything that must have a record before the journal may forget it."""
        return tuple(self._consumers())

    def _consumers(self) -> Iterator[str]:
        if not self.is_cloud:
            yield "metric_log"
        if self.writes_traces_file:
            yield "otlp_file.traces"
        if self.writes_metrics_file:
            yield "otlp_file.metrics"
        yield from (f"{_consumer_stem(name)}.traces" for name in self.traces_exporters)
        yield from (f"{_consumer_stem(name)}.metrics" for name in self.metrics_exporters)


@dataclass(frozen=True, slots=True)
class RunSettings:
    """What the training process needs to know."""

    is_disabled: bool
    is_cloud: bool
    state_dir: Path
    run_id: str | None
    agent: AgentMode
    exit_timeout_s: float
    journal_max_bytes: int
    service_name: str
    resource_attributes: tuple[tuple[str, str], ...]
    sampling_ratio: float
    traceparent: str | None
    consumers: tuple[str, ...]

    @classmethod
    def from_environ(cls, environ: Environ) -> "RunSettings":
        """Resolve the settings, those of the agent too, so that a mistake shows at the call of ``init``.

        Raises:
            ConfigurationError: A variable has a value that cannot be used.
        """
        env = _Environ(environ)
        attributes = dict(_resource_attributes(env))
        return cls(
            is_disabled=env.boolean("OTEL_SDK_DISABLED"),
            is_cloud=find_mode(environ) == "cloud",
            state_dir=find_state_dir(environ),
            run_id=env.text(names.RUN_ID_VAR),
            agent=env.choice(names.AGENT, "process", get_args(AgentMode)),
            exit_timeout_s=env.number(names.EXIT_TIMEOUT, 5, 0, 3600),
            journal_max_bytes=env.integer(names.JOURNAL_MAX_BYTES, 256 << 20, 32 << 20, 1 << 50),
            service_name=env.text("OTEL_SERVICE_NAME") or attributes.pop("service.name", "periflow-training"),
            resource_attributes=tuple(sorted(attributes.items())),
            sampling_ratio=_sampling_ratio(env),
            traceparent=env.text("TRACEPARENT"),
            consumers=ExportSettings.from_environ(environ).consumers(),
        )


def find_mode(environ: Environ) -> Literal["local", "cloud"]:
    """Return ``cloud`` if ``PERIFLOW_ENABLED`` is exactly ``1``, as in ``periflow_sdk``."""
    return "cloud" if environ.get(names.PERIFLOW_ENABLED) == "1" else "local"


def find_state_dir(environ: Environ) -> Path:
    """Return the folder of the journals; it need not exist."""
    if given := environ.get(names.STATE_DIR):
        return Path(given).expanduser().absolute()
    if xdg := environ.get("XDG_STATE_HOME"):
        return Path(xdg) / "periflow"
    try:
        return Path.home() / ".local" / "state" / "periflow"
    except RuntimeError:  # a user without a home
        return fallback_state_dir()


def fallback_state_dir() -> Path:
    """Return a folder for journals where the one that should hold them cannot."""
    return Path(tempfile.gettempdir()) / f"periflow-{getpass.getuser()}"


_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class _Environ:
    """Variables with a type, and an error that names the variable."""

    environ: Environ

    def text(self, name: str) -> str | None:
        return self.environ.get(name, "").strip() or None

    def boolean(self, name: str) -> bool:
        return (self.text(name) or "").lower() == "true"

    def number(self, name: str, default: float, least: float, most: float) -> float:
        value = self.text(name)
        try:
            number = default if value is None else float(value)
        except ValueError:
            number = math.nan
        if not least <= number <= most:
            raise _bad(name, value, f"give a number from {least:g} to {most:g}")
        return number

    def integer(self, name: str, default: int, least: int, most: int) -> int:
        number = self.number(name, default, least, most)
        if number != int(number):
            raise _bad(name, self.text(name), "give a whole number")
        return int(number)

    def choice(self, name: str, default: _T, allowed: Iterable[_T]) -> _T:
        value = self.text(name)
        if value is None:
            return default
        choices = list(allowed)
        for choice in choices:
            if value.lower() == choice:
                return choice
        raise _bad(name, value, f"give one of {', '.join(map(str, choices))}")

    def of_signal(self, signal: Signal, setting: str) -> tuple[str, str | None]:
        """Return the variable that decides a setting of a signal, and its value: the signal's own one first."""
        own = f"OTEL_EXPORTER_OTLP_{signal.upper()}_{setting}"
        if value := self.text(own):
            return own, value
        general = f"OTEL_EXPORTER_OTLP_{setting}"
        return general, self.text(general)


def _bad(name: str, value: object, remedy: str) -> ConfigurationError:
    return ConfigurationError(f"{name} is {value!r}; {remedy}, or unset it")


def _exporters(env: _Environ, signal: Signal, *, is_cloud: bool) -> tuple[str, ...]:
    """Name the exporters of a signal: those asked for, else OTLP where it has somewhere to go."""
    asked = env.text(f"OTEL_{signal.upper()}_EXPORTER")
    if asked is not None:
        return tuple(dict.fromkeys(name.strip() for name in asked.split(",") if name.strip()))
    return ("otlp",) if is_cloud or env.of_signal(signal, "ENDPOINT")[1] else ()


def _consumer_stem(exporter: str) -> str:
    return exporter if exporter == "otlp" else f"sdk.{exporter}"


def _otlp(env: _Environ, signal: Signal) -> OtlpSettings:
    protocol_name, _ = env.of_signal(signal, "PROTOCOL")
    protocol: Protocol = env.choice(protocol_name, "http/protobuf", get_args(Protocol))
    compression_name, _ = env.of_signal(signal, "COMPRESSION")
    timeout_name, _ = env.of_signal(signal, "TIMEOUT")
    endpoint, has_scheme = _endpoint(env, signal, protocol)
    insecure = (env.of_signal(signal, "INSECURE")[1] or "false").lower() == "true"
    is_plain = endpoint.startswith("http://") if has_scheme else insecure
    return OtlpSettings(
        signal=signal,
        endpoint=endpoint,
        protocol=protocol,
        headers=_headers(env, signal),
        compression=env.choice(compression_name, "none", get_args(Compression)),
        timeout_s=env.number(timeout_name, 10_000, 1, 3_600_000) / 1000,
        certificate=_file(env, signal, "CERTIFICATE"),
        client_key=_file(env, signal, "CLIENT_KEY"),
        client_certificate=_file(env, signal, "CLIENT_CERTIFICATE"),
        insecure=is_plain,
        proxy=None if is_plain else _proxy(env, endpoint),
    )


def _endpoint(env: _Environ, signal: Signal, protocol: Protocol) -> tuple[str, bool]:
    """Return the endpoint of a signal, and whether it was given with a scheme."""
    name, given = env.of_signal(signal, "ENDPOINT")
    if given is None:
        return (_DEFAULT_GRPC, True) if protocol == "grpc" else (f"{_DEFAULT_HTTP}/v1/{signal}", True)
    has_scheme = "://" in given
    _check_endpoint(name, given if has_scheme or protocol != "grpc" else f"http://{given}")
    if protocol == "grpc" or name != "OTEL_EXPORTER_OTLP_ENDPOINT":
        return given, has_scheme
    return f"{given.rstrip('/')}/v1/{signal}", has_scheme


def _check_endpoint(name: str, endpoint: str) -> None:
    remedy = "give a URL such as http://localhost:4318"
    try:
        url = urlsplit(endpoint)
        port = url.port
    except ValueError as error:
        message = f"the endpoint in {name} is not a URL ({error}); {remedy}, or unset it"
        raise ConfigurationError(message) from None
    if url.username is not None or url.password is not None:
        message = f"the endpoint in {name} holds a user name or password; put them into OTEL_EXPORTER_OTLP_HEADERS"
        raise ConfigurationError(message)
    if url.scheme not in ("http", "https") or not url.hostname or port == 0:
        raise _bad(name, endpoint, remedy)


def _proxy(env: _Environ, endpoint: str) -> str | None:
    """Return the proxy for a TLS endpoint, from the variables that curl and others read. Plain text goes direct."""
    proxy = env.text("https_proxy") or env.text("HTTPS_PROXY")
    excepted = env.text("no_proxy") or env.text("NO_PROXY") or ""
    if proxy is None or proxy_bypass_environment(urlsplit(_url(endpoint)).netloc, {"no": excepted}):
        return None
    url = urlsplit(_url(proxy))
    if url.scheme != "http" or not url.hostname:
        message = "HTTPS_PROXY is not a URL such as http://host:3128 (not shown: it may hold a password)"
        raise ConfigurationError(message)
    return url.geturl()


def _url(text: str) -> str:
    return text if "://" in text else f"http://{text}"


def _headers(env: _Environ, signal: Signal) -> Headers:
    name, text = env.of_signal(signal, "HEADERS")
    return Headers(_header(name, entry) for entry in (text or "").split(",") if entry.strip())


def _header(name: str, entry: str) -> tuple[str, str]:
    """Parse one ``key=value``; no error shows the value, which may be a token."""
    key, separator, value = entry.partition("=")
    key, value = unquote(key).strip().lower(), unquote(value).strip()
    if not separator or not _HEADER_NAME.fullmatch(key):
        message = f"{name} has an entry that is not key=value (not shown: it may be secret)"
        raise ConfigurationError(message)
    if not _HEADER_VALUE.fullmatch(value):
        message = f"the value of the header {key!r} in {name} has a line break or a character that headers may not have"
        raise ConfigurationError(message)
    return key, value


def _file(env: _Environ, signal: Signal, setting: str) -> str | None:
    name, path = env.of_signal(signal, setting)
    if path is not None and not Path(path).is_file():
        raise _bad(name, path, "give the path of a PEM file that exists")
    return path


def _resource_attributes(env: _Environ) -> Iterator[tuple[str, str]]:
    for entry in (env.text("OTEL_RESOURCE_ATTRIBUTES") or "").split(","):
        key, separator, value = entry.partition("=")
        if separator and key.strip():
            yield unquote(key).strip(), unquote(value).strip()
        elif entry.strip():
            raise _bad("OTEL_RESOURCE_ATTRIBUTES", entry, "write key=value,key=value")


def _sampling_ratio(env: _Environ) -> float:
    sampler = env.choice("OTEL_TRACES_SAMPLER", "parentbased_always_on", _SAMPLERS).removeprefix("parentbased_")
    if sampler == "traceidratio":
        return env.number("OTEL_TRACES_SAMPLER_ARG", 1, 0, 1)
    return 0.0 if sampler == "always_off" else 1.0


_DEFAULT_HTTP: Final = "http://localhost:4318"
_DEFAULT_GRPC: Final = "http://localhost:4317"
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+")
_HEADER_VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_SAMPLERS: Final = tuple(
    prefix + name for prefix in ("", "parentbased_") for name in ("always_on", "always_off", "traceidratio")
)
