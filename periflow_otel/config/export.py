"""What the agent needs to know: which exporters there are, and how they reach their destinations."""

import logging
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import pbkdf2_hmac
from typing import Final, Literal, get_args

from periflow_otel import names
from periflow_otel.config.endpoints import SIGNALS, OtlpSettings, Signal, of_signal, resolve_otlp
from periflow_otel.config.environ import Environ, Variables, bad_value, find_mode

Temporality = Literal["cumulative", "delta", "lowmemory"]
HistogramKind = Literal["explicit_bucket_histogram", "base2_exponential_bucket_histogram"]
Events = Literal["span", "log", "both"]

JOURNAL_MAX_BYTES: Final = 256 << 20
STUCK_AFTER_S: Final = 20.0
LEFTOVERS_FACTOR: Final = 8
"""What runs have left behind may take as much as so many ranks: those of a usual node."""
PROMETHEUS_PORT: Final = 9464
"""The specification's default port of a Prometheus exporter."""


OWN_EXPORTERS: Final[dict[Signal, frozenset[str]]] = {
    "traces": frozenset({"none", "otlp"}),
    "metrics": frozenset({"none", "otlp", "prometheus"}),
    "logs": frozenset({"none", "otlp"}),
}
"""What ``OTEL_TRACES_EXPORTER`` and its like may name, besides exporters of other packages."""
LOG_LEVELS: Final = {
    "off": None,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
}
"""What ``PERIFLOW_LOGS`` may be."""


@dataclass(frozen=True, slots=True)
class ExportSettings:
    """What the agent needs to know."""

    is_cloud: bool
    exporters: Mapping[Signal, tuple[str, ...]]
    """Of each signal that is recorded: ``otlp``, or names of exporters that are registered with OpenTelemetry."""
    otlp: Mapping[Signal, OtlpSettings]
    """How a signal leaves over OTLP, also one that only earlier runs have recorded."""
    files: tuple[Signal, ...]
    """Signals that are written into files."""
    events: Events = "span"
    """As what events leave: in spans, as log records of their own, or both."""
    temporality: Temporality = "cumulative"
    histogram: HistogramKind = "explicit_bucket_histogram"
    serves_prometheus: bool = False
    prometheus_host: str = "127.0.0.1"
    prometheus_port: int = PROMETHEUS_PORT
    serves_page: bool = False
    allowed_hosts: tuple[str, ...] = ()
    """Names under which browsers may ask for what is served."""
    shows_console: bool = False
    metric_interval_s: float = 60.0
    """At least this often the built-in instruments are exported again, so that no series goes stale."""
    machine_interval_s: float = 10.0
    """How often the machine is looked at; 0: never."""
    linger_s: float = 60.0
    stuck_after_s: float = STUCK_AFTER_S
    """Nothing is said of ranks that do not go on for less; 0: none is ever asked why."""
    leftovers_max_bytes: int = LEFTOVERS_FACTOR * JOURNAL_MAX_BYTES
    """Bound of what all runs together have left behind."""

    @classmethod
    def from_environ(cls, environ: Environ) -> "ExportSettings":
        """Resolve the settings.

        Raises:
            ConfigurationError: A variable has a value that cannot be used. Header values are never shown.
        """
        variables = Variables(environ)
        is_cloud = find_mode(environ) == "cloud"
        events = variables.choice(names.EVENTS_VAR, "span", get_args(Events))
        recorded = [each for each in SIGNALS if each != "logs" or events != "span" or log_level(variables) is not None]
        asked = {each: _exporters(variables, each, is_cloud=is_cloud, is_recorded=each in recorded) for each in SIGNALS}
        metrics = asked["metrics"]
        serves_prometheus = "prometheus" in metrics or (not is_cloud and "none" not in metrics)
        return cls(
            is_cloud=is_cloud,
            exporters={each: tuple(_pushed(asked[each])) for each in recorded},
            otlp={each: resolve_otlp(variables, each) for each in SIGNALS if "otlp" in asked[each]},
            files=() if is_cloud else tuple(each for each in recorded if "none" not in asked[each]),
            events=events,
            temporality=variables.choice(
                "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "cumulative", get_args(Temporality)
            ),
            histogram=variables.choice(
                "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION",
                "explicit_bucket_histogram",
                get_args(HistogramKind),
            ),
            serves_prometheus=serves_prometheus,
            prometheus_host=variables.text("OTEL_EXPORTER_PROMETHEUS_HOST") or "127.0.0.1",
            prometheus_port=variables.integer("OTEL_EXPORTER_PROMETHEUS_PORT", PROMETHEUS_PORT, 0, 65535),
            serves_page=variables.choice(names.PAGE, str(int(serves_prometheus)), ("0", "1")) == "1",
            allowed_hosts=tuple((variables.text(names.ALLOWED_HOSTS) or "").replace(",", " ").split()),
            shows_console=variables.choice(names.CONSOLE, "0", ("0", "1")) == "1",
            metric_interval_s=variables.number("OTEL_METRIC_EXPORT_INTERVAL", 60_000, 1, 86_400_000) / 1000,
            machine_interval_s=variables.number(names.MACHINE_INTERVAL, 10, 0, 3600),
            linger_s=variables.number(names.AGENT_LINGER, 60, 0, 86_400),
            stuck_after_s=stuck_after_s(variables),
            leftovers_max_bytes=LEFTOVERS_FACTOR * journal_max_bytes(variables),
        )

    def consumers(self) -> tuple[str, ...]:
        """Name everything that must have a record before the journal may forget it."""
        return tuple(self._consumers())

    def destination(self) -> str:
        """Return a name for where the network exporters send, and as whom; empty if there are none.

        What is meant for one place must not go to another, nor with the credentials of somebody else. The name is
        another one each time, and tells nothing of them: a keyed hash that takes about a millisecond to try.
        """
        identity = self._identity()
        salt = secrets.token_hex(8)
        return f"{salt}-{_hash(identity, salt)}" if identity else ""

    def sends_to(self, destination: str) -> bool:
        """Tell whether these settings send to a destination, by its name; everything sends to none."""
        salt, _, digest = destination.partition("-")
        return not destination or (bool(identity := self._identity()) and _hash(identity, salt) == digest)

    def _identity(self) -> tuple[object, ...]:
        receivers = (each.identity() for each in self.otlp.values())
        return (*receivers, *self.others())

    def others(self) -> Iterator[str]:
        """Name the exporters of other packages."""
        return (name for exporters in self.exporters.values() for name in exporters if name != "otlp")

    def _consumers(self) -> Iterator[str]:
        if not self.is_cloud:
            yield "metric_log"
        yield from (f"otlp_file.{each}" for each in self.files)
        for each, exporters in self.exporters.items():
            yield from (_consumer(name, each) for name in exporters)


