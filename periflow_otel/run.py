"""A training run, seen from inside the training process: the step state machine and the recording path, whole."""

import atexit
import itertools
import logging
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ContextDecorator, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final

from periflow_otel import ids, names, startup
from periflow_otel.clock import Clock, current_clock
from periflow_otel.config import RunSettings
from periflow_otel.context import OpenSpan, SpanIdentity, StandingSpan, current_phase
from periflow_otel.endings import call_at_exit, error_at_exit
from periflow_otel.environ import Environ
from periflow_otel.errors import CheckpointAlreadyUploadedError, StepAlreadyStartedError, StepNotStartedError
from periflow_otel.journal.control import ANY_STEP, Control, Request
from periflow_otel.journal.cursors import delivered_sequence
from periflow_otel.journal.emergency import request_save
from periflow_otel.journal.folders import claim_journal, journal_folder, node_folder, run_folder
from periflow_otel.journal.ledger import find_earlier
from periflow_otel.journal.writer import JournalWriter, NoJournal
from periflow_otel.logs import keep_quiet
from periflow_otel.preemption import SignalWatch
from periflow_otel.processes import Process
from periflow_otel.ranks import describe, find_identity
from periflow_otel.records import (
    MAX_KEY_CHARS,
    Checkpoint,
    JSONValue,
    Orders,
    Phase,
    RankRun,
    RunFinished,
    StepEnded,
    encode,
    encode_end,
    encode_metric,
    plain_mapping,
)

if TYPE_CHECKING:
    from periflow_otel.launcher import AgentLauncher

AGENT_CHECK_INTERVAL_NS: Final = 5_000_000_000
"""How often ``end_step`` looks whether the agent is alive."""
_POLL_INTERVAL_S: Final = 0.005
_STOP_TIMEOUT_S: Final = 1.0
_KNOWN_CHECKPOINTS: Final = 100
"""How many of the last checkpoints are known, to tell when one is announced twice."""
_UNFINISHED: Final = "unfinished"
"""Why a step is not complete that was open when its run was ended."""

_log = logging.getLogger("periflow_otel")


