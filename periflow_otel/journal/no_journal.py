"""What a run records into where nothing is kept: telemetry is off, or this platform has no journal."""


class NoJournal:
    """Takes records as :class:`~periflow_otel.journal.writer.JournalWriter` does, and keeps none."""

    sequence = 0

    def append(self, payload: bytes) -> None:
        """Forget a record."""

    def open_with(self, payload: bytes) -> None:
        """Forget a record."""

    def begin_step(self, step: int, unix_ns: int) -> None:
        """Show nobody anything."""

    def note_pause(self, pause: int) -> int:
        """Show nobody anything."""
        del pause
        return 0

    def note_checkpoint(self, step: int) -> None:
        """Keep nothing."""

    def ask_for_delivery(self) -> None:
        """Ask nobody."""

    def look(self) -> None:
        """Miss nothing."""

    def finish(self, payload: bytes) -> int:
        """Forget the last record too."""
        del payload
        return 0
