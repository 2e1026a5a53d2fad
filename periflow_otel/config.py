"""Settings, resolved once from arguments and environment. Nothing else but ``ranks`` reads the environment.

``OTEL_*`` variables mean what the OpenTelemetry specification says: an empty value is an unset one, and one that makes
no sense is ignored with a warning. But an endpoint, a header, a certificate or an exporter that cannot be used is an
error, and so is every value of a ``PERIFLOW_*`` variable that makes no sense.
"""

import logging
import math
import os
import re
import signal
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeVar, get_args
from urllib.parse import SplitResult, unquote, urlsplit

from periflow_otel import names
from periflow_otel.errors import ConfigurationError
from periflow_otel.ranks import Environ

if TYPE_CHECKING:
    import ssl

AgentMode = Literal["process", "thread", "off"]
Protocol = Literal["grpc", "http/protobuf", "http/json"]
Compression = Literal["none", "gzip"]
Temporality = Literal["cumulative", "delta", "lowmemory"]
HistogramKind = Literal["explicit_bucket_histogram", "base2_exponential_bucket_histogram"]
Signal = Literal["traces", "metrics"]

PROMETHEUS_PORT: Final = 9464
"""The specification's default port of a Prometheus exporter."""


_log = logging.getLogger("periflow_otel")


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
    client_certificate: str | None = None
    client_key: str | None = None
    """Set where ``client_certificate`` is; perhaps the same file."""
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
            shows_console=env.choice(names.CONSOLE, "0", ("0", "1")) == "1",
            metric_interval_s=env.number("OTEL_METRIC_EXPORT_INTERVAL", 60_000, 1, 86_400_000) / 1000,
            linger_s=env.number(names.AGENT_LINGER, 60, 0, 86_400),
        )

    def consumers(self) -> tuple[str, ...]:
        """Name everything that must have a record before the journal may forget it."""
        return tuple(self._consumers())

    def destination(self) -> str:
        """Return a name for where the network exporters send: what is meant for one place must not go to another."""
        endpoints = [each.endpoint for each in (self.otlp_traces, self.otlp_metrics) if each is not None]
        others = [each for each in (*self.traces_exporters, *self.metrics_exporters) if each != "otlp"]
        if not endpoints and not others:
            return ""
        return blake2b("\n".join((*endpoints, *others)).encode(), digest_size=8).hexdigest()

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
    emergency_signals: tuple[signal.Signals, ...]
    consumers: tuple[str, ...]
    """Every one of these must have a record before the journal may forget it."""
    awaited: tuple[str, ...]
    """Every one of these must have a record before the process may end: those, and the console."""
    destination: str
    """See :meth:`ExportSettings.destination`."""

    @classmethod
    def from_environ(cls, environ: Environ) -> "RunSettings":
        """Resolve the settings, those of the agent too, so that a mistake shows at the call of ``init``.

        Raises:
            ConfigurationError: A variable has a value that cannot be used.
        """
        env = _Environ(environ)
        is_disabled = env.boolean("OTEL_SDK_DISABLED")
        attributes = _resource_attributes(env)
        export = None if is_disabled else ExportSettings.from_environ(environ)
        service_name = attributes.pop("service.name", None) or "periflow-training"
        return cls(
            is_disabled=is_disabled,
            is_cloud=find_mode(environ) == "cloud",
            state_dir=find_state_dir(environ),
            run_id=env.text(names.RUN_ID_VAR),
            agent=env.choice(names.AGENT, "process", get_args(AgentMode)),
            exit_timeout_s=env.number(names.EXIT_TIMEOUT, 5, 0, 3600),
            journal_max_bytes=env.integer(names.JOURNAL_MAX_BYTES, 256 << 20, 32 << 20, 1 << 50),
            service_name=env.text("OTEL_SERVICE_NAME") or service_name,
            resource_attributes=tuple(sorted(attributes.items())),
            sampling_ratio=_sampling_ratio(env),
            traceparent=env.text("TRACEPARENT"),
            emergency_signals=tuple(_signals(env)),
            consumers=export.consumers() if export else (),
            destination=export.destination() if export else "",
            awaited=(*export.consumers(), *(["console"] if export.shows_console else [])) if export else (),
        )


def find_mode(environ: Environ) -> Literal["local", "cloud"]:
    """Return ``cloud`` if ``PERIFLOW_ENABLED`` is exactly ``1``, as in ``periflow_sdk``."""
    return "cloud" if environ.get(names.PERIFLOW_ENABLED) == "1" else "local"


