"""What the training process needs to know, and of the agent what tells two of them apart."""

import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Final, Literal, get_args
from urllib.parse import unquote

import msgspec

from periflow_otel import names
from periflow_otel.config.environ import Environ, Variables, bad_value, find_mode, reject
from periflow_otel.config.export import ExportSettings, journal_max_bytes, log_level, stuck_after_s
from periflow_otel.config.paths import find_state_dir
from periflow_otel.ids import SAMPLE_NOTHING, is_unsampled, valid_tracestate
from periflow_otel.records import Telling

AgentMode = Literal["process", "thread", "off"]


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
            journal_max_bytes=journal_max_bytes(variables),
            can_be_asked=stuck_after_s(variables) > 0,
            service_name=variables.text("OTEL_SERVICE_NAME") or service_name,
            resource_attributes=tuple(sorted(attributes.items())),
            sampling_ratio=_sampling_ratio(variables),
            traceparent=variables.text("TRACEPARENT"),
            tracestate=valid_tracestate(variables.text("TRACESTATE")),
            emergency_signals=tuple(_signals(variables)),
            log_level=log_level(variables),
            telling=variables.choice(names.EXCEPTIONS_VAR, "type", get_args(Telling)),
            consumers=export.consumers() if export else (),
            destination=export.destination() if export else "",
            agent_settings=_name_settings(export, environ) if export else "",
            awaited=(*export.consumers(), *(["console"] if export.shows_console else [])) if export else (),
        )


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
