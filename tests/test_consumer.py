"""A consumer reports on the agent while a run goes on, new records or not."""

from collections.abc import Sequence
from functools import partial

from programs import wait_until
from recorder import make_run

from periflow_otel.agent.consumer import Consumer, Item, RecordTranslator
from periflow_otel.exporters import Outcome
from periflow_otel.records import StepEnded


class Kept:
    """An exporter that keeps what it is given."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.items: list[Item] = []

    def export(self, items: Sequence[Item]) -> Outcome:
        """Take everything."""
        self.items += items
        return Outcome(len(items))

    def close(self) -> None:
        """Do nothing."""


def test_reports_come_every_few_intervals():
    """Long before the state of the instruments is due again."""
    kept = Kept()
    report = (make_run(), "report")
    translator = partial(RecordTranslator, StepEnded)
    consumer = Consumer("kept", kept, translator, interval_s=0.01, refresh_s=3600, reports=lambda: [report])
    consumer.start()
    wait_until(lambda: len(kept.items) >= 3, 10, "three reports")
    consumer.stop(10)
    assert set(kept.items) == {report}
