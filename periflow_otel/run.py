"""A training run, seen from inside the training process: the step state machine and the recording path, whole."""

import atexit
import itertools
import logging
import os
import sys
import weakref
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from periflow_otel import names, startup
from periflow_otel.clock import Clock, current_clock
from periflow_otel.config.environ import Environ
from periflow_otel.errors import (
    CheckpointAlreadyUploadedError,
    StepAlreadyStartedError,
    StepNotStartedError,
    full_type,
)
from periflow_otel.handover import Handover
from periflow_otel.identities import SpanIdentity, identify
from periflow_otel.journal.ledger import find_earlier
from periflow_otel.logs import limit_repeats
from periflow_otel.records import (
    Checkpoint,
    Paused,
    Phase,
    RankRun,
    RunFinished,
    StepEnded,
    encode,
    encode_end,
    encode_metric,
)
from periflow_otel.run_config import RunConfig
from periflow_otel.terminal import say
from periflow_otel.training import arguments
from periflow_otel.training.context import OpenSpan, StandingSpan, current_phase, whereabouts
from periflow_otel.training.endings import call_at_exit, error_at_exit, failure, say_what_is_recorded, time_left_s
from periflow_otel.training.joining import next_attempt
from periflow_otel.training.log_lines import encode_line, raised
from periflow_otel.training.pauses import Pauses
from periflow_otel.training.saves import EmergencySaves
from periflow_otel.training.script_logs import ScriptLogs
from periflow_otel.training.stepping import EndStep, StepContext
from periflow_otel.values import Value, plain_mapping

LOOK_INTERVAL_NS: Final = 1_000_000_000
"""How often ``end_step`` looks whether the agent is alive, and the journal and the control word where they were."""
_KNOWN_CHECKPOINTS: Final = 100
"""How many of the last checkpoints are known, to tell when one is announced twice."""
_PAUSES: Final = ("eval", "valid", "test", "predict", "save", "saving", "checkpoint", "compil")
"""Phases that begin so take long in a step too; between steps all may."""
_UNFINISHED: Final = "unfinished"
"""Why a step is not complete that was left open."""

_log = logging.getLogger("periflow_otel")
_runs: "weakref.WeakSet[TrainingRun]" = weakref.WeakSet()


