"""Every name that this package shows to the outside, each with its unit and its meaning: in the text below it.

``docs/telemetry.md`` is generated from this module, texts included.
"""

from typing import Final, Literal, NamedTuple

InstrumentKind = Literal["counter", "updowncounter", "gauge", "histogram"]


class Instrument(NamedTuple):
    """An OpenTelemetry instrument."""

    name: str
    kind: InstrumentKind
    unit: str
    meaning: str


VERSION: Final = "0.1.0"
"""Of this package, and of the instrumentation scope."""
SCOPE: Final = "periflow_otel"
"""Name of the instrumentation scope. A log record has the name of its logger there."""
SCHEMA_URL: Final = "https://opentelemetry.io/schemas/1.44.0"
"""The semantic conventions that all names follow which are not our own, such as those of ``service`` and ``host``."""

# Spans
STEP_SPAN: Final = "periflow.step"
"""One training step of one rank."""
RUN_SPAN: Final = "periflow.run"
"""The whole run of one rank; emitted when it is over, also after SIGKILL."""
RUN_START_SPAN: Final = "periflow.run.start"
"""A run of one rank has begun; emitted at once."""
CHECKPOINT_SPAN: Final = "periflow.checkpoint"
"""Carries the upload event of a checkpoint that was announced inside a step that is still open, or told to be of
another step than the last."""
METRICS_SPAN: Final = "periflow.metrics"
"""Carries values that were told to be of another step than the last; below that step's span."""
STUCK_SPAN: Final = "periflow.stuck"
"""Ranks of a node do not go on, since its start; emitted at once, again with growing pauses, and when they do go on."""
SLOW_SPAN: Final = "periflow.slow"
"""Ranks of a node held up a step that took much longer than usual, or hold up all steps; emitted when that is known."""
SPANS: Final = (STEP_SPAN, RUN_SPAN, RUN_START_SPAN, CHECKPOINT_SPAN, METRICS_SPAN, STUCK_SPAN, SLOW_SPAN)

# Events
CHECKPOINT_UPLOAD: Final = "periflow.checkpoint.upload"
"""A checkpoint is complete and should be uploaded."""
EXCEPTION: Final = "exception"
"""An exception ended the step, the phase or the run."""
RUN_RESTART: Final = "periflow.run.restart"
"""This attempt goes on from an earlier one. On the run.start span of each rank."""
STUCK_STACK: Final = "periflow.stuck.stack"
"""What ranks of a node are doing that do the same. On stuck and slow spans, those that hold up the others first."""
RUN_FATAL: Final = "periflow.run.fatal"
"""A fatal signal has ended the process, and what its interpreter said of it. On the run span."""
EVENTS: Final = (RUN_FATAL, CHECKPOINT_UPLOAD, EXCEPTION, RUN_RESTART, STUCK_STACK)