def find_state_dir(environ: Environ) -> Path:
    """Return the folder of the journals; it need not exist.

    Raises:
        ConfigurationError: ``PERIFLOW_STATE_DIR`` begins with the home of a user who does not exist.
    """
    env = _Environ(environ)
    if given := env.text(names.STATE_DIR):
        try:
            return Path(given).expanduser().absolute()
        except RuntimeError:
            raise _bad(names.STATE_DIR, given, "give a folder that does not begin with an unknown user") from None
    if (xdg := env.text("XDG_STATE_HOME")) and Path(xdg).is_absolute():  # its specification: ignore relative ones
        return Path(xdg) / "periflow"
    try:
        return Path.home() / ".local" / "state" / "periflow"
    except RuntimeError:  # a user without a home
        return fallback_state_dir()


def fallback_state_dir() -> Path:
    """Return a folder for journals where the one that should hold them cannot."""
    try:
        folder = tempfile.gettempdir()
    except OSError:  # none of them can be written
        folder = "/tmp"  # noqa: S108  # made private before it is used
    return Path(folder) / f"periflow-{os.getuid()}"  # a user in a container may have no name


def find_state_dirs(environ: Environ) -> tuple[Path, ...]:
    """Return all folders in which there may be journals of this user.

    Raises:
        ConfigurationError: As :func:`find_state_dir`.
    """
    return tuple(dict.fromkeys((find_state_dir(environ), fallback_state_dir())))


_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class _Environ:
    """Variables with a type, and an error that names the variable."""

    environ: Environ

    def text(self, name: str) -> str | None:
        value = self.environ.get(name, "").strip()
        if any("\ud800" <= char <= "\udfff" for char in value):  # how Python shows bytes that it cannot decode
            message = f"{name} is not UTF-8; mend or unset it"
            raise ConfigurationError(message)
        return value or None

    def boolean(self, name: str) -> bool:
        return self.choice(name, "false", ("true", "false")) == "true"

    def number(self, name: str, default: float, least: float, most: float) -> float:
        value = self.text(name)
        try:
            number = default if value is None else float(value)
        except ValueError:
            number = math.nan
        if least <= number <= most:
            return number
        return _reject(name, value, f"give a number from {least:.15g} to {most:.15g}", default)

    def integer(self, name: str, default: int, least: int, most: int) -> int:
        number = self.number(name, default, least, most)
        if number == int(number):
            return int(number)
        return _reject(name, self.text(name), "give a whole number", default)

    def choice(self, name: str, default: _T, allowed: Iterable[_T]) -> _T:
        value = self.text(name)
        if value is None:
            return default
        choices = list(allowed)
        for choice in choices:
            if value.lower() == choice:
                return choice
        return _reject(name, value, f"give one of {', '.join(map(str, choices))}", default)

    def of_signal(self, signal: Signal, setting: str) -> tuple[str, str | None]:
        """Return the variable that decides a setting of a signal, and its value: the signal's own one first."""
        own = f"OTEL_EXPORTER_OTLP_{signal.upper()}_{setting}"
        if value := self.text(own):
            return own, value
        general = f"OTEL_EXPORTER_OTLP_{setting}"
        return general, self.text(general)


def _reject(name: str, value: object, remedy: str, default: _T) -> _T:
    """Ignore a value of a standard variable with a warning, as the specification demands; raise for one of our own."""
    if not name.startswith("OTEL_"):
        raise _bad(name, value, remedy)
    _log.warning("%s is %r, which is ignored: %s", name, value, remedy)
    return default


def _bad(name: str, value: object, remedy: str) -> ConfigurationError:
    return ConfigurationError(f"{name} is {value!r}; {remedy}, or unset it")


def _exporters(env: _Environ, signal: Signal, *, is_cloud: bool) -> tuple[str, ...]:
    """Name the exporters of a signal: those asked for, else OTLP where it has somewhere to go."""
    variable = f"OTEL_{signal.upper()}_EXPORTER"
    asked = env.text(variable)
    if asked is None:
        return ("otlp",) if is_cloud or env.of_signal(signal, "ENDPOINT")[1] else ()
    exporters = tuple(dict.fromkeys(name.strip() for name in asked.split(",") if name.strip()))
    _check_installed(variable, signal, set(exporters) - _OWN_EXPORTERS[signal])
    return exporters


def _check_installed(variable: str, signal: Signal, others: set[str]) -> None:
    if not others:
        return
    from importlib.metadata import entry_points  # noqa: PLC0415  # takes milliseconds, and most never need it

    installed = entry_points(group=f"opentelemetry_{signal}_exporter").names
    if unknown := ", ".join(sorted(others - installed)):
        known = ", ".join(sorted(_OWN_EXPORTERS[signal] | installed))
        raise _bad(variable, unknown, f"choose from {known}, install the package of that exporter")


