"""Settings, resolved once from the environment. Nothing else but ``ranks`` and ``endpoints`` reads it.

``OTEL_*`` variables mean what the OpenTelemetry specification says: an empty value is an unset one, and one that makes
no sense is ignored with a warning. But an endpoint, a header, a certificate or an exporter that cannot be used is an
error, and so is every value of a ``PERIFLOW_*`` variable that makes no sense.
"""

import logging
import re
import secrets
import signal
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b, pbkdf2_hmac
from pathlib import Path
from typing import Final, Literal, get_args
from urllib.parse import unquote

import msgspec

from periflow_otel import names
from periflow_otel.endpoints import SIGNALS, OtlpSettings, Signal, of_signal, resolve_otlp
from periflow_otel.environ import Environ, Variables, bad_value, reject
from periflow_otel.ids import SAMPLE_NOTHING, is_unsampled, valid_tracestate
from periflow_otel.journal.folders import private_inside
from periflow_otel.records import Telling

AgentMode = Literal["process", "thread", "off"]
Temporality = Literal["cumulative", "delta", "lowmemory"]
HistogramKind = Literal["explicit_bucket_histogram", "base2_exponential_bucket_histogram"]
Events = Literal["span", "log", "both"]

_PATHS: Final = re.compile(
    r"HOME|PERIFLOW_(STATE_DIR|OTLP_HEADERS_FILE)|TMPDIR|OTEL_EXPORTER_OTLP_.*(CERTIFICATE|CLIENT_KEY)|SSL_CERT_(FILE|DIR)|(REQUESTS|CURL)_CA_BUNDLE"
    r"|GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"
)
"""Variables that name a file or a folder."""

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
    allowed_hosts: tuple[str, ...] = ()
    serves_page: bool = False
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
        recorded = [each for each in SIGNALS if each != "logs" or events != "span" or _log_level(variables) is not None]
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
            stuck_after_s=_stuck_after_s(variables),
            leftovers_max_bytes=LEFTOVERS_FACTOR * _journal_max_bytes(variables),
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


def _stuck_after_s(variables: Variables) -> float:
    return variables.number(names.STUCK_AFTER, STUCK_AFTER_S, 0, 86_400)


def _journal_max_bytes(variables: Variables) -> int:
    return variables.integer(names.JOURNAL_MAX_BYTES, JOURNAL_MAX_BYTES, 32 << 20, 1 << 50)


def _hash(identity: tuple[object, ...], salt: str) -> str:
    return pbkdf2_hmac("sha256", repr(identity).encode("utf-8", "surrogatepass"), salt.encode(), 1000, 16).hex()