class TrainingRun:
    """One rank's part in a training run, from its construction to ``shutdown``.

    All methods but ``flush`` and ``shutdown`` return at once, and none raises for a fault of the world. Steps belong to
    one thread; ``metric`` may be called from any.
    """

    def __init__(  # noqa: PLR0913  # all that a script may say, and two for tests
        self,
        total_train_steps: int | None = None,
        local_log_name: str | os.PathLike[str] | None = None,
        *,
        run_id: str | None = None,
        initial_step: int | None = None,
        config: Mapping[str, Any] | None = None,
        name: str | None = None,
        work: Mapping[str, float] | None = None,
        environ: Environ = os.environ,
        clock: Clock | None = None,
    ) -> None:
        """Begin a run: find out who this process is, open its journal, and see to it that an agent is there.

        Args:
            total_train_steps: Number of the last step, where it is known.
            local_log_name: Local mode: file that metrics are appended to, one JSON object per line. Default:
                ``./periflow_trainer_{unix seconds}.log``, with ``_{rank}`` before ``.log`` if there are several ranks,
                and ``-2`` and so on if another run has that.
            run_id: Identity of the run, the same on all ranks: at most 256 printable characters. Default:
                ``PERIFLOW_RUN_ID``, else what the launcher says, else made up.
            initial_step: Steps that earlier attempts did; the first step of this one is the next. Default:
                ``PROCESSED_ITERS`` in cloud mode, else 0.
            config: What tells this run from others, such as learning rate and model: JSON values, scalars or paths by
                name, recorded once. Mappings in it are flattened by dots, and secrets are masked by their names. At
                most 1000 values of 32 KiB; text is cut at 1024 characters.
            name: What people call the run: at most 256 printable characters. Unlike ``run_id`` it need not be unique.
            work: What this rank does in each step, by kind, such as ``{"tokens": 8192, "flops": 2.4e14}``: at most 16
                positive numbers, shown per second. With ``flops``, floating-point operations, and ``peak_flops``, those
                that the device can do in a second, the share that is made use of is shown. Page and ``status`` know the
                peak of NVIDIA's usual GPUs, for dense bfloat16.
            environ: Where settings come from.
            clock: What tells the time. Default: the system.

        Raises:
            ConfigurationError: An argument, or in cloud mode a variable, has a value that cannot be used.
            PeriFlowInternalError: Cloud mode lacks a variable that PeriFlow sets.
            PeriFlowError: Cloud mode, and ``total_train_steps`` is not an integer or not beyond the steps already
                done.
        """
        limit_repeats()
        self._environ = environ
        self._time_ns, self._monotonic_ns = clock or current_clock()
        now_unix_ns = self._time_ns()
        self._config = RunConfig().with_values(config or {})
        done = arguments.work(work)
        beginning = startup.settle(
            total_train_steps, local_log_name, run_id, initial_step, name, done, environ, now_unix_ns
        )
        self.info: RankRun = beginning.run
        """Who this process is."""
        self.run_id: str = beginning.run.run_id
        """Identity of the run, the same on all ranks."""
        self._place = beginning.place
        self.folder: Path = beginning.place.folder
        """Where the journals of this run are, on this node."""
        self._is_recording = beginning.is_recording
        self._handover = Handover(beginning)
        self._journal = self._handover.open_journal(self.info, self._config.encoded())
        self._saves = EmergencySaves(
            self.folder if beginning.is_recording else None, beginning.settings.emergency_signals
        )
        self._exit_timeout_s = beginning.settings.exit_timeout_s
        self._telling = beginning.settings.telling
        self._last_error = getattr(sys, "last_value", None)
        self._agent_check_due_ns = 0
        self._warned: set[str] = set()
        # The state of the steps
        self._step = self._step_before = self.info.initial_step
        self._started_ns: int | None = None
        self._started_unix_ns = 0
        self._ended_ns: int | None = None
        self._step_error: str | None = None
        self._noted_error: str | None = None
        self._offset_ns = now_unix_ns - self._monotonic_ns()
        self._context: weakref.ref[StepContext] | None = None
        self._standing_span = StandingSpan(self._identify_open_step)
        self._span: OpenSpan | None = None
        self._phases = itertools.count(1)
        self._checkpoint_steps: deque[int] = deque(maxlen=_KNOWN_CHECKPOINTS)
        self._is_over = False
        self._script_logs = ScriptLogs(beginning.settings.log_level, self._add_log_line)
        self._pauses = Pauses(self._monotonic_ns, lambda: self._started_ns is not None) if self._is_recording else None
        self._ensure_agent()
        call_at_exit(self._at_exit)
        _runs.add(self)

    @property
    def is_active(self) -> bool:
        """Whether calls record something: not after ``shutdown``, nor in a child that was forked from this process."""
        return not self._is_over

    @property
    def step(self) -> int:
        """Number of the step that started last; before the first, how many were done when the run began."""
        return self._step

    @property
    def open_step(self) -> int | None:
        """Number of the step that has started and not ended; None between steps."""
        return None if self._started_ns is None else self._step

    def start_step(self, step: int | None = None) -> None:
        """Begin a step.

        Args:
            step: Its number, from 1, where the loop has numbers of its own; some may be left out. One that is not
                beyond the last step begins another attempt of the run: training went back. Default: one more than
                the last.

        Raises:
            StepAlreadyStartedError: A step is open.
            TypeError: ``step`` is not an integer.
            ValueError: ``step`` is below 1.
        """
        if self._is_over or self._started_ns is not None:
            self._settle_last_step()
            if self._is_over:
                return
        if step is None:
            step = self._step + 1
        else:
            step = arguments.step_number(step, least=1)
            if step <= self._step:
                self._begin_attempt(step - 1)
        self._step_before, self._step, self._context = self._step, step, None
        self._started_unix_ns = now = self._time_ns()
        self._journal.begin_step(step, now)
        if not self._standing_span.is_current():
            self._span = OpenSpan(self._identify, step)
        started_ns = self._monotonic_ns()
        self._offset_ns = now - started_ns
        self._started_ns = started_ns

    def _begin_step(self, step: int | None, context: "weakref.ref[StepContext]") -> EndStep:
        self.start_step(step)
        self._context = context
        return self.end_step

    def end_step(self, error: BaseException | str | None = None) -> None:
        """End the current step and record its duration. Waits for nobody.

        Args:
            error: The exception that ended it, or its type.

        Raises:
            StepNotStartedError: No step is open.
        """
        now_ns = self._monotonic_ns()
        started_ns = self._started_ns
        if started_ns is None:
            if self._is_over:
                return
            message = f"end_step() was called, but no step is open (the last was {self._step}); call start_step() first"
            raise StepNotStartedError(message)
        self._started_ns = None
        if self._span is not None:
            self._span.leave()
            self._span = None
        if error is not None and not isinstance(error, str):
            error = full_type(error)
        gap_ns = None if self._ended_ns is None else started_ns - self._ended_ns
        self._ended_ns, self._step_error = now_ns, error
        if self._pauses is not None and self._pauses.waiting:
            self._journal.append(encode(Paused(self._step, self._offset_ns + now_ns, self._pauses.take())))
        ended = StepEnded(self._step, self._started_unix_ns, now_ns - started_ns, error, gap_ns)
        self._journal.append(encode_end(ended))
        if now_ns > self._agent_check_due_ns:
            self._ensure_agent()

    def abandon_step(self) -> None:
        """Take back the start of the open step, if there is one: its time counts as time between steps."""
        if self._started_ns is None:
            return
        self._started_ns = None
        if self._span is not None:
            self._span.leave()
            self._span = None
        self._step = self._step_before
        self._journal.begin_step(self._step, 0)

    def note_error(self, error: BaseException | None) -> None:
        """Say what the run has failed of, should it end, or go back to an earlier step, without another word.

        Args:
            error: What went wrong though the script goes on; None takes it back.
        """
        self._noted_error = None if error is None else full_type(error)

    def train_step(self, step: int | None = None) -> "StepContext":
        """Return a context manager that starts a step and ends it, also when the body raises.

        Args:
            step: Its number, as in ``start_step``.

        Raises:
            StepAlreadyStartedError: On entry, if a step is open.
            TypeError: On entry: ``step`` is not an integer.
            ValueError: On entry: ``step`` is below 1.
        """
        return StepContext(self._begin_step, step)

    def add_config(self, config: Mapping[str, Any]) -> None:
        """Add to what tells this run from others, such as what only a framework knows.

        Args:
            config: As for ``init``. A value under a key that was given before takes its place.

        Raises:
            ConfigurationError: It is no mapping of such values, or more than can be recorded; nothing is added.
        """
        more = self._config.with_values(config)
        if not self._is_over and more.values != self._config.values:
            self._config = more
            self._journal.open_with(more.encoded())

    def metric(self, msg: Mapping[str, Value], step: int | None = None) -> None:
        """Record values of a step.

        Args:
            msg: JSON values, or NumPy or tensor scalars, by name. Encoded before this returns: what happens to it
                later does not matter. A tensor on a GPU is fetched, which waits for the GPU; NaN and infinities are
                kept.
            step: Number of the step that they belong to, 0 or more; it may be over for long. Default: the one that
                started last.

        Raises:
            TypeError: A value is none of these, and the message names its key; or ``step`` is not an integer.
            ValueError: A key is longer than 256 characters, the whole larger than 4 MiB, or ``step`` below 0.
        """
        during = None
        if step is None:
            step = self._step
        else:
            step = arguments.step_number(step, least=0)
            if step != self._step:
                during = self._step
        self._journal.append(encode_metric(step, self._offset_ns + self._monotonic_ns(), msg, during))

    def upload_checkpoint(self, step: int | None = None) -> None:
        """Announce that the checkpoint of a step is complete. To be called on every rank.

        Args:
            step: Number of the step that was saved, 0 or more: where a thread goes on to save while training goes on,
                it is not the last. Default: the one that started last.

        Raises:
            CheckpointAlreadyUploadedError: Cloud mode, and it was announced before. In local mode this warns, once.
            TypeError: ``step`` is not an integer.
            ValueError: ``step`` is below 0.
        """
        current = self._step
        step = current if step is None else arguments.step_number(step, least=0)
        if self._is_over or not self._has_checkpoint_folder():
            return
        request = self._saves.request_for(step, current)
        # In an emergency, a step that was saved already is saved again.
        if step in self._checkpoint_steps and request is None:
            self._refuse_checkpoint(step)
            return
        self._checkpoint_steps.append(step)
        now, delay_ns = self._offset_ns + self._monotonic_ns(), None
        if request is not None:
            self._saves.answer(request)
            delay_ns = max(0, now - request.unix_ns)
        is_open, during = self._started_ns is not None, None if step == current else current
        self._journal.append(encode(Checkpoint(step, now, is_open, request is not None, delay_ns, during)))
        self._journal.note_checkpoint(max(self._checkpoint_steps))
        self._journal.ask_for_delivery()
        self._ensure_agent()

    def is_emergency_save(self) -> bool:
        """Tell whether a checkpoint should be saved now: at the step asked for, or at once.

        The ``upload_checkpoint`` that answers the request clears it.
        """
        return self._saves.is_due(self._step)

    @contextmanager
    def span(self, name: str, /, **attributes: Value) -> Iterator[None]:
        """Record a phase, such as ``"evaluation"``: a span below the current phase or step, or below the run.

        Args:
            name: Name of the span, at most 256 characters.
            attributes: What else to say of it.

        Raises:
            TypeError: On entry: the name is no text, or an attribute is no JSON value; the message names it.
            ValueError: On entry: the name is too long, or the whole larger than 4 MiB.
        """
        if self._is_over:
            yield
            return
        step = None if self._started_ns is None else self._step
        parent = current_phase(self._identify)
        number = next(self._phases)
        name, values = arguments.phase_name(name), plain_mapping(attributes)
        start_unix_ns = self._offset_ns + self._monotonic_ns()
        encode(Phase(name, number, parent, step, start_unix_ns, 0, None, values))  # raises if it is too large
        span = OpenSpan(self._identify, step, number)
        is_pause = step is None or name.lower().startswith(_PAUSES)
        pause_before = self._journal.note_pause(self._step + 1) if is_pause else 0
        started_ns = self._monotonic_ns()
        error = None
        try:
            yield
        except BaseException as raised:
            error = failure(raised)
            raise
        finally:
            duration_ns = self._monotonic_ns() - started_ns
            span.leave()
            if is_pause:
                self._journal.note_pause(pause_before)
            self._journal.append(encode(Phase(name, number, parent, step, start_unix_ns, duration_ns, error, values)))

    def flush(self, timeout_s: float | None = None) -> bool:
        """Wait until everything recorded so far is delivered.

        Args:
            timeout_s: Longest wait in seconds. Default: ``PERIFLOW_EXIT_TIMEOUT``.

        Returns:
            Whether it is: delivered, set aside or counted as dropped. What is not stays in the journal.
        """
        self._journal.ask_for_delivery()
        return self._is_own_process() and self._handover.wait(self._journal.sequence, timeout_s)

    def shutdown(self, timeout_s: float | None = None, *, error: BaseException | None = None) -> bool:
        """End the run and wait until it is delivered. Further calls on this run do nothing; this one waits again.

        Args:
            timeout_s: Longest wait in seconds. Default: ``PERIFLOW_EXIT_TIMEOUT``.
            error: What ended the run, if it failed and the script goes on, or ends by ``sys.exit``.

        Returns:
            Whether everything is delivered, set aside or counted as dropped.
        """
        return self._wait_again(timeout_s) if self._is_over else self._shutdown(failure(error), timeout_s, error)

    def _identify(self, step: int | None, phase: int) -> SpanIdentity:
        """Derive the ids that the exported span of a step or a phase has."""
        return identify(self.info, step, phase)

    def _identify_open_step(self) -> SpanIdentity | None:
        return None if self._started_ns is None or self._is_over else self._identify(self._step, 0)

    def _add_log_line(self, record: logging.LogRecord) -> None:
        """Record what a logger was told, in whatever thread."""
        where = whereabouts(self._identify, None if self._started_ns is None else self._step)
        self._journal.append(encode_line(record, where, self._time_ns()))

    def _settle_last_step(self) -> None:
        """End a step that its ``with`` block has left without an end, as when a signal handler raises at its exit.

        Raises:
            StepAlreadyStartedError: The step is open, and whoever has begun it may still end it.
        """
        if self._is_over:
            if not self._is_own_process():
                self._warn_once("forked", _FORKED)
        elif self._context is None or self._context() is not None:
            message = f"start_step() was called in step {self._step}, which has not ended; call end_step() first"
            raise StepAlreadyStartedError(message)
        else:
            self.end_step(_UNFINISHED)

    def _begin_attempt(self, done: int) -> None:
        """Go on as another attempt, in which ``done`` steps are done: ids and sums of the old one stay its own."""
        records = self._end_journal(self._noted_error)
        rank, is_recording = self.info.rank, self._is_recording
        self._place = place = next_attempt(self._place, rank, self.info.world_size, is_recording=is_recording)
        if is_recording:
            self._handover.next_journal(place.journal, records)
        earlier = find_earlier(self.folder, rank, place.number) if is_recording else None
        self.info = self.info.another_attempt(place.attempt, self._time_ns(), done, earlier)
        self._step, self._ended_ns, self._noted_error = done, None, None
        self._checkpoint_steps.clear()
        self._journal = self._handover.open_journal(self.info, self._config.encoded())

    def _ensure_agent(self) -> None:
        self._agent_check_due_ns = self._monotonic_ns() + LOOK_INTERVAL_NS
        self._journal.look()
        self._saves.look()
        self._handover.ensure_agent()

    def _has_checkpoint_folder(self) -> bool:
        """Tell whether there is something to upload, as far as PeriFlow tells; in local mode nothing is uploaded."""
        if self.info.mode == "local" or self._environ.get(names.CKPT_DIR):
            return True
        self._warn_once("no folder", _NO_CHECKPOINT_FOLDER)
        return False

    def _refuse_checkpoint(self, step: int) -> None:
        message = f"upload_checkpoint() was called twice in step {step}; once per step is enough"
        if self.info.mode == "cloud":
            raise CheckpointAlreadyUploadedError(message)
        self._warn_once("twice", message)

    def _warn_once(self, subject: str, message: str) -> None:
        if subject not in self._warned:
            self._warned.add(subject)
            _log.warning("%s", message)

    def _is_own_process(self) -> bool:
        return self.info.process.is_current()

    def _at_exit(self) -> None:
        try:
            cause = error_at_exit(self._last_error)
            error = None if cause is None else full_type(cause)
            is_delivered = self._shutdown(error, time_left_s(self._exit_timeout_s), cause)
        except KeyboardInterrupt:
            is_delivered = False
        if not is_delivered and self._handover.may_be_late:
            say(  # logging may be off, and this is the last chance to say it
                f"periflow_otel: not everything could be delivered within {self._exit_timeout_s:g} s. The rest is "
                f"kept in {self.folder}, for the agent, the next run or 'periflow-otel replay' to deliver."
            )

    def _shutdown(self, error: str | None, timeout_s: float | None, cause: BaseException | None = None) -> bool:
        if self._is_over:
            return True
        error = error or self._noted_error
        if self._started_ns is not None:
            self.end_step(error or _UNFINISHED)
        self._is_over = True
        self._listen_no_more()
        self._saves.close()
        atexit.unregister(self._at_exit)
        self._standing_span.leave()
        self._place.leave(error)
        is_delivered = self._handover.wait_for_the_end(self._end_journal(error, cause), timeout_s)
        self._handover.stop_agent()
        if self._handover.may_be_late:
            say_what_is_recorded(self.info, self._step - self.info.initial_step)
        return is_delivered

    def _wait_again(self, timeout_s: float | None) -> bool:
        """Wait for what was not delivered when the run ended; a forked child waits for nothing of its parent's."""
        is_delivered = not self._is_own_process() or self.flush(timeout_s)
        self._handover.stop_agent()
        return is_delivered

    def _give_way(self) -> None:
        """End the run as another begins: as failed if an exception is being handled, or has ended the last step."""
        cause = sys.exc_info()[1]
        self._shutdown(failure(cause) or self._step_error, None, cause)

    def _end_journal(self, error: str | None, cause: BaseException | None = None) -> int:
        """Write the last records, and return how many there are."""
        if error and cause and (more := raised(cause, self._telling)):
            self._journal.append(encode(more))
        return self._journal.finish(encode(RunFinished(self._offset_ns + self._monotonic_ns(), error)))

    def _leave_behind(self) -> None:
        """Record nothing more: this is a forked child, and the run is its parent's."""
        self._is_over, self._started_ns = True, None
        self._listen_no_more()

    def _listen_no_more(self) -> None:
        self._script_logs.close()
        if self._pauses is not None:
            self._pauses.close()


_NO_CHECKPOINT_FOLDER: Final = (
    "upload_checkpoint() has nothing to upload: CKPT_DIR is not set. Set output_checkpoint_dir in the job's "
    "configuration."
)
_FORKED: Final = (
    "this process was forked after init(), and nothing that it does is recorded; call init() in it, which begins a run "
    "of its own"
)


def _leave_behind_in_child() -> None:
    for run in list(_runs):
        run._leave_behind()  # noqa: SLF001  # the hook is a part of the class, which forking knows nothing of


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_behind_in_child)
