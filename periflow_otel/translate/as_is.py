"""Records of one kind, as they are: for exporters that need no spans and no points."""

from collections.abc import Iterable

from periflow_otel.records import RankRun, Record


class RecordTranslator:
    """Passes records of one kind on as they are."""

    def __init__(self, kind: type[Record], run: RankRun, state: bytes) -> None:
        """Begin; there is nothing to remember."""
        del run, state
        self._kind = kind
        self._records: list[Record] = []

    def feed(self, records: Iterable[Record]) -> None:
        """Keep the records of the kind, and no others."""
        self._records += [record for record in records if isinstance(record, self._kind)]

    def step_began(self, step: int, started_unix_ns: int) -> None:
        """Do nothing: a record is complete as it is."""

    def settle(self, now_unix_ns: int | None = None) -> None:
        """Do nothing: records do not add up."""

    def take(self) -> list[Record]:
        """Return the records since the last call."""
        records, self._records = self._records, []
        return records

    def encode_state(self) -> bytes:
        """Return nothing."""
        return b""

    def dropped(self) -> dict[str, int]:
        """Return nothing."""
        return {}
