"""A training run, seen from inside the training process: the step state machine and the recording path, whole."""

import atexit
import logging
import os
import platform
import secrets
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final

from periflow_otel import ids, names
from periflow_otel.clock import Clock, current_clock
from periflow_otel.config import Environ, RunSettings, fallback_state_dir
from periflow_otel.context import OpenSpan, current_number
from periflow_otel.errors import (
    CheckpointAlreadyUploadedError,
    ConfigurationError,
    PeriFlowError,
    StepAlreadyStartedError,
    StepNotStartedError,
)
from periflow_otel.journal.control import ANY_STEP, Control
from periflow_otel.journal.cursors import delivered_sequence
from periflow_otel.journal.folders import journal_folder, last_attempt, make_private, node_folder, run_folder
from periflow_otel.journal.processes import boot_id, process_start
from periflow_otel.journal.writer import JournalWriter, NoJournal
from periflow_otel.ranks import Identity, describe, find_identity, require_cloud
from periflow_otel.records import (
    Checkpoint,
    JSONValue,
    Phase,
    RunFinished,
    RunStarted,
    StepEnded,
    encode,
    encode_metric,
    plain_mapping,
)

if TYPE_CHECKING:
    from periflow_otel.launcher import AgentLauncher

AGENT_CHECK_INTERVAL_NS: Final = 5_000_000_000
"""How often ``end_step`` looks whether the agent is alive."""
_POLL_INTERVAL_S: Final = 0.005
_STOP_TIMEOUT_S: Final = 1.0

_log = logging.getLogger("periflow_otel")


