"""What the caller of the API wrote, checked: the only thing that may raise in local mode."""

import operator
from collections.abc import Mapping
from contextlib import suppress
from math import inf, nan
from typing import Final, SupportsFloat

from periflow_otel.errors import ConfigurationError, PeriFlowError, shown
from periflow_otel.records import Work
from periflow_otel.values import MAX_KEY_CHARS

MAX_KINDS_OF_WORK: Final = 16
MAX_RUN_ID_CHARS: Final = 256
_MAX_STEP: Final = 1 << 62


def initial_step(given: object, processed: int) -> int:
    """Return how many steps are done already; ``processed`` where the caller does not say.

    Raises:
        ConfigurationError: ``given`` is no such number.
    """
    if given is None:
        return processed
    steps = _integer(given)
    if steps is None or steps < 0:
        message = f"initial_step is {shown(given)}; give the number of steps already done, 0 or more"
        raise ConfigurationError(message)
    return steps


def target_step(given: object, initial_step: int, *, is_cloud: bool) -> int | None:
    """Return the number of the last step; in local mode a value that makes no sense is ignored, as ever.

    Raises:
        PeriFlowError: In cloud mode, ``given`` is not an integer or not beyond the steps already done.
    """
    steps = _integer(given)
    if is_cloud and given is not None:
        if steps is None:
            message = f"total_train_steps is {shown(given)}; give the number of the last step, an integer"
            raise PeriFlowError(message)
        if steps <= initial_step:
            message = (
                f"total_train_steps is {steps}, but {initial_step} steps are done already, as PROCESSED_ITERS or "
                "initial_step says; give the number of the last step, counted from the beginning of the run"
            )
            raise PeriFlowError(message)
    return steps if steps is not None and steps > 0 else None


def step_number(given: object, *, least: int) -> int:
    """Return the number of a step that the caller has told.

    Raises:
        TypeError: It is not an integer.
        ValueError: It is below ``least``, or beyond all sense.
    """
    if type(given) is int and least <= given <= _MAX_STEP:
        return given  # at once, as it is asked in each step
    try:
        number = operator.index(given)  # type: ignore[arg-type]  # what has none raises
    except TypeError:
        number = None
    if number is None or isinstance(given, bool):
        message = f"the step is {shown(given)}, which is not an integer; give its number"
        raise TypeError(message)
    if not least <= number <= _MAX_STEP:
        message = f"the step is {number}; give its number, {least} or more: the first step is 1"
        raise ValueError(message)
    return number


def run_id(given: object) -> str:
    """Return the identity of a run.

    Raises:
        ConfigurationError: It is not text, too long, or has characters that cannot be shown.
    """
    return _printable("the run id", given)


def run_name(given: object) -> str | None:
    """Return the name of a run, if it has one.

    Raises:
        ConfigurationError: It is not text, too long, or has characters that cannot be shown.
    """
    return None if given is None else _printable("the name of the run", given)


def work(given: object) -> Work | None:
    """Return what a step does, if that is said.

    Raises:
        ConfigurationError: It is no mapping of positive numbers by name, or too large.
    """
    if given is None:
        return None
    if not isinstance(given, Mapping) or len(given) > MAX_KINDS_OF_WORK:
        message = f"work is {shown(given)}; give a dict of at most {MAX_KINDS_OF_WORK} numbers, as {{'tokens': 8192}}"
        raise ConfigurationError(message)
    kinds = {_printable("a kind of work", kind): _amount(f"work[{kind!r}]", amount) for kind, amount in given.items()}
    peak = kinds.pop("peak_flops", None)
    return Work(tuple(kinds.items()), peak)


def _amount(what: str, given: object) -> float:
    """Return a positive number; NumPy's too."""
    number = nan
    if isinstance(given, SupportsFloat) and not isinstance(given, bool):
        with suppress(Exception):  # what is too large, or holds several, cannot be one
            number = float(given)
    if not 0 < number < inf:
        message = f"{what} is {shown(given)}; give a number above 0"
        raise ConfigurationError(message)
    return number


def phase_name(given: object) -> str:
    """Return the name of a phase as text that can be encoded.

    Raises:
        TypeError: It is not text.
        ValueError: It is too long.
    """
    if not isinstance(given, str):
        message = f"the name of a span is {shown(given)}; give text"
        raise TypeError(message)
    if len(given) > MAX_KEY_CHARS:
        message = f"the name of a span has {len(given)} characters; give at most {MAX_KEY_CHARS}"
        raise ValueError(message)
    return given.encode("utf-8", "replace").decode()


def _printable(what: str, given: object) -> str:
    if isinstance(given, str) and len(given) <= MAX_RUN_ID_CHARS and given.isprintable():
        return given
    message = f"{what} is {shown(given)}; give text of at most {MAX_RUN_ID_CHARS} printable characters"
    raise ConfigurationError(message)


def _integer(given: object) -> int | None:
    """Return an integer, NumPy's too; None for anything else. True is a mistake, not a number of steps."""
    try:
        number = operator.index(given)  # type: ignore[arg-type]  # what has none raises
    except TypeError:
        return None
    return None if isinstance(given, bool) or abs(number) > _MAX_STEP else number
