"""Which run is meant: it is called by its id, its name, one of its files or their folder, or a part of its id."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol, TypeVar

from periflow_otel.errors import ConfigurationError
from periflow_otel.recordings import recording_of
from periflow_otel.terminal import one_line

_SHOWN: Final = 5
"""Of the runs that a part of an id may mean."""


class Called(Protocol):
    """What a run is called."""

    @property
    def run_id(self) -> str:
        """Its id."""

    @property
    def name(self) -> str:
        """Which it may share with others; empty: none."""

    @property
    def logs(self) -> Sequence[str]:
        """Its files."""


AnyCalled = TypeVar("AnyCalled", bound=Called)


def first_called(runs: Sequence[AnyCalled], wanted: str) -> AnyCalled | None:
    """Return the first run that is called so; None if none is.

    Raises:
        ConfigurationError: It is a part of the ids of several.
    """
    for is_called in (_has_id, _has_name, _has_file):
        if found := next((run for run in runs if is_called(run, wanted)), None):
            return found
    found_by_id = {run.run_id: run for run in reversed(runs) if wanted in run.run_id}
    if len(found_by_id) > 1:
        ids = [*map(one_line, reversed(found_by_id))]
        more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
        message = f"{wanted} is in the ids of several runs; give more of one: {', '.join(ids[:_SHOWN])}{more}"
        raise ConfigurationError(message)
    return next(iter(found_by_id.values()), None)


def _has_id(run: Called, wanted: str) -> bool:
    return run.run_id == wanted


def _has_name(run: Called, wanted: str) -> bool:
    return run.name == wanted


def _has_file(run: Called, wanted: str) -> bool:
    place = Path(wanted)
    if not place.exists():
        return False
    recordings = [recording_of(Path(log)) for log in run.logs]
    return place.resolve() in [each.parent for each in recordings] or recording_of(place) in recordings