class TrainingRun:
    """One rank's part in a training run, from its construction to ``shutdown``.

    Every method returns at once and none raises for a fault of the world. Steps belong to one thread; ``metric`` may
    be called from any.
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
            run_id: Identity of the run, the same on all ranks. Default: ``PERIFLOW_RUN_ID``, else what the launcher
                says, else made up.
            initial_step: Steps that earlier attempts did; the first step of this one is the next. Default:
                ``PROCESSED_ITERS`` in cloud mode, else 0.
            environ: Where settings come from.
            clock: What tells the time. Default: the system.

        Raises:
            ConfigurationError: An argument or a variable has a value that cannot be used.
            PeriFlowInternalError: Cloud mode lacks a variable that PeriFlow sets.
            PeriFlowError: Cloud mode, and ``total_train_steps`` is no integer or not beyond the steps already done.
        """
        self._settings = settings = RunSettings.from_environ(environ)
        self._environ = environ
        self._time_ns, self._monotonic_ns = clock or current_clock()
        identity = find_identity(environ)
        initial = _initial_step(environ, initial_step, is_cloud=settings.is_cloud)
        target = _target_step(total_train_steps, initial, is_cloud=settings.is_cloud)
        log = None if settings.is_cloud else _local_log(local_log_name, identity)
        self.run_id: str = run_id or settings.run_id or identity.run_id or _made_up_id()
        """Identity of the run, the same on all ranks."""
        self.folder: Path = _usable_folder(settings.state_dir, self.run_id)
        """Where the journals of this run are, on this node."""
        attempt = (
            last_attempt(self.folder, identity.rank) if identity.restarts is None else identity.restarts
        ) + 1
        self.info: RunStarted = RunStarted(
            run_id=self.run_id,
            attempt=attempt,
            rank=identity.rank,
            local_rank=identity.local_rank,
            node_rank=identity.node_rank,
            world_size=identity.world_size,
            mode="cloud" if settings.is_cloud else "local",
            pid=os.getpid(),
            process_start=process_start(os.getpid()) or 0,
            boot_id=boot_id(),
            started_unix_ns=self._time_ns(),
            initial_step=initial,
            total_steps=target,
            consumers=settings.consumers,
            local_log=log,
            traceparent=settings.traceparent,
            sampling_ratio=settings.sampling_ratio,
            resource=_resource(settings),
        )
        """Who this process is."""
        self._step = initial
        self._started_ns: int | None = None
        self._started_unix_ns = 0
        self._span: OpenSpan | None = None
        self._checkpoint_step: int | None = None
        self._phases = 0
        self._answered_request = 0
        self._has_warned_of_checkpoint_dir = False
        self._is_over = False
        self._last_error = getattr(sys, "last_value", None)
        self._journal_folder = journal_folder(self.folder, attempt, identity.rank)
        self._journal, self._control, self._launcher = self._open()
        self._agent_check_due_ns = self._monotonic_ns() + AGENT_CHECK_INTERVAL_NS
        if self._launcher is not None:
            self._launcher.ensure()
        atexit.register(self._at_exit)
        _log.info("run %s, attempt %d: %s", self.run_id, attempt, describe(identity))

    def _open(self) -> tuple[JournalWriter | NoJournal, Control | None, "AgentLauncher | None"]:
        """Open the journal, the control word and the agent; without them training goes on all the same."""
        if self._settings.is_disabled:
            return NoJournal(), None, None
        if missing := _missing_on_this_platform():
            _log.warning("%s; nothing is recorded, training goes on", missing)
            return NoJournal(), None, None
        from periflow_otel.launcher import AgentLauncher  # noqa: PLC0415  # needs fcntl, which Windows has not

        journal = JournalWriter(self._journal_folder, self.info, max_bytes=self._settings.journal_max_bytes)
        return journal, _open_control(self.folder), AgentLauncher(self.folder, self._settings.agent, self._environ)

    def start_step(self) -> None:
        """Begin the next step.

        Raises:
            StepAlreadyStartedError: A step is open.
        """
        if self._started_ns is not None:
            message = f"start_step() was called in step {self._step}, which has not ended; call end_step() first"
            raise StepAlreadyStartedError(message)
        self._step = step = self._step + 1
        self._journal.begin_step(step, self._now())
        self._span = span = OpenSpan(self._identify_step, step, self.info.sampling_ratio)
        span.enter()
        self._started_ns = self._monotonic_ns()

    def end_step(self) -> None:
        """End the current step and record its duration. Waits for nobody.

        Raises:
            StepNotStartedError: No step is open.
        """
        self._end_step(None)

    def train_step(self) -> "_TrainStep":
        """Return a context manager that starts a step and ends it, also when the body raises.

        Raises:
            StepAlreadyStartedError: On entry, if a step is open.
        """
        return _TrainStep(self)

    def metric(self, msg: Mapping[str, JSONValue]) -> None:
        """Record values of the step that started last.

        Args:
            msg: JSON values, or NumPy or tensor scalars, by name. Encoded before this returns: what happens to it
                later does not matter. A tensor on a GPU is fetched, which waits for the GPU; NaN and infinities are
                kept.

        Raises:
            TypeError: A value is none of these; the message names its key.
            ValueError: A key is longer than 256 characters, or the whole larger than 4 MiB.
        """
        self._journal.append(encode_metric(self._step, self._time_ns(), msg))

    def upload_checkpoint(self) -> None:
        """Announce that the checkpoint of the last step is complete. To be called on every rank.

        Raises:
            CheckpointAlreadyUploadedError: It was announced before in this step.
        """
        if self.info.mode == "cloud" and not self._environ.get(names.CKPT_DIR):
            self._warn_of_checkpoint_dir()
            return
        if self._checkpoint_step == self._step:
            message = f"upload_checkpoint() was called twice in step {self._step}; once per step is enough"
            raise CheckpointAlreadyUploadedError(message)
        self._checkpoint_step = self._step
        now = self._time_ns()
        delay_ns = self._answer_request(now)
        is_open = self._started_ns is not None
        self._journal.append(encode(Checkpoint(self._step, now, is_open, delay_ns is not None, delay_ns)))
        self._journal.ask_for_delivery()
        self._ensure_agent()

    def is_emergency_save(self) -> bool:
        """Tell whether a checkpoint should be saved now: at the step asked for, or at once.

        The ``upload_checkpoint`` that answers the request clears it.
        """
        if self._control is None or self._control.number() == self._answered_request:
            return False
        return self._control.last().step in (ANY_STEP, self._step)

    @contextmanager
    def span(self, name: str, **attributes: JSONValue) -> Iterator[None]:
        """Record a phase, such as ``"evaluation"``: a span below the current phase or step, or below the run.

        Args:
            name: Name of the span.
            attributes: What else to say of it.

        Raises:
            TypeError: An attribute is no JSON value; the message names it.
        """
        values = plain_mapping(attributes)
        self._phases += 1
        phase = OpenSpan(self._identify_phase, self._phases, self.info.sampling_ratio)
        parent = current_number(self._identify_phase)
        step = None if self._started_ns is None else self._step
        start_unix_ns = self._time_ns()
        phase.enter()
        started_ns = self._monotonic_ns()
        error = None
        try:
            yield
        except BaseException as raised:
            error = type(raised).__name__
            raise
        finally:
            duration_ns = self._monotonic_ns() - started_ns
            phase.leave()
            record = Phase(name, phase.number, parent, step, start_unix_ns, duration_ns, error, values)
            self._journal.append(encode(record))

    def flush(self, timeout_s: float | None = None) -> bool:
        """Wait until everything recorded so far is delivered.

        Args:
            timeout_s: Longest wait in seconds. Default: ``PERIFLOW_EXIT_TIMEOUT``.

        Returns:
            Whether it is. What is not stays in the journal, and the agent goes on trying.
        """
        if self._launcher is None:  # nothing is recorded
            return True
        if self._settings.agent == "off" or not self._is_own_process():
            return False
        self._journal.ask_for_delivery()
        self._launcher.ensure()
        sequence = self._journal.sequence
        deadline_s = time.monotonic() + (self._settings.exit_timeout_s if timeout_s is None else timeout_s)
        while delivered_sequence(self._journal_folder, self.info.consumers) < sequence:
            if time.monotonic() >= deadline_s:
                return False
            time.sleep(_POLL_INTERVAL_S)
        return True

    def shutdown(self, timeout_s: float | None = None) -> bool:
        """End the run and wait until it is delivered. Further calls on this run do nothing.

        Args:
            timeout_s: Longest wait in seconds. Default: ``PERIFLOW_EXIT_TIMEOUT``.

        Returns:
            Whether everything is delivered.
        """
        return self._shutdown(None, timeout_s)

    def _end_step(self, error: str | None) -> None:
        now_ns = self._monotonic_ns()
        if self._started_ns is None or self._span is None:
            message = f"end_step() was called, but no step is open (the last was {self._step}); call start_step() first"
            raise StepNotStartedError(message)
        duration_ns = now_ns - self._started_ns
        self._started_ns = None
        self._span.leave()
        self._journal.append(encode(StepEnded(self._step, self._started_unix_ns, duration_ns, error)))
        if now_ns > self._agent_check_due_ns:
            self._ensure_agent()

    def _now(self) -> int:
        self._started_unix_ns = now = self._time_ns()
        return now

    def _identify_step(self, step: int) -> tuple[ids.TraceId, ids.SpanId]:
        run = self.info
        trace_id = ids.step_trace_id(run.run_id, run.attempt, step)
        return trace_id, ids.step_span_id(run.run_id, run.attempt, step, run.rank)

    def _identify_phase(self, number: int) -> tuple[ids.TraceId, ids.SpanId]:
        run = self.info
        step_trace_id = ids.step_trace_id(run.run_id, run.attempt, self._step)
        trace_id = ids.run_trace_id(run.run_id, run.attempt) if self._started_ns is None else step_trace_id
        return trace_id, ids.phase_span_id(run.run_id, run.attempt, run.rank, number)

    def _answer_request(self, now_unix_ns: int) -> int | None:
        """Clear the request for an emergency save that this checkpoint answers; return how old it is in ns."""
        if self._control is None or not self.is_emergency_save():
            return None
        request = self._control.last()
        self._answered_request = request.number
        return max(0, now_unix_ns - request.unix_ns)

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
        return self.info.pid == os.getpid()

    def _at_exit(self) -> None:
        error = getattr(sys, "last_value", None)
        is_new = error is not None and error is not self._last_error and not hasattr(sys, "ps1")
        try:
            if not self._shutdown(type(error).__name__ if is_new else None, None):
                self._say_what_is_left()
        except KeyboardInterrupt:
            self._say_what_is_left()

    def _shutdown(self, error: str | None, timeout_s: float | None) -> bool:
        if self._is_over or not self._is_own_process():
            return True
        self._is_over = True
        atexit.unregister(self._at_exit)
        if self._span is not None:
            self._span.leave()
        self._journal.append(encode(RunFinished(self._time_ns(), error)))
        is_delivered = self.flush(timeout_s)
        if self._launcher is not None:
            self._launcher.stop(_STOP_TIMEOUT_S)
        self._journal.go_inert()
        return is_delivered or self._settings.agent == "off"

    def _say_what_is_left(self) -> None:
        if self._launcher is not None:
            print(  # noqa: T201  # logging may be off, and this is the last chance to say it
                f"periflow_otel: not everything could be delivered within {self._settings.exit_timeout_s:g} s. The "
                f"rest is kept in {self.folder}; the agent goes on trying, then 'periflow-otel replay' delivers it.",
                file=sys.stderr,
            )