def stuck_after_s(variables: Variables) -> float:
    """Return after how many seconds a rank that does not go on is worth a word; 0: never."""
    return variables.number(names.STUCK_AFTER, STUCK_AFTER_S, 0, 86_400)


def journal_max_bytes(variables: Variables) -> int:
    """Return the bound of all journals of a rank together."""
    return variables.integer(names.JOURNAL_MAX_BYTES, JOURNAL_MAX_BYTES, 32 << 20, 1 << 50)


def _hash(identity: tuple[object, ...], salt: str) -> str:
    return pbkdf2_hmac("sha256", repr(identity).encode("utf-8", "surrogatepass"), salt.encode(), 1000, 16).hex()


def _exporters(variables: Variables, signal: Signal, *, is_cloud: bool, is_recorded: bool) -> tuple[str, ...]:
    """Name the exporters of a signal: those asked for, else OTLP where it has somewhere to go."""
    variable = f"OTEL_{signal.upper()}_EXPORTER"
    asked = variables.text(variable)
    if asked is None:
        return ("otlp",) if is_cloud or of_signal(variables, signal, "ENDPOINT")[1] else ()
    given = (name.strip() for name in asked.split(",") if name.strip())
    exporters = tuple(dict.fromkeys(name.lower() if name.lower() in OWN_EXPORTERS[signal] else name for name in given))
    if is_recorded:  # else the variable may be meant for somebody else's
        _check_installed(variable, signal, set(exporters) - OWN_EXPORTERS[signal])
    return exporters


def _pushed(exporters: tuple[str, ...]) -> Iterator[str]:
    """Name the exporters that are given what there is, without the one that is asked for it."""
    return (name for name in exporters if name not in ("none", "prometheus"))


def log_level(variables: Variables) -> int | None:
    """Return the level from which on what the script logs is recorded; None: nothing of it."""
    return LOG_LEVELS[variables.choice(names.LOGS_VAR, "off", LOG_LEVELS)]


def _check_installed(variable: str, signal: Signal, others: set[str]) -> None:
    if not others:
        return
    from importlib.metadata import entry_points  # noqa: PLC0415  # takes milliseconds, and most never need it

    # The SDK's interface of log exporters is private as yet.
    installed = set() if signal == "logs" else entry_points(group=f"opentelemetry_{signal}_exporter").names
    if unknown := ", ".join(sorted(others - installed)):
        known = ", ".join(sorted(OWN_EXPORTERS[signal] | installed))
        raise bad_value(variable, unknown, f"choose from {known}, install the package of that exporter")


def _consumer(exporter: str, signal: Signal) -> str:
    return f"{exporter if exporter in OWN_EXPORTERS[signal] else f'sdk.{exporter}'}.{signal}"