@dataclass(frozen=True, slots=True)
class RunSettings:
    """What the training process needs to know."""

    is_disabled: bool
    is_cloud: bool
    state_dir: Path
    run_id: str | None
    attempt: int | None
    """Number of the attempt, where the user gives one."""
    agent: AgentMode
    exit_timeout_s: float
    journal_max_bytes: int
    can_be_asked: bool
    """The agent may ask this process for its stack."""
    service_name: str
    resource_attributes: tuple[tuple[str, str], ...]
    sampling_ratio: float
    """0 to 1, or ``SAMPLE_NOTHING``."""
    traceparent: str | None
    tracestate: str
    emergency_signals: tuple[signal.Signals, ...]
    log_level: int | None
    """From this level on, what the script logs is recorded; None: nothing of it."""
    telling: Telling
    """What is recorded of the exception that ends the run."""
    consumers: tuple[str, ...]
    """Every one of these must have a record before the journal may forget it."""
    awaited: tuple[str, ...]
    """Every one of these must have a record before the process may end: those, and the console."""
    destination: str = field(compare=False)
    """See :meth:`ExportSettings.destination`."""
    agent_settings: str
    """A name for all that an agent is to do: one that does something else gives way to a new one."""

    @classmethod
    def from_environ(cls, environ: Environ) -> "RunSettings":
        """Resolve the settings, those of the agent too, so that a mistake shows at the call of ``init``.

        Raises:
            ConfigurationError: A variable has a value that cannot be used.
        """
        variables = Variables(environ)
        is_disabled = variables.boolean("OTEL_SDK_DISABLED")
        attributes = _resource_attributes(variables)
        export = None if is_disabled else ExportSettings.from_environ(environ)
        service_name = attributes.pop("service.name", None) or "periflow-training"
        return cls(
            is_disabled=is_disabled,
            is_cloud=find_mode(environ) == "cloud",
            state_dir=find_state_dir(environ),
            run_id=variables.text(names.RUN_ID_VAR),
            attempt=variables.count(names.ATTEMPT_VAR, 1),
            agent=variables.choice(names.AGENT, "process", get_args(AgentMode)),
            exit_timeout_s=variables.number(names.EXIT_TIMEOUT, 5, 0, 3600),
            journal_max_bytes=_journal_max_bytes(variables),
            can_be_asked=_stuck_after_s(variables) > 0,
            service_name=variables.text("OTEL_SERVICE_NAME") or service_name,
            resource_attributes=tuple(sorted(attributes.items())),
            sampling_ratio=_sampling_ratio(variables),
            traceparent=variables.text("TRACEPARENT"),
            tracestate=valid_tracestate(variables.text("TRACESTATE")),
            emergency_signals=tuple(_signals(variables)),
            log_level=_log_level(variables),
            telling=variables.choice(names.EXCEPTIONS_VAR, "type", get_args(Telling)),
            consumers=export.consumers() if export else (),
            destination=export.destination() if export else "",
            agent_settings=_name_settings(export, environ) if export else "",
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
    variables = Variables(environ)
    if given := variables.text(names.STATE_DIR):
        try:
            return Path(given).expanduser().absolute()
        except RuntimeError:
            raise bad_value(names.STATE_DIR, given, "give a folder that does not begin with an unknown user") from None
    if (xdg := variables.text("XDG_STATE_HOME")) and Path(xdg).is_absolute():  # its specification: ignore relative ones
        return Path(xdg) / "periflow"
    try:
        return Path.home().absolute() / ".local" / "state" / "periflow"
    except RuntimeError:  # a user without a home
        return fallback_state_dir()


def fallback_state_dir() -> Path:
    """Return a folder for journals where the one that should hold them cannot."""
    try:
        folder = tempfile.gettempdir()
    except OSError:  # none of them can be written
        folder = "/tmp"  # noqa: S108  # made private before it is used
    return private_inside(Path(folder))


def find_state_dirs(environ: Environ) -> tuple[Path, ...]:
    """Return all folders in which there may be journals of this user.

    Raises:
        ConfigurationError: As :func:`find_state_dir`.
    """
    state_dir = find_state_dir(environ)
    return tuple(dict.fromkeys((state_dir, private_inside(state_dir), fallback_state_dir())))


def with_absolute_paths(environ: Environ) -> dict[str, str]:
    """Return variables in which paths do not depend on the working folder: an agent has another one."""
    return {name: _absolute(value) if _PATHS.fullmatch(name) else value for name, value in environ.items()}


def _absolute(path: str) -> str:
    if not path.strip() or path.strip().startswith("~"):
        return path
    try:
        return str(Path(path.strip()).absolute())
    except OSError:  # the working folder is gone
        return path


def _name_settings(export: ExportSettings, environ: Environ) -> str:
    """Return a name for settings, with the variables of exporters of other packages, and the state of certificates."""
    has_others = any(export.others())
    others = [(name, environ[name]) for name in sorted(environ) if has_others and name.startswith("OTEL_EXPORTER_")]
    files = [
        file
        for otlp in export.otlp.values()
        for file in (otlp.certificate, otlp.client_certificate, otlp.client_key)
        if file
    ]
    state = repr((others, [_changed_ns(file) for file in files]))
    return blake2b(msgspec.json.encode(export) + state.encode("utf-8", "replace"), digest_size=16).hexdigest()


def _changed_ns(path: str) -> int:
    try:
        return Path(path).stat().st_mtime_ns
    except OSError:
        return 0


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


def _log_level(variables: Variables) -> int | None:
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


def _resource_attributes(variables: Variables) -> dict[str, str]:
    """Read all attributes, or none where one is malformed, as the specification wants it."""
    name = "OTEL_RESOURCE_ATTRIBUTES"
    attributes: dict[str, str] = {}
    for entry in (variables.text(name) or "").split(","):
        key, separator, value = entry.partition("=")
        if separator and key.strip():
            attributes[unquote(key).strip()] = unquote(value).strip()
        elif entry.strip():
            return reject(name, variables.text(name), "write key=value,key=value", {})
    return attributes


def _signals(variables: Variables) -> Iterator[signal.Signals]:
    for entry in (variables.text(names.EMERGENCY_SIGNALS) or "").split(","):
        name = entry.strip().upper().removeprefix("SIG")
        number = getattr(signal, f"SIG{name}", None)
        if isinstance(number, signal.Signals) and number not in _UNCATCHABLE:
            yield number
        elif entry.strip():
            raise bad_value(names.EMERGENCY_SIGNALS, entry, "name signals such as SIGUSR1,SIGTERM")


def _sampling_ratio(variables: Variables) -> float:
    """Return the share of steps to keep. A launcher that records nothing of its own wants nothing of ours either."""
    sampler = variables.choice("OTEL_TRACES_SAMPLER", "parentbased_always_on", _SAMPLERS)
    ratio = variables.number("OTEL_TRACES_SAMPLER_ARG", 1, 0, 1)
    if sampler.startswith("parentbased_") and is_unsampled(variables.text("TRACEPARENT")):
        return SAMPLE_NOTHING
    match sampler.removeprefix("parentbased_"):
        case "traceidratio":
            return ratio
        case "always_off":
            return SAMPLE_NOTHING
        case _:
            return 1.0


_UNCATCHABLE: Final = {getattr(signal, name, None) for name in ("SIGKILL", "SIGSTOP")}
_SAMPLERS: Final = tuple(
    prefix + name for prefix in ("", "parentbased_") for name in ("always_on", "always_off", "traceidratio")
)