# Attributes
STEP: Final = "periflow.step.number"
"""Number of the step within the run, from 1. Never a metric attribute."""
RANK: Final = "periflow.rank"
"""Rank of the process. On every span, metric point and log record of a rank."""
LOCAL_RANK: Final = "periflow.local_rank"
"""Rank within the node."""
NODE_RANK: Final = "periflow.node_rank"
"""Number of the node. Also a resource attribute."""
WORLD_SIZE: Final = "periflow.world_size"
"""Number of ranks. Resource attribute."""
RUN_ID: Final = "periflow.run.id"
"""Identity of the run, the same on all ranks. Resource attribute."""
RUN_NAME: Final = "periflow.run.name"
"""What people call the run, as given to init. Resource attribute."""
ATTEMPT: Final = "periflow.run.attempt"
"""1, and one more at each restart of the run. Resource attribute."""
MODE: Final = "periflow.mode"
"""local or cloud. Resource attribute, and on the checkpoint event in local mode."""
OUTCOME: Final = "periflow.run.outcome"
"""finished, failed, interrupted or killed. Also a metric attribute."""
RUN_STEPS: Final = "periflow.run.steps"
"""Steps that this attempt completed."""
LAST_STEP: Final = "periflow.run.last_step"
"""Number of the last step that was completed."""
LAST_CHECKPOINT: Final = "periflow.run.last_checkpoint"
"""Step of the last checkpoint that was announced."""
TARGET_STEP: Final = "periflow.run.total_steps"
"""Last step of the run, as given to init."""
GAP: Final = "periflow.step.gap"
"""Seconds between the end of the step before and the start of this one."""
PAUSE: Final = "periflow.step.pause"
"""Seconds that garbage collections of more than a millisecond each have held up the step."""
NONFINITE: Final = "periflow.step.nonfinite_keys"
"""Keys whose value was NaN or infinite in this step."""
METRIC_PREFIX: Final = "periflow.metric."
"""Followed by the user's key: a value that was recorded in this step."""
CONFIG_PREFIX: Final = "periflow.config."
"""Followed by the user's key: a value that tells the run from others, as given to init. On run.start and run spans."""
CONFIG_VALUE: Final = "periflow.value"
"""A value that tells the run from others, as text; its key is beside it. Metric attribute."""
SAVE_TYPE: Final = "periflow.checkpoint.save_type"
"""NORMAL or EMERGENCY."""
TRIGGER_TIME: Final = "periflow.checkpoint.trigger_time"
"""When upload_checkpoint was called, ISO 8601 in UTC."""
CHECKPOINT_ID: Final = "periflow.checkpoint.id"
"""run/attempt/step/rank: the same in every repetition."""
REQUEST_DELAY: Final = "periflow.checkpoint.request_delay"
"""Seconds from the emergency request to the upload."""
RESTART_GAP: Final = "periflow.restart.gap"
"""Seconds from the last sign of the attempt before to the start."""
REDONE_STEPS: Final = "periflow.restart.redone_steps"
"""Steps of the attempt before that are done once more."""
LAST_RANK: Final = "periflow.last_rank"
"""The rank of the node that began a step last. Metric attribute."""
STUCK_PHASE: Final = "periflow.stuck.phase"
"""step: in a step. gap: between two."""
STUCK_SECONDS: Final = "periflow.stuck.seconds"
"""For how long no step has begun or ended."""
STUCK_RANKS: Final = "periflow.stuck.ranks"
"""Which ranks, such as 0-2, 5. On the span, and as a metric attribute, those that hold up the others."""
STUCK_PLACE: Final = "periflow.stuck.place"
"""File, line and function of the innermost code of the user's own. Also a metric attribute."""
STUCK_SUMMARY: Final = "periflow.stuck.summary"
"""Who holds up the others, where, and who waits, in one line."""
STUCK_ROLE: Final = "periflow.stuck.role"
"""culprit: holds up the others, as far as that can be told. waiting: does not."""
STUCK_OVER: Final = "periflow.stuck.over"
"""Whether the ranks have gone on."""
SLOW_EXCESS: Final = "periflow.slow.excess"
"""How many seconds more than usual a step took, from its start to the next, or about how many each could save."""
SLOW_LASTING: Final = "periflow.slow.lasting"
"""Whether ranks hold up all steps, as looks at random moments show; else it is about one step."""
SLOW_DOING: Final = "periflow.slow.doing"
"""What the main thread did that holds up others: computes, waits for a processor, waits for a disk, or sleeps or
waits."""
FATAL: Final = "periflow.run.last_words"
"""Which fatal signal, such as Segmentation fault, and where it hit."""
EXCEPTION_TYPE: Final = "exception.type"
"""Type of the exception, with its module; its message may hold secrets and stays out unless it is asked for."""
ERROR_TYPE: Final = "error.type"
"""Of what a step, phase or run has failed: the type of the exception, or killed. On spans with the status ERROR."""
EXCEPTION_MESSAGE: Final = "exception.message"
"""Text of an exception that the script has logged, or, with PERIFLOW_EXCEPTIONS=message, of one that ended the run."""
EXCEPTION_STACKTRACE: Final = "exception.stacktrace"
"""Stack of an exception that the script has logged, or, where PERIFLOW_EXCEPTIONS asks for it, that ended the run."""
CODE_STACKTRACE: Final = "code.stacktrace"
"""Stack of a log record that was said with ``stack_info``."""
CODE_FILE_PATH: Final = "code.file.path"
"""File whose code has said a log record."""
CODE_FUNCTION: Final = "code.function.name"
"""Function that has said a log record."""
CODE_LINE: Final = "code.line.number"
"""Line of that file."""
THREAD_ID: Final = "thread.id"
"""Thread that has said a log record, by Python's number."""
THREAD_NAME: Final = "thread.name"
"""Name of that thread."""
METRIC_KEY: Final = "periflow.key"
"""The user's spelling of a key, of a metric or of the configuration. Metric attribute."""
TIME_KIND: Final = "periflow.kind"
"""step, gap, checkpoint, startup, restart, other, or the name of a phase; of a pause gc.0, gc.1 or gc.2."""
STEP_OUTCOME: Final = "periflow.step.outcome"
"""ok or error. Metric attribute."""
WORK_KIND: Final = "periflow.work.kind"
"""What was done, as given to init: tokens, samples, flops or any other. Metric attribute."""
MACHINE_RESOURCE: Final = "periflow.machine.resource"
"""What processes waited for: cpu, memory or io. Metric attribute."""
DROP_REASON: Final = "periflow.reason"
"""Why something was dropped. Metric attribute."""
CONSUMER: Final = "periflow.consumer"
"""Which exporter and signal. Metric attribute."""
ATTRIBUTES: Final = {
    STEP: "int", RANK: "int", LOCAL_RANK: "int", NODE_RANK: "int", WORLD_SIZE: "int", RUN_ID: "string",
    RUN_NAME: "string", ATTEMPT: "int", MODE: "string", OUTCOME: "string", RUN_STEPS: "int", LAST_STEP: "int",
    LAST_CHECKPOINT: "int", TARGET_STEP: "int", GAP: "double", PAUSE: "double", NONFINITE: "string[]",
    METRIC_PREFIX: "template[any]",
    CONFIG_PREFIX: "template[any]", CONFIG_VALUE: "string", SAVE_TYPE: "string", TRIGGER_TIME: "string",
    CHECKPOINT_ID: "string", REQUEST_DELAY: "double", RESTART_GAP: "double", REDONE_STEPS: "int", LAST_RANK: "int",
    EXCEPTION_TYPE: "string", ERROR_TYPE: "string", EXCEPTION_MESSAGE: "string", EXCEPTION_STACKTRACE: "string",
    CODE_STACKTRACE: "string", CODE_FILE_PATH: "string", CODE_FUNCTION: "string", CODE_LINE: "int", THREAD_ID: "int",
    THREAD_NAME: "string", METRIC_KEY: "string", TIME_KIND: "string", STEP_OUTCOME: "string", WORK_KIND: "string",
    MACHINE_RESOURCE: "string", DROP_REASON: "string", CONSUMER: "string",
    FATAL: "string", STUCK_PHASE: "string", STUCK_SECONDS: "double", STUCK_RANKS: "string", STUCK_PLACE: "string",
    STUCK_SUMMARY: "string", STUCK_ROLE: "string", STUCK_OVER: "boolean",
    SLOW_EXCESS: "double", SLOW_DOING: "string", SLOW_LASTING: "boolean",
}  # fmt: skip
"""With their types, in the words of the semantic conventions."""

