"""What is shown of the machine has the names, kinds and units that OpenTelemetry publishes."""

import importlib
from importlib.metadata import version

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.semconv import schemas

from periflow_otel import conventions, names

KINDS = {
    "Counter": "counter",
    "ObservableCounter": "counter",
    "UpDownCounter": "updowncounter",
    "ObservableUpDownCounter": "updowncounter",
    "ObservableGauge": "gauge",
}
"""What the SDK's classes are called, with nothing before it."""


def published(name: str) -> names.Instrument:
    """Return an instrument as OpenTelemetry's package makes it."""
    group = name.split(".", maxsplit=1)[0]
    module = importlib.import_module(f"opentelemetry.semconv._incubating.metrics.{group}_metrics")
    make = getattr(module, f"create_{name.replace('.', '_')}")
    meter = MeterProvider().get_meter("test")
    made = make(meter, None) if make.__code__.co_argcount > 1 else make(meter)
    return names.Instrument(made.name, KINDS[type(made).__name__.lstrip("_")], made.unit, made.description)


def published_attributes() -> set[str]:
    """Return every attribute that OpenTelemetry's package knows and does not call deprecated."""
    found = set()
    for each in ("cpu", "disk", "error", "hw", "network", "process", "system"):
        module = importlib.import_module(f"opentelemetry.semconv._incubating.attributes.{each}_attributes")
        found |= {value for value in vars(module).values() if isinstance(value, str) and value.startswith(f"{each}.")}
    return found


@pytest.mark.parametrize("instrument", conventions.INSTRUMENTS, ids=lambda each: each.name)
def test_an_instrument_is_the_published_one(instrument: names.Instrument):
    """But for its meaning, which is said in our own words."""
    made = published(instrument.name)
    assert (made.name, made.kind, made.unit) == instrument[:3]


@pytest.mark.parametrize("key", conventions.ATTRIBUTES)
def test_an_attribute_is_a_published_one(key: str):
    """Those of our own are in the registry."""
    assert key in published_attributes()


def test_the_schema_is_one_that_is_published():
    """As far as the package knows, which the SDK brings."""
    known = {each.value for each in schemas.Schemas}
    assert names.SCHEMA_URL in known, version("opentelemetry-semantic-conventions")
