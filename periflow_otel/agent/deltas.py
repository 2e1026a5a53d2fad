"""Reports for receivers that add up: what has come since the last delivery, instead of since the beginning."""

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from periflow_otel.exporters import Item
from periflow_otel.records import RankRun
from periflow_otel.translate.telemetry import Histogram, Point

_AS_THEY_ARE: Final = ("gauge", "updowncounter")
"""What goes up and down is told as it is, as the specification wants it."""
_Stream = tuple[RankRun, str, tuple[tuple[str, str | int], ...]]


class Deltas:
    """Remembers what one receiver has. What it did not take is in the next difference."""

    def __init__(self) -> None:
        """Begin with a receiver that has nothing."""
        self._delivered: dict[_Stream, Point] = {}
        self._offered: dict[_Stream, Point] = {}

    def since_delivery(self, items: Iterable[Item]) -> Sequence[Item]:
        """Return points as they are to be sent; sums that have not grown are left out."""
        items = list(items)
        sums = ((run, point) for run, point in items if point.instrument.kind not in _AS_THEY_ARE)
        self._offered = {_stream(run, point): point for run, point in sums}
        made = ((run, self._difference(_stream(run, point), point)) for run, point in items)
        return [(run, point) for run, point in made if point is not None]

    def note_delivery(self) -> None:
        """Remember that the receiver has what was made last."""
        self._delivered |= self._offered

    def _difference(self, stream: _Stream, point: Point) -> Point | None:
        if point.instrument.kind in _AS_THEY_ARE:
            return point
        before = self._delivered.get(stream)
        if before is None:
            return msgspec.structs.replace(point, is_delta=True)
        value = _less(point.value, before.value)
        if not (value.count if isinstance(value, Histogram) else value):
            return None
        return msgspec.structs.replace(point, value=value, start_unix_ns=before.time_unix_ns, is_delta=True)


def _stream(run: RankRun, point: Point) -> _Stream:
    return run, point.instrument.name, point.attributes


def _less(value: object, before: object) -> int | float | Histogram:
    if isinstance(value, Histogram) and isinstance(before, Histogram):
        counts = tuple(now - then for now, then in zip(value.bucket_counts, before.bucket_counts, strict=True))
        return Histogram(value.count - before.count, value.sum - before.sum, None, None, value.bounds, counts)
    return value - before  # type: ignore[operator,no-any-return]  # of one instrument, so numbers both