class _TrainStep:
    """The context manager of one step."""

    __slots__ = ("_run",)

    def __init__(self, run: TrainingRun) -> None:
        self._run = run

    def __enter__(self) -> None:
        self._run.start_step()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run._end_step(None if kind is None else kind.__name__)  # noqa: SLF001  # one machine in two classes


def _initial_step(environ: Environ, given: int | None, *, is_cloud: bool) -> int:
    processed = require_cloud(environ).processed_iters if is_cloud else 0
    if given is None:
        return processed
    if not isinstance(given, int) or given < 0:
        message = f"initial_step is {given!r}; give the number of steps already done, 0 or more"
        raise ConfigurationError(message)
    return given


def _target_step(given: object, initial_step: int, *, is_cloud: bool) -> int | None:
    """Return the number of the last step; in local mode a value that makes no sense is ignored, as ever."""
    if is_cloud and given is not None:
        if not isinstance(given, int):
            message = f"total_train_steps is {given!r}; give the number of the last step, an integer"
            raise PeriFlowError(message)
        if given <= initial_step:
            message = (
                f"total_train_steps is {given}, but PROCESSED_ITERS says that {initial_step} steps are done already; "
                "give the number of the last step, counted from the beginning of the run"
            )
            raise PeriFlowError(message)
    return given if isinstance(given, int) and given > 0 else None


