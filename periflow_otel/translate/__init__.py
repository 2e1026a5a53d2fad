"""Records to finished spans, points and log records. Pure: no clock, no thread, no I/O."""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from periflow_otel.records import RankRun, Record
from periflow_otel.translate.telemetry import Observed


class Translator(Protocol):
    """Turns the records of one rank, in order, into what an exporter takes."""

    def feed(self, records: Iterable[Record]) -> None:
        """Translate some records. One that it raises for is gone from an iterator, whose rest can be fed again."""

    def step_began(self, step: int, started_unix_ns: int) -> None:
        """Note the step that is going on; the records of all steps before have been fed."""

    def observe(self, observed: Observed) -> None:
        """Take what the agent has seen of the rank, as of the records fed; it is shown when the round ends."""

    def settle(self, now_unix_ns: int | None = None) -> None:
        """End a round: show what has added up. ``now_unix_ns`` asks for it even if nothing is new."""

    def take(self) -> Sequence[object]:
        """Return what is complete, once."""

    def encode_state(self) -> bytes:
        """Return what a translator needs to go on from here."""

    def dropped(self) -> dict[str, int]:
        """Return how many items were dropped on purpose so far, by reason."""


MakeTranslator = Callable[[RankRun, bytes], Translator]
"""Makes the translator of a rank from an encoded state; an empty one begins."""