# Instruments
STEP_DURATION: Final = Instrument("periflow.step.duration", "histogram", "s", "Duration of a step.")
STEP_GAP: Final = Instrument(
    "periflow.step.gap", "histogram", "s", "End of a step to the start of the next: data wait, evaluation, saving."
)
STEP_PAUSE: Final = Instrument(
    "periflow.step.pause",
    "counter",
    "s",
    "Time that garbage collections of more than 1 ms took in steps, by generation.",
)
STEP_COMPLETED: Final = Instrument("periflow.step.completed", "counter", "{step}", "Steps that ended, by outcome.")
STEP_CURRENT: Final = Instrument("periflow.step.current", "gauge", "{step}", "Number of the last step that started.")
STEP_LAST_ENDED: Final = Instrument(
    "periflow.step.last_ended", "gauge", "{step}", "Number of the last step that ended; below current in a step."
)
STEP_TARGET: Final = Instrument("periflow.step.target", "gauge", "{step}", "Last step of the run, as given to init.")
STEP_STARTED_AT: Final = Instrument(
    "periflow.step.started_at", "gauge", "s", "Unix time at which the last step started; a stuck rank is time() - x."
)
STEP_SKEW: Final = Instrument(
    "periflow.step.skew", "histogram", "s", "From the first rank of a node to begin a step to the last, by that one."
)
STUCK_TIME: Final = Instrument(
    "periflow.stuck.time", "gauge", "s", "For how long ranks of a node are stuck in a place; 0: they have gone on."
)
STEP_REDONE: Final = Instrument(
    "periflow.step.redone", "counter", "{step}", "Steps that an earlier attempt had done already."
)
WORK_DONE: Final = Instrument(
    "periflow.work.done", "counter", "{unit}", "What the steps that ended well have done, by kind, as given to init."
)
WORK_PEAK: Final = Instrument(
    "periflow.work.peak", "gauge", "{flop}/s", "Floating-point operations per second of the device, as given to init."
)
TIME: Final = Instrument("periflow.time", "counter", "s", "Wall time by kind; goodput is a ratio of these.")
RUN_UP: Final = Instrument("periflow.run.up", "gauge", "{run}", "1 while the run of a rank goes on, 0 when it is over.")
RUN_CONFIG: Final = Instrument(
    "periflow.run.config",
    "gauge",
    "{value}",
    "1: a value that tells the run from others; 0: it was replaced. Of rank 0.",
)
RUN_ENDED: Final = Instrument("periflow.run.ended", "counter", "{run}", "Runs of a rank that are over, by outcome.")
CHECKPOINT_UPLOADS: Final = Instrument(
    "periflow.checkpoint.uploads", "counter", "{upload}", "Checkpoints announced, by save type."
)
CHECKPOINT_LAST_STEP: Final = Instrument(
    "periflow.checkpoint.last_step", "gauge", "{step}", "Step of the last checkpoint that was announced."
)
METRIC_NONFINITE: Final = Instrument(
    "periflow.step.nonfinite_values", "counter", "{value}", "Values of a user metric that were NaN or infinite, by key."
)
METRICS_STEP: Final = Instrument(
    "periflow.metrics.step", "gauge", "{step}", "Step of the values from this time on. In files."
)
TELEMETRY_RECORDS: Final = Instrument(
    "periflow.telemetry.records", "counter", "{record}", "Journal records read, by consumer."
)
TELEMETRY_EXPORTED: Final = Instrument(
    "periflow.telemetry.exported", "counter", "{item}", "Spans, points or lines delivered, by consumer."
)
TELEMETRY_DROPPED: Final = Instrument(
    "periflow.telemetry.dropped", "counter", "{item}", "Items lost, by consumer and reason."
)
TELEMETRY_SET_ASIDE: Final = Instrument(
    "periflow.telemetry.set_aside", "counter", "{item}", "Items kept aside as not taken, by consumer and reason."
)
TELEMETRY_BACKLOG: Final = Instrument(
    "periflow.telemetry.backlog", "gauge", "{record}", "Journal records not yet delivered, by consumer."
)
TELEMETRY_JOURNAL_SIZE: Final = Instrument(
    "periflow.telemetry.journal.size", "gauge", "By", "Space that the journals of this run take on this node."
)
TELEMETRY_SINCE_SUCCESS: Final = Instrument(
    "periflow.telemetry.since_success", "gauge", "s", "Seconds since a consumer last delivered something."
)
TELEMETRY_CPU_TIME: Final = Instrument(
    "periflow.telemetry.cpu.time", "counter", "s", "CPU time that the agent process has used."
)
MACHINE_CPU_LIMIT: Final = Instrument(
    "periflow.machine.cpu.limit", "gauge", "{cpu}", "Of how many processors the container may use the time."
)
MACHINE_CPU_THROTTLED: Final = Instrument(
    "periflow.machine.cpu.throttled", "counter", "s", "Time for which the container was kept from running by its limit."
)
MACHINE_STALLED: Final = Instrument(
    "periflow.machine.stalled", "counter", "s",
    "Time for which some process of the node or container had to wait for a resource, where Linux tells it.",
)  # fmt: skip
MACHINE_CHILDREN: Final = Instrument(
    "periflow.machine.children.running",
    "gauge",
    "{process}",
    "Processes below that of a rank, such as data loader workers.",
)
MACHINE_CHILDREN_MEMORY: Final = Instrument(
    "periflow.machine.children.memory", "gauge", "By",
    "Physical memory of the processes below that of a rank, together; what they share counts for each.",
)  # fmt: skip
INSTRUMENTS: Final = (
    STEP_DURATION, STEP_GAP, STEP_PAUSE, STEP_COMPLETED, STEP_CURRENT, STEP_LAST_ENDED, STEP_TARGET, STEP_STARTED_AT,
    STEP_SKEW, STUCK_TIME, STEP_REDONE, WORK_DONE, WORK_PEAK, TIME, RUN_UP, RUN_CONFIG, RUN_ENDED, CHECKPOINT_UPLOADS,
    CHECKPOINT_LAST_STEP,
    METRIC_NONFINITE, METRICS_STEP, TELEMETRY_RECORDS, TELEMETRY_EXPORTED, TELEMETRY_DROPPED, TELEMETRY_SET_ASIDE,
    TELEMETRY_BACKLOG, TELEMETRY_JOURNAL_SIZE, TELEMETRY_SINCE_SUCCESS, TELEMETRY_CPU_TIME,
    MACHINE_CPU_LIMIT, MACHINE_CPU_THROTTLED, MACHINE_STALLED, MACHINE_CHILDREN, MACHINE_CHILDREN_MEMORY,
)  # fmt: skip


