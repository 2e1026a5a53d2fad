"""Records that exporters take as they are."""

from recorder import make_run

from periflow_otel.records import Metric, RunFinished, StepEnded
from periflow_otel.translate.as_is import RecordTranslator


def test_only_one_kind_is_passed_on():
    """Each record of it once, in order."""
    translator = RecordTranslator(StepEnded, make_run(), b"")
    ended = [StepEnded(1, 1, 1), StepEnded(2, 2, 1, "ValueError")]
    translator.feed([ended[0], Metric(1, 1, {"loss": 1.0}), ended[1], RunFinished(1)])
    assert translator.take() == ended
    assert translator.take() == []