def _consumer_stem(exporter: str) -> str:
    return exporter if exporter == "otlp" else f"sdk.{exporter}"


def _otlp(env: _Environ, signal: Signal) -> OtlpSettings:
    protocol_name, _ = env.of_signal(signal, "PROTOCOL")
    protocol: Protocol = env.choice(protocol_name, "http/protobuf", get_args(Protocol))
    compression_name, _ = env.of_signal(signal, "COMPRESSION")
    timeout_name, _ = env.of_signal(signal, "TIMEOUT")
    endpoint = _endpoint(env, signal, protocol)
    is_plain = endpoint.startswith("http://")
    client_certificate, client_key = _client_files(env, signal)
    return OtlpSettings(
        signal=signal,
        endpoint=endpoint,
        protocol=protocol,
        headers=_headers(env, signal, protocol),
        compression=env.choice(compression_name, "none", get_args(Compression)),
        timeout_s=env.number(timeout_name, 10_000, 1, 3_600_000) / 1000,
        certificate=_certificate(env, signal),
        client_certificate=client_certificate,
        client_key=client_key,
        insecure=is_plain,
        proxy=None if is_plain else _proxy(env, endpoint),
    )


def _endpoint(env: _Environ, signal: Signal, protocol: Protocol) -> str:
    name, given = env.of_signal(signal, "ENDPOINT")
    insecure_name, _ = env.of_signal(signal, "INSECURE")
    is_insecure = env.boolean(insecure_name)
    if given is None:
        return _DEFAULT_GRPC if protocol == "grpc" else f"{_DEFAULT_HTTP}/v1/{signal}"
    if protocol == "grpc" and "://" not in given:
        given = f"{'http' if is_insecure else 'https'}://{given}"
    url = _endpoint_url(name, given)
    if protocol != "grpc" and name == "OTEL_EXPORTER_OTLP_ENDPOINT":
        url = url._replace(path=f"{url.path.rstrip('/')}/v1/{signal}")
    return url.geturl()


def _endpoint_url(name: str, given: str) -> SplitResult:
    url = _split(given)
    if url is None:
        value = "not a URL (not shown: it may hold a password)" if "@" in given else repr(given)
        message = f"{name} is {value}; give one such as http://localhost:4318, with a port from 1 to 65535, or unset it"
        raise ConfigurationError(message)
    if url.username is not None:
        message = f"{name} holds a user name or password; put them into OTEL_EXPORTER_OTLP_HEADERS"
        raise ConfigurationError(message)
    return url


def _split(text: str) -> SplitResult | None:
    """Take a URL apart; None if it is none that can be connected to."""
    try:
        url = urlsplit(text)
        is_whole = url.hostname and url.port != 0 and not url.netloc.endswith(":")
    except ValueError:
        return None
    return url if is_whole and url.scheme in ("http", "https") and _URL_CHARACTERS.fullmatch(text) else None


def _proxy(env: _Environ, endpoint: str) -> str | None:
    """Return the proxy for a TLS endpoint, from the variables that curl and others read. Plain text goes direct."""
    name = "https_proxy" if env.text("https_proxy") else "HTTPS_PROXY"
    proxy = env.text(name)
    if proxy is None:
        return None
    # It takes 20 ms to import, and most never need it.
    from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]  # noqa: PLC0415  # not in typeshed

    excepted = env.text("no_proxy") or env.text("NO_PROXY") or ""
    if proxy_bypass_environment(urlsplit(endpoint).netloc, {"no": excepted}):
        return None
    url = _split(proxy if "://" in proxy else f"http://{proxy}")
    if url is None or url.scheme != "http":
        message = f"{name} is not a URL such as http://host:3128 (not shown: it may hold a password); mend or unset it"
        raise ConfigurationError(message)
    return url.geturl()


def _headers(env: _Environ, signal: Signal, protocol: Protocol) -> Headers:
    name, text = env.of_signal(signal, "HEADERS")
    return Headers(_header(name, entry, protocol) for entry in (text or "").split(",") if entry.strip())


def _header(name: str, entry: str, protocol: Protocol) -> tuple[str, str]:
    """Parse one ``key=value``; no error shows the value, which may be a token."""
    key, separator, value = entry.partition("=")
    key, value = unquote(key).strip().lower(), unquote(value).strip()
    if not separator or not _HEADER_NAME.fullmatch(key):
        message = f"{name} has an entry that is not key=value (not shown: it may be secret); mend or unset it"
        raise ConfigurationError(message)
    if not _HEADER_VALUE.fullmatch(value):
        message = (
            f"the value of the header {key!r} in {name} has a line break or a character that headers may not have"
            " (not shown: it may be secret); mend or unset it"
        )
        raise ConfigurationError(message)
    if protocol == "grpc" and not (_GRPC_NAME.fullmatch(key) and _GRPC_VALUE.fullmatch(value)):
        message = (
            f"gRPC does not take the header {key!r} in {name}: names are letters, digits and _.- and do not end in"
            " -bin, values are ASCII; mend it, or set OTEL_EXPORTER_OTLP_PROTOCOL to http/protobuf"
        )
        raise ConfigurationError(message)
    return key, value