INSTRUMENT_ATTRIBUTES: Final = {
    STEP_PAUSE: (TIME_KIND,), STEP_COMPLETED: (STEP_OUTCOME,), STEP_SKEW: (LAST_RANK,),
    STUCK_TIME: (STUCK_PLACE, STUCK_RANKS),
    WORK_DONE: (WORK_KIND,), TIME: (TIME_KIND,), RUN_ENDED: (OUTCOME,),
    RUN_CONFIG: (METRIC_KEY, CONFIG_VALUE), CHECKPOINT_UPLOADS: (SAVE_TYPE,), METRIC_NONFINITE: (METRIC_KEY,),
    TELEMETRY_RECORDS: (CONSUMER,), TELEMETRY_EXPORTED: (CONSUMER,), TELEMETRY_DROPPED: (CONSUMER, DROP_REASON),
    TELEMETRY_SET_ASIDE: (CONSUMER, DROP_REASON), TELEMETRY_BACKLOG: (CONSUMER,), TELEMETRY_SINCE_SUCCESS: (CONSUMER,),
    MACHINE_STALLED: (MACHINE_RESOURCE,),
}  # fmt: skip
"""What the points of an instrument carry besides who they are from."""
OF_MACHINE: Final = frozenset(
    {MACHINE_CPU_LIMIT, MACHINE_CPU_THROTTLED, MACHINE_STALLED, MACHINE_CHILDREN, MACHINE_CHILDREN_MEMORY}
)
"""What the agent sees of the machine and the semantic conventions have no name for."""
OF_AGENT: Final = frozenset(
    {
        STEP_SKEW,
        STUCK_TIME,
        *OF_MACHINE,
        *(each for each in INSTRUMENTS if each.name.startswith("periflow.telemetry.")),
    }
)
"""Instruments of an agent, whose points carry ``NODE_RANK``; those of a rank carry ``RANK``."""


