"""Records what a training loop logs through ``accelerate``.

    from periflow_otel.integrations.accelerate import PeriFlowTracker

    accelerator = Accelerator(log_with=PeriFlowTracker(total_train_steps=1000))
    accelerator.init_trackers("project", config={"lr": 0.1})

The loop marks its steps itself, with ``pf.train_step()``: Accelerate has no notion of them.
"""

import os
from typing import Any

import periflow_otel as pf
from periflow_otel.integrations.training import add_config, harmless, record

try:
    from accelerate.tracking import GeneralTracker
except ImportError as error:
    message = f"PeriFlowTracker needs accelerate ({error}): pip install 'periflow_otel[accelerate]'"
    raise ImportError(message) from error

__all__ = ["PeriFlowTracker"]


class PeriFlowTracker(GeneralTracker):
    """Records what an ``Accelerator`` is told to log.

    If the script has begun a run with ``pf.init``, that is used. Else this begins one on every rank, as Accelerate says
    nothing of ``init_trackers`` to any but the first; ``end_training`` ends it there, and the script on the others.
    """

    name = "periflow"
    requires_logging_directory = False
    main_process_only = False

    def __init__(
        self,
        run_name: str | None = None,
        total_train_steps: int | None = None,
        local_log_name: str | os.PathLike[str] | None = None,
    ) -> None:
        """Begin a run, unless one is active.

        Args:
            run_name: What people call the run, as in ``pf.init``, for a run that begins here.
            total_train_steps: Number of the last step, where it is known, for such a run.
            local_log_name: As in ``pf.init``, for such a run.

        Raises:
            PeriFlowError: As ``pf.init``.
        """
        super().__init__()
        self._run_name = run_name
        self._total_train_steps = total_train_steps
        self._local_log_name = local_log_name
        self._run: pf.TrainingRun | None = None
        self.start()

    @property
    def tracker(self) -> pf.TrainingRun | None:
        """The run, if one is active."""
        return pf.current_run()

    def start(self) -> None:
        """Begin a run, unless one is active, such as for another training.

        Raises:
            PeriFlowError: As ``pf.init``.
        """
        if not pf.is_initialized():
            pf.init(self._total_train_steps, self._local_log_name, name=self._run_name)
            self._run = pf.current_run()

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """Add to the configuration of the run; what is no value is left out."""
        self._record_config(values)

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        """Record values; what is no metric is left out.

        Args:
            values: By name.
            step: Number of the step that they belong to. Default: the one that started last.
        """
        self._record(values, step)

    @harmless
    def finish(self) -> None:
        """End the run, if it began here."""
        if self._run is not None and self._run is pf.current_run():
            pf.shutdown()

    @harmless
    def _record_config(self, values: dict[str, Any]) -> None:
        add_config(values)

    @harmless
    def _record(self, values: dict[str, Any], step: int | None) -> None:
        record(values, step)