class TrainingRun:
    """One rank's part in a training run, from its construction to ``shutdown``.

    All methods but ``flush`` and ``shutdown`` return at once, and none raises for a fault of the world. Steps belong to
    one thread; ``metric`` may be called from any.
    """

    def __init__(
        self,
        total_train_steps: int | None = None,
        local_log_name: str | os.PathLike[str] | None = None,
        *,
        run_id: str | None = None,
        initial_step: int | None = None,
        environ: Environ = os.environ,
        clock: Clock | None = None,
    ) -> None:
        """Begin a run: find out who this process is, open its journal, and see to it that an agent is there.

        Args:
            total_train_steps: Number of the last step, where it is known.
            local_log_name: Local mode: file that metrics are appended to, one JSON object per line. Default:
                ``./periflow_trainer_{unix seconds}.log``, with ``_{rank}`` before ``.log`` if there are several ranks.
            run_id: Identity of the run, the same on all ranks: at most 256 printable characters. Default:
                ``PERIFLOW_RUN_ID``, else what the launcher says, else made up.
            initial_step: Steps that earlier attempts did; the first step of this one is the next. Default:
                ``PROCESSED_ITERS`` in cloud mode, else 0.
            environ: Where settings come from.
            clock: What tells the time. Default: the system.

        Raises:
            ConfigurationError: An argument or a variable has a value that cannot be used.
            PeriFlowInternalError: Cloud mode lacks a variable that PeriFlow sets.
            PeriFlowError: Cloud mode, and ``total_train_steps`` is no integer or not beyond the steps already done.
        """
        keep_quiet()
        self._settings = settings = RunSettings.from_environ(environ)
        self._environ = environ
        self._time_ns, self._monotonic_ns = clock or current_clock()
        initial = startup.initial_step(environ, initial_step, is_cloud=settings.is_cloud)
        target = startup.target_step(total_train_steps, initial, is_cloud=settings.is_cloud)
        identity = find_identity(environ)
        self.run_id: str = startup.find_run_id(run_id or settings.run_id, identity, environ)
        """Identity of the run, the same on all ranks."""
        self.folder: Path = node_folder(run_folder(settings.state_dir, self.run_id))
        """Where the journals of this run are, on this node."""
        self._journal_folder = self.folder
        self._ended_journals: list[tuple[Path, int]] = []
        self._has_journal = False
        log = None
        attempt = None if identity.restarts is None else identity.restarts + 1
        is_recording = _is_recording(settings)
        if is_recording:
            log = None if settings.is_cloud else startup.local_log(local_log_name, identity)
            self.folder = startup.usable_folder(settings.state_dir, self.run_id)
            attempt, self._journal_folder = _claim_journal(self.folder, identity.rank, attempt)
        self.info: RankRun = RankRun(
            run_id=self.run_id,
            attempt=attempt or 1,
            rank=identity.rank,
            local_rank=identity.local_rank,
            node_rank=identity.node_rank,
            world_size=identity.world_size,
            mode="cloud" if settings.is_cloud else "local",
            local_log=log,
            process=Process.current(),
            started_unix_ns=self._time_ns(),
            initial_step=initial,
            total_steps=target,
            local_world_size=identity.local_world_size,
            traceparent=settings.traceparent,
            resource=startup.resource(settings),
            orders=Orders(settings.consumers, settings.destination, settings.sampling_ratio),
            earlier=find_earlier(self.folder.parent, identity.rank, attempt or 1),
        )
        """Who this process is."""
        self._step = initial
        self._started_ns: int | None = None
        self._started_unix_ns = 0
        self._standing_span = StandingSpan(self._identify_open_step)
        self._span: OpenSpan | None = None
        self._phases = itertools.count(1)
        self._checkpoint_steps: deque[int] = deque(maxlen=_KNOWN_CHECKPOINTS)
        self._save_step: int | None = None
        self._has_warned_of_checkpoint_dir = False
        self._is_over = False
        self._last_error = getattr(sys, "last_value", None)
        self._journal: JournalWriter | NoJournal = NoJournal()
        self._control: Control | None = None
        self._launcher: AgentLauncher | None = None
        if is_recording:
            self._open()
        # A request that an earlier attempt got is none of ours.
        self._answered_request = self._control.number() if self._control else 0
        self._signals = SignalWatch(signals, self._ask_for_save) if (signals := settings.emergency_signals) else None
        self._agent_check_due_ns = 0
        self._ensure_agent()
        call_at_exit(self._at_exit)
        _log.info("run %s, attempt %d: %s", self.run_id, self.info.attempt, describe(identity))

    def _open(self) -> None:
        """Open the journal, the control word and the agent; without them training goes on all the same."""
        from periflow_otel.launcher import AgentLauncher  # noqa: PLC0415  # needs fcntl, which Windows has not

        self._open_journal()
        self._launcher = AgentLauncher(self.folder, self._settings, self._environ)
        try:
            self._control = Control(self.folder)
        except OSError as error:
            _log.warning("no emergency save can be asked for: %s (%s)", self.folder, error.strerror)

    def _open_journal(self) -> None:
        self._journal = JournalWriter(self._journal_folder, self.info, max_bytes=self._settings.journal_max_bytes)
        self._has_journal = self._journal_folder.is_dir()

    def _begin_attempt(self, done: int) -> None:
        """Go on as another attempt, in which ``done`` steps are done: ids and sums of the old one stay its own."""
        attempt, sequence = self.info.attempt + 1, self._end_journal(None)
        if self._launcher is not None:
            self._ended_journals.append((self._journal_folder, sequence))
            attempt, self._journal_folder = _claim_journal(self.folder, self.info.rank, attempt)
        earlier = find_earlier(self.folder.parent, self.info.rank, attempt)
        self.info = self.info.another_attempt(attempt, self._time_ns(), done, earlier)
        self._step, self._save_step = done, None
        self._checkpoint_steps.clear()
        if self._launcher is not None:
            self._open_journal()

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
        if self._started_ns is not None:
            if self._is_over:
                return
            message = f"start_step() was called in step {self._step}, which has not ended; call end_step() first"
            raise StepAlreadyStartedError(message)
        if step is None:
            step = self._step + 1
        else:
            step = startup.step_number(step, least=1)
            if step <= self._step:
                self._begin_attempt(step - 1)
        self._step = step
        self._started_unix_ns = now = self._time_ns()
        self._journal.begin_step(step, now)
        if not self._standing_span.is_current():
            self._span = OpenSpan(self._identify, step)
        self._started_ns = self._monotonic_ns()

    def end_step(self, error: str | None = None) -> None:
        """End the current step and record its duration. Waits for nobody.

        Args:
            error: Type of the exception that ended it.

        Raises:
            StepNotStartedError: No step is open.
        """
        now_ns = self._monotonic_ns()
        started_ns = self._started_ns
        if self._is_over:
            return
        if started_ns is None:
            message = f"end_step() was called, but no step is open (the last was {self._step}); call start_step() first"
            raise StepNotStartedError(message)
        self._started_ns = None
        if self._span is not None:
            self._span.leave()
            self._span = None
        self._journal.append(encode_end(StepEnded(self._step, self._started_unix_ns, now_ns - started_ns, error)))
        if now_ns > self._agent_check_due_ns:
            self._ensure_agent()

    def train_step(self, step: int | None = None) -> "StepContext":
        """Return a context manager that starts a step and ends it, also when the body raises.

        Args:
            step: Its number, as in ``start_step``.

        Raises:
            StepAlreadyStartedError: On entry, if a step is open.
            TypeError: On entry: ``step`` is not an integer.
            ValueError: On entry: ``step`` is below 1.
        """
        return StepContext(self.start_step, self.end_step, step)

    def metric(self, msg: Mapping[str, JSONValue], step: int | None = None) -> None:
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
            step = startup.step_number(step, least=0)
            if step != self._step:
                during = self._step
        self._journal.append(encode_metric(step, self._time_ns(), msg, during))

    def upload_checkpoint(self, step: int | None = None) -> None:
        """Announce that the checkpoint of a step is complete. To be called on every rank.

        Args:
            step: Number of the step that was saved, 0 or more: where a thread goes on to save while training goes on,
                it is not the last. Default: the one that started last.

        Raises:
            CheckpointAlreadyUploadedError: It was announced before.
            TypeError: ``step`` is not an integer.
            ValueError: ``step`` is below 0.
        """
        current = self._step
        step = current if step is None else startup.step_number(step, least=0)
        if self._is_over:
            return
        if self.info.mode == "cloud" and not self._environ.get(names.CKPT_DIR):
            self._warn_of_checkpoint_dir()
            return
        request = self._open_request(step)
        # In an emergency, a step that was saved already is saved again.
        if step in self._checkpoint_steps and request is None:
            message = f"upload_checkpoint() was called twice in step {step}; once per step is enough"
            raise CheckpointAlreadyUploadedError(message)
        self._checkpoint_steps.append(step)
        now, delay_ns = self._time_ns(), None
        if request is not None:
            self._answered_request, self._save_step = request.number, None
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
        if self._open_request(self._step) is None:
            return False
        self._save_step = self._save_step or self._step
        return True

    @contextmanager
    def span(self, name: str, /, **attributes: JSONValue) -> Iterator[None]:
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
        name, values = _checked_name(name), plain_mapping(attributes)
        start_unix_ns = self._time_ns()
        encode(Phase(name, number, parent, step, start_unix_ns, 0, None, values))  # raises if it is too large
        span = OpenSpan(self._identify, step, number)
        started_ns = self._monotonic_ns()
        error = None
        try:
            yield
        except BaseException as raised:
            error = type(raised).__name__
            raise
        finally:
            duration_ns = self._monotonic_ns() - started_ns
            span.leave()
            self._journal.append(encode(Phase(name, number, parent, step, start_unix_ns, duration_ns, error, values)))

    def flush(self, timeout_s: float | None = None) -> bool:
        """Wait until everything recorded so far is delivered.

        Args:
            timeout_s: Longest wait in seconds. Default: ``PERIFLOW_EXIT_TIMEOUT``.

        Returns:
            Whether it is. What is not stays in the journal.
        """
        self._journal.ask_for_delivery()
        return self._wait_for_delivery(self._journal.sequence, timeout_s)

    def shutdown(self, timeout_s: float | None = None, *, error: BaseException | None = None) -> bool:
        """End the run and wait until it is delivered. Further calls on this run do nothing.

        Args:
            timeout_s: Longest wait in seconds. Default: ``PERIFLOW_EXIT_TIMEOUT``.
            error: What ended the run, if it failed and the script goes on, or ends by ``sys.exit``.

        Returns:
            Whether everything is delivered.
        """
        return self._shutdown(type(error).__name__ if error else None, timeout_s)

    def _identify(self, step: int | None, phase: int) -> SpanIdentity:
        """Derive the ids that the exported span of a step or a phase has."""
        run = self.info
        if step is None:
            launcher_trace_id, _ = ids.parse_traceparent(run.traceparent)
            trace_id, is_sampled = launcher_trace_id or ids.run_trace_id(run.run_id, run.attempt), True
        else:
            trace_id = ids.step_trace_id(run.run_id, run.attempt, step)
            is_sampled = ids.is_sampled(trace_id, run.orders.sampling_ratio)
        if phase:
            return SpanIdentity(trace_id, ids.phase_span_id(run.run_id, run.attempt, run.rank, phase), is_sampled)
        return SpanIdentity(trace_id, ids.step_span_id(run.run_id, run.attempt, step or 0, run.rank), is_sampled)

    def _ask_for_save(self) -> None:
        """Ask for an emergency save on all ranks of this node."""
        if self._control is not None and self._is_own_process():
            with suppress(OSError):  # the folder is gone, or another rank is asking right now
                request_save(self.folder, is_signal=True)

    def _identify_open_step(self) -> SpanIdentity | None:
        return None if self._started_ns is None or self._is_over else self._identify(self._step, 0)

    def _open_request(self, step: int) -> Request | None:
        """Return the request for an emergency save that a checkpoint of a step would answer, and none has."""
        if self._control is None or self._control.number() == self._answered_request:
            return None
        request = self._control.last()
        if step < (self._save_step or self._step) and request.step == ANY_STEP:  # saved before it was asked for
            return None
        return request if request.is_for(step) else None

    def _wait_for_delivery(self, sequence: int, timeout_s: float | None) -> bool:
        if self._launcher is None:  # nothing is recorded
            return True
        if not self._has_journal or self._settings.agent == "off" or not self._is_own_process():
            return False
        if not self._launcher.ensure():
            return False
        deadline_s = time.monotonic() + (self._settings.exit_timeout_s if timeout_s is None else timeout_s)
        while not self._is_delivered(sequence):
            if not time.monotonic() < deadline_s:
                return False
            time.sleep(_POLL_INTERVAL_S)
        return True

    def _is_delivered(self, sequence: int) -> bool:
        """Tell whether everything of the attempts before is delivered, and of this one up to ``sequence``."""
        journals = (*self._ended_journals, (self._journal_folder, sequence))
        return all(delivered_sequence(folder, self._settings.awaited) >= count for folder, count in journals)

    def _ensure_agent(self) -> None:
        self._agent_check_due_ns = self._monotonic_ns() + AGENT_CHECK_INTERVAL_NS
        if self._launcher is not None:
            self._launcher.ensure()

    def _warn_of_checkpoint_dir(self) -> None:
        if not self._has_warned_of_checkpoint_dir:
            self._has_warned_of_checkpoint_dir = True
            _log.warning(
                "upload_checkpoint() has nothing to upload: CKPT_DIR is not set. Set output_checkpoint_dir in the "
                "job's configuration."
            )

    def _is_own_process(self) -> bool:
        return self.info.process.is_current()

    def _at_exit(self) -> None:
        try:
            is_delivered = self._shutdown(error_at_exit(self._last_error), None)
        except KeyboardInterrupt:
            is_delivered = False
        if not is_delivered and self._settings.agent != "off" and self._has_journal:
            print(  # noqa: T201  # logging may be off, and this is the last chance to say it
                f"periflow_otel: not everything could be delivered within {self._settings.exit_timeout_s:g} s. The "
                f"rest is kept in {self.folder}, for the agent, the next run or 'periflow-otel replay' to deliver.",
                file=sys.stderr,
            )

    def _shutdown(self, error: str | None, timeout_s: float | None) -> bool:
        if self._is_over or not self._is_own_process():
            return True
        if self._started_ns is not None:
            self.end_step(error or _UNFINISHED)
        self._is_over = True
        if self._signals is not None:
            self._signals.close()
        atexit.unregister(self._at_exit)
        # From here on start_step() finds a step open and end_step() finds none; both then see that all is over.
        self._standing_span.leave()
        self._started_ns, self._control = 0, None
        is_delivered = self._wait_for_delivery(self._end_journal(error), timeout_s)
        if self._launcher is not None:
            self._launcher.stop(_STOP_TIMEOUT_S)
        return is_delivered

    def _end_journal(self, error: str | None) -> int:
        """Write the last record, and return how many there are."""
        return self._journal.finish(encode(RunFinished(self._time_ns(), error)))