def user_instrument(key: str) -> Instrument:
    """Return the gauge of a user's metric key, spelled as the user spells it."""
    return Instrument(METRIC_PREFIX + key, "gauge", "", "A value given to pf.metric.")


SECONDS_BOUNDS: Final = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0,
)  # fmt: skip
"""Bucket bounds of the time histograms, in seconds: the SDK's defaults are made for milliseconds."""

# Variables that PeriFlow sets in cloud mode
PERIFLOW_ENABLED: Final = "PERIFLOW_ENABLED"
"""1: cloud mode. Anything else: local mode."""
WORLD_SIZE_VAR: Final = "WORLD_SIZE"
"""Number of ranks; required in cloud mode."""
NODE_RANK_VAR: Final = "NODE_RANK"
"""Number of this node; required in cloud mode."""
NUM_NODES_VAR: Final = "NUM_NODES"
"""Number of nodes; required in cloud mode."""
PROCESSED_ITERS: Final = "PROCESSED_ITERS"
"""Steps done by earlier attempts; required in cloud mode."""
CKPT_DIR: Final = "CKPT_DIR"
"""Cloud mode: where checkpoints are written; unset: no upload event."""
# Variables of our own
STATE_DIR: Final = "PERIFLOW_STATE_DIR"
"""Folder of the journals. Default: ~/.local/state/periflow."""
RUN_ID_VAR: Final = "PERIFLOW_RUN_ID"
"""Identity of the run. Default: from the launcher, else made up."""
ATTEMPT_VAR: Final = "PERIFLOW_ATTEMPT"
"""Number of the attempt, from 1, the same on all ranks. Default: found out."""
AGENT: Final = "PERIFLOW_AGENT"
"""process (default), thread, or off (journal only)."""
EXIT_TIMEOUT: Final = "PERIFLOW_EXIT_TIMEOUT"
"""Seconds that a process waits at exit for delivery. Default: 5."""
AGENT_LINGER: Final = "PERIFLOW_AGENT_LINGER"
"""Seconds that the agent goes on trying when all ranks are gone. Default: 60."""
JOURNAL_MAX_BYTES: Final = "PERIFLOW_JOURNAL_MAX_BYTES"
"""Bound of the journal, per rank. Default: 268435456."""
LOGS_VAR: Final = "PERIFLOW_LOGS"
"""debug, info, warning, error or critical: from this level on, what the script logs is recorded. Default: off."""
EVENTS_VAR: Final = "PERIFLOW_EVENTS"
"""As what events leave: span (default), log, or both."""
EXCEPTIONS_VAR: Final = "PERIFLOW_EXCEPTIONS"
"""What is recorded of the exception that ends a run: its type (default), its stack too, or also its message."""
MACHINE_INTERVAL: Final = "PERIFLOW_MACHINE_INTERVAL"
"""Seconds between two looks at the machine: processors, memory, disks, network, GPUs. 0: none. Default: 10."""
PAGE: Final = "PERIFLOW_PAGE"
"""0: no live page. Default: 1 where the Prometheus endpoint is on, as it is in local mode."""
CONSOLE: Final = "PERIFLOW_CONSOLE"
"""1: a progress line on stderr every few seconds."""
OTLP_HEADERS_FILE: Final = "PERIFLOW_OTLP_HEADERS_FILE"
"""File of headers for OTLP, key=value a line, which is read again when it changes. Default: none."""
STUCK_AFTER: Final = "PERIFLOW_STUCK_AFTER"
"""Seconds without a step that are worth a look at the least; 0: no process is ever asked for its stack. Default: 20."""
ALLOWED_HOSTS: Final = "PERIFLOW_ALLOWED_HOSTS"
"""Names, with commas, under which a browser may ask for what is served. Default: localhost and addresses only."""
EMERGENCY_SIGNALS: Final = "PERIFLOW_EMERGENCY_SIGNALS"
"""Signals that ask for an emergency save, such as SIGUSR1,SIGTERM. Default: none."""
VARIABLES: Final = (
    PERIFLOW_ENABLED, WORLD_SIZE_VAR, NODE_RANK_VAR, NUM_NODES_VAR, PROCESSED_ITERS, CKPT_DIR, STATE_DIR,
    RUN_ID_VAR, ATTEMPT_VAR, AGENT, EXIT_TIMEOUT, AGENT_LINGER, JOURNAL_MAX_BYTES, LOGS_VAR, EVENTS_VAR, EXCEPTIONS_VAR,
    MACHINE_INTERVAL, STUCK_AFTER, PAGE, CONSOLE, OTLP_HEADERS_FILE, ALLOWED_HOSTS, EMERGENCY_SIGNALS,
)  # fmt: skip
