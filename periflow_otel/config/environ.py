"""Environment variables with a type, and errors that name the variable and the remedy.

A variable of OpenTelemetry means what its specification says: an empty value is an unset one, and one that makes no
sense is ignored with a warning. A value of any other variable that makes no sense is an error.
"""

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

from periflow_otel import names
from periflow_otel.errors import ConfigurationError, shown

Environ = Mapping[str, str]

_T = TypeVar("_T")
_log = logging.getLogger("periflow_otel")


@dataclass(frozen=True, slots=True)
class Variables:
    """Reads variables. Every method raises ``ConfigurationError`` for a value that cannot be used."""

    environ: Environ

    def text(self, name: str) -> str | None:
        """Return a value without spaces around it; None for an empty one."""
        value = self.environ.get(name, "").strip()
        if any("\ud800" <= char <= "\udfff" for char in value):  # how Python shows bytes that it cannot decode
            message = f"{name} is not UTF-8; fix or unset it"
            raise ConfigurationError(message, name)
        return value or None

    def boolean(self, name: str) -> bool:
        """Return whether a value is ``true``."""
        return self.choice(name, "false", ("true", "false")) == "true"

    def number(self, name: str, default: float, least: float, most: float) -> float:
        """Return a number within bounds, both of them included."""
        value = self.text(name)
        try:
            number = default if value is None else float(value)
        except ValueError:
            number = math.nan
        if least <= number <= most:
            return number
        return reject(name, value, f"give a number from {least:.15g} to {most:.15g}", default)

    def integer(self, name: str, default: int, least: int, most: int) -> int:
        """Return an integer within bounds, both of them included; ``5.0`` is one."""
        number = self.number(name, default, least, most)
        if number == int(number):
            return int(number)
        return reject(name, self.text(name), "give a whole number", default)

    def count(self, name: str, least: int = 0) -> int | None:
        """Return what a launcher counts, in digits only; None if it is not set."""
        value = self.text(name)
        if value is None:
            return None
        number = parse_count(value)
        if number is None or number < least:
            raise bad_value(name, value, f"give an integer of at least {least}")
        return number

    def choice(self, name: str, default: _T, allowed: Iterable[_T]) -> _T:
        """Return one of some values, which are lower case; upper case is taken too."""
        value = self.text(name)
        if value is None:
            return default
        choices = list(allowed)
        for choice in choices:
            if value.lower() == choice:
                return choice
        return reject(name, value, f"give one of {', '.join(map(str, choices))}", default)


def find_mode(environ: Environ) -> Literal["local", "cloud"]:
    """Return ``cloud`` if ``PERIFLOW_ENABLED`` is exactly ``1``, as in ``periflow_sdk``."""
    return "cloud" if environ.get(names.PERIFLOW_ENABLED) == "1" else "local"


def parse_count(text: str) -> int | None:
    """Return an integer that is written in digits only, of 18 at most; None for anything else."""
    text = text.strip()
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else None


def reject(name: str, value: object, remedy: str, default: _T) -> _T:
    """Ignore a value of a standard variable with a warning, as the specification demands; raise for any other.

    Raises:
        ConfigurationError: The variable is none of OpenTelemetry.
    """
    if not name.startswith("OTEL_"):
        raise bad_value(name, value, remedy)
    _log.warning("%s is %s, which is ignored: %s", name, shown(value), remedy)
    return default


def bad_value(name: str, value: object, remedy: str) -> ConfigurationError:
    """Return an error that names a variable, its value and the remedy."""
    return ConfigurationError(f"{name} is {shown(value)}; {remedy}, or unset it", name)