class StepContext(ContextDecorator):
    """Starts a step and ends it, also when the body raises. Works as a decorator too, and any number of times."""

    def __init__(
        self, start_step: Callable[[int | None], None], end_step: Callable[[str | None], None], step: int | None
    ) -> None:
        """Prepare; nothing is started yet."""
        self._start_step = start_step
        self._end_step = end_step
        self._step = step

    def __enter__(self) -> None:
        """Start a step."""
        self._start_step(self._step)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it, with the type of the exception if there is one."""
        self._end_step(None if kind is None else kind.__name__)


def _is_recording(settings: RunSettings) -> bool:
    if settings.is_disabled:
        return False
    if sys.platform in ("linux", "darwin"):
        return True
    _log.warning(
        "periflow_otel needs Linux or macOS to record, not %s; nothing is recorded, training goes on", sys.platform
    )
    return False


def _claim_journal(folder: Path, rank: int, attempt: int | None) -> tuple[int, Path]:
    """Return the attempt, and a folder for its journal that no other process has."""
    try:
        return claim_journal(folder, rank, attempt)
    except OSError:  # the journal, which tries again later, says so
        return attempt or 1, journal_folder(folder, attempt or 1, rank)


def _checked_name(name: object) -> str:
    """Return the name of a phase as text that can be encoded."""
    if not isinstance(name, str):
        message = f"the name of a span is {name!r}; give text"
        raise TypeError(message)
    if len(name) > MAX_KEY_CHARS:
        message = f"the name of a span has {len(name)} characters; give at most {MAX_KEY_CHARS}"
        raise ValueError(message)
    return name.encode("utf-8", "replace").decode()