def _local_log(given: str | os.PathLike[str] | None, identity: Identity) -> str:
    path = Path(given or f"./periflow_trainer_{int(time.time())}.log").expanduser().absolute()
    if identity.world_size > 1:
        path = path.with_name(f"{path.name.removesuffix('.log')}_{identity.rank}.log")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror
    else:
        if os.access(path if path.exists() else path.parent, os.W_OK) and not path.is_dir():
            return str(path)
        reason = "not writable"
    message = f"the metric log {path} cannot be written ({reason}); give init() another local_log_name"
    raise ConfigurationError(message)


def _usable_folder(state_dir: Path, run_id: str) -> Path:
    """Return the folder of the run in the state directory, or in a temporary one if that cannot be used."""
    fallback = fallback_state_dir()
    for candidate in (state_dir, fallback):
        folder = node_folder(run_folder(candidate, run_id))
        try:
            make_private(candidate)
            make_private(folder.parent)
            make_private(folder)
        except OSError as error:
            _log.warning("%s cannot hold the journal (%s)", candidate, error.strerror or error)
        else:
            return folder
    return node_folder(run_folder(state_dir, run_id))


def _open_control(folder: Path) -> Control | None:
    try:
        return Control(folder)
    except OSError as error:
        _log.warning("no emergency save can be asked for: %s (%s)", folder, error.strerror)
        return None


def _made_up_id() -> str:
    """Return an identity that sorts by time and tells a person when the run began."""
    return f"{datetime.now(timezone.utc):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


def _missing_on_this_platform() -> str | None:
    if sys.platform in ("linux", "darwin"):
        return None
    return f"periflow_otel needs Linux or macOS to record, not {sys.platform}"


def _resource(settings: RunSettings) -> tuple[tuple[str, str], ...]:
    attributes = {
        "service.name": settings.service_name,
        "host.name": socket.gethostname(),
        "host.arch": platform.machine(),
        "os.type": sys.platform,
        "process.runtime.name": sys.implementation.name,
        "process.runtime.version": platform.python_version(),
        "telemetry.distro.name": names.SCOPE,
        **dict(settings.resource_attributes),
    }
    return tuple(sorted(attributes.items()))