def _file(env: _Environ, signal: Signal, setting: str) -> tuple[str, str | None]:
    """Return the variable that names a file, and the file's absolute path."""
    name, path = env.of_signal(signal, setting)
    if path is not None and not Path(path).is_file():
        raise _bad(name, path, "give the path of a PEM file that exists")
    return name, None if path is None else str(Path(path).absolute())


def _certificate(env: _Environ, signal: Signal) -> str | None:
    name, path = _file(env, signal, "CERTIFICATE")
    if path is not None:
        _try_tls(name, path, "a PEM file of certificates", lambda context: context.load_verify_locations(path))
    return path


def _client_files(env: _Environ, signal: Signal) -> tuple[str | None, str | None]:
    """Return the files of the client's certificate and of its key, or neither."""
    name, certificate = _file(env, signal, "CLIENT_CERTIFICATE")
    key_name, key = _file(env, signal, "CLIENT_KEY")
    if certificate is None:
        if key is not None:
            message = f"{key_name} is set without the certificate of the key; set {name} too, or unset it"
            raise ConfigurationError(message)
        return None, None
    key = key or certificate
    kind = f"a PEM file of a certificate, and its key, not encrypted, in the same file or in that of {key_name}"
    _try_tls(name, certificate, kind, lambda context: context.load_cert_chain(certificate, key, password=""))
    return certificate, key


def _try_tls(name: str, path: str, kind: str, load: "Callable[[ssl.SSLContext], None]") -> None:
    """Load files as it is going to be done, so that a mistake shows now."""
    import ssl  # noqa: PLC0415  # takes milliseconds, and most never need it

    try:
        load(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or type(error).__name__
        raise _bad(name, path, f"that does not load ({reason}); give {kind}") from None


def _resource_attributes(env: _Environ) -> dict[str, str]:
    """Read all attributes, or none where one is malformed, as the specification wants it."""
    name = "OTEL_RESOURCE_ATTRIBUTES"
    attributes: dict[str, str] = {}
    for entry in (env.text(name) or "").split(","):
        key, separator, value = entry.partition("=")
        if separator and key.strip():
            attributes[unquote(key).strip()] = unquote(value).strip()
        elif entry.strip():
            return _reject(name, env.text(name), "write key=value,key=value", {})
    return attributes


def _signals(env: _Environ) -> Iterator[signal.Signals]:
    for entry in (env.text(names.EMERGENCY_SIGNALS) or "").split(","):
        name = entry.strip().upper().removeprefix("SIG")
        number = getattr(signal, f"SIG{name}", None)
        if isinstance(number, signal.Signals) and number not in _UNCATCHABLE:
            yield number
        elif entry.strip():
            raise _bad(names.EMERGENCY_SIGNALS, entry, "name signals such as SIGUSR1,SIGTERM")


def _sampling_ratio(env: _Environ) -> float:
    sampler = env.choice("OTEL_TRACES_SAMPLER", "parentbased_always_on", _SAMPLERS).removeprefix("parentbased_")
    ratio = env.number("OTEL_TRACES_SAMPLER_ARG", 1, 0, 1)
    if sampler == "traceidratio":
        return ratio
    return 0.0 if sampler == "always_off" else 1.0


_DEFAULT_HTTP: Final = "http://localhost:4318"
_DEFAULT_GRPC: Final = "http://localhost:4317"
_OWN_EXPORTERS: Final[Mapping[Signal, frozenset[str]]] = {
    "traces": frozenset({"none", "otlp"}),
    "metrics": frozenset({"none", "otlp", "prometheus"}),
}
_URL_CHARACTERS: Final = re.compile(r"[!-~]+")
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+")
_HEADER_VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_GRPC_NAME: Final = re.compile(r"[0-9a-z_.-]+(?<!-bin)")
_GRPC_VALUE: Final = re.compile(r"[ -~]*")
_UNCATCHABLE: Final = {getattr(signal, name, None) for name in ("SIGKILL", "SIGSTOP")}
_SAMPLERS: Final = tuple(
    prefix + name for prefix in ("", "parentbased_") for name in ("always_on", "always_off", "traceidratio")
)
