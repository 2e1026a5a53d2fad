"""Records of one kind, as they are: for exporters that need no spans and no points."""

from collections.abc import Iterable
from typing import NamedTuple

from periflow_otel.records import RankRun, Record
from periflow_otel.translate.telemetry import Observed


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

    def observe(self, observed: Observed) -> None:
        """Do nothing: it is no record."""

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


class StepBegan(NamedTuple):
    """A step that is going on: it has no record yet."""

    step: int
    started_unix_ns: int


class EveryRecord(RecordTranslator):
    """Passes all records on as they are, and says which step is going on."""

    def __init__(self, run: RankRun, state: bytes) -> None:
        """Begin; there is nothing to remember."""
        super().__init__(object, run, state)  # type: ignore[arg-type]  # every record is one
        self._open: StepBegan | None = None

    def feed(self, records: Iterable[Record]) -> None:
        """Keep all."""
        self._records += records

    def step_began(self, step: int, started_unix_ns: int) -> None:
        """Note the step that is going on."""
        if step and self._open != (step, started_unix_ns):
            self._open = StepBegan(step, started_unix_ns)
            self._records.append(self._open)  # type: ignore[arg-type]  # whoever takes all takes this too

    def observe(self, observed: Observed) -> None:
        """Pass it on as if it were a record."""
        self._records.append(observed)  # type: ignore[arg-type]  # whoever takes all takes this too
